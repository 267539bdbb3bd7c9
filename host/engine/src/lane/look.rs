//! What a lane holds, for whoever asks while it runs: states of open sessions, to try a newer rule with, and one key's.

use super::Lane;
use super::epoch::LaneFault;
use super::turn::{push_head, push_inputs};
use crate::bounds::CALL_TURNS;
use crate::key::key_hash;
use crate::key_state::{Open, Tail};
use crate::outbox::Stage;
use crate::rule::{Timer, Turn};
use crate::time::EventTime;
use crate::versions::Version;
use std::ops::Range;

/// The state of an open session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveState {
    /// The key, as rows show it.
    pub key: String,
    /// The version that has it.
    pub version: Version,
    /// The rule's own bytes.
    pub state: Vec<u8>,
    /// Pending timers.
    pub timers: Vec<Timer>,
}

/// What is known of a key that has a session which is open or may still change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyLook {
    /// The open session as far as it is folded for good: start, last event, events.
    pub open: Option<(EventTime, EventTime, u64)>,
    /// Events that wait, because earlier ones may still come.
    pub waiting: u64,
    /// Sessions that sinks know and that may still change: start, last event, events, stage.
    pub sent: Vec<(EventTime, EventTime, u64, Stage)>,
}

impl Lane {
    /// How many keys there may be; [`states`](Lane::states) takes ranges of them.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.entries.len()
    }

    /// States that the sessions of this range of keys have at `until` which are open there: folded for that, events that wait
    /// too, and forgotten again. While two versions are live, `until` lies before the newer one's place.
    ///
    /// # Errors
    /// If the rule fails in a way that is not contained.
    pub fn states(&mut self, range: Range<usize>, until: EventTime) -> Result<Vec<LiveState>, LaneFault> {
        let mut found = Vec::new();
        let slots: Vec<u32> = (range.start..range.end.min(self.entries.len())).map(|s| s as u32).collect();
        for some in slots.chunks(CALL_TURNS) {
            self.states_of(some, until, &mut found)?;
        }
        Ok(found)
    }

    fn states_of(
        &mut self,
        slots: &[u32],
        until: EventTime,
        found: &mut Vec<LiveState>,
    ) -> Result<(), LaneFault> {
        debug_assert!(self.turns.turns.is_empty() && self.pending.is_empty());
        let mut asked = Vec::with_capacity(slots.len());
        for slot in slots.iter().copied() {
            let e = &self.entries[slot as usize];
            if !e.live || (e.state.base.is_none() && e.state.tail.is_none()) {
                continue;
            }
            self.put_in_order(slot);
            let e = &self.entries[slot as usize];
            let empty = Tail::default();
            let tail = e.state.tail.as_deref().unwrap_or(&empty);
            let (restart, open) = tail.restart(e.state.base.as_ref());
            let until = tail.rows.last().map_or(until, |r| r.time.max(until));
            let key = if self.wants_key { self.config.key_form.display(&e.state.key) } else { "".into() };
            let mut turn = push_head(&mut self.turns, &key, open);
            turn.inputs = push_inputs(&mut self.turns, tail, restart..tail.rows.len());
            self.turns.turns.push(Turn { until, ..turn });
            self.carried.push(open.map_or_else(Version::default, |o| o.version));
            asked.push(slot);
        }
        let mut results = std::mem::take(&mut self.results);
        self.versions.call(&self.turns, &self.carried, &mut results);
        for (n, (slot, r)) in asked.iter().zip(&results.turns).enumerate() {
            let key = || self.config.key_form.display(&self.entries[*slot as usize].state.key).into_owned();
            match &r.fault {
                Some(f) => return Err(LaneFault { key: key(), message: f.message.clone() }),
                None if r.end.first.is_some() => found.push(LiveState {
                    key: key(),
                    version: self.versions.answered(n).after,
                    state: results.bytes[r.end.state.range()].to_vec(),
                    timers: results.timers[r.end.timers.range()].to_vec(),
                }),
                None => {}
            }
        }
        self.results = results;
        self.turns.clear();
        self.carried.clear();
        Ok(())
    }

    /// What there is of a key.
    #[must_use]
    pub fn look(&self, key: &[u8]) -> Option<KeyLook> {
        let e = &self.entries[self.find(key_hash(key), key)? as usize];
        let bounds = |o: &Open| (o.first.time, o.last, o.count);
        let tail = e.state.tail.as_deref();
        let sent = tail.iter().flat_map(|t| &t.told().sent).map(|s| (s.start, s.end, s.count, s.stage));
        Some(KeyLook {
            open: e.state.base.as_ref().map(bounds),
            waiting: tail.map_or(0, |t| t.rows.len() as u64),
            sent: sent.collect(),
        })
    }
}
