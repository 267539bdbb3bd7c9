//! Rows of a CSV or JSON-lines file, kept in memory whole; read again whole when the file changes.
//!
//! Invariants: a new table serves only when all of it was read and is valid, until then the old one does; a file that is
//! being written is left alone: it is read when two looks in a row find it alike, or at once where the path names another
//! file (a rename). When to look is the caller's to say. Of two rows with one key the last holds.

use super::bounds::{CACHE_ENTRY_BYTES, FILE_BYTES_MAX, ROW_BYTES_MAX};
use super::{Fetched, LookupError, Provider, Row};
use crate::ConnectError;
use crate::format::separated::SeparatedDecoder;
use crate::format::{Decoder, Slots};
use crate::source::file::FilePartition;
use crate::source::{Block, Framing, Partition, Read};
use serde_json::Value;
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

/// How the file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// With a header; all values are text, an empty one is null.
    Csv,
    /// One JSON object a line.
    Json,
}

/// See the module's documentation.
pub struct FileProvider {
    path: PathBuf,
    format: Format,
    key: String,
    table: RwLock<(Arc<Table>, SystemTime)>,
    /// Held while the file is looked at and read.
    stamps: Mutex<Stamps>,
    /// Never held for long: others ask for it meanwhile.
    trouble: Mutex<Trouble>,
}

type Table = HashMap<Box<str>, Row>;

/// What tells one content of the file from another, without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    file: (u64, u64),
    len: u64,
    modified: (i64, i64),
}

struct Stamps {
    /// Of what was read last, well or not.
    read: Stamp,
    /// Of the last look.
    seen: Stamp,
}

#[derive(Default)]
struct Trouble {
    /// Why the last look found nothing.
    gone: Option<String>,
    /// Why what was read last is not used.
    broken: Option<String>,
}

impl FileProvider {
    /// Reads the file. `key` is the column or member that holds the key.
    ///
    /// # Errors
    /// `Config`: the file is missing or no such table.
    pub fn open(path: &Path, format: Format, key: &str) -> Result<FileProvider, ConnectError> {
        let wrong = |e: &dyn std::fmt::Display| ConnectError::Config(format!("{}: {e}", path.display()));
        let stamp = stamp(path).map_err(|e| wrong(&e))?;
        let begun = SystemTime::now();
        let table = read(path, format, key).map_err(|e| wrong(&e))?;
        Ok(FileProvider {
            path: path.to_owned(),
            format,
            key: key.to_owned(),
            table: RwLock::new((Arc::new(table), begun)),
            stamps: Mutex::new(Stamps { read: stamp, seen: stamp }),
            trouble: Mutex::default(),
        })
    }

    fn troubled(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Provider for FileProvider {
    fn fetch(&self, keys: &[Arc<str>], _: Duration) -> Result<Vec<Fetched>, LookupError> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner).0.clone();
        Ok(keys.iter().map(|k| Ok(table.get(&**k).cloned())).collect())
    }

    /// Reads the file if it has changed. Others go on with the old table meanwhile.
    fn look(&self) -> bool {
        let Ok(mut stamps) = self.stamps.try_lock() else { return false };
        let now = match stamp(&self.path) {
            Ok(s) => s,
            Err(e) => {
                let why = format!("{}: {e}; its last content is used", self.path.display());
                self.troubled().gone = Some(why);
                return false;
            }
        };
        self.troubled().gone = None;
        let settled = now == stamps.seen || now.file != stamps.read.file;
        stamps.seen = now;
        if now == stamps.read || !settled {
            return false;
        }
        let begun = SystemTime::now();
        let new = read(&self.path, self.format, &self.key);
        if stamp(&self.path).ok() != Some(now) {
            // It changed while it was read: the next looks will find it at rest.
            return false;
        }
        stamps.read = now;
        match new {
            Ok(table) => {
                self.troubled().broken = None;
                *self.table.write().unwrap_or_else(PoisonError::into_inner) = (Arc::new(table), begun);
                true
            }
            Err(e) => {
                let why = format!("{}: {e}; its content before is used", self.path.display());
                self.troubled().broken = Some(why);
                false
            }
        }
    }

    fn trouble(&self) -> Option<String> {
        let trouble = self.troubled();
        trouble.gone.clone().or_else(|| trouble.broken.clone())
    }

    fn read_at(&self) -> Option<SystemTime> {
        Some(self.table.read().unwrap_or_else(PoisonError::into_inner).1)
    }
}

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let m = std::fs::metadata(path)?;
    Ok(Stamp { file: (m.dev(), m.ino()), len: m.len(), modified: (m.mtime(), m.mtime_nsec()) })
}

fn read(path: &Path, format: Format, key: &str) -> Result<Table, String> {
    let framing = if format == Format::Csv { Framing::Csv } else { Framing::Lines };
    let mut file =
        FilePartition::open(path, framing, format == Format::Csv, 0, false).map_err(|e| e.to_string())?;
    let mut rows = Rows::new(format, key, file.header())?;
    let mut block = Block::default();
    let (mut table, mut bytes, mut n) = (Table::new(), 0, 0_u64);
    loop {
        block.clear();
        if file.read(&mut block).map_err(|e| e.to_string())? != Read::Data {
            return Ok(table);
        }
        for span in &block.spans {
            n += 1;
            let (of, row) = rows.row(block.record(*span)).map_err(|e| format!("record {n}: {e}"))?;
            if row.len() > ROW_BYTES_MAX {
                return Err(format!("record {n} has {} bytes, at most {ROW_BYTES_MAX} are taken", row.len()));
            }
            bytes += of.len() + row.len() + CACHE_ENTRY_BYTES as usize;
            table.insert(of, row);
        }
        if bytes > FILE_BYTES_MAX {
            return Err(format!(
                "it takes more than {} MiB of memory; a table of this size belongs into SQLite",
                FILE_BYTES_MAX >> 20
            ));
        }
    }
}

/// Makes rows of records.
enum Rows<'k> {
    Csv { decoder: SeparatedDecoder, columns: Vec<String>, key: usize, slots: Slots },
    Json { key: &'k str },
}

impl<'k> Rows<'k> {
    fn new(format: Format, key: &'k str, header: Option<&[u8]>) -> Result<Rows<'k>, String> {
        if format == Format::Json {
            return Ok(Rows::Json { key });
        }
        let header = header.ok_or("it is empty: a CSV file begins with its header")?;
        let columns = SeparatedDecoder::csv(&[]).columns(header).map_err(|e| e.message)?;
        let at = columns.iter().position(|c| c == key);
        let at =
            at.ok_or_else(|| format!("there is no column `{key}`; its columns are {}", columns.join(", ")))?;
        let mut decoder = SeparatedDecoder::csv(&columns);
        decoder.header(header).map_err(|e| e.message)?;
        Ok(Rows::Csv { decoder, columns, key: at, slots: Slots::default() })
    }

    fn row(&mut self, record: &[u8]) -> Result<(Box<str>, Row), String> {
        match self {
            Rows::Csv { decoder, columns, key, slots } => {
                decoder.decode(record, slots).map_err(|e| e.message)?;
                let text = |i: usize| std::str::from_utf8(slots.get(i, record)).unwrap_or_default();
                let value = |i: usize| match text(i) {
                    "" => Value::Null,
                    t => t.into(),
                };
                let object: serde_json::Map<String, Value> =
                    columns.iter().enumerate().map(|(i, c)| (c.clone(), value(i))).collect();
                let of = text(*key);
                if of.is_empty() {
                    return Err(format!("`{}` is empty", columns[*key]));
                }
                Ok((of.into(), Value::Object(object).to_string().into()))
            }
            Rows::Json { key } => {
                let value: Value = serde_json::from_slice(record).map_err(|e| e.to_string())?;
                let of = match value.get(&**key) {
                    Some(Value::String(s)) if !s.is_empty() => s.as_str().into(),
                    Some(n @ (Value::Number(_) | Value::Bool(_))) => n.to_string().into(),
                    _ if !value.is_object() => return Err("it is no JSON object".into()),
                    _ => return Err(format!("`{key}` is missing or cannot be a key")),
                };
                Ok((of, value.to_string().into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn one(p: &FileProvider, key: &str) -> Option<String> {
        let rows = p.fetch(&[Arc::from(key)], Duration::ZERO).unwrap();
        rows[0].as_ref().unwrap().as_deref().map(str::to_owned)
    }

    #[test]
    fn rows_of_csv_and_json_lines() {
        let dir = tempfile::tempdir().unwrap();
        let csv =
            put(&dir, "v.csv", "visitor,segment,note\r\na,gold,\"x, \"\"y\"\"\"\r\nb,,z\na,silver,last\n");
        let p = FileProvider::open(&csv, Format::Csv, "visitor").unwrap();
        assert_eq!(one(&p, "a").unwrap(), r#"{"note":"last","segment":"silver","visitor":"a"}"#);
        assert_eq!(one(&p, "b").unwrap(), r#"{"note":"z","segment":null,"visitor":"b"}"#);
        assert_eq!(one(&p, "c"), None);
        let json = put(&dir, "v.jsonl", "{\"id\":7,\"n\":[1,2.50]}\n\n{\"id\":\"x\",\"n\":null}");
        let p = FileProvider::open(&json, Format::Json, "id").unwrap();
        assert_eq!(one(&p, "7").unwrap(), r#"{"id":7,"n":[1,2.5]}"#);
        assert_eq!(one(&p, "x").unwrap(), r#"{"id":"x","n":null}"#);
    }

    #[test]
    fn what_is_no_table_is_said_with_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let table = [
            (Format::Csv, "", "is empty"),
            (Format::Csv, "a,b\n1,2\n", "no column `visitor`; its columns are a, b"),
            (Format::Csv, "visitor,b\n1,2\n3\n", "record 2: the record has 1 cells and the header 2"),
            (Format::Csv, "visitor,b\n,2\n", "record 1: `visitor` is empty"),
            (Format::Json, "{\"visitor\":1}\n{\n", "record 2: EOF"),
            (Format::Json, "[1]\n", "record 1: it is no JSON object"),
            (Format::Json, "{\"visitor\":{}}\n", "record 1: `visitor` is missing or cannot be a key"),
        ];
        for (format, text, words) in table {
            let path = put(&dir, "t", text);
            match FileProvider::open(&path, format, "visitor") {
                Err(ConnectError::Config(m)) => assert!(m.contains(words), "{m}"),
                other => panic!("{text:?}: {:?}", other.err()),
            }
        }
        assert!(FileProvider::open(&dir.path().join("none"), Format::Csv, "a").is_err());
    }

    #[test]
    fn the_old_table_serves_until_the_new_one_is_whole_and_valid() {
        let dir = tempfile::tempdir().unwrap();
        let path = put(&dir, "v.csv", "k,v\na,1\n");
        let p = FileProvider::open(&path, Format::Csv, "k").unwrap();
        let is = |v: &str| Some(format!("{{\"k\":\"a\",\"v\":\"{v}\"}}"));
        assert!(!p.look());
        // Written in place: not taken at the first look, but when it has come to rest.
        put(&dir, "v.csv", "k,v\na,22\n");
        assert_eq!((p.look(), one(&p, "a")), (false, is("1")));
        assert_eq!((p.look(), one(&p, "a")), (true, is("22")));
        // Renamed over: taken at once.
        let new = put(&dir, "new", "k,v\na,333\n");
        std::fs::rename(new, &path).unwrap();
        assert_eq!((p.look(), one(&p, "a")), (true, is("333")));
        // Broken: the old one stays, and it is said.
        let new = put(&dir, "new", "k,v\na\n");
        std::fs::rename(new, &path).unwrap();
        assert_eq!((p.look(), one(&p, "a")), (false, is("333")));
        assert!(p.trouble().unwrap().contains("record 1"), "{:?}", p.trouble());
        // Gone: the same.
        std::fs::remove_file(&path).unwrap();
        assert_eq!((p.look(), one(&p, "a")), (false, is("333")));
        assert!(p.trouble().unwrap().contains("its last content is used"));
        put(&dir, "v.csv", "k,v\na,4\n");
        // A new file may have the number of one that is gone, so it may take two looks.
        let taken = [p.look(), p.look()];
        assert_eq!((taken.iter().filter(|t| **t).count(), one(&p, "a"), p.trouble()), (1, is("4"), None));
    }
}
