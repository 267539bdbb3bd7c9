//! How values of a writer's schema are read, as the reader's schema has it: schema resolution done once, before any value.
//!
//! Without a reader's schema values are read as they were written. With one, fields go by the reader's names, numbers are
//! widened, what the writer does not have gets the reader's default (kept as bytes, and read like everything else), and
//! what the reader cannot take is [`Shape::Foreign`]: wrong only where it is wanted.
//!
//! Invariants: every number in a shape is that of a shape; shapes may contain themselves, as schemas do.

use super::schema::{Field, Logical, Node, Schema, Type, unqualified};
use serde_json::Value;
use std::collections::HashMap;

/// How a value is read.
#[derive(Debug)]
pub(super) enum Shape {
    Null,
    Boolean,
    Integer {
        /// Of 32 bits.
        is_int: bool,
        form: IntegerForm,
    },
    Float {
        /// The reader has it as a double.
        is_widened: bool,
    },
    Double,
    String,
    /// Bytes with a length before, or so many.
    Bytes {
        fixed: Option<usize>,
        form: BytesForm,
    },
    /// Names by number; none where the reader has no such symbol, and no default.
    Enum(Vec<Option<Box<str>>>),
    Record(Record),
    Array(usize),
    Map(usize),
    Union(Vec<usize>),
    /// Another shape, which is none of this kind.
    Same(usize),
    /// The reader's schema has another type here.
    Foreign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IntegerForm {
    Plain,
    /// The reader has it as a number with a point, of single precision or not.
    Single,
    Double,
    Date,
    /// In so many decimal places below a millisecond.
    Timestamp(u32),
    LocalTimestamp(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BytesForm {
    /// As Avro's JSON has them: each byte is the character of that number.
    Characters,
    /// The reader has them as text.
    Text,
    Decimal(u32),
    Uuid,
    Duration,
}

#[derive(Debug, Default)]
pub(super) struct Record {
    /// As they were written.
    pub(super) fields: Vec<Part>,
    /// What the reader adds.
    pub(super) defaults: Vec<Default>,
}

#[derive(Debug)]
pub(super) struct Part {
    /// As the reader calls it; none if it has no such field.
    pub(super) name: Option<Box<str>>,
    pub(super) shape: usize,
    /// The same as the writer has it, to get over it.
    pub(super) written: usize,
}

#[derive(Debug)]
pub(super) struct Default {
    pub(super) name: Box<str>,
    pub(super) shape: usize,
    pub(super) bytes: Box<[u8]>,
}

/// All shapes of a pair of schemas.
#[derive(Debug)]
pub(super) struct Shapes {
    pub(super) all: Vec<Shape>,
    pub(super) root: usize,
}

impl Shapes {
    /// For values of the writer's schema; the error says why nobody could read them.
    pub(super) fn new(writer: &Schema, reader: Option<&Schema>) -> Result<Shapes, String> {
        let mut r = Resolver { writer, reader, all: Vec::new(), known: HashMap::new() };
        let root = match reader {
            Some(reader) => r.both(writer.root, reader.root)?,
            None => r.plain(Side::Writer, writer.root)?,
        };
        let shapes = Shapes { all: r.all, root };
        if matches!(shapes.at(root), Shape::Foreign) {
            return Err("the reader's schema has another type".to_owned());
        }
        Ok(shapes)
    }

    /// The shape of that number, which is none that only leads to another.
    pub(super) fn at(&self, number: usize) -> &Shape {
        match &self.all[number] {
            Shape::Same(other) => &self.all[*other],
            shape => shape,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Side {
    Writer,
    Reader,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Pair {
    One(Side, usize),
    Both(usize, usize),
}

struct Resolver<'s> {
    writer: &'s Schema,
    reader: Option<&'s Schema>,
    all: Vec<Shape>,
    known: HashMap<Pair, usize>,
}

impl<'s> Resolver<'s> {
    fn node(&self, side: Side, at: usize) -> &'s Node {
        let schema = if side == Side::Writer { self.writer } else { self.reader.unwrap_or(self.writer) };
        &schema.nodes[at]
    }

    /// A number for a pair, before what is below it is known; or the one that it has.
    fn reserve(&mut self, pair: Pair) -> Result<usize, usize> {
        if let Some(at) = self.known.get(&pair) {
            return Err(*at);
        }
        self.all.push(Shape::Foreign);
        self.known.insert(pair, self.all.len() - 1);
        Ok(self.all.len() - 1)
    }

    /// Values of a schema as that schema has them.
    fn plain(&mut self, side: Side, at: usize) -> Result<usize, String> {
        let shape = match self.reserve(Pair::One(side, at)) {
            Ok(new) => new,
            Err(known) => return Ok(known),
        };
        let node = self.node(side, at);
        self.all[shape] = match &node.kind {
            Type::Array(item) => Shape::Array(self.plain(side, *item)?),
            Type::Map(value) => Shape::Map(self.plain(side, *value)?),
            Type::Union(branches) => {
                Shape::Union(branches.iter().map(|b| self.plain(side, *b)).collect::<Result<_, _>>()?)
            }
            Type::Record(fields) => {
                let mut record = Record::default();
                for field in fields {
                    let shape = self.plain(side, field.schema)?;
                    let name = Some(field.name.as_str().into());
                    record.fields.push(Part { name, shape, written: shape });
                }
                Shape::Record(record)
            }
            Type::Enum { symbols, .. } => {
                Shape::Enum(symbols.iter().map(|s| Some(s.as_str().into())).collect())
            }
            _ => scalar(node, node),
        };
        Ok(shape)
    }

    /// Values of the writer's type as the reader has them.
    fn both(&mut self, w: usize, r: usize) -> Result<usize, String> {
        let shape = match self.reserve(Pair::Both(w, r)) {
            Ok(new) => new,
            Err(known) => return Ok(known),
        };
        let (writer, reader) = (self.node(Side::Writer, w), self.node(Side::Reader, r));
        self.all[shape] = match (&writer.kind, &reader.kind) {
            (Type::Union(branches), _) => {
                Shape::Union(branches.iter().map(|b| self.both(*b, r)).collect::<Result<_, _>>()?)
            }
            (_, Type::Union(branches)) => match self.branch(writer, branches) {
                Some(branch) => Shape::Same(self.both(w, branch)?),
                None => Shape::Foreign,
            },
            (Type::Array(w), Type::Array(r)) => Shape::Array(self.both(*w, *r)?),
            (Type::Map(w), Type::Map(r)) => Shape::Map(self.both(*w, *r)?),
            (Type::Record(from), Type::Record(to)) if same_name(writer, reader) => {
                Shape::Record(self.record(from, to)?)
            }
            (Type::Enum { symbols: from, .. }, Type::Enum { symbols: to, default })
                if same_name(writer, reader) =>
            {
                let symbol = |s| if to.contains(s) { Some(s) } else { default.as_ref() };
                Shape::Enum(from.iter().map(|s| symbol(s).map(|s| s.as_str().into())).collect())
            }
            _ if fits(writer, reader) != Fit::Not => scalar(writer, reader),
            _ => Shape::Foreign,
        };
        Ok(shape)
    }

    /// The branch of the reader's union that takes a writer's value: the first of the same type, else the first that it
    /// can be widened to.
    fn branch(&self, writer: &Node, branches: &[usize]) -> Option<usize> {
        let find = |fit| branches.iter().copied().find(|b| fits(writer, self.node(Side::Reader, *b)) == fit);
        find(Fit::Same).or_else(|| find(Fit::Widened))
    }

    fn record(&mut self, from: &[Field], to: &[Field]) -> Result<Record, String> {
        let mut record = Record::default();
        let mut taken = vec![false; to.len()];
        for field in from {
            let named = to.iter().position(|t| t.name == field.name);
            // An alias stands for a name that the writer does not have besides.
            let aliased = || {
                to.iter().position(|t| {
                    t.aliases.contains(&field.name) && !from.iter().any(|other| other.name == t.name)
                })
            };
            let target = named.or_else(aliased).filter(|t| !std::mem::replace(&mut taken[*t], true));
            let written = self.plain(Side::Writer, field.schema)?;
            record.fields.push(match target {
                Some(t) => Part {
                    name: Some(to[t].name.as_str().into()),
                    shape: self.both(field.schema, to[t].schema)?,
                    written,
                },
                None => Part { name: None, shape: written, written },
            });
        }
        for (field, _) in to.iter().zip(&taken).filter(|(_, taken)| !**taken) {
            let Some(default) = &field.default else { continue };
            let mut bytes = Vec::new();
            self.encode(field.schema, default, 0, &mut bytes)
                .map_err(|e| format!("the default of `{}`: {e}", field.name))?;
            let shape = self.plain(Side::Reader, field.schema)?;
            record.defaults.push(Default { name: field.name.as_str().into(), shape, bytes: bytes.into() });
        }
        Ok(record)
    }

    /// A default as it would have been written.
    fn encode(&self, at: usize, value: &Value, depth: usize, to: &mut Vec<u8>) -> Result<(), String> {
        if depth > super::DEPTH_MAX || to.len() > super::TEXT_BYTES_MAX {
            return Err("is too large".to_owned());
        }
        let wrong = || format!("`{value}` does not fit its type");
        match &self.node(Side::Reader, at).kind {
            Type::Null if value.is_null() => {}
            Type::Boolean => to.push(u8::from(value.as_bool().ok_or_else(wrong)?)),
            Type::Int => {
                let n = value.as_i64().filter(|n| i32::try_from(*n).is_ok()).ok_or_else(wrong)?;
                push_long(to, n);
            }
            Type::Long => push_long(to, value.as_i64().ok_or_else(wrong)?),
            Type::Float => to.extend_from_slice(&(double(value).ok_or_else(wrong)? as f32).to_le_bytes()),
            Type::Double => to.extend_from_slice(&double(value).ok_or_else(wrong)?.to_le_bytes()),
            Type::String => push_bytes(to, value.as_str().ok_or_else(wrong)?.as_bytes()),
            Type::Bytes => push_bytes(to, &characters(value).ok_or_else(wrong)?),
            Type::Fixed(size) => {
                to.extend(characters(value).filter(|b| b.len() == *size).ok_or_else(wrong)?);
            }
            Type::Enum { symbols, .. } => {
                let symbol = symbols.iter().position(|s| Some(s.as_str()) == value.as_str());
                push_long(to, symbol.ok_or_else(wrong)? as i64);
            }
            Type::Array(item) => {
                let items = value.as_array().ok_or_else(wrong)?;
                for one in items {
                    push_long(to, 1);
                    self.encode(*item, one, depth + 1, to)?;
                }
                push_long(to, 0);
            }
            Type::Map(item) => {
                for (key, one) in value.as_object().ok_or_else(wrong)? {
                    push_long(to, 1);
                    push_bytes(to, key.as_bytes());
                    self.encode(*item, one, depth + 1, to)?;
                }
                push_long(to, 0);
            }
            Type::Union(branches) => {
                // Of the first branch, as it was once the rule; of the first that it fits, as it is now.
                let before = to.len();
                let fits = branches.iter().enumerate().any(|(i, branch)| {
                    to.truncate(before);
                    push_long(to, i as i64);
                    self.encode(*branch, value, depth + 1, to).is_ok()
                });
                if !fits {
                    return Err(wrong());
                }
            }
            Type::Record(fields) => {
                let object = value.as_object().ok_or_else(wrong)?;
                for field in fields {
                    let value = object.get(&field.name).or(field.default.as_ref()).ok_or_else(wrong)?;
                    self.encode(field.schema, value, depth + 1, to)?;
                }
            }
            Type::Null => return Err(wrong()),
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fit {
    Same,
    Widened,
    Not,
}

/// Whether a reader takes what was written, by the types alone.
fn fits(writer: &Node, reader: &Node) -> Fit {
    use Type::{Array, Boolean, Bytes, Double, Enum, Fixed, Float, Int, Long, Map, Null, Record, String};
    match (&writer.kind, &reader.kind) {
        (Null, Null) | (Boolean, Boolean) | (Int, Int) | (Long, Long) => Fit::Same,
        (Float, Float) | (Double, Double) | (Bytes, Bytes) | (String, String) => Fit::Same,
        (Array(_), Array(_)) | (Map(_), Map(_)) => Fit::Same,
        (Record(_), Record(_)) | (Enum { .. }, Enum { .. }) if same_name(writer, reader) => Fit::Same,
        (Fixed(a), Fixed(b)) if a == b && same_name(writer, reader) => Fit::Same,
        (Int, Long | Float | Double) | (Long, Float | Double) | (Float, Double) => Fit::Widened,
        (String, Bytes) | (Bytes, String) => Fit::Widened,
        _ => Fit::Not,
    }
}

/// Whether two definitions are of one thing: namespaces do not count.
fn same_name(writer: &Node, reader: &Node) -> bool {
    let (Some(w), Some(r)) = (&writer.name, &reader.name) else { return false };
    unqualified(w) == unqualified(r) || reader.aliases.iter().any(|a| a == w)
}

/// What is no structure, written so and read so.
fn scalar(writer: &Node, reader: &Node) -> Shape {
    let integer = |is_int| Shape::Integer { is_int, form: integer_form(reader) };
    let bytes = |fixed| Shape::Bytes { fixed, form: bytes_form(reader) };
    match (&writer.kind, &reader.kind) {
        (Type::Null, _) => Shape::Null,
        (Type::Boolean, _) => Shape::Boolean,
        (Type::Int, _) => integer(true),
        (Type::Long, _) => integer(false),
        (Type::Float, r) => Shape::Float { is_widened: matches!(r, Type::Double) },
        (Type::Double, _) => Shape::Double,
        (Type::String, Type::String) => Shape::String,
        (Type::String | Type::Bytes, _) => bytes(None),
        (Type::Fixed(size), _) => bytes(Some(*size)),
        _ => Shape::Foreign,
    }
}

fn integer_form(reader: &Node) -> IntegerForm {
    match (&reader.kind, reader.logical) {
        (Type::Float, _) => IntegerForm::Single,
        (Type::Double, _) => IntegerForm::Double,
        (_, Some(Logical::Date)) => IntegerForm::Date,
        (_, Some(Logical::Timestamp(places))) => IntegerForm::Timestamp(places),
        (_, Some(Logical::LocalTimestamp(places))) => IntegerForm::LocalTimestamp(places),
        _ => IntegerForm::Plain,
    }
}

fn bytes_form(reader: &Node) -> BytesForm {
    match (&reader.kind, reader.logical) {
        (Type::String, _) => BytesForm::Text,
        (_, Some(Logical::Decimal { scale })) => BytesForm::Decimal(scale),
        (_, Some(Logical::Uuid)) => BytesForm::Uuid,
        (_, Some(Logical::Duration)) => BytesForm::Duration,
        _ => BytesForm::Characters,
    }
}

fn push_long(to: &mut Vec<u8>, value: i64) {
    let mut n = ((value << 1) ^ (value >> 63)) as u64;
    while n >= 0x80 {
        to.push(n as u8 | 0x80);
        n >>= 7;
    }
    to.push(n as u8);
}

fn push_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    push_long(to, bytes.len() as i64);
    to.extend_from_slice(bytes);
}

/// A number; or the name of what JSON has no number for.
fn double(value: &Value) -> Option<f64> {
    match value {
        Value::String(name) => match name.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" | "INF" => Some(f64::INFINITY),
            "-Infinity" | "-INF" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        other => other.as_f64(),
    }
}

/// Bytes of a text whose characters are their numbers.
fn characters(value: &Value) -> Option<Vec<u8>> {
    value.as_str()?.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}
