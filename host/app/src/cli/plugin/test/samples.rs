//! What scenarios asked, as samples for the check of purity: there, events of many keys go into one call.

use std::collections::HashSet;

use tidemill_contract::cell::{self, Text};
use tidemill_contract::frame::{Frame, FrameError, Kind};
use tidemill_contract::rows::{EVENT_HEAD_WORDS, INPUT_HEAD_WORDS, Range, Session, Turn, turn_flags};
use tidemill_engine::event::ext::Value;
use tidemill_engine::time::EventTime;
use tidemill_sandbox::{Description, Field, FieldType};

use crate::plugin::purity::Sample;

/// Samples of these questions, each once. A session's state that a question carries is left out: what
/// a rule makes of it, the replay sees.
///
/// # Errors
/// If a question is no such frame.
pub(super) fn of_frame(
    export: &str,
    words: &[u64],
    description: &Description,
    seen: &mut HashSet<String>,
) -> Result<Vec<Sample>, FrameError> {
    let mut samples = match export {
        "fold" => of_turns(words, description)?,
        "validate" => of_events(words, description)?,
        "requests" => of_sessions(words)?,
        _ => Vec::new(),
    };
    samples.retain(|s| seen.insert(format!("{s:?}")));
    Ok(samples)
}

fn of_turns(words: &[u64], d: &Description) -> Result<Vec<Sample>, FrameError> {
    let width = INPUT_HEAD_WORDS + d.fields.len();
    let frame = Frame::read(words, Kind::Turns)?;
    let (turns, inputs) = (frame.rows::<Turn>(0)?, frame.wide_rows(1, width)?);
    let bytes: &[u8] = frame.rows(4)?;
    let mut samples = Vec::new();
    for turn in turns.iter().filter(|t| t.flags & turn_flags::OPEN == 0) {
        let range = Range { at: turn.inputs.at * width as u32, len: turn.inputs.len * width as u32 };
        let events = range.of(inputs)?.chunks(width).map(|row| event(row, INPUT_HEAD_WORDS, d, bytes));
        samples.push(Sample::new(text(turn.key, bytes)?, &events.collect::<Result<Vec<_>, _>>()?));
    }
    Ok(samples)
}

fn of_sessions(words: &[u64]) -> Result<Vec<Sample>, FrameError> {
    let frame = Frame::read(words, Kind::Sessions)?;
    let (sessions, bytes): (&[Session], &[u8]) = (frame.rows(0)?, frame.rows(2)?);
    let one = |s: &Session| {
        let times = [EventTime::from_ms(s.start), EventTime::from_ms(s.end)];
        Ok(Sample::of_session(text(s.key, bytes)?, &times, text(s.fields, bytes)?))
    };
    sessions.iter().map(one).collect()
}

fn of_events(words: &[u64], d: &Description) -> Result<Vec<Sample>, FrameError> {
    let width = EVENT_HEAD_WORDS + d.fields.len();
    let frame = Frame::read(words, Kind::Events)?;
    let bytes: &[u8] = frame.rows(1)?;
    let rows = frame.wide_rows(0, width)?.chunks(width);
    rows.map(|row| {
        let key = Range { at: row[1] as u32, len: (row[1] >> 32) as u32 };
        Ok(Sample::new(text(key, bytes)?, &[event(row, EVENT_HEAD_WORDS, d, bytes)?]))
    })
    .collect()
}

fn text(range: Range, bytes: &[u8]) -> Result<&str, FrameError> {
    std::str::from_utf8(range.of(bytes)?).map_err(|_| FrameError::Range)
}

/// The time and the values of a row.
fn event<'a>(
    row: &[u64],
    head: usize,
    d: &'a Description,
    bytes: &'a [u8],
) -> Result<(EventTime, Vec<Value<'a>>), FrameError> {
    let cells = d.fields.iter().zip(&row[head..]);
    let values = cells.map(|(field, word)| value(field, *word, bytes)).collect::<Result<_, _>>()?;
    Ok((EventTime::from_ms(row[0] as i64), values))
}

fn value<'a>(field: &'a Field, word: u64, bytes: &'a [u8]) -> Result<Value<'a>, FrameError> {
    Ok(match field.field_type {
        FieldType::Text | FieldType::String => match Text::of(word) {
            Text::Missing => Value::Missing,
            Text::Symbol(n) => {
                Value::Text(field.symbols.get(n as usize).ok_or(FrameError::Range)?.as_bytes())
            }
            Text::Range { at, len } => Value::Text(Range { at, len }.of(bytes)?),
        },
        FieldType::Integer => cell::integer(word).map_or(Value::Missing, Value::Integer),
        FieldType::Number => cell::number(word).map_or(Value::Missing, Value::Number),
        FieldType::Boolean => cell::boolean(word).map_or(Value::Missing, Value::Boolean),
    })
}
