//! A source that would read what the pipelines write: a file named twice, a pattern that matches an output, or a topic.
//!
//! Names are compared as the file system resolves them, and files by their number, so that neither a link nor another
//! spelling hides one. A file that is not there yet counts: it will be.

use super::diagnose::Problems;
use super::kafka::Topics;
use super::plan::{Plan, SinkKind, SourceKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use tidemill_connect::source::file;

/// What SQLite keeps beside a database.
const BESIDE_A_DATABASE: [&str; 4] = ["", "-wal", "-shm", "-journal"];

pub(super) fn probe(plan: &Plan, p: &mut Problems) {
    for source in &plan.sources {
        if let SourceKind::Kafka(topics) = &source.kind {
            probe_topics(plan, &source.name, topics, p);
        }
        let SourceKind::File { pattern, at, .. } = &source.kind else { continue };
        let files = file::list(pattern).unwrap_or_default();
        let key = format!("source.{}.path", source.name);
        for sink in &plan.sinks {
            let written = outputs(&sink.kind);
            let Some(found) = written.iter().find(|out| reads(pattern, &files, out)) else { continue };
            let message =
                format!("`{pattern}` takes in {}, which the sink `{}` writes", found.display(), sink.name);
            let help = "narrow the pattern, or have the sink write elsewhere".to_owned();
            p.error(*at, &key, message, help);
        }
    }
}

fn probe_topics(plan: &Plan, source: &str, topics: &Topics, p: &mut Problems) {
    for sink in &plan.sinks {
        let SinkKind::Kafka { cluster, topic, .. } = &sink.kind else { continue };
        if cluster.address() == topics.cluster.address() && topics.topics.contains(topic) {
            let message = format!("the topic `{topic}` is what the sink `{}` writes", sink.name);
            let help = "name another topic in one of them".to_owned();
            p.error(topics.at, &format!("source.{source}.topics"), message, help);
        }
    }
}

fn outputs(sink: &SinkKind) -> Vec<PathBuf> {
    match sink {
        SinkKind::Sqlite { path, .. } => BESIDE_A_DATABASE
            .iter()
            .map(|end| {
                let mut name = path.as_os_str().to_owned();
                name.push(end);
                name.into()
            })
            .collect(),
        other => other.path().map(Path::to_owned).into_iter().collect(),
    }
}

fn reads(pattern: &str, files: &[PathBuf], output: &Path) -> bool {
    let number = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let is_one = |file: &PathBuf| number(file).is_some_and(|n| number(output) == Some(n));
    files.iter().any(is_one) || matches(pattern, output)
}

fn matches(pattern: &str, output: &Path) -> bool {
    // Up to its first part with a wildcard a pattern is a path.
    let parts: Vec<_> = Path::new(pattern).components().collect();
    let wild = |c: &Component<'_>| c.as_os_str().to_string_lossy().contains(['*', '?', '[']);
    let at = parts.iter().position(wild).unwrap_or(parts.len());
    let (fixed, rest): (PathBuf, PathBuf) = (parts[..at].iter().collect(), parts[at..].iter().collect());
    let fixed = if fixed.as_os_str().is_empty() { PathBuf::from(".") } else { fixed };
    let (Some((base, between)), Some((dir, name))) = (resolved(&fixed), resolved(output)) else {
        return false;
    };
    let base = glob::Pattern::escape(&base.join(between).to_string_lossy());
    let Ok(pattern) = glob::Pattern::new(&Path::new(&base).join(rest).to_string_lossy()) else {
        return false;
    };
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    pattern.matches_path_with(&dir.join(name), options)
}

/// The longest beginning of a path that exists, as the file system resolves it, and the rest as it is spelled.
fn resolved(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let whole = std::path::absolute(path).ok()?;
    whole.ancestors().find_map(|a| {
        let base = a.canonicalize().ok()?;
        Some((base, whole.strip_prefix(a).ok()?.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_recognised_under_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("in")).unwrap();
        std::fs::create_dir(at("we[i]rd")).unwrap();
        std::fs::write(at("in/a.jsonl"), "").unwrap();
        std::os::unix::fs::symlink(at("in/a.jsonl"), at("link.jsonl")).unwrap();
        std::os::unix::fs::symlink(at("in"), at("also")).unwrap();
        std::fs::hard_link(at("in/a.jsonl"), at("hard.jsonl")).unwrap();
        let check = |pattern: &str, output: &str, expected: bool| {
            let pattern = at(pattern).display().to_string();
            let files = file::list(&pattern).unwrap_or_default();
            assert_eq!(reads(&pattern, &files, &at(output)), expected, "{pattern} and {output}");
        };
        for same in ["in/a.jsonl", "link.jsonl", "hard.jsonl", "also/a.jsonl", "./in/a.jsonl"] {
            check("in/a.jsonl", same, true);
            check("in/*.jsonl", same, true);
        }
        check("in/*.jsonl", "in/not-yet.jsonl", true);
        check("also/*.jsonl", "in/not-yet.jsonl", true);
        check("in/*.jsonl", "also/not-yet.jsonl", true);
        check("**/*.jsonl", "in/deep/not-yet.jsonl", true);
        check("in/*.jsonl", "in/deep/not-yet.jsonl", false);
        check("in/*.jsonl", "out/a.jsonl", false);
        check("in/*", "in/.hidden", false);
        check("we[i]rd/*", "we[i]rd/x", false);
        assert!(
            outputs(&SinkKind::Sqlite { path: "s.db".into(), table: "t".into() })
                .contains(&PathBuf::from("s.db-wal"))
        );
    }
}
