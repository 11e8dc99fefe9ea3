//! The machine that measured.

use std::fmt;

use serde::Serialize;

/// What figures depend on.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Machine {
    cpu: String,
    cpus: usize,
    memory_bytes: u64,
    kernel: String,
    /// Of the directory in which the cache and the local copy are.
    filesystem: String,
    /// Load averages over 1, 5 and 15 minutes.
    load_before: [f64; 3],
    pub(super) load_after: [f64; 3],
}

impl Machine {
    pub(super) fn of_this() -> Self {
        let dir = std::env::temp_dir();
        let load = load();
        Self {
            cpu: value_in("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: value_in("/proc/meminfo", "MemTotal")
                .and_then(|value| value.split(' ').next()?.parse::<u64>().ok())
                .unwrap_or(0)
                * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            filesystem: filesystem_of(&read("/proc/self/mounts"), &dir.to_string_lossy()),
            load_before: load,
            load_after: load,
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            cpus,
            memory_bytes,
            kernel,
            filesystem,
            ..
        } = self;
        let memory = cachelet_tests::table::bytes(*memory_bytes);
        write!(
            f,
            "{cpu}, {cpus} CPUs, {memory}, Linux {kernel}, {filesystem}; load "
        )?;
        let [before, after] = [self.load_before, self.load_after].map(|[one, five, _]| (one, five));
        write!(f, "{:.1} {:.1} before, ", before.0, before.1)?;
        write!(f, "{:.1} {:.1} after (1 and 5 minutes)", after.0, after.1)
    }
}

/// The load averages now.
pub(super) fn load() -> [f64; 3] {
    let text = read("/proc/loadavg");
    let mut averages = text.split(' ').map(|average| average.parse().unwrap_or(0.0));
    std::array::from_fn(|_| averages.next().unwrap_or(0.0))
}

/// The value behind the first `key : value` of a file under /proc.
fn value_in(path: &str, key: &str) -> Option<String> {
    let text = read(path);
    let of_key = |line: &str| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == key).then(|| value.trim().to_owned())
    };
    text.lines().find_map(of_key)
}

/// The type of the file system that holds `dir`, from a mount table.
fn filesystem_of(mounts: &str, dir: &str) -> String {
    let holds = |mount: &str| {
        mount == "/" || dir == mount || dir.strip_prefix(mount).is_some_and(|rest| rest.starts_with('/'))
    };
    let mut best = ("", "unknown");
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        if let (Some(mount), Some(kind)) = (fields.next(), fields.next()) {
            // Of mounts on one place the last is on top.
            if holds(mount) && mount.len() >= best.0.len() {
                best = (mount, kind);
            }
        }
    }
    best.1.to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_that_of_the_innermost_mount() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\nproc /proc proc rw 0 0\n";
        assert_eq!(filesystem_of(mounts, "/tmp/x"), "tmpfs");
        assert_eq!(filesystem_of(mounts, "/tmp"), "tmpfs");
        assert_eq!(filesystem_of(mounts, "/tmpx"), "ext4");
    }
}
