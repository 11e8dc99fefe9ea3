//! How what goes wrong becomes a Java exception.

use std::any::Any;

use cachelet_client::Error;
use cachelet_protocol::ids::InvalidId;
use jni::errors::ErrorPolicy;
use jni::objects::{JThrowable, JValue};
use jni::strings::JNIString;
use jni::{Env, jni_sig, jni_str};

/// Why a call from Java did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The client core's error.
    #[error(transparent)]
    Client(#[from] Error),
    /// A name that is none; the origin may know better.
    #[error(transparent)]
    Invalid(#[from] InvalidId),
    /// The object is not as long as the caller says, who knows nothing else about it.
    #[error(
        "{path} has {actual} bytes in the cache, and {expected} bytes says the caller, who named no etag"
    )]
    OtherSize {
        path: String,
        actual: u64,
        expected: u64,
    },
    /// The handle names nothing any more.
    #[error("{0} is closed")]
    Closed(&'static str),
    /// Arguments that the Java side lets nobody pass.
    #[error("{0}")]
    Argument(&'static str),
    /// More than the tables take.
    #[error("there are too many open {0}")]
    TooMany(&'static str),
    /// JNI's own error; a Java exception may be pending.
    #[error(transparent)]
    Jni(#[from] jni::errors::Error),
}

/// What a `CacheletException` is made of.
struct Exception {
    kind: &'static str,
    reason: &'static str,
    use_origin: bool,
    retryable: bool,
}

impl Exception {
    fn of(failure: &Failure) -> Option<Self> {
        let (kind, reason, use_origin, retryable) = match failure {
            Failure::Client(error) => (
                kind(error),
                reason(error),
                error.should_use_origin(),
                error.is_retryable(),
            ),
            Failure::Invalid(_) => ("INVALID", "", true, false),
            Failure::OtherSize { .. } => ("INVALID", "other_size", true, false),
            Failure::Closed(_) => ("CLOSED", "", false, false),
            Failure::Argument(_) | Failure::TooMany(_) | Failure::Jni(_) => return None,
        };
        Some(Self {
            kind,
            reason,
            use_origin,
            retryable,
        })
    }
}

/// The name of the Java `Kind`.
fn kind(error: &Error) -> &'static str {
    match error {
        Error::Bypass { .. } => "BYPASS",
        Error::ObjectChanged { .. } => "OBJECT_CHANGED",
        Error::NotFound(_) => "NOT_FOUND",
        Error::PermissionDenied(_) => "PERMISSION_DENIED",
        Error::Failed { .. } => "FAILED",
        Error::Unavailable(_) | Error::SocketPathTooLong { .. } => "UNAVAILABLE",
        Error::Timeout { .. } => "TIMEOUT",
        Error::Protocol(_) => "PROTOCOL",
        Error::Io { .. } => "IO",
        Error::EndOfObject { .. } => "END_OF_OBJECT",
    }
}

/// A short word, where the kind alone does not say it.
fn reason(error: &Error) -> &'static str {
    match error {
        Error::Bypass { reason, .. } => reason.as_str(),
        Error::Failed { code, .. } => code.as_str(),
        Error::SocketPathTooLong { .. } => "socket_path_too_long",
        Error::ObjectChanged { .. }
        | Error::NotFound(_)
        | Error::PermissionDenied(_)
        | Error::Unavailable(_)
        | Error::Timeout { .. }
        | Error::Protocol(_)
        | Error::Io { .. }
        | Error::EndOfObject { .. } => "",
    }
}

/// Throws, and returns nothing that Java would look at.
pub(crate) struct Throw;

impl<T: Default> ErrorPolicy<T, Failure> for Throw {
    type Captures<'unowned_env_local: 'native_method, 'native_method> = ();

    fn on_error<'unowned_env_local: 'native_method, 'native_method>(
        env: &mut Env<'unowned_env_local>,
        _captures: &mut Self::Captures<'unowned_env_local, 'native_method>,
        failure: Failure,
    ) -> jni::errors::Result<T> {
        if env.exception_check() {
            return Ok(T::default());
        }
        if let Some(exception) = Exception::of(&failure) {
            throw(env, &exception, &failure.to_string())?;
        } else {
            let class = match failure {
                Failure::Argument(_) => jni_str!("java/lang/IllegalArgumentException"),
                _ => jni_str!("java/lang/IllegalStateException"),
            };
            let _pending = env.throw_new(class, JNIString::from(failure.to_string()));
        }
        Ok(T::default())
    }

    fn on_panic<'unowned_env_local: 'native_method, 'native_method>(
        env: &mut Env<'unowned_env_local>,
        _captures: &mut Self::Captures<'unowned_env_local, 'native_method>,
        payload: Box<dyn Any + Send + 'static>,
    ) -> jni::errors::Result<T> {
        let what = match payload.downcast::<String>() {
            Ok(what) => *what,
            Err(payload) => match payload.downcast::<&'static str>() {
                Ok(what) => (*what).to_owned(),
                Err(payload) => {
                    // Its destructor might panic again, outside of everything that would catch it.
                    std::mem::forget(payload);
                    String::new()
                }
            },
        };
        if !env.exception_check() {
            let message = JNIString::from(format!("the native library panicked: {what}"));
            let _pending = env.throw_new(jni_str!("java/lang/IllegalStateException"), message);
        }
        Ok(T::default())
    }
}

fn throw(env: &mut Env<'_>, exception: &Exception, message: &str) -> jni::errors::Result<()> {
    let kind = env.new_string(exception.kind)?;
    let reason = env.new_string(exception.reason)?;
    let message = env.new_string(message)?;
    let thrown = env.new_object(
        jni_str!("io/cachelet/client/CacheletException"),
        jni_sig!("(Ljava/lang/String;Ljava/lang/String;Ljava/lang/String;ZZ)V"),
        &[
            JValue::Object(&kind),
            JValue::Object(&reason),
            JValue::Object(&message),
            JValue::Bool(exception.use_origin),
            JValue::Bool(exception.retryable),
        ],
    )?;
    let thrown = env.cast_local::<JThrowable<'_>>(thrown)?;
    // It returns an error because an exception is pending, which is what was wanted.
    let _pending = env.throw(thrown);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn an_exception_says_what_the_error_decides() {
        let timeout = Failure::Client(Error::Timeout {
            operation: "a fill",
            after: Duration::from_millis(500),
        });
        let io = Failure::Client(Error::Io {
            operation: "starting a thread",
            source: Arc::new(std::io::ErrorKind::OutOfMemory.into()),
        });
        for (failure, kind, use_origin) in [
            (timeout, "TIMEOUT", true),
            (io, "IO", true),
            (Failure::Closed("the object"), "CLOSED", false),
        ] {
            let exception = Exception::of(&failure).unwrap();
            assert_eq!((exception.kind, exception.use_origin), (kind, use_origin));
        }
        assert!(Exception::of(&Failure::Argument("no")).is_none());
    }
}
