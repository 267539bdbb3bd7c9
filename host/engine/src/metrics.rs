//! A rule's own metrics, summed: what an epoch adds, and what all epochs have.
//!
//! A step is counted when it is first folded. Whether it is, the lane knows: the event is new in this epoch, or the step lies
//! behind all that was folded of the key before (`Tail::counted`). So refolds and restarts count nothing twice, and the
//! sums are part of the epoch that they were made in.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A metric that a rule declares.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// Upper bounds of a histogram's buckets, rising; empty for a counter.
    pub bounds: Vec<f64>,
}

/// The sum of a metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Total {
    /// How often something was added or observed.
    pub count: u64,
    /// The sum of what was: a counter's value.
    pub sum: f64,
    /// Upper bounds of the buckets; empty for a counter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bounds: Vec<f64>,
    /// Values in each bucket and in none before it; what is above the last bound is in `count` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<u64>,
}

/// Sums by the metrics' names.
pub type Totals = BTreeMap<String, Total>;

impl Total {
    /// Nothing yet.
    #[must_use]
    pub fn of(metric: &Metric) -> Total {
        Total { bounds: metric.bounds.clone(), buckets: vec![0; metric.bounds.len()], ..Total::default() }
    }

    /// Adds to a counter, or observes a value.
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        self.sum = finite(self.sum + value);
        let bucket = self.bounds.iter().position(|b| value <= *b);
        if let Some(n) = bucket.and_then(|b| self.buckets.get_mut(b)) {
            *n += 1;
        }
    }

    /// Adds another's. One with other buckets, from another version of the rule, begins anew.
    fn merge(&mut self, o: &Total) {
        if self.bounds != o.bounds {
            self.clone_from(o);
            return;
        }
        self.count += o.count;
        self.sum = finite(self.sum + o.sum);
        for (a, b) in self.buckets.iter_mut().zip(&o.buckets) {
            *a += b;
        }
    }
}

/// A sum that can be stored: JSON knows no infinity, and a record with one could not be read again.
fn finite(sum: f64) -> f64 {
    sum.clamp(f64::MIN, f64::MAX)
}

/// Adds sums to sums.
pub fn merge(all: &mut Totals, more: &Totals) {
    for (name, total) in more {
        match all.get_mut(name) {
            Some(t) => t.merge(total),
            None => drop(all.insert(name.clone(), total.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_beyond_all_numbers_is_read_again() {
        let metric = Metric { name: "seen".into(), bounds: Vec::new() };
        let mut total = Total::of(&metric);
        total.add(f64::MAX);
        total.add(f64::MAX);
        let mut all: Totals = [("seen".to_owned(), total.clone())].into();
        merge(&mut all, &[("seen".to_owned(), total)].into());
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Totals>(&text).unwrap(), all, "{text}");
    }

    #[test]
    fn values_fall_into_the_first_bucket_that_holds_them() {
        let mut t = Total::of(&Metric { name: "pages".into(), bounds: vec![1.0, 5.0] });
        [0.5, 1.0, 1.5, 9.0].into_iter().for_each(|v| t.add(v));
        assert_eq!((t.count, t.sum, t.buckets.as_slice()), (4, 12.0, &[2, 1][..]));
        let mut all = Totals::from([("pages".into(), t.clone())]);
        merge(&mut all, &Totals::from([("pages".into(), t)]));
        assert_eq!((all["pages"].count, all["pages"].buckets.as_slice()), (8, &[4, 2][..]));
        let other = Total { count: 1, sum: 1.0, ..Total::default() };
        merge(&mut all, &Totals::from([("pages".into(), other.clone())]));
        assert_eq!(all["pages"], other);
    }
}
