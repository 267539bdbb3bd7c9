//! `cargo xtask bench`: builds what is measured and starts the benchmark, which is a crate of its own (`bench`): its libraries
//! take too long to build for a command that a newcomer compiles first.

use crate::steps::{Failure, add_target, cargo, doing, run as run_step, say, seconds, target_dir, workspace};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The benchmark itself: optimised, but quick to build.
const PROFILE: &str = "trial";

/// Builds tidemill (unless `--bin` names another), the yardstick and the benchmark, and hands all arguments on.
pub(crate) fn run(arguments: &[String]) -> Result<(), Failure> {
    let folder = target_dir().join("yardstick");
    if measures(arguments) {
        let Some(source) = std::env::var_os("TIDEMILL_YARDSTICK").map(PathBuf::from) else {
            return Err(Failure::usage(
                "bench needs TIDEMILL_YARDSTICK: the folder of the yardstick's source",
            ));
        };
        let copy = target_dir().join("yardstick-src");
        copy_source(&source, &copy)?;
        let (manifest, out) = (copy.join("Cargo.toml").display().to_string(), folder.display().to_string());
        // Its plugins are built, too.
        if let Some(mut add) = add_target() {
            run_step("rustup target add", &mut add)?;
        }
        let built =
            cargo(&["build", "--quiet", "--release", "--manifest-path", &manifest, "--target-dir", &out]);
        step("the yardstick", built)?;
        if !names(arguments, "--bin") {
            let build = ["build", "--locked", "--release", "-p", "tidemill", "--features", "services"];
            step("tidemill", cargo(&build))?;
        }
    }
    let mut build = cargo(&["build", "--quiet", "--locked", "--profile", PROFILE, "-p", "tidemill-bench"]);
    doing("building the benchmark", build.status()).and_then(|status| match status.success() {
        true => Ok(()),
        false => Err(Failure::of("building the benchmark", status)),
    })?;
    // In the folder where it was asked for, so that paths mean what they say.
    let mut bench = Command::new(target_dir().join(PROFILE).join("tidemill-bench"));
    bench.arg("--yardstick").arg(folder.join("release"));
    bench.arg("--workspace").arg(workspace());
    bench.arg("--folder").arg(target_dir().join("bench"));
    if !names(arguments, "--bin") {
        bench.arg("--bin").arg(target_dir().join("release/tidemill"));
    }
    let status = doing("the benchmark", bench.args(arguments).status())?;
    if status.success() { Ok(()) } else { Err(Failure::of("bench", status)) }
}

/// Whether it is to measure: else nothing is built that takes long.
fn measures(arguments: &[String]) -> bool {
    !["-h", "--help", "--render"].iter().any(|flag| names(arguments, flag))
}

fn names(arguments: &[String], flag: &str) -> bool {
    arguments.iter().any(|a| a == flag || a.strip_prefix(flag).is_some_and(|rest| rest.starts_with('=')))
}

fn step(name: &str, mut command: Command) -> Result<(), Failure> {
    let time = run_step(&format!("building {name}"), &mut command)?;
    say(&format!("built {name} in {}", seconds(time)));
    Ok(())
}

/// Copies what has changed, so that nothing is built in vain; the source may be read-only, and a package
/// below this workspace must say that it is its own.
fn copy_source(from: &Path, to: &Path) -> Result<(), Failure> {
    let what = "copying the yardstick";
    doing(what, fs::create_dir_all(to))?;
    for entry in doing(&format!("{what} from {}", from.display()), fs::read_dir(from))? {
        let entry = doing(what, entry)?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            if entry.file_name() != "target" && entry.file_name() != ".git" {
                copy_source(&path, &copy)?;
            }
            continue;
        }
        let mut bytes = doing(what, fs::read(&path))?;
        if entry.file_name() == "Cargo.toml" {
            bytes.extend_from_slice(b"\n[workspace]\n");
        }
        if fs::read(&copy).ok().as_ref() != Some(&bytes) {
            doing(what, fs::write(&copy, bytes))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_built_for_whoever_only_reads() {
        let list = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(measures(&list("--quick --only whole")) && measures(&[]));
        assert!(!measures(&list("--help")) && !measures(&list("--render")));
        assert!(names(&list("--bin=x"), "--bin") && names(&list("--bin x"), "--bin"));
        assert!(!names(&list("--binary x"), "--bin"));
    }
}
