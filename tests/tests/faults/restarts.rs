//! Daemons that are killed while they fill, and stopped under many readers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use cachelet_client::Options;
use cachelet_tests::{
    Baseline, Cluster, Counts, Dose, Outcome, Reader, Reference, S3Server, Version, pause, wait_until,
};
use rand::Rng;
use rand::rngs::StdRng;

use super::support::{DEADLINE, KIB, MIB, StopOnDrop, any_range, options_of, raise_descriptor_limit};

/// Reads random ranges of random objects until told to stop; a read that neither daemon nor origin serves fails the test.
fn read_on(reader: &Reader, objects: &[Version], most: u64, mut random: StdRng, stop: &AtomicBool) -> Counts {
    while !stop.load(Ordering::Acquire) {
        let version = &objects[random.random_range(0..objects.len())];
        let range = any_range(&mut random, version.size_bytes(), most);
        match reader.read(version, range) {
            Outcome::Cached => {}
            // There is no daemon for a moment.
            Outcome::Origin => pause(Duration::from_millis(5)),
            Outcome::Changed => panic!("nobody writes to {version:?}"),
        }
    }
    reader.counts()
}

#[test]
fn a_daemon_killed_while_it_fills_leaves_no_wrong_byte_and_no_rubbish() {
    const OBJECTS: usize = 32;
    let dose = Dose::of("F1 kill -9 during fills");
    let cycles = dose.choose(15, 1000);
    let server = S3Server::shared();
    // Half of the objects fit: there is always something to fill.
    let mut cluster = Cluster::of(&server.endpoint())
        .without_service()
        .quota("48MiB")
        .block_size("2MiB")
        .start();
    let reference = Arc::new(Reference::of(server.bucket(), dose.seed()));
    let objects: Vec<_> = (0..OBJECTS)
        .map(|number| reference.put(&format!("object {number}"), 3 * MIB + 4321))
        .collect();
    let baseline = Baseline::of(cluster.worker(0));
    let options = options_of(cluster.worker(0));
    let stop = AtomicBool::new(false);
    let mut counts = Counts::default();
    let (mut slowest, mut filled) = (Duration::ZERO, 0);
    thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        let (reference, objects, options) = (&reference, &objects, &options);
        let (stop, dose) = (&stop, &dose);
        // Eight bring in what is not there; four read little, mostly of what is.
        let threads: Vec<_> = (0..12)
            .map(|number| {
                scope.spawn(move || {
                    let options = Options {
                        readahead_bytes: if number % 2 == 0 { 0 } else { 8 * MIB },
                        verify_reads: number % 3 == 0,
                        inline_only: number % 6 == 5,
                        ..options.clone()
                    };
                    let reader = Reader::new(options, reference);
                    let (objects, most) = if number < 8 {
                        (&objects[..], 2 * MIB)
                    } else {
                        (&objects[..6], 64 * KIB)
                    };
                    read_on(&reader, objects, most, dose.random(number), stop)
                })
            })
            .collect();
        let mut random = dose.random(1000);
        for cycle in 0..cycles {
            let worker = cluster.worker(0);
            wait_until(DEADLINE, "the daemon fills", || {
                worker.count("/fill_bytes/origin") > 0
                    || threads.iter().any(thread::ScopedJoinHandle::is_finished)
            });
            pause(Duration::from_micros(random.random_range(0..200_000)));
            filled += worker.count("/fill_bytes/origin");
            worker.kill();
            let began = Instant::now();
            worker.start();
            slowest = slowest.max(began.elapsed());
            assert_eq!(
                worker.temporary_files(),
                Vec::<std::path::PathBuf>::new(),
                "cycle {cycle}"
            );
            let damaged = worker.count("/cache/quarantined_files");
            assert_eq!(damaged, 0, "half a block was visible in cycle {cycle}");
        }
        drop(stopping);
        for thread in threads {
            counts.add(&thread.join().expect("no read fails"));
        }
    });
    let worker = cluster.worker(0);
    baseline.assert_nothing_left(worker);
    assert_eq!(worker.count("/cache/quarantined_files"), 0);
    assert!(counts.cached > 0, "{counts:?}");
    dose.showed(&format!(
        "{cycles} kills after {filled} bytes filled, ready again within {slowest:?}; {counts:?}"
    ));
}

#[test]
fn restarts_under_many_readers_fail_no_read() {
    let dose = Dose::of("F2 SIGTERM under readers");
    let (cycles, readers) = dose.choose((3, 50), (50, 1000));
    raise_descriptor_limit();
    let server = S3Server::shared();
    let mut cluster = Cluster::of(&server.endpoint())
        .without_service()
        .block_size("2MiB")
        .start();
    let reference = Arc::new(Reference::of(server.bucket(), dose.seed()));
    let objects: Vec<_> = (0..16)
        .map(|number| reference.put(&format!("object {number}"), 3 * MIB + 99))
        .collect();
    let baseline = Baseline::of(cluster.worker(0));
    let options = options_of(cluster.worker(0));
    let stop = AtomicBool::new(false);
    // Which life of the daemon it is, and how many readers it has served.
    let (life, served) = (AtomicU64::new(0), AtomicU64::new(0));
    let gaps = Mutex::new(Vec::new());
    let ready = Mutex::new(Instant::now());
    let mut counts = Counts::default();
    let mut slowest = Duration::ZERO;
    thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        let threads: Vec<_> = (0..readers)
            .map(|number| {
                let (reference, objects, options, dose) = (&reference, &objects, &options, &dose);
                let (stop, life, served, gaps, ready) = (&stop, &life, &served, &gaps, &ready);
                thread::Builder::new()
                    .stack_size(256 << 10)
                    .spawn_scoped(scope, move || {
                        // A thousand of them are in one process.
                        let options = Options {
                            max_descriptors: 6,
                            ..options.clone()
                        };
                        let reader = Reader::new(options, reference);
                        let mut random = dose.random(number);
                        let mut seen = 0;
                        while !stop.load(Ordering::Acquire) {
                            let now = life.load(Ordering::Acquire);
                            let version = &objects[random.random_range(0..objects.len())];
                            let range = any_range(&mut random, version.size_bytes(), 64 * KIB);
                            // A new connection now and then, and opens that ask the daemon.
                            match reader.read(version, range) {
                                Outcome::Cached if now > seen && reader.client().connect().is_ok() => {
                                    seen = now;
                                    let since = *ready.lock().expect("nobody panics with it");
                                    gaps.lock().expect("nobody panics with it").push(since.elapsed());
                                    served.fetch_add(1, Ordering::AcqRel);
                                }
                                Outcome::Changed => panic!("nobody writes to {version:?}"),
                                Outcome::Cached | Outcome::Origin => {}
                            }
                            pause(Duration::from_micros(random.random_range(0..2000)));
                        }
                        reader.counts()
                    })
                    .expect("a thread can be started")
            })
            .collect();
        for cycle in 1..=cycles {
            let worker = cluster.worker(0);
            let began = Instant::now();
            // It has 10 s to drain, and ends with a success.
            worker.stop();
            slowest = slowest.max(began.elapsed());
            worker.start();
            *ready.lock().expect("nobody panics with it") = Instant::now();
            served.store(0, Ordering::Release);
            life.store(cycle, Ordering::Release);
            wait_until(DEADLINE, "the new daemon serves every reader", || {
                served.load(Ordering::Acquire) >= readers
                    || threads.iter().any(thread::ScopedJoinHandle::is_finished)
            });
        }
        drop(stopping);
        for thread in threads {
            counts.add(&thread.join().expect("no read fails"));
        }
    });
    baseline.assert_nothing_left(cluster.worker(0));
    let mut gaps = gaps.into_inner().expect("nobody panics with it");
    gaps.sort();
    let percentile = gaps[gaps.len() * 99 / 100];
    assert!(slowest < Duration::from_secs(15), "stopping took {slowest:?}");
    dose.showed(&format!(
        "{cycles} restarts under {readers} readers, stopped within {slowest:?}, readers back after {percentile:?} (p99); {counts:?}"
    ));
}
