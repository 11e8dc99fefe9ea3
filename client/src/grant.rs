//! Grants: read-only descriptors of block files, and the registry that bounds how many are held.
//!
//! A grant is immutable but for two things that only grow: the pages known to be present, and what was read from it.
//! Readers hold a grant by `Arc` while they read; closing one means taking it out of its slot, and the descriptor is
//! closed with the last reader. The daemon hears of it afterwards (`Used`, then `Release`), never before.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use cachelet_protocol::block::{BlockIndex, PAGE_BYTES, PageSet};
use cachelet_protocol::ids::FileId;
use cachelet_protocol::wire::UsedFile;

use crate::object::Inner;
use crate::session::control::Control;
use crate::session::pending::lock;
use crate::stats::Counters;

/// A [`PageSet`] that only grows, shared without a lock.
///
/// The halves are read one after the other: a reader may see one page's arrival before another's, never a page that is
/// not there.
#[derive(Debug, Default)]
struct GrowingPages {
    low: AtomicU64,
    high: AtomicU64,
}

impl GrowingPages {
    /// Whether it has the pages from `first` to `last`. Most reads lie within one page.
    #[inline]
    fn has(&self, first: u32, last: u32) -> bool {
        if first == last {
            self.half(first).load(Ordering::Acquire) >> (first % 64) & 1 == 1
        } else {
            self.get().contains_all(PageSet::span(first..last + 1))
        }
    }

    /// Adds the pages from `first` to `last`.
    #[inline]
    fn touch(&self, first: u32, last: u32) {
        if first != last {
            self.add(PageSet::span(first..last + 1));
        } else if self.half(first).load(Ordering::Relaxed) >> (first % 64) & 1 == 0 {
            self.half(first).fetch_or(1 << (first % 64), Ordering::AcqRel);
        }
    }

    #[inline]
    fn half(&self, page: u32) -> &AtomicU64 {
        if page < 64 { &self.low } else { &self.high }
    }

    fn get(&self) -> PageSet {
        let low = u128::from(self.low.load(Ordering::Acquire));
        let high = u128::from(self.high.load(Ordering::Acquire));
        PageSet::from_bits(low | high << 64)
    }

    fn add(&self, pages: PageSet) {
        let bits = pages.bits();
        for (half, bits) in [(&self.low, bits as u64), (&self.high, (bits >> 64) as u64)] {
            // Most reads touch pages that were touched before: a load leaves the cache line shared.
            if half.load(Ordering::Relaxed) & bits != bits {
                half.fetch_or(bits, Ordering::AcqRel);
            }
        }
    }

    fn take(&self) -> PageSet {
        let low = u128::from(self.low.swap(0, Ordering::AcqRel));
        let high = u128::from(self.high.swap(0, Ordering::AcqRel));
        PageSet::from_bits(low | high << 64)
    }
}

/// Where a block lies in its file, as `Granted` said.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) file_id: FileId,
    pub(crate) data_offset: u64,
    pub(crate) crc_offset: u64,
    /// Valid bytes of the block.
    pub(crate) length: u64,
}

/// Whose block it is.
pub(crate) struct Home {
    pub(crate) object: Weak<Inner>,
    pub(crate) block: BlockIndex,
    /// The object's counters, which outlive it.
    pub(crate) counters: Arc<Counters>,
}

/// Fields are dropped in this order: the descriptor is closed before the lease ends.
pub(crate) struct Grant {
    file: File,
    layout: Layout,
    present: GrowingPages,
    lease: Lease,
}

/// What ends when a grant does.
struct Lease {
    control: Arc<Control>,
    registry: Arc<Registry>,
    home: Home,
    file_id: FileId,
    length: u64,
    used_bytes: AtomicU64,
    reported_bytes: AtomicU64,
    touched: GrowingPages,
}

impl Grant {
    pub(crate) fn new(
        file: File,
        layout: Layout,
        present: PageSet,
        home: Home,
        control: &Arc<Control>,
        registry: &Arc<Registry>,
    ) -> Arc<Self> {
        control.lease(layout.file_id);
        registry.live.fetch_add(1, Ordering::Relaxed);
        registry.held_bytes.fetch_add(layout.length, Ordering::Relaxed);
        let grant = Arc::new(Self {
            file,
            layout,
            present: GrowingPages::default(),
            lease: Lease {
                control: Arc::clone(control),
                registry: Arc::clone(registry),
                home,
                file_id: layout.file_id,
                length: layout.length,
                used_bytes: AtomicU64::new(0),
                reported_bytes: AtomicU64::new(0),
                touched: GrowingPages::default(),
            },
        });
        grant.add_present(present);
        registry.enter(&grant);
        grant
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// The connection that it came over. A file id means something in that session only.
    pub(crate) fn connection(&self) -> u64 {
        self.lease.control.key()
    }

    pub(crate) fn has(&self, pages: PageSet) -> bool {
        self.present.get().contains_all(pages)
    }

    /// Whether the pages of a range of the block (not empty, within it) are present.
    #[inline]
    pub(crate) fn covers(&self, offset: u64, length: u64) -> bool {
        self.present.has(
            (offset / PAGE_BYTES) as u32,
            ((offset + length - 1) / PAGE_BYTES) as u32,
        )
    }

    pub(crate) fn present(&self) -> PageSet {
        self.present.get()
    }

    /// More pages are there. Pages that the block does not have are left out.
    pub(crate) fn add_present(&self, pages: PageSet) {
        self.present
            .add(pages.intersection(PageSet::all(self.layout.length)));
    }

    /// Fills `buf` with the block's bytes from `offset` on. The caller has seen that the pages are present.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        debug_assert!(offset + buf.len() as u64 <= self.layout.length);
        self.read_raw(buf, self.layout.data_offset + offset)
    }

    /// The CRC32Cs of the chunks from `first` on, as many as `crcs` is long.
    pub(crate) fn read_crcs(&self, first: u64, count: usize) -> io::Result<Vec<u32>> {
        let mut bytes = vec![0; count * 4];
        self.read_raw(&mut bytes, self.layout.crc_offset + first * 4)?;
        let crcs = bytes.chunks_exact(4);
        Ok(crcs
            .map(|crc| u32::from_le_bytes([crc[0], crc[1], crc[2], crc[3]]))
            .collect())
    }

    fn read_raw(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match self.file.read_at(buf, offset) {
                // A file that ends too early was damaged: its missing bytes are not zeros.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    buf = &mut buf[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Counts bytes that a reader got from a range (not empty).
    #[inline]
    pub(crate) fn used(&self, offset: u64, length: u64) {
        self.lease.used_bytes.fetch_add(length, Ordering::Relaxed);
        let last = (offset + length - 1) / PAGE_BYTES;
        self.lease
            .touched
            .touch((offset / PAGE_BYTES) as u32, last as u32);
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.lease.used_bytes.load(Ordering::Relaxed)
    }

    /// Takes it out of its slot, if it is still there.
    fn close(self: &Arc<Self>) {
        if let Some(object) = self.lease.home.object.upgrade() {
            object.close_grant(self.lease.home.block, self);
        }
    }
}

impl Lease {
    fn report(&self) {
        let bytes = self.used_bytes.load(Ordering::Relaxed);
        let reported = self.reported_bytes.swap(bytes, Ordering::Relaxed);
        let pages = self.touched.take();
        if bytes > reported || !pages.is_empty() {
            self.control.outbox.used(UsedFile {
                file_id: self.file_id,
                bytes: bytes.saturating_sub(reported),
                pages,
            });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let bytes = *self.used_bytes.get_mut();
        Counters::add(&self.registry.counters.local_bytes, bytes);
        Counters::add(&self.home.counters.local_bytes, bytes);
        self.report();
        self.control.end_lease(self.file_id);
        self.registry.live.fetch_sub(1, Ordering::Relaxed);
        self.registry.held_bytes.fetch_sub(self.length, Ordering::Relaxed);
    }
}

struct Entry {
    grant: Weak<Grant>,
    /// What had been read when the hand last passed: recency without a clock on the read path.
    seen_bytes: u64,
    idle_since: Instant,
}

/// All grants of a client, in the order of a clock hand: the one that was not read from since the hand last passed goes
/// first.
pub(crate) struct Registry {
    clock: Mutex<VecDeque<Entry>>,
    live: AtomicUsize,
    held_bytes: AtomicU64,
    max_descriptors: usize,
    idle_close_millis: AtomicU64,
    counters: Arc<Counters>,
}

impl Registry {
    pub(crate) fn new(max_descriptors: usize, counters: Arc<Counters>) -> Self {
        Self {
            clock: Mutex::default(),
            live: AtomicUsize::new(0),
            held_bytes: AtomicU64::new(0),
            max_descriptors: max_descriptors.max(1),
            idle_close_millis: AtomicU64::new(u64::MAX),
            counters,
        }
    }

    /// Grants that were not read from for this long are closed by [`tick`](Self::tick).
    pub(crate) fn set_idle_close(&self, idle: Duration) {
        let millis = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
        self.idle_close_millis.store(millis, Ordering::Relaxed);
    }

    pub(crate) fn idle_close(&self) -> Duration {
        Duration::from_millis(self.idle_close_millis.load(Ordering::Relaxed))
    }

    /// Descriptors held now.
    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    fn enter(&self, grant: &Arc<Grant>) {
        lock(&self.clock).push_back(Entry {
            grant: Arc::downgrade(grant),
            seen_bytes: u64::MAX,
            idle_since: Instant::now(),
        });
    }

    /// Closes grants until one more, of `length` bytes, keeps to the limits. Grants in use count until they are done.
    pub(crate) fn make_room(&self, length: u64, max_held_bytes: u64) {
        let mut closed = 0;
        let mut rounds = lock(&self.clock).len() * 2;
        loop {
            let over = self.live() >= self.max_descriptors
                || self.held_bytes.load(Ordering::Relaxed).saturating_add(length) > max_held_bytes;
            if !over || rounds == 0 {
                break;
            }
            rounds -= 1;
            if let Some(victim) = self.turn_hand() {
                victim.close();
                closed += 1;
            }
        }
        Counters::add(&self.counters.grants_closed, closed);
    }

    /// Moves the hand by one. A grant that was read from since the hand last passed is let be once.
    fn turn_hand(&self) -> Option<Arc<Grant>> {
        let mut clock = lock(&self.clock);
        let mut entry = clock.pop_front()?;
        let grant = entry.grant.upgrade()?;
        let bytes = grant.used_bytes();
        if bytes == entry.seen_bytes {
            return Some(grant);
        }
        entry.seen_bytes = bytes;
        clock.push_back(entry);
        None
    }

    /// Closes what was idle for too long, forgets what is gone and, for `report`'s connection, queues what was read.
    pub(crate) fn tick(&self, now: Instant, report: Option<&Control>) {
        let idle_close = self.idle_close();
        let mut idle = Vec::new();
        let mut live = Vec::new();
        lock(&self.clock).retain_mut(|entry| {
            let Some(grant) = entry.grant.upgrade() else {
                return false;
            };
            let bytes = grant.used_bytes();
            if bytes != entry.seen_bytes {
                entry.seen_bytes = bytes;
                entry.idle_since = now;
            } else if now.saturating_duration_since(entry.idle_since) >= idle_close {
                idle.push(grant);
                return false;
            }
            live.push(grant);
            true
        });
        if let Some(control) = report {
            let ours = live.iter().filter(|grant| grant.connection() == control.key());
            ours.for_each(|grant| grant.lease.report());
        }
        Counters::add(&self.counters.grants_closed, idle.len() as u64);
        idle.iter().for_each(Grant::close);
    }

    /// The daemon asks to close these files of a connection.
    pub(crate) fn drop_files(&self, connection: u64, files: &[FileId]) {
        let grants: Vec<_> = lock(&self.clock)
            .iter()
            .filter_map(|entry| entry.grant.upgrade())
            .filter(|grant| grant.connection() == connection && files.contains(&grant.layout.file_id))
            .collect();
        Counters::add(&self.counters.grants_dropped, grants.len() as u64);
        grants.iter().for_each(Grant::close);
    }

    /// Bytes read from grants that are still open.
    pub(crate) fn live_bytes(&self) -> u64 {
        let clock = lock(&self.clock);
        let grants = clock.iter().filter_map(|entry| entry.grant.upgrade());
        grants.map(|grant| grant.used_bytes()).sum()
    }
}
