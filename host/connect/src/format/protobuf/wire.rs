//! Protobuf's wire format: the fields of a message, one after the other, without knowing what they mean.
//!
//! Invariants: nothing is read beyond the bytes; groups are followed [`GROUPS_MAX`] deep; a message that is not well-formed
//! is found wherever the fault is at this level, not inside of fields that nobody looks into.

/// How deep groups may be nested.
const GROUPS_MAX: usize = 100;

/// What is wrong, and at which byte of what was given.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) at: usize,
    pub(super) what: String,
}

/// The value of a field as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    /// With a length: text, bytes, a message, packed numbers.
    Bytes(Place),
    /// A message between two tags.
    Group(Place),
}

/// Bytes of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) at: usize,
    pub(super) end: usize,
}

/// Fields of a message, in the order in which they stand there.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    record: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Fields<'a> {
    /// Of the message that stands there; a place in the record, or all of it.
    pub(super) fn new(record: &'a [u8], place: Place) -> Fields<'a> {
        Fields { record, at: place.at, end: place.end.min(record.len()) }
    }

    fn wrong<T>(&self, at: usize, what: impl Into<String>) -> Result<T, Wrong> {
        Err(Wrong { at, what: what.into() })
    }

    /// The next field's number and value; none at the end.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<(u32, Wire)>, Wrong> {
        if self.at == self.end {
            return Ok(None);
        }
        let from = self.at;
        let (number, kind) = self.tag()?;
        match kind {
            4 => self.wrong(from, format!("the end of group {number} comes without its beginning")),
            _ => Ok(Some((number, self.value(number, kind, from, 0)?))),
        }
    }

    fn tag(&mut self) -> Result<(u32, u8), Wrong> {
        let from = self.at;
        let tag = self.varint()?;
        match u32::try_from(tag) {
            Ok(tag) if tag >> 3 > 0 => Ok((tag >> 3, (tag & 7) as u8)),
            _ => self.wrong(from, format!("{tag} is not the tag of a field")),
        }
    }

    fn value(&mut self, number: u32, kind: u8, from: usize, depth: usize) -> Result<Wire, Wrong> {
        Ok(match kind {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
            2 => {
                let from = self.at;
                let length = self.varint()?;
                let left = self.end - self.at;
                match usize::try_from(length) {
                    Ok(length) if length <= left => {
                        let at = self.at;
                        self.at += length;
                        Wire::Bytes(Place { at, end: self.at })
                    }
                    _ => {
                        return self
                            .wrong(from, format!("field {number} has {length} bytes, and {left} follow"));
                    }
                }
            }
            3 => Wire::Group(self.group(number, from, depth)?),
            _ => return self.wrong(from, format!("field {number} has the unknown wire type {kind}")),
        })
    }

    /// The fields up to the tag that ends the group.
    fn group(&mut self, number: u32, from: usize, depth: usize) -> Result<Place, Wrong> {
        if depth == GROUPS_MAX {
            return self.wrong(from, format!("groups are nested more than {GROUPS_MAX} deep"));
        }
        let start = self.at;
        loop {
            let at = self.at;
            if at == self.end {
                return self.wrong(from, format!("group {number} does not end"));
            }
            let (inner, kind) = self.tag()?;
            if kind != 4 {
                self.value(inner, kind, at, depth + 1)?;
            } else if inner == number {
                return Ok(Place { at: start, end: at });
            } else {
                return self.wrong(at, format!("the end of group {inner} comes inside group {number}"));
            }
        }
    }

    /// A number of 64 bits, seven a byte.
    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, Wrong> {
        let mut n = 0_u64;
        for (i, &b) in self.record[self.at..self.end].iter().take(10).enumerate() {
            if i == 9 && b > 1 {
                break;
            }
            n |= u64::from(b & 0x7f) << (7 * i);
            if b < 0x80 {
                self.at += i + 1;
                return Ok(n);
            }
        }
        let what = if self.end - self.at < 10 {
            "the message ends inside a number"
        } else {
            "a number has more than 64 bits"
        };
        self.wrong(self.at, what)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        match self.record[self.at..self.end].first_chunk::<N>() {
            Some(bytes) => {
                self.at += N;
                Ok(*bytes)
            }
            None => self.wrong(self.at, format!("a number has {N} bytes, and {} follow", self.end - self.at)),
        }
    }

    /// The next of numbers that are packed; of this wire type.
    pub(super) fn packed(&mut self, kind: Packed) -> Result<Option<Wire>, Wrong> {
        if self.at == self.end {
            return Ok(None);
        }
        Ok(Some(match kind {
            Packed::Varint => Wire::Varint(self.varint()?),
            Packed::Fixed64 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            Packed::Fixed32 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
        }))
    }

    /// Where the next field begins.
    pub(super) fn at(&self) -> usize {
        self.at
    }
}

/// What packed numbers are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packed {
    Varint,
    Fixed64,
    Fixed32,
}
