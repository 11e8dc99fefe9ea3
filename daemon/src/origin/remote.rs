//! Object stores behind HTTP: S3, and OSS in its own dialect.
//!
//! One `Remote` is one configured store. Requests go through `object_store`, each once: whether one is sent again is
//! decided in [`traffic`](super::traffic) alone.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use cachelet_protocol::ids::{BucketName, Etag, Generation, ObjectKey, ObjectPath};
use futures::StreamExt;
use http::StatusCode;
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsCredentialProvider};
use object_store::client::{
    DnsResolver, HttpClient, HttpConnector, HttpError, HttpErrorKind, ReqwestConnector,
};
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, GetRange, GetResult, ObjectStore, RetryConfig};

use super::checked::{ExactBody, Mismatch, RangedHead, check_head};
use super::config::{Addressing, StoreConfig};
use super::credentials::Missing;
use super::endpoint::{Endpoint, is_remote_bucket};
use super::traffic::Failure;
use super::transport::{Dialect, Observed, Transport};
use super::{ByteStream, ConfigError, Error, ObjectMeta, RangeRequest};

/// The key whose absence is asked for to see whether a store answers.
const PROBE_KEY: &str = "cachelet-probe/no-such-object";

/// How requests to a store are signed.
#[derive(Debug)]
pub(super) enum Signing {
    /// By `object_store`, with AWS's V4 signature.
    Aws(AwsCredentialProvider),
    /// By the store's own dialect.
    Dialect(Box<dyn DialectOfBucket>),
    /// Not at all.
    Anonymous,
}

/// Makes the dialect for one bucket.
pub(super) trait DialectOfBucket: fmt::Debug + Send + Sync + 'static {
    fn of_bucket(&self, bucket: &BucketName) -> Arc<dyn Dialect>;
}

#[derive(Debug)]
pub(super) struct Remote {
    config: StoreConfig,
    endpoint: Endpoint,
    region: String,
    client: HttpClient,
    signing: Signing,
}

impl Remote {
    pub(super) fn new(
        config: &StoreConfig,
        signing: Signing,
        resolver: Option<Arc<dyn DnsResolver>>,
    ) -> Result<Self, Error> {
        let endpoint = config.resolved_endpoint()?;
        let options = ClientOptions::new()
            .with_user_agent(http::HeaderValue::from_static(concat!(
                "cachelet/",
                env!("CARGO_PKG_VERSION")
            )))
            .with_allow_http(!endpoint.is_https())
            .with_connect_timeout(config.connect_timeout)
            .with_read_timeout(config.read_timeout)
            .with_timeout(config.request_timeout)
            .with_pool_max_idle_per_host(config.max_concurrent_requests as usize);
        let options = match resolver {
            Some(resolver) => options.with_dns_resolver(resolver),
            None => options,
        };
        let client = ReqwestConnector::default().connect(&options).map_err(|_| {
            Error::Config(ConfigError {
                store: config.name.as_str().into(),
                key: "endpoint",
                value: format!("{:?}", endpoint.url()).into(),
                problem:
                    "cannot be reached: no TLS client, check the system's CA certificates and proxy settings"
                        .into(),
            })
        })?;
        let region = config.resolved_region()?;
        Ok(Self {
            config: config.clone(),
            endpoint,
            region,
            client,
            signing,
        })
    }

    pub(super) async fn head(&self, path: &ObjectPath) -> Result<ObjectMeta, Error> {
        let key = object_store_path(path)?;
        let (bucket, transport) = self.bucket(path)?;
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        let reply = bucket.get_opts(&key, options).await;
        let meta = reply
            .map_err(|error| self.error(&error, path, &transport.observed()))?
            .meta;
        let etag = meta
            .e_tag
            .as_deref()
            .and_then(|etag| Etag::from_header(etag).ok());
        Ok(ObjectMeta {
            generation: etag.map(|etag| Generation {
                etag,
                size_bytes: meta.size,
            }),
            size_bytes: meta.size,
            version_id: meta.version,
        })
    }

    /// The caller has checked that the range is not empty and lies within the generation.
    pub(super) async fn get(&self, request: &RangeRequest) -> Result<ByteStream, Failure> {
        let (reply, transport) = self.ask(request).await?;
        let describe = Describe {
            endpoint: self.describe(),
            path: request.path.clone(),
        };
        let body = reply
            .into_stream()
            .map(move |item| item.map_err(|error| describe.error(&error, &transport.observed())));
        let length = request.range.end - request.range.start;
        Ok(ExactBody::new(body.boxed(), length, self.describe()).boxed())
    }

    /// Sends one ranged GET, and checks the head of its reply.
    async fn ask(&self, request: &RangeRequest) -> Result<(GetResult, Transport), Failure> {
        let RangeRequest {
            path,
            generation,
            version_id,
            range,
        } = request;
        let key = object_store_path(path)?;
        let (bucket, transport) = self.bucket(path)?;
        let options = GetOptions {
            if_match: Some(generation.etag.to_header()),
            range: Some(GetRange::Bounded(range.clone())),
            version: version_id.clone(),
            ..GetOptions::default()
        };
        let reply = bucket.get_opts(&key, options).await.map_err(|error| {
            let observed = transport.observed();
            Failure {
                error: self.error(&error, path, &observed),
                is_wrong_reply: cause::<HttpError>(&error).is_none()
                    && observed.status.is_some_and(|status| status.is_success()),
            }
        })?;
        let head = RangedHead {
            etag: reply.meta.e_tag.as_deref(),
            size_bytes: reply.meta.size,
            range: reply.range.clone(),
            body_bytes: transport.observed().body_bytes,
        };
        check_head(&head, generation, range).map_err(|mismatch| Failure {
            error: match mismatch {
                Mismatch::OtherGeneration => Error::Changed { path: path.clone() },
                Mismatch::Wrong(reason) => self.bad_reply(reason),
            },
            is_wrong_reply: true,
        })?;
        Ok((reply, transport))
    }

    /// Asks for an object that does not exist: the answer shows that the endpoint is reachable and accepts the
    /// credentials, and needs no more rights than readers have. `bucket: None` if no bucket is known by name.
    pub(super) async fn check(&self, bucket: Option<&BucketName>) -> Result<(), Error> {
        let probed = bucket
            .cloned()
            .unwrap_or_else(|| BucketName::new("cachelet-probe").expect("a valid name"));
        let key = ObjectKey::new(PROBE_KEY).expect("a valid key");
        let path = ObjectPath {
            scheme: self.config.kind.scheme(),
            bucket: probed,
            key,
        };
        let (store, transport) = self.bucket(&path)?;
        let key = object_store_path(&path)?;
        // Not a HEAD: only a GET's error reply has a body, which tells a missing bucket from a missing object.
        let outcome = store.get_opts(&key, GetOptions::default()).await;
        let Err(error) = outcome.map_err(|error| self.error(&error, &path, &transport.observed())) else {
            return Ok(());
        };
        match &error {
            Error::NotFound { code: Some(code), .. }
                if code.as_str() == "NoSuchBucket" && bucket.is_some() =>
            {
                Err(Error::Config(ConfigError {
                    store: self.config.name.as_str().into(),
                    key: "buckets",
                    value: format!("{:?}", path.bucket.as_str()).into(),
                    problem: format!(
                        "names no bucket of {}: create it or remove it",
                        self.endpoint.url()
                    )
                    .into(),
                }))
            }
            Error::NotFound { .. } => Ok(()),
            // Without the right to list, S3 answers so for an object that does not exist; it has accepted the key.
            Error::PermissionDenied { code: Some(code), .. } if code.as_str() == "AccessDenied" => Ok(()),
            Error::PermissionDenied { code, .. } => Err(Error::Credentials {
                store: self.config.name.as_str().into(),
                reason: format!(
                    "{} refuses them{}: check the access key, its secret, the region and the clock",
                    self.endpoint.url(),
                    code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default(),
                )
                .into(),
            }),
            _ => Err(error),
        }
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn region(&self) -> &str {
        &self.region
    }

    /// The store of one bucket for one request, and what will have been seen of its reply. Cheap: everything that
    /// takes time or memory (connections, credentials) is shared.
    fn bucket(&self, path: &ObjectPath) -> Result<(AmazonS3, Transport), Error> {
        let bucket = &path.bucket;
        if !is_remote_bucket(bucket.as_str()) {
            let reason =
                "its bucket's name is not of letters, digits, `-`, `_` and single dots, or ends in one";
            return Err(Error::UnsupportedKey {
                path: path.clone(),
                reason,
            });
        }
        let dialect = match &self.signing {
            Signing::Dialect(dialects) => Some(dialects.of_bucket(bucket)),
            Signing::Aws(_) | Signing::Anonymous => None,
        };
        let transport = Transport::new(self.client.clone(), dialect);
        let (url, is_virtual) = match self.config.addressing_of(&self.endpoint, bucket) {
            Addressing::Path => (self.endpoint.url(), false),
            Addressing::Virtual => (self.endpoint.url_with_bucket(bucket.as_str()), true),
        };
        let builder = AmazonS3Builder::new()
            .with_bucket_name(bucket.as_str())
            .with_region(&self.region)
            .with_endpoint(url)
            .with_virtual_hosted_style_request(is_virtual)
            .with_allow_http(!self.endpoint.is_https())
            .with_request_payer(self.config.requester_pays)
            .with_retry(RetryConfig {
                max_retries: 0,
                ..RetryConfig::default()
            })
            .with_http_connector(transport.clone());
        let builder = match &self.signing {
            Signing::Aws(credentials) => builder.with_credentials(Arc::clone(credentials)),
            Signing::Dialect(_) | Signing::Anonymous => builder.with_skip_signature(true),
        };
        let store = builder.build().map_err(|_| {
            // The text would quote the endpoint with the bucket in it; that much is safe, its cause is not known to be.
            self.bad_reply("no request can be built for the bucket's name")
        })?;
        Ok((store, transport))
    }

    pub(super) fn describe(&self) -> Box<str> {
        format!("store {:?} at {}", self.config.name, self.endpoint.url()).into()
    }

    fn bad_reply(&self, reason: &str) -> Error {
        Error::BadReply {
            endpoint: self.describe(),
            reason: reason.into(),
        }
    }

    fn error(&self, error: &object_store::Error, path: &ObjectPath, observed: &Observed) -> Error {
        if let Some(Missing(reason)) = cause(error) {
            return Error::Credentials {
                store: self.config.name.as_str().into(),
                reason: reason.clone(),
            };
        }
        Describe {
            endpoint: self.describe(),
            path: path.clone(),
        }
        .error(error, observed)
    }
}

/// The key as `object_store` takes it, if that is byte for byte the same key.
fn object_store_path(path: &ObjectPath) -> Result<Path, Error> {
    let key = path.key.as_str();
    match Path::parse(key) {
        Ok(parsed) if parsed.as_ref() == key => Ok(parsed),
        _ => Err(Error::UnsupportedKey {
            path: path.clone(),
            reason: "its key has an empty, `.` or `..` segment, a slash at an end, or a control character",
        }),
    }
}

/// What an error of one request is told with.
struct Describe {
    endpoint: Box<str>,
    path: ObjectPath,
}

impl Describe {
    /// `object_store`'s errors quote URLs and headers; only the last reply's status and code, and the kind of a
    /// broken connection, get through.
    fn error(&self, error: &object_store::Error, observed: &Observed) -> Error {
        match (observed.status, cause::<HttpError>(error)) {
            (Some(status), _) if !status.is_success() => self.status(status, observed),
            (_, Some(http)) => self.transport(http),
            // What is left are `object_store`'s own checks of a ranged reply.
            (_, None) => Error::BadReply {
                endpoint: self.endpoint.clone(),
                reason: "its status, range or length is not that of the request".into(),
            },
        }
    }

    fn status(&self, status: StatusCode, observed: &Observed) -> Error {
        let (endpoint, path, code) = (self.endpoint.clone(), self.path.clone(), observed.code.clone());
        match status {
            StatusCode::NOT_FOUND => Error::NotFound { path, code },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::PermissionDenied { path, code },
            // 416 comes from servers that ignore If-Match: the object has become shorter.
            StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => Error::Changed { path },
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Error::Throttled {
                endpoint,
                retry_after: observed.retry_after,
            },
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => Error::Timeout { endpoint },
            _ => {
                let code = code.map(|code| format!(" {code}")).unwrap_or_default();
                let reason = format!("status {}{code}", status.as_u16());
                if status.is_server_error() {
                    Error::Unavailable {
                        endpoint,
                        reason: reason.into(),
                    }
                } else {
                    let reason = format!("{reason}: check the store's endpoint, region and addressing");
                    Error::BadReply {
                        endpoint,
                        reason: reason.into(),
                    }
                }
            }
        }
    }

    fn transport(&self, error: &HttpError) -> Error {
        let endpoint = self.endpoint.clone();
        match error.kind() {
            HttpErrorKind::Timeout => Error::Timeout { endpoint },
            HttpErrorKind::Connect => {
                // The innermost cause is the system's or the TLS library's: it knows no URL.
                let mut cause: &dyn StdError = error;
                while let Some(next) = cause.source() {
                    cause = next;
                }
                let cause: String = cause.to_string().chars().take(200).collect();
                let reason = format!("cannot connect: {cause}; check the store's `endpoint` and the network");
                Error::Unavailable {
                    endpoint,
                    reason: reason.into(),
                }
            }
            _ => Error::Unavailable {
                endpoint,
                reason: "the connection broke".into(),
            },
        }
    }
}

/// The first error of type `E` in a chain of causes.
fn cause<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
