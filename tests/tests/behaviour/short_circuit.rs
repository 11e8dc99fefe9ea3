//! A read of what is cached is a `pread` on a held descriptor: no message, no copy through the daemon.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use cachelet_client::{Client, OpenRequest, Options};
use cachelet_tests::{Process, TestDir, wait_until};

use super::support::{
    DEADLINE, MIB, assert_content, client_of, exact_client_of, generation_of, open, options_for, over_s3,
    put, read_all, read_range, sha256_through,
};

/// Tells the child process of the traced test what to read.
const CHILD_SOCKETS: &str = "CACHELET_TEST_TRACED_SOCKETS";
const CHILD_PATH: &str = "CACHELET_TEST_TRACED_PATH";
/// Files that do not exist: asking for them marks a place in the trace.
const BEGIN: &str = "/cachelet-reads-begin";
const END: &str = "/cachelet-reads-end";
const READS: usize = 500;
const SIZE: u64 = 6 * MIB;

#[test]
fn cached_reads_are_as_many_preads_on_the_granted_descriptor_and_no_other_system_call() {
    if let (Some(sockets), Some(path)) = (std::env::var_os(CHILD_SOCKETS), std::env::var_os(CHILD_PATH)) {
        return read_between_marks(Path::new(&sockets), &path);
    }
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().block_size("4MiB").start();
    let (path, _) = put(&bucket, "traced", 50, SIZE);
    let dir = TestDir::new("trace");
    let trace = dir.join("trace");
    // `make test` installs it.
    Process::command("strace")
        // All threads, and descriptors with the paths they were opened by.
        .args(["--follow-forks", "--decode-fds=path", "--output"])
        .arg(&trace)
        .arg(std::env::current_exe().expect("/proc is mounted"))
        .args([
            "short_circuit::cached_reads_are_as_many_preads_on_the_granted_descriptor_and_no_other_system_call",
            "--exact",
            "--test-threads=1",
        ])
        .env(CHILD_SOCKETS, cluster.worker(0).socket_dir())
        .env(CHILD_PATH, &path)
        .run(Duration::from_secs(60))
        .expect_success();

    let trace = std::fs::read_to_string(&trace).expect("strace wrote it");
    let calls: Vec<(&str, &str)> = trace.lines().filter_map(|line| line.split_once(' ')).collect();
    let place = |mark: &str| {
        let found = calls.iter().position(|(_, call)| call.contains(mark));
        found.unwrap_or_else(|| panic!("{mark} is not in the trace"))
    };
    let between = &calls[place(BEGIN) + 1..place(END)];
    let (reader, _) = calls[place(BEGIN)];
    let by_reader: Vec<&str> = between
        .iter()
        .filter(|(thread, _)| *thread == reader)
        .map(|(_, call)| call.trim_start())
        // Where another thread's line cut one in two.
        .filter(|call| !call.contains(" resumed>"))
        .collect();
    let blocks = format!("{}/", cluster.worker(0).granted_dir().display());
    for call in &by_reader {
        assert!(
            call.starts_with("pread64(") && call.contains(&blocks),
            "not a pread of a granted file (in {blocks}): {call}"
        );
    }
    assert_eq!(by_reader.len(), READS, "one system call a read");
    // The client's other thread waits for messages meanwhile; at most it looks at its clock.
    let others = between.len() - by_reader.len();
    assert!(
        others < 20,
        "{others} lines of other threads during {READS} reads"
    );
}

/// In the child: makes the object warm, then reads it between two marks.
fn read_between_marks(sockets: &Path, path: &OsString) {
    let client = Client::new(options_for(sockets));
    let object = open(&client, path.to_str().expect("a test's path")).expect("it exists");
    assert_content(50, 0, &read_all(&object).expect("it can be read"));
    let mut buffer = vec![0; 8192];
    let mut read = Vec::with_capacity(READS * buffer.len());
    // Every read within one block, all over both.
    let offsets: Vec<u64> = (0..READS as u64)
        .map(|n| n * 7919 % (SIZE / 8192) * 8192)
        .collect();
    let _ = std::fs::metadata(BEGIN);
    for offset in &offsets {
        object.read_exact_at(&mut buffer, *offset).expect("it is cached");
        read.extend_from_slice(&buffer);
    }
    let _ = std::fs::metadata(END);
    for (offset, bytes) in offsets.iter().zip(read.chunks(buffer.len())) {
        assert_content(50, *offset, bytes);
    }
}

#[test]
fn a_cold_read_takes_one_round_trip_a_warm_open_one_and_a_warm_read_none() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().start();
    let (path, stored) = put(&bucket, "counted", 51, 4 * MIB);
    let request = OpenRequest::new(path.parse().expect("a valid path")).with_first_range(0..MIB);
    // The second client finds the object warm.
    for state in ["cold", "warm"] {
        let client = exact_client_of(cluster.worker(0));
        client.connect().expect("the worker listens");
        let before = client.stats().round_trips;
        let object = client.open(&request).expect("it exists");
        assert_content(51, 0, &read_range(&object, 0..MIB).expect("it can be read"));
        assert_eq!(
            client.stats().round_trips - before,
            1,
            "{state}: the first bytes come with the opening"
        );
        read_all(&object).expect("it can be read");

        // The descriptor is acknowledged by another thread, in its own time.
        wait_until(DEADLINE, "the grant is acknowledged", || {
            let stats = client.stats();
            stats.messages_sent > stats.round_trips
        });
        let before = client.stats();
        for offset in (0..4 * MIB).step_by(10_007) {
            let end = (offset + 5000).min(4 * MIB);
            assert_content(
                51,
                offset,
                &read_range(&object, offset..end).expect("it is cached"),
            );
        }
        let generation = generation_of(&stored);
        let again = client
            .open(&request.clone().with_generation(generation))
            .expect("it is open");
        assert_content(51, MIB, &read_range(&again, MIB..2 * MIB).expect("it is cached"));
        let after = client.stats();
        assert_eq!(
            after.round_trips, before.round_trips,
            "{state}: warm reads wait for nobody"
        );
        assert_eq!(
            after.messages_sent, before.messages_sent,
            "{state}: warm reads send nothing"
        );
        assert_eq!(after.opens_shared, before.opens_shared + 1);
        assert!(after.local_bytes > before.local_bytes);
        assert_eq!(after.inline_bytes, 0, "{state}: nothing went through the daemon");
    }
}

#[test]
fn a_warm_open_without_a_known_generation_takes_one_round_trip() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().start();
    let (path, _) = put(&bucket, "reopened", 52, 2 * MIB);
    let client = client_of(cluster.worker(0));
    let object = open(&client, &path).expect("it exists");
    assert_content(52, 0, &read_all(&object).expect("it can be read"));
    let before = client.stats().round_trips;
    let again = open(&client, &path).expect("it exists");
    assert_content(52, 0, &read_all(&again).expect("it is cached"));
    assert_eq!(
        client.stats().round_trips - before,
        1,
        "the daemon is asked for the generation, and the descriptor is still there"
    );
}

#[test]
fn inline_readers_and_readers_of_descriptors_get_the_same_bytes() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().block_size("4MiB").start();
    let (path, stored) = put(&bucket, "either way", 53, 9 * MIB + 1);
    let inline = Client::new(Options {
        inline_only: true,
        ..options_for(cluster.worker(0).socket_dir())
    });
    // Cold, then warm.
    for _ in 0..2 {
        let object = open(&inline, &path).expect("it exists");
        assert_content(53, 0, &read_all(&object).expect("it can be read"));
    }
    let stats = inline.stats();
    assert_eq!((stats.grants_received, stats.local_bytes), (0, 0));
    assert_eq!(stats.inline_bytes, 2 * stored.size_bytes);
    assert_eq!(sha256_through(cluster.worker(0), &path), stored.sha256);
}
