//! Containment (SEMANTICS 13): a rule that fails at one event, one timer or one session's fields harms nothing else.
//!
//! [`Contained`] stands between a lane and a rule that may fail. It checks every answer, finds for a failed turn what it failed at,
//! and puts the turn together again from parts that work: a poison event belongs to no session ([`Rejection`] with
//! [`PLUGIN_FAULT`]); a failure in a timer or in output closes the session with that reason, and the
//! events after it begin anew. The lane remembers poison events, and later turns have them as [`Input::skip`]. Since a
//! rule is a pure function, the parts answer as the whole would have.

use crate::check::check;
use crate::pieces::{Pieces, Reach};
use crate::rule::{
    Cause, Description, Fault, FaultAt, PLUGIN_FAULT, Results, SessionRule, Timer, Turn, TurnResult, Turns,
};
use crate::time::EventTime;

/// Keeps count of what a rule fails at, and knows how much of it is too much.
pub trait Faults: Send {
    /// The rule has failed at something new. False: this was one too many, and nothing more is to be asked.
    fn found(&mut self, fault: &Fault) -> bool;
    /// A session has ended because the rule could not take its state over.
    fn was_unfit(&mut self, why: &str);
}

/// So many faults, and the next one is too many.
impl Faults for u32 {
    fn found(&mut self, _: &Fault) -> bool {
        let left = self.checked_sub(1);
        *self = left.unwrap_or(0);
        left.is_some()
    }
    fn was_unfit(&mut self, why: &str) {
        self.found(&Fault::unknown(why));
    }
}

/// How often in a row, with nothing answered in between, a fault may not be found again: a rule that is no pure function, or
/// a machine that stands still.
const LOST_MAX: u32 = 32;

/// What a search for a fault has come to.
enum Found {
    /// It is taken out.
    Contained,
    /// There is none any more.
    Nothing(Fault),
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
        // Inputs of the next piece, where the last one took too long; and how often a fault was not found again.
        let (mut most, mut lost) = (usize::MAX, 0);
        loop {
            if whole.rests {
                return whole.finish(out);
            }
            // Each round answers the rest or a part of it, or makes the next piece shorter, or takes an input out, or closes a
            // session: it ends. What never gets any faster is ended by whoever keeps count of the time.
            let reach = whole.next_piece(most.min(self.rule.inputs_max()).max(1));
            let asked = whole.asked(reach);
            let fault = match (self.ask(&whole, reach), reach) {
                (Ok(r), Reach::Everything) => {
                    whole.take(&r, &self.part_answers);
                    return whole.finish(out);
                }
                (Ok(r), Reach::Inputs { inputs, until }) => {
                    whole.take_first(&r, &self.part_answers, inputs);
                    if until.is_some() {
                        let now = whole.now();
                        whole.snapshots.push(now);
                    }
                    (most, lost) = (usize::MAX, 0);
                    continue;
                }
                (Err(f), _) if f.fatal || f.overdue && asked > 1 => f,
                (Err(f), _) => match self.step_over(&mut whole, f, reach) {
                    Ok(Found::Contained) => {
                        (most, lost) = (usize::MAX, 0);
                        continue;
                    }
                    Ok(Found::Nothing(f)) if lost < LOST_MAX => {
                        lost += 1;
                        f
                    }
                    Ok(Found::Nothing(f)) => Fault { fatal: true, ..f },
                    Err(f) => f,
                },
            };
            if fault.fatal {
                return TurnResult::failed(fault);
            }
            // Up to where it came; if it does not even come there again, half as far.
            let came = match fault.at {
                FaultAt::Input(i) => whole.before(i).min(asked),
                FaultAt::Unknown | FaultAt::Output => asked,
            };
            most = if came < asked && most == usize::MAX { came } else { came / 2 }.max(1);
        }
    }

    /// Finds what fails first in a part of the rest that has failed, and takes it out.
    ///
    /// # Errors
    /// A fault that cannot be contained, or one that was overdue while it was searched for: less at once may work.
    fn step_over(&mut self, whole: &mut Pieces<'_>, fault: Fault, reach: Reach) -> Result<Found, Fault> {
        // How many inputs work, and the least number that fails: one more than there are if only the timers, fields or the end
        // after all of them do.
        let (mut good, mut bad) = match reach {
            Reach::Everything => (0, whole.rest.len() + 1),
            Reach::Inputs { inputs, until: Some(_) } => (0, inputs + 1),
            Reach::Inputs { inputs, until: None } => (0, inputs),
        };
        let hint = match fault.at {
            FaultAt::Input(i) => whole.rest.iter().position(|r| *r == i).filter(|i| *i < bad),
            FaultAt::Unknown | FaultAt::Output => None,
        };
        if let Some(i) = hint {
            // Two questions instead of a search, where the rule has said where it was.
            match self.fails(whole, i + 1, bad)? {
                true => bad = i + 1,
                false => good = i + 1,
            }
            if bad == i + 1 && !self.fails(whole, i, bad)? {
                good = i;
            }
        }
        while good + 1 < bad {
            let middle = good + (bad - good) / 2;
            match self.fails(whole, middle, bad)? {
                true => bad = middle,
                false => good = middle,
            }
        }
        // All but the last input of the failing prefix work, and are answered. Does the last fail, or a timer or output before it?
        let Some(before) = self.answer(whole, Reach::Inputs { inputs: good, until: None })? else {
            return if good == 0 { self.let_go(whole, fault, reach) } else { Ok(Found::Nothing(fault)) };
        };
        let (open, timer) = (before.end.first.is_some(), self.first_timer(&before));
        whole.take_first(&before, &self.part_answers, good);
        let next = whole.rest.first().copied();
        let (failed, at_timer) = match (reach, next) {
            // The part ends with timers, before the next input.
            (Reach::Inputs { inputs, until: until @ Some(_) }, _) if inputs == good => {
                (self.surely(whole, Reach::Inputs { inputs: 0, until })?, true)
            }
            (_, Some(i)) => {
                let due = Reach::Inputs { inputs: 0, until: Some(whole.time(i)) };
                match self.surely(whole, due)? {
                    Some(f) => (Some(f), true),
                    None => (self.surely(whole, Reach::Inputs { inputs: 1, until: None })?, false),
                }
            }
            (_, None) => (self.surely(whole, Reach::Everything)?, true),
        };
        let Some(failed) = failed else { return Ok(Found::Nothing(fault)) };
        if !self.faults.found(&failed) {
            return Err(Fault { fatal: true, ..failed });
        }
        let at_output = !at_timer && failed.at == FaultAt::Output;
        if let Some(i) = next.filter(|_| !(at_timer || at_output && open)) {
            whole.poison(i, &failed.message);
            return Ok(Found::Contained);
        }
        // A part before an event that is left out ends at that event's time, which may lie beyond the turn's end.
        let until = match reach {
            Reach::Inputs { until: Some(until), .. } => until,
            Reach::Inputs { until: None, .. } | Reach::Everything => whole.turn.until,
        };
        let cause = match (timer, next) {
            _ if !open => return Err(Fault { fatal: true, ..Fault::unknown(failed.message) }),
            (Some(t), Some(i)) if at_timer && t.at <= whole.time(i) => Cause::Timer(t),
            (Some(t), None) if t.at <= until && t.at != EventTime::INFINITY => Cause::Timer(t),
            (_, Some(i)) => Cause::Input(i),
            (_, None) if whole.turn.at_end => Cause::End,
            // Only the fields of the session that stays open fail: it goes without.
            (_, None) => {
                whole.report_open = false;
                return Ok(Found::Contained);
            }
        };
        whole.close(cause, PLUGIN_FAULT, b"");
        Ok(Found::Contained)
    }

    /// Where the rule fails with nothing asked, it cannot have the session that is open: its state is one that it does not take,
    /// though it made it. The session ends with the first thing that happens to it; if nothing does, it stays as it is.
    fn let_go(&mut self, whole: &mut Pieces<'_>, fault: Fault, reach: Reach) -> Result<Found, Fault> {
        let Some((_, timers)) = whole.open_state() else { return Ok(Found::Nothing(fault)) };
        let timer = timers.iter().copied().min();
        let Some(failed) = self.surely(whole, Reach::Inputs { inputs: 0, until: None })? else {
            return Ok(Found::Nothing(fault));
        };
        if !self.faults.found(&failed) {
            return Err(Fault { fatal: true, ..failed });
        }
        let next = whole.rest.first().map(|i| (*i, whole.time(*i)));
        let until = match (reach, next) {
            (_, Some((_, time))) => time,
            (Reach::Inputs { until: Some(until), .. }, None) => until,
            (Reach::Inputs { until: None, .. } | Reach::Everything, None) => whole.turn.until,
        };
        let cause = match (timer.filter(|t| t.at <= until && t.at != EventTime::INFINITY), next) {
            (Some(t), _) => Cause::Timer(t),
            (None, Some((i, _))) => Cause::Input(i),
            (None, None) if whole.turn.at_end => Cause::End,
            (None, None) => {
                whole.rests = true;
                return Ok(Found::Contained);
            }
        };
        whole.close(cause, PLUGIN_FAULT, b"");
        Ok(Found::Contained)
    }

    fn first_timer(&self, before: &TurnResult) -> Option<Timer> {
        let timers = self.part_answers.timers.get(before.end.timers.range())?;
        timers.iter().copied().min()
    }

    /// Whether the first so many inputs fail; of `bad` it is known.
    fn fails(&mut self, whole: &Pieces<'_>, inputs: usize, bad: usize) -> Result<bool, Fault> {
        if inputs >= bad {
            return Ok(true);
        }
        Ok(self.answer(whole, Reach::Inputs { inputs, until: None })?.is_none())
    }

    /// An answer; none if it fails, and not for its time.
    fn answer(&mut self, whole: &Pieces<'_>, reach: Reach) -> Result<Option<TurnResult>, Fault> {
        match self.ask(whole, reach) {
            Ok(r) => Ok(Some(r)),
            Err(f) if f.fatal || f.overdue && whole.asked(reach) > 1 => Err(f),
            Err(_) => Ok(None),
        }
    }

    /// Why a single step fails. It may have been overdue because the machine was busy with something else, so that it is asked
    /// once more.
    fn surely(&mut self, whole: &Pieces<'_>, reach: Reach) -> Result<Option<Fault>, Fault> {
        let again = match self.ask(whole, reach) {
            Err(f) if f.overdue && !f.fatal => self.ask(whole, reach),
            answer => answer,
        };
        match again {
            Ok(_) => Ok(None),
            Err(f) if f.fatal => Err(f),
            Err(f) => Ok(Some(f)),
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

    fn was_unfit(&mut self, why: &str) {
        self.faults.was_unfit(why);
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

#[cfg(test)]
mod tests;
