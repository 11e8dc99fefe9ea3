//! The membership's rules, with time as an argument.

use std::time::Duration;

use cachelet_protocol::grpc;
use cachelet_protocol::ids::Scheme;
use proptest::prelude::*;

use super::*;

const LEASE: Duration = Duration::from_secs(10);
const KEPT: Duration = Duration::from_mins(2);

fn membership() -> Membership {
    Membership::new(Terms {
        lease: LEASE,
        lost_rank_kept: KEPT,
    })
}

fn message(node: &str, uuid: u8, epoch: u64) -> grpc::Register {
    grpc::Register {
        protocol_version: 1,
        node: node.to_owned(),
        worker_uuid: vec![uuid; 16],
        epoch,
        version: "0.1.0".to_owned(),
        data_address: "10.0.0.1:7000".to_owned(),
        admin_address: String::new(),
        zone: "z".to_owned(),
        pod_ip: "10.0.0.1".to_owned(),
        host_ip: "fd00::1".to_owned(),
        block_bytes: 128 << 20,
        capacity_bytes: 1 << 40,
        stores: vec![store("lake", "s3", "lake-identity", &["lake", "tmp-*"])],
    }
}

fn store(name: &str, scheme: &str, identity: &str, buckets: &[&str]) -> grpc::Store {
    grpc::Store {
        name: name.to_owned(),
        scheme: scheme.to_owned(),
        identity: identity.to_owned(),
        buckets: buckets.iter().map(ToString::to_string).collect(),
    }
}

fn parsed(message: grpc::Register) -> Registration {
    Registration::parse(message).unwrap()
}

fn register(members: &mut Membership, message: grpc::Register, now: Instant) -> Result<Admission, Refusal> {
    members.register(parsed(message), now, SystemTime::UNIX_EPOCH)
}

/// Names of the nodes that may be answered.
fn answerable(members: &mut Membership) -> Vec<String> {
    let view = members.view();
    let named = view.members.iter().filter(|member| member.answerable);
    named.map(|member| member.node.to_string()).collect()
}

/// Names of the nodes that have a rank.
fn ranked(members: &mut Membership) -> Vec<String> {
    let view = members.view();
    view.members
        .iter()
        .map(|member| member.node.to_string())
        .collect()
}

#[test]
fn a_dead_worker_leaves_the_answers_within_its_lease_and_keeps_its_rank_for_a_while() {
    let mut members = membership();
    let start = Instant::now();
    let a = register(&mut members, message("a", 1, 1), start).unwrap();
    let b = register(&mut members, message("b", 2, 1), start).unwrap();
    members.heard(b.worker, b.stream, start + LEASE / 2).unwrap();
    assert_eq!(members.expire(start + LEASE - Duration::from_millis(1)), []);
    assert_eq!(answerable(&mut members), ["a", "b"]);
    let lost = members.expire(start + LEASE);
    assert_eq!(lost, [(a.worker, NodeName::new("a").unwrap())]);
    assert_eq!(answerable(&mut members), ["b"]);
    assert_eq!(ranked(&mut members), ["a", "b"]);
    members.heard(b.worker, b.stream, start + LEASE).unwrap();
    assert_eq!(members.heard(a.worker, a.stream, start + LEASE), Err(Superseded));
    assert_eq!(
        members.census(),
        Census {
            ready: 1,
            draining: 0,
            lost: 1,
            synced: 0
        }
    );
    members.heard(b.worker, b.stream, start + LEASE + KEPT).unwrap();
    assert_eq!(members.expire(start + LEASE + KEPT), []);
    assert_eq!(ranked(&mut members), ["b"]);
}

#[test]
fn a_newer_epoch_of_a_node_replaces_the_old_at_once() {
    let mut members = membership();
    let now = Instant::now();
    let old = register(&mut members, message("a", 1, 1), now).unwrap();
    let new = register(&mut members, message("a", 2, 2), now).unwrap();
    assert_eq!(new.kind, Admitted::Replaced(old.worker));
    assert_ne!(new.worker, old.worker);
    assert_eq!(members.heard(old.worker, old.stream, now), Err(Superseded));
    assert_eq!(
        members.heartbeat(old.worker, old.stream, Load::default()),
        Err(Superseded)
    );
    assert_eq!(members.synced(old.worker, old.stream), Err(Superseded));
    let view = members.view();
    assert_eq!((view.members.len(), view.of_worker(old.worker)), (1, None));
    assert_eq!(view.members[0].uuid, WorkerUuid::from_bytes([2; 16]));
}

#[test]
fn an_older_epoch_is_refused_while_the_newer_lives_and_taken_afterwards() {
    let mut members = membership();
    let now = Instant::now();
    let new = register(&mut members, message("a", 2, 7), now).unwrap();
    for (uuid, epoch) in [(1, 6), (2, 6), (1, 7)] {
        let refusal = register(&mut members, message("a", uuid, epoch), now).unwrap_err();
        let text = refusal.to_string();
        assert!(text.contains("node a") && text.contains("epoch 7"), "{text}");
    }
    members.heard(new.worker, new.stream, now).unwrap();
    members.expire(now + LEASE);
    // The node's cache directory was emptied: its epochs begin anew.
    let again = register(&mut members, message("a", 3, 1), now + LEASE).unwrap();
    assert_eq!(again.kind, Admitted::New(Some(new.worker)));
    assert_eq!(answerable(&mut members), ["a"]);
}

#[test]
fn a_worker_that_reconnects_is_the_same_worker_on_a_new_stream() {
    let mut members = membership();
    let now = Instant::now();
    let first = register(&mut members, message("a", 1, 1), now).unwrap();
    let draining = Load {
        draining: true,
        ..Load::default()
    };
    members.heartbeat(first.worker, first.stream, draining).unwrap();
    let second = register(&mut members, message("a", 1, 1), now + LEASE / 2).unwrap();
    assert_eq!(
        (second.kind, second.worker),
        (Admitted::Reconnected, first.worker)
    );
    assert_eq!(
        members.heard(first.worker, first.stream, now),
        Err(Superseded),
        "the old stream is over"
    );
    members.heard(second.worker, second.stream, now + LEASE).unwrap();
    assert_eq!(members.census().draining, 1, "it is still draining");
}

#[test]
fn a_lost_worker_comes_back_as_a_new_one() {
    let mut members = membership();
    let now = Instant::now();
    let first = register(&mut members, message("a", 1, 1), now).unwrap();
    members.expire(now + LEASE);
    let second = register(&mut members, message("a", 1, 1), now + LEASE).unwrap();
    assert_eq!(second.kind, Admitted::New(Some(first.worker)));
    assert_ne!(second.worker, first.worker);
    assert_eq!(answerable(&mut members), ["a"]);
}

#[test]
fn a_draining_worker_keeps_its_rank_and_is_in_no_answer() {
    let mut members = membership();
    let now = Instant::now();
    let a = register(&mut members, message("a", 1, 1), now).unwrap();
    let load = |draining| Load {
        draining,
        ..Load::default()
    };
    members.heartbeat(a.worker, a.stream, load(true)).unwrap();
    assert_eq!(
        (answerable(&mut members), ranked(&mut members)),
        (vec![], vec!["a".to_owned()])
    );
    members.heartbeat(a.worker, a.stream, load(false)).unwrap();
    assert_eq!(answerable(&mut members), ["a"]);
}

#[test]
fn a_heartbeat_changes_the_weight() {
    let mut members = membership();
    let a = register(&mut members, message("a", 1, 1), Instant::now()).unwrap();
    let before = members.view().members[0].weight;
    let load = Load {
        capacity_bytes: 1 << 41,
        ..Load::default()
    };
    members.heartbeat(a.worker, a.stream, load).unwrap();
    assert_eq!(members.view().members[0].weight.factor(), before.factor() * 2);
}

#[test]
fn a_store_with_another_identity_is_refused_with_both_named() {
    for (stores, named) in [
        (
            vec![store("lake", "s3", "other-identity", &["elsewhere"])],
            "store \"lake\"",
        ),
        (
            vec![store("pond", "s3", "other-identity", &["lake"])],
            "s3 bucket lake",
        ),
        (
            vec![store("pond", "s3", "other-identity", &["x", "tmp-*"])],
            "s3 bucket tmp-*",
        ),
    ] {
        let mut members = membership();
        let now = Instant::now();
        register(&mut members, message("a", 1, 1), now).unwrap();
        let offered = grpc::Register {
            stores,
            ..message("b", 2, 1)
        };
        let text = register(&mut members, offered.clone(), now)
            .unwrap_err()
            .to_string();
        for word in [
            named,
            "other-identity",
            "lake-identity",
            "node a",
            "node b",
            "`identity`",
        ] {
            assert!(text.contains(word), "{text}: {word}");
        }
        assert_eq!(answerable(&mut members), ["a"]);
        // The same node's next life may have another identity; so may anyone once the other is lost.
        let next = grpc::Register {
            node: "a".to_owned(),
            epoch: 2,
            ..offered.clone()
        };
        register(&mut members, next, now).unwrap();
        register(&mut members, offered, now).unwrap();
    }
}

#[test]
fn another_scheme_or_bucket_is_another_store() {
    let mut members = membership();
    let now = Instant::now();
    register(&mut members, message("a", 1, 1), now).unwrap();
    let stores = vec![
        store("pond", "oss", "other", &["lake"]),
        store("sea", "s3", "third", &["tmp-x"]),
    ];
    register(
        &mut members,
        grpc::Register {
            stores,
            ..message("b", 2, 1)
        },
        now,
    )
    .unwrap();
    let view = members.view();
    let of = |scheme, bucket: &str| {
        let identity = view.resolve(scheme, &bucket.parse().unwrap());
        identity.map(ToString::to_string).unwrap_or_default()
    };
    assert_eq!(of(Scheme::S3, "lake"), "lake-identity");
    assert_eq!(of(Scheme::Oss, "lake"), "other");
    assert_eq!(
        of(Scheme::S3, "tmp-x"),
        "third",
        "a name is more specific than a prefix"
    );
    assert_eq!(of(Scheme::S3, "tmp-y"), "lake-identity");
    assert_eq!(of(Scheme::S3, "lakes"), "");
    let with: Vec<usize> = view.with_store(&"third".parse().unwrap()).collect();
    assert_eq!(with, [1]);
}

#[test]
fn the_longest_prefix_wins() {
    let mut members = membership();
    let stores = vec![
        store("all", "s3", "all", &["*"]),
        store("long", "s3", "long", &["data-eu-*"]),
        store("short", "s3", "short", &["data-*"]),
    ];
    register(
        &mut members,
        grpc::Register {
            stores,
            ..message("a", 1, 1)
        },
        Instant::now(),
    )
    .unwrap();
    let view = members.view();
    for (bucket, store) in [("data-eu-1", "long"), ("data-us-1", "short"), ("other", "all")] {
        let identity = view.resolve(Scheme::S3, &bucket.parse().unwrap()).unwrap();
        assert_eq!(identity.as_str(), store);
    }
}

#[test]
fn another_block_size_is_refused_while_workers_live() {
    let mut members = membership();
    let now = Instant::now();
    register(&mut members, message("a", 1, 1), now).unwrap();
    let other = grpc::Register {
        block_bytes: 64 << 20,
        ..message("b", 2, 1)
    };
    let text = register(&mut members, other.clone(), now)
        .unwrap_err()
        .to_string();
    for word in ["134217728", "67108864", "node a", "node b", "`block_bytes`"] {
        assert!(text.contains(word), "{text}");
    }
    members.expire(now + LEASE);
    register(&mut members, other, now + LEASE).unwrap();
    assert_eq!(members.view().block_size.map(BlockSize::bytes), Some(64 << 20));
}

#[test]
fn workers_with_the_same_stores_share_one_set() {
    let mut members = membership();
    for node in 0..50 {
        register(
            &mut members,
            message(&format!("n{node}"), node, 1),
            Instant::now(),
        )
        .unwrap();
    }
    let sets: Vec<&Arc<StoreSet>> = members
        .workers()
        .map(|worker| &worker.registration.stores)
        .collect();
    assert!(sets.iter().all(|set| Arc::ptr_eq(set, sets[0])));
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn a_registration_that_makes_no_sense_is_refused_with_its_field() {
    let good = || message("a", 1, 1);
    let long = "x".repeat(400);
    let cases: [(grpc::Register, &str); 14] = [
        (
            grpc::Register {
                protocol_version: 0,
                ..good()
            },
            "report protocol 0",
        ),
        (
            grpc::Register {
                node: String::new(),
                ..good()
            },
            "invalid node name",
        ),
        (
            grpc::Register {
                node: "a/b".to_owned(),
                ..good()
            },
            "invalid node name",
        ),
        (
            grpc::Register {
                worker_uuid: vec![1; 15],
                ..good()
            },
            "15 bytes",
        ),
        (
            grpc::Register {
                block_bytes: 3 << 20,
                ..good()
            },
            "`block_bytes`",
        ),
        (
            grpc::Register {
                version: long.clone(),
                ..good()
            },
            "`version`",
        ),
        (
            grpc::Register {
                data_address: "a\nb".to_owned(),
                ..good()
            },
            "`data_address`",
        ),
        (grpc::Register { zone: long, ..good() }, "`zone`"),
        (
            grpc::Register {
                pod_ip: "<script>".to_owned(),
                ..good()
            },
            "`pod_ip`",
        ),
        (
            grpc::Register {
                host_ip: "node-1".to_owned(),
                ..good()
            },
            "`host_ip`",
        ),
        (
            grpc::Register {
                stores: vec![store("s", "ftp", "i", &[])],
                ..good()
            },
            "invalid scheme",
        ),
        (
            grpc::Register {
                stores: vec![store("s", "s3", "", &[])],
                ..good()
            },
            "invalid store identity",
        ),
        (
            grpc::Register {
                stores: vec![store("s", "s3", "i", &["a*b"])],
                ..good()
            },
            "\"a*b\"",
        ),
        (
            grpc::Register {
                stores: vec![store("s", "s3", "i", &["b"]), store("t", "s3", "j", &["b"])],
                ..good()
            },
            "s3 bucket b",
        ),
    ];
    for (message, named) in cases {
        let text = Registration::parse(message).unwrap_err().to_string();
        assert!(text.contains(named), "{named}: {text}");
    }
    let many = vec![store("s", "s3", "i", &[]); 1_001];
    assert!(
        Registration::parse(grpc::Register {
            stores: many,
            ..good()
        })
        .is_err()
    );
}

#[derive(Debug, Clone)]
enum Step {
    Register { node: u8, epoch: u64 },
    Heard(usize),
    Wait(u64),
}

proptest! {
    /// Whatever happens, a node has one worker, the answerable ones are those heard of within a lease, and an id is never
    /// given out twice.
    #[test]
    fn a_node_has_one_worker_and_it_is_answered_while_its_lease_runs(steps in prop::collection::vec(
        prop_oneof![
            (0_u8..3, 0_u64..4).prop_map(|(node, epoch)| Step::Register { node, epoch }),
            (0_usize..8).prop_map(Step::Heard),
            (0_u64..8_000).prop_map(Step::Wait),
        ],
        1..60,
    )) {
        let mut members = membership();
        let mut now = Instant::now();
        let mut admissions: Vec<Admission> = Vec::new();
        // Node -> (epoch, admission, heard), for nodes whose lease runs.
        let mut live: BTreeMap<u8, (u64, usize, Instant)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Register { node, epoch } => {
                    let admitted = register(&mut members, message(&format!("n{node}"), epoch as u8, epoch), now);
                    let before = live.get(&node).copied();
                    prop_assert_eq!(admitted.is_ok(), before.is_none_or(|(known, _, _)| epoch >= known));
                    if let Ok(admission) = admitted {
                        let same = before.is_some_and(|(known, _, _)| known == epoch);
                        prop_assert_eq!(admission.kind == Admitted::Reconnected, same);
                        prop_assert!(same || admissions.iter().all(|earlier| earlier.worker != admission.worker));
                        admissions.push(admission);
                        live.insert(node, (epoch, admissions.len() - 1, now));
                    }
                }
                Step::Heard(number) => {
                    if let Some(admission) = admissions.get(number) {
                        let entry = live.values_mut().find(|(_, known, _)| *known == number);
                        prop_assert_eq!(members.heard(admission.worker, admission.stream, now).is_ok(), entry.is_some());
                        if let Some((_, _, heard)) = entry {
                            *heard = now;
                        }
                    }
                }
                Step::Wait(ms) => {
                    now += Duration::from_millis(ms);
                    members.expire(now);
                    live.retain(|_, (_, _, heard)| *heard + LEASE > now);
                }
            }
            let expected: Vec<String> = live.keys().map(|node| format!("n{node}")).collect();
            prop_assert_eq!(answerable(&mut members), expected);
        }
    }
}
