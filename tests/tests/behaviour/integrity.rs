//! No damaged byte reaches a reader: not from the disk, not from a peer, not from the origin.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cachelet_client::{Client, Error, Options};
use cachelet_protocol::wire::Code;
use cachelet_tests::{Bucket, Cluster, Fault, FaultProxy, S3Server, Worker, sha256_hex};

use super::support::{
    MIB, assert_content, client_of, exact_client_of, open, open_stored, options_for, over_s3, put, read_all,
    read_range, sha256_through,
};

/// Where things are in a block file (`daemon/src/store/format.rs`).
const WORDS: u64 = 4096;
const CHECKSUMS: u64 = 8192;
const DATA: u64 = 65536;

/// The block file (of block 0, in tests with one block an object) of a key that no other key contains.
fn block_file(worker: &Worker, key: &str) -> PathBuf {
    let holds = |path: &PathBuf| {
        let header = fs::read(path).expect("a block file can be read");
        header[..WORDS as usize]
            .windows(key.len())
            .any(|window| window == key.as_bytes())
    };
    let found: Vec<_> = worker.block_files().into_iter().filter(holds).collect();
    assert_eq!(found.len(), 1, "block files of {key}: {found:?}");
    found.into_iter().next().expect("there is one")
}

fn flip(path: &Path, at: u64) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("the cache directory is ours");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("within the file");
    byte[0] ^= 0x10;
    file.write_all_at(&byte, at).expect("the disk has room");
}

fn resize(path: &Path, by: i64) {
    let file = File::options()
        .write(true)
        .open(path)
        .expect("the cache directory is ours");
    let length = file.metadata().expect("it is there").len();
    file.set_len(length.checked_add_signed(by).expect("not so short"))
        .expect("the disk has room");
}

#[test]
fn damage_is_found_before_the_first_grant_after_a_crash_set_aside_and_refetched() {
    const SIZE: u64 = 2 * MIB + 100;
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().block_size("4MiB").start();
    let keys = [
        "header",
        "word",
        "checksum",
        "data",
        "truncated",
        "extended",
        "swapped-one",
        "swapped-two",
        "sound",
    ];
    let objects: Vec<_> = (200..)
        .zip(keys)
        .map(|(seed, key)| (put(&bucket, key, seed, SIZE).0, seed))
        .collect();
    for (path, seed) in &objects {
        let client = client_of(cluster.worker(0));
        let object = open(&client, path).expect("it exists");
        assert_content(*seed, 0, &read_all(&object).expect("it can be read"));
    }
    let file = |cluster: &mut Cluster, key| block_file(cluster.worker(0), key);
    let files = keys.map(|key| file(&mut cluster, key));
    cluster.worker(0).kill();
    let [header, word, checksum, data, truncated, extended, one, two, _] = &files;
    flip(header, 40);
    flip(word, WORDS + 8);
    flip(checksum, CHECKSUMS + 64 + 4);
    flip(data, DATA + 2 * MIB + 50);
    resize(truncated, -50);
    resize(extended, 50);
    let aside = one.with_extension("aside");
    fs::rename(one, &aside).expect("the cache directory is ours");
    fs::rename(two, one).expect("the cache directory is ours");
    fs::rename(&aside, two).expect("the cache directory is ours");

    cluster.worker(0).start();
    let worker = cluster.worker(0);
    for (path, seed) in &objects {
        let client = client_of(worker);
        let object = open(&client, path).expect("it exists");
        assert_content(*seed, 0, &read_all(&object).expect("it can be read"));
        // By the time of this read it holds a grant: of what was found sound, or fetched anew.
        assert_content(*seed, 7, &read_range(&object, 7..SIZE).expect("it can be read"));
        assert_eq!(client.stats().inline_bytes, 0, "{path}");
    }
    assert_eq!(worker.count("/cache/quarantined_files"), 8, "{}", worker.status());
    let refetched = worker.count("/fill_bytes/origin");
    assert_eq!(refetched, 8 * SIZE, "the damaged objects, and the sound one not");
}

#[test]
fn a_clean_stop_is_believed_only_about_what_the_header_still_proves() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().block_size("4MiB").start();
    let (path, _) = put(&bucket, "stopped", 220, 2 * MIB);
    assert_content(220, 0, &{
        let client = client_of(cluster.worker(0));
        read_all(&open(&client, &path).expect("it exists")).expect("it can be read")
    });
    cluster.worker(0).stop();
    flip(&block_file(cluster.worker(0), "stopped"), WORDS);
    cluster.worker(0).start();
    let worker = cluster.worker(0);
    let client = client_of(worker);
    let object = open(&client, &path).expect("it exists");
    assert_content(220, 0, &read_all(&object).expect("it can be read"));
    assert_eq!(worker.count("/cache/quarantined_files"), 1);
    assert_eq!(worker.count("/fill_bytes/origin"), 2 * MIB);
}

#[test]
fn a_verifying_client_notices_damage_under_its_descriptor_and_gets_the_right_bytes() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().block_size("4MiB").start();
    let worker = cluster.worker(0);
    for (key, at) in [
        ("data", DATA + MIB + 70_000),
        ("last-byte", DATA + 3 * MIB - 1),
        ("checksum", CHECKSUMS + 64 + 4),
    ] {
        let quarantined = worker.count("/cache/quarantined_files");
        let (path, stored) = put(&bucket, key, at, 3 * MIB);
        let client = Client::new(Options {
            verify_reads: true,
            ..options_for(worker.socket_dir())
        });
        let object = open(&client, &path).expect("it exists");
        assert_content(at, 0, &read_all(&object).expect("it can be read"));
        assert_eq!(client.descriptors_held(), 1);
        flip(&block_file(worker, key), at);
        assert_content(at, 0, &read_all(&object).expect("it can be read"));
        let stats = client.stats();
        assert!(stats.crc_mismatches > 0, "{key}: {stats:?}");
        assert_eq!(worker.count("/cache/quarantined_files"), quarantined + 1, "{key}");
        // Nobody else meets it, verifying or not.
        assert_eq!(sha256_through(worker, &path), stored.sha256, "{key}");
        assert_content(at, 5, &read_range(&object, 5..3 * MIB).expect("it can be read"));
    }
}

#[test]
fn a_held_file_that_ends_too_early_is_read_around() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().block_size("4MiB").start();
    let (path, stored) = put(&bucket, "shortened", 230, 3 * MIB);
    let worker = cluster.worker(0);
    let client = exact_client_of(worker);
    let object = open(&client, &path).expect("it exists");
    assert_content(230, 0, &read_all(&object).expect("it can be read"));
    resize(&block_file(worker, "shortened"), -100_000);
    assert_content(230, 0, &read_all(&object).expect("it can be read"));
    assert!(client.stats().file_failures > 0);
    assert_eq!(worker.count("/cache/quarantined_files"), 1);
    assert_eq!(sha256_through(worker, &path), stored.sha256);
}

#[test]
fn a_peer_never_passes_on_a_damaged_page() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.nodes(2).block_size("4MiB").start();
    let objects: Vec<_> = [
        ("in-data", DATA + MIB + 9),
        ("in-checksums", CHECKSUMS + 68),
        ("in-word", WORDS + 8),
    ]
    .into_iter()
    .map(|(key, at)| (key, at, put(&bucket, key, at, 3 * MIB)))
    .collect();
    for (key, at, (path, stored)) in &objects {
        assert_eq!(sha256_through(cluster.worker(0), path), stored.sha256);
        cluster.wait_until_resident(path, 0);
        flip(&block_file(cluster.worker(0), key), *at);
    }
    for (key, _, (path, stored)) in &objects {
        let before = cluster.worker(1).count("/fill_bytes/origin");
        assert_eq!(sha256_through(cluster.worker(1), path), stored.sha256, "{key}");
        let from_origin = cluster.worker(1).count("/fill_bytes/origin") - before;
        assert!(
            from_origin >= MIB,
            "{key}: the damaged page came from the origin ({from_origin})"
        );
    }
    assert_eq!(cluster.worker(0).count("/cache/quarantined_files"), 3);
    // And where it was damaged it is right again.
    for (key, _, (path, stored)) in &objects {
        assert_eq!(sha256_through(cluster.worker(0), path), stored.sha256, "{key}");
    }
}

/// A cluster behind a proxy, of callers that know the generation: every request at the proxy is a ranged GET.
fn behind_proxy() -> (Bucket, FaultProxy, Cluster) {
    let server = S3Server::shared();
    let proxy = FaultProxy::start(server.address());
    let cluster = Cluster::of(&proxy.endpoint())
        .caller_authorization()
        .without_service()
        .block_size("4MiB")
        .store_config("read_timeout = \"300ms\"\nrequest_timeout = \"3s\"\nretry_timeout = \"1s\"")
        .start();
    (server.bucket(), proxy, cluster)
}

const FAULTS: [Fault; 7] = [
    Fault::WrongEtag,
    Fault::WrongRange,
    Fault::CutBody { after_bytes: 700_001 },
    Fault::Status(500),
    Fault::Status(503),
    Fault::Stall,
    Fault::StallBody { after_bytes: 700_001 },
];

/// Panics unless the error tells what kind of failure it was.
#[track_caller]
fn assert_typed(error: &Error, fault: Fault) {
    let typed = match error {
        Error::ObjectChanged { .. } => fault == Fault::WrongEtag,
        Error::Failed { code, .. } => matches!(code, Code::OriginUnavailable | Code::DeadlineExceeded),
        _ => false,
    };
    assert!(typed, "{fault:?}: {error}");
}

#[test]
fn a_passing_fault_of_the_origin_costs_a_retry_and_never_a_wrong_byte() {
    let (bucket, proxy, mut cluster) = behind_proxy();
    for (number, fault) in FAULTS.into_iter().enumerate() {
        let seed = 240 + number as u64;
        let (path, stored) = put(&bucket, &format!("fault {number}"), seed, 3 * MIB + 1);
        let client = client_of(cluster.worker(0));
        let object = open_stored(&client, &path, &stored).expect("the generation is its proof");
        proxy.inject(1, fault);
        let bytes = read_all(&object).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert_content(seed, 0, &bytes);
        assert_eq!(proxy.clear_faults(), 0, "{fault:?} was met");
        assert_content(seed, 0, &read_all(&object).expect("the origin is well again"));
        // Twice: nothing wrong was kept, or else it would come from the cache now.
        let fresh = client_of(cluster.worker(0));
        let object = open_stored(&fresh, &path, &stored).expect("the generation is its proof");
        assert_eq!(
            sha256_hex(&read_all(&object).expect("it is cached")),
            stored.sha256,
            "{fault:?}"
        );
    }
}

#[test]
fn a_lasting_fault_of_the_origin_ends_in_a_typed_error_and_hits_are_still_served() {
    let (bucket, proxy, mut cluster) = behind_proxy();
    let (warm, warm_stored) = put(&bucket, "warm", 260, 3 * MIB);
    let warm_client = exact_client_of(cluster.worker(0));
    let warm_object = open_stored(&warm_client, &warm, &warm_stored).expect("the generation is its proof");
    assert_content(260, 0, &read_all(&warm_object).expect("it can be read"));
    for (number, fault) in FAULTS.into_iter().enumerate() {
        let seed = 261 + number as u64;
        let (path, stored) = put(&bucket, &format!("outage {number}"), seed, 2 * MIB);
        let client = exact_client_of(cluster.worker(0));
        let object = open_stored(&client, &path, &stored).expect("the generation is its proof");
        proxy.inject(10_000, fault);
        let outcome = read_range(&object, 0..2 * MIB);
        match outcome {
            Err(error) => assert_typed(&error, fault),
            // Cut bodies are taken up where they ended: every piece of them is right.
            Ok(bytes) if matches!(fault, Fault::CutBody { .. } | Fault::StallBody { .. }) => {
                assert_content(seed, 0, &bytes);
            }
            Ok(_) => panic!("{fault:?}: bytes out of nowhere"),
        }
        assert_content(
            260,
            9,
            &read_range(&warm_object, 9..3 * MIB).expect("it is cached"),
        );
        let newcomer = client_of(cluster.worker(0));
        let object_of_newcomer = open_stored(&newcomer, &warm, &warm_stored).expect("it is cached");
        assert_content(260, 0, &read_all(&object_of_newcomer).expect("it is cached"));

        proxy.clear_faults();
        assert_content(seed, 0, &read_all(&object).expect("the origin is well again"));
    }
}
