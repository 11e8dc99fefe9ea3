//! Reads objects through this node's daemon without pause, checks every byte, and goes to the origin where the daemon says so or
//! does not answer: what an executor does, in a pod of its own.
//!
//! One thread is a new client for every read, so that it notices each moment without a daemon; another one holds its objects
//! open. A line of JSON a second says what happened so far; nothing that happened is ever taken back.

#![allow(clippy::print_stdout, reason = "its lines are what it is for")]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cachelet_client::{Client, Error, Object, OpenRequest, Options, Target};
use cachelet_protocol::ids::{Etag, Generation, ObjectPath};
use clap::Parser;
use object_store::ObjectStoreExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use rand::Rng;
use serde_json::json;

/// Bytes of one read.
const READ_BYTES: u64 = 256 << 10;
/// Between two reads of a thread: a rollout is watched for minutes, on machines that have other things to do.
const PAUSE: Duration = Duration::from_millis(20);

/// Reads objects through this node's daemon over and over, and checks every byte against what the origin gave at the start.
#[derive(Debug, Parser)]
#[command(name = "steady-reader", version)]
struct Arguments {
    /// Directory of the daemon's socket.
    #[arg(long, default_value = cachelet_client::DEFAULT_SOCKET_DIR)]
    socket_dir: PathBuf,
    /// Go straight to the origin: what a reader without Cachelet would have got.
    #[arg(long)]
    direct: bool,
    /// Objects to read, all of one bucket.
    #[arg(required = true)]
    objects: Vec<ObjectPath>,
}

/// An object, what it holds, and how it is asked for.
struct Known {
    request: OpenRequest,
    key: Path,
    content: Vec<u8>,
}

#[derive(Default)]
struct Counts {
    cached: AtomicU64,
    origin: AtomicU64,
    failed: AtomicU64,
    wrong: AtomicU64,
    local_bytes: AtomicU64,
    inline_bytes: AtomicU64,
    held_cached: AtomicU64,
    held_origin: AtomicU64,
    /// When the new clients' reads were last served by a daemon, and the longest time between two of them.
    served: Mutex<(Option<Instant>, Duration)>,
    last_refusal: Mutex<String>,
}

struct Reader {
    store: AmazonS3,
    runtime: tokio::runtime::Runtime,
    socket_dir: PathBuf,
    objects: Vec<Known>,
    counts: Counts,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let reader = match Reader::start(&arguments) {
        Ok(reader) => reader,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "steady-reader: {message}");
            return ExitCode::FAILURE;
        }
    };
    std::thread::scope(|scope| {
        if arguments.direct {
            scope.spawn(|| reader.read_directly());
        } else {
            scope.spawn(|| reader.read_anew());
            scope.spawn(|| reader.read_held());
        }
        loop {
            std::thread::sleep(Duration::from_secs(1));
            println!("{}", reader.report());
        }
    })
}

impl Reader {
    fn start(arguments: &Arguments) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start a runtime: {error}"))?;
        let bucket = &arguments.objects[0].bucket;
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(bucket.as_str())
            .with_allow_http(true)
            .build()
            .map_err(|error| format!("cannot set up access to {bucket} from AWS_*: {error}"))?;
        let mut objects = Vec::new();
        for path in &arguments.objects {
            let key = Path::from(path.key.as_str());
            let loaded = runtime.block_on(async {
                let reply = store.get(&key).await?;
                let etag = reply.meta.e_tag.clone();
                Ok::<_, object_store::Error>((etag, reply.bytes().await?))
            });
            let (etag, content) = loaded.map_err(|error| format!("cannot load {path}: {error}"))?;
            let etag =
                Etag::from_header(&etag.unwrap_or_default()).map_err(|error| format!("{path}: {error}"))?;
            let generation = Generation {
                etag,
                size_bytes: content.len() as u64,
            };
            objects.push(Known {
                request: OpenRequest::new(path.clone()).with_generation(generation),
                key,
                content: content.to_vec(),
            });
        }
        Ok(Self {
            store,
            runtime,
            socket_dir: arguments.socket_dir.clone(),
            objects,
            counts: Counts::default(),
        })
    }

    fn client(&self) -> Client {
        Client::new(Options {
            target: Target::Local {
                socket_dir: self.socket_dir.clone(),
            },
            connect_timeout: Duration::from_millis(500),
            request_timeout: Duration::from_secs(2),
            readahead_bytes: 0,
            ..Options::default()
        })
    }

    /// Each read by a client of its own.
    fn read_anew(&self) {
        let counts = &self.counts;
        for turn in 0.. {
            let known = &self.objects[turn % self.objects.len()];
            let offset = known.some_offset();
            let client = self.client();
            let request = known
                .request
                .clone()
                .with_first_range(offset..offset + READ_BYTES);
            let read = client
                .open(&request)
                .and_then(|object| known.read(&object, offset));
            match read {
                Ok(right) => {
                    count(&counts.cached, 1);
                    count(&counts.wrong, u64::from(!right));
                    let stats = client.stats();
                    count(&counts.local_bytes, stats.local_bytes);
                    count(&counts.inline_bytes, stats.inline_bytes);
                    let (last, longest) = &mut *counts.served.lock().expect("no holder panics");
                    let now = Instant::now();
                    *longest = (*longest).max(last.map_or(Duration::ZERO, |last| now.duration_since(last)));
                    *last = Some(now);
                }
                Err(error) => self.fall_back(known, offset, &error, &counts.origin),
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Objects stay open as long as they can be read.
    fn read_held(&self) {
        let (client, counts) = (self.client(), &self.counts);
        let mut held: Vec<Option<Object>> = self.objects.iter().map(|_| None).collect();
        for turn in 0.. {
            let index = turn % self.objects.len();
            let (known, place) = (&self.objects[index], &mut held[index]);
            let offset = known.some_offset();
            let opened = match place.take() {
                Some(object) => Ok(object),
                None => client.open(&known.request),
            };
            let read = opened.and_then(|object| {
                let right = known.read(&object, offset)?;
                *place = Some(object);
                Ok(right)
            });
            match read {
                Ok(right) => {
                    count(&counts.held_cached, 1);
                    count(&counts.wrong, u64::from(!right));
                }
                Err(error) => self.fall_back(known, offset, &error, &counts.held_origin),
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn read_directly(&self) {
        for turn in 0.. {
            let known = &self.objects[turn % self.objects.len()];
            self.read_origin(known, known.some_offset(), &self.counts.origin);
            std::thread::sleep(PAUSE);
        }
    }

    /// What the origin could serve is served.
    fn fall_back(&self, known: &Known, offset: u64, error: &Error, served: &AtomicU64) {
        *self.counts.last_refusal.lock().expect("no holder panics") = error.to_string();
        if !error.should_use_origin() {
            return count(&self.counts.failed, 1);
        }
        self.read_origin(known, offset, served);
    }

    fn read_origin(&self, known: &Known, offset: u64, served: &AtomicU64) {
        let range = offset..offset + known.length_at(offset);
        match self.runtime.block_on(self.store.get_range(&known.key, range)) {
            Ok(bytes) => {
                count(served, 1);
                count(
                    &self.counts.wrong,
                    u64::from(bytes[..] != *known.expected(offset)),
                );
            }
            Err(_) => count(&self.counts.failed, 1),
        }
    }

    fn report(&self) -> serde_json::Value {
        let counts = &self.counts;
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (last, longest) = *counts.served.lock().expect("no holder panics");
        json!({
            "cached": now(&counts.cached),
            "origin": now(&counts.origin),
            "failed": now(&counts.failed),
            "wrong": now(&counts.wrong),
            "local_bytes": now(&counts.local_bytes),
            "inline_bytes": now(&counts.inline_bytes),
            "held_cached": now(&counts.held_cached),
            "held_origin": now(&counts.held_origin),
            // A gap that has not ended counts, too.
            "longest_gap_ms": longest.max(last.map_or(Duration::ZERO, |last| last.elapsed())).as_millis() as u64,
            "last_refusal": *counts.last_refusal.lock().expect("no holder panics"),
        })
    }
}

impl Known {
    fn some_offset(&self) -> u64 {
        let last = (self.content.len() as u64).saturating_sub(READ_BYTES);
        rand::rng().random_range(0..=last)
    }

    fn length_at(&self, offset: u64) -> u64 {
        READ_BYTES.min(self.content.len() as u64 - offset)
    }

    fn expected(&self, offset: u64) -> &[u8] {
        &self.content[offset as usize..(offset + self.length_at(offset)) as usize]
    }

    /// Whether a read gave the right bytes.
    fn read(&self, object: &Object, offset: u64) -> Result<bool, Error> {
        let expected = self.expected(offset);
        let mut bytes = vec![0; expected.len()];
        object.read_exact_at(&mut bytes, offset)?;
        Ok(bytes == expected)
    }
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}
