//! Random sequences of all that can happen to a cache and its objects, each step compared with the reference.
//!
//! A case is one operation with all that is checked after it. Sequences run one after the other on the same worker, on keys of
//! their own, so that what earlier ones left is evicted under later ones. A failing sequence is shrunk, each attempt on a new
//! worker, and printed with the seed.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use cachelet_client::{Error, Object, OpenRequest, Options, Target};
use cachelet_tests::{
    Baseline, Cluster, Counts, Dose, Fault, FaultProxy, LiteralS3, Outcome, Reader, Reference, Version,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestError, TestRng, TestRunner};

use super::support::{KIB, MIB, options_of};

/// How a client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Grants,
    Verifying,
    Inline,
    Tcp,
}

const ALL: [By; 4] = [By::Grants, By::Verifying, By::Inline, By::Tcp];

/// A place in an object, as shares of its size in 65,536ths.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: u16,
    length: u16,
}

#[derive(Debug, Clone)]
enum Op {
    Put {
        key: u8,
        size: u64,
    },
    Delete {
        key: u8,
    },
    /// Opens and reads; `knows`: the caller names the generation.
    Read {
        by: By,
        key: u8,
        place: Place,
        knows: bool,
    },
    /// Opens, and keeps it open whatever comes.
    Hold {
        by: By,
        key: u8,
    },
    ReadHeld {
        which: u8,
        place: Place,
    },
    Forget {
        key: u8,
    },
    /// SIGKILL, or SIGTERM; what is held is read while there is no daemon.
    Restart {
        crash: bool,
        place: Place,
    },
    /// SIGKILL, one bit of one file, start.
    Flip {
        file: u16,
        region: u8,
        place: u16,
        bit: u8,
    },
    /// The origin breaks the next requests while this is read.
    ReadBroken {
        by: By,
        key: u8,
        place: Place,
        fault: Fault,
    },
    /// The locality service goes, or comes back.
    Service,
}

/// How the origin breaks requests.
const BROKEN: [Fault; 3] = [
    Fault::Status(503),
    Fault::CutBody { after_bytes: 70_001 },
    Fault::WrongRange,
];
const KEYS: u8 = 5;
/// What a sequence finds.
const FIRST_SIZES: [u64; KEYS as usize] = [100, 16 * KIB + 1, 300 * KIB, MIB + 300 * KIB, 3 * MIB + 1];
const MOST_HELD: usize = 6;

fn place() -> impl Strategy<Value = Place> {
    (any::<u16>(), any::<u16>()).prop_map(|(at, length)| Place { at, length })
}

fn op() -> impl Strategy<Value = Op> {
    let (key, by) = (0..KEYS, prop::sample::select(&ALL[..]));
    let size = prop_oneof![
        1 => Just(0),
        3 => 1..16 * KIB + 2,
        4 => 16 * KIB..MIB + 1,
        3 => MIB..4 * MIB + 2,
    ];
    let fault = prop::sample::select(&BROKEN[..]);
    prop_oneof![
        14 => (key.clone(), size).prop_map(|(key, size)| Op::Put { key, size }),
        3 => key.clone().prop_map(|key| Op::Delete { key }),
        50 => (by.clone(), key.clone(), place(), any::<bool>())
            .prop_map(|(by, key, place, knows)| Op::Read { by, key, place, knows }),
        8 => (by.clone(), key.clone()).prop_map(|(by, key)| Op::Hold { by, key }),
        24 => (any::<u8>(), place()).prop_map(|(which, place)| Op::ReadHeld { which, place }),
        3 => key.clone().prop_map(|key| Op::Forget { key }),
        1 => (any::<bool>(), place()).prop_map(|(crash, place)| Op::Restart { crash, place }),
        1 => (any::<u16>(), 0_u8..4, any::<u16>(), 0_u8..8)
            .prop_map(|(file, region, place, bit)| Op::Flip { file, region, place, bit }),
        1 => (by, key, place(), fault)
            .prop_map(|(by, key, place, fault)| Op::ReadBroken { by, key, place, fault }),
        1 => Just(Op::Service),
    ]
}

/// A worker, its store and its readers.
struct World {
    held: Vec<(By, Object, Version)>,
    readers: Vec<(By, Reader)>,
    cluster: Cluster,
    service_runs: bool,
    proxy: FaultProxy,
    reference: Arc<Reference>,
    baseline: Baseline,
    sequence: u64,
    /// Of readers that are gone.
    counts: Counts,
    flips: u64,
    restarts: u64,
    evictions: u64,
    // Last: the others talk to it.
    _server: LiteralS3,
}

impl World {
    fn new(first_seed: u64) -> Self {
        let server = LiteralS3::start();
        let proxy = FaultProxy::start(server.address());
        let mut cluster = Cluster::of(&proxy.endpoint())
            .quota("16MiB")
            .block_size("1MiB")
            .store_config("retry_timeout = \"100ms\"")
            .start();
        let reference = Arc::new(Reference::of(server.bucket(), first_seed));
        let baseline = Baseline::of(cluster.worker(0));
        Self {
            held: Vec::new(),
            readers: Vec::new(),
            cluster,
            service_runs: true,
            proxy,
            reference,
            baseline,
            sequence: 0,
            counts: Counts::default(),
            flips: 0,
            restarts: 0,
            evictions: 0,
            _server: server,
        }
    }

    fn run(&mut self, ops: &[Op]) {
        self.sequence += 1;
        for (key, size) in (0..KEYS).zip(FIRST_SIZES) {
            self.reference.put(&self.key(key), size);
        }
        for op in ops {
            self.step(op);
        }
        self.held.clear();
        for key in 0..KEYS {
            self.reference.delete(&self.key(key));
        }
        self.assert_within_quota();
    }

    fn finish(mut self) -> (Counts, String) {
        self.held.clear();
        for by in ALL {
            self.forget_reader(by);
        }
        let worker = self.cluster.worker(0);
        self.baseline.assert_nothing_left(worker);
        let evictions = self.evictions + worker.count("/cache/evictions");
        assert!(evictions > 0, "nothing was ever evicted");
        let text = format!(
            "{} restarts, {} flipped bits, {evictions} evictions",
            self.restarts, self.flips
        );
        (self.counts, text)
    }

    fn key(&self, key: u8) -> String {
        format!("sequence {}/object {key}", self.sequence)
    }

    fn reader(&mut self, by: By) -> &Reader {
        let found = self.readers.iter().position(|(known, _)| *known == by);
        let at = found.unwrap_or_else(|| {
            let worker = self.cluster.worker(0);
            let local = options_of(worker);
            let options = match by {
                By::Grants => local,
                By::Verifying => Options {
                    verify_reads: true,
                    ..local
                },
                By::Inline => Options {
                    inline_only: true,
                    ..local
                },
                By::Tcp => Options {
                    target: Target::Remote {
                        address: worker.remote_address(),
                        token: "a secret of this test cluster".to_owned(),
                    },
                    ..local
                },
            };
            self.readers.push((by, Reader::new(options, &self.reference)));
            self.readers.len() - 1
        });
        &self.readers[at].1
    }

    /// Ends a reader, with what it has open.
    fn forget_reader(&mut self, by: By) {
        self.held.retain(|(holder, ..)| *holder != by);
        for (_, reader) in self.readers.extract_if(.., |(known, _)| *known == by) {
            self.counts.add(&reader.counts());
        }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Put { key, size } => {
                self.reference.put(&self.key(*key), *size);
            }
            Op::Delete { key } => self.reference.delete(&self.key(*key)),
            Op::Read {
                by,
                key,
                place,
                knows,
            } => self.read(*by, *key, *place, *knows, false),
            Op::Hold { by, key } => self.hold(*by, *key),
            Op::ReadHeld { which, place } => {
                if !self.held.is_empty() {
                    self.read_held(usize::from(*which) % self.held.len(), *place);
                }
            }
            Op::Forget { key } => {
                let path = format!("s3a://{}/{}", self.reference.bucket().name(), self.key(*key));
                let forgotten = self
                    .reader(By::Grants)
                    .client()
                    .invalidate(&path.parse().expect("a valid path"), None);
                forgotten.unwrap_or_else(|error| panic!("the daemon forgets nothing: {error}"));
            }
            Op::Restart { crash, place } => self.restart(*crash, *place),
            Op::Flip {
                file,
                region,
                place,
                bit,
            } => self.flip(*file, *region, *place, *bit),
            Op::ReadBroken {
                by,
                key,
                place,
                fault,
            } => {
                self.proxy.inject(16, *fault);
                self.read(*by, *key, *place, true, true);
                self.proxy.clear_faults();
            }
            Op::Service => {
                if self.service_runs {
                    self.cluster.service_mut().kill();
                } else {
                    self.cluster.service_mut().start();
                }
                self.service_runs = !self.service_runs;
            }
        }
    }

    fn read(&mut self, by: By, key: u8, place: Place, knows: bool, broken: bool) {
        let name = self.key(key);
        let current = self.reference.current(&name);
        let reader = self.reader(by);
        let Some(version) = current else {
            let path = format!("s3a://{}/{name}", self.reference.bucket().name());
            let request = OpenRequest::new(path.parse().expect("a valid path"));
            match self.reader(by).client().open(&request) {
                Err(Error::NotFound(_)) => {}
                Err(error) if broken && error.should_use_origin() => {}
                other => panic!("{name} does not exist, and its open gave {other:?}"),
            }
            return;
        };
        let opened = if knows {
            reader.open(&version)
        } else {
            let request = OpenRequest::new(version.path.parse().expect("a valid path"));
            reader.client().open(&request)
        };
        if let Ok(object) = &opened {
            assert_eq!(object.generation(), &version.generation, "a stale open of {name}");
        }
        if version.size_bytes() == 0 {
            return;
        }
        let range = range(place, version.size_bytes());
        let outcome = match opened {
            Ok(object) => reader.read_open(&object, &version, range),
            Err(error) => reader.settle(&version, range, Err(error)),
        };
        assert_ne!(
            outcome,
            Outcome::Changed,
            "{name} did not change since it was put: {version:?}"
        );
    }

    fn hold(&mut self, by: By, key: u8) {
        let Some(version) = self.reference.current(&self.key(key)) else {
            return;
        };
        let object = self
            .reader(by)
            .open(&version)
            .unwrap_or_else(|error| panic!("{version:?} cannot be opened: {error}"));
        if self.held.len() == MOST_HELD {
            self.held.remove(0);
        }
        self.held.push((by, object, version));
    }

    fn read_held(&mut self, which: usize, place: Place) {
        let (by, object, version) = &self.held[which];
        if version.size_bytes() == 0 {
            return;
        }
        let range = range(place, version.size_bytes());
        let reader = self.readers.iter().find(|(known, _)| known == by);
        let (_, reader) = reader.expect("who holds something is there");
        if reader.read_open(object, version, range) == Outcome::Changed {
            assert!(
                !self.reference.is_current(version),
                "what is held did not change: {version:?}"
            );
        }
    }

    fn restart(&mut self, crash: bool, place: Place) {
        self.restarts += 1;
        // Its address is another one afterwards.
        self.forget_reader(By::Tcp);
        let worker = self.cluster.worker(0);
        self.evictions += worker.count("/cache/evictions");
        if crash {
            worker.kill();
        } else {
            worker.stop();
        }
        for which in 0..self.held.len() {
            self.read_held(which, place);
        }
        self.cluster.worker(0).start();
    }

    fn flip(&mut self, file: u16, region: u8, place: u16, bit: u8) {
        self.flips += 1;
        // Only who verifies notices what happens to a file that it holds.
        for by in [By::Grants, By::Inline, By::Tcp] {
            self.forget_reader(by);
        }
        let worker = self.cluster.worker(0);
        self.evictions += worker.count("/cache/evictions");
        worker.kill();
        let mut files = worker.block_files();
        files.sort();
        if !files.is_empty() {
            let path = &files[usize::from(file) % files.len()];
            let file = File::options()
                .read(true)
                .write(true)
                .open(path)
                .expect("the cache directory is ours");
            let length = file.metadata().expect("it is there").len();
            let (start, end) =
                [(0, 4096), (4096, 4104), (8192, 8192 + 64), (MIB, length)][usize::from(region)];
            let at = start + (end - start) * u64::from(place) / 65_536;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("within the file");
            byte[0] ^= 1 << bit;
            file.write_all_at(&byte, at).expect("the disk has room");
        }
        self.cluster.worker(0).start();
    }

    fn assert_within_quota(&mut self) {
        let status = self.cluster.worker(0).status();
        let bytes = |name: &str| status["cache"][name].as_u64().expect("a number of bytes");
        let taken: u64 = [
            "committed_bytes",
            "reserved_bytes",
            "unlinked_held_bytes",
            "quarantined_bytes",
        ]
        .map(bytes)
        .iter()
        .sum();
        assert!(taken <= bytes("quota_bytes"), "{taken} bytes taken: {status}");
    }
}

/// The bytes at a place of an object that has some.
fn range(place: Place, size_bytes: u64) -> std::ops::Range<u64> {
    let start = size_bytes * u64::from(place.at) / 65_536;
    let length = (size_bytes - start) * u64::from(place.length) / 65_536;
    start..start + length.max(1)
}

/// Runs sequences of one seed until there are `cases`; says what they came to.
fn lane(lane: u64, seed: u64, cases: u64) -> (Counts, String) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&lane.to_le_bytes());
    let config = ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 100,
        cases: u32::try_from(cases.div_ceil(20)).expect("a number of cases"),
        ..ProptestConfig::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let (world, done) = (RefCell::new(None), Cell::new(0));
    let outcome = runner.run(&vec(op(), 20..60), |ops| {
        if done.get() >= cases {
            return Ok(());
        }
        // After a failure it is gone, and the next attempt has a new one.
        let mut current = world
            .take()
            .unwrap_or_else(|| World::new(seed.wrapping_add(lane << 40)));
        current.run(&ops);
        done.set(done.get() + ops.len() as u64);
        world.replace(Some(current));
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, ops)) => panic!("{reason}\nthe shortest sequence that fails: {ops:#?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
    assert!(done.get() >= cases, "{} cases of {cases}", done.get());
    world.take().expect("the last sequence passed").finish()
}

#[test]
fn whatever_happens_to_objects_and_daemon_every_byte_is_its_versions() {
    let dose = Dose::of("model");
    let cases = dose.choose(10_000, 1_000_000);
    let seed = dose.seed();
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..2)
            .map(|number| scope.spawn(move || lane(number, seed, cases / 2)))
            .collect();
        for lane in lanes {
            let (counts, text) = lane
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            assert!(
                counts.cached > counts.origin,
                "most is served by the daemon: {counts:?}"
            );
            dose.showed(&format!("{} cases; {text}; {counts:?}", cases / 2));
        }
    });
}
