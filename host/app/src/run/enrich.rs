//! Between commit and delivery: revisions wait for their lookups, and leave with a later epoch (SEMANTICS 27).
//!
//! ```text
//! committer ──committed revisions──▶ worker ──keys──▶ lookups (their own threads)
//!     ▲──────────resolutions───────────┘ ▲────answers────┘
//! ```
//!
//! The committer's side is [`Enrichment`]: it keeps the account of what is unresolved and puts what is resolved into the next
//! epoch. The worker calls the enrichers and asks the lookups. What it had not finished is begun anew after a crash: only
//! what is in a record counts.
//!
//! Invariants: a revision is worked on only after its epoch is durable, and sent only after the epoch that resolves it is;
//! memory is bounded by the account's bytes (beyond them the reader waits), by the rows in work, and by the tray.

mod worker;

use self::worker::{Source, Worker};

use super::RunError;
use crate::config::lookup::OnFailure;
use crate::config::plan::{Pipeline, Plan};
use crate::journal::Level;
use crate::meta::{LookupMeta, Meta};
use crate::plugin::enrich::Enricher;
use crate::progress::Progress;
use crossbeam_channel::{Sender, unbounded};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tidemill_connect::lookup::LookupCounts;
use tidemill_engine::outbox::Revision;
use tidemill_engine::unresolved::{Id, Leaving, Left, Outcome, Resolution, Unresolved};

/// Bytes of resolutions that wait for the next epoch; beyond it the worker does. Also what an epoch sends of them at most.
const TRAY_BYTES_MAX: u64 = 32 << 20;
/// Resolutions beyond this end an epoch early, so that a long one does not hold the worker up.
pub(crate) const TRAY_BYTES_FULL: u64 = TRAY_BYTES_MAX / 2;
/// What a resolution costs beside its bytes.
const RESOLUTION_BYTES: u64 = 64;
/// After a stop, how long without any resolution until what waits for a held lookup is left for the next start.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// The unresolved rows of a committed epoch, on their way to the worker.
pub(crate) struct Work {
    pub(crate) revision: Revision,
    /// The rows of the epoch's section.
    pub(crate) rows: Vec<u8>,
    /// Which of them are to be worked on, rising; all if `None`.
    pub(crate) open: Option<Vec<u32>>,
}

/// Where the worker puts what is resolved, until the next epoch takes it.
#[derive(Default)]
pub(crate) struct Tray {
    state: Mutex<TrayState>,
    changed: Condvar,
    /// Bytes in it, for the reader to end an epoch early.
    pub(crate) bytes: AtomicU64,
}

#[derive(Default)]
struct TrayState {
    resolutions: Vec<Resolution>,
    bytes: u64,
    /// Nobody takes anything out any more.
    closed: bool,
    /// Nobody puts anything in any more.
    abandoned: bool,
}

impl Tray {
    /// Puts resolutions in; waits while it is full. False: nobody will take them any more.
    fn put(&self, resolutions: Vec<Resolution>) -> bool {
        let cost = |r: &Resolution| match &r.outcome {
            Outcome::Row(b) | Outcome::Letter(_, b) => b.len() as u64 + RESOLUTION_BYTES,
        };
        let bytes: u64 = resolutions.iter().map(cost).sum();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.bytes > TRAY_BYTES_MAX && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.resolutions.extend(resolutions);
        state.bytes += bytes;
        self.bytes.store(state.bytes, Ordering::Relaxed);
        self.changed.notify_all();
        !state.closed
    }

    fn take(&self) -> Vec<Resolution> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes = 0;
        self.bytes.store(0, Ordering::Relaxed);
        self.changed.notify_all();
        std::mem::take(&mut state.resolutions)
    }

    /// Waits until `enough` resolutions are there, it is half full, or the time has passed; how many there are.
    fn wait(&self, enough: u64, most: Duration) -> u64 {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |s: &mut TrayState| {
            (s.resolutions.len() as u64) < enough && s.bytes < TRAY_BYTES_FULL && !s.abandoned
        };
        let waited = self.changed.wait_timeout_while(state, most, waits);
        waited.unwrap_or_else(PoisonError::into_inner).0.resolutions.len() as u64
    }

    fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_all();
    }

    fn abandon(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).abandoned = true;
        self.changed.notify_all();
    }

    fn is_abandoned(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).abandoned
    }
}

/// What the reader looks at.
#[derive(Clone, Default)]
pub(crate) struct Pressure {
    /// Bytes of unresolved rows.
    pub(crate) unresolved_bytes: Arc<AtomicU64>,
    /// Bytes of the log that are kept for them.
    pub(crate) log_bytes: Arc<AtomicU64>,
}

/// The committer's side.
pub(crate) struct Enrichment {
    account: Unresolved,
    work: Sender<Work>,
    tray: Arc<Tray>,
    lookups: Vec<Arc<Source>>,
    /// What the lookups had counted at this start.
    counted: BTreeMap<String, LookupMeta>,
    pressure: Pressure,
    /// Records from the oldest that has an unresolved row: epoch and length.
    records: VecDeque<(u64, u64)>,
    resolved_at: Instant,
    /// Lookups with which something was wrong, as last described.
    troubled: BTreeSet<String>,
    /// Of lookups that keep their rows whole, when these were read, as last described.
    read_at: BTreeMap<String, SystemTime>,
}

impl Enrichment {
    /// Goes on where the records end.
    fn new(
        left: Left,
        work: Sender<Work>,
        tray: Arc<Tray>,
        lookups: Vec<Arc<Source>>,
        counted: BTreeMap<String, LookupMeta>,
        pressure: Pressure,
    ) -> Enrichment {
        let Left { account, rows, records, .. } = left;
        let mut open: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (place, _) in account.open() {
            open.entry(place.epoch).or_default().push(place.index);
        }
        for (epoch, (revision, rows)) in rows {
            // The worker lives as long as this does, unless it has failed and says so itself.
            let _ = work.send(Work { revision, rows, open: open.remove(&epoch) });
        }
        let mut e = Enrichment {
            account,
            work,
            tray,
            lookups,
            counted,
            pressure,
            records,
            resolved_at: Instant::now(),
            troubled: BTreeSet::new(),
            read_at: BTreeMap::new(),
        };
        e.read_at = e.all_read_at();
        e.tell();
        e
    }

    /// Ends an epoch: what leaves with it.
    pub(crate) fn end(&mut self, retracted: &HashSet<Id>) -> Leaving {
        let resolutions = self.tray.take();
        if !resolutions.is_empty() {
            self.resolved_at = Instant::now();
        }
        self.account.end(resolutions, retracted)
    }

    /// The epoch is durable: its unresolved rows are worked on from now on.
    pub(crate) fn begin(&mut self, revision: Revision, record_bytes: u64, rows: Vec<u8>) {
        self.account.begin(revision, &rows);
        self.records.push_back((revision.epoch, record_bytes));
        if !rows.is_empty() {
            let _ = self.work.send(Work { revision, rows, open: None });
        }
        self.tell();
    }

    /// Whether a lookup has broken down, come back or read its rows again since the newest record: who looks from outside is to see
    /// that.
    pub(crate) fn has_news(&self) -> bool {
        self.lookups.iter().any(|l| {
            l.lookup.trouble().is_some() != self.troubled.contains(&l.name)
                || l.lookup.read_at() != self.read_at.get(&l.name).copied()
        })
    }

    /// Says how much waits.
    fn tell(&mut self) {
        let oldest = self.account.oldest().unwrap_or(u64::MAX);
        while self.records.front().is_some_and(|(epoch, _)| *epoch < oldest) {
            self.records.pop_front();
        }
        let log_bytes = self.records.iter().map(|(_, bytes)| bytes).sum();
        self.pressure.log_bytes.store(log_bytes, Ordering::Relaxed);
        self.pressure.unresolved_bytes.store(self.account.bytes(), Ordering::Relaxed);
    }

    /// Puts into the meta data what a reader of the record wants to know.
    /// `coming` rows of `epoch` itself are unresolved.
    pub(crate) fn describe(&mut self, meta: &mut Meta, coming: u64, epoch: u64, progress: &Progress) {
        meta.unresolved = self.account.count() + coming;
        meta.unresolved_from = self.account.oldest().or((coming > 0).then_some(epoch));
        // Taken first: what is read meanwhile is news still.
        self.read_at = self.all_read_at();
        meta.lookups = self.lookups();
        for (name, lookup) in &meta.lookups {
            match (&lookup.trouble, self.troubled.contains(name)) {
                (Some(why), false) => progress.tell(Level::Warn, &format!("lookup `{name}`: {why}")),
                (None, true) => progress.tell(Level::Info, &format!("lookup `{name}` answers again")),
                (Some(_), true) | (None, false) => {}
            }
        }
        let troubled = meta.lookups.iter().filter(|(_, l)| l.trouble.is_some());
        self.troubled = troubled.map(|(name, _)| name.clone()).collect();
    }

    fn all_read_at(&self) -> BTreeMap<String, SystemTime> {
        self.lookups.iter().filter_map(|l| Some((l.name.clone(), l.lookup.read_at()?))).collect()
    }

    /// What the lookups did since the pipeline's first start, and what is wrong with them now.
    pub(crate) fn lookups(&self) -> BTreeMap<String, LookupMeta> {
        let mut all = self.counted.clone();
        for l in &self.lookups {
            let before = all.get(&l.name).map_or(LookupCounts::default(), |m| m.counts);
            let now = LookupMeta {
                counts: before.plus(l.lookup.counts()),
                trouble: l.lookup.trouble(),
                read_at_ms: l.lookup.read_at().map(since_1970_ms),
            };
            all.insert(l.name.clone(), now);
        }
        all
    }

    /// How many revisions are unresolved.
    pub(crate) fn count(&self) -> u64 {
        self.account.count()
    }

    /// The oldest epoch whose record must be kept.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.account.oldest()
    }

    /// Waits until all is resolved, or enough for an epoch, or the time has passed. True: there is something to commit.
    pub(crate) fn wait(&self, most: Duration) -> bool {
        self.tray.wait(self.account.count(), most) > 0
    }

    /// Whether nothing more can be expected soon: the worker has failed, or a lookup that is waited for without end has not
    /// answered for a while.
    pub(crate) fn is_stuck(&self) -> bool {
        let held = self.lookups.iter().filter(|l| l.on_failure == OnFailure::Hold);
        let timeout = held.map(|l| Duration::from_millis(l.timeout_ms)).max();
        let silent = timeout.is_some_and(|t| self.resolved_at.elapsed() > STUCK_AFTER + t);
        silent || self.tray.is_abandoned()
    }
}

fn since_1970_ms(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Drop for Enrichment {
    fn drop(&mut self) {
        self.tray.close();
    }
}

/// The two sides of enrichment, with the lookups that the pipeline uses started, each once.
///
/// # Errors
/// If a lookup cannot be opened.
pub(crate) fn start(
    plan: &Plan,
    pipeline: &Pipeline,
    enrichers: Vec<Enricher>,
    left: Left,
    counted: BTreeMap<String, LookupMeta>,
    tray: &Arc<Tray>,
    pressure: Pressure,
) -> Result<(Enrichment, Worker), RunError> {
    let (work, works) = unbounded();
    let (reply, answers) = unbounded();
    let mut sources: BTreeMap<usize, Arc<Source>> = BTreeMap::new();
    for (_, i) in pipeline.enrich.iter().flat_map(|u| &u.lookups) {
        if let (Entry::Vacant(e), Some(lookup)) = (sources.entry(*i), plan.lookups.get(*i)) {
            e.insert(Arc::new(Source::start(lookup, reply.clone())?));
        }
    }
    let worker = Worker::new(enrichers, sources.clone(), works, answers, tray.clone());
    let sources = sources.into_values().collect();
    Ok((Enrichment::new(left, work, tray.clone(), sources, counted, pressure), worker))
}
