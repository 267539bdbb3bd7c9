//! Files as partitions: plain, gzip or zstd; read once to the end, or followed while they grow.
//!
//! A [`FilePartition`] keeps its file open, so that it reads on when the file is renamed; whether the path
//! still names that file is asked with [`FilePartition::rotated`], and the answer is carried out by the
//! caller. What makes a file the same one across restarts is here too ([`identity`], [`same_file`]).
//!
//! Invariants: offsets count decompressed bytes; opening reads at most the header and some records;
//! a path that cannot be used is `Config`, a file that fails while being read is `Failed`, one that is
//! shorter than what was read of it is `Conflict`.

use super::compression::{self, Compression};
use super::framing::{Framer, Supply, append_from};
use super::{Block, FileIdentity, Framing, Partition, Read};
use crate::ConnectError;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// How many first bytes tell a file from another: several records, so more than one time stamp.
const HEAD_BYTES: usize = 1024;

/// What became of the path of a followed file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rotation {
    /// The path names this file still, or nothing (between a rename and the new file).
    No,
    /// The path names another file. This one is to be read to its end: [`FilePartition::finish`].
    Renamed,
    /// The file was cut or rewritten in place: what this partition would read is no continuation.
    Truncated,
}

/// One file, being read.
pub struct FilePartition {
    path: PathBuf,
    file: File,
    /// Reads `file` through a decoder; plain files are read without one.
    decoder: Option<Box<dyn io::Read + Send>>,
    framer: Framer,
    /// The header, when `framer` starts behind it.
    header: Option<Vec<u8>>,
    /// Records that were read together with the header.
    ready: Option<Block>,
    follow: bool,
    device: u64,
    inode: u64,
    head: Head,
}

/// The first bytes of a file, as far as they were there.
#[derive(Clone, Copy)]
struct Head {
    hash: u64,
    len: usize,
}

impl FilePartition {
    /// Opens a file to read the records from `offset` on: 0, or a position a block gave. With `has_header`
    /// the first record is the header, wherever reading starts. With `follow` the end of a plain file
    /// means waiting; a compressed one does not grow and is read to its end.
    pub fn open(
        path: impl AsRef<Path>,
        framing: Framing,
        has_header: bool,
        offset: u64,
        follow: bool,
    ) -> Result<Self, ConnectError> {
        let path = path.as_ref();
        let (file, meta) = open_regular(path)?;
        let head = read_head(&file).map_err(|e| unusable(path, &e))?;
        let compression = compression::of(&head);
        let mut framer = Framer::new(framing, 0).with_header(has_header);
        let mut decoder = None;
        if compression == Compression::Plain {
            if offset > meta.len() {
                return Err(shorter(path, meta.len(), offset));
            }
            if !has_header {
                (&file).seek(SeekFrom::Start(offset)).map_err(|e| unusable(path, &e))?;
                framer = Framer::new(framing, offset);
            }
        } else {
            let reader = file.try_clone().and_then(|f| compression::decoder(compression, f));
            decoder = Some(reader.map_err(|e| unusable(path, &e))?);
            framer = framer.resuming_at(offset);
        }
        let mut partition = Self {
            path: path.to_owned(),
            follow: follow && decoder.is_none(),
            file,
            decoder,
            framer,
            header: None,
            ready: None,
            device: meta.dev(),
            inode: meta.ino(),
            head: Head { hash: xxh3_64(&head), len: head.len() },
        };
        if has_header {
            partition.read_header(framing, offset)?;
        }
        Ok(partition)
    }

    fn read_header(&mut self, framing: Framing, offset: u64) -> Result<(), ConnectError> {
        let mut block = Block::default();
        // An error is kept by the framer, and comes when records are asked for.
        if let Ok(Read::Data) = self.fill(&mut block) {
            self.ready = Some(block);
        }
        let first = self.ready.as_ref().and_then(|b| b.spans.first());
        if self.decoder.is_some() || offset == 0 || first.is_some_and(|s| offset <= s.offset) {
            return Ok(());
        }
        if let Some(header) = self.framer.header() {
            self.header = Some(header.to_vec());
            self.ready = None;
            (&self.file).seek(SeekFrom::Start(offset)).map_err(|e| unusable(&self.path, &e))?;
            self.framer = Framer::new(framing, offset);
        }
        Ok(())
    }

    fn fill(&mut self, block: &mut Block) -> io::Result<Read> {
        let at_end = if self.follow { Supply::Nothing } else { Supply::End };
        match &mut self.decoder {
            Some(decoder) => self.framer.fill(block, |bytes, max| append_from(decoder, bytes, max)),
            None => self.framer.fill(block, |bytes, max| {
                Ok(if read_plain(&self.file, bytes, max)? > 0 { Supply::Bytes } else { at_end })
            }),
        }
    }

    /// Bytes of the file that were taken, as they stand there: before decompression.
    pub fn bytes_taken(&self) -> u64 {
        (&self.file).stream_position().unwrap_or(0)
    }

    /// What identifies the file now: its head grows with it, and with a longer head it is told better from others.
    #[must_use]
    pub fn identity(&self) -> FileIdentity {
        FileIdentity {
            path: self.path.display().to_string(),
            device: self.device,
            inode: self.inode,
            head_hash: self.head.hash,
            head_len: self.head.len as u64,
        }
    }

    /// From now on the end of the file is the end of the partition, also of a last line without a line
    /// end. For a renamed file, once its writer has turned to the new one: many go on writing to the old
    /// file until they are told to reopen.
    pub fn finish(&mut self) {
        self.follow = false;
    }

    /// What became of the path. Ask whenever `read` gives `Pending`.
    pub fn rotated(&self) -> Result<Rotation, ConnectError> {
        if self.decoder.is_some() {
            return Ok(Rotation::No);
        }
        let failed =
            |e: io::Error| ConnectError::Failed(format!("{}: cannot be followed: {e}", self.path.display()));
        let now = match fs::metadata(&self.path) {
            Ok(now) => now,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Rotation::No),
            Err(e) => return Err(failed(e)),
        };
        if (now.dev(), now.ino()) != (self.device, self.inode) {
            return Ok(Rotation::Renamed);
        }
        let same_head = starts_with(&self.file, self.head).map_err(failed)?;
        let whole = now.len() >= self.framer.taken();
        Ok(if whole && same_head { Rotation::No } else { Rotation::Truncated })
    }

    /// A followed file may have been opened empty: its head is taken as it grows, so that a file cut and
    /// soon as long again is recognised. Not beyond what was there before: that would hide the cut.
    fn extend_head(&mut self) -> io::Result<()> {
        if self.follow && self.head.len < HEAD_BYTES && self.framer.taken() > self.head.len as u64 {
            let head = read_head(&self.file)?;
            if head.get(..self.head.len).is_some_and(|h| xxh3_64(h) == self.head.hash) {
                self.head = Head { hash: xxh3_64(&head), len: head.len() };
            }
        }
        Ok(())
    }

    fn failed(&self, e: &io::Error) -> ConnectError {
        let compressed = if self.decoder.is_some() { " of its decompressed content" } else { "" };
        ConnectError::Failed(format!(
            "{}: cannot be read beyond byte {}{compressed}: {e}. The whole records before it have been \
             read. Put a complete copy in its place and run again: reading goes on where it stopped.",
            self.path.display(),
            self.framer.taken(),
        ))
    }
}

impl Partition for FilePartition {
    fn read(&mut self, block: &mut Block) -> Result<Read, ConnectError> {
        if let Some(ready) = self.ready.take() {
            *block = ready;
            return Ok(Read::Data);
        }
        let read = self.fill(block).map_err(|e| self.failed(&e))?;
        // A file that was cut and is longer again by now gives bytes that continue nothing. Asked after they were read:
        // whatever was cut later had been whole until then.
        if self.follow && read == Read::Data {
            let same = starts_with(&self.file, self.head).map_err(|e| self.failed(&e))?;
            if !same {
                block.clear();
                return Ok(Read::Pending);
            }
        }
        self.extend_head().map_err(|e| self.failed(&e))?;
        match (read, self.framer.missed()) {
            (Read::End, Some(offset)) => Err(shorter(&self.path, self.framer.taken(), offset)),
            _ => Ok(read),
        }
    }

    fn header(&self) -> Option<&[u8]> {
        self.header.as_deref().or_else(|| self.framer.header())
    }
}

/// Appends what one system call gives, without first filling the memory with zeros (which would cost as
/// much as finding the line ends).
fn read_plain(file: &File, bytes: &mut Vec<u8>, max: usize) -> io::Result<usize> {
    bytes.reserve(max);
    loop {
        match rustix::io::read(file, rustix::buffer::spare_capacity(bytes)) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// What identifies the file at a path now.
pub fn identity(path: impl AsRef<Path>) -> Result<FileIdentity, ConnectError> {
    let path = path.as_ref();
    let (file, meta) = open_regular(path)?;
    let head = read_head(&file).map_err(|e| unusable(path, &e))?;
    Ok(FileIdentity {
        path: path.display().to_string(),
        device: meta.dev(),
        inode: meta.ino(),
        head_hash: xxh3_64(&head),
        head_len: head.len() as u64,
    })
}

/// Whether the file at a path is the one that was stored: it has the inode or the path, and begins with the
/// same bytes. So it may have grown or been renamed, or been copied back to its path, but not been shortened
/// below its head or replaced.
pub fn same_file(stored: &FileIdentity, path: impl AsRef<Path>) -> Result<bool, ConnectError> {
    let path = path.as_ref();
    let same_path = stored.path == path.display().to_string();
    is_one(stored, path, |meta| same_path || has_number(stored, meta))
}

/// Whether the very file that is known stands at a path now, under whatever name it was known.
pub fn is_at(known: &FileIdentity, path: impl AsRef<Path>) -> Result<bool, ConnectError> {
    is_one(known, path.as_ref(), |meta| has_number(known, meta))
}

fn has_number(known: &FileIdentity, meta: &Metadata) -> bool {
    (known.device, known.inode) == (meta.dev(), meta.ino())
}

fn is_one(
    known: &FileIdentity,
    path: &Path,
    named: impl FnOnce(&Metadata) -> bool,
) -> Result<bool, ConnectError> {
    let (file, meta) = open_regular(path)?;
    let Ok(len) = usize::try_from(known.head_len) else { return Ok(false) };
    if !named(&meta) || len > HEAD_BYTES {
        return Ok(false);
    }
    starts_with(&file, Head { hash: known.head_hash, len }).map_err(|e| unusable(path, &e))
}

/// The files of a path or shell pattern, sorted. A path that exists is taken as it stands, also with
/// brackets in its name. As in a shell, `*` matches no name that begins with a dot.
pub fn list(pattern: &str) -> Result<Vec<PathBuf>, ConnectError> {
    let plain = Path::new(pattern);
    match fs::metadata(plain) {
        Ok(meta) if meta.is_dir() => return Err(directory(plain)),
        Ok(_) => return Ok(vec![plain.to_owned()]),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(unusable(plain, &e)),
    }
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
    let found = glob::glob_with(pattern, options)
        .map_err(|e| ConnectError::Config(format!("{pattern}: is no valid pattern: {e}")))?;
    let mut paths = Vec::new();
    for path in found {
        let path = path.map_err(|e| unusable(e.path(), e.error()))?;
        if !path.is_dir() {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        let from = match std::env::current_dir() {
            Ok(dir) if plain.is_relative() => format!("; relative paths count from {}", dir.display()),
            _ => String::new(),
        };
        return Err(ConnectError::Config(format!(
            "{pattern}: no such file (os error 2). Check the spelling and that the files are there \
             (`ls -d {pattern}`){from}"
        )));
    }
    paths.sort();
    paths.dedup();
    Ok(paths)
}

/// Copies of one name in a list, plain and compressed or compressed in two ways: read both, and each of
/// their events counts twice. The first of each pair is the plain one, if there is one.
#[must_use]
pub fn compressed_twins(paths: &[PathBuf]) -> Vec<(PathBuf, PathBuf)> {
    let mut copies: BTreeMap<PathBuf, Vec<&PathBuf>> = BTreeMap::new();
    for path in paths {
        let compressed = path.extension().is_some_and(|e| e == OsStr::new("gz") || e == OsStr::new("zst"));
        let name = if compressed { path.with_extension("") } else { path.clone() };
        copies.entry(name).or_default().push(path);
    }
    let mut twins = Vec::new();
    for (name, mut paths) in copies {
        paths.sort_by_key(|p| (**p != name, *p));
        paths.dedup();
        twins.extend(paths.iter().skip(1).map(|p| (paths[0].clone(), (*p).clone())));
    }
    twins
}

fn open_regular(path: &Path) -> Result<(File, Metadata), ConnectError> {
    // Asked before opening: to open a named pipe waits for its writer.
    let meta = fs::metadata(path).map_err(|e| unusable(path, &e))?;
    if meta.is_dir() {
        return Err(directory(path));
    }
    if !meta.is_file() {
        return Err(ConnectError::Config(format!(
            "{}: is a pipe, socket or device, not a file. Give it as standard input (kind = \"stdin\").",
            path.display()
        )));
    }
    let file = File::open(path).map_err(|e| unusable(path, &e))?;
    let meta = file.metadata().map_err(|e| unusable(path, &e))?;
    Ok((file, meta))
}

/// The first bytes, up to [`HEAD_BYTES`], without moving the file's position.
fn read_head(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD_BYTES];
    let mut len = 0;
    while len < HEAD_BYTES {
        match file.read_at(&mut head[len..], len as u64) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    head.truncate(len);
    Ok(head)
}

fn starts_with(file: &File, head: Head) -> io::Result<bool> {
    Ok(read_head(file)?.get(..head.len).is_some_and(|h| xxh3_64(h) == head.hash))
}

fn unusable(path: &Path, e: &io::Error) -> ConnectError {
    ConnectError::Config(format!("{}: cannot be read: {e}", path.display()))
}

fn directory(path: &Path) -> ConnectError {
    let e = io::Error::from(rustix::io::Errno::ISDIR);
    let path = path.display();
    ConnectError::Config(format!("{path}: {e}. Name its files: \"{path}/*\""))
}

fn shorter(path: &Path, len: u64, offset: u64) -> ConnectError {
    ConnectError::Conflict(format!(
        "{}: ends at byte {len}, but was read up to byte {offset} before. It was cut or replaced: put the \
         old file back, or give the new one another name.",
        path.display()
    ))
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
