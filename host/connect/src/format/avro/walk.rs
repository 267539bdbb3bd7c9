//! Avro's bytes, walked by their shape: over a value, a value as text, a value as JSON.
//!
//! Invariants:
//! - Nothing is read beyond the bytes, and nothing allocated by a length that stands in them.
//! - Every walk ends: values are nested [`DEPTH_MAX`] deep at most, all are counted ([`VALUES_MAX`]; a schema can have more
//!   than any number of them that take no bytes), and text grows to [`TEXT_BYTES_MAX`].

use super::shape::{BytesForm, IntegerForm, Record, Shape, Shapes};
use super::{DEPTH_MAX, TEXT_BYTES_MAX, VALUES_MAX};
use crate::format::Kind;
use crate::format::text::{push, push_date, push_double, push_quoted, push_scaled, push_single};

/// What is wrong, and at which byte.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) at: usize,
    pub(super) what: String,
}

/// A value's bytes as text.
pub(super) type Walked<T> = Result<T, Wrong>;

/// How a scalar reads.
pub(super) enum Scalar {
    /// Null.
    Missing,
    /// These bytes, as they stand there.
    Range(Kind, usize, usize),
    /// What was appended.
    Written(Kind),
}

/// Bytes on the way through them.
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
    /// So many values were entered.
    pub(super) values: u32,
}

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Input<'a> {
        Input { bytes, at, values: 0 }
    }

    pub(super) fn wrong<T>(&self, what: impl Into<String>) -> Walked<T> {
        Err(Wrong { at: self.at, what: what.into() })
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Bytes that were read.
    pub(super) fn slice(&self, at: usize, len: usize) -> &'a [u8] {
        self.bytes.get(at..at + len).unwrap_or_default()
    }

    #[inline]
    fn take(&mut self, n: usize) -> Walked<&'a [u8]> {
        match self.bytes.get(self.at..).and_then(|rest| rest.get(..n)) {
            Some(taken) => {
                self.at += n;
                Ok(taken)
            }
            None => self.wrong(format!("{n} bytes are expected, and {} follow", self.bytes.len() - self.at)),
        }
    }

    fn array<const N: usize>(&mut self) -> Walked<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// A number of 64 bits: seven a byte, the sign last.
    #[inline]
    pub(super) fn long(&mut self) -> Walked<i64> {
        let from = self.at;
        let mut n = 0_u64;
        for shift in (0..64).step_by(7) {
            let Some(&b) = self.bytes.get(self.at) else {
                return self.wrong("the record ends inside a number");
            };
            self.at += 1;
            if shift == 63 && b > 1 {
                break;
            }
            n |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Ok((n >> 1) as i64 ^ -((n & 1) as i64));
            }
        }
        self.at = from;
        self.wrong("a number has more than 64 bits")
    }

    fn int(&mut self) -> Walked<i64> {
        let from = self.at;
        let n = self.long()?;
        if i32::try_from(n).is_ok() {
            return Ok(n);
        }
        self.at = from;
        self.wrong(format!("the int is {n}, which has more than 32 bits"))
    }

    /// A length of what follows.
    fn length(&mut self) -> Walked<usize> {
        let from = self.at;
        let n = self.long()?;
        match usize::try_from(n) {
            Ok(n) if n <= self.bytes.len() - self.at => Ok(n),
            _ => {
                let left = self.bytes.len() - self.at;
                self.at = from;
                self.wrong(format!("a length is {n}, and {left} bytes follow"))
            }
        }
    }

    fn bool(&mut self) -> Walked<bool> {
        match self.take(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            other => {
                let what = format!("a boolean is {}", other[0]);
                self.at -= 1;
                self.wrong(what)
            }
        }
    }

    fn utf8(&self, bytes: &'a [u8]) -> Walked<&'a str> {
        simdutf8::basic::from_utf8(bytes)
            .map_err(|_| Wrong { at: self.at - bytes.len(), what: "a string is no UTF-8".to_owned() })
    }

    fn string(&mut self) -> Walked<&'a str> {
        let n = self.length()?;
        let bytes = self.take(n)?;
        self.utf8(bytes)
    }

    fn blob(&mut self, fixed: Option<usize>) -> Walked<&'a [u8]> {
        let n = match fixed {
            Some(n) => n,
            None => self.length()?,
        };
        self.take(n)
    }

    /// The number of something, of so many.
    fn choice(&mut self, of: usize, what: &str) -> Walked<usize> {
        let from = self.at;
        let n = self.long()?;
        match usize::try_from(n) {
            Ok(i) if i < of => Ok(i),
            _ => {
                self.at = from;
                self.wrong(format!("{what} is number {n} of {of}"))
            }
        }
    }

    pub(super) fn branch<'s>(&mut self, branches: &'s [usize]) -> Walked<(usize, &'s usize)> {
        let n = self.choice(branches.len(), "the branch of a union")?;
        Ok((n, &branches[n]))
    }

    /// The items of an array or map, each with its number.
    pub(super) fn items(&mut self, mut item: impl FnMut(&mut Self, usize) -> Walked<()>) -> Walked<()> {
        let mut number = 0;
        loop {
            let count = self.long()?;
            if count == 0 {
                return Ok(());
            }
            // A negative count has the length of its items behind it, for whoever does not want to look into them.
            let end = if count < 0 {
                let of_block = |w: Wrong| Wrong { what: format!("the items of a block: {}", w.what), ..w };
                let n = self.length().map_err(of_block)?;
                Some(self.at + n)
            } else {
                None
            };
            for _ in 0..count.unsigned_abs() {
                item(self, number)?;
                number += 1;
            }
            if end.is_some_and(|end| end != self.at) {
                return self.wrong("the items of a block do not end where its length says");
            }
        }
    }

    pub(super) fn key(&mut self) -> Walked<&'a str> {
        self.string()
    }

    /// To be called at each value.
    #[inline]
    pub(super) fn enter(&mut self, depth: usize) -> Walked<()> {
        self.values += 1;
        if depth > DEPTH_MAX {
            return self.wrong(format!("values are nested more than {DEPTH_MAX} deep"));
        }
        if self.values > VALUES_MAX {
            return self.wrong(format!("the record has more than {VALUES_MAX} values"));
        }
        Ok(())
    }

    /// Goes over a value. Nothing in it is let pass that could not be read.
    pub(super) fn skip(&mut self, shapes: &Shapes, shape: usize, depth: usize) -> Walked<()> {
        self.enter(depth)?;
        match shapes.at(shape) {
            Shape::Null | Shape::Same(_) => {}
            Shape::Boolean => {
                self.bool()?;
            }
            Shape::Integer { is_int: true, .. } => {
                self.int()?;
            }
            Shape::Integer { .. } => {
                self.long()?;
            }
            Shape::Float { .. } => {
                self.take(4)?;
            }
            Shape::Double => {
                self.take(8)?;
            }
            Shape::String => {
                self.string()?;
            }
            Shape::Bytes { fixed, .. } => {
                self.blob(*fixed)?;
            }
            Shape::Enum(symbols) => {
                self.choice(symbols.len(), "a symbol")?;
            }
            Shape::Record(record) => {
                for part in &record.fields {
                    self.skip(shapes, part.written, depth + 1)?;
                }
            }
            Shape::Array(item) => self.items(|input, _| input.skip(shapes, *item, depth + 1))?,
            Shape::Map(value) => self.items(|input, _| {
                input.key()?;
                input.skip(shapes, *value, depth + 1)
            })?,
            Shape::Union(branches) => {
                let (_, branch) = self.branch(branches)?;
                self.skip(shapes, *branch, depth + 1)?;
            }
            Shape::Foreign => return self.foreign(),
        }
        Ok(())
    }

    pub(super) fn foreign<T>(&self) -> Walked<T> {
        self.wrong("a value is of a type that the reader's schema does not have there")
    }

    /// Reads a value that is no structure; text that does not stand in the bytes is appended.
    pub(super) fn scalar(&mut self, shape: &Shape, to: &mut Vec<u8>) -> Walked<Scalar> {
        Ok(Scalar::Written(match shape {
            Shape::Null => return Ok(Scalar::Missing),
            Shape::Boolean => {
                let text: &[u8] = if self.bool()? { b"true" } else { b"false" };
                to.extend_from_slice(text);
                Kind::Bool
            }
            Shape::Integer { is_int, form } => {
                let n = if *is_int { self.int()? } else { self.long()? };
                push_integer(to, n, *form)
            }
            Shape::Float { is_widened } => {
                let value = f32::from_le_bytes(self.array()?);
                let is_finite =
                    if *is_widened { push_double(to, value.into()) } else { push_single(to, value) };
                number(is_finite)
            }
            Shape::Double => number(push_double(to, f64::from_le_bytes(self.array()?))),
            Shape::String => {
                let text = self.string()?;
                return Ok(Scalar::Range(Kind::Text, self.at - text.len(), text.len()));
            }
            Shape::Bytes { fixed, form } => {
                let bytes = self.blob(*fixed)?;
                let plain = match form {
                    BytesForm::Text => self.utf8(bytes).map(|_| true)?,
                    BytesForm::Characters => bytes.is_ascii(),
                    _ => false,
                };
                if plain {
                    return Ok(Scalar::Range(Kind::Text, self.at - bytes.len(), bytes.len()));
                }
                self.push_blob(to, bytes, *form)?
            }
            Shape::Enum(symbols) => {
                let from = self.at;
                let n = self.choice(symbols.len(), "a symbol")?;
                let Some(symbol) = &symbols[n] else {
                    self.at = from;
                    return self.wrong(format!("the symbol of number {n} is none of the reader's"));
                };
                to.extend_from_slice(symbol.as_bytes());
                Kind::Text
            }
            _ => return self.foreign(),
        }))
    }

    fn push_blob(&self, to: &mut Vec<u8>, bytes: &[u8], form: BytesForm) -> Walked<Kind> {
        match form {
            BytesForm::Text => to.extend_from_slice(bytes),
            BytesForm::Characters => bytes.iter().for_each(|b| push(to, format_args!("{}", char::from(*b)))),
            BytesForm::Uuid => {
                for (i, b) in bytes.iter().enumerate() {
                    let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
                    push(to, format_args!("{dash}{b:02x}"));
                }
            }
            BytesForm::Duration => {
                let part = |i: usize| bytes[4 * i..].first_chunk::<4>().map_or(0, |b| u32::from_le_bytes(*b));
                push(to, format_args!("P{}M{}DT", part(0), part(1)));
                push_scaled(to, part(2).into(), 3);
                to.push(b'S');
            }
            BytesForm::Decimal(scale) => {
                let Some(value) = unscaled(bytes) else {
                    return self.wrong("a decimal has more than 128 bits");
                };
                push_scaled(to, value, scale);
                return Ok(Kind::Number);
            }
        }
        Ok(Kind::Text)
    }

    /// Appends a value as JSON.
    pub(super) fn json(
        &mut self,
        shapes: &Shapes,
        shape: usize,
        depth: usize,
        to: &mut Vec<u8>,
    ) -> Walked<()> {
        self.enter(depth)?;
        if to.len() > TEXT_BYTES_MAX {
            return self.wrong(format!("a value has more than {TEXT_BYTES_MAX} bytes as JSON"));
        }
        match shapes.at(shape) {
            Shape::Record(record) => self.json_record(shapes, record, depth, to),
            Shape::Array(item) => {
                to.push(b'[');
                self.items(|input, number| {
                    if number > 0 {
                        to.push(b',');
                    }
                    input.json(shapes, *item, depth + 1, to)
                })?;
                to.push(b']');
                Ok(())
            }
            Shape::Map(value) => {
                to.push(b'{');
                self.items(|input, number| {
                    if number > 0 {
                        to.push(b',');
                    }
                    push_quoted(to, input.key()?);
                    to.push(b':');
                    input.json(shapes, *value, depth + 1, to)
                })?;
                to.push(b'}');
                Ok(())
            }
            Shape::Union(branches) => {
                let (_, branch) = self.branch(branches)?;
                self.json(shapes, *branch, depth + 1, to)
            }
            scalar => self.json_scalar(scalar, to),
        }
    }

    fn json_record(
        &mut self,
        shapes: &Shapes,
        record: &Record,
        depth: usize,
        to: &mut Vec<u8>,
    ) -> Walked<()> {
        to.push(b'{');
        let mut is_first = true;
        let mut begin = |to: &mut Vec<u8>, name: &str| {
            if !std::mem::take(&mut is_first) {
                to.push(b',');
            }
            push_quoted(to, name);
            to.push(b':');
        };
        for part in &record.fields {
            match &part.name {
                Some(name) => {
                    begin(to, name);
                    self.json(shapes, part.shape, depth + 1, to)?;
                }
                None => self.skip(shapes, part.written, depth + 1)?,
            }
        }
        for default in &record.defaults {
            begin(to, &default.name);
            let mut bytes = Input { bytes: &default.bytes, at: 0, values: self.values };
            // Where it is wrong is where the record is that lacks it.
            bytes.json(shapes, default.shape, depth + 1, to).map_err(|w| Wrong { at: self.at, ..w })?;
            self.values = bytes.values;
        }
        to.push(b'}');
        Ok(())
    }

    fn json_scalar(&mut self, shape: &Shape, to: &mut Vec<u8>) -> Walked<()> {
        let from = to.len();
        match self.scalar(shape, to)? {
            Scalar::Missing => to.extend_from_slice(b"null"),
            Scalar::Range(_, at, len) => push_quoted(to, self.utf8(&self.bytes[at..at + len])?),
            Scalar::Written(Kind::Text) => {
                let text = String::from_utf8_lossy(&to[from..]).into_owned();
                to.truncate(from);
                push_quoted(to, &text);
            }
            Scalar::Written(_) => {}
        }
        Ok(())
    }
}

fn number(is_finite: bool) -> Kind {
    if is_finite { Kind::Number } else { Kind::Text }
}

fn push_integer(to: &mut Vec<u8>, n: i64, form: IntegerForm) -> Kind {
    match form {
        IntegerForm::Plain => push(to, format_args!("{n}")),
        IntegerForm::Single => return number(push_single(to, n as f32)),
        IntegerForm::Double => return number(push_double(to, n as f64)),
        IntegerForm::Timestamp(places) => push_scaled(to, n.into(), places),
        IntegerForm::Date => {
            push_date(to, n);
            return Kind::Text;
        }
        IntegerForm::LocalTimestamp(places) => {
            let day = 86_400_000 * 10_i64.pow(places);
            push_date(to, n.div_euclid(day));
            let of_day = n.rem_euclid(day);
            let second = 1000 * 10_i64.pow(places);
            let (whole, part) = (of_day / second, of_day % second);
            push(to, format_args!("T{:02}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60));
            if part > 0 {
                push(to, format_args!(".{part:0width$}", width = 3 + places as usize));
            }
            return Kind::Text;
        }
    }
    Kind::Number
}

/// A number in two's complement, its highest byte first.
fn unscaled(bytes: &[u8]) -> Option<i128> {
    let is_negative = bytes.first().is_some_and(|b| b & 0x80 != 0);
    let fill = if is_negative { 0xff } else { 0 };
    let extra = bytes.len().saturating_sub(16);
    let (sign, low) = bytes.split_at(extra);
    if sign.iter().any(|b| *b != fill) || (extra > 0 && (low[0] & 0x80 != 0) != is_negative) {
        return None;
    }
    let mut all = [fill; 16];
    all[16 - low.len()..].copy_from_slice(low);
    Some(i128::from_be_bytes(all))
}
