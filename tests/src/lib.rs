//! End to end: real processes over real or made-up logs, compared with the naive model.
//!
//! This file is the harness: it finds or builds the binary, runs, kills and reads what came out. `config` writes configs,
//! `model` says what must come out and `component` does where the rule is a plugin, `traffic` makes input, `trials` finds the
//! real logs, `plugins` builds components, `service` is what they look things up in, `kafka` makes topics and reads them, `postgres`,
//! `bigquery` and `avro` say what stands in tables and topics; servers, and what may stand before one, are in `tests/services`.
//!
//! `TIDEMILL_BIN` names a binary; without it `cargo build -p tidemill --profile trial` makes one, once a process.
//! Waiting is always for a condition, with a deadline, never for a time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

pub mod api;
pub mod avro;
pub mod bigquery;
pub mod component;
mod config;
pub mod disk;
pub mod faults;
pub mod images;
pub mod kafka;
pub mod model;
pub mod plugins;
pub mod postgres;
pub mod schedule;
pub mod service;
pub mod traffic;
pub mod trials;

pub use config::{Config, Plugin, Session};
use model::{Place, Row};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longest that any one run may take.
pub const RUN_MAX: Duration = Duration::from_secs(600);

/// The number in an environment variable, or a default.
#[must_use]
pub fn env_number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number")))
}

/// The folder of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Where cargo puts what it builds.
#[must_use]
pub fn target_dir() -> PathBuf {
    workspace().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The cargo that runs these tests, in the workspace's folder.
#[must_use]
pub fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).current_dir(workspace());
    cargo
}

/// The binary under test.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("TIDEMILL_BIN") {
            return PathBuf::from(path).canonicalize().expect("TIDEMILL_BIN names no file");
        }
        let mut build =
            cargo(&["build", "--quiet", "-p", "tidemill", "--profile", "trial", "--features", "services"]);
        let status = build.status().expect("cargo cannot be started");
        assert!(status.success(), "the tidemill binary does not build");
        target_dir().join("trial/tidemill")
    })
}

/// Calls until it gives something, or panics when `max` has passed.
pub fn wait_for<T>(what: &str, max: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(begun.elapsed() < max, "waited {max:?} in vain for {what}");
        // Only the pace of polling: two cores are shared with the process that is waited for.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Says what a test has counted or measured, or left out, on standard error and, for whoever runs the whole suite, in the
/// file that `TIDEMILL_REPORT` names.
pub fn report(line: &str) {
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("TIDEMILL_REPORT") {
        // One write, since other tests append too.
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// The same with `format!`.
#[macro_export]
macro_rules! report {
    ($($text:tt)*) => { $crate::report(&format!($($text)*)) };
}

/// What a run left behind.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Everything it said, standard output and error together.
    pub said: String,
}

impl Outcome {
    /// Asserts the exit code.
    #[track_caller]
    pub fn exits(&self, code: i32) -> &Outcome {
        assert!(self.code == Some(code), "exit {:?}, expected {code}; it said:\n{}", self.code, self.said);
        self
    }
    /// Asserts that it said something, upper and lower case alike.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Outcome {
        let found = self.said.to_lowercase().contains(&text.to_lowercase());
        assert!(found, "nothing of {text:?} in what it said:\n{}", self.said);
        self
    }
}

/// A running tidemill; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    said: PathBuf,
}

impl Process {
    /// kill -9, and waits for the end.
    pub fn kill(&mut self) {
        // It may have ended by itself just now, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
    /// SIGTERM: asks it to stop.
    pub fn terminate(&self) {
        let kill = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(kill.is_ok_and(|s| s.success()), "it cannot be signalled");
    }
    /// Waits for its end; also its peak memory in bytes, as the kernel counts it (0 where it does not say).
    pub fn outcome_and_peak(self, max: Duration) -> (Outcome, u64) {
        self.outcome_and_most("status", max, |text| {
            let kib = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
            Some(kib.split_whitespace().next()?.parse::<u64>().ok()? << 10)
        })
    }
    /// Waits for its end; also the processor time it took, in the kernel's ticks, of which a second has a hundred.
    pub fn outcome_and_ticks(self, max: Duration) -> (Outcome, u64) {
        self.outcome_and_most("stat", max, |text| {
            // The name in brackets may hold anything; user and system time are fields 14 and 15.
            let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
            Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
        })
    }
    /// Waits for its end, and reads a number from a file of the kernel about it that only rises. It is gone with the process:
    /// the last look before its end counts.
    fn outcome_and_most(
        mut self,
        file: &str,
        max: Duration,
        read: impl Fn(&str) -> Option<u64>,
    ) -> (Outcome, u64) {
        let path = PathBuf::from(format!("/proc/{}/{file}", self.child.id()));
        let mut most = 0;
        wait_for("the end of the run", max, || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            most = most.max(read(&text).unwrap_or(0));
            self.ended().then_some(())
        });
        (self.outcome(max), most)
    }
    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }
    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
    /// Waits for its end.
    pub fn outcome(mut self, max: Duration) -> Outcome {
        drop(self.child.stdin.take());
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > max {
                self.kill();
                panic!("still running after {max:?}; it said:\n{}", self.said_so_far());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        Outcome { code: status.code(), said: self.said_so_far() }
    }
    /// Everything it has said until now.
    #[must_use]
    pub fn said_so_far(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.said).unwrap_or_default()).into_owned()
    }
    /// Waits until it has said something so often.
    ///
    /// # Panics
    /// If it ends before, or that takes longer.
    #[track_caller]
    pub fn hears(&mut self, text: &str, times: usize, max: Duration) {
        wait_for(&format!("it to say {text:?} {times} times"), max, || {
            let said = self.said_so_far();
            let heard = said.matches(text).count() >= times;
            assert!(heard || !self.ended(), "it has ended without saying {text:?}:\n{said}");
            heard.then_some(())
        });
    }
    /// Its open standard input.
    pub fn stdin(&mut self) -> &mut std::process::ChildStdin {
        self.child.stdin.as_mut().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One revision of a session as a sink shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// 32 hex digits.
    pub id: String,
    /// (incarnation, epoch).
    pub revision: (i64, i64),
    /// early, final, corrected or retracted.
    pub stage: String,
    /// What the model also knows.
    pub row: Row,
    /// What the rule says of it, a JSON object in one form.
    pub fields: String,
    /// `name@version` of the rule.
    pub plugin: String,
}

/// A folder with everything of one run or several.
#[derive(Debug)]
pub struct Case {
    dir: tempfile::TempDir,
}

impl Default for Case {
    fn default() -> Self {
        Case::new()
    }
}

impl Case {
    /// An empty folder.
    #[must_use]
    pub fn new() -> Case {
        Case { dir: tempfile::tempdir().unwrap() }
    }
    /// An empty folder in memory, where there is one: for many small runs.
    #[must_use]
    pub fn in_memory() -> Case {
        Case { dir: tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap() }
    }
    /// A path in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    /// Writes a file.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), bytes).unwrap();
    }
    /// Writes the config.
    pub fn configure(&self, config: &Config) {
        self.put("pipeline.toml", config.text(self.dir.path()).as_bytes());
        if config.has_plugins() {
            plugins::lend(&self.path("state"));
        }
    }
    /// Starts `tidemill run pipeline.toml`; standard input is a pipe that stays open.
    #[must_use]
    pub fn start(&self, arguments: &[&str], environment: &[(&str, String)]) -> Process {
        self.spawn(Command::new(binary()), arguments, environment)
    }
    /// The same with so many open files at most.
    #[must_use]
    pub fn start_with_files(&self, files_max: u64, environment: &[(&str, String)]) -> Process {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {files_max} && exec \"$@\""), "sh"]).arg(binary());
        self.spawn(shell, &[], environment)
    }
    fn spawn(&self, mut command: Command, arguments: &[&str], environment: &[(&str, String)]) -> Process {
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let said = self.path(&format!("said-{number}.txt"));
        let out = std::fs::File::create(&said).unwrap();
        let child = command
            .arg("run")
            .arg(self.path("pipeline.toml"))
            .args(arguments)
            .envs(environment.iter().map(|(k, v)| (k, v)))
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Process { child, said }
    }
    /// Runs until it has committed and this many further events are in its rows, and kills it then. `false`: it came to its
    /// end before.
    pub fn killed_after(&self, follower: &mut Follower, events: u64) -> bool {
        let rows = self.path("rows.jsonl");
        follower.read(&rows);
        let (incarnation, target) = (follower.incarnation, follower.total + events);
        let mut process = self.start(&[], &[]);
        let due = wait_for("a commit to kill after", RUN_MAX, || {
            follower.read(&rows);
            if process.ended() {
                return Some(false);
            }
            (follower.incarnation > incarnation && follower.total >= target).then_some(true)
        });
        if due {
            process.kill();
        } else {
            process.outcome(RUN_MAX).exits(0);
        }
        due
    }
    /// Runs another command on the config, to its end.
    ///
    /// # Panics
    /// If it cannot be started, or says what is no text.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Outcome {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .arg(self.path("pipeline.toml"))
            .current_dir(self.path(""))
            .stdin(Stdio::null());
        let out = command.output().unwrap();
        let said = [out.stdout, out.stderr].map(|b| String::from_utf8(b).unwrap()).concat();
        Outcome { code: out.status.code(), said }
    }
    /// Runs to the end.
    #[must_use]
    pub fn run(&self) -> Outcome {
        self.start(&[], &[]).outcome(RUN_MAX)
    }
    /// The SQLite table as it stands, retracted rows too.
    #[must_use]
    pub fn table(&self) -> Vec<Stored> {
        let db = self.database();
        let mut q = db
            .prepare("SELECT session_id, incarnation, epoch, stage, key, start_ms, end_ms, events, reason, fields, plugin FROM sessions")
            .unwrap();
        let rows = q.query_map([], |r| {
            let row = Row {
                key: r.get(4)?,
                start_ms: r.get(5)?,
                end_ms: r.get(6)?,
                events: r.get::<_, i64>(7)? as u64,
                reason: r.get(8)?,
            };
            let fields = component::one_form(&r.get::<_, String>(9)?);
            Ok(Stored {
                id: r.get(0)?,
                revision: (r.get(1)?, r.get(2)?),
                stage: r.get(3)?,
                row,
                fields,
                plugin: r.get(10)?,
            })
        });
        rows.unwrap().map(Result::unwrap).collect()
    }
    /// The SQLite database.
    #[must_use]
    pub fn database(&self) -> rusqlite::Connection {
        let db = rusqlite::Connection::open(self.path("sessions.db")).unwrap();
        db.busy_timeout(Duration::from_secs(30)).unwrap();
        db
    }
    /// Whether the database has the table yet.
    #[must_use]
    pub fn has_table(&self) -> bool {
        let count = "SELECT count(*) FROM sqlite_master WHERE name = 'sessions' AND type = 'table'";
        self.path("sessions.db").exists()
            && self.database().query_row(count, [], |r| r.get::<_, i64>(0)).is_ok_and(|n| n == 1)
    }
    /// Every line of a JSON-lines sink, in order.
    #[must_use]
    pub fn lines(&self, name: &str) -> Vec<Stored> {
        let text = String::from_utf8(std::fs::read(self.path(name)).unwrap_or_default()).unwrap();
        text.lines().map(stored).collect()
    }
    /// The dead letters, in order.
    #[must_use]
    pub fn letters(&self) -> Vec<Value> {
        let text = String::from_utf8(std::fs::read(self.path("dead.jsonl")).unwrap_or_default()).unwrap();
        text.lines()
            .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("a letter is no JSON: {e}: {l}")))
            .collect()
    }
    /// Epoch segments below the data directory, by name.
    #[must_use]
    pub fn segments(&self) -> Vec<PathBuf> {
        segments_under(&self.path("state"))
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        plugins::keep(&self.path("state"));
    }
}

/// The `.seg` files below a folder, by name; files that vanish meanwhile are left out.
#[must_use]
pub fn segments_under(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            out.extend(segments_under(&path));
        } else if path.extension().is_some_and(|e| e == "seg") {
            out.push(path);
        }
    }
    out.sort();
    out
}

/// A row of its line in JSON, as the sinks write it.
#[must_use]
pub fn stored(line: &str) -> Stored {
    let v: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("a line is no JSON: {e}: {line}"));
    let number = |name: &str| v[name].as_i64().unwrap_or_else(|| panic!("no {name} in {line}"));
    let text = |name: &str| v[name].as_str().unwrap_or_else(|| panic!("no {name} in {line}")).to_owned();
    Stored {
        id: text("session_id"),
        revision: (number("incarnation"), number("epoch")),
        stage: text("stage"),
        row: Row {
            key: text("key"),
            start_ms: number("start_ms"),
            end_ms: number("end_ms"),
            events: number("events") as u64,
            reason: v["reason"].as_str().map(str::to_owned),
        },
        fields: v["fields"].to_string(),
        plugin: text("plugin"),
    }
}

/// Of appended lines the greatest revision per session: what a reader keeps.
#[must_use]
pub fn latest(lines: Vec<Stored>) -> Vec<Stored> {
    let mut by_id: HashMap<String, Stored> = HashMap::new();
    for s in lines {
        match by_id.get(&s.id) {
            Some(old) if old.revision >= s.revision => {}
            _ => {
                by_id.insert(s.id.clone(), s);
            }
        }
    }
    by_id.into_values().collect()
}

/// The rows that count: not retracted, sorted.
#[must_use]
pub fn current(stored: &[Stored]) -> Vec<Row> {
    let mut rows: Vec<Row> =
        stored.iter().filter(|s| s.stage != "retracted").map(|s| s.row.clone()).collect();
    rows.sort();
    rows
}

/// The rows that count with their session ids, sorted.
#[must_use]
pub fn identified(stored: &[Stored]) -> BTreeMap<String, Row> {
    let current = stored.iter().filter(|s| s.stage != "retracted");
    current.map(|s| (s.id.clone(), s.row.clone())).collect()
}

/// Panics with the first differing rows unless both tables are the same.
#[track_caller]
pub fn same_table<T: Ord + std::fmt::Debug>(what: &str, expected: &[T], actual: &[T]) {
    if expected == actual {
        return;
    }
    let mut counts: BTreeMap<&T, i64> = BTreeMap::new();
    for r in expected {
        *counts.entry(r).or_default() += 1;
    }
    for r in actual {
        *counts.entry(r).or_default() -= 1;
    }
    let show = |sign: i64| -> String {
        let rows = counts.iter().filter(|(_, n)| n.signum() == sign);
        rows.take(8).map(|(r, n)| format!("  {} x {r:?}\n", n.abs())).collect()
    };
    panic!(
        "{what}: the tables differ: expected {} rows, found {}\nonly expected:\n{}only found:\n{}",
        expected.len(),
        actual.len(),
        show(1),
        show(-1)
    );
}

/// Asserts that both sinks hold exactly these rows and that none is still early.
#[track_caller]
pub fn same_sinks(what: &str, expected: &[Row], case: &Case) {
    for (sink, stored) in [("SQLite", case.table()), ("JSON lines", latest(case.lines("rows.jsonl")))] {
        same_table(&format!("{what}, {sink}"), expected, &current(&stored));
        let early = stored.iter().find(|s| s.stage == "early");
        assert!(early.is_none(), "{what}, {sink}: still early at the end: {early:?}");
    }
}

/// Where a letter's record stands.
#[must_use]
pub fn place_of(letter: &Value) -> Place {
    let path = letter["partition"].as_str().unwrap_or_else(|| panic!("no partition in {letter}"));
    let offset =
        letter["position"]["offset"].as_u64().unwrap_or_else(|| panic!("no position.offset in {letter}"));
    Place { file: path.rsplit('/').next().unwrap_or_default().into(), offset }
}

/// The places of dead letters; each must be there once.
#[track_caller]
#[must_use]
pub fn places(letters: &[Value]) -> BTreeSet<Place> {
    let set: BTreeSet<Place> = letters.iter().map(place_of).collect();
    assert_eq!(set.len(), letters.len(), "one record has two dead letters");
    set
}

/// Asserts that the letters are exactly the invalid records.
#[track_caller]
pub fn only_invalid(what: &str, log: &model::Log, letters: &[Value]) {
    let expected: BTreeSet<Place> = log.invalid.iter().map(|(p, _)| p.clone()).collect();
    let actual = places(letters);
    let surplus: Vec<&Value> = letters.iter().filter(|l| !expected.contains(&place_of(l))).take(5).collect();
    let lacking: Vec<&Place> = expected.difference(&actual).take(5).collect();
    assert!(
        surplus.is_empty() && lacking.is_empty(),
        "{what}: letters too many: {surplus:?}, lacking: {lacking:?}"
    );
}

/// Follows a JSON-lines sink while it grows: how many events its latest revisions sum up to.
#[derive(Debug, Default)]
pub struct Follower {
    at: u64,
    rest: Vec<u8>,
    events: HashMap<String, u64>,
    /// Events in the latest revisions read.
    pub total: u64,
    /// The greatest incarnation read.
    pub incarnation: i64,
}

impl Follower {
    /// Reads what has been added. A file that was cut back is read from its start.
    pub fn read(&mut self, path: &Path) {
        let Ok(mut file) = std::fs::File::open(path) else { return };
        if file.metadata().unwrap().len() < self.at {
            *self = Follower::default();
        }
        file.seek(SeekFrom::Start(self.at)).unwrap();
        self.at += file.read_to_end(&mut self.rest).unwrap() as u64;
        let whole = self.rest.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        for line in String::from_utf8_lossy(&lines).lines() {
            // A file that was cut and grew again between two looks shows a torn line here; it is not judged here.
            let Ok(v) = serde_json::from_str::<Value>(line) else { continue };
            let events = if v["stage"] == "retracted" { 0 } else { v["events"].as_u64().unwrap_or(0) };
            let id = v["session_id"].as_str().unwrap_or_default().to_owned();
            self.total = self.total + events - self.events.insert(id, events).unwrap_or(0);
            self.incarnation = self.incarnation.max(v["incarnation"].as_i64().unwrap_or(0));
        }
    }
}
