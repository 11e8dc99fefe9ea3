//! A block in memory: whose it is, which of its pages are there, who is busy with it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use cachelet_protocol::block::{BlockIndex, BlockSize, PageSet};
use cachelet_protocol::ids::{FileId, Generation, ObjectId, ObjectName};
use cachelet_protocol::residency::Residency;

use super::eviction::BlockHash;
use super::lock;

/// One generation of one object, with its id worked out once; shared by the object's blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectIdentity {
    name: ObjectName,
    generation: Generation,
    id: ObjectId,
}

impl ObjectIdentity {
    /// Of this generation of this object.
    pub fn new(name: ObjectName, generation: Generation) -> Self {
        let id = name.object_id(&generation);
        Self { name, generation, id }
    }

    /// The object.
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// The generation.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// The id that blocks are filed under.
    pub fn id(&self) -> ObjectId {
        self.id
    }
}

/// Which block of which generation of which object. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockIdentity {
    object: Arc<ObjectIdentity>,
    index: BlockIndex,
}

impl BlockIdentity {
    /// A block of an object whose identity is shared.
    pub fn new(object: Arc<ObjectIdentity>, index: BlockIndex) -> Self {
        Self { object, index }
    }

    /// A block, from all its parts.
    pub fn of(name: ObjectName, generation: Generation, index: BlockIndex) -> Self {
        Self::new(Arc::new(ObjectIdentity::new(name, generation)), index)
    }

    /// The object's generation.
    pub fn object(&self) -> &Arc<ObjectIdentity> {
        &self.object
    }

    /// The block's position in the object.
    pub fn index(&self) -> BlockIndex {
        self.index
    }

    /// How many bytes the block has; 0 if the object has no such block.
    pub fn length(&self, block_size: BlockSize) -> u64 {
        block_size.length_of(self.index, self.object.generation.size_bytes)
    }

    pub(super) fn key(&self) -> Key {
        Key {
            object: self.object.id,
            index: self.index,
        }
    }
}

/// What a block is filed under, in memory and on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) object: ObjectId,
    pub(super) index: BlockIndex,
}

impl Key {
    /// What the order of eviction knows the block by.
    pub(super) fn hash(self) -> BlockHash {
        // The object's id is a hash; its blocks are told apart by an odd step.
        let (half, _) = self.object.as_bytes().split_at(8);
        let object = half.iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte));
        BlockHash(object.wrapping_add(u64::from(self.index.0).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }
}

/// Device and inode: what tells one file from another under the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) device: u64,
    pub(super) number: u64,
}

impl Inode {
    pub(super) fn of(metadata: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            device: metadata.dev(),
            number: metadata.ino(),
        }
    }
}

/// Pages on disk, by whether this daemon's life vouches for them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pages {
    /// Written in this life, verified in it, or kept over a clean stop.
    pub(super) verified: PageSet,
    /// On disk by their words, not yet compared with their checksums.
    pub(super) unverified: PageSet,
}

impl Pages {
    pub(super) fn all(self) -> PageSet {
        self.verified.union(self.unverified)
    }
}

/// A block that has a file here. Holding it keeps nothing alive: the file may be evicted at any time, which calls on it
/// then say.
pub struct Block {
    identity: BlockIdentity,
    file_id: FileId,
    length: u64,
    pub(super) inode: Inode,
    pages: Mutex<Pages>,
    /// Held across a page's writes, so that a page has one writer. Taken before, never within, the store's state.
    pub(super) writer: Mutex<()>,
    /// Fills in flight. Changes only under the store's state lock.
    fills: AtomicU32,
    /// Its file is unlinked, in quarantine, or about to be. Changes only under the store's state lock.
    retired: AtomicBool,
}

impl Block {
    pub(super) fn new(
        identity: BlockIdentity,
        file_id: FileId,
        length: u64,
        inode: Inode,
        pages: Pages,
    ) -> Self {
        Self {
            identity,
            file_id,
            length,
            inode,
            pages: Mutex::new(pages),
            writer: Mutex::new(()),
            fills: AtomicU32::new(0),
            retired: AtomicBool::new(false),
        }
    }

    /// Whose bytes it holds.
    pub fn identity(&self) -> &BlockIdentity {
        &self.identity
    }

    /// The id of its file.
    pub fn file_id(&self) -> FileId {
        self.file_id
    }

    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The pages that can be read and granted. Only grows.
    pub fn present(&self) -> PageSet {
        lock(&self.pages).verified
    }

    /// The pages that are on disk but must be verified before anybody reads them (after a stop that was not clean).
    pub fn unverified(&self) -> PageSet {
        lock(&self.pages).unverified
    }

    /// How much of it is here.
    pub fn residency(&self) -> Residency {
        Residency::of(self.pages().all(), self.length)
    }

    /// Whether its file has left the cache: look the block up again.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    pub(super) fn pages(&self) -> Pages {
        *lock(&self.pages)
    }

    pub(super) fn update_pages<T>(&self, update: impl FnOnce(&mut Pages) -> T) -> T {
        update(&mut lock(&self.pages))
    }

    pub(super) fn set_retired(&self, retired: bool) {
        self.retired.store(retired, Ordering::Release);
    }

    pub(super) fn has_fills(&self) -> bool {
        self.fills.load(Ordering::Acquire) > 0
    }

    /// True if there was none.
    pub(super) fn add_fill(&self) -> bool {
        self.fills.fetch_add(1, Ordering::AcqRel) == 0
    }

    /// True if there is none left.
    pub(super) fn end_fill(&self) -> bool {
        self.fills.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("file_id", &self.file_id)
            .field("object", &self.identity.object.id)
            .field("index", &self.identity.index.0)
            .field("length", &self.length)
            .field("pages", &self.pages())
            .field("retired", &self.is_retired())
            .finish_non_exhaustive()
    }
}
