//! Java processes with the file systems and one Hadoop release on their class path.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use cachelet_tests::{
    ACCESS_KEY, Process, ProcessBuilder, REGION, S3Server, SECRET_KEY, TestDir, Worker, repository_root,
};

/// How long Maven, or a JVM that starts, may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// A release of Hadoop on which the classes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hadoop {
    /// Spark 3.5's.
    V3_3_4,
    /// Spark 4's, and what the classes are compiled against.
    V3_4_2,
}

impl Hadoop {
    pub(crate) const ALL: [Self; 2] = [Self::V3_3_4, Self::V3_4_2];

    fn version(self) -> &'static str {
        match self {
            Self::V3_3_4 => "3.3.4",
            Self::V3_4_2 => "3.4.2",
        }
    }

    /// The class path of the module's tests with this release in place of the one it was compiled against.
    fn class_path(self) -> &'static str {
        static PATHS: [OnceLock<String>; 2] = [OnceLock::new(), OnceLock::new()];
        PATHS[self as usize].get_or_init(|| {
            let classes = compiled();
            let list = classes.join(format!("hadoop-{}.classpath", self.version()));
            maven()
                .args(["dependency:build-classpath", "-Dmdep.includeScope=test"])
                .arg(format!("-Dhadoop.version={}", self.version()))
                .arg(format!("-Dmdep.outputFile={}", list.display()))
                .run(PATIENCE)
                .expect_success();
            let jars = std::fs::read_to_string(&list).expect("Maven wrote the class path");
            format!(
                "{}:{}:{}",
                classes.join("classes").display(),
                classes.join("test-classes").display(),
                jars.trim()
            )
        })
    }
}

impl fmt::Display for Hadoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hadoop {}", self.version())
    }
}

fn maven() -> ProcessBuilder {
    Process::command("mvn")
        .args(["-q", "-B", "-f"])
        .arg(repository_root().join("client/pom.xml"))
        .args(["-pl", "hadoop"])
}

/// Compiles the classes and their tests, once a test process; says where Maven puts what it builds.
fn compiled() -> &'static Path {
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    TARGET.get_or_init(|| {
        maven().arg("test-compile").run(PATIENCE).expect_success();
        repository_root().join("client/hadoop/target")
    })
}

/// The native library of this machine, as `make jar` builds it.
pub(crate) fn native_library() -> PathBuf {
    let library = repository_root().join(format!(
        "target/native/linux-{}/libcachelet_jni.so",
        std::env::consts::ARCH
    ));
    assert!(
        library.exists(),
        "cannot find {}: build it first with scripts/native-library",
        library.display()
    );
    library
}

/// A JVM with one release, working in `dir`, without a native library unless it is named.
pub(crate) fn java(hadoop: Hadoop, dir: &TestDir) -> ProcessBuilder {
    Process::command("java")
        .current_dir(dir.path())
        .args(["-Xmx1g", "-XX:TieredStopAtLevel=1"])
        .arg(format!("-Djava.io.tmpdir={}", dir.path().display()))
        .args(["--add-opens", "java.base/java.lang=ALL-UNNAMED"])
        .args(["-cp", hadoop.class_path()])
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
}

/// A JVM that reads what it is told to: `io.cachelet.hadoop.remote.RemoteReader`.
pub(crate) struct Reader {
    process: Process,
    connection: BufReader<TcpStream>,
    _dir: TestDir,
}

/// How a [`Reader`] is set up.
pub(crate) struct ReaderBuilder {
    hadoop: Hadoop,
    options: Vec<String>,
    settings: Vec<String>,
}

impl Reader {
    /// One that reads through a worker's daemon from an S3 server at an endpoint.
    pub(crate) fn of(hadoop: Hadoop, endpoint: &str, worker: &Worker) -> ReaderBuilder {
        Self::without_daemon(hadoop, endpoint)
            .setting(
                "fs.cachelet.socket.dir",
                &worker.socket_dir().display().to_string(),
            )
            .option(&format!("-Dcachelet.native.path={}", native_library().display()))
    }

    /// One with the native library and no daemon.
    pub(crate) fn alone(hadoop: Hadoop, endpoint: &str) -> ReaderBuilder {
        Self::without_daemon(hadoop, endpoint)
            .option(&format!("-Dcachelet.native.path={}", native_library().display()))
    }

    /// One that is told nothing of a daemon and a native library.
    pub(crate) fn without_daemon(hadoop: Hadoop, endpoint: &str) -> ReaderBuilder {
        ReaderBuilder {
            hadoop,
            options: Vec::new(),
            settings: Vec::new(),
        }
        .setting("fs.s3a.impl", "io.cachelet.hadoop.CacheletS3AFileSystem")
        .setting("fs.s3a.endpoint", endpoint)
        .setting("fs.s3a.endpoint.region", REGION)
        .setting("fs.s3a.access.key", ACCESS_KEY)
        .setting("fs.s3a.secret.key", SECRET_KEY)
        .setting("fs.s3a.path.style.access", "true")
        .setting("fs.s3a.connection.ssl.enabled", "false")
        .setting("fs.s3a.attempts.maximum", "1")
        .setting("fs.s3a.retry.limit", "2")
        .setting("fs.s3a.retry.interval", "10ms")
        .setting("fs.cachelet.socket.dir", "/nonexistent/cachelet")
    }

    /// Asks for something and returns the fields of a good answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, command: &[&str]) -> Vec<String> {
        match self.try_ask(command) {
            Ok(fields) => fields,
            Err(error) => panic!("{command:?} failed: {error}\n{}", self.process.log()),
        }
    }

    /// Asks for something; an error is the exception's class and message.
    #[track_caller]
    pub(crate) fn try_ask(&mut self, command: &[&str]) -> Result<Vec<String>, String> {
        let line = format!("{}\n", command.join("\t"));
        self.connection
            .get_mut()
            .write_all(line.as_bytes())
            .expect("the JVM listens");
        let mut answer = String::new();
        self.connection.read_line(&mut answer).expect("the JVM answers");
        assert!(!answer.is_empty(), "the JVM ended: {}", self.process.log());
        let mut fields = answer.trim_end_matches('\n').split('\t').map(str::to_owned);
        match fields.next().as_deref() {
            Some("ok") => Ok(fields.collect()),
            _ => Err(fields.collect::<Vec<_>>().join(": ")),
        }
    }

    /// What all streams of the JVM did so far.
    #[track_caller]
    pub(crate) fn metrics(&mut self) -> Metrics {
        let fields = self.ask(&["metrics"]);
        let number = |index: usize| fields[index].parse().expect("a counter");
        Metrics {
            cached_bytes: number(0) + number(1),
            origin_bytes: number(2),
            grants: number(4),
            fallbacks: fields[5].clone(),
        }
    }

    /// The lines that the file systems logged.
    pub(crate) fn logged(&self) -> Vec<String> {
        let log = self.process.log();
        let ours = |line: &&str| line.contains("cachelet.hadoop:");
        log.lines().filter(ours).map(str::to_owned).collect()
    }
}

/// `io.cachelet.hadoop.ReadMetrics`.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) cached_bytes: u64,
    pub(crate) origin_bytes: u64,
    pub(crate) grants: u64,
    pub(crate) fallbacks: String,
}

impl ReaderBuilder {
    /// A setting of Hadoop's configuration.
    pub(crate) fn setting(mut self, key: &str, value: &str) -> Self {
        self.settings
            .retain(|setting| !setting.starts_with(&format!("{key}=")));
        self.settings.push(format!("{key}={value}"));
        self
    }

    /// An option of the JVM.
    pub(crate) fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    /// Starts the JVM, and the file systems of an S3 bucket in it.
    #[track_caller]
    pub(crate) fn start(self, bucket: &str) -> Reader {
        self.start_at(&format!("s3a://{bucket}/"))
    }

    /// Starts the JVM, and the file systems of a URI in it.
    #[track_caller]
    pub(crate) fn start_at(self, uri: &str) -> Reader {
        let dir = TestDir::new("java");
        let mut process = java(self.hadoop, &dir)
            .args(self.options)
            .arg("io.cachelet.hadoop.remote.RemoteReader")
            .args(self.settings)
            .start(dir.path());
        let line = process.wait_for_line(PATIENCE, "listening on port ");
        let port = line.rsplit(' ').next().and_then(|port| port.trim().parse().ok());
        let port: u16 = port.expect("the line ends in the port");
        let connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the JVM listens");
        let mut reader = Reader {
            process,
            connection: BufReader::new(connection),
            _dir: dir,
        };
        reader.ask(&["start", uri]);
        reader
    }
}

/// The shared S3 server's endpoint, as S3A wants it.
pub(crate) fn endpoint() -> String {
    S3Server::shared().endpoint()
}
