//! The state of an open session, and its form in bytes.
//!
//! Integers are LEB128 (signed ones zigzag), floats 8 bytes, texts and lists have their length before, an `Option` and
//! an enum their number. No names and no types are written, so a change of the struct is a new version; that nobody forgets
//! it, a plugin names the shape of its state ([`Shape`]), and the host takes no state of another one.

use crate::{Duration, Time};
use std::any::type_name;
use std::collections::{BTreeMap, BTreeSet};

/// What a rule remembers of an open session. Derive it; `version` and `from` are needed once it has changed.
///
/// ```
/// use tidemill_plugin_sdk::{Form, State};
/// #[derive(State)]
/// struct CartV1 { pages: u32 }
///
/// #[derive(State, Default, Debug, PartialEq)]
/// #[state(version = 2, from = CartV1)]
/// struct Cart { pages: u32, paid: bool }
///
/// impl From<CartV1> for Cart {
///     fn from(old: CartV1) -> Cart { Cart { pages: old.pages, paid: false } }
/// }
///
/// let mut bytes = Vec::new();
/// CartV1 { pages: 300 }.put(&mut bytes);
/// assert_eq!(bytes, [0xac, 2]);
/// assert_eq!(Cart::migrate(1, &mut bytes.as_slice()), Ok(Cart { pages: 300, paid: false }));
/// assert!(Cart::migrate(7, &mut bytes.as_slice()).is_err());
/// assert_eq!(Cart::form().shape, "{pages: u32, paid: bool}");
/// ```
///
/// Whatever changes in a state, a name, a type, the order, needs a raised version: the host refuses a plugin that has the
/// same version with another shape, and one whose `from` is not as it was.
pub trait State: Form + 'static {
    /// The version of the form.
    const VERSION: u32;
    /// Forms that can be migrated to this one.
    fn migrates_from() -> Vec<StateForm>;
    /// This form.
    #[must_use]
    fn form() -> StateForm {
        StateForm { version: Self::VERSION, shape: Shape::of::<Self>() }
    }
    /// Reads a state of an older version, or of this one.
    ///
    /// # Errors
    /// Why it cannot be read, for a reader.
    fn migrate(version: u32, bytes: &mut &[u8]) -> Result<Self, String>;
}

/// A version of a state, and what a state of that version is made of.
///
/// ```
/// use tidemill_plugin_sdk::{State, StateForm};
/// #[derive(State)]
/// struct Cart { pages: u32 }
/// assert_eq!(Cart::form(), StateForm { version: 1, shape: "{pages: u32}".into() });
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateForm {
    /// The version.
    pub version: u32,
    /// Names and types: see [`Shape`].
    pub shape: String,
}

/// Nothing to remember: bounds and timers say all.
impl State for () {
    const VERSION: u32 = 1;
    fn migrates_from() -> Vec<StateForm> {
        Vec::new()
    }
    fn migrate(version: u32, _: &mut &[u8]) -> Result<(), String> {
        if version == 1 { Ok(()) } else { Err(no_state(version)) }
    }
}

pub(crate) fn no_state(version: u32) -> String {
    format!("these bytes are no state of version {version}")
}

/// What a [`Form`] is made of, written down: field names and types, in order. The names of structs and enums are left out,
/// so that one may be called `CartV1` when the next version comes.
///
/// ```
/// use tidemill_plugin_sdk::{Form, Shape};
/// #[derive(Form)]
/// enum Step { Seen, Bought { cents: u64 } }
/// #[derive(Form)]
/// struct Way { steps: Vec<Step>, from: Option<String>, ways: Vec<Way> }
/// assert_eq!(
///     Shape::of::<Way>(),
///     "{steps: Vec<Seen | Bought{cents: u64}>, from: Option<String>, ways: Vec<^1>}"
/// );
/// ```
#[derive(Debug, Default)]
pub struct Shape {
    text: String,
    /// Types that are being written, by name: one that holds itself is written as how far up it stands.
    within: Vec<&'static str>,
}

impl Shape {
    /// The shape of a form.
    #[must_use]
    pub fn of<T: Form>() -> String {
        let mut shape = Shape::default();
        T::shape(&mut shape);
        shape.text
    }
    /// Appends a word: the name of a type, a brace.
    pub fn word(&mut self, word: &str) {
        self.text.push_str(word);
    }
    /// Appends what a type of names is made of; what the derives call.
    #[doc(hidden)]
    pub fn named<T>(&mut self, write: impl FnOnce(&mut Shape)) {
        let name = type_name::<T>();
        if let Some(up) = self.within.iter().rev().position(|n| *n == name) {
            self.text.push_str(&format!("^{}", up + 1));
            return;
        }
        self.within.push(name);
        write(self);
        self.within.pop();
    }
    fn holding(&mut self, what: &str, write: impl FnOnce(&mut Shape)) {
        self.word(what);
        self.word("<");
        write(self);
        self.word(">");
    }
}

/// What may stand in a state.
///
/// ```
/// use tidemill_plugin_sdk::Form;
/// let mut bytes = Vec::new();
/// vec![Some(300u32), None].put(&mut bytes);
/// assert_eq!(bytes, [2, 1, 0xac, 2, 0]);
/// assert_eq!(Vec::<Option<u32>>::take(&mut bytes.as_slice()), Some(vec![Some(300), None]));
/// ```
pub trait Form: Sized {
    /// Writes down what it is made of.
    fn shape(shape: &mut Shape);
    /// Appends its bytes.
    fn put(&self, bytes: &mut Vec<u8>);
    /// Takes it off the front; `None` if that is not what stands there.
    fn take(bytes: &mut &[u8]) -> Option<Self>;
    /// A copy.
    fn copied(&self) -> Self;
    /// Becomes a copy of `other`, reusing its own memory.
    fn copy_from(&mut self, other: &Self) {
        *self = other.copied();
    }
}

impl Form for () {
    fn shape(shape: &mut Shape) {
        shape.word("()");
    }
    fn put(&self, _: &mut Vec<u8>) {}
    fn take(_: &mut &[u8]) -> Option<()> {
        Some(())
    }
    fn copied(&self) {}
}

fn put_number(mut n: u64, bytes: &mut Vec<u8>) {
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
}
fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    let mut shift = 0;
    loop {
        let (&b, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(b & 0x7f);
        if shift == 63 && part > 1 || shift > 63 {
            return None;
        }
        n |= part << shift;
        if b < 0x80 {
            return Some(n);
        }
        shift += 7;
    }
}
fn take_length(bytes: &mut &[u8]) -> Option<usize> {
    let n = take_number(bytes)?;
    // Nothing is reserved for a length that cannot be: every element but `()` has a byte.
    usize::try_from(n).ok().filter(|&n| n <= bytes.len())
}

macro_rules! unsigned {
    ($($t:ty)*) => {$(
        impl Form for $t {
            fn shape(shape: &mut Shape) {
                shape.word(stringify!($t));
            }
            fn put(&self, bytes: &mut Vec<u8>) {
                put_number(*self as u64, bytes);
            }
            fn take(bytes: &mut &[u8]) -> Option<$t> {
                <$t>::try_from(take_number(bytes)?).ok()
            }
            fn copied(&self) -> $t {
                *self
            }
        }
    )*};
}
unsigned!(u8 u16 u32 u64 usize);

macro_rules! signed {
    ($($t:ty)*) => {$(
        impl Form for $t {
            fn shape(shape: &mut Shape) {
                shape.word(stringify!($t));
            }
            fn put(&self, bytes: &mut Vec<u8>) {
                let n = *self as i64;
                put_number(((n << 1) ^ (n >> 63)) as u64, bytes);
            }
            fn take(bytes: &mut &[u8]) -> Option<$t> {
                let n = take_number(bytes)?;
                <$t>::try_from((n >> 1) as i64 ^ -((n & 1) as i64)).ok()
            }
            fn copied(&self) -> $t {
                *self
            }
        }
    )*};
}
signed!(i8 i16 i32 i64 isize);

impl Form for bool {
    fn shape(shape: &mut Shape) {
        shape.word("bool");
    }
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.push(u8::from(*self));
    }
    fn take(bytes: &mut &[u8]) -> Option<bool> {
        match take_number(bytes)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
    fn copied(&self) -> bool {
        *self
    }
}
impl Form for f64 {
    fn shape(shape: &mut Shape) {
        shape.word("f64");
    }
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.to_bits().to_le_bytes());
    }
    fn take(bytes: &mut &[u8]) -> Option<f64> {
        let (head, rest) = bytes.split_first_chunk::<8>()?;
        *bytes = rest;
        Some(f64::from_bits(u64::from_le_bytes(*head)))
    }
    fn copied(&self) -> f64 {
        *self
    }
}
impl Form for String {
    fn shape(shape: &mut Shape) {
        shape.word("String");
    }
    fn put(&self, bytes: &mut Vec<u8>) {
        put_number(self.len() as u64, bytes);
        bytes.extend_from_slice(self.as_bytes());
    }
    fn take(bytes: &mut &[u8]) -> Option<String> {
        let n = take_length(bytes)?;
        let (head, rest) = bytes.split_at_checked(n)?;
        *bytes = rest;
        std::str::from_utf8(head).ok().map(String::from)
    }
    fn copied(&self) -> String {
        self.clone()
    }
    fn copy_from(&mut self, other: &String) {
        self.clone_from(other);
    }
}
impl Form for Time {
    fn shape(shape: &mut Shape) {
        shape.word("Time");
    }
    fn put(&self, bytes: &mut Vec<u8>) {
        self.0.put(bytes);
    }
    fn take(bytes: &mut &[u8]) -> Option<Time> {
        i64::take(bytes).map(Time)
    }
    fn copied(&self) -> Time {
        *self
    }
}
impl Form for Duration {
    fn shape(shape: &mut Shape) {
        shape.word("Duration");
    }
    fn put(&self, bytes: &mut Vec<u8>) {
        self.0.put(bytes);
    }
    fn take(bytes: &mut &[u8]) -> Option<Duration> {
        i64::take(bytes).map(Duration)
    }
    fn copied(&self) -> Duration {
        *self
    }
}
impl<T: Form> Form for Option<T> {
    fn shape(shape: &mut Shape) {
        shape.holding("Option", T::shape);
    }
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.push(u8::from(self.is_some()));
        if let Some(v) = self {
            v.put(bytes);
        }
    }
    fn take(bytes: &mut &[u8]) -> Option<Option<T>> {
        if bool::take(bytes)? { T::take(bytes).map(Some) } else { Some(None) }
    }
    fn copied(&self) -> Option<T> {
        self.as_ref().map(T::copied)
    }
}
impl<T: Form> Form for Vec<T> {
    fn shape(shape: &mut Shape) {
        shape.holding("Vec", T::shape);
    }
    fn put(&self, bytes: &mut Vec<u8>) {
        put_number(self.len() as u64, bytes);
        for v in self {
            v.put(bytes);
        }
    }
    fn take(bytes: &mut &[u8]) -> Option<Vec<T>> {
        let n = take_length(bytes)?;
        (0..n).map(|_| T::take(bytes)).collect()
    }
    fn copied(&self) -> Vec<T> {
        self.iter().map(T::copied).collect()
    }
}
impl<T: Form + Ord> Form for BTreeSet<T> {
    fn shape(shape: &mut Shape) {
        shape.holding("BTreeSet", T::shape);
    }
    fn put(&self, bytes: &mut Vec<u8>) {
        put_number(self.len() as u64, bytes);
        for v in self {
            v.put(bytes);
        }
    }
    fn take(bytes: &mut &[u8]) -> Option<BTreeSet<T>> {
        let n = take_length(bytes)?;
        (0..n).map(|_| T::take(bytes)).collect()
    }
    fn copied(&self) -> BTreeSet<T> {
        self.iter().map(T::copied).collect()
    }
}
impl<K: Form + Ord, V: Form> Form for BTreeMap<K, V> {
    fn shape(shape: &mut Shape) {
        shape.holding("BTreeMap", |shape| {
            K::shape(shape);
            shape.word(", ");
            V::shape(shape);
        });
    }
    fn put(&self, bytes: &mut Vec<u8>) {
        put_number(self.len() as u64, bytes);
        for (k, v) in self {
            k.put(bytes);
            v.put(bytes);
        }
    }
    fn take(bytes: &mut &[u8]) -> Option<BTreeMap<K, V>> {
        let n = take_length(bytes)?;
        (0..n).map(|_| Some((K::take(bytes)?, V::take(bytes)?))).collect()
    }
    fn copied(&self) -> BTreeMap<K, V> {
        self.iter().map(|(k, v)| (k.copied(), v.copied())).collect()
    }
}
impl<A: Form, B: Form> Form for (A, B) {
    fn shape(shape: &mut Shape) {
        shape.word("(");
        A::shape(shape);
        shape.word(", ");
        B::shape(shape);
        shape.word(")");
    }
    fn put(&self, bytes: &mut Vec<u8>) {
        self.0.put(bytes);
        self.1.put(bytes);
    }
    fn take(bytes: &mut &[u8]) -> Option<(A, B)> {
        Some((A::take(bytes)?, B::take(bytes)?))
    }
    fn copied(&self) -> (A, B) {
        (self.0.copied(), self.1.copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back<T: Form + PartialEq + std::fmt::Debug>(v: &T) {
        let mut bytes = Vec::new();
        v.put(&mut bytes);
        let mut rest = bytes.as_slice();
        assert_eq!(T::take(&mut rest).as_ref(), Some(v));
        assert!(rest.is_empty());
        for cut in 0..bytes.len() {
            assert_eq!(T::take(&mut &bytes[..cut]), None, "cut at {cut} of {bytes:?}");
        }
    }

    #[test]
    fn every_form_comes_back_and_no_shorter_one_is_taken() {
        there_and_back(&u64::MAX);
        there_and_back(&i64::MIN);
        there_and_back(&(-3i32, true));
        there_and_back(&Some(1.5f64));
        there_and_back(&vec![String::from("à"), String::new()]);
        there_and_back(&BTreeMap::from([(1u8, Time::from_millis(-5))]));
        there_and_back(&BTreeSet::from([Duration::minutes(1)]));
    }

    #[test]
    fn a_length_beyond_the_bytes_reserves_nothing() {
        assert_eq!(Vec::<u8>::take(&mut [0xff, 0xff, 0xff, 0xff, 0x0f].as_slice()), None);
        assert_eq!(u64::take(&mut [0xff; 11].as_slice()), None);
        assert_eq!(u8::take(&mut [0x80, 0x02].as_slice()), None);
    }
}
