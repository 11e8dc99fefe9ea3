//! One `[[store]]` table of the daemon's configuration: what the fields mean, and which values are refused.
//!
//! Nothing here touches the network, the environment or a file: a configuration can be checked on another machine.
//! Secrets never stand in the configuration, which usually lives in a `ConfigMap`: fields name the file or the
//! environment variable that holds them.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use cachelet_protocol::bucket::BucketPattern;
use cachelet_protocol::ids::{BucketName, Scheme, StoreIdentity};
use serde::{Deserialize, Serialize};

use super::endpoint::{Endpoint, is_region, is_remote_bucket};

/// One store, as the `[[store]]` table of the daemon's TOML file spells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// The store's name in messages, metrics and, for `file`, in paths. Letters, digits, `-`, `_` and `.`; at most 63.
    pub name: String,
    /// What the store speaks: `s3`, `oss` or `file`.
    pub kind: StoreKind,
    /// What makes this the same store on every node and in the locality service. Default: the kind and the endpoint's
    /// host (`s3:s3.eu-west-1.amazonaws.com`), or the directory (`file:/data`). Set it if nodes reach one store under
    /// different endpoints, or if equal directories of different nodes hold different files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The buckets served: names, or prefixes that end in `*`. The most specific entry of all stores of a scheme wins.
    /// Default: `["*"]`; for `file`: the store's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<String>,
    /// Who proves the right to read an object. Default: `caller`.
    #[serde(default)]
    pub authorization: Authorization,

    /// `http://` or `https://`, host and optional port. Default: AWS's endpoint of `region` for `s3`, the internal
    /// endpoint of `region` for `oss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Further `host[:port]`s under which clients know this store, for example its public name. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoint_aliases: Vec<String>,
    /// The region that requests are signed for. Default for `s3`: `us-east-1` if `endpoint` is set, else required.
    /// Default for `oss`: taken from an endpoint such as `oss-cn-hangzhou-internal.aliyuncs.com`, else required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Where the bucket's name goes: `path` or `virtual` (in front of the endpoint's host). Default for `s3`: `path`
    /// if `endpoint` is set, else `virtual` (buckets with a dot in the name: `path`). Default for `oss`: `virtual`,
    /// and `path` if the endpoint is an IP address or `localhost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addressing: Option<Addressing>,
    /// Whether an `http://` endpoint is accepted. Default: only for loopback addresses.
    #[serde(default)]
    pub allow_http: bool,
    /// Whether the daemon agrees to pay for requests to requester-pays buckets (`s3` only). Default: `false`.
    #[serde(default)]
    pub requester_pays: bool,

    /// Where credentials come from. Default: `chain`.
    #[serde(default)]
    pub credentials: CredentialsKind,
    /// The access key id, in place. Only with a secret access key. Default: the chain of `credentials`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// A file that holds the access key id; read again every minute, so that a mounted secret may be rotated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id_file: Option<PathBuf>,
    /// An environment variable that holds the access key id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id_env: Option<String>,
    /// A file that holds the secret access key; read again every minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key_file: Option<PathBuf>,
    /// An environment variable that holds the secret access key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key_env: Option<String>,
    /// A file that holds the session token that goes with the keys; read again every minute. Default: no token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token_file: Option<PathBuf>,
    /// An environment variable that holds the session token. Default: no token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token_env: Option<String>,

    /// The directory whose files are the objects (`file` only, required there; absolute).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,

    /// Longest wait for a connection. Default: `3s`.
    #[serde(default = "default_connect_timeout", with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Longest pause between two pieces of a reply. Default: `10s`.
    #[serde(default = "default_read_timeout", with = "humantime_serde")]
    pub read_timeout: Duration,
    /// Longest time for one attempt of a request, its body included. Default: `30s`.
    #[serde(default = "default_request_timeout", with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Most requests to the store at a time; further ones wait. A request counts until its body is read. Within it the
    /// daemon finds its own limit: 32 at first, half after a throttled or late reply (4 at the least), more while all are
    /// used and succeed. Default: 64.
    #[serde(default = "default_max_concurrent_requests")]
    pub max_concurrent_requests: u32,
    /// Most requests a second, on average. What is read ahead waits for what is demanded. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests_per_second: Option<u32>,
    /// Most bytes a second, on average over requests; for example `200MiB`. What is read ahead waits for what is
    /// demanded. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<ByteSize>,
    /// Whether a GET that a reader waits for is sent a second time when its reply is later than 95 of 100 lately, at most
    /// 5 % of requests; the first reply is used. Never for `file`. Default: `true`.
    #[serde(default = "default_hedging")]
    pub hedging: bool,
    /// How often a request that failed in a passing way is sent again, 0 to 10; over all requests of a store at most one
    /// in ten, hedged ones included. Default: 3.
    #[serde(default = "default_max_retries")]
    pub max_retries: u32,
    /// No retry begins later than this after the request's start. Default: `20s`.
    #[serde(default = "default_retry_timeout", with = "humantime_serde")]
    pub retry_timeout: Duration,
}

fn default_connect_timeout() -> Duration {
    Duration::from_secs(3)
}
fn default_read_timeout() -> Duration {
    Duration::from_secs(10)
}
fn default_request_timeout() -> Duration {
    Duration::from_secs(30)
}
fn default_max_concurrent_requests() -> u32 {
    64
}
fn default_hedging() -> bool {
    true
}
fn default_max_retries() -> u32 {
    3
}
fn default_retry_timeout() -> Duration {
    Duration::from_secs(20)
}

/// What a store speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// Amazon S3, or anything that speaks it.
    S3,
    /// Alibaba Cloud OSS, with its own V4 signatures.
    Oss,
    /// A directory of the daemon's host.
    File,
}

impl StoreKind {
    /// The scheme of the paths that a store of this kind serves.
    pub fn scheme(self) -> Scheme {
        match self {
            Self::S3 => Scheme::S3,
            Self::Oss => Scheme::Oss,
            Self::File => Scheme::File,
        }
    }
}

/// Who proves the right to read an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Authorization {
    /// The caller presents the generation that it got from the origin with its own credentials.
    #[default]
    Caller,
    /// The daemon's own credentials suffice: everybody who reaches its socket may read what it may read.
    Daemon,
}

/// Where the bucket's name goes in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Addressing {
    /// `https://endpoint/bucket/key`
    Path,
    /// `https://bucket.endpoint/key`
    Virtual,
}

/// Where a store's credentials come from if no key is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CredentialsKind {
    /// The first of these that is configured. `s3`: `AWS_*` environment variables, web identity (IRSA), shared
    /// profile, container endpoint (ECS, EKS Pod Identity), instance metadata. `oss`: `ALIBABA_CLOUD_*` or `OSS_*`
    /// environment variables, RRSA (OIDC), profile files, credentials URI, ECS RAM role. A source that is configured
    /// and fails is an error: the daemon never falls through to another identity.
    #[default]
    Chain,
    /// Requests are not signed.
    Anonymous,
}

/// A field whose value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("store {store:?}: {key} = {value} {problem}")]
pub struct ConfigError {
    /// The store's name.
    pub store: Box<str>,
    /// The field.
    pub key: &'static str,
    /// Its value as TOML spells it, `(unset)` if it is missing; never a secret.
    pub value: Box<str>,
    /// What is wrong with it, and what to write instead.
    pub problem: Box<str>,
}

impl StoreConfig {
    /// A table with every optional field at its default.
    pub fn new(name: impl Into<String>, kind: StoreKind) -> Self {
        Self {
            name: name.into(),
            kind,
            identity: None,
            buckets: Vec::new(),
            authorization: Authorization::default(),
            endpoint: None,
            endpoint_aliases: Vec::new(),
            region: None,
            addressing: None,
            allow_http: false,
            requester_pays: false,
            credentials: CredentialsKind::default(),
            access_key_id: None,
            access_key_id_file: None,
            access_key_id_env: None,
            secret_access_key_file: None,
            secret_access_key_env: None,
            session_token_file: None,
            session_token_env: None,
            root: None,
            connect_timeout: default_connect_timeout(),
            read_timeout: default_read_timeout(),
            request_timeout: default_request_timeout(),
            max_concurrent_requests: default_max_concurrent_requests(),
            max_requests_per_second: None,
            max_bandwidth: None,
            hedging: default_hedging(),
            max_retries: default_max_retries(),
            retry_timeout: default_retry_timeout(),
        }
    }

    /// Checks every field by itself and with the others.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_name()?;
        self.bucket_patterns()?;
        self.validate_timing()?;
        match self.kind {
            StoreKind::File => self.validate_directory()?,
            StoreKind::S3 | StoreKind::Oss => self.validate_remote()?,
        }
        self.store_identity()?;
        Ok(())
    }

    /// The names and prefixes of `buckets`, with the default filled in.
    pub(super) fn bucket_patterns(&self) -> Result<Vec<BucketPattern>, ConfigError> {
        let refused = |value: &str, problem: &str| self.refuse("buckets", quoted(value), problem);
        if self.buckets.is_empty() {
            return match self.kind {
                StoreKind::S3 | StoreKind::Oss => Ok(vec![BucketPattern::Prefix(String::new())]),
                StoreKind::File => {
                    let name = BucketName::new(&self.name).map_err(|e| refused(&self.name, e.reason))?;
                    Ok(vec![BucketPattern::Name(name)])
                }
            };
        }
        let parse = |text: &String| match text.strip_suffix('*') {
            Some(_) if self.kind == StoreKind::File => Err(refused(
                text,
                "is a pattern: name the buckets of a directory one by one",
            )),
            Some(prefix) if prefix.contains('*') => Err(refused(text, "has a `*` that is not at its end")),
            Some(prefix) => Ok(BucketPattern::Prefix(prefix.to_owned())),
            None if text.contains('*') => Err(refused(text, "has a `*` that is not at its end")),
            None if self.kind != StoreKind::File && !is_remote_bucket(text) => Err(refused(
                text,
                "is no bucket name: use letters, digits, `-`, `_` and single dots",
            )),
            None => match BucketName::new(text.as_str()) {
                Ok(name) => Ok(BucketPattern::Name(name)),
                Err(invalid) => Err(refused(text, &format!("is no bucket name: {}", invalid.reason))),
            },
        };
        self.buckets.iter().map(parse).collect()
    }

    /// The `identity`, with the default filled in.
    pub(super) fn store_identity(&self) -> Result<StoreIdentity, ConfigError> {
        let text = match (&self.identity, self.kind) {
            (Some(identity), _) => identity.clone(),
            (None, StoreKind::File) => {
                let root = self.root.as_deref().unwrap_or_else(|| std::path::Path::new(""));
                format!("file:{}", root.display())
            }
            (None, kind) => format!("{}:{}", kind.scheme(), self.resolved_endpoint()?.host_and_port()),
        };
        StoreIdentity::new(&text).map_err(|e| self.refuse("identity", quoted(&text), e.reason))
    }

    /// The `region`, with the default filled in.
    pub(super) fn resolved_region(&self) -> Result<String, ConfigError> {
        let problem = "is needed: set it to the buckets' region";
        let region = match (&self.region, self.kind) {
            (Some(region), _) => region.clone(),
            (None, StoreKind::S3) if self.endpoint.is_some() => "us-east-1".to_owned(),
            (None, StoreKind::Oss) => self
                .parsed_endpoint()?
                .as_ref()
                .and_then(Endpoint::oss_region)
                .ok_or_else(|| {
                    self.refuse(
                        "region",
                        UNSET,
                        &format!("{problem}, for example \"cn-hangzhou\""),
                    )
                })?,
            (None, StoreKind::S3 | StoreKind::File) => {
                return Err(self.refuse("region", UNSET, &format!("{problem}, for example \"eu-west-1\"")));
            }
        };
        if is_region(&region) {
            Ok(region)
        } else {
            Err(self.refuse(
                "region",
                quoted(&region),
                "is no region: use lower-case letters, digits and `-`",
            ))
        }
    }

    /// The `endpoint`, with the default filled in.
    pub(super) fn resolved_endpoint(&self) -> Result<Endpoint, ConfigError> {
        if let Some(endpoint) = self.parsed_endpoint()? {
            return Ok(endpoint);
        }
        let region = self.resolved_region()?;
        Ok(match self.kind {
            StoreKind::Oss => Endpoint::https(&format!("oss-{region}-internal.aliyuncs.com")),
            StoreKind::S3 | StoreKind::File => Endpoint::https(&Endpoint::aws_host(&region)),
        })
    }

    /// The `addressing` for one bucket, with the default filled in.
    pub(super) fn addressing_of(&self, endpoint: &Endpoint, bucket: &BucketName) -> Addressing {
        match (self.addressing, self.kind) {
            (Some(addressing), _) => addressing,
            // The name must be one DNS label, or the certificate of the endpoint's wildcard does not match.
            (None, StoreKind::S3) if self.endpoint.is_none() && !bucket.as_str().contains('.') => {
                Addressing::Virtual
            }
            (None, StoreKind::Oss) if !endpoint.is_local() => Addressing::Virtual,
            (None, _) => Addressing::Path,
        }
    }

    fn parsed_endpoint(&self) -> Result<Option<Endpoint>, ConfigError> {
        let Some(text) = &self.endpoint else {
            return Ok(None);
        };
        // What stands in front of an `@` may be a password.
        let value = if text.contains('@') {
            "(not shown)".to_owned()
        } else {
            quoted(text)
        };
        let refused = |problem: &str| self.refuse("endpoint", value.clone(), problem);
        let endpoint = Endpoint::parse(text).map_err(refused)?;
        if !endpoint.is_https() && !self.allow_http && !endpoint.is_loopback() {
            return Err(refused(
                "sends data and signatures in the clear: use https://, or set allow_http = true",
            ));
        }
        Ok(Some(endpoint))
    }

    fn validate_name(&self) -> Result<(), ConfigError> {
        let valid = (1..=63).contains(&self.name.len())
            && self
                .name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if valid {
            return Ok(());
        }
        Err(self.refuse(
            "name",
            quoted(&self.name),
            "is no name: use 1 to 63 letters, digits, `-`, `_` and `.`",
        ))
    }

    fn validate_timing(&self) -> Result<(), ConfigError> {
        let timeouts = [
            ("connect_timeout", self.connect_timeout),
            ("read_timeout", self.read_timeout),
            ("request_timeout", self.request_timeout),
            ("retry_timeout", self.retry_timeout),
        ];
        let bounds = Duration::from_millis(10)..=Duration::from_mins(10);
        for (key, timeout) in timeouts {
            if !bounds.contains(&timeout) {
                let value = quoted(&humantime_serde::re::humantime::format_duration(timeout).to_string());
                return Err(self.refuse(key, value, "is out of bounds: use \"10ms\" to \"10m\""));
            }
        }
        if !(1..=4096).contains(&self.max_concurrent_requests) {
            let value = self.max_concurrent_requests.to_string();
            return Err(self.refuse(
                "max_concurrent_requests",
                value,
                "is out of bounds: use 1 to 4096",
            ));
        }
        if self.max_requests_per_second == Some(0) {
            let problem = "lets no request through: use 1 or more, or remove it";
            return Err(self.refuse("max_requests_per_second", "0", problem));
        }
        // Less than a page each second and a demanded page would miss every deadline.
        if let Some(bandwidth) = self.max_bandwidth
            && bandwidth < ByteSize::mib(1)
        {
            let problem = "is less than a page a second: use 1MiB or more, or remove it";
            return Err(self.refuse("max_bandwidth", quoted(&bandwidth.to_string()), problem));
        }
        if self.max_retries > 10 {
            return Err(self.refuse(
                "max_retries",
                self.max_retries.to_string(),
                "is out of bounds: use 0 to 10",
            ));
        }
        Ok(())
    }

    fn validate_directory(&self) -> Result<(), ConfigError> {
        match &self.root {
            None => {
                return Err(self.refuse(
                    "root",
                    UNSET,
                    "is needed: set it to the directory that holds the files",
                ));
            }
            Some(root) if !root.is_absolute() => {
                let value = quoted(&root.display().to_string());
                return Err(self.refuse("root", value, "is relative: write it from the root directory on"));
            }
            Some(_) => {}
        }
        self.refuse_fields_of_another_kind(
            &[
                ("endpoint", self.endpoint.is_some()),
                ("endpoint_aliases", !self.endpoint_aliases.is_empty()),
                ("region", self.region.is_some()),
                ("addressing", self.addressing.is_some()),
                ("requester_pays", self.requester_pays),
                ("access_key_id", self.access_key_id.is_some()),
                ("access_key_id_file", self.access_key_id_file.is_some()),
                ("access_key_id_env", self.access_key_id_env.is_some()),
                ("secret_access_key_file", self.secret_access_key_file.is_some()),
                ("secret_access_key_env", self.secret_access_key_env.is_some()),
                ("session_token_file", self.session_token_file.is_some()),
                ("session_token_env", self.session_token_env.is_some()),
            ],
            "has no meaning for kind = \"file\": remove it",
        )
    }

    fn validate_remote(&self) -> Result<(), ConfigError> {
        self.refuse_fields_of_another_kind(
            &[("root", self.root.is_some())],
            "has no meaning for this kind: remove it, or use kind = \"file\"",
        )?;
        if self.kind == StoreKind::Oss {
            self.refuse_fields_of_another_kind(
                &[("requester_pays", self.requester_pays)],
                "is not supported for kind = \"oss\": remove it",
            )?;
        }
        let endpoint = self.resolved_endpoint()?;
        self.resolved_region()?;
        if self.addressing == Some(Addressing::Virtual) && endpoint.is_ip_address() {
            let problem =
                "puts the bucket in front of an IP address: use \"path\", or an endpoint with a name";
            return Err(self.refuse("addressing", quoted("virtual"), problem));
        }
        if let Some(alias) = self
            .endpoint_aliases
            .iter()
            .find(|alias| !Endpoint::is_host_and_port(alias))
        {
            let problem = "is no host[:port]: write it in lower case and without http:// or a path";
            return Err(self.refuse("endpoint_aliases", quoted(alias), problem));
        }
        self.validate_credentials()
    }

    fn validate_credentials(&self) -> Result<(), ConfigError> {
        let one_of = |key: &'static str, set: &[bool]| {
            if set.iter().filter(|set| **set).count() > 1 {
                return Err(self.refuse(key, "(set twice)", "has more than one source: keep one of them"));
            }
            Ok(set.contains(&true))
        };
        let id = one_of(
            "access_key_id",
            &[
                self.access_key_id.is_some(),
                self.access_key_id_file.is_some(),
                self.access_key_id_env.is_some(),
            ],
        )?;
        let secret = one_of(
            "secret_access_key_file",
            &[
                self.secret_access_key_file.is_some(),
                self.secret_access_key_env.is_some(),
            ],
        )?;
        let token = one_of(
            "session_token_file",
            &[
                self.session_token_file.is_some(),
                self.session_token_env.is_some(),
            ],
        )?;
        if id && !secret {
            let problem = "is needed with access_key_id: name a file, or a variable in secret_access_key_env";
            return Err(self.refuse("secret_access_key_file", UNSET, problem));
        }
        if (secret || token) && !id {
            let problem =
                "is needed with a secret access key: set it, or access_key_id_file or access_key_id_env";
            return Err(self.refuse("access_key_id", UNSET, problem));
        }
        if id && self.credentials == CredentialsKind::Anonymous {
            let problem = "contradicts the configured keys: remove one or the other";
            return Err(self.refuse("credentials", quoted("anonymous"), problem));
        }
        Ok(())
    }

    fn refuse_fields_of_another_kind(
        &self,
        fields: &[(&'static str, bool)],
        problem: &str,
    ) -> Result<(), ConfigError> {
        fields
            .iter()
            .find(|(_, set)| *set)
            .map_or(Ok(()), |(key, _)| Err(self.refuse(key, "(set)", problem)))
    }

    fn refuse(&self, key: &'static str, value: impl Into<Box<str>>, problem: &str) -> ConfigError {
        ConfigError {
            store: self.name.as_str().into(),
            key,
            value: value.into(),
            problem: problem.into(),
        }
    }
}

const UNSET: &str = "(unset)";

fn quoted(value: &str) -> String {
    format!("{value:?}")
}
