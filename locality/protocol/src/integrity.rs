//! How bytes at rest and between peers prove themselves: a CRC32C for each 64 KiB chunk, and one word for each page.
//!
//! A page's word is `(c, !c)` with `c` the CRC32C over the object id, the page's index and its 16 chunk CRCs (zero for
//! chunks behind the object's end). It is written last and re-derived on read, so a flipped or torn bit is never
//! "present", and a page that strayed into another object's file is not either.

use crate::block::{CHUNK_BYTES, CHUNKS_PER_PAGE, PageIndex};
use crate::ids::ObjectId;

/// The CRC32Cs of a page's chunks, zero for chunks behind its end.
pub type ChunkCrcs = [u32; CHUNKS_PER_PAGE];

/// CRC32C (Castagnoli) of some bytes.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The chunk CRCs of a whole page's bytes (at most 1 MiB; shorter at the object's end).
pub fn chunk_crcs(page: &[u8]) -> ChunkCrcs {
    let mut crcs = [0; CHUNKS_PER_PAGE];
    for (crc, chunk) in crcs.iter_mut().zip(page.chunks(CHUNK_BYTES as usize)) {
        *crc = crc32c(chunk);
    }
    crcs
}

/// The word that says a page is present. See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageWord(u64);

impl PageWord {
    /// The word of a page that is there, with these chunk CRCs, counted from the start of the *object's block* `block`.
    pub fn new(object: &ObjectId, block: u32, page: PageIndex, crcs: &ChunkCrcs) -> Self {
        let mut bytes = Vec::with_capacity(16 + 8 + 4 * CHUNKS_PER_PAGE);
        bytes.extend_from_slice(object.as_bytes());
        bytes.extend_from_slice(&block.to_le_bytes());
        bytes.extend_from_slice(&page.0.to_le_bytes());
        for crc in crcs {
            bytes.extend_from_slice(&crc.to_le_bytes());
        }
        let c = crc32c(&bytes);
        Self(u64::from(c) << 32 | u64::from(!c))
    }

    /// As stored and sent. Never zero, which is the word of an absent page.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// Whether `bits` is this word.
    pub const fn matches(self, bits: u64) -> bool {
        self.0 == bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_castagnoli() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_short_page_has_zero_behind_its_end() {
        let crcs = chunk_crcs(&vec![7; CHUNK_BYTES as usize + 1]);
        assert!(crcs[0] != 0 && crcs[1] != 0 && crcs[2..].iter().all(|crc| *crc == 0));
    }

    #[test]
    fn the_word_depends_on_object_block_page_and_every_chunk() {
        let id = ObjectId::from_bytes([1; 16]);
        let crcs = [9; CHUNKS_PER_PAGE];
        let word = PageWord::new(&id, 3, PageIndex(5), &crcs);
        assert!(word.to_bits() != 0);
        assert!(
            !word.matches(PageWord::new(&ObjectId::from_bytes([2; 16]), 3, PageIndex(5), &crcs).to_bits())
        );
        assert!(!word.matches(PageWord::new(&id, 4, PageIndex(5), &crcs).to_bits()));
        assert!(!word.matches(PageWord::new(&id, 3, PageIndex(6), &crcs).to_bits()));
        for chunk in 0..CHUNKS_PER_PAGE {
            let mut other = crcs;
            other[chunk] ^= 1;
            assert!(!word.matches(PageWord::new(&id, 3, PageIndex(5), &other).to_bits()));
        }
    }
}
