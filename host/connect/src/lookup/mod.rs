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
pub mod bounds;
mod cache;
pub mod file;
pub mod http;
mod service;
pub mod sqlite;

pub use batch::{LookupCounts, Settings};
pub use service::Lookup;

use std::sync::Arc;
use std::time::Duration;

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

/// Why a call gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// It may work later: no connection, no answer in time, the service says so.
    #[error("{0}")]
    Unavailable(String),
    /// It will not work again in the same way: refused, or an answer that makes no sense.
    #[error("{0}")]
    Refused(String),
}

/// Where rows are looked up. Called from several threads at once.
pub trait Provider: Send + Sync {
    /// The rows of some keys (at least one, all different), an answer for each in their order. Blocks for about `timeout` at most.
    ///
    /// # Errors
    /// If no key of the batch has an answer.
    fn fetch(&self, keys: &[Arc<str>], timeout: Duration) -> Result<Vec<Option<Row>>, LookupError>;

    /// What is wrong although it answers: a file that was changed to what is no table.
    fn trouble(&self) -> Option<String> {
        None
    }
}
