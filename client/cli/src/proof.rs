//! The right to read, proved with one's own credentials: one HEAD to the store, whose etag and size the daemon accepts.

use cachelet_protocol::ids::{Etag, Generation, ObjectPath, Scheme};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt};

use crate::arguments::Access;
use crate::failure::{Failure, Kind};

/// The object's current generation, as the store tells whoever runs this program.
pub(crate) fn generation(path: &ObjectPath, access: &Access) -> Result<Generation, Failure> {
    let by_hand = "pass --etag and --size instead";
    match path.scheme {
        Scheme::S3 => {}
        Scheme::Oss | Scheme::File => {
            return Err(Failure::usage(format!(
                "the daemon asks for proof of the right to read {path}, which this command can fetch from S3 only: {by_hand}"
            )));
        }
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
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(path.bucket.as_str());
    if let Some(endpoint) = &access.endpoint {
        builder = builder
            .with_endpoint(endpoint)
            .with_allow_http(endpoint.starts_with("http://"));
    }
    if let Some(region) = &access.region {
        builder = builder.with_region(region);
    }
    let store = builder
        .build()
        .map_err(|error| Failure::usage(format!("setting up access to {}: {error}", path.bucket)))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("starting a runtime", &error))?;
    let meta = runtime
        .block_on(store.head(&key))
        .map_err(|error| refused(path, &error))?;
    let etag = meta.e_tag.as_deref().ok_or_else(|| {
        Failure::new(
            Kind::Unavailable,
            format!("{path} has no etag and cannot be cached"),
        )
    })?;
    let etag = Etag::from_header(etag)
        .map_err(|error| Failure::new(Kind::Unavailable, format!("{path} cannot be cached: {error}")))?;
    Ok(Generation {
        etag,
        size_bytes: meta.size,
    })
}

/// What the store said, without its reply's body: that may carry a signed URL.
fn refused(path: &ObjectPath, error: &Error) -> Failure {
    match error {
        Error::NotFound { .. } => Failure::new(Kind::NotFound, format!("no such object: {path}")),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Failure::new(
            Kind::Permission,
            format!(
                "the store refuses your credentials access to {path}: check AWS_ACCESS_KEY_ID and its policy"
            ),
        ),
        _ => Failure::new(
            Kind::Temporary,
            format!("asking the store for the generation of {path} failed: check --endpoint and --region"),
        ),
    }
}
