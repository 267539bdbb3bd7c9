//! A session rule that rejects, discards and fails, and the same written as a naive batch.

use crate::{Case, Event, Session};
use std::collections::BTreeSet;
use tidemill_engine::event::ext::{Value, field};
use tidemill_engine::metrics::Metric;
use tidemill_engine::rule::{
    Cause, Closing, Count, Description, END_OF_INPUT, Fault, FaultAt, Place, Rejection, Results, SessionRule,
    Span, StateAt, StateForm, Timer, Turn, TurnResult, Turns,
};
use tidemill_engine::time::EventTime;

/// What it counts: events, and timers that fire.
pub(crate) const STEPS: &str = "steps";
pub(crate) const TIMERS: &str = "timers";

/// What an event's type asks for.
const SPLIT: u8 = 0;
const CLOSE: u8 = 1;
const REJECT: u8 = 2;
const DISCARD: u8 = 3;
const POISON: u8 = 4;

/// The timer of a session fails if its events' types sum up to this, modulo 5; its fields fail at the next number.
const BAD_TIMER: u8 = 2;
const BAD_FIELDS: u8 = 3;

/// What a failing rule says of the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hint {
    /// The truth.
    True,
    /// Nothing.
    None,
    /// The input before.
    Wrong,
}

#[derive(Debug)]
pub(crate) struct Rude {
    description: Description,
    silence: i64,
    hint: Hint,
    /// Turns with more inputs take too long.
    most: usize,
    /// About one turn in so many takes too long for no reason of its own, but never two in a row; 0: none.
    hiccups: u32,
    random: u32,
    hiccup: bool,
}

#[derive(Clone, Copy)]
struct Open {
    first: Place,
    last: Place,
    sum: u8,
    due: EventTime,
}

impl Rude {
    pub(crate) fn new(c: &Case, hint: Hint) -> Self {
        let reasons = ["gap", "split", "close", "reject", "discard"].map(String::from).to_vec();
        Rude {
            description: Description {
                digest: None,
                metrics: [STEPS, TIMERS]
                    .map(|name| Metric { name: name.into(), bounds: Vec::new() })
                    .to_vec(),
                plugin: "rude@1".into(),
                fields: vec!["type".into()],
                reasons,
                timers: vec!["silence".into()],
                state: StateForm { rule: "rude".into(), version: 1, shape: String::new(), from: Vec::new() },
                wants_key: true,
            },
            silence: c.gap + i64::from(c.inclusive),
            hint,
            most: c.most,
            hiccups: c.hiccups,
            random: 1,
            hiccup: false,
        }
    }

    fn fault(&self, at: FaultAt) -> Fault {
        let at = match (self.hint, at) {
            (Hint::True, at) => at,
            (Hint::None, _) => FaultAt::Unknown,
            (Hint::Wrong, FaultAt::Input(i)) => FaultAt::Input(i.saturating_sub(1)),
            (Hint::Wrong, _) => FaultAt::Input(7),
        };
        Fault { at, ..Fault::unknown("rude") }
    }

    fn turn(&self, turns: &Turns, turn: &Turn, out: &mut Results) -> Result<TurnResult, Fault> {
        assert!(!turn.key.range().is_empty(), "the key is asked for");
        let (closings, snapshots, rejections) =
            (out.closings.len(), out.snapshots.len(), out.rejections.len());
        let counts = out.counts.len();
        let state = &turns.bytes[turn.state.range()];
        let mut open = turn.open.map(|_| Open {
            first: Place::Carried,
            last: Place::Carried,
            sum: state[0],
            due: turns.timers[turn.timers.range()][0].at,
        });
        for (i, input) in turns.inputs[turn.inputs.range()].iter().enumerate() {
            assert!(!input.skip, "a rule is not shown what it failed at");
            let n = i as u32;
            self.fire(&mut open, input.time, out)?;
            let Value::Text(&[digit]) = field(&turns.bytes[input.ext.range()], 0) else { panic!("a type") };
            let kind = digit - b'0';
            if kind == POISON {
                return Err(self.fault(FaultAt::Input(n)));
            }
            out.counts.push(Count { input: Some(n), at: input.time, metric: 0, value: 1.0 });
            if kind == REJECT {
                out.rejections.push(Rejection { input: n, reason: 3, message: Span::default() });
            } else {
                if kind == SPLIT
                    && let Some(o) = open.take()
                {
                    self.close(o, Cause::Input(n), 1, out)?;
                }
                let o = open.get_or_insert(Open {
                    first: Place::Input(n),
                    last: Place::Input(n),
                    sum: 0,
                    due: EventTime::INFINITY,
                });
                o.last = Place::Input(n);
                o.sum = (o.sum + kind) % 5;
                o.due = input.time.plus(self.silence);
                if kind == CLOSE || kind == DISCARD {
                    let o = *o;
                    open = None;
                    if kind == CLOSE {
                        self.close(o, Cause::Input(n), 2, out)?;
                    } else {
                        out.closings.push(closing(o, Cause::Input(n), 4, true));
                    }
                }
            }
            if turns.wanted[turn.wanted.range()].contains(&n) {
                let s = put(open, out);
                out.snapshots.push(s);
            }
        }
        self.fire(&mut open, turn.until, out)?;
        if turn.at_end
            && let Some(o) = open.take()
        {
            self.close(o, Cause::End, END_OF_INPUT, out)?;
        }
        let end = put(open, out);
        Ok(TurnResult {
            fault: None,
            closings: Span::between(closings, out.closings.len()),
            snapshots: Span::between(snapshots, out.snapshots.len()),
            rejections: Span::between(rejections, out.rejections.len()),
            counts: Span::between(counts, out.counts.len()),
            end,
            open_fields: Span::default(),
        })
    }

    fn fire(&self, open: &mut Option<Open>, until: EventTime, out: &mut Results) -> Result<(), Fault> {
        let Some(o) = *open else { return Ok(()) };
        if o.due <= until && o.due != EventTime::INFINITY {
            if o.sum == BAD_TIMER {
                return Err(self.fault(FaultAt::Unknown));
            }
            out.counts.push(Count { input: None, at: o.due, metric: 1, value: 1.0 });
            self.close(o, Cause::Timer(Timer { at: o.due, number: 0 }), 0, out)?;
            *open = None;
        }
        Ok(())
    }

    fn close(&self, o: Open, cause: Cause, reason: u16, out: &mut Results) -> Result<(), Fault> {
        if o.sum == BAD_FIELDS && matches!(cause, Cause::Timer(_)) {
            return Err(self.fault(FaultAt::Output));
        }
        out.closings.push(closing(o, cause, reason, false));
        Ok(())
    }
}

fn closing(o: Open, cause: Cause, reason: u16, discarded: bool) -> Closing {
    Closing { cause, discarded, first: o.first, last: o.last, reason, fields: Span::default() }
}

fn put(open: Option<Open>, out: &mut Results) -> StateAt {
    let (timers, bytes) = (out.timers.len(), out.bytes.len());
    if let Some(o) = open {
        out.timers.push(Timer { at: o.due, number: 0 });
        out.bytes.push(o.sum);
    }
    StateAt {
        first: open.map(|o| o.first),
        state: Span::between(bytes, out.bytes.len()),
        timers: Span::between(timers, out.timers.len()),
    }
}

impl SessionRule for Rude {
    fn describe(&self) -> &Description {
        &self.description
    }
    fn migrate(&mut self, _: u32, states: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        states.iter().map(|s| Ok(s.to_vec())).collect()
    }
    fn call(&mut self, turns: &Turns, out: &mut Results) {
        out.clear();
        for turn in &turns.turns {
            let inputs = turn.inputs.len as usize;
            self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            self.hiccup =
                self.hiccups > 0 && !self.hiccup && (self.random >> 16).is_multiple_of(self.hiccups);
            let r = if inputs > self.most || self.hiccup {
                let at = match self.hint {
                    Hint::None => FaultAt::Unknown,
                    _ => FaultAt::Input((self.most / 2).min(inputs) as u32),
                };
                TurnResult::failed(Fault { at, overdue: true, ..Fault::unknown("slow") })
            } else {
                self.turn(turns, turn, out).unwrap_or_else(TurnResult::failed)
            };
            out.turns.push(r);
        }
    }

    fn inputs_max(&self) -> usize {
        // It does not always know beforehand.
        if self.hint == Hint::True { self.most } else { usize::MAX }
    }
}

/// Sessions; discarded sessions; events that belong to none, as (key, time, reason).
pub(crate) type Outcome = (Vec<Session>, Vec<Session>, Vec<(String, i64, String)>);

/// Events that the rule steps: all but those that it fails at.
pub(crate) fn steps(accepted: &BTreeSet<Event>) -> usize {
    accepted.iter().filter(|e| e.3 != POISON).count()
}

/// Straight from the definition.
pub(crate) fn naive(c: &Case, accepted: &BTreeSet<Event>) -> Outcome {
    let mut out = Outcome::default();
    for key in ["k0", "k1"] {
        // start, last, count, sum
        let mut open: Option<(i64, i64, u64, u8)> = None;
        let mut close = |o: (i64, i64, u64, u8), why: &str| {
            let to = if why == "discard" { &mut out.1 } else { &mut out.0 };
            to.push((key.to_string(), o.0, o.1, o.2, why.to_string(), "v0".to_string()));
        };
        let by_timer = |o: (i64, i64, u64, u8)| match o.3 {
            BAD_TIMER | BAD_FIELDS => "plugin_fault",
            _ => "gap",
        };
        for e in accepted.iter().filter(|e| format!("k{}", e.0) == key) {
            if let Some(o) = open.take_if(|o| o.1 + c.gap + i64::from(c.inclusive) <= e.1) {
                close(o, by_timer(o));
            }
            match e.3 {
                REJECT => out.2.push((key.into(), e.1, "reject".into())),
                POISON => out.2.push((key.into(), e.1, "plugin_fault".into())),
                kind => {
                    if kind == SPLIT
                        && let Some(o) = open.take()
                    {
                        close(o, "split");
                    }
                    let o = open.get_or_insert((e.1, e.1, 0, 0));
                    (o.1, o.2, o.3) = (e.1, o.2 + 1, (o.3 + kind) % 5);
                    if kind == CLOSE || kind == DISCARD {
                        close(*o, if kind == CLOSE { "close" } else { "discard" });
                        open = None;
                    }
                }
            }
        }
        if let Some(o) = open {
            close(o, by_timer(o));
        }
    }
    out.0.sort();
    out.1.sort();
    out.2.sort();
    out
}
