//! Sessions: what each client process has opened and holds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cachelet_protocol::ids::{FileId, Handle, SessionId};
use tokio::sync::Notify;

use crate::connection::FrameWriter;
use crate::fill::{OpenObject, Tally};

/// Most objects a session may have open at a time.
const MAX_HANDLES: usize = 1 << 16;

/// One client process's session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    /// Proves that a data connection belongs to the session.
    pub(super) secret: [u8; 16],
    pub(super) writer: Arc<FrameWriter>,
    /// What the fetches that its requests began have brought in.
    pub(super) tally: Arc<Tally>,
    handles: Mutex<HashMap<Handle, Arc<OpenObject>>>,
    next_handle: AtomicU64,
    /// Files granted and not released, each with its block's length.
    granted: Mutex<HashMap<FileId, u64>>,
    unacknowledged: AtomicU16,
    /// The same of all sessions.
    unacknowledged_in_all: Arc<AtomicU64>,
    data_connections: AtomicU8,
}

impl Session {
    pub(super) fn new(
        id: SessionId,
        writer: Arc<FrameWriter>,
        unacknowledged_in_all: Arc<AtomicU64>,
    ) -> Self {
        Self {
            id,
            secret: rand::random(),
            writer,
            tally: Arc::default(),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(1),
            granted: Mutex::default(),
            unacknowledged: AtomicU16::new(0),
            unacknowledged_in_all,
            data_connections: AtomicU8::new(0),
        }
    }

    /// Keeps an opened object; `None` when the session has too many.
    pub(super) fn open(&self, object: Arc<OpenObject>) -> Option<Handle> {
        let mut handles = lock(&self.handles);
        if handles.len() >= MAX_HANDLES {
            return None;
        }
        let handle = Handle(self.next_handle.fetch_add(1, Ordering::Relaxed));
        handles.insert(handle, object);
        Some(handle)
    }

    pub(super) fn object(&self, handle: Handle) -> Option<Arc<OpenObject>> {
        lock(&self.handles).get(&handle).cloned()
    }

    pub(super) fn close(&self, handle: Handle) {
        lock(&self.handles).remove(&handle);
    }

    /// Takes one of the session's few unacknowledged grants, and one of those of all sessions, unless all are taken.
    pub(super) fn begin_grant(&self, most: u16, most_in_all: u64) -> bool {
        let of_all = &self.unacknowledged_in_all;
        if of_all.fetch_add(1, Ordering::AcqRel) >= most_in_all {
            of_all.fetch_sub(1, Ordering::AcqRel);
            return false;
        }
        let taken = self
            .unacknowledged
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count < most).then_some(count + 1)
            })
            .is_ok();
        if !taken {
            of_all.fetch_sub(1, Ordering::AcqRel);
        }
        taken
    }

    /// Gives back grants that were acknowledged, or never sent. A client that acknowledges too much gains nothing.
    pub(super) fn end_grants(&self, acknowledged: u16) {
        let before = self
            .unacknowledged
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                Some(count.saturating_sub(acknowledged))
            })
            .unwrap_or_default();
        self.unacknowledged_in_all
            .fetch_sub(before.min(acknowledged).into(), Ordering::AcqRel);
    }

    /// Takes one of the session's few data connections, unless all are taken.
    pub(super) fn begin_data(self: &Arc<Self>, most: u8) -> Option<DataConnection> {
        self.data_connections
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count < most).then_some(count + 1)
            })
            .is_ok()
            .then(|| DataConnection(Arc::clone(self)))
    }

    pub(super) fn granted(&self, file: FileId, block_length: u64) {
        lock(&self.granted).insert(file, block_length);
    }

    pub(super) fn released(&self, file: FileId) -> bool {
        lock(&self.granted).remove(&file).is_some()
    }

    pub(super) fn holds(&self, file: FileId) -> bool {
        lock(&self.granted).contains_key(&file)
    }

    /// Bytes that the files it holds may come to: pages may still land in them after they were granted.
    pub(super) fn held_bytes(&self) -> u64 {
        lock(&self.granted).values().sum()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What was on its way went with its connection.
        self.end_grants(u16::MAX);
    }
}

/// See [`Session::begin_data`].
#[derive(Debug)]
pub(super) struct DataConnection(Arc<Session>);

impl Drop for DataConnection {
    fn drop(&mut self) {
        self.0.data_connections.fetch_sub(1, Ordering::AcqRel);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What sessions hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes of files that were granted and not released.
    pub bytes: u64,
    /// Grants that were not acknowledged.
    pub unacknowledged: u64,
}

/// Who is connected, and how many requests are under way.
#[derive(Debug, Default)]
pub struct SessionTable {
    sessions: RwLock<HashMap<SessionId, Arc<Session>>>,
    next: AtomicU64,
    unacknowledged: Arc<AtomicU64>,
    under_way: AtomicUsize,
    idle: Notify,
}

impl SessionTable {
    /// Sessions connected now.
    pub fn len(&self) -> usize {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What all sessions together hold now.
    pub fn held(&self) -> Held {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        Held {
            bytes: sessions.values().map(|session| session.held_bytes()).sum(),
            unacknowledged: self.unacknowledged.load(Ordering::Acquire),
        }
    }

    /// Begins a session, unless there are too many.
    pub(super) fn begin(&self, writer: Arc<FrameWriter>, most: usize) -> Option<Arc<Session>> {
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= most {
            return None;
        }
        let id = SessionId(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        let session = Arc::new(Session::new(id, writer, Arc::clone(&self.unacknowledged)));
        sessions.insert(id, Arc::clone(&session));
        Some(session)
    }

    pub(super) fn end(&self, id: SessionId) {
        self.sessions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
    }

    pub(super) fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        self.sessions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    /// Counts a request as under way until the guard is dropped.
    pub(super) fn request(&self) -> RequestGuard<'_> {
        self.under_way.fetch_add(1, Ordering::AcqRel);
        RequestGuard { table: self }
    }

    /// Waits until no request is under way.
    pub(super) async fn wait_until_idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.under_way.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// See [`SessionTable::request`].
#[derive(Debug)]
pub(super) struct RequestGuard<'a> {
    table: &'a SessionTable,
}

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        if self.table.under_way.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.table.idle.notify_waiters();
        }
    }
}
