//! How far one report stream has come: gaps, full reports, and when to ask for another. No I/O.
//!
//! A worker numbers its messages 1, 2, 3, ... A gap means that something it said is lost, so its state is asked for anew.
//! A full report with a gap in it replaces nothing: what it did not name may have been in the part that is lost.

/// What a message is, as far as this cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A part of a full report.
    Full {
        /// Whether it is the last part.
        last: bool,
    },
    /// Changes.
    Delta,
    /// Sign of life.
    Heartbeat,
}

/// What a message asks the service to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Steps {
    /// Before the message's segments are applied: a full report begins.
    pub(crate) begin_full: bool,
    /// After them: the full report is complete.
    pub(crate) finish_full: bool,
    /// Then: ask for a full report.
    pub(crate) resync: Option<Resync>,
}

/// Why a full report is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resync {
    /// A message is missing.
    Gap {
        /// The sequence number that should have come.
        expected: u64,
        /// The one that came.
        got: u64,
    },
    /// The full report that has just ended had a gap in it.
    Incomplete,
    /// Changes came before any full report.
    Missing,
}

impl Resync {
    /// For metrics.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Gap { .. } => "gap",
            Self::Incomplete => "incomplete",
            Self::Missing => "missing",
        }
    }
}

impl std::fmt::Display for Resync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gap { expected, got } => write!(f, "message {expected} is missing, {got} came"),
            Self::Incomplete => f.write_str("the full report has a gap"),
            Self::Missing => f.write_str("changes came before a full report"),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Progress {
    last_sequence: u64,
    /// A full report is under way; whether it has a gap.
    full: Option<Broken>,
    /// A full report is complete.
    synced: bool,
    /// A full report was asked for, and none is complete since.
    asked: bool,
}

#[derive(Debug, Clone, Copy)]
struct Broken(bool);

impl Progress {
    /// After the stream's first message.
    pub(crate) fn after_register(sequence: u64) -> Self {
        Self {
            last_sequence: sequence,
            full: None,
            synced: false,
            asked: false,
        }
    }

    /// Takes a message's number and kind.
    pub(crate) fn arrived(&mut self, sequence: u64, kind: Kind) -> Steps {
        let expected = self.last_sequence.wrapping_add(1);
        self.last_sequence = sequence;
        let gap = sequence != expected;
        let mut steps = Steps::default();
        if let Kind::Full { .. } = kind {
            steps.begin_full = self.full.is_none();
            self.full.get_or_insert(Broken(false));
        }
        if gap {
            // What is missing may have been a part of the full report.
            self.full = self.full.map(|_| Broken(true));
            if !self.asked {
                steps.resync = Some(Resync::Gap {
                    expected,
                    got: sequence,
                });
            }
        }
        match (kind, self.full) {
            (Kind::Full { last: true }, Some(Broken(false))) => {
                self.full = None;
                self.synced = true;
                self.asked = false;
                steps.finish_full = true;
            }
            // Asked again even if the gap was already told: whether this was the rest of the old report or the answer
            // to that cannot be known.
            (Kind::Full { last: true }, _) => {
                self.full = None;
                steps.resync = Some(Resync::Incomplete);
            }
            (Kind::Delta, None) if !self.synced && !self.asked && !gap => {
                steps.resync = Some(Resync::Missing);
            }
            (Kind::Full { last: false } | Kind::Delta | Kind::Heartbeat, _) => {}
        }
        self.asked |= steps.resync.is_some();
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Kind = Kind::Full { last: false };
    const LAST: Kind = Kind::Full { last: true };

    fn run(messages: &[(u64, Kind)]) -> Vec<Steps> {
        let mut progress = Progress::after_register(1);
        messages
            .iter()
            .map(|(sequence, kind)| progress.arrived(*sequence, *kind))
            .collect()
    }

    fn resyncs(messages: &[(u64, Kind)]) -> Vec<Option<&'static str>> {
        run(messages)
            .into_iter()
            .map(|steps| steps.resync.map(Resync::word))
            .collect()
    }

    #[test]
    fn a_full_report_begins_with_its_first_part_and_ends_with_its_last() {
        let steps = run(&[
            (2, PART),
            (3, Kind::Heartbeat),
            (4, PART),
            (5, LAST),
            (6, Kind::Delta),
            (7, LAST),
        ]);
        let ends: Vec<(bool, bool)> = steps.iter().map(|s| (s.begin_full, s.finish_full)).collect();
        assert_eq!(
            ends,
            [
                (true, false),
                (false, false),
                (false, false),
                (false, true),
                (false, false),
                (true, true)
            ]
        );
        assert!(steps.iter().all(|s| s.resync.is_none()));
    }

    #[test]
    fn a_gap_asks_for_one_full_report() {
        assert_eq!(
            resyncs(&[
                (2, LAST),
                (4, Kind::Delta),
                (6, Kind::Heartbeat),
                (7, LAST),
                (9, Kind::Heartbeat)
            ]),
            [None, Some("gap"), None, None, Some("gap")]
        );
    }

    #[test]
    fn a_repeated_or_reversed_number_is_a_gap() {
        assert_eq!(resyncs(&[(2, LAST), (2, Kind::Delta)]), [None, Some("gap")]);
        assert_eq!(resyncs(&[(2, LAST), (1, Kind::Delta)]), [None, Some("gap")]);
        assert_eq!(
            resyncs(&[(u64::MAX, LAST), (0, Kind::Delta)]),
            [Some("incomplete"), None]
        );
    }

    #[test]
    fn a_full_report_with_a_gap_replaces_nothing_and_is_asked_for_again() {
        let steps = run(&[(2, PART), (4, PART), (5, LAST), (6, PART), (7, LAST)]);
        let finished: Vec<bool> = steps.iter().map(|s| s.finish_full).collect();
        assert_eq!(finished, [false, false, false, false, true]);
        assert_eq!(steps[1].resync.map(Resync::word), Some("gap"));
        assert_eq!(steps[2].resync.map(Resync::word), Some("incomplete"));
        assert!(steps[3].begin_full && steps[4].resync.is_none());
        let lost_beside_it = run(&[(2, PART), (4, Kind::Heartbeat), (5, LAST)]);
        assert!(!lost_beside_it[2].finish_full);
    }

    #[test]
    fn changes_before_a_full_report_ask_for_one() {
        assert_eq!(
            resyncs(&[(2, Kind::Heartbeat), (3, Kind::Delta), (4, Kind::Delta)]),
            [None, Some("missing"), None]
        );
        assert_eq!(
            resyncs(&[(2, PART), (3, Kind::Delta), (4, LAST)]),
            [None, None, None]
        );
    }
}
