//! Programs of `go/`, built once into the target folder by Go itself, which fetches the libraries that they name. One that runs takes
//! orders, each a line of JSON, and answers each with a line.

use crate::{Absent, artifacts};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// A JVM starts within this on a machine that does something else as well.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// The program of a folder of `go/`.
pub(crate) fn program(name: &str) -> Result<PathBuf, Absent> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("go").join(name);
    let folder = artifacts::target_dir()?.join("services").join("go");
    let broken = |what: &str, e: std::io::Error| Absent::Broken(format!("{what} {}: {e}", folder.display()));
    fs::create_dir_all(&folder).map_err(|e| broken("cannot make", e))?;
    // Other test binaries may want the same at the same time. Held until the file is closed.
    let lock = File::create(folder.join(format!("{name}.lock"))).map_err(|e| broken("cannot lock", e))?;
    lock.lock().map_err(|e| broken("cannot lock", e))?;
    let program = folder.join(name);
    // What is not there may be missing, what cannot be compiled is broken.
    go(&source, &["mod", "download"])?
        .map_err(|said| Absent::Missing(format!("Go could not fetch its libraries: {said}")))?;
    let out = program.display().to_string();
    go(&source, &["build", "-mod=readonly", "-buildvcs=false", "-o", &out, "."])?.map_err(Absent::Broken)?;
    Ok(program)
}

/// Runs it; what it says if it fails.
fn go(source: &Path, arguments: &[&str]) -> Result<Result<(), String>, Absent> {
    let output = Command::new("go").args(arguments).current_dir(source).stdin(Stdio::null()).output();
    let output =
        output.map_err(|e| Absent::Missing(format!("it is built with Go, and `go` cannot run: {e}")))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok(if output.status.success() { Ok(()) } else { Err(said) })
}

/// A program that runs; it is killed with the value, as by a power cut.
pub(crate) struct Running {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Running {
    /// Starts it, and waits until it says where it listens.
    pub(crate) fn start(program: &Path, arguments: &[&str]) -> Result<(Running, String), Absent> {
        let broken = |e: std::io::Error| Absent::Broken(format!("{}: {e}", program.display()));
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(broken)?;
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Absent::Broken("it has no pipes".to_owned()));
        };
        let mut running = Running { child, orders, answers: BufReader::new(answers) };
        let mut said = String::new();
        running.answers.read_line(&mut said).map_err(broken)?;
        Ok((running, said.trim().trim_matches('"').to_owned()))
    }

    /// Its answer to an order.
    pub(crate) fn order(&mut self, order: &Value) -> Value {
        writeln!(self.orders, "{order}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the Cloud SDK has at this place, if it is installed.
pub(crate) fn in_sdk(place: &str) -> Option<PathBuf> {
    let asked =
        Command::new("gcloud").args(["info", "--format=value(installation.sdk_root)"]).output().ok()?;
    let root = PathBuf::from(String::from_utf8(asked.stdout).ok()?.trim());
    Some(root.join(place)).filter(|p| p.is_file())
}

/// An emulator of Google's. Ends with the value.
pub struct Emulator(Child);

impl Emulator {
    /// Starts it, and waits until it says that it listens.
    pub(crate) fn start(program: &Path, arguments: &[String], listens: &str) -> Emulator {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Its script starts another program: both end together.
            .process_group(0)
            .spawn()
            .expect("the emulator starts");
        let mut emulator = Emulator(child);
        let (said, heard) = mpsc::channel();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(emulator.0.stdout.take().unwrap()), Box::new(emulator.0.stderr.take().unwrap())];
        for stream in streams {
            let said = said.clone();
            // Read to its end, so that it never waits for us.
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = said.send(line);
                }
            });
        }
        drop(said);
        let mut all = Vec::new();
        while !all.last().is_some_and(|line: &String| line.contains(listens)) {
            match heard.recv_timeout(STARTS_WITHIN) {
                Ok(line) => all.push(line),
                Err(_) => panic!("the emulator does not listen: {all:?}"),
            }
        }
        emulator
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.0.wait();
    }
}
