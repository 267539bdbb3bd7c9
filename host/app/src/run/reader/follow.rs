//! Followed files: what a rename, a cut or a new file in the directory means for the partitions.

use super::Reader;
use super::partitions::Reading;
use crate::clock::now_ms;
use crate::config::plan::SourceKind;
use crate::run::RunError;
use std::path::Path;
use tidemill_connect::source::file::{self, Rotation};
use tidemill_connect::source::{FileIdentity, PartitionIdentity, Read};

/// Between two looks at the directory of a followed file.
const LOOK_MS: i64 = 200;
/// A renamed file is read on until it was quiet so long, once its successor has records: longer than the workers of a
/// server take to reopen their log one after the other.
const RENAMED_QUIET_MS: i64 = 5_000;
/// And so long while the successor has none: the writer has not been told to reopen, or nobody visits.
const RENAMED_QUIET_ALONE_MS: i64 = 600_000;

impl Reader<'_> {
    /// A followed file has no more for now: was it renamed or cut?
    pub(super) fn look_for_rotation(&mut self, p: usize) -> Result<Read, RunError> {
        let now = now_ms();
        let part = &mut self.parts[p];
        if now - part.looked_at_ms < LOOK_MS {
            return Ok(Read::Pending);
        }
        part.looked_at_ms = now;
        let (source, path) = (part.source, part.name.clone());
        let Some(Reading::File(f)) = &mut part.reading else { return Ok(Read::Pending) };
        let identity = f.identity();
        match f.rotated() {
            Ok(Rotation::No) => {}
            Ok(Rotation::Renamed) => self.follow_renamed(p, &path, now)?,
            Ok(Rotation::Truncated) => {
                self.end_part(p);
                self.add_file(source, Path::new(&*path), now)?;
            }
            Err(e) => return Err(self.failed(source, e)),
        }
        self.parts[p].identity = PartitionIdentity::File(identity);
        if let SourceKind::File { pattern, .. } = &self.job.plan.sources[source].kind {
            self.look_for_new_files(source, pattern, now)?;
        }
        Ok(Read::Pending)
    }

    /// A writer may go on in a renamed file until it is told to reopen: the file is followed until its end is quiet.
    fn follow_renamed(&mut self, p: usize, path: &str, now: i64) -> Result<(), RunError> {
        let part = &mut self.parts[p];
        let (source, key) = (part.source, part.key);
        let since = (*part.renamed_at_ms.get_or_insert(now)).max(part.grew_at_ms);
        if !self.is_known(source, Path::new(path)) {
            self.add_file(source, Path::new(path), now)?;
        }
        let new_file = self.parts.iter().find(|q| q.key > key && q.source == source && *q.name == *path);
        let has_records = new_file.is_some_and(|q| q.offset > 0);
        let quiet_ms = if has_records { RENAMED_QUIET_MS } else { RENAMED_QUIET_ALONE_MS };
        if now - since >= quiet_ms
            && let Some(Reading::File(f)) = &mut self.parts[p].reading
        {
            f.finish();
        }
        Ok(())
    }

    /// Whether the file at a path is being read, or has been, under this or another name.
    fn is_known(&self, source: usize, path: &Path) -> bool {
        self.parts.iter().filter(|q| q.source == source).any(|q| {
            let finished = self.is_finished(q.key);
            let same_name = *q.name == *path.to_string_lossy();
            let is_at =
                |f: &FileIdentity| (!finished || f.head_len > 0) && file::is_at(f, path).unwrap_or(false);
            // A name that stays may come to mean another file, a file that stays may come to have another name, and the
            // number of an empty one that is gone says nothing.
            (same_name && q.renamed_at_ms.is_none() && !finished) || q.identity.file().is_some_and(is_at)
        })
    }

    fn look_for_new_files(&mut self, source: usize, pattern: &str, now: i64) -> Result<(), RunError> {
        // Between a rename and the new file the pattern may match nothing.
        for path in file::list(pattern).unwrap_or_default() {
            if !self.is_known(source, &path) {
                self.add_file(source, &path, now)?;
            }
        }
        Ok(())
    }
}
