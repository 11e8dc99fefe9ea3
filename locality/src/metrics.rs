//! Every metric of the service, in one table. Names begin with `cachelet_locality_`; no key, path or node is a label.

use std::fmt::Write;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What the names of all metrics begin with.
pub const PREFIX: &str = "cachelet_locality";

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    /// The name as it is scraped, prefix and suffix included.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Label names, separated by commas.
    pub labels: &'static str,
    /// What it counts, and its unit.
    pub help: &'static str,
}

/// A label value that comes from a fixed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Word(pub(crate) &'static str);

impl EncodeLabelValue for Word {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.0)
    }
}

macro_rules! labels {
    ($($name:ident { $($label:ident: $type:ty),* })*) => {
        $(
            #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
            pub(crate) struct $name {
                $(pub(crate) $label: $type),*
            }
        )*
    };
}

labels! {
    State { state: Word }
    Kind { kind: Word }
    Outcome { outcome: Word }
    ResyncReason { reason: Word }
    Answered { route: Word, status: u16 }
    Route { route: Word }
}

type Seconds = Family<Route, Histogram, fn() -> Histogram>;

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
}

macro_rules! metrics {
    ($($field:ident: $type:ty = $kind:literal $name:literal [$labels:literal] $help:literal, $new:expr;)*) => {
        /// The service's metrics and the registry that encodes them.
        #[derive(Debug)]
        pub(crate) struct Metrics {
            registry: Registry,
            $(pub(crate) $field: $type,)*
        }

        /// The table, in the order of `/metrics`.
        pub const TABLE: &[Described] = &[
            $(Described { name: concat!("cachelet_locality_", $name), kind: $kind, labels: $labels, help: $help },)*
        ];

        impl Metrics {
            pub(crate) fn new() -> Self {
                let mut registry = Registry::with_prefix(PREFIX);
                $(
                    let $field: $type = $new;
                    // The encoder adds a counter's `_total` itself, and a full stop to every help text.
                    registry.register($name.trim_end_matches("_total"), $help.trim_end_matches('.'), $field.clone());
                )*
                Self { registry, $($field,)* }
            }
        }
    };
}

metrics! {
    workers: Family<State, Gauge> = "gauge" "workers" ["state"]
        "Workers by state: ready, draining, lost (lease over, rank kept).", Family::default();
    synced_workers: Gauge = "gauge" "synced_workers" [""]
        "Workers whose full report is complete.", Gauge::default();
    capacity_bytes: Gauge<f64, AtomicU64> = "gauge" "capacity_bytes" [""]
        "Cache capacity of all live workers.", Gauge::default();
    used_bytes: Gauge<f64, AtomicU64> = "gauge" "used_bytes" [""]
        "Bytes that all live workers cache.", Gauge::default();
    registrations: Family<Outcome, Counter> = "counter" "registrations_total" ["outcome"]
        "Registrations by outcome: new, reconnected, replaced (a newer epoch), refused.", Family::default();
    leases_expired: Counter = "counter" "leases_expired_total" [""]
        "Workers that said nothing for a lease.", Counter::default();
    report_streams: Gauge = "gauge" "report_streams" [""]
        "Open report streams.", Gauge::default();
    report_messages: Family<Kind, Counter> = "counter" "report_messages_total" ["kind"]
        "Messages of workers by kind: register, full, delta, heartbeat.", Family::default();
    resyncs: Family<ResyncReason, Counter> = "counter" "resyncs_total" ["reason"]
        "Full reports asked for, by reason: gap, incomplete, missing.", Family::default();
    segments: Family<Outcome, Counter> = "counter" "segments_total" ["outcome"]
        "Reported segments by outcome: applied, forgotten, outdated (a newer generation is known), invalid.", Family::default();
    index_objects: Gauge = "gauge" "index_objects" [""]
        "Objects in the index.", Gauge::default();
    index_segments: Gauge = "gauge" "index_segments" [""]
        "Entries of the index: one for each worker and 64 blocks of an object.", Gauge::default();
    index_bytes: Gauge = "gauge" "index_bytes" [""]
        "Memory of the index.", Gauge::default();
    sweeps: Counter = "counter" "index_sweeps_total" [""]
        "Times the index was rid of what lost or resynced workers held.", Counter::default();
    paths: Family<Outcome, Counter> = "counter" "paths_total" ["outcome"]
        "Paths of location requests by outcome: known, no_workers, unknown_store, unknown_size, refused.", Family::default();
    blocks: Family<State, Counter> = "counter" "blocks_total" ["state"]
        "Blocks of location answers by state: resident, planned, nowhere.", Family::default();
    locates: Counter = "counter" "locate_requests_total" [""]
        "Workers' requests for the holders of a segment.", Counter::default();
    http_connections: Gauge = "gauge" "http_connections" [""]
        "Open HTTP connections.", Gauge::default();
    http_requests: Family<Answered, Counter> = "counter" "http_requests_total" ["route,status"]
        "HTTP requests by route and status.", Family::default();
    http_seconds: Seconds = "histogram" "http_request_seconds" ["route"]
        "Time from a request's header to its answer.", Family::new_with_constructor(seconds);
}

impl Metrics {
    /// The `OpenMetrics` text of all of them.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            text.clear();
            let _ = writeln!(text, "# the metrics could not be encoded");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_is_scraped() {
        let metrics = Metrics::new();
        // A family without a member is not scraped.
        let word = Word("x");
        let (outcome, state) = (Outcome { outcome: word }, State { state: word });
        drop(metrics.workers.get_or_create(&state));
        drop(metrics.blocks.get_or_create(&state));
        drop(metrics.registrations.get_or_create(&outcome));
        drop(metrics.segments.get_or_create(&outcome));
        drop(metrics.paths.get_or_create(&outcome));
        drop(metrics.report_messages.get_or_create(&Kind { kind: word }));
        drop(metrics.resyncs.get_or_create(&ResyncReason { reason: word }));
        drop(metrics.http_seconds.get_or_create(&Route { route: word }));
        drop(metrics.http_requests.get_or_create(&Answered {
            route: word,
            status: 200,
        }));
        let text = metrics.encode();
        for row in TABLE {
            let family = row.name.trim_end_matches("_total");
            assert!(
                text.contains(&format!("# TYPE {family} {}\n", row.kind)),
                "{row:?} in\n{text}"
            );
            assert!(
                text.contains(&format!("# HELP {family} {}\n", row.help)),
                "{row:?} in\n{text}"
            );
            assert_eq!(row.kind == "counter", row.name.ends_with("_total"), "{row:?}");
        }
        assert_eq!(text.matches("# TYPE").count(), TABLE.len());
    }
}
