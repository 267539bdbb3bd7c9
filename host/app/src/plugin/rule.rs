//! A sessionizer as a session rule: batches of turns into calls of bounded size, faults to the turn that caused them.

use super::CALL_DEADLINE;
use super::budget::Warden;
use super::frames::{Column, TurnFrames, read_results, read_states};
use super::pace::Pace;
use std::ops::Range;
use std::time::Instant;
use tidemill_contract::rows::progress;
use tidemill_engine::metrics::Metric;
use tidemill_engine::rule::{
    Description, Fault, FaultAt, Results, SessionRule, StateForm, Turn, TurnResult, Turns,
};
use tidemill_sandbox::{self as sandbox, FaultKind, Instance, MetricKind};

/// Inputs in one frame: the cost of a call is spread over them, and a call that fails is found again among them.
const FRAME_INPUTS: usize = 1024;
/// Turns in one frame.
const FRAME_TURNS: usize = 256;

/// A plugin behind the engine's trait.
pub(crate) struct PluginRule {
    description: Description,
    frames: TurnFrames,
    instance: Instance,
    warden: Warden,
    /// Inputs in one frame.
    pace: Pace,
}

impl PluginRule {
    /// The rule of an instance, whose declared fields stand at these places of extensions.
    pub(crate) fn new(instance: Instance, warden: Warden, slots: &[usize]) -> PluginRule {
        let d = instance.plugin().component().description();
        let columns = d.fields.iter().zip(slots).map(|(f, slot)| Column::new(f, *slot)).collect();
        let description = description(d, &warden.who.digest);
        let (frames, pace) = (TurnFrames::new(columns), Pace::new(FRAME_INPUTS));
        PluginRule { description, frames, instance, warden, pace }
    }

    /// Answers a run of turns; where the call fails, the turn at fault alone, and the others again.
    fn answer(&mut self, turns: &Turns, which: Range<usize>, out: &mut Results) {
        let inputs: usize = turns.turns[which.clone()].iter().map(|t| t.inputs.len as usize).sum();
        let frame = self.frames.write(turns, which.clone());
        let begun = Instant::now();
        let answer = self.instance.fold(frame, CALL_DEADLINE);
        self.warden.meter.called(begun);
        let fault = match answer {
            Ok(words) => match read_results(words, turns, which.clone(), out) {
                Ok(()) => return self.pace.answered(inputs, begun.elapsed()),
                Err(e) => Fault::unknown(format!("the answer is no frame of results: {e}")),
            },
            Err(f) => {
                if matches!(f.kind, FaultKind::Deadline(_)) {
                    self.pace.overdue(inputs, came(&f, &turns.turns[which.clone()]));
                }
                let row = f.progress.map(|p| p.row as usize).filter(|r| *r < which.len());
                let fault = fault(&f, self.warden.failed(&f));
                if let Some(row) = row.filter(|_| which.len() > 1 && !fault.fatal) {
                    let at = which.start + row;
                    self.run(turns, which.start..at, out);
                    out.turns.push(TurnResult::failed(fault));
                    self.run(turns, at + 1..which.end, out);
                    return;
                }
                fault
            }
        };
        if which.len() <= 1 || fault.fatal {
            out.turns.extend(which.map(|_| TurnResult::failed(fault.clone())));
        } else {
            let middle = which.start + which.len() / 2;
            self.run(turns, which.start..middle, out);
            self.run(turns, middle..which.end, out);
        }
    }

    /// Migrates some states; where the call fails, the one at fault alone, and the others again.
    fn migrate_some(&mut self, from: u32, states: &[&[u8]], out: &mut Vec<Result<Vec<u8>, String>>) {
        if states.is_empty() {
            return;
        }
        let answer = self.instance.migrate(from, self.frames.states(states), CALL_DEADLINE);
        let why = match answer.map(|words| read_states(words, states.len())) {
            Ok(Ok(migrated)) => return out.extend(migrated),
            Ok(Err(e)) => format!("the answer is no frame of states: {e}"),
            Err(f) if self.warden.failed_in_search(&f) => {
                out.extend(states.iter().map(|_| Err(f.to_string())));
                return;
            }
            Err(f) => f.to_string(),
        };
        if let [_] = states {
            out.push(Err(why));
            return;
        }
        let (a, b) = states.split_at(states.len() / 2);
        self.migrate_some(from, a, out);
        self.migrate_some(from, b, out);
    }

    /// Answers a run of turns in calls that are as large as they may be now.
    fn run(&mut self, turns: &Turns, which: Range<usize>, out: &mut Results) {
        let (mut start, mut inputs) = (which.start, 0);
        for i in which.clone() {
            let n = turns.turns[i].inputs.len as usize;
            let full = inputs + n > self.pace.now() || i - start >= FRAME_TURNS;
            if i > start && full {
                self.one_call(turns, start..i, out);
                (start, inputs) = (i, 0);
            }
            inputs += n;
        }
        self.one_call(turns, start..which.end, out);
    }

    fn one_call(&mut self, turns: &Turns, which: Range<usize>, out: &mut Results) {
        let inputs = |i: usize| turns.turns[i].inputs.len as usize;
        if self.warden.budget.is_spent() {
            // Whatever is asked now costs another deadline, and its answer leads nowhere.
            let spent = Fault { fatal: true, ..Fault::unknown("the fault budget is spent") };
            out.turns.extend(which.map(|_| TurnResult::failed(spent.clone())));
        } else if which.len() == 1 && inputs(which.start) > self.pace.now() {
            out.turns.push(TurnResult::failed(too_long()));
        } else if !which.is_empty() {
            self.answer(turns, which, out);
        }
    }
}

/// A turn that is to be asked in parts.
fn too_long() -> Fault {
    Fault { overdue: true, ..Fault::unknown("the turn has more inputs than are asked about at once") }
}

/// How many inputs of a call's turns were behind it when it was stopped.
fn came(f: &sandbox::Fault, turns: &[Turn]) -> Option<usize> {
    let p = f.progress?;
    let before = turns.get(..p.row as usize)?.iter().map(|t| t.inputs.len as usize).sum::<usize>();
    let own = turns.get(p.row as usize)?.inputs.len as usize;
    let input = if p.input < progress::OUTPUT { p.input as usize } else { own };
    Some(before + input.min(own))
}

/// What a sessionizer says of itself, in the engine's words.
pub(super) fn description(d: &sandbox::Description, digest: &str) -> Description {
    Description {
        plugin: format!("{}@{}", d.name, d.version),
        digest: Some(digest.to_owned()),
        fields: d.fields.iter().map(|f| f.name.clone()).collect(),
        reasons: d.reasons.clone(),
        timers: d.timers.clone(),
        state: StateForm {
            rule: d.name.clone(),
            version: d.state.as_ref().map_or(0, |s| s.present.version),
            shape: d.state.as_ref().map_or_else(String::new, |s| s.present.shape.clone()),
            from: d
                .state
                .iter()
                .flat_map(|s| &s.migrates_from)
                .map(|f| (f.version, f.shape.clone()))
                .collect(),
        },
        metrics: metrics(d),
        wants_key: true,
    }
}

/// What a plugin counts, in the engine's words.
pub(super) fn metrics(d: &sandbox::Description) -> Vec<Metric> {
    let bounds = |m: &sandbox::Metric| match &m.kind {
        MetricKind::Counter => Vec::new(),
        MetricKind::Histogram(bounds) => bounds.clone(),
    };
    d.metrics.iter().map(|m| Metric { name: m.name.clone(), bounds: bounds(m) }).collect()
}

/// A fault of the sandbox in the engine's words.
fn fault(f: &sandbox::Fault, fatal: bool) -> Fault {
    let at = match f.progress.map(|p| p.input) {
        None | Some(progress::FRAME | progress::TIMER) => FaultAt::Unknown,
        Some(progress::OUTPUT) => FaultAt::Output,
        Some(i) => FaultAt::Input(i),
    };
    Fault { message: f.to_string(), at, fatal, overdue: matches!(f.kind, FaultKind::Deadline(_)) }
}

impl SessionRule for PluginRule {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn migrate(&mut self, from: u32, states: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        let mut out = Vec::with_capacity(states.len());
        for some in states.chunks(FRAME_TURNS) {
            self.migrate_some(from, some, &mut out);
        }
        out
    }

    fn inputs_max(&self) -> usize {
        self.pace.now()
    }

    fn call(&mut self, turns: &Turns, out: &mut Results) {
        out.clear();
        self.run(turns, 0..turns.turns.len(), out);
        self.warden.pass_on_log(&mut self.instance);
    }
}
