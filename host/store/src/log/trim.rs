//! What leaves the log: whole segments at its front, or all of it.

use super::{EpochLog, LogReader, segment_path};
use crate::disk::Disk;
use crate::{StoreError, parent_of, sync_dir};
use std::io;
use std::path::Path;

impl EpochLog {
    /// Deletes the segments in which every epoch is below `keep_from_epoch`, but never the last segment.
    ///
    /// # Errors
    /// `Storage`; the log then refuses all further writes.
    pub fn trim(&mut self, keep_from_epoch: u64) -> Result<(), StoreError> {
        self.check_usable(self.last.epoch)?;
        while let (true, Some(oldest)) = (self.segments.len() > 1, self.segments.front().copied()) {
            if oldest.last_epoch >= keep_from_epoch {
                break;
            }
            let path = segment_path(&self.reader.dir, oldest.first_epoch);
            // Synced one by one: were two removals under way, a power cut could keep the older and
            // lose the newer, and that gap would look like damage.
            let LogReader { disk, dir } = &self.reader;
            let removed = disk.remove_file(&path).map_err(StoreError::storage("remove", &path));
            if let Err(e) = removed.and_then(|()| sync_dir(&**disk, dir)) {
                self.poisoned = true;
                return Err(e);
            }
            self.segments.pop_front();
        }
        Ok(())
    }
}

/// Removes the log in `dir`, for a fresh start; fine if there is none.
///
/// # Errors
/// `Storage` if the file system refuses.
pub fn destroy(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    let parent = parent_of(dir);
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    // Moved away first: a crash half way through the removal leaves no log, instead of a broken one.
    let doomed = parent.join(format!(".removed-{name}"));
    remove_all(disk, &doomed)?;
    match disk.rename(dir, &doomed) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        moved => moved.map_err(StoreError::storage("move away", dir))?,
    }
    sync_dir(disk, parent)?;
    remove_all(disk, &doomed)?;
    sync_dir(disk, parent)
}

fn remove_all(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    match disk.remove_dir_all(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(StoreError::storage("remove", dir)),
    }
}
