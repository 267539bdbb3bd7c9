//! Ingest logs of the process: one for each source that clients post to or that is pulled, shared by the pipelines that read it.
//!
//! A log keeps what some pipeline has not read durably yet; each tells after its epochs how far it has come.

use super::{RunError, RunOptions, peek};
use crate::config::plan::Plan;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tidemill_connect::ConnectError;
use tidemill_connect::source::ingest_log::{IngestLog, IngestPartition, Trimmer};

/// A source's log, and how far each pipeline has read it durably.
#[derive(Debug)]
struct Inlet {
    log: Arc<IngestLog>,
    trimmer: Trimmer,
    read: Mutex<BTreeMap<String, u64>>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Inlets {
    by_source: BTreeMap<String, Inlet>,
}

impl Inlets {
    /// Opens the logs of all sources that are posted to or pulled. The data directory is claimed.
    pub(crate) fn open(plan: &Plan, options: &RunOptions) -> Result<Inlets, RunError> {
        let mut by_source = BTreeMap::new();
        for source in &plan.sources {
            let Some(backlog_bytes) = source.backlog_bytes() else { continue };
            let mut read = BTreeMap::new();
            for pipeline in &plan.pipelines {
                if !pipeline.from.iter().any(|i| plan.sources[*i].name == source.name) || options.fresh {
                    continue;
                }
                let meta = peek(plan, &pipeline.name)?.map(|(_, _, meta)| meta);
                let of_source = meta.iter().flat_map(|m| &m.sources).find(|s| s.name == source.name);
                if let Some(partition) = of_source.and_then(|s| s.partitions.first()) {
                    read.insert(pipeline.name.clone(), partition.offset);
                }
            }
            let dir = plan.server.data_dir.join("ingest").join(&source.name);
            let log = IngestLog::open(&dir, read.values().min().copied(), backlog_bytes)
                .map_err(|e| RunError::of(&format!("source `{}`", source.name), e))?;
            let inlet = Inlet { trimmer: log.trimmer(), log: Arc::new(log), read: Mutex::new(read) };
            by_source.insert(source.name.clone(), inlet);
        }
        Ok(Inlets { by_source })
    }

    /// The log of a source, for whoever writes to it.
    pub(crate) fn log(&self, source: &str) -> Option<Arc<IngestLog>> {
        self.by_source.get(source).map(|i| i.log.clone())
    }

    /// The offset of the first record that is kept of a source.
    pub(crate) fn first(&self, source: &str) -> u64 {
        self.by_source.get(source).map_or(0, |i| i.log.first())
    }

    /// All of a source before this offset is durable.
    #[cfg_attr(not(feature = "services"), expect(dead_code, reason = "this build has no object stores"))]
    pub(crate) fn durable(&self, source: &str) -> u64 {
        self.by_source.get(source).map_or(0, |i| i.log.durable())
    }

    /// What stands in a source's log from an offset on, for a copy that is kept elsewhere; nothing at its end.
    #[cfg_attr(not(feature = "services"), expect(dead_code, reason = "this build has no object stores"))]
    pub(crate) fn copy(&self, source: &str, offset: u64, bytes_max: u64) -> Result<Vec<u8>, ConnectError> {
        self.by_source.get(source).map_or(Ok(Vec::new()), |i| i.log.copy(offset, bytes_max))
    }

    /// A reader of a source's log, from an offset on.
    pub(crate) fn reader(&self, source: &str, offset: u64) -> Option<IngestPartition> {
        self.by_source.get(source).map(|i| i.log.reader(offset))
    }

    /// A durable epoch of a pipeline has read a source up to `offset`: what no pipeline needs is deleted.
    pub(crate) fn has_read(&self, pipeline: &str, source: &str, offset: u64) -> Result<(), RunError> {
        let Some(inlet) = self.by_source.get(source) else { return Ok(()) };
        let least = {
            let mut read = inlet.read.lock().unwrap_or_else(PoisonError::into_inner);
            read.insert(pipeline.to_owned(), offset);
            read.values().min().copied().unwrap_or(0)
        };
        inlet.trimmer.trim(least).map_err(|e| RunError::of(&format!("source `{source}`"), e))
    }
}
