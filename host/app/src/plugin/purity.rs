//! Whether a plugin is a pure function, as far as a sample shows.
//!
//! Everything rests on it: what is folded again after a late event or a crash must come out as before. So the sample is given
//! to the plugin one by one, each in an instance of its own, then whole, once more to the same instance, with foreign keys in
//! between, and backwards one by one, and the answers must be the same to the byte. What it fails at alone it must fail
//! at again, and what it answers alone it must not fail at elsewhere: a call without an answer is judged like one with.

mod asked;

use self::asked::{Asked, NoAnswer};
use tidemill_engine::event::ext::{self, Value};
use tidemill_engine::time::EventTime;
use tidemill_sandbox::{Description, Fault, FaultKind, Field, FieldType, Plugin};

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
    /// No answer where there is one otherwise.
    #[error(
        "it is no pure function: for key `{key}` it answers alone in a new instance, and {how} it does not; nothing may be kept \
         between calls, and nothing may depend on what else is in a call\n  {how}: {why}"
    )]
    Fails {
        /// The first key of the call.
        key: String,
        /// What was different about the call.
        how: &'static str,
        /// What it did instead.
        why: String,
    },
    /// An answer where there is none otherwise.
    #[error(
        "it is no pure function: for key `{key}` it fails alone in a new instance, and {how} it does not; nothing may be kept \
         between calls, and nothing may depend on what else is in a call"
    )]
    Answers {
        /// The first key of the call.
        key: String,
        /// What was different about the call.
        how: &'static str,
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
    /// For an enricher, which sees no events: the fields that its session has, a JSON object.
    pub(crate) fields: String,
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
        Sample { key: key.to_owned(), events, fields: "{}".to_owned() }
    }

    /// Of a session of events at these times, with these fields.
    pub(crate) fn of_session(key: &str, times: &[EventTime], fields: &str) -> Sample {
        let events: Vec<_> = times.iter().map(|time| (*time, Vec::new())).collect();
        Sample { fields: fields.to_owned(), ..Sample::new(key, &events) }
    }

    /// The same for another key.
    fn of_somebody_else(&self) -> Sample {
        Sample { key: format!("{}, of somebody else", self.key), ..self.clone() }
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
        Sample { fields: made_up_fields(k), ..Sample::new(&format!("key-{k}"), &events) }
    };
    (0..KEYS).map(sample).collect()
}

/// What session rules usually say of a session.
fn made_up_fields(k: usize) -> String {
    match k % 4 {
        0 => "{}".to_owned(),
        n => format!("{{\"pages\":{k},\"campaign\":\"campaign-{n}\",\"entry\":\"/cart\",\"paid\":null}}"),
    }
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
    let mut good: Vec<(&Sample, String)> = Vec::new();
    let mut bad: Vec<&Sample> = Vec::new();
    for s in sample {
        match Asked::new(plugin)?.ask(&[s]) {
            Ok(mut answers) => good.extend(answers.pop().map(|answer| (s, answer))),
            Err(NoAnswer::Fault(f)) if matches!(f.kind, FaultKind::Host(_)) => return Err(f.into()),
            // Slow, and no more than that: on a busy machine it may be quick enough the next time.
            Err(NoAnswer::Fault(f)) if matches!(f.kind, FaultKind::Deadline(_)) => {}
            Err(_) => bad.push(s),
        }
    }
    let mut used = Asked::new(plugin)?;
    let whole: Vec<&Sample> = good.iter().map(|(s, _)| *s).collect();
    // Those that are answered alone: a plugin may well fail at a key that is none of its own.
    let mut foreign = Vec::new();
    for s in whole.iter().map(|s| s.of_somebody_else()) {
        let answered = Asked::new(plugin)?.ask(&[&s]).is_ok();
        foreign.push(answered.then_some(s));
    }
    let pairs = whole.iter().zip(&foreign).rev();
    let around: Vec<(bool, &Sample)> = pairs
        .flat_map(|(own, other)| {
            let other = other.as_ref().map(|s| (false, s));
            other.into_iter().chain([(true, *own)]).chain(other)
        })
        .collect();
    let between: Vec<&Sample> = around.iter().map(|(_, s)| *s).collect();
    compare(&good, "in one call with others", once_more(&mut used, &whole, &whole))?;
    compare(&good, "when it is asked again", once_more(&mut used, &whole, &whole))?;
    let framed = once_more(&mut used, &whole, &between);
    let own = framed.map(|answers| {
        let own = answers.into_iter().zip(&around).rev().filter(|(_, (own, _))| *own);
        own.map(|(answer, _)| answer).collect()
    });
    compare(&good, "with foreign keys between", own)?;
    for one in good.iter().rev() {
        compare(
            std::slice::from_ref(one),
            "in an instance that was used",
            once_more(&mut used, &whole, &[one.0]),
        )?;
    }
    still_fail(&mut used, &bad)
}

/// An answer of an instance that was used; if it takes too long, once more, since a machine may be busy for a moment.
fn once_more(used: &mut Asked, whole: &[&Sample], some: &[&Sample]) -> Result<Vec<String>, NoAnswer> {
    match used.together(some) {
        Err(NoAnswer::Fault(f)) if matches!(f.kind, FaultKind::Deadline(_)) => {
            // It was made anew, and is to be a used one again.
            used.together(whole)?;
            used.together(some)
        }
        other => other,
    }
}

/// What a plugin fails at alone it must fail at wherever it is asked: else what it is asked with decides.
fn still_fail(used: &mut Asked, bad: &[&Sample]) -> Result<(), Impure> {
    for some in bad.chunks(1).chain((bad.len() > 1).then_some(bad)) {
        if used.ask(some).is_ok() {
            let key = some[0].key.clone();
            let how = if some.len() > 1 { "in one call with others" } else { "in an instance that was used" };
            return Err(Impure::Answers { key, how });
        }
    }
    Ok(())
}

/// The answers are those that were given alone, all of them.
fn compare(
    good: &[(&Sample, String)],
    how: &'static str,
    answers: Result<Vec<String>, NoAnswer>,
) -> Result<(), Impure> {
    let Some((first, _)) = good.first() else { return Ok(()) };
    let answers = match answers {
        Ok(answers) if answers.len() == good.len() => answers,
        Ok(_) => {
            return Err(Impure::Fails {
                key: first.key.clone(),
                how,
                why: "other answers than were asked for".into(),
            });
        }
        Err(NoAnswer::Fault(f)) if matches!(f.kind, FaultKind::Host(_)) => return Err(f.into()),
        Err(NoAnswer::Fault(f)) => {
            return Err(Impure::Fails { key: first.key.clone(), how, why: f.to_string() });
        }
        Err(NoAnswer::Unreadable(why)) => return Err(Impure::Fails { key: first.key.clone(), how, why }),
    };
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
