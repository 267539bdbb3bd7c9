//! `cargo xtask test`: all set-up and every test, one step after the other.

use crate::steps::{self, Failure, cargo, say, seconds, target_dir};
use std::process::Command;
use std::time::{Duration, Instant};

/// The engine must build where there are no files, threads or clocks.
const PURE_TARGET: &str = "wasm32-unknown-unknown";

/// Runs the steps; stops at the first failure.
pub(crate) fn run() -> Result<(), Failure> {
    let mut list = Steps { begun: Instant::now(), done: Vec::new() };
    let result = all(&mut list);
    list.sum_up(result.is_ok());
    result
}

fn all(list: &mut Steps) -> Result<(), Failure> {
    if !has_target() {
        let mut add = Command::new("rustup");
        add.args(["target", "add", PURE_TARGET]);
        list.step("standard library for wasm32", &mut add)?;
    }
    list.step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    list.step(
        "the engine is pure: builds for wasm32",
        &mut cargo(&["build", "--locked", "-p", "tidemill-engine", "--target", PURE_TARGET]),
    )?;
    list.step(
        "lints",
        &mut cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    )?;
    list.step(
        "the binary under test",
        &mut cargo(&["build", "--locked", "-p", "tidemill", "--profile", "trial"]),
    )?;
    let binary = target_dir().join("trial").join("tidemill");
    list.step("every test", cargo(&["test", "--locked", "--workspace"]).env("TIDEMILL_BIN", binary))
}

/// Whether the tool chain has the target's library already; rustup may be out of reach.
fn has_target() -> bool {
    let rustc = steps::tool("rustc").args(["--print", "target-libdir", "--target", PURE_TARGET]).output();
    rustc.is_ok_and(|o| {
        o.status.success() && std::path::Path::new(String::from_utf8_lossy(&o.stdout).trim()).is_dir()
    })
}

/// What was done, and how long it took.
struct Steps {
    begun: Instant,
    done: Vec<(String, Duration)>,
}

impl Steps {
    fn step(&mut self, what: &str, command: &mut Command) -> Result<(), Failure> {
        say(&format!("\n==> {what}"));
        let time = steps::run(what, command)?;
        self.done.push((what.to_owned(), time));
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
