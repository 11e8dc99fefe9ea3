//! The control messages. Each field's unit is in its name or its text.

use std::fmt;

use super::codec::{Decode, DecodeError, Encode, structure};
use super::frame::{FrameHeader, FrameKind, HEADER_BYTES, MAX_CONTROL_BYTES, RequestId};
use crate::block::{BlockIndex, PageSet};
use crate::ids::{
    BucketName, Epoch, FileId, Generation, Handle, NodeName, ObjectPath, Scheme, SessionId, StoreFingerprint,
    StoreIdentity, WorkerUuid,
};

/// A message that fills a control frame.
pub trait Payload: Encode + Decode {
    /// The frame kind that carries it.
    const KIND: FrameKind;
}

/// A whole control frame: header and payload.
///
/// Messages are built from values whose lengths are bounded, so a payload fits [`MAX_CONTROL_BYTES`]; senders of lists
/// (`Used`, `Release`, `DropFiles`) send several messages.
pub fn encode<M: Payload>(message: &M, flags: u8, request: RequestId) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    message.encode(&mut frame);
    let length = frame.len() - HEADER_BYTES;
    debug_assert!(length <= MAX_CONTROL_BYTES, "control payload of {length} bytes");
    let header = FrameHeader {
        length: length as u32,
        kind: M::KIND as u8,
        flags,
        request,
    };
    frame[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
    frame
}

macro_rules! messages {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$meta])*
            #[derive(Debug, Clone, PartialEq, Eq)]
            pub struct $name {
                $($(#[$field_meta])* pub $field: $type),*
            }

            structure!($name { $($field),* });

            impl Payload for $name {
                const KIND: FrameKind = FrameKind::$name;
            }
        )*

        /// Any control message, as its frame's kind says.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each variant is the structure of its name")]
        pub enum Message {
            $($name($name)),*
        }

        impl Message {
            /// Reads the payload of a control frame. Trailing bytes are ignored: a newer sender may append fields.
            ///
            /// `None` for kinds that carry bytes rather than a message.
            pub fn decode(kind: FrameKind, mut payload: &[u8]) -> Option<Result<Self, DecodeError>> {
                match kind {
                    $(FrameKind::$name => Some($name::decode(&mut payload).map(Self::$name)),)*
                    FrameKind::Data | FrameKind::Page => None,
                }
            }
        }
    };
}

messages! {
    /// First on every connection: who calls, and which versions it speaks.
    Hello {
        /// Lowest version the caller speaks.
        min_version: u16,
        /// Highest version the caller speaks.
        max_version: u16,
        /// Bits of optional features that the caller has: [`FEATURES`].
        features: u64,
        /// What the connection is for.
        role: Role,
        /// On a [`Role::Data`] connection: the session it belongs to.
        session: SessionId,
        /// On a [`Role::Data`] connection: the session's secret, from its `Welcome`.
        session_secret: [u8; 16],
        /// The caller's program and version, for logs.
        client: String,
        /// The application (Spark's application id), for logs and metrics.
        application: String,
        /// The caller's pod, if it runs in one.
        pod: String,
        /// The caller's pod IP, if it runs in a pod.
        pod_ip: String,
        /// Over TCP: the cluster's shared secret.
        token: String,
    }

    /// The daemon's answer to `Hello`.
    Welcome {
        /// The version both sides speak from here on.
        version: u16,
        /// Feature bits that both sides have.
        features: u64,
        /// The daemon's version, for logs.
        daemon: String,
        /// The node the daemon runs on.
        node: NodeName,
        /// The daemon's worker UUID.
        worker: WorkerUuid,
        /// The worker's epoch.
        epoch: Epoch,
        /// This session.
        session: SessionId,
        /// Proves, on data connections, that they belong to this session.
        session_secret: [u8; 16],
        /// `host:port` of the locality service's HTTP side; empty: none.
        service_address: String,
        /// Block size.
        block_bytes: u64,
        /// Page size.
        page_bytes: u32,
        /// Objects up to this size come inline with `Opened`.
        inline_bytes: u32,
        /// Most bytes of granted files this session may hold.
        max_held_bytes: u64,
        /// Most grants that may be unacknowledged.
        max_unacknowledged: u16,
        /// Clients close descriptors that were idle for this long.
        idle_close_seconds: u32,
        /// Whether this session gets descriptors.
        grants: GrantStatus,
        /// Why it does not; empty when it does.
        grants_disabled_reason: String,
    }

    /// Opens an object and asks for the first range at once. Answered by `Opened`, then by what it says follows.
    Open {
        /// Which store, as the caller is configured for it.
        store: StoreRef,
        /// The object.
        path: ObjectPath,
        /// The generation, if the caller knows it; required where `authorization = "caller"`.
        generation: Option<Generation>,
        /// The version id that selects the GET, on versioned buckets.
        version_id: Option<String>,
        /// Where the first read will begin.
        offset: u64,
        /// How long the first read will be; the daemon clamps it to the object and to one block.
        length: u64,
        /// [`OPEN_NO_GRANT`], [`OPEN_NO_DATA`].
        flags: u32,
    }

    /// The object is open. The next frame with the same request id is what `follows` says.
    Opened {
        /// Names the open object in later requests of this session.
        handle: Handle,
        /// The generation that this handle reads, whatever happens to the object.
        generation: Generation,
        /// [`FOLLOWS_NOTHING`], [`FOLLOWS_GRANT`] or [`FOLLOWS_DATA`] (the object's bytes, whole).
        follows: u8,
    }

    /// A read-only descriptor of a block's file; the descriptor comes with the frame.
    Granted {
        /// The open object.
        handle: Handle,
        /// The block.
        block: BlockIndex,
        /// Names the file; never reused by this worker.
        file_id: FileId,
        /// Where the block's first byte lies in the file.
        data_offset: u64,
        /// Where the CRC32Cs of the block's 64 KiB chunks lie in the file (u32, little-endian).
        crc_offset: u64,
        /// How many bytes of the object the block has.
        length: u64,
        /// The pages that may be read now. The set only grows for a file.
        present: PageSet,
    }

    /// Asks for pages of a block. Answered by `Ready`, or by a new `Granted` if the block is not (or no longer) in the
    /// file the caller holds.
    Fill {
        /// The open object.
        handle: Handle,
        /// The block.
        block: BlockIndex,
        /// The file the caller holds; 0: none.
        file_id: FileId,
        /// The pages wanted.
        pages: PageSet,
        /// A readahead `Fill` is one-way (request id 0) unless it asks for a first grant. One that loads is answered by
        /// `Ready` always, and early with the pages that are present by then: whoever wants the rest asks again.
        priority: Priority,
    }

    /// The pages that were asked for are present in the file the caller holds.
    Ready {
        /// The file.
        file_id: FileId,
        /// All pages present in it now.
        present: PageSet,
    }

    /// Asks for bytes inline. Clients get `Data` frames; peers name the object and get `Page` frames.
    Read {
        /// The open object; ignored where `peer` names one.
        handle: Handle,
        /// Where to begin in the object.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// Set by peers, who open nothing.
        peer: Option<PeerObject>,
        /// [`READ_VERIFY`].
        flags: u32,
    }

    /// One-way: what the caller read from files it holds since it last told. An untrusted hint.
    Used {
        /// One entry a file.
        files: Vec<UsedFile>,
    }

    /// One-way: descriptors that have arrived.
    Ack {
        /// How many since the last `Ack`.
        count: u16,
    }

    /// One-way: the caller has closed these.
    Release {
        /// An open object; 0: none.
        handle: Handle,
        /// Files whose descriptors are closed.
        files: Vec<FileId>,
    }

    /// Asks the daemon to forget every block of an object. Answered by `Invalidated`.
    Invalidate {
        /// Which store, as the caller is configured for it.
        store: StoreRef,
        /// The object.
        path: ObjectPath,
    }

    /// How many blocks were forgotten.
    Invalidated {
        /// Blocks unlinked.
        blocks: u32,
    }

    /// Asks what the daemon fetched on behalf of this session. Answered by `Tallied`.
    Tally {}

    /// What the fetches that this session's requests began have brought in since it began, whoever reads it. A page that
    /// another session had begun to fetch is in that one's tally.
    Tallied {
        /// Bytes from the origin, those that were passed on without being cached included.
        origin_bytes: u64,
        /// Bytes from other workers.
        peer_bytes: u64,
    }

    /// Asks the daemon to forget what it caches of one object, or of all whose keys begin alike, in every generation; or
    /// what that would be. Answered by `Freed`.
    Free {
        /// Which store, as the caller is configured for it.
        store: StoreRef,
        /// The store's protocol family.
        scheme: Scheme,
        /// The bucket.
        bucket: BucketName,
        /// The key, or with [`FREE_PREFIX`] what keys begin with; empty then: every key.
        key: String,
        /// [`FREE_PREFIX`], [`FREE_DRY_RUN`].
        flags: u32,
    }

    /// What was forgotten.
    Freed {
        /// Objects, whatever their generations.
        objects: u64,
        /// Blocks unlinked.
        blocks: u64,
        /// Bytes of the objects that these blocks had.
        bytes: u64,
    }

    /// From the daemon, unasked: please close these files; their blocks were evicted.
    DropFiles {
        /// The files.
        files: Vec<FileId>,
    }

    /// Go to the origin for this one, and why.
    Bypass {
        /// The reason.
        reason: BypassReason,
        /// The reason in words, for logs.
        detail: String,
    }

    /// The request failed.
    Failed {
        /// What kind of failure.
        code: Code,
        /// The failure in words: what was attempted, on what, and the remedy.
        message: String,
    }
}

/// A feature bit of [`Hello`] and [`Welcome`]: fills at [`Priority::Load`].
pub const FEATURE_LOAD: u64 = 1;
/// The optional features of this version.
pub const FEATURES: u64 = FEATURE_LOAD;
/// [`Free::flags`]: the key is what keys begin with.
pub const FREE_PREFIX: u32 = 1;
/// [`Free::flags`]: say what would be forgotten, and forget nothing.
pub const FREE_DRY_RUN: u32 = 2;
/// [`Open::flags`]: answer without a descriptor; the caller reads inline.
pub const OPEN_NO_GRANT: u32 = 1;
/// [`Open::flags`]: the caller wants the generation only; nothing is fetched and nothing follows.
pub const OPEN_NO_DATA: u32 = 2;
/// [`Read::flags`]: compare what is on disk with its checksums before it is sent. The caller held the file and found it
/// wanting, or asks for every byte to be compared.
pub const READ_VERIFY: u32 = 1;
/// [`Opened::follows`]: nothing (an empty object, [`OPEN_NO_DATA`], [`OPEN_NO_GRANT`], or a session without grants).
pub const FOLLOWS_NOTHING: u8 = 0;
/// [`Opened::follows`]: `Granted` for the block at the first range, or a `Bypass` or `Failed` in its place.
pub const FOLLOWS_GRANT: u8 = 1;
/// [`Opened::follows`]: one `Data` frame with the whole object, or a `Bypass` or `Failed` in its place.
pub const FOLLOWS_DATA: u8 = 2;

/// A store as the caller is configured for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreRef {
    /// The caller's store; `None` where the caller has no store configuration of its own.
    pub fingerprint: Option<StoreFingerprint>,
}
structure!(StoreRef { fingerprint });

/// An object as a peer names it: complete, so that nothing has to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerObject {
    /// The store's identity.
    pub store: StoreIdentity,
    /// The object.
    pub path: ObjectPath,
    /// Its generation.
    pub generation: Generation,
    /// How often the request was handed on already; a worker serves only what it holds or has in flight.
    pub hops: u8,
}
structure!(PeerObject {
    store,
    path,
    generation,
    hops
});

/// What was read from one held file since the last `Used`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsedFile {
    /// The file.
    pub file_id: FileId,
    /// Bytes read.
    pub bytes: u64,
    /// Pages touched.
    pub pages: PageSet,
}
structure!(UsedFile {
    file_id,
    bytes,
    pages
});

macro_rules! numbers {
    (
        $(#[$meta:meta])*
        $name:ident: $inner:ty, $what:literal $(, unknown = $unknown:ident)? {
            $($(#[$variant_meta:meta])* $variant:ident = $number:literal $text:literal),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr($inner)]
        pub enum $name {
            $($(#[$variant_meta])* $variant = $number),*
        }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The value as metrics, logs and JSON spell it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text),*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                (*self as $inner).encode(out);
            }
        }

        impl Decode for $name {
            fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
                match <$inner>::decode(input)? {
                    $($number => Ok(Self::$variant),)*
                    $(_ => Ok(Self::$unknown),)?
                    #[allow(unreachable_patterns, reason = "enums that tolerate unknown values end above")]
                    value => Err(DecodeError::UnknownValue { what: $what, value: value.into() }),
                }
            }
        }
    };
}

numbers! {
    /// What a connection is for.
    Role: u8, "a connection's role" {
        /// A session's control connection: requests, replies out of order, descriptors.
        Control = 0 "control",
        /// A session's data connection: strict request and reply, inline bytes.
        Data = 1 "data",
        /// Another worker, over TCP.
        Peer = 2 "peer",
    }
}

numbers! {
    /// Whether a session gets descriptors.
    GrantStatus: u8, "the grant status" {
        /// It does not, and why is said beside it.
        Disabled = 0 "disabled",
        /// It does, through the read-only mount.
        Enabled = 1 "enabled",
        /// It does, without the protection of a read-only mount (`cachelet dev` only).
        Unprotected = 2 "unprotected",
    }
}

numbers! {
    /// Who waits for a fill.
    Priority: u8, "a priority" {
        /// A reader waits.
        Demand = 0 "demand",
        /// Nobody waits yet.
        Readahead = 1 "readahead",
        /// The cache is being warmed: no reader is in sight, and no grant is wanted. Only where both sides have
        /// [`FEATURE_LOAD`].
        Load = 2 "load",
    }
}

numbers! {
    /// Why the caller should read from the origin itself.
    BypassReason: u16, "a bypass reason", unknown = Other {
        /// A reason that a newer daemon has; the detail says it.
        Other = 0 "other",
        /// No store is configured for this scheme and bucket, or the caller's is another one.
        UnknownStore = 1 "unknown_store",
        /// The key cannot be asked for exactly as it is spelt.
        UnsupportedKey = 2 "unsupported_key",
        /// The object has no usable etag, or is too young to be trusted.
        NotCacheable = 3 "not_cacheable",
        /// The cache has no room and cannot make any.
        NoSpace = 4 "no_space",
        /// The daemon is going away.
        Draining = 5 "draining",
        /// The caller must present the generation (`authorization = "caller"`).
        GenerationRequired = 6 "generation_required",
        /// The daemon has no grants to give, or the session holds too many.
        NoGrant = 7 "no_grant",
        /// The daemon has more requests than it can serve.
        Overloaded = 8 "overloaded",
    }
}

numbers! {
    /// What kind of failure; the same table maps to gRPC and HTTP status and to Java exceptions.
    Code: u16, "an error code", unknown = Internal {
        /// A request of a kind or version that this daemon does not know.
        Unsupported = 1 "unsupported",
        /// A request that makes no sense.
        InvalidRequest = 2 "invalid_request",
        /// The caller did not prove who it is.
        Unauthenticated = 3 "unauthenticated",
        /// The origin refused access.
        PermissionDenied = 4 "permission_denied",
        /// No such object (or bucket) in the origin.
        NotFound = 5 "not_found",
        /// The object is no longer the generation that was opened.
        ObjectChanged = 6 "object_changed",
        /// The origin did not answer, or not usably.
        OriginUnavailable = 7 "origin_unavailable",
        /// Time ran out.
        DeadlineExceeded = 8 "deadline_exceeded",
        /// No such handle or file in this session.
        UnknownHandle = 9 "unknown_handle",
        /// A peer does not hold what was asked for.
        NotHeld = 10 "not_held",
        /// The daemon failed; its log says more.
        Internal = 11 "internal",
    }
}

impl Code {
    /// Whether the same request may succeed if sent again.
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::OriginUnavailable | Self::DeadlineExceeded | Self::Internal => true,
            Self::Unsupported
            | Self::InvalidRequest
            | Self::Unauthenticated
            | Self::PermissionDenied
            | Self::NotFound
            | Self::ObjectChanged
            | Self::UnknownHandle
            | Self::NotHeld => false,
        }
    }
}

impl Open {
    /// An `Open` that asks for the generation only.
    pub fn generation_only(path: ObjectPath) -> Self {
        Self {
            store: StoreRef { fingerprint: None },
            path,
            generation: None,
            version_id: None,
            offset: 0,
            length: 0,
            flags: OPEN_NO_DATA,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text() -> impl Strategy<Value = String> {
        "\\PC{0,40}"
    }

    fn path() -> impl Strategy<Value = ObjectPath> {
        ("[a-z]{3,20}", "\\PC{1,80}").prop_filter_map("a valid path", |(bucket, key)| {
            format!("s3://{bucket}/{key}").parse().ok()
        })
    }

    fn generation() -> impl Strategy<Value = Generation> {
        ("[!#-~]{1,40}", any::<u64>()).prop_map(|(etag, size_bytes)| Generation {
            etag: crate::ids::Etag::new(etag).unwrap(),
            size_bytes,
        })
    }

    fn round_trip<M: Payload + PartialEq + fmt::Debug>(message: &M) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        assert_eq!(&M::decode(&mut &bytes[..]).unwrap(), message);
        for length in 0..bytes.len() {
            assert!(
                M::decode(&mut &bytes[..length]).is_err(),
                "decoded from {length} of {} bytes",
                bytes.len()
            );
        }
        bytes.extend_from_slice(b"fields of a later version");
        assert_eq!(&M::decode(&mut &bytes[..]).unwrap(), message);
    }

    proptest! {
        #[test]
        fn open_reads_as_written_and_never_from_less(
            path in path(), generation in prop::option::of(generation()), version_id in prop::option::of(text()),
            fingerprint in prop::option::of(any::<[u8; 16]>()), offset: u64, length: u64, flags: u32,
        ) {
            let store = StoreRef { fingerprint: fingerprint.map(StoreFingerprint::from_bytes) };
            round_trip(&Open { store, path, generation, version_id, offset, length, flags });
        }

        #[test]
        fn hello_reads_as_written_and_never_from_less(texts in prop::array::uniform5(text()), secret: [u8; 16], session: u64) {
            let [client, application, pod, pod_ip, token] = texts;
            let session = SessionId(session);
            let (session_secret, role) = (secret, Role::Data);
            round_trip(&Hello { min_version: 1, max_version: 2, features: 3, role, session, session_secret, client, application, pod, pod_ip, token });
        }

        #[test]
        fn lists_read_as_written_and_never_from_less(files in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u128>()), 0..20)) {
            let files = files.into_iter().map(|(id, bytes, pages)| UsedFile { file_id: FileId(id), bytes, pages: PageSet::from_bits(pages) }).collect();
            round_trip(&Used { files });
        }

        #[test]
        fn peer_reads_read_as_written_and_never_from_less(path in path(), generation in generation(), offset: u64, length: u64, hops: u8, flags: u32) {
            let store = StoreIdentity::new("endpoint").unwrap();
            let peer = Some(PeerObject { store, path, generation, hops });
            round_trip(&Read { handle: Handle(0), offset, length, peer, flags });
        }

        #[test]
        fn no_payload_makes_a_decoder_panic(kind: u8, payload in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(kind) = FrameKind::from_number(kind) {
                let _ = Message::decode(kind, &payload);
            }
        }
    }

    #[test]
    fn a_tally_is_an_empty_question_and_two_numbers() {
        let asked = encode(&Tally {}, 0, 7);
        assert_eq!(asked, [0, 0, 0, 0, 9, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(
            Tally::decode(&mut &b"fields of a later version"[..]),
            Ok(Tally {})
        );
        round_trip(&Tallied {
            origin_bytes: 1 << 40,
            peer_bytes: 3,
        });
    }

    #[test]
    fn loads_and_frees_have_the_bytes_that_are_documented() {
        let load = Fill {
            handle: Handle(3),
            block: BlockIndex(2),
            file_id: FileId(0),
            pages: PageSet::span(0..8),
            priority: Priority::Load,
        };
        round_trip(&load);
        let frame = encode(&load, 0, 7);
        assert_eq!((frame[4], frame.last()), (3, Some(&2)));
        let free = Free {
            store: StoreRef { fingerprint: None },
            scheme: Scheme::S3,
            bucket: BucketName::new("lake").unwrap(),
            key: "t/".into(),
            flags: FREE_PREFIX | FREE_DRY_RUN,
        };
        round_trip(&free);
        let frame = encode(&free, 0, 7);
        assert_eq!(frame[4], 10);
        assert_eq!(frame[12..], *b"\0\x02\0s3\x04\0lake\x02\0t/\x03\0\0\0");
        let everything = Free {
            key: String::new(),
            ..free
        };
        round_trip(&everything);
        let freed = Freed {
            objects: 1,
            blocks: 2,
            bytes: 1 << 40,
        };
        round_trip(&freed);
        assert_eq!(encode(&freed, 0, 7)[4], 75);
    }

    #[test]
    fn a_lying_count_allocates_nothing() {
        let mut payload = vec![0xff, 0xff];
        payload.extend_from_slice(&[0; 8]);
        assert_eq!(DropFiles::decode(&mut &payload[..]), Err(DecodeError::Truncated));
    }

    #[test]
    fn a_number_without_a_name_is_refused() {
        assert!(matches!(
            Priority::decode(&mut &[9][..]),
            Err(DecodeError::UnknownValue { value: 9, .. })
        ));
    }

    #[test]
    fn codes_and_reasons_of_a_newer_daemon_are_still_failures_and_bypasses() {
        assert_eq!(Code::decode(&mut &[0xff, 0xff][..]), Ok(Code::Internal));
        assert_eq!(
            BypassReason::decode(&mut &[0xff, 0xff][..]),
            Ok(BypassReason::Other)
        );
    }
}
