//! Going back to an earlier epoch of a pipeline (DESIGN 4): what would be given up, and giving it up.
//!
//! A human decides: `look` changes nothing and says everything; `carry_out` does what was shown, under the same claim.
//! The log is cut first, with the decision behind it, and the sinks follow. In between the same command can be given again; a run is
//! refused until the decision stands there, and then if a sink has seen more than the log holds; else it begins with what is left to be
//! taken back.

use super::RunError;
use super::pipeline::all_sinks;
use crate::clock::now_ms;
use crate::config::plan::{self, Pipeline, Plan, SinkKind};
use crate::meta::{Decision, Meta};
use std::path::PathBuf;
use std::sync::Arc;
use tidemill_connect::sink::TakenBack;
use tidemill_engine::record::Kind;
use tidemill_store::claim::Claim;
use tidemill_store::disk::{Disk, OsDisk};
use tidemill_store::epoch::can_send_again;
use tidemill_store::log::{self, EpochLog, RecordRef, Survey};

/// Decisions that a log remembers: enough to see a habit, few enough to stand in every epoch.
const DECISIONS_MAX: usize = 32;

/// What going back to an epoch would give up. Holds the data directory.
pub(crate) struct GoBack<'a> {
    plan: &'a Plan,
    pipeline: &'a Pipeline,
    claim: Claim,
    dir: PathBuf,
    meta: Meta,
    /// The newest that can be read.
    newest: Meta,
    at: RecordRef,
    /// Of the whole log.
    pub(crate) survey: Survey,
    /// Each sink with the newest epoch that shows in it.
    pub(crate) seen: Vec<(String, Option<u64>)>,
}

impl<'a> GoBack<'a> {
    /// Claims the data directory and reads what there is.
    ///
    /// # Errors
    /// `Refused` if the log cannot go back to this epoch: the message says to which it can.
    pub(crate) fn look(plan: &'a Plan, pipeline: &'a Pipeline, to: u64) -> Result<GoBack<'a>, RunError> {
        let claim = Claim::take(Arc::new(OsDisk), &plan.server.data_dir)?;
        let dir = claim.pipeline_dir(&pipeline.name);
        let mut first = 0;
        let mut can: Vec<u64> = Vec::new();
        let mut chosen = None;
        let mut newest = None;
        let used = pipeline.to.iter().map(|t| t.sink).chain(pipeline.dead);
        let sinks: Vec<_> = used.map(|i| &plan.sinks[i]).collect();
        let survey = EpochLog::survey(&OsDisk, &dir, |record, at| {
            if first == 0 {
                first = at.epoch;
            }
            let text = record.section(Kind::Meta).unwrap_or_default();
            // A record of another version is no place to go back to.
            let Ok(meta) = serde_json::from_slice::<Meta>(text) else { return Ok(()) };
            newest = Some(meta.clone());
            // Of a log whose front was trimmed, each key group must have an image in what is left.
            if !meta.needs().is_whole(first) {
                return Ok(());
            }
            // What was unresolved then must still be there to be resolved.
            if meta.unresolved_from.is_some_and(|epoch| epoch < first) {
                return Ok(());
            }
            // A file is cut back to where it stood then, and what it was sent since must still be there to be sent again.
            let files = sinks.iter().filter(|s| matches!(s.kind, SinkKind::File { .. }));
            let stood = files.filter_map(|s| meta.cursors.get(&s.name)).map(|c| c.epoch);
            if !can_send_again(first, stood) {
                return Ok(());
            }
            can.push(at.epoch);
            if at.epoch == to {
                chosen = Some((meta, at));
            }
            Ok(())
        })?;
        let Some((meta, at)) = chosen else {
            let can = match (can.first(), can.last()) {
                (Some(a), Some(b)) => format!("it can go back to epochs {a} to {b}"),
                _ => "there is no epoch to go back to; `run --fresh` starts over".to_owned(),
            };
            return Err(RunError::Refused(format!(
                "pipeline `{}`: the log holds no sound epoch {to} with all that it needs: {can}",
                pipeline.name
            )));
        };
        let mut seen = Vec::new();
        for (name, sink) in all_sinks(plan, pipeline) {
            let epoch = sink.witness().map_err(|e| RunError::of(&format!("sink `{name}`"), e))?;
            seen.push((name, epoch));
        }
        let newest = newest.unwrap_or_else(|| meta.clone());
        Ok(GoBack { plan, pipeline, claim, dir, meta, newest, at, survey, seen })
    }

    /// The epoch to go back to.
    pub(crate) fn to(&self) -> u64 {
        self.at.epoch
    }

    /// The newest epoch that can be read.
    pub(crate) fn newest(&self) -> u64 {
        self.survey.records.last().map_or(0, |r| r.epoch)
    }

    /// Bytes of the log that would be cut off.
    pub(crate) fn bytes_given_up(&self) -> u64 {
        let kept = self.survey.records.iter().filter(|r| r.epoch <= self.at.epoch);
        self.survey.bytes.saturating_sub(kept.map(|r| r.len).sum())
    }

    /// Who has seen a later epoch committed: it had left the host.
    pub(crate) fn contradicted_by(&self) -> Vec<String> {
        let to = self.at.epoch;
        let mut list = Vec::new();
        if self.survey.marker_epoch > to {
            list.push(format!("COMMITTED vouches for epoch {}", self.survey.marker_epoch));
        }
        for (name, seen) in &self.seen {
            if let Some(epoch) = seen.filter(|e| *e > to) {
                list.push(format!("sink `{name}` has confirmed epoch {epoch}"));
            }
        }
        list
    }

    /// Cuts the log, writes the decision into it, and has every sink take back what later epochs brought.
    ///
    /// # Errors
    /// The log, or a sink that refuses; the same command may then be given again.
    pub(crate) fn carry_out(mut self) -> Result<Vec<(String, TakenBack)>, RunError> {
        // A file that the pipeline did not have at the cut is emptied: it must have been the pipeline's since.
        let fingerprint = plan::fingerprint(self.pipeline, self.plan);
        for (name, sink) in all_sinks(self.plan, self.pipeline) {
            let has = |meta: &Meta| {
                let moved = plan::moved(&meta.fingerprint, &fingerprint, &name).is_some();
                meta.cursors.get(&name).copied().filter(|_| !moved)
            };
            if has(&self.meta).is_none() {
                sink.is_ours(has(&self.newest)).map_err(|e| RunError::of(&format!("sink `{name}`"), e))?;
            }
        }
        let incarnation = self.claim.next_incarnation()?;
        let to = self.at.epoch;
        let newest = self.newest().max(self.survey.marker_epoch);
        let mut meta = self.meta;
        let what = format!("went back to epoch {to}; what followed it, up to epoch {newest}, was given up");
        meta.decisions.push(Decision { at_ms: now_ms(), incarnation, what });
        let surplus = meta.decisions.len().saturating_sub(DECISIONS_MAX);
        meta.decisions.drain(..surplus);
        // What an earlier cut has left in a sink goes too.
        let back_to = meta.back_to.map_or(to, |earlier| earlier.min(to));
        meta.back_to = Some(back_to);
        let text = super::commit::meta_text(&meta)?;
        let decision = log::Decision { incarnation, sections: &[(Kind::Meta, &text)] };
        let segment_bytes = self.plan.server.segment_bytes;
        let disk: Arc<dyn Disk> = Arc::new(OsDisk);
        EpochLog::cut_after(&disk, &self.dir, &self.at, segment_bytes, &decision)?;
        let mut done = Vec::new();
        for (name, mut sink) in all_sinks(self.plan, self.pipeline) {
            let stored = meta.cursors.get(&name).copied();
            let taken = sink
                .take_back(incarnation, back_to, stored)
                .map_err(|e| RunError::of(&format!("sink `{name}`"), e))?;
            done.push((name, taken));
        }
        Ok(done)
    }
}
