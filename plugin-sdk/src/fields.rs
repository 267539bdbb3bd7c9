//! The fields of a session: a JSON object, written as it is made.

use crate::{Duration, Time};
use std::ops::Range;

/// Fields of a session: a JSON object. Made with [`fields!`](crate::fields), or one by one.
///
/// ```
/// use tidemill_plugin_sdk::Fields;
/// let mut fields = Fields::default();
/// assert!(fields.is_empty());
/// fields.put("pages", 3);
/// fields.put("campaign", "spring");
/// fields.put("pages", 4);                          // instead of what it was
/// assert_eq!(fields.to_json(), r#"{"pages":4,"campaign":"spring"}"#);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    json: String,
}

impl Fields {
    /// Adds a field, or gives one that is there another value.
    pub fn put(&mut self, name: &str, value: impl ToJson) {
        match self.value_of(name) {
            None => self.append(name, &value),
            Some(old) => {
                let mut new = String::new();
                value.write(&mut new);
                self.json.replace_range(old, &new);
            }
        }
    }
    /// Adds a field that is not there.
    #[doc(hidden)]
    pub fn append(&mut self, name: &str, value: &(impl ToJson + ?Sized)) {
        self.json.push(if self.json.is_empty() { '{' } else { ',' });
        name.write(&mut self.json);
        self.json.push(':');
        value.write(&mut self.json);
    }
    /// Where the value of a field stands.
    fn value_of(&self, name: &str) -> Option<Range<usize>> {
        let mut quoted = String::new();
        name.write(&mut quoted);
        let (mut depth, mut text, mut escaped) = (0, false, false);
        // Of the field at hand: where it begins, and its value if it is the one.
        let (mut begins, mut found) = (0, None);
        for (at, b) in self.json.bytes().enumerate() {
            match b {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => text = !text,
                _ if text => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                b',' if depth == 1 && found.is_some() => return found.map(|from| from..at),
                b':' if depth == 1 && self.json[begins..at] == quoted => found = Some(at + 1),
                _ => {}
            }
            if depth == 1 && !text && matches!(b, b'{' | b',') {
                begins = at + 1;
            }
        }
        found.map(|from| from..self.json.len())
    }
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.json.is_empty()
    }
    /// As a JSON object.
    #[must_use]
    pub fn to_json(&self) -> String {
        if self.json.is_empty() { "{}".into() } else { format!("{}}}", self.json) }
    }
    /// From a JSON object.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn from_object(mut json: String) -> Fields {
        json.pop();
        if json == "{" {
            json.clear();
        }
        Fields { json }
    }
    pub(crate) fn append_to(&self, bytes: &mut Vec<u8>) {
        if !self.json.is_empty() {
            bytes.extend_from_slice(self.json.as_bytes());
            bytes.push(b'}');
        }
    }
}

/// Fields, as `name: value` pairs; a name may be a string.
///
/// ```
/// use tidemill_plugin_sdk::fields;
/// let campaign = "spring";
/// let f = fields! { pages: 3, paid: true, campaign: campaign, "last-page": None::<&str> };
/// assert_eq!(f.to_json(), r#"{"pages":3,"paid":true,"campaign":"spring","last-page":null}"#);
/// ```
///
/// A name that is there twice does not compile:
///
/// ```compile_fail
/// tidemill_plugin_sdk::fields! { pages: 3, paid: true, "pages": 4 };
/// ```
#[macro_export]
macro_rules! fields {
    (@put $f:ident) => {};
    (@put $f:ident $name:ident : $value:expr $(, $($rest:tt)*)?) => {
        $f.append($crate::plain(stringify!($name)), &$value);
        $($crate::fields!(@put $f $($rest)*);)?
    };
    (@put $f:ident $name:literal : $value:expr $(, $($rest:tt)*)?) => {
        $f.append($name, &$value);
        $($crate::fields!(@put $f $($rest)*);)?
    };
    (@names [$($names:expr),*]) => { [$($names),*] };
    (@names [$($names:expr),*] $name:ident : $value:expr $(, $($rest:tt)*)?) => {
        $crate::fields!(@names [$($names,)* $crate::plain(stringify!($name))] $($($rest)*)?)
    };
    (@names [$($names:expr),*] $name:literal : $value:expr $(, $($rest:tt)*)?) => {
        $crate::fields!(@names [$($names,)* $name] $($($rest)*)?)
    };
    ($($pairs:tt)*) => {{
        const _: () = $crate::unique(&$crate::fields!(@names [] $($pairs)*));
        #[allow(unused_mut, reason = "there may be no pairs")]
        let mut fields = $crate::Fields::default();
        $crate::fields!(@put fields $($pairs)*);
        fields
    }};
}

/// A name without `r#`.
#[doc(hidden)]
#[must_use]
pub const fn plain(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

/// Complains, when it is compiled, of a name that is there twice.
#[doc(hidden)]
pub const fn unique(names: &[&str]) {
    let mut i = 0;
    while i < names.len() {
        let mut k = 0;
        while k < i {
            assert!(!same(names[i].as_bytes(), names[k].as_bytes()), "a field is there twice");
            k += 1;
        }
        i += 1;
    }
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// What may stand in a field.
///
/// ```
/// use tidemill_plugin_sdk::{ToJson, fields};
/// struct Money { cents: u64 }
/// impl ToJson for Money {
///     fn write(&self, json: &mut String) { (self.cents as f64 / 100.0).write(json) }
/// }
/// assert_eq!(fields! { paid: Some(Money { cents: 1250 }) }.to_json(), r#"{"paid":12.5}"#);
/// ```
pub trait ToJson {
    /// Appends itself as JSON.
    fn write(&self, json: &mut String);
}

macro_rules! by_display {
    ($($t:ty)*) => {$(
        impl ToJson for $t {
            fn write(&self, json: &mut String) {
                use std::fmt::Write;
                let _ = write!(json, "{self}");
            }
        }
    )*};
}
by_display!(u8 u16 u32 u64 usize i8 i16 i32 i64 isize bool);

impl ToJson for f64 {
    fn write(&self, json: &mut String) {
        use std::fmt::Write;
        let _ = if self.is_finite() { write!(json, "{self}") } else { write!(json, "null") };
    }
}
impl ToJson for f32 {
    fn write(&self, json: &mut String) {
        use std::fmt::Write;
        let _ = if self.is_finite() { write!(json, "{self}") } else { write!(json, "null") };
    }
}
impl ToJson for str {
    fn write(&self, json: &mut String) {
        use std::fmt::Write;
        json.push('"');
        for c in self.chars() {
            match c {
                '"' => json.push_str("\\\""),
                '\\' => json.push_str("\\\\"),
                '\n' => json.push_str("\\n"),
                '\t' => json.push_str("\\t"),
                '\r' => json.push_str("\\r"),
                c if (c as u32) < 0x20 => {
                    let _ = write!(json, "\\u{:04x}", c as u32);
                }
                c => json.push(c),
            }
        }
        json.push('"');
    }
}
impl ToJson for String {
    fn write(&self, json: &mut String) {
        self.as_str().write(json);
    }
}
/// Milliseconds since the Unix epoch.
impl ToJson for Time {
    fn write(&self, json: &mut String) {
        self.millis().write(json);
    }
}
/// Milliseconds.
impl ToJson for Duration {
    fn write(&self, json: &mut String) {
        self.millis().write(json);
    }
}
impl ToJson for Fields {
    fn write(&self, json: &mut String) {
        json.push_str(&self.to_json());
    }
}
impl ToJson for serde_json::Value {
    fn write(&self, json: &mut String) {
        json.push_str(&self.to_string());
    }
}
impl<T: ToJson + ?Sized> ToJson for &T {
    fn write(&self, json: &mut String) {
        (**self).write(json);
    }
}
impl<T: ToJson> ToJson for Option<T> {
    fn write(&self, json: &mut String) {
        match self {
            Some(v) => v.write(json),
            None => json.push_str("null"),
        }
    }
}
impl<T: ToJson> ToJson for [T] {
    fn write(&self, json: &mut String) {
        json.push('[');
        for (i, v) in self.iter().enumerate() {
            if i > 0 {
                json.push(',');
            }
            v.write(json);
        }
        json.push(']');
    }
}
impl<T: ToJson> ToJson for Vec<T> {
    fn write(&self, json: &mut String) {
        self.as_slice().write(json);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_is_put_again_has_the_new_value_and_its_place() {
        let mut f = Fields::default();
        f.put("a\"b", vec!["x:\",a\":", "]"]);
        f.put("o", crate::fields! { o: 1, p: crate::fields! { "a\"b": 2 } });
        f.put("last", 3);
        for (name, json) in [
            ("a\"b", r#"{"a\"b":0,"o":{"o":1,"p":{"a\"b":2}},"last":3}"#),
            ("o", r#"{"a\"b":0,"o":0,"last":3}"#),
            ("last", r#"{"a\"b":0,"o":0,"last":0}"#),
            ("p", r#"{"a\"b":0,"o":0,"last":0,"p":0}"#),
        ] {
            f.put(name, 0);
            assert_eq!(f.to_json(), json);
        }
    }
}
