//! A pipeline as it is shown: the same whether a host that runs is asked, or what it has stored.
//!
//! Instants are RFC 3339, durations ms. Nothing here is a secret.

use crate::config::plan::{Pipeline, Plan};
use crate::meta::{Counters, Decision, LookupMeta, Meta};
use crate::meters::Meters;
use crate::plugin::budget::Suspended;
use crate::schedule::{Deployment, RuleSpec};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use tidemill_engine::hot::HotKey;
use tidemill_engine::time::EventTime;
use tidemill_engine::versions::Policy;
use utoipa::ToSchema;

/// A pipeline: what it does, and how far it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[schema(as = Pipeline)]
pub(crate) struct PipelineView {
    /// Its name.
    pub(crate) pipeline: String,
    /// `starting`, `running`, `paused`, `suspended`, `ended`, `failed`; `stored` if no host runs it.
    pub(crate) state: String,
    /// Why it has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
    /// Sinks that cannot be used now, and are tried again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sinks_away: Vec<SinkAway>,
    /// Sources whose service cannot be used now, and is tried again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sources_away: Vec<SourceAway>,
    /// The object store that has epochs before they leave, if it cannot be used now, and is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) store_away: Option<StoreAway>,
    /// Whether it has ever committed anything; if not, nothing follows.
    pub(crate) ran: bool,
    /// What it has committed.
    #[serde(flatten)]
    pub(crate) committed: Option<CommittedView>,
}

/// The newest epoch of a pipeline
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = PipelineCommitted)]
pub(crate) struct CommittedView {
    /// The newest durable epoch.
    pub(crate) epoch: u64,
    /// The start of the process that wrote it.
    pub(crate) incarnation: u64,
    /// When it was sealed.
    pub(crate) sealed_at: Option<String>,
    /// All events before it are taken to have been seen.
    pub(crate) watermark: Option<String>,
    /// How far the watermark was behind the clock when the epoch was sealed, ms.
    pub(crate) watermark_lag_ms: Option<i64>,
    /// All input is used up, and all sessions are final.
    pub(crate) finished: bool,
    /// An operator has paused it.
    pub(crate) paused: bool,
    /// Since the pipeline's first start.
    #[schema(value_type = Object)]
    pub(crate) counters: Counters,
    /// Keys with an open session or pending events.
    pub(crate) live_keys: u64,
    /// Bytes of pending events.
    pub(crate) suffix_bytes: u64,
    /// Bytes of open sessions, with their states.
    pub(crate) base_bytes: u64,
    /// How far each file or other part of a source is read.
    pub(crate) partitions: Vec<PartitionView>,
    /// How far each sink has confirmed.
    pub(crate) sinks: Vec<SinkView>,
    /// Keys that went over their cap, the last few.
    pub(crate) keys_over_cap: Vec<String>,
    /// Keys that brought a tenth or more of their lane's events in the newest epoch with enough of them to tell, each with its `share` (0 to 1).
    #[schema(value_type = Vec<Object>)]
    pub(crate) hot_keys: Vec<HotKey>,
    /// What humans have decided about the log of epochs.
    #[schema(value_type = Vec<Object>)]
    pub(crate) decisions: Vec<Decision>,
    /// Revisions that wait for their lookups.
    pub(crate) unresolved: u64,
    /// What the lookups did.
    #[schema(value_type = Object)]
    pub(crate) lookups: BTreeMap<String, LookupMeta>,
    /// Why it is suspended.
    #[schema(value_type = Option<Object>)]
    pub(crate) suspended: Option<Suspended>,
    /// The versions of its rule that are live: one, or the older and the newer, and behind them those that rollbacks went back to
    /// while that was not settled.
    pub(crate) deployments: Vec<DeploymentView>,
}

/// How far a part of a source is read
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Partition)]
pub(crate) struct PartitionView {
    /// The source.
    pub(crate) source: String,
    /// Its number there.
    pub(crate) partition: usize,
    /// The file, or topic and number.
    pub(crate) path: String,
    /// Where the next record starts, after decompression; of a topic, its offset.
    pub(crate) offset: u64,
    /// The latest event.
    pub(crate) max_time: Option<String>,
    /// It is read to its end.
    pub(crate) finished: bool,
    /// It holds the watermark back no more.
    pub(crate) idle: bool,
}

/// How far a sink has confirmed
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Sink)]
pub(crate) struct SinkView {
    /// Its name.
    pub(crate) sink: String,
    /// The epoch up to which it has everything, as known when the newest was sealed.
    pub(crate) epoch: u64,
    /// Epochs that it is behind the newest that has something to send.
    pub(crate) lag_epochs: u64,
}

/// A sink that cannot be used now
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct SinkAway {
    /// Its name.
    pub(crate) sink: String,
    /// Since when.
    pub(crate) since: Option<String>,
    /// What the last try said.
    pub(crate) why: String,
}

/// An object store that cannot be used now
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct StoreAway {
    /// Since when.
    pub(crate) since: Option<String>,
    /// What the last try said.
    pub(crate) why: String,
}

/// A source whose service cannot be used now
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct SourceAway {
    /// Its name.
    pub(crate) source: String,
    /// Since when.
    pub(crate) since: Option<String>,
    /// What the last try said.
    pub(crate) why: String,
}

/// A version of a pipeline's rule in its place in event time
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Deployment)]
pub(crate) struct DeploymentView {
    /// Its number; they only rise.
    pub(crate) number: u32,
    /// `name@version` of the rule, as rows show it.
    pub(crate) plugin: String,
    /// SHA-256 of the component; none for what is built in.
    pub(crate) digest: Option<String>,
    /// What it is configured with.
    pub(crate) config: Value,
    /// What became of sessions that were open: `migrate` or `drain`.
    pub(crate) policy: String,
    /// Under `drain`: where sessions of the version before that are still open end.
    pub(crate) drained_by: Option<String>,
    /// Events from here on are folded by it, others by the version before; none: all.
    pub(crate) from: Option<String>,
    /// When it was deployed.
    pub(crate) at: Option<String>,
    /// Who: `config` for the config file.
    pub(crate) by: String,
    /// What for.
    pub(crate) message: String,
    /// `live`, `past` or `struck` (taken back before anything depended on it).
    pub(crate) standing: String,
}

/// RFC 3339, for an instant that there is.
pub(crate) fn instant(ms: i64) -> Option<String> {
    jiff::Timestamp::from_millisecond(ms).ok().map(|t| t.to_string())
}

/// The same of an event time; none before the first and after the last.
pub(crate) fn event_instant(time: EventTime) -> Option<String> {
    if time.is_valid() { instant(time.ms()) } else { None }
}

/// The word for a policy.
pub(crate) fn policy_word(policy: Policy) -> &'static str {
    match policy {
        Policy::Migrate => "migrate",
        Policy::Drain => "drain",
    }
}

impl DeploymentView {
    pub(crate) fn of(d: &Deployment) -> DeploymentView {
        let config = match &d.rule {
            RuleSpec::Gap(gap) => serde_json::to_value(gap).unwrap_or_default(),
            RuleSpec::Plugin { config, .. } => config.clone(),
        };
        DeploymentView {
            number: d.scheduled.version.0,
            plugin: d.scheduled.plugin.clone(),
            digest: d.scheduled.digest.clone(),
            config,
            policy: policy_word(d.scheduled.policy).to_owned(),
            drained_by: event_instant(d.scheduled.drained_by),
            from: event_instant(d.scheduled.from),
            at: instant(d.at_ms),
            by: d.by.clone(),
            message: d.message.clone(),
            standing: d.standing.word().to_owned(),
        }
    }
}

impl PipelineView {
    /// Of a pipeline that has committed nothing.
    pub(crate) fn new(pipeline: &str, state: &str) -> PipelineView {
        PipelineView { pipeline: pipeline.to_owned(), state: state.to_owned(), ..PipelineView::default() }
    }

    /// With what its sinks and sources are like now.
    pub(crate) fn measured(mut self, meters: &Meters) -> PipelineView {
        let away = meters.sinks().into_iter().filter_map(|(sink, m)| Some((sink, m.service.away()?)));
        self.sinks_away =
            away.map(|(sink, a)| SinkAway { sink, since: instant(a.since_ms), why: a.why }).collect();
        let away = meters.sources().into_iter().filter_map(|(source, m)| Some((source, m.away()?)));
        self.sources_away =
            away.map(|(source, a)| SourceAway { source, since: instant(a.since_ms), why: a.why }).collect();
        let away = meters.store_if_any().and_then(|m| m.service.away());
        self.store_away = away.map(|a| StoreAway { since: instant(a.since_ms), why: a.why });
        self
    }

    /// With its newest epoch.
    pub(crate) fn committed(
        mut self,
        plan: &Plan,
        pipeline: &Pipeline,
        (epoch, incarnation, meta): (u64, u64, &Meta),
    ) -> PipelineView {
        self.ran = true;
        self.committed = Some(CommittedView {
            epoch,
            incarnation,
            sealed_at: instant(meta.sealed_at_ms),
            watermark: event_instant(meta.watermark),
            watermark_lag_ms: meta
                .watermark
                .is_valid()
                .then(|| meta.sealed_at_ms.saturating_sub(meta.watermark.ms())),
            finished: meta.finished,
            paused: meta.paused,
            counters: meta.counters.clone(),
            live_keys: meta.live_keys,
            suffix_bytes: meta.suffix_bytes,
            base_bytes: meta.base_bytes,
            partitions: partitions(meta),
            sinks: sinks(plan, pipeline, meta),
            keys_over_cap: meta.keys_over_cap.clone(),
            hot_keys: meta.hot_keys.clone(),
            decisions: meta.decisions.clone(),
            unresolved: meta.unresolved,
            lookups: meta.lookups.clone(),
            suspended: meta.suspended.clone(),
            deployments: meta.schedule.live().map(DeploymentView::of).collect(),
        });
        self
    }
}

fn partitions(meta: &Meta) -> Vec<PartitionView> {
    let of_source = |source: &crate::meta::SourceMeta| {
        let name = source.name.clone();
        let one = move |(partition, p): (usize, &crate::meta::PartitionMeta)| PartitionView {
            source: name.clone(),
            partition,
            path: p.identity.to_string(),
            offset: p.offset,
            max_time: event_instant(p.time.max),
            finished: p.time.finished,
            idle: p.time.idle,
        };
        source.partitions.iter().enumerate().map(one).collect::<Vec<_>>()
    };
    meta.sources.iter().flat_map(of_source).collect()
}

/// A sink with the epoch it has confirmed, and by how many it is behind the newest that has something to send.
fn sinks(plan: &Plan, pipeline: &Pipeline, meta: &Meta) -> Vec<SinkView> {
    let sinks = pipeline.to.iter().map(|t| t.sink).chain(pipeline.dead);
    let one = |s: &crate::config::plan::Sink| {
        let epoch = meta.cursors.get(&s.name).map_or(0, |c| c.epoch);
        SinkView { sink: s.name.clone(), epoch, lag_epochs: meta.outbox_epoch.saturating_sub(epoch) }
    };
    sinks.filter_map(|i| plan.sinks.get(i)).map(one).collect()
}
