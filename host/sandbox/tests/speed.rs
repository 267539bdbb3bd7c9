//! What a call costs. Prints; asserts nothing about time. `cargo test --profile trial -p tidemill-sandbox --test speed -- --nocapture`
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a test's helpers fail as tests do")]

#[allow(dead_code, reason = "shared with other tests")]
mod guest;

use guest::{Guest, folding, frame};
use std::time::{Duration, Instant};
use tidemill_sandbox::{Component, Engine};

const DEADLINE: Duration = Duration::from_secs(1);

#[test]
fn a_call() {
    let engine = Engine::new().unwrap();
    let make =
        |guest: &Guest| Component::load(&engine, &guest.build(), None).unwrap().configure("{}").unwrap();

    let mut idle = make(&Guest::default()).instance().unwrap();
    let (empty, rounds) = (frame(0), 200_000);
    let begin = Instant::now();
    for _ in 0..rounds {
        idle.fold(&empty, DEADLINE).unwrap();
    }
    println!("empty frame: {:.0} ns a call", begin.elapsed().as_secs_f64() * 1e9 / f64::from(rounds));

    // Answers with the frame that it was given.
    let echo = "(i32.store (i32.const 2052) (local.get $ptr)) (i32.store (i32.const 2056) (local.get $len)) i32.const 2048";
    let mut echo = make(&folding(echo)).instance().unwrap();
    let (full, rounds) = (frame(64 << 10), 20_000);
    let begin = Instant::now();
    for _ in 0..rounds {
        assert_eq!(echo.fold(&full, DEADLINE).unwrap().len(), full.len());
    }
    let each = begin.elapsed().as_secs_f64() / f64::from(rounds);
    println!(
        "64 KiB in and out: {:.1} µs a call, {:.0} MB/s each way",
        each * 1e6,
        full.len() as f64 * 8e-6 / each
    );

    let plugin = make(&Guest::default());
    let (begin, rounds) = (Instant::now(), 1_000);
    for _ in 0..rounds {
        drop(plugin.instance().unwrap());
    }
    println!(
        "an instance, made, configured and warmed: {:.1} µs",
        begin.elapsed().as_secs_f64() * 1e6 / f64::from(rounds)
    );
}
