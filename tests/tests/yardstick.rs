//! The yardstick's whole job with plugins: its validity rule by `clickstream-validator`, its session row by a sessionizer.
//!
//! The rows, with their fields renamed, and the lines left out are those of its oracle (`TIDEMILL_YARDSTICK`, the folder of its
//! source), which sorts and cuts and knows nothing of epochs. Without it they are those of a model here, over clicks of the
//! same shape; where there is an oracle, the model is held to it. `TIDEMILL_YARDSTICK_EVENTS` (default 200,000) sets the size.
//!
//! The bug family: a verdict or a field that depends on the batch, the order or the snapshot in which an event was folded.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tidemill_tests::model::{Format, Gap, Source, Unit, records};
use tidemill_tests::traffic::clicks;
use tidemill_tests::{Case, Config, Plugin, Session, cargo, env_number, place_of, same_table, target_dir};

const FILE: &str = "clicks.jsonl";
const TYPES: [&str; 8] =
    ["page_view", "click", "scroll", "add_to_cart", "checkout", "purchase", "play", "pause"];
/// Times from here on are none to the yardstick.
const TIME_END_MS: i64 = 4_102_444_800_000;
const GAP_MS: i64 = 30_000;

/// The folder of the yardstick's programs, built once; none if its source is not there.
fn programs() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let Some(source) = std::env::var_os("TIDEMILL_YARDSTICK").map(PathBuf::from) else {
            tidemill_tests::report!("no TIDEMILL_YARDSTICK; a model of its job over made-up clicks instead");
            return None;
        };
        let (copy, target) = (target_dir().join("yardstick-src"), target_dir().join("yardstick"));
        copy_source(&source, &copy);
        let mut build = cargo(&["build", "--quiet", "--release"]);
        build.arg("--manifest-path").arg(copy.join("Cargo.toml")).arg("--target-dir").arg(&target);
        assert!(build.status().unwrap().success(), "the yardstick does not build");
        Some(target.join("release"))
    });
    built.as_deref()
}

/// As `cargo xtask bench` does it: what has changed, so that nothing is built in vain. The source may be read-only, and a
/// package below this workspace must say that it is its own.
fn copy_source(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            if entry.file_name() != "target" {
                copy_source(&path, &copy);
            }
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        if entry.file_name() == "Cargo.toml" {
            bytes.extend_from_slice(b"\n[workspace]\n");
        }
        if std::fs::read(&copy).ok().as_ref() != Some(&bytes) {
            std::fs::write(&copy, bytes).unwrap();
        }
    }
}

fn program(name: &str, folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(folder.join(name)).args(arguments).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What must come out: session rows in the yardstick's words, and the lines that are none. Both sorted.
struct Truth {
    rows: Vec<String>,
    dead: Vec<Vec<u8>>,
}

fn sorted_lines(path: &Path) -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> =
        BufReader::new(std::fs::File::open(path).unwrap()).split(b'\n').map(Result::unwrap).collect();
    lines.sort();
    lines
}

/// Makes events in the case's folder and has the oracle say what comes of them.
fn oracle(programs: &Path, case: &Case, events: u64) -> Truth {
    let path = |name: &str| case.path(name).to_str().unwrap().to_owned();
    let (input, out, dead) = (path(FILE), path("oracle.jsonl"), path("oracle.dead"));
    program("gen", programs, &["--n", &events.to_string(), "--late", "clean", "--out", &input]);
    program("oracle", programs, &["--mode", "batch", "--in", &input, "--out", &out, "--dead", &dead]);
    let rows = sorted_lines(Path::new(&out)).into_iter().map(|l| String::from_utf8(l).unwrap()).collect();
    Truth { rows, dead: sorted_lines(Path::new(&dead)) }
}

/// A session row in the yardstick's words.
struct Line<'a> {
    user: &'a str,
    times: (i64, i64),
    count: u64,
    views: u64,
    urls: (&'a str, &'a str),
    bought: bool,
}

impl std::fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (user, entry, exit) = (json!(self.user), json!(self.urls.0), json!(self.urls.1));
        let (first, last) = self.times;
        write!(f, r#"{{"user_id":{user},"first_ts":{first},"last_ts":{last},"count":{},"#, self.count)?;
        write!(
            f,
            r#""page_views":{},"entry_url":{entry},"exit_url":{exit},"purchase":{}}}"#,
            self.views, self.bought
        )
    }
}

/// The same said by a model: every line parsed whole, every user's events sorted, cut at gaps.
fn model(bytes: &[u8]) -> Truth {
    let mut users: BTreeMap<String, Vec<(i64, String, String)>> = BTreeMap::new();
    let mut dead = Vec::new();
    for (_, line) in records(Format::Json, bytes) {
        let v: Value = serde_json::from_slice(&line).unwrap_or_default();
        let text = |name: &str| v[name].as_str().map(str::to_owned);
        let user = text("user_id").filter(|u| !u.is_empty());
        let time = v["ts"].as_i64().filter(|t| (1..TIME_END_MS).contains(t));
        let kind = text("type").filter(|t| TYPES.contains(&t.as_str()));
        match (user, time, kind, text("url")) {
            (Some(user), Some(time), Some(kind), Some(url)) => {
                users.entry(user).or_default().push((time, kind, url));
            }
            _ => dead.push(line),
        }
    }
    let mut rows = Vec::new();
    for (user, mut events) in users {
        events.sort();
        for session in events.chunk_by(|a, b| b.0 - a.0 <= GAP_MS) {
            let (first, last) = (session[0].0, session[session.len() - 1].0);
            let at = |time: i64| session.iter().filter(move |e| e.0 == time).map(|e| e.2.as_str());
            let of = |kind: &str| session.iter().filter(|e| e.1 == kind).count() as u64;
            let line = Line {
                user: &user,
                times: (first, last),
                count: session.len() as u64,
                views: of("page_view"),
                urls: (at(first).min().unwrap(), at(last).max().unwrap()),
                bought: of("purchase") > 0,
            };
            rows.push(line.to_string());
        }
    }
    rows.sort();
    dead.sort();
    Truth { rows, dead }
}

/// The pipeline that does the job.
fn config() -> Config {
    let file = Source::file("clicks", FILE, Format::Json, "user_id", "ts", Unit::Millis);
    let fields = vec![("user".into(), "user_id".into())];
    let source = Source { disorder_ms: 10_000, fields, ..file };
    let mut config = Config::new(source, Gap::of_seconds(30, true));
    let rules = format!(
        r#"required = ["type", "url", "user"], types = {}, min_time = 1, max_time = {}"#,
        json!(TYPES),
        TIME_END_MS - 1
    );
    config.validate = vec![Plugin::new("clickstream-validator", &rules)];
    config.session = Session::Plugin(Plugin::new("yardstick-sessions", r#"gap = "30s""#));
    config.to = r#"["rows"]"#.into();
    config
}

/// The rows of a run, renamed; every one final.
fn renamed(case: &Case) -> Vec<String> {
    let file = BufReader::new(std::fs::File::open(case.path("rows.jsonl")).unwrap());
    // Of appended lines the last of a session is its greatest revision.
    let mut by_id: BTreeMap<String, String> = BTreeMap::new();
    for line in file.lines().map(Result::unwrap) {
        let v: Value = serde_json::from_str(&line).unwrap();
        let number = |of: &Value| of.as_u64().unwrap_or_else(|| panic!("a number is lacking in {line}"));
        let time = |name: &str| v[name].as_i64().unwrap_or_else(|| panic!("no {name} in {line}"));
        let text =
            |of: &Value| of.as_str().unwrap_or_else(|| panic!("a text is lacking in {line}")).to_owned();
        let (id, fields) = (text(&v["session_id"]), &v["fields"]);
        if v["stage"] == "retracted" {
            by_id.remove(&id);
            continue;
        }
        let row = Line {
            user: &text(&v["key"]),
            times: (time("start_ms"), time("end_ms")),
            count: number(&v["events"]),
            views: number(&fields["views"]),
            urls: (&text(&fields["entry"]), &text(&fields["exit"])),
            bought: fields["bought"].as_bool().unwrap(),
        };
        by_id.insert(id, row.to_string());
    }
    let mut rows: Vec<String> = by_id.into_values().collect();
    rows.sort();
    rows
}

/// The lines that have a letter, and how many letters have which reason.
fn dead(case: &Case) -> (Vec<Vec<u8>>, BTreeMap<String, u64>) {
    let mut input = BufReader::new(std::fs::File::open(case.path(FILE)).unwrap());
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    let mut lines = Vec::new();
    for letter in case.letters() {
        input.seek(SeekFrom::Start(place_of(&letter).offset)).unwrap();
        let mut line = Vec::new();
        input.by_ref().read_until(b'\n', &mut line).unwrap();
        line.pop();
        lines.push(line);
        *reasons.entry(letter["reason"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    lines.sort();
    (lines, reasons)
}

#[test]
fn the_whole_job_with_plugins() {
    let events = env_number("TIDEMILL_YARDSTICK_EVENTS", 200_000);
    let case = Case::new();
    let truth = match programs() {
        Some(programs) => oracle(programs, &case, events),
        None => {
            let bytes = clicks(1, events);
            case.put(FILE, &bytes);
            model(&bytes)
        }
    };
    assert!(truth.rows.len() > 1000 && truth.dead.len() > 100, "too little to compare");
    // Early rows at ever so many barriers, and none at all.
    for (early, epoch) in [("\"epoch\"", "10ms"), ("\"off\"", "1s")] {
        let what = format!("{events} clicks, early {early}");
        for leftover in ["rows.jsonl", "dead.jsonl"] {
            let _ = std::fs::remove_file(case.path(leftover));
        }
        let _ = std::fs::remove_dir_all(case.path("state"));
        case.configure(&Config { early: early.into(), epoch: epoch.into(), ..config() });
        case.run().exits(0);
        let (dead, reasons) = dead(&case);
        same_table(&format!("{what}, lines left out"), &truth.dead, &dead);
        for reason in ["malformed_json", "missing_field", "time_range"] {
            assert!(reasons.get(reason).is_some_and(|n| *n > 0), "{what}: no {reason} among {reasons:?}");
        }
        let rows = renamed(&case);
        same_table(&what, &truth.rows, &rows);
        tidemill_tests::report!("{what}: {} sessions, lines left out: {reasons:?}", rows.len());
        if let Some(programs) = programs() {
            case.put("renamed.jsonl", (rows.join("\n") + "\n").as_bytes());
            let sum = |name: &str| {
                let said = program("check", programs, &[case.path(name).to_str().unwrap()]);
                said.split_once(": ").unwrap().1.to_owned()
            };
            let (ours, oracle) = (sum("renamed.jsonl"), sum("oracle.jsonl"));
            assert_eq!(ours, oracle, "{what}: check");
            tidemill_tests::report!("  check says of both: {}", ours.trim_end());
        }
    }
}

#[test]
fn the_model_is_held_to_the_oracle() {
    let Some(programs) = programs() else { return };
    let case = Case::new();
    let truth = oracle(programs, &case, 100_000);
    let model = model(&std::fs::read(case.path(FILE)).unwrap());
    same_table("rows", &truth.rows, &model.rows);
    same_table("lines left out", &truth.dead, &model.dead);
}
