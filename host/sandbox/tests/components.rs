//! Components that nobody has written: made up by wasm-smith, and guests with other instructions than they had. Each is
//! refused, or runs and is stopped in time, and the neighbour in the same engine never notices.
//!
//! The bug family: a trap that reaches the host, a stop that does not stop, an answer that is believed, a store that is used
//! again, a pool that is not given back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers fail as tests do"
)]
#![allow(dead_code, reason = "the guests of `hostile` have more parts")]

mod guest;

use guest::{Guest, answering, component, folding, frame, of_module};
use proptest::collection::vec;
use proptest::prelude::*;
use std::cell::RefCell;
use std::time::{Duration, Instant};
use tidemill_fuzz::wasm::{self, Original, mutants};
use tidemill_fuzz::{Targets, Verdict};
use tidemill_sandbox::{Component, Engine, Instance};

const TARGETS: Targets = Targets(3);
const DEADLINE: Duration = Duration::from_millis(20);
/// Far more than any step takes on a busy machine: an unbounded one takes for ever.
const STEP_MAX: Duration = Duration::from_secs(20);

/// An engine with a guest that must never notice anything.
struct Host {
    engine: Engine,
    neighbour: RefCell<Instance>,
    answer: Vec<u64>,
}

impl Host {
    fn new() -> Host {
        let engine = Engine::new().unwrap();
        let neighbour = Component::load(&engine, &Guest::default().build(), None).unwrap();
        let mut neighbour = neighbour.configure("{}").unwrap().instance().unwrap();
        let answer = neighbour.fold(&frame(64), DEADLINE).unwrap().to_vec();
        Host { engine, neighbour: RefCell::new(neighbour), answer }
    }

    /// Loads, configures, and calls as often as there are frames. Accepted if it answers one of them.
    fn try_out(&self, bytes: &[u8]) -> Verdict {
        let loaded = timed("load", || Component::load(&self.engine, bytes, None));
        let verdict = match loaded {
            Err(e) => {
                assert!(!e.is_host(), "the host is to blame: {e}");
                Verdict::Refused
            }
            Ok(component) => self.run(&component),
        };
        let mut neighbour = self.neighbour.borrow_mut();
        assert_eq!(
            neighbour.fold(&frame(64), STEP_MAX).unwrap(),
            self.answer,
            "the neighbour answers otherwise"
        );
        assert_eq!(neighbour.stats().rebuilds, 0);
        verdict
    }

    fn run(&self, component: &Component) -> Verdict {
        let Ok(plugin) = timed("configure", || component.configure("{}")) else { return Verdict::Refused };
        let Ok(mut instance) = timed("instance", || plugin.instance()) else { return Verdict::Refused };
        let mut answers = 0;
        for words in [0, 8, 100, 5_000] {
            let frame = frame(words);
            answers += u32::from(timed("fold", || instance.fold(&frame, DEADLINE).is_ok()));
            answers += u32::from(timed("migrate", || instance.migrate(1, &frame, DEADLINE).is_ok()));
        }
        assert!(instance.take_log().lines.len() <= 10_000);
        Verdict::accepted(answers > 0)
    }
}

fn timed<T>(what: &str, step: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let out = step();
    assert!(begun.elapsed() < STEP_MAX, "{what} took {:?}", begun.elapsed());
    out
}

/// A guest with more to change in it: it counts, copies, logs and grows its memory before it answers.
const BUSY: &str = "(local.set $i (i32.const 0))
    (block $out (loop $l
        (br_if $out (i32.ge_u (local.get $i) (i32.const 200)))
        (i32.store (i32.add (i32.const 8192) (i32.mul (local.get $i) (i32.const 4)))
            (i32.xor (local.get $i) (i32.load (i32.add (local.get $ptr) (i32.and (local.get $i) (i32.const 15))))))
        (i64.store (i32.const 512) (i64.or (i64.extend_i32_u (local.get $i)) (i64.const 0x0000000300000000)))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br $l)))
    (memory.copy (i32.const 16384) (i32.const 8192) (i32.const 800))
    (drop (memory.grow (i32.const 1)))
    (call $log (i32.const 1) (i32.const 1400) (i32.const 9))
    (if (f64.lt (f64.convert_i32_u (local.get $len)) (f64.const 3.5)) (then (call $log (i32.const 2) (i32.const 1400) (i32.const 4))))
    (local.set $i (i32.div_u (i32.const 2048) (i32.add (i32.const 1) (i32.and (local.get $len) (i32.const 0)))))
    local.get $i";

#[test]
fn guests_with_other_instructions() {
    let loop_ = "(loop $l (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $i) (i32.const 5000)))) i32.const 2048";
    let rename = "(i32.store (i32.const 8192) (i32.const 1)) i32.const 1024";
    let guests = [
        ("plain", Guest::default()),
        ("busy", folding(BUSY)),
        ("loop", folding(loop_)),
        ("answering", Guest { fold: answering(4096, 10), ..Guest::default() }),
        (
            "describing",
            Guest { describe: rename, configure: "(i32.shl (i32.const 128) (i32.const 1))", ..folding(BUSY) },
        ),
        (
            "starting",
            Guest {
                items: "(func $s (drop (memory.grow (i32.const 1)))) (start $s) (table 4 funcref)",
                ..Guest::default()
            },
        ),
    ];
    let originals: Vec<_> = guests.iter().map(|(name, g)| Original::new(name, g.build())).collect();
    let host = Host::new();
    TARGETS.fuzz("mutated guests", 300, mutants(originals), |mutant| {
        let verdict = host.try_out(&mutant.bytes);
        assert!(!mutant.is_original() || verdict == Verdict::Accepted, "as it was, it is refused");
        verdict
    });
}

/// A core module whose exports are those of a sessionizer, and whose functions do anything.
const EXPORTS: &str = r#"(module
    (memory (export "memory") 1)
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 0)
    (func (export "describe") (result i32) i32.const 0)
    (func (export "configure") (param i32 i32) (result i32) i32.const 0)
    (func (export "progress") (result i32) i32.const 0)
    (func (export "fold") (param i32 i32) (result i32) i32.const 0)
    (func (export "migrate") (param i32 i32 i32) (result i32) i32.const 0))"#;

/// Made up, with the right exports: nearly all fail when they are asked what they are, which is what is to be seen here. The
/// guest that answers stands between them, so that a host that refuses everything is seen too.
#[test]
fn made_up_modules_with_the_right_exports() {
    let exports = wat::parse_str(EXPORTS).unwrap();
    let right = Guest::default().build();
    let host = Host::new();
    let strategy = prop_oneof![9 => vec(any::<u8>(), 100..3_000), 1 => Just(Vec::new())];
    TARGETS.fuzz("made-up modules", 300, strategy, |dna| {
        if dna.is_empty() {
            return host.try_out(&right);
        }
        let made = wasm::module(&dna, Some(&exports)).expect("any bytes make a module");
        match of_module(made, tidemill_contract::WIT, "sessionizer") {
            Ok(component) => host.try_out(&component),
            Err(e) => panic!("no component can be made of it: {e}"),
        }
    });
}

/// Any modules and components at all, and one that is right but for its world.
#[test]
fn made_up_components() {
    let other =
        component("(module (func (export \"foo\")))", "package a:b; world w { export foo: func(); }", "w");
    let right = Guest::default().build();
    let host = Host::new();
    let strategy = (0..10_u8, vec(any::<u8>(), 100..3_000));
    TARGETS.fuzz("made-up components", 600, strategy, |(kind, dna)| match kind {
        0 => host.try_out(&right),
        1 => host.try_out(&other),
        2..6 => wasm::module(&dna, None).map_or(Verdict::Refused, |m| host.try_out(&m)),
        _ => wasm::component(&dna).map_or(Verdict::Refused, |c| host.try_out(&c)),
    });
}
