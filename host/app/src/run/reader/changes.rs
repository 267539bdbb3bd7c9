//! What people ask of a running pipeline: taken up between two blocks of records, changes of the rule at a barrier.
//!
//! A change is part of the epoch that ends at that barrier: what the lanes hear right after it is what the epoch's meta data says.

use super::{Reader, ToLane};
use crate::clock::now_ms;
use crate::control::{
    Command, Deploy, InForce, Operation, Refusal, RefusalKind, Running, Standing, State, Told,
};
use crate::journal::Level;
use crate::meta::Entry;
use crate::schedule::{Declared, Wish};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tidemill_engine::time::EventTime;
use tidemill_engine::versions::Version;

/// A change that waits for the next barrier.
pub(super) enum Change {
    Deploy(Box<Deploy>),
    Strike(Arc<Operation>, Wish, Version),
}

impl Change {
    fn operation(&self) -> &Arc<Operation> {
        match self {
            Change::Deploy(d) => &d.operation,
            Change::Strike(operation, ..) => operation,
        }
    }
}

impl Reader<'_> {
    /// Takes up what is asked. False: a lane hung up.
    pub(super) fn take_commands(&mut self) -> bool {
        while let Some(command) = self.job.handle.asked() {
            match command {
                Command::Deploy(d) => self.wish(Change::Deploy(d)),
                Command::Strike(operation, wish, newest) => {
                    self.wish(Change::Strike(operation, wish, newest));
                }
                Command::Again(again) => again.operation.end(Standing::Refused(refused(
                    RefusalKind::State,
                    "the pipeline runs again: try again",
                ))),
                Command::Pause(paused, by, reply) => {
                    self.pause(paused, &by);
                    self.told.push(Told::Paused(reply));
                }
                Command::States { lane, from, reply } => {
                    let Some(lane) = self.out.lanes.get(lane) else { continue };
                    // Where a swap would be, if it came now: timers until there are the older version's.
                    let until = self.greatest.max(self.watermarks.watermark());
                    if lane.send(ToLane::States { from, until, reply }).is_err() {
                        return false;
                    }
                }
                Command::Look(key, reply) => {
                    let lane = self.lane_of(&key);
                    if self.out.lanes[lane].send(ToLane::Look { key, reply }).is_err() {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn lane_of(&self, key: &[u8]) -> usize {
        let group = tidemill_engine::key::key_group(tidemill_engine::key::key_hash(key));
        let groups = crate::run::ingest::lane_groups(self.out.lanes.len());
        groups.iter().position(|g| g.contains(&group)).unwrap_or(0)
    }

    fn wish(&mut self, change: Change) {
        match &self.change {
            None => self.change = Some(change),
            Some(_) => change.operation().end(Standing::Refused(refused(
                RefusalKind::Pending,
                "another change waits for the same barrier: try again",
            ))),
        }
    }

    /// Nothing is read any more: what waits for a barrier gets none.
    pub(super) fn refuse_changes(&mut self) {
        let mut waiting: Vec<Arc<Operation>> =
            self.change.take().map(|c| c.operation().clone()).into_iter().collect();
        while let Some(command) = self.job.handle.asked() {
            match command {
                Command::Deploy(d) => waiting.push(d.operation),
                Command::Strike(operation, ..) => waiting.push(operation),
                Command::Again(again) => waiting.push(again.operation),
                // Whoever waits for another answer hears that there is none.
                Command::Pause(..) | Command::States { .. } | Command::Look(..) => {}
            }
        }
        for operation in waiting {
            operation.end(Standing::Refused(refused(RefusalKind::State, "the pipeline reads no more")));
        }
    }

    fn pause(&mut self, paused: bool, by: &str) {
        // Written in any case, since somebody waits for it.
        self.changed = true;
        if self.paused != paused {
            self.paused = paused;
            let action = if paused { "pause" } else { "resume" };
            self.note(by, action, "");
        }
        self.show_state();
    }

    /// Tells whoever asks what the pipeline is doing.
    pub(super) fn show_state(&self) {
        self.job.handle.set_state(if self.paused { State::Paused } else { State::Running });
    }

    fn note(&mut self, by: &str, action: &str, what: &str) {
        self.enter(Entry { at_ms: now_ms(), by: by.into(), action: action.into(), what: what.into() });
    }

    pub(super) fn enter(&mut self, entry: Entry) {
        let (gap, what) = (if entry.what.is_empty() { "" } else { ": " }, &entry.what);
        self.job.progress.keep(Level::Info, &format!("{} by {}{gap}{what}", entry.action, entry.by));
        entry.enter(&mut self.audit);
    }

    /// Right after a barrier at `watermark`: makes the change that waits, and lets an older version go that nothing needs.
    pub(super) fn change_versions(&mut self, watermark: EventTime) -> Result<(), ()> {
        match self.change.take() {
            Some(Change::Deploy(d)) => self.deploy(*d, watermark)?,
            Some(Change::Strike(operation, wish, newest)) => {
                self.strike(&operation, &wish, newest, watermark)?;
            }
            None => {}
        }
        let pending = self.schedule.pending().map(|d| d.scheduled.version);
        if pending.is_some_and(|v| u64::from(v.0) + 1 == self.out.settled.load(Ordering::Relaxed)) {
            self.send_all(|| ToLane::Retire)?;
            self.schedule.retire();
            self.rules.drain(..self.rules.len().saturating_sub(1));
            self.changed = true;
            let what = self.schedule.newest().map(|d| d.scheduled.plugin.clone()).unwrap_or_default();
            self.note("tidemill", "settled", &format!("nothing stands before {what} any more"));
            self.show_running();
        }
        Ok(())
    }

    fn deploy(&mut self, d: Deploy, watermark: EventTime) -> Result<(), ()> {
        let begun = Instant::now();
        let Deploy { rule, layout, instances, wish, follows, operation } = d;
        // It was looked at, tried and laid out as what follows that one, and no other.
        if !self.is_newest(follows) || instances.len() != self.out.lanes.len() {
            operation.end(Standing::Refused(self.stale()));
            return Ok(());
        }
        let may_follow = wish.back_to.is_some() && self.schedule.has_room();
        if self.schedule.pending().is_some() && !may_follow {
            operation
                .end(Standing::Refused(refused(RefusalKind::Pending, "two versions are live: try again")));
            return Ok(());
        }
        let from = self.greatest.max(watermark).plus(1);
        if layout != self.schedule.layout
            && let Err(why) = self.put_layout(layout)
        {
            operation.end(Standing::Refused(refused(RefusalKind::Unfit, why)));
            return Ok(());
        }
        let scheduled = self.schedule.add(rule.spec.clone(), &rule.description, from, &wish, now_ms());
        let names: Vec<String> = self.schedule.layout.iter().map(|d| d.name.clone()).collect();
        let budget = &self.budget;
        budget.renew();
        let warden = rule.warden(budget, self.job.progress);
        let in_force = InForce {
            version: scheduled.version,
            from,
            reading: begun.elapsed(),
            folding: std::time::Duration::ZERO,
        };
        // Where a lane has hung up, it is dropped, and whoever waits is told that.
        let told = Told::Change(operation.clone(), in_force);
        for (lane, instance) in self.out.lanes.iter().zip(instances) {
            let message = ToLane::Deploy {
                scheduled: scheduled.clone(),
                rule: instance,
                layout: names.clone(),
                warden: warden.clone(),
                operation: operation.clone(),
            };
            lane.send(message).map_err(drop)?;
        }
        let what = format!("{} from event time {}: {}", scheduled.plugin, from.ms(), wish.message);
        self.note(&wish.by, operation.kind, &what);
        self.told.push(told);
        self.rules.push(rule);
        self.changed = true;
        self.show_running();
        Ok(())
    }

    fn is_newest(&self, version: Version) -> bool {
        self.schedule.newest().is_some_and(|d| d.scheduled.version == version)
    }

    fn stale(&self) -> Refusal {
        let now = self.schedule.newest().map_or(0, |d| d.scheduled.version.0);
        let why =
            format!("another deployment came in between: {now} is in force now; look at it, then try again");
        refused(RefusalKind::Stale, why)
    }

    fn strike(
        &mut self,
        operation: &Arc<Operation>,
        wish: &Wish,
        newest: Version,
        watermark: EventTime,
    ) -> Result<(), ()> {
        if !self.is_newest(newest) {
            operation.end(Standing::Refused(self.stale()));
            return Ok(());
        }
        let begun = Instant::now();
        let frontier = watermark.minus(self.job.pipeline.lateness_ms);
        let Some(newer) = self.schedule.pending().filter(|d| frontier < d.scheduled.from).cloned() else {
            let why = "event time has passed the place of the newer version: going back is a swap of its own";
            operation.end(Standing::Refused(refused(RefusalKind::Passed, why)));
            return Ok(());
        };
        if self.send_all(|| ToLane::Strike).is_err() {
            operation
                .end(Standing::Refused(refused(RefusalKind::State, "the pipeline has stopped: try again")));
            return Err(());
        }
        self.schedule.strike();
        self.rules.pop();
        self.budget.renew();
        self.changed = true;
        self.note(&wish.by, "rollback", &format!("{} taken back: {}", newer.scheduled.plugin, wish.message));
        self.show_running();
        let now = self.schedule.newest().map(|d| &d.scheduled);
        let in_force = InForce {
            version: now.map(|s| s.version).unwrap_or_default(),
            from: now.map_or(EventTime::BEGINNING, |s| s.from),
            reading: begun.elapsed(),
            folding: std::time::Duration::ZERO,
        };
        self.told.push(Told::Change(operation.clone(), in_force));
        Ok(())
    }

    fn send_all(&self, message: impl Fn() -> ToLane) -> Result<(), ()> {
        self.out.lanes.iter().try_for_each(|lane| lane.send(message()).map_err(drop))
    }

    /// Partitions decode the fields of the new layout from now on.
    fn put_layout(&mut self, layout: Vec<Declared>) -> Result<(), String> {
        for part in &mut self.parts {
            if let Some(ingest) = &mut part.ingest {
                ingest.put_fields(&self.job.plan.sources[part.source], &layout)?;
            }
        }
        self.schedule.layout = layout;
        Ok(())
    }

    fn show_running(&self) {
        self.job.handle.set_running(Running {
            rules: self.rules.clone(),
            budget: self.budget.clone(),
            key_form: self.key_form,
            lanes: self.out.lanes.len(),
        });
    }
}

fn refused(kind: RefusalKind, why: impl Into<String>) -> Refusal {
    Refusal::new(kind, why)
}
