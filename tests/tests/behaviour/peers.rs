//! Peers and a locality service that hang: they cost one wait, not one for every fetch.

use std::thread;
use std::time::{Duration, Instant};

use cachelet_tests::{Worker, wait_until};
use nix::sys::signal::Signal;

use super::support::{
    DEADLINE, MIB, assert_content, client_of, exact_client_of, open, over_s3, put, read_range, sha256_through,
};

const SEED: u64 = 310;
const PAGES: u64 = 64;
/// Longer than what all fetches together may take on a busy machine, so that a wait each cannot pass for one in all.
const FIRST_BYTE: Duration = Duration::from_secs(3);

/// A counter of a worker's metrics.
fn counted(worker: &Worker, sample: &str) -> u64 {
    let metrics = worker.metrics();
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().expect("a number"))
}

#[test]
fn a_hanging_peer_costs_all_fetches_together_one_wait_and_is_asked_again_when_it_answers() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster
        .nodes(2)
        .block_size("4MiB")
        // The service must go on naming the peer that hangs.
        .lease(Duration::from_mins(2))
        .remote_config(&format!(
            "peer_first_byte_timeout = \"{}s\"",
            FIRST_BYTE.as_secs()
        ))
        .start();
    let (path, stored) = put(&bucket, "on the peer", SEED, PAGES * MIB);
    assert_eq!(sha256_through(cluster.worker(1), &path), stored.sha256);
    cluster.wait_until_resident(&path, 1);
    let client = exact_client_of(cluster.worker(0));
    let object = open(&client, &path).expect("it exists");
    // One page each, so that each is a fetch of its own.
    let read_page = |page: u64| {
        let bytes = read_range(&object, page * MIB..(page + 1) * MIB).expect("a peer fails no read");
        assert_content(SEED, page * MIB, &bytes);
    };
    read_page(0);
    assert_eq!(cluster.worker(0).count("/fill_bytes/peer"), MIB);

    cluster.worker(1).process().signal(Signal::SIGSTOP);
    let began = Instant::now();
    let read_page = &read_page;
    thread::scope(|scope| {
        for reader in 0..4 {
            scope.spawn(move || (1..=8).for_each(|nth| read_page(reader * 8 + nth)));
        }
    });
    let took = began.elapsed();
    let worker = cluster.worker(0);
    assert_eq!(
        worker.count("/fill_bytes/peer"),
        MIB,
        "the peer gave nothing more"
    );
    let skips = counted(worker, "cachelet_peer_skips_total{reason=\"silent\"}");
    // Four asked it at the same time; the others need not, but for one that may have tried it again.
    assert!(skips >= 20, "{skips} of 32 fetches left the peer out");
    assert!(took >= FIRST_BYTE, "it was asked");
    assert!(took < 3 * FIRST_BYTE, "32 fetches of four readers took {took:?}");
    println!("32 fetches of four readers took {took:?}, {skips} left the peer out");

    cluster.worker(1).process().signal(Signal::SIGCONT);
    let mut pages = 33..PAGES;
    wait_until(DEADLINE, "the peer is asked again", || {
        wait_until(DEADLINE, "the peer's time is over", || {
            cluster.worker(0).count("/peers_left_out") == 0
        });
        read_page(
            pages
                .next()
                .expect("the peer answers before the pages are all read"),
        );
        cluster.worker(0).count("/fill_bytes/peer") > MIB
    });
    assert_eq!(counted(cluster.worker(0), "cachelet_peers_left_out"), 0);
    let log = cluster.worker(0).process().log();
    assert!(log.contains("the peer does not answer"), "{log}");
    assert!(log.contains("the peer answers again"), "{log}");
}

#[test]
fn a_hanging_service_costs_cold_reads_one_wait_and_peers_are_asked_again_when_it_answers() {
    const OBJECTS: u64 = 20;
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.nodes(2).lease(Duration::from_mins(2)).start();
    // Each is a question of its own.
    let objects: Vec<_> = (0..OBJECTS)
        .map(|index| put(&bucket, &format!("cold {index}"), SEED + index, 100_000))
        .collect();
    let (path, stored) = put(&bucket, "on the peer", SEED, MIB);
    assert_eq!(sha256_through(cluster.worker(1), &path), stored.sha256);
    cluster.wait_until_resident(&path, 1);

    cluster.service_mut().process().signal(Signal::SIGSTOP);
    let began = Instant::now();
    for (path, stored) in &objects {
        assert_eq!(sha256_through(cluster.worker(0), path), stored.sha256);
    }
    let took = began.elapsed();
    let skips = counted(cluster.worker(0), "cachelet_service_skips_total");
    // The first one waited, and perhaps a few that tried again.
    assert!(skips >= OBJECTS - 5, "{skips} of {OBJECTS} fetches did not ask");
    println!("{OBJECTS} cold reads took {took:?}, {skips} did not ask the service");

    cluster.service_mut().process().signal(Signal::SIGCONT);
    wait_until(DEADLINE, "the peer is found again", || {
        let worker = cluster.worker(0);
        let forgotten = client_of(worker).invalidate(&path.parse().expect("a valid path"), None);
        forgotten.expect("the worker serves");
        assert_eq!(sha256_through(worker, &path), stored.sha256);
        worker.count("/fill_bytes/peer") > 0
    });
    let log = cluster.worker(0).process().log();
    assert!(log.contains("the locality service answers again"), "{log}");
}
