//! Which nodes to name for an object's blocks: pure decisions over a [`View`] and what the index says.
//!
//! For each block: the nodes that hold half or more of it, best first; if none does, the node that the plan puts it on.
//! Only candidates are looked at, if the caller names any, and only live workers are named. A worker that is draining, or
//! lost a short while ago, keeps its rank in the plan: its blocks are planned nowhere until it is back or its rank is
//! given up, rather than fetched by a second node during every restart.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use cachelet_protocol::block::{BlockIndex, BlockSize};
use cachelet_protocol::ids::{Etag, InvalidId, ObjectName, ObjectPath, PathId, StoreIdentity};
use cachelet_protocol::rendezvous;
use cachelet_protocol::residency::{Residency, SegmentResidency};

use crate::api::{
    BlockAnswer, ErrorCode, ErrorDetail, NodeAnswer, NodeState, PathAnswer, PathRequest, Reason,
    ResidencyName,
};
use crate::index::ObjectResidency;
use crate::membership::{Member, View};

/// How large one request's answer may get.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AnswerLimits {
    /// Blocks over all paths.
    pub(crate) max_blocks: usize,
    /// Nodes for a block.
    pub(crate) max_nodes: usize,
}

/// What a request's answers came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) known: u64,
    pub(crate) no_workers: u64,
    pub(crate) unknown_store: u64,
    pub(crate) unknown_size: u64,
    pub(crate) refused: u64,
    /// Blocks with a node that holds them.
    pub(crate) resident_blocks: u64,
    /// Blocks with the node they are planned on.
    pub(crate) planned_blocks: u64,
    /// Blocks without a node.
    pub(crate) nowhere_blocks: u64,
}

/// One request's answering: who may be named, and what is left of the limits.
pub(crate) struct Answering<'a> {
    view: &'a View,
    /// By place: whether the member is a candidate. `None`: all are.
    candidates: Option<Vec<bool>>,
    /// By store: the members that a block may be planned on.
    plans: HashMap<&'a StoreIdentity, Arc<[&'a Member]>>,
    limits: AnswerLimits,
    blocks_left: usize,
    tally: Tally,
}

impl<'a> Answering<'a> {
    pub(crate) fn new(view: &'a View, candidates: Option<&[String]>, limits: AnswerLimits) -> Self {
        let candidates = candidates.map(|names| {
            let mut named = vec![false; view.members.len()];
            for place in names.iter().filter_map(|name| view.of_node(name)) {
                named[place] = true;
            }
            named
        });
        Self {
            view,
            candidates,
            plans: HashMap::new(),
            blocks_left: limits.max_blocks,
            limits,
            tally: Tally::default(),
        }
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Answers for one path. `look_up` is asked at most once.
    pub(crate) fn answer(
        &mut self,
        request: &'a PathRequest,
        look_up: impl FnOnce(&PathId) -> Option<ObjectResidency>,
    ) -> PathAnswer<'a> {
        let (path, etag) = match parse(request) {
            Ok(parsed) => parsed,
            Err(error) => return self.refused(request, error),
        };
        let Some(block_size) = self.view.block_size else {
            self.tally.no_workers += 1;
            return unknown(request, Reason::NoWorkers);
        };
        let Some(store) = self.view.resolve(path.scheme, &path.bucket) else {
            self.tally.unknown_store += 1;
            return unknown(request, Reason::UnknownStore);
        };
        let name = ObjectName {
            store: store.clone(),
            path,
        };
        let object = name.path_id();
        // Another generation's blocks are of no use to the caller.
        let residency = look_up(&object).filter(|known| {
            etag.as_ref().is_none_or(|etag| *etag == known.generation.etag)
                && request
                    .size_bytes
                    .is_none_or(|size| size == known.generation.size_bytes)
        });
        let known_size = residency.as_ref().map(|known| known.generation.size_bytes);
        let Some(size_bytes) = request.size_bytes.or(known_size) else {
            self.tally.unknown_size += 1;
            return unknown(request, Reason::UnknownSize);
        };
        let count = block_size.blocks(size_bytes) as usize;
        if count > self.blocks_left {
            let message = format!(
                "the request's objects have more than {} blocks together: ask for fewer paths at a time",
                self.limits.max_blocks
            );
            return self.refused(
                request,
                ErrorDetail {
                    code: ErrorCode::TooManyBlocks,
                    message,
                },
            );
        }
        self.blocks_left -= count;
        self.tally.known += 1;
        let plan = self.plan(store);
        let blocks = self.blocks(&object, size_bytes, block_size, residency.as_ref(), &plan);
        let etag = etag.or_else(|| residency.map(|known| known.generation.etag));
        PathAnswer {
            size_bytes: Some(size_bytes),
            etag: etag.map(|etag| Cow::Owned(etag.as_str().to_owned())),
            block_bytes: Some(block_size.bytes()),
            blocks,
            known: true,
            ..empty(request)
        }
    }

    fn refused(&mut self, request: &'a PathRequest, error: ErrorDetail) -> PathAnswer<'a> {
        self.tally.refused += 1;
        PathAnswer {
            error: Some(error),
            ..empty(request)
        }
    }

    /// The members that blocks of a store may be planned on, whether or not they may be named at the moment.
    fn plan(&mut self, store: &'a StoreIdentity) -> Arc<[&'a Member]> {
        let Self {
            view,
            candidates,
            plans,
            ..
        } = self;
        let members = plans.entry(store).or_insert_with(|| {
            view.with_store(store)
                .filter(|place| is_candidate(candidates.as_deref(), *place))
                .map(|place| &view.members[place])
                .collect()
        });
        Arc::clone(members)
    }

    fn blocks(
        &mut self,
        object: &PathId,
        size_bytes: u64,
        block_size: BlockSize,
        residency: Option<&ObjectResidency>,
        plan: &[&'a Member],
    ) -> Vec<BlockAnswer<'a>> {
        let held = self.held(residency);
        let mut rest = held.as_slice();
        let mut nodes = Vec::new();
        let mut blocks = Vec::with_capacity(block_size.blocks(size_bytes) as usize);
        for index in (0..block_size.blocks(size_bytes)).map(BlockIndex) {
            let (segment, place) = SegmentResidency::place(index);
            if place == 0 {
                let later = rest.partition_point(|held| held.segment < segment);
                rest = &rest[later..];
            }
            let here = rest.iter().take_while(|held| held.segment == segment);
            nodes.clear();
            nodes.extend(here.map(|held| (held.member, held.residency.get(place))));
            blocks.push(BlockAnswer {
                index: index.0,
                offset: block_size.start_of(index),
                length: block_size.length_of(index, size_bytes),
                nodes: self.nodes(object, index, &mut nodes, plan),
            });
        }
        blocks
    }

    /// What members that may be named hold, by segment.
    fn held(&self, residency: Option<&ObjectResidency>) -> Vec<Held<'a>> {
        let mut held: Vec<Held<'a>> = residency
            .into_iter()
            .flat_map(|known| &known.holdings)
            .filter_map(|holding| {
                let place = self.view.of_worker(holding.worker)?;
                let member = &self.view.members[place];
                (member.answerable && is_candidate(self.candidates.as_deref(), place)).then_some(Held {
                    segment: holding.segment,
                    member,
                    residency: holding.residency,
                })
            })
            .collect();
        held.sort_by(|a, b| {
            a.segment
                .cmp(&b.segment)
                .then_with(|| a.member.node.cmp(&b.member.node))
        });
        held
    }

    /// Whom to name for a block, given what is held of it.
    fn nodes(
        &mut self,
        object: &PathId,
        block: BlockIndex,
        held: &mut Vec<(&'a Member, Residency)>,
        plan: &[&'a Member],
    ) -> Vec<NodeAnswer<'a>> {
        if held.iter().any(|(_, residency)| residency.is_resident()) {
            self.tally.resident_blocks += 1;
            held.retain(|(_, residency)| residency.is_resident());
            if held.len() > 1 {
                // By rank among equals, so that what is cut off, and who is first, differs from block to block.
                let score = |member: &Member| rendezvous::score(object, block, &member.node, member.weight);
                held.sort_by(|a, b| {
                    Reverse(a.1)
                        .cmp(&Reverse(b.1))
                        .then_with(|| score(b.0).total_cmp(&score(a.0)))
                });
            }
            return held
                .iter()
                .take(self.limits.max_nodes)
                .map(|(member, residency)| node(member, NodeState::Resident, *residency))
                .collect();
        }
        let owner = rendezvous::winner(
            object,
            block,
            plan.iter().map(|member| (&member.node, member.weight)),
        );
        match owner.map(|owner| plan[owner]) {
            Some(owner) if owner.answerable => {
                self.tally.planned_blocks += 1;
                let residency = held
                    .iter()
                    .find(|(member, _)| std::ptr::eq(*member, owner))
                    .map_or(Residency::None, |(_, residency)| *residency);
                vec![node(owner, NodeState::Planned, residency)]
            }
            _ => {
                self.tally.nowhere_blocks += 1;
                Vec::new()
            }
        }
    }
}

struct Held<'a> {
    segment: u32,
    member: &'a Member,
    residency: SegmentResidency,
}

fn is_candidate(candidates: Option<&[bool]>, place: usize) -> bool {
    candidates.is_none_or(|named| named[place])
}

fn parse(request: &PathRequest) -> Result<(ObjectPath, Option<Etag>), ErrorDetail> {
    let detail = |code: ErrorCode| {
        move |invalid: InvalidId| ErrorDetail {
            code,
            message: invalid.to_string(),
        }
    };
    let path = request.path.parse().map_err(detail(ErrorCode::InvalidPath))?;
    let etag = request
        .etag
        .as_deref()
        .map(Etag::from_header)
        .transpose()
        .map_err(detail(ErrorCode::InvalidEtag))?;
    Ok((path, etag))
}

fn empty(request: &PathRequest) -> PathAnswer<'_> {
    PathAnswer {
        path: Cow::Borrowed(&request.path),
        known: false,
        reason: None,
        error: None,
        size_bytes: None,
        etag: None,
        block_bytes: None,
        blocks: Vec::new(),
    }
}

fn unknown(request: &PathRequest, reason: Reason) -> PathAnswer<'_> {
    PathAnswer {
        reason: Some(reason),
        ..empty(request)
    }
}

fn node(member: &Member, state: NodeState, residency: Residency) -> NodeAnswer<'_> {
    NodeAnswer {
        node: Cow::Borrowed(member.node.as_str()),
        state,
        residency: residency.into(),
        pod_ip: Cow::Borrowed(&member.pod_ip),
        host_ip: Cow::Borrowed(&member.host_ip),
    }
}

impl From<Residency> for ResidencyName {
    fn from(residency: Residency) -> Self {
        match residency {
            Residency::None => Self::None,
            Residency::Some => Self::Some,
            Residency::HalfOrMore => Self::Half,
            Residency::All => Self::All,
        }
    }
}
