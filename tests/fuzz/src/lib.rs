//! Fuzzing on the stable tool chain, as ordinary tests: valid inputs are edited (`edit`) and given to a target, which says
//! whether it has accepted them, and panics if anything is wrong.
//!
//! proptest makes and shrinks the inputs. What it finds depends on the strategies: random bytes are refused at the first
//! byte, so every target begins with inputs that are right, and a target that has accepted or refused nothing fails: it
//! would show nothing.
//!
//! | variable | what | default |
//! |---|---|---|
//! | `TIDEMILL_FUZZ_SECONDS` | how long a test program runs; its targets share the time | as many inputs as each target names |
//! | `TIDEMILL_FUZZ_SEED` | a number; the same one makes the same inputs | 1 |
//!
//! A failure prints the input, shrunk, and the seed whose first batch has it. An input that takes longer than a minute ends
//! the process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

pub mod edit;
pub mod wasm;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use std::cell::Cell;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Inputs of one seed; the next batch has the next seed.
const BATCH: u32 = 64;
/// Longest that one input may take: far more than any needs on a busy machine.
const INPUT_MAX: Duration = Duration::from_secs(60);
/// Shrinking is for the reader; it need not be perfect.
const SHRINK_STEPS_MAX: u32 = 2_000;

/// What a target has made of an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It was taken for what it may be.
    Accepted,
    /// It was refused, in words.
    Refused,
}

impl Verdict {
    /// Accepted if so.
    #[must_use]
    pub fn accepted(is: bool) -> Verdict {
        if is { Verdict::Accepted } else { Verdict::Refused }
    }
}

/// What a run of a target has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Inputs given.
    pub inputs: u64,
    /// Those that it took.
    pub accepted: u64,
}

/// The targets of one test program, which share its time.
#[derive(Clone, Copy, Debug)]
pub struct Targets(
    /// How many there are.
    pub u32,
);

impl Targets {
    /// Gives a target so many inputs, or as many as there is time for, and reports what it made of them.
    ///
    /// # Panics
    /// If the target does, with the input; if it hangs, the process is aborted; and if it has accepted or refused none.
    pub fn fuzz<S: Strategy>(self, name: &str, inputs: u64, strategy: S, target: impl Fn(S::Value) -> Verdict)
    where
        S::Value: std::fmt::Debug,
    {
        let counts = run(name, inputs, self.time_of_each(), strategy, target);
        let refused = counts.inputs - counts.accepted;
        assert!(counts.accepted > 0 && refused > 0, "{name}: {counts:?} show nothing");
    }

    /// Each target's part of the time, where as many run at once as there are processors.
    fn time_of_each(self) -> Option<Duration> {
        let at_once = std::thread::available_parallelism().map_or(1, |n| n.get() as u32).min(self.0);
        number("TIDEMILL_FUZZ_SECONDS").map(|n| Duration::from_secs(n) * at_once / self.0)
    }
}

/// Fuzzes one target; it need not refuse anything, or accept anything.
fn run<S: Strategy>(
    name: &str,
    inputs: u64,
    time: Option<Duration>,
    strategy: S,
    target: impl Fn(S::Value) -> Verdict,
) -> Counts
where
    S::Value: std::fmt::Debug,
{
    let first = number("TIDEMILL_FUZZ_SEED").unwrap_or(1);
    let begun = Instant::now();
    let watch = Watch::over(name);
    let quiet = Quiet::begin();
    let (mut seed, made, accepted) = (first, Cell::new(0), Cell::new(0));
    loop {
        let enough = time.map_or(made.get() >= inputs, |most| begun.elapsed() >= most);
        if enough {
            break;
        }
        let config = Config {
            cases: BATCH,
            failure_persistence: None,
            max_shrink_iters: SHRINK_STEPS_MAX,
            ..Config::default()
        };
        let mut runner = TestRunner::new_with_rng(config, rng(seed));
        let result = runner.run(&strategy, |input| {
            watch.now_at(seed);
            let verdict = target(input);
            made.set(made.get() + 1);
            accepted.set(accepted.get() + u64::from(verdict == Verdict::Accepted));
            Ok(())
        });
        match result {
            Ok(()) => seed = seed.wrapping_add(1),
            Err(TestError::Fail(why, input)) => {
                drop(quiet);
                panic!("fuzz {name}: {why}\nthe input: {input:?}\nagain: TIDEMILL_FUZZ_SEED={seed}")
            }
            Err(TestError::Abort(why)) => {
                drop(quiet);
                panic!("fuzz {name}: {why}")
            }
        }
    }
    let (inputs, accepted) = (made.get(), accepted.get());
    report(&format!(
        "fuzz {name}: {inputs} inputs, {accepted} accepted, {} refused, seed {first}, {:.1} s",
        inputs - accepted,
        begun.elapsed().as_secs_f64()
    ));
    Counts { inputs, accepted }
}

/// Randomness out of a number.
fn rng(seed: u64) -> TestRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Says what was counted, on standard error and, for whoever runs the whole suite, in the file that `TIDEMILL_REPORT` names.
pub fn report(line: &str) {
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("TIDEMILL_REPORT") {
        // One write, since other tests append too.
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// While it is there, panics of this thread print nothing: each step of shrinking is one, and the last is told by us.
struct Quiet;

impl Quiet {
    fn begin() -> Quiet {
        static HOOK: std::sync::Once = std::sync::Once::new();
        HOOK.call_once(|| {
            let loud = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if !IS_QUIET.get() {
                    loud(info);
                }
            }));
        });
        IS_QUIET.set(true);
        Quiet
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        IS_QUIET.set(false);
    }
}

/// Ends the process if one input takes too long: a hang has to be seen as one, with its seed.
struct Watch {
    seed: Arc<AtomicU64>,
    inputs: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watch {
    fn over(name: &str) -> Watch {
        let (seed, inputs) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let over = Arc::new(AtomicBool::new(false));
        let name = name.to_owned();
        let thread = std::thread::spawn({
            let (seed, inputs, over) = (seed.clone(), inputs.clone(), over.clone());
            move || {
                let (mut last, mut since) = (0, Instant::now());
                while !over.load(Ordering::Acquire) {
                    std::thread::park_timeout(Duration::from_secs(1));
                    let now = inputs.load(Ordering::Acquire);
                    if now != last {
                        (last, since) = (now, Instant::now());
                    } else if now > 0 && since.elapsed() > INPUT_MAX {
                        let seed = seed.load(Ordering::Acquire);
                        let text = format!(
                            "fuzz {name}: input {now} takes longer than {INPUT_MAX:?}\nagain: TIDEMILL_FUZZ_SEED={seed}\n"
                        );
                        // Not `eprintln`, which a test's harness holds back.
                        let _ = std::io::stderr().write_all(text.as_bytes());
                        std::process::abort();
                    }
                }
            }
        });
        Watch { seed, inputs, over, thread: Some(thread) }
    }

    fn now_at(&self, seed: u64) {
        self.seed.store(seed, Ordering::Release);
        self.inputs.fetch_add(1, Ordering::AcqRel);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edit::edited;
    use std::cell::RefCell;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn inputs_of(name: &str) -> Vec<Vec<u8>> {
        let seen = RefCell::new(Vec::new());
        let strategy = edited(vec![b"one two".to_vec(), Vec::new()], vec![b"word".to_vec()]);
        let _ = run(name, 200, None, strategy, |input| {
            seen.borrow_mut().push(input.0);
            Verdict::Accepted
        });
        seen.into_inner()
    }

    #[test]
    fn the_same_seed_makes_the_same_inputs() {
        let (one, two) = (inputs_of("same"), inputs_of("same again"));
        assert!(one.len() >= 200);
        assert_eq!(one, two);
        let distinct: std::collections::BTreeSet<_> = one.iter().collect();
        assert!(distinct.len() > 100, "{} distinct of {}", distinct.len(), one.len());
        assert!(one.iter().any(|i| i == b"one two"), "none was left as it was");
    }

    #[test]
    fn what_fails_is_shrunk_and_says_how_to_see_it_again() {
        let strategy = edited(vec![b"0123456789".to_vec()], Vec::new());
        let failed = catch_unwind(AssertUnwindSafe(|| {
            Targets(1).fuzz("shrinks", 10_000, strategy, |input| {
                assert!(input.0.len() <= 10, "it grew");
                Verdict::Accepted
            });
        }));
        let said = *failed.unwrap_err().downcast::<String>().unwrap();
        assert!(said.contains("it grew") && said.contains("TIDEMILL_FUZZ_SEED="), "{said}");
    }

    #[test]
    fn a_target_that_takes_everything_shows_nothing() {
        let all = |verdict: Verdict| {
            let strategy = edited(vec![b"x".to_vec()], Vec::new());
            catch_unwind(AssertUnwindSafe(|| Targets(1).fuzz("all alike", 10, strategy, |_| verdict)))
                .is_err()
        };
        assert!(all(Verdict::Accepted) && all(Verdict::Refused));
    }
}
