//! Access to the configured stores: S3, OSS, and directories.
//!
//! A [`Store`] answers three questions: what is at a path now ([`Store::head`]), which bytes a range of one generation
//! has ([`Store::get`]), and whether the store can be used at all ([`Store::check`]). [`Stores`] routes a path to its
//! store.
//!
//! Invariants, whatever a store replies:
//! * a byte that [`Store::get`] yields belongs to the generation, key and range asked for; a stream yields exactly the
//!   range or ends in an error, never early and never late;
//! * a key is sent as it is, byte for byte, or refused as [`Error::UnsupportedKey`];
//! * every read names its generation; what has no strong etag has no generation and is not cached;
//! * no error, log line or `Debug` output carries a credential, a signature, or the body of a reply.
//!
//! How often a request is sent, when and how many at a time is decided in [`traffic`]. Caching and single-flight are not
//! decided here: see `fill`.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use cachelet_protocol::bucket::BucketPattern;
use cachelet_protocol::ids::{BucketName, Generation, ObjectPath, Scheme, StoreFingerprint, StoreIdentity};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::client::DnsResolver;
use reqsign_core::{Env, OsEnv};

mod chain;
mod checked;
mod config;
mod credentials;
mod endpoint;
mod error;
mod file;
mod oss;
mod remote;
mod s3;
mod traffic;
mod transport;

#[cfg(test)]
mod tests;

pub use config::{Addressing, Authorization, ConfigError, CredentialsKind, StoreConfig, StoreKind};
pub use error::{Error, ReplyCode};
pub use traffic::{TrafficStatus, Urgency};

use crate::metrics::Metrics;
use endpoint::Endpoint;
use traffic::{Failure, Retries, Traffic, Turn};

/// The bytes of a range, in order, in pieces of any size. Ends with the range's last byte or with one error.
pub type ByteStream = BoxStream<'static, Result<Bytes, Error>>;

/// What a store says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// What pins the object's bytes. `None` if the store gives no strong etag, or the file changed a moment ago: the
    /// object may be read from the origin, but not cached.
    pub generation: Option<Generation>,
    /// The object's size in bytes.
    pub size_bytes: u64,
    /// The object's version in a bucket with versioning: selects the `GET`, and is no part of the generation.
    pub version_id: Option<String>,
}

/// A range of one generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeRequest {
    /// The object.
    pub path: ObjectPath,
    /// The generation its bytes must be of.
    pub generation: Generation,
    /// The version to read, where the caller knows it.
    pub version_id: Option<String>,
    /// The bytes: not empty, and within the generation's size.
    pub range: Range<u64>,
}

/// Every configured store.
#[derive(Debug, Default)]
pub struct Stores {
    stores: Vec<Arc<Store>>,
}

impl Stores {
    /// Builds the stores of a configuration, which count in `metrics`. Sends no request; see [`Store::check`].
    pub fn build(configs: &[StoreConfig], metrics: Metrics) -> Result<Self, Error> {
        Self::build_in(
            configs,
            &Surroundings {
                env: Arc::new(OsEnv),
                clock: Clock::system(),
                resolver: None,
                metrics,
            },
        )
    }

    fn build_in(configs: &[StoreConfig], surroundings: &Surroundings) -> Result<Self, Error> {
        for (index, config) in configs.iter().enumerate() {
            config.validate()?;
            for other in &configs[..index] {
                refuse_clash(config, other)?;
            }
        }
        if configs.is_empty() {
            return Ok(Self::default());
        }
        let context = chain::context(Arc::clone(&surroundings.env)).map_err(|_| Error::Unavailable {
            endpoint: "the TLS library".into(),
            reason: "no client can be built: check the system's CA certificates and proxy settings".into(),
        })?;
        let build = |config: &StoreConfig| Store::new(config, &context, surroundings).map(Arc::new);
        Ok(Self {
            stores: configs.iter().map(build).collect::<Result<_, _>>()?,
        })
    }

    /// The store that serves a bucket: the one whose most specific entry in `buckets` matches it.
    pub fn find(&self, scheme: Scheme, bucket: &BucketName) -> Option<&Arc<Store>> {
        let candidates = self.stores.iter().filter(|store| store.scheme() == scheme);
        let ranked = candidates.filter_map(|store| Some((store.specificity(bucket)?, store)));
        ranked
            .max_by_key(|(specificity, _)| *specificity)
            .map(|(_, store)| store)
    }

    /// The stores, in the configuration's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Store>> {
        self.stores.iter()
    }
}

/// Two stores must differ in name, and in every bucket pattern that one scheme's paths are routed by.
fn refuse_clash(config: &StoreConfig, other: &StoreConfig) -> Result<(), ConfigError> {
    let refuse = |key, value: String, problem: String| {
        Err(ConfigError {
            store: config.name.as_str().into(),
            key,
            value: value.into(),
            problem: problem.into(),
        })
    };
    if config.name == other.name {
        return refuse(
            "name",
            format!("{:?}", config.name),
            "is used twice: give each store its own name".into(),
        );
    }
    if config.kind != other.kind {
        return Ok(());
    }
    let taken = other.bucket_patterns()?;
    match config
        .bucket_patterns()?
        .iter()
        .find(|pattern| taken.contains(pattern))
    {
        None => Ok(()),
        Some(pattern) => {
            let value = match pattern {
                BucketPattern::Name(name) => format!("{:?}", name.as_str()),
                BucketPattern::Prefix(prefix) => format!("\"{prefix}*\""),
            };
            refuse(
                "buckets",
                value,
                format!("is also served by store {:?}: keep it in one of them", other.name),
            )
        }
    }
}

/// One configured store.
pub struct Store {
    name: Box<str>,
    identity: StoreIdentity,
    scheme: Scheme,
    authorization: Authorization,
    buckets: Vec<BucketPattern>,
    requester_pays: bool,
    endpoint_aliases: Vec<String>,
    backend: Arc<Backend>,
    traffic: Arc<Traffic>,
}

#[derive(Debug)]
enum Backend {
    Remote(Box<remote::Remote>),
    Directory(file::Directory),
}

impl Backend {
    fn describe(&self) -> Box<str> {
        match self {
            Self::Remote(remote) => remote.describe(),
            Self::Directory(directory) => directory.describe(),
        }
    }

    fn is_remote(&self) -> bool {
        match self {
            Self::Remote(_) => true,
            Self::Directory(_) => false,
        }
    }

    async fn head(&self, path: &ObjectPath) -> Result<ObjectMeta, Failure> {
        Ok(match self {
            Self::Remote(remote) => remote.head(path).await?,
            Self::Directory(directory) => directory.head(path).await?,
        })
    }

    async fn get(&self, request: &RangeRequest) -> Result<ByteStream, Failure> {
        match self {
            Self::Remote(remote) => remote.get(request).await,
            Self::Directory(directory) => Ok(directory.get(request).await?),
        }
    }

    async fn check(&self, bucket: Option<&BucketName>) -> Result<(), Failure> {
        match self {
            Self::Remote(remote) => remote.check(bucket).await?,
            Self::Directory(directory) => directory.check().await?,
        }
        Ok(())
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("name", &self.name)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl Store {
    fn new(
        config: &StoreConfig,
        context: &reqsign_core::Context,
        surroundings: &Surroundings,
    ) -> Result<Self, Error> {
        let remote = |signing| -> Result<Backend, Error> {
            let resolver = surroundings.resolver.clone();
            Ok(Backend::Remote(Box::new(remote::Remote::new(
                config, signing, resolver,
            )?)))
        };
        let backend = match config.kind {
            StoreKind::S3 => remote(s3::signing(config, context))?,
            StoreKind::Oss => remote(oss::signing(config, context)?)?,
            StoreKind::File => Backend::Directory(file::Directory::new(config, surroundings.clock.clone())),
        };
        Ok(Self {
            name: config.name.as_str().into(),
            identity: config.store_identity()?,
            scheme: config.kind.scheme(),
            authorization: config.authorization,
            buckets: config.bucket_patterns()?,
            requester_pays: config.requester_pays,
            endpoint_aliases: config.endpoint_aliases.clone(),
            traffic: Traffic::new(
                config,
                backend.describe(),
                backend.is_remote(),
                surroundings.metrics.clone(),
            ),
            backend: Arc::new(backend),
        })
    }

    /// The name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What makes it the same store on every node.
    pub fn identity(&self) -> &StoreIdentity {
        &self.identity
    }

    /// The scheme of its paths.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Who proves the right to read an object.
    pub fn authorization(&self) -> Authorization {
        self.authorization
    }

    /// The buckets it serves, as the configuration spells them.
    pub fn buckets(&self) -> Vec<String> {
        self.buckets.iter().map(ToString::to_string).collect()
    }

    /// Whether it serves a bucket, if no other store does so more specifically.
    pub fn serves(&self, bucket: &BucketName) -> bool {
        self.specificity(bucket).is_some()
    }

    /// How its requests are going.
    pub fn traffic(&self) -> TrafficStatus {
        self.traffic.status()
    }

    /// Whether a client with this fingerprint means this store.
    ///
    /// A client spells its endpoint as it is configured: as the store's, as one of `endpoint_aliases`, or not at all
    /// where the cloud's default leads to the same bucket. It may leave the region out.
    pub fn fingerprint_matches(&self, fingerprint: &StoreFingerprint, bucket: &BucketName) -> bool {
        if !self.serves(bucket) {
            return false;
        }
        let spellings = match &*self.backend {
            Backend::Directory(_) => vec![(String::new(), String::new())],
            Backend::Remote(remote) => spellings(
                self.scheme,
                remote.endpoint(),
                remote.region(),
                &self.endpoint_aliases,
            ),
        };
        spellings.iter().any(|(endpoint, region)| {
            let bucket = bucket.as_str();
            StoreFingerprint::of(self.scheme, endpoint, region, bucket, self.requester_pays) == *fingerprint
        })
    }

    /// Asks the store what is at a path now. The request is sent after this call begins, never answered from memory.
    pub async fn head(&self, path: &ObjectPath) -> Result<ObjectMeta, Error> {
        self.refuse_foreign(path)?;
        let send = || self.backend.head(path);
        let (meta, turn, _) = self.traffic.ask(&Urgency::demand(), 0, send).await?;
        turn.completed();
        Ok(meta)
    }

    /// Reads a range of one generation that a reader waits for. See [`Store::get_when_due`].
    pub async fn get(&self, request: &RangeRequest) -> Result<ByteStream, Error> {
        self.get_when_due(request, &Urgency::demand()).await
    }

    /// Reads a range of one generation: ranged `GET`s that name the generation, their replies checked. A body that breaks
    /// off is taken up where it ended.
    ///
    /// The stream counts as one of the store's requests until it is read to its end or dropped. Dropping it, or this
    /// call, ends the request.
    pub async fn get_when_due(&self, request: &RangeRequest, urgency: &Urgency) -> Result<ByteStream, Error> {
        let RangeRequest {
            path,
            generation,
            range,
            ..
        } = request;
        self.refuse_foreign(path)?;
        if range.is_empty() || range.end > generation.size_bytes {
            return Err(Error::InvalidRange {
                path: path.clone(),
                start: range.start,
                end: range.end,
                size_bytes: generation.size_bytes,
            });
        }
        let send = || self.backend.get(request);
        let (body, turn, retries) = self.traffic.ask(urgency, range.end - range.start, send).await?;
        let reading = Reading {
            backend: Arc::clone(&self.backend),
            traffic: Arc::clone(&self.traffic),
            left: request.clone(),
            body,
            turn,
            retries,
        };
        Ok(stream::try_unfold(reading, Reading::next).boxed())
    }

    /// Whether the store can be reached and accepts the daemon's credentials; which buckets are missing.
    ///
    /// Sends one small request for each bucket that is configured by its name (one in all if none is).
    pub async fn check(&self) -> Result<(), Error> {
        let names = self.buckets.iter().filter_map(|pattern| match pattern {
            BucketPattern::Name(name) if self.backend.is_remote() => Some(Some(name)),
            BucketPattern::Name(_) | BucketPattern::Prefix(_) => None,
        });
        let names: Vec<_> = names.collect();
        for name in if names.is_empty() { vec![None] } else { names } {
            let send = || self.backend.check(name);
            self.traffic.ask(&Urgency::demand(), 0, send).await?;
        }
        Ok(())
    }

    fn specificity(&self, bucket: &BucketName) -> Option<usize> {
        self.buckets
            .iter()
            .filter(|pattern| pattern.matches(bucket))
            .map(BucketPattern::specificity)
            .max()
    }

    fn refuse_foreign(&self, path: &ObjectPath) -> Result<(), Error> {
        if path.scheme == self.scheme && self.serves(&path.bucket) {
            return Ok(());
        }
        Err(Error::NotServed {
            path: path.clone(),
            store: self.name.clone(),
        })
    }
}

/// A range on its way.
struct Reading {
    backend: Arc<Backend>,
    traffic: Arc<Traffic>,
    left: RangeRequest,
    body: ByteStream,
    turn: Turn,
    retries: Retries,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Error> {
        loop {
            match self.body.next().await {
                Some(Ok(bytes)) => {
                    self.left.range.start += bytes.len() as u64;
                    return Ok(Some((bytes, self)));
                }
                None => {
                    self.turn.completed();
                    return Ok(None);
                }
                Some(Err(error)) if self.left.range.is_empty() => return Err(error),
                Some(Err(error)) => {
                    self.turn.broke_off(&error);
                    let bytes = self.left.range.end - self.left.range.start;
                    let send = || self.backend.get(&self.left);
                    self.body = self
                        .traffic
                        .resume(&self.turn, &mut self.retries, error.into(), bytes, send)
                        .await?;
                }
            }
        }
    }
}

/// The (endpoint, region) pairs under which a client may know a store: its own host and the configured aliases, and
/// the other names the cloud has for the same buckets.
fn spellings(scheme: Scheme, endpoint: &Endpoint, region: &str, aliases: &[String]) -> Vec<(String, String)> {
    let own = endpoint.host_and_port();
    // Names that say neither region nor partition. Bucket names are unique within a partition only: a client that
    // names nothing at all means `aws`.
    let mut anywhere = vec![own.clone()];
    anywhere.extend_from_slice(aliases);
    let mut with_region = Vec::new();
    match scheme {
        Scheme::S3 if own == Endpoint::aws_host(region) => {
            anywhere.push(own.replacen("s3.", "s3.dualstack.", 1));
            let partitions = ["cn-", "us-gov-", "us-iso", "eu-iso", "eusc-"];
            if partitions.iter().any(|start| region.starts_with(start)) {
                with_region.push(String::new());
            } else {
                anywhere.extend(["s3.amazonaws.com".to_owned(), String::new()]);
            }
        }
        Scheme::Oss if endpoint.oss_region().as_deref() == Some(region) => {
            let hosts = [
                format!("oss-{region}-internal.aliyuncs.com"),
                format!("oss-{region}.aliyuncs.com"),
            ];
            anywhere.extend(hosts);
            anywhere.push(String::new());
        }
        Scheme::S3 | Scheme::Oss | Scheme::File => {}
    }
    with_region.extend_from_slice(&anywhere);
    let without = anywhere.into_iter().map(|host| (host, String::new()));
    with_region
        .into_iter()
        .map(|host| (host, region.to_owned()))
        .chain(without)
        .collect()
}

/// What stores take from outside of their configuration; tests bring their own.
struct Surroundings {
    env: Arc<dyn Env>,
    clock: Clock,
    /// `None`: the system's.
    resolver: Option<Arc<dyn DnsResolver>>,
    metrics: Metrics,
}

/// The wall clock, as the kernel stamps files with it.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The system's.
    pub fn system() -> Self {
        Self::new(SystemTime::now)
    }

    /// One that says what `now` says.
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
