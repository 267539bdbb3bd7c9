//! A small histogram: how many sessions lie in each of a few ranges, as bars.

use super::text;

/// Width of the longest bar, characters.
const BAR: u64 = 32;
/// Parts of a character, an eighth more each.
const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// Counts by range. A range reaches from its bound up to the next one; the last has no end.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    bounds: &'static [u64],
    names: &'static [&'static str],
    counts: Vec<u64>,
}

impl Histogram {
    /// Of events per session.
    pub(super) fn of_events() -> Histogram {
        Histogram::new(
            &[1, 2, 3, 6, 11, 21, 51, 101, 1001],
            &["1", "2", "3-5", "6-10", "11-20", "21-50", "51-100", "101-1000", "more"],
        )
    }

    /// Of durations, ms.
    pub(super) fn of_durations() -> Histogram {
        Histogram::new(
            &[0, 1, 10_000, 60_000, 300_000, 900_000, 1_800_000, 3_600_000, 10_800_000],
            &["0s", "< 10s", "< 1m", "< 5m", "< 15m", "< 30m", "< 1h", "< 3h", "more"],
        )
    }

    fn new(bounds: &'static [u64], names: &'static [&'static str]) -> Histogram {
        Histogram { bounds, names, counts: vec![0; bounds.len()] }
    }

    /// Counts one value. What lies before the first range counts in it.
    pub(super) fn add(&mut self, value: u64) {
        let range = self.bounds.partition_point(|b| *b <= value).saturating_sub(1);
        if let Some(count) = self.counts.get_mut(range) {
            *count += 1;
        }
    }

    /// Name and count of every range.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.names.iter().copied().zip(self.counts.iter().copied())
    }

    /// One line a range, without the empty ones at both ends.
    pub(super) fn lines(&self) -> Vec<String> {
        let most = self.counts.iter().copied().max().unwrap_or(0);
        let total: u64 = self.counts.iter().sum();
        let filled = |c: &u64| *c > 0;
        let (Some(first), Some(last)) =
            (self.counts.iter().position(filled), self.counts.iter().rposition(filled))
        else {
            return Vec::new();
        };
        self.ranges()
            .skip(first)
            .take(last - first + 1)
            .map(|(name, n)| {
                let percent = u128::from(n) * 100 / u128::from(total.max(1));
                format!("{name:>8} {:>11} {percent:>3}%  {}", text::count(n), bar(n, most))
                    .trim_end()
                    .to_owned()
            })
            .collect()
    }
}

/// A bar as long as `n` is of `most`; what is not nothing is seen.
fn bar(n: u64, most: u64) -> String {
    let eighths = (u128::from(n) * u128::from(BAR) * 8).div_ceil(u128::from(most.max(1)));
    let full = usize::try_from(eighths / 8).unwrap_or(0);
    let rest = usize::try_from(eighths % 8).unwrap_or(0);
    format!("{}{}", "█".repeat(full), EIGHTHS.get(rest).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_their_ranges() {
        let mut h = Histogram::of_events();
        [0, 1, 2, 3, 5, 6, 1000, 1001, u64::MAX].into_iter().for_each(|v| h.add(v));
        assert_eq!(h.counts, [2, 1, 2, 1, 0, 0, 0, 1, 2]);
        let mut h = Histogram::of_durations();
        [0, 1, 9_999, 10_000, 3_600_000].into_iter().for_each(|v| h.add(v));
        assert_eq!(h.counts, [1, 2, 1, 0, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn names_and_bounds_pair_up() {
        for h in [Histogram::of_events(), Histogram::of_durations()] {
            assert_eq!(h.bounds.len(), h.names.len());
        }
    }

    #[test]
    fn bars_are_in_proportion() {
        assert_eq!((bar(0, 10), bar(10, 10).chars().count()), (String::new(), 32));
        assert_eq!((bar(1, 2).chars().count(), bar(1, 1_000_000)), (16, "▏".to_owned()));
        let mut h = Histogram::of_events();
        [2, 2, 6].into_iter().for_each(|v| h.add(v));
        let lines = h.lines();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(lines[0], format!("{:>8} {:>11}  66%  {}", 2, 2, "█".repeat(32)));
        assert_eq!(lines[1], "     3-5           0   0%");
        assert!(Histogram::of_events().lines().is_empty());
    }
}
