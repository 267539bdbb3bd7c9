//! The epoch log of one pipeline: segments of chained records, and a marker of how far they are durable.
//!
//! Invariants:
//! - `append` (append.rs) returns only after `fdatasync` of the record; a new segment's name is durable before its
//!   first record is written.
//! - Epochs rise strictly, incarnations never fall, each record repeats the checksum of the one before.
//! - A segment is named by its first epoch; only the last one grows; whole segments leave at the front.
//! - `open` (open.rs) changes nothing on disk until everything has been judged sound, and drops a damaged tail only
//!   if nothing shows that it was ever committed.
//! - After any I/O error the log refuses every further write: what a failed sync has left in the
//!   kernel's cache is unknown, and a second sync that succeeds proves nothing.
//!
//! The exclusive right to the directory is the `Claim`'s (claim.rs); nobody else may write here.

mod append;
mod capture;
mod cut;
mod marker;
mod open;
mod trim;

pub use capture::{Captured, CapturedSegment, capture};
pub use cut::{Decision, Survey};
pub use trim::destroy;

use super::StoreError;
use super::disk::{Disk, DiskFile, Open};
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidemill_engine::record::{self, Kind, Record};

/// Where a record stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordRef {
    /// The epoch it commits.
    pub epoch: u64,
    /// The name of its segment.
    pub segment_first_epoch: u64,
    /// Bytes from the start of the segment.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Someone outside the log who has seen an epoch committed: a sink by its cursor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evidence {
    /// Who, in words for a reader: "sink `table`".
    pub who: String,
    /// The newest epoch they have seen, one that has a record; 0 for none.
    pub epoch: u64,
}

/// An incomplete record that was cut off at opening.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DroppedTail {
    /// The segment.
    pub file: PathBuf,
    /// Where the tail began; the segment's length now.
    pub offset: u64,
    /// How many bytes were dropped.
    pub bytes: u64,
}

/// What opening has found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovery {
    /// The oldest epoch still in the log, 0 if the log is empty.
    pub first_epoch: u64,
    /// The newest committed epoch, 0 if the log is empty.
    pub last_epoch: u64,
    /// The incarnation that wrote it.
    pub last_incarnation: u64,
    /// What was cut off, if anything.
    pub dropped_tail: Option<DroppedTail>,
}

/// The log, open for writing.
#[derive(Debug)]
pub struct EpochLog {
    reader: LogReader,
    segments: VecDeque<Segment>,
    /// The last of `segments`, open for writing; none in an empty log.
    active: Option<Box<dyn DiskFile>>,
    marker: Box<dyn DiskFile>,
    /// Which slot is written next: never the newer one.
    marker_slot: usize,
    last: Tip,
    buffer: Vec<u8>,
    poisoned: bool,
    /// A segment is closed before it grows past this, unless one record alone is larger.
    segment_bytes_max: u64,
}

/// Reads records by reference, from any thread, while the log goes on.
#[derive(Clone, Debug)]
pub struct LogReader {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    first_epoch: u64,
    last_epoch: u64,
    bytes: u64,
}

/// The newest record: what the next one must follow.
#[derive(Clone, Copy, Debug, Default)]
struct Tip {
    epoch: u64,
    incarnation: u64,
    checksum: u128,
}

impl EpochLog {
    /// The sections of a record that was appended or visited; for sinks that lag behind.
    ///
    /// # Errors
    /// `Damaged` if other bytes stand there now, `Storage` if they cannot be read.
    pub fn read_sections(&self, at: &RecordRef) -> Result<Vec<(Kind, Vec<u8>)>, StoreError> {
        self.reader.read_sections(at)
    }

    /// A reader for another thread.
    pub fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    /// Bytes in all segments.
    pub fn bytes_retained(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }

    /// The newest committed epoch, 0 if there is none.
    pub fn last_epoch(&self) -> u64 {
        self.last.epoch
    }
}

/// The newest record, for a look from outside.
#[derive(Debug)]
pub struct Newest {
    /// Its epoch.
    pub epoch: u64,
    /// Who wrote it.
    pub incarnation: u64,
    /// Its `Meta` section.
    pub meta: Vec<u8>,
}

impl EpochLog {
    /// Whether there is anything of a log in `dir`.
    ///
    /// # Errors
    /// `Storage` if the directory cannot be read.
    pub fn is_there(disk: &dyn Disk, dir: &Path) -> Result<bool, StoreError> {
        Ok(!list_segments(disk, dir)?.is_empty())
    }

    /// The newest epoch that COMMITTED vouches for, 0 for none. After a power cut the log may hold more.
    ///
    /// # Errors
    /// `Storage` if it cannot be read.
    pub fn vouched(disk: &dyn Disk, dir: &Path) -> Result<u64, StoreError> {
        Ok(marker::Marker::read(disk, dir)?.epoch())
    }

    /// The newest whole record, read without a claim, beside a process that may be writing. `None` if there is none.
    ///
    /// # Errors
    /// `Storage` if the directory cannot be read.
    pub fn newest(disk: &dyn Disk, dir: &Path) -> Result<Option<Newest>, StoreError> {
        if !disk.is_dir(dir) {
            return Ok(None);
        }
        for first_epoch in list_segments(disk, dir)?.into_iter().rev() {
            let file = segment_path(dir, first_epoch);
            let Some(bytes) = super::read_if_there(disk, &file)? else { continue };
            let (mut at, mut newest) = (0, None);
            while let Ok(r) = record::decode(&bytes[at..]) {
                at += r.len;
                let meta = r.section(Kind::Meta).unwrap_or_default().to_vec();
                newest = Some(Newest { epoch: r.header.epoch, incarnation: r.header.incarnation, meta });
            }
            if newest.is_some() {
                return Ok(newest);
            }
        }
        Ok(None)
    }
}

impl LogReader {
    /// See [`EpochLog::read_sections`].
    pub fn read_sections(&self, at: &RecordRef) -> Result<Vec<(Kind, Vec<u8>)>, StoreError> {
        let bytes = self.read_bytes(at)?;
        let record = self.check(&bytes, at)?;
        Ok(record.sections.iter().map(|(kind, bytes)| (*kind, bytes.to_vec())).collect())
    }

    /// The record as it stands in the log, for a copy that is kept elsewhere.
    ///
    /// # Errors
    /// As for [`EpochLog::read_sections`].
    pub fn read_record(&self, at: &RecordRef) -> Result<Vec<u8>, StoreError> {
        let bytes = self.read_bytes(at)?;
        self.check(&bytes, at)?;
        Ok(bytes)
    }

    fn read_bytes(&self, at: &RecordRef) -> Result<Vec<u8>, StoreError> {
        read_record(&*self.disk, &segment_path(&self.dir, at.segment_first_epoch), at)
    }

    fn check<'a>(&self, bytes: &'a [u8], at: &RecordRef) -> Result<Record<'a>, StoreError> {
        let path = segment_path(&self.dir, at.segment_first_epoch);
        let damaged = |what: String| damaged(&path, at.offset, at.epoch, at.epoch.saturating_sub(1), &what);
        let record = record::decode(bytes).map_err(|e| damaged(e.to_string()))?;
        if record.header.epoch != at.epoch {
            return Err(damaged(format!("epoch {} stands in its place", record.header.epoch)));
        }
        Ok(record)
    }
}

fn segment_path(dir: &Path, first_epoch: u64) -> PathBuf {
    dir.join(format!("{first_epoch:020}.seg"))
}

/// The first epochs of all segments, rising. Files of other names are not ours.
fn list_segments(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, StoreError> {
    let entries = match disk.list(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(StoreError::storage("list", dir))?,
    };
    let first_epoch = |entry: &PathBuf| {
        let name = entry.file_name()?.to_str()?;
        name.strip_suffix(".seg").filter(|d| d.len() == 20)?.parse::<u64>().ok()
    };
    let mut found: Vec<u64> = entries.iter().filter_map(first_epoch).collect();
    found.sort_unstable();
    Ok(found)
}

fn read_record(disk: &dyn Disk, path: &Path, at: &RecordRef) -> Result<Vec<u8>, StoreError> {
    let len = usize::try_from(at.len).unwrap_or(usize::MAX);
    let mut bytes = vec![0; len];
    disk.open(path, Open::Read)
        .and_then(|f| f.read_exact_at(&mut bytes, at.offset))
        .map_err(StoreError::storage_at("read", path, Some(at.epoch)))?;
    Ok(bytes)
}

fn damaged(file: &Path, offset: u64, epoch: u64, last_good: u64, what: &str) -> StoreError {
    let go_back = match last_good {
        0 => String::new(),
        n => format!(", give up what follows epoch {n} with `tidemill recover --to {n}`"),
    };
    StoreError::Damaged {
        file: file.to_owned(),
        offset,
        epoch: Some(epoch),
        what: what.to_owned(),
        hint: format!(
            "Put the file back from a copy (epoch {last_good} is the last that is sound){go_back}, or start over with \
             --fresh"
        ),
    }
}

#[cfg(test)]
mod tests;
