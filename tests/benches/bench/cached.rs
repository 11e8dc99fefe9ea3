//! Reads of an object that is in the cache, beside `pread` on a local copy of it.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use cachelet_client::{Client, Object, Options};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::measure::{Medians, alternate_pieces, timed};
use super::report::Case;
use super::{
    Bench, Data, MIB, SEED, check_content, connected, open, read_range, read_range_of_file, request,
};
use cachelet_tests::Cluster;

/// Measures one case.
pub(super) type Measure = fn(&mut Fixture<'_>) -> Case;

const READ_BYTES: usize = MIB as usize;
/// The most that one message asks for.
const INLINE_READ_BYTES: usize = 8 * MIB as usize;
/// What is read between one look at the clock and the next: about a millisecond.
const PIECE_BYTES: u64 = 8 * MIB;
const RANDOM_BYTES: u64 = 4096;
const RANDOM_PIECE: usize = 500;
/// A gigabyte, as rates are given in.
const GB: f64 = 1e9;

/// A cluster of one worker that has all of the object.
pub(super) struct Fixture<'a> {
    bench: &'a Bench,
    data: &'a Data,
    path: String,
    cluster: Cluster,
}

impl<'a> Fixture<'a> {
    pub(super) fn new(bench: &'a Bench, data: &'a Data, block_size: &str) -> Self {
        let cluster = Cluster::of(&bench.server.endpoint())
            .block_size(block_size)
            .without_service()
            .start();
        let mut fixture = Self {
            bench,
            data,
            path: bench.path_of(data.key),
            cluster,
        };
        let (_, object) = fixture.open(|options| options);
        check_content(&object, SEED);
        // What is written back later would disturb the measurement.
        nix::unistd::sync();
        fixture
    }

    /// A fresh client, and the object opened by it; nothing is granted yet.
    fn open(&mut self, options: impl FnOnce(Options) -> Options) -> (Client, Object) {
        let client = connected(self.cluster.worker(0), options);
        let object = open(&client, &request(&self.path));
        (client, object)
    }

    fn gigabytes(&self) -> f64 {
        self.bench.size as f64 / GB
    }

    /// Sequential reads of `object` beside those of the local copy.
    fn sequential(&self, object: &Object, read_bytes: usize) -> Medians {
        let (mut buffer, mut other) = (vec![0; read_bytes], vec![0; read_bytes]);
        alternate_pieces(
            self.bench.reps,
            (self.bench.size / PIECE_BYTES) as usize,
            |index| timed(|| read_range(object, piece(index), &mut buffer)),
            |index| timed(|| read_range_of_file(&self.data.copy, piece(index), &mut other)),
        )
    }
}

fn piece(index: usize) -> Range<u64> {
    let start = index as u64 * PIECE_BYTES;
    start..start + PIECE_BYTES
}

/// Sequential reads with every grant held.
pub(super) fn sequential_held_fd(fixture: &mut Fixture<'_>) -> Case {
    let (client, object) = fixture.open(|options| options);
    check_content(&object, SEED);
    let before = client.stats();
    let medians = fixture.sequential(&object, READ_BYTES);
    let messages = client.stats().messages_sent - before.messages_sent;
    // `Used` reports and keep-alives are sent by the clock, not by reads.
    assert!(
        messages < 100,
        "{messages} messages were sent for reads of held descriptors"
    );
    let unit = format!(
        "GB/s; {} MiB read with 1 MiB preads, all grants held; baseline: pread on a local copy",
        fixture.bench.size / MIB
    );
    Case::new(
        "sequential_held_fd",
        unit,
        medians.rates(fixture.gigabytes()),
        Some(0.97),
    )
}

/// Random small reads with every grant held.
pub(super) fn random_4k_pread(fixture: &mut Fixture<'_>) -> Case {
    let reads = if fixture.bench.size > 128 * MIB {
        100_000
    } else {
        20_000
    };
    let mut random = StdRng::seed_from_u64(SEED);
    let slots = fixture.bench.size / RANDOM_BYTES;
    let offsets: Vec<u64> = (0..reads)
        .map(|_| random.random_range(0..slots) * RANDOM_BYTES)
        .collect();
    let (_client, object) = fixture.open(|options| options);
    check_content(&object, SEED);
    let (mut buffer, mut other) = ([0; RANDOM_BYTES as usize], [0; RANDOM_BYTES as usize]);
    let copy: &File = &fixture.data.copy;
    for offset in offsets.iter().take(1000) {
        object
            .read_exact_at(&mut buffer, *offset)
            .unwrap_or_else(|error| panic!("cannot read {object:?} at {offset}: {error}"));
        copy.read_exact_at(&mut other, *offset)
            .expect("a local file can be read");
        assert!(buffer == other, "WRONG BYTES at {offset} of {object:?}");
    }
    let of_piece = |index: usize| &offsets[index * RANDOM_PIECE..(index + 1) * RANDOM_PIECE];
    let medians = alternate_pieces(
        fixture.bench.reps,
        offsets.len() / RANDOM_PIECE,
        |index| {
            timed(|| {
                for offset in of_piece(index) {
                    let read = object.read_at(&mut buffer, *offset);
                    assert!(matches!(read, Ok(4096)), "reading at {offset} gave {read:?}");
                }
            })
        },
        |index| {
            timed(|| {
                for offset in of_piece(index) {
                    let read = copy.read_at(&mut other, *offset);
                    assert!(matches!(read, Ok(4096)), "reading at {offset} gave {read:?}");
                }
            })
        },
    );
    let unit = format!(
        "reads/s; random 4 KiB reads in {} MiB, one thread, all grants held; baseline: pread on a local copy",
        fixture.bench.size / MIB
    );
    Case::new(
        "random_4k_pread",
        unit,
        medians.rates(offsets.len() as f64),
        Some(0.95),
    )
}

/// Reads over the socket, without descriptors.
pub(super) fn inline(fixture: &mut Fixture<'_>) -> Case {
    let (client, object) = fixture.open(|options| Options {
        inline_only: true,
        ..options
    });
    check_content(&object, SEED);
    let medians = fixture.sequential(&object, INLINE_READ_BYTES);
    let stats = client.stats();
    assert!(
        stats.grants_received == 0 && stats.local_bytes == 0,
        "an inline client got descriptors: {stats:?}"
    );
    let unit = format!(
        "GB/s; {} MiB read with 8 MiB reads over the domain socket, no descriptors; baseline: 8 MiB preads on a local copy",
        fixture.bench.size / MIB
    );
    Case::new("inline", unit, medians.rates(fixture.gigabytes()), Some(0.5))
}

/// Sequential reads by a client that must get a grant for every 8 MiB.
pub(super) fn sequential_grant_per_8mib(fixture: &mut Fixture<'_>) -> Case {
    // A block is a piece.
    let blocks = (fixture.bench.size / PIECE_BYTES) as usize;
    let (size, reps) = (fixture.bench.size, fixture.bench.reps);
    let (mut buffer, mut other) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    let copy = &fixture.data.copy;
    let worker = fixture.cluster.worker(0);
    let path = &fixture.path;
    let mut opened = None;
    let medians = alternate_pieces(
        reps,
        blocks,
        |index| {
            if index == 0 {
                // The one before is closed only now: its end is not to be heard in any measurement.
                let client = connected(worker, |options| options);
                let object = open(&client, &request(path));
                opened = Some((client, object));
            }
            let (client, object) = opened.as_ref().expect("the first piece comes first");
            let elapsed = timed(|| read_range(object, piece(index), &mut buffer));
            let grants = client.stats().grants_received;
            assert!(
                grants > index as u64,
                "{grants} grants were received for {} blocks",
                index + 1
            );
            elapsed
        },
        |index| timed(|| read_range_of_file(copy, piece(index), &mut other)),
    );
    let unit = format!(
        "GB/s; {} MiB read with 1 MiB reads by a fresh client, one grant for each block of 8 MiB; baseline: pread on a local copy",
        size / MIB
    );
    Case::new(
        "sequential_grant_per_8mib",
        unit,
        medians.rates(fixture.gigabytes()),
        Some(0.9),
    )
}
