//! An S3 server in memory that takes every key literally.
//!
//! The servers of [`crate::S3Server`] keep objects as files, so to them `x//y`, `./x` and `a/../b` are other names of `x/y`,
//! `x` and `b`, or refused. In S3 they are keys like any other; whether Cachelet keeps them apart can be shown only here.
//! It checks no signatures and lists nothing: for everything else there are the real ones.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{CONTENT_RANGE, ETAG, IF_MATCH, LAST_MODIFIED, RANGE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;

use crate::content::sha256_hex;
use crate::loopback::{Body, LoopbackServer, full, serve_http};
use crate::s3::Bucket;

/// What a request's path names, percent-decoded.
type Objects = Arc<Mutex<HashMap<Vec<u8>, Stored>>>;

#[derive(Debug, Clone)]
struct Stored {
    content: Bytes,
    etag: String,
}

/// An S3 server that never takes one key for another.
#[derive(Debug)]
pub struct LiteralS3 {
    server: LoopbackServer,
}

impl LiteralS3 {
    /// Starts it on a free loopback port.
    pub fn start() -> Self {
        let objects = Objects::default();
        let server = LoopbackServer::start("literal-s3", |listener| {
            serve_http(listener, move || {
                let objects = Arc::clone(&objects);
                service_fn(move |request| answer(request, Arc::clone(&objects)))
            })
        });
        Self { server }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Where it listens, as an endpoint URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Creates a bucket that no other test has.
    pub fn bucket(&self) -> Bucket {
        Bucket::create_unique(self.address())
    }
}

async fn answer(request: Request<Incoming>, objects: Objects) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let name = percent_decode(parts.uri.path());
    Ok(match parts.method {
        Method::PUT => {
            let content = match parts.headers.get("x-amz-copy-source") {
                Some(source) => find(
                    &objects,
                    &percent_decode(&String::from_utf8_lossy(source.as_bytes())),
                )
                .map(|stored| stored.content),
                None => body.collect().await.ok().map(http_body_util::Collected::to_bytes),
            };
            match content {
                Some(content) => {
                    let etag = format!("\"{}\"", &sha256_hex(&content)[..32]);
                    let stored = Stored {
                        content,
                        etag: etag.clone(),
                    };
                    objects
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(name, stored);
                    reply(StatusCode::OK, &[(ETAG.as_str(), &etag)], Bytes::new())
                }
                None => error(StatusCode::NOT_FOUND),
            }
        }
        Method::DELETE => {
            objects
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&name);
            reply(StatusCode::NO_CONTENT, &[], Bytes::new())
        }
        Method::GET | Method::HEAD => match find(&objects, &name) {
            Some(stored) => read(&stored, &parts.headers),
            None => error(StatusCode::NOT_FOUND),
        },
        _ => error(StatusCode::METHOD_NOT_ALLOWED),
    })
}

fn find(objects: &Objects, name: &[u8]) -> Option<Stored> {
    objects
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(name)
        .cloned()
}

fn read(stored: &Stored, headers: &HeaderMap) -> Response<Body> {
    let header = |name| {
        headers
            .get(name)
            .and_then(|value: &http::HeaderValue| value.to_str().ok())
    };
    if header(IF_MATCH).is_some_and(|etag| etag.trim_matches('"') != stored.etag.trim_matches('"')) {
        return error(StatusCode::PRECONDITION_FAILED);
    }
    let size = stored.content.len() as u64;
    let mut with = vec![
        (ETAG.as_str(), stored.etag.as_str()),
        (LAST_MODIFIED.as_str(), "Sat, 21 Nov 2026 00:00:00 GMT"),
    ];
    match header(RANGE) {
        None => reply(StatusCode::OK, &with, stored.content.clone()),
        Some(range) => match parse_range(range, size) {
            Some(range) => {
                let content_range = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                with.push((CONTENT_RANGE.as_str(), &content_range));
                let content = stored.content.slice(range.start as usize..range.end as usize);
                reply(StatusCode::PARTIAL_CONTENT, &with, content)
            }
            None => error(StatusCode::RANGE_NOT_SATISFIABLE),
        },
    }
}

/// The bytes that `bytes=a-b`, `bytes=a-` or `bytes=-n` selects of an object; `None` if there are none.
fn parse_range(header: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => first..size.min(last.checked_add(1)?),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(suffix)) if first.is_empty() => size.saturating_sub(suffix)..size,
        _ => return None,
    };
    (!range.is_empty()).then_some(range)
}

/// An answer to GET; to HEAD, hyper sends the same without the body.
fn reply(status: StatusCode, headers: &[(&str, &str)], content: Bytes) -> Response<Body> {
    let mut builder = Response::builder()
        .status(status)
        .header("content-length", content.len());
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(full(content)).expect("the headers are ours")
}

fn error(status: StatusCode) -> Response<Body> {
    let reason = status.canonical_reason().unwrap_or_default().replace(' ', "");
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{reason}</Code></Error>");
    reply(status, &[("content-type", "application/xml")], text.into())
}

fn percent_decode(path: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.as_bytes();
    while let Some((&byte, rest)) = bytes.split_first() {
        let escaped = if byte == b'%' {
            rest.get(..2).and_then(|digits| hex::decode(digits).ok())
        } else {
            None
        };
        if let Some(value) = escaped {
            decoded.extend(value);
            bytes = &rest[2..];
        } else {
            decoded.push(byte);
            bytes = rest;
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_select_what_http_says() {
        for (header, expected) in [
            ("bytes=0-0", Some(0..1)),
            ("bytes=2-9", Some(2..10)),
            ("bytes=2-99", Some(2..10)),
            ("bytes=4-", Some(4..10)),
            ("bytes=-3", Some(7..10)),
            ("bytes=-30", Some(0..10)),
            ("bytes=10-", None),
            ("bytes=5-4", None),
            ("bytes=-0", None),
            ("pages=1-2", None),
        ] {
            assert_eq!(parse_range(header, 10), expected, "{header}");
        }
    }

    #[test]
    fn percent_signs_that_escape_nothing_stay() {
        assert_eq!(percent_decode("/b/a%20b%2Fc%zz%"), b"/b/a b/c%zz%");
    }
}
