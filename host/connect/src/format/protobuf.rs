//! Protobuf records: the declared fields of a message, all else passed over.
//!
//! The message is known from a descriptor set. Records are bare messages, or stand in Confluent's framing; then the number
//! in the frame is not asked about (a registry has the schema's text, and not descriptors), and which of its file's messages
//! the record is must be the one that is configured.
//!
//! Invariants:
//! - A record decodes only if all its fields can be told from each other. What is inside of one that is not wanted is not
//!   looked into, as the format means it: there may be fields that only newer writers know.
//! - As the format defines: of several occurrences of a field the last counts, and messages are merged; numbers may be
//!   packed or not; of a oneof the last member is there. A field without presence that is absent has its default, so has
//!   one with a declared default; else it is missing.
//! - Values are those of Protobuf's JSON, but integers of 64 bits are numbers, names are as declared, and instants and spans
//!   (`Timestamp`, `Duration`) are numbers of milliseconds, with a fraction where they are finer.
//! - Whatever is in a record, reading ends; no length in it allocates anything. A wanted scalar costs no allocation.

pub mod descriptor;
mod value;
mod wire;

use self::descriptor::{Descriptors, Field, Kind as Type};
use self::value::{Scalar, Values, belongs, is_single};
use self::wire::{Fields, Place, Wire, Wrong};
use super::paths::Paths;
use super::{Decoder, Kind, Malformed, Slots};
use std::sync::Arc;

/// How deep messages are followed: as deep as parsers of Protobuf do by default.
const DEPTH_MAX: usize = 100;
/// How long the text of one declared value may get.
const TEXT_BYTES_MAX: usize = 8 << 20;
/// Steps of a frame's way to a message: as deep as messages are defined in each other.
const INDEXES_MAX: u64 = 64;

const REASON: &str = "malformed_protobuf";
const REASON_UNKNOWN: &str = "unknown_schema";

/// Decodes Protobuf messages. See the module's invariants.
pub struct ProtobufDecoder {
    set: Arc<Descriptors>,
    message: usize,
    is_framed: bool,
    wanted: usize,
    /// In depth-first order: what is below a node follows it.
    nodes: Vec<Node>,
    states: Vec<State>,
    /// Reused for keys of maps.
    key: Vec<u8>,
}

/// A place in the message that is wanted, or has something wanted in it.
#[derive(Debug)]
struct Node {
    slots: Vec<usize>,
    /// The first node that is not below.
    end: usize,
    what: What,
}

#[derive(Debug)]
enum What {
    Scalar(Type),
    Message {
        message: usize,
        wanted: Vec<Wanted>,
        defaults: Vec<(usize, usize)>,
    },
    /// Wanted elements by index.
    List {
        kind: Type,
        wanted: Vec<(usize, usize)>,
    },
    /// Wanted values by key.
    Map {
        entry: usize,
        wanted: Vec<(String, usize)>,
    },
}

/// A field of a message that matters.
#[derive(Debug)]
struct Wanted {
    field: usize,
    number: u32,
    node: Option<usize>,
    /// Nodes of the other members of its oneof.
    rivals: Vec<usize>,
}

/// What was seen of a node in the record at hand.
#[derive(Debug, Default)]
struct State {
    /// Elements of a list.
    count: usize,
    is_entered: bool,
    /// Occurrences of what is wanted as a whole.
    held: Vec<Wire>,
}

impl ProtobufDecoder {
    /// For messages of this name. Paths as for JSON: the name of a field, or a JSON pointer; steps through maps are keys,
    /// through lists indexes.
    ///
    /// # Errors
    /// There is no such message.
    pub fn new(
        wanted: &[String],
        set: Arc<Descriptors>,
        message: &str,
        is_framed: bool,
    ) -> Result<ProtobufDecoder, String> {
        let message =
            set.message(message).ok_or_else(|| format!("the descriptor set has no message `{message}`"))?;
        let paths = Paths::new(wanted);
        let mut planner = Planner { paths: &paths, set: &set, nodes: Vec::new() };
        planner.value(Type::Message(message), 0);
        let nodes = planner.nodes;
        let states = nodes.iter().map(|_| State::default()).collect();
        let wanted = wanted.len();
        Ok(ProtobufDecoder { set, message, is_framed, wanted, nodes, states, key: Vec::new() })
    }

    /// Which of the wanted paths the message cannot have: for a config's check.
    #[must_use]
    pub fn absent(&self) -> Vec<usize> {
        let has = |slot: &usize| self.nodes.iter().any(|n| n.slots.contains(slot));
        (0..self.wanted).filter(|slot| !has(slot)).collect()
    }
}

struct Planner<'p> {
    paths: &'p Paths,
    set: &'p Descriptors,
    nodes: Vec<Node>,
}

impl Planner<'_> {
    /// A single value at a path.
    fn value(&mut self, kind: Type, path: usize) -> usize {
        let at = self.begin(path, What::Scalar(kind));
        if let Type::Message(message) = kind {
            let (mut wanted, mut defaults) = (Vec::new(), Vec::new());
            let fields = &self.set.messages[message].fields;
            for child in &self.paths.nodes[path].children {
                let Some(i) = fields.iter().position(|f| f.name == child.name) else { continue };
                let field = &fields[i];
                let node = self.field(field, child.node);
                wanted.push(Wanted { field: i, number: field.number, node: Some(node), rivals: Vec::new() });
                let is_scalar = !field.is_repeated && !matches!(field.kind, Type::Message(_));
                if is_scalar && (!field.has_presence || field.default.is_some()) {
                    defaults.push((i, node));
                }
            }
            add_rivals(fields, &mut wanted);
            self.nodes[at].what = What::Message { message, wanted, defaults };
        }
        self.nodes[at].end = self.nodes.len();
        at
    }

    fn begin(&mut self, path: usize, what: What) -> usize {
        self.nodes.push(Node { slots: self.paths.nodes[path].slots.clone(), end: 0, what });
        self.nodes.len() - 1
    }

    fn field(&mut self, field: &Field, path: usize) -> usize {
        if !field.is_repeated {
            return self.value(field.kind, path);
        }
        let at = self.begin(path, What::Scalar(field.kind));
        let children = &self.paths.nodes[path].children;
        self.nodes[at].what = match field.kind {
            Type::Message(entry) if self.set.messages[entry].is_map_entry => {
                let value = self.set.messages[entry].fields.iter().find(|f| f.number == 2).map(|f| f.kind);
                let wanted = children
                    .iter()
                    .filter_map(|c| Some((c.name.clone(), self.value(value?, c.node))))
                    .collect();
                What::Map { entry, wanted }
            }
            kind => {
                let indexed = children.iter().filter_map(|c| Some((c.index?, c.node)));
                let wanted = indexed.map(|(i, node)| (i, self.value(kind, node))).collect();
                What::List { kind, wanted }
            }
        };
        self.nodes[at].end = self.nodes.len();
        at
    }
}

/// Members of a oneof take each other's place, those that nobody wants too.
fn add_rivals(fields: &[Field], wanted: &mut Vec<Wanted>) {
    for (i, field) in fields.iter().enumerate() {
        let Some(oneof) = field.oneof else { continue };
        let rivals: Vec<usize> = wanted
            .iter()
            .filter(|w| w.field != i && fields[w.field].oneof == Some(oneof))
            .filter_map(|w| w.node)
            .collect();
        if rivals.is_empty() {
            continue;
        }
        match wanted.iter_mut().find(|w| w.field == i) {
            Some(known) => known.rivals = rivals,
            None => wanted.push(Wanted { field: i, number: field.number, node: None, rivals }),
        }
    }
}

impl Decoder for ProtobufDecoder {
    fn header(&mut self, _record: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }

    fn decode(&mut self, record: &[u8], out: &mut Slots) -> Result<(), Malformed> {
        out.reset(self.wanted);
        let malformed =
            |w: Wrong| Malformed { reason: REASON, message: format!("at byte {}: {}", w.at, w.what) };
        let at = if self.is_framed {
            let (at, indexes) = frame(record).map_err(malformed)?;
            self.check_message(&indexes)?;
            at
        } else {
            0
        };
        self.states.iter_mut().for_each(State::clear);
        let set = self.set.clone();
        let values = Values { set: &set, record };
        let mut run = Run { nodes: &self.nodes, states: &mut self.states, key: &mut self.key, values, out };
        let whole = Wire::Bytes(Place { at, end: record.len() });
        run.value(0, whole).and_then(|()| run.wholes()).map_err(malformed)
    }
}

impl ProtobufDecoder {
    /// A frame says which message of its file the record is.
    fn check_message(&self, indexes: &[u32]) -> Result<(), Malformed> {
        let message = &self.set.messages[self.message];
        if indexes == message.indexes {
            return Ok(());
        }
        let message = format!(
            "the record is message {indexes:?} of its schema, and `{}` is {:?}",
            message.name, message.indexes
        );
        Err(Malformed { reason: REASON_UNKNOWN, message })
    }
}

/// Where the message begins behind Confluent's frame, and which one it is.
fn frame(record: &[u8]) -> Result<(usize, Vec<u32>), Wrong> {
    if record.len() < 6 || record[0] != 0 {
        let what = "a frame is a zero, four bytes with the schema's number, and which message it is";
        return Err(Wrong { at: 0, what: what.to_owned() });
    }
    let mut numbers = Fields::new(record, Place { at: 5, end: record.len() });
    let zigzag = |n: u64| (n >> 1) ^ (n & 1).wrapping_neg();
    let count = zigzag(numbers.varint()?);
    if count > INDEXES_MAX {
        return Err(Wrong { at: 5, what: format!("a frame leads to its message in {count} steps") });
    }
    let mut indexes = Vec::new();
    for _ in 0..count {
        let index = zigzag(numbers.varint()?);
        indexes.push(u32::try_from(index).unwrap_or(u32::MAX));
    }
    // The first message, which most are, is said in one byte.
    if indexes.is_empty() {
        indexes.push(0);
    }
    Ok((numbers.at(), indexes))
}

impl State {
    fn clear(&mut self) {
        (self.count, self.is_entered) = (0, false);
        self.held.clear();
    }
}

/// A record on its way into slots.
struct Run<'r> {
    nodes: &'r [Node],
    states: &'r mut [State],
    key: &'r mut Vec<u8>,
    values: Values<'r>,
    out: &'r mut Slots,
}

impl<'r> Run<'r> {
    /// Takes an occurrence of what stands at a node.
    fn value(&mut self, at: usize, wire: Wire) -> Result<(), Wrong> {
        let nodes: &'r [Node] = self.nodes;
        let node = &nodes[at];
        match &node.what {
            What::Scalar(kind) => self.scalar(node, *kind, wire),
            What::Message { message, wanted, defaults } => {
                self.hold(at, wire);
                if !std::mem::replace(&mut self.states[at].is_entered, true) {
                    self.put_defaults(*message, defaults);
                }
                self.message(*message, wanted, wire)
            }
            What::List { kind, wanted } => {
                self.hold(at, wire);
                if wanted.is_empty() {
                    return Ok(());
                }
                let values = self.values;
                values.elements(*kind, wire, |element| {
                    let number = self.states[at].count;
                    self.states[at].count += 1;
                    match wanted.iter().find(|(index, _)| *index == number) {
                        Some((_, node)) => self.value(*node, element),
                        None => Ok(()),
                    }
                })
            }
            What::Map { entry, wanted } => {
                self.hold(at, wire);
                if wanted.is_empty() { Ok(()) } else { self.entry(*entry, wanted, wire) }
            }
        }
    }

    fn hold(&mut self, at: usize, wire: Wire) {
        if !self.nodes[at].slots.is_empty() {
            self.states[at].held.push(wire);
        }
    }

    fn scalar(&mut self, node: &Node, kind: Type, wire: Wire) -> Result<(), Wrong> {
        let from = self.out.tail().len();
        match self.values.scalar(kind, wire, self.out.tail())? {
            Scalar::Range(place) => {
                let len = place.end - place.at;
                node.slots.iter().for_each(|s| self.out.set_range(*s, Kind::Text, place.at, len));
            }
            Scalar::Written(kind) => node.slots.iter().for_each(|s| self.out.set_tail(*s, kind, from)),
        }
        Ok(())
    }

    fn put_defaults(&mut self, message: usize, defaults: &[(usize, usize)]) {
        let values = self.values;
        for (field, node) in defaults {
            self.put_default(&values.set.messages[message].fields[*field], *node);
        }
    }

    fn put_default(&mut self, field: &Field, node: usize) {
        let from = self.out.tail().len();
        let kind = self.values.default(field, self.out.tail());
        self.nodes[node].slots.iter().for_each(|s| self.out.set_tail(*s, kind, from));
    }

    fn message(&mut self, message: usize, wanted: &[Wanted], wire: Wire) -> Result<(), Wrong> {
        let values = self.values;
        let mut fields = values.fields(wire);
        while let Some((number, wire)) = fields.next()? {
            let Some(w) = wanted.iter().find(|w| w.number == number) else { continue };
            if !belongs(&values.set.messages[message].fields[w.field], wire) {
                continue;
            }
            w.rivals.iter().for_each(|rival| self.forget(*rival));
            if let Some(node) = w.node {
                self.value(node, wire)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: usize, wanted: &[(String, usize)], wire: Wire) -> Result<(), Wrong> {
        let values = self.values;
        self.key.clear();
        values.key(entry, wire, self.key)?;
        let Some((_, node)) = wanted.iter().find(|(key, _)| key.as_bytes() == &self.key[..]) else {
            return Ok(());
        };
        self.forget(*node);
        let Some(value) = values.part(entry, 2) else { return Ok(()) };
        let mut fields = values.fields(wire);
        let mut is_there = false;
        while let Some((number, wire)) = fields.next()? {
            if number == 2 && is_single(value.kind, wire) {
                is_there = true;
                self.value(*node, wire)?;
            }
        }
        match value.kind {
            _ if is_there => Ok(()),
            Type::Message(_) => self.value(*node, Wire::Bytes(Place { at: 0, end: 0 })),
            _ => {
                self.put_default(value, *node);
                Ok(())
            }
        }
    }

    /// Empties a node and all below it.
    fn forget(&mut self, at: usize) {
        for below in at..self.nodes[at].end {
            self.states[below].clear();
            self.nodes[below].slots.iter().for_each(|s| self.out.set_missing(*s));
        }
    }

    /// Writes what is wanted as a whole, once all its occurrences are known.
    fn wholes(&mut self) -> Result<(), Wrong> {
        for (node, state) in self.nodes.iter().zip(self.states.iter()) {
            if state.held.is_empty() {
                continue;
            }
            let from = self.out.tail().len();
            let kind = match &node.what {
                What::Scalar(_) => continue,
                What::Message { message, .. } => {
                    self.values.message(*message, &state.held, self.out.tail())?
                }
                What::List { kind, .. } => {
                    self.values.json_list(*kind, &state.held, 0, self.out.tail())?;
                    Kind::Structure
                }
                What::Map { entry, .. } => {
                    self.values.json_map(*entry, &state.held, 0, self.out.tail())?;
                    Kind::Structure
                }
            };
            // Packed numbers may be none, which is no list.
            let is_empty = self.out.tail()[from..] == *b"[]";
            for slot in &node.slots {
                if is_empty { self.out.set_missing(*slot) } else { self.out.set_tail(*slot, kind, from) }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "protobuf/tests.rs"]
mod tests;
