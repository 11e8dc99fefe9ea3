//! The callers' side: locations, status, metrics and health over HTTP/1.1.
//!
//! Every request is bounded: connections by a semaphore, headers and bodies by size and by time, answers by the limits of
//! [`crate::answer`]. Every failure has a JSON body with a code and a message.

mod query;
mod stall;
mod status;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

use crate::api::{ErrorAnswer, ErrorCode, ErrorDetail, InvalidRequest, LocationsRequest, RequestLimits};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::metrics::{Answered, Route as RouteLabel, Word};
use stall::Stalling;

/// Longest request header.
const MAX_HEADER_BYTES: usize = 64 << 10;

type Answer = Response<Full<Bytes>>;

/// The HTTP server.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    cluster: Arc<Cluster>,
    limits: RequestLimits,
    max_body_bytes: usize,
    timeout: Duration,
    connections: Arc<Semaphore>,
    /// Requests whose answers are being worked out, on blocking threads.
    answering: Arc<Semaphore>,
}

/// The pages there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Locations,
    Nodes,
    Objects,
    Status,
    StatusJson,
    Metrics,
    Healthz,
    Readyz,
}

impl Route {
    fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/locations" => Self::Locations,
            "/v1/nodes" => Self::Nodes,
            "/v1/objects" => Self::Objects,
            "/" | "/status" => Self::Status,
            "/status.json" => Self::StatusJson,
            "/metrics" => Self::Metrics,
            "/healthz" => Self::Healthz,
            "/readyz" => Self::Readyz,
            _ => return None,
        })
    }

    fn method(self) -> Method {
        match self {
            Self::Locations => Method::POST,
            Self::Nodes
            | Self::Objects
            | Self::Status
            | Self::StatusJson
            | Self::Metrics
            | Self::Healthz
            | Self::Readyz => Method::GET,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Locations => "locations",
            Self::Nodes => "nodes",
            Self::Objects => "objects",
            Self::Status | Self::StatusJson => "status",
            Self::Metrics => "metrics",
            Self::Healthz => "healthz",
            Self::Readyz => "readyz",
        }
    }
}

impl ErrorCode {
    /// The HTTP status of an answer that is this error.
    fn status(self) -> StatusCode {
        match self {
            Self::BadRequest
            | Self::TooManyPaths
            | Self::InvalidPath
            | Self::InvalidEtag
            | Self::TooManyBlocks => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Server {
    pub(crate) fn new(cluster: Arc<Cluster>, config: &Config) -> Self {
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            cluster,
            limits: RequestLimits {
                max_paths: config.max_request_paths,
                max_candidates: config.max_request_candidates,
            },
            max_body_bytes: config.max_request_body_bytes.as_u64() as usize,
            timeout: config.request_timeout,
            connections: Arc::new(Semaphore::new(config.max_http_connections)),
            answering: Arc::new(Semaphore::new(cpus)),
        }
    }

    /// Serves until `stop` is cancelled. Open connections are tasks of `tasks`; they finish their request and end.
    pub(crate) async fn serve(self, listener: TcpListener, tasks: TaskTracker, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.accept(&listener) => accepted,
            };
            let (stream, permit) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept an HTTP connection; trying again in 100 ms");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (server, stop) = (self.clone(), stop.clone());
            tasks.spawn(async move {
                server.cluster.metrics.http_connections.inc();
                server.connection(stream, stop).await;
                server.cluster.metrics.http_connections.dec();
                drop(permit);
            });
        }
    }

    async fn accept(
        &self,
        listener: &TcpListener,
    ) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
        let permit = Arc::clone(&self.connections)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let (stream, _) = listener.accept().await?;
        Ok((stream, permit))
    }

    async fn connection(&self, stream: TcpStream, stop: CancellationToken) {
        // Answers are written at once: waiting to fill a packet would add 40 ms.
        let _ = stream.set_nodelay(true);
        let service = service_fn(|request| async move { Ok::<_, Infallible>(self.answer(request).await) });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.timeout)
            .max_header_size(MAX_HEADER_BYTES)
            .serve_connection(TokioIo::new(Stalling::new(stream, self.timeout)), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(%error, "HTTP connection ended early");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let started = Instant::now();
        let route = Route::of(request.uri().path());
        let answer = match route {
            None => {
                let message = format!(
                    "no page {:?}; there are /v1/locations, /v1/nodes, /v1/objects, /status, /metrics, /healthz, /readyz",
                    request.uri().path().chars().take(80).collect::<String>()
                );
                failure(ErrorCode::NotFound, message)
            }
            Some(route) if !allowed(route, request.method()) => method_not_allowed(route, request.method()),
            Some(route) => self.page(route, request).await,
        };
        let label = Word(route.map_or("none", Route::label));
        let status = answer.status().as_u16();
        let metrics = &self.cluster.metrics;
        metrics
            .http_requests
            .get_or_create(&Answered { route: label, status })
            .inc();
        metrics
            .http_seconds
            .get_or_create(&RouteLabel { route: label })
            .observe(started.elapsed().as_secs_f64());
        answer
    }

    async fn page(&self, route: Route, request: Request<Incoming>) -> Answer {
        match route {
            Route::Locations => self.locations(request).await.unwrap_or_else(|failed| failed),
            Route::Nodes => json(StatusCode::OK, &self.cluster.nodes()),
            Route::Objects => self.objects(request.uri().query().unwrap_or_default()),
            Route::Status if wants_json(&request) => json(StatusCode::OK, &self.cluster.status()),
            Route::Status => text(
                StatusCode::OK,
                "text/html; charset=utf-8",
                status::page(&self.cluster.status()),
            ),
            Route::StatusJson => json(StatusCode::OK, &self.cluster.status()),
            Route::Metrics => text(
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                self.cluster.scrape(),
            ),
            Route::Healthz => plain(StatusCode::OK, "ok\n".to_owned()),
            Route::Readyz => {
                let (ready, message) = self.cluster.readiness();
                let status = if ready {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                plain(status, message + "\n")
            }
        }
    }

    /// `POST /v1/locations`.
    async fn locations(&self, request: Request<Incoming>) -> Result<Answer, Answer> {
        let body = self.body(request.into_body()).await?;
        let permit = Arc::clone(&self.answering)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let (cluster, limits) = (Arc::clone(&self.cluster), self.limits);
        let answered = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            LocationsRequest::parse(&body, limits).map(|request| cluster.locations(&request))
        })
        .await;
        match answered {
            Ok(Ok(body)) => Ok(with_type(StatusCode::OK, "application/json", Bytes::from(body))),
            Ok(Err(error)) => {
                let code = match error {
                    InvalidRequest::Json(_) => ErrorCode::BadRequest,
                    InvalidRequest::TooMany { .. } => ErrorCode::TooManyPaths,
                };
                Err(failure(code, error.to_string()))
            }
            Err(panicked) => {
                error!(%panicked, "a location request could not be answered");
                let message = "the service failed to answer; its log says why".to_owned();
                Err(failure(ErrorCode::Internal, message))
            }
        }
    }

    async fn body(&self, body: Incoming) -> Result<Bytes, Answer> {
        let too_large = || {
            let limit = self.max_body_bytes;
            let message = format!(
                "the request's body is longer than {limit} bytes: send several requests, or raise `max_request_body_bytes`"
            );
            failure(ErrorCode::BodyTooLarge, message)
        };
        let collected = tokio::time::timeout(self.timeout, Limited::new(body, self.max_body_bytes).collect());
        match collected.await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(error)) => {
                let message = format!("cannot read the request's body: {error}");
                Err(failure(ErrorCode::BadRequest, message))
            }
            Err(_) => {
                let message = format!("the request's body did not arrive within {:?}", self.timeout);
                Err(failure(ErrorCode::Timeout, message))
            }
        }
    }

    /// `GET /v1/objects?path=...`.
    fn objects(&self, query: &str) -> Answer {
        let path = match query::parameter(query, "path") {
            Ok(Some(path)) => path,
            Ok(None) => {
                let message = "say which object: /v1/objects?path=s3a%3A%2F%2Fbucket%2Fkey".to_owned();
                return failure(ErrorCode::BadRequest, message);
            }
            Err(error) => return failure(ErrorCode::BadRequest, error.to_string()),
        };
        match self.cluster.object(&path) {
            Ok(object) => json(StatusCode::OK, &object),
            Err(ErrorDetail { code, message }) => failure(code, message),
        }
    }
}

fn allowed(route: Route, method: &Method) -> bool {
    *method == route.method() || (*method == Method::HEAD && route.method() == Method::GET)
}

fn method_not_allowed(route: Route, method: &Method) -> Answer {
    let (allow, shown) = match route.method() {
        Method::POST => ("POST", "POST"),
        _ => ("GET, HEAD", "GET"),
    };
    let method: String = method.as_str().chars().take(20).collect();
    let mut answer = failure(
        ErrorCode::MethodNotAllowed,
        format!("this page has no {method}: use {shown}"),
    );
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allow));
    answer
}

fn wants_json(request: &Request<Incoming>) -> bool {
    let accepts = request
        .headers()
        .get(ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.contains("application/json"));
    let asked = query::parameter(request.uri().query().unwrap_or_default(), "format");
    accepts || matches!(asked.as_ref().map(Option::as_deref), Ok(Some("json")))
}

fn failure(code: ErrorCode, message: String) -> Answer {
    json(
        code.status(),
        &ErrorAnswer {
            error: ErrorDetail { code, message },
        },
    )
}

fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(body).expect("answers are strings, numbers and lists");
    with_type(status, "application/json", Bytes::from(body))
}

fn plain(status: StatusCode, body: String) -> Answer {
    text(status, "text/plain; charset=utf-8", body)
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    with_type(status, content_type, Bytes::from(body))
}

fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
