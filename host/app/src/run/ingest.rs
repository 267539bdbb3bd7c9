//! From a block of records to rows for the lanes: decode, key, id, time, and the dead letters of what does not fit.
//!
//! One `Ingest` per partition, because a header belongs to a file. Nothing is allocated per event on the usual path.

use crate::config::plan::{Format, IdSpec, KeySpec, Source, TimeForm, TimeUnit};
use std::collections::BTreeMap;
use tidemill_connect::format::combined::CombinedDecoder;
use tidemill_connect::format::json::JsonDecoder;
use tidemill_connect::format::separated::SeparatedDecoder;
use tidemill_connect::format::time::{self, TimeError, TimeParser, TimeSpec};
use tidemill_connect::format::{Decoder, Kind, Malformed, Slots};
use tidemill_connect::source::{Block, Framing};
use tidemill_engine::event::{Position, RowHead, Rows, ext};
use tidemill_engine::key::{KeyHasher, key_group, key_hash, push_part};
use tidemill_engine::letter::RecordLetter;
use tidemill_engine::time::EventTime;
use xxhash_rust::xxh3::xxh3_128;

/// What the records of a batch are judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judge {
    /// Events before it are late (W − lateness).
    pub(crate) frontier: EventTime,
    /// Events after it are too far ahead of the clock.
    pub(crate) far_future: EventTime,
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
    /// Greatest time of the rows.
    pub(crate) max: EventTime,
}

impl Intake {
    pub(crate) fn new(lanes: usize) -> Intake {
        Intake {
            lanes: (0..lanes).map(|_| Rows::default()).collect(),
            records: 0,
            events: 0,
            max: EventTime::BEGINNING,
        }
    }
    pub(crate) fn clear(&mut self) {
        self.lanes.iter_mut().for_each(Rows::clear);
        (self.records, self.events, self.max) = (0, 0, EventTime::BEGINNING);
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
    wanted: Vec<String>,
    key: Vec<usize>,
    key_alone: bool,
    hasher: Option<KeyHasher>,
    id: Id,
    time: usize,
    fields: Vec<usize>,
    lane_of_group: Vec<u8>,
    scratch: Vec<u8>,
}

enum Id {
    Position,
    Content,
    Field(usize),
    Fields(Vec<usize>),
}

/// How the records of a format stand in the bytes, and whether a header comes first.
pub(crate) fn framing(format: Format) -> (Framing, bool) {
    match format {
        Format::Json | Format::Combined => (Framing::Lines, false),
        Format::Csv => (Framing::Csv, true),
        Format::Tsv => (Framing::Lines, true),
    }
}

/// Decodes the wanted fields of a format.
pub(crate) fn decoder(format: Format, wanted: &[String]) -> Box<dyn Decoder> {
    match format {
        Format::Json => Box::new(JsonDecoder::new(wanted)),
        Format::Csv => Box::new(SeparatedDecoder::csv(wanted)),
        Format::Tsv => Box::new(SeparatedDecoder::tsv(wanted)),
        Format::Combined => Box::new(CombinedDecoder::new(wanted)),
    }
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
    /// For one partition of a source; `fields` are those the rule asks for, in its order.
    pub(crate) fn new(
        source: &Source,
        partition: &str,
        numbers: (u32, u32),
        fields: &[String],
        lanes: usize,
    ) -> Result<Ingest, String> {
        let mut wanted: Vec<String> = Vec::new();
        let mut slot = |path: &str| {
            wanted.iter().position(|w| w == path).unwrap_or_else(|| {
                wanted.push(path.to_owned());
                wanted.len() - 1
            })
        };
        let (key, key_alone) = match &source.key {
            KeySpec::One(p) => (vec![slot(source.path_of(p))], true),
            KeySpec::Together(all) => (all.iter().map(|p| slot(source.path_of(p))).collect(), false),
        };
        let time = slot(source.path_of(&source.time.field));
        let id = match &source.id {
            IdSpec::Position => Id::Position,
            IdSpec::Content => Id::Content,
            IdSpec::Fields(all) if all.len() == 1 => Id::Field(slot(source.path_of(&all[0]))),
            IdSpec::Fields(all) => Id::Fields(all.iter().map(|p| slot(source.path_of(p))).collect()),
        };
        let fields = fields.iter().map(|f| slot(source.path_of(f))).collect();
        let groups = lane_groups(lanes);
        let lane_of_group = (0..tidemill_engine::bounds::KEY_GROUPS)
            .map(|g| groups.iter().position(|r| r.contains(&g)).unwrap_or(0) as u8)
            .collect();
        Ok(Ingest {
            source: source.name.clone(),
            partition: partition.to_owned(),
            numbers,
            decoder: decoder(source.format, &wanted),
            clock: time_parser(source)?,
            slots: Slots::default(),
            wanted,
            key,
            key_alone,
            hasher: source.key_hmac.as_ref().and_then(|s| KeyHasher::new(s.reveal().as_bytes())),
            id,
            time,
            fields,
            lane_of_group,
            scratch: Vec::new(),
        })
    }

    /// Takes the partition's header record.
    pub(crate) fn header(&mut self, record: &[u8]) -> Result<(), Malformed> {
        self.decoder.header(record)
    }

    /// Turns every record of the block into a row or a dead letter.
    pub(crate) fn take(&mut self, block: &Block, judge: Judge, out: &mut Intake, letters: &mut Letters) {
        for span in &block.spans {
            out.records += 1;
            let record = block.record(*span);
            let position =
                Position { source: self.numbers.0, partition: self.numbers.1, offset: span.offset };
            match self.row(record, position, (span.at, span.len), judge, out) {
                Ok(()) => {}
                Err(refusal) => self.refuse(&refusal, record, position, letters),
            }
        }
    }

    /// The time of the first event that decodes, for reading ahead.
    pub(crate) fn first_time(&mut self, block: &Block) -> Option<EventTime> {
        block.spans.iter().find_map(|s| {
            let record = block.record(*s);
            self.slots.reset(self.wanted.len());
            self.decoder.decode(record, &mut self.slots).ok()?;
            self.clock.parse(self.slots.get(self.time, record)).ok().filter(|t| t.is_valid())
        })
    }

    fn row(
        &mut self,
        record: &[u8],
        position: Position,
        raw: (u32, u32),
        judge: Judge,
        out: &mut Intake,
    ) -> Result<(), Refusal> {
        self.slots.reset(self.wanted.len());
        self.decoder.decode(record, &mut self.slots).map_err(Refusal::Malformed)?;
        self.check_missing()?;
        let time = match self.clock.parse(self.slots.get(self.time, record)) {
            Ok(t) if t.is_valid() => t,
            Ok(_) | Err(TimeError::OutOfRange) => return Err(Refusal::TimeRange),
            Err(TimeError::Malformed(why)) => return Err(Refusal::Time(why)),
        };
        if time < judge.frontier {
            return Err(Refusal::Late(time, judge.frontier));
        }
        if time > judge.far_future {
            return Err(Refusal::FarFuture(time));
        }
        self.key_into_scratch(record);
        let hash = key_hash(&self.scratch);
        let lane = self.lane_of_group[key_group(hash) as usize] as usize;
        let rows = &mut out.lanes[lane];
        let key_at = rows.bytes.len();
        rows.bytes.extend_from_slice(&self.scratch);
        let ext_at = rows.bytes.len();
        write_ext(&self.id, &self.fields, &self.slots, record, &mut rows.bytes);
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

    fn required(&self) -> impl Iterator<Item = usize> {
        let id: &[usize] = match &self.id {
            Id::Position | Id::Content => &[],
            Id::Field(f) => std::slice::from_ref(f),
            Id::Fields(f) => f,
        };
        self.key.iter().chain(id).chain(std::slice::from_ref(&self.time)).copied()
    }

    fn check_missing(&self) -> Result<(), Refusal> {
        if self.required().all(|i| self.slots.kind(i) != Kind::Missing) {
            return Ok(());
        }
        let mut missing: Vec<usize> =
            self.required().filter(|i| self.slots.kind(*i) == Kind::Missing).collect();
        missing.dedup();
        Err(Refusal::Missing(missing))
    }

    fn key_into_scratch(&mut self, record: &[u8]) {
        self.scratch.clear();
        if self.key_alone {
            self.scratch.extend_from_slice(self.slots.get(self.key[0], record));
        } else {
            for i in &self.key {
                push_part(&mut self.scratch, self.slots.get(*i, record));
            }
        }
        if let Some(h) = &self.hasher {
            let hashed = h.hash(&self.scratch);
            self.scratch.clear();
            self.scratch.extend_from_slice(&hashed);
        }
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
            Refusal::Missing(at) => {
                names = at.iter().map(|i| self.wanted[*i].as_str()).collect();
                ("missing_field", "decode", format!("absent, null or empty: {}", names.join(", ")))
            }
            Refusal::Time(why) => {
                names.push(&self.wanted[self.time]);
                ("malformed_time", "decode", why.clone())
            }
            Refusal::TimeRange => {
                names.push(&self.wanted[self.time]);
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

fn write_ext(id: &Id, fields: &[usize], slots: &Slots, record: &[u8], out: &mut Vec<u8>) {
    match id {
        Id::Position if fields.is_empty() => return,
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
    }
    for f in fields {
        let value = match slots.kind(*f) {
            Kind::Missing => ext::Value::Missing,
            _ => ext::Value::Text(slots.get(*f, record)),
        };
        ext::push_field(out, value);
    }
}

enum Refusal {
    Malformed(Malformed),
    Missing(Vec<usize>),
    Time(String),
    TimeRange,
    Late(EventTime, EventTime),
    FarFuture(EventTime),
}
