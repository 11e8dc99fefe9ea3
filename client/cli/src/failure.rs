//! How the program ends when it fails: one line, and an exit code of `sysexits.h` that scripts can tell apart.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use cachelet_client::Error;
use cachelet_protocol::wire::Code;

/// Wrong arguments or configuration.
pub(crate) const EXIT_USAGE: u8 = 64;

/// What kind of failure; the number is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Wrong arguments or configuration.
    Usage = EXIT_USAGE,
    /// No such object.
    NotFound = 66,
    /// No daemon or service can be reached.
    Unavailable = 69,
    /// A failure of Cachelet itself.
    Internal = 70,
    /// May work if tried again.
    Temporary = 75,
    /// The origin, the file system or the daemon refused access.
    Permission = 77,
}

/// See the module's text.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    message: String,
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A failure to read or write something of this machine.
    pub(crate) fn io(what: impl Display, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Kind::Permission,
            io::ErrorKind::NotFound => Kind::Usage,
            _ => Kind::Internal,
        };
        Self::new(kind, format!("{what}: {error}"))
    }

    /// Says it on standard error and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        let line = self.message.replace('\n', "; ");
        let _ = writeln!(io::stderr(), "cachelet: {line}");
        ExitCode::from(self.kind as u8)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::NotFound(_) => Kind::NotFound,
            Error::PermissionDenied(_) => Kind::Permission,
            Error::ObjectChanged { .. } | Error::Timeout { .. } => Kind::Temporary,
            Error::Bypass { .. } if error.is_retryable() => Kind::Temporary,
            Error::Bypass { .. } | Error::Unavailable(_) | Error::SocketPathTooLong { .. } => {
                Kind::Unavailable
            }
            Error::Failed { code, .. } => match code {
                Code::Unauthenticated | Code::PermissionDenied => Kind::Permission,
                Code::NotFound => Kind::NotFound,
                Code::OriginUnavailable | Code::DeadlineExceeded | Code::ObjectChanged => Kind::Temporary,
                Code::InvalidRequest => Kind::Usage,
                Code::Unsupported | Code::UnknownHandle | Code::NotHeld | Code::Internal => Kind::Internal,
            },
            Error::EndOfObject { .. } => Kind::Usage,
            Error::Protocol(_) | Error::Io { .. } => Kind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_tell_failures_apart() {
        let code = |error: Error| Failure::from(error).kind as u8;
        assert_eq!(code(Error::NotFound(String::new())), 66);
        assert_eq!(code(Error::Unavailable(String::new())), 69);
        assert_eq!(code(Error::Protocol(String::new())), 70);
        assert_eq!(code(Error::PermissionDenied(String::new())), 77);
        let timeout = Error::Timeout {
            operation: "a fill",
            after: std::time::Duration::from_secs(1),
        };
        assert_eq!(code(timeout), 75);
    }
}
