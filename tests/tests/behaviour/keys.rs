//! Keys that people, Hadoop or HTTP spell in more than one way: the right bytes or a typed refusal, never a neighbour's.

use cachelet_client::{Client, Error, Object, OpenRequest, Options};
use cachelet_protocol::ids::{Etag, Generation, ObjectPath};
use cachelet_protocol::wire::BypassReason;
use cachelet_tests::{Bucket, Cluster, LiteralS3, StoredObject, deterministic_bytes, wait_until};

use super::support::{DEADLINE, client_of, open, options_for, read_all};

/// Above what comes inline with `Opened`, so that every read goes through a block.
const SIZE: u64 = 100_000;

/// What Cachelet does with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Reads,
    Refuses,
}
use Outcome::{Reads, Refuses};

/// A key, what Cachelet does with it, and the keys that it could be taken for.
fn keys() -> Vec<(String, Outcome, Vec<String>)> {
    let longest = format!("long/{}", "k".repeat(1024 - 5));
    let cut = longest[..1023].to_owned();
    let deep = format!("{}end", "d/".repeat(510));
    let table: [(&str, Outcome, &[&str]); 38] = [
        ("plain/part-0.parquet", Reads, &[]),
        ("a b/c d", Reads, &["a+b/c+d", "a%20b/c%20d", "ab/cd"]),
        (" leading and trailing ", Reads, &["leading and trailing"]),
        (
            "date=2026-11-21/hour=07/x",
            Reads,
            &["date%3D2026-11-21/hour%3D07/x"],
        ),
        ("50%", Reads, &["50", "50%25"]),
        ("a%2Fb", Reads, &["a/b", "a%252Fb", "a%2fb"]),
        ("a%2fb", Reads, &["a/b", "a%2Fb"]),
        ("%41", Reads, &["A", "%2541"]),
        ("%zz", Reads, &["zz"]),
        ("%2E%2E/up", Reads, &["../up", "up"]),
        ("a+b", Reads, &["a b", "a%2Bb"]),
        ("~home", Reads, &["%7Ehome", "home"]),
        ("semi;colon,comma:at@&$!'()*", Reads, &["semi"]),
        ("question?mark", Reads, &["question"]),
        ("hash#tag", Reads, &["hash"]),
        ("back\\slash", Reads, &["back/slash"]),
        ("quo\"te<less>{brace}|^`[]", Reads, &["quo%22te"]),
        (
            "größe/naïve",
            Reads,
            &["gro\u{308}ße/nai\u{308}ve", "grosse/naive"],
        ),
        ("gro\u{308}ße", Reads, &["größe"]),
        ("表/データ/파일", Reads, &[]),
        ("🦀/🚀.parquet", Reads, &["%F0%9F%A6%80/%F0%9F%9A%80.parquet"]),
        ("UPPER/lower", Reads, &["upper/lower", "UPPER/LOWER"]),
        ("...", Reads, &[".", ".."]),
        (".hidden/..data", Reads, &["hidden/data", "data"]),
        ("no.ending.", Reads, &["no.ending"]),
        ("a//b", Refuses, &["a/b", "a///b"]),
        ("a///b", Refuses, &["a/b", "a//b"]),
        ("./x", Refuses, &["x"]),
        ("y/./z", Refuses, &["y/z"]),
        ("up/../down", Refuses, &["down", "up/down"]),
        ("../escape", Refuses, &["escape"]),
        ("..", Refuses, &["."]),
        (".", Refuses, &[".."]),
        ("/lead", Refuses, &["lead"]),
        ("//lead", Refuses, &["lead", "/lead"]),
        ("dir/", Refuses, &["dir", "dir//"]),
        ("line\nbreak", Refuses, &["linebreak", "line break", "line"]),
        ("nul\0byte", Refuses, &["nul", "nulbyte"]),
    ];
    let owned = |(key, outcome, neighbours): (&str, Outcome, &[&str])| {
        let neighbours = neighbours.iter().map(|&key| key.to_owned()).collect();
        (key.to_owned(), outcome, neighbours)
    };
    let mut keys: Vec<_> = table.into_iter().map(owned).collect();
    keys.push((longest, Reads, vec![cut]));
    keys.push((deep, Reads, vec!["end".to_owned()]));
    keys
}

/// Puts an object of content that no other key has.
fn put_as(bucket: &Bucket, key: &str, seed: &mut u64) -> (StoredObject, Vec<u8>) {
    *seed += 1;
    let content = deterministic_bytes(*seed, SIZE);
    (bucket.put(key, &content), content)
}

fn path_of(bucket: &Bucket, key: &str) -> String {
    format!("s3a://{}/{key}", bucket.name())
}

fn assert_outcome(key: &str, outcome: Outcome, read: Result<Vec<u8>, Error>, content: &[u8], how: &str) {
    match (outcome, read) {
        (Reads, Ok(bytes)) => assert!(bytes == content, "{key:?}, {how}: other bytes than the object's"),
        (
            Refuses,
            Err(Error::Bypass {
                reason: BypassReason::UnsupportedKey,
                ..
            }),
        ) => {}
        (_, Ok(bytes)) => panic!(
            "{key:?}, {how}: expected a refusal, got {} bytes, {} the object's",
            bytes.len(),
            if bytes == content { "" } else { "NOT " }
        ),
        (_, Err(error)) => panic!("{key:?}, {how}: expected {outcome:?}, got {error}"),
    }
}

#[test]
fn every_key_reads_its_own_bytes_or_is_refused_and_never_its_neighbours() {
    let s3 = LiteralS3::start();
    let bucket = s3.bucket();
    let mut cluster = Cluster::of(&s3.endpoint())
        .block_size("1MiB")
        .quota("1GiB")
        .without_service()
        .start();
    let mut seed = 0;
    for (key, outcome, neighbours) in keys() {
        let (stored, content) = put_as(&bucket, &key, &mut seed);
        for neighbour in &neighbours {
            put_as(&bucket, neighbour, &mut seed);
        }
        let path = path_of(&bucket, &key);
        let parsed: ObjectPath = path.parse().unwrap();
        let with_generation = OpenRequest::new(parsed).with_generation(Generation {
            etag: Etag::from_header(&stored.etag).unwrap(),
            size_bytes: SIZE,
        });
        let through = |client: &Client, request: Option<&OpenRequest>| {
            let object: Object = match request {
                Some(request) => client.open(request)?,
                None => open(client, &path)?,
            };
            read_all(&object)
        };
        let client = client_of(cluster.worker(0));
        let read = through(&client, Some(&with_generation));
        assert_outcome(&key, outcome, read, &content, "cold, generation known");
        let inline = Client::new(Options {
            inline_only: true,
            ..options_for(cluster.worker(0).socket_dir())
        });
        let read = through(&inline, None);
        assert_outcome(
            &key,
            outcome,
            read,
            &content,
            "inline, generation resolved by the daemon",
        );
        let client = client_of(cluster.worker(0));
        let read = through(&client, None);
        assert_outcome(
            &key,
            outcome,
            read,
            &content,
            "warm, generation resolved by the daemon",
        );
    }
}

#[test]
fn neighbours_are_read_right_after_the_keys_they_resemble() {
    let s3 = LiteralS3::start();
    let bucket = s3.bucket();
    let mut cluster = Cluster::of(&s3.endpoint())
        .block_size("1MiB")
        .quota("1GiB")
        .without_service()
        .start();
    // Put all first: whatever were folded together would show as the last one's bytes.
    let mut seed = 0;
    let mut stored: std::collections::BTreeMap<String, Vec<u8>> = std::collections::BTreeMap::new();
    for (key, _, neighbours) in keys() {
        for key in std::iter::once(key).chain(neighbours) {
            let (_, content) = put_as(&bucket, &key, &mut seed);
            stored.insert(key, content);
        }
    }
    let client = client_of(cluster.worker(0));
    let mut read = 0;
    for (key, content) in &stored {
        match open(&client, &path_of(&bucket, key)).and_then(|object| read_all(&object)) {
            Ok(bytes) => {
                assert!(bytes == *content, "{key:?} gives other bytes than its own");
                read += 1;
            }
            Err(error) => assert!(
                matches!(
                    error,
                    Error::Bypass {
                        reason: BypassReason::UnsupportedKey,
                        ..
                    }
                ),
                "{key:?}: {error}"
            ),
        }
    }
    assert!(read > stored.len() / 2, "{read} of {}", stored.len());
}

#[test]
fn no_path_names_a_key_that_no_store_can_have() {
    for path in [
        "s3a://bucket".to_owned(),
        "s3a://bucket/".to_owned(),
        format!("s3a://bucket/{}", "k".repeat(1025)),
        format!("s3a://bucket/{}", "ü".repeat(513)),
        "bucket/key".to_owned(),
        "gs://bucket/key".to_owned(),
        "s3a:///key".to_owned(),
    ] {
        let refused = path.parse::<ObjectPath>().expect_err(&path).to_string();
        assert!(
            refused.starts_with("invalid ") && refused.len() < 250,
            "{refused}"
        );
    }
}

#[test]
fn a_directory_serves_keys_as_files_and_refuses_every_way_out_of_it() {
    let dir = cachelet_tests::TestDir::new("keys");
    let root = dir.create_dir("root");
    let content = deterministic_bytes(1, SIZE);
    let secret = deterministic_bytes(2, SIZE);
    std::fs::write(dir.join("secret"), &secret).unwrap();
    std::fs::create_dir(root.join("a")).unwrap();
    for name in ["a/b", "sp ace", "50%", "a%2Fb", "größe", "🦀"] {
        std::fs::write(root.join(name), &content).unwrap();
    }
    std::os::unix::fs::symlink(dir.join("secret"), root.join("link")).unwrap();
    std::os::unix::fs::symlink(dir.path(), root.join("up")).unwrap();
    let mut cluster = Cluster::of_directory(&root).without_service().start();
    let client = client_of(cluster.worker(0));
    let read = |key: &str| open(&client, &format!("file://data/{key}")).and_then(|object| read_all(&object));
    // A file that changed just now could change again unnoticed, and is not cached.
    wait_until(DEADLINE, "the last file has settled", || read("🦀").is_ok());
    for key in ["a/b", "sp ace", "50%", "a%2Fb", "größe", "🦀"] {
        assert!(read(key).unwrap() == content, "{key}");
    }
    for key in [
        "../secret",
        "a/../../secret",
        "/secret",
        "a//b",
        "./a/b",
        "a/b/",
        "link",
        "up/secret",
        "nul\0",
    ] {
        match read(key) {
            Err(Error::Bypass {
                reason: BypassReason::UnsupportedKey,
                ..
            }) => {}
            other => panic!("{key:?}: {:?}", other.map(|bytes| bytes.len())),
        }
    }
}
