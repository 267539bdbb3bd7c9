//! Tests of what a lane keeps; what it makes of events is held to the naive model in `tests/fold`.

use super::{Barrier, KeyLook, Lane, LaneConfig, LaneEpoch, Origin};
use crate::contain::Contained;
use crate::event::{Position, RowHead, Rows};
use crate::gap::{Boundary, Gap, GapConfig};
use crate::key::{KeyForm, key_group, key_hash};
use crate::key_state::Row;
use crate::outbox::{Outbox, Stage, Stages};
use crate::rule::{Description, Fault, Results, SessionRule, TurnResult, Turns};
use crate::time::EventTime;
use crate::versions::{Policy, Scheduled, Version, Versions};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};

const ORIGIN: Origin<'_> = Origin { source: "s", partition: "p", raw: b"" };

fn lane() -> Lane {
    lane_of(0..1024)
}

fn lane_of(groups: Range<u32>) -> Lane {
    bounded(groups, 100, 1 << 20)
}

fn bounded(groups: Range<u32>, events_per_key: usize, suffix_bytes: usize) -> Lane {
    let gap = GapConfig { gap_ms: 10, boundary: Boundary::Exclusive, max_ms: None, start: None, end: None };
    let config = LaneConfig {
        pipeline: "p".into(),
        key_form: KeyForm::One,
        lateness_ms: 0,
        early: false,
        events_per_key,
        suffix_bytes,
        open_sessions: 1_000,
        groups,
        sources: vec!["s".into()],
        layout: Vec::new(),
    };
    Lane::new(config, Versions::single(Box::new(Gap::new(&gap))))
}

/// One event of each key, a millisecond apart; all keys have the same hash.
fn rows(keys: &[u8]) -> Rows {
    let mut rows = Rows::default();
    for (n, key) in keys.iter().enumerate() {
        let key_at = rows.bytes.len() as u32;
        rows.bytes.push(*key);
        rows.heads.push(RowHead {
            key_hash: 7,
            time: EventTime::from_ms(n as i64),
            position: Position { source: 0, partition: 0, offset: n as u64 },
            key_at,
            key_len: 1,
            ext_len: 0,
            raw_at: 0,
            raw_len: 0,
        });
    }
    rows
}

/// The same, each key with its own hash.
fn with_hash(keys: &[u8]) -> Rows {
    let mut rows = rows(keys);
    rows.heads.iter_mut().zip(keys).for_each(|(h, key)| h.key_hash = key_hash(&[*key]));
    rows
}

fn until(lane: &mut Lane, ms: i64) -> LaneEpoch {
    let watermark = EventTime::from_ms(ms);
    lane.barrier(Barrier { watermark, early_tick: false, at_end: false }).unwrap()
}

fn end(lane: &mut Lane) -> LaneEpoch {
    lane.barrier(Barrier { watermark: EventTime::INFINITY, early_tick: false, at_end: true }).unwrap()
}

/// Bug family: what the table knows of a key taken for the key.
#[test]
fn keys_of_one_hash_are_kept_apart() {
    let mut lane = lane();
    let mut rows = rows(b"ababb");
    // Twice: the keys are new at first, and then they are known.
    lane.insert(&rows, EventTime::BEGINNING, ORIGIN).unwrap();
    rows.heads.iter_mut().for_each(|h| h.position.offset += 10);
    lane.insert(&rows, EventTime::BEGINNING, ORIGIN).unwrap();
    let epoch = end(&mut lane);
    let outbox = Outbox::new(1, 1, &epoch.rows, b"");
    let mut sessions: Vec<(&str, u64)> =
        outbox.sessions(Stages::ALL).map(|(_, r)| (r.key, r.events)).collect();
    sessions.sort_unstable();
    assert_eq!(sessions, [("a", 4), ("b", 6)]);
}

/// Bug family: the bound on all suffixes fills up with what is long gone.
#[test]
fn copies_leave_no_bytes_behind() {
    let mut lane = lane();
    let rows = rows(b"ababb");
    for _ in 0..3 {
        lane.insert(&rows, EventTime::BEGINNING, ORIGIN).unwrap();
    }
    let epoch = end(&mut lane);
    assert_eq!((epoch.counts.duplicates, epoch.suffix_bytes), (10, 0));
}

/// Bug family: a bound that is off by one, a copy that is taken for one event too many, room that does not come back.
#[test]
fn an_event_over_a_bound_is_a_letter_and_a_copy_is_none() {
    const FULL: &[u8] = b"aaab";
    let row = size_of::<Row>();
    for (per_key, bytes, reason, all) in
        [(3, 1 << 20, "key_over_cap", (1, 0)), (100, 4 * row, "suffix_over_cap", (0, 1))]
    {
        let mut lane = bounded(0..1024, per_key, bytes);
        lane.insert(&with_hash(FULL), EventTime::BEGINNING, ORIGIN).unwrap();
        // A copy, one more of the key that is full, and one of a key that is not there yet.
        let mut more = with_hash(b"aaaaz");
        more.heads.drain(..2);
        lane.insert(&more, EventTime::BEGINNING, ORIGIN).unwrap();
        let epoch = until(&mut lane, 0);
        let counts = epoch.counts;
        assert_eq!((counts.key_over_cap, counts.suffix_over_cap), all, "{reason}");
        assert_eq!(counts.duplicates, 1, "{reason}");
        assert_eq!(epoch.key_over_cap.as_deref(), (all.0 == 1).then_some("a"), "{reason}");
        let letters: Vec<&str> = std::str::from_utf8(&epoch.letters).unwrap().lines().collect();
        assert!(
            letters.len() == 1 && letters[0].contains(reason) && letters[0].contains(r#""time_ms":3"#),
            "{letters:?}"
        );
        // Once W has passed them there is room again, and nobody else was harmed.
        until(&mut lane, 5);
        let mut later = with_hash(b"a");
        later.heads[0].time = EventTime::from_ms(6);
        later.heads[0].position.offset = 100;
        lane.insert(&later, EventTime::from_ms(5), ORIGIN).unwrap();
        let rows = end(&mut lane);
        assert!(rows.letters.is_empty(), "{reason}");
        let mut sessions: Vec<(String, u64)> = Outbox::new(1, 1, &rows.rows, b"")
            .sessions(Stages::ALL)
            .map(|(_, r)| (r.key.to_owned(), r.events))
            .collect();
        sessions.sort_unstable();
        assert_eq!(sessions, [("a".into(), 4), ("b".into(), 1), ("z".into(), 1)], "{reason}");
    }
}

/// Bug family: what sessions take is counted twice, or goes on being counted when they have ended.
#[test]
fn bases_are_counted_while_their_sessions_are_open() {
    let mut first = lane();
    first.insert(&rows(b"abc"), EventTime::BEGINNING, ORIGIN).unwrap();
    let one = until(&mut first, 1);
    assert!(one.base_bytes > 0 && one.suffix_bytes > 0, "{one:?}");
    let all = until(&mut first, 5);
    assert_eq!((all.base_bytes, all.suffix_bytes), (3 * one.base_bytes, 0));
    // The same after a restart.
    let mut again = lane();
    [&one, &all].into_iter().for_each(|e| again.load(&e.state).unwrap());
    again.loaded(EventTime::from_ms(5));
    assert_eq!(until(&mut again, 5).base_bytes, all.base_bytes);
    for lane in [&mut first, &mut again] {
        assert_eq!(until(lane, 100).base_bytes, 0);
    }
}

/// Bug family: a trial that leaves traces, or that sees another state than a swap would.
#[test]
fn states_are_those_of_sessions_open_at_that_place_and_asking_changes_nothing() {
    let (mut asked, mut left_alone) = (lane(), lane());
    for lane in [&mut asked, &mut left_alone] {
        // a at 0 and 2, b at 1 and 3, c at 4; the gap is 10 ms.
        lane.insert(&with_hash(b"ababc"), EventTime::BEGINNING, ORIGIN).unwrap();
    }
    let keys = |lane: &mut Lane, until| -> Vec<(String, i64)> {
        let states = lane.states(0..lane.slots(), EventTime::from_ms(until)).unwrap();
        let mut keys: Vec<_> = states.into_iter().map(|s| (s.key, s.timers[0].at.ms())).collect();
        keys.sort_unstable();
        keys
    };
    assert_eq!(keys(&mut asked, 4), [("a".into(), 12), ("b".into(), 13), ("c".into(), 14)]);
    assert_eq!(keys(&mut asked, 12), [("b".into(), 13), ("c".into(), 14)], "the timer of a has fired before");
    assert_eq!(asked.look(b"a").unwrap(), KeyLook { open: None, waiting: 2, sent: Vec::new() });
    assert_eq!(asked.look(b"z"), None);
    let rows_of = |lane: &mut Lane| {
        let epoch = end(lane);
        (epoch.rows, epoch.counts)
    };
    assert_eq!(rows_of(&mut asked), rows_of(&mut left_alone));
}

/// Bug family: an image or a lane that takes a key group more or less than its own.
#[test]
fn images_and_lanes_part_the_keys_by_their_groups() {
    let keys: Vec<u8> = (0..128).collect();
    let mut rows = with_hash(&keys);
    rows.heads.iter_mut().for_each(|h| h.time = EventTime::from_ms(0));
    let mut whole = lane();
    whole.insert(&rows, EventTime::BEGINNING, ORIGIN).unwrap();
    let epoch = until(&mut whole, 1);
    let held = |sections: &[&[u8]], groups: Range<u32>| -> Vec<u8> {
        let mut lane = lane_of(groups);
        sections.iter().for_each(|s| lane.load(s).unwrap());
        lane.loaded(EventTime::from_ms(1));
        let states = lane.states(0..lane.slots(), EventTime::from_ms(1)).unwrap();
        let mut keys: Vec<u8> = states.into_iter().flat_map(|s| s.key.into_bytes()).collect();
        keys.sort_unstable();
        keys
    };
    assert_eq!(held(&[&epoch.state], 0..1024), keys);
    let group = |key: &u8| key_group(key_hash(&[*key]));
    let edges: BTreeSet<u32> = keys.iter().flat_map(|k| [group(k), group(k) + 1]).collect();
    for edge in edges {
        let image = |groups: Range<u32>| {
            let mut out = Vec::new();
            whole.image(groups, &mut out);
            out
        };
        let (low, high) = (image(0..edge), image(edge..1024));
        assert_eq!(held(&[&low, &high], 0..1024), keys, "two images that meet at {edge}");
        let of = |wanted: &dyn Fn(u32) -> bool| -> Vec<u8> {
            keys.iter().copied().filter(|k| wanted(group(k))).collect()
        };
        assert_eq!(held(&[&low], 0..1024), of(&|g| g < edge), "an image that ends at {edge}");
        assert_eq!(held(&[&epoch.state], 0..edge), of(&|g| g < edge), "a lane that ends at {edge}");
        assert_eq!(held(&[&epoch.state], edge..1024), of(&|g| g >= edge), "a lane that begins at {edge}");
        // What an image says of its groups is all that is known of them, and says nothing of others.
        let mut gone = Vec::new();
        lane().image(edge..1024, &mut gone);
        assert_eq!(
            held(&[&epoch.state, &gone], 0..1024),
            of(&|g| g < edge),
            "an image that begins at {edge}"
        );
    }
}

/// The built-in rule, its state of some version; it notes which versions it was asked to migrate from.
struct Versioned {
    gap: Gap,
    description: Description,
    asked: Arc<Mutex<Vec<u32>>>,
}

impl Versioned {
    fn new(version: u32, asked: &Arc<Mutex<Vec<u32>>>) -> Box<Versioned> {
        let gap =
            GapConfig { gap_ms: 10, boundary: Boundary::Exclusive, max_ms: None, start: None, end: None };
        let gap = Gap::new(&gap);
        let mut description = gap.describe().clone();
        description.state.version = version;
        Box::new(Versioned { gap, description, asked: asked.clone() })
    }
}

impl SessionRule for Versioned {
    fn describe(&self) -> &Description {
        &self.description
    }
    fn migrate(&mut self, from: u32, states: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        self.asked.lock().unwrap().push(from);
        self.gap.migrate(from, states)
    }
    fn call(&mut self, turns: &Turns, out: &mut Results) {
        self.gap.call(turns, out);
    }
}

/// Bug family: a state given to a newer rule as what it is not.
#[test]
fn a_state_is_migrated_from_the_version_that_it_has() {
    let asked = [(); 3].map(|()| Arc::new(Mutex::new(Vec::new())));
    let mut lane = lane();
    lane.put_versions(Versions::single(Versioned::new(1, &asked[0])), Vec::new());
    // The key's events are 5 ms apart, and versions 2 and 3 are in force from the second and the third on.
    for n in 0..3 {
        let mut rows = with_hash(b"a");
        rows.heads[0].time = EventTime::from_ms(5 * n);
        rows.heads[0].position.offset = n as u64;
        if n > 0 {
            let scheduled = Scheduled {
                version: Version(n as u32),
                from: EventTime::from_ms(5 * n - 1),
                policy: Policy::Migrate,
                drained_by: EventTime::INFINITY,
                plugin: format!("v{n}"),
                digest: None,
            };
            lane.deploy(scheduled, Versioned::new(n as u32 + 1, &asked[n as usize]), Vec::new());
        }
        lane.insert(&rows, EventTime::BEGINNING, ORIGIN).unwrap();
        until(&mut lane, 5 * n + 1);
    }
    let epoch = end(&mut lane);
    let outbox = Outbox::new(1, 1, &epoch.rows, b"");
    let rows: Vec<(u64, &str)> = outbox.sessions(Stages::ALL).map(|(_, r)| (r.events, r.plugin)).collect();
    assert_eq!(rows, [(3, "v2")]);
    let asked = asked.map(|a| {
        let mut from = a.lock().unwrap().clone();
        from.dedup();
        from
    });
    assert_eq!(asked, [vec![], vec![1], vec![2]]);
}

/// The built-in rule, which fails at every turn that has an event of an odd millisecond.
struct Odd(Gap);

impl SessionRule for Odd {
    fn describe(&self) -> &Description {
        self.0.describe()
    }
    fn migrate(&mut self, from: u32, states: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        self.0.migrate(from, states)
    }
    fn call(&mut self, turns: &Turns, out: &mut Results) {
        self.0.call(turns, out);
        for (turn, answer) in turns.turns.iter().zip(&mut out.turns) {
            if turns.inputs[turn.inputs.range()].iter().any(|i| i.time.ms() % 2 == 1) {
                *answer = TurnResult::failed(Fault::unknown("odd"));
            }
        }
    }
}

/// Bug family: a session whose only event is in no session any more stays in the table, because another one follows it.
#[test]
fn what_a_struck_version_alone_has_accepted_is_taken_back() {
    let gap = GapConfig { gap_ms: 10, boundary: Boundary::Exclusive, max_ms: None, start: None, end: None };
    let mut lane = lane();
    (lane.config.early, lane.config.lateness_ms) = (true, 1_000);
    let older = Contained::new(Odd(Gap::new(&gap)), 10);
    lane.put_versions(Versions::single(Box::new(older)), Vec::new());
    let scheduled = Scheduled {
        version: Version(1),
        from: EventTime::from_ms(100),
        policy: Policy::Migrate,
        drained_by: EventTime::INFINITY,
        plugin: "v1".into(),
        digest: None,
    };
    lane.deploy(scheduled, Box::new(Gap::new(&gap)), Vec::new());
    for (n, ms) in [101, 202].into_iter().enumerate() {
        let mut rows = with_hash(b"a");
        rows.heads[0].time = EventTime::from_ms(ms);
        rows.heads[0].position.offset = n as u64;
        lane.insert(&rows, EventTime::BEGINNING, ORIGIN).unwrap();
    }
    let mut tick = || {
        let w = EventTime::from_ms(50);
        let epoch = lane.barrier(Barrier { watermark: w, early_tick: true, at_end: false }).unwrap();
        let outbox = Outbox::new(1, 1, &epoch.rows, b"");
        let told: Vec<_> = outbox.sessions(Stages::ALL).map(|(_, r)| (r.start.ms(), r.stage)).collect();
        lane.strike();
        told
    };
    assert_eq!(tick(), [(101, Stage::Early), (202, Stage::Early)]);
    assert_eq!(
        tick(),
        [(101, Stage::Retracted), (202, Stage::Early)],
        "the older version has no use for 101"
    );
}

/// Bug family: a rule that fails again and again is asked for ever.
#[test]
fn a_rule_may_fail_so_often_and_no_more() {
    let gap = GapConfig { gap_ms: 10, boundary: Boundary::Exclusive, max_ms: None, start: None, end: None };
    let rows = with_hash(b"abcdef");
    for (faults, is_enough) in [(3, true), (2, false)] {
        let mut lane = lane();
        let rule = Contained::new(Odd(Gap::new(&gap)), faults);
        lane.put_versions(Versions::single(Box::new(rule)), Vec::new());
        // Of six events a millisecond apart three are odd.
        lane.insert(&rows, EventTime::BEGINNING, ORIGIN).unwrap();
        let at_end = Barrier { watermark: EventTime::INFINITY, early_tick: false, at_end: true };
        match lane.barrier(at_end) {
            Ok(epoch) => {
                assert!(is_enough, "{faults} faults, and it went on");
                assert_eq!(epoch.dead, [("plugin_fault".to_owned(), 3)].into());
            }
            Err(fault) => assert!(!is_enough, "{faults} faults: {fault}"),
        }
    }
}
