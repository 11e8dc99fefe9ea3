//! `cachelet dev` with stand-ins for the programs that it runs: what it starts, watches and stops.

#![allow(clippy::unwrap_used, reason = "tests; clippy knows only their functions")]

mod http;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use http::{HttpServer, Reply};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);
/// Writes its ready file (its last argument) and lives on.
const LOCALITY: &str = r#"#!/bin/sh
printf '{"http": "%s", "grpc": "127.0.0.1:9"}' "$STUB_HTTP" > "$6.tmp" && mv "$6.tmp" "$6"
exec sleep 1000
"#;
const DAEMON: &str = r#"#!/bin/sh
echo "a line in the log"
printf '{"socket": "/s", "admin": "%s", "remote": null}' "$STUB_HTTP" > "$4.tmp" && mv "$4.tmp" "$4"
exec sleep 1000
"#;

/// A directory with `cachelet` and stand-ins beside it.
struct Bench {
    directory: tempfile::TempDir,
    server: HttpServer,
}

impl Bench {
    fn new(daemon: &str) -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        std::fs::hard_link(env!("CARGO_BIN_EXE_cachelet"), directory.path().join("cachelet")).unwrap();
        for (name, script) in [("cacheletd", daemon), ("cachelet-locality", LOCALITY)] {
            let program = directory.path().join(name);
            std::fs::write(&program, script).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::create_dir(directory.path().join("root")).unwrap();
        let cluster = directory.path().join("dev");
        let server = HttpServer::start(move |request| {
            if request.starts_with("GET /v1/nodes ") {
                return Reply::new(200).body(&nodes(&cluster));
            }
            assert!(request.starts_with("GET /readyz "), "{request}");
            Reply::new(200).body("ok")
        });
        Self { directory, server }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.directory.path().join("cachelet"));
        command
            .args(["dev", "--store", "file", "--unprotected", "--root"])
            .arg(self.directory.path().join("root"))
            .arg("--dir")
            .arg(self.directory.path().join("dev"))
            .arg("--ready-file")
            .arg(self.ready_file())
            .env("STUB_HTTP", self.server.address().to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn ready_file(&self) -> PathBuf {
        self.directory.path().join("ready.json")
    }

    /// Starts it and waits until it says where everything is.
    fn start(&self) -> (Child, Value) {
        let child = self.command().spawn().unwrap();
        let mut text = Vec::new();
        wait_until("the ready file", || {
            text = std::fs::read(self.ready_file()).unwrap_or_default();
            !text.is_empty()
        });
        (child, serde_json::from_slice(&text).unwrap())
    }
}

/// What a locality service would say about the workers that are configured.
fn nodes(cluster: &Path) -> String {
    let entries: Vec<_> = ["node-1", "node-2"]
        .iter()
        .filter_map(|node| {
            let config = std::fs::read_to_string(cluster.join(node).join("cacheletd.toml")).ok()?;
            let uuid = config.lines().find_map(|line| line.strip_prefix("uuid = "))?.trim_matches('"').to_owned();
            Some(format!(
                r#"{{"node": "{node}", "uuid": "{uuid}", "state": "ready", "capacity_bytes": 0, "used_bytes": 0, "blocks": 0,
                    "sessions": 0, "local_bytes": 0, "peer_bytes": 0, "origin_bytes": 0}}"#
            ))
        })
        .collect();
    format!(r#"{{"nodes": [{}]}}"#, entries.join(","))
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

fn children(description: &Value) -> Vec<Pid> {
    let nodes = description["nodes"].as_array().unwrap();
    let pids = nodes
        .iter()
        .chain([&description["service"]])
        .map(|child| &child["pid"]);
    pids.map(|pid| Pid::from_raw(i32::try_from(pid.as_u64().unwrap()).unwrap()))
        .collect()
}

fn is_alive(pid: Pid) -> bool {
    // A zombie of an init that is slow to reap counts as dead.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn end(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

#[test]
fn dev_says_where_everything_is_and_stops_it_all_when_asked() {
    for stop in [Signal::SIGTERM, Signal::SIGINT] {
        let bench = Bench::new(DAEMON);
        let (child, description) = bench.start();
        let pids = children(&description);
        assert_eq!(pids.len(), 3);
        assert!(pids.iter().all(|pid| is_alive(*pid)));
        let node = &description["nodes"][1];
        assert_eq!(
            (&node["node"], &node["address"]),
            (&"node-2".into(), &"127.0.0.3".into())
        );
        let config = std::fs::read_to_string(node["config"].as_str().unwrap()).unwrap();
        for line in [
            "node_name = \"node-2\"",
            "grants = \"unprotected\"",
            "listen = \"127.0.0.3:0\"",
            "service = \"http://127.0.0.1:9\"",
            "authorization = \"daemon\"",
        ] {
            assert!(config.contains(line), "{line} in {config}");
        }
        let secret = std::fs::metadata(description["secret_file"].as_str().unwrap()).unwrap();
        assert_eq!(secret.permissions().mode() & 0o777, 0o600);
        signal(&child, stop);
        let output = end(child);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("status page"));
        assert!(!pids.iter().any(|pid| is_alive(*pid)));
        assert!(!bench.ready_file().exists());
    }
}

#[test]
fn dev_whose_worker_dies_names_it_shows_its_log_and_ends_the_rest() {
    let bench = Bench::new(DAEMON);
    let (child, description) = bench.start();
    let pids = children(&description);
    kill(pids[1], Signal::SIGKILL).unwrap();
    let output = end(child);
    assert_eq!(output.status.code(), Some(70));
    let errors = text(&output.stderr);
    assert!(
        errors.contains("worker node-2 ended") && errors.contains("a line in the log"),
        "{errors}"
    );
    assert!(!pids.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn dev_whose_worker_cannot_start_says_why() {
    let bench = Bench::new("#!/bin/sh\necho 'cache.directory: not today' >&2\nexit 1\n");
    let output = bench.command().output().unwrap();
    assert_eq!(output.status.code(), Some(70));
    let errors = text(&output.stderr);
    assert!(errors.contains("cache.directory: not today"), "{errors}");
}

#[test]
fn children_end_with_a_dev_that_was_killed() {
    let bench = Bench::new(DAEMON);
    let (child, description) = bench.start();
    signal(&child, Signal::SIGKILL);
    end(child);
    let pids = children(&description);
    wait_until("the children's end", || !pids.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn dev_asked_to_stop_while_it_starts_stops() {
    // The workers never say that they are ready.
    let bench = Bench::new("#!/bin/sh\ntouch \"$4.begun\"\nexec sleep 1000\n");
    let child = bench.command().spawn().unwrap();
    let begun = bench.directory.path().join("dev/node-2/cacheletd.ready.begun");
    wait_until("the workers' start", || begun.exists());
    signal(&child, Signal::SIGINT);
    assert!(end(child).status.success());
}

#[test]
fn wrong_input_is_refused_before_anything_starts() {
    let bench = Bench::new(DAEMON);
    let cachelet = bench.directory.path().join("cachelet");
    let refused = |arguments: &[&str]| {
        let output = Command::new(&cachelet)
            .arg("dev")
            .args(arguments)
            .env("PATH", "")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        text(&output.stderr)
    };
    assert!(refused(&["--store", "file"]).contains("--root"));
    assert!(refused(&["--store", "file", "--root", "/nonexistent"]).contains("/nonexistent"));
    assert!(refused(&["--store", "s3", "--root", "/"]).contains("--root"));
    assert!(refused(&["--block-bytes", "3MiB"]).contains("--block-bytes"));
    refused(&["--nodes", "0"]);
    std::fs::remove_file(bench.directory.path().join("cacheletd")).unwrap();
    assert!(refused(&["--store", "s3"]).contains("cacheletd is neither beside"));
}
