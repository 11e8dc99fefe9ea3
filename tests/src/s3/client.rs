//! A small blocking S3 client that sends every key exactly as it is.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use object_store::ClientOptions;
use object_store::aws::{AmazonS3, AmazonS3Builder};

use super::server::{ACCESS_KEY, REGION, SECRET_KEY};
use super::sign::{ToSign, UNSIGNED_PAYLOAD, authorization, encode_path, timestamp};
use crate::content::sha256_hex;

/// Long enough for the largest object on a busy machine; a hung server still fails the test.
const TIMEOUT: Duration = Duration::from_mins(2);

/// An S3 server's answer, whatever its status.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: http::HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// A header as text; `None` if there is none.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(name)
            .map(|value| value.to_str().expect("S3 sends ASCII headers"))
    }

    /// The etag as the server sent it, quotes included.
    #[track_caller]
    pub fn etag(&self) -> &str {
        self.header("etag")
            .expect("an S3 server sends an etag with an object")
    }

    fn accepted(self, what: &dyn fmt::Display) -> Result<Self, Refused> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let body = String::from_utf8_lossy(&self.body).into_owned();
        Err(Refused {
            what: what.to_string(),
            status: self.status,
            body,
        })
    }
}

/// The server did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: the S3 server answered {status}: {body}")]
pub struct Refused {
    /// What was attempted.
    pub what: String,
    /// The HTTP status.
    pub status: u16,
    /// The answer's body, which says why.
    pub body: String,
}

/// An object as the server acknowledged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    /// Its key.
    pub key: String,
    /// Its length.
    pub size_bytes: u64,
    /// Its etag as the server sent it, quotes included.
    pub etag: String,
    /// The SHA-256 of its content, in hexadecimal.
    pub sha256: String,
}

/// A bucket of its own for a test.
#[derive(Debug, Clone)]
pub struct Bucket {
    name: String,
    client: Arc<Client>,
}

impl Bucket {
    /// Creates a bucket with a name that is used nowhere else.
    pub(crate) fn create_unique(address: SocketAddr) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        Self::create(address, &format!("bucket-{}-{number}", std::process::id()))
    }

    /// Creates a bucket.
    pub(crate) fn create(address: SocketAddr, name: &str) -> Self {
        let client = Arc::new(Client::new(address));
        client
            .send("PUT", &format!("/{name}"), &[], &[])
            .accepted(&format_args!("create the bucket {name}"))
            .unwrap_or_else(|error| panic!("{error}"));
        Self {
            name: name.to_owned(),
            client,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stores an object; panics if the server refuses it.
    #[track_caller]
    pub fn put(&self, key: &str, content: &[u8]) -> StoredObject {
        self.try_put(key, content)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Stores an object, unless the server refuses such a key.
    pub fn try_put(&self, key: &str, content: &[u8]) -> Result<StoredObject, Refused> {
        let reply = self
            .client
            .send("PUT", &self.path(key), &[], content)
            .accepted(&format_args!("put {key:?} ({} bytes)", content.len()))?;
        Ok(StoredObject {
            key: key.to_owned(),
            size_bytes: content.len() as u64,
            etag: reply.etag().to_owned(),
            sha256: sha256_hex(content),
        })
    }

    /// Copies an object within the bucket, on the server.
    #[track_caller]
    pub fn copy(&self, from: &str, to: &str) {
        let source = self.path(from);
        self.client
            .send("PUT", &self.path(to), &[("x-amz-copy-source", &source)], &[])
            .accepted(&format_args!("copy {from:?} to {to:?}"))
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// Deletes an object; one that does not exist is fine, as in S3.
    #[track_caller]
    pub fn delete(&self, key: &str) {
        self.client
            .send("DELETE", &self.path(key), &[], &[])
            .accepted(&format_args!("delete {key:?}"))
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// Asks for an object's headers.
    pub fn head(&self, key: &str) -> Reply {
        self.client.send("HEAD", &self.path(key), &[], &[])
    }

    /// Reads an object.
    pub fn get(&self, key: &str) -> Reply {
        self.client.send("GET", &self.path(key), &[], &[])
    }

    /// Reads the bytes at `range` (not empty), if the object still has the etag `if_match`.
    pub fn get_range(&self, key: &str, range: Range<u64>, if_match: Option<&str>) -> Reply {
        assert!(!range.is_empty(), "HTTP has no empty range");
        let bytes = format!("bytes={}-{}", range.start, range.end - 1);
        let mut headers = vec![("range", bytes.as_str())];
        headers.extend(if_match.map(|etag| ("if-match", etag)));
        self.client.send("GET", &self.path(key), &headers, &[])
    }

    /// The SHA-256 of the object as the origin has it now.
    #[track_caller]
    pub fn sha256(&self, key: &str) -> String {
        let reply = self.get(key).accepted(&format_args!("get {key:?}"));
        sha256_hex(&reply.unwrap_or_else(|error| panic!("{error}")).body)
    }

    /// The same bucket through another address, such as that of a [`crate::FaultProxy`].
    pub fn through(&self, address: SocketAddr) -> Self {
        Self {
            name: self.name.clone(),
            client: Arc::new(Client::new(address)),
        }
    }

    /// The bucket through a production client, for comparisons.
    pub fn object_store(&self) -> AmazonS3 {
        AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.client.address))
            .with_bucket_name(&self.name)
            .with_region(REGION)
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET_KEY)
            .with_unsigned_payload(true)
            .with_client_options(ClientOptions::new().with_allow_http(true).with_timeout(TIMEOUT))
            .build()
            .expect("every required setting is given")
    }

    fn path(&self, key: &str) -> String {
        format!("/{}/{}", self.name, encode_path(key))
    }
}

/// A connection pool to one S3 server.
#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    agent: ureq::Agent,
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            // A proxy from the environment would see loopback requests.
            .proxy(None)
            .build();
        Self {
            address,
            agent: config.new_agent(),
        }
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.try_send(method, path, headers, body)
            .unwrap_or_else(|error| panic!("cannot {method} {path} at {}: {error}", self.address))
    }

    /// Sends one signed request; `path` is encoded already, and goes out as it is.
    pub(super) fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Reply, ureq::Error> {
        let timestamp = timestamp(SystemTime::now());
        let mut to_send: Vec<(String, String)> = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        to_send.push(("host".to_owned(), self.address.to_string()));
        to_send.push(("x-amz-content-sha256".to_owned(), UNSIGNED_PAYLOAD.to_owned()));
        to_send.push(("x-amz-date".to_owned(), timestamp.clone()));
        to_send.sort();
        let signature = authorization(
            &ToSign {
                method,
                path,
                query: "",
                headers: &to_send,
                payload_hash: UNSIGNED_PAYLOAD,
                timestamp: &timestamp,
                region: REGION,
            },
            ACCESS_KEY,
            SECRET_KEY,
        );
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address));
        for (name, value) in &to_send {
            request = request.header(name, value);
        }
        let request = request.header("authorization", signature);
        let response = if method == "PUT" {
            self.agent.run(request.body(body)?)?
        } else {
            self.agent.run(request.body(())?)?
        };
        let (parts, body) = response.into_parts();
        let body = body.into_with_config().limit(u64::MAX).read_to_vec()?;
        Ok(Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.into(),
        })
    }
}
