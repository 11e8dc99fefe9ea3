//! What can go wrong between the daemon and an origin.
//!
//! Texts name objects, endpoints and the store's own error code (a short alphanumeric word such as `NoSuchBucket`).
//! They never carry a credential, a header, a query string or a reply's body.

use std::fmt;
use std::time::Duration;

use cachelet_protocol::ids::ObjectPath;

use super::config::ConfigError;

/// The outcome of a request to an origin that did not give the bytes or the metadata asked for.
///
/// It is `Clone` because one fetch is shared by everybody who waits for the same page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The origin has no such object (or no such bucket, or the path names a directory).
    #[error("no object at {path}{code}", code = suffix(code.as_ref()))]
    NotFound {
        /// What was asked for.
        path: ObjectPath,
        /// The origin's own word for it, where it gave one.
        code: Option<ReplyCode>,
    },
    /// The origin refused the daemon's credentials, or refuses them this object.
    #[error("the origin refuses access to {path}{code}: check the store's credentials and their policy", code = suffix(code.as_ref()))]
    PermissionDenied {
        /// What was asked for.
        path: ObjectPath,
        /// The origin's own word for it, where it gave one.
        code: Option<ReplyCode>,
    },
    /// The object is no longer the generation that was asked for. Open it again to read the new one.
    #[error("{path} changed while it was read: open it again to read its new generation")]
    Changed {
        /// What was asked for.
        path: ObjectPath,
    },
    /// The key cannot be sent to this store without becoming another object's key.
    #[error("{path} cannot be read through the cache: {reason}; read it from the origin")]
    UnsupportedKey {
        /// What was asked for.
        path: ObjectPath,
        /// What is wrong with the key.
        reason: &'static str,
    },
    /// The object may be read but not cached now: nothing pins its bytes.
    #[error("{path} cannot be cached: {reason}; read it from the origin")]
    NotCacheable {
        /// What was asked for.
        path: ObjectPath,
        /// Why not.
        reason: &'static str,
    },
    /// The range is empty or reaches behind the generation's end. No request was sent.
    #[error("cannot read bytes {start}..{end} of {path}, which has {size_bytes}")]
    InvalidRange {
        /// What was asked for.
        path: ObjectPath,
        /// First byte asked for.
        start: u64,
        /// The byte behind the last one asked for.
        end: u64,
        /// The generation's size.
        size_bytes: u64,
    },
    /// The store does not serve this path's scheme and bucket. No request was sent.
    #[error("store {store:?} does not serve {path}: add the bucket to its `buckets`")]
    NotServed {
        /// What was asked for.
        path: ObjectPath,
        /// The store that was asked.
        store: Box<str>,
    },
    /// The origin asks for fewer requests, and kept asking through every retry that the budget allowed.
    #[error("{endpoint} asks to slow down{wait}", wait = wait(*retry_after))]
    Throttled {
        /// The origin.
        endpoint: Box<str>,
        /// How long the origin asked to wait, where it said so.
        retry_after: Option<Duration>,
    },
    /// The origin could not be reached, broke the connection, or failed with a server error.
    #[error("{endpoint} is unavailable: {reason}")]
    Unavailable {
        /// The origin.
        endpoint: Box<str>,
        /// What happened.
        reason: Box<str>,
    },
    /// The origin did not answer, or stopped sending, for longer than the store's timeouts allow.
    #[error("{endpoint} did not answer in time: check the network, or raise the store's `request_timeout`")]
    Timeout {
        /// The origin.
        endpoint: Box<str>,
    },
    /// The origin failed every request lately and is left out for a while. No request was sent.
    #[error(
        "{endpoint} failed every request lately and is not asked for the moment; it is tried again within 30 s"
    )]
    LeftOut {
        /// The origin.
        endpoint: Box<str>,
    },
    /// The reply is not an answer to the request. Nothing of it was kept.
    #[error("{endpoint} gave a wrong reply: {reason}")]
    BadReply {
        /// The origin.
        endpoint: Box<str>,
        /// What was wrong with it.
        reason: Box<str>,
    },
    /// No credential could be had for the store.
    #[error("no credentials for store {store:?}: {reason}")]
    Credentials {
        /// The store's name.
        store: Box<str>,
        /// What was tried, and what to do.
        reason: Box<str>,
    },
    /// The configuration names no usable store.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Error {
    /// Whether the same request may succeed if it is sent again later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Throttled { .. }
            | Self::Unavailable { .. }
            | Self::Timeout { .. }
            | Self::Credentials { .. } => true,
            Self::NotFound { .. }
            | Self::PermissionDenied { .. }
            | Self::Changed { .. }
            | Self::UnsupportedKey { .. }
            | Self::NotCacheable { .. }
            | Self::InvalidRange { .. }
            | Self::NotServed { .. }
            | Self::LeftOut { .. }
            | Self::BadReply { .. }
            | Self::Config(_) => false,
        }
    }

    /// How long the origin asked to wait before the next request.
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::Throttled { retry_after, .. } = self {
            *retry_after
        } else {
            None
        }
    }

    /// One word for metrics and logs; a fixed set.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::PermissionDenied { .. } => "permission_denied",
            Self::Changed { .. } => "changed",
            Self::UnsupportedKey { .. } => "unsupported_key",
            Self::NotCacheable { .. } => "not_cacheable",
            Self::InvalidRange { .. } => "invalid_range",
            Self::NotServed { .. } => "not_served",
            Self::Throttled { .. } => "throttled",
            Self::Unavailable { .. } => "unavailable",
            Self::Timeout { .. } => "timeout",
            Self::LeftOut { .. } => "left_out",
            Self::BadReply { .. } => "bad_reply",
            Self::Credentials { .. } => "credentials",
            Self::Config(_) => "config",
        }
    }
}

fn suffix(code: Option<&ReplyCode>) -> String {
    code.map_or_else(String::new, |code| format!(" ({code})"))
}

fn wait(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |wait| format!(" for {} s", wait.as_secs()))
}

/// The `<Code>` of an origin's error reply, such as `NoSuchBucket`: letters and digits only, at most 64.
///
/// It is the only part of a reply's body that ever leaves this module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyCode(Box<str>);

impl ReplyCode {
    /// Finds the code in an error reply's body.
    pub(super) fn from_body(body: &str) -> Option<Self> {
        let (_, rest) = body.split_once("<Code>")?;
        let (code, _) = rest.split_once("</Code>")?;
        let valid = (1..=64).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_alphanumeric());
        valid.then(|| Self(code.into()))
    }

    /// The code as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReplyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_short_alphanumeric_code_leaves_a_reply_body() {
        let code = |body: &str| ReplyCode::from_body(body).map(|code| code.to_string());
        assert_eq!(
            code("<Error><Code>NoSuchKey</Code><Key>k</Key></Error>").as_deref(),
            Some("NoSuchKey")
        );
        for body in [
            "",
            "<Code></Code>",
            "<Code>no end",
            "<Code>a b</Code>",
            "<Code>secret=1</Code>",
            "<Code>\n</Code>",
            &format!("<Code>{}</Code>", "a".repeat(65)),
        ] {
            assert_eq!(code(body), None, "{body}");
        }
    }
}
