//! What requests may cost, all of it in one place: whoever reaches a listener can take no more of the process than is
//! written here, however many they are.

use std::time::Duration;

/// Connections of all listeners together; more wait in the system's queue. Each costs some 10 KiB, and an open file.
pub(super) const CONNECTIONS_MAX: usize = 16_384;
/// One connection in so many is for operators: who floods the listeners of events does not shut them out.
pub(super) const OPERATORS_SHARE: usize = 8;
/// Open files that are for the process itself (store, components, libraries), whatever is configured.
pub(super) const FILES_OF_HOST: usize = 256;
/// Open files for each source, sink, lookup and pipeline: segments that are written, read and deleted, a database and what it
/// keeps beside.
pub(super) const FILES_OF_PART: usize = 64;

/// The head of a request: more than any proxy sends on, and little enough for each connection to have it.
pub(super) const HEAD_BYTES_MAX: usize = 64 << 10;
/// From the connection, or the last answer, to the end of the next request's head.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// After a stop, for requests that are being answered.
pub(super) const GOODBYE: Duration = Duration::from_secs(10);

/// What is read and thrown away after the last answer of a connection: a client that writes all of a body before it reads
/// would else be cut off, and never see why it was refused. Twice what the largest component has.
pub(super) const LINGER_BYTES_MAX: usize = 128 << 20;
/// For that.
pub(super) const LINGER_MAX: Duration = Duration::from_secs(20);
/// Between two pieces of that.
pub(super) const LINGER_IDLE_MAX: Duration = Duration::from_secs(2);

/// Bytes of a body of events as it comes.
pub(super) const BODY_BYTES_MAX: usize = 8 << 20;
/// Bytes of it after decompression.
pub(super) const PLAIN_BYTES_MAX: usize = 32 << 20;
/// From the request's head to the end of its body.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Records of one request: enough for a batch of any client library, few enough that one request delays no other.
pub(super) const RECORDS_MAX: usize = 10_000;
/// Bytes of all bodies that are being read, and of records that wait to be durable.
pub(super) const HELD_BYTES_MAX: usize = 256 << 20;
/// Bodies that are unpacked and split at a time, each up to twice `PLAIN_BYTES_MAX`: as many as there are threads for requests.
pub(super) const SPLITTERS_MAX: usize = 2;
/// How long a request waits for room, before its client is asked to come back.
pub(super) const ROOM_WAIT: Duration = Duration::from_secs(2);

// A request that is alone always has room, and one limit is named before another is met.
const _: () = assert!(2 * PLAIN_BYTES_MAX <= HELD_BYTES_MAX && BODY_BYTES_MAX <= PLAIN_BYTES_MAX);
// Semaphores count in 32 bits.
const _: () = assert!(HELD_BYTES_MAX <= u32::MAX as usize);
