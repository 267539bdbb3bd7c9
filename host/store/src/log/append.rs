//! Appending: one record an epoch, durable before it is told, and a new segment where the last one is full.

use super::marker::{MARKER_NAME, SLOT_OFFSETS, Slot};
use super::{EpochLog, RecordRef, Segment, Tip, segment_path};
use crate::disk::Open;
use crate::{StoreError, sync_dir};
use std::io;
use tidemill_engine::record::{self, Header, Kind};

impl EpochLog {
    /// Commits one epoch: when this returns, the record is durable. Blocks for one `fdatasync`.
    ///
    /// # Errors
    /// `Storage`: the log refuses all further writes, and the next opening finds out what has become of this epoch. An
    /// epoch or incarnation that goes back is refused without touching the log.
    pub fn append(
        &mut self,
        incarnation: u64,
        epoch: u64,
        sections: &[(Kind, &[u8])],
    ) -> Result<RecordRef, StoreError> {
        self.check_usable(epoch)?;
        if epoch <= self.last.epoch || incarnation < self.last.incarnation {
            let source = io::Error::other(format!(
                "epoch {epoch} of incarnation {incarnation} cannot follow epoch {} of incarnation {}",
                self.last.epoch, self.last.incarnation
            ));
            return Err(StoreError::storage_at("append to", &self.reader.dir, Some(epoch))(source));
        }
        let written = self.write_record(incarnation, epoch, sections);
        self.poisoned = written.is_err();
        written
    }

    fn write_record(
        &mut self,
        incarnation: u64,
        epoch: u64,
        sections: &[(Kind, &[u8])],
    ) -> Result<RecordRef, StoreError> {
        self.buffer.clear();
        let header = Header { incarnation, epoch, previous: self.last.checksum };
        let checksum = record::encode_into(&mut self.buffer, &header, sections);
        let len = self.buffer.len() as u64;
        self.rotate_for(epoch, len)?;
        let (Some(file), Some(segment)) = (&self.active, self.segments.back_mut()) else {
            let source = io::Error::other("no segment is open");
            return Err(StoreError::storage_at("append to", &self.reader.dir, Some(epoch))(source));
        };
        let path = segment_path(&self.reader.dir, segment.first_epoch);
        let at = RecordRef { epoch, segment_first_epoch: segment.first_epoch, offset: segment.bytes, len };
        let failed = |doing| {
            let path = &path;
            move |e| StoreError::storage_at(doing, path, Some(epoch))(e).at_offset(at.offset)
        };
        file.write_all_at(&self.buffer, at.offset).map_err(failed("write"))?;
        file.sync_data().map_err(failed("sync"))?;
        segment.bytes += len;
        segment.last_epoch = epoch;
        self.last = Tip { epoch, incarnation, checksum };

        // The marker is not synced. It is written after the record is durable, so whatever part of it
        // reaches the disk is true; and a process that dies leaves it in the kernel's cache, where the
        // next one reads it. Only a power cut can make it lag, and then it vouches for less, never for
        // something that is not there. A second sync would double the price of an epoch for that.
        let slot = Slot { tip: self.last, segment_first_epoch: at.segment_first_epoch, end: segment.bytes };
        let marker = self.reader.dir.join(MARKER_NAME);
        self.marker
            .write_all_at(&slot.encode(), SLOT_OFFSETS[self.marker_slot])
            .map_err(StoreError::storage_at("write", &marker, Some(epoch)))?;
        self.marker_slot = 1 - self.marker_slot;
        // One huge epoch does not keep its memory for ever.
        self.buffer.shrink_to(self.segment_bytes_max as usize);
        Ok(at)
    }

    /// Opens a new segment if there is none, or if the record would make the last one too long.
    fn rotate_for(&mut self, epoch: u64, len: u64) -> Result<(), StoreError> {
        if self.active.is_some()
            && self.segments.back().is_some_and(|s| s.bytes + len <= self.segment_bytes_max)
        {
            return Ok(());
        }
        let path = segment_path(&self.reader.dir, epoch);
        let file = self.reader.disk.open(&path, Open::New);
        let file = file.map_err(StoreError::storage_at("create", &path, Some(epoch)))?;
        sync_dir(&*self.reader.disk, &self.reader.dir)?;
        self.segments.push_back(Segment { first_epoch: epoch, last_epoch: epoch, bytes: 0 });
        self.active = Some(file);
        Ok(())
    }

    pub(super) fn check_usable(&self, epoch: u64) -> Result<(), StoreError> {
        if !self.poisoned {
            return Ok(());
        }
        let source = io::Error::other("an earlier write has failed; start again to recover");
        Err(StoreError::storage_at("write to", &self.reader.dir, Some(epoch))(source))
    }
}
