//! The demo: TPC-H read through a two-node cluster in front of a real S3 server, beside direct S3 and plain local files.
//!
//! Every object is read cold, warm, on the other node and after a restart; the SHA-256 of what each pass read is
//! compared with that of what was uploaded. A pass that reads a wrong byte, or takes bytes from the origin where the
//! cluster has them, fails the demo. Then a Spark standalone cluster with an executor on each node runs TPC-H queries on
//! stock S3A, on a cold and on a warm cache ([`spark`]). Everything it starts ends with it, on Ctrl-C and on failure too.

mod data;
mod dev;
mod pass;
mod report;
mod spark;
mod stop;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::dir::{remove_tree, repository_root};
use crate::spark::{Release, TpchError};
use crate::{Bucket, FaultProxy, S3Kind, S3Server};

use data::DemoObject;
use dev::{DevCluster, Store};
use pass::{DirectS3, LocalFiles, Runner, ThroughCachelet};
use report::Report;
pub use stop::Stop;

/// How long the locality service may take to learn what a worker holds.
const RESIDENCY_DEADLINE: Duration = Duration::from_mins(1);
/// What the proxy makes of a loopback S3 server.
const FIRST_BYTE_DELAY: Duration = Duration::from_millis(30);
const BYTES_PER_SECOND_AND_CONNECTION: u64 = 90_000_000;
/// Stages that take longer say so.
const WORTH_TELLING: Duration = Duration::from_secs(1);

/// What to show.
#[derive(Debug, Clone)]
pub struct Settings {
    /// TPC-H scale factor: 1 is about 345 MB of Parquet.
    pub scale_factor: String,
    /// A directory with generated files is the store; no S3 server, no TPC-H.
    pub minimal: bool,
    /// A proxy before the S3 server makes it as far away as S3 is: 30 ms to the first byte, 90 MB/s a connection.
    pub delay: bool,
    /// Which of `tests/spark/tpch/*.sql` Spark runs, in order.
    pub queries: Vec<String>,
    /// Which Spark.
    pub release: Release,
    /// Leave everything running at the end, until Ctrl-C.
    pub keep: bool,
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Ctrl-C, or SIGTERM.
    #[error("interrupted: everything that was started has ended")]
    Interrupted,
    /// A file or directory could not be used.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The TPC-H data could not be made.
    #[error(transparent)]
    Data(#[from] TpchError),
    /// An object could not be read.
    #[error("{pass}: cannot read {path}: {message}")]
    Read {
        /// Which pass.
        pass: &'static str,
        /// Which object.
        path: String,
        /// Why not.
        message: String,
    },
    /// A part of the cluster did not answer as it must.
    #[error("{0}")]
    Cluster(String),
    /// What was read, or where it came from, is wrong.
    #[error("{}", .0.join("\n"))]
    Failed(Vec<String>),
}

impl Error {
    fn file(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

/// Where the demo keeps what it needs while it runs, and its report: `target/demo` of this repository.
fn demo_dir() -> PathBuf {
    repository_root().join("target/demo")
}

/// Runs the demo. Panics, as the harness does, where a process cannot be started.
pub fn run(settings: &Settings, stop: &Stop) -> Result<(), Error> {
    let dir = demo_dir();
    let ground = Ground::prepare(&dir)?;
    let stage = Stage { stop };
    let (objects, store, s3) = if settings.minimal {
        let (objects, store) = minimal_store(&ground, &stage)?;
        (objects, store, None)
    } else {
        let (objects, store, s3) = s3_store(settings, &ground, &stage)?;
        (objects, store, Some(s3))
    };
    let mut cluster = stage.run(
        "starting the locality service and 2 workers (cachelet dev)",
        || DevCluster::start(store, &[], &ground.create("cluster")?, &ground.logs, stop),
    )?;
    let passes = read_every_way(&stage, &objects, s3.as_ref(), &mut cluster)?;
    let mut report = Report::new(settings, &objects, passes, cluster.status_url());
    let path = dir.join("report.json");
    // Written at once: what comes next takes minutes.
    report.write(&path).map_err(Error::file("write", &path))?;
    say(&format!("\n{report}"));
    let mut failures = report.failures();
    if let Some(s3) = &s3 {
        stage.always("stopping that cluster: Spark begins with an empty one", || {
            cluster.end()
        })?;
        let (spark_cluster, runs) = spark::run(settings, &ground, &stage, s3, &objects)?;
        cluster = spark_cluster;
        say(&format!("\n{runs}"));
        failures.extend(runs.failures());
        report.add(runs, cluster.status_url());
        report.write(&path).map_err(Error::file("write", &path))?;
    }
    say(&format!("  all figures: {}", path.display()));
    say(&format!("  status page: {}", cluster.status_url()));
    if settings.keep && failures.is_empty() {
        say(&cluster.how_to_go_on(&objects));
        while stop.check().is_ok() {
            cluster.check_running()?;
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    stage.always("stopping everything", || cluster.end())?;
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Error::Failed(failures))
    }
}

/// The six passes (five without an S3 server), in the table's order.
fn read_every_way(
    stage: &Stage<'_>,
    objects: &[DemoObject],
    s3: Option<&S3>,
    cluster: &mut DevCluster,
) -> Result<Vec<report::Pass>, Error> {
    let mut runner = Runner::new(objects, stage.stop);
    let mut passes = Vec::new();
    if let Some(s3) = s3 {
        // A server that has just started answers slowly, and the first pass is not to pay for all.
        let near = DirectS3::new(s3.bucket.object_store());
        stage.run("warming up the S3 server", || {
            runner.run("warm_up", "warm-up", &near, None)
        })?;
        let direct = DirectS3::new(s3.bucket.through(s3.proxy.address()).object_store());
        passes.push(stage.run("reading from the S3 server directly", || {
            runner.run("direct_s3", "direct S3", &direct, None)
        })?);
    }
    let mut through = |name, label, node, cluster: &DevCluster| {
        stage.run(&format!("reading on {label}"), || {
            let reader = ThroughCachelet::of(cluster.node(node));
            runner.run(name, label, &reader, Some(cluster))
        })
    };
    passes.push(through("cold", "node-1, cold", 0, cluster)?);
    passes.push(through("warm", "node-1, warm", 0, cluster)?);
    stage.run(
        "waiting until the locality service knows what node-1 holds",
        || cluster.wait_until_resident(objects, 0, RESIDENCY_DEADLINE, stage.stop),
    )?;
    passes.push(through("peer", "node-2, from its peer", 1, cluster)?);
    stage.run("restarting the cluster", || cluster.restart(stage.stop))?;
    passes.push(through("restart", "node-1, after a restart", 0, cluster)?);
    passes.push(stage.run("reading the plain local files", || {
        runner.run("local_file", "plain local file", &LocalFiles::new(), None)
    })?);
    Ok(passes)
}

/// The origin: an S3 server, and what stands before it. Everything but the upload goes through the proxy.
struct S3 {
    bucket: Bucket,
    proxy: FaultProxy,
    // Ends last.
    _server: S3Server,
}

fn s3_store(
    settings: &Settings,
    ground: &Ground,
    stage: &Stage<'_>,
) -> Result<(Vec<DemoObject>, Store, S3), Error> {
    let files = stage.run(
        &format!("making TPC-H at scale factor {} (once)", settings.scale_factor),
        || data::tpch(&settings.scale_factor, stage.stop),
    )?;
    let server = stage.run("starting an S3 server (s3proxy)", || {
        Ok(S3Server::start_in(S3Kind::S3Proxy, ground.create("s3")?))
    })?;
    let bucket = server.bucket_named("tpch");
    let objects = stage.run(&format!("uploading {} objects", files.len()), || {
        data::upload(&files, &settings.scale_factor, &bucket, stage.stop)
    })?;
    let proxy = FaultProxy::start_reusing_connections(server.address());
    if settings.delay {
        say(&format!(
            "==> from here on a proxy makes the S3 server as far away as S3 is: {} ms to the first byte, {} MB/s a \
             connection (DELAY=0 turns it off)",
            FIRST_BYTE_DELAY.as_millis(),
            BYTES_PER_SECOND_AND_CONNECTION / 1_000_000
        ));
        proxy.set_first_byte_delay(FIRST_BYTE_DELAY);
        proxy.set_bandwidth(Some(BYTES_PER_SECOND_AND_CONNECTION));
    }
    let store = Store::S3(proxy.endpoint());
    let s3 = S3 {
        bucket,
        proxy,
        _server: server,
    };
    Ok((objects, store, s3))
}

fn minimal_store(ground: &Ground, stage: &Stage<'_>) -> Result<(Vec<DemoObject>, Store), Error> {
    let root = ground.create("store")?;
    let objects = stage.run(
        "writing files of many sizes into a directory, which is the store",
        || data::generate(&root, stage.stop),
    )?;
    Ok((objects, Store::Directory(root)))
}

/// The directory of what runs: fresh at the start, removed at the end however that comes. Logs are beside it, and stay.
struct Ground {
    dir: PathBuf,
    logs: PathBuf,
}

impl Ground {
    fn prepare(demo_dir: &Path) -> Result<Self, Error> {
        let ground = Self {
            dir: demo_dir.join("run"),
            logs: demo_dir.join("logs"),
        };
        for dir in [&ground.dir, &ground.logs] {
            clear(dir)?;
            std::fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
        }
        Ok(ground)
    }

    fn create(&self, name: &str) -> Result<PathBuf, Error> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
        Ok(dir)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.dir) {
            say(&error.to_string());
        }
    }
}

fn clear(dir: &Path) -> Result<(), Error> {
    if dir.exists() {
        remove_tree(dir).map_err(Error::file("remove", dir))?;
    }
    Ok(())
}

/// Says what is going on and how long it took.
struct Stage<'a> {
    stop: &'a Stop,
}

impl Stage<'_> {
    /// Runs one stage, unless the user wants to stop.
    fn run<T>(&self, what: &str, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        self.stop.check()?;
        self.always(what, work)
    }

    /// Runs one stage.
    #[allow(clippy::unused_self, reason = "it reads as its sibling does")]
    fn always<T>(&self, what: &str, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        say(&format!("==> {what}"));
        let started = Instant::now();
        let result = work();
        let took = started.elapsed();
        if result.is_ok() && took >= WORTH_TELLING {
            say(&format!("    {:.1} s", took.as_secs_f64()));
        }
        result
    }
}

fn say(text: &str) {
    // Nobody may be reading any more; that is no reason to stop half-way.
    let _ = writeln!(std::io::stdout(), "{text}");
}
