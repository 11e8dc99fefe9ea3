//! Removes what daemons made on a node, once none runs there any more: the end of an uninstallation.
//!
//! Never part of a daemon's own stop, which cannot tell an uninstallation from a rollout.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use crate::config::Config;
use crate::{serve, start, store};

/// How often a directory that a daemon holds is tried.
const TRY_EVERY: Duration = Duration::from_millis(200);
/// Names that are said one by one; a number stands for the rest.
const MAX_NAMED: usize = 10;

/// A directory that cannot be wiped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cache directory.
    #[error("cache.directory: {0}")]
    Cache(#[from] store::Error),
    /// The socket's directory.
    #[error("local.socket_dir = {}: cannot remove the sockets of daemons that are gone: {source}; run this as the daemon's user", path.display())]
    Sockets {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Removes what daemons made in the cache directory and in the socket's directory, and says what that was. Waits for a daemon
/// that still runs, at most for `cache.takeover_wait`.
pub fn directories(config: &Config) -> Result<(), Error> {
    let directory = &config.cache.directory;
    let deadline = Instant::now() + config.cache.takeover_wait;
    let wiped = loop {
        match store::wipe(directory) {
            Err(store::Error::Locked { .. }) if Instant::now() < deadline => std::thread::sleep(TRY_EVERY),
            done => break done?,
        }
    };
    say(
        directory,
        format_args!("removed {} files, {}", wiped.files, ByteSize(wiped.bytes)),
        &wiped.left,
    );
    let path = &config.local.socket_dir;
    let swept = match serve::remove_stale(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => serve::Swept::default(),
        done => done.map_err(|source| Error::Sockets {
            path: path.clone(),
            source,
        })?,
    };
    say(
        path,
        format_args!("removed {} sockets", swept.removed),
        &swept.left,
    );
    Ok(())
}

fn say(directory: &Path, removed: fmt::Arguments<'_>, left: &[PathBuf]) {
    let mut text = format!("{}: {removed}", directory.display());
    if !left.is_empty() {
        let mut named: Vec<_> = left
            .iter()
            .take(MAX_NAMED)
            .map(|path| path.display().to_string())
            .collect();
        if let more @ 1.. = left.len().saturating_sub(MAX_NAMED) {
            named.push(format!("and {more} more"));
        }
        text = format!(
            "{text}; left what is not of a daemon that ended: {}",
            named.join(" ")
        );
    }
    // Whoever does not listen has lost nothing.
    let _ = writeln!(io::stdout(), "{text}");
}

/// What may come after: the wait for SIGTERM.
pub async fn stay() {
    start::termination().cancelled().await;
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn cache_and_dead_sockets_go_and_living_ones_stay() {
        let root = tempfile::tempdir().unwrap();
        let text = format!(
            "[cache]\ndirectory = \"{0}/cache\"\n[local]\nsocket_dir = \"{0}/run\"\n\
             [[store]]\nname = \"data\"\nkind = \"file\"\nroot = \"/data\"\n",
            root.path().display()
        );
        let config: Config = text.parse().unwrap();
        // On a node that never had a daemon there is nothing to do.
        directories(&config).unwrap();

        let sockets = root.path().join("run");
        fs::create_dir(&sockets).unwrap();
        let socket = |name: &str| sockets.join(name);
        drop(UnixListener::bind(socket("11111111-2222-3333-4444-555555555555")).unwrap());
        drop(UnixListener::bind(socket(".11111111-2222-3333-4444-555555555555")).unwrap());
        let living = socket("0b4c9d7e-12ab-4cde-8f01-23456789abcd");
        let _listener = UnixListener::bind(&living).unwrap();
        directories(&config).unwrap();
        let found: Vec<_> = fs::read_dir(&sockets)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(found, [living]);
    }
}
