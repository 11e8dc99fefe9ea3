//! The cluster under the demo: `cachelet dev`, as a user runs it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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
    pid: i32,
    config: PathBuf,
}

#[derive(Debug, Clone, Deserialize)]
struct Locality {
    /// `host:port`.
    http: String,
    status_url: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Ready {
    nodes: Vec<Node>,
    locality: Locality,
}

/// Bytes that the workers brought in so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fills {
    pub(super) origin: u64,
    pub(super) peer: u64,
}

/// The running cluster.
#[derive(Debug)]
pub(super) struct DevCluster {
    /// A worker that the demo restarted is its own child; it ends first.
    restarted: Vec<Process>,
    dev: Process,
    ready: Ready,
    dir: PathBuf,
    logs: PathBuf,
}

impl DevCluster {
    /// Starts two workers over `store`, with everything they keep in `dir`.
    pub(super) fn start(store: &Store, dir: &Path, logs: &Path, stop: &Stop) -> Result<Self, Error> {
        let ready_file = dir.join("ready.json");
        let mut command = Process::binary("cachelet")
            .args(["dev", "--nodes", "2", "--dir"])
            .arg(dir)
            .arg("--ready-file")
            .arg(&ready_file);
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
        let ready = loop {
            stop.check()?;
            if let Some(ready) = read_ready(&ready_file)? {
                break ready;
            }
            if !dev.is_running() {
                return Err(Error::Cluster(format!(
                    "cachelet dev ended before the cluster was ready: {}",
                    last_line(&dev)
                )));
            }
            if Instant::now() > deadline {
                return Err(Error::Cluster(format!(
                    "the cluster was not ready within {} s; the log of cachelet dev is {}",
                    DEADLINE.as_secs(),
                    dev.log_path().display()
                )));
            }
            std::thread::sleep(POLL_INTERVAL);
        };
        Ok(Self {
            restarted: Vec::new(),
            dev,
            ready,
            dir: dir.to_owned(),
            logs: logs.to_owned(),
        })
    }

    pub(super) fn node(&self, index: usize) -> &Node {
        &self.ready.nodes[index]
    }

    pub(super) fn status_url(&self) -> &str {
        &self.ready.locality.status_url
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
        let url = format!("http://{}/v1/locations", self.ready.locality.http);
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

    /// Ends a worker in order (SIGTERM) and starts it again with the same configuration.
    pub(super) fn restart(&mut self, index: usize, stop: &Stop) -> Result<(), Error> {
        let node = &mut self.ready.nodes[index];
        let pid = Pid::from_raw(node.pid);
        kill(pid, Signal::SIGTERM)
            .map_err(|error| Error::Cluster(format!("cannot send SIGTERM to {}: {error}", node.name)))?;
        let deadline = Instant::now() + DEADLINE;
        while is_alive(pid) {
            stop.check()?;
            if Instant::now() > deadline {
                return Err(Error::Cluster(format!(
                    "{} did not end within {} s after SIGTERM",
                    node.name,
                    DEADLINE.as_secs()
                )));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        let ready_file = self.dir.join("restarted.json");
        let mut process = Process::binary("cacheletd")
            .arg("--config")
            .arg(&node.config)
            .arg("--ready-file")
            .arg(&ready_file)
            .env("NODE_NAME", &node.name)
            .envs(S3Server::credentials_env())
            .start(&self.logs);
        process.wait_until(DEADLINE, "the worker is ready", || ready_file.exists());
        let addresses: Value = std::fs::read(&ready_file)
            .map_err(Error::file("read", &ready_file))
            .and_then(|text| {
                serde_json::from_slice(&text)
                    .map_err(|error| Error::Cluster(format!("{} is no JSON: {error}", ready_file.display())))
            })?;
        let admin = addresses["admin"]
            .as_str()
            .ok_or_else(|| Error::Cluster(format!("{} names no admin address", ready_file.display())))?;
        admin.clone_into(&mut node.admin);
        node.pid = process.pid().as_raw();
        self.restarted.push(process);
        let url = format!("http://{}/readyz", node.admin);
        let process = self.restarted.last_mut().expect("it was just pushed");
        process.wait_until(DEADLINE, "the worker serves", || ureq::get(&url).call().is_ok());
        Ok(())
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
        let (cachelet, http) = (cachelet.display(), &self.ready.locality.http);
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
    pub(super) fn end(mut self) -> Result<(), Error> {
        for process in &mut self.restarted {
            expect_success("a worker", process.terminate(DEADLINE))?;
        }
        expect_success("cachelet dev", self.dev.terminate(DEADLINE))
    }
}

fn expect_success(what: &str, status: std::process::ExitStatus) -> Result<(), Error> {
    if status.success() {
        Ok(())
    } else {
        Err(Error::Cluster(format!(
            "{what} ended with {status} after SIGTERM"
        )))
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

/// Whether a process that is not this one's child still runs: one that waits for its parent has ended.
fn is_alive(pid: Pid) -> bool {
    if kill(pid, None) == Err(Errno::ESRCH) {
        return false;
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state is behind the name, which is in parentheses and may hold anything.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
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
