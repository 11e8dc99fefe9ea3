//! The way of one request to an origin: signing where `object_store` does not, and a look at every reply.
//!
//! `object_store` keeps one client for many requests, hides a failed reply's status and quotes its body. Here each
//! request gets a [`Transport`] of its own over the shared connection pool, so that what it saw belongs to that
//! request; and it takes the body of a failed reply away, so that no error text can carry it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, RETRY_AFTER};
use http_body_util::{BodyExt, Limited};
use object_store::ClientOptions;
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService};

use super::error::ReplyCode;

/// Changes a request before it is sent, and its reply before `object_store` sees it.
#[async_trait]
pub(super) trait Dialect: fmt::Debug + Send + Sync + 'static {
    async fn sign(&self, request: HttpRequest) -> Result<HttpRequest, HttpError>;
    fn translate(&self, reply: &mut HttpResponse);
}

/// An error reply is a few hundred bytes of XML; more of it is not read.
const MAX_ERROR_BODY_BYTES: usize = 64 << 10;

/// What the reply to a request's last attempt said; all `None` if there was no reply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Observed {
    pub(super) status: Option<StatusCode>,
    pub(super) code: Option<ReplyCode>,
    pub(super) body_bytes: Option<u64>,
    pub(super) retry_after: Option<Duration>,
}

/// Sends the attempts of one request.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    client: HttpClient,
    dialect: Option<Arc<dyn Dialect>>,
    observed: Arc<Mutex<Observed>>,
}

impl Transport {
    pub(super) fn new(client: HttpClient, dialect: Option<Arc<dyn Dialect>>) -> Self {
        Self {
            client,
            dialect,
            observed: Arc::default(),
        }
    }

    /// What the last reply said so far.
    pub(super) fn observed(&self) -> Observed {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        *self.lock() = Observed::default();
        let request = match &self.dialect {
            Some(dialect) => dialect.sign(request).await?,
            None => request,
        };
        let mut reply = self.client.execute(request).await?;
        if let Some(dialect) = &self.dialect {
            dialect.translate(&mut reply);
        }
        let header = |name| reply.headers().get(name).and_then(|value| value.to_str().ok());
        let mut observed = Observed {
            status: Some(reply.status()),
            code: None,
            body_bytes: header(CONTENT_LENGTH).and_then(|value| value.parse().ok()),
            // An HTTP date is allowed too; no object store sends one.
            retry_after: header(RETRY_AFTER)
                .and_then(|value| value.parse().ok())
                .map(Duration::from_secs),
        };
        if !reply.status().is_success() {
            let (parts, body) = reply.into_parts();
            if let Ok(body) = Limited::new(body, MAX_ERROR_BODY_BYTES).collect().await {
                observed.code = std::str::from_utf8(&body.to_bytes())
                    .ok()
                    .and_then(ReplyCode::from_body);
            }
            reply = HttpResponse::from_parts(parts, Bytes::new().into());
        }
        *self.lock() = observed;
        Ok(reply)
    }
}

impl HttpConnector for Transport {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}
