//! Short words for what most fault tests do.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cachelet_client::{Options, Target};
use cachelet_tests::Worker;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand::Rng;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
/// How long something that must happen may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Options of a client of this worker that tries again soon after its daemon was away.
pub(crate) fn options_of(worker: &Worker) -> Options {
    Options {
        target: Target::Local {
            socket_dir: worker.socket_dir().to_owned(),
        },
        reconnect_backoff: Duration::from_millis(1),
        max_reconnect_backoff: Duration::from_millis(20),
        ..Options::default()
    }
}

/// Any range of an object that has bytes, of at most `most`.
pub(crate) fn any_range(random: &mut impl Rng, size_bytes: u64, most: u64) -> Range<u64> {
    let start = random.random_range(0..size_bytes);
    let end = random.random_range(start + 1..=size_bytes.min(start + most));
    start..end
}

/// For tests whose own process has very many clients.
pub(crate) fn raise_descriptor_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
}

/// Tells others to stop, however the test ends.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
