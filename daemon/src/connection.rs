//! One connection's bytes: frames in, frames (and descriptors, and file ranges) out.
//!
//! Receiving never takes descriptors: a plain read makes the kernel drop whatever a hostile client sends along. A frame
//! that has begun must arrive within [`FRAME_DEADLINE`], and the other side must take what is sent to it within
//! [`WRITE_DEADLINE`], else the connection is given up: neither may pin memory or a task here.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use cachelet_protocol::wire::{FrameError, FrameHeader, HEADER_BYTES, send_with_descriptor};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a frame may take from its first to its last byte.
pub(crate) const FRAME_DEADLINE: Duration = Duration::from_secs(10);
/// How long the other side may refuse to take bytes.
pub(crate) const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a thread of the pool waits for a full socket: a reader that goes on takes bytes within this time, and handing over to
/// another thread at every full buffer would cost it.
const FULL_PATIENCE_MS: u8 = 5;
/// Send buffer of connections that carry inline bytes: with the default of 208 KiB `sendfile` to a Unix socket reaches a
/// third of what it reaches with this (measured on Linux 6.18: 3.0 against 8.5 GB/s).
const SEND_BUFFER_BYTES: usize = 2 << 20;
/// What a connection has for frames that arrive: most are smaller, a larger one gets more until it was read. Every idle connection
/// pays for it.
const READ_BUFFER_BYTES: usize = 4 << 10;

/// A connected socket of either kind.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_read(buffer),
            Self::Tcp(stream) => stream.try_read(buffer),
        }
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_write(bytes),
            Self::Tcp(stream) => stream.try_write(bytes),
        }
    }

    /// Does something that writes without waiting, and tells Tokio if the socket is full.
    fn try_write_io(&self, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.try_io(Interest::WRITABLE, write),
            Self::Tcp(stream) => stream.try_io(Interest::WRITABLE, write),
        }
    }

    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.readable().await,
            Self::Tcp(stream) => stream.readable().await,
        }
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.writable().await,
            Self::Tcp(stream) => stream.writable().await,
        }
    }

    /// Whether descriptors can be passed.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    /// Prepares the socket for inline bytes. A smaller buffer is only slower, so a refusal is no error.
    pub(crate) fn enlarge_send_buffer(&self) {
        let _ = setsockopt(&self.as_fd(), sockopt::SndBuf, &SEND_BUFFER_BYTES);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

/// Why no further frame can be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("the peer sent something that is no frame: {0}")]
    Frame(#[from] FrameError),
    #[error("reading failed: {0}")]
    Io(#[from] io::Error),
    #[error("a frame did not arrive within {} s", FRAME_DEADLINE.as_secs())]
    Stalled,
}

/// Reads frames. Cancel-safe: what has arrived stays in the buffer.
#[derive(Debug)]
pub(crate) struct FrameReader {
    stream: Arc<Stream>,
    buffer: Vec<u8>,
    filled: usize,
    begun: Option<Instant>,
}

impl FrameReader {
    pub(crate) fn new(stream: Arc<Stream>) -> Self {
        Self {
            stream,
            buffer: vec![0; READ_BUFFER_BYTES],
            filled: 0,
            begun: None,
        }
    }

    /// The next frame; `None` when the other side has closed between two frames.
    pub(crate) async fn next(&mut self) -> Result<Option<(FrameHeader, Vec<u8>)>, ReadError> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            let received = match self.stream.try_read(&mut self.buffer[self.filled..]) {
                Ok(0) if self.filled == 0 => return Ok(None),
                Ok(0) => return Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let readable = self.stream.readable();
                    match self.begun {
                        Some(begun) => timeout_at(begun + FRAME_DEADLINE, readable)
                            .await
                            .map_err(|_| ReadError::Stalled)??,
                        None => readable.await?,
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            self.filled += received;
            self.begun.get_or_insert_with(Instant::now);
        }
    }

    fn take_frame(&mut self) -> Result<Option<(FrameHeader, Vec<u8>)>, ReadError> {
        let Some(header) = self.buffer[..self.filled].first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        // Clients and peers send control frames only, so a length beyond the buffer's growth limit never gets here.
        let header = FrameHeader::from_bytes(header)?;
        let total = HEADER_BYTES + header.length as usize;
        if self.filled < total {
            if self.buffer.len() < total {
                self.buffer.resize(total, 0);
            }
            return Ok(None);
        }
        let payload = self.buffer[HEADER_BYTES..total].to_vec();
        self.buffer.copy_within(total..self.filled, 0);
        self.filled -= total;
        if self.filled == 0 && self.buffer.len() > READ_BUFFER_BYTES {
            self.buffer = vec![0; READ_BUFFER_BYTES];
        }
        self.begun = (self.filled > 0).then(Instant::now);
        Ok(Some((header, payload)))
    }
}

/// Writes frames, whole and one after the other, whoever sends them.
#[derive(Debug)]
pub(crate) struct FrameWriter {
    stream: Arc<Stream>,
    turn: Mutex<()>,
}

impl FrameWriter {
    pub(crate) fn new(stream: Arc<Stream>) -> Self {
        Self {
            stream,
            turn: Mutex::new(()),
        }
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Sends a frame. An error means that the connection is out of step and must be closed.
    pub(crate) async fn send(&self, frame: &[u8]) -> io::Result<()> {
        let _turn = self.turn.lock().await;
        timeout(WRITE_DEADLINE, self.write_all(frame)).await?
    }

    /// Sends a frame together with a descriptor, which is closed here afterwards.
    pub(crate) async fn send_with_descriptor(&self, frame: &[u8], descriptor: OwnedFd) -> io::Result<()> {
        let Stream::Unix(unix) = &*self.stream else {
            return Err(io::Error::other("descriptors need a Unix socket"));
        };
        let _turn = self.turn.lock().await;
        timeout(WRITE_DEADLINE, async {
            let send = || send_with_descriptor(unix.as_fd(), frame, descriptor.as_fd());
            // Most sends succeed at once; `async_io` would first wait for the reactor's readiness.
            let sent = unix.async_io(Interest::WRITABLE, send).await?;
            self.write_all(&frame[sent..]).await
        })
        .await?
    }

    /// Sends frames whose payloads end with ranges of a file, without copying them through this process. Takes a thread of
    /// the blocking pool while the other side takes bytes, because the file may have to be read from a disk; one who takes
    /// nothing must not keep the threads from others.
    ///
    /// After [`SendFileError::File`] the connection is in step as soon as the caller has sent the rest of the frame under way,
    /// with [`FrameWriter::send`], and the frames after it.
    pub(crate) async fn send_file(
        &self,
        file: Arc<impl AsFd + Send + Sync + 'static>,
        frames: Vec<FileFrame>,
    ) -> Result<(), SendFileError> {
        let _turn = self.turn.lock().await;
        let mut frames = VecDeque::from(frames);
        let mut file_bytes = 0;
        loop {
            let (stream, file) = (Arc::clone(&self.stream), Arc::clone(&file));
            let work = move || {
                while let Some(frame) = frames.front_mut() {
                    if !send_file_frame(&stream, (*file).as_fd(), frame, &mut file_bytes)? {
                        break;
                    }
                    frames.pop_front();
                }
                Ok::<_, SendFileError>((frames, file_bytes))
            };
            (frames, file_bytes) = tokio::task::spawn_blocking(work)
                .await
                .map_err(io::Error::other)??;
            if frames.is_empty() {
                return Ok(());
            }
            timeout(WRITE_DEADLINE, self.stream.writable())
                .await
                .map_err(io::Error::from)??;
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stream.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A frame whose payload ends with a range of a file.
#[derive(Debug)]
pub(crate) struct FileFrame {
    /// The header, and what of the payload comes before the file's bytes.
    pub(crate) head: Vec<u8>,
    /// Where the range begins in the file.
    pub(crate) offset: u64,
    /// Its length in bytes.
    pub(crate) length: u64,
}

/// Why a file's ranges were not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendFileError {
    /// The connection failed, and must be closed.
    #[error(transparent)]
    Stream(#[from] io::Error),
    /// The file could not be read.
    #[error("reading the file failed: {errno}")]
    File {
        /// Why; `ENODATA` if it ended too early.
        errno: Errno,
        /// How many of the file's bytes were sent, those of all frames together. The last frame's head was.
        sent: u64,
    },
}

impl SendFileError {
    fn of(error: io::Error, sent: u64) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(errno) if is_of_file(errno) => Self::File { errno, sent },
            _ => Self::Stream(error),
        }
    }
}

/// Sends what is left of a frame, leaves in it what is left then, and adds to `file_bytes` what of the file was sent. True:
/// all was. Gives up, for now, when the socket stays full for [`FULL_PATIENCE_MS`].
fn send_file_frame(
    stream: &Stream,
    file: BorrowedFd<'_>,
    frame: &mut FileFrame,
    file_bytes: &mut u64,
) -> Result<bool, SendFileError> {
    while !frame.head.is_empty() || frame.length > 0 {
        let left = frame.length;
        let sent = match send_piece(stream, file, frame) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if is_writable_soon(stream)? {
                    continue;
                }
                // Once more, so that Tokio sees it full and waits until it is not.
                match stream.try_write_io(|| send_piece(stream, file, frame)) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    sent => sent,
                }
            }
            sent => sent,
        };
        *file_bytes += left - frame.length;
        match sent {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return Err(SendFileError::of(error, *file_bytes));
            }
            _ => {}
        }
    }
    Ok(true)
}

/// Sends as much of a frame as the socket takes at once.
fn send_piece(stream: &Stream, file: BorrowedFd<'_>, frame: &mut FileFrame) -> io::Result<()> {
    if !frame.head.is_empty() {
        let sent = send(stream.as_fd().as_raw_fd(), &frame.head, MsgFlags::MSG_NOSIGNAL)?;
        frame.head.drain(..sent);
        return Ok(());
    }
    let mut position = i64::try_from(frame.offset).map_err(io::Error::other)?;
    match sendfile64(stream.as_fd(), file, Some(&mut position), frame.length as usize)? {
        0 => Err(Errno::ENODATA.into()),
        sent => {
            frame.offset += sent as u64;
            frame.length -= sent as u64;
            Ok(())
        }
    }
}

/// Whether an error of `sendfile` is one that disks and file systems have, and sockets have not.
fn is_of_file(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EIO
            | Errno::ENODATA
            | Errno::ENOLINK
            | Errno::EREMOTEIO
            | Errno::EBADE
            | Errno::EILSEQ
            | Errno::ENODEV
            | Errno::ENXIO
            | Errno::EUCLEAN
            | Errno::EBADMSG
            | Errno::ESTALE
    )
}

fn is_writable_soon(stream: &Stream) -> io::Result<bool> {
    let mut poll_fd = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut poll_fd, FULL_PATIENCE_MS) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachelet_protocol::wire::{Ack, encode};
    use std::io::{Read, Write};

    fn pair() -> (std::os::unix::net::UnixStream, Arc<Stream>) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (
            ours,
            Arc::new(Stream::Unix(UnixStream::from_std(theirs).unwrap())),
        )
    }

    #[tokio::test]
    async fn frames_come_out_whole_however_they_arrive() {
        let (mut sender, stream) = pair();
        let mut reader = FrameReader::new(stream);
        let mut bytes = encode(&Ack { count: 1 }, 0, 1);
        bytes.extend(encode(&Ack { count: 2 }, 0, 2));
        let sending = std::thread::spawn(move || {
            for byte in &bytes {
                sender.write_all(&[*byte]).unwrap();
            }
        });
        for request in 1..=2 {
            let (header, payload) = reader.next().await.unwrap().unwrap();
            assert_eq!((header.request, payload.len()), (request, 2));
        }
        assert!(reader.next().await.unwrap().is_none());
        sending.join().unwrap();
    }

    #[tokio::test]
    async fn a_frame_that_claims_too_much_is_refused_before_it_is_read() {
        let (mut sender, stream) = pair();
        sender
            .write_all(
                &FrameHeader {
                    length: u32::MAX,
                    kind: 2,
                    flags: 0,
                    request: 1,
                }
                .to_bytes(),
            )
            .unwrap();
        assert!(matches!(
            FrameReader::new(stream).next().await,
            Err(ReadError::Frame(_))
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_never_ends_is_given_up() {
        let (mut sender, stream) = pair();
        sender.write_all(&[1]).unwrap();
        assert!(matches!(
            FrameReader::new(stream).next().await,
            Err(ReadError::Stalled)
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_is_given_up() {
        let (sender, stream) = pair();
        let writer = FrameWriter::new(stream);
        let frame = encode(&Ack { count: 1 }, 0, 1);
        let refused = loop {
            if let Err(error) = writer.send(&frame).await {
                break error;
            }
        };
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        drop(sender);
    }

    #[tokio::test]
    async fn a_file_range_arrives_behind_its_head() {
        let (mut receiver, stream) = pair();
        let file: std::fs::File =
            nix::sys::memfd::memfd_create(c"send-file", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
                .unwrap()
                .into();
        let content: Vec<u8> = (0..3_000_000_u32).map(|at| at as u8).collect();
        (&file).write_all(&content).unwrap();
        let receiving = std::thread::spawn(move || {
            let mut all = vec![0; 4 + 2_000_000];
            receiver.read_exact(&mut all).unwrap();
            all
        });
        let writer = FrameWriter::new(stream);
        let frame = FileFrame {
            head: b"head".to_vec(),
            offset: 500_000,
            length: 2_000_000,
        };
        writer.send_file(Arc::new(file), vec![frame]).await.unwrap();
        let all = receiving.join().unwrap();
        assert_eq!(&all[..4], b"head");
        assert!(all[4..] == content[500_000..2_500_000]);
    }

    #[tokio::test]
    async fn a_file_that_ends_too_early_says_how_much_of_it_was_sent() {
        let (receiver, stream) = pair();
        let file: std::fs::File =
            nix::sys::memfd::memfd_create(c"send-file", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
                .unwrap()
                .into();
        (&file).write_all(&[7; 1500]).unwrap();
        let frames = [0, 1000].map(|offset| FileFrame {
            head: b"head".to_vec(),
            offset,
            length: 1000,
        });
        let outcome = FrameWriter::new(stream)
            .send_file(Arc::new(file), frames.into())
            .await;
        assert!(
            matches!(outcome, Err(SendFileError::File { sent: 1500, .. })),
            "{outcome:?}"
        );
        drop(receiver);
    }
}
