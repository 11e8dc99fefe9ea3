//! Credential chains against token and metadata services on the loopback interface.

use http::Response;

use super::super::{StoreConfig, StoreKind};
use super::server::{Seen, Server, build_in, full, request};

/// One server that is both the origin (answers 404) and every token service (answers as told).
async fn services(reply: impl Fn(&Seen) -> Option<(u16, String)> + Send + Sync + 'static) -> Server {
    Server::start(move |seen| {
        let (status, body) = reply(seen).unwrap_or((404, String::new()));
        Response::builder().status(status).body(full(body)).unwrap()
    })
    .await
}

fn chained(server: &Server, kind: StoreKind) -> StoreConfig {
    StoreConfig {
        region: Some("cn-hangzhou".into()),
        endpoint: Some(server.url()),
        ..StoreConfig::new("lake", kind)
    }
}

/// Sends one read; the error's code, its text, and the request with which the origin was asked.
async fn read(
    server: &Server,
    kind: StoreKind,
    envs: &[(&str, &str)],
) -> (&'static str, String, Option<Seen>) {
    let store = build_in(&chained(server, kind), envs);
    let before = server.seen().len();
    let error = store
        .get(&request(&format!("{}://bucket/key", store.scheme())))
        .await
        .err()
        .unwrap();
    let asked = server
        .seen()
        .into_iter()
        .skip(before)
        .find(|seen| seen.uri().path() == "/bucket/key");
    (error.code(), error.to_string(), asked)
}

const AWS: &str = r#"{"Code":"Success","AccessKeyId":"ASIATEMP","SecretAccessKey":"s","Token":"t","Expiration":"2124-05-25T11:45:17Z"}"#;
const ALIYUN: &str = r#"{"Code":"Success","AccessKeyId":"STS.TEMP","AccessKeySecret":"s","SecurityToken":"t","Expiration":"2124-05-25T11:45:17Z"}"#;

#[tokio::test]
async fn s3_takes_keys_from_the_environment_a_container_endpoint_or_instance_metadata() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "pod-token").unwrap();
    let server = services(|seen| {
        let authorized = seen
            .headers()
            .get("authorization")
            .is_some_and(|value| value == "pod-token");
        match seen.uri().path() {
            "/pod-identity" if authorized => Some((200, AWS.replace("ASIATEMP", "ASIAPOD"))),
            "/latest/api/token" => Some((200, "imds-token".into())),
            "/latest/meta-data/iam/security-credentials/" => Some((200, "role".into())),
            "/latest/meta-data/iam/security-credentials/role" => Some((200, AWS.into())),
            _ => None,
        }
    })
    .await;
    let pod = format!("{}/pod-identity", server.url());
    let container = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", pod.as_str()),
        (
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            token.path().to_str().unwrap(),
        ),
    ];
    let url = server.url();
    let metadata = [
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.as_str()),
    ];
    let env = [("AWS_ACCESS_KEY_ID", "AKIAENV"), ("AWS_SECRET_ACCESS_KEY", "s")];
    // Each time with everything that comes later in the order.
    let cases = [
        ([&env[..], &container, &metadata].concat(), "AKIAENV", None),
        ([&container[..], &metadata].concat(), "ASIAPOD", Some("t")),
        (metadata.to_vec(), "ASIATEMP", Some("t")),
    ];
    for (envs, id, session) in cases {
        let (code, text, asked) = read(&server, StoreKind::S3, &envs).await;
        assert_eq!(code, "not_found", "{text}");
        let asked = asked.unwrap();
        let signature = asked.headers()["authorization"].to_str().unwrap();
        assert!(signature.contains(&format!("Credential={id}/")), "{signature}");
        assert_eq!(
            asked
                .headers()
                .get("x-amz-security-token")
                .map(|token| token.to_str().unwrap()),
            session
        );
    }
}

#[tokio::test]
async fn s3_takes_static_keys_from_a_shared_profile() {
    let server = services(|_| None).await;
    let profile = tempfile::NamedTempFile::new().unwrap();
    let keys = "[etl]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = s\n";
    std::fs::write(profile.path(), keys).unwrap();
    let envs = [
        ("AWS_SHARED_CREDENTIALS_FILE", profile.path().to_str().unwrap()),
        ("AWS_PROFILE", "etl"),
    ];
    let (_, _, asked) = read(&server, StoreKind::S3, &envs).await;
    assert!(
        asked.unwrap().headers()["authorization"]
            .to_str()
            .unwrap()
            .contains("Credential=AKIAPROFILE/")
    );
}

#[tokio::test]
async fn oss_takes_keys_from_the_environment_rrsa_or_an_ecs_role() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "oidc-token").unwrap();
    let server = services(|seen| {
        let query = seen.uri().query().unwrap_or_default();
        match seen.uri().path() {
            "/" if query.contains("Action=AssumeRoleWithOIDC") && query.contains("OIDCToken=oidc-token") => {
                Some((
                    200,
                    format!("{{\"Credentials\":{ALIYUN}}}").replace("STS.TEMP", "STS.RRSA"),
                ))
            }
            "/latest/api/token" => Some((200, "metadata-token".into())),
            "/latest/meta-data/ram/security-credentials/role" => {
                Some((200, ALIYUN.replace("STS.TEMP", "STS.ECS")))
            }
            _ => None,
        }
    })
    .await;
    let url = server.url();
    let rrsa = [
        ("ALIBABA_CLOUD_ROLE_ARN", "acs:ram::1:role/r"),
        ("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "acs:ram::1:oidc-provider/p"),
        ("ALIBABA_CLOUD_OIDC_TOKEN_FILE", token.path().to_str().unwrap()),
        ("ALIBABA_CLOUD_STS_ENDPOINT", &url),
    ];
    let ecs = [
        ("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "false"),
        ("ALIBABA_CLOUD_ECS_METADATA", "role"),
        ("ALIBABA_CLOUD_ECS_METADATA_SERVICE_ENDPOINT", &url),
    ];
    let env = [
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", "LTAIENV"),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "s"),
    ];
    // A pod with RRSA on a node with a role reads as the pod.
    let cases = [
        (env.to_vec(), "LTAIENV"),
        ([&rrsa[..], &ecs[..]].concat(), "STS.RRSA"),
        (ecs.to_vec(), "STS.ECS"),
    ];
    for (envs, id) in cases {
        let (code, text, asked) = read(&server, StoreKind::Oss, &envs).await;
        assert_eq!(code, "not_found", "{text}");
        let asked = asked.unwrap();
        let signature = asked.headers()["authorization"].to_str().unwrap();
        assert!(signature.contains(&format!("Credential={id}/")), "{signature}");
    }
}

#[tokio::test]
async fn a_configured_source_that_fails_never_falls_through_to_another_identity() {
    let server = services(|seen| match seen.uri().path() {
        "/pod-identity" => Some((500, "TOPSECRET".into())),
        "/latest/api/token" => Some((200, "imds-token".into())),
        "/latest/meta-data/iam/security-credentials/" => Some((200, "node-role".into())),
        "/latest/meta-data/iam/security-credentials/node-role" => Some((200, AWS.into())),
        _ => None,
    })
    .await;
    let pod = format!("{}/pod-identity", server.url());
    let envs = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", pod.as_str()),
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &server.url()),
    ];
    let (code, text, asked) = read(&server, StoreKind::S3, &envs).await;
    assert!(code == "credentials" && asked.is_none(), "{text}");
    assert!(
        text.contains("container endpoint failed") && !text.contains("TOPSECRET"),
        "{text}"
    );
    let unreadable = [
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/no/such/token"),
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &server.url()),
    ];
    let (code, text, asked) = read(&server, StoreKind::S3, &unreadable).await;
    assert!(code == "credentials" && asked.is_none(), "{text}");
    assert!(text.contains("web identity failed"), "{text}");
}

#[tokio::test]
async fn an_expired_credential_is_refused_before_it_is_used() {
    let server =
        services(|seen| (seen.uri().path() == "/pod-identity").then(|| (200, AWS.replace("2124", "2024"))))
            .await;
    let pod = format!("{}/pod-identity", server.url());
    let (code, text, asked) = read(
        &server,
        StoreKind::S3,
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &pod)],
    )
    .await;
    assert!(code == "credentials" && asked.is_none(), "{text}");
    assert!(text.contains("clock"), "{text}");
}
