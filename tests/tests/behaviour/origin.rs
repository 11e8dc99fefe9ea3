//! Origins that misbehave, are overloaded or gone: no wrong byte, no flood, and an answer at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cachelet_client::{Client, Error, OpenRequest};
use cachelet_protocol::block::{BlockIndex, PageSet};
use cachelet_protocol::ids::FileId;
use cachelet_protocol::wire::{Code, Fill, Message, OPEN_NO_DATA, Open, Opened, Priority, encode};
use cachelet_tests::{Cluster, FaultProxy, HostileS3, Misdeed, Mood, S3Server, Worker, wait_until};

use super::support::{
    DEADLINE, MIB, assert_content, client_of, exact_client_of, generation_of, open_stored, put, read_all,
    read_range,
};
use super::wire::RawSession;

/// Objects up to this size come with the answer to an open: one open, one GET.
const INLINE: u64 = 16 << 10;
/// What a daemon may send again before requests have earned it; see `daemon/src/origin/traffic/budget.rs`.
const RESERVE: u64 = 10;

/// A worker alone before an origin, with short patience.
fn before(origin: &HostileS3, store: &str) -> Cluster {
    Cluster::of(&origin.endpoint())
        .caller_authorization()
        .without_service()
        .store_config("read_timeout = \"1s\"")
        .store_config(store)
        .start()
}

fn request(seed: u64, size: u64) -> OpenRequest {
    let (path, generation) = HostileS3::object(seed, size);
    OpenRequest::new(path.parse().expect("a valid path")).with_generation(generation)
}

/// Reads a whole object and compares every byte.
fn read(client: &Client, seed: u64, size: u64) -> Result<(), Error> {
    let bytes = read_all(&client.open(&request(seed, size).with_first_range(0..size))?)?;
    assert_content(seed, 0, &bytes);
    Ok(())
}

/// A number of a worker's only store.
fn of_store(worker: &Worker, name: &str) -> u64 {
    worker.count(&format!("/stores/0/{name}"))
}

fn is_left_out(worker: &Worker) -> bool {
    worker.status()["stores"][0]["state"] == "left_out"
}

/// A counter of a worker's only store.
fn counted(worker: &Worker, name: &str) -> u64 {
    let sample = format!("cachelet_{name}_total{{store=\"s3\"}} ");
    let metrics = worker.metrics();
    let value = metrics.lines().find_map(|line| line.strip_prefix(&sample));
    value.map_or(0, |value| value.parse().expect("a number"))
}

/// Does `work` for each of `0..count`, in eight threads.
fn in_parallel(count: u64, work: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

/// Anonymous memory of a process, in bytes.
fn anonymous_bytes(worker: &mut Worker) -> u64 {
    let pid = worker.process().pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .expect("the kernel says it");
    kib.trim().parse::<u64>().expect("a number") << 10
}

/// `CACHELET_DOSE=full` asks for what takes too long for every run; `CACHELET_SEED` repeats one.
fn dose(small: u64, full: u64) -> u64 {
    if std::env::var("CACHELET_DOSE").is_ok_and(|dose| dose == "full") {
        full
    } else {
        small
    }
}

fn seed() -> u64 {
    let given = std::env::var("CACHELET_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("CACHELET_SEED={seed}");
    seed
}

/// Says what kind of failure a reader got; panics if it is none that sends it to the origin itself.
fn kind(error: &Error) -> String {
    match error {
        Error::Failed { code, .. } => code.to_string(),
        Error::PermissionDenied(_) => "permission denied".to_owned(),
        // On the word of two wrong replies in a row.
        Error::ObjectChanged { .. } => "object changed".to_owned(),
        other => panic!("not the origin's failure: {other}"),
    }
}

#[test]
fn an_origin_that_misbehaves_in_every_way_gets_no_wrong_byte_cached_and_a_tenth_more_requests() {
    let origin = HostileS3::start(seed());
    let mut cluster = before(&origin, "");
    let worker = cluster.worker(0);
    let small = dose(1800, 100_000);
    let size_of = |number: u64| 1 + number * 7919 % INLINE;

    origin.set_mood(Mood::Mixed(0.25));
    let client = client_of(worker);
    let failures = std::sync::Mutex::new(BTreeMap::<String, u64>::new());
    let began = Instant::now();
    in_parallel(small, |number| {
        if let Err(error) = read(&client, number, size_of(number)) {
            *failures
                .lock()
                .expect("nobody panics")
                .entry(kind(&error))
                .or_default() += 1;
        }
    });
    let (gets, took) = (origin.gets(), began.elapsed());
    let failures = failures.into_inner().expect("nobody panics");
    let failed: u64 = failures.values().sum();
    println!("{small} opens in {took:.1?}: {gets} GETs, {failed} failed: {failures:?}");
    println!("what went wrong: {:?}", origin.misdeeds());
    println!(
        "daemon: {} requests, {} retries, {} refused by the budget, {} hedges, {} of them won",
        counted(worker, "origin_requests"),
        counted(worker, "origin_retries"),
        counted(worker, "origin_retries_refused"),
        counted(worker, "origin_hedges"),
        counted(worker, "origin_hedges_won"),
    );
    assert_eq!(origin.misdeeds().len(), Misdeed::ALL.len(), "every kind was met");
    // A daemon that asks for little may still try again once a second.
    let most = small + small / 10 + RESERVE + took.as_secs();
    assert!(gets <= most, "{gets} GETs for {small} opens: at most {most}");
    let went_wrong: u64 = origin.misdeeds().values().sum();
    assert!(
        failed < went_wrong,
        "{failed} opens failed of {went_wrong} GETs that went wrong"
    );
    // Final for readers, so only on the word of two wrong replies in a row.
    let changed = failures.get("object changed").copied().unwrap_or_default();
    assert!(
        changed <= small / 200,
        "{changed} readers were told that their object changed"
    );

    // Objects of several pages, whose bodies break in the middle of one.
    let large = dose(40, 500);
    let large_size = |number: u64| 2 * MIB + number * 7919;
    in_parallel(large, |number| {
        if let Err(error) = read(&client, 1_000_000 + number, large_size(number)) {
            kind(&error);
        }
    });

    origin.set_mood(Mood::Well);
    let gets = origin.gets();
    let fresh = client_of(worker);
    in_parallel(small, |number| {
        read(&fresh, number, size_of(number)).unwrap_or_else(|error| panic!("object {number}: {error}"));
    });
    let again = origin.gets() - gets;
    // Hedges may double some; nothing that a reader got before is asked for.
    assert!(
        again <= failed + failed / 20 + 1,
        "{again} GETs for {failed} objects that are not cached"
    );
    in_parallel(large, |number| {
        let read = read(&fresh, 1_000_000 + number, large_size(number));
        read.unwrap_or_else(|error| panic!("large object {number}: {error}"));
    });
    wait_until(DEADLINE, "nothing is under way", || {
        of_store(worker, "requests_in_flight") == 0
            && worker.count("/fetches_in_flight") == 0
            && worker.count("/cache/reserved_bytes") == 0
    });
    assert_eq!(of_store(worker, "requests_waiting"), 0);
}

#[test]
fn an_outage_costs_hits_nothing_and_misses_get_the_typed_error_at_once() {
    for misdeed in [Misdeed::InternalError, Misdeed::Stall] {
        let origin = HostileS3::start(0);
        let mut cluster = before(&origin, "");
        let worker = cluster.worker(0);
        let hit = |number: u64| {
            let read = read(&client_of(worker), number % 20, INLINE);
            read.unwrap_or_else(|error| panic!("a hit during an outage: {error}"));
        };
        (0..20).for_each(hit);
        let client = client_of(worker);
        let miss = |number: u64| match read(&client, 100 + number, INLINE) {
            Ok(()) => panic!("bytes out of nowhere"),
            Err(Error::Failed { code, message }) => (code, message),
            Err(other) => panic!("not the typed error: {other}"),
        };
        origin.set_mood(Mood::Share(1.0, misdeed));
        let (began, before) = (Instant::now(), origin.gets());
        let missed = AtomicU64::new(0);
        wait_until(DEADLINE, "the store is left out", || {
            in_parallel(8, |_| {
                miss(missed.fetch_add(1, Ordering::Relaxed));
                hit(missed.load(Ordering::Relaxed));
            });
            is_left_out(worker)
        });
        let (until_open, open_after) = (origin.gets() - before, began.elapsed());
        let sent_before = missed.load(Ordering::Relaxed);
        println!(
            "{misdeed:?}: {until_open} GETs for {sent_before} misses until the store was left out after {open_after:.1?}"
        );
        let asked = 20 + sent_before;
        assert!(until_open <= sent_before + asked / 10 + RESERVE + open_after.as_secs());

        let began = Instant::now();
        let (left_out, before) = (AtomicU64::new(0), origin.gets());
        in_parallel(400, |number| {
            let (code, message) = miss(10_000 + number);
            if code == Code::OriginUnavailable && message.contains("not asked") {
                left_out.fetch_add(1, Ordering::Relaxed);
            }
            if number % 10 == 0 {
                hit(number);
            }
        });
        let (left_out, gets, took) = (left_out.into_inner(), origin.gets() - before, began.elapsed());
        println!(
            "{misdeed:?}: 400 misses while it is left out: {gets} GETs, {left_out} answered at once, {took:.1?} in all"
        );
        // But for one at a time that tries again, each after 1 s at the least.
        assert!(gets <= 1 + took.as_secs(), "{gets} GETs in {took:?}");
        assert!(left_out + gets >= 400, "{left_out} of 400 were answered at once");
        assert!(counted(worker, "origin_skips") >= left_out);

        origin.set_mood(Mood::Well);
        wait_until(DEADLINE, "the store is asked again", || {
            read(&client, 50_000, INLINE).is_ok()
        });
        assert!(!is_left_out(worker));
        let log = worker.process().log();
        assert!(log.contains("the store fails every request"), "{log}");
        assert!(log.contains("the store answers again"), "{log}");
    }
}

#[test]
fn an_origin_that_throttles_is_asked_for_less_at_a_time_and_memory_stays_bounded() {
    let origin = HostileS3::start(seed());
    // A server that is slow because this machine is must not pass for one that is overloaded.
    let mut cluster = Cluster::of(&origin.endpoint())
        .caller_authorization()
        .without_service()
        .start();
    let worker = cluster.worker(0);
    // Longer than a busy machine needs for 64 readers to come.
    origin.set_first_byte_delay(Duration::from_millis(400));
    // Page by page, each a GET.
    let read_pages = |worker: &Worker| {
        let client = exact_client_of(worker);
        thread::scope(|scope| {
            for reader in 0..64 {
                let client = &client;
                scope.spawn(move || {
                    let object = client
                        .open(&request(reader, 4 * MIB))
                        .expect("the generation is its proof");
                    for page in 0..4 {
                        let bytes = read_range(&object, page * MIB..(page + 1) * MIB);
                        assert_content(reader, page * MIB, &bytes.expect("it can be read"));
                    }
                });
            }
        });
    };
    let at_rest = anonymous_bytes(worker);
    let _ = origin.take_most_under_way();
    read_pages(worker);
    let (parallel, grown) = (
        origin.take_most_under_way(),
        of_store(worker, "concurrency_limit"),
    );
    assert!(
        grown >= 32 && parallel >= 32,
        "{parallel} at a time, limit {grown}"
    );
    let busy = anonymous_bytes(worker);
    println!(
        "256 MiB by 64 readers: {parallel} GETs at a time, limit {grown}, memory {at_rest} -> {busy} bytes"
    );
    // `fill.memory` is 64 MiB; as much again for buffers of sockets, threads' stacks and the allocator.
    assert!(busy < at_rest + (128 << 20), "{at_rest} -> {busy} bytes");

    origin.set_first_byte_delay(Duration::ZERO);
    origin.set_mood(Mood::Share(0.3, Misdeed::SlowDown));
    let client = client_of(worker);
    in_parallel(100, |number| drop(read(&client, 5000 + number, INLINE)));
    let limit = of_store(worker, "concurrency_limit");
    println!("limit after 100 GETs of which 30 % were throttled: {limit}");
    assert!(limit < grown, "{limit}");
}

#[test]
fn what_is_demanded_goes_before_what_is_read_ahead_and_so_does_what_a_reader_comes_for() {
    let server = S3Server::shared();
    let proxy = FaultProxy::start(server.address());
    let bucket = server.bucket();
    let mut cluster = Cluster::of(&proxy.endpoint())
        .caller_authorization()
        .without_service()
        .store_config("max_concurrent_requests = 1")
        .start();
    let worker = cluster.worker(0);
    let mut session = RawSession::begin(worker);
    let objects = ["a", "b", "c", "d", "e"].map(|key| {
        let (path, stored) = put(&bucket, key, 1, 2 * MIB);
        let request = session.send(&Open {
            generation: Some(generation_of(&stored)),
            flags: OPEN_NO_DATA,
            ..Open::generation_only(path.parse().expect("a valid path"))
        });
        match session.answer(request) {
            (Message::Opened(Opened { handle, .. }), None) => (handle, path, stored),
            other => panic!("{path} was not opened: {other:?}"),
        }
    });
    proxy.reset();
    let hold = proxy.hold();
    let waiting = |count: u64| {
        wait_until(DEADLINE, &format!("{count} requests wait"), || {
            of_store(worker, "requests_waiting") == count
        });
    };
    for (number, (handle, ..)) in objects.iter().take(4).enumerate() {
        let ahead = Fill {
            handle: *handle,
            block: BlockIndex(0),
            file_id: FileId(0),
            pages: PageSet::span(0..1),
            priority: Priority::Readahead,
        };
        session.send_bytes(&encode(&ahead, 0, 0));
        wait_until(DEADLINE, "the request is sent", || hold.waiting() == 1);
        waiting(number as u64);
    }
    let read_page = |index: usize| {
        let (path, stored) = (&objects[index].1, &objects[index].2);
        let object =
            open_stored(&exact_client_of(worker), path, stored).expect("the generation is its proof");
        assert_content(1, 0, &read_range(&object, 0..MIB).expect("it can be read"));
    };
    thread::scope(|scope| {
        scope.spawn(|| read_page(4));
        waiting(4);
        // Its page is on its way already, behind another one.
        scope.spawn(|| read_page(2));
        wait_until(DEADLINE, "both readers wait", || {
            of_store(worker, "demands_waiting") == 2
        });
        drop(hold);
    });
    wait_until(DEADLINE, "all have come", || {
        worker.count("/fetches_in_flight") == 0
    });
    let keys: Vec<_> = proxy
        .requests()
        .iter()
        .map(|request| request.path.rsplit('/').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(keys, ["a", "c", "e", "b", "d"]);
}

#[test]
fn a_late_reply_is_asked_for_twice_within_a_twentieth_of_the_requests() {
    let origin = HostileS3::start(seed());
    let mut cluster = before(&origin, "");
    let worker = cluster.worker(0);
    origin.set_first_byte_delay(Duration::from_millis(30));
    let count = 600;
    let read = |number: u64| {
        let read = read(&client_of(worker), number, INLINE);
        read.unwrap_or_else(|error| panic!("object {number}: {error}"));
    };
    // The first ones are earned and estimated with.
    in_parallel(count / 2, read);
    origin.set_mood(Mood::Late(0.03, Duration::from_millis(700)));
    let began = Instant::now();
    in_parallel(count / 2, |number| read(count / 2 + number));
    let (hedges, won) = (
        counted(worker, "origin_hedges"),
        counted(worker, "origin_hedges_won"),
    );
    println!(
        "{count} opens, 3 % of the second half 700 ms late, in {:.1?}: {} GETs, {hedges} hedges, {won} won",
        began.elapsed(),
        origin.gets(),
    );
    assert!(won >= 1, "of {hedges}");
    assert!(hedges <= count / 20, "{hedges}");
    let retries = counted(worker, "origin_retries");
    assert!(origin.gets() <= count + hedges + retries, "{}", origin.gets());
    wait_until(DEADLINE, "who lost is gone", || {
        of_store(worker, "requests_in_flight") == 0
    });
}

#[test]
fn a_bandwidth_limit_holds_on_average() {
    let origin = HostileS3::start(0);
    let mut cluster = before(&origin, "max_bandwidth = \"8MiB\"\nmax_requests_per_second = 100");
    let worker = cluster.worker(0);
    let began = Instant::now();
    read(&client_of(worker), 1, 32 * MIB).expect("it can be read");
    let took = began.elapsed();
    // Four requests of 8 MiB: the last one begins when three are paid for.
    assert!(took >= Duration::from_millis(2800), "{took:?}");
}
