//! Numbers that Java holds instead of pointers.
//!
//! A handle is a slot's index and the generation of its content: it is never given out twice, so a stale one finds
//! nothing. Looking one up takes no lock and no shared counter; what was found lives until the finder lets go of it,
//! whoever closes it meanwhile.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::{ArcSwapOption, Guard};

const INDEX_BITS: u32 = 24;
/// The first segment's slots; each further one has twice as many as the one before.
const FIRST_SLOTS: usize = 64;
/// Enough for 2^24 slots.
const SEGMENTS: usize = 19;

struct Entry<T> {
    handle: i64,
    value: T,
}

struct Slot<T> {
    entry: ArcSwapOption<Entry<T>>,
    generation: AtomicU64,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self {
            entry: ArcSwapOption::empty(),
            generation: AtomicU64::new(0),
        }
    }
}

/// Slots that nobody uses: those given back, and all from `untouched` on.
struct Free {
    given_back: Vec<usize>,
    untouched: usize,
}

/// See the module's text.
pub(crate) struct Table<T> {
    segments: [OnceLock<Box<[Slot<T>]>>; SEGMENTS],
    free: Mutex<Free>,
}

/// What a handle named when it was looked up.
pub(crate) struct Found<T>(Guard<Option<Arc<Entry<T>>>>);

impl<T> Deref for Found<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let entry = self
            .0
            .as_ref()
            .expect("a lookup that found nothing gives no `Found`");
        &entry.value
    }
}

impl<T> Table<T> {
    pub(crate) const fn new() -> Self {
        Self {
            segments: [const { OnceLock::new() }; SEGMENTS],
            free: Mutex::new(Free {
                given_back: Vec::new(),
                untouched: 0,
            }),
        }
    }

    /// Keeps a value under a new handle, which is positive. `None`: 2^24 values are kept already.
    pub(crate) fn insert(&self, value: T) -> Option<i64> {
        let index = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            match free.given_back.pop() {
                Some(index) => index,
                None if free.untouched < 1 << INDEX_BITS => {
                    free.untouched += 1;
                    free.untouched - 1
                }
                None => return None,
            }
        };
        let (segment, within) = place(index);
        let slots = self.segments[segment]
            .get_or_init(|| (0..FIRST_SLOTS << segment).map(|_| Slot::default()).collect());
        let slot = &slots[within];
        let generation = slot.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let handle = (generation << INDEX_BITS | index as u64) as i64;
        slot.entry.store(Some(Arc::new(Entry { handle, value })));
        Some(handle)
    }

    /// What the handle names, if it is still there.
    #[inline]
    pub(crate) fn get(&self, handle: i64) -> Option<Found<T>> {
        let guard = self.slot(handle)?.entry.load();
        let current = guard.as_ref().is_some_and(|entry| entry.handle == handle);
        current.then(|| Found(guard))
    }

    /// Takes what the handle names out of the table. Who has found it keeps it until done.
    pub(crate) fn remove(&self, handle: i64) -> Option<Found<T>> {
        let slot = self.slot(handle)?;
        let guard = slot.entry.load();
        let entry = guard.as_ref().filter(|entry| entry.handle == handle)?;
        let before = slot.entry.compare_and_swap(entry, None);
        // Of two that close the same handle one wins.
        let won = before.as_ref().is_some_and(|before| Arc::ptr_eq(before, entry));
        if !won {
            return None;
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.given_back.push(index_of(handle));
        drop(free);
        Some(Found(guard))
    }

    #[inline]
    fn slot(&self, handle: i64) -> Option<&Slot<T>> {
        let (segment, within) = place(index_of(handle));
        self.segments.get(segment)?.get()?.get(within)
    }
}

fn index_of(handle: i64) -> usize {
    (handle.cast_unsigned() & ((1 << INDEX_BITS) - 1)) as usize
}

/// Which segment a slot is in, and where there.
fn place(index: usize) -> (usize, usize) {
    let segment = (index / FIRST_SLOTS + 1).ilog2() as usize;
    (segment, index - FIRST_SLOTS * ((1 << segment) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize};

    #[test]
    fn every_index_has_a_place_of_its_own() {
        let mut next = (0, 0);
        for index in 0..1 << 20 {
            assert_eq!(place(index), next);
            next.1 += 1;
            if next.1 == FIRST_SLOTS << next.0 {
                next = (next.0 + 1, 0);
            }
        }
        let (segment, within) = place((1 << INDEX_BITS) - 1);
        assert!(segment < SEGMENTS && within < FIRST_SLOTS << segment);
    }

    #[test]
    fn a_closed_handle_finds_nothing_also_after_its_slot_is_used_again() {
        let table = Table::new();
        let first = table.insert("first").unwrap();
        assert!(first > 0);
        assert_eq!(table.get(first).as_deref(), Some(&"first"));
        assert!(table.remove(first).is_some());
        assert!(table.remove(first).is_none(), "closed twice");
        let second = table.insert("second").unwrap();
        assert_ne!(first, second);
        assert_eq!(index_of(first), index_of(second));
        assert!(table.get(first).is_none());
        assert_eq!(table.get(second).as_deref(), Some(&"second"));
    }

    #[test]
    fn a_made_up_handle_finds_nothing() {
        let table = Table::new();
        table.insert(1).unwrap();
        for handle in [
            0,
            -1,
            1,
            i64::MIN,
            i64::MAX,
            1 << INDEX_BITS | 63,
            2 << INDEX_BITS,
        ] {
            assert!(table.get(handle).is_none(), "{handle}");
            assert!(table.remove(handle).is_none(), "{handle}");
        }
    }

    #[test]
    fn what_was_found_lives_until_the_finder_lets_go() {
        struct Tells(Arc<AtomicBool>);
        impl Drop for Tells {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let gone = Arc::new(AtomicBool::new(false));
        let table = Table::new();
        let handle = table.insert(Tells(Arc::clone(&gone))).unwrap();
        let found = table.get(handle).unwrap();
        drop(table.remove(handle));
        assert!(!gone.load(Ordering::SeqCst));
        drop(found);
        assert!(gone.load(Ordering::SeqCst));
    }

    #[test]
    fn readers_beside_closers_find_the_value_or_nothing() {
        let table = Table::new();
        let current = AtomicI64::new(0);
        let found = AtomicUsize::new(0);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let handle = current.load(Ordering::Relaxed);
                        if let Some(value) = table.get(handle) {
                            assert_eq!(*value, vec![7_u8; 1000]);
                            found.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            for round in 0.. {
                let handle = table.insert(vec![7_u8; 1000]).unwrap();
                current.store(handle, Ordering::Relaxed);
                if round > 20_000 && found.load(Ordering::Relaxed) > 1000 {
                    break;
                }
                assert!(table.remove(handle).is_some());
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
