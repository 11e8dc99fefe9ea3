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

use cachelet_protocol::block::{BlockIndex, PageSet};
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
        let length = self.size_bytes().saturating_sub(offset).min(buf.len() as u64);
        if length == 0 {
            return Ok(0);
        }
        let buf = &mut buf[..length as usize];
        if self.read_at_hand(buf, offset) {
            // The common case ends here, but for readahead.
        } else {
            self.read_blocks(buf, offset)?;
        }
        self.read_ahead(offset..offset + length);
        Ok(length as usize)
    }

    /// Reads at most `length` bytes at `offset` through `scratch`, piece by piece, each of which is handed to `sink`.
    /// For memory that the kernel cannot write to. Returns how many bytes that were.
    ///
    /// It is one read in all else: what is missing is asked for as a whole.
    pub fn read_through<E: From<Error>>(
        &self,
        offset: u64,
        length: u64,
        scratch: &mut [u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<u64, E> {
        let length = self.size_bytes().saturating_sub(offset).min(length);
        if length == 0 || scratch.is_empty() {
            return Ok(0);
        }
        let range = offset..offset + length;
        if let Some(whole) = &self.inner.whole {
            self.count_kept(length);
            sink(&whole[offset as usize..range.end as usize])?;
            return Ok(length);
        }
        for (block, part) in self.inner.table.block_size().split(range.clone()) {
            self.inner.bring_in(&self.shared, block, part.clone())?;
            let mut at = part.start;
            while at < part.end {
                let piece = (part.end - at).min(scratch.len() as u64);
                let buf = &mut scratch[..piece as usize];
                if !self.inner.read_held(&self.shared, block, buf, at) {
                    self.inner.fetch(&self.shared, block, buf, at)?;
                }
                sink(buf)?;
                at += piece;
            }
        }
        self.read_ahead(range);
        Ok(length)
    }

    /// Whether this process holds every byte of a range: [`read_held_at`](Self::read_held_at) would give them now.
    pub fn holds(&self, range: Range<u64>) -> bool {
        if range.end > self.size_bytes() {
            return false;
        }
        self.inner.whole.is_some()
            || self
                .inner
                .table
                .block_size()
                .split(range)
                .all(|(block, part)| self.inner.holds(block, part))
    }

    /// As [`read_at`](Self::read_at), but only from what this process holds already: no message, no wait, no readahead,
    /// whatever the daemon does. `None`: it does not hold all of it, and `buf`'s content means nothing.
    pub fn read_held_at(&self, buf: &mut [u8], offset: u64) -> Option<usize> {
        let length = self.size_bytes().saturating_sub(offset).min(buf.len() as u64);
        let buf = &mut buf[..length as usize];
        if self.read_at_hand(buf, offset) {
            return Some(length as usize);
        }
        if !self.holds(offset..offset + length) {
            return None;
        }
        let mut rest = buf;
        for (block, part) in self.inner.table.block_size().split(offset..offset + length) {
            let (now, later) = std::mem::take(&mut rest).split_at_mut((part.end - part.start) as usize);
            rest = later;
            if !self.inner.read_held(&self.shared, block, now, part.start) {
                return None;
            }
        }
        Some(length as usize)
    }

    /// As [`read_through`](Self::read_through), with the limits of [`read_held_at`](Self::read_held_at); `sink` may have
    /// been given bytes when it says `None`.
    pub fn read_held_through<E>(
        &self,
        offset: u64,
        length: u64,
        scratch: &mut [u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Option<u64>, E> {
        let end = self.size_bytes().min(offset.saturating_add(length));
        if !self.holds(offset.min(end)..end) {
            return Ok(None);
        }
        let mut at = offset;
        while at < end && !scratch.is_empty() {
            let piece = (end - at).min(scratch.len() as u64) as usize;
            let Some(read) = self.read_held_at(&mut scratch[..piece], at) else {
                return Ok(None);
            };
            sink(&scratch[..read])?;
            at += read as u64;
        }
        Ok(Some(at - offset))
    }

    /// Reads many ranges, each from its offset on and exactly as long as its buffer. What is not at hand is asked for
    /// all at once. No stream: it neither follows nor causes readahead.
    ///
    /// Fails before anything is read if a range reaches beyond the object's end; after another error the buffers'
    /// contents mean nothing.
    pub fn read_ranges<B: AsMut<[u8]>>(&self, ranges: &mut [(u64, B)]) -> Result<(), Error> {
        for (offset, buf) in ranges.iter_mut() {
            self.check_within(*offset, buf.as_mut().len() as u64)?;
        }
        let mut missing = Vec::new();
        for (index, (offset, buf)) in ranges.iter_mut().enumerate() {
            if !self.read_at_hand(buf.as_mut(), *offset) {
                missing.push(index);
            }
        }
        let Some((_, later)) = missing.split_first() else {
            return Ok(());
        };
        self.ask_ahead_of(later.iter().map(|index| {
            let (offset, buf) = &mut ranges[*index];
            *offset..*offset + buf.as_mut().len() as u64
        }));
        for index in missing {
            let (offset, buf) = &mut ranges[index];
            self.read_blocks(buf.as_mut(), *offset)?;
        }
        Ok(())
    }

    /// Fills `buf` from what this process holds. False: it does not, or the range spans blocks.
    #[inline]
    fn read_at_hand(&self, buf: &mut [u8], offset: u64) -> bool {
        if buf.is_empty() {
            return true;
        }
        let length = buf.len() as u64;
        if let Some(whole) = &self.inner.whole {
            buf.copy_from_slice(&whole[offset as usize..][..buf.len()]);
            self.count_kept(length);
            return true;
        }
        let Some((block, start)) = self.inner.table.within_one(offset, length) else {
            return false;
        };
        self.inner.read_held(&self.shared, block, buf, start)
    }

    fn count_kept(&self, length: u64) {
        Counters::add(&self.inner.counters.local_bytes, length);
        Counters::add(&self.shared.counters.local_bytes, length);
    }

    /// Readahead for a stream that has read `range`.
    fn read_ahead(&self, range: Range<u64>) {
        if self.inner.whole.is_some() {
            return;
        }
        let window = self.shared.options.readahead_bytes;
        if let Some(ahead) = self.cursor.after_read(range, window, self.size_bytes()) {
            let end = ahead.end;
            let asked = self.ask_ahead(ahead);
            if asked < end {
                self.cursor.fell_short(asked);
            }
        }
    }

    /// Reads block by block, and what is missing from the daemon.
    #[cold]
    fn read_blocks(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let range = offset..offset + buf.len() as u64;
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
        self.check_within(offset, buf.len() as u64)?;
        self.read_at(buf, offset).map(drop)
    }

    fn check_within(&self, offset: u64, length: u64) -> Result<(), Error> {
        let size_bytes = self.size_bytes();
        if offset.checked_add(length).is_none_or(|end| end > size_bytes) {
            return Err(Error::EndOfObject {
                offset,
                length,
                size_bytes,
            });
        }
        Ok(())
    }

    /// Has the daemon bring in a range that nobody reads yet, at the lowest priority, and sends no byte of it here. The
    /// answer comes within seconds, with how many bytes of the range are cached by then: whoever wants the rest asks again.
    pub fn load(&self, range: Range<u64>) -> Result<u64, Error> {
        let range = range.start..range.end.min(self.size_bytes());
        let mut present = 0;
        for (block, part) in self.inner.table.block_size().split(range) {
            present += self.inner.load(&self.shared, block, part)?;
        }
        Ok(present)
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
        let refused = blocks.find(|(block, part)| {
            let pages = PageSet::covering(part.clone());
            !self.inner.ask_ahead(&self.shared, *block, pages)
        });
        refused.map_or(range.end, |(block, part)| block_size.start_of(block) + part.start)
    }

    /// Asks for many ranges with one message a block.
    fn ask_ahead_of(&self, ranges: impl Iterator<Item = Range<u64>>) {
        let mut wanted: Vec<(BlockIndex, PageSet)> = Vec::new();
        for range in ranges {
            for (block, part) in self.inner.table.block_size().split(range) {
                let pages = PageSet::covering(part);
                match wanted.iter_mut().find(|(other, _)| *other == block) {
                    Some((_, all)) => *all = all.union(pages),
                    None => wanted.push((block, pages)),
                }
            }
        }
        for (block, pages) in wanted {
            // Only a head start: what is not asked for now is asked for when it is read.
            self.inner.ask_ahead(&self.shared, block, pages);
        }
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
