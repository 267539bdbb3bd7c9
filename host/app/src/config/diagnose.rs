//! What is wrong with a config file, said so that it can be put right: each problem has its place, its
//! key path, a sentence and mostly a suggestion.
//!
//! Invariants: a `Document` never holds a literal `key_hmac` (it is starred out on entry, length kept), so
//! no excerpt, debug form or JSON can show one; spans are byte ranges of that text on character bounds.

use std::fmt;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// A byte range of the config text; kept in the plan so that later findings can name their line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Spot {
    /// First byte.
    pub(crate) start: usize,
    /// One past the last byte.
    pub(crate) end: usize,
}

impl From<std::ops::Range<usize>> for Spot {
    fn from(r: std::ops::Range<usize>) -> Spot {
        Spot { start: r.start, end: r.end }
    }
}

/// The config text with its name, secrets starred out.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Document {
    origin: String,
    text: String,
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Document({}, {} bytes)", self.origin, self.text.len())
    }
}

impl Document {
    /// Takes the text in and hides what must not be shown again.
    pub(crate) fn new(origin: &str, text: &str) -> Document {
        Document { origin: origin.to_owned(), text: redact(text) }
    }

    /// Line and column of a byte, both from 1, the column in characters.
    fn line_column(&self, at: usize) -> (usize, usize) {
        let head = &self.text[..floor(&self.text, at)];
        let line_start = head.rfind('\n').map_or(0, |n| n + 1);
        (head.matches('\n').count() + 1, head[line_start..].chars().count() + 1)
    }
}

/// The nearest character bound at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Stars out what follows `key_hmac =`, unless it is a `${..}`. Works on text, not on the parsed tree, so
/// that a file with a syntax error does not show its secret either.
fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // The closing quotes of a multi-line string still open; everything until then is hidden.
    let mut open: Option<&str> = None;
    for line in text.split_inclusive('\n') {
        let value = match open {
            Some(_) => Some(0),
            None => literal_secret(line),
        };
        let Some(from) = value else {
            out.push_str(line);
            continue;
        };
        out.push_str(&line[..from]);
        for c in line[from..].chars() {
            match c {
                '\n' | '\r' => out.push(c),
                _ => out.extend(std::iter::repeat_n('*', c.len_utf8())),
            }
        }
        open = match open {
            Some(q) if line.contains(q) => None,
            Some(q) => Some(q),
            None => ["\"\"\"", "'''"].into_iter().find(|q| line[from..].matches(q).count() == 1),
        };
    }
    out
}

/// Where on this line a literal secret begins.
fn literal_secret(line: &str) -> Option<usize> {
    let key = line.find("key_hmac")?;
    if line[..key].trim_start().starts_with('#') {
        return None;
    }
    let value = key + line[key..].find('=')? + 1;
    let value = value + (line[value..].len() - line[value..].trim_start().len());
    let rest = line[value..].trim_start_matches(['"', '\'']);
    (!rest.starts_with("${")).then_some(value)
}

/// Whether a problem stops the plan.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Severity {
    /// The plan cannot run.
    Error,
    /// It runs, but probably not as meant.
    Warning,
}

/// One finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Problem {
    /// Error or warning.
    pub(crate) severity: Severity,
    /// Its place in the text; none if the file itself could not be read.
    pub(crate) at: Option<Spot>,
    /// The key's path, as `source.web.path`; empty for the file as a whole.
    pub(crate) key: String,
    /// What is wrong, one sentence without a full stop.
    pub(crate) message: String,
    /// What to write instead.
    pub(crate) help: Option<String>,
}

/// Everything found in one file, in the order of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Problems {
    document: Arc<Document>,
    list: Vec<Problem>,
}

impl Problems {
    /// Nothing found yet.
    pub(crate) fn new(document: Arc<Document>) -> Problems {
        Problems { document, list: Vec::new() }
    }

    /// The text that the spans point into.
    pub(crate) fn document(&self) -> &Arc<Document> {
        &self.document
    }

    /// Notes an error.
    pub(crate) fn error(&mut self, at: Spot, key: &str, message: String, help: impl Into<Option<String>>) {
        self.push(Severity::Error, Some(at), key, message, help.into());
    }

    /// Notes a warning.
    pub(crate) fn warn(&mut self, at: Spot, key: &str, message: String, help: impl Into<Option<String>>) {
        self.push(Severity::Warning, Some(at), key, message, help.into());
    }

    /// Notes an error of the file as a whole.
    pub(crate) fn error_of_file(&mut self, message: String, help: Option<String>) {
        self.push(Severity::Error, None, "", message, help);
    }

    fn push(
        &mut self,
        severity: Severity,
        at: Option<Spot>,
        key: &str,
        message: String,
        help: Option<String>,
    ) {
        self.list.push(Problem { severity, at, key: key.to_owned(), message, help });
    }

    /// The places that are pointed at.
    #[cfg(test)]
    pub(super) fn spots(&self) -> impl Iterator<Item = Spot> {
        self.list.iter().filter_map(|p| p.at)
    }

    /// True if nothing was found, not even a warning.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// True if something stops the plan.
    pub(crate) fn has_errors(&self) -> bool {
        self.list.iter().any(|p| p.severity == Severity::Error)
    }

    /// Adds the findings of a later check of the same file.
    pub(crate) fn extend(&mut self, other: Problems) {
        self.list.extend(other.list);
        self.sort();
    }

    /// Puts the findings in the order of the file.
    pub(crate) fn sort(&mut self) {
        self.list.sort_by_key(|p| (p.at.map_or(0, |s| s.start), p.severity));
    }

    /// For a terminal: an excerpt for each, as rustc shows them. Escape sequences only if `colour`.
    pub(crate) fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for problem in &self.list {
            if !out.is_empty() {
                out.push('\n');
            }
            let level = match problem.severity {
                Severity::Error => Level::ERROR,
                Severity::Warning => Level::WARNING,
            };
            let title = level.primary_title(problem.message.as_str());
            let Some(at) = problem.at else {
                let mut group = annotate_snippets::Group::with_title(title);
                if let Some(help) = &problem.help {
                    group = group.element(Level::HELP.message(help.as_str()));
                }
                out.push_str(&renderer.render(&[group]));
                out.push('\n');
                continue;
            };
            let text = self.document.text.as_str();
            let (start, end) = (floor(text, at.start), floor(text, at.end));
            let mut group = title.element(
                Snippet::source(text)
                    .path(self.document.origin.as_str())
                    .annotation(AnnotationKind::Primary.span(start..end.max(start))),
            );
            if let Some(help) = &problem.help {
                group = group.element(Level::HELP.message(help.as_str()));
            }
            out.push_str(&renderer.render(&[group]));
            out.push('\n');
        }
        out
    }

    /// For programs: `[{severity, file, line, column, key, message, help}]`, absent values null.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        self.list
            .iter()
            .map(|p| {
                let place = p.at.map(|s| self.document.line_column(s.start));
                serde_json::json!({
                    "severity": match p.severity { Severity::Error => "error", Severity::Warning => "warning" },
                    "file": self.document.origin,
                    "line": place.map(|l| l.0),
                    "column": place.map(|l| l.1),
                    "key": p.key,
                    "message": p.message,
                    "help": p.help,
                })
            })
            .collect()
    }
}

/// The known word that `wrong` was probably meant to be.
pub(crate) fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wrong = wrong.to_lowercase();
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(&wrong, &k.to_lowercase()), k))
        // A third of the letters may be wrong: `gpa` for `gap` yes, `foo` for `to` no.
        .filter(|(d, k)| *d <= (k.chars().count().max(wrong.chars().count()) / 3).max(1) && *d < k.len())
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

/// Words as a list for a sentence: `a`, `b` or `c`.
pub(crate) fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|w| format!("`{w}`")).collect();
    match quoted.split_last() {
        None => "nothing".to_owned(),
        Some((last, [])) => last.clone(),
        Some((last, head)) => format!("{} or {last}", head.join(", ")),
    }
}
