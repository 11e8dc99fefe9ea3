//! What a connection is told once it is admitted.

use cachelet_protocol::wire::{FEATURES, GrantStatus, VERSION, Welcome};

use super::session::Session;
use super::{Context, MAX_UNACKNOWLEDGED};
use crate::store::GrantStatus as StoreGrants;

/// What a connection is welcomed with, whose caller has these features.
pub(super) fn welcome(context: &Context, session: &Session, features: u64) -> Welcome {
    let local = session.writer.stream().is_local();
    let (grants, reason) = match context.store.grants() {
        _ if !local => (
            GrantStatus::Disabled,
            "descriptors cannot be passed over TCP".to_owned(),
        ),
        StoreGrants::Enabled => (GrantStatus::Enabled, String::new()),
        StoreGrants::EnabledUnprotected => (GrantStatus::Unprotected, String::new()),
        StoreGrants::Disabled { reason } => (GrantStatus::Disabled, reason.clone()),
    };
    Welcome {
        version: VERSION,
        features: features & FEATURES,
        daemon: env!("CARGO_PKG_VERSION").to_owned(),
        node: context.identity.node.clone(),
        worker: context.identity.uuid,
        epoch: context.store.epoch(),
        session: session.id,
        session_secret: session.secret,
        service_address: context.service_address.clone(),
        block_bytes: context.store.block_size().bytes(),
        page_bytes: cachelet_protocol::block::PAGE_BYTES as u32,
        inline_bytes: context.limits.inline_bytes,
        max_held_bytes: context.limits.max_held_bytes,
        max_unacknowledged: MAX_UNACKNOWLEDGED,
        idle_close_seconds: context.limits.idle_close.as_secs().try_into().unwrap_or(u32::MAX),
        grants,
        grants_disabled_reason: reason,
    }
}
