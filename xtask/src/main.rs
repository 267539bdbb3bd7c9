//! The project's own commands: `cargo xtask demo`, `test`, `bench`, `planted`, `prove`.
//!
//! This file reads the arguments; a command is a file. No workspace crate is used here: commands see the
//! binary as a user does.

mod bench;
mod demo;
mod planted;
mod prove;
mod rows;
mod runner;
mod services;
mod steps;
mod suite;

use std::process::ExitCode;
use std::time::Duration;
use steps::{Failure, say};

const HELP: &str = "\
The project's own commands.

Usage: cargo xtask <COMMAND> [OPTIONS]

Commands:
  demo    Build tidemill, run it on made-up shop traffic, and show sessions appear and become final
            --for TIME     end by itself after TIME (30s, 2m); without it, Ctrl-C ends it
  test    Set up what the tests need and run all of them; stops at the first failure
  bench   Measure every promise beside the yardstick; needs TIDEMILL_YARDSTICK=<its folder> and Linux
            --help         what is measured, how long it takes, and the options
            --quick        some minutes instead of half an hour
  planted Plant the bugs of tests/planted in a copy of the tree, one by one, and see that the suite that each names fails
            --only NAMES   those whose names contain one of these, with commas between
            --quick        those that `test` plants
            --list         show them, and plant none
  prove   Prove for as long as you like what `test` proves in short; `cargo xtask prove --help` says what
            --minutes N    for all parts together (default 20)
            --only PARTS   of these names, with commas between
            --totals       show what all runs have counted, and run nothing

Options:
  -h, --help    Show this

Environment:
  TIDEMILL_TRIALS       folder of real logs, for the tests; without it they make up logs of the same quirks
  TIDEMILL_REQUIRE_SERVICES  1, or names as postgres,kafka: tests fail where such a service is missing, instead of leaving it out
  TIDEMILL_YARDSTICK    folder of the yardstick's source, for bench, and for the tests if it is there

Exit codes: 0 done, 2 usage, 3 a bug was not caught (planted) or a part failed (prove), 130 interrupted, else that of the step that
failed; those of bench are in its help.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((runner::NAME, program)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest))
    {
        return runner::run(program).unwrap_or_else(|failure| told(&failure));
    }
    match command(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => told(&failure),
    }
}

fn told(failure: &Failure) -> ExitCode {
    say(&format!("xtask: {}", failure.message));
    ExitCode::from(failure.code)
}

fn command(arguments: &[String]) -> Result<(), Failure> {
    let Some((name, rest)) = arguments.split_first() else {
        say(HELP.trim_end());
        return Err(Failure::usage("name a command"));
    };
    // Which has a help of its own.
    if name != "bench" && arguments.iter().any(|a| a == "-h" || a == "--help") {
        match name.as_str() {
            "prove" => say(&prove::help()),
            _ => say(HELP.trim_end()),
        }
        return Ok(());
    }
    let mut options = Options(rest.to_vec());
    match name.as_str() {
        "demo" => {
            let length = options.value("--for")?.map(|t| duration(&t)).transpose()?;
            options.finish()?;
            demo::run(length)
        }
        "test" => {
            options.finish()?;
            suite::run()
        }
        "bench" => bench::run(rest),
        "planted" => {
            let only = options.value("--only")?.map_or_else(Vec::new, |names| list(&names));
            let (quick, list) = (options.flag("--quick"), options.flag("--list"));
            options.finish()?;
            let options = planted::Options { only, quick, ..planted::Options::default() };
            if list { planted::list(&options) } else { planted::run(&options) }
        }
        "prove" => {
            let minutes = options.number("--minutes", 20)?;
            let only = options.value("--only")?.map_or_else(Vec::new, |names| list(&names));
            let totals = options.flag("--totals");
            options.finish()?;
            if totals { prove::show_totals() } else { prove::run(&prove::Options { minutes, only }) }
        }
        other => Err(Failure::usage(&format!(
            "no command `{other}`; there are demo, test, bench, planted and prove"
        ))),
    }
}

/// Arguments not yet asked for.
struct Options(Vec<String>);

impl Options {
    fn flag(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|a| a != name);
        self.0.len() < before
    }

    /// The value of `--name VALUE` or `--name=VALUE`.
    fn value(&mut self, name: &str) -> Result<Option<String>, Failure> {
        let assigned = format!("{name}=");
        let Some(at) = self.0.iter().position(|a| a == name || a.starts_with(&assigned)) else {
            return Ok(None);
        };
        let first = self.0.remove(at);
        match first.strip_prefix(&assigned) {
            Some(value) => Ok(Some(value.to_owned())),
            None if at < self.0.len() => Ok(Some(self.0.remove(at))),
            None => Err(Failure::usage(&format!("{name} needs a value"))),
        }
    }

    fn number(&mut self, name: &str, default: u64) -> Result<u64, Failure> {
        let Some(text) = self.value(name)? else { return Ok(default) };
        match text.replace('_', "").parse() {
            Ok(n) if n > 0 => Ok(n),
            _ => Err(Failure::usage(&format!("{name} takes a whole number above 0, not `{text}`"))),
        }
    }

    fn finish(self) -> Result<(), Failure> {
        match self.0.first() {
            Some(a) => Err(Failure::usage(&format!("`{a}` is not known here; see cargo xtask --help"))),
            None => Ok(()),
        }
    }
}

/// Names with commas between.
fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

/// `30s`, `2m`, `500ms`, or seconds without a unit.
fn duration(text: &str) -> Result<Duration, Failure> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        _ => 0,
    };
    match text[..digits].parse::<u64>() {
        Ok(n) if n > 0 && unit_ms > 0 => Ok(Duration::from_millis(n.saturating_mul(unit_ms))),
        _ => Err(Failure::usage(&format!("`{text}` is not a time; write 30s or 2m"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Options {
        Options(line.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn options_are_read_in_any_order_and_nothing_is_ignored() {
        let mut o = options("--list --for=5s --other 2");
        assert!(o.flag("--list") && !o.flag("--list"));
        assert_eq!(o.value("--other").unwrap().as_deref(), Some("2"));
        assert_eq!(o.value("--for").unwrap().as_deref(), Some("5s"));
        assert_eq!(o.value("--for").unwrap(), None);
        o.finish().unwrap();
        assert_eq!(options("--what").finish().unwrap_err().code, 2);
        assert_eq!(options("--for").value("--for").unwrap_err().code, 2);
        assert_eq!(options("--minutes 1_000").number("--minutes", 1).unwrap(), 1_000);
        assert_eq!(options("--minutes 0").number("--minutes", 1).unwrap_err().code, 2);
    }

    #[test]
    fn times_have_units() {
        let ms = |t| duration(t).map(|d| d.as_millis()).ok();
        assert_eq!([ms("30s"), ms("2m"), ms("7"), ms("9ms")], [30_000, 120_000, 7_000, 9].map(Some));
        assert_eq!([ms(""), ms("s"), ms("0s"), ms("3h"), ms("-1s")], [None; 5]);
    }
}
