//! Asking a plugin of any kind what it makes of a sample.

use super::Sample;
use crate::plugin::CALL_DEADLINE;
use crate::plugin::frames::{Column, TurnFrames, push_cells, read_results};
use std::time::Duration;
use tidemill_contract::frame::{Frame, FrameError, FrameWriter, Kind};
use tidemill_contract::rows::{Answer, Count, Enriched, Range, Request, Session, Verdict, answer};
use tidemill_engine::rule::{Closing, Input, Results, Span, StateAt, Turn, TurnResult, Turns};
use tidemill_engine::time::EventTime;
use tidemill_sandbox::{Fault, FaultKind, Instance, Malformed, Plugin, World};

/// For one sample: four times what a call has later, since an answer that is only slow still tells something. A call of
/// several has as much for each, so that what is answered in time alone is answered in time together.
const SAMPLE_DEADLINE: Duration = CALL_DEADLINE.saturating_mul(4);
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
        let answers = results.turns.iter().map(|r| plain(r, &results)).collect::<Option<Vec<_>>>();
        answers.ok_or(NoAnswer::from(FrameError::Range))
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
        let mut answers = vec![String::new(); sample.len()];
        for (event, (verdict, n)) in verdicts.iter().zip(&of).enumerate() {
            let message = String::from_utf8_lossy(verdict.message.of(said)?);
            answers[*n] += &format!("{} {message:?} {:?}; ", verdict.code, counted(counts, event));
        }
        Ok(answers)
    }

    /// What it asks for, then what it makes of rows that are made up for that, or are not there.
    fn enrich(&mut self, sample: &[&Sample]) -> Result<Vec<String>, NoAnswer> {
        let deadline = deadline(sample.len());
        let mut asked = SessionFrames::default();
        sample.iter().for_each(|s| asked.session(s, &[]));
        let words = self.instance.requests(asked.end(), deadline)?;
        let frame = Frame::read(words, Kind::Requests)?;
        let (requests, bytes): (&[Request], &[u8]) = (frame.rows(0)?, frame.rows(1)?);
        let mut wanted: Vec<Wanted> = vec![Vec::new(); sample.len()];
        for r in requests {
            let list = wanted.get_mut(r.session as usize).ok_or(FrameError::Range)?;
            list.push((r.lookup, r.key.of(bytes)?.to_vec()));
        }
        let mut answered = SessionFrames::default();
        sample.iter().zip(&wanted).for_each(|(s, wanted)| answered.session(s, wanted));
        let words = self.instance.apply(answered.end(), deadline)?;
        let frame = Frame::read(words, Kind::Enriched)?;
        let (enriched, counts): (&[Enriched], &[Count]) = (frame.rows(0)?, frame.rows(1)?);
        let bytes: &[u8] = frame.rows(2)?;
        if enriched.len() != sample.len() {
            return Err(FrameError::Section(0).into());
        }
        let answer = |(n, (e, wanted)): (usize, (&Enriched, &Wanted))| {
            let asks: Vec<_> = wanted.iter().map(|(l, key)| (l, String::from_utf8_lossy(key))).collect();
            let fields = String::from_utf8_lossy(e.fields.of(bytes)?);
            Ok(format!("asks {asks:?}; {} {fields} {:?}", e.code, counted(counts, n)))
        };
        enriched.iter().zip(&wanted).enumerate().map(answer).collect()
    }
}

/// Of one session: lookups and the keys that they are asked for.
type Wanted = Vec<(u32, Vec<u8>)>;

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
    fn session(&mut self, s: &Sample, wanted: &[(u32, Vec<u8>)]) {
        let bytes = &mut self.bytes;
        let mut put = |more: &[u8]| {
            let at = bytes.len();
            bytes.extend_from_slice(more);
            Range::between(at, bytes.len())
        };
        let first = self.answers.len();
        for (n, (lookup, key)) in wanted.iter().enumerate() {
            let chance = key.iter().fold(n, |sum, b| sum.wrapping_add(usize::from(*b)));
            let (status, row) = match chance % 4 {
                0 => (answer::NOT_FOUND, Range::default()),
                1 => (answer::FAILED, Range::default()),
                c => (
                    answer::FOUND,
                    put(format!("{{\"name\":\"row {chance}\",\"segment\":\"s{c}\",\"n\":{c}}}").as_bytes()),
                ),
            };
            self.answers.push(Answer { lookup: *lookup, status, key: put(key), row });
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
