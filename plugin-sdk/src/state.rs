//! The state of an open session, and its form in bytes.
//!
//! Integers are LEB128 (signed ones zigzag), floats 8 bytes, texts and lists have their length before, an `Option` and
//! an enum their number. No names and no types are written, so a change of the struct is a new version.

use crate::{Duration, Time};
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
/// ```
pub trait State: Form + 'static {
    /// The version of the form.
    const VERSION: u32;
    /// Versions that can be migrated to this one.
    fn migrates_from() -> Vec<u32>;
    /// Reads a state of an older version, or of this one.
    ///
    /// # Errors
    /// Why it cannot be read, for a reader.
    fn migrate(version: u32, bytes: &mut &[u8]) -> Result<Self, String>;
}

/// Nothing to remember: bounds and timers say all.
impl State for () {
    const VERSION: u32 = 1;
    fn migrates_from() -> Vec<u32> {
        Vec::new()
    }
    fn migrate(version: u32, _: &mut &[u8]) -> Result<(), String> {
        if version == 1 { Ok(()) } else { Err(format!("there is no version {version} of this state")) }
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
