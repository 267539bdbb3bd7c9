//! Tests of how a fault is searched for; what comes of it is held to the naive model in `tests/fold`.

use super::*;
use crate::gap::{Boundary, Gap, GapConfig};
use crate::rule::{Input, OpenHead, Place, Span};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

fn gap() -> Gap {
    Gap::new(&GapConfig { gap_ms: 10, boundary: Boundary::Exclusive, max_ms: None, start: None, end: None })
}

/// A turn for each list of event times, up to the end of the input.
fn turns(times: &[&[i64]]) -> Turns {
    let mut turns = Turns::default();
    for times in times {
        let at = turns.inputs.len();
        turns.inputs.extend(times.iter().map(|ms| Input {
            time: EventTime::from_ms(*ms),
            ext: Span::default(),
            skip: false,
        }));
        turns.turns.push(Turn {
            key: Span::default(),
            open: None,
            state: Span::default(),
            timers: Span::default(),
            inputs: Span::between(at, turns.inputs.len()),
            until: EventTime::INFINITY,
            at_end: true,
            report_open: false,
            wanted: Span::default(),
        });
    }
    turns
}

/// The built-in rule, which does something to its answers besides.
struct Altered<F>(Gap, F);

impl<F: FnMut(&Turns, &mut Results) + Send> SessionRule for Altered<F> {
    fn describe(&self) -> &Description {
        self.0.describe()
    }
    fn migrate(&mut self, from: u32, states: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        self.0.migrate(from, states)
    }
    fn call(&mut self, turns: &Turns, out: &mut Results) {
        self.0.call(turns, out);
        (self.1)(turns, out);
    }
}

fn fail(out: &mut Results) {
    out.turns[0] = TurnResult::failed(Fault::unknown("it failed"));
}

/// Bug family: keys that get no answer, or another one's, since the rule has answered some turns of a call only.
#[test]
fn turns_without_an_answer_are_asked_again() {
    let turns = turns(&[&[0, 5], &[20], &[1, 2, 30]]);
    for answers in 1..4 {
        let some = Altered(gap(), |_: &Turns, out: &mut Results| out.turns.truncate(answers));
        let mut out = Results::default();
        Contained::new(some, 0).call(&turns, &mut out);
        let closed: Vec<Vec<(Place, Place)>> = out
            .turns
            .iter()
            .map(|r| {
                assert_eq!(r.fault, None);
                out.closings[r.closings.range()].iter().map(|c| (c.first, c.last)).collect()
            })
            .collect();
        let [a, b, c] = [0, 1, 2].map(Place::Input);
        assert_eq!(closed, [vec![(a, b)], vec![(a, a)], vec![(a, b), (c, c)]], "{answers} of 3 answered");
    }
}

/// Bug family: a search that asks about one event after the other, which a turn of some thousand events does not survive.
#[test]
fn a_fault_is_found_with_few_questions() {
    const EVENTS: i64 = 1024;
    let times: Vec<i64> = (0..EVENTS).collect();
    let turns = turns(&[&times]);
    for poison in [0, 1, 511, 512, EVENTS - 1] {
        let asked = Arc::new(AtomicU32::new(0));
        let counter = asked.clone();
        let rule = Altered(gap(), move |turns: &Turns, out: &mut Results| {
            counter.fetch_add(1, Ordering::Relaxed);
            if turns.inputs.iter().any(|i| i.time.ms() == poison) {
                fail(out);
            }
        });
        let mut out = Results::default();
        Contained::new(rule, 1).call(&turns, &mut out);
        let rejected: Vec<u32> = out.rejections.iter().map(|r| r.input).collect();
        assert_eq!((&out.turns[0].fault, rejected), (&None, vec![poison as u32]));
        // Ten questions tell 1,024 events apart; some more are about the whole, and about what was found.
        let asked = asked.load(Ordering::Relaxed);
        assert!(asked <= 10 + 8, "{asked} questions for event {poison}");
    }
}

/// Bug family: a rule that is no pure function is asked for ever, or given up for a hiccup.
#[test]
fn a_fault_that_is_never_found_again_is_given_up() {
    for (failures, is_given_up) in [(LOST_MAX, false), (LOST_MAX + 1, true)] {
        let (mut left, mut failed) = (failures, false);
        // Asked for the whole it fails every other time, so that the search finds nothing.
        let rule = Altered(gap(), move |turns: &Turns, out: &mut Results| {
            if !turns.turns[0].at_end {
                return;
            }
            failed = !failed && left > 0;
            if failed {
                left -= 1;
                fail(out);
            }
        });
        let turns = turns(&[&[0]]);
        let mut out = Results::default();
        let answer = Contained::new(rule, 0).piecemeal(&turns, &turns.turns[0], &mut out);
        assert_eq!(answer.fault.map(|f| f.fatal), is_given_up.then_some(true), "{failures} failures");
    }
}

/// Bug family: what the host says of a rule that it will not ask again is taken for a fault of the event it was asked about last.
#[test]
fn a_fault_that_ends_all_is_not_put_on_an_event() {
    let rule = Altered(gap(), |turns: &Turns, out: &mut Results| {
        let times: Vec<i64> = turns.inputs.iter().map(|i| i.time.ms()).collect();
        if times == [2] {
            out.turns[0] = TurnResult::failed(Fault { fatal: true, ..Fault::unknown("it is gone") });
        } else if times.contains(&2) {
            fail(out);
        }
    });
    let mut out = Results::default();
    Contained::new(rule, 1).call(&turns(&[&[0, 1, 2, 3]]), &mut out);
    let fault = out.turns[0].fault.clone().unwrap();
    assert!(fault.fatal && fault.message == "it is gone", "{fault:?}");
    assert!(out.rejections.is_empty());
}

/// Bug family: a timer that is not due yet is blamed for what fails, and its session ends before its time.
#[test]
fn only_the_fields_of_a_session_that_stays_open_may_be_lost() {
    let rule = Altered(gap(), |turns: &Turns, out: &mut Results| {
        if turns.turns[0].report_open {
            fail(out);
        }
    });
    let mut turns = turns(&[&[0, 5]]);
    let turn = &mut turns.turns[0];
    (turn.until, turn.at_end, turn.report_open) = (EventTime::from_ms(6), false, true);
    let mut out = Results::default();
    Contained::new(rule, 1).call(&turns, &mut out);
    let answer = &out.turns[0];
    assert_eq!((&answer.fault, answer.closings.range().len()), (&None, 0));
    assert!(answer.end.first.is_some(), "its session is open");
    assert!(out.rejections.is_empty());
}

/// A turn of a session that began at 0 and has a timer at 15, with a state that the rule refuses.
fn with_refused_state(times: &[i64], until: i64, at_end: bool) -> Turns {
    let mut turns = turns(&[times]);
    turns.bytes.extend_from_slice(b"bad");
    turns.timers.push(Timer { at: EventTime::from_ms(15), number: 0 });
    let time = EventTime::from_ms;
    let turn = &mut turns.turns[0];
    turn.open = Some(OpenHead { start: time(0), last: time(5), count: 2 });
    (turn.state, turn.timers) = (Span::between(0, 3), Span::between(0, 1));
    (turn.until, turn.at_end, turn.report_open) = (time(until), at_end, true);
    turns
}

/// Bug family: a rule that does not take back what it has written ends the pipeline, for all keys.
#[test]
fn a_session_whose_state_is_refused_ends_and_what_follows_begins_anew() {
    let refuses = |turns: &Turns, out: &mut Results| {
        if turns.turns.iter().any(|t| turns.bytes[t.state.range()] == *b"bad") {
            out.turns = turns.turns.iter().map(|_| TurnResult::failed(Fault::unknown("not mine"))).collect();
        }
    };
    let answer = |turns: &Turns, faults: u32| {
        let mut out = Results::default();
        let mut rule = Contained::new(Altered(gap(), refuses), faults);
        rule.call(turns, &mut out);
        let r = out.turns[0].clone();
        let closed = out.closings[r.closings.range()].iter().map(|c| (c.cause, c.first, c.last, c.reason));
        (r.fault.map(|f| f.fatal), closed.collect::<Vec<_>>(), r.end.first, out.rejections.len())
    };
    let carried = |cause| (cause, Place::Carried, Place::Carried, PLUGIN_FAULT);
    let by_timer = carried(Cause::Timer(Timer { at: EventTime::from_ms(15), number: 0 }));
    // The next event ends it; after its timer, the timer does; and what comes then is a session of its own.
    let (first, second) = (Place::Input(0), Place::Input(1));
    let closed = answer(&with_refused_state(&[12, 13], 14, false), 1);
    assert_eq!(closed, (None, vec![carried(Cause::Input(0))], Some(first), 0));
    let (fault, closed, open, rejected) = answer(&with_refused_state(&[16, 18], 20, false), 1);
    assert_eq!((fault, closed, open, rejected), (None, vec![by_timer], Some(first), 0));
    let (fault, closed, open, _) = answer(&with_refused_state(&[], 15, false), 1);
    assert_eq!((fault, closed, open), (None, vec![by_timer], None));
    // Nothing happens to it: it stays, and its fields are not told.
    let (fault, closed, open, _) = answer(&with_refused_state(&[], 14, false), 1);
    assert_eq!((fault, closed, open), (None, vec![], Some(Place::Carried)));
    let (fault, closed, open, _) = answer(&with_refused_state(&[], 14, true), 1);
    assert_eq!((fault, closed, open), (None, vec![carried(Cause::End)], None));
    let (_, closed, ..) = answer(&with_refused_state(&[12, 40], 100, true), 1);
    assert_eq!(
        closed.iter().map(|c| (c.1, c.2)).collect::<Vec<_>>(),
        [(Place::Carried, Place::Carried), (first, first), (second, second)]
    );
    // It counts as a fault, of which there may be too many.
    assert_eq!(answer(&with_refused_state(&[12], 14, false), 0).0, Some(true));
}
