//! Reads of an object that is not in the cache, beside the same ranged GETs sent to the S3 server directly.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use cachelet_client::OpenRequest;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::aws::AmazonS3;
use object_store::path::Path;

use super::measure::{alternate, timed};
use super::report::Case;
use super::{Bench, MIB, check_content, connected, open, read_range, request};
use cachelet_tests::{Cluster, FaultProxy, deterministic_bytes};

/// Measures one case.
pub(super) type Measure = fn(&Fixture<'_>) -> Case;

const SEED: u64 = 2;
const KEY: &str = "cold";
/// The daemon joins adjacent pages into GETs of this size.
const GET_BYTES: u64 = 8 * MIB;
/// What a client of S3 in the same region sees, measured for one connection.
const FIRST_BYTE: Duration = Duration::from_millis(30);
const BYTES_PER_SECOND: u64 = 90_000_000;

/// An object in the S3 server.
pub(super) struct Fixture<'a> {
    bench: &'a Bench,
    size: u64,
    /// As far away as S3 is over a network.
    proxy: FaultProxy,
    /// How many GETs a cold read through Cachelet has under way at once: the baseline has as many.
    at_once: usize,
}

impl<'a> Fixture<'a> {
    pub(super) fn new(bench: &'a Bench) -> Self {
        let size = bench.size / 4;
        bench.bucket.put(KEY, &deterministic_bytes(SEED, size));
        let proxy = FaultProxy::start(bench.server.address());
        proxy.set_first_byte_delay(FIRST_BYTE);
        proxy.set_bandwidth(Some(BYTES_PER_SECOND));
        let mut cluster = cluster_before(proxy.address());
        let client = connected(cluster.worker(0), |options| options);
        let object = open(&client, &request(&bench.path_of(KEY)));
        check_content(&object, SEED);
        Self {
            bench,
            size,
            at_once: proxy.most_under_way(),
            proxy,
        }
    }

    /// Cold reads through a cluster before `address` beside direct ones from the same address, in MB/s.
    fn measure(&self, address: SocketAddr) -> (f64, f64) {
        let bench = self.bench;
        let mut cluster = cluster_before(address);
        let worker = cluster.worker(0);
        let path = bench.path_of(KEY);
        // The generation is known, as to S3A after its own HEAD or listing: both sides send GETs only.
        let request = {
            let client = connected(worker, |options| options);
            let object = open(&client, &request(&path));
            check_content(&object, SEED);
            request(&path)
                .with_generation(object.generation().clone())
                .with_first_range(0..MIB)
        };
        let direct = Direct::new(bench.bucket.through(address).object_store());
        let mut buffer = vec![0; MIB as usize];
        let medians = alternate(
            bench.slow_reps,
            || {
                let client = connected(worker, |options| options);
                forget(&client, &request);
                let filled = worker.count("/fill_bytes/origin");
                let elapsed = timed(|| read_range(&open(&client, &request), 0..self.size, &mut buffer));
                let filled = worker.count("/fill_bytes/origin") - filled;
                assert!(
                    filled == self.size,
                    "a cold read of {} bytes took {filled} from the origin",
                    self.size
                );
                elapsed
            },
            || timed(|| direct.read(self.size, self.at_once)),
        );
        medians.rates(self.size as f64 / 1e6)
    }
}

fn cluster_before(address: SocketAddr) -> Cluster {
    Cluster::of(&format!("http://{address}"))
        .without_service()
        .start()
}

fn forget(client: &cachelet_client::Client, request: &OpenRequest) {
    client
        .invalidate(&request.path, None)
        .unwrap_or_else(|error| panic!("cannot invalidate {}: {error}", request.path));
}

/// Behind a proxy that answers as S3 does over a network.
pub(super) fn cold_vs_direct(fixture: &Fixture<'_>) -> Case {
    let rates = fixture.measure(fixture.proxy.address());
    let unit = format!(
        "MB/s; {} MiB read once with 1 MiB reads, S3 server behind {} ms to the first byte and {} MB/s a connection; \
         baseline: direct GETs of 8 MiB, {} at once as ours",
        fixture.size / MIB,
        FIRST_BYTE.as_millis(),
        BYTES_PER_SECOND / 1_000_000,
        fixture.at_once
    );
    Case::new("cold_vs_direct", unit, rates, Some(0.9))
}

/// Straight from the S3 server on loopback, which no network is as fast as: what writing to the cache costs at most.
pub(super) fn cold_vs_direct_loopback(fixture: &Fixture<'_>) -> Case {
    let rates = fixture.measure(fixture.bench.server.address());
    let unit = format!(
        "MB/s; {} MiB read once with 1 MiB reads, S3 server on loopback without any delay; \
         baseline: direct GETs of 8 MiB, {} at once; informative",
        fixture.size / MIB,
        fixture.at_once
    );
    Case::new("cold_vs_direct_loopback", unit, rates, None)
}

/// A reader of S3 without Cachelet.
struct Direct {
    runtime: tokio::runtime::Runtime,
    store: AmazonS3,
}

impl Direct {
    fn new(store: AmazonS3) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("a runtime needs a few descriptors");
        Self { runtime, store }
    }

    /// Reads the object in order, `at_once` GETs at a time.
    fn read(&self, size: u64, at_once: usize) {
        let key = Path::from(KEY);
        let received: u64 = self
            .runtime
            .block_on(async {
                let gets = ranges(size).map(|range| self.store.get_range(&key, range));
                futures::stream::iter(gets)
                    .buffered(at_once)
                    .try_fold(
                        0,
                        |received, bytes| async move { Ok(received + bytes.len() as u64) },
                    )
                    .await
            })
            .unwrap_or_else(|error: object_store::Error| panic!("a direct GET failed: {error}"));
        assert!(received == size, "direct GETs gave {received} of {size} bytes");
    }
}

fn ranges(size: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(GET_BYTES)).map(move |index| index * GET_BYTES..size.min((index + 1) * GET_BYTES))
}
