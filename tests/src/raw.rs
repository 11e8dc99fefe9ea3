//! A client of the local protocol that keeps what it is asked to give back: it acknowledges, releases and drops only when
//! the test says so.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::Worker;
use cachelet_protocol::block::{BlockIndex, PageSet};
use cachelet_protocol::ids::{FileId, Handle, SessionId};
use cachelet_protocol::wire::{
    Ack, Bypass, FOLLOWS_GRANT, Fill, FrameHeader, FrameReceiver, Granted, Hello, Message, Open, Opened,
    Payload, Priority, Read, ReceiveError, ReceivedFrame, RequestId, Role, VERSION, Welcome, encode,
};

/// How long the daemon may take to answer.
const DEADLINE: Duration = Duration::from_secs(30);

/// A descriptor and what was said about it.
#[derive(Debug)]
pub struct RawGrant {
    /// What was said.
    pub granted: Granted,
    /// The descriptor.
    pub descriptor: OwnedFd,
}

/// A control connection, after its welcome.
#[derive(Debug)]
pub struct RawSession {
    socket: UnixStream,
    receiver: FrameReceiver,
    last_request: RequestId,
    /// How the daemon greeted it.
    pub welcome: Welcome,
    socket_path: PathBuf,
}

/// The worker's domain socket.
pub fn socket_of(worker: &Worker) -> PathBuf {
    let entries = std::fs::read_dir(worker.socket_dir()).expect("the socket directory is there");
    let is_socket = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|metadata| metadata.file_type().is_socket())
    };
    // A worker that was killed leaves its socket behind; nobody listens there any more.
    entries
        .map(|entry| entry.expect("the directory can be listed").path())
        .filter(is_socket)
        .find(|path| UnixStream::connect(path).is_ok())
        .expect("the worker listens")
}

/// A connection to the worker on which nothing was said yet.
pub fn connect(worker: &Worker) -> UnixStream {
    connect_to(&socket_of(worker))
}

fn connect_to(path: &PathBuf) -> UnixStream {
    let socket = UnixStream::connect(path).expect("the worker accepts");
    socket
        .set_read_timeout(Some(DEADLINE))
        .and_then(|()| socket.set_write_timeout(Some(DEADLINE)))
        .expect("sockets have timeouts");
    socket
}

/// What a client of this version says first.
pub fn hello(role: Role) -> Hello {
    Hello {
        min_version: VERSION,
        max_version: VERSION,
        features: 0,
        role,
        session: SessionId(0),
        session_secret: [0; 16],
        client: "a test".to_owned(),
        application: String::new(),
        pod: String::new(),
        pod_ip: String::new(),
        token: String::new(),
    }
}

impl RawSession {
    /// Connects to the worker and says hello.
    pub fn begin(worker: &Worker) -> Self {
        let path = socket_of(worker);
        let (socket, receiver, welcome) = greet(&path, &hello(Role::Control));
        Self {
            socket,
            receiver,
            last_request: 1,
            welcome,
            socket_path: path,
        }
    }

    /// Its socket alone, which keeps the session alive.
    pub fn into_socket(self) -> UnixStream {
        self.socket
    }

    /// Sends a request, and says under which number.
    pub fn send(&mut self, message: &impl Payload) -> RequestId {
        self.last_request += 1;
        self.send_bytes(&encode(message, 0, self.last_request));
        self.last_request
    }

    /// Sends bytes, frames or not.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("the daemon reads");
    }

    /// The next frame that answers a request: what the daemon says unasked is passed over.
    pub fn answer(&mut self, request: RequestId) -> (Message, Option<OwnedFd>) {
        loop {
            let ReceivedFrame {
                header,
                payload,
                descriptor,
            } = self.receiver.receive().expect("the daemon answers");
            if header.request == 0 {
                continue;
            }
            assert_eq!(header.request, request, "replies come to one request at a time");
            let kind = header.known_kind().expect("a kind of this version");
            let message = Message::decode(kind, &payload)
                .expect("a message")
                .expect("a message that can be read");
            return (message, descriptor);
        }
    }

    fn grant_or_bypass(&mut self, request: RequestId) -> Result<RawGrant, Bypass> {
        match self.answer(request) {
            (Message::Granted(granted), Some(descriptor)) => Ok(RawGrant { granted, descriptor }),
            (Message::Bypass(bypass), None) => Err(bypass),
            other => panic!("neither a grant nor a bypass: {other:?}"),
        }
    }

    /// Opens an object that is too big to come inline, with the grant of its first `length` bytes' block.
    pub fn open(&mut self, path: &str, length: u64) -> (Opened, Result<RawGrant, Bypass>) {
        let request = self.send(&Open {
            length,
            flags: 0,
            ..Open::generation_only(path.parse().expect("a valid path"))
        });
        let opened = match self.answer(request) {
            (Message::Opened(opened), None) => opened,
            other => panic!("{path} was not opened: {other:?}"),
        };
        assert_eq!(opened.follows, FOLLOWS_GRANT, "{path} is too big to come inline");
        let grant = self.grant_or_bypass(request);
        (opened, grant)
    }

    /// Sends a demand for pages of a block, without waiting for the answer.
    pub fn demand(&mut self, handle: Handle, block: BlockIndex, held: FileId, pages: PageSet) -> RequestId {
        self.send(&Fill {
            handle,
            block,
            file_id: held,
            pages,
            priority: Priority::Demand,
        })
    }

    /// Demands pages of a block of which the session holds no file, or another one than the present.
    pub fn fill(
        &mut self,
        handle: Handle,
        block: BlockIndex,
        held: FileId,
        pages: PageSet,
    ) -> Result<RawGrant, Bypass> {
        let request = self.demand(handle, block, held, pages);
        self.grant_or_bypass(request)
    }

    /// Says that descriptors have arrived.
    pub fn acknowledge(&mut self, count: u16) {
        let frame = encode(&Ack { count }, 0, 0);
        self.send_bytes(&frame);
    }

    /// Bytes of an open object over a data connection of this session.
    pub fn read_inline(&self, handle: Handle, offset: u64, length: u64) -> Vec<u8> {
        let hello = Hello {
            session: self.welcome.session,
            session_secret: self.welcome.session_secret,
            ..hello(Role::Data)
        };
        let (mut socket, mut receiver, _) = greet(&self.socket_path, &hello);
        let read = Read {
            handle,
            offset,
            length,
            peer: None,
            flags: 0,
        };
        socket.write_all(&encode(&read, 0, 2)).expect("the daemon reads");
        let mut bytes = Vec::new();
        loop {
            let frame = receiver.receive().expect("the daemon answers");
            let kind = frame.header.known_kind().expect("a kind of this version");
            assert!(
                kind.carries_bytes(),
                "not bytes but {:?}",
                Message::decode(kind, &frame.payload)
            );
            bytes.extend_from_slice(&frame.payload);
            if !frame.header.has_more() {
                return bytes;
            }
        }
    }
}

/// Whether a connection has ended rather than said something.
pub fn is_over(received: &Result<ReceivedFrame, ReceiveError>) -> bool {
    match received {
        Err(ReceiveError::Closed) => true,
        // The daemon closed with bytes of ours unread.
        Err(ReceiveError::Io(error)) => error.kind() == std::io::ErrorKind::ConnectionReset,
        Ok(_) | Err(ReceiveError::Frame(_) | ReceiveError::Descriptor(_)) => false,
    }
}

/// A frame of a kind that no version has.
pub fn unknown_request(request: RequestId) -> Vec<u8> {
    let header = FrameHeader {
        length: 3,
        kind: 250,
        flags: 0,
        request,
    };
    [&header.to_bytes()[..], b"abc"].concat()
}

fn greet(path: &PathBuf, hello: &Hello) -> (UnixStream, FrameReceiver, Welcome) {
    let mut socket = connect_to(path);
    socket.write_all(&encode(hello, 0, 1)).expect("the daemon reads");
    let mut receiver = FrameReceiver::new(socket.try_clone().expect("a descriptor is left"));
    let frame = receiver.receive().expect("the daemon answers");
    let kind = frame.header.known_kind().expect("a kind of this version");
    match Message::decode(kind, &frame.payload) {
        Some(Ok(Message::Welcome(welcome))) => (socket, receiver, welcome),
        other => panic!("no welcome but {other:?}"),
    }
}
