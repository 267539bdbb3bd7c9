//! The whole log beside the process that writes it, without a claim: what a snapshot takes with it.
//!
//! Segments only grow, and leave whole at the front; a file that is open can be read to its end when its name is gone. So what
//! was opened in order is a log that a power cut might have left, and nothing has to wait for it.
//!
//! Invariant: what is captured ends with an epoch that COMMITTED vouches for. A record behind it may be lost in a power cut, and
//! then be another one.

use super::marker::{MARKER_NAME, Marker};
use super::{damaged, list_segments, segment_path};
use crate::StoreError;
use crate::disk::{Disk, DiskFile, Open};
use std::io;
use std::path::{Path, PathBuf};
use tidemill_engine::record::{self, Kind};

/// How often a log that changes under our hands is looked at again: it loses a segment once in many epochs.
const TRIES: u32 = 5;

/// A log as it stood at the end of an epoch.
#[derive(Debug)]
pub struct Captured {
    /// The epoch.
    pub epoch: u64,
    /// Who wrote it.
    pub incarnation: u64,
    /// Its `Meta` section.
    pub meta: Vec<u8>,
    /// All segments, the oldest first.
    pub segments: Vec<CapturedSegment>,
}

/// A segment, or the beginning of one.
#[derive(Debug)]
pub struct CapturedSegment {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    bytes: u64,
}

impl CapturedSegment {
    /// The name of its file.
    pub fn name(&self) -> &str {
        self.path.file_name().and_then(|n| n.to_str()).unwrap_or_default()
    }

    /// What belongs to the epochs that were captured.
    ///
    /// # Errors
    /// `Storage` if it cannot be read.
    pub fn read(&self) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; usize::try_from(self.bytes).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, 0).map_err(StoreError::storage("read", &self.path))?;
        Ok(bytes)
    }
}

/// Captures the log in `dir`; `None` if nothing is committed there.
///
/// # Errors
/// `Damaged` if the records are not what was committed, `Storage` if they cannot be read.
pub fn capture(disk: &dyn Disk, dir: &Path) -> Result<Option<Captured>, StoreError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match try_to_capture(disk, dir) {
            // The name of a file may be gone since it was listed, or the log have been begun anew.
            Err(StoreError::Storage { source, .. }) if gone(&source) && tries < TRIES => {}
            Err(StoreError::Damaged { .. }) if tries < TRIES => {}
            done => return done,
        }
    }
}

fn gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound
}

fn try_to_capture(disk: &dyn Disk, dir: &Path) -> Result<Option<Captured>, StoreError> {
    if !disk.is_dir(dir) {
        return Ok(None);
    }
    let mut segments = Vec::new();
    for first_epoch in list_segments(disk, dir)? {
        let path = segment_path(dir, first_epoch);
        let opened = disk.open(&path, Open::Read).and_then(|file| Ok((file.len()?, file)));
        let (bytes, file) = opened.map_err(StoreError::storage("read", &path))?;
        segments.push(CapturedSegment { path, file, bytes });
    }
    let Some(vouched) = Marker::read(disk, dir)?.newest else { return Ok(None) };
    let mut captured: Option<Captured> = None;
    let mut previous = None;
    let mut kept = Vec::new();
    'segments: for mut segment in segments {
        let bytes = segment.read()?;
        let mut at = 0;
        while at < bytes.len() {
            let last_good = captured.as_ref().map_or(0, |c| c.epoch);
            if last_good == vouched.tip.epoch {
                break;
            }
            let wrong = |what: &str| Err(damaged(&segment.path, at as u64, last_good + 1, last_good, what));
            let r = match record::decode(&bytes[at..]) {
                Ok(r) => r,
                Err(e) => {
                    return wrong(&format!("{e}, and {MARKER_NAME} vouches for epoch {}", vouched.tip.epoch));
                }
            };
            if let Some(checksum) = previous
                && let Err(e) = r.follows(checksum)
            {
                return wrong(&e.to_string());
            }
            if r.header.epoch > vouched.tip.epoch
                || (r.header.epoch == vouched.tip.epoch && r.checksum != vouched.tip.checksum)
            {
                return wrong(&format!("it is not the record that {MARKER_NAME} vouches for"));
            }
            previous = Some(r.checksum);
            at += r.len;
            captured = Some(Captured {
                epoch: r.header.epoch,
                incarnation: r.header.incarnation,
                meta: r.section(Kind::Meta).unwrap_or_default().to_vec(),
                segments: Vec::new(),
            });
        }
        segment.bytes = at as u64;
        let is_last = captured.as_ref().is_some_and(|c| c.epoch == vouched.tip.epoch);
        if at > 0 {
            kept.push(segment);
        }
        if is_last {
            break 'segments;
        }
    }
    Ok(captured.map(|c| Captured { segments: kept, ..c }))
}
