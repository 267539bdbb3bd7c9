//! Events as a plugin sees them: a time, and the fields that it declared.
//!
//! A row does not copy the frame that it lies in and has no lifetime: it holds the frame with a counter, and says which
//! words are its own.

use crate::{Symbol, Time};
use std::rc::Rc;
use tidemill_contract::cell::{self, Text};
use tidemill_contract::rows::Range;

/// What a declared field may hold. Something else in a record is a dead letter `wrong_type` before the plugin sees it.
///
/// ```
/// use tidemill_plugin_sdk::{EventView, FieldType, event};
/// #[event]
/// struct Event { url: Text, #[string] name: Text, items: Option<i64>, amount: Option<f64>, paid: Option<bool> }
/// let types: Vec<FieldType> = Event::FIELDS.iter().map(|f| f.field_type).collect();
/// use FieldType::*;
/// assert_eq!(types, [Text, String, Integer, Number, Boolean]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// A text; numbers and booleans as their JSON text stands.
    Text,
    /// A text and nothing else.
    String,
    /// A whole number.
    Integer,
    /// A finite number.
    Number,
    /// True or false.
    Boolean,
}

/// A declared field.
///
/// ```
/// use tidemill_plugin_sdk::{EventView, Field, FieldType, event};
/// #[event]
/// struct Event { items: i64 }
/// let items = Field { name: "items", field_type: FieldType::Integer, required: true, symbols: &[] };
/// assert_eq!(Event::FIELDS, [items]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The plugin's name for it.
    pub name: &'static str,
    /// What it may hold.
    pub field_type: FieldType,
    /// A record without it is a dead letter `missing_field` before the plugin sees it.
    pub required: bool,
    /// Values that the host passes as a number.
    pub symbols: &'static [&'static str],
}

/// A declared event: made by [`#[event]`](macro@crate::event) from a struct.
///
/// ```
/// use tidemill_plugin_sdk::{EventView, event};
/// #[event]
/// struct Event { url: Text }
/// fn at_night(event: &Event) -> bool { event.time().millis() / 3_600_000 % 24 < 6 && event.url() != "/ping" }
/// assert_eq!(Event::FIELDS[0].name, "url");
/// ```
pub trait EventView: Sized + 'static {
    /// The declared fields.
    const FIELDS: &'static [Field];
    /// The view of a row.
    fn of(row: Row) -> Self;
    /// The row.
    fn row(&self) -> &Row;
    /// The row, to be moved on.
    fn row_mut(&mut self) -> &mut Row;
    /// When it happened.
    fn time(&self) -> Time {
        self.row().time()
    }
}

/// A frame that rows lie in, shared.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    words: Rc<Vec<u64>>,
    /// Where its bytes stand.
    at: usize,
    len: usize,
}

impl Block {
    /// A frame, and where in it its bytes stand.
    pub(crate) fn new(words: Rc<Vec<u64>>, at: usize, len: usize) -> Block {
        Block { at, len, words }
    }
    #[inline]
    pub(crate) fn bytes(&self, range: Range) -> &[u8] {
        let all: &[u8] = bytemuck::cast_slice(&self.words);
        let (at, len) = (range.at as usize, range.len as usize);
        match all.get(self.at + at..).and_then(|b| b.get(..len)) {
            Some(b) if at + len <= self.len => b,
            _ => crate::broken(format_args!("the host's frame has a range outside its bytes")),
        }
    }
    #[inline]
    pub(crate) fn text(&self, range: Range) -> &str {
        match std::str::from_utf8(self.bytes(range)) {
            Ok(t) => t,
            Err(e) => crate::broken(format_args!("a text that is no UTF-8: {e}")),
        }
    }
}

/// An event in a frame. What [`#[event]`](macro@crate::event) reads from.
#[derive(Clone, Debug)]
pub struct Row {
    block: Block,
    /// The word of its time.
    at: usize,
    /// Words between the time and the first cell.
    gap: usize,
}

impl Row {
    pub(crate) fn new(block: Block, gap: usize) -> Row {
        Row { block, at: 0, gap }
    }
    #[inline]
    pub(crate) fn move_to(&mut self, word: usize) {
        self.at = word;
    }
    #[inline]
    pub(crate) fn time(&self) -> Time {
        Time(self.block.words.get(self.at).copied().unwrap_or(0) as i64)
    }
    #[inline]
    fn cell(&self, n: usize) -> u64 {
        match self.block.words.get(self.at + 1 + self.gap + n) {
            Some(w) => *w,
            None => crate::broken(format_args!("the host's frame has no cell {n}")),
        }
    }
    /// A text, or none.
    #[doc(hidden)]
    #[inline]
    pub fn text(&self, n: usize, symbols: &'static [&'static str]) -> &str {
        match Text::of(self.cell(n)) {
            Text::Missing => "",
            Text::Symbol(s) => match symbols.get(s as usize) {
                Some(name) => name,
                None => crate::broken(format_args!("the host's frame has a symbol {s} that is not declared")),
            },
            Text::Range { at, len } => self.block.text(Range { at, len }),
        }
    }
    #[doc(hidden)]
    #[inline]
    pub fn symbol<S: Symbol>(&self, n: usize) -> Option<S> {
        match Text::of(self.cell(n)) {
            Text::Symbol(s) => S::of(s),
            _ => None,
        }
    }
    #[doc(hidden)]
    #[inline]
    pub fn integer(&self, n: usize) -> Option<i64> {
        cell::integer(self.cell(n))
    }
    #[doc(hidden)]
    #[inline]
    pub fn number(&self, n: usize) -> Option<f64> {
        cell::number(self.cell(n))
    }
    #[doc(hidden)]
    #[inline]
    pub fn boolean(&self, n: usize) -> Option<bool> {
        cell::boolean(self.cell(n))
    }
    /// The key, for validators, whose rows carry it.
    pub(crate) fn key(&self) -> &str {
        let word = self.block.words.get(self.at + 1).copied().unwrap_or(0);
        self.block.text(Range { at: word as u32, len: (word >> 32) as u32 })
    }
}

/// What a required field reads as.
#[doc(hidden)]
#[inline]
pub fn required<T>(value: Option<T>, name: &str) -> T {
    match value {
        Some(v) => v,
        None => crate::broken(format_args!("the host's frame has no `{name}`, which is required")),
    }
}
