//! `cachelet dev`: a cluster of real processes on this machine, for as long as this one runs.
//!
//! Order: directories, locality service, mounts, workers, ready; then waiting for a signal or a child's death; then the
//! workers stop, the service stops, the mounts go. Signals arrive through a descriptor, so each step notices them.

pub(crate) mod child;
mod layout;
mod mount;

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::child::Child;
use self::layout::{Cluster, NodeLayout, create_dir, forget, write_secret};
use self::mount::ReadOnlyMount;
use crate::arguments::{Common, Dev, Output, StoreKind};
use crate::failure::{Failure, Kind};
use crate::output;
use crate::service::{Service, Worker, part};

/// How long everything may take to be ready.
const READY: Duration = Duration::from_secs(60);
/// How long children may take to stop.
const STOP: Duration = Duration::from_secs(15);

/// What the locality service writes once it listens.
#[derive(serde::Deserialize)]
struct ServiceReady {
    http: String,
    grpc: String,
}

/// What a daemon writes once it serves.
#[derive(serde::Deserialize)]
struct WorkerReady {
    socket: PathBuf,
    admin: String,
    remote: Option<String>,
}

/// What `--ready-file` says.
#[derive(Debug, Serialize)]
struct Description {
    pid: u32,
    dir: PathBuf,
    status_page: String,
    store: &'static str,
    secret_file: PathBuf,
    service: ServiceDescription,
    nodes: Vec<NodeDescription>,
}

#[derive(Debug, Serialize)]
struct ServiceDescription {
    http: String,
    grpc: String,
    pid: u32,
    log: PathBuf,
    program: PathBuf,
}

#[derive(Debug, Serialize)]
struct NodeDescription {
    node: String,
    uuid: String,
    address: String,
    socket_dir: PathBuf,
    socket: PathBuf,
    /// `host:port` of health, metrics and status.
    admin: String,
    /// `host:port` for readers and workers elsewhere.
    remote: Option<String>,
    pid: u32,
    config: PathBuf,
    cache_dir: PathBuf,
    /// Where the cache directory shows read-only; none: grants are unprotected.
    read_only_path: Option<PathBuf>,
    log: PathBuf,
    program: PathBuf,
}

/// A running cluster. Fields are dropped in this order: workers before their mounts, all before the directory.
struct Running {
    workers: Vec<Child>,
    service: Child,
    mounts: Vec<ReadOnlyMount>,
    dir: Directory,
}

/// Where the cluster lives; removed at the end if it is ours to remove.
struct Directory {
    path: PathBuf,
    remove: bool,
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.remove {
            // A temporary directory that cannot be removed is the system's to clean.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Ctrl-C and friends, and the deaths of children.
struct Signals(SignalFd);

/// What ends the waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Stop,
    Child,
    Nothing,
}

impl Signals {
    fn block() -> Result<Self, Failure> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
            set.add(signal);
        }
        let failed = |error: nix::Error| Failure::io("setting up signals", &error.into());
        set.thread_block().map_err(failed)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        SignalFd::with_flags(&set, flags).map(Self).map_err(failed)
    }

    /// Waits for a signal.
    fn wait(&self, patience: Duration) -> Event {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let mut descriptors = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        if poll(&mut descriptors, timeout).is_err() {
            return Event::Nothing;
        }
        let child = Signal::SIGCHLD as u32;
        let mut event = Event::Nothing;
        while let Ok(Some(info)) = self.0.read_signal() {
            match (info.ssi_signo == child, event) {
                (false, _) => event = Event::Stop,
                (true, Event::Nothing) => event = Event::Child,
                (true, Event::Stop | Event::Child) => {}
            }
        }
        event
    }
}

/// Why the cluster was not started.
enum Ended {
    /// By whoever ran it.
    Stopped,
    Failed(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

pub(crate) fn run(common: &Common, dev: &Dev) -> Result<(), Failure> {
    let (store, root) = store_of(dev)?;
    cachelet_protocol::block::BlockSize::new(dev.block_bytes.as_u64())
        .map_err(|error| Failure::usage(format!("--block-bytes: {error}")))?;
    let signals = Signals::block()?;
    let (mut running, description) = match start(dev, store, root.as_deref(), &signals) {
        Ok(started) => started,
        Err(Ended::Stopped) => return Ok(()),
        Err(Ended::Failed(failure)) => return Err(failure),
    };
    let watched = announce(common, dev, &description).and_then(|()| watch(&mut running, &signals));
    if let Some(file) = &dev.ready_file {
        // What it says is true no longer.
        forget(file)?;
    }
    stop(running, common);
    watched
}

fn store_of(dev: &Dev) -> Result<(StoreKind, Option<PathBuf>), Failure> {
    let kind = dev.store.unwrap_or(if dev.root.is_some() {
        StoreKind::File
    } else {
        StoreKind::S3
    });
    match (kind, &dev.root) {
        (StoreKind::S3, None) => Ok((kind, None)),
        (StoreKind::S3, Some(_)) => Err(Failure::usage("--root is for --store file, and the store is s3")),
        (StoreKind::File, None) => Err(Failure::usage(
            "--store file needs --root: the directory whose files are the objects",
        )),
        (StoreKind::File, Some(root)) => {
            let root = root
                .canonicalize()
                .map_err(|error| Failure::io(format_args!("--root {}", root.display()), &error))?;
            if !root.is_dir() {
                return Err(Failure::usage(format!(
                    "--root {} is no directory",
                    root.display()
                )));
            }
            Ok((kind, Some(root)))
        }
    }
}

fn start(
    dev: &Dev,
    store: StoreKind,
    root: Option<&Path>,
    signals: &Signals,
) -> Result<(Running, Description), Ended> {
    let deadline = Instant::now() + READY;
    let (daemon, locality) = (program("cacheletd")?, program("cachelet-locality")?);
    let dir = directory(dev)?;
    let secret_file = dir.path.join("secret");
    write_secret(&secret_file)?;

    let (log, ready) = (dir.path.join("locality.log"), dir.path.join("locality.ready"));
    forget(&ready)?;
    let http = dev.http.to_string();
    let arguments: [&OsStr; 6] = [
        "--http".as_ref(),
        http.as_ref(),
        "--grpc".as_ref(),
        "127.0.0.1:0".as_ref(),
        "--ready-file".as_ref(),
        ready.as_ref(),
    ];
    let service = Child::start("the locality service", &locality, &arguments, &log)?;
    let mut running = Running {
        workers: Vec::new(),
        service,
        mounts: Vec::new(),
        dir,
    };
    let addresses: ServiceReady = wait_for_file(&mut running, &ready, deadline, signals)?;
    let service = Service::at(&addresses.http);
    let cluster = Cluster {
        dev,
        store,
        secret_file: &secret_file,
        grpc: &format!("http://{}", addresses.grpc),
        http: &addresses.http,
        root,
    };
    let nodes = start_workers(&mut running, &cluster, &daemon, deadline, signals)?;
    wait_until(
        &mut running,
        deadline,
        signals,
        "the workers' registration",
        || registered(&service, &nodes),
    )?;
    let description = Description {
        pid: std::process::id(),
        dir: running.dir.path.clone(),
        status_page: service.status_page(),
        store: match store {
            StoreKind::S3 => "s3",
            StoreKind::File => "file",
        },
        secret_file,
        service: ServiceDescription {
            http: addresses.http,
            grpc: addresses.grpc,
            pid: running.service.pid(),
            log,
            program: locality,
        },
        nodes,
    };
    Ok((running, description))
}

/// Starts all workers, then waits until each is ready.
fn start_workers(
    running: &mut Running,
    cluster: &Cluster<'_>,
    daemon: &Path,
    deadline: Instant,
    signals: &Signals,
) -> Result<Vec<NodeDescription>, Ended> {
    let mut started = Vec::new();
    for number in 1..=cluster.dev.nodes {
        let node = NodeLayout::create(&running.dir.path, number)?;
        let protected = protect(running, &node, cluster.dev)?;
        let uuid = uuid::Uuid::new_v4().to_string();
        cluster.write_config(&node, &uuid, protected)?;
        let arguments: [&OsStr; 4] = [
            "--config".as_ref(),
            node.config.as_ref(),
            "--ready-file".as_ref(),
            node.ready.as_ref(),
        ];
        let worker = Child::start(&format!("worker {}", node.name), daemon, &arguments, &node.log)?;
        started.push((node, uuid, protected, worker.pid()));
        running.workers.push(worker);
    }
    let mut nodes = Vec::new();
    for (node, uuid, protected, pid) in started {
        let ready: WorkerReady = wait_for_file(running, &node.ready, deadline, signals)?;
        let admin = Service::at(&ready.admin);
        wait_until(
            running,
            deadline,
            signals,
            &format!("worker {}", node.name),
            || admin.answers("/readyz"),
        )?;
        nodes.push(NodeDescription {
            node: node.name,
            uuid,
            address: node.address.to_string(),
            socket_dir: node.socket_dir,
            socket: ready.socket,
            admin: ready.admin,
            remote: ready.remote,
            pid,
            config: node.config,
            cache_dir: node.cache,
            read_only_path: protected.then_some(node.view),
            log: node.log,
            program: daemon.to_owned(),
        });
    }
    Ok(nodes)
}

/// Whether the service has this life of every node.
fn registered(service: &Service, nodes: &[NodeDescription]) -> bool {
    let workers = service
        .nodes()
        .and_then(|answer| part::<Vec<Worker>>(&answer, "nodes"));
    workers.is_ok_and(|workers| {
        nodes.iter().all(|node| {
            workers
                .iter()
                .any(|worker| worker.uuid == node.uuid && worker.state == "ready")
        })
    })
}

/// Shows the node's cache directory read-only where that is possible; whether it is.
fn protect(running: &mut Running, node: &NodeLayout, dev: &Dev) -> Result<bool, Failure> {
    if dev.unprotected || !nix::unistd::geteuid().is_root() {
        return Ok(false);
    }
    match ReadOnlyMount::new(&node.cache, &node.view) {
        Ok(mounted) => {
            running.mounts.push(mounted);
            Ok(true)
        }
        // Root of a container that may not mount.
        Err(nix::Error::EPERM | nix::Error::EACCES) => Ok(false),
        Err(error) => {
            let what = format!(
                "mounting {} read-only at {}",
                node.cache.display(),
                node.view.display()
            );
            Err(Failure::io(what, &error.into()))
        }
    }
}

/// A program beside this one, else one in PATH.
fn program(name: &str) -> Result<PathBuf, Failure> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|this| Some(this.parent()?.join(name)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path).map(|directory| directory.join(name)))
        .find(|program| program.is_file())
        .ok_or_else(|| {
            Failure::usage(format!(
                "{name} is neither beside this program nor in PATH: install it, or build all with `cargo build --workspace --bins`"
            ))
        })
}

fn directory(dev: &Dev) -> Result<Directory, Failure> {
    let (path, remove) = match &dev.dir {
        Some(dir) => (dir.clone(), false),
        None => {
            let name = format!("cachelet-dev-{}", std::process::id());
            (std::env::temp_dir().join(name), !dev.keep)
        }
    };
    create_dir(&path)?;
    // Sockets and mounts are named by it from other directories too.
    let path = path
        .canonicalize()
        .map_err(|error| Failure::io(format_args!("--dir {}", path.display()), &error))?;
    Ok(Directory { path, remove })
}

/// Waits for a file that a child writes once it serves.
fn wait_for_file<T: DeserializeOwned>(
    running: &mut Running,
    file: &Path,
    deadline: Instant,
    signals: &Signals,
) -> Result<T, Ended> {
    let mut found = None;
    let what = file.display().to_string();
    wait_until(running, deadline, signals, &what, || {
        found = std::fs::read(file).ok();
        found.is_some()
    })?;
    serde_json::from_slice(&found.unwrap_or_default()).map_err(|error| {
        let message = format!("{what} is not understood: {error}; are the programs of one version?");
        Failure::new(Kind::Internal, message).into()
    })
}

/// Waits for a condition, as long as all children live and nobody wants to stop.
fn wait_until(
    running: &mut Running,
    deadline: Instant,
    signals: &Signals,
    what: &str,
    mut done: impl FnMut() -> bool,
) -> Result<(), Ended> {
    while !done() {
        check(running)?;
        if Instant::now() >= deadline {
            let logs = running.dir.path.display();
            let message = format!(
                "waiting for {what} took longer than {} s; the logs in {logs} say more",
                READY.as_secs()
            );
            return Err(Failure::new(Kind::Temporary, message).into());
        }
        if signals.wait(Duration::from_millis(20)) == Event::Stop {
            return Err(Ended::Stopped);
        }
    }
    Ok(())
}

/// Fails if a child has ended.
fn check(running: &mut Running) -> Result<(), Failure> {
    for child in running.workers.iter_mut().chain([&mut running.service]) {
        if let Some(status) = child.ended() {
            return Err(child.died(status));
        }
    }
    Ok(())
}

/// Waits until somebody wants to stop (fine) or a child dies (not).
fn watch(running: &mut Running, signals: &Signals) -> Result<(), Failure> {
    loop {
        match signals.wait(Duration::from_secs(1)) {
            Event::Stop => return Ok(()),
            Event::Child | Event::Nothing => check(running)?,
        }
    }
}

fn stop(mut running: Running, common: &Common) {
    if common.output == Output::Text {
        // The terminal may be gone.
        let _ = output::print("stopping\n");
    }
    let deadline = Instant::now() + STOP;
    for worker in &mut running.workers {
        worker.terminate();
    }
    for worker in &mut running.workers {
        worker.wait_until(deadline);
    }
    running.service.terminate();
    running.service.wait_until(deadline);
    running.mounts.clear();
}

fn announce(common: &Common, dev: &Dev, description: &Description) -> Result<(), Failure> {
    if let Some(file) = &dev.ready_file {
        let mut temporary = file.as_os_str().to_owned();
        temporary.push(".tmp");
        std::fs::write(&temporary, output::json(description))
            .and_then(|()| std::fs::rename(&temporary, file))
            .map_err(|error| Failure::io(format_args!("writing --ready-file {}", file.display()), &error))?;
    }
    match common.output {
        Output::Json => output::print_json(description),
        Output::Text => output::print(&describe(dev, description)),
    }
}

fn describe(dev: &Dev, description: &Description) -> String {
    let rows: Vec<_> = description
        .nodes
        .iter()
        .map(|node| {
            vec![
                node.node.clone(),
                node.socket_dir.display().to_string(),
                node.admin.clone(),
                node.remote.clone().unwrap_or_else(|| "-".into()),
            ]
        })
        .collect();
    let table = output::table(&["NODE", "SOCKET DIRECTORY", "ADMIN", "DATA"], &rows);
    let first = &description.nodes[0];
    let path = match description.store {
        "file" => format!("file://{}/PATH-BELOW-ROOT", dev.store_name),
        _ => "s3://BUCKET/KEY".to_owned(),
    };
    let service = &description.service.http;
    let protection = match first.read_only_path {
        Some(_) => "block files are granted through read-only mounts",
        None => "block files are granted without read-only mounts (development only)",
    };
    let socket_dir = first.socket_dir.display();
    format!(
        "{table}\nstatus page  {}\nlogs         {}\ngrants       {protection}\n\nTry it:\n  \
         cachelet cat --socket-dir {socket_dir} {path} --stats > /dev/null\n  \
         cachelet locate --service http://{service} {path}\n  \
         cachelet status --service http://{service} --watch\n\nCtrl-C stops everything.\n",
        description.status_page,
        description.dir.display(),
    )
}
