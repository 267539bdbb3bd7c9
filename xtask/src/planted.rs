//! `cargo xtask planted`: are the tests awake? Each patch in `tests/planted/` puts one bug into a copy of the tree, and names the
//! suite that has to fail then. A suite that passes is the finding; a patch that does not apply or compile is an error of its own.

mod bug;
mod tree;

use self::bug::{Bug, Expected};
use self::tree::Tree;
use crate::steps::{self, Failure, Watched, doing, say, seconds, target_dir, workspace};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The exit code when a bug is not caught.
const NOT_CAUGHT: u8 = 3;
/// A suite is built in minutes at most, also the first time.
const BUILD_MAX: Duration = Duration::from_secs(900);
/// As what others wrote is built anyway, so that it is not built again.
const PROFILE: [&str; 2] = ["--profile=trial", "--locked"];

/// What the command line asks for.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Only patches whose name contains one of these; empty: all.
    pub(crate) only: Vec<String>,
    /// Only those that are marked as quick.
    pub(crate) quick: bool,
    /// Show them, and run nothing.
    pub(crate) list: bool,
    /// No further patch is begun after so long.
    pub(crate) within: Option<Duration>,
}

/// How many were planted and what became of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) planted: u64,
    pub(crate) caught: u64,
    /// Left out, because there was no time.
    pub(crate) left: u64,
}

/// Plants the bugs, one after the other.
pub(crate) fn run(options: &Options) -> Result<Totals, Failure> {
    let mut bugs = bug::read_all(&workspace().join("tests").join("planted"))?;
    let chosen =
        |b: &Bug| options.only.is_empty() || options.only.iter().any(|o| b.name.contains(o.as_str()));
    bugs.retain(|b| chosen(b) && (b.quick || !options.quick));
    if bugs.is_empty() {
        return Err(Failure::usage("no planted bug has such a name; see cargo xtask planted --list"));
    }
    if options.list {
        bugs.iter().for_each(|b| {
            say(&format!("{:<width$}  {}\n{:width$}  {}", b.name, b.what, "", b.suite(), width = WIDTH));
        });
        return Ok(Totals::default());
    }
    let ground = Ground::new()?;
    let begun = Instant::now();
    let mut totals = Totals::default();
    let mut findings = Vec::new();
    let mut sound = BTreeMap::new();
    for bug in &bugs {
        if options.within.is_some_and(|most| begun.elapsed() >= most) {
            totals.left += 1;
            continue;
        }
        let at = Instant::now();
        let found = ground.sound(bug, &mut sound).and_then(|()| ground.plant(bug));
        let took = seconds(at.elapsed());
        totals.planted += 1;
        let said = match &found {
            Ok(Found::Caught(by)) => format!("caught by {by}"),
            Ok(Found::Hung) => "caught: hung, as it must".to_owned(),
            Ok(Found::Missed) => "NOT CAUGHT".to_owned(),
            Err(why) if why.code == steps::INTERRUPTED => {
                return Err(found.err().unwrap_or_else(|| Failure::new("")));
            }
            Err(why) => format!("ERROR: {}", why.message),
        };
        say(&format!("  {:<width$}  {:<40}  {took:>7}  {said}", bug.name, bug.suite(), width = WIDTH));
        match found {
            Ok(Found::Caught(_) | Found::Hung) => totals.caught += 1,
            _ => findings.push(bug),
        }
    }
    say(&format!(
        "planted {} bugs in {}: {} caught{}",
        totals.planted,
        seconds(begun.elapsed()),
        totals.caught,
        if totals.left > 0 { format!(", {} left out for lack of time", totals.left) } else { String::new() }
    ));
    if findings.is_empty() {
        return Ok(totals);
    }
    for bug in &findings {
        say(&format!("not caught: {}\n  again: cargo xtask planted --only {}", bug.what, bug.name));
    }
    Err(Failure {
        code: NOT_CAUGHT,
        message: format!("{} of {} planted bugs were not caught", findings.len(), totals.planted),
    })
}

/// Columns for a patch's name.
const WIDTH: usize = 34;

/// What a suite said of a planted bug.
enum Found {
    /// Its tests failed; the first of them.
    Caught(String),
    /// It did not come to an end, and the patch says that it would not.
    Hung,
    /// It passed.
    Missed,
}

/// Where bugs are planted: a copy of the tree, what is built from it, and what was said.
struct Ground {
    tree: Tree,
    /// Of cargo: how our own crates are built.
    settings: Vec<String>,
    target: PathBuf,
    logs: PathBuf,
}

impl Ground {
    fn new() -> Result<Ground, Failure> {
        let ground = target_dir().join("planted");
        let logs = ground.join("logs");
        doing("the folder of logs", fs::create_dir_all(&logs))?;
        let tree = Tree::new(workspace(), ground.join("tree"));
        let target = ground.join("build");
        let own = tree.crates()?;
        tree::share_dependencies(&target_dir().join("trial"), &target.join("trial"), &own)?;
        // Not optimised: each patch is built in seconds.
        let settings =
            own.iter().map(|name| format!("--config=profile.trial.package.{name}.opt-level=0")).collect();
        Ok(Ground { tree, settings, target, logs })
    }

    /// Whether the suite passes without the bug: otherwise its failing would say nothing. Asked once for each suite.
    fn sound(&self, bug: &Bug, known: &mut BTreeMap<String, bool>) -> Result<(), Failure> {
        let broken = || Failure::new(format!("`{}` fails without a bug, too", bug.suite()));
        match known.get(bug.suite()) {
            Some(true) => return Ok(()),
            Some(false) => return Err(broken()),
            None => {}
        }
        self.tree.restore()?;
        let log = self.logs.join(format!("sound-{}.txt", file_name(bug.suite())));
        let passes = self.build(bug, &log).and_then(|()| self.test(bug, &log));
        known.insert(bug.suite().to_owned(), matches!(passes, Ok(Watched::Ended(s)) if s.success()));
        match passes? {
            Watched::Ended(status) if status.success() => Ok(()),
            _ => Err(broken()),
        }
    }

    /// Plants a bug, runs its suite, and takes it out again.
    fn plant(&self, bug: &Bug) -> Result<Found, Failure> {
        self.tree.restore()?;
        bug.apply(self.tree.root())?;
        let log = self.logs.join(format!("{}.txt", bug.name));
        let ended = self.build(bug, &log).and_then(|()| self.test(bug, &log));
        self.tree.restore()?;
        let said = fs::read(&log).map(|s| String::from_utf8_lossy(&s).into_owned()).unwrap_or_default();
        match (ended?, bug.expected) {
            (Watched::Ended(status), _) if status.success() => Ok(Found::Missed),
            (Watched::Hung, Expected::Hangs) => Ok(Found::Hung),
            (Watched::Hung, Expected::Fails) => {
                Err(Failure::new(format!("hung, and was stopped after {}", seconds(bug.limit))))
            }
            (Watched::Ended(_), _) => match bug::first_failed(&said) {
                Some(test) => Ok(Found::Caught(test)),
                None => {
                    Err(Failure::new(format!("no test failed, but the suite did; see {}", log.display())))
                }
            },
        }
    }

    /// Builds the suite, and the binary if it runs one. Failing here is not the tests' doing.
    fn build(&self, bug: &Bug, log: &Path) -> Result<(), Failure> {
        doing("the log", fs::write(log, ""))?;
        let mut steps: Vec<Vec<&str>> = Vec::new();
        if bug.needs_binary {
            steps.push([&["build"], &PROFILE[..], &["--workspace", "--bin", "tidemill"]].concat());
        }
        steps.push([&["test"], &PROFILE[..], &["--no-run"], bug.selection().as_slice()].concat());
        for arguments in steps {
            let ended = steps::watched("cargo", &mut self.cargo(&arguments), log, BUILD_MAX)?;
            if !matches!(ended, Watched::Ended(s) if s.success()) {
                return Err(Failure::new(format!("does not compile; see {}", log.display())));
            }
        }
        Ok(())
    }

    fn test(&self, bug: &Bug, log: &Path) -> Result<Watched, Failure> {
        let mut command = self.cargo(&[&["test"], &PROFILE[..], bug.arguments().as_slice()].concat());
        command.env("TIDEMILL_BIN", self.target.join("trial").join("tidemill"));
        command.envs(bug.variables());
        steps::watched(bug.suite(), &mut command, log, bug.limit)
    }

    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = steps::cargo(&[]);
        command
            .args(&self.settings)
            .args(arguments)
            .current_dir(self.tree.root())
            .env("CARGO_TARGET_DIR", &self.target)
            .env("CARGO_INCREMENTAL", "0");
        // Which case fails is found by the test itself; making it small is for whoever mends it.
        command.env("PROPTEST_MAX_SHRINK_ITERS", "0").env("RUST_BACKTRACE", "0");
        command
    }
}

fn file_name(suite: &str) -> String {
    suite.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}
