//! Turns as frames for a plugin, and its frames as answers (`wit/README.md`).
//!
//! Nothing is copied twice: a run of turns stands in one stretch of the batch's bytes, which becomes the frame's bytes, and
//! the bytes of an answer are taken over whole. Only that ranges lie inside their section is checked here; what they mean
//! is the engine's to judge.

use std::ops::Range;
use tidemill_contract::cell::{MISSING_BOOLEAN, MISSING_INTEGER, Text};
use tidemill_contract::frame::{Frame, FrameError, FrameWriter, Kind};
use tidemill_contract::rows::{self, cause, state_kind, turn_flags};
use tidemill_engine::bounds::{FIELDS_BYTES, RESULTS_BYTES, STATE_BYTES};
use tidemill_engine::event::ext::{Value, Values};
use tidemill_engine::rule::{
    Cause, Closing, Count, END_OF_INPUT, LIMIT, Place, Rejection, Results, Span, StateAt, Timer, TurnResult,
    Turns,
};
use tidemill_engine::time::EventTime;
use tidemill_sandbox::bounds::TIMERS_MAX;
use tidemill_sandbox::{Field, FieldType, remark};

// What the contract promises to plugins is what the engine holds them to.
const _: () = assert!(STATE_BYTES == rows::STATE_BYTES_MAX && FIELDS_BYTES == rows::FIELDS_BYTES_MAX);

/// What the cells of a declared field are made of.
#[derive(Debug)]
pub(crate) struct Column {
    kind: FieldType,
    /// Where the field stands in an event's extension.
    slot: usize,
    symbols: Vec<Box<[u8]>>,
}

impl Column {
    /// The column of a field that stands at `slot` of every extension.
    pub(crate) fn new(field: &Field, slot: usize) -> Column {
        let symbols = field.symbols.iter().map(|s| s.as_bytes().into()).collect();
        Column { kind: field.field_type, slot, symbols }
    }

    fn missing(&self) -> u64 {
        match self.kind {
            FieldType::Text | FieldType::String => Text::Missing.word(),
            FieldType::Integer => MISSING_INTEGER as u64,
            FieldType::Number => f64::NAN.to_bits(),
            FieldType::Boolean => MISSING_BOOLEAN,
        }
    }

    /// The cell of a value; texts stand at `at` of the frame's bytes.
    fn cell(&self, value: Value<'_>, at: usize) -> u64 {
        match value {
            Value::Missing => self.missing(),
            Value::Text(t) => match self.symbols.iter().position(|s| **s == *t) {
                Some(n) => Text::Symbol(n as u32).word(),
                None => Text::Range { at: at as u32, len: t.len() as u32 }.word(),
            },
            Value::Integer(n) => n as u64,
            Value::Number(n) => n.to_bits(),
            Value::Boolean(b) => u64::from(b),
        }
    }
}

/// Writes the cells of an extension, which stands at `at` of the frame's bytes.
pub(crate) fn push_cells(columns: &[Column], ext: &[u8], at: usize, out: &mut Vec<u64>) {
    let first = out.len();
    out.extend(columns.iter().map(Column::missing));
    if columns.is_empty() {
        return;
    }
    for (slot, (value, offset)) in Values::of(ext).enumerate() {
        for (n, column) in columns.iter().enumerate().filter(|(_, c)| c.slot == slot) {
            out[first + n] = column.cell(value, at + offset);
        }
    }
}

/// Makes frames `turns`, in reused memory.
#[derive(Debug, Default)]
pub(crate) struct TurnFrames {
    columns: Vec<Column>,
    writer: FrameWriter,
    turns: Vec<rows::Turn>,
    inputs: Vec<u64>,
    timers: Vec<rows::Timer>,
}

impl TurnFrames {
    pub(crate) fn new(columns: Vec<Column>) -> TurnFrames {
        TurnFrames { columns, ..TurnFrames::default() }
    }

    /// The frame of some turns of a batch.
    pub(crate) fn write(&mut self, batch: &Turns, which: Range<usize>) -> &[u64] {
        self.turns.clear();
        self.inputs.clear();
        self.timers.clear();
        let turns = &batch.turns[which];
        let (Some(first), Some(last)) = (turns.first(), turns.last()) else {
            self.writer.begin(Kind::Turns);
            (0..Kind::Turns.sections()).for_each(|_| self.writer.section::<u64>(&[]));
            return self.writer.end();
        };
        let inputs = first.inputs.at as usize..last.inputs.range().end;
        let wanted = first.wanted.at as usize..last.wanted.range().end;
        let bytes_at = first.key.at as usize;
        let bytes_end = batch.inputs[last.inputs.range()].last().map_or(last.state, |i| i.ext).range().end;
        let rebase = |s: Span, base: usize| rows::Range { at: s.at - base as u32, len: s.len };
        for t in turns {
            let mut flags = 0;
            flags |= if t.open.is_some() { turn_flags::OPEN } else { 0 };
            flags |= if t.at_end { turn_flags::AT_END } else { 0 };
            flags |= if t.report_open { turn_flags::REPORT_OPEN } else { 0 };
            self.turns.push(rows::Turn {
                key: rebase(t.key, bytes_at),
                state: rebase(t.state, bytes_at),
                open_start: t.open.map_or(0, |o| o.start.ms()),
                open_last: t.open.map_or(0, |o| o.last.ms()),
                open_count: t.open.map_or(0, |o| o.count),
                until: t.until.ms(),
                inputs: rebase(t.inputs, inputs.start),
                timers: rebase(t.timers, first.timers.at as usize),
                wanted: rebase(t.wanted, wanted.start),
                flags,
            });
        }
        for i in &batch.inputs[inputs.clone()] {
            self.inputs.push(i.time.ms() as u64);
            let ext = &batch.bytes[i.ext.range()];
            push_cells(&self.columns, ext, i.ext.at as usize - bytes_at, &mut self.inputs);
        }
        let timers = &batch.timers[first.timers.at as usize..last.timers.range().end];
        self.timers.extend(timers.iter().map(|t| rows::Timer { at: t.at.ms(), number: u64::from(t.number) }));
        self.writer.begin(Kind::Turns);
        self.writer.section(&self.turns);
        self.writer.wide_section(&self.inputs, inputs.len());
        self.writer.section(&self.timers);
        self.writer.section(&batch.wanted[wanted]);
        self.writer.section(&batch.bytes[bytes_at..bytes_end.max(bytes_at)]);
        self.writer.end()
    }

    /// The frame of some states.
    pub(crate) fn states(&mut self, states: &[&[u8]]) -> &[u64] {
        let mut bytes = Vec::new();
        let row = |s: &&[u8]| {
            let at = bytes.len();
            bytes.extend_from_slice(s);
            rows::State { state: rows::Range::between(at, bytes.len()), error: rows::Range::default() }
        };
        let table: Vec<rows::State> = states.iter().map(row).collect();
        self.writer.begin(Kind::States);
        self.writer.section(&table);
        self.writer.section(&bytes);
        self.writer.end()
    }
}

/// Takes the frame `states` for so many states.
///
/// # Errors
/// If it is not such a frame.
pub(crate) fn read_states(words: &[u64], wanted: usize) -> Result<Vec<Result<Vec<u8>, String>>, FrameError> {
    let frame = Frame::read(words, Kind::States)?;
    let states: &[rows::State] = frame.rows(0)?;
    let bytes: &[u8] = frame.rows(1)?;
    if states.len() != wanted {
        return Err(FrameError::Section(0));
    }
    let one = |s: &rows::State| {
        Ok(match s.error.of(bytes)? {
            [] => match s.state.of(bytes)? {
                state if state.len() > STATE_BYTES => {
                    Err(format!("a state of {} bytes; at most {STATE_BYTES} are allowed", state.len()))
                }
                state => Ok(state.to_vec()),
            },
            why => Err(remark(why)),
        })
    };
    states.iter().map(one).collect()
}

/// Takes the frame `results` for some turns of a batch behind the other answers.
///
/// # Errors
/// If it is not such a frame, or a range lies outside its section. What was taken of it is cut off again.
pub(crate) fn read_results(
    words: &[u64],
    batch: &Turns,
    which: Range<usize>,
    out: &mut Results,
) -> Result<(), FrameError> {
    let before = Lengths::of(out);
    let taken = take(words, batch, which, out);
    if taken.is_err() {
        before.restore(out);
    }
    taken
}

fn take(words: &[u64], batch: &Turns, which: Range<usize>, out: &mut Results) -> Result<(), FrameError> {
    let frame = Frame::read(words, Kind::Results)?;
    let answers: &[rows::TurnResult] = frame.rows(0)?;
    let closings: &[rows::Closing] = frame.rows(1)?;
    let snapshots: &[rows::StateAt] = frame.rows(2)?;
    let rejections: &[rows::Rejection] = frame.rows(3)?;
    let timers: &[rows::Timer] = frame.rows(4)?;
    let mut counts: &[rows::Count] = frame.rows(5)?;
    let bytes: &[u8] = frame.rows(7)?;
    if answers.len() != which.len() {
        return Err(FrameError::Section(0));
    }
    if out.bytes.len() + bytes.len() > RESULTS_BYTES {
        return Err(FrameError::Length);
    }
    let bytes_at = out.bytes.len() as u32;
    out.bytes.extend_from_slice(bytes);
    let text = |r: rows::Range| r.of(bytes).map(|_| Span { at: bytes_at + r.at, len: r.len });
    let closings_at = out.closings.len() as u32;
    for c in closings {
        out.closings.push(Closing {
            cause: cause_of(c)?,
            discarded: c.discarded != 0,
            first: place(c.first)?,
            last: place(c.last)?,
            reason: reason(c.reason)?,
            fields: text(c.fields)?,
        });
    }
    let rejections_at = out.rejections.len() as u32;
    for r in rejections {
        let reason = u16::try_from(r.reason).map_err(|_| FrameError::Range)?;
        out.rejections.push(Rejection { input: r.input, reason, message: Span::default() });
    }
    for (n, (answer, turn)) in answers.iter().zip(&batch.turns[which]).enumerate() {
        let state = |s: &rows::StateAt, out: &mut Results| {
            let timers_at = out.timers.len();
            let bytes_span = match s.kind {
                state_kind::UNCHANGED => {
                    out.timers.extend_from_slice(&batch.timers[turn.timers.range()]);
                    let at = out.bytes.len();
                    out.bytes.extend_from_slice(&batch.bytes[turn.state.range()]);
                    Span::between(at, out.bytes.len())
                }
                state_kind::NONE => Span::default(),
                _ => {
                    // Of too many, one is enough for the engine to refuse them: many rows may name the same many.
                    for t in s.timers.of(timers)?.iter().take(TIMERS_MAX + 1) {
                        let number = u8::try_from(t.number).map_err(|_| FrameError::Range)?;
                        out.timers.push(Timer { at: EventTime::from_ms(t.at), number });
                    }
                    text(s.state)?
                }
            };
            let first = if s.first == rows::NOTHING_OPEN { None } else { Some(place(s.first)?) };
            Ok(StateAt { first, state: bytes_span, timers: Span::between(timers_at, out.timers.len()) })
        };
        let snapshots_at = out.snapshots.len();
        for s in answer.snapshots.of(snapshots)?.iter().take(turn.wanted.len as usize + 1) {
            let s = state(s, out)?;
            out.snapshots.push(s);
        }
        let end = state(&answer.end, out)?;
        answer.closings.of(closings)?;
        answer.rejections.of(rejections)?;
        let (mine, later) = counts.split_at(counts.partition_point(|c| c.row as usize <= n));
        counts = later;
        let counts_at = out.counts.len();
        for c in mine {
            out.counts.push(count(c, n)?);
        }
        out.turns.push(TurnResult {
            counts: Span::between(counts_at, out.counts.len()),
            fault: None,
            closings: Span { at: closings_at + answer.closings.at, len: answer.closings.len },
            snapshots: Span::between(snapshots_at, out.snapshots.len()),
            rejections: Span { at: rejections_at + answer.rejections.at, len: answer.rejections.len },
            end,
            open_fields: text(answer.open_fields)?,
        });
    }
    if counts.is_empty() { Ok(()) } else { Err(FrameError::Range) }
}

fn count(c: &rows::Count, turn: usize) -> Result<Count, FrameError> {
    let metric = u16::try_from(c.metric).ok().filter(|_| c.row as usize == turn).ok_or(FrameError::Range)?;
    let input = (c.input != rows::NO_INPUT).then_some(c.input);
    Ok(Count { input, at: EventTime::from_ms(c.at), metric, value: c.value })
}

fn place(n: i32) -> Result<Place, FrameError> {
    match n {
        rows::CARRIED => Ok(Place::Carried),
        n => u32::try_from(n).map(Place::Input).map_err(|_| FrameError::Range),
    }
}

fn reason(n: u32) -> Result<u16, FrameError> {
    match n {
        rows::REASON_END_OF_INPUT => Ok(END_OF_INPUT),
        rows::REASON_LIMIT => Ok(LIMIT),
        n => u16::try_from(n).ok().filter(|n| *n < LIMIT).ok_or(FrameError::Range),
    }
}

fn cause_of(c: &rows::Closing) -> Result<Cause, FrameError> {
    match c.cause {
        cause::INPUT => Ok(Cause::Input(c.index)),
        cause::TIMER => {
            let number = u8::try_from(c.index).map_err(|_| FrameError::Range)?;
            Ok(Cause::Timer(Timer { at: EventTime::from_ms(c.at), number }))
        }
        cause::END => Ok(Cause::End),
        _ => Err(FrameError::Range),
    }
}

/// How much of the answers stood before.
struct Lengths([usize; 7]);

impl Lengths {
    fn of(r: &Results) -> Lengths {
        Lengths([
            r.turns.len(),
            r.closings.len(),
            r.snapshots.len(),
            r.rejections.len(),
            r.counts.len(),
            r.timers.len(),
            r.bytes.len(),
        ])
    }
    fn restore(&self, r: &mut Results) {
        let [turns, closings, snapshots, rejections, counts, timers, bytes] = self.0;
        r.turns.truncate(turns);
        r.closings.truncate(closings);
        r.snapshots.truncate(snapshots);
        r.rejections.truncate(rejections);
        r.counts.truncate(counts);
        r.timers.truncate(timers);
        r.bytes.truncate(bytes);
    }
}
