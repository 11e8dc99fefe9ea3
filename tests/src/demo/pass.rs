//! Passes over all objects: timed reading, untimed checking.
//!
//! Objects are read in segments into memory that every pass uses again; hashing a segment is outside of the clock, since
//! it costs more than a warm read.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use cachelet_client::{Client, Object, OpenRequest, Options, Target};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::aws::AmazonS3;
use sha2::{Digest, Sha256};

use super::data::DemoObject;
use super::dev::{DevCluster, Fills, Node};
use super::report::Pass;
use super::{Error, Stop};

/// Most bytes in memory.
const SEGMENT_BYTES: u64 = 256 << 20;
/// What readers ask for at once.
const READ_BYTES: usize = 1 << 20;
/// Direct GETs are as large, and as many at once, as the daemon's are for one sequential reader.
const GET_BYTES: usize = 8 << 20;
const GETS_AT_ONCE: usize = 3;

/// A way to read objects.
pub(super) trait Way {
    /// Opens an object; the result reads it.
    fn open<'a>(&'a self, object: &'a DemoObject) -> Result<Box<dyn Opened + 'a>, String>;

    /// Bytes that reached this reader so far, from held descriptors (or local files) and inline.
    fn received(&self) -> (u64, u64);
}

/// An opened object.
pub(super) trait Opened {
    /// Fills `buffer` with the bytes at `offset`.
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), String>;
}

/// Runs passes over the same objects.
pub(super) struct Runner<'a> {
    objects: &'a [DemoObject],
    buffer: Vec<u8>,
    stop: &'a Stop,
}

impl<'a> Runner<'a> {
    pub(super) fn new(objects: &'a [DemoObject], stop: &'a Stop) -> Self {
        let largest = objects.iter().map(|object| object.size).max().unwrap_or(0);
        Self {
            objects,
            // Written to, so that no pass pays for fresh memory.
            buffer: vec![1; largest.min(SEGMENT_BYTES) as usize],
            stop,
        }
    }

    /// Reads every object one `way`. With a `cluster`, its workers say what they fetched meanwhile; without one, what
    /// was read came from the origin itself or from a local file.
    pub(super) fn run(
        &mut self,
        name: &'static str,
        label: &'static str,
        way: &dyn Way,
        cluster: Option<&DevCluster>,
    ) -> Result<Pass, Error> {
        let fills = |cluster: Option<&DevCluster>| cluster.map_or(Ok(Fills::default()), DevCluster::fills);
        let before = fills(cluster)?;
        let (mut opening, mut reading) = (Duration::ZERO, Duration::ZERO);
        let mut wrong = Vec::new();
        for object in self.objects {
            let failed = |message| Error::Read {
                pass: label,
                path: object.path.clone(),
                message,
            };
            let started = Instant::now();
            let opened = way.open(object).map_err(failed)?;
            opening += started.elapsed();
            let mut hasher = Sha256::new();
            let mut offset = 0;
            while offset < object.size {
                self.stop.check()?;
                let segment = (object.size - offset).min(SEGMENT_BYTES);
                let buffer = &mut self.buffer[..segment as usize];
                let started = Instant::now();
                opened.read(buffer, offset).map_err(failed)?;
                reading += started.elapsed();
                hasher.update(&*buffer);
                offset += segment;
            }
            let sha256 = hex::encode(hasher.finalize());
            if sha256 != object.sha256 {
                wrong.push(format!(
                    "WRONG BYTES: {label} read {} as sha256 {sha256}; uploaded was {}",
                    object.path, object.sha256
                ));
            }
        }
        let after = fills(cluster)?;
        let (local_bytes, inline_bytes) = way.received();
        let bytes: u64 = self.objects.iter().map(|object| object.size).sum();
        let direct = cluster.is_none() && local_bytes == 0;
        let seconds = reading.as_secs_f64();
        Ok(Pass {
            name,
            label,
            seconds,
            opening_seconds: opening.as_secs_f64(),
            gb_per_s: bytes as f64 / 1e9 / seconds,
            origin_bytes: if direct {
                bytes
            } else {
                after.origin - before.origin
            },
            peer_bytes: after.peer - before.peer,
            local_bytes,
            inline_bytes,
            sha256_ok: wrong.is_empty(),
            wrong,
        })
    }
}

/// Through one worker of the cluster, as a fresh process.
pub(super) struct ThroughCachelet {
    client: Client,
}

impl ThroughCachelet {
    pub(super) fn of(node: &Node) -> Self {
        let client = Client::new(Options {
            target: Target::Local {
                socket_dir: node.socket_dir.clone(),
            },
            ..Options::default()
        });
        Self { client }
    }
}

impl Way for ThroughCachelet {
    fn open<'a>(&'a self, object: &'a DemoObject) -> Result<Box<dyn Opened + 'a>, String> {
        let path = object
            .path
            .parse()
            .map_err(|error| format!("the path is refused: {error}"))?;
        // Without a first range: all bytes are counted as read, none as opening.
        let opened = self
            .client
            .open(&OpenRequest::new(path))
            .map_err(|error| error.to_string())?;
        if opened.size_bytes() == object.size {
            Ok(Box::new(opened))
        } else {
            Err(format!(
                "it is {} bytes long; {} were uploaded",
                opened.size_bytes(),
                object.size
            ))
        }
    }

    fn received(&self) -> (u64, u64) {
        let stats = self.client.stats();
        (stats.local_bytes, stats.inline_bytes)
    }
}

impl Opened for Object {
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), String> {
        let mut at = offset;
        for piece in buffer.chunks_mut(READ_BYTES) {
            self.read_exact_at(piece, at).map_err(|error| error.to_string())?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

/// From the files that were uploaded.
pub(super) struct LocalFiles {
    read: std::cell::Cell<u64>,
}

impl LocalFiles {
    pub(super) fn new() -> Self {
        Self {
            read: std::cell::Cell::new(0),
        }
    }
}

impl Way for LocalFiles {
    fn open<'a>(&'a self, object: &'a DemoObject) -> Result<Box<dyn Opened + 'a>, String> {
        let file = File::open(&object.file).map_err(|error| error.to_string())?;
        self.read.set(self.read.get() + object.size);
        Ok(Box::new(file))
    }

    fn received(&self) -> (u64, u64) {
        (self.read.get(), 0)
    }
}

impl Opened for File {
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), String> {
        let mut at = offset;
        for piece in buffer.chunks_mut(READ_BYTES) {
            self.read_exact_at(piece, at).map_err(|error| error.to_string())?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

/// From the S3 server, without Cachelet.
pub(super) struct DirectS3 {
    runtime: tokio::runtime::Runtime,
    store: AmazonS3,
}

impl DirectS3 {
    pub(super) fn new(store: AmazonS3) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("a runtime needs a few descriptors");
        Self { runtime, store }
    }
}

impl Way for DirectS3 {
    fn open<'a>(&'a self, object: &'a DemoObject) -> Result<Box<dyn Opened + 'a>, String> {
        let key = object_store::path::Path::from(object.key.as_str());
        self.runtime
            .block_on(self.store.head(&key))
            .map_err(|error| error.to_string())?;
        Ok(Box::new(DirectObject { way: self, key }))
    }

    fn received(&self) -> (u64, u64) {
        (0, 0)
    }
}

struct DirectObject<'a> {
    way: &'a DirectS3,
    key: object_store::path::Path,
}

impl Opened for DirectObject<'_> {
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), String> {
        let pieces = (offset..).step_by(GET_BYTES).zip(buffer.chunks_mut(GET_BYTES));
        let gets = pieces.map(|(start, piece)| async move {
            let bytes = self
                .way
                .store
                .get_range(&self.key, start..start + piece.len() as u64)
                .await?;
            piece.copy_from_slice(&bytes);
            Ok(())
        });
        self.way
            .runtime
            .block_on(
                futures::stream::iter(gets)
                    .buffered(GETS_AT_ONCE)
                    .try_collect::<()>(),
            )
            .map_err(|error: object_store::Error| error.to_string())
    }
}
