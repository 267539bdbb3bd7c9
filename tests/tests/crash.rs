//! Killed at every kind of moment, a run ends with the model's table, nothing lost, doubled or said in two ways.
//!
//! The bug family: something leaves before it is durable, is resent differently, or a damaged store is taken for a
//! shorter one. Sizes: `TIDEMILL_CRASH_EVENTS` (default 300,000; from 5,000,000 on with epochs of 100 ms, below with
//! 10 ms so that there is something to kill), `TIDEMILL_CRASH_KILLS` (default 12), `TIDEMILL_CRASH_SEED`. A run that
//! ends before its kill begins a new round; kills that hit are counted and printed. Every loop is run by `builtin:gap` and by
//! the component `gap-sessions`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::OnceLock;
use tidemill_tests::disk::Tmpfs;
use tidemill_tests::faults::{self, Unsynced};
use tidemill_tests::model::{self, Format, Gap, Log, Match, Row, Source, Unit};
use tidemill_tests::traffic::{Rng, Shop, delayed, file_of};
use tidemill_tests::{
    Case, Config, Follower, RUN_MAX, Session, current, env_number, latest, only_invalid, same_sinks,
    same_table, segments_under, wait_for,
};

const FILE: &str = "in.jsonl";

fn events() -> u64 {
    env_number("TIDEMILL_CRASH_EVENTS", 300_000)
}

fn kills() -> u64 {
    env_number("TIDEMILL_CRASH_KILLS", 12)
}

fn config(session: Session) -> Config {
    let kind = |v: &str| Some(Match { field: "kind".into(), values: vec![v.into()] });
    let file = Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis);
    let fields = vec![("kind".into(), "type".into())];
    let source = Source { id: Some("id".into()), fields, disorder_ms: 10_000, ..file };
    let gap = Gap {
        max_ms: Some(600_000),
        start: kind("login"),
        end: kind("purchase"),
        ..Gap::of_seconds(60, false)
    };
    let mut config = Config { session, ..Config::new(source, gap) };
    config.epoch = if events() >= 5_000_000 { "100ms".into() } else { "10ms".into() };
    config
}

/// The input of all loops and what must come of it: made once.
struct Input {
    dir: tempfile::TempDir,
    log: Log,
    expected: Vec<Row>,
}

fn input() -> &'static Input {
    static INPUT: OnceLock<Input> = OnceLock::new();
    INPUT.get_or_init(|| {
        let n = events();
        let lines = Shop { seed: 77, events: n, users: 20 + n / 50, step_ms: 20, invalid_every: 500 }.lines();
        let bytes = file_of(&delayed(&lines, 78, 10_000, true));
        let config = config(Session::Builtin);
        let log = model::read(&[(&config.sources[0], FILE, &bytes)], &config.gap);
        let expected = model::sessions(&log, &BTreeSet::new(), &config.gap);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), bytes).unwrap();
        Input { dir, log, expected }
    })
}

/// How a run is killed.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Once it has committed and this many further events are in its rows.
    Events(u64),
    /// In recovery: when a file with this end to its name is about to be opened for the first time.
    InRecovery(&'static str),
    /// Before the n-th sync of a segment, which is then cut back to its synced length, or to half of what follows.
    BeforeSync { call: u64, half: bool },
    /// After the n-th sync: committed, not delivered.
    AfterSync { call: u64 },
}

const CONTENT: &str =
    "json_array(X.key, X.start_ms, X.end_ms, X.events, X.stage, X.reason, X.plugin, X.fields)";

/// Runs until the table exists, kills, and has every later offer recorded by a trigger.
fn record_offers(case: &Case) {
    let mut process = case.start(&[], &[]);
    wait_for("the sessions table", RUN_MAX, || (case.has_table() || process.ended()).then_some(()));
    process.kill();
    let (old, new) = (CONTENT.replace('X', "sessions"), CONTENT.replace('X', "NEW"));
    let sql = format!(
        "CREATE TABLE offers (session_id TEXT, incarnation INTEGER, epoch INTEGER, content TEXT);
         INSERT INTO offers SELECT session_id, incarnation, epoch, {old} FROM sessions;
         CREATE TRIGGER offered BEFORE INSERT ON sessions BEGIN
           INSERT INTO offers VALUES (NEW.session_id, NEW.incarnation, NEW.epoch, {new}); END;"
    );
    case.database().execute_batch(&sql).unwrap();
}

/// One (id, revision) never has two contents, and a lower one than was offered before is only ever a resend.
fn check_offers(case: &Case) -> usize {
    let db = case.database();
    let mut q =
        db.prepare("SELECT session_id, incarnation, epoch, content FROM offers ORDER BY rowid").unwrap();
    let mut rows = q.query([]).unwrap();
    let mut contents: HashMap<(String, (i64, i64)), String> = HashMap::new();
    let mut greatest: HashMap<String, (i64, i64)> = HashMap::new();
    let mut count = 0;
    while let Some(r) = rows.next().unwrap() {
        let (id, revision): (String, _) = (r.get(0).unwrap(), (r.get(1).unwrap(), r.get(2).unwrap()));
        let content: String = r.get(3).unwrap();
        count += 1;
        match contents.get(&(id.clone(), revision)) {
            Some(before) => assert_eq!(*before, content, "{id} {revision:?} has two contents"),
            None => {
                let before = greatest.get(&id).copied().unwrap_or_default();
                assert!(revision > before, "{id}: {revision:?} is new and yet below {before:?}");
                contents.insert((id.clone(), revision), content);
                greatest.insert(id, revision);
            }
        }
    }
    count
}

fn check(what: &str, case: &Case) {
    let input = input();
    same_sinks(what, &input.expected, case);
    only_invalid(what, &input.log, &case.letters());
    let offers = check_offers(case);
    assert!(offers > 0, "{what}: the trigger saw nothing");
    let text = std::fs::read_to_string(case.path("rows.jsonl")).unwrap();
    let mut seen = HashSet::new();
    for line in text.lines() {
        assert!(seen.insert(line), "{what}: twice in the file: {line}");
    }
    let mut revisions = HashSet::new();
    for s in case.lines("rows.jsonl") {
        assert!(revisions.insert((s.id.clone(), s.revision)), "{what}: one revision in two lines: {s:?}");
    }
}

/// Runs once under the fault. `false`: the run came to its end before.
fn strike(case: &Case, follower: &mut Follower, fault: Fault) -> bool {
    let preload = faults::preload();
    match fault {
        Fault::Events(more) => case.killed_after(follower, more),
        Fault::InRecovery(end) => {
            let before: Vec<_> = case.segments().iter().map(|p| p.metadata().unwrap().len()).collect();
            let outcome = case.start(&[], &[preload, ("FAULT_OPEN", end.into())]).outcome(RUN_MAX);
            assert_eq!(outcome.code, None, "recovery opened no {end}: {}", outcome.said);
            let after: Vec<_> = case.segments().iter().map(|p| p.metadata().unwrap().len()).collect();
            assert!(
                !before.is_empty() && before == after,
                "killed in recovery, and yet an epoch was written"
            );
            true
        }
        Fault::BeforeSync { call, half } => {
            let lengths: HashMap<PathBuf, u64> =
                case.segments().into_iter().map(|p| (p.clone(), p.metadata().unwrap().len())).collect();
            let note = case.path("note.txt");
            let _ = std::fs::remove_file(&note);
            let environment = [
                preload,
                ("FAULT_BEFORE", call.to_string()),
                ("FAULT_NOTE", note.to_str().unwrap().to_owned()),
            ];
            let outcome = case.start(&[], &environment).outcome(RUN_MAX);
            if outcome.code.is_some() {
                outcome.exits(0);
                return false;
            }
            let Unsynced { path, synced } =
                Unsynced::of_note(&note).expect("killed, but not by the fault library");
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            let now = file.metadata().unwrap().len();
            let Some(synced) = synced else {
                // Its start may have cut a torn record off, which was longer than the one that is written now: nobody knows where
                // that begins, so it stays, and proves nothing.
                let before = lengths.get(&path).copied().unwrap_or(0);
                if now > before {
                    file.set_len(if half { before + (now - before) / 2 } else { before }).unwrap();
                }
                return now > before;
            };
            assert!(now >= synced, "{} is shorter than what was synced", path.display());
            file.set_len(if half { synced + (now - synced) / 2 } else { synced }).unwrap();
            // A sync without an append before it is no loss and no proof.
            now > synced
        }
        Fault::AfterSync { call } => {
            let outcome = case.start(&[], &[preload, ("FAULT_AFTER", call.to_string())]).outcome(RUN_MAX);
            if outcome.code.is_some() {
                outcome.exits(0);
            }
            outcome.code.is_none()
        }
    }
}

/// A loop for the built-in rule and one for the component.
fn crash_loops(name: &str, wanted: u64, draw: impl Fn(&mut Rng, u64) -> Fault) {
    for session in Session::GAPS {
        crash_loop(&format!("{name}, {session:?}"), &config(session), wanted, &draw);
    }
}

/// Rounds of one run each, killed as drawn, until the kills are enough; each round ends with the model's table.
fn crash_loop(name: &str, config: &Config, wanted: u64, draw: &impl Fn(&mut Rng, u64) -> Fault) {
    let seed = env_number("TIDEMILL_CRASH_SEED", 1);
    let mut rng = Rng::new(seed);
    let (mut done, mut rounds) = (0, 0);
    while done < wanted {
        rounds += 1;
        let what = format!("{name}, seed {seed}, round {rounds}");
        assert!(
            rounds <= 10 + 4 * wanted,
            "{what}: only {done} of {wanted} kills hit: too few events for this machine"
        );
        let case = Case::new();
        std::fs::hard_link(input().dir.path().join(FILE), case.path(FILE))
            .or_else(|_| std::fs::copy(input().dir.path().join(FILE), case.path(FILE)).map(drop))
            .unwrap();
        case.configure(config);
        record_offers(&case);
        let mut follower = Follower::default();
        while done < wanted {
            let fault = draw(&mut rng, done);
            if !strike(&case, &mut follower, fault) {
                break;
            }
            done += 1;
        }
        case.run().exits(0);
        check(&what, &case);
    }
    tidemill_tests::report!("{name}: {done} kills in {rounds} rounds, seed {seed}, {} events", events());
}

#[test]
fn killed_at_random_event_counts() {
    let most = 2 * events() / (kills() + 1);
    crash_loops("kill -9", kills(), |r, _| Fault::Events(r.below(most)));
}

#[test]
fn killed_between_append_and_sync() {
    // One in four leaves half of its last record; the first does.
    let before = |r: &mut Rng, n: u64| Fault::BeforeSync { call: 1 + r.below(6), half: n.is_multiple_of(4) };
    crash_loops("between append and sync", (kills() / 4).max(4), before);
}

/// What it has sent before it was durable is taken back, and what takes its place has a higher revision.
#[test]
fn killed_before_an_epoch_that_has_left_is_committed() {
    let at_least_once = Config { mode: "at-least-once".into(), ..config(Session::Builtin) };
    let before = |r: &mut Rng, n: u64| match n % 2 {
        0 => Fault::BeforeSync { call: 2 + r.below(6), half: n.is_multiple_of(4) },
        _ => Fault::Events(r.below(events() / 4)),
    };
    crash_loop("at least once, before the commit", &at_least_once, (kills() / 2).max(6), &before);
}

#[test]
fn killed_between_commit_and_delivery() {
    let after = |r: &mut Rng, _| Fault::AfterSync { call: 1 + r.below(6) };
    crash_loops("between commit and delivery", (kills() / 4).max(4), after);
}

#[test]
fn killed_again_during_recovery() {
    let fault = |r: &mut Rng, n: u64| match n % 4 {
        0 => Fault::Events(r.below(events() / 8)),
        1 => Fault::AfterSync { call: 1 },
        2 => Fault::InRecovery(".seg"),
        // The sinks are opened once the log has been read; each has its place in the order.
        _ => Fault::InRecovery(["/COMMITTED", "/rows.jsonl", "/dead.jsonl"][r.below(3) as usize]),
    };
    crash_loops("again during recovery", kills().max(8), fault);
}

/// A small run that is held at its end: everything committed and released, open sessions left.
fn held(session: Session) -> (Case, Vec<Row>) {
    let lines = Shop { seed: 8, events: 20_000, users: 500, step_ms: 50, invalid_every: 0 }.lines();
    let bytes = file_of(&lines);
    let mut config = config(session);
    config.end_of_input = "hold".into();
    config.epoch = "10ms".into();
    let case = Case::new();
    case.put(FILE, &bytes);
    case.configure(&config);
    case.run().exits(0);
    assert!(!case.segments().is_empty(), "no .seg file below the data directory");
    let rows = current(&case.table());
    (case, rows)
}

#[test]
fn a_flipped_bit_in_what_was_released_stops_the_process() {
    for session in Session::GAPS {
        let (case, rows) = held(session);
        let last = case.segments().pop().unwrap();
        let mut bytes = std::fs::read(&last).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        std::fs::write(&last, &bytes).unwrap();
        // Twice: the first refusal must not have swept anything away.
        for _ in 0..2 {
            case.run()
                .exits(5)
                .says(last.file_name().unwrap().to_str().unwrap())
                .says("epoch")
                .says("offset");
            assert_eq!(std::fs::read(&last).unwrap(), bytes, "the damaged segment was touched");
        }
        same_table("after the refusal", &rows, &current(&case.table()));
        bytes[middle] ^= 0x10;
        std::fs::write(&last, &bytes).unwrap();
        case.run().exits(0);
    }
}

#[test]
fn a_deleted_last_segment_stops_the_process() {
    for session in Session::GAPS {
        let (case, rows) = held(session);
        let last = case.segments().pop().unwrap();
        let bytes = std::fs::read(&last).unwrap();
        std::fs::remove_file(&last).unwrap();
        for _ in 0..2 {
            case.run().exits(5).says(".seg").says("epoch");
        }
        same_table("after the refusal", &rows, &current(&case.table()));
        std::fs::write(&last, bytes).unwrap();
        case.run().exits(0);
    }
}

#[test]
fn a_torn_tail_recovers() {
    for session in Session::GAPS {
        let (case, rows) = held(session);
        let last = case.segments().pop().unwrap();
        let mut bytes = std::fs::read(&last).unwrap();
        // The beginning of a record and no more, as an append leaves it that was never synced.
        let head = bytes[..bytes.len().min(37)].to_vec();
        bytes.extend(head);
        std::fs::write(&last, bytes).unwrap();
        case.run().exits(0);
        same_table("after a torn tail", &rows, &current(&case.table()));
        assert_eq!(current(&latest(case.lines("rows.jsonl"))), rows);
    }
}

#[test]
fn a_full_disk_stops_the_process_and_loses_nothing() {
    let case = Case::new();
    let Some(disk) = Tmpfs::mount(case.path("disk"), "768k") else { return };
    let mut config = config(Session::Builtin);
    config.data_dir = Some(disk.0.join("state"));
    // Nothing closes before the end, so the state only grows.
    config.gap = Gap::of_seconds(100_000, false);
    config.epoch = "10ms".into();
    let lines = Shop { seed: 9, events: 150_000, users: 2_000_000, step_ms: 5, invalid_every: 0 }.lines();
    let bytes = file_of(&lines);
    let log = model::read(&[(&config.sources[0], FILE, &bytes)], &config.gap);
    let expected = model::sessions(&log, &BTreeSet::new(), &config.gap);
    case.put(FILE, &bytes);
    case.configure(&config);
    case.run().exits(5).says(".seg").says("epoch").says("offset");
    assert!(!segments_under(&disk.0).is_empty());
    disk.grow("512m");
    case.run().exits(0);
    same_sinks("after a full disk", &expected, &case);
}
