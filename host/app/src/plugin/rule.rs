//! A sessionizer as a session rule: batches of turns into calls of bounded size, faults to the turn that caused them.

use super::CALL_DEADLINE;
use super::budget::Warden;
use super::frames::{Column, TurnFrames, read_results, read_states};
use std::ops::Range;
use std::time::{Duration, Instant};
use tidemill_contract::rows::progress;
use tidemill_engine::metrics::Metric;
use tidemill_engine::rule::{
    Description, Fault, FaultAt, Results, SessionRule, StateForm, TurnResult, Turns,
};
use tidemill_sandbox::{self as sandbox, Instance, MetricKind};

/// Inputs in one frame: the cost of a call is spread over them, and a call that fails is found again among them.
const FRAME_INPUTS: usize = 1024;
/// Turns in one frame.
const FRAME_TURNS: usize = 256;
/// What each input beyond [`FRAME_INPUTS`] adds to a call's deadline: a hot key's turn is one call however long it is, and
/// a rule takes some 100 ns for an input.
const INPUT_DEADLINE: Duration = Duration::from_micros(2);

/// A plugin behind the engine's trait.
pub(crate) struct PluginRule {
    description: Description,
    frames: TurnFrames,
    instance: Instance,
    warden: Warden,
}

impl PluginRule {
    /// The rule of an instance, whose declared fields stand at these places of extensions.
    pub(crate) fn new(instance: Instance, warden: Warden, slots: &[usize]) -> PluginRule {
        let d = instance.plugin().component().description();
        let columns = d.fields.iter().zip(slots).map(|(f, slot)| Column::new(f, *slot)).collect();
        let description = description(d, &warden.who.digest);
        PluginRule { description, frames: TurnFrames::new(columns), instance, warden }
    }

    /// Answers a run of turns; where the call fails, the turn at fault alone, and the others again.
    fn answer(&mut self, turns: &Turns, which: Range<usize>, out: &mut Results) {
        let inputs: usize = turns.turns[which.clone()].iter().map(|t| t.inputs.len as usize).sum();
        let deadline = deadline(inputs);
        let frame = self.frames.write(turns, which.clone());
        let begun = Instant::now();
        let answer = self.instance.fold(frame, deadline);
        self.warden.meter.called(begun);
        let fault = match answer {
            Ok(words) => match read_results(words, turns, which.clone(), out) {
                Ok(()) => return,
                Err(e) => Fault::unknown(format!("the answer is no frame of results: {e}")),
            },
            Err(f) => {
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
            Err(f) if self.warden.failed(&f) => {
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

    fn run(&mut self, turns: &Turns, which: Range<usize>, out: &mut Results) {
        if self.warden.budget.is_spent() {
            // Whatever is asked now costs another deadline, and its answer leads nowhere.
            let spent = Fault { fatal: true, ..Fault::unknown("the fault budget is spent") };
            out.turns.extend(which.map(|_| TurnResult::failed(spent.clone())));
        } else if !which.is_empty() {
            self.answer(turns, which, out);
        }
    }
}

/// How long a call may take.
fn deadline(inputs: usize) -> Duration {
    let beyond = u32::try_from(inputs.saturating_sub(FRAME_INPUTS)).unwrap_or(u32::MAX);
    CALL_DEADLINE.saturating_add(INPUT_DEADLINE.saturating_mul(beyond))
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
            version: d.state.as_ref().map_or(0, |s| s.version),
            from: d.state.as_ref().map_or_else(Vec::new, |s| s.migrates_from.clone()),
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
    Fault { message: f.to_string(), at, fatal }
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

    fn call(&mut self, turns: &Turns, out: &mut Results) {
        out.clear();
        let (mut start, mut inputs) = (0, 0);
        for (i, turn) in turns.turns.iter().enumerate() {
            let n = turn.inputs.len as usize;
            if i > start && (inputs + n > FRAME_INPUTS || i - start >= FRAME_TURNS) {
                self.run(turns, start..i, out);
                (start, inputs) = (i, 0);
            }
            inputs += n;
        }
        self.run(turns, start..turns.turns.len(), out);
        self.warden.pass_on_log(&mut self.instance);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_turn_may_take_longer_and_a_usual_call_may_not() {
        assert_eq!([0, 1, FRAME_INPUTS].map(deadline), [CALL_DEADLINE; 3]);
        assert_eq!(deadline(FRAME_INPUTS + 500_000), CALL_DEADLINE + Duration::from_secs(1));
    }
}
