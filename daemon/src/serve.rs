//! Answering clients and peers.
//!
//! * [`socket`]: the UUID-named domain socket.
//! * [`session`]: who is connected, what they opened and hold.
//! * [`control`]: a session's control connection: `Open`, `Fill`, grants.
//! * [`load`]: fills that nobody reads yet.
//! * [`free`]: forgetting what is cached.
//! * [`data`]: inline bytes, for a session's data connections and for peers.
//! * [`refusal`]: how failures of the parts become `Bypass` and `Failed`.

mod control;
mod data;
mod free;
mod load;
mod refusal;
mod session;
mod socket;
mod welcome;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cachelet_protocol::ids::{BucketName, FileId, Scheme, SessionId};
use cachelet_protocol::wire::{BypassReason, Code, DropFiles, Hello, Message, Role, StoreRef, encode};
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::config::Identity;
use crate::connection::{FrameReader, FrameWriter, Stream};
use crate::fill::Filler;
use crate::metrics::Metrics;
use crate::origin::{Store, Stores};
use crate::store::BlockStore;

pub use load::Loads;
pub use session::SessionTable;
pub use socket::{LocalSocket, SocketError, Swept, remove_stale};

use refusal::Refusal;

/// A connection says who it is within this time, or is closed.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// Pause of an accept loop that has no descriptor left, so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What requests are answered with.
#[derive(Debug)]
pub struct Context {
    /// Who this worker is.
    pub identity: Identity,
    /// The configured stores.
    pub stores: Stores,
    /// The cached blocks.
    pub store: BlockStore,
    /// Brings missing pages in.
    pub filler: Filler,
    /// Counts.
    pub metrics: Metrics,
    /// Who is connected.
    pub sessions: SessionTable,
    /// The turns of fills that nobody reads yet.
    pub loads: Loads,
    /// What sessions are told and held to.
    pub limits: Limits,
    /// `host:port` of the locality service's HTTP side; empty: none.
    pub service_address: String,
    /// What TCP callers must present; `None`: the TCP side is off.
    pub secret: Option<String>,
    /// Set once the daemon is told to stop.
    pub draining: AtomicBool,
}

/// Limits of sessions.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most sessions at a time.
    pub max_sessions: usize,
    /// Most connections at a time, whatever the sessions.
    pub max_connections: usize,
    /// Most granted descriptors on their way, all sessions together.
    pub max_unacknowledged: u64,
    /// Most bytes of granted files a session may hold.
    pub max_held_bytes: u64,
    /// Objects up to this size come with `Opened`.
    pub inline_bytes: u32,
    /// Clients close descriptors that were idle for this long.
    pub idle_close: Duration,
}

/// Most data connections of a session. More would not be faster, and each costs a descriptor and up to 2 MiB of the kernel's
/// memory.
pub(crate) const MAX_DATA_CONNECTIONS: u8 = 4;

/// Most grants of a session that may be on their way: descriptors in flight are limited by the kernel for the whole
/// user, and one reader that never reads must not use them up.
pub(crate) const MAX_UNACKNOWLEDGED: u16 = 8;

impl Context {
    /// Whether the daemon is stopping.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The store of a bucket, if it is the one that the caller is configured for.
    fn find_store(
        &self,
        scheme: Scheme,
        bucket: &BucketName,
        asked: &StoreRef,
    ) -> Result<Arc<Store>, Refusal> {
        let unknown = |detail| Refusal::bypass(BypassReason::UnknownStore, detail);
        let store = self.stores.find(scheme, bucket).ok_or_else(|| {
            unknown(format!(
                "no store is configured for {scheme}://{bucket} on this node"
            ))
        })?;
        match &asked.fingerprint {
            Some(fingerprint) if !store.fingerprint_matches(fingerprint, bucket) => Err(unknown(format!(
                "the caller's store for {scheme}://{bucket} is not this node's ({})",
                store.name()
            ))),
            _ => Ok(Arc::clone(store)),
        }
    }
}

/// Serves clients and peers until told to stop.
#[derive(Debug)]
pub struct Server {
    context: Arc<Context>,
    connections: TaskTracker,
    /// One a connection, whatever it is for: strangers, too, use up no more than these.
    slots: Arc<Semaphore>,
    /// No new connections.
    closing: CancellationToken,
    /// Connections end.
    ending: CancellationToken,
}

impl Server {
    /// Serves with `context`.
    pub fn new(context: Arc<Context>) -> Self {
        let (closing, ending) = (CancellationToken::new(), CancellationToken::new());
        let most = context.limits.max_sessions * (1 + usize::from(MAX_DATA_CONNECTIONS));
        let most = most.min(context.limits.max_connections);
        Self {
            context,
            slots: Arc::new(Semaphore::new(most)),
            connections: TaskTracker::new(),
            closing,
            ending,
        }
    }

    /// Accepts clients of this node.
    pub async fn serve_local(&self, listener: UnixListener) {
        loop {
            let accepted = tokio::select! {
                () = self.closing.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => self.spawn(Stream::Unix(stream)),
                Err(error) => pause_after(&error, "the domain socket").await,
            }
        }
    }

    /// Accepts peers, and clients elsewhere.
    pub async fn serve_remote(&self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.closing.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        debug!(%error, "cannot set TCP_NODELAY; replies may be slow");
                    }
                    self.spawn(Stream::Tcp(stream));
                }
                Err(error) => pause_after(&error, "the TCP side").await,
            }
        }
    }

    /// Tells sessions which of the files they hold were evicted.
    pub async fn send_drops(&self, mut evicted: mpsc::UnboundedReceiver<(FileId, Vec<SessionId>)>) {
        while let Some((file, sessions)) = evicted.recv().await {
            for session in sessions {
                if let Some(session) = self.context.sessions.get(session) {
                    let frame = encode(&DropFiles { files: vec![file] }, 0, 0);
                    // In a task of its own: a session that does not read must not hold up the others'.
                    self.connections.spawn(async move {
                        let _ = session.writer.send(&frame).await;
                    });
                }
            }
        }
    }

    /// Stops: no new connections; requests under way end, at most for `patience`; then connections are closed.
    pub async fn drain(&self, patience: Duration) {
        self.context.draining.store(true, Ordering::Relaxed);
        self.closing.cancel();
        let idle = self.context.sessions.wait_until_idle();
        if timeout(patience, idle).await.is_err() {
            warn!(
                seconds = patience.as_secs(),
                "requests are still under way after the drain time; closing them"
            );
        }
        self.ending.cancel();
        self.connections.close();
        if timeout(patience, self.connections.wait()).await.is_err() {
            warn!("connections did not close in time; leaving them");
        }
    }

    fn spawn(&self, stream: Stream) {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            return broken(
                &self.context,
                "there are too many connections (local.max_sessions, and the process's limit of descriptors)",
            );
        };
        let (context, ending) = (Arc::clone(&self.context), self.ending.clone());
        self.connections.spawn(async move {
            let _slot = slot;
            let stream = Arc::new(stream);
            let mut reader = FrameReader::new(Arc::clone(&stream));
            let writer = Arc::new(FrameWriter::new(stream));
            tokio::select! {
                () = ending.cancelled() => {}
                () = converse(&context, &mut reader, writer) => {}
            }
        });
    }
}

async fn pause_after(error: &std::io::Error, where_: &str) {
    warn!(%error, "cannot accept a connection on {where_}; going on");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// One connection from `Hello` to its end.
async fn converse(context: &Arc<Context>, reader: &mut FrameReader, writer: Arc<FrameWriter>) {
    let (request, hello) = match timeout(HELLO_DEADLINE, reader.next()).await {
        Ok(Ok(Some((header, payload)))) => {
            match header
                .known_kind()
                .and_then(|kind| Message::decode(kind, &payload))
            {
                Some(Ok(Message::Hello(hello))) => (header.request, hello),
                _ => return broken(context, "the first frame is no Hello"),
            }
        }
        // Probes connect and go.
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return broken(context, &error.to_string()),
        Err(_) => return broken(context, "no Hello in time"),
    };
    if let Err(refusal) = admit(context, &writer, &hello) {
        debug!(client = hello.client, %refusal, "refused a connection");
        let _ = writer.send(&refusal.frame(context, request)).await;
        return;
    }
    let ended = match hello.role {
        Role::Control => control::run(context, reader, writer, request, hello).await,
        Role::Data | Role::Peer => data::run(context, reader, writer, request, &hello).await,
    };
    if let Err(problem) = ended {
        broken(context, &problem.to_string());
    }
}

fn admit(context: &Context, writer: &FrameWriter, hello: &Hello) -> Result<(), Refusal> {
    let versions = cachelet_protocol::wire::VERSION..=cachelet_protocol::wire::VERSION;
    if cachelet_protocol::wire::negotiate(versions, hello.min_version..=hello.max_version).is_none() {
        let message = format!(
            "this daemon speaks version {} of the protocol, the caller {} to {}; update the older side",
            cachelet_protocol::wire::VERSION,
            hello.min_version,
            hello.max_version
        );
        return Err(Refusal::failed(Code::Unsupported, message));
    }
    if !writer.stream().is_local() {
        let secret = context.secret.as_deref().unwrap_or_default();
        let proven: bool = secret.as_bytes().ct_eq(hello.token.as_bytes()).into();
        if secret.is_empty() || !proven {
            let message = "the caller did not present this cluster's secret (remote.secret_file)".to_owned();
            return Err(Refusal::failed(Code::Unauthenticated, message));
        }
    } else if hello.role == Role::Peer {
        return Err(Refusal::failed(
            Code::InvalidRequest,
            "peers call over TCP".to_owned(),
        ));
    }
    Ok(())
}

fn broken(context: &Context, problem: &str) {
    context.metrics.broken_sessions.inc();
    debug!(%problem, "closed a connection");
}
