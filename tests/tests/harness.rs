//! The harness itself, against the real S3 servers: a test that trusts it must be able to.

#![cfg(test)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cachelet_tests::{
    Bucket, Fault, FaultProxy, LiteralS3, Process, S3Kind, S3Server, TestDir, Traffic, deterministic_bytes,
    deterministic_range, free_port, sha256_file, sha256_hex, wait_until,
};
use http::Method;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

const DEADLINE: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

/// A bucket of the shared server, and the same one through a proxy.
fn behind_proxy() -> (FaultProxy, Bucket, Bucket) {
    let server = S3Server::shared();
    let proxy = FaultProxy::start(server.address());
    let bucket = server.bucket();
    let proxied = bucket.through(proxy.address());
    (proxy, bucket, proxied)
}

fn objects_round_trip(bucket: &Bucket) {
    for size in [0, 1, 65_537, 8 * MIB + 3] {
        let content = deterministic_bytes(size, size);
        let stored = bucket.put("dir/object", &content);
        assert_eq!(stored.size_bytes, size);
        assert_eq!(bucket.get("dir/object").body, content, "{size} bytes");
        assert_eq!(bucket.head("dir/object").etag(), stored.etag);
        assert_eq!(bucket.sha256("dir/object"), stored.sha256);
    }
    bucket.copy("dir/object", "copy of the object");
    bucket.delete("dir/object");
    assert_eq!(bucket.get("dir/object").status, 404);
    assert_eq!(bucket.get("copy of the object").body.len() as u64, 8 * MIB + 3);
}

fn ranged_reads_are_conditional(bucket: &Bucket) {
    let before = bucket.put("object", &deterministic_bytes(1, MIB));
    let reply = bucket.get_range("object", 1000..3000, Some(&before.etag));
    assert_eq!(reply.status, 206);
    assert_eq!(reply.header("content-range"), Some("bytes 1000-2999/1048576"));
    assert_eq!(reply.body, deterministic_range(1, 1000..3000));

    let after = bucket.put("object", &deterministic_bytes(2, MIB));
    assert_ne!(before.etag, after.etag);
    assert_eq!(
        bucket.get_range("object", 1000..3000, Some(&before.etag)).status,
        412
    );
}

#[test]
fn objects_round_trip_through_the_shared_server() {
    objects_round_trip(&S3Server::shared().bucket());
}

#[test]
fn objects_round_trip_through_versitygw() {
    let server = S3Server::start_fresh(S3Kind::VersityGw);
    objects_round_trip(&server.bucket());
    ranged_reads_are_conditional(&server.bucket());
}

#[test]
fn a_ranged_read_with_an_old_etag_is_refused_after_an_overwrite() {
    ranged_reads_are_conditional(&S3Server::shared().bucket());
}

#[test]
fn an_unusual_key_names_an_object_of_its_own() {
    let bucket = S3Server::shared().bucket();
    let keys = [
        "a/b",
        "a%2Fb",
        "a%252Fb",
        "a+b",
        "a b",
        "a b=c",
        "100%",
        "~x",
        "ä/日本",
        "🚀",
        "a:b&c?d#e",
        "tab\there",
    ];
    let stored = keys.map(|key| bucket.put(key, key.as_bytes()));
    for object in stored {
        let read = bucket.get(&object.key);
        assert_eq!((read.status, &read.body[..]), (200, object.key.as_bytes()));
    }
}

#[test]
fn the_literal_server_keeps_keys_apart_that_are_one_file() {
    let server = LiteralS3::start();
    let bucket = server.bucket();
    let long = "k".repeat(1024);
    let keys = [
        "x/y", "x//y", "/x/y", "x/y/", "./x/y", "x/./y", "x", "a/../x", "../x", ".", "", "%2e/x", &long,
    ];
    let stored = keys.map(|key| bucket.put(key, key.as_bytes()));
    for object in stored {
        assert_eq!(&bucket.get(&object.key).body[..], object.key.as_bytes());
    }
    objects_round_trip(&bucket);
    ranged_reads_are_conditional(&bucket);
    assert_eq!(bucket.get_range("object", MIB..MIB + 1, None).status, 416);
}

#[test]
fn an_unsigned_request_is_refused() {
    let server = S3Server::shared();
    let bucket = server.bucket();
    bucket.put("object", b"secret");
    let unsigned = http::Request::get(format!("{}/{}/object", server.endpoint(), bucket.name()))
        .body(())
        .unwrap();
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .new_agent();
    assert_eq!(agent.run(unsigned).unwrap().status().as_u16(), 403);
}

#[test]
fn a_stopped_server_refuses_connections_and_keeps_its_data() {
    let mut server = S3Server::start_fresh(S3Kind::VersityGw);
    let bucket = server.bucket();
    let stored = bucket.put("object", b"kept");
    server.stop();
    assert!(TcpStream::connect(server.address()).is_err());
    server.start();
    assert_eq!(bucket.head("object").etag(), stored.etag);
    assert_eq!(&bucket.get("object").body[..], b"kept");
}

#[test]
fn the_proxy_counts_and_records_what_goes_through_it() {
    let (proxy, bucket, proxied) = behind_proxy();
    let stored = bucket.put("a b%2F/ü", &deterministic_bytes(5, MIB));
    proxied.head("a b%2F/ü");
    let reply = proxied.get_range("a b%2F/ü", 100..70_100, Some(&stored.etag));
    assert_eq!(reply.body, deterministic_range(5, 100..70_100));

    assert_eq!((proxy.count(&Method::HEAD), proxy.count(&Method::GET)), (1, 1));
    assert_eq!(proxy.bytes_sent(), 70_000);
    let request = proxy.requests().pop().unwrap();
    assert_eq!(request.path, format!("/{}/a%20b%252F/%C3%BC", bucket.name()));
    assert_eq!(request.range.as_deref(), Some("bytes=100-70099"));
    assert_eq!(request.if_match, Some(stored.etag));
    proxy.reset();
    assert_eq!((proxy.requests().len(), proxy.bytes_sent()), (0, 0));
}

#[test]
fn a_production_client_reads_through_the_proxy() {
    let (proxy, bucket, proxied) = behind_proxy();
    let content = deterministic_bytes(6, 3 * MIB);
    bucket.put("object", &content);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let read = runtime.block_on(async {
        use object_store::ObjectStoreExt;
        proxied
            .object_store()
            .get(&"object".into())
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap()
    });
    assert!(read == content);
    assert_eq!(proxy.bytes_sent(), 3 * MIB);
}

#[test]
fn faults_hit_the_next_requests_in_order_and_then_stop() {
    let (proxy, bucket, proxied) = behind_proxy();
    let stored = bucket.put("object", &deterministic_bytes(7, MIB));
    proxy.inject(2, Fault::Status(503));
    proxy.inject(1, Fault::WrongEtag);
    proxy.inject(1, Fault::WrongRange);
    assert_eq!(proxied.get("object").status, 503);
    assert_eq!(proxied.head("object").status, 503);
    let wrong_etag = proxied.get("object");
    assert_eq!(wrong_etag.status, 200);
    assert_ne!(wrong_etag.etag(), stored.etag);
    let wrong_range = proxied.get_range("object", 10..20, None);
    assert_eq!(wrong_range.header("content-range"), Some("bytes 11-19/1048576"));
    let right = proxied.get("object");
    assert_eq!((right.status, right.etag()), (200, stored.etag.as_str()));
    proxy.inject(3, Fault::Stall);
    assert_eq!(proxy.clear_faults(), 3);
    assert_eq!(proxied.get("object").status, 200);
}

/// Reads an object over a bare connection through the proxy: the body's bytes until the connection ends, or has been
/// quiet for a moment (then the result is an error).
fn read_bare(proxied: &Bucket, key: &str) -> (Vec<u8>, std::io::Result<()>) {
    use object_store::signer::Signer;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let url = runtime
        .block_on(
            proxied
                .object_store()
                .signed_url(Method::GET, &key.into(), DEADLINE),
        )
        .unwrap();
    let mut stream = TcpStream::connect(url.authority()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let (path, query) = (url.path(), url.query().unwrap());
    write!(
        stream,
        "GET {path}?{query} HTTP/1.1\r\nHost: {}\r\n\r\n",
        url.authority()
    )
    .unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 200"), "{line}");
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    let mut body = Vec::new();
    let end = reader.read_to_end(&mut body).map(drop);
    (body, end)
}

#[test]
fn a_cut_body_ends_after_exactly_the_bytes_asked_for() {
    let (proxy, bucket, proxied) = behind_proxy();
    bucket.put("object", &deterministic_bytes(8, MIB));
    for after_bytes in [0, 1, 65_536, 200_000] {
        proxy.reset();
        proxy.inject(1, Fault::CutBody { after_bytes });
        let (body, end) = read_bare(&proxied, "object");
        assert!(end.is_ok(), "the connection was left open: {end:?}");
        assert_eq!(body, deterministic_range(8, 0..after_bytes));
        assert_eq!(proxy.bytes_sent(), after_bytes);
    }
}

#[test]
fn a_stalled_body_leaves_the_connection_open() {
    let (proxy, bucket, proxied) = behind_proxy();
    bucket.put("object", &deterministic_bytes(9, MIB));
    proxy.inject(1, Fault::StallBody { after_bytes: 100_000 });
    let (body, end) = read_bare(&proxied, "object");
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(body, deterministic_range(9, 0..100_000));
}

#[test]
fn the_first_byte_waits_for_the_delay_and_the_rest_for_the_bandwidth() {
    let (proxy, bucket, proxied) = behind_proxy();
    let content = deterministic_bytes(10, MIB);
    bucket.put("object", &content);
    proxy.set_first_byte_delay(Duration::from_millis(60));
    let started = Instant::now();
    proxied.head("object");
    assert!(started.elapsed() >= Duration::from_millis(60));

    proxy.set_first_byte_delay(Duration::ZERO);
    proxy.set_bandwidth(Some(4 * MIB));
    let started = Instant::now();
    assert!(proxied.get("object").body == content);
    // All but the last piece have taken their time when the last one is sent.
    assert!(
        started.elapsed() >= Duration::from_millis(200),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn every_connection_has_the_bandwidth_for_itself() {
    let (proxy, bucket, _) = behind_proxy();
    let content = deterministic_bytes(11, 9 * MIB);
    bucket.put("object", &content);
    proxy.set_bandwidth(Some(18_000_000));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            // A client of its own is a connection of its own.
            let reader = bucket.through(proxy.address());
            scope.spawn(move || assert_eq!(reader.get("object").body.len() as u64, 9 * MIB));
        }
    });
    // 524 ms for each by itself; four times as much if they shared the bandwidth.
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(500), "{took:?}");
    assert!(took < Duration::from_millis(1600), "{took:?}");
    assert_eq!(proxy.traffic().data_bytes, 4 * 9 * MIB);
}

#[test]
fn traffic_is_counted_by_kind_and_only_objects_are_data() {
    let (server, upload) = (S3Server::shared(), S3Server::shared().bucket());
    let proxy = FaultProxy::start_reusing_connections(server.address());
    let through = upload.through(proxy.address());
    upload.put("dir/object", b"content");
    assert_eq!(through.get("dir/object").status, 200);
    assert_eq!(through.get("dir/object").status, 200);
    assert_eq!(through.head("dir/object").status, 200);
    assert_eq!(through.get("").status, 200);
    assert_eq!(through.get("no-such-object").status, 404);
    let before = proxy.traffic();
    let expected = Traffic {
        gets: 3,
        heads: 1,
        lists: 1,
        others: 0,
        data_bytes: 14,
    };
    assert_eq!(before, expected);
    through.head("dir/object");
    assert_eq!(
        proxy.traffic().since(&before),
        Traffic {
            heads: 1,
            ..Traffic::default()
        }
    );
}

#[test]
fn held_requests_arrive_but_are_answered_only_after_the_release() {
    let (proxy, bucket, proxied) = behind_proxy();
    bucket.put("object", b"content");
    let hold = proxy.hold();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| proxied.get("object").status))
            .collect();
        wait_until(DEADLINE, "three requests wait", || hold.waiting() == 3);
        assert_eq!((proxy.count(&Method::GET), proxy.bytes_sent()), (3, 0));
        drop(hold);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 200);
        }
    });
    assert_eq!(proxy.most_under_way(), 3);
    proxy.reset();
    for _ in 0..3 {
        assert_eq!(proxied.get("object").status, 200);
    }
    // One after the other; the end of an answer may be noticed after the client has all of it.
    assert!((1..=2).contains(&proxy.most_under_way()));
}

#[test]
#[should_panic(expected = "waited 20ms in vain until pigs fly")]
fn waiting_in_vain_panics_with_what_was_waited_for() {
    wait_until(Duration::from_millis(20), "pigs fly", || false);
}

#[test]
fn free_ports_are_free_and_different() {
    let listeners: Vec<_> = (0..20)
        .map(|_| TcpListener::bind(("127.0.0.1", free_port())))
        .collect();
    assert!(listeners.iter().all(Result::is_ok), "{listeners:?}");
}

#[test]
fn a_process_is_watched_signalled_and_its_output_kept() {
    let dir = TestDir::new("process");
    let script = "trap 'echo bye; exit 7' TERM; sleep 1000 & echo $!; echo started; wait";
    let mut process = Process::command("sh").args(["-c", script]).start(dir.path());
    assert_eq!(process.wait_for_line(DEADLINE, "start"), "started");
    assert!(process.is_running());
    let left_behind = process.log().lines().next().map(str::to_owned).unwrap();
    assert_eq!(process.terminate(DEADLINE).code(), Some(7));
    assert!(process.log().ends_with("started\nbye\n"), "{}", process.log());
    wait_until(DEADLINE, "what it left behind is gone", || {
        !is_alive(&left_behind)
    });

    let finished = Process::command("sh")
        .args(["-c", "echo out; echo err >&2; exit 3"])
        .run(DEADLINE);
    assert_eq!(
        (
            finished.code(),
            finished.text().as_str(),
            finished.stderr.as_str()
        ),
        (3, "out\n", "err\n")
    );
}

#[test]
#[should_panic(expected = "ended (exit status: 4) before it wrote a line with \"ready\"")]
fn waiting_for_a_process_that_has_ended_fails_at_once() {
    let dir = TestDir::new("process");
    let mut process = Process::command("sh")
        .args(["-c", "echo no; exit 4"])
        .start(dir.path());
    process.wait_for_line(Duration::from_hours(1), "ready");
}

#[test]
fn a_dropped_process_is_killed_with_its_children() {
    let dir = TestDir::new("process");
    let mut process = Process::command("sh")
        .args(["-c", "sleep 1000 & echo $!; wait"])
        .start(dir.path());
    let grandchild = process.wait_for_line(DEADLINE, "");
    assert!(is_alive(&grandchild));
    drop(process);
    wait_until(DEADLINE, "the grandchild is gone", || !is_alive(&grandchild));
}

#[test]
fn a_process_outlives_the_thread_that_started_it() {
    let dir = TestDir::new("process");
    let path = dir.path().to_owned();
    let start = move || Process::command("sleep").arg("1000").start(&path);
    let mut process = std::thread::spawn(start).join().unwrap();
    assert!(process.is_running());
    assert_eq!(process.kill().signal(), Some(Signal::SIGKILL as i32));
}

/// Not a test of its own: the victim of the next one.
#[test]
fn victim() {
    if std::env::var_os("CACHELET_HARNESS_VICTIM").is_some() {
        let dir = TestDir::new("victim");
        let process = Process::command("sleep").arg("1000").start(dir.path());
        println!("victim {} {}", process.pid(), dir.path().display());
        // Until it is killed.
        std::thread::park();
    }
}

#[test]
fn a_killed_test_process_leaves_neither_processes_nor_directories() {
    let dir = TestDir::new("killer");
    let mut victim = Process::command(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture"])
        .env("CACHELET_HARNESS_VICTIM", "1")
        .start(dir.path());
    let line = victim.wait_for_line(DEADLINE, "cachelet-victim-");
    let line = line
        .split_once("victim ")
        .map_or_else(|| panic!("{line}"), |(_, rest)| rest.to_owned());
    let (pid, left) = line.split_once(' ').unwrap();
    let left = PathBuf::from(left);
    assert!(is_alive(pid) && left.exists());
    victim.kill();
    wait_until(DEADLINE, "its child is gone", || !is_alive(pid));
    wait_until(DEADLINE, "its directory is gone", || !left.exists());
}

/// Whether a process runs (a zombie does not).
fn is_alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.starts_with('Z'))
    })
}

#[test]
fn a_test_directory_unmounts_what_is_beneath_it_and_keeps_what_was_mounted() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mounting takes root");
        return;
    }
    let kept = TestDir::new("kept");
    std::fs::write(kept.join("file"), "content").unwrap();
    let dir = TestDir::new("mounts");
    let target = dir.create_dir("a b/mount");
    mount(
        Some(kept.path()),
        &target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .unwrap();
    assert_eq!(sha256_file(&target.join("file")), sha256_hex(b"content"));
    let path = dir.path().to_owned();
    drop(dir);
    assert!(!path.exists());
    assert_eq!(std::fs::read_to_string(kept.join("file")).unwrap(), "content");
}
