//! The socket under a connection: Unix or TCP, with one way to connect, send and receive.
//!
//! Everything is sent with `MSG_NOSIGNAL`: this crate lives in processes whose signal handlers are not ours.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use cachelet_protocol::wire::{FrameHeader, FrameReceiver, HEADER_BYTES, ReceiveError, ReceivedFrame};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, setsockopt, socket, sockopt,
};
use nix::sys::stat::Mode;
use nix::sys::time::{TimeVal, TimeValLike};

use crate::deadline::Deadline;
use crate::error::Error;

/// Longest path that fits into a Unix socket address (`sockaddr_un.sun_path` without its final zero).
pub(crate) const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Receive buffer of a data connection. On Unix sockets the daemon's send buffer counts; it does the same.
pub(crate) const DATA_BUFFER_BYTES: usize = 2 << 20;

/// Where a daemon is reached: its control connection and, later, its data connections.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    Unix(std::path::PathBuf),
    Tcp(SocketAddr),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Connects, within the time that is left.
    pub(crate) fn connect(address: &Address, deadline: Deadline) -> Result<Self, ConnectError> {
        // Zero would mean for ever.
        let left = deadline.left().max(Duration::from_millis(1));
        match address {
            Address::Unix(path) => Ok(Self::Unix(connect_unix(path, left)?)),
            Address::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, left)?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    /// Makes room for inline bytes. Not on TCP, where a fixed buffer would turn the kernel's autotuning off.
    pub(crate) fn enlarge_receive_buffer(&self) {
        if let Self::Unix(stream) = self {
            // The kernel caps the size itself; whatever it allows is right.
            let _ = setsockopt(stream, sockopt::RcvBuf, &DATA_BUFFER_BYTES);
        }
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    /// From now on a receive fails that gets nothing within the time that is left now.
    pub(crate) fn set_read_timeout(&self, deadline: Deadline) -> io::Result<()> {
        let left = Some(deadline.left().max(Duration::from_millis(1)));
        match self {
            Self::Unix(stream) => stream.set_read_timeout(left),
            Self::Tcp(stream) => stream.set_read_timeout(left),
        }
    }

    /// Ends the connection for both sides and for every thread that waits on it.
    pub(crate) fn shut_down(&self) {
        // It fails only if the connection is gone already.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }

    /// Sends all of `bytes`, waiting for room until the deadline.
    pub(crate) fn send_all(&self, mut bytes: &[u8], deadline: Deadline) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.send_now(bytes)?;
            bytes = &bytes[sent..];
            if sent == 0 {
                self.wait_for_room(deadline)?;
            }
        }
        Ok(())
    }

    fn wait_for_room(&self, deadline: Deadline) -> io::Result<()> {
        let left = deadline.left();
        if left == Duration::ZERO {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Rounded up, lest the last millisecond is spent spinning.
        let patience = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLOUT)], patience) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends what fits at once, and says how much that was.
    pub(crate) fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            match send(self.as_fd().as_raw_fd(), bytes, flags) {
                Ok(sent) => return Ok(sent),
                Err(Errno::EAGAIN) => return Ok(0),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
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

impl Read for &Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).read(buf),
            Stream::Tcp(stream) => (&*stream).read(buf),
        }
    }
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Path(Error),
    /// Somebody listens there, and will not have us.
    #[error(transparent)]
    Refused(Error),
}

fn connect_unix(path: &Path, timeout: Duration) -> Result<UnixStream, ConnectError> {
    let length = path.as_os_str().as_bytes().len();
    if length <= MAX_SOCKET_PATH_BYTES {
        let address = UnixAddr::new(path).map_err(io::Error::from)?;
        return Ok(connect_to(&address, timeout)?);
    }
    // The directory, opened, gives a short name for the same socket.
    let too_long = || {
        ConnectError::Path(Error::SocketPathTooLong {
            path: path.to_owned(),
            length,
        })
    };
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(too_long());
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = open(directory, flags, Mode::empty()).map_err(io::Error::from)?;
    let short = Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name);
    let address = UnixAddr::new(&short).map_err(|_| too_long())?;
    match connect_to(&address, timeout) {
        Err(error) if !Path::new("/proc/self/fd").exists() => {
            drop(error);
            Err(too_long())
        }
        result => Ok(result?),
    }
}

fn connect_to(address: &UnixAddr, timeout: Duration) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // A Unix connect waits, for as long as a send would, while the daemon's backlog is full.
    let timeout = TimeVal::milliseconds(i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX).max(1));
    setsockopt(&socket, sockopt::SendTimeout, &timeout)?;
    loop {
        match connect(socket.as_raw_fd(), address) {
            Ok(()) | Err(Errno::EISCONN) => return Ok(socket.into()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives frames from a control connection.
pub(crate) enum Receiver {
    Unix(FrameReceiver),
    Tcp(Stream),
}

impl Receiver {
    pub(crate) fn new(stream: Stream) -> Self {
        match stream {
            Stream::Unix(stream) => Self::Unix(FrameReceiver::new(stream)),
            tcp @ Stream::Tcp(_) => Self::Tcp(tcp),
        }
    }

    pub(crate) fn has_buffered(&self) -> bool {
        match self {
            Self::Unix(receiver) => receiver.has_buffered(),
            Self::Tcp(_) => false,
        }
    }

    pub(crate) fn receive(&mut self) -> Result<ReceivedFrame, ReceiveError> {
        match self {
            Self::Unix(receiver) => receiver.receive(),
            Self::Tcp(stream) => {
                let header = receive_header(stream)?;
                let mut payload = vec![0; header.length as usize];
                read_exact(stream, &mut payload)?;
                Ok(ReceivedFrame {
                    header,
                    payload,
                    descriptor: None,
                })
            }
        }
    }
}

/// Receives a frame's header from a connection without descriptors.
pub(crate) fn receive_header(stream: &Stream) -> Result<FrameHeader, ReceiveError> {
    let mut bytes = [0; HEADER_BYTES];
    let mut filled = 0;
    while filled < HEADER_BYTES {
        match { stream }.read(&mut bytes[filled..]) {
            Ok(0) if filled == 0 => return Err(ReceiveError::Closed),
            Ok(0) => return Err(ReceiveError::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(received) => filled += received,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(FrameHeader::from_bytes(&bytes)?)
}

pub(crate) fn read_exact(stream: &Stream, buf: &mut [u8]) -> io::Result<()> {
    { stream }.read_exact(buf)
}
