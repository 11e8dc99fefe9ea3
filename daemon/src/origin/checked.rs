//! What a reply must be before a byte of it is kept. Pure decisions; no I/O.
//!
//! `object_store` checks the status and `Content-Range` of a ranged reply, and the etag of what it resumes with. This
//! module checks what it does not: that the object is still the generation asked for, and that the body has exactly
//! the length asked for. A stream from here yields exactly the range or ends in an error.

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use cachelet_protocol::ids::{Etag, Generation};
use futures::Stream;
use futures::stream::BoxStream;

use super::Error;

/// What the head of a ranged reply says.
#[derive(Debug)]
pub(super) struct RangedHead<'a> {
    pub(super) etag: Option<&'a str>,
    /// The object's size, from `Content-Range`.
    pub(super) size_bytes: u64,
    pub(super) range: Range<u64>,
    /// `Content-Length`, where the transport saw it.
    pub(super) body_bytes: Option<u64>,
}

/// Why a reply is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mismatch {
    /// It is part of another generation of the object.
    OtherGeneration,
    /// It is no answer to the request.
    Wrong(&'static str),
}

/// Checks a ranged reply's head against the request.
pub(super) fn check_head(
    head: &RangedHead<'_>,
    generation: &Generation,
    range: &Range<u64>,
) -> Result<(), Mismatch> {
    let Some(etag) = head.etag else {
        return Err(Mismatch::Wrong("it has no etag"));
    };
    // Servers that ignore If-Match send the new object's bytes: a weak or broken etag is no proof either.
    if Etag::from_header(etag).as_ref() != Ok(&generation.etag) || head.size_bytes != generation.size_bytes {
        return Err(Mismatch::OtherGeneration);
    }
    if head.range != *range {
        return Err(Mismatch::Wrong("it has another range than the one asked for"));
    }
    if head
        .body_bytes
        .is_some_and(|bytes| bytes != range.end - range.start)
    {
        return Err(Mismatch::Wrong("its length is not that of the range asked for"));
    }
    Ok(())
}

/// A body that yields exactly `remaining` bytes or ends in an error.
pub(super) struct ExactBody {
    body: BoxStream<'static, Result<Bytes, Error>>,
    remaining: u64,
    endpoint: Box<str>,
    has_ended: bool,
}

impl ExactBody {
    pub(super) fn new(
        body: BoxStream<'static, Result<Bytes, Error>>,
        length: u64,
        endpoint: Box<str>,
    ) -> Self {
        Self {
            body,
            remaining: length,
            endpoint,
            has_ended: false,
        }
    }

    fn end(&mut self, reason: &str) -> Poll<Option<Result<Bytes, Error>>> {
        self.has_ended = true;
        Poll::Ready(Some(Err(Error::BadReply {
            endpoint: self.endpoint.clone(),
            reason: reason.into(),
        })))
    }
}

impl Stream for ExactBody {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.has_ended {
                return Poll::Ready(None);
            }
            let Poll::Ready(next) = self.body.as_mut().poll_next(cx) else {
                return Poll::Pending;
            };
            match next {
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => {
                    let Some(remaining) = self.remaining.checked_sub(bytes.len() as u64) else {
                        return self.end("its body is longer than the range asked for");
                    };
                    self.remaining = remaining;
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Some(Err(error)) => {
                    self.has_ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None if self.remaining > 0 => {
                    return self.end("its body is shorter than the range asked for");
                }
                None => {
                    self.has_ended = true;
                    return Poll::Ready(None);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};

    use super::*;

    fn generation() -> Generation {
        Generation {
            etag: Etag::new("e1").unwrap(),
            size_bytes: 100,
        }
    }

    fn head() -> RangedHead<'static> {
        RangedHead {
            etag: Some("\"e1\""),
            size_bytes: 100,
            range: 10..20,
            body_bytes: Some(10),
        }
    }

    #[test]
    fn a_reply_is_kept_only_if_etag_size_range_and_length_are_those_asked_for() {
        let check = |head: &RangedHead<'_>| check_head(head, &generation(), &(10..20));
        assert_eq!(check(&head()), Ok(()));
        assert_eq!(
            check(&RangedHead {
                body_bytes: None,
                ..head()
            }),
            Ok(())
        );
        for etag in ["\"e2\"", "W/\"e1\"", "", "\"E1\""] {
            assert_eq!(
                check(&RangedHead {
                    etag: Some(etag),
                    ..head()
                }),
                Err(Mismatch::OtherGeneration),
                "{etag}"
            );
        }
        assert_eq!(
            check(&RangedHead {
                size_bytes: 101,
                ..head()
            }),
            Err(Mismatch::OtherGeneration)
        );
        assert!(matches!(
            check(&RangedHead { etag: None, ..head() }),
            Err(Mismatch::Wrong(_))
        ));
        assert!(matches!(
            check(&RangedHead {
                range: 10..19,
                ..head()
            }),
            Err(Mismatch::Wrong(_))
        ));
        assert!(matches!(
            check(&RangedHead {
                body_bytes: Some(11),
                ..head()
            }),
            Err(Mismatch::Wrong(_))
        ));
    }

    /// Reads a body of these chunks that should have ten bytes: what arrives, and the error.
    async fn read(chunks: &[&'static [u8]]) -> (Vec<u8>, Option<&'static str>) {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk))).collect();
        let mut body = ExactBody::new(stream::iter(chunks).boxed(), 10, "test".into());
        let (mut bytes, mut code) = (Vec::new(), None);
        while let Some(next) = body.next().await {
            assert!(code.is_none(), "nothing follows an error");
            match next {
                Ok(chunk) => bytes.extend_from_slice(&chunk),
                Err(error) => code = Some(error.code()),
            }
        }
        (bytes, code)
    }

    #[tokio::test]
    async fn a_body_is_exactly_the_range_or_an_error() {
        assert_eq!(
            read(&[b"01234", b"", b"56789"]).await,
            (b"0123456789".to_vec(), None)
        );
        assert_eq!(
            read(&[b"01234", b"5678"]).await,
            (b"012345678".to_vec(), Some("bad_reply"))
        );
        assert_eq!(
            read(&[b"01234", b"567890"]).await,
            (b"01234".to_vec(), Some("bad_reply"))
        );
        assert_eq!(
            read(&[b"0123456789", b"x"]).await,
            (b"0123456789".to_vec(), Some("bad_reply"))
        );
        assert_eq!(read(&[]).await, (Vec::new(), Some("bad_reply")));
    }
}
