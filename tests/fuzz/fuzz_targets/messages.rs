//! Any payload of any kind is read or refused; what is read is written back as something that reads the same.
#![no_main]

use cachelet_protocol::wire::{FrameHeader, FrameKind, HEADER_BYTES, Message, decode_page_prefix};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((header, payload)) = input.split_first_chunk::<HEADER_BYTES>() else { return };
    if let Ok(header) = FrameHeader::from_bytes(header) {
        assert_eq!(FrameHeader::from_bytes(&header.to_bytes()), Ok(header));
    }
    let _ = decode_page_prefix(payload);
    if let Some(kind) = FrameKind::from_number(header[4])
        && let Some(Ok(message)) = Message::decode(kind, payload)
    {
        let mut longer = payload.to_vec();
        longer.extend_from_slice(b"fields of a later version");
        assert_eq!(Message::decode(kind, &longer), Some(Ok(message)));
    }
});
