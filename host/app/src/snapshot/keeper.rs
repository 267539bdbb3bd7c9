//! Snapshots by the clock, on a thread of their own: what fails is said and tried again at the next turn; no event waits for it.

use super::Snapshots;
use crate::config::plan::Plan;
use crate::journal::{Journal, Level};
use crate::meters::Snapshots as Meter;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often the thread looks whether the process is to end.
const LOOK_AT_STOP: Duration = Duration::from_millis(100);

/// Takes snapshots until `done`, if the config asks for them.
pub(crate) fn run(plan: &Plan, journal: &Journal, meter: &Meter, done: &AtomicBool) {
    let every =
        plan.state.as_ref().and_then(|s| s.every_ms).map(|ms| Duration::from_millis(ms.unsigned_abs()));
    let Some(every) = every else { return };
    let mut failing = false;
    while wait(every, done) {
        let begun = Instant::now();
        match Snapshots::of(plan).and_then(|s| s.create()) {
            Ok(manifest) => {
                meter.taken(manifest.taken_at_ms, begun.elapsed());
                if std::mem::take(&mut failing) {
                    journal.keep(None, Level::Info, "snapshots are taken again");
                }
            }
            Err(e) => {
                meter.failed();
                failing = true;
                journal.keep(None, Level::Error, &format!("no snapshot was taken: {e}"));
            }
        }
    }
}

/// False: the process is to end.
fn wait(long: Duration, done: &AtomicBool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < long {
        if done.load(Ordering::Relaxed) {
            return false;
        }
        std::thread::sleep(LOOK_AT_STOP.min(long));
    }
    !done.load(Ordering::Relaxed)
}
