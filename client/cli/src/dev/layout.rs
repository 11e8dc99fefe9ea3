//! Where a development cluster keeps what, and the configuration of its workers.
//!
//! ```text
//! DIR/secret                   the cluster's shared secret
//! DIR/locality.{log,ready}
//! DIR/node-1/cacheletd.{toml,log,ready}
//! DIR/node-1/{cache,view,socket}/
//! ```

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::arguments::{Dev, StoreKind};
use crate::failure::Failure;

/// One node's places.
#[derive(Debug, Clone)]
pub(crate) struct NodeLayout {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) config: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) ready: PathBuf,
    pub(crate) cache: PathBuf,
    /// Where the cache directory shows read-only.
    pub(crate) view: PathBuf,
    pub(crate) socket_dir: PathBuf,
}

impl NodeLayout {
    /// Of node `number`, from 1, with its directories made.
    pub(crate) fn create(dir: &Path, number: u8) -> Result<Self, Failure> {
        let name = format!("node-{number}");
        let node = dir.join(&name);
        let layout = Self {
            address: Ipv4Addr::new(127, 0, 0, number + 1),
            config: node.join("cacheletd.toml"),
            log: node.join("cacheletd.log"),
            ready: node.join("cacheletd.ready"),
            cache: node.join("cache"),
            view: node.join("view"),
            socket_dir: node.join("socket"),
            name,
        };
        for directory in [&layout.cache, &layout.view, &layout.socket_dir] {
            create_dir(directory)?;
        }
        forget(&layout.ready)?;
        Ok(layout)
    }
}

/// Makes a directory, and those above it, for this user alone.
pub(crate) fn create_dir(directory: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| {
            Failure::io(
                format_args!("making the directory {}", directory.display()),
                &error,
            )
        })
}

/// Removes a file of an earlier run.
pub(crate) fn forget(file: &Path) -> Result<(), Failure> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::io(format_args!("removing {}", file.display()), &error))
        }
        _ => Ok(()),
    }
}

/// Writes a fresh shared secret.
pub(crate) fn write_secret(file: &Path) -> Result<(), Failure> {
    forget(file)?;
    let secret = hex::encode(rand::random::<[u8; 32]>());
    fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut out| writeln!(out, "{secret}"))
        .map_err(|error| Failure::io(format_args!("writing {}", file.display()), &error))
}

/// What a worker of a development cluster is configured as. The daemon's documentation explains each field.
#[derive(Debug, Serialize)]
struct Config<'a> {
    worker: Worker<'a>,
    cache: Cache<'a>,
    local: Local<'a>,
    remote: Remote<'a>,
    admin: Listen,
    locality: Locality<'a>,
    store: [Store<'a>; 1],
}

#[derive(Debug, Serialize)]
struct Worker<'a> {
    node_name: &'a str,
    uuid: &'a str,
}

#[derive(Debug, Serialize)]
struct Cache<'a> {
    directory: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_only_path: Option<&'a Path>,
    grants: &'static str,
    quota: String,
    min_free_percent: u8,
    block_size: String,
}

#[derive(Debug, Serialize)]
struct Local<'a> {
    socket_dir: &'a Path,
}

#[derive(Debug, Serialize)]
struct Remote<'a> {
    listen: String,
    secret_file: &'a Path,
}

#[derive(Debug, Serialize)]
struct Listen {
    listen: String,
}

#[derive(Debug, Serialize)]
struct Locality<'a> {
    service: &'a str,
    http: &'a str,
}

#[derive(Debug, Serialize)]
struct Store<'a> {
    name: &'a str,
    kind: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    buckets: &'static [&'static str],
    authorization: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    addressing: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_http: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<&'a Path>,
}

/// What all workers have in common.
pub(crate) struct Cluster<'a> {
    pub(crate) dev: &'a Dev,
    pub(crate) store: StoreKind,
    pub(crate) secret_file: &'a Path,
    /// The locality service's gRPC and HTTP addresses.
    pub(crate) grpc: &'a str,
    pub(crate) http: &'a str,
    /// The directory of a file store, absolute.
    pub(crate) root: Option<&'a Path>,
}

impl Cluster<'_> {
    /// Writes a node's configuration. `protected`: its cache directory shows read-only at its view.
    pub(crate) fn write_config(&self, node: &NodeLayout, uuid: &str, protected: bool) -> Result<(), Failure> {
        let listen = format!("{}:0", node.address);
        let config = Config {
            worker: Worker {
                node_name: &node.name,
                uuid,
            },
            cache: Cache {
                directory: &node.cache,
                read_only_path: protected.then_some(node.view.as_path()),
                grants: if protected { "required" } else { "unprotected" },
                quota: format!("{}B", self.dev.quota.as_u64()),
                // A development machine's disk is nobody's node; what is full is full.
                min_free_percent: 5,
                block_size: format!("{}B", self.dev.block_bytes.as_u64()),
            },
            local: Local {
                socket_dir: &node.socket_dir,
            },
            remote: Remote {
                listen: listen.clone(),
                secret_file: self.secret_file,
            },
            admin: Listen { listen },
            locality: Locality {
                service: self.grpc,
                http: self.http,
            },
            store: [self.store()],
        };
        let text =
            toml::to_string(&config).expect("the configuration is text and numbers, tables behind values");
        fs::write(&node.config, text)
            .map_err(|error| Failure::io(format_args!("writing {}", node.config.display()), &error))
    }

    fn store(&self) -> Store<'_> {
        let authorization = if self.dev.caller_authorization {
            "caller"
        } else {
            "daemon"
        };
        let endpoint = self.dev.s3_endpoint.as_deref();
        match self.store {
            StoreKind::S3 => Store {
                name: &self.dev.store_name,
                kind: "s3",
                buckets: &["*"],
                authorization,
                endpoint,
                region: Some(&self.dev.region),
                addressing: match (self.dev.path_style, self.dev.virtual_hosted) {
                    (true, _) => Some("path"),
                    (_, true) => Some("virtual"),
                    (false, false) => None,
                },
                allow_http: endpoint.map(|endpoint| endpoint.starts_with("http://")),
                root: None,
            },
            StoreKind::File => Store {
                name: &self.dev.store_name,
                kind: "file",
                buckets: &[],
                authorization,
                endpoint: None,
                region: None,
                addressing: None,
                allow_http: None,
                root: self.root,
            },
        }
    }
}
