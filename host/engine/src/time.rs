//! Event time: milliseconds since the Unix epoch, UTC. The engine has no clock; every instant is an argument.

use serde::{Deserialize, Serialize};

/// An instant in event time, ms since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventTime(i64);

impl EventTime {
    /// Before every event: the watermark of a pipeline that has seen nothing.
    pub const BEGINNING: Self = Self(i64::MIN);
    /// After every event: the `until` of the last turn (SEMANTICS 9). Never stored as a watermark.
    pub const INFINITY: Self = Self(i64::MAX);
    /// 0001-01-01T00:00:00.000Z, the first time an event may carry (SEMANTICS 5).
    pub const FIRST_VALID: Self = Self(-62_135_596_800_000);
    /// 9999-12-31T23:59:59.999Z, the last time an event may carry.
    pub const LAST_VALID: Self = Self(253_402_300_799_999);

    /// From milliseconds since the Unix epoch.
    #[must_use]
    pub const fn from_ms(ms: i64) -> Self {
        Self(ms)
    }
    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn ms(self) -> i64 {
        self.0
    }
    /// Later by `ms`; the ends of the range absorb.
    #[must_use]
    pub const fn plus(self, ms: i64) -> Self {
        if self.0 == i64::MIN || self.0 == i64::MAX { self } else { Self(self.0.saturating_add(ms)) }
    }
    /// Earlier by `ms`; the ends of the range absorb.
    #[must_use]
    pub const fn minus(self, ms: i64) -> Self {
        if self.0 == i64::MIN || self.0 == i64::MAX { self } else { Self(self.0.saturating_sub(ms)) }
    }
    /// Whether an event may carry this time: years 1 to 9999.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 >= Self::FIRST_VALID.0 && self.0 <= Self::LAST_VALID.0
    }
}
