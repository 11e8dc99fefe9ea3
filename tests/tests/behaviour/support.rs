//! Short words for what most tests do.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use cachelet_client::{Client, Error, Object, OpenRequest, Options, Target};
use cachelet_protocol::ids::{Etag, Generation};
use cachelet_tests::{
    Bucket, Cluster, ClusterBuilder, S3Server, StoredObject, Worker, deterministic_bytes, first_difference,
    sha256_hex,
};

pub(crate) const MIB: u64 = 1 << 20;
/// How long something that must happen may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A bucket of the shared S3 server, and a cluster over that server.
pub(crate) fn over_s3() -> (Bucket, ClusterBuilder) {
    let server = S3Server::shared();
    (server.bucket(), Cluster::of(&server.endpoint()))
}

/// Options of a client of the worker whose sockets are in a directory.
pub(crate) fn options_for(socket_dir: &Path) -> Options {
    Options {
        target: Target::Local {
            socket_dir: socket_dir.to_owned(),
        },
        ..Options::default()
    }
}

/// A fresh client process's worth of client: nothing is open, nothing is held.
pub(crate) fn client_of(worker: &Worker) -> Client {
    Client::new(options_for(worker.socket_dir()))
}

pub(crate) fn open(client: &Client, path: &str) -> Result<Object, Error> {
    client.open(&OpenRequest::new(path.parse().expect("a valid path")))
}

/// Every byte of an object, by reads of a mebibyte.
pub(crate) fn read_all(object: &Object) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; usize::try_from(object.size_bytes()).expect("test objects fit in memory")];
    let mut at = 0;
    while at < bytes.len() {
        let end = bytes.len().min(at + (1 << 20));
        let read = object.read_at(&mut bytes[at..end], at as u64)?;
        assert!(read > 0, "a read within the object gave nothing at {at}");
        at += read;
    }
    assert_eq!(
        object.read_at(&mut [0; 16], object.size_bytes())?,
        0,
        "behind the end there is nothing"
    );
    Ok(bytes)
}

/// The SHA-256 of an object as a fresh client of the worker reads it.
pub(crate) fn sha256_through(worker: &Worker, path: &str) -> String {
    let client = client_of(worker);
    let object = open(&client, path).unwrap_or_else(|error| panic!("opening {path}: {error}"));
    let bytes = read_all(&object).unwrap_or_else(|error| panic!("reading {path}: {error}"));
    sha256_hex(&bytes)
}

/// Puts an object of deterministic content, and says where clients find it.
pub(crate) fn put(bucket: &Bucket, key: &str, seed: u64, size: u64) -> (String, StoredObject) {
    let stored = bucket.put(key, &deterministic_bytes(seed, size));
    (format!("s3a://{}/{key}", bucket.name()), stored)
}

/// The generation that the origin acknowledged.
pub(crate) fn generation_of(stored: &StoredObject) -> Generation {
    Generation {
        etag: Etag::from_header(&stored.etag).expect("the S3 server gives strong etags"),
        size_bytes: stored.size_bytes,
    }
}

/// Opens the generation that the origin acknowledged, as a caller does that has its own right to read.
pub(crate) fn open_stored(client: &Client, path: &str, stored: &StoredObject) -> Result<Object, Error> {
    let request = OpenRequest::new(path.parse().expect("a valid path"));
    client.open(&request.with_generation(generation_of(stored)))
}

/// The bytes of an object at `range`, by one read.
pub(crate) fn read_range(object: &Object, range: Range<u64>) -> Result<Vec<u8>, Error> {
    let length = usize::try_from(range.end - range.start).expect("test objects fit in memory");
    let mut bytes = vec![0; length];
    object.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

/// Panics unless `bytes` are the content named `seed` from `offset` on.
#[track_caller]
pub(crate) fn assert_content(seed: u64, offset: u64, bytes: &[u8]) {
    if let Some(at) = first_difference(seed, offset, bytes) {
        panic!("a wrong byte at {at} of the content named {seed}");
    }
}

/// A client without readahead: what it does not read is not fetched.
pub(crate) fn exact_client_of(worker: &Worker) -> Client {
    Client::new(Options {
        readahead_bytes: 0,
        ..options_for(worker.socket_dir())
    })
}
