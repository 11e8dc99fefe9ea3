//! The workers bring blocks in, as they are asked to; what fails at one goes to the next.
//!
//! A block is asked for in steps, each waited for by a thread. A worker that dies, hangs or stops loses everything that
//! was to be there, done or not: it is planned anew among the others. An object that cannot be read is given up as a
//! whole. Further copies begin when the service knows of the first, so that they come from there.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use cachelet_client::{Client, Error, OpenRequest};
use cachelet_protocol::ids::{Generation, ObjectPath};
use cachelet_protocol::wire::{BypassReason, Code};

use super::bandwidth::Bandwidth;
use super::plan::{BlockOf, Copy, Plan, Planner};
use crate::arguments::Load;
use crate::failure::{Failure, Kind};
use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// Asked for at once; a worker makes one request of it.
const STEP_BYTES: u64 = 8 << 20;
/// A page: steps begin and end where pages do.
const PAGE_BYTES: u64 = cachelet_protocol::block::PAGE_BYTES;
/// A step that gets no page for so long has failed: longer than a worker's own retries of a request take.
const NO_PAGE: Duration = Duration::from_secs(120);
/// Tries of a step that may work if tried again, and the pause after the first.
const TRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Owners of a block, one after the other, before it is given up.
const OWNERS: usize = 4;
/// For how long a worker goes by what the service told it of a block's holders, and a little more.
const ANSWER_AGE: Duration = Duration::from_millis(1500);
/// How long the service may take to hear of what was loaded: reports come every 500 ms.
const REPORTED: Duration = Duration::from_secs(30);
/// Most threads that wait for workers.
const MAX_THREADS: usize = 512;
/// How often somebody who waits looks whether to stop.
const TICK: Duration = Duration::from_millis(50);
/// Longest wait for a worker's final count.
const TALLY: Duration = Duration::from_secs(2);

/// A block, or all of an object, that was not loaded.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) copy: Copy,
    pub(super) kind: Kind,
    pub(super) reason: String,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Copies brought in.
    pub(super) loaded: Vec<Copy>,
    /// Copies that turned out to be there when they were planned anew.
    pub(super) present: Vec<Copy>,
    pub(super) failed: Vec<Failed>,
    /// Bytes that were brought in of copies that are not complete.
    pub(super) partial_bytes: u64,
    /// By member: what it said that it fetched.
    pub(super) fetched: BTreeMap<usize, cachelet_client::FilledBytes>,
    /// By member: why it was given up.
    pub(super) given_up: BTreeMap<usize, String>,
}

/// See the module's text.
pub(super) struct Transfer<'a> {
    planner: &'a Planner<'a>,
    owners: &'a [usize],
    interrupt: &'a Interrupt,
    concurrency: usize,
    step_bytes: u64,
    bandwidth: Arc<Bandwidth>,
    clients: BTreeMap<usize, Client>,
    outcome: Outcome,
    given_up_kinds: BTreeMap<usize, Kind>,
    /// Objects that cannot be read, and why.
    lost_objects: HashMap<usize, Trouble>,
}

/// A step of a copy.
#[derive(Debug, Clone)]
struct Step {
    /// The copy's place in its round.
    copy: usize,
    object: usize,
    path: ObjectPath,
    generation: Generation,
    offset: u64,
    length: u64,
}

/// What a thread tells.
enum Event {
    /// So many bytes more are there.
    Bytes { copy: usize, bytes: u64 },
    /// A step has ended; `Some`: without all of its bytes.
    Ended { copy: usize, trouble: Option<Trouble> },
}

/// Why a step ended without its bytes, and whom that concerns.
#[derive(Debug, Clone)]
struct Trouble {
    concerns: Concerns,
    kind: Kind,
    reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Concerns {
    /// Nothing was tried: somebody else's trouble came first, or the end.
    Nobody,
    Worker,
    Object,
    Block,
}

/// What the threads of one round share.
struct Round {
    queues: HashMap<usize, Mutex<VecDeque<Step>>>,
    stopped: AtomicBool,
    /// Members of no further use.
    given_up: Mutex<HashSet<usize>>,
    /// Objects of no further use.
    lost_objects: Mutex<HashSet<usize>>,
    bandwidth: Arc<Bandwidth>,
}

impl<'a> Transfer<'a> {
    pub(super) fn new(
        planner: &'a Planner<'a>,
        owners: &'a [usize],
        load: &Load,
        interrupt: &'a Interrupt,
    ) -> Self {
        let bandwidth = load.bandwidth.map(|bytes| bytes.as_u64());
        // A quarter of a second's worth, so that little comes in bursts.
        let step_bytes = bandwidth.map_or(STEP_BYTES, |rate| {
            (rate / 4 / PAGE_BYTES * PAGE_BYTES).clamp(PAGE_BYTES, STEP_BYTES)
        });
        Self {
            planner,
            owners,
            interrupt,
            concurrency: usize::from(load.concurrency),
            step_bytes,
            bandwidth: Arc::new(Bandwidth::new(bandwidth)),
            clients: BTreeMap::new(),
            outcome: Outcome::default(),
            given_up_kinds: BTreeMap::new(),
            lost_objects: HashMap::new(),
        }
    }

    pub(super) fn run(mut self, plan: Plan) -> Outcome {
        let bytes = |copies: &[Copy]| copies.iter().map(|copy| copy.length).sum::<u64>();
        let mut progress = Progress::begin("loaded", bytes(&plan.missing));
        let mut taken: HashMap<BlockOf, Vec<usize>> = HashMap::new();
        for copy in &plan.present {
            taken.entry(copy.block).or_default().push(copy.node);
        }
        let mut missing: BTreeMap<u8, Vec<Copy>> = BTreeMap::new();
        for copy in plan.missing {
            missing.entry(copy.nth).or_default().push(copy);
        }
        for (nth, copies) in missing {
            if nth > 0 {
                self.wait_until_known(&copies);
            }
            self.copies(copies, &mut taken, &mut progress);
            if self.interrupt.came() {
                break;
            }
        }
        progress.end();
        self.ask_what_was_fetched();
        self.outcome
    }

    /// Waits until the service knows of the copies that these are to be made from, and workers that asked before ask
    /// again. If it takes too long, they come from the store.
    fn wait_until_known(&self, copies: &[Copy]) {
        let blocks: HashSet<BlockOf> = copies.iter().map(|copy| copy.block).collect();
        let sources: Vec<Copy> = self
            .outcome
            .loaded
            .iter()
            .filter(|copy| blocks.contains(&copy.block))
            .copied()
            .collect();
        let deadline = Instant::now() + REPORTED;
        while Instant::now() < deadline && !self.interrupt.came() {
            if self.planner.are_known(&sources).unwrap_or(false) {
                break;
            }
            thread::sleep(10 * TICK);
        }
        let end = Instant::now() + ANSWER_AGE;
        while Instant::now() < end && !self.interrupt.came() {
            thread::sleep(TICK);
        }
    }

    /// Brings copies in, all of the same place among the copies of their blocks.
    fn copies(
        &mut self,
        copies: Vec<Copy>,
        taken: &mut HashMap<BlockOf, Vec<usize>>,
        progress: &mut Progress,
    ) {
        let mut left = copies;
        for _ in 0..OWNERS {
            // Since they were planned, another copy may have come to the same node, or the node has gone.
            let of_no_use = |copy: &Copy| {
                let has_another = taken
                    .get(&copy.block)
                    .is_some_and(|nodes| nodes.contains(&copy.node));
                has_another || self.outcome.given_up.contains_key(&copy.node)
            };
            let (stale, mut ready): (Vec<_>, Vec<_>) = left.into_iter().partition(of_no_use);
            ready.extend(self.replan(stale, taken));
            left = self.round(ready, progress);
            let gone = &self.outcome.given_up;
            taken
                .values_mut()
                .for_each(|nodes| nodes.retain(|node| !gone.contains_key(node)));
            if left.is_empty() || self.interrupt.came() {
                break;
            }
        }
        if !self.interrupt.came() {
            self.give_up(left, "as others before it");
        }
        for copy in &self.outcome.loaded {
            let nodes = taken.entry(copy.block).or_default();
            if !nodes.contains(&copy.node) {
                nodes.push(copy.node);
            }
        }
    }

    /// Copies whose nodes will not do, on other nodes; those that are there already, or that nobody takes, are settled.
    fn replan(&mut self, copies: Vec<Copy>, taken: &mut HashMap<BlockOf, Vec<usize>>) -> Vec<Copy> {
        let gone = &self.outcome.given_up;
        let owners: Vec<usize> = self
            .owners
            .iter()
            .copied()
            .filter(|owner| !gone.contains_key(owner))
            .collect();
        if copies.is_empty() || owners.is_empty() {
            self.give_up(copies, "and there is no other");
            return Vec::new();
        }
        let plan = match self.planner.replan(&copies, &owners, taken) {
            Ok(plan) => plan,
            Err(failure) => {
                self.give_up(
                    copies,
                    &format!("and where else it belongs is not known: {failure}"),
                );
                return Vec::new();
            }
        };
        let placed: HashSet<BlockOf> = plan
            .missing
            .iter()
            .chain(&plan.present)
            .map(|copy| copy.block)
            .collect();
        let nowhere = copies
            .into_iter()
            .filter(|copy| !placed.contains(&copy.block))
            .collect();
        self.give_up(nowhere, "and no other takes it");
        for copy in plan.present {
            taken.entry(copy.block).or_default().push(copy.node);
            self.outcome.present.push(copy);
        }
        plan.missing
    }

    fn give_up(&mut self, copies: Vec<Copy>, why: &str) {
        for copy in copies {
            let (kind, reason) = match self.outcome.given_up.get(&copy.node) {
                Some(reason) => (self.given_up_kinds[&copy.node], reason.as_str()),
                None => (Kind::Temporary, "its node has another copy"),
            };
            self.outcome.failed.push(Failed {
                copy,
                kind,
                reason: format!("{reason}, {why}"),
            });
        }
    }

    /// One attempt at copies; what is left of them, and of earlier ones, because workers were given up.
    fn round(&mut self, copies: Vec<Copy>, progress: &mut Progress) -> Vec<Copy> {
        self.connect(&copies, progress);
        let (copies, mut left): (Vec<_>, Vec<_>) = copies
            .into_iter()
            .partition(|copy| self.clients.contains_key(&copy.node));
        let before: u64 = self.outcome.loaded.iter().map(|copy| copy.length).sum();
        let ended = self.ask(&copies, before, progress);
        for (copy, came) in copies.into_iter().zip(ended) {
            let (trouble, bytes) = match came {
                Came::All => {
                    self.outcome.loaded.push(copy);
                    continue;
                }
                Came::Not(trouble, bytes) => (trouble, bytes),
            };
            if self.outcome.given_up.contains_key(&copy.node) {
                left.push(copy);
                continue;
            }
            self.outcome.partial_bytes += bytes;
            // Without either the user has interrupted it.
            if let Some(trouble) = self.lost_objects.get(&copy.block.object).or(trouble.as_ref()) {
                self.outcome.failed.push(Failed {
                    copy,
                    kind: trouble.kind,
                    reason: trouble.reason.clone(),
                });
            }
        }
        // What a worker had before it went is gone with it.
        let gone = &self.outcome.given_up;
        left.extend(
            self.outcome
                .loaded
                .extract_if(.., |copy| gone.contains_key(&copy.node)),
        );
        left
    }

    /// Connects to the workers that copies are to be on.
    fn connect(&mut self, copies: &[Copy], progress: &Progress) {
        let mut nodes: Vec<usize> = copies.iter().map(|copy| copy.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.retain(|node| !self.clients.contains_key(node) && !self.outcome.given_up.contains_key(node));
        let members = &self.planner.fleet.members;
        let connected: Vec<Result<Client, Failure>> = thread::scope(|scope| {
            let connecting: Vec<_> = nodes
                .iter()
                .map(|node| scope.spawn(|| loading(members[*node].connect()?, &members[*node].node)))
                .collect();
            connecting
                .into_iter()
                .map(|connecting| {
                    connecting
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        for (node, connected) in nodes.into_iter().zip(connected) {
            match connected {
                Ok(client) => _ = self.clients.insert(node, client),
                Err(failure) => self.without(node, failure.kind, &failure.to_string(), progress),
            }
        }
    }

    /// A worker is of no further use.
    fn without(&mut self, node: usize, kind: Kind, reason: &str, progress: &Progress) {
        if self.outcome.given_up.contains_key(&node) {
            return;
        }
        let name = &self.planner.fleet.members[node].node;
        progress.note(&format!("going on without node {name}: {reason}"));
        self.outcome
            .given_up
            .insert(node, format!("node {name}: {reason}"));
        self.given_up_kinds.insert(node, kind);
        self.clients.remove(&node);
    }

    /// Has workers bring copies in, and waits until each has come or failed, or the user wants no more.
    fn ask(&mut self, copies: &[Copy], before: u64, progress: &mut Progress) -> Vec<Came> {
        let mut state: Vec<CopyState> = Vec::with_capacity(copies.len());
        let mut queues: HashMap<usize, VecDeque<Step>> = HashMap::new();
        for (place, copy) in copies.iter().enumerate() {
            let steps = self.steps(place, copy);
            state.push(CopyState {
                steps: steps.len(),
                bytes: 0,
                trouble: None,
                incomplete: false,
            });
            queues.entry(copy.node).or_default().extend(steps);
        }
        let mut outstanding: usize = state.iter().map(|state| state.steps).sum();
        let threads = self.concurrency.min(MAX_THREADS / queues.len().max(1)).max(1);
        let round = Arc::new(Round {
            queues: queues
                .into_iter()
                .map(|(node, queue)| (node, Mutex::new(queue)))
                .collect(),
            stopped: AtomicBool::new(false),
            given_up: Mutex::default(),
            lost_objects: Mutex::new(self.lost_objects.keys().copied().collect()),
            bandwidth: Arc::clone(&self.bandwidth),
        });
        let (tell, events) = mpsc::channel();
        for node in round.queues.keys().copied() {
            for _ in 0..threads.min(round.queue(node).len()) {
                let (round, tell, client) = (Arc::clone(&round), tell.clone(), self.clients[&node].clone());
                // Not waited for: one that hangs with its worker must not keep the user from leaving.
                thread::spawn(move || round.work(node, &client, &tell));
            }
        }
        drop(tell);
        let mut bytes = before;
        while outstanding > 0 && !self.interrupt.came() {
            match events.recv_timeout(TICK) {
                Ok(Event::Bytes { copy, bytes: more }) => {
                    state[copy].bytes += more;
                    bytes += more;
                }
                Ok(Event::Ended { copy, trouble }) => {
                    outstanding -= 1;
                    state[copy].steps -= 1;
                    if let Some(trouble) = trouble {
                        let Copy { block, node, .. } = copies[copy];
                        state[copy].incomplete = true;
                        match trouble.concerns {
                            Concerns::Nobody => {}
                            Concerns::Worker => {
                                self.without(node, trouble.kind, &trouble.reason, progress);
                                round.give_up(node);
                            }
                            Concerns::Object => {
                                round.lose(block.object);
                                self.lost_objects.entry(block.object).or_insert(trouble);
                            }
                            Concerns::Block => state[copy].trouble = Some(trouble),
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            progress.at(bytes);
        }
        round.stopped.store(true, Ordering::Relaxed);
        state.into_iter().map(CopyState::came).collect()
    }

    fn steps(&self, place: usize, copy: &Copy) -> Vec<Step> {
        let object = &self.planner.objects[copy.block.object];
        let end = copy.offset + copy.length;
        (copy.offset..end)
            .step_by(self.step_bytes as usize)
            .map(|offset| Step {
                copy: place,
                object: copy.block.object,
                path: object.path.clone(),
                generation: object.generation.clone(),
                offset,
                length: self.step_bytes.min(end - offset),
            })
            .collect()
    }

    fn ask_what_was_fetched(&mut self) {
        for (node, client) in &self.clients {
            client.set_request_timeout(TALLY);
            // A session that was lost took its count with it.
            let whole = client.stats().reconnects == 0;
            if whole && let Ok(Some(filled)) = client.filled_bytes() {
                self.outcome.fetched.insert(*node, filled);
            }
        }
    }
}

/// The client, if its worker can load.
fn loading(client: Client, node: &str) -> Result<Client, Failure> {
    let worker = client.connect()?;
    if !worker.loads {
        let message = format!(
            "the worker of node {node} runs version {}, which cannot load: update it",
            worker.version
        );
        return Err(Failure::new(Kind::Unavailable, message));
    }
    Ok(client)
}

/// A copy on its way.
struct CopyState {
    steps: usize,
    bytes: u64,
    incomplete: bool,
    trouble: Option<Trouble>,
}

/// How a copy's round ended.
enum Came {
    All,
    /// Why not, if that is this copy's to say, and how much of it came.
    Not(Option<Trouble>, u64),
}

impl CopyState {
    fn came(self) -> Came {
        if self.steps == 0 && !self.incomplete {
            Came::All
        } else {
            Came::Not(self.trouble, self.bytes)
        }
    }
}

impl Round {
    fn queue(&self, node: usize) -> std::sync::MutexGuard<'_, VecDeque<Step>> {
        lock(&self.queues[&node])
    }

    fn give_up(&self, node: usize) {
        lock(&self.given_up).insert(node);
    }

    fn lose(&self, object: usize) {
        lock(&self.lost_objects).insert(object);
    }

    /// Whether a step is still worth taking.
    fn wants(&self, node: usize, object: usize) -> bool {
        !self.stopped.load(Ordering::Relaxed)
            && !lock(&self.given_up).contains(&node)
            && !lock(&self.lost_objects).contains(&object)
    }

    /// Waits, unless there is nothing left to wait for.
    fn pause(&self, node: usize, object: usize, pause: Duration) {
        let end = Instant::now() + pause;
        while self.wants(node, object) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(TICK));
        }
    }

    /// A thread's life: steps of one worker, one after the other.
    fn work(&self, node: usize, client: &Client, tell: &mpsc::Sender<Event>) {
        loop {
            let Some(step) = self.queue(node).pop_front() else {
                return;
            };
            let pause = if self.wants(node, step.object) {
                self.bandwidth.take(step.length, Instant::now())
            } else {
                Duration::ZERO
            };
            self.pause(node, step.object, pause);
            let trouble = self.take(node, client, &step, tell).err();
            let ended = Event::Ended {
                copy: step.copy,
                trouble,
            };
            if tell.send(ended).is_err() {
                return;
            }
        }
    }

    fn take(
        &self,
        node: usize,
        client: &Client,
        step: &Step,
        tell: &mpsc::Sender<Event>,
    ) -> Result<(), Trouble> {
        let mut told = 0;
        let mut tries = 1;
        let mut pause = FIRST_PAUSE;
        let mut last_page = Instant::now();
        loop {
            if !self.wants(node, step.object) {
                return Err(Trouble::nobodys());
            }
            match ask_once(client, step) {
                Ok(present) => {
                    if present > told {
                        // Whoever listens no more has been interrupted.
                        let _ = tell.send(Event::Bytes {
                            copy: step.copy,
                            bytes: present - told,
                        });
                        told = present;
                        last_page = Instant::now();
                    }
                    if present == step.length {
                        return Ok(());
                    }
                    if last_page.elapsed() >= NO_PAGE {
                        return Err(Trouble {
                            concerns: Concerns::Block,
                            kind: Kind::Temporary,
                            reason: format!("no page came within {} s", NO_PAGE.as_secs()),
                        });
                    }
                }
                Err(error) => {
                    let trouble = Trouble::from(error);
                    if trouble.concerns != Concerns::Block || tries == TRIES {
                        return Err(trouble);
                    }
                    tries += 1;
                    self.pause(node, step.object, pause);
                    pause *= 2;
                }
            }
        }
    }
}

fn ask_once(client: &Client, step: &Step) -> Result<u64, Error> {
    let request = OpenRequest::new(step.path.clone()).with_generation(step.generation.clone());
    let object = client.open(&request)?;
    object.load(step.offset..step.offset + step.length)
}

impl Trouble {
    fn nobodys() -> Self {
        Self {
            concerns: Concerns::Nobody,
            kind: Kind::Temporary,
            reason: String::new(),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        let concerns = match &error {
            Error::ObjectChanged { .. }
            | Error::NotFound(_)
            | Error::PermissionDenied(_)
            | Error::EndOfObject { .. } => Concerns::Object,
            Error::Bypass { reason, .. } => match reason {
                BypassReason::Draining | BypassReason::Overloaded => Concerns::Worker,
                BypassReason::NoSpace | BypassReason::NoGrant => Concerns::Block,
                BypassReason::UnknownStore
                | BypassReason::UnsupportedKey
                | BypassReason::NotCacheable
                | BypassReason::GenerationRequired
                | BypassReason::Other => Concerns::Object,
            },
            Error::Failed { code, .. } => match code {
                Code::Unsupported | Code::Unauthenticated => Concerns::Worker,
                Code::PermissionDenied | Code::NotFound | Code::ObjectChanged | Code::InvalidRequest => {
                    Concerns::Object
                }
                // A handle that the worker does not know any more is another one at the next try.
                Code::UnknownHandle
                | Code::OriginUnavailable
                | Code::DeadlineExceeded
                | Code::NotHeld
                | Code::Internal => Concerns::Block,
            },
            Error::Unavailable(_)
            | Error::SocketPathTooLong { .. }
            | Error::Timeout { .. }
            | Error::Protocol(_)
            | Error::Io { .. } => Concerns::Worker,
        };
        let mut reason = error.to_string();
        match &error {
            Error::ObjectChanged { .. } => {
                reason = format!("{reason} (it changed since it was listed: run this again)");
            }
            Error::Bypass {
                reason: BypassReason::NoSpace,
                ..
            } => {
                let remedy =
                    "its cache is full of what is in use or being filled: raise cache.quota or load less";
                reason = format!("{reason}; {remedy}");
            }
            _ => {}
        }
        Self {
            concerns,
            kind: Failure::from(error).kind,
            reason,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
