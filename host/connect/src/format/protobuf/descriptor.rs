//! Descriptor sets: what `protoc --descriptor_set_out` (or `buf build`) says of messages, itself a Protobuf message.
//!
//! Read with the wire format at hand and not with `prost-types`, which drops the features that editions are made of. Fields
//! are known by the numbers of descriptor.proto.

use super::wire::{Fields, Place, Wire, Wrong};
use std::collections::HashMap;

/// The largest descriptor set that is read.
pub const DESCRIPTORS_BYTES_MAX: usize = 16 << 20;
/// How deep messages may be defined in messages.
const NESTED_MAX: usize = 64;

/// The messages of a descriptor set.
#[derive(Debug, Clone, Default)]
pub struct Descriptors {
    pub(super) messages: Vec<Message>,
    pub(super) enums: Vec<Enum>,
    by_name: HashMap<String, Named>,
}

#[derive(Debug, Clone, Copy)]
enum Named {
    Message(usize),
    Enum(usize),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Message {
    /// With its package.
    pub(super) name: String,
    /// By number.
    pub(super) fields: Vec<Field>,
    pub(super) is_map_entry: bool,
    /// Where it stands in its file: its number among the outermost ones, then among those in it.
    pub(super) indexes: Vec<u32>,
}

#[derive(Debug, Clone)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) number: u32,
    pub(super) kind: Kind,
    pub(super) is_repeated: bool,
    /// Whether a field that is absent differs from one that has its default.
    pub(super) has_presence: bool,
    /// As it is declared, if it is.
    pub(super) default: Option<String>,
    /// Which of the message's oneofs it belongs to.
    pub(super) oneof: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Double,
    Float,
    Int64,
    Uint64,
    Int32,
    Fixed64,
    Fixed32,
    Bool,
    String,
    Bytes,
    Uint32,
    Sfixed32,
    Sfixed64,
    Sint32,
    Sint64,
    Enum(usize),
    Message(usize),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Enum {
    /// By number; the first of several names that share one. The first one is the default.
    pub(super) values: Vec<(i32, String)>,
}

impl Enum {
    pub(super) fn name(&self, number: i32) -> Option<&str> {
        self.values.iter().find(|(n, _)| *n == number).map(|(_, name)| name.as_str())
    }
}

impl Descriptors {
    /// Reads a descriptor set. It must hold all that its messages name (`--include_imports`).
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Descriptors, String> {
        if bytes.len() > DESCRIPTORS_BYTES_MAX {
            return Err(format!("the descriptor set has more than {DESCRIPTORS_BYTES_MAX} bytes"));
        }
        let mut parser = Parser { bytes, set: Descriptors::default(), unresolved: Vec::new() };
        parser
            .set(Place { at: 0, end: bytes.len() })
            .map_err(|w| format!("this is no descriptor set: at byte {}: {}", w.at, w.what))?;
        parser.resolve()?;
        Ok(parser.set)
    }

    /// The names of all messages but those that maps are made of.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.messages.iter().filter(|m| !m.is_map_entry).map(|m| m.name.as_str())
    }

    pub(super) fn message(&self, name: &str) -> Option<usize> {
        match self.by_name.get(name)? {
            Named::Message(at) => Some(*at),
            Named::Enum(_) => None,
        }
    }
}

/// What a file or a message in it says for all that it holds, unless that says otherwise.
#[derive(Debug, Clone, Copy)]
struct Features {
    /// Singular fields without a message in them are there or not.
    has_presence: bool,
}

struct Parser<'b> {
    bytes: &'b [u8],
    set: Descriptors,
    /// Message, field in it, name of its type.
    unresolved: Vec<(usize, usize, String)>,
}

type Parsed<T> = Result<T, Wrong>;

impl<'b> Parser<'b> {
    /// Calls `field` with each field of a message.
    fn each(
        &mut self,
        place: Place,
        mut field: impl FnMut(&mut Self, u32, Wire) -> Parsed<()>,
    ) -> Parsed<()> {
        let mut fields = Fields::new(self.bytes, place);
        while let Some((number, wire)) = fields.next()? {
            field(self, number, wire)?;
        }
        Ok(())
    }

    fn text(&self, place: Place) -> Parsed<String> {
        let bytes = &self.bytes[place.at..place.end];
        let text = std::str::from_utf8(bytes);
        text.map(str::to_owned).map_err(|_| Wrong { at: place.at, what: "a name is no UTF-8".to_owned() })
    }

    fn set(&mut self, place: Place) -> Parsed<()> {
        self.each(place, |p, number, wire| match (number, wire) {
            (1, Wire::Bytes(file)) => p.file(file),
            _ => Ok(()),
        })
    }

    fn file(&mut self, place: Place) -> Parsed<()> {
        let (mut package, mut syntax) = (String::new(), String::new());
        let mut options = None;
        self.each(place, |p, number, wire| {
            match (number, wire) {
                (2, Wire::Bytes(at)) => package = p.text(at)?,
                (12, Wire::Bytes(at)) => syntax = p.text(at)?,
                (8, Wire::Bytes(at)) => options = Some(at),
                _ => {}
            }
            Ok(())
        })?;
        let mut features = Features { has_presence: syntax != "proto3" };
        if let Some(options) = options {
            features = self.features(options, 50, features)?;
        }
        let mut outermost = 0;
        self.each(place, |p, number, wire| {
            match (number, wire) {
                (4, Wire::Bytes(at)) => {
                    p.message(at, &package, &[outermost], features)?;
                    outermost += 1;
                }
                (5, Wire::Bytes(at)) => p.enumeration(at, &package)?,
                _ => {}
            }
            Ok(())
        })
    }

    /// The features in options, where they have that number.
    fn features(&mut self, options: Place, number: u32, outer: Features) -> Parsed<Features> {
        let mut features = outer;
        self.each(options, |p, n, wire| match wire {
            Wire::Bytes(set) if n == number => p.each(set, |_, n, wire| {
                // field_presence: EXPLICIT, IMPLICIT or LEGACY_REQUIRED.
                if let (1, Wire::Varint(presence)) = (n, wire) {
                    features.has_presence = presence != 2;
                }
                Ok(())
            }),
            _ => Ok(()),
        })?;
        Ok(features)
    }

    fn message(&mut self, place: Place, outer: &str, indexes: &[u32], features: Features) -> Parsed<()> {
        if indexes.len() > NESTED_MAX {
            let what = format!("messages are nested more than {NESTED_MAX} deep");
            return Err(Wrong { at: place.at, what });
        }
        let mut name = String::new();
        let mut message = Message { indexes: indexes.to_vec(), ..Message::default() };
        let mut features = features;
        self.each(place, |p, number, wire| {
            match (number, wire) {
                (1, Wire::Bytes(at)) => name = p.text(at)?,
                (7, Wire::Bytes(at)) => {
                    features = p.features(at, 12, features)?;
                    p.each(at, |_, number, wire| {
                        if let (7, Wire::Varint(is)) = (number, wire) {
                            message.is_map_entry = is != 0;
                        }
                        Ok(())
                    })?;
                }
                _ => {}
            }
            Ok(())
        })?;
        message.name = joined(outer, &name);
        let full = message.name.clone();
        let at = self.set.messages.len();
        self.set.by_name.insert(full.clone(), Named::Message(at));
        self.set.messages.push(message);
        let mut nested = 0;
        self.each(place, |p, number, wire| {
            match (number, wire) {
                (2, Wire::Bytes(field)) => p.field(field, at, features)?,
                (3, Wire::Bytes(inner)) => {
                    let indexes: Vec<u32> = indexes.iter().copied().chain([nested]).collect();
                    p.message(inner, &full, &indexes, features)?;
                    nested += 1;
                }
                (4, Wire::Bytes(inner)) => p.enumeration(inner, &full)?,
                _ => {}
            }
            Ok(())
        })
    }

    fn field(&mut self, place: Place, message: usize, features: Features) -> Parsed<()> {
        let (mut label, mut kind, mut type_name) = (0, 0, None);
        let mut field = Field {
            name: String::new(),
            number: 0,
            kind: Kind::Bytes,
            is_repeated: false,
            has_presence: false,
            default: None,
            oneof: None,
        };
        let mut features = features;
        self.each(place, |p, number, wire| {
            match (number, wire) {
                (1, Wire::Bytes(at)) => field.name = p.text(at)?,
                (3, Wire::Varint(n)) => field.number = u32::try_from(n).unwrap_or(0),
                (4, Wire::Varint(n)) => label = n,
                (5, Wire::Varint(n)) => kind = n,
                (6, Wire::Bytes(at)) => type_name = Some(p.text(at)?),
                (7, Wire::Bytes(at)) => field.default = Some(p.text(at)?),
                (8, Wire::Bytes(at)) => features = p.features(at, 21, features)?,
                (9, Wire::Varint(n)) => field.oneof = u32::try_from(n).ok(),
                _ => {}
            }
            Ok(())
        })?;
        field.is_repeated = label == 3;
        // A message is there or not whatever the file says; so is what may stand for another.
        let is_message = matches!(kind, 10 | 11);
        field.has_presence = features.has_presence || is_message || field.oneof.is_some();
        let Some(scalar) = scalar(kind) else {
            let what = format!("the field `{}` is of the unknown type {kind}", field.name);
            return Err(Wrong { at: place.at, what });
        };
        field.kind = scalar;
        let fields = &mut self.set.messages[message].fields;
        fields.push(field);
        if matches!(scalar, Kind::Message(_) | Kind::Enum(_)) {
            self.unresolved.push((message, fields.len() - 1, type_name.unwrap_or_default()));
        }
        Ok(())
    }

    fn enumeration(&mut self, place: Place, outer: &str) -> Parsed<()> {
        let (mut name, mut all) = (String::new(), Enum::default());
        self.each(place, |p, number, wire| {
            match (number, wire) {
                (1, Wire::Bytes(at)) => name = p.text(at)?,
                (2, Wire::Bytes(value)) => {
                    let (mut name, mut number) = (String::new(), 0);
                    p.each(value, |p, n, wire| {
                        match (n, wire) {
                            (1, Wire::Bytes(at)) => name = p.text(at)?,
                            (2, Wire::Varint(n)) => number = n as i32,
                            _ => {}
                        }
                        Ok(())
                    })?;
                    all.values.push((number, name));
                }
                _ => {}
            }
            Ok(())
        })?;
        self.set.by_name.insert(joined(outer, &name), Named::Enum(self.set.enums.len()));
        self.set.enums.push(all);
        Ok(())
    }

    fn resolve(&mut self) -> Result<(), String> {
        for (message, field, name) in std::mem::take(&mut self.unresolved) {
            let named = self.set.by_name.get(name.trim_start_matches('.')).copied();
            let owner = &mut self.set.messages[message];
            let field = &mut owner.fields[field];
            field.kind = match (field.kind, named) {
                (Kind::Message(_), Some(Named::Message(at))) => Kind::Message(at),
                (Kind::Enum(_), Some(Named::Enum(at))) => Kind::Enum(at),
                _ => {
                    return Err(format!(
                        "`{}` of `{}` is of type `{name}`, which the descriptor set does not hold \
                         (`protoc --include_imports` puts it there)",
                        field.name, owner.name
                    ));
                }
            };
        }
        Ok(())
    }
}

fn joined(outer: &str, name: &str) -> String {
    if outer.is_empty() { name.to_owned() } else { format!("{outer}.{name}") }
}

/// The type of a field by its number; where it is another definition, which one comes later.
fn scalar(kind: u64) -> Option<Kind> {
    Some(match kind {
        1 => Kind::Double,
        2 => Kind::Float,
        3 => Kind::Int64,
        4 => Kind::Uint64,
        5 => Kind::Int32,
        6 => Kind::Fixed64,
        7 => Kind::Fixed32,
        8 => Kind::Bool,
        9 => Kind::String,
        10 | 11 => Kind::Message(usize::MAX),
        12 => Kind::Bytes,
        13 => Kind::Uint32,
        14 => Kind::Enum(usize::MAX),
        15 => Kind::Sfixed32,
        16 => Kind::Sfixed64,
        17 => Kind::Sint32,
        18 => Kind::Sint64,
        _ => return None,
    })
}
