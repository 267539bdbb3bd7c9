//! When a pipeline stops: the process is asked to, one of the pipeline's own threads has failed, or its plugins have failed too
//! often. The last two concern no other pipeline.

use super::RunError;
use crate::plugin::budget::Budget;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// See the module's documentation.
pub(crate) struct Stop<'a> {
    process: &'a AtomicBool,
    failed: AtomicBool,
    budget: Arc<Budget>,
}

impl<'a> Stop<'a> {
    /// Of one pipeline.
    pub(crate) fn new(process: &'a AtomicBool, budget: Arc<Budget>) -> Stop<'a> {
        Stop { process, failed: AtomicBool::new(false), budget }
    }

    /// Whether to read no more, and to end the epoch.
    pub(crate) fn asked(&self) -> bool {
        self.process.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }

    /// Whether to read no more, and to abandon the epoch.
    pub(crate) fn suspended(&self) -> bool {
        self.budget.is_spent()
    }

    /// A thread that fails lets the reader stop, so that the others end in order.
    pub(crate) fn at_failure<T>(&self, r: Result<T, RunError>) -> Result<T, RunError> {
        if r.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        r
    }
}
