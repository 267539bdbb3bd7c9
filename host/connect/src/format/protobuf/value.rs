//! Protobuf's values as text, and as JSON.
//!
//! Invariants: of several occurrences of one field the last scalar counts, messages are merged, lists go on; of a oneof only
//! the last member is there; a field of another wire type than its own is unknown, and passed over. Messages are followed
//! [`DEPTH_MAX`] deep, and text grows to [`TEXT_BYTES_MAX`].

use super::descriptor::{Descriptors, Field, Kind as Type};
use super::wire::{Fields, Packed, Place, Wire, Wrong};
use super::{DEPTH_MAX, TEXT_BYTES_MAX};
use crate::format::Kind;
use crate::format::text::{push, push_double, push_quoted, push_scaled, push_single};
use base64::Engine as _;
use std::collections::HashMap;

/// How a scalar reads.
pub(super) enum Scalar {
    /// Text, as it stands there.
    Range(Place),
    /// What was appended.
    Written(Kind),
}

/// A record and what is known of its messages.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    pub(super) set: &'a Descriptors,
    pub(super) record: &'a [u8],
}

type Read<T> = Result<T, Wrong>;

/// Messages that stand for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WellKnown {
    /// Seconds, and nanoseconds: an instant or a span.
    Seconds,
    /// One value, which may be absent.
    Wrapper,
}

fn well_known(name: &str) -> Option<WellKnown> {
    match name.strip_prefix("google.protobuf.")? {
        "Timestamp" | "Duration" => Some(WellKnown::Seconds),
        "DoubleValue" | "FloatValue" | "Int64Value" | "UInt64Value" | "Int32Value" | "UInt32Value"
        | "BoolValue" | "StringValue" | "BytesValue" => Some(WellKnown::Wrapper),
        _ => None,
    }
}

/// Whether a value of that type may stand so on the wire, as a single one.
pub(super) fn is_single(kind: Type, wire: Wire) -> bool {
    match kind {
        Type::Double | Type::Fixed64 | Type::Sfixed64 => matches!(wire, Wire::Fixed64(_)),
        Type::Float | Type::Fixed32 | Type::Sfixed32 => matches!(wire, Wire::Fixed32(_)),
        Type::String | Type::Bytes => matches!(wire, Wire::Bytes(_)),
        Type::Message(_) => matches!(wire, Wire::Bytes(_) | Wire::Group(_)),
        _ => matches!(wire, Wire::Varint(_)),
    }
}

/// How numbers of that type are packed, if they can be.
pub(super) fn packed(kind: Type) -> Option<Packed> {
    match kind {
        Type::Double | Type::Fixed64 | Type::Sfixed64 => Some(Packed::Fixed64),
        Type::Float | Type::Fixed32 | Type::Sfixed32 => Some(Packed::Fixed32),
        Type::String | Type::Bytes | Type::Message(_) => None,
        _ => Some(Packed::Varint),
    }
}

/// Whether a scalar is that of a field that is absent.
fn is_zero(wire: Wire) -> bool {
    match wire {
        Wire::Varint(n) | Wire::Fixed64(n) => n == 0,
        Wire::Fixed32(n) => n == 0,
        Wire::Bytes(place) | Wire::Group(place) => place.at == place.end,
    }
}

/// The bytes of a message; of none if it is no message.
fn body(wire: Wire) -> Place {
    match wire {
        Wire::Bytes(place) | Wire::Group(place) => place,
        _ => Place { at: 0, end: 0 },
    }
}

impl<'a> Values<'a> {
    pub(super) fn fields(&self, message: Wire) -> Fields<'a> {
        Fields::new(self.record, body(message))
    }

    pub(super) fn bytes(&self, place: Place) -> &'a [u8] {
        &self.record[place.at..place.end]
    }

    /// Calls `each` with the elements of a list that one occurrence brings.
    pub(super) fn elements(
        &self,
        kind: Type,
        wire: Wire,
        mut each: impl FnMut(Wire) -> Read<()>,
    ) -> Read<()> {
        if is_single(kind, wire) {
            return each(wire);
        }
        if let (Wire::Bytes(place), Some(packed)) = (wire, packed(kind)) {
            let mut numbers = Fields::new(self.record, place);
            while let Some(number) = numbers.packed(packed)? {
                each(number)?;
            }
        }
        Ok(())
    }

    /// Reads a scalar that stands so on the wire.
    pub(super) fn scalar(&self, kind: Type, wire: Wire, to: &mut Vec<u8>) -> Read<Scalar> {
        let is_number = match (kind, wire) {
            (Type::Double, Wire::Fixed64(n)) => push_double(to, f64::from_bits(n)),
            (Type::Float, Wire::Fixed32(n)) => push_single(to, f32::from_bits(n)),
            (Type::String, Wire::Bytes(place)) => {
                let bytes = self.bytes(place);
                if simdutf8::basic::from_utf8(bytes).is_err() {
                    return Err(Wrong { at: place.at, what: "a string is no UTF-8".to_owned() });
                }
                return Ok(Scalar::Range(place));
            }
            (Type::Bytes, Wire::Bytes(place)) => {
                push_base64(to, self.bytes(place));
                false
            }
            (Type::Bool, Wire::Varint(n)) => {
                push(to, format_args!("{}", n != 0));
                return Ok(Scalar::Written(Kind::Bool));
            }
            (Type::Enum(at), Wire::Varint(n)) => match self.set.enums[at].name(n as i32) {
                Some(name) => {
                    to.extend_from_slice(name.as_bytes());
                    false
                }
                None => pushed(to, format_args!("{}", n as i32)),
            },
            (Type::Int64, Wire::Varint(n)) | (Type::Sfixed64, Wire::Fixed64(n)) => {
                pushed(to, format_args!("{}", n as i64))
            }
            (Type::Uint64, Wire::Varint(n)) | (Type::Fixed64, Wire::Fixed64(n)) => {
                pushed(to, format_args!("{n}"))
            }
            (Type::Int32, Wire::Varint(n)) => pushed(to, format_args!("{}", n as i32)),
            (Type::Uint32, Wire::Varint(n)) => pushed(to, format_args!("{}", n as u32)),
            (Type::Fixed32, Wire::Fixed32(n)) => pushed(to, format_args!("{n}")),
            (Type::Sfixed32, Wire::Fixed32(n)) => pushed(to, format_args!("{}", n as i32)),
            (Type::Sint32, Wire::Varint(n)) => {
                let n = n as u32;
                pushed(to, format_args!("{}", (n >> 1) as i32 ^ -((n & 1) as i32)))
            }
            (Type::Sint64, Wire::Varint(n)) => {
                pushed(to, format_args!("{}", (n >> 1) as i64 ^ -((n & 1) as i64)))
            }
            _ => false,
        };
        Ok(Scalar::Written(if is_number { Kind::Number } else { Kind::Text }))
    }

    /// What a scalar is that nobody wrote; of a declared default if there is one.
    pub(super) fn default(&self, field: &Field, to: &mut Vec<u8>) -> Kind {
        let declared = field.default.as_deref();
        match (field.kind, declared) {
            (Type::Double, _) => {
                return number(push_double(to, declared.and_then(float).unwrap_or(0.0)));
            }
            (Type::Float, _) => {
                return number(push_single(to, declared.and_then(float).unwrap_or(0.0) as f32));
            }
            (Type::Bool, _) => {
                push(to, format_args!("{}", declared == Some("true")));
                return Kind::Bool;
            }
            (Type::Enum(at), None) => {
                let first = self.set.enums[at].values.first();
                to.extend_from_slice(first.map_or("", |(_, name)| name).as_bytes());
            }
            (Type::Bytes, Some(escaped)) => push_base64(to, &unescaped(escaped)),
            (Type::String | Type::Enum(_), Some(text)) => to.extend_from_slice(text.as_bytes()),
            (Type::String | Type::Bytes | Type::Message(_), _) => {}
            (_, text) => {
                to.extend_from_slice(text.unwrap_or("0").as_bytes());
                return Kind::Number;
            }
        }
        Kind::Text
    }

    /// Appends a message, of which these are the occurrences.
    pub(super) fn message(&self, message: usize, occurrences: &[Wire], to: &mut Vec<u8>) -> Read<Kind> {
        match well_known(&self.set.messages[message].name) {
            Some(WellKnown::Seconds) => {
                let (mut seconds, mut nanos) = (0, 0);
                self.each(occurrences, |number, wire| {
                    match (number, wire) {
                        (1, Wire::Varint(n)) => seconds = n as i64,
                        (2, Wire::Varint(n)) => nanos = n as i32,
                        _ => {}
                    }
                    Ok(())
                })?;
                push_scaled(to, i128::from(seconds) * 1_000_000_000 + i128::from(nanos), 6);
                Ok(Kind::Number)
            }
            Some(WellKnown::Wrapper) => {
                let Some(field) = self.set.messages[message].fields.iter().find(|f| f.number == 1) else {
                    return Ok(Kind::Missing);
                };
                let mut last = None;
                self.each(occurrences, |number, wire| {
                    if number == 1 && is_single(field.kind, wire) {
                        last = Some(wire);
                    }
                    Ok(())
                })?;
                let Some(last) = last else { return Ok(self.default(field, to)) };
                match self.scalar(field.kind, last, to)? {
                    Scalar::Written(kind) => Ok(kind),
                    Scalar::Range(place) => {
                        to.extend_from_slice(self.bytes(place));
                        Ok(Kind::Text)
                    }
                }
            }
            None => self.json_object(message, occurrences, 0, to).map(|()| Kind::Structure),
        }
    }

    /// Calls `field` with the fields of all occurrences of a message.
    fn each(&self, occurrences: &[Wire], mut field: impl FnMut(u32, Wire) -> Read<()>) -> Read<()> {
        for occurrence in occurrences {
            let mut fields = self.fields(*occurrence);
            while let Some((number, wire)) = fields.next()? {
                field(number, wire)?;
            }
        }
        Ok(())
    }

    fn check(&self, occurrences: &[Wire], depth: usize, to: &[u8]) -> Read<()> {
        let at = occurrences.first().map_or(0, |o| body(*o).at);
        if depth > DEPTH_MAX {
            return Err(Wrong { at, what: format!("messages are nested more than {DEPTH_MAX} deep") });
        }
        if to.len() > TEXT_BYTES_MAX {
            let what = format!("a value has more than {TEXT_BYTES_MAX} bytes as JSON");
            return Err(Wrong { at, what });
        }
        Ok(())
    }

    /// A message with its fields in the order in which they are declared; those that are absent are left out.
    fn json_object(&self, message: usize, occurrences: &[Wire], depth: usize, to: &mut Vec<u8>) -> Read<()> {
        self.check(occurrences, depth, to)?;
        let fields = &self.set.messages[message].fields;
        let mut found: Vec<(usize, Wire)> = Vec::new();
        // Of each oneof the member that came last, and since when.
        let mut members: HashMap<u32, (usize, usize)> = HashMap::new();
        self.each(occurrences, |number, wire| {
            let Some(i) = fields.iter().position(|f| f.number == number) else { return Ok(()) };
            if !belongs(&fields[i], wire) {
                return Ok(());
            }
            if let Some(oneof) = fields[i].oneof
                && members.get(&oneof).is_none_or(|(member, _)| *member != i)
            {
                members.insert(oneof, (i, found.len()));
            }
            found.push((i, wire));
            Ok(())
        })?;
        let mut at = 0;
        found.retain(|(i, _)| {
            at += 1;
            let member = fields[*i].oneof.and_then(|oneof| members.get(&oneof));
            member.is_none_or(|(member, since)| member == i && at > *since)
        });
        found.sort_by_key(|(i, _)| *i);
        to.push(b'{');
        let mut is_first = true;
        for group in found.chunk_by(|a, b| a.0 == b.0) {
            let field = &fields[group[0].0];
            let wires: Vec<Wire> = group.iter().map(|(_, wire)| *wire).collect();
            // Written or not, it is the same where there is no presence.
            if !field.has_presence && !field.is_repeated && wires.last().copied().is_some_and(is_zero) {
                continue;
            }
            let before = to.len();
            if !is_first {
                to.push(b',');
            }
            push_quoted(to, &field.name);
            to.push(b':');
            let from = to.len();
            match self.entry_of(field) {
                Some(entry) => self.json_map(entry, &wires, depth + 1, to)?,
                None if field.is_repeated => self.json_list(field.kind, &wires, depth + 1, to)?,
                None => self.json_value(field.kind, &wires, depth + 1, to)?,
            }
            // Packed numbers may be none, which is no list.
            if field.is_repeated && to[from..] == *b"[]" {
                to.truncate(before);
                continue;
            }
            is_first = false;
        }
        to.push(b'}');
        Ok(())
    }

    /// The message that the entries of a map are, if the field is one.
    pub(super) fn entry_of(&self, field: &Field) -> Option<usize> {
        match field.kind {
            Type::Message(at) if field.is_repeated && self.set.messages[at].is_map_entry => Some(at),
            _ => None,
        }
    }

    /// A single value, of which these are the occurrences.
    fn json_value(&self, kind: Type, wires: &[Wire], depth: usize, to: &mut Vec<u8>) -> Read<()> {
        let from = to.len();
        let read = match (kind, wires.last()) {
            (Type::Message(at), _) if well_known(&self.set.messages[at].name).is_none() => {
                return self.json_object(at, wires, depth, to);
            }
            (Type::Message(at), _) => self.message(at, wires, to)?,
            (_, Some(last)) => match self.scalar(kind, *last, to)? {
                Scalar::Written(kind) => kind,
                Scalar::Range(place) => {
                    to.extend_from_slice(self.bytes(place));
                    Kind::Text
                }
            },
            (_, None) => Kind::Missing,
        };
        if matches!(read, Kind::Text | Kind::Missing) {
            quote(to, from);
        }
        Ok(())
    }

    /// A list, of which these are the occurrences.
    pub(super) fn json_list(&self, kind: Type, wires: &[Wire], depth: usize, to: &mut Vec<u8>) -> Read<()> {
        self.check(wires, depth, to)?;
        to.push(b'[');
        let mut is_first = true;
        for wire in wires {
            self.elements(kind, *wire, |element| {
                if !std::mem::take(&mut is_first) {
                    to.push(b',');
                }
                self.check(wires, depth, to)?;
                self.json_value(kind, &[element], depth, to)
            })?;
        }
        to.push(b']');
        Ok(())
    }

    /// A map, of which these are the entries.
    pub(super) fn json_map(&self, entry: usize, wires: &[Wire], depth: usize, to: &mut Vec<u8>) -> Read<()> {
        self.check(wires, depth, to)?;
        // Keys in the order in which they first came, each with its last entry.
        let mut keys: Vec<(Vec<u8>, Wire)> = Vec::new();
        let mut known: HashMap<Vec<u8>, usize> = HashMap::new();
        for wire in wires {
            let mut key = Vec::new();
            self.key(entry, *wire, &mut key)?;
            match known.get(&key) {
                Some(i) => keys[*i].1 = *wire,
                None => {
                    known.insert(key.clone(), keys.len());
                    keys.push((key, *wire));
                }
            }
        }
        to.push(b'{');
        for (i, (key, wire)) in keys.iter().enumerate() {
            if i > 0 {
                to.push(b',');
            }
            push_quoted(to, &String::from_utf8_lossy(key));
            to.push(b':');
            let Some(value) = self.part(entry, 2) else { continue };
            let mut values = Vec::new();
            self.parts(entry, *wire, 2, |wire| values.push(wire))?;
            if values.is_empty() && !matches!(value.kind, Type::Message(_)) {
                let from = to.len();
                if self.default(value, to) == Kind::Text {
                    quote(to, from);
                }
            } else {
                self.json_value(value.kind, &values, depth, to)?;
            }
        }
        to.push(b'}');
        Ok(())
    }

    /// Appends the key of a map's entry.
    pub(super) fn key(&self, entry: usize, wire: Wire, to: &mut Vec<u8>) -> Read<()> {
        let Some(field) = self.part(entry, 1) else { return Ok(()) };
        let mut last = None;
        self.parts(entry, wire, 1, |wire| last = Some(wire))?;
        match last {
            None => {
                self.default(field, to);
            }
            Some(last) => {
                if let Scalar::Range(place) = self.scalar(field.kind, last, to)? {
                    to.extend_from_slice(self.bytes(place));
                }
            }
        }
        Ok(())
    }

    /// The key (1) or the value (2) of a map's entry.
    pub(super) fn part(&self, entry: usize, number: u32) -> Option<&'a Field> {
        self.set.messages[entry].fields.iter().find(|f| f.number == number)
    }

    /// Calls `each` with the occurrences of the key or value in an entry.
    pub(super) fn parts(
        &self,
        entry: usize,
        wire: Wire,
        number: u32,
        mut each: impl FnMut(Wire),
    ) -> Read<()> {
        let kind = self.part(entry, number).map(|f| f.kind);
        self.each(&[wire], |n, wire| {
            if n == number && kind.is_some_and(|k| is_single(k, wire)) {
                each(wire);
            }
            Ok(())
        })
    }
}

/// Whether what stands on the wire is of the field's type.
pub(super) fn belongs(field: &Field, wire: Wire) -> bool {
    is_single(field.kind, wire)
        || (field.is_repeated && packed(field.kind).is_some() && matches!(wire, Wire::Bytes(_)))
}

fn number(is_finite: bool) -> Kind {
    if is_finite { Kind::Number } else { Kind::Text }
}

fn pushed(to: &mut Vec<u8>, text: std::fmt::Arguments<'_>) -> bool {
    push(to, text);
    true
}

fn push_base64(to: &mut Vec<u8>, bytes: &[u8]) {
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    to.extend_from_slice(text.as_bytes());
}

/// Puts quotes around what was appended.
fn quote(to: &mut Vec<u8>, from: usize) {
    let text = String::from_utf8_lossy(&to[from..]).into_owned();
    to.truncate(from);
    push_quoted(to, &text);
}

/// A declared default of a number with a point.
fn float(text: &str) -> Option<f64> {
    // As protoc writes them, which Rust reads too.
    text.parse().ok()
}

/// The bytes that a declared default stands for, which has them as C does.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let octal = rest.iter().take(3).take_while(|b| matches!(b, b'0'..=b'7')).count();
        if octal > 0 {
            bytes.push(rest[..octal].iter().fold(0_u8, |n, b| n.wrapping_mul(8).wrapping_add(b - b'0')));
            rest = &rest[octal..];
            continue;
        }
        let [escape, after @ ..] = rest else { break };
        rest = after;
        bytes.push(match escape {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            other => *other,
        });
    }
    bytes
}
