//! Going back to an earlier epoch, as a human has decided: what can still be read is surveyed, and what follows the
//! chosen epoch is cut.
//!
//! Invariant: COMMITTED goes last. Until then it contradicts the log, so that a cut that was interrupted is refused by a
//! run, and can be made again.

use super::marker::{MARKER_NAME, Marker};
use super::open::Scan;
use super::{EpochLog, RecordRef, list_segments, segment_path};
use crate::disk::{Disk, Open};
use crate::{StoreError, sync_dir};
use std::io;
use std::path::{Path, PathBuf};
use tidemill_engine::record::Record;

/// What stands in a log, sound or not.
#[derive(Debug)]
pub struct Survey {
    /// The sound records from the front on.
    pub records: Vec<RecordRef>,
    /// Where they end before the log does: file, byte, and what is wrong there.
    pub fault: Option<(PathBuf, u64, String)>,
    /// The newest epoch that COMMITTED vouches for; 0 for none.
    pub marker_epoch: u64,
    /// Bytes in all segments.
    pub bytes: u64,
}

impl EpochLog {
    /// Reads as far as the records are sound and show them to `visit`; changes nothing.
    ///
    /// # Errors
    /// `Storage` if the files cannot be read. Whatever `visit` returns.
    pub fn survey(
        disk: &dyn Disk,
        dir: &Path,
        mut visit: impl FnMut(Record<'_>, RecordRef) -> Result<(), StoreError>,
    ) -> Result<Survey, StoreError> {
        let mut survey = Survey {
            records: Vec::new(),
            fault: None,
            marker_epoch: Marker::read(disk, dir)?.epoch(),
            bytes: 0,
        };
        let names = list_segments(disk, dir)?;
        for name in &names {
            let path = segment_path(dir, *name);
            let len = disk.open(&path, Open::Read).and_then(|file| file.len());
            survey.bytes += len.map_err(StoreError::storage("read", &path))?;
        }
        let records = &mut survey.records;
        // Without marker and witnesses: they are heard by whoever decides.
        let nobody = Marker::default();
        let mut scan = Scan::new(disk, dir, &nobody, &[], |record: Record<'_>, at| {
            records.push(at);
            visit(record, at)
        });
        survey.fault = scan.survey(&names)?;
        Ok(survey)
    }

    /// Cuts everything after this record. The log must be claimed and not open.
    ///
    /// # Errors
    /// `Storage`: the cut may then be made again.
    pub fn cut_after(disk: &dyn Disk, dir: &Path, last: &RecordRef) -> Result<(), StoreError> {
        for name in list_segments(disk, dir)?.into_iter().rev().filter(|n| *n > last.segment_first_epoch) {
            let path = segment_path(dir, name);
            // From the end, one by one: whatever a power cut leaves is a log without gaps.
            disk.remove_file(&path).map_err(StoreError::storage("remove", &path))?;
            sync_dir(disk, dir)?;
        }
        let path = segment_path(dir, last.segment_first_epoch);
        let cut = || -> io::Result<()> {
            let file = disk.open(&path, Open::Write)?;
            file.set_len(last.offset + last.len)?;
            file.sync_all()
        };
        cut().map_err(StoreError::storage_at("cut", &path, Some(last.epoch)))?;
        let marker = dir.join(MARKER_NAME);
        match disk.remove_file(&marker) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(StoreError::storage("remove", &marker))?,
        }
        sync_dir(disk, dir)
    }
}
