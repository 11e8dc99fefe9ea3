//! Opening an object that is in the cache, beside asking the S3 server for its headers.

use cachelet_client::{OpenRequest, Options};

use super::measure::{alternate, timed};
use super::report::Case;
use super::{Bench, connected, open, request};
use cachelet_tests::{Cluster, deterministic_bytes};

/// Beyond what comes inline with the opening.
const OBJECT_BYTES: u64 = 256 << 10;
const OBJECTS: usize = 64;

/// Opens of cached objects by a caller that knows the generation, as S3A does after its own listing.
pub(super) fn open_warm(bench: &Bench) -> Case {
    let mut cluster = Cluster::of(&bench.server.endpoint()).without_service().start();
    // Closed objects are closed at once: every open is a message, and brings a descriptor.
    let client = connected(cluster.worker(0), |options| Options {
        keep_closed_objects: 0,
        ..options
    });
    let keys: Vec<String> = (0..OBJECTS).map(|number| format!("open/{number}")).collect();
    let requests: Vec<OpenRequest> = keys
        .iter()
        .zip(0..)
        .map(|(key, seed)| {
            bench.bucket.put(key, &deterministic_bytes(seed, OBJECT_BYTES));
            let request = request(&bench.path_of(key));
            let object = open(&client, &request);
            super::check_content(&object, seed);
            request
                .with_generation(object.generation().clone())
                .with_first_range(0..OBJECT_BYTES)
        })
        .collect();
    let opens = bench.reps * 100;
    let before = client.stats();
    let medians = alternate(
        bench.slow_reps,
        || {
            timed(|| {
                for request in requests.iter().cycle().take(opens) {
                    drop(open(&client, request));
                }
            })
        },
        || {
            timed(|| {
                for key in keys.iter().cycle().take(opens) {
                    let status = bench.bucket.head(key).status;
                    assert!(status == 200, "HEAD of {key} was answered with {status}");
                }
            })
        },
    );
    let round_trips = client.stats().round_trips - before.round_trips;
    let all = (opens * (bench.slow_reps + 1)) as u64;
    assert!(
        round_trips == all,
        "{round_trips} round trips for {all} warm opens, where each takes one"
    );
    let micros = |per: std::time::Duration| per.as_secs_f64() * 1e6 / opens as f64;
    let unit = format!(
        "opens/s ({:.0} us each, one message, descriptor included; the caller knows the generation); \
         baseline: HEAD/s to the S3 server on loopback ({:.0} us each)",
        micros(medians.ours),
        micros(medians.baseline)
    );
    Case::new("open_warm", unit, medians.rates(opens as f64), None)
}
