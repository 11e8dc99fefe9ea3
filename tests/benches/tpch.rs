//! The contenders, and their turns.
//!
//! Each contender is one long-lived Spark application in local mode: a JVM of its own, with its own proxy before the
//! same S3 server and, for Cachelet, its own daemon, so that every request that is counted is its own. They take turns
//! query by query, in rotating order: whatever else the machine does meanwhile meets all of them. All JVMs are warmed up
//! by one pass over the local files first, which touches neither S3A nor Cachelet.

mod docs;
mod report;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use cachelet_tests::spark::{Application, Release, SparkInstall, TpchSession, tpch_files};
use cachelet_tests::{Bucket, Cluster, FaultProxy, S3Kind, S3Server, TestDir, Traffic};

pub(crate) use report::Report;
use report::{Contender, median};

const FIRST_BYTE_DELAY: Duration = Duration::from_millis(30);
const BYTES_PER_SECOND_AND_CONNECTION: u64 = 90_000_000;

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) scale_factor: String,
    pub(crate) release: Release,
    pub(crate) passes: u32,
    pub(crate) queries: Vec<String>,
}

/// How the tables are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Local,
    S3a { random: bool },
    Cachelet { warm: bool, strict: bool },
}

const CONTENDERS: [(&str, &str, Way); 6] = [
    ("local", "local Parquet", Way::Local),
    ("s3a", "stock S3A", Way::S3a { random: false }),
    (
        "s3a_random",
        "stock S3A, fadvise=random",
        Way::S3a { random: true },
    ),
    (
        "cold",
        "Cachelet, cold",
        Way::Cachelet {
            warm: false,
            strict: true,
        },
    ),
    (
        "warm",
        "Cachelet, warm, max_staleness",
        Way::Cachelet {
            warm: true,
            strict: false,
        },
    ),
    (
        "warm_strict",
        "Cachelet, warm, strict",
        Way::Cachelet {
            warm: true,
            strict: true,
        },
    ),
];

/// One contender while it runs.
struct Running {
    name: &'static str,
    label: &'static str,
    way: Way,
    root: String,
    proxy: Option<FaultProxy>,
    session: TpchSession,
    opening: Vec<f64>,
    seconds: BTreeMap<String, Vec<f64>>,
    hashes: BTreeMap<String, String>,
    /// Of the first measured pass.
    traffic: Traffic,
    // Ends after the session.
    _cluster: Option<Cluster>,
}

/// Measures everything. Panics, as the harness does, where something cannot be started.
pub(crate) fn run(settings: &Settings, progress: &mut dyn FnMut(&str)) -> Report {
    let dir = TestDir::new("tpch");
    progress("preparing Spark, and TPC-H data (once)");
    let install = SparkInstall::of(settings.release);
    let files = tpch_files(&settings.scale_factor);
    let local = files[0].parent().expect("a file is in a directory").to_owned();
    progress("starting an S3 server, and uploading the tables");
    let server = S3Server::start_fresh(S3Kind::S3Proxy);
    let bucket = server.bucket_named("tpch");
    for file in &files {
        let content = std::fs::read(file).expect("it was just made");
        let name = file
            .file_name()
            .expect("a listed file has a name")
            .to_string_lossy();
        bucket.put(&format!("tables/{name}"), &content);
    }
    let local_root = format!("file:{}", local.display());
    let mut contenders: Vec<Running> = CONTENDERS
        .iter()
        .map(|(name, label, way)| {
            progress(&format!("starting Spark {}: {label}", install.version));
            start((name, label, *way), install, &server, &bucket, &local, &dir)
        })
        .collect();

    progress("warming up every JVM on the local files");
    for running in &mut contenders {
        running.session.open(&local_root);
        for query in &settings.queries {
            running.session.run(query);
        }
        progress(&format!("  {}", running.label));
    }
    progress("filling the caches of the warm contenders");
    for running in &mut contenders {
        if matches!(running.way, Way::Cachelet { warm: true, .. }) {
            running.session.open(&running.root);
            for query in &settings.queries {
                running.session.run(query);
            }
        }
    }
    for pass in 0..settings.passes {
        measure(pass, settings, &mut contenders, progress);
    }
    let contenders = contenders.into_iter().map(finish).collect();
    Report::new(settings, install, contenders)
}

/// One pass: everybody opens the tables, then takes turns.
fn measure(pass: u32, settings: &Settings, contenders: &mut [Running], progress: &mut dyn FnMut(&str)) {
    let takes_part =
        |running: &Running| pass == 0 || !matches!(running.way, Way::Cachelet { warm: false, .. });
    let count = contenders.len();
    for running in contenders.iter_mut().filter(|running| takes_part(running)) {
        if let Some(proxy) = &running.proxy {
            proxy.reset();
        }
        running.opening.push(running.session.open(&running.root));
    }
    for (turn, query) in settings.queries.iter().enumerate() {
        let mut line = format!("pass {}: {query}:", pass + 1);
        for place in 0..count {
            let running = &mut contenders[(turn + place) % count];
            if !takes_part(running) {
                continue;
            }
            let result = running.session.run(query);
            write!(line, " {} {:.2} s,", running.name, result.seconds).expect("a string takes everything");
            running
                .seconds
                .entry(query.clone())
                .or_default()
                .push(result.seconds);
            running.hashes.insert(query.clone(), result.sha256);
        }
        progress(line.trim_end_matches(','));
    }
    if pass == 0 {
        for running in contenders.iter_mut() {
            running.traffic = running
                .proxy
                .as_ref()
                .map(FaultProxy::traffic)
                .unwrap_or_default();
        }
    }
}

fn start(
    (name, label, way): (&'static str, &'static str, Way),
    install: &'static SparkInstall,
    server: &S3Server,
    bucket: &Bucket,
    local: &std::path::Path,
    dir: &TestDir,
) -> Running {
    let proxy = (way != Way::Local).then(|| {
        let proxy = FaultProxy::start_reusing_connections(server.address());
        proxy.set_first_byte_delay(FIRST_BYTE_DELAY);
        proxy.set_bandwidth(Some(BYTES_PER_SECOND_AND_CONNECTION));
        proxy
    });
    let s3_root = format!("s3a://{}/tables", bucket.name());
    let mut application =
        Application::new(install, "local[2]", "tpch.py").setting("spark.driver.memory", "2g");
    if let Some(proxy) = &proxy {
        application = application.s3a(&proxy.endpoint());
    }
    let mut cluster = None;
    let root = match way {
        Way::Local => format!("file:{}", local.display()),
        Way::S3a { random } => {
            if random {
                application = application
                    .setting("spark.hadoop.fs.s3a.experimental.input.fadvise", "random")
                    .setting("spark.hadoop.fs.s3a.input.fadvise", "random");
            }
            s3_root
        }
        Way::Cachelet { strict, .. } => {
            let endpoint = proxy.as_ref().expect("only local files have none").endpoint();
            let mut daemons = Cluster::of(&endpoint).caller_authorization().start();
            application = application
                .cachelet()
                .env("CACHELET_SOCKET_DIR", daemons.worker(0).socket_dir());
            if !strict {
                let fresh = format!("{s3_root}/=1h");
                application = application.setting("spark.hadoop.fs.cachelet.max.staleness", &fresh);
            }
            cluster = Some(daemons);
            s3_root
        }
    };
    let own: PathBuf = dir.create_dir(name);
    Running {
        name,
        label,
        way,
        root,
        proxy,
        session: TpchSession::start(application, &own),
        opening: Vec::new(),
        seconds: BTreeMap::new(),
        hashes: BTreeMap::new(),
        traffic: Traffic::default(),
        _cluster: cluster,
    }
}

fn finish(running: Running) -> Contender {
    let (log, summary) = running.session.end();
    Contender {
        name: running.name,
        label: running.label,
        opening_seconds: median(&running.opening),
        seconds: running.seconds.values().map(|seconds| median(seconds)).sum(),
        query_seconds: running
            .seconds
            .iter()
            .map(|(query, seconds)| (query.clone(), median(seconds)))
            .collect(),
        behind_proxy: running.proxy.is_some(),
        traffic: running.traffic,
        failed_tasks: log.failures().len(),
        fallbacks: summary.and_then(|summary| summary.fallbacks),
        hashes: running.hashes,
    }
}
