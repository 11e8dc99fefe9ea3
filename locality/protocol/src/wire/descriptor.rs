//! Descriptors beside frames on a Unix stream socket.
//!
//! The kernel hands a descriptor to the `recvmsg` that takes the first byte sent with it, and a plain frame sent before
//! may arrive glued to that one. So descriptors are queued in arrival order and the n-th frame with
//! [`FLAG_DESCRIPTOR`](super::FLAG_DESCRIPTOR) takes the n-th. A surplus or a lack of descriptors means that the two sides no
//! longer agree: everything is closed and the connection is given up.

#![allow(
    unsafe_code,
    reason = "descriptors arrive as bare numbers; they are owned at once"
)]

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

use super::frame::{FrameError, FrameHeader, HEADER_BYTES};

/// Descriptors the kernel passes in one message at most (`SCM_MAX_FD`, Linux `include/net/scm.h`).
const SCM_MAX_FD: usize = 253;
/// Read at once; larger payloads are read straight into their own buffer.
const BUFFER_BYTES: usize = 16 << 10;

/// Sends the beginning of `bytes` together with `descriptor`, and says how much of `bytes` went out (at least 1).
///
/// Never blocks longer than the socket does; `WouldBlock` on a non-blocking socket whose buffer is full. The rest of
/// `bytes` follows by ordinary writes. `ETOOMANYREFS` means that too many descriptors of this user are in flight.
pub fn send_with_descriptor(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: BorrowedFd<'_>,
) -> io::Result<usize> {
    let descriptors = [descriptor.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&descriptors)];
    loop {
        match sendmsg::<UnixAddr>(
            socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Descriptors and frames that do not pair up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// A frame says that it carries a descriptor and none came: the receiver is at its descriptor limit
    /// (`RLIMIT_NOFILE`), or a security policy such as `SELinux` removed it.
    #[error("a descriptor did not arrive: descriptor limit reached, or removed by a security policy")]
    Missing,
    /// A descriptor came that no frame claims.
    #[error("a descriptor arrived that no frame claims")]
    Surplus,
}

/// Why no frame could be received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The other side closed the connection between two frames.
    #[error("the connection was closed")]
    Closed,
    /// The socket failed, or the other side closed it within a frame.
    #[error("receiving a frame failed: {0}")]
    Io(#[from] io::Error),
    /// What arrived is no frame of this protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Descriptors and frames do not pair up.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
}

/// A frame as it arrived.
#[derive(Debug)]
pub struct ReceivedFrame {
    /// Its header.
    pub header: FrameHeader,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Its descriptor, where the header says that it carries one.
    pub descriptor: Option<OwnedFd>,
}

/// Receives frames, with their descriptors, from a blocking Unix stream socket.
#[derive(Debug)]
pub struct FrameReceiver {
    socket: UnixStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    descriptors: VecDeque<OwnedFd>,
    /// The kernel dropped a descriptor that was sent (`MSG_CTRUNC`).
    truncated: bool,
}

impl FrameReceiver {
    /// Receives from `socket`.
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            descriptors: VecDeque::new(),
            truncated: false,
        }
    }

    /// Whether bytes are buffered, so that polling the socket alone would overlook a frame.
    pub fn has_buffered(&self) -> bool {
        self.start != self.end
    }

    /// Waits for the next frame. After an error the connection must be dropped; descriptors that were queued are closed
    /// with the receiver.
    pub fn receive(&mut self) -> Result<ReceivedFrame, ReceiveError> {
        while self.end - self.start < HEADER_BYTES {
            let closed_between_frames = self.start == self.end;
            if self.fill()? == 0 {
                return Err(if closed_between_frames {
                    ReceiveError::Closed
                } else {
                    ReceiveError::Io(io::ErrorKind::UnexpectedEof.into())
                });
            }
        }
        let mut header_bytes = [0; HEADER_BYTES];
        header_bytes.copy_from_slice(&self.buffer[self.start..self.start + HEADER_BYTES]);
        let header = FrameHeader::from_bytes(&header_bytes)?;
        self.start += HEADER_BYTES;
        let payload = self.payload(header.length as usize)?;
        let descriptor = self.pair(header)?;
        Ok(ReceivedFrame {
            header,
            payload,
            descriptor,
        })
    }

    fn payload(&mut self, length: usize) -> Result<Vec<u8>, ReceiveError> {
        let mut payload = vec![0; length];
        let buffered = length.min(self.end - self.start);
        payload[..buffered].copy_from_slice(&self.buffer[self.start..self.start + buffered]);
        self.start += buffered;
        let mut filled = buffered;
        while filled < length {
            // A descriptor comes with its frame's first byte, but a frame may follow within what is left to read: so
            // the rest goes through `recvmsg` too, unless it is so long that nothing else can be in one read.
            let rest = &mut payload[filled..];
            let received = if rest.len() >= BUFFER_BYTES {
                self.socket.read(rest)?
            } else {
                let count = self.fill()?;
                let taken = count.min(rest.len());
                rest[..taken].copy_from_slice(&self.buffer[self.start..self.start + taken]);
                self.start += taken;
                taken
            };
            if received == 0 {
                return Err(ReceiveError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            filled += received;
        }
        Ok(payload)
    }

    fn pair(&mut self, header: FrameHeader) -> Result<Option<OwnedFd>, DescriptorError> {
        let descriptor = match (header.has_descriptor(), self.truncated) {
            (false, _) => None,
            (true, true) => return Err(DescriptorError::Missing),
            (true, false) => Some(self.descriptors.pop_front().ok_or(DescriptorError::Missing)?),
        };
        // Everything received has been consumed, so whatever is still queued belongs to no frame.
        if self.start == self.end && !self.descriptors.is_empty() {
            return Err(DescriptorError::Surplus);
        }
        Ok(descriptor)
    }

    /// Reads once into the buffer, and takes the descriptors that come along. 0: the other side closed.
    fn fill(&mut self) -> io::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut control = nix::cmsg_space!([RawFd; SCM_MAX_FD]);
        let mut target = [IoSliceMut::new(&mut self.buffer[self.end..])];
        let message = loop {
            let received = recvmsg::<UnixAddr>(
                self.socket.as_raw_fd(),
                &mut target,
                Some(&mut control),
                MsgFlags::MSG_CMSG_CLOEXEC,
            );
            match received {
                Err(Errno::EINTR) => {}
                result => break result?,
            }
        };
        // With one descriptor a message, a truncated message has installed none (held by
        // `a_receiver_at_its_descriptor_limit_reports_a_missing_descriptor`), so nothing leaks here.
        if message.flags.contains(MsgFlags::MSG_CTRUNC) {
            self.truncated = true;
        } else {
            for control_message in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(descriptors) = control_message {
                    for descriptor in descriptors {
                        // SAFETY: the kernel has just installed this descriptor for us alone; nothing else owns it.
                        // Held by `descriptors_pair_with_their_frames_in_order`.
                        self.descriptors
                            .push_back(unsafe { OwnedFd::from_raw_fd(descriptor) });
                    }
                }
            }
        }
        let received = message.bytes;
        self.end += received;
        Ok(received)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, Write};
    use std::os::fd::AsFd;

    use super::*;
    use crate::wire::{Ack, FLAG_DESCRIPTOR, FrameKind, encode};

    fn file_with(text: &str) -> File {
        let mut file = tempfile();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        file
    }

    fn tempfile() -> File {
        nix::sys::memfd::memfd_create(c"descriptor-test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
            .unwrap()
            .into()
    }

    fn text_of(descriptor: OwnedFd) -> String {
        let mut text = String::new();
        File::from(descriptor).read_to_string(&mut text).unwrap();
        text
    }

    fn send(socket: &mut UnixStream, frame: &[u8], descriptor: Option<&File>) {
        let sent = match descriptor {
            Some(file) => send_with_descriptor(socket.as_fd(), frame, file.as_fd()).unwrap(),
            None => 0,
        };
        socket.write_all(&frame[sent..]).unwrap();
    }

    fn ack(flags: u8, request: u32) -> Vec<u8> {
        encode(&Ack { count: 1 }, flags, request)
    }

    #[test]
    fn descriptors_pair_with_their_frames_in_order() {
        let (mut sender, receiver) = UnixStream::pair().unwrap();
        let mut receiver = FrameReceiver::new(receiver);
        // A plain frame before a flagged one arrives glued to it.
        send(&mut sender, &ack(0, 1), None);
        send(&mut sender, &ack(FLAG_DESCRIPTOR, 2), Some(&file_with("two")));
        send(&mut sender, &ack(FLAG_DESCRIPTOR, 3), Some(&file_with("three")));
        send(&mut sender, &ack(0, 4), None);
        let mut seen = Vec::new();
        for _ in 0..4 {
            let frame = receiver.receive().unwrap();
            assert_eq!(frame.header.known_kind(), Some(FrameKind::Ack));
            seen.push((frame.header.request, frame.descriptor.map(text_of)));
        }
        assert_eq!(
            seen,
            [
                (1, None),
                (2, Some("two".into())),
                (3, Some("three".into())),
                (4, None)
            ]
        );
        drop(sender);
        assert!(matches!(receiver.receive(), Err(ReceiveError::Closed)));
    }

    #[test]
    fn a_descriptor_survives_its_frame_arriving_byte_by_byte() {
        let (mut sender, receiver) = UnixStream::pair().unwrap();
        let frame = ack(FLAG_DESCRIPTOR, 7);
        let file = file_with("slow");
        let sending = std::thread::spawn(move || {
            assert_eq!(
                send_with_descriptor(sender.as_fd(), &frame[..1], file.as_fd()).unwrap(),
                1
            );
            frame[1..]
                .iter()
                .for_each(|byte| sender.write_all(&[*byte]).unwrap());
        });
        let mut receiver = FrameReceiver::new(receiver);
        assert_eq!(
            receiver.receive().unwrap().descriptor.map(text_of).as_deref(),
            Some("slow")
        );
        sending.join().unwrap();
    }

    #[test]
    fn a_long_payload_between_descriptors_keeps_the_order() {
        let (mut sender, receiver) = UnixStream::pair().unwrap();
        let length = 900_000;
        let header = FrameHeader {
            length,
            kind: FrameKind::Data as u8,
            flags: 0,
            request: 1,
        };
        let mut data = header.to_bytes().to_vec();
        data.extend((0..length).map(|at| at as u8));
        let expected = data[HEADER_BYTES..].to_vec();
        let sending = std::thread::spawn(move || {
            send(&mut sender, &data, None);
            send(&mut sender, &ack(FLAG_DESCRIPTOR, 2), Some(&file_with("after")));
            sender
        });
        let mut receiver = FrameReceiver::new(receiver);
        assert_eq!(receiver.receive().unwrap().payload, expected);
        assert_eq!(
            receiver.receive().unwrap().descriptor.map(text_of).as_deref(),
            Some("after")
        );
        sending.join().unwrap();
    }

    #[test]
    fn a_surplus_and_a_missing_descriptor_end_the_connection() {
        let (mut sender, receiver) = UnixStream::pair().unwrap();
        send(&mut sender, &ack(0, 1), Some(&file_with("nobody's")));
        assert!(matches!(
            FrameReceiver::new(receiver).receive(),
            Err(ReceiveError::Descriptor(DescriptorError::Surplus))
        ));
        let (mut sender, receiver) = UnixStream::pair().unwrap();
        send(&mut sender, &ack(FLAG_DESCRIPTOR, 1), None);
        assert!(matches!(
            FrameReceiver::new(receiver).receive(),
            Err(ReceiveError::Descriptor(DescriptorError::Missing))
        ));
    }

    #[test]
    fn a_receiver_at_its_descriptor_limit_reports_a_missing_descriptor() {
        // In a child process: the limit is the process's, and other tests open files.
        const CHILD: &str = "CACHELET_TEST_DESCRIPTOR_LIMIT";
        if std::env::var_os(CHILD).is_none() {
            let name =
                "wire::descriptor::tests::a_receiver_at_its_descriptor_limit_reports_a_missing_descriptor";
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args([name, "--exact", "--test-threads=1"])
                .env(CHILD, "1")
                .output()
                .unwrap();
            assert!(
                child.status.success(),
                "{}",
                String::from_utf8_lossy(&child.stdout)
            );
            return;
        }
        let (mut sender, receiver) = UnixStream::pair().unwrap();
        let file = file_with("no room");
        let highest = receiver.as_raw_fd().max(file.as_raw_fd()).max(sender.as_raw_fd());
        let mut fillers = Vec::new();
        loop {
            let filler = File::open("/dev/null").unwrap();
            let number = filler.as_raw_fd();
            fillers.push(filler);
            if number > highest {
                break;
            }
        }
        let limit = u64::try_from(fillers.last().unwrap().as_raw_fd()).unwrap() + 1;
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, limit, limit).unwrap();
        send(&mut sender, &ack(FLAG_DESCRIPTOR, 1), Some(&file));
        let mut receiver = FrameReceiver::new(receiver);
        assert!(matches!(
            receiver.receive(),
            Err(ReceiveError::Descriptor(DescriptorError::Missing))
        ));
        drop(fillers.pop());
        let next = u64::try_from(File::open("/dev/null").unwrap().as_raw_fd()).unwrap();
        assert_eq!(next, limit - 1, "nothing was installed");
    }

    #[test]
    fn a_connection_that_ends_within_a_frame_is_an_error_and_no_frame() {
        let (mut sender, receiver) = UnixStream::pair().unwrap();
        let frame = ack(0, 1);
        sender.write_all(&frame[..frame.len() - 1]).unwrap();
        drop(sender);
        assert!(matches!(
            FrameReceiver::new(receiver).receive(),
            Err(ReceiveError::Io(_))
        ));
    }
}
