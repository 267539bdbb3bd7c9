//! What moves each metric, and that no metric says what was asked.

use super::super::tests::{Site, site};
use crate::config::plan::{FaultLimits, GapRule};
use crate::control::{Committed, Handle, InForce, Standing, State};
use crate::meta::Meta;
use crate::meters::{Activity, Laps};
use crate::plugin::budget::{Budget, Identity, Warden};
use crate::schedule::{RuleSpec, Wish};
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tidemill_connect::lookup::LookupCounts;
use tidemill_engine::gap::{Boundary, Gap, GapConfig};
use tidemill_engine::hot::HotKey;
use tidemill_engine::metrics::Total;
use tidemill_engine::rule::SessionRule;
use tidemill_engine::time::EventTime;
use tidemill_engine::versions::{Policy, Version};
use tidemill_sandbox::{Fault, FaultKind, TrapKind};
use tower::ServiceExt;

/// The value of a metric with these labels; none: there is no such line.
fn value(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let line = text.lines().find(|l| {
        let rest = l.strip_prefix(name).filter(|r| r.starts_with(['{', ' ']));
        rest.is_some_and(|r| labels.iter().all(|label| r.contains(label)))
    })?;
    line.rsplit(' ').next()?.parse().ok()
}

impl Site {
    fn metrics(&self) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let request = Request::get("/metrics").header("host", "localhost");
        let request = request.header("authorization", format!("Bearer {}", self.token));
        runtime.block_on(async {
            let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
            String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
        })
    }
    /// Commits an epoch of the pipeline `visits`.
    fn commit(&self, epoch: u64, meta: Meta) {
        let committed = Committed { epoch, incarnation: 1, meta };
        self.admin.control.pipelines()[0].set_committed(Arc::new(committed));
    }
}

/// One thing that happens to a pipeline, the metric that it moves, and what tells it from others of that name.
type Moves = (&'static str, &'static str, fn(&mut Meta, &Handle));

const MOVES: &[Moves] = &[
    ("tidemill_records_total", "", |m, _| m.counters.records += 1),
    ("tidemill_events_total", "", |m, _| m.counters.events += 1),
    ("tidemill_duplicates_total", "", |m, _| m.counters.fold.duplicates += 1),
    ("tidemill_duplicates_total", "", |m, _| m.counters.copies += 1),
    ("tidemill_hot_key_share", "key=\"a \\\"b\\\"\"", |m, _| {
        m.hot_keys.push(HotKey { key: "a \"b\"".into(), share: 0.5 });
    }),
    ("tidemill_conflicts_total", "", |m, _| m.counters.fold.conflicts += 1),
    ("tidemill_late_total", "", |m, _| *m.counters.dead.entry("late".into()).or_default() += 1),
    ("tidemill_dead_letters_total", "reason=\"bot\"", |m, _| {
        *m.counters.dead_by_rule.entry("bot".into()).or_default() += 1;
    }),
    ("tidemill_revisions_total", "stage=\"final\"", |m, _| m.counters.fold.revisions[1] += 1),
    ("tidemill_rule_steps_total", "", |m, _| m.counters.fold.steps += 1),
    ("tidemill_plugin_lines_dropped_total", "", |m, _| m.counters.plugin_lines_dropped += 1),
    ("tidemill_open_sessions", "", |m, _| m.live_keys += 1),
    ("tidemill_state_bytes", "part=\"suffix\"", |m, _| m.suffix_bytes += 1),
    ("tidemill_state_bytes", "part=\"base\"", |m, _| m.base_bytes += 1),
    ("tidemill_unresolved_revisions", "", |m, _| m.unresolved += 1),
    ("tidemill_watermark_timestamp_seconds", "", |m, _| {
        m.watermark = EventTime::from_ms(m.watermark.ms() + 9_000);
    }),
    ("tidemill_watermark_lag_seconds", "", |m, _| {
        m.watermark = EventTime::from_ms(m.watermark.ms() - 9_000_000);
    }),
    ("tidemill_epoch_age_seconds", "", |m, _| m.sealed_at_ms -= 9_000_000),
    ("tidemill_sink_lag_epochs", "sink=\"sessions\"", |m, _| m.outbox_epoch += 1),
    ("tidemill_sink_lag_bytes", "sink=\"sessions\"", |_, h| {
        h.progress.meters.sink("sessions").waiting_bytes.store(9, Relaxed);
    }),
    ("tidemill_sink_available", "sink=\"sessions\"", |_, h| {
        drop(h.progress.meters.sink("sessions"));
    }),
    ("tidemill_sink_tries_total", "sink=\"sessions\"", |_, h| {
        h.progress.meters.sink("sessions").service.tries.fetch_add(1, Relaxed);
    }),
    ("tidemill_sink_tries_in_vain_total", "sink=\"sessions\"", |_, h| {
        h.progress.meters.sink("sessions").service.is_away("refused");
    }),
    ("tidemill_store_epoch", "", |_, h| h.progress.meters.store().epoch.store(7, Relaxed)),
    ("tidemill_store_available", "", |_, h| drop(h.progress.meters.store())),
    ("tidemill_store_tries_in_vain_total", "", |_, h| h.progress.meters.store().service.is_away("refused")),
    ("tidemill_plugin_metric_total", "metric=\"coupons\"", |m, _| total(m, "coupons", Vec::new()).add(1.0)),
    ("tidemill_plugin_observations_count", "metric=\"pages\"", |m, _| {
        total(m, "pages", vec![1.0, 5.0]).add(3.0);
    }),
    ("tidemill_plugin_observations_bucket", "le=\"5\"", |m, _| total(m, "pages", vec![1.0, 5.0]).add(0.5)),
    ("tidemill_lookup_keys_total", "lookup=\"users\"", |m, _| lookup(m).asked += 1),
    ("tidemill_lookup_cache_hits_total", "", |m, _| lookup(m).cache_hits += 1),
    ("tidemill_lookup_calls_total", "", |m, _| lookup(m).calls += 1),
    ("tidemill_lookup_failures_total", "", |m, _| lookup(m).failures += 1),
    ("tidemill_lookup_given_up_total", "", |m, _| lookup(m).given_up += 1),
    ("tidemill_lookup_call_seconds_total", "", |m, _| lookup(m).call_us += 1_000),
    ("tidemill_lookup_age_seconds", "lookup=\"users\"", |m, _| {
        m.lookups.entry("users".into()).or_default().read_at_ms = Some(1_000);
    }),
    ("tidemill_backlog_bytes", "", |_, h| h.progress.bytes_total.store(100, Relaxed)),
    ("tidemill_lane_queue_batches", "", |_, h| h.progress.meters.lane_queue.store(7, Relaxed)),
    ("tidemill_epoch_commit_duration_seconds_count", "", |_, h| {
        h.progress.meters.committed(Instant::now(), 1);
    }),
    ("tidemill_epoch_bytes_sum", "", |_, h| h.progress.meters.committed(Instant::now(), 1)),
    ("tidemill_stage_cpu_seconds_total", "stage=\"fold\"", |_, h| spends(h, Activity::Fold)),
    ("tidemill_stage_cpu_seconds_total", "stage=\"sink\"", |_, h| spends(h, Activity::Sink)),
    ("tidemill_plugin_calls_total", "plugin=\"p\"", |_, h| {
        h.progress.meters.plugin("p").called(Instant::now());
    }),
    ("tidemill_plugin_call_seconds_total", "", |_, h| {
        h.progress.meters.plugin("p").call_us.fetch_add(9, Relaxed);
    }),
    ("tidemill_plugin_faults_total", "", |_, h| fails(h, FaultKind::Guest("no".into()))),
    ("tidemill_plugin_faults_total", "", |_, h| fails(h, FaultKind::Panic(None))),
    ("tidemill_plugin_traps_total", "", |_, h| fails(h, FaultKind::Panic(None))),
    ("tidemill_plugin_traps_total", "", |_, h| fails(h, FaultKind::Trap(TrapKind::DivisionByZero))),
    ("tidemill_plugin_traps_total", "", |_, h| fails(h, FaultKind::Memory { wanted: 1 })),
    ("tidemill_plugin_deadline_stops_total", "", |_, h| fails(h, FaultKind::Deadline(Duration::ZERO))),
    ("tidemill_pipeline_state", "state=\"paused\"", |_, h| h.set_state(State::Paused)),
    ("tidemill_swaps_total", "", deployed),
    ("tidemill_live_versions", "", deployed),
    ("tidemill_epoch", "", |_, _| {}),
];

/// Works until the clock of this thread must have moved.
fn spends(handle: &Handle, work: Activity) {
    let meters = &handle.progress.meters;
    let mut laps = Laps::begin(meters);
    (0..1_000).for_each(|_| laps.spent_on(work));
}

/// Names that tests of their own move, and the one that nothing does.
const OTHERS: [&str; 4] = [
    "tidemill_swap_pause_seconds",
    "tidemill_http_requests_total",
    "tidemill_http_request_duration_seconds",
    "tidemill_build_info",
];

/// A call of a plugin fails.
fn fails(handle: &Handle, kind: FaultKind) {
    let limits = FaultLimits { faults: 9, overdue: Duration::MAX, overdue_window: Duration::MAX };
    let who = Identity { name: "p".into(), version: "p@1.0.0".into(), digest: "00".into() };
    let warden = Warden::new(&Arc::new(who), &Arc::new(Budget::new(limits)), &handle.progress);
    warden.failed(&Fault { kind, progress: None, ran: Duration::ZERO });
}

fn total<'a>(m: &'a mut Meta, metric: &str, bounds: Vec<f64>) -> &'a mut Total {
    let of = tidemill_engine::metrics::Metric { name: metric.into(), bounds };
    let all = m.counters.plugins.entry("checkout".into()).or_default();
    all.entry(metric.into()).or_insert_with(|| Total::of(&of))
}

fn lookup(m: &mut Meta) -> &mut LookupCounts {
    &mut m.lookups.entry("users".into()).or_default().counts
}

fn deployed(m: &mut Meta, _: &Handle) {
    let gap = GapRule { gap_ms: 1_000, inclusive: false, max_ms: None, start: None, end: None };
    let wish = Wish {
        policy: Policy::Drain,
        drain_max_ms: 1,
        by: "admin".into(),
        message: String::new(),
        back_to: None,
    };
    let config =
        GapConfig { gap_ms: 1_000, boundary: Boundary::Exclusive, max_ms: None, start: None, end: None };
    let description = Gap::new(&config).describe().clone();
    m.schedule.add(RuleSpec::Gap(gap), &description, EventTime::from_ms(1), &wish, 0);
}

#[test]
fn each_metric_is_moved_by_what_it_counts() {
    for (name, label, happens) in MOVES {
        let s = site();
        let handle = &s.admin.control.pipelines()[0];
        let mut meta = Meta::nothing(Value::Null, 1_750_000_000_000);
        meta.watermark = EventTime::from_ms(1_750_000_000_000);
        deployed(&mut meta, handle);
        s.commit(1, meta.clone());
        let labels = ["pipeline=\"visits\"", label];
        let before = value(&s.metrics(), name, &labels).unwrap_or(0.0);
        happens(&mut meta, handle);
        s.commit(2, meta);
        let text = s.metrics();
        let after = value(&text, name, &labels).unwrap_or_else(|| panic!("no {name} {label} in\n{text}"));
        assert!(after > before, "{name} {label}: {before} before, {after} after");
        assert_eq!(value(&text, "tidemill_epoch", &labels[..1]), Some(2.0));
        let others = value(&text, name, &["pipeline=\"orders\"", label]).unwrap_or(0.0);
        assert!(others == 0.0, "{name} {label} of another pipeline: {others}");
    }
}

#[test]
fn a_sink_that_is_away_is_not_available_until_it_is_back() {
    let s = site();
    let meter = &s.admin.control.pipelines()[0].progress.meters.sink("sessions").service;
    let available = || value(&s.metrics(), "tidemill_sink_available", &["sink=\"sessions\""]);
    assert_eq!(available(), Some(1.0));
    meter.is_away("refused");
    assert_eq!(available(), Some(0.0));
    assert!(meter.is_here().is_some());
    assert_eq!(available(), Some(1.0));
}

/// Bug family: a name that somebody adds and nobody ever sees move.
#[test]
fn each_name_has_something_that_moves_it() {
    let s = site();
    let handle = &s.admin.control.pipelines()[0];
    let mut meta = Meta::nothing(Value::Null, 1_750_000_000_000);
    meta.watermark = EventTime::from_ms(1_750_000_000_000);
    MOVES.iter().for_each(|(_, _, happens)| happens(&mut meta, handle));
    s.commit(1, meta);
    swapped(&s);
    // The page counts itself the next time.
    s.metrics();
    let text = s.metrics();
    let names: Vec<&str> = text
        .lines()
        .filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next())
        .filter(|name| !OTHERS.contains(name))
        .collect();
    let moves = |name: &str| {
        let parts = ["", "_count", "_sum", "_bucket"].map(|part| format!("{name}{part}"));
        MOVES.iter().any(|(moved, ..)| parts.iter().any(|part| part == moved))
    };
    let still: Vec<&&str> = names.iter().filter(|name| !moves(name)).collect();
    assert!(names.len() > 30 && still.is_empty(), "nothing here moves {still:?}");
    for name in OTHERS {
        assert!(text.contains(&format!("# TYPE {name} ")), "{name} is no name any more");
    }
}

/// A swap that held events up for 3 ms.
fn swapped(s: &Site) {
    let operation = s.admin.control.begin("visits", "deploy");
    let ms = Duration::from_millis;
    let in_force =
        InForce { version: Version(1), from: EventTime::from_ms(1), reading: ms(1), folding: ms(0) };
    operation.lane_was_busy(ms(2));
    operation.end(Standing::InForce(in_force));
}

#[test]
fn the_pause_of_the_last_swap_is_told() {
    let s = site();
    s.commit(1, Meta::nothing(Value::Null, 1_750_000_000_000));
    let pause = |text: &str| value(text, "tidemill_swap_pause_seconds", &["pipeline=\"visits\""]);
    assert_eq!(pause(&s.metrics()), None, "there has been none");
    swapped(&s);
    assert_eq!(pause(&s.metrics()), Some(0.003));
}

#[test]
fn requests_are_counted_by_route_and_never_by_what_was_asked() {
    let s = site();
    s.get("/api/v1/pipelines/secret-of-somebody");
    s.get("/who/knows/what");
    let odd = Request::builder().method("BREW").uri("/health").header("host", "localhost");
    assert_eq!(s.send(odd.body(Body::empty()).unwrap()).0, 405);
    let text = s.metrics();
    let of = |labels: &[&str]| value(&text, "tidemill_http_requests_total", labels);
    assert_eq!(of(&["route=\"/api/v1/pipelines/{name}\"", "status=\"404\"", "method=\"GET\""]), Some(1.0));
    assert_eq!(of(&["route=\"none\"", "status=\"404\""]), Some(1.0));
    assert_eq!(of(&["method=\"other\"", "status=\"405\""]), Some(1.0));
    let seconds = "tidemill_http_request_duration_seconds_count";
    assert_eq!(value(&text, seconds, &["route=\"/api/v1/pipelines/{name}\""]), Some(1.0));
    assert!(
        !text.contains("secret-of-somebody") && !text.contains("knows") && !text.contains("BREW"),
        "{text}"
    );
}
