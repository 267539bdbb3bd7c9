//! Changing the version of a rule: everything that can be found out beforehand is, on the thread of whoever asks; only what is
//! loaded, tried and warm is handed to the pipeline.

use super::{
    Again, Change, Command, Control, Deploy, Handle, Operation, Refusal, RefusalKind, Running, Standing,
    State,
};
use crate::plugin::LoadedRule;
use crate::schedule::{RuleSpec, Schedule, Wish};
use std::sync::Arc;
use std::time::Duration;
use tidemill_engine::lane::LiveState;
use tidemill_engine::rule::SessionRule;
use tidemill_engine::versions::{Policy, can_migrate};

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
        self.deploy_now(handle, spec, wish, expected, "deploy")
    }

    /// Goes back to the version before the one in force: as if it had never been, while nothing depends on it, else as a
    /// deployment of its own.
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
        let schedule = schedule(handle)?;
        check_expected(&schedule, expected)?;
        if schedule.pending().is_some() {
            let change = |operation| match suspended(handle) {
                true => Command::Again(Again { change: Change::Strike(wish), operation }),
                false => Command::Strike(operation, wish),
            };
            return waited(self.hand_over(handle, "rollback", change)?);
        }
        let Some(previous) = schedule.previous() else {
            let message = format!(
                "pipeline `{}` has had no other version: there is nothing to go back to",
                handle.name
            );
            return Err(Refusal::new(RefusalKind::NotFound, message));
        };
        self.deploy_now(handle, &previous.rule.clone(), wish, expected, "rollback")
    }

    fn deploy_now(
        &self,
        handle: &Arc<Handle>,
        spec: &RuleSpec,
        wish: Wish,
        expected: Option<u32>,
        kind: &'static str,
    ) -> Result<Arc<Operation>, Refusal> {
        let mut schedule = schedule(handle)?;
        check_expected(&schedule, expected)?;
        pending(handle, &schedule)?;
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
        if let Some(before) = running.rules.last().filter(|_| wish.policy == Policy::Migrate) {
            migrates(before, &rule)?;
            if before.description.state.version != rule.description.state.version {
                // What it fails at here is not held against it later.
                let budget = Arc::new(running.budget.anew());
                let trial = rule.instance(&schedule.layout, &budget, &handle.progress).map_err(host)?;
                try_states(handle, &running, before, trial)?;
            }
        }
        let (rule, layout) = (Arc::new(rule), schedule.layout);
        self.hand_over(handle, kind, |operation| {
            Command::Deploy(Box::new(Deploy { rule, layout, instances, wish, operation }))
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
            Ok(()) => Ok(operation),
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

/// What migrating some states found.
#[derive(Default)]
pub(crate) struct Trial {
    failed: u64,
    keys: Vec<String>,
    first: String,
}

impl Trial {
    /// Migrates these states and forgets what comes out.
    pub(crate) fn of(&mut self, rule: &mut dyn SessionRule, from: u32, states: &[LiveState]) {
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
/// not tried again: a state that fails at the swap itself closes its session as a fault.
fn try_states(
    handle: &Handle,
    running: &Running,
    before: &LoadedRule,
    mut after: Box<dyn SessionRule>,
) -> Result<(), Refusal> {
    let mut trial = Trial::default();
    for lane in 0..running.lanes {
        let mut from = Some(0);
        while let Some(at) = from {
            let some = handle.ask(|reply| Command::States { lane, from: at, reply })?;
            let some = some.map_err(|why| Refusal::new(RefusalKind::Host, why))?;
            trial.of(after.as_mut(), before.description.state.version, &some.states);
            from = some.next;
        }
    }
    trial.result()
}
