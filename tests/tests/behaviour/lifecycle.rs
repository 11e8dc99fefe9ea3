//! Daemons that are killed, stopped and started again, and what their readers notice of it.

use std::collections::HashSet;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cachelet_client::{Client, Error, Object, Options};
use cachelet_tests::{
    Cluster, Fault, FaultProxy, Process, S3Server, Worker, deterministic_bytes, first_difference, sha256_hex,
    wait_until,
};
use nix::sys::signal::Signal;

use super::support::{DEADLINE, MIB, client_of, open, options_for, over_s3, put, read_all, sha256_through};

/// A client that asks only for what it is about to read.
fn without_readahead(worker: &Worker) -> Options {
    Options {
        readahead_bytes: 0,
        ..options_for(worker.socket_dir())
    }
}

fn sockets(worker: &Worker) -> Vec<PathBuf> {
    let entries = fs::read_dir(worker.socket_dir()).expect("the directory is ours");
    entries.map(|entry| entry.expect("readable").path()).collect()
}

/// The entries of a node in `/v1/nodes`.
fn entries_of(cluster: &Cluster, node: &str) -> Vec<serde_json::Value> {
    let mut nodes = cluster.service().nodes();
    nodes.retain(|entry| entry["node"] == node);
    nodes
}

/// Reads a mebibyte of the content named `seed`, and checks it.
fn read_mib(object: &Object, seed: u64, offset: u64) -> Result<(), Error> {
    let mut bytes = vec![0; MIB as usize];
    object.read_exact_at(&mut bytes, offset)?;
    assert_eq!(
        first_difference(seed, offset, &bytes),
        None,
        "a wrong byte at this offset of {seed}"
    );
    Ok(())
}

#[test]
fn a_daemon_killed_during_a_fill_keeps_what_was_complete_and_leaves_neither_ghost_nor_rubbish() {
    let server = S3Server::shared();
    let (bucket, proxy) = (server.bucket(), FaultProxy::start(server.address()));
    let mut cluster = Cluster::of(&proxy.endpoint()).block_size("16MiB").start();
    let size = 40 * MIB;
    let (path, stored) = put(&bucket, "half filled", 1, size);

    let client = Client::new(without_readahead(cluster.worker(0)));
    let object = open(&client, &path).unwrap();
    for offset in 0..8 {
        read_mib(&object, 1, offset * MIB).unwrap();
    }
    let before = cluster.worker(0).uuid();
    let (node, epoch) = (
        cluster.worker(0).node().to_owned(),
        cluster.worker(0).count("/epoch"),
    );

    // Of the next reply two pages and a half arrive: the daemon dies with a fill under way and a page half received.
    let sent = proxy.bytes_sent();
    proxy.inject(
        1,
        Fault::StallBody {
            after_bytes: 5 * MIB / 2,
        },
    );
    let reading = std::thread::spawn(move || {
        let mut bytes = vec![0; 8 * MIB as usize];
        object.read_exact_at(&mut bytes, 16 * MIB)
    });
    wait_until(DEADLINE, "the fill is half way", || {
        proxy.bytes_sent() >= sent + 5 * MIB / 2
    });
    cluster.worker(0).kill();
    let error = reading.join().unwrap().expect_err("its daemon died");
    assert!(error.should_use_origin(), "{error}");
    let stale = sockets(cluster.worker(0));
    assert_eq!(stale.len(), 1, "a killed daemon leaves its socket: {stale:?}");

    cluster.worker(0).start();
    assert_eq!(sha256_through(cluster.worker(0), &path), stored.sha256);
    let worker = cluster.worker(0);
    let origin = worker.count("/fill_bytes/origin");
    assert!(
        origin <= size - 8 * MIB,
        "{origin} bytes of {size} were fetched again"
    );
    assert_eq!(worker.count("/cache/quarantined_files"), 0);
    assert_eq!(worker.temporary_files(), Vec::<PathBuf>::new());
    assert_ne!(worker.uuid(), before, "a new process is a new worker");
    assert!(worker.count("/epoch") > epoch);
    let left = sockets(worker);
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].ends_with(worker.uuid()), "{left:?}");

    let uuid = cluster.worker(0).uuid();
    wait_until(DEADLINE, "the service knows the new worker", || {
        let entries = entries_of(&cluster, &node);
        assert_eq!(entries.len(), 1, "a node has one entry: {entries:?}");
        entries[0]["uuid"] == uuid.as_str() && entries[0]["state"] == "ready"
    });
}

#[test]
fn clients_pass_over_the_sockets_of_dead_daemons() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.start();
    let (path, stored) = put(&bucket, "k", 2, 100_000);
    // Newer than the daemon's socket, so that clients try them first.
    for name in [
        "00000000-dead-4000-8000-000000000000",
        "ffffffff-dead-4000-8000-000000000000",
    ] {
        drop(UnixListener::bind(cluster.worker(0).socket_dir().join(name)).unwrap());
    }
    fs::write(cluster.worker(0).socket_dir().join("notes.txt"), "no socket").unwrap();
    assert_eq!(sha256_through(cluster.worker(0), &path), stored.sha256);
}

#[test]
fn a_client_reads_on_from_its_grant_while_its_daemon_is_dead_and_reconnects_to_the_next_one() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.block_size("1MiB").start();
    let (path, first) = put(&bucket, "overwritten", 3, 3 * MIB);
    let client = Client::new(without_readahead(cluster.worker(0)));
    let object = open(&client, &path).unwrap();
    read_mib(&object, 3, 0).unwrap();
    read_mib(&object, 3, MIB).unwrap();
    assert_eq!(client.descriptors_held(), 2, "the third block is not read yet");

    cluster.worker(0).kill();
    for _ in 0..200 {
        read_mib(&object, 3, 0).unwrap();
        read_mib(&object, 3, MIB).unwrap();
    }
    let error = read_mib(&object, 3, 2 * MIB).expect_err("nobody can fetch the third block");
    assert!(error.should_use_origin(), "{error}");
    let error = open(&client, &path).expect_err("nobody answers");
    assert!(error.should_use_origin(), "{error}");

    // The object becomes another one of the same size before there is a daemon again.
    let second = bucket.put("overwritten", &deterministic_bytes(4, 3 * MIB));
    cluster.worker(0).start();
    wait_until(DEADLINE, "the same client opens again", || {
        open(&client, &path).is_ok()
    });
    let reopened = open(&client, &path).unwrap();
    assert_eq!(sha256_hex(&read_all(&reopened).unwrap()), second.sha256);
    assert!(client.stats().reconnects >= 1);
    assert_ne!(object.generation(), reopened.generation());

    // The old object keeps to its generation: what it holds it reads, what it does not hold is gone.
    read_mib(&object, 3, 0).unwrap();
    read_mib(&object, 3, MIB).unwrap();
    match read_mib(&object, 3, 2 * MIB) {
        Err(Error::ObjectChanged { .. }) => {}
        other => panic!("{first:?} is no more, yet its third block gives {other:?}"),
    }
}

#[test]
fn an_object_that_did_not_change_is_read_on_through_the_restarted_daemon() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.block_size("1MiB").start();
    let (path, stored) = put(&bucket, "unchanged", 5, 3 * MIB);
    let client = Client::new(without_readahead(cluster.worker(0)));
    let object = open(&client, &path).unwrap();
    read_mib(&object, 5, 0).unwrap();
    cluster.worker(0).kill();
    cluster.worker(0).start();
    wait_until(DEADLINE, "the open object reads on", || {
        read_mib(&object, 5, MIB).is_ok()
    });
    assert_eq!(sha256_hex(&read_all(&object).unwrap()), stored.sha256);
}

/// Tells readers to stop, however the test ends.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Reads an object over and over, until told to stop or an error comes; whatever comes must be right.
fn read_until(stop: &AtomicBool, object: &Object, seed: u64) -> Option<Error> {
    while !stop.load(Ordering::Acquire) {
        for offset in (0..object.size_bytes()).step_by(MIB as usize) {
            if let Err(error) = read_mib(object, seed, offset) {
                return Some(error);
            }
        }
    }
    None
}

#[test]
fn a_daemon_that_stands_by_is_ready_and_takes_over_the_cache_when_the_other_one_stops() {
    let server = S3Server::shared();
    let (bucket, proxy) = (server.bucket(), FaultProxy::start(server.address()));
    let mut cluster = Cluster::of(&proxy.endpoint())
        .nodes(1)
        .cache_config("takeover_wait = \"60s\"")
        .start();
    let (path, stored) = put(&bucket, "kept", 6, 3 * MIB);
    assert_eq!(sha256_through(cluster.worker(0), &path), stored.sha256);
    let ready = cluster.dir().join("second-ready.json");
    let mut second = Process::binary("cacheletd")
        .arg("--config")
        .arg(cluster.worker(0).config_file())
        .arg("--ready-file")
        .arg(&ready)
        .envs(S3Server::credentials_env())
        .start(&cluster.dir().join("logs"));
    second.wait_for_line(DEADLINE, "standing by");
    let log = second.log();
    let line = log.lines().find(|line| line.contains("standing by"));
    let admin = line
        .and_then(|line| line.split("admin=").nth(1))
        .and_then(|rest| rest.split_whitespace().next())
        .expect("the line says where the admin port is");
    let readyz = ureq::get(format!("http://{admin}/readyz")).call().unwrap();
    let body = readyz.into_body().read_to_string().unwrap();
    assert!(body.starts_with("ready\nstanding by"), "{body}");
    assert!(!ready.exists(), "it serves nothing yet");

    cluster.worker(0).stop();
    second.wait_until(DEADLINE, "the second daemon serves", || ready.exists());
    proxy.reset();
    assert_eq!(sha256_through(cluster.worker(0), &path), stored.sha256);
    let fetched = proxy
        .requests()
        .iter()
        .filter(|request| request.range.is_some())
        .count();
    assert_eq!(fetched, 0, "the cache came with the directory");
    assert!(second.terminate(DEADLINE).success());
}

#[test]
fn a_daemon_that_stands_by_for_nothing_says_who_holds_the_directory() {
    let server = S3Server::shared();
    let mut cluster = Cluster::of(&server.endpoint())
        .nodes(1)
        .cache_config("takeover_wait = \"200ms\"")
        .start();
    let refused = Process::binary("cacheletd")
        .arg("--config")
        .arg(cluster.worker(0).config_file())
        .envs(S3Server::credentials_env())
        .run(DEADLINE);
    assert_eq!(refused.code(), 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("another daemon"), "{}", refused.stderr);
    cluster.worker(0).stop();
}

#[test]
fn sigterm_lets_reads_under_way_end_and_leaves_a_cache_that_the_next_start_trusts() {
    let server = S3Server::shared();
    let (bucket, proxy) = (server.bucket(), FaultProxy::start(server.address()));
    let mut cluster = Cluster::of(&proxy.endpoint()).block_size("4MiB").start();
    let (warm, warm_stored) = put(&bucket, "warm", 6, 6 * MIB);
    assert_eq!(sha256_through(cluster.worker(0), &warm), warm_stored.sha256);
    let cold: Vec<String> = (0..3)
        .map(|index| put(&bucket, &format!("cold {index}"), 10 + index, 2 * MIB).0)
        .collect();
    // Without readahead: a request at the origin is then a read that the daemon has begun to answer.
    let clients: Vec<Client> = (0..3)
        .map(|_| Client::new(without_readahead(cluster.worker(0))))
        .collect();
    let objects: Vec<Object> = cold
        .iter()
        .zip(&clients)
        .map(|(path, client)| open(client, path).unwrap())
        .collect();
    let inline = Client::new(Options {
        inline_only: true,
        ..options_for(cluster.worker(0).socket_dir())
    });
    let granted = client_of(cluster.worker(0));
    // Opened before the origin is held up: afterwards only the cold reads ask it for anything.
    let warm_objects = [&inline, &granted].map(|client| open(client, &warm).unwrap());

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop_reading = StopOnDrop(&stop);
        proxy.reset();
        let hold = proxy.hold();
        let cold_reads: Vec<_> = objects
            .iter()
            .zip(10..)
            .map(|(object, seed)| scope.spawn(move || read_mib(object, seed, 0)))
            .collect();
        let stop = &stop;
        let warm_reads: Vec<_> = warm_objects
            .iter()
            .map(|object| scope.spawn(move || read_until(stop, object, 6)))
            .collect();
        let waiting = || {
            let requests = proxy.requests();
            let paths = requests.iter().filter(|request| request.range.is_some());
            paths
                .map(|request| request.path.clone())
                .collect::<HashSet<_>>()
                .len()
        };
        wait_until(DEADLINE, "every cold read waits for the origin", || {
            waiting() == 3
        });
        let process = cluster.worker(0).process();
        process.signal(Signal::SIGTERM);
        process.wait_for_line(DEADLINE, "stopping: no new sessions");
        drop(hold);
        // The drain time of test clusters is 10 s.
        let status = process.wait_for_exit(Duration::from_secs(12));
        assert_eq!(status.code(), Some(0), "{status}");
        for read in cold_reads {
            read.join()
                .unwrap()
                .expect("it was under way before the daemon was told to stop");
        }
        drop(stop_reading);
        for read in warm_reads {
            if let Some(error) = read.join().unwrap() {
                assert!(error.should_use_origin(), "{error}");
            }
        }
    });

    let worker = cluster.worker(0);
    assert!(
        worker.cache_dir().join("v1/clean").exists(),
        "no clean-stop marker"
    );
    assert_eq!(
        sockets(worker),
        Vec::<PathBuf>::new(),
        "a stopped daemon takes its socket along"
    );
    worker.forget_ended();
    worker.start();
    assert_eq!(sha256_through(worker, &warm), warm_stored.sha256);
    assert_eq!(worker.count("/fill_bytes/origin"), 0, "the cache is trusted");
}

#[test]
fn a_restart_keeps_the_cache() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.start();
    let objects: Vec<_> = [0, 1, 5_000, 3 * MIB + 17]
        .into_iter()
        .map(|size| put(&bucket, &format!("object of {size}"), size + 1, size))
        .collect();
    for (path, stored) in &objects {
        assert_eq!(sha256_through(cluster.worker(0), path), stored.sha256);
    }
    for _ in 0..2 {
        cluster.worker(0).stop();
        cluster.worker(0).start();
        for (path, stored) in &objects {
            assert_eq!(sha256_through(cluster.worker(0), path), stored.sha256);
        }
        assert_eq!(cluster.worker(0).count("/fill_bytes/origin"), 0);
    }
}

#[test]
fn a_second_daemon_on_a_cache_directory_is_refused_with_the_pid_of_the_first() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.start();
    let worker = cluster.worker(0);
    let second = Process::binary("cacheletd")
        .arg("--config")
        .arg(worker.config_file())
        .envs(S3Server::credentials_env())
        .run(DEADLINE);
    assert_eq!(second.code(), 1);
    let lines: Vec<&str> = second.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{}", second.stderr);
    let directory = worker.cache_dir().display().to_string();
    let pid = worker.process().pid().to_string();
    for part in [
        directory.as_str(),
        &format!("pid {pid}"),
        "cache.directory",
        "stop it",
    ] {
        assert!(lines[0].contains(part), "no {part:?} in {:?}", lines[0]);
    }
    // The first one is none the worse for it.
    let (path, stored) = put(&bucket, "k", 7, 100_000);
    assert_eq!(sha256_through(worker, &path), stored.sha256);
    assert_eq!(sockets(worker).len(), 1);
}

#[test]
fn a_worker_restarted_while_the_service_is_down_serves_and_registers_when_it_is_back() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.start();
    let (path, stored) = put(&bucket, "k", 8, 2 * MIB);
    assert_eq!(sha256_through(cluster.worker(0), &path), stored.sha256);
    cluster.wait_until_resident(&path, 0);

    cluster.service_mut().kill();
    assert_eq!(
        sha256_through(cluster.worker(0), &path),
        stored.sha256,
        "without the service"
    );
    cluster.worker(0).stop();
    cluster.worker(0).start();
    assert_eq!(sha256_through(cluster.worker(0), &path), stored.sha256);
    let (later, later_stored) = put(&bucket, "cached without a service", 9, 2 * MIB);
    assert_eq!(sha256_through(cluster.worker(0), &later), later_stored.sha256);

    cluster.service_mut().start();
    let uuid = cluster.worker(0).uuid();
    wait_until(DEADLINE, "the worker is registered again", || {
        let nodes = cluster.service().nodes();
        nodes.len() == 1 && nodes[0]["uuid"] == uuid.as_str() && nodes[0]["state"] == "ready"
    });
    cluster.wait_until_resident(&path, 0);
    cluster.wait_until_resident(&later, 0);
}

#[test]
fn a_daemon_that_hangs_costs_a_request_timeout_and_what_is_held_costs_nothing() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().start();
    let (path, _) = put(&bucket, "held", 155, 2 * MIB);
    let (other, _) = put(&bucket, "not held", 156, 2 * MIB);
    let client = Client::new(Options {
        request_timeout: TIMEOUT,
        ..without_readahead(cluster.worker(0))
    });
    client.set_request_timeout(DEADLINE);
    let held = open(&client, &path).expect("it exists");
    read_mib(&held, 155, 0).expect("it can be read");
    client.set_request_timeout(TIMEOUT);
    let newcomer = Client::new(Options {
        connect_timeout: TIMEOUT,
        ..without_readahead(cluster.worker(0))
    });

    cluster.worker(0).process().signal(Signal::SIGSTOP);
    let took_one_timeout = |what: &str, outcome: Result<(), Error>, began: Instant| {
        let took = began.elapsed();
        assert!(
            matches!(outcome, Err(Error::Timeout { .. })),
            "{what}: {outcome:?}"
        );
        assert!(took >= TIMEOUT && took < 3 * TIMEOUT, "{what} took {took:?}");
    };
    let began = Instant::now();
    took_one_timeout("a fill", read_mib(&held, 155, MIB), began);
    let began = Instant::now();
    took_one_timeout("an open", open(&client, &other).map(drop), began);
    let began = Instant::now();
    took_one_timeout("a connection", newcomer.connect().map(drop), began);
    let began = Instant::now();
    for _ in 0..100 {
        read_mib(&held, 155, 0).expect("nobody is asked");
    }
    assert!(
        began.elapsed() < 3 * TIMEOUT,
        "held blocks took {:?}",
        began.elapsed()
    );
    cluster.worker(0).process().signal(Signal::SIGCONT);

    client.set_request_timeout(DEADLINE);
    read_mib(&held, 155, MIB).expect("the daemon goes on");
    read_mib(&open(&client, &other).expect("it exists"), 156, 0).expect("it can be read");
    assert_eq!(client.stats().reconnects, 0, "its session was never given up");
}
