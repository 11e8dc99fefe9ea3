//! `load` and `free` as users run them, against a small daemon on this node's socket and a small locality service.

#![allow(clippy::unwrap_used, reason = "tests; clippy knows only their functions")]

#[path = "../../tests/fake/mod.rs"]
mod fake;
mod http;

use std::process::{Command, Output};

use cachelet_protocol::wire::{Code, FREE_DRY_RUN, FREE_PREFIX, Message, OPEN_NO_DATA, Priority};
use fake::{Answer, FakeDaemon, failed, pattern};
use http::{HttpServer, Reply};

const PATH: &str = "s3://lake/table/part-0.parquet";
const LENGTH: usize = 9_000_000;

/// A service that knows the small daemon, and puts the object's blocks there.
fn locality() -> HttpServer {
    HttpServer::start(|request| {
        if request.starts_with("GET /v1/nodes ") {
            return Reply::new(200).body(
                r#"{"nodes": [{"node": "node-1", "uuid": "07070707-0707-0707-0707-070707070707", "state": "ready",
                    "capacity_bytes": 1048576, "used_bytes": 0, "blocks": 0, "sessions": 0, "local_bytes": 0,
                    "peer_bytes": 0, "origin_bytes": 0, "data_address": ""}]}"#,
            );
        }
        assert!(request.starts_with("POST /v1/locations "), "{request}");
        let block = |index: u64| {
            let (offset, length) = (index << 22, (LENGTH as u64 - (index << 22)).min(1 << 22));
            format!(
                r#"{{"index": {index}, "offset": {offset}, "length": {length}, "nodes": [
                    {{"node": "node-1", "state": "planned", "residency": "none"}}]}}"#
            )
        };
        let blocks: Vec<_> = (0..3).map(block).collect();
        Reply::new(200).body(&format!(
            r#"{{"locations": [{{"path": "{PATH}", "known": true, "size_bytes": {LENGTH}, "blocks": [{}]}}]}}"#,
            blocks.join(",")
        ))
    })
}

fn run(daemon: &FakeDaemon, service: &HttpServer, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cachelet"))
        .env_remove("CACHELET_TOKEN_FILE")
        .arg("--socket-dir")
        .arg(daemon.directory())
        .args(["--service", &service.url()])
        .args(arguments)
        .output()
        .unwrap()
}

fn with_object() -> FakeDaemon {
    let daemon = FakeDaemon::start();
    daemon.model().put(PATH, "etag-1", pattern(1, LENGTH));
    daemon
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_load_asks_for_every_page_at_the_lowest_priority_and_for_no_byte() {
    let (daemon, service) = (with_object(), locality());
    let output = run(&daemon, &service, &["load", PATH]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(text.contains("1 objects: loaded 3 blocks, 8.6 MiB"), "{text}");
    // It is more than the cache of this worker takes.
    assert!(
        stderr(&output).contains("its cache takes 1.0 MiB"),
        "{}",
        stderr(&output)
    );
    let mut pages = 0;
    for message in daemon.log() {
        match message {
            Message::Open(open) => assert_ne!(open.flags & OPEN_NO_DATA, 0),
            Message::Fill(fill) => {
                assert_eq!(fill.priority, Priority::Load);
                pages += fill.pages.len();
            }
            Message::Release(_) | Message::Tally(_) => {}
            other => panic!("a load sends no {other:?}"),
        }
    }
    assert_eq!(pages, 9);
}

#[test]
fn a_worker_that_is_too_old_to_load_or_free_is_told_apart() {
    let (daemon, service) = (with_object(), locality());
    daemon.model().features = 0;
    let output = run(&daemon, &service, &["load", PATH]);
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("cannot load: update it"),
        "{}",
        stderr(&output)
    );
    let fills = daemon.requests(|message| matches!(message, Message::Fill(_)));
    assert_eq!(fills, 0, "an old worker would end the session");
    daemon.hook(|replier, request, message| match message {
        Message::Free(_) => {
            replier.send(
                &failed(Code::Unsupported, "this daemon knows no such request"),
                request,
            );
            Answer::Done
        }
        _ => Answer::Good,
    });
    let output = run(&daemon, &service, &["free", PATH]);
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("cannot free, update it"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_failure_that_may_pass_is_tried_again_and_one_that_lasts_is_reported() {
    let (daemon, service) = (with_object(), locality());
    let mut failures = 2;
    daemon.hook(move |replier, request, message| match message {
        Message::Fill(fill) if fill.block.0 == 1 && failures > 0 => {
            failures -= 1;
            replier.send(&failed(Code::OriginUnavailable, "the origin is away"), request);
            Answer::Done
        }
        _ => Answer::Good,
    });
    let output = run(&daemon, &service, &["load", PATH]);
    assert!(output.status.success(), "{}", stderr(&output));
    daemon.hook(|replier, request, message| match message {
        Message::Fill(fill) if fill.block.0 == 1 => {
            replier.send(&failed(Code::OriginUnavailable, "the origin is away"), request);
            Answer::Done
        }
        _ => Answer::Good,
    });
    let output = run(&daemon, &service, &["--output", "json", "load", PATH]);
    assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["loaded_blocks"], &report["failed_blocks"]),
        (&2.into(), &1.into())
    );
    assert!(
        report["failed"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("the origin is away")
    );
}

#[test]
fn a_free_names_an_object_or_a_prefix_and_may_only_ask() {
    let (daemon, service) = (with_object(), locality());
    run(&daemon, &service, &["load", PATH]);
    let dry = run(
        &daemon,
        &service,
        &["free", "s3://lake/table", "--recursive", "--dry-run"],
    );
    let text = String::from_utf8(dry.stdout).unwrap();
    assert!(text.contains("would forget 3 blocks"), "{text}");
    let freed = run(&daemon, &service, &["free", PATH]);
    let text = String::from_utf8(freed.stdout).unwrap();
    assert!(text.contains("forgot 3 blocks"), "{text}");
    let nothing = run(&daemon, &service, &["free", PATH]);
    assert_eq!(nothing.stdout, b"nothing of it is cached\n");
    let asked: Vec<_> = daemon
        .log()
        .into_iter()
        .filter_map(|message| match message {
            Message::Free(free) => Some((free.key, free.flags)),
            _ => None,
        })
        .collect();
    let key = "table/part-0.parquet".to_owned();
    assert_eq!(
        asked,
        [
            ("table/".to_owned(), FREE_PREFIX | FREE_DRY_RUN),
            (key.clone(), 0),
            (key, 0)
        ]
    );
}
