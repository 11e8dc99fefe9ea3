//! The daemon's configuration: one TOML file, checked into types at load.
//!
//! The environment gives facts of the downward API only (`NODE_NAME`, `WORKER_UUID`, `POD_IP`, `HOST_IP`, `POD_NAME`) and, to
//! stores, credentials. `docs/configuration.md` is written from the field texts below; a test holds them together.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use cachelet_protocol::block::{BlockSize, DEFAULT_BLOCK_BYTES};
use cachelet_protocol::config_text;
use cachelet_protocol::ids::{NodeName, WorkerUuid};
use serde::{Deserialize, Serialize};

use crate::origin::StoreConfig;

/// Everything the daemon is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who this worker is.
    #[serde(default)]
    pub worker: WorkerConfig,
    /// The cache directory and its limits.
    pub cache: CacheConfig,
    /// The domain socket for clients on this node.
    pub local: LocalConfig,
    /// The TCP side, for peers and clients elsewhere. Absent: off.
    pub remote: Option<RemoteConfig>,
    /// Health, metrics and status over HTTP.
    #[serde(default)]
    pub admin: AdminConfig,
    /// The locality service. Absent: the worker reports to nobody and fills from the origin alone.
    pub locality: Option<LocalityConfig>,
    /// How missing pages are fetched.
    #[serde(default)]
    pub fill: FillConfig,
    /// The stores whose objects are cached, one `[[store]]` table each.
    #[serde(default, rename = "store")]
    pub stores: Vec<StoreConfig>,
}

/// `[worker]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// Kubernetes node name. Default: `NODE_NAME` (`spec.nodeName`), else the machine's host name.
    pub node_name: Option<String>,
    /// Worker UUID, also the socket's name. Default: `WORKER_UUID` (`metadata.uid`), else a new one at every start.
    pub uuid: Option<String>,
    /// Pod IP, for status pages. Default: `POD_IP` (`status.podIP`).
    pub pod_ip: Option<String>,
    /// Host IP, for status pages. Default: `HOST_IP` (`status.hostIP`).
    pub host_ip: Option<String>,
    /// Availability zone. Default: `ZONE`, else empty.
    pub zone: Option<String>,
}

/// `[cache]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// Directory of the block files; this daemon's alone.
    pub directory: PathBuf,
    /// A second, read-only mount of `directory`, through which descriptors are granted. Default: none.
    pub read_only_path: Option<PathBuf>,
    /// `required` (default): without a read-only mount that passes the self-test no descriptor is granted, clients read
    /// inline. `unprotected`: grant without it, for a development machine only: a client that runs as root, or as the daemon's
    /// user, could then write to cached files.
    #[serde(default)]
    pub grants: Grants,
    /// Most bytes the cache may take, unlinked files that clients still hold included. Default: 100 GiB.
    #[serde(default = "default_quota")]
    pub quota: ByteSize,
    /// Whether the file system is the cache's alone: decides the default of `min_free_percent`. Default: false.
    #[serde(default)]
    pub dedicated: bool,
    /// Percentage of the file system that stays free. Default: 20, or 5 on a dedicated file system. kubelet starts evicting
    /// pods at 10 to 15 % free.
    pub min_free_percent: Option<u8>,
    /// Size of blocks: a power of two from 1 MiB to 128 MiB, the same on every worker. Default: 128 MiB.
    #[serde(default = "default_block_size")]
    pub block_size: ByteSize,
    /// Most descriptors of block files the daemon keeps open; idle ones are closed first. Never more than a quarter of the
    /// process's limit of descriptors. Default: 4096.
    #[serde(default = "default_max_open_files")]
    pub max_open_files: usize,
    /// A disk whose operations take longer than this, again and again, is taken out of use until it is faster: reads go to the
    /// origin meanwhile. Writes may take four times as long. Default: 500 ms, after which JVM clients no longer wait either.
    /// 0 s: never.
    #[serde(default = "default_slow_disk", with = "humantime_serde")]
    pub slow_disk: Duration,
    /// How long a disk that was taken out of use, for being slow or for its errors, is left alone before it is tried again; each
    /// try in vain doubles it, to 10 minutes at most. Default: 30 s.
    #[serde(default = "default_disk_retry", with = "humantime_serde")]
    pub disk_retry: Duration,
    /// How many bytes a second are read again from the disk, and compared with their checksums, to find damage before a reader
    /// does. Default: 1 MiB, as HDFS's block scanner. 0: none.
    #[serde(default = "default_scrub_rate")]
    pub scrub_rate: ByteSize,
    /// The least time from the beginning of one such pass over the whole cache to that of the next. Default: 3 weeks (21 days),
    /// as HDFS's.
    #[serde(default = "default_scrub_period", with = "humantime_serde")]
    pub scrub_period: Duration,
    /// How long to stand by, ready to take over, while another daemon holds `directory`: the one that this one replaces in a
    /// rollout that starts the new pod first (`maxSurge`). Default: 0 s, which refuses to start at once.
    #[serde(default, with = "humantime_serde")]
    pub takeover_wait: Duration,
}

/// Whether descriptors are granted without the protection of a read-only mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grants {
    /// Only through a read-only mount.
    #[default]
    Required,
    /// Also without.
    Unprotected,
}

/// `[local]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalConfig {
    /// Directory of the domain socket, shared with clients (who mount it read-only). The socket's name is the worker UUID.
    pub socket_dir: PathBuf,
    /// Group (a number) that may connect. Default: the daemon's own group.
    pub socket_group: Option<u32>,
    /// Most sessions at a time. Default: 4096.
    #[serde(default = "default_max_sessions")]
    pub max_sessions: usize,
    /// Most bytes of granted files one session may hold, as a percentage of `cache.quota`. Default: 50.
    #[serde(default = "default_held_percent")]
    pub max_held_percent: u8,
    /// Objects up to this size are sent with the answer to `Open`. Default: 16 KiB.
    #[serde(default = "default_inline")]
    pub inline_size: ByteSize,
    /// Clients close descriptors that were idle for this long. Default: 60 s.
    #[serde(default = "default_idle_close", with = "humantime_serde")]
    pub idle_close: Duration,
}

/// `[remote]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteConfig {
    /// Address to listen on, for example `0.0.0.0:7001`.
    pub listen: SocketAddr,
    /// `host:port` that other workers connect to. Default: the pod IP, else the listening IP, with the listening port.
    pub advertise: Option<String>,
    /// File with the secret that every caller must present; the same on every worker. At least 16 characters.
    pub secret_file: PathBuf,
    /// Time to the first byte of a peer before the origin is asked instead. Default: 200 ms.
    #[serde(default = "default_peer_timeout", with = "humantime_serde")]
    pub peer_first_byte_timeout: Duration,
}

/// `[admin]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Address of `/healthz`, `/readyz`, `/metrics` and `/status`. Default: `127.0.0.1:7002`.
    pub listen: SocketAddr,
    /// How long a stopping daemon waits for requests to end. Default: 20 s.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7002)),
            drain_timeout: Duration::from_secs(20),
        }
    }
}

/// `[locality]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalityConfig {
    /// URL of the service's gRPC side, for example `http://cachelet-locality:7071`. Every address behind the name is
    /// reported to.
    pub service: String,
    /// `host:port` of the service's HTTP side, told to clients. Default: empty.
    #[serde(default)]
    pub http: String,
}

/// `[fill]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FillConfig {
    /// Most bytes of one ranged GET. Default: 8 MiB.
    pub max_request: ByteSize,
    /// Memory for pages on their way to the disk. Default: 64 MiB.
    pub memory: ByteSize,
    /// How long a reader waits for a fill. Default: 60 s.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for FillConfig {
    fn default() -> Self {
        Self {
            max_request: ByteSize::mib(8),
            memory: ByteSize::mib(64),
            timeout: Duration::from_secs(60),
        }
    }
}

fn default_quota() -> ByteSize {
    ByteSize::gib(100)
}
fn default_block_size() -> ByteSize {
    ByteSize::b(DEFAULT_BLOCK_BYTES)
}
fn default_max_open_files() -> usize {
    4096
}
fn default_scrub_rate() -> ByteSize {
    ByteSize::mib(1)
}
fn default_scrub_period() -> Duration {
    Duration::from_secs(21 * 24 * 3600)
}
fn default_slow_disk() -> Duration {
    Duration::from_millis(500)
}
fn default_disk_retry() -> Duration {
    Duration::from_secs(30)
}
fn default_max_sessions() -> usize {
    4096
}
fn default_held_percent() -> u8 {
    50
}
fn default_inline() -> ByteSize {
    ByteSize::kib(16)
}
fn default_idle_close() -> Duration {
    Duration::from_secs(60)
}
fn default_peer_timeout() -> Duration {
    Duration::from_millis(200)
}

/// A configuration that the daemon does not start with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read configuration file {path}: {source}; check --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key or value that is not known.
    #[error("configuration file {path}: {message} (docs/configuration.md)")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, key, value and remedy.
        message: String,
    },
    /// A value that cannot be meant.
    #[error("{key} = {value}: {reason}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// Why it is refused, and the remedy.
        reason: String,
    },
    /// A store's table is not usable.
    #[error(transparent)]
    Store(#[from] crate::origin::ConfigError),
}

/// Environment variables, as a function so that tests can give their own.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Who this worker is, with the downward API's facts filled in.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Kubernetes node name.
    pub node: NodeName,
    /// Worker UUID.
    pub uuid: WorkerUuid,
    /// Pod IP; empty outside Kubernetes.
    pub pod_ip: String,
    /// Host IP; empty outside Kubernetes.
    pub host_ip: String,
    /// Availability zone; may be empty.
    pub zone: String,
}

impl Config {
    /// Reads and checks a configuration file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_text(path, &text)
    }

    fn from_text(path: &Path, text: &str) -> Result<Self, Error> {
        let config: Self = toml::from_str(text).map_err(|error| Error::Parse {
            path: path.to_owned(),
            message: config_text::problem(text, error.span(), error.message()),
        })?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), Error> {
        let invalid = |key, value: &dyn std::fmt::Display, reason: String| {
            Err(Error::Invalid {
                key,
                value: value.to_string(),
                reason,
            })
        };
        if let Err(error) = self.block_size() {
            return invalid("cache.block_size", &self.cache.block_size, error.to_string());
        }
        let least = self.cache.block_size.as_u64().saturating_mul(2).max(16 << 20);
        if self.cache.quota.as_u64() < least {
            let reason = format!(
                "too small for two blocks; at least {} is needed",
                ByteSize::b(least)
            );
            return invalid("cache.quota", &self.cache.quota, reason);
        }
        if self.min_free_percent() > 95 {
            let reason = "more than 95 % free leaves no room for a cache".to_owned();
            return invalid("cache.min_free_percent", &self.min_free_percent(), reason);
        }
        if self.cache.grants == Grants::Required
            && self.cache.read_only_path.as_ref() == Some(&self.cache.directory)
        {
            let reason = "is the same path as cache.directory; mount the directory a second time, read-only"
                .to_owned();
            return invalid("cache.read_only_path", &self.cache.directory.display(), reason);
        }
        if self.cache.scrub_period < Duration::from_secs(1) {
            let value = humantime_serde::re::humantime::format_duration(self.cache.scrub_period);
            let reason = "at least 1 s; scrub_rate = \"0B\" switches scrubbing off".to_owned();
            return invalid("cache.scrub_period", &value, reason);
        }
        let retry = self.cache.disk_retry;
        if !(Duration::from_millis(100)..=Duration::from_secs(600)).contains(&retry) {
            let value = humantime_serde::re::humantime::format_duration(retry);
            let reason = "expected 100 ms to 10 minutes".to_owned();
            return invalid("cache.disk_retry", &value, reason);
        }
        if !(1..=100).contains(&self.local.max_held_percent) {
            return invalid(
                "local.max_held_percent",
                &self.local.max_held_percent,
                "expected 1 to 100".to_owned(),
            );
        }
        if self.local.inline_size.as_u64() > 1 << 20 {
            return invalid(
                "local.inline_size",
                &self.local.inline_size,
                "at most 1 MiB (one page)".to_owned(),
            );
        }
        if self.fill.max_request.as_u64() < 1 << 20 {
            return invalid(
                "fill.max_request",
                &self.fill.max_request,
                "at least 1 MiB (one page)".to_owned(),
            );
        }
        if self.fill.memory < self.fill.max_request {
            let reason = format!("smaller than fill.max_request ({})", self.fill.max_request);
            return invalid("fill.memory", &self.fill.memory, reason);
        }
        if self.stores.is_empty() {
            let reason = "no store is configured; add a [[store]] table (docs/configuration.md)".to_owned();
            return invalid("store", &"[]", reason);
        }
        if let Some(locality) = &self.locality
            && !locality.service.starts_with("http://")
        {
            let reason = "expected a URL such as http://cachelet-locality:7071".to_owned();
            return invalid("locality.service", &locality.service, reason);
        }
        for store in &self.stores {
            store.validate()?;
        }
        Ok(())
    }

    /// The block size as the type that does the arithmetic.
    pub fn block_size(&self) -> Result<BlockSize, cachelet_protocol::block::InvalidBlockSize> {
        BlockSize::new(self.cache.block_size.as_u64())
    }

    /// The share of the file system that stays free, in percent.
    pub fn min_free_percent(&self) -> u8 {
        self.cache
            .min_free_percent
            .unwrap_or(if self.cache.dedicated { 5 } else { 20 })
    }

    /// Who this worker is: the file's values, else the downward API's, else the machine's.
    pub fn identity(&self, environment: Environment<'_>) -> Result<Identity, Error> {
        let fact = |value: &Option<String>, name: &str| {
            value
                .clone()
                .or_else(|| environment(name))
                .filter(|value| !value.is_empty())
        };
        let node = fact(&self.worker.node_name, "NODE_NAME").unwrap_or_else(|| {
            nix::unistd::gethostname()
                .ok()
                .and_then(|name| name.into_string().ok())
                .unwrap_or_else(|| "localhost".into())
        });
        let node = NodeName::new(node.clone()).map_err(|error| Error::Invalid {
            key: "worker.node_name",
            value: node,
            reason: error.reason.to_owned(),
        })?;
        let uuid = match fact(&self.worker.uuid, "WORKER_UUID") {
            Some(text) => {
                text.parse()
                    .map_err(|error: cachelet_protocol::ids::InvalidId| Error::Invalid {
                        key: "worker.uuid",
                        value: text,
                        reason: error.reason.to_owned(),
                    })?
            }
            None => WorkerUuid::from_bytes(*uuid::Uuid::new_v4().as_bytes()),
        };
        Ok(Identity {
            node,
            uuid,
            pod_ip: fact(&self.worker.pod_ip, "POD_IP").unwrap_or_default(),
            host_ip: fact(&self.worker.host_ip, "HOST_IP").unwrap_or_default(),
            zone: fact(&self.worker.zone, "ZONE").unwrap_or_default(),
        })
    }
}

impl std::str::FromStr for Config {
    type Err = Error;

    /// A configuration that is in no file.
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::from_text(Path::new("(text)"), text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        [cache]
        directory = "/var/lib/cachelet"
        [local]
        socket_dir = "/run/cachelet"
        [[store]]
        name = "data"
        kind = "file"
        root = "/data"
    "#;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::from_text(Path::new("test.toml"), text)
    }

    #[test]
    fn a_minimal_file_has_the_documented_defaults() {
        let config = parse(MINIMAL).unwrap();
        assert_eq!(config.min_free_percent(), 20);
        assert_eq!(config.cache.grants, Grants::Required);
        assert_eq!(config.block_size().unwrap().bytes(), 128 << 20);
        assert_eq!(config.local.idle_close, Duration::from_secs(60));
        assert!(config.remote.is_none() && config.locality.is_none());
    }

    #[test]
    fn a_dumped_configuration_loads_again() {
        let config = parse(MINIMAL).unwrap();
        let dumped = toml::to_string(&config).unwrap();
        assert_eq!(toml::to_string(&parse(&dumped).unwrap()).unwrap(), dumped);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = parse(&format!("{MINIMAL}\n[fill]\nmemroy = \"1GiB\""))
            .unwrap_err()
            .to_string();
        assert!(error.contains("memroy") && error.contains("test.toml"), "{error}");
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused_with_key_and_remedy() {
        for (from, to, key) in [
            (
                "directory = ",
                "block_size = \"3MiB\"\n directory = ",
                "cache.block_size",
            ),
            ("directory = ", "quota = \"1MiB\"\n directory = ", "cache.quota"),
            (
                "directory = ",
                "min_free_percent = 99\n directory = ",
                "cache.min_free_percent",
            ),
            (
                "directory = ",
                "read_only_path = \"/var/lib/cachelet\"\n directory = ",
                "cache.read_only_path",
            ),
            (
                "socket_dir",
                "max_held_percent = 0\n socket_dir",
                "local.max_held_percent",
            ),
            (
                "directory = ",
                "disk_retry = \"0s\"\n directory = ",
                "cache.disk_retry",
            ),
            (
                "directory = ",
                "scrub_period = \"0s\"\n directory = ",
                "cache.scrub_period",
            ),
            (
                "[local]",
                "[locality]\nservice = \"cachelet:1\"\n[local]",
                "locality.service",
            ),
        ] {
            let error = parse(&MINIMAL.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.starts_with(key), "{key}: {error}");
        }
    }

    #[test]
    fn the_downward_api_names_the_worker_unless_the_file_does() {
        let uuid = "0b4c9d7e-12ab-4cde-8f01-23456789abcd";
        let environment = |name: &str| match name {
            "NODE_NAME" => Some("node-7".to_owned()),
            "WORKER_UUID" => Some(uuid.to_owned()),
            "POD_IP" => Some("10.0.0.7".to_owned()),
            _ => None,
        };
        let mut config = parse(MINIMAL).unwrap();
        let identity = config.identity(&environment).unwrap();
        assert_eq!(
            (identity.node.as_str(), identity.pod_ip.as_str()),
            ("node-7", "10.0.0.7")
        );
        assert_eq!(identity.uuid.to_string(), uuid);
        config.worker.node_name = Some("other".to_owned());
        assert_eq!(config.identity(&environment).unwrap().node.as_str(), "other");
        config.worker.uuid = Some("nonsense".to_owned());
        assert!(
            config
                .identity(&environment)
                .unwrap_err()
                .to_string()
                .starts_with("worker.uuid = nonsense")
        );
    }

    #[test]
    fn outside_kubernetes_the_host_and_a_new_uuid_name_the_worker() {
        let config = parse(MINIMAL).unwrap();
        let (first, second) = (
            config.identity(&|_| None).unwrap(),
            config.identity(&|_| None).unwrap(),
        );
        assert_eq!(first.node, second.node);
        assert_ne!(first.uuid, second.uuid);
    }
}
