//! Keys: whose sessions these are. One field or several together, raw or as HMAC-SHA-256.

use crate::bounds::GROUP_BITS;
use crate::outbox::hex;
use crate::time::EventTime;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// How a key's bytes are to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyForm {
    /// One field: its bytes.
    One,
    /// Several fields: each with its length before.
    Together,
    /// The HMAC of one of the above: nobody downstream sees the raw one.
    Hashed,
}

/// Appends one of several key or id fields with its length before (SEMANTICS 2).
pub fn push_part(out: &mut Vec<u8>, part: &[u8]) {
    out.extend_from_slice(&(part.len() as u32).to_be_bytes());
    out.extend_from_slice(part);
}

fn parts(mut bytes: &[u8]) -> Vec<Cow<'_, str>> {
    let mut out = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
        let Some((part, rest)) = rest.split_at_checked(u32::from_be_bytes(*len) as usize) else { break };
        out.push(String::from_utf8_lossy(part));
        bytes = rest;
    }
    out
}

impl KeyForm {
    /// The key as rows show it: text as in the record, a JSON array, or hex.
    #[must_use]
    pub fn display(self, key: &[u8]) -> Cow<'_, str> {
        match self {
            KeyForm::One => String::from_utf8_lossy(key),
            KeyForm::Together => Cow::Owned(serde_json::Value::from(parts(key)).to_string()),
            KeyForm::Hashed => Cow::Owned(hex(key)),
        }
    }
}

impl KeyForm {
    /// The bytes of a key from how rows show it; none if it cannot be one.
    #[must_use]
    pub fn parse(self, shown: &str) -> Option<Vec<u8>> {
        match self {
            KeyForm::One => Some(shown.as_bytes().to_vec()),
            KeyForm::Together => {
                let parts: Vec<String> = serde_json::from_str(shown).ok()?;
                let mut key = Vec::new();
                parts.iter().for_each(|p| push_part(&mut key, p.as_bytes()));
                Some(key)
            }
            KeyForm::Hashed => {
                let digits = shown.as_bytes().chunks(2);
                digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok()).collect()
            }
        }
    }
}

/// Hashes keys on arrival with a secret.
#[derive(Clone)]
pub struct KeyHasher(Hmac<Sha256>);

impl KeyHasher {
    /// With this secret; any length. `None` is never returned by HMAC, which takes keys of any length.
    #[must_use]
    pub fn new(secret: &[u8]) -> Option<Self> {
        Hmac::<Sha256>::new_from_slice(secret).ok().map(KeyHasher)
    }
    /// The 32 bytes that stand for the key.
    #[must_use]
    pub fn hash(&self, key: &[u8]) -> [u8; 32] {
        let mut mac = self.0.clone();
        mac.update(key);
        mac.finalize().into_bytes().into()
    }
}

impl std::fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHasher(***)")
    }
}

/// The hash that places a key: XXH3-64, a frozen definition, because key groups outlive programs.
#[must_use]
pub fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// The key group of a key with this hash.
#[must_use]
pub const fn key_group(hash: u64) -> u32 {
    (hash >> (64 - GROUP_BITS)) as u32
}

/// The session id: the first 128 bits of SHA-256 over length-prefixed pipeline, key, anchor time, anchor id.
#[must_use]
pub fn session_id(pipeline: &str, key: &[u8], anchor_time: EventTime, anchor_id: &[u8]) -> [u8; 16] {
    let mut h = Sha256::new();
    for part in [pipeline.as_bytes(), key, &anchor_time.ms().to_be_bytes(), anchor_id] {
        h.update((part.len() as u32).to_be_bytes());
        h.update(part);
    }
    let full: [u8; 32] = h.finalize().into();
    let mut id = [0; 16];
    id.copy_from_slice(&full[..16]);
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::KEY_GROUPS;

    #[test]
    fn keys_show_as_text_array_or_hex() {
        let mut two = Vec::new();
        push_part(&mut two, b"a\"b");
        push_part(&mut two, b"7");
        assert_eq!(KeyForm::One.display(b"u1"), "u1");
        assert_eq!(KeyForm::Together.display(&two), r#"["a\"b","7"]"#);
        let h = KeyHasher::new(b"secret").unwrap();
        assert_eq!(KeyForm::Hashed.display(&h.hash(b"u1")).len(), 64);
        let keys = [
            (KeyForm::One, b"u1".to_vec()),
            (KeyForm::Together, two),
            (KeyForm::Hashed, h.hash(b"u1").to_vec()),
        ];
        for (form, key) in keys {
            assert_eq!(form.parse(&form.display(&key)), Some(key), "{form:?}");
        }
        assert_eq!((KeyForm::Together.parse("u1"), KeyForm::Hashed.parse("no hex")), (None, None));
        assert_ne!(h.hash(b"u1"), KeyHasher::new(b"other").unwrap().hash(b"u1"));
    }

    /// Frozen: a changed hash would move keys between groups and change every session id on disk.
    #[test]
    fn hashes_are_frozen() {
        assert_eq!(key_hash(b"u1"), xxhash_rust::xxh3::xxh3_64(b"u1"));
        // A group is a hash's highest bits.
        let group = 1 << (64 - GROUP_BITS);
        assert_eq!([0, group - 1, group, u64::MAX].map(key_group), [0, 0, 1, KEY_GROUPS - 1]);
        assert_eq!(hex(&session_id("p", b"k", EventTime::from_ms(1), b"i")).len(), 32);
        assert_ne!(
            session_id("p", b"k", EventTime::from_ms(1), b"i"),
            session_id("pk", b"", EventTime::from_ms(1), b"i")
        );
    }
}
