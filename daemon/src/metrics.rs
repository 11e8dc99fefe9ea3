//! Every metric the daemon has, in one place. Base units; no key, path or bucket is ever a label.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use cachelet_protocol::wire::{BypassReason, Code};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The daemon's metrics. Clones share the values.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Bytes that readers got, by the way they took.
    pub read_bytes: Family<ReadLabels, Counter>,
    /// Bytes brought in, by where they came from.
    pub fill_bytes: Family<FillLabels, Counter>,
    /// Fetches of page ranges, by where they were asked for and how that ended.
    pub fetches: Family<FetchLabels, Counter>,
    /// Holders that a fetch left out, by what is wrong with them.
    pub peer_skips: Family<PeerSkipLabels, Counter>,
    /// Fetches that asked no peer, because the locality service was not asked who holds what.
    pub service_skips: Counter,
    /// Peers that are left out now.
    pub peers_left_out: Gauge,
    /// Requests sent to stores, by store.
    pub origin_requests: Family<StoreLabels, Counter>,
    /// Of these, those sent again because one failed.
    pub origin_retries: Family<StoreLabels, Counter>,
    /// Failed requests that were not sent again because the budget was used up.
    pub origin_retries_refused: Family<StoreLabels, Counter>,
    /// Of the requests sent, those sent because another one was late.
    pub origin_hedges: Family<StoreLabels, Counter>,
    /// Of these, those whose reply was used.
    pub origin_hedges_won: Family<StoreLabels, Counter>,
    /// Requests that were not sent because their store was left out.
    pub origin_skips: Family<StoreLabels, Counter>,
    /// Stores that are left out now.
    pub origin_left_out: Family<StoreLabels, Gauge>,
    /// Requests under way now.
    pub origin_requests_in_flight: Family<StoreLabels, Gauge>,
    /// Requests that wait for their turn now.
    pub origin_requests_waiting: Family<StoreLabels, Gauge>,
    /// Requests that may be under way now.
    pub origin_concurrency_limit: Family<StoreLabels, Gauge>,
    /// Requests, by kind.
    pub requests: Family<RequestLabels, Counter>,
    /// Answers that sent the caller to the origin, by reason.
    pub bypasses: Family<BypassLabels, Counter>,
    /// Requests that failed, by code.
    pub failures: Family<FailureLabels, Counter>,
    /// Descriptors granted.
    pub grants: Counter,
    /// Sessions open now.
    pub sessions: Gauge,
    /// Sessions ended for breaking the protocol or a deadline.
    pub broken_sessions: Counter,
    /// Blocks evicted.
    pub evictions: Counter,
    /// Block files quarantined because a checksum or their identity was wrong.
    pub quarantined_files: Counter,
    /// Bytes of the cache directory, by state.
    pub cache_bytes: Family<CacheLabels, Gauge<u64, AtomicU64>>,
    /// Blocks cached now.
    pub blocks: Gauge<u64, AtomicU64>,
    /// Block files brought to disk, by how that ended.
    pub syncs: Family<SyncLabels, Counter>,
    /// Bytes written that may not be on disk yet.
    pub dirty_bytes: Gauge<u64, AtomicU64>,
    /// 1 for the state that the cache's disk is in, 0 for the others.
    pub disk_state: Family<DiskLabels, Gauge>,
    /// Operations that the cache's disk failed, or was too slow for.
    pub disk_strikes: Family<StrikeLabels, Counter>,
    /// Bytes that the scrubber read.
    pub scrubbed_bytes: Counter,
    /// Damaged block files that the scrubber found.
    pub scrub_findings: Counter,
}

macro_rules! label_values {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_meta])* $variant),* }

        impl $name {
            /// As metrics and statuses spell it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
                EncodeLabelValue::encode(&self.as_str(), encoder)
            }
        }
    };
}

label_values! {
    /// The way bytes took to a reader.
    ReadPath {
        /// Read by the client from a granted descriptor (as the client reports it).
        Local = "local",
        /// Sent over the domain socket.
        Inline = "inline",
        /// Sent over TCP to a client.
        Remote = "remote",
        /// Sent over TCP to another worker.
        Peer = "peer",
        /// Sent to a reader without being cached, because the cache had no room.
        PassThrough = "pass_through",
    }
}

label_values! {
    /// Where missing pages come from.
    Source {
        /// Another worker.
        Peer = "peer",
        /// The store.
        Origin = "origin",
    }
}

label_values! {
    /// How a fetch, or an fdatasync, ended.
    Outcome {
        /// All pages are present, or on disk.
        Complete = "complete",
        /// It failed. Another source or try of a fetch may follow; an fdatasync is never tried again.
        Failed = "failed",
    }
}

label_values! {
    /// Why somebody is not asked.
    Trouble {
        /// No answer in time.
        Silent = "silent",
        /// Connections broke, again and again.
        Broken = "broken",
    }
}

label_values! {
    /// What bytes of the cache directory are.
    CacheState {
        /// In block files that can be found.
        Committed = "committed",
        /// Promised to fills under way.
        Reserved = "reserved",
        /// In evicted files that somebody still holds.
        UnlinkedHeld = "unlinked_held",
        /// In quarantined files.
        Quarantined = "quarantined",
    }
}

/// Label of [`Metrics::read_bytes`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReadLabels {
    /// The way the bytes took.
    pub path: ReadPath,
}

/// Label of [`Metrics::fill_bytes`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FillLabels {
    /// Where the bytes came from.
    pub source: Source,
}

/// Labels of [`Metrics::fetches`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FetchLabels {
    /// Where the pages were asked for.
    pub source: Source,
    /// How that ended.
    pub outcome: Outcome,
}

/// Label of [`Metrics::peer_skips`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PeerSkipLabels {
    /// What is wrong with the peer.
    pub reason: Trouble,
}

/// Label of what is counted for each store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StoreLabels {
    /// The store's name in the configuration.
    pub store: String,
}

/// Label of [`Metrics::requests`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The request's kind.
    pub request: &'static str,
}

/// Label of [`Metrics::bypasses`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BypassLabels {
    /// The reason.
    pub reason: &'static str,
}

/// Label of [`Metrics::failures`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FailureLabels {
    /// The code.
    pub code: &'static str,
}

/// Label of [`Metrics::cache_bytes`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CacheLabels {
    /// What the bytes are.
    pub state: CacheState,
}

/// Label of [`Metrics::disk_state`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DiskLabels {
    /// The state.
    pub state: &'static str,
}

/// Label of [`Metrics::disk_strikes`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StrikeLabels {
    /// `error` or `slow`.
    pub kind: &'static str,
}

/// Label of [`Metrics::syncs`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SyncLabels {
    /// How it ended.
    pub outcome: Outcome,
}

impl Metrics {
    /// The metrics, and the registry that encodes them.
    pub fn new() -> (Self, Arc<Registry>) {
        let metrics = Self::default();
        let mut registry = Registry::with_prefix("cachelet");
        registry.register(
            "read_bytes",
            "Bytes that readers got, by the way they took",
            metrics.read_bytes.clone(),
        );
        registry.register(
            "fill_bytes",
            "Bytes brought in, by source",
            metrics.fill_bytes.clone(),
        );
        registry.register(
            "fetches",
            "Fetches of page ranges, by source and outcome",
            metrics.fetches.clone(),
        );
        registry.register(
            "peer_skips",
            "Peers that a fetch left out, by what is wrong with them",
            metrics.peer_skips.clone(),
        );
        registry.register(
            "service_skips",
            "Fetches that did not ask the locality service for holders, because it does not answer",
            metrics.service_skips.clone(),
        );
        registry.register(
            "peers_left_out",
            "Peers left out now, because they do not answer",
            metrics.peers_left_out.clone(),
        );
        metrics.register_origins(&mut registry);
        registry.register("requests", "Requests, by kind", metrics.requests.clone());
        registry.register(
            "bypasses",
            "Answers that sent the caller to the origin, by reason",
            metrics.bypasses.clone(),
        );
        registry.register(
            "failures",
            "Requests that failed, by code",
            metrics.failures.clone(),
        );
        registry.register("grants", "Descriptors granted", metrics.grants.clone());
        registry.register("sessions", "Sessions open now", metrics.sessions.clone());
        registry.register(
            "broken_sessions",
            "Sessions ended for a protocol error or a deadline",
            metrics.broken_sessions.clone(),
        );
        registry.register("evictions", "Blocks evicted", metrics.evictions.clone());
        registry.register(
            "quarantined_files",
            "Block files found corrupt and set aside",
            metrics.quarantined_files.clone(),
        );
        registry.register(
            "cache_bytes",
            "Bytes of the cache directory, by state",
            metrics.cache_bytes.clone(),
        );
        registry.register("blocks", "Blocks cached now", metrics.blocks.clone());
        registry.register(
            "syncs",
            "Block files brought to disk, by outcome",
            metrics.syncs.clone(),
        );
        registry.register(
            "dirty_bytes",
            "Bytes written that may not be on disk yet",
            metrics.dirty_bytes.clone(),
        );
        registry.register(
            "disk_state",
            "1 for the state that the cache's disk is in",
            metrics.disk_state.clone(),
        );
        registry.register(
            "disk_strikes",
            "Operations that the cache's disk failed, or was too slow for",
            metrics.disk_strikes.clone(),
        );
        registry.register(
            "scrubbed_bytes",
            "Bytes that the scrubber read",
            metrics.scrubbed_bytes.clone(),
        );
        registry.register(
            "scrub_findings",
            "Damaged block files that the scrubber found",
            metrics.scrub_findings.clone(),
        );
        (metrics, Arc::new(registry))
    }

    fn register_origins(&self, registry: &mut Registry) {
        registry.register(
            "origin_requests",
            "Requests sent to stores, retries and hedges included",
            self.origin_requests.clone(),
        );
        registry.register(
            "origin_retries",
            "Requests sent again because one failed",
            self.origin_retries.clone(),
        );
        registry.register(
            "origin_retries_refused",
            "Failed requests not sent again because the retry budget was used up",
            self.origin_retries_refused.clone(),
        );
        registry.register(
            "origin_hedges",
            "Requests sent a second time because the reply was late",
            self.origin_hedges.clone(),
        );
        registry.register(
            "origin_hedges_won",
            "Second requests whose reply was used",
            self.origin_hedges_won.clone(),
        );
        registry.register(
            "origin_skips",
            "Requests not sent because the store was left out",
            self.origin_skips.clone(),
        );
        registry.register(
            "origin_left_out",
            "Whether the store is left out now, because it fails every request",
            self.origin_left_out.clone(),
        );
        registry.register(
            "origin_requests_in_flight",
            "Requests to the store under way now",
            self.origin_requests_in_flight.clone(),
        );
        registry.register(
            "origin_requests_waiting",
            "Requests to the store that wait for their turn now",
            self.origin_requests_waiting.clone(),
        );
        registry.register(
            "origin_concurrency_limit",
            "Requests to the store that may be under way now",
            self.origin_concurrency_limit.clone(),
        );
    }

    /// Counts bytes that a reader got.
    pub fn count_read(&self, path: ReadPath, bytes: u64) {
        self.read_bytes.get_or_create(&ReadLabels { path }).inc_by(bytes);
    }

    /// Counts bytes brought in.
    pub fn count_fill(&self, source: Source, bytes: u64) {
        self.fill_bytes
            .get_or_create(&FillLabels { source })
            .inc_by(bytes);
    }

    /// Counts a fetch.
    pub fn count_fetch(&self, source: Source, outcome: Outcome) {
        self.fetches.get_or_create(&FetchLabels { source, outcome }).inc();
    }

    /// Counts a peer that a fetch left out.
    pub fn count_peer_skip(&self, reason: Trouble) {
        self.peer_skips.get_or_create(&PeerSkipLabels { reason }).inc();
    }

    /// Counts a request.
    pub fn count_request(&self, request: &'static str) {
        self.requests.get_or_create(&RequestLabels { request }).inc();
    }

    /// Counts a caller sent to the origin.
    pub fn count_bypass(&self, reason: BypassReason) {
        self.bypasses
            .get_or_create(&BypassLabels {
                reason: reason.as_str(),
            })
            .inc();
    }

    /// Counts a failed request.
    pub fn count_failure(&self, code: Code) {
        self.failures
            .get_or_create(&FailureLabels { code: code.as_str() })
            .inc();
    }

    /// Bytes readers got so far by one way.
    pub fn read_so_far(&self, path: ReadPath) -> u64 {
        self.read_bytes.get_or_create(&ReadLabels { path }).get()
    }

    /// Bytes brought in so far from one source.
    pub fn filled_so_far(&self, source: Source) -> u64 {
        self.fill_bytes.get_or_create(&FillLabels { source }).get()
    }
}
