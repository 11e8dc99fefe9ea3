//! A reverse proxy in front of an S3 server that counts, slows down and breaks what goes through it.
//!
//! Requests are forwarded with their path, query and headers as they came (`Host` included), so signatures still verify.
//! The proxy runs on a thread of its own; dropping it closes every connection.

mod body;
mod forward;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Method;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::loopback::LoopbackServer;

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answered with this status by the proxy; the server never sees the request.
    Status(u16),
    /// Accepted, and never answered.
    Stall,
    /// The connection is closed after this many bytes of the body.
    CutBody {
        /// Bytes of the body that still arrive.
        after_bytes: u64,
    },
    /// The body stops after this many bytes, and the connection stays open.
    StallBody {
        /// Bytes of the body that still arrive.
        after_bytes: u64,
    },
    /// The answer names an etag that no object has.
    WrongEtag,
    /// The answer's `Content-Range` starts one byte later than what was asked for.
    WrongRange,
}

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedRequest {
    /// The method.
    pub method: Method,
    /// Path and query, as in the request line.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The `If-Match` header.
    pub if_match: Option<String>,
}

impl RecordedRequest {
    /// Whether it lists a bucket, or all buckets: its path names no object.
    pub fn lists(&self) -> bool {
        let path = self.path.split('?').next().unwrap_or_default();
        let names_no_object = path
            .trim_start_matches('/')
            .split_once('/')
            .is_none_or(|(_, key)| key.is_empty());
        self.method == Method::GET && names_no_object
    }
}

/// Requests by kind, and what they brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// GETs of objects.
    pub gets: u64,
    /// HEADs.
    pub heads: u64,
    /// GETs of listings.
    pub lists: u64,
    /// Everything else.
    pub others: u64,
    /// Bytes of objects sent to clients.
    pub data_bytes: u64,
}

impl Traffic {
    /// What has come since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            gets: self.gets - earlier.gets,
            heads: self.heads - earlier.heads,
            lists: self.lists - earlier.lists,
            others: self.others - earlier.others,
            data_bytes: self.data_bytes - earlier.data_bytes,
        }
    }
}

/// A proxy in front of one S3 server.
#[derive(Debug)]
pub struct FaultProxy {
    shared: Arc<Shared>,
    hold: watch::Sender<bool>,
    server: LoopbackServer,
}

impl FaultProxy {
    /// Starts a proxy on a free loopback port that forwards everything to `upstream`, each request on a connection of its
    /// own: a server may be stopped at any time.
    pub fn start(upstream: SocketAddr) -> Self {
        Self::start_with(upstream, 0)
    }

    /// The same, for measuring: connections to the server are used again, as a client without a proxy would, so that
    /// the proxy adds nothing but what it is told to.
    pub fn start_reusing_connections(upstream: SocketAddr) -> Self {
        Self::start_with(upstream, usize::MAX)
    }

    fn start_with(upstream: SocketAddr, idle_connections: usize) -> Self {
        let (hold, held) = watch::channel(false);
        let shared = Arc::new(Shared {
            upstream,
            plan: Mutex::default(),
            requests: Mutex::default(),
            bytes_sent: AtomicU64::new(0),
            data_bytes: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
            held,
        });
        let for_server = Arc::clone(&shared);
        let server = LoopbackServer::start("fault-proxy", move |listener| {
            forward::serve(listener, for_server, idle_connections)
        });
        Self { shared, hold, server }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Where it listens, as an endpoint URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Delays the first byte of every answer from now on.
    pub fn set_first_byte_delay(&self, delay: Duration) {
        self.shared.plan().first_byte_delay = delay;
    }

    /// Limits what each connection sends to the client from now on, in bytes a second; `None` lifts the limit.
    pub fn set_bandwidth(&self, bytes_per_second: Option<u64>) {
        self.shared.plan().bandwidth = bytes_per_second;
    }

    /// Breaks the next `count` requests, after those for which faults are planned already.
    pub fn inject(&self, count: usize, fault: Fault) {
        self.shared
            .plan()
            .faults
            .extend(std::iter::repeat_n(fault, count));
    }

    /// Forgets the faults that no request has met yet, and says how many there were.
    pub fn clear_faults(&self) -> usize {
        std::mem::take(&mut self.shared.plan().faults).len()
    }

    /// Keeps every request that arrives from now on waiting (it is recorded, not forwarded) until the guard is dropped.
    pub fn hold(&self) -> Hold<'_> {
        self.hold.send_replace(true);
        Hold { proxy: self }
    }

    /// The requests that have arrived since the start or the last [`FaultProxy::reset`], in order.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.shared.requests().clone()
    }

    /// How many requests with this method have arrived.
    pub fn count(&self, method: &Method) -> usize {
        self.shared
            .requests()
            .iter()
            .filter(|request| request.method == *method)
            .count()
    }

    /// What has gone through since the start or the last [`FaultProxy::reset`].
    pub fn traffic(&self) -> Traffic {
        let mut traffic = Traffic {
            data_bytes: self.shared.data_bytes.load(Ordering::Acquire),
            ..Traffic::default()
        };
        for request in self.shared.requests().iter() {
            match request.method {
                Method::GET if request.lists() => traffic.lists += 1,
                Method::GET => traffic.gets += 1,
                Method::HEAD => traffic.heads += 1,
                _ => traffic.others += 1,
            }
        }
        traffic
    }

    /// Body bytes sent to clients.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.bytes_sent.load(Ordering::Acquire)
    }

    /// The most requests that were under way at the same time: arrived, and their answers not complete.
    pub fn most_under_way(&self) -> usize {
        self.shared.most_under_way.load(Ordering::Acquire)
    }

    /// Sets the counts to zero and empties the record.
    pub fn reset(&self) {
        self.shared.requests().clear();
        self.shared.bytes_sent.store(0, Ordering::Release);
        self.shared.data_bytes.store(0, Ordering::Release);
        self.shared.most_under_way.store(0, Ordering::Release);
    }
}

/// While it lives, requests wait at the proxy.
#[derive(Debug)]
pub struct Hold<'a> {
    proxy: &'a FaultProxy,
}

impl Hold<'_> {
    /// How many requests wait now.
    pub fn waiting(&self) -> usize {
        self.proxy.shared.waiting.load(Ordering::Acquire)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.proxy.hold.send_replace(false);
    }
}

/// What the test's thread and the proxy's thread share.
#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    plan: Mutex<Plan>,
    requests: Mutex<Vec<RecordedRequest>>,
    bytes_sent: AtomicU64,
    /// Of these, the bytes of objects.
    data_bytes: AtomicU64,
    waiting: AtomicUsize,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
    held: watch::Receiver<bool>,
}

/// What to do with the requests to come.
#[derive(Debug, Default)]
struct Plan {
    first_byte_delay: Duration,
    bandwidth: Option<u64>,
    faults: VecDeque<Fault>,
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn requests(&self) -> MutexGuard<'_, Vec<RecordedRequest>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one request as under way while it lives.
#[derive(Debug)]
struct UnderWay(Arc<Shared>);

impl UnderWay {
    fn begin(shared: &Arc<Shared>) -> Self {
        let now = shared.under_way.fetch_add(1, Ordering::AcqRel) + 1;
        shared.most_under_way.fetch_max(now, Ordering::AcqRel);
        Self(Arc::clone(shared))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}
