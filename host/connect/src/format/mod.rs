//! From a record's bytes to its declared fields; nothing else is decoded, yet malformed records are always found.

pub mod avro;
pub mod combined;
pub mod json;
#[cfg(test)]
mod leads_to;
pub mod paths;
pub mod protobuf;
pub mod separated;
mod text;
pub mod time;

use crate::ConnectError;

/// How a field's value stood in the record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// Absent, null or empty.
    #[default]
    Missing,
    /// Text, unescaped.
    Text,
    /// A JSON number, its text as it stands.
    Number,
    /// A JSON boolean, its text as it stands.
    Bool,
    /// A JSON object or array, its text as it stands.
    Structure,
}

#[derive(Clone, Copy, Default, Debug)]
struct Slot {
    kind: Kind,
    in_scratch: bool,
    at: u32,
    len: u32,
}

/// The wanted fields of one record, in the order in which they were declared. Reused from record to record.
#[derive(Default, Debug)]
pub struct Slots {
    slots: Vec<Slot>,
    scratch: Vec<u8>,
}

impl Slots {
    /// Makes `n` empty slots.
    pub fn reset(&mut self, n: usize) {
        self.scratch.clear();
        self.slots.clear();
        self.slots.resize(n, Slot::default());
    }
    /// Sets slot `i` to bytes `at..at + len` of the record. Empty text is missing.
    pub fn set_range(&mut self, i: usize, kind: Kind, at: usize, len: usize) {
        let kind = if len == 0 { Kind::Missing } else { kind };
        self.slots[i] = Slot { kind, in_scratch: false, at: at as u32, len: len as u32 };
    }
    /// Sets slot `i` to bytes that do not stand in the record as they are (unescaped text).
    pub fn set_owned(&mut self, i: usize, kind: Kind, bytes: &[u8]) {
        let kind = if bytes.is_empty() { Kind::Missing } else { kind };
        let at = self.scratch.len() as u32;
        self.scratch.extend_from_slice(bytes);
        self.slots[i] = Slot { kind, in_scratch: true, at, len: bytes.len() as u32 };
    }
    /// Where text can be appended that is then put into slots with [`Self::set_tail`].
    pub(crate) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.scratch
    }
    /// Sets slot `i` to what stands in [`Self::tail`] from `at` on. Several slots may share it.
    pub(crate) fn set_tail(&mut self, i: usize, kind: Kind, at: usize) {
        let len = self.scratch.len() - at;
        let kind = if len == 0 { Kind::Missing } else { kind };
        self.slots[i] = Slot { kind, in_scratch: true, at: at as u32, len: len as u32 };
    }
    /// Makes slot `i` missing again (a later duplicate that is null).
    pub fn set_missing(&mut self, i: usize) {
        self.slots[i] = Slot::default();
    }
    /// How slot `i` stood in the record.
    #[must_use]
    pub fn kind(&self, i: usize) -> Kind {
        self.slots[i].kind
    }
    /// The bytes of slot `i`: of `record`, the one that was decoded, or our own. Empty if missing.
    #[must_use]
    pub fn get<'a>(&'a self, i: usize, record: &'a [u8]) -> &'a [u8] {
        let s = self.slots[i];
        if s.kind == Kind::Missing {
            return b"";
        }
        let from = if s.in_scratch { &self.scratch[..] } else { record };
        &from[s.at as usize..(s.at + s.len) as usize]
    }
}

/// Why a record could not be decoded: becomes the dead letter's reason and message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Malformed {
    /// `malformed_json`, `malformed_csv`, `malformed_tsv`, `malformed_combined`, `malformed_avro`, `malformed_protobuf`,
    /// `unknown_schema`.
    pub reason: &'static str,
    /// What is wrong and where, for a reader.
    pub message: String,
}

/// Decodes the records of one partition. Built with the wanted paths; a path is a column or combined-log
/// name, or for formats with nested values a member name or a JSON pointer (starting with `/`).
pub trait Decoder: Send {
    /// Gets hold of what these records need to be decoded and is not in them: the schemas that they name. To be called
    /// before they are decoded; most formats need nothing. What does not exist is no error, but for [`Self::decode`].
    ///
    /// # Errors
    /// `Failed`: whoever has it cannot say now. Asked again later, it may; the records are not to be decoded before.
    fn prepare(&mut self, records: &mut dyn Iterator<Item = &[u8]>) -> Result<(), ConnectError> {
        let _ = records;
        Ok(())
    }
    /// Takes the partition's header record (CSV, TSV; of Avro's files the schema). Names that are wanted and not there
    /// stay missing.
    fn header(&mut self, record: &[u8]) -> Result<(), Malformed>;
    /// Decodes one record into `out`, one slot per wanted path.
    fn decode(&mut self, record: &[u8], out: &mut Slots) -> Result<(), Malformed>;
}
