//! Whom answers name, over memberships and residencies made by hand.

use std::collections::BTreeSet;
use std::time::SystemTime;

use cachelet_protocol::block::DEFAULT_BLOCK_BYTES;
use cachelet_protocol::grpc;
use cachelet_protocol::ids::{Generation, NodeName};
use cachelet_protocol::rendezvous::Weight;
use proptest::prelude::*;
use tokio::time::{Duration, Instant};

use super::*;
use crate::index::Holding;
use crate::membership::{Admission, Load, Membership, Registration, Terms};

const LIMITS: AnswerLimits = AnswerLimits {
    max_blocks: 1000,
    max_nodes: 3,
};
const LEASE: Duration = Duration::from_secs(10);

/// Nodes `n0`, `n1`, ... of one store, `lake`, that serves the bucket `lake`.
struct Nodes {
    membership: Membership,
    admitted: Vec<Admission>,
    start: Instant,
}

impl Nodes {
    fn new(count: usize) -> Self {
        let mut nodes = Self {
            membership: Membership::new(Terms {
                lease: LEASE,
                lost_rank_kept: LEASE * 12,
            }),
            admitted: Vec::new(),
            start: Instant::now(),
        };
        (0..count).for_each(|_| nodes.add("lake"));
        nodes
    }

    fn add(&mut self, store: &str) {
        let number = self.admitted.len();
        let message = grpc::Register {
            protocol_version: 1,
            node: format!("n{number}"),
            worker_uuid: vec![number as u8; 16],
            epoch: 1,
            pod_ip: format!("10.0.0.{number}"),
            host_ip: format!("192.168.0.{number}"),
            block_bytes: DEFAULT_BLOCK_BYTES,
            capacity_bytes: 1 << 40,
            stores: vec![grpc::Store {
                name: store.to_owned(),
                scheme: "s3".to_owned(),
                identity: store.to_owned(),
                buckets: vec![store.to_owned()],
            }],
            ..grpc::Register::default()
        };
        let registration = Registration::parse(message).unwrap();
        let admission = self
            .membership
            .register(registration, self.start, SystemTime::UNIX_EPOCH);
        self.admitted.push(admission.unwrap());
    }

    fn drain(&mut self, number: usize) {
        let Admission { worker, stream, .. } = self.admitted[number];
        let load = Load {
            draining: true,
            capacity_bytes: 1 << 40,
            ..Load::default()
        };
        self.membership.heartbeat(worker, stream, load).unwrap();
    }

    /// Lets the lease of one worker end.
    fn lose(&mut self, number: usize) {
        let now = self.start + LEASE;
        for (other, admitted) in self.admitted.iter().enumerate() {
            if other != number {
                let _ = self.membership.heard(admitted.worker, admitted.stream, now);
            }
        }
        assert_eq!(self.membership.expire(now).len(), 1);
    }

    fn holds(&self, number: usize, blocks: &[(u32, Residency)]) -> Vec<Holding> {
        let mut segments: HashMap<u32, SegmentResidency> = HashMap::new();
        for (block, residency) in blocks {
            let (segment, place) = SegmentResidency::place(BlockIndex(*block));
            segments.entry(segment).or_default().set(place, *residency);
        }
        let worker = self.admitted[number].worker;
        segments
            .into_iter()
            .map(|(segment, residency)| Holding {
                worker,
                segment,
                residency,
            })
            .collect()
    }
}

fn asked(blocks: u64) -> PathRequest {
    PathRequest {
        path: "s3a://lake/t/part-0".to_owned(),
        etag: None,
        size_bytes: Some(blocks * DEFAULT_BLOCK_BYTES),
    }
}

fn known(size_bytes: u64, holdings: Vec<Holding>) -> ObjectResidency {
    ObjectResidency {
        generation: Generation {
            etag: Etag::new("e1").unwrap(),
            size_bytes,
        },
        confirmed_unix_ms: 1,
        holdings,
    }
}

fn ask(
    nodes: &mut Nodes,
    candidates: Option<&[&str]>,
    request: &PathRequest,
    residency: Option<ObjectResidency>,
) -> PathAnswer<'static> {
    let view = nodes.membership.view();
    let candidates: Option<Vec<String>> =
        candidates.map(|names| names.iter().map(ToString::to_string).collect());
    let mut answering = Answering::new(&view, candidates.as_deref(), LIMITS);
    let answer = answering.answer(request, |_| residency);
    let json = serde_json::to_string(&answer).unwrap();
    serde_json::from_str::<PathAnswer<'_>>(&json).unwrap()
}

/// Names for each block.
fn names(answer: &PathAnswer<'_>) -> Vec<Vec<String>> {
    let of = |block: &BlockAnswer<'_>| block.nodes.iter().map(|node| node.node.to_string()).collect();
    answer.blocks.iter().map(of).collect()
}

#[test]
fn blocks_tile_the_object_whatever_its_size() {
    let mut nodes = Nodes::new(2);
    for size in [
        0,
        1,
        DEFAULT_BLOCK_BYTES - 1,
        DEFAULT_BLOCK_BYTES,
        DEFAULT_BLOCK_BYTES + 1,
        5 << 30,
    ] {
        let request = PathRequest {
            size_bytes: Some(size),
            ..asked(0)
        };
        let answer = ask(&mut nodes, None, &request, None);
        assert!(answer.known);
        assert_eq!(
            (answer.size_bytes, answer.block_bytes),
            (Some(size), Some(DEFAULT_BLOCK_BYTES))
        );
        let mut end = 0;
        for (block, index) in answer.blocks.iter().zip(0..) {
            assert_eq!((block.index, block.offset), (index, end));
            assert!(block.length > 0);
            end += block.length;
        }
        assert_eq!(end, size);
    }
}

#[test]
fn a_node_that_holds_half_of_a_block_or_more_is_resident_and_less_is_not() {
    let mut nodes = Nodes::new(4);
    let holdings = [
        nodes.holds(
            0,
            &[
                (0, Residency::Some),
                (1, Residency::HalfOrMore),
                (70, Residency::All),
            ],
        ),
        nodes.holds(1, &[(1, Residency::All), (2, Residency::Some)]),
    ]
    .concat();
    let size = 100 * DEFAULT_BLOCK_BYTES;
    let answer = ask(&mut nodes, None, &asked(100), Some(known(size, holdings)));
    assert_eq!(answer.etag.as_deref(), Some("e1"));
    assert_eq!(names(&answer)[1], ["n1", "n0"], "all of it before half of it");
    let block = &answer.blocks[1].nodes;
    assert_eq!(
        (block[0].residency, block[1].residency),
        (ResidencyName::All, ResidencyName::Half)
    );
    assert_eq!(
        (block[1].pod_ip.as_ref(), block[1].host_ip.as_ref()),
        ("10.0.0.0", "192.168.0.0")
    );
    assert_eq!(names(&answer)[70], ["n0"]);
    for (block, answer) in answer.blocks.iter().enumerate() {
        let state = if block == 1 || block == 70 {
            NodeState::Resident
        } else {
            NodeState::Planned
        };
        assert!(answer.nodes.iter().all(|node| node.state == state), "{block}");
        assert!(!answer.nodes.is_empty());
    }
    for block in [0, 2] {
        let planned = &answer.blocks[block].nodes[0];
        let holder = if block == 0 { "n0" } else { "n1" };
        let expected = if planned.node == holder {
            ResidencyName::Some
        } else {
            ResidencyName::None
        };
        assert_eq!(planned.residency, expected);
    }
}

#[test]
fn candidates_are_respected() {
    let mut nodes = Nodes::new(6);
    let holdings = nodes.holds(0, &[(0, Residency::All)]);
    let size = 200 * DEFAULT_BLOCK_BYTES;
    let residency = || Some(known(size, holdings.clone()));
    let answer = ask(
        &mut nodes,
        Some(&["n2", "n4", "n2", "elsewhere", "", "a/b"]),
        &asked(200),
        residency(),
    );
    let named: BTreeSet<String> = names(&answer).into_iter().flatten().collect();
    assert_eq!(
        named,
        ["n2".to_owned(), "n4".to_owned()].into(),
        "n0 holds it, but no executor is there"
    );
    assert!(
        names(&answer).iter().all(|nodes| nodes.len() == 1),
        "every block is planned on one of them"
    );
    let answer = ask(&mut nodes, Some(&["n0", "n2"]), &asked(200), residency());
    assert_eq!(names(&answer)[0], ["n0"]);
    assert_eq!(answer.blocks[0].nodes[0].state, NodeState::Resident);
}

#[test]
fn no_candidates_is_no_node_and_absent_candidates_are_all_nodes() {
    let mut nodes = Nodes::new(3);
    let nobody = ask(&mut nodes, Some(&[]), &asked(20), None);
    assert!(nobody.known && names(&nobody).iter().all(Vec::is_empty));
    let strangers = ask(&mut nodes, Some(&["x"]), &asked(20), None);
    assert!(strangers.known && names(&strangers).iter().all(Vec::is_empty));
    assert!(
        names(&ask(&mut nodes, None, &asked(20), None))
            .iter()
            .all(|nodes| nodes.len() == 1)
    );
}

#[test]
fn a_lost_worker_is_not_named_and_its_blocks_are_planned_nowhere_else_until_its_rank_is_given_up() {
    let mut nodes = Nodes::new(3);
    let before = names(&ask(&mut nodes, None, &asked(100), None));
    assert!(before.iter().any(|nodes| nodes == &["n1"]));
    let holdings = nodes.holds(1, &[(0, Residency::All)]);
    nodes.lose(1);
    let size = 100 * DEFAULT_BLOCK_BYTES;
    let after = names(&ask(&mut nodes, None, &asked(100), Some(known(size, holdings))));
    for (before, after) in before.iter().zip(&after) {
        if before == &["n1"] {
            assert!(after.is_empty());
        } else {
            assert_eq!(before, after);
        }
    }
    for node in [0, 2] {
        let admitted = nodes.admitted[node];
        nodes
            .membership
            .heard(admitted.worker, admitted.stream, nodes.start + LEASE * 13)
            .unwrap();
    }
    nodes.membership.expire(nodes.start + LEASE * 13);
    let moved = names(&ask(&mut nodes, None, &asked(100), None));
    for (before, moved) in before.iter().zip(&moved) {
        assert!(moved.len() == 1 && moved != &["n1"]);
        assert!(
            before == &["n1"] || before == moved,
            "only the lost node's blocks move"
        );
    }
}

#[test]
fn a_draining_worker_is_not_named() {
    let mut nodes = Nodes::new(2);
    let holdings = [
        nodes.holds(0, &[(0, Residency::All)]),
        nodes.holds(1, &[(0, Residency::All)]),
    ]
    .concat();
    nodes.drain(0);
    let residency = known(50 * DEFAULT_BLOCK_BYTES, holdings);
    let named = names(&ask(&mut nodes, None, &asked(50), Some(residency)));
    assert_eq!(named[0], ["n1"]);
    assert!(named.iter().flatten().all(|node| node == "n1"));
    assert!(named.iter().any(Vec::is_empty));
}

#[test]
fn another_generation_is_not_resident() {
    let mut nodes = Nodes::new(2);
    let holdings = nodes.holds(0, &[(0, Residency::All)]);
    let size = DEFAULT_BLOCK_BYTES;
    let residency = || Some(known(size, holdings.clone()));
    let states = |nodes: &mut Nodes, etag: Option<&str>, size_bytes: Option<u64>| {
        let request = PathRequest {
            etag: etag.map(str::to_owned),
            size_bytes,
            ..asked(1)
        };
        let answer = ask(nodes, None, &request, residency());
        let states: Vec<NodeState> = answer
            .blocks
            .iter()
            .flat_map(|block| &block.nodes)
            .map(|n| n.state)
            .collect();
        (answer.reason, answer.etag.map(Cow::into_owned), states)
    };
    let resident = vec![NodeState::Resident];
    let e1 = Some("e1".to_owned());
    assert_eq!(
        states(&mut nodes, None, None),
        (None, e1.clone(), resident.clone())
    );
    assert_eq!(
        states(&mut nodes, Some("\"e1\""), None),
        (None, e1.clone(), resident.clone())
    );
    assert_eq!(
        states(&mut nodes, Some("e1"), Some(size)),
        (None, e1.clone(), resident)
    );
    let planned = vec![NodeState::Planned];
    assert_eq!(
        states(&mut nodes, Some("e2"), Some(size)),
        (None, Some("e2".to_owned()), planned.clone())
    );
    assert_eq!(states(&mut nodes, None, Some(size - 1)), (None, None, planned));
    assert_eq!(
        states(&mut nodes, Some("e2"), None),
        (Some(Reason::UnknownSize), None, vec![])
    );
}

#[test]
fn what_is_not_known_says_why() {
    let mut nodes = Nodes::new(1);
    let mut reason = |path: &str, size_bytes: Option<u64>| {
        let request = PathRequest {
            path: path.to_owned(),
            etag: None,
            size_bytes,
        };
        let answer = ask(&mut nodes, None, &request, None);
        assert!(!answer.known && answer.blocks.is_empty());
        (answer.reason, answer.error.map(|error| error.code))
    };
    assert_eq!(reason("s3://lake/k", None), (Some(Reason::UnknownSize), None));
    assert_eq!(reason("s3://pond/k", Some(1)), (Some(Reason::UnknownStore), None));
    assert_eq!(
        reason("oss://lake/k", Some(1)),
        (Some(Reason::UnknownStore), None)
    );
    assert_eq!(reason("lake/k", Some(1)), (None, Some(ErrorCode::InvalidPath)));
    assert_eq!(
        reason("s3://lake/k", Some(u64::MAX)),
        (None, Some(ErrorCode::TooManyBlocks))
    );
    let none = ask(&mut Nodes::new(0), None, &asked(1), None);
    assert_eq!(none.reason, Some(Reason::NoWorkers));
    let weak = PathRequest {
        etag: Some("W/\"e\"".to_owned()),
        ..asked(1)
    };
    let error = ask(&mut Nodes::new(1), None, &weak, None).error.unwrap();
    assert_eq!(error.code, ErrorCode::InvalidEtag);
}

#[test]
fn the_blocks_of_all_paths_together_are_bounded() {
    let mut nodes = Nodes::new(1);
    let view = nodes.membership.view();
    let mut answering = Answering::new(&view, None, LIMITS);
    let (large, small) = (asked(600), asked(400));
    assert!(answering.answer(&large, |_| None).known);
    let error = answering.answer(&large, |_| None).error.unwrap();
    assert_eq!(error.code, ErrorCode::TooManyBlocks);
    assert!(error.message.contains("1000"), "{}", error.message);
    assert!(
        answering.answer(&small, |_| None).known,
        "what still fits is answered"
    );
    let tally = answering.tally();
    assert_eq!((tally.known, tally.refused, tally.planned_blocks), (2, 1, 1000));
}

#[test]
fn at_most_so_many_nodes_are_named_and_not_the_same_for_every_block() {
    let mut nodes = Nodes::new(20);
    let every: Vec<(u32, Residency)> = (0..50).map(|block| (block, Residency::All)).collect();
    let holdings: Vec<Holding> = (0..20).flat_map(|number| nodes.holds(number, &every)).collect();
    let answer = ask(
        &mut nodes,
        None,
        &asked(50),
        Some(known(50 * DEFAULT_BLOCK_BYTES, holdings)),
    );
    assert!(names(&answer).iter().all(|nodes| nodes.len() == LIMITS.max_nodes));
    let first: BTreeSet<String> = names(&answer)
        .into_iter()
        .map(|mut nodes| nodes.remove(0))
        .collect();
    assert!(first.len() > 10, "{first:?}");
}

#[test]
fn a_block_is_planned_only_where_its_store_is() {
    let mut nodes = Nodes::new(1);
    nodes.add("pond");
    nodes.add("lake");
    let lake: BTreeSet<String> = names(&ask(&mut nodes, None, &asked(100), None))
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(lake, ["n0".to_owned(), "n2".to_owned()].into());
}

#[test]
fn bits_beyond_the_objects_end_are_nothing() {
    let mut nodes = Nodes::new(1);
    let holdings = nodes.holds(
        0,
        &[
            (0, Residency::All),
            (1, Residency::All),
            (4_000_000, Residency::All),
        ],
    );
    let answer = ask(
        &mut nodes,
        None,
        &asked(1),
        Some(known(DEFAULT_BLOCK_BYTES, holdings)),
    );
    assert_eq!(answer.blocks.len(), 1);
}

proptest! {
    /// Whatever is held and whoever asks: blocks tile, only candidates are named, residents win, and the plan is the
    /// rendezvous winner among candidates.
    #[test]
    fn every_answer_keeps_the_rules(
        held in prop::collection::vec((0_usize..8, 0_u32..130, 0_u8..4), 0..60),
        candidates in prop::option::of(prop::collection::btree_set(0_usize..10, 0..6)),
        draining in prop::collection::btree_set(0_usize..8, 0..3),
    ) {
        let mut nodes = Nodes::new(8);
        for number in &draining {
            nodes.drain(*number);
        }
        let states = [Residency::None, Residency::Some, Residency::HalfOrMore, Residency::All];
        let mut model: HashMap<(usize, u32), Residency> = HashMap::new();
        for (number, block, state) in held {
            model.insert((number, block), states[usize::from(state)]);
        }
        let mut holdings = Vec::new();
        for number in 0..8 {
            let own: Vec<_> = model.iter().filter(|((n, _), _)| *n == number).map(|((_, b), r)| (*b, *r)).collect();
            holdings.extend(nodes.holds(number, &own));
        }
        let named: Option<Vec<String>> =
            candidates.as_ref().map(|set| set.iter().map(|number| format!("n{number}")).collect());
        let names_as_text: Option<Vec<&str>> = named.as_ref().map(|names| names.iter().map(String::as_str).collect());
        let size = 130 * DEFAULT_BLOCK_BYTES;
        let answer = ask(&mut nodes, names_as_text.as_deref(), &asked(130), Some(known(size, holdings)));
        let ranked: Vec<(NodeName, Weight)> = (0..8)
            .filter(|number| candidates.as_ref().is_none_or(|set| set.contains(number)))
            .map(|number| (NodeName::new(format!("n{number}")).unwrap(), Weight::of_capacity(1 << 40)))
            .collect();
        let object = ObjectName {
            store: StoreIdentity::new("lake").unwrap(),
            path: "s3a://lake/t/part-0".parse().unwrap(),
        }.path_id();
        for block in &answer.blocks {
            let holds = |node: &str| {
                let number = node[1..].parse().unwrap();
                model.get(&(number, block.index)).copied().unwrap_or_default()
            };
            let is_named = |node: &str| {
                let number: usize = node[1..].parse().unwrap();
                !draining.contains(&number) && candidates.as_ref().is_none_or(|set| set.contains(&number))
            };
            let residents: Vec<String> = (0..8)
                .map(|number| format!("n{number}"))
                .filter(|node| is_named(node) && holds(node).is_resident())
                .collect();
            prop_assert!(block.nodes.iter().all(|node| is_named(&node.node)));
            prop_assert!(block.nodes.iter().all(|node| node.residency == holds(&node.node).into()));
            if residents.is_empty() {
                let owner = rendezvous::rank(&object, BlockIndex(block.index), &ranked, 1);
                let expected: Vec<&str> =
                    owner.iter().map(|owner| ranked[*owner].0.as_str()).filter(|node| is_named(node)).collect();
                let planned: Vec<&str> = block.nodes.iter().map(|node| node.node.as_ref()).collect();
                prop_assert_eq!(planned, expected);
                prop_assert!(block.nodes.iter().all(|node| node.state == NodeState::Planned));
            } else {
                prop_assert_eq!(block.nodes.len(), residents.len().min(LIMITS.max_nodes));
                prop_assert!(block.nodes.iter().all(|node| residents.contains(&node.node.to_string())));
                prop_assert!(block.nodes.iter().all(|node| node.state == NodeState::Resident));
                prop_assert!(block.nodes.is_sorted_by_key(|node| Reverse(holds(&node.node))));
            }
        }
    }
}
