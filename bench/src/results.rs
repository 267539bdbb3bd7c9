//! `results.json`: what was found, when, on which machine, with how much; and the promises as they stand.

use crate::error::{Doing, Failure, Outcome};
use crate::findings::{Findings, Table};
use crate::promises::{self, Promise, Values, Verdict};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Everything that one run of the benchmark found.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(crate) struct Results {
    /// The day, UTC.
    pub(crate) day: String,
    pub(crate) machine: String,
    /// The binary's version, as it says it.
    pub(crate) version: String,
    pub(crate) quick: bool,
    pub(crate) sections: Vec<Section>,
}

/// Of one measurement.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) about: String,
    /// Whether it was measured although the machine was busy.
    pub(crate) forced: bool,
    /// Of the machine before it began; of the programs that were measured, mostly.
    pub(crate) load_average: f64,
    pub(crate) seconds: f64,
    pub(crate) found: Findings,
}

/// A promise as it stands.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) promise: &'static Promise,
    pub(crate) measured: String,
    pub(crate) verdict: Verdict,
}

impl Results {
    /// Whether any of it was measured although the machine was busy.
    pub(crate) fn forced(&self) -> bool {
        self.sections.iter().any(|s| s.forced)
    }

    /// All figures.
    pub(crate) fn values(&self) -> Values {
        self.sections.iter().flat_map(|s| s.found.values.clone()).collect()
    }

    /// All promises.
    pub(crate) fn promises(&self) -> Vec<Judged> {
        let values = self.values();
        let judge = |promise: &'static Promise| {
            let (measured, verdict) = promise.judge(&values);
            Judged { promise, measured, verdict }
        };
        promises::ALL.iter().map(judge).collect()
    }

    /// Those that are missed without anybody having said why.
    pub(crate) fn unexplained(&self) -> Vec<&'static str> {
        let missed = self.promises().into_iter().filter(|j| j.verdict == Verdict::Missed);
        missed.filter(|j| j.promise.missed.is_none()).map(|j| j.promise.text).collect()
    }

    /// The promises, a line each.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new("Promises", &["promise", "limit", "measured", ""]);
        for j in self.promises() {
            table.row([j.promise.text, j.promise.limit, j.measured.as_str(), j.verdict.word()]);
        }
        table
    }

    /// Why promises are missed, and what would reach them.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let missed = self.promises().into_iter().filter(|j| j.verdict == Verdict::Missed);
        missed
            .map(|j| match j.promise.missed {
                Some(m) => {
                    format!("{}: missed. {} What would reach it: {}", j.promise.text, m.reason, m.reach)
                }
                None => format!("{}: missed, and nobody has written down why.", j.promise.text),
            })
            .collect()
    }

    /// Writes them, in one step.
    pub(crate) fn write(&self, path: &Path) -> Outcome<()> {
        let text = serde_json::to_string_pretty(&self.with_promises()).doing("results.json")?;
        let part = path.with_extension("part");
        std::fs::write(&part, text).doing(part.display())?;
        std::fs::rename(&part, path).doing(path.display())
    }

    /// Reads them.
    pub(crate) fn read(path: &Path) -> Outcome<Results> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Failure::usage(format!("{}: {e}; nothing was measured yet", path.display())))?;
        serde_json::from_str(&text).doing(path.display())
    }

    fn with_promises(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        let judged = self.promises();
        let promises = judged.iter().map(|j| {
            serde_json::json!({
                "promise": j.promise.text, "limit": j.promise.limit, "measured": j.measured, "verdict": j.verdict.word(),
                "reason": j.promise.missed.map(|m| m.reason), "reach": j.promise.missed.map(|m| m.reach),
            })
        });
        value["promises"] = promises.collect();
        value
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Results of one measurement with these figures.
    pub(crate) fn results(values: &[(&str, f64)]) -> Results {
        let mut found = Findings::default();
        values.iter().for_each(|(name, value)| found.value(*name, *value));
        found.note("A note.");
        let mut table = Table::new("A table", &["x", "y"]);
        table.row(["a | b", "1"]);
        found.tables.push(table);
        let section = Section {
            name: "whole".into(),
            about: "the whole".into(),
            forced: false,
            load_average: 0.5,
            seconds: 3.0,
            found,
        };
        Results {
            day: "2026-01-31".into(),
            machine: "2 x y".into(),
            version: "tidemill 0.1.0".into(),
            quick: false,
            sections: vec![section],
        }
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        let path = std::env::temp_dir().join(format!("tidemill-bench-results-{}.json", std::process::id()));
        let results = results(&[("whole.gap-sessions.ratio", 1.31), ("lanes.wasm.ratio", 1.0)]);
        results.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let again = Results::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(again.values(), results.values());
        assert_eq!(again.sections[0].found.notes, ["A note."]);
        assert!(
            text.contains("\"measured\": \"1.31 times\"") && text.contains("\"verdict\": \"missed\""),
            "{text}"
        );
    }

    #[test]
    fn a_missed_promise_without_a_reason_is_named() {
        let over = results(&[("whole.gap-sessions.ratio", 99.0)]);
        let first = &promises::ALL[0];
        assert_eq!(over.unexplained().contains(&first.text), first.missed.is_none());
        assert_eq!(over.reasons().len(), 1);
        assert!(results(&[("whole.gap-sessions.ratio", 1.0)]).reasons().is_empty());
    }
}
