//! Objects that are overwritten, deleted and put again while they are opened and read.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use cachelet_client::{Error, OpenRequest, Options};
use cachelet_tests::{Baseline, Cluster, Dose, LiteralS3, Reader, Reference, pause};
use rand::Rng;

use super::support::{MIB, options_of};

/// Two pages and a bit, in two blocks.
const SIZE: u64 = 2 * MIB + 333;

/// What one reader saw of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Saw {
    Old,
    New,
    Changed,
    Missing,
}

/// Opens an object without knowing its generation and reads all of it in pieces; panics unless every byte is of the version that
/// the open named.
fn read(reader: &Reader, reference: &Reference, key: &str, old: u64, piece: u64) -> Saw {
    let path = format!("s3a://{}/{key}", reference.bucket().name());
    let request = OpenRequest::new(path.parse().expect("a valid path"));
    let object = match reader.client().open(&request) {
        Ok(object) => object,
        Err(Error::NotFound(_)) => return Saw::Missing,
        // Between the question which generation it is and the first page.
        Err(Error::ObjectChanged { .. }) => return Saw::Changed,
        Err(error) => panic!("opening {key}: {error}"),
    };
    let generation = object.generation().clone();
    let mut bytes = vec![0; usize::try_from(generation.size_bytes).expect("it fits in memory")];
    let mut at = 0;
    while at < bytes.len() {
        let end = bytes
            .len()
            .min(at + usize::try_from(piece).expect("a small piece"));
        match object.read_exact_at(&mut bytes[at..end], at as u64) {
            Ok(()) => at = end,
            Err(Error::ObjectChanged { .. } | Error::NotFound(_)) => {
                bytes.truncate(at);
                break;
            }
            Err(error) => panic!("reading {key} at {at}: {error}"),
        }
    }
    // The put is acknowledged to the test after the origin has it: wait for the books to know it.
    let version = reference.wait_for_version(key, &generation);
    version.check(0, &bytes);
    match (bytes.len() as u64 == generation.size_bytes, version.seed == old) {
        (false, _) => Saw::Changed,
        (true, true) => Saw::Old,
        (true, false) => Saw::New,
    }
}

#[test]
fn an_overwritten_object_reads_as_the_old_or_the_new_one_and_never_as_a_mixture() {
    let dose = Dose::of("F11 overwrites");
    let rounds = dose.choose(200, 10_000);
    let server = LiteralS3::start();
    let mut cluster = Cluster::of(&server.endpoint())
        .without_service()
        .quota("32MiB")
        .block_size("1MiB")
        .start();
    let reference = Arc::new(Reference::of(server.bucket(), dose.seed()));
    let worker = cluster.worker(0);
    let baseline = Baseline::of(worker);
    let readers: Vec<_> = (0..3)
        .map(|number| {
            let options = Options {
                inline_only: number == 1,
                readahead_bytes: if number == 2 { 0 } else { 8 * MIB },
                ..options_of(worker)
            };
            Reader::new(options, &reference)
        })
        .collect();
    let mut random = dose.random(0);
    let mut seen = std::collections::HashMap::<Saw, u64>::new();
    for round in 0..rounds {
        // A few keys over and over: what is cached of their older versions is in the way, if anything is.
        let key = format!("object {}", round % 5);
        let old = reference.put(&key, SIZE);
        let warm = random.random_bool(0.3);
        if warm {
            assert_eq!(
                read(&readers[0], &reference, &key, old.seed, MIB),
                Saw::Old,
                "nobody has written yet"
            );
        }
        let deletes = random.random_bool(0.2);
        let same_size = random.random_bool(0.7);
        let delay = Duration::from_micros(random.random_range(0..5000));
        let readers_wait = random.random_bool(0.4);
        let pieces: Vec<_> = readers
            .iter()
            .map(|_| random.random_range(1..=8) * (MIB / 8))
            .collect();
        let together = Barrier::new(readers.len() + 1);
        thread::scope(|scope| {
            let threads: Vec<_> = readers
                .iter()
                .zip(pieces)
                .map(|(reader, piece)| {
                    let (reference, key, together, old) = (&reference, &key, &together, old.seed);
                    scope.spawn(move || {
                        together.wait();
                        if readers_wait {
                            pause(delay);
                        }
                        read(reader, reference, key, old, piece)
                    })
                })
                .collect();
            together.wait();
            if !readers_wait {
                pause(delay);
            }
            if deletes {
                reference.delete(&key);
            }
            let size = if same_size { SIZE } else { SIZE - 100_000 };
            let new = reference.put(&key, size);
            for thread in threads {
                let saw = thread.join().expect("a byte is of one version");
                *seen.entry(saw).or_default() += 1;
                assert!(saw != Saw::Missing || deletes, "{key} was there all the time");
            }
            // Whoever opens it now gets the new one.
            for reader in &readers {
                assert_eq!(
                    read(reader, &reference, &key, old.seed, SIZE),
                    Saw::New,
                    "{new:?}"
                );
            }
        });
    }
    drop(readers);
    baseline.assert_nothing_left(worker);
    dose.showed(&format!("{rounds} overwrites under three readers: {seen:?}"));
}
