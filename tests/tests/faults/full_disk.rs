//! A disk that is much too small, under many writers, and filled by a stranger.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cachelet_tests::{
    Baseline, Cluster, Counts, Dose, Outcome, Reader, Reference, S3Server, can_mount, pause, wait_until,
};
use nix::sys::statvfs::statvfs;
use rand::Rng;

use super::support::{DEADLINE, MIB, StopOnDrop, any_range, options_of};

const DISK: u64 = 64 * MIB;
const FREE_PERCENT: u8 = 20;
const WRITERS: usize = 32;

fn free_bytes(directory: &Path) -> u64 {
    let disk = statvfs(directory).expect("the cache's file system is mounted");
    disk.blocks_available() * disk.fragment_size()
}

/// Writes until the disk is full.
fn fill_disk(path: &Path) {
    let mut file = File::create(path).expect("a file takes no room yet");
    let piece = vec![7; 64 << 10];
    while file.write_all(&piece).is_ok() {}
}

#[test]
fn a_small_disk_under_many_writers_keeps_its_floor_and_fails_no_read() {
    if !can_mount() {
        println!("skipped: a file system of its own needs root");
        return;
    }
    let dose = Dose::of("F6 full disk");
    let (objects, lasts) = dose.choose((64, Duration::from_secs(8)), (256, Duration::from_mins(10)));
    let server = S3Server::shared();
    let mut cluster = Cluster::of(&server.endpoint())
        .without_service()
        .cache_file_system(DISK)
        .min_free_percent(FREE_PERCENT)
        .block_size("4MiB")
        .start();
    let reference = Arc::new(Reference::of(server.bucket(), dose.seed()));
    let objects: Vec<_> = (0..objects)
        .map(|number| reference.put(&format!("object {number}"), 4 * MIB))
        .collect();
    let baseline = Baseline::of(cluster.worker(0));
    let options = options_of(cluster.worker(0));
    let disk = cluster.worker(0).cache_dir().to_owned();
    let floor = DISK * u64::from(FREE_PERCENT) / 100;
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut counts = Counts::default();
    let mut lowest = DISK;
    thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        let (reference, objects, options, dose) = (&reference, &objects, &options, &dose);
        let (stop, reads) = (&stop, &reads);
        let threads: Vec<_> = (0..WRITERS)
            .map(|number| {
                scope.spawn(move || {
                    let reader = Reader::new(options.clone(), reference);
                    let mut random = dose.random(number as u64);
                    while !stop.load(Ordering::Acquire) {
                        let version = &objects[random.random_range(0..objects.len())];
                        let range = any_range(&mut random, version.size_bytes(), 2 * MIB);
                        let outcome = reader.read(version, range);
                        assert_ne!(outcome, Outcome::Changed, "nobody writes to {version:?}");
                        reads.fetch_add(1, Ordering::AcqRel);
                    }
                    reader.counts()
                })
            })
            .collect();
        let failed = || threads.iter().any(thread::ScopedJoinHandle::is_finished);
        let began = Instant::now();
        while began.elapsed() < lasts && !failed() {
            lowest = lowest.min(free_bytes(&disk));
            pause(Duration::from_millis(1));
        }
        let stranger = disk.join("a stranger's file");
        fill_disk(&stranger);
        let wanted = reads.load(Ordering::Acquire) + 10 * WRITERS as u64;
        wait_until(DEADLINE, "all go on reading from a full disk", || {
            reads.load(Ordering::Acquire) >= wanted || failed()
        });
        std::fs::remove_file(&stranger).expect("it is ours");
        drop(stopping);
        for thread in threads {
            counts.add(&thread.join().expect("no read fails"));
        }
    });
    let worker = cluster.worker(0);
    let evicted = worker.count("/cache/evictions");
    assert!(evicted > 0, "there was more than fits");
    assert!(
        lowest + MIB >= floor,
        "{lowest} bytes were free, the floor is {floor}"
    );
    baseline.assert_nothing_left(worker);
    // Without a restart, what is read is cached again.
    let reader = Reader::new(options_of(worker), &reference);
    wait_until(DEADLINE, "objects are cached and granted again", || {
        let passed = worker.count("/read_bytes/pass_through");
        assert_eq!(reader.read(&objects[0], 0..4 * MIB), Outcome::Cached);
        assert_eq!(reader.read(&objects[0], 1..4 * MIB), Outcome::Cached);
        worker.count("/read_bytes/pass_through") == passed && reader.client().descriptors_held() > 0
    });
    drop(reader);
    baseline.assert_nothing_left(worker);
    dose.showed(&format!(
        "at least {lowest} bytes free (floor {floor}), {evicted} evictions; {counts:?}"
    ));
}
