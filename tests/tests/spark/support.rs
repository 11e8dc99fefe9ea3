//! What these tests share: Spark clusters, tables, and applications that read them.
//!
//! Starting Spark takes long: there is one cluster with two nodes for each release, and a test attaches the daemons of
//! its own cluster to them. Tests of one release wait for each other.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use cachelet_client::{Client, OpenRequest, Options, Target};
use cachelet_tests::spark::{
    Application, EventLog, Release, RunningApplication, SparkCluster, SparkInstall, SparkNode, Summary,
};
use cachelet_tests::{Bucket, Cluster, FaultProxy, S3Server, TestDir, Worker};
use futures::TryStreamExt;
use object_store::ObjectStore;
use serde::Deserialize;
use serde_json::{Value, json};

/// An application on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_mins(5);
/// Rows and files of a table.
pub(crate) const ROWS: u64 = 160_000;
pub(crate) const FILES: usize = 16;
/// Directories of the partitioned table; Spark lists more than 32 in its executors.
pub(crate) const DIRECTORIES: usize = 40;

/// The releases a case runs on: both in the full matrix (`CACHELET_TEST_SPARK=full`), else the one named.
pub(crate) fn releases(otherwise: Release) -> Vec<Release> {
    if std::env::var("CACHELET_TEST_SPARK").is_ok_and(|dose| dose == "full") {
        vec![Release::Spark3, Release::Spark4]
    } else {
        vec![otherwise]
    }
}

/// A Spark cluster whose executors are on 127.0.0.2 and 127.0.0.3.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) spark: SparkCluster,
    dir: TestDir,
    applications: usize,
}

/// The cluster of a release, for as long as the guard lives.
pub(crate) fn ground(release: Release) -> MutexGuard<'static, Ground> {
    static GROUNDS: [OnceLock<Mutex<Ground>>; 2] = [OnceLock::new(), OnceLock::new()];
    GROUNDS[release as usize]
        .get_or_init(|| Mutex::new(Ground::start(release)))
        .lock()
        // What one test broke, the next one notices by itself.
        .unwrap_or_else(PoisonError::into_inner)
}

impl Ground {
    fn start(release: Release) -> Self {
        let dir = TestDir::new("spark");
        let nodes = [0, 1].map(|index| SparkNode::new(index, dir.join(format!("socket-{index}"))));
        let spark = SparkCluster::start(SparkInstall::of(release), &nodes, &dir.create_dir("spark"));
        Self {
            spark,
            dir,
            applications: 0,
        }
    }

    /// Makes the first two workers of a cluster the daemons of the two nodes.
    pub(crate) fn attach(&self, cluster: &mut Cluster) {
        for index in 0..2 {
            self.attach_worker(index, cluster.worker(index).socket_dir());
        }
    }

    fn attach_worker(&self, index: usize, socket_dir: &Path) {
        let link = self.dir.join(format!("socket-{index}"));
        let _ = std::fs::remove_file(&link);
        symlink(socket_dir, &link).expect("the directory is ours");
    }

    /// A directory for one more application.
    pub(crate) fn application_dir(&mut self) -> PathBuf {
        self.applications += 1;
        self.dir.create_dir(format!("application-{}", self.applications))
    }

    /// `tests/spark/reads.py` on stock S3A; a task reads one file of [`Tables`]. The scheduler waits long for the nodes it
    /// prefers: which these are is what is tested, not how busy this machine is.
    pub(crate) fn stock(&self, endpoint: &str) -> Application {
        Application::new(self.spark.install(), self.spark.url(), "reads.py")
            .s3a(endpoint)
            .executors(2)
            .short_lived()
            .setting("spark.locality.wait.node", "20s")
            .setting("spark.sql.files.maxPartitionBytes", "2m")
            .setting("spark.sql.files.openCostInBytes", "2m")
    }

    /// Submits `reads.py` with its steps.
    pub(crate) fn submit(&mut self, application: Application, steps: &Value) -> Reading {
        Reading::submit(application, steps, &self.application_dir())
    }

    /// Runs `reads.py` to its end, which must be a success without a failed task.
    pub(crate) fn run(&mut self, application: Application, steps: &Value) -> Outcome {
        self.submit(application, steps).finish()
    }
}

/// An application of `reads.py` that was submitted.
#[derive(Debug)]
pub(crate) struct Reading {
    application: RunningApplication,
    out: PathBuf,
}

impl Reading {
    fn submit(application: Application, steps: &Value, dir: &Path) -> Self {
        let (steps_file, out) = (dir.join("steps.json"), dir.join("out.json"));
        std::fs::write(&steps_file, steps.to_string()).expect("the directory is ours");
        let application = application
            .arg("--steps")
            .arg(steps_file)
            .arg("--out")
            .arg(&out)
            .submit(dir);
        Self { application, out }
    }

    /// Waits until step `name` waits for its file.
    pub(crate) fn wait_until_waiting(&mut self, name: &str) {
        let waiting = PathBuf::from(format!("{}.{name}.waiting", self.out.display()));
        let what = format!("step {name} waits");
        self.application
            .process()
            .wait_until(DEADLINE, &what, || waiting.exists());
    }

    /// Waits for the end, which must be a success without a failed task.
    pub(crate) fn finish(mut self) -> Outcome {
        self.application
            .process()
            .wait_until(DEADLINE, "the application wrote its result", || self.out.exists());
        let text = std::fs::read(&self.out).expect("it was there a moment ago");
        let status = self.application.process().wait_for_exit(DEADLINE);
        assert!(status.success(), "the application ended with {status}");
        let log = self.application.event_log();
        assert_eq!(log.failures(), Vec::<String>::new());
        let steps: BTreeMap<String, Value> = serde_json::from_slice(&text).expect("reads.py writes JSON");
        let steps = steps
            .into_iter()
            // Steps that write have no result.
            .filter_map(|(name, step)| Some((name, serde_json::from_value(step).ok()?)))
            .collect();
        Outcome {
            steps,
            log,
            summary: self.application.summary(),
        }
    }
}

/// What one step found.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Step {
    pub(crate) rows: u64,
    pub(crate) hash: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) preferred_hosts: Vec<Vec<String>>,
    pub(crate) files: usize,
}

/// What a finished application found and did.
#[derive(Debug)]
pub(crate) struct Outcome {
    steps: BTreeMap<String, Step>,
    pub(crate) log: EventLog,
    pub(crate) summary: Option<Summary>,
}

impl Outcome {
    pub(crate) fn step(&self, name: &str) -> &Step {
        &self.steps[name]
    }

    pub(crate) fn steps(&self) -> impl Iterator<Item = (&str, &Step)> {
        self.steps.iter().map(|(name, step)| (name.as_str(), step))
    }

    /// At least 95 % of a step's reading tasks ran on a node that holds what they read.
    #[track_caller]
    pub(crate) fn assert_node_local(&self, step: &str) {
        let share = self.log.node_local_share(Some(step));
        assert!(
            share.is_some_and(|share| share >= 0.95),
            "{step}: NODE_LOCAL share {share:?} on {:?}, preferred {:?}",
            self.log.scans_by_host(Some(step)),
            self.step(step).preferred_hosts
        );
    }

    /// Tasks wait for hosts on which nobody is: there must be none.
    #[track_caller]
    pub(crate) fn assert_only_hosts_of_executors(&self) {
        let executors = self.log.hosts();
        for (name, step) in self.steps() {
            let preferred: BTreeSet<String> = step.preferred_hosts.iter().flatten().cloned().collect();
            assert!(
                preferred.is_subset(&executors),
                "{name}: hosts {preferred:?}, executors on {executors:?}"
            );
        }
    }

    /// Prints a line a step.
    pub(crate) fn print(&self, what: &str) {
        for (name, step) in self.steps() {
            println!(
                "  {what}: {name}: {:.2} s, NODE_LOCAL {:?}, tasks {:?}, {} input bytes",
                step.seconds,
                self.log.node_local_share(Some(name)),
                self.log.scans_by_host(Some(name)),
                self.log.input_bytes(Some(name)),
            );
        }
        println!("  {what}: {:?}", self.summary);
    }
}

/// The same rows in every format, in a bucket of the shared server.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) bucket: Bucket,
}

impl Tables {
    /// Written once, by stock Spark.
    pub(crate) fn shared() -> &'static Self {
        static TABLES: OnceLock<Tables> = OnceLock::new();
        TABLES.get_or_init(Self::write)
    }

    fn write() -> Self {
        let server = S3Server::shared();
        let tables = Self {
            bucket: server.bucket(),
        };
        let table = |format: &str| json!({"name": format, "write": format, "rows": ROWS, "files": FILES, "path": tables.path(format)});
        let mut partitioned = table("parquet");
        partitioned["name"] = json!("partitions");
        partitioned["path"] = json!(tables.path("partitions"));
        partitioned["partition_by"] = json!(["part"]);
        partitioned["files"] = json!(DIRECTORIES);
        let steps = json!([table("parquet"), table("orc"), table("csv"), partitioned]);
        let dir = TestDir::new("tables");
        let application = Application::new(SparkInstall::of(Release::Spark3), "local[2]", "reads.py")
            .s3a(&server.endpoint())
            .short_lived()
            // Renaming a directory is copying every object of it.
            .setting(
                "spark.hadoop.mapreduce.fileoutputcommitter.algorithm.version",
                "2",
            )
            .setting(
                "spark.hadoop.mapreduce.fileoutputcommitter.marksuccessfuljobs",
                "false",
            );
        Reading::submit(application, &steps, dir.path()).finish();
        tables
    }

    /// `s3a://bucket/table`.
    pub(crate) fn path(&self, table: &str) -> String {
        format!("s3a://{}/{table}", self.bucket.name())
    }

    /// The steps that read everything in every way; the last one changes a setting of the session.
    pub(crate) fn every_way(&self) -> Value {
        let step = |name: &str, format: &str, table: &str| json!({"name": name, "format": format, "path": self.path(table)});
        let mut dsv2 = step("dsv2", "parquet", "parquet");
        dsv2["settings"] = json!({"spark.sql.sources.useV1SourceList": ""});
        json!([
            step("parquet", "parquet", "parquet"),
            step("orc", "orc", "orc"),
            step("csv", "csv", "csv"),
            step("text", "text", "csv"),
            step("rdd", "rdd", "csv"),
            step("partitions", "parquet", "partitions"),
            dsv2,
        ])
    }

    /// The objects of a table, as `s3a://bucket/key`, in the order of their names.
    pub(crate) fn objects(&self, table: &str) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime needs two descriptors");
        let store = self.bucket.object_store();
        let prefix = object_store::path::Path::from(table);
        let listed = runtime
            .block_on(store.list(Some(&prefix)).try_collect::<Vec<_>>())
            .unwrap_or_else(|error| panic!("cannot list {table}: {error}"));
        let mut paths: Vec<String> = listed
            .iter()
            .filter(|object| object.size > 0)
            .map(|object| self.path(object.location.as_ref()))
            .collect();
        paths.sort();
        paths
    }

    /// What such a cluster asks: the shared server through a proxy that counts.
    pub(crate) fn counted() -> FaultProxy {
        FaultProxy::start_reusing_connections(S3Server::shared().address())
    }
}

/// Reads whole objects through one worker, so that it holds them.
pub(crate) fn read_through(worker: &Worker, paths: &[String]) {
    let client = Client::new(Options {
        target: Target::Local {
            socket_dir: worker.socket_dir().to_owned(),
        },
        ..Options::default()
    });
    for path in paths {
        let object = client
            .open(&OpenRequest::new(path.parse().expect("a path of this test")))
            .unwrap_or_else(|error| panic!("cannot open {path}: {error}"));
        let mut content = vec![0; object.size_bytes() as usize];
        object
            .read_exact_at(&mut content, 0)
            .unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
    }
}
