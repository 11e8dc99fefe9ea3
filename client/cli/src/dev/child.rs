//! One program that `dev` runs: started, watched, stopped.
//!
//! A child dies with `dev`, even if `dev` is killed: it starts as `cachelet dev-child`, which asks the kernel for SIGTERM
//! at its parent's death and then becomes the program.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getppid};

use crate::arguments::DevChild;
use crate::failure::{Failure, Kind};

/// Lines of a dead child's log that are shown.
const TAIL_LINES: usize = 20;
/// Variables that would give every worker the same identity.
const IDENTITY: [&str; 5] = ["NODE_NAME", "WORKER_UUID", "POD_IP", "HOST_IP", "POD_NAME"];

/// See the module's text.
pub(crate) struct Child {
    pub(crate) name: String,
    pub(crate) log: PathBuf,
    process: Process,
}

impl Child {
    /// Starts a program whose output goes to `log`.
    pub(crate) fn start(
        name: &str,
        program: &Path,
        arguments: &[&OsStr],
        log: &Path,
    ) -> Result<Self, Failure> {
        let starting = |error: io::Error| Failure::io(format_args!("starting {}", program.display()), &error);
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(|error| Failure::io(format_args!("opening {}", log.display()), &error))?;
        let errors = out.try_clone().map_err(starting)?;
        let this = std::env::current_exe().map_err(starting)?;
        let mut command = Command::new(this);
        command
            .arg("dev-child")
            .args(["--parent", &std::process::id().to_string(), "--"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            // Its output goes to a file.
            .env("NO_COLOR", "1")
            .stdout(out)
            .stderr(errors)
            // Ctrl-C reaches `dev` alone, which stops its children in order.
            .process_group(0);
        for variable in IDENTITY {
            command.env_remove(variable);
        }
        Ok(Self {
            name: name.to_owned(),
            log: log.to_owned(),
            process: command.spawn().map_err(starting)?,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// A child that ended by itself, as a failure with its last words.
    pub(crate) fn died(&self, status: ExitStatus) -> Failure {
        let tail = tail(&self.log).unwrap_or_default();
        let tail = if tail.is_empty() {
            "its log is empty".to_owned()
        } else {
            format!("its log ends:\n{tail}")
        };
        let message = format!("{} ended ({status}); {tail}", self.name);
        // Shown over several lines, before the one line that sums it up.
        let _ = io::Write::write_all(&mut io::stderr(), format!("{message}\n").as_bytes());
        Failure::new(
            Kind::Internal,
            format!("{} ended ({status}); see {}", self.name, self.log.display()),
        )
    }

    /// Asks it to stop.
    pub(crate) fn terminate(&mut self) {
        self.signal(Signal::SIGTERM);
    }

    /// Waits until it has ended, and ends it at `deadline`.
    pub(crate) fn wait_until(&mut self, deadline: Instant) {
        while self.ended().is_none() {
            if Instant::now() >= deadline {
                self.signal(Signal::SIGKILL);
                // It cannot outlive this signal.
                let _ = self.process.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let pid = i32::try_from(self.process.id()).expect("process ids are positive i32");
            // Not reaped yet, so the id is still its own.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.process.wait();
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> io::Result<String> {
    const LONGEST: u64 = 16 << 10;
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LONGEST)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    let lines = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    Ok(lines
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n"))
}

/// Becomes the program, tied to its parent's life. Returns only on failure.
pub(crate) fn become_child(child: &DevChild) -> Failure {
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGTERM) {
        return Failure::io("tying a child to its parent", &error.into());
    }
    if getppid().as_raw() != child.parent {
        return Failure::new(Kind::Internal, "the parent ended before its child began");
    }
    // `dev` takes its signals from a descriptor and blocks them; its children do not.
    if let Err(error) = SigSet::all().thread_unblock() {
        return Failure::io("unblocking signals", &error.into());
    }
    let (program, arguments) = child.command.split_first().expect("clap asks for at least one");
    let error = Command::new(program).args(arguments).exec();
    Failure::io(format_args!("running {}", program.display()), &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_a_long_log_are_shown() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let lines: Vec<_> = (0..5000).map(|line| format!("line {line}")).collect();
        std::fs::write(&log, lines.join("\n")).unwrap();
        let shown = tail(&log).unwrap();
        assert_eq!(shown.lines().count(), TAIL_LINES);
        assert!(shown.ends_with("  line 4999"), "{shown}");
    }
}
