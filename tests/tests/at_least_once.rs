//! Rows that leave before their epoch is durable, and what becomes of them if it never is (SEMANTICS 25).
//!
//! The bug family: a row that waits for the disk although nobody asked for that; a sink that is ahead of the log, which is refused,
//! or from which the next epoch of that number is withheld; a session that never was, which stays in the table.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::Write as _;
use std::time::Duration;
use tidemill_tests::faults::{self, Unsynced};
use tidemill_tests::model::{Format, Gap, Source, Unit};
use tidemill_tests::{Case, Config, Process, Stored, wait_for};

const FILE: &str = "in.jsonl";
const START_MS: i64 = 1_780_000_000_000;
const SOON: Duration = Duration::from_secs(60);

fn line(user: &str, second: i64) -> String {
    format!("{{\"id\":\"{user}{second}\",\"user\":\"{user}\",\"ts\":{}}}\n", START_MS + 1_000 * second)
}

struct Host {
    case: Case,
    process: Process,
}

fn start(case: &Case) -> Process {
    let path = |name: &str| case.path(name).to_str().unwrap().to_owned();
    case.start(&[], &[faults::preload(), ("FAULT_HOLD", path("hold")), ("FAULT_NOTE", path("note.txt"))])
}

impl Host {
    fn new(mode: &str) -> Host {
        let file = Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis);
        let source = Source { id: Some("id".into()), more: "follow = true\nidle = \"60s\"".into(), ..file };
        let mut config = Config::new(source, Gap::of_seconds(20, false));
        config.epoch = "20ms".into();
        config.mode = mode.into();
        let case = Case::new();
        case.put(FILE, line("ann", 0).as_bytes());
        case.configure(&config);
        let process = start(&case);
        let host = Host { case, process };
        host.waits_for("ann", "early", 1);
        host
    }

    /// The newest of a user's.
    fn row(&self, user: &str) -> Option<Stored> {
        let rows = self.case.has_table().then(|| self.case.table())?;
        rows.into_iter().filter(|s| s.row.key == user).max_by_key(|s| s.revision)
    }

    #[track_caller]
    fn waits_for(&self, user: &str, stage: &str, events: u64) -> Stored {
        let is_so = |s: &Stored| s.stage == stage && s.row.events == events;
        wait_for(&format!("{user}'s {stage} row with {events} events"), SOON, || self.row(user).filter(is_so))
    }

    fn append(&self, text: &str) {
        let mut file = std::fs::File::options().append(true).open(self.case.path(FILE)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn hold(&self) {
        self.case.put("hold", b"");
    }

    fn unsynced(&self) -> Unsynced {
        wait_for("an epoch that is written and not synced", SOON, || {
            Unsynced::of_note(&self.case.path("note.txt"))
        })
    }

    /// The power fails while an epoch is held; `input` is what is left of the file.
    fn fails(&mut self, input: &str) {
        let Unsynced { path, synced } = self.unsynced();
        self.process.kill();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(synced.unwrap_or(0)).unwrap();
        for name in ["hold", "note.txt"] {
            std::fs::remove_file(self.case.path(name)).unwrap();
        }
        self.case.put(FILE, input.as_bytes());
        self.process = start(&self.case);
    }
}

#[test]
fn a_row_leaves_before_its_epoch_is_durable_only_at_least_once() {
    let host = Host::new("at-least-once");
    host.hold();
    host.append(&line("bob", 1));
    host.waits_for("bob", "early", 1);
    host.unsynced();

    let host = Host::new("exactly-once");
    host.hold();
    host.append(&line("bob", 1));
    host.unsynced();
    assert!(host.row("bob").is_none(), "it has left before its epoch is durable");
    std::fs::remove_file(host.case.path("hold")).unwrap();
    host.waits_for("bob", "early", 1);
}

#[test]
fn a_session_that_never_was_is_taken_back_and_one_that_is_read_again_comes_back() {
    let ann = line("ann", 0);
    let mut host = Host::new("at-least-once");
    host.hold();
    host.append(&line("bob", 1));
    let phantom = host.waits_for("bob", "early", 1);
    // Nothing of bob is left to be read.
    host.fails(&ann);
    host.waits_for("bob", "retracted", 1);
    assert_eq!(host.row("ann").unwrap().stage, "early");

    host.append(&line("bob", 2));
    let again = host.waits_for("bob", "early", 1);
    assert!(again.revision > phantom.revision, "{again:?} after {phantom:?}");
    // And once more, with the same input after it.
    host.hold();
    host.append(&line("cid", 3));
    let before = host.waits_for("cid", "early", 1);
    host.fails(&[ann, line("bob", 2), line("cid", 3)].concat());
    let after = wait_for("cid's row under a higher revision", SOON, || {
        host.row("cid").filter(|s| s.stage == "early" && s.revision > before.revision)
    });
    assert_eq!((after.row.events, after.id), (1, before.id));
}

/// What was released before is told by the log, not by the config of the next run.
#[test]
fn a_run_that_goes_back_to_exactly_once_finds_its_sinks_as_they_were_left() {
    let mut host = Host::new("at-least-once");
    host.hold();
    host.append(&line("bob", 1));
    host.waits_for("bob", "early", 1);
    let text = std::fs::read_to_string(host.case.path("pipeline.toml")).unwrap();
    host.case.put("pipeline.toml", text.replace("at-least-once", "exactly-once").as_bytes());
    host.fails(&line("ann", 0));
    host.waits_for("bob", "retracted", 1);
}
