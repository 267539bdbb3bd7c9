//! Lookups: what is known outside of the stream, by key. A provider answers batches of keys; in front of each stands a
//! [`Lookup`], which caches, batches, deduplicates and retries.
//!
//! ```text
//! ask(tickets, keys) ─▶ cache ─▶ one flight a key ─▶ batches ─▶ provider, a few calls at a time
//!          ▲─────────────── answers by ticket ◀──────────────────┘
//! ```
//!
//! Invariants: every ticket gets one answer; a key is under way at most once; nothing is asked without bounds
//! ([`bounds`]). What a missing answer means for a session is the caller's to decide.

mod batch;
#[cfg(feature = "bigquery")]
pub mod bigquery;
#[cfg(feature = "bigquery")]
pub mod bigtable;
pub mod bounds;
mod cache;
mod counts;
pub mod file;
pub mod http;
#[cfg(feature = "services")]
pub mod postgres;
mod service;
pub mod sqlite;

pub use batch::Settings;
pub use counts::LookupCounts;
pub use service::Lookup;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A row that was found: a JSON object.
pub type Row = Arc<str>;

/// Names the caller's question in the answer.
pub type Ticket = u64;

/// What was found for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is a row.
    Found(Row),
    /// There is none.
    NotFound,
    /// The provider could not be asked, or not answer; why.
    Failed(Arc<str>),
}

/// What a provider says of one key: its row, or that there is none, or why it says neither.
pub type Fetched = Result<Option<Row>, LookupError>;

/// Why a call, or a key of it, got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// It may work later: no connection, no answer in time, the service says so.
    #[error("{0}")]
    Unavailable(String),
    /// It will not work again in the same way: refused, or an answer that makes no sense.
    #[error("{0}")]
    Refused(String),
    /// It was answered, and what the provider has for this key cannot be used: a row that is too long, or none at all.
    #[error("{0}")]
    Unusable(String),
}

/// Where rows are looked up. Called from several threads at once.
pub trait Provider: Send + Sync {
    /// The rows of some keys (at least one, all different), an answer for each in their order. What is wrong with one key's row
    /// is that key's answer. Blocks for about `timeout` a request at most.
    ///
    /// # Errors
    /// If it failed as a whole, so that no key has an answer.
    fn fetch(&self, keys: &[Arc<str>], timeout: Duration) -> Result<Vec<Fetched>, LookupError>;

    /// Takes a look whether its rows have changed; called every [`bounds::LOOK_MS`], whether anything is fetched or not. True:
    /// they are others now, and nothing that was fetched before is to be believed any more.
    fn look(&self) -> bool {
        false
    }

    /// What is wrong although it answers: a file that was changed to what is no table.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// When the rows that it keeps whole were read, if it keeps some.
    fn read_at(&self) -> Option<SystemTime> {
        None
    }
}
