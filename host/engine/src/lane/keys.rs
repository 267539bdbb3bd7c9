//! The keys of a lane: the table that finds them, and the index of when each must be visited.

use super::{Entry, Lane, NEVER};
use crate::bounds::DUE_BUCKET_BITS;
use crate::key_state::KeyState;
use crate::time::EventTime;

/// What the table holds of a key: enough to know it almost surely without a look at the key itself, which lies far away.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    slot: u32,
    tag: u32,
}

/// Bits of a key's hash that the table does not compare itself.
const fn tag(hash: u64) -> u32 {
    (hash >> 25) as u32
}

/// No key has this slot.
pub(super) const NO_SLOT: u32 = u32::MAX;

fn bucket(t: EventTime) -> i64 {
    t.ms() >> DUE_BUCKET_BITS
}

impl Lane {
    /// The slot of a key; it becomes live if it is not.
    pub(super) fn slot(&mut self, hash: u64, key: &[u8]) -> u32 {
        match self.find(hash, key) {
            Some(s) => s,
            None => self.add_key(hash, key),
        }
    }

    #[inline]
    pub(super) fn find(&self, hash: u64, key: &[u8]) -> Option<u32> {
        let tag = tag(hash);
        let is = |p: &Place| p.tag == tag && *self.entries[p.slot as usize].state.key == *key;
        self.table.find(hash, is).map(|p| p.slot)
    }

    /// The slot that most likely is the key's, its entry left alone; [`NO_SLOT`] if the key is not there.
    #[inline]
    pub(super) fn guess(&self, hash: u64) -> u32 {
        let tag = tag(hash);
        self.table.find(hash, |p| p.tag == tag).map_or(NO_SLOT, |p| p.slot)
    }

    /// Whether the key has this slot.
    #[inline]
    pub(super) fn is_at(&self, slot: u32, key: &[u8]) -> bool {
        self.entries.get(slot as usize).is_some_and(|e| *e.state.key == *key)
    }

    #[cold]
    pub(super) fn add_key(&mut self, hash: u64, key: &[u8]) -> u32 {
        let state =
            KeyState { hash, key: key.into(), base: None, settled_b: EventTime::BEGINNING, tail: None };
        let due = EventTime::INFINITY;
        let e =
            Entry { state, due, bucket: NEVER, touched: false, dirty: false, persisted: false, live: true };
        let slot = if let Some(s) = self.free.pop() {
            // The list of dirty keys may still name the slot.
            let dirty = self.entries[s as usize].dirty;
            self.entries[s as usize] = Entry { dirty, ..e };
            s
        } else {
            self.entries.push(e);
            (self.entries.len() - 1) as u32
        };
        let entries = &self.entries;
        let place = Place { slot, tag: tag(hash) };
        self.table.insert_unique(hash, place, |p| entries[p.slot as usize].state.hash);
        self.live_keys += 1;
        slot
    }

    /// Makes sure that the key is visited when W reaches `at`.
    pub(super) fn schedule(&mut self, slot: u32, at: EventTime) {
        let e = &mut self.entries[slot as usize];
        e.due = e.due.min(at);
        let b = bucket(e.due);
        if e.due != EventTime::INFINITY && b < e.bucket {
            e.bucket = b;
            self.due.entry(b).or_default().push(slot);
        }
    }

    /// Takes the keys that are due at `w` out of the index.
    pub(super) fn take_due(&mut self, w: EventTime) -> Vec<u32> {
        let mut due = Vec::new();
        while let Some(first) = self.due.first_entry() {
            let b = *first.key();
            if b > bucket(w) {
                break;
            }
            let slots = first.remove();
            let mut stays = Vec::new();
            for s in slots {
                let e = &mut self.entries[s as usize];
                if !e.live || e.bucket != b {
                    continue;
                }
                if e.due <= w {
                    e.bucket = NEVER;
                    due.push(s);
                } else if bucket(e.due) == b {
                    stays.push(s);
                } else {
                    e.bucket = NEVER;
                    self.schedule(s, EventTime::INFINITY);
                }
            }
            if !stays.is_empty() {
                self.due.insert(b, stays);
                break;
            }
        }
        due
    }

    pub(super) fn forget(&mut self, slot: u32) {
        let e = &mut self.entries[slot as usize];
        e.live = false;
        e.bucket = NEVER;
        if let Some(mut t) = e.state.tail.take() {
            t.clear();
            self.tails.push(t);
        }
        let hash = e.state.hash;
        if let Ok(found) = self.table.find_entry(hash, |p| p.slot == slot) {
            found.remove();
        }
        self.free.push(slot);
        self.live_keys -= 1;
    }
}

#[cfg(test)]
mod tests {
    use crate::event::{Position, RowHead, Rows};
    use crate::gap::{Boundary, Gap, GapConfig};
    use crate::key::KeyForm;
    use crate::lane::{Barrier, Lane, LaneConfig, Origin};
    use crate::outbox::{Outbox, Stages};
    use crate::time::EventTime;
    use crate::versions::Versions;

    /// Bug family: what the table knows of a key taken for the key.
    #[test]
    fn keys_of_one_hash_are_kept_apart() {
        let gap =
            GapConfig { gap_ms: 10, boundary: Boundary::Exclusive, max_ms: None, start: None, end: None };
        let config = LaneConfig {
            pipeline: "p".into(),
            key_form: KeyForm::One,
            lateness_ms: 0,
            early: false,
            events_per_key: 100,
            suffix_bytes: 1 << 20,
            open_sessions: 100,
            groups: 0..1024,
            sources: vec!["s".into()],
            layout: Vec::new(),
        };
        let mut lane = Lane::new(config, Versions::single(Box::new(Gap::new(&gap))));
        let mut rows = Rows::default();
        for (n, key) in [b"a", b"b", b"a", b"b", b"b"].into_iter().enumerate() {
            let at = rows.bytes.len() as u32;
            rows.bytes.extend_from_slice(key);
            let position = Position { source: 0, partition: 0, offset: n as u64 };
            let time = EventTime::from_ms(n as i64);
            rows.heads.push(RowHead {
                key_hash: 7,
                time,
                position,
                key_at: at,
                key_len: 1,
                ext_len: 0,
                raw_at: 0,
                raw_len: 0,
            });
        }
        let origin = Origin { source: "s", partition: "p", raw: b"" };
        // Twice: the keys are new at first, and then they are known.
        lane.insert(&rows, EventTime::BEGINNING, origin).unwrap();
        rows.heads.iter_mut().for_each(|h| h.position.offset += 10);
        lane.insert(&rows, EventTime::BEGINNING, origin).unwrap();
        let end = Barrier { watermark: EventTime::INFINITY, early_tick: false, at_end: true };
        let epoch = lane.barrier(end).unwrap();
        let mut sessions: Vec<(&str, u64)> = Outbox::new(1, 1, &epoch.rows, b"")
            .sessions(Stages::ALL)
            .map(|(_, r)| (r.key, r.events))
            .collect();
        sessions.sort_unstable();
        assert_eq!(sessions, [("a", 4), ("b", 6)]);
    }
}
