//! A lane's state as bytes: what changed in an epoch, images of whole key groups, and both read back.

use super::Lane;
use super::epoch::StateDamage;
use crate::bounds::LOOKUP_ROWS;
use crate::key::key_group;
use crate::key_state::codec::{self, Extent};
use crate::key_state::{Open, Tail};
use crate::metrics::Total;
use crate::time::EventTime;
use crate::versions::Versions;
use std::ops::Range;

const KEY_RECORD: u8 = 0;
const IMAGE: u8 = 1;

impl Lane {
    pub(super) fn encode_touched(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        for some in touched.chunks(LOOKUP_ROWS) {
            self.fetch_keys(some);
            self.fetch(some, |t| t.rows.first(), |t| t.ext.first());
            for slot in some {
                self.encode_change(*slot);
            }
        }
    }

    fn encode_change(&mut self, slot: u32) {
        if self.is_gone(slot) {
            self.let_go(slot);
            return;
        }
        self.count_base(slot);
        // A copy that an epoch held would be counted again after a restart.
        self.put_in_order(slot);
        let e = &mut self.entries[slot as usize];
        e.touched = false;
        self.out.state.push(KEY_RECORD);
        codec::encode(&e.state, Extent::Change, &mut self.out.state);
        e.persisted = true;
        if let Some(t) = &mut e.state.tail {
            t.mark_persisted();
        }
    }

    /// Whether nothing is left of a key.
    pub(super) fn is_gone(&self, slot: u32) -> bool {
        let state = &self.entries[slot as usize].state;
        state.base.is_none()
            && state.tail.as_deref().is_none_or(|t| t.rows.is_empty() && t.told().sent.is_empty())
    }

    /// Forgets a key of which nothing is left, and says so if an epoch record may hold it.
    pub(super) fn let_go(&mut self, slot: u32) {
        let e = &mut self.entries[slot as usize];
        e.touched = false;
        if e.persisted {
            self.out.state.push(KEY_RECORD);
            codec::removed(&e.state.key, &mut self.out.state);
        }
        self.forget(slot);
    }

    /// Appends a full image of these key groups, after a barrier: recovery needs nothing older of them.
    pub fn image(&self, groups: Range<u32>, out: &mut Vec<u8>) {
        let groups = groups.start.max(self.config.groups.start)..groups.end.min(self.config.groups.end);
        if groups.is_empty() {
            return;
        }
        out.push(IMAGE);
        codec::put_u32(out, groups.start as usize);
        codec::put_u32(out, groups.end as usize);
        for e in self.entries.iter().filter(|e| e.live && groups.contains(&key_group(e.state.hash))) {
            out.push(KEY_RECORD);
            codec::encode(&e.state, Extent::Whole, out);
        }
    }

    /// Applies a state section of an epoch record, oldest epoch first; keys of other lanes are passed over.
    pub fn load(&mut self, section: &[u8]) -> Result<(), StateDamage> {
        let mut r = codec::Reader(section);
        while !r.0.is_empty() {
            let at = section.len() - r.0.len();
            self.load_one(&mut r).ok_or(StateDamage { at })?;
        }
        Ok(())
    }

    fn load_one(&mut self, r: &mut codec::Reader<'_>) -> Option<()> {
        if r.u8()? == IMAGE {
            let groups = r.u32()?..r.u32()?;
            for s in 0..self.entries.len() as u32 {
                let e = &self.entries[s as usize];
                if e.live && groups.contains(&key_group(e.state.hash)) {
                    self.forget(s);
                }
            }
            return Some(());
        }
        let rec = codec::decode(r)?;
        let hash = crate::key::key_hash(rec.key);
        if !self.config.groups.contains(&key_group(hash)) {
            return Some(());
        }
        let slot = self.slot(hash, rec.key);
        if rec.removed {
            self.forget(slot);
        } else {
            let e = &mut self.entries[slot as usize];
            e.persisted = true;
            e.state.apply(rec);
        }
        Some(())
    }

    /// The versions of the rule and the names of the fields, as the newest loaded epoch has them: after the last
    /// [`load`](Lane::load) and before [`loaded`](Lane::loaded).
    pub fn put_versions(&mut self, versions: Versions, layout: Vec<String>) {
        self.totals = versions.metrics().iter().map(Total::of).collect();
        self.wants_key = versions.wants_key();
        self.versions = versions;
        self.config.layout = layout;
    }

    /// Ends recovery: every key is scheduled. Keys with a suffix are visited at once, since what their
    /// tip closed is derived and was not kept.
    pub fn loaded(&mut self, watermark: EventTime) {
        self.watermark = watermark;
        self.suffix_bytes = 0;
        for s in 0..self.entries.len() as u32 {
            if !self.entries[s as usize].live {
                continue;
            }
            self.count_base(s);
            let e = &mut self.entries[s as usize];
            let timer = e.state.base.as_ref().map_or(EventTime::INFINITY, Open::next_timer);
            let visit = match &e.state.tail {
                Some(t) => {
                    self.suffix_bytes += t.suffix_bytes();
                    let first = t.rows.iter().map(|r| r.time.plus(1)).min().unwrap_or(EventTime::INFINITY);
                    if t.told().sent.is_empty() { first.min(timer) } else { watermark }
                }
                None => timer,
            };
            // What was not told before the restart is told at the next early tick.
            if self.config.early && !e.dirty {
                e.dirty = true;
                self.dirty.push(s);
            }
            self.schedule(s, visit);
        }
    }

    /// After `loaded`, where sinks may have taken back what they were sent: every session that may still change is sent
    /// once more at the next barrier, whatever its content.
    pub fn tell_again(&mut self) {
        for e in self.entries.iter_mut().filter(|e| e.live) {
            let told = e.state.tail.as_deref_mut().and_then(Tail::told_mut);
            for s in told.into_iter().flat_map(|t| &mut t.sent) {
                s.content = !s.content;
            }
        }
    }
}
