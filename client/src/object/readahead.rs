//! What a reader will want next, and how far ahead of it to ask. Pure arithmetic on one stream's positions.
//!
//! A reader is sequential from its second adjoining read on; from its first, if that begins the object and is no small
//! one. Its window begins small and doubles as it goes on, so that one who stops early has fetched little in vain and one
//! who scans has many requests under way. A reader that jumps by the same distance again and again is strided, and is
//! asked for where it will be after the next jump. Any other jump ends both.
//!
//! Many threads may read through one stream; then the positions are a mixture, and the worst that happens is a window
//! asked for in vain or not at all.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use cachelet_protocol::block::PAGE_BYTES;

/// A first read of the object's beginning that is at least this long is taken for the start of a scan.
const SCAN_BYTES: u64 = 128 << 10;
/// The first window of such a scan: one request to the origin.
const SCAN_WINDOW: u64 = 8 << 20;
/// The first window of others: one page.
const FIRST_WINDOW: u64 = PAGE_BYTES;
/// What is skipped of a sequential read: less than a page, so that every page is wanted all the same.
const SKIPPED_BYTES: u64 = PAGE_BYTES;

/// One stream's position.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// Where the last read began.
    start: AtomicU64,
    /// Where the next read begins if the reader is sequential.
    expected: AtomicU64,
    /// How far the last read that was not sequential jumped, modulo 2^64.
    jump: AtomicU64,
    /// How much was asked for ahead of a sequential reader when last it was; 0: it is none.
    window: AtomicU64,
    /// Up to where readahead was asked for.
    ahead: AtomicU64,
}

impl Cursor {
    /// A stream that has not read yet.
    pub(crate) fn new() -> Self {
        Self {
            start: AtomicU64::new(u64::MAX),
            expected: AtomicU64::new(u64::MAX),
            jump: AtomicU64::new(0),
            window: AtomicU64::new(0),
            ahead: AtomicU64::new(0),
        }
    }

    /// Notes a read, and says what to ask for ahead of the next one, at most two windows of at most `most` bytes in front
    /// of a sequential reader. `None` for a reader that jumps about, or that is far enough behind what was asked for.
    #[inline]
    pub(crate) fn after_read(&self, read: Range<u64>, most: u64, size_bytes: u64) -> Option<Range<u64>> {
        let expected = self.expected.load(Ordering::Relaxed);
        self.expected.store(read.end, Ordering::Relaxed);
        let before = self.start.load(Ordering::Relaxed);
        self.start.store(read.start, Ordering::Relaxed);
        if most == 0 {
            return None;
        }
        // What begins before `expected` is far beyond it, modulo 2^64.
        let adjoins = expected != u64::MAX && read.start.wrapping_sub(expected) < SKIPPED_BYTES;
        let scans = expected == u64::MAX && read.start == 0 && read.end >= SCAN_BYTES;
        if !adjoins && !scans {
            return self.after_jump(read, before, most, size_bytes);
        }
        let window = self.window.load(Ordering::Relaxed);
        if window != 0
            && self.ahead.load(Ordering::Relaxed) >= read.end.saturating_add(window).min(size_bytes)
        {
            return None;
        }
        let window = match window {
            0 if adjoins => FIRST_WINDOW,
            0 => SCAN_WINDOW,
            window => 2 * window,
        };
        self.extend(read.end, window.min(most), size_bytes)
    }

    /// What was to be asked for could not be from here on; a sequential reader's next read tries again.
    pub(crate) fn fell_short(&self, asked: u64) {
        if self.window.load(Ordering::Relaxed) != 0 {
            self.ahead.store(asked, Ordering::Relaxed);
        }
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
        self.window.store(window, Ordering::Relaxed);
        (start < target).then_some(start..target)
    }

    /// Where a strided reader will be after the next jump but one: the next one is under way, or is waited for at once.
    fn after_jump(&self, read: Range<u64>, before: u64, most: u64, size_bytes: u64) -> Option<Range<u64>> {
        self.ahead.store(0, Ordering::Relaxed);
        self.window.store(0, Ordering::Relaxed);
        let jump = read.start.wrapping_sub(before);
        let jumped = self.jump.load(Ordering::Relaxed);
        self.jump.store(jump, Ordering::Relaxed);
        // A jump backwards is longer than any object.
        if jump != jumped || before == u64::MAX || jump == 0 || jump >= size_bytes {
            return None;
        }
        let start = read.start.checked_add(2 * jump)?;
        let end = start
            .saturating_add((read.end - read.start).min(most))
            .min(size_bytes);
        (start < end).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const MOST: u64 = 32 * MIB;

    #[test]
    fn a_random_reader_asks_for_nothing() {
        let cursor = Cursor::new();
        for start in [5_u64 << 20, 900 << 20, 1 << 20, 300 << 20] {
            assert_eq!(cursor.after_read(start..start + 4096, MOST, 1 << 30), None);
        }
    }

    #[test]
    fn a_scan_is_known_by_its_first_read() {
        assert_eq!(
            Cursor::new().after_read(0..MIB, MOST, 1 << 30),
            Some(MIB..2 * SCAN_WINDOW)
        );
        assert_eq!(
            Cursor::new().after_read(0..4, MOST, 1 << 30),
            None,
            "a magic number"
        );
    }

    #[test]
    fn what_could_not_be_asked_for_is_asked_for_at_the_next_read() {
        let cursor = Cursor::new();
        assert_eq!(cursor.after_read(0..MIB, 8 * MIB, 1 << 30), Some(MIB..16 * MIB));
        cursor.fell_short(3 * MIB);
        assert_eq!(
            cursor.after_read(MIB..2 * MIB, 8 * MIB, 1 << 30),
            Some(3 * MIB..16 * MIB)
        );
    }

    #[test]
    fn a_window_begins_with_a_page_doubles_and_ends_with_a_jump() {
        let cursor = Cursor::new();
        let mut windows = Vec::new();
        let size = 1 << 30;
        for position in (100 * MIB..200 * MIB).step_by(MIB as usize) {
            if cursor.after_read(position..position + MIB, MOST, size).is_some() {
                windows.push(cursor.window.load(Ordering::Relaxed) / MIB);
            }
        }
        assert_eq!(windows[..6], [1, 2, 4, 8, 16, 32]);
        assert!(windows[6..].iter().all(|window| *window == 32), "{windows:?}");
        assert_eq!(cursor.after_read(MIB..2 * MIB, MOST, size), None);
        assert_eq!(
            cursor.after_read(2 * MIB..3 * MIB, MOST, size),
            Some(3 * MIB..4 * MIB)
        );
    }

    #[test]
    fn a_reader_that_skips_less_than_a_page_is_sequential_all_the_same() {
        let cursor = Cursor::new();
        let reads = [10 * MIB, 10 * MIB + 700_000, 11 * MIB + 400_000];
        let asked = reads.map(|start| cursor.after_read(start..start + 4096, MOST, 1 << 30).is_some());
        assert_eq!(asked, [false, true, true]);
    }

    #[test]
    fn a_strided_reader_is_asked_for_two_jumps_ahead() {
        let cursor = Cursor::new();
        let size = 1 << 30;
        let after = |start: u64| cursor.after_read(start..start + 4096, MOST, size);
        assert_eq!(after(0), None);
        assert_eq!(after(10 * MIB), None);
        assert_eq!(after(20 * MIB), Some(40 * MIB..40 * MIB + 4096));
        assert_eq!(after(30 * MIB), Some(50 * MIB..50 * MIB + 4096));
        assert_eq!(after(35 * MIB), None, "another distance");
        for start in [30 * MIB, 25 * MIB, 20 * MIB] {
            assert_eq!(after(start), None, "backwards");
        }
        assert_eq!(after(size - 20 * MIB), None);
        assert_eq!(after(size - 10 * MIB), None);
        assert_eq!(after(size - 4096), None);
        for _ in 0..3 {
            assert_eq!(after(10 * MIB), None, "the same again");
        }
    }

    #[test]
    fn without_a_window_nobody_is_asked_for() {
        let cursor = Cursor::new();
        for start in (0..8 * MIB).step_by(MIB as usize) {
            assert_eq!(cursor.after_read(start..start + MIB, 0, 1 << 30), None);
        }
    }

    proptest! {
        #[test]
        fn a_sequential_reader_is_asked_for_once_and_never_beyond_the_end_or_two_windows(
            start in 0_u64..1 << 24, size in 1_u64 << 25..1 << 28, step in 1_u64 << 16..1 << 22,
            most in 1_u64 << 19..1 << 26,
        ) {
            let cursor = Cursor::new();
            let mut position = start;
            let mut asked: Option<Range<u64>> = None;
            let mut requests = 0;
            while position < size {
                let end = (position + step).min(size);
                if let Some(ahead) = cursor.after_read(position..end, most, size) {
                    requests += 1;
                    prop_assert!(!ahead.is_empty() && ahead.end <= size);
                    prop_assert!(ahead.end <= end + 2 * most);
                    if let Some(asked) = &asked {
                        prop_assert_eq!(ahead.start, asked.end.max(end));
                    }
                    asked = Some(ahead);
                }
                if position > start && end < size {
                    let least = FIRST_WINDOW.min(most);
                    let covered = asked.as_ref().is_some_and(|asked| asked.end >= (end + least).min(size));
                    prop_assert!(covered, "at {} asked {:?}", end, asked);
                }
                position = end;
            }
            prop_assert!(requests <= (size / most) + 8, "{} requests", requests);
        }
    }
}
