//! Holds the answer for a turn to the rules of the contract (`wit/README.md`, SEMANTICS 10).
//!
//! A rule that breaks one has failed at that turn just as if it had trapped: nothing of its answer is used. So everything behind
//! this check may index without looking, and counts and bounds of sessions come from indices that make sense.

use crate::bounds::{FIELDS_BYTES, STATE_BYTES};
use crate::rule::{
    Cause, Closing, Description, END_OF_INPUT, Input, LIMIT, Place, Results, Span, StateAt, Turn, TurnResult,
    Turns,
};
use crate::time::EventTime;
use serde::de::IgnoredAny;

/// What is wrong with the answer `r` for `turn`, if anything.
///
/// # Errors
/// A sentence for the rule's author.
pub(crate) fn check(
    description: &Description,
    turns: &Turns,
    turn: &Turn,
    results: &Results,
    r: &TurnResult,
) -> Result<(), String> {
    let inputs = &turns.inputs[turn.inputs.range()];
    let wanted = &turns.wanted[turn.wanted.range()];
    let closings = slice(&results.closings, r.closings)?;
    let snapshots = slice(&results.snapshots, r.snapshots)?;
    let rejections = slice(&results.rejections, r.rejections)?;

    let mut dead = None;
    for x in rejections {
        if x.input as usize >= inputs.len() || dead.is_some_and(|d| d >= x.input) {
            return Err("rejected inputs do not rise".into());
        }
        if description.reason(x.reason).is_none() {
            return Err(format!("input {} is rejected for reason {}, which has no name", x.input, x.reason));
        }
        dead = Some(x.input);
    }
    for c in slice(&results.counts, r.counts)? {
        let Some(metric) = description.metrics.get(c.metric as usize) else {
            return Err(format!("metric {} is counted, which has no name", c.metric));
        };
        if !c.value.is_finite() || c.value < 0.0 && metric.bounds.is_empty() {
            return Err(format!("{} cannot be added to metric {}", c.value, metric.name));
        }
        if c.input.is_some_and(|i| i as usize >= inputs.len()) {
            return Err(format!("metric {} is counted at an input that is not there", metric.name));
        }
    }
    let is_dead = |i: u32| !rejections.is_empty() && rejections.binary_search_by_key(&i, |x| x.input).is_ok();
    let live_from = |at: u32| (at..inputs.len() as u32).find(|i| !is_dead(*i));
    let walk = Walk { description, turn, inputs, results };

    let mut carried = turn.open.is_some();
    let mut next = live_from(0);
    let mut snapshots_seen = 0;
    for (n, c) in closings.iter().enumerate() {
        let Some(first) = walk.first(carried, next) else {
            return Err(format!("closing {n} stands where no session is"));
        };
        if c.first != first {
            return Err(format!("closing {n} begins at {:?}, the session at {first:?}", c.first));
        }
        let after = match (c.last, first) {
            (Place::Carried, Place::Carried) => next,
            (Place::Input(j), _)
                if next.is_some_and(|at| j >= at) && !is_dead(j) && (j as usize) < inputs.len() =>
            {
                live_from(j + 1)
            }
            _ => return Err(format!("closing {n} ends at {:?}", c.last)),
        };
        walk.cause(n, c, after, n + 1 == closings.len())?;
        // Snapshots after inputs of this session, and after rejected ones up to the next.
        let until = after.unwrap_or(inputs.len() as u32);
        while let Some(&w) = wanted.get(snapshots_seen).filter(|w| **w < until) {
            let Some(s) = snapshots.get(snapshots_seen) else { return Err("a snapshot is missing".into()) };
            let closed_by_it = c.cause == Cause::Input(w) && c.last == Place::Input(w);
            let after_last = match c.last {
                Place::Input(j) => w > j,
                Place::Carried => true,
            };
            let before_first = matches!(first, Place::Input(f) if w < f);
            let fits = match s.first {
                None => closed_by_it || after_last || before_first,
                Some(f) => f == first && !closed_by_it && !before_first,
            };
            if !fits {
                return Err(format!("the snapshot after input {w} has another session"));
            }
            walk.state(s, inputs[w as usize].time, false)?;
            snapshots_seen += 1;
        }
        carried = false;
        next = after;
    }
    let open = walk.first(carried, next);
    if r.end.first != open {
        return Err(format!("at the end {:?} is open, where {open:?} should be", r.end.first));
    }
    if turn.at_end && open.is_some() {
        return Err("a session is open after the end of the input".into());
    }
    for (w, s) in wanted[snapshots_seen..].iter().zip(snapshots.get(snapshots_seen..).unwrap_or_default()) {
        let before_first = matches!(open, Some(Place::Input(f)) if *w < f);
        if s.first != open.filter(|_| !before_first) {
            return Err(format!("the snapshot after input {w} has another session"));
        }
        walk.state(s, inputs[*w as usize].time, false)?;
    }
    if snapshots.len() != wanted.len() {
        return Err(format!("{} snapshots, where {} are wanted", snapshots.len(), wanted.len()));
    }
    let last = inputs.last().map_or(EventTime::BEGINNING, |i| i.time);
    walk.state(&r.end, last, true)?;
    walk.fields(r.open_fields)
}

struct Walk<'a> {
    description: &'a Description,
    turn: &'a Turn,
    inputs: &'a [Input],
    results: &'a Results,
}

impl Walk<'_> {
    /// Where the session begins that is open now, before `next`.
    fn first(&self, carried: bool, next: Option<u32>) -> Option<Place> {
        if carried { Some(Place::Carried) } else { next.map(Place::Input) }
    }

    fn time(&self, place: Place) -> EventTime {
        match place {
            Place::Carried => self.turn.open.map_or(EventTime::BEGINNING, |o| o.last),
            Place::Input(i) => self.inputs[i as usize].time,
        }
    }

    fn cause(&self, n: usize, c: &Closing, after: Option<u32>, is_last: bool) -> Result<(), String> {
        if self.description.reason(c.reason).is_none() {
            return Err(format!("closing {n} has reason {}, which has no name", c.reason));
        }
        let fits = match c.cause {
            Cause::Input(i) => c.last == Place::Input(i) || after == Some(i),
            Cause::Timer(t) => {
                // Rejected inputs may stand behind the last session, and timers fire before them too.
                let over = self.inputs.last().map_or(self.turn.until, |i| i.time.max(self.turn.until));
                usize::from(t.number) < self.description.timers.len()
                    && t.at > self.time(c.last)
                    && t.at <= after.map_or(over, |i| self.inputs[i as usize].time)
                    && t.at != EventTime::INFINITY
            }
            Cause::End => self.turn.at_end && is_last && after.is_none(),
        };
        let host_reason_fits = match c.reason {
            END_OF_INPUT => c.cause == Cause::End,
            LIMIT => matches!(c.cause, Cause::Timer(_)),
            _ => true,
        };
        if !fits || !host_reason_fits {
            return Err(format!("closing {n} has a cause that does not fit: {:?}", c.cause));
        }
        self.fields(c.fields)
    }

    fn fields(&self, fields: Span) -> Result<(), String> {
        let bytes = slice(&self.results.bytes, fields)?;
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.len() > FIELDS_BYTES {
            return Err(format!("{} bytes of fields; at most {FIELDS_BYTES} are allowed", bytes.len()));
        }
        if bytes.first() != Some(&b'{') || serde_json::from_slice::<IgnoredAny>(bytes).is_err() {
            return Err("the fields of a session are no JSON object".into());
        }
        if bytes.contains(&b'\n') {
            return Err("the fields of a session hold a line break".into());
        }
        Ok(())
    }

    fn state(&self, s: &StateAt, now: EventTime, at_end: bool) -> Result<(), String> {
        let timers = slice(&self.results.timers, s.timers)?;
        if slice(&self.results.bytes, s.state)?.len() > STATE_BYTES {
            return Err(format!("a state of {} bytes; at most {STATE_BYTES} are allowed", s.state.len));
        }
        if s.first.is_none() && (!timers.is_empty() || s.state.len != 0) {
            return Err("a state or a timer where nothing is open".into());
        }
        let mut seen = 0_u32;
        for t in timers {
            let bit = 1_u32.checked_shl(u32::from(t.number)).unwrap_or(0);
            if usize::from(t.number) >= self.description.timers.len() || seen & bit != 0 {
                return Err(format!("timer {} is pending twice, or has no name", t.number));
            }
            seen |= bit;
            let overdue = at_end && t.at <= self.turn.until && t.at != EventTime::INFINITY;
            if t.at <= now || overdue {
                return Err(format!("timer {} is pending at {}, which has passed", t.number, t.at.ms()));
            }
        }
        Ok(())
    }
}

fn slice<T>(of: &[T], at: Span) -> Result<&[T], String> {
    (at.at as usize)
        .checked_add(at.len as usize)
        .and_then(|end| of.get(at.at as usize..end))
        .ok_or_else(|| "a range outside its section".into())
}

#[cfg(test)]
mod tests;
