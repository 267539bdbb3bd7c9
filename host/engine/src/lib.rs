//! The pure core of Tidemill.
//!
//! No threads, no files, no sockets, no clock and no randomness: everything that happens outside is
//! an argument, everything that should happen outside is a return value. Built for
//! `wasm32-unknown-unknown` in CI to prove it. The rules it follows are numbered in the project's
//! semantics and named in the code as `SEMANTICS n`.

pub mod bounds;
mod check;
pub mod contain;
pub mod dedup;
pub mod event;
pub mod gap;
pub mod hot;
pub mod key;
mod key_state;
pub mod lane;
pub mod letter;
pub mod metrics;
pub mod outbox;
mod pieces;
pub mod record;
pub mod rule;
pub mod time;
pub mod unresolved;
pub mod versions;
pub mod watermark;
