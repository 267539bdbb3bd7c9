//! The naive model of a rule that is swapped while events come: sorted, walked and cut under the schedule that the host
//! recorded (SEMANTICS 20 to 22). The rule is silence; versions differ in how long it is.

use crate::model::{Log, Place, Row};
use crate::{Case, Stored, latest, same_table};
use std::collections::{BTreeMap, BTreeSet};

/// What becomes of a session that is open where a version takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The new version goes on with it.
    Migrate,
    /// The version of its first event goes on with it, for so many ms after the place at most.
    Drain(i64),
}

/// A version and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// What rows name.
    pub plugin: String,
    /// Event time from which it is in force, ms.
    pub from_ms: i64,
    /// What became of open sessions there.
    pub policy: Policy,
    /// Silence that ends a session, ms.
    pub gap_ms: i64,
}

/// A session and the version that its row must name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// It.
    pub row: Row,
    /// The version.
    pub plugin: String,
}

struct Open {
    start: i64,
    last: i64,
    events: u64,
    due: i64,
    version: usize,
}

/// All sessions of the log but for the events at `dead`, in the order of rows.
#[must_use]
pub fn sessions(log: &Log, dead: &BTreeSet<Place>, schedule: &[Version]) -> Vec<Named> {
    let mut keys: BTreeMap<&str, BTreeSet<(i64, &[u8])>> = BTreeMap::new();
    for e in log.events.iter().filter(|e| !dead.contains(&e.place)) {
        keys.entry(&e.key).or_default().insert((e.time, &e.id));
    }
    let at = |t: i64| schedule.iter().rposition(|v| v.from_ms <= t).unwrap_or(0);
    // Whose an open session is at `t`: it goes over at each swap that migrates, and stays where it is at one that drains.
    let owner = |version: usize, t: i64| {
        let takes = |v: &Version| v.from_ms <= t && v.policy == Policy::Migrate;
        version.max(schedule.iter().rposition(takes).unwrap_or(0))
    };
    // Where an open session ends unless an event comes before, and whether it was drained for so long that it had to.
    let end = |o: &Open| {
        let mut by = i64::MAX;
        for v in schedule[o.version + 1..].iter().take_while(|v| v.from_ms <= o.due) {
            match v.policy {
                Policy::Drain(max) => by = by.min(v.from_ms + max),
                Policy::Migrate if by < v.from_ms => break,
                Policy::Migrate => by = i64::MAX,
            }
        }
        if by <= o.due { (by, true) } else { (o.due, false) }
    };
    let mut rows = Vec::new();
    let mut close = |key: &str, o: &Open| {
        let row = Row {
            key: key.to_owned(),
            start_ms: o.start,
            end_ms: o.last,
            events: o.events,
            reason: Some(if end(o).1 { "limit" } else { "gap" }.to_owned()),
        };
        rows.push(Named { row, plugin: schedule[owner(o.version, end(o).0)].plugin.clone() });
    };
    for (key, events) in keys {
        let mut open: Option<Open> = None;
        for (time, _) in events {
            if let Some(o) = open.take_if(|o| end(o).0 <= time) {
                close(key, &o);
            }
            let o = open.get_or_insert_with(|| Open {
                start: time,
                last: time,
                events: 0,
                due: 0,
                version: at(time),
            });
            o.version = owner(o.version, time);
            o.last = time;
            o.events += 1;
            o.due = (time + schedule[o.version].gap_ms).max(time + 1);
        }
        if let Some(o) = open {
            close(key, &o);
        }
    }
    rows.sort();
    rows
}

/// The rows that count, with the version that each names, in order.
#[must_use]
pub fn named(stored: &[Stored]) -> Vec<Named> {
    let current = stored.iter().filter(|s| s.stage != "retracted");
    let mut rows: Vec<Named> =
        current.map(|s| Named { row: s.row.clone(), plugin: s.plugin.clone() }).collect();
    rows.sort();
    rows
}

/// Asserts that both sinks of a case show what the model makes of the log under this schedule, that nothing is dead, and, by
/// what the rule counts, that no state was lost. Returns what the model made.
#[track_caller]
pub fn compare(what: &str, case: &Case, log: &Log, versions: &[Version]) -> Vec<Named> {
    assert_eq!(case.letters(), [0; 0], "{what}: nothing is late and nothing invalid");
    let want = sessions(log, &BTreeSet::new(), versions);
    for (sink, stored) in [("SQLite", case.table()), ("JSON lines", latest(case.lines("rows.jsonl")))] {
        same_table(&format!("{what}, {sink}"), &want, &named(&stored));
        for s in stored.iter().filter(|s| s.stage != "retracted") {
            let fields: serde_json::Value = serde_json::from_str(&s.fields).unwrap();
            assert_eq!(fields["seen"], s.row.events, "{what}, {sink}: a state was lost: {s:?}");
        }
    }
    want
}
