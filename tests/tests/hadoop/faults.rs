//! What may happen between two reads of one stream.

use std::time::Duration;

use cachelet_tests::{
    Bucket, Cluster, FaultProxy, S3Server, deterministic_bytes, deterministic_range, sha256_hex, wait_until,
};
use nix::sys::signal::Signal;

use crate::java::{Hadoop, Reader, endpoint};

const MIB: u64 = 1 << 20;
/// How long a daemon that starts may take to serve again.
const PATIENCE: Duration = Duration::from_secs(30);

fn cluster() -> (Bucket, Cluster) {
    let server = S3Server::shared();
    let cluster = Cluster::of(&server.endpoint())
        .caller_authorization()
        .without_service()
        .start();
    (server.bucket(), cluster)
}

fn path(bucket: &Bucket, key: &str) -> String {
    format!("s3a://{}/{key}", bucket.name())
}

#[test]
fn a_stream_whose_daemon_is_killed_and_whose_object_is_overwritten_gives_old_bytes_or_says_so() {
    let size = 12 * MIB;
    for hadoop in Hadoop::ALL {
        let (bucket, mut cluster) = cluster();
        bucket.put("o", &deterministic_bytes(1, size));
        let mut reader = Reader::of(hadoop, &endpoint(), cluster.worker(0)).start(bucket.name());
        reader.ask(&["open", "a", &path(&bucket, "o")]);
        let first = reader.ask(&["pread", "a", "0", "1000"]);
        assert_eq!(first[0], sha256_hex(&deterministic_range(1, 0..1000)), "{hadoop}");

        cluster.worker(0).kill();
        bucket.put("o", &deterministic_bytes(2, size));
        for position in (0..size).step_by(1 << 20) {
            let range = position..position + 4096;
            match reader.try_ask(&["pread", "a", &position.to_string(), "4096"]) {
                Ok(read) => assert_eq!(read[0], sha256_hex(&deterministic_range(1, range)), "{hadoop}"),
                Err(error) => assert!(error.contains("RemoteFileChangedException"), "{hadoop}: {error}"),
            }
        }
        let error = reader
            .try_ask(&["pread", "a", &(size - 4096).to_string(), "4096"])
            .expect_err("nobody has the old object's end any more");
        assert!(error.contains("RemoteFileChangedException"), "{hadoop}: {error}");
        let whole = reader.ask(&["whole", &path(&bucket, "o")]);
        assert_eq!(whole[0], sha256_hex(&deterministic_bytes(2, size)), "{hadoop}");
    }
}

#[test]
fn where_s3a_does_not_detect_changes_a_stream_fails_rather_than_go_on_at_the_origin() {
    for mode in ["none", "warn"] {
        let (bucket, mut cluster) = cluster();
        bucket.put("o", &deterministic_bytes(1, 4 * MIB));
        bucket.put("never-read", &deterministic_bytes(2, 4 * MIB));
        let mut reader = Reader::of(Hadoop::V3_4_2, &endpoint(), cluster.worker(0))
            .setting("fs.s3a.change.detection.mode", mode)
            .start(bucket.name());
        reader.ask(&["open", "a", &path(&bucket, "o")]);
        reader.ask(&["pread", "a", "0", "1000"]);
        cluster.worker(0).kill();
        let error = reader
            .try_ask(&["pread", "a", "3000000", "4096"])
            .expect_err("S3 may have another generation by now");
        assert!(error.contains("RemoteFileChangedException"), "{mode}: {error}");
        // A stream that has delivered nothing yet may be the origin's from its beginning.
        let whole = reader.ask(&["whole", &path(&bucket, "never-read")]);
        assert_eq!(whole[0], sha256_hex(&deterministic_bytes(2, 4 * MIB)), "{mode}");
    }
}

#[test]
fn a_stopped_daemon_delays_a_sequential_reader_by_little_and_changes_no_byte() {
    let size = 48 * MIB;
    for hadoop in Hadoop::ALL {
        let (bucket, mut cluster) = cluster();
        bucket.put("o", &deterministic_bytes(3, size));
        let mut reader = Reader::of(hadoop, &endpoint(), cluster.worker(0)).start(bucket.name());
        reader.ask(&["open", "a", &path(&bucket, "o")]);
        reader.ask(&["pread", "a", "0", "1000"]);
        cluster.worker(0).process().signal(Signal::SIGSTOP);
        let all = reader.ask(&["read", "a", &MIB.to_string()]);
        let more = reader.ask(&["whole", &path(&bucket, "o")]);
        cluster.worker(0).process().signal(Signal::SIGCONT);
        let expected = sha256_hex(&deterministic_bytes(3, size));
        assert_eq!((&all[0], &more[0]), (&expected, &expected), "{hadoop}");
        let longest = Duration::from_millis(all[2].parse().expect("milliseconds"));
        assert!(
            longest < Duration::from_secs(5),
            "{hadoop}: one read took {longest:?}"
        );
        let metrics = reader.metrics();
        assert!(metrics.origin_bytes > 0, "{hadoop}: {metrics:?}");
        assert!(metrics.fallbacks.contains("timeout"), "{hadoop}: {metrics:?}");
    }
}

#[test]
fn positioned_reads_of_many_threads_are_right_while_the_daemon_is_killed_and_started() {
    let size = 24 * MIB;
    for hadoop in Hadoop::ALL {
        let (bucket, mut cluster) = cluster();
        bucket.put("o", &deterministic_bytes(4, size));
        let mut reader = Reader::of(hadoop, &endpoint(), cluster.worker(0)).start(bucket.name());
        reader.ask(&["open", "a", &path(&bucket, "o")]);
        let threads = ["threads", "a", "8", "50"];
        for _ in 0..3 {
            cluster.worker(0).kill();
            reader.ask(&threads);
            std::thread::scope(|scope| {
                let restart = scope.spawn(|| cluster.worker(0).start());
                reader.ask(&threads);
                restart.join().expect("the daemon starts again");
            });
        }
        let metrics = reader.metrics();
        assert!(metrics.origin_bytes > 0, "{hadoop}: {metrics:?}");
        wait_until(PATIENCE, "the daemon that started again serves", || {
            reader.ask(&threads);
            reader.metrics().cached_bytes > 0
        });
    }
}

#[test]
fn a_reader_that_is_interrupted_while_it_waits_is_told_so() {
    let (bucket, mut cluster) = cluster();
    bucket.put("o", &deterministic_bytes(8, 4 * MIB));
    let mut reader = Reader::of(Hadoop::V3_4_2, &endpoint(), cluster.worker(0)).start(bucket.name());
    reader.ask(&["open", "a", &path(&bucket, "o")]);
    reader.ask(&["pread", "a", "0", "1000"]);
    cluster.worker(0).process().signal(Signal::SIGSTOP);
    let error = reader.try_ask(&["interrupted", "a", "3000000", "1000"]);
    cluster.worker(0).process().signal(Signal::SIGCONT);
    let error = error.expect_err("the reader was interrupted");
    assert!(error.starts_with("java.io.InterruptedIOException"), "{error}");
    let read = reader.ask(&["pread", "a", "3000000", "1000"]);
    assert_eq!(read[0], sha256_hex(&deterministic_range(8, 3_000_000..3_001_000)));
}

/// A proxy before the S3 server that counts S3A's requests, and a cluster that knows the store by it.
fn counted() -> (FaultProxy, Bucket, Cluster) {
    let server = S3Server::shared();
    let proxy = FaultProxy::start(server.address());
    let cluster = Cluster::of(&server.endpoint())
        .caller_authorization()
        .without_service()
        .store_config(&format!("endpoint_aliases = [\"{}\"]", proxy.address()))
        .start();
    (proxy, server.bucket(), cluster)
}

#[test]
fn a_status_and_an_open_of_one_path_within_a_second_are_one_request() {
    for hadoop in Hadoop::ALL {
        let (proxy, bucket, mut cluster) = counted();
        bucket.put("o", &deterministic_bytes(5, MIB));
        let object = path(&bucket, "o");
        let mut reader = Reader::of(hadoop, &proxy.endpoint(), cluster.worker(0))
            .patient()
            .start(bucket.name());
        // The first request loads the SDK's classes.
        let _ = reader.try_ask(&["status", &path(&bucket, "missing")]);

        let before = proxy.count(&http::Method::HEAD);
        reader.ask(&["status", &object]);
        reader.ask(&["open", "a", &object]);
        reader.ask(&["pread", "a", "0", "1000"]);
        let heads = || proxy.count(&http::Method::HEAD) - before;
        assert_eq!(heads(), 1, "{hadoop}");
        reader.ask(&["open", "b", &object]);
        assert_eq!(heads(), 2, "{hadoop}: another open asks");
        reader.ask(&["status", &object]);
        assert_eq!(heads(), 3, "{hadoop}: a status always asks");
        let gets = proxy.requests();
        let gets = gets
            .iter()
            .filter(|request| request.method == http::Method::GET && !request.lists());
        assert_eq!(gets.count(), 0, "{hadoop}: the daemon fetched the bytes");
    }
}

#[test]
fn a_task_asks_for_a_file_once_a_second() {
    for hadoop in Hadoop::ALL {
        let (proxy, bucket, mut cluster) = counted();
        for key in ["o", "_log"] {
            bucket.put(key, &deterministic_bytes(5, MIB));
        }
        let mut reader = Reader::of(hadoop, &proxy.endpoint(), cluster.worker(0))
            .patient()
            .start(bucket.name());
        let mut heads = |command: &[&str], key: &str| {
            let before = proxy.count(&http::Method::HEAD);
            reader.ask(&[command, &[&path(&bucket, key), "5"]].concat());
            proxy.count(&http::Method::HEAD) - before
        };
        assert_eq!(heads(&["openclose"], "o"), 5, "{hadoop}: outside of a task");
        assert_eq!(heads(&["task", "openclose"], "o"), 1, "{hadoop}");
        assert_eq!(heads(&["task", "openclose"], "o"), 1, "{hadoop}: another task");
        assert_eq!(
            heads(&["task", "openclose"], "_log"),
            5,
            "{hadoop}: what is overwritten by design"
        );
    }
}

#[test]
fn what_may_be_stale_is_asked_for_once_and_a_replaced_object_is_read_anew() {
    for hadoop in Hadoop::ALL {
        let (proxy, bucket, mut cluster) = counted();
        for key in ["o", "replaced", "_log"] {
            bucket.put(key, &deterministic_bytes(5, MIB));
        }
        let mut reader = Reader::of(hadoop, &proxy.endpoint(), cluster.worker(0))
            .setting(
                "fs.cachelet.max.staleness",
                &format!("s3a://{}/=10m", bucket.name()),
            )
            .start(bucket.name());
        let before = proxy.count(&http::Method::HEAD);
        let heads = || proxy.count(&http::Method::HEAD) - before;
        for _ in 0..3 {
            reader.ask(&["status", &path(&bucket, "o")]);
            reader.ask(&["whole", &path(&bucket, "o")]);
        }
        assert_eq!(heads(), 1, "{hadoop}");
        for _ in 0..3 {
            reader.ask(&["status", &path(&bucket, "_log")]);
        }
        assert_eq!(
            heads(),
            4,
            "{hadoop}: what is overwritten by design is always asked for"
        );

        reader.ask(&["status", &path(&bucket, "replaced")]);
        bucket.put("replaced", &deterministic_bytes(6, MIB));
        let whole = reader.ask(&["whole", &path(&bucket, "replaced")]);
        assert_eq!(whole[0], sha256_hex(&deterministic_bytes(6, MIB)), "{hadoop}");
    }
}

#[test]
fn what_is_held_is_read_from_its_descriptors_while_the_daemon_hangs_and_costs_no_request() {
    let size = 6 * MIB;
    for hadoop in Hadoop::ALL {
        let (proxy, bucket, mut cluster) = counted();
        for key in ["held", "missing", "absent"] {
            bucket.put(key, &deterministic_bytes(9, size));
        }
        let mut reader = Reader::of(hadoop, &proxy.endpoint(), cluster.worker(0))
            .setting("fs.cachelet.request.timeout.min", "3s")
            .setting("fs.cachelet.bypass.period", "10m")
            .start(bucket.name());
        let held = path(&bucket, "held");
        reader.ask(&["open", "a", &held]);
        let expected = sha256_hex(&deterministic_bytes(9, size));
        assert_eq!(reader.ask(&["read", "a", "100000"])[0], expected, "{hadoop}");
        let first = reader.metrics();
        assert_eq!((first.cached_bytes, first.origin_bytes), (size, 0), "{hadoop}");

        cluster.worker(0).process().signal(Signal::SIGSTOP);
        // Two that are not answered in time open the breaker.
        for key in ["missing", "absent"] {
            let whole = reader.ask(&["whole", &path(&bucket, key)]);
            assert_eq!(whole[0], expected, "{hadoop}");
        }
        let bypassing = reader.metrics();
        assert_eq!(bypassing.cached_bytes, size, "{hadoop}: {bypassing:?}");
        assert!(
            bypassing.fallbacks.contains("timeout=2"),
            "{hadoop}: {bypassing:?}"
        );
        proxy.reset();
        let range = sha256_hex(&deterministic_range(9, 70_000..3_070_001));
        let mut delivered = size;
        // The stream that was there before, and one that is opened now.
        reader.ask(&["open", "b", &held]);
        for stream in ["a", "b"] {
            let read = reader.ask(&["pread", stream, "70000", "3000001"]);
            assert_eq!(read[0], range, "{hadoop}");
            delivered += 3_000_001;
            if hadoop == Hadoop::V3_4_2 {
                let read = reader.ask(&["vectored", stream, "70000", "3000001", "3"]);
                assert_eq!(read[0], range, "{hadoop}");
                delivered += 3_000_001;
            }
        }
        let whole = reader.ask(&["whole", &held]);
        assert_eq!(whole[0], expected, "{hadoop}");
        let after = reader.metrics();
        assert_eq!(after.cached_bytes, delivered + size, "{hadoop}: {after:?}");
        assert_eq!(after.origin_bytes, bypassing.origin_bytes, "{hadoop}: {after:?}");
        assert_eq!(after.fallbacks, bypassing.fallbacks, "{hadoop}");
        assert_eq!(
            proxy.count(&http::Method::GET),
            0,
            "{hadoop}: {:?}",
            proxy.requests()
        );
        // What is not held comes from the origin at once.
        reader.ask(&["open", "c", &path(&bucket, "missing")]);
        let read = reader.ask(&["pread", "c", "70000", "3000001"]);
        assert_eq!(read[0], range, "{hadoop}");
        let metrics = reader.metrics();
        assert!(metrics.origin_bytes > after.origin_bytes, "{hadoop}: {metrics:?}");
        assert!(metrics.fallbacks.contains("bypassed"), "{hadoop}: {metrics:?}");
        cluster.worker(0).process().signal(Signal::SIGCONT);
    }
}
