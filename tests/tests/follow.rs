//! A followed log that is rotated: by rename, with a writer that goes on in the old file, and by truncation.
//!
//! The bug family: lines written between the rename and the writer's reopening that nobody reads, a renamed file that is
//! read once more under its new name, and a cut file whose next lines are taken for a continuation.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;
use tidemill_tests::model::{Format, Gap, Source, Unit};
use tidemill_tests::traffic::START_MS;
use tidemill_tests::{Case, Config, Process, binary, current, wait_for};

const WAIT: Duration = Duration::from_secs(30);

/// Writes numbered events and knows what must come of them.
struct Writer {
    case: Case,
    n: i64,
    sent: BTreeMap<String, u64>,
}

impl Writer {
    fn new(pattern: &str) -> Writer {
        let file = Source::file("web", pattern, Format::Json, "user", "ts", Unit::Millis);
        let source = Source { disorder_ms: 60_000, more: "follow = true".into(), ..file };
        let case = Case::new();
        case.put("log/app.log", b"");
        let mut config = Config::new(source, Gap::of_seconds(3_600, false));
        config.epoch = "50ms".into();
        case.configure(&config);
        Writer { case, n: 0, sent: BTreeMap::new() }
    }

    /// Appends ten events, of users that come again and of one that does not.
    fn write(&mut self, file: &mut File) {
        for _ in 0..10 {
            self.n += 1;
            let user = if self.n % 10 == 0 { format!("once{}", self.n) } else { format!("u{}", self.n % 3) };
            writeln!(file, r#"{{"user":"{user}","ts":{}}}"#, START_MS + self.n * 10).unwrap();
            *self.sent.entry(user).or_default() += 1;
        }
    }

    /// Waits until all that was written has come out.
    fn arrive(&self, process: &mut Process, what: &str) {
        let (case, sent) = (&self.case, &self.sent);
        wait_for(what, WAIT, || {
            assert!(!process.ended(), "{what}: a followed log has no end");
            if !case.has_table() {
                return None;
            }
            let mut found = BTreeMap::new();
            current(&case.table()).into_iter().for_each(|r| *found.entry(r.key).or_default() += r.events);
            let count = |of: &BTreeMap<String, u64>| of.values().sum::<u64>();
            assert!(count(&found) <= count(sent), "{what}: read twice: {found:?} of {sent:?}");
            (found == *sent).then_some(())
        });
        let letters = self.case.letters();
        assert!(letters.is_empty(), "{what}: {letters:?}");
    }

    /// As `status` shows them.
    fn partitions(&self) -> Vec<Value> {
        let mut status = Command::new(binary());
        let out = status.args(["status", "--json"]).arg(self.case.path("pipeline.toml")).output().unwrap();
        let status: Value = serde_json::from_slice(&out.stdout).unwrap();
        status["pipelines"][0]["partitions"].as_array().cloned().unwrap_or_default()
    }

    fn open(&self) -> File {
        File::options().append(true).create(true).open(self.case.path("log/app.log")).unwrap()
    }

    fn rename(&self, to: &str) {
        std::fs::rename(self.case.path("log/app.log"), self.case.path(to)).unwrap();
    }
}

#[test]
fn a_writer_that_goes_on_in_a_renamed_file_is_heard() {
    // The second pattern also matches the new name.
    for pattern in ["log/app.log", "log/app.log*"] {
        let mut w = Writer::new(pattern);
        let mut process = w.case.start(&[], &[]);
        let mut old = w.open();
        w.write(&mut old);
        w.arrive(&mut process, "before the rename");
        w.rename("log/app.log.1");
        w.write(&mut old);
        w.arrive(&mut process, "renamed, and nothing in its place");
        let mut new = w.open();
        w.write(&mut old);
        w.arrive(&mut process, "an empty file in its place");
        w.write(&mut new);
        w.arrive(&mut process, "the new file");
        w.write(&mut old);
        w.write(&mut new);
        w.arrive(&mut process, "a worker that was slow to reopen");
        w.rename("log/app.log.2");
        let mut newest = w.open();
        w.write(&mut newest);
        w.arrive(&mut process, "a second rename");
        // Not for ever: nobody writes there any more, and the files after them have records.
        wait_for("both renamed files to be left", WAIT, || {
            let finished = |p: &Value| p["finished"].as_bool().unwrap();
            (w.partitions().iter().map(finished).collect::<Vec<_>>() == [true, true, false]).then_some(())
        });
        process.kill();
        if pattern.ends_with('*') {
            // While nobody looks: what the old name still gets can be found only under the new one.
            w.write(&mut newest);
            w.rename("log/app.log.3");
            w.write(&mut newest);
            newest = w.open();
        }
        let mut process = w.case.start(&[], &[]);
        w.write(&mut newest);
        w.arrive(&mut process, "after a kill");
        process.kill();
    }
}

#[test]
fn a_cut_file_is_read_from_its_start() {
    let mut w = Writer::new("log/app.log");
    let mut process = w.case.start(&[], &[]);
    let mut file = w.open();
    for round in 0..3 {
        w.write(&mut file);
        w.arrive(&mut process, &format!("round {round}"));
        std::fs::copy(w.case.path("log/app.log"), w.case.path(&format!("log/kept.{round}"))).unwrap();
        file.set_len(0).unwrap();
    }
    w.write(&mut file);
    w.write(&mut file);
    w.arrive(&mut process, "longer than it was before");
    process.kill();
    let mut process = w.case.start(&[], &[]);
    w.write(&mut file);
    w.arrive(&mut process, "after a kill");
    process.kill();
}
