//! CSV and TSV records: cells by column, the columns named by the partition's header record.
//!
//! Invariants:
//! - A record decodes only if it is valid UTF-8 and has the header's cells: CSV exactly as many; TSV no fewer,
//!   and surplus ones must be empty (real exports end their lines with tabs).
//! - Every cell is text; an empty one is missing.
//! - A CSV record without quotes is split in place. One with quotes goes through csv-core, whose state machine
//!   accepts everything (a quote inside an unquoted cell is text); we add that the last quote must close.

use super::json::utf8_message;
use super::{Decoder, Kind, Malformed, Slots};
use csv_core::{ReadRecordResult, Reader, ReaderBuilder, Terminator};

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Decodes CSV (RFC 4180: commas, `"` around cells, `""` for a quote) or TSV (tabs, no quoting).
#[derive(Debug)]
pub struct SeparatedDecoder {
    wanted: Vec<String>,
    /// None until the header was read.
    header: Option<Header>,
    flavour: Flavour,
}

/// What the header record says.
#[derive(Debug)]
struct Header {
    /// Number of cells.
    cells: usize,
    /// (column, slot) of the wanted names that are there, by column.
    targets: Vec<(usize, usize)>,
}

#[derive(Debug)]
enum Flavour {
    Csv(Box<Quoted>),
    Tsv,
}

impl SeparatedDecoder {
    /// For CSV; a path is a name of the header. Of two columns with one name the first is meant.
    #[must_use]
    pub fn csv(wanted: &[String]) -> Self {
        Self { wanted: wanted.to_vec(), header: None, flavour: Flavour::Csv(Box::new(Quoted::new())) }
    }

    /// For TSV; a path is a name of the header. Of two columns with one name the first is meant.
    #[must_use]
    pub fn tsv(wanted: &[String]) -> Self {
        Self { wanted: wanted.to_vec(), header: None, flavour: Flavour::Tsv }
    }

    /// The names in a header record.
    ///
    /// # Errors
    /// If it is no record.
    pub fn columns(&mut self, record: &[u8]) -> Result<Vec<String>, Malformed> {
        let names = self.names(record).map_err(|m| self.malformed(m))?;
        Ok(names.into_iter().map(|n| String::from_utf8_lossy(&n).into_owned()).collect())
    }

    fn malformed(&self, message: String) -> Malformed {
        let reason = match self.flavour {
            Flavour::Csv(_) => "malformed_csv",
            Flavour::Tsv => "malformed_tsv",
        };
        Malformed { reason, message }
    }

    fn names(&mut self, record: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let record = record.strip_prefix(BOM).unwrap_or(record);
        utf8(record)?;
        match &mut self.flavour {
            Flavour::Csv(quoted) if Quoted::is_needed(record) => {
                let cells = quoted.split(record)?;
                Ok((0..cells).map(|i| quoted.cell(i).to_vec()).collect())
            }
            Flavour::Csv(_) => Ok(record.split(|&b| b == b',').map(<[u8]>::to_vec).collect()),
            Flavour::Tsv => Ok(record.split(|&b| b == b'\t').map(<[u8]>::to_vec).collect()),
        }
    }
}

impl Decoder for SeparatedDecoder {
    fn header(&mut self, record: &[u8]) -> Result<(), Malformed> {
        self.header = None;
        let names = self.names(record).map_err(|m| self.malformed(m))?;
        let mut targets: Vec<(usize, usize)> = (self.wanted.iter().enumerate())
            .filter_map(|(slot, name)| Some((names.iter().position(|n| n == name.as_bytes())?, slot)))
            .collect();
        targets.sort_unstable();
        self.header = Some(Header { cells: names.len(), targets });
        Ok(())
    }

    fn decode(&mut self, record: &[u8], out: &mut Slots) -> Result<(), Malformed> {
        out.reset(self.wanted.len());
        let result = match (&self.header, &mut self.flavour) {
            (None, _) => Err("no header record came before".to_owned()),
            (Some(header), Flavour::Csv(quoted)) => csv(header, quoted, record, out),
            (Some(header), Flavour::Tsv) => tsv(header, record, out),
        };
        result.map_err(|m| self.malformed(m))
    }
}

fn utf8(record: &[u8]) -> Result<(), String> {
    simdutf8::basic::from_utf8(record).map(|_| ()).map_err(|_| utf8_message(record))
}

fn csv(header: &Header, quoted: &mut Quoted, record: &[u8], out: &mut Slots) -> Result<(), String> {
    utf8(record)?;
    let cells = if Quoted::is_needed(record) {
        let cells = quoted.split(record)?;
        if cells == header.cells {
            for &(column, slot) in &header.targets {
                out.set_owned(slot, Kind::Text, quoted.cell(column));
            }
        }
        cells
    } else {
        split(header, b',', record, out).cells
    };
    if cells == header.cells { Ok(()) } else { Err(count_message(cells, header.cells)) }
}

fn tsv(header: &Header, record: &[u8], out: &mut Slots) -> Result<(), String> {
    utf8(record)?;
    let found = split(header, b'\t', record, out);
    let surplus_is_empty = record[found.surplus_at..].iter().all(|&b| b == b'\t');
    if found.cells >= header.cells && surplus_is_empty {
        Ok(())
    } else {
        Err(count_message(found.cells, header.cells))
    }
}

fn count_message(cells: usize, header: usize) -> String {
    format!("the record has {cells} cells and the header {header}")
}

struct Found {
    cells: usize,
    /// Byte after the cells that the header names: a separator, or the end.
    surplus_at: usize,
}

/// Cuts an unquoted record at its separators and sets the wanted cells.
fn split(header: &Header, separator: u8, record: &[u8], out: &mut Slots) -> Found {
    let mut targets = header.targets.iter().peekable();
    let mut found = Found { cells: 0, surplus_at: record.len() };
    let mut start = 0;
    for end in memchr::memchr_iter(separator, record).chain([record.len()]) {
        while let Some(&&(_, slot)) = targets.peek().filter(|&&&(column, _)| column == found.cells) {
            out.set_range(slot, Kind::Text, start, end - start);
            targets.next();
        }
        found.cells += 1;
        if found.cells == header.cells {
            found.surplus_at = end;
        }
        start = end + 1;
    }
    found
}

/// Splits records with quotes; its buffers are kept from record to record.
#[derive(Debug)]
struct Quoted {
    reader: Reader,
    /// The cells' text, unescaped, one after the other.
    text: Vec<u8>,
    /// Where each cell ends in `text`.
    ends: Vec<usize>,
}

impl Quoted {
    fn new() -> Self {
        // A carriage return alone ends no record: the reader of lines has cut them already.
        let reader = ReaderBuilder::new().terminator(Terminator::Any(b'\n')).build();
        let mut quoted = Self { reader, text: Vec::new(), ends: Vec::new() };
        quoted.restart();
        quoted
    }

    /// Whether a record can be cut at commas alone.
    fn is_needed(record: &[u8]) -> bool {
        memchr::memchr2(b'"', b'\n', record).is_some()
    }

    fn restart(&mut self) {
        self.reader.reset();
        // An empty line, so that csv-core takes no later record for the file's first and strips a BOM off it.
        self.reader.read_record(b"\n", &mut [], &mut []);
    }

    /// Reads one record and returns the number of its cells.
    fn split(&mut self, record: &[u8]) -> Result<usize, String> {
        // One byte more than there can be text: csv-core wants room even to see a line end.
        self.text.resize((record.len() + 1).max(self.text.len()), 0);
        // As many as there can be, and one for the record's end.
        let most = memchr::memchr_iter(b',', record).count() + 2;
        self.ends.resize(most.max(self.ends.len()), 0);
        let (result, read, written, cells) = self.reader.read_record(record, &mut self.text, &mut self.ends);
        let result = match result {
            // All was taken and the record is still open: its line end closes it, unless a quote is open.
            ReadRecordResult::InputEmpty => {
                let (text, ends) = (&mut self.text[written..], &mut self.ends[cells..]);
                match self.reader.read_record(b"\n", text, ends) {
                    (ReadRecordResult::Record, _, _, more) => Ok(cells + more),
                    _ => Err("a quote is not closed".to_owned()),
                }
            }
            _ => Err(format!("a line ends inside the record at byte {read}, outside quotes")),
        };
        if result.is_err() {
            self.restart();
        }
        result
    }

    /// Cell `i` of the record that was split last.
    fn cell(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.text[start..self.ends[i]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wanted(paths: &[&str]) -> Vec<String> {
        paths.iter().map(|&p| p.to_owned()).collect()
    }

    fn cells(decoder: &mut SeparatedDecoder, record: &[u8]) -> Result<Vec<String>, Malformed> {
        let mut out = Slots::default();
        decoder.decode(record, &mut out)?;
        (0..decoder.wanted.len())
            .map(|i| {
                let cell = out.get(i, record);
                assert_eq!(out.kind(i), if cell.is_empty() { Kind::Missing } else { Kind::Text });
                Ok(String::from_utf8(cell.to_vec()).unwrap())
            })
            .collect()
    }

    fn csv_of(header: &str) -> SeparatedDecoder {
        let mut decoder = SeparatedDecoder::csv(&wanted(&["a", "c", "none", "a"]));
        decoder.header(header.as_bytes()).unwrap();
        decoder
    }

    #[test]
    fn csv_cells() {
        for header in ["a,b,c", "\u{feff}a,b,c", "\"a\",b,\"c\"", "\u{feff}\"a\",b,c"] {
            let mut d = csv_of(header);
            for (record, a, c) in [
                ("1,2,3", "1", "3"),
                (",,", "", ""),
                ("\"x,\"\"y\"\"\",2,\"l\nm\"", "x,\"y\"", "l\nm"),
                ("1,2,\"\"", "1", ""),
                ("1,\"\",3", "1", "3"),
                ("ä,\"2\",ö", "ä", "ö"),
                ("\u{feff}1,\"2\",3", "\u{feff}1", "3"),
                ("\u{feff}1,2,3", "\u{feff}1", "3"),
                ("1\r,\"2\",3\r", "1\r", "3\r"),
            ] {
                assert_eq!(cells(&mut d, record.as_bytes()).unwrap(), [a, c, "", a], "{header} {record}");
            }
        }
    }

    #[test]
    fn a_quote_inside_a_cell_is_text() {
        let mut d = SeparatedDecoder::csv(&wanted(&["a"]));
        d.header(b"a").unwrap();
        assert_eq!(cells(&mut d, b"x\"y").unwrap(), ["x\"y"]);
    }

    #[test]
    fn csv_refusals() {
        let mut d = csv_of("a,b,c");
        for (record, part) in [
            (&b"1,2"[..], "has 2 cells and the header 3"),
            (b"1,2,3,", "has 4 cells and the header 3"),
            (b"1,2,3,4", "has 4 cells"),
            (b"1,\"2\"", "has 2 cells"),
            (b"\"1\",2,3,4", "has 4 cells"),
            (b"1,2,\"3", "a quote is not closed"),
            (b"\"1,2,3", "a quote is not closed"),
            (b"\"1,2,3\"\"", "a quote is not closed"),
            (b"1,2,3\n4,5,6", "at byte 6"),
            (b"1,\xff,3", "invalid UTF-8 at byte 2"),
            (b"\"1\",\xff,3", "invalid UTF-8 at byte 4"),
            (b"", "has 1 cells"),
        ] {
            let e = cells(&mut d, record).expect_err("is malformed");
            assert_eq!(e.reason, "malformed_csv");
            assert!(e.message.contains(part), "{record:?}: {}", e.message);
            // The next record is not harmed.
            assert_eq!(cells(&mut d, b"\"1\",2,3").unwrap(), ["1", "3", "", "1"]);
        }
        assert_eq!(d.header(b"a,\"b").expect_err("is malformed").message, "a quote is not closed");
        assert!(cells(&mut d, b"1,2").expect_err("no header").message.contains("no header"));
    }

    #[test]
    fn tsv_cells() {
        let mut d = SeparatedDecoder::tsv(&wanted(&["a", "c", "none", "a"]));
        assert_eq!(cells(&mut d, b"1\t2\t3").expect_err("no header").reason, "malformed_tsv");
        d.header("\u{feff}a\tb\tc".as_bytes()).unwrap();
        for (record, a, c) in [("1\t2\t3", "1", "3"), ("1\t\t\t\t", "1", ""), ("\"1\t2\t3\t", "\"1", "3")] {
            assert_eq!(cells(&mut d, record.as_bytes()).unwrap(), [a, c, "", a]);
        }
        for record in [&b"1\t2"[..], b"1\t2\t3\t4", b"1\t2\t3\t\tx", b"1\t2\t\xff", b""] {
            assert_eq!(
                cells(&mut d, record).expect_err("is malformed").reason,
                "malformed_tsv",
                "{record:?}"
            );
        }
    }

    #[test]
    fn real_files() {
        let Some(trials) = std::env::var_os("TIDEMILL_TRIALS").map(std::path::PathBuf::from) else { return };
        let bytes = std::fs::read(trials.join("nasa-http/nasa_19950701.tsv.gz")).unwrap();
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&bytes[..]), &mut text).unwrap();
        let mut lines = text.split(|&b| b == b'\n').filter(|l| !l.is_empty());
        let mut d = SeparatedDecoder::tsv(&wanted(&["host", "time"]));
        d.header(lines.next().unwrap()).unwrap();
        let hosts: std::collections::BTreeSet<String> =
            lines.map(|l| cells(&mut d, l).unwrap().swap_remove(0)).collect();
        assert_eq!(hosts.len(), 936);
    }

    proptest! {
        #[test]
        fn never_panics(header in prop::collection::vec(any::<u8>(), 0..30),
                        records in prop::collection::vec("[a,\"\n\r\t\u{feff}]{0,12}", 0..5),
                        raw in prop::collection::vec(any::<u8>(), 0..100)) {
            for mut d in [SeparatedDecoder::csv(&wanted(&["a", ""])), SeparatedDecoder::tsv(&wanted(&["a", ""]))] {
                let mut out = Slots::default();
                let _unreadable = d.header(&header);
                let first = d.decode(&raw, &mut out);
                prop_assert!(first.is_ok() || d.header.is_none() || first.is_err_and(|e| !e.message.is_empty()));
                d.header(b"a,\t,").unwrap();
                for record in &records {
                    let one = d.decode(record.as_bytes(), &mut out);
                    let again = d.decode(record.as_bytes(), &mut out);
                    prop_assert_eq!(one, again);
                }
            }
        }

        /// Bug family: cells shifted, quotes left in. Any cells, written by the rule, come back.
        #[test]
        fn csv_round_trip(rows in prop::collection::vec(prop::collection::vec("[a,\"\nä]{0,6}", 3), 1..5),
                          always in any::<bool>()) {
            let mut d = csv_of("a,b,c");
            for row in rows {
                let quote = |c: &String| {
                    if always || c.contains(['"', ',', '\n']) { format!("\"{}\"", c.replace('"', "\"\"")) } else { c.clone() }
                };
                let record = row.iter().map(quote).collect::<Vec<_>>().join(",");
                prop_assert_eq!(cells(&mut d, record.as_bytes()).unwrap(), [&row[0], &row[2], "", &row[0]]);
            }
        }
    }
}
