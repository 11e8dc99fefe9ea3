//! The wall clock jumps, hours and days, both ways: nothing but new epochs and credentials may go by it.
//!
//! The daemon's clock is libfaketime's, preloaded into it; this machine's clock stays as it is. The monotonic clock never jumps.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use cachelet_tests::{
    Baseline, Cluster, Counts, Dose, LiteralS3, Outcome, Reader, Reference, TestDir, Version, Worker,
    wait_until,
};
use rand::Rng;

use super::support::{DEADLINE, KIB, MIB, StopOnDrop, any_range, options_of};

const DAY: i64 = 86_400;

/// Where distributions put it.
fn library() -> Option<&'static str> {
    let places = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib64/faketime/libfaketimeMT.so.1",
        "/usr/lib/faketime/libfaketimeMT.so.1",
    ];
    places.into_iter().find(|place| Path::new(place).exists())
}

#[test]
fn jumps_of_the_clock_end_no_session_evict_nothing_and_fail_no_read() {
    let Some(library) = library() else {
        println!("skipped: there is no libfaketime (apt-get install libfaketime)");
        return;
    };
    let dose = Dose::of("F12 clock jumps");
    let jumps = dose.choose(20, 500);
    let dir = TestDir::new("clock");
    let clock = dir.join("offset");
    let jump_to = |seconds: i64| {
        // Renamed, so that the daemon never reads half of it.
        let new = dir.join("new");
        std::fs::write(&new, format!("{seconds:+}\n")).expect("the directory is ours");
        std::fs::rename(&new, &clock).expect("the directory is ours");
    };
    jump_to(0);
    let server = LiteralS3::start();
    let mut cluster = Cluster::of(&server.endpoint())
        .block_size("1MiB")
        .worker_env("LD_PRELOAD", library)
        .worker_env("FAKETIME_TIMESTAMP_FILE", &clock.display().to_string())
        .worker_env("FAKETIME_NO_CACHE", "1")
        .worker_env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start();
    let reference = Arc::new(Reference::of(server.bucket(), dose.seed()));
    let objects: Vec<_> = (0..20)
        .map(|number| reference.put(&format!("object {number}"), MIB + 999))
        .collect();
    let baseline = Baseline::of(cluster.worker(0));
    let options = options_of(cluster.worker(0));
    let reader = Reader::new(options.clone(), &reference);
    for version in &objects {
        assert_eq!(reader.read(version, 0..version.size_bytes()), Outcome::Cached);
    }
    drop(reader);
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut counts = Counts::default();
    thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        let (reference, objects, options) = (&reference, &objects, &options);
        let (stop, reads, dose) = (&stop, &reads, &dose);
        let threads: Vec<_> = (0..3)
            .map(|number| {
                scope.spawn(move || {
                    let reader = Reader::new(options.clone(), reference);
                    let mut random = dose.random(number);
                    while !stop.load(Ordering::Acquire) {
                        let version = &objects[random.random_range(0..objects.len())];
                        let range = any_range(&mut random, version.size_bytes(), 200 * KIB);
                        assert_eq!(reader.read(version, range), Outcome::Cached, "{version:?}");
                        reads.fetch_add(1, Ordering::AcqRel);
                    }
                    let stats = reader.client().stats();
                    assert_eq!((stats.reconnects, stats.timeouts), (0, 0), "{stats:?}");
                    reader.counts()
                })
            })
            .collect();
        let mut random = dose.random(99);
        let mut uptime = 0;
        for _ in 0..jumps {
            let most = [60, 3600, 400 * DAY][random.random_range(0..3)];
            jump_to(random.random_range(-most..=most));
            let wanted = reads.load(Ordering::Acquire) + 100;
            wait_until(DEADLINE, "readers go on", || {
                reads.load(Ordering::Acquire) >= wanted
                    || threads.iter().any(thread::ScopedJoinHandle::is_finished)
            });
            let now = cluster.worker(0).count("/uptime_seconds");
            assert!(
                (uptime..uptime + 3600).contains(&now),
                "{now} s up after {uptime} s"
            );
            uptime = now;
            assert_eq!(
                cluster.service().ready_nodes().len(),
                1,
                "the worker's lease goes by no clock"
            );
        }
        drop(stopping);
        for thread in threads {
            counts.add(&thread.join().expect("every read is served"));
        }
    });
    let worker = cluster.worker(0);
    assert_eq!(worker.count("/cache/evictions"), 0);
    assert_eq!(worker.count("/cache/quarantined_files"), 0);
    baseline.assert_nothing_left(worker);
    restart_at_other_times(worker, &reference, &objects, &jump_to);
    baseline.assert_nothing_left(worker);
    dose.showed(&format!("{jumps} jumps and three restarts; {counts:?}"));
}

/// A daemon that starts at another time takes the cache over, and is a later life in any case.
fn restart_at_other_times(
    worker: &mut Worker,
    reference: &Arc<Reference>,
    objects: &[Version],
    jump_to: &dyn Fn(i64),
) {
    let unix_now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is after 1970");
    let mut epoch = worker.count("/epoch");
    for offset in [400 * DAY, -400 * DAY, 0] {
        jump_to(offset);
        worker.stop();
        worker.start();
        let next = worker.count("/epoch");
        assert!(next > epoch, "epoch {next} after {epoch}");
        epoch = next;
        assert!(
            epoch > unix_now.as_secs() + 300 * DAY as u64,
            "the daemon's clock is not the faked one"
        );
        let reader = Reader::new(options_of(worker), reference);
        for version in objects {
            assert_eq!(reader.read(version, 0..version.size_bytes()), Outcome::Cached);
        }
        assert_eq!(worker.count("/fill_bytes/origin"), 0, "the cache was kept");
    }
}
