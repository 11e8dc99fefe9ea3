//! A disk that fails when it is told to: a pass-through file system (FUSE) over a directory.
//!
//! What it can show: operations that fail or take long, as the daemon and its clients see them, descriptors and leases
//! included. What it cannot: a writeback that fails behind a write that succeeded, for every write reaches the directory
//! before it returns; and what the page cache hides, for there is none: each read is asked for.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use nix::libc;
use nix::mount::{MntFlags, umount2};
use nix::sys::statvfs::statvfs;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::TestDir;

/// Nothing changes but through the file system: the kernel may keep what it knows.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// What a disk can be told to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskOperation {
    /// Reading a file's bytes.
    Read,
    /// Writing a file's bytes.
    Write,
    /// Bringing a file to disk.
    Sync,
    /// Giving a file another name.
    Rename,
    /// Opening or creating a file.
    Open,
    /// Removing a file.
    Unlink,
}

/// See the module's text. Unmounted when dropped; declare it before whatever uses it.
#[derive(Debug)]
pub struct FaultyDisk {
    session: Option<BackgroundSession>,
    mount: PathBuf,
    backing: PathBuf,
    shared: Arc<Shared>,
    _dir: TestDir,
}

impl FaultyDisk {
    /// A healthy disk. `None`, after saying so, where there is no FUSE or no right to mount. `seed` decides which operations
    /// fail.
    pub fn mount(seed: u64) -> Option<Self> {
        if !crate::can_mount() || !Path::new("/dev/fuse").exists() {
            eprintln!("skipped: a disk that fails needs root and /dev/fuse");
            return None;
        }
        let dir = TestDir::new("disk");
        let (mount, backing) = (dir.create_dir("disk"), dir.create_dir("backing"));
        let shared = Arc::new(Shared {
            root: backing.clone(),
            nodes: Mutex::new(Nodes {
                paths: HashMap::from([(INodeNo::ROOT.0, backing.clone())]),
                ids: HashMap::from([(backing.clone(), INodeNo::ROOT.0)]),
                files: HashMap::new(),
                next: INodeNo::ROOT.0,
            }),
            faults: Mutex::new(Faults {
                probabilities: HashMap::new(),
                delay: Duration::ZERO,
                random: StdRng::seed_from_u64(seed),
            }),
            failures: AtomicU64::new(0),
        });
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("faulty".to_owned())];
        config.n_threads = Some(2);
        let session =
            fuser::spawn_mount(Passthrough(Arc::clone(&shared)), &mount, &config).unwrap_or_else(|error| {
                panic!("cannot mount a FUSE file system at {}: {error}", mount.display())
            });
        Some(Self {
            session: Some(session),
            mount,
            backing,
            shared,
            _dir: dir,
        })
    }

    /// Where the disk is.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// The directory behind it, where nothing fails. What is changed there the disk's users are not told of.
    pub fn backing(&self) -> &Path {
        &self.backing
    }

    /// From now on an operation fails with EIO, with this probability.
    pub fn fail(&self, operation: DiskOperation, probability: f64) {
        self.shared.faults().probabilities.insert(operation, probability);
    }

    /// From now on every operation takes so much longer.
    pub fn slow_down(&self, by: Duration) {
        self.shared.faults().delay = by;
    }

    /// The disk is well again.
    pub fn heal(&self) {
        let mut faults = self.shared.faults();
        faults.probabilities.clear();
        faults.delay = Duration::ZERO;
    }

    /// How many operations it has failed.
    pub fn failures(&self) -> u64 {
        self.shared.failures.load(Ordering::Relaxed)
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.heal();
        // Detached, because a process that is just dying may still hold it.
        if let Err(error) = umount2(&self.mount, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.mount.display());
        }
        drop(self.session.take());
    }
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    nodes: Mutex<Nodes>,
    faults: Mutex<Faults>,
    failures: AtomicU64,
}

#[derive(Debug)]
struct Faults {
    probabilities: HashMap<DiskOperation, f64>,
    delay: Duration,
    random: StdRng,
}

/// Nodes have an id of their own each time that a file gets a path: no id is ever another file's.
#[derive(Debug)]
struct Nodes {
    paths: HashMap<u64, PathBuf>,
    ids: HashMap<PathBuf, u64>,
    /// Open files by handle, with their nodes.
    files: HashMap<u64, (u64, Arc<File>)>,
    next: u64,
}

impl Nodes {
    fn id(&mut self, path: &Path) -> u64 {
        if let Some(id) = self.ids.get(path) {
            return *id;
        }
        let id = self.new_id();
        self.ids.insert(path.to_owned(), id);
        self.paths.insert(id, path.to_owned());
        id
    }

    fn new_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The path shows another file from now on, or none.
    fn forget(&mut self, path: &Path) {
        if let Some(id) = self.ids.remove(path) {
            self.paths.remove(&id);
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        self.forget(to);
        if let Some(id) = self.ids.remove(from) {
            self.ids.insert(to.to_owned(), id);
            self.paths.insert(id, to.to_owned());
        }
    }

    fn open(&mut self, node: u64, file: File) -> FileHandle {
        let handle = self.new_id();
        self.files.insert(handle, (node, Arc::new(file)));
        FileHandle(handle)
    }
}

impl Shared {
    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// EIO, if it is this operation's turn.
    fn roll(&self, operation: DiskOperation) -> Result<(), Errno> {
        let mut faults = self.faults();
        let probability = faults.probabilities.get(&operation).copied().unwrap_or(0.0);
        if probability > 0.0 && faults.random.random_bool(probability) {
            self.failures.fetch_add(1, Ordering::Relaxed);
            return Err(Errno::EIO);
        }
        Ok(())
    }

    fn path(&self, node: INodeNo) -> Result<PathBuf, Errno> {
        self.nodes().paths.get(&node.0).cloned().ok_or(Errno::ESTALE)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<PathBuf, Errno> {
        Ok(self.path(parent)?.join(name))
    }

    fn file(&self, handle: FileHandle) -> Result<Arc<File>, Errno> {
        let nodes = self.nodes();
        nodes
            .files
            .get(&handle.0)
            .map(|(_, file)| Arc::clone(file))
            .ok_or(Errno::EBADF)
    }

    /// A node's metadata: by its path or, if it was removed, by a descriptor that somebody has of it.
    fn metadata(&self, node: INodeNo) -> Result<Metadata, Errno> {
        let file = {
            let nodes = self.nodes();
            if let Some(path) = nodes.paths.get(&node.0) {
                return Ok(std::fs::symlink_metadata(path)?);
            }
            let open = nodes.files.values().find(|(id, _)| *id == node.0);
            open.map(|(_, file)| Arc::clone(file)).ok_or(Errno::ESTALE)?
        };
        Ok(file.metadata()?)
    }

    fn attributes(&self, node: INodeNo) -> Result<FileAttr, Errno> {
        Ok(attributes(node, &self.metadata(node)?))
    }

    fn entry(&self, path: &Path) -> Result<FileAttr, Errno> {
        let metadata = std::fs::symlink_metadata(path)?;
        let node = self.nodes().id(path);
        Ok(attributes(INodeNo(node), &metadata))
    }

    fn resize(
        &self,
        node: INodeNo,
        handle: Option<FileHandle>,
        size: Option<u64>,
    ) -> Result<FileAttr, Errno> {
        if let Some(size) = size {
            match handle {
                Some(handle) => self.file(handle)?.set_len(size)?,
                None => File::options()
                    .write(true)
                    .open(self.path(node)?)?
                    .set_len(size)?,
            }
        }
        self.attributes(node)
    }

    fn create(&self, path: &Path, mode: u32, exclusive: bool) -> Result<(FileAttr, FileHandle), Errno> {
        self.roll(DiskOperation::Open)?;
        let mut options = File::options();
        options
            .read(true)
            .write(true)
            .mode(mode)
            .create(true)
            .create_new(exclusive);
        let file = options.truncate(false).open(path)?;
        let attributes = self.entry(path)?;
        let handle = self.nodes().open(attributes.ino.0, file);
        Ok((attributes, handle))
    }

    fn open(&self, node: INodeNo, writable: bool) -> Result<FileHandle, Errno> {
        self.roll(DiskOperation::Open)?;
        let file = File::options()
            .read(true)
            .write(writable)
            .open(self.path(node)?)?;
        Ok(self.nodes().open(node.0, file))
    }

    fn read(&self, handle: FileHandle, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        self.roll(DiskOperation::Read)?;
        let file = self.file(handle)?;
        let mut bytes = vec![0; size as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    fn write(&self, handle: FileHandle, offset: u64, bytes: &[u8]) -> Result<u32, Errno> {
        self.roll(DiskOperation::Write)?;
        self.file(handle)?.write_all_at(bytes, offset)?;
        Ok(u32::try_from(bytes.len()).expect("the kernel's own size"))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        self.roll(DiskOperation::Rename)?;
        std::fs::rename(from, to)?;
        self.nodes().rename(from, to);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> Result<(), Errno> {
        self.roll(DiskOperation::Unlink)?;
        std::fs::remove_file(path)?;
        self.nodes().forget(path);
        Ok(())
    }

    fn list(&self, node: INodeNo) -> Result<Vec<(FileType, PathBuf)>, Errno> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(self.path(node)?)? {
            let entry = entry?;
            entries.push((kind(&entry.metadata()?), entry.path()));
        }
        entries.sort_by(|(_, one), (_, other)| one.cmp(other));
        Ok(entries)
    }
}

fn kind(metadata: &Metadata) -> FileType {
    if metadata.is_dir() {
        FileType::Directory
    } else {
        FileType::RegularFile
    }
}

fn attributes(node: INodeNo, metadata: &Metadata) -> FileAttr {
    FileAttr {
        ino: node,
        size: metadata.len(),
        blocks: metadata.blocks(),
        atime: metadata.accessed().unwrap_or(SystemTime::UNIX_EPOCH),
        mtime: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(metadata),
        perm: (metadata.mode() & 0o7777) as u16,
        nlink: metadata.nlink() as u32,
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

struct Passthrough(Arc<Shared>);

impl Passthrough {
    /// Does something now, or after the disk's delay, and then without holding up others.
    fn run(&self, work: impl FnOnce(&Shared) + Send + 'static) {
        let delay = self.0.faults().delay;
        if delay.is_zero() {
            return work(&self.0);
        }
        let shared = Arc::clone(&self.0);
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            work(&shared);
        });
    }

    fn run_empty(&self, reply: ReplyEmpty, work: impl FnOnce(&Shared) -> Result<(), Errno> + Send + 'static) {
        self.run(move |shared| match work(shared) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        });
    }
}

impl Filesystem for Passthrough {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.run(
            move |shared| match shared.child(parent, &name).and_then(|path| shared.entry(&path)) {
                Ok(attributes) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.run(move |shared| match shared.attributes(node) {
            Ok(attributes) => reply.attr(&FOR_EVER, &attributes),
            Err(errno) => reply.error(errno),
        });
    }

    fn setattr(
        &self,
        _: &Request,
        node: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.run(move |shared| match shared.resize(node, handle, size) {
            Ok(attributes) => reply.attr(&FOR_EVER, &attributes),
            Err(errno) => reply.error(errno),
        });
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let name = name.to_owned();
        self.run(move |shared| {
            let made = shared.child(parent, &name).and_then(|path| {
                std::fs::DirBuilder::new().mode(mode).create(&path)?;
                shared.entry(&path)
            });
            match made {
                Ok(attributes) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.run_empty(reply, move |shared| shared.unlink(&shared.child(parent, &name)?));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.run_empty(reply, move |shared| {
            let path = shared.child(parent, &name)?;
            std::fs::remove_dir(&path)?;
            shared.nodes().forget(&path);
            Ok(())
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        self.run_empty(reply, move |shared| {
            shared.rename(
                &shared.child(parent, &name)?,
                &shared.child(new_parent, &new_name)?,
            )
        });
    }

    fn open(&self, _: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writable = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
        self.run(move |shared| match shared.open(node, writable) {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO),
            Err(errno) => reply.error(errno),
        });
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = name.to_owned();
        self.run(move |shared| {
            let path = shared.child(parent, &name);
            match path.and_then(|path| shared.create(&path, mode, flags & libc::O_EXCL != 0)) {
                Ok((attributes, handle)) => {
                    let flags = FopenFlags::FOPEN_DIRECT_IO;
                    reply.created(&FOR_EVER, &attributes, Generation(0), handle, flags);
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.run(move |shared| match shared.read(handle, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_owned();
        self.run(move |shared| match shared.write(handle, offset, &data) {
            Ok(written) => reply.written(written),
            Err(errno) => reply.error(errno),
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let closed = self.0.nodes().files.remove(&handle.0);
        drop(closed);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.run_empty(reply, move |shared| {
            shared.roll(DiskOperation::Sync)?;
            Ok(shared.file(handle)?.sync_data()?)
        });
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.run_empty(reply, |_| Ok(()));
    }

    fn readdir(&self, _: &Request, node: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.run(move |shared| {
            let entries = match shared.list(node) {
                Ok(entries) => entries,
                Err(errno) => return reply.error(errno),
            };
            for (at, (kind, path)) in (1..).zip(entries).skip(offset as usize) {
                let id = shared.nodes().id(&path);
                if reply.add(INodeNo(id), at, kind, path.file_name().unwrap_or_default()) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.run(move |shared| match statvfs(&shared.root) {
            Ok(disk) => {
                let unit = disk.fragment_size() as u32;
                reply.statfs(
                    disk.blocks(),
                    disk.blocks_free(),
                    disk.blocks_available(),
                    disk.files(),
                    disk.files_free(),
                    unit,
                    255,
                    unit,
                );
            }
            Err(errno) => reply.error(Errno::from(io::Error::from(errno))),
        });
    }
}
