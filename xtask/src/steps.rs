//! Starting other programs, and saying what they are for and how long they took.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Why a command ended without success.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// A sentence for the user.
    pub(crate) message: String,
}

impl Failure {
    /// The command line is wrong.
    pub(crate) fn usage(message: &str) -> Failure {
        Failure { code: 2, message: message.to_owned() }
    }
    /// Something else went wrong.
    pub(crate) fn new(message: impl Into<String>) -> Failure {
        Failure { code: 1, message: message.into() }
    }
    /// The program `what` ended with this status.
    pub(crate) fn of(what: &str, status: ExitStatus) -> Failure {
        // A program killed by a signal has no code; 1 says no more than that it failed.
        let code = status.code().and_then(|c| u8::try_from(c).ok()).filter(|c| *c != 0).unwrap_or(1);
        Failure { code, message: format!("{what}: {status}") }
    }
}

/// Adds to an I/O error what was being done.
pub(crate) fn doing<T>(what: &str, result: std::io::Result<T>) -> Result<T, Failure> {
    result.map_err(|e| Failure::new(format!("{what}: {e}")))
}

/// One line to the user. A reader that went away is no reason to stop.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// The workspace's folder.
pub(crate) fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_path_buf()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    workspace().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| OsString::from("target")))
}

/// The tool chain's cargo, in the workspace's folder.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = tool("cargo");
    command.args(arguments);
    command
}

/// A program of the tool chain that runs us, in the workspace's folder. The tool chain's own folder comes
/// first in the path, so that clippy and rustfmt are found on a machine that has nothing else there.
pub(crate) fn tool(name: &str) -> Command {
    let cargo = std::env::var_os("CARGO").map(PathBuf::from);
    let own = cargo.as_deref().and_then(Path::parent).filter(|p| p.is_absolute()).map(Path::to_path_buf);
    let program = own.as_ref().map(|p| p.join(name)).filter(|p| p.exists());
    let mut command = Command::new(program.unwrap_or_else(|| PathBuf::from(name)));
    command.current_dir(workspace());
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Ok(path) = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path))) {
        command.env("PATH", path);
    }
    command
}

/// What tests and lints are built with wherever the whole workspace is: one set of features, so that nothing is built twice.
pub(crate) const FEATURES: &str = "--features=tidemill/services";

/// What plugins are built for, and what proves that the engine is pure: a place without files, threads or clocks.
pub(crate) const PURE_TARGET: &str = "wasm32-unknown-unknown";

/// The command that adds the target's library to the tool chain; none if it is there. rustup may be out of reach.
pub(crate) fn add_target() -> Option<Command> {
    let rustc = tool("rustc").args(["--print", "target-libdir", "--target", PURE_TARGET]).output();
    let there = rustc
        .is_ok_and(|o| o.status.success() && Path::new(String::from_utf8_lossy(&o.stdout).trim()).is_dir());
    if there {
        return None;
    }
    let mut add = Command::new("rustup");
    add.args(["target", "add", PURE_TARGET]);
    Some(add)
}

/// Runs a program to its end; its output goes where ours goes.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<Duration, Failure> {
    let begun = Instant::now();
    let status = command.status().map_err(|e| Failure::new(format!("{what}: cannot be started: {e}")))?;
    if status.success() { Ok(begun.elapsed()) } else { Err(Failure::of(what, status)) }
}

/// `12.3 s`.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// The exit code of a command that was interrupted.
pub(crate) const INTERRUPTED: u8 = 130;

/// How a program that is watched came to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Watched {
    /// By itself.
    Ended(ExitStatus),
    /// It took longer than it may, and was stopped with all that it had started.
    Hung,
}

/// Runs a program for at most so long; what it says goes behind what is in `log`. An interrupt ends it with us.
pub(crate) fn watched(
    what: &str,
    command: &mut Command,
    log: &Path,
    most: Duration,
) -> Result<Watched, Failure> {
    use std::os::unix::process::CommandExt as _;
    use std::sync::mpsc::{RecvTimeoutError, channel};

    let out = doing("the log", std::fs::File::options().create(true).append(true).open(log))?;
    let err = doing("the log", out.try_clone())?;
    // A group of its own: what it has started is stopped with it.
    command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
    let mut signals = doing(
        "a handler for Ctrl-C",
        signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM]),
    )?;
    let handle = signals.handle();
    let mut child = command.spawn().map_err(|e| Failure::new(format!("{what}: cannot be started: {e}")))?;
    let group = rustix::process::Pid::from_child(&child);
    let (ended, news) = channel();
    let interrupted = ended.clone();
    let waits = std::thread::spawn(move || drop(ended.send(Some(child.wait()))));
    let listens = std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            drop(interrupted.send(None));
        }
    });
    let first = news.recv_timeout(most);
    if !matches!(first, Ok(Some(_))) {
        // Gone already is as good.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = waits.join();
    handle.close();
    let _ = listens.join();
    match first {
        Ok(Some(status)) => Ok(Watched::Ended(doing(what, status)?)),
        Ok(None) => Err(Failure { code: INTERRUPTED, message: format!("{what}: interrupted") }),
        Err(RecvTimeoutError::Timeout) => Ok(Watched::Hung),
        Err(RecvTimeoutError::Disconnected) => Err(Failure::new(format!("{what}: nobody has waited for it"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_stopped_with_all_that_it_started() {
        let log = std::env::temp_dir().join(format!("watched-{}", std::process::id()));
        let shell = |script: &str, most| {
            watched("a script", Command::new("sh").args(["-c", script]), &log, Duration::from_millis(most))
        };
        assert!(matches!(shell("echo said; exit 3", 60_000), Ok(Watched::Ended(s)) if s.code() == Some(3)));
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "said\n");
        // The child of the script holds the log; that it is gone is seen by nobody writing to it any more.
        let begun = Instant::now();
        assert!(matches!(shell("(sleep 600) & echo $!; wait", 300), Ok(Watched::Hung)));
        assert!(begun.elapsed() < Duration::from_secs(60));
        let said = std::fs::read_to_string(&log).unwrap();
        let pid = said.lines().last().unwrap();
        let is_there = || {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            state.is_ok_and(|s| !s.contains(") Z"))
        };
        while is_there() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the child of the script is still there");
            std::thread::yield_now();
        }
        std::fs::remove_file(&log).unwrap();
    }
}
