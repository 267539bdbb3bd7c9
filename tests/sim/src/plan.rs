//! What a seed decides before anything happens: how the pipeline is set up, and what kind of world it lives in.

use crate::rule::Config;
use crate::world::Supply;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Early {
    Off,
    Epoch,
    Every(u64),
}

impl Early {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Early::Off => "early off",
            Early::Epoch => "early at each epoch",
            Early::Every(_) => "early at some epochs",
        }
    }
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) lanes: usize,
    pub(crate) lateness: i64,
    pub(crate) disorder: i64,
    pub(crate) idle: i64,
    pub(crate) drift: i64,
    pub(crate) far_future: i64,
    pub(crate) dedup: i64,
    pub(crate) early: Early,
    pub(crate) segment_bytes: u64,
    pub(crate) events_per_key: usize,
    pub(crate) suffix_bytes: usize,
    pub(crate) open_sessions: u64,
    pub(crate) configs: [Config; 3],
    pub(crate) supplies: Vec<Supply>,
    /// Every partition stays within its disorder, none is idle or comes late, no bound is hit: no event may be late.
    pub(crate) orderly: bool,
    /// Bounds are near.
    pub(crate) tight: bool,
    /// Of a hundred events, how many come again.
    pub(crate) copies: u32,
    /// Of a hundred events, how many may ask for more than to go on.
    pub(crate) rude: u32,
    pub(crate) keys: u8,
    pub(crate) lookups: bool,
    pub(crate) most: usize,
    pub(crate) hiccups: u32,
    pub(crate) hints: bool,
}

impl Plan {
    pub(crate) fn of(rng: &mut fastrand::Rng) -> Plan {
        let orderly = rng.u8(0..4) == 0;
        let tight = !orderly && rng.u8(0..3) == 0;
        let mut supplies = vec![Supply::Live];
        for supply in [Supply::Bounded, Supply::Pushed, Supply::Live, Supply::Pushed] {
            if rng.bool() {
                supplies.push(supply);
            }
        }
        let early = match rng.u8(0..5) {
            0 | 1 => Early::Off,
            2 | 3 => Early::Epoch,
            _ => Early::Every(rng.u64(2..5)),
        };
        let mut config = |form| Config {
            silence: (rng.u8(0..8) > 0).then(|| rng.i64(3..40)),
            max: (rng.u8(0..3) == 0).then(|| rng.i64(10..120)),
            split_on: rng.u8(0..2),
            close_on: if rng.bool() { 1 } else { 5 },
            form,
        };
        let configs = [config(1), config(2), config(1)];
        let big = 1 << 30;
        Plan {
            lanes: rng.usize(1..4),
            lateness: if rng.bool() { 0 } else { rng.i64(1..80) },
            disorder: rng.i64(1..40),
            idle: if orderly { i64::MAX } else { rng.i64(20..300) },
            drift: rng.i64(10..200),
            far_future: if orderly { 1 << 40 } else { rng.i64(30..200) },
            dedup: if rng.bool() { 0 } else { rng.i64(10..200) },
            early,
            segment_bytes: rng.u64(800..6_000),
            events_per_key: if tight { rng.usize(4..30) } else { big },
            suffix_bytes: if tight && rng.bool() { rng.usize(600..5_000) } else { big },
            open_sessions: if tight && rng.bool() { rng.u64(2..8) } else { big as u64 },
            configs,
            supplies,
            orderly,
            tight,
            copies: rng.u32(2..15),
            rude: rng.u32(5..60),
            keys: rng.u8(2..16),
            lookups: rng.u8(0..5) == 0,
            most: if rng.bool() { 0 } else { rng.usize(1..6) },
            hiccups: if rng.bool() { 0 } else { rng.u32(4..9) },
            hints: rng.bool(),
        }
    }

    /// A small pipeline in which much happens: late events correct and retract, versions follow each other.
    pub(crate) fn script(rng: &mut fastrand::Rng) -> Plan {
        let plan = Plan::of(rng);
        Plan {
            orderly: false,
            tight: false,
            lateness: 60,
            idle: 100,
            far_future: 100,
            early: if rng.bool() { Early::Epoch } else { Early::Off },
            segment_bytes: 1_500,
            events_per_key: 1 << 30,
            suffix_bytes: 1 << 30,
            open_sessions: 1 << 30,
            supplies: vec![Supply::Live, Supply::Pushed],
            keys: 4,
            lookups: rng.u8(0..4) == 0,
            ..plan
        }
    }
}
