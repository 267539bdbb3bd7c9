//! Every bound of sinks whose service may be away, with its unit and reason.

use crate::Backoff;

/// Wait before the first retry, ms: a server that restarts or a lock that is let go is often back at once.
pub const BACKOFF_MS: u64 = 100;
/// Longest wait between two tries, ms: its return is noticed within this, and a service that comes up again under many clients
/// is asked by each only so often.
pub const BACKOFF_MAX_MS: u64 = 10_000;

/// Rows, and bytes of them, that go into a table at once, within an epoch's transaction: they pass a slow line and are merged well
/// within the time that a statement has, and an epoch may be as long as it likes.
pub const ROWS_AT_ONCE: usize = 50_000;
/// See [`ROWS_AT_ONCE`].
pub const BYTES_AT_ONCE: usize = 4 << 20;
/// How long all rows of a pipeline in a table may take to be deleted or marked, ms: a human has asked for it and waits.
pub const SWEEP_MS: u64 = 3_600_000;

const _: () = assert!(BACKOFF_MS <= BACKOFF_MAX_MS);

/// The waits between tries of a sink whose service is away.
#[must_use]
pub fn backoff() -> Backoff {
    Backoff::new(BACKOFF_MS, BACKOFF_MAX_MS)
}
