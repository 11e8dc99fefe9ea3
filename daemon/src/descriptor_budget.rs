//! How the process's descriptors (`RLIMIT_NOFILE`) are shared out, so that none of their users takes the others' part.
//!
//! A daemon whose block files took every descriptor could not accept a connection any more, and would never close one of them.

use nix::sys::resource::{Resource, getrlimit};

/// What each user of descriptors may have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DescriptorBudget {
    /// Block files that are kept open.
    pub(crate) files: usize,
    /// Connections of clients and peers.
    pub(crate) connections: usize,
    /// Granted descriptors on their way, all sessions together. The kernel counts them apart from those that are open, for the
    /// whole user, against the same limit.
    pub(crate) in_flight: u64,
}

impl DescriptorBudget {
    /// Of this process, with the limit that it has now.
    pub(crate) fn of_process() -> Self {
        // Where the limit cannot be read, the least that systems give is assumed.
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        Self::of(limit)
    }

    /// A quarter for files, five eighths for connections; the last eighth is for the origin, peers, the admin side and what is
    /// opened for a moment.
    fn of(limit: u64) -> Self {
        let share = |eighths: u64| usize::try_from(limit / 8 * eighths).unwrap_or(usize::MAX).max(1);
        Self {
            files: share(2),
            connections: share(5),
            in_flight: (limit / 4).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_leave_an_eighth_and_fit_the_defaults_at_the_usual_limit() {
        for limit in [64, 256, 1024, 20_000, 1 << 20, u64::MAX] {
            let budget = DescriptorBudget::of(limit);
            let shared = budget.files as u64 + budget.connections as u64;
            assert!(shared <= limit - limit / 8, "{limit}: {budget:?}");
        }
        assert!(DescriptorBudget::of(20_000).files >= 4096);
    }
}
