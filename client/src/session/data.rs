//! Data connections: strict request and reply, bytes straight into the reader's buffer.
//!
//! Invariant: a connection goes back to the pool only when its last reply was complete; what arrives is counted against
//! what was asked for before a byte of it is stored, so no daemon can write beyond the buffer.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use cachelet_protocol::ids::Handle;
use cachelet_protocol::wire::{self, FrameHeader, FrameKind, Hello, Message, ReceiveError};

use super::pending::lock;
use super::stream::{Address, ConnectError, Stream, read_exact, receive_header};
use crate::deadline::{Deadline, RequestTimeout};
use crate::error::Error;
use crate::stats::Counters;

/// Data connections of one session at most.
const MAX_CONNECTIONS: usize = 4;
/// Asked for in one `Read` at most, so that a daemon can bound what it prepares for one request.
pub(crate) const MAX_READ_BYTES: usize = 8 << 20;

/// Why a read on a data connection failed.
enum Failure {
    /// The daemon answered that it will not; the connection is in order.
    Refused(Error),
    /// The connection is of no use any more. `answered`: part of a reply had come, so the daemon had the request.
    Broken { error: Error, answered: bool },
}

impl Failure {
    fn broken(error: Error) -> Self {
        Self::Broken {
            error,
            answered: true,
        }
    }
}

/// One connection, after its welcome.
#[derive(Debug)]
struct Connection {
    stream: Stream,
    last_request: wire::RequestId,
}

impl Connection {
    fn open(address: &Address, hello: &Hello, deadline: Deadline) -> Result<Self, Error> {
        let operation = "opening a data connection";
        let lost = |error: &dyn std::fmt::Display| {
            Error::Unavailable(format!("{operation} to {address} failed: {error}"))
        };
        let io = |error: std::io::Error| {
            if timed_out(&error) {
                deadline.missed(operation)
            } else {
                lost(&error)
            }
        };
        let stream = Stream::connect(address, deadline).map_err(|error| match error {
            ConnectError::Io(error) => io(error),
            other => lost(&other),
        })?;
        stream.enlarge_receive_buffer();
        stream.set_read_timeout(deadline).map_err(io)?;
        stream
            .send_all(&wire::encode(hello, 0, 1), deadline)
            .map_err(io)?;
        let header = receive_header(&stream).map_err(|error| match error {
            ReceiveError::Io(error) => io(error),
            other => lost(&other),
        })?;
        match receive_message(&stream, header)? {
            Message::Welcome(_) => {}
            Message::Failed(failed) => return Err(lost(&failed.message)),
            Message::Bypass(bypass) => return Err(lost(&bypass.detail)),
            other => return Err(Error::Protocol(format!("a hello was answered with {other:?}"))),
        }
        Ok(Self {
            stream,
            last_request: 1,
        })
    }

    /// Reads `buf.len()` bytes at `offset` into `buf`. The deadline is the first byte's; from then on, something must
    /// come within the time that was left.
    fn read(
        &mut self,
        handle: Handle,
        offset: u64,
        buf: &mut [u8],
        flags: u32,
        deadline: Deadline,
    ) -> Result<(), Failure> {
        self.last_request = self.last_request.wrapping_add(1).max(1);
        let request = self.last_request;
        let read = wire::Read {
            handle,
            offset,
            length: buf.len() as u64,
            peer: None,
            flags,
        };
        self.stream
            .set_read_timeout(deadline)
            .and_then(|()| self.stream.send_all(&wire::encode(&read, 0, request), deadline))
            .map_err(|error| Failure::Broken {
                error: Error::Unavailable(format!("sending to the daemon failed: {error}")),
                answered: false,
            })?;
        let mut filled = 0;
        loop {
            let header = receive_header(&self.stream).map_err(|error| Failure::Broken {
                error: receive_error(error),
                answered: filled > 0,
            })?;
            if header.request != request {
                return Err(Failure::broken(Error::Protocol(format!(
                    "a reply to request {} where {request} was asked",
                    header.request
                ))));
            }
            if header.known_kind() != Some(FrameKind::Data) {
                let message = receive_message(&self.stream, header).map_err(Failure::broken)?;
                return Err(match message {
                    Message::Bypass(bypass) => Failure::Refused(Error::from_bypass(bypass)),
                    Message::Failed(failed) => Failure::Refused(Error::from_failed(failed)),
                    other => Failure::broken(Error::Protocol(format!("a read was answered with {other:?}"))),
                });
            }
            let length = header.length as usize;
            let asked = buf.len();
            let rest = buf.get_mut(filled..filled + length).ok_or_else(|| {
                Failure::broken(Error::Protocol(format!(
                    "{} bytes came where {asked} were asked for",
                    filled + length
                )))
            })?;
            read_exact(&self.stream, rest)
                .map_err(|error| Failure::broken(receive_error(ReceiveError::Io(error))))?;
            filled += length;
            if header.has_more() {
                if length == 0 {
                    return Err(Failure::broken(Error::Protocol(
                        "an empty data frame with more to come".into(),
                    )));
                }
                continue;
            }
            if filled < asked {
                return Err(Failure::broken(Error::Protocol(format!(
                    "{filled} bytes came where {asked} were asked for"
                ))));
            }
            return Ok(());
        }
    }
}

fn receive_error(error: ReceiveError) -> Error {
    match error {
        ReceiveError::Io(error) if timed_out(&error) => Error::Timeout {
            operation: "an inline read",
            after: Duration::ZERO,
        },
        ReceiveError::Closed => Error::Unavailable("the daemon closed a data connection".into()),
        ReceiveError::Io(error) => Error::Unavailable(format!("receiving from the daemon failed: {error}")),
        ReceiveError::Frame(error) => Error::Protocol(error.to_string()),
        ReceiveError::Descriptor(error) => Error::Protocol(error.to_string()),
    }
}

fn timed_out(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
    )
}

fn receive_message(stream: &Stream, header: FrameHeader) -> Result<Message, Error> {
    let kind = header
        .known_kind()
        .ok_or_else(|| Error::Protocol(format!("a reply of the unknown kind {}", header.kind)))?;
    let mut payload = vec![0; header.length as usize];
    read_exact(stream, &mut payload).map_err(|error| receive_error(ReceiveError::Io(error)))?;
    match Message::decode(kind, &payload) {
        Some(Ok(message)) => Ok(message),
        Some(Err(error)) => Err(Error::Protocol(format!("a broken {kind:?} message: {error}"))),
        None => Err(Error::Protocol(format!("an unexpected {kind:?} frame"))),
    }
}

#[derive(Debug, Default)]
struct PoolState {
    idle: Vec<Connection>,
    open: usize,
}

/// The data connections of one session.
#[derive(Debug)]
pub(crate) struct Pool {
    address: Address,
    hello: Hello,
    timeout: Arc<RequestTimeout>,
    counters: Arc<Counters>,
    state: Mutex<PoolState>,
    returned: Condvar,
}

impl Pool {
    pub(crate) fn new(
        address: Address,
        hello: Hello,
        timeout: Arc<RequestTimeout>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            address,
            hello,
            timeout,
            counters,
            state: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    /// Reads `buf.len()` bytes of an open object at `offset` into `buf`. `flags`: [`wire::Read::flags`].
    pub(crate) fn read(&self, handle: Handle, offset: u64, buf: &mut [u8], flags: u32) -> Result<(), Error> {
        let mut done = 0;
        for part in buf.chunks_mut(MAX_READ_BYTES) {
            let length = part.len() as u64;
            self.read_part(handle, offset + done, part, flags)?;
            done += length;
        }
        Ok(())
    }

    fn read_part(&self, handle: Handle, offset: u64, buf: &mut [u8], flags: u32) -> Result<(), Error> {
        let deadline = self.timeout.begin();
        // An idle connection may have been closed by the daemon meanwhile: one more try, on a fresh one.
        loop {
            let (mut connection, fresh) = self.take(deadline)?;
            self.counters.round_trips.fetch_add(1, Ordering::Relaxed);
            self.counters.messages_sent.fetch_add(1, Ordering::Relaxed);
            match connection.read(handle, offset, buf, flags, deadline) {
                Ok(()) => {
                    self.give_back(Some(connection));
                    return Ok(());
                }
                Err(Failure::Refused(error)) => {
                    self.give_back(Some(connection));
                    return Err(error);
                }
                Err(Failure::Broken { error, answered }) => {
                    drop(connection);
                    self.give_back(None);
                    if matches!(error, Error::Timeout { .. }) {
                        self.counters.timeouts.fetch_add(1, Ordering::Relaxed);
                        return Err(deadline.missed("an inline read"));
                    }
                    if fresh || answered {
                        return Err(error);
                    }
                    self.forget_idle();
                }
            }
        }
    }

    /// A connection that nobody else uses, and whether it was made just now.
    fn take(&self, deadline: Deadline) -> Result<(Connection, bool), Error> {
        let mut state = lock(&self.state);
        loop {
            if let Some(connection) = state.idle.pop() {
                return Ok((connection, false));
            }
            if state.open < MAX_CONNECTIONS {
                state.open += 1;
                break;
            }
            let left = deadline.left();
            if left == Duration::ZERO {
                self.counters.timeouts.fetch_add(1, Ordering::Relaxed);
                return Err(deadline.missed("waiting for a data connection"));
            }
            state = self
                .returned
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        drop(state);
        self.counters.messages_sent.fetch_add(1, Ordering::Relaxed);
        match Connection::open(&self.address, &self.hello, deadline) {
            Ok(connection) => Ok((connection, true)),
            Err(error) => {
                self.give_back(None);
                if matches!(error, Error::Timeout { .. }) {
                    self.counters.timeouts.fetch_add(1, Ordering::Relaxed);
                }
                Err(error)
            }
        }
    }

    fn give_back(&self, connection: Option<Connection>) {
        let mut state = lock(&self.state);
        match connection {
            Some(connection) => state.idle.push(connection),
            None => state.open -= 1,
        }
        drop(state);
        self.returned.notify_one();
    }

    fn forget_idle(&self) {
        let mut state = lock(&self.state);
        state.open -= state.idle.len();
        state.idle.clear();
    }
}
