//! Makes the daemon's directories on a fresh node, for a daemon that runs as another user than the one that may do this.
//!
//! Runs as root in an init container, once before the daemon; changes nothing that is right already, and nothing below the
//! directories.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::unistd::{Gid, Uid, chown};

use crate::config::Config;

/// Cached bytes are the daemon's alone.
const CACHE_MODE: u32 = 0o700;
/// Clients of the group list the directory and connect to the socket in it.
const SOCKET_MODE: u32 = 0o750;

/// Who the directories shall belong to: `UID:GID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    uid: Uid,
    gid: Gid,
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once(':')
            .and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
        let (uid, gid) = parsed.ok_or("expected two numbers, such as 4242:4242")?;
        Ok(Self {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
        })
    }
}

/// A directory that cannot be made ready.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}; run this as root, or prepare the directory on the node", path.display())]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Makes the cache directory and the socket's directory, for `owner`. The socket's directory gets `local.socket_group`.
pub fn directories(config: &Config, owner: Owner) -> Result<(), Error> {
    directory(&config.cache.directory, owner, CACHE_MODE)?;
    let group = config.local.socket_group.map_or(owner.gid, Gid::from_raw);
    let of_socket = Owner { gid: group, ..owner };
    directory(&config.local.socket_dir, of_socket, SOCKET_MODE)
}

fn directory(path: &Path, owner: Owner, mode: u32) -> Result<(), Error> {
    let failed = |action| {
        move |source| Error {
            action,
            path: path.to_owned(),
            source,
        }
    };
    fs::create_dir_all(path).map_err(failed("create"))?;
    let found = fs::metadata(path).map_err(failed("inspect"))?;
    // The mode first: a capability to change one's own file is not needed then.
    if found.permissions().mode() & 0o7777 != mode {
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("set the mode of"))?;
    }
    if (found.uid(), found.gid()) != (owner.uid.as_raw(), owner.gid.as_raw()) {
        chown(path, Some(owner.uid), Some(owner.gid))
            .map_err(|errno| failed("set the owner of")(errno.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(root: &Path) -> Config {
        let text = format!(
            "[cache]\ndirectory = \"{0}/cache\"\n[local]\nsocket_dir = \"{0}/run\"\n\
             [[store]]\nname = \"data\"\nkind = \"file\"\nroot = \"/data\"\n",
            root.display()
        );
        text.parse().unwrap()
    }

    #[test]
    fn directories_get_their_modes_and_a_second_time_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let config = config(root.path());
        let me = Owner {
            uid: Uid::effective(),
            gid: Gid::effective(),
        };
        for _ in 0..2 {
            directories(&config, me).unwrap();
            let mode = |name| {
                let found = fs::metadata(root.path().join(name)).unwrap();
                found.permissions().mode() & 0o7777
            };
            assert_eq!((mode("cache"), mode("run")), (0o700, 0o750));
        }
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named_with_the_remedy() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cache"), "a file").unwrap();
        let me = "0:0".parse().unwrap();
        let error = directories(&config(root.path()), me).unwrap_err().to_string();
        assert!(
            error.contains("cache") && error.contains("prepare the directory"),
            "{error}"
        );
    }

    #[test]
    fn an_owner_is_two_numbers() {
        assert!("4242:4242".parse::<Owner>().is_ok());
        for wrong in ["4242", "cachelet:cachelet", "1:2:3", ":", ""] {
            assert!(wrong.parse::<Owner>().is_err(), "{wrong}");
        }
    }
}
