//! One sound answer, and everything that may be wrong with it: each is found, and said for what it is.

use super::*;
use crate::gap::{Boundary, Gap, GapConfig};
use crate::metrics::Metric;
use crate::rule::{Count, PLUGIN_FAULT, Rejection, SessionRule, Timer};

struct Case {
    description: Description,
    turns: Turns,
    results: Results,
    answer: TurnResult,
}

fn at(ms: i64) -> EventTime {
    EventTime::from_ms(ms)
}

fn timer(number: u8, ms: i64) -> Timer {
    Timer { number, at: at(ms) }
}

/// Three events; a timer ends the session of the first two, the third begins one that stays open. States are wanted after the
/// first and the last.
fn sound() -> Case {
    let gap = GapConfig { gap_ms: 10, boundary: Boundary::Exclusive, max_ms: None, start: None, end: None };
    let mut description = Gap::new(&gap).describe().clone();
    description.metrics.push(Metric { name: "steps".into(), bounds: Vec::new() });
    let mut turns = Turns::default();
    for ms in [10, 20, 40] {
        turns.inputs.push(Input { time: at(ms), ext: Span::default(), skip: false });
    }
    turns.wanted.extend([0, 2]);
    turns.turns.push(Turn {
        key: Span::default(),
        open: None,
        state: Span::default(),
        timers: Span::default(),
        inputs: Span::between(0, 3),
        until: at(45),
        at_end: false,
        report_open: true,
        wanted: Span::between(0, 2),
    });
    let mut results = Results::default();
    results.bytes.extend_from_slice(b"{\"a\":1}s");
    results.timers.extend([timer(0, 30), timer(0, 50)]);
    let state = |first, n: usize| StateAt {
        first: Some(Place::Input(first)),
        state: Span::between(7, 8),
        timers: Span::between(n, n + 1),
    };
    results.snapshots.extend([state(0, 0), state(2, 1)]);
    results.closings.push(Closing {
        cause: Cause::Timer(timer(0, 30)),
        discarded: false,
        first: Place::Input(0),
        last: Place::Input(1),
        reason: 0,
        fields: Span::between(0, 7),
    });
    results.counts.push(Count { input: Some(0), at: at(10), metric: 0, value: 1.0 });
    let answer = TurnResult {
        fault: None,
        closings: Span::between(0, 1),
        snapshots: Span::between(0, 2),
        rejections: Span::default(),
        counts: Span::between(0, 1),
        end: state(2, 1),
        open_fields: Span::between(0, 7),
    };
    Case { description, turns, results, answer }
}

impl Case {
    fn check(&self) -> Result<(), String> {
        check(&self.description, &self.turns, &self.turns.turns[0], &self.results, &self.answer)
    }

    fn reject(&mut self, rejected: &[(u32, u16)]) {
        let all = rejected.iter().map(|(input, reason)| Rejection {
            input: *input,
            reason: *reason,
            message: Span::default(),
        });
        self.results.rejections.extend(all);
        self.answer.rejections = Span::between(0, rejected.len());
    }

    /// Closes a session of the last event alone, after which nothing is open.
    fn close(&mut self) {
        let (cause, place) = (Cause::Input(2), Place::Input(2));
        let closing = Closing { cause, first: place, last: place, ..self.results.closings[0] };
        self.results.closings.push(closing);
        self.answer.closings.len += 1;
        self.results.snapshots[1] = StateAt { first: None, state: Span::default(), timers: Span::default() };
    }

    fn fields(&mut self, text: &[u8]) {
        self.results.bytes = [text, b"s"].concat();
        self.answer.open_fields = Span::between(0, text.len());
        self.results.closings[0].fields = Span::default();
        let state = Span::between(text.len(), text.len() + 1);
        self.answer.end.state = state;
        self.results.snapshots.iter_mut().for_each(|s| s.state = state);
    }

    fn state(&mut self, bytes: usize) {
        let from = self.results.bytes.len();
        self.results.bytes.resize(from + bytes, 0);
        self.answer.end.state = Span::between(from, from + bytes);
    }
}

fn is_found(what: &str, with: impl FnOnce(&mut Case)) {
    let mut case = sound();
    with(&mut case);
    match case.check() {
        Ok(()) => panic!("`{what}` is not found"),
        Err(said) => assert!(said.contains(what), "`{said}` for `{what}`"),
    }
}

fn is_sound(with: impl FnOnce(&mut Case)) {
    let mut case = sound();
    with(&mut case);
    assert_eq!(case.check(), Ok(()));
}

/// Bug family: an answer that breaks the contract is used.
#[test]
fn what_is_wrong_with_an_answer_is_found() {
    is_sound(|_| {});
    is_found("do not rise", |c| c.reject(&[(3, PLUGIN_FAULT)]));
    is_found("do not rise", |c| c.reject(&[(1, PLUGIN_FAULT), (1, PLUGIN_FAULT)]));
    is_found("reason 99, which has no name", |c| c.reject(&[(1, 99)]));
    is_found("metric 1 is counted", |c| c.results.counts[0].metric = 1);
    is_found("cannot be added", |c| c.results.counts[0].value = f64::NAN);
    is_found("cannot be added", |c| c.results.counts[0].value = -1.0);
    is_sound(|c| c.results.counts[0].value = 0.0);
    is_sound(|c| {
        c.description.metrics[0].bounds.push(1.0);
        c.results.counts[0].value = -1.0;
    });
    is_found("input that is not there", |c| c.results.counts[0].input = Some(3));
    is_sound(|c| c.results.counts[0].input = Some(2));
    is_found("outside its section", |c| c.answer.counts.len += 1);

    is_found("begins at", |c| c.results.closings[0].first = Place::Input(1));
    is_found("ends at", |c| c.results.closings[0].last = Place::Input(3));
    is_found("ends at", |c| c.results.closings[0].last = Place::Carried);
    is_found("ends at", |c| c.reject(&[(1, PLUGIN_FAULT)]));
    is_found("where no session is", |c| {
        c.close();
        c.close();
    });
    is_found("at the end", |c| c.close());
    is_found("reason 99, which has no name", |c| c.results.closings[0].reason = 99);
    for cause in [
        Cause::Timer(timer(0, 20)),
        Cause::Timer(timer(0, 41)),
        Cause::Timer(timer(2, 30)),
        Cause::End,
        Cause::Input(0),
    ] {
        is_found("a cause that does not fit", |c| c.results.closings[0].cause = cause);
    }
    for cause in [Cause::Timer(timer(0, 21)), Cause::Timer(timer(1, 40)), Cause::Input(1), Cause::Input(2)] {
        is_sound(|c| c.results.closings[0].cause = cause);
    }
    is_found("a cause that does not fit", |c| c.results.closings[0].reason = END_OF_INPUT);
    is_sound(|c| c.results.closings[0].reason = LIMIT);

    is_found("another session", |c| c.results.snapshots[0].first = None);
    is_found("another session", |c| c.results.snapshots[1].first = Some(Place::Input(0)));
    is_found("a snapshot is missing", |c| c.answer.snapshots.len = 0);
    is_found("1 snapshots, where 2 are wanted", |c| c.answer.snapshots.len = 1);
    is_found("3 snapshots, where 2 are wanted", |c| {
        c.results.snapshots.push(c.answer.end);
        c.answer.snapshots.len = 3;
    });
    is_found("at the end", |c| c.answer.end.first = None);
    is_found("open after the end", |c| c.turns.turns[0].at_end = true);
}

/// Bug family: a state, timers or fields that nobody can go on with.
#[test]
fn what_is_wrong_with_states_and_fields_is_found() {
    is_found("no JSON object", |c| c.fields(b"[1]"));
    is_found("no JSON object", |c| c.fields(b"{\"a\":"));
    is_found("line break", |c| c.fields(b"{\"a\":\n1}"));
    is_sound(|c| c.fields(b""));
    let long = |bytes: usize| [b"{\"a\":\"", vec![b'x'; bytes - 8].as_slice(), b"\"}"].concat();
    is_found("bytes of fields", |c| c.fields(&long(FIELDS_BYTES + 1)));
    is_sound(|c| c.fields(&long(FIELDS_BYTES)));
    is_found("outside its section", |c| c.answer.open_fields.len = 9);
    is_found("no JSON object", |c| c.results.closings[0].fields = Span::between(7, 8));

    is_found("a state of", |c| c.state(STATE_BYTES + 1));
    is_sound(|c| c.state(STATE_BYTES));
    is_found("a timer where nothing is open", |c| {
        c.close();
        c.answer.end.first = None;
        c.answer.end.state = Span::default();
    });
    is_found("a state or a timer", |c| {
        c.close();
        c.answer.end.first = None;
        c.answer.end.timers = Span::default();
    });
    is_found("pending twice", |c| {
        c.results.timers = vec![timer(0, 30), timer(0, 50), timer(0, 60)];
        c.answer.end.timers = Span::between(1, 3);
    });
    is_sound(|c| {
        c.results.timers = vec![timer(0, 30), timer(0, 50), timer(1, 60)];
        c.answer.end.timers = Span::between(1, 3);
    });
    is_found("has no name", |c| c.results.timers[1].number = 2);
    is_found("has passed", |c| c.results.timers[0].at = at(10));
    is_found("has passed", |c| c.results.timers[1].at = at(45));
    is_sound(|c| c.results.timers[0].at = at(11));
    is_sound(|c| c.results.timers[1].at = at(46));
}
