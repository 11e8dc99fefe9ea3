//! How failures of the parts reach the caller: `Bypass` where the origin can serve instead, `Failed` where it cannot; and
//! how connections end that are of no further use.

use std::fmt;

use cachelet_protocol::ids::Handle;
use cachelet_protocol::wire::{
    Bypass, BypassReason, Code, DecodeError, Failed, FrameKind, RequestId, encode,
};

use super::Context;
use crate::connection::ReadError;
use crate::{fill, origin, store};

/// An answer that is no success.
#[derive(Debug)]
pub(super) enum Refusal {
    Bypass(Bypass),
    Failed(Failed),
}

impl Refusal {
    pub(super) fn bypass(reason: BypassReason, detail: impl Into<String>) -> Self {
        Self::Bypass(Bypass {
            reason,
            detail: detail.into(),
        })
    }

    pub(super) fn failed(code: Code, message: impl Into<String>) -> Self {
        Self::Failed(Failed {
            code,
            message: message.into(),
        })
    }

    /// The frame that says so, counted.
    pub(super) fn frame(&self, context: &Context, request: RequestId) -> Vec<u8> {
        match self {
            Self::Bypass(bypass) => {
                context.metrics.count_bypass(bypass.reason);
                encode(bypass, 0, request)
            }
            Self::Failed(failed) => {
                context.metrics.count_failure(failed.code);
                encode(failed, 0, request)
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bypass(bypass) => write!(f, "bypass ({}): {}", bypass.reason, bypass.detail),
            Self::Failed(failed) => write!(f, "{}: {}", failed.code, failed.message),
        }
    }
}

impl From<&origin::Error> for Refusal {
    fn from(error: &origin::Error) -> Self {
        let message = error.to_string();
        match error {
            origin::Error::UnsupportedKey { .. } => Self::bypass(BypassReason::UnsupportedKey, message),
            origin::Error::NotCacheable { .. } => Self::bypass(BypassReason::NotCacheable, message),
            origin::Error::NotServed { .. } | origin::Error::Config(_) => {
                Self::bypass(BypassReason::UnknownStore, message)
            }
            origin::Error::NotFound { .. } => Self::failed(Code::NotFound, message),
            origin::Error::PermissionDenied { .. } | origin::Error::Credentials { .. } => {
                Self::failed(Code::PermissionDenied, message)
            }
            origin::Error::Changed { .. } => Self::failed(Code::ObjectChanged, message),
            origin::Error::InvalidRange { .. } => Self::failed(Code::InvalidRequest, message),
            origin::Error::Timeout { .. } => Self::failed(Code::DeadlineExceeded, message),
            origin::Error::Throttled { .. }
            | origin::Error::Unavailable { .. }
            | origin::Error::LeftOut { .. }
            | origin::Error::BadReply { .. } => Self::failed(Code::OriginUnavailable, message),
        }
    }
}

impl From<fill::Error> for Refusal {
    fn from(error: fill::Error) -> Self {
        match &error {
            fill::Error::Origin(origin) => Self::from(&**origin),
            fill::Error::NoSpace(_) | fill::Error::Store(_) => {
                Self::bypass(BypassReason::NoSpace, error.to_string())
            }
            fill::Error::Stopping => Self::bypass(BypassReason::Draining, error.to_string()),
            fill::Error::Deadline(_) => Self::failed(Code::DeadlineExceeded, error.to_string()),
        }
    }
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        Self::bypass(BypassReason::NoSpace, error.to_string())
    }
}

pub(super) fn unknown_handle(handle: Handle) -> Refusal {
    Refusal::failed(
        Code::UnknownHandle,
        format!("handle {handle} is not open in this session"),
    )
}

/// Why a connection ended that did not end well.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("writing failed: {0}")]
    Write(#[from] std::io::Error),
    #[error("a {0:?} frame is none that a client sends here")]
    Unexpected(FrameKind),
    #[error("a message cannot be read: {0}")]
    Decode(#[from] DecodeError),
}
