//! The right to read, proved with one's own credentials: what the store tells of an object, or of all beneath a prefix,
//! is a generation that the daemon accepts.

use std::time::Duration;

use cachelet_protocol::ids::{BucketName, Etag, Generation, ObjectKey, ObjectPath, Scheme};
use futures::StreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};
use tokio::runtime::{Builder, Runtime};

use crate::arguments::Origin;
use crate::failure::{Failure, Kind};
use crate::interrupt::Interrupt;
use crate::place::Prefix;

/// How long a store that fails is tried again: somebody waits before a terminal.
const RETRIES_END: Duration = Duration::from_secs(15);

/// The object's current generation, as the store tells whoever runs this program.
pub(crate) fn generation(path: &ObjectPath, origin: &Origin, by_hand: &str) -> Result<Generation, Failure> {
    if path.scheme != Scheme::S3 {
        return Err(Failure::usage(format!(
            "the daemon asks for proof of the right to read {path}, which this command can fetch from S3 only: {by_hand}"
        )));
    }
    // object_store would silently ask for another key where this is not the same.
    let key = Path::parse(path.key.as_str())
        .ok()
        .filter(|key| key.as_ref() == path.key.as_str())
        .ok_or_else(|| {
            Failure::usage(format!(
                "the key of {path} cannot be asked for as it stands: {by_hand}"
            ))
        })?;
    let store = store(&path.bucket, origin)?;
    let meta = runtime()?.block_on(store.head(&key)).map_err(|error| {
        refused(
            &path.to_string(),
            "asking the store for the generation of",
            &error,
        )
    })?;
    generation_of(&meta)
        .map_err(|why| Failure::new(Kind::Unavailable, format!("{path} cannot be cached: {why}")))
}

/// What a listing found.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Objects with bytes, in the order of their keys.
    pub(crate) objects: Vec<(ObjectPath, Generation)>,
    /// Objects without bytes: there is nothing to cache.
    pub(crate) empty: u64,
    /// Objects that cannot be cached, and why.
    pub(crate) refused: Vec<(String, String)>,
}

/// Every object beneath a prefix, as the store lists it to whoever runs this program. Ends early when interrupted.
pub(crate) fn list(prefix: &Prefix, origin: &Origin, interrupt: &Interrupt) -> Result<Listing, Failure> {
    if prefix.scheme != Scheme::S3 {
        return Err(Failure::usage(format!(
            "{prefix} cannot be listed: this command lists S3 only; name the objects, each by its own path"
        )));
    }
    let key = Path::parse(&prefix.key)
        .ok()
        .filter(|key| key.as_ref() == prefix.key.trim_end_matches('/') && !prefix.key.ends_with("//"))
        .ok_or_else(|| {
            Failure::usage(format!(
                "{prefix} cannot be listed as it stands (an empty part, or one that is a dot): name the objects instead"
            ))
        })?;
    let key = (!prefix.key.is_empty()).then_some(&key);
    let store = store(&prefix.bucket, origin)?;
    runtime()?.block_on(async {
        let mut listing = Listing::default();
        let mut found = store.list(key);
        while let Some(meta) = found.next().await {
            let meta = meta.map_err(|error| refused(&prefix.to_string(), "listing", &error))?;
            listing.add(prefix, &meta);
            if interrupt.came() {
                break;
            }
        }
        Ok(listing)
    })
}

impl Listing {
    fn add(&mut self, prefix: &Prefix, meta: &ObjectMeta) {
        // Directory markers come without their final slash; they are empty.
        if meta.size == 0 {
            self.empty += 1;
            return;
        }
        let path = ObjectKey::new(meta.location.as_ref())
            .map_err(|error| error.to_string())
            .map(|key| ObjectPath {
                scheme: prefix.scheme,
                bucket: prefix.bucket.clone(),
                key,
            });
        match (path, generation_of(meta)) {
            (Ok(path), Ok(generation)) => self.objects.push((path, generation)),
            (Err(why), _) | (_, Err(why)) => {
                let path = format!("{}://{}/{}", prefix.scheme, prefix.bucket, meta.location);
                self.refused.push((path, why));
            }
        }
    }
}

fn generation_of(meta: &ObjectMeta) -> Result<Generation, String> {
    let etag = meta
        .e_tag
        .as_deref()
        .ok_or("the store gives no etag for it, without which a change could not be told")?;
    Ok(Generation {
        etag: Etag::from_header(etag).map_err(|error| error.to_string())?,
        size_bytes: meta.size,
    })
}

fn store(bucket: &BucketName, origin: &Origin) -> Result<AmazonS3, Failure> {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket.as_str())
        .with_retry(RetryConfig {
            retry_timeout: RETRIES_END,
            ..RetryConfig::default()
        });
    if let Some(endpoint) = &origin.endpoint {
        builder = builder
            .with_endpoint(endpoint)
            .with_allow_http(endpoint.starts_with("http://"));
    }
    if let Some(region) = &origin.region {
        builder = builder.with_region(region);
    }
    builder
        .build()
        .map_err(|error| Failure::usage(format!("setting up access to {bucket}: {error}")))
}

fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("starting a runtime", &error))
}

/// What the store said, without its reply's body: that may carry a signed URL.
fn refused(what: &str, attempted: &str, error: &Error) -> Failure {
    let status = status_of(error);
    match (error, status) {
        (Error::NotFound { .. }, _) | (_, Some(404)) => {
            Failure::new(Kind::NotFound, format!("no such object or bucket: {what}"))
        }
        (Error::PermissionDenied { .. } | Error::Unauthenticated { .. }, _) | (_, Some(401 | 403)) => {
            Failure::new(
                Kind::Permission,
                format!(
                    "the store refuses your credentials access to {what}: check AWS_ACCESS_KEY_ID and its policy"
                ),
            )
        }
        (Error::InvalidPath { .. }, _) => Failure::new(
            Kind::Unavailable,
            format!(
                "{attempted} {what} failed: a key beneath it has an empty part, or one that is a dot; name the objects instead"
            ),
        ),
        _ => {
            let answered = status.map_or(String::new(), |status| format!(" with status {status}"));
            Failure::new(
                Kind::Temporary,
                format!("{attempted} {what} failed{answered}: check --endpoint and --region"),
            )
        }
    }
}

/// The HTTP status of a failure. For listings `object_store` has it in its text alone, before the reply's body.
fn status_of(error: &Error) -> Option<u16> {
    const BEFORE: &str = "non-2xx status code: ";
    let text = error.to_string();
    let (_, behind) = text.split_once(BEFORE)?;
    behind.get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing_failed(text: &str) -> Error {
        Error::Generic {
            store: "S3",
            source: text.to_owned().into(),
        }
    }

    #[test]
    fn a_listings_failure_is_told_by_its_status_and_without_the_replys_body() {
        for (status, kind) in [
            ("404 Not Found", Kind::NotFound),
            ("403 Forbidden", Kind::Permission),
            ("503 Slow Down", Kind::Temporary),
        ] {
            let error = listing_failed(&format!(
                "Error performing list request: Server returned non-2xx status code: {status}: <Body>signed</Body>"
            ));
            let failure = refused("s3://lake/t/", "listing", &error);
            assert_eq!(failure.kind, kind, "{status}");
            assert!(!failure.to_string().contains("signed"), "{failure}");
        }
        let unreachable = refused("s3://lake/t/", "listing", &listing_failed("connection refused"));
        assert_eq!(unreachable.kind, Kind::Temporary);
    }

    fn meta(location: &str, size: u64, e_tag: Option<&str>) -> ObjectMeta {
        ObjectMeta {
            location: Path::parse(location).unwrap(),
            last_modified: "2026-11-21T10:00:00Z".parse().unwrap(),
            size,
            e_tag: e_tag.map(Into::into),
            version: None,
        }
    }

    #[test]
    fn what_a_listing_gives_no_sound_etag_for_is_refused_and_what_is_empty_is_counted() {
        let prefix = Prefix {
            scheme: Scheme::S3,
            bucket: BucketName::new("lake").unwrap(),
            key: "t/".into(),
        };
        let mut listing = Listing::default();
        for meta in [
            meta("t", 0, Some("\"d41d\"")),
            meta("t/a", 5, Some("\"e1\"")),
            meta("t/b", 5, None),
            meta("t/c", 5, Some("W/\"e2\"")),
        ] {
            listing.add(&prefix, &meta);
        }
        assert_eq!(listing.empty, 1);
        let [(path, generation)] = listing.objects.as_slice() else {
            panic!("one object: {listing:?}");
        };
        assert_eq!(
            (path.to_string().as_str(), generation.to_string().as_str()),
            ("s3://lake/t/a", "e1 (5 bytes)")
        );
        let [(b, no_etag), (c, weak)] = listing.refused.as_slice() else {
            panic!("two refused: {listing:?}");
        };
        assert_eq!((b.as_str(), c.as_str()), ("s3://lake/t/b", "s3://lake/t/c"));
        assert!(
            no_etag.contains("no etag") && weak.contains("weak"),
            "{no_etag}, {weak}"
        );
    }
}
