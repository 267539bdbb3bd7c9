//! Tests of what a lane keeps; what it makes of events is held to the naive model in `tests/fold`.

use super::{Barrier, KeyLook, Lane, LaneConfig, LaneCounts, LaneEpoch, Origin};
use crate::contain::Contained;
use crate::event::{Position, RowHead, Rows, ext};
use crate::gap::{Boundary, Gap, GapConfig};
use crate::key::{KeyForm, key_group, key_hash};
use crate::key_state::Row;
use crate::outbox::{Outbox, Stage, Stages, hex};
use crate::rule::{Description, Fault, Results, SessionRule, Span, TurnResult, Turns};
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

/// The sessions that leave, each key with its events, in order.
fn sessions(epoch: &LaneEpoch) -> Vec<(String, u64)> {
    let outbox = Outbox::new(1, 1, &epoch.rows, b"");
    let mut sessions: Vec<(String, u64)> =
        outbox.sessions(Stages::ALL).map(|(_, r)| (r.key.to_owned(), r.events)).collect();
    sessions.sort_unstable();
    sessions
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
    assert_eq!(sessions(&end(&mut lane)), [("a".into(), 4), ("b".into(), 6)]);
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
        assert_eq!(sessions(&rows), [("a".into(), 4), ("b".into(), 1), ("z".into(), 1)], "{reason}");
    }
}

/// Bug family: copies that only a full key has sorted out go uncounted, or count twice.
#[test]
fn copies_in_a_full_key_are_counted_and_make_room() {
    let mut lane = bounded(0..1024, 4, 1 << 20);
    let (mut rows, mut bytes) = (with_hash(b"aaaaaa"), Vec::new());
    // Of one event there are three, two of them with other fields than the first.
    for (head, (offset, field)) in
        rows.heads.iter_mut().zip([(0, "x"), (0, "y"), (1, "x"), (0, "y"), (2, "x"), (3, "x")])
    {
        (head.time, head.position.offset) = (EventTime::from_ms(offset), offset as u64);
        head.key_at = bytes.len() as u32;
        bytes.push(b'a');
        let mut ext = Vec::new();
        ext::push_id(&mut ext, None);
        ext::push_field(&mut ext, ext::Value::Text(field.as_bytes()));
        head.ext_len = ext.len() as u32;
        bytes.append(&mut ext);
    }
    rows.bytes = bytes;
    lane.insert(&rows, EventTime::BEGINNING, ORIGIN).unwrap();
    let counts = until(&mut lane, 0).counts;
    assert_eq!((counts.duplicates, counts.conflicts, counts.key_over_cap), (2, 2, 0));
    assert_eq!(sessions(&end(&mut lane)), [("a".into(), 4)]);
}

/// Bug family: keys that share a place in memory, since one piece of it was full.
#[test]
fn thousands_of_keys_are_kept_apart() {
    const KEYS: u32 = 10_000;
    let mut lane = lane();
    lane.config.open_sessions = 1 << 20;
    let mut rows = rows(&[]);
    for n in 0..KEYS {
        let key_at = rows.bytes.len() as u32;
        let key = format!("{n:05}");
        rows.bytes.extend_from_slice(key.as_bytes());
        rows.heads.push(RowHead {
            key_hash: key_hash(key.as_bytes()),
            time: EventTime::from_ms(0),
            position: Position { source: 0, partition: 0, offset: u64::from(n) },
            key_at,
            key_len: key.len() as u32,
            ext_len: 0,
            raw_at: 0,
            raw_len: 0,
        });
    }
    lane.insert(&rows, EventTime::BEGINNING, ORIGIN).unwrap();
    assert_eq!(lane.slots(), KEYS as usize);
    assert!(sessions(&end(&mut lane)).into_iter().eq((0..KEYS).map(|n| (format!("{n:05}"), 1))));
}

/// Bug family: a barrier that looks at every key that waits, and not at those alone that are due about then.
#[test]
fn keys_that_are_due_at_different_times_stand_apart() {
    const HOUR_MS: i64 = 3_600_000;
    let mut lane = lane();
    let mut rows = with_hash(b"abc");
    rows.heads.iter_mut().zip(0..).for_each(|(h, n)| h.time = EventTime::from_ms(n * HOUR_MS));
    lane.insert(&rows, EventTime::BEGINNING, ORIGIN).unwrap();
    let together = |lane: &Lane| lane.due.values().map(Vec::len).max();
    assert_eq!((together(&lane), lane.due.len()), (Some(1), 3));
    assert_eq!(sessions(&until(&mut lane, HOUR_MS)), [("a".into(), 1)]);
    assert_eq!((together(&lane), lane.due.len()), (Some(1), 2));
}

/// The built-in rule, each of whose sessions has fields.
struct Fielded(Gap);

const FIELDS: &str = r#"{"pages":3}"#;

impl SessionRule for Fielded {
    fn describe(&self) -> &Description {
        self.0.describe()
    }
    fn migrate(&mut self, from: u32, states: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        self.0.migrate(from, states)
    }
    fn call(&mut self, turns: &Turns, out: &mut Results) {
        self.0.call(turns, out);
        let at = out.bytes.len();
        out.bytes.extend_from_slice(FIELDS.as_bytes());
        out.closings.iter_mut().for_each(|c| c.fields = Span::between(at, at + FIELDS.len()));
    }
}

#[test]
fn a_row_has_the_fields_that_the_rule_gave_or_an_empty_object() {
    let gap = || {
        Gap::new(&GapConfig {
            gap_ms: 10,
            boundary: Boundary::Exclusive,
            max_ms: None,
            start: None,
            end: None,
        })
    };
    let rules: [(Box<dyn SessionRule>, &str); 2] =
        [(Box::new(Fielded(gap())), FIELDS), (Box::new(gap()), "{}")];
    for (rule, fields) in rules {
        let mut lane = lane();
        lane.put_versions(Versions::single(rule), Vec::new());
        lane.insert(&with_hash(b"a"), EventTime::BEGINNING, ORIGIN).unwrap();
        let epoch = end(&mut lane);
        let outbox = Outbox::new(1, 1, &epoch.rows, b"");
        assert_eq!(outbox.sessions(Stages::ALL).map(|(_, r)| r.fields).collect::<Vec<_>>(), [fields]);
    }
}

/// Format 1 as it was first written: what an epoch changed of a key, with an event that waits, and with a session that is open.
#[test]
fn frozen_bytes() {
    let mut lane = lane();
    lane.insert(&rows(b"k"), EventTime::BEGINNING, ORIGIN).unwrap();
    let states = [0, 5, 50].map(|ms| hex(&until(&mut lane, ms).state));
    let position = "00000000".repeat(4);
    let (zero, five, no_id) = ("00".repeat(8), "0500000000000000", "00000000");
    // What it holds, the key, where it was settled, no session, nothing sent, one row: time, position, extension.
    let waits = format!("0016010000006b 0000000000000080 00 00000000 01000000 {zero} {position} 00000000");
    // A session of version 0: its first event, its last one, their number, no state, a timer at 10 ms.
    let open = format!(
        "000e010000006b {five} 01 00000000 {zero} {position} {no_id} {zero} {position} 0100000000000000 00000000 \
         01 00 0a00000000000000 00000000 {zero} {position} {no_id}"
    );
    let gone = "0001010000006b".to_owned();
    assert_eq!(states, [waits, open, gone].map(|s| s.replace(' ', "")));
}

#[test]
fn counts_add_up_one_by_one() {
    let counts = |n: u64| LaneCounts {
        duplicates: n,
        conflicts: n + 1,
        key_over_cap: n + 2,
        suffix_over_cap: n + 3,
        sessions_over_cap: n + 4,
        revisions: [n + 5, n + 6, n + 7, n + 8],
        steps: n + 9,
        turns: n + 10,
    };
    let mut sum = counts(100);
    sum.add(&counts(1_000));
    let want = LaneCounts {
        duplicates: 1_100,
        conflicts: 1_102,
        key_over_cap: 1_104,
        suffix_over_cap: 1_106,
        sessions_over_cap: 1_108,
        revisions: [1_110, 1_112, 1_114, 1_116],
        steps: 1_118,
        turns: 1_120,
    };
    assert_eq!(sum, want);
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
    // The keys' events are 5 ms apart, and versions 2 and 3 are in force from the second and the third on.
    for n in 0..3 {
        let mut rows = with_hash(b"ab");
        for head in &mut rows.heads {
            head.time = EventTime::from_ms(5 * n);
            head.position.offset = n as u64;
        }
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
    assert_eq!(rows, [(3, "v2"), (3, "v2")]);
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
