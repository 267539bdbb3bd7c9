//! The measurements: what each is called, what it is about, how long it takes, and where it is made.

mod formats;
mod kafka;
mod keys;
mod lanes;
mod latency;
mod memory;
mod order;
mod parts;
mod recovery;
mod runaway;
mod sinks;
mod stage;
mod swap;
mod whole;

use crate::error::Outcome;
use crate::findings::Findings;
use crate::lab::Lab;

/// One of them.
pub(crate) struct Measurement {
    /// For `--only`, and in the results.
    pub(crate) name: &'static str,
    /// A line for whoever waits.
    pub(crate) about: &'static str,
    /// About how many seconds it takes, quick and in full, on a machine of two cores.
    pub(crate) seconds: (u32, u32),
    /// Makes it.
    pub(crate) run: fn(&Lab) -> Outcome<Findings>,
}

/// In the order in which they are made and shown.
pub(crate) const ALL: [Measurement; 14] = [
    Measurement {
        name: "whole",
        about: "the whole job beside the yardstick: built-in and Wasm rule, early rows, SQLite",
        seconds: (25, 240),
        run: whole::run,
    },
    Measurement {
        name: "order",
        about: "in-order, disordered and hot-key traffic, each beside the yardstick",
        seconds: (30, 120),
        run: order::run,
    },
    Measurement {
        name: "formats",
        about: "JSON, CSV and combined log",
        seconds: (15, 60),
        run: formats::run,
    },
    Measurement {
        name: "kafka",
        about: "from a topic, beside reading it plainly with the same client, and beside a file",
        seconds: (20, 120),
        run: kafka::run,
    },
    Measurement {
        name: "sinks",
        about: "rows a second into each sink: JSON lines, SQLite, Kafka, BigQuery, Postgres, Pub/Sub",
        seconds: (25, 120),
        run: sinks::run,
    },
    Measurement {
        name: "lanes",
        about: "two lanes beside one, without a sink",
        seconds: (15, 90),
        run: lanes::run,
    },
    Measurement {
        name: "parts",
        about: "stages apart: read, decode, route, fold, calls of the rule, seal, sync, sink",
        seconds: (10, 40),
        run: parts::run,
    },
    Measurement {
        name: "stage",
        about: "the session stage by itself, in CPU time an event",
        seconds: (40, 120),
        run: stage::run,
    },
    Measurement {
        name: "keys",
        about: "from 10 thousand to 10 million live keys",
        seconds: (40, 420),
        run: keys::run,
    },
    Measurement { name: "memory", about: "memory of a live session", seconds: (20, 90), run: memory::run },
    Measurement { name: "swap", about: "pauses of swaps at full load", seconds: (20, 90), run: swap::run },
    Measurement {
        name: "recovery",
        about: "kill -9 with a million open sessions, until events are processed again",
        seconds: (10, 60),
        run: recovery::run,
    },
    Measurement {
        name: "latency",
        about: "from HTTP to the row at half of full load, open loop; and beside a hot key",
        seconds: (50, 240),
        run: latency::run,
    },
    Measurement {
        name: "runaway",
        about: "a plugin that does not return, and its neighbour's rows",
        seconds: (20, 60),
        run: runaway::run,
    },
];
