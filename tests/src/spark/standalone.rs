//! A standalone cluster: a master on 127.0.0.1, a worker for each node.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Pid, getpgid};

use super::install::{SparkInstall, text};
use crate::{Process, free_port, wait_until};

/// Two JVMs on a busy machine.
const DEADLINE: Duration = Duration::from_secs(90);

/// A node: an address, and the directory of its daemon's socket.
#[derive(Debug, Clone)]
pub struct SparkNode {
    /// The host string of its executors.
    pub host: String,
    /// What its executors find in `CACHELET_SOCKET_DIR`.
    pub socket_dir: PathBuf,
}

impl SparkNode {
    /// Node `index` (counted from 0) of a cluster on loopback: 127.0.0.2, 127.0.0.3, ...
    pub fn new(index: u8, socket_dir: impl Into<PathBuf>) -> Self {
        Self {
            host: Ipv4Addr::new(127, 0, 0, 2 + index).to_string(),
            socket_dir: socket_dir.into(),
        }
    }
}

/// A running cluster; it ends, executors included, when it is dropped.
#[derive(Debug)]
pub struct SparkCluster {
    install: &'static SparkInstall,
    url: String,
    hosts: Vec<String>,
    // Dropped first: workers end before the master, and executors, which are in their process groups, with them.
    workers: Vec<Process>,
    _master: Process,
}

impl SparkCluster {
    /// Starts a worker with one core for each of `nodes`, and waits until all are registered. What they keep is in `dir`.
    pub fn start(install: &'static SparkInstall, nodes: &[SparkNode], dir: &Path) -> Self {
        let logs = dir.join("logs");
        std::fs::create_dir_all(&logs)
            .unwrap_or_else(|error| panic!("cannot create {}: {error}", logs.display()));
        let (port, web_port) = (free_port(), free_port());
        let url = format!("spark://127.0.0.1:{port}");
        let mut master = Process::command(install.program("spark-class"))
            .args(["org.apache.spark.deploy.master.Master", "--host", "127.0.0.1"])
            .args(["--port", &port.to_string(), "--webui-port", &web_port.to_string()])
            .envs(install.environment("127.0.0.1"))
            .start(&logs);
        let state = format!("http://127.0.0.1:{web_port}/json/");
        master.wait_until(DEADLINE, "Spark's master listens", || {
            alive_workers(&state).is_some()
        });
        let workers = nodes
            .iter()
            .map(|node| start_worker(install, node, &url, dir, &logs))
            .collect();
        master.wait_until(DEADLINE, "Spark's workers are registered", || {
            alive_workers(&state) == Some(nodes.len() as u64)
        });
        Self {
            install,
            url,
            hosts: nodes.iter().map(|node| node.host.clone()).collect(),
            workers,
            _master: master,
        }
    }

    /// Which Spark it is.
    pub fn install(&self) -> &'static SparkInstall {
        self.install
    }

    /// `spark://host:port`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The host strings of its workers, in order.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The processes of the executors on a host.
    pub fn executors(&self, host: &str) -> Vec<Pid> {
        let index = self.hosts.iter().position(|known| known == host);
        let worker = &self.workers[index.expect("the host of a worker")];
        let is_executor = |pid: Pid| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let class = b"org.apache.spark.executor.CoarseGrainedExecutorBackend";
            arguments
                .split(|byte| *byte == 0)
                .any(|argument| argument == class)
        };
        std::fs::read_dir("/proc")
            .expect("/proc is mounted")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Pid::from_raw))
            .filter(|pid| getpgid(Some(*pid)) == Ok(worker.pid()) && is_executor(*pid))
            .collect()
    }

    /// Waits until another executor than `lost` runs on a host.
    #[track_caller]
    pub fn wait_for_replacement(&self, host: &str, lost: Pid) {
        wait_until(DEADLINE, &format!("another executor runs on {host}"), || {
            self.executors(host).iter().any(|pid| *pid != lost)
        });
    }

    /// The log of a worker that has ended by itself, if there is one.
    pub fn ended_worker(&mut self) -> Option<&Path> {
        self.workers
            .iter_mut()
            .find_map(|worker| (!worker.is_running()).then(|| worker.log_path()))
    }
}

fn start_worker(install: &SparkInstall, node: &SparkNode, master: &str, dir: &Path, logs: &Path) -> Process {
    let work = dir.join(format!("work-{}", node.host));
    let local = dir.join(format!("local-{}", node.host));
    for dir in [&work, &local] {
        std::fs::create_dir_all(dir)
            .unwrap_or_else(|error| panic!("cannot create {}: {error}", dir.display()));
    }
    Process::command(install.program("spark-class"))
        .args(["org.apache.spark.deploy.worker.Worker", "--host", &node.host])
        .args([
            "--port",
            "0",
            "--webui-port",
            "0",
            "--cores",
            "1",
            "--memory",
            "2g",
            "-d",
        ])
        .arg(work)
        .arg(master)
        .envs(install.environment(&node.host))
        // Executors inherit the worker's environment.
        .env("CACHELET_SOCKET_DIR", &node.socket_dir)
        .env("SPARK_LOCAL_DIRS", text(&local))
        .start(logs)
}

/// As the master's status page says; `None` until it listens.
fn alive_workers(url: &str) -> Option<u64> {
    let state: serde_json::Value = ureq::get(url).call().ok()?.body_mut().read_json().ok()?;
    state["aliveworkers"].as_u64()
}
