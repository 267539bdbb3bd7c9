//! `cargo xtask test`: all set-up and every test, one step after the other.

use crate::steps::{self, FEATURES, Failure, PURE_TARGET, cargo, say, seconds, target_dir};
use crate::{planted, runner, services};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Tests run in the profile of the binary under test (optimised, with debug assertions and overflow checks), and all
/// is built in one piece: every dependency is compiled once, with one set of features. Lints check in that profile
/// too, so that build scripts, and the C code that they compile, run once.
const PROFILE: &str = "--profile=trial";
const ALL: &str = "--workspace";
const LOCKED: &str = "--locked";

/// Programs that some tests want and can do without: name, the variable that names another, what is left out.
const OPTIONAL: [(&str, &str, &str); 2] = [
    ("schemathesis", "TIDEMILL_SCHEMATHESIS", "the admin API against its document"),
    ("promtool", "TIDEMILL_PROMTOOL", "the metrics as a collector reads them"),
];

/// Runs the steps; stops at the first failure.
pub(crate) fn run() -> Result<(), Failure> {
    let mut list = Steps { begun: Instant::now(), done: Vec::new() };
    let result = all(&mut list);
    list.sum_up(result.is_ok());
    result
}

/// Where the tests find real logs, and where they take the yardstick from. Without them they make up their own data; with a
/// path that leads nowhere they would do so too, and pass for what they are not.
const FOLDERS: [(&str, &str); 2] = [
    ("TIDEMILL_TRIALS", "the tests make up their own logs"),
    ("TIDEMILL_YARDSTICK", "nothing is compared with the yardstick"),
];

fn folders(get: impl Fn(&str) -> Option<PathBuf>) -> Result<Vec<String>, Failure> {
    FOLDERS
        .iter()
        .map(|(name, without)| match get(name) {
            None => Ok(format!("{name} is not set: {without}")),
            Some(path) if path.exists() => Ok(format!("{name} is {}", path.display())),
            Some(path) => Err(Failure::usage(&format!("{name}={}: there is no such path", path.display()))),
        })
        .collect()
}

fn all(list: &mut Steps) -> Result<(), Failure> {
    folders(|name| std::env::var_os(name).map(PathBuf::from))?.iter().for_each(|line| say(line));
    if let Some(mut add) = steps::add_target() {
        list.step("standard library for wasm32", &mut add)?;
    }
    list.step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    list.step(
        "the engine is pure: builds for wasm32",
        &mut cargo(&["build", "--locked", "-p", "tidemill-engine", "--target", PURE_TARGET]),
    )?;
    list.step(
        "lints",
        &mut cargo(&["clippy", LOCKED, ALL, FEATURES, "--all-targets", PROFILE, "--", "-D", "warnings"]),
    )?;
    list.step(
        "lints, as it is built without services",
        &mut cargo(&["clippy", LOCKED, ALL, PROFILE, "--", "-D", "warnings"]),
    )?;
    list.step(
        "the binary under test, and the tests",
        &mut cargo(&["build", LOCKED, ALL, FEATURES, "--all-targets", PROFILE]),
    )?;
    for (name, variable, what) in OPTIONAL {
        if std::env::var_os(variable).is_none() && steps::tool(name).arg("--version").output().is_err() {
            say(&format!("\nskipping {what}: there is no {name}, and {variable} names none"));
        }
    }
    let found = [services::postgres(), services::kafka(), services::google(), services::emulators()];
    say(&format!("\n{}", found.join("\n")));
    let binary = target_dir().join("trial").join("tidemill");
    // What the tests count and measure is part of what they show, and their harness keeps it to itself.
    let report = target_dir().join("tests-report.txt");
    steps::doing("the tests' report cannot be written", std::fs::write(&report, ""))?;
    let mut tests = cargo(&["test", LOCKED, ALL, FEATURES, PROFILE]);
    tests.envs(runner::variable());
    let passed = list.step("every test", tests.env("TIDEMILL_BIN", binary).env("TIDEMILL_REPORT", &report));
    say("\nwhat the tests found:");
    steps::doing("the tests' report cannot be read", std::fs::read_to_string(&report))?
        .lines()
        .for_each(|line| say(&format!("  {line}")));
    passed?;
    list.own("the tests are awake: some of tests/planted", || {
        planted::run(&planted::Options { quick: true, ..planted::Options::default() })
    })
}

/// What was done, and how long it took.
struct Steps {
    begun: Instant,
    done: Vec<(String, Duration)>,
}

impl Steps {
    fn step(&mut self, what: &str, command: &mut Command) -> Result<(), Failure> {
        self.own(what, || steps::run(what, command).map(drop))
    }

    fn own(&mut self, what: &str, step: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        say(&format!("\n==> {what}"));
        let begun = Instant::now();
        step()?;
        self.done.push((what.to_owned(), begun.elapsed()));
        Ok(())
    }

    fn sum_up(&self, passed: bool) {
        say("");
        for (what, time) in &self.done {
            say(&format!("  ok  {:>9}  {what}", seconds(*time)));
        }
        let verdict = if passed { "all passed" } else { "stopped at the step after these" };
        say(&format!("{verdict}, {} in all", seconds(self.begun.elapsed())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_is_refused() {
        let lines = folders(|name| (name == "TIDEMILL_TRIALS").then(|| env!("CARGO_MANIFEST_DIR").into()));
        assert!(lines.is_ok_and(|l| l[0].contains("xtask") && l[1].contains("is not set")));
        let wrong = folders(|_| Some("/nonexistent".into()));
        assert!(wrong.is_err_and(|e| e.code == 2 && e.message.contains("TIDEMILL_TRIALS=/nonexistent")));
    }
}
