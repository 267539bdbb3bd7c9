//! Going back to an earlier epoch, as a human has decided: what can still be read is surveyed, and what follows the
//! chosen epoch is cut.
//!
//! Invariant: from before anything is cut until the decision stands in the log, the file CUT is there, by which a run is refused, and
//! the same cut can be made again. Without the decision nobody would know that sinks have to be told again what they took back,
//! perhaps at an earlier cut whose decision is cut off by this one.

use super::marker::{MARKER_NAME, Marker};
use super::open::{Scan, rewrite};
use super::{EpochLog, RecordRef, list_segments, segment_path};
use crate::disk::{Disk, Open};
use crate::{StoreError, read_if_there, replace, sync_dir};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidemill_engine::record::{Kind, Record};

/// There while somebody goes back; it names the epoch.
const CUT_NAME: &str = "CUT";

/// The decision to go back, as the first epoch after the cut.
#[derive(Debug)]
pub struct Decision<'a> {
    /// Of who goes back.
    pub incarnation: u64,
    /// What the epoch's record says.
    pub sections: &'a [(Kind, &'a [u8])],
}

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

    /// Cuts everything after this record, and writes the decision behind it. The log must be claimed and not open.
    ///
    /// # Errors
    /// `Storage`: the cut may then be made again, and nothing else is allowed before that.
    pub fn cut_after(
        shared: &Arc<dyn Disk>,
        dir: &Path,
        last: &RecordRef,
        segment_bytes_max: u64,
        decision: &Decision<'_>,
    ) -> Result<(), StoreError> {
        let disk = &**shared;
        let begun = dir.join(CUT_NAME);
        // It may be one that was never committed, and be gone with the power: then nobody could go back to it again.
        rewrite(disk, dir, last)?;
        replace(disk, &begun, format!("{}\n", last.epoch).as_bytes())?;
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
        sync_dir(disk, dir)?;
        let (mut log, _) =
            EpochLog::open_as_it_is(shared.clone(), dir, segment_bytes_max, &[], |_, _| Ok(()))?;
        log.append(decision.incarnation, last.epoch + 1, decision.sections)?;
        disk.remove_file(&begun).map_err(StoreError::storage("remove", &begun))?;
        sync_dir(disk, dir)
    }

    /// Whether nobody has begun to go back and not come to the end.
    pub(super) fn is_not_being_cut(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
        let file = dir.join(CUT_NAME);
        let Some(bytes) = read_if_there(disk, &file)? else { return Ok(()) };
        let epoch = String::from_utf8_lossy(&bytes).trim().to_owned();
        Err(StoreError::Damaged {
            file,
            offset: 0,
            epoch: epoch.parse().ok(),
            what: format!("somebody has begun to go back to epoch {epoch}, and has not come to the end"),
            hint: format!("`tidemill recover --to {epoch}` again does the rest"),
        })
    }
}
