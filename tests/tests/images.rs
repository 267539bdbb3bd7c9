//! A power cut at any moment: disks rebuilt from what a real run did to its files, each of them recovered and run to the end.
//!
//! The bug family: something that was told, sent or trimmed before it was synced, and a recovery that takes torn or reordered
//! writes for what they are not. `TIDEMILL_IMAGES` (default 240) says how many disks, `TIDEMILL_IMAGES_SEED` which.
//! One in eight is cut off once more while it recovers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tidemill_tests::api::Api;
use tidemill_tests::faults;
use tidemill_tests::images::{self, Disk, Keep, Op};
use tidemill_tests::model::{self, Format, Gap, Match, Source, Unit};
use tidemill_tests::traffic::{Rng, Shop, delayed, file_of};
use tidemill_tests::{Case, Config, Session, binary, env_number, only_invalid, report, same_sinks, wait_for};

const FILE: &str = "in.jsonl";
const RUN_MAX: Duration = Duration::from_secs(60);
/// How the recorded run's input grows: each step is some epochs.
const STEPS: usize = 24;
const EVENTS: u64 = 2_400;

/// Everything that a run makes.
const MADE: [&str; 6] =
    ["state", "sessions.db", "sessions.db-wal", "sessions.db-shm", "rows.jsonl", "dead.jsonl"];

fn config(session: Session, follow: bool) -> Config {
    let kind = |v: &str| Some(Match { field: "kind".into(), values: vec![v.into()] });
    let more = if follow { "follow = true\nidle = \"1h\"" } else { "" };
    let source = Source {
        id: Some("id".into()),
        fields: vec![("kind".into(), "type".into())],
        disorder_ms: 5_000,
        more: more.into(),
        ..Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis)
    };
    let gap = Gap { start: kind("login"), end: kind("purchase"), ..Gap::of_seconds(20, false) };
    let mut config = Config { session, ..Config::new(source, gap) };
    config.epoch = "10ms".into();
    config.lateness_ms = 10_000;
    config.listen = follow.then(|| "127.0.0.1:0".to_owned());
    config
}

/// Runs with everything recorded that it does to its files; the trace.
fn recorded(case: &Case, run: impl FnOnce(&[(&str, String)])) -> Vec<Op> {
    let trace = case.path("trace");
    let _ = fs::remove_file(&trace);
    let under = format!("{}/", case.path("").to_str().unwrap().trim_end_matches('/'));
    run(&[faults::recorder(), ("RECORD_UNDER", under), ("RECORD_TO", trace.to_str().unwrap().to_owned())]);
    images::read(&trace)
}

/// A run whose input grows step by step, and is stopped then.
fn record(case: &Case, lines: &[tidemill_tests::traffic::Timed]) -> Vec<Op> {
    recorded(case, |environment| {
        let append = |part: &[tidemill_tests::traffic::Timed]| {
            use std::io::Write as _;
            let mut file = fs::File::options().create(true).append(true).open(case.path(FILE)).unwrap();
            file.write_all(&file_of(part)).unwrap();
        };
        let mut parts = lines.chunks(lines.len() / STEPS);
        let mut read = 0;
        let mut next = |read: &mut u64| {
            let part = parts.next()?;
            append(part);
            *read += part.len() as u64;
            Some(())
        };
        next(&mut read);
        let process = case.start(&[], environment);
        let api = Api::of(case, &process);
        loop {
            wait_for("the step to be committed", RUN_MAX, || {
                let shown = api.get("/api/v1/pipelines/visits");
                (shown["counters"]["records"].as_u64() == Some(read)).then_some(())
            });
            if next(&mut read).is_none() {
                break;
            }
        }
        process.terminate();
        process.outcome(RUN_MAX).exits(0);
    })
}

/// The greatest epoch that a sink has been given before each op.
fn delivered(ops: &[Op]) -> Vec<u64> {
    let mut rows: BTreeSet<u64> = BTreeSet::new();
    let mut greatest = 0;
    ops.iter()
        .map(|op| {
            match op {
                Op::Create(path, inode) if path == Path::new("rows.jsonl") => drop(rows.insert(*inode)),
                Op::Write(inode, _, bytes) if rows.contains(inode) => {
                    for line in String::from_utf8_lossy(bytes).lines() {
                        let row: Option<serde_json::Value> = serde_json::from_str(line).ok();
                        let epoch = row.and_then(|r| r["epoch"].as_u64()).unwrap_or(0);
                        greatest = greatest.max(epoch);
                    }
                }
                _ => {}
            }
            greatest
        })
        .collect()
}

/// The newest epoch that is found on a disk; 0: none.
fn found(case: &Case) -> u64 {
    let output = std::process::Command::new(binary())
        .arg("status")
        .arg(case.path("pipeline.toml"))
        .arg("--json")
        .current_dir(case.path(""))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "status: {text}{}", String::from_utf8_lossy(&output.stderr));
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    status["pipelines"][0]["epoch"].as_u64().unwrap_or(0)
}

fn clear(case: &Case) {
    for name in MADE {
        let path = case.path(name);
        let gone = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        assert!(gone.is_ok() || !case.path(name).exists());
    }
}

/// Everything that a run made, as a disk on which it is synced.
fn disk_of(case: &Case) -> Disk {
    let (mut files, mut dirs) = (Vec::new(), Vec::new());
    let mut open: Vec<PathBuf> = MADE.iter().map(PathBuf::from).collect();
    while let Some(path) = open.pop() {
        let at = case.path(path.to_str().unwrap());
        if at.is_dir() {
            open.extend(fs::read_dir(&at).unwrap().flatten().map(|e| path.join(e.file_name())));
            dirs.push(path);
        } else if at.is_file() {
            files.push((path, at.metadata().unwrap().ino(), fs::read(&at).unwrap()));
        }
    }
    Disk::of(&files, &dirs)
}

/// What SQLite keeps in memory that it shares is no file's content after a power cut.
fn without_shared_memory(ops: Vec<Op>) -> Vec<Op> {
    let is_shm = |path: &Path| path.to_str().unwrap().ends_with("-shm");
    ops.into_iter().filter(|op| !matches!(op, Op::Create(p, _) | Op::Unlink(p) if is_shm(p))).collect()
}

fn power_cuts(session: Session, seed: u64, wanted: u64) {
    let what = format!("{session:?}");
    let case = Case::in_memory();
    case.configure(&config(session.clone(), true));
    let lines = Shop { seed, events: EVENTS, users: 60, step_ms: 40, invalid_every: 300 }.lines();
    let lines = delayed(&lines, seed, 4_900, true);
    let mut disk = disk_of(&case);
    let ops = without_shared_memory(record(&case, &lines));
    let delivered = delivered(&ops);
    // On a quick machine two steps may fall into one epoch.
    assert!(
        delivered.last().is_some_and(|e| *e > STEPS as u64 / 2),
        "too few epochs: {:?}",
        delivered.last()
    );
    // From here on the log is complete: what a run does from an image has an end.
    case.configure(&config(session, false));
    let config = config(Session::Builtin, false);
    let bytes = fs::read(case.path(FILE)).unwrap();
    let log = model::read(&[(&config.sources[0], FILE, &bytes)], &config.gap);
    let expected = model::sessions(&log, &BTreeSet::new(), &config.gap);
    let mut rng = Rng::new(seed);
    // Moments, evenly over the run; those between a write and its sync are most of them.
    let mut moments: Vec<(usize, Keep)> = (0..wanted)
        .map(|n| {
            let at =
                (n * ops.len() as u64 / wanted) as usize + rng.below(1 + ops.len() as u64 / wanted) as usize;
            let keep = match n % 5 {
                0 => Keep::Nothing,
                1 => Keep::Everything,
                _ => Keep::Some(seed ^ n << 8),
            };
            (at.min(ops.len()), keep)
        })
        .collect();
    moments.sort_by_key(|(at, _)| *at);
    let (mut done, mut twice, mut epochs) = (0, 0, BTreeMap::<u64, u64>::new());
    for (n, (at, keep)) in moments.into_iter().enumerate() {
        ops[done..at].iter().for_each(|op| disk.apply(op));
        done = at;
        clear(&case);
        disk.write(&case.path(""), keep);
        let name = format!("{what}, image {n}: {at} of {} ops, {keep:?}", ops.len());
        let epoch = found(&case);
        let sent = at.checked_sub(1).map_or(0, |last| delivered[last]);
        assert!(epoch >= sent, "{name}: epoch {epoch} is found, and {sent} had been sent");
        *epochs.entry(epoch).or_default() += 1;
        if n % 8 == 7 {
            // Again, while it recovers.
            let before = disk_of(&case);
            let recovery = without_shared_memory(recorded(&case, |environment| {
                case.start(&[], environment).outcome(RUN_MAX).exits(0);
            }));
            let cut = rng.below(recovery.len() as u64 + 1) as usize;
            let mut disk = before;
            recovery[..cut].iter().for_each(|op| disk.apply(op));
            clear(&case);
            disk.write(&case.path(""), Keep::Some(seed + n as u64));
            assert!(found(&case) >= epoch, "{name}: recovery has lost an epoch");
            twice += 1;
        }
        let outcome = case.run();
        assert_eq!(outcome.code, Some(0), "{name}: {}", outcome.said);
        same_sinks(&name, &expected, &case);
        only_invalid(&name, &log, &case.letters());
    }
    report!(
        "power cuts, {what}: {wanted} disks of {} ops recovered, to {} different epochs; {twice} cut off again",
        ops.len(),
        epochs.len()
    );
    assert!(wanted < 100 || epochs.len() > STEPS, "too few epochs were cut at: {epochs:?}");
}

#[test]
fn whatever_a_power_cut_leaves_is_recovered() {
    power_cuts(
        Session::Builtin,
        env_number("TIDEMILL_IMAGES_SEED", 1),
        env_number("TIDEMILL_IMAGES", 240) / 2,
    );
}

#[test]
fn whatever_a_power_cut_leaves_is_recovered_by_a_component() {
    let component = Session::GAPS[1].clone();
    power_cuts(component, env_number("TIDEMILL_IMAGES_SEED", 1) + 1, env_number("TIDEMILL_IMAGES", 240) / 2);
}
