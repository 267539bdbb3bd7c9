//! A table that keeps its own cursor, whatever database it is in: whose rows they are, how far they are, and what is said where
//! the table and the store contradict each other.
//!
//! The cursor row is written only with rows, so it may stand behind the store's cursor, never behind a row.

use crate::{ConnectError, Cursor};
use tidemill_engine::outbox::Outbox;

/// Where a pipeline's rows are.
pub(super) struct Owner {
    /// The database, as messages name it. No secret.
    pub(super) place: String,
    /// The table, as the config names it.
    pub(super) table: String,
    /// Whose rows these are.
    pub(super) pipeline: String,
    /// By which sink.
    pub(super) sink: String,
}

impl Owner {
    /// Whose the cursor row is: pipeline, sink and table.
    pub(super) fn who(&self) -> (&str, &str, &str) {
        (&self.pipeline, &self.sink, &self.table)
    }

    /// Refuses an incarnation below that of the cursor row.
    pub(super) fn may_claim(&self, theirs: i64, incarnation: u64) -> Result<(), ConnectError> {
        if theirs <= int(incarnation) { Ok(()) } else { Err(self.another(theirs, incarnation)) }
    }

    /// What is said of a table that another one has written to.
    pub(super) fn another(&self, theirs: i64, incarnation: u64) -> ConnectError {
        ConnectError::Conflict(format!(
            "{}: table {} was last written by incarnation {theirs} of pipeline {}, this run is {incarnation}: \
             another tidemill with another data_dir writes here, or the data_dir was removed; use that data_dir, \
             another table, or start over with `--fresh`",
            self.place, self.table, self.pipeline
        ))
    }

    /// The table's own cursor beside the store's. The table's is written only together with rows, so it may lie
    /// behind the epoch that the store knows, but not behind the last one that brought rows.
    pub(super) fn against(&self, own: u64, stored: Option<Cursor>) -> Result<Cursor, ConnectError> {
        let stored = stored.unwrap_or_default();
        if own < stored.length {
            return Err(ConnectError::Conflict(format!(
                "{}: table {} stands at epoch {own}, but was known to have epoch {}: it was replaced or put back; \
                 `--resend {}` sends again what is still kept",
                self.place, self.table, stored.length, self.sink
            )));
        }
        Ok(Cursor { epoch: own.max(stored.epoch), length: own })
    }

    /// The same for somebody who only looks; `own`: none if the cursor row is missing or marked as lost.
    pub(super) fn look(&self, own: Option<u64>, stored: Option<Cursor>) -> Result<(), ConnectError> {
        match stored {
            Some(c) if own.is_none() && c.epoch > 0 => Err(ConnectError::Conflict(format!(
                "{}: the cursor of table {} is gone, and with it the word that it has epoch {}; \
                 `--resend {}` sends again what is still kept",
                self.place, self.table, c.epoch, self.sink
            ))),
            _ => self.against(own.unwrap_or(0), stored).map(drop),
        }
    }

    /// What is said when the cursor row is no longer ours.
    pub(super) fn fenced(&self) -> ConnectError {
        ConnectError::Conflict(format!(
            "{}: a newer run of this pipeline has taken over table `{}`, or its cursor was deleted; this run wrote \
             nothing more",
            self.place, self.table
        ))
    }

    /// What is said of a sink that was not opened.
    pub(super) fn not_open(&self) -> ConnectError {
        ConnectError::Failed(format!("{} is not open", self.place))
    }
}

/// The epoch to begin with, of what the cursor row holds. `None`: it should be there and is not; it stays marked as lost
/// (null) until the caller goes on.
pub(super) fn begins_at(row: Option<i64>, stored: Option<Cursor>) -> Option<i64> {
    let expected = stored.is_some_and(|c| c.epoch > 0);
    row.or_else(|| (!expected).then_some(0))
}

/// How far an open table is.
pub(super) struct Standing {
    pub(super) incarnation: u64,
    pub(super) cursor: Cursor,
    /// The last epoch of our own incarnation that was delivered. After a restore of an older cut the epochs of a
    /// new branch may lie at or below the cursor that the abandoned branch left; they are not skipped.
    own_epoch: u64,
}

impl Standing {
    /// Of a table that was just opened.
    pub(super) fn new(incarnation: u64, cursor: Cursor) -> Standing {
        Standing { incarnation, cursor, own_epoch: 0 }
    }

    /// Whether the table has the epoch already.
    pub(super) fn has(&self, outbox: &Outbox<'_>) -> bool {
        let ours_and_new = outbox.incarnation == self.incarnation && outbox.epoch > self.own_epoch;
        outbox.epoch <= self.cursor.epoch && !ours_and_new
    }

    /// The table has the epoch now; `with_rows`: it brought some.
    pub(super) fn confirm(&mut self, outbox: &Outbox<'_>, with_rows: bool) -> Cursor {
        let length = if with_rows { outbox.epoch } else { self.cursor.length };
        self.cursor = Cursor { epoch: outbox.epoch, length };
        if outbox.incarnation == self.incarnation {
            self.own_epoch = outbox.epoch;
        }
        self.cursor
    }

    /// The table has nothing any more.
    pub(super) fn start_over(&mut self) {
        *self = Standing::new(self.incarnation, Cursor::default());
    }
}

/// Databases have signed integers; a count beyond them is no count that a click stream reaches.
pub(super) fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A name as SQL takes any.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
