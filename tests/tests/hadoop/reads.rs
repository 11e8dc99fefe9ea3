//! What is read is what stock S3A reads.

use cachelet_tests::{Cluster, LiteralS3, S3Server, deterministic_bytes};

use crate::java::{Hadoop, Reader, endpoint};

const MIB: u64 = 1 << 20;

#[test]
fn objects_of_every_size_read_as_stock_s3a_reads_them() {
    let server = S3Server::shared();
    for hadoop in Hadoop::ALL {
        let bucket = server.bucket();
        let mut cluster = Cluster::of(&server.endpoint())
            .caller_authorization()
            .without_service()
            .block_size("4MiB")
            .start();
        let mut reader = Reader::of(hadoop, &endpoint(), cluster.worker(0))
            .patient()
            .start(bucket.name());
        let around = |size: u64| [size - 1, size, size + 1];
        let sizes = [
            vec![0, 1, 2, 4095],
            around(16 << 10).to_vec(),
            around(64 << 10).to_vec(),
        ];
        let larger = [MIB, 4 * MIB, 8 * MIB].map(around).concat();
        let sizes = [sizes.concat(), larger].concat();
        for &size in &sizes {
            let key = format!("size-{size}");
            bucket.put(&key, &deterministic_bytes(size, size));
            let said = reader.ask(&["compare", &format!("s3a://{}/{key}", bucket.name())]);
            assert!(
                said[0].starts_with(&format!("{size} ")),
                "{hadoop}, {size} bytes: {said:?}"
            );
        }
        let metrics = reader.metrics();
        assert_eq!(metrics.origin_bytes, 0, "{hadoop}: {metrics:?}");
        assert!(
            metrics.grants > 0 && metrics.cached_bytes > sizes.iter().sum(),
            "{hadoop}: {metrics:?}"
        );
    }
}

#[test]
fn keys_of_every_spelling_read_as_stock_s3a_reads_them() {
    let keys = [
        "with space",
        "plus+plus",
        "50%",
        "a%2Fb",
        "%41",
        "%zz",
        "tilde~",
        "part=1/x",
        "a;b,c@d&e$f!g'h(i)j*k",
        "what?",
        "hash#tag",
        "quote\"d",
        "[brackets]",
        "ключ/桶",
        "e\u{301}",
        "\u{e9}",
        "😀",
        "...",
        ".hidden/..data",
        "no.ending.",
    ];
    let server = LiteralS3::start();
    for hadoop in Hadoop::ALL {
        let bucket = server.bucket();
        let mut cluster = Cluster::of(&server.endpoint())
            .caller_authorization()
            .without_service()
            .start();
        let mut reader = Reader::of(hadoop, &server.endpoint(), cluster.worker(0))
            .patient()
            .start(bucket.name());
        for (seed, key) in (1..).zip(keys) {
            bucket.put(key, &deterministic_bytes(seed, 100_000));
            let said = reader.ask(&["compare", &format!("s3a://{}/{key}", bucket.name())]);
            assert!(said[0].starts_with("100000 "), "{hadoop}, {key:?}: {said:?}");
        }
        let metrics = reader.metrics();
        assert_eq!(metrics.origin_bytes, 0, "{hadoop}: {metrics:?}");
    }
}

#[test]
fn what_is_missing_or_a_directory_fails_as_with_stock_s3a() {
    let server = S3Server::shared();
    for hadoop in Hadoop::ALL {
        let bucket = server.bucket();
        let mut cluster = Cluster::of(&server.endpoint())
            .caller_authorization()
            .without_service()
            .start();
        bucket.put("dir/file", b"x");
        let mut reader = Reader::of(hadoop, &endpoint(), cluster.worker(0))
            .patient()
            .start(bucket.name());
        for name in ["missing", "dir", "dir/", ""] {
            let said = reader.ask(&["compare", &format!("s3a://{}/{name}", bucket.name())]);
            assert_eq!(said[0], "java.io.FileNotFoundException", "{hadoop}, {name:?}");
        }
    }
}

#[test]
fn a_thousand_streams_leave_no_descriptor_and_bytes_are_counted_on_the_readers_thread() {
    let server = S3Server::shared();
    for hadoop in Hadoop::ALL {
        let bucket = server.bucket();
        let mut cluster = Cluster::of(&server.endpoint())
            .caller_authorization()
            .without_service()
            .start();
        let mut reader = Reader::of(hadoop, &endpoint(), cluster.worker(0))
            .patient()
            .start(bucket.name());
        bucket.put("o", &deterministic_bytes(7, 2 * MIB));
        let object = format!("s3a://{}/o", bucket.name());
        reader.ask(&["openclose", &object, "20"]);
        let descriptors =
            |reader: &mut Reader| -> usize { reader.ask(&["descriptors"])[0].parse().expect("a number") };
        let bytes = |reader: &mut Reader| -> u64 { reader.ask(&["bytesread"])[0].parse().expect("a number") };
        let (before, counted) = (descriptors(&mut reader), bytes(&mut reader));
        reader.ask(&["openclose", &object, "1000"]);
        let after = descriptors(&mut reader);
        assert!(
            after <= before + 2,
            "{hadoop}: {before} descriptors became {after}"
        );
        assert_eq!(bytes(&mut reader) - counted, 1000 * 2000, "{hadoop}");
    }
}

#[test]
fn listed_files_are_of_the_class_that_knows_locations() {
    let server = S3Server::shared();
    for hadoop in Hadoop::ALL {
        let bucket = server.bucket();
        bucket.put("t/a", b"abc");
        let mut reader = Reader::alone(hadoop, &endpoint()).start(bucket.name());
        let listed = reader.ask(&["list", &format!("s3a://{}/t", bucket.name())]);
        assert_eq!(listed, ["CacheletFileStatus 3"], "{hadoop}");
    }
}
