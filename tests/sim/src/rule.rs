//! A session rule with everything in it that a rule can do: timers, splits, closes, rejections, discards, faults and slow
//! calls, in versions of which each can take over from the others. `model` says the same as a naive batch.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tidemill_engine::event::ext::{Value, field};
use tidemill_engine::rule::{
    Cause, Closing, Description, END_OF_INPUT, Fault, FaultAt, Place, Rejection, Results, SessionRule, Span,
    StateAt, StateForm, Timer, Turn, TurnResult, Turns,
};
use tidemill_engine::time::EventTime;

/// What an event's kind asks for, whatever the version; the others go on with the session.
pub(crate) const REJECT: u8 = 2;
pub(crate) const DISCARD: u8 = 3;
pub(crate) const POISON: u8 = 4;
/// Kinds of events: from 0 up to this one.
pub(crate) const KINDS: u8 = 10;

/// A timer of a session fails if the kinds of its events sum up to this, modulo [`SUMS`]; its fields fail at the next number.
pub(crate) const BAD_TIMER: u8 = 2;
pub(crate) const BAD_FIELDS: u8 = 3;
pub(crate) const SUMS: u8 = 11;

const SILENCE: u8 = 0;
const MAX: u8 = 1;
const REASONS: [&str; 6] = ["silence", "max", "split", "close", "rejected", "discarded"];

/// One version's config.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Config {
    /// A session ends so long after its last event, ms.
    pub(crate) silence: Option<i64>,
    /// And so long after its first.
    pub(crate) max: Option<i64>,
    /// An event of this kind begins a session.
    pub(crate) split_on: u8,
    /// One of this kind ends it.
    pub(crate) close_on: u8,
    /// The form of its state: 1 or 2.
    pub(crate) form: u8,
}

/// How a rule behaves that is not a matter of its answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manners {
    /// Turns with more inputs take too long; 0: any number is fine.
    pub(crate) most: usize,
    /// About one turn in so many takes too long for no reason of its own; 0: none.
    pub(crate) hiccups: u32,
    /// Whether it says what it failed at.
    pub(crate) hints: bool,
    /// Set from outside: the next call fails for good.
    pub(crate) breaks: Arc<AtomicBool>,
}

#[derive(Debug)]
pub(crate) struct Visits {
    description: Description,
    config: Config,
    manners: Manners,
    random: u32,
    hiccup: bool,
}

#[derive(Clone, Copy)]
struct Open {
    first: Place,
    last: Place,
    sum: u8,
    /// By number.
    due: [EventTime; 2],
}

impl Open {
    fn next(&self) -> Timer {
        let [silence, max] = self.due;
        if max < silence { Timer { at: max, number: MAX } } else { Timer { at: silence, number: SILENCE } }
    }
}

pub(crate) fn fields(sum: u8) -> String {
    format!("{{\"sum\":{sum}}}")
}

impl Visits {
    pub(crate) fn new(config: Config, plugin: &str, manners: Manners) -> Visits {
        let form = |n: u8| (u32::from(n), format!("sum of form {n}"));
        let (version, shape) = form(config.form);
        let description = Description {
            plugin: plugin.into(),
            digest: None,
            fields: vec!["kind".into()],
            reasons: REASONS.map(String::from).to_vec(),
            timers: vec!["silence".into(), "max".into()],
            state: StateForm { rule: "visits".into(), version, shape, from: vec![form(3 - config.form)] },
            metrics: Vec::new(),
            wants_key: false,
        };
        Visits { description, config, manners, random: 1, hiccup: false }
    }

    fn fault(&self, at: FaultAt, message: &str) -> Fault {
        let at = if self.manners.hints { at } else { FaultAt::Unknown };
        Fault { at, ..Fault::unknown(message) }
    }

    fn carried(&self, turns: &Turns, turn: &Turn) -> Result<Option<Open>, Fault> {
        if turn.open.is_none() {
            return Ok(None);
        }
        let state = &turns.bytes[turn.state.range()];
        let sum = match (self.config.form, state) {
            (1, [sum]) | (2, [b'2', sum]) => *sum,
            _ => return Err(Fault::unknown("a state of another form")),
        };
        let mut due = [EventTime::INFINITY; 2];
        for timer in &turns.timers[turn.timers.range()] {
            due[timer.number as usize] = timer.at;
        }
        Ok(Some(Open { first: Place::Carried, last: Place::Carried, sum, due }))
    }

    fn turn(&self, turns: &Turns, turn: &Turn, out: &mut Results) -> Result<TurnResult, Fault> {
        let (closings, snapshots, rejections) =
            (out.closings.len(), out.snapshots.len(), out.rejections.len());
        let mut open = self.carried(turns, turn)?;
        for (i, input) in turns.inputs[turn.inputs.range()].iter().enumerate() {
            let n = i as u32;
            self.fire(&mut open, input.time, out)?;
            let Value::Text(&[digit]) = field(&turns.bytes[input.ext.range()], 0) else {
                return Err(Fault::unknown("an event without its kind"));
            };
            let kind = digit - b'0';
            match kind {
                POISON => return Err(self.fault(FaultAt::Input(n), "poison")),
                REJECT => out.rejections.push(Rejection { input: n, reason: 4, message: Span::default() }),
                _ => self.event(&mut open, n, input.time, kind, out)?,
            }
            if turns.wanted[turn.wanted.range()].contains(&n) {
                let s = self.put(open, out);
                out.snapshots.push(s);
            }
        }
        self.fire(&mut open, turn.until, out)?;
        if turn.at_end
            && let Some(o) = open.take()
        {
            self.close(o, Cause::End, END_OF_INPUT, out)?;
        }
        let end = self.put(open, out);
        let fields_at = out.bytes.len();
        if turn.report_open
            && let Some(o) = open
        {
            out.bytes.extend_from_slice(fields(o.sum).as_bytes());
        }
        Ok(TurnResult {
            fault: None,
            closings: Span::between(closings, out.closings.len()),
            snapshots: Span::between(snapshots, out.snapshots.len()),
            rejections: Span::between(rejections, out.rejections.len()),
            counts: Span::default(),
            end,
            open_fields: Span::between(fields_at, out.bytes.len()),
        })
    }

    fn event(
        &self,
        open: &mut Option<Open>,
        n: u32,
        time: EventTime,
        kind: u8,
        out: &mut Results,
    ) -> Result<(), Fault> {
        let config = &self.config;
        if kind == config.split_on
            && let Some(o) = open.take()
        {
            self.close(o, Cause::Input(n), 2, out)?;
        }
        let max = config.max.map_or(EventTime::INFINITY, |max| time.plus(max));
        let o = open.get_or_insert(Open {
            first: Place::Input(n),
            last: Place::Input(n),
            sum: 0,
            due: [EventTime::INFINITY, max],
        });
        o.last = Place::Input(n);
        o.sum = (o.sum + kind) % SUMS;
        o.due[SILENCE as usize] = config.silence.map_or(EventTime::INFINITY, |silence| time.plus(silence));
        let o = *o;
        if kind == DISCARD {
            *open = None;
            out.closings.push(closing(o, Cause::Input(n), 5, true, Span::default()));
        } else if kind == config.close_on {
            *open = None;
            self.close(o, Cause::Input(n), 3, out)?;
        }
        Ok(())
    }

    fn fire(&self, open: &mut Option<Open>, until: EventTime, out: &mut Results) -> Result<(), Fault> {
        let Some(o) = *open else { return Ok(()) };
        let next = o.next();
        if next.at <= until && next.at != EventTime::INFINITY {
            if o.sum == BAD_TIMER {
                return Err(self.fault(FaultAt::Unknown, "a timer that fails"));
            }
            self.close(o, Cause::Timer(next), u16::from(next.number), out)?;
            *open = None;
        }
        Ok(())
    }

    fn close(&self, o: Open, cause: Cause, reason: u16, out: &mut Results) -> Result<(), Fault> {
        if o.sum == BAD_FIELDS && matches!(cause, Cause::Timer(_)) {
            return Err(self.fault(FaultAt::Output, "fields that fail"));
        }
        let at = out.bytes.len();
        out.bytes.extend_from_slice(fields(o.sum).as_bytes());
        out.closings.push(closing(o, cause, reason, false, Span::between(at, out.bytes.len())));
        Ok(())
    }

    fn put(&self, open: Option<Open>, out: &mut Results) -> StateAt {
        let (timers, bytes) = (out.timers.len(), out.bytes.len());
        if let Some(o) = open {
            for (number, at) in o.due.into_iter().enumerate().filter(|(_, at)| *at != EventTime::INFINITY) {
                out.timers.push(Timer { at, number: number as u8 });
            }
            out.timers[timers..].sort_unstable();
            out.bytes.extend_from_slice(if self.config.form == 2 { b"2" } else { b"" });
            out.bytes.push(o.sum);
        }
        StateAt {
            first: open.map(|o| o.first),
            state: Span::between(bytes, out.bytes.len()),
            timers: Span::between(timers, out.timers.len()),
        }
    }
}

fn closing(o: Open, cause: Cause, reason: u16, discarded: bool, fields: Span) -> Closing {
    Closing { cause, discarded, first: o.first, last: o.last, reason, fields }
}

impl SessionRule for Visits {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn call(&mut self, turns: &Turns, out: &mut Results) {
        out.clear();
        let breaks = self.manners.breaks.swap(false, Ordering::Relaxed);
        for turn in &turns.turns {
            let inputs = turn.inputs.len as usize;
            self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let hiccups = self.manners.hiccups;
            // Never two in a row: asked again it answers.
            self.hiccup = hiccups > 0 && !self.hiccup && (self.random >> 16).is_multiple_of(hiccups);
            let too_long = self.manners.most > 0 && inputs > self.manners.most;
            let r = if breaks {
                TurnResult::failed(Fault { fatal: true, ..Fault::unknown("broken") })
            } else if too_long || self.hiccup {
                let at = FaultAt::Input((self.manners.most / 2).min(inputs) as u32);
                TurnResult::failed(Fault { overdue: true, ..self.fault(at, "slow") })
            } else {
                let marks = (out.closings.len(), out.snapshots.len(), out.rejections.len());
                self.turn(turns, turn, out).unwrap_or_else(|fault| {
                    out.closings.truncate(marks.0);
                    out.snapshots.truncate(marks.1);
                    out.rejections.truncate(marks.2);
                    TurnResult::failed(fault)
                })
            };
            out.turns.push(r);
        }
    }

    fn inputs_max(&self) -> usize {
        // It does not always know beforehand.
        if self.manners.hints && self.manners.most > 0 { self.manners.most } else { usize::MAX }
    }

    fn migrate(&mut self, from: u32, states: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        let one = |state: &&[u8]| match (from, *state) {
            (1, [sum]) => Ok(vec![b'2', *sum]),
            (2, [b'2', sum]) => Ok(vec![*sum]),
            _ => Err("a state of another form".to_owned()),
        };
        states.iter().map(one).collect()
    }
}
