//! Every limit of the sandbox, with its unit and reason. A plugin that reaches one is refused or stopped; nothing here
//! can be raised by a plugin.

use std::time::Duration;

/// Bytes of a component that is taken. A Rust rule is 30 to 300 KB; Python and JS bring an interpreter of 3 to 20 MB.
pub const COMPONENT_BYTES_MAX: usize = 64 << 20;

/// Bytes of one instance's linear memory. A frame of some hundred rows in and out needs under 1 MiB; interpreters
/// begin with 10 to 30 MiB.
pub const MEMORY_BYTES_MAX: usize = 128 << 20;

/// Linear memories in a component. One, so that an address (the progress word's) says all.
pub const MEMORIES_MAX: u32 = 1;

/// Entries of one table. Rust rules have some hundred functions in it; interpreters up to ten thousand.
pub const TABLE_ELEMENTS_MAX: usize = 20_000;

/// Tables in a component: the module's own, the one through which `wit-component` ties imports, and some for linked
/// libraries.
pub const TABLES_MAX: u32 = 8;

/// Core instances in a component: a module and its shims are 3; linked libraries of an interpreter are a few dozen.
pub const CORE_INSTANCES_MAX: u32 = 48;

/// Bytes of the host's book-keeping for one core instance. A module with 10,000 functions needs some 300 KB.
pub const CORE_INSTANCE_BYTES_MAX: usize = 1 << 20;

/// Bytes of the host's book-keeping for one component.
pub const COMPONENT_INSTANCE_BYTES_MAX: usize = 1 << 20;

/// Instances alive at a time in one engine: lanes × plugins of a pipeline × 2 versions, over all pipelines. It costs
/// address space, not memory.
pub const INSTANCES_MAX: u32 = 512;

/// Bytes of address space for each memory: with 4 GiB no access needs a check, because 32 bits cannot reach beyond.
pub const MEMORY_RESERVATION_BYTES: u64 = 4 << 30;

/// Bytes that a guest may use of the calling thread's stack. Threads have 2 MiB; the host's own frames need little.
/// A Rust guest's own shadow stack is 1 MiB of its memory and is used up first in most recursions.
pub const STACK_BYTES_MAX: usize = 512 << 10;

/// The deadline's tick. A call is stopped at most one tick, and what the scheduler adds, after its deadline.
pub const TICK: Duration = Duration::from_millis(1);

/// Ticks that are made up for at once when the ticker was late: on a machine with more to run than cores it is, by some
/// milliseconds.
pub const TICKS_MADE_UP_MAX: u128 = 20;

/// The longest deadline that is taken.
pub const DEADLINE_MAX: Duration = Duration::from_secs(60);

/// For instantiation with `start`, `describe`, `configure` and `progress`, each. An interpreter needs 10 to 100 ms
/// to start; a rule microseconds.
pub const SETUP_DEADLINE: Duration = Duration::from_millis(1_000);

/// Bytes that a call may hand to the host: its answer, or a description. An answer is about as long as its question,
/// some 64 KiB; snapshots and states may be larger.
pub const OUTPUT_BYTES_MAX: usize = 32 << 20;

/// Bytes of a config's JSON text.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;

/// Errors of `configure` that are shown.
pub const CONFIG_ERRORS_MAX: usize = 100;

/// Bytes of one line of a plugin's log; what is over is cut.
pub const LOG_LINE_BYTES_MAX: usize = 1024;

/// Lines that one instance may log in [`LOG_WINDOW`]; what is over is counted and dropped.
pub const LOG_LINES_MAX: u32 = 64;

/// See [`LOG_LINES_MAX`].
pub const LOG_WINDOW: Duration = Duration::from_secs(1);

/// Lines that wait to be taken. As many as one window lets through, so that a line is dropped for one reason only.
pub const LOG_LINES_HELD_MAX: usize = LOG_LINES_MAX as usize;

/// Bytes of messages of a guest (a panic, an error for the whole call) that are kept.
pub const MESSAGE_BYTES_MAX: usize = 4096;

/// Bytes of a text that a plugin gives with one event or one state (why it is rejected, why it cannot be migrated); what is
/// over is cut. Every event may have one, and it waits in memory until its letter is committed.
pub const REMARK_BYTES_MAX: usize = 1024;

/// Bytes of a plugin's name (the contract).
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of the names of fields, reasons, timers, metrics and lookups, and of symbols. They become columns, labels and
/// JSON keys.
pub const LABEL_BYTES_MAX: usize = 128;
/// Declared fields (the contract).
pub const FIELDS_MAX: usize = 64;
/// Symbols of one field (the contract).
pub const SYMBOLS_MAX: usize = 255;
/// Reasons that the host gives itself, for sessions, events and rows: a plugin's must be told apart from them.
pub const REASONS_RESERVED: [&str; 4] = ["end_of_input", "limit", "lookup_failed", "plugin_fault"];
/// Reasons (the contract).
pub const REASONS_MAX: usize = 256;
/// Timers (the contract).
pub const TIMERS_MAX: usize = 16;
/// Metrics: each is a series for every lane and version.
pub const METRICS_MAX: usize = 64;
/// Buckets of a histogram.
pub const BUCKETS_MAX: usize = 64;
/// Bytes of a metric's help.
pub const HELP_BYTES_MAX: usize = 1024;
/// Lookups.
pub const LOOKUPS_MAX: usize = 16;
/// Versions that `migrate` takes.
pub const MIGRATES_FROM_MAX: usize = 64;
/// Bytes of the shape of a state (the contract). A field is some 20; larger states belong into events.
pub const STATE_SHAPE_BYTES_MAX: usize = 16 << 10;
/// Bytes of the config's schema.
pub const CONFIG_SCHEMA_BYTES_MAX: usize = 256 << 10;

const _: () = {
    assert!(OUTPUT_BYTES_MAX <= MEMORY_BYTES_MAX, "an answer lies in memory");
    assert!(MEMORY_BYTES_MAX as u64 <= MEMORY_RESERVATION_BYTES, "a memory lies in its reservation");
    assert!(STACK_BYTES_MAX <= 1 << 20, "threads have 2 MiB, and the host needs some");
    assert!(CONFIG_BYTES_MAX + CONFIG_SCHEMA_BYTES_MAX < OUTPUT_BYTES_MAX);
    assert!(REMARK_BYTES_MAX <= MESSAGE_BYTES_MAX);
    assert!(SETUP_DEADLINE.as_millis() <= DEADLINE_MAX.as_millis());
};
