//! The last rows that a pipeline has committed, for whoever looks on: kept only while somebody does, so that a pipeline that
//! nobody watches pays one look at a number an epoch.

use super::lock;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tidemill_engine::outbox::{Outbox, Revision, Stages, hex};

/// Rows that are kept: a screen or two.
const ROWS_MAX: usize = 64;
/// Rows of one epoch that are looked at: of a busy one these are a sample.
const ROWS_OF_EPOCH_MAX: usize = 16;

/// A row as it was committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct FeedRow {
    /// Rises with each row of the pipeline in this process.
    pub(crate) number: u64,
    /// 32 hex digits.
    pub(crate) session_id: String,
    /// The key as rows show it.
    pub(crate) key: String,
    /// Time of the first event, ms.
    pub(crate) start_ms: i64,
    /// Time of the last event, ms.
    pub(crate) end_ms: i64,
    /// How many.
    pub(crate) events: u64,
    /// early, final, corrected or retracted.
    pub(crate) stage: &'static str,
    /// Why it ended; none while it is open.
    pub(crate) reason: Option<String>,
    /// `name@version` of the rule.
    pub(crate) plugin: String,
    /// JSON object.
    pub(crate) fields: String,
    /// Which epoch.
    #[serde(skip)]
    pub(crate) revision: Revision,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    watchers: AtomicUsize,
    rows: Mutex<(u64, VecDeque<FeedRow>)>,
}

impl Feed {
    /// Somebody looks on from now until [`unwatch`](Feed::unwatch).
    pub(crate) fn watch(&self) {
        self.watchers.fetch_add(1, Ordering::Relaxed);
    }

    /// One less looks on.
    pub(crate) fn unwatch(&self) {
        self.watchers.fetch_sub(1, Ordering::Relaxed);
    }

    /// The pipeline has committed these rows.
    pub(crate) fn committed(&self, outbox: &Outbox<'_>) {
        if self.watchers.load(Ordering::Relaxed) == 0 || outbox.is_empty() {
            return;
        }
        let mut kept = lock(&self.rows);
        for (revision, r) in outbox.sessions(Stages::ALL).take(ROWS_OF_EPOCH_MAX) {
            kept.0 += 1;
            let row = FeedRow {
                number: kept.0,
                session_id: hex(&r.id),
                key: r.key.to_owned(),
                start_ms: r.start.ms(),
                end_ms: r.end.ms(),
                events: r.events,
                stage: r.stage.name(),
                reason: r.reason.map(str::to_owned),
                plugin: r.plugin.to_owned(),
                fields: r.fields.to_owned(),
                revision,
            };
            if kept.1.len() >= ROWS_MAX {
                kept.1.pop_front();
            }
            kept.1.push_back(row);
        }
    }

    /// The rows after a number, oldest first.
    pub(crate) fn after(&self, number: u64) -> Vec<FeedRow> {
        lock(&self.rows).1.iter().filter(|r| r.number > number).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_engine::outbox::{SessionRow, Stage};
    use tidemill_engine::time::EventTime;

    fn rows(n: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for i in 0..n {
            let row = SessionRow {
                id: [i as u8; 16],
                key: "ann",
                start: EventTime::from_ms(1),
                end: EventTime::from_ms(2),
                events: i as u64,
                stage: Stage::Final,
                reason: Some("gap"),
                plugin: "p@1",
                fields: "{}",
            };
            row.encode(&mut bytes);
        }
        bytes
    }

    #[test]
    fn rows_are_kept_while_somebody_looks_and_no_more_than_may() {
        let feed = Feed::default();
        let commit = |feed: &Feed, n| feed.committed(&Outbox::new(1, 2, &rows(n), b""));
        commit(&feed, 3);
        assert_eq!(feed.after(0), []);
        feed.watch();
        commit(&feed, 3);
        let seen = feed.after(0);
        assert_eq!((seen.len(), seen[2].number, seen[2].events), (3, 3, 2));
        assert_eq!((seen[0].stage, seen[0].session_id.len()), ("final", 32));
        assert_eq!(feed.after(2).len(), 1);
        (0..9).for_each(|_| commit(&feed, ROWS_OF_EPOCH_MAX + 5));
        assert_eq!(feed.after(0).len(), ROWS_MAX);
        assert_eq!(feed.after(0)[0].number, 3 + 9 * ROWS_OF_EPOCH_MAX as u64 - ROWS_MAX as u64 + 1);
        feed.unwatch();
        commit(&feed, 1);
        assert_eq!(feed.after(0).len(), ROWS_MAX);
    }
}
