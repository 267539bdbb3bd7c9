//! What names what: names that pipelines may use, each use of one, and uses that cannot stand together.

use super::diagnose::{Problems, Spot};
use super::plan::{Pipeline, Places, Rule, Sink, SinkKind, Source, SourceKind};
use std::path::{Path, PathBuf};

/// What pipelines may refer to.
pub(super) struct Names {
    pub(super) sources: Vec<String>,
    pub(super) sinks: Vec<String>,
    pub(super) plugins: Vec<PluginFile>,
    pub(super) epoch_ms: i64,
}

/// `[plugin.NAME]`.
pub(super) struct PluginFile {
    pub(super) name: String,
    /// Place of the name.
    pub(super) at: Spot,
    pub(super) path: PathBuf,
    pub(super) path_at: Spot,
    /// With the places of its values.
    pub(super) config: Option<(serde_json::Value, Places)>,
    /// The plugin's name for a lookup, and the index of the one that answers.
    pub(super) lookups: Vec<(String, usize)>,
}

/// One mention of a source or sink in a pipeline.
pub(super) struct Use {
    pub(super) index: usize,
    pub(super) at: Spot,
    pub(super) path: String,
    pub(super) dead: bool,
}

/// All mentions, to find what can be used only once.
#[derive(Default)]
pub(super) struct Uses {
    pub(super) sources: Vec<Use>,
    pub(super) sinks: Vec<Use>,
}

impl Uses {
    pub(super) fn check(&self, sources: &[Option<Source>], sinks: &[Option<Sink>], p: &mut Problems) {
        let mut stdin: Option<&Use> = None;
        for u in &self.sources {
            if !matches!(sources.get(u.index), Some(Some(Source { kind: SourceKind::Stdin, .. }))) {
                continue;
            }
            if let Some(first) = stdin {
                let help = format!("`{}` reads it already", first.path);
                p.error(u.at, &u.path, "standard input can be read only once".to_owned(), help);
            }
            stdin = stdin.or(Some(u));
        }
        for (n, u) in self.sinks.iter().enumerate() {
            let Some(Some(sink)) = sinks.get(u.index) else { continue };
            if u.dead && matches!(sink.kind, SinkKind::Sqlite { .. }) {
                let message = format!("dead letters cannot go to `{}`: they are JSON lines", sink.name);
                let kinds = "\"file\", \"postgres\", \"bigquery\", \"kafka\", \"pubsub\" or \"stdout\"";
                let help = format!("use a sink of kind = {kinds}");
                p.error(u.at, &u.path, message, help);
            }
            // Sessions and letters have other columns, and a topic is known by the name of the sink that writes to it.
            let other = self.sinks[..n].iter().find(|o| o.index == u.index && o.dead != u.dead);
            let place = match &sink.kind {
                SinkKind::Postgres { .. } | SinkKind::BigQuery { .. } => Some("table"),
                SinkKind::Kafka { .. } | SinkKind::PubSub { .. } => Some("topic"),
                SinkKind::Sqlite { .. } | SinkKind::File { .. } | SinkKind::Stdout => None,
            };
            if let (Some(other), Some(place)) = (other, place) {
                let message =
                    format!("the {place} of `{}` cannot hold both sessions and dead letters", sink.name);
                let help =
                    format!("`{}` writes to it already; give each a sink with its own `{place}`", other.path);
                p.error(u.at, &u.path, message, help);
            }
            // A file is cut back to one pipeline's cursor after a crash; two would cut each other.
            let first = self.sinks[..n].iter().find(|first| first.index == u.index);
            if let (Some(first), SinkKind::File { .. }) = (first, &sink.kind) {
                let message = format!("the file sink `{}` is used twice", sink.name);
                p.error(
                    u.at,
                    &u.path,
                    message,
                    format!("`{}` writes to it already; give each its own", first.path),
                );
            }
        }
    }
}

impl Uses {
    /// In one group only one pipeline can show how far it is.
    pub(super) fn check_groups(&self, sources: &[Option<Source>], p: &mut Problems) {
        let mut seen: Vec<(&str, &str, &Use)> = Vec::new();
        for u in &self.sources {
            let Some(Some(Source { kind: SourceKind::Kafka(topics), .. })) = sources.get(u.index) else {
                continue;
            };
            let Some((group, at)) = &topics.group else { continue };
            let address = topics.cluster.address();
            if let Some((.., first)) = seen.iter().find(|(a, g, _)| (*a, *g) == (address, group)) {
                let message = format!("the group `{group}` can show the positions of one pipeline only");
                let help =
                    format!("`{}` has it already; leave `group` out, and each gets its own", first.path);
                p.error(*at, &u.path, message, help);
            }
            seen.push((address, group, u));
        }
    }
}

/// Warns of sources, sinks and plugins that no pipeline uses.
pub(super) fn unused(
    names: &Names,
    uses: &Uses,
    sources: &[Option<Source>],
    sinks: &[Option<Sink>],
    pipelines: &[Option<Pipeline>],
    p: &mut Problems,
) {
    for (i, source) in sources.iter().enumerate() {
        if let Some(source) = source
            && !uses.sources.iter().any(|u| u.index == i)
        {
            let message = format!("no pipeline reads the source `{}`", names.sources[i]);
            p.warn(source.at, &format!("source.{}", source.name), message, None);
        }
    }
    for (i, sink) in sinks.iter().enumerate() {
        if let Some(sink) = sink
            && !uses.sinks.iter().any(|u| u.index == i)
        {
            let message = format!("no pipeline writes to the sink `{}`", names.sinks[i]);
            p.warn(sink.at, &format!("sink.{}", sink.name), message, None);
        }
    }
    let pipelines = || pipelines.iter().flatten();
    for plugin in &names.plugins {
        let in_session = |k: &Pipeline| matches!(&k.rule, Rule::Plugin(u) if u.name == plugin.name);
        let in_others = |k: &Pipeline| k.validate.iter().chain(&k.enrich).any(|u| u.name == plugin.name);
        if !pipelines().any(|k| in_session(k) || in_others(k)) {
            let message = format!("no pipeline uses the plugin `{}`", plugin.name);
            p.warn(plugin.at, &format!("plugin.{}", plugin.name), message, None);
        }
    }
}

/// Two sinks on one file would overwrite each other; two tables in one database are fine.
pub(super) fn check_one_file(sinks: &[Option<Sink>], p: &mut Problems) {
    let sinks: Vec<&Sink> = sinks.iter().flatten().collect();
    for (n, sink) in sinks.iter().enumerate() {
        let clash = sinks[..n].iter().find(|first| match (&first.kind, &sink.kind) {
            (SinkKind::Sqlite { path: a, table: s }, SinkKind::Sqlite { path: b, table: t }) => {
                same_file(a, b) && s.eq_ignore_ascii_case(t)
            }
            (SinkKind::Postgres { server: a, table: s }, SinkKind::Postgres { server: b, table: t }) => {
                a.address() == b.address() && s == t
            }
            (SinkKind::Kafka { cluster: a, topic: s, .. }, SinkKind::Kafka { cluster: b, topic: t, .. }) => {
                a.address() == b.address() && s == t
            }
            (SinkKind::PubSub { topic: a }, SinkKind::PubSub { topic: b }) => a.place() == b.place(),
            (SinkKind::BigQuery { target: a }, SinkKind::BigQuery { target: b }) => {
                a.place() == b.place() && a.table() == b.table()
            }
            (a, b) => matches!((a.path(), b.path()), (Some(a), Some(b)) if same_file(a, b)),
        });
        if let Some(first) = clash {
            let message = format!("the sinks `{}` and `{}` write to the same place", first.name, sink.name);
            p.error(
                sink.path_at,
                &format!("sink.{}.path", sink.name),
                message,
                "give each its own".to_owned(),
            );
        }
    }
}

/// Whether two paths are spelled alike but for `.` parts.
fn same_file(a: &Path, b: &Path) -> bool {
    let plain = |p: &Path| p.components().filter(|c| *c != std::path::Component::CurDir).collect::<PathBuf>();
    plain(a) == plain(b)
}
