//! Validators: plugins that judge events between the decoder and the lanes.
//!
//! A verdict is asked for once, before the event has any place in the fold, and never again (SEMANTICS 4). An event at which a
//! validator fails is rejected like one that it does not accept, with reason `plugin_fault`.

use super::CALL_DEADLINE;
use super::budget::{Identity, Warden};
use super::frames::{Column, push_cells};
use super::pace::Pace;
use std::time::Instant;
use tidemill_contract::frame::{Frame, FrameError, FrameWriter, Kind};
use tidemill_contract::rows;
use tidemill_engine::event::{RowHead, Rows};
use tidemill_engine::metrics::{Metric, Total, Totals};
use tidemill_sandbox::{FaultKind, Instance, remark};

/// Events in one frame.
const FRAME_EVENTS: usize = 512;

/// The validators of a pipeline, in order.
#[derive(Default)]
pub(crate) struct Validators {
    stages: Vec<Stage>,
    /// Where the rows of the block at hand stand, in order of arrival: lane, place in the lane, still accepted.
    order: Vec<(usize, usize)>,
}

struct Stage {
    instance: Instance,
    warden: Warden,
    /// Events in one frame.
    pace: Pace,
    columns: Vec<Column>,
    reasons: Vec<String>,
    metrics: Vec<Metric>,
    /// Since they were last taken.
    totals: Vec<Total>,
    writer: FrameWriter,
    events: Vec<u64>,
    bytes: Vec<u8>,
}

/// Why an event was rejected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rejected {
    /// One of the validator's reasons, or `plugin_fault`.
    pub(crate) reason: String,
    /// For a reader; cut as [`remark`] cuts.
    pub(crate) message: String,
}

/// A row that one of the validators does not accept.
pub(crate) struct Verdict<'a> {
    /// Why.
    pub(crate) why: &'a Rejected,
    /// Whose verdict it is.
    pub(crate) by: &'a Identity,
}

impl Validators {
    /// Adds a validator whose declared fields stand at these places of extensions.
    pub(crate) fn push(&mut self, instance: Instance, warden: Warden, slots: &[usize]) {
        let d = instance.plugin().component().description();
        self.stages.push(Stage {
            columns: d.fields.iter().zip(slots).map(|(f, slot)| Column::new(f, *slot)).collect(),
            reasons: d.reasons.clone(),
            totals: super::rule::metrics(d).iter().map(Total::of).collect(),
            metrics: super::rule::metrics(d),
            instance,
            warden,
            pace: Pace::new(FRAME_EVENTS),
            writer: FrameWriter::default(),
            events: Vec::new(),
            bytes: Vec::new(),
        });
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// What the validators' own metrics have grown by since this was last asked, by plugin. A verdict is asked for once, so
    /// every step is a first one.
    pub(crate) fn take_totals(&mut self) -> impl Iterator<Item = (&str, Totals)> {
        self.stages.iter_mut().map(|stage| {
            let grown = stage.totals.iter_mut().zip(&stage.metrics).filter(|(t, _)| t.count > 0);
            let take = |(t, m): (&mut Total, &Metric)| (m.name.clone(), std::mem::replace(t, Total::of(m)));
            (stage.warden.who.name.as_str(), grown.map(take).collect())
        })
    }

    /// Takes out the rows from `from` on (a length for each lane) that a validator does not accept, and tells of them.
    ///
    /// # Errors
    /// If a validator cannot be called at all, or has spent the fault budget.
    pub(crate) fn judge(
        &mut self,
        lanes: &mut [Rows],
        from: &[usize],
        mut rejected: impl FnMut(&RowHead, Verdict<'_>),
    ) -> Result<(), String> {
        if self.stages.is_empty() {
            return Ok(());
        }
        self.order.clear();
        for (lane, (rows, from)) in lanes.iter().zip(from).enumerate() {
            self.order.extend((*from..rows.heads.len()).map(|row| (lane, row)));
        }
        self.order.sort_unstable_by_key(|(lane, row)| lanes[*lane].heads[*row].raw_at);
        let mut dead: Vec<(usize, usize)> = Vec::new();
        for stage in &mut self.stages {
            let mut next = Vec::new();
            stage.all(lanes, &self.order, &mut next)?;
            stage.warden.pass_on_log(&mut stage.instance);
            for (at, why) in &next {
                let by = &stage.warden.who;
                rejected(&lanes[at.0].heads[at.1], Verdict { why, by });
            }
            dead.extend(next.iter().map(|(at, _)| *at));
            self.order.retain(|at| !next.iter().any(|(n, _)| n == at));
        }
        if dead.is_empty() {
            return Ok(());
        }
        dead.sort_unstable();
        for (lane, rows) in lanes.iter_mut().enumerate() {
            let mut row = 0;
            rows.heads.retain(|_| {
                row += 1;
                dead.binary_search(&(lane, row - 1)).is_err()
            });
        }
        Ok(())
    }
}

/// Rows that are not accepted: lane, place in the lane, and why.
pub(super) type Verdicts = Vec<((usize, usize), Rejected)>;

impl Stage {
    /// Judges rows, in calls that are as large as they may be now.
    fn all(&mut self, lanes: &[Rows], mut rows: &[(usize, usize)], out: &mut Verdicts) -> Result<(), String> {
        while !rows.is_empty() {
            let (part, rest) = rows.split_at(self.pace.now().min(rows.len()));
            self.part(lanes, part, false, out)?;
            rows = rest;
        }
        Ok(())
    }

    /// Judges some rows; where the call fails, the row at fault is rejected and the others are asked again. `sure`: a single row
    /// that is overdue was so before, and not because the machine was busy with something else.
    fn part(
        &mut self,
        lanes: &[Rows],
        part: &[(usize, usize)],
        sure: bool,
        out: &mut Verdicts,
    ) -> Result<(), String> {
        if part.is_empty() {
            return Ok(());
        }
        self.write(lanes, part);
        let begun = Instant::now();
        let answer = self.instance.validate(self.writer.end(), CALL_DEADLINE);
        self.warden.meter.called(begun);
        let (message, row) = match answer {
            Ok(words) => match read(words, part, &self.reasons, &mut self.totals, out) {
                Ok(()) => {
                    self.pace.answered(part.len(), begun.elapsed());
                    return Ok(());
                }
                Err(e) => (format!("the answer is no frame of verdicts: {e}"), None),
            },
            Err(f) if self.warden.failed(&f) => return Err(f.to_string()),
            Err(f) => {
                let row = f.progress.map(|p| p.row as usize).filter(|r| *r < part.len());
                if matches!(f.kind, FaultKind::Deadline(_)) {
                    self.pace.overdue(part.len(), row);
                    if part.len() == 1 && !sure {
                        return self.part(lanes, part, true, out);
                    }
                }
                (f.to_string(), row)
            }
        };
        match row {
            _ if part.len() == 1 => {
                if !self.warden.found(&message) {
                    return Err(message);
                }
                out.push((part[0], Rejected { reason: "plugin_fault".into(), message }));
                Ok(())
            }
            Some(row) => {
                self.all(lanes, &part[..row], out)?;
                self.part(lanes, &part[row..=row], true, out)?;
                self.all(lanes, &part[row + 1..], out)
            }
            None => {
                let (a, b) = part.split_at(part.len() / 2);
                self.all(lanes, a, out)?;
                self.all(lanes, b, out)
            }
        }
    }

    fn write(&mut self, lanes: &[Rows], part: &[(usize, usize)]) {
        self.events.clear();
        self.bytes.clear();
        for (lane, row) in part {
            let rows = &lanes[*lane];
            let head = &rows.heads[*row];
            let (key, ext) = (rows.key(head), rows.ext(head));
            let at = self.bytes.len();
            self.events.push(head.time.ms() as u64);
            self.events.push(at as u64 | (key.len() as u64) << 32);
            push_cells(&self.columns, ext, at + key.len(), &mut self.events);
            self.bytes.extend_from_slice(key);
            self.bytes.extend_from_slice(ext);
        }
        self.writer.begin(Kind::Events);
        self.writer.wide_section(&self.events, part.len());
        self.writer.section(&self.bytes);
    }
}

/// Takes the frame `verdicts` for some rows.
///
/// # Errors
/// If it is not such a frame, or says what cannot be. Then nothing of it is taken.
pub(super) fn read(
    words: &[u64],
    part: &[(usize, usize)],
    reasons: &[String],
    totals: &mut [Total],
    out: &mut Verdicts,
) -> Result<(), FrameError> {
    let frame = Frame::read(words, Kind::Verdicts)?;
    let verdicts: &[rows::Verdict] = frame.rows(0)?;
    let counts: &[rows::Count] = frame.rows(1)?;
    let bytes: &[u8] = frame.rows(2)?;
    if verdicts.len() != part.len() {
        return Err(FrameError::Section(0));
    }
    let is_wrong = |c: &rows::Count| {
        let total = usize::try_from(c.metric).ok().and_then(|n| totals.get(n));
        let adds = total.is_some_and(|t| !t.bounds.is_empty() || c.value >= 0.0);
        !adds || !c.value.is_finite() || c.row as usize >= part.len()
    };
    if counts.iter().any(is_wrong) {
        return Err(FrameError::Range);
    }
    let before = out.len();
    for (v, at) in verdicts.iter().zip(part).filter(|(v, _)| v.code != 0) {
        let reason = usize::try_from(v.code - 1).ok().and_then(|n| reasons.get(n));
        let message = v.message.of(bytes);
        let (Some(reason), Ok(message)) = (reason, message) else {
            out.truncate(before);
            return Err(FrameError::Range);
        };
        out.push((*at, Rejected { reason: reason.clone(), message: remark(message) }));
    }
    for c in counts {
        totals[c.metric as usize].add(c.value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sandbox::bounds::REMARK_BYTES_MAX;

    fn frame(counts: &[rows::Count]) -> Vec<u64> {
        let mut w = FrameWriter::default();
        w.begin(Kind::Verdicts);
        w.section(&[rows::Verdict::default(), rows::Verdict { code: 1, message: rows::Range::default() }]);
        w.section(counts);
        w.section::<u8>(&[]);
        w.into_words()
    }

    #[test]
    fn a_message_is_kept_as_far_as_a_reader_needs_it() {
        let said = "é".repeat(10_000);
        let mut w = FrameWriter::default();
        w.begin(Kind::Verdicts);
        w.section(&[rows::Verdict { code: 1, message: rows::Range::between(0, said.len()) }]);
        w.section::<rows::Count>(&[]);
        w.section(said.as_bytes());
        let mut out = Vec::new();
        read(&w.into_words(), &[(0, 0)], &["bad".to_owned()], &mut [], &mut out).unwrap();
        let message = &out[0].1.message;
        assert_eq!(message.chars().filter(|c| *c == 'é').count(), REMARK_BYTES_MAX / 2);
        assert!(message.ends_with('…') && message.len() <= REMARK_BYTES_MAX + '…'.len_utf8(), "{message}");
    }

    #[test]
    fn counts_are_summed_with_the_verdicts_or_not_at_all() {
        let part = [(0, 0), (0, 1)];
        let mut totals = vec![Total::of(&Metric { name: "seen".into(), bounds: Vec::new() })];
        let count = |row, metric, value| rows::Count { row, input: rows::NO_INPUT, metric, at: 0, value };
        let mut out = Vec::new();
        let reasons = ["bad".to_owned()];
        let good = frame(&[count(0, 0, 2.0), count(1, 0, 1.0)]);
        read(&good, &part, &reasons, &mut totals, &mut out).unwrap();
        assert_eq!((totals[0].count, totals[0].sum, out.len()), (2, 3.0, 1));
        for wrong in [count(2, 0, 1.0), count(0, 1, 1.0), count(0, 0, -1.0), count(0, 0, f64::NAN)] {
            assert!(
                read(&frame(&[count(0, 0, 5.0), wrong]), &part, &reasons, &mut totals, &mut out).is_err()
            );
        }
        assert_eq!((totals[0].sum, out.len()), (3.0, 1), "nothing of an answer that is none");
    }
}
