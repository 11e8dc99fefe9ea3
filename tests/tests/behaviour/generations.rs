//! An open stream is one generation of an object, whatever happens to the object.

use std::fs;
use std::thread;
use std::time::Duration;

use cachelet_client::{Error, OpenRequest};
use cachelet_protocol::ids::{Etag, Generation};
use cachelet_protocol::wire::BypassReason;
use cachelet_tests::{Cluster, FaultProxy, S3Server, TestDir, deterministic_bytes, wait_until};

use super::support::{
    DEADLINE, MIB, assert_content, client_of, exact_client_of, generation_of, open, open_stored, over_s3,
    put, read_all, read_range, sha256_through,
};

#[track_caller]
fn assert_changed<T>(result: Result<T, Error>, what: &str) {
    match result {
        Err(Error::ObjectChanged { .. }) => {}
        Err(error) => panic!("{what}: {error}"),
        Ok(_) => panic!("{what}: bytes came"),
    }
}

#[test]
fn an_open_after_an_overwrite_reads_the_new_bytes() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().start();
    // Larger, of the same size, smaller, small enough to come inline, and the first content again.
    let mut first = None;
    for (seed, size) in [
        (1, 2 * MIB),
        (2, 3 * MIB),
        (3, 3 * MIB),
        (4, MIB),
        (5, 100),
        (6, 100),
        (1, 2 * MIB),
    ] {
        let (path, stored) = put(&bucket, "overwritten", seed, size);
        let worker = cluster.worker(0);
        assert_eq!(sha256_through(worker, &path), stored.sha256, "content {seed}");
        // A client that lives through all of it sees the same as a fresh one.
        let client = first.get_or_insert_with(|| client_of(worker));
        let object = open(client, &path).expect("it exists");
        assert_eq!(object.generation(), &generation_of(&stored));
        assert_content(seed, 0, &read_all(&object).expect("it can be read"));
    }
}

#[test]
fn a_stream_over_an_overwritten_object_gives_its_own_bytes_or_says_that_the_object_changed() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().block_size("4MiB").start();
    for (key, new_size) in [("same size", 6 * MIB), ("larger", 7 * MIB), ("smaller", 2 * MIB)] {
        let (path, _) = put(&bucket, key, 10, 6 * MIB);
        let client = exact_client_of(cluster.worker(0));
        let stream = open(&client, &path).expect("it exists");
        assert_content(10, 0, &read_range(&stream, 0..100_000).expect("it is there"));

        let (_, stored) = put(&bucket, key, 11, new_size);
        // Page 0 is cached; page 2 is in the same block and is not; page 5 is in a block that does not exist yet.
        assert_content(
            10,
            1000,
            &read_range(&stream, 1000..MIB).expect("page 0 is cached"),
        );
        for page in [2, 5] {
            let range = page * MIB..page * MIB + 4096;
            assert_changed(read_range(&stream, range), &format!("{key}, page {page}"));
        }
        // From a cached page into one that is not: none of it, rather than some of each.
        assert_changed(read_range(&stream, MIB - 10..MIB + 10), key);
        assert_content(
            10,
            0,
            &read_range(&stream, 0..MIB).expect("page 0 is still cached"),
        );
        assert_eq!(sha256_through(cluster.worker(0), &path), stored.sha256, "{key}");
        assert_content(
            10,
            0,
            &read_range(&stream, 0..MIB).expect("an open stream does not move on"),
        );
    }
}

#[test]
fn an_object_overwritten_while_its_pages_are_asked_for_gives_no_page_of_the_new_one() {
    let server = S3Server::shared();
    let (bucket, proxy) = (server.bucket(), FaultProxy::start(server.address()));
    let mut cluster = Cluster::of(&proxy.endpoint())
        .caller_authorization()
        .without_service()
        .block_size("4MiB")
        .start();
    let (path, old) = put(&bucket, "in flight", 15, 4 * MIB);
    let streams: Vec<_> = (0..4)
        .map(|_| open_stored(&exact_client_of(cluster.worker(0)), &path, &old).expect("it exists"))
        .collect();
    let hold = proxy.hold();
    let readers: Vec<_> = (0..)
        .zip(streams)
        .map(|(page, stream)| thread::spawn(move || read_range(&stream, page * MIB..(page + 1) * MIB)))
        .collect();
    wait_until(DEADLINE, "all four fetches wait at the origin", || {
        hold.waiting() == 4
    });
    let (_, new) = put(&bucket, "in flight", 16, 4 * MIB);
    drop(hold);
    for reader in readers {
        assert_changed(
            reader.join().expect("it does not panic"),
            "a page of the old generation",
        );
    }
    // Nothing of the new one was filed under the old one, and the new one is read like any other.
    let stale = open_stored(&client_of(cluster.worker(0)), &path, &old).and_then(|stream| read_all(&stream));
    assert_changed(stale, "the old generation");
    let stream = open_stored(&client_of(cluster.worker(0)), &path, &new).expect("it exists");
    assert_content(16, 0, &read_all(&stream).expect("it can be read"));
}

#[test]
fn a_deleted_object_is_not_found_and_its_open_streams_end_in_a_typed_error() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().start();
    let (path, _) = put(&bucket, "deleted", 20, 3 * MIB);
    let client = exact_client_of(cluster.worker(0));
    let stream = open(&client, &path).expect("it exists");
    assert_content(20, 0, &read_range(&stream, 0..4096).expect("it is there"));
    bucket.delete("deleted");
    assert_content(
        20,
        4096,
        &read_range(&stream, 4096..MIB).expect("page 0 is cached"),
    );
    let missing = read_range(&stream, 2 * MIB..3 * MIB);
    assert!(
        matches!(missing, Err(Error::NotFound(_) | Error::ObjectChanged { .. })),
        "{missing:?}"
    );
    for client in [client, client_of(cluster.worker(0))] {
        let opened = open(&client, &path);
        assert!(matches!(opened, Err(Error::NotFound(_))), "{opened:?}");
    }
}

#[test]
fn only_a_caller_that_presents_the_generation_reads_where_the_caller_proves_its_right() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().caller_authorization().start();
    for (key, size) in [("large", 3 * MIB), ("small", 1000)] {
        let (path, stored) = put(&bucket, key, size, size);
        let client = client_of(cluster.worker(0));
        let refused = |result: Result<_, Error>| {
            assert!(
                matches!(
                    &result,
                    Err(error @ Error::Bypass { reason: BypassReason::GenerationRequired, .. }) if error.should_use_origin()
                ),
                "{result:?}"
            );
        };
        refused(open(&client, &path).map(drop));
        let stream = open_stored(&client, &path, &stored).expect("the generation is its proof");
        assert_content(size, 0, &read_all(&stream).expect("it can be read"));
        // Now that it is cached, and open in this very client.
        refused(open(&client, &path).map(drop));
        refused(open(&client_of(cluster.worker(0)), &path).map(drop));
    }
}

#[test]
fn a_wrong_generation_is_never_answered_with_bytes() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().caller_authorization().start();
    for (key, size) in [("large", 3 * MIB), ("small", 1000)] {
        let (path, stored) = put(&bucket, key, size, size);
        let right = generation_of(&stored);
        // Once before anything is cached, and once after.
        for state in ["cold", "cached"] {
            let wrong = [
                Generation {
                    etag: Etag::new("0123456789abcdef0123456789abcdef").expect("a valid etag"),
                    ..right.clone()
                },
                Generation {
                    size_bytes: size - 1,
                    ..right.clone()
                },
                Generation {
                    size_bytes: size + 1,
                    ..right.clone()
                },
            ];
            for generation in wrong {
                let client = client_of(cluster.worker(0));
                let request = OpenRequest::new(path.parse().expect("a valid path"));
                let read = client
                    .open(
                        &request
                            .with_generation(generation.clone())
                            .with_first_range(0..100),
                    )
                    .and_then(|stream| read_range(&stream, 0..100));
                assert_changed(read, &format!("{key}, {state}, {generation}"));
            }
            let client = client_of(cluster.worker(0));
            let stream = open_stored(&client, &path, &stored).expect("this one is right");
            assert_content(size, 0, &read_all(&stream).expect("it can be read"));
        }
    }
}

#[test]
fn a_file_of_a_directory_store_is_cached_once_it_has_settled_and_is_never_mixed_with_a_later_one() {
    let root = TestDir::new("files");
    let mut cluster = Cluster::of_directory(root.path()).without_service().start();
    let file = root.join("part");
    let path = "file://data/part";
    let client = exact_client_of(cluster.worker(0));
    let write = |seed| fs::write(&file, deterministic_bytes(seed, 3 * MIB)).expect("the directory is ours");
    let open_settled = || {
        let mut opened = None;
        wait_until(Duration::from_secs(20), "the file has settled", || {
            match open(&client, path) {
                Ok(object) => opened = Some(object),
                Err(Error::Bypass {
                    reason: BypassReason::NotCacheable,
                    ..
                }) => {}
                Err(error) => panic!("{error}"),
            }
            opened.is_some()
        });
        opened.expect("wait_until returns when it is open")
    };

    write(30);
    let young = open(&client, path);
    assert!(
        matches!(
            young,
            Err(Error::Bypass {
                reason: BypassReason::NotCacheable,
                ..
            })
        ),
        "{young:?}"
    );
    let stream = open_settled();
    assert_content(30, 0, &read_range(&stream, 0..MIB).expect("it is there"));

    write(31);
    assert_content(30, 0, &read_range(&stream, 0..MIB).expect("page 0 is cached"));
    assert_changed(
        read_range(&stream, MIB..2 * MIB),
        "a page of the file before it was written",
    );
    let after = open_settled();
    assert_content(31, 0, &read_all(&after).expect("it has settled"));
    assert_content(
        30,
        0,
        &read_range(&stream, 0..MIB).expect("an open stream does not move on"),
    );

    fs::remove_file(&file).expect("it is ours");
    let gone = open(&client, path);
    assert!(matches!(gone, Err(Error::NotFound(_))), "{gone:?}");
}
