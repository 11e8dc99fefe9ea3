//! Workers and the service over real gRPC connections.

mod support;

use std::time::{Duration, Instant};

use cachelet_locality::Config;
use cachelet_protocol::grpc::service_message::Kind as Reply;
use cachelet_protocol::grpc::{self, WorkerState, worker_message};
use serde_json::json;
use support::{
    BLOCK_BYTES, Service, Worker, config, first_block, registration, segment, until, until_first_block,
};
use tonic::Code;

#[tokio::test]
async fn a_registered_worker_is_told_its_lease_and_is_in_the_answers() {
    let service = Service::start(config()).await;
    let mut worker = Worker::open(&service, registration("node-a", 1)).await;
    let Ok(Reply::Registered(terms)) = worker.reply().await else {
        panic!("not registered");
    };
    assert_eq!((terms.lease_ms, terms.heartbeat_ms), (10_000, 2_000));
    assert_eq!(first_block(&service, "k").await, ["node-a/planned"]);
    worker.full(vec![segment("k", "e", 1, &[0])], true).await;
    until_first_block(&service, "k", &["node-a/resident"]).await;
    let answer = service.locations(&json!({"paths": ["s3a://lake/k"]})).await;
    assert_eq!(
        answer["locations"][0],
        json!({
            "path": "s3a://lake/k", "known": true, "size_bytes": 1, "etag": "e", "block_bytes": BLOCK_BYTES,
            "blocks": [{"index": 0, "offset": 0, "length": 1, "nodes": [{
                "node": "node-a", "state": "resident", "residency": "all", "pod_ip": "10.1.0.1", "host_ip": "10.0.0.1",
            }]}],
        })
    );
}

#[tokio::test]
async fn a_dead_worker_leaves_the_answers_within_its_lease() {
    let lease = Duration::from_millis(600);
    let short = Config {
        lease,
        heartbeat: Duration::from_millis(100),
        ..config()
    };
    let service = Service::start(short).await;
    let mut dead = Worker::register(&service, "node-a", 1).await;
    let mut live = Worker::register(&service, "node-b", 1).await;
    for worker in [&mut dead, &mut live] {
        worker.full(vec![segment("k", "e", 1, &[0])], true).await;
    }
    until(|| async {
        let nodes = first_block(&service, "k").await;
        (nodes.len() == 2).then_some(()).ok_or(format!("{nodes:?}"))
    })
    .await;
    let died = Instant::now();
    drop(dead);
    while first_block(&service, "k").await != ["node-b/resident"] {
        assert!(
            died.elapsed() < lease + Duration::from_secs(1),
            "it is still answered"
        );
        live.heartbeat(WorkerState::Ready).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let nodes = service.json("/v1/nodes").await;
    assert_eq!(nodes["nodes"][0]["state"], "lost");
    assert_eq!(nodes["nodes"][1]["state"], "ready");
}

#[tokio::test]
async fn a_newer_epoch_of_a_node_replaces_the_old_at_once() {
    let service = Service::start(config()).await;
    let mut old = Worker::register(&service, "node-a", 1).await;
    old.full(vec![segment("k", "e", 1, &[0])], true).await;
    until_first_block(&service, "k", &["node-a/resident"]).await;
    let _new = Worker::register(&service, "node-a", 2).await;
    assert_eq!(
        first_block(&service, "k").await,
        ["node-a/planned"],
        "what the old one held is gone"
    );
    let nodes = service.json("/v1/nodes").await;
    assert_eq!(
        (
            nodes["nodes"].as_array().unwrap().len(),
            &nodes["nodes"][0]["epoch"]
        ),
        (1, &json!(2))
    );
    old.delta(vec![segment("k", "e", 1, &[0])]).await;
    assert_eq!(old.reply().await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(
        first_block(&service, "k").await,
        ["node-a/planned"],
        "a ghost reports nothing"
    );
}

#[tokio::test]
async fn a_worker_that_contradicts_the_others_is_refused_with_the_reason() {
    let service = Service::start(config()).await;
    let _live = Worker::register(&service, "node-a", 5).await;
    let mut other_identity = registration("node-b", 1);
    other_identity.stores[0].identity = "pond-identity".to_owned();
    let cases = [
        (
            other_identity,
            vec!["lake-identity", "pond-identity", "node-a", "node-b"],
        ),
        (
            grpc::Register {
                block_bytes: 1 << 20,
                ..registration("node-b", 1)
            },
            vec!["1048576", "134217728"],
        ),
        (registration("node-a", 4), vec!["epoch 5", "epoch 4"]),
        (
            grpc::Register {
                node: "a b".to_owned(),
                ..registration("node-b", 1)
            },
            vec!["node name", "a b"],
        ),
    ];
    for (message, words) in cases {
        let mut worker = Worker::open(&service, message).await;
        let Ok(Reply::Refused(refused)) = worker.reply().await else {
            panic!("not refused: {words:?}");
        };
        assert!(
            words.iter().all(|word| refused.message.contains(word)),
            "{}",
            refused.message
        );
        assert_eq!(
            worker.reply().await.unwrap_err().code(),
            Code::Ok,
            "the stream has ended"
        );
    }
    let nodes = service.json("/v1/nodes").await;
    assert_eq!(nodes["nodes"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_gap_asks_for_a_full_report_which_is_mark_and_sweep() {
    let service = Service::start(config()).await;
    let mut worker = Worker::register(&service, "node-a", 1).await;
    worker
        .full(vec![segment("k", "e", 1, &[0]), segment("l", "e", 1, &[0])], true)
        .await;
    until_first_block(&service, "l", &["node-a/resident"]).await;
    worker.sequence += 1;
    worker.delta(vec![segment("m", "e", 1, &[0])]).await;
    let Ok(Reply::Resync(resync)) = worker.reply().await else {
        panic!("no resync");
    };
    assert!(
        resync.reason.contains("message 3 is missing"),
        "{}",
        resync.reason
    );
    assert_eq!(
        first_block(&service, "m").await,
        ["node-a/resident"],
        "what came is true all the same"
    );
    worker.full(vec![segment("l", "e", 1, &[0])], false).await;
    until_first_block(&service, "k", &["node-a/resident"]).await;
    worker.full(vec![segment("n", "e", 1, &[0])], true).await;
    for (key, state) in [
        ("n", "resident"),
        ("l", "resident"),
        ("k", "planned"),
        ("m", "planned"),
    ] {
        until_first_block(&service, key, &[&format!("node-a/{state}")]).await;
    }
}

#[tokio::test]
async fn a_delta_with_no_block_takes_the_object_out() {
    let service = Service::start(config()).await;
    let mut worker = Worker::register(&service, "node-a", 1).await;
    worker.full(vec![segment("k", "e", 1, &[0])], true).await;
    until_first_block(&service, "k", &["node-a/resident"]).await;
    worker.delta(vec![segment("k", "e", 1, &[])]).await;
    until_first_block(&service, "k", &["node-a/planned"]).await;
    assert_eq!(service.json("/status.json").await["objects"], 0);
}

#[tokio::test]
async fn segments_that_make_no_sense_hide_nothing_else() {
    let service = Service::start(config()).await;
    let mut worker = Worker::register(&service, "node-a", 1).await;
    let good = || segment("k", "e", 1, &[0]);
    let broken = vec![
        grpc::Segment {
            path_id: vec![1; 15],
            ..good()
        },
        grpc::Segment {
            etag: "W/\"e\"".to_owned(),
            ..good()
        },
        grpc::Segment {
            etag: String::new(),
            ..good()
        },
        grpc::Segment {
            index: u32::MAX,
            ..good()
        },
        segment("l", "e", 1, &[0]),
    ];
    worker.full(broken, true).await;
    until_first_block(&service, "l", &["node-a/resident"]).await;
    assert_eq!(first_block(&service, "k").await, ["node-a/planned"]);
    let metrics = service.get("/metrics").await.text();
    assert!(
        metrics.contains("cachelet_locality_segments_total{outcome=\"invalid\"} 4"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_draining_worker_is_not_answered() {
    let service = Service::start(config()).await;
    let mut worker = Worker::register(&service, "node-a", 1).await;
    worker.full(vec![segment("k", "e", 1, &[0])], true).await;
    worker.heartbeat(WorkerState::Draining).await;
    until_first_block(&service, "k", &[]).await;
    worker.heartbeat(WorkerState::Ready).await;
    until_first_block(&service, "k", &["node-a/resident"]).await;
}

#[tokio::test]
async fn a_worker_that_reconnects_stays_in_the_answers() {
    let service = Service::start(config()).await;
    let mut first = Worker::register(&service, "node-a", 1).await;
    first
        .full(vec![segment("k", "e", 1, &[0]), segment("l", "e", 1, &[0])], true)
        .await;
    until_first_block(&service, "l", &["node-a/resident"]).await;
    drop(first);
    let mut again = Worker::register(&service, "node-a", 1).await;
    assert_eq!(first_block(&service, "k").await, ["node-a/resident"]);
    again.full(vec![segment("l", "e", 1, &[0])], true).await;
    until_first_block(&service, "k", &["node-a/planned"]).await;
    assert_eq!(first_block(&service, "l").await, ["node-a/resident"]);
}

#[tokio::test]
async fn peers_are_located_by_generation_and_segment() {
    let service = Service::start(config()).await;
    let mut a = Worker::register(&service, "node-a", 1).await;
    let mut b = Worker::register(&service, "node-b", 1).await;
    let size = 3 * BLOCK_BYTES;
    a.full(vec![segment("k", "e", size, &[0, 2])], true).await;
    b.full(vec![], true).await;
    until(|| async {
        let status = service.json("/status.json").await;
        (status["objects"] == 1).then_some(()).ok_or(status.to_string())
    })
    .await;
    let asked = segment("k", "e", size, &[]);
    let request = grpc::LocateRequest {
        path_id: asked.path_id,
        etag: "e".to_owned(),
        size_bytes: size,
        segment: 0,
    };
    let mut client = service.client().await;
    let holders = client.locate(request.clone()).await.unwrap().into_inner().holders;
    assert_eq!(holders.len(), 1);
    assert_eq!(
        (holders[0].node.as_str(), holders[0].high_bits),
        ("node-a", 0b101)
    );
    assert_eq!(
        (holders[0].data_address.as_str(), holders[0].zone.as_str()),
        ("127.0.0.1:7000", "zone-1")
    );
    assert_eq!(holders[0].worker_uuid, registration("node-a", 1).worker_uuid);
    for other in [
        grpc::LocateRequest {
            etag: "f".to_owned(),
            ..request.clone()
        },
        grpc::LocateRequest {
            size_bytes: size + 1,
            ..request.clone()
        },
        grpc::LocateRequest {
            segment: 1,
            ..request.clone()
        },
        grpc::LocateRequest {
            path_id: vec![0; 16],
            ..request.clone()
        },
    ] {
        assert_eq!(client.locate(other).await.unwrap().into_inner().holders, []);
    }
    for wrong in [
        grpc::LocateRequest {
            path_id: vec![0; 3],
            ..request.clone()
        },
        grpc::LocateRequest {
            etag: String::new(),
            ..request.clone()
        },
    ] {
        assert_eq!(
            client.locate(wrong).await.unwrap_err().code(),
            Code::InvalidArgument
        );
    }
}

#[tokio::test]
async fn a_stream_that_breaks_the_protocol_is_ended_with_the_reason() {
    let service = Service::start(config()).await;
    let heartbeat = worker_message::Kind::Heartbeat(grpc::Heartbeat::default());
    let mut unregistered = Worker::open_with(&service, heartbeat).await;
    let status = unregistered.reply().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("Register"), "{}", status.message());
    let mut twice = Worker::register(&service, "node-a", 1).await;
    twice
        .send(worker_message::Kind::Register(registration("node-a", 1)))
        .await;
    assert_eq!(twice.reply().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_silent_worker_must_register_again() {
    let short = Config {
        lease: Duration::from_millis(150),
        heartbeat: Duration::from_millis(50),
        ..config()
    };
    let service = Service::start(short).await;
    let mut worker = Worker::register(&service, "node-a", 1).await;
    let status = worker.reply().await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(
        status.message().contains("register again"),
        "{}",
        status.message()
    );
    let _again = Worker::register(&service, "node-a", 1).await;
    assert_eq!(first_block(&service, "k").await, ["node-a/planned"]);
}

#[tokio::test]
async fn a_stopping_service_ends_streams_and_connections_in_time() {
    let service = Service::start(config()).await;
    let mut worker = Worker::register(&service, "node-a", 1).await;
    let _idle = service.connect().await;
    let took = service.stop().await;
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(worker.reply().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_full_report_of_many_objects_comes_in_parts() {
    let service = Service::start(config()).await;
    let mut worker = Worker::register(&service, "node-a", 1).await;
    for part in 0..5 {
        let keys = (0..4_000).map(|number| format!("{part}/{number}"));
        let segments = keys
            .map(|key| segment(&key, "d41d8cd98f00b204e9800998ecf8427e", 1, &[0]))
            .collect();
        worker.full(segments, part == 4).await;
    }
    until(|| async {
        let status = service.json("/status.json").await;
        let done = status["objects"] == 20_000 && status["nodes"][0]["synced"] == true;
        done.then_some(()).ok_or(status.to_string())
    })
    .await;
    until_first_block(&service, "3/1234", &["node-a/resident"]).await;
}
