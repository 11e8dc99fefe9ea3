//! Replies that are wrong, late, short or long: never a wrong byte, always the right kind of error.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cachelet_protocol::ids::ObjectPath;
use http::Response;

use super::super::{Error, ObjectMeta, StoreConfig};
use super::server::{SECRET, Server, Then, build, drain, full, partial, pieces, request};

const TEN: &[u8] = b"0123456789";

/// Asks a server that always gives the same reply for ten bytes; what arrives, and the error.
async fn get<B>(reply: impl Fn() -> Response<B> + Send + Sync + 'static) -> (Vec<u8>, Option<Error>)
where
    B: Into<bytes::Bytes> + 'static,
{
    let server = Server::start(move |_| reply().map(full)).await;
    get_from(&server, &server.s3()).await
}

async fn get_from(_server: &Server, config: &StoreConfig) -> (Vec<u8>, Option<Error>) {
    match build(config).get(&request("s3://bucket/key")).await {
        Ok(body) => drain(body).await,
        Err(error) => (Vec::new(), Some(error)),
    }
}

/// The error's code, for a reply from which no byte may be kept.
async fn refused<B>(reply: impl Fn() -> Response<B> + Send + Sync + 'static) -> &'static str
where
    B: Into<bytes::Bytes> + 'static,
{
    let (bytes, error) = get(reply).await;
    assert_eq!(bytes, b"", "no byte of a refused reply is handed on");
    error.expect("an error").code()
}

#[tokio::test]
async fn a_right_reply_is_handed_on() {
    assert_eq!(get(|| partial().body(TEN).unwrap()).await, (TEN.to_vec(), None));
}

#[tokio::test]
async fn a_whole_object_instead_of_a_range_is_refused() {
    let whole = || {
        Response::builder()
            .status(200)
            .header("etag", "\"e1\"")
            .body(vec![7; 100])
            .unwrap()
    };
    assert_eq!(refused(whole).await, "bad_reply");
}

/// Asks a server that gives these heads of replies in turn, the last one again and again; what arrives, and how often it
/// was asked.
async fn get_in_turn(
    heads: &'static [(u16, &'static str, &'static str)],
) -> ((Vec<u8>, Option<Error>), usize) {
    let asked = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = std::sync::Arc::clone(&asked);
    let outcome = get(move || {
        let nth = counter.fetch_add(1, Ordering::SeqCst);
        let (status, etag, range) = heads[nth.min(heads.len() - 1)];
        let head = Response::builder().status(status).header("etag", etag);
        head.header("content-range", range).body(TEN).unwrap()
    })
    .await;
    (outcome, asked.load(Ordering::SeqCst))
}

#[tokio::test]
async fn a_wrong_reply_costs_one_more_request_and_a_second_one_is_an_error() {
    const RIGHT: (u16, &str, &str) = (206, "\"e1\"", "bytes 10-19/100");
    const OTHER_RANGE: (u16, &str, &str) = (206, "\"e1\"", "bytes 11-20/100");
    const OTHER_ETAG: (u16, &str, &str) = (206, "\"e2\"", "bytes 10-19/100");
    const REFUSED: (u16, &str, &str) = (412, "\"e2\"", "bytes 10-19/100");
    for heads in [&[OTHER_RANGE, RIGHT], &[OTHER_ETAG, RIGHT]] {
        assert_eq!(get_in_turn(heads).await, ((TEN.to_vec(), None), 2), "{heads:?}");
    }
    for (heads, code, requests) in [
        (&[OTHER_RANGE, OTHER_RANGE, RIGHT], "bad_reply", 2),
        (&[OTHER_ETAG, OTHER_ETAG, RIGHT], "changed", 2),
        (&[OTHER_RANGE, OTHER_ETAG, RIGHT], "bad_reply", 2),
        // The origin says itself that the object has changed.
        (&[REFUSED, RIGHT, RIGHT], "changed", 1),
    ] {
        let ((bytes, error), asked) = get_in_turn(heads).await;
        assert_eq!((bytes, asked), (Vec::new(), requests), "{heads:?}");
        assert_eq!(error.expect("an error").code(), code, "{heads:?}");
    }
}

#[tokio::test]
async fn another_range_than_the_one_asked_for_is_refused() {
    for range in [
        "bytes 0-9/100",
        "bytes 11-20/100",
        "bytes 10-18/100",
        "bytes */100",
        "10-19/100",
        "bytes 10-19/*",
    ] {
        let reply = move || {
            let head = Response::builder()
                .status(206)
                .header("etag", "\"e1\"")
                .header("content-range", range);
            head.body(TEN).unwrap()
        };
        assert_eq!(refused(reply).await, "bad_reply", "{range}");
    }
    let without = || {
        Response::builder()
            .status(206)
            .header("etag", "\"e1\"")
            .body(TEN)
            .unwrap()
    };
    assert_eq!(refused(without).await, "bad_reply");
}

#[tokio::test]
async fn bytes_of_another_generation_are_refused_although_the_server_ignored_if_match() {
    for etag in ["\"e2\"", "\"E1\"", "W/\"e1\""] {
        let head = || {
            Response::builder()
                .status(206)
                .header("content-range", "bytes 10-19/100")
        };
        assert_eq!(
            refused(move || head().header("etag", etag).body(TEN).unwrap()).await,
            "changed",
            "{etag}"
        );
    }
    let resized = || Response::builder().status(206).header("etag", "\"e1\"");
    let resized = move || {
        resized()
            .header("content-range", "bytes 10-19/101")
            .body(TEN)
            .unwrap()
    };
    assert_eq!(refused(resized).await, "changed");
}

#[tokio::test]
async fn a_range_without_an_etag_is_refused() {
    let reply = || {
        Response::builder()
            .status(206)
            .header("content-range", "bytes 10-19/100")
            .body(TEN)
            .unwrap()
    };
    assert_eq!(refused(reply).await, "bad_reply");
}

#[tokio::test]
async fn a_body_of_another_length_than_its_range_is_refused() {
    assert_eq!(
        refused(|| partial().body(&b"012345678"[..]).unwrap()).await,
        "bad_reply"
    );
    assert_eq!(
        refused(|| partial().body(&b"0123456789x"[..]).unwrap()).await,
        "bad_reply"
    );
}

#[tokio::test]
async fn a_body_that_breaks_off_ends_in_an_error() {
    let reply = || {
        partial()
            .header("content-length", "10")
            .body(pieces(vec![b"0123"], Then::Break))
            .unwrap()
    };
    let server = Server::start(move |_| reply()).await;
    let (bytes, error) = get_from(&server, &server.s3()).await;
    assert_eq!(bytes, b"0123");
    let error = error.unwrap();
    assert_eq!((error.code(), error.is_retryable()), ("unavailable", true));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_resumed_under_the_same_etag() {
    let server = Server::start(|seen| {
        if seen.headers()["range"] == "bytes=10-19" {
            partial()
                .header("content-length", "10")
                .body(pieces(vec![b"0123"], Then::Break))
                .unwrap()
        } else {
            let head = Response::builder().status(206).header("etag", "\"e1\"");
            head.header("content-range", "bytes 14-19/100")
                .body(full(&b"456789"[..]))
                .unwrap()
        }
    })
    .await;
    let config = StoreConfig {
        max_retries: 3,
        ..server.s3()
    };
    assert_eq!(get_from(&server, &config).await, (TEN.to_vec(), None));
    let ranges: Vec<_> = server
        .seen()
        .iter()
        .map(|seen| seen.headers()["range"].clone())
        .collect();
    assert_eq!(ranges, ["bytes=10-19", "bytes=14-19"]);
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| seen.headers()["if-match"] == "\"e1\"")
    );
}

#[tokio::test]
async fn a_body_is_never_resumed_with_another_generation() {
    for (status, etag) in [(206, "\"e2\""), (412, "\"e2\"")] {
        let server = Server::start(move |seen| {
            if seen.headers()["range"] == "bytes=10-19" {
                return partial()
                    .header("content-length", "10")
                    .body(pieces(vec![b"0123"], Then::Break))
                    .unwrap();
            }
            let head = Response::builder().status(status).header("etag", etag);
            head.header("content-range", "bytes 14-19/100")
                .body(full(&b"XXXXXX"[..]))
                .unwrap()
        })
        .await;
        let (bytes, error) = get_from(
            &server,
            &StoreConfig {
                max_retries: 1,
                ..server.s3()
            },
        )
        .await;
        assert_eq!(
            (bytes.as_slice(), error.unwrap().code()),
            (&b"0123"[..], "changed")
        );
    }
}

#[tokio::test]
async fn a_server_that_stalls_times_out() {
    let server = Server::start(|_| {
        partial()
            .header("content-length", "10")
            .body(pieces(vec![b"0123"], Then::Hang))
            .unwrap()
    })
    .await;
    let (bytes, error) = get_from(&server, &server.s3()).await;
    assert_eq!(
        (bytes.as_slice(), error.unwrap().code()),
        (&b"0123"[..], "timeout")
    );

    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Some(format!("http://{}", silent.local_addr().unwrap()));
    let (bytes, error) = get_from(
        &server,
        &StoreConfig {
            endpoint,
            ..server.s3()
        },
    )
    .await;
    assert_eq!((bytes.as_slice(), error.unwrap().code()), (&b""[..], "timeout"));
}

#[tokio::test]
async fn each_status_is_the_right_kind_of_error() {
    let cases = [
        (412, "changed", false),
        (416, "changed", false),
        (404, "not_found", false),
        (401, "permission_denied", false),
        (403, "permission_denied", false),
        (400, "bad_reply", false),
        (301, "bad_reply", false),
        (304, "bad_reply", false),
        (429, "throttled", true),
        (503, "throttled", true),
        (500, "unavailable", true),
        (502, "unavailable", true),
        (504, "timeout", true),
    ];
    for (status, code, retryable) in cases {
        let (bytes, error) = get(move || Response::builder().status(status).body(&b""[..]).unwrap()).await;
        let error = error.unwrap();
        assert_eq!(
            (bytes, error.code(), error.is_retryable()),
            (Vec::new(), code, retryable),
            "{status}"
        );
    }
}

#[tokio::test]
async fn the_pause_that_a_throttling_origin_asks_for_is_told() {
    let slow = || {
        Response::builder()
            .status(503)
            .header("retry-after", "7")
            .body(&b""[..])
            .unwrap()
    };
    let error = get(slow).await.1.unwrap();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn a_passing_failure_is_retried_a_few_times_and_no_more() {
    for (failures, attempts, expected) in [
        (2, 3, (TEN.to_vec(), None)),
        (9, 4, (Vec::new(), Some("throttled"))),
    ] {
        let count = AtomicUsize::new(0);
        let server = Server::start(move |_| {
            if count.fetch_add(1, Ordering::SeqCst) < failures {
                Response::builder().status(503).body(full("")).unwrap()
            } else {
                partial().body(full(TEN)).unwrap()
            }
        })
        .await;
        let config = StoreConfig {
            max_retries: 3,
            ..server.s3()
        };
        let (bytes, error) = get_from(&server, &config).await;
        assert_eq!((bytes, error.map(|error| error.code())), expected);
        assert_eq!(server.seen().len(), attempts);
    }
}

#[tokio::test]
async fn no_error_carries_a_body_a_header_or_a_secret() {
    for status in [200, 206, 301, 400, 403, 404, 412, 500, 503] {
        let leak = "<Error><Code>SignatureDoesNotMatch</Code><StringToSign>TOPSECRET</StringToSign></Error>";
        let reply = move || {
            Response::builder()
                .status(status)
                .header("etag", "TOPSECRET")
                .body(leak)
                .unwrap()
        };
        let error = get(reply).await.1.unwrap();
        for text in [error.to_string(), format!("{error:?}")] {
            for secret in ["TOPSECRET", SECRET, "Signature=", "AWS4-HMAC"] {
                assert!(!text.contains(secret), "{status}: {text}");
            }
        }
        if status == 403 {
            assert!(
                error.to_string().contains("SignatureDoesNotMatch"),
                "the code helps: {error}"
            );
        }
    }
}

#[tokio::test]
async fn an_unreachable_endpoint_is_named() {
    let server = Server::start(|_| partial().body(full(TEN)).unwrap()).await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let config = StoreConfig {
        endpoint: Some(format!("http://{closed}")),
        ..server.s3()
    };
    let error = get_from(&server, &config).await.1.unwrap();
    assert!(error.is_retryable());
    assert!(error.to_string().contains(&closed.to_string()), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    let text = build(&config).check().await.unwrap_err().to_string();
    assert!(text.contains(&closed.to_string()), "{text}");
}

async fn head(headers: &'static [(&'static str, &'static str)]) -> ObjectMeta {
    let server = Server::start(move |_| {
        let reply = headers.iter().fold(Response::builder(), |reply, (name, value)| {
            reply.header(*name, *value)
        });
        reply.header("content-length", "100").body(full("")).unwrap()
    })
    .await;
    let path: ObjectPath = "s3://bucket/key".parse().unwrap();
    let meta = build(&server.s3()).head(&path).await.unwrap();
    assert_eq!(server.seen()[0].method(), "HEAD");
    meta
}

#[tokio::test]
async fn only_a_strong_etag_makes_a_generation() {
    let meta = head(&[("etag", "\"e1\""), ("x-amz-version-id", "v7")]).await;
    assert_eq!(meta.generation, Some(request("s3://b/k").generation));
    assert_eq!((meta.size_bytes, meta.version_id.as_deref()), (100, Some("v7")));
    for headers in [
        &[][..],
        &[("etag", "W/\"e1\"")],
        &[("etag", "\"\"")],
        &[("etag", "\"a b\"")],
    ] {
        let meta = head(headers).await;
        assert_eq!((meta.generation, meta.size_bytes), (None, 100), "{headers:?}");
    }
}

#[tokio::test]
async fn an_empty_range_or_one_behind_the_end_is_never_sent() {
    let server = Server::start(|_| partial().body(full(TEN)).unwrap()).await;
    let store = build(&server.s3());
    for range in [
        10..10,
        std::ops::Range { start: 20, end: 10 },
        90..101,
        100..101,
        0..u64::MAX,
    ] {
        let asked = super::super::RangeRequest {
            range: range.clone(),
            ..request("s3://bucket/key")
        };
        assert_eq!(
            store.get(&asked).await.err().unwrap().code(),
            "invalid_range",
            "{range:?}"
        );
    }
    assert_eq!(server.seen().len(), 0);
}

#[tokio::test]
async fn a_request_counts_against_the_limit_until_its_body_is_read_or_dropped() {
    let server = Server::start(|_| partial().body(full(TEN)).unwrap()).await;
    let store = build(&StoreConfig {
        max_concurrent_requests: 2,
        ..server.s3()
    });
    let asked = request("s3://bucket/key");
    let (first, second) = (store.get(&asked).await.unwrap(), store.get(&asked).await.unwrap());
    assert_eq!(store.traffic().in_flight, 2);
    drop(first);
    assert_eq!(store.traffic().in_flight, 1);
    assert_eq!(drain(second).await, (TEN.to_vec(), None));
    assert_eq!(store.traffic().in_flight, 0);
}

#[tokio::test]
async fn a_check_tells_refused_keys_and_missing_buckets_from_a_store_that_works() {
    let cases = [
        (404, "NoSuchKey", None),
        (403, "AccessDenied", None),
        (404, "NoSuchBucket", Some("config")),
        (403, "InvalidAccessKeyId", Some("credentials")),
        (403, "SignatureDoesNotMatch", Some("credentials")),
        (500, "InternalError", Some("unavailable")),
        (301, "PermanentRedirect", Some("bad_reply")),
    ];
    for (status, code, expected) in cases {
        let server = Server::start(move |_| {
            let body = format!("<Error><Code>{code}</Code></Error>");
            Response::builder().status(status).body(full(body)).unwrap()
        })
        .await;
        let config = StoreConfig {
            buckets: vec!["lake".into(), "logs-*".into()],
            ..server.s3()
        };
        let error = build(&config).check().await.err();
        assert_eq!(error.as_ref().map(Error::code), expected, "{code}: {error:?}");
        if let Some(error) = error {
            let (text, named) = (error.to_string(), server.address.to_string());
            assert!(text.contains(&named), "{text}");
        }
        assert_eq!(
            server.seen().len(),
            1,
            "one request for the one bucket that has a name"
        );
    }
}
