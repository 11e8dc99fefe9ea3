//! Inline bytes: a session's data connections, and peers.
//!
//! Strict request and reply. A reply is as many frames as its bytes take, all but the last with `FLAG_MORE`; an error may
//! stand in place of any of them. Where the cache has no room the bytes are passed through from the origin.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use cachelet_protocol::block::{BlockIndex, PAGE_BYTES, PageIndex, PageSet};
use cachelet_protocol::ids::ObjectName;
use cachelet_protocol::wire::{
    BypassReason, Code, FLAG_MORE, FrameHeader, FrameKind, Hello, Message, PAGE_PREFIX_BYTES, PeerObject,
    READ_VERIFY, Read, RequestId, Role, encode, encode_page_prefix,
};
use futures::StreamExt;
use subtle::ConstantTimeEq;

use super::refusal::{Broken, Refusal, unknown_handle};
use super::session::Session;
use super::welcome::welcome;
use super::{Context, MAX_DATA_CONNECTIONS};
use crate::connection::{FileFrame, FrameReader, FrameWriter, SendFileError};
use crate::fill::{self, Filled, OpenObject};
use crate::metrics::{ReadPath, Source};
use crate::store::{BlockIdentity, BlockStore, DATA_OFFSET};

/// Most bytes of one `Data` frame.
const FRAME_BYTES: u64 = PAGE_BYTES;
/// What is filled at once, and ahead of what is being sent.
const WINDOW_BYTES: u64 = 8 << 20;
/// Files that one read may lose under its hands, evicted or damaged, before it goes to the origin itself.
const LOST_FILES: u32 = 2;

/// Why a reply stopped.
enum Stop {
    Refused(Refusal),
    Broken(Broken),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(Broken::Write(error))
    }
}

pub(super) async fn run(
    context: &Arc<Context>,
    reader: &mut FrameReader,
    writer: Arc<FrameWriter>,
    request: RequestId,
    hello: &Hello,
) -> Result<(), Broken> {
    // A peer has no session; one of its own, never entered in the table, holds its writer.
    let session = match hello.role {
        Role::Data => match joined(context, hello) {
            Some(session) => session,
            None => {
                let message = "no such session, or not its secret; open a control connection first";
                let refusal = Refusal::failed(Code::Unauthenticated, message);
                return Ok(writer.send(&refusal.frame(context, request)).await?);
            }
        },
        Role::Control | Role::Peer => Arc::new(Session::new(
            cachelet_protocol::ids::SessionId(0),
            Arc::clone(&writer),
            Arc::default(),
        )),
    };
    let Some(_connection) = session.begin_data(MAX_DATA_CONNECTIONS) else {
        let detail =
            format!("this session has {MAX_DATA_CONNECTIONS} data connections already; use one of them");
        let refusal = Refusal::bypass(BypassReason::Overloaded, detail);
        return Ok(writer.send(&refusal.frame(context, request)).await?);
    };
    writer.stream().enlarge_send_buffer();
    writer
        .send(&encode(&welcome(context, &session, hello.features), 0, request))
        .await?;
    while let Some((header, payload)) = reader.next().await? {
        let _under_way = context.sessions.request();
        let reply = Reply {
            context,
            writer: &writer,
            request: header.request,
        };
        let read = match header
            .known_kind()
            .map(|kind| (kind, Message::decode(kind, &payload)))
        {
            Some((_, Some(Ok(Message::Read(read))))) => read,
            Some((_, Some(Err(error)))) => return Err(error.into()),
            Some((kind, _)) => return Err(Broken::Unexpected(kind)),
            None => {
                let refusal = Refusal::failed(Code::Unsupported, "this daemon knows no such request");
                writer.send(&refusal.frame(context, header.request)).await?;
                continue;
            }
        };
        let replied = match (&read.peer, hello.role) {
            (Some(object), Role::Peer) => reply.pages(object, &read).await,
            (None, Role::Data) => match session.object(read.handle) {
                Some(object) => reply.bytes(&object, &read).await,
                None => Err(unknown_handle(read.handle).into()),
            },
            _ => Err(Refusal::failed(Code::InvalidRequest, "peers name objects, clients handles").into()),
        };
        match replied {
            Ok(()) => {}
            Err(Stop::Refused(refusal)) => writer.send(&refusal.frame(context, header.request)).await?,
            Err(Stop::Broken(broken)) => return Err(broken),
        }
    }
    Ok(())
}

fn joined(context: &Context, hello: &Hello) -> Option<Arc<Session>> {
    let session = context.sessions.get(hello.session)?;
    bool::from(session.secret.ct_eq(&hello.session_secret)).then_some(session)
}

/// All bytes of a small object.
pub(super) async fn whole(context: &Arc<Context>, object: &Arc<OpenObject>) -> Result<Vec<u8>, Refusal> {
    let length = object.generation().size_bytes;
    let block = BlockIndex(0);
    for _ in 0..2 {
        let filled = match context.filler.demand(object, block, PageSet::all(length)).await {
            Ok(filled) => filled,
            Err(fill::Error::NoSpace(_) | fill::Error::Store(_)) => break,
            Err(error) => return Err(error.into()),
        };
        let block = Arc::clone(&filled.block);
        let read = move |store: &BlockStore| {
            let mut bytes = vec![0; length as usize];
            store.read(&block, 0..length, &mut bytes).map(|()| bytes)
        };
        // A file that turns out corrupt is set aside by reading it; the next round fills a new one.
        if let Ok(bytes) = context.filler.on_disk(read).await {
            return Ok(bytes);
        }
    }
    let mut stream = pass_through(object, 0..length).await?;
    let mut bytes = Vec::with_capacity(length as usize);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| Refusal::from(&error))?;
        object.tally.count(Source::Origin, chunk.len() as u64);
        bytes.extend_from_slice(&chunk);
    }
    context.metrics.count_read(ReadPath::PassThrough, length);
    Ok(bytes)
}

async fn pass_through(object: &OpenObject, range: Range<u64>) -> Result<crate::origin::ByteStream, Refusal> {
    object
        .store
        .get(&object.range(range))
        .await
        .map_err(|error| Refusal::from(&error))
}

/// A window of a block on its way out.
enum Held {
    /// Compared with their checksums; a page at most.
    Bytes(Vec<u8>),
    /// To be sent from as it is.
    File(Arc<File>),
}

/// A file failed while it was sent from.
struct Unreadable {
    errno: nix::errno::Errno,
    /// How many bytes of the window were sent.
    sent: u64,
    /// How many are missing from the frame under way.
    owed: u64,
}

struct Reply<'a> {
    context: &'a Arc<Context>,
    writer: &'a Arc<FrameWriter>,
    request: RequestId,
}

impl Reply<'_> {
    fn head(&self, kind: FrameKind, length: usize, more: bool) -> Vec<u8> {
        let flags = if more { FLAG_MORE } else { 0 };
        FrameHeader {
            length: length as u32,
            kind: kind as u8,
            flags,
            request: self.request,
        }
        .to_bytes()
        .to_vec()
    }

    /// Bytes of an open object, clamped to its end.
    async fn bytes(&self, object: &Arc<OpenObject>, read: &Read) -> Result<(), Stop> {
        self.context.metrics.count_request("read");
        let size = object.generation().size_bytes;
        let end = read.offset.saturating_add(read.length).min(size);
        if read.offset >= end {
            return Ok(self.writer.send(&self.head(FrameKind::Data, 0, false)).await?);
        }
        let blocks = self.context.store.block_size();
        let path = if self.writer.stream().is_local() {
            ReadPath::Inline
        } else {
            ReadPath::Remote
        };
        let mut lost = 0;
        let mut at = read.offset;
        while at < end {
            // Pages that are read here are read under the watch over the disk.
            let verify = read.flags & READ_VERIFY != 0 || self.context.store.doubts_disk();
            let window = if verify { PAGE_BYTES } else { WINDOW_BYTES };
            // A window ends where a page does, so that the next one begins with whole pages.
            let block = blocks.block_at(at);
            let block_start = blocks.start_of(block);
            let block_end = block_start + blocks.length_of(block, size);
            let window_end = ((at / window + 1) * window).min(block_end).min(end);
            let within = at - block_start..window_end - block_start;
            let ahead = window_end..(window_end + WINDOW_BYTES).min(block_end).min(end);
            match self
                .context
                .filler
                .demand(object, block, PageSet::covering(within.clone()))
                .await
            {
                Ok(filled) => {
                    if !ahead.is_empty() {
                        let pages = PageSet::covering(ahead.start - block_start..ahead.end - block_start);
                        // Only a head start: what goes wrong shows when the window is demanded.
                        let _ = self.context.filler.readahead(object, block, pages).await;
                    }
                    match self.held(&filled, within.clone(), verify).await {
                        Ok(held) => {
                            let sent = self.send_held(held, within.clone(), block_start, end).await?;
                            if let Err(Unreadable { errno, sent, owed }) = sent {
                                self.lose(&filled, errno);
                                self.context.metrics.count_read(path, sent);
                                self.finish(object, at + sent..window_end, owed, end).await?;
                                at = window_end;
                                continue;
                            }
                        }
                        Err(_) if lost < LOST_FILES => {
                            lost += 1;
                            continue;
                        }
                        Err(_) => {
                            self.pass_through(object, at..window_end, end).await?;
                            at = window_end;
                            continue;
                        }
                    }
                    self.context.metrics.count_read(path, window_end - at);
                    self.context.store.used(
                        filled.block.file_id(),
                        window_end - at,
                        PageSet::covering(within),
                    );
                }
                Err(fill::Error::NoSpace(_) | fill::Error::Store(_)) => {
                    self.pass_through(object, at..window_end, end).await?;
                }
                Err(error) => return Err(Refusal::from(error).into()),
            }
            at = window_end;
        }
        Ok(())
    }

    /// What a window of a block is sent from. An error means that the file is gone or, with `verify`, that it was found
    /// damaged and set aside: either way the block gets another one.
    async fn held(&self, filled: &Filled, within: Range<u64>, verify: bool) -> Result<Held, fill::Error> {
        if !verify && let Some(file) = self.context.store.open_file(&filled.block) {
            return Ok(Held::File(file));
        }
        let block = Arc::clone(&filled.block);
        let work = move |store: &BlockStore| {
            if !verify {
                return store.file(&block).map(Held::File);
            }
            let mut bytes = vec![0; (within.end - within.start) as usize];
            store.read(&block, within, &mut bytes)?;
            Ok(Held::Bytes(bytes))
        };
        self.context.filler.on_disk(work).await
    }

    /// Sends a window of a block that starts at `block_start`, for a read that ends at `end`; or as much of it as can be
    /// read.
    async fn send_held(
        &self,
        held: Held,
        within: Range<u64>,
        block_start: u64,
        end: u64,
    ) -> Result<Result<(), Unreadable>, Stop> {
        match held {
            Held::Bytes(bytes) => {
                let more = block_start + within.end < end;
                let mut frame = self.head(FrameKind::Data, bytes.len(), more);
                frame.extend_from_slice(&bytes);
                self.writer.send(&frame).await?;
            }
            Held::File(file) => {
                let starts = (within.start..within.end).step_by(FRAME_BYTES as usize);
                let frames = starts.map(|start| {
                    let length = (within.end - start).min(FRAME_BYTES);
                    let more = block_start + start + length < end;
                    let head = self.head(FrameKind::Data, length as usize, more);
                    FileFrame {
                        head,
                        offset: DATA_OFFSET + start,
                        length,
                    }
                });
                match self.writer.send_file(file, frames.collect()).await {
                    Ok(()) => {}
                    Err(SendFileError::Stream(error)) => return Err(error.into()),
                    Err(SendFileError::File { errno, sent }) => {
                        let frame_end = within.start + (sent / FRAME_BYTES + 1) * FRAME_BYTES;
                        return Ok(Err(Unreadable {
                            errno,
                            sent,
                            owed: frame_end.min(within.end) - within.start - sent,
                        }));
                    }
                }
            }
        }
        Ok(Ok(()))
    }

    /// Sends what a file that cannot be read left out of a window, from the origin.
    async fn finish(
        &self,
        object: &OpenObject,
        rest: Range<u64>,
        mut owed: u64,
        end: u64,
    ) -> Result<(), Broken> {
        // In the middle of a frame there is no way to say why it does not end but to close the connection.
        let failed = |error: &dyn std::fmt::Display| Broken::Write(std::io::Error::other(error.to_string()));
        let mut at = rest.start;
        let length = rest.end - rest.start;
        let mut stream = object
            .store
            .get(&object.range(rest))
            .await
            .map_err(|error| failed(&error))?;
        while let Some(chunk) = stream.next().await {
            let mut chunk: Bytes = chunk.map_err(|error| failed(&error))?;
            object.tally.count(Source::Origin, chunk.len() as u64);
            let bare = chunk.split_to(chunk.len().min(owed as usize));
            owed -= bare.len() as u64;
            at += bare.len() as u64;
            self.writer.send(&bare).await?;
            for piece in chunk.chunks(FRAME_BYTES as usize) {
                at += piece.len() as u64;
                let mut frame = self.head(FrameKind::Data, piece.len(), at < end);
                frame.extend_from_slice(piece);
                self.writer.send(&frame).await?;
            }
        }
        self.context.metrics.count_read(ReadPath::PassThrough, length);
        Ok(())
    }

    /// A block's file cannot be read: it leaves the cache. Nobody waits for that.
    fn lose(&self, filled: &Filled, errno: nix::errno::Errno) {
        let (store, block) = (self.context.store.clone(), Arc::clone(&filled.block));
        drop(tokio::task::spawn_blocking(move || {
            store.failed_read(&block, errno);
        }));
    }

    /// Bytes straight from the origin: the cache cannot take them.
    async fn pass_through(&self, object: &OpenObject, range: Range<u64>, end: u64) -> Result<(), Stop> {
        let mut at = range.start;
        let mut stream = pass_through(object, range).await?;
        while let Some(chunk) = stream.next().await {
            let chunk: Bytes = chunk.map_err(|error| Refusal::from(&error))?;
            object.tally.count(Source::Origin, chunk.len() as u64);
            for piece in chunk.chunks(FRAME_BYTES as usize) {
                at += piece.len() as u64;
                let mut frame = self.head(FrameKind::Data, piece.len(), at < end);
                frame.extend_from_slice(piece);
                self.writer.send(&frame).await?;
            }
            self.context
                .metrics
                .count_read(ReadPath::PassThrough, chunk.len() as u64);
        }
        Ok(())
    }

    /// Pages that this worker holds, for a peer, each with its word; from the first that it does not hold on, none.
    async fn pages(&self, asked: &PeerObject, read: &Read) -> Result<(), Stop> {
        self.context.metrics.count_request("peer_read");
        let name = ObjectName {
            store: asked.store.clone(),
            path: asked.path.clone(),
        };
        let blocks = self.context.store.block_size();
        let index = blocks.block_at(read.offset);
        let start = read.offset - blocks.start_of(index);
        let length = blocks.length_of(index, asked.generation.size_bytes);
        let end = start.saturating_add(read.length).min(length);
        if !start.is_multiple_of(PAGE_BYTES) || start >= end {
            let message = "a peer asks for whole pages of one block";
            return Err(Refusal::failed(Code::InvalidRequest, message).into());
        }
        let not_held = || Refusal::failed(Code::NotHeld, "this worker does not hold these pages");
        let identity = BlockIdentity::of(name, asked.generation.clone(), index);
        let block = self
            .context
            .filler
            .cached(&identity)
            .await
            // A peer knows no way round this worker's disk but to ask another one.
            .map_err(|_| not_held())?
            .ok_or_else(not_held)?;
        let wanted = PageSet::covering(start..end);
        let held = wanted
            .intersection(block.present().union(block.unverified()))
            .runs(u32::MAX)
            .next()
            .ok_or_else(not_held)?;
        if u64::from(held.start) * PAGE_BYTES != start {
            return Err(not_held().into());
        }
        for page in held.clone().map(PageIndex) {
            let page_length = page.length_in(block.length()) as usize;
            let block = Arc::clone(&block);
            let work = move |store: &BlockStore| {
                let mut bytes = vec![0; PAGE_PREFIX_BYTES + page_length];
                let range = page.start()..page.start() + page_length as u64;
                store.read(&block, range, &mut bytes[PAGE_PREFIX_BYTES..])?;
                let word = store.page_word(&block, page)?;
                bytes[..PAGE_PREFIX_BYTES].copy_from_slice(&encode_page_prefix(
                    block.identity().index().0,
                    page.0,
                    word,
                ));
                Ok(bytes)
            };
            let payload = self.context.filler.on_disk(work).await.map_err(|_| not_held())?;
            let mut frame = self.head(FrameKind::Page, payload.len(), page.0 + 1 < held.end);
            frame.extend_from_slice(&payload);
            self.writer.send(&frame).await?;
            self.context
                .metrics
                .count_read(ReadPath::Peer, page_length as u64);
        }
        Ok(())
    }
}
