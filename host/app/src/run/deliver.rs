//! One thread a sink: takes committed epochs in order, delivers them, keeps the cursor.

use crate::journal::Level;
use crate::meters::{Activity, Laps};
use crate::progress::Progress;
use crossbeam_channel::Receiver;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tidemill_connect::Cursor;
use tidemill_connect::sink::Sink;
use tidemill_engine::outbox::Outbox;
use tidemill_engine::record::Kind;
use tidemill_store::log::{LogReader, RecordRef};

use super::RunError;
use super::patience::Patience;
use super::remote::Gate;
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

/// How far the sinks are, and what they have refused on the way, shared by their threads and the committer.
#[derive(Default, Debug)]
pub(crate) struct Cursors {
    stand: Mutex<Stand>,
    moved: Condvar,
}

#[derive(Default, Debug)]
struct Stand {
    cursors: BTreeMap<String, Cursor>,
    /// Dead letters of rows before these cursors that no epoch has yet.
    refused: Vec<u8>,
    /// Sinks that deliver no more.
    left: BTreeSet<String>,
}

impl Cursors {
    fn stand(&self) -> MutexGuard<'_, Stand> {
        self.stand.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// A sink has come this far, and has refused these rows.
    pub(crate) fn set(&self, sink: &str, cursor: Cursor, refused: &[u8]) {
        let mut stand = self.stand();
        stand.cursors.insert(sink.to_owned(), cursor);
        stand.refused.extend_from_slice(refused);
    }
    /// For an epoch that is to have both: a letter is kept with the cursor that has passed its row, or neither is.
    pub(crate) fn take(&self) -> (BTreeMap<String, Cursor>, Vec<u8>) {
        let mut stand = self.stand();
        (stand.cursors.clone(), std::mem::take(&mut stand.refused))
    }
    fn leave(&self, sink: &str) {
        self.stand().left.insert(sink.to_owned());
        self.moved.notify_all();
    }
    /// Called after what is waited for has changed.
    fn has_moved(&self) {
        // Whoever has looked already waits by now, and hears it.
        drop(self.stand());
        self.moved.notify_all();
    }
    /// Waits until something is refused that no epoch has, or nothing more can be: these sinks have delivered all or have left.
    /// Whether something is.
    pub(crate) fn wait_for_refused(&self, sinks: &[(&str, &AtomicU64)]) -> bool {
        let may_come = |stand: &Stand| {
            sinks
                .iter()
                .any(|(name, waiting)| waiting.load(Ordering::Relaxed) > 0 && !stand.left.contains(*name))
        };
        let waits = |stand: &mut Stand| stand.refused.is_empty() && may_come(stand);
        let stand = self.moved.wait_while(self.stand(), waits).unwrap_or_else(PoisonError::into_inner);
        !stand.refused.is_empty()
    }
}

/// One sink's thread: ends when the committer hangs up and everything is delivered.
pub(crate) struct Delivery<'a> {
    pub(crate) name: String,
    pub(crate) sink: Box<dyn Sink>,
    pub(crate) queue: Receiver<Committed>,
    /// Where it waits until epochs may leave, if they are not to as soon as they are durable here.
    pub(crate) gate: Option<Arc<Gate>>,
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
            if self.gate.as_ref().is_some_and(|gate| !gate.wait(committed.at.epoch)) {
                return Ok(false);
            }
            let Some(cursor) = self.deliver(&committed)? else { return Ok(false) };
            let refused = self.sink.take_refused();
            self.say_refused(&refused, committed.at.epoch);
            self.cursors.set(&self.name, cursor, &refused);
            self.waiting_bytes.fetch_sub(committed.at.len, Ordering::Relaxed);
            self.cursors.has_moved();
            laps.spent_on(Activity::Sink);
        }
        Ok(true)
    }

    fn say_refused(&self, refused: &[u8], epoch: u64) {
        let rows = count(refused);
        if rows > 0 {
            let text = format!(
                "sink `{}` has refused {rows} rows of epoch {epoch}: they are dead letters, all others are there",
                self.name
            );
            self.progress.tell(Level::Warn, &text);
        }
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

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        self.cursors.leave(&self.name);
    }
}

/// How many dead letters these are.
pub(crate) fn count(letters: &[u8]) -> u64 {
    letters.iter().filter(|b| **b == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_waited_for_as_long_as_something_may_be() {
        let cursors = Cursors::default();
        let waiting = AtomicU64::new(5);
        let cursor = Cursor { epoch: 1, length: 1 };
        assert!(!cursors.wait_for_refused(&[]), "nobody refuses anything");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| cursors.wait_for_refused(&[("a", &waiting)]));
            cursors.set("a", cursor, b"{}\n");
            cursors.has_moved();
            assert!(waiter.join().unwrap());
            let (all, letters) = cursors.take();
            assert_eq!((all["a"], count(&letters)), (cursor, 1));
            assert_eq!(count(&cursors.take().1), 0, "told once");
            // It fails: nothing more will come.
            let waiter = scope.spawn(|| cursors.wait_for_refused(&[("a", &waiting)]));
            cursors.leave("a");
            assert!(!waiter.join().unwrap());
        });
        let done = AtomicU64::new(0);
        assert!(!cursors.wait_for_refused(&[("b", &done)]), "it has delivered all");
    }
}
