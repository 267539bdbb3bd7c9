//! JSON records, one object each: finds the declared members and validates the rest.
//!
//! Invariants:
//! - A record decodes only if all of it is JSON in valid UTF-8 with an object at the root, whether its faulty
//!   part is declared or not. Skipped values are checked for syntax alone: a number may be of any size, and
//!   `\ud800` on its own is found only in member names and declared strings.
//! - Of several members with one name the last wins, with all that is below it.
//! - Stack use does not depend on the record: serde_json skips values iteratively, and we descend only along
//!   declared paths, at most [`POINTER_LEVELS_MAX`](super::paths::POINTER_LEVELS_MAX) deep.
//! - A declared text, number or boolean costs no allocation; slots point into the record. Only text with
//!   `\u` escapes and values nested twice make serde_json allocate.
//! - A record is first read quickly (`scan`). What that does not take is read by serde_json alone, which says
//!   what is wrong; both ways give the same slots.

mod scan;

use super::paths::{Child, Paths};
use super::{Decoder, Kind, Malformed, Slots};
use serde::Deserializer as _;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

const REASON: &str = "malformed_json";

/// Decodes JSON records. See the module's invariants.
#[derive(Debug)]
pub struct JsonDecoder {
    paths: Paths,
    wanted: usize,
    /// Reused for text with escapes.
    text: Vec<u8>,
}

impl JsonDecoder {
    /// For these paths: a member name, or a JSON pointer if it begins with `/`. A path that
    /// [`check_path`](super::paths::check_path) refuses is never found.
    #[must_use]
    pub fn new(wanted: &[String]) -> Self {
        Self { paths: Paths::new(wanted), wanted: wanted.len(), text: Vec::new() }
    }
}

impl Decoder for JsonDecoder {
    fn header(&mut self, _record: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }

    fn decode(&mut self, record: &[u8], out: &mut Slots) -> Result<(), Malformed> {
        let malformed = |message: String| Malformed { reason: REASON, message };
        let text = simdutf8::basic::from_utf8(record).map_err(|_| malformed(utf8_message(record)))?;
        if self.read_quickly(text, out) { Ok(()) } else { self.read(text, out).map_err(malformed) }
    }
}

impl JsonDecoder {
    /// False: the record is malformed or unusual, and the slots mean nothing.
    fn read_quickly(&mut self, text: &str, out: &mut Slots) -> bool {
        out.reset(self.wanted);
        let children = &self.paths.nodes[0].children;
        let mut at = Walk { paths: &self.paths, base: text.as_ptr() as usize, out, text: &mut self.text };
        scan::members(text.as_bytes(), |name, value| {
            match children.iter().find(|c| c.name.as_bytes() == name) {
                Some(child) => at.take(child.node, &text[value]).is_ok(),
                None => true,
            }
        })
    }

    fn read(&mut self, text: &str, out: &mut Slots) -> Result<(), String> {
        out.reset(self.wanted);
        let first = text.bytes().find(|b| !matches!(b, b' ' | b'\t' | b'\n' | b'\r'));
        if first.is_some_and(|b| b != b'{') {
            return Err("record is not a JSON object".to_owned());
        }
        let mut at = Walk { paths: &self.paths, base: text.as_ptr() as usize, out, text: &mut self.text };
        let mut json = serde_json::Deserializer::from_str(text);
        json.deserialize_map(Below { walk: &mut at, node: 0 })
            .and_then(|()| json.end())
            .map_err(|e| e.to_string())
    }
}

/// Says where UTF-8 breaks off. The quick check of a good record does not know.
pub(super) fn utf8_message(record: &[u8]) -> String {
    let at = std::str::from_utf8(record).err().map_or(0, |e| e.valid_up_to());
    format!("invalid UTF-8 at byte {at}")
}

/// What the visitors of one record share.
struct Walk<'a> {
    paths: &'a Paths,
    /// Address of the record's first byte: raw values are slices of the record, their place is a difference.
    base: usize,
    out: &'a mut Slots,
    text: &'a mut Vec<u8>,
}

impl Walk<'_> {
    /// Takes the value at a declared node, and what is declared below it.
    fn take(&mut self, node: usize, raw: &str) -> Result<(), serde_json::Error> {
        let paths = self.paths;
        let node_at = &paths.nodes[node];
        for &slot in &node_at.slots {
            self.set(slot, raw)?;
        }
        if node_at.children.is_empty() {
            return Ok(());
        }
        for &slot in &node_at.below {
            self.out.set_missing(slot);
        }
        // A new deserializer for each level: the value is known to be JSON, and neither numbers out of
        // serde_json's range nor its depth limit can refuse what is only passed through.
        let mut json = serde_json::Deserializer::from_str(raw);
        let below = Below { walk: self, node };
        match raw.as_bytes().first() {
            Some(b'{') => json.deserialize_map(below),
            Some(b'[') => json.deserialize_seq(below),
            _ => Ok(()),
        }
        .map_err(|e| self.inside(raw, &e))
    }

    fn set(&mut self, slot: usize, raw: &str) -> Result<(), serde_json::Error> {
        let at = raw.as_ptr() as usize - self.base;
        let kind = match raw.as_bytes().first() {
            Some(b'"') => return self.set_text(slot, raw, at),
            Some(b'{' | b'[') => Kind::Structure,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'n') | None => {
                self.out.set_missing(slot);
                return Ok(());
            }
            Some(_) => Kind::Number,
        };
        self.out.set_range(slot, kind, at, raw.len());
        Ok(())
    }

    fn set_text(&mut self, slot: usize, raw: &str, at: usize) -> Result<(), serde_json::Error> {
        let inner = &raw.as_bytes()[1..raw.len() - 1];
        if memchr::memchr(b'\\', inner).is_none() {
            self.out.set_range(slot, Kind::Text, at + 1, inner.len());
        } else if unescape_simple(inner, self.text) {
            self.out.set_owned(slot, Kind::Text, self.text);
        } else {
            let text: String = serde_json::from_str(raw).map_err(|e| self.inside(raw, &e))?;
            self.out.set_owned(slot, Kind::Text, text.as_bytes());
        }
        Ok(())
    }

    /// An error found when a value was read a second time, placed in the record.
    fn inside(&self, raw: &str, e: &serde_json::Error) -> serde_json::Error {
        let at = raw.as_ptr() as usize - self.base;
        serde_json::Error::custom(format_args!("{e} of the value at byte {at}"))
    }
}

/// Unescapes text without `\u` into `to`, the usual case (`\/` in URLs); false if serde_json has to do it.
fn unescape_simple(mut from: &[u8], to: &mut Vec<u8>) -> bool {
    to.clear();
    while let Some(at) = memchr::memchr(b'\\', from) {
        to.extend_from_slice(&from[..at]);
        to.push(match from.get(at + 1) {
            Some(&b @ (b'"' | b'\\' | b'/')) => b,
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            _ => return false,
        });
        from = &from[at + 2..];
    }
    to.extend_from_slice(from);
    true
}

/// Visits an object or array at `node`: takes its declared members, skips the others.
struct Below<'w, 'a> {
    walk: &'w mut Walk<'a>,
    node: usize,
}

impl<'de> Visitor<'de> for Below<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let paths = self.walk.paths;
        let children = &paths.nodes[self.node].children;
        while let Some(child) = map.next_key_seed(Key { children })? {
            match child {
                Some(node) => {
                    let raw: &RawValue = map.next_value()?;
                    self.walk.take(node, raw.get()).map_err(A::Error::custom)?;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let paths = self.walk.paths;
        let children = &paths.nodes[self.node].children;
        for index in 0_usize.. {
            match children.iter().find(|c| c.index == Some(index)) {
                Some(child) => {
                    let Some(raw) = seq.next_element::<&RawValue>()? else { break };
                    self.walk.take(child.node, raw.get()).map_err(A::Error::custom)?;
                }
                None => {
                    if seq.next_element::<IgnoredAny>()?.is_none() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Reads a member name as the node it leads to, if any.
struct Key<'a> {
    children: &'a [Child],
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'de>>(self, key: D) -> Result<Self::Value, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.children.iter().find(|c| c.name == name).map(|c| c.node))
    }
}

#[cfg(test)]
mod tests {
    use super::super::paths::{POINTER_LEVELS_MAX, check_path};
    use super::*;
    use proptest::prelude::*;

    fn wanted(paths: &[&str]) -> Vec<String> {
        paths.iter().map(|&p| p.to_owned()).collect()
    }

    /// Decodes one record and shows each slot as `kind:text`.
    fn show(paths: &[&str], record: &str) -> Result<Vec<String>, Malformed> {
        show_bytes(paths, record.as_bytes())
    }

    fn show_bytes(paths: &[&str], record: &[u8]) -> Result<Vec<String>, Malformed> {
        let mut out = Slots::default();
        JsonDecoder::new(&wanted(paths)).decode(record, &mut out)?;
        Ok((0..paths.len())
            .map(|i| format!("{:?}:{}", out.kind(i), String::from_utf8_lossy(out.get(i, record))))
            .collect())
    }

    #[track_caller]
    fn check(paths: &[&str], record: &str, expected: &[&str]) {
        assert_eq!(show(paths, record).unwrap(), expected, "{record}");
    }

    #[track_caller]
    fn refused(paths: &[&str], record: &[u8]) -> String {
        let e = show_bytes(paths, record).expect_err("is malformed");
        assert_eq!(e.reason, "malformed_json");
        e.message
    }

    #[test]
    fn kinds() {
        let record = r#"{"s":"x","n":-1.50e3,"t":true,"f":false,"z":null,"o":{"a": 1},"l":[1, 2],"e":""}"#;
        check(
            &["s", "n", "t", "f", "z", "o", "l", "e", "none"],
            record,
            &[
                "Text:x",
                "Number:-1.50e3",
                "Bool:true",
                "Bool:false",
                "Missing:",
                r#"Structure:{"a": 1}"#,
                "Structure:[1, 2]",
                "Missing:",
                "Missing:",
            ],
        );
    }

    #[test]
    fn escapes_in_text_and_names() {
        let record = r#"{"a":"http:\/\/x\n\"\\","b":"\u00e4 \ud83d\ude00","\u0063":"d","e":"\\u0041"}"#;
        check(&["a", "b", "c", "e"], record, &["Text:http://x\n\"\\", "Text:ä 😀", "Text:d", "Text:\\u0041"]);
    }

    #[test]
    fn pointers() {
        let record =
            r#"{"a":{"b":{"c":1},"x/y":2,"m~n":3,"":4},"l":[10,[20,21],{"k":30}],"/":5,"a.b":6,"":7}"#;
        check(
            &[
                "/a/b/c", "/a/x~1y", "/a/m~0n", "/a/", "/l/0", "/l/1/1", "/l/2/k", "/~1", "a.b", "", "/l/00",
                "/l/-",
            ],
            record,
            &[
                "Number:1",
                "Number:2",
                "Number:3",
                "Number:4",
                "Number:10",
                "Number:21",
                "Number:30",
                "Number:5",
                "Number:6",
                "Number:7",
                "Missing:",
                "Missing:",
            ],
        );
        // A declared value may itself hold declared values, and a path may be wanted twice.
        check(
            &["a", "/a/b", "/a"],
            r#"{"a":{"b":1}}"#,
            &[r#"Structure:{"b":1}"#, "Number:1", r#"Structure:{"b":1}"#],
        );
        // An index is written without leading zeros.
        check(&["/l/00", "/l/01"], r#"{"l":[1,2]}"#, &["Missing:", "Missing:"]);
        // What cannot be entered holds nothing; numbers out of every range pass.
        check(&["/a/b", "/a/0"], r#"{"a":"text"}"#, &["Missing:", "Missing:"]);
        check(&["/a/b"], r#"{"a":1e999}"#, &["Missing:"]);
        check(&["/a/b"], r#"{"a":"\ud800"}"#, &["Missing:"]);
        check(&["a"], r#"{"a":1e999}"#, &["Number:1e999"]);
    }

    #[test]
    fn last_duplicate_wins() {
        check(&["a"], r#"{"a":1,"a":"x"}"#, &["Text:x"]);
        check(&["a"], r#"{"a":1,"a":null}"#, &["Missing:"]);
        check(&["/a/b", "/a/c"], r#"{"a":{"b":1},"a":{"c":2}}"#, &["Missing:", "Number:2"]);
        check(&["/a/b"], r#"{"a":{"b":1},"a":3}"#, &["Missing:"]);
    }

    #[test]
    fn refusals() {
        for record in ["[1]", "1", "\"x\"", "null", " true", "nonsense"] {
            assert_eq!(refused(&["v"], record.as_bytes()), "record is not a JSON object");
        }
        for record in
            ["", "  ", "{", r#"{"v":1"#, r#"{"v":1}x"#, r#"{"v":1,}"#, r#"{v:1}"#, r#"{"v":01}"#, "{}{}"]
        {
            refused(&["v"], record.as_bytes());
            refused(&["w"], record.as_bytes());
        }
        assert_eq!(refused(&["v"], b"{\"v\":\"\xff\"}"), "invalid UTF-8 at byte 6");
        assert!(refused(&["v"], br#"{"w":1,"v":"\ud800"}"#).contains("of the value at byte 11"));
        refused(&["w"], b"{\"v\":\"a\nb\"}");
        assert!(refused(&["w"], br#"{"v":truE}"#).contains("line 1 column"));
    }

    #[test]
    fn paths_are_checked() {
        assert_eq!(check_path("a~b"), Ok(()));
        assert_eq!(check_path("/a~0b/~1"), Ok(()));
        assert!(check_path("/a~2").is_err());
        assert!(check_path("/a~").is_err());
        assert_eq!(check_path(&"/a".repeat(POINTER_LEVELS_MAX)), Ok(()));
        assert!(check_path(&"/a".repeat(POINTER_LEVELS_MAX + 1)).is_err());
        check(&["/a~", "b"], r#"{"a~":1,"b":2}"#, &["Missing:", "Number:2"]);
    }

    #[test]
    fn depth_does_not_cost_stack() {
        let deep = 100_000;
        let run = move || {
            let arrays = format!("{{\"v\":{}{}}}", "[".repeat(deep), "]".repeat(deep));
            for paths in [&["v"][..], &["w"], &["/v/0/0", "/v/1"]] {
                assert!(show(paths, &arrays).is_ok());
            }
            let objects = format!("{{\"v\":{}1{}}}", "{\"v\":".repeat(deep), "}".repeat(deep));
            let longest = "/v".repeat(POINTER_LEVELS_MAX);
            for paths in [&["v"][..], &["w"], &["/v/v/v"], &[&longest]] {
                assert!(show(paths, &objects).is_ok());
            }
            for open in ["[", "{\"v\":", "[{\"v\":"] {
                let unclosed = format!("{{\"v\":{}", open.repeat(deep));
                refused(&["v"], unclosed.as_bytes());
                refused(&["w"], unclosed.as_bytes());
                refused(&[&longest], unclosed.as_bytes());
            }
        };
        let thread = std::thread::Builder::new().stack_size(512 * 1024).spawn(run).unwrap();
        assert!(thread.join().is_ok());
    }

    fn inside(value: &[u8]) -> Vec<u8> {
        [br#"{"k":"a","t":1,"v":"#, value, b"}"].concat()
    }

    #[test]
    fn a_value_is_checked_declared_or_not() {
        let good = [
            "[]",
            "[[]   ]",
            "\"\\u0060\\u012a\"",
            "-0",
            "1e22",
            "[1\n]",
            "{\"a\":{}}",
            "\"\u{7f}\"",
            "20e1 ",
        ];
        let bad = [
            "[1 true]",
            "[1,,2]",
            "[a\u{e5}]",
            "-",
            "1.",
            "[+1]",
            "0x1",
            "\"\\x\"",
            "\"\\u12\"",
            "'a'",
            "NaN",
            "",
        ];
        for paths in [&["k", "t", "v"][..], &["k", "t"], &["/v/a/b", "/v/0"]] {
            for value in good {
                assert!(show_bytes(paths, &inside(value.as_bytes())).is_ok(), "{value}");
            }
            for value in bad {
                refused(paths, &inside(value.as_bytes()));
            }
        }
    }

    /// The published suite (TIDEMILL_TRIALS holds json-test-suite/JSONTestSuite.tar.xz), each file as a value.
    #[test]
    fn json_test_suite() {
        let Some(trials) = std::env::var_os("TIDEMILL_TRIALS") else { return };
        let dir = tempfile::tempdir().unwrap();
        let archive = std::path::Path::new(&trials).join("json-test-suite/JSONTestSuite.tar.xz");
        let tar =
            std::process::Command::new("tar").arg("xJf").arg(&archive).arg("-C").arg(dir.path()).status();
        assert!(tar.unwrap().success(), "{}", archive.display());
        let (mut accepted, mut rejected, mut either) = (0, 0, 0);
        for entry in std::fs::read_dir(dir.path().join("test_parsing")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let record = inside(&std::fs::read(entry.path()).unwrap());
            for paths in [&["k", "t", "v"][..], &["k", "t"]] {
                let result = show_bytes(paths, &record);
                match name.as_bytes()[0] {
                    b'y' => assert!(result.is_ok(), "{name} {paths:?}: {result:?}"),
                    b'n' => assert_eq!(result.expect_err(&name).reason, "malformed_json", "{name} {paths:?}"),
                    _ => {}
                }
            }
            match name.as_bytes()[0] {
                b'y' => accepted += 1,
                b'n' => rejected += 1,
                _ => either += 1,
            }
        }
        assert_eq!((accepted, rejected, either), (95, 188, 35));
    }

    /// JSON of any shape, written by serde_json.
    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::btree_map("[ab01~/]?", inner, 0..4)
                    .prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn never_panics(record in prop::collection::vec(any::<u8>(), 0..200), path in ".{0,8}") {
            let mut out = Slots::default();
            let result = JsonDecoder::new(&[path, "a".into(), "/a/0".into()]).decode(&record, &mut out);
            prop_assert!(result.is_ok() || result.is_err_and(|e| e.reason == REASON));
        }

        #[test]
        fn never_panics_on_near_json(record in r#"\{("a":)?[\[\]{}",:a01eE.\\unlltrue-]{0,40}\}?"#) {
            let mut out = Slots::default();
            let result = JsonDecoder::new(&["a".into(), "/a/0".into(), "/a/a".into()]).decode(record.as_bytes(), &mut out);
            let reference: Result<serde_json::Value, _> = serde_json::from_str(&record);
            // serde_json's own tree accepts no more than we do.
            prop_assert!(result.is_ok() || !reference.is_ok_and(|v| v.is_object()));
        }

        /// Bug family: the quick way gives other slots than serde_json, or takes what it refuses.
        #[test]
        fn both_ways_agree(
            v in any_json(),
            edit in prop::option::of((any::<prop::sample::Index>(), r#"[\[\]{}",:a1e.\\un -]{1,3}"#)),
        ) {
            let mut record = serde_json::json!({ "k": "x", "a": v, "t": 1 }).to_string();
            if let Some((at, with)) = edit {
                let places: Vec<usize> = record.char_indices().map(|(i, _)| i).collect();
                record.insert_str(*at.get(&places), &with);
            }
            let mut decoder = JsonDecoder::new(&wanted(&["k", "t", "a", "/a/a", "/a/0"]));
            let (mut quick, mut slow) = (Slots::default(), Slots::default());
            let refused = decoder.read(&record, &mut slow).is_err();
            if decoder.read_quickly(&record, &mut quick) {
                prop_assert!(!refused);
                for i in 0..5 {
                    prop_assert_eq!(quick.kind(i), slow.kind(i));
                    prop_assert_eq!(quick.get(i, record.as_bytes()), slow.get(i, record.as_bytes()));
                }
            }
        }

        /// Bug family: wrong place, wrong level, stale slot. The model is `Value::pointer`.
        #[test]
        fn pointers_as_in_serde_json(v in any_json(), path in "(/[ab01]?){1,3}") {
            let root = serde_json::json!({ "a": v });
            let record = root.to_string();
            let mut out = Slots::default();
            JsonDecoder::new(std::slice::from_ref(&path)).decode(record.as_bytes(), &mut out).unwrap();
            let text = std::str::from_utf8(out.get(0, record.as_bytes())).unwrap();
            match root.pointer(&path) {
                None | Some(serde_json::Value::Null) => prop_assert_eq!(out.kind(0), Kind::Missing),
                Some(serde_json::Value::String(s)) => prop_assert_eq!(text, s),
                Some(other) => prop_assert_eq!(text, other.to_string()),
            }
        }
    }
}
