//! An S3 server that misbehaves at random, in every way that S3 servers and what stands before them are known for.
//!
//! Its objects are made up: `/hostile/SEED-SIZE` is the content named `SEED` ([`crate::deterministic_bytes`]). What goes
//! wrong is drawn from a seed, so that a run can be repeated as far as the order of requests can. It checks no signatures.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cachelet_protocol::ids::{Etag, Generation};
use futures::{StreamExt, stream};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_MATCH, LAST_MODIFIED, RANGE, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::content::deterministic_range;
use crate::loopback::{Body, LoopbackServer, full, serve_http};

const BUCKET: &str = "hostile";

/// What can go wrong with one GET.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Misdeed {
    /// Status 500.
    InternalError,
    /// Status 503 without more.
    SlowDown,
    /// Status 503, and a second to wait.
    SlowDownForASecond,
    /// Status 429.
    TooManyRequests,
    /// Status 403.
    Forbidden,
    /// The whole object with status 200.
    WholeObject,
    /// A range that begins one byte later than the one asked for.
    OtherRange,
    /// An etag that no object has.
    OtherEtag,
    /// A body that ends early, in chunks: nothing says how long it should have been.
    ShortBody,
    /// A body that goes on for longer, in chunks.
    LongBody,
    /// The connection breaks in the middle of the body.
    ResetBody,
    /// Nothing more comes in the middle of the body.
    StalledBody,
    /// No reply.
    Stall,
}

impl Misdeed {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::InternalError,
        Self::SlowDown,
        Self::SlowDownForASecond,
        Self::TooManyRequests,
        Self::Forbidden,
        Self::WholeObject,
        Self::OtherRange,
        Self::OtherEtag,
        Self::ShortBody,
        Self::LongBody,
        Self::ResetBody,
        Self::StalledBody,
        Self::Stall,
    ];
}

/// How the server treats the GETs to come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mood {
    /// As a server should.
    Well,
    /// This share of them goes wrong, in a way drawn for each, and the others are answered.
    Mixed(f64),
    /// This share of them goes wrong in this way.
    Share(f64, Misdeed),
    /// This share is late by so much, and right.
    Late(f64, Duration),
}

/// See the module's text.
#[derive(Debug)]
pub struct HostileS3 {
    shared: Arc<Shared>,
    server: LoopbackServer,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    mood: Mood,
    /// How long a right reply takes to its first byte.
    delay: Duration,
    chance: StdRng,
    gets: u64,
    misdeeds: BTreeMap<Misdeed, u64>,
    under_way: usize,
    most_under_way: usize,
}

impl HostileS3 {
    /// Starts it on a free loopback port, in a good mood.
    pub fn start(seed: u64) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                mood: Mood::Well,
                delay: Duration::ZERO,
                chance: StdRng::seed_from_u64(seed),
                gets: 0,
                misdeeds: BTreeMap::new(),
                under_way: 0,
                most_under_way: 0,
            }),
        });
        let for_server = Arc::clone(&shared);
        let server = LoopbackServer::start("hostile-s3", |listener| {
            serve_http(listener, move || {
                let shared = Arc::clone(&for_server);
                service_fn(move |request| answer(request, Arc::clone(&shared)))
            })
        });
        Self { shared, server }
    }

    /// Where it listens, as an endpoint URL.
    pub fn endpoint(&self) -> String {
        let address: SocketAddr = self.server.address();
        format!("http://{address}")
    }

    /// An object of the content named `seed`, and where clients find it.
    pub fn object(seed: u64, size_bytes: u64) -> (String, Generation) {
        let generation = Generation {
            etag: Etag::from_header(&etag_of(seed, size_bytes)).expect("hexadecimal digits"),
            size_bytes,
        };
        (format!("s3a://{BUCKET}/{seed}-{size_bytes}"), generation)
    }

    /// What happens to the GETs to come.
    pub fn set_mood(&self, mood: Mood) {
        self.shared.state().mood = mood;
    }

    /// Delays the first byte of every right reply from now on.
    pub fn set_first_byte_delay(&self, delay: Duration) {
        self.shared.state().delay = delay;
    }

    /// GETs of objects that have arrived.
    pub fn gets(&self) -> u64 {
        self.shared.state().gets
    }

    /// What went wrong, how often.
    pub fn misdeeds(&self) -> BTreeMap<Misdeed, u64> {
        self.shared.state().misdeeds.clone()
    }

    /// The most GETs that were under way at a time since it was asked last.
    pub fn take_most_under_way(&self) -> usize {
        let mut state = self.shared.state();
        let now = state.under_way;
        std::mem::replace(&mut state.most_under_way, now)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one GET as under way while it lives.
struct UnderWay(Arc<Shared>);

impl UnderWay {
    fn begin(shared: &Arc<Shared>) -> Self {
        let mut state = shared.state();
        state.under_way += 1;
        state.most_under_way = state.most_under_way.max(state.under_way);
        Self(Arc::clone(shared))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.state().under_way -= 1;
    }
}

/// What is to happen to one GET.
struct Plan {
    misdeed: Option<Misdeed>,
    delay: Duration,
    /// Where in the body, in thousandths of it.
    place: u64,
}

impl State {
    fn plan(&mut self) -> Plan {
        self.gets += 1;
        let (draw, place) = (self.chance.random::<f64>(), self.chance.random_range(0..1000));
        let kind = self.chance.random_range(0..Misdeed::ALL.len());
        let mut delay = self.delay;
        let misdeed = match self.mood {
            Mood::Well => None,
            Mood::Mixed(share) => (draw < share).then_some(Misdeed::ALL[kind]),
            Mood::Share(share, misdeed) => (draw < share).then_some(misdeed),
            Mood::Late(share, by) => {
                if draw < share {
                    delay += by;
                }
                None
            }
        };
        if let Some(misdeed) = misdeed {
            *self.misdeeds.entry(misdeed).or_default() += 1;
        }
        Plan {
            misdeed,
            delay,
            place,
        }
    }
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Body>, Infallible> {
    Ok(answer_to(&request, &shared)
        .await
        .unwrap_or_else(|status| refuse(status, None)))
}

async fn answer_to(request: &Request<Incoming>, shared: &Arc<Shared>) -> Result<Response<Body>, StatusCode> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    if request.method() != Method::GET {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let key = request.uri().path().trim_start_matches('/');
    let key = key
        .strip_prefix(BUCKET)
        .unwrap_or_default()
        .trim_start_matches('/');
    // The probe of a daemon that starts asks for an object that nobody has.
    let Some((seed, size)) = parse_key(key) else {
        return Err(StatusCode::NOT_FOUND);
    };
    let etag = etag_of(seed, size);
    if header(IF_MATCH) != Some(&etag) {
        return Err(StatusCode::PRECONDITION_FAILED);
    }
    let range = header(RANGE)
        .and_then(parse_range)
        .filter(|range| range.end <= size);
    let Some(range) = range else {
        return Err(StatusCode::RANGE_NOT_SATISFIABLE);
    };
    let under_way = UnderWay::begin(shared);
    let Plan {
        misdeed,
        delay,
        place,
    } = shared.state().plan();
    if delay > Duration::ZERO {
        tokio::time::sleep(delay).await;
    }
    let right = Reply {
        status: StatusCode::PARTIAL_CONTENT,
        etag,
        size,
        said: range.clone(),
        sent: deterministic_range(seed, range.clone()),
    };
    let cut = ((range.end - range.start) * place / 1000) as usize;
    Ok(match misdeed {
        None => right.with(End::Whole, under_way),
        Some(Misdeed::InternalError) => return Err(StatusCode::INTERNAL_SERVER_ERROR),
        Some(Misdeed::SlowDown) => return Err(StatusCode::SERVICE_UNAVAILABLE),
        Some(Misdeed::SlowDownForASecond) => refuse(StatusCode::SERVICE_UNAVAILABLE, Some("1")),
        Some(Misdeed::TooManyRequests) => return Err(StatusCode::TOO_MANY_REQUESTS),
        Some(Misdeed::Forbidden) => return Err(StatusCode::FORBIDDEN),
        Some(Misdeed::WholeObject) => Reply {
            status: StatusCode::OK,
            sent: deterministic_range(seed, 0..size),
            ..right
        }
        .with(End::Whole, under_way),
        Some(Misdeed::OtherRange) => Reply {
            said: range.start + 1..range.end + 1,
            ..right
        }
        .with(End::Whole, under_way),
        Some(Misdeed::OtherEtag) => Reply {
            etag: "\"00000000000000000000000000000bad\"".to_owned(),
            ..right
        }
        .with(End::Whole, under_way),
        Some(Misdeed::ShortBody) => {
            let mut short = right;
            short.sent.truncate(cut);
            short.with(End::Unannounced, under_way)
        }
        Some(Misdeed::LongBody) => {
            let mut long = right;
            long.sent.extend_from_slice(b"and more that nobody asked for");
            long.with(End::Unannounced, under_way)
        }
        Some(Misdeed::ResetBody) => right.with(End::Reset(cut), under_way),
        Some(Misdeed::StalledBody) => right.with(End::Stall(cut), under_way),
        Some(Misdeed::Stall) => std::future::pending().await,
    })
}

/// A reply to a GET, right or not.
struct Reply {
    status: StatusCode,
    etag: String,
    size: u64,
    said: Range<u64>,
    sent: Vec<u8>,
}

#[derive(Clone, Copy)]
enum End {
    /// With its length said before.
    Whole,
    /// In chunks.
    Unannounced,
    /// The connection is closed after so many bytes.
    Reset(usize),
    /// Nothing comes after so many bytes.
    Stall(usize),
}

impl Reply {
    fn with(self, end: End, under_way: UnderWay) -> Response<Body> {
        let length = self.sent.len();
        let mut sent = Bytes::from(self.sent);
        let tail: stream::BoxStream<'static, io::Result<Bytes>> = match end {
            End::Whole | End::Unannounced => stream::empty().boxed(),
            End::Reset(after) => {
                sent.truncate(after);
                let reset = async {
                    // The connection flushes what it has while it waits for the next piece.
                    tokio::task::yield_now().await;
                    Err(io::Error::other("reset by the test"))
                };
                stream::once(reset).boxed()
            }
            End::Stall(after) => {
                sent.truncate(after);
                stream::pending().boxed()
            }
        };
        let pieces = stream::iter([Ok(sent)]).chain(tail).map(move |piece| {
            // The request is under way until its body is gone.
            let _ = &under_way;
            piece.map(Frame::data)
        });
        let mut reply = Response::builder()
            .status(self.status)
            .header(ETAG, self.etag)
            .header(LAST_MODIFIED, "Sat, 21 Nov 2026 00:00:00 GMT");
        if self.status == StatusCode::PARTIAL_CONTENT {
            let (first, last) = (self.said.start, self.said.end - 1);
            reply = reply.header(CONTENT_RANGE, format!("bytes {first}-{last}/{}", self.size));
        }
        if !matches!(end, End::Unannounced) {
            reply = reply.header(CONTENT_LENGTH, length);
        }
        reply
            .body(StreamBody::new(pieces).boxed_unsync())
            .expect("the headers are ours")
    }
}

fn refuse(status: StatusCode, retry_after: Option<&'static str>) -> Response<Body> {
    let reason = status.canonical_reason().unwrap_or_default().replace(' ', "");
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{reason}</Code></Error>");
    let mut reply = Response::builder().status(status);
    if let Some(seconds) = retry_after {
        reply = reply.header(RETRY_AFTER, seconds);
    }
    reply.body(full(text)).expect("the headers are ours")
}

fn etag_of(seed: u64, size: u64) -> String {
    format!("\"{seed:016x}{size:016x}\"")
}

fn parse_key(key: &str) -> Option<(u64, u64)> {
    let (seed, size) = key.split_once('-')?;
    Some((seed.parse().ok()?, size.parse().ok()?))
}

fn parse_range(header: &str) -> Option<Range<u64>> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let range = first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?;
    (!range.is_empty()).then_some(range)
}
