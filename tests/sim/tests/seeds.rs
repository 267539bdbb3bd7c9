//! A few hundred seeds, each checked after every step and compared with the model at its end; `tidemill-sim` runs thousands.
//!
//! Catches: whatever is lost, doubled, sent too early, sent from nowhere or forgotten, where disks, processes, clocks, sources,
//! sinks and rules fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use tidemill_sim::points::{self, Which};
use tidemill_sim::{Counts, Of, run};

/// Enough that everything there is to occur does occur.
const SEEDS: u64 = 400;
/// Scripts, and how many of their crash points: all of them are `tidemill-sim`'s.
const SCRIPTS: u64 = 10;
const EVERY: Which = Which::Every(37);

#[test]
fn what_must_hold_holds_in_every_seed_and_everything_occurs() {
    let mut counts = Counts::default();
    for seed in 1..=SEEDS {
        let report = run(seed, None).unwrap_or_else(|f| {
            panic!(
                "step {}: {}\nrerun: cargo run -q -p tidemill-sim --profile trial -- --seed {seed} --trace",
                f.step, f.what
            )
        });
        assert!(report.events >= 500 && report.counts.faults() >= 5, "seed {seed}: {report:?}");
        counts.merge(&report.counts);
    }
    // A hundred times is asked of the long run.
    let rare = counts.rare(1);
    assert!(rare.is_empty(), "never occurred: {rare:?}");
    println!("{SEEDS} seeds, {} faults", counts.faults());
}

#[test]
fn the_same_seed_does_the_same_twice() {
    for seed in 1..=20 {
        let twice = [run(seed, None).unwrap(), run(seed, None).unwrap()];
        assert_eq!(twice[0], twice[1], "seed {seed}");
    }
    assert_ne!(run(1, None).unwrap().trace, run(2, None).unwrap().trace);
}

#[test]
fn crash_points_of_some_scripts_recover() {
    let mut held = 0;
    let mut whole = Counts::default();
    for script in 1..=SCRIPTS {
        let counts = points::script(script, EVERY, |point, verdict| {
            verdict.unwrap_or_else(|what| {
                panic!(
                    "{what}\nrerun: cargo run -q -p tidemill-sim --profile trial -- --script {script} --point {point}"
                )
            });
            held += 1;
            true
        });
        whole.merge(&counts.unwrap());
    }
    assert!(held > 500, "{held} points");
    for (of, what) in [(Of::Policy, "swap, migrate"), (Of::Stage, "corrected"), (Of::Stage, "retracted")] {
        assert!(whole.get(of, what) > 0, "no script has a {what}");
    }
    println!("{held} crash points");
}
