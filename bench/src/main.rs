//! The benchmark: every promise of the design beside what was measured. `cargo xtask bench` builds what it needs and starts it.
//!
//! This file reads the arguments and makes one measurement after the other (`measure`); what they find goes to the terminal, to
//! `results.json`, and into the docs (`page`, `plot`). It knows nothing of the host's code: it runs the binary, and asks it as
//! any client does.

mod child;
mod cluster;
mod compare;
mod config;
mod error;
mod figures;
mod findings;
mod host;
mod lab;
mod machine;
mod measure;
mod page;
mod plot;
mod posting;
mod promises;
mod results;
mod traffic;

use crate::error::{Doing, Failure, Outcome};
use crate::lab::{Lab, Sizes};
use crate::measure::Measurement;
use crate::results::{Results, Section};
use clap::Parser;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

const AFTER: &str = "\
What is measured, each by its name for --only:

{MEASUREMENTS}

Every figure that is a ratio comes from runs by turns, each round in another order, and is the median over rounds of the ratio
within a round: what slows the machine for a minute slows both. Times of the processor are user and system time of the whole
process. Beside the runs nothing else should work on the machine; if it does, nothing is measured without --force.

Examples:
  cargo xtask bench                        all of it, in some 30 minutes; writes the tables and plots of the docs
  cargo xtask bench --quick                all of it in some 5 minutes; rough figures, and the docs stay as they are
  cargo xtask bench --only whole,stage     two measurements; those of the last run stay beside them
  cargo xtask bench --only whole --bin target/trial/tidemill --quick
                                           another build, which is not built first
  cargo xtask bench --render               tables and plots once more, from results.json

Results: target/bench/results.json (of --quick: results-quick.json), docs/performance.md between its markers,
docs/performance/*.svg, and the ratios in README.md. Input files stay in target/bench, some 10 GiB of them.

Environment:
  TIDEMILL_YARDSTICK    folder of the yardstick's source

Exit codes: 0 done (with missed promises too, if each has its reason), 1 a run failed, 2 usage, or the machine is busy,
3 results differ from the yardstick's, or a full run misses a promise and its reason is not written down (promises.rs)";

/// Measure every promise, beside the yardstick
///
/// Runs tidemill and the yardstick, a hand-written program that does the same job on one thread without checkpoints and plugins, by
/// turns on the same events, and prints each promise beside what was measured.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask bench", after_help = after_help(), term_width = 120)]
struct Arguments {
    /// Only these measurements, by name
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Small inputs and few rounds: minutes, and rough figures
    #[arg(long)]
    quick: bool,
    /// Events of the whole job [default: 10000000, with --quick 1000000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(10_000..))]
    events: Option<u64>,
    /// Rounds of runs by turns [default: 5, with --quick 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rounds: Option<u64>,
    /// The tidemill to measure [default: target/release/tidemill, which is built first]
    #[arg(long, value_name = "PATH")]
    bin: Option<PathBuf>,
    /// Measure although the machine is busy
    #[arg(long)]
    force: bool,
    /// Write the docs after a quick or partial run too
    #[arg(long)]
    docs: bool,
    /// Measure nothing: write tables, plots and docs from the results of the last full run
    #[arg(long, conflicts_with_all = ["quick", "only"])]
    render: bool,
    /// Folder of the yardstick's programs
    #[arg(long, value_name = "PATH", hide = true, default_value = "target/yardstick/release")]
    yardstick: PathBuf,
    /// Reads a topic to its end and no more, as a program beside tidemill
    #[arg(long, value_names = ["BROKERS", "TOPIC"], num_args = 2, hide = true)]
    consume: Option<Vec<String>>,
    /// The project's folder
    #[arg(long, value_name = "PATH", hide = true, default_value = ".")]
    workspace: PathBuf,
    /// Where results and inputs are kept
    #[arg(long, value_name = "PATH", hide = true, default_value = "target/bench")]
    folder: PathBuf,
}

fn after_help() -> String {
    let line = |m: &Measurement| {
        format!("  {:<10} {} ({}; quick {})", m.name, m.about, minutes(m.seconds.1), minutes(m.seconds.0))
    };
    let lines: Vec<String> = measure::ALL.iter().map(line).collect();
    AFTER.replace("{MEASUREMENTS}", &lines.join("\n"))
}

/// About how long, for whoever waits.
fn minutes(seconds: u32) -> String {
    if seconds < 100 { format!("about {seconds} s") } else { format!("about {} min", (seconds + 30) / 60) }
}

/// One line to the user. A reader that went away is no reason to stop.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // What was found stands above.
            let _ = writeln!(std::io::stderr(), "bench: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

fn run(arguments: &Arguments) -> Outcome<()> {
    if let Some([brokers, topic]) = arguments.consume.as_deref() {
        return cluster::consume(brokers, topic);
    }
    let chosen = chosen(&arguments.only)?;
    let absolute = |path: &Path| std::path::absolute(path).doing(path.display());
    let (workspace, folder) = (absolute(&arguments.workspace)?, absolute(&arguments.folder)?);
    fs::create_dir_all(&folder).doing(folder.display())?;
    let kept = folder.join(if arguments.quick { "results-quick.json" } else { "results.json" });
    if arguments.render {
        let results = Results::read(&kept)?;
        show(&results);
        return page::write(&results, &workspace);
    }
    let lab = Lab {
        bin: absolute(arguments.bin.as_deref().unwrap_or(Path::new("target/release/tidemill")))?,
        yardstick: absolute(&arguments.yardstick)?,
        workspace: workspace.clone(),
        folder,
        sizes: Sizes {
            quick: arguments.quick,
            events: arguments.events.unwrap_or(if arguments.quick { 1_000_000 } else { 10_000_000 }),
            rounds: arguments.rounds.unwrap_or(if arguments.quick { 2 } else { 5 }),
        },
        begun: Instant::now(),
    };
    if !Path::new("/proc/self/stat").exists() {
        return Err(Failure::usage("the benchmark reads /proc, so it runs on Linux only"));
    }
    lab::must_be_there(&[("tidemill", &lab.bin), ("the yardstick", &lab.yardstick.join("native"))])?;
    let forced = match machine::must_be_quiet() {
        Ok(()) => false,
        Err(why) if arguments.force => {
            say(&format!("warning: {why}"));
            true
        }
        Err(why) => return Err(why),
    };
    let whole = arguments.only.is_empty();
    // A new build of the rule's component, whatever stood there.
    lab.component("plugins/gap-sessions")?;
    let mut results = Results {
        day: jiff::Timestamp::now().strftime("%F").to_string(),
        machine: machine::describe(),
        version: version(&lab.bin)?,
        quick: arguments.quick,
        sections: Vec::new(),
    };
    let older = if whole { None } else { Results::read(&kept).ok() };
    let all: u32 = chosen.iter().map(|m| if arguments.quick { m.seconds.0 } else { m.seconds.1 }).sum();
    say(&format!(
        "{}, {}; {} measurements, {}",
        results.version,
        results.machine,
        chosen.len(),
        minutes(all)
    ));
    for (n, m) in chosen.iter().enumerate() {
        let seconds = if arguments.quick { m.seconds.0 } else { m.seconds.1 };
        lab.say(&format!("[{}/{}] {}: {}, {}", n + 1, chosen.len(), m.name, m.about, minutes(seconds)));
        let (begun, load_average) = (Instant::now(), machine::load_average());
        let found = (m.run)(&lab)?;
        found.tables.iter().for_each(|t| say(&page::terminal(t)));
        found.notes.iter().for_each(|n| say(n));
        results.sections.push(Section {
            name: m.name.to_owned(),
            about: m.about.to_owned(),
            forced,
            load_average,
            seconds: begun.elapsed().as_secs_f64(),
            found,
        });
        // Each as soon as it is there: a run that fails later has not been in vain.
        merged(&results, older.as_ref()).write(&kept)?;
    }
    let results = merged(&results, older.as_ref());
    show(&results);
    say(&format!("results: {}", kept.display()));
    if arguments.docs || (whole && !arguments.quick) {
        page::write(&results, &workspace)?;
        say("written: docs/performance.md, docs/performance/*.svg, README.md");
    }
    match results.unexplained() {
        missed if missed.is_empty() => Ok(()),
        missed => {
            Err(Failure::differs(format!("missed, and no reason is written down: {}", missed.join("; "))))
        }
    }
}

fn chosen(only: &[String]) -> Outcome<Vec<&'static Measurement>> {
    let names = || measure::ALL.iter().map(|m| m.name).collect::<Vec<_>>().join(", ");
    if let Some(wrong) = only.iter().find(|name| !measure::ALL.iter().any(|m| m.name == name.as_str())) {
        return Err(Failure::usage(format!("--only: there is no `{wrong}`; there are {}", names())));
    }
    Ok(measure::ALL.iter().filter(|m| only.is_empty() || only.iter().any(|name| name == m.name)).collect())
}

/// What was measured now, and what stands from before beside it, in the order of measurements.
fn merged(now: &Results, older: Option<&Results>) -> Results {
    let mut all = now.clone();
    for section in older.iter().flat_map(|o| &o.sections) {
        if !all.sections.iter().any(|s| s.name == section.name) {
            all.sections.push(section.clone());
        }
    }
    all.sections.sort_by_key(|s| measure::ALL.iter().position(|m| m.name == s.name));
    all
}

fn show(results: &Results) {
    say("");
    say(&page::terminal(&results.table()));
    results.reasons().iter().for_each(|r| say(r));
}

fn version(bin: &Path) -> Outcome<String> {
    let out = Command::new(bin).arg("--version").output().doing(bin.display())?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn measurements_are_chosen_by_name_in_their_own_order() {
        let names = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|n| (*n).to_owned()).collect();
            chosen(&only).map(|all| all.iter().map(|m| m.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["stage", "whole"]).unwrap(), ["whole", "stage"]);
        assert_eq!(names(&[]).unwrap().len(), measure::ALL.len());
        let wrong = names(&["whole", "hole"]).unwrap_err();
        assert!(wrong.code == 2 && wrong.to_string().contains("`hole`"), "{wrong}");
    }

    #[test]
    fn what_was_measured_before_stays_beside() {
        let mut now = results(&[("lanes.wasm.ratio", 1.0)]);
        now.sections[0].name = "lanes".to_owned();
        let before = results(&[("whole.gap-sessions.ratio", 1.2)]);
        let mut stale = before.clone();
        stale.sections[0].name = "lanes".to_owned();
        stale.sections[0].found.value("lanes.wasm.ratio", 9.0);
        let all = merged(&now, Some(&before));
        assert_eq!(all.sections.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["whole", "lanes"]);
        assert_eq!(merged(&now, Some(&stale)).values()["lanes.wasm.ratio"].to_bits(), 1.0_f64.to_bits());
    }

    #[test]
    fn a_quick_run_takes_minutes_and_a_full_one_less_than_40() {
        let all = |of: fn(&Measurement) -> u32| measure::ALL.iter().map(of).sum::<u32>();
        assert!(all(|m| m.seconds.0) <= 6 * 60 && all(|m| m.seconds.1) <= 40 * 60);
        Arguments::parse_from(["bench", "--only", "whole,stage", "--quick", "--events", "20000"]);
    }
}
