//! Cuts a stream of bytes into whole records.
//!
//! Job: a [`Framer`] asks its source for bytes, which land directly in [`Block::bytes`], and notes where
//! each record stands. Whoever owns the bytes (a file, a decoder, a channel) is passed in at each call.
//!
//! Invariants:
//! - The records and their offsets depend on the bytes alone, never on how they arrive.
//! - `Block::next_offset` is always the start of a record (or the end): resuming there gives exactly the
//!   records that follow. So a record that is too long leaves only when its end is known.
//! - Memory is bounded by [`RECORD_BYTES_MAX`] plus some chunks, whatever the bytes are.
//! - Lines are found again after anything. Where lengths stand between the records nothing can be: a record that is cut off,
//!   or says that it is longer than any, is an error.
//! - An error of the source is given after every whole record before it, and at every later call.

use super::{Block, Framing, Read, Span};
use memchr::{memchr, memchr_iter, memchr2};
use std::io;

/// The longest record that is kept whole, in bytes. Click records are some hundred bytes, the fattest
/// (a page's whole data layer in one event) some ten thousand. A mebibyte leaves room and yet bounds what a
/// binary file, or a quote never closed, can take. Of a longer record the first mebibyte is handed out, and its
/// span says how long it was: such a stump must not be decoded, since some formats would find nothing wrong with it.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// How much is asked for at once, in bytes: fits a core's second-level cache together with the tables of
/// the decoder, and makes system calls rare (one in about a thousand records).
pub const CHUNK_BYTES: usize = 256 << 10;

/// The first chunk is small, because of most files only the first record is wanted at first (SEMANTICS 7);
/// each following one is four times as big, up to [`CHUNK_BYTES`].
const CHUNK_BYTES_FIRST: usize = 16 << 10;

/// What some programs write before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A block may grow beyond this only while it holds a long record.
const BLOCK_BYTES_KEPT: usize = 3 * CHUNK_BYTES;

// Spans hold positions in a block as u32.
const _: () = assert!(RECORD_BYTES_MAX + BLOCK_BYTES_KEPT < u32::MAX as usize / 4);

/// What a source had to give.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Supply {
    /// Bytes were appended.
    Bytes,
    /// Nothing now.
    Nothing,
    /// The end: what is left is the last record. Bytes may have been appended before it.
    End,
}

/// Cuts the bytes of one partition into records. One for each partition, used until its end.
#[derive(Debug)]
pub struct Framer {
    framing: Framing,
    chunk: usize,
    chunk_max: usize,
    record_max: usize,
    /// The unfinished record between two calls. During a call it stands in the block.
    carry: Vec<u8>,
    /// Offset in the stream that index 0 of the block (or of `carry`) stands for.
    base: u64,
    /// Index where the unfinished record starts; 0 between calls.
    start: usize,
    /// Index up to which record ends have been looked for.
    scanned: usize,
    /// Csv: `scanned` is inside quotes.
    quoted: bool,
    /// Some: the unfinished record is too long; it stands at index 0, cut to `record_max`, and so many of
    /// its bytes have been dropped.
    dropped: Option<u64>,
    /// The last of these was a carriage return, which belongs to the line end if that comes next.
    dropped_cr: bool,
    /// Stream bytes taken from the source, plus the offset it started at.
    taken: u64,
    /// The source said `End`.
    ended: bool,
    failed: Option<(io::ErrorKind, String)>,
    header_wanted: bool,
    header: Option<Vec<u8>>,
    /// Records that start before this were handed out in an earlier life.
    resume_at: u64,
}

impl Framer {
    /// For a source whose first byte has this offset, which must be a record's start.
    #[must_use]
    pub fn new(framing: Framing, offset: u64) -> Self {
        Self {
            framing,
            chunk: CHUNK_BYTES_FIRST,
            chunk_max: CHUNK_BYTES,
            record_max: RECORD_BYTES_MAX,
            carry: Vec::new(),
            base: offset,
            start: 0,
            scanned: 0,
            quoted: false,
            dropped: None,
            dropped_cr: false,
            taken: offset,
            ended: false,
            failed: None,
            header_wanted: false,
            header: None,
            resume_at: 0,
        }
    }

    /// The first record is the header: kept, not handed out.
    #[must_use]
    pub fn with_header(mut self, has_header: bool) -> Self {
        self.header_wanted = has_header;
        self
    }

    /// Records that start before `offset` are read over. Framing them costs little beside the
    /// decompression that a source without seeking needs anyway.
    #[must_use]
    pub fn resuming_at(mut self, offset: u64) -> Self {
        self.resume_at = offset;
        self
    }

    /// The header, once it has been read. A byte order mark before it is left out, since it would become
    /// part of the first column's name.
    #[must_use]
    pub fn header(&self) -> Option<&[u8]> {
        self.header.as_deref().map(|h| h.strip_prefix(BYTE_ORDER_MARK).unwrap_or(h))
    }

    /// Offset behind the last byte taken from the source.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// After `End`: the offset to resume at, if the stream ended before it.
    #[must_use]
    pub fn missed(&self) -> Option<u64> {
        (self.ended && self.taken < self.resume_at).then_some(self.resume_at)
    }

    /// Chunks and records of other sizes, so that tests meet every border.
    #[cfg(test)]
    pub(super) fn with_sizes(mut self, chunk: usize, record_max: usize) -> Self {
        (self.chunk, self.chunk_max, self.record_max) = (chunk, chunk, record_max);
        self
    }

    /// Fills the block from a reader; its end is the end.
    pub fn read_from(&mut self, block: &mut Block, reader: &mut impl io::Read) -> io::Result<Read> {
        self.fill(block, |bytes, max| append_from(reader, bytes, max))
    }

    /// Fills the block from a source that appends about `max` bytes to the vector it is given. It may
    /// append bytes and then fail; they count.
    pub fn fill(
        &mut self,
        block: &mut Block,
        mut source: impl FnMut(&mut Vec<u8>, usize) -> io::Result<Supply>,
    ) -> io::Result<Read> {
        block.clear();
        if block.bytes.capacity() > BLOCK_BYTES_KEPT && self.carry.len() < CHUNK_BYTES {
            block.bytes.shrink_to(2 * CHUNK_BYTES);
        }
        block.bytes.extend_from_slice(&self.carry);
        self.carry.clear();
        let mut found = Read::Data;
        loop {
            self.scan(block);
            if self.ended && self.failed.is_none() {
                self.last_record(block);
            }
            self.settle(block);
            if !block.spans.is_empty() {
                break;
            }
            if self.ended || self.failed.is_some() {
                found = Read::End;
                break;
            }
            self.compact(block);
            let before = block.bytes.len();
            let supply = source(&mut block.bytes, self.chunk);
            self.taken += (block.bytes.len() - before) as u64;
            self.chunk = (self.chunk * 4).min(self.chunk_max);
            match supply {
                Ok(Supply::Bytes) => {}
                Ok(Supply::Nothing) => {
                    found = Read::Pending;
                    break;
                }
                Ok(Supply::End) => self.ended = true,
                Err(e) => self.failed = Some((e.kind(), e.to_string())),
            }
        }
        self.keep_tail(block);
        match &self.failed {
            Some((kind, message)) if found == Read::End => Err(io::Error::new(*kind, message.clone())),
            _ => Ok(found),
        }
    }

    /// Notes every record whose end is in the block.
    fn scan(&mut self, block: &mut Block) {
        if let Some(dropped) = self.dropped {
            let Some(i) = memchr(b'\n', &block.bytes[self.scanned..]) else {
                self.scanned = block.bytes.len();
                return;
            };
            let end = self.scanned + i;
            let cr = if end > self.record_max { block.bytes[end - 1] == b'\r' } else { self.dropped_cr };
            let size = dropped + end as u64 - u64::from(cr);
            push(block, 0, self.record_max, self.base, size);
            // What follows moves up to the part that is kept, and `base` moves with it.
            self.base += dropped + (end + 1 - self.record_max) as u64;
            block.bytes.drain(self.record_max..=end);
            (self.start, self.scanned, self.dropped) = (self.record_max, self.record_max, None);
            self.quoted = false;
        }
        match self.framing {
            Framing::Lines => self.scan_lines(block),
            Framing::Csv => self.scan_csv(block),
            Framing::Delimited => self.scan_delimited(block),
        }
    }

    fn scan_lines(&mut self, block: &mut Block) {
        let Block { bytes, spans, .. } = block;
        let (from, mut start) = (self.scanned, self.start);
        for i in memchr_iter(b'\n', &bytes[from..]) {
            let end = from + i;
            push_line(bytes, spans, start, end, self.record_max, self.base);
            start = end + 1;
        }
        (self.start, self.scanned) = (start, bytes.len());
    }

    /// Quotes are toggled: `""` inside quotes leaves and enters them again, which comes to the same.
    /// Beyond `record_max` quotes count no more: one that is still open there was never meant to be one,
    /// and the next line end is the best place to find the records again.
    fn scan_csv(&mut self, block: &mut Block) {
        let Block { bytes, spans, .. } = block;
        let mut at = self.scanned;
        while at < bytes.len() {
            let limit = self.start + self.record_max + 1;
            let rest = &bytes[at..limit.clamp(at, bytes.len())];
            let hit = if at >= limit {
                memchr(b'\n', &bytes[at..])
            } else if self.quoted {
                memchr(b'"', rest)
            } else {
                memchr2(b'"', b'\n', rest)
            };
            match hit {
                None if at >= limit => at = bytes.len(),
                None => at += rest.len(),
                Some(i) if bytes[at + i] == b'"' => {
                    self.quoted = !self.quoted;
                    at += i + 1;
                }
                Some(i) => {
                    push_line(bytes, spans, self.start, at + i, self.record_max, self.base);
                    at += i + 1;
                    (self.start, self.quoted) = (at, false);
                }
            }
        }
        self.scanned = at;
    }

    /// An unfinished record is looked at again with each chunk, from its length on.
    fn scan_delimited(&mut self, block: &mut Block) {
        let Block { bytes, spans, .. } = block;
        let mut start = self.start;
        while let Some((prefix, length)) = prefix(&bytes[start..]) {
            if length > self.record_max as u64 {
                let at = self.base + start as u64;
                let why = format!(
                    "the record at byte {at} says that it has {length} bytes, and none has more than {}",
                    self.record_max
                );
                self.failed = Some((io::ErrorKind::InvalidData, why));
                break;
            }
            let (at, len) = (start + prefix, length as usize);
            if at + len > bytes.len() {
                break;
            }
            let offset = self.base + start as u64;
            spans.push(Span { at: at as u32, len: len as u32, offset, size: length });
            start = at + len;
        }
        (self.start, self.scanned) = (start, bytes.len());
    }

    /// The source has ended: what is left is a record without a line end.
    fn last_record(&mut self, block: &mut Block) {
        let len = block.bytes.len();
        if self.framing == Framing::Delimited {
            if len > self.start {
                let at = self.base + self.start as u64;
                let why = format!("the record at byte {at} is cut off");
                self.failed = Some((io::ErrorKind::UnexpectedEof, why));
            }
            return;
        }
        if len > self.start {
            let offset = self.base + self.start as u64;
            let size = (len - self.start) as u64 + self.dropped.unwrap_or(0);
            push(block, self.start, (len - self.start).min(self.record_max), offset, size);
        }
        (self.start, self.scanned, self.dropped) = (len, len, None);
        self.base = self.taken - len as u64;
    }

    /// Takes the header, and what was handed out in an earlier life, off the records.
    fn settle(&mut self, block: &mut Block) {
        if self.header_wanted && !block.spans.is_empty() {
            let first = block.spans.remove(0);
            if first.is_cut() {
                block.spans.clear();
                let why = format!("the header is longer than {} bytes", self.record_max);
                self.failed = Some((io::ErrorKind::InvalidData, why));
            }
            self.header = Some(block.record(first).to_vec());
            self.header_wanted = false;
        }
        // The same mark before a first record, which keeps its place.
        let is_text = self.framing != Framing::Delimited;
        if let Some(first) = block.spans.first_mut().filter(|s| is_text && s.offset == 0)
            && block.bytes[first.at as usize..].starts_with(BYTE_ORDER_MARK)
        {
            let mark = BYTE_ORDER_MARK.len() as u32;
            *first = Span {
                at: first.at + mark,
                len: first.len.saturating_sub(mark),
                size: first.size.saturating_sub(u64::from(mark)),
                ..*first
            };
            if first.len == 0 {
                block.spans.remove(0);
            }
        }
        if block.spans.first().is_some_and(|s| s.offset < self.resume_at) {
            let resume_at = self.resume_at;
            block.spans.retain(|s| s.offset >= resume_at);
        }
    }

    /// No record is in the block: lets go of bytes that are read over, so that it does not grow.
    fn compact(&mut self, block: &mut Block) {
        if self.start > 0 {
            block.bytes.drain(..self.start);
            self.base += self.start as u64;
            self.scanned -= self.start;
            self.start = 0;
        }
        // Longer ones are refused by their length.
        if self.framing == Framing::Delimited {
            return;
        }
        // One byte more may be the line end of a record of just this length.
        if self.dropped.is_some() || block.bytes.len() > self.record_max + 1 {
            let more = (block.bytes.len() - self.record_max) as u64;
            if more > 0 {
                self.dropped_cr = block.bytes.last() == Some(&b'\r');
            }
            self.dropped = Some(self.dropped.unwrap_or(0) + more);
            block.bytes.truncate(self.record_max);
            self.scanned = self.record_max;
        }
    }

    /// Moves the unfinished record out of the block, for the next call.
    fn keep_tail(&mut self, block: &mut Block) {
        if self.carry.capacity() > BLOCK_BYTES_KEPT {
            self.carry.shrink_to(CHUNK_BYTES);
        }
        self.carry.extend_from_slice(&block.bytes[self.start..]);
        block.bytes.truncate(self.start);
        self.base += self.start as u64;
        self.scanned -= self.start;
        self.start = 0;
        block.next_offset = self.base;
    }
}

/// Notes the record that starts at `start` and whose `\n` is at `end`, if it is not empty.
#[inline]
fn push_line(bytes: &[u8], spans: &mut Vec<Span>, start: usize, end: usize, max: usize, base: u64) {
    let stop = if end > start && bytes[end - 1] == b'\r' { end - 1 } else { end };
    let len = (stop - start).min(max);
    if len > 0 {
        let size = (stop - start) as u64;
        spans.push(Span { at: start as u32, len: len as u32, offset: base + start as u64, size });
    }
}

/// The length that bytes begin with, and how many bytes say it; none if they end inside of it. One that never ends is longer
/// than any record.
fn prefix(bytes: &[u8]) -> Option<(usize, u64)> {
    let mut length = 0_u64;
    for (i, b) in bytes.iter().enumerate() {
        if i == 9 {
            return Some((i, u64::MAX));
        }
        length |= u64::from(b & 0x7f) << (7 * i);
        if *b < 0x80 {
            return Some((i + 1, length));
        }
    }
    None
}

fn push(block: &mut Block, at: usize, len: usize, offset: u64, size: u64) {
    block.spans.push(Span { at: at as u32, len: len as u32, offset, size });
}

/// Appends up to `max` bytes of a reader; fewer only at its end or before an error. Decoders give their
/// bytes in small portions, and a block should not be one.
pub fn append_from(reader: &mut impl io::Read, bytes: &mut Vec<u8>, max: usize) -> io::Result<Supply> {
    let start = bytes.len();
    bytes.resize(start + max, 0);
    let mut filled = start;
    let result = loop {
        if filled == start + max {
            break Ok(Supply::Bytes);
        }
        match reader.read(&mut bytes[filled..]) {
            Ok(0) => break Ok(Supply::End),
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => break Err(e),
        }
    };
    bytes.truncate(filled);
    result
}

#[cfg(test)]
#[path = "framing_tests.rs"]
mod tests;
