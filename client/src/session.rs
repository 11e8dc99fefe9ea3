//! A session: this process's relation to one daemon, while their connection lasts.
//!
//! It owns the control connection ([`control`]) and the data connections ([`data`]). A lost session never comes back: the
//! client makes another, and objects open their handles anew in it.

pub(crate) mod control;
mod data;
mod outbox;
pub(crate) mod pending;
pub(crate) mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cachelet_protocol::block::{BlockIndex, BlockSize, PAGE_BYTES, PageSet};
use cachelet_protocol::ids::{FileId, Handle, NodeName, ObjectPath, SessionId, WorkerUuid};
use cachelet_protocol::wire::{
    self, Code, FEATURE_LOAD, FEATURES, Fill, Free, Freed, GrantStatus, Hello, Invalidate, Open, Opened,
    Priority, READ_VERIFY, Role, StoreRef, Tally, VERSION, Welcome,
};

use self::control::Control;
use self::data::Pool;
use self::pending::{Descriptor, Follow, Install, Reply};
use self::stream::{Address, Stream};
use crate::client::Held;
use crate::deadline::{Deadline, RequestTimeout};
use crate::error::Error;
use crate::options::{Identity, Options};
use crate::stats::Counters;

/// What the daemon said about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerInfo {
    /// The node it runs on.
    pub node: NodeName,
    /// Its worker UUID.
    pub worker: WorkerUuid,
    /// Its version.
    pub version: String,
    /// `host:port` of the locality service's HTTP side; empty: none.
    pub service_address: String,
    /// Block size in bytes.
    pub block_bytes: u64,
    /// Whether this session gets descriptors.
    pub grants: GrantStatus,
    /// Why it does not; empty when it does.
    pub grants_disabled_reason: String,
    /// Whether it brings in what nobody reads yet ([`Object::load`](crate::Object::load)).
    pub loads: bool,
}

/// What the daemon fetched because of this session, since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilledBytes {
    /// Bytes from the origin.
    pub origin_bytes: u64,
    /// Bytes from other workers.
    pub peer_bytes: u64,
}

/// The answer to a `Fill`.
pub(crate) enum Filled {
    Ready { file: FileId, present: PageSet },
    Granted(Descriptor),
}

/// What a session is made of.
pub(crate) struct Connecting<'a> {
    pub(crate) address: &'a Address,
    pub(crate) token: &'a str,
    pub(crate) options: &'a Options,
    /// Whether descriptors are wanted at all.
    pub(crate) grants: bool,
    pub(crate) timeout: &'a Arc<RequestTimeout>,
    pub(crate) counters: &'a Arc<Counters>,
    pub(crate) held: &'a Arc<Held>,
}

/// See the module's text.
pub(crate) struct Session {
    control: Arc<Control>,
    pool: Pool,
    welcome: Welcome,
    block_size: BlockSize,
    grants: bool,
    remote: bool,
    counters: Arc<Counters>,
    since: Instant,
    asking: Arc<AtomicUsize>,
}

/// Ends a request for a grant that nobody waits for.
pub(crate) struct Asking(Arc<AtomicUsize>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Session {
    /// Connects and says hello, within the time that is left.
    pub(crate) fn connect(to: &Connecting<'_>, deadline: Deadline) -> Result<Self, stream::ConnectError> {
        let stream = Stream::connect(to.address, deadline)?;
        let max_silence = to.options.max_silence;
        let control = Control::start(stream, max_silence, Arc::clone(to.counters), Arc::clone(to.held))
            .map_err(Self::refused)?;
        Self::greet(Arc::clone(&control), to, deadline).map_err(|error| {
            control.end(&error);
            Self::refused(error)
        })
    }

    fn refused(error: Error) -> stream::ConnectError {
        stream::ConnectError::Refused(error)
    }

    fn greet(control: Arc<Control>, to: &Connecting<'_>, deadline: Deadline) -> Result<Self, Error> {
        let hello = hello(&to.options.identity, to.token);
        let reply = control.call("connecting to the daemon", deadline, |request| {
            wire::encode(&hello, 0, request)
        })?;
        let Reply::Welcome(welcome) = reply else {
            return Err(unexpected("a hello", &reply));
        };
        if welcome.version != VERSION {
            return Err(Error::Protocol(format!(
                "the daemon chose version {}, which was not offered",
                welcome.version
            )));
        }
        let block_size =
            BlockSize::new(welcome.block_bytes).map_err(|error| Error::Protocol(error.to_string()))?;
        if u64::from(welcome.page_bytes) != PAGE_BYTES {
            return Err(Error::Protocol(format!(
                "pages of {} bytes are not known",
                welcome.page_bytes
            )));
        }
        control.set_max_unacknowledged(welcome.max_unacknowledged);
        let remote = matches!(to.address, Address::Tcp(_));
        let granted = match welcome.grants {
            GrantStatus::Enabled | GrantStatus::Unprotected => true,
            GrantStatus::Disabled => false,
        };
        let data_hello = Hello {
            role: Role::Data,
            session: welcome.session,
            session_secret: welcome.session_secret,
            ..hello
        };
        Ok(Self {
            pool: Pool::new(
                to.address.clone(),
                data_hello,
                Arc::clone(to.timeout),
                Arc::clone(to.counters),
            ),
            control,
            block_size,
            grants: to.grants && granted && !remote,
            remote,
            counters: Arc::clone(to.counters),
            since: Instant::now(),
            asking: Arc::default(),
            welcome: *welcome,
        })
    }

    pub(crate) fn worker(&self) -> WorkerInfo {
        WorkerInfo {
            node: self.welcome.node.clone(),
            worker: self.welcome.worker,
            version: self.welcome.daemon.clone(),
            service_address: self.welcome.service_address.clone(),
            block_bytes: self.welcome.block_bytes,
            grants: self.welcome.grants,
            grants_disabled_reason: self.welcome.grants_disabled_reason.clone(),
            loads: self.loads(),
        }
    }

    fn loads(&self) -> bool {
        self.welcome.features & FEATURE_LOAD != 0
    }

    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// For how long it has lived.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    pub(crate) fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Whether descriptors are to be had.
    pub(crate) fn has_grants(&self) -> bool {
        self.grants
    }

    /// Whether the daemon is on another node.
    pub(crate) fn is_remote(&self) -> bool {
        self.remote
    }

    pub(crate) fn max_held_bytes(&self) -> u64 {
        self.welcome.max_held_bytes
    }

    pub(crate) fn idle_close(&self) -> Duration {
        Duration::from_secs(self.welcome.idle_close_seconds.into())
    }

    pub(crate) fn ended(&self) -> Option<Error> {
        self.control.ended()
    }

    pub(crate) fn open(&self, open: &Open, deadline: Deadline) -> Result<(Opened, Follow), Error> {
        match self.call("opening an object", deadline, |request| {
            wire::encode(open, 0, request)
        })? {
            Reply::Opened(opened, follow) => Ok((opened, follow)),
            other => Err(self.violated(unexpected("an open", &other))),
        }
    }

    /// Waits until `pages` of a block are present.
    pub(crate) fn fill(
        &self,
        handle: Handle,
        block: BlockIndex,
        held: Option<FileId>,
        pages: PageSet,
        deadline: Deadline,
    ) -> Result<Filled, Error> {
        let fill = Fill {
            handle,
            block,
            file_id: held.unwrap_or(FileId(0)),
            pages,
            priority: Priority::Demand,
        };
        match self.call("a fill", deadline, |request| wire::encode(&fill, 0, request))? {
            Reply::Ready(ready) => Ok(Filled::Ready {
                file: ready.file_id,
                present: ready.present,
            }),
            Reply::Granted(descriptor) => Ok(Filled::Granted(descriptor)),
            other => Err(self.violated(unexpected("a fill", &other))),
        }
    }

    /// Has pages brought in that nobody reads; those that are present when the answer comes, which may be before all are.
    pub(crate) fn load(
        &self,
        handle: Handle,
        block: BlockIndex,
        pages: PageSet,
        deadline: Deadline,
    ) -> Result<PageSet, Error> {
        if !self.loads() {
            let Welcome { node, daemon, .. } = &self.welcome;
            return Err(Error::Failed {
                code: Code::Unsupported,
                message: format!(
                    "the worker of node {node} runs version {daemon}, which cannot load; update it"
                ),
            });
        }
        let fill = Fill {
            handle,
            block,
            file_id: FileId(0),
            pages,
            priority: Priority::Load,
        };
        match self.call("a load", deadline, |request| wire::encode(&fill, 0, request))? {
            Reply::Ready(ready) => Ok(ready.present),
            other => Err(self.violated(unexpected("a load", &other))),
        }
    }

    /// Asks for pages that nobody waits for yet, and for nothing in return. Whether the request was sent.
    pub(crate) fn read_ahead(
        &self,
        handle: Handle,
        block: BlockIndex,
        held: Option<FileId>,
        pages: PageSet,
    ) -> bool {
        let fill = Fill {
            handle,
            block,
            file_id: held.unwrap_or(FileId(0)),
            pages,
            priority: Priority::Readahead,
        };
        self.control.send_if_room(&wire::encode(&fill, 0, 0))
    }

    /// Leave to ask for a grant ahead: half of what may be unacknowledged, so that readers who wait get theirs.
    pub(crate) fn begin_asking(&self) -> Option<Asking> {
        let most = usize::from(self.welcome.max_unacknowledged / 2).max(1);
        let taken = |count: usize| (count < most).then_some(count + 1);
        self.asking
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, taken)
            .ok()?;
        Some(Asking(Arc::clone(&self.asking)))
    }

    /// Asks for a first grant of a block that nobody waits for yet. `install` runs in any case.
    pub(crate) fn read_ahead_grant(
        &self,
        handle: Handle,
        block: BlockIndex,
        pages: PageSet,
        install: Install,
    ) -> bool {
        let fill = Fill {
            handle,
            block,
            file_id: FileId(0),
            pages,
            priority: Priority::Readahead,
        };
        self.control
            .ask(install, |request| wire::encode(&fill, 0, request))
    }

    /// Reads bytes through the daemon. `verify`: it compares them with their checksums first.
    pub(crate) fn read_inline(
        &self,
        handle: Handle,
        offset: u64,
        buf: &mut [u8],
        verify: bool,
    ) -> Result<(), Error> {
        let flags = if verify { READ_VERIFY } else { 0 };
        self.pool.read(handle, offset, buf, flags)
    }

    pub(crate) fn invalidate(
        &self,
        store: StoreRef,
        path: &ObjectPath,
        deadline: Deadline,
    ) -> Result<u32, Error> {
        let message = Invalidate {
            store,
            path: path.clone(),
        };
        match self.call("an invalidation", deadline, |request| {
            wire::encode(&message, 0, request)
        })? {
            Reply::Invalidated(invalidated) => Ok(invalidated.blocks),
            other => Err(self.violated(unexpected("an invalidation", &other))),
        }
    }

    pub(crate) fn free(&self, free: &Free, deadline: Deadline) -> Result<Freed, Error> {
        match self.call("forgetting objects", deadline, |request| {
            wire::encode(free, 0, request)
        })? {
            Reply::Freed(freed) => Ok(freed),
            other => Err(self.violated(unexpected("a free", &other))),
        }
    }

    /// What the daemon fetched because of this session; `None` if it is too old to tell.
    pub(crate) fn tally(&self, deadline: Deadline) -> Result<Option<FilledBytes>, Error> {
        match self.call("asking for the session's tally", deadline, |request| {
            wire::encode(&Tally {}, 0, request)
        }) {
            Ok(Reply::Tallied(tallied)) => Ok(Some(FilledBytes {
                origin_bytes: tallied.origin_bytes,
                peer_bytes: tallied.peer_bytes,
            })),
            Ok(other) => Err(self.violated(unexpected("a tally", &other))),
            Err(Error::Failed {
                code: Code::Unsupported,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The daemon broke the protocol: the session ends, with this error for everybody.
    pub(crate) fn violated(&self, error: Error) -> Error {
        self.control.end(&error);
        error
    }

    fn call(
        &self,
        operation: &'static str,
        deadline: Deadline,
        encode: impl FnOnce(wire::RequestId) -> Vec<u8>,
    ) -> Result<Reply, Error> {
        Counters::add(&self.counters.round_trips, 1);
        let outcome = self.control.call(operation, deadline, encode);
        if matches!(outcome, Err(Error::Bypass { .. })) {
            Counters::add(&self.counters.bypasses, 1);
        }
        outcome
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.control.flush();
        self.control
            .end(&Error::Unavailable("the session was closed".into()));
    }
}

fn hello(identity: &Identity, token: &str) -> Hello {
    Hello {
        min_version: VERSION,
        max_version: VERSION,
        features: FEATURES,
        role: Role::Control,
        session: SessionId(0),
        session_secret: [0; 16],
        client: identity.client.clone(),
        application: identity.application.clone(),
        pod: identity.pod.clone(),
        pod_ip: identity.pod_ip.clone(),
        token: token.to_owned(),
    }
}

fn unexpected(request: &str, reply: &Reply) -> Error {
    let kind = match reply {
        Reply::Welcome(_) => "a welcome",
        Reply::Opened(..) => "an opened object",
        Reply::Granted(_) => "a grant",
        Reply::Ready(_) => "a ready",
        Reply::Invalidated(_) => "an invalidation",
        Reply::Freed(_) => "what was forgotten",
        Reply::Tallied(_) => "a tally",
    };
    Error::Protocol(format!("{request} was answered with {kind}"))
}
