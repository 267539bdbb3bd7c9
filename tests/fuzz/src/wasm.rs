//! Components and modules, changed: instructions for others of the same type, constants and indices, whole sections.
//!
//! An instruction that stands for another of its type leaves the module valid, so that it is compiled and runs, and does what
//! nobody has written. What is changed otherwise mostly ends with the validator, which is to be seen too.

use crate::edit::{Edit, edit};
use arbitrary::Unstructured;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use wasmparser::{Parser, Payload};

/// Opcodes that take and give the same types.
const ALIKE: [Range<u8>; 11] = [
    0x46..0x50, // i32 comparisons
    0x51..0x5b, // i64 comparisons
    0x5b..0x61, // f32 comparisons
    0x61..0x67, // f64 comparisons
    0x67..0x6a, // i32 bits
    0x6a..0x79, // i32 arithmetic
    0x79..0x7c, // i64 bits
    0x7c..0x8b, // i64 arithmetic
    0x92..0x99, // f32 arithmetic
    0xa0..0xa7, // f64 arithmetic
    0x0c..0x0e, // br, br_if
];

/// A valid component, and where its instructions are.
pub struct Original {
    /// Whose it is.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Of those that have others alike: place and group.
    alike: Vec<(usize, usize)>,
    /// Bytes behind opcodes: of constants, indices, offsets.
    operands: Vec<usize>,
}

impl Original {
    /// Looks at a component.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn new(name: &str, bytes: Vec<u8>) -> Arc<Original> {
        let (mut alike, mut operands) = (Vec::new(), Vec::new());
        for payload in Parser::new(0).parse_all(&bytes) {
            let Payload::CodeSectionEntry(body) = payload.expect("a valid component") else { continue };
            let mut reader = body.get_operators_reader().expect("a valid component");
            while !reader.eof() {
                let at = reader.original_position();
                reader.read().expect("a valid component");
                if let Some(group) = ALIKE.iter().position(|g| g.contains(&bytes[at])) {
                    alike.push((at, group));
                }
                // Operators of one byte before their operands.
                if bytes[at] < 0xfb {
                    operands.extend(at + 1..reader.original_position());
                }
            }
        }
        Arc::new(Original { name: name.to_owned(), bytes, alike, operands })
    }
}

impl fmt::Debug for Original {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.name, self.bytes.len())
    }
}

/// One change of a component.
#[derive(Clone, Debug)]
pub enum Change {
    /// An instruction for another of its type.
    Operator(Index, u8),
    /// Another constant, index, offset or label; as many bytes.
    Operand(Index, u8),
    /// Two sections of the component, or of its largest module, in each other's place.
    Swap(bool, Index, Index),
    /// One of these sections out.
    Drop(bool, Index),
    /// One of these sections twice.
    Twice(bool, Index),
    /// Bytes, anywhere.
    Bytes(Edit),
}

impl Change {
    fn apply(&self, original: &Original, bytes: &mut Vec<u8>) {
        let section = |bytes: &[u8], inner: bool, at: &Index| {
            let all = sections(bytes, inner);
            (!all.is_empty()).then(|| all[at.index(all.len())].clone())
        };
        match self {
            // Places are those of the original: these stand first, and change no length.
            Change::Operator(at, n) => {
                if let Some((place, group)) = original.alike.get(at.index(original.alike.len().max(1))) {
                    let group = &ALIKE[*group];
                    bytes[*place] = group.start + n % group.len() as u8;
                }
            }
            Change::Operand(at, value) => {
                if let Some(place) = original.operands.get(at.index(original.operands.len().max(1))) {
                    // Whether another byte follows stays as it was.
                    bytes[*place] = bytes[*place] & 0x80 | value & 0x7f;
                }
            }
            Change::Swap(inner, a, b) => {
                if let (Some(a), Some(b)) = (section(bytes, *inner, a), section(bytes, *inner, b)) {
                    let (first, second) = if a.start < b.start { (a, b) } else { (b, a) };
                    if first.end <= second.start {
                        let both =
                            [&bytes[second.clone()], &bytes[first.end..second.start], &bytes[first.clone()]];
                        let both = both.concat();
                        bytes.splice(first.start..second.end, both);
                    }
                }
            }
            Change::Drop(inner, at) => {
                if let Some(place) = section(bytes, *inner, at) {
                    bytes.drain(place);
                }
            }
            Change::Twice(inner, at) => {
                if let Some(place) = section(bytes, *inner, at) {
                    let copy = bytes[place.clone()].to_vec();
                    bytes.splice(place.end..place.end, copy);
                }
            }
            Change::Bytes(e) => e.apply(bytes),
        }
    }
}

/// Where the sections stand, their heads included: the component's, or those of its largest one, which is a module.
fn sections(bytes: &[u8], inner: bool) -> Vec<Range<usize>> {
    let outer = sections_from(bytes, 8, bytes.len());
    match outer.iter().max_by_key(|s| s.len()) {
        Some(largest) if inner => {
            let body = largest.start + 1 + length(&bytes[largest.start + 1..]).map_or(0, |(_, n)| n);
            sections_from(bytes, body + 8, largest.end)
        }
        _ => outer,
    }
}

fn sections_from(bytes: &[u8], mut at: usize, end: usize) -> Vec<Range<usize>> {
    let mut all = Vec::new();
    while at + 1 < end {
        let Some((len, n)) = length(&bytes[at + 1..end]) else { break };
        let next = at + 1 + n + len;
        if next > end {
            break;
        }
        all.push(at..next);
        at = next;
    }
    all
}

/// A LEB128 number, and how many bytes it takes.
fn length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0_u64;
    for (i, byte) in bytes.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value as usize, i + 1));
        }
    }
    None
}

/// A changed component. It is shown as what was changed, since its bytes are many.
#[derive(Clone)]
pub struct Mutant {
    /// What it was made of.
    pub original: Arc<Original>,
    changes: Vec<Change>,
    /// What it is now.
    pub bytes: Vec<u8>,
}

impl Mutant {
    /// Whether nothing was changed.
    #[must_use]
    pub fn is_original(&self) -> bool {
        self.bytes == self.original.bytes
    }
}

impl fmt::Debug for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, changed: {:?}", self.original, self.changes)
    }
}

/// One of the components: as it is, with other instructions, or changed in any way.
pub fn mutants(originals: Vec<Arc<Original>>) -> impl Strategy<Value = Mutant> {
    let i = any::<Index>;
    let instructions = || {
        prop_oneof![
            3 => (i(), any::<u8>()).prop_map(|(at, n)| Change::Operator(at, n)),
            2 => (i(), any::<u8>()).prop_map(|(at, n)| Change::Operand(at, n)),
        ]
    };
    let anything = prop_oneof![
        1 => (any::<bool>(), i(), i()).prop_map(|(inner, a, b)| Change::Swap(inner, a, b)),
        1 => (any::<bool>(), i()).prop_map(|(inner, at)| Change::Drop(inner, at)),
        1 => (any::<bool>(), i()).prop_map(|(inner, at)| Change::Twice(inner, at)),
        3 => edit(vec![b"\0asm\x0d\0\x01\0".to_vec()], vec![b"describe".to_vec(), vec![0xff; 5]]).prop_map(Change::Bytes),
    ];
    let changes = prop_oneof![
        1 => Just(Vec::new()),
        6 => vec(instructions(), 1..4),
        2 => (vec(instructions(), 0..2), vec(anything, 1..3)).prop_map(|(mut a, b)| {
            a.extend(b);
            a
        }),
    ];
    (proptest::sample::select(originals), changes).prop_map(|(original, changes)| {
        let mut bytes = original.bytes.clone();
        changes.iter().for_each(|c| c.apply(&original, &mut bytes));
        Mutant { original, changes, bytes }
    })
}

/// What modules by wasm-smith may use: what plugins may.
fn config() -> wasm_smith::Config {
    wasm_smith::Config {
        threads_enabled: false,
        memory64_enabled: false,
        tail_call_enabled: false,
        gc_enabled: false,
        exceptions_enabled: false,
        relaxed_simd_enabled: false,
        max_memories: 1,
        max_memory32_bytes: 4 << 20,
        max_instructions: 400,
        generate_custom_sections: true,
        ..wasm_smith::Config::default()
    }
}

/// A module out of random bytes: with exactly the exports of this one, or with any.
#[must_use]
pub fn module(dna: &[u8], exports: Option<&[u8]>) -> Option<Vec<u8>> {
    let mut config = config();
    config.exports = exports.map(<[u8]>::to_vec);
    if exports.is_some() {
        config.max_imports = 0;
    }
    let made = wasm_smith::Module::new(config, &mut Unstructured::new(dna));
    made.ok().map(|m| m.to_bytes())
}

/// A component of anything, out of random bytes.
#[must_use]
pub fn component(dna: &[u8]) -> Option<Vec<u8>> {
    let made = wasm_smith::Component::new(config(), &mut Unstructured::new(dna));
    made.ok().map(|c| c.to_bytes())
}
