//! One opened generation and how its missing bytes are got: the miss path of a read.
//!
//! Locks, in this order: a slot's `asking`, the attachment, the client's link. The reader thread takes none of them.

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use cachelet_protocol::block::{BlockIndex, BlockSize, CHUNK_BYTES, PAGE_BYTES, PageIndex, PageSet};
use cachelet_protocol::ids::{Generation, Handle};
use cachelet_protocol::wire::{Code, OPEN_NO_DATA, Open, Opened};

use super::block::{Slot, Table};
use super::verify::{self, Unverified};
use crate::client::{Key, Shared};
use crate::deadline::Deadline;
use crate::error::{Error, ExpectedGeneration};
use crate::grant::{Grant, Home, Layout, Registry};
use crate::session::control::Control;
use crate::session::pending::{Descriptor, Reply, lock};
use crate::session::{Filled, Session};
use crate::stats::{Counters, Stats};

/// Waited for at once at most: a longer read goes on with the first pages while the next ones come.
const FILL_BYTES: u64 = 8 << 20;
/// Answers to one demand for pages before the block is read inline.
const FILL_ROUNDS: u32 = 4;
/// How long a block is read inline after the daemon refused a grant: it may have too many unacknowledged just now.
const REFUSED_MILLIS: u64 = 100;
/// How long a block is read inline after its held file proved bad: the daemon finds out meanwhile.
const BAD_FILE_MILLIS: u64 = 1000;

/// One opened generation, shared by every [`Object`] of it.
pub(crate) struct Inner {
    pub(crate) key: Key,
    pub(crate) generation: Generation,
    pub(crate) opened_at: Instant,
    /// The whole of a small object.
    pub(super) whole: Option<Box<[u8]>>,
    pub(super) table: Table,
    pub(super) counters: Arc<Counters>,
    /// How many [`Object`]s use it.
    pub(crate) users: AtomicUsize,
    attachment: Mutex<Attachment>,
}

/// Which session knows the object, and under which handle.
struct Attachment {
    session: Arc<Session>,
    handle: Handle,
    /// The daemon no longer knows the handle.
    stale: bool,
}

impl Inner {
    pub(crate) fn new(
        key: Key,
        generation: Generation,
        whole: Option<Vec<u8>>,
        session: Arc<Session>,
        handle: Handle,
    ) -> Arc<Self> {
        Arc::new(Self {
            table: Table::new(session.block_size(), generation.size_bytes),
            key,
            generation,
            opened_at: Instant::now(),
            whole: whole.map(Vec::into_boxed_slice),
            counters: Arc::default(),
            users: AtomicUsize::new(0),
            attachment: Mutex::new(Attachment {
                session,
                handle,
                stale: false,
            }),
        })
    }

    pub(crate) fn block_size(&self) -> BlockSize {
        self.table.block_size()
    }

    /// Moves the object to a handle of another session. Another handle of the same one is given back: readers may be about
    /// to ask with the one that there is.
    pub(crate) fn reattach(&self, session: &Arc<Session>, handle: Handle) {
        let mut attachment = lock(&self.attachment);
        if !attachment.stale && Arc::ptr_eq(&attachment.session, session) {
            if attachment.handle != handle {
                session.control().outbox.release_handle(handle);
            }
            return;
        }
        let old = std::mem::replace(
            &mut *attachment,
            Attachment {
                session: Arc::clone(session),
                handle,
                stale: false,
            },
        );
        drop(attachment);
        if !old.stale {
            old.session.control().outbox.release_handle(old.handle);
        }
    }

    /// The session and handle to ask with; opens the object again, at its generation, if the session was lost.
    fn attach(&self, shared: &Shared, deadline: Deadline) -> Result<(Arc<Session>, Handle), Error> {
        let mut attachment = deadline.lock(&self.attachment, "waiting for another reader's reconnection")?;
        if !attachment.stale && attachment.session.ended().is_none() {
            return Ok((Arc::clone(&attachment.session), attachment.handle));
        }
        let session = shared.session(deadline)?;
        if session.block_size() != self.table.block_size() {
            return Err(Error::Unavailable(format!(
                "the daemon's block size changed from {} to {} bytes while {} was open",
                self.table.block_size().bytes(),
                session.block_size().bytes(),
                self.key.path
            )));
        }
        let open = Open {
            flags: OPEN_NO_DATA,
            ..self.key.open(Some(self.generation.clone()), 0..0)
        };
        let (opened, _) = session
            .open(&open, deadline)
            .map_err(|error| error.about(&self.key.path, Some(&self.generation)))?;
        self.key
            .check_generation(&session, &opened, Some(&self.generation))?;
        *attachment = Attachment {
            session: Arc::clone(&session),
            handle: opened.handle,
            stale: false,
        };
        Ok((session, opened.handle))
    }

    /// The daemon does not know the handle any more.
    fn detach(&self, session: &Arc<Session>, handle: Handle) {
        let mut attachment = lock(&self.attachment);
        if attachment.handle == handle && Arc::ptr_eq(&attachment.session, session) {
            attachment.stale = true;
        }
    }

    /// Takes a grant out of its slot, if it is still there.
    pub(crate) fn close_grant(&self, block: BlockIndex, grant: &Arc<Grant>) {
        if let Some(slot) = self.table.touched(block) {
            let current = slot.grant.load();
            if current
                .as_ref()
                .is_some_and(|current| Arc::ptr_eq(current, grant))
            {
                slot.grant.compare_and_swap(&*current, None);
            }
        }
    }

    /// The daemon has no descriptor to give for this block: for a while, do not ask again.
    pub(crate) fn grant_refused(&self, shared: &Shared, block: BlockIndex) {
        let slot = self.table.slot(block);
        slot.read_inline_until(shared.millis() + REFUSED_MILLIS);
    }

    /// Makes a grant of what the daemon sent, and puts it where readers find it.
    pub(crate) fn install(
        self: &Arc<Self>,
        registry: &Arc<Registry>,
        control: &Arc<Control>,
        block: BlockIndex,
        descriptor: Descriptor,
    ) -> Result<Arc<Grant>, Error> {
        let Descriptor { granted, file } = descriptor;
        let file = File::from(file);
        let expected = self
            .table
            .block_size()
            .length_of(block, self.generation.size_bytes);
        let fits = |offset: u64, length: u64| {
            offset
                .checked_add(length)
                .is_some_and(|end| i64::try_from(end).is_ok())
        };
        if granted.block != block || granted.length != expected || expected == 0 {
            return Err(Error::Protocol(format!(
                "a grant of {} bytes of block {} where block {block} of {expected} bytes was asked for",
                granted.length, granted.block
            )));
        }
        let crc_bytes = expected.div_ceil(CHUNK_BYTES) * 4;
        if !fits(granted.data_offset, expected)
            || !fits(granted.crc_offset, crc_bytes)
            || granted.file_id.0 == 0
        {
            return Err(Error::Protocol("a grant with impossible offsets".into()));
        }
        // A read on anything but a file could block for ever.
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if !is_file {
            return Err(Error::Protocol(
                "a granted descriptor is not of a regular file".into(),
            ));
        }
        let grant = Grant::new(
            file,
            Layout {
                file_id: granted.file_id,
                data_offset: granted.data_offset,
                crc_offset: granted.crc_offset,
                length: granted.length,
            },
            granted.present,
            Home {
                object: Arc::downgrade(self),
                block,
                counters: Arc::clone(&self.counters),
            },
            control,
            registry,
        );
        let slot = self.table.slot(block);
        let old = slot.grant.swap(Some(Arc::clone(&grant)));
        slot.distrusted.store(false, Ordering::Relaxed);
        if let Some(old) = old {
            // Two answers about one file may have crossed; what either knew to be present is.
            if old.connection() == grant.connection() && old.layout().file_id == granted.file_id {
                grant.add_present(old.present());
            }
        }
        Ok(grant)
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = self.counters.snapshot();
        stats.local_bytes += self
            .table
            .iter()
            .filter_map(|slot| slot.grant.load().as_ref().map(|grant| grant.used_bytes()))
            .sum::<u64>();
        stats
    }

    /// Fills `buf` from `offset` of one block, from its held descriptor if it has the pages.
    #[inline]
    pub(super) fn read_held(&self, shared: &Shared, block: BlockIndex, buf: &mut [u8], offset: u64) -> bool {
        let Some(slot) = self.table.touched(block) else {
            return false;
        };
        let guard = slot.grant.load();
        let Some(grant) = guard.as_ref() else {
            return false;
        };
        grant.covers(offset, buf.len() as u64) && self.read_grant(shared, slot, grant, buf, offset)
    }

    /// Whether a range (not empty) of one block is present in a held descriptor.
    pub(super) fn holds(&self, block: BlockIndex, range: Range<u64>) -> bool {
        let covers = |grant: &Arc<Grant>| grant.covers(range.start, range.end - range.start);
        let slot = self.table.touched(block);
        slot.is_some_and(|slot| slot.grant.load().as_ref().is_some_and(covers))
    }

    /// One read on a held descriptor. On false the grant was closed: it gave no bytes, or wrong ones.
    #[inline]
    fn read_grant(
        &self,
        shared: &Shared,
        slot: &Slot,
        grant: &Arc<Grant>,
        buf: &mut [u8],
        offset: u64,
    ) -> bool {
        let result = if shared.options.verify_reads {
            verify::read(grant, buf, offset)
        } else {
            grant.read(buf, offset).map_err(Unverified::from)
        };
        match result {
            Ok(()) => {
                grant.used(offset, buf.len() as u64);
                true
            }
            Err(unverified) => {
                self.discard(shared, slot, grant, &unverified);
                false
            }
        }
    }

    /// A held file is no good: its block comes from the daemon for a while, who finds out why.
    #[cold]
    fn discard(&self, shared: &Shared, slot: &Slot, grant: &Arc<Grant>, unverified: &Unverified) {
        let of = |counters: &Counters| match unverified {
            Unverified::Unreadable => Counters::add(&counters.file_failures, 1),
            Unverified::Mismatch => Counters::add(&counters.crc_mismatches, 1),
        };
        of(&shared.counters);
        of(&self.counters);
        slot.distrusted.store(true, Ordering::Relaxed);
        slot.read_inline_until(shared.millis() + BAD_FILE_MILLIS);
        let current = slot.grant.load();
        if current
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, grant))
        {
            slot.grant.compare_and_swap(&*current, None);
        }
    }

    /// Fills `buf` from `offset` of one block whose pages are not all at hand.
    pub(super) fn fetch(
        self: &Arc<Self>,
        shared: &Shared,
        block: BlockIndex,
        buf: &mut [u8],
        offset: u64,
    ) -> Result<(), Error> {
        let mut offset = offset;
        let whole = offset..offset + buf.len() as u64;
        for part in buf.chunks_mut(FILL_BYTES as usize) {
            let range = offset..offset + part.len() as u64;
            if range.end < whole.end {
                let rest = range.end..whole.end.min(range.end + 2 * FILL_BYTES);
                self.ask_ahead(shared, block, PageSet::covering(rest));
            }
            if !self.read_held(shared, block, part, offset) {
                self.fetch_part(shared, block, part, range.clone())?;
            }
            offset = range.end;
        }
        Ok(())
    }

    /// Sees to it that a range of one block can be read from a held descriptor, piece by piece, where one is to be had.
    pub(super) fn bring_in(
        self: &Arc<Self>,
        shared: &Shared,
        block: BlockIndex,
        range: Range<u64>,
    ) -> Result<(), Error> {
        let pages = PageSet::covering(range.clone());
        let held = |slot: &Slot| slot.grant.load().as_ref().is_some_and(|grant| grant.has(pages));
        if self.table.touched(block).is_some_and(held) {
            return Ok(());
        }
        let slot = self.table.slot(block);
        let starts = (range.start..range.end).step_by(FILL_BYTES as usize);
        for start in starts {
            let end = range.end.min(start + FILL_BYTES);
            if end < range.end {
                let rest = end..range.end.min(end + 2 * FILL_BYTES);
                self.ask_ahead(shared, block, PageSet::covering(rest));
            }
            if self
                .ensure(shared, slot, block, PageSet::covering(start..end))?
                .is_none()
            {
                break;
            }
        }
        Ok(())
    }

    fn fetch_part(
        self: &Arc<Self>,
        shared: &Shared,
        block: BlockIndex,
        buf: &mut [u8],
        range: Range<u64>,
    ) -> Result<(), Error> {
        let pages = PageSet::covering(range.clone());
        let slot = self.table.slot(block);
        if let Some(grant) = self.ensure(shared, slot, block, pages)?
            && self.read_grant(shared, slot, &grant, buf, range.start)
        {
            return Ok(());
        }
        self.read_inline(shared, block, buf, range.start)
    }

    /// A grant of the block with these pages present. `None`: none is to be had, read inline.
    fn ensure(
        self: &Arc<Self>,
        shared: &Shared,
        slot: &Slot,
        block: BlockIndex,
        pages: PageSet,
    ) -> Result<Option<Arc<Grant>>, Error> {
        for _ in 0..FILL_ROUNDS {
            if slot.inline_until_millis.load(Ordering::Relaxed) > shared.millis() {
                return Ok(None);
            }
            let answer = self.with_session(shared, |session, handle, deadline| {
                if !session.has_grants() {
                    return Ok(None);
                }
                let current = |slot: &Slot| {
                    slot.grant
                        .load_full()
                        .filter(|grant| grant.has(pages) || grant.connection() == session.control().key())
                };
                let mut held = current(slot);
                let asking = match held {
                    Some(_) => None,
                    None => Some(deadline.lock(&slot.asking, "waiting for another reader's fill")?),
                };
                if asking.is_some() {
                    held = current(slot);
                }
                if let Some(held) = &held
                    && held.has(pages)
                {
                    return Ok(Some(Arc::clone(held)));
                }
                self.fill(shared, (session, handle), block, held, pages, deadline)
                    .map(Some)
            });
            match answer {
                Ok(Some(grant)) if grant.has(pages) => return Ok(Some(grant)),
                // A new file, with fewer pages than the old one had: ask again.
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                Err(error) if error.refuses_grant() => {
                    slot.read_inline_until(shared.millis() + REFUSED_MILLIS);
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// One demand `Fill` and what it gives.
    fn fill(
        self: &Arc<Self>,
        shared: &Shared,
        (session, handle): (&Arc<Session>, Handle),
        block: BlockIndex,
        held: Option<Arc<Grant>>,
        pages: PageSet,
        deadline: Deadline,
    ) -> Result<Arc<Grant>, Error> {
        if held.is_none() {
            let length = self
                .table
                .block_size()
                .length_of(block, self.generation.size_bytes);
            shared.held.registry.make_room(length, session.max_held_bytes());
        }
        Counters::add(&shared.counters.fills_waited, 1);
        Counters::add(&self.counters.fills_waited, 1);
        let held_file = held.as_ref().map(|grant| grant.layout().file_id);
        match session.fill(handle, block, held_file, pages, deadline)? {
            Filled::Ready { file, present } => match held {
                Some(held) if held.layout().file_id == file => {
                    held.add_present(present);
                    Ok(held)
                }
                _ => Err(session.violated(Error::Protocol(format!(
                    "file {file} is said to be ready where file {} was asked for",
                    held_file.map_or(0, |file| file.0)
                )))),
            },
            Filled::Granted(descriptor) => {
                if descriptor.granted.handle != handle {
                    let wrong = format!(
                        "a grant for handle {} where {handle} asked",
                        descriptor.granted.handle
                    );
                    return Err(session.violated(Error::Protocol(wrong)));
                }
                self.install(&shared.held.registry, session.control(), block, descriptor)
                    .map_err(|error| session.violated(error))
            }
        }
    }

    /// Reads through the daemon, over its socket or TCP.
    fn read_inline(
        &self,
        shared: &Shared,
        block: BlockIndex,
        buf: &mut [u8],
        offset: u64,
    ) -> Result<(), Error> {
        let start = self.table.block_size().start_of(block) + offset;
        let length = buf.len() as u64;
        let verify = shared.options.verify_reads || self.table.slot(block).distrusted.load(Ordering::Relaxed);
        let remote = self.with_session(shared, |session, handle, _| {
            session.read_inline(handle, start, buf, verify)?;
            Ok(session.is_remote())
        })?;
        for counters in [&*shared.counters, &*self.counters] {
            let counter = if remote {
                &counters.remote_bytes
            } else {
                &counters.inline_bytes
            };
            Counters::add(counter, length);
        }
        Ok(())
    }

    /// Does something with the object's session and handle, again with others if they were lost meanwhile. Each attempt
    /// has a deadline of its own; what misses it is not attempted again.
    fn with_session<T>(
        &self,
        shared: &Shared,
        mut attempt: impl FnMut(&Arc<Session>, Handle, Deadline) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut attempts = shared.options.reconnect_attempts;
        loop {
            let deadline = shared.timeout.begin();
            let (session, handle) = self.attach(shared, deadline)?;
            match attempt(&session, handle, deadline) {
                Err(error) if error.lost_connection() && attempts > 0 => {
                    attempts -= 1;
                    if matches!(
                        error,
                        Error::Failed {
                            code: Code::UnknownHandle,
                            ..
                        }
                    ) {
                        self.detach(&session, handle);
                    } else if session.ended().is_none() {
                        // Only a data connection failed, or the control connection's end is not noticed yet: either
                        // way the session is not to be relied on.
                        session.violated(error);
                    }
                }
                result => return result.map_err(|error| error.about(&self.key.path, Some(&self.generation))),
            }
        }
    }

    /// Has the daemon bring in a range of one block that nobody reads; how many bytes of it are cached by then.
    pub(super) fn load(&self, shared: &Shared, block: BlockIndex, range: Range<u64>) -> Result<u64, Error> {
        let wanted = PageSet::covering(range.clone());
        let present = self.with_session(shared, |session, handle, deadline| {
            session.load(handle, block, wanted, deadline)
        })?;
        let within = |page: PageIndex| {
            let start = page.start().max(range.start);
            (page.start() + PAGE_BYTES).min(range.end).saturating_sub(start)
        };
        Ok(present.intersection(wanted).iter().map(within).sum())
    }

    /// Asks the daemon to bring in pages of one block that nobody waits for yet. Never waits.
    /// False: not now.
    pub(super) fn ask_ahead(self: &Arc<Self>, shared: &Shared, block: BlockIndex, pages: PageSet) -> bool {
        let slot = self.table.slot(block);
        let held = slot.grant.load_full();
        if pages.is_empty() || held.as_ref().is_some_and(|grant| grant.has(pages)) {
            return true;
        }
        let (session, handle) = {
            // A reader that reconnects holds this lock while it waits; readahead does not wait with it.
            let Ok(attachment) = self.attachment.try_lock() else {
                return false;
            };
            if attachment.stale || attachment.session.ended().is_some() {
                return false;
            }
            (Arc::clone(&attachment.session), attachment.handle)
        };
        let held = held.filter(|grant| grant.connection() == session.control().key());
        let sent = if held.is_some() || !session.has_grants() {
            session.read_ahead(handle, block, held.map(|grant| grant.layout().file_id), pages)
        } else if slot.asked_ahead.swap(true, Ordering::AcqRel) {
            return true;
        } else {
            self.ask_grant_ahead(shared, &session, handle, block, pages)
        };
        let counter = if sent {
            &shared.counters.readaheads_sent
        } else {
            &shared.counters.readaheads_dropped
        };
        Counters::add(counter, 1);
        sent
    }

    fn ask_grant_ahead(
        self: &Arc<Self>,
        shared: &Shared,
        session: &Arc<Session>,
        handle: Handle,
        block: BlockIndex,
        pages: PageSet,
    ) -> bool {
        let length = self
            .table
            .block_size()
            .length_of(block, self.generation.size_bytes);
        shared.held.registry.make_room(length, session.max_held_bytes());
        let Some(permit) = session.begin_asking() else {
            self.table.slot(block).asked_ahead.store(false, Ordering::Release);
            return false;
        };
        let object: Weak<Self> = Arc::downgrade(self);
        let control = Arc::downgrade(session.control());
        let registry = Arc::clone(&shared.held.registry);
        let install = move |outcome: Result<Reply, Error>| {
            drop(permit);
            let object = object.upgrade();
            if let Ok(Reply::Granted(descriptor)) = outcome
                && let Some(control) = control.upgrade()
            {
                let file = descriptor.granted.file_id;
                if let Some(object) = &object {
                    if let Err(error) = object.install(&registry, &control, block, descriptor) {
                        control.end(&error);
                    }
                } else {
                    drop(descriptor);
                    control.release_unless_leased(file);
                }
            }
            if let Some(object) = object {
                let asked = &object.table.slot(block).asked_ahead;
                asked.store(false, Ordering::Release);
            }
        };
        session.read_ahead_grant(handle, block, pages, Box::new(install))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let attachment = lock(&self.attachment);
        if !attachment.stale {
            attachment
                .session
                .control()
                .outbox
                .release_handle(attachment.handle);
        }
    }
}

impl Key {
    /// The daemon must have opened the generation that was asked for.
    pub(crate) fn check_generation(
        &self,
        session: &Session,
        opened: &Opened,
        expected: Option<&Generation>,
    ) -> Result<(), Error> {
        if expected.is_none_or(|expected| *expected == opened.generation) {
            return Ok(());
        }
        session.control().outbox.release_handle(opened.handle);
        Err(Error::ObjectChanged {
            path: Box::new(self.path.clone()),
            expected: ExpectedGeneration(expected.cloned()),
            detail: format!("the daemon has generation {}", opened.generation),
        })
    }
}
