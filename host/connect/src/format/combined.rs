//! The combined log format of Apache and nginx, and the common format that it extends:
//!
//! ```text
//! host ident user [time] "method url protocol" status bytes "referer" "agent"
//! ```
//!
//! Invariants:
//! - `-` is missing in every field but host, time and status; fields that are not there are missing too.
//! - Anything may stand in the request: three words are method, url and protocol, everything else is the url.
//!   All around it is held to the form, and a message says what was expected at which byte of the record.
//! - In quoted fields `\"` and `\\` are unescaped; other escapes (`\xhh`, which need not be UTF-8) are left.
//! - One pass from left to right, no allocation unless a wanted field has escapes.

use super::json::utf8_message;
use super::{Decoder, Kind, Malformed, Slots};

/// The fields in the order of the line. A wanted name that is none of these stays missing.
pub const FIELDS: [&str; 11] =
    ["host", "ident", "user", "time", "method", "url", "protocol", "status", "bytes", "referer", "agent"];

const HOST: usize = 0;
const IDENT: usize = 1;
const USER: usize = 2;
const TIME: usize = 3;
const METHOD: usize = 4;
const URL: usize = 5;
const PROTOCOL: usize = 6;
const STATUS: usize = 7;
const BYTES: usize = 8;
const REFERER: usize = 9;
const AGENT: usize = 10;

/// Decodes combined and common log lines.
#[derive(Debug)]
pub struct CombinedDecoder {
    /// (field, slot) of the wanted names that are fields.
    targets: Vec<(usize, usize)>,
    wanted: usize,
    /// Reused for text with escapes.
    text: Vec<u8>,
}

impl CombinedDecoder {
    /// For these names of [`FIELDS`].
    #[must_use]
    pub fn new(wanted: &[String]) -> Self {
        let field = |name: &String| FIELDS.iter().position(|f| f == name);
        let targets =
            wanted.iter().enumerate().filter_map(|(slot, name)| Some((field(name)?, slot))).collect();
        Self { targets, wanted: wanted.len(), text: Vec::new() }
    }
}

impl Decoder for CombinedDecoder {
    fn header(&mut self, _record: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }

    fn decode(&mut self, record: &[u8], out: &mut Slots) -> Result<(), Malformed> {
        out.reset(self.wanted);
        let line = simdutf8::basic::from_utf8(record)
            .map_err(|_| utf8_message(record))
            .and_then(|_| Line::parse(record))
            .map_err(|message| Malformed { reason: "malformed_combined", message })?;
        for &(field, slot) in &self.targets {
            let part = line.parts[field];
            let bytes = &record[part.at..part.end];
            if part.escaped && memchr::memchr(b'\\', bytes).is_some() {
                unescape(bytes, &mut self.text);
                out.set_owned(slot, Kind::Text, &self.text);
            } else {
                out.set_range(slot, Kind::Text, part.at, bytes.len());
            }
        }
        Ok(())
    }
}

/// Where a field stands in the record. Empty is missing.
#[derive(Clone, Copy, Default, Debug)]
struct Part {
    at: usize,
    end: usize,
    /// Whether it stands in quotes and holds a backslash.
    escaped: bool,
}

/// The fields of one line, and the place up to which they are read.
struct Line<'a> {
    record: &'a [u8],
    at: usize,
    parts: [Part; FIELDS.len()],
}

impl<'a> Line<'a> {
    fn parse(record: &'a [u8]) -> Result<Self, String> {
        let mut line = Self { record, at: 0, parts: [Part::default(); FIELDS.len()] };
        line.parts[HOST] = line.word("the host and a space")?;
        line.parts[IDENT] = line.word("the identity and a space")?;
        line.user_and_time()?;
        line.literal(b" \"", "a space and the quoted request")?;
        let request = line.quoted(false)?;
        line.request(request);
        line.literal(b" ", "a space and the status")?;
        line.status()?;
        line.literal(b" ", "a space and the number of bytes")?;
        line.bytes()?;
        if line.at < record.len() {
            line.literal(b" \"", "the line's end, or a space and the quoted referer")?;
            line.parts[REFERER] = line.quoted(false)?;
            line.literal(b" \"", "a space and the quoted agent")?;
            line.parts[AGENT] = line.quoted(true)?;
            if line.at < record.len() {
                return Err(line.expected("the line's end"));
            }
        }
        for field in [IDENT, USER, METHOD, URL, PROTOCOL, BYTES, REFERER, AGENT] {
            let part = &mut line.parts[field];
            if part.end - part.at == 1 && record[part.at] == b'-' {
                *part = Part::default();
            }
        }
        Ok(line)
    }

    fn expected(&self, what: &str) -> String {
        format!("expected {what} at byte {}", self.at)
    }

    fn rest(&self) -> &'a [u8] {
        &self.record[self.at..]
    }

    fn literal(&mut self, literal: &[u8], what: &str) -> Result<(), String> {
        if !self.rest().starts_with(literal) {
            return Err(self.expected(what));
        }
        self.at += literal.len();
        Ok(())
    }

    /// A word without spaces, and the space after it.
    fn word(&mut self, what: &str) -> Result<Part, String> {
        match memchr::memchr(b' ', self.rest()) {
            None | Some(0) => Err(self.expected(what)),
            Some(len) => {
                let part = Part { at: self.at, end: self.at + len, escaped: false };
                self.at += len + 1;
                Ok(part)
            }
        }
    }

    /// The user up to ` [`, since names with spaces occur, then the time up to `]`.
    fn user_and_time(&mut self) -> Result<(), String> {
        let user = self.at;
        let open = memchr::memchr_iter(b'[', self.rest())
            .map(|len| user + len)
            .find(|&open| open > user + 1 && self.record[open - 1] == b' ');
        let Some(open) = open else { return Err(self.expected("the user, a space and `[`")) };
        self.parts[USER] = Part { at: user, end: open - 1, escaped: false };
        self.at = open + 1;
        match memchr::memchr(b']', self.rest()) {
            None | Some(0) => Err(self.expected("the time and `]`")),
            Some(len) => {
                self.parts[TIME] = Part { at: self.at, end: self.at + len, escaped: false };
                self.at += len + 1;
                Ok(())
            }
        }
    }

    /// The inside of quotes whose first one is read already. The last field of a line may lack the second:
    /// servers cut long lines.
    fn quoted(&mut self, last: bool) -> Result<Part, String> {
        let start = self.at;
        let mut part = Part { at: start, end: self.record.len(), escaped: false };
        let mut from = start;
        loop {
            match memchr::memchr2(b'"', b'\\', &self.record[from..]) {
                Some(len) if self.record[from + len] == b'"' => {
                    part.end = from + len;
                    self.at = part.end + 1;
                    return Ok(part);
                }
                Some(len) => {
                    part.escaped = true;
                    // The byte after a backslash ends nothing, whatever it is.
                    from = (from + len + 2).min(self.record.len());
                }
                None if last => {
                    self.at = part.end;
                    return Ok(part);
                }
                None => {
                    self.at = self.record.len();
                    return Err(format!(
                        "{} for the one at byte {}",
                        self.expected("a closing quote"),
                        start - 1
                    ));
                }
            }
        }
    }

    fn request(&mut self, whole: Part) {
        let text = &self.record[whole.at..whole.end];
        let mut spaces = memchr::memchr_iter(b' ', text);
        if let (Some(a), Some(b), None) = (spaces.next(), spaces.next(), spaces.next())
            && a > 0
            && b > a + 1
            && b + 1 < text.len()
        {
            let part = |from, to| Part { at: whole.at + from, end: whole.at + to, escaped: whole.escaped };
            self.parts[METHOD] = part(0, a);
            self.parts[URL] = part(a + 1, b);
            self.parts[PROTOCOL] = part(b + 1, text.len());
        } else {
            self.parts[URL] = whole;
        }
    }

    fn status(&mut self) -> Result<(), String> {
        let digits = self.rest().iter().take_while(|b| b.is_ascii_digit()).count();
        if digits != 3 {
            return Err(self.expected("a status of three digits"));
        }
        self.parts[STATUS] = Part { at: self.at, end: self.at + 3, escaped: false };
        self.at += 3;
        Ok(())
    }

    fn bytes(&mut self) -> Result<(), String> {
        let len = match self.rest().first() {
            Some(b'-') => 1,
            _ => self.rest().iter().take_while(|b| b.is_ascii_digit()).count(),
        };
        if len == 0 {
            return Err(self.expected("the number of bytes or `-`"));
        }
        self.parts[BYTES] = Part { at: self.at, end: self.at + len, escaped: false };
        self.at += len;
        Ok(())
    }
}

/// Unescapes `\"` and `\\` into `to`.
fn unescape(mut from: &[u8], to: &mut Vec<u8>) {
    to.clear();
    while let Some(at) = memchr::memchr(b'\\', from) {
        to.extend_from_slice(&from[..at]);
        let escaped = from.get(at + 1).copied().filter(|b| matches!(b, b'"' | b'\\'));
        to.push(escaped.unwrap_or(b'\\'));
        from = &from[at + 1 + usize::from(escaped.is_some())..];
    }
    to.extend_from_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all() -> Vec<String> {
        FIELDS.iter().map(|&f| f.to_owned()).collect()
    }

    /// The fields of a line by name, the missing ones left out.
    fn fields(record: &[u8]) -> Result<Vec<(&'static str, String)>, Malformed> {
        let mut out = Slots::default();
        CombinedDecoder::new(&all()).decode(record, &mut out)?;
        Ok((0..FIELDS.len())
            .filter(|&i| out.kind(i) != Kind::Missing)
            .map(|i| (FIELDS[i], String::from_utf8(out.get(i, record).to_vec()).unwrap()))
            .collect())
    }

    #[track_caller]
    fn check(record: &str, expected: &[(&'static str, &str)]) {
        let expected: Vec<_> = expected.iter().map(|&(k, v)| (k, v.to_owned())).collect();
        assert_eq!(fields(record.as_bytes()).unwrap(), expected, "{record}");
    }

    #[test]
    fn whole_lines() {
        check(
            r#"1.2.3.4 - bob [17/May/2015:10:05:03 +0000] "GET /a?b=c HTTP/1.1" 200 203 "http://r/" "Mozilla (x; y)""#,
            &[
                ("host", "1.2.3.4"),
                ("user", "bob"),
                ("time", "17/May/2015:10:05:03 +0000"),
                ("method", "GET"),
                ("url", "/a?b=c"),
                ("protocol", "HTTP/1.1"),
                ("status", "200"),
                ("bytes", "203"),
                ("referer", "http://r/"),
                ("agent", "Mozilla (x; y)"),
            ],
        );
        check(
            r#"h i john doe [t] "-" 400 -"#,
            &[("host", "h"), ("ident", "i"), ("user", "john doe"), ("time", "t"), ("status", "400")],
        );
        check(
            r#"h - - [t] "- - -" 400 0 "-" "-""#,
            &[("host", "h"), ("time", "t"), ("status", "400"), ("bytes", "0")],
        );
        check(
            r#"h - - [t] "" 400 0 "" ""#,
            &[("host", "h"), ("time", "t"), ("status", "400"), ("bytes", "0")],
        );
    }

    #[test]
    fn requests_that_are_none() {
        for request in ["GET /", r"\x16\x03\x01", "a b c d", "GET  /", " a b", "a b ", "x"] {
            let line = format!(r#"h - - [t] "{request}" 400 1"#);
            check(
                &line,
                &[("host", "h"), ("time", "t"), ("url", request), ("status", "400"), ("bytes", "1")],
            );
        }
    }

    #[test]
    fn quotes_escaped_or_cut() {
        let start = [("host", "h"), ("time", "t"), ("method", "G"), ("url", "/\"x\""), ("protocol", "P")];
        for (tail, referer, agent) in [
            (r#""r\\" "a \"b\" \x22""#, r"r\", r#"a "b" \x22"#),
            (r#""r" "a cut off"#, "r", "a cut off"),
            (r#""r" "a cut off \"#, "r", r"a cut off \"),
            (r#""r" "a cut off \""#, "r", "a cut off \""),
        ] {
            let line = format!(r#"h - - [t] "G /\"x\" P" 200 1 {tail}"#);
            let rest = [("status", "200"), ("bytes", "1"), ("referer", referer), ("agent", agent)];
            check(&line, &[&start[..], &rest].concat());
        }
    }

    #[test]
    fn refusals() {
        for (record, message) in [
            (&b""[..], "expected the host and a space at byte 0"),
            (b"h", "expected the host and a space at byte 0"),
            (b"h  ", "expected the identity and a space at byte 2"),
            (b"h - - t", "expected the user, a space and `[` at byte 4"),
            (b"h - [t] x", "expected the user, a space and `[` at byte 4"),
            (b"h - - [t", "expected the time and `]` at byte 7"),
            (b"h - - []", "expected the time and `]` at byte 7"),
            (b"h - - [t]", "expected a space and the quoted request at byte 9"),
            (b"h - - [t] \"GET", "expected a closing quote at byte 14 for the one at byte 10"),
            (b"h - - [t] \"\\", "expected a closing quote at byte 12 for the one at byte 10"),
            (b"h - - [t] \"G\"", "expected a space and the status at byte 13"),
            (b"h - - [t] \"G\" 20 1", "expected a status of three digits at byte 14"),
            (b"h - - [t] \"G\" 2000 1", "expected a status of three digits at byte 14"),
            (b"h - - [t] \"G\" 200", "expected a space and the number of bytes at byte 17"),
            (b"h - - [t] \"G\" 200 x", "expected the number of bytes or `-` at byte 18"),
            (
                b"h - - [t] \"G\" 200 1 ",
                "expected the line's end, or a space and the quoted referer at byte 19",
            ),
            (b"h - - [t] \"G\" 200 1 \"r\"", "expected a space and the quoted agent at byte 23"),
            (b"h - - [t] \"G\" 200 1 \"r\" \"a\" x", "expected the line's end at byte 27"),
            (b"h - - [t] \"G\xff\" 200 1", "invalid UTF-8 at byte 12"),
        ] {
            let e = fields(record).expect_err("is malformed");
            assert_eq!((e.reason, e.message.as_str()), ("malformed_combined", message));
        }
    }

    #[test]
    fn unknown_and_repeated_names() {
        let wanted = ["status", "nothing", "host", "status"].map(str::to_owned);
        let record = br#"h - - [t] "GET / HTTP/1.0" 304 -"#;
        let mut out = Slots::default();
        CombinedDecoder::new(&wanted).decode(record, &mut out).unwrap();
        let got: Vec<&[u8]> = (0..4).map(|i| out.get(i, record)).collect();
        assert_eq!(got, [&b"304"[..], b"", b"h", b"304"]);
    }

    #[test]
    fn real_file() {
        let Some(trials) = std::env::var_os("TIDEMILL_TRIALS").map(std::path::PathBuf::from) else { return };
        let bytes = std::fs::read(trials.join("apache-semicomplete/apache_logs.gz")).unwrap();
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&bytes[..]), &mut text).unwrap();
        let mut time = crate::format::time::TimeParser::combined();
        let (mut hosts, mut lines) = (std::collections::BTreeSet::new(), 0);
        for line in text.split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
            let fields = fields(line).unwrap();
            hosts.insert(fields[0].1.clone());
            let at = &fields.iter().find(|f| f.0 == "time").unwrap().1;
            assert!(time.parse(at.as_bytes()).is_ok(), "{at}");
            lines += 1;
        }
        assert_eq!((lines, hosts.len()), (10_000, 1_753));
    }

    proptest! {
        #[test]
        fn never_panics(record in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(fields(&record).is_ok() || fields(&record).is_err_and(|e| e.reason == "malformed_combined"));
        }

        #[test]
        fn never_panics_near_the_form(record in r#"h? ?- ?[-\[] ?\[[t\]]{1,2} "[a\\" -]{0,9}" 200 [0-9-]{0,2}[a\\" ]{0,8}"#) {
            let result = fields(record.as_bytes());
            prop_assert!(result.is_ok() || result.is_err_and(|e| e.message.starts_with("expected ")));
        }
    }
}
