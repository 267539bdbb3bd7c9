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

/// Bits of a key's hash.
const fn tag(hash: u64) -> u32 {
    (hash >> 25) as u32
}

/// What the table places a key by: the tag, spread over all bits. So a table that grows needs no look at the keys.
const fn spread(tag: u32) -> u64 {
    (tag as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
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
        self.table.find(spread(tag), is).map(|p| p.slot)
    }

    /// The slot that most likely is the key's, its entry left alone; [`NO_SLOT`] if the key is not there.
    #[inline]
    pub(super) fn guess(&self, hash: u64) -> u32 {
        let tag = tag(hash);
        self.table.find(spread(tag), |p| p.tag == tag).map_or(NO_SLOT, |p| p.slot)
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
        let e = Entry {
            due,
            bucket: NEVER,
            touched: false,
            dirty: false,
            persisted: false,
            live: true,
            base_bytes: 0,
            state,
        };
        let slot = if let Some(s) = self.free.pop() {
            // The list of dirty keys may still name the slot.
            let dirty = self.entries[s as usize].dirty;
            self.entries[s as usize] = Entry { dirty, ..e };
            s
        } else {
            self.entries.push(e);
            (self.entries.len() - 1) as u32
        };
        let place = Place { slot, tag: tag(hash) };
        self.table.insert_unique(spread(place.tag), place, |p| spread(p.tag));
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

    /// Counts what a key's base takes anew.
    pub(super) fn count_base(&mut self, slot: u32) {
        let e = &mut self.entries[slot as usize];
        let now = e.state.base.as_ref().map_or(0, |open| open.bytes() as u32);
        self.base_bytes = (self.base_bytes + u64::from(now)).saturating_sub(u64::from(e.base_bytes));
        e.base_bytes = now;
    }

    pub(super) fn forget(&mut self, slot: u32) {
        let e = &mut self.entries[slot as usize];
        self.base_bytes = self.base_bytes.saturating_sub(u64::from(e.base_bytes));
        e.live = false;
        e.bucket = NEVER;
        if let Some(mut t) = e.state.tail.take() {
            t.clear();
            self.tails.push(t);
        }
        let hash = e.state.hash;
        if let Ok(found) = self.table.find_entry(spread(tag(hash)), |p| p.slot == slot) {
            found.remove();
        }
        self.free.push(slot);
        self.live_keys -= 1;
    }
}
