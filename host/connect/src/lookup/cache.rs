//! Answers that are kept for a while: the least recently used ones go when they take too many bytes.
//!
//! Invariants: `bytes` is the sum over all entries; an entry is never given out after it expires. Time is an argument.

use super::Row;
use super::bounds::CACHE_ENTRY_BYTES;
use lru::LruCache;
use std::sync::Arc;

pub(super) struct Cache {
    entries: LruCache<Arc<str>, Entry>,
    bytes: u64,
    bytes_max: u64,
    ttl_ms: u64,
    negative_ttl_ms: u64,
}

struct Entry {
    row: Option<Row>,
    expires_ms: u64,
}

fn cost(key: &str, row: Option<&Row>) -> u64 {
    CACHE_ENTRY_BYTES + key.len() as u64 + row.map_or(0, |r| r.len() as u64)
}

impl Cache {
    pub(super) fn new(bytes_max: u64, ttl_ms: u64, negative_ttl_ms: u64) -> Cache {
        Cache { entries: LruCache::unbounded(), bytes: 0, bytes_max, ttl_ms, negative_ttl_ms }
    }

    /// What is known of a key: a row, or that there is none.
    pub(super) fn get(&mut self, key: &str, now_ms: u64) -> Option<Option<Row>> {
        let entry = self.entries.get(key)?;
        if now_ms < entry.expires_ms {
            return Some(entry.row.clone());
        }
        if let Some(gone) = self.entries.pop(key) {
            self.bytes -= cost(key, gone.row.as_ref());
        }
        None
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    pub(super) fn put(&mut self, key: Arc<str>, row: Option<Row>, now_ms: u64) {
        let ttl_ms = if row.is_some() { self.ttl_ms } else { self.negative_ttl_ms };
        if ttl_ms == 0 {
            return;
        }
        self.bytes += cost(&key, row.as_ref());
        let entry = Entry { row, expires_ms: now_ms + ttl_ms };
        if let Some((key, old)) = self.entries.push(key, entry) {
            self.bytes -= cost(&key, old.row.as_ref());
        }
        while self.bytes > self.bytes_max
            && let Some((key, old)) = self.entries.pop_lru()
        {
            self.bytes -= cost(&key, old.row.as_ref());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Option<Row> {
        Some(text.into())
    }

    #[test]
    fn answers_expire_and_negative_ones_sooner() {
        let mut c = Cache::new(1 << 20, 100, 10);
        c.put("a".into(), row("{}"), 1_000);
        c.put("b".into(), None, 1_000);
        assert_eq!((c.get("a", 1_009), c.get("b", 1_009)), (Some(row("{}")), Some(None)));
        assert_eq!((c.get("a", 1_099), c.get("b", 1_010)), (Some(row("{}")), None));
        assert_eq!(c.get("a", 1_100), None);
        assert_eq!((c.bytes, c.entries.len()), (0, 0));
    }

    #[test]
    fn without_a_time_to_live_nothing_is_kept() {
        let mut c = Cache::new(1 << 20, 0, 10);
        c.put("a".into(), row("{}"), 5);
        assert_eq!(c.get("a", 5), None);
    }

    #[test]
    fn the_least_recently_used_go_first_and_bytes_are_right() {
        let one = cost("k0", row("0123456789").as_ref());
        let mut c = Cache::new(3 * one, 1_000, 1_000);
        for k in ["k0", "k1", "k2"] {
            c.put(k.into(), row("0123456789"), 0);
        }
        assert!(c.get("k0", 1).is_some());
        c.put("k3".into(), row("0123456789"), 1);
        assert_eq!(c.get("k1", 1), None, "it was used least recently");
        assert!(c.get("k0", 1).is_some() && c.get("k2", 1).is_some() && c.get("k3", 1).is_some());
        assert_eq!(c.bytes, 3 * one);
        // The same key again replaces, and a smaller row frees bytes.
        c.put("k0".into(), None, 2);
        assert_eq!((c.bytes, c.entries.len()), (3 * one - 10, 3));
        c.clear();
        assert_eq!((c.bytes, c.get("k0", 2)), (0, None));
    }
}
