//! How much of a fault a run gives, and the seed of everything random in it.

#![allow(clippy::print_stdout, reason = "its lines are what it is for")]

use rand::SeedableRng;
use rand::rngs::StdRng;

/// `full` for the full dose; anything else, or nothing, is the small one.
const DOSE: &str = "CACHELET_DOSE";
/// The seed of an earlier run, to give the same again.
const SEED: &str = "CACHELET_SEED";

/// One run of a fault test.
#[derive(Debug, Clone)]
pub struct Dose {
    name: &'static str,
    full: bool,
    seed: u64,
}

impl Dose {
    /// Reads dose and seed from the environment, and prints them.
    pub fn of(name: &'static str) -> Self {
        let full = match std::env::var(DOSE).as_deref() {
            Ok("full") => true,
            Ok("small") | Err(_) => false,
            Ok(other) => panic!("{DOSE}={other} is no dose: use small or full"),
        };
        let seed = std::env::var(SEED).map_or_else(
            |_| rand::random(),
            |text| {
                text.parse()
                    .unwrap_or_else(|error| panic!("{SEED}={text} is no seed: {error}; use a number"))
            },
        );
        println!(
            "{name}: dose {}, {SEED}={seed}",
            if full { "full" } else { "small" }
        );
        Self { name, full, seed }
    }

    /// What to do in a run of this dose.
    pub fn choose<T>(&self, small: T, full: T) -> T {
        if self.full { full } else { small }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Random numbers of this run; each `stream` has its own.
    pub fn random(&self, stream: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed ^ stream.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Prints what the run showed, in one line.
    pub fn showed(&self, what: &str) {
        println!("{}: showed {what}", self.name);
    }
}
