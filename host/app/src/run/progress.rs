//! What a run shows while it goes on: numbers that the pipeline's threads set and that anyone may read.

use std::sync::atomic::{AtomicI64, AtomicU64};

/// One pipeline's live numbers. Totals since the pipeline's first start.
#[derive(Debug, Default)]
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
}
