//! Many seeds, one seed, or the crash points of scripts: what is run is said by arguments, what occurred is printed.
//! The last line is for a machine; every failure has printed a line that runs it again.
#![allow(clippy::print_stdout, reason = "a command line")]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidemill_sim::Counts;
use tidemill_sim::points::{self, Which};

/// From so many seeds on, what is rare is missing.
const SEEDS_TO_JUDGE: u64 = 2_000;
/// How often everything must have occurred then.
const OFTEN: u64 = 100;

const USAGE: &str = "usage: tidemill-sim [--minutes N] [--seeds N] [--points N] [--start SEED] [--threads N]
       tidemill-sim --seed SEED [--trace]
       tidemill-sim --script SEED [--point N]";

/// A week: what is longer was mistyped.
const MINUTES_MAX: f64 = 10_080.0;

#[derive(Default)]
struct Args {
    minutes: Option<f64>,
    seeds: Option<u64>,
    points: Option<u64>,
    start: u64,
    threads: Option<u64>,
    seed: Option<u64>,
    trace: bool,
    script: Option<u64>,
    point: Option<u64>,
}

fn parse() -> Option<Args> {
    let mut a = Args { start: 1, ..Args::default() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--minutes" {
            let minutes = words.next()?.parse().ok();
            a.minutes = Some(minutes.filter(|m| (0.0..=MINUTES_MAX).contains(m))?);
            continue;
        }
        let mut number = || words.next()?.parse::<u64>().ok();
        match word.as_str() {
            "--trace" => a.trace = true,
            "--seeds" => a.seeds = Some(number()?),
            "--points" => a.points = Some(number()?),
            "--start" => a.start = number()?,
            "--threads" => a.threads = Some(number()?),
            "--seed" => a.seed = Some(number()?),
            "--script" => a.script = Some(number()?),
            "--point" => a.point = Some(number()?),
            _ => return None,
        }
    }
    Some(a)
}

/// What all threads have come to.
#[derive(Default)]
struct Totals {
    counts: Mutex<Counts>,
    seeds: AtomicU64,
    events: AtomicU64,
    points: AtomicU64,
    failures: AtomicU64,
}

impl Totals {
    fn failed(&self, what: &str, again: &str) {
        // Many seeds fail of one cause: the first few say it.
        if self.failures.fetch_add(1, Ordering::Relaxed) < 10 {
            let what: String = what.chars().take(2_000).collect();
            println!("FAILED: {what}\nrerun: cargo run -q -p tidemill-sim --profile trial -- {again}");
        }
    }
}

/// Gives out numbers from `start` on to some threads, until `most` are given out or the time is over.
fn each(
    threads: u64,
    start: u64,
    most: Option<u64>,
    until: Option<Instant>,
    run: impl Fn(u64) -> bool + Sync,
) {
    let next = AtomicU64::new(start);
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) && until.is_none_or(|t| Instant::now() < t) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if most.is_some_and(|most| n >= start + most) || !run(n) {
                        enough.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

fn many(a: &Args) -> ExitCode {
    let begun = Instant::now();
    let totals = Totals::default();
    let threads = a.threads.unwrap_or(2).max(1);
    let until = |share: f64| a.minutes.map(|m| begun + Duration::from_secs_f64(m * 60.0 * share));
    let share_of_seeds = if a.points == Some(0) { 1.0 } else { 0.5 };
    // Without a number, time decides.
    let seeds = a.seeds.or(a.minutes.is_none().then_some(SEEDS_TO_JUDGE));
    each(threads, a.start, seeds, until(share_of_seeds), |seed| {
        match tidemill_sim::run(seed, None) {
            Ok(r) => {
                totals.events.fetch_add(r.events, Ordering::Relaxed);
                totals.counts.lock().map(|mut c| c.merge(&r.counts)).unwrap_or_default();
            }
            Err(f) => totals.failed(
                &format!("seed {} at step {}: {}", f.seed, f.step, f.what),
                &format!("--seed {}", f.seed),
            ),
        }
        let n = totals.seeds.fetch_add(1, Ordering::Relaxed) + 1;
        if n.is_multiple_of(1_000) {
            println!("{n} seeds in {:.0} s", begun.elapsed().as_secs_f64());
        }
        true
    });
    let points = a.points.or(a.minutes.is_none().then_some(0));
    each(threads, a.start, None, until(1.0), |script| {
        let enough =
            |totals: &Totals| points.is_some_and(|most| totals.points.load(Ordering::Relaxed) >= most);
        if enough(&totals) {
            return false;
        }
        let run = points::script(script, Which::All, |point, verdict| {
            totals.points.fetch_add(1, Ordering::Relaxed);
            if let Err(what) = verdict {
                totals.failed(&what, &format!("--script {script} --point {point}"));
            }
            !enough(&totals) && until(1.0).is_none_or(|t| Instant::now() < t)
        });
        if let Err(what) = run {
            totals.failed(&what, &format!("--script {script}"));
        }
        true
    });
    let counts = totals.counts.into_inner().unwrap_or_default();
    print!("{}", counts.table());
    let seeds = totals.seeds.into_inner();
    let mut failures = totals.failures.into_inner();
    let rare = counts.rare(OFTEN);
    if seeds < SEEDS_TO_JUDGE {
        println!("{seeds} seeds are too few to judge what is rare ({SEEDS_TO_JUDGE} are enough)");
    } else if !rare.is_empty() {
        failures += 1;
        println!("FAILED: occurred less than {OFTEN} times: {}", rare.join("; "));
    }
    println!(
        "sim: seeds={seeds} events={} faults={} points={} failures={failures}",
        totals.events.into_inner(),
        counts.faults(),
        totals.points.into_inner(),
    );
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(seed: u64, trace: bool) -> ExitCode {
    let mut say = |line: &str| println!("{line}");
    match tidemill_sim::run(seed, if trace { Some(&mut say) } else { None }) {
        Ok(r) => {
            println!(
                "seed {seed}: {} events, {} faults, trace {:016x}",
                r.events,
                r.counts.faults(),
                r.trace
            );
            ExitCode::SUCCESS
        }
        Err(f) => {
            println!("FAILED: seed {} at step {}: {}", f.seed, f.step, f.what);
            ExitCode::FAILURE
        }
    }
}

fn crash_points(script: u64, point: Option<u64>) -> ExitCode {
    let (mut held, mut failed) = (0, 0);
    let run = points::script(script, point.map_or(Which::All, Which::One), |n, verdict| {
        match verdict {
            Ok(()) => held += 1,
            Err(what) => {
                failed += 1;
                println!("FAILED: point {n}: {what}");
            }
        }
        true
    });
    if let Err(what) = run {
        failed += 1;
        println!("FAILED: {what}");
    }
    println!("script {script}: {held} points held, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn main() -> ExitCode {
    let Some(a) = parse() else {
        println!("{USAGE}");
        return ExitCode::from(2);
    };
    match (a.seed, a.script) {
        (Some(seed), _) => one(seed, a.trace),
        (None, Some(script)) => crash_points(script, a.point),
        (None, None) => many(&a),
    }
}
