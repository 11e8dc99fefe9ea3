//! Starting and stopping the server process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use super::client::{Bucket, Client};
use crate::dir::{TestDir, repository_root};
use crate::net::free_port;
use crate::process::Process;

/// The access key every test server accepts.
pub const ACCESS_KEY: &str = "cachelet-test";
/// The secret that belongs to [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "cachelet-test-secret";
/// The region every test server is in.
pub const REGION: &str = "us-east-1";

/// A JVM on a busy machine; where the server must be installed first, `make test` has done it.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// Which server: important behaviours are shown on two that share no code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3Kind {
    /// s3proxy (Java).
    S3Proxy,
    /// versitygw (Go).
    VersityGw,
}

impl S3Kind {
    fn name(self) -> &'static str {
        match self {
            Self::S3Proxy => "s3proxy",
            Self::VersityGw => "versitygw",
        }
    }

    /// The server that `CACHELET_TEST_S3` names: s3proxy unless it says otherwise.
    pub fn from_env() -> Self {
        match std::env::var("CACHELET_TEST_S3").as_deref() {
            Ok("versitygw") => Self::VersityGw,
            Ok("s3proxy") | Err(_) => Self::S3Proxy,
            Ok(other) => panic!("CACHELET_TEST_S3={other} names no S3 server: use s3proxy or versitygw"),
        }
    }
}

/// A running S3 server; it is gone when it is dropped, with its data unless they are in a directory it was given.
#[derive(Debug)]
pub struct S3Server {
    kind: S3Kind,
    address: SocketAddr,
    // Before the directory: the process ends, then its data is removed.
    process: Option<Process>,
    dir: DataDir,
}

/// Where a server keeps its data.
#[derive(Debug)]
enum DataDir {
    Own(TestDir),
    Given(PathBuf),
}

impl DataDir {
    fn path(&self) -> &Path {
        match self {
            Self::Own(dir) => dir.path(),
            Self::Given(path) => path,
        }
    }
}

impl S3Server {
    /// The server all tests of this process share, of the kind [`S3Kind::from_env`] says. It ends with the process.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<S3Server> = OnceLock::new();
        SHARED.get_or_init(|| Self::start_fresh(S3Kind::from_env()))
    }

    /// A server for one test alone.
    pub fn start_fresh(kind: S3Kind) -> Self {
        Self::start_with(kind, DataDir::Own(TestDir::new(kind.name())))
    }

    /// A server that keeps its data in an existing directory, which stays.
    pub fn start_in(kind: S3Kind, dir: impl Into<PathBuf>) -> Self {
        Self::start_with(kind, DataDir::Given(dir.into()))
    }

    fn start_with(kind: S3Kind, dir: DataDir) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let mut server = Self {
            kind,
            address,
            process: None,
            dir,
        };
        server.start();
        server
    }

    /// Starts it again after [`S3Server::stop`], at the same address and with the same data.
    pub fn start(&mut self) {
        assert!(
            self.process.is_none(),
            "{} at {} is running already",
            self.kind.name(),
            self.address
        );
        let mut process = Process::command(repository_root().join("scripts/s3-server"))
            .args([self.kind.name(), &self.address.port().to_string()])
            .arg(self.dir.path())
            .envs([
                ("S3_SERVER_ACCESS_KEY", ACCESS_KEY),
                ("S3_SERVER_SECRET_KEY", SECRET_KEY),
            ])
            .start(self.dir.path());
        let client = Client::new(self.address);
        let what = format!("it answered at {}", self.address);
        // Any answer will do: the server speaks HTTP.
        process.wait_until(START_DEADLINE, &what, || {
            client.try_send("GET", "/", &[], &[]).is_ok()
        });
        self.process = Some(process);
    }

    /// Ends it at once: connections to it are refused until it is started again.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("the server was started");
        process.kill();
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as an endpoint URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The environment variables that give a process the right to read from it.
    pub fn credentials_env() -> [(&'static str, &'static str); 3] {
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_REGION", REGION),
        ]
    }

    /// Creates a bucket that no other test has.
    pub fn bucket(&self) -> Bucket {
        Bucket::create_unique(self.address)
    }

    /// Creates a bucket of this name.
    pub fn bucket_named(&self, name: &str) -> Bucket {
        Bucket::create(self.address, name)
    }
}
