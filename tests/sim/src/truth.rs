//! What the simulation knows better than the process: which events were accepted with which epoch, what every epoch has sent,
//! and what the table must hold.

use crate::model::{Accepted, Ident, Outcome, Session};
use crate::process::{Commit, Found, Inserted, LaneOp, Sealing};
use crate::sink::{Rows, row, take_back, upsert};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use tidemill_engine::event::Position;
use tidemill_engine::outbox::{Outbox, Revision, Stage, Stages};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// With the sealing that they came with.
    accepted: BTreeMap<Ident, (u8, u64)>,
    /// In lanes, since the last barrier.
    pub(crate) pending: Vec<Inserted>,
    pub(crate) sealings: u64,
    /// Those that may still be committed, and were.
    pub(crate) sealed: BTreeMap<u64, Sealing>,
    /// The one that is being committed: whether it was, shows after a crash.
    pub(crate) in_doubt: Option<Sealing>,
    /// Epochs that are committed, with their sealing.
    pub(crate) committed: BTreeMap<u64, u64>,
    /// What every epoch that is committed has sent.
    pub(crate) shadow: Rows,
    /// The newest epoch of which the process has been told that it is durable.
    pub(crate) told: u64,
    /// Rows that a lookup keeps from leaving are not compared at each epoch.
    lookups: bool,
}

pub(crate) type Verdict = Result<(), String>;

impl Truth {
    pub(crate) fn new(lookups: bool) -> Truth {
        Truth { lookups, ..Truth::default() }
    }

    pub(crate) fn accepted(&self) -> Accepted {
        self.accepted.iter().map(|(ident, (kind, _))| (*ident, *kind)).collect()
    }

    pub(crate) fn knows(&self, ident: &Ident) -> bool {
        self.accepted.contains_key(ident)
    }

    /// At a barrier: of what was inserted all is accepted that is no copy and not over a bound, as the letters say.
    pub(crate) fn settle(&mut self, letters: &[u8], number: u64) -> Accepted {
        let mut over = BTreeSet::new();
        for line in letters.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let Ok(letter) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
            if letter["reason"].as_str().is_some_and(|r| r.ends_with("_over_cap"))
                && let Ok(position) = serde_json::from_value::<Position>(letter["position"].clone())
            {
                over.insert(position);
            }
        }
        for i in std::mem::take(&mut self.pending).into_iter().filter(|i| !over.contains(&i.position)) {
            self.accepted.entry(i.ident).or_insert((i.kind, number));
        }
        self.accepted()
    }

    /// An epoch is committed: nothing may go back, no session leaves twice in it, and the table is what it must be.
    pub(crate) fn commit(&mut self, c: &Commit) -> Verdict {
        self.send(&c.content.outbox(c.revision))?;
        self.committed.insert(c.at.epoch, c.sealing.number);
        self.told = c.at.epoch;
        let counted = c.meta.dead.get("late").unwrap_or(&0) + c.meta.dead.get("far_future").unwrap_or(&0);
        let read: u64 = c.meta.parts.iter().map(|p| p.offset).sum();
        let caps: u64 = c.meta.fold.letters().map(|(_, n)| n).sum();
        let taken = self.accepted.values().filter(|(_, n)| *n <= c.sealing.number).count() as u64;
        if taken + c.meta.fold.duplicates + caps > c.meta.events {
            return Err(format!(
                "{taken} events are accepted, and copies counted that were none: {:?}",
                c.meta
            ));
        }
        if read != c.meta.records || c.meta.records != c.meta.events + c.meta.copies + counted {
            return Err(format!("counters and positions contradict each other: {:?}", c.meta));
        }
        let sealing = c.sealing.clone();
        let verdict =
            if self.lookups { Ok(()) } else { table_is(&self.shadow, &sealing.expected, sealing.all) };
        self.sealed.insert(sealing.number, sealing);
        verdict
    }

    fn send(&mut self, outbox: &Outbox<'_>) -> Verdict {
        let mut seen = BTreeSet::new();
        for (revision, r) in outbox.sessions(Stages::ALL) {
            if !seen.insert(r.id) {
                return Err(format!("two rows of a session in epoch {}: {r:?}", outbox.epoch));
            }
            // What was looked up leaves with the revision that it has, be it that a higher one has come before.
            let again = revision.epoch < outbox.epoch;
            if !upsert(&mut self.shadow, r.id, row(revision, &r)) && !again {
                return Err(format!("a revision does not rise: {revision:?} {r:?}"));
            }
        }
        Ok(())
    }

    /// A process has started: what it has found must be all that anybody was told of, and is what holds from here on.
    pub(crate) fn recovered(&mut self, found: &Found) -> Verdict {
        let last = found.recovery.last_epoch;
        if last < self.told {
            return Err(format!("epoch {} was durable, and the log ends with epoch {last}", self.told));
        }
        let sealing = found.newest.as_ref().map_or(0, |(_, meta)| meta.sealing);
        if last > self.told {
            // It was written, and the word that it is durable was lost.
            let by = Revision { incarnation: found.recovery.last_incarnation, epoch: last };
            let outbox =
                Outbox::new(by.incarnation, by.epoch, &found.rows, &[]).with_enriched(&found.enriched);
            self.send(&outbox)?;
            self.committed.insert(last, sealing);
            self.told = last;
            if let Some(s) = self.in_doubt.take().filter(|s| s.number == sealing) {
                self.sealed.insert(sealing, s);
            }
        }
        self.forget_after(sealing);
        Ok(())
    }

    fn forget_after(&mut self, sealing: u64) {
        self.accepted.retain(|_, (_, number)| *number <= sealing);
        self.sealed.retain(|number, _| *number <= sealing);
        self.pending.clear();
    }

    /// A human has gone back to an epoch.
    pub(crate) fn went_back(&mut self, to: u64, sealing: u64, incarnation: u64) {
        self.committed.retain(|epoch, _| *epoch <= to);
        self.committed.insert(to + 1, sealing);
        self.told = to + 1;
        self.forget_after(sealing);
        take_back(&mut self.shadow, incarnation, to);
    }

    /// What lanes were told in the sealings after `from` up to `to`, where all of them are known.
    pub(crate) fn ops(&self, from: u64, to: u64) -> Vec<(&Sealing, &[LaneOp])> {
        self.sealed
            .range((Bound::Excluded(from), Bound::Included(to.max(from))))
            .map(|(_, s)| (s, s.ops.as_slice()))
            .collect()
    }
}

fn is_final(stage: Stage) -> bool {
    matches!(stage, Stage::Final | Stage::Corrected)
}

/// Whether a table is what the model says: all of it, or what is final.
pub(crate) fn table_is(rows: &Rows, model: &Outcome, all: bool) -> Verdict {
    let live = rows.values().filter(|r| r.stage != Stage::Retracted && (all || is_final(r.stage)));
    let mut got: Vec<(Session, bool)> = live.map(|r| (r.session.clone(), is_final(r.stage))).collect();
    got.sort();
    let want: Vec<(Session, bool)> = model.sessions.iter().filter(|(_, f)| all || *f).cloned().collect();
    if got == want {
        return Ok(());
    }
    let surplus: Vec<_> = got.iter().filter(|g| !want.contains(g)).collect();
    let lacking: Vec<_> = want.iter().filter(|w| !got.contains(w)).collect();
    Err(format!(
        "the table is not what the model says (all: {all}); it has {surplus:#?}, and should have {lacking:#?}"
    ))
}
