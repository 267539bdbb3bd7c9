//! A change under way: asked for, taken up at a barrier, or refused.

use super::{Refusal, lock};
use crate::clock::now_ms;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tidemill_engine::time::EventTime;
use tidemill_engine::versions::Version;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Operation {
    /// Its number in this process.
    pub(crate) id: u64,
    /// The pipeline.
    pub(crate) pipeline: String,
    /// `deploy`, `rollback`, or `resume` after a suspension.
    pub(crate) kind: &'static str,
    /// Host clock, ms.
    pub(crate) begun_at_ms: i64,
    standing: Mutex<Standing>,
    told: Condvar,
    /// How long the slowest lane was busy with it.
    busy_ns: AtomicU64,
}

/// Where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It waits for the next barrier.
    Waiting,
    /// It is done, and durable with the epoch that ended there. While the older version is needed, the schedule says so.
    InForce(InForce),
    /// It could not be done.
    Refused(Refusal),
}

/// A version that came into force, or again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InForce {
    /// Its number.
    pub(crate) version: Version,
    /// Its place in event time.
    pub(crate) from: EventTime,
    /// How long nothing was read for it.
    pub(crate) reading: Duration,
    /// How long the slowest lane folded nothing for it.
    pub(crate) folding: Duration,
}

impl InForce {
    /// How long an event may have waited for it.
    pub(crate) fn pause(&self) -> Duration {
        self.reading + self.folding
    }
}

impl Operation {
    pub(super) fn new(id: u64, pipeline: &str, kind: &'static str) -> Operation {
        Operation {
            id,
            pipeline: pipeline.to_owned(),
            kind,
            begun_at_ms: now_ms(),
            standing: Mutex::new(Standing::Waiting),
            told: Condvar::new(),
            busy_ns: AtomicU64::new(0),
        }
    }

    /// Where it stands.
    pub(crate) fn standing(&self) -> Standing {
        self.with_busy(lock(&self.standing).clone())
    }

    fn with_busy(&self, mut standing: Standing) -> Standing {
        if let Standing::InForce(f) = &mut standing {
            f.folding = Duration::from_nanos(self.busy_ns.load(Ordering::Relaxed));
        }
        standing
    }

    /// It has come to its end; the first one counts.
    pub(crate) fn end(&self, standing: Standing) {
        let mut now = lock(&self.standing);
        if *now == Standing::Waiting {
            *now = standing;
            self.told.notify_all();
        }
    }

    /// A lane was busy with it for so long.
    pub(crate) fn lane_was_busy(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.busy_ns.fetch_max(ns, Ordering::Relaxed);
    }

    /// Waits until it has come to its end, for so long at most.
    pub(crate) fn wait(&self, most: Duration) -> Standing {
        let until = Instant::now() + most;
        let mut standing = lock(&self.standing);
        while *standing == Standing::Waiting {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            standing = self.told.wait_timeout(standing, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.with_busy(standing.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Told;
    use super::*;
    use std::sync::Arc;

    /// Bug family: an operation that waits for ever, because the pipeline stopped between its barrier and its disk.
    #[test]
    fn what_never_became_durable_is_refused() {
        let in_force = InForce {
            version: Version(3),
            from: EventTime::from_ms(7),
            reading: Duration::ZERO,
            folding: Duration::ZERO,
        };
        let new = || Arc::new(Operation::new(1, "visits", "deploy"));
        let (lost, told) = (new(), new());
        drop(Told::Change(lost.clone(), in_force.clone()));
        assert!(matches!(lost.wait(Duration::ZERO), Standing::Refused(r) if r.message.contains("durable")));
        Told::Change(told.clone(), in_force.clone()).tell();
        assert_eq!(told.wait(Duration::ZERO), Standing::InForce(in_force));
    }
}
