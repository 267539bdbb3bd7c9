//! Event time and lengths of time, both in whole milliseconds.

use std::fmt;
use std::ops::{Add, Sub};

/// An instant of event time: milliseconds since the Unix epoch, UTC.
///
/// ```
/// use tidemill_plugin_sdk::{Duration, Time};
/// let t = Time::from_millis(1_000) + Duration::seconds(2);
/// assert_eq!(t.millis(), 3_000);
/// assert_eq!(t - Time::from_millis(1_000), Duration::seconds(2));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub(crate) i64);

impl Time {
    /// From milliseconds since the Unix epoch.
    #[must_use]
    pub const fn from_millis(ms: i64) -> Time {
        Time(ms)
    }
    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, d: Duration) -> Time {
        Time(self.0.saturating_add(d.0))
    }
}
impl Sub<Duration> for Time {
    type Output = Time;
    fn sub(self, d: Duration) -> Time {
        Time(self.0.saturating_sub(d.0))
    }
}
impl Sub for Time {
    type Output = Duration;
    fn sub(self, earlier: Time) -> Duration {
        Duration(self.0.saturating_sub(earlier.0))
    }
}

/// A length of time in milliseconds; in a config a text such as `"30m"`, `"1h30m"`, `"250ms"`.
///
/// ```
/// use tidemill_plugin_sdk::Duration;
/// assert_eq!(Duration::parse("1h30m"), Ok(Duration::minutes(90)));
/// assert_eq!(Duration::minutes(90).to_string(), "1h30m");
/// assert!(Duration::parse("soon").is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub(crate) i64);

const UNITS: [(&str, i64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Duration {
    /// So many milliseconds.
    #[must_use]
    pub const fn from_millis(ms: i64) -> Duration {
        Duration(ms)
    }
    /// So many seconds.
    #[must_use]
    pub const fn seconds(n: i64) -> Duration {
        Duration(n.saturating_mul(1_000))
    }
    /// So many minutes.
    #[must_use]
    pub const fn minutes(n: i64) -> Duration {
        Duration(n.saturating_mul(60_000))
    }
    /// So many hours.
    #[must_use]
    pub const fn hours(n: i64) -> Duration {
        Duration(n.saturating_mul(3_600_000))
    }
    /// In milliseconds.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// Reads `"30m"` and the like: whole numbers, each with its unit (d, h, m, s, ms).
    ///
    /// # Errors
    /// What is wrong with the text, for a reader.
    pub fn parse(text: &str) -> Result<Duration, String> {
        let bad = || format!("\"{text}\" is no length of time; write \"30m\", \"1h30m\" or \"250ms\"");
        let mut rest = text.trim();
        let mut sum = 0i64;
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let n: i64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = &rest[digits..];
            let letters = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
            let &(_, unit) = UNITS.iter().find(|(name, _)| *name == &rest[..letters]).ok_or_else(bad)?;
            rest = &rest[letters..];
            sum = n.checked_mul(unit).and_then(|n| sum.checked_add(n)).ok_or_else(bad)?;
        }
        Ok(Duration(sum))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let mut rest = self.0.unsigned_abs();
        for (name, unit) in UNITS {
            let n = rest / unit as u64;
            rest %= unit as u64;
            if n > 0 {
                write!(f, "{n}{name}")?;
            }
        }
        Ok(())
    }
}
