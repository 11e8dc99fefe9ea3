//! The service's process: arguments, exit codes, the line and the file that say where it listens, signals.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cachelet_locality::Config;

fn service(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cachelet-locality"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = service(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Killed at the test's end, if it still runs.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn it_says_where_it_listens_and_ends_in_order_on_sigterm() {
    let directory = tempfile::tempdir().unwrap();
    let ready_file = directory.path().join("ready.json");
    let mut child = Running(
        service(&[
            "--http",
            "127.0.0.1:0",
            "--grpc",
            "127.0.0.1:0",
            "--ready-file",
            ready_file.to_str().unwrap(),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap(),
    );
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let fields = line.trim().strip_prefix("listening http=").unwrap();
    let (http, grpc) = fields.split_once(" grpc=").unwrap();
    let http: SocketAddr = http.parse().unwrap();
    assert!(http.port() != 0 && grpc.parse::<SocketAddr>().unwrap().port() != 0);
    let begun = Instant::now();
    let ready = loop {
        if let Ok(text) = std::fs::read_to_string(&ready_file) {
            break text;
        }
        assert!(begun.elapsed() < support::DEADLINE);
        std::thread::sleep(Duration::from_millis(5));
    };
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    assert_eq!(
        (ready["http"].as_str(), ready["grpc"].as_str()),
        (Some(http.to_string().as_str()), Some(grpc))
    );
    assert_eq!(ready["pid"], child.0.id());
    assert_eq!(
        std::fs::read_dir(directory.path()).unwrap().count(),
        1,
        "no temporary file is left"
    );

    let mut client = TcpStream::connect(http).unwrap();
    client
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n"),
        "{answer}"
    );

    let pid = child.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < support::DEADLINE, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_taken_port_is_named_with_the_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (free, busy) in [("--grpc", "--http"), ("--http", "--grpc")] {
        let (code, stdout, stderr) = run(&[free, "127.0.0.1:0", busy, &address]);
        assert_eq!((code, stdout.as_str()), (Some(1), ""));
        let key = format!("`{}`", busy.trim_start_matches('-'));
        for word in [address.as_str(), key.as_str(), "another port"] {
            assert!(stderr.contains(word), "{word}: {stderr}");
        }
    }
}

#[test]
fn wrong_arguments_and_configurations_exit_with_64_and_name_the_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("locality.toml");
    let config = file.to_str().unwrap();
    for (text, named) in [
        ("leese = \"10s\"", "leese"),
        ("lease = \"1s\"", "`lease` is 1s"),
        ("http = 7070", "http"),
        ("max_request_paths = -1", "max_request_paths"),
        ("log = \"a=b=c\"", "`log`"),
        ("= 1", "line 1: = 1"),
    ] {
        std::fs::write(&file, text).unwrap();
        for check in [
            &["--config", config][..],
            &["--config", config, "--check-config"][..],
        ] {
            let (code, stdout, stderr) = run(check);
            assert_eq!((code, stdout.as_str()), (Some(64), ""), "{text}");
            assert!(stderr.contains(named), "{text}: {stderr}");
        }
    }
    let (code, _, stderr) = run(&["--config", "/no/such/file.toml"]);
    assert!(
        code == Some(64) && stderr.contains("/no/such/file.toml"),
        "{stderr}"
    );
    let (code, _, stderr) = run(&["--htpp", "127.0.0.1:0"]);
    assert!(code == Some(64) && stderr.contains("--http"), "{stderr}");
    let (code, _, stderr) = run(&["--http", "localhost"]);
    assert!(code == Some(64) && stderr.contains("localhost"), "{stderr}");
}

#[test]
fn the_dumped_configuration_can_be_used_and_the_help_teaches() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("locality.toml");
    let (code, dump, _) = run(&["--dump-config", "--http", "127.0.0.1:9"]);
    assert_eq!(code, Some(0));
    std::fs::write(&file, &dump).unwrap();
    let read = Config::read(&file).unwrap();
    assert_eq!(read.http.to_string(), "127.0.0.1:9");
    let (code, stdout, _) = run(&["--check-config", "--config", file.to_str().unwrap()]);
    assert_eq!(
        (code, stdout.as_str()),
        (Some(0), "the configuration is in order\n")
    );
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    for word in ["--dump-config", "Examples:", "/v1/locations", "Exit codes"] {
        assert!(help.contains(word), "{word}: {help}");
    }
}
