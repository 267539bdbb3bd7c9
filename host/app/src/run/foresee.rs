//! What a start would refuse of sinks and positions, found by reading alone: for `check`.
//!
//! The start itself asks the same questions again (`open_sinks`, and each file when it is opened): between the two the
//! world may change.

use super::RunError;
use super::ingest::open_file;
use super::pipeline::{all_sinks, of_another_state};
use super::topics;
use crate::config::plan::{self, Pipeline, Plan, SourceKind};
use crate::meta::Meta;
use tidemill_connect::source::file;

/// What would be refused: key path, and why.
pub(crate) fn foresee(
    plan: &Plan,
    pipeline: &Pipeline,
    newest: Option<(u64, &Meta)>,
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let fingerprint = plan::fingerprint(pipeline, plan);
    for (name, sink) in all_sinks(plan, pipeline) {
        let stored = newest.and_then(|(_, m)| m.cursors.get(&name)).copied();
        if newest.is_some_and(|(_, m)| plan::moved(&m.fingerprint, &fingerprint, &name).is_some()) {
            // Named by the comparison of the two.
            continue;
        }
        let refused = match sink.probe(stored) {
            Err(e) => Some(e.to_string()),
            Ok(()) if newest.is_none() => {
                // What cannot be asked here shows in `probe`.
                sink.witness().ok().flatten().filter(|e| *e > 0).map(|epoch| of_another_state(plan, epoch))
            }
            Ok(()) => None,
        };
        found.extend(refused.map(|why| (format!("sink.{name}"), why)));
    }
    for i in &pipeline.from {
        let source = &plan.sources[*i];
        if let SourceKind::Kafka(topics) = &source.kind {
            let known = newest.and_then(|(_, m)| m.sources.iter().find(|s| s.name == source.name));
            let known = known.into_iter().flat_map(|s| &s.partitions);
            let stored = known.filter_map(|p| Some((p.identity.topic()?.clone(), p.offset))).collect();
            let refused = topics::foresee(&pipeline.name, source, topics, &stored);
            found.extend(refused.map(|(key, e)| (format!("source.{}.{key}", source.name), e.to_string())));
        }
    }
    if let Some((_, meta)) = newest {
        for i in &pipeline.from {
            let name = &plan.sources[*i].name;
            found.extend(shorter(plan, *i, meta).map(|e| (format!("source.{name}.path"), e.to_string())));
        }
    }
    found
}

/// The first file that is shorter than what was read of it.
fn shorter(plan: &Plan, source: usize, meta: &Meta) -> Option<RunError> {
    let source = &plan.sources[source];
    let SourceKind::File { pattern, follow: false, .. } = &source.kind else { return None };
    let stored = &meta.sources.iter().find(|s| s.name == source.name)?.partitions;
    let files = file::list(pattern).unwrap_or_default();
    files.iter().find_map(|path| {
        let same = |known| file::same_file(known, path).unwrap_or(false);
        let known = stored.iter().rfind(|p| p.identity.file().is_some_and(same))?;
        open_file(source, path, known.offset)
            .err()
            .map(|e| RunError::of(&format!("source `{}`", source.name), e))
    })
}
