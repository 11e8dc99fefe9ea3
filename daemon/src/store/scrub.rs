//! Reading what is cached again, slowly, to find what the disk has lost before a reader does.
//!
//! Page after page, in the order of the index, each compared with its checksums as every verified read is; what is damaged
//! goes the way of all damage (quarantine, and the block is fetched again).
//!
//! * **From the disk**: files are read with `O_DIRECT`, so a sound copy in the page cache hides nothing, and the page cache is
//!   neither filled with what nobody reads nor emptied of what somebody does. A file system without `O_DIRECT` is read
//!   through the page cache, which is asked to drop the page then: it may drop one that was there before.
//! * **Unnoticed**: not a use in the order of eviction, not one of the kept descriptors; a file that leaves the cache meanwhile
//!   is held for one page at most.
//! * What is being filled, or waits to be brought to disk, is passed over: it was written a moment ago.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

use cachelet_protocol::block::{CHUNK_BYTES, PAGE_BYTES, PageIndex, PageSet};
use cachelet_protocol::integrity::{PageWord, crc32c};
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;

use super::block::{Inode, Key};
use super::format::{self, Decoded, Header, TABLES_END};
use super::health::Operation;
use super::layout::block_options;
use super::{Block, BlockStore, DATA_OFFSET, Damage, Error};

/// What `O_DIRECT` wants of offsets, lengths and memory on every disk.
const ALIGNMENT: usize = 4096;

/// How far a pass over the cache has come.
#[derive(Debug, Default)]
pub struct ScrubPosition {
    block: Option<Key>,
    /// The next page of that block; `None`: it is done with.
    page: Option<u32>,
}

impl BlockStore {
    /// Reads one more page and verifies it; how many bytes that took of the disk. `None`: the pass is over. Touches the disk.
    ///
    /// An error is the disk's state: nothing was read. Damage is none; it is told as always.
    pub fn scrub_page(&self, position: &mut ScrubPosition) -> Result<Option<u64>, Error> {
        self.check_disk()?;
        loop {
            let Some((block, page)) = self.next_to_scrub(position) else {
                self.state().counts.scrub_passes += 1;
                return Ok(None);
            };
            *position = ScrubPosition {
                block: Some(block.identity().key()),
                page: Some(page.0 + 1),
            };
            if let Some(bytes) = self.scrub(&block, page) {
                self.state().counts.scrubbed_bytes += bytes;
                return Ok(Some(bytes));
            }
        }
    }

    fn next_to_scrub(&self, position: &ScrubPosition) -> Option<(Arc<Block>, PageIndex)> {
        let state = self.state();
        let from = |block: &Arc<Block>, first: u32| {
            let busy = block.has_fills() || state.dirty.contains(block.file_id());
            let pages = if busy { PageSet::EMPTY } else { block.pages().all() };
            let page = pages.iter().find(|page| page.0 >= first)?;
            Some((Arc::clone(block), page))
        };
        let begun = position.block.zip(position.page).and_then(|(key, page)| {
            let block = state.index.get(&key)?;
            from(block, page)
        });
        begun.or_else(|| {
            let after = position.block.map_or(Bound::Unbounded, Bound::Excluded);
            let mut rest = state.index.range((after, Bound::Unbounded));
            rest.find_map(|(_, block)| from(block, 0))
        })
    }

    /// How many bytes were read; `None`: the file is not there any more.
    fn scrub(&self, block: &Arc<Block>, page: PageIndex) -> Option<u64> {
        let path = self.inner.layout.block(block.identity().key());
        let mut tables = Aligned::new(TABLES_END);
        let mut data = Aligned::new(PAGE_BYTES as usize);
        let read = self.watched(Operation::Read, || {
            let Some(file) = open(&path, block)? else {
                return Ok(None);
            };
            file.read(&mut tables, 0)?;
            file.read(&mut data, DATA_OFFSET + page.start())?;
            Ok::<_, io::Error>(Some((tables.bytes(), data.bytes())))
        });
        let damage = match read {
            Ok(Some((tables, data))) => check(block, page, tables, data),
            Ok(None) => return None,
            Err(error) => Err(Damage::unreadable(&error)),
        };
        match damage {
            Ok(()) => block.update_pages(|pages| {
                let one = PageSet::one(page).intersection(pages.unverified);
                pages.unverified = pages.unverified.difference(one);
                pages.verified = pages.verified.union(one);
            }),
            Err(_) if block.is_retired() => {}
            Err(damage) => {
                self.state().counts.scrub_findings += 1;
                self.condemn(block, damage);
            }
        }
        Some(TABLES_END as u64 + page.length_in(block.length()))
    }
}

/// Whether a page is what its block's file should hold, header and tables included.
fn check(block: &Block, page: PageIndex, tables: &[u8], data: &[u8]) -> Result<(), Damage> {
    let short = Damage::Size {
        expected_bytes: DATA_OFFSET + block.length(),
        actual_bytes: (tables.len() + data.len()) as u64,
    };
    match Header::decode(tables) {
        Decoded::Header(header)
            if header.identity == *block.identity() && header.file_id == block.file_id() => {}
        Decoded::Header(_) | Decoded::Foreign(_) => return Err(Damage::Misplaced),
        Decoded::Damaged(damage) => return Err(damage),
    }
    let word = tables
        .get(format::word_offset(page) as usize..)
        .and_then(<[u8]>::first_chunk);
    let crcs = tables
        .get(format::crcs_offset(page) as usize..)
        .and_then(<[u8]>::first_chunk);
    let bytes = data.get(..page.length_in(block.length()) as usize);
    let (Some(word), Some(crcs), Some(bytes)) = (word, crcs, bytes) else {
        return Err(short);
    };
    let crcs = format::decode_crcs(crcs);
    let key = block.identity().key();
    if !PageWord::new(&key.object, key.index.0, page, &crcs).matches(u64::from_le_bytes(*word)) {
        return Err(Damage::Word(page));
    }
    let chunks = bytes.chunks(CHUNK_BYTES as usize);
    if chunks.zip(crcs).all(|(chunk, crc)| crc32c(chunk) == crc) {
        Ok(())
    } else {
        Err(Damage::Data(page))
    }
}

/// A block's file, open past the page cache if that can be.
struct Direct {
    file: File,
    cached: bool,
}

/// `None`: the path does not show the block's file any more. Whoever looks for the block finds that out.
fn open(path: &std::path::Path, block: &Block) -> io::Result<Option<Direct>> {
    let open = |flags| {
        block_options()
            .write(false)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | flags)
            .open(path)
    };
    let (file, cached) = match open(libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (open(0), true),
        opened => (opened, false),
    };
    let file = match file {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let ours = Inode::of(&file.metadata()?) == block.inode;
    Ok(ours.then_some(Direct { file, cached }))
}

impl Direct {
    /// Fills the buffer, as far as the file reaches.
    fn read(&self, buffer: &mut Aligned, offset: u64) -> io::Result<()> {
        buffer.filled = 0;
        loop {
            let filled = buffer.filled;
            let rest = &mut buffer.whole()[filled..];
            if rest.is_empty() || !filled.is_multiple_of(ALIGNMENT) {
                break;
            }
            match self.file.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => buffer.filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.cached {
            let length = i64::try_from(buffer.filled).map_err(|_| Errno::EOVERFLOW)?;
            let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
            posix_fadvise(
                &self.file,
                offset,
                length,
                PosixFadviseAdvice::POSIX_FADV_DONTNEED,
            )?;
        }
        Ok(())
    }
}

/// Memory that may be read into with `O_DIRECT`.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
    filled: usize,
}

impl Aligned {
    fn new(length: usize) -> Self {
        let memory = vec![0; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self {
            memory,
            start,
            length,
            filled: 0,
        }
    }

    fn whole(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.filled]
    }
}
