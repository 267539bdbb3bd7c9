//! From a config file to a checked plan: `load` and `parse` find everything that is wrong with the file by
//! itself, `Plan::probe` what is wrong with the world it names.
//!
//! Invariants: nothing is opened or created here, except that `${file:..}` and the probe read; every problem
//! of a file is reported in one go; a name that is declared counts as declared even if its table is wrong,
//! so that one mistake is one problem.

mod diagnose;
pub(crate) mod plan;
mod raw;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemill_engine::outbox::{Stage, Stages};

use self::diagnose::Document;
pub(crate) use self::diagnose::{Problems, Spot};
use self::diagnose::{nearest, one_of};
pub(crate) use self::plan::{
    Change, ChangeKind, Early, EndOfInput, Format, GapRule, Generator, IdSpec, KeySpec, Limits, Match,
    Pipeline, Plan, PluginUse, Rule, Secret, Server, Sink, SinkKind, Source, SourceKind, Target, TimeForm,
    TimeSpec, TimeUnit, compare, fingerprint,
};
use self::raw::{Entry, Env, Field, Section, Value};

/// Bounds of `server.epoch`: shorter than a disk's sync makes no sense, longer makes restarts slow.
const EPOCH_MS: std::ops::RangeInclusive<i64> = 10..=60_000;
/// Suffix memory if neither config nor the system says how much there is.
const SUFFIX_BYTES_FALLBACK: u64 = 1 << 30;
/// What a line of the combined log format has.
const COMBINED_FIELDS: [&str; 11] =
    ["host", "ident", "user", "time", "method", "url", "protocol", "status", "bytes", "referer", "agent"];
/// Keys that only some kinds of source have.
const SOURCE_ONLY: [(&str, &str); 8] = [
    ("path", "only kind = \"file\" has it"),
    ("follow", "only kind = \"file\" has it"),
    ("events", "only kind = \"generator\" has it"),
    ("rate", "only kind = \"generator\" has it"),
    ("users", "only kind = \"generator\" has it"),
    ("seed", "only kind = \"generator\" has it"),
    ("stories", "only kind = \"generator\" has it"),
    ("start", "only kind = \"generator\" has it"),
];
/// Keys that only some kinds of sink have.
const SINK_ONLY: [(&str, &str); 2] =
    [("path", "kind = \"stdout\" has no file"), ("table", "only kind = \"sqlite\" has it")];

/// Reads and checks a config file, with the process's environment and the clock as it stands.
pub(crate) fn load(path: &Path) -> Result<Plan, Problems> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, path, jiff::Timestamp::now().as_millisecond()),
        Err(e) => {
            let origin = path.display().to_string();
            let mut problems = Problems::new(Arc::new(Document::new(&origin, "")));
            problems.error_of_file(format!("`{origin}` cannot be read: {e}"), None);
            Err(problems)
        }
    }
}

/// Checks a config text. `origin` names it in messages; `now_ms` is the clock, ms since the Unix epoch.
pub(crate) fn parse(text: &str, origin: &Path, now_ms: i64) -> Result<Plan, Problems> {
    parse_with(text, origin, now_ms, &|name| std::env::var(name).ok())
}

fn parse_with(text: &str, origin: &Path, now_ms: i64, env: Env<'_>) -> Result<Plan, Problems> {
    let document = Arc::new(Document::new(&origin.display().to_string(), text));
    let mut problems = Problems::new(document);
    let p = &mut problems;
    let entries = raw::read(text, env, p);
    if p.has_errors() && entries.is_empty() {
        return Err(problems);
    }
    let checked = check(&entries, now_ms, p);
    problems.sort();
    match checked {
        Some(mut plan) if !problems.has_errors() => {
            plan.warnings = problems;
            Ok(plan)
        }
        _ => Err(problems),
    }
}

/// The whole file. The plan is complete only if no error was noted.
fn check(entries: &[Entry], now_ms: i64, p: &mut Problems) -> Option<Plan> {
    let mut root = Section::new(String::new(), Spot::default(), entries);
    let server = check_server(root.get("server"), p);
    let sources = named(root.get("source"), "[source.web]", p);
    let sinks = named(root.get("sink"), "[sink.sessions]", p);
    let pipelines = named(root.get("pipeline"), "[pipeline.visits]", p);
    let plugins = named(root.get("plugin"), "[plugin.checkout]", p);
    root.finish(&[], p);
    if pipelines.is_empty() {
        p.error_of_file(
            "there is no pipeline".to_owned(),
            Some("write a [pipeline.visits] with `from`, `session` and `to`".to_owned()),
        );
    }
    let names = Names {
        sources: names_of(&sources),
        sinks: names_of(&sinks),
        plugins: plugins.into_iter().filter_map(|s| check_plugin(s, p)).collect(),
        epoch_ms: server.epoch_ms,
    };
    let sources: Vec<Option<Source>> = sources.into_iter().map(|s| check_source(s, now_ms, p)).collect();
    let sinks: Vec<Option<Sink>> = sinks.into_iter().map(|s| check_sink(s, p)).collect();
    let mut uses = Uses::default();
    let pipelines: Vec<Option<Pipeline>> =
        pipelines.into_iter().map(|s| check_pipeline(s, &names, &mut uses, p)).collect();
    uses.check(&sources, &sinks, p);
    unused(&names, &uses, &sources, &sinks, p);
    check_one_file(&sinks, p);
    Some(Plan {
        server,
        sources: sources.into_iter().collect::<Option<_>>()?,
        pipelines: pipelines.into_iter().collect::<Option<_>>()?,
        sinks: sinks.into_iter().collect::<Option<_>>()?,
        warnings: Problems::new(p.document().clone()),
    })
}

/// What pipelines may refer to.
struct Names {
    sources: Vec<String>,
    sinks: Vec<String>,
    plugins: Vec<PluginFile>,
    epoch_ms: i64,
}

/// `[plugin.NAME]`.
struct PluginFile {
    name: String,
    path: PathBuf,
    config: Option<serde_json::Value>,
}

fn check_plugin(mut s: Section<'_>, p: &mut Problems) -> Option<PluginFile> {
    let name = last(&s.path).to_owned();
    let path = s.need("path", "write `path = \"plugins/checkout.wasm\"`", p).and_then(|f| f.text(p));
    let config = s.get("config").map(|f| json_object(&f, p));
    s.finish(&[], p);
    Some(PluginFile {
        name,
        path: path?.into(),
        config: match config {
            Some(c) => Some(c?),
            None => None,
        },
    })
}

/// A config of a plugin, which only the plugin can judge.
fn json_object(f: &Field<'_>, p: &mut Problems) -> Option<serde_json::Value> {
    f.section("write `config = { .. }`", p)?;
    json(f.node, &f.path, p)
}

fn json(node: &raw::Node, path: &str, p: &mut Problems) -> Option<serde_json::Value> {
    Some(match &node.value {
        Value::Text { value, .. } => value.as_str().into(),
        Value::Int(n) => (*n).into(),
        Value::Float(n) => serde_json::Value::from(*n),
        Value::Bool(b) => (*b).into(),
        Value::Date(_) => {
            p.error(node.at, path, "a plugin's config has no dates".to_owned(), "write a string".to_owned());
            return None;
        }
        Value::Array(list) => list.iter().map(|n| json(n, path, p)).collect::<Option<Vec<_>>>()?.into(),
        Value::Table(entries) => entries
            .iter()
            .map(|e| Some((e.key.clone(), json(&e.node, &raw::join(path, &e.key), p)?)))
            .collect::<Option<serde_json::Map<_, _>>>()?
            .into(),
        Value::Bad => return None,
    })
}

fn names_of(sections: &[Section<'_>]) -> Vec<String> {
    sections.iter().map(|s| last(&s.path).to_owned()).collect()
}

/// The name at the end of a key path; names have no dots.
fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// The tables of `[source.NAME]` and the like.
fn named<'a>(field: Option<Field<'a>>, example: &str, p: &mut Problems) -> Vec<Section<'a>> {
    let help = format!("name it: {example}");
    let Some(outer) = field.and_then(|f| f.section(&help, p)) else { return Vec::new() };
    let mut list = Vec::new();
    for e in outer.entries() {
        let path = raw::join(&outer.path, &e.key);
        let plain = e.key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if e.key.is_empty() || !plain {
            let help = "use letters, digits, `_` and `-`".to_owned();
            p.error(e.key_at, &path, format!("`{}` cannot be a name", e.key), help);
            continue;
        }
        let field = Field { node: &e.node, key_at: e.key_at, path };
        list.extend(field.section(&help, p));
    }
    list
}

fn check_server(field: Option<Field<'_>>, p: &mut Problems) -> Server {
    let mut server = Server {
        listen: "127.0.0.1:7300".to_owned(),
        data_dir: PathBuf::from("./.tidemill"),
        data_dir_at: Spot::default(),
        epoch_ms: 1000,
    };
    let Some(mut s) = field.and_then(|f| f.section("write [server]", p)) else { return server };
    let insecure = s.get("insecure").and_then(|f| f.boolean(p)).unwrap_or(false);
    if let Some(f) = s.get("tls") {
        p.error(f.key_at, &f.path, "[server.tls] is not in this build yet".to_owned(), None);
    }
    if let Some(f) = s.get("listen") {
        check_listen(&f, insecure, &mut server, p);
    }
    if let Some(f) = s.get("data_dir")
        && let Some(dir) = f.text(p)
    {
        server.data_dir = PathBuf::from(dir);
        server.data_dir_at = f.node.at;
    }
    if let Some(f) = s.get("epoch")
        && let Some(ms) = f.duration_ms(p)
    {
        server.epoch_ms = ms;
        if !EPOCH_MS.contains(&ms) {
            f.wrong(
                "`server.epoch` must lie between 10ms and 60s".to_owned(),
                "\"1s\" is usual".to_owned(),
                p,
            );
            // Nothing else is to be measured by a wrong epoch.
            server.epoch_ms = 1000;
        }
    }
    s.finish(&[], p);
    server
}

fn check_listen(f: &Field<'_>, insecure: bool, server: &mut Server, p: &mut Problems) {
    let Some(listen) = f.text(p) else { return };
    listen.clone_into(&mut server.listen);
    let Some((host, port)) =
        listen.rsplit_once(':').filter(|(h, n)| !h.is_empty() && n.parse::<u16>().is_ok())
    else {
        f.wrong(format!("`{}` is not host:port", f.shown()), "write \"127.0.0.1:7300\"".to_owned(), p);
        return;
    };
    let address: Option<std::net::IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    let loopback = host == "localhost" || address.is_some_and(|a| a.is_loopback());
    if !loopback && !insecure {
        let help = format!("write \"127.0.0.1:{port}\", or `insecure = true` if the network is yours alone");
        f.wrong(format!("`{}` is beyond loopback, and there is no TLS in this build", f.shown()), help, p);
    }
}

fn check_source(mut s: Section<'_>, now_ms: i64, p: &mut Problems) -> Option<Source> {
    let name = last(&s.path).to_owned();
    let at = s.at;
    let kind = s.need("kind", "write `kind = \"file\"`, \"stdin\" or \"generator\"", p);
    let kind = kind.and_then(|f| f.word(&["file", "stdin", "generator"], &["http", "kafka", "pubsub"], p));
    let kind = check_source_kind(kind, &mut s, p);
    let generated = matches!(kind, Some(SourceKind::Generator(_)));
    let format = check_format(&mut s, generated, p);
    let combined = format == Some(Format::Combined);
    let key = check_key(&mut s, generated, combined, p);
    let key_hmac = check_secret(&mut s, p);
    // Without a known format nobody can say whether `time` may be left out.
    let time = check_time(&mut s, generated || format.is_none(), combined, p);
    let id = check_id(&mut s, combined, p);
    let disorder_ms = duration(&mut s, "disorder", 60_000, p);
    let idle_ms = duration(&mut s, "idle", 30_000, p);
    let drift_ms = duration(&mut s, "drift", 60_000, p);
    let far_future_ms = check_far_future(&mut s, kind.as_ref(), now_ms, p);
    if let Some(f) = s.get("dedup")
        && f.duration_ms(p).is_some_and(|ms| ms > 0)
    {
        f.wrong("`dedup` is not in this build yet".to_owned(), "leave it out, or write \"0s\"".to_owned(), p);
    }
    let fields = check_fields(&mut s, combined, p);
    s.finish(&SOURCE_ONLY, p);
    Some(Source {
        name,
        at,
        kind: kind?,
        format: format?,
        key: key?,
        key_hmac,
        time: time?,
        id: id?,
        disorder_ms,
        idle_ms,
        drift_ms,
        far_future_ms,
        fields,
    })
}

fn duration(s: &mut Section<'_>, key: &'static str, default_ms: i64, p: &mut Problems) -> i64 {
    s.get(key).and_then(|f| f.duration_ms(p)).unwrap_or(default_ms)
}

fn check_source_kind(kind: Option<&str>, s: &mut Section<'_>, p: &mut Problems) -> Option<SourceKind> {
    let Some(kind) = kind else {
        s.forgive(&SOURCE_ONLY.map(|(key, _)| key));
        return None;
    };
    match kind {
        "file" => {
            let follow_field = s.get("follow");
            let follow = follow_field.as_ref().and_then(|f| f.boolean(p)).unwrap_or(false);
            let path = s.need("path", "write `path = \"access.log\"`", p)?;
            let pattern = path.text(p)?;
            if let Err(e) = glob::Pattern::new(pattern) {
                path.wrong(format!("`{}` is not a pattern: {}", path.shown(), e.msg), None, p);
            }
            if follow && (pattern.ends_with(".gz") || pattern.ends_with(".zst")) {
                let help = "leave `follow` out, or follow the plain file".to_owned();
                path.wrong("a compressed file cannot be followed".to_owned(), help, p);
            }
            Some(SourceKind::File { pattern: pattern.to_owned(), at: path.node.at, follow })
        }
        "stdin" => Some(SourceKind::Stdin),
        "generator" => Some(SourceKind::Generator(check_generator(s, p))),
        _ => None,
    }
}

fn check_generator(s: &mut Section<'_>, p: &mut Problems) -> Generator {
    Generator {
        events: s.get("events").and_then(|f| f.count(1, p)),
        rate: s.get("rate").and_then(|f| f.positive(p)),
        users: s.get("users").and_then(|f| f.count(1, p)).unwrap_or(1000),
        seed: s.get("seed").and_then(|f| f.count(0, p)).unwrap_or(1),
        stories: s.get("stories").and_then(|f| f.boolean(p)).unwrap_or(false),
        start_ms: s.get("start").and_then(|f| instant_ms(&f, p)),
    }
}

/// A point in time: text or TOML date by RFC 3339, or milliseconds since the Unix epoch.
fn instant_ms(f: &Field<'_>, p: &mut Problems) -> Option<i64> {
    let text = match &f.node.value {
        Value::Int(ms) => return Some(*ms),
        Value::Date(date) => date.as_str(),
        _ => f.text(p)?,
    };
    match text.parse::<jiff::Timestamp>() {
        Ok(t) => Some(t.as_millisecond()),
        Err(_) => {
            let help = "write \"2026-01-31T00:00:00Z\"".to_owned();
            f.wrong(format!("`{}` is not a point in time", last(&f.path)), help, p);
            None
        }
    }
}

fn check_format(s: &mut Section<'_>, generated: bool, p: &mut Problems) -> Option<Format> {
    let field = match s.get("format") {
        None if generated => return Some(Format::Json),
        Some(f) => f,
        None => {
            return s
                .need("format", "write `format = \"json\"`, \"csv\", \"tsv\" or \"combined\"", p)
                .and(None);
        }
    };
    match field.word(&["json", "csv", "tsv", "combined"], &["avro", "protobuf"], p)? {
        "json" => Some(Format::Json),
        "csv" => Some(Format::Csv),
        "tsv" => Some(Format::Tsv),
        _ => Some(Format::Combined),
    }
    .filter(|format| {
        let fits = !generated || *format == Format::Json;
        if !fits {
            field.wrong("the generator writes JSON only".to_owned(), "leave `format` out".to_owned(), p);
        }
        fits
    })
}

/// A field of a record; of combined logs the names are known.
fn check_path(f: &Field<'_>, combined: bool, p: &mut Problems) -> Option<String> {
    let name = f.text(p)?;
    if combined && !COMBINED_FIELDS.contains(&name) {
        let help = match nearest(name, COMBINED_FIELDS) {
            Some(k) => format!("did you mean \"{k}\"?"),
            None => format!("it has {}", COMBINED_FIELDS.join(", ")),
        };
        f.wrong(format!("a combined log has no field `{}`", f.shown()), help, p);
    }
    Some(name.to_owned())
}

/// Several fields of a record; none may stand twice.
fn check_paths(f: &Field<'_>, combined: bool, p: &mut Problems) -> Option<Vec<String>> {
    let mut list: Vec<String> = Vec::new();
    for element in f.elements() {
        let name = check_path(&element, combined, p)?;
        if list.contains(&name) {
            element.wrong(format!("`{}` stands here twice", element.shown()), None, p);
        }
        list.push(name);
    }
    if list.is_empty() {
        f.wrong(format!("`{}` names no field", f.path), None, p);
        return None;
    }
    Some(list)
}

fn check_key(s: &mut Section<'_>, generated: bool, combined: bool, p: &mut Problems) -> Option<KeySpec> {
    let help = "write `key = \"user_id\"`: the field whose value names the visitor";
    let field = match s.get("key") {
        None if generated => return Some(KeySpec::One("user_id".to_owned())),
        Some(f) => f,
        None => return s.need("key", help, p).and(None),
    };
    if let Value::Table(_) = field.node.value {
        let help = "write one field \"a\", or [\"a\", \"b\"] for several together".to_owned();
        field.wrong("`{ first_of = [..] }` is not in this build yet".to_owned(), help, p);
        return None;
    }
    let mut list = check_paths(&field, combined, p)?;
    if list.len() == 1 { list.pop().map(KeySpec::One) } else { Some(KeySpec::Together(list)) }
}

fn check_secret(s: &mut Section<'_>, p: &mut Problems) -> Option<Secret> {
    let field = s.get("key_hmac")?;
    let secret = field.text(p)?;
    if !field.shown().contains("${") {
        let help = "write \"${env:CLICK_KEY}\" or \"${file:/run/secrets/click_key}\"".to_owned();
        p.warn(field.key_at, &field.path, "a secret stands in the config file itself".to_owned(), help);
    }
    Some(Secret::new(secret.to_owned()))
}

fn check_time(s: &mut Section<'_>, optional: bool, combined: bool, p: &mut Problems) -> Option<TimeSpec> {
    // As the generator writes it, and as the combined log has it.
    let default = if optional {
        TimeSpec { field: "ts".to_owned(), form: TimeForm::Unix(TimeUnit::Ms) }
    } else {
        TimeSpec { field: "time".to_owned(), form: TimeForm::Standard }
    };
    let help = "write `time = { field = \"ts\", unit = \"ms\" }`, or `{ field = \"ts\" }` for RFC 3339 text";
    let field = match s.get("time") {
        None if optional || combined => return Some(default),
        Some(f) => f,
        None => return s.need("time", help, p).and(None),
    };
    if let Value::Text { .. } = field.node.value {
        let field = check_path(&field, combined, p)?;
        return Some(TimeSpec { field, form: TimeForm::Standard });
    }
    let mut t = field.section(help, p)?;
    let path = t.need("field", "write `field = \"ts\"`", p).and_then(|f| check_path(&f, combined, p));
    let unit_field = t.get("unit");
    let unit = unit_field.as_ref().and_then(|f| f.word(&["s", "ms", "us"], &[], p));
    let format = t.get("format").and_then(|f| check_strptime(&f, p));
    let zone_field = t.get("zone");
    let zone = zone_field.as_ref().and_then(|f| check_zone(f, p));
    if let (Some(f), true) = (&unit_field, format.is_some() || zone_field.is_some()) {
        let help = "keep `unit` if the time is a number, `format` and `zone` if it is text".to_owned();
        f.wrong("`unit` is for numbers, `format` and `zone` are for text".to_owned(), help, p);
    }
    t.finish(&[], p);
    let form = match (unit, format, zone) {
        (Some("s"), ..) => TimeForm::Unix(TimeUnit::S),
        (Some("us"), ..) => TimeForm::Unix(TimeUnit::Us),
        (Some(_), ..) => TimeForm::Unix(TimeUnit::Ms),
        (None, None, None) => TimeForm::Standard,
        (None, format, zone) => TimeForm::Text { format, zone: zone.unwrap_or_else(|| "UTC".to_owned()) },
    };
    Some(TimeSpec { field: path?, form })
}

/// Formats are tried out on a fixed instant: what cannot be printed cannot be read either.
fn check_strptime(f: &Field<'_>, p: &mut Problems) -> Option<String> {
    let format = f.text(p)?;
    let sample = jiff::Timestamp::UNIX_EPOCH.to_zoned(jiff::tz::TimeZone::UTC);
    if let Err(e) = jiff::fmt::strtime::format(format, &sample) {
        let help = "as in strptime: \"%Y-%m-%d %H:%M:%S\"".to_owned();
        f.wrong(format!("`{}` is not a time format: {e}", f.shown()), help, p);
        return None;
    }
    Some(format.to_owned())
}

fn check_zone(f: &Field<'_>, p: &mut Problems) -> Option<String> {
    let zone = f.text(p)?;
    if jiff::tz::TimeZone::get(zone).is_err() {
        let help = "write an IANA name: \"UTC\", \"Europe/Berlin\"".to_owned();
        f.wrong(format!("the time zone `{}` is not known", f.shown()), help, p);
    }
    Some(zone.to_owned())
}

fn check_id(s: &mut Section<'_>, combined: bool, p: &mut Problems) -> Option<IdSpec> {
    let Some(field) = s.get("id") else { return Some(IdSpec::Position) };
    if let Value::Text { value, .. } = &field.node.value {
        match value.as_str() {
            "position" => return Some(IdSpec::Position),
            "content" => return Some(IdSpec::Content),
            _ => {}
        }
        // A slip in one of the two words would silently make it a field that no record has.
        if let Some(word) = nearest(value, ["position", "content"]) {
            let help = "a field of that name can be written as an array".to_owned();
            p.warn(
                field.node.at,
                &field.path,
                format!("is `{}` a field, or \"{word}\"?", field.shown()),
                help,
            );
        }
    }
    check_paths(&field, combined, p).map(IdSpec::Fields)
}

fn check_far_future(
    s: &mut Section<'_>,
    kind: Option<&SourceKind>,
    now_ms: i64,
    p: &mut Problems,
) -> Option<i64> {
    let field = s.get("far_future");
    let off =
        field.as_ref().is_some_and(|f| matches!(&f.node.value, Value::Text { value, .. } if value == "off"));
    if off {
        return None;
    }
    let ms = field.as_ref().and_then(|f| f.duration_ms(p)).unwrap_or(5 * 60_000);
    if let Some(SourceKind::Generator(Generator { start_ms: Some(start), .. })) = kind
        && *start > now_ms.saturating_add(ms)
    {
        let (at, path) = field.as_ref().map_or((s.at, s.path.clone()), |f| (f.node.at, f.path.clone()));
        let message = "the generator starts in the future, where every event is a dead letter".to_owned();
        p.error(at, &path, message, "write `far_future = \"off\"`".to_owned());
    }
    Some(ms)
}

fn check_fields(s: &mut Section<'_>, combined: bool, p: &mut Problems) -> BTreeMap<String, String> {
    let help = "write `[source.NAME.fields]` with lines as `referrer = \"referer\"`";
    let Some(table) = s.get("fields").and_then(|f| f.section(help, p)) else { return BTreeMap::new() };
    let path = table.path.clone();
    table
        .entries()
        .iter()
        .filter_map(|e| {
            let field = Field { node: &e.node, key_at: e.key_at, path: raw::join(&path, &e.key) };
            Some((e.key.clone(), check_path(&field, combined, p)?))
        })
        .collect()
}

fn check_pipeline(mut s: Section<'_>, names: &Names, uses: &mut Uses, p: &mut Problems) -> Option<Pipeline> {
    let name = last(&s.path).to_owned();
    let at = s.at;
    let from = check_from(&mut s, names, uses, p);
    if let Some(f) = s.get("enrich")
        && !matches!(&f.node.value, Value::Array(list) if list.is_empty())
    {
        f.wrong("enrichers are not in this build yet".to_owned(), "write `enrich = []`".to_owned(), p);
    }
    let validate = s.get("validate").map_or_else(Vec::new, |f| {
        f.elements().iter().filter_map(|e| plugin_use(e, None, names, p)).collect()
    });
    let rule = check_session(&mut s, names, p);
    let early_field = s.get("early");
    let early = early_field.as_ref().map_or(Some(Early::Epoch), |f| check_early(f, names.epoch_ms, p));
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
    config: Option<serde_json::Value>,
    names: &Names,
    p: &mut Problems,
) -> Option<PluginUse> {
    let known: Vec<String> = names.plugins.iter().map(|k| k.name.clone()).collect();
    let file = &names.plugins[resolve(f, "plugin", &known, p)?];
    Some(PluginUse {
        name: file.name.clone(),
        at: f.node.at,
        key: f.path.clone(),
        path: file.path.clone(),
        config: config.or_else(|| file.config.clone()).unwrap_or_else(|| serde_json::json!({})),
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
        outbox_bytes: 1 << 30,
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
    if let Some(bytes) = l.get("outbox_bytes").and_then(|f| at_least_mib(&f, p)) {
        limits.outbox_bytes = bytes;
    }
    l.finish(&[], p);
    limits
}

/// Less than one batch would stop the pipeline for good.
fn at_least_mib(f: &Field<'_>, p: &mut Problems) -> Option<u64> {
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

fn check_sink(mut s: Section<'_>, p: &mut Problems) -> Option<Sink> {
    let name = last(&s.path).to_owned();
    let at = s.at;
    let later = ["bigquery", "spanner", "bigtable", "postgres", "kafka", "pubsub", "http"];
    let kind = s.need("kind", "write `kind = \"sqlite\"`, \"file\" or \"stdout\"", p);
    let kind = kind.and_then(|f| f.word(&["sqlite", "file", "stdout"], &later, p));
    let mut path_at = at;
    let kind = match kind {
        Some("stdout") => Some(SinkKind::Stdout),
        Some(kind) => {
            let example = if kind == "sqlite" {
                "write `path = \"sessions.db\"`"
            } else {
                "write `path = \"out.jsonl\"`"
            };
            let path = s.need("path", example, p);
            path_at = path.as_ref().map_or(at, |f| f.node.at);
            let path = path.and_then(|f| f.text(p)).map(PathBuf::from);
            if kind == "sqlite" {
                let table = check_table(&mut s, p);
                path.map(|path| SinkKind::Sqlite { path, table })
            } else {
                path.map(|path| SinkKind::File { path })
            }
        }
        None => {
            s.forgive(&SINK_ONLY.map(|(key, _)| key));
            None
        }
    };
    s.finish(&SINK_ONLY, p);
    Some(Sink { name, at, path_at, kind: kind? })
}

fn check_table(s: &mut Section<'_>, p: &mut Problems) -> String {
    let default = "sessions".to_owned();
    let Some(f) = s.get("table") else { return default };
    let Some(table) = f.text(p) else { return default };
    let plain = table.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let reserved = table.to_lowercase().starts_with("sqlite_");
    if !plain || table.starts_with(|c: char| c.is_ascii_digit()) || reserved {
        let help = "use letters, digits and `_`, not beginning with a digit or `sqlite_`".to_owned();
        f.wrong(format!("`{}` cannot be a table", f.shown()), help, p);
    }
    table.to_owned()
}

/// One mention of a source or sink in a pipeline.
struct Use {
    index: usize,
    at: Spot,
    path: String,
    dead: bool,
}

/// All mentions, to find what can be used only once.
#[derive(Default)]
struct Uses {
    sources: Vec<Use>,
    sinks: Vec<Use>,
}

impl Uses {
    fn check(&self, sources: &[Option<Source>], sinks: &[Option<Sink>], p: &mut Problems) {
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
                p.error(u.at, &u.path, message, "use a sink of kind = \"file\" or \"stdout\"".to_owned());
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

/// Warns of sources and sinks that no pipeline uses.
fn unused(names: &Names, uses: &Uses, sources: &[Option<Source>], sinks: &[Option<Sink>], p: &mut Problems) {
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
}

/// Two sinks on one file would overwrite each other; two tables in one database are fine.
fn check_one_file(sinks: &[Option<Sink>], p: &mut Problems) {
    let sinks: Vec<&Sink> = sinks.iter().flatten().collect();
    for (n, sink) in sinks.iter().enumerate() {
        let clash = sinks[..n].iter().find(|first| match (&first.kind, &sink.kind) {
            (SinkKind::Sqlite { path: a, table: s }, SinkKind::Sqlite { path: b, table: t }) => {
                same_file(a, b) && s.eq_ignore_ascii_case(t)
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

impl Plan {
    /// What can be known about the world without running: inputs that are missing or unreadable,
    /// directories that cannot be written. Errors and warnings, with the lines that name them.
    pub(crate) fn probe(&self) -> Problems {
        let mut problems = Problems::new(self.warnings.document().clone());
        let p = &mut problems;
        let dir = &self.server.data_dir;
        probe_directory(dir, true, self.server.data_dir_at, "server.data_dir", p);
        for source in &self.sources {
            if let SourceKind::File { pattern, at, .. } = &source.kind {
                probe_pattern(pattern, *at, &format!("source.{}.path", source.name), p);
            }
        }
        for sink in &self.sinks {
            if let Some(path) = sink.kind.path() {
                probe_output(path, sink.path_at, &format!("sink.{}.path", sink.name), p);
            }
        }
        problems.sort();
        problems
    }
}

/// A directory that must be writable; with `create`, or be made in the nearest one that exists.
fn probe_directory(dir: &Path, create: bool, at: Spot, key: &str, p: &mut Problems) {
    let mut existing = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    while create && !existing.exists() {
        existing = match existing.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
    }
    let shown = existing.display();
    if !existing.exists() {
        let help = format!("`mkdir -p {shown}`");
        p.error(at, key, format!("the directory `{shown}` does not exist"), help);
    } else if !existing.is_dir() {
        p.error(at, key, format!("`{shown}` is not a directory"), None);
    } else if let Err(e) = rustix::fs::access(existing, rustix::fs::Access::WRITE_OK) {
        p.error(at, key, format!("the directory `{shown}` cannot be written: {e}"), None);
    }
}

fn probe_output(path: &Path, at: Spot, key: &str, p: &mut Problems) {
    let shown = path.display();
    if path.is_dir() {
        p.error(at, key, format!("`{shown}` is a directory, not a file"), None);
        return;
    }
    probe_directory(path.parent().unwrap_or(Path::new("")), false, at, key, p);
    if path.exists()
        && let Err(e) = rustix::fs::access(path, rustix::fs::Access::WRITE_OK)
    {
        p.error(at, key, format!("`{shown}` cannot be written: {e}"), None);
    }
}

fn probe_pattern(pattern: &str, at: Spot, key: &str, p: &mut Problems) {
    let Ok(found) = glob::glob(pattern) else { return };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in found {
        match entry {
            Ok(path) if path.is_dir() => {}
            Ok(path) => files.push(path),
            Err(e) => {
                p.error(at, key, format!("`{}` cannot be listed: {}", e.path().display(), e.error()), None);
            }
        }
    }
    if files.is_empty() {
        let glob = pattern.contains(['*', '?', '[']);
        let message =
            if glob { format!("no file matches `{pattern}`") } else { format!("`{pattern}` does not exist") };
        p.error(at, key, message, similar_file(pattern));
    }
    for path in &files {
        if let Err(e) = std::fs::File::open(path) {
            p.error(at, key, format!("`{}` cannot be read: {e}", path.display()), None);
        }
        let plain = path.with_extension("");
        let packed = path.extension().is_some_and(|e| e == "gz" || e == "zst");
        if packed && files.contains(&plain) {
            let message =
                format!("`{}` and `{}` both match: are they copies?", plain.display(), path.display());
            p.warn(at, key, message, "copies would be counted twice; narrow the pattern".to_owned());
        }
    }
}

/// A file beside the missing one with nearly its name, or where relative paths begin.
fn similar_file(pattern: &str) -> Option<String> {
    let path = Path::new(pattern);
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let names: Vec<String> =
        std::fs::read_dir(dir).ok()?.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    let near = nearest(path.file_name()?.to_str()?, names.iter().map(String::as_str));
    match near {
        Some(name) => Some(format!("did you mean \"{}\"?", path.with_file_name(name).display())),
        None if path.is_relative() => {
            let here = std::env::current_dir().ok()?;
            Some(format!("relative paths begin at the current directory, {}", here.display()))
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_750_000_000_000;

    /// The file of DESIGN 8, as it stands there.
    const DESIGN: &str = r#"
[server]
listen   = "127.0.0.1:7300"          # admin API, status page, /metrics; beyond loopback only with [server.tls] or insecure = true
data_dir = "./.tidemill"             # epoch segments, plugins, ingest log
epoch    = "1s"

[source.web]
kind     = "file"                    # file | stdin | http | generator | kafka | pubsub
path     = "access.log.gz"           # plain, .gz or .zst; a glob takes several, each a partition; follow = true for growing logs
format   = "combined"                # json | csv | tsv | combined | avro | protobuf | ...
key      = "host"                    # "a" | ["a", "b"] (together) | { first_of = ["a", "b"] }
time     = { field = "time" }        # unit = "s" | "ms" | "us" for numbers; format and zone = "UTC" for text
id       = "position"
disorder = "60s"

[source.web.fields]                  # field a plugin asks for = where it is in this source (column or JSON pointer)
referrer = "referer"

[pipeline.visits]
from     = ["web"]
validate = []                        # plugin names, in order
session  = { plugin = "builtin:gap", config = { gap = "30m", boundary = "exclusive" } }
enrich   = []
early    = "epoch"                   # or { every = "5s" }, or "off"
lateness = "0s"
retain   = "lateness"
to       = ["sessions"]              # or { sink = "live", stages = ["early"] }
dead     = "dead"

[sink.sessions]
kind  = "sqlite"                     # the embedded default
path  = "sessions.db"
table = "sessions"

[sink.dead]
kind = "file"
path = "dead.jsonl"
"#;

    /// A source, a pipeline and a sink that are right; tests replace one line.
    const SMALL: &str = r#"[source.web]
kind = "stdin"
format = "json"
key = "user"
time = { field = "ts", unit = "ms" }
[pipeline.visits]
from = ["web"]
session = { plugin = "builtin:gap", config = { gap = "30m" } }
to = ["out"]
[sink.out]
kind = "file"
path = "out.jsonl"
"#;

    fn parsed(text: &str) -> Result<Plan, Problems> {
        let env = |name: &str| (name == "SECRET").then(|| "hunter2".to_owned());
        parse_with(text, Path::new("t.toml"), NOW_MS, &env)
    }

    /// One finding a line: `line:column key: message (help)`, warnings marked.
    fn listed(problems: &Problems) -> String {
        let mut out = String::new();
        for f in problems.to_json().as_array().unwrap() {
            let word = if f["severity"] == "warning" { "warning: " } else { "" };
            let place = f["line"].as_u64().map_or(String::new(), |l| format!("{l}:{} ", f["column"]));
            let (key, message) = (f["key"].as_str().unwrap(), f["message"].as_str().unwrap());
            let help = f["help"].as_str().map_or(String::new(), |h| format!(" ({h})"));
            out.push_str(&format!("{word}{place}{key}: {message}{help}\n"));
        }
        out
    }

    /// `SMALL` with `line` (an exact line of it) replaced must give exactly these findings.
    #[track_caller]
    fn check(line: &str, by: &str, want: &str) {
        assert!(SMALL.contains(&format!("{line}\n")), "no such line: {line}");
        let found = match parsed(&SMALL.replacen(&format!("{line}\n"), &format!("{by}\n"), 1)) {
            Ok(plan) => listed(&plan.warnings),
            Err(problems) => listed(&problems),
        };
        let want: String = want.lines().map(|l| format!("{}\n", l.trim())).collect();
        assert_eq!(found, want, "{by}");
    }

    #[test]
    fn the_file_of_the_design_parses_as_it_stands() {
        let plan = parsed(DESIGN).unwrap();
        assert!(plan.warnings.is_empty());
        assert_eq!(plan.server.epoch_ms, 1000);
        let (source, pipeline) = (&plan.sources[0], &plan.pipelines[0]);
        assert!(
            matches!(&source.kind, SourceKind::File { pattern, follow: false, .. } if pattern == "access.log.gz")
        );
        assert_eq!(source.key, KeySpec::One("host".to_owned()));
        assert_eq!(source.far_future_ms, Some(300_000));
        assert_eq!(source.path_of("referrer"), "referer");
        assert!(matches!(&pipeline.rule, Rule::Gap(r) if (r.gap_ms, r.inclusive) == (1_800_000, false)));
        assert_eq!(pipeline.to, [Target { sink: 0, stages: Stages::ALL }]);
        assert_eq!((pipeline.dead, pipeline.early), (Some(1), Early::Epoch));
        assert_eq!(plan.sinks[1].kind, SinkKind::File { path: "dead.jsonl".into() });
    }

    #[test]
    fn all_the_keys() {
        let plan = parsed(
            r#"
            [server]
            listen = "0.0.0.0:80"
            insecure = true
            epoch = "2s"
            [source.made]
            kind = "generator"
            events = 10
            rate = 2.5
            users = 3
            seed = 4
            stories = true
            start = 2025-01-01T00:00:00Z
            far_future = "off"
            id = ["a", "b"]
            key = ["a", "b"]
            key_hmac = "${env:SECRET}"
            [source.text]
            kind = "file"
            path = "*.csv"
            follow = true
            format = "csv"
            key = "k"
            time = { field = "t", format = "%Y-%m-%d %H:%M:%S", zone = "Europe/Berlin" }
            id = "eid"
            [pipeline.a]
            from = ["made", "text"]
            early = { every = "5s" }
            lateness = "1h"
            end_of_input = "hold"
            to = [{ sink = "db", stages = ["final", "corrected"] }, "screen"]
            dead = "screen"
            limits = { events_per_key = 5, suffix_bytes = "1MiB", outbox_bytes = "2MB" }
            [pipeline.a.session]
            plugin = "builtin:gap"
            config = { gap = "5m", boundary = "inclusive", max = "4h", start = { field = "type", in = ["login"] } }
            [sink.db]
            kind = "sqlite"
            path = "x.db"
            [sink.screen]
            kind = "stdout"
            "#,
        )
        .unwrap_or_else(|p| panic!("{}", p.render(false)));
        let made = Generator {
            events: Some(10),
            rate: Some(2.5),
            users: 3,
            seed: 4,
            stories: true,
            start_ms: Some(1_735_689_600_000),
        };
        assert_eq!(plan.sources[0].kind, SourceKind::Generator(made));
        assert_eq!(plan.sources[0].far_future_ms, None);
        assert_eq!(plan.sources[1].id, IdSpec::Fields(vec!["eid".to_owned()]));
        assert_eq!(plan.pipelines[0].early, Early::Every(6000), "rounded up to whole epochs");
        assert_eq!(plan.pipelines[0].to[0].stages, Stages::of(&[Stage::Final, Stage::Corrected]));
        assert_eq!(plan.pipelines[0].limits.outbox_bytes, 2_000_000);
        assert_eq!(plan.sources[0].key_hmac.as_ref().unwrap().reveal(), "hunter2");
        assert!(!format!("{plan:?}").contains("hunter2"));
    }

    #[test]
    fn several_problems_are_reported_at_once_with_their_lines() {
        let text =
            SMALL.replace("format", "fromat").replace("[\"out\"]", "[\"uot\"]").replace("30m", "30 min");
        let want = r#"error: `source.web.format` is missing
 --> t.toml:1:9
  |
1 | [source.web]
  |         ^^^
  |
  = help: write `format = "json"`, "csv", "tsv" or "combined"

error: unknown key `source.web.fromat`
 --> t.toml:3:1
  |
3 | fromat = "json"
  | ^^^^^^
  |
  = help: did you mean `format`?

error: `30 min` is not a duration
 --> t.toml:8:54
  |
8 | session = { plugin = "builtin:gap", config = { gap = "30 min" } }
  |                                                      ^^^^^^^^
  |
  = help: write `m` instead of `min`

error: there is no sink `uot`
 --> t.toml:9:7
  |
9 | to = ["uot"]
  |       ^^^^^
  |
  = help: did you mean "out"?

warning: no pipeline writes to the sink `out`
  --> t.toml:10:7
   |
10 | [sink.out]
   |       ^^^
"#;
        let problems = parsed(&text).unwrap_err();
        assert_eq!(problems.render(false), want);
        assert!(problems.render(true).contains('\u{1b}') && !problems.render(false).contains('\u{1b}'));
    }

    #[test]
    fn wrong_sources() {
        check(
            r#"kind = "stdin""#,
            r#"kind = "kafka""#,
            "2:8 source.web.kind: `kafka` is not in this build yet (this build has `file`, `stdin` or `generator`)",
        );
        check(
            r#"kind = "stdin""#,
            "kind = 5",
            "2:8 source.web.kind: `source.web.kind` must be a string, not a whole number (write \"5\")",
        );
        check(
            r#"kind = "stdin""#,
            r#"kind = "file""#,
            "1:9 source.web.path: `source.web.path` is missing (write `path = \"access.log\"`)",
        );
        check(
            r#"format = "json""#,
            r#"format = "avro""#,
            "3:10 source.web.format: `avro` is not in this build yet (this build has `json`, `csv`, `tsv` or `combined`)",
        );
        check(
            r#"key = "user""#,
            r#"key = { first_of = ["a"] }"#,
            "4:7 source.web.key: `{ first_of = [..] }` is not in this build yet (write one field \"a\", or [\"a\", \"b\"] for several together)",
        );
        check(r#"key = "user""#, r#"key = ["a", "a"]"#, "4:13 source.web.key: `a` stands here twice");
        check(
            r#"key = "user""#,
            "key = \"user\"\nid = \"postion\"",
            "warning: 5:6 source.web.id: is `postion` a field, or \"position\"? (a field of that name can be written as an array)",
        );
        check(
            r#"time = { field = "ts", unit = "ms" }"#,
            r#"time = { field = "ts", unit = "ms", zone = "UTC" }"#,
            "5:31 source.web.time.unit: `unit` is for numbers, `format` and `zone` are for text (keep `unit` if the time is a number, `format` and `zone` if it is text)",
        );
        check(
            r#"time = { field = "ts", unit = "ms" }"#,
            r#"time = { field = "ts", zone = "Mars" }"#,
            "5:31 source.web.time.zone: the time zone `Mars` is not known (write an IANA name: \"UTC\", \"Europe/Berlin\")",
        );
        check(
            r#"key = "user""#,
            "key = \"user\"\ndisorder = 60",
            "5:12 source.web.disorder: `source.web.disorder` must be a duration, not a whole number (write \"60s\" for seconds, \"60ms\" for milliseconds)",
        );
        check(
            r#"kind = "stdin""#,
            "kind = \"generator\"\nstart = 2099-01-01T00:00:00Z",
            "1:9 source.web: the generator starts in the future, where every event is a dead letter (write `far_future = \"off\"`)",
        );
        check(
            r#"kind = "stdin""#,
            "kind = \"file\"\npath = \"a.gz\"\nfollow = true",
            "3:8 source.web.path: a compressed file cannot be followed (leave `follow` out, or follow the plain file)",
        );
    }

    #[test]
    fn wrong_pipelines() {
        let session = r#"session = { plugin = "builtin:gap", config = { gap = "30m" } }"#;
        check(
            r#"from = ["web"]"#,
            r#"from = ["web"]
            validate = ["v"]"#,
            "8:24 pipeline.visits.validate: validators are not in this build yet (write `validate = []`)",
        );
        check(
            session,
            r#"session = { plugin = "gap", config = {} }"#,
            "8:22 pipeline.visits.session.plugin: there is no plugin `gap` (did you mean \"builtin:gap\"?)",
        );
        check(
            session,
            r#"session = { plugin = "builtin:gap", config = {} }"#,
            "8:37 pipeline.visits.session.config.gap: `pipeline.visits.session.config.gap` is missing (write `gap = \"30m\"`)",
        );
        check(
            r#"to = ["out"]"#,
            "to = [\"out\"]\ndead = \"out\"",
            "10:8 pipeline.visits.dead: the file sink `out` is used twice (`pipeline.visits.to` writes to it already; give each its own)",
        );
        check(
            r#"to = ["out"]"#,
            "to = [\"out\", \"out\"]",
            "9:14 pipeline.visits.to: this sink stands here twice (write it once, with all its `stages`)",
        );
        check(
            r#"to = ["out"]"#,
            "to = { sink = \"out\", stages = [\"early\"] }\nearly = \"off\"",
            "9:31 pipeline.visits.to.stages: only early revisions are wanted here, and `early` is off (write `early = \"epoch\"`, or other stages)",
        );
        check(
            r#"to = ["out"]"#,
            "to = [\"out\"]\nlimits = { suffix_bytes = 64 }",
            "10:27 pipeline.visits.limits.suffix_bytes: `pipeline.visits.limits.suffix_bytes` must be a size, not a whole number (write \"64B\" for bytes, \"64MiB\" for mebibytes)",
        );
        check(r#"path = "out.jsonl""#, "path = \"out.jsonl\"\n[pipeline.b]\nfrom = \"web\"\nto = \"out\"\nsession.plugin = \"builtin:gap\"\nsession.config.gap = \"1m\"",
            "14:8 pipeline.b.from: standard input can be read only once (`pipeline.visits.from` reads it already)
             15:6 pipeline.b.to: the file sink `out` is used twice (`pipeline.visits.to` writes to it already; give each its own)");
    }

    #[test]
    fn wrong_sinks_and_server() {
        check(
            r#"path = "out.jsonl""#,
            "path = \"out.jsonl\"\ntable = \"t\"",
            "13:1 sink.out.table: `table` means nothing here: only kind = \"sqlite\" has it",
        );
        check(
            r#"path = "out.jsonl""#,
            "path = \"out.jsonl\"\n[sink.b]\nkind = \"file\"\npath = \"./out.jsonl\"",
            "warning: 13:7 sink.b: no pipeline writes to the sink `b`
             15:8 sink.b.path: the sinks `out` and `b` write to the same place (give each its own)",
        );
        check(
            r#"path = "out.jsonl""#,
            "path = \"${env:NOPE}\"",
            "12:8 sink.out.path: the environment variable `NOPE` is not set (set it before the start: `export NOPE=...`)",
        );
        check("[source.web]", "[server]\nepoch = \"5ms\"\nlisten = \"0.0.0.0:1\"\n[source.web]",
            "2:9 server.epoch: `server.epoch` must lie between 10ms and 60s (\"1s\" is usual)
             3:10 server.listen: `0.0.0.0:1` is beyond loopback, and there is no TLS in this build (write \"127.0.0.1:1\", or `insecure = true` if the network is yours alone)");
        check(
            "[source.web]",
            "[plugin.mine]\npath = \"x.wasm\"\n[source.web]",
            "1:9 plugin.mine: plugins from files are not in this build yet (use `session = { plugin = \"builtin:gap\", .. }`)",
        );
    }

    #[test]
    fn no_toml_no_pipeline_no_file() {
        assert_eq!(
            listed(&parsed("").unwrap_err()),
            ": there is no pipeline (write a [pipeline.visits] with `from`, `session` and `to`)\n"
        );
        assert!(listed(&parsed("a = = 1\n").unwrap_err()).starts_with("1:5 : not valid TOML: "));
        let missing = load(Path::new("/nowhere.toml")).unwrap_err();
        assert!(
            missing.render(false).contains("`/nowhere.toml` cannot be read"),
            "{}",
            missing.render(false)
        );
    }

    #[test]
    fn secrets_are_never_shown() {
        for value in ["\"hunter2\"", "'''\nhunter2'''", "\"hunter2", "\"${env:SECRET}\""] {
            let text = SMALL.replace("key = \"user\"", &format!("key = \"user\"\nkey_hmac = {value}"));
            let shown = match parsed(&text) {
                Ok(plan) => format!("{plan:?}{}", plan.warnings.render(false)),
                Err(p) => format!("{p:?}{}{}", p.render(false), p.to_json()),
            };
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn the_probe_finds_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        for name in ["a.log", "a.log.gz"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let with = |pattern: &str| {
            let source = format!("kind = \"file\"\npath = \"{root}/{pattern}\"");
            let text = SMALL
                .replace("kind = \"stdin\"", &source)
                .replace("out.jsonl", &format!("{root}/no/out.jsonl"));
            listed(&parsed(&text).unwrap().probe()).replace(&root.to_string(), "ROOT")
        };
        let sink = "13:8 sink.out.path: the directory `ROOT/no` does not exist (`mkdir -p ROOT/no`)\n";
        let copies = "warning: 3:8 source.web.path: `ROOT/a.log` and `ROOT/a.log.gz` both match: are they copies? (copies would be counted twice; narrow the pattern)\n";
        assert_eq!(with("*"), format!("{copies}{sink}"));
        assert_eq!(with("a.log"), sink);
        assert_eq!(
            with("b.log"),
            format!(
                "3:8 source.web.path: `ROOT/b.log` does not exist (did you mean \"ROOT/a.log\"?)\n{sink}"
            )
        );
        assert_eq!(with("*.csv"), format!("3:8 source.web.path: no file matches `ROOT/*.csv`\n{sink}"));
    }

    /// What the store would say about going from `SMALL` to `SMALL` with one line replaced.
    fn changes(line: &str, by: &str) -> Vec<(String, ChangeKind)> {
        let print = |text: &str| {
            let plan = parsed(text).unwrap_or_else(|p| panic!("{}", p.render(false)));
            fingerprint(&plan.pipelines[0], &plan)
        };
        let found = compare(&print(SMALL), &print(&SMALL.replacen(line, by, 1)));
        assert!(found.iter().all(|c| !c.message.contains("hunter2")));
        found.into_iter().map(|c| (c.what, c.kind)).collect()
    }

    #[test]
    fn changes_are_named_by_what_they_mean() {
        use ChangeKind::{Free, Refused, Swap};
        type Line<'a> = (&'a str, &'a str, &'a [(&'a str, ChangeKind)]);
        let table: [Line<'_>; 9] = [
            ("", "", &[]),
            ("\"user\"", "\"visitor\"", &[("source.web.key", Refused)]),
            ("key = \"user\"", "key = \"user\"\nid = \"eid\"", &[("source.web.id", Refused)]),
            ("\"stdin\"", "\"file\"\npath = \"a\"", &[("source.web.kind", Refused)]),
            (
                "key = \"user\"",
                "key = \"user\"\nkey_hmac = \"${env:SECRET}\"",
                &[("source.web.key_hmac", Refused)],
            ),
            ("30m", "40m", &[("pipeline.visits.session.gap", Swap)]),
            (
                "to =",
                "lateness = \"1h\"\nearly = \"off\"\nto =",
                &[("pipeline.visits.lateness", Free), ("pipeline.visits.early", Free)],
            ),
            ("\"out.jsonl\"", "\"new.jsonl\"", &[("sink.out", Free)]),
            ("to =", "limits.events_per_key = 5\nto =", &[("pipeline.visits.limits.events_per_key", Free)]),
        ];
        for (line, by, want) in table {
            let want: Vec<(String, ChangeKind)> = want.iter().map(|(w, k)| ((*w).to_owned(), *k)).collect();
            assert_eq!(changes(line, by), want, "{by}");
        }
    }
}
