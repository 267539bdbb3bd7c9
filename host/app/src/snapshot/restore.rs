//! A snapshot back into a data directory, and a drill that does all of it but for the sinks.
//!
//! Invariant: the data directory is there with everything in it, or not at all: it is made beside its place and then put there.

use super::manifest::{Manifest, Part};
use super::{Snapshots, failed, is_newest};
use crate::clock::now_ms;
use crate::run::RunError;
use crate::run::go_back::GoBack;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidemill_connect::sink::TakenBack;
use tidemill_store::claim::Claim;
use tidemill_store::disk::{Disk as _, OsDisk};
use tidemill_store::log::EpochLog;
use tidemill_store::{StoreError, create_dir_durably, parent_of, replace};

/// What was restored.
#[derive(Debug)]
pub(crate) struct Restored {
    /// The snapshot.
    pub(crate) manifest: Manifest,
    /// Its pipelines.
    pub(crate) pipelines: Vec<Back>,
    /// How long all of it took.
    pub(crate) took: Duration,
}

/// A pipeline that went back.
#[derive(Debug)]
pub(crate) struct Back {
    /// The pipeline.
    pub(crate) name: String,
    /// The newest epoch that one of its sinks showed.
    pub(crate) seen: Option<u64>,
    /// What each of them took back.
    pub(crate) sinks: Vec<(String, TakenBack)>,
}

/// What a drill has seen.
#[derive(Debug)]
pub(crate) struct Drilled {
    /// The snapshot.
    pub(crate) manifest: Manifest,
    /// What a failure now would lose at most: how old the oldest of its epochs is, ms.
    pub(crate) recovery_point_ms: i64,
    /// Records of logs that were read and found sound.
    pub(crate) records: usize,
    /// How long fetching and reading took.
    pub(crate) took: Duration,
}

impl Snapshots<'_> {
    /// Puts a snapshot into the data directory, which has nothing in it, and has every sink take back what came after it.
    ///
    /// # Errors
    /// `Conflict` if something is in the directory, and what the store, the disk or a sink says. After a sink's error the directory
    /// is there, and the message names the command that goes on.
    pub(crate) fn restore(&self, id: Option<&str>) -> Result<Restored, RunError> {
        let begun = Instant::now();
        let data_dir = &self.plan.server.data_dir;
        if is_used(data_dir)? {
            return Err(RunError::Conflict(format!(
                "{}: there is something in this directory: a snapshot is restored into an empty one. Name another `data_dir`, \
                 or move this one away",
                data_dir.display()
            )));
        }
        let mut manifest = self.chosen(id)?;
        self.knows_all(&manifest)?;
        let beside = beside(data_dir);
        remove(&beside)?;
        self.fill(&beside, &manifest)?;
        // From here on nothing more leaves the host that it was taken from.
        if let Some(incarnation) = Claim::newest_incarnation(&OsDisk, &beside)? {
            self.claim(&beside, incarnation)?;
        }
        if is_newest(id) {
            self.add_tail(&beside, &mut manifest)?;
            self.knows_all(&manifest)?;
        }
        put_in_place(&beside, data_dir)?;
        let mut pipelines = Vec::new();
        for pipeline in &self.plan.pipelines {
            let Some(cut) = manifest.pipelines.iter().find(|c| c.pipeline == pipeline.name) else { continue };
            let go_on = |e: RunError| {
                RunError::Failed(format!(
                    "{e}\nthe state of snapshot {} stands in {}: once this is mended, `tidemill recover --to {} --take-back {}` goes \
                 on",
                    manifest.id,
                    data_dir.display(),
                    cut.epoch,
                    cut.pipeline
                ))
            };
            let go_back = GoBack::look(self.plan, pipeline, cut.epoch).map_err(go_on)?;
            let seen = go_back.seen.iter().filter_map(|(_, epoch)| *epoch).max();
            let sinks = go_back.carry_out().map_err(go_on)?;
            pipelines.push(Back { name: pipeline.name.clone(), seen, sinks });
        }
        Ok(Restored { manifest, pipelines, took: begun.elapsed() })
    }

    /// Fetches a snapshot into a folder that is thrown away, and reads all of its logs.
    ///
    /// # Errors
    /// What would be in the way of restoring it.
    pub(crate) fn drill(&self, id: Option<&str>) -> Result<Drilled, RunError> {
        let begun = Instant::now();
        let mut manifest = self.chosen(id)?;
        let data_dir = parent_of(&self.plan.server.data_dir);
        let folder =
            tempfile::tempdir_in(data_dir).map_err(StoreError::storage("create a folder in", data_dir))?;
        let beside = folder.path().join("state");
        self.fill(&beside, &manifest)?;
        if is_newest(id) {
            self.add_tail(&beside, &mut manifest)?;
        }
        let mut records = 0;
        for cut in &manifest.pipelines {
            let dir = beside.join("pipelines").join(&cut.pipeline);
            let (log, _) =
                EpochLog::open(Arc::new(OsDisk), &dir, self.plan.server.segment_bytes, &[], |_, _| {
                    records += 1;
                    Ok(())
                })?;
            if log.last_epoch() != cut.epoch {
                return Err(RunError::Failed(format!(
                    "snapshot {}: pipeline `{}` ends with epoch {}, not {}",
                    manifest.id,
                    cut.pipeline,
                    log.last_epoch(),
                    cut.epoch
                )));
            }
        }
        let oldest = manifest.pipelines.iter().map(|c| c.sealed_at_ms).min().unwrap_or(manifest.taken_at_ms);
        Ok(Drilled { recovery_point_ms: now_ms() - oldest, manifest, records, took: begun.elapsed() })
    }

    /// Whether the config has all that is in a snapshot.
    fn knows_all(&self, manifest: &Manifest) -> Result<(), RunError> {
        let unknown =
            manifest.pipelines.iter().find(|c| self.plan.pipelines.iter().all(|p| p.name != c.pipeline));
        match unknown {
            None => Ok(()),
            Some(cut) => Err(RunError::Refused(format!(
                "snapshot {} has a pipeline `{}`, which the config has not",
                manifest.id, cut.pipeline
            ))),
        }
    }

    fn fill(&self, dir: &Path, manifest: &Manifest) -> Result<(), RunError> {
        let mut claim = Claim::take(Arc::new(OsDisk), dir)?;
        claim.count_on_from(self.beyond(manifest.incarnation)?)?;
        for part in &manifest.parts {
            let bytes = self.fetch(part)?;
            let file = dir.join(&part.path);
            create_dir_durably(&OsDisk, parent_of(&file))?;
            replace(&OsDisk, &file, &bytes)?;
        }
        Ok(())
    }

    fn fetch(&self, part: &Part) -> Result<Vec<u8>, RunError> {
        let wrong = |what: &str| RunError::Failed(format!("{}/{}: {what}", self.address(), part.object()));
        let bytes = self.bucket.get(&part.object()).map_err(failed)?.ok_or_else(|| wrong("it is gone"))?;
        if part.is(&bytes) { Ok(bytes) } else { Err(wrong("it holds other bytes than its name says")) }
    }
}

/// Whether there is more than an empty folder.
fn is_used(dir: &Path) -> Result<bool, StoreError> {
    match OsDisk.list(dir) {
        Ok(entries) => Ok(!entries.is_empty()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(StoreError::storage("list", dir)(e)),
    }
}

fn beside(data_dir: &Path) -> PathBuf {
    let mut name = data_dir.as_os_str().to_owned();
    name.push(".restoring");
    PathBuf::from(name)
}

/// What an interrupted restore has left.
fn remove(dir: &Path) -> Result<(), StoreError> {
    match OsDisk.remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::storage("remove", dir)(e)),
        _ => Ok(()),
    }
}

fn put_in_place(beside: &Path, data_dir: &Path) -> Result<(), StoreError> {
    OsDisk.rename(beside, data_dir).map_err(StoreError::storage("rename", beside))?;
    let parent = parent_of(data_dir);
    OsDisk.sync_dir(parent).map_err(StoreError::storage("sync the directory", parent))
}
