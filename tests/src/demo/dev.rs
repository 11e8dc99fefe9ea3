//! The cluster under the demo: `cachelet dev`, as a user runs it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::data::{DIRECTORY_STORE, DemoObject};
use super::{Error, Stop};
use crate::{Process, REGION, S3Server};

/// How long a part of the cluster may take to start or to end.
const DEADLINE: Duration = Duration::from_mins(1);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Where the objects are.
#[derive(Debug, Clone)]
pub(super) enum Store {
    /// The endpoint of an S3 server.
    S3(String),
    /// A directory.
    Directory(PathBuf),
}

/// One worker, as the ready file of `cachelet dev` describes it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Node {
    #[serde(rename = "node")]
    name: String,
    pub(super) socket_dir: PathBuf,
    /// `host:port`.
    admin: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Service {
    /// `host:port`.
    http: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Ready {
    nodes: Vec<Node>,
    service: Service,
    status_page: String,
}

/// Bytes that the workers brought in so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fills {
    pub(super) origin: u64,
    pub(super) peer: u64,
    /// Fetches that have not ended yet.
    pub(super) in_flight: u64,
}

/// The running cluster.
#[derive(Debug)]
pub(super) struct DevCluster {
    store: Store,
    arguments: Vec<String>,
    dir: PathBuf,
    logs: PathBuf,
    dev: Process,
    ready: Ready,
}

impl DevCluster {
    /// Starts two workers over `store`, with everything they keep in `dir` and further `arguments` of `cachelet dev`.
    pub(super) fn start(
        store: Store,
        arguments: &[&str],
        dir: &Path,
        logs: &Path,
        stop: &Stop,
    ) -> Result<Self, Error> {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let (dev, ready) = start(&store, &arguments, dir, logs, stop)?;
        Ok(Self {
            store,
            arguments,
            dir: dir.to_owned(),
            logs: logs.to_owned(),
            dev,
            ready,
        })
    }

    /// Ends it in order (SIGTERM) and starts it again over the same directory.
    pub(super) fn restart(&mut self, stop: &Stop) -> Result<(), Error> {
        self.end()?;
        (self.dev, self.ready) = start(&self.store, &self.arguments, &self.dir, &self.logs, stop)?;
        Ok(())
    }

    pub(super) fn nodes(&self) -> &[Node] {
        &self.ready.nodes
    }

    pub(super) fn node(&self, index: usize) -> &Node {
        &self.ready.nodes[index]
    }

    pub(super) fn status_url(&self) -> &str {
        &self.ready.status_page
    }

    /// What all workers fetched since they started.
    pub(super) fn fills(&self) -> Result<Fills, Error> {
        let mut fills = Fills::default();
        for node in &self.ready.nodes {
            let url = format!("http://{}/status", node.admin);
            let status = get_json(&url)?;
            let count = |pointer: &str| {
                status
                    .pointer(pointer)
                    .and_then(Value::as_u64)
                    .ok_or_else(|| Error::Cluster(format!("{url} has no number at {pointer}")))
            };
            fills.origin += count("/fill_bytes/origin")?;
            fills.peer += count("/fill_bytes/peer")?;
            fills.in_flight += count("/fetches_in_flight")?;
        }
        Ok(fills)
    }

    /// Waits until the locality service names a node as holding every block of every object.
    pub(super) fn wait_until_resident(
        &self,
        objects: &[DemoObject],
        node: usize,
        deadline: Duration,
        stop: &Stop,
    ) -> Result<(), Error> {
        let url = format!("http://{}/v1/locations", self.ready.service.http);
        let name = &self.node(node).name;
        let paths: Vec<&str> = objects.iter().map(|object| object.path.as_str()).collect();
        let request = json!({"paths": paths, "candidates": [name]});
        let started = Instant::now();
        loop {
            stop.check()?;
            let answer = post_json(&url, &request)?;
            let missing = objects
                .iter()
                .zip(answer["locations"].as_array().into_iter().flatten())
                .find(|(object, location)| object.size > 0 && !is_resident(location, name))
                .map(|(object, _)| &object.path);
            match missing {
                None => return Ok(()),
                Some(path) if started.elapsed() > deadline => {
                    return Err(Error::Cluster(format!(
                        "the locality service did not learn within {} s that {name} holds {path}",
                        deadline.as_secs()
                    )));
                }
                Some(_) => std::thread::sleep(POLL_INTERVAL),
            }
        }
    }

    /// Fails when a part of the cluster has ended by itself.
    pub(super) fn check_running(&mut self) -> Result<(), Error> {
        if self.dev.is_running() {
            Ok(())
        } else {
            Err(Error::Cluster(format!(
                "cachelet dev has ended: {}",
                last_line(&self.dev)
            )))
        }
    }

    /// What to try by hand while everything runs.
    pub(super) fn how_to_go_on(&self, objects: &[DemoObject]) -> String {
        let example = objects
            .iter()
            .max_by_key(|object| object.size)
            .map_or("", |object| object.path.as_str());
        let cachelet = crate::process::target_dir().join("cachelet");
        let (cachelet, http) = (cachelet.display(), &self.ready.service.http);
        let sockets = self.node(0).socket_dir.display();
        format!(
            "\nEverything keeps running until Ctrl-C (or kill {pid}). In another terminal:\n  \
             {cachelet} status --service http://{http}\n  \
             {cachelet} locate --service http://{http} {example}\n  \
             {cachelet} cat --socket-dir {sockets} {example} | sha256sum",
            pid = std::process::id(),
        )
    }

    /// Ends it in order.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        let status = self.dev.terminate(DEADLINE);
        if status.success() {
            Ok(())
        } else {
            Err(Error::Cluster(format!(
                "cachelet dev ended with {status} after SIGTERM: {}",
                last_line(&self.dev)
            )))
        }
    }
}

impl Drop for DevCluster {
    /// Whatever happened: a cluster that is asked to end leaves no mount and no process behind.
    fn drop(&mut self) {
        if self.dev.is_running() && !std::thread::panicking() {
            self.dev.terminate(DEADLINE);
        }
    }
}

/// Runs `cachelet dev` until it says that the cluster is ready.
fn start(
    store: &Store,
    arguments: &[String],
    dir: &Path,
    logs: &Path,
    stop: &Stop,
) -> Result<(Process, Ready), Error> {
    let ready_file = dir.join("ready.json");
    let mut command = Process::binary("cachelet")
        .args(["dev", "--nodes", "2", "--dir"])
        .arg(dir)
        .arg("--ready-file")
        .arg(&ready_file)
        .args(arguments)
        // What is set for another store must not end up here.
        .env_remove("AWS_ENDPOINT_URL")
        .env_remove("AWS_SESSION_TOKEN");
    match store {
        Store::S3(endpoint) => {
            command = command
                .args(["--store", "s3", "--path-style", "--region", REGION])
                .args(["--s3-endpoint", endpoint])
                .envs(S3Server::credentials_env());
        }
        Store::Directory(root) => {
            command = command
                .args(["--store", "file", "--store-name", DIRECTORY_STORE, "--root"])
                .arg(root);
        }
    }
    let mut dev = command.start(logs);
    let deadline = Instant::now() + DEADLINE;
    loop {
        stop.check()?;
        if let Some(ready) = read_ready(&ready_file)? {
            return Ok((dev, ready));
        }
        let failed = if !dev.is_running() {
            "ended before the cluster was ready".to_owned()
        } else if Instant::now() > deadline {
            format!("was not ready within {} s", DEADLINE.as_secs())
        } else {
            std::thread::sleep(POLL_INTERVAL);
            continue;
        };
        return Err(Error::Cluster(format!(
            "cachelet dev {failed}: {} (all of it: {})",
            last_line(&dev),
            dev.log_path().display()
        )));
    }
}

/// The ready file, once it is there.
fn read_ready(path: &Path) -> Result<Option<Ready>, Error> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| Error::Cluster(format!("{} is not as expected: {error}", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("read", path)(error)),
    }
}

fn is_resident(location: &Value, node: &str) -> bool {
    let blocks = location["blocks"].as_array().map_or(&[][..], Vec::as_slice);
    let holds = |block: &Value| {
        let nodes = block["nodes"].as_array().map_or(&[][..], Vec::as_slice);
        nodes
            .iter()
            .any(|found| found["node"] == node && found["residency"] == "all")
    };
    !blocks.is_empty() && blocks.iter().all(holds)
}

fn last_line(process: &Process) -> String {
    let log = process.log();
    log.lines().last().unwrap_or("it wrote nothing").to_owned()
}

fn get_json(url: &str) -> Result<Value, Error> {
    ureq::get(url)
        .call()
        .and_then(|mut answer| answer.body_mut().read_json())
        .map_err(|error| Error::Cluster(format!("GET {url} failed: {error}")))
}

fn post_json(url: &str, request: &Value) -> Result<Value, Error> {
    ureq::post(url)
        .send_json(request)
        .and_then(|mut answer| answer.body_mut().read_json())
        .map_err(|error| Error::Cluster(format!("POST {url} failed: {error}")))
}
