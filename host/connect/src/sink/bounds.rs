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
/// Bytes of one row for BigQuery: a request takes 10 MB, with its frame and schema.
pub const BIGQUERY_ROW_BYTES_MAX: usize = 9_500_000;
/// Requests of one epoch that are on their way to BigQuery: enough that it is never waited for with nothing to do, and few enough to
/// be kept until they are answered (this many times [`BYTES_AT_ONCE`]).
pub const BIGQUERY_IN_FLIGHT: usize = 4;
/// How long a replaced process may go on writing to BigQuery at most, ms: after so long it looks again whether it still may.
pub const BIGQUERY_LOOK_MS: u64 = 30_000;
/// Bytes of one message of Pub/Sub, its attributes on top: a request takes 10 MB.
pub const PUBSUB_MESSAGE_BYTES_MAX: usize = 9_500_000;
/// Messages of one request to Pub/Sub, at most: its own bound.
pub const PUBSUB_MESSAGES_AT_ONCE: usize = 1_000;
/// Requests that are on their way to Pub/Sub: what one connection of HTTP/2 carries at once.
pub const PUBSUB_IN_FLIGHT: usize = 100;
/// How long all rows of a pipeline in a table may take to be deleted or marked, ms: a human has asked for it and waits.
pub const SWEEP_MS: u64 = 3_600_000;

const _: () = assert!(BACKOFF_MS <= BACKOFF_MAX_MS);
const _: () = assert!(BYTES_AT_ONCE <= BIGQUERY_ROW_BYTES_MAX);
const _: () = assert!(BYTES_AT_ONCE <= PUBSUB_MESSAGE_BYTES_MAX);

/// The waits between tries of a sink whose service is away.
#[must_use]
pub fn backoff() -> Backoff {
    Backoff::new(BACKOFF_MS, BACKOFF_MAX_MS)
}
