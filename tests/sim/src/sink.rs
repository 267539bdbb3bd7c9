//! Sinks outside of the process: a table that keeps its own cursor in its transactions, a remote table that applies what is
//! sent in any order and some time later, and files. What they do when they are asked follows the product's sinks;
//! what befalls them is up to the world.

use crate::model::Session;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use tidemill_engine::outbox::{Outbox, Revision, RowIter, SessionRow, Stage, Stages};
use tidemill_store::StoreError;
use tidemill_store::disk::{Disk, Open};

/// How far a sink has confirmed; `length`: of a file its bytes, of a table its newest epoch with rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Cursor {
    pub(crate) epoch: u64,
    pub(crate) length: u64,
}

/// A row as it stands in a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    pub(crate) revision: Revision,
    pub(crate) stage: Stage,
    pub(crate) session: Session,
}

pub(crate) type Rows = BTreeMap<[u8; 16], Row>;

/// The rows of one epoch that a sink takes.
type Taken = Vec<([u8; 16], Row)>;

pub(crate) fn row(revision: Revision, r: &SessionRow<'_>) -> Row {
    let session = Session {
        key: r.key.trim_start_matches('k').parse().unwrap_or(u8::MAX),
        start: r.start.ms(),
        end: r.end.ms(),
        events: r.events,
        reason: r.reason.map(str::to_owned),
        plugin: r.plugin.to_owned(),
        fields: r.fields.to_owned(),
    };
    Row { revision, stage: r.stage, session }
}

/// Takes a row if it is higher; a retraction leaves the content as it was.
pub(crate) fn upsert(rows: &mut Rows, id: [u8; 16], new: Row) -> bool {
    match rows.get_mut(&id) {
        Some(old) if old.revision >= new.revision => false,
        Some(old) if new.stage == Stage::Retracted => {
            (old.revision, old.stage) = (new.revision, new.stage);
            true
        }
        _ => {
            rows.insert(id, new);
            true
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Table,
    Remote,
    RowFile,
    LetterFile,
}

/// What a sink does to the next epochs that it is offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Mood {
    #[default]
    Fine,
    /// It takes nothing, and says so.
    Refuses,
    /// It takes it, and the answer is lost.
    TimesOut,
}

/// A sink, as the world outside has it.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) stages: Stages,
    pub(crate) mood: Mood,
    /// It takes nothing for so many steps.
    pub(crate) slow: u32,
    pub(crate) rows: Rows,
    /// The incarnation that may write.
    fence: u64,
    epoch: Option<u64>,
    /// Sent, and not applied yet: by which incarnation, which epoch, and its revisions.
    in_flight: Vec<(u64, u64, Taken)>,
    /// What the incarnation that has it open has sent, and not been told of in order.
    applied: BTreeSet<u64>,
    /// Of a file.
    path: PathBuf,
}

/// A process's side of a sink.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(crate) incarnation: u64,
    pub(crate) cursor: Cursor,
    own_epoch: u64,
}

/// Why a sink failed.
#[derive(Debug)]
pub(crate) enum SinkError {
    /// Try again, with another start.
    Failed(&'static str),
    /// Somebody else writes here, or a cursor contradicts what is there.
    Conflict(String),
    /// The disk.
    Store(StoreError),
}

impl fmt::Display for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SinkError::Failed(what) => f.write_str(what),
            SinkError::Conflict(what) => write!(f, "conflict: {what}"),
            SinkError::Store(e) => e.fmt(f),
        }
    }
}

impl From<StoreError> for SinkError {
    fn from(e: StoreError) -> Self {
        SinkError::Store(e)
    }
}

impl Place {
    pub(crate) fn new(name: &'static str, kind: Kind, stages: Stages) -> Place {
        Place {
            name,
            kind,
            stages,
            mood: Mood::Fine,
            slow: 0,
            rows: Rows::new(),
            fence: 0,
            epoch: None,
            in_flight: Vec::new(),
            applied: BTreeSet::new(),
            path: PathBuf::from("/out").join(name),
        }
    }

    fn contents(&self, disk: &dyn Disk) -> Result<Vec<u8>, StoreError> {
        Ok(tidemill_store::read_if_there(disk, &self.path)?.unwrap_or_default())
    }

    /// The newest epoch that shows in it.
    pub(crate) fn witness(&self, disk: &dyn Disk) -> Result<Option<u64>, StoreError> {
        Ok(match self.kind {
            Kind::Table => self.epoch,
            Kind::RowFile => file_rows(&self.contents(disk)?).last().map(|(_, r)| r.revision.epoch),
            Kind::Remote | Kind::LetterFile => None,
        })
    }

    /// Opens and fences; what the sink says of its own cursor.
    pub(crate) fn open(
        &mut self,
        disk: &dyn Disk,
        incarnation: u64,
        stored: Option<Cursor>,
    ) -> Result<(Handle, Option<Cursor>), SinkError> {
        let own = match self.kind {
            Kind::Table => {
                if self.fence > incarnation {
                    return Err(SinkError::Conflict(format!("incarnation {} was here", self.fence)));
                }
                self.fence = incarnation;
                let expected = stored.is_some_and(|c| c.epoch > 0);
                if self.epoch.is_none() && !expected {
                    self.epoch = Some(0);
                }
                let stored = stored.unwrap_or_default();
                match self.epoch {
                    Some(own) if own < stored.length => {
                        return Err(SinkError::Conflict(format!(
                            "it stands at {own}, not at {}",
                            stored.length
                        )));
                    }
                    own => own.map(|own| Cursor { epoch: own.max(stored.epoch), length: own }),
                }
            }
            Kind::Remote => {
                self.applied.clear();
                stored
            }
            Kind::RowFile | Kind::LetterFile => {
                self.cut_back(disk, stored)?;
                stored
            }
        };
        Ok((Handle { incarnation, cursor: own.or(stored).unwrap_or_default(), own_epoch: 0 }, own))
    }

    fn cut_back(&self, disk: &dyn Disk, stored: Option<Cursor>) -> Result<(), SinkError> {
        let storage = |e| StoreError::storage("cut back", &self.path)(e);
        let there = tidemill_store::read_if_there(disk, &self.path)?;
        let length = there.as_ref().map_or(0, |b| b.len() as u64);
        let cursor = stored.unwrap_or_default();
        if cursor.length > length {
            return Err(SinkError::Conflict(format!("{length} bytes, not {}", cursor.length)));
        }
        let file = disk.open(&self.path, Open::MaybeNew).map_err(storage)?;
        if there.is_none() {
            disk.sync_dir(tidemill_store::parent_of(&self.path)).map_err(storage)?;
        }
        if cursor.length < length {
            file.set_len(cursor.length).and_then(|()| file.sync_all()).map_err(storage)?;
        }
        Ok(())
    }

    fn has_work(&self, outbox: &Outbox<'_>) -> bool {
        match self.kind {
            Kind::LetterFile => !outbox.letters().is_empty(),
            _ => outbox.sessions(self.stages).next().is_some(),
        }
    }

    fn taken(&self, outbox: &Outbox<'_>) -> Taken {
        outbox.sessions(self.stages).map(|(revision, r)| (r.id, row(revision, &r))).collect()
    }

    /// Writes one epoch. The cursor to keep; none while that is not known yet.
    pub(crate) fn deliver(
        &mut self,
        disk: &dyn Disk,
        handle: &mut Handle,
        outbox: &Outbox<'_>,
    ) -> Result<Option<Cursor>, SinkError> {
        let mood = std::mem::take(&mut self.mood);
        if mood == Mood::Refuses {
            return Err(SinkError::Failed("refused"));
        }
        let cursor = match self.kind {
            Kind::Table => Some(self.transaction(handle, outbox)?),
            Kind::Remote => {
                if self.has_work(outbox) {
                    self.in_flight.push((handle.incarnation, outbox.epoch, self.taken(outbox)));
                } else {
                    self.applied.insert(outbox.epoch);
                }
                None
            }
            Kind::RowFile | Kind::LetterFile => Some(self.append(disk, handle, outbox)?),
        };
        if mood == Mood::TimesOut {
            return Err(SinkError::Failed("timed out"));
        }
        if let Some(cursor) = cursor {
            handle.cursor = cursor;
        }
        Ok(cursor)
    }

    fn transaction(&mut self, handle: &mut Handle, outbox: &Outbox<'_>) -> Result<Cursor, SinkError> {
        let ours_and_new = outbox.incarnation == handle.incarnation && outbox.epoch > handle.own_epoch;
        if outbox.epoch <= handle.cursor.epoch && !ours_and_new {
            return Ok(handle.cursor);
        }
        let mut length = handle.cursor.length;
        if self.has_work(outbox) {
            if self.fence != handle.incarnation {
                return Err(SinkError::Conflict("fenced".into()));
            }
            for (id, new) in self.taken(outbox) {
                upsert(&mut self.rows, id, new);
            }
            self.epoch = Some(outbox.epoch);
            length = outbox.epoch;
        }
        if outbox.incarnation == handle.incarnation {
            handle.own_epoch = outbox.epoch;
        }
        Ok(Cursor { epoch: outbox.epoch, length })
    }

    fn append(&self, disk: &dyn Disk, handle: &Handle, outbox: &Outbox<'_>) -> Result<Cursor, SinkError> {
        let mut cursor = handle.cursor;
        if outbox.epoch <= cursor.epoch {
            return Ok(cursor);
        }
        if self.has_work(outbox) {
            let mut bytes = Vec::new();
            if self.kind == Kind::LetterFile {
                bytes.extend_from_slice(outbox.letters());
            }
            for (revision, r) in outbox.sessions(self.stages).filter(|_| self.kind == Kind::RowFile) {
                let at = bytes.len();
                bytes.extend_from_slice(&[0; 4]);
                revision.encode(&mut bytes);
                r.encode(&mut bytes);
                let len = (bytes.len() - at - 4) as u32;
                bytes[at..at + 4].copy_from_slice(&len.to_le_bytes());
            }
            let file = disk.open(&self.path, Open::Write).map_err(StoreError::storage("open", &self.path))?;
            file.write_all_at(&bytes, cursor.length)
                .and_then(|()| file.sync_data())
                .map_err(StoreError::storage("write to", &self.path))?;
            cursor.length += bytes.len() as u64;
        }
        cursor.epoch = outbox.epoch;
        Ok(cursor)
    }

    /// What a remote table does on its own: applies something that was sent, in any order. The cursor, if it has moved, and
    /// whether an epoch has overtaken another.
    pub(crate) fn work(
        &mut self,
        rng: &mut fastrand::Rng,
        handle: Option<&mut Handle>,
    ) -> (Option<Cursor>, bool) {
        let mut overtook = false;
        if !self.in_flight.is_empty() {
            let n = rng.usize(0..self.in_flight.len());
            overtook = n > 0;
            let (by, epoch, rows) = self.in_flight.remove(n);
            for (id, new) in rows {
                upsert(&mut self.rows, id, new);
            }
            // Nobody is there to hear of what an earlier incarnation has sent.
            if handle.as_ref().is_some_and(|h| h.incarnation == by) {
                self.applied.insert(epoch);
            }
        }
        let Some(handle) = handle else { return (None, overtook) };
        let before = handle.cursor.epoch;
        // Epochs without changes are not written: what was offered after the cursor counts.
        let open: BTreeSet<u64> = self.in_flight.iter().map(|(_, epoch, _)| *epoch).collect();
        while let Some(next) = self.applied.range(handle.cursor.epoch + 1..).next().copied() {
            if open.iter().any(|epoch| *epoch < next && *epoch > handle.cursor.epoch) {
                break;
            }
            self.applied.remove(&next);
            handle.cursor = Cursor { epoch: next, length: 0 };
        }
        ((handle.cursor.epoch > before).then_some(handle.cursor), overtook)
    }

    /// The newest incarnation that has opened it.
    pub(crate) fn fence(&self) -> u64 {
        self.fence
    }

    /// Whether everything that was sent is applied.
    pub(crate) fn is_quiet(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Takes back what epochs after `cut` brought.
    pub(crate) fn take_back(
        &mut self,
        disk: &dyn Disk,
        incarnation: u64,
        cut: u64,
        stored: Option<Cursor>,
    ) -> Result<(), SinkError> {
        match self.kind {
            Kind::Table | Kind::Remote => {
                self.open(disk, incarnation, stored)?;
                take_back(&mut self.rows, incarnation, cut);
                self.epoch = self.epoch.map(|e| e.min(cut));
            }
            Kind::RowFile | Kind::LetterFile => {
                let cursor = stored.unwrap_or(Cursor { epoch: cut, length: 0 });
                self.open(disk, incarnation, Some(cursor))?;
            }
        }
        Ok(())
    }

    /// What a reader makes of it.
    pub(crate) fn read(&self, disk: &dyn Disk) -> Result<Rows, StoreError> {
        if self.kind != Kind::RowFile {
            return Ok(self.rows.clone());
        }
        let mut rows = Rows::new();
        for (id, new) in file_rows(&self.contents(disk)?) {
            upsert(&mut rows, id, new);
        }
        Ok(rows)
    }

    /// The lines of a file of letters.
    pub(crate) fn lines(&self, disk: &dyn Disk) -> Result<Vec<serde_json::Value>, StoreError> {
        let bytes = self.contents(disk)?;
        let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty());
        Ok(lines.filter_map(|l| serde_json::from_slice(l).ok()).collect())
    }
}

pub(crate) fn take_back(rows: &mut Rows, incarnation: u64, cut: u64) {
    for row in rows.values_mut().filter(|r| r.revision.epoch > cut && r.stage != Stage::Retracted) {
        (row.stage, row.revision) = (Stage::Retracted, Revision { incarnation, epoch: cut });
    }
}

fn file_rows(mut bytes: &[u8]) -> Vec<([u8; 16], Row)> {
    let mut out = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
        let Some((one, rest)) = rest.split_at_checked(u32::from_le_bytes(*len) as usize) else { break };
        bytes = rest;
        let (Some((incarnation, one)), true) = (one.split_first_chunk::<8>(), one.len() > 16) else { break };
        let Some((epoch, one)) = one.split_first_chunk::<8>() else { break };
        let revision =
            Revision { incarnation: u64::from_le_bytes(*incarnation), epoch: u64::from_le_bytes(*epoch) };
        out.extend(RowIter::new(one).map(|r| (r.id, row(revision, &r))));
    }
    out
}
