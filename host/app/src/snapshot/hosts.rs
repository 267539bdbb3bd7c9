//! Which data directory counts: the one whose incarnation is the newest that the store has heard of.
//!
//! Somebody may restore a snapshot elsewhere while the host that took it still lives. From then on that one is superseded: its
//! sinks refuse it by its incarnation, and so does the store, so that it spoils no snapshot of its successor.

use super::{Snapshots, failed};
use crate::clock::now_ms;
use crate::run::RunError;
use crate::store::token;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tidemill_store::disk::OsDisk;
use tidemill_store::{read_if_there, replace};

/// Starts that the store may not have heard of: a host whose store is away goes on, and its incarnation rises with each start.
/// One that is restored begins beyond all of them.
const UNHEARD_OF: u64 = 1_000;

/// What stands in the store of a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Host {
    /// Of its data directory: random.
    directory: String,
    /// Where that is, for a human.
    path: String,
    /// Host clock, ms.
    at_ms: i64,
}

impl Snapshots<'_> {
    /// Sees that the data directory in `dir` is the newest that the store knows of, with this incarnation; says so there if it
    /// does not know it yet.
    ///
    /// # Errors
    /// `Conflict` if another one has taken its place.
    pub(super) fn claim(&self, dir: &Path, incarnation: u64) -> Result<(), RunError> {
        let ours = directory(dir)?;
        for _ in 0..2 {
            let known = self.incarnations()?;
            let newest = known.last().copied().unwrap_or(0);
            if newest >= incarnation {
                let host = self.host(newest)?;
                return if host.directory == ours { Ok(()) } else { Err(self.superseded(newest, &host)) };
            }
            let path = &self.plan.server.data_dir;
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let host = Host { directory: ours.clone(), path: path.display().to_string(), at_ms: now_ms() };
            let text = serde_json::to_vec_pretty(&host).map_err(|e| RunError::Failed(e.to_string()))?;
            if self.bucket.put_new(&object(incarnation), text).map_err(failed)? {
                for older in known {
                    self.bucket.delete(&object(older)).map_err(failed)?;
                }
                return Ok(());
            }
        }
        Err(RunError::Conflict(format!("{}: another host writes here at the same time", self.address())))
    }

    /// From which incarnation on a directory has to count that is restored from this store.
    pub(super) fn beyond(&self, incarnation: u64) -> Result<u64, RunError> {
        let newest = self.incarnations()?.last().copied().unwrap_or(0);
        Ok(newest.max(incarnation).saturating_add(UNHEARD_OF))
    }

    fn incarnations(&self) -> Result<Vec<u64>, RunError> {
        let names = self.bucket.list("hosts").map_err(failed)?;
        Ok(names.iter().filter_map(|n| n.strip_suffix(".json")?.parse().ok()).collect())
    }

    fn host(&self, incarnation: u64) -> Result<Host, RunError> {
        let name = object(incarnation);
        let bytes = self.bucket.get(&name).map_err(failed)?.unwrap_or_default();
        serde_json::from_slice(&bytes)
            .map_err(|e| RunError::Refused(format!("{}/{name}: that names no host: {e}", self.address())))
    }

    fn superseded(&self, incarnation: u64, host: &Host) -> RunError {
        RunError::Conflict(format!(
            "{}: {} has taken the place of this data directory (incarnation {incarnation}, {}): what this host writes is \
             refused by its sinks. End it, or give it a `store` of its own",
            self.address(),
            host.path,
            jiff::Timestamp::from_millisecond(host.at_ms).unwrap_or_default()
        ))
    }
}

/// The own name of the data directory in `dir`, made when it is first needed.
fn directory(dir: &Path) -> Result<String, RunError> {
    let file = dir.join("id");
    let known = read_if_there(&OsDisk, &file)?.and_then(|bytes| String::from_utf8(bytes).ok());
    if let Some(id) = known.map(|id| id.trim().to_owned()).filter(|id| !id.is_empty()) {
        return Ok(id);
    }
    let id = token::random().map_err(|e| RunError::Failed(e.to_string()))?;
    replace(&OsDisk, &file, format!("{id}\n").as_bytes())?;
    Ok(id)
}

fn object(incarnation: u64) -> String {
    format!("hosts/{incarnation:020}.json")
}
