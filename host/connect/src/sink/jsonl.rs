//! A file of JSON lines: session revisions, or dead letters as they stand in the epoch.
//!
//! Invariants: after `deliver` the file is exactly as long as the cursor says and durable; `open` cuts it back
//! to the stored cursor, so what a crash left behind vanishes and no line is there twice. One process at a time
//! appends (an exclusive lock, held as long as the sink is open). A write or sync that fails closes the sink:
//! nobody knows what is on the disk then, and only a new `open` may find out.

use super::{Sink, TakenBack, line};
use crate::{ConnectError, Cursor};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use tidemill_engine::outbox::{Outbox, Stages};

/// How far from its end a file is searched for its last line: well above a key, escaped, and a row's fields.
const LINE_BYTES_MAX: u64 = 4 << 20;

enum Kind {
    /// Whose they are, and which.
    Sessions(String, Stages),
    Letters,
}

/// Appends JSON lines to a file and keeps its length in the cursor.
pub struct JsonlSink {
    path: PathBuf,
    kind: Kind,
    /// `None` before `open` and after a failure.
    file: Option<File>,
    cursor: Cursor,
    buf: Vec<u8>,
}

impl JsonlSink {
    /// A file of a pipeline's session revisions with these stages; the names are those of the SQLite table.
    #[must_use]
    pub fn sessions(path: PathBuf, pipeline: String, stages: Stages) -> JsonlSink {
        JsonlSink::new(path, Kind::Sessions(pipeline, stages))
    }

    /// A file of dead letters, byte for byte as the epoch holds them.
    #[must_use]
    pub fn letters(path: PathBuf) -> JsonlSink {
        JsonlSink::new(path, Kind::Letters)
    }

    fn new(path: PathBuf, kind: Kind) -> JsonlSink {
        JsonlSink { path, kind, file: None, cursor: Cursor::default(), buf: Vec::new() }
    }

    /// Cuts the locked file back to the cursor, or says why the two contradict each other.
    fn cut_back(&self, file: &File, stored: Option<Cursor>) -> Result<(), ConnectError> {
        let length = file.metadata().map_err(|e| storage(&self.path, "read the length of", &e))?.len();
        match stored {
            None if length > 0 => Err(foreign(&self.path, length)),
            Some(c) if c.length > length => Err(too_short(&self.path, length, c)),
            Some(c) if c.length < length => file
                .set_len(c.length)
                .and_then(|()| file.sync_all())
                .map_err(|e| storage(&self.path, "cut back", &e)),
            _ => Ok(()),
        }
    }

    /// Whether the path still leads to our file and nobody else changed its length: rows appended to a file that
    /// was rotated away would be lost without a word. Costs two system calls an epoch that has rows.
    fn check_untouched(&self, file: &File) -> Result<(), ConnectError> {
        let ours = file.metadata().map_err(|e| storage(&self.path, "read the length of", &e))?;
        let path = self.path.display();
        let there = std::fs::metadata(&self.path).ok();
        if there.is_none_or(|m| (m.dev(), m.ino()) != (ours.dev(), ours.ino())) {
            return Err(ConnectError::Conflict(format!(
                "{path} was moved, replaced or deleted while tidemill was writing to it; put it back and start again"
            )));
        }
        if ours.len() != self.cursor.length {
            return Err(ConnectError::Conflict(format!(
                "{path} was changed by another program while tidemill was writing to it: {} bytes, expected {} after \
                 epoch {}",
                ours.len(),
                self.cursor.length,
                self.cursor.epoch
            )));
        }
        Ok(())
    }

    fn append(&mut self, mut file: &File, outbox: &Outbox<'_>) -> Result<u64, ConnectError> {
        let path = &self.path;
        let written = match &self.kind {
            Kind::Sessions(pipeline, stages) => {
                line::each_block(outbox, pipeline, *stages, &mut self.buf, |b| file.write_all(b))
            }
            Kind::Letters => file.write_all(outbox.letters()).map(|()| outbox.letters().len() as u64),
        }
        .map_err(|e| storage(path, "write to", &e))?;
        file.sync_data().map_err(|e| storage(path, "sync", &e))?;
        Ok(written)
    }

    fn has_work(&self, outbox: &Outbox<'_>) -> bool {
        match &self.kind {
            Kind::Sessions(_, stages) => outbox.sessions(*stages).next().is_some(),
            Kind::Letters => !outbox.letters().is_empty(),
        }
    }
}

impl Sink for JsonlSink {
    fn open(&mut self, _: u64, stored: Option<Cursor>) -> Result<Option<Cursor>, ConnectError> {
        // Ours from an earlier open would hold the lock against us.
        self.file = None;
        let file = match open_existing(&self.path)? {
            Some(file) => file,
            // Not created before this is known: an empty file would hide that the rows are gone.
            None => match stored {
                Some(c) if c.length > 0 => return Err(too_short(&self.path, 0, c)),
                _ => create(&self.path)?,
            },
        };
        self.cut_back(&file, stored)?;
        self.cursor = stored.unwrap_or_default();
        self.file = Some(file);
        Ok(stored)
    }

    fn witness(&self) -> Result<Option<u64>, ConnectError> {
        match &self.kind {
            Kind::Sessions(..) => last_epoch(&self.path).map_err(|e| unusable(&self.path, &e)),
            // Letters do not name their epoch.
            Kind::Letters => Ok(None),
        }
    }

    fn is_ours(&self, stored: Option<Cursor>) -> Result<(), ConnectError> {
        let length = match std::fs::metadata(&self.path) {
            Ok(m) => m.len(),
            Err(e) if e.kind() == ErrorKind::NotFound => 0,
            Err(e) => return Err(unusable(&self.path, &e)),
        };
        match stored {
            // Nothing is there to be lost.
            _ if length == 0 => Ok(()),
            None => Err(foreign(&self.path, length)),
            Some(c) if c.length > length => Err(too_short(&self.path, length, c)),
            Some(_) => Ok(()),
        }
    }

    fn probe(&self, stored: Option<Cursor>) -> Result<(), ConnectError> {
        match std::fs::metadata(&self.path) {
            Ok(m) if !m.is_file() => return Err(not_a_file(&self.path)),
            Ok(_) => {}
            Err(_) => {
                if let Some(c) = stored.filter(|c| c.length > 0) {
                    return Err(too_short(&self.path, 0, c));
                }
            }
        }
        self.is_ours(stored)
    }

    fn take_back(
        &mut self,
        incarnation: u64,
        cut: u64,
        stored: Option<Cursor>,
    ) -> Result<TakenBack, ConnectError> {
        let before = std::fs::metadata(&self.path).map_or(0, |m| m.len());
        // A file that the pipeline did not have at the cut holds only what came after it.
        let cursor = stored.unwrap_or(Cursor { epoch: cut, length: 0 });
        self.open(incarnation, Some(cursor))?;
        Ok(TakenBack::Cut(before.saturating_sub(cursor.length)))
    }

    fn deliver(&mut self, outbox: &Outbox<'_>) -> Result<Cursor, ConnectError> {
        let Some(file) = self.file.take() else {
            return Err(ConnectError::Storage(format!(
                "{} is not open, or failed before",
                self.path.display()
            )));
        };
        if outbox.epoch > self.cursor.epoch {
            if self.has_work(outbox) {
                self.check_untouched(&file)?;
                self.cursor.length += self.append(&file, outbox)?;
            }
            self.cursor.epoch = outbox.epoch;
        }
        self.file = Some(file);
        Ok(self.cursor)
    }

    fn delete_all(&mut self) -> Result<(), ConnectError> {
        let file = match self.file.take() {
            Some(file) => Some(file),
            None => open_existing(&self.path)?,
        };
        if let Some(file) = file {
            file.set_len(0).and_then(|()| file.sync_all()).map_err(|e| storage(&self.path, "empty", &e))?;
            self.file = Some(file);
        }
        self.cursor = Cursor::default();
        Ok(())
    }
}

/// The epoch in the last whole line; `None` if there is none, or if it is not one that this sink writes.
fn last_epoch(path: &Path) -> io::Result<Option<u64>> {
    let file = match File::open(path) {
        Ok(file) if file.metadata()?.is_file() => file,
        Ok(_) => return Ok(None),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let length = file.metadata()?.len();
    let taken = length.min(LINE_BYTES_MAX);
    let mut tail = vec![0; taken as usize];
    file.read_exact_at(&mut tail, length - taken)?;
    let Some(end) = memchr::memrchr(b'\n', &tail) else { return Ok(None) };
    let start = memchr::memrchr(b'\n', &tail[..end]).map_or(0, |at| at + 1);
    let line: Option<serde_json::Value> = serde_json::from_slice(&tail[start..end]).ok();
    Ok(line.and_then(|l| l["epoch"].as_u64()))
}

fn options() -> OpenOptions {
    let mut o = OpenOptions::new();
    // Append, not a seek: what another program adds against the lock is noticed, never overwritten.
    o.read(true).append(true);
    o
}

/// Opens and locks the file; `None` where there is none.
fn open_existing(path: &Path) -> Result<Option<File>, ConnectError> {
    // Asked first because opening a FIFO would wait for its reader.
    match std::fs::metadata(path) {
        Ok(m) if !m.is_file() => return Err(not_a_file(path)),
        _ => {}
    }
    match options().open(path) {
        Ok(file) => lock(&file, path).map(|()| Some(file)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(unusable(path, &e)),
    }
}

fn create(path: &Path) -> Result<File, ConnectError> {
    let file = options().create(true).open(path).map_err(|e| unusable(path, &e))?;
    lock(&file, path)?;
    // The name is in the directory, and must outlive a power cut as the bytes do.
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|d| d.sync_all()).map_err(|e| storage(parent, "sync the directory", &e))?;
    Ok(file)
}

fn lock(file: &File, path: &Path) -> Result<(), ConnectError> {
    flock(file, FlockOperation::NonBlockingLockExclusive).map_err(|e| {
        if e == rustix::io::Errno::WOULDBLOCK {
            ConnectError::Conflict(format!(
                "{} is in use by another tidemill or another sink; stop it, or give this sink its own path",
                path.display()
            ))
        } else {
            ConnectError::Config(format!("{} cannot be locked: {}", path.display(), io::Error::from(e)))
        }
    })
}

fn not_a_file(path: &Path) -> ConnectError {
    ConnectError::Config(format!(
        "{} is not a regular file; a file sink needs one, `kind = \"stdout\"` writes to a pipe",
        path.display()
    ))
}

fn foreign(path: &Path, length: u64) -> ConnectError {
    ConnectError::Conflict(format!(
        "{} already holds {length} bytes that this pipeline did not write; move the file away or choose another path, and \
         start again (with `--resend` and the sink's name, if the sink had rows before)",
        path.display()
    ))
}

fn too_short(path: &Path, length: u64, c: Cursor) -> ConnectError {
    ConnectError::Conflict(format!(
        "{} holds {length} bytes, but {} were written up to epoch {}: someone cut, replaced or deleted it; put the \
         file back, or move it away and start with `--resend` and the sink's name",
        path.display(),
        c.length,
        c.epoch
    ))
}

fn unusable(path: &Path, e: &io::Error) -> ConnectError {
    let shown = path.display();
    ConnectError::Config(match e.kind() {
        ErrorKind::NotFound => format!("the directory of {shown} does not exist; create it"),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            format!("{shown} cannot be written: {e}; make it writable or choose another path")
        }
        _ => format!("{shown} cannot be opened: {e}"),
    })
}

fn storage(path: &Path, doing: &str, e: &io::Error) -> ConnectError {
    ConnectError::Storage(format!("cannot {doing} {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tidemill_engine::{
        outbox::{SessionRow, Stage},
        time::EventTime,
    };

    fn rows(ids: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let time = EventTime::from_ms(5);
        for id in ids {
            let row = SessionRow {
                id: [*id; 16],
                key: "k\n",
                start: time,
                end: time,
                events: 1,
                stage: Stage::Final,
                reason: Some("gap"),
                plugin: "builtin:gap@1",
                fields: "{}",
            };
            row.encode(&mut out);
        }
        out
    }

    fn ids(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines()
            .map(|l| {
                serde_json::from_str::<serde_json::Value>(l).unwrap()["session_id"].as_str().unwrap()[..2]
                    .into()
            })
            .collect()
    }

    #[test]
    fn what_came_after_a_cut_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.jsonl");
        let mut s = JsonlSink::sessions(path.clone(), "p".into(), Stages::ALL);
        s.open(1, None).unwrap();
        let one = s.deliver(&Outbox::new(1, 1, &rows(&[1]), b"")).unwrap();
        let two = s.deliver(&Outbox::new(1, 2, &rows(&[2]), b"")).unwrap();
        assert_eq!(s.take_back(2, 1, Some(one)).unwrap(), TakenBack::Cut(two.length - one.length));
        assert_eq!((ids(&path), s.witness().unwrap()), (vec!["01".to_owned()], Some(1)));
        // Not known at the cut: all in it came later.
        assert_eq!(s.take_back(3, 1, None).unwrap(), TakenBack::Cut(one.length));
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn the_last_whole_line_shows_what_was_committed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.jsonl");
        let mut s = JsonlSink::sessions(path.clone(), "p".into(), Stages::ALL);
        assert_eq!(s.witness().unwrap(), None);
        assert!(!path.exists(), "a question creates nothing");
        s.open(1, None).unwrap();
        assert_eq!(s.witness().unwrap(), None);
        s.deliver(&Outbox::new(1, 3, &rows(&[1]), b"")).unwrap();
        s.deliver(&Outbox::new(1, 4, &rows(&[2, 3]), b"")).unwrap();
        s.deliver(&Outbox::new(1, 5, b"", b"")).unwrap();
        assert_eq!(s.witness().unwrap(), Some(4));
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"epoch\":9").unwrap();
        assert_eq!(s.witness().unwrap(), Some(4), "a torn line shows nothing");
        fs::write(&path, "not ours\n").unwrap();
        assert_eq!(s.witness().unwrap(), None);
    }

    #[test]
    fn what_a_crash_left_behind_the_cursor_vanishes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.jsonl");
        let mut s = JsonlSink::sessions(path.clone(), "p".into(), Stages::ALL);
        assert_eq!(s.open(1, None).unwrap(), None);
        let one = s.deliver(&Outbox::new(1, 1, &rows(&[1, 2]), b"")).unwrap();
        assert_eq!(one, Cursor { epoch: 1, length: fs::metadata(&path).unwrap().len() });
        let two = rows(&[3]);
        s.deliver(&Outbox::new(1, 2, &two, b"")).unwrap();
        drop(s);
        // Epoch 2 reached the file, its cursor not the store; and the crash tore a third.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"torn").unwrap();
        let mut s = JsonlSink::sessions(path.clone(), "p".into(), Stages::ALL);
        assert_eq!(s.open(2, Some(one)).unwrap(), Some(one));
        assert_eq!(ids(&path), ["01", "02"]);
        assert_eq!(s.deliver(&Outbox::new(1, 1, &rows(&[1, 2]), b"")).unwrap(), one);
        s.deliver(&Outbox::new(1, 2, &two, b"")).unwrap();
        let end = s.deliver(&Outbox::new(1, 3, b"", b"")).unwrap();
        assert_eq!(ids(&path), ["01", "02", "03"]);
        assert_eq!(end, Cursor { epoch: 3, length: fs::metadata(&path).unwrap().len() });
        s.delete_all().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(s.deliver(&Outbox::new(2, 1, &two, b"")).unwrap().epoch, 1);
        assert_eq!(ids(&path), ["03"]);
    }

    #[test]
    fn an_epoch_of_many_blocks_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.jsonl");
        let mut s = JsonlSink::sessions(path.clone(), "p".into(), Stages::ALL);
        s.open(1, None).unwrap();
        let many: Vec<u8> = (0..20_000_u32).map(|i| (i % 251) as u8).collect();
        let c = s.deliver(&Outbox::new(1, 1, &rows(&many), b"")).unwrap();
        assert!(c.length > 2 * line::WRITE_BYTES as u64);
        assert_eq!(c.length, fs::metadata(&path).unwrap().len());
        assert_eq!(ids(&path).len(), many.len());
    }

    #[test]
    fn letters_are_verbatim() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dead.jsonl");
        let mut s = JsonlSink::letters(path.clone());
        s.open(1, None).unwrap();
        s.deliver(&Outbox::new(1, 1, &rows(&[1]), b"{\"a\":1}\n")).unwrap();
        let c = s.deliver(&Outbox::new(1, 2, &rows(&[1]), b"{\"b\": 2}\n{}\n")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"{\"a\":1}\n{\"b\": 2}\n{}\n");
        assert_eq!(c, Cursor { epoch: 2, length: 20 });
    }

    #[test]
    fn only_what_the_cursor_knows_is_ours_to_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.jsonl");
        let s = JsonlSink::letters(path.clone());
        let at = |length| Some(Cursor { epoch: 7, length });
        assert!(s.is_ours(None).is_ok() && s.is_ours(at(9)).is_ok(), "nothing is there");
        assert!(matches!(s.probe(at(9)), Err(ConnectError::Conflict(m)) if m.contains("holds 0 bytes")));
        fs::write(&path, "precious\n").unwrap();
        assert!(matches!(s.is_ours(None), Err(ConnectError::Conflict(m)) if m.contains("did not write")));
        assert!(matches!(s.is_ours(at(10)), Err(ConnectError::Conflict(m)) if m.contains("holds 9 bytes")));
        assert!(s.is_ours(at(9)).is_ok() && s.is_ours(at(5)).is_ok(), "a crash leaves more than the cursor");
        assert_eq!(fs::read(&path).unwrap(), b"precious\n");
        let device = JsonlSink::letters("/dev/null".into());
        assert!(matches!(device.probe(None), Err(ConnectError::Config(m)) if m.contains("regular")));
    }

    #[test]
    fn contradictions_are_conflicts_and_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.jsonl");
        let open = |stored| JsonlSink::letters(path.clone()).open(1, stored);
        let lost = open(Some(Cursor { epoch: 7, length: 9 }));
        assert!(
            matches!(&lost, Err(ConnectError::Conflict(m)) if m.contains("epoch 7") && m.contains("s.jsonl"))
        );
        assert!(!path.exists());
        fs::write(&path, "mine\n").unwrap();
        assert!(matches!(open(None), Err(ConnectError::Conflict(m)) if m.contains("--resend")));
        let cut = open(Some(Cursor { epoch: 7, length: 9 }));
        assert!(matches!(cut, Err(ConnectError::Conflict(m)) if m.contains("5 bytes") && m.contains('9')));
        assert_eq!(fs::read(&path).unwrap(), b"mine\n");
    }

    #[test]
    fn a_second_writer_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.jsonl");
        let mut first = JsonlSink::letters(path.clone());
        first.open(1, None).unwrap();
        let mut second = JsonlSink::letters(path);
        assert!(matches!(second.open(2, None), Err(ConnectError::Conflict(m)) if m.contains("in use")));
        assert!(matches!(second.delete_all(), Err(ConnectError::Conflict(_))));
        drop(first);
        second.open(2, None).unwrap();
    }

    #[test]
    fn a_file_rotated_or_written_to_by_others_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.jsonl");
        let mut s = JsonlSink::letters(path.clone());
        s.open(1, None).unwrap();
        s.deliver(&Outbox::new(1, 1, b"", b"{}\n")).unwrap();
        fs::rename(&path, dir.path().join("s.1")).unwrap();
        let e = s.deliver(&Outbox::new(1, 2, b"", b"{}\n"));
        assert!(matches!(e, Err(ConnectError::Conflict(m)) if m.contains("moved")));
        assert!(matches!(s.deliver(&Outbox::new(1, 2, b"", b"{}\n")), Err(ConnectError::Storage(_))));
        fs::rename(dir.path().join("s.1"), &path).unwrap();
        s.open(2, Some(Cursor { epoch: 1, length: 3 })).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"x").unwrap();
        let e = s.deliver(&Outbox::new(1, 2, b"", b"{}\n"));
        assert!(matches!(e, Err(ConnectError::Conflict(m)) if m.contains("4 bytes")));
    }

    #[test]
    fn unusable_paths_are_the_configs_fault() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("no/such/s.jsonl"), dir.path().to_path_buf()] {
            let e = JsonlSink::letters(path.clone()).open(1, None);
            assert!(matches!(e, Err(ConnectError::Config(m)) if m.contains(&*path.to_string_lossy())));
        }
    }

    #[test]
    fn a_failed_write_is_storage_and_closes_the_sink() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.jsonl");
        let mut s = JsonlSink::letters(path.clone());
        s.open(1, None).unwrap();
        // A handle that may not write fails as a broken disk would.
        s.file = Some(File::open(&path).unwrap());
        assert!(matches!(s.deliver(&Outbox::new(1, 1, b"", b"{}\n")), Err(ConnectError::Storage(_))));
        assert!(matches!(s.deliver(&Outbox::new(1, 1, b"", b"{}\n")), Err(ConnectError::Storage(_))));
    }
}
