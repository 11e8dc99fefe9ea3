//! When Cachelet cannot serve at all, the file system is stock S3A, and says why once.

use cachelet_tests::{Bucket, Cluster, S3Server, TestDir, deterministic_bytes, sha256_hex};

use crate::java::{Hadoop, Reader, ReaderBuilder, endpoint, native_library};

const SIZE: u64 = 3 << 20;

/// Reads two objects twice, and expects one line of log with `reason`.
#[track_caller]
fn is_plain_s3a_with_one_line(bucket: &Bucket, reader: ReaderBuilder, reason: &str) {
    for (key, seed) in [("x", 1), ("y", 2)] {
        bucket.put(key, &deterministic_bytes(seed, SIZE));
    }
    let mut reader = reader.start(bucket.name());
    for (key, seed) in [("x", 1), ("y", 2), ("x", 1), ("y", 2)] {
        let whole = reader.ask(&["whole", &format!("s3a://{}/{key}", bucket.name())]);
        assert_eq!(whole[0], sha256_hex(&deterministic_bytes(seed, SIZE)));
    }
    let logged = reader.logged();
    assert_eq!(logged.len(), 1, "{logged:#?}");
    assert!(logged[0].contains(reason), "{logged:#?}");
    let metrics = reader.metrics();
    assert_eq!(metrics.cached_bytes, 0, "{metrics:?}");
}

#[test]
fn without_a_daemon_reads_are_s3as_and_the_log_says_so_once() {
    for hadoop in Hadoop::ALL {
        is_plain_s3a_with_one_line(
            &S3Server::shared().bucket(),
            Reader::alone(hadoop, &endpoint()),
            "unavailable",
        );
    }
}

#[test]
fn a_library_that_cannot_be_loaded_leaves_plain_s3a() {
    let dir = TestDir::new("lib");
    let broken = dir.join("other-architecture.so");
    let mut bytes = std::fs::read(native_library()).expect("the library is readable");
    // ELF's e_machine: 0xf3 is RISC-V.
    bytes[18] = 0xf3;
    std::fs::write(&broken, bytes).expect("the directory is ours");
    for hadoop in Hadoop::ALL {
        let reader = Reader::without_daemon(hadoop, &endpoint())
            .setting("fs.cachelet.native.path", &broken.display().to_string());
        is_plain_s3a_with_one_line(&S3Server::shared().bucket(), reader, "other-architecture.so");
    }
}

#[test]
fn a_library_file_that_is_missing_leaves_plain_s3a() {
    let reader = Reader::without_daemon(Hadoop::V3_4_2, &endpoint())
        .setting("fs.cachelet.native.path", "/nonexistent/libcachelet_jni.so");
    is_plain_s3a_with_one_line(
        &S3Server::shared().bucket(),
        reader,
        "/nonexistent/libcachelet_jni.so",
    );
}

#[test]
fn a_directory_in_which_nothing_may_be_unpacked_leaves_plain_s3a() {
    let reader = Reader::without_daemon(Hadoop::V3_4_2, &endpoint())
        .option("-Dcachelet.native.path=")
        .setting("fs.cachelet.native.dir", "/proc/nowhere");
    is_plain_s3a_with_one_line(&S3Server::shared().bucket(), reader, "fs.cachelet.native.dir");
}

#[test]
fn a_daemon_without_this_store_leaves_plain_s3a() {
    let mut elsewhere = Cluster::of("http://127.0.0.1:9").without_service().start();
    let reader = Reader::of(Hadoop::V3_3_4, &endpoint(), elsewhere.worker(0));
    is_plain_s3a_with_one_line(&S3Server::shared().bucket(), reader, "unknown_store");
}

#[test]
fn switched_off_it_is_stock_s3a() {
    let reader = Reader::alone(Hadoop::V3_4_2, &endpoint()).setting("fs.cachelet.enabled", "false");
    is_plain_s3a_with_one_line(&S3Server::shared().bucket(), reader, "fs.cachelet.enabled=false");
}

#[test]
fn what_is_encrypted_with_the_clients_own_key_is_left_to_s3a() {
    for hadoop in Hadoop::ALL {
        let mut cluster = with_daemon();
        let bucket = S3Server::shared().bucket();
        bucket.put("x", &deterministic_bytes(1, SIZE));
        let mut reader = Reader::of(hadoop, &endpoint(), cluster.worker(0))
            .setting("fs.s3a.encryption.algorithm", "SSE-C")
            .setting(
                "fs.s3a.encryption.key",
                "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
            )
            .start(bucket.name());
        // S3A may refuse to send such a key without TLS. In any case it is S3A's to read, or to refuse.
        let _ = reader.try_ask(&["whole", &format!("s3a://{}/x", bucket.name())]);
        let metrics = reader.metrics();
        assert!(metrics.fallbacks.contains("encryption"), "{hadoop}: {metrics:?}");
        assert_eq!(
            (metrics.cached_bytes, metrics.grants),
            (0, 0),
            "{hadoop}: {metrics:?}"
        );
        let logged = reader.logged();
        assert_eq!(logged.len(), 1, "{hadoop}: {logged:#?}");
        assert!(logged[0].contains("SSE-C"), "{hadoop}: {logged:#?}");
    }
}

#[test]
fn files_of_the_magic_committer_are_left_to_s3a() {
    for hadoop in Hadoop::ALL {
        let mut cluster = with_daemon();
        let bucket = S3Server::shared().bucket();
        let mut reader = Reader::of(hadoop, &endpoint(), cluster.worker(0)).start(bucket.name());
        for (key, cached) in [("t/__magic/job/task/part", 0), ("t/magic/part", SIZE)] {
            bucket.put(key, &deterministic_bytes(3, SIZE));
            let before = reader.metrics().cached_bytes;
            let whole = reader.ask(&["whole", &format!("s3a://{}/{key}", bucket.name())]);
            assert_eq!(whole[0], sha256_hex(&deterministic_bytes(3, SIZE)));
            assert_eq!(reader.metrics().cached_bytes - before, cached, "{hadoop}: {key}");
        }
    }
}

fn with_daemon() -> Cluster {
    Cluster::of(&endpoint())
        .caller_authorization()
        .without_service()
        .start()
}
