//! What the store tells about itself. Cheap, all of it.

use cachelet_protocol::residency::Residency;
use std::ops::Bound;
use std::sync::Arc;

use cachelet_protocol::block::PageSet;
use cachelet_protocol::ids::FileId;

use super::block::Key;
use super::{Block, BlockIdentity, BlockStore};

/// Blocks looked at under one lock.
const BATCH: usize = 1024;

/// The ledger and the counters, all of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerSnapshot {
    /// Most bytes the cache may take.
    pub quota_bytes: u64,
    /// Bytes of blocks in the cache.
    pub committed_bytes: u64,
    /// Bytes set aside for what is being written.
    pub reserved_bytes: u64,
    /// Bytes of files that left the cache and are not proved free.
    pub unlinked_held_bytes: u64,
    /// Bytes of damaged files kept for inspection.
    pub quarantined_bytes: u64,
    /// Bytes of files in the directory that are not this store's.
    pub foreign_bytes: u64,
    /// Blocks in the cache.
    pub blocks: u64,
    /// Their pages.
    pub pages: u64,
    /// Files that left the cache and are not proved free.
    pub unlinked_files: u64,
    /// Damaged files kept for inspection.
    pub quarantined_files: u64,
    /// Files in the directory that are not this store's.
    pub foreign_files: u64,
    /// Sessions that lease files.
    pub sessions: u64,
    /// Kept descriptors of block files, those of unlinked files included.
    pub open_files: u64,
    /// Files evicted for space in this life.
    pub evictions: u64,
    /// Damaged files found in this life.
    pub corruptions: u64,
    /// Bytes of evicted files proved free in this life.
    pub reclaimed_bytes: u64,
    /// Bytes that readers said they read.
    pub hit_bytes: u64,
    /// Bytes written that may not be on disk yet.
    pub dirty_bytes: u64,
    /// Files brought to disk in this life.
    pub syncs: u64,
    /// Files that could not be brought to disk, and left the cache.
    pub failed_syncs: u64,
    /// Bytes that the scrubber read.
    pub scrubbed_bytes: u64,
    /// Damaged files that it found.
    pub scrub_findings: u64,
    /// Its passes over the whole cache.
    pub scrub_passes: u64,
    /// Whether the whole directory is accounted for.
    pub recovered: bool,
}

impl LedgerSnapshot {
    /// All bytes that count against the quota.
    pub fn used_bytes(&self) -> u64 {
        self.committed_bytes
            + self.reserved_bytes
            + self.unlinked_held_bytes
            + self.quarantined_bytes
            + self.foreign_bytes
    }
}

/// A block as reports show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockStatus {
    /// Which block.
    pub identity: BlockIdentity,
    /// Its file.
    pub file_id: FileId,
    /// Its length in bytes.
    pub length: u64,
    /// Its pages on disk, verified or not.
    pub pages: PageSet,
    /// How much of it that is.
    pub residency: Residency,
}

impl From<&Block> for BlockStatus {
    fn from(block: &Block) -> Self {
        let pages = block.pages().all();
        Self {
            identity: block.identity().clone(),
            file_id: block.file_id(),
            length: block.length(),
            pages,
            residency: Residency::of(pages, block.length()),
        }
    }
}

impl BlockStore {
    /// The ledger and the counters.
    pub fn ledger(&self) -> LedgerSnapshot {
        let kept = self.inner.descriptors.count() as u64;
        let state = self.state();
        let totals = state.ledger.totals();
        LedgerSnapshot {
            quota_bytes: state.ledger.quota(),
            committed_bytes: totals.committed,
            reserved_bytes: totals.reserved,
            unlinked_held_bytes: totals.unlinked,
            quarantined_bytes: totals.quarantined,
            foreign_bytes: totals.foreign,
            blocks: state.files.len() as u64,
            pages: state.counts.pages,
            unlinked_files: state.unlinked.len() as u64,
            quarantined_files: state.quarantine.len() as u64,
            foreign_files: state.counts.foreign_files,
            sessions: state.ledger.session_count() as u64,
            open_files: kept + state.unlinked.len() as u64,
            evictions: state.counts.evictions,
            corruptions: state.counts.corruptions,
            reclaimed_bytes: state.counts.reclaimed_bytes,
            hit_bytes: state.counts.hit_bytes,
            dirty_bytes: state.dirty.bytes(),
            syncs: state.counts.syncs,
            failed_syncs: state.counts.failed_syncs,
            scrubbed_bytes: state.counts.scrubbed_bytes,
            scrub_findings: state.counts.scrub_findings,
            scrub_passes: state.counts.scrub_passes,
            recovered: state.recovered,
        }
    }

    /// Shows every block, those of one object together. Not one moment: blocks that come or go meanwhile may be missed.
    pub fn for_each_block(&self, mut show: impl FnMut(BlockStatus)) {
        let mut after: Bound<Key> = Bound::Unbounded;
        loop {
            // In batches, so that readers never wait for a long report.
            let batch: Vec<Arc<Block>> = {
                let state = self.state();
                let blocks = state
                    .index
                    .range((after, Bound::Unbounded))
                    .map(|(_, block)| Arc::clone(block));
                blocks.take(BATCH).collect()
            };
            let Some(last) = batch.last() else { return };
            after = Bound::Excluded(last.identity().key());
            for block in &batch {
                show(BlockStatus::from(block.as_ref()));
            }
        }
    }
}
