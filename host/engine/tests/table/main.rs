//! The session table as a state machine: after every step, what a sink holds is held against what a list of events says.
//!
//! Beside the fold's own property (which looks at the end of a run) this one looks at every epoch, and has what lies between a
//! lane and its table: epochs that are committed and not delivered, delivered twice, or lost in a crash with the events behind them
//! sent again. Bug families: a row that is final too early or too late, a phantom that a later epoch mends, a revision that
//! goes back, an early row that nobody brings up to date, a copy that counts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use std::collections::{BTreeMap, BTreeSet};
use tidemill_engine::contain::Contained;
use tidemill_engine::event::{Position, RowHead, Rows, ext};
use tidemill_engine::gap::{Boundary, Gap, GapConfig};
use tidemill_engine::key::{KeyForm, key_hash};
use tidemill_engine::lane::{Barrier, Lane, LaneConfig, Origin};
use tidemill_engine::outbox::{Outbox, Stage, Stages};
use tidemill_engine::time::EventTime;
use tidemill_engine::versions::Versions;

/// (key, time, id)
type Event = (u8, i64, u8);
/// (key, start, end, events)
type Session = (String, i64, i64, u64);

#[derive(Clone, Copy, Debug)]
struct Shape {
    gap: i64,
    inclusive: bool,
    lateness: i64,
    early: bool,
}

impl Shape {
    /// Silence after which a session is over.
    fn silence(self) -> i64 {
        self.gap + i64::from(self.inclusive)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Event(Event),
    /// The watermark comes to here.
    Watermark(i64),
    Sweep,
    Commit {
        tick: bool,
    },
    /// The sink takes its next epoch.
    Deliver,
    /// And one of the last again.
    DeliverAgain(usize),
    /// The process dies; what is not committed comes again, and the sink's cursor may lag by so many epochs.
    Crash {
        lag: usize,
    },
}

/// What should be: lists and sets only.
#[derive(Clone, Debug)]
struct Model {
    shape: Shape,
    /// Distinct events.
    events: BTreeSet<Event>,
    /// As they came, copies too, since the last commit.
    pending: Vec<Event>,
    copies: u64,
    watermark: i64,
    committed_watermark: i64,
}

impl Model {
    fn frontier(&self) -> i64 {
        self.watermark - self.shape.lateness
    }

    /// All sessions, and whether W has passed their end.
    fn sessions(&self) -> BTreeMap<Session, bool> {
        let mut found: Vec<Session> = Vec::new();
        for (key, time, _) in &self.events {
            match found.last_mut() {
                Some((k, _, end, n)) if *k == name(*key) && time - *end < self.shape.silence() => {
                    (*end, *n) = (*time, *n + 1);
                }
                _ => found.push((name(*key), *time, *time, 1)),
            }
        }
        let is_over = |s: &Session| s.2 + self.shape.silence() <= self.watermark;
        found.into_iter().map(|s| (s.clone(), is_over(&s))).collect()
    }
}

fn name(key: u8) -> String {
    format!("k{key}")
}

impl ReferenceStateMachine for Model {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        let lateness = prop_oneof![Just(0), 1..25i64];
        (1..9i64, any::<bool>(), lateness, any::<bool>())
            .prop_map(|(gap, inclusive, lateness, early)| Model {
                shape: Shape { gap, inclusive, lateness, early },
                events: BTreeSet::new(),
                pending: Vec::new(),
                copies: 0,
                watermark: 0,
                committed_watermark: 0,
            })
            .boxed()
    }

    fn transitions(m: &Model) -> BoxedStrategy<Step> {
        let (b, w) = (m.frontier(), m.watermark);
        let known: Vec<Event> = m.events.iter().filter(|e| e.1 >= b).copied().collect();
        let copy = match known.is_empty() {
            true => Just(Step::Sweep).boxed(),
            false => prop::sample::select(known).prop_map(Step::Event).boxed(),
        };
        prop_oneof![
            10 => (0..3u8, b..w + 25, 0..3u8).prop_map(Step::Event),
            1 => copy,
            4 => (w..w + 12).prop_map(Step::Watermark),
            1 => Just(Step::Sweep),
            4 => any::<bool>().prop_map(|tick| Step::Commit { tick }),
            3 => Just(Step::Deliver),
            1 => (1..4usize).prop_map(Step::DeliverAgain),
            1 => (0..4usize).prop_map(|lag| Step::Crash { lag }),
        ]
        .boxed()
    }

    fn preconditions(m: &Model, step: &Step) -> bool {
        match step {
            // What is late never comes to a lane.
            Step::Event(e) => e.1 >= m.frontier(),
            Step::Watermark(w) => *w >= m.watermark,
            _ => true,
        }
    }

    fn apply(mut m: Model, step: &Step) -> Model {
        match step {
            Step::Event(e) => {
                m.copies += u64::from(!m.events.insert(*e));
                m.pending.push(*e);
            }
            Step::Watermark(w) => m.watermark = *w,
            Step::Commit { .. } => {
                m.pending.clear();
                m.committed_watermark = m.watermark;
            }
            // What comes again comes before the watermark has moved again.
            Step::Crash { .. } => m.watermark = m.committed_watermark,
            Step::Sweep | Step::Deliver | Step::DeliverAgain(_) => {}
        }
        m
    }
}

/// A row of the table.
type Stored = ((u64, u64), Stage, Session);
type Table = BTreeMap<[u8; 16], Stored>;

/// What an epoch sends, and who has committed it.
#[derive(Clone)]
struct Committed {
    revision: (u64, u64),
    rows: Vec<u8>,
}

impl Committed {
    /// Upserts by revision; says whether any row of it was newer than the table's.
    fn put_into(&self, table: &mut Table) -> bool {
        let (incarnation, epoch) = self.revision;
        let mut any = false;
        for (_, r) in Outbox::new(incarnation, epoch, &self.rows, &[]).sessions(Stages::ALL) {
            let session = (r.key.to_string(), r.start.ms(), r.end.ms(), r.events);
            if table.get(&r.id).is_none_or(|old| old.0 < self.revision) {
                any = true;
                table.insert(r.id, (self.revision, r.stage, session));
            }
        }
        any
    }
}

/// A lane, its log, and a sink.
struct Host {
    shape: Shape,
    lane: Lane,
    log: Vec<Vec<u8>>,
    sent: Vec<Committed>,
    /// How many of `sent` the sink has.
    delivered: usize,
    table: Table,
    /// The same as if every committed epoch had been delivered.
    to_be: Table,
    incarnation: u64,
    watermark: i64,
    committed_watermark: i64,
    duplicates: u64,
}

fn lane(shape: Shape) -> Lane {
    let boundary = if shape.inclusive { Boundary::Inclusive } else { Boundary::Exclusive };
    let rule = Gap::new(&GapConfig { gap_ms: shape.gap, boundary, max_ms: None, start: None, end: None });
    let config = LaneConfig {
        pipeline: "p".into(),
        key_form: KeyForm::One,
        lateness_ms: shape.lateness,
        early: shape.early,
        events_per_key: 1000,
        suffix_bytes: 1 << 30,
        open_sessions: 1 << 30,
        groups: 0..1024,
        sources: vec!["s".into()],
        layout: Vec::new(),
    };
    Lane::new(config, Versions::single(Box::new(Contained::new(rule, 0))))
}

impl Host {
    fn new(shape: Shape) -> Host {
        Host {
            shape,
            lane: lane(shape),
            log: Vec::new(),
            sent: Vec::new(),
            delivered: 0,
            table: Table::new(),
            to_be: Table::new(),
            incarnation: 1,
            watermark: 0,
            committed_watermark: 0,
            duplicates: 0,
        }
    }

    fn insert(&mut self, (key, time, id): Event) {
        let mut rows = Rows::default();
        rows.bytes.extend_from_slice(name(key).as_bytes());
        let at = rows.bytes.len();
        ext::push_id(&mut rows.bytes, Some(&[id]));
        rows.heads.push(RowHead {
            key_hash: key_hash(name(key).as_bytes()),
            time: EventTime::from_ms(time),
            position: Position { source: 0, partition: 0, offset: 0 },
            key_at: 0,
            key_len: at as u32,
            ext_len: (rows.bytes.len() - at) as u32,
            raw_at: 0,
            raw_len: 0,
        });
        let watermark = EventTime::from_ms(self.watermark);
        self.lane.insert(&rows, watermark, Origin { source: "s", partition: "", raw: b"" }).unwrap();
    }

    fn commit(&mut self, tick: bool, at_end: bool) {
        let watermark = if at_end { EventTime::INFINITY } else { EventTime::from_ms(self.watermark) };
        let early_tick = tick && self.shape.early;
        let out = self.lane.barrier(Barrier { watermark, early_tick, at_end }).unwrap();
        let mut state = out.state;
        if self.log.len() % 4 == 3 {
            self.lane.image(0..1024, &mut state);
            // Nothing older is needed.
            self.log.iter_mut().for_each(Vec::clear);
        }
        self.log.push(state);
        self.committed_watermark = self.watermark;
        self.duplicates += out.counts.duplicates;
        let revision = (self.incarnation, self.log.len() as u64);
        let committed = Committed { revision, rows: out.rows };
        let rows = Outbox::new(revision.0, revision.1, &committed.rows, &[]).sessions(Stages::ALL).count();
        assert!(committed.put_into(&mut self.to_be) || rows == 0, "an epoch that changes nothing is empty");
        self.sent.push(committed);
    }

    fn deliver(&mut self) {
        if let Some(next) = self.sent.get(self.delivered) {
            next.put_into(&mut self.table);
            self.delivered += 1;
        }
    }

    fn crash(&mut self, lag: usize, again: &[Event]) {
        self.lane = lane(self.shape);
        for section in &self.log {
            self.lane.load(section).unwrap();
        }
        self.lane.loaded(EventTime::from_ms(self.committed_watermark));
        self.watermark = self.committed_watermark;
        self.incarnation += 1;
        self.delivered = self.delivered.saturating_sub(lag);
        again.iter().for_each(|e| self.insert(*e));
    }
}

/// Sessions in a table that were not retracted, and whether they are final.
fn live(table: &Table) -> BTreeMap<Session, bool> {
    let live = table.values().filter(|(_, stage, _)| *stage != Stage::Retracted);
    let all: Vec<_> = live.map(|(_, stage, s)| (s.clone(), *stage != Stage::Early)).collect();
    let found: BTreeMap<_, _> = all.iter().cloned().collect();
    assert_eq!(all.len(), found.len(), "one session has two rows: {all:?}");
    found
}

struct SessionTable;

impl StateMachineTest for SessionTable {
    type SystemUnderTest = Host;
    type Reference = Model;

    fn init_test(m: &Model) -> Host {
        Host::new(m.shape)
    }

    fn apply(mut host: Host, m: &Model, step: Step) -> Host {
        match step {
            Step::Event(e) => host.insert(e),
            Step::Watermark(w) => host.watermark = w,
            Step::Sweep if host.lane.sweeps() => host.lane.sweep().unwrap(),
            Step::Sweep => {}
            Step::Commit { tick } => {
                host.commit(tick, false);
                let (expected, told) = (m.sessions(), live(&host.to_be));
                let over = |all: &BTreeMap<Session, bool>| -> Vec<Session> {
                    all.iter().filter(|(_, over)| **over).map(|(s, _)| s.clone()).collect()
                };
                assert_eq!(over(&told), over(&expected), "what is final is what W has passed");
                if tick && host.shape.early {
                    assert_eq!(told, expected, "a tick tells of everything");
                }
                for s in told.keys() {
                    assert!(expected.contains_key(s), "{s:?} was told and is not so: {expected:?}");
                }
            }
            Step::Deliver => host.deliver(),
            Step::DeliverAgain(back) => {
                if let Some(old) = host.delivered.checked_sub(back) {
                    let again = host.sent[old].clone();
                    assert!(!again.put_into(&mut host.table), "a row went back to an older revision");
                }
            }
            Step::Crash { lag } => host.crash(lag, &m.pending),
        }
        host
    }

    fn check_invariants(host: &Host, _: &Model) {
        // Whatever the sink has, it has from a committed epoch, and never a newer row than that.
        for (id, (revision, ..)) in &host.table {
            assert!(host.to_be.get(id).is_some_and(|(newest, ..)| newest >= revision));
        }
        if host.delivered == host.sent.len() {
            assert_eq!(live(&host.table), live(&host.to_be));
        }
    }

    fn teardown(mut host: Host, m: Model) {
        host.commit(false, true);
        while host.delivered < host.sent.len() {
            host.deliver();
        }
        let all: BTreeMap<Session, bool> = m.sessions().into_keys().map(|s| (s, true)).collect();
        assert_eq!(live(&host.table), all, "at the end all is final");
        assert_eq!(host.duplicates, m.copies, "each copy is counted once");
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig {
        // `PROPTEST_CASES` asks for more; the default takes some seconds.
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(1_500),
        ..ProptestConfig::default()
    })]
    #[test]
    fn the_table_is_right_after_every_epoch(sequential 1..80 => SessionTable);
}
