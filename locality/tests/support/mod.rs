//! A service in this process, workers made by hand, and HTTP at the level of bytes.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cachelet_locality::{Addresses, App, Config};
use cachelet_protocol::grpc::locality_client::LocalityClient;
use cachelet_protocol::grpc::{self, ServiceMessage, WorkerMessage, service_message, worker_message};
use cachelet_protocol::ids::{ObjectName, StoreIdentity};
use cachelet_protocol::residency::{Residency, SegmentResidency};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

pub const BLOCK_BYTES: u64 = 128 << 20;
/// No test waits longer for anything.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub fn config() -> Config {
    Config {
        http: "127.0.0.1:0".parse().unwrap(),
        grpc: "127.0.0.1:0".parse().unwrap(),
        shutdown_grace: Duration::from_secs(5),
        ..Config::default()
    }
}

/// A running service; it ends with the test.
pub struct Service {
    pub addresses: Addresses,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Service {
    pub async fn start(config: Config) -> Self {
        let app = App::build(config).await.unwrap();
        let addresses = app.addresses();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(app.run(async {
            let _ = stopped.await;
        }));
        Self {
            addresses,
            stop,
            running,
        }
    }

    /// Stops it in order; returns how long that took.
    pub async fn stop(self) -> Duration {
        let begun = Instant::now();
        self.stop.send(()).unwrap();
        tokio::time::timeout(DEADLINE, self.running)
            .await
            .unwrap()
            .unwrap();
        begun.elapsed()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(
            &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
            &[],
        )
        .await
    }

    pub async fn json(&self, path: &str) -> Value {
        self.get(path).await.json()
    }

    pub async fn post(&self, path: &str, body: &[u8]) -> Answer {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.send(&head, body).await
    }

    pub async fn locations(&self, request: &Value) -> Value {
        let answer = self
            .post("/v1/locations", &serde_json::to_vec(request).unwrap())
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// Sends bytes and reads to the connection's end.
    pub async fn send(&self, head: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect().await;
        // The service may answer and close before it has read everything.
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(body).await;
        read_answer(stream).await
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addresses.http).await.unwrap()
    }

    pub async fn client(&self) -> LocalityClient<Channel> {
        LocalityClient::connect(format!("http://{}", self.addresses.grpc))
            .await
            .unwrap()
    }
}

/// Reads to the connection's end, however that comes.
pub async fn read_answer(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let read = async {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            bytes.extend_from_slice(&buffer[..count]);
        }
    };
    tokio::time::timeout(DEADLINE, read)
        .await
        .expect("the connection ends in time");
    Answer::parse(&bytes)
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Self {
                status: 0,
                head: String::from_utf8_lossy(bytes).into_owned(),
                body: Vec::new(),
            };
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        Self {
            status: head[9..12].parse().unwrap(),
            head,
            body: bytes[end + 4..].to_vec(),
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The JSON error's code; its message must be there.
    pub fn error_code(&self) -> String {
        let error = self.json()["error"].clone();
        assert!(!error["message"].as_str().unwrap().is_empty());
        error["code"].as_str().unwrap().to_owned()
    }
}

/// A registration of node `node` with a store that serves the bucket `lake`.
pub fn registration(node: &str, epoch: u64) -> grpc::Register {
    let mut worker_uuid = vec![epoch as u8; 16];
    worker_uuid[..node.len().min(8)].copy_from_slice(&node.as_bytes()[..node.len().min(8)]);
    grpc::Register {
        protocol_version: 1,
        node: node.to_owned(),
        worker_uuid,
        epoch,
        version: "0.1.0".to_owned(),
        data_address: "127.0.0.1:7000".to_owned(),
        admin_address: "127.0.0.1:7001".to_owned(),
        zone: "zone-1".to_owned(),
        pod_ip: "10.1.0.1".to_owned(),
        host_ip: "10.0.0.1".to_owned(),
        block_bytes: BLOCK_BYTES,
        capacity_bytes: 1 << 40,
        stores: vec![grpc::Store {
            name: "lake".to_owned(),
            scheme: "s3".to_owned(),
            identity: "lake-identity".to_owned(),
            buckets: vec!["lake".to_owned()],
        }],
    }
}

/// A worker with an open report stream.
pub struct Worker {
    to_service: mpsc::Sender<WorkerMessage>,
    pub replies: Streaming<ServiceMessage>,
    pub sequence: u64,
}

impl Worker {
    /// Opens a stream and registers, whatever comes of it.
    pub async fn open(service: &Service, register: grpc::Register) -> Self {
        Self::open_with(service, worker_message::Kind::Register(register)).await
    }

    pub async fn open_with(service: &Service, first: worker_message::Kind) -> Self {
        let (to_service, messages) = mpsc::channel(64);
        to_service
            .send(WorkerMessage {
                sequence: 1,
                kind: Some(first),
            })
            .await
            .unwrap();
        let mut client = service.client().await;
        let replies = client
            .report(ReceiverStream::new(messages))
            .await
            .unwrap()
            .into_inner();
        Self {
            to_service,
            replies,
            sequence: 1,
        }
    }

    /// Registers a node and waits until that is done.
    pub async fn register(service: &Service, node: &str, epoch: u64) -> Self {
        let mut worker = Self::open(service, registration(node, epoch)).await;
        let reply = worker.reply().await.unwrap();
        assert!(matches!(reply, service_message::Kind::Registered(_)), "{reply:?}");
        worker
    }

    /// The service's next message, or the status that it ends the stream with.
    pub async fn reply(&mut self) -> Result<service_message::Kind, Status> {
        let message = tokio::time::timeout(DEADLINE, self.replies.message())
            .await
            .expect("the service answers in time")?;
        message
            .and_then(|message| message.kind)
            .ok_or_else(|| Status::ok("the stream has ended"))
    }

    pub async fn send(&mut self, kind: worker_message::Kind) {
        self.sequence += 1;
        let message = WorkerMessage {
            sequence: self.sequence,
            kind: Some(kind),
        };
        // A stream that the service has ended takes no more.
        let _ = self.to_service.send(message).await;
    }

    pub async fn full(&mut self, segments: Vec<grpc::Segment>, last: bool) {
        self.send(worker_message::Kind::Full(grpc::FullReport { segments, last }))
            .await;
    }

    pub async fn delta(&mut self, segments: Vec<grpc::Segment>) {
        self.send(worker_message::Kind::Delta(grpc::Delta { segments }))
            .await;
    }

    pub async fn heartbeat(&mut self, state: grpc::WorkerState) {
        self.send(worker_message::Kind::Heartbeat(grpc::Heartbeat {
            state: state.into(),
            capacity_bytes: 1 << 40,
            used_bytes: 3 << 30,
            unlinked_held_bytes: 4,
            sessions: 5,
            blocks: 6,
            local_bytes: 7,
            peer_bytes: 8,
            origin_bytes: 9,
            grants_enabled: true,
        }))
        .await;
    }
}

/// Whole blocks of the generation `etag` of `s3://lake/<key>`.
pub fn segment(key: &str, etag: &str, size_bytes: u64, blocks: &[u32]) -> grpc::Segment {
    let name = ObjectName {
        store: StoreIdentity::new("lake-identity").unwrap(),
        path: format!("s3://lake/{key}").parse().unwrap(),
    };
    let mut residency = SegmentResidency::default();
    for block in blocks {
        residency.set(*block, Residency::All);
    }
    grpc::Segment {
        path_id: name.path_id().as_bytes().to_vec(),
        etag: etag.to_owned(),
        size_bytes,
        index: 0,
        low_bits: residency.low_bits,
        high_bits: residency.high_bits,
        confirmed_unix_ms: 1_000,
    }
}

/// Names and states of the first block's nodes, `node/state`, for `s3a://lake/<key>` of one block.
pub async fn first_block(service: &Service, key: &str) -> Vec<String> {
    let path = format!("s3a://lake/{key}");
    let answer = service
        .locations(&serde_json::json!({"paths": [{"path": path, "size_bytes": 1}]}))
        .await;
    let nodes = answer["locations"][0]["blocks"][0]["nodes"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    nodes
        .iter()
        .map(|node| {
            format!(
                "{}/{}",
                node["node"].as_str().unwrap(),
                node["state"].as_str().unwrap()
            )
        })
        .collect()
}

/// Asks until the answer is what is expected; fails after [`DEADLINE`].
pub async fn until<F: Future<Output = Result<(), String>>>(mut asked: impl FnMut() -> F) {
    let begun = Instant::now();
    loop {
        let Err(problem) = asked().await else {
            return;
        };
        assert!(begun.elapsed() < DEADLINE, "still: {problem}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the first block of an object is where it is expected.
pub async fn until_first_block(service: &Service, key: &str, expected: &[&str]) {
    until(|| async {
        let nodes = first_block(service, key).await;
        if nodes == expected {
            Ok(())
        } else {
            Err(format!("{nodes:?}, expected {expected:?}"))
        }
    })
    .await;
}

pub fn unused_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}
