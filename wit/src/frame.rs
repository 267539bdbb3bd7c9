//! A frame: a header, then sections of rows of one size, then nothing.
//!
//! ```text
//! word 0      bytes of the frame, header included; a multiple of 8
//! word 1      u16 version, u16 kind, u32 number of sections
//! word 2 + n  section n: u32 offset in bytes from the start of the frame (a multiple of 8), u32 number of rows
//! ```
//!
//! Sections follow each other in order, each padded with zeros to a multiple of 8 bytes. Which sections a kind has, and
//! what their rows are, stands in [`crate::rows`].

use crate::FRAME_VERSION;
use bytemuck::Pod;

/// What a frame holds, and which way it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// To a sessionizer: turns, inputs, timers, wanted, bytes.
    Turns = 1,
    /// From a sessionizer: results, closings, snapshots, rejections, timers, counts, notes, bytes.
    Results = 2,
    /// To a validator: events, bytes.
    Events = 3,
    /// From a validator: verdicts, counts, bytes.
    Verdicts = 4,
    /// To an enricher: sessions, answers, bytes.
    Sessions = 5,
    /// From an enricher: requests, bytes.
    Requests = 6,
    /// From an enricher: enriched, counts, bytes.
    Enriched = 7,
    /// States to migrate, and migrated: states, bytes.
    States = 8,
}

impl Kind {
    /// How many sections a frame of this kind has.
    #[must_use]
    pub const fn sections(self) -> usize {
        match self {
            Kind::Turns => 5,
            Kind::Results => 8,
            Kind::Verdicts | Kind::Sessions | Kind::Enriched => 3,
            Kind::Events | Kind::Requests | Kind::States => 2,
        }
    }
}

/// Why a block of words is not the frame that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Shorter than its header, or not as long as word 0 says.
    Length,
    /// Another version of the layout.
    Version(u16),
    /// Another kind of frame, or another number of sections.
    Kind(u16),
    /// A section reaches outside the frame, overlaps the one before, or is not aligned.
    Section(usize),
    /// A range in a row reaches outside its section.
    Range,
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FrameError::Length => write!(f, "a frame whose length does not fit"),
            FrameError::Version(v) => write!(f, "a frame of version {v}, where {FRAME_VERSION} is spoken"),
            FrameError::Kind(k) => write!(f, "a frame of an unexpected kind {k}"),
            FrameError::Section(n) => write!(f, "a frame whose section {n} does not fit"),
            FrameError::Range => write!(f, "a frame with a range outside its section"),
        }
    }
}
impl std::error::Error for FrameError {}

const HEADER_WORDS: usize = 2;
const SECTIONS_MAX: usize = 8;

/// A frame, read in place. Sections are checked when it is made; rows' ranges when they are used.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    bytes: &'a [u8],
    sections: [(u32, u32); SECTIONS_MAX],
}

impl<'a> Frame<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// If this is not a frame of that kind in this version, or a section does not lie inside it.
    pub fn read(words: &'a [u64], kind: Kind) -> Result<Self, FrameError> {
        let n = kind.sections();
        let (&[length, head], rest) = words.split_first_chunk::<HEADER_WORDS>().ok_or(FrameError::Length)?;
        let bytes: &[u8] = bytemuck::cast_slice(words);
        if length != bytes.len() as u64 || bytes.len() > u32::MAX as usize {
            return Err(FrameError::Length);
        }
        let version = head as u16;
        if version != FRAME_VERSION {
            return Err(FrameError::Version(version));
        }
        if (head >> 16) as u16 != kind as u16 || (head >> 32) as usize != n {
            return Err(FrameError::Kind((head >> 16) as u16));
        }
        let mut sections = [(0, 0); SECTIONS_MAX];
        let table = rest.get(..n).ok_or(FrameError::Length)?;
        let mut floor = (HEADER_WORDS + n) * 8;
        for (i, word) in table.iter().enumerate() {
            let (at, rows) = (*word as u32, (*word >> 32) as u32);
            if (at as usize) < floor || at % 8 != 0 || at as usize > bytes.len() {
                return Err(FrameError::Section(i));
            }
            floor = at as usize;
            sections[i] = (at, rows);
        }
        Ok(Frame { bytes, sections })
    }

    /// Where a section begins, in bytes from the start of the frame; 0 for one that there is not.
    #[must_use]
    pub fn section_at(&self, section: usize) -> usize {
        self.sections.get(section).map_or(0, |&(at, _)| at as usize)
    }

    /// The rows of a section.
    ///
    /// # Errors
    /// If that many rows do not fit before the next section.
    pub fn rows<T: Pod>(&self, section: usize) -> Result<&'a [T], FrameError> {
        self.block(section, size_of::<T>())
            .and_then(|b| bytemuck::try_cast_slice(b).map_err(|_| FrameError::Section(section)))
    }

    /// The rows of a section whose size depends on the declared fields, as words.
    ///
    /// # Errors
    /// If that many rows do not fit before the next section.
    pub fn wide_rows(&self, section: usize, words_per_row: usize) -> Result<&'a [u64], FrameError> {
        self.block(section, words_per_row * 8)
            .and_then(|b| bytemuck::try_cast_slice(b).map_err(|_| FrameError::Section(section)))
    }

    fn block(&self, section: usize, row_bytes: usize) -> Result<&'a [u8], FrameError> {
        let (at, rows) = *self.sections.get(section).ok_or(FrameError::Section(section))?;
        let end = match self.sections.get(section + 1) {
            Some(&(next, _)) if next != 0 => next as usize,
            _ => self.bytes.len(),
        };
        (rows as usize)
            .checked_mul(row_bytes)
            .and_then(|n| n.checked_add(at as usize))
            .filter(|&to| to <= end)
            .and_then(|to| self.bytes.get(at as usize..to))
            .ok_or(FrameError::Section(section))
    }
}

/// Writes a frame into reused memory: `begin`, the sections in order, `end`.
#[derive(Debug, Default)]
pub struct FrameWriter {
    words: Vec<u64>,
    next: usize,
}

impl FrameWriter {
    /// With room for a frame whose rows have so many bytes in all.
    #[must_use]
    pub fn with_capacity(kind: Kind, rows_bytes: usize) -> FrameWriter {
        let n = kind.sections();
        FrameWriter { words: Vec::with_capacity(HEADER_WORDS + 2 * n + rows_bytes / 8), next: 0 }
    }

    /// Starts a frame, forgetting the one before.
    pub fn begin(&mut self, kind: Kind) {
        let n = kind.sections();
        self.words.clear();
        self.words.push(0);
        self.words.push(u64::from(FRAME_VERSION) | (kind as u64) << 16 | (n as u64) << 32);
        self.words.resize(HEADER_WORDS + n, 0);
        self.next = 0;
    }

    /// Appends the next section.
    pub fn section<T: Pod>(&mut self, rows: &[T]) {
        self.block(bytemuck::cast_slice(rows), rows.len());
    }

    /// Appends the next section, of rows whose size depends on the declared fields.
    pub fn wide_section(&mut self, words: &[u64], rows: usize) {
        self.block(bytemuck::cast_slice(words), rows);
    }

    fn block(&mut self, bytes: &[u8], rows: usize) {
        let at = self.words.len();
        if let Some(slot) = self.words.get_mut(HEADER_WORDS + self.next) {
            *slot = (at as u64 * 8) | (rows as u64) << 32;
        }
        self.next += 1;
        self.words.resize(at + bytes.len().div_ceil(8), 0);
        bytemuck::cast_slice_mut::<u64, u8>(&mut self.words[at..])[..bytes.len()].copy_from_slice(bytes);
    }

    /// The frame.
    pub fn end(&mut self) -> &[u64] {
        let bytes = self.words.len() as u64 * 8;
        if let Some(first) = self.words.first_mut() {
            *first = bytes;
        }
        &self.words
    }

    /// The frame, given away.
    #[must_use]
    pub fn into_words(mut self) -> Vec<u64> {
        self.end();
        self.words
    }
}
