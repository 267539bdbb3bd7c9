//! Questions and answers as an author reads them. Two answers that differ in their bytes differ here too, or are said to.

use std::fmt::Write as _;

use tidemill_contract::frame::{Frame, FrameError, Kind};
use tidemill_contract::rows::{
    self, CARRIED, Closing, Count, Enriched, REASON_END_OF_INPUT, REASON_LIMIT, Range, Rejection, Request,
    Session, StateAt, Timer, Turn, TurnResult, Verdict, cause, state_kind,
};
use tidemill_sandbox::Description;

/// What a call is about, in a few words.
pub(super) fn question(export: &str, words: &[u64]) -> String {
    let about = match export {
        "fold" => Frame::read(words, Kind::Turns).and_then(|f| {
            let (turns, bytes) = (f.rows::<Turn>(0)?, f.rows::<u8>(4)?);
            let keys =
                turns.iter().map(|t| Ok(format!("key {:?}, {} event(s)", text(t.key, bytes)?, t.inputs.len)));
            keys.collect::<Result<Vec<_>, FrameError>>()
        }),
        "validate" => Frame::read(words, Kind::Events).map(|_| vec!["an event".to_owned()]),
        _ => Frame::read(words, Kind::Sessions).and_then(|f| {
            let (sessions, bytes) = (f.rows::<Session>(0)?, f.rows::<u8>(2)?);
            let keys = sessions.iter().map(|s| {
                Ok(format!("session of {:?}, fields {}", text(s.key, bytes)?, text(s.fields, bytes)?))
            });
            keys.collect::<Result<Vec<_>, FrameError>>()
        }),
    };
    format!("{export}: {}", about.map_or_else(|e| e.to_string(), |list| list.join("; ")))
}

/// An answer, a fact a line.
pub(super) fn answer(export: &str, words: &[u64], d: &Description) -> String {
    let shown = match export {
        "fold" => results(words, d),
        "validate" => verdicts(words, d),
        "requests" => requests(words, d),
        _ => enriched(words, d),
    };
    shown.unwrap_or_else(|e| format!("{e}\n"))
}

fn text(range: Range, bytes: &[u8]) -> Result<String, FrameError> {
    Ok(String::from_utf8_lossy(range.of(bytes)?).into_owned())
}

fn name(names: &[String], n: u64) -> String {
    let known = usize::try_from(n).ok().and_then(|n| names.get(n));
    known.cloned().unwrap_or_else(|| format!("number {n}"))
}

fn results(words: &[u64], d: &Description) -> Result<String, FrameError> {
    let frame = Frame::read(words, Kind::Results)?;
    let (closings, snapshots) = (frame.rows::<Closing>(1)?, frame.rows::<StateAt>(2)?);
    let (rejections, timers) = (frame.rows::<Rejection>(3)?, frame.rows::<Timer>(4)?);
    let bytes: &[u8] = frame.rows(7)?;
    let mut out = String::new();
    for turn in frame.rows::<TurnResult>(0)? {
        for c in turn.closings.of(closings)? {
            let reason = match c.reason {
                REASON_END_OF_INPUT => "end_of_input".to_owned(),
                REASON_LIMIT => "limit".to_owned(),
                n => name(&d.reasons, n.into()),
            };
            let by = match c.cause {
                cause::INPUT => format!("event {}", c.index),
                cause::TIMER => format!("timer {} at {}", name(&d.timers, c.index.into()), c.at),
                _ => "the end".to_owned(),
            };
            let what = if c.discarded == 0 { "session" } else { "discarded" };
            let first = if c.first == CARRIED { "carried".to_owned() } else { c.first.to_string() };
            let _ = writeln!(
                out,
                "{what} of events {first} to {}, {reason} by {by}, {}",
                c.last,
                text(c.fields, bytes)?
            );
        }
        for r in turn.rejections.of(rejections)? {
            let _ = writeln!(out, "rejected event {}: {}", r.input, name(&d.reasons, r.reason.into()));
        }
        for (what, s) in
            turn.snapshots.of(snapshots)?.iter().map(|s| ("state", s)).chain([("at the end", &turn.end)])
        {
            let _ = match s.kind {
                state_kind::NONE => writeln!(out, "{what}: nothing open"),
                state_kind::UNCHANGED => writeln!(out, "{what}: unchanged"),
                _ => {
                    let set = s
                        .timers
                        .of(timers)?
                        .iter()
                        .map(|t| format!("{} at {}", name(&d.timers, t.number), t.at));
                    let set: Vec<String> = set.collect();
                    writeln!(
                        out,
                        "{what}: open from {}, state {:02x?}, timers {set:?}",
                        s.first,
                        s.state.of(bytes)?
                    )
                }
            };
        }
        if turn.open_fields.len > 0 {
            let _ = writeln!(out, "open with {}", text(turn.open_fields, bytes)?);
        }
    }
    counts(frame.rows(5)?, d, &mut out);
    for n in frame.rows::<rows::Note>(6)? {
        let _ = writeln!(out, "note {}", text(n.text, bytes)?);
    }
    Ok(out)
}

fn verdicts(words: &[u64], d: &Description) -> Result<String, FrameError> {
    let frame = Frame::read(words, Kind::Verdicts)?;
    let bytes: &[u8] = frame.rows(2)?;
    let mut out = String::new();
    for v in frame.rows::<Verdict>(0)? {
        let _ = match v.code.checked_sub(1) {
            None => writeln!(out, "accepted"),
            Some(n) => writeln!(out, "rejected: {} {}", name(&d.reasons, n), text(v.message, bytes)?),
        };
    }
    counts(frame.rows(1)?, d, &mut out);
    Ok(out)
}

fn requests(words: &[u64], d: &Description) -> Result<String, FrameError> {
    let frame = Frame::read(words, Kind::Requests)?;
    let bytes: &[u8] = frame.rows(1)?;
    let asked = frame.rows::<Request>(0)?.iter();
    asked
        .map(|r| Ok(format!("asks {} for {:?}\n", name(&d.lookups, r.lookup.into()), text(r.key, bytes)?)))
        .collect()
}

fn enriched(words: &[u64], d: &Description) -> Result<String, FrameError> {
    let frame = Frame::read(words, Kind::Enriched)?;
    let bytes: &[u8] = frame.rows(2)?;
    let mut out = String::new();
    for e in frame.rows::<Enriched>(0)? {
        let _ = match e.code.checked_sub(1) {
            None => writeln!(out, "fields {}", text(e.fields, bytes)?),
            Some(n) => writeln!(out, "refused: {}", name(&d.reasons, n)),
        };
    }
    counts(frame.rows(1)?, d, &mut out);
    Ok(out)
}

fn counts(list: &[Count], d: &Description, out: &mut String) {
    for c in list {
        let metric = usize::try_from(c.metric).ok().and_then(|n| d.metrics.get(n));
        let metric = metric.map_or("unknown", |m| m.name.as_str());
        let _ = writeln!(out, "counts {} to {metric}", c.value);
    }
}
