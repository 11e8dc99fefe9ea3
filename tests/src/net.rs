//! Loopback ports.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below Linux's range for outgoing connections (32768 and up), so that no client socket takes a port between
/// [`free_port`] and the server's bind.
const FIRST: u16 = 16_000;
const COUNT: u16 = 16_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port of 127.0.0.1 on which nobody listens now, and which this process does not give out again soon.
pub fn free_port() -> u16 {
    // Test processes that run at the same time start looking at different places.
    let start = u16::try_from(std::process::id().wrapping_mul(397) % u32::from(COUNT)).expect("below COUNT");
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (start + step) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!(
        "cannot find a free port on 127.0.0.1 between {FIRST} and {}",
        FIRST + COUNT
    );
}
