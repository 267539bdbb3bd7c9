//! What the host and its plugins say while they run: the last lines, for whoever asks, and a queue to whoever shows them.
//!
//! Invariants: nobody is held up by a line; both ends are bounded; no secret is a line.

use crate::clock::now_ms;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Lines that wait to be shown: some seconds' worth, so that a slow terminal holds nobody up.
const WAITING_MAX: usize = 256;
/// Lines that are kept: some minutes of plugins that log as much as they may, days of a host by itself.
pub(crate) const KEPT_MAX: usize = 2_048;
/// Bytes of a line: as much as a plugin's line may have.
const LINE_BYTES_MAX: usize = 1_024;

/// How grave a line of the host is; plugins have more words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// As it should be.
    Info,
    /// Somebody should look.
    Warn,
    /// Something does not work.
    Error,
}

impl Level {
    /// The word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Rises by one with each line of this process, from 1.
    pub(crate) number: u64,
    /// Host clock, ms.
    pub(crate) at_ms: i64,
    /// The pipeline; none: the host as a whole.
    pub(crate) pipeline: Option<String>,
    /// The plugin that says it; none: the host.
    pub(crate) plugin: Option<String>,
    /// How grave.
    pub(crate) level: &'static str,
    /// What.
    pub(crate) text: String,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Journal {
    kept: Mutex<Kept>,
    to: Sender<Line>,
}

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    lines: VecDeque<Line>,
}

impl Journal {
    /// An empty one, and where its lines can be had as they come. Whoever does not want them drops the receiver.
    pub(crate) fn new() -> (Arc<Journal>, Receiver<Line>) {
        let (to, lines) = bounded(WAITING_MAX);
        (Arc::new(Journal { kept: Mutex::default(), to }), lines)
    }

    /// Keeps a line of the host that is shown elsewhere, or need not be.
    pub(crate) fn keep(&self, pipeline: Option<&str>, level: Level, text: &str) {
        self.add(pipeline, None, level.name(), text);
    }

    /// Keeps a line of the host, and has it shown.
    pub(crate) fn tell(&self, pipeline: &str, level: Level, text: &str) {
        // Where nobody wants lines it is not missed, and it is kept.
        let _ = self.to.try_send(self.add(Some(pipeline), None, level.name(), text));
    }

    /// Keeps a line of a plugin, and has it shown; false if it is not, since too many wait.
    pub(crate) fn plugin(&self, pipeline: &str, plugin: &str, level: &'static str, text: &str) -> bool {
        let line = self.add(Some(pipeline), Some(plugin), level, text);
        !self.to.try_send(line).is_err_and(|e| e.is_full())
    }

    /// The last `most` lines after number `after`, oldest first, of one pipeline or of all.
    pub(crate) fn after(&self, after: u64, pipeline: Option<&str>, most: usize) -> Vec<Line> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |l: &&Line| pipeline.is_none_or(|p| l.pipeline.as_deref().is_none_or(|of| of == p));
        let newest = kept.lines.iter().rev().take_while(|l| l.number > after).filter(wanted);
        let mut lines: Vec<Line> = newest.take(most).cloned().collect();
        lines.reverse();
        lines
    }

    fn add(&self, pipeline: Option<&str>, plugin: Option<&str>, level: &'static str, text: &str) -> Line {
        let end = text.floor_char_boundary(LINE_BYTES_MAX);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last += 1;
        let line = Line {
            number: kept.last,
            at_ms: now_ms(),
            pipeline: pipeline.map(str::to_owned),
            plugin: plugin.map(str::to_owned),
            level,
            text: text[..end].to_owned(),
        };
        if kept.lines.len() >= KEPT_MAX {
            kept.lines.pop_front();
        }
        kept.lines.push_back(line.clone());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_asked_for_by_number_and_pipeline() {
        let (journal, shown) = Journal::new();
        journal.keep(None, Level::Info, "up");
        for n in 0..KEPT_MAX + 5 {
            journal.plugin(if n % 2 == 0 { "a" } else { "b" }, "p", "debug", &format!("line {n}"));
        }
        let all = journal.after(0, None, usize::MAX);
        assert_eq!((all.len(), all[0].number), (KEPT_MAX, 7));
        assert!(all.windows(2).all(|w| w[1].number == w[0].number + 1));
        let last = all.last().unwrap().number;
        assert_eq!(journal.after(last, None, 9), []);
        assert_eq!(journal.after(last - 3, None, 9).len(), 3);
        journal.keep(None, Level::Warn, "of all");
        let of_a = journal.after(last - 2, Some("a"), 9);
        assert_eq!(of_a.iter().map(|l| l.text.as_str()).collect::<Vec<_>>(), ["line 2052", "of all"]);
        assert_eq!(journal.after(0, Some("a"), 2), of_a);
        // What is only kept waits for nobody.
        assert_eq!((shown.len(), shown.recv().unwrap().text.as_str()), (WAITING_MAX, "line 0"));
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let (journal, _) = Journal::new();
        journal.keep(None, Level::Error, &"ä".repeat(LINE_BYTES_MAX));
        assert_eq!(journal.after(0, None, 1)[0].text, "ä".repeat(LINE_BYTES_MAX / 2));
        journal.keep(None, Level::Error, &format!("a{}", "ä".repeat(LINE_BYTES_MAX)));
        assert_eq!(journal.after(1, None, 1)[0].text.len(), LINE_BYTES_MAX - 1);
    }

    #[test]
    fn a_full_queue_is_told_and_a_missing_reader_is_not() {
        let (journal, shown) = Journal::new();
        assert!((0..WAITING_MAX).all(|_| journal.plugin("a", "p", "info", "")));
        assert!(!journal.plugin("a", "p", "info", ""));
        drop(shown);
        assert!(journal.plugin("a", "p", "info", ""));
    }
}
