//! How much of a block a node holds: two bits a block, 64 blocks a segment.

use crate::block::{BlockIndex, PageSet};

/// Blocks in one segment of a report.
pub const BLOCKS_PER_SEGMENT: u32 = 64;

/// How much of a block's pages are present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Residency {
    /// No page.
    #[default]
    None,
    /// Fewer than half.
    Some,
    /// Half or more, not all: counts as resident.
    HalfOrMore,
    /// Every page: counts as resident.
    All,
}

impl Residency {
    /// Of a block with `block_length` valid bytes.
    pub fn of(present: PageSet, block_length: u64) -> Self {
        let all = PageSet::all(block_length);
        let held = present.intersection(all).len();
        if held == 0 {
            Self::None
        } else if held == all.len() {
            Self::All
        } else if held * 2 >= all.len() {
            Self::HalfOrMore
        } else {
            Self::Some
        }
    }

    /// Whether a node that holds this much is a place to read the block.
    pub fn is_resident(self) -> bool {
        self >= Self::HalfOrMore
    }
}

/// The residency of 64 adjacent blocks, as reports carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SegmentResidency {
    /// The lower bit of each block.
    pub low_bits: u64,
    /// The upper bit of each block.
    pub high_bits: u64,
}

impl SegmentResidency {
    /// Which segment a block belongs to, and its place there.
    pub fn place(block: BlockIndex) -> (u32, u32) {
        (block.0 / BLOCKS_PER_SEGMENT, block.0 % BLOCKS_PER_SEGMENT)
    }

    /// What is held of the block at `place` (below 64).
    pub fn get(self, place: u32) -> Residency {
        match (self.high_bits >> place & 1, self.low_bits >> place & 1) {
            (0, 0) => Residency::None,
            (0, _) => Residency::Some,
            (_, 0) => Residency::HalfOrMore,
            (_, _) => Residency::All,
        }
    }

    /// Says what is held of the block at `place` (below 64).
    pub fn set(&mut self, place: u32, residency: Residency) {
        let bit = 1 << place;
        let (high, low) = match residency {
            Residency::None => (false, false),
            Residency::Some => (false, true),
            Residency::HalfOrMore => (true, false),
            Residency::All => (true, true),
        };
        self.low_bits = if low {
            self.low_bits | bit
        } else {
            self.low_bits & !bit
        };
        self.high_bits = if high {
            self.high_bits | bit
        } else {
            self.high_bits & !bit
        };
    }

    /// Whether nothing is held of any block.
    pub fn is_empty(self) -> bool {
        self.low_bits | self.high_bits == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::PAGE_BYTES;
    use proptest::prelude::*;

    #[test]
    fn residency_counts_the_pages_that_the_block_has() {
        let of = |pages: u32, total: u64| Residency::of(PageSet::span(0..pages), total * PAGE_BYTES);
        assert_eq!(
            (of(0, 4), of(1, 4), of(2, 4), of(3, 4), of(4, 4)),
            (
                Residency::None,
                Residency::Some,
                Residency::HalfOrMore,
                Residency::HalfOrMore,
                Residency::All
            )
        );
        assert_eq!(Residency::of(PageSet::span(0..1), 1), Residency::All);
        assert!(!Residency::Some.is_resident() && Residency::HalfOrMore.is_resident());
    }

    proptest! {
        #[test]
        fn a_segment_keeps_each_block_apart(states in prop::collection::vec(0_u8..4, 64)) {
            let named = |state: u8| [Residency::None, Residency::Some, Residency::HalfOrMore, Residency::All][state as usize];
            let mut segment = SegmentResidency { low_bits: u64::MAX, high_bits: 0 };
            states.iter().enumerate().for_each(|(place, state)| segment.set(place as u32, named(*state)));
            for (place, state) in states.iter().enumerate() {
                prop_assert_eq!(segment.get(place as u32), named(*state));
            }
            prop_assert_eq!(segment.is_empty(), states.iter().all(|state| *state == 0));
        }
    }
}
