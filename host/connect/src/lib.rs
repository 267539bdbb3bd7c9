//! Sources, formats, lookups and sinks: one file each behind small traits. Knows the engine's values, nothing
//! of lanes, epochs or config files.

mod backoff;
#[cfg(feature = "bigquery")]
pub mod bigquery;
#[cfg(feature = "services")]
pub mod bucket;
pub mod format;
#[cfg(feature = "bigquery")]
mod google;
#[cfg(feature = "services")]
pub mod kafka;
pub mod lookup;
#[cfg(feature = "services")]
pub mod postgres;
#[cfg(feature = "bigquery")]
pub mod pubsub;
pub mod sink;
pub mod source;

pub use backoff::Backoff;

use serde::{Deserialize, Serialize};

/// Whose move it is when a connector fails (kinds by what the caller must do).
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The input or output as configured cannot be used: missing, unreadable, read-only, wrong table.
    #[error("{0}")]
    Config(String),
    /// Another program or another tidemill holds it, or the cursor contradicts the store.
    #[error("{0}")]
    Conflict(String),
    /// The service cannot be reached or used now; the same may work later. Nothing was written, or it may be written again.
    #[error("{0}")]
    Unavailable(String),
    /// The service or file failed while in use.
    #[error("{0}")]
    Failed(String),
    /// Storage failed; the process must stop and recover.
    #[error("{0}")]
    Storage(String),
}

/// How far a sink has confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// The last epoch confirmed; 0 before the first.
    pub epoch: u64,
    /// A file: bytes in it after that epoch. A table: the last epoch that brought rows, which is the one that
    /// the table's own cursor names.
    pub length: u64,
}
