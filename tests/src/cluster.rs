//! A cluster of real processes on loopback: the locality service and workers on 127.0.0.2, 127.0.0.3, ...
//!
//! Unlike `cachelet dev` it gives a test each worker by itself: to kill, stop, start again and configure.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::{Process, S3Server, TestDir, free_port, wait_until};

/// How long a process may take to be ready, or a state to come about.
const DEADLINE: Duration = Duration::from_secs(30);
/// The lease of workers in test clusters, unless said.
pub const LEASE: Duration = Duration::from_secs(2);

/// What a cluster is to be. See [`Cluster::of`].
#[derive(Debug)]
pub struct ClusterBuilder {
    nodes: usize,
    store: String,
    quota: String,
    block_size: String,
    grants: GrantSetup,
    authorization: &'static str,
    extra: String,
    cache_extra: String,
    cache_on: Option<PathBuf>,
    local_extra: String,
    remote_extra: String,
    with_service: bool,
    lease: Duration,
    min_free_percent: u8,
    cache_bytes: Option<u64>,
    descriptors: Option<u32>,
    worker_env: Vec<(String, String)>,
}

/// How a worker's read-only path is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantSetup {
    /// A read-only bind mount of the cache directory, as in Kubernetes. Needs root.
    Mounted,
    /// No read-only mount, and grants without it (`cachelet dev` as an ordinary user).
    Unprotected,
    /// Grants are required to be protected, and there is no read-only mount: none are given.
    Missing,
}

/// Whether this process may mount; else clusters grant without protection.
pub fn can_mount() -> bool {
    nix::unistd::geteuid().is_root()
}

impl ClusterBuilder {
    /// Workers; 1 unless said.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// `cache.quota`; 4 GiB unless said.
    pub fn quota(mut self, quota: &str) -> Self {
        quota.clone_into(&mut self.quota);
        self
    }

    /// `cache.block_size`; 128 MiB unless said.
    pub fn block_size(mut self, block_size: &str) -> Self {
        block_size.clone_into(&mut self.block_size);
        self
    }

    /// How the read-only path is set up; a mount where that is possible unless said.
    pub fn grants(mut self, grants: GrantSetup) -> Self {
        self.grants = grants;
        self
    }

    /// `authorization = "caller"`: the default of the product, not of test clusters.
    pub fn caller_authorization(mut self) -> Self {
        self.authorization = "caller";
        self
    }

    /// Further tables of the workers' configuration.
    pub fn config(mut self, toml: &str) -> Self {
        self.extra.push_str(toml);
        self.extra.push('\n');
        self
    }

    /// Further keys of the workers' `[cache]`.
    pub fn cache_config(mut self, toml: &str) -> Self {
        self.cache_extra.push_str(toml);
        self.cache_extra.push('\n');
        self
    }

    /// The directory that the workers' cache directories are in; the cluster's own unless said.
    pub fn cache_on(mut self, directory: &Path) -> Self {
        self.cache_on = Some(directory.to_owned());
        self
    }

    /// Further keys of the workers' `[local]`.
    pub fn local_config(mut self, toml: &str) -> Self {
        self.local_extra.push_str(toml);
        self.local_extra.push('\n');
        self
    }

    /// Further keys of the workers' `[remote]`.
    pub fn remote_config(mut self, toml: &str) -> Self {
        self.remote_extra.push_str(toml);
        self.remote_extra.push('\n');
        self
    }

    /// Further keys of the `[[store]]` table.
    pub fn store_config(mut self, toml: &str) -> Self {
        self.store.push_str(toml);
        self.store.push('\n');
        self
    }

    /// No locality service: the workers stand alone.
    pub fn without_service(mut self) -> Self {
        self.with_service = false;
        self
    }

    /// The lease of workers; [`LEASE`] unless said.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// `cache.min_free_percent`; 1 unless said.
    pub fn min_free_percent(mut self, percent: u8) -> Self {
        self.min_free_percent = percent;
        self
    }

    /// Gives each worker's cache directory a file system of its own, of this size. Needs root.
    pub fn cache_file_system(mut self, bytes: u64) -> Self {
        self.cache_bytes = Some(bytes);
        self
    }

    /// The most descriptors that a worker's process may have (`RLIMIT_NOFILE`, both limits).
    pub fn descriptors(mut self, most: u32) -> Self {
        self.descriptors = Some(most);
        self
    }

    /// An environment variable of the workers' processes.
    pub fn worker_env(mut self, key: &str, value: &str) -> Self {
        self.worker_env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Starts everything and waits until it is ready.
    pub fn start(self) -> Cluster {
        let dir = TestDir::new("cl");
        dir.create_dir("logs");
        let service = self.with_service.then(|| Service::new(&dir, self.lease));
        std::fs::write(dir.join("secret"), "a secret of this test cluster").expect("the directory is ours");
        let workers = (0..self.nodes)
            .map(|index| Worker::new(&self, &dir, index, service.as_ref()))
            .collect();
        let mut cluster = Cluster {
            workers,
            service,
            dir,
        };
        for worker in &mut cluster.workers {
            worker.start();
        }
        if let Some(service) = &cluster.service {
            let count = cluster.workers.len();
            wait_until(DEADLINE, "all workers are registered", || {
                service.ready_nodes().len() == count
            });
        }
        cluster
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Cluster {
    // Dropped first: the workers' processes end before the service and the directory go.
    workers: Vec<Worker>,
    service: Option<Service>,
    dir: TestDir,
}

impl Cluster {
    /// A cluster over an S3 endpoint (`http://...`): a test server's, or a proxy's before it.
    pub fn of(endpoint: &str) -> ClusterBuilder {
        ClusterBuilder::new(format!(
            "name = \"s3\"\nkind = \"s3\"\nidentity = \"test-s3\"\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"\n\
             addressing = \"path\"\nallow_http = true\n"
        ))
    }

    /// A cluster over a directory, known as bucket `data`.
    pub fn of_directory(root: &Path) -> ClusterBuilder {
        ClusterBuilder::new(format!(
            "name = \"data\"\nkind = \"file\"\nroot = \"{}\"\n",
            root.display()
        ))
    }

    /// The worker of a node, counted from 0.
    pub fn worker(&mut self, index: usize) -> &mut Worker {
        &mut self.workers[index]
    }

    /// The locality service. Panics in clusters without one.
    pub fn service(&self) -> &Service {
        self.service
            .as_ref()
            .expect("the cluster was started with a locality service")
    }

    /// The same, to kill it and to start it again.
    pub fn service_mut(&mut self) -> &mut Service {
        self.service
            .as_mut()
            .expect("the cluster was started with a locality service")
    }

    /// The cluster's directory.
    pub fn dir(&self) -> &TestDir {
        &self.dir
    }

    /// Waits until the service names `node` (counted from 0) as resident for every block of an object.
    pub fn wait_until_resident(&self, path: &str, node: usize) {
        let name = node_name(node);
        let service = self.service();
        wait_until(DEADLINE, &format!("{path} is resident on {name}"), || {
            let answer = service.locations(&serde_json::json!({"paths": [path], "candidates": [name]}));
            let blocks = answer["locations"][0]["blocks"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            !blocks.is_empty()
                && blocks.iter().all(|block| {
                    block["nodes"].as_array().is_some_and(|nodes| {
                        nodes
                            .iter()
                            .any(|node| node["node"] == name.as_str() && node["residency"] == "all")
                    })
                })
        });
    }
}

impl ClusterBuilder {
    fn new(store: String) -> Self {
        Self {
            nodes: 1,
            store,
            quota: "4GiB".to_owned(),
            block_size: "128MiB".to_owned(),
            grants: if can_mount() {
                GrantSetup::Mounted
            } else {
                GrantSetup::Unprotected
            },
            authorization: "daemon",
            extra: String::new(),
            cache_extra: String::new(),
            cache_on: None,
            local_extra: String::new(),
            remote_extra: String::new(),
            with_service: true,
            lease: LEASE,
            min_free_percent: 1,
            cache_bytes: None,
            descriptors: None,
            worker_env: Vec::new(),
        }
    }
}

/// The name of a node, counted from 0.
pub fn node_name(index: usize) -> String {
    format!("node-{}", index + 1)
}

/// A locality service, whose addresses stay the same when it is started again.
#[derive(Debug)]
pub struct Service {
    http: String,
    grpc: String,
    config: PathBuf,
    ready: PathBuf,
    logs: PathBuf,
    process: Option<Process>,
}

impl Service {
    fn new(dir: &TestDir, lease: Duration) -> Self {
        let config = dir.join("service.toml");
        let text = format!("lease = \"{}s\"\nheartbeat = \"300ms\"\n", lease.as_secs());
        std::fs::write(&config, text).expect("the directory is ours");
        let mut service = Self {
            http: format!("127.0.0.1:{}", free_port()),
            grpc: format!("127.0.0.1:{}", free_port()),
            config,
            ready: dir.join("service.json"),
            logs: dir.join("logs"),
            process: None,
        };
        service.start();
        service
    }

    /// Starts its process and waits until it listens. It knows nothing until workers have told it.
    pub fn start(&mut self) {
        let _ = std::fs::remove_file(&self.ready);
        let mut process = Process::binary("cachelet-locality")
            .args(["--http", &self.http, "--grpc", &self.grpc, "--config"])
            .arg(&self.config)
            .arg("--ready-file")
            .arg(&self.ready)
            .start(&self.logs);
        let ready = &self.ready;
        process.wait_until(DEADLINE, "the locality service is ready", || ready.exists());
        self.process = Some(process);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().expect("the service runs").kill();
    }

    /// `host:port` of its HTTP side.
    pub fn http(&self) -> &str {
        &self.http
    }

    /// `host:port` of its gRPC side.
    pub fn grpc(&self) -> &str {
        &self.grpc
    }

    /// Its process. Panics while it is stopped.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the service runs")
    }

    /// `POST /v1/locations`.
    pub fn locations(&self, request: &Value) -> Value {
        ureq::post(format!("http://{}/v1/locations", self.http))
            .send_json(request)
            .and_then(|mut answer| answer.body_mut().read_json())
            .unwrap_or_else(|error| panic!("asking for locations failed: {error}"))
    }

    /// `GET /metrics`.
    pub fn metrics(&self) -> String {
        get_text(&format!("http://{}/metrics", self.http))
    }

    /// `GET /v1/nodes`.
    pub fn nodes(&self) -> Vec<Value> {
        let answer: Value = get_json(&format!("http://{}/v1/nodes", self.http));
        answer["nodes"].as_array().expect("a list of nodes").clone()
    }

    /// The nodes whose workers are ready.
    pub fn ready_nodes(&self) -> Vec<String> {
        let ready = |node: &Value| node["state"] == "ready";
        self.nodes()
            .iter()
            .filter(|node| ready(node))
            .map(|node| node["node"].as_str().expect("a name").to_owned())
            .collect()
    }
}

/// A worker: its directories, its configuration, and its process while it runs.
#[derive(Debug)]
pub struct Worker {
    node: String,
    config: PathBuf,
    cache: PathBuf,
    granted: PathBuf,
    sockets: PathBuf,
    ready: PathBuf,
    logs: PathBuf,
    descriptors: Option<u32>,
    env: Vec<(String, String)>,
    process: Option<Process>,
}

impl Worker {
    fn new(cluster: &ClusterBuilder, dir: &TestDir, index: usize, service: Option<&Service>) -> Self {
        let node = node_name(index);
        let cache = match &cluster.cache_on {
            Some(directory) => directory.join(&node),
            None => dir.join(format!("{node}/cache")),
        };
        std::fs::create_dir_all(&cache)
            .unwrap_or_else(|error| panic!("cannot create {}: {error}", cache.display()));
        let sockets = dir.create_dir(format!("{node}/s"));
        let read_only = dir.create_dir(format!("{node}/ro"));
        if let Some(bytes) = cluster.cache_bytes {
            mount_memory(&cache, bytes);
        }
        let grants = match cluster.grants {
            GrantSetup::Mounted => {
                mount_read_only(&cache, &read_only);
                format!("read_only_path = \"{}\"", read_only.display())
            }
            GrantSetup::Unprotected => "grants = \"unprotected\"".to_owned(),
            GrantSetup::Missing => String::new(),
        };
        // What a test does not ask for does not happen to it: a loaded machine's disk is slow, and damage is for the test to find.
        let unless_said = |key: &str, value: &str| {
            let said = cluster.cache_extra.contains(key);
            (!said).then(|| format!("{key} = \"{value}\"\n"))
        };
        let quiet = [unless_said("slow_disk", "0s"), unless_said("scrub_rate", "0B")];
        let quiet: String = quiet.into_iter().flatten().collect();
        let address = format!("127.0.0.{}", index + 2);
        let locality = service
            .map(|service| {
                format!(
                    "[locality]\nservice = \"http://{}\"\nhttp = \"{}\"\n",
                    service.grpc, service.http
                )
            })
            .unwrap_or_default();
        let text = format!(
            "[worker]\nnode_name = \"{node}\"\n\
             [cache]\ndirectory = \"{cache}\"\n{grants}\nquota = \"{quota}\"\nmin_free_percent = {min_free_percent}\nblock_size = \"{block_size}\"\n{quiet}{cache_extra}\
             [local]\nsocket_dir = \"{sockets}\"\n{local_extra}\
             [remote]\nlisten = \"{address}:0\"\nsecret_file = \"{secret}\"\n{remote_extra}\
             [admin]\nlisten = \"{address}:0\"\ndrain_timeout = \"10s\"\n\
             {locality}{extra}\
             [[store]]\nauthorization = \"{authorization}\"\n{store}",
            cache = cache.display(),
            quota = cluster.quota,
            block_size = cluster.block_size,
            min_free_percent = cluster.min_free_percent,
            cache_extra = cluster.cache_extra,
            sockets = sockets.display(),
            local_extra = cluster.local_extra,
            remote_extra = cluster.remote_extra,
            secret = dir.join("secret").display(),
            extra = cluster.extra,
            authorization = cluster.authorization,
            store = cluster.store,
        );
        let config = dir.join(format!("{node}/config.toml"));
        std::fs::write(&config, text).expect("the directory is ours");
        let ready = dir.join(format!("{node}/ready.json"));
        Self {
            node,
            config,
            granted: match cluster.grants {
                GrantSetup::Mounted => read_only,
                GrantSetup::Unprotected | GrantSetup::Missing => cache.clone(),
            },
            cache,
            sockets,
            ready,
            logs: dir.join("logs"),
            descriptors: cluster.descriptors,
            env: cluster.worker_env.clone(),
            process: None,
        }
    }

    /// Starts the worker's process, with a new UUID, and waits until it is ready.
    pub fn start(&mut self) {
        let _ = std::fs::remove_file(&self.ready);
        let daemon = match self.descriptors {
            None => Process::binary("cacheletd"),
            Some(most) => Process::limited("cacheletd", most),
        };
        let mut process = daemon
            .arg("--config")
            .arg(&self.config)
            .arg("--ready-file")
            .arg(&self.ready)
            .envs(S3Server::credentials_env())
            .env_remove("NODE_NAME")
            .env_remove("WORKER_UUID")
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .start(&self.logs);
        let ready = &self.ready;
        process.wait_until(DEADLINE, "the worker is ready", || ready.exists());
        let readyz = format!("http://{}/readyz", self.address("admin"));
        process.wait_until(DEADLINE, "the worker serves", || {
            ureq::get(&readyz).call().is_ok()
        });
        self.process = Some(process);
    }

    /// Its process. Panics while it is stopped.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the worker runs")
    }

    /// SIGTERM, and waits for the end, which must be a success.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("the worker runs");
        let status = process.terminate(DEADLINE);
        assert!(
            status.success(),
            "{} ended with {status}:\n{}",
            self.node,
            process.log()
        );
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().expect("the worker runs").kill();
    }

    /// Forgets a process that has ended in a way the test looked at itself, so that the worker can be started again.
    pub fn forget_ended(&mut self) {
        let mut process = self.process.take().expect("the worker was started");
        assert!(!process.is_running(), "{} still runs", self.node);
    }

    /// Its node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The directory of its socket.
    pub fn socket_dir(&self) -> &Path {
        &self.sockets
    }

    /// Its cache directory.
    pub fn cache_dir(&self) -> &Path {
        &self.cache
    }

    /// The directory by whose path granted descriptors are opened.
    pub fn granted_dir(&self) -> &Path {
        &self.granted
    }

    /// Its configuration file.
    pub fn config_file(&self) -> &Path {
        &self.config
    }

    /// `host:port` of its TCP side.
    pub fn remote_address(&self) -> SocketAddr {
        self.address("remote").parse().expect("an address")
    }

    fn address(&self, key: &str) -> String {
        read_json(&self.ready)[key]
            .as_str()
            .expect("an address")
            .to_owned()
    }

    /// Its block files now, in no order.
    pub fn block_files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let blocks = self.cache.join("v1/blocks");
        for shard in std::fs::read_dir(&blocks).into_iter().flatten().flatten() {
            files.extend(
                std::fs::read_dir(shard.path())
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|entry| entry.path()),
            );
        }
        files
    }

    /// The files under construction in its cache directory.
    pub fn temporary_files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.cache.join("v1/tmp"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect()
    }

    /// The worker UUID of the running process.
    pub fn uuid(&self) -> String {
        let status = self.status();
        status["worker_uuid"]
            .as_str()
            .expect("a status has the worker UUID")
            .to_owned()
    }

    /// `GET /status` of its admin side.
    pub fn status(&self) -> Value {
        get_json(&format!("http://{}/status", self.address("admin")))
    }

    /// `GET /metrics` of its admin side.
    pub fn metrics(&self) -> String {
        get_text(&format!("http://{}/metrics", self.address("admin")))
    }

    /// A number of its status, by JSON pointer, such as `/fill_bytes/origin`.
    pub fn count(&self, pointer: &str) -> u64 {
        let status = self.status();
        status
            .pointer(pointer)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("no number at {pointer} in {status}"))
    }
}

fn mount_read_only(directory: &Path, target: &Path) {
    let bind = |flags| mount(Some(directory), target, None::<&str>, flags, None::<&str>);
    bind(MsFlags::MS_BIND)
        .and_then(|()| bind(MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY))
        .unwrap_or_else(|error| panic!("cannot mount {} read-only: {error}", directory.display()));
}

fn mount_memory(directory: &Path, bytes: u64) {
    let options = format!("size={bytes}");
    mount(
        Some("tmpfs"),
        directory,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .unwrap_or_else(|error| {
        panic!(
            "cannot mount {bytes} bytes of memory at {}: {error}",
            directory.display()
        )
    });
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{} is no JSON: {error}", path.display()))
}

fn get_text(url: &str) -> String {
    ureq::get(url)
        .call()
        .and_then(|mut answer| answer.body_mut().read_to_string())
        .unwrap_or_else(|error| panic!("GET {url} failed: {error}"))
}

fn get_json(url: &str) -> Value {
    ureq::get(url)
        .call()
        .and_then(|mut answer| answer.body_mut().read_json())
        .unwrap_or_else(|error| panic!("GET {url} failed: {error}"))
}
