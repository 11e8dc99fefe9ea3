//! One request from the client to the server and back, with what goes wrong on the way.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_RANGE, ETAG, IF_MATCH, RANGE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::net::TcpListener;

use super::body::{End, Pace, Tap};
use super::{Fault, RecordedRequest, Shared, UnderWay};
use crate::loopback::{Body, full, serve_http};

/// Well below what S3 servers grant an idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

type Upstream = Client<HttpConnector, Incoming>;

/// Forwards everything until it is dropped.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, idle_connections: usize) {
    let upstream: Upstream = Client::builder(TokioExecutor::new())
        // Recorded requests are the client's: the proxy never repeats one by itself.
        .retry_canceled_requests(false)
        // A pooled connection that the server has closed meanwhile would fail a request for no reason of the test.
        .pool_max_idle_per_host(idle_connections)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_timer(TokioTimer::new())
        .build_http();
    serve_http(listener, || {
        let (shared, upstream, pace) = (Arc::clone(&shared), upstream.clone(), Pace::default());
        service_fn(move |request| answer(request, Arc::clone(&shared), upstream.clone(), pace.clone()))
    })
    .await;
}

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    upstream: Upstream,
    pace: Pace,
) -> Result<Response<Body>, Infallible> {
    let is_data = record(&request, &shared);
    let under_way = UnderWay::begin(&shared);
    wait_while_held(&shared).await;
    let (delay, fault) = {
        let mut plan = shared.plan();
        (plan.first_byte_delay, plan.faults.pop_front())
    };
    if delay > Duration::ZERO {
        tokio::time::sleep(delay).await;
    }
    match fault {
        Some(Fault::Status(status)) => return Ok(refuse(status, "injected by the test")),
        Some(Fault::Stall) => std::future::pending().await,
        _ => {}
    }
    let response = match forward(request, &shared, &upstream).await {
        Ok(response) => response,
        Err(error) => return Ok(refuse(502, &format!("cannot reach the S3 server: {error}"))),
    };
    let (mut parts, body) = response.into_parts();
    // Whether a connection stays open is each side's own affair.
    parts.headers.remove(CONNECTION);
    let mut end = End::Whole;
    match fault {
        Some(Fault::WrongEtag) => {
            let etag = HeaderValue::from_static("\"00000000000000000000000000000bad\"");
            parts.headers.insert(ETAG, etag);
        }
        Some(Fault::WrongRange) => {
            if let Some(range) = parts.headers.get(CONTENT_RANGE).and_then(shifted) {
                parts.headers.insert(CONTENT_RANGE, range);
            }
        }
        Some(Fault::CutBody { after_bytes }) => end = End::Cut { after_bytes },
        Some(Fault::StallBody { after_bytes }) => end = End::Stall { after_bytes },
        Some(Fault::Status(_) | Fault::Stall) | None => {}
    }
    let counts_as_data = is_data && parts.status.is_success();
    let body = Tap::new(body, end, pace, counts_as_data, under_way, shared).into_body();
    Ok(Response::from_parts(parts, body))
}

/// Says whether an object is asked for.
fn record(request: &Request<Incoming>, shared: &Shared) -> bool {
    let header = |name| {
        request
            .headers()
            .get(name)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let recorded = RecordedRequest {
        method: request.method().clone(),
        path: request
            .uri()
            .path_and_query()
            .map_or_else(String::new, ToString::to_string),
        range: header(RANGE),
        if_match: header(IF_MATCH),
    };
    let is_data = recorded.method == Method::GET && !recorded.lists();
    shared.requests().push(recorded);
    is_data
}

async fn forward(
    mut request: Request<Incoming>,
    shared: &Shared,
    upstream: &Upstream,
) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    // The path is taken as it is; the client library sends it so, and leaves the Host header alone.
    let uri: Uri = format!("http://{}{path}", shared.upstream)
        .parse()
        .expect("the path was parsed once already");
    *request.uri_mut() = uri;
    upstream.request(request).await
}

/// `bytes a-b/n` with `a` one larger.
fn shifted(range: &HeaderValue) -> Option<HeaderValue> {
    let (start, rest) = range.to_str().ok()?.strip_prefix("bytes ")?.split_once('-')?;
    let start: u64 = start.parse().ok()?;
    HeaderValue::from_str(&format!("bytes {}-{rest}", start + 1)).ok()
}

fn refuse(status: u16, why: &str) -> Response<Body> {
    let text =
        format!("<?xml version=\"1.0\"?><Error><Code>FaultProxy</Code><Message>{why}</Message></Error>");
    let mut response = Response::new(full(text));
    *response.status_mut() = StatusCode::from_u16(status).expect("tests inject real statuses");
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("application/xml"),
    );
    response
}

/// Waits while the test holds requests back (see [`super::Hold`]), counted as waiting.
async fn wait_while_held(shared: &Shared) {
    struct Waiting<'a>(&'a Shared);
    // The client may give up while it waits.
    impl Drop for Waiting<'_> {
        fn drop(&mut self) {
            self.0.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }
    let mut held = shared.held.clone();
    if *held.borrow_and_update() {
        shared.waiting.fetch_add(1, Ordering::AcqRel);
        let _counted = Waiting(shared);
        // The sender is gone only when the proxy is being dropped.
        drop(held.wait_for(|held| !held).await);
    }
}
