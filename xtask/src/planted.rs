//! `cargo xtask planted`: are the tests awake? Each patch in `tests/planted/` puts one bug into a copy of the tree, and names the
//! suite that has to fail then. A suite that passes is the finding; a patch that does not apply or compile is an error of its own.

mod bug;
mod tree;

use self::bug::{Bug, Expected};
use self::tree::Tree;
use crate::steps::{self, FEATURES, Failure, Watched, doing, say, seconds, target_dir, workspace};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The exit code when a bug is not caught.
const NOT_CAUGHT: u8 = 3;
/// A suite is built in minutes, the first time in more of them where the machine has other work.
const BUILD_MAX: Duration = Duration::from_secs(3_600);
/// As what others wrote is built anyway, so that it is not built again.
const PROFILE: [&str; 2] = ["--profile=trial", "--locked"];

/// What the command line asks for.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Only patches whose name contains one of these; empty: all.
    pub(crate) only: Vec<String>,
    /// Only those that are marked as quick.
    pub(crate) quick: bool,
    /// Names of those that are planted after the others.
    pub(crate) known: BTreeSet<String>,
    /// How long patches are begun, once the suites are built and have passed without one.
    pub(crate) time: Option<Duration>,
}

/// What became of the bugs that were planted, by name.
#[derive(Debug, Default)]
pub(crate) struct Planting {
    pub(crate) caught: Vec<String>,
    /// Not caught, or not to be planted.
    pub(crate) missed: Vec<String>,
    /// Left out, because there was no time.
    pub(crate) left: Vec<String>,
}

impl Planting {
    pub(crate) fn planted(&self) -> u64 {
        (self.caught.len() + self.missed.len()) as u64
    }
}

fn folder() -> PathBuf {
    workspace().join("tests").join("planted")
}

/// The names of all planted bugs.
pub(crate) fn names() -> Result<Vec<String>, Failure> {
    Ok(bug::read_all(&folder())?.into_iter().map(|b| b.name).collect())
}

fn chosen(options: &Options) -> Result<Vec<Bug>, Failure> {
    let mut bugs = bug::read_all(&folder())?;
    let chosen =
        |b: &Bug| options.only.is_empty() || options.only.iter().any(|o| b.name.contains(o.as_str()));
    bugs.retain(|b| chosen(b) && (b.quick || !options.quick));
    if bugs.is_empty() {
        return Err(Failure::usage("no planted bug has such a name; see cargo xtask planted --list"));
    }
    // Those with one suite follow each other: less is built anew.
    bugs.sort_by_key(|b| (options.known.contains(&b.name), b.needs_binary, b.suite().to_owned()));
    Ok(bugs)
}

/// Shows the bugs, and plants none.
pub(crate) fn list(options: &Options) -> Result<(), Failure> {
    for bug in chosen(options)? {
        say(&format!("{:<WIDTH$}  {}\n{:WIDTH$}  {}", bug.name, bug.what, "", bug.suite()));
    }
    Ok(())
}

/// Plants the bugs; one that is not caught is a failure.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let planting = plant(options)?;
    let missed = planting.missed.len();
    if missed == 0 {
        return Ok(());
    }
    planting.missed.iter().for_each(|name| say(&format!("again: cargo xtask planted --only {name}")));
    let message = format!("{missed} of {} planted bugs were not caught", planting.planted());
    Err(Failure { code: NOT_CAUGHT, message })
}

/// Plants the bugs, one after the other.
pub(crate) fn plant(options: &Options) -> Result<Planting, Failure> {
    let bugs = chosen(options)?;
    let ground = Ground::new()?;
    let begun = Instant::now();
    let mut planting = Planting::default();
    // All at once: the tree is as it is, and nothing is built twice.
    let mut sound = BTreeMap::new();
    for bug in &bugs {
        if !sound.contains_key(bug.suite()) {
            sound.insert(bug.suite().to_owned(), ground.sound(bug)?);
        }
    }
    if !sound.is_empty() {
        say(&format!(
            "  {} suites pass without a bug, {}",
            sound.values().filter(|s| **s).count(),
            seconds(begun.elapsed())
        ));
    }
    let until = options.time.map(|time| Instant::now() + time);
    for bug in bugs {
        if until.is_some_and(|until| Instant::now() >= until) {
            planting.left.push(bug.name);
            continue;
        }
        let at = Instant::now();
        let found = match sound.get(bug.suite()) {
            Some(true) => ground.plant(&bug),
            _ => Err(Failure::new("its suite fails without a bug, too")),
        };
        let (said, caught) = match found {
            Ok(Found::Caught(by)) => (format!("caught by {by}"), true),
            Ok(Found::Hung) => ("caught: hung, as it must".to_owned(), true),
            Ok(Found::Missed) => (format!("NOT CAUGHT: {}", bug.what), false),
            Err(why) if why.code == steps::INTERRUPTED => return Err(why),
            Err(why) => (format!("ERROR: {}", why.message), false),
        };
        say(&format!(
            "  {:<WIDTH$}  {:<SUITE$}  {:>7}  {said}",
            bug.name,
            bug.suite(),
            seconds(at.elapsed())
        ));
        if caught { planting.caught.push(bug.name) } else { planting.missed.push(bug.name) }
    }
    say(&format!(
        "planted {} bugs in {}: {} caught{}",
        planting.planted(),
        seconds(begun.elapsed()),
        planting.caught.len(),
        if planting.left.is_empty() {
            String::new()
        } else {
            format!(", {} left out for lack of time", planting.left.len())
        }
    ));
    Ok(planting)
}

/// Columns for a suite.
const SUITE: usize = 28;
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
    /// Two runs in one copy would see each other's bugs.
    _lock: fs::File,
}

impl Ground {
    fn new() -> Result<Ground, Failure> {
        let ground = target_dir().join("planted");
        let logs = ground.join("logs");
        doing("the folder of logs", fs::create_dir_all(&logs))?;
        let lock = doing("the lock", fs::File::create(ground.join("LOCK")))?;
        if lock.try_lock().is_err() {
            return Err(Failure::new(format!(
                "another run plants bugs in {}: wait for it",
                ground.display()
            )));
        }
        let tree = Tree::new(workspace(), ground.join("tree"));
        let target = ground.join("build");
        let own = tree.crates()?;
        tree::share_dependencies(&target_dir().join("trial"), &target.join("trial"), &own)?;
        // Not optimised: each patch is built in seconds.
        let settings =
            own.iter().map(|name| format!("--config=profile.trial.package.{name}.opt-level=0")).collect();
        Ok(Ground { tree, settings, target, logs, _lock: lock })
    }

    /// Whether the suite passes without the bug: otherwise its failing would say nothing.
    fn sound(&self, bug: &Bug) -> Result<bool, Failure> {
        self.tree.restore()?;
        let log = self.logs.join(format!("sound-{}.txt", file_name(bug.suite())));
        self.build(bug, &log)?;
        Ok(matches!(self.test(bug, &log)?, Watched::Ended(status) if status.success()))
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
            let why = match ended {
                Watched::Ended(status) if status.success() => continue,
                Watched::Ended(_) => "does not compile".to_owned(),
                Watched::Hung => format!("was not built after {}", seconds(BUILD_MAX)),
            };
            return Err(Failure::new(format!("{why}; see {}", log.display())));
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
            .args(arguments.first())
            // As in the steps before: what others wrote is built already, with these features.
            .args(arguments.contains(&"--workspace").then_some(FEATURES))
            .args(arguments.iter().skip(1))
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
