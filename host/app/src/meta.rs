//! The `Meta` section of an epoch record: everything durable but the keys' state. JSON, so that a human can read it.

use crate::plugin::budget::Suspended;
use crate::schedule::Schedule;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tidemill_connect::Cursor;
use tidemill_connect::lookup::LookupCounts;
use tidemill_connect::source::PartitionIdentity;
use tidemill_engine::hot::HotKey;
use tidemill_engine::lane::LaneCounts;
use tidemill_engine::metrics::Totals;
use tidemill_engine::time::EventTime;
use tidemill_engine::watermark::PartitionTime;
use tidemill_store::epoch::{IMAGE_BLOCKS, Needs};

/// See the module's documentation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// What was run (`config::plan::fingerprint`).
    pub(crate) fingerprint: serde_json::Value,
    /// Host clock at the pipeline's first start: a generator's own beginning.
    pub(crate) first_start_ms: i64,
    /// Host clock when the epoch was sealed.
    pub(crate) sealed_at_ms: i64,
    /// The watermark.
    pub(crate) watermark: EventTime,
    /// The greatest event time that was accepted: a swap lies after it (SEMANTICS 20).
    pub(crate) greatest: EventTime,
    /// All input was used up, all sessions closed.
    pub(crate) ended: bool,
    /// The same, and nothing waits for its lookups any more (SEMANTICS 9).
    pub(crate) finished: bool,
    /// Sources in order of their number.
    pub(crate) sources: Vec<SourceMeta>,
    /// How far each sink has confirmed, as known when the epoch was sealed.
    pub(crate) cursors: BTreeMap<String, Cursor>,
    /// The newest epoch that had something to send: a sink that has confirmed it has everything.
    pub(crate) outbox_epoch: u64,
    /// Epoch of the newest image of each block of key groups, 0 for none: nothing older of them is needed.
    pub(crate) images: Vec<u64>,
    /// What humans have decided about this log, the latest last.
    pub(crate) decisions: Vec<Decision>,
    /// Somebody went back to this epoch: sinks take back what later ones had sent, those that could not be asked then when they are
    /// opened, and all that may still change is to be sent again.
    pub(crate) back_to: Option<u64>,
    /// Since the pipeline's first start.
    pub(crate) counters: Counters,
    /// Keys with an open session or pending events.
    pub(crate) live_keys: u64,
    /// Bytes of pending events.
    pub(crate) suffix_bytes: u64,
    /// Bytes of open sessions, with their states.
    pub(crate) base_bytes: u64,
    /// Keys that went over their cap, as rows show them; the last few.
    pub(crate) keys_over_cap: Vec<String>,
    /// Keys that brought a great part of their lane's events in the newest epoch with enough events to tell.
    pub(crate) hot_keys: Vec<HotKey>,
    /// Revisions that wait for their lookups.
    pub(crate) unresolved: u64,
    /// The oldest epoch that has one.
    pub(crate) unresolved_from: Option<u64>,
    /// What the lookups did since the pipeline's first start, by name.
    pub(crate) lookups: BTreeMap<String, LookupMeta>,
    /// The pipeline was suspended after the last epoch with events, and has not run since.
    pub(crate) suspended: Option<Suspended>,
    /// An operator has paused it: it reads nothing until one resumes it.
    pub(crate) paused: bool,
    /// Which versions of the rule run it, and have run it.
    pub(crate) schedule: Schedule,
    /// What operators did, the latest last.
    pub(crate) audit: Vec<Entry>,
}

impl Meta {
    /// Of a pipeline that has not begun: nothing is read, nothing is known.
    pub(crate) fn nothing(fingerprint: serde_json::Value, now_ms: i64) -> Meta {
        Meta {
            fingerprint,
            first_start_ms: now_ms,
            sealed_at_ms: now_ms,
            watermark: EventTime::BEGINNING,
            greatest: EventTime::BEGINNING,
            ended: false,
            finished: false,
            sources: Vec::new(),
            cursors: BTreeMap::new(),
            outbox_epoch: 0,
            images: vec![0; IMAGE_BLOCKS],
            decisions: Vec::new(),
            back_to: None,
            counters: Counters::default(),
            live_keys: 0,
            suffix_bytes: 0,
            base_bytes: 0,
            keys_over_cap: Vec::new(),
            hot_keys: Vec::new(),
            unresolved: 0,
            unresolved_from: None,
            lookups: BTreeMap::new(),
            suspended: None,
            paused: false,
            schedule: Schedule::default(),
            audit: Vec::new(),
        }
    }

    /// What the log is needed for after this epoch.
    pub(crate) fn needs(&self) -> Needs {
        Needs { images: self.images.clone(), outbox_epoch: self.outbox_epoch }
    }

    pub(crate) fn put_needs(&mut self, needs: &Needs) {
        self.images.clone_from(&needs.images);
        self.outbox_epoch = needs.outbox_epoch;
    }
}

/// Entries of the audit on versions that are kept: what weeks of careful operation bring.
pub(crate) const AUDIT_MAX: usize = 100;
/// Entries of the audit on pauses that are kept besides: they come in pairs, and from scripts, and crowd nothing out.
pub(crate) const AUDIT_PAUSES_MAX: usize = 40;

/// Something that an operator did to a pipeline.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Host clock, ms.
    pub(crate) at_ms: i64,
    /// Who: `config` for a changed file, else the name of the token.
    pub(crate) by: String,
    /// What: `deploy`, `rollback`, `settled`, `pause`, `resume`.
    pub(crate) action: String,
    /// In words.
    pub(crate) what: String,
}

impl Entry {
    /// Puts it behind the others, of which the oldest of its kind goes if there are too many.
    pub(crate) fn enter(self, audit: &mut Vec<Entry>) {
        let is_pause = |e: &Entry| matches!(e.action.as_str(), "pause" | "resume");
        let of_pauses = is_pause(&self);
        let most = if of_pauses { AUDIT_PAUSES_MAX } else { AUDIT_MAX };
        if audit.iter().filter(|e| is_pause(e) == of_pauses).count() >= most
            && let Some(oldest) = audit.iter().position(|e| is_pause(e) == of_pauses)
        {
            audit.remove(oldest);
        }
        audit.push(self);
    }
}

/// A lookup, as it was when the epoch was sealed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LookupMeta {
    /// What it did.
    #[serde(flatten)]
    pub(crate) counts: LookupCounts,
    /// What was wrong with it.
    pub(crate) trouble: Option<String>,
    /// When the rows that it keeps whole were read, host clock, ms; none if it keeps none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) read_at_ms: Option<i64>,
}

/// An entry of the log about the log itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Decision {
    /// Host clock, ms.
    pub(crate) at_ms: i64,
    /// The incarnation that was taken for it.
    pub(crate) incarnation: u64,
    /// In words.
    pub(crate) what: String,
}

/// A source and its partitions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SourceMeta {
    /// Its name; its number is its place in the list.
    pub(crate) name: String,
    /// Partitions in order of their number.
    pub(crate) partitions: Vec<PartitionMeta>,
}

/// A partition and how far it was read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PartitionMeta {
    /// What makes it this file.
    pub(crate) identity: PartitionIdentity,
    /// Where the next record starts, after decompression.
    pub(crate) offset: u64,
    /// Its progress in event time.
    pub(crate) time: PartitionTime,
    /// Host clock when it was listed with what is to be read of it: bounded input is held against it (SEMANTICS 5), so that
    /// what is read again after a crash is judged as before, and tomorrow's file by tomorrow's clock.
    pub(crate) listed_at_ms: i64,
}

/// What happened.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Counters {
    /// Records read.
    pub(crate) records: u64,
    /// Events taken into the fold; copies included.
    pub(crate) events: u64,
    /// Copies of events folded before, which `dedup` has told from late ones.
    pub(crate) copies: u64,
    /// Dead letters by reason: what the host could not use.
    pub(crate) dead: BTreeMap<String, u64>,
    /// Dead letters that the rule has caused, by its reasons: rejected events, discarded sessions, faults.
    pub(crate) dead_by_rule: BTreeMap<String, u64>,
    /// What the fold counted: revisions by stage, copies.
    pub(crate) fold: LaneCounts,
    /// Plugins' own metrics, by the plugin's name in the config.
    pub(crate) plugins: BTreeMap<String, Totals>,
    /// Lines of plugins that nobody was shown: over the rate, or more than could be written.
    pub(crate) plugin_lines_dropped: u64,
}

impl Counters {
    /// All dead letters, by reason.
    pub(crate) fn letters(&self) -> BTreeMap<&str, u64> {
        let mut all: BTreeMap<&str, u64> = BTreeMap::new();
        for (reason, n) in self.dead.iter().chain(&self.dead_by_rule) {
            *all.entry(reason).or_default() += n;
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bug family: a script that pauses and resumes, and nobody knows any more who deployed what.
    #[test]
    fn pauses_crowd_no_deployment_out_of_the_audit() {
        let entry = |n: i64, action: &str| Entry {
            at_ms: n,
            by: "admin".into(),
            action: action.into(),
            what: String::new(),
        };
        let mut audit = Vec::new();
        for n in 0..10 * AUDIT_MAX as i64 {
            let action = match n {
                0 | 500 => "deploy",
                n if n % 2 == 0 => "pause",
                _ => "resume",
            };
            entry(n, action).enter(&mut audit);
        }
        let deployed: Vec<i64> = audit.iter().filter(|e| e.action == "deploy").map(|e| e.at_ms).collect();
        assert_eq!((deployed, audit.len()), (vec![0, 500], AUDIT_PAUSES_MAX + 2));
        assert!(audit.is_sorted_by_key(|e| e.at_ms));
        for n in 0..2 * AUDIT_MAX as i64 {
            entry(2_000 + n, "deploy").enter(&mut audit);
        }
        assert_eq!(audit.len(), AUDIT_MAX + AUDIT_PAUSES_MAX);
        assert_eq!(audit[AUDIT_PAUSES_MAX].at_ms, 2_000 + AUDIT_MAX as i64, "the newest are kept");
    }
}
