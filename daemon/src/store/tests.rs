//! The store through its public interface, on real files.

use std::os::unix::fs::FileExt;

use cachelet_protocol::block::{PAGE_BYTES, PageIndex, PageSet};
use cachelet_protocol::ids::{Etag, Generation, ObjectName, StoreIdentity};

use super::*;

mod durability;
mod eviction;
mod grants;
mod integrity;
mod model;
mod opening;
mod pages;
mod restart;
mod scrub;

/// Pages a block of the tests has.
const PAGES: u32 = 4;
const BLOCK_BYTES: u64 = PAGES as u64 * PAGE_BYTES;
/// How long a stop may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a block with all its pages is charged.
const FULL_CHARGE: u64 = HEADER_CHARGE + BLOCK_BYTES;

/// A cache directory, and what happened in it.
struct Disk {
    directory: tempfile::TempDir,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Disk {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            events: Arc::default(),
        }
    }

    fn config(&self) -> Config {
        Config {
            directory: self.directory.path().join("cache"),
            read_only_path: None,
            grants: GrantPolicy::Unprotected,
            quota_bytes: 64 << 20,
            min_free_percent: 0,
            block_size: BlockSize::new(BLOCK_BYTES).unwrap(),
            max_open_files: 64,
            slow_disk: Duration::ZERO,
            disk_retry: Duration::from_secs(30),
        }
    }

    fn open_with(&self, config: Config) -> Result<BlockStore, Error> {
        let events = Arc::clone(&self.events);
        BlockStore::open(config, move |event| lock(&events).push(event))
    }

    /// A store whose directory is scanned.
    fn open(&self) -> BlockStore {
        self.open_quota(64 << 20)
    }

    fn open_quota(&self, quota_bytes: u64) -> BlockStore {
        let store = self
            .open_with(Config {
                quota_bytes,
                ..self.config()
            })
            .unwrap();
        store.recover();
        store
    }

    fn path_of(&self, block: &Block) -> PathBuf {
        Layout::of(&self.config().directory).block(block.identity().key())
    }

    fn v1(&self) -> PathBuf {
        self.config().directory.join("v1")
    }

    fn files_in(&self, folder: &str) -> usize {
        std::fs::read_dir(self.v1().join(folder)).unwrap().count()
    }

    fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut *lock(&self.events))
    }

    /// Changes bytes of a file behind the store's back, without a new inode.
    fn tamper(&self, block: &Block, at: u64, change: impl FnOnce(&mut [u8; 8])) {
        let file = File::options()
            .read(true)
            .write(true)
            .open(self.path_of(block))
            .unwrap();
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        change(&mut bytes);
        file.write_all_at(&bytes, at).unwrap();
    }
}

/// An object of the tests, by number: `pages` full pages and `extra` bytes.
fn object(number: u32, size_bytes: u64) -> Arc<ObjectIdentity> {
    let name = ObjectName {
        store: StoreIdentity::new("test").unwrap(),
        path: format!("s3://bucket/key-{number}").parse().unwrap(),
    };
    let generation = Generation {
        etag: Etag::new(format!("etag-{number}")).unwrap(),
        size_bytes,
    };
    Arc::new(ObjectIdentity::new(name, generation))
}

/// The only block of an object with exactly one full block.
fn full_block(number: u32) -> BlockIdentity {
    BlockIdentity::new(object(number, BLOCK_BYTES), BlockIndex(0))
}

/// What a page of a block holds: depends on the object, the block and every offset.
fn contents(id: &BlockIdentity, page: u32) -> Vec<u8> {
    let length = PageIndex(page).length_in(id.length(BlockSize::new(BLOCK_BYTES).unwrap()));
    let seed = u64::from(crc_fast::checksum(
        crc_fast::CrcAlgorithm::Crc32Iscsi,
        format!("{}/{}/{page}", id.object().id(), id.index()).as_bytes(),
    ) as u32);
    (0..length.div_ceil(8))
        .flat_map(|word| {
            (seed + 1)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .wrapping_add(word * word)
                .to_le_bytes()
        })
        .take(length as usize)
        .collect()
}

fn write(store: &BlockStore, block: &Arc<Block>, page: u32) -> Result<PageSet, Error> {
    let bytes = contents(block.identity(), page);
    let reservation = store.reserve(bytes.len() as u64)?;
    store.write_page(block, PageIndex(page), &bytes, reservation)
}

/// The block with these pages.
fn fill(store: &BlockStore, id: &BlockIdentity, pages: impl IntoIterator<Item = u32>) -> Arc<Block> {
    let block = store.find_or_create(id).unwrap();
    for page in pages {
        write(store, &block, page).unwrap();
    }
    block
}

fn read_page(store: &BlockStore, block: &Arc<Block>, page: u32) -> Result<Vec<u8>, Error> {
    let start = PageIndex(page).start();
    let mut buffer = vec![0; PageIndex(page).length_in(block.length()) as usize];
    store.read(block, start..start + buffer.len() as u64, &mut buffer)?;
    Ok(buffer)
}

#[track_caller]
fn assert_holds(store: &BlockStore, block: &Arc<Block>, pages: impl IntoIterator<Item = u32>) {
    for page in pages {
        assert!(
            read_page(store, block, page).unwrap() == contents(block.identity(), page),
            "page {page}"
        );
    }
}

/// The sum that must never exceed the quota.
#[track_caller]
fn assert_within_quota(store: &BlockStore) {
    let ledger = store.ledger();
    assert!(ledger.used_bytes() <= ledger.quota_bytes, "{ledger:?}");
}
