//! Block files that are damaged while no daemon runs: each is noticed, set aside, counted and fetched again.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cachelet_tests::{Baseline, Cluster, Dose, LiteralS3, Outcome, Reader, Reference, Version};
use rand::Rng;
use rand::seq::SliceRandom;

use super::support::{MIB, options_of};

/// Where things are in a block file (`daemon/src/store/format.rs`).
const HEADER: u64 = 4096;
const WORDS: u64 = 4096;
const CHECKSUMS: u64 = 8192;
const DATA: u64 = MIB;
/// One page and a bit, so that every file has two pages, of which the second ends early.
const SIZE: u64 = MIB + 70_001;
/// A file's size.
const FILE: u64 = DATA + SIZE;

/// Objects of one block each, cached by a worker.
struct Ground {
    cluster: Cluster,
    baseline: Baseline,
    reference: Arc<Reference>,
    objects: Vec<Version>,
    _server: LiteralS3,
}

impl Ground {
    fn new(seed: u64, objects: usize) -> Self {
        let server = LiteralS3::start();
        let mut cluster = Cluster::of(&server.endpoint())
            .without_service()
            .block_size("2MiB")
            .start();
        let reference = Arc::new(Reference::of(server.bucket(), seed));
        let objects = (0..objects)
            .map(|number| reference.put(&format!("object {number}"), SIZE))
            .collect();
        let baseline = Baseline::of(cluster.worker(0));
        let mut ground = Self {
            cluster,
            baseline,
            reference,
            objects,
            _server: server,
        };
        ground.read_all();
        ground
    }

    /// Reads all objects, in both ways; panics on a wrong byte, and on a read that the daemon does not serve.
    fn read_all(&mut self) {
        let options = options_of(self.cluster.worker(0));
        let reader = Reader::new(options, &self.reference);
        for version in &self.objects {
            for range in [0..SIZE, 5..SIZE - 5] {
                assert_eq!(reader.read(version, range), Outcome::Cached, "{version:?}");
            }
        }
        let stats = reader.client().stats();
        assert_eq!(stats.inline_bytes, 0, "all was granted: {stats:?}");
    }

    /// Kills the daemon, lets files be damaged, and starts it; panics unless exactly these are found, counted and replaced.
    fn damage(&mut self, what: &str, damage: impl FnOnce(&mut Vec<PathBuf>) -> u64) {
        let worker = self.cluster.worker(0);
        worker.kill();
        let mut files = worker.block_files();
        files.sort();
        assert_eq!(files.len(), self.objects.len());
        let damaged = damage(&mut files);
        worker.start();
        self.read_all();
        let worker = self.cluster.worker(0);
        let found = worker.count("/cache/quarantined_files");
        assert_eq!(found, damaged, "{what}: {found} of {damaged} were found");
        let fetched = worker.count("/fill_bytes/origin");
        assert_eq!(
            fetched,
            damaged * SIZE,
            "{what}: each damaged one is fetched once"
        );
        self.baseline.assert_nothing_left(worker);
    }
}

fn open(path: &Path) -> File {
    let file = File::options().read(true).write(true).open(path);
    file.expect("the cache directory is ours")
}

fn flip(path: &Path, at: u64, bit: u8) {
    let file = open(path);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("within the file");
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, at).expect("the disk has room");
}

fn exchange(one: &Path, two: &Path) {
    let aside = one.with_extension("aside");
    for (from, to) in [(one, aside.as_path()), (two, one), (aside.as_path(), two)] {
        fs::rename(from, to).expect("the cache directory is ours");
    }
}

#[test]
fn a_file_cut_at_any_sector_is_found_and_replaced() {
    const BATCH: usize = 64;
    let dose = Dose::of("F3 truncated files");
    let mut random = dose.random(0);
    let mut cuts: Vec<u64> = (0..FILE).step_by(512).collect();
    cuts.shuffle(&mut random);
    cuts.truncate(dose.choose(BATCH, cuts.len()));
    let mut ground = Ground::new(dose.seed(), BATCH);
    for batch in cuts.chunks(BATCH) {
        ground.damage(&format!("cut at {batch:?}"), |files| {
            for (file, cut) in files.iter().zip(batch) {
                open(file).set_len(*cut).expect("it can be cut");
            }
            batch.len() as u64
        });
    }
    dose.showed(&format!("{} files cut, all found and replaced", cuts.len()));
}

#[test]
fn a_flipped_bit_or_an_exchanged_file_is_found_and_replaced() {
    const BATCH: usize = 100;
    let dose = Dose::of("F4 flipped bits, exchanged files");
    let batches = dose.choose(2, 100);
    let mut random = dose.random(0);
    // Beside the flipped ones in each batch two pairs are exchanged and two files stay sound.
    let mut ground = Ground::new(dose.seed(), BATCH + 6);
    for batch in 0..batches {
        ground.damage(&format!("batch {batch}"), |files| {
            files.shuffle(&mut random);
            for (number, file) in files[..BATCH].iter().enumerate() {
                let region = match number % 5 {
                    0 => 0..HEADER,
                    1 => WORDS..WORDS + 2 * 8,
                    // The second page has two chunks.
                    2 => CHECKSUMS..CHECKSUMS + 4 * (16 + 2),
                    _ => DATA..FILE,
                };
                flip(file, random.random_range(region), random.random_range(0..8));
            }
            exchange(&files[BATCH], &files[BATCH + 1]);
            exchange(&files[BATCH + 2], &files[BATCH + 3]);
            BATCH as u64 + 4
        });
    }
    let flips = batches * BATCH;
    dose.showed(&format!(
        "{flips} flipped bits and {} exchanged pairs, all found and replaced",
        2 * batches
    ));
}
