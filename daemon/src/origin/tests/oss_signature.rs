//! The OSS connector signs as Alibaba Cloud's own SDK does.
//!
//! The signing library takes the time from the system and lets nobody set it. So the check has two steps that meet in
//! the middle: [`Vector::authorization`] below follows the specification at a given time, and must equal the SDK's
//! vectors byte for byte; then what the connector really sent, at the time that it says, must equal it too.

use std::collections::BTreeMap;
use std::fmt::Write;

use aws_lc_rs::{digest, hmac};
use cachelet_protocol::ids::{BucketName, Etag, Generation, ObjectKey, ObjectPath, Scheme};
use serde::Deserialize;

use super::super::{Addressing, RangeRequest, StoreConfig, StoreKind};
use super::server::{Seen, Server, build_in, full};

#[derive(Deserialize)]
struct Vectors {
    access_key_id: String,
    access_key_secret: String,
    #[serde(rename = "vectors")]
    requests: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    method: String,
    region: String,
    bucket: String,
    key: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    security_token: Option<String>,
    date: String,
    string_to_sign: String,
    authorization: String,
}

/// What an `Authorization` header says, whatever the blanks between its parts.
#[derive(Debug, PartialEq, Eq)]
struct Authorization {
    credential: String,
    additional_headers: String,
    signature: String,
}

impl Authorization {
    fn parse(header: &str) -> Self {
        let rest = header.strip_prefix("OSS4-HMAC-SHA256 ").expect("a V4 signature");
        let parts: BTreeMap<_, _> = rest
            .split(',')
            .map(|part| part.trim().split_once('=').expect("name=value"))
            .collect();
        let part = |name: &str| (*parts.get(name).unwrap_or(&"")).to_owned();
        assert!(
            parts
                .keys()
                .all(|name| ["Credential", "AdditionalHeaders", "Signature"].contains(name)),
            "{header}"
        );
        Self {
            credential: part("Credential"),
            additional_headers: part("AdditionalHeaders"),
            signature: part("Signature"),
        }
    }
}

fn encoded(text: &str, safe: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric()
            || "-_.~".contains(char::from(byte))
            || safe.contains(char::from(byte))
        {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").unwrap();
        }
    }
    encoded
}

fn hmac_sha256(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
        .as_ref()
        .to_vec()
}

impl Vector {
    /// The specification of V4 signatures ("Include signatures in the Authorization header"), at `date`.
    fn string_to_sign(&self, date: &str) -> (String, String) {
        let mut headers = self.headers.clone();
        headers.insert("x-oss-date".into(), date.into());
        headers.insert("x-oss-content-sha256".into(), "UNSIGNED-PAYLOAD".into());
        headers.extend(
            self.security_token
                .clone()
                .map(|token| ("x-oss-security-token".into(), token)),
        );
        let additional: Vec<_> = headers
            .keys()
            .filter(|name| !name.starts_with("x-oss-"))
            .map(String::as_str)
            .collect();
        let additional = additional.join(";");
        let query: Vec<_> = self
            .query
            .iter()
            .map(|(name, value)| format!("{}={}", encoded(name, ""), encoded(value, "")))
            .collect();
        let canonical_headers = headers.iter().fold(String::new(), |lines, (name, value)| {
            lines + name + ":" + value + "\n"
        });
        let canonical = format!(
            "{}\n/{}/{}\n{}\n{canonical_headers}\n{additional}\nUNSIGNED-PAYLOAD",
            self.method,
            encoded(&self.bucket, ""),
            encoded(&self.key, "/"),
            query.join("&"),
        );
        let hash = hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()));
        (
            format!("OSS4-HMAC-SHA256\n{date}\n{}\n{hash}", self.scope(date)),
            additional,
        )
    }

    fn scope(&self, date: &str) -> String {
        format!("{}/{}/oss/aliyun_v4_request", &date[..8], self.region)
    }

    fn authorization(&self, keys: &Vectors, date: &str) -> Authorization {
        let (string_to_sign, additional_headers) = self.string_to_sign(date);
        let secret = format!("aliyun_v4{}", keys.access_key_secret);
        let parts = [&date[..8], &self.region, "oss", "aliyun_v4_request"];
        let key = parts
            .iter()
            .fold(secret.into_bytes(), |key, part| hmac_sha256(&key, part));
        Authorization {
            credential: format!("{}/{}", keys.access_key_id, self.scope(date)),
            additional_headers,
            signature: hex::encode(hmac_sha256(&key, &string_to_sign)),
        }
    }

    /// Sends this request through the real store; the request as it arrived.
    async fn send(&self, keys: &Vectors, addressing: Addressing) -> Seen {
        let server = Server::start(|_| http::Response::builder().status(404).body(full("")).unwrap()).await;
        let mut envs = vec![("SECRET", keys.access_key_secret.as_str())];
        envs.extend(self.security_token.as_deref().map(|token| ("TOKEN", token)));
        let config = StoreConfig {
            region: Some(self.region.clone()),
            addressing: Some(addressing),
            access_key_id: Some(keys.access_key_id.clone()),
            secret_access_key_env: Some("SECRET".into()),
            session_token_env: self.security_token.as_ref().map(|_| "TOKEN".into()),
            endpoint: Some(format!("http://oss.test:{}", server.address.port())),
            allow_http: true,
            ..StoreConfig::new("oss", StoreKind::Oss)
        };
        let store = build_in(&config, &envs);
        let path = ObjectPath {
            scheme: Scheme::Oss,
            bucket: BucketName::new(&self.bucket).unwrap(),
            key: ObjectKey::new(&self.key).unwrap(),
        };
        let outcome = match self.headers.get("range") {
            None => store.head(&path).await.map(drop),
            Some(range) => {
                let (start, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                let (start, last): (u64, u64) = (start.parse().unwrap(), last.parse().unwrap());
                let etag = Etag::from_header(&self.headers["if-match"]).unwrap();
                let generation = Generation {
                    etag,
                    size_bytes: last + 1,
                };
                let version_id = self.query.get("versionId").cloned();
                store
                    .get(&RangeRequest {
                        path,
                        generation,
                        version_id,
                        range: start..last + 1,
                    })
                    .await
                    .map(drop)
            }
        };
        assert_eq!(outcome.unwrap_err().code(), "not_found", "{}", self.name);
        server.seen().remove(0)
    }
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../../../../tests/oss/vectors.json")).unwrap()
}

#[test]
fn the_specification_as_written_here_agrees_with_the_sdk() {
    let keys = vectors();
    assert!(keys.requests.len() >= 7);
    for vector in &keys.requests {
        assert_eq!(
            vector.string_to_sign(&vector.date).0,
            vector.string_to_sign,
            "{}",
            vector.name
        );
        let ours = vector.authorization(&keys, &vector.date);
        assert_eq!(
            ours,
            Authorization::parse(&vector.authorization),
            "{}",
            vector.name
        );
    }
}

#[tokio::test]
async fn the_connector_signs_as_the_sdk_does() {
    let keys = vectors();
    // The store sends no GET without a range.
    let sent = |vector: &&Vector| vector.method == "HEAD" || vector.headers.contains_key("range");
    assert!(keys.requests.iter().filter(sent).count() >= 6);
    for vector in keys.requests.iter().filter(sent) {
        for addressing in [Addressing::Path, Addressing::Virtual] {
            let seen = vector.send(&keys, addressing).await;
            let header = |name: &str| {
                seen.headers()
                    .get(name)
                    .map(|value| value.to_str().unwrap().to_owned())
            };
            let date = header("x-oss-date").expect("a date");
            let signed = Authorization::parse(&header("authorization").expect("a signature"));
            assert_eq!(
                signed,
                vector.authorization(&keys, &date),
                "{} {addressing:?}",
                vector.name
            );
            for (name, value) in &vector.headers {
                assert_eq!(
                    header(name).as_ref(),
                    Some(value),
                    "{}: what is signed is sent",
                    vector.name
                );
            }
            assert_eq!(header("x-oss-security-token"), vector.security_token);
            let key = encoded(&vector.key, "/");
            let path = match addressing {
                Addressing::Path => format!("/{}/{key}", vector.bucket),
                Addressing::Virtual => format!("/{key}"),
            };
            assert_eq!(seen.uri().path(), path, "{}", vector.name);
        }
    }
}
