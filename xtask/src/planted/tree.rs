//! A copy of the workspace to plant bugs in. Only what differs is written, so that only what differs is built again.

use crate::steps::{Failure, doing};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Endings of large files that are linked, not copied.
const COMPILED: [&str; 5] = ["rlib", "rmeta", "so", "dylib", "a"];

/// Folders that are no part of the source.
const LEFT_OUT: [&str; 3] = ["target", ".git", ".tidemill"];

/// The workspace and its copy.
pub(super) struct Tree {
    source: PathBuf,
    copy: PathBuf,
}

impl Tree {
    pub(super) fn new(source: PathBuf, copy: PathBuf) -> Tree {
        Tree { source, copy }
    }

    pub(super) fn root(&self) -> &Path {
        &self.copy
    }

    /// Makes the copy what the workspace is.
    pub(super) fn restore(&self) -> Result<(), Failure> {
        doing("the copy of the workspace", mirror(&self.source, &self.copy))
    }

    /// Names of the workspace's own crates.
    pub(super) fn crates(&self) -> Result<BTreeSet<String>, Failure> {
        let mut names = BTreeSet::new();
        doing("the workspace's manifests", manifests(&self.source, &mut names))?;
        Ok(names)
    }
}

/// Names in one folder.
fn names(folder: &Path) -> io::Result<BTreeSet<std::ffi::OsString>> {
    fs::read_dir(folder)?.map(|e| Ok(e?.file_name())).collect()
}

fn mirror(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let is_source = |n: &std::ffi::OsString| !LEFT_OUT.iter().any(|l| n == l);
    let mut wanted = names(from)?;
    wanted.retain(is_source);
    for name in names(to)?.into_iter().filter(|n| is_source(n) && !wanted.contains(n)) {
        let gone = to.join(name);
        if gone.is_dir() { fs::remove_dir_all(gone)? } else { fs::remove_file(gone)? }
    }
    for name in wanted {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            mirror(&from, &to)?;
        } else if from.is_file() {
            let bytes = fs::read(&from)?;
            if fs::read(&to).ok().as_ref() != Some(&bytes) {
                fs::write(&to, bytes)?;
            }
        }
    }
    Ok(())
}

fn manifests(folder: &Path, found: &mut BTreeSet<String>) -> io::Result<()> {
    for name in names(folder)?.into_iter().filter(|n| !LEFT_OUT.iter().any(|l| n == l)) {
        let path = folder.join(&name);
        if path.is_dir() {
            manifests(&path, found)?;
        } else if name == "Cargo.toml" {
            let text = fs::read_to_string(&path)?;
            let line = text.lines().find_map(|l| l.strip_prefix("name = \""));
            found.extend(line.and_then(|l| l.split('"').next()).map(str::to_owned));
        }
    }
    Ok(())
}

/// Links what was built of other people's crates into another folder, so that they are not built a second time. Where nothing
/// is built yet, or on a file system without links, they are.
pub(super) fn share_dependencies(from: &Path, to: &Path, own: &BTreeSet<String>) -> Result<(), Failure> {
    for part in ["deps", "build", ".fingerprint"] {
        let (from, to) = (from.join(part), to.join(part));
        if !from.is_dir() || to.is_dir() {
            continue;
        }
        let half = to.with_extension("half");
        let linked =
            link(&from, &half, &|name| is_dependency(name, own)).and_then(|()| fs::rename(&half, &to));
        doing("the dependencies cannot be shared", linked)?;
    }
    Ok(())
}

/// Whether a file or folder of the build belongs to a crate that is not ours; programs (tests among them) do not.
fn is_dependency(name: &str, own: &BTreeSet<String>) -> bool {
    let Some((stem, _)) = name.rsplit_once('-') else { return false };
    // The compiler's names have no hyphens.
    let stem = stem.replace('-', "_");
    let ours = |name: &str| own.iter().any(|o| o.replace('-', "_") == name);
    !ours(&stem) && !ours(stem.strip_prefix("lib").unwrap_or(&stem))
}

fn link(from: &Path, to: &Path, wanted: &dyn Fn(&str) -> bool) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for name in names(from)? {
        if !name.to_str().is_some_and(wanted) {
            continue;
        }
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            link(&from, &to, &|_| true)?;
        } else if fs::symlink_metadata(&from)?.is_file() {
            // The compiler writes new files; what cargo notes of them, and of when, is written in place.
            let compiled = from.extension().is_some_and(|e| COMPILED.iter().any(|c| e == *c));
            if !compiled || fs::hard_link(&from, &to).is_err() {
                fs::copy(&from, &to)?;
                let modified = from.metadata()?.modified()?;
                fs::File::options().write(true).open(&to)?.set_modified(modified)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_follows_the_workspace_and_keeps_what_was_built() {
        let folder = std::env::temp_dir().join(format!("tree-{}", std::process::id()));
        let (source, copy) = (folder.join("source"), folder.join("copy"));
        let put = |path: &str, text: &str| {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("source/a/Cargo.toml", "[package]\nname = \"a-crate\"\n");
        put("source/target/built", "");
        put("copy/target/built", "");
        put("copy/a/Cargo.toml", "planted");
        put("copy/left/over", "");
        let tree = Tree::new(source, copy.clone());
        tree.restore().unwrap();
        assert!(fs::read_to_string(copy.join("a/Cargo.toml")).unwrap().contains("a-crate"));
        assert!(!copy.join("left").exists() && copy.join("target/built").exists());
        // What is as it was is not written again: its time stays.
        let written = || copy.join("a/Cargo.toml").metadata().unwrap().modified().unwrap();
        let before = written();
        tree.restore().unwrap();
        assert_eq!(written(), before);
        assert_eq!(tree.crates().unwrap(), ["a-crate".to_owned()].into());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn our_own_crates_are_not_shared() {
        let own: BTreeSet<String> = ["a-crate".to_owned()].into();
        for (name, theirs) in [
            ("libserde-0123.rlib", true),
            ("serde-json-0123", true),
            ("liba_crate-0123.rmeta", false),
            ("a-crate-0123", false),
            ("a_crate-0123.d", false),
        ] {
            assert_eq!(is_dependency(name, &own), theirs, "{name}");
        }
    }
}
