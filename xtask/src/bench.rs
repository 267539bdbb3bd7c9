//! `cargo xtask bench`: tidemill beside the yardstick on the same events, in runs by turns, with the built-in rule and with
//! the same rule as a plugin; then what the session stage costs by itself.

mod child;
mod compare;

use self::child::Cost;
use self::compare::{TIDEMILL, Table, YARDSTICK, as_many_left_out};
use crate::rows::value;
use crate::steps::{Failure, cargo, doing, run as run_step, say, seconds, target_dir, workspace};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the command line asks for.
#[derive(Debug)]
pub(crate) struct Options {
    /// Events to generate.
    pub(crate) events: u64,
    /// Rounds of runs.
    pub(crate) pairs: u64,
    /// Whether to add a run into SQLite.
    pub(crate) sqlite: bool,
    /// Whether to measure the session stage by itself.
    pub(crate) stage: bool,
}

/// The exit code of a comparison that failed.
const DIFFERS: u8 = 3;
/// Numbers of keys that the session stage is measured with.
const STAGE_KEYS: &str = "10000,200000,1000000";

/// Builds, generates, runs, compares.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let Some(source) = std::env::var_os("TIDEMILL_YARDSTICK").map(PathBuf::from) else {
        return Err(Failure::usage("bench needs TIDEMILL_YARDSTICK: the folder of the yardstick's source"));
    };
    if !Path::new("/proc/self/stat").exists() {
        return Err(Failure::usage("bench reads /proc, so it runs on Linux only"));
    }
    let bench = Bench::build(&source, options.events)?;
    bench.generate()?;
    let rounds = bench.rounds(options.pairs)?;
    let same = bench.compare()?;
    if options.sqlite {
        say("into SQLite");
        say(&bench.tidemill(Rule::BuiltIn, Sink::Sqlite)?.line(Rule::BuiltIn.name(), options.events));
    }
    if options.stage {
        bench.stage()?;
    }
    summary(&rounds, options.events);
    if same { Ok(()) } else { Err(Failure { code: DIFFERS, message: "the results differ".to_owned() }) }
}

/// The session rule, in the two forms it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    BuiltIn,
    Plugin,
}

impl Rule {
    const ALL: [Rule; 2] = [Rule::BuiltIn, Rule::Plugin];

    fn name(self) -> &'static str {
        match self {
            Rule::BuiltIn => "builtin:gap",
            Rule::Plugin => "gap-sessions",
        }
    }

    /// Where its rows or letters go.
    fn file(self, what: &str) -> String {
        match self {
            Rule::BuiltIn => format!("builtin-{what}.jsonl"),
            Rule::Plugin => format!("plugin-{what}.jsonl"),
        }
    }
}

/// Where tidemill's rows go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sink {
    File,
    Sqlite,
}

/// One run of each program.
struct Round {
    native: Cost,
    ours: [Cost; 2],
}

/// The middle one of some figures.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let at = |i: usize| figures.get(i).copied().unwrap_or(f64::NAN);
    let half = figures.len() / 2;
    if figures.len() % 2 == 1 { at(half) } else { f64::midpoint(at(half.wrapping_sub(1)), at(half)) }
}

fn summary(rounds: &[Round], events: u64) {
    say(&format!("\nmedians of {} rounds, {events} events", rounds.len()));
    say("                 CPU s / million    ratio   wall s   peak MiB");
    let line = |name: &str, cost: &dyn Fn(&Round) -> Cost| {
        let of = |figure: &dyn Fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
        say(&format!(
            "  {name:<14} {:>15.3}  {:>7.2}  {:>7.1}  {:>9.0}",
            of(&|r| cost(r).per_million(events)),
            of(&|r| cost(r).cpu_s / r.native.cpu_s),
            of(&|r| cost(r).wall.as_secs_f64()),
            of(&|r| cost(r).peak_mib()),
        ));
    };
    line("yardstick", &|r| r.native);
    for rule in Rule::ALL {
        line(rule.name(), &|r| r.ours[rule as usize]);
    }
}

struct Bench {
    folder: PathBuf,
    yardstick: PathBuf,
    tidemill: PathBuf,
    events: u64,
}

impl Bench {
    fn build(source: &Path, events: u64) -> Result<Bench, Failure> {
        let target = target_dir();
        let copy = target.join("yardstick-src");
        copy_source(source, &copy)?;
        let manifest = copy.join("Cargo.toml").display().to_string();
        let built = target.join("yardstick");
        let out = built.display().to_string();
        let step = |name: &str, command: &mut Command| {
            let time = run_step(&format!("building {name}"), command)?;
            say(&format!("built {name} in {}", seconds(time)));
            Ok::<(), Failure>(())
        };
        step(
            "the yardstick",
            &mut cargo(&["build", "--release", "--manifest-path", &manifest, "--target-dir", &out]),
        )?;
        step("tidemill", &mut cargo(&["build", "--locked", "--release", "-p", "tidemill"]))?;
        let folder = target.join("bench");
        doing("target/bench", fs::create_dir_all(&folder))?;
        let tidemill = target.join("release").join("tidemill");
        let mut plugin = Command::new(&tidemill);
        plugin
            .args(["plugin", "build", "plugins/gap-sessions", "--out"])
            .arg(folder.join("gap-sessions.wasm"));
        step("the plugin", plugin.current_dir(workspace()))?;
        Ok(Bench { folder, yardstick: built.join("release"), tidemill, events })
    }

    fn input(&self) -> PathBuf {
        self.folder.join(format!("clean-{}.jsonl", self.events))
    }

    /// Once: the seed is fixed.
    fn generate(&self) -> Result<(), Failure> {
        let input = self.input();
        if input.exists() {
            return Ok(());
        }
        // Under another name until it is whole.
        let part = self.folder.join("events.part");
        let mut generator = Command::new(self.yardstick.join("gen"));
        generator.args(["--n", &self.events.to_string(), "--late", "clean", "--out"]).arg(&part);
        let time = run_step("generating events", &mut generator)?;
        say(&format!("generated {} events in {}", self.events, seconds(time)));
        doing("target/bench", fs::rename(part, input))
    }

    /// All programs by turns, each time in another order, so that none always runs on the warmer machine.
    fn rounds(&self, n: u64) -> Result<Vec<Round>, Failure> {
        let mut rounds = Vec::new();
        for round in 1..=n {
            let mut costs = [None; 3];
            for i in 0..3 {
                let which = (i + round) as usize % 3;
                costs[which] = Some(match which {
                    0 => self.native()?,
                    1 => self.tidemill(Rule::BuiltIn, Sink::File)?,
                    _ => self.tidemill(Rule::Plugin, Sink::File)?,
                });
            }
            let [Some(native), Some(built_in), Some(plugin)] = costs else { continue };
            say(&format!("round {round}"));
            say(&native.line("yardstick, serde", self.events));
            for (rule, cost) in Rule::ALL.into_iter().zip([built_in, plugin]) {
                let line = cost.line(rule.name(), self.events);
                say(&format!("{line}, {:.2} of the yardstick's CPU time", cost.cpu_s / native.cpu_s));
            }
            rounds.push(Round { native, ours: [built_in, plugin] });
        }
        Ok(rounds)
    }

    fn native(&self) -> Result<Cost, Failure> {
        let mut native = Command::new(self.yardstick.join("native"));
        native.args(["--parser", "serde", "--in"]).arg(self.input());
        native.arg("--out").arg(self.folder.join("native.jsonl"));
        native.arg("--dead").arg(self.folder.join("native-dead.jsonl"));
        child::run("the yardstick", &self.folder, native)
    }

    fn tidemill(&self, rule: Rule, sink: Sink) -> Result<Cost, Failure> {
        // All but the plugin's compiled code, which a data directory keeps: compiled once, not once a run.
        let (rows, dead) = (rule.file("rows"), rule.file("dead"));
        for name in ["state/pipelines", &rows, &dead, "sessions.db", "sessions.db-wal", "sessions.db-shm"] {
            let path = self.folder.join(name);
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => doing("an earlier run's file", Err(e))?,
                _ => {}
            }
        }
        let config = self.folder.join("bench.toml");
        doing("bench.toml", fs::write(&config, self.config(rule, sink)))?;
        let mut tidemill = Command::new(&self.tidemill);
        tidemill.arg("run").arg(&config).current_dir(&self.folder);
        child::run("tidemill", &self.folder, tidemill)
    }

    fn compare(&self) -> Result<bool, Failure> {
        say("results");
        let native = Table::read(&self.folder.join("native.jsonl"), YARDSTICK)?;
        let mut same = true;
        for rule in Rule::ALL {
            let ours = Table::read(&self.folder.join(rule.file("rows")), TIDEMILL)?;
            same &= native.is_same_as(rule.name(), ours);
            let (native, ours) = (self.folder.join("native-dead.jsonl"), self.folder.join(rule.file("dead")));
            same &= as_many_left_out(rule.name(), &native, &ours)?;
        }
        say(
            "  not the same rule: the yardstick also wants a known `type`, a string `url` and ts > 0; there is no",
        );
        say(
            "  validator here, and a ts below 0 is a time before 1970, so `late` and not invalid; the whole rule, and",
        );
        say("  its whole session row, by plugins: cargo test -p tidemill-tests --test yardstick");
        Ok(same)
    }

    /// What the session stage costs by itself, and what the boundary has of it.
    fn stage(&self) -> Result<(), Failure> {
        let config = self.folder.join("stage.toml");
        doing("stage.toml", fs::write(&config, self.stage_config()))?;
        let out = Command::new(&self.tidemill)
            .args(["measure", "--json", "--keys", STAGE_KEYS])
            .arg(&config)
            .current_dir(&self.folder)
            .output();
        let out = doing("tidemill measure", out)?;
        if !out.status.success() {
            let mut failure = Failure::of("tidemill measure", out.status);
            failure.message.push_str(&format!("\n{}", String::from_utf8_lossy(&out.stderr).trim_end()));
            return Err(failure);
        }
        say("\nthe session stage by itself: CPU ns an event, and the rule's part of it with its frames");
        say("  rule           config    keys       live keys  texts      stage   rule");
        for line in String::from_utf8_lossy(&out.stdout).lines() {
            let of = |name| value(line, name).unwrap_or("?");
            let ns = |name| of(name).parse().map_or("?".to_owned(), |n: f64| format!("{n:.0}"));
            let (rule, config) = of("pipeline").split_once('-').unwrap_or(("?", "?"));
            let rule = if rule == "builtin" { Rule::BuiltIn } else { Rule::Plugin };
            say(&format!(
                "  {:<14} {config:<9} {:<10} {:<10} {:<8} {:>7} {:>6}",
                rule.name(),
                of("keys"),
                of("live_keys"),
                of("texts"),
                ns("stage_ns"),
                ns("rule_ns")
            ));
        }
        Ok(())
    }

    fn config(&self, rule: Rule, sink: Sink) -> String {
        let rows = match sink {
            Sink::File => format!("kind = \"file\"\npath = {}", self.quoted(&rule.file("rows"))),
            Sink::Sqlite => {
                format!("kind = \"sqlite\"\npath = {}\ntable = \"sessions\"", self.quoted("sessions.db"))
            }
        };
        format!(
            "{}\n[pipeline.bench]\nfrom = [\"clicks\"]\n\
             session = {{ plugin = {:?}, config = {{ gap = \"30s\", boundary = \"inclusive\" }} }}\n\
             early = \"off\"\nto = [{{ sink = \"rows\", stages = [\"final\"] }}]\ndead = \"dead\"\n\n\
             {}[sink.rows]\n{rows}\n\n[sink.dead]\nkind = \"file\"\npath = {}\n",
            self.source_config(),
            rule.name(),
            if rule == Rule::Plugin { self.plugin_config() } else { String::new() },
            self.quoted(&rule.file("dead")),
        )
    }

    /// Each rule twice: one config that looks at no field, and one for which every event's `type` is read.
    fn stage_config(&self) -> String {
        let mut text = self.source_config() + &self.plugin_config();
        for (name, rule) in [("builtin", Rule::BuiltIn), ("plugin", Rule::Plugin)] {
            for (kind, more) in
                [("plain", ""), ("fields", ", end = { field = \"type\", in = [\"sign_up\"] }")]
            {
                text += &format!(
                    "[pipeline.{name}-{kind}]\nfrom = [\"clicks\"]\nsession = {{ plugin = {:?}, \
                     config = {{ gap = \"30s\", boundary = \"inclusive\"{more} }} }}\n\
                     early = \"off\"\nto = [\"rows\"]\n\n",
                    rule.name()
                );
            }
        }
        text + "[sink.rows]\nkind = \"stdout\"\n"
    }

    fn source_config(&self) -> String {
        format!(
            "[server]\ndata_dir = {}\nepoch = \"1s\"\n\n\
             [source.clicks]\nkind = \"file\"\npath = {:?}\nformat = \"json\"\nkey = \"user_id\"\n\
             time = {{ field = \"ts\", unit = \"ms\" }}\ndisorder = \"10s\"\n\n",
            self.quoted("state"),
            self.input().display().to_string(),
        )
    }

    fn plugin_config(&self) -> String {
        format!("[plugin.gap-sessions]\npath = {}\n\n", self.quoted("gap-sessions.wasm"))
    }

    fn quoted(&self, name: &str) -> String {
        format!("{:?}", self.folder.join(name).display().to_string())
    }
}

/// Copies what has changed, so that nothing is built in vain; the source may be read-only, and a package
/// below this workspace must say that it is its own.
fn copy_source(from: &Path, to: &Path) -> Result<(), Failure> {
    let what = "copying the yardstick";
    doing(what, fs::create_dir_all(to))?;
    for entry in doing(&format!("{what} from {}", from.display()), fs::read_dir(from))? {
        let entry = doing(what, entry)?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            if entry.file_name() != "target" && entry.file_name() != ".git" {
                copy_source(&path, &copy)?;
            }
            continue;
        }
        let mut bytes = doing(what, fs::read(&path))?;
        if entry.file_name() == "Cargo.toml" {
            bytes.extend_from_slice(b"\n[workspace]\n");
        }
        if fs::read(&copy).ok().as_ref() != Some(&bytes) {
            doing(what, fs::write(&copy, bytes))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert!((median(vec![9.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![1.0, 9.0, 3.0, 2.0]) - 2.5).abs() < 1e-9);
    }
}
