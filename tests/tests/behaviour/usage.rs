//! What a session is told of the bytes that were fetched because of it.

use cachelet_client::{Client, Object, Options};
use cachelet_tests::{Cluster, TestDir, deterministic_bytes, wait_until};

use super::support::{
    DEADLINE, MIB, assert_content, client_of, exact_client_of, open, options_for, over_s3, put, read_all,
    read_range,
};

/// Origin and peer bytes.
fn told(client: &Client) -> (u64, u64) {
    let filled = client.filled_bytes().expect("the daemon answers");
    let filled = filled.expect("this daemon tells");
    (filled.origin_bytes, filled.peer_bytes)
}

fn assert_reads(object: &Object, seed: u64) {
    assert_content(seed, 0, &read_all(object).expect("it can be read"));
}

/// Waits until a file of a directory store is old enough to be trusted.
fn settled(client: &Client, path: &str) {
    wait_until(DEADLINE, "the file has settled", || open(client, path).is_ok());
}

#[test]
fn a_session_is_told_what_its_own_requests_brought_in_and_from_where() {
    const SIZE: u64 = 5 * MIB + 77;
    const SMALL: u64 = 9_000;
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.nodes(2).block_size("4MiB").start();
    let (path, _) = put(&bucket, "big", 150, SIZE);
    let (small, _) = put(&bucket, "small", 151, SMALL);

    let first = client_of(cluster.worker(0));
    assert_eq!(told(&first), (0, 0));
    assert_reads(&open(&first, &path).expect("it exists"), 150);
    assert_eq!(told(&first), (SIZE, 0));
    assert_reads(&open(&first, &small).expect("it exists"), 151);
    assert_eq!(
        told(&first),
        (SIZE + SMALL, 0),
        "what comes with the opening counts"
    );

    let second = client_of(cluster.worker(0));
    assert_reads(&open(&second, &path).expect("it exists"), 150);
    assert_eq!(told(&second), (0, 0), "it was cached");

    cluster.wait_until_resident(&path, 0);
    let elsewhere = client_of(cluster.worker(1));
    assert_reads(&open(&elsewhere, &path).expect("it exists"), 150);
    assert_eq!(told(&elsewhere), (0, SIZE));
    assert_eq!(told(&first), (SIZE + SMALL, 0), "others do not count");
}

#[test]
fn readahead_and_inline_reads_count_as_much_as_what_was_waited_for() {
    let root = TestDir::new("root");
    for (name, seed) in [("a", 152), ("b", 153)] {
        std::fs::write(root.path().join(name), deterministic_bytes(seed, 3 * MIB))
            .expect("the disk has room");
    }
    let mut cluster = Cluster::of_directory(root.path()).without_service().start();
    let worker = cluster.worker(0);

    let ahead = exact_client_of(worker);
    settled(&ahead, "file://data/b");
    let stream = open(&ahead, "file://data/a").expect("it exists");
    stream.prefetch(MIB..3 * MIB);
    wait_until(DEADLINE, "what was asked for ahead has come", || {
        told(&ahead) == (2 * MIB, 0)
    });
    read_range(&stream, 0..MIB).expect("it can be read");
    assert_eq!(told(&ahead), (3 * MIB, 0));

    let inline = Client::new(Options {
        inline_only: true,
        ..options_for(cluster.worker(0).socket_dir())
    });
    assert_reads(&open(&inline, "file://data/b").expect("it exists"), 153);
    assert_eq!(told(&inline), (3 * MIB, 0));
    assert_reads(&open(&inline, "file://data/a").expect("it exists"), 152);
    assert_eq!(told(&inline), (3 * MIB, 0));
}

#[test]
fn a_session_of_a_restarted_daemon_begins_at_nothing() {
    let root = TestDir::new("root");
    std::fs::write(root.path().join("a"), deterministic_bytes(154, 2 * MIB)).expect("the disk has room");
    let mut cluster = Cluster::of_directory(root.path()).without_service().start();
    let client = client_of(cluster.worker(0));
    settled(&client, "file://data/a");
    assert_reads(&open(&client, "file://data/a").expect("it exists"), 154);
    assert_eq!(told(&client), (2 * MIB, 0));
    cluster.worker(0).kill();
    cluster.worker(0).start();
    wait_until(DEADLINE, "the client connects again", || client.connect().is_ok());
    assert_eq!(told(&client), (0, 0));
}
