//! Opening the log: one pass that judges every record, and only then changes on disk.
//!
//! Invariants: nothing changes before everything was judged sound; a damaged tail is dropped only if nothing shows
//! that it was ever committed (the marker, a sink, a later record).

use super::marker::{MARKER_NAME, Marker, SLOT_OFFSETS, Slot};
use super::{
    DroppedTail, EpochLog, Evidence, LogReader, RecordRef, Recovery, Segment, Tip, damaged, list_segments,
    read_record, segment_path,
};
use crate::disk::{Disk, Open};
use crate::{StoreError, create_dir_durably, sync_dir};
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidemill_engine::record::{self, Damage, Header, MAGIC, RECORD_BYTES_MIN, Record};

impl EpochLog {
    /// Opens the log in `dir` (created if missing) and shows every record to `visit`, oldest first. If this fails, throw away
    /// what `visit` has built: the judgement on the tail comes last.
    ///
    /// A record that was written in full counts as committed even if the marker lags behind it.
    ///
    /// # Errors
    /// `Damaged` if the log is not what was committed, as far as the records, the marker and `evidence` can tell, or is being cut;
    /// then nothing on disk has changed. `Storage` if the file system refuses. Whatever `visit` returns.
    pub fn open(
        shared: Arc<dyn Disk>,
        dir: &Path,
        segment_bytes_max: u64,
        evidence: &[Evidence],
        visit: impl FnMut(Record<'_>, RecordRef) -> Result<(), StoreError>,
    ) -> Result<(EpochLog, Recovery), StoreError> {
        EpochLog::is_not_being_cut(&*shared, dir)?;
        EpochLog::open_as_it_is(shared, dir, segment_bytes_max, evidence, visit)
    }

    /// The same, whether or not it is being cut.
    pub(super) fn open_as_it_is(
        shared: Arc<dyn Disk>,
        dir: &Path,
        segment_bytes_max: u64,
        evidence: &[Evidence],
        visit: impl FnMut(Record<'_>, RecordRef) -> Result<(), StoreError>,
    ) -> Result<(EpochLog, Recovery), StoreError> {
        let disk = &*shared;
        let marker = Marker::read(disk, dir)?;
        let mut scan = Scan::new(disk, dir, &marker, evidence, visit);
        let tail = scan.run()?;
        let Scan { tip, segments, newest, .. } = scan;
        let last = tip.unwrap_or_default();

        // All is judged; from here on the disk may change.
        create_dir_durably(disk, dir)?;
        let mut segments = segments;
        if let Some(tail) = &tail {
            cut_tail(disk, tail)?;
        }
        // A segment without records has a name that the next epoch need not fit.
        if let Some(empty) = segments.pop_back_if(|s| s.bytes == 0) {
            let file = segment_path(dir, empty.first_epoch);
            disk.remove_file(&file).map_err(StoreError::storage("remove", &file))?;
        }
        let lags = newest.filter(|_| last.epoch > marker.epoch());
        if let Some(at) = &lags {
            rewrite(disk, dir, at)?;
        }
        let marker_file = Marker::open_for_writing(disk, dir)?;
        sync_dir(disk, dir)?;
        let mut marker_slot = marker.older_slot();
        if let Some(at) = &lags {
            // What is found counts as committed, and is released: from here on a damage to it is no torn tail.
            let slot =
                Slot { tip: last, segment_first_epoch: at.segment_first_epoch, end: at.offset + at.len };
            let vouch = marker_file.write_all_at(&slot.encode(), SLOT_OFFSETS[marker_slot]);
            let vouched = vouch.and_then(|()| marker_file.sync_data());
            vouched.map_err(StoreError::storage_at("write", &dir.join(MARKER_NAME), Some(last.epoch)))?;
            marker_slot = 1 - marker_slot;
        }

        let active = match segments.back() {
            None => None,
            Some(s) => {
                let file = segment_path(dir, s.first_epoch);
                let open = disk.open(&file, Open::Write);
                Some(open.map_err(StoreError::storage("open", &file))?)
            }
        };
        let recovery = Recovery {
            first_epoch: segments.front().map_or(0, |s| s.first_epoch),
            last_epoch: last.epoch,
            last_incarnation: last.incarnation,
            dropped_tail: tail,
        };
        let log = EpochLog {
            reader: LogReader { disk: shared, dir: dir.to_owned() },
            segments,
            active,
            marker: marker_file,
            marker_slot,
            last,
            buffer: Vec::new(),
            poisoned: false,
            segment_bytes_max,
        };
        Ok((log, recovery))
    }
}

/// Writes the newest record once more, the same bytes in the same place, and syncs it.
///
/// The process before may have died, or given up, between the write and the end of the sync: then these bytes may stand in
/// the kernel's cache only, even marked as clean after a sync that failed. Only a new write makes a sync mean something.
pub(super) fn rewrite(disk: &dyn Disk, dir: &Path, at: &RecordRef) -> Result<(), StoreError> {
    let path = segment_path(dir, at.segment_first_epoch);
    let bytes = read_record(disk, &path, at)?;
    let write = || -> io::Result<()> {
        let file = disk.open(&path, Open::Write)?;
        file.write_all_at(&bytes, at.offset)?;
        file.sync_data()
    };
    write().map_err(StoreError::storage_at("write", &path, Some(at.epoch)))
}

fn cut_tail(disk: &dyn Disk, tail: &DroppedTail) -> Result<(), StoreError> {
    disk.open(&tail.file, Open::Write)
        .and_then(|file| file.set_len(tail.offset).and_then(|()| file.sync_all()))
        .map_err(StoreError::storage("cut", &tail.file))
}

/// One pass over all segments, without changing any.
pub(super) struct Scan<'a, V> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    marker: &'a Marker,
    evidence: &'a [Evidence],
    tip: Option<Tip>,
    segments: VecDeque<Segment>,
    newest: Option<RecordRef>,
    visit: V,
}

/// Why a record is not taken, and whether an interrupted write could have left it so.
struct Fault {
    what: String,
    may_be_torn: bool,
}

impl Fault {
    fn sound_but(what: String) -> Fault {
        Fault { what, may_be_torn: false }
    }
}

impl From<Damage> for Fault {
    fn from(damage: Damage) -> Fault {
        let may_be_torn = matches!(damage, Damage::Short | Damage::Magic | Damage::Checksum);
        Fault { what: damage.to_string(), may_be_torn }
    }
}

impl<V: FnMut(Record<'_>, RecordRef) -> Result<(), StoreError>> Scan<'_, V> {
    pub(super) fn new<'a>(
        disk: &'a dyn Disk,
        dir: &'a Path,
        marker: &'a Marker,
        evidence: &'a [Evidence],
        visit: V,
    ) -> Scan<'a, V> {
        Scan { disk, dir, marker, evidence, tip: None, segments: VecDeque::new(), newest: None, visit }
    }

    /// Visits records up to the first that is not sound; says where that stands and what is wrong with it.
    pub(super) fn survey(&mut self, names: &[u64]) -> Result<Option<(PathBuf, u64, String)>, StoreError> {
        for name in names {
            let path = segment_path(self.dir, *name);
            let bytes = self.disk.read(&path).map_err(StoreError::storage("read", &path))?;
            if let Some((offset, fault)) = self.records(*name, &bytes)? {
                return Ok(Some((path, offset as u64, fault.what)));
            }
        }
        Ok(None)
    }

    /// Visits all records; returns the tail that may be dropped.
    fn run(&mut self) -> Result<Option<DroppedTail>, StoreError> {
        let names = list_segments(self.disk, self.dir)?;
        let mut tail = None;
        for (i, &first_epoch) in names.iter().enumerate() {
            tail = self.segment(first_epoch, i + 1 == names.len())?;
        }
        if let Some(proof) = self.proof_past_the_tip() {
            let vouched = self.marker.newest.map(|slot| slot.segment_first_epoch);
            let (file, offset) = match (vouched, self.segments.back()) {
                // The whole segment is gone.
                (Some(v), last) if last.is_none_or(|s| s.first_epoch < v) => (segment_path(self.dir, v), 0),
                (_, Some(s)) => (segment_path(self.dir, s.first_epoch), s.bytes),
                (_, None) => (self.dir.to_owned(), 0),
            };
            let what = format!("the log ends with epoch {}, but {proof}", self.last_good());
            return Err(damaged(&file, offset, self.last_good() + 1, self.last_good(), &what));
        }
        Ok(tail)
    }

    fn segment(&mut self, first_epoch: u64, is_last: bool) -> Result<Option<DroppedTail>, StoreError> {
        let path = segment_path(self.dir, first_epoch);
        let bytes = self.disk.read(&path).map_err(StoreError::storage("read", &path))?;
        self.segments.push_back(Segment { first_epoch, last_epoch: self.last_good(), bytes: 0 });
        if bytes.is_empty() && !is_last {
            return Err(damaged(
                &path,
                0,
                first_epoch,
                self.last_good(),
                "the segment is empty, but others follow",
            ));
        }
        match self.records(first_epoch, &bytes)? {
            None => Ok(None),
            Some((offset, fault)) => {
                self.judge(&path, first_epoch, offset, &bytes[offset..], &fault, is_last).map(Some)
            }
        }
    }

    /// Visits the records of a segment; stops at the first that is not taken, and says where.
    fn records(&mut self, first_epoch: u64, bytes: &[u8]) -> Result<Option<(usize, Fault)>, StoreError> {
        let mut offset = 0;
        while offset < bytes.len() {
            let record = match self.check(first_epoch, offset, &bytes[offset..]) {
                Ok(record) => record,
                Err(fault) => return Ok(Some((offset, fault))),
            };
            let (header, len) = (record.header, record.len);
            let at = RecordRef {
                epoch: header.epoch,
                segment_first_epoch: first_epoch,
                offset: offset as u64,
                len: len as u64,
            };
            self.tip =
                Some(Tip { epoch: header.epoch, incarnation: header.incarnation, checksum: record.checksum });
            self.newest = Some(at);
            (self.visit)(record, at)?;
            offset += len;
            if let Some(segment) = self.segments.back_mut() {
                segment.bytes = offset as u64;
                segment.last_epoch = header.epoch;
            }
        }
        Ok(None)
    }

    /// The record at the start of `rest`, if it is sound and stands where it belongs.
    fn check<'b>(&self, first_epoch: u64, offset: usize, rest: &'b [u8]) -> Result<Record<'b>, Fault> {
        let record = record::decode(rest)?;
        let Header { epoch, incarnation, .. } = record.header;
        match &self.tip {
            // The first record kept may follow one that was trimmed; epoch 1 has none before it.
            None if epoch == 1 => record.follows(0)?,
            None => {}
            Some(tip) => {
                record.follows(tip.checksum)?;
                if epoch <= tip.epoch || incarnation < tip.incarnation {
                    return Err(Fault::sound_but(format!(
                        "epoch {epoch} of incarnation {incarnation} stands after epoch {} of incarnation {}",
                        tip.epoch, tip.incarnation
                    )));
                }
            }
        }
        if offset == 0 && epoch != first_epoch {
            return Err(Fault::sound_but(format!(
                "the segment begins with epoch {epoch}, not with the one in its name"
            )));
        }
        if self.marker.newest.is_some_and(|s| s.tip.epoch == epoch && s.tip.checksum != record.checksum) {
            return Err(Fault::sound_but(format!(
                "epoch {epoch} is not the record that {MARKER_NAME} vouches for"
            )));
        }
        Ok(record)
    }

    /// Whether what stands at `offset` may be dropped, or is the loss of something committed.
    fn judge(
        &self,
        path: &Path,
        first_epoch: u64,
        offset: usize,
        rest: &[u8],
        fault: &Fault,
        is_last: bool,
    ) -> Result<DroppedTail, StoreError> {
        // The first epoch of a segment stands in its name; inside, epochs nearly always count on.
        let epoch = if offset == 0 { first_epoch } else { self.last_good() + 1 };
        let proof = if !fault.may_be_torn {
            Some("no interrupted write leaves it so".to_owned())
        } else if !is_last {
            Some("it was committed, for a later segment exists".to_owned())
        } else {
            self.proof_past_the_tip().or_else(|| self.later_record(rest)).or_else(|| self.unreadable_marker())
        };
        match proof {
            Some(proof) => {
                let what = format!("{}; {proof}", fault.what);
                Err(damaged(path, offset as u64, epoch, self.last_good(), &what))
            }
            None => {
                Ok(DroppedTail { file: path.to_owned(), offset: offset as u64, bytes: rest.len() as u64 })
            }
        }
    }

    /// Who has seen more committed than the records show.
    fn proof_past_the_tip(&self) -> Option<String> {
        let last_good = self.last_good();
        if self.marker.epoch() > last_good {
            return Some(format!("{MARKER_NAME} vouches for epoch {}", self.marker.epoch()));
        }
        if let Some(e) = self.evidence.iter().find(|e| e.epoch > last_good) {
            return Some(format!("{} has confirmed epoch {}", e.who, e.epoch));
        }
        None
    }

    /// A sound record behind the damage: each append waits for the one before it to be durable, so the
    /// damaged one had been committed.
    fn later_record(&self, rest: &[u8]) -> Option<String> {
        let mut from = 1;
        while let Some(found) = rest.get(from..).and_then(|r| r.windows(MAGIC.len()).position(|w| w == MAGIC))
        {
            let at = from + found;
            if rest.len() - at < RECORD_BYTES_MIN {
                break;
            }
            let later = record::decode(&rest[at..]).map_or(0, |r| r.header.epoch);
            if later > self.last_good() {
                return Some(format!("it was committed, for epoch {later} stands {at} bytes after it"));
            }
            from = at + 1;
        }
        None
    }

    /// A slot is written only when its record is durable: even one that cannot be read shows a commit.
    fn unreadable_marker(&self) -> Option<String> {
        self.marker.unreadable.then(|| format!("{MARKER_NAME} is damaged too and may have vouched for it"))
    }

    fn last_good(&self) -> u64 {
        self.tip.map_or(0, |t| t.epoch)
    }
}
