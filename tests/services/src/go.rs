//! Programs of `go/`, built once into the target folder by Go itself, which fetches the libraries that they name.

use crate::{Absent, artifacts};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
