//! Asking a plugin of any kind what it makes of a sample.

use super::Sample;
use crate::plugin::CALL_DEADLINE;
use crate::plugin::enrich::{self, read_requests};
use crate::plugin::frames::{Column, TurnFrames, push_cells, read_results};
use std::fmt::{Arguments, Write as _};
use std::time::Duration;
use tidemill_contract::frame::{Frame, FrameError, FrameWriter, Kind};
use tidemill_contract::rows::{Answer, Count, Enriched, Range, Session, Verdict, answer};
use tidemill_engine::bounds::{FIELDS_BYTES, STATE_BYTES};
use tidemill_engine::rule::{Closing, Input, Results, Span, StateAt, Turn, TurnResult, Turns};
use tidemill_engine::time::EventTime;
use tidemill_sandbox::{Fault, FaultKind, Instance, Malformed, Plugin, World, remark};

/// For one sample: four times what a call has later, since an answer that is only slow still tells something. A call of
/// several has as much for each, so that what is answered in time alone is answered in time together.
const SAMPLE_DEADLINE: Duration = CALL_DEADLINE.saturating_mul(4);
/// Bytes of an answer, spelt out: a sample has a handful of events, each with a state and a session of 64 KiB at most.
const SPELT_BYTES_MAX: usize = 8 << 20;
/// So few samples need no more memory together than a call may have.
const PART_MIN: usize = 4;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// The call failed.
    Fault(Fault),
    /// What it answered with is none.
    Unreadable(String),
}

impl From<Fault> for NoAnswer {
    fn from(f: Fault) -> NoAnswer {
        NoAnswer::Fault(f)
    }
}
impl From<FrameError> for NoAnswer {
    fn from(e: FrameError) -> NoAnswer {
        NoAnswer::Unreadable(format!("the answer cannot be read: {e}"))
    }
}

impl From<String> for NoAnswer {
    fn from(why: String) -> NoAnswer {
        NoAnswer::Unreadable(why)
    }
}

/// An answer as text. A frame may name the same bytes any number of times, so it has an end.
#[derive(Default)]
struct Spelt(String);

impl Spelt {
    fn say(&mut self, more: Arguments<'_>) -> Result<(), NoAnswer> {
        // Text takes everything.
        let _ = self.0.write_fmt(more);
        if self.0.len() > SPELT_BYTES_MAX { Err(too_long()) } else { Ok(()) }
    }
}

fn too_long() -> NoAnswer {
    NoAnswer::Unreadable("the answer is far longer than such a question needs".into())
}

fn deadline(samples: usize) -> Duration {
    SAMPLE_DEADLINE.saturating_mul(u32::try_from(samples).unwrap_or(u32::MAX))
}

/// Whether the call wanted more memory, or had more to say, than a call may.
fn is_too_much(f: &Fault) -> bool {
    matches!(f.kind, FaultKind::Memory { .. } | FaultKind::Malformed(Malformed::TooLarge))
}

/// An instance with what is needed to ask it.
pub(super) struct Asked {
    world: World,
    columns: Vec<Column>,
    frames: TurnFrames,
    instance: Instance,
}

impl Asked {
    /// A new one.
    ///
    /// # Errors
    /// If none can be made.
    pub(super) fn new(plugin: &Plugin) -> Result<Asked, Fault> {
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

    /// An answer for each, as text in which nothing depends on where it stood.
    ///
    /// # Errors
    /// If the call fails, or answers with what cannot be read.
    pub(super) fn ask(&mut self, sample: &[&Sample]) -> Result<Vec<String>, NoAnswer> {
        match self.world {
            World::Sessionizer => self.fold(sample),
            World::Validator => self.validate(sample),
            World::Enricher => self.enrich(sample),
        }
    }

    /// The same for samples that were answered alone: if what they need together is more than a call may have, in parts.
    ///
    /// # Errors
    /// As [`ask`](Asked::ask), of a part that no honest plugin fails at.
    pub(super) fn together(&mut self, sample: &[&Sample]) -> Result<Vec<String>, NoAnswer> {
        match self.ask(sample) {
            Err(NoAnswer::Fault(f)) if sample.len() > PART_MIN && is_too_much(&f) => {
                let (a, b) = sample.split_at(sample.len() / 2);
                let mut answers = self.together(a)?;
                answers.extend(self.together(b)?);
                Ok(answers)
            }
            other => other,
        }
    }

    fn fold(&mut self, sample: &[&Sample]) -> Result<Vec<String>, NoAnswer> {
        let turns = turns(sample);
        let frame = self.frames.write(&turns, 0..sample.len());
        let words = self.instance.fold(frame, deadline(sample.len()))?;
        let mut results = Results::default();
        read_results(words, &turns, 0..sample.len(), &mut results)?;
        results.turns.iter().map(|r| plain(r, &results)).collect()
    }

    fn validate(&mut self, sample: &[&Sample]) -> Result<Vec<String>, NoAnswer> {
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
        let words = self.instance.validate(writer.end(), deadline(sample.len()))?;
        let frame = Frame::read(words, Kind::Verdicts)?;
        let verdicts: &[Verdict] = frame.rows(0)?;
        let counts: &[Count] = frame.rows(1)?;
        let said: &[u8] = frame.rows(2)?;
        if verdicts.len() != of.len() {
            return Err(FrameError::Section(0).into());
        }
        let mut answers: Vec<Spelt> = sample.iter().map(|_| Spelt::default()).collect();
        for (event, (verdict, n)) in verdicts.iter().zip(&of).enumerate() {
            let message = remark(verdict.message.of(said)?);
            answers[*n].say(format_args!("{} {message:?} {:?}; ", verdict.code, counted(counts, event)))?;
        }
        Ok(answers.into_iter().map(|spelt| spelt.0).collect())
    }

    /// What it asks for, then what it makes of rows that are made up for that, or are not there.
    fn enrich(&mut self, sample: &[&Sample]) -> Result<Vec<String>, NoAnswer> {
        let deadline = deadline(sample.len());
        let mut asked = SessionFrames::default();
        sample.iter().for_each(|s| asked.session(s, &[]));
        let lookups = self.instance.plugin().component().description().lookups.len();
        let words = self.instance.requests(asked.end(), deadline)?;
        let wanted = read_requests(words, sample.len(), lookups)?;
        let mut answered = SessionFrames::default();
        sample.iter().zip(&wanted).for_each(|(s, wanted)| answered.session(s, wanted));
        let words = self.instance.apply(answered.end(), deadline)?;
        let frame = Frame::read(words, Kind::Enriched)?;
        let (enriched, counts): (&[Enriched], &[Count]) = (frame.rows(0)?, frame.rows(1)?);
        let bytes: &[u8] = frame.rows(2)?;
        if enriched.len() != sample.len() {
            return Err(FrameError::Section(0).into());
        }
        let answer = |(n, (e, wanted)): (usize, (&Enriched, &Vec<enrich::Request>))| {
            let mut spelt = Spelt::default();
            spelt.say(format_args!("asks {wanted:?}; "))?;
            let fields = e.fields.of(bytes)?;
            if fields.len() > FIELDS_BYTES {
                return Err(too_long());
            }
            let fields = String::from_utf8_lossy(fields);
            spelt.say(format_args!("{} {fields} {:?}", e.code, counted(counts, n)))?;
            Ok(spelt.0)
        };
        enriched.iter().zip(&wanted).enumerate().map(answer).collect()
    }
}

/// What was counted at a row.
fn counted(counts: &[Count], row: usize) -> Vec<(u64, f64)> {
    counts.iter().filter(|c| c.row as usize == row).map(|c| (c.metric, c.value)).collect()
}

/// Frames `sessions` of samples.
#[derive(Default)]
struct SessionFrames {
    sessions: Vec<Session>,
    answers: Vec<Answer>,
    bytes: Vec<u8>,
    writer: FrameWriter,
}

impl SessionFrames {
    /// A session, with what was found for what it asked for: a row, none, or no answer, as the key decides.
    fn session(&mut self, s: &Sample, wanted: &[enrich::Request]) {
        let bytes = &mut self.bytes;
        let mut put = |more: &[u8]| {
            let at = bytes.len();
            bytes.extend_from_slice(more);
            Range::between(at, bytes.len())
        };
        let first = self.answers.len();
        for (n, enrich::Request { lookup, key }) in wanted.iter().enumerate() {
            let chance = key.bytes().fold(n, |sum, b| sum.wrapping_add(usize::from(b)));
            let (status, row) = match chance % 4 {
                0 => (answer::NOT_FOUND, Range::default()),
                1 => (answer::FAILED, Range::default()),
                c => (
                    answer::FOUND,
                    put(format!("{{\"name\":\"row {chance}\",\"segment\":\"s{c}\",\"n\":{c}}}").as_bytes()),
                ),
            };
            self.answers.push(Answer { lookup: *lookup, status, key: put(key.as_bytes()), row });
        }
        let times = || s.events.iter().map(|(time, _)| time.ms());
        self.sessions.push(Session {
            key: put(s.key.as_bytes()),
            start: times().next().unwrap_or_default(),
            end: times().next_back().unwrap_or_default(),
            count: s.events.len() as u64,
            // One is open, the next is not.
            reason: put(if s.events.len().is_multiple_of(2) { b"" } else { b"end_of_input" }),
            fields: put(s.fields.as_bytes()),
            answers: Range::between(first, self.answers.len()),
        });
    }

    fn end(&mut self) -> &[u64] {
        self.writer.begin(Kind::Sessions);
        self.writer.section(&self.sessions);
        self.writer.section(&self.answers);
        self.writer.section(&self.bytes);
        self.writer.end()
    }
}

/// Nothing open, all events, timers up to an hour later, and every state on the way.
fn turns(sample: &[&Sample]) -> Turns {
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

/// An answer with all that it points to.
///
/// # Errors
/// If it points nowhere, or says more than anybody would.
fn plain(r: &TurnResult, all: &Results) -> Result<String, NoAnswer> {
    let bytes = |s: Span, most: usize| match all.bytes.get(s.range()) {
        None => Err(NoAnswer::from(FrameError::Range)),
        Some(bytes) if bytes.len() > most => Err(too_long()),
        Some(bytes) => Ok(bytes),
    };
    let text = |s: Span| bytes(s, FIELDS_BYTES).map(String::from_utf8_lossy);
    let mut out = Spelt::default();
    for c in part(&all.closings, r.closings)? {
        let Closing { cause, discarded, first, last, reason, fields } = *c;
        out.say(format_args!("{cause:?} {discarded} {first:?} {last:?} {reason} {}; ", text(fields)?))?;
    }
    for x in part(&all.rejections, r.rejections)? {
        out.say(format_args!("rejected {} {}; ", x.input, x.reason))?;
    }
    for c in part(&all.counts, r.counts)? {
        out.say(format_args!("counted {:?} {:?} {} {}; ", c.input, c.at, c.metric, c.value))?;
    }
    let mut state = |when: &str, s: &StateAt| {
        let (state, timers) = (bytes(s.state, STATE_BYTES)?, part(&all.timers, s.timers)?);
        out.say(format_args!("{when} {:?} {state:?} {timers:?}; ", s.first))
    };
    for s in part(&all.snapshots, r.snapshots)? {
        state("after", s)?;
    }
    state("end", &r.end)?;
    out.say(format_args!("{}", text(r.open_fields)?))?;
    Ok(out.0)
}

fn part<T>(of: &[T], which: Span) -> Result<&[T], NoAnswer> {
    of.get(which.range()).ok_or(NoAnswer::from(FrameError::Range))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_engine::rule::{Cause, Place};

    #[test]
    fn an_answer_that_names_the_same_bytes_for_ever_is_unreadable() {
        let fields = Span { at: 0, len: FIELDS_BYTES as u32 };
        let closing = Closing {
            cause: Cause::Input(0),
            discarded: false,
            first: Place::Carried,
            last: Place::Carried,
            reason: 0,
            fields,
        };
        let many = 1_000;
        let all = Results {
            closings: vec![closing; many],
            bytes: vec![b' '; FIELDS_BYTES + 1],
            ..Results::default()
        };
        let of = |closings: usize| TurnResult {
            fault: None,
            closings: Span::between(0, closings),
            ..TurnResult::failed(tidemill_engine::rule::Fault::unknown(""))
        };
        assert!(plain(&of(3), &all).is_ok());
        assert!(matches!(plain(&of(many), &all), Err(NoAnswer::Unreadable(_))));
        let state = TurnResult { open_fields: Span { at: 0, len: fields.len + 1 }, ..of(0) };
        assert!(matches!(plain(&state, &all), Err(NoAnswer::Unreadable(_))));
    }
}
