//! A key's sessions as they are now beside what was sent of them: the differences are what leaves.

use super::answer::ClosedView;
use super::emit::Emit;
use super::turn::{Now, Pending};
use crate::event::Position;
use crate::key_state::{Ident, Open, Sent, Tail};
use crate::outbox::Stage;
use crate::time::EventTime;
use crate::versions::Version;

/// A session as it is now.
struct View<'a> {
    version: Version,
    first: &'a Ident,
    end: EventTime,
    last_position: Position,
    count: u64,
    reason: u16,
    fields: &'a str,
    discarded: bool,
    fixed_w: bool,
    settled: bool,
}

const OPEN: u16 = u16::MAX;

impl View<'_> {
    fn content(&self) -> u64 {
        let mut h = xxhash_rust::xxh3::Xxh3::new();
        h.update(&self.first.time.ms().to_le_bytes());
        h.update(&self.end.ms().to_le_bytes());
        h.update(&self.count.to_le_bytes());
        h.update(&self.reason.to_le_bytes());
        h.update(&self.version.0.to_le_bytes());
        h.update(self.fields.as_bytes());
        h.digest()
    }
}

/// Compares the key's sessions as they are now with what was sent, and emits the difference (SEMANTICS 14 to 17).
pub(super) fn compare(
    tail: &mut Tail,
    open: Option<&Open>,
    open_fields: &str,
    settled_b: EventTime,
    p: Pending,
    now: Now,
    emit: &mut Emit<'_>,
) {
    let told = tail.tell();
    let mut sent = std::mem::take(&mut told.sent).into_iter().peekable();
    let mut next = Vec::new();
    let closed = told.closed.iter().filter(|c| !c.fixed_at(settled_b)).map(|c| View {
        version: c.version,
        first: &c.first,
        end: c.last,
        last_position: c.last_position,
        count: c.count,
        reason: c.reason,
        fields: &c.fields,
        discarded: c.discarded,
        fixed_w: c.fixed_at(now.w),
        settled: c.fixed_at(now.b),
    });
    let open = open.map(|o| View {
        version: emit.versions.of_open(o.version, o.first.time, o.last),
        first: &o.first,
        end: o.last,
        last_position: o.last_position,
        count: o.count,
        reason: OPEN,
        fields: open_fields,
        discarded: false,
        fixed_w: false,
        settled: false,
    });
    let views: Vec<View<'_>> = closed.chain(open).collect();
    for (i, v) in views.iter().enumerate() {
        while let Some(s) = sent.next_if(|s| s.anchor.order(v.first).is_lt()) {
            emit.retract(s);
        }
        if v.reason == OPEN && !p.reporting {
            break;
        }
        let end = views.get(i + 1).map(|v| v.first);
        let mut mine = Vec::new();
        while let Some(s) = sent.next_if(|s| end.is_none_or(|e| s.anchor.order(e).is_lt())) {
            mine.push(s);
        }
        if let Some(s) = revise(v, mine, now, emit) {
            next.push(s);
        }
    }
    for s in sent {
        if p.reporting {
            emit.retract(s);
        } else {
            next.push(s);
        }
    }
    told.sent = next;
}

/// One session against the anchors it contains; returns what is known of it from now on.
fn revise(v: &View<'_>, mut mine: Vec<Sent>, now: Now, emit: &mut Emit<'_>) -> Option<Sent> {
    if v.discarded {
        mine.into_iter().for_each(|s| emit.retract(s));
        if v.settled {
            let position_id = v.first.position.id_bytes();
            emit.discarded(&ClosedView {
                version: v.version,
                anchor_time: v.first.time,
                anchor_id: v.first.id.as_deref().unwrap_or(&position_id),
                anchor_position: v.first.position,
                end: v.end,
                last_position: v.last_position,
                count: v.count,
                reason: v.reason,
                discarded: true,
                fields: v.fields,
            });
        }
        return None;
    }
    let known = if mine.is_empty() { None } else { Some(mine.remove(0)) };
    mine.into_iter().for_each(|s| emit.retract(s));
    if known.is_none() && !v.fixed_w && !now.barrier.early_tick {
        return None;
    }
    let content = v.content();
    let was_final = known.as_ref().is_some_and(|k| k.was_final);
    let same = known.as_ref().is_some_and(|k| k.content == content);
    let before = known.as_ref().map(|k| k.stage);
    let stage = match (v.fixed_w, was_final) {
        (false, _) => Stage::Early,
        (true, false) => Stage::Final,
        (true, true) if same && before != Some(Stage::Early) => before.unwrap_or(Stage::Final),
        (true, true) => Stage::Corrected,
    };
    let now_sent = Sent {
        anchor: known.map_or_else(|| v.first.clone(), |k| k.anchor),
        stage,
        was_final: was_final || v.fixed_w,
        start: v.first.time,
        end: v.end,
        count: v.count,
        reason: v.reason,
        version: v.version,
        content,
    };
    if !same || before != Some(stage) {
        emit.sent(&now_sent, v.fields);
    }
    (!v.settled).then_some(now_sent)
}
