//! The block file, version 1.
//!
//! # Context
//!
//! A block file is read by processes that hold only a descriptor of it, by a daemon that may have been killed at any
//! instant, and by later versions of the daemon. It must say by itself whose bytes it holds and which of them are
//! there, and no flipped bit, torn write, truncation or exchange of files may ever turn into a wrong byte.
//!
//! # Decision
//!
//! One sparse file a block, all integers little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4096 | identity header, written once, before the file has its name |
//! | 4096 | 8 x 128 | one page word for each page, zero = absent |
//! | 8192 | 4 x 2048 | a CRC32C for each 64 KiB chunk of data |
//! | 1048576 | the block's length | data; absent pages are holes |
//!
//! The header: magic `CACHELET` (8), format version (u32), CRC32C of all 4096 bytes with this field zero (u32),
//! file id (u64), block size (u64), page size (u64), object size (u64), block index (u32), then scheme, store identity,
//! bucket, key and etag, each behind its length (u16), then zeros. Every future version keeps the first 16 bytes and the
//! checksum's rule, so that "a version I do not know" (left alone) can be told from "a damaged version field"
//! (quarantined).
//!
//! The file has its final size, 1048576 + the block's length, before it is renamed to its name; afterwards it is never
//! truncated, extended, punched or reused, and a page that is present is never written again. A page is committed in
//! this order: data, chunk checksums, word. The word ([`cachelet_protocol::integrity::PageWord`]) is derived from the
//! object, the page's position and its chunk checksums, and is derived again whenever it is read: presence is proved,
//! not stored.
//!
//! # Consequences
//!
//! * A flipped bit in header, word, checksum or data, a file of the wrong size, a file under another's name and a page
//!   in another's place are each detected; the whole file is then given up. Nothing is ever repaired.
//! * A process killed in the middle of a page leaves an absent page: the word is one aligned 8-byte write.
//! * After a power loss the word may be there without its data. That is why pages are verified against their checksums
//!   before their first use unless the last stop was clean.
//! * A mebibyte in front of the data costs 16 KiB of disk (the rest is a hole) and keeps a block's pages aligned to their
//!   own size in the file, so that the page cache can hold each in one large folio: with the data at 64 KiB, cached
//!   sequential reads were 8 % slower and random ones 7 % (ADR 0006).
//!
//! # Rejected
//!
//! * Clients reading the header: it would make this format an interface, and a mapped header turns a disk error into a
//!   SIGBUS in an executor.
//! * A trailer or a side file for the checksums: a second thing to lose, and to keep atomic with the first.
//! * Presence in the file's extents (`SEEK_HOLE`): file systems may report holes as data and fill them.

use std::ops::Range;
use std::str::FromStr;

use cachelet_protocol::block::{
    BlockIndex, BlockSize, CHUNKS_PER_PAGE, MAX_PAGES_PER_BLOCK, PAGE_BYTES, PageIndex, PageSet,
};
use cachelet_protocol::ids::{FileId, Generation, ObjectId, ObjectName, ObjectPath};
use cachelet_protocol::integrity::{ChunkCrcs, PageWord, crc32c};
use nix::errno::Errno;

use super::block::BlockIdentity;

/// The version this module reads and writes.
pub(super) const VERSION: u32 = 1;
/// Where the page words begin.
pub(super) const WORDS_OFFSET: u64 = 4096;
/// Where the chunk checksums begin.
pub const CRC_OFFSET: u64 = 8192;
/// Where the block's first byte is.
pub const DATA_OFFSET: u64 = PAGE_BYTES;
/// What a file without any page is charged: more than the file system allocates for header, words and checksums.
pub const HEADER_CHARGE: u64 = 65536;
/// Header, words and checksums.
pub(super) const TABLES_END: usize = CRC_OFFSET as usize + 4 * CHUNKS_PER_PAGE * MAX_PAGES_PER_BLOCK as usize;

const HEADER_BYTES: usize = WORDS_OFFSET as usize;
const MAGIC: &[u8; 8] = b"CACHELET";
const CRC_FIELD: Range<usize> = 12..16;
const WORD_BYTES: u64 = 8;
const PAGE_CRC_BYTES: u64 = 4 * CHUNKS_PER_PAGE as u64;

/// How a block file is damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It ends too early, or late.
    #[error("its size is {actual_bytes} instead of {expected_bytes} bytes")]
    Size {
        /// What it should be.
        expected_bytes: u64,
        /// What it is.
        actual_bytes: u64,
    },
    /// It does not begin like a block file.
    #[error("it is no block file")]
    Magic,
    /// The header's checksum does not match.
    #[error("its header's checksum does not match")]
    HeaderChecksum,
    /// A field of the header, under a good checksum, holds no valid value.
    #[error("its header's {0} is invalid")]
    HeaderField(&'static str),
    /// It is a block file, of another block than its name says.
    #[error("its header names another block")]
    Misplaced,
    /// Its file id was not given out by this directory's daemons, or twice.
    #[error("its file id is not this directory's")]
    FileId,
    /// A page word that is neither zero nor right.
    #[error("the word of page {0} does not match its checksums")]
    Word(PageIndex),
    /// A chunk of data that does not match its checksum.
    #[error("the data of page {0} does not match its checksums")]
    Data(PageIndex),
    /// The disk would not read it.
    #[error("it cannot be read ({0})")]
    Unreadable(Errno),
}

impl Damage {
    /// What a failed read says.
    pub(super) fn unreadable(error: &std::io::Error) -> Self {
        Self::Unreadable(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}

/// What a header turned out to be.
#[derive(Debug)]
pub(super) enum Decoded {
    /// A header of this version.
    Header(Header),
    /// A sound header of another version.
    Foreign(u32),
    /// No header.
    Damaged(Damage),
}

/// The immutable identity at the head of a block file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// The file's id.
    pub(super) file_id: FileId,
    /// The block size it was made for.
    pub(super) block_size: BlockSize,
    /// Whose bytes it holds.
    pub(super) identity: BlockIdentity,
}

impl Header {
    /// The header's 4096 bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let object = self.identity.object();
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.file_id.0.to_le_bytes());
        bytes.extend_from_slice(&self.block_size.bytes().to_le_bytes());
        bytes.extend_from_slice(&PAGE_BYTES.to_le_bytes());
        bytes.extend_from_slice(&object.generation().size_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.identity.index().0.to_le_bytes());
        let name = object.name();
        for text in [
            name.path.scheme.as_str(),
            name.store.as_str(),
            name.path.bucket.as_str(),
            name.path.key.as_str(),
            object.generation().etag.as_str(),
        ] {
            let length = u16::try_from(text.len()).expect("ids are at most 1024 bytes long");
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        // The longest ids come to 2,107 bytes.
        bytes.resize(HEADER_BYTES, 0);
        let crc = crc32c(&bytes);
        bytes[CRC_FIELD].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header from the first 4096 bytes of a file. Any bytes are safe to give.
    pub(super) fn decode(bytes: &[u8]) -> Decoded {
        let Some(bytes) = bytes.get(..HEADER_BYTES) else {
            let actual_bytes = bytes.len() as u64;
            return Decoded::Damaged(Damage::Size {
                expected_bytes: DATA_OFFSET,
                actual_bytes,
            });
        };
        if !bytes.starts_with(MAGIC) {
            return Decoded::Damaged(Damage::Magic);
        }
        let mut blank = bytes.to_vec();
        blank[CRC_FIELD].fill(0);
        if crc32c(&blank).to_le_bytes() != bytes[CRC_FIELD] {
            return Decoded::Damaged(Damage::HeaderChecksum);
        }
        let version = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        if version != VERSION {
            return Decoded::Foreign(version);
        }
        match Fields(&bytes[CRC_FIELD.end..]).header() {
            Ok(header) => Decoded::Header(header),
            Err(damage) => Decoded::Damaged(damage),
        }
    }
}

/// Whether a file begins with a header: `None` for one of this version, `Some` with the version of one that is not known
/// here. Any bytes are safe to give.
pub fn check_header(bytes: &[u8]) -> Result<Option<u32>, Damage> {
    match Header::decode(bytes) {
        Decoded::Header(_) => Ok(None),
        Decoded::Foreign(version) => Ok(Some(version)),
        Decoded::Damaged(damage) => Err(damage),
    }
}

/// The first bytes of a file, made a header's length, with magic and checksum put right: how a fuzzer gets behind them.
pub fn with_header_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(HEADER_BYTES, 0);
    bytes[..MAGIC.len()].copy_from_slice(MAGIC);
    bytes[CRC_FIELD].fill(0);
    let crc = crc32c(&bytes);
    bytes[CRC_FIELD].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// What is left of a header to read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn header(mut self) -> Result<Header, Damage> {
        let file_id = FileId(self.u64("file id")?);
        let block_size =
            BlockSize::new(self.u64("block size")?).map_err(|_| Damage::HeaderField("block size"))?;
        if self.u64("page size")? != PAGE_BYTES {
            return Err(Damage::HeaderField("page size"));
        }
        let size_bytes = self.u64("object size")?;
        let index = BlockIndex(u32::from_le_bytes(self.take("block index")?));
        let scheme = self.text("scheme")?;
        let store = self.text("store identity")?;
        let path = ObjectPath {
            scheme,
            bucket: self.text("bucket")?,
            key: self.text("key")?,
        };
        let generation = Generation {
            etag: self.text("etag")?,
            size_bytes,
        };
        let identity = BlockIdentity::of(ObjectName { store, path }, generation, index);
        if identity.length(block_size) == 0 {
            return Err(Damage::HeaderField("block index"));
        }
        Ok(Header {
            file_id,
            block_size,
            identity,
        })
    }

    fn take<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Damage> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(Damage::HeaderField(field))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, Damage> {
        self.take(field).map(u64::from_le_bytes)
    }

    fn text<T: FromStr>(&mut self, field: &'static str) -> Result<T, Damage> {
        let invalid = || Damage::HeaderField(field);
        let length = usize::from(u16::from_le_bytes(self.take(field)?));
        let (text, rest) = self.0.split_at_checked(length).ok_or_else(invalid)?;
        self.0 = rest;
        std::str::from_utf8(text)
            .map_err(|_| invalid())?
            .parse()
            .map_err(|_| invalid())
    }
}

/// Where the word of a page is.
pub(super) fn word_offset(page: PageIndex) -> u64 {
    WORDS_OFFSET + WORD_BYTES * u64::from(page.0)
}

/// Where the checksums of a page's chunks are.
pub(super) fn crcs_offset(page: PageIndex) -> u64 {
    CRC_OFFSET + PAGE_CRC_BYTES * u64::from(page.0)
}

/// The checksums of a page as they are stored.
pub(super) fn encode_crcs(crcs: &ChunkCrcs) -> [u8; PAGE_CRC_BYTES as usize] {
    let mut bytes = [0; PAGE_CRC_BYTES as usize];
    for (slot, crc) in bytes.chunks_exact_mut(4).zip(crcs) {
        slot.copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

/// The checksums of a page from where they are stored.
pub(super) fn decode_crcs(bytes: &[u8; PAGE_CRC_BYTES as usize]) -> ChunkCrcs {
    let mut crcs = [0; CHUNKS_PER_PAGE];
    for (crc, slot) in crcs.iter_mut().zip(bytes.chunks_exact(4)) {
        *crc = u32::from_le_bytes([slot[0], slot[1], slot[2], slot[3]]);
    }
    crcs
}

/// The pages that a file's tables (its first [`TABLES_END`] bytes) prove present, in a block of `length` bytes.
pub(super) fn presence(
    tables: &[u8],
    object: &ObjectId,
    block: BlockIndex,
    length: u64,
) -> Result<PageSet, Damage> {
    let pages = PageSet::all(length);
    let mut present = PageSet::EMPTY;
    for page in (0..MAX_PAGES_PER_BLOCK).map(PageIndex) {
        let bits = u64::from_le_bytes(field(tables, word_offset(page)));
        if bits == 0 {
            continue;
        }
        let crcs = decode_crcs(&field(tables, crcs_offset(page)));
        if !pages.contains(page) || !PageWord::new(object, block.0, page, &crcs).matches(bits) {
            return Err(Damage::Word(page));
        }
        present.insert(page);
    }
    Ok(present)
}

fn field<const N: usize>(tables: &[u8], offset: u64) -> [u8; N] {
    *tables[offset as usize..]
        .first_chunk()
        .expect("callers pass the whole tables")
}
