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
    use std::borrow::Cow;

    /// A declared field's value.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub enum Value<'a> {
        /// Absent, null or empty.
        Missing,
        /// Text; numbers and booleans as their JSON text stands, where text was declared.
        Text(&'a [u8]),
        /// A whole number.
        Integer(i64),
        /// A finite number.
        Number(f64),
        /// True or false.
        Boolean(bool),
    }

    impl<'a> Value<'a> {
        /// As a reader sees it; `None` if it is missing.
        #[must_use]
        pub fn display(self) -> Option<Cow<'a, str>> {
            match self {
                Value::Missing => None,
                Value::Text(t) => Some(String::from_utf8_lossy(t)),
                Value::Integer(n) => Some(n.to_string().into()),
                Value::Number(n) => Some(n.to_string().into()),
                Value::Boolean(b) => Some(b.to_string().into()),
            }
        }
    }

    const MISSING: u8 = 0;
    const TEXT: u8 = 1;
    const INTEGER: u8 = 2;
    const NUMBER: u8 = 3;
    const FALSE: u8 = 4;
    const TRUE: u8 = 5;

    /// Writes the id; `None` where the position is the id.
    pub fn push_id(out: &mut Vec<u8>, id: Option<&[u8]>) {
        let id = id.unwrap_or_default();
        out.extend_from_slice(&(id.len() as u32).to_le_bytes());
        out.extend_from_slice(id);
    }
    /// Writes a declared field behind the id.
    pub fn push_field(out: &mut Vec<u8>, v: Value<'_>) {
        match v {
            Value::Missing => out.push(MISSING),
            Value::Text(t) => {
                out.push(TEXT);
                out.extend_from_slice(&(t.len() as u32).to_le_bytes());
                out.extend_from_slice(t);
            }
            Value::Integer(n) => {
                out.push(INTEGER);
                out.extend_from_slice(&n.to_le_bytes());
            }
            Value::Number(n) => {
                out.push(NUMBER);
                out.extend_from_slice(&n.to_le_bytes());
            }
            Value::Boolean(b) => out.push(if b { TRUE } else { FALSE }),
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
        Values::of(b).nth(n).map_or(Value::Missing, |(v, _)| v)
    }

    /// The declared fields in order, each with the place of its text in the extension.
    #[derive(Clone, Debug)]
    pub struct Values<'a> {
        bytes: &'a [u8],
        at: usize,
    }

    impl<'a> Values<'a> {
        /// Those of an extension.
        #[must_use]
        pub fn of(bytes: &'a [u8]) -> Values<'a> {
            Values { bytes, at: 4 + u32_at(bytes, 0) }
        }
        fn eight(&self) -> [u8; 8] {
            let bytes = self.bytes.get(self.at + 1..self.at + 9).and_then(|b| b.try_into().ok());
            bytes.unwrap_or_default()
        }
    }

    impl<'a> Iterator for Values<'a> {
        type Item = (Value<'a>, usize);
        fn next(&mut self) -> Option<(Value<'a>, usize)> {
            let at = self.at;
            let (value, len) = match *self.bytes.get(at)? {
                TEXT => {
                    let len = u32_at(self.bytes, at + 1);
                    (Value::Text(self.bytes.get(at + 5..at + 5 + len)?), 5 + len)
                }
                INTEGER => (Value::Integer(i64::from_le_bytes(self.eight())), 9),
                NUMBER => (Value::Number(f64::from_le_bytes(self.eight())), 9),
                FALSE => (Value::Boolean(false), 1),
                TRUE => (Value::Boolean(true), 1),
                _ => (Value::Missing, 1),
            };
            self.at += len;
            Some((value, at + 5))
        }
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
        ext::push_field(&mut b, ext::Value::Integer(-7));
        ext::push_field(&mut b, ext::Value::Number(2.5));
        ext::push_field(&mut b, ext::Value::Boolean(true));
        ext::push_field(&mut b, ext::Value::Text(b"last"));
        assert_eq!(ext::id(&b), Some(&b"id-1"[..]));
        assert_eq!(ext::field(&b, 3), ext::Value::Integer(-7));
        assert_eq!(ext::field(&b, 4), ext::Value::Number(2.5));
        assert_eq!(ext::field(&b, 5), ext::Value::Boolean(true));
        let (last, at) = ext::Values::of(&b).last().unwrap();
        assert_eq!((last, &b[at..]), (ext::Value::Text(b"last"), &b"last"[..]));
        assert_eq!(ext::field(&b, 0), ext::Value::Text(b"login"));
        assert_eq!(ext::field(&b, 1), ext::Value::Missing);
        assert_eq!(ext::field(&b, 2), ext::Value::Text(b"x"));
        assert_eq!(ext::field(&b, 7), ext::Value::Missing);
        assert_eq!(ext::id(&[]), None);
        assert_eq!(ext::field(&[], 0), ext::Value::Missing);
    }

    #[test]
    fn a_value_shows_as_a_reader_writes_it() {
        let shown = [
            ext::Value::Missing,
            ext::Value::Text("käthe".as_bytes()),
            ext::Value::Integer(-7),
            ext::Value::Number(2.5),
            ext::Value::Boolean(false),
        ]
        .map(|v| v.display().map(String::from));
        assert_eq!(
            shown.each_ref().map(Option::as_deref),
            [None, Some("käthe"), Some("-7"), Some("2.5"), Some("false")]
        );
    }

    #[test]
    fn byte_order_of_position_ids_is_position_order() {
        let p = |source, partition, offset| Position { source, partition, offset };
        assert!(p(0, 0, 256).id_bytes() > p(0, 0, 255).id_bytes());
        assert!(p(0, 1, 0).id_bytes() > p(0, 0, u64::MAX).id_bytes());
    }
}
