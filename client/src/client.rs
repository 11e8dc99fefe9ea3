//! A client: the one place from which a process opens objects. It owns the session, the open objects and all grants.

mod discovery;

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cachelet_protocol::ids::{Generation, ObjectPath, StoreFingerprint};
use cachelet_protocol::wire::{Free, Freed, OPEN_NO_DATA, OPEN_NO_GRANT, Open, StoreRef};

use crate::deadline::{Deadline, RequestTimeout};
use crate::error::Error;
use crate::grant::Registry;
use crate::object::block::MAX_OBJECT_BYTES;
use crate::object::{Inner, Object};
use crate::options::{Options, Target};
use crate::session::control::Control;
use crate::session::pending::{Follow, lock};
use crate::session::stream::{Address, ConnectError};
use crate::session::{Connecting, FilledBytes, Session, WorkerInfo};
use crate::stats::{Counters, Stats};

/// How long a client reads inline after descriptors failed to arrive.
const WITHOUT_GRANTS: Duration = Duration::from_mins(1);

/// A session that broke the protocol this early counts as a failed connection attempt.
const SHORT_LIVED: Duration = Duration::from_secs(5);

/// What to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenRequest {
    /// The object.
    pub path: ObjectPath,
    /// The generation, if the caller knows it: its proof, to a daemon that asks for one, that it may read the object.
    pub generation: Option<Generation>,
    /// The version id, on versioned buckets.
    pub version_id: Option<String>,
    /// The caller's store; a daemon that has another one configured answers `Bypass`.
    pub fingerprint: Option<StoreFingerprint>,
    /// Where the first read will be, so that its bytes come with the opening. `None`: nothing is fetched yet.
    pub first_range: Option<Range<u64>>,
}

impl OpenRequest {
    /// Opens `path` at the daemon's idea of its current generation.
    pub fn new(path: ObjectPath) -> Self {
        Self {
            path,
            generation: None,
            version_id: None,
            fingerprint: None,
            first_range: None,
        }
    }

    /// Opens this generation and no other.
    #[must_use]
    pub fn with_generation(self, generation: Generation) -> Self {
        Self {
            generation: Some(generation),
            ..self
        }
    }

    /// Says where the first read will be.
    #[must_use]
    pub fn with_first_range(self, first_range: Range<u64>) -> Self {
        Self {
            first_range: Some(first_range),
            ..self
        }
    }

    fn key(&self) -> Key {
        Key {
            path: self.path.clone(),
            version_id: self.version_id.clone(),
            fingerprint: self.fingerprint,
        }
    }
}

/// What is opened, whatever its generation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) path: ObjectPath,
    version_id: Option<String>,
    fingerprint: Option<StoreFingerprint>,
}

impl Key {
    /// The message that opens it.
    pub(crate) fn open(&self, generation: Option<Generation>, first_range: Range<u64>) -> Open {
        Open {
            store: StoreRef {
                fingerprint: self.fingerprint,
            },
            path: self.path.clone(),
            generation,
            version_id: self.version_id.clone(),
            offset: first_range.start,
            length: first_range.end.saturating_sub(first_range.start),
            flags: 0,
        }
    }
}

struct Opened {
    object: Arc<Inner>,
    /// Since when nobody has used it; `None` while somebody does.
    closed_at: Option<Instant>,
}

/// What the process holds open: grants and objects. The reader threads look after it.
pub(crate) struct Held {
    pub(crate) registry: Arc<Registry>,
    objects: Mutex<HashMap<Key, Opened>>,
    keep_closed: usize,
}

impl Held {
    /// Closes what was idle for too long.
    pub(crate) fn tick(&self, now: Instant, report: Option<&Control>) {
        let idle_close = self.registry.idle_close();
        let idle: Vec<Opened> = lock(&self.objects)
            .extract_if(|_, opened| {
                opened
                    .closed_at
                    .is_some_and(|at| now.saturating_duration_since(at) >= idle_close)
            })
            .map(|(_, opened)| opened)
            .collect();
        drop(idle);
        self.registry.tick(now, report);
    }
}

/// The session, and what is known about getting another.
#[derive(Default)]
struct Link {
    session: Option<Arc<Session>>,
    connected_before: bool,
    failure: Option<(Error, Instant)>,
    backoff: Duration,
    without_grants_until: Option<Instant>,
}

/// What a client's objects share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) counters: Arc<Counters>,
    pub(crate) held: Arc<Held>,
    pub(crate) timeout: Arc<RequestTimeout>,
    link: Mutex<Link>,
    started: Instant,
}

/// See the module's text.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

impl Client {
    /// A client that connects when something is opened.
    pub fn new(options: Options) -> Self {
        let counters: Arc<Counters> = Arc::default();
        Self {
            shared: Arc::new(Shared {
                held: Arc::new(Held {
                    registry: Arc::new(Registry::new(options.max_descriptors, Arc::clone(&counters))),
                    objects: Mutex::default(),
                    keep_closed: options.keep_closed_objects,
                }),
                counters,
                timeout: Arc::new(RequestTimeout::new(options.request_timeout)),
                link: Mutex::new(Link {
                    backoff: options.reconnect_backoff,
                    ..Link::default()
                }),
                started: Instant::now(),
                options,
            }),
        }
    }

    /// Connects now, unless connected, and says to whom.
    pub fn connect(&self) -> Result<WorkerInfo, Error> {
        let deadline = Deadline::after(self.shared.options.connect_timeout);
        Ok(self.shared.session(deadline)?.worker())
    }

    /// Changes the longest wait for an answer, for opens and reads that begin from now on.
    pub fn set_request_timeout(&self, timeout: Duration) {
        self.shared.timeout.set(timeout);
    }

    /// Opens an object. Costs no message if the same generation is open already and the caller named it.
    pub fn open(&self, request: &OpenRequest) -> Result<Object, Error> {
        let shared = &self.shared;
        let key = request.key();
        if let Some(object) = shared.find_open(&key, request.generation.as_ref()) {
            Counters::add(&shared.counters.opens_shared, 1);
            return Ok(object);
        }
        let mut attempts = shared.options.reconnect_attempts;
        loop {
            let deadline = shared.timeout.begin();
            let session = shared.session(deadline)?;
            match shared.open_in(&session, &key, request, deadline) {
                Err(error) if error.lost_connection() && attempts > 0 && session.ended().is_some() => {
                    attempts -= 1;
                }
                result => return result,
            }
        }
    }

    /// The object, if this process has just this generation open; never a message. `None` also without a generation.
    pub fn open_held(&self, request: &OpenRequest) -> Option<Object> {
        let key = request.key();
        let generation = request.generation.as_ref()?;
        let object = self.shared.find_open(&key, Some(generation))?;
        Counters::add(&self.shared.counters.opens_shared, 1);
        Some(object)
    }

    /// Asks the daemon to forget every block of an object; says how many it forgot.
    pub fn invalidate(&self, path: &ObjectPath, fingerprint: Option<StoreFingerprint>) -> Result<u32, Error> {
        let deadline = self.shared.timeout.begin();
        let session = self.shared.session(deadline)?;
        session.invalidate(StoreRef { fingerprint }, path, deadline)
    }

    /// Asks the daemon to forget an object, or all whose keys begin alike; says what it forgot, or would forget.
    pub fn free(&self, free: &Free) -> Result<Freed, Error> {
        let deadline = self.shared.timeout.begin();
        self.shared.session(deadline)?.free(free, deadline)
    }

    /// What the daemon fetched because of the present session, since that began; `None` from a daemon that is too old
    /// to tell. Costs a message.
    pub fn filled_bytes(&self) -> Result<Option<FilledBytes>, Error> {
        let deadline = self.shared.timeout.begin();
        self.shared.session(deadline)?.tally(deadline)
    }

    /// Where all bytes came from so far, and how many messages that took.
    pub fn stats(&self) -> Stats {
        let mut stats = self.shared.counters.snapshot();
        stats.local_bytes += self.shared.held.registry.live_bytes();
        stats
    }

    /// Descriptors of block files held now.
    pub fn descriptors_held(&self) -> usize {
        self.shared.held.registry.live()
    }

    /// Closes what was idle for too long. The reader thread does it every second while a session lives.
    pub fn maintain(&self) {
        self.shared.held.tick(Instant::now(), None);
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("target", &self.shared.options.target)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Milliseconds since the client was made.
    pub(crate) fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn find_open(self: &Arc<Self>, key: &Key, generation: Option<&Generation>) -> Option<Object> {
        let mut objects = lock(&self.held.objects);
        let opened = objects.get_mut(key)?;
        let current = match generation {
            Some(generation) => opened.object.generation == *generation,
            None => {
                self.options.max_staleness > Duration::ZERO
                    && opened.object.opened_at.elapsed() <= self.options.max_staleness
            }
        };
        if !current {
            return None;
        }
        opened.closed_at = None;
        Some(Object::new(Arc::clone(self), Arc::clone(&opened.object)))
    }

    fn open_in(
        self: &Arc<Self>,
        session: &Arc<Session>,
        key: &Key,
        request: &OpenRequest,
        deadline: Deadline,
    ) -> Result<Object, Error> {
        let first = request.first_range.clone();
        let mut open = key.open(request.generation.clone(), first.clone().unwrap_or(0..0));
        if first.is_none() {
            open.flags |= OPEN_NO_DATA;
        }
        if !session.has_grants() {
            open.flags |= OPEN_NO_GRANT;
        } else if first.is_some() {
            let block_bytes = session.block_size().bytes();
            self.held
                .registry
                .make_room(block_bytes, session.max_held_bytes());
        }
        let (opened, follow) = session
            .open(&open, deadline)
            .map_err(|error| error.about(&key.path, request.generation.as_ref()))?;
        Counters::add(&self.counters.opens, 1);
        key.check_generation(session, &opened, request.generation.as_ref())?;
        let generation = opened.generation;
        let broken = |what: String| Err(session.violated(Error::Protocol(what)));
        if generation.size_bytes > MAX_OBJECT_BYTES {
            return broken(format!("an object of {} bytes", generation.size_bytes));
        }
        let (whole, grant) = match follow {
            Follow::Nothing => (None, None),
            Follow::Data(bytes) if bytes.len() as u64 == generation.size_bytes => (Some(bytes), None),
            Follow::Data(bytes) => {
                let size = generation.size_bytes;
                return broken(format!(
                    "{} bytes came with an object of {size} bytes",
                    bytes.len()
                ));
            }
            Follow::Grant(descriptor) if descriptor.granted.handle == opened.handle => {
                (None, Some(Ok(descriptor)))
            }
            Follow::Grant(_) => return broken("a grant for a handle other than the one just opened".into()),
            Follow::Refused(error) if error.refuses_grant() => (None, Some(Err(()))),
            Follow::Refused(error) => {
                session.control().outbox.release_handle(opened.handle);
                return Err(error.about(&key.path, Some(&generation)));
            }
        };
        let block = session.block_size().block_at(open.offset);
        let object = self.enter(session, key, generation, whole, opened.handle);
        match grant {
            Some(Ok(descriptor)) => {
                object
                    .inner()
                    .install(&self.held.registry, session.control(), block, descriptor)
                    .map_err(|error| session.violated(error))?;
            }
            Some(Err(())) => object.inner().grant_refused(self, block),
            None => {}
        }
        Ok(object)
    }

    /// Puts a fresh handle with the open object of the same generation, if there is one.
    fn enter(
        self: &Arc<Self>,
        session: &Arc<Session>,
        key: &Key,
        generation: Generation,
        whole: Option<Vec<u8>>,
        handle: cachelet_protocol::ids::Handle,
    ) -> Object {
        let mut objects = lock(&self.held.objects);
        if let Some(opened) = objects.get_mut(key)
            && opened.object.generation == generation
            && opened.object.block_size() == session.block_size()
        {
            opened.closed_at = None;
            opened.object.reattach(session, handle);
            return Object::new(Arc::clone(self), Arc::clone(&opened.object));
        }
        let inner = Inner::new(key.clone(), generation, whole, Arc::clone(session), handle);
        let object = Object::new(Arc::clone(self), Arc::clone(&inner));
        let opened = Opened {
            object: inner,
            closed_at: None,
        };
        let replaced = objects.insert(key.clone(), opened);
        drop(objects);
        drop(replaced);
        object
    }

    /// The last user of an object is gone: it stays open for a while, among the most recent.
    pub(crate) fn closed(&self, object: &Arc<Inner>) {
        let mut dropped = Vec::new();
        let mut objects = lock(&self.held.objects);
        if let Some(opened) = objects.get_mut(&object.key)
            && Arc::ptr_eq(&opened.object, object)
            && object.users.load(Ordering::Acquire) == 0
        {
            opened.closed_at = Some(Instant::now());
        }
        while objects
            .values()
            .filter(|opened| opened.closed_at.is_some())
            .count()
            > self.held.keep_closed
        {
            let oldest = objects
                .iter()
                .filter_map(|(key, opened)| Some((opened.closed_at?, key.clone())))
                .min_by_key(|(closed_at, _)| *closed_at);
            let Some((_, key)) = oldest else {
                break;
            };
            dropped.extend(objects.remove(&key));
        }
        drop(objects);
        drop(dropped);
    }

    /// The live session, or a new one. After a failure it fails at once until the backoff is over.
    pub(crate) fn session(&self, deadline: Deadline) -> Result<Arc<Session>, Error> {
        let mut link = lock(&self.link);
        let mut failure = None;
        if let Some(session) = &link.session {
            match session.ended() {
                None => return Ok(Arc::clone(session)),
                Some(error) => {
                    if session.control().had_descriptor_failure() {
                        link.without_grants_until = Some(Instant::now() + WITHOUT_GRANTS);
                    } else if let Error::Protocol(_) = error
                        && session.age() < SHORT_LIVED
                    {
                        failure = Some(error);
                    }
                    link.session = None;
                }
            }
        }
        if let Some(error) = failure {
            link.failed(error, self.options.max_reconnect_backoff);
        }
        if let Some((error, until)) = &link.failure
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let began = Instant::now();
        let grants =
            !self.options.inline_only && link.without_grants_until.is_none_or(|until| until <= began);
        match self.connect(grants, deadline) {
            Ok(session) => {
                if link.connected_before {
                    Counters::add(&self.counters.reconnects, 1);
                }
                link.connected_before = true;
                link.failure = None;
                link.backoff = self.options.reconnect_backoff;
                self.held.registry.set_idle_close(session.idle_close());
                let session = Arc::new(session);
                link.session = Some(Arc::clone(&session));
                Ok(session)
            }
            Err(error) => {
                // One that had to be waited for is not waited for again and again.
                link.backoff = link.backoff.max(4 * began.elapsed());
                link.failed(error.clone(), self.options.max_reconnect_backoff);
                Err(error)
            }
        }
    }

    fn connect(&self, grants: bool, deadline: Deadline) -> Result<Session, Error> {
        // All sockets of the directory together.
        let deadline = Deadline::after(self.options.connect_timeout.min(deadline.left()));
        let connect_to = |address: &Address, token: &str| {
            let connecting = Connecting {
                address,
                token,
                options: &self.options,
                grants,
                timeout: &self.timeout,
                counters: &self.counters,
                held: &self.held,
            };
            Session::connect(&connecting, deadline)
        };
        match &self.options.target {
            Target::Local { socket_dir } => connect_local(socket_dir, |address| connect_to(address, "")),
            Target::Remote { address, token } => {
                connect_to(&Address::Tcp(*address), token).map_err(|error| match error {
                    ConnectError::Io(error) => Error::Unavailable(format!(
                        "connecting to worker {address} failed: {error}; is it running with [remote] listen?"
                    )),
                    ConnectError::Path(error) | ConnectError::Refused(error) => error,
                })
            }
        }
    }
}

impl Link {
    fn failed(&mut self, error: Error, max_backoff: Duration) {
        let backoff = self.backoff.min(max_backoff);
        self.failure = Some((error, Instant::now() + backoff));
        self.backoff = (backoff * 2).min(max_backoff);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The reader thread keeps `held` alive; the objects in it keep the session alive, and that the thread.
        let objects = std::mem::take(&mut *lock(&self.held.objects));
        drop(objects);
    }
}

/// Why the directory tells no sockets, and what helps.
fn unlistable(socket_dir: &Path, error: &io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => "run with the socket's group as a supplemental group",
        _ => "is the daemon's socket directory mounted there?",
    };
    let shown = socket_dir.display();
    Error::Unavailable(format!(
        "listing the socket directory {shown} failed: {error}; {remedy}"
    ))
}

/// Connects to the first socket of the directory that answers.
fn connect_local(
    socket_dir: &Path,
    connect_to: impl Fn(&Address) -> Result<Session, ConnectError>,
) -> Result<Session, Error> {
    let shown = socket_dir.display();
    let sockets = discovery::sockets(socket_dir).map_err(|error| unlistable(socket_dir, &error))?;
    let mut first_failure = None;
    let mut stale = 0;
    for path in sockets {
        let address = Address::Unix(path);
        let error = match connect_to(&address) {
            Ok(session) => return Ok(session),
            Err(ConnectError::Io(error))
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
                ) =>
            {
                stale += 1;
                continue;
            }
            Err(ConnectError::Io(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                Error::Unavailable(format!(
                    "connecting to {address} was denied; run with the socket's group as a supplemental group"
                ))
            }
            Err(ConnectError::Io(error)) => {
                Error::Unavailable(format!("connecting to {address} failed: {error}"))
            }
            Err(ConnectError::Path(error) | ConnectError::Refused(error)) => error,
        };
        first_failure.get_or_insert(error);
    }
    Err(first_failure.unwrap_or_else(|| {
        Error::Unavailable(format!(
            "no daemon listens in {shown} ({stale} stale sockets); is cacheletd running on this node?"
        ))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_list_the_socket_directory_is_told_of_the_group_and_not_of_a_mount() {
        let told = |kind: io::ErrorKind| {
            unlistable(Path::new("/var/run/cachelet"), &io::Error::from(kind)).to_string()
        };
        let denied = told(io::ErrorKind::PermissionDenied);
        assert!(
            denied.contains("supplemental group") && !denied.contains("mounted"),
            "{denied}"
        );
        let missing = told(io::ErrorKind::NotFound);
        assert!(missing.contains("mounted there?"), "{missing}");
    }
}
