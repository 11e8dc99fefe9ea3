//! Open objects and the path of a read.
//!
//! [`Object::read_at`] looks into the block's slot ([`block`]); if its grant has the pages, the read is one `pread` on the
//! held descriptor: no lock, no message, no allocation. Otherwise [`inner`] asks the daemon for the pages, or reads
//! inline.
//!
//! Invariants: a grant is read only where its pages are known to be present; a file that turns out short, unreadable or
//! (with `verify_reads`) corrupt is closed and its bytes come from the daemon; every byte belongs to the generation that
//! was opened, across reconnects too.

pub(crate) mod block;
mod inner;
mod readahead;
mod verify;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cachelet_protocol::ids::Generation;

pub(crate) use self::inner::Inner;
use self::readahead::Cursor;
use crate::client::Shared;
use crate::error::Error;
use crate::stats::{Counters, Stats};

/// An open object: one generation, readable from many threads. Closing it is dropping it.
///
/// Each `Object` is one stream for readahead; open the object again (which costs nothing while it is open) to read
/// another part of it sequentially.
pub struct Object {
    shared: Arc<Shared>,
    inner: Arc<Inner>,
    cursor: Cursor,
}

impl Object {
    pub(crate) fn new(shared: Arc<Shared>, inner: Arc<Inner>) -> Self {
        inner.users.fetch_add(1, Ordering::AcqRel);
        Self {
            shared,
            inner,
            cursor: Cursor::new(),
        }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// The generation that is open.
    pub fn generation(&self) -> &Generation {
        &self.inner.generation
    }

    /// The object's size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.inner.generation.size_bytes
    }

    /// Where this object's bytes came from so far, counted over everybody who has this generation open.
    pub fn stats(&self) -> Stats {
        self.inner.stats()
    }

    /// Reads at `offset` into `buf`, as `pread` does: 0 at the end, fewer bytes than asked for only there.
    ///
    /// After an error `buf`'s content means nothing.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, Error> {
        let size_bytes = self.inner.generation.size_bytes;
        let length = size_bytes.saturating_sub(offset).min(buf.len() as u64);
        if length == 0 {
            return Ok(0);
        }
        let buf = &mut buf[..length as usize];
        let range = offset..offset + length;
        if let Some(whole) = &self.inner.whole {
            buf.copy_from_slice(&whole[offset as usize..range.end as usize]);
            Counters::add(&self.inner.counters.local_bytes, length);
            Counters::add(&self.shared.counters.local_bytes, length);
            return Ok(buf.len());
        }
        if let Some((block, start)) = self.inner.table.within_one(offset, length)
            && self.inner.read_held(&self.shared, block, buf, start)
        {
            // The common case ends here, but for readahead.
        } else {
            self.read_blocks(buf, range.clone())?;
        }
        let window = self.shared.options.readahead_bytes;
        if let Some(ahead) = self.cursor.after_read(range, window, size_bytes) {
            let end = ahead.end;
            let asked = self.ask_ahead(ahead);
            if asked < end {
                self.cursor.fell_short(asked);
            }
        }
        Ok(length as usize)
    }

    /// Reads block by block, and what is missing from the daemon.
    #[cold]
    fn read_blocks(&self, buf: &mut [u8], range: Range<u64>) -> Result<(), Error> {
        let mut rest = buf;
        for (block, part) in self.inner.table.block_size().split(range) {
            let (now, later) = std::mem::take(&mut rest).split_at_mut((part.end - part.start) as usize);
            rest = later;
            if !self.inner.read_held(&self.shared, block, now, part.start) {
                self.inner.fetch(&self.shared, block, now, part.start)?;
            }
        }
        Ok(())
    }

    /// Reads exactly `buf.len()` bytes at `offset`.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let length = buf.len() as u64;
        let size_bytes = self.size_bytes();
        if offset.checked_add(length).is_none_or(|end| end > size_bytes) {
            return Err(Error::EndOfObject {
                offset,
                length,
                size_bytes,
            });
        }
        self.read_at(buf, offset).map(drop)
    }

    /// Asks the daemon to bring in a range that will be read soon. Never waits; dropped where the connection is busy.
    pub fn prefetch(&self, range: Range<u64>) {
        self.ask_ahead(range.start..range.end.min(self.size_bytes()));
    }

    /// Asks for a range, and says how far that went.
    fn ask_ahead(&self, range: Range<u64>) -> u64 {
        if self.inner.whole.is_some() {
            return range.end;
        }
        let block_size = self.inner.table.block_size();
        let mut blocks = block_size.split(range.clone());
        let refused = blocks.find(|(block, part)| !self.inner.ask_ahead(&self.shared, *block, part.clone()));
        refused.map_or(range.end, |(block, part)| block_size.start_of(block) + part.start)
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if self.inner.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.closed(&self.inner);
        }
    }
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object")
            .field("path", &self.inner.key.path)
            .field("generation", &self.inner.generation)
            .finish_non_exhaustive()
    }
}
