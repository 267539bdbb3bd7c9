//! Crash points: a scripted run with swaps, corrections and retractions is cut before and after every I/O operation, with
//! none, all or a random part of what was not synced, and cut again while it recovers. Each time it must come to an epoch at or
//! past the last that anybody was told of, and in the end to the model's table.

use crate::counts::Counts;
use crate::disk::{Keep, SimDisk};
use crate::sim::Sim;

/// Operations of a recovery, and a little of what follows: where the second cut falls.
const SECOND_WITHIN: u64 = 60;

/// Which crash points of a script.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// All.
    All,
    /// Every so many.
    Every(u64),
    /// The one with this number, from 1.
    One(u64),
}

impl Which {
    fn has(self, number: u64) -> bool {
        match self {
            Which::All => true,
            Which::Every(n) => number.is_multiple_of(n.max(1)),
            Which::One(n) => number == n,
        }
    }
}

/// Runs crash points of a script; `judge` is told of each, and says whether to go on. Returns what
/// occurs in the script without a crash.
///
/// # Errors
/// If the script itself fails, without any crash.
pub fn script(
    seed: u64,
    which: Which,
    mut judge: impl FnMut(u64, Result<(), String>) -> bool,
) -> Result<Counts, String> {
    let (first, operations, counts) = whole(seed)?;
    let mut number = 0;
    for at in first + 1..=operations {
        for after in [false, true] {
            for keep in [Keep::None, Keep::All, Keep::Some] {
                for again in [false, true] {
                    number += 1;
                    if !which.has(number) {
                        continue;
                    }
                    let point = Point { at, after, keep, again: again.then_some(number) };
                    let verdict = crash(seed, point).map_err(|what| format!("{point:?}: {what}"));
                    if !judge(number, verdict) {
                        return Ok(counts);
                    }
                }
            }
        }
    }
    Ok(counts)
}

#[derive(Clone, Copy, Debug)]
struct Point {
    at: u64,
    after: bool,
    keep: Keep,
    /// Decides where the second cut falls; none: there is none.
    again: Option<u64>,
}

/// Without a crash: at which operations it begins and ends.
fn whole(seed: u64) -> Result<(u64, u64, Counts), String> {
    let mut sim = Sim::scripted(seed);
    sim.begin()?;
    let first = sim.disk().operations();
    sim.act_out(|_| {})?;
    Ok((first, sim.disk().operations(), sim.counts()))
}

fn crash(seed: u64, point: Point) -> Result<(), String> {
    let mut sim = Sim::scripted(seed);
    sim.begin()?;
    sim.keeps(point.keep);
    sim.disk().cut_at(point.at, point.after);
    let mut again = point.again;
    sim.act_out(|disk: &SimDisk| {
        // The first recovery is cut, too.
        if let Some(n) = again.take() {
            disk.cut_at(disk.operations() + 1 + n % SECOND_WITHIN, n % 2 == 0);
        }
    })
}
