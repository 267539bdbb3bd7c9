//! What comes after a snapshot: the records of every epoch, and what clients have posted, as objects of their own. With it the store
//! has everything that has left the host (`release_after = "remote"`).
//!
//! A process takes a snapshot before the first epoch leaves, and each later one cuts the tail short at its front. Names say whose
//! it is and what is in it:
//!
//! ```text
//! STORE/tails/INCARNATION/pipelines/NAME/FIRST-LAST   records of these epochs
//! STORE/tails/INCARNATION/posted/NAME/OFFSET          frames of an ingest log from this offset on
//! ```
//!
//! Invariant: an epoch has left only if, after its object was written, the store knew of no directory that had taken the place of
//! this one. Whoever takes it says so in the store before the tail is read, so either the epoch is in what is restored, or it
//! has not left.

use super::manifest::{Cut, Manifest};
use super::{Snapshots, failed};
use crate::config::plan::Plan;
use crate::meta::Meta;
use crate::run::RunError;
use crate::run::remote::{Elsewhere, Records, Whose};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tidemill_connect::ConnectError;
use tidemill_connect::source::ingest_log;
use tidemill_store::StoreError;
use tidemill_store::disk::OsDisk;
use tidemill_store::log::EpochLog;

/// Of what clients have posted, in one object.
const POSTED_BYTES_MAX: u64 = 8 << 20;

/// The tails of a process.
#[derive(Debug)]
pub(crate) struct Tails<'a> {
    plan: &'a Plan,
    /// Opened when it is first needed: it may be away then.
    store: Mutex<Option<Arc<Snapshots<'a>>>>,
    /// Up to which epoch the store has each pipeline; none before there is a snapshot.
    epochs: Mutex<Option<BTreeMap<String, u64>>>,
    /// The same of each source that is posted to: its offset.
    posted: Mutex<BTreeMap<String, u64>>,
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Tails<'a> {
    /// None if epochs may leave when they are durable here.
    pub(crate) fn of(plan: &'a Plan) -> Option<Tails<'a>> {
        plan.state.as_ref().filter(|s| s.remote).map(|_| Tails {
            plan,
            store: Mutex::default(),
            epochs: Mutex::default(),
            posted: Mutex::default(),
        })
    }

    fn store(&self) -> Result<Arc<Snapshots<'a>>, ConnectError> {
        let mut store = locked(&self.store);
        if let Some(open) = &*store {
            return Ok(open.clone());
        }
        let open = Arc::new(Snapshots::of(self.plan).map_err(to_connect)?);
        *store = Some(open.clone());
        Ok(open)
    }

    fn keep_posted(&self, store: &Snapshots<'_>, of: &Whose<'_>) -> Result<(), ConnectError> {
        let sources = of.pipeline.from.iter().map(|i| &self.plan.sources[*i]);
        for source in sources.filter(|s| s.backlog_bytes().is_some()).map(|s| &s.name) {
            let mut posted = locked(&self.posted);
            let end = of.inlets.durable(source);
            let at = posted.entry(source.clone()).or_default();
            while *at < end {
                let bytes = of.inlets.copy(source, *at, POSTED_BYTES_MAX)?;
                let name = format!("{}/posted/{source}/{:020}", folder(of.incarnation), *at);
                let length = bytes.len();
                let length = match store.bucket.put_new(&name, bytes)? {
                    true => length,
                    // Of an earlier try, when there was less.
                    false => store.bucket.get(&name)?.map_or(0, |there| there.len()),
                };
                *at += length as u64;
            }
        }
        Ok(())
    }
}

impl Elsewhere for Tails<'_> {
    fn begin(&self, of: &Whose<'_>) -> Result<u64, ConnectError> {
        let store = self.store()?;
        let mut epochs = locked(&self.epochs);
        let known = |all: &BTreeMap<String, u64>| all.get(&of.pipeline.name).copied().unwrap_or(0);
        // What it has of a log that was begun anew since is no beginning.
        if let Some(epoch) = epochs.as_ref().map(known).filter(|epoch| *epoch <= of.last_epoch) {
            return Ok(epoch);
        }
        let mut posted = locked(&self.posted);
        for source in self.plan.sources.iter().filter(|s| s.backlog_bytes().is_some()).map(|s| &s.name) {
            posted.insert(source.clone(), of.inlets.durable(source));
        }
        let manifest = store.create_unless_busy().map_err(to_connect)?;
        let busy =
            || ConnectError::Unavailable(format!("{}: another snapshot is being taken", store.address()));
        let cuts = manifest.ok_or_else(busy)?.pipelines;
        let all = epochs.insert(cuts.into_iter().map(|cut| (cut.pipeline, cut.epoch)).collect());
        Ok(known(all))
    }

    fn keep(&self, of: &Whose<'_>, records: &Records) -> Result<(), ConnectError> {
        let store = self.store()?;
        self.keep_posted(&store, of)?;
        let (name, Records { first, last, bytes }) = (&of.pipeline.name, records);
        let name = format!("{}/pipelines/{name}/{first:020}-{last:020}", folder(of.incarnation));
        // One of this name holds these epochs of this process: somebody has written it before and got no answer.
        store.bucket.put_new(&name, bytes.clone())?;
        store.claim(&self.plan.server.data_dir, of.incarnation).map_err(to_connect)?;
        if let Some(epochs) = &mut *locked(&self.epochs) {
            epochs.insert(of.pipeline.name.clone(), *last);
        }
        Ok(())
    }
}

/// By whether it may work later.
fn to_connect(e: RunError) -> ConnectError {
    match e {
        RunError::Conflict(m) => ConnectError::Conflict(m),
        RunError::Refused(m) => ConnectError::Config(m),
        RunError::Storage(m) => ConnectError::Storage(m),
        RunError::Store(e @ StoreError::Storage { .. }) => ConnectError::Storage(e.to_string()),
        // A log that another pipeline has begun anew just now; one that is damaged is told by whoever opens it.
        RunError::Store(e) => ConnectError::Unavailable(e.to_string()),
        RunError::Failed(m) | RunError::Stopped(m) => ConnectError::Unavailable(m),
    }
}

fn folder(incarnation: u64) -> String {
    format!("tails/{incarnation:020}")
}

/// An object of a tail, by its name.
#[derive(Debug, PartialEq, Eq)]
enum Object<'a> {
    Records { pipeline: &'a str, last: u64 },
    Posted { source: &'a str, offset: u64 },
}

/// `name`: below the folder of an incarnation.
fn parse(name: &str) -> Option<Object<'_>> {
    let (kind, rest) = name.split_once('/')?;
    let (of, which) = rest.split_once('/')?;
    match kind {
        "pipelines" => Some(Object::Records { pipeline: of, last: which.split_once('-')?.1.parse().ok()? }),
        "posted" => Some(Object::Posted { source: of, offset: which.parse().ok()? }),
        _ => None,
    }
}

impl Snapshots<'_> {
    /// Puts what has come since behind a snapshot that is in `dir`: the manifest then says where the pipelines stand with it.
    pub(super) fn add_tail(&self, dir: &Path, manifest: &mut Manifest) -> Result<(), RunError> {
        let folder = folder(manifest.incarnation);
        let names = self.bucket.list(&folder).map_err(failed)?;
        let mut logs: BTreeMap<&str, EpochLog> = BTreeMap::new();
        for name in &names {
            let unknown =
                || RunError::Failed(format!("{}/{folder}/{name}: that is nothing of a tail", self.address()));
            let object = parse(name).ok_or_else(unknown)?;
            let bytes = self.bucket.get(&format!("{folder}/{name}")).map_err(failed)?.ok_or_else(|| {
                let address = self.address();
                RunError::Failed(format!(
                    "{address}/{folder}/{name}: it is gone: a newer snapshot was taken meanwhile. Try again"
                ))
            })?;
            match object {
                Object::Posted { source, offset } => {
                    ingest_log::graft(&dir.join("ingest").join(source), offset, &bytes).map_err(failed)?;
                }
                Object::Records { pipeline, .. } => {
                    if !logs.contains_key(pipeline) {
                        let dir = dir.join("pipelines").join(pipeline);
                        let segment_bytes = self.plan.server.segment_bytes;
                        let (log, _) =
                            EpochLog::open(Arc::new(OsDisk), &dir, segment_bytes, &[], |_, _| Ok(()))?;
                        logs.insert(pipeline, log);
                    }
                    logs.get_mut(pipeline).map_or(Ok(0), |log| log.graft(&bytes))?;
                }
            }
        }
        for pipeline in logs.keys() {
            let Some(newest) = EpochLog::newest(&OsDisk, &dir.join("pipelines").join(pipeline))? else {
                continue;
            };
            let cut = Cut::at(pipeline, newest.epoch, &newest.meta)?;
            match manifest.pipelines.iter_mut().find(|c| c.pipeline == *pipeline) {
                Some(known) => *known = cut,
                None => manifest.pipelines.push(cut),
            }
        }
        Ok(())
    }

    /// Deletes what no restore needs any more, now that this is the newest snapshot.
    pub(super) fn let_tails_go(&self, newest: &Manifest) -> Result<(), RunError> {
        let names = self.bucket.list("tails").map_err(failed)?;
        let mut objects = names.iter().filter_map(|n| n.split_once('/')).peekable();
        while let Some((incarnation, name)) = objects.next() {
            let number: Option<u64> = incarnation.parse().ok();
            let next = objects.peek().filter(|next| next.0 == incarnation).map(|next| next.1);
            let goes = match number {
                Some(n) if n == newest.incarnation => is_in(newest, name, next),
                Some(n) => n < newest.incarnation,
                None => false,
            };
            if goes {
                self.bucket.delete(&format!("tails/{incarnation}/{name}")).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Whether a snapshot has all of an object. Of what was posted that is certain if the one behind it begins where the snapshot still
/// has everything.
fn is_in(snapshot: &Manifest, name: &str, next: Option<&str>) -> bool {
    match (parse(name), next.and_then(parse)) {
        (Some(Object::Records { pipeline, last }), _) => {
            snapshot.pipelines.iter().any(|c| c.pipeline == pipeline && last <= c.epoch)
        }
        (Some(Object::Posted { source, .. }), Some(Object::Posted { source: of, offset }))
            if of == source =>
        {
            let folder = format!("ingest/{source}/");
            let files =
                snapshot.parts.iter().filter_map(|p| p.path.strip_prefix(&folder)?.strip_suffix(".log"));
            files.filter_map(|first| first.parse::<u64>().ok()).max().is_some_and(|first| offset <= first)
        }
        _ => false,
    }
}

impl Cut {
    /// What the `Meta` section of an epoch says.
    pub(super) fn at(pipeline: &str, epoch: u64, meta: &[u8]) -> Result<Cut, RunError> {
        let meta: Meta = serde_json::from_slice(meta).map_err(|e| {
            RunError::Refused(format!("pipeline `{pipeline}`: its state was written by another version: {e}"))
        })?;
        Ok(Cut {
            pipeline: pipeline.to_owned(),
            epoch,
            sealed_at_ms: meta.sealed_at_ms,
            watermark_ms: meta.watermark.ms(),
            live_keys: meta.live_keys,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::Part;
    use super::*;

    #[test]
    fn the_tail_goes_where_a_snapshot_has_it_and_not_before() {
        let mut newest = Manifest::begun(1_800_000_000_007, 3);
        newest.pipelines.push(Cut {
            pipeline: "a".into(),
            epoch: 7,
            sealed_at_ms: 0,
            watermark_ms: 0,
            live_keys: 0,
        });
        for first in [100, 250] {
            newest.parts.push(Part::of(format!("ingest/web/{first:020}.log"), b""));
        }
        let goes = |name: &str, next: &str| is_in(&newest, name, Some(next).filter(|n| !n.is_empty()));
        assert!(goes("pipelines/a/00000000000000000003-00000000000000000007", ""));
        assert!(!goes("pipelines/a/00000000000000000006-00000000000000000008", ""), "one epoch is not in it");
        assert!(!goes("pipelines/b/00000000000000000001-00000000000000000001", ""), "it knows nothing of it");
        assert!(goes("posted/web/00000000000000000200", "posted/web/00000000000000000250"));
        assert!(!goes("posted/web/00000000000000000200", "posted/web/00000000000000000251"));
        assert!(!goes("posted/web/00000000000000000200", ""), "nobody knows how long it is");
        assert!(!goes("posted/web/00000000000000000200", "posted/xyz/00000000000000000201"));
        assert!(!goes("somebody/else/1", ""));
    }
}
