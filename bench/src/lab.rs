//! Where measurements are made: the programs, the folder, sizes, and the runs that several of them need.

use crate::child::{self, Cost};
use crate::compare;
use crate::config::{Job, Rule};
use crate::error::{Doing, Failure, Outcome};
use crate::figures::{median, of_count};
use crate::host::Host;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Whether all is to take minutes.
    pub(crate) quick: bool,
    /// Events of the whole job.
    pub(crate) events: u64,
    /// Runs of each program, by turns.
    pub(crate) rounds: u64,
}

impl Sizes {
    /// One of two sizes.
    pub(crate) fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Events where the whole job is run in many variations.
    pub(crate) fn some_events(&self) -> u64 {
        (self.events / self.pick(2, 4)).max(10_000)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Lab {
    /// The tidemill that is measured.
    pub(crate) bin: PathBuf,
    /// Folder of the yardstick's programs.
    pub(crate) yardstick: PathBuf,
    /// The project's folder.
    pub(crate) workspace: PathBuf,
    /// Where everything is kept that is made.
    pub(crate) folder: PathBuf,
    pub(crate) sizes: Sizes,
    pub(crate) begun: Instant,
}

/// Costs of one program over the rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Costs(pub(crate) Vec<Cost>);

impl Costs {
    fn median(&self, of: impl Fn(&Cost) -> f64) -> f64 {
        median(self.0.iter().map(of).collect())
    }
    /// CPU seconds for a million events.
    pub(crate) fn per_million(&self, events: u64) -> f64 {
        self.median(|c| c.cpu_s * 1e6 / of_count(events))
    }
    /// Seconds from start to end.
    pub(crate) fn wall_s(&self) -> f64 {
        self.median(|c| c.wall_s)
    }
    /// Most memory.
    pub(crate) fn peak_mib(&self) -> f64 {
        self.median(|c| c.peak_mib)
    }
    /// CPU time as a multiple of another program's, round by round.
    pub(crate) fn ratio(&self, to: &Costs) -> f64 {
        median(self.0.iter().zip(&to.0).map(|(own, to)| own.cpu_s / to.cpu_s).collect())
    }
    /// The least and the greatest of these ratios.
    pub(crate) fn ratio_range(&self, to: &Costs) -> (f64, f64) {
        let ratios: Vec<f64> = self.0.iter().zip(&to.0).map(|(own, to)| own.cpu_s / to.cpu_s).collect();
        (ratios.iter().copied().fold(f64::NAN, f64::min), ratios.iter().copied().fold(f64::NAN, f64::max))
    }
}

/// One program of a round.
pub(crate) enum Program<'a> {
    /// The yardstick on these JSON lines.
    Yardstick(&'a Path),
    /// Tidemill.
    Tidemill {
        /// The folder of its own.
        room: &'a str,
        job: Job,
        /// Whether all events are valid.
        valid: bool,
    },
}

impl Lab {
    /// One line of progress, with the time since the start.
    pub(crate) fn say(&self, line: &str) {
        let s = self.begun.elapsed().as_secs();
        crate::say(&format!("{:>3}:{:02}  {line}", s / 60, s % 60));
    }

    /// A file of ours.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes a file once, under another name until it is whole.
    pub(crate) fn made(&self, name: &str, make: impl FnOnce(&Path) -> Outcome<()>) -> Outcome<PathBuf> {
        let path = self.path(name);
        if !path.exists() {
            self.say(&format!("  making {name}"));
            let part = self.path(&format!("{name}.part"));
            make(&part)?;
            fs::rename(&part, &path).doing(path.display())?;
        }
        Ok(path)
    }

    /// The component of a plugin in this folder of the project.
    pub(crate) fn component(&self, source: &str) -> Outcome<PathBuf> {
        let name = source.rsplit('/').next().unwrap_or(source);
        let path = self.path(&format!("{name}.wasm"));
        let mut build = Command::new(&self.bin);
        build.args(["plugin", "build", source, "--out"]).arg(&path).current_dir(&self.workspace);
        child::run(&format!("building {source}"), &self.path("build.log"), build)?;
        Ok(path)
    }

    /// The component of the rule that is measured.
    pub(crate) fn gap_sessions(&self) -> Outcome<PathBuf> {
        let path = self.path("gap-sessions.wasm");
        if path.exists() { Ok(path) } else { self.component("plugins/gap-sessions") }
    }

    /// An empty folder, but for compiled components: they are compiled once, not once a run.
    pub(crate) fn room(&self, name: &str) -> Outcome<PathBuf> {
        let room = self.path(name);
        let (store, own) = (self.path("compiled"), room.join("state/compiled"));
        private_folder(&store)?;
        copy_all(&own, &store)?;
        match fs::remove_dir_all(&room) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).doing(room.display()),
            _ => {}
        }
        private_folder(&own)?;
        copy_all(&store, &own)?;
        Ok(room)
    }

    /// Writes a job's config into a room of this name.
    pub(crate) fn configured(&self, room: &str, text: &str) -> Outcome<PathBuf> {
        let config = self.room(room)?.join("bench.toml");
        fs::write(&config, text).doing(config.display())?;
        Ok(config)
    }

    /// Starts a job that goes on.
    pub(crate) fn start(&self, room: &str, job: &Job) -> Outcome<Host> {
        Host::start(&self.bin, &self.configured(room, &job.text())?)
    }

    /// Runs a program to its end.
    pub(crate) fn run(&self, program: &Program<'_>) -> Outcome<Cost> {
        match program {
            Program::Yardstick(input) => {
                let mut native = Command::new(self.yardstick.join("native"));
                native.args(["--parser", "serde", "--in"]).arg(input);
                native
                    .arg("--out")
                    .arg(self.path("native.jsonl"))
                    .arg("--dead")
                    .arg(self.path("native-dead.jsonl"));
                child::run("the yardstick", &self.path("native.log"), native)
            }
            Program::Tidemill { room, job, valid } => {
                let config = self.configured(room, &job.text())?;
                let mut tidemill = Command::new(&self.bin);
                tidemill.arg("run").arg(&config).current_dir(self.path(room));
                let cost = child::run("tidemill", &self.path(&format!("{room}/said.txt")), tidemill)?;
                if *valid {
                    compare::must_be_whole(&self.path(room))?;
                }
                Ok(cost)
            }
        }
    }

    /// All programs by turns, each time in another order, so that none always runs on the warmer machine.
    pub(crate) fn rounds(&self, rounds: u64, programs: &[(String, Program<'_>)]) -> Outcome<Vec<Costs>> {
        let mut costs = vec![Costs::default(); programs.len()];
        for round in 0..rounds as usize {
            for i in 0..programs.len() {
                let which = (i + round) % programs.len();
                let (name, program) = &programs[which];
                let cost = self.run(program)?;
                costs[which].0.push(cost);
                self.say(&format!(
                    "  round {} of {rounds}: {name}: {:.2} CPU s, {:.1} s, {:.0} MiB",
                    round + 1,
                    cost.cpu_s,
                    cost.wall_s,
                    cost.peak_mib
                ));
            }
        }
        Ok(costs)
    }

    /// The yardstick and both forms of the rule on the same JSON lines.
    pub(crate) fn three<'a>(&self, input: &'a Path, valid: bool) -> Outcome<Vec<(String, Program<'a>)>> {
        let component = self.gap_sessions()?;
        let mut programs = vec![("yardstick".to_owned(), Program::Yardstick(input))];
        for rule in Rule::ALL {
            let job = Job::new(rule, crate::config::Input::File(input.to_owned()), &component);
            programs.push((rule.name().to_owned(), Program::Tidemill { room: room_of(rule), job, valid }));
        }
        Ok(programs)
    }
}

/// Where a rule's runs are.
pub(crate) fn room_of(rule: Rule) -> &'static str {
    match rule {
        Rule::BuiltIn => "run-built-in",
        Rule::Plugin => "run-plugin",
    }
}

/// Compiled code of one folder into another, where it is not yet.
fn copy_all(from: &Path, to: &Path) -> Outcome<()> {
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let there = to.join(entry.file_name());
        // Others are half-written.
        if entry.path().extension().is_some_and(|e| e == "cwasm") && !there.exists() {
            fs::copy(entry.path(), &there).doing(there.display())?;
        }
    }
    Ok(())
}

/// Nobody else may read a data directory, or it is refused.
fn private_folder(path: &Path) -> Outcome<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).doing(path.display())
}

/// Checks that the binary and the yardstick are there.
pub(crate) fn must_be_there(paths: &[(&str, &Path)]) -> Outcome<()> {
    for (what, path) in paths {
        if !path.exists() {
            return Err(Failure::usage(format!("{what}: there is no {}", path.display())));
        }
    }
    Ok(())
}
