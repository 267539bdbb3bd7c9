//! Values of binary formats as text: what JSON would have said in their place.

use std::io::Write as _;

/// Appends what can be printed; a vector takes all.
pub(super) fn push(to: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let _ = to.write_fmt(text);
}

/// A finite number as JSON has it, the shortest that reads back the same. Others have no JSON: false, and their names as in
/// Protobuf's JSON.
pub(super) fn push_double(to: &mut Vec<u8>, value: f64) -> bool {
    push_float(to, value.is_finite(), value.is_nan(), value < 0.0, format_args!("{value:?}"))
}

/// The same of a single-precision number.
pub(super) fn push_single(to: &mut Vec<u8>, value: f32) -> bool {
    push_float(to, value.is_finite(), value.is_nan(), value < 0.0, format_args!("{value:?}"))
}

fn push_float(
    to: &mut Vec<u8>,
    is_finite: bool,
    is_nan: bool,
    is_negative: bool,
    text: std::fmt::Arguments<'_>,
) -> bool {
    match (is_finite, is_nan, is_negative) {
        (true, ..) => push(to, text),
        (_, true, _) => to.extend_from_slice(b"NaN"),
        (_, _, true) => to.extend_from_slice(b"-Infinity"),
        _ => to.extend_from_slice(b"Infinity"),
    }
    is_finite
}

/// An integer that counts the `10^-places` part of something, as a number of that: `1500` with 3 places is `1.500`, and
/// `1000` is `1`.
pub(super) fn push_scaled(to: &mut Vec<u8>, value: i128, places: u32) {
    let value_abs = value.unsigned_abs();
    let (whole, part) = match 10_u128.checked_pow(places) {
        Some(one) => (value_abs / one, value_abs % one),
        None => (0, value_abs),
    };
    let sign = if value < 0 { "-" } else { "" };
    push(to, format_args!("{sign}{whole}"));
    if part > 0 {
        push(to, format_args!(".{part:0width$}", width = places as usize));
    }
}

/// The day that many days after 1970-01-01. Beyond year 9999 years have a sign and six digits, as ISO 8601 has it.
///
/// Method: years begin in March, so that the leap day is the last; 400 years are 146,097 days (H. Hinnant,
/// "chrono-compatible low-level date algorithms").
pub(super) fn push_date(to: &mut Vec<u8>, days: i64) {
    let from_era = days + 719_468;
    let era = from_era.div_euclid(146_097);
    let of_era = from_era.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    if (0..=9999).contains(&year) {
        push(to, format_args!("{year:04}-{month:02}-{day:02}"));
    } else {
        push(to, format_args!("{year:+07}-{month:02}-{day:02}"));
    }
}

/// Text inside quotes, with JSON's escapes.
pub(super) fn push_quoted(to: &mut Vec<u8>, text: &str) {
    to.push(b'"');
    let mut from = 0;
    for (i, b) in text.bytes().enumerate() {
        let escape = match b {
            b'"' | b'\\' => b,
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0..0x20 => b'u',
            _ => continue,
        };
        to.extend_from_slice(&text.as_bytes()[from..i]);
        from = i + 1;
        if escape == b'u' {
            push(to, format_args!("\\u{b:04x}"));
        } else {
            to.extend_from_slice(&[b'\\', escape]);
        }
    }
    to.extend_from_slice(&text.as_bytes()[from..]);
    to.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut to = Vec::new();
        write(&mut to);
        String::from_utf8(to).unwrap()
    }

    #[test]
    fn dates() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (11_016, "2000-02-29"),
            (19_844, "2024-05-01"),
            (2_932_896, "9999-12-31"),
            (2_932_897, "+010000-01-01"),
            (-719_528, "0000-01-01"),
            (-719_529, "-000001-12-31"),
        ] {
            assert_eq!(text(|to| push_date(to, days)), expected);
        }
        let days = -719_000..2_900_000;
        for day in days.step_by(997) {
            let civil = jiff::civil::date(1970, 1, 1).checked_add(jiff::Span::new().days(day)).unwrap();
            assert_eq!(text(|to| push_date(to, day)), civil.to_string());
        }
        // No day of 32 bits overflows.
        for day in [i64::from(i32::MIN), i64::from(i32::MAX)] {
            assert!(text(|to| push_date(to, day)).contains("58"));
        }
    }

    #[test]
    fn scaled_numbers() {
        for (value, places, expected) in [
            (0, 3, "0"),
            (1, 3, "0.001"),
            (-1, 3, "-0.001"),
            (-1500, 3, "-1.500"),
            (12_000, 3, "12"),
            (1234, 0, "1234"),
            (i128::MIN, 38, "-1.70141183460469231731687303715884105728"),
            (5, 41, "0.00000000000000000000000000000000000000005"),
        ] {
            assert_eq!(text(|to| push_scaled(to, value, places)), expected);
        }
    }

    #[test]
    fn what_is_no_number_is_named() {
        assert_eq!(text(|to| assert!(!push_double(to, f64::NAN))), "NaN");
        assert_eq!(text(|to| assert!(!push_single(to, f32::NEG_INFINITY))), "-Infinity");
        assert_eq!(text(|to| assert!(!push_double(to, f64::INFINITY))), "Infinity");
        assert_eq!(text(|to| assert!(push_single(to, 0.1))), "0.1");
        assert_eq!(text(|to| assert!(push_double(to, -1e300))), "-1e300");
        assert_eq!(text(|to| assert!(push_double(to, 5.0))), "5.0");
    }

    proptest! {
        /// Bug family: an escape left out, a character lost beside one.
        #[test]
        fn quoted_text_reads_back(s in r#"[a"\\ -~\n\u{0}\u{1f}\u{7f}ä😀]{0,20}"#) {
            let quoted = text(|to| push_quoted(to, &s));
            prop_assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), s);
        }

        /// Bug family: a float that is no JSON, or another one.
        #[test]
        fn floats_read_back(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            let mut to = Vec::new();
            if push_double(&mut to, value) {
                prop_assert!(serde_json::from_slice::<f64>(&to).is_ok());
                let exact: f64 = std::str::from_utf8(&to).unwrap().parse().unwrap();
                prop_assert_eq!(exact.to_bits(), bits);
            }
        }
    }
}
