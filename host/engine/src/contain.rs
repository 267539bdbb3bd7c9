//! Containment (SEMANTICS 13): a rule that fails at one event, one timer or one session's fields harms nothing else.
//!
//! [`Contained`] stands between a lane and a rule that may fail. It checks every answer, finds for a failed turn what it failed at,
//! and puts the turn together again from parts that work: a poison event belongs to no session ([`Rejection`] with
//! [`PLUGIN_FAULT`]); a failure in a timer or in output closes the session with that reason, and the
//! events after it begin anew. The lane remembers poison events, and later turns have them as [`Input::skip`]. Since a
//! rule is a pure function, the parts answer as the whole would have.

use crate::check::check;
use crate::pieces::{Pieces, Reach};
use crate::rule::{Cause, Description, Fault, FaultAt, Results, SessionRule, Timer, Turn, TurnResult, Turns};
use crate::time::EventTime;

/// Keeps count of what a rule fails at, and knows how much of it is too much.
pub trait Faults: Send {
    /// The rule has failed at something new. False: this was one too many, and nothing more is to be asked.
    fn found(&mut self, fault: &Fault) -> bool;
}

/// So many faults, and the next one is too many.
impl Faults for u32 {
    fn found(&mut self, _: &Fault) -> bool {
        let left = self.checked_sub(1);
        *self = left.unwrap_or(0);
        left.is_some()
    }
}

/// A rule whose failures are contained. Its answers have no fault but fatal ones.
pub struct Contained<R, F> {
    rule: R,
    faults: F,
    part: Turns,
    part_answers: Results,
}

impl<R: std::fmt::Debug, F> std::fmt::Debug for Contained<R, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contained").field("rule", &self.rule).finish_non_exhaustive()
    }
}

impl<R: SessionRule, F: Faults> Contained<R, F> {
    /// Contains `rule` for as long as `faults` allows; after that a fault is fatal. The rule is never shown an input that is
    /// to be skipped.
    pub fn new(rule: R, faults: F) -> Self {
        Contained { rule, faults, part: Turns::default(), part_answers: Results::default() }
    }

    /// Answers a turn piece by piece, around what fails in it.
    fn piecemeal(&mut self, turns: &Turns, turn: &Turn, out: &mut Results) -> TurnResult {
        let mut whole = Pieces::without_poison(turns, turn);
        loop {
            // Each round answers the rest or up to a poison input, or takes an input out, or closes a session: it ends.
            let stop = whole.wanted_poison();
            let reach = match stop {
                Some(i) => Reach::Inputs { inputs: whole.before(i), until: Some(whole.time(i)) },
                None => Reach::Everything,
            };
            match (self.ask(&whole, reach), stop) {
                (Ok(r), Some(i)) => {
                    whole.take_first(&r, &self.part_answers, whole.before(i));
                    let now = whole.now();
                    whole.snapshots.push(now);
                }
                (Ok(r), None) => {
                    whole.take(&r, &self.part_answers);
                    return whole.finish(out);
                }
                (Err(f), _) if f.fatal => return TurnResult::failed(f),
                (Err(f), _) => {
                    if let Err(f) = self.step_over(&mut whole, f) {
                        return TurnResult::failed(f);
                    }
                }
            }
        }
    }

    /// Finds what fails first in the rest of the turn, and takes it out.
    fn step_over(&mut self, whole: &mut Pieces<'_>, fault: Fault) -> Result<(), Fault> {
        if !self.faults.found(&fault) {
            return Err(Fault { fatal: true, ..fault });
        }
        let n = whole.rest.len();
        // The least number of inputs that fails; `n + 1` if only the timers, fields or the end after all of them do.
        let hint = match fault.at {
            FaultAt::Input(i) => whole.rest.iter().position(|r| *r == i),
            FaultAt::Unknown | FaultAt::Output => None,
        };
        let mut message = fault.message;
        let (mut good, mut bad) = (0, n + 1);
        if let Some(i) = hint {
            // Two questions instead of a search, where the rule has said where it was.
            match self.fails(whole, i + 1)? {
                Some(f) => (bad, message) = (i + 1, f.message),
                None => good = i + 1,
            }
            if bad == i + 1 && self.fails(whole, i)?.is_none() {
                good = i;
            }
        }
        while good + 1 < bad {
            let middle = good + (bad - good) / 2;
            match self.fails(whole, middle)? {
                Some(f) => (bad, message) = (middle, f.message),
                None => good = middle,
            }
        }
        // All but the last input of the failing prefix work. Does the last fail, or a timer or output before it?
        let before = self.answer(whole, Reach::Inputs { inputs: good, until: None })?;
        let timer = self.first_timer(before.as_ref());
        let next = whole.rest.get(good).copied();
        let mut at_timer = next.is_none();
        let mut at_output = false;
        if let Some(i) = next {
            let time = whole.time(i);
            if let Err(f) = self.ask(whole, Reach::Inputs { inputs: good, until: Some(time) }) {
                if f.fatal {
                    return Err(f);
                }
                (at_timer, message) = (true, f.message);
            } else if let Err(f) = self.ask(whole, Reach::Inputs { inputs: good + 1, until: None }) {
                at_output = f.at == FaultAt::Output;
                message = f.message;
            }
        }
        let before = self.answer(whole, Reach::Inputs { inputs: good, until: None })?;
        let Some(before) = before else {
            return Err(Fault { message, at: FaultAt::Unknown, fatal: true });
        };
        let open = before.end.first.is_some();
        if let Some(i) = next.filter(|_| !(at_timer || at_output && open)) {
            whole.poison(i, &message);
            return Ok(());
        }
        whole.take_first(&before, &self.part_answers, good);
        let cause = match (timer, next) {
            _ if !open => return Err(Fault { message, at: FaultAt::Unknown, fatal: true }),
            (Some(t), Some(i)) if at_timer && t.at <= whole.time(i) => Cause::Timer(t),
            (Some(t), None) if t.at <= whole.turn.until && t.at != EventTime::INFINITY => Cause::Timer(t),
            (_, Some(i)) => Cause::Input(i),
            (_, None) if whole.turn.at_end => Cause::End,
            // Only the fields of the session that stays open fail: it goes without.
            (_, None) => {
                whole.report_open = false;
                return Ok(());
            }
        };
        whole.close(cause);
        Ok(())
    }

    fn first_timer(&self, before: Option<&TurnResult>) -> Option<Timer> {
        let timers = self.part_answers.timers.get(before?.end.timers.range())?;
        timers.iter().copied().min()
    }

    fn fails(&mut self, whole: &Pieces<'_>, inputs: usize) -> Result<Option<Fault>, Fault> {
        let reach =
            if inputs > whole.rest.len() { Reach::Everything } else { Reach::Inputs { inputs, until: None } };
        match self.ask(whole, reach) {
            Ok(_) => Ok(None),
            Err(f) if f.fatal => Err(f),
            Err(f) => Ok(Some(f)),
        }
    }

    fn answer(&mut self, whole: &Pieces<'_>, reach: Reach) -> Result<Option<TurnResult>, Fault> {
        match self.ask(whole, reach) {
            Ok(r) => Ok(Some(r)),
            Err(f) if f.fatal => Err(f),
            Err(_) => Ok(None),
        }
    }

    /// Asks the rule about a part of the rest; a fault's input is one of the original turn.
    fn ask(&mut self, whole: &Pieces<'_>, reach: Reach) -> Result<TurnResult, Fault> {
        self.part.clear();
        whole.part(reach, &mut self.part);
        self.part_answers.clear();
        self.rule.call(&self.part, &mut self.part_answers);
        let r = self.part_answers.turns.first().cloned().unwrap_or_else(no_answer);
        let r = judge(self.rule.describe(), &self.part, &self.part.turns[0], &self.part_answers, r);
        match r.fault {
            None => Ok(r),
            Some(mut f) => {
                if let FaultAt::Input(i) = f.at {
                    f.at = whole.rest.get(i as usize).map_or(FaultAt::Unknown, |i| FaultAt::Input(*i));
                }
                Err(f)
            }
        }
    }
}

impl<R: SessionRule, F: Faults> SessionRule for Contained<R, F> {
    fn describe(&self) -> &Description {
        self.rule.describe()
    }

    fn migrate(&mut self, from: u32, states: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        self.rule.migrate(from, states)
    }

    fn call(&mut self, turns: &Turns, out: &mut Results) {
        let skips = turns.inputs.iter().any(|i| i.skip);
        if skips {
            // Rare, and then only for keys with a poison event: those are answered one by one.
            out.clear();
            for turn in &turns.turns {
                let r = self.piecemeal(turns, turn, out);
                out.turns.push(r);
            }
            return;
        }
        out.clear();
        self.rule.call(turns, out);
        out.turns.truncate(turns.turns.len());
        while out.turns.len() < turns.turns.len() {
            out.turns.push(no_answer());
        }
        for (i, turn) in turns.turns.iter().enumerate() {
            let r = std::mem::replace(&mut out.turns[i], TurnResult::failed(Fault::unknown(String::new())));
            let mut r = judge(self.rule.describe(), turns, turn, out, r);
            if r.fault.as_ref().is_some_and(|f| !f.fatal) {
                r = self.piecemeal(turns, turn, out);
            }
            out.turns[i] = r;
        }
    }
}

fn no_answer() -> TurnResult {
    TurnResult::failed(Fault::unknown("the rule gave fewer answers than turns"))
}

/// An answer that breaks the contract is a fault.
fn judge(d: &Description, turns: &Turns, turn: &Turn, out: &Results, r: TurnResult) -> TurnResult {
    if r.fault.is_some() {
        return r;
    }
    match check(d, turns, turn, out, &r) {
        Ok(()) => r,
        Err(why) => TurnResult::failed(Fault::unknown(format!("the answer breaks the contract: {why}"))),
    }
}
