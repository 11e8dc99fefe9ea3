//! Callers and the service over real HTTP connections: answers, pages, limits, and clients that mean no good.

mod support;

use std::time::{Duration, Instant};

use cachelet_locality::Config;
use cachelet_locality::metrics::TABLE;
use cachelet_protocol::grpc::WorkerState;
use serde_json::{Value, json};
use support::{BLOCK_BYTES, Service, Worker, config, read_answer, segment, until, until_first_block};
use tokio::io::AsyncWriteExt;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_paths_are_answered_within_50_ms() {
    let service = Service::start(config()).await;
    let mut workers = Vec::new();
    for number in 0..20 {
        let mut worker = Worker::register(&service, &format!("node-{number:02}"), 1).await;
        let held = (0..1_000).filter(|key| key % 20 == number);
        let segments = held
            .map(|key| segment(&format!("t/part-{key}"), "e", 4 * BLOCK_BYTES, &[0, 2]))
            .collect();
        worker.full(segments, true).await;
        workers.push(worker);
    }
    until(|| async {
        let status = service.json("/status.json").await;
        (status["objects"] == 1_000)
            .then_some(())
            .ok_or(status["objects"].to_string())
    })
    .await;
    let paths: Vec<Value> = (0..1_000)
        .map(|key| json!({"path": format!("s3a://lake/t/part-{key}"), "size_bytes": 4 * BLOCK_BYTES, "etag": "e"}))
        .collect();
    let candidates: Vec<String> = (0..20).map(|number| format!("node-{number:02}")).collect();
    let body = serde_json::to_vec(&json!({"paths": paths, "candidates": candidates})).unwrap();
    let mut best = Duration::MAX;
    // The best of a few: other programs use the machine's cores, too.
    for _ in 0..5 {
        let begun = Instant::now();
        let answer = service.post("/v1/locations", &body).await;
        best = best.min(begun.elapsed());
        let answer = answer.json();
        let answered = answer["locations"].as_array().unwrap();
        assert_eq!(answered.len(), 1_000);
        for (number, path) in answered.iter().enumerate() {
            assert_eq!(path["path"], format!("s3a://lake/t/part-{number}"));
            let node = format!("node-{:02}", number % 20);
            assert_eq!(path["blocks"][0]["nodes"][0]["node"], node);
            assert_eq!(path["blocks"][2]["nodes"][0]["state"], "resident");
            assert_eq!(path["blocks"][3]["nodes"][0]["state"], "planned");
        }
    }
    println!("1,000 paths of 4 blocks among 20 nodes: {best:?}");
    assert!(best <= Duration::from_millis(50), "{best:?}");
}

#[tokio::test]
async fn candidates_are_respected() {
    let service = Service::start(config()).await;
    let mut a = Worker::register(&service, "node-a", 1).await;
    let _b = Worker::register(&service, "node-b", 1).await;
    a.full(vec![segment("k", "e", 1, &[0])], true).await;
    until_first_block(&service, "k", &["node-a/resident"]).await;
    let ask = async |candidates: Value| {
        let answer = service
            .locations(&json!({"paths": ["s3a://lake/k"], "candidates": candidates}))
            .await;
        answer["locations"][0]["blocks"][0]["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|node| {
                format!(
                    "{}/{}",
                    node["node"].as_str().unwrap(),
                    node["state"].as_str().unwrap()
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(ask(Value::Null).await, ["node-a/resident"]);
    assert_eq!(ask(json!(["node-b"])).await, ["node-b/planned"]);
    assert_eq!(
        ask(json!(["node-a", "node-b", "node-a"])).await,
        ["node-a/resident"]
    );
    assert_eq!(ask(json!(["virtual-node"])).await, Vec::<String>::new());
    assert_eq!(ask(json!([])).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_wrong_path_does_not_fail_the_others() {
    let service = Service::start(config()).await;
    let _worker = Worker::register(&service, "node-a", 1).await;
    let answer = service
        .locations(&json!({"paths": [
            "no-path", {"path": "s3a://lake/k", "size_bytes": 1}, "s3a://pond/k", "s3a://lake/unknown",
            {"path": "s3a://lake/k", "etag": "W/\"weak\"", "size_bytes": 1},
            {"path": "s3a://lake/k", "size_bytes": u64::MAX},
            {"path": "s3a://lake/\u{0}\u{1F600} +%2F//../", "size_bytes": 1},
        ]}))
        .await;
    let of = |index: usize| &answer["locations"][index];
    assert_eq!(
        (&of(0)["known"], &of(0)["error"]["code"]),
        (&json!(false), &json!("invalid_path"))
    );
    assert_eq!(of(1)["blocks"][0]["nodes"][0]["node"], "node-a");
    assert_eq!(of(2)["reason"], "unknown_store");
    assert_eq!(
        (&of(3)["reason"], &of(3)["blocks"]),
        (&json!("unknown_size"), &json!([]))
    );
    assert_eq!(of(4)["error"]["code"], "invalid_etag");
    assert_eq!(of(5)["error"]["code"], "too_many_blocks");
    assert_eq!(of(6)["known"], true);
}

#[tokio::test]
async fn a_request_that_makes_no_sense_is_refused_with_the_field_named() {
    let service = Service::start(Config {
        max_request_paths: 10,
        max_request_candidates: 10,
        ..config()
    })
    .await;
    let many = json!({"paths": vec!["s3a://lake/k"; 11]}).to_string();
    let candidates = json!({"paths": [], "candidates": vec!["n"; 11]}).to_string();
    let not_utf8 = b"{\"paths\": [\"s3a://lake/\xff\xfe\"]}";
    let cases: [(&[u8], &str, &str); 9] = [
        (b"", "bad_request", "EOF"),
        (b"{\"paths\": [", "bad_request", "EOF"),
        (b"{\"paths\": [{\"path\": 7}]}", "bad_request", "paths[0]: `path`"),
        (
            b"{\"paths\": [{\"path\": \"s3a://b/k\", \"size_bytes\": 1.5}]}",
            "bad_request",
            "`size_bytes`",
        ),
        (b"{\"path\": []}", "bad_request", "missing field `paths`"),
        (b"\0\xff\0\xff", "bad_request", "line 1"),
        (not_utf8, "bad_request", "paths[0]"),
        (many.as_bytes(), "too_many_paths", "`paths` has 11 entries"),
        (
            candidates.as_bytes(),
            "too_many_paths",
            "`candidates` has 11 entries",
        ),
    ];
    for (body, code, named) in cases {
        let answer = service.post("/v1/locations", body).await;
        assert_eq!((answer.status, answer.error_code().as_str()), (400, code));
        assert!(answer.text().contains(named), "{named}: {}", answer.text());
        assert!(answer.head.contains("content-type: application/json"));
    }
    assert_eq!(
        service.post("/v1/locations", b"{\"paths\": []}").await.text(),
        r#"{"locations":[]}"#
    );
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_however_it_is_sent() {
    let service = Service::start(Config {
        max_request_body_bytes: "4KiB".parse().unwrap(),
        ..config()
    })
    .await;
    let large = vec![b' '; 5_000];
    let answer = service.post("/v1/locations", &large).await;
    assert_eq!(
        (answer.status, answer.error_code().as_str()),
        (413, "body_too_large")
    );
    let mut chunked = format!("{:x}\r\n", large.len()).into_bytes();
    chunked.extend_from_slice(&large);
    chunked.extend_from_slice(b"\r\n0\r\n\r\n");
    let head =
        "POST /v1/locations HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = service.send(head, &chunked).await;
    assert_eq!(
        (answer.status, answer.error_code().as_str()),
        (413, "body_too_large")
    );
    let fits = format!("{:4096}", "{\"paths\": []}");
    assert_eq!(service.post("/v1/locations", fits.as_bytes()).await.status, 200);
}

#[tokio::test]
async fn clients_that_take_their_time_are_let_go() {
    let service = Service::start(Config {
        request_timeout: Duration::from_millis(200),
        ..config()
    })
    .await;
    let begun = Instant::now();
    let mut slow_header = service.connect().await;
    slow_header.write_all(b"POST /v1/loc").await.unwrap();
    let mut slow_body = service.connect().await;
    slow_body
        .write_all(b"POST /v1/locations HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        .await
        .unwrap();
    let idle = service.connect().await;
    let answer = read_answer(slow_body).await;
    assert_eq!((answer.status, answer.error_code().as_str()), (408, "timeout"));
    read_answer(slow_header).await;
    read_answer(idle).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(service.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_let_go() {
    let service = Service::start(Config {
        request_timeout: Duration::from_millis(300),
        ..config()
    })
    .await;
    let _worker = Worker::register(&service, "node-a", 1).await;
    // 20 MB of answer: more than sockets hold.
    let paths = vec![json!({"path": "s3a://lake/k", "size_bytes": 100 * BLOCK_BYTES}); 1_500];
    let body = serde_json::to_vec(&json!({"paths": paths})).unwrap();
    let head = format!(
        "POST /v1/locations HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut client = service.connect().await;
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(&body).await.unwrap();
    let open = async || {
        let metrics = service.get("/metrics").await.text();
        let connections = metrics
            .lines()
            .find(|line| line.starts_with("cachelet_locality_http_connections "));
        let known = metrics.contains("blocks_total{state=\"planned\"} 150000");
        (known, connections.unwrap().to_owned())
    };
    until(|| async {
        let (answered, connections) = open().await;
        let alone = connections.ends_with(" 1");
        (answered && alone).then_some(()).ok_or(connections)
    })
    .await;
    let answer = read_answer(client).await;
    assert!(
        answer.body.len() < 15_000_000,
        "the answer was cut off: {}",
        answer.body.len()
    );
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_behind() {
    let service = Service::start(config()).await;
    for _ in 0..20 {
        let mut client = service.connect().await;
        client
            .write_all(b"POST /v1/locations HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
            .await
            .unwrap();
    }
    until(|| async {
        let metrics = service.get("/metrics").await.text();
        let open = "cachelet_locality_http_connections 1\n";
        metrics.contains(open).then_some(()).ok_or(metrics)
    })
    .await;
}

#[tokio::test]
async fn bytes_that_are_no_http_are_refused() {
    let service = Service::start(config()).await;
    for bytes in [
        "\u{16}\u{3}\u{1}\u{2}hello\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
    ] {
        let answer = service.send(bytes, &[]).await;
        assert!(
            answer.status == 0 || answer.status == 400,
            "{bytes:?}: {}",
            answer.status
        );
    }
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(1 << 20));
    let answer = service.send(&long, &[]).await;
    assert!([0, 400, 414, 431].contains(&answer.status), "{}", answer.status);
    assert_eq!(service.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn unknown_pages_and_methods_say_what_there_is() {
    let service = Service::start(config()).await;
    let answer = service.get("/v2/locations").await;
    assert_eq!((answer.status, answer.error_code().as_str()), (404, "not_found"));
    assert!(answer.text().contains("/v1/locations"));
    let answer = service.get("/v1/locations").await;
    assert_eq!(
        (answer.status, answer.error_code().as_str()),
        (405, "method_not_allowed")
    );
    assert!(answer.head.contains("allow: post"));
    let answer = service.post("/v1/nodes", b"").await;
    assert_eq!(answer.status, 405);
    assert!(answer.head.contains("allow: get, head"));
    let head = service
        .send(
            "HEAD /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            &[],
        )
        .await;
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[tokio::test]
async fn nodes_tell_what_heartbeats_said() {
    let service = Service::start(config()).await;
    let mut worker = Worker::register(&service, "node-a", 3).await;
    worker.full(vec![], true).await;
    worker.heartbeat(WorkerState::Ready).await;
    until(|| async {
        let nodes = service.json("/v1/nodes").await;
        (nodes["nodes"][0]["blocks"] == 6)
            .then_some(())
            .ok_or(nodes.to_string())
    })
    .await;
    let node = service.json("/v1/nodes").await["nodes"][0].clone();
    for (field, value) in [
        ("node", json!("node-a")),
        ("uuid", json!("6e6f6465-2d61-0303-0303-030303030303")),
        ("epoch", json!(3)),
        ("state", json!("ready")),
        ("synced", json!(true)),
        ("data_address", json!("127.0.0.1:7000")),
        ("stores", json!(["lake"])),
        ("capacity_bytes", json!(1_u64 << 40)),
        ("used_bytes", json!(3_u64 << 30)),
        ("unlinked_held_bytes", json!(4)),
        ("sessions", json!(5)),
        ("local_bytes", json!(7)),
        ("peer_bytes", json!(8)),
        ("origin_bytes", json!(9)),
        ("grants_enabled", json!(true)),
    ] {
        assert_eq!(node[field], value, "{field}");
    }
    assert!(node["lease_age_ms"].as_u64().unwrap() < 10_000);
}

#[tokio::test]
async fn an_object_tells_who_holds_which_blocks() {
    let service = Service::start(config()).await;
    let mut a = Worker::register(&service, "node-a", 1).await;
    a.full(
        vec![segment("a+b %k", "e", 8 * BLOCK_BYTES, &[0, 1, 2, 5, 9])],
        true,
    )
    .await;
    let path = "/v1/objects?path=s3a%3A%2F%2Flake%2Fa+b%20%25k";
    until(|| async {
        let object = service.json(path).await;
        (object["known"] == true).then_some(()).ok_or(object.to_string())
    })
    .await;
    let object = service.json(path).await;
    assert_eq!(
        (&object["etag"], &object["size_bytes"]),
        (&json!("e"), &json!(8 * BLOCK_BYTES))
    );
    assert_eq!(
        (&object["store"], &object["path"]),
        (&json!("lake-identity"), &json!("s3a://lake/a+b %k"))
    );
    assert_eq!(object["path_id"].as_str().unwrap().len(), 32);
    assert_eq!(
        object["holders"][0]["runs"],
        json!([{"first": 0, "count": 3, "residency": "all"}, {"first": 5, "count": 1, "residency": "all"}])
    );
    let unknown = service.json("/v1/objects?path=s3a://lake/other").await;
    assert_eq!(
        (&unknown["known"], &unknown["holders"]),
        (&json!(false), &json!([]))
    );
    for (path, code) in [
        ("/v1/objects", "bad_request"),
        ("/v1/objects?path=%ff", "bad_request"),
        ("/v1/objects?path=nothing", "invalid_path"),
    ] {
        let answer = service.get(path).await;
        assert_eq!(
            (answer.status, answer.error_code().as_str()),
            (400, code),
            "{path}"
        );
    }
}

#[tokio::test]
async fn the_status_page_needs_nothing_else_and_the_same_is_there_as_json() {
    let service = Service::start(config()).await;
    let mut worker = Worker::register(&service, "node-a", 1).await;
    worker.heartbeat(WorkerState::Ready).await;
    until(|| async {
        let page = service.get("/status").await.text();
        page.contains("3.0 GiB of 1.0 TiB").then_some(()).ok_or(page)
    })
    .await;
    let page = service.get("/status").await;
    assert!(page.head.contains("content-type: text/html"));
    let html = page.text();
    assert!(html.contains("node-a") && html.contains("http-equiv=\"refresh\""));
    assert!(html.contains("prefers-color-scheme: dark"));
    assert!(
        !html.contains("src=") && !html.contains("http://") && !html.contains("https://"),
        "no external asset"
    );
    let accepts = "GET /status HTTP/1.1\r\nhost: x\r\naccept: application/json\r\nconnection: close\r\n\r\n";
    for answer in [
        service.get("/status.json").await,
        service.get("/status?format=json").await,
        service.send(accepts, &[]).await,
    ] {
        let status = answer.json();
        assert_eq!(
            (&status["nodes"][0]["node"], &status["lease_ms"]),
            (&json!("node-a"), &json!(10_000))
        );
    }
}

#[tokio::test]
async fn readiness_says_what_it_waits_for() {
    let service = Service::start(Config {
        ready_grace: Duration::from_mins(5),
        ..config()
    })
    .await;
    let ready = async || {
        let answer = service.get("/readyz").await;
        (answer.status, answer.text())
    };
    let (status, text) = ready().await;
    assert!(status == 503 && text.contains("workers to register"), "{text}");
    let mut worker = Worker::register(&service, "node-a", 1).await;
    let (status, text) = ready().await;
    assert!(status == 503 && text.contains("full reports"), "{text}");
    worker.full(vec![], true).await;
    until(|| async {
        let (status, text) = ready().await;
        (status == 200 && text.contains("1 workers ready"))
            .then_some(())
            .ok_or(text)
    })
    .await;
    let eager = Service::start(Config {
        ready_grace: Duration::ZERO,
        ..config()
    })
    .await;
    let answer = eager.get("/readyz").await;
    assert!(
        answer.status == 200 && answer.text().contains("no worker is registered"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn metrics_count_what_happens_and_carry_no_names() {
    let service = Service::start(config()).await;
    let mut worker = Worker::register(&service, "node-a", 1).await;
    worker.full(vec![segment("secret-key", "e", 1, &[0])], true).await;
    until_first_block(&service, "secret-key", &["node-a/resident"]).await;
    let text = service.get("/metrics").await.text();
    for line in [
        "cachelet_locality_workers{state=\"ready\"} 1",
        "cachelet_locality_registrations_total{outcome=\"new\"} 1",
        "cachelet_locality_report_messages_total{kind=\"full\"} 1",
        "cachelet_locality_segments_total{outcome=\"applied\"} 1",
        "cachelet_locality_index_objects 1",
        "cachelet_locality_report_streams 1",
        "cachelet_locality_http_request_seconds_count{route=\"locations\"}",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    assert!(!text.contains("node-a") && !text.contains("secret-key") && !text.contains("lake"));
    let known = |name: &str| {
        TABLE
            .iter()
            .any(|row| name.starts_with(row.name.trim_end_matches("_total")))
    };
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(known(line), "{line} is in no table");
    }
}
