//! What is measured while events flow, for whoever collects it: atomic numbers, and nothing that could hold an event up.

use crate::clock::{now_ms, thread_ns};
use prometheus::{Histogram, HistogramOpts};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Seconds: from a disk without a sync to one that is about to fail.
const COMMIT_SECONDS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5];
/// Bytes: from an epoch of a few events to one with an image of a part of a large state.
const EPOCH_BYTES: [f64; 8] =
    [1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 67_108_864.0];

/// Of one pipeline, since the process's start.
#[derive(Debug)]
pub(crate) struct Meters {
    /// How long it took until an epoch was durable.
    pub(crate) commit_seconds: Option<Histogram>,
    /// How long its record is.
    pub(crate) epoch_bytes: Option<Histogram>,
    /// Batches that wait for the slowest lane.
    pub(crate) lane_queue: AtomicU64,
    /// CPU time of its threads, ns, by [`Activity`].
    work_ns: [AtomicU64; Activity::ALL.len()],
    plugins: Mutex<BTreeMap<String, Arc<PluginMeter>>>,
    sinks: Mutex<BTreeMap<String, Arc<SinkMeter>>>,
    sources: Mutex<BTreeMap<String, Arc<ServiceMeter>>>,
    store: OnceLock<Arc<StoreMeter>>,
}

/// Of the object store that has a pipeline's epochs before they leave.
#[derive(Debug, Default)]
pub(crate) struct StoreMeter {
    /// The newest that it has.
    pub(crate) epoch: AtomicU64,
    /// How its calls go.
    pub(crate) service: Arc<ServiceMeter>,
}

/// Of the host's snapshots, since the process's start.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    taken: AtomicU64,
    failed: AtomicU64,
    /// Host clock when the newest was begun, ms; 0 before.
    newest_at_ms: AtomicU64,
    /// How long it took, ms.
    took_ms: AtomicU64,
}

impl Snapshots {
    /// One was taken.
    #[cfg_attr(not(feature = "services"), expect(dead_code, reason = "this build has no object stores"))]
    pub(crate) fn taken(&self, at_ms: i64, took: Duration) {
        self.newest_at_ms.store(at_ms.unsigned_abs(), Ordering::Relaxed);
        self.took_ms.store(u64::try_from(took.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// One was not.
    #[cfg_attr(not(feature = "services"), expect(dead_code, reason = "this build has no object stores"))]
    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Taken, failed, host clock of the newest in ms, and how long that took in ms; none before there was one to take.
    pub(crate) fn all(&self) -> Option<[u64; 4]> {
        let all = [&self.taken, &self.failed, &self.newest_at_ms, &self.took_ms];
        let all = all.map(|n| n.load(Ordering::Relaxed));
        (all[0] + all[1] > 0).then_some(all)
    }
}

/// What the threads of a pipeline do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Activity {
    /// Bytes from a source, and where its records begin and end.
    Read,
    /// Records into rows with key and time, validators too, and which lane each is for.
    Decode,
    /// The watermark, and rows on their way to the lanes.
    Route,
    /// Rows to their keys, and what W has passed into sessions; a plugin's calls too.
    Fold,
    /// What is left to fold at a barrier, and all of it as bytes of an epoch.
    Seal,
    /// The epoch's record, written and made durable.
    Sync,
    /// Committed rows and letters to the sinks.
    Sink,
}

impl Activity {
    /// In the order of an event's way.
    pub(crate) const ALL: [Activity; 7] = [
        Activity::Read,
        Activity::Decode,
        Activity::Route,
        Activity::Fold,
        Activity::Seal,
        Activity::Sync,
        Activity::Sink,
    ];

    /// As it is called in metrics.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Activity::Read => "read",
            Activity::Decode => "decode",
            Activity::Route => "route",
            Activity::Fold => "fold",
            Activity::Seal => "seal",
            Activity::Sync => "sync",
            Activity::Sink => "sink",
        }
    }
}

/// Puts a thread's CPU time down to what it was spent on. The clock is a system call (some 200 ns), so it is read once a
/// batch or an epoch, never once an event.
#[derive(Debug)]
pub(crate) struct Laps<'a> {
    meters: &'a Meters,
    since_ns: u64,
}

impl<'a> Laps<'a> {
    /// Of this thread, from now on.
    pub(crate) fn begin(meters: &'a Meters) -> Laps<'a> {
        Laps { meters, since_ns: thread_ns() }
    }

    /// Of this thread, from now on: the one that it was begun on may have been another.
    pub(crate) fn begin_anew(&mut self) {
        self.since_ns = thread_ns();
    }

    /// All since the last time was this.
    pub(crate) fn spent_on(&mut self, work: Activity) {
        let now = thread_ns();
        self.meters.work_ns[work as usize].fetch_add(now - self.since_ns, Ordering::Relaxed);
        self.since_ns = now;
    }
}

/// Of one plugin in a pipeline, all its instances together.
#[derive(Debug, Default)]
pub(crate) struct PluginMeter {
    /// Calls that carried frames.
    pub(crate) calls: AtomicU64,
    /// Time in them, µs.
    pub(crate) call_us: AtomicU64,
    /// Calls that failed.
    pub(crate) faults: AtomicU64,
    /// Of these, calls that trapped: a panic, memory that was refused, any other trap.
    pub(crate) traps: AtomicU64,
    /// Of these, calls that were stopped because they ran too long.
    pub(crate) deadline_stops: AtomicU64,
}

/// Of one sink of a pipeline.
#[derive(Debug, Default)]
pub(crate) struct SinkMeter {
    /// Bytes that are committed and that it has not confirmed.
    pub(crate) waiting_bytes: Arc<AtomicU64>,
    /// How its calls go.
    pub(crate) service: Arc<ServiceMeter>,
}

/// Of a sink or of what a source reads from: whether it can be used.
#[derive(Debug, Default)]
pub(crate) struct ServiceMeter {
    /// How often it was called.
    pub(crate) tries: AtomicU64,
    /// How often it could not be used then.
    pub(crate) tries_in_vain: AtomicU64,
    away: Mutex<Option<Away>>,
}

/// A service that cannot be used now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Away {
    /// Since when, by the host's clock, ms.
    pub(crate) since_ms: i64,
    /// What the last try said.
    pub(crate) why: String,
}

impl ServiceMeter {
    /// A try was in vain.
    pub(crate) fn is_away(&self, why: &str) {
        self.tries_in_vain.fetch_add(1, Ordering::Relaxed);
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let since_ms = away.as_ref().map(|a| a.since_ms);
        *away = Some(Away { since_ms: since_ms.unwrap_or_else(now_ms), why: why.to_owned() });
    }

    /// A try has succeeded; since when it had been away.
    pub(crate) fn is_here(&self) -> Option<i64> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).take().map(|a| a.since_ms)
    }

    /// Whether it cannot be used now, and why.
    pub(crate) fn away(&self) -> Option<Away> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl PluginMeter {
    /// A call that began then has ended.
    pub(crate) fn called(&self, begun: Instant) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.call_us.fetch_add(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
    }
}

impl Meters {
    /// Of this pipeline.
    pub(crate) fn new(pipeline: &str) -> Meters {
        // The names below are ones that Prometheus takes; a pipeline's name may be any label.
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).const_label("pipeline", pipeline);
            Histogram::with_opts(opts.buckets(buckets.to_vec())).ok()
        };
        Meters {
            commit_seconds: histogram(
                "tidemill_epoch_commit_duration_seconds",
                "From the start of writing an epoch until it is durable",
                &COMMIT_SECONDS,
            ),
            epoch_bytes: histogram("tidemill_epoch_bytes", "Length of an epoch's record", &EPOCH_BYTES),
            lane_queue: AtomicU64::new(0),
            work_ns: Default::default(),
            plugins: Mutex::default(),
            sinks: Mutex::default(),
            sources: Mutex::default(),
            store: OnceLock::new(),
        }
    }

    /// An epoch is durable whose writing began then.
    pub(crate) fn committed(&self, begun: Instant, bytes: u64) {
        if let Some(h) = &self.commit_seconds {
            h.observe(begun.elapsed().as_secs_f64());
        }
        if let Some(h) = &self.epoch_bytes {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            h.observe(bytes as f64);
        }
    }

    /// CPU time that a stage has taken, ns.
    pub(crate) fn work_ns(&self, work: Activity) -> u64 {
        self.work_ns[work as usize].load(Ordering::Relaxed)
    }

    /// The meter of a plugin, for each of its instances.
    pub(crate) fn plugin(&self, name: &str) -> Arc<PluginMeter> {
        let mut all = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(name.to_owned()).or_default().clone()
    }

    /// The meter of a sink, for whoever calls it.
    pub(crate) fn sink(&self, name: &str) -> Arc<SinkMeter> {
        let mut all = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(name.to_owned()).or_default().clone()
    }

    /// Those of all sinks that were called.
    pub(crate) fn sinks(&self) -> BTreeMap<String, Arc<SinkMeter>> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The meter of the service that a source reads from.
    #[cfg(feature = "services")]
    pub(crate) fn source(&self, name: &str) -> Arc<ServiceMeter> {
        let mut all = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(name.to_owned()).or_default().clone()
    }

    /// Those of all sources that read from a service.
    pub(crate) fn sources(&self) -> BTreeMap<String, Arc<ServiceMeter>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The meter of the object store, for whoever brings epochs there.
    pub(crate) fn store(&self) -> Arc<StoreMeter> {
        self.store.get_or_init(Arc::default).clone()
    }

    /// The same, if epochs are brought there.
    pub(crate) fn store_if_any(&self) -> Option<Arc<StoreMeter>> {
        self.store.get().cloned()
    }

    /// Those of all plugins.
    pub(crate) fn plugins(&self) -> BTreeMap<String, Arc<PluginMeter>> {
        self.plugins.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
