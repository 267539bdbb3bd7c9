//! Taking a snapshot, beside the host that runs or without one.

use super::manifest::{Cut, Manifest, Part};
use super::{Snapshots, failed};
use crate::clock::now_ms;
use crate::run::RunError;
use std::collections::BTreeSet;
use std::path::Path;
use tidemill_connect::source::ingest_log::Capture;
use tidemill_store::StoreError;
use tidemill_store::claim::Claim;
use tidemill_store::disk::{Disk as _, DiskFile, Lock, Open, OsDisk};
use tidemill_store::log::{Captured, capture};

impl Snapshots<'_> {
    /// Takes a snapshot, and lets the oldest go beyond those that are kept.
    ///
    /// # Errors
    /// `Refused` if nothing has run yet, `Conflict` if another snapshot is being taken or another host has taken over, and what
    /// the store or the disk says. Nothing of a snapshot that failed is ever restored.
    pub(crate) fn create(&self) -> Result<Manifest, RunError> {
        let busy = || {
            let file = self.plan.server.data_dir.join(LOCK);
            RunError::Conflict(format!("another snapshot is being taken ({} is locked)", file.display()))
        };
        self.create_unless_busy()?.ok_or_else(busy)
    }

    /// The same; none if another one is being taken.
    pub(super) fn create_unless_busy(&self) -> Result<Option<Manifest>, RunError> {
        let data_dir = &self.plan.server.data_dir;
        let incarnation = Claim::newest_incarnation(&OsDisk, data_dir)?.ok_or_else(|| {
            RunError::Refused(format!(
                "{}: nothing has run here yet: there is nothing to keep",
                data_dir.display()
            ))
        })?;
        let Some(_one_at_a_time) = lock(data_dir)? else { return Ok(None) };
        self.claim(data_dir, incarnation)?;
        let mut manifest = Manifest::begun(now_ms(), incarnation);
        // First and last: what an epoch has not read of them was there before it, or came since.
        let mut inlets = self.begin_inlets()?;
        let logs = self.capture_logs(&mut manifest)?;
        for (_, inlet) in &mut inlets {
            inlet.go_on().map_err(failed)?;
        }
        let mut upload = Upload { to: self, manifest, known: self.known_parts()? };
        for (name, log) in &logs {
            for segment in &log.segments {
                upload.part(format!("pipelines/{name}/{}", segment.name()), segment.read()?)?;
            }
        }
        for (name, inlet) in &inlets {
            for segment in inlet.read() {
                let (file, bytes) = segment.map_err(failed)?;
                upload.part(format!("ingest/{name}/{file}"), bytes)?;
            }
        }
        upload.folder(&data_dir.join("plugins"), "plugins")?;
        upload.folder(&data_dir.join("plugins/versions"), "plugins/versions")?;
        let manifest = upload.manifest;
        // Somebody may have taken over while parts were written.
        self.claim(data_dir, incarnation)?;
        let text = manifest.write().map_err(RunError::Failed)?;
        if !self.bucket.put_new(&Manifest::object(&manifest.id), text).map_err(failed)? {
            let message = format!("{}: there is a snapshot {} already", self.address(), manifest.id);
            return Err(RunError::Conflict(message));
        }
        self.let_go()?;
        Ok(Some(manifest))
    }

    fn begin_inlets(&self) -> Result<Vec<(String, Capture)>, RunError> {
        let posted = self.plan.sources.iter().filter(|s| s.backlog_bytes().is_some());
        posted
            .map(|s| {
                let dir = self.plan.server.data_dir.join("ingest").join(&s.name);
                Ok((s.name.clone(), Capture::begin(&dir).map_err(failed)?))
            })
            .collect()
    }

    fn capture_logs(&self, manifest: &mut Manifest) -> Result<Vec<(String, Captured)>, RunError> {
        let mut logs = Vec::new();
        for pipeline in &self.plan.pipelines {
            let dir = self.plan.server.data_dir.join("pipelines").join(&pipeline.name);
            let Some(log) = capture(&OsDisk, &dir)? else { continue };
            manifest.pipelines.push(Cut::at(&pipeline.name, log.epoch, &log.meta)?);
            logs.push((pipeline.name.clone(), log));
        }
        Ok(logs)
    }

    fn known_parts(&self) -> Result<BTreeSet<String>, RunError> {
        Ok(self.bucket.list("parts").map_err(failed)?.into_iter().collect())
    }

    /// Deletes the oldest snapshots beyond those that are kept, and then the parts that none of the others names.
    fn let_go(&self) -> Result<(), RunError> {
        let ids = self.ids()?;
        let (gone, kept) = ids.split_at(ids.len().saturating_sub(self.keep));
        for id in gone {
            self.bucket.delete(&Manifest::object(id)).map_err(failed)?;
        }
        let mut named = BTreeSet::new();
        let mut newest = None;
        for id in kept {
            let manifest = newest.insert(self.manifest(id)?);
            named.extend(manifest.parts.iter().map(|p| p.sha256.clone()));
        }
        newest.map_or(Ok(()), |newest| self.let_tails_go(&newest))?;
        for part in self.known_parts()?.difference(&named) {
            self.bucket.delete(&format!("parts/{part}")).map_err(failed)?;
        }
        Ok(())
    }
}

struct Upload<'a> {
    to: &'a Snapshots<'a>,
    manifest: Manifest,
    /// Parts that the store has.
    known: BTreeSet<String>,
}

impl Upload<'_> {
    fn part(&mut self, path: String, bytes: Vec<u8>) -> Result<(), RunError> {
        let part = Part::of(path, &bytes);
        if self.known.insert(part.sha256.clone()) {
            // One of this name has these bytes: somebody has written it before and got no answer.
            self.to.bucket.put_new(&part.object(), bytes).map_err(failed)?;
        }
        self.manifest.parts.push(part);
        Ok(())
    }

    /// The files of a folder that are there for good: they are never changed.
    fn folder(&mut self, dir: &Path, path: &str) -> Result<(), RunError> {
        if !dir.is_dir() {
            return Ok(());
        }
        let mut files = OsDisk.list(dir).map_err(StoreError::storage("list", dir))?;
        files.sort_unstable();
        for file in files {
            let name = file.file_name().and_then(|n| n.to_str()).filter(|n| !n.ends_with(".tmp"));
            let Some(name) = name.filter(|_| file.is_file()) else { continue };
            let bytes = OsDisk.read(&file).map_err(StoreError::storage("read", &file))?;
            self.part(format!("{path}/{name}"), bytes)?;
        }
        Ok(())
    }
}

/// Of the data directory: locked while a snapshot is taken.
const LOCK: &str = "SNAPSHOT";

/// Held while a snapshot is taken, and parts of older ones deleted. None: somebody else holds it.
fn lock(data_dir: &Path) -> Result<Option<Box<dyn DiskFile>>, RunError> {
    let path = data_dir.join(LOCK);
    let file = OsDisk.open(&path, Open::MaybeNew).map_err(StoreError::storage("open", &path))?;
    let held = file.try_lock(Lock::Exclusive).map_err(StoreError::storage("lock", &path))?;
    Ok(held.then_some(file))
}
