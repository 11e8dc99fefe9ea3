//! The commands as users run them, against a small daemon and a small HTTP server.

#![allow(clippy::unwrap_used, reason = "tests; clippy knows only their functions")]

#[path = "../../tests/fake/mod.rs"]
mod fake;
mod http;

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use cachelet_protocol::wire::{BypassReason, Code, Message};
use fake::{Answer, FakeDaemon, bypass, failed, pattern};
use http::{HttpServer, Reply};

const PATH: &str = "s3://lake/table/part-0.parquet";

fn cachelet() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cachelet"));
    for variable in [
        "CACHELET_SOCKET_DIR",
        "CACHELET_SERVICE",
        "AWS_ENDPOINT_URL",
        "AWS_REGION",
    ] {
        command.env_remove(variable);
    }
    command
}

fn with_daemon(daemon: &FakeDaemon) -> Command {
    let mut command = cachelet();
    command.arg("--socket-dir").arg(daemon.directory());
    command
}

fn with_object(length: usize) -> (FakeDaemon, Vec<u8>) {
    let daemon = FakeDaemon::start();
    let bytes = pattern(1, length);
    daemon.model().put(PATH, "etag-1", bytes.clone());
    (daemon, bytes)
}

/// The exit code and the one line on standard error.
fn failure(output: &Output) -> (i32, String) {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    assert!(text.starts_with("cachelet: "), "{text}");
    (output.status.code().unwrap(), text)
}

#[test]
fn cat_writes_the_objects_bytes_and_only_them() {
    let (daemon, bytes) = with_object(9_000_001);
    let output = with_daemon(&daemon).args(["cat", PATH]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, bytes);
    assert_eq!(output.stderr, b"");
}

#[test]
fn cat_takes_ranges_as_http_spells_them() {
    let (daemon, bytes) = with_object(3_000_000);
    for (range, expected) in [
        ("0-9", &bytes[..10]),
        ("1048570-1048580", &bytes[1_048_570..=1_048_580]),
        ("2999990-", &bytes[2_999_990..]),
        ("-5", &bytes[2_999_995..]),
    ] {
        let output = with_daemon(&daemon)
            .args(["cat", PATH, "--range", range])
            .output()
            .unwrap();
        assert_eq!(output.stdout, expected, "{range}");
    }
    let output = with_daemon(&daemon)
        .args(["cat", PATH, "--range", "3000000-"])
        .output()
        .unwrap();
    let (code, line) = failure(&output);
    assert_eq!(code, 64);
    assert!(
        line.contains("--range") && line.contains("3000000 bytes"),
        "{line}"
    );
}

#[test]
fn cat_to_a_file_leaves_a_complete_one_or_none() {
    let (daemon, bytes) = with_object(5_000_000);
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("out");
    let to = |daemon: &FakeDaemon| {
        with_daemon(daemon)
            .args(["--output", "json", "cat", PATH, "--to"])
            .arg(&target)
            .output()
            .unwrap()
    };
    let output = to(&daemon);
    assert!(output.status.success());
    assert_eq!(std::fs::read(&target).unwrap(), bytes);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["bytes"], 5_000_000);
    assert_eq!(report["stats"]["local_bytes"], 5_000_000);
    std::fs::remove_file(&target).unwrap();
    daemon.hook(|replier, request, message| match message {
        Message::Fill(fill) if fill.block.0 == 1 && request != 0 => {
            replier.send(&failed(Code::OriginUnavailable, "the origin is away"), request);
            Answer::Done
        }
        _ => Answer::Good,
    });
    assert_eq!(failure(&to(&daemon)).0, 75);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn cat_into_a_closed_pipe_is_no_failure() {
    let (daemon, bytes) = with_object(9_000_000);
    let mut child = with_daemon(&daemon)
        .args(["cat", PATH])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 5];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(first, bytes[..5]);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stderr, b"");
}

#[test]
fn cat_reads_a_worker_of_another_node_with_the_clusters_secret() {
    let (daemon, bytes) = with_object(2_000_000);
    let cachelet_client::Target::Remote { address, token } = daemon.remote_options().target else {
        panic!("a remote target");
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{token}\n")).unwrap();
    let worker = format!("tcp://{address}");
    let output = cachelet()
        .args(["cat", PATH, "--worker", &worker, "--token-file"])
        .arg(file.path())
        .output()
        .unwrap();
    assert_eq!(output.stdout, bytes);
    std::fs::write(file.path(), "guess").unwrap();
    let output = cachelet()
        .args(["cat", PATH, "--worker", &worker, "--token-file"])
        .arg(file.path())
        .output()
        .unwrap();
    assert_eq!(failure(&output).0, 77);
    let output = cachelet()
        .args(["cat", PATH, "--worker", &worker])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
}

#[test]
fn failures_have_their_exit_codes_and_one_line() {
    let (daemon, _) = with_object(100);
    let output = with_daemon(&daemon)
        .args(["cat", "s3://lake/missing"])
        .output()
        .unwrap();
    assert_eq!(failure(&output).0, 66);
    let output = cachelet()
        .args(["--socket-dir", "/nonexistent", "cat", PATH])
        .output()
        .unwrap();
    let (code, line) = failure(&output);
    assert_eq!(code, 69);
    assert!(line.contains("/nonexistent"), "{line}");
    for (code, exit) in [
        (Code::PermissionDenied, 77),
        (Code::OriginUnavailable, 75),
        (Code::Internal, 70),
    ] {
        daemon.hook(move |replier, request, message| match message {
            Message::Open(_) => {
                replier.send(&failed(code, "said the test"), request);
                Answer::Done
            }
            _ => Answer::Good,
        });
        let output = with_daemon(&daemon).args(["cat", PATH]).output().unwrap();
        assert_eq!(failure(&output).0, exit, "{code}");
    }
    for wrong in [
        &["cat", "lake/key"][..],
        &["cat", PATH, "--range", "9-1"],
        &["cat", PATH, "--etag", "x"],
        &["cat"],
        &["fly"],
    ] {
        assert_eq!(
            cachelet().args(wrong).output().unwrap().status.code(),
            Some(64),
            "{wrong:?}"
        );
    }
}

/// A daemon that asks for proof, and the generations that it was given.
fn asking_for_proof(daemon: &FakeDaemon) -> Arc<Mutex<Vec<String>>> {
    let presented: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&presented);
    daemon.hook(move |replier, request, message| match message {
        Message::Open(open) => match &open.generation {
            None => {
                replier.send(&bypass(BypassReason::GenerationRequired), request);
                Answer::Done
            }
            Some(generation) => {
                seen.lock().unwrap().push(generation.to_string());
                Answer::Good
            }
        },
        _ => Answer::Good,
    });
    presented
}

#[test]
fn the_right_to_read_is_proved_by_one_head_with_ones_own_credentials() {
    let (daemon, bytes) = with_object(100_000);
    let presented = asking_for_proof(&daemon);
    let store = HttpServer::start(|request| {
        assert!(request.contains("AWS4-HMAC-SHA256 Credential=mine/"), "{request}");
        Reply::new(200)
            .header("etag", "\"etag-1\"")
            .header("content-length", "100000")
            .header("last-modified", "Sat, 21 Nov 2026 10:00:00 GMT")
    });
    let cat = || {
        let mut command = with_daemon(&daemon);
        command
            .args(["cat", PATH, "--endpoint", &store.url(), "--region", "eu-west-1"])
            .env("AWS_ACCESS_KEY_ID", "mine")
            .env("AWS_SECRET_ACCESS_KEY", "secret");
        command
    };
    let output = cat().output().unwrap();
    assert_eq!(
        output.stdout,
        bytes,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(presented.lock().unwrap().as_slice(), ["etag-1 (100000 bytes)"]);
    let requests = store.requests();
    assert_eq!(requests.len(), 1);
    assert!(
        requests[0].starts_with("HEAD /lake/table/part-0.parquet "),
        "{requests:?}"
    );

    store.answer(|_| Reply::new(403));
    assert_eq!(failure(&cat().output().unwrap()).0, 77);
    store.answer(|_| Reply::new(404));
    assert_eq!(failure(&cat().output().unwrap()).0, 66);
    assert_eq!(
        presented.lock().unwrap().len(),
        1,
        "without proof nothing is opened"
    );
}

#[test]
fn a_generation_given_by_hand_needs_no_proof() {
    let (daemon, bytes) = with_object(100_000);
    asking_for_proof(&daemon);
    let output = with_daemon(&daemon)
        .args(["cat", PATH, "--etag", "\"etag-1\"", "--size", "100000"])
        .output()
        .unwrap();
    assert_eq!(output.stdout, bytes);
    let output = with_daemon(&daemon)
        .args(["cat", PATH, "--etag", "etag-0", "--size", "100000"])
        .output()
        .unwrap();
    let (code, line) = failure(&output);
    assert_eq!(code, 75);
    assert!(line.contains("etag-0") && line.contains(PATH), "{line}");
}

fn locality() -> HttpServer {
    HttpServer::start(|request| {
        if request.starts_with("GET /v1/nodes ") {
            return Reply::new(200).body(
                r#"{"nodes": [{"node": "node-1", "uuid": "u-1", "state": "ready", "capacity_bytes": 1073741824,
                    "used_bytes": 5, "blocks": 3, "sessions": 1, "local_bytes": 1, "peer_bytes": 2, "origin_bytes": 3,
                    "field_of_a_later_version": true}]}"#,
            );
        }
        assert!(request.starts_with("POST /v1/locations "), "{request}");
        Reply::new(200).body(
            r#"{"locations": [{"path": "s3://lake/table/part-0.parquet", "known": true, "size_bytes": 9, "blocks": [
                {"index": 0, "offset": 0, "length": 9, "nodes": [
                    {"node": "node-1", "state": "resident", "residency": "all", "pod_ip": "", "host_ip": ""},
                    {"node": "node-2", "state": "planned", "residency": "none", "pod_ip": "", "host_ip": ""}]}]}]}"#,
        )
    })
}

#[test]
fn locate_asks_for_the_candidates_and_shows_a_row_a_block() {
    let service = locality();
    let output = cachelet()
        .args([
            "--service",
            &service.url(),
            "locate",
            PATH,
            "--candidates",
            "node-1,node-2",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("node-1 (all), node-2 (planned)"), "{text}");
    let request: String = service.requests().remove(0).split_whitespace().collect();
    assert!(
        request.contains(r#""candidates":["node-1","node-2"]"#),
        "{request}"
    );
    let output = cachelet()
        .args(["--service", &service.url(), "--output", "json", "locate", PATH])
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["locations"][0]["blocks"][0]["nodes"][0]["node"], "node-1");
}

#[test]
fn status_shows_the_workers_and_names_a_service_that_is_away() {
    let service = locality();
    let output = cachelet()
        .args(["--service", &service.url(), "status"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("node-1") && text.contains("1.0 GiB"), "{text}");
    let away = "http://127.0.0.1:1";
    let (code, line) = failure(&cachelet().args(["--service", away, "status"]).output().unwrap());
    assert_eq!(code, 69);
    assert!(line.contains(away), "{line}");
    service.answer(|_| {
        Reply::new(400).body(r#"{"error": {"code": "bad_request", "message": "said the test"}}"#)
    });
    let (code, line) = failure(
        &cachelet()
            .args(["--service", &service.url(), "status"])
            .output()
            .unwrap(),
    );
    assert_eq!(code, 64);
    assert!(line.contains("said the test"), "{line}");
}

#[test]
fn stat_shows_the_generation_and_where_it_is() {
    let (daemon, _) = with_object(9_000_000);
    let service = locality();
    let stat = |service: &str| {
        let output = with_daemon(&daemon)
            .args(["--service", service, "--output", "json", "stat", PATH])
            .output()
            .unwrap();
        assert!(output.status.success());
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let known = stat(&service.url());
    assert_eq!(
        (&known["etag"], &known["block_count"]),
        (&"etag-1".into(), &3.into())
    );
    assert_eq!(known["blocks"][0]["nodes"][1]["state"], "planned");
    let unknown = stat("http://127.0.0.1:1");
    assert_eq!(unknown["size_bytes"], 9_000_000);
    assert!(unknown["locality_problem"].is_string());
}
