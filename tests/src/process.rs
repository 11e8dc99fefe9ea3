//! Real processes: the binaries of this workspace, and what else a test starts.
//!
//! Invariants: a process is killed when its value is dropped, and by the kernel when the test process ends in any other
//! way; what it leaves in its process group is killed when it ends; its output is in a file, whose end a failing test prints.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::dir::TestDir;
use crate::wait::poll;

/// How much of the log a failing test prints.
const TAIL_LINES: usize = 60;

/// What to start, and how.
#[derive(Debug)]
pub struct ProcessBuilder {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, Option<OsString>)>,
    cwd: Option<PathBuf>,
}

impl ProcessBuilder {
    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable of the process.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .push((key.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Sets environment variables of the process.
    pub fn envs<K: AsRef<OsStr>, V: AsRef<OsStr>>(mut self, vars: impl IntoIterator<Item = (K, V)>) -> Self {
        for (key, value) in vars {
            self = self.env(key, value);
        }
        self
    }

    /// Keeps an environment variable of the test process from this one.
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), None));
        self
    }

    /// Sets the working directory.
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = Some(dir.into());
        self
    }

    /// Starts it; stdout and stderr go to one log file in `log_dir`.
    pub fn start(self, log_dir: &Path) -> Process {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let log = log_dir.join(format!("{}-{number}.log", self.name));
        let output = append_to(&log);
        let errors = output.try_clone().expect("a descriptor is left");
        self.spawn(output, errors, log)
    }

    /// Runs it to its end within `deadline`, and returns what it wrote; panics when it takes longer.
    #[track_caller]
    pub fn run(self, deadline: Duration) -> Finished {
        let dir = TestDir::new("run");
        let (stdout, stderr) = (dir.join("stdout"), dir.join("stderr"));
        let mut process = self.spawn(append_to(&stdout), append_to(&stderr), stderr.clone());
        let status = process.wait_for_exit(deadline);
        let stdout = std::fs::read(&stdout).expect("the process's stdout was created above");
        Finished {
            status,
            stdout,
            stderr: read_lossy(&stderr),
        }
    }

    fn spawn(self, stdout: File, stderr: File, log: PathBuf) -> Process {
        // The kernel kills the process when its parent dies. setpriv asks for that and becomes the program, under the
        // same pid: doing it here, between fork and exec, would take unsafe code. The shell between them ends when the
        // parent died before setpriv had asked.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "sh", "-c"])
            .args([r#"[ "$PPID" = "$1" ] || exit 1; shift; exec "$@""#, "sh"])
            .arg(std::process::id().to_string())
            .arg(&self.program)
            .args(&self.args);
        for (key, value) in &self.env {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr);
        let child = spawn_from_a_thread_that_stays(command).unwrap_or_else(|error| {
            panic!("cannot start {} through setpriv (util-linux): {error}", self.name)
        });
        Process {
            name: self.name,
            child,
            status: None,
            log,
        }
    }
}

/// What a finished process left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Finished {
    /// The exit code; panics when a signal ended it.
    #[track_caller]
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| panic!("ended by a signal: {}, stderr: {}", self.status, self.stderr))
    }

    /// Panics, with stderr, unless the exit code is 0.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert!(self.status.success(), "{}, stderr: {}", self.status, self.stderr);
        self
    }

    /// stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// A running process, killed with its process group when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    log: PathBuf,
}

impl Process {
    /// A binary of this workspace, found beside the test executable.
    pub fn binary(name: &str) -> ProcessBuilder {
        let program = target_dir().join(name);
        assert!(
            program.exists(),
            "cannot find {}: build it first with cargo build --workspace --bins",
            program.display()
        );
        Self::command(program)
    }

    /// The same, with at most so many descriptors.
    pub fn limited(name: &str, descriptors: u32) -> ProcessBuilder {
        let program = Self::binary(name).program;
        let mut limited = Self::command("prlimit")
            .arg(format!("--nofile={descriptors}:{descriptors}"))
            .arg(program);
        name.clone_into(&mut limited.name);
        limited
    }

    /// Any other program: a path, or a name to be found in PATH.
    pub fn command(program: impl Into<PathBuf>) -> ProcessBuilder {
        let program = program.into();
        let name = program
            .file_name()
            .unwrap_or(program.as_os_str())
            .to_string_lossy()
            .into_owned();
        ProcessBuilder {
            name,
            program,
            args: Vec::new(),
            env: Vec::new(),
            cwd: None,
        }
    }

    /// The process id, which is also the id of its process group.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        read_lossy(&self.log)
    }

    /// The file it writes to.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.try_wait().is_none()
    }

    /// Waits until `condition` holds; panics when the deadline passes or the process ends before.
    #[track_caller]
    pub fn wait_until(&mut self, deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
        let mut held = false;
        poll(deadline, &mut || {
            held = condition();
            held || !self.is_running()
        });
        // It may have become true in the process's last moment.
        if !held && !condition() {
            match self.status {
                Some(status) => self.fail(&format!("ended ({status}) before {what}")),
                None => self.fail(&format!("waited {deadline:?} in vain until {what}")),
            }
        }
    }

    /// Waits for a complete line of the log that contains `text`, and returns it.
    #[track_caller]
    pub fn wait_for_line(&mut self, deadline: Duration, text: &str) -> String {
        let log = self.log.clone();
        let mut found = None;
        self.wait_until(deadline, &format!("it wrote a line with {text:?}"), || {
            found = read_lossy(&log)
                .split_inclusive('\n')
                .find(|line| line.ends_with('\n') && line.contains(text))
                .map(|line| line.trim_end().to_owned());
            found.is_some()
        });
        found.expect("wait_until returns when the line was found")
    }

    /// Sends a signal to the process (not to its group).
    #[track_caller]
    pub fn signal(&mut self, signal: Signal) {
        assert!(
            self.is_running(),
            "cannot send {signal} to {}: it has ended",
            self.name
        );
        // It has not been waited for, so the pid cannot belong to another process.
        kill(self.pid(), signal)
            .unwrap_or_else(|error| panic!("cannot send {signal} to {}: {error}", self.name));
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub fn wait_for_exit(&mut self, deadline: Duration) -> ExitStatus {
        if !poll(deadline, &mut || !self.is_running()) {
            self.fail(&format!("waited {deadline:?} in vain until it ended"));
        }
        self.status.expect("poll returned because it ended")
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    #[track_caller]
    pub fn terminate(&mut self, deadline: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_for_exit(deadline)
    }

    /// Ends it without warning (SIGKILL), its process group too, and waits until it has ended.
    pub fn kill(&mut self) -> ExitStatus {
        match self.status {
            Some(status) => status,
            None => self.kill_group_and_reap(),
        }
    }

    fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let state =
                waitid(Id::Pid(self.pid()), flags).expect("a child of this process can be waited for");
            if state != WaitStatus::StillAlive {
                // What it left behind ends with it.
                self.kill_group_and_reap();
            }
        }
        self.status
    }

    fn kill_group_and_reap(&mut self) -> ExitStatus {
        // The group's leader has not been waited for, so the id cannot belong to another group.
        killpg(self.pid(), Signal::SIGKILL).expect("a child of this process can be killed");
        let status = self
            .child
            .wait()
            .expect("a child of this process can be waited for");
        self.status = Some(status);
        status
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        // Drop prints the end of the log.
        panic!("{}: {what}", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
            eprintln!("--- the end of the log of {} ({})", self.name, self.pid());
            eprintln!("{}", tail.join("\n"));
            eprintln!("---");
        }
    }
}

/// The directory of the workspace's binaries, in the profile of this executable.
pub(crate) fn target_dir() -> PathBuf {
    let this = std::env::current_exe().expect("/proc is mounted");
    let dir = this.parent().expect("an executable is in a directory");
    // Test executables are in target/<profile>/deps, binaries of this crate in target/<profile>.
    match dir.file_name() {
        Some(name) if name == "deps" => dir
            .parent()
            .expect("deps is in the profile's directory")
            .to_owned(),
        _ => dir.to_owned(),
    }
}

/// The parent-death signal comes when the *thread* that started the child ends, and a test's thread ends with its test
/// though a shared server has to live on: so one thread that never ends starts all children.
fn spawn_from_a_thread_that_stays(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                for (mut command, reply) in inbox {
                    // The one who asked waits for the answer; were it gone, the child would be nobody's.
                    if let Err(mpsc::SendError(Ok(mut orphan))) = reply.send(command.spawn()) {
                        drop(orphan.kill());
                    }
                }
            })
            .expect("a thread can be started");
        orders
    });
    let (reply, answer) = mpsc::channel();
    SPAWNER.send((command, reply)).expect("the spawner never ends");
    answer.recv().expect("the spawner never ends")
}

fn append_to(path: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap_or_else(|error| panic!("cannot write to {}: {error}", path.display()))
}

fn read_lossy(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
