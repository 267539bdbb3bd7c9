//! The committer: gathers the parts of an epoch, makes it durable, releases it to the sinks.

use super::RunError;
use super::deliver::{self, Committed, Cursors, DELIVERY_AFTER_STOP, Sections};
use super::enrich::Enrichment;
use super::hot::HotNames;
use super::inlets::Inlets;
use super::remote::Shipment;
use super::stop::Stop;
use super::topics::Shown;
use crate::clock::now_ms;
use crate::config::plan::Mode;
use crate::control::{self, Handle, Told};
use crate::meta::Meta;
use crate::meters::{Activity, Laps};
use crate::plugin::budget::Suspended;
use crate::progress::Progress;
use crossbeam_channel::{Receiver, Sender};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidemill_engine::bounds::HOT_KEYS;
use tidemill_engine::hot::HotKey;
use tidemill_engine::lane::{LaneCounts, LaneEpoch};
use tidemill_engine::metrics::{self, Totals};
use tidemill_engine::outbox::{Revision, RowIter, Stage};
use tidemill_engine::record::{self, Kind};
use tidemill_store::epoch::{Content, Needs};
use tidemill_store::log::{EpochLog, RecordRef};

/// Keys over their cap that are remembered by name.
const OVER_CAP_MAX: usize = 16;
/// Bytes of an outbox that may wait in memory for one sink; beyond it the sink reads from the log.
const WAITING_IN_MEMORY_BYTES_MAX: u64 = 64 << 20;

/// The reason of letters about rows that a sink has refused.
pub(super) const ROW_REFUSED: &str = "row_refused";

/// How often the end of a run looks whether it is to hurry, while it waits for lookups.
const LOOK_AT_STOP: Duration = Duration::from_millis(100);

/// What the reader says of an epoch.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) meta: Meta,
    pub(crate) letters: Vec<u8>,
    /// The newest rule's name; none for a built-in one. Its metrics are kept by it.
    pub(crate) rule: Option<String>,
    /// Who waits for it to be durable.
    pub(crate) told: Vec<Told>,
    /// Whether positions or counters moved: an epoch without changes is not written.
    pub(crate) changed: bool,
    /// Key groups of which the lanes add an image.
    pub(crate) image: Option<Range<u32>>,
}

impl Sealed {
    /// What is committed when the reader has ended, on top of the last epoch.
    fn after_the_end(last: &Meta, changed: bool) -> Sealed {
        let meta = Meta { sealed_at_ms: now_ms(), ..last.clone() };
        Sealed { meta, letters: Vec::new(), rule: None, told: Vec::new(), changed, image: None }
    }
}

/// One sink's queue, as the committer sees it.
pub(crate) struct Outlet {
    /// The sink's, if it may refuse single rows.
    pub(crate) refuses: Option<String>,
    pub(crate) queue: Sender<Committed>,
    pub(crate) waiting_bytes: Arc<AtomicU64>,
}

/// See the module's documentation.
pub(crate) struct Committer<'a> {
    pub(crate) pipeline: &'a str,
    pub(crate) mode: Mode,
    pub(crate) inlets: &'a Inlets,
    /// Who is shown how far topics are read.
    pub(crate) topics: Vec<Shown>,
    pub(crate) log: EpochLog,
    pub(crate) incarnation: u64,
    pub(crate) sealed: Receiver<Sealed>,
    pub(crate) parts: Vec<Receiver<LaneEpoch>>,
    pub(crate) outlets: Vec<Outlet>,
    /// Whoever brings epochs elsewhere before they leave.
    pub(crate) shipments: Option<Sender<Shipment>>,
    pub(crate) cursors: Arc<Cursors>,
    pub(crate) progress: Arc<Progress>,
    /// Where its thread's time goes.
    pub(crate) laps: Laps<'a>,
    /// Bytes that the log keeps, for the reader to decide on images.
    pub(crate) log_bytes: Arc<AtomicU64>,
    /// Since the pipeline's first start.
    pub(crate) counts: LaneCounts,
    pub(crate) needs: Needs,
    pub(crate) keys_over_cap: Vec<String>,
    pub(crate) hot: HotNames,
    /// Dead letters that the rule has caused since the pipeline's first start.
    pub(crate) dead_by_rule: BTreeMap<String, u64>,
    /// The rules' own metrics since the pipeline's first start, by the plugin's name.
    pub(crate) metrics: BTreeMap<String, Totals>,
    /// The version that is settled in each lane, and one.
    pub(crate) settled_lanes: Vec<u64>,
    /// See [`Outputs`](super::reader::Outputs).
    pub(crate) settled: Arc<AtomicU64>,
    pub(crate) handle: &'a Handle,
    /// Lines of plugins that nobody was shown, before this start.
    pub(crate) lines_dropped: u64,
    /// `None`: rows leave with the epoch that produced them.
    pub(crate) enrichment: Option<Enrichment>,
    /// The last record's, before the first of this run.
    pub(crate) last: Option<Meta>,
    /// Between two barriers.
    pub(crate) epoch: Duration,
    /// Set when the run is to end although lookups are waited for.
    pub(crate) hurry: &'a AtomicBool,
    pub(crate) stop: &'a Stop<'a>,
}

/// What is left when the last epoch is durable and the sinks have been told.
pub(crate) struct Ended {
    log: EpochLog,
    incarnation: u64,
    meta: Option<Meta>,
    pub(crate) counts: LaneCounts,
    pub(crate) dead_by_rule: BTreeMap<String, u64>,
    pub(crate) metrics: BTreeMap<String, Totals>,
    /// Revisions that wait for their lookups still.
    pub(crate) unresolved: u64,
}

impl Committer<'_> {
    /// Runs until the reader hangs up.
    pub(crate) fn run(mut self) -> Result<Ended, RunError> {
        self.laps.begin_anew();
        while let Ok(sealed) = self.sealed.recv() {
            let mut parts = Vec::new();
            for p in &self.parts {
                // A lane that hung up has failed and says so itself.
                match p.recv() {
                    Ok(part) => parts.push(part),
                    Err(_) => return Ok(self.ended()),
                }
            }
            self.last = Some(self.commit(sealed, parts)?);
            self.topics.iter_mut().for_each(|t| t.show(&self.progress));
        }
        self.resolve_the_rest()?;
        self.tell_refused()?;
        Ok(self.ended())
    }

    fn ended(self) -> Ended {
        Ended {
            log: self.log,
            incarnation: self.incarnation,
            meta: self.last,
            counts: self.counts,
            dead_by_rule: self.dead_by_rule,
            metrics: self.metrics,
            unresolved: self.enrichment.map_or(0, |e| e.count()),
        }
    }

    /// The reader has ended: epochs go on until nothing waits for its lookups, or it is time to leave that to the next start.
    fn resolve_the_rest(&mut self) -> Result<(), RunError> {
        let mut hurrying_since = None;
        while let (Some(e), Some(meta)) = (&self.enrichment, &self.last)
            && (e.count() > 0 || (meta.ended && !meta.finished))
        {
            if self.stop.suspended() {
                return Ok(());
            }
            if self.hurry.load(Ordering::Relaxed) || self.stop.asked() {
                let since = hurrying_since.get_or_insert_with(Instant::now);
                if e.is_stuck() || since.elapsed() > DELIVERY_AFTER_STOP {
                    return Ok(());
                }
            }
            let most = self.epoch.min(LOOK_AT_STOP);
            if e.count() == 0 || e.wait(most) || e.has_news() {
                let sealed = Sealed::after_the_end(meta, true);
                self.last = Some(self.commit(sealed, Vec::new())?);
            }
        }
        Ok(())
    }

    /// Rows of the last epochs that sinks refuse get an epoch more: those that refuse any are waited for.
    fn tell_refused(&mut self) -> Result<(), RunError> {
        while let Some(meta) = &self.last {
            let refusing =
                self.outlets.iter().filter_map(|o| Some((o.refuses.as_deref()?, &*o.waiting_bytes)));
            if self.stop.suspended() || !self.cursors.wait_for_refused(&refusing.collect::<Vec<_>>()) {
                return Ok(());
            }
            // Not written if what was refused has found its epoch meanwhile.
            let sealed = Sealed::after_the_end(meta, false);
            self.last = Some(self.commit(sealed, Vec::new())?);
        }
        Ok(())
    }

    fn commit(&mut self, sealed: Sealed, mut parts: Vec<LaneEpoch>) -> Result<Meta, RunError> {
        let Sealed { mut meta, mut letters, rule, told, mut changed, image } = sealed;
        let (cursors, refused) = self.cursors.take();
        letters.extend_from_slice(&refused);
        if !refused.is_empty() {
            *self.dead_by_rule.entry(ROW_REFUSED.to_owned()).or_default() += deliver::count(&refused);
        }
        self.note_settled(&parts);
        let mut content = Content::of(&mut parts, letters);
        let mut hot_keys: Option<Vec<HotKey>> = None;
        // After the reader's end no lane has anything more to say.
        if !parts.is_empty() {
            (meta.live_keys, meta.suffix_bytes, meta.base_bytes) = (0, 0, 0);
        }
        for p in &mut parts {
            self.counts.add(&p.counts);
            meta.live_keys += p.live_keys;
            meta.suffix_bytes += p.suffix_bytes;
            meta.base_bytes += p.base_bytes;
            self.remember_over_cap(p.key_over_cap.as_deref());
            if let Some(mut hot) = p.hot_keys.take() {
                hot_keys.get_or_insert_default().append(&mut hot);
            }
            if let Some(rule) = rule.as_ref().filter(|_| !p.metrics.is_empty()) {
                metrics::merge(self.metrics.entry(rule.clone()).or_default(), &p.metrics);
            }
            for (reason, n) in std::mem::take(&mut p.dead) {
                *self.dead_by_rule.entry(reason).or_default() += n;
            }
        }
        if let Some(e) = &mut self.enrichment {
            for (reason, n) in content.hold_back(|retracted| e.end(retracted)) {
                *self.dead_by_rule.entry(reason).or_default() += n;
            }
            changed |= e.has_news();
            let coming = RowIter::new(&content.unresolved).count() as u64;
            e.describe(&mut meta, coming, self.log.last_epoch() + 1, &self.progress);
        }
        meta.finished = meta.ended && meta.unresolved == 0;
        meta.counters.dead.extend(self.counts.letters().map(|(reason, n)| (reason.to_owned(), n)));
        meta.counters.fold = self.counts;
        meta.counters.plugins.extend(self.metrics.clone());
        let dropped = self.progress.lines_dropped.load(Ordering::Relaxed);
        meta.counters.plugin_lines_dropped = self.lines_dropped + dropped;
        meta.counters.dead_by_rule.clone_from(&self.dead_by_rule);
        meta.keys_over_cap.clone_from(&self.keys_over_cap);
        if let Some(mut hot) = hot_keys {
            hot.sort_unstable_by(|a, b| b.share.total_cmp(&a.share));
            hot.truncate(HOT_KEYS);
            self.hot.say(hot, &self.progress);
        }
        meta.hot_keys = self.hot.newest().to_vec();
        if content.is_empty() && !changed {
            // Not written, but the last word of a run may be written on top of it.
            meta.put_needs(&self.needs);
            return Ok(meta);
        }
        let epoch = self.log.last_epoch() + 1;
        self.needs.take(epoch, image.as_ref(), content.leaves());
        meta.cursors = cursors;
        meta.put_needs(&self.needs);
        let text = meta_text(&meta)?;
        let left = self.release_early(&content, epoch, &text);
        self.laps.spent_on(Activity::Seal);
        let begun = Instant::now();
        let at = self.log.append(self.incarnation, epoch, &content.sections(&text))?;
        self.progress.meters.committed(begun, at.len);
        self.laps.spent_on(Activity::Sync);
        self.progress_of(&meta, epoch);
        let incarnation = self.incarnation;
        self.handle.set_committed(Arc::new(control::Committed { epoch, incarnation, meta: meta.clone() }));
        told.into_iter().for_each(Told::tell);
        let revision = Revision { incarnation, epoch };
        self.handle.feed.committed(&content.outbox(revision));
        let Content { rows, enriched, letters, unresolved, .. } = content;
        if !left {
            let sections = Some(Arc::new(Sections { rows, enriched, letters }));
            self.release(&Committed { incarnation, at, sections });
        }
        let read = meta.sources.iter().filter_map(|s| Some((s.name.clone(), s.partitions.first()?.offset)));
        match &self.shipments {
            // Whoever hung up has failed and says so itself.
            Some(shipments) => drop(shipments.send(Shipment { at, read: read.collect() })),
            None => {
                for (source, offset) in read {
                    self.inlets.has_read(self.pipeline, &source, offset)?;
                }
            }
        }
        self.topics.iter_mut().for_each(|t| t.is_durable(&meta.sources));
        if let Some(e) = &mut self.enrichment {
            e.begin(revision, at.len, unresolved);
        }
        let waiting = self.enrichment.as_ref().and_then(Enrichment::oldest);
        self.log.trim(self.needs.kept_from(meta.cursors.values().map(|c| c.epoch), waiting))?;
        self.log_bytes.store(self.log.bytes_retained(), Ordering::Relaxed);
        self.laps.spent_on(Activity::Seal);
        Ok(meta)
    }

    /// Once every lane has said of the newest of several versions that nothing stands before its place, the others can go.
    fn note_settled(&mut self, parts: &[LaneEpoch]) {
        for (settled, part) in self.settled_lanes.iter_mut().zip(parts) {
            if let Some(version) = part.settled {
                *settled = u64::from(version.0) + 1;
            }
        }
        if let Some((number, others)) = self.settled_lanes.split_first()
            && others.iter().all(|s| s == number)
        {
            self.settled.store(*number, Ordering::Relaxed);
        }
    }

    /// With at-least-once, what an epoch sends leaves before it is durable. Not with the first epoch: without a log, a sink that has
    /// something is taken for another pipeline's. Not to a sink that lags: it reads from the log.
    fn release_early(&self, content: &Content, epoch: u64, meta: &[u8]) -> bool {
        let lags = |o: &Outlet| o.waiting_bytes.load(Ordering::Relaxed) > WAITING_IN_MEMORY_BYTES_MAX;
        if self.mode == Mode::ExactlyOnce || epoch == 1 || self.outlets.iter().any(lags) {
            return false;
        }
        let Content { rows, enriched, letters, .. } = content;
        let (rows, enriched, letters) = (rows.clone(), enriched.clone(), letters.clone());
        let sections = Some(Arc::new(Sections { rows, enriched, letters }));
        // Where it will stand nobody asks: it is in memory.
        let len = record::encoded_len(&content.sections(meta)) as u64;
        let at = RecordRef { epoch, segment_first_epoch: 0, offset: 0, len };
        self.release(&Committed { incarnation: self.incarnation, at, sections });
        true
    }

    fn release(&self, committed: &Committed) {
        for o in &self.outlets {
            let waiting = o.waiting_bytes.fetch_add(committed.at.len, Ordering::Relaxed);
            let mut c = committed.clone();
            if waiting > WAITING_IN_MEMORY_BYTES_MAX {
                c.sections = None;
            }
            // A sink that hung up has failed and says so itself.
            let _ = o.queue.send(c);
        }
    }

    fn remember_over_cap(&mut self, key: Option<&str>) {
        let Some(key) = key else { return };
        if !self.keys_over_cap.iter().any(|k| k == key) {
            self.keys_over_cap.truncate(OVER_CAP_MAX - 1);
            self.keys_over_cap.insert(0, key.to_owned());
        }
    }

    fn progress_of(&self, meta: &Meta, epoch: u64) {
        let p = &self.progress;
        let r = self.counts.revisions;
        let of = |s: Stage| r[s as usize];
        p.finals.store(of(Stage::Final) + of(Stage::Corrected), Ordering::Relaxed);
        p.early.store(of(Stage::Early), Ordering::Relaxed);
        p.live_keys.store(meta.live_keys, Ordering::Relaxed);
        p.unresolved.store(meta.unresolved, Ordering::Relaxed);
        p.epoch.store(epoch, Ordering::Relaxed);
        p.sealed_at_ms.store(meta.sealed_at_ms, Ordering::Relaxed);
    }
}

pub(super) fn meta_text(meta: &Meta) -> Result<Vec<u8>, RunError> {
    serde_json::to_vec(meta)
        .map_err(|e| RunError::Failed(format!("the epoch's meta data cannot be written: {e}")))
}

impl Ended {
    /// Writes that the pipeline is suspended, as an epoch of its own on top of the last committed one; of `first` if there
    /// is none.
    pub(crate) fn mark(
        &mut self,
        first: Meta,
        cursors: &Cursors,
        suspended: Suspended,
        handle: &Handle,
    ) -> Result<(), RunError> {
        let mut meta = self.meta.take().unwrap_or(first);
        meta.sealed_at_ms = now_ms();
        meta.suspended = Some(suspended);
        let (now, refused) = cursors.take();
        meta.cursors = now;
        let (epoch, incarnation) = (self.log.last_epoch() + 1, self.incarnation);
        self.append_last(&mut meta, &refused)?;
        // Whoever asks the host that runs is to see it, too.
        handle.set_committed(Arc::new(control::Committed { epoch, incarnation, meta: meta.clone() }));
        self.meta = Some(meta);
        Ok(())
    }

    /// After the sinks have confirmed everything: keeps their cursors, so that the next start finds nothing to resend.
    pub(crate) fn keep_cursors(mut self, cursors: &Cursors) -> Result<(), RunError> {
        let Some(mut meta) = self.meta.take() else { return Ok(()) };
        let (now, refused) = cursors.take();
        if meta.cursors == now && refused.is_empty() {
            return Ok(());
        }
        meta.cursors = now;
        self.append_last(&mut meta, &refused)
    }

    /// What was refused after the last epoch that was sent is sent by the next start.
    fn append_last(&mut self, meta: &mut Meta, refused: &[u8]) -> Result<(), RunError> {
        if !refused.is_empty() {
            *meta.counters.dead_by_rule.entry(ROW_REFUSED.to_owned()).or_default() += deliver::count(refused);
        }
        let text = meta_text(meta)?;
        let sections = [(Kind::Meta, text.as_slice()), (Kind::Letters, refused)];
        let used = if refused.is_empty() { &sections[..1] } else { &sections[..] };
        let epoch = self.log.last_epoch() + 1;
        self.log.append(self.incarnation, epoch, used)?;
        Ok(())
    }
}
