//! One application, from its settings to its event log.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::events::EventLog;
use super::install::{SparkInstall, text};
use crate::dir::repository_root;
use crate::{ACCESS_KEY, Process, REGION, SECRET_KEY};

/// What to submit, and with which settings. The defaults are small, quiet, on loopback, and write an event log.
#[derive(Debug, Clone)]
pub struct Application {
    install: &'static SparkInstall,
    program: PathBuf,
    args: Vec<OsString>,
    settings: BTreeMap<String, String>,
    jars: Vec<PathBuf>,
    env: Vec<(String, OsString)>,
}

/// The jar that users add; `make jar` builds it.
pub fn cachelet_jar() -> PathBuf {
    let jar = repository_root().join(format!(
        "target/jars/cachelet-spark-{}.jar",
        env!("CARGO_PKG_VERSION")
    ));
    assert!(
        jar.exists(),
        "cannot find {}: build it first with make jar",
        jar.display()
    );
    jar
}

impl Application {
    /// A program of `tests/spark`, on `master`.
    pub fn new(install: &'static SparkInstall, master: &str, program: &str) -> Self {
        let application = Self {
            install,
            program: repository_root().join("tests/spark").join(program),
            args: Vec::new(),
            settings: BTreeMap::new(),
            jars: Vec::new(),
            env: Vec::new(),
        };
        application.settings([
            ("spark.master", master),
            ("spark.driver.host", "127.0.0.1"),
            ("spark.driver.bindAddress", "127.0.0.1"),
            ("spark.driver.memory", "1g"),
            ("spark.executor.memory", "1g"),
            ("spark.executor.cores", "1"),
            ("spark.ui.enabled", "false"),
            ("spark.ui.showConsoleProgress", "false"),
            ("spark.log.level", "WARN"),
            ("spark.sql.shuffle.partitions", "4"),
            // One plain file: releases differ in what they do otherwise.
            ("spark.eventLog.enabled", "true"),
            ("spark.eventLog.compress", "false"),
            ("spark.eventLog.rolling.enabled", "false"),
        ])
    }

    /// Nothing runs before an executor is on each of so many nodes: which node reads what depends on no race.
    pub fn executors(self, count: usize) -> Self {
        let cores = count.to_string();
        self.settings([
            ("spark.cores.max", cores.as_str()),
            ("spark.scheduler.minRegisteredResourcesRatio", "1.0"),
            ("spark.scheduler.maxRegisteredResourcesWaitingTime", "120s"),
        ])
    }

    /// Compiles little and starts quickly: for applications that end before it would pay, and that nobody measures.
    pub fn short_lived(self) -> Self {
        const QUICK: &str = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC";
        self.settings([
            ("spark.driver.extraJavaOptions", QUICK),
            ("spark.executor.extraJavaOptions", QUICK),
        ])
    }

    /// Adds an option of the driver's JVM.
    pub fn driver_option(self, option: &str) -> Self {
        const KEY: &str = "spark.driver.extraJavaOptions";
        let options = match self.settings.get(KEY) {
            Some(others) => format!("{others} {option}"),
            None => option.to_owned(),
        };
        self.setting(KEY, &options)
    }

    /// Adds an argument of the program.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments of the program.
    pub fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// Sets one of Spark's settings.
    pub fn setting(mut self, key: &str, value: &str) -> Self {
        self.settings.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets several of Spark's settings.
    pub fn settings<'a>(self, settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        settings
            .into_iter()
            .fold(self, |application, (key, value)| application.setting(key, value))
    }

    /// Sets an environment variable of the driver.
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Stock S3A, for a test server at `endpoint` (`http://...`).
    pub fn s3a(mut self, endpoint: &str) -> Self {
        self.jars.extend(self.install.s3a_jars.iter().cloned());
        self.settings([
            ("spark.hadoop.fs.s3a.endpoint", endpoint),
            ("spark.hadoop.fs.s3a.endpoint.region", REGION),
            ("spark.hadoop.fs.s3a.path.style.access", "true"),
            ("spark.hadoop.fs.s3a.connection.ssl.enabled", "false"),
            ("spark.hadoop.fs.s3a.access.key", ACCESS_KEY),
            ("spark.hadoop.fs.s3a.secret.key", SECRET_KEY),
        ])
    }

    /// Iceberg as catalog `lake` of Hadoop's kind, which keeps its tables below `warehouse`, and Delta.
    pub fn table_formats(mut self, warehouse: &str) -> Self {
        self.jars.extend(self.install.table_jars.iter().cloned());
        self.settings([
            (
                "spark.sql.extensions",
                "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions,io.delta.sql.DeltaSparkSessionExtension",
            ),
            ("spark.sql.catalog.lake", "org.apache.iceberg.spark.SparkCatalog"),
            ("spark.sql.catalog.lake.type", "hadoop"),
            ("spark.sql.catalog.lake.warehouse", warehouse),
            (
                "spark.sql.catalog.spark_catalog",
                "org.apache.spark.sql.delta.catalog.DeltaCatalog",
            ),
        ])
    }

    /// What a user adds for Cachelet, beside [`Application::s3a`]: the jar and two settings.
    pub fn cachelet(mut self) -> Self {
        self.jars.push(cachelet_jar());
        self.settings([
            (
                "spark.hadoop.fs.s3a.impl",
                "io.cachelet.hadoop.CacheletS3AFileSystem",
            ),
            ("spark.plugins", "io.cachelet.spark.CacheletPlugin"),
        ])
    }

    /// Submits it; its log, settings, scratch space and event log are in `dir`, which is its own.
    pub fn submit(mut self, dir: &Path) -> RunningApplication {
        let (events, local) = (dir.join("events"), dir.join("local"));
        for dir in [&events, &local] {
            std::fs::create_dir_all(dir)
                .unwrap_or_else(|error| panic!("cannot create {}: {error}", dir.display()));
        }
        let summaries = dir.join("summaries.jsonl");
        let class_path: Vec<String> = self.jars.iter().map(|jar| text(jar)).collect();
        let class_path = class_path.join(":");
        let event_log = format!("file:{}", events.display());
        self = self.settings([
            ("spark.driver.extraClassPath", class_path.as_str()),
            ("spark.executor.extraClassPath", class_path.as_str()),
            ("spark.eventLog.dir", event_log.as_str()),
            ("spark.local.dir", text(&local).as_str()),
            ("spark.cachelet.summary.file", text(&summaries).as_str()),
        ]);
        let mut properties = String::new();
        for (key, value) in &self.settings {
            writeln!(properties, "{key} {value}").expect("a string takes everything");
        }
        let settings = dir.join("spark.conf");
        std::fs::write(&settings, properties)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", settings.display()));
        let process = Process::command(self.install.program("spark-submit"))
            .arg("--properties-file")
            .arg(settings)
            .arg(&self.program)
            .args(&self.args)
            .envs(self.install.environment("127.0.0.1"))
            .env_remove("SPARK_CONF_DIR")
            .envs(self.env)
            .start(dir);
        RunningApplication {
            process,
            events,
            summaries,
        }
    }
}

/// What `CacheletPlugin` says at the end of an application; a number that it could not measure is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Summary {
    /// Read from descriptors of cached files.
    pub local_bytes: Option<u64>,
    /// Received from daemons over their sockets.
    pub inline_bytes: Option<u64>,
    /// Fetched by daemons from peers, on behalf of this application.
    pub peer_bytes: Option<u64>,
    /// Fetched by daemons from the origin, on behalf of this application.
    pub origin_bytes: Option<u64>,
    /// Read from the origin by executors and the driver themselves.
    pub direct_bytes: Option<u64>,
    /// How often a stream went on without its daemon.
    pub fallbacks: Option<u64>,
    /// The same, by reason.
    #[serde(default)]
    pub fallback_reasons: BTreeMap<String, u64>,
}

/// An application that was submitted; it ends, with its driver, when it is dropped.
#[derive(Debug)]
pub struct RunningApplication {
    process: Process,
    events: PathBuf,
    summaries: PathBuf,
}

impl RunningApplication {
    /// The process of `spark-submit`.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits for its end, which must be a success, and reads its event log.
    #[track_caller]
    pub fn finish(mut self, deadline: Duration) -> EventLog {
        let status = self.process.wait_for_exit(deadline);
        assert!(
            status.success(),
            "the application ended with {status} (its log: {})",
            self.process.log_path().display()
        );
        self.event_log()
    }

    /// What the plug-in said of the whole application; `None` without the plug-in, or before the end.
    pub fn summary(&self) -> Option<Summary> {
        let text = std::fs::read_to_string(&self.summaries).ok()?;
        let of_application = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).ok()?;
            (value["kind"] == "application").then_some(value)
        };
        let found = text.lines().rev().find_map(of_application)?;
        Some(serde_json::from_value(found).expect("the plug-in writes what it promises"))
    }

    /// Reads what the event log says now.
    pub fn event_log(&self) -> EventLog {
        let mut files: Vec<PathBuf> = std::fs::read_dir(&self.events)
            .unwrap_or_else(|error| panic!("cannot list {}: {error}", self.events.display()))
            .map(|entry| entry.expect("a listed file").path())
            .collect();
        assert_eq!(files.len(), 1, "one application has one event log: {files:?}");
        EventLog::read(&files.remove(0))
    }
}
