//! The locality service's HTTP side, as far as this program asks it.

use std::time::Duration;

use cachelet_protocol::ids::ObjectPath;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::arguments::Common;
use crate::connect;
use crate::failure::{Failure, Kind};

const TIMEOUT: Duration = Duration::from_secs(10);

/// One object's locations.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Location {
    pub(crate) path: String,
    /// Whether any node reported a block of it.
    pub(crate) known: bool,
    /// Why there are no blocks in the answer.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    #[serde(default)]
    pub(crate) error: Option<ErrorDetail>,
    #[serde(default)]
    pub(crate) size_bytes: Option<u64>,
    #[serde(default)]
    pub(crate) blocks: Vec<Block>,
}

/// A failure as the service words it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ErrorDetail {
    pub(crate) code: String,
    pub(crate) message: String,
}

/// One block's nodes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Block {
    pub(crate) index: u32,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) nodes: Vec<Node>,
}

/// A node for a block.
#[allow(clippy::struct_field_names, reason = "the service's JSON names them")]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) node: String,
    /// `resident` or `planned`.
    pub(crate) state: String,
    /// `none`, `some`, `half` or `all`.
    pub(crate) residency: String,
}

/// One worker of the cluster.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Worker {
    pub(crate) node: String,
    pub(crate) uuid: String,
    pub(crate) state: String,
    /// `host:port` of its TCP side; empty: off.
    #[serde(default)]
    pub(crate) data_address: String,
    /// `host:port` of its admin side; empty: off.
    #[serde(default)]
    pub(crate) admin_address: String,
    pub(crate) capacity_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) blocks: u64,
    pub(crate) sessions: u32,
    pub(crate) local_bytes: u64,
    pub(crate) peer_bytes: u64,
    pub(crate) origin_bytes: u64,
}

/// What to locate.
#[derive(Debug, Serialize)]
pub(crate) struct PathRequest {
    pub(crate) path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) etag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) size_bytes: Option<u64>,
}

impl PathRequest {
    pub(crate) fn new(path: &ObjectPath) -> Self {
        Self {
            path: path.to_string(),
            etag: None,
            size_bytes: None,
        }
    }
}

/// See the module's text.
pub(crate) struct Service {
    base: String,
    agent: ureq::Agent,
}

impl Service {
    /// At the address that the command line names, else where this node's daemon says.
    pub(crate) fn find(common: &Common) -> Result<Self, Failure> {
        let address = match &common.service {
            Some(address) => address.clone(),
            None => {
                let worker = connect::client(common, false)?.connect()?;
                if worker.service_address.is_empty() {
                    return Err(Failure::new(
                        Kind::Unavailable,
                        "this node's daemon knows no locality service: pass --service http://HOST:PORT",
                    ));
                }
                worker.service_address
            }
        };
        Ok(Self::at(&address))
    }

    /// At an address, with or without `http://`.
    pub(crate) fn at(address: &str) -> Self {
        let address = address.trim_end_matches('/');
        let base = if address.contains("://") {
            address.to_owned()
        } else {
            format!("http://{address}")
        };
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            // The service is of this cluster; a proxy is for what lies beyond it.
            .proxy(None)
            .build();
        Self {
            base,
            agent: config.into(),
        }
    }

    pub(crate) fn status_page(&self) -> String {
        format!("{}/status", self.base)
    }

    /// Where blocks are, as the service answers.
    pub(crate) fn locations(
        &self,
        candidates: Option<&[String]>,
        paths: &[PathRequest],
    ) -> Result<Value, Failure> {
        #[derive(Serialize)]
        struct Request<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            candidates: Option<&'a [String]>,
            paths: &'a [PathRequest],
        }
        let url = format!("{}/v1/locations", self.base);
        let sent = self.agent.post(&url).send_json(Request { candidates, paths });
        self.answer(&url, sent)
    }

    /// The workers, as the service answers.
    pub(crate) fn nodes(&self) -> Result<Value, Failure> {
        let url = format!("{}/v1/nodes", self.base);
        let sent = self.agent.get(&url).call();
        self.answer(&url, sent)
    }

    /// What a worker says of itself, asked at its admin side.
    pub(crate) fn worker_status(&self, node: &str) -> Result<Value, Failure> {
        let url = self.status_page();
        let unavailable = |error: ureq::Error| {
            let message = format!(
                "asking the worker of node {node} at {url} failed: {error}; is its admin side reachable from here?"
            );
            Failure::new(Kind::Unavailable, message)
        };
        let mut response = self.agent.get(&url).call().map_err(unavailable)?;
        if !response.status().is_success() {
            let message = format!(
                "the worker of node {node} answered {} at {url}",
                response.status()
            );
            return Err(Failure::new(Kind::Temporary, message));
        }
        response.body_mut().read_json().map_err(unavailable)
    }

    /// Whether a health address answers 200.
    pub(crate) fn answers(&self, path: &str) -> bool {
        let url = format!("{}{path}", self.base);
        self.agent
            .get(&url)
            .call()
            .is_ok_and(|response| response.status().is_success())
    }

    fn answer(
        &self,
        url: &str,
        sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Value, Failure> {
        let unavailable = |error: &dyn std::fmt::Display| {
            let message = format!(
                "asking the locality service at {} failed: {error}; is --service right and cachelet-locality running?",
                self.base
            );
            Failure::new(Kind::Unavailable, message)
        };
        let mut response = sent.map_err(|error| unavailable(&error))?;
        let status = response.status();
        let body = response
            .body_mut()
            .with_config()
            .limit(1 << 30)
            .read_json::<Value>()
            .map_err(|error| unavailable(&error))?;
        if status.is_success() {
            return Ok(body);
        }
        let message = body["error"]["message"].as_str().unwrap_or("no reason given");
        let kind = match status.as_u16() {
            400 | 413 => Kind::Usage,
            404 => Kind::NotFound,
            500.. => Kind::Temporary,
            _ => Kind::Internal,
        };
        Err(Failure::new(kind, format!("{url} answered {status}: {message}")))
    }
}

/// Reads part of an answer into its type.
pub(crate) fn part<T: serde::de::DeserializeOwned>(answer: &Value, name: &str) -> Result<T, Failure> {
    whole(
        answer[name].clone(),
        format_args!("the locality service's {name:?}"),
    )
}

/// Reads an answer into its type.
pub(crate) fn whole<T: serde::de::DeserializeOwned>(
    answer: Value,
    what: impl std::fmt::Display,
) -> Result<T, Failure> {
    serde_json::from_value(answer).map_err(|error| {
        let message = format!("{what} is not understood: {error}; are versions mixed?");
        Failure::new(Kind::Internal, message)
    })
}
