//! Edits of valid inputs: what a disk, a careless hand or a malicious one makes of them.
//!
//! Places are fractions of the length, so that an edit means something whatever the edits before it have left.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Values that stand at the edge of something.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0xff,
    0x100,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fff8,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
];

/// One change.
#[derive(Clone, Debug)]
pub enum Edit {
    /// A bit turned.
    Flip(Index, u8),
    /// A byte put in place of one.
    Byte(Index, u8),
    /// Bytes put in between.
    Insert(Index, Vec<u8>),
    /// A word of the input's language put in between.
    Word(Index, Vec<u8>),
    /// The end cut off.
    Cut(Index),
    /// Some bytes taken out.
    Remove(Index, Index),
    /// Some bytes said several times.
    Repeat(Index, Index, u8),
    /// Some bytes copied to another place.
    Copy(Index, Index, Index),
    /// A number of 1, 2, 4 or 8 bytes put in place of what was there, little-endian.
    Number(Index, u64, u8),
    /// A number of so many bytes changed by a little.
    Add(Index, i8, u8),
    /// The end of another valid input behind the beginning of this one.
    Splice(Index, Vec<u8>, Index),
}

impl Edit {
    /// Changes the bytes.
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |at: &Index| at.index(bytes.len() + 1);
        match self {
            Edit::Flip(at, bit) => {
                let at = place(at);
                if let Some(b) = bytes.get_mut(at) {
                    *b ^= 1 << (bit % 8);
                }
            }
            Edit::Byte(at, byte) => {
                let at = place(at);
                if let Some(b) = bytes.get_mut(at) {
                    *b = *byte;
                }
            }
            Edit::Insert(at, some) | Edit::Word(at, some) => {
                let at = place(at);
                bytes.splice(at..at, some.iter().copied());
            }
            Edit::Cut(at) => bytes.truncate(place(at)),
            Edit::Remove(from, to) => {
                let (from, to) = (place(from), place(to));
                bytes.drain(from.min(to)..from.max(to));
            }
            Edit::Repeat(from, to, times) => {
                let (a, b) = (place(from), place(to));
                let (from, to) = (a.min(b), a.max(b).min(a.min(b) + 256));
                let some = bytes[from..to].repeat(usize::from(*times % 16));
                bytes.splice(to..to, some);
            }
            Edit::Copy(from, to, at) => {
                let (a, b, at) = (place(from), place(to), place(at));
                let some = bytes[a.min(b)..a.max(b).min(a.min(b) + 4096)].to_vec();
                bytes.splice(at..at, some);
            }
            Edit::Number(at, value, width) => {
                let (at, width) = (place(at), 1 << (width % 4));
                if let Some(there) = bytes.get_mut(at..at + width) {
                    there.copy_from_slice(&value.to_le_bytes()[..width]);
                }
            }
            Edit::Add(at, by, width) => {
                let (at, width) = (place(at), 1 << (width % 4));
                if let Some(there) = bytes.get_mut(at..at + width) {
                    let mut number = [0; 8];
                    number[..width].copy_from_slice(there);
                    let sum = u64::from_le_bytes(number).wrapping_add_signed(i64::from(*by));
                    there.copy_from_slice(&sum.to_le_bytes()[..width]);
                }
            }
            Edit::Splice(at, other, from) => {
                bytes.truncate(place(at));
                bytes.extend_from_slice(&other[from.index(other.len() + 1)..]);
            }
        }
    }
}

/// Edits in this language, with these valid inputs at hand.
pub fn edit(seeds: Vec<Vec<u8>>, words: Vec<Vec<u8>>) -> impl Strategy<Value = Edit> {
    let i = any::<Index>;
    let mut words = words;
    words.push(Vec::new());
    let edges = prop_oneof![2 => select(EDGES.as_slice()), 1 => any::<u64>()];
    prop_oneof![
        3 => (i(), any::<u8>()).prop_map(|(at, b)| Edit::Flip(at, b)),
        2 => (i(), any::<u8>()).prop_map(|(at, b)| Edit::Byte(at, b)),
        2 => (i(), vec(any::<u8>(), 1..8)).prop_map(|(at, b)| Edit::Insert(at, b)),
        4 => (i(), select(words)).prop_map(|(at, w)| Edit::Word(at, w)),
        1 => i().prop_map(Edit::Cut),
        2 => (i(), i()).prop_map(|(a, b)| Edit::Remove(a, b)),
        1 => (i(), i(), any::<u8>()).prop_map(|(a, b, n)| Edit::Repeat(a, b, n)),
        1 => (i(), i(), i()).prop_map(|(a, b, at)| Edit::Copy(a, b, at)),
        3 => (i(), edges, any::<u8>()).prop_map(|(at, n, w)| Edit::Number(at, n, w)),
        2 => (i(), any::<i8>(), any::<u8>()).prop_map(|(at, n, w)| Edit::Add(at, n, w)),
        1 => (i(), select(seeds), i()).prop_map(|(at, other, from)| Edit::Splice(at, other, from)),
    ]
}

/// Bytes that are shown so that they can be pasted.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// One of the valid inputs, as it is or with some edits. `words` are what its language is made of.
pub fn edited(seeds: Vec<Vec<u8>>, words: Vec<Vec<u8>>) -> impl Strategy<Value = Bytes> {
    let edits = prop_oneof![
        1 => vec(edit(seeds.clone(), words.clone()), 0..1),
        6 => vec(edit(seeds.clone(), words.clone()), 1..3),
        3 => vec(edit(seeds.clone(), words), 3..12),
    ];
    (select(seeds), edits).prop_map(|(mut bytes, edits)| {
        edits.iter().for_each(|e| e.apply(&mut bytes));
        Bytes(bytes)
    })
}

/// Words as bytes.
#[must_use]
pub fn words(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().map(|w| w.as_bytes().to_vec()).collect()
}
