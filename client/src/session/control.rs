//! A control connection: requests and their replies, one-way messages, and the thread that receives.
//!
//! Any thread sends, under the writer's lock; the reader thread alone receives and hands replies on. The reader thread
//! never waits for the writer's lock nor for room in the socket: a daemon that stops reading while it sends would hold
//! both sides otherwise. What it cannot send at once goes with the next message or tick.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use cachelet_protocol::ids::FileId;
use cachelet_protocol::wire::{FrameKind, Message, ReceiveError, ReceivedFrame, RequestId};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::outbox::Outbox;
use super::pending::{Delivery, Descriptor, Install, Part, Pending, Reply, lock};
use super::stream::{Receiver, Stream};
use crate::client::Held;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::grant::Registry;
use crate::stats::Counters;

/// How often the reader thread looks after idle grants and unsent messages.
const TICK: Duration = Duration::from_secs(1);
/// How soon it tries again to send what the socket would not take.
const RETRY: Duration = Duration::from_millis(20);
/// `Used` goes out at most this often, and with each release.
const USED_EVERY: Duration = Duration::from_secs(10);

/// Numbers the connections of this process, so that a grant knows which one it came over.
static NEXT_KEY: AtomicU64 = AtomicU64::new(1);

/// See the module's text.
pub(crate) struct Control {
    key: u64,
    stream: Stream,
    /// Bytes of frames whose beginning was sent already.
    unsent: Mutex<Vec<u8>>,
    pub(crate) outbox: Outbox,
    pending: Pending,
    counters: Arc<Counters>,
    frames_received: AtomicU64,
    /// How many frames had come, and when a request began that then was not answered in time.
    silent_since: Mutex<Option<(u64, Instant)>>,
    /// For how long that may go on.
    max_silence: Duration,
    ack_at: AtomicU16,
    descriptor_failure: AtomicBool,
    /// How many grants of each file are alive: the file is released with the last.
    leases: Mutex<HashMap<FileId, u32>>,
}

impl Control {
    /// Starts the reader thread of a fresh connection.
    pub(crate) fn start(
        stream: Stream,
        max_silence: Duration,
        counters: Arc<Counters>,
        held: Arc<Held>,
    ) -> Result<Arc<Self>, Error> {
        let receiving = stream
            .try_clone()
            .map_err(|error| Error::io("duplicating a socket", error))?;
        let control = Arc::new(Self {
            key: NEXT_KEY.fetch_add(1, Ordering::Relaxed),
            stream,
            unsent: Mutex::new(Vec::new()),
            outbox: Outbox::default(),
            pending: Pending::default(),
            counters,
            frames_received: AtomicU64::new(0),
            silent_since: Mutex::new(None),
            max_silence,
            ack_at: AtomicU16::new(1),
            descriptor_failure: AtomicBool::new(false),
            leases: Mutex::new(HashMap::new()),
        });
        let reader = Arc::clone(&control);
        std::thread::Builder::new()
            .name("cachelet-reader".into())
            .spawn(move || reader.run(Receiver::new(receiving), &held))
            .map_err(|error| Error::io("starting the reader thread", error))?;
        Ok(control)
    }

    /// Which connection this is, among all of the process's life.
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// How many descriptors may wait for an `Ack`, as the daemon said.
    pub(crate) fn set_max_unacknowledged(&self, count: u16) {
        self.ack_at.store((count / 2).max(1), Ordering::Relaxed);
    }

    /// Why the connection ended, if it has.
    pub(crate) fn ended(&self) -> Option<Error> {
        self.pending.ended()
    }

    /// Whether it ended because descriptors and frames did not pair up.
    pub(crate) fn had_descriptor_failure(&self) -> bool {
        self.descriptor_failure.load(Ordering::Relaxed)
    }

    /// Gives the connection up: every request fails with `error`.
    pub(crate) fn end(&self, error: &Error) {
        self.pending.end(error);
        self.stream.shut_down();
    }

    /// A send failed, because the daemon has closed the connection: nothing more is asked on it. Replies that the daemon
    /// sent before it closed are still in the socket; the reader thread hands them out, and ends the rest at their end.
    fn send_failed(&self, error: &io::Error) {
        self.pending.close(&Error::Unavailable(format!(
            "sending to the daemon failed: {error}"
        )));
        self.stream.shut_down();
    }

    /// Sends a request and waits for its reply.
    pub(crate) fn call(
        &self,
        operation: &'static str,
        deadline: Deadline,
        encode: impl FnOnce(RequestId) -> Vec<u8>,
    ) -> Result<Reply, Error> {
        let (request, waiter) = self.pending.wait()?;
        let seen = self.frames_received.load(Ordering::Relaxed);
        self.send(&encode(request), deadline);
        if let Some(outcome) = waiter.wait(deadline) {
            return outcome;
        }
        if let Some(opened) = self.pending.give_up(request) {
            self.outbox.release_handle(opened.handle);
        }
        // It may have come between the wait and the giving up.
        if let Some(outcome) = waiter.wait(deadline) {
            return outcome;
        }
        Counters::add(&self.counters.timeouts, 1);
        self.note_silence(seen, deadline.began());
        Err(deadline.missed(operation))
    }

    /// A request that began at `since`, when `seen` frames had come, was not answered in time. If nothing at all came
    /// meanwhile, nor since requests before it, for too long, the daemon is stuck and the connection is given up.
    fn note_silence(&self, seen: u64, since: Instant) {
        if self.frames_received.load(Ordering::Relaxed) != seen {
            return;
        }
        let since = {
            let mut silent_since = lock(&self.silent_since);
            match *silent_since {
                Some((frames, earlier)) if frames == seen => earlier.min(since),
                _ => {
                    *silent_since = Some((seen, since));
                    since
                }
            }
        };
        let silent = since.elapsed();
        if silent >= self.max_silence {
            self.end(&Error::Unavailable(format!(
                "the daemon sent nothing for {:.1} s",
                silent.as_secs_f64()
            )));
        }
    }

    /// Sends a request, if the connection takes it at once, whose reply is handed to `install` on the reader thread.
    ///
    /// `install` always runs: with an error if the request was dropped.
    pub(crate) fn ask(&self, install: Install, encode: impl FnOnce(RequestId) -> Vec<u8>) -> bool {
        let Some(request) = self.pending.install(install) else {
            return false;
        };
        let sent = self.send_if_room(&encode(request));
        if !sent {
            let dropped = Error::Unavailable("the connection was busy".into());
            self.pending.deliver(request, Part::Refused(dropped));
        }
        sent
    }

    /// Sends a frame and whatever waits in the outbox. After a failure the frame's request ends with the
    /// connection.
    fn send(&self, frame: &[u8], deadline: Deadline) {
        {
            let mut unsent = lock(&self.unsent);
            let frames = self.outbox.drain_into(&mut unsent);
            unsent.extend_from_slice(frame);
            Counters::add(&self.counters.messages_sent, frames + 1);
            let result = self.stream.send_all(&unsent, deadline);
            unsent.clear();
            drop(unsent);
            if let Err(error) = result {
                self.send_failed(&error);
            }
        }
        // The reader thread may have found the lock taken.
        if self.outbox.is_urgent() {
            self.flush();
        }
    }

    /// Sends a one-way frame if the connection takes it at once; says whether it did.
    pub(crate) fn send_if_room(&self, frame: &[u8]) -> bool {
        let mut unsent = match self.unsent.try_lock() {
            Ok(unsent) => unsent,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        if !self.push(&mut unsent) {
            return false;
        }
        match self.stream.send_now(frame) {
            Ok(0) => false,
            Ok(sent) => {
                unsent.extend_from_slice(&frame[sent..]);
                Counters::add(&self.counters.messages_sent, 1);
                true
            }
            Err(error) => {
                self.send_failed(&error);
                false
            }
        }
    }

    /// Sends what waits in the outbox, as far as that goes without waiting.
    pub(crate) fn flush(&self) {
        match self.unsent.try_lock() {
            Ok(mut unsent) => _ = self.push(&mut unsent),
            Err(TryLockError::Poisoned(poisoned)) => _ = self.push(&mut poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    /// Sends the rest of earlier frames, then the outbox. Whether everything went out.
    fn push(&self, unsent: &mut Vec<u8>) -> bool {
        loop {
            if unsent.is_empty() {
                let frames = self.outbox.drain_into(unsent);
                if frames == 0 {
                    return true;
                }
                Counters::add(&self.counters.messages_sent, frames);
            }
            match self.stream.send_now(unsent) {
                Ok(0) => return false,
                Ok(sent) => _ = unsent.drain(..sent),
                Err(error) => {
                    self.send_failed(&error);
                    return false;
                }
            }
        }
    }

    /// A grant of this file lives.
    pub(crate) fn lease(&self, file: FileId) {
        *lock(&self.leases).entry(file).or_insert(0) += 1;
    }

    /// A grant of this file has closed its descriptor.
    pub(crate) fn end_lease(&self, file: FileId) {
        let mut leases = lock(&self.leases);
        let last = leases.get_mut(&file).is_none_or(|count| {
            *count -= 1;
            *count == 0
        });
        if last {
            leases.remove(&file);
            self.outbox.release_file(file);
        }
    }

    /// A descriptor of this file was closed before it became a grant.
    pub(crate) fn release_unless_leased(&self, file: FileId) {
        if !lock(&self.leases).contains_key(&file) {
            self.outbox.release_file(file);
        }
    }

    fn run(&self, mut receiver: Receiver, held: &Held) {
        let mut last_tick = Instant::now();
        let mut last_used = last_tick;
        let error = loop {
            let ready = match self.wait_for_input(receiver.has_buffered()) {
                Ok(ready) => ready,
                Err(error) => break Error::Unavailable(format!("waiting for the daemon failed: {error}")),
            };
            let now = Instant::now();
            if now.duration_since(last_tick) >= TICK {
                last_tick = now;
                let report = now.duration_since(last_used) >= USED_EVERY;
                if report {
                    last_used = now;
                }
                held.tick(now, report.then_some(self));
                self.flush();
            } else if self.outbox.is_urgent() {
                self.flush();
            }
            if !ready {
                continue;
            }
            let frame = match receiver.receive() {
                Ok(frame) => frame,
                Err(error) => break self.receive_failed(error),
            };
            self.frames_received.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = self.take(frame, &held.registry, receiver.has_buffered()) {
                break error;
            }
        };
        self.end(&error);
    }

    /// Waits until something arrives (true) or it is time to look after other things.
    fn wait_for_input(&self, buffered: bool) -> io::Result<bool> {
        if buffered {
            return Ok(true);
        }
        let patience = if self.outbox.is_urgent() { RETRY } else { TICK };
        let timeout = PollTimeout::try_from(patience).expect("a second fits");
        let mut descriptors = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn receive_failed(&self, error: ReceiveError) -> Error {
        match error {
            ReceiveError::Closed => Error::Unavailable("the daemon closed the connection".into()),
            ReceiveError::Io(error) => {
                Error::Unavailable(format!("receiving from the daemon failed: {error}"))
            }
            ReceiveError::Frame(error) => Error::Protocol(error.to_string()),
            ReceiveError::Descriptor(error) => {
                self.descriptor_failure.store(true, Ordering::Relaxed);
                Counters::add(&self.counters.descriptor_failures, 1);
                Error::Protocol(error.to_string())
            }
        }
    }

    /// Handles one frame. An error ends the connection.
    fn take(&self, frame: ReceivedFrame, registry: &Registry, more_buffered: bool) -> Result<(), Error> {
        let ReceivedFrame {
            header,
            payload,
            descriptor,
        } = frame;
        if descriptor.is_some() {
            Counters::add(&self.counters.grants_received, 1);
            let unacknowledged = self.outbox.acknowledge();
            if !more_buffered || unacknowledged >= self.ack_at.load(Ordering::Relaxed) {
                self.flush();
            }
        }
        let Some(kind) = header.known_kind() else {
            // A newer daemon's news is ignored; a newer reply is an answer that this version cannot use.
            if header.request != 0 {
                let unknown = Error::Protocol(format!("a reply of the unknown kind {}", header.kind));
                self.pending.deliver(header.request, Part::Refused(unknown));
            }
            return Ok(());
        };
        if kind == FrameKind::Data {
            return self.hand_on(header.request, Part::Data(payload));
        }
        let message = match Message::decode(kind, &payload) {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(Error::Protocol(format!("a broken {kind:?} message: {error}"))),
            None => {
                return Err(Error::Protocol(format!(
                    "a {kind:?} frame on a control connection"
                )));
            }
        };
        let part = match (message, descriptor) {
            (Message::Granted(granted), Some(file)) => {
                Part::Reply(Reply::Granted(Descriptor { granted, file }))
            }
            (Message::Granted(_), None) => {
                return Err(Error::Protocol("a grant without a descriptor".into()));
            }
            (_, Some(_)) => {
                return Err(Error::Protocol(format!("a {kind:?} message with a descriptor")));
            }
            (Message::DropFiles(drop_files), None) => {
                registry.drop_files(self.key, &drop_files.files);
                self.flush();
                return Ok(());
            }
            (Message::Bypass(bypass), None) => Part::Refused(Error::from_bypass(bypass)),
            (Message::Failed(failed), None) => Part::Refused(Error::from_failed(failed)),
            (Message::Welcome(welcome), None) => Part::Reply(Reply::Welcome(Box::new(welcome))),
            (Message::Opened(opened), None) => Part::Opened(opened),
            (Message::Ready(ready), None) => Part::Reply(Reply::Ready(ready)),
            (Message::Invalidated(invalidated), None) => Part::Reply(Reply::Invalidated(invalidated)),
            (Message::Freed(freed), None) => Part::Reply(Reply::Freed(freed)),
            (Message::Tallied(tallied), None) => Part::Reply(Reply::Tallied(tallied)),
            (
                Message::Hello(_)
                | Message::Open(_)
                | Message::Fill(_)
                | Message::Read(_)
                | Message::Used(_)
                | Message::Ack(_)
                | Message::Release(_)
                | Message::Invalidate(_)
                | Message::Free(_)
                | Message::Tally(_),
                None,
            ) => return Err(Error::Protocol(format!("a {kind:?} message from the daemon"))),
        };
        self.hand_on(header.request, part)
    }

    fn hand_on(&self, request: RequestId, part: Part) -> Result<(), Error> {
        if request == 0 {
            // The daemon may say that a one-way message failed; nobody waits to hear it.
            return match part {
                Part::Refused(_) => Ok(()),
                Part::Reply(_) | Part::Opened(_) | Part::Data(_) => {
                    Err(Error::Protocol("a reply without a request id".into()))
                }
            };
        }
        match self.pending.deliver(request, part) {
            Delivery::Delivered => Ok(()),
            Delivery::Late(part) => {
                self.clean_up_behind(part);
                Ok(())
            }
            Delivery::Unasked => Err(Error::Protocol(format!(
                "a reply to request {request}, which was never sent"
            ))),
            Delivery::Mismatched => Err(Error::Protocol(format!(
                "a reply to request {request} that does not answer it"
            ))),
        }
    }

    /// A reply came after its request was given up: what it opened is closed.
    fn clean_up_behind(&self, part: Part) {
        match part {
            Part::Opened(opened) => self.outbox.release_handle(opened.handle),
            Part::Reply(Reply::Granted(Descriptor { granted, file })) => {
                drop(file);
                self.release_unless_leased(granted.file_id);
            }
            Part::Reply(_) | Part::Data(_) | Part::Refused(_) => {}
        }
    }
}
