//! What a worker says of itself, parsed and checked: strings end here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use cachelet_protocol::block::{BlockSize, InvalidBlockSize};
use cachelet_protocol::bucket::BucketPattern;
use cachelet_protocol::grpc;
use cachelet_protocol::ids::{BucketName, Epoch, InvalidId, NodeName, Scheme, StoreIdentity, WorkerUuid};

/// The lowest version of the report protocol that is understood.
const MIN_PROTOCOL_VERSION: u32 = 1;
/// Longest version, zone or address that is kept, in bytes.
const MAX_TEXT_BYTES: usize = 300;
/// Most stores a worker may have.
const MAX_STORES: usize = 1_000;
/// Most bucket names and patterns a worker may have in all.
const MAX_BUCKETS: usize = 10_000;

/// A worker as it introduced itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) node: NodeName,
    pub(crate) uuid: WorkerUuid,
    pub(crate) epoch: Epoch,
    pub(crate) version: String,
    pub(crate) data_address: String,
    pub(crate) admin_address: String,
    pub(crate) zone: String,
    pub(crate) pod_ip: String,
    pub(crate) host_ip: String,
    pub(crate) block_size: BlockSize,
    pub(crate) capacity_bytes: u64,
    pub(crate) stores: Arc<StoreSet>,
}

/// The stores of a worker. Workers with the same ones share one set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct StoreSet {
    /// Name -> identity.
    pub(crate) names: BTreeMap<String, StoreIdentity>,
    /// Scheme and pattern -> identity.
    pub(crate) buckets: BTreeMap<(Scheme, BucketPattern), StoreIdentity>,
}

/// A registration that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidRegistration {
    /// From before the first version.
    #[error(
        "the worker speaks report protocol {0}, this service understands {MIN_PROTOCOL_VERSION} and newer: update the worker"
    )]
    Protocol(u32),
    /// A name, UUID or identity is none.
    #[error("{0}")]
    Id(#[from] InvalidId),
    /// The UUID is not 16 bytes.
    #[error("the worker UUID has {0} bytes, expected 16 (metadata.uid of the worker's pod)")]
    Uuid(usize),
    /// No block size.
    #[error("{0}: set `block_bytes` of the worker")]
    BlockSize(#[from] InvalidBlockSize),
    /// A text is too long or has control characters.
    #[error("`{field}` is longer than {MAX_TEXT_BYTES} bytes or has control characters")]
    Text {
        /// The message's field.
        field: &'static str,
    },
    /// An address that is none.
    #[error("`{field}` is no IP address: {value:?}")]
    Ip {
        /// The message's field.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// More stores or buckets than a worker may have.
    #[error(
        "the worker has more than {MAX_STORES} stores or {MAX_BUCKETS} buckets: use patterns that end in '*'"
    )]
    TooManyStores,
    /// A pattern with `*` elsewhere than at its end.
    #[error("store {store:?}: bucket {bucket:?} has a '*' that is not at its end")]
    Pattern {
        /// The store's name.
        store: String,
        /// The pattern.
        bucket: String,
    },
    /// One worker gives one name or bucket to two stores.
    #[error(
        "{what} belongs to identity {first:?} and to {second:?} on the same worker: give it to one of them"
    )]
    Twice {
        /// The store's name or its bucket pattern.
        what: String,
        /// One identity.
        first: StoreIdentity,
        /// The other.
        second: StoreIdentity,
    },
}

impl Registration {
    /// Parses the first message of a stream.
    pub(crate) fn parse(message: grpc::Register) -> Result<Self, InvalidRegistration> {
        if message.protocol_version < MIN_PROTOCOL_VERSION {
            return Err(InvalidRegistration::Protocol(message.protocol_version));
        }
        let uuid = <[u8; 16]>::try_from(message.worker_uuid.as_slice())
            .map_err(|_| InvalidRegistration::Uuid(message.worker_uuid.len()))?;
        Ok(Self {
            node: NodeName::new(message.node)?,
            uuid: WorkerUuid::from_bytes(uuid),
            epoch: Epoch(message.epoch),
            version: text("version", message.version)?,
            data_address: text("data_address", message.data_address)?,
            admin_address: text("admin_address", message.admin_address)?,
            zone: text("zone", message.zone)?,
            pod_ip: ip("pod_ip", message.pod_ip)?,
            host_ip: ip("host_ip", message.host_ip)?,
            block_size: BlockSize::new(message.block_bytes)?,
            capacity_bytes: message.capacity_bytes,
            stores: Arc::new(StoreSet::parse(message.stores)?),
        })
    }
}

impl StoreSet {
    fn parse(stores: Vec<grpc::Store>) -> Result<Self, InvalidRegistration> {
        let buckets: usize = stores.iter().map(|store| store.buckets.len()).sum();
        if stores.len() > MAX_STORES || buckets > MAX_BUCKETS {
            return Err(InvalidRegistration::TooManyStores);
        }
        let mut set = Self::default();
        for store in stores {
            let name = text("stores.name", store.name)?;
            let scheme: Scheme = store.scheme.parse()?;
            let identity = StoreIdentity::new(store.identity)?;
            for bucket in store.buckets {
                let pattern = bucket_pattern(&name, &bucket)?;
                let what = format!("{scheme} bucket {pattern}");
                unique(
                    set.buckets.insert((scheme, pattern), identity.clone()),
                    &identity,
                    what,
                )?;
            }
            let what = format!("store {name:?}");
            unique(set.names.insert(name, identity.clone()), &identity, what)?;
        }
        Ok(set)
    }

    /// A store or bucket that has another identity there: what it is, its identity here, its identity there.
    pub(super) fn conflict<'a>(
        &'a self,
        there: &'a Self,
    ) -> Option<(String, &'a StoreIdentity, &'a StoreIdentity)> {
        let name = self.names.iter().find_map(|(name, here)| {
            let other = there.names.get(name).filter(|other| *other != here)?;
            Some((format!("store {name:?}"), here, other))
        });
        name.or_else(|| {
            self.buckets.iter().find_map(|(key, here)| {
                let other = there.buckets.get(key).filter(|other| *other != here)?;
                Some((format!("{} bucket {}", key.0, key.1), here, other))
            })
        })
    }

    /// Whether a store of this identity is among them.
    pub(super) fn has(&self, identity: &StoreIdentity) -> bool {
        self.names.values().any(|own| own == identity)
    }
}

fn unique(
    before: Option<StoreIdentity>,
    now: &StoreIdentity,
    what: String,
) -> Result<(), InvalidRegistration> {
    match before {
        Some(first) if first != *now => Err(InvalidRegistration::Twice {
            what,
            first,
            second: now.clone(),
        }),
        _ => Ok(()),
    }
}

fn bucket_pattern(store: &str, bucket: &str) -> Result<BucketPattern, InvalidRegistration> {
    let prefix = bucket.strip_suffix('*');
    if prefix.unwrap_or(bucket).contains('*') {
        return Err(InvalidRegistration::Pattern {
            store: store.to_owned(),
            bucket: bucket.chars().take(80).collect(),
        });
    }
    match prefix {
        None => Ok(BucketPattern::Name(BucketName::new(bucket)?)),
        Some("") => Ok(BucketPattern::Prefix(String::new())),
        Some(prefix) => Ok(BucketPattern::Prefix(
            BucketName::new(prefix)?.as_str().to_owned(),
        )),
    }
}

fn text(field: &'static str, value: String) -> Result<String, InvalidRegistration> {
    if value.len() > MAX_TEXT_BYTES || value.chars().any(char::is_control) {
        return Err(InvalidRegistration::Text { field });
    }
    Ok(value)
}

fn ip(field: &'static str, value: String) -> Result<String, InvalidRegistration> {
    if value.is_empty() || value.parse::<IpAddr>().is_ok() {
        return Ok(value);
    }
    Err(InvalidRegistration::Ip {
        field,
        value: value.chars().take(80).collect(),
    })
}
