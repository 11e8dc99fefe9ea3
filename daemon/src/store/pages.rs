//! Writing, reading and verifying pages.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use cachelet_protocol::block::{CHUNK_BYTES, PAGE_BYTES, PageIndex, PageSet};
use cachelet_protocol::integrity::{ChunkCrcs, PageWord, chunk_crcs, crc32c};

use super::format::{self, Damage};
use super::health::Operation;
use super::{Block, BlockStore, DATA_OFFSET, Error, Reason, Reservation, lock};

impl BlockStore {
    /// Writes one page, whole, and returns the pages that are present then. Touches the disk.
    ///
    /// `reservation` is exactly the page's bytes; it becomes the page's charge, or is given back if the page was there
    /// already. A failed write retires the block's file: what it holds is not known any more.
    pub fn write_page(
        &self,
        block: &Arc<Block>,
        page: PageIndex,
        bytes: &[u8],
        reservation: Reservation,
    ) -> Result<PageSet, Error> {
        let expected = page.length_in(block.length());
        if expected == 0 || bytes.len() as u64 != expected || reservation.bytes() != expected {
            return Err(request(block, || {
                format!(
                    "page {page} has {expected} bytes, not the {} given for {} reserved",
                    bytes.len(),
                    reservation.bytes()
                )
            }));
        }
        let crcs = chunk_crcs(bytes);
        let writer = lock(&block.writer);
        if block.unverified().contains(page) {
            drop(writer);
            return self.verify(block, PageSet::one(page));
        }
        if block.present().contains(page) {
            return Ok(block.present());
        }
        self.begin_write(block)?;
        let key = block.identity().key();
        let word = PageWord::new(&key.object, key.index.0, page, &crcs);
        let before = block.residency();
        let written = self.file_of(block).and_then(|file| {
            self.watched(Operation::Write, || {
                write_in_order(&file, page, bytes, &crcs, word)
            })
            .map(|()| file)
            .map_err(|error| Error::io("write to", &self.inner.layout.block(key), error))
        });
        let outcome = self.end_write(block, page, reservation, written);
        if outcome.is_ok() {
            self.emit_residency(block, before, false);
        }
        drop(writer);
        if let Err(Error::Io { .. }) = outcome {
            self.retire(block, &Reason::WriteFailed);
        }
        outcome
    }

    /// Reads `range` of a block's bytes into `buffer` (of the range's length), comparing every chunk it touches with its
    /// checksum. Touches the disk.
    ///
    /// Every page of the range must be on disk ([`Error::Absent`]); pages not verified yet are verified by this.
    pub fn read(&self, block: &Arc<Block>, range: Range<u64>, buffer: &mut [u8]) -> Result<(), Error> {
        if range.start > range.end
            || range.end > block.length()
            || range.end - range.start != buffer.len() as u64
        {
            return Err(request(block, || {
                format!(
                    "range {range:?} of {} bytes into {} bytes",
                    block.length(),
                    buffer.len()
                )
            }));
        }
        self.check_disk()?;
        let pages = PageSet::covering(range.clone());
        let missing = pages.difference(block.pages().all());
        if !missing.is_empty() {
            return Err(Error::Absent {
                file_id: block.file_id(),
                missing,
            });
        }
        let file = self.file_of(block)?;
        let mut rest = buffer;
        for page in pages.iter() {
            let start = range.start.max(page.start());
            let end = range.end.min(page.start() + PAGE_BYTES);
            let (part, behind) = rest.split_at_mut((end - start) as usize);
            rest = behind;
            let within = start - page.start()..end - page.start();
            self.watched(Operation::Read, || {
                read_verified(&file, block, page, within, part)
            })
            .map_err(|damage| self.condemn(block, damage))?;
        }
        let now = self.uptime();
        self.state()
            .eviction
            .used(block.file_id(), block.identity().key().hash(), pages, now);
        Ok(())
    }

    /// The descriptor by which the daemon reads the block's file, to be sent from: never handed to anybody. Touches the disk
    /// if it has to be opened again.
    pub fn file(&self, block: &Arc<Block>) -> Result<Arc<File>, Error> {
        self.check_disk()?;
        self.file_of(block)
    }

    /// The same descriptor, if it is open and the disk in use. Cheap.
    pub fn open_file(&self, block: &Block) -> Option<Arc<File>> {
        if block.is_retired() || self.inner.disk.is_offline() {
            None
        } else {
            self.inner.descriptors.get(block.file_id())
        }
    }

    /// The word of a page as it is on disk, zero if the page is absent: what a peer is told beside the bytes.
    /// Touches the disk.
    pub fn page_word(&self, block: &Arc<Block>, page: PageIndex) -> Result<u64, Error> {
        if !block.pages().all().contains(page) {
            return Ok(0);
        }
        let file = self.file_of(block)?;
        let (bits, _) = self
            .watched(Operation::Read, || proof(&file, block, page))
            .map_err(|damage| self.condemn(block, damage))?;
        Ok(bits)
    }

    /// Verifies what is not yet verified of `pages`, and returns the pages that are present then. Touches the disk: a
    /// mebibyte for each page after a stop that was not clean, nothing otherwise.
    pub fn verify(&self, block: &Arc<Block>, pages: PageSet) -> Result<PageSet, Error> {
        let wanted = block.unverified().intersection(pages);
        if wanted.is_empty() {
            return Ok(block.present());
        }
        let file = self.file_of(block)?;
        let mut buffer = vec![0; PAGE_BYTES as usize];
        for page in wanted.iter() {
            let length = page.length_in(block.length());
            let part = &mut buffer[..length as usize];
            self.watched(Operation::Read, || {
                read_verified(&file, block, page, 0..length, part)
            })
            .map_err(|damage| self.condemn(block, damage))?;
            block.update_pages(|pages| {
                let one = PageSet::one(page).intersection(pages.unverified);
                pages.unverified = pages.unverified.difference(one);
                pages.verified = pages.verified.union(one);
            });
        }
        Ok(block.present())
    }

    fn begin_write(&self, block: &Arc<Block>) -> Result<(), Error> {
        let mut state = self.state();
        if state.closed {
            return Err(Error::Closed);
        }
        if block.is_retired() {
            return Err(Error::Evicted {
                file_id: block.file_id(),
            });
        }
        // Not evictable from here, and not to be called clean either.
        if block.add_fill() {
            state.eviction.set_filling(block.file_id(), true);
        }
        state.dirty.mark(block.file_id(), self.uptime());
        state.writes += 1;
        Ok(())
    }

    fn end_write(
        &self,
        block: &Arc<Block>,
        page: PageIndex,
        reservation: Reservation,
        written: Result<Arc<File>, Error>,
    ) -> Result<PageSet, Error> {
        let mut state = self.state();
        if block.end_fill() {
            state.eviction.set_filling(block.file_id(), false);
        }
        state.writes -= 1;
        if state.writes == 0 {
            self.inner.changed.notify_all();
        }
        // Also after a failure: some of it may be on disk, wherever the file is by now.
        let bytes = reservation.spend();
        let cached = state.ledger.commit(block.file_id(), bytes);
        match written {
            Err(error) => Err(error),
            Ok(_) if !cached || block.is_retired() => Err(Error::Evicted {
                file_id: block.file_id(),
            }),
            Ok(file) => {
                // Again: a sync may have come between the first mark and the last byte.
                let (now, most) = (self.uptime(), self.inner.config.max_open_files / 2);
                state.dirty.wrote(block.file_id(), bytes, &file, now, most);
                let hash = block.identity().key().hash();
                state.eviction.filled(block.file_id(), hash, page, bytes, now);
                state.counts.pages += 1;
                Ok(block.update_pages(|pages| {
                    pages.verified.insert(page);
                    pages.verified
                }))
            }
        }
    }
}

fn request(block: &Block, reason: impl FnOnce() -> String) -> Error {
    Error::Request {
        file_id: block.file_id(),
        reason: reason(),
    }
}

/// The order that makes a page appear whole or not at all.
fn write_in_order(
    file: &File,
    page: PageIndex,
    bytes: &[u8],
    crcs: &ChunkCrcs,
    word: PageWord,
) -> io::Result<()> {
    file.write_all_at(bytes, DATA_OFFSET + page.start())?;
    file.write_all_at(&format::encode_crcs(crcs), format::crcs_offset(page))?;
    file.write_all_at(&word.to_bits().to_le_bytes(), format::word_offset(page))
}

/// A page's word and chunk checksums, which prove each other.
fn proof(file: &File, block: &Block, page: PageIndex) -> Result<(u64, ChunkCrcs), Damage> {
    let mut word = [0; 8];
    read_exact(file, block, &mut word, format::word_offset(page))?;
    let mut crcs = [0; 64];
    read_exact(file, block, &mut crcs, format::crcs_offset(page))?;
    let (bits, crcs) = (u64::from_le_bytes(word), format::decode_crcs(&crcs));
    let key = block.identity().key();
    if PageWord::new(&key.object, key.index.0, page, &crcs).matches(bits) {
        Ok((bits, crcs))
    } else {
        Err(Damage::Word(page))
    }
}

/// Reads a part of a page, and whole chunks at its ends, so that every byte it returns was compared.
fn read_verified(
    file: &File,
    block: &Block,
    page: PageIndex,
    within: Range<u64>,
    out: &mut [u8],
) -> Result<(), Damage> {
    let (_, crcs) = proof(file, block, page)?;
    let page_length = page.length_in(block.length());
    let base = DATA_OFFSET + page.start();
    let matches = |chunk: u64, bytes: &[u8]| crc32c(bytes) == crcs[chunk as usize];
    let mut at = within.start;
    let mut out = out;
    while at < within.end {
        let chunk = at / CHUNK_BYTES;
        let chunk_start = chunk * CHUNK_BYTES;
        let chunk_end = page_length.min(chunk_start + CHUNK_BYTES);
        if at == chunk_start && within.end >= chunk_end {
            // Every whole chunk from here, in one read.
            let end = if within.end == page_length {
                page_length
            } else {
                within.end / CHUNK_BYTES * CHUNK_BYTES
            };
            let (part, rest) = out.split_at_mut((end - at) as usize);
            read_exact(file, block, part, base + at)?;
            let whole = part
                .chunks(CHUNK_BYTES as usize)
                .zip(chunk..)
                .all(|(bytes, chunk)| matches(chunk, bytes));
            if !whole {
                return Err(Damage::Data(page));
            }
            (at, out) = (end, rest);
        } else {
            let mut scratch = vec![0; (chunk_end - chunk_start) as usize];
            read_exact(file, block, &mut scratch, base + chunk_start)?;
            if !matches(chunk, &scratch) {
                return Err(Damage::Data(page));
            }
            let end = within.end.min(chunk_end);
            let (part, rest) = out.split_at_mut((end - at) as usize);
            part.copy_from_slice(&scratch[(at - chunk_start) as usize..(end - chunk_start) as usize]);
            (at, out) = (end, rest);
        }
    }
    Ok(())
}

fn read_exact(file: &File, block: &Block, out: &mut [u8], at: u64) -> Result<(), Damage> {
    file.read_exact_at(out, at).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => Damage::Size {
            expected_bytes: DATA_OFFSET + block.length(),
            actual_bytes: file.metadata().map_or(0, |metadata| metadata.len()),
        },
        _ => Damage::unreadable(&error),
    })
}
