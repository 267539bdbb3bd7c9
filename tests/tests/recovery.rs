//! What the log has lost, and what a human decides about it.
//!
//! The bug family: a damaged tail that is cut although a sink has seen it committed; a table that keeps rows of a
//! branch that was given up, or lacks rows that the cut still knows; a log that only grows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tidemill_tests::model::{self, Format, Gap, Row, Source, Unit};
use tidemill_tests::traffic::{Shop, file_of};
use tidemill_tests::{Case, Config, RUN_MAX, binary, current, latest, same_sinks, same_table, wait_for};

const FILE: &str = "in.jsonl";

fn config() -> Config {
    let file = Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis);
    let source = Source { id: Some("id".into()), disorder_ms: 10_000, ..file };
    let mut config = Config::new(source, Gap::of_seconds(60, false));
    config.epoch = "10ms".into();
    config.end_of_input = "hold".into();
    config
}

/// A run that is held at its end, with open sessions left: into these sinks.
fn held(to: &str, events: u64) -> (Case, Vec<Row>) {
    let bytes = file_of(&Shop { seed: 8, events, users: 500, step_ms: 50, invalid_every: 0 }.lines());
    let mut config = config();
    config.to = to.into();
    let case = Case::new();
    case.put(FILE, &bytes);
    case.configure(&config);
    case.run().exits(0);
    let log = model::read(&[(&config.sources[0], FILE, &bytes)], &config.gap);
    (case, model::sessions(&log, &BTreeSet::new(), &config.gap))
}

fn marker(case: &Case) -> PathBuf {
    case.path("state/pipelines/visits/COMMITTED")
}

#[test]
fn a_sink_is_asked_before_a_lost_tail_is_cut() {
    for to in [r#"["sessions"]"#, r#"["rows"]"#] {
        let (case, _) = held(to, 20_000);
        let last = case.segments().pop().unwrap();
        let (whole, committed) = (std::fs::read(&last).unwrap(), std::fs::read(marker(&case)).unwrap());
        let torn = &whole[..whole.len() / 2];
        std::fs::write(&last, torn).unwrap();
        std::fs::remove_file(marker(&case)).unwrap();
        // Twice: the first refusal must not have swept anything away.
        for _ in 0..2 {
            case.run().exits(5).says("has confirmed epoch").says("offset");
            assert_eq!(std::fs::read(&last).unwrap(), torn, "{to}: the damaged segment was touched");
            assert!(!marker(&case).exists());
        }
        std::fs::write(&last, whole).unwrap();
        std::fs::write(marker(&case), committed).unwrap();
        case.run().exits(0);
    }
}

/// Runs a command of the binary on the case's config.
fn command(case: &Case, arguments: &[&str]) -> (i32, String, Value) {
    let mut command = Command::new(binary());
    let out = command.args(arguments).arg(case.path("pipeline.toml")).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let said = format!("{text}{}", String::from_utf8(out.stderr).unwrap());
    (out.status.code().unwrap(), said, serde_json::from_str(&text).unwrap_or_default())
}

fn status(case: &Case) -> Value {
    command(case, &["status", "--json"]).2["pipelines"][0].take()
}

fn segments(case: &Case) -> Vec<(PathBuf, Vec<u8>)> {
    case.segments().into_iter().map(|p| (p.clone(), std::fs::read(p).unwrap())).collect()
}

#[test]
fn a_finished_pipeline_owes_its_sinks_nothing() {
    let (case, _) = held(r#"["sessions", "rows"]"#, 5_000);
    let sinks = status(&case)["sinks"].as_array().unwrap().clone();
    assert_eq!(sinks.len(), 3);
    assert!(sinks.iter().all(|s| s["lag_epochs"] == 0 && s["epoch"].as_u64() > Some(0)), "{sinks:?}");
}

#[test]
fn going_back_takes_back_what_the_sinks_have() {
    // The quicker the machine, the more events it takes for epochs to go back among: the sinks must have rows of epochs on
    // both sides of the cut.
    let with_epochs = |events| {
        let (case, whole) = held(r#"["sessions", "rows"]"#, events);
        let epochs: BTreeSet<i64> = case.lines("rows.jsonl").iter().map(|s| s.revision.1).collect();
        let to = epochs.iter().nth(epochs.len() / 2).copied();
        (epochs.len() >= 4).then(|| (case, whole, to.unwrap() as u64))
    };
    let (case, whole, cut) = [60_000, 240_000, 960_000]
        .into_iter()
        .find_map(with_epochs)
        .expect("too few epochs to go back among");
    let newest = status(&case)["epoch"].as_u64().unwrap();
    let to = cut.to_string();
    let before = segments(&case);
    let go = |more: &[&str]| command(&case, &[&["recover", "--to", &to, "visits"], more].concat());
    // What was committed is given up only by someone who says so.
    let (code, said, _) = go(&["--yes"]);
    assert!(
        code == 6 && said.contains("COMMITTED vouches") && said.contains("`sessions` has confirmed"),
        "{said}"
    );
    let (code, said, _) = go(&["--take-back"]);
    assert!(code == 2 && said.contains("--yes"), "{said}");
    let (code, said, _) = command(&case, &["recover", "--to", "999999", "--yes", "visits"]);
    assert!(code == 4 && said.contains(&format!("epochs 1 to {newest}")), "{said}");
    assert!(segments(&case) == before, "refused, and yet something has changed");
    let (code, said, answer) = go(&["--take-back", "--yes", "--json"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(answer["given_up"], serde_json::json!([cut + 1, newest]));
    let later = case.table().into_iter().filter(|s| s.revision.1 > cut as i64);
    assert_eq!(later.count(), 0);
    assert!(case.lines("rows.jsonl").iter().all(|s| s.revision.1 <= cut as i64));
    let s = status(&case);
    assert!(s["decisions"][0]["what"].as_str().unwrap().contains("was given up"), "{s}");

    let all = runs_on_as_if_the_rest_had_never_been(&case, &s);

    // And on from there as if nothing had been.
    std::fs::write(case.path(FILE), &all).unwrap();
    let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
    std::fs::write(case.path("pipeline.toml"), text.replace("\"hold\"", "\"close\"")).unwrap();
    case.run().exits(0);
    same_sinks("gone back and on", &whole, &case);
}

#[test]
fn a_damaged_log_goes_on_from_where_it_is_sound() {
    let (case, whole) = held(r#"["sessions", "rows"]"#, 60_000);
    let last = case.segments().pop().unwrap();
    let mut bytes = std::fs::read(&last).unwrap();
    let late = bytes.len() * 3 / 4;
    bytes[late] ^= 0x10;
    std::fs::write(&last, &bytes).unwrap();
    let said = case.run().exits(5).said.clone();
    let to = said.split("recover --to ").nth(1).unwrap().split('`').next().unwrap().to_owned();
    let (code, said, _) = command(&case, &["recover", "--to", &to, "--take-back", "--yes", "visits"]);
    assert_eq!(code, 0, "{said}");
    let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
    std::fs::write(case.path("pipeline.toml"), text.replace("\"hold\"", "\"close\"")).unwrap();
    case.run().exits(0);
    same_sinks("after a damaged log", &whole, &case);
}

/// Images of key groups let the front of the log go, so that recovery reads a bounded number of segments.
#[test]
fn killed_while_images_rotate_recovery_stays_short() {
    // Two rotations of 16 blocks, one epoch each, and what sinks and seals lag behind.
    const SEGMENTS_MAX: usize = 40;
    let bytes =
        file_of(&Shop { seed: 5, events: 600_000, users: 6_000, step_ms: 20, invalid_every: 0 }.lines());
    let config = Config { end_of_input: "close".into(), ..config() };
    let case = Case::new();
    case.put(FILE, &bytes);
    case.configure(&config);
    let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
    let small = text.replace("epoch = \"10ms\"", "epoch = \"10ms\"\nsegment = \"64KiB\"");
    assert!(small.contains("segment"));
    std::fs::write(case.path("pipeline.toml"), small).unwrap();
    let oldest =
        || case.segments().first().map_or(0, |p| p.file_stem().unwrap().to_str().unwrap().parse().unwrap());
    let (mut kills, mut most) = (0, 0);
    for _ in 0..6 {
        let from: u64 = oldest();
        let mut process = case.start(&[], &[]);
        let trimmed = wait_for("the log to be trimmed", RUN_MAX, || {
            if process.ended() {
                return Some(false);
            }
            (oldest() > from.max(1)).then_some(true)
        });
        if !trimmed {
            process.outcome(RUN_MAX).exits(0);
            break;
        }
        process.kill();
        kills += 1;
        most = most.max(case.segments().len());
    }
    case.run().exits(0);
    let newest = status(&case)["epoch"].as_u64().unwrap();
    tidemill_tests::report!(
        "image rotation: {kills} kills, at most {most} segments, {newest} epochs, kept from {}",
        oldest()
    );
    assert!(kills >= 2, "only {kills} kills hit: too few events for this machine");
    assert!(most <= SEGMENTS_MAX, "{most} segments to be read");
    assert!(oldest() > 1, "epochs 1 to {newest} are all kept");
    let log = model::read(&[(&config.sources[0], FILE, &bytes)], &config.gap);
    same_sinks("after rotation", &model::sessions(&log, &BTreeSet::new(), &config.gap), &case);
    // What was trimmed is no place to go back to.
    let (code, said, _) = command(&case, &["recover", "--to", "1", "--take-back", "--yes", "visits"]);
    assert!(code == 4 && said.contains("it can go back to epochs"), "{said}");
}

/// A sink that somebody else holds stops it half way: the log is cut, and the table was not asked yet.
#[test]
fn going_back_is_finished_by_the_next_run() {
    let with_epochs = |events| {
        let (case, _) = held(r#"["rows", "sessions"]"#, events);
        let newest = case.table().iter().map(|s| s.revision.1).max().unwrap();
        (newest >= 4).then_some((case, newest))
    };
    let (case, newest) = [60_000, 240_000, 960_000]
        .into_iter()
        .find_map(with_epochs)
        .expect("too few epochs to go back among");
    // Only the newest epoch that has rows is given up: no cursor is ahead of the log then.
    let to = (newest - 1).to_string();
    let file = std::fs::File::options().append(true).open(case.path("rows.jsonl")).unwrap();
    file.lock().unwrap();
    let (code, said, _) = command(&case, &["recover", "--to", &to, "--take-back", "--yes", "visits"]);
    assert!(code == 6 && said.contains("in use"), "{code}: {said}");
    drop(file);
    assert!(case.table().iter().any(|s| s.revision.1 == newest), "the table was asked first");
    runs_on_as_if_the_rest_had_never_been(&case, &status(&case));
}

/// After going back: the input ends where it was read up to, so rows that only the abandoned branch had must not come back. The
/// whole input.
#[track_caller]
fn runs_on_as_if_the_rest_had_never_been(case: &Case, status: &Value) -> Vec<u8> {
    let offset = status["partitions"][0]["offset"].as_u64().unwrap();
    let all = std::fs::read(case.path(FILE)).unwrap();
    assert!(0 < offset && offset < all.len() as u64);
    std::fs::write(case.path(FILE), &all[..offset as usize]).unwrap();
    case.run().exits(0);
    let short = Case::new();
    short.put(FILE, &all[..offset as usize]);
    short.configure(&config());
    short.run().exits(0);
    let expected = current(&short.table());
    same_table("gone back, SQLite", &expected, &current(&case.table()));
    same_table("gone back, JSON lines", &expected, &current(&latest(case.lines("rows.jsonl"))));
    all
}
