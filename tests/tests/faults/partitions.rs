//! Networks that lose everything between two of the parts, in a network namespace of the test's own.
//!
//! A test runs itself again within a new namespace, where the service, the workers and the origin are all on its loopback
//! device, and packets are dropped by address and port.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cachelet_client::Options;
use cachelet_tests::{
    Baseline, Cluster, Counts, Dose, LiteralS3, Outcome, Process, Reader, Reference, TestDir, can_mount,
    node_name, pause, wait_until,
};
use rand::Rng;

use super::support::{DEADLINE, KIB, MIB, StopOnDrop, any_range, options_of};

/// What the peer has of each object.
const SIZE: u64 = 24 * MIB;
/// Tells the test that it is in a network of its own.
const CHILD: &str = "CACHELET_TEST_OWN_NETWORK";

/// Whether this is the test in a network of its own; elsewhere runs it there, and prints what it printed.
fn in_own_network(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let tables = Command::new("iptables").arg("--version").output();
    if !can_mount() || !tables.is_ok_and(|output| output.status.success()) {
        println!("skipped: a network namespace and its iptables need root and iptables");
        return false;
    }
    let dir = TestDir::new("own-network");
    let mut child = Process::command("unshare")
        .args(["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"])
        .arg(std::env::current_exe().expect("/proc is mounted"))
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .start(dir.path());
    let status = child.wait_for_exit(Duration::from_secs(3600));
    println!("{}", child.log());
    assert!(status.success(), "{status}");
    false
}

/// Packets from and to a port are lost while it lives.
struct Lost {
    ports: Vec<u16>,
}

impl Lost {
    fn new(ports: &[u16]) -> Self {
        let lost = Self {
            ports: ports.to_vec(),
        };
        lost.tables("-A");
        lost
    }

    fn tables(&self, change: &str) {
        for port in &self.ports {
            for direction in ["--dport", "--sport"] {
                let status = Command::new("iptables")
                    .args([
                        "-w",
                        change,
                        "INPUT",
                        "-p",
                        "tcp",
                        direction,
                        &port.to_string(),
                        "-j",
                        "DROP",
                    ])
                    .status()
                    .expect("iptables starts");
                assert!(status.success(), "iptables {change} for port {port}: {status}");
            }
        }
    }
}

impl Drop for Lost {
    fn drop(&mut self) {
        self.tables("-D");
    }
}

fn port(address: &str) -> u16 {
    let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
    port.expect("an address with a port")
}

#[test]
fn a_service_that_is_cut_off_flaps_or_is_dead_costs_no_read_and_is_told_all_afterwards() {
    if !in_own_network(
        "partitions::a_service_that_is_cut_off_flaps_or_is_dead_costs_no_read_and_is_told_all_afterwards",
    ) {
        return;
    }
    let dose = Dose::of("F13 service cut off, flapping, dead");
    let (away, flaps) = dose.choose((Duration::from_secs(5), 4), (Duration::from_mins(10), 50));
    let server = LiteralS3::start();
    let mut cluster = Cluster::of(&server.endpoint())
        .nodes(2)
        .quota("32MiB")
        .block_size("1MiB")
        .start();
    let reference = Arc::new(Reference::of(server.bucket(), dose.seed()));
    // Twice as much as fits, so that what the service believes grows old.
    let objects: Vec<_> = (0..32)
        .map(|number| reference.put(&format!("object {number}"), 2 * MIB))
        .collect();
    let options: Vec<_> = (0..2).map(|node| options_of(cluster.worker(node))).collect();
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut counts = Counts::default();
    let mut registered = Duration::ZERO;
    thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        let (reference, objects, stop, reads, dose) = (&reference, &objects, &stop, &reads, &dose);
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let options = options[number % 2].clone();
                scope.spawn(move || {
                    let reader = Reader::new(options, reference);
                    let mut random = dose.random(number as u64);
                    while !stop.load(Ordering::Acquire) {
                        let version = &objects[random.random_range(0..objects.len())];
                        let range = any_range(&mut random, version.size_bytes(), 256 * KIB);
                        assert_ne!(reader.read(version, range), Outcome::Changed, "{version:?}");
                        reads.fetch_add(1, Ordering::AcqRel);
                    }
                    reader.counts()
                })
            })
            .collect();
        let go_on = |what: &str| {
            let wanted = reads.load(Ordering::Acquire) + 100;
            wait_until(DEADLINE, what, || {
                reads.load(Ordering::Acquire) >= wanted
                    || threads.iter().any(thread::ScopedJoinHandle::is_finished)
            });
        };
        let mut back = |cluster: &Cluster, since: Instant| {
            wait_until(DEADLINE, "both workers are registered", || {
                cluster.service().ready_nodes().len() == 2
            });
            registered = registered.max(since.elapsed());
        };
        go_on("all is well");
        let lost = Lost::new(&[port(cluster.service().http()), port(cluster.service().grpc())]);
        pause(away);
        go_on("readers go on without the service");
        drop(lost);
        back(&cluster, Instant::now());
        let mut random = dose.random(99);
        for _ in 0..flaps {
            cluster.service_mut().kill();
            pause(Duration::from_millis(random.random_range(0..500)));
            go_on("readers go on while the service is dead");
            cluster.service_mut().start();
            pause(Duration::from_millis(random.random_range(0..500)));
        }
        back(&cluster, Instant::now());
        go_on("all is well again");
        drop(stopping);
        for thread in threads {
            counts.add(&thread.join().expect("no read fails"));
        }
    });
    assert_eq!(counts.origin, 0, "the daemons served everything: {counts:?}");
    // What the service says now is what the workers have.
    let reader = Reader::new(options[1].clone(), &reference);
    assert_eq!(reader.read(&objects[0], 0..2 * MIB), Outcome::Cached);
    cluster.wait_until_resident(&objects[0].path, 1);
    drop(reader);
    dose.showed(&format!(
        "cut off for {away:?}, {flaps} flaps, registered again after {registered:?} at most; {counts:?}"
    ));
}

#[test]
fn a_peer_that_is_cut_off_in_mid_stream_costs_no_read() {
    if !in_own_network("partitions::a_peer_that_is_cut_off_in_mid_stream_costs_no_read") {
        return;
    }
    let dose = Dose::of("F14 peer cut off in mid-stream");
    let rounds = dose.choose(4, 200);
    let server = LiteralS3::start();
    let mut cluster = Cluster::of(&server.endpoint())
        .nodes(2)
        .lease(Duration::from_mins(2))
        .block_size("8MiB")
        .start();
    let reference = Arc::new(Reference::of(server.bucket(), dose.seed()));
    let baselines = [0, 1].map(|node| Baseline::of(cluster.worker(node)));
    let options: Vec<_> = (0..2)
        .map(|node| Options {
            readahead_bytes: 2 * MIB,
            ..options_of(cluster.worker(node))
        })
        .collect();
    let peer = cluster.worker(1).remote_address().port();
    let mut random = dose.random(0);
    let (mut from_peer, mut slowest) = (0, Duration::ZERO);
    let mut counts = Counts::default();
    for round in 0..rounds {
        let version = reference.put(&format!("object {round}"), SIZE);
        let holder = Reader::new(options[1].clone(), &reference);
        assert_eq!(holder.read(&version, 0..SIZE), Outcome::Cached);
        drop(holder);
        cluster.wait_until_resident(&version.path, 1);
        wait_until(DEADLINE, "the peer is asked again", || {
            cluster.worker(0).count("/peers_left_out") == 0
        });
        let before = cluster.worker(0).count("/fill_bytes/peer");
        let reader = Reader::new(options[0].clone(), &reference);
        let cut = random.random_range(1..SIZE / MIB / 2) * MIB;
        let mut lost = None;
        for at in (0..SIZE).step_by(256 << 10) {
            if at >= cut && lost.is_none() {
                lost = Some(Lost::new(&[peer]));
            }
            let began = Instant::now();
            assert_ne!(reader.read(&version, at..at + 256 * KIB), Outcome::Changed);
            slowest = slowest.max(began.elapsed());
        }
        drop(lost);
        let given = cluster.worker(0).count("/fill_bytes/peer") - before;
        assert!(given < SIZE, "the peer was not cut off");
        from_peer += given;
        counts.add(&reader.counts());
    }
    assert!(from_peer > 0, "{} never gave anything", node_name(1));
    assert_eq!(counts.origin, 0, "the daemon served everything: {counts:?}");
    for (node, baseline) in baselines.iter().enumerate() {
        baseline.assert_nothing_left(cluster.worker(node));
    }
    dose.showed(&format!(
        "{rounds} rounds, {from_peer} bytes from the peer, slowest read {slowest:?}; {counts:?}"
    ));
}
