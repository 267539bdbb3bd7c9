//! One pipeline: recovery in its fixed order, then its threads, then an orderly end.

use super::commit::{Committer, Ended, Outlet, ROW_REFUSED, meta_text};
use super::deliver::{self, Committed, Cursors, Delivery};
use super::enrich::{self, Pressure, Tray};
use super::hot::HotNames;
use super::lane::{Seen, run_lane};
use super::layout::key_form;
use super::patience::Patience;
use super::reader::{End, Outputs, Reader, ToLane};
use super::remote::Shipper;
use super::start;
use super::stop::Stop;
use super::{Job, Outcome, RunError, Summary};
use crate::clock::now_ms;
use crate::config::LANES_MAX;
use crate::config::bigquery::Target as BigQueryTarget;
use crate::config::kafka::Cluster;
use crate::config::plan::{self, EndOfInput, Mode, Pipeline, Plan, Sink as SinkPlan, SinkKind};
use crate::config::postgres::Server as PostgresServer;
use crate::config::pubsub::Topic;
use crate::control::{self, Again, Running};
use crate::journal::Level;
use crate::meta::Meta;
use crate::meters::Laps;
use crate::plugin::budget::Suspended;
use crate::plugin::{LoadedRule, Stages as PluginStages};
use crate::progress::Progress;
use crate::schedule::Schedule;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;
use tidemill_connect::Cursor;
use tidemill_connect::sink::Sink;
#[cfg(feature = "services")]
use tidemill_connect::sink::bigquery::BigQuerySink;
use tidemill_connect::sink::jsonl::JsonlSink;
#[cfg(feature = "services")]
use tidemill_connect::sink::kafka::{KafkaSink, KafkaTarget};
#[cfg(feature = "services")]
use tidemill_connect::sink::postgres::PostgresSink;
#[cfg(feature = "services")]
use tidemill_connect::sink::pubsub::PubSubSink;
use tidemill_connect::sink::sqlite::SqliteSink;
use tidemill_connect::sink::stdout::StdoutSink;
use tidemill_engine::lane::{Lane, LaneConfig};
use tidemill_engine::outbox::{Outbox, Stages};
use tidemill_engine::record::{Kind, Record};
use tidemill_engine::unresolved::Left;
use tidemill_engine::versions::Versions;
use tidemill_store::StoreError;
use tidemill_store::disk::OsDisk;
use tidemill_store::log::{self, EpochLog, Evidence, RecordRef};
use tidemill_store::opening::{self, Contradiction, Since};

/// Batches on their way to one lane: enough that neither side waits for the other's jitter.
const BATCHES_MAX: usize = 16;
/// Epochs sealed and not yet durable (DESIGN 4).
const SEALED_MAX: usize = 3;

fn lane_count(plan: &Plan) -> usize {
    // One core for the reader, the others for lanes.
    let spare = || std::thread::available_parallelism().map_or(1, |n| n.get().saturating_sub(1));
    plan.server.lanes.unwrap_or_else(spare).clamp(1, LANES_MAX)
}

/// Lanes without state, and without a rule yet.
fn lanes(plan: &Plan, pipeline: &Pipeline) -> Vec<Lane> {
    let n = lane_count(plan);
    let groups = super::ingest::lane_groups(n);
    groups
        .into_iter()
        .map(|groups| {
            let config = LaneConfig {
                pipeline: pipeline.name.clone(),
                key_form: key_form(plan, pipeline),
                lateness_ms: pipeline.lateness_ms,
                early: pipeline.early != plan::Early::Off,
                events_per_key: usize::try_from(pipeline.limits.events_per_key).unwrap_or(usize::MAX),
                suffix_bytes: usize::try_from(pipeline.limits.suffix_bytes).unwrap_or(usize::MAX) / n,
                open_sessions: (pipeline.limits.open_sessions / n as u64).max(1),
                groups,
                sources: pipeline.from.iter().map(|i| plan.sources[*i].name.clone()).collect(),
                layout: Vec::new(),
            };
            Lane::new(config, Versions::unknown())
        })
        .collect()
}

/// Gives the lanes the versions of the rule that the schedule has.
fn put_versions(
    lanes: &mut [Lane],
    schedule: &Schedule,
    stages: &PluginStages,
    progress: &Arc<Progress>,
) -> Result<(), RunError> {
    let layout: Vec<String> = schedule.layout.iter().map(|d| d.name.clone()).collect();
    for lane in lanes {
        let live = schedule.live().map(|d| d.scheduled.clone());
        let mut versions = live.zip(stages.rules(progress).map_err(RunError::Failed)?);
        let Some((first, rule)) = versions.next() else {
            return Err(RunError::Failed("the schedule has no version of the rule".into()));
        };
        let mut all = Versions::new(first, rule, schedule.reasons.clone(), schedule.history());
        for (newer, rule) in versions {
            all = all.with_newer(newer, rule);
        }
        lane.put_versions(all, layout.clone());
    }
    Ok(())
}

/// A sink of this pipeline and what it takes.
struct Opened {
    name: String,
    sink: Box<dyn Sink>,
    cursor: Cursor,
}

fn make_sink(s: &SinkPlan, pipeline: &str, stages: Option<Stages>) -> Box<dyn Sink> {
    match (&s.kind, stages) {
        (SinkKind::Sqlite { path, table }, st) => Box::new(SqliteSink::new(
            path.clone(),
            table.clone(),
            pipeline.to_owned(),
            s.name.clone(),
            st.unwrap_or(Stages::ALL),
        )),
        (SinkKind::File { path }, Some(st)) => {
            Box::new(JsonlSink::sessions(path.clone(), pipeline.to_owned(), st))
        }
        (SinkKind::File { path }, None) => Box::new(JsonlSink::letters(path.clone())),
        (SinkKind::Postgres { server, table }, st) => postgres_sink(server, table, pipeline, &s.name, st),
        (SinkKind::Kafka { cluster, topic, message_bytes_max }, st) => {
            kafka_sink(cluster, topic, *message_bytes_max, pipeline, &s.name, st)
        }
        (SinkKind::PubSub { topic }, st) => pubsub_sink(topic, pipeline, st),
        (SinkKind::BigQuery { target }, st) => bigquery_sink(target, pipeline, &s.name, st),
        (SinkKind::Stdout, Some(st)) => Box::new(StdoutSink::new(pipeline.to_owned(), st)),
        (SinkKind::Stdout, None) => Box::new(StdoutSink::letters()),
    }
}

#[cfg(feature = "services")]
fn postgres_sink(
    server: &PostgresServer,
    table: &str,
    pipeline: &str,
    sink: &str,
    stages: Option<Stages>,
) -> Box<dyn Sink> {
    let (server, table) = (server.clone(), table.to_owned());
    let (pipeline, sink) = (pipeline.to_owned(), sink.to_owned());
    Box::new(match stages {
        Some(stages) => PostgresSink::sessions(server, table, pipeline, sink, stages),
        None => PostgresSink::letters(server, table, pipeline, sink),
    })
}

#[cfg(not(feature = "services"))]
fn postgres_sink(server: &PostgresServer, _: &str, _: &str, _: &str, _: Option<Stages>) -> Box<dyn Sink> {
    match *server {}
}

#[cfg(feature = "services")]
fn kafka_sink(
    cluster: &Cluster,
    topic: &str,
    message_bytes_max: usize,
    pipeline: &str,
    sink: &str,
    stages: Option<Stages>,
) -> Box<dyn Sink> {
    let target = KafkaTarget { message_bytes_max, ..KafkaTarget::new(cluster.clone(), topic) };
    let (pipeline, sink) = (pipeline.to_owned(), sink.to_owned());
    Box::new(match stages {
        Some(stages) => KafkaSink::sessions(target, pipeline, sink, stages),
        None => KafkaSink::letters(target, pipeline, sink),
    })
}

#[cfg(not(feature = "services"))]
fn kafka_sink(cluster: &Cluster, _: &str, _: usize, _: &str, _: &str, _: Option<Stages>) -> Box<dyn Sink> {
    match *cluster {}
}

#[cfg(feature = "services")]
fn pubsub_sink(topic: &Topic, pipeline: &str, stages: Option<Stages>) -> Box<dyn Sink> {
    let (topic, pipeline) = (topic.clone(), pipeline.to_owned());
    Box::new(match stages {
        Some(stages) => PubSubSink::sessions(topic, pipeline, stages),
        None => PubSubSink::letters(topic, pipeline),
    })
}

#[cfg(not(feature = "services"))]
fn pubsub_sink(topic: &Topic, _: &str, _: Option<Stages>) -> Box<dyn Sink> {
    match *topic {}
}

#[cfg(feature = "services")]
fn bigquery_sink(
    target: &BigQueryTarget,
    pipeline: &str,
    sink: &str,
    stages: Option<Stages>,
) -> Box<dyn Sink> {
    let (dataset, table, options) =
        (target.dataset.clone(), target.table().to_owned(), target.options.clone());
    let (pipeline, sink) = (pipeline.to_owned(), sink.to_owned());
    Box::new(match stages {
        Some(stages) => BigQuerySink::sessions(dataset, table, options, pipeline, sink, stages),
        None => BigQuerySink::letters(dataset, table, options, pipeline, sink),
    })
}

#[cfg(not(feature = "services"))]
fn bigquery_sink(target: &BigQueryTarget, _: &str, _: &str, _: Option<Stages>) -> Box<dyn Sink> {
    match *target {}
}

pub(super) fn all_sinks(plan: &Plan, pipeline: &Pipeline) -> Vec<(String, Box<dyn Sink>)> {
    let to = pipeline.to.iter().map(|t| (t.sink, Some(t.stages)));
    to.chain(pipeline.dead.map(|d| (d, None)))
        .map(|(i, stages)| {
            let s = &plan.sinks[i];
            (s.name.clone(), make_sink(s, &pipeline.name, stages))
        })
        .collect()
}

/// What recovery found.
struct Recovered {
    log: EpochLog,
    meta: Option<Meta>,
    lanes: Vec<Lane>,
    /// Every record still kept, oldest first: who wrote it and where it stands.
    kept: Vec<(u64, RecordRef)>,
    /// Revisions that wait for their lookups.
    left: Left,
    notes: Vec<String>,
}

/// What the sinks have seen committed, asked before anything is cut from the log.
fn witnesses(job: Job<'_>) -> Result<Vec<Evidence>, RunError> {
    let Job { plan, pipeline, options, dir, progress, stop, .. } = job;
    let mut found = Vec::new();
    // Without a log nothing can be cut, and a sink says more of a state directory that is gone.
    if !EpochLog::is_there(&OsDisk, dir)? {
        return Ok(found);
    }
    for (name, sink) in all_sinks(plan, pipeline).into_iter().filter(|(n, _)| !options.resend.contains(n)) {
        let who = format!("sink `{name}`");
        let seen = Patience::with(&name, progress).at_start(|| asked(stop), || sink.witness())?;
        found.extend(seen.map(|epoch| Evidence { who, epoch }));
    }
    Ok(found)
}

/// Whether the last run let an epoch leave before it was durable.
fn released_early(job: Job<'_>) -> Result<bool, RunError> {
    let newest = super::peek(job.plan, &job.pipeline.name)?;
    Ok(newest.is_some_and(|(_, _, meta)| Mode::of(&meta.fingerprint) == Mode::AtLeastOnce))
}

fn recover(job: Job<'_>) -> Result<Recovered, RunError> {
    let Job { plan, pipeline, dir, .. } = job;
    let mut evidence = witnesses(job)?;
    let newest = evidence.iter().map(|e| e.epoch).max().unwrap_or(0);
    if newest > EpochLog::vouched(&OsDisk, dir)? && released_early(job)? {
        // A sink may have the epoch that was about to be committed. All before it was.
        evidence.iter_mut().for_each(|e| e.epoch = e.epoch.saturating_sub(1));
    }
    let mut lanes = lanes(plan, pipeline);
    let mut meta: Option<Meta> = None;
    let mut kept = Vec::new();
    let mut left = Left::default();
    let visit = |record: Record<'_>, at: RecordRef| {
        let unreadable = |what: String| {
            StoreError::Damaged {
            file: dir.to_owned(),
            offset: at.offset,
            epoch: Some(at.epoch),
            what,
            hint: "the record is whole, so another version of tidemill wrote it: run that one, or start over with --fresh"
                .into(),
        }
        };
        let text = record.section(Kind::Meta).unwrap_or_default();
        meta = Some(serde_json::from_slice(text).map_err(|e| unreadable(e.to_string()))?);
        for section in record.sections_of(Kind::State) {
            for lane in &mut lanes {
                lane.load(section).map_err(|e| unreadable(e.to_string()))?;
            }
        }
        if !left.take(&record, at.len) {
            return Err(unreadable("it resolves what is not unresolved".into()));
        }
        kept.push((record.header.incarnation, at));
        Ok(())
    };
    let (log, recovery) = EpochLog::open(Arc::new(OsDisk), dir, plan.server.segment_bytes, &evidence, visit)?;
    let mut notes = Vec::new();
    if let Some(t) = &recovery.dropped_tail {
        notes.push(format!(
            "pipeline `{}`: dropped {} bytes of an epoch that was never committed ({} from byte {})",
            pipeline.name,
            t.bytes,
            t.file.display(),
            t.offset
        ));
    }
    if let Some(meta) = meta.as_mut().filter(|_| newest > log.last_epoch()) {
        let last = log.last_epoch();
        meta.back_to = Some(meta.back_to.map_or(last, |earlier| earlier.min(last)));
        notes.push(format!(
            "pipeline `{}`: a sink had epoch {newest}, which was not committed any more: it takes back what came after epoch {last}",
            pipeline.name
        ));
    }
    if let Some(s) = meta.as_ref().and_then(|m| m.suspended.as_ref()) {
        notes.push(format!(
            "pipeline `{}` had been suspended ({}): plugin {} failed too often; it tries again from the last \
             committed epoch, with a new fault budget",
            pipeline.name, s.why, s.plugin.version
        ));
    }
    Ok(Recovered { log, meta, lanes, kept, left, notes })
}

/// Whether the process is to end.
fn asked(stop: &AtomicBool) -> bool {
    stop.load(Ordering::Relaxed)
}

/// Opens and fences the sinks, and checks their cursors against the store's (DESIGN 4, "What wins").
fn open_sinks(job: Job<'_>, r: &Recovered) -> Result<Vec<Opened>, RunError> {
    let Job { plan, pipeline, options, incarnation, progress, stop, .. } = job;
    let fingerprint = plan::fingerprint(pipeline, plan);
    let back_to = r.meta.as_ref().and_then(|m| m.back_to);
    let mut opened = Vec::new();
    for (name, mut sink) in all_sinks(plan, pipeline) {
        let patience = Patience::with(&name, progress);
        let stored = r.meta.as_ref().and_then(|m| m.cursors.get(&name)).copied();
        let resend = options.resend.contains(&name);
        let start = Cursor { epoch: 0, length: 0 };
        let from = if resend { Some(start) } else { stored };
        let moved = r.meta.as_ref().and_then(|m| plan::moved(&m.fingerprint, &fingerprint, &name));
        match moved {
            Some(moved) if !resend => return Err(RunError::Conflict(format!("sink `{name}`: {moved}"))),
            _ if resend => {
                let here = stored.filter(|_| moved.is_none());
                patience.at_start(|| asked(stop), || sink.is_ours(here))?;
            }
            _ => {}
        }
        if let Some(epoch) = back_to {
            // Whoever went back may have come no further than the log.
            patience.at_start(|| asked(stop), || sink.is_ours(from))?;
            patience.at_start(|| asked(stop), || sink.take_back(incarnation, epoch, from))?;
        }
        let own = patience.at_start(|| asked(stop), || sink.open(incarnation, from))?;
        let cursor = if resend {
            own.unwrap_or(start)
        } else {
            match opening::since(own, stored, r.log.last_epoch(), |c| c.epoch) {
                Ok(Since::Cursor(cursor)) => cursor,
                Ok(Since::New { epoch }) => Cursor { epoch, length: 0 },
                Err(wrong) => return Err(contradicted(job, &name, r.log.last_epoch(), wrong)),
            }
        };
        opened.push(Opened { name, sink, cursor });
    }
    Ok(opened)
}

/// What to say of a sink whose cursor and the store contradict each other.
fn contradicted(job: Job<'_>, sink: &str, last_epoch: u64, wrong: Contradiction) -> RunError {
    let Job { plan, pipeline, .. } = job;
    match wrong {
        Contradiction::Lost { known } => RunError::Conflict(format!(
            "sink `{sink}` has lost its cursor (it was known to have epoch {known}); \
             `--resend {sink}` sends again what is still kept"
        )),
        Contradiction::OfAnotherState { confirmed } => {
            RunError::Conflict(format!("sink `{sink}`: {}", of_another_state(plan, confirmed)))
        }
        Contradiction::AheadOfTheLog { confirmed } => RunError::Store(StoreError::Damaged {
            file: plan.server.data_dir.join("pipelines").join(&pipeline.name),
            offset: 0,
            epoch: Some(last_epoch + 1),
            what: format!(
                "sink `{sink}` has confirmed epoch {confirmed}, but the log ends at epoch {last_epoch}"
            ),
            hint: "put the newest copy of the log back, or start over with --fresh".into(),
        }),
    }
}

/// What to say of a sink with rows of this pipeline where the data directory knows nothing of it.
pub(super) fn of_another_state(plan: &Plan, epoch: u64) -> String {
    format!(
        "it holds rows of this pipeline up to epoch {epoch}, but {} has no state of it: they come from another `data_dir`, \
         or it was removed. Name that `data_dir` again, choose another place for the sink, or start over with --fresh, \
         which deletes those rows",
        plan.server.data_dir.display()
    )
}

/// Deletes what the pipeline has written and what it knows. Nothing at all, if one of its files holds something else, or a sink is
/// away: whoever starts over is there to see it.
fn start_over(job: Job<'_>) -> Result<(), RunError> {
    let Job { plan, pipeline, incarnation, dir, .. } = job;
    // Of a log that cannot be read any more, nothing says which files are its own.
    let meta = super::peek(plan, &pipeline.name).ok().flatten().map(|(_, _, meta)| meta);
    let fingerprint = plan::fingerprint(pipeline, plan);
    let of = |name: &str, e| RunError::of(&format!("--fresh: sink `{name}`"), e);
    for (name, sink) in all_sinks(plan, pipeline) {
        let known = meta.as_ref().filter(|m| plan::moved(&m.fingerprint, &fingerprint, &name).is_none());
        let stored = known.and_then(|m| m.cursors.get(&name)).copied();
        sink.is_ours(stored).map_err(|e| of(&name, e))?;
    }
    for (name, mut sink) in all_sinks(plan, pipeline) {
        let of = |e| of(&name, e);
        sink.open(incarnation, Some(Cursor { epoch: 0, length: 0 })).map_err(of)?;
        sink.delete_all().map_err(of)?;
    }
    Ok(log::destroy(&OsDisk, dir)?)
}

/// Runs one pipeline until its input is used up, `process` is set, or its plugins have failed too often.
///
/// `again`: how it starts after a suspension; the operation is told once it is certain that it does.
pub(super) fn run(job: Job<'_>, again: Option<&Again>) -> Result<Summary, RunError> {
    match start_and_run(job, again) {
        Err(RunError::Stopped(why)) => stopped_at_start(job, why),
        ended => ended,
    }
}

/// What is said of a run that was asked to end before it could begin.
fn stopped_at_start(job: Job<'_>, why: String) -> Result<Summary, RunError> {
    let name = &job.pipeline.name;
    let counters = super::peek(job.plan, name)?.map(|(_, _, meta)| meta.counters).unwrap_or_default();
    let (pipeline, outcome, notes) = (name.clone(), Outcome::Stopped, vec![why]);
    Ok(Summary { pipeline, outcome, counters, notes, suspended: None })
}

fn start_and_run(job: Job<'_>, again: Option<&Again>) -> Result<Summary, RunError> {
    let Job { plan, pipeline, options, incarnation, handle, inlets, progress, stop: process, .. } = job;
    if options.fresh && again.is_none() {
        start_over(job)?;
    }
    let of_plugin = |e: crate::plugin::PluginError| match e.host {
        true => RunError::Failed(e.to_string()),
        false => RunError::Refused(e.to_string()),
    };
    let wanted = LoadedRule::of_config(pipeline, &job.control.sandbox).map_err(of_plugin)?;
    let mut r = recover(job)?;
    let fingerprint = plan::fingerprint(pipeline, plan);
    let mut notes = std::mem::take(&mut r.notes);
    notes.extend(compare(r.meta.as_ref(), &fingerprint)?);
    let mut file = fingerprint["rule"].clone();
    if let Some(digest) = &wanted.0.description.digest {
        file["digest"] = digest.as_str().into();
    }
    if let Some(meta) = &r.meta {
        let epoch = r.log.last_epoch();
        handle.set_committed(Arc::new(control::Committed { epoch, incarnation, meta: meta.clone() }));
    }
    let change = again.map(|a| &a.change);
    let mut start = start::decide(job, r.meta.as_ref(), &file, wanted, change)?;
    notes.append(&mut start.notes);
    let stages = PluginStages::load(pipeline, &job.control.sandbox, start.rules.clone(), &mut start.schedule)
        .map_err(of_plugin)?;
    put_versions(&mut r.lanes, &start.schedule, &stages, progress)?;
    if let Some(m) = &r.meta {
        r.lanes.iter_mut().for_each(|l| l.loaded(m.watermark));
        if m.back_to.is_some() {
            r.lanes.iter_mut().for_each(Lane::tell_again);
        }
    }
    // Before a sink is asked to take anything, back or anew.
    let shipper = Shipper::begin(job, r.log.reader(), &r.kept)?;
    start.try_states(job, &mut r.lanes)?;
    start.strike(&mut r.lanes);
    let mut sinks = open_sinks(job, &r)?;
    for s in sinks.iter().filter(|s| s.sink.at_least_once()) {
        let name = &s.name;
        notes
            .push(format!("sink `{name}` gets each row at least once: after a crash it may show some again"));
    }

    let cursors = Arc::new(Cursors::default());
    sinks.iter().for_each(|s| cursors.set(&s.name, s.cursor, b""));
    let waiting: Vec<Arc<AtomicU64>> =
        sinks.iter().map(|s| progress.meters.sink(&s.name).waiting_bytes.clone()).collect();
    // What an earlier run of this process has left there is counted again below.
    waiting.iter().for_each(|w| w.store(0, Ordering::Relaxed));
    let log_bytes = Arc::new(AtomicU64::new(r.log.bytes_retained()));
    let lane_letters = Arc::new(AtomicU64::new(0));
    let crowded = Arc::new(AtomicBool::new(false));
    let settled = Arc::new(AtomicU64::new(0));
    let (tray, pressure) = (Arc::new(Tray::default()), Pressure::default());
    let (sealed_to, sealed) = bounded(SEALED_MAX);
    let (spent_to, spent) = unbounded();
    let (lane_queues, lane_inputs): (Vec<Sender<ToLane>>, Vec<Receiver<ToLane>>) =
        r.lanes.iter().map(|_| bounded(BATCHES_MAX)).unzip();
    let outputs = Outputs {
        lanes: lane_queues,
        spent,
        sealed: sealed_to,
        // What the log keeps for lookups is bounded like what it keeps for a sink.
        waiting: waiting.iter().cloned().chain([pressure.log_bytes.clone()]).collect(),
        log_bytes: log_bytes.clone(),
        lane_letters: lane_letters.clone(),
        crowded: crowded.clone(),
        unresolved: pressure.unresolved_bytes.clone(),
        tray: tray.clone(),
        settled: settled.clone(),
    };
    let was_ended = r.meta.as_ref().is_some_and(|m| m.ended);
    let was_finished = r.meta.as_ref().is_some_and(|m| m.finished);
    let counts = r.meta.as_ref().map(|m| m.counters.fold).unwrap_or_default();
    let mut reader = Reader::new(job, &stages, &start, again, r.meta.as_ref(), fingerprint.clone(), outputs)?;
    if was_ended && !options.reopen && reader.unread()? {
        return Err(RunError::Conflict(format!(
            "pipeline `{}` has finished, but there is input that it has not read: `--reopen` goes on with it, \
                 `--fresh` starts over",
            pipeline.name
        )));
    }
    if was_finished && !options.reopen {
        resend_now(job, &mut sinks, &mut r, &cursors, shipper.as_ref())?;
        let counters = r.meta.map(|m| m.counters).unwrap_or_default();
        notes.push(format!("pipeline `{}` has finished before, and there is nothing new", pipeline.name));
        let outcome = Outcome::AlreadyFinished;
        return Ok(Summary { pipeline: pipeline.name.clone(), outcome, counters, notes, suspended: None });
    }
    // What the store has of a pipeline that is suspended in its first epoch: else nobody could mend it.
    let first = if r.meta.is_none() { reader.beginning() } else { Meta::nothing(fingerprint, now_ms()) };
    let stop = &Stop::new(process, stages.budget.clone());
    handle.set_running(Running {
        rules: start.rules.clone(),
        budget: stages.budget.clone(),
        key_form: key_form(plan, pipeline),
        lanes: r.lanes.len(),
    });

    // What an earlier run left unresolved is resolved even if the config has no enricher any more.
    let (enrichment, worker) = if !pipeline.enrich.is_empty() || r.left.count() > 0 {
        let enrichers = stages.enrichers(progress).map_err(RunError::Failed)?;
        let left = std::mem::take(&mut r.left);
        let counted = r.meta.as_ref().map(|m| m.lookups.clone()).unwrap_or_default();
        let (e, w) = enrich::start(plan, pipeline, enrichers, left, counted, &tray, pressure)?;
        (Some(e), Some(w))
    } else {
        (None, None)
    };
    let epoch = r.log.last_epoch();
    progress.keep(Level::Info, &format!("reads on after epoch {epoch}, as incarnation {incarnation}"));
    notes.iter().for_each(|note| progress.keep(Level::Info, note));
    let hurry = AtomicBool::new(false);
    let lines_dropped = r.meta.as_ref().map_or(0, |m| m.counters.plugin_lines_dropped);
    let gate = shipper.as_ref().map(Shipper::gate);
    let (shipments_to, shipments) = unbounded();
    let shipments_to = shipper.is_some().then_some(shipments_to);
    std::thread::scope(|scope| {
        let mut deliveries = Vec::new();
        let mut outlets = Vec::new();
        for (s, waiting_bytes) in sinks.into_iter().zip(waiting) {
            let (to, queue) = unbounded();
            for (by, at) in r.kept.iter().filter(|(_, at)| at.epoch > s.cursor.epoch) {
                waiting_bytes.fetch_add(at.len, Ordering::Relaxed);
                // The receiver is in our hands: it cannot have hung up.
                let _ = to.send(Committed { incarnation: *by, at: *at, sections: None });
            }
            let refuses = s.sink.refuses_rows().then(|| s.name.clone());
            outlets.push(Outlet { refuses, queue: to, waiting_bytes: waiting_bytes.clone() });
            let (log, cursors, gate) = (r.log.reader(), cursors.clone(), gate.clone());
            let (name, sink) = (s.name, s.sink);
            let d = Delivery { name, sink, queue, gate, waiting_bytes, log, cursors, progress, stop };
            deliveries.push(scope.spawn(move || stop.at_failure(d.run())));
        }
        let mut lane_threads = Vec::new();
        let mut parts = Vec::new();
        for (lane, input) in r.lanes.into_iter().zip(lane_inputs) {
            let (to, part) = bounded(SEALED_MAX);
            parts.push(part);
            let (spent, letters, crowded) = (spent_to.clone(), lane_letters.clone(), crowded.clone());
            let warden = stages.rule_warden(progress);
            let meters = &progress.meters;
            lane_threads.push(scope.spawn(move || {
                let seen = Seen { letters: &letters, crowded: &crowded, meters };
                let folded = run_lane(lane, &input, &to, &spent, seen, warden);
                stop.at_failure(folded)
            }));
        }
        drop(spent_to);
        let worker = worker.map(|w| scope.spawn(move || stop.at_failure(w.run())));
        let shipper = shipper.map(|s| scope.spawn(move || stop.at_failure(s.run(&shipments, stop))));
        let committer = Committer {
            pipeline: &pipeline.name,
            mode: pipeline.mode,
            inlets,
            topics: reader.shown(),
            log: r.log,
            incarnation,
            sealed,
            parts,
            outlets,
            shipments: shipments_to,
            cursors: cursors.clone(),
            progress: progress.clone(),
            laps: Laps::begin(&progress.meters),
            log_bytes,
            counts,
            needs: r.meta.as_ref().map(Meta::needs).unwrap_or_default(),
            keys_over_cap: r.meta.as_ref().map(|m| m.keys_over_cap.clone()).unwrap_or_default(),
            hot: r.meta.as_ref().map_or_else(HotNames::default, |m| HotNames::going_on(m.hot_keys.clone())),
            dead_by_rule: r.meta.as_ref().map(|m| m.counters.dead_by_rule.clone()).unwrap_or_default(),
            metrics: start.rule_metrics(r.meta.as_ref()),
            settled_lanes: vec![0; lane_threads.len()],
            settled,
            handle,
            lines_dropped,
            enrichment,
            last: r.meta,
            epoch: Duration::from_millis(plan.server.epoch_ms.unsigned_abs()),
            hurry: &hurry,
            stop,
        };
        let committer = scope.spawn(move || stop.at_failure(committer.run()));
        let end = if was_ended && !options.reopen { Ok(reader.close()) } else { reader.run(stop) };
        hurry.store(!matches!(end, Ok(End::InputUsedUp)), Ordering::Relaxed);
        let counters = reader.counters();
        drop(reader);
        // Every thread's answer is heard before the first error is given.
        let mut ended = join(committer);
        let suspended = stages.budget.suspended();
        if let (Some(s), Ok(ended)) = (&suspended, &mut ended) {
            ended.mark(first, &cursors, s.clone(), handle)?;
            progress.halt("SUSPENDED", &suspended_line(s), false);
        }
        let shipped = shipper.map_or(Ok(()), join);
        let delivered: Vec<Result<bool, RunError>> = deliveries.into_iter().map(join).collect();
        let folded: Vec<Result<(), RunError>> = lane_threads.into_iter().map(join).collect();
        let enriched = worker.map_or(Ok(()), join);
        let ended: Ended = ended?;
        if suspended.is_none() {
            enriched?;
            folded.into_iter().collect::<Result<(), _>>()?;
        }
        shipped?;
        let delivered = delivered.into_iter().collect::<Result<Vec<bool>, _>>()?.into_iter().all(|d| d);
        let mut counters = counters;
        counters.fold = ended.counts;
        counters.dead.extend(ended.counts.letters().map(|(reason, n)| (reason.to_owned(), n)));
        counters.dead_by_rule.clone_from(&ended.dead_by_rule);
        counters.plugins.extend(ended.metrics.clone());
        counters.plugin_lines_dropped = lines_dropped + progress.lines_dropped.load(Ordering::Relaxed);
        let unresolved = ended.unresolved;
        if unresolved > 0 {
            notes.push(format!(
                "{unresolved} revisions wait for their lookups; the next run goes on with them"
            ));
        }
        if !delivered {
            notes.push("not every sink has everything yet; the next run sends the rest".to_owned());
        }
        ended.keep_cursors(&cursors)?;
        let outcome = match (&suspended, end, pipeline.end_of_input) {
            (Some(_), ..) => Outcome::Suspended,
            (None, Err(e), _) => return Err(e),
            (None, Ok(End::InputUsedUp), _) if unresolved > 0 || !delivered => Outcome::Stopped,
            (None, Ok(End::InputUsedUp), EndOfInput::Close) => Outcome::Finished,
            (None, Ok(End::InputUsedUp), EndOfInput::Hold) => Outcome::Held,
            (None, Ok(End::Stopped | End::Hangup | End::Suspended), _) => Outcome::Stopped,
        };
        Ok(Summary { pipeline: pipeline.name.clone(), outcome, counters, notes, suspended })
    })
}

fn suspended_line(s: &Suspended) -> String {
    format!("suspended, it reads no more: {} ({}): {}", s.plugin.name, s.plugin.version, s.why)
}

fn join<T>(t: ScopedJoinHandle<'_, Result<T, RunError>>) -> Result<T, RunError> {
    t.join()
        .unwrap_or_else(|_| Err(RunError::Failed("a thread of the pipeline ended without an answer".into())))
}

fn compare(stored: Option<&Meta>, new: &serde_json::Value) -> Result<Vec<String>, RunError> {
    let Some(m) = stored else { return Ok(Vec::new()) };
    let changes = plan::compare(&m.fingerprint, new);
    let stops: Vec<&str> = changes.iter().filter(|c| c.stops()).map(|c| c.message.as_str()).collect();
    if !stops.is_empty() {
        return Err(RunError::Refused(stops.join("\n")));
    }
    Ok(changes.into_iter().map(|c| format!("{}: {}", c.what, c.message)).collect())
}

/// Sends what a finished pipeline's sinks have not confirmed: a crash may have come between.
fn resend_now(
    job: Job<'_>,
    sinks: &mut [Opened],
    r: &mut Recovered,
    cursors: &Cursors,
    shipper: Option<&Shipper<'_>>,
) -> Result<(), RunError> {
    for s in sinks.iter_mut() {
        let patience = Patience::with(&s.name, job.progress);
        for (by, at) in r.kept.iter().filter(|(_, at)| at.epoch > s.cursor.epoch) {
            let sections = r.log.read_sections(at)?;
            let of = |kind| sections.iter().find(|x| x.0 == kind).map(|x| x.1.clone()).unwrap_or_default();
            let (rows, enriched, letters) = (of(Kind::Rows), of(Kind::Enriched), of(Kind::Letters));
            let outbox = Outbox::new(*by, at.epoch, &rows, &letters).with_enriched(&enriched);
            let cursor = patience.at_start(|| asked(job.stop), || s.sink.deliver(&outbox))?;
            cursors.set(&s.name, cursor, &s.sink.take_refused());
        }
    }
    let (cursors, refused) = cursors.take();
    let Some(meta) = r.meta.as_mut().filter(|_| !refused.is_empty()) else { return Ok(()) };
    meta.cursors = cursors;
    *meta.counters.dead_by_rule.entry(ROW_REFUSED.to_owned()).or_default() += deliver::count(&refused);
    let (text, epoch) = (meta_text(meta)?, r.log.last_epoch() + 1);
    let at = r.log.append(job.incarnation, epoch, &[(Kind::Meta, &text), (Kind::Letters, &refused)])?;
    shipper.map_or(Ok(()), |s| s.keep_at_start(&[at]))?;
    for s in sinks {
        let patience = Patience::with(&s.name, job.progress);
        let outbox = Outbox::new(job.incarnation, epoch, &[], &refused);
        patience.at_start(|| asked(job.stop), || s.sink.deliver(&outbox))?;
    }
    Ok(())
}
