//! The walk through a turn, by the rules of `wit/README.md`: what a scenario of a well-meant rule does not reach.

use tidemill_contract::frame::{Frame, FrameWriter, Kind};
use tidemill_contract::rows::{
    Closing, NOTHING_OPEN, REASON_LIMIT, Range, Rejection, StateAt, Timer as Pending, Turn, TurnResult,
    state_kind, turn_flags,
};
use tidemill_plugin_sdk::prelude::*;
use tidemill_plugin_sdk::{Folder, scenario::Scenario};

/// Does what the event says.
struct Puppet;

#[event]
struct Order {
    r#do: Text,
}
#[derive(State, Default)]
struct Seen {
    all: String,
}
#[derive(Reason, Clone, Copy)]
enum Why {
    Told,
    Due,
}
#[derive(Timer, Clone, Copy)]
enum Due {
    First,
    Second,
}

impl Sessionizer for Puppet {
    type Config = ();
    type Event = Order;
    type State = Seen;
    type Reason = Why;
    type Timer = Due;
    fn configure((): ()) -> Result<Self, Vec<ConfigError>> {
        Ok(Puppet)
    }
    fn open(&self, _: &mut Context<Self>, _: &Order) -> Seen {
        Seen::default()
    }
    fn on_event(&self, cx: &mut Context<Self>, seen: &mut Seen, order: &Order) -> Decision<Why> {
        seen.all += order.r#do();
        match order.r#do() {
            "close" => return close(Why::Told),
            "split" => return split(Why::Told),
            "discard" => return discard(Why::Told),
            "reject" => return reject(Why::Told),
            "split, then reject" if cx.is_first() => return reject(Why::Told),
            "split, then reject" => return split(Why::Told),
            "both" => {
                cx.set_timer(Due::Second, Duration::seconds(1));
                cx.set_timer(Due::First, Duration::seconds(1));
            }
            "past" => cx.set_timer_at(Due::Second, Time::from_millis(0)),
            "for ever" => cx.set_timer(Due::First, Duration::from_millis(1)),
            _ => {}
        }
        keep()
    }
    fn on_timer(&self, cx: &mut Context<Self>, seen: &mut Seen, due: Due) -> Decision<Why> {
        if seen.all.contains("for ever") {
            cx.set_timer(Due::First, Duration::from_millis(1));
            return keep();
        }
        seen.all += due.name();
        if matches!(due, Due::Second) { close(Why::Due) } else { keep() }
    }
    fn output(&self, seen: &Seen) -> Fields {
        fields! { seen: seen.all.chars().take(100).collect::<String>() }
    }
}

#[track_caller]
fn check(orders: &[(&str, &str)], table: &str) {
    let mut s = Scenario::<Puppet>::new("");
    for (time, order) in orders {
        s.at(time, fields! { "do": order });
    }
    s.advance_to("20:00");
    s.expect(table);
    s.expect_same_in_any_order(0..10);
}

#[test]
fn split_on_the_first_event_is_keep() {
    check(&[("10:00", "split"), ("10:01", "a")], r#"10:00:00 .. 10:01:00 2 events open {"seen":"splita"}"#);
    check(
        &[("10:00", "a"), ("10:01", "split")],
        r#"10:00:00 .. 10:00:00 1 event told {"seen":"asplit"}
           10:01:00 .. 10:01:00 1 event open {"seen":"split"}"#,
    );
}

#[test]
fn a_rejected_event_leaves_the_state_as_it_was_even_after_a_split() {
    check(
        &[("10:00", "a"), ("10:01", "reject"), ("10:02", "split, then reject"), ("10:03", "b")],
        r#"10:00:00 .. 10:03:00 2 events open {"seen":"ab"}
           10:01:00 .. 10:01:00 1 event rejected: told {}
           10:02:00 .. 10:02:00 1 event rejected: told {}"#,
    );
    check(
        &[("10:00", "reject"), ("10:01", "b")],
        r#"10:00:00 .. 10:00:00 1 event rejected: told {}
           10:01:00 .. 10:01:00 1 event open {"seen":"b"}"#,
    );
}

#[test]
fn timers_fire_by_time_then_number_before_an_event_at_their_time() {
    check(
        &[("10:00", "both"), ("10:00:01", "c")],
        r#"10:00:00 .. 10:00:00 1 event due {"seen":"bothfirstsecond"}
           10:00:01 .. 10:00:01 1 event open {"seen":"c"}"#,
    );
    check(
        &[("10:00", "past"), ("10:00", "b"), ("10:00:00.001", "c")],
        r#"10:00:00 .. 10:00:00 2 events due {"seen":"pastbsecond"}
           10:00:00.001 .. 10:00:00.001 1 event open {"seen":"c"}"#,
    );
}

/// One turn of one key, with at most one event, on an open session or none.
#[expect(clippy::unwrap_used, reason = "a test")]
fn turn(
    state: Option<(&[u8], &[Pending])>,
    until: i64,
    at_end: bool,
) -> (TurnResult, Vec<Closing>, Vec<u8>, Vec<Pending>) {
    let mut row = Turn { until, ..Turn::default() };
    let (mut bytes, mut timers, mut inputs) = (Vec::new(), Vec::new(), Vec::new());
    match state {
        Some((s, t)) => {
            row.flags = turn_flags::OPEN;
            (row.open_count, row.state, row.timers) =
                (1, Range::between(0, s.len()), Range::between(0, t.len()));
            bytes.extend_from_slice(s);
            timers.extend_from_slice(t);
        }
        None => {
            bytes.extend_from_slice(b"for ever");
            inputs = vec![0u64, 8 << 32];
            row.inputs = Range::between(0, 1);
        }
    }
    row.flags |= if at_end { turn_flags::AT_END } else { 0 };
    let mut w = FrameWriter::default();
    w.begin(Kind::Turns);
    w.section(&[row]);
    w.wide_section(&inputs, inputs.len() / 2);
    w.section(&timers);
    w.section::<u32>(&[]);
    w.section(&bytes);
    let answer = Folder::new(Puppet).fold(w.into_words()).unwrap();
    let f = Frame::read(&answer, Kind::Results).unwrap();
    let result = f.rows::<TurnResult>(0).unwrap()[0];
    assert!(f.rows::<Rejection>(3).unwrap().is_empty());
    let bytes: &[u8] = f.rows(7).unwrap();
    let state = result.end.state.of(bytes).unwrap().to_vec();
    (result, f.rows(1).unwrap().to_vec(), state, f.rows(4).unwrap().to_vec())
}

#[test]
fn a_thousand_firings_are_taken_and_no_more_however_turns_are_cut() {
    let (_, closings, _, _) = turn(None, 1_000, false);
    assert!(closings.is_empty());
    let (result, whole, _, _) = turn(None, 5_000, false);
    assert_eq!((whole[0].reason, whole[0].at, result.end.first), (REASON_LIMIT, 1_001, NOTHING_OPEN));

    let (_, _, mut state, mut timers) = turn(None, 600, false);
    let (_, none, s, t) = turn(Some((&state, &timers)), 1_000, false);
    assert!(none.is_empty());
    (state, timers) = (s, t);
    let (_, cut, _, _) = turn(Some((&state, &timers)), 5_000, true);
    assert_eq!((cut[0].reason, cut[0].at), (REASON_LIMIT, 1_001));
}

#[test]
fn a_turn_that_changes_nothing_says_so() {
    let (result, closings, _, _) = turn(Some((&[0, 1, b'a'], &[Pending { at: 9, number: 1 }])), 8, false);
    assert!(closings.is_empty());
    assert_eq!(result.end, StateAt { first: -1, kind: state_kind::UNCHANGED, ..StateAt::default() });
}

#[test]
fn what_is_no_state_is_an_error_and_no_panic() {
    let words = |state: &[u8]| {
        let row = Turn { flags: turn_flags::OPEN, state: Range::between(0, state.len()), ..Turn::default() };
        let mut w = FrameWriter::default();
        w.begin(Kind::Turns);
        w.section(&[row]);
        w.wide_section(&[], 0);
        w.section::<Pending>(&[]);
        w.section::<u32>(&[]);
        w.section(state);
        w.into_words()
    };
    assert!(Folder::new(Puppet).fold(words(&[200, 1, 1, b'a'])).is_ok(), "200 firings, then the text");
    // Cut, another type, and what an older form had behind: its bytes must not be taken for anything.
    for bad in [&[][..], &[0], &[200, 1], &[0, 9, b'a'], &[0, 1, b'a', 7], &[0, 1, b'a', 0xe8, 7]] {
        let error = Folder::new(Puppet).fold(words(bad)).unwrap_err();
        assert!(error.starts_with("the state of turn 0 is not of this version's form"), "{error}");
        assert!(error.contains("a raised #[state(version"), "{error}");
    }
    assert!(Folder::new(Puppet).fold(vec![8]).is_err());
}

#[test]
#[should_panic(expected = "the state of a session: 700")]
fn a_state_that_is_too_large_to_be_kept_fails_even_if_its_session_ends_in_time() {
    let mut s = Scenario::<Puppet>::new("");
    let large = "x".repeat(70_000);
    s.at("10:00", fields! { "do": large }).at("10:01", fields! { "do": "close" });
    let _ = s.outcome();
}

/// Does not read the field that its config names.
struct Blind {
    field: &'static str,
}
#[event]
struct Item {
    url: Text,
    number: i64,
}
#[derive(Config)]
struct Blinkers {
    field: String,
}
#[derive(State, Default)]
struct LastItem {
    url: String,
    number: i64,
}

impl Sessionizer for Blind {
    type Config = Blinkers;
    type Event = Item;
    type State = LastItem;
    type Reason = Why;
    type Timer = ();
    fn configure(blinkers: Blinkers) -> Result<Self, Vec<ConfigError>> {
        let known = ["url", "number", "colour"];
        let field = known.into_iter().find(|f| *f == blinkers.field);
        field.map(|field| Blind { field }).ok_or_else(|| vec![ConfigError::at("/field", "is none")])
    }
    fn unread(&self) -> Vec<&'static str> {
        vec![self.field]
    }
    fn open(&self, _: &mut Context<Self>, _: &Item) -> LastItem {
        LastItem::default()
    }
    fn on_event(&self, _: &mut Context<Self>, last: &mut LastItem, item: &Item) -> Decision<Why> {
        *last = LastItem { url: item.url().to_string(), number: item.number() };
        keep()
    }
    fn output(&self, last: &LastItem) -> Fields {
        fields! { url: last.url.clone(), number: last.number }
    }
}

#[test]
fn what_a_rule_does_not_read_is_missing_for_it() {
    let mut s = Scenario::<Blind>::new(r#"{ "field": "url" }"#);
    s.at("10:00", fields! { url: "/cart", number: 3 }).end_of_input();
    s.expect(r#"10:00:00 .. 10:00:00 1 event end_of_input {"url":"","number":3}"#);
}

#[test]
#[should_panic(expected = "`unread` names `number`, which is required")]
fn a_required_field_is_read() {
    let _ = Scenario::<Blind>::new(r#"{ "field": "number" }"#);
}

#[test]
#[should_panic(expected = "`unread` names `colour`, which is not declared")]
fn what_is_not_read_is_declared() {
    let _ = Scenario::<Blind>::new(r#"{ "field": "colour" }"#);
}
