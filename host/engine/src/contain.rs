//! Containment (SEMANTICS 13): a rule that fails at one event, one timer or one session's fields harms nothing else.
//!
//! [`Contained`] stands between a lane and a rule that may fail. It checks every answer, finds for a failed turn what it failed at,
//! and puts the turn together again from parts that work: a poison event belongs to no session ([`Rejection`] with
//! [`PLUGIN_FAULT`]); a failure in a timer or in output closes the session with that reason, and the
//! events after it begin anew. The lane remembers poison events, and later turns have them as [`Input::skip`]. Since a
//! rule is a pure function, the parts answer as the whole would have.

use crate::check::check;
use crate::rule::{
    Cause, Closing, Description, Fault, FaultAt, Input, OpenHead, PLUGIN_FAULT, Place, Rejection, Results,
    SessionRule, Span, StateAt, Timer, Turn, TurnResult, Turns,
};
use crate::time::EventTime;

/// A rule whose failures are contained. Its answers have no fault but fatal ones.
pub struct Contained<R> {
    rule: R,
    /// How many more faults there may be.
    budget: u32,
    part: Turns,
    part_answers: Results,
}

impl<R: std::fmt::Debug> std::fmt::Debug for Contained<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contained").field("rule", &self.rule).finish_non_exhaustive()
    }
}

impl<R: SessionRule> Contained<R> {
    /// Contains `rule`, for `budget` faults; the next one is fatal. It is never shown an input that is to be skipped.
    pub fn new(rule: R, budget: u32) -> Self {
        Contained { rule, budget, part: Turns::default(), part_answers: Results::default() }
    }

    /// Answers a turn piece by piece, around what fails in it.
    fn piecemeal(&mut self, turns: &Turns, turn: &Turn, out: &mut Results) -> TurnResult {
        let mut whole = Pieces::new(turns, turn);
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
        self.budget = match self.budget.checked_sub(1) {
            Some(left) => left,
            None => return Err(Fault { fatal: true, ..fault }),
        };
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

impl<R: SessionRule> SessionRule for Contained<R> {
    fn describe(&self) -> &Description {
        self.rule.describe()
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
            let r = std::mem::replace(&mut out.turns[i], no_answer());
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

/// How far into the rest of a turn to ask.
#[derive(Clone, Copy)]
enum Reach {
    /// To the turn's own end.
    Everything,
    /// So many inputs; then timers up to `until`, if given.
    Inputs { inputs: usize, until: Option<EventTime> },
}

/// A turn that is being answered in pieces.
struct Pieces<'a> {
    turns: &'a Turns,
    turn: &'a Turn,
    /// Inputs (indices within the turn) that are not answered yet, without poison ones.
    rest: Vec<u32>,
    /// Where the rest begins: what is open, with the place of its first and last event.
    open: Option<(OpenHead, Place, Place)>,
    state: Vec<u8>,
    timers: Vec<Timer>,
    report_open: bool,
    closings: Vec<(Closing, Vec<u8>)>,
    rejections: Vec<(Rejection, Vec<u8>)>,
    /// One for each wanted input that has been passed.
    snapshots: Vec<Kept>,
    end: Option<Kept>,
    open_fields: Vec<u8>,
}

/// A state with what it points to.
struct Kept {
    first: Option<Place>,
    state: Vec<u8>,
    timers: Vec<Timer>,
}

impl<'a> Pieces<'a> {
    fn new(turns: &'a Turns, turn: &'a Turn) -> Self {
        let inputs = &turns.inputs[turn.inputs.range()];
        let rejections = inputs
            .iter()
            .enumerate()
            .filter(|(_, i)| i.skip)
            .map(|(i, _)| {
                let r = Rejection { input: i as u32, reason: PLUGIN_FAULT, message: Span::default() };
                (r, Vec::new())
            })
            .collect();
        Pieces {
            turns,
            turn,
            rest: (0..inputs.len() as u32).filter(|i| !inputs[*i as usize].skip).collect(),
            open: turn.open.map(|o| (o, Place::Carried, Place::Carried)),
            state: turns.bytes[turn.state.range()].to_vec(),
            timers: turns.timers[turn.timers.range()].to_vec(),
            report_open: turn.report_open,
            closings: Vec::new(),
            rejections,
            snapshots: Vec::new(),
            end: None,
            open_fields: Vec::new(),
        }
    }

    fn input(&self, i: u32) -> &Input {
        &self.turns.inputs[self.turn.inputs.range()][i as usize]
    }

    fn time(&self, i: u32) -> EventTime {
        self.input(i).time
    }

    fn wanted(&self) -> &[u32] {
        &self.turns.wanted[self.turn.wanted.range()]
    }

    /// Writes the part as a turn of its own.
    fn part(&self, reach: Reach, out: &mut Turns) {
        out.clear();
        let put = |out: &mut Turns, bytes: &[u8]| {
            let at = out.bytes.len();
            out.bytes.extend_from_slice(bytes);
            Span::between(at, out.bytes.len())
        };
        let (inputs, until, at_end, report_open) = match reach {
            Reach::Everything => (self.rest.len(), self.turn.until, self.turn.at_end, self.report_open),
            Reach::Inputs { inputs, until } => (inputs, until.unwrap_or(EventTime::BEGINNING), false, false),
        };
        let key = put(out, &self.turns.bytes[self.turn.key.range()]);
        let state = put(out, &self.state);
        out.timers.extend_from_slice(&self.timers);
        for i in &self.rest[..inputs] {
            let ext = put(out, &self.turns.bytes[self.input(*i).ext.range()]);
            out.inputs.push(Input { time: self.time(*i), ext, skip: false });
        }
        for w in &self.wanted()[self.snapshots.len()..self.wanted_among(inputs)] {
            out.wanted.push(self.before(*w) as u32);
        }
        out.turns.push(Turn {
            key,
            open: self.open.map(|(o, ..)| o),
            state,
            timers: Span::between(0, out.timers.len()),
            inputs: Span::between(0, out.inputs.len()),
            until,
            at_end,
            report_open,
            wanted: Span::between(0, out.wanted.len()),
        });
    }

    /// A place in a part, as one in the turn.
    fn place(&self, place: Place) -> Place {
        match place {
            Place::Carried => self.open.map_or(Place::Carried, |(_, first, _)| first),
            Place::Input(i) => Place::Input(self.rest[i as usize]),
        }
    }

    fn kept(&self, at: &StateAt, from: &Results) -> Kept {
        Kept {
            first: at.first.map(|p| self.place(p)),
            state: from.bytes[at.state.range()].to_vec(),
            timers: from.timers[at.timers.range()].to_vec(),
        }
    }

    fn now(&self) -> Kept {
        Kept {
            first: self.open.map(|(_, first, _)| first),
            state: self.state.clone(),
            timers: self.timers.clone(),
        }
    }

    fn take_closings(&mut self, r: &TurnResult, from: &Results) {
        for c in &from.closings[r.closings.range()] {
            let cause = match c.cause {
                Cause::Input(i) => Cause::Input(self.rest[i as usize]),
                other => other,
            };
            let last = match c.last {
                Place::Input(i) => Place::Input(self.rest[i as usize]),
                Place::Carried => self.open.map_or(Place::Carried, |(_, _, last)| last),
            };
            let c2 = Closing { cause, first: self.place(c.first), last, ..*c };
            self.closings.push((c2, from.bytes[c.fields.range()].to_vec()));
        }
        for x in &from.rejections[r.rejections.range()] {
            let x2 = Rejection { input: self.rest[x.input as usize], ..*x };
            self.rejections.push((x2, from.bytes[x.message.range()].to_vec()));
        }
    }

    /// How many inputs of the rest stand before this one of the turn.
    fn before(&self, input: u32) -> usize {
        self.rest.partition_point(|i| *i < input)
    }

    /// How many of the wanted states are known once the first `n` inputs of the rest are answered.
    fn wanted_among(&self, n: usize) -> usize {
        let upto = n.checked_sub(1).map_or(0, |last| self.rest[last] + 1);
        self.wanted().partition_point(|w| *w < upto).max(self.snapshots.len())
    }

    /// The next poison input after which the state is wanted. Timers fire before it as before any other, and only
    /// a part that ends there tells the state then.
    fn wanted_poison(&self) -> Option<u32> {
        let mut wanted = self.wanted()[self.snapshots.len()..].iter().copied();
        wanted.find(|w| self.rest.binary_search(w).is_err())
    }

    fn take_snapshots(&mut self, r: &TurnResult, from: &Results, n: usize) {
        for s in &from.snapshots[r.snapshots.range()] {
            let kept = self.kept(s, from);
            self.snapshots.push(kept);
        }
        debug_assert_eq!(self.snapshots.len(), self.wanted_among(n));
    }

    /// Takes the answer for the whole rest.
    fn take(&mut self, r: &TurnResult, from: &Results) {
        self.take_closings(r, from);
        self.take_snapshots(r, from, self.rest.len());
        self.end = Some(self.kept(&r.end, from));
        self.open_fields = from.bytes[r.open_fields.range()].to_vec();
    }

    /// Takes the answer for the first `n` inputs of the rest, and goes on from there.
    fn take_first(&mut self, r: &TurnResult, from: &Results, n: usize) {
        self.take_closings(r, from);
        self.take_snapshots(r, from, n);
        let kept = self.kept(&r.end, from);
        let dead: Vec<u32> = from.rejections[r.rejections.range()].iter().map(|x| x.input).collect();
        self.open = r.end.first.and_then(|place| {
            let first = self.place(place);
            let from = match place {
                Place::Carried => 0,
                Place::Input(i) => i,
            };
            let mine: Vec<u32> = (from..n as u32).filter(|i| !dead.contains(i)).collect();
            let before = match place {
                Place::Carried => self.open,
                Place::Input(_) => None,
            };
            let last = mine.last().map(|i| self.rest[*i as usize]);
            let head = OpenHead {
                start: before.map_or_else(
                    || mine.first().map(|i| self.time(self.rest[*i as usize])),
                    |b| Some(b.0.start),
                )?,
                last: last.map_or_else(|| before.map(|b| b.0.last), |i| Some(self.time(i)))?,
                count: before.map_or(0, |b| b.0.count) + mine.len() as u64,
            };
            Some((head, first, last.map_or_else(|| before.map(|b| b.2), |i| Some(Place::Input(i)))?))
        });
        (self.state, self.timers) = (kept.state, kept.timers);
        self.rest.drain(..n);
    }

    /// Closes what is open for a fault.
    fn close(&mut self, cause: Cause) {
        let Some((_, first, last)) = self.open.take() else { return };
        let c =
            Closing { cause, discarded: false, first, last, reason: PLUGIN_FAULT, fields: Span::default() };
        self.closings.push((c, Vec::new()));
        self.state.clear();
        self.timers.clear();
    }

    fn poison(&mut self, input: u32, message: &str) {
        self.rest.retain(|i| *i != input);
        let r = Rejection { input, reason: PLUGIN_FAULT, message: Span::default() };
        self.rejections.push((r, message.as_bytes().to_vec()));
    }

    /// Writes the answer behind the others.
    fn finish(mut self, out: &mut Results) -> TurnResult {
        let put = |out: &mut Results, bytes: &[u8]| {
            let at = out.bytes.len();
            out.bytes.extend_from_slice(bytes);
            Span::between(at, out.bytes.len())
        };
        let put_state = |out: &mut Results, k: &Kept| {
            let at = out.timers.len();
            out.timers.extend_from_slice(&k.timers);
            let timers = Span::between(at, out.timers.len());
            StateAt { first: k.first, state: put(out, &k.state), timers }
        };
        let closings_at = out.closings.len();
        for (c, fields) in &self.closings {
            let fields = put(out, fields);
            out.closings.push(Closing { fields, ..*c });
        }
        self.rejections.sort_by_key(|(r, _)| r.input);
        let rejections_at = out.rejections.len();
        for (r, message) in &self.rejections {
            let message = put(out, message);
            out.rejections.push(Rejection { message, ..*r });
        }
        let snapshots_at = out.snapshots.len();
        for k in &self.snapshots {
            let s = put_state(out, k);
            out.snapshots.push(s);
        }
        let end = self.end.take().unwrap_or_else(|| self.now());
        let end = put_state(out, &end);
        let open_fields = put(out, &self.open_fields);
        TurnResult {
            fault: None,
            closings: Span::between(closings_at, out.closings.len()),
            snapshots: Span::between(snapshots_at, out.snapshots.len()),
            rejections: Span::between(rejections_at, out.rejections.len()),
            end,
            open_fields,
        }
    }
}
