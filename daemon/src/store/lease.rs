//! Proves that nobody else holds a file, with a kernel lease. The only unsafe code of the store.
//!
//! `fcntl(F_SETLEASE, F_WRLCK)` on a read-write descriptor succeeds only while no other open file description of the
//! file exists on the machine, be it a descriptor in another process, one in flight in a socket, or a mapping. For an
//! unlinked file nobody can open another one afterwards, so success means that its bytes are this process's to free.

#![allow(unsafe_code, reason = "nix has no F_SETLEASE; the calls take integers only")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;

/// `F_SETSIG` of Linux, the same on every architecture; libc names it for few targets.
const F_SETSIG: libc::c_int = 10;

/// Whether this descriptor, open for reading and writing, is the only open file description of its file.
///
/// Errors: the file system has no leases, or the file belongs to somebody else.
pub(super) fn is_sole_holder(file: &File) -> io::Result<bool> {
    // Whoever opened the file while the lease is set would make the kernel send SIGIO, which ends the process. SIGURG
    // is ignored by default.
    fcntl(file, F_SETSIG, libc::SIGURG)?;
    match fcntl(file, libc::F_SETLEASE, libc::F_WRLCK) {
        Ok(()) => {
            fcntl(file, libc::F_SETLEASE, libc::F_UNLCK)?;
            Ok(true)
        }
        Err(Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn fcntl(file: &File, command: libc::c_int, argument: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and both commands take one integer: no memory
    // is passed. `an_unlinked_file_is_proved_free_only_when_nobody_holds_it` calls it in every state.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unlinked_file_is_proved_free_only_when_nobody_holds_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let ours = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        let theirs = File::open(&path).unwrap();
        let copy = theirs.try_clone().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!is_sole_holder(&ours).unwrap());
        drop(theirs);
        assert!(!is_sole_holder(&ours).unwrap(), "a duplicate holds the file too");
        drop(copy);
        assert!(is_sole_holder(&ours).unwrap());
        assert!(is_sole_holder(&ours).unwrap(), "the lease is taken back");
    }
}
