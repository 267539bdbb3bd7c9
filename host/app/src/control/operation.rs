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
    /// `deploy` or `rollback`.
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

    /// It has come to its end.
    pub(crate) fn end(&self, standing: Standing) {
        *lock(&self.standing) = standing;
        self.told.notify_all();
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
