//! Where an object keeps its grants: a slot for each block, made when the block is first touched.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use arc_swap::ArcSwapOption;
use cachelet_protocol::block::{BlockIndex, BlockSize};

use crate::grant::Grant;

/// Slots made at once.
const SLOTS_PER_SEGMENT: usize = 64;
/// Largest object taken: more than any store has, and its table of segments stays below 16 MiB.
pub(crate) const MAX_OBJECT_BYTES: u64 = 64 << 40;

/// One block of one open object.
#[derive(Default)]
pub(crate) struct Slot {
    /// The grant that readers use.
    pub(crate) grant: ArcSwapOption<Grant>,
    /// Held by the reader that asks for a first grant; the others wait for what it gets.
    pub(crate) asking: Mutex<()>,
    /// A first grant was asked for by readahead and has not come yet.
    pub(crate) asked_ahead: AtomicBool,
    /// Milliseconds on the client's clock until which the block is read inline; 0: not.
    pub(crate) inline_until_millis: AtomicU64,
    /// A held file of the block proved bad: what the daemon reads for us it compares with its checksums, until there is
    /// another file.
    pub(crate) distrusted: AtomicBool,
}

impl Slot {
    /// Reads of this block go inline until then, on the client's clock.
    pub(crate) fn read_inline_until(&self, millis: u64) {
        self.inline_until_millis.store(millis, Ordering::Relaxed);
    }
}

type Segment = Box<[Slot; SLOTS_PER_SEGMENT]>;

/// The slots of one object.
pub(crate) struct Table {
    block_size: BlockSize,
    /// The block size's logarithm: a division costs as much as all else that a read does besides its system call.
    shift: u32,
    segments: Box<[OnceLock<Segment>]>,
}

impl Table {
    /// For an object of at most [`MAX_OBJECT_BYTES`].
    pub(crate) fn new(block_size: BlockSize, size_bytes: u64) -> Self {
        let blocks = block_size.blocks(size_bytes) as usize;
        let segments = (0..blocks.div_ceil(SLOTS_PER_SEGMENT)).map(|_| OnceLock::new());
        Self {
            block_size,
            shift: block_size.bytes().trailing_zeros(),
            segments: segments.collect(),
        }
    }

    pub(crate) fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The block that holds all of a range, and where the range begins in it; `None` if it spans several.
    #[inline]
    pub(crate) fn within_one(&self, offset: u64, length: u64) -> Option<(BlockIndex, u64)> {
        let start = offset & (self.block_size.bytes() - 1);
        let block = BlockIndex((offset >> self.shift) as u32);
        (start + length <= self.block_size.bytes()).then_some((block, start))
    }

    /// The slot of a block, if it was ever touched.
    #[inline]
    pub(crate) fn touched(&self, block: BlockIndex) -> Option<&Slot> {
        let index = block.0 as usize;
        let segment = self.segments.get(index / SLOTS_PER_SEGMENT)?.get()?;
        Some(&segment[index % SLOTS_PER_SEGMENT])
    }

    /// The slot of a block that the object has.
    pub(crate) fn slot(&self, block: BlockIndex) -> &Slot {
        let index = block.0 as usize;
        let segment = self.segments[index / SLOTS_PER_SEGMENT]
            .get_or_init(|| Box::new(std::array::from_fn(|_| Slot::default())));
        &segment[index % SLOTS_PER_SEGMENT]
    }

    /// The slots that were touched.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.segments
            .iter()
            .filter_map(OnceLock::get)
            .flat_map(|segment| segment.iter())
    }
}
