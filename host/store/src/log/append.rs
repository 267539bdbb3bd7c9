//! Appending: one record an epoch, durable before it is told, and a new segment where the last one is full. Or records that were
//! written elsewhere, as they are.

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
        self.write_buffer(epoch, Tip { epoch, incarnation, checksum })
    }

    /// Puts records behind the last one that a copy of this log has been kept of: whole records, as they are, each following the one
    /// before. Those that the log has are passed over. When this returns, all of them are durable; the answer is how many were
    /// added.
    ///
    /// # Errors
    /// `Damaged` if they are not what follows in this log: none of them is added then. `Storage` as for [`append`](Self::append).
    pub fn graft(&mut self, records: &[u8]) -> Result<u64, StoreError> {
        let (mut tip, mut first, mut added, mut at) = (self.last, None, 0, 0);
        self.buffer.clear();
        while at < records.len() {
            let (rest, offset) = (&records[at..], at as u64);
            let (dir, epoch) = (&self.reader.dir, tip.epoch);
            let refuse = |what: String| StoreError::Damaged {
                file: dir.clone(),
                offset,
                epoch: Some(epoch + 1),
                what: format!("what was kept of it elsewhere does not go on after epoch {epoch}: {what}"),
                hint: "restore an older snapshot".to_owned(),
            };
            let r = record::decode(rest).map_err(|e| refuse(e.to_string()))?;
            at += r.len;
            if r.header.epoch <= self.last.epoch {
                continue;
            }
            r.follows(tip.checksum).map_err(|e| refuse(format!("epoch {}: {e}", r.header.epoch)))?;
            if r.header.epoch <= tip.epoch || r.header.incarnation < tip.incarnation {
                return Err(refuse(format!(
                    "epoch {} of incarnation {}",
                    r.header.epoch, r.header.incarnation
                )));
            }
            first.get_or_insert(r.header.epoch);
            tip = Tip { epoch: r.header.epoch, incarnation: r.header.incarnation, checksum: r.checksum };
            self.buffer.extend_from_slice(&rest[..r.len]);
            added += 1;
        }
        if let Some(first) = first {
            self.check_usable(first)?;
            let written = self.write_buffer(first, tip);
            self.poisoned = written.is_err();
            written?;
        }
        Ok(added)
    }

    /// Writes what is in the buffer, which begins with the record of an epoch and ends with the one that is the last then.
    fn write_buffer(&mut self, epoch: u64, last: Tip) -> Result<RecordRef, StoreError> {
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
        segment.last_epoch = last.epoch;
        self.last = last;

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
