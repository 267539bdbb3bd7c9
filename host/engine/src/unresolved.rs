//! Revisions that wait for their lookups (SEMANTICS 27): which there are, and what of them leaves with an epoch.
//!
//! The rows of an epoch that need lookups stand in its record as *unresolved*. A later epoch's record says which of them are
//! *resolved* now, whatever became of them: sent, a dead letter, struck out by a retraction, or passed over because a higher
//! revision of the same session leaves in the same epoch. So what is unresolved can be read from the records alone.
//!
//! Invariants: a place is resolved once; an epoch sends at most one row of a session, its own retraction or the highest of
//! those resolved; a row keeps the revision of the epoch that produced it.

use crate::outbox::{Revision, RowIter, Stage};
use crate::record::{Kind, Record};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// A session's id.
pub type Id = [u8; 16];

/// Where an unresolved row stands: the epoch whose record has it, and which row of the section it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Place {
    /// The epoch.
    pub epoch: u64,
    /// The row, from 0.
    pub index: u32,
}

/// What became of an unresolved row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolution {
    /// Which one.
    pub place: Place,
    /// What leaves.
    pub outcome: Outcome,
}

/// See [`Resolution`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The row with its new fields, encoded.
    Row(Vec<u8>),
    /// A dead letter, a JSON line, with its reason.
    Letter(String, Vec<u8>),
}

/// The rows of an epoch, parted.
#[derive(Default, Debug)]
pub struct Parted {
    /// Retractions: they need no lookup and leave at once.
    pub retractions: Vec<u8>,
    /// Whose they are.
    pub retracted: HashSet<Id>,
    /// The others.
    pub unresolved: Vec<u8>,
}

/// Parts the rows of an epoch into those that leave at once and those that wait.
#[must_use]
pub fn part(rows: &[u8]) -> Parted {
    let mut parted = Parted::default();
    for (bytes, row) in RowIter::new(rows).with_bytes() {
        if row.stage == Stage::Retracted {
            parted.retracted.insert(row.id);
            parted.retractions.extend_from_slice(bytes);
        } else {
            parted.unresolved.extend_from_slice(bytes);
        }
    }
    parted
}

/// What leaves with an epoch, as sections of its record.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// Rows with their revisions ([`crate::outbox::Outbox::with_enriched`]).
    pub rows: Vec<u8>,
    /// Dead letters.
    pub letters: Vec<u8>,
    /// How many, by reason.
    pub dead: BTreeMap<String, u64>,
    /// The places that are resolved with this epoch, for [`Unresolved::replay`].
    pub resolved: Vec<u8>,
}

/// See the module's documentation.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Unresolved {
    epochs: BTreeMap<u64, Waiting>,
    count: u64,
    bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Waiting {
    incarnation: u64,
    rows: Vec<Row>,
    left: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    id: Id,
    /// Length of the encoded row; 0 once it is resolved.
    bytes: u32,
}

impl Unresolved {
    /// Takes in the unresolved rows of an epoch.
    pub fn begin(&mut self, revision: Revision, rows: &[u8]) {
        let rows: Vec<Row> = RowIter::new(rows)
            .with_bytes()
            .map(|(bytes, row)| Row { id: row.id, bytes: bytes.len() as u32 })
            .collect();
        if rows.is_empty() {
            return;
        }
        self.count += rows.len() as u64;
        self.bytes += rows.iter().map(|r| u64::from(r.bytes)).sum::<u64>();
        let left = rows.len() as u32;
        self.epochs.insert(revision.epoch, Waiting { incarnation: revision.incarnation, rows, left });
    }

    /// Ends an epoch: what was resolved since the last one, and whose sessions the epoch itself retracts. Resolutions of places
    /// that are no longer unresolved have come too late, and are dropped.
    pub fn end(&mut self, resolutions: Vec<Resolution>, retracted: &HashSet<Id>) -> Leaving {
        let mut leaving = Leaving::default();
        let mut places = Vec::new();
        let mut highest: HashMap<Id, (Revision, Vec<u8>)> = HashMap::new();
        for Resolution { place, outcome } in resolutions {
            let Some((id, revision)) = self.resolve(place) else { continue };
            places.push(place);
            match outcome {
                Outcome::Row(row) => {
                    let higher = highest.get(&id).is_none_or(|(r, _)| *r < revision);
                    if higher && !retracted.contains(&id) {
                        highest.insert(id, (revision, row));
                    }
                }
                Outcome::Letter(reason, line) if !retracted.contains(&id) => {
                    leaving.letters.extend_from_slice(&line);
                    *leaving.dead.entry(reason).or_default() += 1;
                }
                Outcome::Letter(..) => {}
            }
        }
        if !retracted.is_empty() {
            let struck: Vec<Place> =
                self.open().filter(|(_, id)| retracted.contains(id)).map(|(p, _)| p).collect();
            for place in &struck {
                self.resolve(*place);
            }
            places.extend(struck);
        }
        let mut rows: Vec<(Revision, Id, Vec<u8>)> =
            highest.into_iter().map(|(id, (r, row))| (r, id, row)).collect();
        // The same resolutions give the same bytes, in whatever order they came.
        rows.sort_unstable();
        for (revision, _, row) in rows {
            revision.encode(&mut leaving.rows);
            leaving.rows.extend_from_slice(&row);
        }
        places.sort_unstable();
        encode_runs(&places, &mut leaving.resolved);
        leaving
    }

    /// Takes what a record says is resolved with it; false if these bytes say nothing of the kind. Records before the epoch
    /// `first` are no longer kept, because all their rows are resolved.
    #[must_use]
    pub fn replay(&mut self, resolved: &[u8], first: u64) -> bool {
        let (runs, rest) = resolved.as_chunks::<RUN_BYTES>();
        for run in runs {
            let (epoch, from, count) = decode_run(run);
            for index in from..from.saturating_add(count) {
                if epoch >= first && self.resolve(Place { epoch, index }).is_none() {
                    return false;
                }
            }
        }
        rest.is_empty()
    }

    /// The places that are unresolved, oldest first, with their session's id.
    pub fn open(&self) -> impl Iterator<Item = (Place, Id)> {
        self.epochs.iter().flat_map(|(epoch, w)| {
            let rows = w.rows.iter().enumerate().filter(|(_, r)| r.bytes > 0);
            rows.map(|(i, r)| (Place { epoch: *epoch, index: i as u32 }, r.id))
        })
    }

    /// The oldest epoch that has an unresolved row; its record must be kept.
    #[must_use]
    pub fn oldest(&self) -> Option<u64> {
        self.epochs.keys().next().copied()
    }

    /// Whether a row of this epoch is unresolved.
    #[must_use]
    pub fn has(&self, epoch: u64) -> bool {
        self.epochs.contains_key(&epoch)
    }

    /// How many rows are unresolved.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes of their encoding.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn resolve(&mut self, place: Place) -> Option<(Id, Revision)> {
        let waiting = self.epochs.get_mut(&place.epoch)?;
        let row = waiting.rows.get_mut(place.index as usize).filter(|r| r.bytes > 0)?;
        self.bytes -= u64::from(row.bytes);
        self.count -= 1;
        row.bytes = 0;
        waiting.left -= 1;
        let found = (row.id, Revision { incarnation: waiting.incarnation, epoch: place.epoch });
        if waiting.left == 0 {
            self.epochs.remove(&place.epoch);
        }
        Some(found)
    }
}

/// What the records leave unresolved, gathered while they are read at a start, oldest first.
#[derive(Default, Debug)]
pub struct Left {
    /// Which are unresolved.
    pub account: Unresolved,
    /// Rows of the epochs that have any.
    pub rows: BTreeMap<u64, (Revision, Vec<u8>)>,
    /// Epoch and length of every record that is still needed, and of some before.
    pub records: VecDeque<(u64, u64)>,
    first_epoch: Option<u64>,
}

impl Left {
    /// Takes the next record, of this length; false if it resolves what is not unresolved.
    #[must_use]
    pub fn take(&mut self, record: &Record<'_>, len: u64) -> bool {
        let revision = Revision { incarnation: record.header.incarnation, epoch: record.header.epoch };
        let first = *self.first_epoch.get_or_insert(revision.epoch);
        for section in record.sections_of(Kind::Resolved) {
            if !self.account.replay(section, first) {
                return false;
            }
            self.rows.retain(|epoch, _| self.account.has(*epoch));
        }
        for section in record.sections_of(Kind::Unresolved) {
            self.account.begin(revision, section);
            self.rows.insert(revision.epoch, (revision, section.to_vec()));
        }
        self.records.push_back((revision.epoch, len));
        true
    }

    /// How many revisions are unresolved.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.account.count()
    }
}

/// Epoch u64, first index u32, number u32, little-endian.
const RUN_BYTES: usize = 16;

fn encode_runs(places: &[Place], out: &mut Vec<u8>) {
    let mut rest = places;
    while let Some(first) = rest.first() {
        let follows = |(i, p): &(usize, &Place)| p.epoch == first.epoch && p.index == first.index + *i as u32;
        let n = rest.iter().enumerate().take_while(follows).count();
        out.extend_from_slice(&first.epoch.to_le_bytes());
        out.extend_from_slice(&first.index.to_le_bytes());
        out.extend_from_slice(&(n as u32).to_le_bytes());
        rest = &rest[n..];
    }
}

fn decode_run(run: &[u8; RUN_BYTES]) -> (u64, u32, u32) {
    let n = u128::from_le_bytes(*run);
    (n as u64, (n >> 64) as u32, (n >> 96) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{Outbox, SessionRow, Stages};
    use crate::record::Header;
    use crate::time::EventTime;
    use proptest::prelude::*;

    fn id(n: u8) -> Id {
        [n; 16]
    }

    fn row(n: u8, stage: Stage, fields: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let (start, end) = (EventTime::from_ms(1), EventTime::from_ms(2));
        SessionRow { id: id(n), key: "k", start, end, events: 1, stage, reason: None, plugin: "p@1", fields }
            .encode(&mut out);
        out
    }

    /// Format 1 as it was first written.
    #[test]
    fn frozen_bytes() {
        let mut u = Unresolved::default();
        let rows =
            [row(1, Stage::Final, "{}"), row(2, Stage::Early, "{}"), row(3, Stage::Final, "{}")].concat();
        u.begin(Revision { incarnation: 7, epoch: 258 }, &rows);
        let resolved = |index, outcome| Resolution { place: Place { epoch: 258, index }, outcome };
        let leaving = u.end(
            vec![
                resolved(1, Outcome::Letter("no".into(), b"{}\n".to_vec())),
                resolved(0, Outcome::Row(row(1, Stage::Final, "{\"a\":1}"))),
            ],
            &HashSet::new(),
        );
        let hex = crate::outbox::hex;
        assert_eq!(hex(&leaving.resolved), "02010000000000000000000002000000");
        let mut want = "07000000000000000201000000000000".to_owned();
        want.push_str(&hex(&row(1, Stage::Final, "{\"a\":1}")));
        assert_eq!(hex(&leaving.rows), want);
        assert_eq!(
            hex(&row(1, Stage::Final, "{\"a\":1}")),
            "010101010101010101010101010101010100010000000000000002000000000000000100000000000000\
             010000006b0000000003000000704031070000007b2261223a317d"
        );
        assert_eq!((u.count(), u.oldest()), (1, Some(258)));
    }

    #[test]
    fn what_makes_no_sense_is_not_replayed() {
        let mut u = Unresolved::default();
        u.begin(Revision { incarnation: 1, epoch: 5 }, &row(1, Stage::Final, "{}"));
        let mut runs = Vec::new();
        encode_runs(&[Place { epoch: 5, index: 0 }], &mut runs);
        assert!(!u.clone().replay(&runs[1..], 1));
        let mut twice = runs.clone();
        twice.extend_from_slice(&runs);
        assert!(!u.clone().replay(&twice, 1), "a place is resolved once");
        assert!(u.clone().replay(&twice, 6), "what is no longer kept is resolved");
        assert!(u.replay(&runs, 1));
        assert_eq!((u.count(), u.bytes(), u.oldest()), (0, 0, None));
    }

    /// Bug family: a start that takes a row for resolved which is not, keeps one that is, or believes records that make no sense.
    #[test]
    fn a_start_finds_what_the_records_leave() {
        let waiting = [row(1, Stage::Final, "{}"), row(2, Stage::Early, "{}")].concat();
        let resolved = |epoch, index| {
            let mut runs = Vec::new();
            encode_runs(&[Place { epoch, index }], &mut runs);
            runs
        };
        let header = |epoch| Header { incarnation: 7, epoch, previous: 0 };
        let record = |epoch, sections| Record { header: header(epoch), checksum: 0, len: 0, sections };
        let (late, first, second) = (resolved(4, 0), resolved(5, 0), resolved(5, 1));
        let steps = [
            // What it resolves stood in a record before the first that is kept.
            (record(5, vec![(Kind::Resolved, &late[..]), (Kind::Unresolved, &waiting[..])]), 2, vec![5]),
            (record(6, vec![(Kind::Resolved, &first[..])]), 1, vec![5]),
            (record(7, vec![(Kind::Unresolved, &waiting[..])]), 3, vec![5, 7]),
            (record(8, vec![(Kind::Resolved, &second[..])]), 2, vec![7]),
        ];
        let mut left = Left::default();
        for (record, count, epochs) in steps {
            let epoch = record.header.epoch;
            assert!(left.take(&record, 10 * epoch), "the record of epoch {epoch}");
            assert_eq!(left.count(), count, "after epoch {epoch}");
            assert_eq!(left.rows.keys().copied().collect::<Vec<_>>(), epochs, "after epoch {epoch}");
        }
        let (revision, rows) = &left.rows[&7];
        assert_eq!((*revision, &rows[..]), (Revision { incarnation: 7, epoch: 7 }, &waiting[..]));
        assert_eq!(left.records, [(5, 50), (6, 60), (7, 70), (8, 80)]);
        assert!(!left.take(&record(9, vec![(Kind::Resolved, &second[..])]), 90), "it was resolved before");
    }

    /// What one epoch of the model does: its rows (session, stage), and which of the unresolved are resolved, and how.
    type Step = (Vec<(u8, u8)>, Vec<(prop::sample::Index, bool)>);

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let rows = prop::collection::vec((0_u8..6, 0_u8..4), 0..5);
        let resolved = prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..6);
        prop::collection::vec((rows, resolved), 1..30)
    }

    /// Sessions, each with the epoch that produced the revision.
    type Sent = Vec<(u64, u8)>;

    /// The rule as SEMANTICS 27 says it, over a plain list: (epoch, place in it, session).
    #[derive(Default)]
    struct Naive(Vec<(u64, u32, u8)>);

    impl Naive {
        /// The rows and letters that leave.
        fn end(&mut self, done: &[(u64, u32, bool)], retracted: &[u8]) -> (Sent, Sent) {
            let (mut rows, mut letters) = (Sent::new(), Sent::new());
            for (epoch, index, is_row) in done {
                let Some(at) = self.0.iter().position(|u| (u.0, u.1) == (*epoch, *index)) else { continue };
                let (_, _, session) = self.0.remove(at);
                if !retracted.contains(&session) {
                    if *is_row { &mut rows } else { &mut letters }.push((*epoch, session));
                }
            }
            self.0.retain(|u| !retracted.contains(&u.2));
            let all = rows.clone();
            rows.retain(|r| all.iter().all(|o| o.1 != r.1 || o.0 <= r.0));
            rows.sort_unstable();
            letters.sort_unstable();
            (rows, letters)
        }
    }

    proptest! {
        /// Against the naive model; and what is unresolved can be read from the records at any point.
        #[test]
        fn strike_outs_and_the_highest_wins(steps in steps()) {
            let (mut u, mut naive) = (Unresolved::default(), Naive::default());
            let mut records: Vec<(Revision, Vec<u8>, Vec<u8>)> = Vec::new();
            for (epoch, (rows, done)) in (1_u64..).zip(steps) {
                let revision = Revision { incarnation: 1 + epoch / 4, epoch };
                // A session has one row in an epoch.
                let mut seen = HashSet::new();
                let rows: Vec<(u8, u8)> = rows.into_iter().filter(|r| seen.insert(r.0)).collect();
                let encoded: Vec<u8> = rows.iter().flat_map(|(s, t)| row(*s, Stage::ALL[*t as usize], "{}")).collect();
                let parted = part(&encoded);
                let retracted: Vec<u8> = rows.iter().filter(|r| r.1 == 3).map(|r| r.0).collect();
                prop_assert_eq!(parted.retracted.len(), retracted.len());

                let open: Vec<(Place, Id)> = u.open().collect();
                let mut resolutions = Vec::new();
                let mut told = Vec::new();
                for (at, is_row) in done {
                    if open.is_empty() { break }
                    // The same one may come twice: the second is too late.
                    let (place, id) = open[at.index(open.len())];
                    told.push((place.epoch, place.index, is_row));
                    let outcome = if is_row {
                        Outcome::Row(row(id[0], Stage::Final, &format!("{{\"e\":{}}}", place.epoch)))
                    } else {
                        Outcome::Letter("no".into(), format!("{} {}\n", place.epoch, id[0]).into_bytes())
                    };
                    resolutions.push(Resolution { place, outcome });
                }
                let leaving = u.end(resolutions, &parted.retracted);
                let (want_rows, want_letters) = naive.end(&told, &retracted);

                let outbox = Outbox::new(revision.incarnation, epoch, &parted.retractions, &leaving.letters)
                    .with_enriched(&leaving.rows);
                let sent: Vec<(Revision, SessionRow<'_>)> = outbox.sessions(Stages::ALL).collect();
                let ids: HashSet<Id> = sent.iter().map(|(_, r)| r.id).collect();
                prop_assert_eq!(ids.len(), sent.len(), "one row of a session");
                let (own, enriched): (Vec<_>, Vec<_>) = sent.into_iter().partition(|(_, r)| r.stage == Stage::Retracted);
                prop_assert!(own.iter().all(|(r, _)| *r == revision));
                let got: Vec<(u64, u8)> = enriched.iter().map(|(r, row)| (r.epoch, row.id[0])).collect();
                prop_assert_eq!(got, want_rows);
                for (r, row) in &enriched {
                    prop_assert_eq!(r.incarnation, 1 + r.epoch / 4);
                    prop_assert_eq!(row.fields, format!("{{\"e\":{}}}", r.epoch));
                }
                let mut letters: Vec<(u64, u8)> = String::from_utf8(leaving.letters.clone()).unwrap().lines()
                    .map(|l| l.split_once(' ').map(|(e, s)| (e.parse().unwrap(), s.parse().unwrap())).unwrap())
                    .collect();
                letters.sort_unstable();
                prop_assert_eq!(letters.len() as u64, leaving.dead.values().sum::<u64>());
                prop_assert_eq!(letters, want_letters);

                u.begin(revision, &parted.unresolved);
                let waits = rows.iter().filter(|r| r.1 != 3).zip(0..);
                naive.0.extend(waits.map(|((session, _), index)| (epoch, index, *session)));
                records.push((revision, parted.unresolved, leaving.resolved));

                let open: Vec<(u64, u32, u8)> = u.open().map(|(p, id)| (p.epoch, p.index, id[0])).collect();
                prop_assert_eq!(&open, &naive.0);
                prop_assert_eq!(u.count() as usize, open.len());
                prop_assert_eq!(u.oldest(), open.first().map(|o| o.0));
                // From all records, and from as few as may be kept.
                for first in [1, u.oldest().unwrap_or(epoch)] {
                    let mut again = Unresolved::default();
                    for (revision, rows, resolved) in records.iter().filter(|r| r.0.epoch >= first) {
                        prop_assert!(again.replay(resolved, first));
                        again.begin(*revision, rows);
                    }
                    prop_assert_eq!(&again, &u);
                }
            }
        }
    }
}
