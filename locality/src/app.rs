//! The service put together: bound sockets, servers, the clockwork, and an orderly end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cachelet_protocol::grpc::locality_server::LocalityServer;
use tokio::net::TcpListener;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server as GrpcServer;
use tracing::{error, info, warn};

use crate::cluster::Cluster;
use crate::config::Config;
use crate::grpc::Reports;
use crate::http;

/// Longest gRPC message: a full report comes in parts.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// The index is swept at most this often.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// A service that is bound and not yet running.
#[derive(Debug)]
pub struct App {
    config: Config,
    cluster: Arc<Cluster>,
    http: TcpListener,
    grpc: TcpListener,
    addresses: Addresses,
}

/// Where the service listens, with the ports that port 0 came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The HTTP side.
    pub http: SocketAddr,
    /// The gRPC side.
    pub grpc: SocketAddr,
}

/// The service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An address cannot be bound.
    #[error("cannot listen on {address} (`{key}`): {source}; {}", remedy(.source))]
    Bind {
        /// The configuration key.
        key: &'static str,
        /// Its address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

fn remedy(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "stop what listens there, or choose another port (0: any free one)",
        std::io::ErrorKind::PermissionDenied => "choose a port from 1024 up, or allow this one",
        std::io::ErrorKind::AddrNotAvailable => {
            "choose an address of this machine, or 0.0.0.0 for all of them"
        }
        _ => "choose another address",
    }
}

impl App {
    /// Binds everything. Must be called within a Tokio runtime; the configuration is expected to be validated.
    pub async fn build(config: Config) -> Result<Self, BuildError> {
        let (http, http_address) = bind("http", config.http).await?;
        let (grpc, grpc_address) = bind("grpc", config.grpc).await?;
        Ok(Self {
            cluster: Arc::new(Cluster::new(&config)),
            config,
            http,
            grpc,
            addresses: Addresses {
                http: http_address,
                grpc: grpc_address,
            },
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Serves until `shutdown` resolves, then ends open requests and streams within the configured grace. Dropping the
    /// future ends everything at once.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let stop = CancellationToken::new();
        let _stop_if_dropped = stop.clone().drop_guard();
        let tasks = TaskTracker::new();
        let server = http::Server::new(Arc::clone(&self.cluster), &self.config);
        tasks.spawn(server.serve(self.http, tasks.clone(), stop.clone()));
        let reports = Reports::new(Arc::clone(&self.cluster), tasks.clone(), stop.clone());
        tasks.spawn(serve_grpc(
            reports,
            self.grpc,
            self.config.heartbeat,
            stop.clone(),
        ));
        tasks.spawn(clockwork(
            Arc::clone(&self.cluster),
            self.config.lease,
            tasks.clone(),
            stop.clone(),
        ));

        shutdown.await;
        info!(grace = ?self.config.shutdown_grace, "stopping: open requests are finished, workers are sent elsewhere");
        self.cluster.stop();
        stop.cancel();
        tasks.close();
        if tokio::time::timeout(self.config.shutdown_grace, tasks.wait())
            .await
            .is_err()
        {
            warn!(
                left = tasks.len(),
                "stopped with requests unfinished: the grace is over"
            );
        }
    }
}

async fn bind(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), BuildError> {
    let refused = |source| BuildError::Bind { key, address, source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    Ok((listener, bound))
}

async fn serve_grpc(reports: Reports, listener: TcpListener, heartbeat: Duration, stop: CancellationToken) {
    let service = LocalityServer::new(reports).max_decoding_message_size(MAX_MESSAGE_BYTES);
    // Pings find out about workers whose node is gone without a word.
    let served = GrpcServer::builder()
        .http2_keepalive_interval(Some(heartbeat.max(Duration::from_secs(1)) * 5))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(service)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled())
        .await;
    if let Err(error) = served {
        error!(%error, "the gRPC side has ended: workers cannot report to this replica");
    }
}

/// Ends leases in time and sweeps the index now and then.
async fn clockwork(cluster: Arc<Cluster>, lease: Duration, tasks: TaskTracker, stop: CancellationToken) {
    let period = (lease / 20).clamp(Duration::from_millis(10), Duration::from_millis(500));
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_sweep = Instant::now() + SWEEP_EVERY;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            now = ticks.tick() => {
                cluster.expire();
                if now >= next_sweep && cluster.needs_sweep() {
                    let cluster = Arc::clone(&cluster);
                    // Waited for: one sweep at a time. Leases end a little later meanwhile, which is what they may do.
                    let swept = tasks.spawn_blocking(move || cluster.sweep()).await;
                    if let Err(panicked) = swept {
                        error!(%panicked, "a sweep of the index failed; trying again later");
                    }
                    next_sweep = Instant::now() + SWEEP_EVERY;
                }
            }
        }
    }
}
