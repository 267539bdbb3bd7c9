//! A pipeline from its start to its end: what becomes of it once its plugins have failed too often.
//!
//! A live pipeline that is suspended waits for a deployment, a rollback or a resume, and then starts again from its last committed
//! epoch. One whose input has an end stops instead, so that whoever started it hears of it.

use super::{Job, Outcome, RunError, Summary, pipeline};
use crate::control::{Again, Command, Refusal, RefusalKind, Standing, State};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often a suspended pipeline looks whether the process is to end.
const LOOK_AT_STOP: Duration = Duration::from_millis(100);

/// Runs a pipeline until its input is used up, the process is to end, or it fails.
pub(super) fn run(job: Job<'_>) -> Result<Summary, RunError> {
    let mut again = None;
    // Why it is suspended, while it is.
    let mut before: Option<Summary> = None;
    loop {
        job.handle.set_state(State::Starting);
        let result = pipeline::run(job, again.as_ref());
        let summary = match (result, &again, &before) {
            (Ok(summary), ..) => summary,
            // What was asked for cannot be done: it stays as it was.
            (Err(e), Some(asked), Some(before)) if !e.stops_all() && is_waiting(asked) => {
                asked
                    .operation
                    .end(Standing::Refused(Refusal::new(RefusalKind::Incompatible, e.to_string())));
                before.clone()
            }
            (Err(e), ..) => {
                job.handle.set_state(State::Failed(e.to_string()));
                return Err(e);
            }
        };
        let Some(why) =
            summary.suspended.clone().filter(|_| waits(job) && summary.outcome == Outcome::Suspended)
        else {
            job.handle.set_state(State::Ended);
            return Ok(summary);
        };
        job.handle.set_state(State::Suspended(why));
        match wait(job) {
            Some(asked) => again = Some(asked),
            None => {
                job.handle.set_state(State::Ended);
                return Ok(summary);
            }
        }
        job.progress.go_on();
        before = Some(summary);
    }
}

fn is_waiting(asked: &Again) -> bool {
    asked.operation.standing() == Standing::Waiting
}

/// Whether somebody may still want it to go on: it has input that does not end.
fn waits(job: Job<'_>) -> bool {
    job.pipeline.from.iter().any(|i| job.plan.sources[*i].is_live())
}

/// Waits until it is to start again; none: the process is to end.
fn wait(job: Job<'_>) -> Option<Again> {
    while !job.stop.load(Ordering::Relaxed) {
        match job.handle.wait_asked(LOOK_AT_STOP) {
            Some(Command::Again(again)) => return Some(again),
            Some(Command::Pause(false, by, reply)) => {
                let again = job.control.resume_after_suspension(&job.pipeline.name, by);
                // Whoever asked may have gone away.
                let _ = reply.send(());
                return Some(again);
            }
            // What needs a running pipeline has lost it just now: whoever asked hears nothing and asks again.
            Some(Command::Deploy(d)) => d.operation.end(refused()),
            Some(Command::Strike(operation, ..)) => operation.end(refused()),
            Some(Command::Pause(..) | Command::States { .. } | Command::Look(..)) | None => {}
        }
    }
    None
}

fn refused() -> Standing {
    Standing::Refused(Refusal::new(RefusalKind::State, "the pipeline has just been suspended: try again"))
}
