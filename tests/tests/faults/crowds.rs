//! Very many clients, and clients that take nothing, hang or die: they get no more than their share, and others are served.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cachelet_client::{Client, OpenRequest, Options, Target};
use cachelet_protocol::wire::{FrameKind, Open, Read, Role, encode};
use cachelet_tests::raw::{RawSession, connect, hello};
use cachelet_tests::{
    Baseline, Cluster, Dose, LiteralS3, Outcome, Process, Reader, Reference, TestDir, Worker, wait_until,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use rand::Rng;

use super::support::{DEADLINE, KIB, MIB, options_of, raise_descriptor_limit};

/// The number in a line of the process's `/proc/<pid>/status`.
fn number_of(worker: &mut Worker, line: &str) -> u64 {
    let path = format!("/proc/{}/status", worker.process().pid());
    let status = fs::read_to_string(path).expect("the worker runs");
    let value = status.lines().find_map(|text| text.strip_prefix(line));
    let number = value.and_then(|text| text.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).expect("a number")
}

/// Processor time that the worker has used so far.
fn processor_time(worker: &mut Worker) -> Duration {
    let path = format!("/proc/{}/stat", worker.process().pid());
    let stat = fs::read_to_string(path).expect("the worker runs");
    let after_name = stat.rsplit_once(')').expect("a name in parentheses").1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: u64 = [fields[11], fields[12]]
        .iter()
        .map(|field| field.parse::<u64>().expect("a number of ticks"))
        .sum();
    Duration::from_millis(ticks * 10)
}

/// Whether the other side has closed, without taking what it sent before.
fn is_closed(socket: &UnixStream) -> bool {
    let mut poll_fd = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    poll(&mut poll_fd, PollTimeout::ZERO).expect("a socket can be polled") > 0
}

fn objects_of(reference: &Reference, count: usize, size: u64) -> Vec<cachelet_tests::Version> {
    (0..count)
        .map(|number| reference.put(&format!("object {number}"), size))
        .collect()
}

#[test]
fn many_connections_cost_little_and_grants_go_on() {
    let dose = Dose::of("F15 many connections");
    let (connections, opens) = dose.choose((500, 200), (10_000, 5000));
    raise_descriptor_limit();
    let server = LiteralS3::start();
    let mut cluster = Cluster::of(&server.endpoint())
        .without_service()
        .block_size("1MiB")
        .local_config("max_sessions = 10500")
        .start();
    let reference = Arc::new(Reference::of(server.bucket(), dose.seed()));
    let objects = objects_of(&reference, 50, 100 * KIB);
    let worker = cluster.worker(0);
    let baseline = Baseline::of(worker);
    let reader = Reader::new(options_of(worker), &reference);
    for version in &objects {
        assert_eq!(reader.read(version, 0..100 * KIB), Outcome::Cached);
    }
    drop(reader);
    baseline.assert_nothing_left(worker);
    let threads = number_of(worker, "Threads:");
    let before = number_of(worker, "RssAnon:");
    let crowd: Vec<UnixStream> = (0..connections)
        .map(|_| RawSession::begin(worker).into_socket())
        .collect();
    assert_eq!(worker.count("/sessions"), connections);
    let each = number_of(worker, "RssAnon:").saturating_sub(before) * KIB / connections;
    let mut random = dose.random(0);
    let mut took: Vec<Duration> = (0..opens)
        .map(|_| {
            let version = &objects[random.random_range(0..objects.len())];
            let mut session = RawSession::begin(worker);
            let began = Instant::now();
            let (_, grant) = session.open(&version.path, 100 * KIB);
            grant.expect("grants go on");
            began.elapsed()
        })
        .collect();
    took.sort();
    let reader = Reader::new(options_of(worker), &reference);
    for version in &objects {
        assert_eq!(reader.read(version, 0..100 * KIB), Outcome::Cached);
    }
    assert_eq!(reader.client().stats().inline_bytes, 0);
    let more_threads = number_of(worker, "Threads:").saturating_sub(threads);
    drop((reader, crowd));
    baseline.assert_nothing_left(worker);
    let (median, late) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    dose.showed(&format!(
        "{connections} connections of {each} bytes each, {more_threads} more threads; a grant took {median:?} (p50), {late:?} (p99)"
    ));
    assert!(each <= 16 * KIB, "{each} bytes of anonymous memory a connection");
}

#[test]
fn a_daemon_without_descriptors_serves_who_is_there_and_recovers() {
    let dose = Dose::of("F16 descriptors used up");
    let (objects, rounds) = dose.choose((300, 2), (300, 500));
    let server = LiteralS3::start();
    let mut cluster = Cluster::of(&server.endpoint())
        .without_service()
        .block_size("1MiB")
        .descriptors(256)
        .start();
    let reference = Arc::new(Reference::of(server.bucket(), dose.seed()));
    let objects = objects_of(&reference, objects, 100 * KIB);
    let worker = cluster.worker(0);
    let baseline = Baseline::of(worker);
    let mut random = dose.random(0);
    let mut counts = cachelet_tests::Counts::default();
    let mut busiest = 0.0_f64;
    for _ in 0..rounds {
        let reader = Reader::new(options_of(worker), &reference);
        // More files than descriptors.
        for version in &objects {
            reader.read(version, 0..100 * KIB);
        }
        let sockets = fs::read_dir(worker.socket_dir()).expect("it is there");
        let path = sockets.flatten().next().expect("the worker's socket").path();
        let crowd: Vec<UnixStream> = (0..300)
            .filter_map(|_| UnixStream::connect(&path).ok())
            .map(|mut socket| {
                // Those that are accepted stay; the rest wait to be.
                let _ = socket.write_all(&encode(&hello(Role::Control), 0, 1));
                socket
            })
            .collect();
        let (began, used) = (Instant::now(), processor_time(worker));
        cachelet_tests::pause(Duration::from_secs(1));
        let share = processor_time(worker).saturating_sub(used).as_secs_f64() / began.elapsed().as_secs_f64();
        busiest = busiest.max(share);
        for _ in 0..50 {
            let version = &objects[random.random_range(0..objects.len())];
            reader.read(version, 0..100 * KIB);
        }
        drop(crowd);
        wait_until(DEADLINE, "the daemon grants again", || {
            let newcomer = Reader::new(options_of(worker), &reference);
            newcomer.read(&objects[0], 0..100 * KIB) == Outcome::Cached
                && newcomer.read(&objects[0], 1..100 * KIB) == Outcome::Cached
                && newcomer.client().descriptors_held() > 0
        });
        counts.add(&reader.counts());
    }
    baseline.assert_nothing_left(worker);
    dose.showed(&format!(
        "{rounds} rounds, at most {:.1} % of a processor while there was no descriptor; {counts:?}",
        busiest * 100.0
    ));
    assert!(busiest < 0.5, "it spins: {busiest}");
}

#[test]
fn clients_that_ask_and_never_receive_pin_few_descriptors_and_harm_nobody() {
    let dose = Dose::of("F17 descriptors never received");
    let attackers = dose.choose(100, 1000);
    raise_descriptor_limit();
    let server = LiteralS3::start();
    let mut cluster = Cluster::of(&server.endpoint())
        .without_service()
        .block_size("1MiB")
        .start();
    let reference = Arc::new(Reference::of(server.bucket(), dose.seed()));
    let objects = objects_of(&reference, 20, 100 * KIB);
    let worker = cluster.worker(0);
    let baseline = Baseline::of(worker);
    let victim = Reader::new(options_of(worker), &reference);
    for version in &objects {
        assert_eq!(victim.read(version, 0..100 * KIB), Outcome::Cached);
    }
    let crowd: Vec<UnixStream> = (0..attackers)
        .map(|_| {
            let mut socket = RawSession::begin(worker).into_socket();
            socket.set_nonblocking(true).expect("a socket");
            // As many as the socket takes: the daemon stops reading when nobody takes its answers.
            for request in 2..500 {
                let version = &objects[request as usize % objects.len()];
                let open = Open {
                    length: 100 * KIB,
                    flags: 0,
                    ..Open::generation_only(version.path.parse().expect("a valid path"))
                };
                if socket.write_all(&encode(&open, 0, request)).is_err() {
                    break;
                }
            }
            socket
        })
        .collect();
    wait_until(DEADLINE, "the attackers have what they get", || {
        worker.count("/grants/unacknowledged") >= attackers
    });
    let mut most = 0;
    for version in &objects {
        let newcomer = Reader::new(options_of(worker), &reference);
        for reader in [&victim, &newcomer] {
            assert_eq!(reader.read(version, 3..100 * KIB), Outcome::Cached);
        }
        most = most.max(worker.count("/grants/unacknowledged"));
    }
    assert_eq!(
        victim.client().stats().inline_bytes,
        0,
        "the victim was granted all"
    );
    assert_eq!(victim.client().stats().reconnects, 0);
    assert!(most <= 8 * attackers + 8, "{most} descriptors on their way");
    drop((crowd, victim));
    baseline.assert_nothing_left(worker);
    dose.showed(&format!("{attackers} attackers, {most} descriptors on their way"));
}

/// Opens a session and a data connection of it, asks for all of an object, and takes nothing.
fn ask_and_stall(
    worker: &Worker,
    path: &str,
    size: u64,
    data_connections: usize,
) -> (RawSession, Vec<UnixStream>) {
    let mut session = RawSession::begin(worker);
    let (opened, grant) = session.open(path, 1);
    drop(grant);
    session.acknowledge(1);
    let sockets = (0..data_connections)
        .map(|_| {
            let hello = cachelet_protocol::wire::Hello {
                session: session.welcome.session,
                session_secret: session.welcome.session_secret,
                ..hello(Role::Data)
            };
            let read = Read {
                handle: opened.handle,
                offset: 0,
                length: size,
                peer: None,
                flags: 0,
            };
            let mut socket = connect(worker);
            let bytes = [encode(&hello, 0, 1), encode(&read, 0, 2)].concat();
            socket.write_all(&bytes).expect("the daemon reads");
            socket
        })
        .collect();
    (session, sockets)
}

#[test]
fn readers_that_take_nothing_and_writers_that_never_end_are_given_up_and_harm_nobody() {
    const SIZE: u64 = 16 * MIB;
    let dose = Dose::of("F21 slow readers");
    // Four data connections each: more than the daemon has threads for the disk (512).
    let (sessions, dribblers) = dose.choose((140, 50), (400, 1000));
    raise_descriptor_limit();
    let server = LiteralS3::start();
    let mut cluster = Cluster::of(&server.endpoint()).without_service().start();
    let reference = Arc::new(Reference::of(server.bucket(), dose.seed()));
    let large = reference.put("large", SIZE);
    let cold = objects_of(&reference, 20, 200 * KIB);
    let worker = cluster.worker(0);
    let baseline = Baseline::of(worker);
    let victim = Reader::new(options_of(worker), &reference);
    assert_eq!(victim.read(&large, 0..SIZE), Outcome::Cached);
    let mut stalled = Vec::new();
    for _ in 0..sessions {
        stalled.push(ask_and_stall(worker, &large.path, SIZE, 4));
    }
    let dribbling: Vec<UnixStream> = (0..dribblers)
        .map(|_| {
            let mut socket = RawSession::begin(worker).into_socket();
            let header = cachelet_protocol::wire::FrameHeader {
                length: 1000,
                kind: FrameKind::Open as u8,
                flags: 0,
                request: 2,
            };
            socket.write_all(&header.to_bytes()).expect("the daemon reads");
            socket
        })
        .collect();
    let still_open = || {
        let sockets = stalled.iter().flat_map(|(_, sockets)| sockets).chain(&dribbling);
        sockets.filter(|socket| !is_closed(socket)).count()
    };
    let (began, open) = (Instant::now(), still_open());
    let mut slowest = Duration::ZERO;
    let inline = Reader::new(
        Options {
            inline_only: true,
            ..options_of(worker)
        },
        &reference,
    );
    for version in &cold {
        for reader in [&victim, &inline] {
            let asked = Instant::now();
            assert_eq!(reader.read(version, 0..200 * KIB), Outcome::Cached);
            slowest = slowest.max(asked.elapsed());
        }
    }
    let served_at = began.elapsed();
    wait_until(DEADLINE, "those who take nothing are given up", || {
        still_open() == 0
    });
    let given_up = began.elapsed();
    assert_eq!(
        victim.client().stats().reconnects + inline.client().stats().reconnects,
        0
    );
    drop((stalled, dribbling, victim, inline));
    baseline.assert_nothing_left(worker);
    dose.showed(&format!(
        "{open} connections that take nothing, given up after {given_up:?}; others' slowest read {slowest:?}, all within {served_at:?}"
    ));
    // They are given up after 10 s; whoever else reads must not wait for that.
    assert!(served_at < Duration::from_secs(8), "others waited: {served_at:?}");
}

/// Tells a child process what to read, and where to say that it holds it.
const CHILD: &str = "CACHELET_TEST_HOLDER";

/// In a child: reads objects, holds them, says so, reads on for ever.
fn hold_in_child(arguments: &str) {
    let mut lines = arguments.lines();
    let mut next = || lines.next().expect("what the test said");
    let (sockets, ready) = (PathBuf::from(next()), PathBuf::from(next()));
    let client = Client::new(Options {
        target: Target::Local { socket_dir: sockets },
        ..Options::default()
    });
    let objects: Vec<_> = lines
        .map(|path| {
            let request = OpenRequest::new(path.parse().expect("a valid path"));
            client.open(&request).expect("it exists")
        })
        .collect();
    let mut buffer = vec![0; 100 << 10];
    loop {
        for object in &objects {
            object
                .read_exact_at(&mut buffer, 0)
                .expect("it is held, or served");
        }
        if !ready.exists() {
            fs::write(&ready, "").expect("the test's directory");
        }
        cachelet_tests::pause(Duration::from_millis(1));
    }
}

#[test]
fn stopped_and_killed_clients_leave_nothing_behind() {
    const NAME: &str = "crowds::stopped_and_killed_clients_leave_nothing_behind";
    if let Ok(arguments) = std::env::var(CHILD) {
        return hold_in_child(&arguments);
    }
    let dose = Dose::of("F24 stopped and killed clients");
    let rounds = dose.choose(3, 200);
    let server = LiteralS3::start();
    let mut cluster = Cluster::of(&server.endpoint())
        .without_service()
        .quota("16MiB")
        .block_size("1MiB")
        .start();
    let reference = Arc::new(Reference::of(server.bucket(), dose.seed()));
    let objects = objects_of(&reference, 40, 300 * KIB);
    let worker = cluster.worker(0);
    let baseline = Baseline::of(worker);
    let mut random = dose.random(0);
    let dir = TestDir::new("holders");
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let mut holders: Vec<Process> = (0..6)
            .map(|number| {
                let ready = dir.join(format!("{round}-{number}"));
                let mut holder = start_holder(NAME, worker, &ready, &objects[number..number + 4], &dir);
                holder.wait_until(DEADLINE, "it holds its objects", || ready.exists());
                holder
            })
            .collect();
        assert_eq!(worker.count("/sessions"), 6);
        assert!(worker.count("/grants/held_bytes") > 0);
        let mut stopped = Vec::new();
        for holder in &mut holders {
            if random.random_bool(0.5) {
                holder.signal(Signal::SIGSTOP);
                stopped.push(holder.pid());
            }
        }
        // What they hold is evicted, which those that are stopped hear nothing of; others go on.
        let reader = Reader::new(options_of(worker), &reference);
        for version in objects.iter().chain(&objects) {
            assert_ne!(reader.read(version, 0..300 * KIB), Outcome::Changed);
        }
        drop(reader);
        let began = Instant::now();
        for mut holder in holders {
            holder.kill();
        }
        wait_until(DEADLINE, "their sessions are over", || {
            worker.count("/sessions") == 0
        });
        slowest = slowest.max(began.elapsed());
        baseline.assert_nothing_left(worker);
    }
    dose.showed(&format!(
        "{rounds} rounds of 6 clients, sessions over {slowest:?} after SIGKILL"
    ));
}

fn start_holder(
    test: &str,
    worker: &Worker,
    ready: &Path,
    objects: &[cachelet_tests::Version],
    dir: &TestDir,
) -> Process {
    let mut arguments = format!("{}\n{}", worker.socket_dir().display(), ready.display());
    for version in objects {
        arguments.push('\n');
        arguments.push_str(&version.path);
    }
    Process::command(std::env::current_exe().expect("/proc is mounted"))
        .args([test, "--exact", "--test-threads=1"])
        .env(CHILD, arguments)
        .start(dir.path())
}

#[test]
fn who_is_root_in_a_user_namespace_cannot_write_to_a_granted_file() {
    if !cachelet_tests::can_mount() {
        println!("skipped: making the read-only mount needs root");
        return;
    }
    let server = LiteralS3::start();
    let mut cluster = Cluster::of(&server.endpoint()).without_service().start();
    let reference = Arc::new(Reference::of(server.bucket(), 7));
    let version = reference.put("granted", MIB);
    let worker = cluster.worker(0);
    let mut session = RawSession::begin(worker);
    let (_, grant) = session.open(&version.path, MIB);
    let file = fs::File::from(grant.expect("grants are enabled").descriptor);
    // As its standard input, with all capabilities in its own namespaces, and as nobody outside of them.
    let attempt = |script: &str| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
        command.stdin(file.try_clone().expect("a descriptor is left"));
        command.output().expect("unshare (util-linux) starts")
    };
    let alive = attempt("head -c 16 <&0 | wc -c");
    assert_eq!(String::from_utf8_lossy(&alive.stdout).trim(), "16", "{alive:?}");
    for script in [
        "echo x >> /proc/self/fd/0",
        "echo x > /proc/self/fd/0",
        "mount -o remount,rw,bind \"$(readlink -f /proc/self/fd/0 | sed 's,/v1/.*,,')\" && echo x >> /proc/self/fd/0",
    ] {
        let output = attempt(script);
        assert!(!output.status.success(), "{script}: {output:?}");
    }
    let reader = Reader::new(options_of(worker), &reference);
    assert_eq!(reader.read(&version, 0..MIB), Outcome::Cached);
}
