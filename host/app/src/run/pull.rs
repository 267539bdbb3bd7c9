//! Sources that are pulled: a thread for each, which fills the source's ingest log until the pipelines have ended.
//!
//! Invariants: a service that is away is tried again, and said to be away by the first pipeline that reads the source; one that
//! refuses at the start ends the run, one that refuses later is tried again.

use super::RunError;
use super::inlets::Inlets;
use super::patience::Patience;
use crate::config::plan::{Plan, SourceKind};
use crate::progress::Progress;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};
use tidemill_connect::ConnectError;
use tidemill_connect::source::ingest_log::IngestLog;
use tidemill_connect::source::pubsub::Subscription;

/// A stream that has lasted so long was one that worked.
const LASTED: Duration = Duration::from_secs(60);

/// A thread that pulls, and how it ended.
pub(super) type Pulling<'scope> = ScopedJoinHandle<'scope, Result<(), RunError>>;

/// Begins to pull every source that is. A failure sets `stop`; `ended` is set when nobody reads any more.
pub(super) fn begin<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    (plan, progress): (&'env Plan, &'env [Arc<Progress>]),
    inlets: &'env Inlets,
    stop: &'env AtomicBool,
    ended: &'env AtomicBool,
) -> Vec<Pulling<'scope>> {
    let mut all = Vec::new();
    for (i, source) in plan.sources.iter().enumerate() {
        let SourceKind::PubSub(pulled) = &source.kind else { continue };
        let reader = plan.pipelines.iter().position(|p| p.from.contains(&i));
        let (Some(progress), Some(log)) = (reader.and_then(|r| progress.get(r)), inlets.log(&source.name))
        else {
            continue;
        };
        all.push(scope.spawn(move || {
            let stops = || stop.load(Ordering::Relaxed) || ended.load(Ordering::Relaxed);
            let end = pull(&source.name, &pulled.subscription, &log, progress, &stops);
            if end.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            end
        }));
    }
    all
}

/// Waits for all of them.
///
/// # Errors
/// The first failure.
pub(super) fn end(all: Vec<Pulling<'_>>) -> Result<(), RunError> {
    let crashed = || Err(RunError::Failed("a thread that pulls ended without an answer".into()));
    let ends: Vec<_> = all.into_iter().map(|t| t.join().unwrap_or_else(|_| crashed())).collect();
    ends.into_iter().collect()
}

fn pull(
    source: &str,
    subscription: &Subscription,
    log: &IngestLog,
    progress: &Progress,
    stops: &impl Fn() -> bool,
) -> Result<(), RunError> {
    let patience = Patience::with_source(source, progress);
    let known = AtomicBool::new(false);
    let heard = || {
        if !known.swap(true, Ordering::Relaxed) || progress.meters.source(source).away().is_some() {
            patience.say_back();
        }
    };
    loop {
        let done = patience.until_done(stops, || {
            let begun = Instant::now();
            match subscription.pull(log, known.load(Ordering::Relaxed), stops, heard) {
                // The service ends every stream after a while: that is no absence.
                Err(ConnectError::Unavailable(_)) if begun.elapsed() >= LASTED => Ok(false),
                ended => ended.map(|()| true),
            }
        })?;
        if done != Some(false) {
            return Ok(());
        }
    }
}
