//! Avro's container files as partitions: a header with the schema, then blocks of records, packed or not.
//!
//! The schema is the partition's header record; the records are handed out as bare values of it.
//!
//! Invariants:
//! - A record's offset is the byte at which it starts when all blocks are unpacked one after the other, without what stands
//!   between them. So offsets rise, and depend on the records alone. Records that take no bytes could not be told apart, and
//!   have no key: a block of them is damaged.
//! - Reading resumes at any record. Blocks before it are unpacked again, as compressed files are: nothing else tells how
//!   long they are.
//! - A record that is no value of the schema is handed out together with the rest of its block: where the next one starts
//!   cannot be known. Blocks that are damaged themselves (cut off, wrongly packed, without their marker) are `Failed`, given
//!   after every record before them.
//! - No length in the file allocates anything; a block has [`BLOCK_BYTES_MAX`] at most, packed and unpacked.

use super::framing::{CHUNK_BYTES, RECORD_BYTES_MAX};
use super::{Block, Partition, Read, Span};
use crate::ConnectError;
use crate::format::avro::Values;
use crate::format::avro::schema::{SCHEMA_BYTES_MAX, Schema};
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 4] = b"Obj\x01";
/// The longest block. Writers make theirs some ten thousand bytes long, and a few up to 16 MiB.
const BLOCK_BYTES_MAX: usize = 64 << 20;
/// The most entries a header may have, and how long a name or a value in it may be.
const ENTRIES_MAX: u64 = 1000;
const ENTRY_BYTES_MAX: usize = SCHEMA_BYTES_MAX;
const MARKER_BYTES: usize = 16;

/// How blocks are packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Codec {
    Null,
    Deflate,
    Snappy,
    Zstandard,
}

/// One container file, being read.
pub struct ContainerPartition {
    path: PathBuf,
    file: Counted,
    schema: Vec<u8>,
    values: Values,
    codec: Codec,
    marker: [u8; MARKER_BYTES],
    /// The block at hand, unpacked, how far it was handed out, and how many records are still in it.
    unpacked: Vec<u8>,
    at: usize,
    left: u64,
    /// Where the block at hand begins among the records of all.
    base: u64,
    /// Records before this were handed out in an earlier life.
    resume_at: u64,
    packed: Vec<u8>,
    failed: Option<String>,
}

/// A file, and how many of its bytes were taken.
struct Counted {
    reader: BufReader<std::fs::File>,
    taken: u64,
}

impl ContainerPartition {
    /// Opens a file to read the records from `offset` on: 0, or a position a block gave.
    ///
    /// # Errors
    /// `Config`: it is no container file, or packed in a way that is not known.
    pub fn open(path: impl AsRef<Path>, offset: u64) -> Result<ContainerPartition, ConnectError> {
        let path = path.as_ref();
        let unusable = |e: &dyn std::fmt::Display| ConnectError::Config(format!("{}: {e}", path.display()));
        let file = std::fs::File::open(path).map_err(|e| unusable(&e))?;
        let mut file = Counted { reader: BufReader::with_capacity(64 << 10, file), taken: 0 };
        let header = Header::read(&mut file).map_err(|e| unusable(&e))?;
        let text = std::str::from_utf8(&header.schema).map_err(|_| unusable(&"the schema is no UTF-8"))?;
        let schema = Schema::parse(text).map_err(|e| unusable(&e))?;
        let values = Values::new(&schema).map_err(|e| unusable(&e))?;
        Ok(ContainerPartition {
            path: path.to_owned(),
            file,
            schema: header.schema,
            values,
            codec: header.codec,
            marker: header.marker,
            unpacked: Vec::new(),
            at: 0,
            left: 0,
            base: 0,
            resume_at: offset,
            packed: Vec::new(),
            failed: None,
        })
    }

    /// Bytes of the file that were taken, as they stand there.
    #[must_use]
    pub fn bytes_taken(&self) -> u64 {
        self.file.taken
    }

    /// Takes the next block; false at the end of the file.
    fn next_block(&mut self) -> Result<bool, String> {
        self.base = self.offset();
        self.at = 0;
        self.unpacked.clear();
        if self.file.is_at_end().map_err(|e| e.to_string())? {
            return Ok(false);
        }
        let count = self.file.long().map_err(|e| cut_off(&e))?;
        let length = self.file.long().map_err(|e| cut_off(&e))?;
        let count = u64::try_from(count).map_err(|_| format!("a block has {count} records"))?;
        let length = usize::try_from(length).ok().filter(|n| *n <= BLOCK_BYTES_MAX);
        let length = length.ok_or_else(|| format!("a block is longer than {BLOCK_BYTES_MAX} bytes"))?;
        self.file.bytes(length, &mut self.packed).map_err(|e| cut_off(&e))?;
        let mut marker = Vec::new();
        self.file.bytes(MARKER_BYTES, &mut marker).map_err(|e| cut_off(&e))?;
        if marker != self.marker {
            return Err("a block does not end with the file's marker".to_owned());
        }
        self.codec.unpack(&self.packed, &mut self.unpacked)?;
        if count > self.unpacked.len() as u64 {
            return Err(format!("a block has {count} records in {} bytes", self.unpacked.len()));
        }
        self.left = count;
        if self.base + self.unpacked.len() as u64 <= self.resume_at {
            // Read in an earlier life, to its end.
            (self.at, self.left) = (self.unpacked.len(), 0);
        }
        Ok(true)
    }

    /// Where the next record starts.
    fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// Hands out records of the block at hand.
    fn hand_out(&mut self, block: &mut Block) -> Result<(), String> {
        while self.left > 0 && block.bytes.len() < CHUNK_BYTES {
            let rest = &self.unpacked[self.at..];
            if rest.is_empty() {
                return Err("a block has fewer records than it says".to_owned());
            }
            // What cannot be read takes the rest with it.
            let known = self.values.length(rest);
            let length = known.unwrap_or(rest.len());
            let offset = self.offset();
            if offset >= self.resume_at {
                let kept = length.min(RECORD_BYTES_MAX);
                let at = block.bytes.len() as u32;
                block.bytes.extend_from_slice(&rest[..kept]);
                block.spans.push(Span { at, len: kept as u32, offset, size: length as u64 });
            }
            self.at += length;
            self.left = if known.is_some() { self.left - 1 } else { 0 };
        }
        if self.left == 0 && self.at < self.unpacked.len() {
            return Err(format!("{} bytes follow the records of a block", self.unpacked.len() - self.at));
        }
        Ok(())
    }

    fn fill(&mut self, block: &mut Block) -> Result<Read, String> {
        while block.spans.is_empty() {
            if self.left == 0 && !self.next_block()? {
                return Ok(Read::End);
            }
            self.hand_out(block)?;
        }
        Ok(Read::Data)
    }
}

impl Partition for ContainerPartition {
    fn read(&mut self, block: &mut Block) -> Result<Read, ConnectError> {
        block.clear();
        let read = match &self.failed {
            Some(why) => Err(why.clone()),
            None => self.fill(block),
        };
        block.next_offset = self.offset();
        if matches!(read, Ok(Read::End)) && self.resume_at > self.offset() {
            return Err(ConnectError::Conflict(format!(
                "{}: its records end at byte {}, and {} were read of it before",
                self.path.display(),
                self.offset(),
                self.resume_at
            )));
        }
        read.or_else(|why| {
            self.left = 0;
            let has_records = !block.spans.is_empty();
            let message = format!(
                "{}: cannot be read beyond byte {} of its records: {why}. The whole records before it have been read. \
                 Put a complete copy in its place and run again: reading goes on where it stopped.",
                self.path.display(),
                block.next_offset,
            );
            self.failed = Some(why);
            // What came before the fault is handed out first.
            if has_records { Ok(Read::Data) } else { Err(ConnectError::Failed(message)) }
        })
    }

    fn header(&self) -> Option<&[u8]> {
        Some(&self.schema)
    }
}

fn cut_off(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => "it is cut off inside a block".to_owned(),
        _ => e.to_string(),
    }
}

impl Codec {
    fn unpack(self, packed: &[u8], to: &mut Vec<u8>) -> Result<(), String> {
        let wrong = |e: io::Error| format!("a block cannot be unpacked: {e}");
        match self {
            Codec::Null => to.extend_from_slice(packed),
            Codec::Deflate => {
                unpack_from(flate2::bufread::DeflateDecoder::new(packed), to).map_err(wrong)?;
            }
            Codec::Zstandard => {
                let decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(wrong)?;
                unpack_from(decoder, to).map_err(wrong)?;
            }
            Codec::Snappy => {
                let (body, sum) = packed.split_last_chunk::<4>().ok_or("a block has no checksum")?;
                let length = snap::raw::decompress_len(body).map_err(|e| wrong(e.into()))?;
                // Nothing is packed to less than a hundredth, so the length is not only said.
                if length > BLOCK_BYTES_MAX || length / 100 > body.len() {
                    return Err(format!("a block is longer than {BLOCK_BYTES_MAX} bytes"));
                }
                to.resize(length, 0);
                snap::raw::Decoder::new().decompress(body, to).map_err(|e| wrong(e.into()))?;
                let mut crc = flate2::Crc::new();
                crc.update(to);
                if crc.sum().to_be_bytes() != *sum {
                    return Err("the checksum of a block differs".to_owned());
                }
            }
        }
        Ok(())
    }
}

fn unpack_from(reader: impl io::Read, to: &mut Vec<u8>) -> io::Result<()> {
    reader.take(BLOCK_BYTES_MAX as u64 + 1).read_to_end(to)?;
    if to.len() > BLOCK_BYTES_MAX {
        return Err(io::Error::other(format!("it is longer than {BLOCK_BYTES_MAX} bytes")));
    }
    Ok(())
}

struct Header {
    schema: Vec<u8>,
    codec: Codec,
    marker: [u8; MARKER_BYTES],
}

impl Header {
    fn read(file: &mut Counted) -> Result<Header, String> {
        let cut = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                "it is no Avro container file: it ends inside its header".to_owned()
            }
            _ => e.to_string(),
        };
        let mut text = Vec::new();
        let is_magic = file.bytes(MAGIC.len(), &mut text).map(|()| text == MAGIC);
        if !is_magic
            .or_else(|e| if e.kind() == io::ErrorKind::UnexpectedEof { Ok(false) } else { Err(e) })
            .map_err(cut)?
        {
            return Err("it is no Avro container file, which begins with \"Obj\" and 1".to_owned());
        }
        let (mut schema, mut codec) = (None, Vec::new());
        let mut entries = 0;
        loop {
            let count = file.long().map_err(cut)?;
            if count == 0 {
                break;
            }
            if count < 0 {
                file.long().map_err(cut)?;
            }
            for _ in 0..count.unsigned_abs() {
                entries += 1;
                if entries > ENTRIES_MAX {
                    return Err(format!("its header has more than {ENTRIES_MAX} entries"));
                }
                let (mut key, mut value) = (Vec::new(), Vec::new());
                file.text(&mut key).map_err(cut)?;
                file.text(&mut value).map_err(cut)?;
                match key.as_slice() {
                    b"avro.schema" => schema = Some(value),
                    b"avro.codec" => codec = value,
                    _ => {}
                }
            }
        }
        let mut marker = Vec::new();
        file.bytes(MARKER_BYTES, &mut marker).map_err(cut)?;
        let codec = match codec.as_slice() {
            b"" | b"null" => Codec::Null,
            b"deflate" => Codec::Deflate,
            b"snappy" => Codec::Snappy,
            b"zstandard" => Codec::Zstandard,
            other => {
                let name = String::from_utf8_lossy(other);
                return Err(format!(
                    "its blocks are packed with `{name}`; null, deflate, snappy and zstandard can be read"
                ));
            }
        };
        let marker = marker.try_into().unwrap_or_default();
        Ok(Header { schema: schema.ok_or("its header has no `avro.schema`")?, codec, marker })
    }
}

impl Counted {
    fn is_at_end(&mut self) -> io::Result<bool> {
        self.reader.fill_buf().map(<[u8]>::is_empty)
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.reader.read_exact(&mut byte)?;
        self.taken += 1;
        Ok(byte[0])
    }

    /// A number as Avro writes it.
    fn long(&mut self) -> io::Result<i64> {
        let mut n = 0_u64;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            n |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Ok((n >> 1) as i64 ^ -((n & 1) as i64));
            }
        }
        Err(io::Error::other("a number has more than 64 bits"))
    }

    /// So many bytes, in place of what was there; memory grows only with what comes.
    fn bytes(&mut self, length: usize, to: &mut Vec<u8>) -> io::Result<()> {
        to.clear();
        let n = self.reader.by_ref().take(length as u64).read_to_end(to)?;
        self.taken += n as u64;
        if n < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn text(&mut self, to: &mut Vec<u8>) -> io::Result<()> {
        let length = self.long()?;
        match usize::try_from(length) {
            Ok(length) if length <= ENTRY_BYTES_MAX => self.bytes(length, to),
            _ => Err(io::Error::other(format!("a text in its header is {length} bytes long"))),
        }
    }
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
