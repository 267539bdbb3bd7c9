//! The epoch log of one pipeline: segments of chained records, and a marker of how far they are durable.
//!
//! Invariants:
//! - `append` returns only after `fdatasync` of the record; a new segment's name is durable before its
//!   first record is written.
//! - Epochs rise strictly, incarnations never fall, each record repeats the checksum of the one before.
//! - A segment is named by its first epoch; only the last one grows; whole segments leave at the front.
//! - `open` changes nothing on disk until everything has been judged sound, and drops a damaged tail only
//!   if nothing shows that it was ever committed.
//! - After any I/O error the log refuses every further write: what a failed sync has left in the
//!   kernel's cache is unknown, and a second sync that succeeds proves nothing.
//!
//! The exclusive right to the directory is the `Claim`'s (claim.rs); nobody else may write here.

use super::{StoreError, create_dir_durably, parent_of, read_if_there, sync_dir};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tidemill_engine::record::{self, Damage, Header, Kind, MAGIC, RECORD_BYTES_MIN, Record};
use xxhash_rust::xxh3::xxh3_128;

/// A segment is closed before it grows past this, unless one record alone is larger: few files, yet
/// space comes back in small steps and recovery holds no more than this in memory.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 64 << 20;

const MARKER_NAME: &str = "COMMITTED";
const SLOT_BYTES: usize = 64;
/// The slots lie in different 4 KiB pages, so that a torn write of one cannot touch the other.
const SLOT_OFFSETS: [u64; 2] = [0, 4096];

/// Where a record stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordRef {
    /// The epoch it commits.
    pub(crate) epoch: u64,
    /// The name of its segment.
    pub(crate) segment_first_epoch: u64,
    /// Bytes from the start of the segment.
    pub(crate) offset: u64,
    /// Length in bytes.
    pub(crate) len: u64,
}

/// Someone outside the log who has seen an epoch committed: a sink by its cursor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Evidence {
    /// Who, in words for a reader: "sink `table`".
    pub(crate) who: String,
    /// The newest epoch they have seen, one that has a record; 0 for none.
    pub(crate) epoch: u64,
}

/// An incomplete record that was cut off at opening.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DroppedTail {
    /// The segment.
    pub(crate) file: PathBuf,
    /// Where the tail began; the segment's length now.
    pub(crate) offset: u64,
    /// How many bytes were dropped.
    pub(crate) bytes: u64,
}

/// What opening has found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Recovery {
    /// The oldest epoch still in the log, 0 if the log is empty.
    pub(crate) first_epoch: u64,
    /// The newest committed epoch, 0 if the log is empty.
    pub(crate) last_epoch: u64,
    /// The incarnation that wrote it.
    pub(crate) last_incarnation: u64,
    /// What was cut off, if anything.
    pub(crate) dropped_tail: Option<DroppedTail>,
}

/// The log, open for writing.
#[derive(Debug)]
pub(crate) struct EpochLog {
    reader: LogReader,
    segments: VecDeque<Segment>,
    /// The last of `segments`, open for writing; none in an empty log.
    active: Option<File>,
    marker: File,
    /// Which slot is written next: never the newer one.
    marker_slot: usize,
    last: Tip,
    buffer: Vec<u8>,
    poisoned: bool,
    segment_bytes_max: u64,
}

/// Reads records by reference, from any thread, while the log goes on.
#[derive(Clone, Debug)]
pub(crate) struct LogReader {
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
    /// Opens the log in `dir` (created if missing) and shows every record to `visit`, oldest first. If this fails, throw away
    /// what `visit` has built: the judgement on the tail comes last.
    ///
    /// A record that was written in full counts as committed even if the marker lags behind it.
    ///
    /// # Errors
    /// `Damaged` if the log is not what was committed, as far as the records, the marker and `evidence` can tell; then
    /// nothing on disk has changed. `Storage` if the file system refuses. Whatever `visit` returns.
    pub(crate) fn open(
        dir: &Path,
        evidence: &[Evidence],
        visit: impl FnMut(Record<'_>, RecordRef) -> Result<(), StoreError>,
    ) -> Result<(EpochLog, Recovery), StoreError> {
        let marker = Marker::read(dir)?;
        let mut scan = Scan {
            dir,
            marker: &marker,
            evidence,
            tip: None,
            segments: VecDeque::new(),
            newest: None,
            visit,
        };
        let tail = scan.run()?;
        let Scan { tip, segments, newest, .. } = scan;
        let last = tip.unwrap_or_default();

        // All is judged; from here on the disk may change.
        create_dir_durably(dir)?;
        let mut segments = segments;
        if let Some(tail) = &tail {
            cut_tail(tail)?;
        }
        // A segment without records has a name that the next epoch need not fit.
        if let Some(empty) = segments.pop_back_if(|s| s.bytes == 0) {
            let file = segment_path(dir, empty.first_epoch);
            fs::remove_file(&file).map_err(StoreError::storage("remove", &file))?;
        }
        if let (Some(at), true) = (newest, last.epoch > marker.epoch()) {
            rewrite(dir, &at)?;
        }
        let marker_file = Marker::open_for_writing(dir)?;
        sync_dir(dir)?;

        let active = match segments.back() {
            None => None,
            Some(s) => {
                let file = segment_path(dir, s.first_epoch);
                let open = OpenOptions::new().write(true).open(&file);
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
            reader: LogReader { dir: dir.to_owned() },
            segments,
            active,
            marker: marker_file,
            marker_slot: marker.older_slot(),
            last,
            buffer: Vec::new(),
            poisoned: false,
            segment_bytes_max: SEGMENT_BYTES_MAX,
        };
        Ok((log, recovery))
    }

    /// Commits one epoch: when this returns, the record is durable. Blocks for one `fdatasync`.
    ///
    /// # Errors
    /// `Storage`: the log refuses all further writes, and the next opening finds out what has become of this epoch. An
    /// epoch or incarnation that goes back is refused without touching the log.
    pub(crate) fn append(
        &mut self,
        incarnation: u64,
        epoch: u64,
        sections: &[(Kind, &[u8])],
    ) -> Result<RecordRef, StoreError> {
        self.check_usable(epoch)?;
        if epoch <= self.last.epoch || incarnation < self.last.incarnation {
            let source = io::Error::other(format!(
                "epoch {epoch} of incarnation {incarnation} cannot follow epoch {} of incarnation {}",
                self.last.epoch, self.last.incarnation
            ));
            return Err(StoreError::storage_at("append to", &self.reader.dir, Some(epoch))(source));
        }
        let written = self.write_record(incarnation, epoch, sections);
        self.poisoned = written.is_err();
        written
    }

    fn write_record(
        &mut self,
        incarnation: u64,
        epoch: u64,
        sections: &[(Kind, &[u8])],
    ) -> Result<RecordRef, StoreError> {
        self.buffer.clear();
        let header = Header { incarnation, epoch, previous: self.last.checksum };
        let checksum = record::encode_into(&mut self.buffer, &header, sections);
        let len = self.buffer.len() as u64;
        self.rotate_for(epoch, len)?;
        let (Some(file), Some(segment)) = (&self.active, self.segments.back_mut()) else {
            let source = io::Error::other("no segment is open");
            return Err(StoreError::storage_at("append to", &self.reader.dir, Some(epoch))(source));
        };
        let path = segment_path(&self.reader.dir, segment.first_epoch);
        let at = RecordRef { epoch, segment_first_epoch: segment.first_epoch, offset: segment.bytes, len };
        let failed = |doing| {
            let path = &path;
            move |e| StoreError::storage_at(doing, path, Some(epoch))(e).at_offset(at.offset)
        };
        file.write_all_at(&self.buffer, at.offset).map_err(failed("write"))?;
        file.sync_data().map_err(failed("sync"))?;
        segment.bytes += len;
        segment.last_epoch = epoch;
        self.last = Tip { epoch, incarnation, checksum };

        // The marker is not synced. It is written after the record is durable, so whatever part of it
        // reaches the disk is true; and a process that dies leaves it in the kernel's cache, where the
        // next one reads it. Only a power cut can make it lag, and then it vouches for less, never for
        // something that is not there. A second sync would double the price of an epoch for that.
        let slot = Slot { tip: self.last, segment_first_epoch: at.segment_first_epoch, end: segment.bytes };
        let marker = self.reader.dir.join(MARKER_NAME);
        self.marker
            .write_all_at(&slot.encode(), SLOT_OFFSETS[self.marker_slot])
            .map_err(StoreError::storage_at("write", &marker, Some(epoch)))?;
        self.marker_slot = 1 - self.marker_slot;
        // One huge epoch does not keep its memory for ever.
        self.buffer.shrink_to(self.segment_bytes_max as usize);
        Ok(at)
    }

    /// Opens a new segment if there is none, or if the record would make the last one too long.
    fn rotate_for(&mut self, epoch: u64, len: u64) -> Result<(), StoreError> {
        if self.active.is_some()
            && self.segments.back().is_some_and(|s| s.bytes + len <= self.segment_bytes_max)
        {
            return Ok(());
        }
        let path = segment_path(&self.reader.dir, epoch);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::storage_at("create", &path, Some(epoch)))?;
        sync_dir(&self.reader.dir)?;
        self.segments.push_back(Segment { first_epoch: epoch, last_epoch: epoch, bytes: 0 });
        self.active = Some(file);
        Ok(())
    }

    fn check_usable(&self, epoch: u64) -> Result<(), StoreError> {
        if !self.poisoned {
            return Ok(());
        }
        let source = io::Error::other("an earlier write has failed; start again to recover");
        Err(StoreError::storage_at("write to", &self.reader.dir, Some(epoch))(source))
    }

    /// The sections of a record that was appended or visited; for sinks that lag behind.
    ///
    /// # Errors
    /// `Damaged` if other bytes stand there now, `Storage` if they cannot be read.
    pub(crate) fn read_sections(&self, at: &RecordRef) -> Result<Vec<(Kind, Vec<u8>)>, StoreError> {
        self.reader.read_sections(at)
    }

    /// A reader for another thread.
    pub(crate) fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    /// Deletes the segments in which every epoch is below `keep_from_epoch`, but never the last segment.
    ///
    /// # Errors
    /// `Storage`; the log then refuses all further writes.
    pub(crate) fn trim(&mut self, keep_from_epoch: u64) -> Result<(), StoreError> {
        self.check_usable(self.last.epoch)?;
        while let (true, Some(oldest)) = (self.segments.len() > 1, self.segments.front().copied()) {
            if oldest.last_epoch >= keep_from_epoch {
                break;
            }
            let path = segment_path(&self.reader.dir, oldest.first_epoch);
            // Synced one by one: were two removals under way, a power cut could keep the older and
            // lose the newer, and that gap would look like damage.
            let removed = fs::remove_file(&path).map_err(StoreError::storage("remove", &path));
            if let Err(e) = removed.and_then(|()| sync_dir(&self.reader.dir)) {
                self.poisoned = true;
                return Err(e);
            }
            self.segments.pop_front();
        }
        Ok(())
    }

    /// Bytes in all segments.
    pub(crate) fn bytes_retained(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }

    /// The newest committed epoch, 0 if there is none.
    pub(crate) fn last_epoch(&self) -> u64 {
        self.last.epoch
    }
}

/// The newest record, for a look from outside.
#[derive(Debug)]
pub(crate) struct Newest {
    /// Its epoch.
    pub(crate) epoch: u64,
    /// Who wrote it.
    pub(crate) incarnation: u64,
    /// Its `Meta` section.
    pub(crate) meta: Vec<u8>,
}

impl EpochLog {
    /// The newest whole record, read without a claim, beside a process that may be writing. `None` if there is none.
    ///
    /// # Errors
    /// `Storage` if the directory cannot be read.
    pub(crate) fn newest(dir: &Path) -> Result<Option<Newest>, StoreError> {
        if !dir.is_dir() {
            return Ok(None);
        }
        for first_epoch in list_segments(dir)?.into_iter().rev() {
            let file = segment_path(dir, first_epoch);
            let Some(bytes) = super::read_if_there(&file)? else { continue };
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
    pub(crate) fn read_sections(&self, at: &RecordRef) -> Result<Vec<(Kind, Vec<u8>)>, StoreError> {
        let path = segment_path(&self.dir, at.segment_first_epoch);
        let bytes = read_record(&path, at)?;
        let damaged = |what: String| damaged(&path, at.offset, at.epoch, at.epoch.saturating_sub(1), &what);
        let record = record::decode(&bytes).map_err(|e| damaged(e.to_string()))?;
        if record.header.epoch != at.epoch {
            return Err(damaged(format!("epoch {} stands in its place", record.header.epoch)));
        }
        Ok(record.sections.iter().map(|(kind, bytes)| (*kind, bytes.to_vec())).collect())
    }
}

/// Removes the log in `dir`, for a fresh start; fine if there is none.
///
/// # Errors
/// `Storage` if the file system refuses.
pub(crate) fn destroy(dir: &Path) -> Result<(), StoreError> {
    let parent = parent_of(dir);
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    // Moved away first: a crash half way through the removal leaves no log, instead of a broken one.
    let doomed = parent.join(format!(".removed-{name}"));
    remove_all(&doomed)?;
    match fs::rename(dir, &doomed) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        moved => moved.map_err(StoreError::storage("move away", dir))?,
    }
    sync_dir(parent)?;
    remove_all(&doomed)?;
    sync_dir(parent)
}

fn remove_all(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(StoreError::storage("remove", dir)),
    }
}

fn segment_path(dir: &Path, first_epoch: u64) -> PathBuf {
    dir.join(format!("{first_epoch:020}.seg"))
}

/// The first epochs of all segments, rising. Files of other names are not ours.
fn list_segments(dir: &Path) -> Result<Vec<u64>, StoreError> {
    let list = || -> io::Result<Vec<u64>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name();
            let digits = name.to_str().and_then(|n| n.strip_suffix(".seg")).filter(|d| d.len() == 20);
            found.extend(digits.and_then(|d| d.parse::<u64>().ok()));
        }
        found.sort_unstable();
        Ok(found)
    };
    match list() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(StoreError::storage("list", dir)),
    }
}

fn read_record(path: &Path, at: &RecordRef) -> Result<Vec<u8>, StoreError> {
    let len = usize::try_from(at.len).unwrap_or(usize::MAX);
    let mut bytes = vec![0; len];
    File::open(path).and_then(|f| f.read_exact_at(&mut bytes, at.offset)).map_err(StoreError::storage_at(
        "read",
        path,
        Some(at.epoch),
    ))?;
    Ok(bytes)
}

/// Writes the newest record once more, the same bytes in the same place, and syncs it.
///
/// The process before may have died, or given up, between the write and the end of the sync: then these bytes may stand in
/// the kernel's cache only, even marked as clean after a sync that failed. Only a new write makes a sync mean something.
fn rewrite(dir: &Path, at: &RecordRef) -> Result<(), StoreError> {
    let path = segment_path(dir, at.segment_first_epoch);
    let bytes = read_record(&path, at)?;
    let write = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(&path)?;
        file.write_all_at(&bytes, at.offset)?;
        file.sync_data()
    };
    write().map_err(StoreError::storage_at("write", &path, Some(at.epoch)))
}

fn cut_tail(tail: &DroppedTail) -> Result<(), StoreError> {
    OpenOptions::new()
        .write(true)
        .open(&tail.file)
        .and_then(|file| file.set_len(tail.offset).and_then(|()| file.sync_all()))
        .map_err(StoreError::storage("cut", &tail.file))
}

fn damaged(file: &Path, offset: u64, epoch: u64, last_good: u64, what: &str) -> StoreError {
    StoreError::Damaged {
        file: file.to_owned(),
        offset,
        epoch: Some(epoch),
        what: what.to_owned(),
        hint: format!(
            "Put the file back from a copy (epoch {last_good} is the last that is sound), or start over with --fresh"
        ),
    }
}

/// One pass over all segments, without changing any.
struct Scan<'a, V> {
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
    /// Visits all records; returns the tail that may be dropped.
    fn run(&mut self) -> Result<Option<DroppedTail>, StoreError> {
        let names = list_segments(self.dir)?;
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
        let bytes = fs::read(&path).map_err(StoreError::storage("read", &path))?;
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
        let mut offset = 0;
        while offset < bytes.len() {
            let rest = &bytes[offset..];
            let record = match self.check(first_epoch, offset, rest) {
                Ok(record) => record,
                Err(fault) => return self.judge(&path, first_epoch, offset, rest, &fault, is_last).map(Some),
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

/// What COMMITTED says.
#[derive(Debug, Default)]
struct Marker {
    newest: Option<Slot>,
    newest_slot: usize,
    /// A slot was written, but its checksum does not hold.
    unreadable: bool,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    tip: Tip,
    segment_first_epoch: u64,
    end: u64,
}

impl Marker {
    fn read(dir: &Path) -> Result<Marker, StoreError> {
        let mut marker = Marker::default();
        let Some(bytes) = read_if_there(&dir.join(MARKER_NAME))? else { return Ok(marker) };
        for (i, offset) in SLOT_OFFSETS.into_iter().enumerate() {
            let slot = bytes.get(offset as usize..).unwrap_or_default();
            let slot = slot.get(..SLOT_BYTES).unwrap_or(slot);
            if slot.iter().all(|b| *b == 0) {
                continue; // never written
            }
            match Slot::decode(slot) {
                None => marker.unreadable = true,
                Some(slot) if slot.tip.epoch > marker.epoch() => {
                    marker.newest = Some(slot);
                    marker.newest_slot = i;
                }
                Some(_) => {}
            }
        }
        Ok(marker)
    }

    /// The file is written in full when it is made, so that no later slot needs space on a full disk.
    fn open_for_writing(dir: &Path) -> Result<File, StoreError> {
        let path = dir.join(MARKER_NAME);
        let open = || -> io::Result<File> {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            let len = SLOT_OFFSETS[1] + SLOT_BYTES as u64;
            let there = file.metadata()?.len();
            if there < len {
                file.write_all_at(&vec![0; (len - there) as usize], there)?;
            }
            Ok(file)
        };
        open().map_err(StoreError::storage("open", &path))
    }

    fn epoch(&self) -> u64 {
        self.newest.map_or(0, |s| s.tip.epoch)
    }

    fn older_slot(&self) -> usize {
        if self.newest.is_some() { 1 - self.newest_slot } else { 0 }
    }
}

impl Slot {
    fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut out = [0; SLOT_BYTES];
        out[0..8].copy_from_slice(&self.tip.epoch.to_le_bytes());
        out[8..16].copy_from_slice(&self.tip.incarnation.to_le_bytes());
        out[16..32].copy_from_slice(&self.tip.checksum.to_le_bytes());
        out[32..40].copy_from_slice(&self.segment_first_epoch.to_le_bytes());
        out[40..48].copy_from_slice(&self.end.to_le_bytes());
        let own = xxh3_128(&out[..48]);
        out[48..].copy_from_slice(&own.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Slot> {
        let (body, own) = bytes.split_at_checked(48)?;
        if own != xxh3_128(body).to_le_bytes() {
            return None;
        }
        let number = |at: usize| Some(u64::from_le_bytes(*body.get(at..)?.first_chunk()?));
        let checksum = u128::from_le_bytes(*body.get(16..)?.first_chunk()?);
        Some(Slot {
            tip: Tip { epoch: number(0)?, incarnation: number(8)?, checksum },
            segment_first_epoch: number(32)?,
            end: number(40)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An epoch's sections: a letter that tells it apart, long enough that a cut can fall anywhere.
    fn body(epoch: u64) -> Vec<u8> {
        format!("epoch {epoch} {}", "x".repeat(epoch as usize % 7)).into_bytes()
    }

    /// A log with epochs `1..=last`, a few records to a segment.
    fn written(dir: &Path, last: u64, segment_bytes_max: u64) -> Vec<RecordRef> {
        let (mut log, _) = open(dir, &[]).unwrap();
        log.segment_bytes_max = segment_bytes_max;
        (1..=last).map(|e| append(&mut log, e).unwrap()).collect()
    }

    fn append(log: &mut EpochLog, epoch: u64) -> Result<RecordRef, StoreError> {
        log.append(1, epoch, &[(Kind::Meta, b"{}"), (Kind::State, &body(epoch))])
    }

    fn open(dir: &Path, evidence: &[Evidence]) -> Result<(EpochLog, Recovery), StoreError> {
        EpochLog::open(dir, evidence, |_, _| Ok(()))
    }

    fn sink(epoch: u64) -> Vec<Evidence> {
        vec![Evidence { who: "sink `table`".to_owned(), epoch }]
    }

    /// Every file with its bytes.
    fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        all.sort();
        all.into_iter().map(|p| (p.clone(), fs::read(p).unwrap())).collect()
    }

    fn restore(dir: &Path, files: &[(PathBuf, Vec<u8>)]) {
        for (path, _) in contents(dir) {
            fs::remove_file(path).unwrap();
        }
        for (path, bytes) in files {
            fs::write(path, bytes).unwrap();
        }
    }

    /// Opening is refused with this place, and has changed nothing.
    #[track_caller]
    fn refused(dir: &Path, evidence: &[Evidence], at: (u64, u64, u64)) -> String {
        let before = contents(dir);
        let error = open(dir, evidence).unwrap_err();
        assert!(contents(dir) == before, "a refusal changed the disk: {error}");
        assert_eq!(error.exit_code(), 5);
        let StoreError::Damaged { file, offset, epoch, hint, .. } = &error else { panic!("{error}") };
        assert_eq!((file.clone(), *offset, *epoch), (segment_path(dir, at.0), at.1, Some(at.2)), "{error}");
        assert!(hint.contains("from a copy"), "{hint}");
        error.to_string()
    }

    fn set_marker(dir: &Path, bytes: &[u8]) {
        fs::write(dir.join(MARKER_NAME), bytes).unwrap();
    }

    #[test]
    fn what_was_appended_comes_back_over_segments() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("pipelines/clicks");
        let refs = written(&dir, 10, 400);
        assert!(list_segments(&dir).unwrap().len() > 2);
        let mut seen = Vec::new();
        let (mut log, recovery) = EpochLog::open(&dir, &sink(10), |record, at| {
            assert_eq!(record.section(Kind::State), Some(&body(at.epoch)[..]));
            seen.push(at);
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, refs);
        let expected = Recovery { first_epoch: 1, last_epoch: 10, last_incarnation: 1, dropped_tail: None };
        assert_eq!(recovery, expected);
        assert_eq!(log.bytes_retained(), refs.iter().map(|r| r.len).sum::<u64>());
        for at in &refs {
            let expected = vec![(Kind::Meta, b"{}".to_vec()), (Kind::State, body(at.epoch))];
            assert_eq!(log.reader().read_sections(at).unwrap(), expected);
        }
        // Epochs may be left out, but neither they nor incarnations go back; a refusal is no failure.
        assert!(append(&mut log, 10).is_err());
        log.append(2, 15, &[]).unwrap();
        assert!(append(&mut log, 16).is_err());
        log.append(2, 16, &[]).unwrap();
        drop(log);
        let (log, recovery) = open(&dir, &[]).unwrap();
        assert_eq!((recovery.last_epoch, recovery.last_incarnation, log.last_epoch()), (16, 2, 16));
    }

    #[test]
    fn read_sections_checks_what_it_reads() {
        let tmp = tempfile::tempdir().unwrap();
        let refs = written(tmp.path(), 3, 4000);
        let (log, _) = open(tmp.path(), &[]).unwrap();
        let path = segment_path(tmp.path(), 1);
        let mut bytes = fs::read(&path).unwrap();
        bytes[refs[1].offset as usize + 70] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(log.read_sections(&refs[0]).is_ok());
        let error = log.read_sections(&refs[1]).unwrap_err();
        assert!(
            matches!(error, StoreError::Damaged { offset, epoch: Some(2), .. } if offset == refs[1].offset)
        );
        let wrong = RecordRef { epoch: 9, ..refs[0] };
        assert!(matches!(log.read_sections(&wrong), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn trim_takes_whole_segments_from_the_front() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        let refs = written(dir, 10, 400);
        let (mut log, _) = open(dir, &[]).unwrap();
        let before = log.bytes_retained();
        let names = list_segments(dir).unwrap();
        log.trim(names[1]).unwrap();
        assert_eq!(list_segments(dir).unwrap(), names[1..], "the second begins with the epoch to keep");
        log.trim(names[2] - 1).unwrap();
        assert_eq!(list_segments(dir).unwrap(), names[1..], "its last epoch is still needed");
        log.trim(u64::MAX).unwrap();
        assert_eq!(list_segments(dir).unwrap(), names[names.len() - 1..], "never the last");
        assert!(log.bytes_retained() < before);
        assert!(log.read_sections(&refs[9]).is_ok());
        append(&mut log, 11).unwrap();
        drop(log);
        let (_, recovery) = open(dir, &sink(11)).unwrap();
        assert_eq!((recovery.first_epoch, recovery.last_epoch), (names[names.len() - 1], 11));
    }

    #[test]
    fn a_torn_tail_is_dropped_only_while_nothing_vouches_for_it() {
        for segment_bytes_max in [4000, 1] {
            let tmp = tempfile::tempdir().unwrap();
            let dir = tmp.path();
            written(dir, 2, segment_bytes_max);
            let marker = fs::read(dir.join(MARKER_NAME)).unwrap();
            let (mut log, _) = open(dir, &[]).unwrap();
            log.segment_bytes_max = segment_bytes_max;
            let last = append(&mut log, 3).unwrap();
            drop(log);
            let (path, offset) = (segment_path(dir, last.segment_first_epoch), last.offset);
            let whole = contents(dir);
            for keep in 0..last.len {
                let place = (last.segment_first_epoch, offset, 3);
                let cut =
                    || OpenOptions::new().write(true).open(&path).unwrap().set_len(offset + keep).unwrap();
                restore(dir, &whole);
                cut();
                // Nothing left of the record: the log just ends before it.
                let place_if_gone =
                    if keep == 0 && offset == 0 { (last.segment_first_epoch, 0, 3) } else { place };
                assert!(refused(dir, &[], place_if_gone).contains(MARKER_NAME));
                set_marker(dir, &marker);
                assert!(refused(dir, &sink(3), place).contains("sink `table`"));
                let (mut log, recovery) = open(dir, &sink(2)).unwrap();
                let dropped = (keep > 0).then(|| DroppedTail { file: path.clone(), offset, bytes: keep });
                assert_eq!((recovery.last_epoch, recovery.dropped_tail), (2, dropped), "kept {keep}");
                // The epoch after the drop may be another one, in another start.
                log.append(2, 4, &[(Kind::Rows, b"again")]).unwrap();
                drop(log);
                let (_, recovery) = open(dir, &sink(4)).unwrap();
                assert_eq!((recovery.last_epoch, recovery.last_incarnation), (4, 2));
            }
        }
    }

    #[test]
    fn a_tail_of_zeros_is_torn_and_a_newer_format_is_not() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        let refs = written(dir, 2, 4000);
        let end = refs[1].offset + refs[1].len;
        let good = contents(dir);
        let with_tail = |tail: &[u8]| {
            restore(dir, &good);
            let file = OpenOptions::new().write(true).open(segment_path(dir, 1)).unwrap();
            file.write_all_at(tail, end).unwrap();
        };
        with_tail(&[0; 4096]);
        let (_, recovery) = open(dir, &[]).unwrap();
        assert_eq!(recovery.dropped_tail.unwrap().bytes, 4096);
        with_tail(b"TMEP\x02\x00 of another version");
        assert!(refused(dir, &[], (1, end, 3)).contains("format 2"));
        with_tail(&[0; 10]);
        let mut marker = fs::read(dir.join(MARKER_NAME)).unwrap();
        marker[0] ^= 1; // the slot of epoch 1: might have been one of epoch 3
        set_marker(dir, &marker);
        assert!(refused(dir, &[], (1, end, 3)).contains(MARKER_NAME));
    }

    #[test]
    fn a_record_written_in_full_is_committed_though_the_marker_lags() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        written(dir, 2, 4000);
        let marker = fs::read(dir.join(MARKER_NAME)).unwrap();
        let (mut log, _) = open(dir, &[]).unwrap();
        append(&mut log, 3).unwrap();
        drop(log);
        let segment = fs::read(segment_path(dir, 1)).unwrap();
        for old in [marker, Vec::new()] {
            set_marker(dir, &old);
            let (_, recovery) = open(dir, &[]).unwrap();
            assert_eq!((recovery.last_epoch, recovery.dropped_tail), (3, None));
            assert_eq!(fs::read(segment_path(dir, 1)).unwrap(), segment, "written again, the same bytes");
        }
    }

    #[test]
    fn every_flipped_bit_of_a_committed_record_is_refused_with_its_place() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        let refs = written(dir, 6, 400);
        let good = contents(dir);
        // The last one, one in the middle of a segment, and the first of a segment.
        let first = refs.iter().position(|r| r.epoch > 1 && r.offset == 0).unwrap();
        for at in [refs[5], refs[1], refs[first]] {
            let path = segment_path(dir, at.segment_first_epoch);
            let bytes = fs::read(&path).unwrap();
            for bit in at.offset * 8..(at.offset + at.len) * 8 {
                let mut bad = bytes.clone();
                bad[bit as usize / 8] ^= 1 << (bit % 8);
                fs::write(&path, bad).unwrap();
                refused(dir, &[], (at.segment_first_epoch, at.offset, at.epoch));
            }
            restore(dir, &good);
        }
        open(dir, &sink(6)).unwrap();
    }

    #[test]
    fn a_sound_record_after_the_damage_proves_the_commit_without_a_marker() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        let refs = written(dir, 3, 4000);
        let path = segment_path(dir, 1);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(dir.join(MARKER_NAME)).unwrap();
        for bit in refs[1].offset * 8..(refs[1].offset + refs[1].len) * 8 {
            let mut bad = bytes.clone();
            bad[bit as usize / 8] ^= 1 << (bit % 8);
            fs::write(&path, bad).unwrap();
            let text = refused(dir, &[], (1, refs[1].offset, 2));
            assert!(text.contains("epoch 3 stands") || text.contains("format"), "{text}");
        }
        // The same record torn, with nothing behind it, is nobody's.
        fs::write(&path, &bytes[..refs[2].offset as usize - 1]).unwrap();
        assert_eq!(open(dir, &[]).unwrap().1.last_epoch, 1);
    }

    #[test]
    fn missing_segments_are_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        let refs = written(dir, 10, 400);
        let good = contents(dir);
        let names = list_segments(dir).unwrap();
        let n = names.len();
        let before_last = refs.iter().rfind(|r| r.segment_first_epoch == names[n - 2]).unwrap();
        let end = before_last.offset + before_last.len;
        let remove = |name: u64| {
            restore(dir, &good);
            fs::remove_file(segment_path(dir, name)).unwrap();
        };

        remove(names[n - 1]);
        let place = (names[n - 2], end, before_last.epoch + 1);
        let gone = (names[n - 1], 0, before_last.epoch + 1);
        assert!(refused(dir, &[], gone).contains("COMMITTED vouches for epoch 10"));
        // Marker gone too: an older copy of the directory. The sink knows better.
        fs::remove_file(dir.join(MARKER_NAME)).unwrap();
        assert!(refused(dir, &sink(10), place).contains("sink `table` has confirmed epoch 10"));
        assert_eq!(open(dir, &sink(before_last.epoch)).unwrap().1.last_epoch, before_last.epoch);

        remove(names[1]);
        assert!(refused(dir, &[], (names[2], 0, names[2])).contains("does not follow"));

        restore(dir, &good);
        fs::write(segment_path(dir, names[1]), b"").unwrap();
        refused(dir, &[], (names[1], 0, names[1]));

        restore(dir, &good);
        fs::rename(segment_path(dir, names[0]), segment_path(dir, names[0] + 1)).unwrap();
        refused(dir, &[], (names[0] + 1, 0, names[0] + 1));
    }

    #[test]
    fn evidence_without_any_log_is_refused_and_creates_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("pipelines/clicks");
        assert!(matches!(open(&dir, &sink(4)), Err(StoreError::Damaged { .. })));
        assert!(!tmp.path().join("pipelines").exists());
    }

    #[test]
    fn a_log_from_another_branch_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
        written(&a, 3, 4000);
        let (mut log, _) = open(&b, &[]).unwrap();
        let at = log.append(1, 1, &[]).unwrap();
        let second = log.append(1, 2, &[]).unwrap();
        let third = log.append(1, 3, &[]).unwrap();
        drop(log);
        // The marker of one log beside the segment of another.
        fs::copy(a.join(MARKER_NAME), b.join(MARKER_NAME)).unwrap();
        refused(&b, &[], (1, third.offset, 3));
        // A record exchanged for one of another log.
        let mut mixed = fs::read(segment_path(&a, 1)).unwrap();
        let first_of_a = record::decode(&mixed).unwrap().len;
        let other = fs::read(segment_path(&b, 1)).unwrap();
        mixed.truncate(first_of_a);
        mixed.extend_from_slice(&other[second.offset as usize..third.offset as usize]);
        fs::write(segment_path(&a, 1), &mixed).unwrap();
        fs::remove_file(a.join(MARKER_NAME)).unwrap();
        assert!(refused(&a, &[], (1, first_of_a as u64, 2)).contains("does not follow"));
        assert_eq!(at.offset, 0);
    }

    #[test]
    fn a_full_disk_stops_the_log_for_good() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        written(dir, 2, 4000);
        let (mut log, _) = open(dir, &[]).unwrap();
        let healthy = log.active.replace(OpenOptions::new().write(true).open("/dev/full").unwrap());
        let error = append(&mut log, 3).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        let StoreError::Storage { file, epoch: Some(3), source, .. } = &error else { panic!("{error}") };
        assert_eq!(*file, segment_path(dir, 1));
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        // There is space again, but the log has given up.
        log.active = healthy;
        let before = contents(dir);
        assert!(append(&mut log, 3).unwrap_err().to_string().contains("start again"));
        assert!(log.trim(2).is_err());
        assert!(contents(dir) == before);
        drop(log);
        assert_eq!(open(dir, &sink(2)).unwrap().1.last_epoch, 2);
    }

    #[test]
    fn a_visitor_can_stop_the_opening() {
        let tmp = tempfile::tempdir().unwrap();
        written(tmp.path(), 3, 4000);
        let stopped = EpochLog::open(tmp.path(), &[], |_, at| match at.epoch {
            2 => Err(damaged(tmp.path(), 0, 2, 1, "state of another pipeline")),
            _ => Ok(()),
        });
        assert!(stopped.unwrap_err().to_string().contains("another pipeline"));
    }

    #[test]
    fn destroy_leaves_nothing_and_may_be_repeated() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("pipelines/clicks");
        destroy(&dir).unwrap();
        written(&dir, 3, 4000);
        destroy(&dir).unwrap();
        destroy(&dir).unwrap();
        assert_eq!(fs::read_dir(tmp.path().join("pipelines")).unwrap().count(), 0);
        assert_eq!(open(&dir, &[]).unwrap().1, Recovery::default());
    }

    /// A slot of COMMITTED in format 1, frozen.
    #[test]
    fn a_slot_survives_its_own_bytes_only() {
        let tip = Tip { epoch: 7, incarnation: 2, checksum: 0xabcd };
        let slot = Slot { tip, segment_first_epoch: 5, end: 300 };
        let bytes = slot.encode();
        let back = Slot::decode(&bytes).unwrap();
        assert_eq!((back.tip.epoch, back.tip.incarnation, back.tip.checksum), (7, 2, 0xabcd));
        assert_eq!((back.segment_first_epoch, back.end), (5, 300));
        for bit in 0..SLOT_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Slot::decode(&bad).is_none(), "bit {bit}");
        }
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "07000000000000000200000000000000cdab000000000000000000000000000005000000000000002c010000000000002327a1a9c5347b72f0329b1f7eae5fbb"
        );
    }
}
