//! One thread a sink: takes committed epochs in order, delivers them, keeps the cursor.

use crate::meters::{Activity, Laps};
use crate::progress::Progress;
use crossbeam_channel::Receiver;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tidemill_connect::Cursor;
use tidemill_connect::sink::Sink;
use tidemill_engine::outbox::Outbox;
use tidemill_engine::record::Kind;
use tidemill_store::log::{LogReader, RecordRef};

use super::RunError;
use super::patience::Patience;
use super::stop::Stop;

/// What an epoch sends, in memory.
#[derive(Debug)]
pub(crate) struct Sections {
    pub(crate) rows: Vec<u8>,
    /// Rows of earlier epochs, each with its revision.
    pub(crate) enriched: Vec<u8>,
    pub(crate) letters: Vec<u8>,
}

/// A committed epoch on its way to a sink.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub(crate) incarnation: u64,
    pub(crate) at: RecordRef,
    /// `None`: too much is waiting; read it from the log.
    pub(crate) sections: Option<Arc<Sections>>,
}

/// How far the sinks are, shared by their threads and the committer.
#[derive(Default, Debug)]
pub(crate) struct Cursors(Mutex<BTreeMap<String, Cursor>>);

impl Cursors {
    pub(crate) fn set(&self, sink: &str, cursor: Cursor) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(sink.to_owned(), cursor);
    }
    pub(crate) fn all(&self) -> BTreeMap<String, Cursor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One sink's thread: ends when the committer hangs up and everything is delivered.
pub(crate) struct Delivery<'a> {
    pub(crate) name: String,
    pub(crate) sink: Box<dyn Sink>,
    pub(crate) queue: Receiver<Committed>,
    /// Bytes committed and not delivered to this sink.
    pub(crate) waiting_bytes: Arc<AtomicU64>,
    pub(crate) log: LogReader,
    pub(crate) cursors: Arc<Cursors>,
    pub(crate) progress: &'a Progress,
    pub(crate) stop: &'a Stop<'a>,
}

/// How long a sink may go on delivering after the process was asked to stop; the rest is sent at the next start.
pub(crate) const DELIVERY_AFTER_STOP: Duration = Duration::from_secs(30);

impl Delivery<'_> {
    /// Whether everything was delivered; if not, the next start does it.
    pub(crate) fn run(mut self) -> Result<bool, RunError> {
        let mut stopping_since = None;
        let mut laps = Laps::begin(&self.progress.meters);
        while let Ok(committed) = self.queue.recv() {
            if self.stop.asked()
                && stopping_since.get_or_insert_with(Instant::now).elapsed() > DELIVERY_AFTER_STOP
            {
                return Ok(false);
            }
            let Some(cursor) = self.deliver(&committed)? else { return Ok(false) };
            self.cursors.set(&self.name, cursor);
            self.waiting_bytes.fetch_sub(committed.at.len, Ordering::Relaxed);
            laps.spent_on(Activity::Sink);
        }
        Ok(true)
    }

    /// Tries until the sink has it. `None`: it is away, and somebody wants the pipeline to end.
    fn deliver(&mut self, c: &Committed) -> Result<Option<Cursor>, RunError> {
        let read;
        let (rows, enriched, letters): (&[u8], &[u8], &[u8]) = match &c.sections {
            Some(s) => (&s.rows, &s.enriched, &s.letters),
            None => {
                read = self.log.read_sections(&c.at)?;
                let of = |kind| read.iter().find(|s| s.0 == kind).map_or(&[][..], |s| &s.1);
                (of(Kind::Rows), of(Kind::Enriched), of(Kind::Letters))
            }
        };
        let outbox = Outbox::new(c.incarnation, c.at.epoch, rows, letters).with_enriched(enriched);
        let ends = || self.stop.asked() || self.stop.suspended();
        Patience::with(&self.name, self.progress).until_done(ends, || self.sink.deliver(&outbox))
    }
}
