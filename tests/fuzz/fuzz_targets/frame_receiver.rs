//! Whatever arrives on a socket, a receiver gives frames or one error, and never more payload than arrived.
#![no_main]

use std::io::Write;
use std::os::unix::net::UnixStream;

use cachelet_protocol::wire::FrameReceiver;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // More than this may not fit in the socket's buffer, and nobody reads while it is written.
    let input = &input[..input.len().min(64 << 10)];
    let (mut sender, receiver) = UnixStream::pair().expect("a socket pair");
    sender.write_all(input).expect("it fits in the buffer");
    drop(sender);
    let mut receiver = FrameReceiver::new(receiver);
    let mut taken = 0;
    while let Ok(frame) = receiver.receive() {
        taken += frame.payload.len();
        assert!(taken <= input.len() && frame.descriptor.is_none());
    }
});
