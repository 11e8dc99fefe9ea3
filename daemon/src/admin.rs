//! Health, metrics and status over HTTP, on a thread of their own: they answer when the daemon's main pool is stuck.
//!
//! | route | answers |
//! |---|---|
//! | `GET /healthz` | 200 while the process runs and its main pool moves, else 503; the body says what is stuck |
//! | `GET /readyz` | 200 when clients can be served, else 503; the body says what is missing, or works less well than it could |
//! | `GET /metrics` | OpenMetrics text |
//! | `GET /status` | this worker as JSON: identity, cache, bytes by source, stores |

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

/// A request's header must arrive within this time.
const HEADER_DEADLINE: Duration = Duration::from_secs(2);

/// What the routes tell.
pub trait Facts: Send + Sync + 'static {
    /// What only a restart cures; empty: nothing.
    fn ailments(&self) -> Vec<String> {
        Vec::new()
    }
    /// What keeps clients from being served; empty: nothing.
    fn problems(&self) -> Vec<String>;
    /// What keeps nobody from being served, but should be known; empty: nothing.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
    /// The metrics as `OpenMetrics` text.
    fn metrics(&self) -> String;
    /// The status as JSON.
    fn status(&self) -> serde_json::Value;
}

/// The admin server; ends when dropped.
#[derive(Debug)]
pub struct Admin {
    cancel: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Admin {
    /// Serves `facts` on a bound listener, from a thread of its own.
    pub fn start(listener: TcpListener, facts: Arc<dyn Facts>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let thread = std::thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = serve(listener, facts) => {}
                    }
                });
            })?;
        Ok(Self {
            cancel,
            thread: Some(thread),
        })
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, facts: Arc<dyn Facts>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the admin server cannot accept connections"),
    };
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the admin server cannot accept a connection; going on");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let facts = Arc::clone(&facts);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let reply = route(&request, &*facts);
                async move { Ok::<_, Infallible>(reply) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_DEADLINE)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an admin connection ended early");
            }
        });
    }
}

fn route<B>(request: &Request<B>, facts: &dyn Facts) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    const JSON: &str = "application/json";
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") => match facts.ailments() {
            ailments if ailments.is_empty() => reply(StatusCode::OK, TEXT, "ok\n"),
            ailments => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, ailments.join("\n") + "\n"),
        },
        (&Method::GET | &Method::HEAD, "/readyz") => match facts.problems() {
            problems if problems.is_empty() => {
                let mut lines = vec!["ready".to_owned()];
                lines.extend(facts.notes());
                reply(StatusCode::OK, TEXT, lines.join("\n") + "\n")
            }
            problems => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, problems.join("\n") + "\n"),
        },
        (&Method::GET, "/metrics") => reply(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            facts.metrics(),
        ),
        (&Method::GET, "/status") => reply(StatusCode::OK, JSON, format!("{:#}\n", facts.status())),
        (_, "/healthz" | "/readyz" | "/metrics" | "/status") => reply(
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "only GET is answered here\n",
        ),
        _ => reply(
            StatusCode::NOT_FOUND,
            TEXT,
            "known are /healthz, /readyz, /metrics and /status\n",
        ),
    }
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Fake(Mutex<Vec<String>>, Mutex<Vec<String>>);

    impl Facts for Fake {
        fn ailments(&self) -> Vec<String> {
            self.1.lock().unwrap().clone()
        }
        fn notes(&self) -> Vec<String> {
            vec!["reads come inline".to_owned()]
        }
        fn problems(&self) -> Vec<String> {
            self.0.lock().unwrap().clone()
        }
        fn metrics(&self) -> String {
            "# EOF\n".to_owned()
        }
        fn status(&self) -> serde_json::Value {
            serde_json::json!({"node": "n"})
        }
    }

    fn get(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn readiness_says_what_is_missing() {
        let facts = Arc::new(Fake::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _admin = Admin::start(listener, facts.clone()).unwrap();
        let answer = get(address, "GET /readyz");
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("reads come inline"),
            "{answer}"
        );
        facts
            .0
            .lock()
            .unwrap()
            .push("the socket does not accept yet".to_owned());
        let answer = get(address, "GET /readyz");
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("the socket does not accept yet"),
            "{answer}"
        );
        assert!(
            get(address, "GET /healthz").starts_with("HTTP/1.1 200"),
            "alive though not ready"
        );
        facts.1.lock().unwrap().push("the main pool is stuck".to_owned());
        let answer = get(address, "GET /healthz");
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("the main pool is stuck"),
            "{answer}"
        );
        assert!(get(address, "GET /status").contains("\"node\": \"n\""));
        assert!(get(address, "POST /status").starts_with("HTTP/1.1 405"));
        assert!(get(address, "GET /nothing").starts_with("HTTP/1.1 404"));
    }
}
