//! What stands between `cargo test` and each test program: it says how many tests of a program run at once.
//!
//! Tests that start real processes and fold millions of events want a core each, which is how it is by itself. Those that wait
//! for a service most of the time only keep each other waiting then.

use crate::steps::{Failure, tool};
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

/// The first argument by which we are called as a runner.
pub(crate) const NAME: &str = "run-test";

/// Programs whose tests wait for something most of the time, and how many tests of one run at once: less where each folds more.
const WAITING: [(&str, &str); 9] = [
    ("kafka", "8"),
    ("topics", "8"),
    ("pubsub", "8"),
    ("bigtable", "4"),
    ("bigquery", "4"),
    ("postgres", "4"),
    ("drain", "4"),
    ("stopping", "4"),
    ("suspended", "4"),
];

/// What makes cargo start test programs by us; none if nobody knows what we run on.
pub(crate) fn variable() -> Option<(String, OsString)> {
    let said = tool("rustc").arg("-vV").output().ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "))?;
    let name = format!("CARGO_TARGET_{}_RUNNER", host.to_uppercase().replace('-', "_"));
    let own = std::env::current_exe().ok()?;
    // Cargo splits it at blanks.
    let plain = own.to_str().filter(|path| !path.contains(char::is_whitespace))?;
    Some((name, format!("{plain} {NAME}").into()))
}

/// Runs a test program with its arguments; its exit code is ours.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Failure> {
    let (program, rest) = arguments.split_first().ok_or_else(|| Failure::usage("name a test program"))?;
    let mut command = Command::new(program);
    command.args(rest);
    if let Some(at_once) = at_once(program).filter(|_| std::env::var_os("RUST_TEST_THREADS").is_none()) {
        command.env("RUST_TEST_THREADS", at_once);
    }
    let status = command.status().map_err(|e| Failure::new(format!("{program}: {e}")))?;
    // One that was killed has no code.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// How many tests of `deps/NAME-HASH` run at once, if not one a core.
fn at_once(program: &str) -> Option<&'static str> {
    let stem = Path::new(program).file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let name = stem.rsplit_once('-').map_or(stem, |(name, _)| name);
    WAITING.iter().find(|(of, _)| *of == name).map(|(_, at_once)| *at_once)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_that_wait_run_more_tests_at_once() {
        assert_eq!(at_once("/target/trial/deps/kafka-14e8d40f48faa490"), Some("8"));
        assert_eq!(at_once("postgres-7a.exe"), Some("4"));
        assert!(
            at_once("/target/trial/deps/crash-9538bd846341aa10").is_none()
                && at_once("/kafka/deps/x-1").is_none()
        );
        let threads =
            |program: &str| run(&[program.into(), "-c".into(), "exit ${RUST_TEST_THREADS:-1}".into()]);
        assert!(threads("sh").is_ok_and(|code| code == ExitCode::from(1)));
        assert!(threads("/nonexistent").is_err());
    }
}
