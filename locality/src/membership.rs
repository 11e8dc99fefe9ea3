//! Who is in the cluster: a state machine with no I/O and no clock of its own.
//!
//! Invariants:
//! * A node has one worker: its newest epoch. A newer epoch takes the place of the older at once, so there is no ghost
//!   of a restarted worker; an older epoch is refused while the newer lives.
//! * A worker lives while its lease does; everything it says renews the lease. After that it is *lost*: it is in no
//!   answer, but keeps its rank in the plan for a while, so that a restart moves no block.
//! * All live workers have one block size, and a store or bucket that two of them have is the same store.

mod registration;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cachelet_protocol::block::BlockSize;
use cachelet_protocol::ids::{Epoch, NodeName, StoreIdentity, WorkerUuid};
use tokio::time::Instant;

pub(crate) use registration::{InvalidRegistration, Registration, StoreSet};
pub(crate) use view::{Member, View};

/// Most nodes with a worker: ten times the largest cluster that this is made for. Memory stays bounded whoever registers.
const MAX_WORKERS: usize = 100_000;

/// One registered life of a worker, as this replica counts them. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WorkerId(pub(crate) u32);

/// One report stream, as this replica counts them. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamId(u64);

/// How long things last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// A worker that says nothing for this long is lost.
    pub(crate) lease: Duration,
    /// A lost worker keeps its rank for this long.
    pub(crate) lost_rank_kept: Duration,
}

/// What a heartbeat says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Load {
    pub(crate) draining: bool,
    pub(crate) capacity_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) unlinked_held_bytes: u64,
    pub(crate) sessions: u32,
    pub(crate) blocks: u64,
    pub(crate) local_bytes: u64,
    pub(crate) peer_bytes: u64,
    pub(crate) origin_bytes: u64,
    pub(crate) grants_enabled: bool,
}

/// Whether a worker lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its lease runs.
    Live {
        /// The lease's end.
        until: Instant,
        /// It is about to stop: it is in no answer.
        draining: bool,
    },
    /// Its lease ended.
    Lost {
        /// Until when it keeps its rank.
        rank_until: Instant,
    },
}

/// A node's worker.
#[derive(Debug, Clone)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) registration: Registration,
    pub(crate) standing: Standing,
    pub(crate) registered: SystemTime,
    pub(crate) heard: Instant,
    /// Its last heartbeat; `None` before the first.
    pub(crate) load: Option<Load>,
    /// Whether a full report of it is complete.
    pub(crate) synced: bool,
    stream: StreamId,
}

impl Worker {
    /// As last heard of: in a heartbeat, else in the registration.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.load
            .map_or(self.registration.capacity_bytes, |load| load.capacity_bytes)
    }

    fn is_live(&self) -> bool {
        matches!(self.standing, Standing::Live { .. })
    }
}

/// A registration that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Admission {
    pub(crate) worker: WorkerId,
    pub(crate) stream: StreamId,
    pub(crate) kind: Admitted,
}

/// What a registration was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// A worker that was not there, or was lost. The id is that of its lost life, if it has one.
    New(Option<WorkerId>),
    /// A newer life of a live worker.
    Replaced(WorkerId),
    /// The same life on a new stream.
    Reconnected,
}

/// A registration that was not taken: what is wrong, and what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The node's live worker is of a newer epoch, or of this one.
    #[error(
        "node {node} has a live worker {uuid} of epoch {live}, this one is of epoch {offered}: stop one of them, or wait until the live one's lease ends"
    )]
    OlderEpoch {
        /// The node.
        node: NodeName,
        /// The live worker.
        uuid: WorkerUuid,
        /// Its epoch.
        live: Epoch,
        /// The refused worker's epoch.
        offered: Epoch,
    },
    /// Live workers cut objects differently.
    #[error(
        "node {node} has blocks of {} bytes, node {other} of {}: set the same `block_bytes` on every worker",
        .offered.bytes(), .live.bytes()
    )]
    BlockSize {
        /// The refused worker's node.
        node: NodeName,
        /// Its block size.
        offered: BlockSize,
        /// A live worker's node.
        other: NodeName,
        /// Its block size.
        live: BlockSize,
    },
    /// No replica keeps count of more.
    #[error("{MAX_WORKERS} nodes have workers already: no more are taken")]
    TooMany,
    /// Two workers call different stores the same.
    #[error(
        "{what} has identity {offered:?} on node {node} and {live:?} on node {other}: set the same `identity` on every worker"
    )]
    StoreIdentity {
        /// The store's name or its bucket pattern.
        what: String,
        /// The refused worker's node.
        node: NodeName,
        /// The identity there.
        offered: StoreIdentity,
        /// A live worker's node.
        other: NodeName,
        /// The identity there.
        live: StoreIdentity,
    },
}

/// The stream is no longer the worker's: a newer one took its place, or the lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superseded;

/// How many workers there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// Lease runs, not draining.
    pub(crate) ready: usize,
    /// Lease runs, draining.
    pub(crate) draining: usize,
    /// Lease ended, rank kept.
    pub(crate) lost: usize,
    /// Of those whose lease runs: with a complete full report.
    pub(crate) synced: usize,
}

/// See the module.
pub(crate) struct Membership {
    terms: Terms,
    workers: BTreeMap<NodeName, Worker>,
    nodes: BTreeMap<WorkerId, NodeName>,
    next_worker: u32,
    next_stream: u64,
    view: Option<Arc<View>>,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("workers", &self.workers.len())
            .finish_non_exhaustive()
    }
}

impl Membership {
    pub(crate) fn new(terms: Terms) -> Self {
        Self {
            terms,
            workers: BTreeMap::new(),
            nodes: BTreeMap::new(),
            next_worker: 0,
            next_stream: 0,
            view: None,
        }
    }

    /// Takes or refuses a worker. Whoever it replaces is out of the cluster when this returns.
    pub(crate) fn register(
        &mut self,
        mut registration: Registration,
        now: Instant,
        wall: SystemTime,
    ) -> Result<Admission, Refusal> {
        self.check(&mut registration)?;
        let before = self.workers.get(&registration.node);
        let same = before.filter(|worker| {
            worker.is_live()
                && worker.registration.epoch == registration.epoch
                && worker.registration.uuid == registration.uuid
        });
        let kind = match (before, same) {
            (_, Some(_)) => Admitted::Reconnected,
            (Some(worker), None) if worker.is_live() => Admitted::Replaced(worker.id),
            (lost, None) => Admitted::New(lost.map(|worker| worker.id)),
        };
        let (id, registered, load, synced) = match same {
            Some(worker) => (worker.id, worker.registered, worker.load, worker.synced),
            None => (WorkerId(self.next_worker), wall, None, false),
        };
        if let (Some(worker), None) = (before, same) {
            self.nodes.remove(&worker.id);
        }
        self.next_worker = self.next_worker.max(id.0 + 1);
        self.next_stream += 1;
        let stream = StreamId(self.next_stream);
        let node = registration.node.clone();
        self.nodes.insert(id, node.clone());
        self.workers.insert(
            node,
            Worker {
                id,
                registration,
                standing: Standing::Live {
                    until: now + self.terms.lease,
                    draining: load.is_some_and(|load| load.draining),
                },
                registered,
                heard: now,
                load,
                synced,
                stream,
            },
        );
        self.view = None;
        Ok(Admission {
            worker: id,
            stream,
            kind,
        })
    }

    /// Refuses what contradicts a live worker of another node, or the node's own newer one.
    fn check(&self, offered: &mut Registration) -> Result<(), Refusal> {
        if self.workers.len() >= MAX_WORKERS && !self.workers.contains_key(&offered.node) {
            return Err(Refusal::TooMany);
        }
        let mut compared: Vec<&Arc<StoreSet>> = Vec::new();
        for worker in self.workers.values().filter(|worker| worker.is_live()) {
            let live = &worker.registration;
            if live.node == offered.node {
                let same = live.epoch == offered.epoch && live.uuid == offered.uuid;
                if live.epoch >= offered.epoch && !same {
                    return Err(Refusal::OlderEpoch {
                        node: offered.node.clone(),
                        uuid: live.uuid,
                        live: live.epoch,
                        offered: offered.epoch,
                    });
                }
                continue;
            }
            if live.block_size != offered.block_size {
                return Err(Refusal::BlockSize {
                    node: offered.node.clone(),
                    offered: offered.block_size,
                    other: live.node.clone(),
                    live: live.block_size,
                });
            }
            if compared.iter().any(|set| Arc::ptr_eq(set, &live.stores)) {
                continue;
            }
            if let Some((what, here, there)) = offered.stores.conflict(&live.stores) {
                return Err(Refusal::StoreIdentity {
                    what,
                    node: offered.node.clone(),
                    offered: here.clone(),
                    other: live.node.clone(),
                    live: there.clone(),
                });
            }
            compared.push(&live.stores);
        }
        if let Some(shared) = compared.into_iter().find(|set| **set == offered.stores) {
            offered.stores = Arc::clone(shared);
        }
        Ok(())
    }

    /// A worker said something: its lease begins anew.
    pub(crate) fn heard(
        &mut self,
        worker: WorkerId,
        stream: StreamId,
        now: Instant,
    ) -> Result<(), Superseded> {
        let lease = self.terms.lease;
        let worker = self.on_stream(worker, stream)?;
        let Standing::Live { until, .. } = &mut worker.standing else {
            return Err(Superseded);
        };
        *until = now + lease;
        worker.heard = now;
        Ok(())
    }

    /// Takes over a heartbeat's figures.
    pub(crate) fn heartbeat(
        &mut self,
        worker: WorkerId,
        stream: StreamId,
        load: Load,
    ) -> Result<(), Superseded> {
        let worker = self.on_stream(worker, stream)?;
        let Standing::Live { draining, .. } = &mut worker.standing else {
            return Err(Superseded);
        };
        let moved = *draining != load.draining;
        *draining = load.draining;
        let capacity_before = worker.capacity_bytes();
        worker.load = Some(load);
        if moved || capacity_before != load.capacity_bytes {
            self.view = None;
        }
        Ok(())
    }

    /// A full report of the worker is complete.
    pub(crate) fn synced(&mut self, worker: WorkerId, stream: StreamId) -> Result<(), Superseded> {
        self.on_stream(worker, stream)?.synced = true;
        Ok(())
    }

    /// The node's worker, if it is this one and this is its stream.
    fn on_stream(&mut self, worker: WorkerId, stream: StreamId) -> Result<&mut Worker, Superseded> {
        let node = self.nodes.get(&worker).ok_or(Superseded)?;
        self.workers
            .get_mut(node)
            .filter(|worker| worker.stream == stream)
            .ok_or(Superseded)
    }

    /// Ends leases and ranks whose time has come. Returns the workers that were lost now.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(WorkerId, NodeName)> {
        let kept = self.terms.lost_rank_kept;
        let mut lost = Vec::new();
        let before = self.workers.len();
        self.workers.retain(|node, worker| {
            if let Standing::Live { until, .. } = worker.standing
                && until <= now
            {
                lost.push((worker.id, node.clone()));
                worker.standing = Standing::Lost {
                    rank_until: until + kept,
                };
            }
            let gone = matches!(worker.standing, Standing::Lost { rank_until } if rank_until <= now);
            if gone {
                self.nodes.remove(&worker.id);
            }
            !gone
        });
        if !lost.is_empty() || self.workers.len() < before {
            self.view = None;
        }
        lost
    }

    /// The cluster as answers see it. Built when it has changed; every holder of the last one keeps that.
    pub(crate) fn view(&mut self) -> Arc<View> {
        Arc::clone(
            self.view
                .get_or_insert_with(|| Arc::new(View::of(self.workers.values()))),
        )
    }

    /// Every worker, by node name, lost ones included.
    pub(crate) fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    pub(crate) fn census(&self) -> Census {
        self.workers.values().fold(Census::default(), |mut sum, worker| {
            match worker.standing {
                Standing::Live { draining: false, .. } => sum.ready += 1,
                Standing::Live { draining: true, .. } => sum.draining += 1,
                Standing::Lost { .. } => sum.lost += 1,
            }
            sum.synced += usize::from(worker.is_live() && worker.synced);
            sum
        })
    }
}
