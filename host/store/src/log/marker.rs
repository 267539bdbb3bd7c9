//! COMMITTED: two slots, written in turn after each sync, that vouch for the newest epoch.

use super::Tip;
use crate::disk::{Disk, DiskFile, Open};
use crate::{StoreError, read_if_there};
use std::io;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;

pub(super) const MARKER_NAME: &str = "COMMITTED";
pub(super) const SLOT_BYTES: usize = 64;
/// The slots lie in different 4 KiB pages, so that a torn write of one cannot touch the other.
pub(super) const SLOT_OFFSETS: [u64; 2] = [0, 4096];

/// What COMMITTED says.
#[derive(Debug, Default)]
pub(super) struct Marker {
    pub(super) newest: Option<Slot>,
    newest_slot: usize,
    /// A slot was written, but its checksum does not hold.
    pub(super) unreadable: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) tip: Tip,
    pub(super) segment_first_epoch: u64,
    pub(super) end: u64,
}

impl Marker {
    pub(super) fn read(disk: &dyn Disk, dir: &Path) -> Result<Marker, StoreError> {
        let mut marker = Marker::default();
        let Some(bytes) = read_if_there(disk, &dir.join(MARKER_NAME))? else { return Ok(marker) };
        for (i, offset) in SLOT_OFFSETS.into_iter().enumerate() {
            let slot = bytes.get(offset as usize..).unwrap_or_default();
            let slot = slot.get(..SLOT_BYTES).unwrap_or(slot);
            if slot.iter().all(|b| *b == 0) {
                continue; // never written
            }
            match Slot::decode(slot) {
                None => marker.unreadable = true,
                Some(slot) if slot.tip.epoch > marker.epoch() => {
                    marker.newest = Some(slot);
                    marker.newest_slot = i;
                }
                Some(_) => {}
            }
        }
        Ok(marker)
    }

    /// The file is written in full when it is made, so that no later slot needs space on a full disk.
    pub(super) fn open_for_writing(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn DiskFile>, StoreError> {
        let path = dir.join(MARKER_NAME);
        let open = || -> io::Result<Box<dyn DiskFile>> {
            let file = disk.open(&path, Open::MaybeNew)?;
            let len = SLOT_OFFSETS[1] + SLOT_BYTES as u64;
            let there = file.len()?;
            if there < len {
                file.write_all_at(&vec![0; (len - there) as usize], there)?;
            }
            Ok(file)
        };
        open().map_err(StoreError::storage("open", &path))
    }

    pub(super) fn epoch(&self) -> u64 {
        self.newest.map_or(0, |s| s.tip.epoch)
    }

    pub(super) fn older_slot(&self) -> usize {
        if self.newest.is_some() { 1 - self.newest_slot } else { 0 }
    }
}

impl Slot {
    pub(super) fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut out = [0; SLOT_BYTES];
        out[0..8].copy_from_slice(&self.tip.epoch.to_le_bytes());
        out[8..16].copy_from_slice(&self.tip.incarnation.to_le_bytes());
        out[16..32].copy_from_slice(&self.tip.checksum.to_le_bytes());
        out[32..40].copy_from_slice(&self.segment_first_epoch.to_le_bytes());
        out[40..48].copy_from_slice(&self.end.to_le_bytes());
        let own = xxh3_128(&out[..48]);
        out[48..].copy_from_slice(&own.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Slot> {
        let (body, own) = bytes.split_at_checked(48)?;
        if own != xxh3_128(body).to_le_bytes() {
            return None;
        }
        let number = |at: usize| Some(u64::from_le_bytes(*body.get(at..)?.first_chunk()?));
        let checksum = u128::from_le_bytes(*body.get(16..)?.first_chunk()?);
        Some(Slot {
            tip: Tip { epoch: number(0)?, incarnation: number(8)?, checksum },
            segment_first_epoch: number(32)?,
            end: number(40)?,
        })
    }
}
