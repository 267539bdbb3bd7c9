//! What an epoch's record consists of, which images of key groups it takes, and what of the log is needed after it.
//!
//! Decisions only: whoever commits carries them out. A record holds what the lanes' keys have become, what leaves, and what
//! waits; the meta data beside it is the host's.
//!
//! Invariants: a block of key groups needs no record older than its newest image; a log is trimmed only up to what every
//! sink has, every block has an image in, and nothing waits in.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use tidemill_engine::bounds::KEY_GROUPS;
use tidemill_engine::lane::LaneEpoch;
use tidemill_engine::outbox::{Outbox, Revision};
use tidemill_engine::record::Kind;
use tidemill_engine::unresolved::{self, Id, Leaving};

/// Key groups imaged in one epoch: a whole rotation takes 16.
pub const IMAGE_GROUPS: u32 = 64;
/// Blocks of key groups that an image takes at once.
pub const IMAGE_BLOCKS: usize = (KEY_GROUPS / IMAGE_GROUPS) as usize;

/// An epoch's sections but for its meta data.
#[derive(Clone, Default, Debug)]
pub struct Content {
    /// Changed state, by lane.
    pub states: Vec<Vec<u8>>,
    /// Revisions of this epoch that leave with it.
    pub rows: Vec<u8>,
    /// Dead letters.
    pub letters: Vec<u8>,
    /// Revisions of this epoch that wait for their lookups.
    pub unresolved: Vec<u8>,
    /// Revisions of earlier epochs that leave with it.
    pub enriched: Vec<u8>,
    /// Which unresolved revisions are resolved with it.
    pub resolved: Vec<u8>,
}

impl Content {
    /// Of what the lanes hand over; `letters` are those written before the lanes.
    #[must_use]
    pub fn of(parts: &mut [LaneEpoch], letters: Vec<u8>) -> Content {
        let mut content = Content { letters, ..Content::default() };
        for p in parts {
            // Nothing is copied where one lane brought them all.
            if content.rows.is_empty() {
                content.rows = std::mem::take(&mut p.rows);
            } else {
                content.rows.extend_from_slice(&p.rows);
            }
            content.letters.extend_from_slice(&p.letters);
            content.states.push(std::mem::take(&mut p.state));
        }
        content
    }

    /// Where revisions need lookups: retractions leave at once, the others wait, and what was resolved leaves. `end` is told
    /// whose sessions are retracted. Returns how many letters there are of what was resolved, by reason.
    pub fn hold_back(&mut self, end: impl FnOnce(&HashSet<Id>) -> Leaving) -> BTreeMap<String, u64> {
        let parted = unresolved::part(&self.rows);
        let leaving = end(&parted.retracted);
        (self.rows, self.unresolved) = (parted.retractions, parted.unresolved);
        (self.enriched, self.resolved) = (leaving.rows, leaving.resolved);
        self.letters.extend_from_slice(&leaving.letters);
        leaving.dead
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let waits = !self.unresolved.is_empty() || !self.resolved.is_empty();
        !waits && !self.leaves() && self.states.iter().all(Vec::is_empty)
    }

    /// Whether it sends something.
    #[must_use]
    pub fn leaves(&self) -> bool {
        !(self.rows.is_empty() && self.enriched.is_empty() && self.letters.is_empty())
    }

    /// The record's sections in order.
    #[must_use]
    pub fn sections<'a>(&'a self, meta: &'a [u8]) -> Vec<(Kind, &'a [u8])> {
        let mut sections = vec![(Kind::Meta, meta)];
        sections.extend(self.states.iter().filter(|s| !s.is_empty()).map(|s| (Kind::State, s.as_slice())));
        sections.extend([(Kind::Rows, self.rows.as_slice()), (Kind::Letters, self.letters.as_slice())]);
        let waiting = [
            (Kind::Unresolved, self.unresolved.as_slice()),
            (Kind::Enriched, self.enriched.as_slice()),
            (Kind::Resolved, self.resolved.as_slice()),
        ];
        sections.extend(waiting.into_iter().filter(|(_, s)| !s.is_empty()));
        sections
    }

    /// What it sends.
    #[must_use]
    pub fn outbox(&self, by: Revision) -> Outbox<'_> {
        Outbox::new(by.incarnation, by.epoch, &self.rows, &self.letters).with_enriched(&self.enriched)
    }
}

/// Whose turn it is to be imaged.
#[derive(Clone, Copy, Default, Debug)]
pub struct Rotation {
    next: u32,
    under_way: bool,
}

impl Rotation {
    /// The key groups that the epoch at hand takes an image of: in rotation, once the log is longer than a segment. A log of
    /// one segment has nothing to give back.
    pub fn next(&mut self, log_bytes: u64, segment_bytes: u64) -> Option<Range<u32>> {
        self.under_way |= log_bytes > segment_bytes;
        if !self.under_way {
            return None;
        }
        let at = self.next;
        self.next = (at + IMAGE_GROUPS) % KEY_GROUPS;
        self.under_way = self.next != 0;
        Some(at..at + IMAGE_GROUPS)
    }
}

/// What the log is needed for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Needs {
    /// Epoch of the newest image of each block of key groups, 0 for none.
    pub images: Vec<u64>,
    /// The newest epoch that had something to send.
    pub outbox_epoch: u64,
}

impl Default for Needs {
    fn default() -> Self {
        Needs { images: vec![0; IMAGE_BLOCKS], outbox_epoch: 0 }
    }
}

impl Needs {
    /// Takes in an epoch that is about to be written.
    pub fn take(&mut self, epoch: u64, image: Option<&Range<u32>>, leaves: bool) {
        if let Some(newest) =
            image.and_then(|groups| self.images.get_mut((groups.start / IMAGE_GROUPS) as usize))
        {
            *newest = epoch;
        }
        if leaves {
            self.outbox_epoch = epoch;
        }
    }

    /// The oldest epoch whose record is needed: for a sink, for a block's state, or because something `waits` in it.
    #[must_use]
    pub fn kept_from(&self, confirmed: impl Iterator<Item = u64>, waits: Option<u64>) -> u64 {
        let sinks = confirmed.map(|epoch| epoch + 1);
        sinks.chain(self.images.iter().copied()).chain(waits).min().unwrap_or(0)
    }

    /// Whether a log that begins with this epoch holds the whole state: all of it, or an image of each block.
    #[must_use]
    pub fn is_whole(&self, first_epoch: u64) -> bool {
        first_epoch <= 1 || self.images.iter().all(|image| *image >= first_epoch)
    }
}

/// Whether a log that begins with this epoch still has all that sinks lack once they are cut back to where they stood when
/// they had `confirmed` these. What they were sent since was trimmed by newer cursors: it is in the sinks, and nowhere else.
#[must_use]
pub fn can_send_again(first_epoch: u64, mut confirmed: impl Iterator<Item = u64>) -> bool {
    first_epoch <= 1 || confirmed.all(|epoch| epoch + 1 >= first_epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_engine::outbox::{SessionRow, Stage, Stages};
    use tidemill_engine::time::EventTime;

    #[test]
    fn a_rotation_takes_every_group_once_and_rests_until_the_log_is_long_again() {
        let mut rotation = Rotation::default();
        assert_eq!(rotation.next(100, 100), None);
        let taken: Vec<_> =
            (0..IMAGE_BLOCKS).filter_map(|n| rotation.next(if n == 0 { 101 } else { 0 }, 100)).collect();
        let groups: Vec<u32> = taken.into_iter().flatten().collect();
        assert_eq!(groups, (0..KEY_GROUPS).collect::<Vec<_>>());
        assert_eq!(rotation.next(100, 100), None);
    }

    /// Bug family: an epoch that is not written because only its rarest part has something in it, or written for nothing.
    #[test]
    fn an_epoch_is_written_if_any_part_of_it_has_something() {
        let with = |fill: &dyn Fn(&mut Content)| {
            // A lane that has nothing to say has a part all the same.
            let mut content = Content { states: vec![Vec::new(); 2], ..Content::default() };
            fill(&mut content);
            (content.is_empty(), content.leaves())
        };
        assert_eq!(with(&|_| {}), (true, false));
        assert_eq!(with(&|c| c.states[1].push(0)), (false, false));
        assert_eq!(with(&|c| c.unresolved.push(0)), (false, false));
        assert_eq!(with(&|c| c.resolved.push(0)), (false, false));
        assert_eq!(with(&|c| c.rows.push(0)), (false, true));
        assert_eq!(with(&|c| c.enriched.push(0)), (false, true));
        assert_eq!(with(&|c| c.letters.push(0)), (false, true));
    }

    /// Bug family: a row that is on its way to its lookups leaves as well, or what has come back from them does not.
    #[test]
    fn what_needs_lookups_waits_and_what_was_looked_up_leaves() {
        let mut rows = Vec::new();
        for (id, stage) in [(1, Stage::Final), (2, Stage::Retracted)] {
            let row = SessionRow {
                id: [id; 16],
                key: "k",
                start: EventTime::from_ms(0),
                end: EventTime::from_ms(1),
                events: 1,
                stage,
                reason: None,
                plugin: "p@1",
                fields: "{}",
            };
            row.encode(&mut rows);
        }
        let mut content = Content { rows, letters: b"first\n".to_vec(), ..Content::default() };
        let mut told = Vec::new();
        let dead = content.hold_back(|retracted| {
            told.extend(retracted.iter().copied());
            Leaving {
                rows: b"looked up".to_vec(),
                letters: b"second\n".to_vec(),
                dead: BTreeMap::from([("lookup_failed".to_owned(), 1)]),
                resolved: b"places".to_vec(),
            }
        });
        assert_eq!(dead, BTreeMap::from([("lookup_failed".to_owned(), 1)]));
        assert_eq!(told, [[2; 16]]);
        let stages = |rows: &[u8]| {
            let outbox = Outbox::new(1, 1, rows, b"");
            outbox.sessions(Stages::ALL).map(|(_, row)| (row.id[0], row.stage)).collect::<Vec<_>>()
        };
        assert_eq!(stages(&content.rows), [(2, Stage::Retracted)]);
        assert_eq!(stages(&content.unresolved), [(1, Stage::Final)]);
        assert_eq!((&*content.enriched, &*content.resolved), (&b"looked up"[..], &b"places"[..]));
        assert_eq!(content.letters, b"first\nsecond\n");
    }

    #[test]
    fn what_anybody_needs_is_kept() {
        let mut needs = Needs::default();
        assert_eq!(needs.kept_from([7].into_iter(), None), 0, "blocks without an image");
        for (n, epoch) in (0..IMAGE_BLOCKS as u32).zip(10..) {
            needs.take(epoch, Some(&(n * IMAGE_GROUPS..(n + 1) * IMAGE_GROUPS)), n == 2);
        }
        assert_eq!(needs.outbox_epoch, 12);
        assert_eq!(needs.kept_from([30, 40].into_iter(), None), 10, "the oldest image");
        assert_eq!(needs.kept_from([30, 7].into_iter(), Some(9)), 8, "the epoch after the last confirmed");
        assert_eq!(needs.kept_from([30].into_iter(), Some(9)), 9);
        assert!(needs.is_whole(1) && needs.is_whole(10) && !needs.is_whole(11));
    }

    #[test]
    fn a_sink_is_not_cut_back_to_before_the_log() {
        assert!(can_send_again(1, [0].into_iter()), "nothing was trimmed");
        assert!(can_send_again(15, [14, 20].into_iter()) && can_send_again(15, std::iter::empty()));
        assert!(!can_send_again(15, [20, 13].into_iter()), "epoch 14 is in the sink alone");
    }
}
