//! Epochs that leave only once an object store has them too (`release_after = "remote"`): a thread that brings them there, and a gate
//! that the sinks wait at.
//!
//! ```text
//! committer ──what is durable here──▶ shipper ──records──▶ object store
//!     └───────committed epochs──────▶ sinks, each at the gate until the shipper has passed
//! ```
//!
//! Invariants: an epoch passes the gate after everything up to it is in the store, and the store has been asked since whether this
//! data directory still counts; what an epoch has read of an ingest log is deleted only then. A store that is slow holds the sinks
//! up, and what waits for sinks holds the reader up: nothing is kept in memory for it but where records stand.

use super::inlets::Inlets;
use super::patience::Patience;
use super::stop::Stop;
use super::{Job, RunError};
use crate::config::plan::Pipeline;
use crossbeam_channel::Receiver;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tidemill_connect::ConnectError;
use tidemill_store::log::{LogReader, RecordRef};

/// Records of one object: while one is written, epochs come together for the next, and this is where it ends. One epoch may be
/// longer.
const OBJECT_BYTES_MAX: u64 = 8 << 20;

/// A store that keeps what the log keeps.
pub(crate) trait Elsewhere: Sync {
    /// Sees that there is something in the store to go on from; answers up to which epoch it has the pipeline.
    ///
    /// # Errors
    /// `Unavailable` if it may work later, `Conflict` if another data directory has taken the place of this one.
    fn begin(&self, of: &Whose<'_>) -> Result<u64, ConnectError>;

    /// Keeps the records of epochs, and before them what clients have posted and epochs may read; durable when it returns, and
    /// fine if it has them.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    fn keep(&self, of: &Whose<'_>, records: &Records) -> Result<(), ConnectError>;
}

/// The pipeline that something is kept of.
#[cfg_attr(not(feature = "services"), expect(dead_code, reason = "this build has no object stores"))]
pub(crate) struct Whose<'a> {
    pub(crate) pipeline: &'a Pipeline,
    /// Of the process.
    pub(crate) incarnation: u64,
    pub(crate) inlets: &'a Inlets,
    /// The newest in its log when it started.
    pub(crate) last_epoch: u64,
}

/// Records of epochs that follow each other.
#[cfg_attr(not(feature = "services"), expect(dead_code, reason = "this build has no object stores"))]
pub(crate) struct Records {
    /// The first epoch.
    pub(crate) first: u64,
    /// The last one.
    pub(crate) last: u64,
    /// As they stand in the log.
    pub(crate) bytes: Vec<u8>,
}

/// An epoch that is durable here.
#[derive(Debug)]
pub(super) struct Shipment {
    pub(super) at: RecordRef,
    /// How far it has read sources that are posted to.
    pub(super) read: Vec<(String, u64)>,
}

/// How far epochs may leave.
#[derive(Debug, Default)]
pub(super) struct Gate {
    stand: Mutex<Stand>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Stand {
    epoch: u64,
    closed: bool,
}

impl Gate {
    /// Waits until an epoch may leave. False: it will not, in this run.
    pub(super) fn wait(&self, epoch: u64) -> bool {
        let stand = self.stand.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |s: &mut Stand| s.epoch < epoch && !s.closed;
        self.moved.wait_while(stand, waits).unwrap_or_else(PoisonError::into_inner).epoch >= epoch
    }

    fn set(&self, change: impl FnOnce(&mut Stand)) {
        change(&mut self.stand.lock().unwrap_or_else(PoisonError::into_inner));
        self.moved.notify_all();
    }
}

/// What brings a pipeline's epochs to the store.
pub(super) struct Shipper<'a> {
    job: Job<'a>,
    elsewhere: &'a dyn Elsewhere,
    log: LogReader,
    gate: Arc<Gate>,
    /// The newest in the log when it started.
    last_epoch: u64,
}

impl<'a> Shipper<'a> {
    /// Waits for the store, and brings it what this log has kept and the store has not. None: epochs leave when they are durable
    /// here.
    pub(super) fn begin(
        job: Job<'a>,
        log: LogReader,
        kept: &[(u64, RecordRef)],
    ) -> Result<Option<Shipper<'a>>, RunError> {
        let Some(elsewhere) = job.elsewhere else { return Ok(None) };
        let last_epoch = kept.last().map_or(0, |(_, at)| at.epoch);
        let shipper = Shipper { job, elsewhere, log, gate: Arc::default(), last_epoch };
        let stop = || job.stop.load(Ordering::Relaxed);
        let has = shipper.patience().at_start(stop, || elsewhere.begin(&shipper.whose()))?;
        shipper.has_kept(has);
        let missing: Vec<RecordRef> = kept.iter().map(|(_, at)| *at).filter(|at| at.epoch > has).collect();
        let mut rest = &missing[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |at: &&RecordRef| {
                bytes += at.len;
                bytes <= OBJECT_BYTES_MAX
            };
            let (group, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            shipper.keep_at_start(group)?;
            rest = later;
        }
        Ok(Some(shipper))
    }

    /// Brings these records there before anything else goes on.
    pub(super) fn keep_at_start(&self, group: &[RecordRef]) -> Result<(), RunError> {
        let Some(records) = self.records(group)? else { return Ok(()) };
        let stop = || self.job.stop.load(Ordering::Relaxed);
        self.patience().at_start(stop, || self.elsewhere.keep(&self.whose(), &records))?;
        self.has_kept(records.last);
        Ok(())
    }

    /// Where sinks wait for it.
    pub(super) fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    /// Brings what comes until the committer hangs up, or the store is away and somebody wants the pipeline to end.
    pub(super) fn run(self, shipments: &Receiver<Shipment>, stop: &Stop<'_>) -> Result<(), RunError> {
        while let Ok(first) = shipments.recv() {
            let (mut bytes, mut group) = (first.at.len, vec![first]);
            while bytes < OBJECT_BYTES_MAX
                && let Ok(next) = shipments.try_recv()
            {
                bytes += next.at.len;
                group.push(next);
            }
            let refs: Vec<RecordRef> = group.iter().map(|s| s.at).collect();
            let Some(records) = self.records(&refs)? else { continue };
            let ends = || stop.asked() || stop.suspended();
            let kept = || self.elsewhere.keep(&self.whose(), &records);
            if self.patience().until_done(ends, kept)?.is_none() {
                return Ok(());
            }
            self.has_kept(records.last);
            let newest = group.pop();
            for (source, offset) in newest.iter().flat_map(|s| &s.read) {
                self.job.inlets.has_read(&self.job.pipeline.name, source, *offset)?;
            }
        }
        Ok(())
    }

    fn patience(&self) -> Patience<'a> {
        Patience::with_store(self.job.progress)
    }

    fn whose(&self) -> Whose<'a> {
        let Job { pipeline, incarnation, inlets, .. } = self.job;
        Whose { pipeline, incarnation, inlets, last_epoch: self.last_epoch }
    }

    fn records(&self, group: &[RecordRef]) -> Result<Option<Records>, RunError> {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return Ok(None) };
        let mut bytes = Vec::new();
        for at in group {
            bytes.append(&mut self.log.read_record(at)?);
        }
        Ok(Some(Records { first: first.epoch, last: last.epoch, bytes }))
    }

    fn has_kept(&self, epoch: u64) {
        self.job.progress.meters.store().epoch.store(epoch, Ordering::Relaxed);
        self.gate.set(|stand| stand.epoch = epoch);
    }
}

impl Drop for Shipper<'_> {
    fn drop(&mut self) {
        self.gate.set(|stand| stand.closed = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_waits_at_the_gate_until_it_may_leave_or_never_will() {
        let gate = Gate::default();
        gate.set(|s| s.epoch = 3);
        assert!(gate.wait(3) && gate.wait(1));
        std::thread::scope(|scope| {
            let [fourth, fifth] = [4, 5].map(|epoch| {
                scope.spawn({
                    let gate = &gate;
                    move || gate.wait(epoch)
                })
            });
            gate.set(|s| s.epoch = 4);
            assert!(fourth.join().unwrap());
            gate.set(|s| s.closed = true);
            assert!(!fifth.join().unwrap());
        });
        assert!(gate.wait(4), "what may leave may do so after the end");
    }
}
