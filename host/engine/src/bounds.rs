//! Every bound of the engine in one place, with its reason.

/// Parts of the key space; fixed for the life of a data directory (DESIGN 2). 1,024 allows 1,024 lanes
/// or instances and keeps the table of image positions under 10 KiB.
pub const KEY_GROUPS: u32 = 1024;
/// Rows between two snapshots of a rule's state in a suffix (SEMANTICS 29): a late event costs at most this many steps more.
pub const SNAPSHOT_ROWS: usize = 16;
/// A long suffix takes fewer snapshots: at most this many in one turn, so that a hot key does not hold more state than events.
pub const SNAPSHOTS_PER_TURN: usize = 64;
/// Inputs in one call of a rule: large enough to spread the call's cost, small enough to stay in the second-level cache.
pub const CALL_INPUTS: usize = 4096;
/// Turns in one call of a rule.
pub const CALL_TURNS: usize = 512;
/// Bytes that a rule may answer one call with: offsets into them are 32 bits, and every lane may hold so many. Half a MiB for
/// each turn.
pub const RESULTS_BYTES: usize = 256 << 20;
/// Rows that a lane takes in before it folds what is due: between barriers, with early output off and no lateness.
/// Rarer folds have more rows of a key to a turn: against 1 << 17 it took 3 to 9 % less CPU and 20 MiB more, 1 << 19
/// 2 to 4 % less again and 16 MiB more (10 s of disorder, 200,000 Zipf keys).
pub const SWEEP_ROWS: usize = 1 << 18;
/// Rows whose keys are looked up together: more than a core can wait for at once, few enough to stay in its first-level cache.
pub const LOOKUP_ROWS: usize = 32;
/// Width of a bucket in the index of due times, as a power of two in ms: about a second.
pub const DUE_BUCKET_BITS: u32 = 10;
/// Events in one key's suffix by default (SEMANTICS 31).
pub const KEY_EVENTS: usize = 1_000_000;
/// Keys of a pipeline with a session that is open or may still change, by default (SEMANTICS 31): ten times what one
/// machine is meant to hold.
pub const OPEN_SESSIONS: u64 = 10_000_000;
/// A key's extension bytes: offsets into them are 32 bits.
pub const KEY_EXT_BYTES: usize = 1 << 31;
/// A dead letter's raw bytes: beyond it they are cut and marked, so that a letter stays below the record bound of every sink.
pub const LETTER_RAW_BYTES: usize = 1 << 20;
/// Fields of one session, JSON: a row stays far below what any sink takes in one request.
pub const FIELDS_BYTES: usize = 64 << 10;
/// A rule's state of one session. It is written with every epoch that changes it; larger ones belong into events.
pub const STATE_BYTES: usize = 64 << 10;

const _: () =
    assert!(SNAPSHOT_ROWS < CALL_INPUTS && KEY_GROUPS.is_power_of_two() && KEY_GROUPS == 1 << GROUP_BITS);
pub(crate) const GROUP_BITS: u32 = 10;
/// Keys looked at in one barrier while a swap settles: some milliseconds at most, so that no epoch waits for it.
pub const SETTLE_KEYS: usize = 65_536;
/// Counters of the summary that finds hot keys: a key with more than a 65th of the rows cannot be missed.
pub const HOT_COUNTERS: usize = 64;
/// Which part of a lane's events makes a key hot: one key stays on one lane, and ten such keys are all that it does.
pub const HOT_SHARE: f64 = 0.1;
/// Rows looked at before any key is called hot, about two thousand events: a quiet epoch says nothing.
pub const HOT_SAMPLED_MIN: u64 = 64;
/// Hot keys that are kept and shown of a pipeline: more than ten cannot be hot in one lane.
pub const HOT_KEYS: usize = 16;
const _: () = assert!(HOT_SHARE > 1.0 / (HOT_COUNTERS as f64) * 2.0 && HOT_SHARE * HOT_KEYS as f64 > 1.0);
