//! The service's configuration: one TOML file, defaults that work, everything checked before anything is bound.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use cachelet_protocol::config_text;
use serde::{Deserialize, Serialize};

/// All settings. Each has a default; [`FIELDS`] documents them one by one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the HTTP side listens.
    pub http: SocketAddr,
    /// Where workers report, by gRPC.
    pub grpc: SocketAddr,
    /// A worker that says nothing for this long is lost.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How often workers are told to send heartbeats.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// How long a lost worker keeps its rank.
    #[serde(with = "humantime_serde")]
    pub lost_rank_kept: Duration,
    /// How long a fresh replica waits for a worker before it calls itself ready.
    #[serde(with = "humantime_serde")]
    pub ready_grace: Duration,
    /// How long open requests may take after SIGTERM.
    #[serde(with = "humantime_serde")]
    pub shutdown_grace: Duration,
    /// How long a client may take for a request's header, for its body, and to read on in its answer.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Longest request body.
    #[serde(serialize_with = "as_bytes")]
    pub max_request_body_bytes: ByteSize,
    /// Most paths in a request.
    pub max_request_paths: usize,
    /// Most candidates in a request.
    pub max_request_candidates: usize,
    /// Most blocks in an answer.
    pub max_answer_blocks: usize,
    /// Most nodes for a block.
    pub max_answer_nodes: usize,
    /// Most HTTP connections.
    pub max_http_connections: usize,
    /// What is logged.
    pub log: String,
    /// How it is logged.
    pub log_format: LogFormat,
}

/// How lines are logged, on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What a setting means: its key, then its text with unit and default.
pub const FIELDS: &[(&str, &str)] = &[
    (
        "http",
        "Address and port of the HTTP side: locations, status, metrics, health. Port 0: any free one. Default: 0.0.0.0:7070.",
    ),
    (
        "grpc",
        "Address and port of the gRPC side, where workers report. Port 0: any free one. Default: 0.0.0.0:7071.",
    ),
    (
        "lease",
        "A worker that says nothing for this long is left out of answers. Duration, 100ms to 10m, at least twice `heartbeat`. Default: 10s.",
    ),
    (
        "heartbeat",
        "How often workers are told to send heartbeats. Duration, at least 10ms. Default: 2s.",
    ),
    (
        "lost_rank_kept",
        "How long the blocks of a lost worker stay planned on its node, so that a restart moves none. Duration, 0s to 1h. Default: 2m.",
    ),
    (
        "ready_grace",
        "A fresh replica is ready when a worker's full report is complete, or after this long without any worker. Duration, 0s to 10m. Default: 10s.",
    ),
    (
        "shutdown_grace",
        "How long open requests may take after SIGTERM. Duration, 0s to 10m. Default: 10s.",
    ),
    (
        "request_timeout",
        "How long a client may take to send a request's header, then its body, and how long it may leave its answer unread. Duration, 10ms to 10m. Default: 10s.",
    ),
    (
        "max_request_body_bytes",
        "Longest request body. Bytes, or a text such as \"16MiB\"; 1KiB to 1GiB. Default: 16777216 (16 MiB).",
    ),
    (
        "max_request_paths",
        "Most paths in one request. 1 to 1000000. Default: 10000.",
    ),
    (
        "max_request_candidates",
        "Most candidates in one request. 1 to 1000000. Default: 20000.",
    ),
    (
        "max_answer_blocks",
        "Most blocks in one answer, over all of its paths. 1 to 10000000. Default: 200000.",
    ),
    (
        "max_answer_nodes",
        "Most nodes that are named for one block. 1 to 1000. Default: 4.",
    ),
    (
        "max_http_connections",
        "Most HTTP connections at a time; more wait to be accepted. 1 to 100000. Default: 1024.",
    ),
    (
        "log",
        "What is logged: a level, or directives such as \"info,cachelet_locality=debug\". Default: info.",
    ),
    ("log_format", "How it is logged: text or json. Default: text."),
];

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}; check `--config`")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML, has an unknown key, or a value of the wrong type.
    #[error("cannot understand the configuration file {path}: {message} (--dump-config shows every key)")]
    Parse {
        /// The file.
        path: String,
        /// Line, key, value and remedy.
        message: String,
    },
    /// A value is out of its range.
    #[error("configuration key `{key}` is {value}: {problem}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        problem: String,
    },
}

impl Default for Config {
    fn default() -> Self {
        let any = |port: u16| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            http: any(7070),
            grpc: any(7071),
            lease: Duration::from_secs(10),
            heartbeat: Duration::from_secs(2),
            lost_rank_kept: Duration::from_mins(2),
            ready_grace: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            max_request_body_bytes: ByteSize::mib(16),
            max_request_paths: 10_000,
            max_request_candidates: 20_000,
            max_answer_blocks: 200_000,
            max_answer_nodes: 4,
            max_http_connections: 1024,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

impl Config {
    /// Reads a file. Ranges are checked by [`Config::validate`], once the command line had its say.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: shown.clone(),
            source,
        })?;
        toml::from_str(&text).map_err(|error| Error::Parse {
            path: shown,
            message: config_text::problem(&text, error.span(), error.message()),
        })
    }

    /// Checks every value's range.
    pub fn validate(&self) -> Result<(), Error> {
        let minute = Duration::from_mins(1);
        let ms = Duration::from_millis;
        duration("lease", self.lease, ms(100), minute * 10)?;
        duration("heartbeat", self.heartbeat, ms(10), minute * 5)?;
        if self.heartbeat * 2 > self.lease {
            return Err(Error::Value {
                key: "lease",
                value: humantime_serde::re::humantime::format_duration(self.lease).to_string(),
                problem: "must be at least twice `heartbeat`, or one late heartbeat loses a worker"
                    .to_owned(),
            });
        }
        duration("lost_rank_kept", self.lost_rank_kept, Duration::ZERO, minute * 60)?;
        duration("ready_grace", self.ready_grace, Duration::ZERO, minute * 10)?;
        duration("shutdown_grace", self.shutdown_grace, Duration::ZERO, minute * 10)?;
        duration("request_timeout", self.request_timeout, ms(10), minute * 10)?;
        let body = self.max_request_body_bytes.as_u64() as usize;
        number("max_request_body_bytes", body, 1 << 10, 1 << 30)?;
        number("max_request_paths", self.max_request_paths, 1, 1_000_000)?;
        number(
            "max_request_candidates",
            self.max_request_candidates,
            1,
            1_000_000,
        )?;
        number("max_answer_blocks", self.max_answer_blocks, 1, 10_000_000)?;
        number("max_answer_nodes", self.max_answer_nodes, 1, 1_000)?;
        number("max_http_connections", self.max_http_connections, 1, 100_000)?;
        self.log
            .parse::<tracing_subscriber::EnvFilter>()
            .map(drop)
            .map_err(|error| Error::Value {
                key: "log",
                value: format!("{:?}", self.log),
                problem: format!("{error}; use error, warn, info, debug, trace or directives"),
            })
    }

    /// The settings as a TOML file that explains itself, and reads back as this.
    pub fn dump(&self) -> String {
        let values = toml::Table::try_from(self).expect("every setting has a TOML form");
        let line = |(key, text): &(&str, &str)| {
            let value = values.get(*key).expect("FIELDS names every setting (tested)");
            format!("# {text}\n{key} = {value}\n")
        };
        FIELDS.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

fn duration(key: &'static str, value: Duration, least: Duration, most: Duration) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let shown = |value| humantime_serde::re::humantime::format_duration(value).to_string();
    Err(Error::Value {
        key,
        value: shown(value),
        problem: format!("expected {} to {}", shown(least), shown(most)),
    })
}

fn number(key: &'static str, value: usize, least: usize, most: usize) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::Value {
        key,
        value: value.to_string(),
        problem: format!("expected {least} to {most}"),
    })
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde asks for"
)]
fn as_bytes<S: serde::Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(size.as_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|e| e.to_string())?;
        config.validate().map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn an_empty_file_is_the_default_and_the_default_is_valid() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn the_dump_reads_back_and_names_every_setting_with_its_default() {
        let config = Config::default();
        let dump = config.dump();
        assert_eq!(parse(&dump).unwrap(), config);
        let table = toml::Table::try_from(&config).unwrap();
        let mut keys: Vec<&str> = table.keys().map(String::as_str).collect();
        let mut documented: Vec<&str> = FIELDS.iter().map(|(key, _)| *key).collect();
        keys.sort_unstable();
        documented.sort_unstable();
        assert_eq!(keys, documented);
        for (key, text) in FIELDS {
            let value = table[*key].to_string();
            let default = format!("Default: {}", value.trim_matches('"'));
            assert!(text.contains(&default), "{key}: {text} does not say {default:?}");
        }
    }

    #[test]
    fn a_wrong_value_names_its_key_and_what_it_may_be() {
        for (text, named) in [
            ("lease = \"1ms\"", "`lease` is 1ms: expected 100ms to 10m"),
            ("lease = \"3s\"", "at least twice `heartbeat`"),
            ("lease = 10", "invalid type"),
            ("leese = \"10s\"", "unknown field `leese`"),
            (
                "max_request_paths = 0",
                "`max_request_paths` is 0: expected 1 to 1000000",
            ),
            ("max_request_body_bytes = \"1\"", "`max_request_body_bytes` is 1"),
            ("max_request_body_bytes = \"many\"", "max_request_body_bytes"),
            ("http = \"localhost\"", "http"),
            ("log = \"no=such=filter\"", "`log`"),
            ("log_format = \"xml\"", "unknown variant `xml`"),
            ("[http", "parse error"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(named), "{text}: {message}");
        }
    }

    #[test]
    fn sizes_are_numbers_or_text_with_a_unit() {
        assert_eq!(
            parse("max_request_body_bytes = \"2MiB\"").unwrap(),
            parse("max_request_body_bytes = 2097152").unwrap()
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::read(Path::new("no/such/file.toml"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no/such/file.toml") && error.contains("--config"),
            "{error}"
        );
    }
}
