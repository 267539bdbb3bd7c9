//! How often what occurred, and how rare is too rare.

use std::collections::BTreeMap;
use std::fmt::Write;

/// What is counted, in the order of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Of {
    /// What befell the process, its disk, its sources and its sinks.
    Fault,
    /// How it was set up, and how versions followed each other.
    Policy,
    /// Stages of rows.
    Stage,
    /// Why sessions closed, and why there were dead letters.
    Reason,
}

/// Everything that there is to occur: a run that never saw one of these has not tested it.
const ALL: [(Of, &[&str]); 4] = [
    (
        Of::Fault,
        &[
            "power cut, nothing kept",
            "power cut, all kept",
            "power cut, torn and reordered",
            "power cut in an operation",
            "power cut in recovery",
            "process killed",
            "sync failed",
            "disk full",
            "read failed",
            "bit flipped",
            "damage refused",
            "file put back",
            "went back to an epoch",
            "sink refused",
            "sink timed out after it took",
            "sink slow",
            "sink fenced",
            "sink reordered epochs",
            "rule broke",
            "rule failed at an event",
            "rule was slow",
            "second process",
            "clock jumped ahead",
            "clock jumped back",
            "partition silent",
            "partition drifted",
            "partition added",
            "records redelivered",
            "copies",
            "conflicting copies",
            "copies before the frontier",
        ],
    ),
    (
        Of::Policy,
        &[
            "early off",
            "early at each epoch",
            "early at some epochs",
            "no lateness",
            "lateness",
            "lookups",
            "orderly input",
            "swap, migrate",
            "swap, drain",
            "rollback, struck out",
            "rollback, migrate",
            "rollback, drain",
            "log trimmed",
            "image taken",
            "restored and replayed",
        ],
    ),
    (Of::Stage, &["early", "final", "corrected", "retracted"]),
    (
        Of::Reason,
        &[
            "silence",
            "max",
            "split",
            "close",
            "limit",
            "end_of_input",
            "plugin_fault",
            "rejected",
            "discarded",
            "late",
            "far_future",
            "key_over_cap",
            "suffix_over_cap",
            "sessions_over_cap",
            "lookup_failed",
        ],
    ),
];

/// See the module's documentation.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Counts(BTreeMap<(Of, String), u64>);

impl Counts {
    /// It occurred so often.
    pub fn add(&mut self, of: Of, what: &str, n: u64) {
        if n > 0 {
            *self.0.entry((of, what.to_owned())).or_default() += n;
        }
    }

    /// Together with those of another seed.
    pub fn merge(&mut self, other: &Counts) {
        other.0.iter().for_each(|((of, what), n)| self.add(*of, what, *n));
    }

    /// How often.
    #[must_use]
    pub fn get(&self, of: Of, what: &str) -> u64 {
        self.0.get(&(of, what.to_owned())).copied().unwrap_or(0)
    }

    /// All faults.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.0.iter().filter(|((of, _), _)| *of == Of::Fault).map(|(_, n)| n).sum()
    }

    /// What occurred less than `least` times, though it is there to occur.
    #[must_use]
    pub fn rare(&self, least: u64) -> Vec<String> {
        let all = ALL.iter().flat_map(|(of, names)| names.iter().map(move |name| (*of, *name)));
        let rare = all.filter(|(of, name)| self.get(*of, name) < least);
        rare.map(|(of, name)| format!("{of:?}: {name}: {}", self.get(of, name))).collect()
    }

    /// The table, for a reader.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (of, names) in ALL {
            let others = self.0.keys().filter(|(o, name)| *o == of && !names.contains(&name.as_str()));
            for name in names.iter().copied().chain(others.map(|(_, name)| name.as_str())) {
                let _ = writeln!(
                    text,
                    "{:8} {name:32} {:>10}",
                    format!("{of:?}").to_lowercase(),
                    self.get(of, name)
                );
            }
        }
        text
    }
}
