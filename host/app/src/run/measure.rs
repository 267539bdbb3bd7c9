//! What the session stage of a pipeline costs by itself: made-up events go through one lane, with nothing to read, nothing
//! decoded and nothing written.
//!
//! The traffic is what a busy site sends: keys after Zipf's law (the n-th most frequent one n times rarer than the first), or
//! every key as often as any other, so that with a long gap all of them are live;
//! 10,000 events a second of event time, a third of them late by up to five seconds and one in a hundred by up to ten. It comes
//! from a fixed seed. Time is CPU time of this thread, so that what else runs on the machine hardly shows.

use super::RunError;
use crate::clock::thread_ns;
use crate::config::plan::{Early, Pipeline};
use crate::journal::Journal;
use crate::plugin::Stages;
use crate::progress::Progress;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tidemill_engine::bounds::{KEY_GROUPS, SWEEP_ROWS};
use tidemill_engine::event::{Position, RowHead, Rows, ext};
use tidemill_engine::key::{KeyForm, key_hash};
use tidemill_engine::lane::{Barrier, Lane, LaneConfig, LaneFault, Origin};
use tidemill_engine::rule::{Description, Results, SessionRule, Turns};
use tidemill_engine::time::EventTime;
use tidemill_engine::versions::Versions;
use tidemill_sandbox::FieldType;

/// Events in a batch: about as many records as a block of a file holds.
const BATCH_EVENTS: u64 = 1000;
/// Events between two barriers: what a second brings.
const EPOCH_EVENTS: u64 = 1_000_000;
/// Of event time.
const EVENTS_PER_MS: u64 = 10;
/// Everything comes within it.
const DISORDER_MS: i64 = 10_000;
/// Values of a text field, where none are declared.
const VALUES: [&str; 8] =
    ["page_view", "click", "search", "add_to_cart", "checkout", "purchase", "login", "scroll"];

/// What the text fields of the events hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Texts {
    /// Text that the plugin has not declared.
    Free,
    /// Its declared symbols, where it has any.
    Symbols,
}

/// How often each key comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Spread {
    /// After Zipf's law: few keys have most events.
    Zipf,
    /// Each once, and then any of them at random.
    Even,
}

/// What was measured.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// `name@version` of the rule.
    pub(crate) rule: String,
    /// Keys with an open session or events that wait, at the last barrier.
    pub(crate) live_keys: u64,
    /// Sessions that became final.
    pub(crate) sessions: u64,
    /// CPU time of the stage.
    pub(crate) stage_ns_per_event: f64,
    /// The rule's own part of it; a plugin's with its frames.
    pub(crate) rule_ns_per_event: f64,
}

/// How many keys there are, and how often each comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    pub(crate) number: u64,
    pub(crate) spread: Spread,
}

/// Sends `events` events of these keys through a lane, and as many as it takes to warm up before.
///
/// # Errors
/// If the rule fails.
pub(crate) fn session_stage(
    pipeline: &Pipeline,
    stages: &Stages,
    keys: Keys,
    events: u64,
    texts: Texts,
) -> Result<Measured, RunError> {
    let spent = Arc::new(AtomicU64::new(0));
    // What a plugin logs goes nowhere.
    let progress = Arc::new(Progress::new(&pipeline.name, Journal::new().0));
    let mut rules = stages.rules(&progress).map_err(RunError::Failed)?;
    let rule = rules.pop().ok_or_else(|| RunError::Failed("the pipeline has no rule".into()))?;
    let rule = Timed { rule, spent_ns: spent.clone() };
    let name = rule.describe().plugin.clone();
    let config = LaneConfig {
        pipeline: pipeline.name.clone(),
        key_form: KeyForm::One,
        lateness_ms: pipeline.lateness_ms,
        early: pipeline.early != Early::Off,
        events_per_key: usize::try_from(pipeline.limits.events_per_key).unwrap_or(usize::MAX),
        suffix_bytes: usize::try_from(pipeline.limits.suffix_bytes).unwrap_or(usize::MAX),
        open_sessions: pipeline.limits.open_sessions,
        groups: 0..KEY_GROUPS,
        sources: vec!["made-up".to_owned()],
        layout: stages.layout.iter().map(|d| d.name.clone()).collect(),
    };
    let mut lane = Lane::new(config, Versions::single(Box::new(rule)));
    let mut traffic = Traffic::new(stages, keys, texts);
    let warm_up = (2 * keys.number).next_multiple_of(EPOCH_EVENTS);
    let mut measured =
        Measured { rule: name, live_keys: 0, sessions: 0, stage_ns_per_event: 0.0, rule_ns_per_event: 0.0 };
    let (mut stage_ns, mut since_sweep) = (0, 0);
    let failed = |e: LaneFault| RunError::Failed(e.to_string());
    let origin = Origin { source: "made-up", partition: "", raw: b"" };
    let mut rows = Rows::default();
    let mut n = 0;
    while n < warm_up + events {
        let watermark = traffic.watermark();
        rows.clear();
        traffic.batch(&mut rows);
        n += BATCH_EVENTS;
        let begin = thread_ns();
        lane.insert(&rows, watermark, origin).map_err(failed)?;
        since_sweep += rows.heads.len();
        if since_sweep >= SWEEP_ROWS && lane.sweeps() {
            since_sweep = 0;
            lane.sweep().map_err(failed)?;
        }
        let epoch = if n.is_multiple_of(EPOCH_EVENTS) {
            since_sweep = 0;
            let early_tick = pipeline.early != Early::Off;
            Some(lane.barrier(Barrier { watermark, early_tick, at_end: false }).map_err(failed)?)
        } else {
            None
        };
        stage_ns += thread_ns() - begin;
        if let Some(epoch) = epoch.filter(|_| n > warm_up) {
            measured.live_keys = epoch.live_keys;
            measured.sessions += epoch.counts.revisions[tidemill_engine::outbox::Stage::Final as usize];
        }
        if n == warm_up {
            stage_ns = 0;
            spent.store(0, Ordering::Relaxed);
        }
    }
    measured.stage_ns_per_event = per(stage_ns, n - warm_up);
    measured.rule_ns_per_event = per(spent.load(Ordering::Relaxed), n - warm_up);
    Ok(measured)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn per(ns: u64, events: u64) -> f64 {
    ns as f64 / events.max(1) as f64
}

/// A rule whose calls are timed.
struct Timed {
    rule: Box<dyn SessionRule>,
    spent_ns: Arc<AtomicU64>,
}

impl SessionRule for Timed {
    fn describe(&self) -> &Description {
        self.rule.describe()
    }
    fn call(&mut self, turns: &Turns, out: &mut Results) {
        let begin = thread_ns();
        self.rule.call(turns, out);
        self.spent_ns.fetch_add(thread_ns() - begin, Ordering::Relaxed);
    }
    fn migrate(&mut self, from: u32, states: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        self.rule.migrate(from, states)
    }
}

/// A value, or one like it that is no symbol.
fn free(value: &str, symbols: &[String]) -> String {
    let mut value = value.to_owned();
    while symbols.contains(&value) {
        value.push('.');
    }
    value
}

/// Made-up events.
struct Traffic {
    random: u64,
    keys: Keys,
    ln_keys: f64,
    made: u64,
    latest: EventTime,
    fields: Vec<(FieldType, Vec<String>)>,
}

impl Traffic {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn new(stages: &Stages, keys: Keys, texts: Texts) -> Traffic {
        let fields = stages.layout.iter().map(|d| {
            let values = if texts == Texts::Symbols && !d.symbols.is_empty() {
                d.symbols.clone()
            } else {
                VALUES.map(|v| free(v, &d.symbols)).to_vec()
            };
            (d.kind, values)
        });
        Traffic {
            random: 0x9e37_79b9_7f4a_7c15,
            keys,
            ln_keys: (keys.number.max(1) as f64).ln(),
            made: 0,
            latest: EventTime::BEGINNING,
            fields: fields.collect(),
        }
    }

    fn watermark(&self) -> EventTime {
        if self.made == 0 { EventTime::BEGINNING } else { self.latest.minus(DISORDER_MS) }
    }

    /// Marsaglia's xorshift, with a multiplication for the low bits.
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        ((self.next() >> 32) * n) >> 32
    }

    #[expect(clippy::cast_precision_loss, reason = "53 random bits")]
    fn rank(&mut self) -> u64 {
        match self.keys.spread {
            Spread::Zipf => {
                // Zipf's law has a logarithm for its distribution function.
                let u = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
                (u * self.ln_keys).exp() as u64
            }
            Spread::Even if self.made < self.keys.number => self.made,
            Spread::Even => self.below(self.keys.number),
        }
    }

    fn batch(&mut self, rows: &mut Rows) {
        for _ in 0..BATCH_EVENTS {
            let rank = self.rank();
            let delay_ms = match self.below(100) {
                0 => 5_000 + self.below(4_900),
                1..30 => self.below(5_000),
                _ => self.below(200),
            };
            // Some instant in 2026; the first events are as late as the others.
            let ms = 1_790_000_000_000 + self.made / EVENTS_PER_MS - delay_ms;
            let time = EventTime::from_ms(i64::try_from(ms).unwrap_or(0));
            self.latest = self.latest.max(time);
            let key_at = rows.bytes.len();
            rows.bytes.push(b'u');
            let id = rank.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
            rows.bytes.extend((0..12).map(|i| b"0123456789abcdef"[(id >> (44 - 4 * i) & 15) as usize]));
            let ext_at = rows.bytes.len();
            self.extension(&mut rows.bytes);
            rows.heads.push(RowHead {
                key_hash: key_hash(&rows.bytes[key_at..ext_at]),
                time,
                position: Position { source: 0, partition: 0, offset: self.made * 280 },
                key_at: key_at as u32,
                key_len: (ext_at - key_at) as u32,
                ext_len: (rows.bytes.len() - ext_at) as u32,
                raw_at: 0,
                raw_len: 0,
            });
            self.made += 1;
        }
    }

    fn extension(&mut self, out: &mut Vec<u8>) {
        if self.fields.is_empty() {
            return;
        }
        ext::push_id(out, None);
        for i in 0..self.fields.len() {
            let random = self.next() >> 40;
            let (kind, values) = &self.fields[i];
            ext::push_field(
                out,
                match kind {
                    FieldType::Text | FieldType::String => {
                        ext::Value::Text(values[random as usize % values.len()].as_bytes())
                    }
                    FieldType::Integer => ext::Value::Integer((random % 100) as i64),
                    FieldType::Number => ext::Value::Number((random % 100) as f64),
                    FieldType::Boolean => ext::Value::Boolean(random & 1 == 1),
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::Sandbox;

    fn stages(session: &str) -> (Pipeline, Stages) {
        let text = format!(
            "[server]\n[source.s]\nkind = \"stdin\"\nformat = \"json\"\nkey = \"k\"\ntime = {{ field = \"t\" }}\n\
             [pipeline.p]\nfrom = [\"s\"]\nsession = {session}\nearly = \"off\"\nto = [\"out\"]\n\
             [sink.out]\nkind = \"stdout\"\n"
        );
        let plan = crate::config::parse(&text, std::path::Path::new("p.toml"), 0).unwrap();
        let pipeline = plan.pipelines[0].clone();
        let stages =
            Stages::of_config(&pipeline, &Sandbox::new("/nowhere".into())).map_err(|e| e.to_string());
        (pipeline, stages.unwrap())
    }

    fn keys(number: u64, spread: Spread) -> Keys {
        Keys { number, spread }
    }

    #[test]
    fn traffic_keeps_within_its_disorder_and_its_keys() {
        let (_, stages) = stages(
            "{ plugin = \"builtin:gap\", config = { gap = \"30s\", end = { field = \"type\", in = [\"x\"] } } }",
        );
        let mut traffic = Traffic::new(&stages, keys(50, Spread::Zipf), Texts::Free);
        let mut rows = Rows::default();
        let mut keys = std::collections::BTreeMap::<Vec<u8>, u64>::new();
        for _ in 0..100 {
            let watermark = traffic.watermark();
            rows.clear();
            traffic.batch(&mut rows);
            assert_eq!(rows.heads.len() as u64, BATCH_EVENTS);
            for h in &rows.heads {
                assert!(h.time >= watermark);
                assert!(matches!(ext::field(rows.ext(h), 0), ext::Value::Text(_)));
                *keys.entry(rows.key(h).to_vec()).or_default() += 1;
            }
        }
        assert!((40..=50).contains(&keys.len()), "{}", keys.len());
        let most = keys.values().max().copied().unwrap_or(0);
        assert!(most > 10_000, "{most} of the most frequent key: not Zipf's law");
    }

    #[test]
    fn free_texts_are_no_symbols_even_of_a_rule_that_has_all_of_them() {
        let session = "{ plugin = \"builtin:gap\", config = { gap = \"30s\", end = { field = \"type\", in = [\"x\"] } } }";
        let (_, mut stages) = stages(session);
        stages.layout[0].symbols = VALUES.map(String::from).to_vec();
        for (texts, want) in [(Texts::Free, false), (Texts::Symbols, true)] {
            let mut rows = Rows::default();
            Traffic::new(&stages, keys(50, Spread::Zipf), texts).batch(&mut rows);
            for h in &rows.heads {
                let ext::Value::Text(text) = ext::field(rows.ext(h), 0) else { panic!("a text") };
                assert_eq!(VALUES.iter().any(|v| v.as_bytes() == text), want);
            }
        }
    }

    #[test]
    fn sessions_close_while_it_measures() {
        let (pipeline, stages) = stages("{ plugin = \"builtin:gap\", config = { gap = \"30s\" } }");
        let m =
            session_stage(&pipeline, &stages, keys(10_000, Spread::Zipf), 1_000_000, Texts::Free).unwrap();
        assert!(m.sessions > 500 && m.live_keys > 9_000, "{m:?}");
        assert!(m.rule_ns_per_event > 0.0 && m.stage_ns_per_event > m.rule_ns_per_event, "{m:?}");
    }

    /// What it is for: a figure at so many live keys, of which most would have ended under the law of a busy site.
    #[test]
    fn keys_that_come_evenly_are_all_live() {
        let (pipeline, stages) = stages("{ plugin = \"builtin:gap\", config = { gap = \"24h\" } }");
        let m =
            session_stage(&pipeline, &stages, keys(30_000, Spread::Even), 1_000_000, Texts::Free).unwrap();
        assert_eq!((m.live_keys, m.sessions), (30_000, 0), "{m:?}");
    }
}
