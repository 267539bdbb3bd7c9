//! Claim, incarnation, epoch and fence as a state machine: the real store on a disk that loses what was not synced, and the
//! real sinks, a table in SQLite and a file of lines. Processes start one after the other and at once, commit, deliver, die in
//! the midst of anything, haunt the sinks after their disk has given them up, and humans go back to earlier epochs.
//!
//! `process` is what runs, `truth` is the reference: lists of what was acknowledged, of what each sink was told, and of who may
//! write. After every move both sinks hold what the lists say; in the end a reader sees what was read, each record once.
//!
//! Catches: an incarnation that is given out twice, an epoch that was acknowledged and is gone, one number with two contents,
//! positions ahead of the state, two holders of a claim, a row of somebody who was fenced off, a start that goes on although a
//! sink contradicts the log, rows of a branch that was given up, and a refusal without a reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod process;
mod truth;

use crate::process::{DATA, FILE, PIPELINE, Places, Process, Refusal, TABLE, go_back, start_over};
use crate::truth::{Row, Truth};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use rusqlite::{Connection, OptionalExtension as _};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use tidemill_engine::outbox::{Revision, Stage};
use tidemill_fuzz::{Targets, Verdict};
use tidemill_sim::{Keep, SimDisk, Trouble};
use tidemill_store::StoreError;
use tidemill_store::disk::Disk as _;

/// A cut of the power after so many operations, before or after the next takes place.
#[derive(Clone, Copy, Debug)]
struct Cut {
    operations: u64,
    after: bool,
    keep: Keep,
}

/// What happens.
#[derive(Clone, Debug)]
enum Move {
    Start,
    /// A human has read that the table lost its cursor.
    StartAndResend,
    StartAndCut(Cut),
    /// While the file of lines is empty; it is put back if that is refused.
    StartWithoutLines,
    /// While a bit of the register of incarnations is another.
    StartWithBadRegister(Index, u8),
    StartOver,
    Read(u64),
    Commit(u8),
    CommitAndCut(Cut),
    CommitInTrouble(Trouble),
    /// An epoch that is not the next, or by who was here before.
    CommitBackwards,
    Deliver(&'static str, u8),
    /// The process dies, in the midst of a line.
    Die(u8),
    PowerCut(Keep, u8),
    /// The disk gives the process up, and it goes on; perhaps without the file.
    Haunt(bool),
    HauntDelivers(&'static str),
    HauntCommits,
    HauntEnds,
    GoBack(Index),
    GoBackAndCut(Index, Cut),
    LoseCursor,
}

impl Move {
    fn name(&self) -> String {
        let text = format!("{self:?}");
        text.split(['(', ' ']).next().unwrap_or_default().to_owned()
    }
}

/// As far as it is certain: what else is so is known only to the disk.
#[derive(Clone, Debug)]
struct Model {
    file_first: bool,
    seed: u64,
    /// Somebody may have the claim.
    lives: bool,
    haunted: u8,
}

impl ReferenceStateMachine for Model {
    type State = Model;
    type Transition = Move;

    fn init_state() -> BoxedStrategy<Model> {
        let model = |(file_first, seed)| Model { file_first, seed, lives: false, haunted: 0 };
        any::<(bool, u64)>().prop_map(model).boxed()
    }

    fn transitions(model: &Model) -> BoxedStrategy<Move> {
        let keep = || select(vec![Keep::None, Keep::All, Keep::Some, Keep::Some]);
        let cut = |most: u64| {
            (0..most, any::<bool>(), keep()).prop_map(|(operations, after, keep)| Cut {
                operations,
                after,
                keep,
            })
        };
        let sink = || select(vec![TABLE, FILE]);
        let n = any::<Index>;
        let (alive, dead) = if model.lives { (4, 1) } else { (1, 4) };
        prop_oneof![
            4 * dead => Just(Move::Start),
            dead => Just(Move::StartAndResend),
            dead => cut(30).prop_map(Move::StartAndCut),
            1 => Just(Move::StartWithoutLines),
            1 => (n(), 0..8_u8).prop_map(|(at, bit)| Move::StartWithBadRegister(at, bit)),
            1 => Just(Move::StartOver),
            2 * alive => (1..12_u64).prop_map(Move::Read),
            3 * alive => (1..4_u8).prop_map(Move::Commit),
            alive => cut(8).prop_map(Move::CommitAndCut),
            1 => select(vec![Trouble::Full, Trouble::SyncFails]).prop_map(Move::CommitInTrouble),
            1 => Just(Move::CommitBackwards),
            4 * alive => (sink(), 1..6_u8).prop_map(|(sink, most)| Move::Deliver(sink, most)),
            2 => (0..40_u8).prop_map(Move::Die),
            2 => (keep(), 0..40_u8).prop_map(|(keep, torn)| Move::PowerCut(keep, torn)),
            2 => any::<bool>().prop_map(Move::Haunt),
            1 + 3 * u32::from(model.haunted) => sink().prop_map(Move::HauntDelivers),
            1 => Just(Move::HauntCommits),
            1 + u32::from(model.haunted) => Just(Move::HauntEnds),
            2 * dead => n().prop_map(Move::GoBack),
            dead => (n(), cut(40)).prop_map(|(n, cut)| Move::GoBackAndCut(n, cut)),
            1 => Just(Move::LoseCursor),
        ]
        .boxed()
    }

    fn apply(mut model: Model, transition: &Move) -> Model {
        match transition {
            Move::Start | Move::StartAndResend => model.lives = true,
            Move::Haunt(_) => {
                model.haunted += u8::from(model.lives);
                model.lives = false;
            }
            Move::HauntEnds => model.haunted = model.haunted.saturating_sub(1),
            Move::Die(_) | Move::PowerCut(..) | Move::CommitInTrouble(_) => model.lives = false,
            Move::CommitAndCut(cut) if cut.operations < 3 => model.lives = false,
            _ => {}
        }
        model
    }
}

/// See the module's documentation.
struct Machine {
    places: Places,
    disk: SimDisk,
    living: Option<Process>,
    /// They live, and have no disk any more.
    haunting: Vec<Process>,
    truth: Truth,
    /// How a reader sees the table.
    db: Connection,
    was_refused: bool,
    /// The last start was, since the log is not what was committed.
    was_sent_away: bool,
    _folder: tempfile::TempDir,
}

/// How often each move took place.
static MOVES: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

thread_local! {
    static WAS_REFUSED: Cell<bool> = const { Cell::new(false) };
}

impl StateMachineTest for Machine {
    type SystemUnderTest = Machine;
    type Reference = Model;

    fn init_test(model: &Model) -> Machine {
        let folder = folder();
        let places = Places {
            database: folder.path().join("sessions.db"),
            lines: folder.path().join("lines.jsonl"),
            file_first: model.file_first,
        };
        let db = Connection::open(&places.database).unwrap();
        Machine {
            places,
            disk: SimDisk::new(model.seed),
            living: None,
            haunting: Vec::new(),
            truth: Truth::default(),
            db,
            was_refused: false,
            was_sent_away: false,
            _folder: folder,
        }
    }

    fn apply(mut machine: Machine, _: &Model, transition: Move) -> Machine {
        let name = transition.name();
        if machine.makes(transition) {
            *MOVES.lock().unwrap().entry(name).or_default() += 1;
        }
        machine
    }

    fn check_invariants(machine: &Machine, _: &Model) {
        machine.sinks_hold_what_they_were_told();
    }

    fn teardown(mut machine: Machine, _: Model) {
        machine.ends_well();
        WAS_REFUSED.set(machine.was_refused);
    }
}

impl Machine {
    /// Whether it took place.
    #[expect(clippy::needless_pass_by_value, reason = "a move is made once")]
    fn makes(&mut self, what: Move) -> bool {
        match what {
            Move::Start => self.start(false),
            Move::StartAndResend => {
                // A cursor that is lost shows nothing of what is to be taken back: that comes first.
                if !self.needs_resending() || self.truth.going_back_to.is_some() {
                    return false;
                }
                self.start(true);
            }
            Move::StartAndCut(cut) => {
                if self.living.is_some() {
                    return false;
                }
                self.cut_in(cut, |m| m.start(false));
            }
            Move::StartWithoutLines => return self.start_without_lines(),
            Move::StartWithBadRegister(at, bit) => return self.start_with_bad_register(&at, bit),
            Move::StartOver => return self.start_over(),
            Move::Read(records) => {
                let Some(p) = &mut self.living else { return false };
                p.read(records, &mut self.truth);
            }
            Move::Commit(epochs) => {
                let Some(p) = &mut self.living else { return false };
                for _ in 0..epochs {
                    p.read(1, &mut self.truth);
                    p.commit(&mut self.truth).unwrap();
                }
            }
            Move::CommitAndCut(cut) => {
                if self.living.is_none() {
                    return false;
                }
                self.cut_in(cut, Machine::commit_in_vain);
            }
            Move::CommitInTrouble(trouble) => {
                if self.living.is_none() {
                    return false;
                }
                self.disk.trouble(trouble);
                self.commit_in_vain();
                self.disk.trouble(Trouble::None);
            }
            Move::CommitBackwards => return self.commit_backwards(),
            Move::Deliver(sink, most) => return self.deliver(sink, most),
            Move::Die(torn) => return self.die(torn),
            Move::PowerCut(keep, torn) => {
                self.die(torn);
                self.disk.cut(keep);
            }
            Move::Haunt(lets_go) => {
                let Some(mut p) = self.living.take() else { return false };
                p.disk.kill();
                if lets_go {
                    p.let_go(FILE);
                }
                self.haunting.push(p);
            }
            Move::HauntDelivers(sink) => return self.haunt_delivers(sink),
            Move::HauntCommits => {
                let Some(p) = self.haunting.first_mut() else { return false };
                let next = p.log.last_epoch() + 1;
                assert!(p.log.append(p.incarnation, next, &[]).is_err(), "it has no disk");
            }
            Move::HauntEnds => return self.haunting.pop().is_some(),
            Move::GoBack(n) => return self.go_back(&n),
            Move::GoBackAndCut(n, cut) => {
                let mut took_place = false;
                if self.living.is_none() {
                    self.cut_in(cut, |m| took_place = m.go_back(&n));
                }
                return took_place;
            }
            Move::LoseCursor => return self.lose_cursor(),
        }
        true
    }

    fn needs_resending(&self) -> bool {
        self.truth.table.epoch.is_none() || self.truth.table.behind
    }

    fn file_is_held(&self) -> bool {
        self.haunting.iter().any(|p| p.outlet(FILE).is_some())
    }

    fn start(&mut self, resend: bool) {
        let disk = self.disk.next_process();
        let (held, before) = (self.file_is_held(), self.disk.files(Path::new("/")));
        let asked: &[&str] = if resend { &[TABLE] } else { &[] };
        match Process::start(&disk, &self.places, asked, &mut self.truth) {
            Ok(p) => {
                assert!(self.living.is_none(), "two have the claim");
                self.truth.allows(resend, held);
                self.was_sent_away = false;
                self.living = Some(p);
            }
            Err(_) if self.disk.is_off() => {}
            Err(Refusal::Store(StoreError::Locked { pid, .. })) => {
                let holder = self.living.as_ref().expect("somebody has the claim");
                assert_eq!(pid, Some(holder.disk.process()));
                assert_eq!(self.disk.files(Path::new("/")), before, "who is refused has changed something");
                disk.kill();
                self.was_refused = true;
            }
            Err(why) => {
                self.truth.explains(&why, resend, held);
                disk.kill();
                self.was_refused = true;
                self.was_sent_away = why.is_damage();
            }
        }
    }

    /// Has the power cut while something goes on; nothing lives after it.
    fn cut_in(&mut self, cut: Cut, what: impl FnOnce(&mut Machine)) {
        self.disk.cut_at(self.disk.operations() + 1 + cut.operations, cut.after);
        what(self);
        self.living = None;
        self.disk.cut(cut.keep);
    }

    fn start_without_lines(&mut self) -> bool {
        let bytes = fs::read(&self.places.lines).unwrap_or_default();
        if bytes.is_empty() || self.living.is_some() || self.file_is_held() {
            return false;
        }
        File::create(&self.places.lines).unwrap();
        let (lines, torn) = (std::mem::take(&mut self.truth.lines), std::mem::take(&mut self.truth.torn));
        let disk = self.disk.next_process();
        match Process::start(&disk, &self.places, &[], &mut self.truth) {
            Ok(p) => {
                assert_eq!(p.outlet(FILE).unwrap().cursor.length, 0, "lines are gone that were confirmed");
                self.truth.allows(false, false);
                self.living = Some(p);
            }
            Err(why) => {
                self.truth.explains(&why, false, true);
                disk.kill();
                fs::write(&self.places.lines, bytes).unwrap();
                (self.truth.lines, self.truth.torn) = (lines, torn);
            }
        }
        true
    }

    fn start_with_bad_register(&mut self, at: &Index, bit: u8) -> bool {
        let register = Path::new(DATA).join("incarnation");
        let files = self.disk.files(Path::new(DATA));
        let Some((_, len)) = files.iter().find(|(file, _)| *file == register) else { return false };
        if self.living.is_some() {
            return false;
        }
        let byte = at.index(*len);
        self.disk.flip(&register, byte, bit);
        let disk = self.disk.next_process();
        let started = Process::start(&disk, &self.places, &[], &mut self.truth).map(|p| p.incarnation);
        assert!(matches!(started, Err(Refusal::Store(StoreError::Damaged { .. }))), "{started:?}");
        disk.kill();
        self.disk.flip(&register, byte, bit);
        true
    }

    fn start_over(&mut self) -> bool {
        if self.living.is_some() || self.file_is_held() {
            return false;
        }
        let disk = self.disk.next_process();
        start_over(&disk, &self.places, &mut self.truth).unwrap();
        disk.kill();
        true
    }

    /// A commit that may fail; then nothing more may be written, and the process ends.
    fn commit_in_vain(&mut self) {
        let Some(p) = &mut self.living else { return };
        p.read(1, &mut self.truth);
        if p.commit(&mut self.truth).is_err() {
            let next = p.log.last_epoch() + 1;
            assert!(p.log.append(p.incarnation, next, &[]).is_err(), "it goes on after a failure");
            self.die(0);
        }
    }

    fn commit_backwards(&mut self) -> bool {
        let (Some(p), Some(newest)) = (&mut self.living, self.truth.newest()) else { return false };
        assert!(p.log.append(p.incarnation, newest.epoch, &[]).is_err(), "an epoch twice");
        let earlier = newest.incarnation - 1;
        assert!(p.log.append(earlier, newest.epoch + 1, &[]).is_err(), "an incarnation goes back");
        true
    }

    fn deliver(&mut self, sink: &'static str, most: u8) -> bool {
        let mut any = false;
        for _ in 0..most {
            let Some(p) = &mut self.living else { break };
            let may = sink == FILE || !p.has_rows_for(sink) || self.truth.table.fence == p.incarnation;
            let Some(answer) = p.deliver(sink, &mut self.truth) else { break };
            any = true;
            assert_eq!(answer.is_ok(), may, "{sink}: {answer:?}");
            if answer.is_err() {
                self.was_refused = true;
                self.die(0);
            } else if sink == TABLE && p.outlet(sink).unwrap().queue.is_empty() {
                // Whoever has not seen that the cursor is lost has nothing to send again.
                self.truth.table.behind &= self.truth.table.epoch.is_none();
            }
        }
        any
    }

    fn haunt_delivers(&mut self, sink: &'static str) -> bool {
        let Some(p) = self.haunting.first_mut() else { return false };
        let may = sink == FILE || !p.has_rows_for(sink) || self.truth.table.fence == p.incarnation;
        let Some(answer) = p.deliver(sink, &mut self.truth) else { return false };
        assert_eq!(answer.is_ok(), may, "{sink}: {answer:?}");
        self.was_refused |= !may;
        true
    }

    /// The process dies; so many bytes of the next line have reached the file.
    fn die(&mut self, torn: u8) -> bool {
        let Some(p) = self.living.take() else { return false };
        p.disk.kill();
        let line = br#"{"session_id":"00000000000000000000000000000000","pipeline":"clicks""#;
        let was_at_it = p.has_rows_for(FILE);
        drop(p);
        if was_at_it {
            self.truth.torn = line[..usize::from(torn)].to_vec();
            let mut file = File::options().append(true).open(&self.places.lines).unwrap();
            file.write_all(&self.truth.torn).unwrap();
        }
        true
    }

    fn go_back(&mut self, n: &Index) -> bool {
        if self.truth.table.behind {
            // Whoever is asked for a table again is to give it first.
            return false;
        }
        self.go_back_to(|epochs| (!epochs.is_empty()).then(|| *n.get(epochs)))
    }

    fn go_back_to(&mut self, pick: impl Fn(&[u64]) -> Option<u64>) -> bool {
        let disk = self.disk.next_process();
        let went = go_back(&disk, &self.places, pick, &mut self.truth);
        disk.kill();
        match went {
            Ok(_) => assert!(self.living.is_none(), "two have the claim"),
            Err(_) if self.disk.is_off() => {}
            Err(Refusal::NoEpoch) => return false,
            Err(Refusal::Store(StoreError::Locked { .. })) => assert!(self.living.is_some()),
            Err(why) => self.truth.explains(&why, false, self.file_is_held()),
        }
        true
    }

    fn lose_cursor(&mut self) -> bool {
        let deleted = self.db.execute("DELETE FROM tidemill_cursor", []).unwrap_or(0);
        if deleted > 0 {
            let table = &mut self.truth.table;
            (table.epoch, table.fence, table.behind) = (None, 0, true);
        }
        deleted > 0
    }

    fn sinks_hold_what_they_were_told(&self) {
        let rows = table_rows(&self.db);
        assert_eq!(rows, self.truth.table.rows.values().copied().collect::<Vec<_>>(), "the table");
        let who = "SELECT incarnation, epoch FROM tidemill_cursor WHERE pipeline = ?1 AND sink = ?2";
        let cursor: Option<(i64, Option<i64>)> = self.db.prepare(who).ok().and_then(|mut s| {
            s.query_row([PIPELINE, TABLE], |r| Ok((r.get(0)?, r.get(1)?))).optional().unwrap()
        });
        let (fence, epoch) = cursor.unwrap_or_default();
        let table = &self.truth.table;
        assert_eq!((fence as u64, epoch.map(|e| e as u64)), (table.fence, table.epoch), "the table's cursor");
        let bytes = fs::read(&self.places.lines).unwrap_or_default();
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        assert_eq!(&bytes[whole..], self.truth.torn, "behind the last line");
        let lines: Vec<Row> = bytes[..whole].split_inclusive(|b| *b == b'\n').map(line).collect();
        assert_eq!(lines, self.truth.lines, "the file");
    }

    /// Whatever has happened, a human who does what he is told gets the pipeline to go on, and nothing is wrong then.
    fn ends_well(&mut self) {
        self.haunting.clear();
        self.die(0);
        for _ in 0..3 {
            if self.living.is_some() {
                break;
            }
            match self.truth.going_back_to {
                Some(to) if self.needs_resending() || self.was_sent_away => {
                    self.go_back_to(|_| Some(to));
                }
                _ => {}
            }
            self.start(self.needs_resending());
        }
        let p = self.living.as_mut().expect("it cannot be started any more");
        p.read(20, &mut self.truth);
        p.commit(&mut self.truth).unwrap();
        for sink in [TABLE, FILE] {
            while self.deliver(sink, 1) {}
        }
        let p = self.living.as_ref().unwrap();
        assert!(p.outlets.iter().all(|o| o.queue.is_empty()), "a sink waits");
        self.sinks_hold_what_they_were_told();
        self.truth.is_whole(p.position());
    }
}

/// In memory where there is such a place: what a sync leaves is asked of the simulated disk, and the sinks lose nothing.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn table_rows(db: &Connection) -> Vec<Row> {
    let sql = "SELECT session_id, incarnation, epoch, events, stage FROM sessions ORDER BY session_id";
    let Ok(mut statement) = db.prepare(sql) else { return Vec::new() };
    let row = |r: &rusqlite::Row<'_>| {
        let (id, stage): (String, String) = (r.get(0)?, r.get(4)?);
        let number = |at: usize| r.get::<_, i64>(at).map(|n| n as u64);
        let revision = Revision { incarnation: number(1)?, epoch: number(2)? };
        Ok(Row { key: key_of(&id), revision, count: number(3)?, stage: Stage::from_name(&stage).unwrap() })
    };
    statement.query_map([], row).unwrap().map(Result::unwrap).collect()
}

fn line(bytes: &[u8]) -> Row {
    let line: serde_json::Value = serde_json::from_slice(bytes).unwrap();
    let (number, text) =
        (|name: &str| line[name].as_u64().unwrap(), |name: &str| line[name].as_str().unwrap());
    let revision = Revision { incarnation: number("incarnation"), epoch: number("epoch") };
    let stage = Stage::from_name(text("stage")).unwrap();
    Row { key: key_of(text("session_id")), revision, count: number("events"), stage }
}

/// A session's id is its key, sixteen times.
fn key_of(id: &str) -> u8 {
    u8::from_str_radix(&id[..2], 16).unwrap()
}

#[test]
fn claims_incarnations_epochs_and_fences_hold_whatever_happens() {
    let config = Config { failure_persistence: None, ..Config::default() };
    Targets(1).fuzz(
        "claim, epoch and fence",
        320,
        Model::sequential_strategy(20..120),
        |(model, moves, seen)| {
            WAS_REFUSED.set(false);
            Machine::test_sequential(config.clone(), model, moves, seen);
            Verdict::accepted(!WAS_REFUSED.get())
        },
    );
    let moves = MOVES.lock().unwrap();
    tidemill_fuzz::report(&format!("claim, epoch and fence, moves: {moves:?}"));
    assert!(moves.len() == 21, "some never took place: {moves:?}");
}
