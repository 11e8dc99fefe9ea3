//! A server that keeps every request and answers each as the test says.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cachelet_protocol::ids::{Etag, Generation};
use futures::{StreamExt, TryStreamExt};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use object_store::client::{DnsFuture, DnsResolver};
use reqsign_core::StaticEnv;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::metrics::Metrics;

use super::super::{
    ByteStream, Clock, Error, RangeRequest, Store, StoreConfig, StoreKind, Stores, Surroundings,
};

/// A request as it arrived: method, path with query, headers.
pub(super) type Seen = Request<()>;
type Body = UnsyncBoxBody<Bytes, std::io::Error>;
type Answer = Arc<dyn Fn(&Seen) -> Response<Body> + Send + Sync>;

pub(super) struct Server {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// The connections end with the server.
    _tasks: JoinSet<()>,
}

impl Server {
    pub(super) async fn start(answer: impl Fn(&Seen) -> Response<Body> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer): (_, Answer) = (Arc::clone(&seen), Arc::new(answer));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                let service = service_fn(move |request: Request<Incoming>| {
                    let request = request.map(drop);
                    let reply = answer(&request);
                    log.lock().unwrap().push(request);
                    async { Ok::<_, Infallible>(reply) }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                connections.spawn(async move {
                    // A client that is refused hangs up: that is no error here.
                    drop(connection.serve_connection(TokioIo::new(socket), service).await);
                });
            }
        });
        Self {
            address,
            seen,
            _tasks: tasks,
        }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// An S3 store here, with keys, quick timeouts and no retry.
    pub(super) fn s3(&self) -> StoreConfig {
        StoreConfig {
            endpoint: Some(self.url()),
            access_key_id: Some("AKIAEXAMPLE".into()),
            secret_access_key_env: Some("TEST_SECRET".into()),
            read_timeout: Duration::from_millis(300),
            request_timeout: Duration::from_secs(2),
            max_retries: 0,
            ..StoreConfig::new("lake", StoreKind::S3)
        }
    }
}

pub(super) const SECRET: &str = "wJalrXUtnFEMI+verySecret";

/// Builds one store in an environment that holds [`SECRET`] in `TEST_SECRET`.
pub(super) fn build(config: &StoreConfig) -> Arc<Store> {
    build_in(config, &[("TEST_SECRET", SECRET)])
}

/// Builds one store in an environment without metadata services, besides what is given.
pub(super) fn build_in(config: &StoreConfig, envs: &[(&str, &str)]) -> Arc<Store> {
    let quiet = [
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true"),
    ];
    let envs = quiet
        .iter()
        .chain(envs)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    build_with(
        config,
        StaticEnv {
            home_dir: None,
            envs: envs.collect(),
        },
        Clock::system(),
    )
}

pub(super) fn build_at(config: &StoreConfig, clock: Clock) -> Arc<Store> {
    build_with(config, StaticEnv::default(), clock)
}

fn build_with(config: &StoreConfig, env: StaticEnv, clock: Clock) -> Arc<Store> {
    let surroundings = Surroundings {
        env: Arc::new(env),
        clock,
        resolver: Some(Arc::new(Loopback)),
        metrics: Metrics::default(),
    };
    let stores = Stores::build_in(std::slice::from_ref(config), &surroundings).unwrap();
    Arc::clone(stores.iter().next().unwrap())
}

/// Every name is this machine's.
#[derive(Debug)]
struct Loopback;

impl DnsResolver for Loopback {
    fn resolve(&self, _host: &str) -> DnsFuture {
        Box::pin(async { Ok(vec![std::net::Ipv4Addr::LOCALHOST.into()]) })
    }
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body of these pieces that then breaks off, or hangs.
pub(super) fn pieces(pieces: Vec<&'static [u8]>, then: Then) -> Body {
    let pieces = futures::stream::iter(pieces.into_iter().map(|piece| Ok(Bytes::from_static(piece))));
    let end = match then {
        Then::Break => futures::stream::once(async {
            // The server writes out what it has when the body is not ready, and nothing once it has failed.
            tokio::task::yield_now().await;
            Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
        })
        .boxed(),
        Then::Hang => futures::stream::pending().boxed(),
    };
    BodyExt::boxed_unsync(StreamBody::new(pieces.chain(end).map_ok(Frame::data)))
}

#[derive(Clone, Copy)]
pub(super) enum Then {
    Break,
    Hang,
}

/// The head of a right reply to `bytes=10-19` of the test object.
pub(super) fn partial() -> http::response::Builder {
    Response::builder()
        .status(206)
        .header("etag", "\"e1\"")
        .header("content-range", "bytes 10-19/100")
}

pub(super) fn request(path: &str) -> RangeRequest {
    RangeRequest {
        path: path.parse().unwrap(),
        generation: Generation {
            etag: Etag::new("e1").unwrap(),
            size_bytes: 100,
        },
        version_id: None,
        range: 10..20,
    }
}

/// Everything a stream yields: the bytes before its end or error.
pub(super) async fn drain(mut body: ByteStream) -> (Vec<u8>, Option<Error>) {
    let mut bytes = Vec::new();
    while let Some(next) = body.next().await {
        match next {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => return (bytes, Some(error)),
        }
    }
    (bytes, None)
}
