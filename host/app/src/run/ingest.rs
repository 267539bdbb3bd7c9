//! From a block of records to rows for the lanes: decode, key, id, time, and the dead letters of what does not fit.
//!
//! One `Ingest` per partition, because a header belongs to a file. Nothing is allocated per event on the usual path.

use super::layout::{Id, Layout, missing_message};
use crate::config::plan::{Format, Source, TimeForm, TimeUnit};
use crate::config::schema::{self, Schema, Written};
use crate::plugin::validate::Validators;
use crate::schedule::Declared;
use std::collections::BTreeMap;
use std::path::Path;
use tidemill_connect::ConnectError;
use tidemill_connect::format::avro::AvroDecoder;
use tidemill_connect::format::avro::registry::{Folder, Registry, Schemas};
use tidemill_connect::format::combined::CombinedDecoder;
use tidemill_connect::format::json::JsonDecoder;
use tidemill_connect::format::protobuf::ProtobufDecoder;
use tidemill_connect::format::separated::SeparatedDecoder;
use tidemill_connect::format::time::{self, TimeError, TimeParser, TimeSpec};
use tidemill_connect::format::{Decoder, Kind, Malformed, Slots};
use tidemill_connect::source::container::ContainerPartition;
use tidemill_connect::source::file::FilePartition;
use tidemill_connect::source::{Block, Framing, Partition};
use tidemill_engine::dedup::Dedup;
use tidemill_engine::event::{Position, RowHead, Rows, ext};
use tidemill_engine::key::{key_group, key_hash, push_part};
use tidemill_engine::letter::RecordLetter;
use tidemill_engine::time::EventTime;
use tidemill_sandbox::FieldType;
use xxhash_rust::xxh3::xxh3_128;

/// What the records of a batch are judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judge {
    /// Events before it are late (W − lateness).
    pub(crate) frontier: EventTime,
    /// Events after it are too far ahead of the clock.
    pub(crate) far_future: EventTime,
}

impl Judge {
    fn refuses(self, time: EventTime) -> Option<Refusal> {
        if time < self.frontier {
            return Some(Refusal::Late(time, self.frontier));
        }
        (time > self.far_future).then_some(Refusal::FarFuture(time))
    }
}

/// What became of the records of a block.
#[derive(Debug)]
pub(crate) struct Intake {
    /// Rows by lane.
    pub(crate) lanes: Vec<Rows>,
    /// Records read.
    pub(crate) records: u64,
    /// Rows made.
    pub(crate) events: u64,
    /// Copies of events that were folded a while ago.
    pub(crate) copies: u64,
    /// Greatest time of the rows.
    pub(crate) max: EventTime,
}

impl Intake {
    pub(crate) fn new(lanes: usize) -> Intake {
        Intake {
            lanes: (0..lanes).map(|_| Rows::default()).collect(),
            records: 0,
            events: 0,
            copies: 0,
            max: EventTime::BEGINNING,
        }
    }
    pub(crate) fn clear(&mut self) {
        self.lanes.iter_mut().for_each(Rows::clear);
        (self.records, self.events, self.copies, self.max) = (0, 0, 0, EventTime::BEGINNING);
    }
}

/// Dead letters since the last barrier.
#[derive(Default, Debug)]
pub(crate) struct Letters {
    /// JSON lines.
    pub(crate) lines: Vec<u8>,
    /// Counts by reason, since the pipeline's first start.
    pub(crate) by_reason: BTreeMap<String, u64>,
}

impl Letters {
    fn write(&mut self, letter: &RecordLetter<'_>) {
        letter.write(&mut self.lines);
        if let Some(n) = self.by_reason.get_mut(letter.reason) {
            *n += 1;
        } else {
            self.by_reason.insert(letter.reason.to_owned(), 1);
        }
    }
    /// How many letters in all.
    pub(crate) fn total(&self) -> u64 {
        self.by_reason.values().sum()
    }
}

/// See the module's documentation.
pub(crate) struct Ingest {
    source: String,
    partition: String,
    numbers: (u32, u32),
    decoder: Box<dyn Decoder>,
    clock: TimeParser,
    slots: Slots,
    layout: Layout,
    fields: Vec<(usize, Declared)>,
    lane_of_group: Vec<u8>,
    scratch: Vec<u8>,
    dedup: Option<Dedup>,
    dedup_ms: i64,
    header: Option<Vec<u8>>,
}

/// How the records of a format stand in the bytes, and whether a header comes first.
pub(crate) fn framing(format: Format) -> (Framing, bool) {
    match format {
        // Of container files their own way, which needs none.
        Format::Avro | Format::Protobuf => (Framing::Delimited, false),
        Format::Json | Format::Combined => (Framing::Lines, false),
        Format::Csv => (Framing::Csv, true),
        Format::Tsv => (Framing::Lines, true),
    }
}

/// Opens a file of a source that ends, to be read from a position on.
pub(crate) fn open_file(
    source: &Source,
    path: &Path,
    offset: u64,
) -> Result<Box<dyn Partition>, ConnectError> {
    if source.schema.in_files() {
        return Ok(Box::new(ContainerPartition::open(path, offset)?));
    }
    let (how, has_header) = framing(source.format);
    Ok(Box::new(FilePartition::open(path, how, has_header, offset, false)?))
}

/// Decodes the wanted fields of a source's format.
///
/// # Errors
/// What is wrong with the schemas that it names.
pub(crate) fn decoder(source: &Source, wanted: &[String]) -> Result<Box<dyn Decoder>, String> {
    match &source.schema {
        Schema::Avro(avro) => return avro_decoder(avro, wanted),
        Schema::Protobuf(b) => {
            let set = schema::descriptors(&b.descriptors.0)?;
            return Ok(Box::new(ProtobufDecoder::new(wanted, set, &b.message.0, b.framed)?));
        }
        Schema::None => {}
    }
    Ok(match source.format {
        Format::Csv => Box::new(SeparatedDecoder::csv(wanted)),
        Format::Tsv => Box::new(SeparatedDecoder::tsv(wanted)),
        Format::Combined => Box::new(CombinedDecoder::new(wanted)),
        // The two with a schema are dealt with.
        Format::Json | Format::Avro | Format::Protobuf => Box::new(JsonDecoder::new(wanted)),
    })
}

fn avro_decoder(avro: &schema::Avro, wanted: &[String]) -> Result<Box<dyn Decoder>, String> {
    let reader = avro.reader.as_ref().map(|(path, _)| schema::reader(path)).transpose()?;
    let schemas: Box<dyn Schemas> = match &avro.from {
        Written::Files => return Ok(Box::new(AvroDecoder::of_files(wanted, reader))),
        Written::Folder(folder, _) => Box::new(Folder::new(folder.clone())),
        Written::Registry { url, login } => {
            let login = login.as_ref().map(|(user, password)| (user.as_str(), password.reveal()));
            Box::new(Registry::new(url, login).map_err(|e| e.to_string())?)
        }
    };
    Ok(Box::new(AvroDecoder::framed(wanted, reader, schemas)))
}

/// Reads event times as the source writes them.
pub(crate) fn time_parser(source: &Source) -> Result<TimeParser, String> {
    let unit = |u| match u {
        TimeUnit::S => time::TimeUnit::Seconds,
        TimeUnit::Ms => time::TimeUnit::Millis,
        TimeUnit::Us => time::TimeUnit::Micros,
    };
    match &source.time.form {
        TimeForm::Standard if source.format == Format::Combined => Ok(TimeParser::combined()),
        TimeForm::Standard => TimeParser::new(&TimeSpec { unit: None, format: None, zone: None }),
        TimeForm::Unix(u) => TimeParser::new(&TimeSpec { unit: Some(unit(*u)), format: None, zone: None }),
        TimeForm::Text { format, zone } => {
            TimeParser::new(&TimeSpec { unit: None, format: format.clone(), zone: Some(zone.clone()) })
        }
    }
}

/// Which lane owns each key group: contiguous ranges of equal size.
pub(crate) fn lane_groups(lanes: usize) -> Vec<std::ops::Range<u32>> {
    let groups = tidemill_engine::bounds::KEY_GROUPS;
    let n = lanes as u32;
    (0..n).map(|i| groups * i / n..groups * (i + 1) / n).collect()
}

impl Ingest {
    /// For one partition of a source; `fields` are those that the stages ask for, in the order of the extension.
    pub(crate) fn new(
        source: &Source,
        partition: &str,
        numbers: (u32, u32),
        fields: &[Declared],
        lanes: usize,
    ) -> Result<Ingest, String> {
        let mut layout = Layout::new(source);
        let fields = fields.iter().map(|f| (layout.slot(source, &f.name), f.clone())).collect();
        let groups = lane_groups(lanes);
        let lane_of_group = (0..tidemill_engine::bounds::KEY_GROUPS)
            .map(|g| groups.iter().position(|r| r.contains(&g)).unwrap_or(0) as u8)
            .collect();
        Ok(Ingest {
            source: source.name.clone(),
            partition: partition.to_owned(),
            numbers,
            decoder: decoder(source, &layout.wanted)?,
            clock: time_parser(source)?,
            slots: Slots::default(),
            layout,
            fields,
            lane_of_group,
            scratch: Vec::new(),
            dedup: (source.dedup_ms > 0).then(Dedup::default),
            dedup_ms: source.dedup_ms,
            header: None,
        })
    }

    /// Decodes other fields from now on, in the order of the extension.
    ///
    /// # Errors
    /// If the format cannot.
    pub(crate) fn put_fields(&mut self, source: &Source, fields: &[Declared]) -> Result<(), String> {
        let mut layout = Layout::new(source);
        self.fields = fields.iter().map(|f| (layout.slot(source, &f.name), f.clone())).collect();
        self.decoder = decoder(source, &layout.wanted)?;
        self.layout = layout;
        match &self.header {
            Some(header) => self.decoder.header(header).map_err(|m| m.message),
            None => Ok(()),
        }
    }

    /// Gets hold of what the block's records need to be decoded: before [`Self::take`] and [`Self::first_time`].
    ///
    /// # Errors
    /// `Failed`: it cannot be had now.
    pub(crate) fn prepare(&mut self, block: &Block) -> Result<(), ConnectError> {
        self.decoder.prepare(&mut block.spans.iter().filter(|s| !s.is_cut()).map(|s| block.record(*s)))
    }

    /// Takes the partition's header record.
    pub(crate) fn header(&mut self, record: &[u8]) -> Result<(), Malformed> {
        self.header = Some(record.to_vec());
        self.decoder.header(record)
    }

    /// Turns every record of the block into a row or a dead letter. Where there are validators they see an event first, however
    /// late it comes: only what they accept is an event, and late.
    ///
    /// # Errors
    /// If a validator cannot be called.
    pub(crate) fn take(
        &mut self,
        block: &Block,
        judge: Judge,
        validators: &mut Validators,
        out: &mut Intake,
        letters: &mut Letters,
    ) -> Result<(), String> {
        let from: Vec<usize> = out.lanes.iter().map(|rows| rows.heads.len()).collect();
        let max_before = out.max;
        // A copy can only be told from a late event by its key and id.
        let at_once = (validators.is_empty() && self.dedup.is_none()).then_some(judge);
        for span in &block.spans {
            out.records += 1;
            let record = block.record(*span);
            let position =
                Position { source: self.numbers.0, partition: self.numbers.1, offset: span.offset };
            if span.is_cut() {
                self.refuse(&Refusal::TooLong(span.size), record, position, letters);
                continue;
            }
            match self.row(record, position, (span.at, span.len), at_once, out) {
                Ok(()) => {}
                Err(refusal) => self.refuse(&refusal, record, position, letters),
            }
        }
        let mut rejected = 0;
        validators.judge(&mut out.lanes, &from, |head, verdict| {
            rejected += 1;
            let at = head.raw_at as usize;
            letters.write(&RecordLetter {
                reason: &verdict.why.reason,
                stage: "validate",
                source: &self.source,
                partition: &self.partition,
                position: Some(head.position),
                message: &verdict.why.message,
                plugin: Some(&verdict.by.version),
                digest: Some(&verdict.by.digest),
                time_ms: Some(head.time.ms()),
                raw: block.bytes.get(at..at + head.raw_len as usize),
                ..RecordLetter::default()
            });
        })?;
        if at_once.is_none() {
            rejected += self.refuse_by_time(block, judge, &from, out, letters);
        }
        if rejected > 0 {
            // What is not an event moves no watermark.
            let kept = out.lanes.iter().zip(&from).flat_map(|(rows, from)| &rows.heads[*from..]);
            out.max = kept.map(|h| h.time).fold(max_before, EventTime::max);
            out.events -= rejected;
        }
        if let Some(dedup) = &mut self.dedup {
            dedup.forget(judge.frontier.minus(self.dedup_ms));
            for (rows, from) in out.lanes.iter().zip(&from) {
                for head in &rows.heads[*from..] {
                    let id = ext::id(rows.ext(head));
                    dedup.accepted(rows.key(head), head.time, id.unwrap_or(&head.position.id_bytes()));
                }
            }
        }
        Ok(())
    }

    /// Takes out the rows from `from` on whose time is not accepted; returns how many.
    fn refuse_by_time(
        &self,
        block: &Block,
        judge: Judge,
        from: &[usize],
        out: &mut Intake,
        letters: &mut Letters,
    ) -> u64 {
        let mut refused = 0;
        for (rows, from) in out.lanes.iter_mut().zip(from) {
            let mut row = 0;
            let Rows { heads, bytes } = rows;
            heads.retain(|head| {
                row += 1;
                let Some(why) = judge.refuses(head.time).filter(|_| row > *from) else { return true };
                refused += 1;
                if self.is_copy(head, bytes) {
                    out.copies += 1;
                    return false;
                }
                let at = head.raw_at as usize;
                let record = block.bytes.get(at..at + head.raw_len as usize).unwrap_or_default();
                self.refuse(&why, record, head.position, letters);
                false
            });
        }
        refused
    }

    /// Whether an event is a copy of one that was accepted a while ago.
    fn is_copy(&self, head: &RowHead, bytes: &[u8]) -> bool {
        let Some(dedup) = &self.dedup else { return false };
        let (key_at, ext_at) = (head.key_at as usize, (head.key_at + head.key_len) as usize);
        let id = ext::id(&bytes[ext_at..ext_at + head.ext_len as usize]);
        dedup.knows(&bytes[key_at..ext_at], head.time, id.unwrap_or(&head.position.id_bytes()))
    }

    /// The time of the first event that decodes, for reading ahead.
    pub(crate) fn first_time(&mut self, block: &Block) -> Option<EventTime> {
        block.spans.iter().filter(|s| !s.is_cut()).find_map(|s| {
            let record = block.record(*s);
            self.slots.reset(self.layout.wanted.len());
            self.decoder.decode(record, &mut self.slots).ok()?;
            self.clock.parse(self.slots.get(self.layout.time, record)).ok().filter(|t| t.is_valid())
        })
    }

    fn row(
        &mut self,
        record: &[u8],
        position: Position,
        raw: (u32, u32),
        judge: Option<Judge>,
        out: &mut Intake,
    ) -> Result<(), Refusal> {
        self.slots.reset(self.layout.wanted.len());
        self.decoder.decode(record, &mut self.slots).map_err(Refusal::Malformed)?;
        self.check_missing()?;
        let time = match self.clock.parse(self.slots.get(self.layout.time, record)) {
            Ok(t) if t.is_valid() => t,
            Ok(_) | Err(TimeError::OutOfRange) => return Err(Refusal::TimeRange),
            Err(TimeError::Malformed(why)) => return Err(Refusal::Time(why)),
        };
        if let Some(why) = judge.and_then(|j| j.refuses(time)) {
            return Err(why);
        }
        self.layout.key_into(&self.slots, record, &mut self.scratch);
        let hash = key_hash(&self.scratch);
        let lane = self.lane_of_group[key_group(hash) as usize] as usize;
        let rows = &mut out.lanes[lane];
        let key_at = rows.bytes.len();
        rows.bytes.extend_from_slice(&self.scratch);
        let ext_at = rows.bytes.len();
        let fits = write_ext(&self.layout.id, &self.fields, &self.slots, record, &mut rows.bytes);
        if !fits {
            rows.bytes.truncate(key_at);
            return Err(Refusal::WrongType);
        }
        rows.heads.push(RowHead {
            key_hash: hash,
            time,
            position,
            key_at: key_at as u32,
            key_len: (ext_at - key_at) as u32,
            ext_len: (rows.bytes.len() - ext_at) as u32,
            raw_at: raw.0,
            raw_len: raw.1,
        });
        out.events += 1;
        out.max = out.max.max(time);
        Ok(())
    }

    fn check_missing(&self) -> Result<(), Refusal> {
        let declared = self.fields.iter().filter(|(_, f)| f.required).map(|(slot, _)| *slot);
        let missing = self.layout.missing(&self.slots, declared);
        if missing.is_empty() { Ok(()) } else { Err(Refusal::Missing(missing)) }
    }

    #[cold]
    fn refuse(&self, why: &Refusal, record: &[u8], position: Position, letters: &mut Letters) {
        let mut letter = RecordLetter {
            source: &self.source,
            partition: &self.partition,
            position: Some(position),
            raw: Some(record),
            ..RecordLetter::default()
        };
        let text;
        let mut names: Vec<&str> = Vec::new();
        (letter.reason, letter.stage, text) = match why {
            Refusal::Malformed(m) => (m.reason, "decode", m.message.clone()),
            Refusal::TooLong(bytes) => {
                letter.raw_bytes = *bytes;
                let max = tidemill_connect::source::framing::RECORD_BYTES_MAX;
                let text = format!("the record has {bytes} bytes, and none longer than {max} is decoded");
                ("record_too_long", "decode", text)
            }
            Refusal::Missing(at) => {
                names = self.layout.names(at);
                ("missing_field", "decode", missing_message(&names))
            }
            Refusal::Time(why) => {
                names.push(&self.layout.wanted[self.layout.time]);
                ("malformed_time", "decode", why.clone())
            }
            Refusal::WrongType => {
                let wrong = self.fields.iter().filter(|(slot, f)| {
                    value(f.kind, self.slots.kind(*slot), self.slots.get(*slot, record)).is_none()
                });
                names = wrong.map(|(slot, _)| self.layout.wanted[*slot].as_str()).collect();
                ("wrong_type", "decode", format!("of another type than declared: {}", names.join(", ")))
            }
            Refusal::TimeRange => {
                names.push(&self.layout.wanted[self.layout.time]);
                ("time_range", "decode", "the event time lies outside the years 1 to 9999".into())
            }
            Refusal::FarFuture(t) => {
                letter.time_ms = Some(t.ms());
                ("far_future", "time", "the event is further ahead of the clock than `far_future`".into())
            }
            Refusal::Late(t, b) => {
                letter.time_ms = Some(t.ms());
                let by = b.ms().saturating_sub(t.ms());
                ("late", "time", format!("late by {by} ms, or a copy of an event already folded"))
            }
        };
        letter.message = &text;
        letter.fields = &names;
        letters.write(&letter);
    }
}

/// Writes id and declared fields; false if one holds something else than was declared.
fn write_ext(id: &Id, fields: &[(usize, Declared)], slots: &Slots, record: &[u8], out: &mut Vec<u8>) -> bool {
    match id {
        Id::Position if fields.is_empty() => return true,
        Id::Position => ext::push_id(out, None),
        Id::Content => ext::push_id(out, Some(&xxh3_128(record).to_be_bytes())),
        Id::Field(f) => ext::push_id(out, Some(slots.get(*f, record))),
        Id::Fields(all) => {
            let len: usize = all.iter().map(|f| 4 + slots.get(*f, record).len()).sum();
            out.extend_from_slice(&(len as u32).to_le_bytes());
            for f in all {
                push_part(out, slots.get(*f, record));
            }
        }
        Id::FirstOf(all) => {
            let first = all.iter().find(|f| slots.kind(**f) != Kind::Missing);
            ext::push_id(out, first.map(|f| slots.get(*f, record)));
        }
    }
    for (slot, declared) in fields {
        match value(declared.kind, slots.kind(*slot), slots.get(*slot, record)) {
            Some(value) => ext::push_field(out, value),
            None => return false,
        }
    }
    true
}

/// A field's value as it was declared; `None` if the record holds something else.
fn value(declared: FieldType, kind: Kind, text: &[u8]) -> Option<ext::Value<'_>> {
    let parsed = || std::str::from_utf8(text).ok();
    match (declared, kind) {
        (_, Kind::Missing) => Some(ext::Value::Missing),
        // Plugins are promised UTF-8.
        (FieldType::Text, _) | (FieldType::String, Kind::Text) => parsed().map(|_| ext::Value::Text(text)),
        // A source without types (CSV, logs) has all values as text.
        (FieldType::Integer, Kind::Number | Kind::Text) => {
            parsed()?.parse().ok().filter(|n| *n != i64::MIN).map(ext::Value::Integer)
        }
        (FieldType::Number, Kind::Number | Kind::Text) => {
            parsed()?.parse().ok().filter(|n: &f64| n.is_finite()).map(ext::Value::Number)
        }
        (FieldType::Boolean, Kind::Bool | Kind::Text) => parsed()?.parse().ok().map(ext::Value::Boolean),
        _ => None,
    }
}

enum Refusal {
    Malformed(Malformed),
    /// Of so many bytes.
    TooLong(u64),
    Missing(Vec<usize>),
    WrongType,
    Time(String),
    TimeRange,
    Late(EventTime, EventTime),
    FarFuture(EventTime),
}

#[cfg(test)]
#[path = "ingest_tests.rs"]
mod tests;
