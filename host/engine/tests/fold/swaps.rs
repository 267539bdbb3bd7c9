//! Swaps between two configs of `builtin:gap`, and the naive batch under the recorded schedule.
//!
//! Catches: an event folded by the wrong version, a version that late events or refolds bring back, a drained session that
//! changes hands, a rollback that leaves traces, a row that names the wrong version.

use crate::{Case, Event, Session, config};
use std::collections::BTreeSet;
use tidemill_engine::gap::{Boundary, GapConfig};
use tidemill_engine::rule::SessionRule;
use tidemill_engine::time::EventTime;
use tidemill_engine::versions::{Policy, Scheduled, Version, Versions};

/// What the store would keep: the versions so far, and how many of them are done with.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    all: Vec<Scheduled>,
    /// The next number; a struck one is not used again.
    next: u32,
    retired: usize,
}

impl Default for Schedule {
    fn default() -> Self {
        let first = scheduled(0, EventTime::BEGINNING, Policy::Migrate, 0);
        Schedule { all: vec![first], next: 1, retired: 0 }
    }
}

fn scheduled(n: u32, from: EventTime, policy: Policy, max_ms: i64) -> Scheduled {
    let drained_by = from.plus(max_ms);
    Scheduled { version: Version(n), from, policy, drained_by, plugin: format!("v{n}"), digest: None }
}

impl Schedule {
    pub(crate) fn versions(&self, rule: impl Fn(Version) -> Box<dyn SessionRule>) -> Versions {
        let live = &self.all[self.retired..];
        let first = live[0].clone();
        let history = self.all[..=self.retired].to_vec();
        let one = Versions::new(first.clone(), rule(first.version), Vec::new(), history);
        live[1..].iter().fold(one, |all, newer| all.with_newer(newer.clone(), rule(newer.version)))
    }
    pub(crate) fn live(&self) -> usize {
        self.all.len() - self.retired
    }
    /// The place of the swap at hand.
    pub(crate) fn swap(&self) -> Option<EventTime> {
        self.all[self.retired..][1..].last().map(|s| s.from)
    }
    pub(crate) fn deploy(&mut self, from: EventTime, policy: Policy, max_ms: i64) -> Scheduled {
        // Every other number is the other config.
        let last = self.all[self.all.len() - 1].version.0;
        self.next = self.next.max(last + 1);
        if self.next % 2 == last % 2 {
            self.next += 1;
        }
        self.all.push(scheduled(self.next, from, policy, max_ms));
        self.next += 1;
        self.all[self.all.len() - 1].clone()
    }
    pub(crate) fn strike(&mut self) {
        self.all.pop();
    }
    pub(crate) fn retire(&mut self) {
        self.retired = self.all.len() - 1;
    }
    /// What the row of an open session names.
    pub(crate) fn of_open(&self, start: i64, last: i64) -> &str {
        let version = self.at(start);
        let mut o = Open { start, last, count: 1, gap_at: i64::MAX, max_at: i64::MAX, version };
        o.go_on(self, last);
        &self.all[o.version].plugin
    }
    /// The version in force.
    fn at(&self, t: i64) -> usize {
        self.all.iter().rposition(|s| s.from.ms() <= t).unwrap()
    }
}

#[derive(Clone, Copy)]
struct Open {
    start: i64,
    last: i64,
    count: u64,
    gap_at: i64,
    max_at: i64,
    /// Place in the schedule.
    version: usize,
}

impl Open {
    fn due(&self) -> i64 {
        self.gap_at.min(self.max_at)
    }
    /// Where it ends unless an event comes before, and whether it was drained for so long that it had to.
    fn end(&self, schedule: &Schedule) -> (i64, bool) {
        let after = schedule.all[self.version + 1..].iter().take_while(|s| s.from.ms() <= self.due());
        let mut end = i64::MAX;
        for s in after {
            match s.policy {
                Policy::Drain => end = end.min(s.drained_by.ms()),
                Policy::Migrate if end < s.from.ms() => break,
                Policy::Migrate => end = i64::MAX,
            }
        }
        if end <= self.due() { (end, true) } else { (self.due(), false) }
    }
    /// Whose it is at `t`.
    fn go_on(&mut self, schedule: &Schedule, t: i64) {
        let takes = |s: &Scheduled| s.from.ms() <= t && s.policy == Policy::Migrate;
        self.version = self.version.max(schedule.all.iter().rposition(takes).unwrap_or(0));
    }
}

/// Straight from the definition: sort, walk, cut.
pub(crate) fn naive(c: &Case, accepted: &BTreeSet<Event>, schedule: &Schedule) -> Vec<Session> {
    let first = config(c);
    let rule = |version: usize| -> &GapConfig {
        let odd = schedule.all[version].version.0 % 2 == 1;
        c.second.as_ref().filter(|_| odd).unwrap_or(&first)
    };
    let mut out = Vec::new();
    for key in 0..2u8 {
        let mut open: Option<Open> = None;
        let mut close = |o: Open, why: &str| {
            let plugin = schedule.all[o.version].plugin.clone();
            out.push((format!("k{key}"), o.start, o.last, o.count, why.to_string(), plugin));
        };
        let end_of_time = (key, i64::MAX, 0, 9);
        let events = accepted.iter().filter(|e| e.0 == key).chain([&end_of_time]);
        for (_, t, _, kind) in events {
            if let Some(mut o) = open.take_if(|o| o.end(schedule).0 <= *t) {
                let (end, drained) = o.end(schedule);
                o.go_on(schedule, end);
                let why = if o.max_at < o.gap_at { "max" } else { "gap" };
                close(o, if drained { "limit" } else { why });
            }
            if *t == i64::MAX {
                continue;
            }
            if let Some(o) = &mut open {
                o.go_on(schedule, *t);
            }
            let starts = |o: &mut Open| rule(o.version).start.is_some() && *kind == 0;
            if let Some(o) = open.take_if(starts) {
                close(o, "start");
            }
            let o = open.get_or_insert_with(|| {
                let version = schedule.at(*t);
                let max_at = rule(version).max_ms.map_or(i64::MAX, |m| t + m);
                Open { start: *t, last: *t, count: 0, gap_at: i64::MAX, max_at, version }
            });
            let r = rule(o.version);
            (o.last, o.count) = (*t, o.count + 1);
            o.gap_at = t + r.gap_ms + i64::from(r.boundary == Boundary::Inclusive);
            if r.end.is_some() && *kind == 1 {
                close(*o, "end");
                open = None;
            }
        }
    }
    out.sort();
    out
}
