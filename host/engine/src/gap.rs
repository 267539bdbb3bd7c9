//! `builtin:gap`: a session ends when its key is silent for a while.
//!
//! Optional besides: at most `max` after its start, always anew at a `start` event, always done with an
//! `end` event. Its state is empty: everything it needs is in the open session's bounds and timers.

use crate::event::ext::{Value, field};
use crate::rule::{
    Cause, Closing, Description, END_OF_INPUT, Place, Results, SessionRule, Span, StateAt, StateForm, Timer,
    Turn, TurnResult, Turns,
};
use crate::time::EventTime;

/// Whether an event exactly one gap after the last belongs to the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Boundary {
    /// It starts a new one (Beam).
    Exclusive,
    /// It stays (Flink, Kafka Streams).
    Inclusive,
}

/// An event whose field has one of these values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Match {
    /// The field.
    pub field: String,
    /// The values. A missing field matches nothing.
    pub values: Vec<String>,
}

/// The rule's config.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GapConfig {
    /// Silence that ends a session, ms, at least 1.
    pub gap_ms: i64,
    /// What an event exactly one gap later does.
    pub boundary: Boundary,
    /// Longest a session may last, ms, at least 1.
    pub max_ms: Option<i64>,
    /// Events that begin a session.
    pub start: Option<Match>,
    /// Events that end a session.
    pub end: Option<Match>,
}

const REASONS: [&str; 4] = ["gap", "max", "start", "end"];
const GAP: u8 = 0;
const MAX: u8 = 1;
const REASON_START: u16 = 2;
const REASON_END: u16 = 3;

/// The rule.
#[derive(Debug)]
pub struct Gap {
    description: Description,
    silence_ms: i64,
    max_ms: Option<i64>,
    start: Option<(usize, Vec<Vec<u8>>)>,
    end: Option<(usize, Vec<Vec<u8>>)>,
}

impl Gap {
    /// The rule under this config, its fields at the beginning of every extension.
    #[must_use]
    pub fn new(config: &GapConfig) -> Self {
        Gap::at(config, |n| n)
    }

    /// The rule under this config, where its `n`-th field stands at `slot(n)` of every extension.
    #[must_use]
    pub fn at(config: &GapConfig, slot: impl Fn(usize) -> usize) -> Self {
        let mut fields: Vec<String> = Vec::new();
        let mut matcher = |m: &Match| {
            let at = fields.iter().position(|f| *f == m.field).unwrap_or_else(|| {
                fields.push(m.field.clone());
                fields.len() - 1
            });
            (slot(at), m.values.iter().map(|v| v.as_bytes().to_vec()).collect())
        };
        let start = config.start.as_ref().map(&mut matcher);
        let end = config.end.as_ref().map(&mut matcher);
        let reasons = REASONS.map(String::from).to_vec();
        // A timer fires before any event at or after its time, so one more millisecond keeps an event on the boundary in.
        let silence_ms = config.gap_ms + i64::from(config.boundary == Boundary::Inclusive);
        Gap {
            description: Description {
                digest: None,
                metrics: Vec::new(),
                plugin: "builtin:gap@1".into(),
                fields,
                reasons,
                timers: vec!["gap".into(), "max".into()],
                state: StateForm {
                    rule: "builtin:gap".into(),
                    version: 1,
                    shape: String::new(),
                    from: Vec::new(),
                },
                wants_key: false,
            },
            silence_ms: silence_ms.max(1),
            max_ms: config.max_ms.map(|m| m.max(1)),
            start,
            end,
        }
    }

    fn turn(&self, turns: &Turns, turn: &Turn, out: &mut Results) -> TurnResult {
        let closings_at = out.closings.len();
        let snapshots_at = out.snapshots.len();
        let mut open = turn.open.map(|_| {
            let timers = &turns.timers[turn.timers.range()];
            let due = |n| timers.iter().find(|t| t.number == n).map(|t| t.at);
            Open {
                first: Place::Carried,
                last: Place::Carried,
                gap: due(GAP).unwrap_or(EventTime::INFINITY),
                max: due(MAX).unwrap_or(EventTime::INFINITY),
            }
        });
        let wanted = &turns.wanted[turn.wanted.range()];
        let mut next_wanted = 0;
        for (i, input) in turns.inputs[turn.inputs.range()].iter().enumerate() {
            let i = i as u32;
            fire(&mut open, input.time, out);
            if matches(self.start.as_ref(), turns, input.ext)
                && let Some(o) = open.take()
            {
                o.close(Cause::Input(i), REASON_START, out);
            }
            let o = open.get_or_insert(Open {
                first: Place::Input(i),
                last: Place::Input(i),
                gap: EventTime::INFINITY,
                max: self.max_ms.map_or(EventTime::INFINITY, |m| input.time.plus(m)),
            });
            o.last = Place::Input(i);
            o.gap = input.time.plus(self.silence_ms);
            if matches(self.end.as_ref(), turns, input.ext)
                && let Some(o) = open.take()
            {
                o.close(Cause::Input(i), REASON_END, out);
            }
            if wanted.get(next_wanted) == Some(&i) {
                next_wanted += 1;
                let at = state_at(open, out);
                out.snapshots.push(at);
            }
        }
        fire(&mut open, turn.until, out);
        if turn.at_end
            && let Some(o) = open.take()
        {
            o.close(Cause::End, END_OF_INPUT, out);
        }
        let end = state_at(open, out);
        TurnResult {
            counts: Span::default(),
            fault: None,
            closings: Span::between(closings_at, out.closings.len()),
            snapshots: Span::between(snapshots_at, out.snapshots.len()),
            rejections: Span::default(),
            end,
            open_fields: Span::default(),
        }
    }
}

#[derive(Clone, Copy)]
struct Open {
    first: Place,
    last: Place,
    gap: EventTime,
    max: EventTime,
}

impl Open {
    fn close(self, cause: Cause, reason: u16, out: &mut Results) {
        let (first, last) = (self.first, self.last);
        out.closings.push(Closing { cause, discarded: false, first, last, reason, fields: Span::default() });
    }
}

/// Fires the earlier of the two timers if it is due; either closes the session.
fn fire(open: &mut Option<Open>, until: EventTime, out: &mut Results) {
    let Some(o) = *open else { return };
    let (at, number) = if o.max < o.gap { (o.max, MAX) } else { (o.gap, GAP) };
    if at <= until && at != EventTime::INFINITY {
        *open = None;
        o.close(Cause::Timer(Timer { at, number }), u16::from(number), out);
    }
}

fn matches(m: Option<&(usize, Vec<Vec<u8>>)>, turns: &Turns, ext: Span) -> bool {
    m.is_some_and(|(n, values)| match field(&turns.bytes[ext.range()], *n) {
        Value::Text(t) => values.iter().any(|v| v == t),
        _ => false,
    })
}

fn state_at(open: Option<Open>, out: &mut Results) -> StateAt {
    let at = out.timers.len();
    if let Some(o) = open {
        out.timers.push(Timer { at: o.gap, number: GAP });
        if o.max != EventTime::INFINITY {
            out.timers.push(Timer { at: o.max, number: MAX });
        }
    }
    StateAt {
        first: open.map(|o| o.first),
        state: Span::default(),
        timers: Span::between(at, out.timers.len()),
    }
}

impl SessionRule for Gap {
    fn describe(&self) -> &Description {
        &self.description
    }
    fn migrate(&mut self, _: u32, states: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        // Its state is empty in every version.
        states.iter().map(|s| Ok(s.to_vec())).collect()
    }
    fn call(&mut self, turns: &Turns, out: &mut Results) {
        out.clear();
        for turn in &turns.turns {
            let r = self.turn(turns, turn, out);
            out.turns.push(r);
        }
    }
}
