//! What is promised, and how it is judged. A promise that is missed has its reason here, and what would reach it: whoever
//! changes the one changes the other.

use crate::findings::shown;
use std::collections::BTreeMap;

/// One of them.
#[derive(Debug)]
pub(crate) struct Promise {
    /// What it is about.
    pub(crate) text: &'static str,
    /// How much, in words.
    pub(crate) limit: &'static str,
    /// All of these must hold.
    pub(crate) bounds: &'static [Bound],
    /// Where it is known to be missed.
    pub(crate) missed: Option<Missed>,
}

/// Why a promise is missed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Missed {
    pub(crate) reason: &'static str,
    /// What would reach it.
    pub(crate) reach: &'static str,
}

/// One figure and what it may be.
#[derive(Debug)]
pub(crate) struct Bound {
    /// Its name in the findings.
    pub(crate) value: &'static str,
    /// Before and after the figure, where it is shown.
    pub(crate) words: (&'static str, &'static str),
    pub(crate) is: Is,
    /// Holds as well if this one does.
    pub(crate) or: Option<&'static Bound>,
}

/// What a figure may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Is {
    AtMost(f64),
    AtLeast(f64),
    /// Else it was measured with less than is promised, which says nothing.
    OfSize(f64),
}

const fn at_most(value: &'static str, most: f64, words: (&'static str, &'static str)) -> Bound {
    Bound { value, words, is: Is::AtMost(most), or: None }
}

const fn at_least(value: &'static str, least: f64, words: (&'static str, &'static str)) -> Bound {
    Bound { value, words, is: Is::AtLeast(least), or: None }
}

const fn of_size(value: &'static str, least: f64, words: (&'static str, &'static str)) -> Bound {
    Bound { value, words, is: Is::OfSize(least), or: None }
}

/// The table of promises, one line each.
pub(crate) const ALL: &[Promise] = &[
    Promise {
        text: "file to Wasm `gap-sessions` to JSON lines, epochs of 1 s, crash-safe",
        limit: "at most 1.3 times the yardstick's CPU; aim 1.0",
        bounds: &[at_most("whole.gap-sessions.ratio", 1.3, ("", " times"))],
        missed: None,
    },
    Promise {
        text: "session stage alone, Wasm, 200,000 keys",
        limit: "at most 100 ns an event; at least 45 % of the speed of the same rule built in",
        bounds: &[
            at_most("stage.wasm.ns", 100.0, ("", " ns")),
            at_least("stage.wasm.speed", 0.45, ("", " of its speed")),
        ],
        missed: Some(Missed {
            reason: "the keys of a lane do not fit into the processor's caches: most of the time goes into waiting for a key's entry, its pending events and its bytes, which stand in three places, and as much of it with the rule built in; at 10 thousand keys the same code stays below 100 ns, and at 200 thousand the rule with its frames has an eighth of the time",
            reach: "fewer places in memory for an event: the pending events of a key in its entry, and the epoch's events sorted by key before any entry is touched, so that each is fetched once",
        }),
    },
    Promise {
        text: "cost of an event from 10 thousand to 10 million live keys",
        limit: "at most 1.5 times",
        bounds: &[
            at_most("keys.whole.growth", 1.5, ("whole job ", " times")),
            at_most("keys.even.growth", 1.5, ("all keys alike ", " times")),
            at_most("keys.stage.growth", 1.5, ("session stage ", " times")),
            of_size("keys.most", 1e7, ("up to ", " keys")),
        ],
        missed: Some(Missed {
            reason: "with ten million keys an event finds nothing of its key in the caches, nor the page's address in the TLB, and an epoch holds hardly two events of one key: each brings a state in, and a record of it goes into the log; with ten thousand keys an epoch folds a hundred events of a key at once, which is what the ratio compares",
            reach: "huge pages for the table of keys (they helped the stage and not the whole job), a record of what changed in place of the key's whole state, longer epochs where there are more keys",
        }),
    },
    Promise {
        text: "memory of a live session (empty suffix, key of 16 bytes, early off) over its own state",
        limit: "at most 300 bytes",
        bounds: &[
            at_most("memory.gap-sessions.bytes", 300.0, ("Wasm ", "")),
            at_most("memory.builtin:gap.bytes", 300.0, ("built in ", "")),
        ],
        missed: None,
    },
    Promise {
        text: "pause of a swap at full load",
        limit: "p99 at most 1 ms, nothing lost, nothing doubled",
        bounds: &[
            at_most("swap.p99_ms", 1.0, ("p99 ", " ms")),
            at_most("swap.differences", 0.0, ("", " sessions differ")),
            of_size("swap.swaps", 100.0, ("", " swaps")),
        ],
        missed: None,
    },
    Promise {
        text: "runaway plugin",
        limit: "a call stopped in at most 50 ms, its pipeline suspended in 3 s; another pipeline's p99 within 1.2 times or 50 ms",
        bounds: &[
            at_most("runaway.stopped_ms", 50.0, ("stopped in ", " ms")),
            at_most("runaway.suspended_s", 3.0, ("suspended in ", " s")),
            Bound {
                or: Some(&at_most("runaway.neighbour.added_ms", 50.0, ("", " ms more"))),
                ..at_most("runaway.neighbour.ratio", 1.2, ("p99 ", " times"))
            },
        ],
        missed: None,
    },
    Promise {
        text: "kill -9 to processing again, a million open sessions",
        limit: "aim at most 2 s",
        bounds: &[
            at_most("recovery.reads_s", 2.0, ("", " s")),
            of_size("recovery.sessions", 1e6, ("", " sessions")),
        ],
        missed: None,
    },
    Promise {
        text: "event accepted to early row in the sink, at half of full load",
        limit: "p99 at most 1 epoch + 50 ms over the disk's own sync time",
        bounds: &[
            at_most("latency.over_ms", 50.0, ("", " ms over epoch and sync")),
            at_least("latency.kept_pace", 0.99, ("", " of the pace kept")),
        ],
        missed: Some(Missed {
            reason: "every session that an epoch has touched has a row at its end, here more than a hundred thousand: they are folded, sealed, synced, written as JSON and synced again one after the other, and the next thing begins when the one before is done; with epochs of 100 ms, which hold a tenth of them, the row stands there after half a second at p99",
            reach: "fold early while the epoch runs, and hand rows to the sink's thread in parts as the epoch is made durable; until then shorter epochs",
        }),
    },
    Promise {
        text: "two lanes, input in page cache, null sink",
        limit: "CPU of an event at most 1.1 times that of one lane",
        bounds: &[
            at_most("lanes.wasm.ratio", 1.1, ("Wasm ", " times")),
            at_most("lanes.builtin.ratio", 1.1, ("built in ", " times")),
        ],
        missed: None,
    },
    Promise {
        text: "other keys' latency beside a hot key (a third of all events)",
        limit: "p99 at most twice",
        bounds: &[at_most("latency.hot.ratio", 2.0, ("", " times"))],
        missed: None,
    },
];

/// How a promise stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// A figure is missing.
    Unmeasured,
}

impl Verdict {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Verdict::Met => "met",
            Verdict::Missed => "missed",
            Verdict::Unmeasured => "not measured",
        }
    }
}

/// Figures by name.
pub(crate) type Values = BTreeMap<String, f64>;

impl Promise {
    /// What was measured, in words, and how it stands.
    pub(crate) fn judge(&self, values: &Values) -> (String, Verdict) {
        let verdict = self
            .bounds
            .iter()
            .map(|b| b.judge(values))
            .max_by_key(|v| *v as u8)
            .unwrap_or(Verdict::Unmeasured);
        let known = self.bounds.iter().filter(|b| values.contains_key(b.value));
        let words: Vec<String> = known.map(|b| b.words(values)).collect();
        (words.join(", "), verdict)
    }
}

impl Bound {
    fn judge(&self, values: &Values) -> Verdict {
        let own = match (values.get(self.value), self.is) {
            (None, _) => Verdict::Unmeasured,
            (Some(value), Is::AtMost(most)) if *value <= most => Verdict::Met,
            (Some(value), Is::AtLeast(least) | Is::OfSize(least)) if *value >= least => Verdict::Met,
            (Some(_), Is::OfSize(_)) => Verdict::Unmeasured,
            // What is no number is no proof either.
            (Some(_), _) => Verdict::Missed,
        };
        match self.or.map(|or| or.judge(values)) {
            Some(Verdict::Met) => Verdict::Met,
            _ => own,
        }
    }

    fn words(&self, values: &Values) -> String {
        let value = values.get(self.value).copied().unwrap_or(f64::NAN);
        let own = format!("{}{}{}", self.words.0, shown(value), self.words.1);
        match self.or {
            Some(or) => format!("{own} ({})", or.words(values)),
            None => own,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: Promise = Promise {
        text: "",
        limit: "",
        bounds: &[
            at_most("a", 1.5, ("a ", " ns")),
            Bound { or: Some(&at_most("b2", 50.0, ("", " ms"))), ..at_least("b", 2.0, ("b ", "")) },
        ],
        missed: None,
    };

    fn judged(values: &[(&str, f64)]) -> (String, Verdict) {
        ROW.judge(&values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect())
    }

    #[test]
    fn a_promise_is_met_where_all_its_bounds_hold() {
        assert_eq!(judged(&[("a", 1.5), ("b", 2.0)]), ("a 1.50 ns, b 2.00 (? ms)".into(), Verdict::Met));
        assert_eq!(judged(&[("a", 1.51), ("b", 2.0)]).1, Verdict::Missed);
        assert_eq!(judged(&[("a", 1.0), ("b", 1.9), ("b2", 51.0)]).1, Verdict::Missed);
        assert_eq!(judged(&[("a", 1.0), ("b", 1.9), ("b2", 50.0)]).1, Verdict::Met);
        assert_eq!(judged(&[("a", f64::NAN), ("b", 2.0)]).1, Verdict::Missed);
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_missed() {
        assert_eq!(judged(&[("a", 1.0)]).1, Verdict::Unmeasured);
        assert_eq!(judged(&[]), (String::new(), Verdict::Unmeasured));
    }

    #[test]
    fn less_than_was_promised_says_nothing() {
        let judge = |value: f64| of_size("n", 1e6, ("", "")).judge(&Values::from([("n".to_owned(), value)]));
        assert_eq!([judge(1e6), judge(250_000.0)], [Verdict::Met, Verdict::Unmeasured]);
    }

    #[test]
    fn every_figure_of_a_promise_comes_from_a_measurement() {
        let names: Vec<&str> = crate::measure::ALL.iter().map(|m| m.name).collect();
        for bound in ALL.iter().flat_map(|p| p.bounds) {
            let of = bound.value.split('.').next().unwrap_or_default();
            assert!(names.contains(&of), "{} comes from no measurement", bound.value);
        }
    }
}
