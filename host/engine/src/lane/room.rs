//! The bound on open sessions (SEMANTICS 31): who may still begin one, and how room is made.
//!
//! A key takes room while it has a session that is open or may still change, or events that wait. When a row of a new key
//! finds no room, what the watermark has passed is folded first, between barriers too: only keys that nobody has been
//! told of in this epoch, so that at most one row of a session leaves in it. What then still finds none is a dead letter.

use super::keys::NO_SLOT;
use super::turn::Now;
use super::{Barrier, Entry, Lane, LaneFault, Origin};
use crate::event::RowHead;
use crate::key_state::Tail;
use crate::letter::RecordLetter;
use crate::time::EventTime;

impl Lane {
    /// Whether the bound is near: an eighth of it is left, or less. The next barrier lets go of what has been told.
    #[must_use]
    pub fn crowded(&self) -> bool {
        self.live_keys >= self.config.open_sessions - self.config.open_sessions / 8
    }

    /// Before some rows are taken in: makes room if they might need it, once for each watermark.
    pub(super) fn prepare(&mut self, rows: usize) -> Result<(), LaneFault> {
        let enough = self.live_keys + rows as u64 <= self.config.open_sessions;
        if enough || self.watermark <= self.room_made_at {
            return Ok(());
        }
        self.room_made_at = self.watermark;
        self.make_room()
    }

    /// Folds up to B the keys that nobody has been told of, and lets go of those of which nothing is left.
    pub fn make_room(&mut self) -> Result<(), LaneFault> {
        let b = self.watermark.minus(self.config.lateness_ms);
        let due = self.take_due(b);
        let untold = |e: &Entry| {
            e.state
                .tail
                .as_deref()
                .map(Tail::told)
                .is_none_or(|t| t.sent.is_empty() && t.closed.is_empty() && t.snapshots.is_empty())
        };
        let (fresh, told): (Vec<u32>, Vec<u32>) =
            due.into_iter().partition(|s| untold(&self.entries[*s as usize]));
        for slot in told {
            self.schedule(slot, EventTime::INFINITY);
        }
        let barrier = Barrier { watermark: b, early_tick: false, at_end: false };
        self.fold(&fresh, Now { w: b, b, barrier, at_barrier: false })?;
        for slot in std::mem::take(&mut self.touched) {
            if self.is_gone(slot) {
                self.let_go(slot);
            } else {
                self.touched.push(slot);
            }
        }
        Ok(())
    }

    /// The slot of a key that is live, or becomes it if there is room; else [`NO_SLOT`].
    #[cold]
    pub(super) fn slot_in_room(&mut self, hash: u64, key: &[u8]) -> u32 {
        match self.find(hash, key) {
            Some(slot) => slot,
            None if self.live_keys < self.config.open_sessions => self.add_key(hash, key),
            None => NO_SLOT,
        }
    }

    #[cold]
    pub(super) fn refuse(&mut self, head: &RowHead, key: &[u8], origin: Origin<'_>) {
        self.out.counts.sessions_over_cap += 1;
        let key = self.config.key_form.display(key);
        let raw_at = head.raw_at as usize;
        RecordLetter {
            reason: "sessions_over_cap",
            stage: "fold",
            source: origin.source,
            partition: origin.partition,
            position: Some(head.position),
            message: "there are as many open sessions as `limits.open_sessions`, and the watermark closes none of them",
            key: Some(&key),
            time_ms: Some(head.time.ms()),
            raw: origin.raw.get(raw_at..raw_at + head.raw_len as usize),
            ..RecordLetter::default()
        }
        .write(&mut self.out.letters);
    }
}
