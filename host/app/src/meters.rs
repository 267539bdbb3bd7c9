//! What is measured while events flow, for whoever collects it: atomic numbers, and nothing that could hold an event up.

use prometheus::{Histogram, HistogramOpts};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

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
    plugins: Mutex<BTreeMap<String, Arc<PluginMeter>>>,
    /// Bytes that are committed and that a sink has not confirmed.
    sinks: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
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
            plugins: Mutex::default(),
            sinks: Mutex::default(),
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

    /// The meter of a plugin, for each of its instances.
    pub(crate) fn plugin(&self, name: &str) -> Arc<PluginMeter> {
        let mut all = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(name.to_owned()).or_default().clone()
    }

    /// The pipeline starts with these sinks.
    pub(crate) fn put_sinks(&self, sinks: impl Iterator<Item = (String, Arc<AtomicU64>)>) {
        *self.sinks.lock().unwrap_or_else(PoisonError::into_inner) = sinks.collect();
    }

    /// Bytes that wait for each sink.
    pub(crate) fn sinks(&self) -> BTreeMap<String, u64> {
        let sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        sinks.iter().map(|(name, bytes)| (name.clone(), bytes.load(Ordering::Relaxed))).collect()
    }

    /// All of them.
    pub(crate) fn plugins(&self) -> BTreeMap<String, Arc<PluginMeter>> {
        self.plugins.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
