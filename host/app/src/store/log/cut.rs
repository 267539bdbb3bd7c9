//! Going back to an earlier epoch, as a human has decided: what can still be read is surveyed, and what follows the
//! chosen epoch is cut.
//!
//! Invariant: COMMITTED goes last. Until then it contradicts the log, so that a cut that was interrupted is refused by a
//! run, and can be made again.

use super::marker::{MARKER_NAME, Marker};
use super::open::Scan;
use super::{EpochLog, RecordRef, list_segments, segment_path};
use crate::store::{StoreError, sync_dir};
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use tidemill_engine::record::Record;

/// What stands in a log, sound or not.
#[derive(Debug)]
pub(crate) struct Survey {
    /// The sound records from the front on.
    pub(crate) records: Vec<RecordRef>,
    /// Where they end before the log does: file, byte, and what is wrong there.
    pub(crate) fault: Option<(PathBuf, u64, String)>,
    /// The newest epoch that COMMITTED vouches for; 0 for none.
    pub(crate) marker_epoch: u64,
    /// Bytes in all segments.
    pub(crate) bytes: u64,
}

impl EpochLog {
    /// Reads as far as the records are sound and show them to `visit`; changes nothing.
    ///
    /// # Errors
    /// `Storage` if the files cannot be read. Whatever `visit` returns.
    pub(crate) fn survey(
        dir: &Path,
        mut visit: impl FnMut(Record<'_>, RecordRef) -> Result<(), StoreError>,
    ) -> Result<Survey, StoreError> {
        let mut survey =
            Survey { records: Vec::new(), fault: None, marker_epoch: Marker::read(dir)?.epoch(), bytes: 0 };
        let names = list_segments(dir)?;
        for name in &names {
            let path = segment_path(dir, *name);
            survey.bytes += fs::metadata(&path).map_err(StoreError::storage("read", &path))?.len();
        }
        let records = &mut survey.records;
        // Without marker and witnesses: they are heard by whoever decides.
        let nobody = Marker::default();
        let mut scan = Scan::new(dir, &nobody, &[], |record: Record<'_>, at| {
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
    pub(crate) fn cut_after(dir: &Path, last: &RecordRef) -> Result<(), StoreError> {
        for name in list_segments(dir)?.into_iter().rev().filter(|n| *n > last.segment_first_epoch) {
            let path = segment_path(dir, name);
            // From the end, one by one: whatever a power cut leaves is a log without gaps.
            fs::remove_file(&path).map_err(StoreError::storage("remove", &path))?;
            sync_dir(dir)?;
        }
        let path = segment_path(dir, last.segment_first_epoch);
        let cut = || -> io::Result<()> {
            let file = OpenOptions::new().write(true).open(&path)?;
            file.set_len(last.offset + last.len)?;
            file.sync_all()
        };
        cut().map_err(StoreError::storage_at("cut", &path, Some(last.epoch)))?;
        let marker = dir.join(MARKER_NAME);
        match fs::remove_file(&marker) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(StoreError::storage("remove", &marker))?,
        }
        sync_dir(dir)
    }
}
