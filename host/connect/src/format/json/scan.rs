//! A quick way through well-formed JSON objects: finds their members without looking into them.
//!
//! Invariants:
//! - Accepts only what serde_json accepts when it skips values; whatever is unusual (an escape in a member
//!   name, deep nesting, any error) is refused without a reason, and the caller asks serde_json.
//! - One pass, no recursion, no allocation.
//!
//! Written by hand because decoding is the largest part of the CPU promise of DESIGN 9: beside serde_json's
//! visitors it halves the time for a click record.

use std::ops::Range;

/// Nested values are followed this deep: one bit each.
const DEPTH_MAX: u32 = u64::BITS;

/// Gives each member's name and the place of its value to `member`, in order. True if all of `text` is one
/// object between white space and `member` never said false; the text is known to be UTF-8.
pub(super) fn members(text: &[u8], member: impl FnMut(&[u8], Range<usize>) -> bool) -> bool {
    Scan { text, at: 0 }.object(member).is_some()
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    /// The byte at hand; at the end 0, which is no JSON outside of strings.
    #[inline]
    fn byte(&self) -> u8 {
        self.text.get(self.at).copied().unwrap_or(0)
    }

    /// The next byte that is no white space.
    #[inline]
    fn token(&mut self) -> u8 {
        loop {
            match self.byte() {
                b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
                b => return b,
            }
        }
    }

    /// Steps over a token that has to come next.
    #[inline]
    fn expect(&mut self, token: u8) -> Option<()> {
        if self.token() != token {
            return None;
        }
        self.at += 1;
        Some(())
    }

    fn object(&mut self, mut member: impl FnMut(&[u8], Range<usize>) -> bool) -> Option<()> {
        self.expect(b'{')?;
        if self.token() == b'}' {
            self.at += 1;
        } else {
            loop {
                self.expect(b'"')?;
                let from = self.at;
                let plain = self.string()?;
                let name = self.text.get(from..self.at - 1).filter(|_| plain)?;
                self.expect(b':')?;
                self.token();
                let from = self.at;
                self.value()?;
                if !member(name, from..self.at) {
                    return None;
                }
                match self.token() {
                    b',' => self.at += 1,
                    b'}' => break,
                    _ => return None,
                }
            }
            self.at += 1;
        }
        self.token();
        (self.at == self.text.len()).then_some(())
    }

    /// Steps over a string, its opening quote already behind; says whether it has no escapes.
    #[inline]
    fn string(&mut self) -> Option<bool> {
        let mut plain = true;
        loop {
            self.at = special(self.text, self.at);
            match self.byte() {
                b'"' => {
                    self.at += 1;
                    return Some(plain);
                }
                b'\\' => self.escape()?,
                // A control character, or the end.
                _ => return None,
            }
            plain = false;
        }
    }

    fn escape(&mut self) -> Option<()> {
        match *self.text.get(self.at + 1)? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 2,
            b'u' if self.text.get(self.at + 2..self.at + 6)?.iter().all(u8::is_ascii_hexdigit) => {
                self.at += 6;
            }
            _ => return None,
        }
        Some(())
    }

    /// Steps over a value.
    #[inline]
    fn value(&mut self) -> Option<()> {
        match self.byte() {
            b'{' | b'[' => self.nested(),
            _ => self.scalar(),
        }
    }

    #[inline]
    fn scalar(&mut self) -> Option<()> {
        match self.byte() {
            b'"' => {
                self.at += 1;
                self.string().map(drop)
            }
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.literal(b"true"),
            b'f' => self.literal(b"false"),
            b'n' => self.literal(b"null"),
            _ => None,
        }
    }

    fn literal(&mut self, word: &[u8]) -> Option<()> {
        self.text[self.at..].starts_with(word).then(|| self.at += word.len())
    }

    fn number(&mut self) -> Option<()> {
        if self.byte() == b'-' {
            self.at += 1;
        }
        // No digit follows a leading zero: what stands behind a value is checked by whoever wanted it.
        if self.byte() == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.byte() == b'.' {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.byte(), b'e' | b'E') {
            self.at += 1;
            if matches!(self.byte(), b'+' | b'-') {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let from = self.at;
        while self.byte().is_ascii_digit() {
            self.at += 1;
        }
        (self.at > from).then_some(())
    }

    /// Steps over an object or array and all that is in it.
    fn nested(&mut self) -> Option<()> {
        // The innermost container is the lowest bit: 1 for an object.
        let (mut kinds, mut depth) = (0_u64, 0);
        loop {
            let opened = self.token();
            if matches!(opened, b'{' | b'[') {
                if depth == DEPTH_MAX {
                    return None;
                }
                self.at += 1;
                depth += 1;
                kinds = kinds << 1 | u64::from(opened == b'{');
                // `{` and `[` stand two before their closing brackets.
                if self.token() != opened + 2 {
                    self.name(kinds)?;
                    continue;
                }
            } else {
                self.scalar()?;
            }
            // A value has ended, or a container is empty.
            loop {
                match (self.token(), kinds & 1) {
                    (b',', _) => break,
                    (b'}', 1) | (b']', 0) => {
                        self.at += 1;
                        depth -= 1;
                        kinds >>= 1;
                        if depth == 0 {
                            return Some(());
                        }
                    }
                    _ => return None,
                }
            }
            self.at += 1;
            self.name(kinds)?;
        }
    }

    /// Steps over a member's name, if the innermost container is an object.
    #[inline]
    fn name(&mut self, kinds: u64) -> Option<()> {
        if kinds & 1 == 1 {
            self.expect(b'"')?;
            self.string()?;
            self.expect(b':')?;
        }
        Some(())
    }
}

const LOW: u64 = u64::MAX / 255;
const HIGH: u64 = LOW << 7;

/// The first place from `at` on of a quote, a backslash or a control character; else the end. Eight bytes
/// at a time. Method: a byte is below `n` if subtracting `n` borrows into its top bit, which it did not have;
/// a borrow from the byte before can mislead only behind the first hit (M. Mycroft's zero-byte test).
#[inline]
fn special(text: &[u8], mut at: usize) -> usize {
    while let Some(eight) = text.get(at..).and_then(|t| t.first_chunk::<8>()) {
        let w = u64::from_le_bytes(*eight);
        let quote = w ^ (LOW * b'"' as u64);
        let backslash = w ^ (LOW * b'\\' as u64);
        let found = (quote.wrapping_sub(LOW) & !quote
            | backslash.wrapping_sub(LOW) & !backslash
            | w.wrapping_sub(LOW * 0x20) & !w)
            & HIGH;
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20)).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn members_come_in_order_with_the_place_of_their_value() {
        let text = r#" { "a" : 1 ,"b":[1, {"c":"]\"\u12aB"},[]],"":{} , "ä": "x" } "#;
        let mut seen = Vec::new();
        let whole = members(text.as_bytes(), |name, value| {
            seen.push(format!("{}={}", String::from_utf8_lossy(name), &text[value]));
            true
        });
        assert!(whole);
        assert_eq!(seen, ["a=1", r#"b=[1, {"c":"]\"\u12aB"},[]]"#, "={}", "ä=\"x\""]);
        assert!(!members(b"{\"a\":1}", |_, _| false));
    }

    #[test]
    fn the_unusual_is_left_to_others() {
        let deep = format!("{{\"v\":{}{}}}", "[".repeat(65), "]".repeat(65));
        for text in [r#"{"\u0061":1}"#, deep.as_str()] {
            assert!(serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok());
            assert!(!members(text.as_bytes(), |_, _| true), "{text}");
        }
    }

    proptest! {
        /// Bug family: a hit before or behind the first special byte, at the borders of eight bytes.
        #[test]
        fn special_bytes_are_found_as_one_by_one(text in prop::collection::vec(any::<u8>(), 0..40), at in 0_usize..40) {
            let at = at.min(text.len());
            let slow = text[at..].iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20));
            prop_assert_eq!(special(&text, at), slow.map_or(text.len(), |i| at + i));
        }

        /// Bug family: accepting what is no JSON. The model is serde_json, skipping.
        #[test]
        fn accepts_only_what_serde_json_skips(text in r#"\{("[ab]":)?[\[\]{}",:a01eE.\\unlltrue \n-]{0,24}\}?"#) {
            let serde = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert!(serde || !members(text.as_bytes(), |_, _| true));
        }

        /// Bug family: a token table that lets one wrong byte pass.
        #[test]
        fn one_changed_byte_is_judged_as_serde_json_does(at in any::<prop::sample::Index>(), to in 0_u8..128) {
            let mut text = br#"{"a":[1,{"b":"x\n","c":[]}, -0.5e+1,true ],"d":null,"e":{"f":false}}"#.to_vec();
            let at = at.index(text.len());
            text[at] = to;
            let serde = serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_ok();
            let ours = members(&text, |_, _| true);
            prop_assert!(serde == ours || serde && to == b'\\', "{}", String::from_utf8_lossy(&text));
        }
    }
}
