//! Whether a plugin is a pure function, as far as a sample shows.
//!
//! Everything rests on it: what is folded again after a late event or a crash must come out as before. So the sample is given
//! to the plugin whole, once more to the same instance, one by one, backwards, and with foreign keys in between, and
//! the answers must be the same to the byte. What the plugin fails at is left out: containment sees to that.

use super::CALL_DEADLINE;
use super::frames::{Column, TurnFrames, push_cells, read_results};
use std::time::Duration;
use tidemill_contract::frame::{Frame, FrameWriter, Kind};
use tidemill_contract::rows::{Count, Verdict};
use tidemill_engine::event::ext::{self, Value};
use tidemill_engine::rule::{Closing, Input, Results, Span, StateAt, Turn, TurnResult, Turns};
use tidemill_engine::time::EventTime;
use tidemill_sandbox::{Description, Fault, Field, FieldType, Instance, Plugin, World};

/// For one call: four times what it has later, since an answer that is only slow still tells something.
const DEADLINE: Duration = CALL_DEADLINE.saturating_mul(4);
/// Of answers that differ, what is shown before and after the first difference: some words, not a screen.
const SHOWN_BEFORE_BYTES: usize = 60;
const SHOWN_AFTER_BYTES: usize = 100;
/// Keys of a made-up sample.
const KEYS: usize = 12;
/// 2025-01-01.
const BEGIN_MS: i64 = 1_735_689_600_000;

/// The plugin's answer depends on more than its question.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Impure {
    /// Two answers to one question.
    #[error(
        "it is no pure function: for key `{key}` it answers {how} otherwise than alone in a new instance; nothing may be \
         kept between calls, and nothing may depend on what else is in a call\n  alone:  {alone}\n  {how}: {other}"
    )]
    Differs {
        /// The key.
        key: String,
        /// What was different about the call.
        how: &'static str,
        /// The answer that counts.
        alone: String,
        /// The other.
        other: String,
    },
    /// There is no instance to try it with.
    #[error("it cannot be tried: {0}")]
    Fault(#[from] Fault),
}

/// What one key brings: events by time, each with the values of the declared fields in order.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// The key, as rows show it.
    pub(crate) key: String,
    /// Time and extension (see [`ext`]) of each event.
    pub(crate) events: Vec<(EventTime, Vec<u8>)>,
}

impl Sample {
    /// Of these events.
    pub(crate) fn new(key: &str, events: &[(EventTime, Vec<Value<'_>>)]) -> Sample {
        let extension = |values: &[Value<'_>]| {
            let mut bytes = Vec::new();
            ext::push_id(&mut bytes, None);
            values.iter().for_each(|v| ext::push_field(&mut bytes, *v));
            bytes
        };
        let events = events.iter().map(|(time, values)| (*time, extension(values))).collect();
        Sample { key: key.to_owned(), events }
    }
}

/// A sample of what a plugin with these fields might see, when there is none of what it does see.
pub(crate) fn made_up(description: &Description) -> Vec<Sample> {
    let steps_ms = [0, 1_000, 60_000, 7_000, 40 * 60_000, 1, 25 * 3_600_000];
    let sample = |k: usize| {
        let mut at = BEGIN_MS + 1_000 * k as i64;
        let events: Vec<_> = (0..1 + k % 7)
            .map(|i| {
                at += steps_ms[(i + k) % steps_ms.len()];
                let fields = description.fields.iter().enumerate();
                (EventTime::from_ms(at), fields.map(|(n, f)| made_up_value(f, k + 3 * i + n)).collect())
            })
            .collect();
        Sample::new(&format!("key-{k}"), &events)
    };
    (0..KEYS).map(sample).collect()
}

fn made_up_value(field: &Field, n: usize) -> Value<'_> {
    const TEXTS: [&str; 5] = ["/cart", "a", "page_view", "https://example.com/x?y=1", "1"];
    if !field.required && n % 5 == 4 {
        return Value::Missing;
    }
    match field.field_type {
        FieldType::Text | FieldType::String if !field.symbols.is_empty() && n % 4 != 3 => {
            Value::Text(field.symbols[n % field.symbols.len()].as_bytes())
        }
        FieldType::Text | FieldType::String => Value::Text(TEXTS[n % TEXTS.len()].as_bytes()),
        FieldType::Integer => Value::Integer([0, 1, -1, 1_000, 1 << 40][n % 5]),
        FieldType::Number => Value::Number([0.0, 0.1, -1.0, 1e9][n % 4]),
        FieldType::Boolean => Value::Boolean(n.is_multiple_of(2)),
    }
}

/// Tries the plugin with a sample.
///
/// # Errors
/// If it answers one question in two ways.
pub(crate) fn check(plugin: &Plugin, sample: &[Sample]) -> Result<(), Impure> {
    let mut fresh = Asked::new(plugin)?;
    // What it fails at tells nothing. An instance that trapped is made anew, so the next question finds a new one.
    let mut good: Vec<(Sample, String)> = Vec::new();
    for s in sample {
        if let Some(answer) = fresh.ask(std::slice::from_ref(s)).and_then(|mut a| a.pop()) {
            good.push((s.clone(), answer));
        }
    }
    let mut used = Asked::new(plugin)?;
    let whole: Vec<Sample> = good.iter().map(|(s, _)| s.clone()).collect();
    let foreign = |s: &Sample| Sample { key: format!("{}, of somebody else", s.key), ..s.clone() };
    let between: Vec<Sample> = whole.iter().rev().flat_map(|s| [foreign(s), s.clone(), foreign(s)]).collect();
    let among: Vec<String> = used.ask(&whole).unwrap_or_default();
    compare(&good, "in one call with others", among.into_iter())?;
    let again = used.ask(&whole).unwrap_or_default();
    compare(&good, "when it is asked again", again.into_iter())?;
    let framed = used.ask(&between).unwrap_or_default();
    let own: Vec<String> = framed.into_iter().skip(1).step_by(3).collect();
    compare(&good, "with foreign keys between", own.into_iter().rev())?;
    for one in good.iter().rev() {
        let answer = used.ask(std::slice::from_ref(&one.0)).unwrap_or_default();
        compare(std::slice::from_ref(one), "in an instance that was used", answer.into_iter())?;
    }
    Ok(())
}

fn compare(
    good: &[(Sample, String)],
    how: &'static str,
    answers: impl Iterator<Item = String>,
) -> Result<(), Impure> {
    let differs = good.iter().zip(answers).find(|((_, alone), other)| alone != other);
    match differs {
        None => Ok(()),
        Some(((sample, alone), other)) => {
            let at = alone.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
            let (alone, other) = (around(alone, at), around(&other, at));
            Err(Impure::Differs { key: sample.key.clone(), how, alone, other })
        }
    }
}

/// A text from a little before where it differs from another.
fn around(text: &str, at: usize) -> String {
    let from = text.floor_char_boundary(at.saturating_sub(SHOWN_BEFORE_BYTES));
    let to = text.floor_char_boundary(at + SHOWN_AFTER_BYTES);
    format!("…{}…", &text[from..to])
}

/// An instance with what is needed to ask it.
struct Asked {
    world: World,
    columns: Vec<Column>,
    frames: TurnFrames,
    instance: Instance,
}

impl Asked {
    fn new(plugin: &Plugin) -> Result<Asked, Fault> {
        let columns = || {
            let fields = &plugin.component().description().fields;
            fields.iter().enumerate().map(|(n, f)| Column::new(f, n)).collect()
        };
        Ok(Asked {
            world: plugin.component().world(),
            columns: columns(),
            frames: TurnFrames::new(columns()),
            instance: plugin.instance()?,
        })
    }

    /// An answer for each, as text in which nothing depends on where it stood; `None` if the call fails.
    fn ask(&mut self, sample: &[Sample]) -> Option<Vec<String>> {
        match self.world {
            World::Sessionizer => self.fold(sample),
            World::Validator => self.validate(sample),
            World::Enricher => None,
        }
    }

    fn fold(&mut self, sample: &[Sample]) -> Option<Vec<String>> {
        let turns = turns(sample);
        let frame = self.frames.write(&turns, 0..sample.len());
        let words = self.instance.fold(frame, DEADLINE).ok()?;
        let mut results = Results::default();
        read_results(words, &turns, 0..sample.len(), &mut results).ok()?;
        results.turns.iter().map(|r| plain(r, &results)).collect()
    }

    fn validate(&mut self, sample: &[Sample]) -> Option<Vec<String>> {
        let (mut events, mut bytes, mut of) = (Vec::new(), Vec::new(), Vec::new());
        for (n, s) in sample.iter().enumerate() {
            for (time, ext) in &s.events {
                let at = bytes.len();
                events.push(time.ms() as u64);
                events.push(at as u64 | (s.key.len() as u64) << 32);
                push_cells(&self.columns, ext, at + s.key.len(), &mut events);
                bytes.extend_from_slice(s.key.as_bytes());
                bytes.extend_from_slice(ext);
                of.push(n);
            }
        }
        let mut writer = FrameWriter::default();
        writer.begin(Kind::Events);
        writer.wide_section(&events, of.len());
        writer.section(&bytes);
        let words = self.instance.validate(writer.end(), DEADLINE).ok()?;
        let frame = Frame::read(words, Kind::Verdicts).ok()?;
        let verdicts: &[Verdict] = frame.rows(0).ok()?;
        let counts: &[Count] = frame.rows(1).ok()?;
        let said: &[u8] = frame.rows(2).ok()?;
        let mut answers = vec![String::new(); sample.len()];
        for (event, (verdict, n)) in verdicts.iter().zip(&of).enumerate() {
            let message = String::from_utf8_lossy(verdict.message.of(said).ok()?);
            let counts = counts.iter().filter(|c| c.row as usize == event).map(|c| (c.metric, c.value));
            answers[*n] += &format!("{} {message:?} {:?}; ", verdict.code, counts.collect::<Vec<_>>());
        }
        (verdicts.len() == of.len()).then_some(answers)
    }
}

/// Nothing open, all events, timers up to an hour later, and every state on the way.
fn turns(sample: &[Sample]) -> Turns {
    let mut t = Turns::default();
    for s in sample {
        let put = |bytes: &mut Vec<u8>, more: &[u8]| {
            let at = bytes.len();
            bytes.extend_from_slice(more);
            Span::between(at, bytes.len())
        };
        let key = put(&mut t.bytes, s.key.as_bytes());
        let state = put(&mut t.bytes, b"");
        let (inputs_at, wanted_at) = (t.inputs.len(), t.wanted.len());
        for (i, (time, ext)) in s.events.iter().enumerate() {
            let ext = put(&mut t.bytes, ext);
            t.inputs.push(Input { time: *time, ext, skip: false });
            t.wanted.push(i as u32);
        }
        let last = s.events.last().map_or(EventTime::BEGINNING, |(time, _)| *time);
        t.turns.push(Turn {
            key,
            open: None,
            state,
            timers: Span::default(),
            inputs: Span::between(inputs_at, t.inputs.len()),
            until: last.plus(3_600_000),
            at_end: false,
            report_open: true,
            wanted: Span::between(wanted_at, t.wanted.len()),
        });
    }
    t
}

/// An answer with all that it points to; `None` if it points nowhere.
fn plain(r: &TurnResult, all: &Results) -> Option<String> {
    let text = |s: Span| Some(String::from_utf8_lossy(all.bytes.get(s.range())?).into_owned());
    let state = |s: &StateAt| {
        Some(format!(
            "{:?} {:?} {:?}",
            s.first,
            all.bytes.get(s.state.range())?,
            all.timers.get(s.timers.range())?
        ))
    };
    let mut out = String::new();
    for c in all.closings.get(r.closings.range())? {
        let Closing { cause, discarded, first, last, reason, fields } = *c;
        out += &format!("{cause:?} {discarded} {first:?} {last:?} {reason} {}; ", text(fields)?);
    }
    for x in all.rejections.get(r.rejections.range())? {
        out += &format!("rejected {} {}; ", x.input, x.reason);
    }
    for c in all.counts.get(r.counts.range())? {
        out += &format!("counted {:?} {:?} {} {}; ", c.input, c.at, c.metric, c.value);
    }
    for s in all.snapshots.get(r.snapshots.range())? {
        out += &format!("after {}; ", state(s)?);
    }
    out += &format!("end {} {}", state(&r.end)?, text(r.open_fields)?);
    Some(out)
}
