//! The cluster as people and scrapers see it.

use std::time::SystemTime;

use cachelet_protocol::block::BlockSize;
use cachelet_protocol::ids::{ObjectName, ObjectPath};
use cachelet_protocol::residency::{BLOCKS_PER_SEGMENT, Residency};
use tokio::time::Instant;

use super::{Cluster, unix_ms};
use crate::api::{
    BlockRun, ErrorCode, ErrorDetail, HolderEntry, NodeEntry, NodesAnswer, ObjectAnswer, Reason,
    StatusAnswer, WorkerStateName,
};
use crate::index::Holding;
use crate::membership::{Census, Standing, Worker};
use crate::metrics::{self, Word};

impl Cluster {
    /// Whether the replica answers as well as it can, and a sentence on it.
    pub(crate) fn readiness(&self) -> (bool, String) {
        let census = self.membership().census();
        self.readiness_of(census)
    }

    fn readiness_of(&self, census: Census) -> (bool, String) {
        let Census {
            ready,
            draining,
            synced,
            ..
        } = census;
        if self.is_stopping() {
            return (false, "not ready: the service is stopping".to_owned());
        }
        if synced > 0 {
            return (true, format!("ready: {ready} workers ready, {draining} draining"));
        }
        let waited = self.started.elapsed();
        if waited < self.ready_grace {
            let waiting_for = if ready + draining > 0 {
                "the workers' full reports"
            } else {
                "workers to register"
            };
            let rest = self.ready_grace.saturating_sub(waited).as_secs_f32();
            return (
                false,
                format!("not ready: waiting for {waiting_for}, for {rest:.1} s at most"),
            );
        }
        let why = if ready + draining > 0 {
            "no worker's full report is complete yet"
        } else {
            "no worker is registered: check that the workers' `service` address reaches the gRPC side of this replica"
        };
        (true, format!("ready, but without locations: {why}"))
    }

    pub(crate) fn nodes(&self) -> NodesAnswer {
        let now = Instant::now();
        NodesAnswer {
            nodes: self
                .membership()
                .workers()
                .map(|worker| entry(worker, now))
                .collect(),
        }
    }

    pub(crate) fn status(&self) -> StatusAnswer {
        let (ready, ready_message) = self.readiness();
        let usage = self.index.usage();
        StatusAnswer {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            ready,
            ready_message,
            lease_ms: self.lease.as_millis() as u64,
            block_bytes: self.view().block_size.map(BlockSize::bytes),
            objects: usage.objects as u64,
            segments: usage.segments as u64,
            index_bytes: usage.bytes as u64,
            nodes: self.nodes().nodes,
        }
    }

    /// What is known of one object.
    pub(crate) fn object(&self, path: &str) -> Result<ObjectAnswer, ErrorDetail> {
        let parsed: ObjectPath = path.parse().map_err(|error| ErrorDetail {
            code: ErrorCode::InvalidPath,
            message: format!("{error}"),
        })?;
        let view = self.view();
        let mut answer = ObjectAnswer {
            path: path.to_owned(),
            path_id: None,
            store: None,
            known: false,
            reason: None,
            etag: None,
            size_bytes: None,
            confirmed_unix_ms: None,
            block_bytes: view.block_size.map(BlockSize::bytes),
            holders: Vec::new(),
        };
        let Some(block_size) = view.block_size else {
            answer.reason = Some(Reason::NoWorkers);
            return Ok(answer);
        };
        let Some(store) = view.resolve(parsed.scheme, &parsed.bucket) else {
            answer.reason = Some(Reason::UnknownStore);
            return Ok(answer);
        };
        answer.store = Some(store.to_string());
        let id = ObjectName {
            store: store.clone(),
            path: parsed,
        }
        .path_id();
        answer.path_id = Some(id.to_string());
        let Some(known) = self.index.look_up(&id) else {
            answer.reason = Some(Reason::UnknownSize);
            return Ok(answer);
        };
        let blocks = block_size.blocks(known.generation.size_bytes);
        let mut holders: Vec<(usize, Vec<Holding>)> = Vec::new();
        for held in known.holdings {
            let Some(place) = view.of_worker(held.worker) else {
                continue;
            };
            match holders.iter_mut().find(|(other, _)| *other == place) {
                Some((_, all)) => all.push(held),
                None => holders.push((place, vec![held])),
            }
        }
        holders.sort_by_key(|(place, _)| *place);
        answer.known = true;
        answer.etag = Some(known.generation.etag.to_string());
        answer.size_bytes = Some(known.generation.size_bytes);
        answer.confirmed_unix_ms = Some(known.confirmed_unix_ms);
        answer.holders = holders
            .into_iter()
            .map(|(place, holdings)| HolderEntry {
                node: view.members[place].node.to_string(),
                uuid: view.members[place].uuid.to_string(),
                runs: runs(holdings, blocks),
            })
            .collect();
        Ok(answer)
    }

    /// All metrics as text, with the gauges set to what is now.
    pub(crate) fn scrape(&self) -> String {
        let (census, capacity, used) = {
            let membership = self.membership();
            let live = membership
                .workers()
                .filter(|worker| matches!(worker.standing, Standing::Live { .. }));
            let (capacity, used) = live.fold((0.0, 0.0), |(capacity, used), worker| {
                (
                    capacity + worker.capacity_bytes() as f64,
                    used + worker.load.unwrap_or_default().used_bytes as f64,
                )
            });
            (membership.census(), capacity, used)
        };
        for (state, count) in [
            ("ready", census.ready),
            ("draining", census.draining),
            ("lost", census.lost),
        ] {
            let state = metrics::State { state: Word(state) };
            self.metrics.workers.get_or_create(&state).set(gauge(count));
        }
        self.metrics.synced_workers.set(gauge(census.synced));
        self.metrics.capacity_bytes.set(capacity);
        self.metrics.used_bytes.set(used);
        let usage = self.index.usage();
        self.metrics.index_objects.set(gauge(usage.objects));
        self.metrics.index_segments.set(gauge(usage.segments));
        self.metrics.index_bytes.set(gauge(usage.bytes));
        self.metrics.encode()
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn entry(worker: &Worker, now: Instant) -> NodeEntry {
    let registration = &worker.registration;
    let load = worker.load.unwrap_or_default();
    NodeEntry {
        node: registration.node.to_string(),
        uuid: registration.uuid.to_string(),
        epoch: registration.epoch.0,
        state: match worker.standing {
            Standing::Live { draining: false, .. } => WorkerStateName::Ready,
            Standing::Live { draining: true, .. } => WorkerStateName::Draining,
            Standing::Lost { .. } => WorkerStateName::Lost,
        },
        synced: worker.synced,
        lease_age_ms: now.saturating_duration_since(worker.heard).as_millis() as u64,
        registered_unix_ms: unix_ms(worker.registered.max(SystemTime::UNIX_EPOCH)),
        version: registration.version.clone(),
        data_address: registration.data_address.clone(),
        admin_address: registration.admin_address.clone(),
        zone: registration.zone.clone(),
        pod_ip: registration.pod_ip.clone(),
        host_ip: registration.host_ip.clone(),
        stores: registration.stores.names.keys().cloned().collect(),
        capacity_bytes: worker.capacity_bytes(),
        used_bytes: load.used_bytes,
        unlinked_held_bytes: load.unlinked_held_bytes,
        blocks: load.blocks,
        sessions: load.sessions,
        local_bytes: load.local_bytes,
        peer_bytes: load.peer_bytes,
        origin_bytes: load.origin_bytes,
        grants_enabled: load.grants_enabled,
    }
}

/// What one worker holds, as runs of adjacent blocks. Bits beyond the object's last block are left out.
fn runs(mut holdings: Vec<Holding>, blocks: u32) -> Vec<BlockRun> {
    holdings.sort_by_key(|held| held.segment);
    let mut runs: Vec<BlockRun> = Vec::new();
    for held in holdings {
        for place in 0..BLOCKS_PER_SEGMENT {
            let residency = held.residency.get(place);
            let Some(block) = held
                .segment
                .checked_mul(BLOCKS_PER_SEGMENT)
                .and_then(|first| first.checked_add(place))
                .filter(|block| *block < blocks && residency != Residency::None)
            else {
                continue;
            };
            match runs.last_mut() {
                Some(run) if run.first + run.count == block && run.residency == residency.into() => {
                    run.count += 1;
                }
                _ => runs.push(BlockRun {
                    first: block,
                    count: 1,
                    residency: residency.into(),
                }),
            }
        }
    }
    runs
}
