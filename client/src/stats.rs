//! Counters: where bytes came from and how many messages that took.
//!
//! Bytes read from held descriptors are counted on the grant (the hot path touches one counter) and added here when the
//! grant is closed or a snapshot is taken.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$meta:meta])* $name:ident),* $(,)?) => {
        /// What a client or an object has done so far. Counters only grow.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$meta])* pub $name: u64),*
        }

        /// The live counters behind [`Stats`].
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64),*
        }

        impl Counters {
            /// The counters now.
            pub(crate) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.load(Ordering::Relaxed)),* }
            }
        }

        impl Stats {
            /// Every counter with its name, for output.
            pub fn fields(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counters! {
    /// Bytes read from held descriptors, or kept with a small object.
    local_bytes,
    /// Bytes that the daemon of this node sent over its socket.
    inline_bytes,
    /// Bytes that a daemon sent over TCP.
    remote_bytes,
    /// Objects opened with a message.
    opens,
    /// Objects opened without a message, because the generation was open.
    opens_shared,
    /// Requests whose answer a reader waited for.
    round_trips,
    /// Frames sent, one-way messages included.
    messages_sent,
    /// Demand fills that a reader waited for.
    fills_waited,
    /// Readahead requests sent.
    readaheads_sent,
    /// Readahead requests not sent because the connection was busy.
    readaheads_dropped,
    /// Descriptors received.
    grants_received,
    /// Descriptors closed to make room or because they were idle.
    grants_closed,
    /// Descriptors closed because the daemon asked for it.
    grants_dropped,
    /// Times a descriptor did not arrive, or one too many did; the client reads inline for a while then.
    descriptor_failures,
    /// Chunks whose checksum did not match (with `verify_reads`).
    crc_mismatches,
    /// Held files that could not be read or were too short; their blocks were read inline.
    file_failures,
    /// Connections to a daemon made after an earlier one was lost.
    reconnects,
    /// Requests that the daemon answered with `Bypass`.
    bypasses,
    /// Requests that timed out.
    timeouts,
}

impl Counters {
    /// Adds to one counter.
    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}
