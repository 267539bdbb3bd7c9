//! Finding one record in the files of a source, decoded as a run decodes it.

use std::path::Path;

use tidemill_connect::ConnectError;
use tidemill_connect::format::time::{TimeError, TimeParser};
use tidemill_connect::format::{Decoder, Slots};
use tidemill_connect::source::{Block, Read};
use tidemill_engine::key::KeyForm;
use tidemill_engine::outbox::hex;
use xxhash_rust::xxh3::xxh3_128;

use crate::config::{KeySpec, Source};
use crate::run::ingest::{decoder, open_file, time_parser};
use crate::run::layout::{Id, Layout, missing_message};

/// More records with one id than this are not listed: the id is none.
pub(super) const FOUND_MAX: usize = 100;

/// What is looked for in a file.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// The record that starts at this byte, after decompression.
    Offset(u64),
    /// Records with this id: one text a field, or the hash of the content in hex.
    Id(Vec<String>),
}

/// A record that was found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Byte of its start, after decompression.
    pub(super) offset: u64,
    /// The record, lossy where it is not UTF-8.
    pub(super) raw: String,
    /// The event in it, or (reason, message) of why there is none.
    pub(super) event: Result<Event, (String, String)>,
}

/// What a run sees in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// As rows show it.
    pub(super) key: String,
    /// ms since the Unix epoch.
    pub(super) time_ms: i64,
}

/// Decodes records of one source.
struct Scanner {
    layout: Layout,
    decoder: Box<dyn Decoder>,
    clock: TimeParser,
    slots: Slots,
    form: KeyForm,
}

impl Scanner {
    fn new(source: &Source) -> Result<Scanner, String> {
        let layout = Layout::new(source);
        let plain = match source.key {
            KeySpec::One(_) | KeySpec::FirstOf(_) => KeyForm::One,
            KeySpec::Together(_) => KeyForm::Together,
        };
        Ok(Scanner {
            decoder: decoder(source, &layout.wanted)?,
            clock: time_parser(source)?,
            slots: Slots::default(),
            form: if source.key_hmac.is_some() { KeyForm::Hashed } else { plain },
            layout,
        })
    }

    /// Whether the record (decoded into the slots) has this id.
    fn has_id(&self, record: &[u8], id: &[String]) -> bool {
        if matches!(self.layout.id, Id::Content) {
            let hash = hex(&xxh3_128(record).to_be_bytes());
            return id.len() == 1 && id.iter().all(|i| i.eq_ignore_ascii_case(&hash));
        }
        let slots = self.layout.id.slots();
        !slots.is_empty()
            && slots.len() == id.len()
            && slots.iter().zip(id).all(|(slot, want)| self.slots.get(*slot, record) == want.as_bytes())
    }

    /// The event in a decoded record.
    fn event(&mut self, record: &[u8]) -> Result<Event, (String, String)> {
        let layout = &self.layout;
        let missing = layout.missing(&self.slots, std::iter::empty());
        if !missing.is_empty() {
            return Err(("missing_field".to_owned(), missing_message(&layout.names(&missing))));
        }
        let time = self.clock.parse(self.slots.get(layout.time, record)).map_err(|e| match e {
            TimeError::Malformed(why) => ("malformed_time".to_owned(), why),
            TimeError::OutOfRange => ("time_range".to_owned(), "outside the years 1 to 9999".to_owned()),
        })?;
        let mut key = Vec::new();
        layout.key_into(&self.slots, record, &mut key);
        Ok(Event { key: self.form.display(&key).into_owned(), time_ms: time.ms() })
    }

    /// What of a block is looked for.
    fn search(&mut self, block: &Block, target: &Target, found: &mut Vec<Found>) {
        for span in &block.spans {
            if let Target::Offset(offset) = target
                && span.offset != *offset
            {
                continue;
            }
            let record = block.record(*span);
            self.slots.reset(self.layout.wanted.len());
            let decoded = self.decoder.decode(record, &mut self.slots);
            if let Target::Id(id) = target
                && (span.is_cut() || decoded.is_err() || !self.has_id(record, id))
            {
                continue;
            }
            let event = match decoded {
                _ if span.is_cut() => {
                    Err(("record_too_long".to_owned(), format!("it has {} bytes", span.size)))
                }
                Ok(()) => self.event(record),
                Err(m) => Err((m.reason.to_owned(), m.message)),
            };
            let raw = String::from_utf8_lossy(record).into_owned();
            found.push(Found { offset: span.offset, raw, event });
        }
    }
}

/// The records of a file that are looked for. A file that fails midway is `Err` with what was found before.
pub(super) fn scan(
    source: &Source,
    path: &Path,
    target: &Target,
    found: &mut Vec<Found>,
) -> Result<(), ConnectError> {
    let mut scanner = Scanner::new(source).map_err(ConnectError::Config)?;
    let mut file = open_file(source, path, 0)?;
    let mut block = Block::default();
    let mut header_taken = false;
    loop {
        block.clear();
        if file.read(&mut block)? != Read::Data {
            return Ok(());
        }
        if !header_taken {
            header_taken = true;
            if let Some(header) = file.header() {
                scanner.decoder.header(header).map_err(|m| ConnectError::Failed(m.message))?;
            }
        }
        scanner.decoder.prepare(&mut block.spans.iter().map(|s| block.record(*s)))?;
        scanner.search(&block, target, found);
        let passed = match target {
            Target::Offset(offset) => block.next_offset > *offset,
            Target::Id(_) => false,
        };
        if passed || found.len() >= FOUND_MAX {
            return Ok(());
        }
    }
}
