//! Rows out of the chunks that they are sent in.
//!
//! Chunks come in order of rows, and of columns in each. One that repeats nothing of the chunk before means the same row, family and
//! qualifier. A value may come in pieces: each but the last says how long the whole is. A row holds only when a chunk commits it;
//! one that is reset before begins anew, whatever came of it.
//!
//! Invariants: nothing is given that was not committed; of a row that is too long nothing more is kept, however long it is. Whatever
//! breaks these rules fails the call: bytes are never guessed to belong somewhere.

use googleapis_tonic_google_bigtable_v2::google::bigtable::v2::read_rows_response::CellChunk;
use googleapis_tonic_google_bigtable_v2::google::bigtable::v2::read_rows_response::cell_chunk::RowStatus;

/// A cell of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) family: String,
    pub(super) qualifier: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// A row that was committed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) key: Vec<u8>,
    /// Its cells, or how many bytes it has if that is more than is kept.
    pub(super) cells: Result<Vec<Cell>, usize>,
}

/// See the module's documentation.
pub(super) struct Merge {
    row_bytes_max: usize,
    /// Of the last row that was committed.
    last_key: Option<Vec<u8>>,
    row: Option<Begun>,
}

struct Begun {
    key: Vec<u8>,
    cells: Vec<Cell>,
    family: String,
    qualifier: Vec<u8>,
    /// Of the value whose pieces are coming, and how long it will be.
    value: Option<(Vec<u8>, usize)>,
    bytes: usize,
}

impl Merge {
    pub(super) fn new(row_bytes_max: usize) -> Merge {
        Merge { row_bytes_max, last_key: None, row: None }
    }

    /// Takes the next chunk; the row that it makes whole.
    ///
    /// # Errors
    /// Which rule it breaks.
    pub(super) fn take(&mut self, chunk: CellChunk) -> Result<Option<Whole>, &'static str> {
        if chunk.row_status == Some(RowStatus::ResetRow(true)) {
            return self.reset(&chunk).map(|()| None);
        }
        let commits = chunk.row_status == Some(RowStatus::CommitRow(true));
        let mut row = match self.row.take() {
            Some(row) => row,
            None => self.begin(&chunk)?,
        };
        row.take(chunk, self.row_bytes_max)?;
        if !commits {
            self.row = Some(row);
            return Ok(None);
        }
        if row.value.is_some() {
            return Err("a row is committed in the middle of a value");
        }
        self.last_key = Some(row.key.clone());
        let is_long = row.bytes > self.row_bytes_max;
        Ok(Some(Whole { key: row.key, cells: if is_long { Err(row.bytes) } else { Ok(row.cells) } }))
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// If it ended in the middle of a row.
    pub(super) fn end(&self) -> Result<(), &'static str> {
        if self.row.is_some() { Err("the answer ends in the middle of a row") } else { Ok(()) }
    }

    fn reset(&mut self, chunk: &CellChunk) -> Result<(), &'static str> {
        let has_more = !chunk.row_key.is_empty()
            || chunk.family_name.is_some()
            || chunk.qualifier.is_some()
            || !chunk.value.is_empty()
            || chunk.value_size != 0;
        if has_more {
            return Err("a row is reset, and there is more to it");
        }
        self.row.take().map(drop).ok_or("a row is reset that has not begun")
    }

    fn begin(&self, chunk: &CellChunk) -> Result<Begun, &'static str> {
        if chunk.row_key.is_empty() {
            return Err("a row begins without its key");
        }
        if self.last_key.as_ref().is_some_and(|last| *last >= chunk.row_key) {
            return Err("rows are not in the order of their keys");
        }
        if chunk.family_name.is_none() || chunk.qualifier.is_none() {
            return Err("a row begins without its column");
        }
        Ok(Begun {
            key: chunk.row_key.clone(),
            cells: Vec::new(),
            family: String::new(),
            qualifier: Vec::new(),
            value: None,
            bytes: 0,
        })
    }
}

impl Begun {
    fn take(&mut self, chunk: CellChunk, row_bytes_max: usize) -> Result<(), &'static str> {
        if !chunk.row_key.is_empty() && chunk.row_key != self.key {
            return Err("a row begins before the one before it was committed");
        }
        let (mut value, whole) = match self.value.take() {
            Some(_) if chunk.family_name.is_some() || chunk.qualifier.is_some() => {
                return Err("a cell begins in the middle of a value");
            }
            Some(before) => before,
            None => {
                self.turn_to(chunk.family_name, chunk.qualifier)?;
                (Vec::new(), usize::try_from(chunk.value_size).unwrap_or(0))
            }
        };
        self.bytes += chunk.value.len();
        if self.bytes <= row_bytes_max {
            value.extend(&chunk.value);
        }
        if chunk.value_size > 0 {
            self.value = Some((value, whole));
            return Ok(());
        }
        if self.bytes > row_bytes_max {
            self.cells.clear();
            return Ok(());
        }
        if whole > 0 && whole != value.len() {
            return Err("the pieces of a value do not make the whole");
        }
        self.cells.push(Cell { family: self.family.clone(), qualifier: self.qualifier.clone(), value });
        Ok(())
    }

    fn turn_to(&mut self, family: Option<String>, qualifier: Option<Vec<u8>>) -> Result<(), &'static str> {
        if family.is_some() && qualifier.is_none() {
            return Err("a family begins without a qualifier");
        }
        self.family = family.unwrap_or_else(|| std::mem::take(&mut self.family));
        self.qualifier = qualifier.unwrap_or_else(|| std::mem::take(&mut self.qualifier));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `key family:qualifier=value/size!`: key and column may be missing, `/size` says that more pieces come, `!` commits, and
    /// `reset` alone resets.
    fn chunk(text: &str) -> CellChunk {
        if text == "reset" {
            return CellChunk { row_status: Some(RowStatus::ResetRow(true)), ..CellChunk::default() };
        }
        let (text, commits) = text.strip_suffix('!').map_or((text, false), |t| (t, true));
        let (head, value) = text.split_once('=').unwrap();
        let (value, size) = value.split_once('/').unwrap_or((value, "0"));
        let (key, column) = head.split_once(' ').unwrap();
        let (family, qualifier) = column.split_once(':').unwrap_or((column, ""));
        CellChunk {
            row_key: key.into(),
            family_name: (!family.is_empty()).then(|| family.to_owned()),
            qualifier: column.contains(':').then(|| qualifier.into()),
            value: value.into(),
            value_size: size.parse().unwrap(),
            row_status: commits.then_some(RowStatus::CommitRow(true)),
            ..CellChunk::default()
        }
    }

    /// Rows as `key f:q=value f:q=value`, and what was wrong.
    fn merge(chunks: &[&str]) -> (Vec<String>, Result<(), &'static str>) {
        let mut merge = Merge::new(20);
        let mut rows = Vec::new();
        for c in chunks {
            match merge.take(chunk(c)) {
                Ok(row) => rows.extend(row.map(|r| {
                    let key = String::from_utf8(r.key).unwrap();
                    match r.cells {
                        Err(n) => format!("{key} has {n}"),
                        Ok(cells) => cells.iter().fold(key, |all, c| {
                            let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
                            format!("{all} {}:{}={}", c.family, text(&c.qualifier), text(&c.value))
                        }),
                    }
                })),
                Err(why) => return (rows, Err(why)),
            }
        }
        let end = merge.end();
        (rows, end)
    }

    #[test]
    fn rows_however_they_are_cut() {
        let cases: [(&[&str], &[&str]); 11] = [
            (&[], &[]),
            (&["a f:q=1!"], &["a f:q=1"]),
            (&["a f:q=1", "a f:r=2!", "b f:q=3!"], &["a f:q=1 f:r=2", "b f:q=3"]),
            // What is not repeated is as before, also an empty qualifier.
            (&["a f:q=1", " :r=2", " =3", " g:=4", " :q=5!"], &["a f:q=1 f:r=2 f:r=3 g:=4 g:q=5"]),
            // In pieces, the last without a size; an empty piece is one.
            (&["a f:q=12/5", " =/5", " =345!", "b f:q=6!"], &["a f:q=12345", "b f:q=6"]),
            (&["a f:q=/3", " =123", " :r=!"], &["a f:q=123 f:r="]),
            // Reset: the same row again, or another.
            (&["a f:q=1", "reset", "a f:q=2!"], &["a f:q=2"]),
            (&["a f:q=1/3", "reset", "b f:r=2!"], &["b f:r=2"]),
            (&["a f:q=1!", "b f:q=2", "reset"], &["a f:q=1"]),
            // As long as may be.
            (&["a f:q=12345678901234567890!"], &["a f:q=12345678901234567890"]),
            // Too long by one, in one piece and in several; the next row is as it is.
            (
                &[
                    "a f:q=123456789012345678901!",
                    "b f:q=12345678901234567890/30",
                    " =1234567890!",
                    "c f:q=1!",
                ],
                &["a has 21", "b has 30", "c f:q=1"],
            ),
        ];
        for (chunks, rows) in cases {
            let (found, end) = merge(chunks);
            assert_eq!((found.iter().map(String::as_str).collect::<Vec<_>>(), end), (rows.to_vec(), Ok(())));
        }
    }

    #[test]
    fn what_breaks_a_rule_is_no_row() {
        let cases: [(&[&str], &str); 14] = [
            (&[" f:q=1!"], "without its key"),
            (&["a :q=1!"], "without its column"),
            (&["a f=1!"], "without its column"),
            (&["a f:q=1", " g=2!"], "without a qualifier"),
            (&["a f:q=1", "b f:q=2!"], "before the one before"),
            (&["b f:q=1!", "a f:q=2!"], "not in the order"),
            (&["b f:q=1!", "b f:q=2!"], "not in the order"),
            (&["a f:q=1/2!"], "in the middle of a value"),
            (&["a f:q=1/2", " g:q=2!"], "in the middle of a value"),
            (&["a f:q=1/3", " =2!"], "do not make the whole"),
            (&["reset"], "has not begun"),
            (&["a f:q=1!", "reset"], "has not begun"),
            (&["a f:q=1"], "ends in the middle"),
            (&["a f:q=1/2"], "ends in the middle"),
        ];
        for (chunks, words) in cases {
            let (_, end) = merge(chunks);
            assert!(end.is_err_and(|why| why.contains(words)), "{chunks:?}: {end:?}");
        }
        let more = CellChunk { row_key: b"a".to_vec(), ..chunk("reset") };
        let mut merge = Merge::new(20);
        assert_eq!(merge.take(chunk("a f:q=1")), Ok(None));
        assert!(merge.take(more).is_err_and(|why| why.contains("there is more to it")));
    }
}
