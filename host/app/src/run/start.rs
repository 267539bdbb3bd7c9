//! Which versions of the rule a pipeline starts with: what the store has, unless the config file's line has changed since it
//! last decided, or somebody has asked for another while it was suspended (DESIGN 4, "What wins").

use super::{Job, RunError};
use crate::clock::now_ms;
use crate::control::change::{Trial, migrates};
use crate::control::{Again, Change, InForce, Refusal, Told};
use crate::meta::{Entry, Meta};
use crate::plugin::LoadedRule;
use crate::plugin::budget::Budget;
use crate::schedule::{DRAIN_MAX_MS, RuleSpec, Schedule, Wish};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tidemill_engine::lane::Lane;
use tidemill_engine::metrics::Totals;
use tidemill_engine::time::EventTime;
use tidemill_engine::versions::{Policy, Scheduled};

/// How the audit calls a version that comes into force, unless it is a rollback.
const DEPLOY: &str = "deploy";
/// And if it is one.
const ROLLBACK: &str = "rollback";

/// What a pipeline starts with.
pub(super) struct Start {
    /// The schedule with what changes at this start.
    pub(super) schedule: Schedule,
    /// Its live versions, the newer one last.
    pub(super) rules: Vec<Arc<LoadedRule>>,
    /// What changes, for the user.
    pub(super) notes: Vec<String>,
    /// The same for the audit.
    pub(super) entries: Vec<Entry>,
    /// The version that comes into force at this start.
    pub(super) changed: Option<Scheduled>,
    /// The newest of several versions is taken back at this start.
    struck: bool,
    /// The states that the version of this start has to take over.
    trial: Option<Trial>,
}

/// Decides. `file` is what the config file says of the rule, as the fingerprint has it.
pub(super) fn decide(
    job: Job<'_>,
    meta: Option<&Meta>,
    file: &serde_json::Value,
    (wanted, bytes): (LoadedRule, Option<Vec<u8>>),
    change: Option<&Change>,
) -> Result<Start, RunError> {
    let mut start = Start {
        schedule: meta.map(|m| m.schedule.clone()).unwrap_or_default(),
        rules: Vec::new(),
        notes: Vec::new(),
        entries: Vec::new(),
        changed: None,
        struck: false,
        trial: None,
    };
    if let Some(Change::Back(_, wish)) = change {
        start.mark_struck(job, meta, wish);
    }
    let wanted = Arc::new(wanted);
    for deployment in start.schedule.live() {
        // The file's own needs not be made twice.
        let rule = if deployment.rule == wanted.spec {
            wanted.clone()
        } else {
            Arc::new(stored(job, &deployment.rule)?)
        };
        start.rules.push(rule);
    }
    let by_config = |message: &str| Wish {
        policy: job.options.policy,
        drain_max_ms: DRAIN_MAX_MS,
        by: "config".into(),
        message: message.into(),
        back_to: None,
    };
    let keep = || bytes.map_or(Ok(()), |bytes| job.control.components.keep(&bytes).map(drop));
    match change {
        Some(Change::Deploy(spec, wish, kind)) => {
            let loaded = Arc::new(stored(job, spec)?);
            start.swap(job, meta, loaded, wish, kind)?;
        }
        Some(Change::Back(spec, wish)) if !start.struck => {
            let loaded = Arc::new(stored(job, spec)?);
            start.swap(job, meta, loaded, wish, ROLLBACK)?;
        }
        _ if start.rules.is_empty() => {
            keep()?;
            start.add(wanted, EventTime::BEGINNING, &by_config("first start"), DEPLOY);
            start.schedule.file = file.clone();
        }
        None | Some(Change::Resume(_)) if start.schedule.file != *file => {
            keep()?;
            start.schedule.file = file.clone();
            if start.rules.last().is_some_and(|r| r.spec == wanted.spec) {
                start.notes.push("the config file asks for the version of the rule that is in force".into());
            } else {
                start.swap(job, meta, wanted, &by_config("the config file has changed"), DEPLOY)?;
            }
        }
        _ => {}
    }
    if let (Some(Change::Resume(by)), Some(meta)) = (change, meta) {
        let why = meta.suspended.as_ref().map_or("", |s| s.why.as_str());
        let what = format!("it had been suspended: {why}");
        start.entries.push(Entry { at_ms: now_ms(), by: by.clone(), action: "resume".into(), what });
    }
    Ok(start)
}

fn refused(pipeline: &str, r: &Refusal) -> RunError {
    let keys =
        if r.keys.is_empty() { String::new() } else { format!("; the first keys: {}", r.keys.join(", ")) };
    RunError::Refused(format!("pipeline `{pipeline}`: the rule cannot change: {}{keys}", r.message))
}

fn stored(job: Job<'_>, spec: &RuleSpec) -> Result<LoadedRule, RunError> {
    LoadedRule::stored(spec, &job.control.components, &job.control.sandbox).map_err(|e| {
        let message = format!("pipeline `{}`: {}", job.pipeline.name, e.message);
        if e.host { RunError::Failed(message) } else { RunError::Refused(message) }
    })
}

impl Start {
    /// Tries the states of open sessions with the version that comes into force, now that the lanes have both.
    pub(super) fn try_states(&mut self, job: Job<'_>, lanes: &mut [Lane]) -> Result<(), RunError> {
        let (Some(mut found), Some(rule), Some(newer)) =
            (self.trial.take(), self.rules.last(), &self.changed)
        else {
            return Ok(());
        };
        let budget = Arc::new(Budget::new(job.pipeline.limits.faults));
        let trial = rule.instance(&self.schedule.layout, &budget, job.progress);
        let mut trial = trial.map_err(RunError::Failed)?;
        for lane in lanes {
            let states = lane.states(0..lane.slots(), newer.from.minus(1));
            found.of(trial.as_mut(), &states.map_err(|e| RunError::Failed(e.to_string()))?);
        }
        found.result().map_err(|r| refused(&job.pipeline.name, &r))
    }

    /// Takes the newer version back, now that the lanes have both.
    pub(super) fn strike(&mut self, lanes: &mut [Lane]) {
        if self.struck {
            lanes.iter_mut().for_each(Lane::strike);
            self.schedule.strike();
            self.rules.pop();
            self.changed = self.schedule.newest().map(|d| d.scheduled.clone());
        }
    }

    /// Whether the schedule is another than the store has.
    pub(super) fn is_news(&self) -> bool {
        self.changed.is_some()
    }

    /// The metrics of the rules that the pipeline has had, by the plugin's name; the others are the reader's.
    pub(super) fn rule_metrics(&self, meta: Option<&Meta>) -> BTreeMap<String, Totals> {
        let names = self.schedule.deployments.iter().filter_map(|d| match &d.rule {
            RuleSpec::Plugin { name, .. } => Some(name),
            RuleSpec::Gap(_) => None,
        });
        let stored = |name: &String| Some((name.clone(), meta?.counters.plugins.get(name)?.clone()));
        names.filter_map(stored).collect()
    }

    /// Who waits for this start to be durable.
    pub(super) fn told(&self, again: Option<&Again>) -> Vec<Told> {
        let (Some(again), Some(now)) = (again, self.schedule.newest()) else { return Vec::new() };
        let in_force = InForce {
            version: now.scheduled.version,
            from: now.scheduled.from,
            reading: Duration::ZERO,
            folding: Duration::ZERO,
        };
        vec![Told::Change(again.operation.clone(), in_force)]
    }

    fn add(&mut self, rule: Arc<LoadedRule>, from: EventTime, wish: &Wish, action: &str) {
        rule.slots(&mut self.schedule);
        let scheduled = self.schedule.add(rule.spec.clone(), &rule.description, from, wish, now_ms());
        self.entries.push(Entry {
            at_ms: now_ms(),
            by: wish.by.clone(),
            action: action.into(),
            what: if from == EventTime::BEGINNING {
                format!("{}: {}", scheduled.plugin, wish.message)
            } else {
                format!("{} from event time {}: {}", scheduled.plugin, from.ms(), wish.message)
            },
        });
        self.rules.push(rule);
        self.changed = Some(scheduled);
    }

    /// A swap at a start: its place lies after everything that was taken in.
    fn swap(
        &mut self,
        job: Job<'_>,
        meta: Option<&Meta>,
        rule: Arc<LoadedRule>,
        wish: &Wish,
        action: &str,
    ) -> Result<(), RunError> {
        let name = &job.pipeline.name;
        let may_follow = wish.back_to.is_some() && self.schedule.has_room();
        if let Some(newer) = self.schedule.pending().filter(|_| !may_follow) {
            return Err(RunError::Conflict(format!(
                "pipeline `{name}`: the rule cannot change while two versions are live: nothing may stand before event time \
                 {} any more (put the earlier line back for so long)",
                newer.scheduled.from.ms()
            )));
        }
        if wish.policy == Policy::Migrate {
            let fits = self.rules.iter().try_for_each(|before| migrates(before, &rule));
            fits.map_err(|r| refused(name, &r))?;
            self.trial = Some(Trial::new(&self.schedule, &self.rules, &rule)).filter(Trial::is_needed);
        }
        let greatest = meta.map_or(EventTime::BEGINNING, |m| m.greatest.max(m.watermark));
        let from = greatest.plus(1);
        self.notes.push(format!(
            "the rule changes to {} from event time {} on ({})",
            rule.description.plugin,
            from.ms(),
            match wish.policy {
                Policy::Migrate => "open sessions go over to it",
                Policy::Drain => "open sessions end under the version they began with",
            }
        ));
        self.add(rule, from, wish, action);
        Ok(())
    }

    /// Marks that the newest version is taken back, if B has not reached its place.
    fn mark_struck(&mut self, job: Job<'_>, meta: Option<&Meta>, wish: &Wish) {
        let frontier = meta.map_or(EventTime::BEGINNING, |m| m.watermark).minus(job.pipeline.lateness_ms);
        if let Some(newer) = self.schedule.pending().filter(|d| frontier < d.scheduled.from) {
            self.entries.push(Entry {
                at_ms: now_ms(),
                by: wish.by.clone(),
                action: ROLLBACK.into(),
                what: format!("{} taken back: {}", newer.scheduled.plugin, wish.message),
            });
            self.struck = true;
        }
    }
}
