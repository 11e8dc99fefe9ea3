//! Repetitions and medians.

use std::time::{Duration, Instant};

/// Medians of a case and its baseline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Medians {
    pub(super) ours: Duration,
    pub(super) baseline: Duration,
}

impl Medians {
    /// How much of `amount` was done in a second: by ours, by the baseline.
    pub(super) fn rates(self, amount: f64) -> (f64, f64) {
        (
            amount / self.ours.as_secs_f64(),
            amount / self.baseline.as_secs_f64(),
        )
    }
}

/// Runs `ours` and `baseline` by turns, `reps` times after a first one that does not count; which of them goes first
/// alternates. Each says how long what it measures took.
pub(super) fn alternate(
    reps: usize,
    mut ours: impl FnMut() -> Duration,
    mut baseline: impl FnMut() -> Duration,
) -> Medians {
    alternate_pieces(reps, 1, |_| ours(), |_| baseline())
}

/// As [`alternate`], for work that falls into `pieces` done in order, each by turns: the result is the sum of the pieces'
/// medians. Pieces of about a millisecond are shorter than a time slice, so that most of them are not interrupted where
/// the machine does other work too; a median over whole repetitions would measure that other work.
pub(super) fn alternate_pieces(
    reps: usize,
    pieces: usize,
    mut ours: impl FnMut(usize) -> Duration,
    mut baseline: impl FnMut(usize) -> Duration,
) -> Medians {
    let (mut of_ours, mut of_baseline) = (vec![Vec::new(); pieces], vec![Vec::new(); pieces]);
    for rep in 0..=reps {
        for piece in 0..pieces {
            let (first, second);
            if (rep + piece) % 2 == 0 {
                first = ours(piece);
                second = baseline(piece);
            } else {
                second = baseline(piece);
                first = ours(piece);
            }
            if rep > 0 {
                of_ours[piece].push(first);
                of_baseline[piece].push(second);
            }
        }
    }
    let sum = |pieces: &mut [Vec<Duration>]| pieces.iter_mut().map(|piece| median(piece)).sum();
    Medians {
        ours: sum(&mut of_ours),
        baseline: sum(&mut of_baseline),
    }
}

/// How long `work` takes.
pub(super) fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

fn median(durations: &mut [Duration]) -> Duration {
    durations.sort_unstable();
    let middle = durations.len() / 2;
    if durations.len() % 2 == 1 {
        durations[middle]
    } else {
        (durations[middle - 1] + durations[middle]) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_repetition_does_not_count_and_the_order_alternates() {
        let order = std::cell::RefCell::new(String::new());
        let mut ours = [100, 3, 1, 2].map(Duration::from_secs).into_iter();
        let mut baseline = [100, 6, 9, 7].map(Duration::from_secs).into_iter();
        let medians = alternate(
            3,
            || {
                order.borrow_mut().push('o');
                ours.next().unwrap()
            },
            || {
                order.borrow_mut().push('b');
                baseline.next().unwrap()
            },
        );
        assert_eq!(*order.borrow(), "obboobbo");
        let expected = Medians {
            ours: Duration::from_secs(2),
            baseline: Duration::from_secs(7),
        };
        assert_eq!(medians, expected);
    }

    #[test]
    fn of_pieces_the_medians_are_added() {
        // Repetitions 1 to 3 of two pieces; in each one something else got in the way.
        let ours = [[9, 9], [1, 50], [1, 2], [70, 2]];
        let (mut rep, mut done) = (0, 0);
        let medians = alternate_pieces(
            3,
            2,
            |piece| {
                let took = Duration::from_secs(ours[rep][piece]);
                done += 1;
                rep = done / 2;
                took
            },
            |_| Duration::from_secs(5),
        );
        let expected = Medians {
            ours: Duration::from_secs(3),
            baseline: Duration::from_secs(10),
        };
        assert_eq!(medians, expected);
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert_eq!(
            median(&mut [4, 1, 9, 2].map(Duration::from_secs)),
            Duration::from_secs(3)
        );
    }
}
