//! The cluster as answers see it at one moment: immutable, shared, cheap to read.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use cachelet_protocol::block::BlockSize;
use cachelet_protocol::bucket::BucketPattern;
use cachelet_protocol::ids::{BucketName, NodeName, Scheme, StoreIdentity, WorkerUuid};
use cachelet_protocol::rendezvous::Weight;

use super::registration::StoreSet;
use super::{Standing, Worker, WorkerId};

/// Who is there, who may be named, and which store a bucket belongs to.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// By node name. Lost workers that keep their rank are among them.
    pub(crate) members: Vec<Member>,
    /// `None`: no worker is live.
    pub(crate) block_size: Option<BlockSize>,
    by_node: HashMap<NodeName, usize>,
    by_worker: HashMap<WorkerId, usize>,
    /// Members by the stores they have; usually one entry.
    by_stores: Vec<(Arc<StoreSet>, Vec<usize>)>,
    /// What live workers serve, most specific first.
    served: Vec<Served>,
}

/// A node's place in answers and in the plan.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) node: NodeName,
    pub(crate) uuid: WorkerUuid,
    pub(crate) weight: Weight,
    /// Whether it may be named: live and not draining. Others only keep their rank.
    pub(crate) answerable: bool,
    pub(crate) pod_ip: String,
    pub(crate) host_ip: String,
    pub(crate) data_address: String,
    pub(crate) zone: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Served {
    scheme: Scheme,
    pattern: BucketPattern,
    identity: StoreIdentity,
}

impl View {
    pub(super) fn of<'a>(workers: impl Iterator<Item = &'a Worker>) -> Self {
        let mut view = Self::default();
        let mut live_stores: Vec<&Arc<StoreSet>> = Vec::new();
        for worker in workers {
            let registration = &worker.registration;
            let stores = &registration.stores;
            let (live, draining) = match worker.standing {
                Standing::Live { draining, .. } => (true, draining),
                Standing::Lost { .. } => (false, false),
            };
            if live {
                view.block_size = Some(registration.block_size);
                if !live_stores.iter().any(|known| Arc::ptr_eq(known, stores)) {
                    live_stores.push(stores);
                }
            }
            let place = view.members.len();
            view.by_node.insert(registration.node.clone(), place);
            view.by_worker.insert(worker.id, place);
            match view
                .by_stores
                .iter_mut()
                .find(|(known, _)| Arc::ptr_eq(known, stores))
            {
                Some((_, members)) => members.push(place),
                None => view.by_stores.push((Arc::clone(stores), vec![place])),
            }
            view.members.push(Member {
                node: registration.node.clone(),
                uuid: registration.uuid,
                weight: Weight::of_capacity(worker.capacity_bytes()),
                answerable: live && !draining,
                pod_ip: registration.pod_ip.clone(),
                host_ip: registration.host_ip.clone(),
                data_address: registration.data_address.clone(),
                zone: registration.zone.clone(),
            });
        }
        for ((scheme, pattern), identity) in live_stores.into_iter().flat_map(|set| &set.buckets) {
            view.served.push(Served {
                scheme: *scheme,
                pattern: pattern.clone(),
                identity: identity.clone(),
            });
        }
        view.served
            .sort_by_key(|served| Reverse(served.pattern.specificity()));
        view
    }

    /// The place of a node's member. Any text may be asked for.
    pub(crate) fn of_node(&self, node: &str) -> Option<usize> {
        let node = NodeName::new(node).ok()?;
        self.by_node.get(&node).copied()
    }

    /// The place of a worker's member; `None` once the worker is no longer its node's.
    pub(crate) fn of_worker(&self, worker: WorkerId) -> Option<usize> {
        self.by_worker.get(&worker).copied()
    }

    /// The store that serves a bucket: of all patterns that match, the most specific one's.
    pub(crate) fn resolve(&self, scheme: Scheme, bucket: &BucketName) -> Option<&StoreIdentity> {
        self.served
            .iter()
            .find(|served| served.scheme == scheme && served.pattern.matches(bucket))
            .map(|served| &served.identity)
    }

    /// The places of the members that have a store, in no particular order.
    pub(crate) fn with_store(&self, identity: &StoreIdentity) -> impl Iterator<Item = usize> {
        self.by_stores
            .iter()
            .filter(|(stores, _)| stores.has(identity))
            .flat_map(|(_, members)| members.iter().copied())
    }
}
