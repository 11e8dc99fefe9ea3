//! What a read through Cachelet costs beside the same read of a local file, or of the S3 server.
//!
//! Each case alternates with its baseline in one run, so that what else the machine does meets both; medians are
//! compared, and the first repetition (which warms caches) is discarded. Real processes, a real S3 server, and the client
//! that executors use; every way of reading is checked for right bytes before it is timed.

mod cached;
mod cold;
mod machine;
mod measure;
mod opens;
mod report;

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cachelet_client::{Client, Object, OpenRequest, Options, Target};

use cachelet_tests::{Bucket, S3Kind, S3Server, TestDir, Worker, deterministic_bytes, repository_root};

use report::Report;

const MIB: u64 = 1 << 20;
/// The content of the object that the cached cases read.
const SEED: u64 = 1;

/// What to measure.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    /// Small objects and few repetitions: shows that everything works, measures roughly.
    pub(crate) quick: bool,
    /// Only the cases with these names; empty: all.
    pub(crate) only: Vec<String>,
}

/// Every case by name, in the order in which they run.
pub(crate) const CASES: [&str; 7] = [
    "sequential_held_fd",
    "random_4k_pread",
    "inline",
    "sequential_grant_per_8mib",
    "open_warm",
    "cold_vs_direct",
    "cold_vs_direct_loopback",
];

/// Where the report goes: `target/bench/report.json` of this repository.
pub(crate) fn report_path() -> PathBuf {
    repository_root().join("target/bench/report.json")
}

/// Measures, telling `progress` what is going on. Panics where something does not work or a byte is wrong.
pub(crate) fn run(settings: &Settings, progress: &mut dyn FnMut(&str)) -> Report {
    let mut report = Report::begin(settings.quick);
    let wanted = |name: &str| settings.only.is_empty() || settings.only.iter().any(|only| only == name);
    progress("starting an S3 server");
    let bench = Bench::new(settings.quick);
    if CASES[..4].iter().any(|name| wanted(name)) {
        progress(&format!(
            "uploading an object of {} MiB, and writing the local copy beside it",
            bench.size / MIB
        ));
        let data = Data::new(&bench);
        if CASES[..3].iter().any(|name| wanted(name)) {
            progress("bringing it into the cache: blocks of 128 MiB");
            let mut held = cached::Fixture::new(&bench, &data, "128MiB");
            for (name, measure) in [
                (CASES[0], cached::sequential_held_fd as cached::Measure),
                (CASES[1], cached::random_4k_pread),
                (CASES[2], cached::inline),
            ] {
                if wanted(name) {
                    progress(&format!("measuring {name}"));
                    report.add(measure(&mut held));
                }
            }
        }
        if wanted(CASES[3]) {
            progress("bringing it into the cache: blocks of 8 MiB");
            let mut small = cached::Fixture::new(&bench, &data, "8MiB");
            progress(&format!("measuring {}", CASES[3]));
            report.add(cached::sequential_grant_per_8mib(&mut small));
        }
    }
    if wanted(CASES[4]) {
        progress(&format!("measuring {}", CASES[4]));
        report.add(opens::open_warm(&bench));
    }
    if wanted(CASES[5]) || wanted(CASES[6]) {
        progress("uploading an object to read cold");
        let cold = cold::Fixture::new(&bench);
        for (name, measure) in [
            (CASES[5], cold::cold_vs_direct as cold::Measure),
            (CASES[6], cold::cold_vs_direct_loopback),
        ] {
            if wanted(name) {
                progress(&format!("measuring {name}"));
                report.add(measure(&cold));
            }
        }
    }
    report.end();
    report
}

/// What all cases share.
struct Bench {
    server: S3Server,
    bucket: Bucket,
    dir: TestDir,
    /// Of the object that the cached cases read.
    size: u64,
    /// Repetitions of cases that take a fraction of a second each.
    reps: usize,
    /// Repetitions of cases that take a second each.
    slow_reps: usize,
}

impl Bench {
    fn new(quick: bool) -> Self {
        let server = S3Server::start_fresh(S3Kind::S3Proxy);
        let bucket = server.bucket();
        Self {
            server,
            bucket,
            dir: TestDir::new("bench"),
            size: if quick { 128 } else { 512 } * MIB,
            reps: if quick { 5 } else { 15 },
            slow_reps: if quick { 3 } else { 7 },
        }
    }

    fn path_of(&self, key: &str) -> String {
        format!("s3a://{}/{key}", self.bucket.name())
    }
}

/// The object that the cached cases read, and its plain local copy on the cache's file system.
struct Data {
    key: &'static str,
    copy: File,
}

impl Data {
    fn new(bench: &Bench) -> Self {
        let content = deterministic_bytes(SEED, bench.size);
        bench.bucket.put("data", &content);
        let path = bench.dir.join("copy");
        let mut copy = File::create(&path).expect("the directory is ours");
        // In the pieces in which the daemon writes: how the page cache holds a file depends on how it was written.
        for piece in content.chunks(MIB as usize) {
            copy.write_all(piece).expect("the file system has room");
        }
        copy.sync_all().expect("the file system has room");
        Self {
            key: "data",
            copy: File::open(&path).expect("it was just written"),
        }
    }
}

fn options(socket_dir: &Path) -> Options {
    Options {
        target: Target::Local {
            socket_dir: socket_dir.to_owned(),
        },
        ..Options::default()
    }
}

/// A client as a fresh process has it, connected.
fn connected(worker: &Worker, options: impl FnOnce(Options) -> Options) -> Client {
    let client = Client::new(options(self::options(worker.socket_dir())));
    client
        .connect()
        .unwrap_or_else(|error| panic!("cannot connect to {}: {error}", worker.node()));
    client
}

fn open(client: &Client, request: &OpenRequest) -> Object {
    client
        .open(request)
        .unwrap_or_else(|error| panic!("cannot open {}: {error}", request.path))
}

fn request(path: &str) -> OpenRequest {
    OpenRequest::new(
        path.parse()
            .unwrap_or_else(|error| panic!("cannot open {path}: {error}")),
    )
}

/// Reads `range` of `object`, `buffer` by `buffer`.
fn read_range(object: &Object, range: Range<u64>, buffer: &mut [u8]) {
    let mut offset = range.start;
    while offset < range.end {
        let read = object
            .read_at(buffer, offset)
            .unwrap_or_else(|error| panic!("cannot read {object:?} at {offset}: {error}"));
        assert!(read > 0, "reading {object:?} at {offset} gave nothing");
        offset += read as u64;
    }
}

/// Reads `range` of a local file, `buffer` by `buffer`.
fn read_range_of_file(file: &File, range: Range<u64>, buffer: &mut [u8]) {
    let mut offset = range.start;
    while offset < range.end {
        let read = file.read_at(buffer, offset).expect("a local file can be read");
        assert!(read > 0, "the local copy ends at {offset}");
        offset += read as u64;
    }
}

/// Panics unless `object` is, byte by byte, the content named `seed`.
fn check_content(object: &Object, seed: u64) {
    let mut buffer = vec![0; MIB as usize];
    let mut offset = 0;
    while offset < object.size_bytes() {
        let read = object
            .read_at(&mut buffer, offset)
            .unwrap_or_else(|error| panic!("cannot read {object:?} at {offset}: {error}"));
        assert!(read > 0, "reading {object:?} at {offset} gave nothing");
        if let Some(wrong) = cachelet_tests::first_difference(seed, offset, &buffer[..read]) {
            panic!("WRONG BYTE at {wrong} of {object:?}");
        }
        offset += read as u64;
    }
}
