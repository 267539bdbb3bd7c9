//! Changing the version of a rule: everything that can be found out beforehand is, on the thread of whoever asks; only what is
//! loaded, tried and warm is handed to the pipeline.

use super::{
    Again, Change, Command, Control, Deploy, Handle, Operation, Refusal, RefusalKind, Running, Standing,
    State, lock,
};
use crate::plugin::LoadedRule;
use crate::schedule::{RuleSpec, Schedule, Wish};
use std::sync::Arc;
use std::time::Duration;
use tidemill_engine::lane::LiveState;
use tidemill_engine::rule::SessionRule;
use tidemill_engine::versions::{Policy, Version, can_migrate};

/// Keys that a refusal names.
const KEYS_SHOWN: usize = 10;
/// How long a pipeline may take to come to its next barrier: the longest epoch, and as much again.
const BARRIER_MAX: Duration = Duration::from_secs(120);

impl Control {
    /// Puts a version of the rule in force at the pipeline's next barrier. Loads it, tries it on the states of open sessions if
    /// they are to be migrated, and warms it before; only then it returns, with the operation that goes on.
    ///
    /// # Errors
    /// If it cannot be used or may not follow the version in force. `expected` is the number of the deployment that was looked
    /// at; none: whichever is in force.
    pub(crate) fn deploy(
        &self,
        handle: &Arc<Handle>,
        spec: &RuleSpec,
        wish: Wish,
        expected: Option<u32>,
    ) -> Result<Arc<Operation>, Refusal> {
        let _one = handle.changing.try_lock().map_err(|_| busy(&handle.name))?;
        nothing_waits(handle)?;
        let schedule = schedule(handle)?;
        check_expected(&schedule, expected)?;
        pending(handle, &schedule)?;
        self.swap(handle, schedule, spec, wish, "deploy")
    }

    /// Goes back to the version before the one in force: as if that had never been, while nothing depends on it, else as a
    /// swap of its own, also while the version before is still needed.
    ///
    /// # Errors
    /// As [`deploy`](Control::deploy); also if there is nothing to go back to.
    pub(crate) fn rollback(
        &self,
        handle: &Arc<Handle>,
        wish: Wish,
        expected: Option<u32>,
    ) -> Result<Arc<Operation>, Refusal> {
        let _one = handle.changing.try_lock().map_err(|_| busy(&handle.name))?;
        nothing_waits(handle)?;
        let schedule = schedule(handle)?;
        check_expected(&schedule, expected)?;
        let Some(previous) = schedule.previous() else {
            let message = format!(
                "pipeline `{}` has had no other version that was not rolled back from: there is nothing to go back to",
                handle.name
            );
            return Err(Refusal::new(RefusalKind::NotFound, message));
        };
        let (spec, back_to) = (previous.rule.clone(), Some(Schedule::back_to(previous)));
        let wish = Wish { back_to, ..wish };
        if let Some(newest) = schedule.pending().map(|d| d.scheduled.version) {
            let operation = match suspended(handle) {
                true => {
                    let change = Change::Back(spec, wish);
                    let again = |operation| Command::Again(Again { change, operation });
                    return waited(self.hand_over(handle, "rollback", again)?);
                }
                false => {
                    let strike = |operation| Command::Strike(operation, wish.clone(), newest);
                    waited(self.hand_over(handle, "rollback", strike)?)
                }
            };
            match operation {
                Err(r) if r.kind == RefusalKind::Passed => {}
                done => return done,
            }
            if !schedule.has_room() {
                return Err(Refusal::new(
                    RefusalKind::Pending,
                    "earlier rollbacks are not settled yet: wait until fewer versions are live",
                ));
            }
        }
        self.swap(handle, schedule, &spec, wish, "rollback")
    }

    /// Hands the rule over as the one that follows the newest of the schedule.
    fn swap(
        &self,
        handle: &Arc<Handle>,
        mut schedule: Schedule,
        spec: &RuleSpec,
        wish: Wish,
        kind: &'static str,
    ) -> Result<Arc<Operation>, Refusal> {
        let rule = LoadedRule::stored(spec, &self.components, &self.sandbox).map_err(|e| {
            Refusal::new(if e.host { RefusalKind::Host } else { RefusalKind::Unfit }, e.message)
        })?;
        if suspended(handle) {
            // Nothing runs that could be asked: the rest is found out when the pipeline starts again with it.
            let change = Change::Deploy(spec.clone(), wish, kind);
            let again = |operation| Command::Again(Again { change, operation });
            return waited(self.hand_over(handle, kind, again)?);
        }
        let running = handle.running()?;
        rule.slots(&mut schedule);
        let host = |message| Refusal::new(RefusalKind::Host, message);
        let mut instances = Vec::with_capacity(running.lanes);
        for _ in 0..running.lanes {
            let instance = rule.instance(&schedule.layout, &running.budget, &handle.progress);
            instances.push(instance.map_err(host)?);
        }
        if wish.policy == Policy::Migrate {
            running.rules.iter().try_for_each(|before| migrates(before, &rule))?;
            let trial = Trial::new(&schedule, &running.rules, &rule);
            if trial.is_needed() {
                // What it fails at here is not held against it later.
                let budget = Arc::new(running.budget.anew());
                let instance = rule.instance(&schedule.layout, &budget, &handle.progress).map_err(host)?;
                try_states(handle, &running, trial, instance)?;
            }
        }
        let follows = schedule.newest().map(|d| d.scheduled.version).unwrap_or_default();
        let (rule, layout) = (Arc::new(rule), schedule.layout);
        self.hand_over(handle, kind, |operation| {
            Command::Deploy(Box::new(Deploy { rule, layout, instances, wish, follows, operation }))
        })
    }

    /// Asks the pipeline for a change, as an operation that it will end.
    fn hand_over(
        &self,
        handle: &Handle,
        kind: &'static str,
        change: impl FnOnce(Arc<Operation>) -> Command,
    ) -> Result<Arc<Operation>, Refusal> {
        let operation = self.begin(&handle.name, kind);
        match handle.send(change(operation.clone())) {
            Ok(()) => {
                *lock(&handle.under_way) = Some(operation.clone());
                Ok(operation)
            }
            Err(refused) => {
                operation.end(Standing::Refused(refused.clone()));
                Err(refused)
            }
        }
    }
}

fn busy(name: &str) -> Refusal {
    Refusal::new(RefusalKind::Pending, format!("another change of pipeline `{name}` is under way: try again"))
}

/// Refuses while a change that was accepted has not come to its end: what is committed says nothing of it yet.
fn nothing_waits(handle: &Handle) -> Result<(), Refusal> {
    match &*lock(&handle.under_way) {
        Some(o) if o.standing() == Standing::Waiting => {
            let message = format!(
                "operation {} of pipeline `{}` waits for the next barrier: look at what became of it, then try again",
                o.id, handle.name
            );
            Err(Refusal::new(RefusalKind::Pending, message))
        }
        _ => Ok(()),
    }
}

/// Waits until the change is made or refused; one that takes longer goes on.
fn waited(operation: Arc<Operation>) -> Result<Arc<Operation>, Refusal> {
    match operation.wait(BARRIER_MAX) {
        Standing::Refused(r) => Err(r),
        _ => Ok(operation),
    }
}

fn suspended(handle: &Handle) -> bool {
    matches!(handle.state(), State::Suspended(_))
}

/// The schedule as it is committed.
fn schedule(handle: &Handle) -> Result<Schedule, Refusal> {
    if !suspended(handle) {
        handle.running()?;
    }
    let committed = handle.committed().ok_or_else(|| {
        Refusal::new(RefusalKind::Host, "the pipeline has committed nothing yet: try again in a moment")
    })?;
    Ok(committed.meta.schedule.clone())
}

fn check_expected(schedule: &Schedule, expected: Option<u32>) -> Result<(), Refusal> {
    let now = schedule.newest().map(|d| d.scheduled.version.0);
    if expected.is_none() || expected == now {
        return Ok(());
    }
    let now = now.map_or_else(|| "none".to_owned(), |n| n.to_string());
    let message = format!("the deployment in force is {now}: look at it, then try again");
    Err(Refusal::new(RefusalKind::Stale, message))
}

/// Refuses while two versions are live, with the event time that is still missing.
fn pending(handle: &Handle, schedule: &Schedule) -> Result<(), Refusal> {
    let (Some(newer), Some(committed)) = (schedule.pending(), handle.committed()) else { return Ok(()) };
    let at = newer.scheduled.from;
    let missing = at.ms().saturating_sub(committed.meta.watermark.ms()).max(0);
    let message = format!(
        "two versions are live until nothing stands before event time {}: deployment {} waits for that, or can be rolled back",
        at.ms(),
        newer.scheduled.version.0
    );
    Err(Refusal { missing_ms: Some(missing), ..Refusal::new(RefusalKind::Pending, message) })
}

/// Refuses a rule that cannot take over the states of the one in force.
pub(crate) fn migrates(before: &LoadedRule, after: &LoadedRule) -> Result<(), Refusal> {
    can_migrate(&before.description, &after.description).map_err(|why| {
        let message =
            format!("{why}; the policy `drain` lets open sessions end under the version they began with");
        Refusal::new(RefusalKind::Incompatible, message)
    })
}

/// What migrating the states of open sessions found.
pub(crate) struct Trial {
    /// The form of the states of each live version, where it is another than the new rule's.
    forms: Vec<(Version, u32)>,
    failed: u64,
    keys: Vec<String>,
    first: String,
}

impl Trial {
    /// Of a rule that is to follow live ones.
    pub(crate) fn new(schedule: &Schedule, live: &[Arc<LoadedRule>], rule: &LoadedRule) -> Trial {
        let form = |r: &LoadedRule| r.description.state.version;
        // What is committed may still have an older version that the pipeline has just let go: the newest is the same.
        let versions = schedule.live().rev().map(|d| d.scheduled.version);
        let forms = versions.zip(live.iter().rev().map(|r| form(r)));
        let forms = forms.filter(|(_, of)| *of != form(rule)).collect();
        Trial { forms, failed: 0, keys: Vec::new(), first: String::new() }
    }

    /// Whether there may be states of another form.
    pub(crate) fn is_needed(&self) -> bool {
        !self.forms.is_empty()
    }

    /// Migrates these states and forgets what comes out.
    pub(crate) fn of(&mut self, rule: &mut dyn SessionRule, states: &[LiveState]) {
        for (version, form) in self.forms.clone() {
            let some: Vec<&LiveState> = states.iter().filter(|s| s.version == version).collect();
            self.some(rule, form, &some);
        }
    }

    fn some(&mut self, rule: &mut dyn SessionRule, from: u32, states: &[&LiveState]) {
        let bytes: Vec<&[u8]> = states.iter().map(|s| s.state.as_slice()).collect();
        for (state, migrated) in states.iter().zip(rule.migrate(from, &bytes)) {
            let Err(why) = migrated else { continue };
            if self.keys.contains(&state.key) {
                continue;
            }
            self.failed += 1;
            if self.keys.len() < KEYS_SHOWN {
                self.keys.push(state.key.clone());
            }
            if self.first.is_empty() {
                self.first = why;
            }
        }
    }

    /// Refuses if one failed.
    pub(crate) fn result(self) -> Result<(), Refusal> {
        if self.failed == 0 {
            return Ok(());
        }
        let message = format!(
            "the states of {} open sessions cannot be migrated ({}); the policy `drain` lets them end under the version \
             they began with",
            self.failed, self.first
        );
        let refusal = Refusal::new(RefusalKind::Incompatible, message);
        Err(Refusal { count: self.failed, keys: self.keys, ..refusal })
    }
}

/// Tries to migrate the state of every open session, a few thousand at a time, while events flow. What changes meanwhile is
/// not tried again: a state that fails at the swap itself closes its session as a fault, which counts against the budget.
fn try_states(
    handle: &Handle,
    running: &Running,
    mut trial: Trial,
    mut after: Box<dyn SessionRule>,
) -> Result<(), Refusal> {
    for lane in 0..running.lanes {
        let mut from = Some(0);
        while let Some(at) = from {
            let some = handle.ask(|reply| Command::States { lane, from: at, reply })?;
            let some = some.map_err(|why| Refusal::new(RefusalKind::Host, why))?;
            trial.of(after.as_mut(), &some.states);
            from = some.next;
        }
    }
    trial.result()
}
