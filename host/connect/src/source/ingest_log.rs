//! The ingest log: records of sources that cannot be read again in the same order (HTTP, Pub/Sub), kept until an
//! epoch has them (SEMANTICS 8). A record is acknowledged once it is durable here, and read from here.
//!
//! A log is a folder of segments, named by the offset of their first byte. Offsets count the bytes of all segments
//! ever written, so that a record's offset is its position for good.
//!
//! ```text
//! segment:  magic "TMIL" | version u16 | 0 u16 | offset of the first frame u64
//! frame:    length u32 | checksum u32 (XXH3 over the record, seeded with the frame's offset) | the record
//! ```
//!
//! One thread writes: it takes what is waiting, appends it, syncs once, and answers all of it. A write or sync that
//! failed is never tried again: every answer from then on is an error, and so is the next read, which ends the process.
//! Invariants: nothing is read beyond what is durable; a torn frame at the very end was never acknowledged and is cut; one
//! with a sound frame behind it is damage.

use super::{Block, Partition, Read, Span};
use crate::ConnectError;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const MAGIC: [u8; 4] = *b"TMIL";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
const FRAME_HEAD_BYTES: usize = 8;
/// A record is one event: 1 MiB is far beyond any that a client means.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// A segment is closed when it has grown beyond this, and deleted when epochs have all of it.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Or beyond this part of what may be kept: the last segment stays, and must leave room for more.
const SEGMENT_SHARE: u64 = 4;
/// Appends waiting for the writer: with one sync each for all of them, more would only wait longer.
const QUEUE_MAX: usize = 1024;
/// Bytes written between two syncs.
const GROUP_BYTES: usize = 8 << 20;
/// About as much as other partitions read at once.
const BLOCK_BYTES: usize = 256 << 10;

/// Why an append was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// Too much is waiting: try again a little later.
    #[error("the ingest log is full")]
    Full,
    /// It has failed, and the process is about to end.
    #[error("the ingest log has failed: {0}")]
    Failed(String),
}

/// Told once the records are durable, or will never be.
pub type Done = Box<dyn FnOnce(Result<(), Refused>) + Send>;

struct Append {
    records: Vec<Vec<u8>>,
    done: Done,
}

struct Shared {
    dir: PathBuf,
    /// All before this offset is durable.
    durable: AtomicU64,
    /// Segments by the offset of their first frame.
    segments: Mutex<BTreeMap<u64, PathBuf>>,
    /// Bytes that may be kept for readers.
    kept_bytes_max: u64,
    failed: AtomicBool,
    why: Mutex<String>,
}

impl Shared {
    fn segments(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, PathBuf>> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn fail(&self, what: &io::Error) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = what.to_string();
        self.failed.store(true, Ordering::Release);
    }
    fn failure(&self) -> Option<String> {
        let failed = self.failed.load(Ordering::Acquire);
        failed.then(|| self.why.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
    fn first(&self) -> u64 {
        self.segments().keys().next().copied().unwrap_or(0)
    }
}

/// The writing side. Dropping it ends the thread after what is waiting.
pub struct IngestLog {
    shared: Arc<Shared>,
    queue: Option<Sender<Append>>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for IngestLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IngestLog").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

impl IngestLog {
    /// Opens the log in a folder, or begins one. `read_from` is the least offset that epochs have read up to, if any has: what
    /// is before it is no longer needed, and nothing may be missing behind. At most `kept_bytes_max` are kept for readers.
    ///
    /// # Errors
    /// `Storage` if the folder cannot be used or the log is damaged.
    pub fn open(dir: &Path, read_from: Option<u64>, kept_bytes_max: u64) -> Result<IngestLog, ConnectError> {
        let failed = |e: io::Error| ConnectError::Storage(format!("ingest log {}: {e}", dir.display()));
        fs::create_dir_all(dir).map_err(failed)?;
        let mut segments = list(dir).map_err(failed)?;
        let end = match segments.last_key_value() {
            Some((first, path)) => mend_tail(*first, path)?,
            None => {
                let first = read_from.unwrap_or(0);
                segments.insert(first, begin_segment(dir, first).map_err(failed)?.1);
                first
            }
        };
        check_chain(&segments, dir)?;
        let first = segments.keys().next().copied().unwrap_or(0);
        if let Some(read_from) = read_from.filter(|r| !(first..=end).contains(r)) {
            return Err(ConnectError::Storage(format!(
                "ingest log {}: it holds offsets {first} to {end}, but the last epoch has read up to {read_from}: records that \
                 were acknowledged are missing. Put the newest copy of the folder back, or start over with --fresh.",
                dir.display()
            )));
        }
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            durable: AtomicU64::new(end),
            segments: Mutex::new(segments),
            kept_bytes_max,
            failed: AtomicBool::new(false),
            why: Mutex::new(String::new()),
        });
        let (queue, appends) = bounded(QUEUE_MAX);
        let mut writer = Writer::open(shared.clone(), end).map_err(failed)?;
        let thread = thread::Builder::new()
            .name("ingest-log".into())
            .spawn(move || writer.run(&appends))
            .map_err(failed)?;
        Ok(IngestLog { shared, queue: Some(queue), thread: Some(thread) })
    }

    /// Appends records, all or none; `done` is told once they are durable, from the writer's thread.
    ///
    /// # Errors
    /// If they were not taken; then `done` is never called.
    pub fn append(&self, records: Vec<Vec<u8>>, done: Done) -> Result<(), Refused> {
        if let Some(why) = self.shared.failure() {
            return Err(Refused::Failed(why));
        }
        if self.is_full() {
            return Err(Refused::Full);
        }
        let Some(queue) = &self.queue else { return Err(Refused::Full) };
        queue.try_send(Append { records, done }).map_err(|e| match e {
            TrySendError::Full(_) => Refused::Full,
            TrySendError::Disconnected(_) => Refused::Failed(self.shared.failure().unwrap_or_default()),
        })
    }

    /// Whether as much is kept as may be.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.kept_bytes() >= self.shared.kept_bytes_max
    }

    /// Bytes kept, read or not.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire).saturating_sub(self.shared.first())
    }

    /// The offset of the first record that is kept.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.shared.first()
    }

    /// All before this offset is durable.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire)
    }

    /// What stands from an offset on, for a copy that is kept elsewhere: whole frames of one segment that are durable, in at most so
    /// many bytes; one at least, if there is one. [`graft`] puts them into a log again.
    ///
    /// # Errors
    /// `Storage` if it cannot be read, or was deleted.
    pub fn copy(&self, offset: u64, bytes_max: u64) -> Result<Vec<u8>, ConnectError> {
        self.reader(offset).copy(bytes_max)
    }

    /// A reader that begins at an offset.
    #[must_use]
    pub fn reader(&self, offset: u64) -> IngestPartition {
        IngestPartition { shared: self.shared.clone(), offset, file: None }
    }

    /// What is needed to delete what epochs have.
    #[must_use]
    pub fn trimmer(&self) -> Trimmer {
        Trimmer(self.shared.clone())
    }
}

impl Drop for IngestLog {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // It has answered everything; a panic in an answer is that one's.
            let _ = thread.join();
        }
    }
}

/// Deletes segments that nobody needs any more.
#[derive(Clone)]
pub struct Trimmer(Arc<Shared>);

impl std::fmt::Debug for Trimmer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Trimmer").field(&self.0.dir).finish()
    }
}

impl Trimmer {
    /// Deletes whole segments before `offset`, which a durable epoch has read up to.
    ///
    /// # Errors
    /// `Storage` if one cannot be deleted.
    pub fn trim(&self, offset: u64) -> Result<(), ConnectError> {
        let mut segments = self.0.segments();
        let starts: Vec<u64> = segments.keys().copied().collect();
        for pair in starts.windows(2) {
            let [start, next] = pair else { break };
            if *next > offset {
                break;
            }
            if let Some(path) = segments.remove(start) {
                fs::remove_file(&path).map_err(|e| {
                    ConnectError::Storage(format!("{}: cannot be deleted: {e}", path.display()))
                })?;
            }
        }
        Ok(())
    }
}

/// The log beside the process that writes it, for a copy: what was there when it began, and what has come since.
///
/// Files that are open can be read when their names are gone, so nothing has to wait. A record that is not durable yet may be
/// in the copy; there it is one that was never acknowledged.
#[derive(Debug)]
pub struct Capture {
    dir: PathBuf,
    segments: BTreeMap<u64, (String, File)>,
}

impl Capture {
    /// Holds on to what is in the folder now.
    ///
    /// # Errors
    /// `Storage` if it cannot be read.
    pub fn begin(dir: &Path) -> Result<Capture, ConnectError> {
        let mut capture = Capture { dir: dir.to_owned(), segments: BTreeMap::new() };
        capture.go_on()?;
        Ok(capture)
    }

    /// Takes in what has come since.
    ///
    /// # Errors
    /// `Storage` if it cannot be read.
    pub fn go_on(&mut self) -> Result<(), ConnectError> {
        let failed = |e: io::Error| ConnectError::Storage(format!("ingest log {}: {e}", self.dir.display()));
        if !self.dir.is_dir() {
            return Ok(());
        }
        for (first, path) in list(&self.dir).map_err(failed)? {
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
            match File::open(&path) {
                Ok(file) => {
                    self.segments.entry(first).or_insert_with(|| (name.to_owned(), file));
                }
                // Nobody needs it any more.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(())
    }

    /// The segments, oldest first: the name of each and what is in it by now.
    ///
    /// # Errors
    /// `Storage` if one cannot be read.
    pub fn read(&self) -> impl Iterator<Item = Result<(&str, Vec<u8>), ConnectError>> {
        self.segments.values().map(|(name, file)| {
            let mut bytes = Vec::new();
            let mut file = file;
            file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).map_err(|e| {
                ConnectError::Storage(format!("ingest log {}/{name}: {e}", self.dir.display()))
            })?;
            Ok((name.as_str(), bytes))
        })
    }
}

/// Puts frames that a copy was kept of behind what stands in the log of a folder, which nobody has open; what the log has is passed
/// over. `offset` is that of the first of their bytes.
///
/// # Errors
/// `Storage` if something is missing between, or the disk fails.
pub fn graft(dir: &Path, offset: u64, frames: &[u8]) -> Result<(), ConnectError> {
    let failed = |e: io::Error| ConnectError::Storage(format!("ingest log {}: {e}", dir.display()));
    fs::create_dir_all(dir).map_err(failed)?;
    let (end, path) = match list(dir).map_err(failed)?.pop_last() {
        Some((first, path)) => (mend_tail(first, &path)?, path),
        None => (offset, begin_segment(dir, offset).map_err(failed)?.1),
    };
    if offset > end {
        let what =
            format!("what was kept of it elsewhere begins at offset {offset}, and the log ends at {end}");
        return Err(damaged(&path, end, &what));
    }
    let known = usize::try_from(end - offset).unwrap_or(usize::MAX);
    let Some(new) = frames.get(known..).filter(|new| !new.is_empty()) else { return Ok(()) };
    let append = || {
        let mut file = OpenOptions::new().append(true).open(&path)?;
        file.write_all(new)?;
        file.sync_all()
    };
    append().map_err(failed)
}

struct Writer {
    shared: Arc<Shared>,
    file: File,
    /// Of the next frame.
    offset: u64,
    /// Of the segment's first.
    first: u64,
    buffer: Vec<u8>,
}

impl Writer {
    fn open(shared: Arc<Shared>, offset: u64) -> io::Result<Writer> {
        let last = shared.segments().last_key_value().map(|(first, path)| (*first, path.clone()));
        let (first, path) = last.ok_or_else(|| io::Error::other("no segment"))?;
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Writer { shared, file, offset, first, buffer: Vec::new() })
    }

    fn run(&mut self, appends: &Receiver<Append>) {
        while let Ok(append) = appends.recv() {
            let mut answers = Vec::new();
            self.buffer.clear();
            self.take(append, &mut answers);
            while self.buffer.len() < GROUP_BYTES
                && let Ok(append) = appends.try_recv()
            {
                self.take(append, &mut answers);
            }
            let written = match self.shared.failure() {
                Some(why) => Err(why),
                None => self.write().map_err(|e| {
                    self.shared.fail(&e);
                    e.to_string()
                }),
            };
            for done in answers {
                done(written.clone().map_err(Refused::Failed));
            }
        }
    }

    fn take(&mut self, append: Append, answers: &mut Vec<Done>) {
        for record in &append.records {
            let offset = self.offset + self.buffer.len() as u64;
            push_frame(&mut self.buffer, offset, record);
        }
        answers.push(append.done);
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.file.sync_data()?;
        self.offset += self.buffer.len() as u64;
        self.shared.durable.store(self.offset, Ordering::Release);
        if self.offset - self.first > SEGMENT_BYTES.min(self.shared.kept_bytes_max / SEGMENT_SHARE) {
            let (file, path) = begin_segment(&self.shared.dir, self.offset)?;
            (self.file, self.first) = (file, self.offset);
            self.shared.segments().insert(self.offset, path);
        }
        Ok(())
    }
}

fn push_frame(out: &mut Vec<u8>, offset: u64, record: &[u8]) {
    out.extend_from_slice(&(record.len() as u32).to_le_bytes());
    out.extend_from_slice(&checksum(record, offset).to_le_bytes());
    out.extend_from_slice(record);
}

fn checksum(record: &[u8], offset: u64) -> u32 {
    // An empty stretch of zeros must not look like an empty record.
    (xxh3_64_with_seed(record, offset) as u32) | 1
}

/// A frame at the start of `bytes`: the record's length, if it is whole and sound.
fn sound_frame(bytes: &[u8], offset: u64) -> Option<usize> {
    let head = bytes.get(..FRAME_HEAD_BYTES)?;
    let len = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    if len > RECORD_BYTES_MAX {
        return None;
    }
    let sum = u32::from_le_bytes(head[4..].try_into().ok()?);
    let record = bytes.get(FRAME_HEAD_BYTES..FRAME_HEAD_BYTES.checked_add(len)?)?;
    (sum == checksum(record, offset)).then_some(len)
}

fn list(dir: &Path) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut segments = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".log"));
        if let Some(first) = name.and_then(|n| n.parse().ok()) {
            segments.insert(first, path);
        }
    }
    Ok(segments)
}

/// Makes a segment; it is in its folder for good before anything is written to it.
fn begin_segment(dir: &Path, first: u64) -> io::Result<(File, PathBuf)> {
    let path = dir.join(format!("{first:020}.log"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&[0; 2]);
    header.extend_from_slice(&first.to_le_bytes());
    file.write_all(&header)?;
    file.sync_all()?;
    File::open(dir)?.sync_all()?;
    Ok((file, path))
}

fn damaged(path: &Path, at: u64, what: &str) -> ConnectError {
    ConnectError::Storage(format!(
        "{} at byte {at}: {what}. Records that were acknowledged may be lost: put a copy of the file back, or start over \
         with --fresh.",
        path.display()
    ))
}

/// The offset behind the last sound frame of the last segment. A torn one behind it is cut off.
fn mend_tail(first: u64, path: &Path) -> Result<u64, ConnectError> {
    let failed = |e: io::Error| ConnectError::Storage(format!("{}: {e}", path.display()));
    let bytes = fs::read(path).map_err(failed)?;
    if bytes.len() < HEADER_BYTES {
        // Made, and the process ended before the header was durable: nothing can be in it.
        let dir = path.parent().unwrap_or(Path::new("."));
        begin_segment(dir, first).map_err(failed)?;
        return Ok(first);
    }
    check_header(first, path, &bytes)?;
    let mut at = HEADER_BYTES;
    while at < bytes.len() {
        let offset = first + (at - HEADER_BYTES) as u64;
        match sound_frame(&bytes[at..], offset) {
            Some(len) => at += FRAME_HEAD_BYTES + len,
            None => {
                let later = (at + 1..bytes.len()).any(|i| {
                    let offset = first + (i - HEADER_BYTES) as u64;
                    sound_frame(&bytes[i..], offset).is_some()
                });
                if later {
                    return Err(damaged(
                        path,
                        at as u64,
                        "a record is damaged, and sound ones stand behind it",
                    ));
                }
                let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
                file.set_len(at as u64).map_err(failed)?;
                file.sync_all().map_err(failed)?;
                break;
            }
        }
    }
    Ok(first + (at - HEADER_BYTES) as u64)
}

fn check_header(first: u64, path: &Path, bytes: &[u8]) -> Result<(), ConnectError> {
    let sound = bytes.get(..4) == Some(&MAGIC) && bytes.get(8..16) == Some(&first.to_le_bytes());
    match bytes.get(4..6) {
        Some(version) if sound && version == VERSION.to_le_bytes() => Ok(()),
        Some(_) if sound => Err(damaged(path, 4, "another version of tidemill wrote it")),
        _ => Err(damaged(path, 0, "it is no segment of an ingest log")),
    }
}

/// Each segment ends where the next begins.
fn check_chain(segments: &BTreeMap<u64, PathBuf>, dir: &Path) -> Result<(), ConnectError> {
    let all: Vec<(&u64, &PathBuf)> = segments.iter().collect();
    for pair in all.windows(2) {
        let [(first, path), (next, _)] = pair else { break };
        let len = fs::metadata(path).map_err(|e| damaged(path, 0, &e.to_string()))?.len();
        let end = *first + len.saturating_sub(HEADER_BYTES as u64);
        if end != **next {
            let what = format!(
                "it ends at offset {end}, and the next segment in {} begins at {next}",
                dir.display()
            );
            return Err(damaged(path, len, &what));
        }
    }
    Ok(())
}

/// The reading side: a live partition that never ends.
pub struct IngestPartition {
    shared: Arc<Shared>,
    offset: u64,
    /// The segment at hand: first offset, file.
    file: Option<(u64, File)>,
}

impl IngestPartition {
    /// Bytes that are durable and not yet read.
    #[must_use]
    pub fn backlog_bytes(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire).saturating_sub(self.offset)
    }

    /// The segment that has the offset, and where it ends if another follows.
    fn segment(&self) -> Option<(u64, PathBuf, Option<u64>)> {
        let segments = self.shared.segments();
        let (first, path) = segments.range(..=self.offset).next_back()?;
        let next = segments.range(self.offset + 1..).next().map(|(next, _)| *next);
        Some((*first, path.clone(), next))
    }

    fn copy(&self, bytes_max: u64) -> Result<Vec<u8>, ConnectError> {
        let durable = self.shared.durable.load(Ordering::Acquire);
        let Some((first, path, next)) = self.segment() else {
            let what = format!("no segment holds offset {}", self.offset);
            return Err(damaged(&self.shared.dir, 0, &what));
        };
        let end = next.unwrap_or(durable).min(durable);
        let one = (RECORD_BYTES_MAX + FRAME_HEAD_BYTES) as u64;
        let mut bytes = vec![0; end.saturating_sub(self.offset).min(bytes_max.max(one)) as usize];
        let at = self.offset - first + HEADER_BYTES as u64;
        File::open(&path)
            .and_then(|mut file| file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes)))
            .map_err(|e| ConnectError::Storage(format!("{}: {e}", path.display())))?;
        let mut whole = 0;
        while let Some(len) = sound_frame(&bytes[whole..], self.offset + whole as u64) {
            whole += FRAME_HEAD_BYTES + len;
        }
        if whole == 0 && !bytes.is_empty() {
            return Err(damaged(&path, at, "a record is damaged"));
        }
        bytes.truncate(whole);
        Ok(bytes)
    }

    fn fill(&mut self, block: &mut Block) -> Result<(), ConnectError> {
        let durable = self.shared.durable.load(Ordering::Acquire);
        let Some((first, path, next)) = self.segment() else {
            let what = format!("no segment holds offset {}", self.offset);
            return Err(damaged(&self.shared.dir, 0, &what));
        };
        let failed = |e: io::Error| ConnectError::Storage(format!("{}: {e}", path.display()));
        let at = self.offset - first + HEADER_BYTES as u64;
        let file = match &mut self.file {
            Some((of, file)) if *of == first => file,
            other => &mut other.insert((first, File::open(&path).map_err(failed)?)).1,
        };
        file.seek(SeekFrom::Start(at)).map_err(failed)?;
        let end = next.unwrap_or(durable).min(durable);
        // A frame that begins within the first `BLOCK_BYTES` is whole: what is durable ends with a frame.
        let wanted = (end - self.offset).min((BLOCK_BYTES + RECORD_BYTES_MAX + FRAME_HEAD_BYTES) as u64);
        block.bytes.resize(wanted as usize, 0);
        file.read_exact(&mut block.bytes).map_err(failed)?;
        let mut read = 0;
        while read < block.bytes.len() && read < BLOCK_BYTES {
            let offset = self.offset + read as u64;
            let Some(len) = sound_frame(&block.bytes[read..], offset) else {
                return Err(damaged(&path, at + read as u64, "a record is damaged"));
            };
            let start = read + FRAME_HEAD_BYTES;
            block.spans.push(Span { at: start as u32, len: len as u32, offset, size: len as u64 });
            read = start + len;
        }
        block.bytes.truncate(read);
        self.offset += read as u64;
        block.next_offset = self.offset;
        Ok(())
    }
}

impl Partition for IngestPartition {
    fn read(&mut self, block: &mut Block) -> Result<Read, ConnectError> {
        if let Some(why) = self.shared.failure() {
            let dir = self.shared.dir.display();
            return Err(ConnectError::Storage(format!("ingest log {dir}: {why}")));
        }
        if self.backlog_bytes() == 0 {
            return Ok(Read::Pending);
        }
        self.fill(block)?;
        Ok(Read::Data)
    }
    fn header(&self) -> Option<&[u8]> {
        None
    }
}

#[cfg(test)]
#[path = "ingest_log_tests.rs"]
mod tests;
