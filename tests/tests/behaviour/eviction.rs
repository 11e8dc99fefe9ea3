//! When the cache is full: what is evicted stays right for who holds it, and nobody's read fails.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use cachelet_client::{Client, Options};
use cachelet_protocol::block::{BlockIndex, PageSet};
use cachelet_protocol::wire::BypassReason;
use cachelet_tests::{Bucket, Worker, deterministic_range, wait_until};

use super::support::{
    DEADLINE, MIB, assert_content, client_of, exact_client_of, open, options_for, over_s3, put, read_all,
    read_range,
};
use super::wire::{RawGrant, RawSession};

/// What is charged for a block file beside its pages.
const TABLES_BYTES: u64 = 64 << 10;

/// Panics if the cache takes more than its quota; says how many bytes are evicted and still held.
#[track_caller]
fn assert_within_quota(worker: &Worker) -> u64 {
    let status = worker.status();
    let bytes = |name: &str| status["cache"][name].as_u64().expect("a number of bytes");
    let taken: u64 = [
        "committed_bytes",
        "reserved_bytes",
        "unlinked_held_bytes",
        "quarantined_bytes",
    ]
    .map(bytes)
    .iter()
    .sum();
    assert!(taken <= bytes("quota_bytes"), "{taken} bytes taken: {status}");
    bytes("unlinked_held_bytes")
}

/// Puts `count` objects of one block of 4 MiB each, whose seeds are `first_seed` and those after.
fn put_blocks(bucket: &Bucket, first_seed: u64, count: u64) -> Vec<(String, u64)> {
    (first_seed..first_seed + count)
        .map(|seed| (put(bucket, &format!("block {seed}"), seed, 4 * MIB).0, seed))
        .collect()
}

/// The bytes of a granted block, as who holds the descriptor sees them.
fn held_bytes(file: &File, grant: &RawGrantFacts) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(grant.length).expect("a small block")];
    file.read_exact_at(&mut bytes, grant.data_offset)
        .expect("a held file can be read");
    bytes
}

/// Where a granted block lies in its file.
struct RawGrantFacts {
    data_offset: u64,
    length: u64,
}

fn keep(grant: RawGrant) -> (File, RawGrantFacts) {
    let facts = RawGrantFacts {
        data_offset: grant.granted.data_offset,
        length: grant.granted.length,
    };
    (File::from(grant.descriptor), facts)
}

#[test]
fn refill_after_eviction_never_reads_the_old_files_hole() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster
        .without_service()
        .quota("16MiB")
        .block_size("4MiB")
        .local_config("max_held_percent = 100")
        .start();
    let (path, _) = put(&bucket, "with holes", 100, 4 * MIB);
    let others = put_blocks(&bucket, 101, 6);
    let worker = cluster.worker(0);

    // One client as it is, and one that keeps the old file whatever the daemon says. Both have page 0.
    let client = exact_client_of(worker);
    let stream = open(&client, &path).expect("it exists");
    assert_content(100, 0, &read_range(&stream, 0..MIB).expect("it can be read"));
    let mut session = RawSession::begin(worker);
    let (opened, grant) = session.open(&path, MIB);
    let grant = grant.expect("a first grant");
    session.acknowledge(1);
    let old = grant.granted.file_id;
    assert_eq!(grant.granted.present, PageSet::span(0..1));
    let (old_file, facts) = keep(grant);

    // Somebody holds so much that leased blocks must go, the least recently used first.
    let mut hog = RawSession::begin(worker);
    for (other, _) in &others {
        if hog.open(other, 4 * MIB).1.is_ok() {
            hog.acknowledge(1);
        }
    }
    wait_until(DEADLINE, "the block was evicted", || {
        worker.count("/cache/evictions") > 0
    });
    assert_within_quota(worker);
    drop(hog);
    wait_until(DEADLINE, "the others' blocks are nobody's", || {
        worker.count("/sessions") == 2
    });

    // Pages that the old file lacks: they come in another file, of which the old one knows nothing.
    let new = session
        .fill(opened.handle, BlockIndex(0), old, PageSet::span(1..4))
        .expect("there is room for it again");
    assert_ne!(
        new.granted.file_id, old,
        "a file that was evicted is never filled"
    );
    assert!(new.granted.present.contains_all(PageSet::span(1..4)));
    let (new_file, new_facts) = keep(new);
    assert_content(100, MIB, &held_bytes(&new_file, &new_facts)[MIB as usize..]);
    let held = held_bytes(&old_file, &facts);
    assert_content(100, 0, &held[..MIB as usize]);
    assert!(
        held[MIB as usize..].iter().all(|byte| *byte == 0),
        "the old file has its hole still"
    );
    // The client that follows the protocol asks for page 0 anew, and gets everything right.
    assert_content(100, 0, &read_range(&stream, 0..4 * MIB).expect("it can be read"));
    assert_content(
        100,
        MIB + 5,
        &read_range(&stream, MIB + 5..3 * MIB).expect("it can be read"),
    );
    assert_within_quota(worker);
}

#[test]
fn an_evicted_block_stays_readable_through_its_descriptor_and_is_charged_until_that_is_closed() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster
        .without_service()
        .quota("16MiB")
        .block_size("4MiB")
        .start();
    let blocks = put_blocks(&bucket, 110, 8);
    let worker = cluster.worker(0);
    let mut session = RawSession::begin(worker);
    let (_, grant) = session.open(&blocks[0].0, 4 * MIB);
    let (file, facts) = keep(grant.expect("a first grant"));
    session.acknowledge(1);

    // Evicted because somebody asked for it: the surest way to get at one block.
    let other = client_of(worker);
    let forgotten = other
        .invalidate(&blocks[0].0.parse().expect("a valid path"), None)
        .expect("the daemon forgets");
    assert_eq!(forgotten, 1);
    let charge = TABLES_BYTES + 4 * MIB;
    assert_eq!(assert_within_quota(worker), charge, "it is evicted and held");
    // The others turn over in what is left, several times.
    for _ in 0..2 {
        for (path, seed) in &blocks[1..] {
            let stream = open(&other, path).expect("it exists");
            assert_content(*seed, 0, &read_all(&stream).expect("it can be read"));
            assert_eq!(assert_within_quota(worker), charge, "held as long as it is held");
            assert_content(110, 0, &held_bytes(&file, &facts));
        }
    }
    // Releasing proves nothing as long as the descriptor is open.
    drop(session);
    wait_until(DEADLINE, "the session is over", || worker.count("/sessions") == 1);
    assert_content(110, 0, &held_bytes(&file, &facts));
    assert!(assert_within_quota(worker) >= charge);
    drop(file);
    wait_until(DEADLINE, "its bytes are free", || {
        assert_within_quota(worker) < charge
    });
    drop(other);
    wait_until(DEADLINE, "nothing is evicted and held", || {
        assert_within_quota(worker) == 0
    });
}

#[test]
fn readers_of_more_than_the_cache_holds_get_every_byte_right() {
    const OBJECTS: u64 = 8;
    const SIZE: u64 = 7 * MIB + 4321;
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster
        .without_service()
        .quota("24MiB")
        .block_size("4MiB")
        .start();
    let paths: Arc<Vec<String>> = Arc::new(
        (0..OBJECTS)
            .map(|number| put(&bucket, &format!("object {number}"), 120 + number, SIZE).0)
            .collect(),
    );
    let worker = cluster.worker(0);
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4_u64)
        .map(|reader| {
            let options = Options {
                verify_reads: reader == 0,
                inline_only: reader == 1,
                ..options_for(worker.socket_dir())
            };
            let paths = Arc::clone(&paths);
            thread::spawn(move || {
                let client = Client::new(options);
                let mut random = 77 + reader;
                for step in 0..60 {
                    // The numbers of `deterministic_range` are as good as any.
                    random = u64::from_le_bytes(
                        deterministic_range(random, 0..8).try_into().expect("eight bytes"),
                    );
                    let number = random % OBJECTS;
                    let stream = open(&client, &paths[number as usize]).expect("it exists");
                    let start = random / 1000 % SIZE;
                    let end = SIZE.min(start + 1 + random / 7 % (2 * MIB));
                    let bytes = read_range(&stream, start..end).unwrap_or_else(|error| {
                        panic!("reader {reader}, step {step}, object {number}: {error}")
                    });
                    assert_content(120 + number, start, &bytes);
                }
            })
        })
        .collect();
    let watched = Arc::clone(&done);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            wait_until(DEADLINE * 3, "the readers are done", || {
                assert_within_quota(worker);
                watched.load(Ordering::Acquire)
            });
        });
        let outcomes: Vec<_> = readers.into_iter().map(thread::JoinHandle::join).collect();
        done.store(true, Ordering::Release);
        watcher.join().expect("the cache keeps to its quota");
        for outcome in outcomes {
            outcome.expect("no read fails, and none is wrong");
        }
    });
    assert!(worker.count("/cache/evictions") > 0, "there was more than fits");
    wait_until(DEADLINE, "nothing is evicted and held", || {
        assert_within_quota(worker) == 0
    });
}

#[test]
fn who_holds_the_whole_cache_keeps_nobody_from_reading() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster
        .without_service()
        .quota("16MiB")
        .block_size("4MiB")
        .local_config("max_held_percent = 100")
        .start();
    let blocks = put_blocks(&bucket, 130, 5);
    let (path, _) = put(&bucket, "wanted", 140, 9 * MIB);
    let (small, _) = put(&bucket, "small and wanted", 141, 10_000);
    let worker = cluster.worker(0);
    // It ignores every request to close what it holds.
    let mut hog = RawSession::begin(worker);
    let mut held = Vec::new();
    let mut refused = None;
    for (path, seed) in &blocks {
        match hog.open(path, 4 * MIB).1 {
            Ok(grant) => {
                hog.acknowledge(1);
                held.push((keep(grant), *seed));
            }
            Err(bypass) => {
                refused = Some(bypass);
                break;
            }
        }
    }
    let refused = refused.expect("five blocks do not fit");
    assert!(
        matches!(refused.reason, BypassReason::NoSpace | BypassReason::NoGrant),
        "{refused:?}"
    );
    assert!(held.len() >= 3, "{} blocks held", held.len());

    for client in [client_of(worker), client_of(worker)] {
        let stream = open(&client, &path).expect("it exists");
        assert_content(140, 0, &read_all(&stream).expect("it is passed through"));
        let stream = open(&client, &small).expect("it exists");
        assert_content(141, 0, &read_all(&stream).expect("it is passed through"));
        assert_within_quota(worker);
    }
    let passed = worker.count("/read_bytes/pass_through");
    assert!(passed > 0, "there was room after all");
    for ((file, facts), seed) in &held {
        assert_content(*seed, 0, &held_bytes(file, facts));
    }
    drop((held, hog));
    let client = client_of(worker);
    wait_until(DEADLINE, "the object is cached after all", || {
        let stream = open(&client, &path).expect("it exists");
        assert_content(140, 0, &read_all(&stream).expect("it can be read"));
        let before = worker.count("/read_bytes/pass_through");
        assert_content(140, 0, &read_all(&stream).expect("it can be read"));
        client.descriptors_held() > 0 && worker.count("/read_bytes/pass_through") == before
    });
}
