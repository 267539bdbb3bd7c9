//! A turn answered in pieces: what is answered so far, what is left to ask, and the whole answer put together in the end.
//!
//! Indices are those of the whole turn; a part that is asked counts from its own first input, and its answer is put back
//! into the turn's words. Since a rule is a pure function, the parts answer as the whole would have.

use crate::rule::{
    Cause, Closing, Count, Input, OpenHead, PLUGIN_FAULT, Place, Rejection, Results, Span, StateAt, Timer,
    Turn, TurnResult, Turns,
};
use crate::time::EventTime;

/// How far into the rest of a turn to ask.
#[derive(Clone, Copy)]
pub(crate) enum Reach {
    /// To the turn's own end.
    Everything,
    /// So many inputs; then timers up to `until`, if given.
    Inputs { inputs: usize, until: Option<EventTime> },
}

/// A turn that is being answered in pieces.
pub(crate) struct Pieces<'a> {
    pub(crate) turns: &'a Turns,
    pub(crate) turn: &'a Turn,
    /// Inputs (indices within the turn) that are still to be asked about.
    pub(crate) rest: Vec<u32>,
    /// Where the rest begins: what is open, with the place of its first and last event.
    open: Option<(OpenHead, Place, Place)>,
    state: Vec<u8>,
    timers: Vec<Timer>,
    pub(crate) report_open: bool,
    /// Nothing more is to be asked: what is open stays as it is.
    pub(crate) rests: bool,
    closings: Vec<(Closing, Vec<u8>)>,
    rejections: Vec<(Rejection, Vec<u8>)>,
    counts: Vec<Count>,
    /// One for each wanted input that has been passed.
    pub(crate) snapshots: Vec<Kept>,
    end: Option<Kept>,
    open_fields: Vec<u8>,
}

/// A state with what it points to.
pub(crate) struct Kept {
    first: Option<Place>,
    state: Vec<u8>,
    timers: Vec<Timer>,
}

impl<'a> Pieces<'a> {
    /// All of a turn.
    pub(crate) fn all(turns: &'a Turns, turn: &'a Turn) -> Self {
        Pieces {
            turns,
            turn,
            rest: (0..turn.inputs.len).collect(),
            open: turn.open.map(|o| (o, Place::Carried, Place::Carried)),
            state: turns.bytes[turn.state.range()].to_vec(),
            timers: turns.timers[turn.timers.range()].to_vec(),
            report_open: turn.report_open,
            rests: false,
            closings: Vec::new(),
            rejections: Vec::new(),
            counts: Vec::new(),
            snapshots: Vec::new(),
            end: None,
            open_fields: Vec::new(),
        }
    }

    /// A turn without its poison inputs, which are rejected from the start.
    pub(crate) fn without_poison(turns: &'a Turns, turn: &'a Turn) -> Self {
        let mut all = Pieces::all(turns, turn);
        let inputs = &turns.inputs[turn.inputs.range()];
        all.rest.retain(|i| !inputs[*i as usize].skip);
        all.rejections.extend(inputs.iter().enumerate().filter(|(_, i)| i.skip).map(|(i, _)| {
            let r = Rejection { input: i as u32, reason: PLUGIN_FAULT, message: Span::default() };
            (r, Vec::new())
        }));
        all
    }

    pub(crate) fn input(&self, i: u32) -> &Input {
        &self.turns.inputs[self.turn.inputs.range()][i as usize]
    }

    pub(crate) fn time(&self, i: u32) -> EventTime {
        self.input(i).time
    }

    pub(crate) fn wanted(&self) -> &[u32] {
        &self.turns.wanted[self.turn.wanted.range()]
    }

    /// What to ask next: the whole rest, or up to a poison input after which the state is wanted, but at most so many inputs.
    pub(crate) fn next_piece(&self, most: usize) -> Reach {
        match self.wanted_poison() {
            Some(i) if self.before(i) <= most => {
                Reach::Inputs { inputs: self.before(i), until: Some(self.time(i)) }
            }
            None if self.rest.len() <= most => Reach::Everything,
            _ => Reach::Inputs { inputs: most, until: None },
        }
    }

    /// How many inputs a part has.
    pub(crate) fn asked(&self, reach: Reach) -> usize {
        match reach {
            Reach::Everything => self.rest.len(),
            Reach::Inputs { inputs, .. } => inputs,
        }
    }

    /// Writes the first inputs as a part after which nothing more is asked of what is open: its fields are wanted.
    pub(crate) fn last_part(&self, inputs: usize, until: EventTime, out: &mut Turns) {
        self.part(Reach::Inputs { inputs, until: Some(until) }, out);
        if let Some(turn) = out.turns.last_mut() {
            turn.report_open = true;
        }
    }

    /// Writes the part as a turn of its own behind the others.
    pub(crate) fn part(&self, reach: Reach, out: &mut Turns) {
        let (timers, asked, wanted) = (out.timers.len(), out.inputs.len(), out.wanted.len());
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
            out.inputs.push(Input { ext, ..*self.input(*i) });
        }
        for w in &self.wanted()[self.snapshots.len()..self.wanted_among(inputs)] {
            out.wanted.push(self.before(*w) as u32);
        }
        out.turns.push(Turn {
            key,
            open: self.open.map(|(o, ..)| o),
            state,
            timers: Span::between(timers, out.timers.len()),
            inputs: Span::between(asked, out.inputs.len()),
            until,
            at_end,
            report_open,
            wanted: Span::between(wanted, out.wanted.len()),
        });
    }

    /// A place in a part, as one in the turn.
    pub(crate) fn place(&self, place: Place) -> Place {
        match place {
            Place::Carried => self.open.map_or(Place::Carried, |(_, first, _)| first),
            Place::Input(i) => Place::Input(self.rest[i as usize]),
        }
    }

    pub(crate) fn kept(&self, at: &StateAt, from: &Results) -> Kept {
        Kept {
            first: at.first.map(|p| self.place(p)),
            state: from.bytes[at.state.range()].to_vec(),
            timers: from.timers[at.timers.range()].to_vec(),
        }
    }

    pub(crate) fn now(&self) -> Kept {
        Kept {
            first: self.open.map(|(_, first, _)| first),
            state: self.state.clone(),
            timers: self.timers.clone(),
        }
    }

    pub(crate) fn take_closings(&mut self, r: &TurnResult, from: &Results) {
        self.take_some(r, from, r.closings.len as usize, u32::MAX);
    }

    /// Takes the first closings of an answer, and the rejections before an input of the turn.
    fn take_some(&mut self, r: &TurnResult, from: &Results, closings: usize, before: u32) {
        for c in from.closings[r.closings.range()].iter().take(closings) {
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
            if x2.input >= before {
                break;
            }
            self.rejections.push((x2, from.bytes[x.message.range()].to_vec()));
        }
        self.take_counts(r, from, before);
    }

    /// Takes the counts of an answer, of steps before an input of the turn.
    fn take_counts(&mut self, r: &TurnResult, from: &Results, before: u32) {
        let end = if before == u32::MAX { None } else { Some(self.time(before)) };
        for c in &from.counts[r.counts.range()] {
            let input = c.input.map(|i| self.rest[i as usize]);
            let stands = match (input, end) {
                (Some(i), _) => i < before,
                // A timer that is due with an input fires before it.
                (None, Some(end)) => c.at <= end,
                (None, None) => true,
            };
            if stands {
                self.counts.push(Count { input, ..*c });
            }
        }
    }

    /// How many inputs of the rest stand before this one of the turn.
    pub(crate) fn before(&self, input: u32) -> usize {
        self.rest.partition_point(|i| *i < input)
    }

    /// How many of the wanted states are known once the first `n` inputs of the rest are answered.
    pub(crate) fn wanted_among(&self, n: usize) -> usize {
        let upto = n.checked_sub(1).map_or(0, |last| self.rest[last] + 1);
        self.wanted().partition_point(|w| *w < upto).max(self.snapshots.len())
    }

    /// The next poison input after which the state is wanted. Timers fire before it as before any other, and only
    /// a part that ends there tells the state then.
    pub(crate) fn wanted_poison(&self) -> Option<u32> {
        let mut wanted = self.wanted()[self.snapshots.len()..].iter().copied();
        wanted.find(|w| self.rest.binary_search(w).is_err())
    }

    pub(crate) fn take_snapshots(&mut self, r: &TurnResult, from: &Results, n: usize) {
        for s in &from.snapshots[r.snapshots.range()] {
            let kept = self.kept(s, from);
            self.snapshots.push(kept);
        }
        debug_assert_eq!(self.snapshots.len(), self.wanted_among(n));
    }

    /// Takes the answer for the whole rest.
    pub(crate) fn take(&mut self, r: &TurnResult, from: &Results) {
        self.take_closings(r, from);
        self.take_snapshots(r, from, self.rest.len());
        self.end = Some(self.kept(&r.end, from));
        self.open_fields = from.bytes[r.open_fields.range()].to_vec();
    }

    /// Takes the answer for the first `n` inputs of the rest, and goes on from there.
    pub(crate) fn take_first(&mut self, r: &TurnResult, from: &Results, n: usize) {
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

    /// Takes the answer for the whole rest up to the input `before` of the turn, where nothing is open after so many
    /// closings; the rest begins there.
    pub(crate) fn take_until(&mut self, r: &TurnResult, from: &Results, closings: usize, before: u32) {
        self.take_some(r, from, closings, before);
        let wanted = self.wanted().partition_point(|w| *w < before) - self.snapshots.len();
        for s in from.snapshots[r.snapshots.range()].iter().take(wanted) {
            let kept = self.kept(s, from);
            self.snapshots.push(kept);
        }
        self.open = None;
        self.state.clear();
        self.timers.clear();
        self.rest.retain(|i| *i >= before);
    }

    /// How many closings and snapshots are answered so far.
    pub(crate) fn answered(&self) -> (usize, usize) {
        (self.closings.len(), self.snapshots.len())
    }

    /// State and timers of what is open where the rest begins.
    pub(crate) fn open_state(&self) -> Option<(&[u8], &[Timer])> {
        self.open.map(|_| (self.state.as_slice(), self.timers.as_slice()))
    }

    /// Puts another form of them in place.
    pub(crate) fn put_state(&mut self, state: Vec<u8>, timers: Vec<Timer>) {
        (self.state, self.timers) = (state, timers);
    }

    /// Closes what is open for a reason of the host's.
    pub(crate) fn close(&mut self, cause: Cause, reason: u16, fields: &[u8]) {
        let Some((_, first, last)) = self.open.take() else { return };
        let c = Closing { cause, discarded: false, first, last, reason, fields: Span::default() };
        self.closings.push((c, fields.to_vec()));
        self.state.clear();
        self.timers.clear();
    }

    pub(crate) fn poison(&mut self, input: u32, message: &str) {
        self.rest.retain(|i| *i != input);
        let r = Rejection { input, reason: PLUGIN_FAULT, message: Span::default() };
        self.rejections.push((r, message.as_bytes().to_vec()));
    }

    /// Writes the answer behind the others.
    pub(crate) fn finish(mut self, out: &mut Results) -> TurnResult {
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
        let counts_at = out.counts.len();
        out.counts.append(&mut self.counts);
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
            counts: Span::between(counts_at, out.counts.len()),
            end,
            open_fields,
        }
    }
}
