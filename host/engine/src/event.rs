//! Events as they travel from a decoder to a lane: fixed-size heads and one flat buffer, no allocation per event.

use crate::time::EventTime;
use serde::{Deserialize, Serialize};

/// Where a record stands: source number, partition number, byte (or message) offset.
///
/// Numbers are given out by the store when a source or partition is first seen and never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Position {
    /// Number of the source within the data directory's pipeline.
    pub source: u32,
    /// Number of the partition within the source.
    pub partition: u32,
    /// Byte of the record's start, after decompression.
    pub offset: u64,
}

impl Position {
    /// The 16 bytes that stand for this position as an event id (SEMANTICS 2): big-endian, so that
    /// byte order is position order.
    #[must_use]
    pub fn id_bytes(self) -> [u8; 16] {
        let mut b = [0; 16];
        b[..4].copy_from_slice(&self.source.to_be_bytes());
        b[4..8].copy_from_slice(&self.partition.to_be_bytes());
        b[8..].copy_from_slice(&self.offset.to_be_bytes());
        b
    }
}

/// One event of a batch. Ranges point into [`Rows::bytes`]; `raw` into the batch's block of records.
#[derive(Clone, Copy, Debug)]
pub struct RowHead {
    /// Hash of the key bytes: decides key group and lane.
    pub key_hash: u64,
    /// Event time.
    pub time: EventTime,
    /// Where the record stands.
    pub position: Position,
    /// Start of the key in the byte buffer.
    pub key_at: u32,
    /// Length of the key, bytes.
    pub key_len: u32,
    /// Start of the extension (id and declared fields) in the byte buffer; directly behind the key.
    pub ext_len: u32,
    /// Start of the record in the batch's block.
    pub raw_at: u32,
    /// Length of the record, bytes.
    pub raw_len: u32,
}

/// The events of one block that belong to one lane.
#[derive(Default, Debug)]
pub struct Rows {
    /// One per event, in arrival order.
    pub heads: Vec<RowHead>,
    /// Keys and extensions, back to back.
    pub bytes: Vec<u8>,
}

impl Rows {
    /// The key of an event of this batch.
    #[must_use]
    pub fn key(&self, h: &RowHead) -> &[u8] {
        &self.bytes[h.key_at as usize..(h.key_at + h.key_len) as usize]
    }
    /// Id (unless it is the position) and declared fields of an event of this batch.
    #[must_use]
    pub fn ext(&self, h: &RowHead) -> &[u8] {
        let at = (h.key_at + h.key_len) as usize;
        &self.bytes[at..at + h.ext_len as usize]
    }
    /// Forgets the events, keeps the memory.
    pub fn clear(&mut self) {
        self.heads.clear();
        self.bytes.clear();
    }
}

/// The extension of an event: `id_len` u32 (0: the id is the position), id, then declared fields,
/// each one tag byte and its value. Empty when the id is the position and no field is declared.
pub mod ext {
    /// A declared field's value.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub enum Value<'a> {
        /// Absent, null or empty.
        Missing,
        /// Text; numbers and booleans as their JSON text stands.
        Text(&'a [u8]),
    }
    /// Writes the id; `None` where the position is the id.
    pub fn push_id(out: &mut Vec<u8>, id: Option<&[u8]>) {
        let id = id.unwrap_or_default();
        out.extend_from_slice(&(id.len() as u32).to_le_bytes());
        out.extend_from_slice(id);
    }
    /// Writes a declared field behind the id.
    pub fn push_field(out: &mut Vec<u8>, v: Value<'_>) {
        match v {
            Value::Missing => out.push(0),
            Value::Text(t) => {
                out.push(1);
                out.extend_from_slice(&(t.len() as u32).to_le_bytes());
                out.extend_from_slice(t);
            }
        }
    }
    fn u32_at(b: &[u8], at: usize) -> usize {
        b.get(at..at + 4).map_or(0, |s| u32::from_le_bytes([s[0], s[1], s[2], s[3]]) as usize)
    }
    /// The id's bytes, or `None` where the position is the id.
    #[must_use]
    pub fn id(b: &[u8]) -> Option<&[u8]> {
        let n = u32_at(b, 0);
        if n == 0 { None } else { b.get(4..4 + n) }
    }
    /// The `n`-th declared field.
    #[must_use]
    pub fn field(b: &[u8], n: usize) -> Value<'_> {
        let mut at = 4 + u32_at(b, 0);
        for i in 0..=n {
            match b.get(at) {
                Some(1) => {
                    let len = u32_at(b, at + 1);
                    if i == n {
                        return b.get(at + 5..at + 5 + len).map_or(Value::Missing, Value::Text);
                    }
                    at += 5 + len;
                }
                _ => at += 1,
            }
        }
        Value::Missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_as_they_were_written() {
        let mut b = Vec::new();
        ext::push_id(&mut b, Some(b"id-1"));
        ext::push_field(&mut b, ext::Value::Text(b"login"));
        ext::push_field(&mut b, ext::Value::Missing);
        ext::push_field(&mut b, ext::Value::Text(b"x"));
        assert_eq!(ext::id(&b), Some(&b"id-1"[..]));
        assert_eq!(ext::field(&b, 0), ext::Value::Text(b"login"));
        assert_eq!(ext::field(&b, 1), ext::Value::Missing);
        assert_eq!(ext::field(&b, 2), ext::Value::Text(b"x"));
        assert_eq!(ext::field(&b, 3), ext::Value::Missing);
        assert_eq!(ext::id(&[]), None);
        assert_eq!(ext::field(&[], 0), ext::Value::Missing);
    }

    #[test]
    fn byte_order_of_position_ids_is_position_order() {
        let p = |source, partition, offset| Position { source, partition, offset };
        assert!(p(0, 0, 256).id_bytes() > p(0, 0, 255).id_bytes());
        assert!(p(0, 1, 0).id_bytes() > p(0, 0, u64::MAX).id_bytes());
    }
}
