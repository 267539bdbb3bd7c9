//! A plugin's crate on the author's disk, and cargo at work on it.
//!
//! Cargo is asked, never guessed at: where it builds, what the crate is called, which file came out. It is started in the
//! crate's folder, so that the author's own `.cargo/config.toml` and tool chain hold, and everything that it says goes
//! to stderr.

use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::super::out::Failure;

/// What plugins are compiled for: a machine without files, clock and randomness.
const TARGET: &str = "wasm32-unknown-unknown";
/// The profile that plugins are compiled with.
const PROFILE: &str = "plugin";
/// What that profile is unless the author's workspace has one of that name: fast first, then small.
const PROFILE_SETTINGS: [&str; 7] = [
    "inherits=\"release\"",
    "opt-level=3",
    "lto=\"fat\"",
    "codegen-units=1",
    "panic=\"abort\"",
    "debug=false",
    "strip=\"debuginfo\"",
];

/// A plugin's crate.
#[derive(Debug)]
pub(super) struct Project {
    /// The crate's folder.
    dir: PathBuf,
    /// The crate's name.
    pub(super) name: String,
    /// The crate as cargo tells it from all others.
    id: String,
    /// Where cargo puts what it builds.
    target_dir: PathBuf,
    /// Whether the author has a profile of their own.
    has_profile: bool,
}

impl Project {
    /// Asks cargo about the crate in this folder.
    ///
    /// # Errors
    /// If there is none, or it cannot become a plugin.
    pub(super) fn find(dir: &Path) -> Result<Project, Failure> {
        let wrong = |message: String, help: &str| Failure::new(4, message, help.to_owned());
        let manifest = dir.join("Cargo.toml");
        let manifest = manifest.canonicalize().map_err(|e| {
            wrong(
                format!("{}: {e}", manifest.display()),
                "name the folder of a plugin's crate, with its Cargo.toml",
            )
        })?;
        let dir = manifest.parent().unwrap_or(dir).to_owned();
        let metadata = metadata(&dir)?;
        let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
        let here = |p: &&Value| p["manifest_path"].as_str().is_some_and(|m| Path::new(m) == manifest);
        let Some(package) = packages.iter().find(here) else {
            let names: Vec<&str> = packages.iter().filter_map(|p| p["manifest_path"].as_str()).collect();
            return Err(wrong(
                format!("{} is a workspace and no crate", manifest.display()),
                &format!("name the folder of one of its crates: {}", names.join(", ")),
            ));
        };
        let targets = package["targets"].as_array().map_or(&[][..], Vec::as_slice);
        let is_cdylib =
            |t: &Value| t["crate_types"].as_array().is_some_and(|k| k.iter().any(|k| k == "cdylib"));
        if !targets.iter().any(is_cdylib) {
            return Err(wrong(
                format!("{} makes no library that can become a plugin", manifest.display()),
                "add to it:\n\n  [lib]\n  crate-type = [\"cdylib\", \"rlib\"]\n\ncdylib is the plugin, rlib is for its tests",
            ));
        }
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        Ok(Project {
            name: text(&package["name"]),
            id: text(&package["id"]),
            target_dir: PathBuf::from(text(&metadata["target_directory"])),
            has_profile: has_profile(Path::new(&text(&metadata["workspace_root"]))),
            dir,
        })
    }

    /// Where its component goes, if the author does not say.
    pub(super) fn default_component(&self) -> PathBuf {
        self.target_dir.join("plugins").join(format!("{}.wasm", self.name))
    }

    /// Compiles it; gives the core module.
    ///
    /// # Errors
    /// If the target is missing or the crate does not compile.
    pub(super) fn module(&self) -> Result<PathBuf, Failure> {
        self.require_target()?;
        let mut build = cargo(&self.dir);
        build.args(["build", "--lib", "--profile", PROFILE, "--target", TARGET, "--package", &self.id]);
        build.arg("--message-format=json-render-diagnostics");
        if !self.has_profile {
            let settings = PROFILE_SETTINGS.map(|s| format!("profile.{PROFILE}.{s}"));
            build.args(settings.iter().flat_map(|s| ["--config", s]));
        }
        let mut child = build.stdout(Stdio::piped()).spawn().map_err(|e| no_cargo(&e))?;
        let mut module = None;
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).lines() {
                // Lines that are no JSON come from build scripts and macros of the author's; they are not for us.
                let Ok(message) = serde_json::from_str::<Value>(&line?) else { continue };
                if message["reason"] == "compiler-artifact" && message["package_id"] == *self.id {
                    let files = message["filenames"].as_array().map_or(&[][..], Vec::as_slice);
                    module = files
                        .iter()
                        .filter_map(Value::as_str)
                        .find(|f| f.ends_with(".wasm"))
                        .map(PathBuf::from);
                }
            }
        }
        let status = child.wait()?;
        match module {
            Some(module) if status.success() => Ok(module),
            _ if status.success() => {
                Err(Failure::new(1, format!("cargo built {} and named no .wasm file", self.name), None))
            }
            _ => Err(Failure::new(
                1,
                format!("{} does not compile: cargo ended with {status}", self.name),
                None,
            )),
        }
    }

    /// Runs its tests natively; what scenarios ask goes into this folder. Whether all passed.
    ///
    /// # Errors
    /// If they do not compile.
    pub(super) fn test(&self, record: &Path) -> Result<bool, Failure> {
        // Said, because a folder of plugins may well have a `.cargo/config.toml` that builds all for the plugins' target.
        let host = self.host()?;
        let run = |more: &[&str]| {
            let mut test = cargo(&self.dir);
            test.args(["test", "--target", &host, "--package", &self.id])
                .args(more)
                .env("TIDEMILL_RECORD", record);
            test.status().map_err(|e| no_cargo(&e))
        };
        // Apart, because cargo ends with one code for both.
        let built = run(&["--no-run"])?;
        if !built.success() {
            let message = format!("the tests of {} do not compile: cargo ended with {built}", self.name);
            return Err(Failure::new(1, message, None));
        }
        Ok(run(&[])?.success())
    }

    /// What this machine is called, by the tool chain that the author uses here.
    fn host(&self) -> Result<String, Failure> {
        let said = self.rustc(&["-vV"]).output().map_err(|e| no_cargo(&e))?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let host = said.lines().find_map(|l| l.strip_prefix("host: "));
        host.map(|h| h.trim().to_owned())
            .ok_or_else(|| Failure::new(1, "rustc does not say what it runs on".to_owned(), None))
    }

    fn rustc(&self, arguments: &[&str]) -> Command {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
        let mut rustc = Command::new(rustc);
        rustc.args(arguments).current_dir(&self.dir);
        rustc
    }

    /// The standard library for the target is there.
    fn require_target(&self) -> Result<(), Failure> {
        let there = self.rustc(&["--print", "target-libdir", "--target", TARGET]).output().is_ok_and(|o| {
            o.status.success() && Path::new(String::from_utf8_lossy(&o.stdout).trim()).is_dir()
        });
        if there {
            return Ok(());
        }
        Err(Failure::new(
            4,
            format!("Rust's standard library for {TARGET} is not installed"),
            format!("rustup target add {TARGET}"),
        ))
    }
}

/// Cargo in a folder, saying nothing on stdout.
fn cargo(dir: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo.current_dir(dir).stdin(Stdio::null()).stdout(io::stderr());
    // Relative to where the author stands, not to the crate.
    if let Some(target) = std::env::var_os("CARGO_TARGET_DIR").filter(|t| !t.is_empty())
        && let Ok(target) = std::path::absolute(target)
    {
        cargo.env("CARGO_TARGET_DIR", target);
    }
    cargo
}

fn no_cargo(e: &io::Error) -> Failure {
    Failure::new(
        4,
        format!("cargo cannot be started: {e}"),
        "a plugin in Rust is compiled by Rust's own tools: https://rustup.rs installs them".to_owned(),
    )
}

fn metadata(dir: &Path) -> Result<Value, Failure> {
    let mut ask = cargo(dir);
    ask.args(["metadata", "--format-version", "1", "--no-deps"]).stdout(Stdio::piped());
    let Output { status, stdout, stderr } = ask.output().map_err(|e| no_cargo(&e))?;
    let failed = |why: String| Failure::new(4, format!("cargo does not take {}: {why}", dir.display()), None);
    if !status.success() {
        return Err(failed(String::from_utf8_lossy(&stderr).trim().to_owned()));
    }
    serde_json::from_slice(&stdout).map_err(|e| failed(format!("what it says is no JSON: {e}")))
}

/// Whether the workspace's Cargo.toml has the profile. Cargo has read the file before, so it can be read.
fn has_profile(root: &Path) -> bool {
    let text = std::fs::read_to_string(root.join("Cargo.toml")).unwrap_or_default();
    let table = text.parse::<toml::Table>().unwrap_or_default();
    table.get("profile").and_then(|p| p.get(PROFILE)).is_some()
}
