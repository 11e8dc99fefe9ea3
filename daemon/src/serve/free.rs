//! Forgetting what is cached, because somebody says so: a table that is not needed any more, or not trusted.
//!
//! Forgetting costs time and never a byte: readers go on with the files they hold, and what is asked for again is fetched
//! again. Who may connect may forget an object that he can name. A whole prefix takes more where callers prove their
//! right to read object by object: it reaches, and counts, what the caller may not even know of.

use std::sync::Arc;

use cachelet_protocol::wire::{Code, FREE_DRY_RUN, FREE_PREFIX, Free, Freed};

use super::Context;
use super::refusal::Refusal;
use super::session::Session;
use crate::origin::Authorization;
use crate::store::{BlockStore, Forget};

/// Forgets what was asked for, or counts it.
pub(super) async fn free(context: &Arc<Context>, session: &Session, free: Free) -> Result<Freed, Refusal> {
    let Free {
        store,
        scheme,
        bucket,
        key,
        flags,
    } = free;
    let found = context.find_store(scheme, &bucket, &store)?;
    let prefix = flags & FREE_PREFIX != 0;
    // Over TCP every session has presented the secret.
    if prefix && session.writer.stream().is_local() && found.authorization() == Authorization::Caller {
        let message = format!(
            "forgetting all of {scheme}://{bucket}/{key}* takes the cluster's secret, for its objects are read with each \
             caller's own right (authorization = \"caller\"): ask over TCP"
        );
        return Err(Refusal::failed(Code::PermissionDenied, message));
    }
    if !prefix && key.is_empty() {
        let message = format!("{scheme}://{bucket}/ names no object");
        return Err(Refusal::failed(Code::InvalidRequest, message));
    }
    let forget = if flags & FREE_DRY_RUN == 0 {
        Forget::Now
    } else {
        Forget::NotYet
    };
    let identity = found.identity().clone();
    let work = move |store: &BlockStore| {
        store.forget(forget, |name| {
            let path = &name.path;
            let own = name.store == identity && path.scheme == scheme && path.bucket == bucket;
            own && if prefix {
                path.key.as_str().starts_with(&key)
            } else {
                path.key.as_str() == key
            }
        })
    };
    let forgotten = context.filler.on_disk(work).await?;
    Ok(Freed {
        objects: forgotten.objects,
        blocks: forgotten.blocks,
        bytes: forgotten.bytes,
    })
}
