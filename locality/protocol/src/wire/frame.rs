//! Frame headers.

/// Size of a frame header in bytes.
pub const HEADER_BYTES: usize = 12;
/// Longest control payload.
pub const MAX_CONTROL_BYTES: usize = 64 << 10;
/// Longest payload of a frame that carries object bytes: a page behind its prefix.
pub const MAX_DATA_BYTES: usize = (1 << 20) + PAGE_PREFIX_BYTES;
/// What stands before the bytes in a [`FrameKind::Page`] payload: u32 block, u32 page, u64 word.
pub const PAGE_PREFIX_BYTES: usize = 16;
/// Flag: the frame carries a descriptor.
pub const FLAG_DESCRIPTOR: u8 = 1;
/// Flag: another frame with bytes for the same request follows.
pub const FLAG_MORE: u8 = 2;

/// Pairs a reply with its request; 0 on one-way messages.
pub type RequestId = u32;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "named after the messages they carry, which are documented there"
)]
#[repr(u8)]
pub enum FrameKind {
    Hello = 1,
    Open = 2,
    Fill = 3,
    Read = 4,
    Used = 5,
    Ack = 6,
    Release = 7,
    Invalidate = 8,
    Tally = 9,
    Free = 10,
    Welcome = 64,
    Opened = 65,
    Granted = 66,
    Data = 67,
    Ready = 68,
    Page = 69,
    Invalidated = 70,
    DropFiles = 71,
    Bypass = 72,
    Failed = 73,
    Tallied = 74,
    Freed = 75,
}

impl FrameKind {
    const ALL: [Self; 22] = [
        Self::Hello,
        Self::Open,
        Self::Fill,
        Self::Read,
        Self::Used,
        Self::Ack,
        Self::Release,
        Self::Invalidate,
        Self::Tally,
        Self::Free,
        Self::Welcome,
        Self::Opened,
        Self::Granted,
        Self::Data,
        Self::Ready,
        Self::Page,
        Self::Invalidated,
        Self::DropFiles,
        Self::Bypass,
        Self::Failed,
        Self::Tallied,
        Self::Freed,
    ];

    /// The kind with this number, if this version knows it.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// Whether the payload is bytes of an object rather than a message.
    pub fn carries_bytes(self) -> bool {
        matches!(self, Self::Data | Self::Page)
    }
}

/// The 12 bytes before a payload, little-endian: u32 payload length, u8 kind, u8 flags, u16 zero, u32 request id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Length of the payload in bytes.
    pub length: u32,
    /// The [`FrameKind`]'s number; a receiver may not know it.
    pub kind: u8,
    /// [`FLAG_DESCRIPTOR`], [`FLAG_MORE`]; unknown flags are ignored.
    pub flags: u8,
    /// The request that this frame is or answers.
    pub request: RequestId,
}

/// A header that no sender of this protocol writes. The connection cannot be used further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The payload would be longer than its kind allows.
    #[error("frame of kind {kind} claims {length} bytes, more than {limit}")]
    TooLong {
        /// The frame's kind.
        kind: u8,
        /// The claimed length.
        length: u32,
        /// The kind's limit.
        limit: usize,
    },
    /// The reserved field is not zero: the stream is out of step, or not ours.
    #[error("reserved bytes of a frame header are not zero")]
    NotAFrame,
}

impl FrameHeader {
    /// As sent.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4] = self.kind;
        bytes[5] = self.flags;
        bytes[8..12].copy_from_slice(&self.request.to_le_bytes());
        bytes
    }

    /// Reads a header and checks the payload's length against its kind, before anything is allocated for it.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[6..8] != [0, 0] {
            return Err(FrameError::NotAFrame);
        }
        let header = Self {
            length: u32_at(0),
            kind: bytes[4],
            flags: bytes[5],
            request: u32_at(8),
        };
        let carries_bytes = FrameKind::from_number(header.kind).is_some_and(FrameKind::carries_bytes);
        let limit = if carries_bytes {
            MAX_DATA_BYTES
        } else {
            MAX_CONTROL_BYTES
        };
        if header.length as usize > limit {
            return Err(FrameError::TooLong {
                kind: header.kind,
                length: header.length,
                limit,
            });
        }
        Ok(header)
    }

    /// The kind, if this version knows it.
    pub fn known_kind(self) -> Option<FrameKind> {
        FrameKind::from_number(self.kind)
    }

    /// Whether the frame carries a descriptor.
    pub fn has_descriptor(self) -> bool {
        self.flags & FLAG_DESCRIPTOR != 0
    }

    /// Whether another frame with bytes for the same request follows.
    pub fn has_more(self) -> bool {
        self.flags & FLAG_MORE != 0
    }
}

/// The prefix of a [`FrameKind::Page`] payload: which page follows, and the word that proves it.
pub fn encode_page_prefix(block: u32, page: u32, word: u64) -> [u8; PAGE_PREFIX_BYTES] {
    let mut prefix = [0; PAGE_PREFIX_BYTES];
    prefix[0..4].copy_from_slice(&block.to_le_bytes());
    prefix[4..8].copy_from_slice(&page.to_le_bytes());
    prefix[8..16].copy_from_slice(&word.to_le_bytes());
    prefix
}

/// The prefix and the bytes of a [`FrameKind::Page`] payload, if it is long enough to have a prefix.
pub fn decode_page_prefix(payload: &[u8]) -> Option<(u32, u32, u64, &[u8])> {
    let (prefix, bytes) = payload.split_first_chunk::<PAGE_PREFIX_BYTES>()?;
    let u32_at = |at: usize| u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]);
    let word = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
    Some((u32_at(0), u32_at(4), word, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_is_checked_before_anything_is_allocated() {
        let header = |kind: u8, length: u32| {
            FrameHeader {
                length,
                kind,
                flags: 0,
                request: 1,
            }
            .to_bytes()
        };
        for (kind, limit) in [
            (FrameKind::Open as u8, MAX_CONTROL_BYTES),
            (200, MAX_CONTROL_BYTES),
            (67, MAX_DATA_BYTES),
        ] {
            assert!(FrameHeader::from_bytes(&header(kind, limit as u32)).is_ok());
            assert!(matches!(
                FrameHeader::from_bytes(&header(kind, limit as u32 + 1)),
                Err(FrameError::TooLong { .. })
            ));
            assert!(FrameHeader::from_bytes(&header(kind, u32::MAX)).is_err());
        }
    }

    #[test]
    fn the_header_layout_is_fixed() {
        let header = FrameHeader {
            length: 0x0102,
            kind: 2,
            flags: 1,
            request: 0x0a0b_0c0d,
        };
        assert_eq!(
            header.to_bytes(),
            [0x02, 0x01, 0, 0, 2, 1, 0, 0, 0x0d, 0x0c, 0x0b, 0x0a]
        );
    }

    proptest! {
        #[test]
        fn any_header_decodes_to_what_was_sent_or_is_refused(bytes: [u8; HEADER_BYTES]) {
            if let Ok(header) = FrameHeader::from_bytes(&bytes) {
                prop_assert_eq!(header.to_bytes(), bytes);
                prop_assert!(header.length as usize <= MAX_DATA_BYTES);
            }
        }

        #[test]
        fn a_page_prefix_reads_as_written(block: u32, page: u32, word: u64, bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut payload = encode_page_prefix(block, page, word).to_vec();
            payload.extend_from_slice(&bytes);
            prop_assert_eq!(decode_page_prefix(&payload), Some((block, page, word, &bytes[..])));
            prop_assert_eq!(decode_page_prefix(&payload[..PAGE_PREFIX_BYTES - 1]), None);
        }
    }
}
