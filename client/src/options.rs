//! How a client is set up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};

/// Directory in which daemons put their sockets unless configured otherwise.
pub const DEFAULT_SOCKET_DIR: &str = "/var/run/cachelet";

/// Which daemon to talk to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The daemon of this node: whichever answers on a socket in this directory.
    Local {
        /// The directory that the daemon's socket is in.
        socket_dir: PathBuf,
    },
    /// A daemon of another node, over TCP. No descriptors cross it.
    Remote {
        /// Where it listens.
        address: SocketAddr,
        /// The cluster's shared secret.
        token: String,
    },
}

impl Default for Target {
    fn default() -> Self {
        Self::Local {
            socket_dir: DEFAULT_SOCKET_DIR.into(),
        }
    }
}

/// Who this process is, for the daemon's logs and metrics. Empty where it does not apply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Program and version.
    pub client: String,
    /// The application, such as Spark's application id.
    pub application: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's IP.
    pub pod_ip: String,
}

/// Everything that can be chosen about a client. [`Options::default`] suits an executor.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which daemon.
    pub target: Target,
    /// Who is calling.
    pub identity: Identity,
    /// Longest wait for a connection and its welcome.
    pub connect_timeout: Duration,
    /// Longest wait for the answer to a request; [`Client::set_request_timeout`](crate::Client::set_request_timeout)
    /// changes it.
    pub request_timeout: Duration,
    /// A daemon that says nothing for this long, while a request waits, is stuck: the session is given up. What it
    /// sends within that time, however late for its request, finds the session alive.
    pub max_silence: Duration,
    /// How often a request is tried on another connection after its own was lost.
    pub reconnect_attempts: u32,
    /// After a failed connection attempt, requests fail at once for this long; doubled at every further failure.
    pub reconnect_backoff: Duration,
    /// The longest that backoff becomes.
    pub max_reconnect_backoff: Duration,
    /// Most descriptors of block files held at once.
    pub max_descriptors: usize,
    /// How far readahead goes at most, in bytes; 0 turns it off. It begins small, and doubles as a reader goes on.
    pub readahead_bytes: u64,
    /// Check the CRC32C of every chunk read from a held descriptor, and let the daemon check what it sends inline.
    pub verify_reads: bool,
    /// Never ask for descriptors.
    pub inline_only: bool,
    /// An open without a generation is served from one that is open and at most this old. Zero: never.
    pub max_staleness: Duration,
    /// Objects that stay open, with their descriptors, after the last user closed them. The daemon's idle time ends it.
    pub keep_closed_objects: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            target: Target::default(),
            identity: Identity {
                client: concat!("cachelet-client/", env!("CARGO_PKG_VERSION")).into(),
                ..Identity::default()
            },
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(30),
            max_silence: Duration::from_secs(30),
            reconnect_attempts: 2,
            reconnect_backoff: Duration::from_millis(100),
            max_reconnect_backoff: Duration::from_secs(10),
            max_descriptors: default_max_descriptors(),
            readahead_bytes: 8 << 20,
            verify_reads: false,
            inline_only: false,
            max_staleness: Duration::ZERO,
            keep_closed_objects: 64,
        }
    }
}

/// A quarter of the process's descriptors, at most 1024: the rest is the application's.
fn default_max_descriptors() -> usize {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    usize::try_from(soft / 4).unwrap_or(1024).clamp(4, 1024)
}
