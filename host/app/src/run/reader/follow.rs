//! Followed files: what a rename, a cut or a new file in the directory means for the partitions.

use super::partitions::Reading;
use super::{Reader, clock_ms};
use crate::config::plan::SourceKind;
use crate::run::RunError;
use std::path::Path;
use tidemill_connect::source::Read;
use tidemill_connect::source::file::{self, Rotation};

/// Between two looks at the directory of a followed file.
const LOOK_MS: i64 = 200;

impl Reader<'_> {
    /// A followed file has no more for now: was it renamed or cut?
    pub(super) fn look_for_rotation(&mut self, p: usize) -> Result<Read, RunError> {
        let now = clock_ms();
        let part = &mut self.parts[p];
        if now - part.looked_at_ms < LOOK_MS {
            return Ok(Read::Pending);
        }
        part.looked_at_ms = now;
        let (source, path) = (part.source, part.identity.path.clone());
        let Some(Reading::File(f)) = &mut part.reading else { return Ok(Read::Pending) };
        match f.rotated() {
            Ok(Rotation::No) => {}
            Ok(Rotation::Renamed) => {
                f.finish();
                self.add_file(source, Path::new(&path), now)?;
            }
            Ok(Rotation::Truncated) => {
                self.end_part(p);
                self.add_file(source, Path::new(&path), now)?;
            }
            Err(e) => return Err(self.failed(source, e)),
        }
        if let SourceKind::File { pattern, .. } = &self.plan.sources[source].kind {
            self.look_for_new_files(source, pattern, now)?;
        }
        Ok(Read::Pending)
    }

    fn look_for_new_files(&mut self, source: usize, pattern: &str, now: i64) -> Result<(), RunError> {
        // Between a rename and the new file the pattern may match nothing.
        for path in file::list(pattern).unwrap_or_default() {
            let text = path.to_string_lossy();
            if !self.parts.iter().any(|p| p.source == source && *p.identity.path == *text) {
                self.add_file(source, &path, now)?;
            }
        }
        Ok(())
    }
}
