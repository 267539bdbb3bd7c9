//! `cargo xtask bench`: tidemill beside the yardstick, on the same events, in pairs of runs.
//!
//! CPU time and memory are read from `/proc` of the running child, so Linux only: a child that has ended
//! but was not waited for still shows its CPU time, and its peak of memory only ever rises.

use crate::rows::value;
use crate::steps::{Failure, cargo, doing, run as run_step, say, seconds, target_dir};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What the command line asks for.
#[derive(Debug)]
pub(crate) struct Options {
    /// Events to generate.
    pub(crate) events: u64,
    /// Pairs of runs.
    pub(crate) pairs: u64,
    /// Whether to add a run into SQLite.
    pub(crate) sqlite: bool,
}

/// The unit of CPU time in `/proc/PID/stat`: fixed for programs since Linux 2.6.
const TICKS_PER_SECOND: f64 = 100.0;
/// Between two looks at a child's memory.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The exit code of a comparison that failed.
const DIFFERS: u8 = 3;

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
    let mut ratios = Vec::new();
    for pair in 1..=options.pairs {
        // By turns, so that neither always runs on the warmer machine.
        let (native, ours) = if pair % 2 == 1 {
            let native = bench.native()?;
            (native, bench.tidemill(Sink::File)?)
        } else {
            let ours = bench.tidemill(Sink::File)?;
            (bench.native()?, ours)
        };
        say(&format!("pair {pair}"));
        say(&native.line("yardstick, serde", options.events));
        say(&ours.line("tidemill, JSON lines", options.events));
        ratios.push(ours.cpu_s / native.cpu_s);
        say(&format!("  ratio of CPU time       {:.2}", ours.cpu_s / native.cpu_s));
    }
    // Before the run into SQLite overwrites the dead letters.
    let same = bench.compare()?;
    if options.sqlite {
        let ours = bench.tidemill(Sink::Sqlite)?;
        say(&ours.line("tidemill, SQLite", options.events));
    }
    ratios.sort_by(f64::total_cmp);
    let median = median(&ratios);
    say(&format!("median ratio of CPU time over {} pairs: {median:.2}", ratios.len()));
    if same { Ok(()) } else { Err(Failure { code: DIFFERS, message: "the results differ".to_owned() }) }
}

fn median(sorted: &[f64]) -> f64 {
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { at(half) } else { f64::midpoint(at(half.wrapping_sub(1)), at(half)) }
}

/// Where tidemill's rows go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sink {
    File,
    Sqlite,
}

/// One run of one program.
struct Cost {
    cpu_s: f64,
    wall: Duration,
    peak_kib: u64,
}

impl Cost {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn line(&self, what: &str, events: u64) -> String {
        format!(
            "  {what:<22}  {:.3} CPU s per million events, {} wall, {:.0} MiB peak",
            self.cpu_s * 1e6 / events as f64,
            seconds(self.wall),
            self.peak_kib as f64 / 1024.0
        )
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
        let time = run_step(
            "building the yardstick",
            &mut cargo(&["build", "--release", "--manifest-path", &manifest, "--target-dir", &out]),
        )?;
        say(&format!("built the yardstick in {}", seconds(time)));
        let time =
            run_step("building tidemill", &mut cargo(&["build", "--locked", "--release", "-p", "tidemill"]))?;
        say(&format!("built tidemill in {}", seconds(time)));
        let folder = target.join("bench");
        doing("target/bench", fs::create_dir_all(&folder))?;
        let tidemill = target.join("release").join("tidemill");
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

    fn native(&self) -> Result<Cost, Failure> {
        let mut native = Command::new(self.yardstick.join("native"));
        native.args(["--parser", "serde", "--in"]).arg(self.input());
        native.arg("--out").arg(self.folder.join("native.jsonl"));
        native.arg("--dead").arg(self.folder.join("native-dead.jsonl"));
        self.measure("the yardstick", native)
    }

    fn tidemill(&self, sink: Sink) -> Result<Cost, Failure> {
        for name in
            ["state", "tidemill.jsonl", "dead.jsonl", "sessions.db", "sessions.db-wal", "sessions.db-shm"]
        {
            let path = self.folder.join(name);
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => doing("an earlier run's file", Err(e))?,
                _ => {}
            }
        }
        let config = self.folder.join("bench.toml");
        doing("bench.toml", fs::write(&config, config_text(&self.input(), &self.folder, sink)))?;
        let mut tidemill = Command::new(&self.tidemill);
        tidemill.arg("run").arg(&config).current_dir(&self.folder);
        self.measure("tidemill", tidemill)
    }

    fn measure(&self, what: &str, mut command: Command) -> Result<Cost, Failure> {
        let log = doing("run.log", File::create(self.folder.join("run.log")))?;
        let out = doing("run.log", log.try_clone())?;
        let begun = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(out).stderr(log).spawn();
        let mut child = doing(&format!("{what} cannot be started"), child)?;
        let proc = PathBuf::from(format!("/proc/{}", child.id()));
        let mut peak_kib = 0;
        let cpu_s = loop {
            if let Some(kib) = fs::read_to_string(proc.join("status")).ok().and_then(|s| peak_of(&s)) {
                peak_kib = kib.max(peak_kib);
            }
            match fs::read_to_string(proc.join("stat")).ok().and_then(|s| cpu_of(&s)) {
                Some((false, _)) => std::thread::sleep(LOOK_EVERY),
                Some((true, cpu_s)) => break cpu_s,
                None => return Err(Failure::new(format!("{what}: no figures in {}", proc.display()))),
            }
        };
        let wall = begun.elapsed();
        let status = doing(what, child.wait())?;
        if !status.success() {
            let said = fs::read_to_string(self.folder.join("run.log")).unwrap_or_default();
            let mut failure = Failure::of(what, status);
            failure.message.push_str(&format!("\n{}", said.trim_end()));
            return Err(failure);
        }
        Ok(Cost { cpu_s, wall, peak_kib })
    }

    /// Whether both made the same sessions and left out as many lines.
    fn compare(&self) -> Result<bool, Failure> {
        let native = self.rows("native.jsonl", ["user_id", "first_ts", "last_ts", "count"])?;
        let mut rows = self.rows("tidemill.jsonl", ["key", "start_ms", "end_ms", "events"])?;
        let total = |rows: &HashMap<String, i64>| rows.values().sum::<i64>();
        say(&format!("sessions: yardstick {}, tidemill {}", total(&native), total(&rows)));
        for (row, n) in native {
            *rows.entry(row).or_default() -= n;
        }
        rows.retain(|_, n| *n != 0);
        if rows.is_empty() {
            say("  the same (user, first, last, count), each as often");
        } else {
            say(&format!("  {} differ as (user, first, last, count), such as", rows.len()));
            for (row, n) in rows.iter().take(5) {
                let who = if *n > 0 { "tidemill" } else { "the yardstick" };
                say(&format!("    only {who}: {row}"));
            }
        }
        Ok(self.compare_dead()? && rows.is_empty())
    }

    fn compare_dead(&self) -> Result<bool, Failure> {
        let native = self.lines("native-dead.jsonl")?.count();
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        for letter in self.lines("dead.jsonl")? {
            let letter = doing("dead.jsonl", letter)?;
            *reasons.entry(value(&letter, "reason").unwrap_or("?").to_owned()).or_default() += 1;
        }
        let ours: usize = reasons.values().sum();
        let listed: Vec<String> = reasons.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        say(&format!("lines left out: yardstick {native}, tidemill {ours} ({})", listed.join(", ")));
        say(
            "  not the same rule: the yardstick also wants a known `type`, a string `url` and ts > 0; there is no",
        );
        say("  validator here, and a ts below 0 is a time before 1970, so `late` and not invalid");
        say(
            "  the whole rule, and its whole session row, by plugins: cargo test -p tidemill-tests --test yardstick",
        );
        Ok(native == ours)
    }

    fn lines(&self, name: &str) -> Result<std::io::Lines<BufReader<File>>, Failure> {
        Ok(BufReader::with_capacity(1 << 20, doing(name, File::open(self.folder.join(name)))?).lines())
    }

    /// How often each session stands in a file, reduced to these fields.
    fn rows(&self, name: &str, fields: [&str; 4]) -> Result<HashMap<String, i64>, Failure> {
        let mut rows = HashMap::new();
        for line in self.lines(name)? {
            let line = doing(name, line)?;
            let row = fields.map(|f| value(&line, f).unwrap_or("?")).join(" ");
            *rows.entry(row).or_default() += 1;
        }
        Ok(rows)
    }
}

fn config_text(input: &Path, folder: &Path, sink: Sink) -> String {
    let path = |name: &str| format!("{:?}", folder.join(name).display().to_string());
    let sink = match sink {
        Sink::File => format!("kind = \"file\"\npath = {}", path("tidemill.jsonl")),
        Sink::Sqlite => format!("kind = \"sqlite\"\npath = {}\ntable = \"sessions\"", path("sessions.db")),
    };
    format!(
        "[server]\ndata_dir = {state}\nepoch = \"1s\"\n\n\
         [source.clicks]\nkind = \"file\"\npath = {input:?}\nformat = \"json\"\nkey = \"user_id\"\n\
         time = {{ field = \"ts\", unit = \"ms\" }}\ndisorder = \"10s\"\n\n\
         [pipeline.bench]\nfrom = [\"clicks\"]\n\
         session = {{ plugin = \"builtin:gap\", config = {{ gap = \"30s\", boundary = \"inclusive\" }} }}\n\
         early = \"off\"\nto = [{{ sink = \"rows\", stages = [\"final\"] }}]\ndead = \"dead\"\n\n\
         [sink.rows]\n{sink}\n\n[sink.dead]\nkind = \"file\"\npath = {dead}\n",
        state = path("state"),
        dead = path("dead.jsonl"),
        input = input.display().to_string(),
    )
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

/// Peak of resident memory in `/proc/PID/status`; gone when the process has ended.
fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// Whether the process has ended, and its CPU seconds, in `/proc/PID/stat`.
fn cpu_of(stat: &str) -> Option<(bool, f64)> {
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    let ended = matches!(*fields.first()?, "Z" | "X");
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok());
    Some((ended, (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_the_kernel_writes_them() {
        let stat = "77 (a) b (c)) Z 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0";
        assert_eq!(cpu_of(stat), Some((true, 3.0)));
        assert_eq!(cpu_of(&stat.replace(" Z ", " S ")), Some((false, 3.0)));
        assert_eq!(cpu_of("77 (cut"), None);
        assert_eq!(peak_of("Name:\tx\nVmHWM:\t    1234 kB\nVmRSS:\t 1 kB\n"), Some(1234));
        assert_eq!(peak_of("State:\tZ (zombie)\n"), None);
    }

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert!((median(&[1.0, 2.0, 9.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[1.0, 2.0, 3.0, 9.0]) - 2.5).abs() < 1e-9);
    }
}
