//! Reads from a held descriptor that check every chunk they touch.

use std::io;

use cachelet_protocol::block::CHUNK_BYTES;
use cachelet_protocol::integrity::crc32c;

use crate::grant::Grant;

/// Why a verified read gave no bytes.
#[derive(Debug)]
pub(crate) enum Unverified {
    /// The file could not be read, or ends too early.
    Unreadable,
    /// A chunk is not what its checksum says.
    Mismatch,
}

impl From<io::Error> for Unverified {
    fn from(_: io::Error) -> Self {
        Self::Unreadable
    }
}

/// Fills `buf` with the block's bytes from `offset` on, each checked as part of its whole chunk.
///
/// Chunks that `buf` covers are read into it and checked there; the first and the last, where it covers part of them
/// only, go through a scratch buffer. On an error `buf`'s content means nothing.
pub(crate) fn read(grant: &Grant, buf: &mut [u8], offset: u64) -> Result<(), Unverified> {
    if buf.is_empty() {
        return Ok(());
    }
    let block_length = grant.layout().length;
    let end = offset + buf.len() as u64;
    let first = offset / CHUNK_BYTES;
    let last = (end - 1) / CHUNK_BYTES;
    let crcs = grant.read_crcs(first, (last - first + 1) as usize)?;
    let mut scratch = Vec::new();
    let mut rest = buf;
    let mut at = offset;
    for (chunk, expected) in (first..=last).zip(crcs) {
        let chunk_start = chunk * CHUNK_BYTES;
        let chunk_end = (chunk_start + CHUNK_BYTES).min(block_length);
        let take = (chunk_end.min(end) - at) as usize;
        let (part, after) = std::mem::take(&mut rest).split_at_mut(take);
        rest = after;
        let actual = if at == chunk_start && part.len() as u64 == chunk_end - chunk_start {
            grant.read(part, at)?;
            crc32c(part)
        } else {
            scratch.resize((chunk_end - chunk_start) as usize, 0);
            grant.read(&mut scratch, chunk_start)?;
            let from = (at - chunk_start) as usize;
            part.copy_from_slice(&scratch[from..from + take]);
            crc32c(&scratch)
        };
        if actual != expected {
            return Err(Unverified::Mismatch);
        }
        at += take as u64;
    }
    Ok(())
}
