//! The names and identities that every part of Cachelet agrees on.
//!
//! Values are parsed at the edge and carried as types from there on. What an [`ObjectId`] or a [`PathId`] hashes is
//! fixed for good: files on disk, frames and reports carry them between versions. The vectors in
//! `tests/vectors/object_ids.tsv` hold it.

use std::fmt;

use sha2::{Digest, Sha256};

/// Longest object key that S3 and OSS accept (S3 user guide, "Object key naming guidelines").
pub const MAX_KEY_BYTES: usize = 1024;
/// Longest bucket name: 63 for S3 and OSS; directory stores and access-point ARNs need more.
pub const MAX_BUCKET_BYTES: usize = 255;
/// Longest etag kept. S3's are at most 38 characters; other servers put more into theirs.
pub const MAX_ETAG_BYTES: usize = 256;

/// A value that is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} {value:?}: {reason}")]
pub struct InvalidId {
    /// The word for what was parsed, such as `bucket name`.
    pub what: &'static str,
    /// The refused value, shortened to 80 characters.
    pub value: String,
    /// Why it was refused.
    pub reason: &'static str,
}

impl InvalidId {
    fn new(what: &'static str, value: &str, reason: &'static str) -> Self {
        Self {
            what,
            value: value.chars().take(80).collect(),
            reason,
        }
    }
}

macro_rules! text_id {
    ($(#[$meta:meta])* $name:ident, $what:literal, $max:expr, $valid:expr, $reason:literal) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            #[doc = concat!("Checks and keeps a ", $what, ".")]
            pub fn new(value: impl Into<String>) -> Result<Self, InvalidId> {
                let value: String = value.into();
                if value.is_empty() {
                    return Err(InvalidId::new($what, &value, "it is empty"));
                }
                if value.len() > $max {
                    return Err(InvalidId::new($what, &value, "it is too long"));
                }
                let valid: fn(&str) -> bool = $valid;
                if !valid(&value) {
                    return Err(InvalidId::new($what, &value, $reason));
                }
                Ok(Self(value.into_boxed_str()))
            }

            #[doc = concat!("The ", $what, " as text.")]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }
    };
}

text_id!(
    /// A bucket (or, in a directory store, the name the directory goes by).
    BucketName, "bucket name", MAX_BUCKET_BYTES,
    |v| !v.chars().any(|c| c.is_control() || c == '/'),
    "it contains a slash or a control character"
);
text_id!(
    /// An object's key, byte for byte as the store spells it: nothing is decoded, normalised or trimmed.
    ObjectKey, "object key", MAX_KEY_BYTES, |_| true, ""
);
text_id!(
    /// What makes two configured stores the same store, on every node: endpoint and account, never a credential.
    StoreIdentity, "store identity", 512,
    |v| !v.chars().any(char::is_control),
    "it contains a control character"
);
text_id!(
    /// The Kubernetes node (`spec.nodeName`) that a worker runs on.
    NodeName, "node name", 253,
    |v| v.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')),
    "a node name has letters, digits, '-', '.' and '_' only"
);
text_id!(
    /// A canonical entity tag: no quotes, case kept.
    Etag, "etag", MAX_ETAG_BYTES,
    |v| v.bytes().all(|b| (0x21..=0x7e).contains(&b) && b != b'"'),
    "an etag has visible ASCII characters without quotes"
);

impl Etag {
    /// The canonical form of an `ETag` header or listing entry: one pair of quotes stripped, case kept.
    ///
    /// Weak tags (`W/"..."`) are refused: they do not promise the same bytes.
    pub fn from_header(header: &str) -> Result<Self, InvalidId> {
        let header = header.trim();
        if header.starts_with("W/") || header.starts_with("w/") {
            return Err(InvalidId::new(
                "etag",
                header,
                "a weak etag does not promise the same bytes",
            ));
        }
        let bare = header
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'))
            .unwrap_or(header);
        Self::new(bare)
    }

    /// The value of an `If-Match` header for this generation.
    pub fn to_header(&self) -> String {
        format!("\"{}\"", self.as_str())
    }
}

/// The protocol family of a store; the spellings that Hadoop adds (`s3a`, `s3n`) name the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// Amazon S3 and everything that speaks it.
    S3,
    /// Alibaba Cloud Object Storage Service.
    Oss,
    /// A directory of the daemon's host.
    File,
}

impl Scheme {
    /// The canonical spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Oss => "oss",
            Self::File => "file",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Scheme {
    type Err = InvalidId;

    fn from_str(value: &str) -> Result<Self, InvalidId> {
        match value {
            "s3" | "s3a" | "s3n" => Ok(Self::S3),
            "oss" => Ok(Self::Oss),
            "file" => Ok(Self::File),
            _ => Err(InvalidId::new(
                "scheme",
                value,
                "known schemes are s3, s3a, s3n, oss and file",
            )),
        }
    }
}

/// Where a caller says an object is: scheme, bucket and key, before a store is chosen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectPath {
    /// The store's protocol family.
    pub scheme: Scheme,
    /// The bucket.
    pub bucket: BucketName,
    /// The key.
    pub key: ObjectKey,
}

impl std::str::FromStr for ObjectPath {
    type Err = InvalidId;

    /// Parses `scheme://bucket/key`. Everything behind the bucket's slash is the key, as it stands.
    fn from_str(value: &str) -> Result<Self, InvalidId> {
        let expected = "expected scheme://bucket/key, for example s3a://lake/table/part-0.parquet";
        let (scheme, rest) = value
            .split_once("://")
            .ok_or_else(|| InvalidId::new("object path", value, expected))?;
        let (bucket, key) = rest
            .split_once('/')
            .ok_or_else(|| InvalidId::new("object path", value, expected))?;
        Ok(Self {
            scheme: scheme.parse()?,
            bucket: BucketName::new(bucket)?,
            key: ObjectKey::new(key)?,
        })
    }
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.scheme, self.bucket, self.key)
    }
}

/// One state of an object: the etag and the size that the store gave for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation {
    /// The canonical etag.
    pub etag: Etag,
    /// The object's size in bytes.
    pub size_bytes: u64,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.etag, self.size_bytes)
    }
}

/// An object in a known store, whatever its generation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The store's identity.
    pub store: StoreIdentity,
    /// Scheme, bucket and key.
    pub path: ObjectPath,
}

impl ObjectName {
    /// The identity of the object at this name, whatever its generation: the key of the location index.
    pub fn path_id(&self) -> PathId {
        let mut hash = Fields::new(b"cachelet-path-v1");
        self.hash_into(&mut hash);
        PathId(hash.first_16_bytes())
    }

    /// The identity of one generation of the object: what blocks are filed under.
    pub fn object_id(&self, generation: &Generation) -> ObjectId {
        let mut hash = Fields::new(b"cachelet-object-v1");
        self.hash_into(&mut hash);
        hash.field(generation.etag.as_str().as_bytes());
        hash.field(&generation.size_bytes.to_le_bytes());
        ObjectId(hash.first_16_bytes())
    }

    fn hash_into(&self, hash: &mut Fields) {
        hash.field(self.path.scheme.as_str().as_bytes());
        hash.field(self.store.as_str().as_bytes());
        hash.field(self.path.bucket.as_str().as_bytes());
        hash.field(self.path.key.as_str().as_bytes());
    }
}

/// SHA-256 over fields, each behind its length (u64, little-endian), so that no two field lists hash alike.
struct Fields(Sha256);

impl Fields {
    fn new(domain: &[u8]) -> Self {
        let mut fields = Self(Sha256::new());
        fields.field(domain);
        fields
    }

    fn field(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn first_16_bytes(self) -> [u8; 16] {
        let digest = self.0.finalize();
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        first
    }
}

macro_rules! hash_id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// From its 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            /// 32 lower-case hexadecimal digits.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;

            fn from_str(value: &str) -> Result<Self, InvalidId> {
                let refused = || InvalidId::new("id", value, "expected 32 hexadecimal digits");
                if value.len() != 32 || !value.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(refused());
                }
                let mut bytes = [0; 16];
                for (index, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&value[2 * index..2 * index + 2], 16).map_err(|_| refused())?;
                }
                Ok(Self(bytes))
            }
        }
    };
}

hash_id!(
    /// One generation of one object: the first 16 bytes of SHA-256 over its length-prefixed domain tag, scheme,
    /// store identity, bucket, key, etag and size.
    ObjectId
);
hash_id!(
    /// One object whatever its generation: the first 16 bytes of SHA-256 over its length-prefixed domain tag, scheme,
    /// store identity, bucket and key.
    PathId
);
hash_id!(
    /// What a client's store configuration comes to, see [`StoreFingerprint::of`].
    StoreFingerprint
);

impl StoreFingerprint {
    /// The fingerprint of a store as a client is configured for it.
    ///
    /// `endpoint` is `host[:port]` in lower case (empty: the scheme's default for the region), `bucket` the bucket name
    /// or ARN.
    pub fn of(scheme: Scheme, endpoint: &str, region: &str, bucket: &str, requester_pays: bool) -> Self {
        let mut hash = Fields::new(b"cachelet-store-fingerprint-v1");
        hash.field(scheme.as_str().as_bytes());
        hash.field(endpoint.as_bytes());
        hash.field(region.as_bytes());
        hash.field(bucket.as_bytes());
        hash.field(&[u8::from(requester_pays)]);
        Self(hash.first_16_bytes())
    }
}

/// The UUID of a worker (`metadata.uid` of its pod).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerUuid([u8; 16]);

impl WorkerUuid {
    /// From its 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for WorkerUuid {
    /// The usual form, `8-4-4-4-12` lower-case hexadecimal digits: also the name of the worker's socket.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for WorkerUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for WorkerUuid {
    type Err = InvalidId;

    fn from_str(value: &str) -> Result<Self, InvalidId> {
        let refused = || InvalidId::new("worker UUID", value, "expected 8-4-4-4-12 hexadecimal digits");
        let bytes = value.as_bytes();
        if bytes.len() != 36 || [8, 13, 18, 23].iter().any(|&at| bytes[at] != b'-') {
            return Err(refused());
        }
        let digits: String = value.chars().filter(|c| *c != '-').collect();
        let id: ObjectId = digits.parse().map_err(|_| refused())?;
        Ok(Self(*id.as_bytes()))
    }
}

macro_rules! number_id {
    ($(#[$meta:meta])* $name:ident($inner:ty)) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number_id!(
    /// A worker's life: a counter kept in its cache directory, greater at every start.
    Epoch(u64)
);
number_id!(
    /// One block file of one worker, never reused: the epoch in the upper and a counter in the lower 32 bits.
    FileId(u64)
);
number_id!(
    /// One client process's session with one daemon.
    SessionId(u64)
);
number_id!(
    /// One opened generation within a session.
    Handle(u64)
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_lose_their_quotes_and_keep_their_case() {
        assert_eq!(Etag::from_header("\"AbC-2\"").unwrap().as_str(), "AbC-2");
        assert_eq!(Etag::from_header("AbC-2").unwrap().to_header(), "\"AbC-2\"");
    }

    #[test]
    fn weak_empty_and_broken_etags_are_refused() {
        for header in ["W/\"a\"", "w/\"a\"", "", "\"\"", "\"a", "a\"b", "a b", "ä"] {
            assert!(Etag::from_header(header).is_err(), "{header:?}");
        }
    }

    #[test]
    fn a_path_keeps_its_key_byte_for_byte() {
        for key in [
            "a//b",
            "./x",
            "../x",
            "dir/",
            " a b ",
            "100%",
            "%2F",
            "a+b~",
            "ключ/😀",
            "/",
        ] {
            let path: ObjectPath = format!("s3a://bucket/{key}").parse().unwrap();
            assert_eq!((path.scheme, path.key.as_str()), (Scheme::S3, key));
        }
        for bad in [
            "s3a://bucket",
            "s3a://bucket/",
            "s3a:///key",
            "http://b/k",
            "bucket/key",
            "",
        ] {
            assert!(bad.parse::<ObjectPath>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_worker_uuid_prints_as_it_was_read() {
        let text = "0b4c9d7e-12ab-4cde-8f01-23456789abcd";
        assert_eq!(text.parse::<WorkerUuid>().unwrap().to_string(), text);
        assert!("0b4c9d7e12ab4cde8f0123456789abcd".parse::<WorkerUuid>().is_err());
        assert!(
            "0b4c9d7e-12ab-4cde-8f01-23456789abc"
                .parse::<WorkerUuid>()
                .is_err()
        );
    }

    #[test]
    fn every_field_of_a_name_and_generation_changes_the_object_id() {
        let name = |store: &str, path: &str| ObjectName {
            store: StoreIdentity::new(store).unwrap(),
            path: path.parse().unwrap(),
        };
        let generation = |etag: &str, size_bytes| Generation {
            etag: Etag::new(etag).unwrap(),
            size_bytes,
        };
        let ids = [
            name("s", "s3://b/k").object_id(&generation("e", 1)),
            name("t", "s3://b/k").object_id(&generation("e", 1)),
            name("s", "oss://b/k").object_id(&generation("e", 1)),
            name("s", "s3://bk/k").object_id(&generation("e", 1)),
            name("s", "s3://b/kk").object_id(&generation("e", 1)),
            name("s", "s3://b/k").object_id(&generation("E", 1)),
            name("s", "s3://b/k").object_id(&generation("e", 2)),
        ];
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
    }
}
