//! Where revisions and dead letters go.

#[cfg(feature = "bigquery")]
pub mod bigquery;
pub mod bounds;
#[cfg(feature = "services")]
mod content;
pub mod jsonl;
#[cfg(feature = "services")]
pub mod kafka;
#[cfg(feature = "services")]
mod letters;
mod line;
mod owned;
#[cfg(feature = "services")]
pub mod postgres;
#[cfg(feature = "bigquery")]
pub mod pubsub;
pub mod sqlite;
pub mod stdout;

use crate::{ConnectError, Cursor};
use tidemill_engine::outbox::Outbox;

/// What a sink did with the rows of epochs that were given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TakenBack {
    /// So many rows of a table are marked as retracted.
    Retracted(u64),
    /// So many bytes of a file were cut off.
    Cut(u64),
    /// What was written cannot be reached any more, and rows of the abandoned epochs may stay.
    Stays,
}

/// A sink of one pipeline. Called from one thread, epoch by epoch, in order; an epoch may be offered again after a crash.
///
/// Any call may answer [`ConnectError::Unavailable`]: the same call is made again later, as often as it takes. So it leaves nothing
/// half done that a second call would trip over.
pub trait Sink: Send {
    /// Opens and fences: from now on nothing of a lower incarnation may be written. `stored` is the
    /// cursor that the store kept (`None`: the store has never used this sink). A file is cut back to it. Returns the
    /// sink's own cursor where it keeps one (SQLite), else `stored`.
    fn open(&mut self, incarnation: u64, stored: Option<Cursor>) -> Result<Option<Cursor>, ConnectError>;
    /// The newest epoch that shows in what the sink holds, read without changing or fencing anything: a second
    /// witness of what was committed, since nothing arrives before its epoch is durable. `None` where nothing shows.
    fn witness(&self) -> Result<Option<u64>, ConnectError>;
    /// After the log was cut back to epoch `cut`: opens and fences as `open` does, and takes back what later epochs have
    /// brought (SEMANTICS 24), under the revision (`incarnation`, `cut`), so that all that comes after it holds.
    /// `stored` is the cursor that the store kept at the cut.
    fn take_back(
        &mut self,
        incarnation: u64,
        cut: u64,
        stored: Option<Cursor>,
    ) -> Result<TakenBack, ConnectError>;
    /// Whether what the place holds may be cut or emptied: this pipeline wrote it, as `stored` says, the cursor that the
    /// store has for this very place. Asked before anything is destroyed; changes nothing. A table knows whose each row is,
    /// a file does not.
    fn is_ours(&self, _stored: Option<Cursor>) -> Result<(), ConnectError> {
        Ok(())
    }
    /// What `open` would refuse, as far as it shows without changing or creating anything.
    fn probe(&self, stored: Option<Cursor>) -> Result<(), ConnectError> {
        self.is_ours(stored)
    }
    /// Writes one epoch and makes it durable; returns the cursor to keep.
    fn deliver(&mut self, outbox: &Outbox<'_>) -> Result<Cursor, ConnectError>;
    /// What the service has refused of the last epoch that was delivered, row by row and for good, as dead letters: JSON, one object
    /// a line. All else of that epoch is there. Asked for after each delivery, and kept before its cursor is: nobody else knows.
    fn take_refused(&mut self) -> Vec<u8> {
        Vec::new()
    }
    /// Whether it ever refuses single rows.
    fn refuses_rows(&self) -> bool {
        false
    }
    /// Deletes every row of this pipeline (`--fresh`); `Err(Config)` where the sink cannot list them.
    fn delete_all(&mut self) -> Result<(), ConnectError>;
    /// Whether a resend after a crash may show a row twice (stdout).
    fn at_least_once(&self) -> bool {
        false
    }
}
