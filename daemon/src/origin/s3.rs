//! S3: AWS's credentials, signed for by `object_store`.

use std::sync::Arc;

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use reqsign_aws_core::{
    AssumeRoleWithWebIdentityCredentialProvider, Credential, ECSCredentialProvider, EnvCredentialProvider,
    IMDSv2CredentialProvider, ProfileCredentialProvider,
};
use reqsign_core::Context;

use super::chain::{Chain, ConfiguredKeys, Keys, Place};
use super::config::{CredentialsKind, StoreConfig};
use super::credentials::{Missing, Refreshing};
use super::remote::Signing;

const REMEDY: &str = "set access_key_id and secret_access_key_file, the AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY \
                      variables, or a role for the pod, or use credentials = \"anonymous\"";

/// How requests to an S3 store are signed.
pub(super) fn signing(config: &StoreConfig, context: &Context) -> Signing {
    if let Some(keys) = Keys::of(config) {
        return Signing::Aws(Arc::new(Credentials(Refreshing::new(
            &config.name,
            ConfiguredKeys::<Credential> {
                keys,
                context: context.clone(),
                build: |access_key_id, secret_access_key, session_token| Credential {
                    access_key_id,
                    secret_access_key,
                    session_token,
                    expires_in: None,
                },
            },
        ))));
    }
    match config.credentials {
        CredentialsKind::Anonymous => Signing::Anonymous,
        CredentialsKind::Chain => Signing::Aws(Arc::new(Credentials(Refreshing::new(
            &config.name,
            Chain::new(context.clone(), places(config), REMEDY),
        )))),
    }
}

fn places(config: &StoreConfig) -> Vec<Place<Credential>> {
    let mut web_identity = AssumeRoleWithWebIdentityCredentialProvider::new();
    if config.endpoint.is_none()
        && let Some(region) = &config.region
    {
        // The region's own token service: nearer, and the only one in some partitions.
        web_identity = web_identity
            .with_region(region.clone())
            .with_regional_sts_endpoint();
    }
    vec![
        Place {
            name: "environment variables",
            provider: Box::new(EnvCredentialProvider::new()),
        },
        Place {
            name: "web identity",
            provider: Box::new(web_identity),
        },
        Place {
            name: "shared profile",
            provider: Box::new(ProfileCredentialProvider::new()),
        },
        Place {
            name: "container endpoint",
            provider: Box::new(ECSCredentialProvider::new()),
        },
        Place {
            name: "instance metadata",
            provider: Box::new(IMDSv2CredentialProvider::new()),
        },
    ]
}

/// `object_store`'s view of a store's credentials.
#[derive(Debug)]
struct Credentials(Refreshing<Credential>);

#[async_trait]
impl CredentialProvider for Credentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let failed = |missing: Missing| object_store::Error::Generic {
            store: "S3",
            source: Box::new(missing),
        };
        let credential = self.0.get().await.map_err(failed)?;
        Ok(Arc::new(AwsCredential {
            key_id: credential.access_key_id.clone(),
            secret_key: credential.secret_access_key.clone(),
            token: credential.session_token.clone(),
        }))
    }
}
