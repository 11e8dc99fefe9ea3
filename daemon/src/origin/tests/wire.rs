//! What goes out: keys byte for byte, conditions, addressing, credentials.

use cachelet_protocol::ids::{BucketName, ObjectPath};
use http::Response;

use super::super::{Addressing, CredentialsKind, RangeRequest, StoreConfig, StoreKind};
use super::server::{Seen, Server, build, full, partial, request};

async fn echo() -> Server {
    Server::start(|_| partial().body(full(&b"0123456789"[..])).unwrap()).await
}

/// Sends one request for a key; the request as it arrived.
async fn send(config: impl Fn(&Server) -> StoreConfig, key: &str) -> Seen {
    let server = echo().await;
    let store = build(&config(&server));
    let path = format!("{}://bucket/{key}", store.scheme());
    let asked = RangeRequest {
        version_id: Some("v+1".into()),
        ..request(&path)
    };
    store.get(&asked).await.map(drop).unwrap();
    let mut seen = server.seen();
    assert_eq!(seen.len(), 1);
    seen.remove(0)
}

/// Undoes percent-encoding, once.
fn decoded(path: &str) -> Vec<u8> {
    let bytes = path.as_bytes();
    let mut plain = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            plain.push(u8::from_str_radix(&path[at + 1..at + 3], 16).unwrap());
            at += 3;
        } else {
            plain.push(bytes[at]);
            at += 1;
        }
    }
    plain
}

#[tokio::test]
async fn a_key_arrives_byte_for_byte() {
    let long = "k".repeat(1024);
    let keys = [
        "a",
        "a/b/c.parquet",
        " a b ",
        "date=2026-01-01/x",
        "100%",
        "%2F",
        "%252F",
        "%2e%2e/x",
        "a+b",
        "~a~",
        "a&b?c#d",
        "a\\b",
        "a:b;c,d",
        "[x]{y}|^`\"<>'()*!$@",
        "ключ/文件/é",
        "e\u{301}",
        "😀.txt",
        "...",
        "..a",
        "a..",
        ".hidden",
        &long,
    ];
    for key in keys {
        for kind in [Server::s3, oss] {
            let seen = send(kind, key).await;
            assert_eq!(
                decoded(seen.uri().path()),
                format!("/bucket/{key}").as_bytes(),
                "{key}"
            );
            let path = seen.uri().path();
            assert!(
                path.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._~/%".contains(&b)),
                "{path}"
            );
        }
    }
}

#[tokio::test]
async fn a_key_that_would_become_another_one_is_refused_and_never_sent() {
    let server = echo().await;
    let store = build(&server.s3());
    for key in [
        "dir/", "/a", "a//b", "//", "./a", "a/./b", "a/.", "../a", "a/../b", "..", ".", "/", "a\nb", "a\tb",
        "a\0b", "\u{7f}",
    ] {
        let path: ObjectPath = format!("s3://bucket/{key}").parse().unwrap();
        let asked = RangeRequest {
            path: path.clone(),
            ..request("s3://bucket/x")
        };
        assert_eq!(
            store.get(&asked).await.err().unwrap().code(),
            "unsupported_key",
            "{key:?}"
        );
        assert_eq!(
            store.head(&path).await.unwrap_err().code(),
            "unsupported_key",
            "{key:?}"
        );
    }
    assert_eq!(server.seen().len(), 0);
}

#[tokio::test]
async fn no_bucket_leads_a_signed_request_to_another_host_or_path() {
    for addressing in [Addressing::Path, Addressing::Virtual] {
        let server = echo().await;
        let store = build(&StoreConfig {
            endpoint: Some(format!("http://store.test:{}", server.address.port())),
            allow_http: true,
            addressing: Some(addressing),
            ..server.s3()
        });
        for bucket in [
            "evil.test?",
            "evil.test#",
            "u@evil.test",
            "..",
            ".",
            "a..b",
            "a%2fb",
            "a b",
            "é",
            "evil:1",
            "a\\b",
            ".a",
            "a.",
        ] {
            let path: ObjectPath = format!("s3://{bucket}/key").parse().unwrap();
            let asked = RangeRequest {
                path: path.clone(),
                ..request("s3://bucket/x")
            };
            assert_eq!(
                store.get(&asked).await.err().unwrap().code(),
                "unsupported_key",
                "{bucket}"
            );
            assert_eq!(
                store.head(&path).await.unwrap_err().code(),
                "unsupported_key",
                "{bucket}"
            );
        }
        assert_eq!(server.seen().len(), 0);
    }
}

fn oss(server: &Server) -> StoreConfig {
    StoreConfig {
        kind: StoreKind::Oss,
        region: Some("cn-hangzhou".into()),
        ..server.s3()
    }
}

#[tokio::test]
async fn every_read_names_its_range_generation_and_version() {
    for config in [Server::s3, oss] {
        let seen = send(config, "key").await;
        assert_eq!(seen.method(), "GET");
        assert_eq!(seen.headers()["range"], "bytes=10-19");
        assert_eq!(seen.headers()["if-match"], "\"e1\"");
        assert_eq!(seen.uri().query(), Some("versionId=v%2B1"));
    }
}

#[tokio::test]
async fn s3_requests_are_signed_for_their_region() {
    let config = |server: &Server| StoreConfig {
        region: Some("eu-west-1".into()),
        requester_pays: true,
        ..server.s3()
    };
    let seen = send(config, "key").await;
    let authorization = seen.headers()["authorization"].to_str().unwrap();
    assert!(
        authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/"),
        "{authorization}"
    );
    assert!(
        authorization.contains("/eu-west-1/s3/aws4_request"),
        "{authorization}"
    );
    assert!(
        authorization.contains("if-match") && authorization.contains("range"),
        "signed too: {authorization}"
    );
    assert_eq!(seen.headers()["x-amz-request-payer"], "requester");
}

#[tokio::test]
async fn anonymous_requests_carry_no_signature() {
    for kind in [Server::s3, oss] {
        let anonymous = |server: &Server| StoreConfig {
            credentials: CredentialsKind::Anonymous,
            access_key_id: None,
            secret_access_key_env: None,
            ..kind(server)
        };
        assert!(
            !send(anonymous, "key")
                .await
                .headers()
                .contains_key("authorization")
        );
    }
}

#[tokio::test]
async fn a_virtual_hosted_request_names_its_bucket_in_the_host() {
    for kind in [Server::s3, oss] {
        let config = |server: &Server| StoreConfig {
            endpoint: Some(format!("http://store.test:{}", server.address.port())),
            allow_http: true,
            addressing: Some(Addressing::Virtual),
            ..kind(server)
        };
        let seen = send(config, "a b").await;
        let host = seen.headers()["host"].to_str().unwrap();
        assert!(host.starts_with("bucket.store.test:"), "{host}");
        assert_eq!(seen.uri().path(), "/a%20b");
    }
}

#[test]
fn each_kind_addresses_buckets_as_its_cloud_wants_it() {
    let addressing = |config: &StoreConfig, bucket: &str| {
        let bucket = BucketName::new(bucket).unwrap();
        config.addressing_of(&config.resolved_endpoint().unwrap(), &bucket)
    };
    let aws = StoreConfig {
        region: Some("eu-west-1".into()),
        ..StoreConfig::new("a", StoreKind::S3)
    };
    assert_eq!(addressing(&aws, "lake"), Addressing::Virtual);
    assert_eq!(
        addressing(&aws, "lake.example.com"),
        Addressing::Path,
        "no certificate has such a name"
    );
    let minio = StoreConfig {
        endpoint: Some("https://minio.example.com".into()),
        ..aws
    };
    assert_eq!(addressing(&minio, "lake"), Addressing::Path);
    let oss = StoreConfig {
        region: Some("cn-hangzhou".into()),
        ..StoreConfig::new("a", StoreKind::Oss)
    };
    assert_eq!(addressing(&oss, "lake"), Addressing::Virtual);
    for endpoint in ["http://127.0.0.1:9000", "http://localhost:9000"] {
        let local = StoreConfig {
            endpoint: Some(endpoint.into()),
            ..oss.clone()
        };
        assert_eq!(addressing(&local, "lake"), Addressing::Path, "{endpoint}");
    }
}

#[tokio::test]
async fn oss_names_its_headers_itself() {
    let server = Server::start(|_| {
        let reply = Response::builder()
            .header("etag", "\"e1\"")
            .header("x-oss-version-id", "CAEQ");
        reply.header("content-length", "100").body(full("")).unwrap()
    })
    .await;
    let meta = build(&oss(&server))
        .head(&"oss://bucket/key".parse().unwrap())
        .await
        .unwrap();
    assert_eq!(meta.version_id.as_deref(), Some("CAEQ"));
    assert!(
        !server.seen()[0].headers().contains_key("x-oss-range-behavior"),
        "a HEAD has no range"
    );
    let seen = send(oss, "key").await;
    assert_eq!(seen.headers()["x-oss-range-behavior"], "standard");
    assert!(
        seen.headers()
            .keys()
            .all(|name| !name.as_str().starts_with("x-amz-")),
        "{:?}",
        seen.headers()
    );
}

#[tokio::test]
async fn a_store_without_credentials_says_what_it_tried() {
    for kind in [Server::s3, oss] {
        let server = echo().await;
        let config = StoreConfig {
            access_key_id: None,
            secret_access_key_env: None,
            ..kind(&server)
        };
        let store = build(&config);
        let error = store
            .get(&request(&format!("{}://bucket/key", store.scheme())))
            .await
            .err()
            .unwrap();
        assert_eq!(error.code(), "credentials");
        let text = error.to_string();
        assert!(
            text.contains("environment variables") && text.contains("access_key_id"),
            "{text}"
        );
        assert_eq!(server.seen().len(), 0);
    }
}

#[tokio::test]
async fn keys_from_files_are_trimmed_and_a_missing_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let (id, secret) = (directory.path().join("id"), directory.path().join("secret"));
    let config = |server: &Server| StoreConfig {
        access_key_id: None,
        access_key_id_file: Some(id.clone()),
        secret_access_key_env: None,
        secret_access_key_file: Some(secret.clone()),
        ..server.s3()
    };
    std::fs::write(&id, "AKIAFROMFILE\n").unwrap();
    let server = echo().await;
    let error = build(&config(&server))
        .get(&request("s3://bucket/key"))
        .await
        .err()
        .unwrap();
    assert!(error.to_string().contains(secret.to_str().unwrap()), "{error}");
    std::fs::write(&secret, "sesame\n").unwrap();
    let seen = send(config, "key").await;
    assert!(
        seen.headers()["authorization"]
            .to_str()
            .unwrap()
            .contains("Credential=AKIAFROMFILE/")
    );
}
