//! Block and page arithmetic: pure numbers, no I/O.
//!
//! An object is cut into aligned blocks (the unit of location, placement, file and eviction) and a block into aligned
//! pages (the unit of fetching and of presence). A page is cut into 64 KiB chunks (the unit of checksumming).

use std::fmt;
use std::ops::Range;

/// Size of a page in bytes.
pub const PAGE_BYTES: u64 = 1 << 20;
/// Size of a checksummed chunk in bytes.
pub const CHUNK_BYTES: u64 = 1 << 16;
/// Chunks in a full page.
pub const CHUNKS_PER_PAGE: usize = (PAGE_BYTES / CHUNK_BYTES) as usize;
/// Most pages a block may have; a [`PageSet`] is one bit for each.
pub const MAX_PAGES_PER_BLOCK: u32 = 128;
/// Block size unless configured otherwise.
pub const DEFAULT_BLOCK_BYTES: u64 = 128 << 20;

/// The size of blocks: a power of two from 1 MiB to 128 MiB, the same on every worker of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSize(u64);

/// A block size that is no power of two from 1 MiB to 128 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("block size {0} bytes is not a power of two from 1 MiB (1048576) to 128 MiB (134217728)")]
pub struct InvalidBlockSize(pub u64);

impl BlockSize {
    /// Checks and keeps a block size in bytes.
    pub fn new(bytes: u64) -> Result<Self, InvalidBlockSize> {
        let range = PAGE_BYTES..=PAGE_BYTES * u64::from(MAX_PAGES_PER_BLOCK);
        if bytes.is_power_of_two() && range.contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(InvalidBlockSize(bytes))
        }
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// How many blocks an object of `size_bytes` has. An empty object has none.
    pub fn blocks(self, size_bytes: u64) -> u32 {
        u32::try_from(size_bytes.div_ceil(self.0)).unwrap_or(u32::MAX)
    }

    /// The block that holds the byte at `offset`.
    pub fn block_at(self, offset: u64) -> BlockIndex {
        BlockIndex(u32::try_from(offset / self.0).unwrap_or(u32::MAX))
    }

    /// Where `block` begins in the object.
    pub fn start_of(self, block: BlockIndex) -> u64 {
        u64::from(block.0) * self.0
    }

    /// How many bytes of an object of `size_bytes` lie in `block`; 0 behind its end.
    pub fn length_of(self, block: BlockIndex, size_bytes: u64) -> u64 {
        size_bytes.saturating_sub(self.start_of(block)).min(self.0)
    }

    /// The parts of `range` block by block: the block and the range within it.
    pub fn split(self, range: Range<u64>) -> impl Iterator<Item = (BlockIndex, Range<u64>)> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let block = self.block_at(at);
            let start = self.start_of(block);
            let end = range.end.min(start + self.0);
            let part = at - start..end - start;
            at = end;
            Some((block, part))
        })
    }
}

impl Default for BlockSize {
    fn default() -> Self {
        Self(DEFAULT_BLOCK_BYTES)
    }
}

/// The position of a block within its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u32);

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The position of a page within its block, below [`MAX_PAGES_PER_BLOCK`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u32);

impl PageIndex {
    /// Where the page begins in its block.
    pub fn start(self) -> u64 {
        u64::from(self.0) * PAGE_BYTES
    }

    /// How many bytes the page has in a block of `block_length` valid bytes.
    pub fn length_in(self, block_length: u64) -> u64 {
        block_length.saturating_sub(self.start()).min(PAGE_BYTES)
    }
}

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A set of pages of one block.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct PageSet(u128);

impl PageSet {
    /// No page.
    pub const EMPTY: Self = Self(0);

    /// From one bit a page, page 0 lowest.
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// One bit a page, page 0 lowest.
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// Every page of a block with `block_length` valid bytes.
    pub fn all(block_length: u64) -> Self {
        Self::covering(0..block_length)
    }

    /// The pages that `range` (within a block) touches.
    pub fn covering(range: Range<u64>) -> Self {
        if range.is_empty() {
            return Self::EMPTY;
        }
        let first = (range.start / PAGE_BYTES) as u32;
        let last = ((range.end - 1) / PAGE_BYTES) as u32;
        Self::span(first..last + 1)
    }

    /// The pages of an index range; what lies beyond [`MAX_PAGES_PER_BLOCK`] is left out.
    pub fn span(pages: Range<u32>) -> Self {
        let below = |count: u32| {
            if count >= MAX_PAGES_PER_BLOCK {
                u128::MAX
            } else {
                (1 << count) - 1
            }
        };
        Self(below(pages.end) & !below(pages.start))
    }

    /// Exactly one page.
    pub fn one(page: PageIndex) -> Self {
        Self::span(page.0..page.0 + 1)
    }

    /// Whether `page` is in the set.
    pub fn contains(self, page: PageIndex) -> bool {
        !self.intersection(Self::one(page)).is_empty()
    }

    /// Whether every page of `other` is in this set.
    pub fn contains_all(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// Adds a page.
    pub fn insert(&mut self, page: PageIndex) {
        *self = self.union(Self::one(page));
    }

    /// Pages in either set.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Pages in both sets.
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Pages of this set that are not in `other`.
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether no page is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many pages are in the set.
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// The pages in ascending order.
    pub fn iter(self) -> impl Iterator<Item = PageIndex> {
        (0..MAX_PAGES_PER_BLOCK)
            .map(PageIndex)
            .filter(move |page| self.contains(*page))
    }

    /// The set as runs of adjacent pages of at most `max_pages` each, in ascending order.
    pub fn runs(self, max_pages: u32) -> impl Iterator<Item = Range<u32>> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let start = rest.trailing_zeros();
            let length = (!(rest >> start)).trailing_zeros().min(max_pages.max(1));
            let run = start..start + length;
            rest &= !Self::span(run.clone()).0;
            Some(run)
        })
    }

    /// How many bytes these pages have in a block of `block_length` valid bytes.
    pub fn bytes_in(self, block_length: u64) -> u64 {
        self.iter().map(|page| page.length_in(block_length)).sum()
    }
}

impl FromIterator<PageIndex> for PageSet {
    fn from_iter<T: IntoIterator<Item = PageIndex>>(pages: T) -> Self {
        let mut set = Self::EMPTY;
        pages.into_iter().for_each(|page| set.insert(page));
        set
    }
}

impl fmt::Debug for PageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.runs(MAX_PAGES_PER_BLOCK)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_block_size_is_a_power_of_two_from_1_to_128_mib() {
        for bytes in [1 << 20, 8 << 20, 128 << 20] {
            assert_eq!(BlockSize::new(bytes).unwrap().bytes(), bytes);
        }
        for bytes in [0, 1, 1 << 19, (1 << 20) + 1, 3 << 20, 256 << 20, u64::MAX] {
            assert_eq!(BlockSize::new(bytes), Err(InvalidBlockSize(bytes)));
        }
    }

    #[test]
    fn an_empty_object_has_no_block() {
        let size = BlockSize::default();
        assert_eq!((size.blocks(0), size.blocks(1)), (0, 1));
        assert_eq!(size.length_of(BlockIndex(0), 0), 0);
        assert_eq!(PageSet::all(0), PageSet::EMPTY);
    }

    proptest! {
        #[test]
        fn split_tiles_the_range(shift in 20u32..=27, start in 0u64..1 << 34, length in 0u64..1 << 31) {
            let size = BlockSize::new(1 << shift).unwrap();
            let mut at = start;
            for (block, part) in size.split(start..start + length) {
                prop_assert!(!part.is_empty() && part.end <= size.bytes());
                prop_assert_eq!(size.start_of(block) + part.start, at);
                at += part.end - part.start;
            }
            prop_assert_eq!(at, start + length);
        }

        #[test]
        fn block_lengths_add_up_to_the_object(shift in 20u32..=27, length in 0u64..1 << 33) {
            let size = BlockSize::new(1 << shift).unwrap();
            let total: u64 = (0..size.blocks(length)).map(|b| size.length_of(BlockIndex(b), length)).sum();
            prop_assert_eq!(total, length);
            prop_assert_eq!(size.length_of(BlockIndex(size.blocks(length)), length), 0);
        }

        #[test]
        fn runs_partition_the_set(bits: u128, max in 1u32..=128) {
            let set = PageSet::from_bits(bits);
            let mut seen = PageSet::EMPTY;
            for run in set.runs(max) {
                let part = PageSet::span(run.clone());
                prop_assert!(run.end - run.start <= max);
                prop_assert!(seen.intersection(part).is_empty());
                seen = seen.union(part);
            }
            prop_assert_eq!(seen, set);
            prop_assert_eq!(set.iter().collect::<PageSet>(), set);
            prop_assert_eq!(set.len(), set.iter().count() as u32);
        }

        #[test]
        fn covering_is_the_pages_that_share_a_byte(start in 0u64..128 << 20, length in 0u64..128 << 20) {
            let end = (start + length).min(128 << 20);
            let pages = PageSet::covering(start..end);
            for page in (0..MAX_PAGES_PER_BLOCK).map(PageIndex) {
                let touches = page.start() < end && page.start() + PAGE_BYTES > start && start < end;
                prop_assert_eq!(pages.contains(page), touches);
            }
        }

        #[test]
        fn pages_of_a_block_hold_its_bytes(length in 0u64..=128 << 20) {
            prop_assert_eq!(PageSet::all(length).bytes_in(length), length);
        }
    }
}
