//! The reader: one thread of a pipeline that reads all its partitions in step, decodes, stamps batches
//! with the watermark, and says when an epoch ends (SEMANTICS 5 to 9).

mod changes;
mod follow;
mod partitions;

use self::changes::Change;
use self::partitions::{Part, Reading};
use super::commit::Sealed;
use super::enrich::{TRAY_BYTES_FULL, Tray};
use super::ingest::{Intake, Judge, Letters};
use super::start::Start;
use super::stop::Stop;
use super::topics::{Reached, Shown};
use super::{Job, RunError};
use crate::clock::now_ms;
use crate::config::plan::{Early, EndOfInput, Pipeline, Source, SourceKind};
use crate::control::{Again, Operation, States, Told};
use crate::journal::Level;
use crate::meta::{Counters, Decision, Entry, Meta, PartitionMeta, SourceMeta};
use crate::meters::{Activity, Laps};
use crate::plugin::budget::{Budget, Warden};
use crate::plugin::validate::Validators;
use crate::plugin::{LoadedRule, Stages};
use crate::schedule::Schedule;
use crossbeam_channel::{Receiver, Sender};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidemill_connect::ConnectError;
use tidemill_connect::source::{Block, Read};
use tidemill_engine::event::Rows;
use tidemill_engine::key::KeyForm;
use tidemill_engine::lane::{Barrier, KeyLook};
use tidemill_engine::metrics::{self, Totals};
use tidemill_engine::rule::SessionRule;
use tidemill_engine::time::EventTime;
use tidemill_engine::versions::Scheduled;
use tidemill_engine::watermark::{PartitionKey, SourceTime, Watermarks};
use tidemill_store::epoch::Rotation;

/// Rows in one epoch: bounds what the lanes hold between barriers, whatever the epoch's length.
const EPOCH_ROWS_MAX: u64 = 2_000_000;
/// The same where rows wait for lookups: what an epoch, and those that are being made durable, add to what waits before
/// the reader hears of it. Some 5 MiB each; less where little may wait ([`epoch_rows_max`]).
const EPOCH_ROWS_ENRICHED_MAX: u64 = 32_768;
/// Bytes of a row that waits, with a key of usual length.
const UNRESOLVED_ROW_BYTES: u64 = 128;
/// Epochs that are under way at a time, about.
const EPOCHS_UNDER_WAY: u64 = 4;
/// Bytes of dead letters in one epoch.
const EPOCH_LETTER_BYTES_MAX: u64 = 16 << 20;
/// The shortest epoch, as in the config.
const EPOCH_MIN: Duration = Duration::from_millis(10);
/// How long to wait when no partition has anything: short beside an epoch, long beside a system call.
const POLL: Duration = Duration::from_millis(5);
/// How long at most where a topic says that it has something: commands and the end of the epoch are looked for by then.
const LISTEN: Duration = Duration::from_millis(50);

/// What goes to a lane.
pub(crate) enum ToLane {
    Batch(Batch),
    Barrier {
        barrier: Barrier,
        image: Option<std::ops::Range<u32>>,
    },
    /// Right after a barrier: a newer version of the rule.
    Deploy {
        scheduled: Scheduled,
        rule: Box<dyn SessionRule>,
        layout: Vec<String>,
        warden: Option<Warden>,
        operation: Arc<Operation>,
    },
    /// Right after a barrier: the newer version is taken back.
    Strike,
    /// Right after a barrier: nothing needs the older version any more.
    Retire,
    /// For states of open sessions, from a key on.
    States {
        from: usize,
        until: EventTime,
        reply: Sender<Result<States, String>>,
    },
    /// What there is of a key.
    Look {
        key: Vec<u8>,
        reply: Sender<Option<KeyLook>>,
    },
}

/// The rows of a block that belong to one lane.
pub(crate) struct Batch {
    pub(crate) rows: Rows,
    pub(crate) block: Arc<Block>,
    pub(crate) watermark: EventTime,
    pub(crate) source: Arc<str>,
    pub(crate) partition: Arc<str>,
}

/// Where the reader's output goes.
pub(crate) struct Outputs {
    pub(crate) lanes: Vec<Sender<ToLane>>,
    /// Emptied row buffers come back here.
    pub(crate) spent: Receiver<Rows>,
    pub(crate) sealed: Sender<Sealed>,
    /// Bytes committed and not delivered, by sink.
    pub(crate) waiting: Vec<Arc<AtomicU64>>,
    pub(crate) log_bytes: Arc<AtomicU64>,
    /// Bytes of dead letters that the lanes hold.
    pub(crate) lane_letters: Arc<AtomicU64>,
    /// A lane is near its bound of open sessions.
    pub(crate) crowded: Arc<AtomicBool>,
    /// Bytes of revisions that wait for their lookups.
    pub(crate) unresolved: Arc<AtomicU64>,
    /// Where what is resolved waits for the next epoch.
    pub(crate) tray: Arc<Tray>,
    /// The number of the version, and one, before whose place nothing stands any more.
    pub(crate) settled: Arc<AtomicU64>,
}

/// See the module's documentation.
pub(crate) struct Reader<'a> {
    job: Job<'a>,
    /// Which versions of the rule there are; its layout is what partitions decode.
    schedule: Schedule,
    /// The live ones, the newer one last.
    rules: Vec<Arc<LoadedRule>>,
    budget: Arc<Budget>,
    key_form: KeyForm,
    /// The greatest event time that was accepted.
    greatest: EventTime,
    paused: bool,
    audit: Vec<Entry>,
    change: Option<Change>,
    /// Who waits for the epoch at hand to be durable.
    told: Vec<Told>,
    validators: Validators,
    parts: Vec<Part>,
    /// Where in `parts` a partition is.
    part_of: HashMap<PartitionKey, usize>,
    /// Those that are open; some may have been closed since.
    opened: Vec<usize>,
    source_names: Vec<String>,
    old_partitions: BTreeMap<u32, Vec<PartitionMeta>>,
    /// The topics of sources that read some, by the source's place in the plan.
    topics: BTreeMap<usize, Reached>,
    watermarks: Watermarks,
    /// W of the last epoch that had to be written.
    sealed_watermark: EventTime,
    first_start_ms: i64,
    records: u64,
    events: u64,
    copies: u64,
    letters: Letters,
    fingerprint: serde_json::Value,
    decisions: Vec<Decision>,
    out: Outputs,
    intake: Intake,
    blocks: Vec<Arc<Block>>,
    laps: Laps<'a>,
    epoch_began: Instant,
    epoch_rows: u64,
    epochs: u64,
    /// Plugins' own metrics; the rule's are the committer's, who hears what the lanes say.
    plugins: BTreeMap<String, Totals>,
    changed: bool,
    /// The epoch at hand cannot be ended.
    abandon: bool,
    images: Rotation,
}

/// How reading ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    InputUsedUp,
    Stopped,
    /// The fault budget is spent: the epoch at hand is abandoned.
    Suspended,
    /// Another thread has failed and says why.
    Hangup,
}

/// Where rows wait for lookups, the epochs under way bring about as much as may wait, however little that is.
fn epoch_rows_max(pipeline: &Pipeline) -> u64 {
    if pipeline.enrich.is_empty() {
        return EPOCH_ROWS_MAX;
    }
    let each = pipeline.limits.unresolved_bytes / EPOCHS_UNDER_WAY;
    (each / UNRESOLVED_ROW_BYTES).clamp(1, EPOCH_ROWS_ENRICHED_MAX)
}

impl<'a> Reader<'a> {
    /// Lists the partitions and finds again those that the store knows.
    pub(crate) fn new(
        job: Job<'a>,
        stages: &Stages,
        start: &Start,
        again: Option<&Again>,
        stored: Option<&Meta>,
        fingerprint: serde_json::Value,
        out: Outputs,
    ) -> Result<Reader<'a>, RunError> {
        let Job { plan, pipeline, .. } = job;
        let now = now_ms();
        let mut source_names: Vec<String> =
            stored.map_or_else(Vec::new, |m| m.sources.iter().map(|s| s.name.clone()).collect());
        for i in &pipeline.from {
            let name = &plan.sources[*i].name;
            if !source_names.contains(name) {
                source_names.push(name.clone());
            }
        }
        let times = pipeline.from.iter().filter_map(|i| {
            let s = &plan.sources[*i];
            let number = source_names.iter().position(|n| *n == s.name)? as u32;
            let time = SourceTime {
                disorder_ms: s.disorder_ms,
                idle_ms: s.idle_ms,
                drift_ms: s.drift_ms,
                far_future_ms: s.far_future_ms,
            };
            Some((number, time))
        });
        let saved = stored.map_or(EventTime::BEGINNING, |m| m.watermark);
        let lanes = out.lanes.len();
        let counters = stored.map(|m| m.counters.clone()).unwrap_or_default();
        let mut reader = Reader {
            job,
            schedule: start.schedule.clone(),
            rules: start.rules.clone(),
            budget: stages.budget.clone(),
            key_form: super::layout::key_form(plan, pipeline),
            greatest: stored.map_or(EventTime::BEGINNING, |m| m.greatest),
            paused: stored.is_some_and(|m| m.paused),
            audit: stored.map(|m| m.audit.clone()).unwrap_or_default(),
            change: None,
            told: start.told(again),
            validators: stages.validators(job.progress).map_err(RunError::Failed)?,
            parts: Vec::new(),
            part_of: HashMap::new(),
            opened: Vec::new(),
            old_partitions: BTreeMap::new(),
            topics: BTreeMap::new(),
            watermarks: Watermarks::new(times.collect(), saved, now),
            sealed_watermark: saved,
            source_names,
            first_start_ms: stored.map_or(now, |m| m.first_start_ms),
            records: counters.records,
            events: counters.events,
            copies: counters.copies,
            letters: Letters { lines: Vec::new(), by_reason: counters.dead },
            fingerprint,
            decisions: stored.map(|m| m.decisions.clone()).unwrap_or_default(),
            out,
            intake: Intake::new(lanes),
            blocks: Vec::new(),
            laps: Laps::begin(&job.progress.meters),
            epoch_began: Instant::now(),
            epoch_rows: 0,
            epochs: 0,
            plugins: counters.plugins,
            // That it was suspended is not to stand any longer than it takes to commit something.
            changed: stored.is_none_or(|m| m.suspended.is_some()) || start.is_news(),
            abandon: false,
            images: Rotation::default(),
        };
        // Those the lanes count.
        for reason in ["key_over_cap", "suffix_over_cap", "sessions_over_cap"] {
            reader.letters.by_reason.remove(reason);
        }
        for m in stored.iter().flat_map(|m| m.sources.iter()) {
            let number = reader.source_names.iter().position(|n| *n == m.name).unwrap_or(0) as u32;
            reader.old_partitions.insert(number, m.partitions.clone());
        }
        for i in &pipeline.from {
            reader.list(*i, now)?;
        }
        reader.job.progress.bytes_total.store(reader.bytes_total().unwrap_or(0), Ordering::Relaxed);
        start.entries.iter().for_each(|e| reader.enter(e.clone()));
        reader.look_ahead()?;
        Ok(reader)
    }

    /// For whoever shows how far topics are read, once that is durable.
    pub(crate) fn shown(&self) -> Vec<Shown> {
        let of = |(i, reached): (&usize, &Reached)| match &self.source(*i).0.kind {
            SourceKind::Kafka(topics) => Some(reached.shown(self.source(*i).0, topics)),
            _ => None,
        };
        self.topics.iter().filter_map(of).collect()
    }

    fn source(&self, i: usize) -> (&'a Source, u32) {
        let s = &self.job.plan.sources[i];
        (s, self.source_names.iter().position(|n| *n == s.name).unwrap_or(0) as u32)
    }

    fn failed(&self, source: usize, e: tidemill_connect::ConnectError) -> RunError {
        RunError::of(&format!("source `{}`", self.job.plan.sources[source].name), e)
    }

    /// What was counted so far.
    pub(crate) fn counters(&self) -> Counters {
        Counters {
            records: self.records,
            events: self.events,
            copies: self.copies,
            dead: self.letters.by_reason.clone(),
            fold: tidemill_engine::lane::LaneCounts::default(),
            // The committer's: it hears what the lanes say.
            dead_by_rule: Default::default(),
            plugin_lines_dropped: 0,
            plugins: self.plugins.clone(),
        }
    }

    /// Reads until the input is used up or `stop` is set, then ends the last epoch.
    pub(crate) fn run(&mut self, stop: &Stop<'_>) -> Result<End, RunError> {
        self.show_state();
        self.laps.begin_anew();
        let outcome = self.read_all(stop);
        self.refuse_changes();
        let end = match &outcome {
            Ok(end) => *end,
            // A source failed: all before it is committed, and the pipeline is not finished.
            Err(_) => End::Stopped,
        };
        if !matches!(end, End::Hangup | End::Suspended) && !self.abandon && !stop.suspended() {
            // Time that passed without an event is worth an epoch only here: the next start goes on from it.
            self.changed |= self.watermarks.advance(now_ms()) > self.sealed_watermark;
            let closes = end == End::InputUsedUp && self.job.pipeline.end_of_input == EndOfInput::Close;
            if self.barrier(closes).is_err() {
                return outcome.and(Ok(End::Hangup));
            }
        }
        outcome
    }

    /// Ends the input once more without reading: all of it was closed before, and only lookups were waited for.
    pub(crate) fn close(&mut self) -> End {
        if self.barrier(true).is_err() { End::Hangup } else { End::InputUsedUp }
    }

    fn read_all(&mut self, stop: &Stop<'_>) -> Result<End, RunError> {
        loop {
            if stop.suspended() {
                return Ok(End::Suspended);
            }
            if stop.asked() {
                return Ok(End::Stopped);
            }
            if !self.take_commands() || (self.epoch_is_over() && self.barrier(false).is_err()) {
                return Ok(End::Hangup);
            }
            if self.paused || self.sinks_lag() {
                self.stand_still();
                std::thread::sleep(POLL);
                continue;
            }
            self.take_new_partitions()?;
            match self.read_some()? {
                Some(true) => {}
                Some(false) => self.wait(),
                None if self.parts.iter().all(|p| self.is_finished(p.key)) => return Ok(End::InputUsedUp),
                None => return Ok(End::Hangup),
            }
        }
    }

    /// Until something may have come. Of several sources none can be listened to.
    fn wait(&self) {
        let only = self.topics.values().next().filter(|_| self.job.pipeline.from.len() == 1);
        let Some(topics) = only else { return std::thread::sleep(POLL) };
        let epoch = Duration::from_millis(self.job.plan.server.epoch_ms.unsigned_abs());
        let left = epoch.saturating_sub(self.epoch_began.elapsed());
        topics.wait(left.clamp(Duration::from_millis(1), LISTEN));
    }

    /// Nothing is read: what may wait in a live partition is not silence.
    fn stand_still(&mut self) {
        let now = now_ms();
        for part in self.parts.iter().filter(|p| self.job.plan.sources[p.source].is_live()) {
            self.watermarks.observe(part.key, EventTime::BEGINNING, now);
        }
    }

    fn is_finished(&self, key: PartitionKey) -> bool {
        self.watermarks.get(key).is_some_and(|t| t.finished)
    }

    fn epoch_is_over(&self) -> bool {
        self.epoch_began.elapsed().as_millis() as i64 >= self.job.plan.server.epoch_ms
            || self.epoch_rows >= epoch_rows_max(self.job.pipeline)
            || self.letters.lines.len() as u64 + self.out.lane_letters.load(Ordering::Relaxed)
                >= EPOCH_LETTER_BYTES_MAX
            || self.out.tray.bytes.load(Ordering::Relaxed) >= TRAY_BYTES_FULL
            || self.must_make_room()
    }

    /// A lane that is near its bound of open sessions lets go at a barrier of those that W has passed: epochs become
    /// shorter, down to the shortest, and since few may wait to be durable, reading slows down.
    fn must_make_room(&self) -> bool {
        self.epoch_began.elapsed() >= EPOCH_MIN && self.out.crowded.swap(false, Ordering::Relaxed)
    }

    /// Whether a sink, or what waits for lookups, is so far behind that the sources must wait.
    fn sinks_lag(&self) -> bool {
        let max = self.job.pipeline.limits.outbox_bytes;
        self.out.waiting.iter().any(|w| w.load(Ordering::Relaxed) > max)
            || self.out.unresolved.load(Ordering::Relaxed) > self.job.pipeline.limits.unresolved_bytes
    }

    /// Reads one block of the partition that is furthest behind. `Some(false)`: nothing anywhere now.
    /// `None`: every partition has ended, or a thread has.
    fn read_some(&mut self) -> Result<Option<bool>, RunError> {
        let mut at = self.watermarks.next_unfinished(None);
        if at.is_none() {
            return Ok(None);
        }
        while let Some((_, key)) = at {
            let p = self.part_of.get(&key).copied().filter(|_| self.watermarks.may_read(key));
            match p.map(|p| self.read_part(p).map(|read| (p, read))).transpose()? {
                Some((p, Read::Data)) => return Ok(if self.send(p)? { Some(true) } else { None }),
                Some((p, Read::End)) => {
                    self.end_part(p);
                    return Ok(Some(true));
                }
                Some((_, Read::Pending)) | None => {}
            }
            at = self.watermarks.next_unfinished(at);
        }
        Ok(Some(false))
    }

    fn read_part(&mut self, p: usize) -> Result<Read, RunError> {
        if self.parts[p].reading.is_none() {
            self.close_one_too_many();
            self.open(p)?;
        }
        if let Some(block) = self.parts[p].held.take() {
            self.blocks.push(block);
            return self.prepare(p);
        }
        let mut block = self.spare_block();
        let Some(b) = Arc::get_mut(&mut block) else { return Ok(Read::Pending) };
        b.clear();
        let part = &mut self.parts[p];
        let read = match &mut part.reading {
            Some(r) => r.partition().read(b),
            None => Ok(Read::End),
        };
        let source = part.source;
        self.blocks.push(block);
        let read = read.map_err(|e| self.failed(source, e))?;
        match read {
            Read::Data => self.prepare(p),
            Read::Pending if self.topics.contains_key(&source) => {
                // Nor is it silence if nothing can come.
                if self.topics.get(&source).is_some_and(Reached::is_in_trouble) {
                    self.watermarks.observe(self.parts[p].key, EventTime::BEGINNING, now_ms());
                }
                Ok(Read::Pending)
            }
            Read::Pending => self.look_for_rotation(p),
            Read::End => Ok(read),
        }
    }

    /// Gets hold of what the block that was read last needs to be decoded. Whoever has it may be away: then the block waits,
    /// and its partition is not idle.
    fn prepare(&mut self, p: usize) -> Result<Read, RunError> {
        let part = &mut self.parts[p];
        let (Some(block), Some(ingest)) = (self.blocks.last(), &mut part.ingest) else {
            return Ok(Read::Data);
        };
        match ingest.prepare(block) {
            Ok(()) => {
                if std::mem::take(&mut part.waits) {
                    let text = format!("source `{}` goes on", part.source_name);
                    self.job.progress.tell(Level::Info, &text);
                }
                Ok(Read::Data)
            }
            Err(ConnectError::Failed(why)) => {
                if !std::mem::replace(&mut part.waits, true) {
                    let text = format!("source `{}` waits: {why}", part.source_name);
                    self.job.progress.tell(Level::Warn, &text);
                }
                part.held = self.blocks.pop();
                self.watermarks.observe(part.key, EventTime::BEGINNING, now_ms());
                Ok(Read::Pending)
            }
            Err(e) => {
                let source = part.source;
                Err(self.failed(source, e))
            }
        }
    }

    /// A block that no lane holds any more; it ends up last in `blocks`.
    fn spare_block(&mut self) -> Arc<Block> {
        match self.blocks.iter().position(|b| Arc::strong_count(b) == 1) {
            Some(i) => self.blocks.swap_remove(i),
            None => Arc::new(Block::default()),
        }
    }

    /// Counts what a part of the input has been read up to.
    fn count_bytes(&mut self, p: usize) {
        let part = &mut self.parts[p];
        if let Some(taken) = part.reading.as_ref().and_then(Reading::bytes_taken) {
            let more = taken.saturating_sub(part.bytes_taken);
            part.bytes_taken = taken;
            self.job.progress.bytes_read.fetch_add(more, Ordering::Relaxed);
        }
    }

    fn end_part(&mut self, p: usize) {
        self.count_bytes(p);
        self.watermarks.finish(self.parts[p].key);
        self.parts[p].reading = None;
        self.parts[p].ingest = None;
        self.changed = true;
    }

    /// Decodes the block that was read last and hands its rows to the lanes; false: a lane hung up.
    fn send(&mut self, p: usize) -> Result<bool, RunError> {
        self.laps.spent_on(Activity::Read);
        let now = now_ms();
        let watermark = self.watermarks.advance(now);
        let part = &mut self.parts[p];
        let source = &self.job.plan.sources[part.source];
        let clock = if source.is_live() { now } else { part.listed_at_ms };
        let far = source.far_future_ms.map_or(EventTime::INFINITY, |f| EventTime::from_ms(clock).plus(f));
        let judge = Judge { frontier: watermark.minus(self.job.pipeline.lateness_ms), far_future: far };
        let (Some(block), Some(ingest)) = (self.blocks.last().cloned(), &mut part.ingest) else {
            return Ok(true);
        };
        self.intake.clear();
        let taken = ingest.take(&block, judge, &mut self.validators, &mut self.intake, &mut self.letters);
        if let Err(message) = taken {
            // Letters of half the block are written: only the whole epoch can be abandoned.
            self.abandon = true;
            return Err(RunError::Failed(message));
        }
        self.laps.spent_on(Activity::Decode);
        part.offset = block.next_offset;
        part.grew_at_ms = now;
        self.changed = true;
        self.records += self.intake.records;
        self.events += self.intake.events;
        self.copies += self.intake.copies;
        self.epoch_rows += self.intake.events;
        self.greatest = self.greatest.max(self.intake.max);
        if self.intake.max != EventTime::BEGINNING {
            self.watermarks.observe(part.key, self.intake.max, now);
        }
        self.count_bytes(p);
        let part = &self.parts[p];
        let (source_name, name) = (part.source_name.clone(), part.name.clone());
        self.show(watermark);
        let queue = self.out.lanes.iter().map(Sender::len).max().unwrap_or(0);
        self.job.progress.meters.lane_queue.store(queue as u64, Ordering::Relaxed);
        for (lane, rows) in self.out.lanes.iter().zip(&mut self.intake.lanes) {
            if rows.heads.is_empty() {
                continue;
            }
            let spare = self.out.spent.try_recv().unwrap_or_default();
            let batch = Batch {
                rows: std::mem::replace(rows, spare),
                block: block.clone(),
                watermark,
                source: source_name.clone(),
                partition: name.clone(),
            };
            if lane.send(ToLane::Batch(batch)).is_err() {
                return Ok(false);
            }
        }
        self.laps.spent_on(Activity::Route);
        Ok(true)
    }

    fn show(&self, watermark: EventTime) {
        let p = &self.job.progress;
        p.records.store(self.records, Ordering::Relaxed);
        p.events.store(self.events, Ordering::Relaxed);
        p.late.store(self.letters.by_reason.get("late").copied().unwrap_or(0), Ordering::Relaxed);
        p.dead.store(self.letters.total(), Ordering::Relaxed);
        p.watermark_ms.store(watermark.ms(), Ordering::Relaxed);
    }

    /// Ends the epoch. `Err`: another thread has failed and says why.
    fn barrier(&mut self, at_end: bool) -> Result<(), ()> {
        let now = now_ms();
        self.note_positions();
        self.epoch_began = Instant::now();
        self.epochs += 1;
        self.epoch_rows = 0;
        let watermark = self.watermarks.advance(now);
        self.show(watermark);
        let early_tick = match self.job.pipeline.early {
            Early::Off => false,
            Early::Epoch => true,
            Early::Every(ms) => {
                at_end || self.epochs.is_multiple_of((ms / self.job.plan.server.epoch_ms).max(1) as u64)
            }
        };
        let log_bytes = self.out.log_bytes.load(Ordering::Relaxed);
        let image = self.images.next(log_bytes, self.job.plan.server.segment_bytes);
        let to_lane = if at_end { EventTime::INFINITY } else { watermark };
        let barrier = Barrier { watermark: to_lane, early_tick: early_tick && !at_end, at_end };
        for lane in &self.out.lanes {
            lane.send(ToLane::Barrier { barrier, image: image.clone() }).map_err(drop)?;
        }
        if !at_end {
            self.change_versions(watermark)?;
        }
        for (name, totals) in self.validators.take_totals().filter(|(_, t)| !t.is_empty()) {
            metrics::merge(self.plugins.entry(name.to_owned()).or_default(), &totals);
        }
        let letters = std::mem::take(&mut self.letters.lines);
        let sealed = Sealed {
            meta: self.meta(now, watermark, at_end),
            letters,
            rule: self.rules.last().and_then(|r| r.who()).map(|w| w.name.clone()),
            told: std::mem::take(&mut self.told),
            changed: self.changed || at_end,
            image,
        };
        if self.changed || at_end {
            self.sealed_watermark = watermark;
        }
        self.changed = false;
        self.laps.spent_on(Activity::Seal);
        self.out.sealed.send(sealed).map_err(drop)
    }

    /// What there is before anything is read.
    pub(crate) fn beginning(&mut self) -> Meta {
        self.meta(now_ms(), EventTime::BEGINNING, false)
    }

    fn meta(&mut self, now: i64, watermark: EventTime, finished: bool) -> Meta {
        for p in &self.parts {
            if let Some(old) = self.old_partitions.get_mut(&p.key.0)
                && let Some(m) = old.get_mut(p.key.1 as usize)
            {
                m.offset = p.offset;
                if m.identity != p.identity {
                    m.identity.clone_from(&p.identity);
                }
                if let Some(t) = self.watermarks.get(p.key) {
                    m.time = *t;
                }
            }
        }
        let sources = self.source_names.iter().enumerate().map(|(n, name)| SourceMeta {
            name: name.clone(),
            partitions: self.old_partitions.get(&(n as u32)).cloned().unwrap_or_default(),
        });
        // The rest is the committer's.
        Meta {
            first_start_ms: self.first_start_ms,
            watermark,
            ended: finished,
            sources: sources.collect(),
            decisions: self.decisions.clone(),
            counters: self.counters(),
            greatest: self.greatest,
            paused: self.paused,
            schedule: self.schedule.clone(),
            audit: self.audit.clone(),
            ..Meta::nothing(self.fingerprint.clone(), now)
        }
    }
}
