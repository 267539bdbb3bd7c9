//! Where records come from: blocks of whole records with their offsets.

pub mod compression;
pub mod container;
pub mod file;
pub mod framing;
pub mod generator;
mod identity;
pub mod ingest_log;
#[cfg(feature = "services")]
pub mod kafka;
#[cfg(feature = "bigquery")]
pub mod pubsub;
pub mod stdin;

pub use self::identity::{FileIdentity, KafkaIdentity, PartitionIdentity};

use crate::ConnectError;

/// One record of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Start in [`Block::bytes`].
    pub at: u32,
    /// Length in bytes, without the line end.
    pub len: u32,
    /// Byte of the record's start in the partition, after decompression.
    pub offset: u64,
    /// Length of the record in bytes; more than `len` if it was too long to be kept whole.
    pub size: u64,
}

impl Span {
    /// Whether only the record's beginning is in the block.
    #[must_use]
    pub fn is_cut(self) -> bool {
        self.size > u64::from(self.len)
    }
}

/// Whole records read from one partition. Reused: `clear` keeps the memory.
#[derive(Default, Debug)]
pub struct Block {
    /// The bytes, line ends included.
    pub bytes: Vec<u8>,
    /// The records in order. Empty lines are no records.
    pub spans: Vec<Span>,
    /// Where the next block starts: the position to keep once these records are in an epoch.
    pub next_offset: u64,
}

impl Block {
    /// Forgets the records, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
    }
    /// The bytes of a record.
    #[must_use]
    pub fn record(&self, s: Span) -> &[u8] {
        &self.bytes[s.at as usize..(s.at + s.len) as usize]
    }
}

/// How records stand in the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// One record a line (`\n` or `\r\n`).
    Lines,
    /// CSV: a line end inside quotes belongs to the record.
    Csv,
    /// Before each record its length in bytes, as Protobuf writes numbers; any bytes may be in it.
    Delimited,
}

/// What a read found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    /// At least one record is in the block.
    Data,
    /// Nothing now; there may be more later (live partitions only).
    Pending,
    /// No more will come.
    End,
}

/// One partition being read.
pub trait Partition: Send {
    /// Fills the (cleared) block with whole records; about 256 KiB. A truncated gzip or a read error is
    /// `Err(Failed)`, given only after every record before it has been handed out.
    fn read(&mut self, block: &mut Block) -> Result<Read, ConnectError>;
    /// The header record (CSV and TSV), read at open even when reading resumes behind it.
    fn header(&self) -> Option<&[u8]>;
}
