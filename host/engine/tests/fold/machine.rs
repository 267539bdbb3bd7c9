//! The session table as a state machine: the engine's lane, its log and a sink that takes outboxes by revision, against a list
//! of events and the sessions that follow from it.
//!
//! Beside the cases of `main`, this knows what is going on: events are in order, late or copies on purpose, the sink lags
//! behind and is told things again, the process dies with an epoch half made, and the log is cut to an image. What must hold
//! is asked after every transition.
//!
//! Catches: an event that a crash loses or doubles, a copy that is not counted, a row of an epoch that never was, a sink whose
//! table depends on what it was told how often and in which order, a final row that is none.

use crate::swaps;
use crate::{Case, Event, Op, Session, Table, World, case, cases, take, world};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use tidemill_engine::lane::Barrier;
use tidemill_engine::outbox::Stage;
use tidemill_engine::time::EventTime;
use tidemill_engine::versions::Policy;

/// What happens.
#[derive(Clone, Debug)]
enum Move {
    /// An event not before those so far.
    InOrder { key: u8, after: i64, id: u8, kind: u8 },
    /// An event so long before the newest time; maybe too late.
    Late { key: u8, back: i64, id: u8, kind: u8 },
    /// One of the events once more, maybe with another content.
    Copy { n: prop::sample::Index, kind: u8 },
    /// The watermark rises.
    Advance(i64),
    /// Folding between barriers, and making room.
    Sweep,
    /// An epoch is committed.
    Barrier { early: bool },
    /// The log is cut to an image of everything.
    Image,
    /// The sink catches up.
    Deliver,
    /// The sink is told an epoch that it has been told before.
    Redeliver(prop::sample::Index),
    /// The process dies between two epochs, or with one made but not committed.
    Crash { in_barrier: bool },
    /// The other config from here on.
    Deploy(Policy, i64),
    /// The config before.
    Rollback(Policy, i64),
}

impl Move {
    fn name(&self) -> &'static str {
        match self {
            Move::InOrder { .. } => "in order",
            Move::Late { .. } => "late",
            Move::Copy { .. } => "copy",
            Move::Advance(_) => "advance",
            Move::Sweep => "sweep",
            Move::Barrier { .. } => "barrier",
            Move::Image => "image",
            Move::Deliver => "deliver",
            Move::Redeliver(_) => "redeliver",
            Move::Crash { .. } => "crash",
            Move::Deploy(..) => "deploy",
            Move::Rollback(..) => "rollback",
        }
    }
}

/// The naive side: a list of events, and how far time has come.
#[derive(Clone, Debug)]
struct Model {
    case: Case,
    watermark: i64,
    greatest: i64,
    /// What the last transition has brought, if it is taken.
    brought: Option<Event>,
    accepted: BTreeSet<Event>,
    copies: u64,
    late: u64,
}

impl Model {
    /// Takes in an event as the host's reader would let it through: not before the frontier.
    fn bring(&mut self, e: Event) {
        if e.1 < self.watermark - self.case.lateness {
            self.late += 1;
            return;
        }
        self.brought = Some(e);
        self.greatest = self.greatest.max(e.1);
        if self.accepted.iter().any(|a| (a.0, a.1, a.2) == (e.0, e.1, e.2)) {
            self.copies += 1;
        } else {
            self.accepted.insert(e);
        }
    }
    fn newest(&self) -> i64 {
        self.greatest.max(self.watermark)
    }
}

impl ReferenceStateMachine for Model {
    type State = Model;
    type Transition = Move;

    fn init_state() -> BoxedStrategy<Model> {
        let settings =
            case().prop_filter("the built-in rule, whose sessions the model knows", |c| c.rude.is_none());
        settings
            .prop_map(|case| Model {
                case: Case { ops: Vec::<Op>::new(), ..case },
                watermark: -1_000,
                greatest: 0,
                brought: None,
                accepted: BTreeSet::new(),
                copies: 0,
                late: 0,
            })
            .boxed()
    }

    fn transitions(model: &Model) -> BoxedStrategy<Move> {
        let policy = || prop_oneof![Just(Policy::Drain), Just(Policy::Migrate)];
        let n = any::<prop::sample::Index>;
        let mut all = vec![
            (
                10,
                (0..2_u8, 0..9_i64, 0..4_u8, 0..6_u8)
                    .prop_map(|(key, after, id, kind)| Move::InOrder { key, after, id, kind })
                    .boxed(),
            ),
            (
                6,
                (0..2_u8, 1..50_i64, 0..4_u8, 0..6_u8)
                    .prop_map(|(key, back, id, kind)| Move::Late { key, back, id, kind })
                    .boxed(),
            ),
            (4, (1..12_i64).prop_map(Move::Advance).boxed()),
            (1, Just(Move::Sweep).boxed()),
            (4, any::<bool>().prop_map(|early| Move::Barrier { early }).boxed()),
            (1, Just(Move::Image).boxed()),
            (3, Just(Move::Deliver).boxed()),
            (1, n().prop_map(Move::Redeliver).boxed()),
            (2, any::<bool>().prop_map(|in_barrier| Move::Crash { in_barrier }).boxed()),
        ];
        if !model.accepted.is_empty() {
            all.push((4, (n(), 0..6_u8).prop_map(|(n, kind)| Move::Copy { n, kind }).boxed()));
        }
        if model.case.second.is_some() {
            all.push((2, (policy(), 1..15_i64).prop_map(|(p, max)| Move::Deploy(p, max)).boxed()));
            all.push((1, (policy(), 1..15_i64).prop_map(|(p, max)| Move::Rollback(p, max)).boxed()));
        }
        proptest::strategy::Union::new_weighted(all).boxed()
    }

    /// For shrinking, which leaves transitions out.
    fn preconditions(model: &Model, transition: &Move) -> bool {
        match transition {
            Move::Copy { .. } => !model.accepted.is_empty(),
            Move::Deploy(..) | Move::Rollback(..) => model.case.second.is_some(),
            _ => true,
        }
    }

    fn apply(mut model: Model, transition: &Move) -> Model {
        model.brought = None;
        match transition {
            Move::InOrder { key, after, id, kind } => model.bring((*key, model.newest() + after, *id, *kind)),
            Move::Late { key, back, id, kind } => model.bring((*key, model.newest() - back, *id, *kind)),
            Move::Copy { n, kind } => {
                let all: Vec<Event> = model.accepted.iter().copied().collect();
                let (key, time, id, own) = *n.get(&all);
                // Half of the copies say something else.
                model.bring((key, time, id, if *kind < 3 { *kind } else { own }));
            }
            Move::Advance(ms) => model.watermark = model.watermark.max(model.greatest - 25) + ms,
            _ => {}
        }
        model
    }
}

/// The engine with its log and a sink.
struct Machine {
    world: World,
}

/// How often each transition was applied.
static APPLIED: Mutex<BTreeMap<&str, u64>> = Mutex::new(BTreeMap::new());

impl StateMachineTest for Machine {
    type SystemUnderTest = Machine;
    type Reference = Model;

    fn init_test(model: &Model) -> Machine {
        Machine { world: world(&model.case) }
    }

    fn apply(mut machine: Machine, model: &Model, transition: Move) -> Machine {
        *APPLIED.lock().unwrap().entry(transition.name()).or_default() += 1;
        let (c, w) = (&model.case, &mut machine.world);
        match transition {
            Move::InOrder { .. } | Move::Late { .. } | Move::Copy { .. } => {
                if let Some(e) = model.brought {
                    w.accept(c, e);
                }
            }
            Move::Advance(_) => w.watermark = w.watermark.max(EventTime::from_ms(model.watermark)),
            Move::Sweep => {
                for lane in w.lanes() {
                    if lane.sweeps() {
                        lane.sweep().unwrap();
                    }
                    lane.make_room().unwrap();
                }
            }
            Move::Barrier { early } => {
                w.commit(early && c.early, false);
                machine.is_final_where_w_has_passed(model);
                let w = &mut machine.world;
                if early && c.early {
                    w.deliver();
                    machine.tells_of_every_event(model);
                }
            }
            Move::Image => {
                w.commit(false, false);
                let mut image = Vec::new();
                w.lane.image(0..1024, &mut image);
                w.log = vec![image];
            }
            Move::Deliver => w.deliver(),
            Move::Redeliver(n) => {
                let told = &w.outboxes[..w.confirmed];
                if !told.is_empty() {
                    let before = w.table.clone();
                    take(&mut w.table, n.get(told));
                    assert_eq!(w.table, before, "told again, the sink holds something else");
                }
            }
            Move::Crash { in_barrier } => {
                if in_barrier {
                    let barrier = Barrier { watermark: w.watermark, early_tick: c.early, at_end: false };
                    // Its epoch never was: nothing of it may be seen.
                    drop(w.lane.barrier(barrier).unwrap());
                }
                w.restart(c);
            }
            Move::Deploy(policy, max_ms) => w.deploy(c, policy, max_ms),
            Move::Rollback(policy, max_ms) => w.rollback(c, policy, max_ms),
        }
        machine
    }

    fn check_invariants(machine: &Machine, model: &Model) {
        let w = &machine.world;
        let newest = (w.incarnation, w.epoch);
        assert!(
            w.table.values().all(|(revision, ..)| *revision <= newest),
            "a row of an epoch that is to come"
        );
        assert!(w.duplicates <= model.copies, "more copies counted than there were");
        if model.case.lateness == 0 {
            // What is final without lateness no event can change any more.
            let sessions: BTreeSet<Session> =
                swaps::naive(&model.case, &model.accepted, &w.schedule).into_iter().collect();
            for (_, stage, session) in w.table.values() {
                assert!(
                    *stage != Stage::Final || sessions.contains(session),
                    "final, and yet none: {session:?}"
                );
            }
        }
    }

    fn teardown(mut machine: Machine, model: Model) {
        let w = &mut machine.world;
        w.barrier(false, true);
        w.has_said_what_an_unrestored_lane_says();
        assert_eq!(w.duplicates, model.copies, "each copy is counted once");
        assert!(w.letters.is_empty(), "{:?}", w.letters);
        assert!(w.table.values().all(|(_, stage, _)| *stage != Stage::Early), "nothing is early in the end");
        let mut rows = live(&w.table);
        rows.sort();
        assert_eq!(rows, swaps::naive(&model.case, &model.accepted, &w.schedule));
        let mut backwards = Table::new();
        w.outboxes.iter().rev().for_each(|sent| take(&mut backwards, sent));
        assert_eq!(backwards, w.table, "the order of epochs makes another table");
    }
}

fn live(table: &Table) -> Vec<Session> {
    table.values().filter(|r| r.1 != Stage::Retracted).map(|r| r.2.clone()).collect()
}

fn bounds(s: &Session) -> (String, i64, i64, u64) {
    (s.0.clone(), s.1, s.2, s.3)
}

impl Machine {
    /// Right after an epoch: of all that was committed, those sessions are final whose silence W has passed, no more and no
    /// fewer. Where silence alone ends them.
    fn is_final_where_w_has_passed(&self, model: &Model) {
        let (c, w) = (&model.case, &self.world);
        if c.second.is_some() || c.max.is_some() || c.marks {
            return;
        }
        let mut table = w.table.clone();
        w.outboxes[w.confirmed..].iter().for_each(|sent| take(&mut table, sent));
        let is_final = |r: &&((u64, u64), Stage, Session)| matches!(r.1, Stage::Final | Stage::Corrected);
        let mut told: Vec<_> = table.values().filter(is_final).map(|r| bounds(&r.2)).collect();
        let silence = c.gap + i64::from(c.inclusive);
        let is_over = |s: &&Session| EventTime::from_ms(s.2 + silence) <= w.watermark;
        let sessions = swaps::naive(c, &model.accepted, &w.schedule);
        let mut over: Vec<_> = sessions.iter().filter(is_over).map(bounds).collect();
        told.sort();
        over.sort();
        assert_eq!(told, over, "what is final is not what W has passed");
    }

    /// At an early tick the table holds every session as it is now, open ones too.
    fn tells_of_every_event(&self, model: &Model) {
        let mut told: Vec<_> = live(&self.world.table).iter().map(bounds).collect();
        let mut now: Vec<_> =
            swaps::naive(&model.case, &model.accepted, &self.world.schedule).iter().map(bounds).collect();
        told.sort();
        now.sort();
        assert_eq!(told, now, "an early tick tells of other sessions");
    }
}

#[test]
fn state_machine_of_the_session_table() {
    let config = Config {
        cases: cases() / 4,
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config.clone());
    let strategy = Model::sequential_strategy(1..120);
    let ran = runner.run(&strategy, |(model, transitions, seen)| {
        Machine::test_sequential(config.clone(), model, transitions, seen);
        Ok(())
    });
    if let Err(e) = ran {
        panic!("{e}");
    }
    let applied = APPLIED.lock().unwrap();
    let line = format!("state machine of the session table: {} cases, transitions: {applied:?}", cases() / 4);
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("TIDEMILL_REPORT") {
        use std::io::Write as _;
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
    assert!(applied.len() == 12 && applied.values().all(|n| *n >= u64::from(cases() / 40)), "{applied:?}");
}
