//! The naive model: sort a key's events, walk, cut. It shares nothing with the engine but the rule's constants.

use crate::rule::{self, BAD_FIELDS, BAD_TIMER, Config, DISCARD, POISON, REJECT, SUMS};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tidemill_engine::versions::{Policy, Scheduled, Version};

/// Key, event time, id: what makes an event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(crate) struct Ident {
    pub(crate) key: u8,
    pub(crate) time: i64,
    pub(crate) id: u8,
}

/// The accepted events, each with its kind.
pub(crate) type Accepted = BTreeMap<Ident, u8>;

/// A version with its config.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Deployed {
    pub(crate) scheduled: Scheduled,
    pub(crate) config: Config,
}

/// Which versions there have been; struck ones are not among them.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Schedule {
    pub(crate) all: Vec<Deployed>,
    /// The next number; a struck one is not used again.
    pub(crate) next: u32,
    /// How many of them are done with.
    pub(crate) retired: usize,
    pub(crate) reasons: Vec<String>,
}

impl Schedule {
    pub(crate) fn live(&self) -> &[Deployed] {
        &self.all[self.retired..]
    }

    /// The place of the swap at hand.
    pub(crate) fn pending(&self) -> Option<i64> {
        self.live()[1..].last().map(|d| d.scheduled.from.ms())
    }

    pub(crate) fn newest(&self) -> Option<&Deployed> {
        self.all.last()
    }

    pub(crate) fn name(version: Version) -> String {
        format!("visits@{}", version.0)
    }

    fn at(&self, t: i64) -> usize {
        self.all.iter().rposition(|d| d.scheduled.from.ms() <= t).unwrap_or(0)
    }
}

/// A session as the events so far make it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Session {
    pub(crate) key: u8,
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) events: u64,
    /// Why it closed; none while it is open.
    pub(crate) reason: Option<String>,
    pub(crate) plugin: String,
    pub(crate) fields: String,
}

/// What the accepted events come to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Outcome {
    /// Those that are not discarded, each with whether W has passed its end.
    pub(crate) sessions: Vec<(Session, bool)>,
    pub(crate) discarded: Vec<(Session, bool)>,
    /// Events that belong to none: key, time, reason.
    pub(crate) outside: Vec<(u8, i64, &'static str)>,
}

#[derive(Clone, Copy)]
struct Open {
    start: i64,
    last: i64,
    count: u64,
    sum: u8,
    silence_at: i64,
    max_at: i64,
    /// Place in the schedule.
    version: usize,
}

impl Open {
    fn due(&self) -> i64 {
        self.silence_at.min(self.max_at)
    }

    /// Where it ends unless an event comes before, and whether it was drained for so long that it had to.
    fn end(&self, schedule: &Schedule) -> (i64, bool) {
        let later = schedule.all[self.version + 1..].iter().map(|d| &d.scheduled);
        let mut end = i64::MAX;
        for s in later.take_while(|s| s.from.ms() <= self.due()) {
            match s.policy {
                Policy::Drain => end = end.min(s.drained_by.ms()),
                Policy::Migrate if end < s.from.ms() => break,
                Policy::Migrate => end = i64::MAX,
            }
        }
        if end <= self.due() { (end, end != i64::MAX) } else { (self.due(), false) }
    }

    /// Whose it is at `t`.
    fn go_on(&mut self, schedule: &Schedule, t: i64) {
        let takes = |d: &Deployed| d.scheduled.from.ms() <= t && d.scheduled.policy == Policy::Migrate;
        self.version = self.version.max(schedule.all.iter().rposition(takes).unwrap_or(0));
    }

    fn session(&self, key: u8, schedule: &Schedule, reason: Option<&str>) -> Session {
        let fails = reason == Some("plugin_fault");
        Session {
            key,
            start: self.start,
            end: self.last,
            events: self.count,
            reason: reason.map(str::to_owned),
            plugin: schedule.all[self.version].scheduled.plugin.clone(),
            fields: if fails { "{}".into() } else { rule::fields(self.sum) },
        }
    }
}

/// Closes by its timer what is due at `t`.
fn timer(open: &mut Option<Open>, schedule: &Schedule, t: i64) -> Option<(Open, &'static str, i64)> {
    let mut o = (*open)?;
    let (end, drained) = o.end(schedule);
    if end > t || end == i64::MAX {
        return None;
    }
    *open = None;
    o.go_on(schedule, end);
    let why = match o.sum {
        _ if drained => "limit",
        BAD_TIMER | BAD_FIELDS => "plugin_fault",
        _ if o.max_at < o.silence_at => "max",
        _ => "silence",
    };
    Some((o, why, end))
}

/// Straight from the definition. `w`: how far event time has come; none at the end of the input.
pub(crate) fn outcome(accepted: &Accepted, schedule: &Schedule, w: Option<i64>) -> Outcome {
    let mut out = Outcome::default();
    let mut at = accepted.iter().peekable();
    while let Some((first, _)) = at.peek().copied() {
        let key = first.key;
        let mut open: Option<Open> = None;
        while let Some((ident, kind)) = at.next_if(|(ident, _)| ident.key == key) {
            let (t, kind) = (ident.time, *kind);
            if let Some((o, why, end)) = timer(&mut open, schedule, t) {
                out.sessions.push((o.session(key, schedule, Some(why)), w.is_none_or(|w| end <= w)));
            }
            let passed = w.is_none_or(|w| t < w);
            match kind {
                REJECT => out.outside.push((key, t, "rejected")),
                POISON => out.outside.push((key, t, "plugin_fault")),
                _ => event(&mut out, &mut open, schedule, (key, t, kind), passed),
            }
        }
        if let Some((o, why, _)) = timer(&mut open, schedule, w.unwrap_or(i64::MAX)) {
            out.sessions.push((o.session(key, schedule, Some(why)), true));
        }
        if let Some(mut o) = open {
            match w {
                // A row names the version that had it at its last event.
                Some(_) => out.sessions.push((o.session(key, schedule, None), false)),
                None => {
                    o.go_on(schedule, i64::MAX);
                    out.sessions.push((o.session(key, schedule, Some("end_of_input")), true));
                }
            }
        }
    }
    out.sessions.sort();
    out.discarded.sort();
    out.outside.sort_unstable();
    out
}

fn event(
    out: &mut Outcome,
    open: &mut Option<Open>,
    schedule: &Schedule,
    (key, t, kind): (u8, i64, u8),
    passed: bool,
) {
    if let Some(o) = open {
        o.go_on(schedule, t);
    }
    let config = |o: &Open| schedule.all[o.version].config;
    if let Some(o) = open.take_if(|o| config(o).split_on == kind) {
        out.sessions.push((o.session(key, schedule, Some("split")), passed));
    }
    let o = open.get_or_insert_with(|| {
        let version = schedule.at(t);
        let max_at = schedule.all[version].config.max.map_or(i64::MAX, |max| t + max);
        Open { start: t, last: t, count: 0, sum: 0, silence_at: i64::MAX, max_at, version }
    });
    let config = schedule.all[o.version].config;
    o.last = t;
    o.count += 1;
    o.sum = (o.sum + kind) % SUMS;
    o.silence_at = config.silence.map_or(i64::MAX, |silence| t + silence);
    if kind == DISCARD {
        out.discarded.push((o.session(key, schedule, Some("discarded")), passed));
        *open = None;
    } else if kind == config.close_on {
        out.sessions.push((o.session(key, schedule, Some("close")), passed));
        *open = None;
    }
}
