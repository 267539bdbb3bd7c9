//! The parts of `cargo xtask prove`: what each runs, until when, and how it is counted.

use super::Prove;
use crate::planted;
use crate::steps::{self, FEATURES, Failure, Watched, cargo, doing, say};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// One part.
pub(super) struct Part {
    pub(super) name: &'static str,
    /// What it does, in a few words.
    pub(super) what: &'static str,
    /// Its share of the time.
    pub(super) share: u64,
    /// What it counts.
    pub(super) unit: &'static str,
    /// How much of it all runs together should have.
    pub(super) wanted: Option<u64>,
    /// What it runs, as targets of the build.
    pub(super) builds: &'static [&'static str],
    pub(super) run: fn(&mut Prove, &Path, Instant) -> Result<(), Failure>,
}

/// In the order in which they run.
pub(super) const PARTS: [Part; 7] = [
    Part {
        name: "seeds",
        what: "the simulator: the real engine and store under a seed, with faults of disk, sources, sinks and clock",
        share: 3,
        unit: "seeds",
        wanted: Some(10_000),
        builds: &["--bin=tidemill-sim"],
        run: seeds,
    },
    Part {
        name: "points",
        what: "crash points: a scripted run, cut off before and after each of its operations on files",
        share: 2,
        unit: "points",
        wanted: Some(20_000),
        builds: &["--bin=tidemill-sim"],
        run: points,
    },
    Part {
        name: "images",
        what: "power cuts: disks rebuilt from what a real run did to its files, each recovered, under both rules",
        share: 4,
        unit: "images",
        wanted: Some(5_000),
        builds: &["--bin=tidemill", "--test=images"],
        run: images,
    },
    Part {
        name: "kills",
        what: "kill -9 with files, SQLite and HTTP: at random events, around each sync, in recovery",
        share: 4,
        unit: "kills",
        wanted: Some(200),
        builds: &["--bin=tidemill", "--test=crash", "--test=http"],
        run: kills,
    },
    Part {
        name: "architecture",
        what: "Kafka to BigQuery and Pub/Sub to Postgres, a million events each: kills of the host and the broker, broken streams",
        share: 4,
        unit: "records",
        wanted: None,
        builds: &["--bin=tidemill", "--test=architecture"],
        run: architecture,
    },
    Part {
        name: "fuzz",
        what: "frames, logs, states, config, decoders, bodies, answers and components, made up and mutated",
        share: 3,
        unit: "inputs",
        wanted: None,
        builds: &[
            "--bin=tidemill",
            "--test=codecs",
            "--test=decoders",
            "--test=fencing",
            "--test=components",
            "--test=bodies",
            "--test=uploads",
        ],
        run: fuzz,
    },
    Part {
        name: "planted",
        what: "bugs of tests/planted in a copy of the tree: first those not yet caught over these sources",
        share: 4,
        unit: "caught",
        wanted: None,
        builds: &[],
        run: planted_bugs,
    },
];

/// What is still running so long after its time is stopped: it was told to end by itself.
const GRACE: Duration = Duration::from_secs(300);

impl Prove {
    /// Runs a program of a part; whether it succeeded. If not, `again` is the line to paste.
    fn program(
        &mut self,
        command: &mut Command,
        log: &Path,
        until: Instant,
        again: &str,
    ) -> Result<bool, Failure> {
        let most = until.saturating_duration_since(Instant::now()) + GRACE;
        let held = match steps::watched(again, command, log, most)? {
            Watched::Ended(status) => status.success(),
            Watched::Hung => {
                say(&format!("    stopped: it did not end within {}", steps::seconds(most)));
                false
            }
        };
        if !held {
            self.again.push(again.to_owned());
        }
        Ok(held)
    }

    /// Runs tests of the workspace with these knobs; the lines that they reported.
    fn tests(
        &mut self,
        arguments: &[&str],
        knobs: &[(&str, u64)],
        log: &Path,
        until: Instant,
    ) -> Result<Vec<String>, Failure> {
        let report = self.folder.join("report.txt");
        doing("the tests' report", fs::write(&report, ""))?;
        let always = ["test", "--locked", "--workspace", "--profile=trial", FEATURES];
        let mut command = cargo(&[&always, arguments].concat());
        command.env("TIDEMILL_BIN", &self.binary).env("TIDEMILL_REPORT", &report);
        let mut again = String::new();
        for (name, n) in knobs {
            command.env(name, n.to_string());
            again.push_str(&format!("{name}={n} "));
        }
        again.push_str(&format!("cargo {} {}", always.join(" "), arguments.join(" ")));
        self.program(&mut command, log, until, &again)?;
        let text = doing("the tests' report", fs::read_to_string(&report))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn simulator(
        &mut self,
        part: &'static str,
        [seeds, points]: [&str; 2],
        log: &Path,
        until: Instant,
    ) -> Result<(), Failure> {
        let left = until.saturating_duration_since(Instant::now()).as_secs_f64() / 60.0;
        let (start, minutes) = (self.totals.ever(part, part) + 1, format!("{left:.2}"));
        let start = start.to_string();
        let arguments = ["--seeds", seeds, "--points", points, "--start", &start, "--minutes", &minutes];
        let run = "cargo run --locked --quiet --profile=trial -p tidemill-sim --";
        let again = format!("{run} {}", arguments.join(" "));
        // It is built with everything else: run for itself, its dependencies would be built once more.
        let program = steps::target_dir().join("trial").join("tidemill-sim");
        self.program(Command::new(program).args(arguments), log, until, &again)?;
        let said = doing("the log", fs::read(log))?;
        let said = String::from_utf8_lossy(&said);
        let (table, last) = sum_of(&said);
        table.iter().for_each(|line| say(&format!("    {line}")));
        // A failing seed says itself how it is seen again.
        self.again.extend(said.lines().filter_map(|l| Some(l.split_once("rerun: ")?.1.trim().to_owned())));
        let mut counts = last.map(counts).unwrap_or_default();
        counts.retain(|unit, n| *n > 0 && unit != "failures");
        self.count(part, counts)
    }
}

fn seeds(prove: &mut Prove, log: &Path, until: Instant) -> Result<(), Failure> {
    prove.simulator("seeds", [MANY, "0"], log, until)
}

fn points(prove: &mut Prove, log: &Path, until: Instant) -> Result<(), Failure> {
    prove.simulator("points", ["0", MANY], log, until)
}

/// More than there is time for.
const MANY: &str = "1000000000";

/// What a simulator said last: its table, and the line of sums.
fn sum_of(said: &str) -> (Vec<&str>, Option<&str>) {
    let last = said.lines().rev().find(|l| l.starts_with("sim: "));
    let lines: Vec<&str> = said.lines().collect();
    let end = lines.iter().rposition(|l| l.starts_with("sim: ")).unwrap_or(lines.len());
    let from = lines[..end].iter().rposition(|l| l.trim().is_empty()).map_or(0, |at| at + 1);
    (lines[from..end].to_vec(), last)
}

/// `name=number` in a line.
fn counts(line: &str) -> BTreeMap<String, u64> {
    let pairs = line.split_whitespace().filter_map(|w| w.split_once('='));
    pairs.filter_map(|(name, n)| Some((name.to_owned(), n.parse().ok()?))).collect()
}

/// Images of the first round. The next rounds are as large as there is time for.
const IMAGES_FIRST: u64 = 240;

fn images(prove: &mut Prove, log: &Path, until: Instant) -> Result<(), Failure> {
    let mut n = IMAGES_FIRST;
    loop {
        let begun = Instant::now();
        // Each rule takes a seed of its own, this one and the next.
        let seed = prove.totals.ever("images", "images") + 1;
        let knobs = [("TIDEMILL_IMAGES", n), ("TIDEMILL_IMAGES_SEED", seed)];
        let before = prove.again.len();
        let said = prove.tests(&["--test", "images"], &knobs, log, until)?;
        let found = said.iter().filter_map(|l| number_before(l, " disks of ")).sum();
        let twice = said.iter().filter_map(|l| number_before(l, " cut off again")).sum();
        prove.count("images", [("images".to_owned(), found), ("cut off again".to_owned(), twice)].into())?;
        let left = until.saturating_duration_since(Instant::now());
        if prove.again.len() > before || left < begun.elapsed() / 2 {
            return Ok(());
        }
        // Never so many that a round is longer than what is left.
        let fit = u128::from(n) * left.as_millis() / begun.elapsed().as_millis().max(1);
        n = u64::try_from(fit).unwrap_or(n).clamp(IMAGES_FIRST / 4, 4 * IMAGES_FIRST);
    }
}

fn kills(prove: &mut Prove, log: &Path, until: Instant) -> Result<(), Failure> {
    loop {
        let begun = Instant::now();
        let round = prove.totals.ever("kills", "rounds") + 1;
        let before = prove.again.len();
        let crash = prove.tests(
            &["--test", "crash", "--", "killed"],
            &[
                ("TIDEMILL_CRASH_SEED", round),
                ("TIDEMILL_CRASH_EVENTS", 100_000),
                ("TIDEMILL_CRASH_KILLS", 12),
            ],
            log,
            until,
        )?;
        let http =
            prove.tests(&["--test", "http", "--", "kills"], &[("TIDEMILL_HTTP_KILLS", 12)], log, until)?;
        let found = |lines: &[String]| lines.iter().filter_map(|l| number_before(l, " kills")).sum::<u64>();
        let (file, http) = (found(&crash), found(&http));
        prove.count(
            "kills",
            [("kills", file + http), ("with a file and SQLite", file), ("with HTTP", http), ("rounds", 1)]
                .map(|(unit, n)| (unit.to_owned(), n))
                .into(),
        )?;
        let left = until.saturating_duration_since(Instant::now());
        if prove.again.len() > before || left < begun.elapsed() / 2 {
            return Ok(());
        }
    }
}

/// How large one round is.
const ARCHITECTURE: [(&str, u64); 4] = [
    ("TIDEMILL_ARCHITECTURE_EVENTS", 1_000_000),
    ("TIDEMILL_ARCHITECTURE_KILLS", 10),
    ("TIDEMILL_ARCHITECTURE_RESTARTS", 2),
    ("TIDEMILL_ARCHITECTURE_BREAKS", 2),
];

fn architecture(prove: &mut Prove, log: &Path, until: Instant) -> Result<(), Failure> {
    loop {
        let begun = Instant::now();
        let round = prove.totals.ever("architecture", "rounds") + 1;
        let before = prove.again.len();
        let knobs = [&ARCHITECTURE[..], &[("TIDEMILL_ARCHITECTURE_SEED", round)]].concat();
        let said = prove.tests(&["--test", "architecture"], &knobs, log, until)?;
        said.iter().for_each(|line| say(&format!("    {line}")));
        let sum = |words| said.iter().filter_map(|l| number_before(l, words)).sum::<u64>();
        prove.count(
            "architecture",
            [
                ("records", sum(" records")),
                ("kills", sum(" kills")),
                ("restarts", sum(" restarts")),
                ("breaks", sum(" breaks")),
                ("rounds", 1),
            ]
            .map(|(unit, n)| (unit.to_owned(), n))
            .into(),
        )?;
        let left = until.saturating_duration_since(Instant::now());
        if prove.again.len() > before || left < begun.elapsed() / 2 {
            return Ok(());
        }
    }
}

/// What is fuzzed, as tests of the workspace.
const FUZZED: [&[&str]; 7] = [
    &["--test", "codecs"],
    &["--test", "decoders"],
    &["--test", "fencing"],
    &["--test", "components"],
    &["--bin", "tidemill", "fuzz"],
    &["--test", "bodies"],
    &["--test", "uploads"],
];

fn fuzz(prove: &mut Prove, log: &Path, until: Instant) -> Result<(), Failure> {
    let left = until.saturating_duration_since(Instant::now()).as_secs();
    let each = (left / FUZZED.len() as u64).max(1);
    // Seeds count on from those of all runs before.
    let seed = prove.totals.ever("fuzz", "inputs") + 1;
    for tests in FUZZED {
        // The last is a filter within the binary's own tests, or the name of a test.
        if !tests.contains(&"--bin") && !tests.last().is_some_and(|name| prove.has(name)) {
            continue;
        }
        let knobs = [("TIDEMILL_FUZZ_SECONDS", each), ("TIDEMILL_FUZZ_SEED", seed)];
        let said = prove.tests(tests, &knobs, log, until)?;
        let sum = |words| said.iter().filter_map(|l| number_before(l, words)).sum::<u64>();
        let counts =
            [("inputs", sum(" inputs")), ("accepted", sum(" accepted")), ("refused", sum(" refused"))];
        prove.count("fuzz", counts.map(|(unit, n)| (unit.to_owned(), n)).into())?;
    }
    Ok(())
}

/// The number that stands before some words.
fn number_before(line: &str, words: &str) -> Option<u64> {
    let before = &line[..line.find(words)?];
    let digits = before.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    before[digits..].parse().ok()
}

fn planted_bugs(prove: &mut Prove, _: &Path, until: Instant) -> Result<(), Failure> {
    let caught = |name: &str| format!("caught:{name}");
    let options = planted::Options {
        time: Some(until.saturating_duration_since(Instant::now())),
        // First those that were not caught over these sources.
        known: planted::names()?
            .into_iter()
            .filter(|name| prove.totals.of_sources("planted", &caught(name)) > 0)
            .collect(),
        ..planted::Options::default()
    };
    let planting = planted::plant(&options)?;
    let mut counts: BTreeMap<String, u64> =
        [("planted".to_owned(), planting.planted()), ("caught".to_owned(), planting.caught.len() as u64)]
            .into();
    counts.extend(planting.caught.iter().map(|name| (caught(name), 1)));
    prove.again.extend(planting.missed.iter().map(|name| format!("cargo xtask planted --only {name}")));
    let left =
        planted::names()?.iter().filter(|n| prove.totals.of_sources("planted", &caught(n)) == 0).count();
    let now = planting.caught.iter().filter(|n| prove.totals.of_sources("planted", &caught(n)) == 0).count();
    say(&format!(
        "    not planted yet over these sources: {}",
        left.saturating_sub(now + planting.missed.len())
    ));
    prove.count("planted", counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_what_is_reported() {
        let line =
            "power cuts, Builtin: 120 disks of 5301 ops recovered, to 88 different epochs; 15 cut off again";
        assert_eq!(number_before(line, " disks of "), Some(120));
        assert_eq!(number_before(line, " cut off again"), Some(15));
        assert_eq!(number_before("300 requests, 5 kills, 2 repeated", " kills"), Some(5));
        assert_eq!(number_before("kill -9, Builtin: 12 kills in 2 rounds", " kills"), Some(12));
        assert_eq!(number_before("no kills at all", " kills"), None);
        let line = "fuzz csv: 12032 inputs, 2076 accepted, 9956 refused, seed 1, 3.2 s";
        assert_eq!(
            [" inputs", " accepted", " refused"].map(|w| number_before(line, w)),
            [12_032, 2_076, 9_956].map(Some)
        );
    }

    #[test]
    fn the_simulators_last_words_are_its_table_and_its_sums() {
        let said =
            "progress\n\nwhat  times\ntorn  120\nsim: seeds=3 events=1500 faults=15 points=0 failures=0\n";
        let (table, last) = sum_of(said);
        assert_eq!(table, ["what  times", "torn  120"]);
        let counts = counts(last.unwrap());
        assert_eq!((counts["seeds"], counts["events"], counts["failures"]), (3, 1500, 0));
        assert_eq!(sum_of("killed\n").1, None);
    }
}
