//! What can be known about the world without running: inputs that are missing, directories that cannot be written.

use super::diagnose::{Problems, Spot, nearest};
use super::plan::{Plan, SourceKind};
use super::{cycle, lookup, schema};
use crate::tls::TlsFiles;
use std::path::{Path, PathBuf};

impl Plan {
    /// What can be known about the world without running: inputs that are missing or unreadable,
    /// directories that cannot be written. Errors and warnings, with the lines that name them.
    pub(crate) fn probe(&self) -> Problems {
        let mut problems = Problems::new(self.warnings.document().clone());
        let p = &mut problems;
        let dir = &self.server.data_dir;
        probe_directory(dir, true, self.server.data_dir_at, "server.data_dir", p);
        if let Some(Err(e)) = self.server.tls.as_ref().map(TlsFiles::load) {
            p.error(self.server.tls_at, "server.tls", e.to_string(), None);
        }
        // What the pipelines write is no input that somebody could have meant.
        let written: Vec<&Path> = self.sinks.iter().filter_map(|s| s.kind.path()).collect();
        let similar = |pattern: &str| similar_file(pattern, &written);
        for source in &self.sources {
            if let SourceKind::File { pattern, at, .. } = &source.kind {
                probe_pattern(pattern, *at, &format!("source.{}.path", source.name), similar, p);
            }
        }
        self.sources.iter().for_each(|source| schema::probe(source, p));
        for lookup in &self.lookups {
            lookup::probe(lookup, similar, p);
        }
        for sink in &self.sinks {
            if let Some(path) = sink.kind.path() {
                probe_output(path, sink.path_at, &format!("sink.{}.path", sink.name), p);
            }
        }
        cycle::probe(self, p);
        problems.sort();
        problems
    }
}

/// A directory that must be writable; with `create`, or be made in the nearest one that exists.
fn probe_directory(dir: &Path, create: bool, at: Spot, key: &str, p: &mut Problems) {
    let mut existing = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    while create && !existing.exists() {
        existing = match existing.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
    }
    let shown = existing.display();
    if !existing.exists() {
        let help = format!("`mkdir -p {shown}`");
        p.error(at, key, format!("the directory `{shown}` does not exist"), help);
    } else if !existing.is_dir() {
        p.error(at, key, format!("`{shown}` is not a directory"), None);
    } else if let Err(e) = rustix::fs::access(existing, rustix::fs::Access::WRITE_OK) {
        p.error(at, key, format!("the directory `{shown}` cannot be written: {e}"), None);
    }
}

fn probe_output(path: &Path, at: Spot, key: &str, p: &mut Problems) {
    let shown = path.display();
    if path.is_dir() {
        p.error(at, key, format!("`{shown}` is a directory, not a file"), None);
        return;
    }
    probe_directory(path.parent().unwrap_or(Path::new("")), false, at, key, p);
    if path.exists()
        && let Err(e) = rustix::fs::access(path, rustix::fs::Access::WRITE_OK)
    {
        p.error(at, key, format!("`{shown}` cannot be written: {e}"), None);
    }
}

fn probe_pattern(
    pattern: &str,
    at: Spot,
    key: &str,
    similar: impl Fn(&str) -> Option<String>,
    p: &mut Problems,
) {
    let Ok(found) = glob::glob(pattern) else { return };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in found {
        match entry {
            Ok(path) if path.is_dir() => {}
            Ok(path) => files.push(path),
            Err(e) => {
                p.error(at, key, format!("`{}` cannot be listed: {}", e.path().display(), e.error()), None);
            }
        }
    }
    if files.is_empty() {
        let glob = pattern.contains(['*', '?', '[']);
        let message =
            if glob { format!("no file matches `{pattern}`") } else { format!("`{pattern}` does not exist") };
        p.error(at, key, message, similar(pattern));
    }
    for path in &files {
        // Asked before opening: to open a named pipe waits for its writer.
        if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
            let message = format!("`{}` is a pipe, socket or device, not a file", path.display());
            let help = format!("read it as standard input: kind = \"stdin\", and `< {}`", path.display());
            p.error(at, key, message, help);
        } else if let Err(e) = std::fs::File::open(path) {
            p.error(at, key, format!("`{}` cannot be read: {e}", path.display()), None);
        }
        let plain = path.with_extension("");
        let packed = path.extension().is_some_and(|e| e == "gz" || e == "zst");
        if packed && files.contains(&plain) {
            let message =
                format!("`{}` and `{}` both match: are they copies?", plain.display(), path.display());
            p.warn(at, key, message, "copies would be counted twice; narrow the pattern".to_owned());
        }
    }
}

/// A file beside the missing one with nearly its name, or where relative paths begin.
fn similar_file(pattern: &str, written: &[&Path]) -> Option<String> {
    let path = Path::new(pattern);
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_written = |name: &std::ffi::OsStr| written.iter().any(|w| w.file_name() == Some(name));
    let names: Vec<String> = std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .filter(|e| !is_written(&e.file_name()))
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    let near = nearest(path.file_name()?.to_str()?, names.iter().map(String::as_str));
    match near {
        Some(name) => Some(format!("did you mean \"{}\"?", path.with_file_name(name).display())),
        None if path.is_relative() => {
            let here = std::env::current_dir().ok()?;
            Some(format!("relative paths begin at the current directory, {}", here.display()))
        }
        None => None,
    }
}
