//! The local protocol: frames over a Unix stream socket, with descriptors, and over TCP, without.
//!
//! A frame is a 12-byte header ([`FrameHeader`]) and a payload. Control payloads are one of [`Message`]'s structures,
//! at most [`MAX_CONTROL_BYTES`] long; [`Data`](FrameKind::Data) and [`Page`](FrameKind::Page) frames carry bytes of an
//! object, at most [`MAX_DATA_BYTES`]. Lengths are checked before anything is allocated. Receivers ignore trailing bytes
//! of a known message, so that fields can be appended; an unknown request is answered `Failed(unsupported)` and the
//! connection lives on.
//!
//! `docs/protocol.md` tells who sends what when.

mod codec;
mod descriptor;
mod frame;
mod message;

pub use codec::{Decode, DecodeError, Encode};
pub use descriptor::{DescriptorError, FrameReceiver, ReceiveError, ReceivedFrame, send_with_descriptor};
pub use frame::{
    FLAG_DESCRIPTOR, FLAG_MORE, FrameError, FrameHeader, FrameKind, HEADER_BYTES, MAX_CONTROL_BYTES,
    MAX_DATA_BYTES, PAGE_PREFIX_BYTES, RequestId, decode_page_prefix, encode_page_prefix,
};
pub use message::{
    Ack, Bypass, BypassReason, Code, DropFiles, FEATURE_LOAD, FEATURES, FOLLOWS_DATA, FOLLOWS_GRANT,
    FOLLOWS_NOTHING, FREE_DRY_RUN, FREE_PREFIX, Failed, Fill, Free, Freed, GrantStatus, Granted, Hello,
    Invalidate, Invalidated, Message, OPEN_NO_DATA, OPEN_NO_GRANT, Open, Opened, Payload, PeerObject,
    Priority, READ_VERIFY, Read, Ready, Release, Role, StoreRef, Tallied, Tally, Used, UsedFile, Welcome,
    encode,
};

/// The only version of the protocol so far.
pub const VERSION: u16 = 1;

/// The version that two sides speak: the highest that both ranges hold.
///
/// `None` when they share none; the daemon then answers `Failed(unsupported)` and closes.
pub fn negotiate(ours: std::ops::RangeInclusive<u16>, theirs: std::ops::RangeInclusive<u16>) -> Option<u16> {
    let highest = *ours.end().min(theirs.end());
    (ours.contains(&highest) && theirs.contains(&highest)).then_some(highest)
}

#[cfg(test)]
mod tests {
    use super::negotiate;

    #[test]
    fn the_highest_common_version_is_spoken() {
        assert_eq!(negotiate(1..=3, 2..=5), Some(3));
        assert_eq!(negotiate(2..=5, 1..=3), Some(3));
        assert_eq!(negotiate(1..=1, 1..=1), Some(1));
        assert_eq!(negotiate(1..=1, 2..=5), None);
        assert_eq!(negotiate(4..=5, 1..=3), None);
        #[allow(clippy::reversed_empty_ranges, reason = "a hostile peer may send one")]
        let reversed = negotiate(1..=3, 3..=1);
        assert_eq!(reversed, None);
    }
}
