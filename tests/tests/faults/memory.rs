//! A daemon that fills many times more than the memory it may have.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use cachelet_tests::{Baseline, Cluster, Counts, Dose, LiteralS3, Outcome, Reader, Reference};

use super::support::{MIB, options_of};

/// A memory cgroup (v1), removed when dropped; its processes must be gone by then.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// `None` where there is no such thing, or none for us.
    fn new(limit_bytes: u64) -> Option<Self> {
        let path = PathBuf::from(format!(
            "/sys/fs/cgroup/memory/cachelet-test-{}",
            std::process::id()
        ));
        fs::create_dir(&path).ok()?;
        let group = Self(path);
        fs::write(group.0.join("memory.limit_in_bytes"), limit_bytes.to_string()).ok()?;
        Some(group)
    }

    fn add(&self, process: nix::unistd::Pid) {
        fs::write(self.0.join("cgroup.procs"), process.to_string()).expect("the group is ours");
    }

    fn number(&self, file: &str) -> u64 {
        let text = fs::read_to_string(self.0.join(file)).expect("the group is ours");
        text.trim().parse().expect("a number")
    }

    fn killed(&self) -> String {
        let text = fs::read_to_string(self.0.join("memory.oom_control")).expect("the group is ours");
        let line = text.lines().find(|line| line.starts_with("oom_kill "));
        line.unwrap_or_default().to_owned()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

#[test]
fn a_daemon_under_a_memory_limit_fills_many_times_as_much() {
    const OBJECT: u64 = 32 * MIB;
    let dose = Dose::of("F26 memory limit");
    let (limit, objects) = dose.choose((128 * MIB, 16), (512 * MIB, 128));
    let Some(group) = MemoryGroup::new(limit) else {
        println!("skipped: there is no memory cgroup (v1) that we may make");
        return;
    };
    let server = LiteralS3::start();
    let mut cluster = Cluster::of(&server.endpoint())
        .without_service()
        .quota("8GiB")
        .block_size("16MiB")
        .start();
    let reference = Arc::new(Reference::of(server.bucket(), dose.seed()));
    let worker = cluster.worker(0);
    let baseline = Baseline::of(worker);
    group.add(worker.process().pid());
    let next = AtomicU64::new(0);
    let options = options_of(worker);
    let mut counts = Counts::default();
    thread::scope(|scope| {
        let (next, reference, options) = (&next, &reference, &options);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(move || {
                    let reader = Reader::new(options.clone(), reference);
                    loop {
                        let number = next.fetch_add(1, Ordering::AcqRel);
                        if number >= objects {
                            return reader.counts();
                        }
                        let version = reference.put(&format!("object {number}"), OBJECT);
                        for at in (0..OBJECT).step_by(8 << 20) {
                            let outcome = reader.read(&version, at..at + 8 * MIB);
                            assert_ne!(outcome, Outcome::Changed, "{version:?}");
                        }
                        // The test's own memory is limited, too.
                        reference.delete(&version.key);
                    }
                })
            })
            .collect();
        for thread in threads {
            counts.add(&thread.join().expect("no read fails"));
        }
    });
    let most = group.number("memory.max_usage_in_bytes");
    let reached = group.number("memory.failcnt");
    assert!(worker.process().is_running());
    assert_eq!(group.killed(), "oom_kill 0");
    assert_eq!(counts.origin, 0, "the daemon served everything: {counts:?}");
    baseline.assert_nothing_left(worker);
    let filled = worker.count("/fill_bytes/origin");
    assert!(filled >= objects * OBJECT, "{filled} bytes");
    assert!(reached > 0, "the limit was never reached: {most} bytes at most");
    dose.showed(&format!(
        "{filled} bytes filled under a limit of {limit}, which was reached {reached} times; {counts:?}"
    ));
    drop(cluster);
    drop(group);
}
