//! OSS in its own dialect: V4 signatures, its credential chain, and the two headers it names differently.
//!
//! `object_store` speaks S3 only, and signs for S3 only: here it signs nothing, and each request is signed on its way
//! out. `GET`, `HEAD`, `Range`, `If-Match` and `versionId` are the same on the wire. The S3-compatible mode of OSS is
//! not used, for it knows none of OSS's own credentials. `tests/oss` holds vectors from Alibaba's own SDK.

use std::sync::Arc;

use async_trait::async_trait;
use cachelet_protocol::ids::BucketName;
use http::header::RANGE;
use http::{HeaderName, HeaderValue};
use object_store::client::{HttpError, HttpErrorKind, HttpRequest, HttpResponse};
use reqsign_aliyun_oss::{
    AssumeRoleWithOidcCredentialProvider, ConfigFileCredentialProvider, Credential,
    CredentialsFileCredentialProvider, CredentialsUriCredentialProvider, EcsRamRoleCredentialProvider,
    EnvCredentialProvider, OssProfileCredentialProvider, RequestSigner, SigningVersion,
};
use reqsign_core::{Context, SignRequest};

use super::chain::{Chain, ConfiguredKeys, Keys, Place};
use super::config::{ConfigError, CredentialsKind, StoreConfig};
use super::credentials::{Missing, Refreshing};
use super::remote::{DialectOfBucket, Signing};
use super::transport::Dialect;

const REMEDY: &str = "set access_key_id and secret_access_key_file, the ALIBABA_CLOUD_ACCESS_KEY_ID and \
                      ALIBABA_CLOUD_ACCESS_KEY_SECRET variables, or a role for the pod or node, or use credentials = \
                      \"anonymous\"";

/// Makes OSS answer 416 for a range outside the object, as S3 does; without it the reply is the whole object.
const RANGE_BEHAVIOR: HeaderName = HeaderName::from_static("x-oss-range-behavior");
const OSS_VERSION: HeaderName = HeaderName::from_static("x-oss-version-id");
const S3_VERSION: HeaderName = HeaderName::from_static("x-amz-version-id");

/// How requests to an OSS store are signed.
pub(super) fn signing(config: &StoreConfig, context: &Context) -> Result<Signing, ConfigError> {
    let credentials = if let Some(keys) = Keys::of(config) {
        Some(Refreshing::new(
            &config.name,
            ConfiguredKeys::<Credential> {
                keys,
                context: context.clone(),
                build: |access_key_id, access_key_secret, security_token| Credential {
                    access_key_id,
                    access_key_secret,
                    security_token,
                    expires_in: None,
                },
            },
        ))
    } else {
        match config.credentials {
            CredentialsKind::Anonymous => None,
            CredentialsKind::Chain => Some(Refreshing::new(
                &config.name,
                Chain::new(context.clone(), places(), REMEDY),
            )),
        }
    };
    let region = config.resolved_region()?;
    Ok(Signing::Dialect(Box::new(Oss {
        region,
        context: context.clone(),
        credentials: credentials.map(Arc::new),
    })))
}

fn places() -> Vec<Place<Credential>> {
    vec![
        Place {
            name: "environment variables",
            provider: Box::new(EnvCredentialProvider::new()),
        },
        Place {
            name: "RRSA (OIDC)",
            provider: Box::new(AssumeRoleWithOidcCredentialProvider::new()),
        },
        Place {
            name: "OSS profile file",
            provider: Box::new(OssProfileCredentialProvider::new()),
        },
        Place {
            name: "shared credentials file",
            provider: Box::new(CredentialsFileCredentialProvider::new()),
        },
        Place {
            name: "CLI configuration file",
            provider: Box::new(ConfigFileCredentialProvider::new()),
        },
        Place {
            name: "credentials URI",
            provider: Box::new(CredentialsUriCredentialProvider::new()),
        },
        Place {
            name: "ECS RAM role",
            provider: Box::new(EcsRamRoleCredentialProvider::new()),
        },
    ]
}

#[derive(Debug)]
struct Oss {
    region: String,
    context: Context,
    /// `None`: anonymous.
    credentials: Option<Arc<Refreshing<Credential>>>,
}

impl DialectOfBucket for Oss {
    fn of_bucket(&self, bucket: &BucketName) -> Arc<dyn Dialect> {
        let signer = RequestSigner::new(bucket.as_str())
            .with_region(&self.region)
            .with_signing_version(SigningVersion::V4);
        Arc::new(OssRequest {
            signer,
            context: self.context.clone(),
            credentials: self.credentials.clone(),
        })
    }
}

#[derive(Debug)]
struct OssRequest {
    signer: RequestSigner,
    context: Context,
    credentials: Option<Arc<Refreshing<Credential>>>,
}

#[async_trait]
impl Dialect for OssRequest {
    async fn sign(&self, mut request: HttpRequest) -> Result<HttpRequest, HttpError> {
        if request.headers().contains_key(RANGE) {
            request
                .headers_mut()
                .insert(RANGE_BEHAVIOR, HeaderValue::from_static("standard"));
        }
        let Some(credentials) = &self.credentials else {
            return Ok(request);
        };
        // `Unknown` is not retried: the credentials have their own pace.
        let failed = |missing: Missing| HttpError::new(HttpErrorKind::Unknown, missing);
        let credential = credentials.get().await.map_err(failed)?;
        let (mut parts, body) = request.into_parts();
        let signed = self
            .signer
            .sign_request(&self.context, &mut parts, Some(&*credential), None)
            .await;
        signed.map_err(|_| {
            failed(Missing(
                "the request cannot be signed: check the credentials' characters".into(),
            ))
        })?;
        Ok(HttpRequest::from_parts(parts, body))
    }

    fn translate(&self, reply: &mut HttpResponse) {
        if let Some(version) = reply.headers().get(OSS_VERSION).cloned() {
            reply.headers_mut().insert(S3_VERSION, version);
        }
    }
}
