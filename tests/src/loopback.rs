//! A server within the test process: a thread with a runtime and a listener of its own.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::JoinHandle;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// An answer's body, or why the connection is closed in the middle of it.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A body that is there already.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Serves on a free loopback port until it is dropped, which closes every connection.
#[derive(Debug)]
pub(crate) struct LoopbackServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl LoopbackServer {
    /// Runs `serve` with a bound listener; it never has to return.
    pub(crate) fn start<F: Future<Output = ()>>(
        name: &'static str,
        serve: impl FnOnce(TcpListener) -> F + Send + 'static,
    ) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime needs two descriptors");
                runtime.block_on(async move {
                    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                        .await
                        .expect("a port is free");
                    let address = listener.local_addr().expect("the listener is bound");
                    bound.send(address).expect("start waits for the address");
                    tokio::select! {
                        () = serve(listener) => {}
                        _ = stopped => {}
                    }
                });
            })
            .expect("a thread can be started");
        let address = address.recv().expect("the thread binds before anything else");
        Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for LoopbackServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // Nobody listens only if the thread panicked, which the join below tells.
            stop.send(()).unwrap_or_default();
        }
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(
            matches!(ended, Some(Ok(()))) || std::thread::panicking(),
            "a loopback server's thread panicked"
        );
    }
}

/// Accepts HTTP/1.1 connections, each with a service of its own, until it is dropped; they end with it.
pub(crate) async fn serve_http<S>(listener: TcpListener, new_service: impl Fn() -> S)
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Send + 'static,
    S::Future: Send,
{
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // The client gave up between connecting and here.
                Err(_) => continue,
            },
            Some(_) = connections.join_next() => continue,
        };
        // Small answers must not wait for the kernel to gather more; where that fails they only come later.
        stream.set_nodelay(true).unwrap_or_default();
        let service = new_service();
        connections.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .serve_connection(TokioIo::new(stream), service);
            // A connection that is cut on purpose ends with an error.
            connection.await.unwrap_or_default();
        });
    }
}
