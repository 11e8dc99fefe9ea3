//! When a reader is sequential, and how far ahead of it to ask. Pure arithmetic on one stream's positions.
//!
//! A reader is sequential from its second adjoining read on; from its first, if that begins the object and is no small
//! one.
//!
//! Many threads may read through one stream; then the positions are a mixture, and the worst that happens is a window
//! asked for in vain or not at all.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A first read of the object's beginning that is at least this long is taken for the start of a scan.
const SCAN_BYTES: u64 = 128 << 10;

/// One stream's position.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// Where the next read begins if the reader is sequential.
    expected: AtomicU64,
    /// Up to where readahead was asked for.
    ahead: AtomicU64,
}

impl Cursor {
    /// A stream that has not read yet.
    pub(crate) fn new() -> Self {
        Self {
            expected: AtomicU64::new(u64::MAX),
            ahead: AtomicU64::new(0),
        }
    }

    /// Notes a read, and says what to ask for ahead of the next one: aligned windows, one to two of them in front of the
    /// reader. `None` for a reader that jumps, or that is far enough behind what was asked for.
    #[inline]
    pub(crate) fn after_read(&self, read: Range<u64>, window: u64, size_bytes: u64) -> Option<Range<u64>> {
        let expected = self.expected.load(Ordering::Relaxed);
        let sequential =
            expected == read.start || (expected == u64::MAX && read.start == 0 && read.end >= SCAN_BYTES);
        self.expected.store(read.end, Ordering::Relaxed);
        if !sequential {
            self.ahead.store(0, Ordering::Relaxed);
            return None;
        }
        if window == 0 {
            return None;
        }
        let wanted = read.end.saturating_add(window).min(size_bytes);
        if self.ahead.load(Ordering::Relaxed) >= wanted {
            return None;
        }
        self.extend(read.end, window, size_bytes)
    }

    /// What was to be asked for could not be from here on; the next read tries again.
    pub(crate) fn fell_short(&self, asked: u64) {
        self.ahead.store(asked, Ordering::Relaxed);
    }

    #[cold]
    fn extend(&self, position: u64, window: u64, size_bytes: u64) -> Option<Range<u64>> {
        let target = position
            .saturating_add(window)
            .checked_next_multiple_of(window)
            .unwrap_or(u64::MAX)
            .min(size_bytes);
        let start = self.ahead.load(Ordering::Relaxed).max(position);
        self.ahead.store(target, Ordering::Relaxed);
        (start < target).then_some(start..target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: u64 = 8 << 20;

    #[test]
    fn a_random_reader_asks_for_nothing() {
        let cursor = Cursor::new();
        for start in [5_u64 << 20, 900 << 20, 1 << 20, 300 << 20] {
            assert_eq!(cursor.after_read(start..start + 4096, WINDOW, 1 << 30), None);
        }
    }

    #[test]
    fn a_scan_is_known_by_its_first_read() {
        assert_eq!(
            Cursor::new().after_read(0..1 << 20, WINDOW, 1 << 30),
            Some(1 << 20..2 * WINDOW)
        );
        assert_eq!(
            Cursor::new().after_read(0..4, WINDOW, 1 << 30),
            None,
            "a magic number"
        );
    }

    #[test]
    fn what_could_not_be_asked_for_is_asked_for_at_the_next_read() {
        let cursor = Cursor::new();
        assert_eq!(
            cursor.after_read(0..1 << 20, WINDOW, 1 << 30),
            Some(1 << 20..2 * WINDOW)
        );
        cursor.fell_short(3 << 20);
        assert_eq!(
            cursor.after_read(1 << 20..2 << 20, WINDOW, 1 << 30),
            Some(3 << 20..2 * WINDOW)
        );
    }

    proptest! {
        #[test]
        fn a_sequential_reader_is_covered_once_and_never_beyond_the_end(
            start in 0_u64..1 << 24, size in 1_u64 << 25..1 << 28, step in 1_u64 << 16..1 << 22,
        ) {
            let cursor = Cursor::new();
            let mut position = start;
            let mut asked: Option<Range<u64>> = None;
            let mut requests = 0;
            while position < size {
                let end = (position + step).min(size);
                if let Some(ahead) = cursor.after_read(position..end, WINDOW, size) {
                    requests += 1;
                    prop_assert!(!ahead.is_empty() && ahead.end <= size);
                    if let Some(asked) = &asked {
                        prop_assert_eq!(ahead.start, asked.end.max(end));
                    }
                    asked = Some(ahead);
                }
                if position > start && end < size {
                    let covered = asked.as_ref().is_some_and(|asked| asked.end >= (end + WINDOW).min(size));
                    prop_assert!(covered, "at {} asked {:?}", end, asked);
                }
                position = end;
            }
            prop_assert!(requests <= (size / WINDOW) + 2, "{} requests", requests);
        }
    }
}
