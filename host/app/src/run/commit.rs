//! The committer: gathers the parts of an epoch, makes it durable, releases it to the sinks.

use super::RunError;
use super::deliver::{Committed, Cursors, Sections};
use super::meta::Meta;
use super::progress::Progress;
use crate::store::log::EpochLog;
use crossbeam_channel::{Receiver, Sender};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tidemill_engine::bounds::KEY_GROUPS;
use tidemill_engine::lane::{LaneCounts, LaneEpoch};
use tidemill_engine::outbox::Stage;
use tidemill_engine::record::Kind;

/// Hot keys that are remembered by name.
const HOT_KEYS_MAX: usize = 16;
/// Bytes of an outbox that may wait in memory for one sink; beyond it the sink reads from the log.
const WAITING_IN_MEMORY_BYTES_MAX: u64 = 64 << 20;
/// Key groups imaged in one epoch: a whole rotation takes 16.
pub(crate) const IMAGE_GROUPS: u32 = 64;

/// What the reader says of an epoch.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) meta: Meta,
    pub(crate) letters: Vec<u8>,
    /// Whether positions or counters moved: an epoch without changes is not written.
    pub(crate) changed: bool,
    /// Key groups of which the lanes add an image.
    pub(crate) image: Option<Range<u32>>,
}

/// One sink's queue, as the committer sees it.
pub(crate) struct Outlet {
    pub(crate) queue: Sender<Committed>,
    pub(crate) waiting_bytes: Arc<AtomicU64>,
}

/// See the module's documentation.
pub(crate) struct Committer {
    pub(crate) log: EpochLog,
    pub(crate) incarnation: u64,
    pub(crate) sealed: Receiver<Sealed>,
    pub(crate) parts: Vec<Receiver<LaneEpoch>>,
    pub(crate) outlets: Vec<Outlet>,
    pub(crate) cursors: Arc<Cursors>,
    pub(crate) progress: Arc<Progress>,
    /// Bytes that the log keeps, for the reader to decide on images.
    pub(crate) log_bytes: Arc<AtomicU64>,
    /// Since the pipeline's first start.
    pub(crate) counts: LaneCounts,
    /// Epoch of the newest image of each block of groups; 0 for none.
    pub(crate) images: Vec<u64>,
    /// The newest epoch that had something to send.
    pub(crate) outbox_epoch: u64,
    pub(crate) hot_keys: Vec<String>,
    /// Dead letters that the rule has caused since the pipeline's first start.
    pub(crate) dead_by_rule: BTreeMap<String, u64>,
}

/// What is left when the last epoch is durable and the sinks have been told.
pub(crate) struct Ended {
    log: EpochLog,
    incarnation: u64,
    meta: Option<Meta>,
    pub(crate) counts: LaneCounts,
    pub(crate) dead_by_rule: BTreeMap<String, u64>,
}

/// Blocks of key groups that an image takes at once.
pub(crate) const IMAGE_BLOCKS: usize = (KEY_GROUPS / IMAGE_GROUPS) as usize;

impl Committer {
    /// Runs until the reader hangs up.
    pub(crate) fn run(mut self) -> Result<Ended, RunError> {
        let mut last = None;
        while let Ok(sealed) = self.sealed.recv() {
            let mut parts = Vec::new();
            for p in &self.parts {
                // A lane that hung up has failed and says so itself.
                match p.recv() {
                    Ok(part) => parts.push(part),
                    Err(_) => return Ok(self.end(last)),
                }
            }
            last = Some(self.commit(sealed, parts)?);
        }
        Ok(self.end(last))
    }

    fn end(self, meta: Option<Meta>) -> Ended {
        Ended {
            log: self.log,
            incarnation: self.incarnation,
            meta,
            counts: self.counts,
            dead_by_rule: self.dead_by_rule,
        }
    }

    fn commit(&mut self, sealed: Sealed, mut parts: Vec<LaneEpoch>) -> Result<Meta, RunError> {
        let Sealed { mut meta, mut letters, changed, image } = sealed;
        let mut rows = Vec::new();
        (meta.live_keys, meta.suffix_bytes) = (0, 0);
        for p in &mut parts {
            // Nothing is copied where one lane brought them all.
            if rows.is_empty() {
                rows = std::mem::take(&mut p.rows);
            } else {
                rows.extend_from_slice(&p.rows);
            }
            self.counts.add(&p.counts);
            meta.live_keys += p.live_keys;
            meta.suffix_bytes += p.suffix_bytes;
            letters.extend_from_slice(&p.letters);
            self.remember_hot(p.hot_key.as_deref());
            for (reason, n) in std::mem::take(&mut p.dead) {
                *self.dead_by_rule.entry(reason).or_default() += n;
            }
        }
        let states: Vec<&[u8]> = parts.iter().map(|p| p.state.as_slice()).collect();
        meta.counters.dead.extend(self.counts.letters().map(|(reason, n)| (reason.to_owned(), n)));
        meta.counters.fold = self.counts;
        meta.counters.dead_by_rule.clone_from(&self.dead_by_rule);
        meta.hot_keys.clone_from(&self.hot_keys);
        let nothing = rows.is_empty() && letters.is_empty() && states.iter().all(|s| s.is_empty());
        if nothing && !changed {
            return Ok(meta);
        }
        let epoch = self.log.last_epoch() + 1;
        if let Some(groups) = image {
            self.images[(groups.start / IMAGE_GROUPS) as usize] = epoch;
        }
        if !(rows.is_empty() && letters.is_empty()) {
            self.outbox_epoch = epoch;
        }
        meta.cursors = self.cursors.all();
        meta.images.clone_from(&self.images);
        meta.outbox_epoch = self.outbox_epoch;
        let text = meta_text(&meta)?;
        let mut sections: Vec<(Kind, &[u8])> = vec![(Kind::Meta, &text)];
        sections.extend(states.into_iter().filter(|s| !s.is_empty()).map(|s| (Kind::State, s)));
        sections.extend([(Kind::Rows, rows.as_slice()), (Kind::Letters, letters.as_slice())]);
        let at = self.log.append(self.incarnation, epoch, &sections)?;
        self.progress_of(&meta, epoch);
        self.release(&Committed {
            incarnation: self.incarnation,
            at,
            sections: Some(Arc::new(Sections { rows, letters })),
        });
        let kept_from = meta.cursors.values().map(|c| c.epoch + 1).chain(self.images.iter().copied()).min();
        self.log.trim(kept_from.unwrap_or(0))?;
        self.log_bytes.store(self.log.bytes_retained(), Ordering::Relaxed);
        Ok(meta)
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

    fn remember_hot(&mut self, key: Option<&str>) {
        let Some(key) = key else { return };
        if !self.hot_keys.iter().any(|k| k == key) {
            self.hot_keys.truncate(HOT_KEYS_MAX - 1);
            self.hot_keys.insert(0, key.to_owned());
        }
    }

    fn progress_of(&self, meta: &Meta, epoch: u64) {
        let p = &self.progress;
        let r = self.counts.revisions;
        let of = |s: Stage| r[s as usize];
        p.finals.store(of(Stage::Final) + of(Stage::Corrected), Ordering::Relaxed);
        p.early.store(of(Stage::Early), Ordering::Relaxed);
        p.live_keys.store(meta.live_keys, Ordering::Relaxed);
        p.epoch.store(epoch, Ordering::Relaxed);
        p.sealed_at_ms.store(meta.sealed_at_ms, Ordering::Relaxed);
    }
}

pub(super) fn meta_text(meta: &Meta) -> Result<Vec<u8>, RunError> {
    serde_json::to_vec(meta)
        .map_err(|e| RunError::Failed(format!("the epoch's meta data cannot be written: {e}")))
}

impl Ended {
    /// After the sinks have confirmed everything: keeps their cursors, so that the next start finds nothing to resend.
    pub(crate) fn keep_cursors(mut self, cursors: &Cursors) -> Result<(), RunError> {
        let Some(mut meta) = self.meta.take() else { return Ok(()) };
        let now = cursors.all();
        if meta.cursors == now {
            return Ok(());
        }
        meta.cursors = now;
        let text = meta_text(&meta)?;
        let epoch = self.log.last_epoch() + 1;
        self.log.append(self.incarnation, epoch, &[(Kind::Meta, &text)])?;
        Ok(())
    }
}
