//! Which block goes to which node: what the locality service answers, so that what is loaded is where schedulers look.
//!
//! The first copy goes to the node that the service names with all owners as candidates, each further one to the node
//! that it names when those with a copy are left out. A node that holds all of a block has its copy.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::objects::Wanted;
use crate::failure::{Failure, Kind};
use crate::fleet::Fleet;
use crate::service::{self, Location, PathRequest, Service, part};

/// Paths of one question.
const PATHS_AT_ONCE: usize = 1_000;

/// A block of an object, by the object's place among the wanted ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct BlockOf {
    pub(super) object: usize,
    pub(super) index: u32,
}

/// One copy of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) block: BlockOf,
    /// Where the block begins in its object, and how long it is.
    pub(super) offset: u64,
    pub(super) length: u64,
    /// The member that has it, or is to have it.
    pub(super) node: usize,
    /// 0 for the first copy.
    pub(super) nth: u8,
}

/// A block that nobody takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nowhere {
    pub(super) block: BlockOf,
    pub(super) length: u64,
}

/// See the module's text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// To be brought in.
    pub(super) missing: Vec<Copy>,
    /// There already.
    pub(super) present: Vec<Copy>,
    pub(super) nowhere: Vec<Nowhere>,
}

/// What the service says of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spot {
    /// The node holds all of it.
    Whole(usize),
    /// The node holds half of it or more, or it belongs there.
    Belongs(usize),
    Nowhere,
}

#[derive(Debug, Clone, Copy)]
struct Placed {
    index: u32,
    offset: u64,
    length: u64,
    spot: Spot,
}

/// Asks the service.
pub(super) struct Planner<'a> {
    pub(super) service: &'a Service,
    pub(super) fleet: &'a Fleet,
    pub(super) objects: &'a [Wanted],
}

impl Planner<'_> {
    /// Places `copies` of every block among `owners`.
    pub(super) fn plan(&self, owners: &[usize], copies: u8) -> Result<Plan, Failure> {
        let mut plan = Plan::default();
        let all: Vec<usize> = (0..self.objects.len()).collect();
        let mut taken: HashMap<BlockOf, Vec<usize>> = HashMap::new();
        for (object, placed) in self.locate(&all, owners)? {
            for placed in placed {
                plan.put(object, placed, 0, &mut taken);
            }
        }
        for nth in 1..copies {
            let mut groups: BTreeMap<Vec<usize>, Vec<BlockOf>> = BTreeMap::new();
            for (block, nodes) in &taken {
                groups.entry(nodes.clone()).or_default().push(*block);
            }
            for (nodes, mut blocks) in groups {
                blocks.sort_unstable();
                let others: Vec<usize> = owners
                    .iter()
                    .copied()
                    .filter(|owner| !nodes.contains(owner))
                    .collect();
                for (block, placed) in self.locate_blocks(&blocks, &others)? {
                    plan.put(block.object, placed, nth, &mut taken);
                }
            }
        }
        Ok(plan)
    }

    /// Places copies anew, among `owners` but for the nodes that have another copy of the same block.
    pub(super) fn replan(
        &self,
        copies: &[Copy],
        owners: &[usize],
        taken: &HashMap<BlockOf, Vec<usize>>,
    ) -> Result<Plan, Failure> {
        let mut plan = Plan::default();
        let mut groups: BTreeMap<(u8, Vec<usize>), Vec<BlockOf>> = BTreeMap::new();
        for copy in copies {
            let mut nodes = taken.get(&copy.block).cloned().unwrap_or_default();
            nodes.sort_unstable();
            groups.entry((copy.nth, nodes)).or_default().push(copy.block);
        }
        for ((nth, nodes), blocks) in groups {
            let others: Vec<usize> = owners
                .iter()
                .copied()
                .filter(|owner| !nodes.contains(owner))
                .collect();
            for (block, placed) in self.locate_blocks(&blocks, &others)? {
                plan.put(block.object, placed, nth, &mut HashMap::new());
            }
        }
        Ok(plan)
    }

    /// Whether the service knows that each of these copies is there, so that others can be made from them.
    pub(super) fn are_known(&self, copies: &[Copy]) -> Result<bool, Failure> {
        let mut by_node: BTreeMap<usize, Vec<BlockOf>> = BTreeMap::new();
        for copy in copies {
            by_node.entry(copy.node).or_default().push(copy.block);
        }
        for (node, blocks) in by_node {
            let placed = self.locate_blocks(&blocks, &[node])?;
            if !placed.iter().all(|(_, placed)| placed.spot == Spot::Whole(node)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn locate_blocks(
        &self,
        blocks: &[BlockOf],
        candidates: &[usize],
    ) -> Result<Vec<(BlockOf, Placed)>, Failure> {
        let mut objects: Vec<usize> = blocks.iter().map(|block| block.object).collect();
        objects.sort_unstable();
        objects.dedup();
        let placed: HashMap<usize, Vec<Placed>> = self.locate(&objects, candidates)?.into_iter().collect();
        let find = |block: &BlockOf| {
            let of_object = placed.get(&block.object)?;
            let found = of_object.iter().find(|placed| placed.index == block.index)?;
            Some((*block, *found))
        };
        Ok(blocks.iter().filter_map(find).collect())
    }

    /// Where the blocks of these objects are or belong, among the candidates.
    fn locate(&self, objects: &[usize], candidates: &[usize]) -> Result<Vec<(usize, Vec<Placed>)>, Failure> {
        let names: Vec<String> = candidates
            .iter()
            .map(|index| self.fleet.members[*index].node.clone())
            .collect();
        let members: HashMap<&str, usize> = candidates
            .iter()
            .map(|index| (self.fleet.members[*index].node.as_str(), *index))
            .collect();
        let mut found = Vec::with_capacity(objects.len());
        let mut questions: VecDeque<&[usize]> = objects.chunks(PATHS_AT_ONCE).collect();
        while let Some(question) = questions.pop_front() {
            let paths: Vec<PathRequest> = question.iter().map(|object| self.request(*object)).collect();
            let answer = self.service.locations(Some(&names), &paths)?;
            let locations: Vec<Location> = part(&answer, "locations")?;
            if locations.len() != question.len() {
                let message =
                    "the locality service answered for another number of paths than it was asked for";
                return Err(Failure::new(Kind::Internal, message));
            }
            let too_many = |location: &Location| {
                location
                    .error
                    .as_ref()
                    .is_some_and(|error| error.code == "too_many_blocks")
            };
            if question.len() > 1 && locations.iter().any(too_many) {
                let (first, second) = question.split_at(question.len() / 2);
                questions.push_front(second);
                questions.push_front(first);
                continue;
            }
            for (object, location) in question.iter().zip(&locations) {
                found.push((*object, placed(location, &members)?));
            }
        }
        Ok(found)
    }

    fn request(&self, object: usize) -> PathRequest {
        let Wanted { path, generation } = &self.objects[object];
        PathRequest {
            etag: Some(generation.etag.as_str().to_owned()),
            size_bytes: Some(generation.size_bytes),
            ..PathRequest::new(path)
        }
    }
}

impl Plan {
    fn put(&mut self, object: usize, placed: Placed, nth: u8, taken: &mut HashMap<BlockOf, Vec<usize>>) {
        let block = BlockOf {
            object,
            index: placed.index,
        };
        let copy = |node| Copy {
            block,
            offset: placed.offset,
            length: placed.length,
            node,
            nth,
        };
        let node = match placed.spot {
            Spot::Whole(node) => {
                self.present.push(copy(node));
                node
            }
            Spot::Belongs(node) => {
                self.missing.push(copy(node));
                node
            }
            Spot::Nowhere => {
                self.nowhere.push(Nowhere {
                    block,
                    length: placed.length,
                });
                return;
            }
        };
        let nodes = taken.entry(block).or_default();
        nodes.push(node);
        nodes.sort_unstable();
    }
}

/// The blocks of one answer.
fn placed(location: &Location, members: &HashMap<&str, usize>) -> Result<Vec<Placed>, Failure> {
    let path = &location.path;
    if let Some(error) = &location.error {
        let message = format!(
            "the locality service refused {path} ({}): {}",
            error.code, error.message
        );
        return Err(Failure::new(Kind::Usage, message));
    }
    if !location.known {
        return Err(match location.reason.as_deref() {
            Some("unknown_store") => Failure::new(
                Kind::Unavailable,
                format!(
                    "no worker has a store for {path}: add it to the workers' [[store]], or check the bucket's spelling"
                ),
            ),
            Some("no_workers") => Failure::new(
                Kind::Unavailable,
                "no worker is registered with the locality service: see `cachelet status`",
            ),
            other => Failure::new(
                Kind::Internal,
                format!(
                    "the locality service says nothing of {path} ({})",
                    other.unwrap_or("no reason given")
                ),
            ),
        });
    }
    Ok(location
        .blocks
        .iter()
        .map(|block| Placed {
            index: block.index,
            offset: block.offset,
            length: block.length,
            spot: spot(block, members),
        })
        .collect())
}

fn spot(block: &service::Block, members: &HashMap<&str, usize>) -> Spot {
    let member = |node: &service::Node| members.get(node.node.as_str()).copied();
    let whole = |node: &&service::Node| node.state == "resident" && node.residency == "all";
    if let Some(node) = block.nodes.iter().find(whole).and_then(member) {
        return Spot::Whole(node);
    }
    block
        .nodes
        .first()
        .and_then(member)
        .map_or(Spot::Nowhere, Spot::Belongs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(json: &str) -> Location {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_block_is_whole_where_all_of_it_is_and_else_belongs_to_the_first_node_named() {
        let members = HashMap::from([("a", 3), ("b", 5)]);
        let answer = location(
            r#"{"path": "s3://lake/k", "known": true, "size_bytes": 40, "blocks": [
              {"index": 0, "offset": 0, "length": 10, "nodes": [
                {"node": "a", "state": "resident", "residency": "half"}, {"node": "b", "state": "resident", "residency": "all"}]},
              {"index": 1, "offset": 10, "length": 10, "nodes": [{"node": "a", "state": "resident", "residency": "half"}]},
              {"index": 2, "offset": 20, "length": 10, "nodes": [{"node": "b", "state": "planned", "residency": "some"}]},
              {"index": 3, "offset": 30, "length": 10, "nodes": []}]}"#,
        );
        let spots: Vec<Spot> = placed(&answer, &members)
            .unwrap()
            .iter()
            .map(|placed| placed.spot)
            .collect();
        let expected = [Spot::Whole(5), Spot::Belongs(3), Spot::Belongs(5), Spot::Nowhere];
        assert_eq!(spots, expected);
    }

    #[test]
    fn what_the_service_cannot_place_says_what_to_do() {
        let failure = |json| placed(&location(json), &HashMap::new()).unwrap_err();
        let store = failure(r#"{"path": "s3://nolake/k", "known": false, "reason": "unknown_store"}"#);
        assert_eq!(store.kind, Kind::Unavailable);
        assert!(
            store.to_string().contains("s3://nolake/k") && store.to_string().contains("[[store]]"),
            "{store}"
        );
        let refused = failure(
            r#"{"path": "s3://lake/k", "known": false, "error": {"code": "too_many_blocks", "message": "fewer"}}"#,
        );
        assert!(refused.to_string().contains("fewer"), "{refused}");
    }
}
