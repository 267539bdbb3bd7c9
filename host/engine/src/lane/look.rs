//! What a lane holds, for whoever asks while it runs: states of open sessions, to try a newer rule with, and one key's.

use super::Lane;
use crate::key::key_hash;
use crate::key_state::Open;
use crate::outbox::Stage;
use crate::rule::Timer;
use crate::time::EventTime;
use std::ops::Range;

/// The state of an open session, as far as it is folded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveState {
    /// The key, as rows show it.
    pub key: String,
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

    /// States of the older version, or the only one, that open sessions have in this range of keys: the folded one, and the
    /// newest that stands behind events which wait.
    #[must_use]
    pub fn states(&self, range: Range<usize>) -> Vec<LiveState> {
        let entries =
            self.entries.get(range.start.min(self.entries.len())..range.end.min(self.entries.len()));
        let live = entries.unwrap_or_default().iter().filter(|e| e.live);
        live.flat_map(|e| {
            let tip = e.state.tail.as_deref().and_then(|t| t.snapshots.last()).and_then(|s| s.open.as_ref());
            let key = self.config.key_form.display(&e.state.key);
            e.state.base.iter().chain(tip).map(move |open: &Open| LiveState {
                key: key.clone().into_owned(),
                state: open.state.to_vec(),
                timers: open.timers.to_vec(),
            })
        })
        .collect()
    }

    /// What there is of a key.
    #[must_use]
    pub fn look(&self, key: &[u8]) -> Option<KeyLook> {
        let e = &self.entries[self.find(key_hash(key), key)? as usize];
        let bounds = |o: &Open| (o.first.time, o.last, o.count);
        let tail = e.state.tail.as_deref();
        let sent = tail.iter().flat_map(|t| &t.sent).map(|s| (s.start, s.end, s.count, s.stage));
        Some(KeyLook {
            open: e.state.base.as_ref().map(bounds),
            waiting: tail.map_or(0, |t| t.rows.len() as u64),
            sent: sent.collect(),
        })
    }
}
