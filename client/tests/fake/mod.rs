//! A small daemon for tests: speaks the wire protocol from a model of a few objects, and misbehaves on request.
//!
//! It keeps block files as the real one does (sparse, data behind a header, pages only where they are "present"), so a
//! client that reads what is not there reads zeros, and the test sees it.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "tests; clippy knows only their functions")]

pub(crate) mod scene;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cachelet_client::{Client, Options, Target};
use cachelet_protocol::block::{BlockIndex, BlockSize, CHUNK_BYTES, PAGE_BYTES, PageSet};
use cachelet_protocol::ids::{
    Epoch, Etag, FileId, Generation, Handle, NodeName, ObjectPath, SessionId, WorkerUuid,
};
use cachelet_protocol::integrity::crc32c;
use cachelet_protocol::wire::{
    self, Bypass, BypassReason, Code, FLAG_DESCRIPTOR, FLAG_MORE, FOLLOWS_DATA, FOLLOWS_GRANT,
    FOLLOWS_NOTHING, FREE_DRY_RUN, FREE_PREFIX, Failed, FrameHeader, FrameKind, Freed, GrantStatus, Granted,
    HEADER_BYTES, Invalidated, Message, OPEN_NO_DATA, OPEN_NO_GRANT, Opened, Payload, Priority, Ready,
    RequestId, Role, Tallied, Welcome,
};

pub(crate) const DATA_OFFSET: u64 = 64 << 10;
pub(crate) const CRC_OFFSET: u64 = 8 << 10;
const SECRET: [u8; 16] = [9; 16];

/// Longest wait for anything in a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes that differ from place to place and are never zero.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8 | 1
        })
        .collect()
}

pub(crate) struct BlockFile {
    pub(crate) file: File,
    pub(crate) id: FileId,
    pub(crate) present: PageSet,
}

pub(crate) struct ModelObject {
    pub(crate) generation: Generation,
    pub(crate) bytes: Arc<Vec<u8>>,
}

/// What the daemon has and how it behaves.
pub(crate) struct Model {
    pub(crate) block_size: BlockSize,
    pub(crate) inline_bytes: u32,
    pub(crate) grants: GrantStatus,
    pub(crate) max_held_bytes: u64,
    pub(crate) max_unacknowledged: u16,
    pub(crate) idle_close_seconds: u32,
    /// Whether a grant comes with every page present, or only with those asked for.
    pub(crate) warm: bool,
    pub(crate) objects: HashMap<ObjectPath, ModelObject>,
    pub(crate) blocks: HashMap<(ObjectPath, BlockIndex), BlockFile>,
    pub(crate) worker: WorkerUuid,
    pub(crate) features: u64,
    next_file: u64,
}

impl Model {
    pub(crate) fn put(&mut self, path: &str, etag: &str, bytes: Vec<u8>) {
        let path: ObjectPath = path.parse().unwrap();
        self.blocks.retain(|(other, _), _| *other != path);
        let generation = Generation {
            etag: Etag::new(etag).unwrap(),
            size_bytes: bytes.len() as u64,
        };
        self.objects.insert(
            path,
            ModelObject {
                generation,
                bytes: Arc::new(bytes),
            },
        );
    }

    /// Unlinks a block's file: the next grant is of another one.
    pub(crate) fn evict(&mut self, path: &str, block: u32) {
        self.blocks.remove(&(path.parse().unwrap(), BlockIndex(block)));
    }

    pub(crate) fn block(&mut self, path: &ObjectPath, block: BlockIndex) -> &mut BlockFile {
        self.next_file += 1;
        let id = FileId(1 << 32 | self.next_file);
        let whole = PageSet::all(
            self.block_size
                .length_of(block, self.objects[path].generation.size_bytes),
        );
        let warm = self.warm;
        let created = !self.blocks.contains_key(&(path.clone(), block));
        self.blocks
            .entry((path.clone(), block))
            .or_insert_with(|| BlockFile {
                file: tempfile::tempfile().unwrap(),
                id,
                present: PageSet::EMPTY,
            });
        if created && warm {
            self.bring_in(path, block, whole);
        }
        self.blocks.get_mut(&(path.clone(), block)).unwrap()
    }

    /// Writes pages into a block's file.
    pub(crate) fn bring_in(&mut self, path: &ObjectPath, block: BlockIndex, pages: PageSet) {
        let object = &self.objects[path];
        let start = self.block_size.start_of(block) as usize;
        let length = self.block_size.length_of(block, object.generation.size_bytes);
        let bytes = Arc::clone(&object.bytes);
        let bytes = &bytes[start..start + length as usize];
        let file = self.blocks.get_mut(&(path.clone(), block)).unwrap();
        for page in pages.intersection(PageSet::all(length)).iter() {
            let from = page.start() as usize;
            let page_bytes = &bytes[from..from + page.length_in(length) as usize];
            file.file
                .write_all_at(page_bytes, DATA_OFFSET + from as u64)
                .unwrap();
            for (chunk, chunk_bytes) in page_bytes.chunks(CHUNK_BYTES as usize).enumerate() {
                let index = from as u64 / CHUNK_BYTES + chunk as u64;
                let crc = crc32c(chunk_bytes).to_le_bytes();
                file.file.write_all_at(&crc, CRC_OFFSET + 4 * index).unwrap();
            }
            file.present.insert(page);
        }
        file.file.set_len(DATA_OFFSET + length).unwrap();
    }

    fn granted(
        &mut self,
        handle: Handle,
        path: &ObjectPath,
        block: BlockIndex,
        pages: PageSet,
    ) -> (Granted, File) {
        let length = self
            .block_size
            .length_of(block, self.objects[path].generation.size_bytes);
        self.block(path, block);
        self.bring_in(path, block, pages);
        let file = &self.blocks[&(path.clone(), block)];
        let granted = Granted {
            handle,
            block,
            file_id: file.id,
            data_offset: DATA_OFFSET,
            crc_offset: CRC_OFFSET,
            length,
            present: file.present,
        };
        (granted, file.file.try_clone().unwrap())
    }
}

/// What a hook does with a request.
#[derive(PartialEq, Eq)]
pub(crate) enum Answer {
    /// As a good daemon would.
    Good,
    /// The hook has answered, or will not.
    Done,
    /// The connection is closed.
    Close,
}

type Hook = Box<dyn FnMut(&mut Replier, RequestId, &Message) -> Answer + Send>;

struct State {
    model: Mutex<Model>,
    hook: Mutex<Option<Hook>>,
    log: Mutex<Vec<(Role, Message)>>,
    logged: Condvar,
    stopping: AtomicBool,
    connections: Mutex<Vec<Socket>>,
    next_session: AtomicU64,
    handles: Mutex<HashMap<Handle, ObjectPath>>,
    released: Mutex<HashSet<FileId>>,
}

enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    fn try_clone(&self) -> Self {
        match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone().unwrap()),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone().unwrap()),
        }
    }

    fn shut_down(&self) {
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buf),
            Self::Tcp(stream) => stream.read(buf),
        }
    }
}

/// Sends to one client.
pub(crate) struct Replier {
    socket: Socket,
    pub(crate) role: Role,
}

impl Replier {
    pub(crate) fn send<M: Payload>(&mut self, message: &M, request: RequestId) {
        self.raw(&wire::encode(message, 0, request));
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        // The client may be gone.
        let _ = match &mut self.socket {
            Socket::Unix(stream) => stream.write_all(bytes),
            Socket::Tcp(stream) => stream.write_all(bytes),
        };
    }

    pub(crate) fn send_with_file<M: Payload>(
        &mut self,
        message: &M,
        flags: u8,
        request: RequestId,
        file: &File,
    ) {
        let Socket::Unix(stream) = &mut self.socket else {
            panic!("no descriptors over TCP");
        };
        let frame = wire::encode(message, flags, request);
        let sent = wire::send_with_descriptor(stream.as_fd(), &frame, file.as_fd()).unwrap_or(frame.len());
        let _ = stream.write_all(&frame[sent..]);
    }

    pub(crate) fn data(&mut self, bytes: &[u8], flags: u8, request: RequestId) {
        let header = FrameHeader {
            length: bytes.len() as u32,
            kind: FrameKind::Data as u8,
            flags,
            request,
        };
        let mut frame = header.to_bytes().to_vec();
        frame.extend_from_slice(bytes);
        self.raw(&frame);
    }
}

/// See the module's text.
pub(crate) struct FakeDaemon {
    directory: Arc<tempfile::TempDir>,
    socket: PathBuf,
    tcp: SocketAddr,
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

impl FakeDaemon {
    pub(crate) fn start() -> Self {
        let model = Model {
            block_size: BlockSize::new(4 << 20).unwrap(),
            inline_bytes: 16 << 10,
            grants: GrantStatus::Enabled,
            max_held_bytes: u64::MAX,
            max_unacknowledged: 8,
            idle_close_seconds: 60,
            warm: true,
            objects: HashMap::new(),
            blocks: HashMap::new(),
            worker: WorkerUuid::from_bytes([7; 16]),
            features: wire::FEATURES,
            next_file: 0,
        };
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), "worker-a", model)
    }

    pub(crate) fn start_in(directory: Arc<tempfile::TempDir>, name: &str, model: Model) -> Self {
        let socket = directory.path().join(name);
        let unix = UnixListener::bind(&socket).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let state = Arc::new(State {
            model: Mutex::new(model),
            hook: Mutex::default(),
            log: Mutex::default(),
            logged: Condvar::new(),
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
            next_session: AtomicU64::new(1),
            handles: Mutex::default(),
            released: Mutex::default(),
        });
        let accept_unix = {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                while let Ok((stream, _)) = unix.accept() {
                    if state.stopping.load(Ordering::SeqCst) {
                        break;
                    }
                    serve(&state, Socket::Unix(stream));
                }
            })
        };
        let accept_tcp = {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                while let Ok((stream, _)) = tcp.accept() {
                    if state.stopping.load(Ordering::SeqCst) {
                        break;
                    }
                    stream.set_nodelay(true).unwrap();
                    serve(&state, Socket::Tcp(stream));
                }
            })
        };
        Self {
            directory,
            socket,
            tcp: address,
            state,
            threads: vec![accept_unix, accept_tcp],
        }
    }

    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        self.state.model.lock().unwrap()
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn shared_directory(&self) -> Arc<tempfile::TempDir> {
        Arc::clone(&self.directory)
    }

    /// Looks at every request before it is answered.
    pub(crate) fn hook(
        &self,
        hook: impl FnMut(&mut Replier, RequestId, &Message) -> Answer + Send + 'static,
    ) {
        *self.state.hook.lock().unwrap() = Some(Box::new(hook));
    }

    pub(crate) fn unhook(&self) {
        *self.state.hook.lock().unwrap() = None;
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            target: Target::Local {
                socket_dir: self.directory.path().to_owned(),
            },
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            reconnect_backoff: Duration::from_millis(1),
            max_reconnect_backoff: Duration::from_millis(10),
            readahead_bytes: 0,
            ..Options::default()
        }
    }

    pub(crate) fn remote_options(&self) -> Options {
        Options {
            target: Target::Remote {
                address: self.tcp,
                token: "secret".into(),
            },
            ..self.options()
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.options())
    }

    /// All messages so far but hellos.
    pub(crate) fn log(&self) -> Vec<Message> {
        let log = self.state.log.lock().unwrap();
        log.iter().map(|(_, message)| message.clone()).collect()
    }

    pub(crate) fn requests(&self, wanted: impl Fn(&Message) -> bool) -> usize {
        self.log().iter().filter(|message| wanted(message)).count()
    }

    /// Waits until the log satisfies `enough`.
    pub(crate) fn wait_for(&self, what: &str, enough: impl Fn(&[(Role, Message)]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut log = self.state.log.lock().unwrap();
        while !enough(&log) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                left > Duration::ZERO,
                "waited in vain for {what}; the log is {log:#?}"
            );
            log = self.state.logged.wait_timeout(log, left).unwrap().0;
        }
    }

    /// Files that the client said it closed.
    pub(crate) fn released(&self) -> HashSet<FileId> {
        self.state.released.lock().unwrap().clone()
    }

    /// Sends something unasked on every open control connection.
    pub(crate) fn broadcast<M: Payload>(&self, message: &M) {
        for socket in self.state.connections.lock().unwrap().iter() {
            let mut replier = Replier {
                socket: socket.try_clone(),
                role: Role::Control,
            };
            replier.send(message, 0);
        }
    }

    /// Closes every connection; the daemon goes on listening.
    pub(crate) fn cut(&self) {
        let mut connections = self.state.connections.lock().unwrap();
        connections.drain(..).for_each(|socket| socket.shut_down());
    }

    /// Stops as `kill -9` does: the socket's file stays behind, stale.
    pub(crate) fn kill(&mut self) {
        if !self.state.stopping.swap(true, Ordering::SeqCst) {
            let _ = UnixStream::connect(&self.socket);
            let _ = TcpStream::connect(self.tcp);
            self.threads.drain(..).for_each(|thread| thread.join().unwrap());
            self.cut();
        }
    }

    /// Stops, and starts another worker in the same directory with what this one had, but for its files.
    pub(crate) fn restart(&mut self, name: &str) {
        self.kill();
        let mut old = self.model();
        let model = Model {
            objects: std::mem::take(&mut old.objects),
            blocks: HashMap::new(),
            worker: WorkerUuid::from_bytes([8; 16]),
            // Another worker's ids start anew: the same numbers name other files.
            next_file: 0,
            ..*old
        };
        drop(old);
        *self = Self::start_in(Arc::clone(&self.directory), name, model);
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.kill();
    }
}

fn serve(state: &Arc<State>, socket: Socket) {
    state.connections.lock().unwrap().push(socket.try_clone());
    let state = Arc::clone(state);
    std::thread::spawn(move || {
        let mut reading = socket.try_clone();
        let mut replier = Replier {
            socket,
            role: Role::Control,
        };
        while let Some((header, message)) = receive(&mut reading) {
            if let Message::Hello(hello) = &message {
                replier.role = hello.role;
            } else {
                if let Message::Release(release) = &message {
                    state.released.lock().unwrap().extend(&release.files);
                }
                state.log.lock().unwrap().push((replier.role, message.clone()));
                state.logged.notify_all();
            }
            let mut hook = state.hook.lock().unwrap();
            let answer = hook
                .as_mut()
                .map_or(Answer::Good, |hook| hook(&mut replier, header.request, &message));
            drop(hook);
            match answer {
                Answer::Good => answer_well(&state, &mut replier, header.request, message),
                Answer::Done => {}
                Answer::Close => break,
            }
        }
        replier.socket.shut_down();
    });
}

fn receive(socket: &mut Socket) -> Option<(FrameHeader, Message)> {
    let mut header = [0; HEADER_BYTES];
    socket.read_exact(&mut header).ok()?;
    let header = FrameHeader::from_bytes(&header).unwrap();
    let mut payload = vec![0; header.length as usize];
    socket.read_exact(&mut payload).ok()?;
    let kind = header.known_kind().unwrap();
    Some((header, Message::decode(kind, &payload).unwrap().unwrap()))
}

#[allow(clippy::too_many_lines, reason = "one arm a message")]
fn answer_well(state: &Arc<State>, replier: &mut Replier, request: RequestId, message: Message) {
    let tcp = matches!(replier.socket, Socket::Tcp(_));
    let mut model = state.model.lock().unwrap();
    match message {
        Message::Hello(hello) => {
            if tcp && hello.token != "secret" {
                return replier.send(&failed(Code::Unauthenticated, "wrong token"), request);
            }
            if hello.role == Role::Data && hello.session_secret != SECRET {
                return replier.send(&failed(Code::Unauthenticated, "wrong secret"), request);
            }
            let welcome = Welcome {
                version: 1,
                features: model.features,
                daemon: "fake".into(),
                node: NodeName::new("node-1").unwrap(),
                worker: model.worker,
                epoch: Epoch(1),
                session: SessionId(state.next_session.fetch_add(1, Ordering::SeqCst)),
                session_secret: SECRET,
                service_address: String::new(),
                block_bytes: model.block_size.bytes(),
                page_bytes: PAGE_BYTES as u32,
                inline_bytes: model.inline_bytes,
                max_held_bytes: model.max_held_bytes,
                max_unacknowledged: model.max_unacknowledged,
                idle_close_seconds: model.idle_close_seconds,
                grants: if tcp { GrantStatus::Disabled } else { model.grants },
                grants_disabled_reason: String::new(),
            };
            replier.send(&welcome, request);
        }
        Message::Open(open) => {
            let Some(object) = model.objects.get(&open.path) else {
                return replier.send(&failed(Code::NotFound, "no such object"), request);
            };
            let generation = object.generation.clone();
            if open.generation.is_some_and(|asked| asked != generation) {
                return replier.send(&failed(Code::ObjectChanged, "the etag is another"), request);
            }
            let handle = Handle(u64::from(request) << 8 | 5);
            state.handles.lock().unwrap().insert(handle, open.path.clone());
            let size = generation.size_bytes;
            let wants_data = open.flags & OPEN_NO_DATA == 0 && size > 0;
            let small = wants_data && size <= u64::from(model.inline_bytes);
            let grant = wants_data
                && !small
                && open.flags & OPEN_NO_GRANT == 0
                && !tcp
                && model.grants != GrantStatus::Disabled;
            let follows = match (small, grant) {
                (true, _) => FOLLOWS_DATA,
                (false, true) => FOLLOWS_GRANT,
                (false, false) => FOLLOWS_NOTHING,
            };
            let bytes = Arc::clone(&object.bytes);
            let opened = Opened {
                handle,
                generation,
                follows,
            };
            replier.send(&opened, request);
            if small {
                replier.data(&bytes, 0, request);
            } else if grant {
                let block_size = model.block_size;
                let block = block_size.block_at(open.offset);
                let from = open.offset - block_size.start_of(block);
                let length = block_size.length_of(block, size);
                let pages = PageSet::covering(from..from.saturating_add(open.length).min(length));
                let (granted, file) = model.granted(handle, &open.path, block, pages);
                replier.send_with_file(&granted, FLAG_DESCRIPTOR, request, &file);
            }
        }
        Message::Fill(fill) => {
            let path = state.handles.lock().unwrap().get(&fill.handle).cloned();
            let Some(path) = path else {
                if request != 0 {
                    replier.send(&failed(Code::UnknownHandle, "no such handle"), request);
                }
                return;
            };
            let (granted, file) = model.granted(fill.handle, &path, fill.block, fill.pages);
            if request == 0 {
                return;
            }
            if granted.file_id == fill.file_id || fill.priority == Priority::Load {
                let ready = Ready {
                    file_id: granted.file_id,
                    present: granted.present,
                };
                replier.send(&ready, request);
            } else {
                replier.send_with_file(&granted, FLAG_DESCRIPTOR, request, &file);
            }
        }
        Message::Read(read) => {
            let path = state.handles.lock().unwrap().get(&read.handle).cloned();
            let Some(path) = path else {
                return replier.send(&failed(Code::UnknownHandle, "no such handle"), request);
            };
            let bytes = Arc::clone(&model.objects[&path].bytes);
            drop(model);
            let range: Range<usize> = read.offset as usize..(read.offset + read.length) as usize;
            let mut parts = bytes[range].chunks(300_000).peekable();
            while let Some(part) = parts.next() {
                let flags = if parts.peek().is_some() { FLAG_MORE } else { 0 };
                replier.data(part, flags, request);
            }
        }
        Message::Release(release) => {
            state.handles.lock().unwrap().remove(&release.handle);
        }
        Message::Invalidate(invalidate) => {
            let before = model.blocks.len();
            model.blocks.retain(|(path, _), _| *path != invalidate.path);
            let blocks = (before - model.blocks.len()) as u32;
            replier.send(&Invalidated { blocks }, request);
        }
        Message::Free(free) => {
            let prefix = free.flags & FREE_PREFIX != 0;
            let wanted = |path: &ObjectPath| {
                let key = path.key.as_str();
                path.bucket == free.bucket
                    && if prefix {
                        key.starts_with(&free.key)
                    } else {
                        key == free.key
                    }
            };
            let found: Vec<_> = model
                .blocks
                .keys()
                .filter(|(path, _)| wanted(path))
                .cloned()
                .collect();
            let objects: HashSet<_> = found.iter().map(|(path, _)| path).collect();
            let freed = Freed {
                objects: objects.len() as u64,
                blocks: found.len() as u64,
                bytes: found.len() as u64,
            };
            if free.flags & FREE_DRY_RUN == 0 {
                model.blocks.retain(|(path, _), _| !wanted(path));
            }
            replier.send(&freed, request);
        }
        Message::Tally(_) => {
            let tallied = Tallied {
                origin_bytes: 5,
                peer_bytes: 7,
            };
            replier.send(&tallied, request);
        }
        Message::Used(_) | Message::Ack(_) => {}
        other => panic!("a client sent {other:?}"),
    }
}

pub(crate) fn failed(code: Code, message: &str) -> Failed {
    Failed {
        code,
        message: message.into(),
    }
}

pub(crate) fn bypass(reason: BypassReason) -> Bypass {
    Bypass {
        reason,
        detail: "said the test".into(),
    }
}
