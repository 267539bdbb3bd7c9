//! The host's clock: read at the edges, an argument everywhere else.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, ms since the Unix epoch.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}
