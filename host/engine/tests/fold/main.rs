//! The acceptance sentence as a property: whatever the arrival order, copies, barriers, sweeps, early ticks
//! and restarts, the rows that are not retracted equal those of a naive batch over the accepted events.
//!
//! Catches: a lost or doubled event, a stale snapshot, a session closed by the wrong end, a forgotten retraction,
//! two rows of one revision, state that does not survive its byte form.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod rude;

use proptest::prelude::*;
use rude::{Hint, Outcome, Rude};
use std::collections::{BTreeMap, BTreeSet};
use tidemill_engine::contain::Contained;
use tidemill_engine::event::{Position, RowHead, Rows, ext};
use tidemill_engine::gap::{Boundary, Gap, GapConfig, Match};
use tidemill_engine::key::{KeyForm, key_hash};
use tidemill_engine::lane::{Barrier, Lane, LaneConfig, Origin};
use tidemill_engine::outbox::{Outbox, Stage, Stages};
use tidemill_engine::time::EventTime;

/// (key, time, id, type)
type Event = (u8, i64, u8, u8);
/// (key, start, end, count, reason)
type Session = (String, i64, i64, u64, String);

#[derive(Clone, Debug)]
enum Op {
    Event(Event),
    Advance(i64),
    Sweep,
    Barrier { early: bool },
    Restart,
}

#[derive(Clone, Debug)]
struct Case {
    /// A rule that rejects, discards and fails, in place of the built-in one.
    rude: Option<Hint>,
    gap: i64,
    inclusive: bool,
    max: Option<i64>,
    marks: bool,
    lateness: i64,
    early: bool,
    position_ids: bool,
    ops: Vec<Op>,
}

fn case() -> impl Strategy<Value = Case> {
    let op = prop_oneof![
        12 => (0..2u8, 0..80i64, 0..6u8, 0..6u8).prop_map(Op::Event),
        4 => (0..12i64).prop_map(Op::Advance),
        2 => Just(Op::Sweep),
        3 => any::<bool>().prop_map(|early| Op::Barrier { early }),
        1 => Just(Op::Restart),
    ];
    let rule = (1..12i64, any::<bool>(), proptest::option::of(1..20i64), any::<bool>());
    let rude = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Hint::True)),
        1 => Just(Some(Hint::None)),
        1 => Just(Some(Hint::Wrong)),
    ];
    (
        rude,
        rule,
        prop_oneof![Just(0i64), 1..30i64],
        any::<bool>(),
        any::<bool>(),
        proptest::collection::vec(op, 1..90),
    )
        .prop_map(|(rude, (gap, inclusive, max, marks), lateness, early, position_ids, ops)| Case {
            rude,
            gap,
            inclusive,
            max,
            marks,
            lateness,
            early,
            position_ids,
            ops,
        })
}

fn config(c: &Case) -> GapConfig {
    let mark = |v: &str| Some(Match { field: "type".into(), values: vec![v.into()] });
    GapConfig {
        gap_ms: c.gap,
        boundary: if c.inclusive { Boundary::Inclusive } else { Boundary::Exclusive },
        max_ms: c.max,
        start: if c.marks { mark("0") } else { None },
        end: if c.marks { mark("1") } else { None },
    }
}

fn lane(c: &Case) -> Lane {
    let config_ = LaneConfig {
        pipeline: "p".into(),
        key_form: KeyForm::One,
        lateness_ms: c.lateness,
        early: c.early,
        events_per_key: 1000,
        suffix_bytes: 1 << 30,
        groups: 0..1024,
        sources: vec!["s".into()],
    };
    match c.rude {
        Some(hint) => Lane::new(config_, Box::new(Contained::new(Rude::new(c, hint), u32::MAX))),
        None => Lane::new(config_, Box::new(Contained::new(Gap::new(&config(c)), 0))),
    }
}

/// Straight from the definition: sort, walk, cut.
fn naive(c: &Case, accepted: &BTreeSet<Event>) -> Vec<Session> {
    let mut out = Vec::new();
    for key in 0..2u8 {
        let mut open: Option<(i64, i64, u64)> = None;
        let mut close =
            |o: (i64, i64, u64), why: &str| out.push((format!("k{key}"), o.0, o.1, o.2, why.to_string()));
        for e in accepted.iter().filter(|e| e.0 == key) {
            if let Some(o) = open {
                let gap_at = o.1 + c.gap + i64::from(c.inclusive);
                let max_at = c.max.map_or(i64::MAX, |m| o.0 + m);
                if gap_at.min(max_at) <= e.1 {
                    close(o, if max_at < gap_at { "max" } else { "gap" });
                    open = None;
                }
            }
            if c.marks
                && e.3 == 0
                && let Some(o) = open.take()
            {
                close(o, "start");
            }
            let o = open.get_or_insert((e.1, e.1, 0));
            (o.1, o.2) = (e.1, o.2 + 1);
            if c.marks && e.3 == 1 {
                close(*o, "end");
                open = None;
            }
        }
        if let Some(o) = open {
            let gap_at = o.1 + c.gap + i64::from(c.inclusive);
            close(o, if c.max.is_some_and(|m| o.0 + m < gap_at) { "max" } else { "gap" });
        }
    }
    out.sort();
    out
}

struct World {
    lane: Lane,
    log: Vec<Vec<u8>>,
    watermark: EventTime,
    uncommitted: Vec<Event>,
    epoch: u64,
    incarnation: u64,
    table: BTreeMap<[u8; 16], ((u64, u64), Stage, Session)>,
    settled_rows: u64,
    letters: Vec<serde_json::Value>,
}

impl World {
    fn insert(&mut self, c: &Case, e: Event) {
        let mut rows = Rows::default();
        let key = format!("k{}", e.0);
        rows.bytes.extend_from_slice(key.as_bytes());
        let at = rows.bytes.len();
        // The position stands for the identity too, so that a copy has the same one.
        let position = Position { source: 0, partition: 0, offset: u64::from(e.2) };
        let id = [e.2];
        ext::push_id(&mut rows.bytes, (!c.position_ids).then_some(&id[..]));
        if c.marks || c.rude.is_some() {
            ext::push_field(&mut rows.bytes, ext::Value::Text(e.3.to_string().as_bytes()));
        }
        rows.heads.push(RowHead {
            key_hash: key_hash(key.as_bytes()),
            time: EventTime::from_ms(e.1),
            position,
            key_at: 0,
            key_len: key.len() as u32,
            ext_len: (rows.bytes.len() - at) as u32,
            raw_at: 0,
            raw_len: 0,
        });
        self.lane.insert(&rows, self.watermark, Origin { source: "s", partition: "p", raw: b"" });
    }
    fn barrier(&mut self, early: bool, at_end: bool) {
        self.epoch += 1;
        let watermark = if at_end { EventTime::INFINITY } else { self.watermark };
        let out = self.lane.barrier(Barrier { watermark, early_tick: early, at_end }).unwrap();
        let mut state = out.state;
        if self.epoch.is_multiple_of(3) {
            self.lane.image(0..700, &mut state);
        }
        self.log.push(state);
        self.uncommitted.clear();
        let lines = out.letters.split(|b| *b == b'\n').filter(|l| !l.is_empty());
        self.letters.extend(lines.map(|l| serde_json::from_slice::<serde_json::Value>(l).unwrap()));
        let mut seen = BTreeSet::new();
        for r in Outbox::new(self.incarnation, self.epoch, &out.rows, &out.letters).sessions(Stages::ALL) {
            assert!(
                seen.insert(r.id),
                "two rows of one session in one epoch: {r:?} {seen:?} epoch {} ",
                self.epoch
            );
            let revision = (self.incarnation, self.epoch);
            let content =
                (r.key.to_string(), r.start.ms(), r.end.ms(), r.events, r.reason.unwrap_or("").to_string());
            let old = self.table.insert(r.id, (revision, r.stage, content));
            assert!(old.is_none_or(|o| o.0 < revision));
            self.settled_rows += u64::from(r.stage == Stage::Final);
        }
    }
    fn restart(&mut self, c: &Case) {
        self.lane = lane(c);
        for section in &self.log {
            self.lane.load(section).unwrap();
        }
        self.lane.loaded(self.watermark);
        self.incarnation += 1;
        for e in std::mem::take(&mut self.uncommitted) {
            self.insert(c, e);
            self.uncommitted.push(e);
        }
    }
}

fn run(c: &Case) -> (Outcome, Outcome) {
    let mut w = World {
        lane: lane(c),
        log: Vec::new(),
        watermark: EventTime::from_ms(-1000),
        uncommitted: Vec::new(),
        epoch: 0,
        incarnation: 1,
        table: BTreeMap::new(),
        settled_rows: 0,
        letters: Vec::new(),
    };
    let mut accepted: BTreeSet<Event> = BTreeSet::new();
    let mut now = 0i64;
    for op in &c.ops {
        match op {
            Op::Event(e) => {
                // Times wander forward with W, so that many events fall before, at and after it.
                let e = (e.0, now - 40 + e.1, e.2, e.3);
                let late = EventTime::from_ms(e.1) < w.watermark.minus(c.lateness);
                let copy = accepted.iter().any(|a| (a.0, a.1, a.2) == (e.0, e.1, e.2));
                if !late {
                    w.insert(c, e);
                    w.uncommitted.push(e);
                    if !copy {
                        accepted.insert(e);
                    }
                }
            }
            Op::Advance(ms) => {
                now += ms;
                w.watermark = w.watermark.max(EventTime::from_ms(now - 20));
            }
            Op::Sweep if w.lane.sweeps() => w.lane.sweep().unwrap(),
            Op::Sweep => {}
            Op::Barrier { early } => {
                w.barrier(*early && c.early, false);
                if *early && c.early && c.rude.is_none() {
                    let live = w.table.values().filter(|r| r.1 != Stage::Retracted);
                    let told: u64 = live.map(|r| r.2.3).sum();
                    assert_eq!(told, accepted.len() as u64, "an early tick tells of every event once");
                }
            }
            Op::Restart => w.restart(c),
        }
    }
    w.barrier(false, true);
    let mut rows: Vec<Session> = Vec::new();
    for (_, stage, content) in w.table.values() {
        assert_ne!(*stage, Stage::Early, "nothing is early in the end: {content:?}");
        if *stage != Stage::Retracted {
            rows.push(content.clone());
        }
    }
    rows.sort();
    let text = |l: &serde_json::Value, name: &str| l[name].as_str().unwrap().to_string();
    let mut got = (rows, Vec::new(), Vec::new());
    for l in &w.letters {
        if l["kind"] == "session" {
            let (start, end) = (l["start_ms"].as_i64().unwrap(), l["end_ms"].as_i64().unwrap());
            got.1.push((text(l, "key"), start, end, l["events"].as_u64().unwrap(), text(l, "reason")));
        } else {
            got.2.push((text(l, "key"), l["time_ms"].as_i64().unwrap(), text(l, "reason")));
        }
    }
    got.1.sort();
    got.2.sort();
    let want = if c.rude.is_some() {
        rude::naive(c, &accepted)
    } else {
        (naive(c, &accepted), Vec::new(), Vec::new())
    };
    (got, want)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 20_000, ..ProptestConfig::default() })]
    #[test]
    fn rows_equal_the_naive_batch(c in case()) {
        let (got, want) = run(&c);
        prop_assert_eq!(got, want);
    }
}

/// `PROPTEST_CASES` asks for more; the default takes a few seconds unoptimised.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(4000)
}
