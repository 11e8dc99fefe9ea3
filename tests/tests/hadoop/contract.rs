//! Hadoop's contract suites: whatever passes on stock S3A passes on ours, with a daemon, without one, and with one that
//! is killed all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use cachelet_tests::{Cluster, S3Kind, S3Server, TestDir, Worker};

use crate::java::{Hadoop, java, native_library};

const STOCK: &str = "org.apache.hadoop.fs.s3a.S3AFileSystem";
const OURS: &str = "io.cachelet.hadoop.CacheletS3AFileSystem";
/// Suites that read through our stream.
const READING: [&str; 6] = [
    "VectoredRead",
    "Open",
    "Seek",
    "Create",
    "Unbuffer",
    "StreamIOStatistics",
];

/// What each test, named by suite and method, came to, and why.
type Tests = BTreeMap<(String, String), (String, String)>;

/// What `io.cachelet.hadoop.contract.ContractRun` wrote.
#[derive(Debug, Default)]
struct Outcome {
    /// By setup.
    tests: BTreeMap<String, Tests>,
    /// By setup and suite: bytes from Cachelet, from the origin, and grants.
    reads: BTreeMap<(String, String), [u64; 3]>,
}

impl Outcome {
    fn parse(text: &str) -> Self {
        let mut outcome = Self::default();
        for line in text.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let (setup, suite) = (fields[1].to_owned(), fields[2].to_owned());
            match fields[0] {
                "test" => {
                    let came_to = (fields[4].to_owned(), fields[5].to_owned());
                    let tests = outcome.tests.entry(setup).or_default();
                    tests.insert((suite, fields[3].to_owned()), came_to);
                }
                _ => {
                    let number = |index: usize| fields[index].parse().expect("a counter");
                    outcome
                        .reads
                        .insert((setup, suite), [number(3), number(4), number(5)]);
                }
            }
        }
        outcome
    }

    fn passed(&self, setup: &str) -> BTreeSet<&(String, String)> {
        let passed = |(test, (came_to, _)): (_, &(String, String))| (came_to == "passed").then_some(test);
        self.tests[setup].iter().filter_map(passed).collect()
    }

    /// What a setup fails of its suites that stock S3A passes, with the reasons.
    fn lost(&self, setup: &str) -> Vec<String> {
        let ran = |test: &(String, String)| self.reads.contains_key(&(setup.to_owned(), test.0.clone()));
        let reason = |test: &(String, String)| {
            let came_to = self.tests[setup].get(test);
            format!("{setup}: {}.{}: {came_to:?}", test.0, test.1)
        };
        let passed = self.passed(setup);
        let lost = self
            .passed("stock")
            .into_iter()
            .filter(|test| ran(test) && !passed.contains(*test));
        lost.map(reason).collect()
    }
}

/// One file system that the suites run on.
struct Setup<'a> {
    name: &'a str,
    class: &'a str,
    sockets: &'a Path,
    /// None: all.
    suites: &'a [&'a str],
}

/// Runs the suites on some setups, each with a bucket of its own, in one JVM.
fn run(hadoop: Hadoop, server: &S3Server, setups: &[Setup<'_>]) -> Outcome {
    let dir = TestDir::new("contract");
    let result = dir.join("result.tsv");
    let mut jvm = java(hadoop, &dir)
        .arg(format!("-Dcachelet.native.path={}", native_library().display()))
        .arg(format!("-Dcachelet.test.s3.endpoint={}", server.endpoint()))
        .arg("io.cachelet.hadoop.contract.ContractRun")
        .arg(&result);
    for setup in setups {
        let bucket = server.bucket();
        let mut words = vec![
            setup.class,
            bucket.name(),
            setup.sockets.to_str().expect("our own path"),
        ];
        let suites = setup.suites.join("+");
        if !suites.is_empty() {
            words.push(&suites);
        }
        jvm = jvm.arg(format!("{}={}", setup.name, words.join(",")));
    }
    jvm.run(Duration::from_secs(900)).expect_success();
    Outcome::parse(&std::fs::read_to_string(&result).expect("the JVM wrote its results"))
}

/// Kills a worker and starts it again every two seconds, until the other end of `done` is dropped.
fn kill_again_and_again(worker: &mut Worker, done: &Receiver<()>) {
    while done.recv_timeout(Duration::from_secs(2)) == Err(RecvTimeoutError::Timeout) {
        worker.kill();
        worker.start();
    }
}

#[test]
fn whatever_passes_on_stock_s3a_passes_on_ours_with_a_daemon_without_one_and_with_a_dying_one() {
    let server = S3Server::start_fresh(S3Kind::VersityGw);
    let cluster = || {
        Cluster::of(&server.endpoint())
            .caller_authorization()
            .without_service()
            .start()
    };
    for hadoop in Hadoop::ALL {
        let (mut up, mut dying) = (cluster(), cluster());
        let up_sockets = up.worker(0).socket_dir().to_owned();
        let dying_sockets = dying.worker(0).socket_dir().to_owned();
        let (running, done) = channel();
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                let done = done;
                kill_again_and_again(dying.worker(0), &done);
            });
            // Dropped when this closure ends, in whichever way: the daemon is left alone then.
            let _running: Sender<()> = running;
            run(
                hadoop,
                &server,
                &[
                    Setup {
                        name: "stock",
                        class: STOCK,
                        sockets: Path::new("/nonexistent"),
                        suites: &[],
                    },
                    Setup {
                        name: "up",
                        class: OURS,
                        sockets: &up_sockets,
                        suites: &[],
                    },
                    Setup {
                        name: "absent",
                        class: OURS,
                        sockets: Path::new("/nonexistent"),
                        suites: &READING,
                    },
                    Setup {
                        name: "dying",
                        class: OURS,
                        sockets: &dying_sockets,
                        suites: &READING,
                    },
                ],
            )
        });
        check(hadoop, &outcome);
    }
}

/// The reading suites once more, on another S3 server.
#[test]
fn whatever_reads_on_stock_s3a_reads_on_ours_on_another_s3_server() {
    let server = S3Server::start_fresh(S3Kind::S3Proxy);
    let mut up = Cluster::of(&server.endpoint())
        .caller_authorization()
        .without_service()
        .start();
    let sockets = up.worker(0).socket_dir();
    let nowhere = Path::new("/nonexistent");
    let outcome = run(
        Hadoop::V3_4_2,
        &server,
        &[
            Setup {
                name: "stock",
                class: STOCK,
                sockets: nowhere,
                suites: &READING,
            },
            Setup {
                name: "up",
                class: OURS,
                sockets,
                suites: &READING,
            },
        ],
    );
    check(Hadoop::V3_4_2, &outcome);
}

/// Nothing that stock S3A passes was lost, and where a daemon was, it served.
fn check(hadoop: Hadoop, outcome: &Outcome) {
    let passed = outcome.passed("stock").len();
    assert!(passed > 40, "{hadoop}: stock S3A passes only {passed} tests");
    let lost: Vec<String> = outcome
        .tests
        .keys()
        .flat_map(|setup| outcome.lost(setup))
        .collect();
    assert!(lost.is_empty(), "{hadoop}:\n{}", lost.join("\n"));
    let mut grants = 0;
    for suite in READING {
        let Some([cached, origin, granted]) = outcome.reads.get(&("up".to_owned(), suite.to_owned())) else {
            assert!(
                suite == "VectoredRead" && hadoop == Hadoop::V3_3_4,
                "{hadoop}: {suite} did not run"
            );
            continue;
        };
        assert!(
            *cached > 0 && *origin == 0,
            "{hadoop}: {suite} read {cached} cached bytes and {origin} others"
        );
        grants += granted;
    }
    assert!(grants > 0, "{hadoop}: the daemon granted nothing");
}
