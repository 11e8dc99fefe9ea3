//! Descriptors for readers. The tests that mount need root, and say nothing without.

use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;

/// A mount that ends with the test.
pub(super) struct Mount(PathBuf);

impl Mount {
    /// A read-only bind mount of `from` at `at`; `None` without the right to mount.
    pub(super) fn read_only(from: &Path, at: &Path) -> Option<Self> {
        let bound = Self::bind(from, at)?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, at, None::<&str>, flags, None::<&str>).unwrap();
        Some(bound)
    }

    pub(super) fn bind(from: &Path, at: &Path) -> Option<Self> {
        Self::allowed(
            mount(Some(from), at, None::<&str>, MsFlags::MS_BIND, None::<&str>),
            at,
        )
    }

    pub(super) fn tmpfs(at: &Path, size_bytes: u64) -> Option<Self> {
        let options = format!("size={size_bytes}");
        Self::allowed(
            mount(
                Some("tmpfs"),
                at,
                Some("tmpfs"),
                MsFlags::empty(),
                Some(options.as_str()),
            ),
            at,
        )
    }

    fn allowed(result: nix::Result<()>, at: &Path) -> Option<Self> {
        match result {
            Ok(()) => Some(Self(at.to_owned())),
            Err(Errno::EPERM | Errno::EACCES) => {
                println!("skipped: mounting needs root");
                None
            }
            Err(errno) => panic!("cannot mount at {}: {errno}", at.display()),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

fn reopen_for_writing(fd: &impl AsRawFd) -> std::io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// A directory for the read-only mount, beside the cache.
fn second_path(disk: &Disk) -> PathBuf {
    let path = disk.directory.path().join("read-only");
    std::fs::create_dir_all(&path).unwrap();
    std::fs::create_dir_all(disk.config().directory).unwrap();
    path
}

fn with_path(disk: &Disk, grants: GrantPolicy, path: &Path) -> Config {
    Config {
        grants,
        read_only_path: Some(path.to_owned()),
        ..disk.config()
    }
}

#[test]
fn a_grant_through_the_read_only_mount_cannot_be_reopened_for_writing_even_by_root() {
    let disk = Disk::new();
    let path = second_path(&disk);
    let Some(_mount) = Mount::read_only(&disk.config().directory, &path) else {
        return;
    };
    let store = disk
        .open_with(with_path(&disk, GrantPolicy::Required, &path))
        .unwrap();
    store.recover();
    assert_eq!(*store.grants(), GrantStatus::Enabled);
    let block = fill(&store, &full_block(1), [0]);
    let grant = store.grant(&block, SessionId(1)).unwrap();
    let error = reopen_for_writing(&grant.fd).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::EROFS as i32));
    let mode = nix::sys::stat::Mode::S_IRWXO;
    assert_eq!(nix::sys::stat::fchmod(&grant.fd, mode), Err(Errno::EROFS));

    // A page written after the grant appears in it, through the other mount.
    write(&store, &block, 1).unwrap();
    let mut page = vec![0; PAGE_BYTES as usize];
    File::from(grant.fd)
        .read_exact_at(&mut page, grant.data_offset + PAGE_BYTES)
        .unwrap();
    assert!(page == contents(block.identity(), 1));
    // And reclaim sees holders of the other mount's descriptors too.
    let grant = store.grant(&block, SessionId(1)).unwrap();
    store.remove(&block);
    assert_eq!(store.ledger().unlinked_files, 1);
    drop(grant);
    assert_eq!(store.reclaim(), HEADER_CHARGE + 2 * PAGE_BYTES);
}

#[test]
fn a_mount_that_stops_being_read_only_stops_grants() {
    let disk = Disk::new();
    let path = second_path(&disk);
    let Some(mounted) = Mount::read_only(&disk.config().directory, &path) else {
        return;
    };
    let store = disk
        .open_with(with_path(&disk, GrantPolicy::Required, &path))
        .unwrap();
    store.recover();
    let block = fill(&store, &full_block(1), [0]);
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    mount(None::<&str>, &path, None::<&str>, flags, None::<&str>).unwrap();
    assert!(matches!(
        store.grant(&block, SessionId(1)),
        Err(Error::GrantsDisabled { .. })
    ));
    drop(mounted);
    let refused = store.grant(&block, SessionId(1));
    assert!(
        matches!(refused, Err(Error::GrantsDisabled { .. })),
        "{refused:?}"
    );
    assert_eq!(
        store.held_bytes(SessionId(1)),
        0,
        "a refused grant leases nothing"
    );
    assert_holds(&store, &block, [0]);
}

#[test]
fn without_a_protected_path_nothing_is_granted() {
    let disk = Disk::new();
    let elsewhere = second_path(&disk);
    let other_disk = Disk::new();
    drop(other_disk.open());
    let same = disk.config().directory;
    let cases = [
        (None, "no read_only_path is set"),
        (Some(PathBuf::from("/nonexistent")), "cannot open"),
        (Some(elsewhere), "cannot open"),
        (Some(other_disk.config().directory), "cannot open"),
        (Some(same), "re-opened for writing"),
    ];
    for (read_only_path, expected) in cases {
        let config = Config {
            grants: GrantPolicy::Required,
            read_only_path,
            ..disk.config()
        };
        let store = disk.open_with(config).unwrap();
        store.recover();
        let GrantStatus::Disabled { reason } = store.grants().clone() else {
            panic!("{:?}", store.grants())
        };
        assert!(reason.contains(expected) && reason.contains("mount"), "{reason}");
        let block = fill(&store, &full_block(1), [0]);
        assert!(matches!(
            store.grant(&block, SessionId(1)),
            Err(Error::GrantsDisabled { .. })
        ));
        assert_holds(&store, &block, [0]);
        assert_eq!(disk.files_in("tmp"), 0);
    }
}

#[test]
fn a_read_only_mount_of_another_directory_is_refused() {
    let disk = Disk::new();
    let path = second_path(&disk);
    let other_disk = Disk::new();
    drop(other_disk.open());
    // With a file of the test's name in it, so that only the inode tells.
    std::fs::write(other_disk.v1().join("tmp/read-only-test"), "").unwrap();
    let Some(_mount) = Mount::read_only(&other_disk.config().directory, &path) else {
        return;
    };
    let store = disk
        .open_with(with_path(&disk, GrantPolicy::Required, &path))
        .unwrap();
    assert!(
        matches!(store.grants(), GrantStatus::Disabled { reason } if reason.contains("another directory"))
    );
}

#[test]
fn development_may_grant_without_protection_and_says_so() {
    let disk = Disk::new();
    let store = disk
        .open_with(with_path(
            &disk,
            GrantPolicy::Unprotected,
            Path::new("/nonexistent"),
        ))
        .unwrap();
    store.recover();
    assert_eq!(*store.grants(), GrantStatus::EnabledUnprotected);
    let block = fill(&store, &full_block(1), [0, 2]);
    let grant = store.grant(&block, SessionId(1)).unwrap();
    assert_eq!((grant.file_id, grant.length), (block.file_id(), BLOCK_BYTES));
    assert_eq!((grant.data_offset, grant.crc_offset), (1 << 20, 8192));
    assert_eq!(grant.present, block.present());

    // What the client does with it: data, and the chunk's checksum if it wants to verify.
    let file = File::from(grant.fd);
    let mut chunk = vec![0; 65_536];
    file.read_exact_at(&mut chunk, grant.data_offset + 2 * PAGE_BYTES + 65_536)
        .unwrap();
    assert!(chunk == contents(block.identity(), 2)[65_536..2 * 65_536]);
    let mut crc = [0; 4];
    file.read_exact_at(&mut crc, grant.crc_offset + 4 * (2 * 16 + 1))
        .unwrap();
    assert_eq!(
        u32::from_le_bytes(crc),
        cachelet_protocol::integrity::crc32c(&chunk)
    );
    assert_eq!(
        file.write_at(b"x", 0).unwrap_err().raw_os_error(),
        Some(Errno::EBADF as i32)
    );
}

#[test]
fn no_two_grants_share_an_open_file_description() {
    use std::io::{Seek, SeekFrom};
    let disk = Disk::new();
    let store = disk.open();
    let block = fill(&store, &full_block(1), [0]);
    let grants = [1, 1, 2].map(|session| File::from(store.grant(&block, SessionId(session)).unwrap().fd));
    (&grants[0]).seek(SeekFrom::Start(77)).unwrap();
    for other in &grants[1..] {
        let mut other = other;
        assert_eq!(
            other.stream_position().unwrap(),
            0,
            "a shared offset is a channel between tenants"
        );
    }
    // One lease a session and file, however often it is granted.
    assert_eq!(store.held_bytes(SessionId(1)), HEADER_CHARGE + PAGE_BYTES);
    write(&store, &block, 1).unwrap();
    assert_eq!(
        store.held_bytes(SessionId(1)),
        HEADER_CHARGE + 2 * PAGE_BYTES,
        "it grows with the file"
    );
    store.release(SessionId(1), block.file_id());
    assert_eq!((store.held_bytes(SessionId(1)), store.ledger().sessions), (0, 1));
}
