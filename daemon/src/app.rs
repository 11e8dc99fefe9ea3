//! The daemon put together: everything is bound and opened in [`App::build`], run by [`App::run`], drained at its end.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cachelet_protocol::block::PAGE_BYTES;
use cachelet_protocol::grpc;
use cachelet_protocol::ids::{FileId, SessionId};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin::{Admin, Facts};
use crate::config::{self, Config, Environment, Grants, Identity};
use crate::descriptor_budget::DescriptorBudget;
use crate::fill::{Filler, Peers};
use crate::metrics::{
    CacheLabels, CacheState, DiskLabels, Metrics, Outcome, ReadPath, Source, StoreLabels, StrikeLabels,
    SyncLabels, Trouble,
};
use crate::origin::{self, Store, Stores, TrafficStatus};
use crate::report::{BlockChange, Holders, Reporter};
use crate::serve::{Context, Limits, Loads, LocalSocket, Server, SessionTable, SocketError};
use crate::store::{self, BlockStore, DiskChange, DiskState, Event, GrantPolicy};
use crate::upkeep;

/// How often the main pool shows that it moves.
const PULSE_EVERY: Duration = Duration::from_secs(1);
/// A main pool that did not move for this long is stuck for good: every wait on it is shorter.
const PULSE_LOST_AFTER: Duration = Duration::from_secs(60);

/// Shortest secret accepted: shorter ones can be guessed.
const MIN_SECRET_BYTES: usize = 16;
const SECRET_REMEDY: &str =
    "put the cluster's secret there, at least 16 characters, the same on every worker";

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The cache directory.
    #[error("cache.directory: {0}")]
    Store(#[from] store::Error),
    /// A store.
    #[error(transparent)]
    Origin(#[from] origin::Error),
    /// The domain socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// An address that cannot be had.
    #[error("{key} = {address}: cannot listen: {source}; {}", remedy(.source))]
    Bind {
        /// The configuration key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The secret's file.
    #[error("remote.secret_file = {path}: {reason}")]
    Secret {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The locality service's URL.
    #[error("locality.service: {0}")]
    Service(#[from] tonic::transport::Error),
    /// The admin thread.
    #[error("cannot start the admin server: {0}")]
    Admin(io::Error),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop what listens there, or choose another port (0: any free one)",
        io::ErrorKind::PermissionDenied => "choose a port from 1024 up, or allow this one",
        io::ErrorKind::AddrNotAvailable => "choose an address of this machine, or 0.0.0.0 for all of them",
        _ => "choose another address",
    }
}

/// The addresses a daemon can be reached at.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Addresses {
    /// The domain socket.
    pub socket: PathBuf,
    /// Health, metrics, status.
    pub admin: SocketAddr,
    /// Peers and clients elsewhere; `None`: off.
    pub remote: Option<SocketAddr>,
    /// This process.
    pub pid: u32,
}

/// A daemon that is bound and open, and not yet serving.
#[derive(Debug)]
pub struct App {
    config: Config,
    context: Arc<Context>,
    facts: Arc<Status>,
    socket: LocalSocket,
    admin: TcpListener,
    remote: Option<TcpListener>,
    events: mpsc::UnboundedReceiver<Event>,
    reporter: Option<(Reporter, String)>,
}

impl App {
    /// Binds and opens everything. Must be called within a Tokio runtime.
    pub fn build(config: Config, environment: Environment<'_>) -> Result<Self, BuildError> {
        let identity = config.identity(environment)?;
        let admin = bind("admin.listen", config.admin.listen)?;
        let remote = config
            .remote
            .as_ref()
            .map(|remote| bind("remote.listen", remote.listen))
            .transpose()?;
        let secret = config
            .remote
            .as_ref()
            .map(|remote| read_secret(&remote.secret_file))
            .transpose()?;
        let (metrics, registry) = Metrics::new();
        let stores = Stores::build(&config.stores, metrics.clone())?;

        let budget = DescriptorBudget::of_process();
        let (event_sender, events) = mpsc::unbounded_channel();
        let store = BlockStore::open(store_config(&config, budget), move |event| {
            // Fails only when the daemon is gone.
            let _ = event_sender.send(event);
        })?;

        if let store::GrantStatus::Disabled { reason } = store.grants() {
            warn!(%reason, "no descriptors are granted: clients read inline, through the socket");
        }

        let peers = match (&config.locality, &config.remote, &secret) {
            (Some(locality), Some(remote), Some(secret)) => Some(Peers::new(
                Holders::new(&locality.service, metrics.clone())?,
                identity.uuid,
                identity.zone.clone(),
                secret.clone(),
                remote.peer_first_byte_timeout,
                metrics.clone(),
            )),
            _ => None,
        };
        let filler = Filler::new(store.clone(), peers, &config.fill, metrics.clone());
        let socket = LocalSocket::bind(&config.local.socket_dir, identity.uuid, config.local.socket_group)?;

        let limits = Limits {
            max_sessions: config.local.max_sessions,
            max_connections: budget.connections,
            max_unacknowledged: budget.in_flight,
            max_held_bytes: config.cache.quota.as_u64() / 100 * u64::from(config.local.max_held_percent),
            inline_bytes: config.local.inline_size.as_u64() as u32,
            idle_close: config.local.idle_close,
        };
        let context = Arc::new(Context {
            identity,
            stores,
            store,
            filler,
            metrics,
            sessions: SessionTable::default(),
            loads: Loads::default(),
            limits,
            service_address: config
                .locality
                .as_ref()
                .map(|locality| locality.http.clone())
                .unwrap_or_default(),
            secret,
            draining: AtomicBool::new(false),
        });
        let registration = registration(&config, &context, &admin, remote.as_ref());
        let facts = Arc::new(Status {
            context: Arc::clone(&context),
            registry,
            registration: registration.clone(),
            started: Instant::now(),
            serving: AtomicBool::new(false),
            directory: config.cache.directory.clone(),
            pulse: Mutex::new(Instant::now()),
        });
        let reporter = config.locality.as_ref().map(|locality| {
            let source = Arc::clone(&facts);
            (
                Reporter::new(registration, Arc::new(move || source.heartbeat())),
                locality.service.clone(),
            )
        });
        Ok(Self {
            config,
            context,
            facts,
            socket,
            admin,
            remote,
            events,
            reporter,
        })
    }

    /// Where the daemon can be reached.
    pub fn addresses(&self) -> io::Result<Addresses> {
        Ok(Addresses {
            socket: self.socket.path().to_owned(),
            admin: self.admin.local_addr()?,
            remote: self.remote.as_ref().map(TcpListener::local_addr).transpose()?,
            pid: std::process::id(),
        })
    }

    /// Serves until `shutdown`, then drains: requests end, the cache is closed cleanly.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        let Self {
            config,
            context,
            facts,
            mut socket,
            admin,
            remote,
            events,
            reporter,
        } = self;
        let _admin = Admin::start(admin, Arc::clone(&facts) as Arc<dyn Facts>)?;
        let background = CancellationToken::new();
        let tasks = tokio_util::task::TaskTracker::new();

        let (evicted_sender, evicted) = mpsc::unbounded_channel();
        let reporting = reporter.as_ref().map(|(reporter, _)| reporter.clone());
        tasks.spawn(distribute(
            events,
            (context.store.clone(), context.filler.clone()),
            reporting.clone(),
            context.metrics.clone(),
            evicted_sender,
            background.clone(),
        ));
        if let Some((reporter, service)) = reporter {
            tasks.spawn(reporter.run(service, background.clone()));
        }
        upkeep::begin(&tasks, &context, &config.cache, &background);
        tasks.spawn(pulse(Arc::clone(&facts), background.clone()));
        let recovering = context.store.clone();
        let recovery = tokio::task::spawn_blocking(
            move || info!(found = ?recovering.recover(), "the cache directory is accounted for"),
        );

        let server = Arc::new(Server::new(Arc::clone(&context)));
        let listener = socket.take_listener().expect("the listener is taken once");
        let local = tokio::net::UnixListener::from_std(listener)?;
        let remote = match remote {
            Some(listener) => {
                listener.set_nonblocking(true)?;
                Some(tokio::net::TcpListener::from_std(listener)?)
            }
            None => None,
        };
        let serving = Arc::clone(&server);
        tasks.spawn(async move { serving.serve_local(local).await });
        if let Some(remote) = remote {
            let serving = Arc::clone(&server);
            tasks.spawn(async move { serving.serve_remote(remote).await });
        }
        let serving = Arc::clone(&server);
        let dropping = tokio::spawn(async move { serving.send_drops(evicted).await });
        facts.serving.store(true, Ordering::Release);
        check_stores(&context.stores).await;

        shutdown.cancelled().await;
        info!("stopping: no new sessions; waiting for requests under way");
        context.draining.store(true, Ordering::Relaxed);
        if let Some(reporter) = &reporting {
            reporter.state_changed();
        }
        socket.remove();
        server.drain(config.admin.drain_timeout).await;
        context.filler.stop().await;
        context.loads.stop().await;
        if let Err(error) = recovery.await {
            warn!(%error, "the recovery scan did not end well");
        }
        background.cancel();
        tasks.close();
        tasks.wait().await;
        dropping.abort();
        let store = context.store.clone();
        match tokio::task::spawn_blocking(move || store.close_clean(config.admin.drain_timeout)).await {
            Ok(Ok(())) => info!("stopped; the cache is closed cleanly"),
            Ok(Err(error)) => {
                warn!(%error, "the cache could not be closed cleanly; it will be verified at the next start");
            }
            Err(error) => warn!(%error, "closing the cache failed; it will be verified at the next start"),
        }
        Ok(())
    }
}

fn store_config(config: &Config, budget: DescriptorBudget) -> store::Config {
    store::Config {
        directory: config.cache.directory.clone(),
        read_only_path: config.cache.read_only_path.clone(),
        grants: match config.cache.grants {
            Grants::Required => GrantPolicy::Required,
            Grants::Unprotected => GrantPolicy::Unprotected,
        },
        quota_bytes: config.cache.quota.as_u64(),
        min_free_percent: config.min_free_percent(),
        block_size: config
            .block_size()
            .expect("checked when the configuration was loaded"),
        max_open_files: config.cache.max_open_files.min(budget.files),
        slow_disk: config.cache.slow_disk,
        disk_retry: config.cache.disk_retry,
    }
}

/// Listens on an address of the configuration.
pub(crate) fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, BuildError> {
    TcpListener::bind(address).map_err(|source| BuildError::Bind { key, address, source })
}

fn read_secret(path: &std::path::Path) -> Result<String, BuildError> {
    let refused = |reason: String| BuildError::Secret {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| refused(format!("cannot read it: {error}; {SECRET_REMEDY}")))?;
    let secret = text.trim();
    if secret.len() < MIN_SECRET_BYTES {
        return Err(refused(format!(
            "the secret in it has fewer than {MIN_SECRET_BYTES} characters; {SECRET_REMEDY}"
        )));
    }
    Ok(secret.to_owned())
}

fn registration(
    config: &Config,
    context: &Context,
    admin: &TcpListener,
    remote: Option<&TcpListener>,
) -> grpc::Register {
    let identity = &context.identity;
    let reachable = |listener: &TcpListener| {
        listener
            .local_addr()
            .map(|address| {
                if address.ip().is_unspecified() && !identity.pod_ip.is_empty() {
                    format!("{}:{}", bracketed(&identity.pod_ip), address.port())
                } else {
                    address.to_string()
                }
            })
            .unwrap_or_default()
    };
    let advertised = config.remote.as_ref().and_then(|remote| remote.advertise.clone());
    grpc::Register {
        protocol_version: u32::from(cachelet_protocol::wire::VERSION),
        node: identity.node.to_string(),
        worker_uuid: identity.uuid.as_bytes().to_vec(),
        epoch: context.store.epoch().0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        data_address: advertised.or_else(|| remote.map(reachable)).unwrap_or_default(),
        admin_address: reachable(admin),
        zone: identity.zone.clone(),
        pod_ip: identity.pod_ip.clone(),
        host_ip: identity.host_ip.clone(),
        block_bytes: context.store.block_size().bytes(),
        capacity_bytes: config.cache.quota.as_u64(),
        stores: context
            .stores
            .iter()
            .map(|store| grpc::Store {
                name: store.name().to_owned(),
                scheme: store.scheme().to_string(),
                identity: store.identity().to_string(),
                buckets: store.buckets(),
            })
            .collect(),
    }
}

/// An IPv6 address needs brackets before a port.
fn bracketed(ip: &str) -> String {
    if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    }
}

/// Says early what reads would run into. No reason not to start: cached bytes are served while an origin is away.
async fn check_stores(stores: &Stores) {
    for store in stores.iter() {
        if let Err(error) = store.check().await {
            warn!(store = store.name(), %error, "the store cannot be read now; cached objects are served");
        }
    }
}

/// Tells the other parts what happened in the store.
async fn distribute(
    mut events: mpsc::UnboundedReceiver<Event>,
    (store, filler): (BlockStore, Filler),
    reporter: Option<Reporter>,
    metrics: Metrics,
    evicted: mpsc::UnboundedSender<(FileId, Vec<SessionId>)>,
    cancel: CancellationToken,
) {
    loop {
        let event = tokio::select! {
            () = cancel.cancelled() => return,
            event = events.recv() => event,
        };
        match event {
            None => return,
            Some(Event::BlockChanged { identity, found, .. }) => {
                if let Some(reporter) = &reporter {
                    // Events of one block may overtake each other: the store knows what holds now.
                    let residency = store
                        .peek(&identity)
                        .map(|block| block.residency())
                        .unwrap_or_default();
                    let object = identity.object();
                    let change = BlockChange {
                        block: identity.index(),
                        residency,
                        found,
                    };
                    reporter.block_changed(object.name(), object.generation(), change);
                }
            }
            Some(Event::Evicted {
                file_id, sessions, ..
            }) => {
                metrics.evictions.inc();
                if !sessions.is_empty() {
                    let _ = evicted.send((file_id, sessions));
                }
            }
            Some(Event::Corrupt { path, damage, .. }) => {
                metrics.quarantined_files.inc();
                warn!(path = %path.display(), %damage, "a damaged block file was set aside; its block is fetched again");
            }
            Some(Event::Recalled { file_id, sessions }) => {
                let _ = evicted.send((file_id, sessions));
            }
            Some(Event::Disk(DiskChange { from, to, reason })) => {
                filler.disk_changed();
                match to {
                    DiskState::Healthy => info!(%from, %to, %reason, "the disk of the cache is in use"),
                    DiskState::Probation => {
                        info!(%from, %to, %reason, "the disk of the cache is tried again");
                    }
                    DiskState::Suspect => warn!(%from, %to, %reason, "the disk of the cache is watched"),
                    DiskState::Offline => {
                        warn!(%from, %to, %reason, "the disk of the cache is out of use; reads go to the origin");
                    }
                }
            }
            Some(Event::Failed(error)) => {
                warn!(%error, "the cache directory failed; what was lost is fetched again");
            }
        }
    }
}

/// Shows that the main pool moves.
async fn pulse(facts: Arc<Status>, cancel: CancellationToken) {
    let mut beat = tokio::time::interval(PULSE_EVERY);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = beat.tick() => *facts.pulse.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now(),
        }
    }
}

/// What the admin routes and heartbeats tell.
#[derive(Debug)]
struct Status {
    context: Arc<Context>,
    registry: Arc<Registry>,
    registration: grpc::Register,
    started: Instant,
    serving: AtomicBool,
    directory: PathBuf,
    /// When the main pool moved last.
    pulse: Mutex<Instant>,
}

impl Status {
    fn heartbeat(&self) -> grpc::Heartbeat {
        let context = &self.context;
        let ledger = context.store.ledger();
        let state = if context.is_draining() {
            grpc::WorkerState::Draining
        } else {
            grpc::WorkerState::Ready
        };
        grpc::Heartbeat {
            state: state.into(),
            capacity_bytes: ledger.quota_bytes,
            used_bytes: ledger.committed_bytes + ledger.reserved_bytes,
            unlinked_held_bytes: ledger.unlinked_held_bytes,
            sessions: context.sessions.len() as u32,
            blocks: ledger.blocks,
            local_bytes: context.metrics.read_so_far(ReadPath::Local)
                + context.metrics.read_so_far(ReadPath::Inline),
            peer_bytes: context.metrics.filled_so_far(Source::Peer),
            origin_bytes: context.metrics.filled_so_far(Source::Origin),
            grants_enabled: !matches!(context.store.grants(), store::GrantStatus::Disabled { .. }),
        }
    }

    fn refresh_gauges(&self) {
        let (metrics, ledger) = (&self.context.metrics, self.context.store.ledger());
        for (state, bytes) in [
            (CacheState::Committed, ledger.committed_bytes),
            (CacheState::Reserved, ledger.reserved_bytes),
            (CacheState::UnlinkedHeld, ledger.unlinked_held_bytes),
            (CacheState::Quarantined, ledger.quarantined_bytes),
        ] {
            metrics
                .cache_bytes
                .get_or_create(&CacheLabels { state })
                .set(bytes);
        }
        metrics.blocks.set(ledger.blocks);
        metrics.dirty_bytes.set(ledger.dirty_bytes);
        for (counter, count) in [
            (&metrics.scrubbed_bytes, ledger.scrubbed_bytes),
            (&metrics.scrub_findings, ledger.scrub_findings),
        ] {
            counter.inner().store(count, Ordering::Relaxed);
        }
        let disk = self.context.store.disk();
        for state in DiskState::ALL {
            let labels = DiskLabels {
                state: state.as_str(),
            };
            let here = i64::from(state == disk.state);
            metrics.disk_state.get_or_create(&labels).set(here);
        }
        for (kind, count) in [("error", disk.errors), ("slow", disk.slow)] {
            let counter = metrics.disk_strikes.get_or_create(&StrikeLabels { kind });
            counter.inner().store(count, Ordering::Relaxed);
        }
        // The store counts them; what it says only grows.
        for (outcome, syncs) in [
            (Outcome::Complete, ledger.syncs),
            (Outcome::Failed, ledger.failed_syncs),
        ] {
            let counter = metrics.syncs.get_or_create(&SyncLabels { outcome });
            counter.inner().store(syncs, Ordering::Relaxed);
        }
        metrics
            .peers_left_out
            .set(self.context.filler.peers_left_out() as i64);
        metrics.sessions.set(self.context.sessions.len() as i64);
        for store in self.context.stores.iter() {
            let traffic = store.traffic();
            let labels = StoreLabels {
                store: store.name().to_owned(),
            };
            for (gauge, value) in [
                (&metrics.origin_left_out, i64::from(traffic.left_out.is_some())),
                (&metrics.origin_requests_in_flight, i64::from(traffic.in_flight)),
                (&metrics.origin_requests_waiting, traffic.waiting as i64),
                (&metrics.origin_concurrency_limit, i64::from(traffic.limit)),
            ] {
                gauge.get_or_create(&labels).set(value);
            }
        }
    }
}

fn status_of(store: &Store) -> serde_json::Value {
    let TrafficStatus {
        in_flight,
        waiting,
        demands_waiting,
        limit,
        left_out,
        late_after,
    } = store.traffic();
    json!({
        "name": store.name(),
        "scheme": store.scheme().to_string(),
        "identity": store.identity().as_str(),
        "buckets": store.buckets(),
        "state": if left_out.is_some() { "left_out" } else { "asked" },
        "trouble": left_out.map(Trouble::as_str),
        "requests_in_flight": in_flight,
        "requests_waiting": waiting,
        "demands_waiting": demands_waiting,
        "concurrency_limit": limit,
        "late_after_ms": late_after.map(|late| late.as_millis() as u64),
    })
}

impl Facts for Status {
    fn ailments(&self) -> Vec<String> {
        let still = self
            .pulse
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed();
        // A drain is bounded by itself, and its end stops the pulse.
        if still < PULSE_LOST_AFTER || self.context.is_draining() {
            return Vec::new();
        }
        vec![format!(
            "the daemon's main pool has not moved for {} s: restart it",
            still.as_secs()
        )]
    }

    fn notes(&self) -> Vec<String> {
        let grants = match self.context.store.grants() {
            store::GrantStatus::Disabled { reason } => {
                Some(format!("no descriptors are granted, reads come inline: {reason}"))
            }
            store::GrantStatus::Enabled | store::GrantStatus::EnabledUnprotected => None,
        };
        let disk = self.context.store.disk();
        let doubt = (disk.state != DiskState::Healthy).then(|| {
            let reason = disk.reason.unwrap_or_default();
            format!("the disk of the cache is {}: {reason}", disk.state)
        });
        grants.into_iter().chain(doubt).collect()
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.serving.load(Ordering::Acquire) {
            problems.push("the domain socket does not accept connections yet".to_owned());
        }
        if self.context.is_draining() {
            problems.push("the daemon is stopping".to_owned());
        }
        problems
    }

    fn metrics(&self) -> String {
        self.refresh_gauges();
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => format!("# encoding the metrics failed: {error}\n# EOF\n"),
        }
    }

    fn status(&self) -> serde_json::Value {
        let (context, ledger) = (&self.context, self.context.store.ledger());
        let disk = context.store.disk();
        let held = context.sessions.held();
        let Identity {
            node,
            uuid,
            pod_ip,
            host_ip,
            zone,
        } = &context.identity;
        let (grants, reason) = match context.store.grants() {
            store::GrantStatus::Enabled => ("enabled", None),
            store::GrantStatus::EnabledUnprotected => ("unprotected", None),
            store::GrantStatus::Disabled { reason } => ("disabled", Some(reason.clone())),
        };
        json!({
            "node": node.as_str(),
            "worker_uuid": uuid.to_string(),
            "epoch": context.store.epoch().0,
            "version": env!("CARGO_PKG_VERSION"),
            "state": if context.is_draining() { "draining" } else { "ready" },
            "uptime_seconds": self.started.elapsed().as_secs(),
            "pod_ip": pod_ip,
            "host_ip": host_ip,
            "zone": zone,
            "data_address": self.registration.data_address,
            "grants": {
                "status": grants,
                "reason": reason,
                "held_bytes": held.bytes,
                "unacknowledged": held.unacknowledged,
            },
            "cache": {
                "quota_bytes": ledger.quota_bytes,
                "committed_bytes": ledger.committed_bytes,
                "reserved_bytes": ledger.reserved_bytes,
                "unlinked_held_bytes": ledger.unlinked_held_bytes,
                "unlinked_files": ledger.unlinked_files,
                "quarantined_bytes": ledger.quarantined_bytes,
                "dirty_bytes": ledger.dirty_bytes,
                "scrub": {
                    "bytes": ledger.scrubbed_bytes,
                    "findings": ledger.scrub_findings,
                    "passes": ledger.scrub_passes,
                },
                "disks": [{
                    "directory": self.directory,
                    "state": disk.state.as_str(),
                    "seconds": disk.since.as_secs(),
                    "errors": disk.errors,
                    "slow": disk.slow,
                    "reason": disk.reason,
                }],
                "blocks": ledger.blocks,
                "block_bytes": context.store.block_size().bytes(),
                "page_bytes": PAGE_BYTES,
                "evictions": context.metrics.evictions.get(),
                "quarantined_files": context.metrics.quarantined_files.get(),
            },
            "read_bytes": {
                "local": context.metrics.read_so_far(ReadPath::Local),
                "inline": context.metrics.read_so_far(ReadPath::Inline),
                "remote": context.metrics.read_so_far(ReadPath::Remote),
                "peer": context.metrics.read_so_far(ReadPath::Peer),
                "pass_through": context.metrics.read_so_far(ReadPath::PassThrough),
            },
            "fill_bytes": {
                "peer": context.metrics.filled_so_far(Source::Peer),
                "origin": context.metrics.filled_so_far(Source::Origin),
            },
            "fetches_in_flight": context.filler.in_flight(),
            "peers_left_out": context.filler.peers_left_out(),
            "sessions": context.sessions.len(),
            "stores": context.stores.iter().map(|store| status_of(store)).collect::<Vec<_>>(),
        })
    }
}
