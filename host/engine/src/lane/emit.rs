//! Writes what leaves of one key: revisions and dead letters.

use super::answer::ClosedView;
use super::epoch::LaneCounts;
use crate::event::ext;
use crate::key::{KeyForm, session_id};
use crate::key_state::{Poison, Rejected, Sent, Tail};
use crate::letter::{RecordLetter, SessionLetter};
use crate::outbox::{SessionRow, Stage};
use crate::versions::Versions;
use std::collections::BTreeMap;

/// Writes revisions of one key.
pub(super) struct Emit<'a> {
    pub(super) pipeline: &'a str,
    pub(super) key: &'a [u8],
    pub(super) key_form: KeyForm,
    pub(super) sources: &'a [String],
    pub(super) versions: &'a Versions,
    /// Names of the declared fields, in the order of the extension.
    pub(super) layout: &'a [String],
    pub(super) rows: &'a mut Vec<u8>,
    pub(super) letters: &'a mut Vec<u8>,
    pub(super) dead: &'a mut BTreeMap<String, u64>,
    pub(super) counts: &'a mut LaneCounts,
}

impl Emit<'_> {
    pub(super) fn settled(&mut self, c: &ClosedView<'_>) {
        if c.discarded {
            self.discarded(c);
            return;
        }
        let id = session_id(self.pipeline, self.key, c.anchor_time, c.anchor_id);
        self.counts.revisions[Stage::Final as usize] += 1;
        SessionRow {
            id,
            key: &self.key_form.display(self.key),
            start: c.anchor_time,
            end: c.end,
            events: c.count,
            stage: Stage::Final,
            reason: self.versions.reason(c.reason),
            plugin: self.versions.plugin(c.version),
            fields: c.fields,
        }
        .encode(self.rows);
    }

    fn died(&mut self, reason: &str) {
        match self.dead.get_mut(reason) {
            Some(n) => *n += 1,
            None => drop(self.dead.insert(reason.to_owned(), 1)),
        }
    }

    /// The letter of a session that the rule discarded, once it is settled.
    pub(super) fn discarded(&mut self, c: &ClosedView<'_>) {
        let reason = self.versions.reason(c.reason).unwrap_or("discarded");
        SessionLetter {
            reason,
            session_id: &crate::outbox::hex(&session_id(self.pipeline, self.key, c.anchor_time, c.anchor_id)),
            key: &self.key_form.display(self.key),
            start_ms: c.anchor_time.ms(),
            end_ms: c.end.ms(),
            events: c.count,
            first: c.anchor_position,
            last: c.last_position,
            plugin: self.versions.plugin(c.version),
            digest: self.versions.digest(c.version),
            fields: c.fields,
        }
        .write(self.letters);
        self.died(reason);
    }

    /// Letters of the events among the first `n` rows that belong to no session: they are settled now (SEMANTICS 18).
    pub(super) fn rejected(&mut self, tail: &mut Tail, n: usize) {
        for i in 0..tail.told().rejected.len() {
            let Rejected { row, reason } = tail.told().rejected[i];
            if row >= n {
                continue;
            }
            let row = tail.rows[row];
            let event = row.ident(&tail.ext);
            let is_it = |p: &Poison| p.event == event;
            let poison =
                tail.told_mut().and_then(|t| Some(t.poison.remove(t.poison.iter().position(is_it)?)));
            let reason = self.versions.reason(reason).unwrap_or("rejected");
            let ext = row.ext(&tail.ext);
            let fields: Vec<_> = self
                .layout
                .iter()
                .enumerate()
                .filter_map(|(n, name)| Some((name.as_str(), ext::field(ext, n).display()?)))
                .collect();
            let version = self.versions.at(row.time);
            let id = event.id.as_deref().map(|id| String::from_utf8_lossy(id));
            RecordLetter {
                reason,
                stage: "fold",
                source: self.sources.get(row.position.source as usize).map_or("", String::as_str),
                partition: "",
                position: Some(row.position),
                message: poison.as_ref().map_or("the rule rejected the event", |p| &p.message),
                fields: &[],
                key: Some(&self.key_form.display(self.key)),
                time_ms: Some(row.time.ms()),
                id: id.as_deref(),
                plugin: Some(self.versions.plugin(version)),
                digest: self.versions.digest(version),
                event: &fields,
                raw: None,
                raw_bytes: 0,
            }
            .write(self.letters);
            self.died(reason);
        }
    }

    pub(super) fn sent(&mut self, s: &Sent, fields: &str) {
        let id = s.anchor.with_id(|id| session_id(self.pipeline, self.key, s.anchor.time, id));
        self.counts.revisions[s.stage as usize] += 1;
        SessionRow {
            id,
            key: &self.key_form.display(self.key),
            start: s.start,
            end: s.end,
            events: s.count,
            stage: s.stage,
            reason: self.versions.reason(s.reason),
            plugin: self.versions.plugin(s.version),
            fields,
        }
        .encode(self.rows);
    }

    pub(super) fn retract(&mut self, mut s: Sent) {
        s.stage = Stage::Retracted;
        self.sent(&s, "{}");
    }
}
