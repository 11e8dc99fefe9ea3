//! Which Spark, and where it is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde::Deserialize;

use crate::dir::repository_root;

/// A line of Spark releases that Cachelet supports, by the one that is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// 3.5.9: Hadoop 3.3.4, Scala 2.12.
    Spark3,
    /// 4.1.4: Hadoop 3.4.2, Scala 2.13.
    Spark4,
}

impl Release {
    /// The release of a line: 3.5 or 4.1.
    pub fn of_line(line: &str) -> Option<Self> {
        [Self::Spark3, Self::Spark4]
            .into_iter()
            .find(|release| release.line() == line)
    }

    /// As `scripts/spark-env` calls it.
    pub fn line(self) -> &'static str {
        match self {
            Self::Spark3 => "3.5",
            Self::Spark4 => "4.1",
        }
    }
}

/// An installed release, as `scripts/spark-env path` describes it.
#[derive(Debug, Clone, Deserialize)]
pub struct SparkInstall {
    /// The exact version.
    pub version: String,
    /// Which Scala it was built with: `spark-class` asks for it.
    pub scala: String,
    /// The Python that has it.
    pub python: PathBuf,
    /// `SPARK_HOME`.
    pub spark_home: PathBuf,
    /// hadoop-aws, the AWS SDK and what they need.
    pub s3a_jars: Vec<PathBuf>,
    /// Iceberg and Delta; none with [`Release::Spark4`].
    pub table_jars: Vec<PathBuf>,
}

impl SparkInstall {
    /// The release, installed if it is not there yet; progress goes to stderr.
    pub fn of(release: Release) -> &'static Self {
        static INSTALLED: [OnceLock<SparkInstall>; 2] = [OnceLock::new(), OnceLock::new()];
        INSTALLED[release as usize].get_or_init(|| find(release))
    }

    /// A program of this Spark, such as `spark-submit`.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.spark_home.join("bin").join(name)
    }

    /// The variables Spark's programs run with on the node that has `address`.
    pub(super) fn environment(&self, address: &str) -> [(&'static str, String); 6] {
        [
            ("SPARK_HOME", text(&self.spark_home)),
            // Without it the launcher looks for a source tree ("Cannot find any build directories").
            ("SPARK_SCALA_VERSION", self.scala.clone()),
            ("SPARK_LOCAL_IP", address.to_owned()),
            ("PYSPARK_PYTHON", text(&self.python)),
            // The master and the workers do little; executors have settings of their own.
            ("SPARK_DAEMON_MEMORY", "256m".to_owned()),
            (
                "SPARK_DAEMON_JAVA_OPTS",
                "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC".to_owned(),
            ),
        ]
    }
}

fn find(release: Release) -> SparkInstall {
    let script = repository_root().join("scripts/spark-env");
    let output = Command::new(&script)
        .args(["path", release.line()])
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", script.display()));
    assert!(
        output.status.success(),
        "{} cannot install Spark {}: see the messages above",
        script.display(),
        release.line()
    );
    serde_json::from_slice(&output.stdout).expect("scripts/spark-env prints what it promises")
}

pub(super) fn text(path: &Path) -> String {
    path.to_str().expect("the harness has plain paths").to_owned()
}
