//! What a lane is asked at a barrier and what leaves it there.

use crate::hot::HotKey;
use crate::metrics::Totals;
use crate::time::EventTime;
use crate::versions::Version;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What happened in an epoch, in events and revisions.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaneCounts {
    /// Copies of an event, dropped.
    pub duplicates: u64,
    /// Copies whose content differed.
    pub conflicts: u64,
    /// Events over their key's bound: dead letters.
    pub key_over_cap: u64,
    /// Events over the bound of all suffixes: dead letters.
    pub suffix_over_cap: u64,
    /// Events that would have opened one session too many: dead letters.
    pub sessions_over_cap: u64,
    /// Revisions by stage: early, final, corrected, retracted.
    pub revisions: [u64; 4],
    /// Events stepped by the rule.
    pub steps: u64,
    /// Turns.
    pub turns: u64,
}

impl LaneCounts {
    /// Dead letters out of the fold, by reason.
    pub fn letters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("key_over_cap", self.key_over_cap),
            ("suffix_over_cap", self.suffix_over_cap),
            ("sessions_over_cap", self.sessions_over_cap),
        ]
        .into_iter()
        .filter(|(_, n)| *n > 0)
    }
    /// Adds another lane's or epoch's counts.
    pub fn add(&mut self, o: &LaneCounts) {
        self.duplicates += o.duplicates;
        self.conflicts += o.conflicts;
        self.key_over_cap += o.key_over_cap;
        self.suffix_over_cap += o.suffix_over_cap;
        self.sessions_over_cap += o.sessions_over_cap;
        self.steps += o.steps;
        self.turns += o.turns;
        for (a, b) in self.revisions.iter_mut().zip(o.revisions) {
            *a += b;
        }
    }
}

/// What a barrier asks.
#[derive(Clone, Copy, Debug)]
pub struct Barrier {
    /// The watermark. `INFINITY` only together with `at_end`.
    pub watermark: EventTime,
    /// Whether open sessions are to be reported.
    pub early_tick: bool,
    /// The input has ended and everything closes (SEMANTICS 9).
    pub at_end: bool,
}

/// What leaves a lane at a barrier.
#[derive(Default, Debug)]
pub struct LaneEpoch {
    /// Changed state, for the epoch record.
    pub state: Vec<u8>,
    /// Revisions (see [`crate::outbox`]).
    pub rows: Vec<u8>,
    /// Dead letters, JSON lines.
    pub letters: Vec<u8>,
    /// What happened.
    pub counts: LaneCounts,
    /// Keys with an open session or pending events, after the epoch.
    pub live_keys: u64,
    /// Bytes in suffixes, after the epoch.
    pub suffix_bytes: u64,
    /// Bytes of open sessions in bases, after the epoch.
    pub base_bytes: u64,
    /// The key that went over its cap first in this epoch, as rows show it.
    pub key_over_cap: Option<String>,
    /// Keys with a great part of the epoch's events, hottest first; `None`: it had too few events to tell.
    pub hot_keys: Option<Vec<HotKey>>,
    /// Dead letters that the rule has caused, by reason: rejected events, discarded sessions, faults.
    pub dead: BTreeMap<String, u64>,
    /// What the rule's own metrics have grown by.
    pub metrics: Totals,
    /// The newest of several live versions, if nothing stands before its place any more: the others can go.
    pub settled: Option<Version>,
}

/// The rule failed at a key. The pipeline cannot go on with it.
#[derive(Debug, thiserror::Error)]
#[error("rule failed at key {key}: {message}")]
pub struct LaneFault {
    /// The key, as rows show it.
    pub key: String,
    /// What the rule said.
    pub message: String,
}

/// State bytes that do not decode: a host bug or another program's file, since the record's checksum held.
#[derive(Debug, thiserror::Error)]
#[error("the state section does not decode at byte {at}")]
pub struct StateDamage {
    /// Byte within the section.
    pub at: usize,
}
