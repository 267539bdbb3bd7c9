//! One lane's thread: takes batches in, folds between barriers what may be folded, and hands over its part of each epoch.

use super::RunError;
use super::reader::{Batch, ToLane};
use crate::control::States;
use crate::meters::{Activity, Laps, Meters};
use crate::plugin::budget::Warden;
use crossbeam_channel::{Receiver, Sender};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use tidemill_engine::bounds::SWEEP_ROWS;
use tidemill_engine::event::Rows;
use tidemill_engine::lane::{Lane, LaneEpoch, LaneFault, Origin};

/// Keys whose states are copied at once: some tenths of a millisecond, so that events hardly wait for it.
const STATES_AT_ONCE: usize = 1024;

/// What others see of a lane.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    /// Bytes of dead letters that all lanes hold.
    pub(super) letters: &'a AtomicU64,
    /// Set when this one is near its bound of open sessions.
    pub(super) crowded: &'a AtomicBool,
    /// Where its time goes.
    pub(super) meters: &'a Meters,
}

/// Runs until the reader hangs up.
pub(super) fn run_lane(
    mut lane: Lane,
    input: &Receiver<ToLane>,
    parts: &Sender<LaneEpoch>,
    spent: &Sender<Rows>,
    seen: Seen<'_>,
    mut warden: Option<Warden>,
) -> Result<(), RunError> {
    let mut since_sweep = 0;
    // What this lane has added to the bytes of all lanes' letters: no more than that is taken off again.
    let mut counted = 0;
    let Seen { letters, crowded, meters } = seen;
    let mut laps = Laps::begin(meters);
    while let Ok(message) = input.recv() {
        match message {
            ToLane::Batch(Batch { mut rows, block, watermark, source, partition }) => {
                let origin = Origin { source: &source, partition: &partition, raw: &block.bytes };
                lane.insert(&rows, watermark, origin).map_err(|e| failed(warden.as_ref(), &e))?;
                if lane.crowded() {
                    crowded.store(true, Ordering::Relaxed);
                }
                since_sweep += rows.heads.len();
                rows.clear();
                // The reader may have ended; then nobody wants the buffer.
                let _ = spent.send(rows);
                if since_sweep >= SWEEP_ROWS && lane.sweeps() {
                    since_sweep = 0;
                    lane.sweep().map_err(|e| failed(warden.as_ref(), &e))?;
                }
                let now = lane.letter_bytes() as u64;
                letters.fetch_add(now - counted, Ordering::Relaxed);
                counted = now;
                laps.spent_on(Activity::Fold);
            }
            ToLane::Barrier { barrier, image } => {
                since_sweep = 0;
                letters.fetch_sub(counted, Ordering::Relaxed);
                counted = 0;
                let mut part = lane.barrier(barrier).map_err(|e| failed(warden.as_ref(), &e))?;
                if warden.as_ref().is_some_and(|w| w.budget.is_spent()) {
                    return Err(RunError::Failed("the fault budget is spent: the epoch is abandoned".into()));
                }
                if let Some(groups) = image {
                    lane.image(groups, &mut part.state);
                }
                laps.spent_on(Activity::Seal);
                if parts.send(part).is_err() {
                    return Ok(());
                }
            }
            ToLane::Deploy { scheduled, rule, layout, warden: newer, operation } => {
                let begun = Instant::now();
                lane.deploy(scheduled, rule, layout);
                warden = newer;
                operation.lane_was_busy(begun.elapsed());
            }
            ToLane::Strike => lane.strike(),
            ToLane::Retire => lane.retire(),
            ToLane::States { from, until, reply } => {
                let to = from + STATES_AT_ONCE;
                let next = (to < lane.slots()).then_some(to);
                let states = lane.states(from..to, until).map_err(|e| e.to_string());
                // Whoever asked may have given up.
                let _ = reply.send(states.map(|states| States { states, next }));
            }
            ToLane::Look { key, reply } => drop(reply.send(lane.look(&key))),
        }
    }
    Ok(())
}

fn failed(warden: Option<&Warden>, e: &LaneFault) -> RunError {
    if let Some(w) = warden {
        w.broken(&e.to_string());
    }
    RunError::Failed(e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{bounded, unbounded};
    use std::sync::Arc;
    use tidemill_connect::source::Block;
    use tidemill_engine::event::{Position, RowHead};
    use tidemill_engine::key::{KeyForm, key_hash};
    use tidemill_engine::lane::{Barrier, LaneConfig};
    use tidemill_engine::rule::{
        Description, Rejection, Results, SessionRule, Span, StateAt, StateForm, TurnResult, Turns,
    };
    use tidemill_engine::time::EventTime;
    use tidemill_engine::versions::Versions;

    /// Takes no event at all: each is a letter as soon as it is folded.
    struct Refuses(Description);

    impl SessionRule for Refuses {
        fn describe(&self) -> &Description {
            &self.0
        }
        fn call(&mut self, turns: &Turns, out: &mut Results) {
            out.clear();
            for turn in &turns.turns {
                let (snapshots, rejections) = (out.snapshots.len(), out.rejections.len());
                let nothing = StateAt { first: None, state: Span::default(), timers: Span::default() };
                out.snapshots.extend((0..turn.wanted.len).map(|_| nothing));
                out.rejections.extend((0..turn.inputs.len).map(|input| Rejection {
                    input,
                    reason: 0,
                    message: Span::default(),
                }));
                out.turns.push(TurnResult {
                    fault: None,
                    closings: Span::default(),
                    snapshots: Span::between(snapshots, out.snapshots.len()),
                    rejections: Span::between(rejections, out.rejections.len()),
                    counts: Span::default(),
                    end: nothing,
                    open_fields: Span::default(),
                });
            }
        }
        fn migrate(&mut self, _: u32, states: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
            states.iter().map(|s| Ok(s.to_vec())).collect()
        }
    }

    fn lane() -> Lane {
        let rule = Refuses(Description {
            plugin: "refuses@1".into(),
            digest: None,
            fields: Vec::new(),
            reasons: vec!["no".into()],
            timers: Vec::new(),
            state: StateForm { rule: "refuses".into(), version: 1, shape: String::new(), from: Vec::new() },
            metrics: Vec::new(),
            wants_key: false,
        });
        let config = LaneConfig {
            pipeline: "p".into(),
            key_form: KeyForm::One,
            lateness_ms: 0,
            early: false,
            events_per_key: usize::MAX,
            suffix_bytes: usize::MAX,
            open_sessions: u64::MAX,
            groups: 0..1024,
            sources: vec!["s".into()],
            layout: Vec::new(),
        };
        Lane::new(config, Versions::single(Box::new(rule)))
    }

    fn rows(n: usize) -> Rows {
        let mut rows = Rows { heads: Vec::new(), bytes: b"k".to_vec() };
        rows.heads.extend((0..n).map(|n| RowHead {
            key_hash: key_hash(b"k"),
            time: EventTime::from_ms(n as i64),
            position: Position { source: 0, partition: 0, offset: n as u64 },
            key_at: 0,
            key_len: 1,
            ext_len: 0,
            raw_at: 0,
            raw_len: 0,
        }));
        rows
    }

    /// The reader ends an epoch by this count: one that does not come back to nothing would end every epoch at once.
    #[test]
    fn letters_of_a_fold_between_barriers_are_counted_until_the_barrier_takes_them() {
        let watermark = EventTime::from_ms(1 << 40);
        let batch = |rows| {
            let block = Arc::new(Block::default());
            ToLane::Batch(Batch { rows, block, watermark, source: "s".into(), partition: "p".into() })
        };
        let barrier = Barrier { watermark, early_tick: false, at_end: false };
        let letters = AtomicU64::new(0);
        let run = |messages: Vec<ToLane>| {
            let (to, input) = bounded(messages.len());
            messages.into_iter().for_each(|m| to.send(m).unwrap());
            drop(to);
            let ((part_to, parts), (spent, _emptied)) = (unbounded(), unbounded());
            let meters = Meters::new("p");
            let seen = Seen { letters: &letters, crowded: &AtomicBool::new(false), meters: &meters };
            run_lane(lane(), &input, &part_to, &spent, seen, None).unwrap();
            parts.try_iter().map(|p| p.letters.len() as u64).collect::<Vec<_>>()
        };
        assert_eq!(run(vec![batch(rows(SWEEP_ROWS))]), [0; 0]);
        let held = letters.swap(0, Ordering::Relaxed);
        assert!(held > SWEEP_ROWS as u64, "each row is a letter of its own: {held}");
        let parts = run(vec![batch(rows(SWEEP_ROWS)), ToLane::Barrier { barrier, image: None }]);
        assert_eq!((parts, letters.into_inner()), (vec![held], 0));
    }
}
