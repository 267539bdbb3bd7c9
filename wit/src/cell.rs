//! Cells: the declared fields of an event, one 64-bit word each, read by the field's declared type.
//!
//! | type | word | missing |
//! |---|---|---|
//! | text, string | low half: offset in `bytes`, high half: length; or low half: place in `symbols`, high half [`SYMBOL`] | high half [`MISSING`] |
//! | integer | the number | [`MISSING_INTEGER`] |
//! | number | the bits of an `f64` | any NaN |
//! | boolean | 0 or 1 | 2 |

/// High half of a text cell: absent, null, or empty.
pub const MISSING: u32 = u32::MAX;
/// High half of a text cell: the low half is a place in the field's `symbols`.
pub const SYMBOL: u32 = u32::MAX - 1;
/// A missing integer.
pub const MISSING_INTEGER: i64 = i64::MIN;
/// A missing boolean.
pub const MISSING_BOOLEAN: u64 = 2;

/// A text cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// Absent, null, or empty.
    Missing,
    /// A place in the field's `symbols`.
    Symbol(u32),
    /// A range of `bytes`.
    Range {
        /// Offset in `bytes`.
        at: u32,
        /// Length in bytes.
        len: u32,
    },
}

impl Text {
    /// As a word.
    #[must_use]
    pub const fn word(self) -> u64 {
        let (low, high) = match self {
            Text::Missing => (0, MISSING),
            Text::Symbol(n) => (n, SYMBOL),
            Text::Range { at, len } => (at, len),
        };
        low as u64 | (high as u64) << 32
    }
    /// From a word.
    #[must_use]
    pub const fn of(word: u64) -> Text {
        let (low, high) = (word as u32, (word >> 32) as u32);
        match high {
            MISSING => Text::Missing,
            SYMBOL => Text::Symbol(low),
            len => Text::Range { at: low, len },
        }
    }
}

/// An integer cell.
#[must_use]
pub const fn integer(word: u64) -> Option<i64> {
    let n = word as i64;
    if n == MISSING_INTEGER { None } else { Some(n) }
}

/// A number cell.
#[must_use]
pub const fn number(word: u64) -> Option<f64> {
    let n = f64::from_bits(word);
    if n.is_nan() { None } else { Some(n) }
}

/// A boolean cell.
#[must_use]
pub const fn boolean(word: u64) -> Option<bool> {
    match word {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}
