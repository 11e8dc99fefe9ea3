//! The places that credentials come from, in the order they are tried.
//!
//! The first source that is configured wins, and keeps winning: once it gave a credential, only it is asked again.
//! A source that is configured and fails is an error. Falling through to the next one would read with another
//! identity, for example with the node's role while the pod's own token service is down.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use reqsign_core::{Context, Env, HttpSend, ProvideCredentialDyn};
use reqsign_file_read_tokio::TokioFileRead;

use super::config::StoreConfig;
use super::credentials::{Fetched, Missing, Source};

/// How often keys that do not expire are read again.
const REREAD: Duration = Duration::from_mins(1);
/// A token service's reply is a few kilobytes.
const MAX_REPLY_BYTES: usize = 1 << 20;

/// What the chain needs to know of a credential.
pub(super) trait Expiring: Send + Sync + Unpin + 'static {
    fn expires_at(&self) -> Option<SystemTime>;
}

impl Expiring for reqsign_aws_core::Credential {
    fn expires_at(&self) -> Option<SystemTime> {
        self.expires_in.map(reqsign_core::time::Timestamp::as_system_time)
    }
}

impl Expiring for reqsign_aliyun_oss::Credential {
    fn expires_at(&self) -> Option<SystemTime> {
        self.expires_in.map(reqsign_core::time::Timestamp::as_system_time)
    }
}

/// One place that credentials may come from.
pub(super) struct Place<C> {
    /// The word for it in messages.
    pub(super) name: &'static str,
    pub(super) provider: Box<dyn ProvideCredentialDyn<Credential = C>>,
}

/// The places of one store, in order.
pub(super) struct Chain<C> {
    context: Context,
    places: Vec<Place<C>>,
    /// The place that gave the first credential.
    chosen: OnceLock<usize>,
    /// What to do if there is none, for the message.
    remedy: &'static str,
}

impl<C> fmt::Debug for Chain<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.places.iter().map(|place| place.name))
            .finish()
    }
}

impl<C> Chain<C> {
    pub(super) fn new(context: Context, places: Vec<Place<C>>, remedy: &'static str) -> Self {
        Self {
            context,
            places,
            chosen: OnceLock::new(),
            remedy,
        }
    }
}

#[async_trait]
impl<C: Expiring> Source<C> for Chain<C> {
    async fn fetch(&self) -> Result<Fetched<C>, Missing> {
        let chosen = self.chosen.get().copied();
        for (index, place) in self.places.iter().enumerate() {
            if chosen.is_some_and(|chosen| chosen != index) {
                continue;
            }
            match place.provider.provide_credential_dyn(&self.context).await {
                Ok(Some(credential)) => {
                    if chosen.is_none() {
                        tracing::info!(source = place.name, "found credentials");
                        self.chosen.get_or_init(|| index);
                    }
                    return fetched(credential, place.name);
                }
                Ok(None) => {}
                // The error's text may hold the token service's reply: only its kind is told.
                Err(error) => {
                    return Err(Missing(
                        format!("{} failed: {}; {}", place.name, kind(&error), self.remedy).into(),
                    ));
                }
            }
        }
        let tried: Vec<_> = self.places.iter().map(|place| place.name).collect();
        Err(Missing(
            format!("none configured (tried {}): {}", tried.join(", "), self.remedy).into(),
        ))
    }
}

fn fetched<C: Expiring>(credential: C, name: &str) -> Result<Fetched<C>, Missing> {
    let Some(expiry) = credential.expires_at() else {
        return Ok(Fetched {
            credential: Arc::new(credential),
            valid_for: None,
            reread_after: Some(REREAD),
        });
    };
    match expiry.duration_since(SystemTime::now()) {
        Ok(left) => Ok(Fetched {
            credential: Arc::new(credential),
            valid_for: Some(left),
            reread_after: None,
        }),
        Err(_) => Err(Missing(
            format!("{name} gave an expired credential: check the node's clock").into(),
        )),
    }
}

fn kind(error: &reqsign_core::Error) -> &'static str {
    use reqsign_core::ErrorKind;
    match error.kind() {
        ErrorKind::CredentialInvalid => "it gave no valid credential",
        ErrorKind::PermissionDenied => "it refuses this workload",
        ErrorKind::ConfigInvalid => "it is configured wrongly",
        ErrorKind::RequestInvalid => "it refuses the request",
        ErrorKind::RateLimited => "it asks to slow down",
        ErrorKind::Unexpected => "it cannot be reached or gave a wrong reply",
    }
}

/// The surroundings that sources read: environment, files, and HTTP to token and metadata services.
pub(super) fn context(env: Arc<dyn Env>) -> Result<Context, reqwest::Error> {
    let client = || {
        reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(2))
            .timeout(Duration::from_secs(10))
            .redirect(reqwest::redirect::Policy::none())
    };
    let services = client().build()?;
    // Metadata services are on the node: no proxy reaches them, and where there is none the wait is short.
    let metadata = client()
        .no_proxy()
        .connect_timeout(Duration::from_secs(1))
        .build()?;
    Ok(Context::new()
        .with_env(SharedEnv(env))
        .with_file_read(TokioFileRead)
        .with_http_send(TokenServices { services, metadata }))
}

#[derive(Debug)]
struct SharedEnv(Arc<dyn Env>);

impl Env for SharedEnv {
    fn var(&self, key: &str) -> Option<String> {
        self.0.var(key)
    }
    fn vars(&self) -> std::collections::HashMap<String, String> {
        self.0.vars()
    }
    fn home_dir(&self) -> Option<PathBuf> {
        self.0.home_dir()
    }
}

#[derive(Debug)]
struct TokenServices {
    services: reqwest::Client,
    metadata: reqwest::Client,
}

impl HttpSend for TokenServices {
    async fn http_send(&self, request: http::Request<Bytes>) -> reqsign_core::Result<http::Response<Bytes>> {
        let client = if is_metadata_host(request.uri().host().unwrap_or_default()) {
            &self.metadata
        } else {
            &self.services
        };
        // Requests carry tokens in URLs and headers: no error may quote them.
        let failed =
            |_: reqwest::Error| reqsign_core::Error::unexpected("the request failed").set_retryable(true);
        let request = reqwest::Request::try_from(request).map_err(failed)?;
        let reply = client.execute(request).await.map_err(failed)?;
        let (parts, body) = http::Response::<reqwest::Body>::from(reply).into_parts();
        let body = Limited::new(body, MAX_REPLY_BYTES).collect().await;
        let body = body.map_err(|_| reqsign_core::Error::unexpected("the reply broke off or is too long"))?;
        Ok(http::Response::from_parts(parts, body.to_bytes()))
    }
}

/// Link-local and loopback addresses, and Alibaba Cloud's metadata service.
fn is_metadata_host(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse() {
        Ok(std::net::IpAddr::V4(ip)) => {
            ip.is_link_local() || ip.is_loopback() || ip.octets() == [100, 100, 100, 200]
        }
        // EKS serves Pod Identity and instance metadata at unique local addresses (fd00:ec2::23, fd00:ec2::254).
        Ok(std::net::IpAddr::V6(ip)) => {
            ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()
        }
        Err(_) => host == "localhost",
    }
}

/// Keys that the store's table names: in place, in files, or in environment variables.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    id: KeyFrom,
    secret: KeyFrom,
    token: Option<KeyFrom>,
}

#[derive(Debug, Clone)]
enum KeyFrom {
    Text(String),
    File(PathBuf),
    Variable(String),
}

impl Keys {
    /// The keys of a validated table; `None` if it names none.
    pub(super) fn of(config: &StoreConfig) -> Option<Self> {
        let from = |file: &Option<PathBuf>, variable: &Option<String>| {
            file.clone()
                .map(KeyFrom::File)
                .or_else(|| variable.clone().map(KeyFrom::Variable))
        };
        let id = config
            .access_key_id
            .clone()
            .map(KeyFrom::Text)
            .or_else(|| from(&config.access_key_id_file, &config.access_key_id_env))?;
        Some(Self {
            id,
            secret: from(&config.secret_access_key_file, &config.secret_access_key_env)?,
            token: from(&config.session_token_file, &config.session_token_env),
        })
    }

    pub(super) async fn read(&self, context: &Context) -> Result<(String, String, Option<String>), Missing> {
        let token = match &self.token {
            Some(token) => Some(token.read(context).await?),
            None => None,
        };
        Ok((
            self.id.read(context).await?,
            self.secret.read(context).await?,
            token,
        ))
    }
}

impl KeyFrom {
    async fn read(&self, context: &Context) -> Result<String, Missing> {
        let (value, place) = match self {
            Self::Text(text) => (Ok(text.clone()), String::new()),
            Self::Variable(name) => (
                context.env_var(name).ok_or("is not set"),
                format!("environment variable {name}"),
            ),
            Self::File(path) => (
                tokio::fs::read_to_string(path)
                    .await
                    .map_err(|error| match error.kind() {
                        std::io::ErrorKind::NotFound => "does not exist",
                        std::io::ErrorKind::PermissionDenied => "may not be read by the daemon",
                        _ => "cannot be read",
                    }),
                format!("file {}", path.display()),
            ),
        };
        let value = value.map_err(|problem| Missing(format!("{place} {problem}").into()))?;
        let value = value.trim();
        if value.is_empty() {
            return Err(Missing(format!("{place} is empty").into()));
        }
        if value.chars().any(char::is_control) {
            return Err(Missing(format!("{place} has more than one line").into()));
        }
        Ok(value.to_owned())
    }
}

/// A source of configured keys.
pub(super) struct ConfiguredKeys<C> {
    pub(super) keys: Keys,
    pub(super) context: Context,
    /// Builds a credential from id, secret and session token.
    pub(super) build: fn(String, String, Option<String>) -> C,
}

impl<C> fmt::Debug for ConfiguredKeys<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ConfiguredKeys").field(&self.keys).finish()
    }
}

#[async_trait]
impl<C: Expiring> Source<C> for ConfiguredKeys<C> {
    async fn fetch(&self) -> Result<Fetched<C>, Missing> {
        let (id, secret, token) = self.keys.read(&self.context).await?;
        fetched((self.build)(id, secret, token), "the configured keys")
    }
}
