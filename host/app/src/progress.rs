//! What a run shows while it goes on: numbers that the pipeline's threads set and that anyone may read, and lines for the
//! journal.

use crate::journal::{Journal, Level};
use crate::meters::Meters;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// One pipeline's live numbers. Totals since the pipeline's first start.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Its name.
    pub(crate) pipeline: String,
    /// Bytes of the source files that are read, as they stand there.
    pub(crate) bytes_read: AtomicU64,
    /// Of how many; 0 where nobody can say, since a source goes on.
    pub(crate) bytes_total: AtomicU64,
    /// Records read.
    pub(crate) records: AtomicU64,
    /// Events taken in.
    pub(crate) events: AtomicU64,
    /// Events that came too late.
    pub(crate) late: AtomicU64,
    /// Dead letters, late ones included.
    pub(crate) dead: AtomicU64,
    /// Final and corrected revisions.
    pub(crate) finals: AtomicU64,
    /// Early revisions.
    pub(crate) early: AtomicU64,
    /// Keys with an open session or pending events.
    pub(crate) live_keys: AtomicU64,
    /// Revisions that wait for their lookups.
    pub(crate) unresolved: AtomicU64,
    /// The watermark, ms; `i64::MIN` before the first.
    pub(crate) watermark_ms: AtomicI64,
    /// The last committed epoch.
    pub(crate) epoch: AtomicU64,
    /// Host clock when the last committed epoch was sealed, ms; 0 before.
    pub(crate) sealed_at_ms: AtomicI64,
    /// Lines of its plugins that nobody was shown.
    pub(crate) lines_dropped: AtomicU64,
    /// What is measured while it runs.
    pub(crate) meters: Meters,
    /// Why it reads no more, once it is suspended or has failed.
    halted: Mutex<Option<String>>,
    journal: Arc<Journal>,
}

impl Progress {
    /// Of a pipeline that has not begun.
    pub(crate) fn new(pipeline: &str, journal: Arc<Journal>) -> Progress {
        Progress {
            pipeline: pipeline.to_owned(),
            records: AtomicU64::new(0),
            events: AtomicU64::new(0),
            late: AtomicU64::new(0),
            dead: AtomicU64::new(0),
            finals: AtomicU64::new(0),
            early: AtomicU64::new(0),
            live_keys: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            unresolved: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            watermark_ms: AtomicI64::new(i64::MIN),
            epoch: AtomicU64::new(0),
            sealed_at_ms: AtomicI64::new(0),
            lines_dropped: AtomicU64::new(0),
            meters: Meters::new(pipeline),
            halted: Mutex::default(),
            journal,
        }
    }

    /// Says that the pipeline reads no more, in the word for that and in a line; `elsewhere`: somebody else shows it.
    pub(crate) fn halt(&self, word: &str, text: &str, elsewhere: bool) {
        let mut halted = self.halted.lock().unwrap_or_else(PoisonError::into_inner);
        if halted.is_none() {
            *halted = Some(word.to_owned());
            if elsewhere {
                self.keep(Level::Error, text);
            } else {
                self.journal.tell(&self.pipeline, Level::Error, text);
            }
        }
    }

    /// A line for whoever looks.
    pub(crate) fn tell(&self, level: Level, text: &str) {
        self.journal.tell(&self.pipeline, level, text);
    }

    /// A line for whoever asks for the journal.
    pub(crate) fn keep(&self, level: Level, text: &str) {
        self.journal.keep(Some(&self.pipeline), level, text);
    }

    /// It reads again.
    pub(crate) fn go_on(&self) {
        *self.halted.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The word for why it reads no more.
    pub(crate) fn halted(&self) -> Option<String> {
        self.halted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A line that a plugin has logged.
    pub(crate) fn plugin_line(&self, plugin: &str, level: &'static str, text: &str) {
        if !self.journal.plugin(&self.pipeline, plugin, level, text) {
            self.plugin_lines_dropped(1);
        }
    }

    /// Lines of a plugin that were over its rate.
    pub(crate) fn plugin_lines_dropped(&self, n: u64) {
        self.lines_dropped.fetch_add(n, Ordering::Relaxed);
    }
}
