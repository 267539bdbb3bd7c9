//! Arithmetic on what was measured.

use crate::error::{Doing, Outcome};
use hdrhistogram::Histogram;
use std::time::Duration;

/// The middle one of some figures, or what lies between the two in the middle; NaN of none.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let at = |i: usize| figures.get(i).copied().unwrap_or(f64::NAN);
    let half = figures.len() / 2;
    if figures.len() % 2 == 1 { at(half) } else { f64::midpoint(at(half.wrapping_sub(1)), at(half)) }
}

/// The least figure that this part (0 to 1) of them do not exceed; NaN of none.
pub(crate) fn percentile(mut figures: Vec<f64>, part: f64) -> f64 {
    figures.sort_by(f64::total_cmp);
    let nth = (figures.len() as f64 * part).ceil().max(1.0) as usize;
    figures.get(nth - 1).or(figures.last()).copied().unwrap_or(f64::NAN)
}

/// Whole numbers as figures: counts of events and bytes, far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
pub(crate) fn of_count(n: u64) -> f64 {
    n as f64
}

/// How long things took: to 0.1 %, from a microsecond to ten minutes; what took longer counts as ten minutes.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

const LATENCY_US_MAX: u64 = 600_000_000;

impl Latencies {
    /// Of nothing yet.
    ///
    /// # Errors
    /// Only if the bounds above were none.
    pub(crate) fn new() -> Outcome<Latencies> {
        Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).map(Latencies).doing("bounds of latencies")
    }

    /// One that took so long.
    pub(crate) fn add(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(us.clamp(1, LATENCY_US_MAX));
    }

    /// All of another.
    pub(crate) fn add_all(&mut self, other: &Latencies) {
        // Of the same bounds, so nothing is refused.
        let _ = self.0.add(&other.0);
    }

    /// How many.
    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }

    /// What this part (0 to 1) of them did not exceed, ms.
    pub(crate) fn at_ms(&self, part: f64) -> f64 {
        of_count(self.0.value_at_quantile(part)) / 1e3
    }

    /// The longest, ms.
    pub(crate) fn max_ms(&self) -> f64 {
        of_count(self.0.max()) / 1e3
    }
}

/// When things are to be begun, come what may: each has its time, and waiting counts from there. Whoever begins late (since
/// what came before was slow) has waited all that time, and a pause of a second is seen by all that should have begun in it,
/// not by the one that hung in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenLoop {
    /// Between two.
    pub(crate) every: Duration,
    /// How many.
    pub(crate) number: u32,
}

impl OpenLoop {
    /// So many a second in steps of so many each, for so long.
    pub(crate) fn of_rate(a_second: f64, each: u32, length: Duration) -> OpenLoop {
        let every = Duration::from_secs_f64(f64::from(each) / a_second.max(1e-3));
        let number = (length.as_secs_f64() / every.as_secs_f64()).ceil().max(1.0);
        OpenLoop { every, number: number as u32 }
    }

    /// From the loop's begin, when the `n`-th is due.
    pub(crate) fn due(&self, n: u32) -> Duration {
        self.every * n
    }

    /// How long the `n`-th took that was done then, whenever it was begun.
    pub(crate) fn took(&self, n: u32, done: Duration) -> Duration {
        done.saturating_sub(self.due(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert!((median(vec![9.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![1.0, 9.0, 3.0, 2.0]) - 2.5).abs() < 1e-9);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn a_percentile_is_one_of_the_figures() {
        let figures: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let at = |part| percentile(figures.clone(), part);
        assert_eq!([at(0.0), at(0.5), at(0.99), at(1.0)].map(|f| f as u32), [1, 100, 198, 200]);
        assert_eq!(percentile(vec![7.0], 0.99) as u32, 7);
        assert!(percentile(Vec::new(), 0.5).is_nan());
    }

    #[test]
    fn latencies_are_kept_to_a_thousandth() {
        let mut all = Latencies::new().unwrap();
        (1..=1000).for_each(|n| all.add(Duration::from_millis(n)));
        all.add(Duration::from_secs(10_000));
        assert_eq!(all.len(), 1001);
        assert!((all.at_ms(0.5) - 501.0).abs() < 1.0, "{}", all.at_ms(0.5));
        assert!((all.at_ms(0.99) - 991.0).abs() < 1.5, "{}", all.at_ms(0.99));
        assert!(all.max_ms() > 599_000.0, "{}", all.max_ms());
    }

    /// What omits it: a client that waits for each answer sends nothing during a pause, and sees one slow answer of a hundred.
    #[test]
    fn a_pause_is_seen_by_all_that_were_due_in_it() {
        let pace = OpenLoop::of_rate(1000.0, 10, Duration::from_secs(1));
        assert_eq!(
            (pace.every, pace.number, pace.due(5)),
            (Duration::from_millis(10), 100, Duration::from_millis(50))
        );
        // All take a millisecond, but between 200 and 700 ms nothing is done, and then everything at once.
        let (mut corrected, mut from_begin) = (Latencies::new().unwrap(), Latencies::new().unwrap());
        for n in 0..pace.number {
            let begun = match pace.due(n).as_millis() {
                200..700 => Duration::from_millis(700),
                _ => pace.due(n),
            };
            let done = begun + Duration::from_millis(1);
            corrected.add(pace.took(n, done));
            from_begin.add(done - begun);
        }
        assert!(from_begin.at_ms(0.99) < 1.1, "{}", from_begin.at_ms(0.99));
        assert!((corrected.at_ms(0.99) - 491.0).abs() < 12.0, "{}", corrected.at_ms(0.99));
        assert!((corrected.at_ms(0.75) - 251.0).abs() < 12.0, "{}", corrected.at_ms(0.75));
        assert!(corrected.at_ms(0.4) < 1.1);
    }
}
