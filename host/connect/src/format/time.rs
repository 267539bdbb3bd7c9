//! From a time field's text to event time, by the `time` setting of a source.
//!
//! Invariants:
//! - Numbers are read digit by digit, never through floating point, with an exponent too; what is finer than a
//!   millisecond is cut off toward the past, also before 1970.
//! - Times outside years 1 to 9999 are [`TimeError::OutOfRange`] whatever their form (SEMANTICS 5). Dates are
//!   therefore reckoned here, jiff's own instants end a day earlier.
//! - A text without an offset is civil time in the configured zone, by default UTC; where a clock is set back
//!   the earlier of the two instants is taken, where it is set forward the time is moved on by the gap.

use jiff::civil::{Date, DateTime, Time};
use jiff::fmt::strtime::{self, BrokenDownTime};
use jiff::fmt::temporal::Pieces;
use jiff::tz::TimeZone;
use tidemill_engine::time::EventTime;

const DAY_MS: i64 = 86_400_000;

/// What one stands for in a numeric time field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeUnit {
    /// Seconds since the Unix epoch.
    Seconds,
    /// Milliseconds since the Unix epoch.
    Millis,
    /// Microseconds since the Unix epoch.
    Micros,
}

impl TimeUnit {
    /// By how many places the decimal point moves right to make milliseconds.
    fn shift(self) -> i64 {
        match self {
            Self::Seconds => 3,
            Self::Millis => 0,
            Self::Micros => -3,
        }
    }
    fn name(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Millis => "milliseconds",
            Self::Micros => "microseconds",
        }
    }
}

/// How a time field is written. With neither unit nor format: RFC 3339 / ISO 8601 text, or a number of
/// milliseconds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TimeSpec {
    /// The field is a number in this unit.
    pub unit: Option<TimeUnit>,
    /// The field is text in this strftime format.
    pub format: Option<String>,
    /// The zone of texts without an offset: an IANA name or `UTC`, which is the default.
    pub zone: Option<String>,
}

/// Why a text is no event time.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TimeError {
    /// It is not written as configured; the message says how it should be.
    #[error("{0}")]
    Malformed(String),
    /// It lies outside years 1 to 9999.
    #[error("the time lies outside years 1 to 9999")]
    OutOfRange,
}

/// Parses the time field of one source.
#[derive(Debug)]
pub struct TimeParser {
    mode: Mode,
}

#[derive(Debug)]
enum Mode {
    Number(TimeUnit),
    Format { format: String, zone: TimeZone },
    Auto { zone: TimeZone },
    Combined { day: CachedDay },
}

/// The day that was parsed last: log lines stay on one for long.
#[derive(Debug)]
struct CachedDay {
    /// `dd/Mon/yyyy`
    text: [u8; 11],
    start_ms: i64,
}

impl TimeParser {
    /// For a field written like this; the error is for whoever wrote the config.
    pub fn new(spec: &TimeSpec) -> Result<Self, String> {
        let zone = match spec.zone.as_deref() {
            None | Some("UTC") => TimeZone::UTC,
            Some(name) => TimeZone::get(name).map_err(|e| format!("no time zone `{name}`: {e}"))?,
        };
        let mode = match (spec.unit, &spec.format) {
            (Some(_), Some(_)) => {
                return Err("`unit` is for numbers and `format` for text: give one of them".to_owned());
            }
            (Some(unit), None) => Mode::Number(unit),
            (None, None) => Mode::Auto { zone },
            (None, Some(format)) => {
                check_format(format)?;
                Mode::Format { format: format.clone(), zone }
            }
        };
        Ok(Self { mode })
    }

    /// For the combined log's `dd/Mon/yyyy:HH:MM:SS +hhmm`.
    #[must_use]
    pub fn combined() -> Self {
        Self { mode: Mode::Combined { day: CachedDay { text: *b"01/Jan/1970", start_ms: 0 } } }
    }

    /// The event time that `text` says.
    pub fn parse(&mut self, text: &[u8]) -> Result<EventTime, TimeError> {
        let ms = match &mut self.mode {
            Mode::Number(unit) => number(text, *unit).ok_or_else(|| {
                TimeError::Malformed(format!("expected the time as a number of {}", unit.name()))
            })?,
            Mode::Auto { zone } => match number(text, TimeUnit::Millis) {
                Some(ms) => ms,
                None => iso(text, zone)?,
            },
            Mode::Format { format, zone } => formatted(format, text, zone)?,
            Mode::Combined { day } => combined(text, day).ok_or_else(|| {
                TimeError::Malformed("expected the time as dd/Mon/yyyy:HH:MM:SS +hhmm".to_owned())
            })?,
        };
        let time = EventTime::from_ms(ms);
        if time.is_valid() { Ok(time) } else { Err(TimeError::OutOfRange) }
    }
}

/// Milliseconds of a JSON number in `unit`, cut off toward the past. None if it is no such number. What is
/// far out of range is some value out of range.
fn number(text: &[u8], unit: TimeUnit) -> Option<i64> {
    let (negative, body) = match text {
        [b'-', body @ ..] => (true, body),
        body => (false, body),
    };
    let whole_len = digits(body);
    let (whole, rest) = body.split_at(whole_len);
    let (fraction, rest) = match rest {
        [b'.', rest @ ..] => {
            let (fraction, rest) = rest.split_at(digits(rest));
            if fraction.is_empty() {
                return None;
            }
            (fraction, rest)
        }
        _ => (&rest[..0], rest),
    };
    if whole.is_empty() {
        return None;
    }
    let exponent = match rest {
        [] => 0,
        [b'e' | b'E', exponent @ ..] => read_exponent(exponent)?,
        _ => return None,
    };
    // The first `kept` digits are the milliseconds; zeros follow if there are fewer. Twenty more than there
    // are digits suffice to leave the range.
    let present = whole.len() + fraction.len();
    let kept =
        (whole.len() as i64 + unit.shift()).saturating_add(exponent).clamp(0, present as i64 + 20) as usize;
    let mut ms = 0_i64;
    let mut is_cut = false;
    for (i, digit) in whole.iter().chain(fraction).enumerate() {
        if i < kept {
            ms = ms.saturating_mul(10).saturating_add(i64::from(digit - b'0'));
        } else {
            is_cut |= *digit != b'0';
        }
    }
    for _ in present..kept {
        ms = ms.saturating_mul(10);
    }
    Some(if negative { -ms - i64::from(is_cut && ms < i64::MAX) } else { ms })
}

/// The signed digits of an exponent. What does not fit is as far out as the type goes.
fn read_exponent(text: &[u8]) -> Option<i64> {
    let (negative, body) = match text {
        [b'-', body @ ..] => (true, body),
        [b'+', body @ ..] => (false, body),
        body => (false, body),
    };
    if body.is_empty() || digits(body) != body.len() {
        return None;
    }
    let value = body.iter().fold(0_i64, |v, d| v.saturating_mul(10).saturating_add(i64::from(d - b'0')));
    Some(if negative { -value } else { value })
}

fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|b| b.is_ascii_digit()).count()
}

fn iso(text: &[u8], zone: &TimeZone) -> Result<i64, TimeError> {
    let malformed = || {
        TimeError::Malformed(
            "expected the time as RFC 3339 text (2015-05-17T10:05:03Z) or as a number of milliseconds"
                .to_owned(),
        )
    };
    let pieces = Pieces::parse(text).map_err(|_| malformed())?;
    let civil = DateTime::from_parts(pieces.date(), pieces.time().unwrap_or(Time::midnight()));
    if let Some(offset) = pieces.to_numeric_offset() {
        return Ok(civil_ms(civil) - i64::from(offset.seconds()) * 1000);
    }
    match pieces.to_time_zone().map_err(|_| malformed())? {
        Some(named) => zoned_ms(civil, &named),
        None => zoned_ms(civil, zone),
    }
}

fn formatted(format: &str, text: &[u8], zone: &TimeZone) -> Result<i64, TimeError> {
    let malformed = |e: jiff::Error| TimeError::Malformed(format!("expected the time as `{format}`: {e}"));
    let parsed = BrokenDownTime::parse(format, text).map_err(malformed)?;
    if let Some(instant) = parsed.timestamp() {
        return Ok(floor_ms(instant));
    }
    let civil = parsed.to_datetime().map_err(malformed)?;
    if let Some(offset) = parsed.offset() {
        return Ok(civil_ms(civil) - i64::from(offset.seconds()) * 1000);
    }
    match parsed.iana_time_zone() {
        Some(name) => zoned_ms(civil, &TimeZone::get(name).map_err(malformed)?),
        None => zoned_ms(civil, zone),
    }
}

/// Whether a format can be parsed and yields an instant: writes one with it and reads that back.
fn check_format(format: &str) -> Result<(), String> {
    let sample = Date::constant(2015, 5, 17).at(22, 5, 3, 0);
    let written = sample
        .to_zoned(TimeZone::UTC)
        .and_then(|zoned| strtime::format(format, &zoned))
        .map_err(|e| format!("`{format}` is no time format: {e}"))?;
    match formatted(format, written.as_bytes(), &TimeZone::UTC) {
        Ok(_) => Ok(()),
        Err(TimeError::Malformed(e)) => Err(format!("`{format}` does not say a time: {e}")),
        Err(TimeError::OutOfRange) => Err(format!("`{format}` does not say a time")),
    }
}

fn zoned_ms(civil: DateTime, zone: &TimeZone) -> Result<i64, TimeError> {
    if let Ok(offset) = zone.to_fixed_offset() {
        return Ok(civil_ms(civil) - i64::from(offset.seconds()) * 1000);
    }
    // Fails within a day of jiff's own ends only.
    zone.to_ambiguous_timestamp(civil).compatible().map(floor_ms).map_err(|_| TimeError::OutOfRange)
}

fn floor_ms(instant: jiff::Timestamp) -> i64 {
    instant.as_microsecond().div_euclid(1000)
}

fn civil_ms(civil: DateTime) -> i64 {
    let days = days_from_civil(civil.year().into(), civil.month().into(), civil.day().into());
    let of_day =
        ((i64::from(civil.hour()) * 60 + i64::from(civil.minute())) * 60 + i64::from(civil.second())) * 1000;
    days * DAY_MS + of_day + i64::from(civil.subsec_nanosecond()) / 1_000_000
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar. Method: the year begins in March, so that the
/// leap day is its last; 400 years are 146,097 days (H. Hinnant, "chrono-compatible low-level date algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Parses `dd/Mon/yyyy:HH:MM:SS +hhmm` by hand. A leap second (60) is taken as the second before, as jiff does.
fn combined(text: &[u8], day: &mut CachedDay) -> Option<i64> {
    let text: &[u8; 26] = text.try_into().ok()?;
    let (date, clock) = text.split_first_chunk::<11>()?;
    if *date != day.text {
        day.start_ms = start_of_day(date)?;
        day.text = *date;
    }
    let [b':', h1, h2, b':', m1, m2, b':', s1, s2, b' ', sign, oh1, oh2, om1, om2] = *clock else {
        return None;
    };
    let (hour, minute, second) = (two(h1, h2)?, two(m1, m2)?, two(s1, s2)?);
    let (offset_hours, offset_minutes) = (two(oh1, oh2)?, two(om1, om2)?);
    if hour > 23 || minute > 59 || second > 60 || offset_hours > 25 || offset_minutes > 59 {
        return None;
    }
    let offset = (offset_hours * 60 + offset_minutes) * 60_000;
    let offset = match sign {
        b'+' => offset,
        b'-' => -offset,
        _ => return None,
    };
    Some(day.start_ms + ((hour * 60 + minute) * 60 + second.min(59)) * 1000 - offset)
}

fn start_of_day(text: &[u8; 11]) -> Option<i64> {
    let [d1, d2, b'/', m1, m2, m3, b'/', y1, y2, y3, y4] = *text else { return None };
    const MONTHS: [&[u8; 3]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let month = MONTHS.iter().position(|m| **m == [m1, m2, m3])? as i64 + 1;
    let (year, day) = (two(y1, y2)? * 100 + two(y3, y4)?, two(d1, d2)?);
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if day < 1 || day > days {
        return None;
    }
    Some(days_from_civil(year, month, day) * DAY_MS)
}

fn two(tens: u8, ones: u8) -> Option<i64> {
    let both = tens.is_ascii_digit() && ones.is_ascii_digit();
    both.then(|| i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(unit: Option<TimeUnit>, format: Option<&str>, zone: Option<&str>) -> TimeSpec {
        TimeSpec { unit, format: format.map(str::to_owned), zone: zone.map(str::to_owned) }
    }

    fn ms(parser: &mut TimeParser, text: &str) -> Result<i64, TimeError> {
        parser.parse(text.as_bytes()).map(EventTime::ms)
    }

    #[track_caller]
    fn malformed(parser: &mut TimeParser, text: &str) {
        assert!(matches!(ms(parser, text), Err(TimeError::Malformed(m)) if m.contains("expected")), "{text}");
    }

    #[test]
    fn numbers() {
        use TimeUnit::{Micros, Millis, Seconds};
        for (unit, text, expected) in [
            (Seconds, "1431857103", 1_431_857_103_000),
            (Seconds, "1431857103.9", 1_431_857_103_900),
            (Seconds, "1431857103.1239999999999999999999", 1_431_857_103_123),
            (Seconds, "0.0009", 0),
            (Seconds, "-0.0001", -1),
            (Seconds, "-1.5", -1500),
            (Seconds, "-1.500", -1500),
            (Seconds, "-1.5001", -1501),
            (Seconds, "1.4318571031e9", 1_431_857_103_100),
            (Seconds, "15E-1", 1500),
            (Seconds, "1.001e0", 1001),
            (Seconds, "-1e-99999999999999999999", -1),
            (Seconds, "0e99999999999999999999", 0),
            (Millis, "1431857103123", 1_431_857_103_123),
            (Millis, "00012", 12),
            (Millis, "7.9", 7),
            (Millis, "-7.1", -8),
            (Millis, "-0", 0),
            (Micros, "1431857103123999", 1_431_857_103_123),
            (Micros, "999", 0),
            (Micros, "1000", 1),
            (Micros, "-1", -1),
            (Micros, "-1000.0", -1),
            (Micros, "-1000.1", -2),
            (Micros, "1e6", 1000),
        ] {
            let mut parser = TimeParser::new(&spec(Some(unit), None, None)).unwrap();
            assert_eq!(ms(&mut parser, text), Ok(expected), "{text} {unit:?}");
            for bad in [
                "",
                "-",
                ".5",
                "5.",
                "+1",
                " 1",
                "1 ",
                "1e",
                "1e+",
                "1e1.0",
                "0x1",
                "NaN",
                "inf",
                "2015-05-17",
            ] {
                malformed(&mut parser, bad);
            }
            let long = "9".repeat(1000);
            for far in
                [&long[..], &format!("-{long}"), &format!("-{long}.5"), "1e400", "-1e400", "1e99999999999"]
            {
                assert_eq!(ms(&mut parser, far), Err(TimeError::OutOfRange), "{far}");
            }
        }
    }

    #[test]
    fn text_without_a_spec() {
        let mut parser = TimeParser::new(&TimeSpec::default()).unwrap();
        for (text, expected) in [
            ("2015-05-17T10:05:03Z", 1_431_857_103_000),
            ("2015-05-17T10:05:03.1239Z", 1_431_857_103_123),
            ("2015-05-17 10:05:03+00:00", 1_431_857_103_000),
            ("2015-05-17T12:05:03+02:00", 1_431_857_103_000),
            ("2015-05-17t10:05:03", 1_431_857_103_000),
            ("2015-05-17T12:05:03[Europe/Berlin]", 1_431_857_103_000),
            ("2015-05-17", 1_431_820_800_000),
            ("1969-12-31T23:59:59.9999Z", -1),
            ("1431857103123", 1_431_857_103_123),
            ("0001-01-01T00:00:00Z", EventTime::FIRST_VALID.ms()),
            ("9999-12-31T23:59:59.9999Z", EventTime::LAST_VALID.ms()),
        ] {
            assert_eq!(ms(&mut parser, text), Ok(expected), "{text}");
        }
        for text in ["", "yesterday", "2015-13-01T00:00:00Z", "2015-05-17T10:05:03Zx", "2015-05-17T25:00:00Z"]
        {
            malformed(&mut parser, text);
        }
        let outside = [
            "0000-12-31T23:59:59Z",
            "0001-01-01T00:00:00+01:00",
            "9999-12-31T23:59:59-01:00",
            "-000001-01-01T00:00:00Z",
        ];
        for text in outside {
            assert_eq!(ms(&mut parser, text), Err(TimeError::OutOfRange), "{text}");
        }
    }

    #[test]
    fn zones() {
        let mut berlin = TimeParser::new(&spec(None, None, Some("Europe/Berlin"))).unwrap();
        for (text, expected) in [
            ("2015-05-17T12:05:03", 1_431_857_103_000),
            ("2015-05-17T10:05:03Z", 1_431_857_103_000),
            // Set back at 3:00: the earlier of two instants. Set forward at 2:00: moved on by an hour.
            ("2015-10-25T02:30:00", 1_445_733_000_000),
            ("2015-03-29T02:30:00", 1_427_592_600_000),
        ] {
            assert_eq!(ms(&mut berlin, text), Ok(expected), "{text}");
        }
        assert!(TimeParser::new(&spec(None, None, Some("Mars/Base"))).unwrap_err().contains("Mars/Base"));
    }

    #[test]
    fn formats() {
        for (format, zone, text, expected) in [
            ("%Y-%m-%d %H:%M:%S", None, "2015-05-17 10:05:03", 1_431_857_103_000),
            ("%Y-%m-%d %H:%M:%S", Some("Europe/Berlin"), "2015-05-17 12:05:03", 1_431_857_103_000),
            ("%Y-%m-%d %H:%M:%S%.f", None, "2015-05-17 10:05:03.987", 1_431_857_103_987),
            ("%d/%b/%Y:%H:%M:%S %z", Some("Europe/Berlin"), "17/May/2015:10:05:03 +0000", 1_431_857_103_000),
            ("%Y-%m-%d %I:%M:%S %p", None, "2015-05-17 10:05:03 AM", 1_431_857_103_000),
            ("%s", None, "1431857103", 1_431_857_103_000),
            ("%Y%m%d", None, "20150517", 1_431_820_800_000),
        ] {
            let mut parser = TimeParser::new(&spec(None, Some(format), zone)).unwrap();
            assert_eq!(ms(&mut parser, text), Ok(expected), "{format} {text}");
            malformed(&mut parser, "x");
            malformed(&mut parser, &format!("{text} and more"));
        }
        for format in ["%H:%M", "%Y-%m", "%!", "", "%"] {
            assert!(TimeParser::new(&spec(None, Some(format), None)).is_err(), "{format}");
        }
        assert!(TimeParser::new(&spec(Some(TimeUnit::Millis), Some("%s"), None)).is_err());
    }

    #[test]
    fn combined_log() {
        let mut parser = TimeParser::combined();
        for (text, expected) in [
            ("17/May/2015:10:05:03 +0000", 1_431_857_103_000),
            ("17/May/2015:12:05:03 +0200", 1_431_857_103_000),
            ("17/May/2015:04:35:03 -0530", 1_431_857_103_000),
            ("29/Feb/2016:00:00:00 +0000", 1_456_704_000_000),
            ("31/Dec/2016:23:59:60 +0000", 1_483_228_799_000),
            ("01/Jan/1970:00:00:00 +0000", 0),
            ("01/Jan/0001:00:00:00 +0000", EventTime::FIRST_VALID.ms()),
            ("31/Dec/9999:23:59:59 +0000", EventTime::LAST_VALID.ms() - 999),
        ] {
            assert_eq!(ms(&mut parser, text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "17/May/2015:10:05:03",
            "17/May/2015:10:05:03 +00000",
            "17/may/2015:10:05:03 +0000",
            "29/Feb/2015:10:05:03 +0000",
            "31/Apr/2015:10:05:03 +0000",
            "00/May/2015:10:05:03 +0000",
            "17/May/2015:24:05:03 +0000",
            "17/May/2015:10:60:03 +0000",
            "17/May/2015:10:05:61 +0000",
            "17/May/2015:10:05:03 *0000",
            "17/May/2015:10:05:03 +0060",
            "17-May-2015:10:05:03 +0000",
            "17/May/2015:1x:05:03 +0000",
        ] {
            malformed(&mut parser, text);
            assert_eq!(ms(&mut parser, "17/May/2015:10:05:03 +0000"), Ok(1_431_857_103_000));
        }
        for text in ["31/Dec/0000:23:59:59 +0000", "01/Jan/0001:00:00:00 +0001", "31/Dec/9999:23:59:59 -0001"]
        {
            assert_eq!(ms(&mut parser, text), Err(TimeError::OutOfRange), "{text}");
        }
    }

    fn one_of_each() -> Vec<TimeParser> {
        vec![
            TimeParser::new(&spec(Some(TimeUnit::Seconds), None, None)).unwrap(),
            TimeParser::new(&spec(Some(TimeUnit::Micros), None, None)).unwrap(),
            TimeParser::new(&TimeSpec::default()).unwrap(),
            TimeParser::new(&spec(None, None, Some("America/New_York"))).unwrap(),
            TimeParser::new(&spec(None, Some("%Y-%m-%d %H:%M:%S %z"), None)).unwrap(),
            TimeParser::new(&spec(None, Some("%F %T"), Some("Asia/Kolkata"))).unwrap(),
            TimeParser::combined(),
        ]
    }

    proptest! {
        #[test]
        fn never_panics(raw in prop::collection::vec(any::<u8>(), 0..40), near in "-?[0-9]{1,20}(\\.[0-9]{1,20})?([eE]-?[0-9]{1,9})?",
                        date in "-?[0-9]{4,6}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{1,9})?(Z|[+-][0-2][0-9]:?[0-5][0-9]| [+-][0-9]{4})?") {
            for mut parser in one_of_each() {
                for text in [&raw[..], near.as_bytes(), date.as_bytes()] {
                    let result = parser.parse(text);
                    prop_assert!(result.is_err() || result.is_ok_and(EventTime::is_valid));
                }
            }
        }

        /// Bug family: sign and rounding. The model is exact arithmetic in a wide integer.
        #[test]
        fn decimals_are_exact(micros in -62_135_596_800_000_000_i64..253_402_300_800_000_000) {
            let expected = micros.div_euclid(1000);
            let sign = if micros < 0 { "-" } else { "" };
            let (whole, rest) = (micros.unsigned_abs() / 1_000_000, micros.unsigned_abs() % 1_000_000);
            let mut seconds = TimeParser::new(&spec(Some(TimeUnit::Seconds), None, None)).unwrap();
            let mut as_micros = TimeParser::new(&spec(Some(TimeUnit::Micros), None, None)).unwrap();
            prop_assert_eq!(ms(&mut seconds, &format!("{sign}{whole}.{rest:06}")), Ok(expected));
            prop_assert_eq!(ms(&mut as_micros, &micros.to_string()), Ok(expected));
        }

        /// Bug family: calendar and cached day. The model is jiff.
        #[test]
        fn combined_as_in_jiff(seconds in prop::collection::vec(-62_135_500_000_i64..253_402_100_000, 1..4), offset in -1439_i32..1440) {
            let mut parser = TimeParser::combined();
            let zone = TimeZone::fixed(jiff::tz::Offset::from_seconds(offset * 60).unwrap());
            for second in seconds {
                let zoned = jiff::Timestamp::from_second(second).unwrap().to_zoned(zone.clone());
                let text = zoned.strftime("%d/%b/%Y:%H:%M:%S %z").to_string();
                prop_assert_eq!(ms(&mut parser, &text), Ok(second * 1000));
                prop_assert_eq!(ms(&mut parser, &text), Ok(second * 1000));
            }
        }
    }
}
