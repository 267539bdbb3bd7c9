//! Snapshots of the data directory in an object store: taken beside the host that runs, restored into an empty directory.
//!
//! ```text
//! STORE/snapshots/ID.json            what is in a snapshot (manifest.rs); there once all of its parts are
//! STORE/parts/SHA256                 a file of the data directory, or its beginning; shared by all snapshots that hold it
//! STORE/hosts/INCARNATION.json       which data directory counts as the pipelines' own
//! STORE/tails/…                      what came after the newest snapshot, if it is to be there before it leaves (tail.rs)
//! ```
//!
//! A snapshot is each pipeline's log up to an epoch, the ingest logs with all that this epoch has not read, and the plugins. The
//! same bytes are the state, so restoring is recovery, after what sinks have seen since was taken back (SEMANTICS 24).
//!
//! Invariants: objects are only ever created; one data directory writes into a store, and one that was restored from it takes its
//! place for good (hosts.rs); what a manifest names is there for as long as the manifest is, since parts are deleted by whoever
//! holds the data directory's lock for snapshots, after the manifests that named them.

mod create;
mod hosts;
pub(crate) mod keeper;
mod manifest;
mod restore;
mod tail;

pub(crate) use self::manifest::Manifest;
pub(crate) use self::restore::{Back, Drilled, Restored};
pub(crate) use self::tail::Tails;

use crate::config::plan::{Plan, State};
use crate::run::RunError;
use tidemill_connect::ConnectError;
use tidemill_connect::bucket::Bucket;

/// The store of a plan, ready to be asked.
#[derive(Debug)]
pub(crate) struct Snapshots<'a> {
    plan: &'a Plan,
    keep: usize,
    bucket: Bucket,
}

impl<'a> Snapshots<'a> {
    /// Opens the store that the config names.
    ///
    /// # Errors
    /// `Refused` if it names none, or the client wants to be told more.
    pub(crate) fn of(plan: &'a Plan) -> Result<Snapshots<'a>, RunError> {
        let Some(State { store, keep, .. }) = &plan.state else {
            let message =
                "the config names no object store: write a `[state]` with `store = \"s3://bucket/tidemill\"`";
            return Err(RunError::Refused(message.to_owned()));
        };
        let bucket = store.open().map_err(failed)?;
        Ok(Snapshots { plan, keep: *keep, bucket })
    }

    /// Where it is, for messages.
    pub(crate) fn address(&self) -> &str {
        self.bucket.address()
    }

    /// The ids of all snapshots, the oldest first.
    fn ids(&self) -> Result<Vec<String>, RunError> {
        let names = self.bucket.list("snapshots").map_err(failed)?;
        Ok(names.iter().filter_map(|n| n.strip_suffix(".json")).map(str::to_owned).collect())
    }

    /// All snapshots, the oldest first. One that a host lets go meanwhile is none.
    pub(crate) fn all(&self) -> Result<Vec<Manifest>, RunError> {
        self.ids()?.iter().filter_map(|id| self.look(id).transpose()).collect()
    }

    /// What is in a snapshot.
    fn manifest(&self, id: &str) -> Result<Manifest, RunError> {
        let missing = || RunError::Refused(format!("{}: there is no snapshot `{id}`", self.address()));
        self.look(id)?.ok_or_else(missing)
    }

    fn look(&self, id: &str) -> Result<Option<Manifest>, RunError> {
        let name = Manifest::object(id);
        let Some(bytes) = self.bucket.get(&name).map_err(failed)? else { return Ok(None) };
        let read = Manifest::read(&bytes);
        read.map(Some).map_err(|e| RunError::Refused(format!("{}/{name}: {e}", self.address())))
    }

    /// The newest one, or the one that is asked for.
    fn chosen(&self, id: Option<&str>) -> Result<Manifest, RunError> {
        match id.filter(|_| !is_newest(id)) {
            Some(id) => self.manifest(id),
            None => {
                let newest = self.ids()?.pop();
                let none = || RunError::Refused(format!("{}: there is no snapshot yet", self.address()));
                self.manifest(&newest.ok_or_else(none)?)
            }
        }
    }
}

/// Whether the newest snapshot is meant, with what came after it.
fn is_newest(id: Option<&str>) -> bool {
    id.is_none_or(|id| id == "latest")
}

/// What an object store says, by what the caller must do.
fn failed(e: ConnectError) -> RunError {
    match e {
        ConnectError::Config(m) => RunError::Refused(m),
        ConnectError::Conflict(m) => RunError::Conflict(m),
        ConnectError::Unavailable(m) | ConnectError::Failed(m) => RunError::Failed(m),
        ConnectError::Storage(m) => RunError::Storage(m),
    }
}
