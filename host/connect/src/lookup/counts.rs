//! What a lookup did, in numbers that only rise.

use serde::{Deserialize, Serialize};

/// What a lookup did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LookupCounts {
    /// Keys asked for.
    pub asked: u64,
    /// Of these, answered at once by a row that was kept.
    pub cache_hits: u64,
    /// Of these, answered at once because it is known that there is no row.
    pub negative_hits: u64,
    /// Of these, joined to one that was under way.
    pub joined: u64,
    /// Calls to the provider, retries included.
    pub calls: u64,
    /// Keys in these calls.
    pub keys_called: u64,
    /// Keys in the largest of them.
    pub keys_in_call_max: u64,
    /// Calls that failed.
    pub failures: u64,
    /// Keys that were asked for again, in halves of their call or by themselves.
    pub retries: u64,
    /// Keys that were given up.
    pub given_up: u64,
    /// Time in calls, µs; calls side by side count each.
    pub call_us: u64,
}

impl LookupCounts {
    /// Both together.
    #[must_use]
    pub fn plus(self, o: LookupCounts) -> LookupCounts {
        LookupCounts {
            asked: self.asked + o.asked,
            cache_hits: self.cache_hits + o.cache_hits,
            negative_hits: self.negative_hits + o.negative_hits,
            joined: self.joined + o.joined,
            calls: self.calls + o.calls,
            keys_called: self.keys_called + o.keys_called,
            keys_in_call_max: self.keys_in_call_max.max(o.keys_in_call_max),
            failures: self.failures + o.failures,
            retries: self.retries + o.retries,
            given_up: self.given_up + o.given_up,
            call_us: self.call_us + o.call_us,
        }
    }
}
