//! The reference that every byte is compared with, and readers that fall back to the origin as applications do.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cachelet_client::{Client, Error, Object, OpenRequest, Options};
use cachelet_protocol::ids::{Etag, Generation};

use crate::{Bucket, deterministic_bytes, first_difference, wait_until};

/// A put that takes longer than this never returns.
const PUT_DEADLINE: Duration = Duration::from_secs(60);

/// What an object held once: what was put under a key and acknowledged with an etag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The key.
    pub key: String,
    /// Where clients find it.
    pub path: String,
    /// Names its content.
    pub seed: u64,
    /// The generation that the origin acknowledged.
    pub generation: Generation,
}

impl Version {
    /// Its size.
    pub fn size_bytes(&self) -> u64 {
        self.generation.size_bytes
    }

    /// Panics unless `bytes` are what it holds from `offset` on.
    #[track_caller]
    pub fn check(&self, offset: u64, bytes: &[u8]) {
        if let Some(at) = first_difference(self.seed, offset, bytes) {
            panic!(
                "a wrong byte at {at} (read from {offset} on, {} bytes) of {self:?}",
                bytes.len()
            );
        }
    }
}

/// Every version of every object of a bucket, and which of them are there now.
#[derive(Debug)]
pub struct Reference {
    bucket: Bucket,
    next_seed: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    versions: HashMap<(String, Etag), Version>,
    current: HashMap<String, Version>,
}

impl Reference {
    /// Of a bucket that nobody else writes to, with contents whose names begin at `first_seed`.
    pub fn of(bucket: Bucket, first_seed: u64) -> Self {
        Self {
            bucket,
            next_seed: AtomicU64::new(first_seed),
            state: Mutex::default(),
        }
    }

    /// The bucket.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// Puts content that was never put before.
    pub fn put(&self, key: &str, size_bytes: u64) -> Version {
        let seed = self.next_seed.fetch_add(1, Ordering::Relaxed);
        let stored = self.bucket.put(key, &deterministic_bytes(seed, size_bytes));
        let version = Version {
            key: key.to_owned(),
            path: format!("s3a://{}/{key}", self.bucket.name()),
            seed,
            generation: Generation {
                etag: Etag::from_header(&stored.etag).expect("the S3 server gives strong etags"),
                size_bytes,
            },
        };
        let mut state = self.state();
        let name = (key.to_owned(), version.generation.etag.clone());
        state.versions.insert(name, version.clone());
        state.current.insert(key.to_owned(), version.clone());
        version
    }

    /// Deletes an object; one that does not exist is fine.
    pub fn delete(&self, key: &str) {
        self.bucket.delete(key);
        self.state().current.remove(key);
    }

    /// What is under a key now.
    pub fn current(&self, key: &str) -> Option<Version> {
        self.state().current.get(key).cloned()
    }

    /// Whether a version is what its key has now.
    pub fn is_current(&self, version: &Version) -> bool {
        self.current(&version.key).as_ref() == Some(version)
    }

    /// The version that somebody says an object is; panics if nobody ever put it.
    #[track_caller]
    pub fn version(&self, key: &str, generation: &Generation) -> Version {
        let name = (key.to_owned(), generation.etag.clone());
        let found = self.state().versions.get(&name).cloned();
        let version = found.unwrap_or_else(|| panic!("nobody ever put {generation} under {key}"));
        assert_eq!(&version.generation, generation, "{key}");
        version
    }

    /// The same for a version that the origin may have and whose put may not have returned yet.
    #[track_caller]
    pub fn wait_for_version(&self, key: &str, generation: &Generation) -> Version {
        let name = (key.to_owned(), generation.etag.clone());
        wait_until(PUT_DEADLINE, "the put returns", || {
            self.state().versions.contains_key(&name)
        });
        self.version(key, generation)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the right bytes came from, or that there are none any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// From the daemon.
    Cached,
    /// From the origin, by the reader's own request.
    Origin,
    /// The object is no longer this version; no byte came.
    Changed,
}

/// A client that goes to the origin when the daemon says so, and compares all it gets.
#[derive(Debug)]
pub struct Reader {
    client: Client,
    reference: Arc<Reference>,
    counts: Mutex<Counts>,
}

/// What a reader's reads came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads from the daemon.
    pub cached: u64,
    /// Reads from the origin.
    pub origin: u64,
    /// Reads of versions that are gone.
    pub changed: u64,
    /// Why reads went to the origin.
    pub reasons: BTreeMap<String, u64>,
}

impl Counts {
    /// Adds another reader's.
    pub fn add(&mut self, other: &Self) {
        self.cached += other.cached;
        self.origin += other.origin;
        self.changed += other.changed;
        for (reason, count) in &other.reasons {
            *self.reasons.entry(reason.clone()).or_default() += count;
        }
    }
}

impl Reader {
    /// A reader of what `reference` knows.
    pub fn new(options: Options, reference: &Arc<Reference>) -> Self {
        Self {
            client: Client::new(options),
            reference: Arc::clone(reference),
            counts: Mutex::default(),
        }
    }

    /// Its client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What its reads came to so far.
    pub fn counts(&self) -> Counts {
        self.lock().clone()
    }

    /// Opens a version that the caller knows.
    pub fn open(&self, version: &Version) -> Result<Object, Error> {
        let request = OpenRequest::new(version.path.parse().expect("a valid path"));
        let object = self
            .client
            .open(&request.with_generation(version.generation.clone()))?;
        assert_eq!(object.generation(), &version.generation, "opened {version:?}");
        Ok(object)
    }

    /// Opens and reads; panics on a wrong byte, and when neither the daemon nor the origin has what should be there.
    #[track_caller]
    pub fn read(&self, version: &Version, range: Range<u64>) -> Outcome {
        let read = self.open(version).and_then(|object| read_range(&object, &range));
        self.settle(version, range, read)
    }

    /// Reads an open object in the same way.
    #[track_caller]
    pub fn read_open(&self, object: &Object, version: &Version, range: Range<u64>) -> Outcome {
        let read = read_range(object, &range);
        self.settle(version, range, read)
    }

    /// Compares what the daemon gave; goes to the origin for what it did not give.
    #[track_caller]
    pub fn settle(&self, version: &Version, range: Range<u64>, read: Result<Vec<u8>, Error>) -> Outcome {
        let error = match read {
            Ok(bytes) => {
                assert_eq!(bytes.len() as u64, range.end - range.start);
                version.check(range.start, &bytes);
                self.lock().cached += 1;
                return Outcome::Cached;
            }
            Err(error) => error,
        };
        if error.should_use_origin() {
            let etag = format!("\"{}\"", version.generation.etag);
            let reply = self
                .reference
                .bucket
                .get_range(&version.key, range.clone(), Some(&etag));
            match reply.status {
                206 => {
                    assert_eq!(reply.body.len() as u64, range.end - range.start);
                    version.check(range.start, &reply.body);
                    let mut counts = self.lock();
                    counts.origin += 1;
                    *counts.reasons.entry(reason(&error)).or_default() += 1;
                    return Outcome::Origin;
                }
                404 | 412 => {}
                status => {
                    panic!("the daemon says {error}, the origin answers {status}: {version:?} {range:?}")
                }
            }
        } else if !matches!(error, Error::ObjectChanged { .. }) {
            panic!("{error}: {version:?} {range:?}");
        }
        self.lock().changed += 1;
        Outcome::Changed
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_range(object: &Object, range: &Range<u64>) -> Result<Vec<u8>, Error> {
    let length = usize::try_from(range.end - range.start).expect("test objects fit in memory");
    let mut bytes = vec![0; length];
    object.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

/// A short name of why the daemon did not serve.
fn reason(error: &Error) -> String {
    match error {
        Error::Bypass { reason, .. } => format!("bypass: {reason}"),
        Error::Failed { code, .. } => format!("failed: {code}"),
        Error::NotFound(_) => "not found".to_owned(),
        Error::PermissionDenied(_) => "permission denied".to_owned(),
        Error::Unavailable(_) => "unavailable".to_owned(),
        Error::Timeout { .. } => "timeout".to_owned(),
        other => other.to_string(),
    }
}
