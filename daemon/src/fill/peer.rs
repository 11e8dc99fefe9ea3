//! Pages from other workers: who holds them, and reading them over TCP.
//!
//! A peer proves what it sends: every page comes with its word, which is re-derived here from the bytes and from the object
//! that was asked for. A page that does not match is thrown away and the connection with it. A peer that does not answer
//! is left out for a while ([`health`](super::health)).

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cachelet_protocol::block::{BlockIndex, PAGE_BYTES, PageIndex, PageSet};
use cachelet_protocol::grpc;
use cachelet_protocol::ids::{Handle, SessionId, WorkerUuid};
use cachelet_protocol::integrity::{PageWord, chunk_crcs};
use cachelet_protocol::residency::{Residency, SegmentResidency};
use cachelet_protocol::wire::{
    FrameHeader, FrameKind, Hello, Message, PeerObject, Read, Role, VERSION, decode_page_prefix, encode,
};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::OpenObject;
use super::health::{Health, Request};
use super::holder::{Error, Holder};
use crate::connection::{FrameReader, FrameWriter, Stream};
use crate::metrics::Metrics;
use crate::report::Holders;

/// Peers asked for one fetch before the origin is.
const PEERS_PER_FETCH: usize = 2;
/// Idle connections kept to each peer, and for how long: the peer may have left.
const IDLE_CONNECTIONS: usize = 4;
const IDLE_CLOSE: Duration = Duration::from_mins(1);
/// Time between two frames of a reply that has begun.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// The other workers. Clones share connections.
#[derive(Debug, Clone)]
pub struct Peers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    holders: Holders,
    own_uuid: WorkerUuid,
    zone: String,
    secret: String,
    first_byte: Duration,
    health: Health,
    idle: Mutex<IdleConnections>,
}

/// One frame's header and payload.
type Frame = (FrameHeader, Vec<u8>);

/// By address; each with the time since which it is idle.
type IdleConnections = HashMap<String, Vec<(Connection, Instant)>>;

#[derive(Debug)]
struct Connection {
    reader: FrameReader,
    writer: FrameWriter,
}

impl Peers {
    /// Asks `holders` for peers other than `own_uuid` in `zone`, and calls them with `secret`.
    pub fn new(
        holders: Holders,
        own_uuid: WorkerUuid,
        zone: String,
        secret: String,
        first_byte: Duration,
        metrics: Metrics,
    ) -> Self {
        let shared = Shared {
            holders,
            own_uuid,
            zone,
            secret,
            first_byte,
            health: Health::new(first_byte, metrics),
            idle: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// How many peers are left out at the moment, because they do not answer.
    pub fn left_out(&self) -> usize {
        self.shared.health.skipped_now()
    }

    /// The workers of our zone that hold something of a block and answer, the fullest first.
    pub(super) async fn holders(
        &self,
        object: &OpenObject,
        block: BlockIndex,
        missing: PageSet,
    ) -> Vec<Holder> {
        if missing.is_empty() {
            return Vec::new();
        }
        let (segment, place) = SegmentResidency::place(block);
        let request = grpc::LocateRequest {
            path_id: object.path_id.as_bytes().to_vec(),
            etag: object.generation().etag.as_str().to_owned(),
            size_bytes: object.generation().size_bytes,
            segment,
        };
        let mut holders: Vec<Holder> = self
            .shared
            .holders
            .of(request)
            .await
            .into_iter()
            .filter(|holder| holder.worker_uuid != self.shared.own_uuid.as_bytes())
            .filter(|holder| holder.zone == self.shared.zone && !holder.data_address.is_empty())
            .map(|holder| Holder {
                residency: SegmentResidency {
                    low_bits: holder.low_bits,
                    high_bits: holder.high_bits,
                }
                .get(place),
                node: holder.node,
                address: holder.data_address,
            })
            .filter(|holder| holder.residency != Residency::None && !self.shared.health.skips(holder))
            .collect();
        holders.sort_by(|a, b| b.residency.cmp(&a.residency).then_with(|| a.node.cmp(&b.node)));
        holders.truncate(PEERS_PER_FETCH);
        holders
    }

    /// Asks a holder for a run of pages of a block.
    pub(super) async fn read<'a>(
        &'a self,
        holder: &'a Holder,
        object: &'a OpenObject,
        block: BlockIndex,
        block_start: u64,
        block_length: u64,
        run: Range<u32>,
    ) -> Result<PeerPages<'a>, Error> {
        let end = PageIndex(run.end).start().min(block_length);
        let start = PageIndex(run.start).start();
        let read = Read {
            handle: Handle(0),
            offset: block_start + start,
            length: end - start,
            peer: Some(PeerObject {
                store: object.name().store.clone(),
                path: object.name().path.clone(),
                generation: object.generation().clone(),
                hops: 1,
            }),
            // A peer is sent nothing that was not compared, and compares it again.
            flags: 0,
        };
        let frame = encode(&read, 0, 1);
        let request = self.shared.health.admit(holder).ok_or(Error::LeftOut)?;
        let outcome = tokio::select! {
            biased;
            outcome = self.first_frame(&holder.address, &frame) => outcome,
            () = request.given_up_elsewhere() => Err(Error::LeftOut),
        };
        let (connection, first) = outcome.inspect_err(|problem| tell(&request, problem))?;
        request.heard();
        Ok(PeerPages {
            peers: self,
            request,
            holder,
            object,
            block,
            block_length,
            next: PageIndex(run.start),
            end: run.end,
            connection: Some(connection),
            first: Some(first),
        })
    }

    /// Sends a question, and waits for the beginning of its answer.
    async fn first_frame(&self, address: &str, frame: &[u8]) -> Result<(Connection, Frame), Error> {
        if let Some(mut connection) = self.take_idle(address) {
            match self.ask(&mut connection, frame).await {
                Ok(first) => return Ok((connection, first)),
                Err(silence @ Error::Timeout(_)) => return Err(silence),
                // A connection that was idle may be closed by now; a new one is tried then.
                Err(_) => {}
            }
        }
        let mut connection = timeout(self.shared.first_byte, self.connect(address))
            .await
            .map_err(|_| Error::Timeout(self.shared.first_byte))??;
        let first = self.ask(&mut connection, frame).await?;
        Ok((connection, first))
    }

    async fn ask(&self, connection: &mut Connection, frame: &[u8]) -> Result<Frame, Error> {
        connection.writer.send(frame).await?;
        next_frame(&mut connection.reader, self.shared.first_byte).await
    }

    async fn connect(&self, address: &str) -> Result<Connection, Error> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let stream = Arc::new(Stream::Tcp(stream));
        let mut connection = Connection {
            reader: FrameReader::new(Arc::clone(&stream)),
            writer: FrameWriter::new(stream),
        };
        let hello = Hello {
            min_version: VERSION,
            max_version: VERSION,
            features: 0,
            role: Role::Peer,
            session: SessionId(0),
            session_secret: [0; 16],
            client: format!("cacheletd {}", env!("CARGO_PKG_VERSION")),
            application: String::new(),
            pod: String::new(),
            pod_ip: String::new(),
            token: self.shared.secret.clone(),
        };
        connection.writer.send(&encode(&hello, 0, 1)).await?;
        let (header, payload) = next_frame(&mut connection.reader, self.shared.first_byte).await?;
        match header
            .known_kind()
            .and_then(|kind| Message::decode(kind, &payload))
        {
            Some(Ok(Message::Welcome(_))) => Ok(connection),
            Some(Ok(Message::Failed(failed))) => Err(Error::Refused {
                code: failed.code,
                message: failed.message,
            }),
            Some(Ok(_)) | None => Err(Error::Protocol("no Welcome for a Hello")),
            Some(Err(error)) => Err(error.into()),
        }
    }

    fn take_idle(&self, address: &str) -> Option<Connection> {
        let (connection, _) = self.idle().get_mut(address)?.pop()?;
        Some(connection)
    }

    fn put_idle(&self, address: &str, connection: Connection) {
        let now = Instant::now();
        let mut idle = self.idle();
        idle.retain(|_, connections| {
            connections.retain(|(_, since)| now - *since < IDLE_CLOSE);
            !connections.is_empty()
        });
        let connections = idle.entry(address.to_owned()).or_default();
        if connections.len() < IDLE_CONNECTIONS {
            connections.push((connection, now));
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, IdleConnections> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pages of one reply, in order, each checked. Ends early where the peer has no more.
pub(super) struct PeerPages<'a> {
    peers: &'a Peers,
    request: Request<'a>,
    holder: &'a Holder,
    object: &'a OpenObject,
    block: BlockIndex,
    block_length: u64,
    next: PageIndex,
    end: u32,
    connection: Option<Connection>,
    first: Option<Frame>,
}

impl PeerPages<'_> {
    pub(super) async fn next(&mut self) -> Result<Option<(PageIndex, Bytes)>, Error> {
        let Some(connection) = &mut self.connection else {
            return Ok(None);
        };
        let (header, payload) = match self.first.take() {
            Some(frame) => frame,
            None => {
                let first_byte = self.peers.shared.first_byte;
                let given_up = async {
                    sleep(first_byte).await;
                    self.request.given_up_elsewhere().await;
                };
                // A page may wait for the peer's disk, but not once the peer is found silent.
                let frame = tokio::select! {
                    biased;
                    frame = next_frame(&mut connection.reader, IDLE_TIMEOUT) => frame,
                    () = given_up => Err(Error::LeftOut),
                };
                let frame = frame.inspect_err(|problem| tell(&self.request, problem))?;
                self.request.heard();
                frame
            }
        };
        match header.known_kind() {
            Some(FrameKind::Page) => {}
            Some(FrameKind::Failed) => {
                return match Message::decode(FrameKind::Failed, &payload) {
                    Some(Ok(Message::Failed(failed))) => {
                        self.give_back();
                        Err(Error::Refused {
                            code: failed.code,
                            message: failed.message,
                        })
                    }
                    Some(Err(error)) => Err(error.into()),
                    Some(Ok(_)) | None => Err(Error::Protocol("a Failed that is none")),
                };
            }
            _ => return Err(Error::Protocol("an unexpected frame in a reply of pages")),
        }
        let page = self.check(&payload)?;
        let bytes = Bytes::from(payload).slice(cachelet_protocol::wire::PAGE_PREFIX_BYTES..);
        if !header.has_more() {
            self.give_back();
        }
        Ok(Some((page, bytes)))
    }

    /// The page of a payload, if it is the one that must come now, whole, with its word.
    fn check(&mut self, payload: &[u8]) -> Result<PageIndex, Error> {
        let (block, page, word, bytes) =
            decode_page_prefix(payload).ok_or(Error::Protocol("a page without prefix"))?;
        let expected = self.next;
        if block != self.block.0 || page != expected.0 || page >= self.end {
            return Err(Error::Protocol("another page than the one that was asked for"));
        }
        if bytes.len() as u64 != expected.length_in(self.block_length) {
            return Err(Error::Protocol("a page of the wrong length"));
        }
        debug_assert!(bytes.len() as u64 <= PAGE_BYTES);
        if !PageWord::new(&self.object.object_id(), block, expected, &chunk_crcs(bytes)).matches(word) {
            return Err(Error::Protocol("a page that does not match its word"));
        }
        self.next = PageIndex(expected.0 + 1);
        Ok(expected)
    }

    /// The reply is over and the connection in step: the next question may use it.
    fn give_back(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.peers.put_idle(&self.holder.address, connection);
        }
    }
}

/// Tells a peer's breaker of a request that failed.
fn tell(request: &Request<'_>, problem: &Error) {
    match (problem.trouble(), problem) {
        (Some(trouble), _) => request.failed(trouble, problem),
        // The breaker does not listen to this request any more.
        (None, Error::LeftOut) => {}
        (None, _) => request.heard(),
    }
}

async fn next_frame(reader: &mut FrameReader, patience: Duration) -> Result<Frame, Error> {
    let frame = timeout(patience, reader.next())
        .await
        .map_err(|_| Error::Timeout(patience))??;
    frame.ok_or_else(|| Error::Io(io::ErrorKind::UnexpectedEof.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn connection(listener: &tokio::net::TcpListener) -> Connection {
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let stream = Arc::new(Stream::Tcp(stream));
        Connection {
            reader: FrameReader::new(Arc::clone(&stream)),
            writer: FrameWriter::new(stream),
        }
    }

    #[tokio::test]
    async fn idle_connections_are_few_and_those_of_a_peer_that_left_are_closed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peers = Peers::new(
            Holders::new("http://127.0.0.1:1", Metrics::default()).unwrap(),
            WorkerUuid::from_bytes([1; 16]),
            String::new(),
            String::new(),
            Duration::from_millis(200),
            Metrics::default(),
        );
        for _ in 0..IDLE_CONNECTIONS + 2 {
            peers.put_idle("who leaves", connection(&listener).await);
        }
        assert_eq!(peers.idle()["who leaves"].len(), IDLE_CONNECTIONS);
        let (first, second) = (connection(&listener).await, connection(&listener).await);
        tokio::time::pause();
        tokio::time::advance(IDLE_CLOSE).await;
        peers.put_idle("who stays", first);
        assert!(peers.idle().keys().eq(["who stays"]));
        tokio::time::advance(IDLE_CLOSE / 2).await;
        peers.put_idle("who stays", second);
        assert_eq!(peers.idle()["who stays"].len(), 2);
        assert!(peers.take_idle("who leaves").is_none() && peers.take_idle("who stays").is_some());
    }
}
