//! Faults while Spark runs TPC-H: right results, no failed task.

use std::collections::BTreeMap;

use cachelet_tests::spark::{Application, Release, TpchSession, tpch_files};
use cachelet_tests::{Cluster, S3Server};
use nix::sys::signal::Signal;

use crate::support::{Ground, Tables, ground, releases};

/// Together they read every large table; small enough for a test.
const QUERIES: [&str; 4] = ["q03", "q06", "q12", "q14"];

/// The tables at scale factor 0.1 in a bucket of the shared server: their root.
fn tpch_root() -> String {
    let bucket = S3Server::shared().bucket();
    for file in tpch_files("0.1") {
        let content = std::fs::read(&file).expect("it was just made");
        let name = file
            .file_name()
            .expect("a listed file has a name")
            .to_string_lossy();
        bucket.put(&format!("tpch/{name}"), &content);
    }
    format!("s3a://{}/tpch", bucket.name())
}

/// TPC-H on stock S3A; tables are split so that both nodes have something to do.
fn application(ground: &Ground, endpoint: &str) -> Application {
    Application::new(ground.spark.install(), ground.spark.url(), "tpch.py")
        .s3a(endpoint)
        .executors(2)
        .short_lived()
        .setting("spark.sql.files.maxPartitionBytes", "4m")
}

/// What is right, and what it takes without Cachelet.
struct Expected {
    hashes: BTreeMap<String, String>,
    seconds: f64,
}

impl Expected {
    fn of(ground: &mut Ground, endpoint: &str, root: &str) -> Self {
        let application = application(ground, endpoint);
        let mut session = TpchSession::start(application, &ground.application_dir());
        session.open(root);
        let mut hashes = BTreeMap::new();
        let mut first_seconds = 0.0;
        for query in QUERIES {
            let result = session.run(query);
            hashes.insert(result.name, result.sha256);
            first_seconds += result.seconds;
        }
        println!("  stock S3A, first, which pays for warming up: {first_seconds:.2} s");
        let seconds = QUERIES.iter().map(|query| session.run(query).seconds).sum();
        session.end();
        Self { hashes, seconds }
    }

    /// Runs every query, with something happening while it does, and returns the seconds all took.
    #[track_caller]
    fn check(&self, what: &str, session: &mut TpchSession, mut meanwhile: impl FnMut()) -> f64 {
        let mut seconds = 0.0;
        for query in QUERIES {
            session.begin(query);
            meanwhile();
            let result = session.result();
            assert_eq!(
                result.sha256, self.hashes[query],
                "{what}: {query} gave another result"
            );
            seconds += result.seconds;
        }
        println!(
            "  {what}: {seconds:.2} s; stock S3A: {:.2} s ({:.2}x)",
            self.seconds,
            seconds / self.seconds
        );
        seconds
    }
}

/// SIGKILL, restart and SIGSTOP of daemons, and a locality service that is down, all in one application.
#[test]
fn daemons_that_die_stop_or_return_and_a_missing_service_fail_no_task_and_change_no_result() {
    let root = tpch_root();
    for release in releases(Release::Spark3) {
        let proxy = Tables::counted();
        let mut cluster = Cluster::of(&proxy.endpoint())
            .nodes(2)
            .block_size("4MiB")
            .caller_authorization()
            .start();
        let mut ground = ground(release);
        ground.attach(&mut cluster);
        println!("Spark {}", ground.spark.install().version);
        let expected = Expected::of(&mut ground, &proxy.endpoint(), &root);
        let application = application(&ground, &proxy.endpoint()).cachelet();
        let mut session = TpchSession::start(application, &ground.application_dir());
        session.open(&root);
        expected.check("cold", &mut session, || {});
        expected.check("warm", &mut session, || {});

        expected.check(
            "a daemon killed and started again during each query",
            &mut session,
            || {
                cluster.worker(0).kill();
                cluster.worker(0).start();
            },
        );
        expected.check(
            "a daemon restarted in order during each query",
            &mut session,
            || {
                cluster.worker(1).stop();
                cluster.worker(1).start();
            },
        );
        cluster.worker(0).kill();
        expected.check("a daemon gone", &mut session, || {});
        cluster.worker(0).start();

        cluster.worker(1).process().signal(Signal::SIGSTOP);
        expected.check("a daemon stopped by SIGSTOP", &mut session, || {});
        cluster.worker(1).process().signal(Signal::SIGCONT);

        cluster.service_mut().kill();
        expected.check("no locality service", &mut session, || {});
        session.open(&root);
        expected.check(
            "no locality service when the tables are listed",
            &mut session,
            || {},
        );
        cluster.service_mut().start();

        let (log, summary) = session.end();
        println!("  {summary:?}");
        assert_eq!(log.failures(), Vec::<String>::new());
        assert_eq!(log.removed_executors.len(), 0, "{:?}", log.removed_executors);
    }
}

/// The smallest quota there is, and then a daemon that hangs before an application has read anything.
#[test]
fn a_cache_with_hardly_any_room_and_a_daemon_that_hangs_from_the_start_fail_no_task_and_change_no_result() {
    let root = tpch_root();
    for release in releases(Release::Spark4) {
        let proxy = Tables::counted();
        let mut cluster = Cluster::of(&proxy.endpoint())
            .nodes(2)
            .block_size("4MiB")
            .quota("16MiB")
            .caller_authorization()
            .start();
        let mut ground = ground(release);
        ground.attach(&mut cluster);
        println!("Spark {}", ground.spark.install().version);
        let expected = Expected::of(&mut ground, &proxy.endpoint(), &root);
        let application = application(&ground, &proxy.endpoint()).cachelet();

        let mut session = TpchSession::start(application.clone(), &ground.application_dir());
        session.open(&root);
        expected.check("16 MiB of room, first", &mut session, || {});
        expected.check("16 MiB of room, again", &mut session, || {});
        let (log, summary) = session.end();
        println!("  {summary:?}");
        assert_eq!(log.failures(), Vec::<String>::new());

        cluster.worker(1).process().signal(Signal::SIGSTOP);
        let mut session = TpchSession::start(application, &ground.application_dir());
        session.open(&root);
        expected.check("a daemon that hangs from the start, first", &mut session, || {});
        expected.check("a daemon that hangs from the start, again", &mut session, || {});
        expected.check(
            "a daemon that hangs from the start, once more",
            &mut session,
            || {},
        );
        let (log, summary) = session.end();
        println!("  {summary:?}");
        cluster.worker(1).process().signal(Signal::SIGCONT);
        let afterwards = Expected::of(&mut ground, &proxy.endpoint(), &root);
        println!("  stock S3A afterwards: {:.2} s", afterwards.seconds);
        assert_eq!(log.failures(), Vec::<String>::new());
        assert!(
            summary.and_then(|summary| summary.fallbacks) > Some(0),
            "what the hanging daemon should have served came from elsewhere"
        );
    }
}
