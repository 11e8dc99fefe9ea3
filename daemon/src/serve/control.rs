//! A session's control connection: requests in, replies out of order, and all of the session's descriptors.
//!
//! Requests of a connection are polled together in the connection's own task: a warm `Open` is answered on its first poll
//! without a hop to another thread, and whatever a client leaves unfinished ends with the connection.

use std::sync::Arc;

use cachelet_protocol::block::PageSet;
use cachelet_protocol::ids::{Generation, Handle, ObjectName};
use cachelet_protocol::wire::{
    BypassReason, Code, FLAG_DESCRIPTOR, FOLLOWS_DATA, FOLLOWS_GRANT, FOLLOWS_NOTHING, Fill, FrameHeader,
    FrameKind, Free, Granted, HEADER_BYTES, Hello, Invalidate, Invalidated, Message, OPEN_NO_DATA,
    OPEN_NO_GRANT, Open, Opened, Priority, Ready, RequestId, Tallied, Used, encode,
};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::task::block_in_place;

use super::refusal::{Broken, Refusal, unknown_handle};
use super::session::Session;
use super::welcome::welcome;
use super::{Context, MAX_UNACKNOWLEDGED, data};
use crate::connection::{FrameReader, FrameWriter};
use crate::fill::{Filled, OpenObject};
use crate::metrics::{ReadPath, Source};
use crate::origin::{Authorization, Store};
use crate::store::{BlockStore, GrantStatus as StoreGrants};

/// Requests of one session under way at a time; further ones wait in the socket.
const MAX_REQUESTS: usize = 64;

pub(super) async fn run(
    context: &Arc<Context>,
    reader: &mut FrameReader,
    writer: Arc<FrameWriter>,
    request: RequestId,
    hello: Hello,
) -> Result<(), Broken> {
    let Some(session) = context
        .sessions
        .begin(Arc::clone(&writer), context.limits.max_sessions)
    else {
        let detail = format!(
            "this daemon serves {} sessions already (local.max_sessions)",
            context.limits.max_sessions
        );
        let refusal = Refusal::bypass(BypassReason::Overloaded, detail);
        return Ok(writer.send(&refusal.frame(context, request)).await?);
    };
    let _end = EndSession {
        context,
        session: &session,
    };
    tracing::debug!(session = %session.id, client = hello.client, application = hello.application, "session began");
    writer
        .send(&encode(&welcome(context, &session, hello.features), 0, request))
        .await?;
    let connection = Connection {
        context,
        session: &session,
    };
    let mut requests = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(answered) = requests.next(), if !requests.is_empty() => answered?,
            frame = reader.next(), if requests.len() < MAX_REQUESTS => match frame? {
                None => return Ok(()),
                Some((header, payload)) => {
                    if let Some(request) = connection.take(header, &payload).await? {
                        requests.push(connection.answer(header.request, request));
                    }
                }
            },
        }
    }
}

/// Gives back what a session held, however its connection ends.
struct EndSession<'a> {
    context: &'a Context,
    session: &'a Session,
}

impl Drop for EndSession<'_> {
    fn drop(&mut self) {
        self.context.sessions.end(self.session.id);
        self.context.store.release_session(self.session.id);
    }
}

/// A request that gets an answer.
enum Request {
    Open(Box<Open>),
    Fill(Fill),
    Invalidate(Invalidate),
    Free(Box<Free>),
    Tally,
}

#[derive(Clone, Copy)]
struct Connection<'a> {
    context: &'a Arc<Context>,
    session: &'a Arc<Session>,
}

impl Connection<'_> {
    /// Handles one-way messages; requests are returned to be answered.
    async fn take(self, header: FrameHeader, payload: &[u8]) -> Result<Option<Request>, Broken> {
        let Some(kind) = header.known_kind() else {
            let message = format!(
                "this daemon (version {}) knows no request of kind {}",
                env!("CARGO_PKG_VERSION"),
                header.kind
            );
            let refusal = Refusal::failed(Code::Unsupported, message);
            self.session
                .writer
                .send(&refusal.frame(self.context, header.request))
                .await?;
            return Ok(None);
        };
        match Message::decode(kind, payload).transpose()? {
            Some(Message::Open(open)) => return Ok(Some(Request::Open(Box::new(open)))),
            Some(Message::Fill(fill)) => return Ok(Some(Request::Fill(fill))),
            Some(Message::Invalidate(invalidate)) => return Ok(Some(Request::Invalidate(invalidate))),
            Some(Message::Free(free)) => return Ok(Some(Request::Free(Box::new(free)))),
            Some(Message::Tally(_)) => return Ok(Some(Request::Tally)),
            Some(Message::Used(used)) => self.used(&used),
            Some(Message::Ack(ack)) => self.session.end_grants(ack.count),
            Some(Message::Release(release)) => {
                self.session.close(release.handle);
                for file in release.files {
                    if self.session.released(file) {
                        self.context.store.release(self.session.id, file);
                    }
                }
            }
            _ => return Err(Broken::Unexpected(kind)),
        }
        Ok(None)
    }

    async fn answer(self, request: RequestId, message: Request) -> Result<(), Broken> {
        let _under_way = self.context.sessions.request();
        let answered = match message {
            Request::Open(open) => self.open(request, *open).await,
            Request::Fill(fill) => self.fill(request, &fill).await,
            Request::Invalidate(invalidate) => self.invalidate(request, &invalidate).await,
            Request::Free(free) => self.free(request, *free).await,
            Request::Tally => self.tally(request).await,
        };
        match answered {
            Ok(()) => Ok(()),
            Err(Answer::Broken(broken)) => Err(broken),
            // A one-way request has nobody who waits for a reason.
            Err(Answer::Refused(_)) if request == 0 => Ok(()),
            Err(Answer::Refused(refusal)) => Ok(self
                .session
                .writer
                .send(&refusal.frame(self.context, request))
                .await?),
        }
    }

    async fn open(self, request: RequestId, open: Open) -> Result<(), Answer> {
        self.context.metrics.count_request("open");
        if self.context.is_draining() {
            return Err(Refusal::bypass(BypassReason::Draining, "this daemon is stopping").into());
        }
        let store = self
            .context
            .find_store(open.path.scheme, &open.path.bucket, &open.store)?;
        let (generation, version_id) = prove_right_to_read(&store, &open).await?;
        let name = ObjectName {
            store: store.identity().clone(),
            path: open.path,
        };
        let tally = Arc::clone(&self.session.tally);
        let object = Arc::new(OpenObject::new(
            store,
            name,
            generation.clone(),
            version_id,
            tally,
        ));
        let size = generation.size_bytes;
        let Some(handle) = self.session.open(Arc::clone(&object)) else {
            let message = "this session has too many objects open; release some";
            return Err(Refusal::failed(Code::InvalidRequest, message).into());
        };
        let grants = open.flags & OPEN_NO_GRANT == 0 && self.grants_enabled();
        let follows = if size == 0 || open.flags & OPEN_NO_DATA != 0 {
            FOLLOWS_NOTHING
        } else if size <= u64::from(self.context.limits.inline_bytes) {
            FOLLOWS_DATA
        } else if grants {
            FOLLOWS_GRANT
        } else {
            FOLLOWS_NOTHING
        };
        let opened = Opened {
            handle,
            generation,
            follows,
        };
        self.session
            .writer
            .send(&encode(&opened, 0, request))
            .await
            .map_err(Broken::from)?;
        match follows {
            FOLLOWS_DATA => {
                let bytes = data::whole(self.context, &object).await?;
                self.context.metrics.count_read(ReadPath::Inline, size);
                let header = FrameHeader {
                    length: bytes.len() as u32,
                    kind: FrameKind::Data as u8,
                    flags: 0,
                    request,
                };
                let mut frame = Vec::with_capacity(HEADER_BYTES + bytes.len());
                frame.extend_from_slice(&header.to_bytes());
                frame.extend_from_slice(&bytes);
                Ok(self.session.writer.send(&frame).await.map_err(Broken::from)?)
            }
            FOLLOWS_GRANT => {
                let size_of_blocks = self.context.store.block_size();
                let first = open.offset.min(size - 1);
                let block = size_of_blocks.block_at(first);
                let start = size_of_blocks.start_of(block);
                let length = size_of_blocks.length_of(block, size);
                let end = first.saturating_add(open.length.max(1)).min(start + length);
                let wanted = PageSet::covering(first - start..end - start);
                let filled = self
                    .context
                    .filler
                    .demand(&object, block, wanted)
                    .await
                    .map_err(Refusal::from)?;
                self.grant(request, handle, &filled).await
            }
            _ => Ok(()),
        }
    }

    async fn fill(self, request: RequestId, fill: &Fill) -> Result<(), Answer> {
        let load = fill.priority == Priority::Load;
        self.context
            .metrics
            .count_request(if load { "load" } else { "fill" });
        let object = self
            .session
            .object(fill.handle)
            .ok_or_else(|| unknown_handle(fill.handle))?;
        let length = self
            .context
            .store
            .block_size()
            .length_of(fill.block, object.generation().size_bytes);
        let wanted = fill.pages.intersection(PageSet::all(length));
        if wanted.is_empty() {
            let message = format!(
                "block {} of this object has none of the pages asked for",
                fill.block
            );
            return Err(Refusal::failed(Code::InvalidRequest, message).into());
        }
        if load {
            if request == 0 {
                let message = "a load without a request id has nobody to tell how far it came";
                return Err(Refusal::failed(Code::InvalidRequest, message).into());
            }
            let ready = super::load::load(self.context, &object, fill.block, wanted).await?;
            return Ok(self
                .session
                .writer
                .send(&encode(&ready, 0, request))
                .await
                .map_err(Broken::from)?);
        }
        if fill.priority == Priority::Readahead {
            self.context
                .filler
                .readahead(&object, fill.block, wanted)
                .await
                .map_err(Refusal::from)?;
            if request == 0 {
                return Ok(());
            }
            let filled = self
                .context
                .filler
                .demand(&object, fill.block, PageSet::EMPTY)
                .await
                .map_err(Refusal::from)?;
            return self.grant_or_ready(request, fill, &filled).await;
        }
        let filled = self
            .context
            .filler
            .demand(&object, fill.block, wanted)
            .await
            .map_err(Refusal::from)?;
        self.grant_or_ready(request, fill, &filled).await
    }

    async fn grant_or_ready(self, request: RequestId, fill: &Fill, filled: &Filled) -> Result<(), Answer> {
        let file_id = filled.block.file_id();
        if fill.file_id == file_id && self.session.holds(file_id) {
            let present = filled.block.present();
            let ready = Ready { file_id, present };
            return Ok(self
                .session
                .writer
                .send(&encode(&ready, 0, request))
                .await
                .map_err(Broken::from)?);
        }
        self.grant(request, fill.handle, filled).await
    }

    /// Sends a descriptor of the block's file, within the session's limits.
    async fn grant(self, request: RequestId, handle: Handle, filled: &Filled) -> Result<(), Answer> {
        let (context, session, block) = (self.context, self.session, &filled.block);
        let no_grant = |detail: String| Answer::from(Refusal::bypass(BypassReason::NoGrant, detail));
        if !self.grants_enabled() {
            return Err(no_grant("this session gets no descriptors".to_owned()));
        }
        let held = session.held_bytes();
        if held.saturating_add(block.length()) > context.limits.max_held_bytes {
            let limit = context.limits.max_held_bytes;
            return Err(no_grant(format!(
                "this session holds {held} of {limit} bytes (local.max_held_percent); close some"
            )));
        }
        let in_all = context.limits.max_unacknowledged;
        if !session.begin_grant(MAX_UNACKNOWLEDGED, in_all) {
            return Err(no_grant(format!(
                "{MAX_UNACKNOWLEDGED} descriptors of this session, or {in_all} of all sessions, are not acknowledged yet"
            )));
        }
        // On this very thread, for a hop would cost more than the open; but the disk may hang, and others must not with it.
        let grant = match block_in_place(|| context.store.grant(block, session.id)) {
            Ok(grant) => grant,
            Err(error) => {
                session.end_grants(1);
                return Err(no_grant(error.to_string()));
            }
        };
        session.granted(grant.file_id, block.length());
        let granted = Granted {
            handle,
            block: block.identity().index(),
            file_id: grant.file_id,
            data_offset: grant.data_offset,
            crc_offset: grant.crc_offset,
            length: grant.length,
            present: grant.present,
        };
        context.metrics.grants.inc();
        let frame = encode(&granted, FLAG_DESCRIPTOR, request);
        Ok(session
            .writer
            .send_with_descriptor(&frame, grant.fd)
            .await
            .map_err(Broken::from)?)
    }

    fn grants_enabled(self) -> bool {
        self.session.writer.stream().is_local()
            && !matches!(self.context.store.grants(), StoreGrants::Disabled { .. })
    }

    async fn invalidate(self, request: RequestId, invalidate: &Invalidate) -> Result<(), Answer> {
        self.context.metrics.count_request("invalidate");
        let path = &invalidate.path;
        let store = self
            .context
            .find_store(path.scheme, &path.bucket, &invalidate.store)?;
        let name = ObjectName {
            store: store.identity().clone(),
            path: path.clone(),
        };
        let work = move |store: &BlockStore| store.invalidate(&name);
        let blocks = self
            .context
            .filler
            .on_any_disk(work)
            .await
            .map_err(Refusal::from)?;
        let invalidated = Invalidated { blocks };
        Ok(self
            .session
            .writer
            .send(&encode(&invalidated, 0, request))
            .await
            .map_err(Broken::from)?)
    }

    async fn free(self, request: RequestId, free: Free) -> Result<(), Answer> {
        self.context.metrics.count_request("free");
        let freed = super::free::free(self.context, self.session, free).await?;
        Ok(self
            .session
            .writer
            .send(&encode(&freed, 0, request))
            .await
            .map_err(Broken::from)?)
    }

    async fn tally(self, request: RequestId) -> Result<(), Answer> {
        self.context.metrics.count_request("tally");
        let tally = &self.session.tally;
        let tallied = Tallied {
            origin_bytes: tally.so_far(Source::Origin),
            peer_bytes: tally.so_far(Source::Peer),
        };
        Ok(self
            .session
            .writer
            .send(&encode(&tallied, 0, request))
            .await
            .map_err(Broken::from)?)
    }

    /// An untrusted hint: only files that the session holds count, and no more than it could have read.
    fn used(self, used: &Used) {
        for file in &used.files {
            if self.session.holds(file.file_id) {
                let bytes = self.context.store.used(file.file_id, file.bytes, file.pages);
                self.context.metrics.count_read(ReadPath::Local, bytes);
            }
        }
    }
}

/// Why a request has no answer yet.
enum Answer {
    Refused(Refusal),
    Broken(Broken),
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Broken> for Answer {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// The generation that may be read: the caller's, which only who may read the object knows, or, where the store's policy
/// lets the daemon resolve it, the origin's, asked for after the open began.
async fn prove_right_to_read(store: &Store, open: &Open) -> Result<(Generation, Option<String>), Refusal> {
    if let Some(generation) = &open.generation {
        return Ok((generation.clone(), open.version_id.clone()));
    }
    if store.authorization() == Authorization::Caller {
        let detail = "the caller must present the object's etag and size (authorization = \"caller\")";
        return Err(Refusal::bypass(BypassReason::GenerationRequired, detail));
    }
    let meta = store
        .head(&open.path)
        .await
        .map_err(|error| Refusal::from(&error))?;
    let generation = meta.generation.ok_or_else(|| {
        Refusal::bypass(
            BypassReason::NotCacheable,
            format!("{} has no etag that can be trusted", open.path),
        )
    })?;
    Ok((generation, meta.version_id))
}
