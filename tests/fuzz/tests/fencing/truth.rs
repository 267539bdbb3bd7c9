//! What is known, as lists: which incarnations there were, what each epoch is, which epochs are committed, what the sinks hold.

use crate::process::{Counts, FILE, KEYS, Meta, Refusal, TABLE};
use std::collections::BTreeMap;
use tidemill_connect::Cursor;
use tidemill_engine::outbox::{Outbox, Revision, Stage, Stages};
use tidemill_engine::record::{Kind, Record};
use tidemill_store::opening::Contradiction;
use xxhash_rust::xxh3::xxh3_64;

/// The records of the one source, each a key. Those behind a place may become others, as after a mended input.
#[derive(Default, Debug)]
pub(crate) struct Outside {
    records: Vec<usize>,
    branch: u64,
}

impl Outside {
    /// Some keys are everywhere, and some occur hardly ever.
    pub(crate) fn record(&mut self, position: u64) -> usize {
        while self.records.len() as u64 <= position {
            let n = [self.branch.to_le_bytes(), (self.records.len() as u64).to_le_bytes()].concat();
            self.records.push((xxh3_64(&n).trailing_zeros() as usize).min(KEYS - 1));
        }
        self.records[position as usize]
    }

    fn counts(&self, position: u64) -> Counts {
        let mut counts = [0; KEYS];
        self.records[..position as usize].iter().for_each(|key| counts[*key] += 1);
        counts
    }

    fn is_other_from(&mut self, position: u64) {
        self.records.truncate(position as usize);
        self.branch += 1;
    }
}

/// An epoch as it was made, whether or not it became durable.
#[derive(Debug)]
pub(crate) struct Epoch {
    revision: Revision,
    meta: Meta,
    sections: Vec<(Kind, Vec<u8>)>,
}

impl Epoch {
    pub(crate) fn new(revision: Revision, meta: Meta, sections: &[(Kind, &[u8])]) -> Epoch {
        let sections = sections.iter().map(|(kind, bytes)| (*kind, bytes.to_vec())).collect();
        Epoch { revision, meta, sections }
    }
}

/// A row of a sink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    pub(crate) key: u8,
    pub(crate) revision: Revision,
    pub(crate) count: u64,
    pub(crate) stage: Stage,
}

/// The table: its rows by key, who may write, and its own cursor; none if that is lost.
#[derive(Default, Debug)]
pub(crate) struct Table {
    pub(crate) rows: BTreeMap<u8, Row>,
    pub(crate) fence: u64,
    pub(crate) epoch: Option<u64>,
    /// It has lost its cursor, and was not yet sent again what it was known to have.
    pub(crate) behind: bool,
}

/// See the module's documentation.
#[derive(Default, Debug)]
pub(crate) struct Truth {
    pub(crate) outside: Outside,
    made: BTreeMap<Revision, Epoch>,
    /// The committed epochs, those that were trimmed too.
    chain: Vec<Revision>,
    /// Begun, and nobody was told that they are durable: the next start finds them or not.
    maybe: Vec<Revision>,
    /// Somebody has begun to cut the log back to these epochs, and is not known to have done so.
    cutting: Option<Vec<Revision>>,
    /// A human wants to go back to this epoch, and has not been told that it is done.
    pub(crate) going_back_to: Option<u64>,
    incarnation: u64,
    pub(crate) table: Table,
    pub(crate) lines: Vec<Row>,
    /// What stands in the file behind its last line.
    pub(crate) torn: Vec<u8>,
}

impl Truth {
    /// A process has its incarnation.
    pub(crate) fn began(&mut self, incarnation: u64) {
        assert!(incarnation > self.incarnation, "incarnation {incarnation} after {}", self.incarnation);
        self.incarnation = incarnation;
    }

    /// An epoch is about to be written.
    pub(crate) fn makes(&mut self, epoch: Epoch) {
        let revision = epoch.revision;
        assert!(self.made.insert(revision, epoch).is_none(), "{revision:?} has two contents");
        self.maybe.push(revision);
    }

    /// Somebody was told that it is durable.
    pub(crate) fn acknowledged(&mut self, revision: Revision) {
        if let Some(kept) = self.cutting.take() {
            self.is_cut(&kept, revision);
        }
        assert_eq!(revision.epoch, self.last() + 1, "an epoch is left out");
        self.maybe.clear();
        self.chain.push(revision);
    }

    /// The log ends with these, and then says so.
    fn is_cut(&mut self, kept: &[Revision], by: Revision) {
        self.chain.retain(|r| r.epoch < kept[0].epoch);
        self.chain.extend(kept);
        // Every other time the input was mended, too.
        if by.epoch.is_multiple_of(2) {
            self.outside.is_other_from(self.made[&by].meta.position);
        }
    }

    /// The log is about to be cut back to the last of these.
    pub(crate) fn cuts(&mut self, kept: Vec<Revision>) {
        self.going_back_to = kept.last().map(|r| r.epoch);
        self.cutting = Some(kept);
    }

    /// All sinks have taken back what came after the cut.
    pub(crate) fn went_back(&mut self) {
        self.going_back_to = None;
    }

    /// The newest epoch that somebody was told of.
    pub(crate) fn last(&self) -> u64 {
        self.chain.last().map_or(0, |r| r.epoch)
    }

    /// The same, and who has made it.
    pub(crate) fn newest(&self) -> Option<Revision> {
        self.chain.last().copied()
    }

    /// A record in the log is one that was made, and unchanged.
    pub(crate) fn is_as_it_was_made(&self, revision: Revision, record: &Record<'_>) {
        let made = self.made.get(&revision).unwrap_or_else(|| panic!("nobody has made {revision:?}"));
        let is = record.sections.iter().map(|(kind, bytes)| (*kind, bytes.to_vec())).collect::<Vec<_>>();
        assert_eq!(is, made.sections, "{revision:?} is another");
    }

    /// A start has read the log: these epochs are kept, and this state.
    pub(crate) fn recovered(&mut self, kept: &[Revision], meta: Option<&Meta>, counts: &Counts) {
        for r in kept {
            assert!(self.chain.contains(r) || self.maybe.contains(r), "{r:?} was given up");
        }
        let (first, last) = (kept.first().map_or(0, |r| r.epoch), kept.last());
        let known = self.last();
        match self.cutting.take() {
            Some(cut) => {
                let (to, ends) = (cut[cut.len() - 1].epoch, last.map_or(0, |r| r.epoch));
                assert!(ends >= to.min(known), "cut back to {to}, it ends at {ends}");
                if let Some(by) = last.filter(|r| r.epoch == to + 1 && self.maybe.contains(r)) {
                    self.is_cut(&cut, *by);
                }
            }
            None => assert!(
                last.map_or(0, |r| r.epoch) >= known,
                "epoch {known} was acknowledged, and the log ends with {last:?}"
            ),
        }
        self.chain.retain(|r| r.epoch < first);
        self.chain.extend(kept);
        self.maybe.clear();
        assert!(self.chain.iter().zip(1..).all(|(r, n)| r.epoch == n), "a gap: {:?}", self.chain);
        let position = meta.map_or(0, |m| m.position);
        assert_eq!(*counts, self.outside.counts(position), "the state is not that of position {position}");
    }

    /// A sink was opened by this incarnation with the store's cursor.
    pub(crate) fn opened(&mut self, sink: &str, incarnation: u64, stored: Option<Cursor>, ok: bool) {
        if sink == TABLE {
            assert!(self.table.fence <= incarnation, "{incarnation} opens what {} has", self.table.fence);
            self.table.fence = incarnation;
            let expected = stored.is_some_and(|c| c.epoch > 0);
            if self.table.epoch.is_none() && !expected {
                self.table.epoch = Some(0);
            }
        } else if ok {
            let epoch = stored.map_or(0, |c| c.epoch);
            self.lines.retain(|l| l.revision.epoch <= epoch);
            self.torn.clear();
        }
    }

    /// A sink has taken what this incarnation sent it.
    pub(crate) fn delivered(&mut self, sink: &str, by: u64, outbox: &Outbox<'_>) {
        let rows = outbox.sessions(Stages::ALL).map(|(revision, r)| Row {
            key: r.id[0],
            revision,
            count: r.events,
            stage: r.stage,
        });
        let rows: Vec<Row> = rows.collect();
        if sink == FILE {
            self.lines.extend(rows);
        } else if !rows.is_empty() {
            assert_eq!(by, self.table.fence, "the table takes rows of who is fenced off");
            for row in rows {
                let there = self.table.rows.entry(row.key).or_insert(row);
                *there = if row.revision > there.revision { row } else { *there };
            }
            self.table.epoch = Some(outbox.epoch);
        }
    }

    /// A sink has taken back what came after this epoch.
    pub(crate) fn took_back(&mut self, sink: &str, by: u64, cut: u64, stored: Option<Cursor>, ok: bool) {
        self.opened(sink, by, stored, ok);
        if sink == FILE || !ok {
            return;
        }
        self.table.epoch = self.table.epoch.map(|epoch| epoch.min(cut));
        let later =
            self.table.rows.values_mut().filter(|r| r.revision.epoch > cut && r.stage != Stage::Retracted);
        for row in later {
            row.stage = Stage::Retracted;
            row.revision = Revision { incarnation: by, epoch: cut };
        }
    }

    /// A sink was emptied.
    pub(crate) fn emptied(&mut self, sink: &str) {
        if sink == FILE {
            self.lines.clear();
            self.torn.clear();
        } else {
            self.table.rows.clear();
            self.table.epoch = Some(0);
        }
    }

    /// There is no log any more.
    pub(crate) fn started_over(&mut self) {
        self.chain.clear();
        self.maybe.clear();
        (self.cutting, self.going_back_to, self.table.behind) = (None, None, false);
        self.outside.is_other_from(0);
    }

    /// Whether a sink holds an epoch that the log has not.
    fn is_ahead(&self, resend: bool) -> bool {
        // Without a cursor the rows show it.
        let rows = || self.table.rows.values().map(|r| r.revision.epoch).max();
        let table = if resend { None } else { self.table.epoch.or_else(rows) }.unwrap_or(0);
        let file = self.lines.last().map_or(0, |l| l.revision.epoch);
        table.max(file) > self.last()
    }

    /// A start, or a cut, was refused: there must be a reason.
    pub(crate) fn explains(&self, why: &Refusal, resend: bool, file_is_held: bool) {
        let known = match why {
            why if why.is_damage() => self.cutting.is_some() || self.is_ahead(resend),
            why if why.is_conflict_of(FILE) => file_is_held,
            why if why.is_conflict_of(TABLE) => self.table.behind && !resend,
            Refusal::Contradiction(Contradiction::Lost { .. }) => self.table.epoch.is_none() && !resend,
            _ => false,
        };
        assert!(known, "refused for no reason: {why:?}");
    }

    /// A start has succeeded: there must have been no reason against it.
    pub(crate) fn allows(&mut self, resend: bool, file_is_held: bool) {
        assert!(!file_is_held, "two have the file");
        assert!(!self.is_ahead(resend), "a sink is ahead of the log");
        assert!(self.table.epoch.is_some(), "the table has no cursor, and nobody was told");
        if !resend {
            // All sinks were heard: whatever was to be given up, this is where it goes on.
            self.going_back_to = None;
        }
    }

    /// Everything was delivered: readers see what was read, and nothing else.
    pub(crate) fn is_whole(&self, position: u64) {
        let counts = self.outside.counts(position);
        let table = self.table.rows.values().copied();
        assert_eq!(live(table), counts, "the table");
        // A reader of the file keeps the highest of each.
        let mut highest = BTreeMap::new();
        for line in &self.lines {
            let there = highest.entry(line.key).or_insert(*line);
            *there = if line.revision > there.revision { *line } else { *there };
        }
        assert_eq!(live(highest.into_values()), counts, "the file");
    }
}

fn live(rows: impl Iterator<Item = Row>) -> Counts {
    let mut counts = [0; KEYS];
    rows.filter(|r| r.stage != Stage::Retracted).for_each(|r| counts[usize::from(r.key)] = r.count);
    counts
}
