//! Gathers the sources that `tidemill plugin new` gives to authors (the SDK, its derives, the contract) into a table, so that
//! a new plugin compiles wherever the binary is. They are embedded as they stand; what of a manifest comes from the
//! workspace is resolved when it is written out.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Folders taken whole, and files; from the workspace's root.
const FOLDERS: [&str; 3] = ["plugin-sdk/src", "plugin-sdk/derive/src", "wit/src"];
const FILES: [&str; 8] = [
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE",
    "plugin-sdk/Cargo.toml",
    "plugin-sdk/derive/Cargo.toml",
    "wit/Cargo.toml",
    "wit/README.md",
    "wit/tidemill.wit",
];

fn main() -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let mut files: Vec<PathBuf> = FILES.iter().map(PathBuf::from).collect();
    for folder in FOLDERS {
        list(&root, Path::new(folder), &mut files)?;
    }
    files.sort();
    let mut table = String::from("[\n");
    for file in &files {
        let at = root.join(file);
        println!("cargo::rerun-if-changed={}", at.display());
        let _ = writeln!(table, "    ({:?}, include_str!({:?})),", file.display().to_string(), at);
    }
    // A file that is added or taken away changes its folder.
    FOLDERS.iter().for_each(|f| println!("cargo::rerun-if-changed={}", root.join(f).display()));
    table.push(']');
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo gives no OUT_DIR"))?;
    fs::write(Path::new(&out).join("author_sources.rs"), table)
}

fn list(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, &path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
