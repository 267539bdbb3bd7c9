//! `cargo xtask prove --minutes N`: the long form of the proofs that `cargo xtask test` has in short. The minutes are shared out
//! among the parts; each goes on until its own are over, with other seeds than all its runs before.
//!
//! What was counted is kept in `target/prove/totals.jsonl`, so that several runs add up: those of one state of the sources, and all.

mod part;
mod totals;

use self::part::{PARTS, Part};
use self::totals::{Counted, Totals};
use crate::steps::{self, FEATURES, Failure, cargo, doing, say, seconds, target_dir, workspace};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The exit code when a part has failed.
const FAILED: u8 = 3;

/// What the command line asks for.
#[derive(Debug)]
pub(crate) struct Options {
    /// Minutes for all parts together, builds not counted.
    pub(crate) minutes: u64,
    /// Only these parts; empty: all.
    pub(crate) only: Vec<String>,
}

/// What `--help` says.
pub(crate) fn help() -> String {
    let parts: Vec<String> = PARTS
        .iter()
        .map(|p| {
            let wanted =
                p.wanted.map_or_else(String::new, |n| format!("; {} in all runs", totals::grouped(n)));
            format!("  {:<12}{:>3}  {}{wanted}", p.name, p.share, p.what)
        })
        .collect();
    format!(
        "\
Proves for as long as you like what `cargo xtask test` proves in short.

Usage: cargo xtask prove [--minutes N] [--only PARTS] [--totals]

The minutes are shared out among the parts; building comes on top. Every run takes other seeds than those before it, and adds what it
has counted to target/prove/totals.jsonl. The table in the end shows this run, all runs over the present sources, and all runs ever.

Parts, with their shares of the time:
{}

Options:
  --minutes N     for all parts together (default 20)
  --only PARTS    of these names, with commas between: --only images,kills
  --totals        show what all runs have counted, and run nothing

What fails prints the line that shows it again, the other parts go on, and the exit code is 3. What a part has said stands in
target/prove/PART.txt.",
        parts.join("\n")
    )
}

/// Runs the parts.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let chosen: Vec<&Part> = match options.only.iter().find(|o| !PARTS.iter().any(|p| p.name == o.as_str())) {
        Some(unknown) => {
            return Err(Failure::usage(&format!(
                "there is no part `{unknown}`; see cargo xtask prove --help"
            )));
        }
        None => PARTS
            .iter()
            .filter(|p| options.only.is_empty() || options.only.iter().any(|o| o == p.name))
            .collect(),
    };
    let mut prove = Prove::new()?;
    let chosen = prove.there(chosen)?;
    prove.build(&chosen)?;
    let shares: u64 = chosen.iter().map(|p| p.share).sum();
    let all = Duration::from_secs(60 * options.minutes);
    let begun = Instant::now();
    for part in chosen {
        let time = all * u32::try_from(part.share).unwrap_or(1) / u32::try_from(shares).unwrap_or(1).max(1);
        prove.part(part, time)?;
    }
    say(&format!("\nproved for {}, over sources {}", seconds(begun.elapsed()), prove.totals.sources()));
    prove.totals.table().iter().for_each(|line| say(line));
    if prove.again.is_empty() {
        return Ok(());
    }
    say("\nfailed; to see it again:");
    prove.again.iter().for_each(|line| say(&format!("  {line}")));
    Err(Failure { code: FAILED, message: format!("{} things failed", prove.again.len()) })
}

/// Shows what all runs have counted.
pub(crate) fn show_totals() -> Result<(), Failure> {
    let prove = Prove::new()?;
    say(&format!("sources {}", prove.totals.sources()));
    prove.totals.table().iter().for_each(|line| say(line));
    Ok(())
}

/// What the parts share.
struct Prove {
    folder: PathBuf,
    binary: PathBuf,
    totals: Totals,
    /// What the workspace can build, as cargo says it.
    metadata: String,
    /// Lines to paste.
    again: Vec<String>,
}

impl Prove {
    fn new() -> Result<Prove, Failure> {
        let folder = target_dir().join("prove");
        doing("the folder of totals", fs::create_dir_all(&folder))?;
        let totals = Totals::read(&folder.join("totals.jsonl"), &workspace())?;
        let metadata = cargo(&["metadata", "--no-deps", "--format-version=1"]).output();
        let metadata = String::from_utf8_lossy(&doing("cargo metadata", metadata)?.stdout).into_owned();
        let binary = target_dir().join("trial").join("tidemill");
        Ok(Prove { binary, folder, totals, metadata, again: Vec::new() })
    }

    /// Whether the workspace has a binary or test of this name.
    fn has(&self, name: &str) -> bool {
        self.metadata.contains(&format!("\"name\":\"{name}\""))
    }

    /// The parts of which there is anything to run.
    fn there<'p>(&self, parts: Vec<&'p Part>) -> Result<Vec<&'p Part>, Failure> {
        // All of them need the host; what else they build is their own.
        let own = |b: &&str| name_of(b) != "tidemill";
        let is_there = |p: &Part| {
            p.builds.is_empty() || p.builds.iter().filter(|b| own(b)).any(|b| self.has(name_of(b)))
        };
        let (there, missing): (Vec<_>, Vec<_>) = parts.into_iter().partition(|p| is_there(p));
        missing.iter().for_each(|p| say(&format!("left out: {}, which this tree does not have", p.name)));
        if there.is_empty() { Err(Failure::usage("there is nothing to prove")) } else { Ok(there) }
    }

    /// Builds what the parts run, in one piece, as the tests do: dependencies are compiled once.
    fn build(&self, parts: &[&Part]) -> Result<(), Failure> {
        let targets = parts.iter().flat_map(|p| p.builds).copied();
        let mut targets: Vec<&str> = targets.filter(|t| self.has(name_of(t))).collect();
        if targets.is_empty() {
            return Ok(());
        }
        targets.sort_unstable();
        targets.dedup();
        say("building what the parts run");
        let always = ["build", "--locked", "--quiet", "--workspace", "--profile=trial", FEATURES];
        steps::run("the build", &mut cargo(&[&always, targets.as_slice()].concat())).map(drop)
    }

    fn part(&mut self, part: &Part, time: Duration) -> Result<(), Failure> {
        say(&format!("\n==> {}: {}, for {}", part.name, part.what, seconds(time)));
        let log = self.folder.join(format!("{}.txt", part.name));
        doing("the log", fs::write(&log, ""))?;
        let begun = Instant::now();
        let before = self.again.len();
        (part.run)(self, &log, begun + time)?;
        let failed = self.again.len() - before;
        let verdict = if failed > 0 { format!("FAILED, see {}", log.display()) } else { "held".to_owned() };
        say(&format!("    {}: {} in {}", verdict, self.totals.of_run(part.name), seconds(begun.elapsed())));
        Ok(())
    }

    /// Adds to what a part has counted, at once: a run that is interrupted has not run for nothing.
    fn count(&mut self, part: &'static str, counts: BTreeMap<String, u64>) -> Result<(), Failure> {
        self.totals.add(Counted { part: part.to_owned(), counts })
    }
}

/// The name in `--test=NAME`.
fn name_of(target: &str) -> &str {
    target.split_once('=').map_or(target, |(_, name)| name)
}
