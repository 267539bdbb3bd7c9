//! `/metrics`: what a pipeline has committed and what is measured while it runs, in Prometheus' text format.
//!
//! Invariant: labels are names of the config, of the code and of plugins' descriptions, all of them bounded; never a user, a
//! URL or anything else out of a record or request, but for keys that are hot: some few, and hashed if keys are.

use super::super::metrics::HttpMetrics;
use super::super::problem::{Problem, ProblemBody};
use super::Admin;
use crate::clock::now_ms;
use crate::control::{Handle, Operation, Standing};
use crate::meta::Meta;
use crate::meters::{Activity, ServiceMeter, Snapshots};
use crate::view::PipelineView;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use prometheus::core::Collector;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tidemill_engine::metrics::Total;
use tidemill_engine::outbox::Stage;

/// Of a hot key, what stands in a label: enough to know it by.
const KEY_LABEL_BYTES: usize = 128;

/// The words of a pipeline's state.
const STATES: [&str; 6] = ["starting", "running", "paused", "suspended", "ended", "failed"];

/// What is measured
///
/// In Prometheus' text format. Counters of pipelines count since their first start, those of plugins' calls, epochs and
/// requests since the start of the process.
#[utoipa::path(
    get, path = "/metrics", tag = "health", responses(
        (status = 200, description = "All metrics", body = String, content_type = "text/plain"),
        (status = 500, description = "The host failed", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> Result<Response, Problem> {
    let mut page = Page::default();
    page.gauge(
        "tidemill_build_info",
        "The version that runs",
        &[("version", env!("CARGO_PKG_VERSION"))],
        1.0,
    );
    for handle in admin.control.pipelines() {
        admin.tell(handle, &mut page);
    }
    page.snapshots(&admin.control.snapshots);
    page.http(&admin.http);
    let mut text = Vec::new();
    TextEncoder::new()
        .encode(&page.families.into_values().collect::<Vec<_>>(), &mut text)
        .map_err(|e| Problem::internal(e.to_string()))?;
    let mut response = text.into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// Families by name, so that what several pipelines have stands together.
#[derive(Default)]
struct Page {
    families: BTreeMap<String, MetricFamily>,
}

type Labels<'a> = [(&'a str, &'a str)];

impl Page {
    fn add(&mut self, name: &str, help: &str, kind: MetricType, metric: Metric) {
        let family = self.families.entry(name.to_owned()).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            family
        });
        family.mut_metric().push(metric);
    }
    fn counter(&mut self, name: &str, help: &str, labels: &Labels<'_>, value: f64) {
        let mut counter = Counter::default();
        counter.set_value(value);
        let mut metric = labelled(labels);
        metric.set_counter(counter);
        self.add(name, help, MetricType::COUNTER, metric);
    }
    fn count(&mut self, name: &str, help: &str, labels: &Labels<'_>, value: u64) {
        self.counter(name, help, labels, number(value));
    }
    fn gauge(&mut self, name: &str, help: &str, labels: &Labels<'_>, value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = labelled(labels);
        metric.set_gauge(gauge);
        self.add(name, help, MetricType::GAUGE, metric);
    }
    fn collected(&mut self, families: Vec<MetricFamily>) {
        for mut family in families {
            match self.families.get_mut(family.name()) {
                Some(there) => there.mut_metric().extend(family.take_metric()),
                None => drop(self.families.insert(family.name().to_owned(), family)),
            }
        }
    }
    fn snapshots(&mut self, snapshots: &Snapshots) {
        let Some([taken, failed, newest_at_ms, took_ms]) = snapshots.all() else { return };
        let (name, help) = ("tidemill_snapshots_total", "Snapshots by the clock, and those that failed");
        self.count(name, help, &[("result", "taken")], taken);
        self.count(name, help, &[("result", "failed")], failed);
        if newest_at_ms > 0 {
            let name = "tidemill_snapshot_timestamp_seconds";
            self.gauge(name, "When the newest snapshot was begun", &[], number(newest_at_ms) / 1e3);
            let name = "tidemill_snapshot_duration_seconds";
            self.gauge(name, "How long the newest snapshot took", &[], number(took_ms) / 1e3);
        }
    }
    fn http(&mut self, http: &HttpMetrics) {
        let families = http.collect().into_iter().filter(|f| !f.get_metric().is_empty());
        self.collected(families.collect());
    }
}

fn labelled(labels: &Labels<'_>) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(pair).collect());
    metric
}

#[expect(clippy::cast_precision_loss, reason = "the format has doubles only")]
fn number(n: u64) -> f64 {
    n as f64
}

#[expect(clippy::cast_precision_loss, reason = "the format has doubles only")]
fn seconds(ms: i64) -> f64 {
    ms as f64 / 1e3
}

impl Admin {
    fn tell(&self, handle: &Handle, page: &mut Page) {
        let name = handle.name.as_str();
        let of = [("pipeline", name)];
        let now = handle.state().word();
        for state in STATES {
            let labels = [of[0], ("state", state)];
            let on = if state == now { 1.0 } else { 0.0 };
            page.gauge("tidemill_pipeline_state", "1 for the state that the pipeline is in", &labels, on);
        }
        tell_progress(handle, page);
        let Some(committed) = handle.committed() else { return };
        tell_counters(&committed.meta, name, page);
        tell_time(&committed.meta, name, page);
        tell_plugins(&committed.meta, name, page);
        tell_lookups(&committed.meta, name, page);
        if let Some(pipeline) = self.plan.pipelines.iter().find(|p| p.name == name) {
            let newest = (committed.epoch, committed.incarnation, &committed.meta);
            let view = PipelineView::new(name, now).committed(&self.plan, pipeline, newest);
            for s in view.committed.iter().flat_map(|c| &c.sinks) {
                let labels = [of[0], ("sink", s.sink.as_str())];
                let help = "Epochs that a sink is behind the newest that has something to send";
                page.gauge("tidemill_sink_lag_epochs", help, &labels, number(s.lag_epochs));
            }
        }
        page.gauge("tidemill_epoch", "The newest durable epoch", &of, number(committed.epoch));
        // Numbers begin at 0, and that one is no swap.
        let swaps = committed.meta.schedule.newest().map_or(0, |d| u64::from(d.scheduled.version.0));
        page.count("tidemill_swaps_total", "Versions that have followed another", &of, swaps);
        let live = number(committed.meta.schedule.live().count() as u64);
        page.gauge(
            "tidemill_live_versions",
            "Versions of the rule that are live: two during a swap",
            &of,
            live,
        );
        let swaps = |o: &Arc<Operation>| o.pipeline == name && o.kind != "resume";
        let of_pipeline = self.control.operations().into_iter().rev().filter(swaps);
        let last = of_pipeline.map(|o| o.standing()).find_map(|s| match s {
            Standing::InForce(f) => Some(f.pause().as_secs_f64()),
            _ => None,
        });
        if let Some(pause) = last {
            page.gauge("tidemill_swap_pause_seconds", "How long the last swap held events up", &of, pause);
        }
    }
}

/// What is measured while events flow.
fn tell_progress(handle: &Handle, page: &mut Page) {
    let of = [("pipeline", handle.name.as_str())];
    let p = &handle.progress;
    let (read, total) = (p.bytes_read.load(Relaxed), p.bytes_total.load(Relaxed));
    if total > 0 {
        let help = "Bytes of the files of a source that are not read yet";
        page.gauge("tidemill_backlog_bytes", help, &of, number(total.saturating_sub(read)));
    }
    let queue = number(p.meters.lane_queue.load(Relaxed));
    page.gauge("tidemill_lane_queue_batches", "Batches that wait for the slowest lane", &of, queue);
    for h in [&p.meters.commit_seconds, &p.meters.epoch_bytes].into_iter().flatten() {
        page.collected(h.collect());
    }
    for work in Activity::ALL {
        let labels = [of[0], ("stage", work.word())];
        let help = "CPU time of a pipeline's threads by stage; a plugin's calls are part of fold and seal, or of decode";
        let time = number(p.meters.work_ns(work)) / 1e9;
        page.counter("tidemill_stage_cpu_seconds_total", help, &labels, time);
    }
    for (sink, m) in p.meters.sinks() {
        let labels = [of[0], ("sink", sink.as_str())];
        let help = "Bytes of epochs that are durable and that a sink has not confirmed";
        page.gauge("tidemill_sink_lag_bytes", help, &labels, number(m.waiting_bytes.load(Relaxed)));
        let help = "1 for a sink that can be used, 0 for one whose last call said that it is away";
        let m = &m.service;
        page.gauge("tidemill_sink_available", help, &labels, here(m));
        page.count("tidemill_sink_tries_total", "Calls of a sink", &labels, m.tries.load(Relaxed));
        let help = "Calls of a sink that was away, and is tried again";
        page.count("tidemill_sink_tries_in_vain_total", help, &labels, m.tries_in_vain.load(Relaxed));
    }
    for (source, m) in p.meters.sources() {
        let labels = [of[0], ("source", source.as_str())];
        let help = "1 for a source whose service can be used, 0 for one whose last call said that it is away";
        page.gauge("tidemill_source_available", help, &labels, here(&m));
        let help = "Calls of a source's service that was away, and is tried again";
        page.count("tidemill_source_tries_in_vain_total", help, &labels, m.tries_in_vain.load(Relaxed));
    }
    if let Some(m) = p.meters.store_if_any() {
        let help = "The newest epoch that the object store has: no later one leaves";
        page.gauge("tidemill_store_epoch", help, &of, number(m.epoch.load(Relaxed)));
        let help = "1 for an object store that can be used, 0 for one whose last call said that it is away";
        page.gauge("tidemill_store_available", help, &of, here(&m.service));
        let help = "Calls of an object store that was away, and is tried again";
        page.count("tidemill_store_tries_in_vain_total", help, &of, m.service.tries_in_vain.load(Relaxed));
    }
    for (plugin, m) in p.meters.plugins() {
        let labels = [of[0], ("plugin", plugin.as_str())];
        page.count("tidemill_plugin_calls_total", "Calls of a plugin", &labels, m.calls.load(Relaxed));
        let time = number(m.call_us.load(Relaxed)) / 1e6;
        page.counter("tidemill_plugin_call_seconds_total", "Time in calls of a plugin", &labels, time);
        let help = "Calls of a plugin that failed: that trapped, were stopped, or had no usable answer";
        page.count("tidemill_plugin_faults_total", help, &labels, m.faults.load(Relaxed));
        let help = "Calls of a plugin that trapped";
        page.count("tidemill_plugin_traps_total", help, &labels, m.traps.load(Relaxed));
        let help = "Calls of a plugin that were stopped because they ran too long";
        page.count("tidemill_plugin_deadline_stops_total", help, &labels, m.deadline_stops.load(Relaxed));
    }
}

fn here(service: &ServiceMeter) -> f64 {
    if service.away().is_none() { 1.0 } else { 0.0 }
}

fn tell_counters(meta: &Meta, pipeline: &str, page: &mut Page) {
    let of = [("pipeline", pipeline)];
    let c = &meta.counters;
    page.count("tidemill_records_total", "Records that were read", &of, c.records);
    page.count("tidemill_events_total", "Events that were taken in, copies included", &of, c.events);
    let copies = c.copies + c.fold.duplicates;
    page.count("tidemill_duplicates_total", "Copies of events, which were dropped", &of, copies);
    page.count("tidemill_conflicts_total", "Copies whose content differed", &of, c.fold.conflicts);
    let late = c.letters().get("late").copied().unwrap_or(0);
    page.count("tidemill_late_total", "Events that came too late", &of, late);
    for (reason, n) in c.letters() {
        let labels = [of[0], ("reason", reason)];
        page.count("tidemill_dead_letters_total", "What was not used, by reason", &labels, n);
    }
    for (stage, n) in Stage::ALL.into_iter().zip(c.fold.revisions) {
        let labels = [of[0], ("stage", stage.name())];
        page.count("tidemill_revisions_total", "Revisions of sessions that were sent, by stage", &labels, n);
    }
    page.count("tidemill_rule_steps_total", "Events that were stepped through the rule", &of, c.fold.steps);
    let help = "Lines of plugins that nobody was shown";
    page.count("tidemill_plugin_lines_dropped_total", help, &of, c.plugin_lines_dropped);
    let help = "Keys with a session that is open or may still change";
    page.gauge("tidemill_open_sessions", help, &of, number(meta.live_keys));
    for (part, bytes) in [("suffix", meta.suffix_bytes), ("base", meta.base_bytes)] {
        let help =
            "Bytes of events that wait in memory (suffix), and of open sessions with their states (base)";
        page.gauge("tidemill_state_bytes", help, &[of[0], ("part", part)], number(bytes));
    }
    for hot in &meta.hot_keys {
        let key = &hot.key[..hot.key.floor_char_boundary(KEY_LABEL_BYTES)];
        let labels = [of[0], ("key", key)];
        let help = "Part of its lane's events that a hot key brought in the newest epoch, 0 to 1";
        page.gauge("tidemill_hot_key_share", help, &labels, hot.share);
    }
    let help = "Revisions that wait for their lookups";
    page.gauge("tidemill_unresolved_revisions", help, &of, number(meta.unresolved));
}

fn tell_time(meta: &Meta, pipeline: &str, page: &mut Page) {
    let of = [("pipeline", pipeline)];
    let now = now_ms();
    if meta.watermark.is_valid() {
        let w = meta.watermark.ms();
        page.gauge("tidemill_watermark_timestamp_seconds", "The watermark, since 1970 UTC", &of, seconds(w));
        let lag = seconds(now.saturating_sub(w));
        page.gauge("tidemill_watermark_lag_seconds", "How far the watermark is behind the clock", &of, lag);
    }
    let age = seconds(now.saturating_sub(meta.sealed_at_ms).max(0));
    page.gauge("tidemill_epoch_age_seconds", "How old what was committed last is", &of, age);
}

/// Plugins' own metrics.
fn tell_plugins(meta: &Meta, pipeline: &str, page: &mut Page) {
    for (plugin, totals) in &meta.counters.plugins {
        for (metric, total) in totals {
            let labels = [("pipeline", pipeline), ("plugin", plugin.as_str()), ("metric", metric.as_str())];
            if total.bounds.is_empty() {
                let help = "Counters of plugins' own";
                page.counter("tidemill_plugin_metric_total", help, &labels, total.sum);
            } else {
                let mut of_labels = labelled(&labels);
                of_labels.set_histogram(histogram(total));
                let help = "Histograms of plugins' own";
                page.add("tidemill_plugin_observations", help, MetricType::HISTOGRAM, of_labels);
            }
        }
    }
}

/// In the format a bucket holds those before it too.
fn histogram(total: &Total) -> Histogram {
    let mut sum = 0;
    let bucket = |(bound, n): (&f64, &u64)| {
        sum += n;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(sum);
        bucket
    };
    let buckets = total.bounds.iter().zip(&total.buckets).map(bucket).collect();
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(total.count);
    histogram.set_sample_sum(total.sum);
    histogram
}

fn tell_lookups(meta: &Meta, pipeline: &str, page: &mut Page) {
    for (lookup, l) in &meta.lookups {
        let labels = [("pipeline", pipeline), ("lookup", lookup.as_str())];
        let c = &l.counts;
        page.count("tidemill_lookup_keys_total", "Keys that were asked for", &labels, c.asked);
        let kept = c.cache_hits + c.negative_hits;
        page.count("tidemill_lookup_cache_hits_total", "Keys whose answer was kept", &labels, kept);
        page.count("tidemill_lookup_calls_total", "Calls to a provider", &labels, c.calls);
        page.count("tidemill_lookup_failures_total", "Calls that failed", &labels, c.failures);
        page.count("tidemill_lookup_given_up_total", "Keys that were given up", &labels, c.given_up);
        let time = number(c.call_us) / 1e6;
        page.counter("tidemill_lookup_call_seconds_total", "Time in calls to a provider", &labels, time);
        if let Some(at_ms) = l.read_at_ms {
            let help = "How long ago the rows that are kept whole were read";
            page.gauge(
                "tidemill_lookup_age_seconds",
                help,
                &labels,
                seconds(now_ms().saturating_sub(at_ms).max(0)),
            );
        }
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
