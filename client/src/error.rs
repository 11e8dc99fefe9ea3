//! Why a read or an open did not succeed, and what the caller should do about it.
//!
//! Errors are cheap to clone: one lost connection fails every waiter with the same error.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cachelet_protocol::ids::{Generation, ObjectPath};
use cachelet_protocol::wire::{self, BypassReason, Code};

/// What went wrong. [`should_use_origin`](Self::should_use_origin) decides whether the origin may still serve the read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The daemon says: go to the origin for this one.
    #[error("the daemon does not serve this object ({reason}): {detail}")]
    Bypass {
        /// Why.
        reason: BypassReason,
        /// Why, in words.
        detail: String,
    },
    /// The object is no longer the generation that was opened.
    #[error("{path} is no longer generation {expected}: {detail}; open it again to read the new one")]
    ObjectChanged {
        /// The object.
        path: Box<ObjectPath>,
        /// The generation that was opened.
        expected: ExpectedGeneration,
        /// What was found instead.
        detail: String,
    },
    /// No such object, says the daemon.
    #[error("no such object: {0}")]
    NotFound(String),
    /// The origin refused the daemon access.
    #[error("access denied: {0}")]
    PermissionDenied(String),
    /// The daemon answered with another failure.
    #[error("the daemon failed ({code}): {message}")]
    Failed {
        /// The kind of failure.
        code: Code,
        /// The failure in words.
        message: String,
    },
    /// No daemon can be reached, or the connection to it was lost.
    #[error("no daemon reachable: {0}")]
    Unavailable(String),
    /// The socket's path does not fit into a socket address and the way round it is closed.
    #[error(
        "socket path {path:?} has {length} bytes, more than the 107 that the kernel takes: \
         mount the socket directory at a shorter path, or make /proc available"
    )]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The daemon did not answer in time.
    #[error("{operation} timed out after {}", humane(*.after))]
    Timeout {
        /// What was attempted.
        operation: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The daemon broke the protocol; the connection was given up.
    #[error("the daemon broke the protocol: {0}")]
    Protocol(String),
    /// This process could not do its own part, such as starting a thread.
    #[error("{operation} failed: {source}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// The system's reason.
        source: Arc<io::Error>,
    },
    /// `read_exact_at` reached beyond the object's end.
    #[error("read of {length} bytes at offset {offset} reaches beyond the object's {size_bytes} bytes")]
    EndOfObject {
        /// Where the read began.
        offset: u64,
        /// How many bytes were asked for.
        length: u64,
        /// The object's size in bytes.
        size_bytes: u64,
    },
}

/// The generation that a caller holds on to; `None` while it had none yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedGeneration(pub Option<Generation>);

impl fmt::Display for ExpectedGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(generation) => fmt::Display::fmt(generation, f),
            None => f.write_str("it was when the read began"),
        }
    }
}

fn humane(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

impl Error {
    /// Whether the same bytes of the same generation may be had from the origin.
    ///
    /// The origin is the authority on who may read and on what exists, so only two answers are final: the object is
    /// another one now, and the object has no such bytes.
    pub fn should_use_origin(&self) -> bool {
        match self {
            Self::ObjectChanged { .. } | Self::EndOfObject { .. } => false,
            Self::Bypass { .. }
            | Self::NotFound(_)
            | Self::PermissionDenied(_)
            | Self::Failed { .. }
            | Self::Unavailable(_)
            | Self::SocketPathTooLong { .. }
            | Self::Timeout { .. }
            | Self::Protocol(_)
            | Self::Io { .. } => true,
        }
    }

    /// Whether the same request may succeed if it is sent again later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Failed { code, .. } => code.is_retryable(),
            Self::Bypass { reason, .. } => match reason {
                BypassReason::NoSpace
                | BypassReason::Draining
                | BypassReason::NoGrant
                | BypassReason::Overloaded => true,
                BypassReason::Other
                | BypassReason::UnknownStore
                | BypassReason::UnsupportedKey
                | BypassReason::NotCacheable
                | BypassReason::GenerationRequired => false,
            },
            Self::Unavailable(_) | Self::Timeout { .. } | Self::Protocol(_) | Self::Io { .. } => true,
            Self::ObjectChanged { .. }
            | Self::NotFound(_)
            | Self::PermissionDenied(_)
            | Self::SocketPathTooLong { .. }
            | Self::EndOfObject { .. } => false,
        }
    }

    /// Whether the connection is gone, so that the request may be sent again on another one.
    pub(crate) fn lost_connection(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Protocol(_))
            || matches!(
                self,
                Self::Failed {
                    code: Code::UnknownHandle,
                    ..
                }
            )
    }

    /// Whether the daemon refuses a descriptor but may serve the bytes inline: what the cache has no room for it passes
    /// through from the origin.
    pub(crate) fn refuses_grant(&self) -> bool {
        matches!(
            self,
            Self::Bypass {
                reason: BypassReason::NoGrant | BypassReason::NoSpace,
                ..
            }
        )
    }

    pub(crate) fn io(operation: &'static str, source: io::Error) -> Self {
        Self::Io {
            operation,
            source: Arc::new(source),
        }
    }

    /// The error that a `Failed` stands for, on the object that was asked for.
    pub(crate) fn from_failed(failed: wire::Failed) -> Self {
        match failed.code {
            Code::NotFound => Self::NotFound(failed.message),
            Code::PermissionDenied => Self::PermissionDenied(failed.message),
            Code::Unsupported
            | Code::InvalidRequest
            | Code::Unauthenticated
            | Code::ObjectChanged
            | Code::OriginUnavailable
            | Code::DeadlineExceeded
            | Code::UnknownHandle
            | Code::NotHeld
            | Code::Internal => Self::Failed {
                code: failed.code,
                message: failed.message,
            },
        }
    }

    pub(crate) fn from_bypass(bypass: wire::Bypass) -> Self {
        Self::Bypass {
            reason: bypass.reason,
            detail: bypass.detail,
        }
    }

    /// Puts the object's name to a daemon's "object changed".
    pub(crate) fn about(self, path: &ObjectPath, expected: Option<&Generation>) -> Self {
        match self {
            Self::Failed {
                code: Code::ObjectChanged,
                message,
            } => Self::ObjectChanged {
                path: Box::new(path.clone()),
                expected: ExpectedGeneration(expected.cloned()),
                detail: message,
            },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_changed_object_and_a_read_beyond_the_end_are_final() {
        let path: ObjectPath = "s3://bucket/key".parse().unwrap();
        let changed = Error::Failed {
            code: Code::ObjectChanged,
            message: "etag is now b".into(),
        }
        .about(&path, None);
        assert!(matches!(changed, Error::ObjectChanged { .. }) && !changed.should_use_origin());
        for code in Code::ALL.iter().filter(|code| **code != Code::ObjectChanged) {
            let failed = wire::Failed {
                code: *code,
                message: String::new(),
            };
            assert!(
                Error::from_failed(failed).about(&path, None).should_use_origin(),
                "{code}"
            );
        }
        assert!(Error::Unavailable(String::new()).should_use_origin());
    }
}
