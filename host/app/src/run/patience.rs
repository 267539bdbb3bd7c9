//! A sink or source whose service is away: it is tried again until it is back, or until somebody wants the pipeline to end.
//!
//! Invariants: only what may work later is tried again, and the same call each time; an absence is said once, each new cause of it
//! too, up to a bound, and its end once; meanwhile `status` and `/metrics` show what the last try said.

use super::RunError;
use crate::clock::now_ms;
use crate::journal::Level;
use crate::meters::ServiceMeter;
use crate::progress::Progress;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tidemill_connect::ConnectError;
use tidemill_connect::sink::bounds;

/// How often a wait looks whether it is to end.
const LOOK_AT_STOP: Duration = Duration::from_millis(50);

/// Causes of one absence that are said: a service that goes through its restart has two or three.
const CAUSES_MAX: usize = 8;

/// See the module's documentation.
pub(super) struct Patience<'a> {
    /// As it is called in messages.
    who: String,
    meter: Arc<ServiceMeter>,
    progress: &'a Progress,
}

impl<'a> Patience<'a> {
    /// With a sink of the pipeline whose progress this is.
    pub(super) fn with(sink: &str, progress: &'a Progress) -> Patience<'a> {
        let meter = progress.meters.sink(sink).service.clone();
        Patience { who: format!("sink `{sink}`"), meter, progress }
    }

    /// With the object store that keeps the pipeline's epochs.
    pub(super) fn with_store(progress: &'a Progress) -> Patience<'a> {
        Patience {
            who: "the object store".to_owned(),
            meter: progress.meters.store().service.clone(),
            progress,
        }
    }

    /// With the service of a source of the pipeline whose progress this is.
    #[cfg(feature = "services")]
    pub(super) fn with_source(source: &str, progress: &'a Progress) -> Patience<'a> {
        Patience { who: format!("source `{source}`"), meter: progress.meters.source(source), progress }
    }

    /// Calls the service until it can be used. `None`: it is to stop before that.
    ///
    /// # Errors
    /// What would fail in the same way again.
    pub(super) fn until_done<T>(
        &self,
        stop: impl Fn() -> bool,
        mut call: impl FnMut() -> Result<T, ConnectError>,
    ) -> Result<Option<T>, RunError> {
        let mut backoff = bounds::backoff();
        let mut causes = Vec::new();
        loop {
            self.meter.tries.fetch_add(1, Ordering::Relaxed);
            match call() {
                Ok(done) => {
                    self.say_back();
                    return Ok(Some(done));
                }
                Err(ConnectError::Unavailable(why)) => self.say_away(why, &mut causes),
                Err(e) => return Err(RunError::of(&self.who, e)),
            }
            if !wait(backoff.next_wait(), &stop) {
                return Ok(None);
            }
        }
    }

    /// The same while the pipeline starts.
    ///
    /// # Errors
    /// `Stopped` if the process is to end before it is there.
    pub(super) fn at_start<T>(
        &self,
        stop: impl Fn() -> bool,
        call: impl FnMut() -> Result<T, ConnectError>,
    ) -> Result<T, RunError> {
        let stopped = || RunError::Stopped(format!("{} was not there yet", self.who));
        self.until_done(stop, call)?.ok_or_else(stopped)
    }

    fn say_away(&self, why: String, causes: &mut Vec<String>) {
        self.meter.is_away(&why);
        if causes.len() >= CAUSES_MAX || causes.contains(&why) {
            return;
        }
        let text = match causes.is_empty() {
            true => format!("{} is unavailable, and is tried again until it is back: {why}", self.who),
            false => format!("{} is still unavailable: {why}", self.who),
        };
        self.progress.tell(Level::Warn, &text);
        causes.push(why);
    }

    /// Notes that it is there again.
    pub(super) fn say_back(&self) {
        if let Some(since_ms) = self.meter.is_here() {
            let seconds = now_ms().saturating_sub(since_ms).max(0) / 1000;
            self.progress.tell(Level::Info, &format!("{} is back after {seconds} s", self.who));
        }
    }
}

/// Waits so long; false if it is to stop before that.
fn wait(time: Duration, stop: &impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while let Some(left) = time.checked_sub(begun.elapsed()) {
        if stop() {
            return false;
        }
        std::thread::sleep(left.min(LOOK_AT_STOP));
    }
    !stop()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Journal;
    use std::cell::Cell;

    fn progress() -> (Progress, Arc<Journal>) {
        let (journal, _) = Journal::new();
        (Progress::new("p", journal.clone()), journal)
    }

    fn said(journal: &Journal) -> Vec<String> {
        journal.after(0, None, 99).into_iter().map(|l| format!("{}: {}", l.level, l.text)).collect()
    }

    #[test]
    fn it_is_tried_until_it_is_back_and_both_are_said_once() {
        let (progress, journal) = progress();
        let patience = Patience::with("out", &progress);
        let tries = Cell::new(0_u32);
        let call = || {
            tries.set(tries.get() + 1);
            let why = |n: u32| if n == 3 { "db:1: starting" } else { "db:1: refused" };
            let before = progress.meters.sink("out").service.away().map(|a| a.why);
            assert_eq!(before.as_deref(), (tries.get() > 1).then(|| why(tries.get() - 1)));
            if tries.get() < 5 { Err(ConnectError::Unavailable(why(tries.get()).into())) } else { Ok(7) }
        };
        assert_eq!(patience.until_done(|| false, call).unwrap(), Some(7));
        let meter = &progress.meters.sink("out").service;
        let counts = [&meter.tries, &meter.tries_in_vain].map(|n| n.load(Ordering::Relaxed));
        assert_eq!((counts, meter.away()), ([5, 4], None));
        let said = said(&journal);
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].starts_with("warn: sink `out` is unavailable") && said[0].ends_with("db:1: refused"));
        assert_eq!(said[1], "warn: sink `out` is still unavailable: db:1: starting");
        assert!(said[2].starts_with("info: sink `out` is back after"));
    }

    #[test]
    fn what_fails_for_good_is_not_tried_again() {
        let (progress, _) = progress();
        let tries = Cell::new(0);
        let call = || -> Result<(), ConnectError> {
            tries.set(tries.get() + 1);
            Err(ConnectError::Conflict("fenced".into()))
        };
        let e = Patience::with("out", &progress).until_done(|| false, call);
        assert!(matches!(e, Err(RunError::Conflict(m)) if m == "sink `out`: fenced"));
        assert_eq!(tries.get(), 1);
    }

    #[test]
    fn a_stop_ends_the_wait_at_once() {
        let (progress, _) = progress();
        let patience = Patience::with("out", &progress);
        let away = || -> Result<(), ConnectError> { Err(ConnectError::Unavailable("gone".into())) };
        let begun = Instant::now();
        // Some tries, so that the next wait would be long.
        let tries = Cell::new(0);
        let asked = || tries.get() == 3;
        let done = patience.until_done(asked, || {
            tries.set(tries.get() + 1);
            away()
        });
        assert_eq!(done.unwrap(), None);
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(matches!(patience.at_start(|| true, away), Err(RunError::Stopped(m)) if m.contains("`out`")));
        assert!(progress.meters.sink("out").service.away().is_some(), "it is still away");
    }
}
