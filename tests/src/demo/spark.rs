//! TPC-H on a Spark standalone cluster with an executor on each node: stock S3A, then Cachelet with an empty cache, then
//! a fresh application on what that left.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::data::{self, DemoObject};
use super::dev::{DevCluster, Store};
use super::{Error, Ground, S3, Settings, Stage, say};
use crate::Traffic;
use crate::spark::{Application, SparkCluster, SparkInstall, SparkNode, cachelet_jar};
use crate::table::{Table, bytes};

/// Tables of some ten or hundred megabytes are to lie on both nodes, as tables of gigabytes do with blocks of 128 MiB;
/// Spark's splits are as large.
const BLOCK_BYTES: u64 = 32 << 20;
/// An application that takes longer hangs.
const DEADLINE: Duration = Duration::from_mins(15);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Spark's own default: executors have one core each here, and are busy longer than the plug-in would let a task wait.
const LOCALITY_WAIT: &str = "3s";
/// Of file-reading tasks, once the cache is warm.
const NODE_LOCAL_AT_LEAST: f64 = 0.95;
/// Each application's JVMs first run the queries over local files of this scale factor: what compiling costs them, which is
/// more than reading does, is no run's.
const WARM_UP_SCALE: &str = "0.1";
/// The job group of that, as `tests/spark/tpch.py` names it.
const WARM_UP: &str = "warm-up";

/// What `tests/spark/tpch.py` measured.
#[derive(Debug, Clone, Deserialize)]
struct Measured {
    seconds: f64,
    queries: Vec<Query>,
}

#[derive(Debug, Clone, Deserialize)]
struct Query {
    name: String,
    seconds: f64,
    sha256: String,
}

/// One application.
#[derive(Debug, Clone, Serialize)]
struct Run {
    name: &'static str,
    #[serde(skip)]
    label: &'static str,
    /// From the first look at the tables to the last result; starting and warming up the JVMs is not in it.
    seconds: f64,
    /// Bytes of objects that left the S3 server meanwhile, whoever asked for them.
    origin_bytes: u64,
    /// What one worker fetched from the other.
    peer_bytes: Option<u64>,
    /// What executors read from descriptors of cached files.
    local_bytes: Option<u64>,
    /// The share of file-reading tasks that ran on a host they preferred.
    node_local_share: Option<f64>,
    #[serde(skip)]
    traffic: Traffic,
    #[serde(skip)]
    failed_tasks: usize,
    #[serde(skip)]
    queries: Vec<Query>,
}

/// All applications.
#[derive(Debug, Clone, Serialize)]
pub(super) struct SparkRuns {
    spark: String,
    results_equal: bool,
    runs: Vec<Run>,
    /// Seconds, by query and run.
    query_seconds: BTreeMap<String, BTreeMap<&'static str, f64>>,
}

/// Runs all three, and returns the cluster they ran on.
pub(super) fn run(
    settings: &Settings,
    ground: &Ground,
    stage: &Stage<'_>,
    s3: &S3,
    objects: &[DemoObject],
) -> Result<(DevCluster, SparkRuns), Error> {
    // Minutes before it is used.
    cachelet_jar();
    let line = settings.release.line();
    let install = stage.run(&format!("preparing Spark {line} (downloaded once)"), || {
        Ok(SparkInstall::of(settings.release))
    })?;
    let block_bytes = BLOCK_BYTES.to_string();
    let arguments = ["--caller-authorization", "--block-bytes", block_bytes.as_str()];
    let cluster = stage.run(
        &format!(
            "starting an empty cluster with blocks of {} instead of 128 MiB, so that these small tables lie on both nodes",
            bytes(BLOCK_BYTES)
        ),
        || {
            let dir = ground.create("spark-cluster")?;
            DevCluster::start(Store::S3(s3.proxy.endpoint()), &arguments, &dir, &ground.logs, stage.stop)
        },
    )?;
    let nodes: Vec<SparkNode> = (0..)
        .zip(cluster.nodes())
        .map(|(index, node)| SparkNode::new(index, &node.socket_dir))
        .collect();
    let hosts: Vec<&str> = nodes.iter().map(|node| node.host.as_str()).collect();
    let mut spark = stage.run(
        &format!(
            "starting Spark {}: an executor on each of {}",
            install.version,
            hosts.join(", ")
        ),
        || Ok(SparkCluster::start(install, &nodes, &ground.create("spark")?)),
    )?;
    let warm_up = stage.run(
        &format!("making TPC-H at scale factor {WARM_UP_SCALE} to warm up with (once)"),
        || data::tpch(WARM_UP_SCALE, stage.stop),
    )?;
    let warm_up = format!(
        "file:{}",
        warm_up[0].parent().expect("a file is in a directory").display()
    );
    say(&format!(
        "==> {} of TPC-H's 22 queries ({}); each of the three runs is a fresh application with \
         spark.locality.wait.node={LOCALITY_WAIT}, which runs them over local files of scale factor {WARM_UP_SCALE} first, \
         untimed",
        settings.queries.len(),
        settings.queries.join(", ")
    ));
    let root = objects
        .first()
        .and_then(|object| object.path.rsplit_once('/'))
        .map_or("", |(root, _)| root);
    let mut runs = Vec::new();
    for (name, label) in [
        ("s3a", "stock S3A"),
        ("cold", "Cachelet, empty cache"),
        ("warm", "Cachelet, warm cache"),
    ] {
        let run = stage.run(&format!("running TPC-H: {label}"), || {
            let mut application = Application::new(install, spark.url(), "tpch.py")
                .s3a(&s3.proxy.endpoint())
                .executors(nodes.len())
                .setting("spark.locality.wait.node", LOCALITY_WAIT)
                .setting("spark.sql.files.maxPartitionBytes", &block_bytes);
            if name != "s3a" {
                application = application.cachelet();
            }
            let dir = ground.logs.join(format!("spark-{name}"));
            one(
                name,
                label,
                application,
                settings,
                root,
                &warm_up,
                &dir,
                &cluster,
                s3,
                stage,
            )
        })?;
        if let Some(log) = spark.ended_worker() {
            let log = log.display();
            return Err(Error::Cluster(format!(
                "a Spark worker has ended by itself; its log: {log}"
            )));
        }
        runs.push(run);
    }
    Ok((cluster, SparkRuns::new(install, runs)))
}

#[allow(clippy::too_many_arguments, reason = "all of the demo's ground, used once")]
fn one(
    name: &'static str,
    label: &'static str,
    application: Application,
    settings: &Settings,
    root: &str,
    warm_up: &str,
    dir: &Path,
    cluster: &DevCluster,
    s3: &S3,
    stage: &Stage<'_>,
) -> Result<Run, Error> {
    let out = dir.join("measured.json");
    let before = cluster.fills()?;
    s3.proxy.reset();
    let mut running = application
        .arg("run")
        .args(["--root", root, "--queries", &settings.queries.join(",")])
        .args(["--warm-up", warm_up])
        .arg("--out")
        .arg(&out)
        .submit(dir);
    let started = Instant::now();
    while running.process().is_running() {
        stage.stop.check()?;
        if started.elapsed() > DEADLINE {
            let minutes = DEADLINE.as_secs() / 60;
            return Err(Error::Cluster(format!(
                "{label}: Spark did not end within {minutes} minutes"
            )));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    let failed = |why: &str, running: &mut crate::spark::RunningApplication| {
        let log = running.process().log_path().display().to_string();
        Error::Cluster(format!("{label}: {why}; what the application wrote: {log}"))
    };
    let measured = match std::fs::read(&out) {
        Ok(text) => serde_json::from_slice::<Measured>(&text).map_err(|error| error.to_string()),
        Err(_) => Err("Spark ended without a result".to_owned()),
    }
    .map_err(|why| failed(&why, &mut running))?;
    // What nobody waits for any more, such as readahead, is this run's too.
    let mut after = cluster.fills()?;
    while after.in_flight > 0 {
        stage.stop.check()?;
        std::thread::sleep(POLL_INTERVAL);
        after = cluster.fills()?;
    }
    let log = running.event_log().without(WARM_UP);
    let traffic = s3.proxy.traffic();
    let local_bytes = match name {
        "s3a" => Some(0),
        _ => running.summary().and_then(|summary| summary.local_bytes),
    };
    Ok(Run {
        name,
        label,
        seconds: measured.seconds,
        origin_bytes: traffic.data_bytes,
        peer_bytes: Some(after.peer - before.peer),
        local_bytes,
        node_local_share: log.node_local_share(None),
        traffic,
        failed_tasks: log.failures().len(),
        queries: measured.queries,
    })
}

impl SparkRuns {
    fn new(install: &SparkInstall, runs: Vec<Run>) -> Self {
        let hashes =
            |run: &Run| -> Vec<String> { run.queries.iter().map(|query| query.sha256.clone()).collect() };
        let results_equal = runs.iter().all(|run| hashes(run) == hashes(&runs[0]));
        let mut query_seconds: BTreeMap<String, BTreeMap<&'static str, f64>> = BTreeMap::new();
        for run in &runs {
            for query in &run.queries {
                query_seconds
                    .entry(query.name.clone())
                    .or_default()
                    .insert(run.name, query.seconds);
            }
        }
        Self {
            spark: install.version.clone(),
            results_equal,
            runs,
            query_seconds,
        }
    }

    fn run(&self, name: &str) -> Option<&Run> {
        self.runs.iter().find(|run| run.name == name)
    }

    /// How many times faster a warm run is than one on stock S3A.
    fn speed_up(&self) -> Option<f64> {
        Some(self.run("s3a")?.seconds / self.run("warm")?.seconds)
    }

    /// What must not be: a line for each.
    pub(super) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if !self.results_equal {
            failures.push("WRONG RESULTS: not all Spark runs had the same results".to_owned());
        }
        for run in &self.runs {
            if run.failed_tasks > 0 {
                failures.push(format!("{}: {} tasks failed", run.label, run.failed_tasks));
            }
        }
        let Some(warm) = self.run("warm") else {
            return failures;
        };
        if warm.origin_bytes > 0 {
            failures.push(format!(
                "{}: {} bytes came from the origin, though the run before had read the same",
                warm.label, warm.origin_bytes
            ));
        }
        if let Some(stock) = self.run("s3a")
            && warm.traffic.heads * 2 > stock.traffic.heads
        {
            failures.push(format!(
                "{}: {} HEADs, more than half of stock S3A's {}",
                warm.label, warm.traffic.heads, stock.traffic.heads
            ));
        }
        let share = warm.node_local_share.unwrap_or(0.0);
        if share < NODE_LOCAL_AT_LEAST {
            failures.push(format!(
                "{}: {:.1} % of the tasks that read files were NODE_LOCAL; at least {:.0} % is promised",
                warm.label,
                share * 100.0,
                NODE_LOCAL_AT_LEAST * 100.0
            ));
        }
        failures
    }
}

impl fmt::Display for SparkRuns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<u64>| value.map_or_else(|| "not measured".to_owned(), bytes);
        let mut table = Table::new([
            &*format!("Spark {}", self.spark),
            "seconds",
            "origin",
            "peer",
            "local",
            "GET",
            "HEAD",
            "LIST",
            "NODE_LOCAL",
        ]);
        for run in &self.runs {
            table.row([
                run.label.to_owned(),
                format!("{:.1}", run.seconds),
                bytes(run.origin_bytes),
                number(run.peer_bytes),
                number(run.local_bytes),
                run.traffic.gets.to_string(),
                run.traffic.heads.to_string(),
                run.traffic.lists.to_string(),
                run.node_local_share
                    .map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0)),
            ]);
        }
        writeln!(f, "{table}")?;
        let mut table = Table::new(std::iter::once("seconds").chain(self.runs.iter().map(|run| run.label)));
        for (query, seconds) in &self.query_seconds {
            let cells = self.runs.iter().map(|run| {
                seconds
                    .get(run.name)
                    .map_or_else(String::new, |seconds| format!("{seconds:.2}"))
            });
            table.row(std::iter::once(query.clone()).chain(cells));
        }
        writeln!(f, "{table}")?;
        writeln!(
            f,
            "  origin, GET, HEAD, LIST: counted at the S3 server; peer: between the workers; local: read from descriptors\n  \
             of cached files; NODE_LOCAL: tasks that read files, by Spark's event log"
        )?;
        writeln!(
            f,
            "  results {}",
            if self.results_equal {
                "are the same in all three runs"
            } else {
                "DIFFER"
            }
        )?;
        if let Some(speed_up) = self.speed_up() {
            writeln!(f, "  warm is {speed_up:.1} times as fast as stock S3A")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &'static str, origin_bytes: u64, share: f64, sha256: &str) -> Run {
        Run {
            name,
            label: name,
            seconds: if name == "s3a" { 30.0 } else { 10.0 },
            origin_bytes,
            peer_bytes: Some(0),
            local_bytes: None,
            node_local_share: Some(share),
            traffic: Traffic::default(),
            failed_tasks: 0,
            queries: vec![Query {
                name: "q01".to_owned(),
                seconds: 1.0,
                sha256: sha256.to_owned(),
            }],
        }
    }

    fn runs(warm: Run) -> SparkRuns {
        let install = SparkInstall {
            version: "3.5.9".to_owned(),
            scala: String::new(),
            python: "python".into(),
            spark_home: "spark".into(),
            s3a_jars: Vec::new(),
            table_jars: Vec::new(),
        };
        SparkRuns::new(
            &install,
            vec![run("s3a", 9, 0.0, "a"), run("cold", 9, 0.5, "a"), warm],
        )
    }

    #[test]
    fn a_warm_run_must_be_right_local_and_leave_the_origin_alone() {
        let fine = runs(run("warm", 0, 0.95, "a"));
        assert_eq!(fine.failures(), Vec::<String>::new());
        assert!(fine.results_equal);
        assert!((fine.speed_up().unwrap() - 3.0).abs() < 1e-9);
        for wrong in [
            run("warm", 1, 1.0, "a"),
            run("warm", 0, 0.94, "a"),
            run("warm", 0, 1.0, "b"),
            Run {
                failed_tasks: 1,
                ..run("warm", 0, 1.0, "a")
            },
            Run {
                node_local_share: None,
                ..run("warm", 0, 1.0, "a")
            },
            // Stock S3A sent none here.
            Run {
                traffic: Traffic {
                    heads: 1,
                    ..Traffic::default()
                },
                ..run("warm", 0, 1.0, "a")
            },
        ] {
            let failures = runs(wrong.clone()).failures();
            assert_eq!(failures.len(), 1, "{wrong:?}: {failures:?}");
        }
    }

    #[test]
    fn the_report_has_the_documented_fields_and_no_number_that_was_not_measured() {
        let json = serde_json::to_value(runs(run("warm", 0, 1.0, "a"))).unwrap();
        assert_eq!(json["results_equal"], true);
        let expected = serde_json::json!({
            "name": "warm", "seconds": 10.0, "origin_bytes": 0, "peer_bytes": 0, "local_bytes": null,
            "node_local_share": 1.0,
        });
        assert_eq!(json["runs"][2], expected);
        assert_eq!(json["query_seconds"]["q01"]["s3a"], 1.0);
    }
}
