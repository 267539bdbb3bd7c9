//! `[pipeline.NAME]` and `[plugin.NAME]`: what is done to events, and where sessions go.

use super::diagnose::{Problems, nearest, one_of};
use super::plan::{
    Early, EndOfInput, FaultLimits, GapRule, Limits, Match, Mode, Pipeline, Place, Places, PluginUse, Rule,
    Target,
};
use super::raw::{self, Field, Section, Value};
use super::references::{Names, PluginFile, Use, Uses};
use super::{duration, last, lookup};
use std::time::Duration;
use tidemill_engine::bounds::OPEN_SESSIONS;
use tidemill_engine::outbox::{Stage, Stages};

/// Suffix memory if neither config nor the system says how much there is.
const SUFFIX_BYTES_FALLBACK: u64 = 1 << 30;

pub(super) fn check_plugin(mut s: Section<'_>, lookups: &[String], p: &mut Problems) -> PluginFile {
    let name = last(&s.path).to_owned();
    let at = s.at;
    let path = s
        .need("path", "write `path = \"plugins/checkout.wasm\"`", p)
        .and_then(|f| Some((f.text(p)?, f.node.at)));
    let config = s.get("config").map(|f| json_object(&f, p));
    let uses = s.get("lookups").map_or_else(Vec::new, |f| {
        lookup::check_uses(&f, lookups, |f, p| resolve(f, "lookup", lookups, p), p)
    });
    s.finish(&[], p);
    // Whatever is wrong in it, it is there: who names it must not be told otherwise.
    let (path, path_at) = path.unwrap_or(("", at));
    PluginFile { name, at, path: path.into(), path_at, config: config.flatten(), lookups: uses }
}

/// A config of a plugin, which only the plugin can judge, and where its values stand.
fn json_object(f: &Field<'_>, p: &mut Problems) -> Option<(serde_json::Value, Places)> {
    f.section("write `config = { .. }`", p)?;
    let mut places = Places::default();
    let value = json(f.node, "", &f.path, &mut places, p)?;
    Some((value, places))
}

fn json(
    node: &raw::Node,
    pointer: &str,
    path: &str,
    places: &mut Places,
    p: &mut Problems,
) -> Option<serde_json::Value> {
    places.0.push((pointer.to_owned(), Place { at: node.at, key: path.to_owned() }));
    Some(match &node.value {
        Value::Text { value, .. } => value.as_str().into(),
        Value::Int(n) => (*n).into(),
        Value::Float(n) => serde_json::Value::from(*n),
        Value::Bool(b) => (*b).into(),
        Value::Date(_) => {
            p.error(node.at, path, "a plugin's config has no dates".to_owned(), "write a string".to_owned());
            return None;
        }
        Value::Array(list) => {
            let one = |(i, n): (usize, &raw::Node)| json(n, &format!("{pointer}/{i}"), path, places, p);
            list.iter().enumerate().map(one).collect::<Option<Vec<_>>>()?.into()
        }
        Value::Table(entries) => {
            let mut table = serde_json::Map::new();
            for e in entries {
                let pointer = format!("{pointer}/{}", e.key.replace('~', "~0").replace('/', "~1"));
                let value = json(&e.node, &pointer, &raw::join(path, &e.key), places, p)?;
                table.insert(e.key.clone(), value);
            }
            table.into()
        }
        Value::Bad => return None,
    })
}

pub(super) fn check_pipeline(
    mut s: Section<'_>,
    names: &Names,
    uses: &mut Uses,
    p: &mut Problems,
) -> Option<Pipeline> {
    let name = last(&s.path).to_owned();
    let at = s.at;
    let from = check_from(&mut s, names, uses, p);
    let mut plugins = |key| {
        s.get(key).map_or_else(Vec::new, |f| {
            f.elements().iter().filter_map(|e| plugin_use(e, None, names, p)).collect()
        })
    };
    let (validate, enrich) = (plugins("validate"), plugins("enrich"));
    let rule = check_session(&mut s, names, p);
    let early_field = s.get("early");
    let mode = s.get("mode").and_then(|f| f.word(&["exactly-once", "at-least-once"], &[], p));
    let mode = if mode == Some("at-least-once") { Mode::AtLeastOnce } else { Mode::ExactlyOnce };
    // What is sent early is the most of what a crash may have to take back again.
    let early_by_default = if mode == Mode::AtLeastOnce { Early::Off } else { Early::Epoch };
    let early = early_field.as_ref().map_or(Some(early_by_default), |f| check_early(f, names.epoch_ms, p));
    let lateness_ms = duration(&mut s, "lateness", 0, p);
    if let Some(f) = s.get("retain") {
        f.word(&["lateness"], &["session"], p);
    }
    let end_of_input = s.get("end_of_input").and_then(|f| f.word(&["close", "hold"], &[], p));
    let end_of_input = if end_of_input == Some("hold") { EndOfInput::Hold } else { EndOfInput::Close };
    let to = check_to(&mut s, names, early, lateness_ms, uses, p);
    let dead_field = s.get("dead");
    let dead = dead_field.as_ref().and_then(|f| resolve(f, "sink", &names.sinks, p));
    if let (Some(f), Some(sink)) = (dead_field, dead) {
        uses.sinks.push(Use { index: sink, at: f.node.at, path: f.path, dead: true });
    }
    let limits = check_limits(&mut s, p);
    s.finish(&[], p);
    Some(Pipeline {
        name,
        at,
        from,
        validate,
        rule: rule?,
        enrich,
        mode,
        early: early?,
        lateness_ms,
        end_of_input,
        to,
        dead,
        limits,
    })
}

/// The index of the source or sink that a value names.
fn resolve(f: &Field<'_>, what: &str, known: &[String], p: &mut Problems) -> Option<usize> {
    let name = f.text(p)?;
    if let Some(i) = known.iter().position(|k| k == name) {
        return Some(i);
    }
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let help = match nearest(name, known.iter().copied()) {
        Some(k) => format!("did you mean \"{k}\"?"),
        None if known.is_empty() => format!("write a [{what}.{}]", f.shown()),
        None => format!("there is {}", one_of(&known)),
    };
    f.wrong(format!("there is no {what} `{}`", f.shown()), help, p);
    None
}

fn check_from(s: &mut Section<'_>, names: &Names, uses: &mut Uses, p: &mut Problems) -> Vec<usize> {
    let Some(field) = s.need("from", "write `from = [\"web\"]`", p) else { return Vec::new() };
    let mut list = Vec::new();
    for element in field.elements() {
        let Some(i) = resolve(&element, "source", &names.sources, p) else { continue };
        if list.contains(&i) {
            element.wrong(format!("`{}` stands here twice", element.shown()), None, p);
            continue;
        }
        list.push(i);
        uses.sources.push(Use { index: i, at: element.node.at, path: element.path, dead: false });
    }
    if field.elements().is_empty() {
        field.wrong(format!("`{}` names no source", field.path), "write `from = [\"web\"]`".to_owned(), p);
    }
    list
}

/// A plugin where it is named, with the config given there, or that of its own section.
fn plugin_use(
    f: &Field<'_>,
    config: Option<(serde_json::Value, Places)>,
    names: &Names,
    p: &mut Problems,
) -> Option<PluginUse> {
    let known: Vec<String> = names.plugins.iter().map(|k| k.name.clone()).collect();
    let file = &names.plugins[resolve(f, "plugin", &known, p)?];
    let none = || (serde_json::json!({}), Places::default());
    let (config, places) = config.or_else(|| file.config.clone()).unwrap_or_else(none);
    Some(PluginUse {
        name: file.name.clone(),
        at: f.node.at,
        key: f.path.clone(),
        path: file.path.clone(),
        path_at: file.path_at,
        config,
        places,
        lookups: file.lookups.clone(),
    })
}

fn check_session(s: &mut Section<'_>, names: &Names, p: &mut Problems) -> Option<Rule> {
    let example = "write `session = { plugin = \"builtin:gap\", config = { gap = \"30m\" } }`";
    let mut session = s.need("session", example, p)?.section(example, p)?;
    let plugin = session.need("plugin", "write `plugin = \"builtin:gap\"`", p);
    let known = match plugin {
        Some(f) => f.text(p).map(|name| (f.clone(), name)),
        None => None,
    };
    let config = session.get("config");
    session.finish(&[], p);
    let (field, name) = known?;
    if name != "builtin:gap" {
        let near = nearest(name, ["builtin:gap", "gap"]).is_some() || name.starts_with("builtin");
        if near && !names.plugins.iter().any(|k| k.name == name) {
            let help = "did you mean \"builtin:gap\"?".to_owned();
            field.wrong(format!("there is no plugin `{}`", field.shown()), help, p);
            return None;
        }
        let config = match config {
            Some(f) => Some(json_object(&f, p)?),
            None => None,
        };
        return plugin_use(&field, config, names, p).map(Rule::Plugin);
    }
    let Some(config) = config else {
        field.wrong(
            "`builtin:gap` needs a config".to_owned(),
            "write `config = { gap = \"30m\" }`".to_owned(),
            p,
        );
        return None;
    };
    check_gap(config.section("write `config = { gap = \"30m\" }`", p)?, p).map(Rule::Gap)
}

fn check_gap(mut c: Section<'_>, p: &mut Problems) -> Option<GapRule> {
    let gap_ms = c.need("gap", "write `gap = \"30m\"`", p).and_then(|f| positive_ms(&f, p));
    let boundary = c.get("boundary").and_then(|f| f.word(&["exclusive", "inclusive"], &[], p));
    let max_ms = c.get("max").and_then(|f| positive_ms(&f, p));
    let start = c.get("start").and_then(|f| check_match(&f, p));
    let end = c.get("end").and_then(|f| check_match(&f, p));
    c.finish(&[], p);
    Some(GapRule { gap_ms: gap_ms?, inclusive: boundary == Some("inclusive"), max_ms, start, end })
}

fn positive_ms(f: &Field<'_>, p: &mut Problems) -> Option<i64> {
    let ms = f.duration_ms(p)?;
    if ms == 0 {
        f.wrong(format!("`{}` must be longer than nothing", f.path), "\"30m\" is usual".to_owned(), p);
        return None;
    }
    Some(ms)
}

fn check_match(f: &Field<'_>, p: &mut Problems) -> Option<Match> {
    let example = "write `{ field = \"type\", in = [\"login\"] }`";
    let mut m = f.section(example, p)?;
    let field = m.need("field", "write `field = \"type\"`", p).and_then(|f| f.text(p)).map(str::to_owned);
    let values = m.need("in", "write `in = [\"login\"]`", p).and_then(|f| {
        if f.elements().is_empty() {
            f.wrong(format!("`{}` is empty, so nothing matches", f.path), example.to_owned(), p);
        }
        f.elements().iter().map(|e| e.text(p).map(str::to_owned)).collect::<Option<Vec<_>>>()
    });
    m.finish(&[], p);
    Some(Match { field: field?, values: values? })
}

fn check_early(f: &Field<'_>, epoch_ms: i64, p: &mut Problems) -> Option<Early> {
    if let Value::Text { .. } = f.node.value {
        return match f.word(&["epoch", "off"], &[], p)? {
            "off" => Some(Early::Off),
            _ => Some(Early::Epoch),
        };
    }
    let mut s = f.section("write \"epoch\", \"off\" or `{ every = \"5s\" }`", p)?;
    let every = s.need("every", "write `every = \"5s\"`", p).and_then(|f| positive_ms(&f, p));
    s.finish(&[], p);
    let epochs = (every? + epoch_ms - 1) / epoch_ms;
    Some(Early::Every(epochs * epoch_ms))
}

fn check_to(
    s: &mut Section<'_>,
    names: &Names,
    early: Option<Early>,
    lateness_ms: i64,
    uses: &mut Uses,
    p: &mut Problems,
) -> Vec<Target> {
    let Some(field) = s.need("to", "write `to = [\"sessions\"]`", p) else { return Vec::new() };
    if field.elements().is_empty() {
        field.wrong(format!("`{}` names no sink", field.path), "write `to = [\"sessions\"]`".to_owned(), p);
    }
    let mut list: Vec<Target> = Vec::new();
    for element in field.elements() {
        let Some(target) = check_target(&element, names, early, lateness_ms, p) else { continue };
        if list.iter().any(|t| t.sink == target.sink) {
            let help = "write it once, with all its `stages`".to_owned();
            element.wrong("this sink stands here twice".to_owned(), help, p);
            continue;
        }
        list.push(target);
        uses.sinks.push(Use { index: target.sink, at: element.node.at, path: element.path, dead: false });
    }
    list
}

fn check_target(
    f: &Field<'_>,
    names: &Names,
    early: Option<Early>,
    lateness_ms: i64,
    p: &mut Problems,
) -> Option<Target> {
    if let Value::Text { .. } = f.node.value {
        return Some(Target { sink: resolve(f, "sink", &names.sinks, p)?, stages: Stages::ALL });
    }
    let example = "write \"sessions\" or `{ sink = \"live\", stages = [\"early\"] }`";
    let mut s = f.section(example, p)?;
    let sink = s.need("sink", example, p).and_then(|f| resolve(&f, "sink", &names.sinks, p));
    let stages = s.get("stages").map_or(Some(Stages::ALL), |f| check_stages(&f, early, lateness_ms, p));
    s.finish(&[], p);
    Some(Target { sink: sink?, stages: stages? })
}

fn check_stages(f: &Field<'_>, early: Option<Early>, lateness_ms: i64, p: &mut Problems) -> Option<Stages> {
    let mut list = Vec::new();
    for element in f.elements() {
        let stage = Stage::from_name(element.word(&Stage::ALL.map(Stage::name), &[], p)?)?;
        if stage == Stage::Corrected && lateness_ms == 0 {
            let help = "set `lateness`, or leave `corrected` out".to_owned();
            p.warn(element.node.at, &f.path, "without lateness nothing is ever corrected".to_owned(), help);
        }
        list.push(stage);
    }
    if list.is_empty() {
        f.wrong(
            format!("`{}` is empty, so nothing would be sent", f.path),
            "leave it out for all".to_owned(),
            p,
        );
    }
    // With lateness a late event can reopen a session, which is then early again (SEMANTICS 14).
    let never = early == Some(Early::Off) && lateness_ms == 0;
    if never && !list.is_empty() && list.iter().all(|s| *s == Stage::Early) {
        let help = "write `early = \"epoch\"`, or other stages".to_owned();
        f.wrong("only early revisions are wanted here, and `early` is off".to_owned(), help, p);
    }
    Some(Stages::of(&list))
}

fn check_limits(s: &mut Section<'_>, p: &mut Problems) -> Limits {
    let memory = memory_bytes();
    let mut limits = Limits {
        events_per_key: 1_000_000,
        suffix_bytes: memory.map_or(SUFFIX_BYTES_FALLBACK, |m| m / 4),
        open_sessions: OPEN_SESSIONS,
        outbox_bytes: 1 << 30,
        unresolved_bytes: 64 << 20,
        faults: FaultLimits {
            faults: 20,
            overdue: Duration::from_secs(2),
            overdue_window: Duration::from_secs(10),
        },
    };
    let Some(mut l) =
        s.get("limits").and_then(|f| f.section("write `limits = { events_per_key = 1000000 }`", p))
    else {
        return limits;
    };
    if let Some(n) = l.get("events_per_key").and_then(|f| f.count(1, p)) {
        limits.events_per_key = n;
    }
    if let Some(f) = l.get("suffix_bytes")
        && let Some(bytes) = at_least_mib(&f, p)
    {
        limits.suffix_bytes = bytes;
        if let Some(memory) = memory.filter(|m| bytes > *m) {
            let message = format!("more than this machine's memory of {} MiB", memory >> 20);
            p.warn(f.node.at, &f.path, message, "a quarter of memory is the default".to_owned());
        }
    }
    if let Some(n) = l.get("open_sessions").and_then(|f| f.count(1, p)) {
        limits.open_sessions = n;
    }
    if let Some(bytes) = l.get("outbox_bytes").and_then(|f| at_least_mib(&f, p)) {
        limits.outbox_bytes = bytes;
    }
    if let Some(bytes) = l.get("unresolved_bytes").and_then(|f| at_least_mib(&f, p)) {
        limits.unresolved_bytes = bytes;
    }
    check_faults(&mut l, &mut limits.faults, p);
    l.finish(&[], p);
    limits
}

fn check_faults(l: &mut Section<'_>, faults: &mut FaultLimits, p: &mut Problems) {
    if let Some(n) = l.get("faults").and_then(|f| f.count(0, p)) {
        faults.faults = n;
    }
    let length = |ms: i64| Duration::from_millis(ms.unsigned_abs());
    if let Some(ms) = l.get("overdue_window").and_then(|f| positive_ms(&f, p)) {
        faults.overdue_window = length(ms);
    }
    let field = l.get("overdue");
    if let Some((f, ms)) = field.and_then(|f| positive_ms(&f, p).map(|ms| (f, ms))) {
        faults.overdue = length(ms);
        if faults.overdue > faults.overdue_window {
            let help = "make `overdue_window` longer, or this shorter".to_owned();
            f.wrong("longer than `overdue_window`, so nothing would ever be too much".to_owned(), help, p);
        }
    }
}

/// Less than one batch would stop the pipeline for good.
pub(super) fn at_least_mib(f: &Field<'_>, p: &mut Problems) -> Option<u64> {
    let bytes = f.size_bytes(p)?;
    if bytes < 1 << 20 {
        f.wrong(format!("`{}` must be at least 1MiB", f.path), None, p);
    }
    Some(bytes)
}

/// The machine's memory; none where /proc does not tell.
fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}
