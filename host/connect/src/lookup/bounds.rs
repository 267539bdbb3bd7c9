//! Every bound and default of lookups, with its unit and reason.

/// Bytes of answers that one lookup keeps, by default: some 200,000 rows.
pub const CACHE_BYTES: u64 = 64 << 20;
/// What one kept answer costs beside its key and row: the table's slot, the list's links, two counted strings.
pub const CACHE_ENTRY_BYTES: u64 = 160;
/// How long an answer of a database or service is believed, ms. A file in memory needs no cache.
pub const TTL_MS: i64 = 5 * 60_000;
/// How long "there is no such row" is believed, ms: shorter, because rows are added more often than changed.
pub const NEGATIVE_TTL_MS: i64 = 60_000;
/// Keys in one call, by default: spreads the cost of a round trip, and still is a small query.
pub const BATCH_KEYS: u64 = 100;
/// Keys in one call at most: SQLite and services take a list of this length without a second thought.
pub const BATCH_KEYS_MAX: u64 = 10_000;
/// Calls under way at a time, by default.
pub const CONCURRENCY: u64 = 4;
/// The same where a call asks for one key only: at 50 ms a call some 300 keys a second.
pub const CONCURRENCY_OF_ONE: u64 = 16;
/// Calls under way at a time at most; each is a thread.
pub const CONCURRENCY_MAX: u64 = 64;
/// How long one call to a database or request to a service may take, ms, by default.
pub const TIMEOUT_MS: i64 = 2_000;
/// How often a key that failed by itself is asked for again, by default, or a provider that is down is tried in vain.
pub const RETRIES: u64 = 4;
/// The same at most.
pub const RETRIES_MAX: u64 = 20;
/// Wait before the first retry, ms; it doubles from one to the next, up to [`BACKOFF_MAX_MS`].
pub const BACKOFF_MS: u64 = 100;
/// Longest wait between two calls to a provider that does not answer, ms. Its return is noticed within this.
pub const BACKOFF_MAX_MS: u64 = 2_000;
/// Calls that fail one after the other before a provider counts as down: then one key at a time tries it.
pub const DOWN_AFTER: u32 = 8;
/// How often a provider that is down is tried with one key or another before those that wait for it are given up, even if fewer
/// retries are wanted: two tries in vain may be two bad keys.
pub const VAIN_MIN: u32 = 2;
/// Bytes of one row.
pub const ROW_BYTES_MAX: usize = 64 << 10;
/// Bytes of one key; longer ones are not asked for.
pub const KEY_BYTES_MAX: usize = 4 << 10;
/// Bytes of the answer to one HTTP call.
pub const RESPONSE_BYTES_MAX: u64 = 16 << 20;
/// Bytes of the rows of a file or table that is kept in memory; larger tables belong into a database.
pub const FILE_BYTES_MAX: usize = 256 << 20;
/// How often a table that is kept whole is read again, ms, by default: each time costs what reading all of it costs.
pub const REFRESH_MS: i64 = 3_600_000;
/// The same at least: nothing looks more often.
pub const REFRESH_MS_MIN: i64 = LOOK_MS as i64;
/// And at most: what is a week old is no longer what it was.
pub const REFRESH_MS_MAX: i64 = 7 * 24 * 3_600_000;
/// How long one answer may take while such a table is read, ms, by default.
pub const PAGE_TIMEOUT_MS: i64 = 30_000;
/// Rows that one answer is asked for; the service gives fewer if they are long.
pub const PAGE_ROWS: u64 = 20_000;
/// Bytes of one answer: a service that keeps its own rules sends a third of it.
pub const PAGE_BYTES_MAX: usize = 64 << 20;
/// Wait before a table that could not be read is tried again, ms; it doubles from one to the next, up to [`RELOAD_MAX_MS`].
pub const RELOAD_MS: u64 = 1_000;
/// The longest, ms. The service's return is noticed within this.
pub const RELOAD_MAX_MS: u64 = 60_000;
/// How often a table that changes while it is read is begun anew before that counts as a failure.
pub const READS_MAX: u32 = 3;
/// How often a provider looks whether its rows have changed, ms.
pub const LOOK_MS: u64 = 1_000;

const _: () = {
    assert!(RELOAD_MS <= RELOAD_MAX_MS && REFRESH_MS_MIN <= REFRESH_MS && REFRESH_MS <= REFRESH_MS_MAX);
    assert!(BACKOFF_MS <= BACKOFF_MAX_MS && BATCH_KEYS <= BATCH_KEYS_MAX);
    assert!(CONCURRENCY <= CONCURRENCY_MAX && CONCURRENCY_OF_ONE <= CONCURRENCY_MAX);
    assert!(
        RETRIES <= RETRIES_MAX && RETRIES_MAX < 64,
        "a wait is the first one shifted by the number of retries"
    );
    assert!(ROW_BYTES_MAX + KEY_BYTES_MAX < RESPONSE_BYTES_MAX as usize);
};
