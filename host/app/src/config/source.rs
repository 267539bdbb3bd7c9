//! `[source.NAME]`: where records come from, and what in them is key, time and id.

use super::diagnose::{Problems, nearest};
use super::listener::{address, check_plain};
use super::pipeline::at_least_mib;
use super::plan::{
    Format, Generator, Http, IdSpec, KeySpec, Secret, Server, Source, SourceKind, TimeForm, TimeSpec,
    TimeUnit,
};
use super::raw::{self, Field, Section, Value};
use super::schema::{self, SCHEMA_ONLY, Schema};
use super::{duration, kafka, last, pubsub};
use std::collections::BTreeMap;

/// Where client libraries put an event's id; without either it is the record's position.
const POSTED_IDS: [&str; 2] = ["messageId", "event_id"];
/// How long after an event is folded a copy of it is still told from a late event, where clients send again.
const DEDUP_MS: i64 = 10 * 60_000;
/// What a pipeline that stands still may leave unread of what is posted: an hour of a megabyte a second.
const BACKLOG_BYTES: u64 = 4 << 30;
/// A write key must not be guessed: 16 hex digits are 64 bits.
const WRITE_KEY_BYTES_MIN: usize = 16;
/// What a line of the combined log format has.
const COMBINED_FIELDS: [&str; 11] =
    ["host", "ident", "user", "time", "method", "url", "protocol", "status", "bytes", "referer", "agent"];
/// Keys that only some kinds of source have.
const SOURCE_ONLY: [(&str, &str); 26] = [
    ("path", "only kind = \"file\" has it"),
    ("follow", "only kind = \"file\" has it"),
    ("events", "only kind = \"generator\" has it"),
    ("rate", "only kind = \"generator\" has it"),
    ("users", "only kind = \"generator\" has it"),
    ("seed", "only kind = \"generator\" has it"),
    ("stories", "only kind = \"generator\" has it"),
    ("start", "only kind = \"generator\" and \"kafka\" have it"),
    ("listen", "only kind = \"http\" has it"),
    ("write_keys", "only kind = \"http\" has it"),
    ("cors", "only kind = \"http\" has it"),
    ("backlog_bytes", "only kind = \"http\" and \"pubsub\" have it"),
    ("brokers", "only kind = \"kafka\" has it"),
    ("topics", "only kind = \"kafka\" has it"),
    ("group", "only kind = \"kafka\" has it"),
    ("tls", "only kind = \"kafka\" has it"),
    ("login", "only kind = \"kafka\" has it"),
    ("timeout", "only kind = \"kafka\" and \"pubsub\" have it"),
    ("columns", "only kind = \"kafka\" has it"),
    ("project", "only kind = \"pubsub\" has it"),
    ("subscription", "only kind = \"pubsub\" has it"),
    ("endpoint", "only kind = \"pubsub\" has it"),
    ("credentials", "only kind = \"pubsub\" has it"),
    ("outstanding_messages", "only kind = \"pubsub\" has it"),
    ("outstanding_bytes", "only kind = \"pubsub\" has it"),
    ("lease", "only kind = \"pubsub\" has it"),
];

pub(super) fn check_source(
    mut s: Section<'_>,
    now_ms: i64,
    server: &Server,
    p: &mut Problems,
) -> Option<Source> {
    let name = last(&s.path).to_owned();
    let at = s.at;
    let kind = s.need(
        "kind",
        "write `kind = \"file\"`, \"stdin\", \"http\", \"kafka\", \"pubsub\" or \"generator\"",
        p,
    );
    let word = kind
        .as_ref()
        .and_then(|f| f.word(&["file", "stdin", "http", "generator", "kafka", "pubsub"], &[], p));
    let word = word.filter(|w| !kind.as_ref().is_some_and(|f| super::is_missing(w, f, p)));
    let kind = check_source_kind(word, &mut s, server, p);
    let generated = matches!(kind, Some(SourceKind::Generator(_)));
    let pulled = matches!(kind, Some(SourceKind::PubSub(_)));
    let posted = pulled || matches!(kind, Some(SourceKind::Http(_)));
    let format = check_format(&mut s, generated, posted, p);
    let schema = schema::check(&mut s, format, p);
    check_kind_of_schema(&s, kind.as_ref(), schema.as_ref(), p);
    check_columns(&s, kind.as_ref(), format, p);
    let combined = format == Some(Format::Combined);
    let key = check_key(&mut s, generated, combined, p);
    let key_hmac = check_secret(&mut s, p);
    // Without a known format nobody can say whether `time` may be left out.
    let time = check_time(&mut s, generated || format.is_none(), combined, p);
    let id = check_id(&mut s, (posted, pulled), combined, p);
    let disorder_ms = duration(&mut s, "disorder", 60_000, p);
    let idle_ms = duration(&mut s, "idle", 30_000, p);
    let drift_ms = duration(&mut s, "drift", 60_000, p);
    let far_future_ms = check_far_future(&mut s, kind.as_ref(), now_ms, p);
    let dedup_ms = duration(&mut s, "dedup", if posted { DEDUP_MS } else { 0 }, p);
    let fields = check_fields(&mut s, combined, p);
    s.finish(&[&SOURCE_ONLY[..], &SCHEMA_ONLY].concat(), p);
    Some(Source {
        name,
        at,
        kind: kind?,
        format: format?,
        schema: schema?,
        key: key?,
        key_hmac,
        time: time?,
        id: id?,
        disorder_ms,
        idle_ms,
        drift_ms,
        far_future_ms,
        dedup_ms,
        fields,
    })
}

fn check_source_kind(
    kind: Option<&str>,
    s: &mut Section<'_>,
    server: &Server,
    p: &mut Problems,
) -> Option<SourceKind> {
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
        "http" => check_http(s, server, p).map(SourceKind::Http),
        "generator" => Some(SourceKind::Generator(check_generator(s, p))),
        "kafka" => kafka::check_source(s, p).map(SourceKind::Kafka),
        "pubsub" => pubsub::check_source(s, BACKLOG_BYTES, p).map(SourceKind::PubSub),
        _ => None,
    }
}

fn check_http(s: &mut Section<'_>, server: &Server, p: &mut Problems) -> Option<Http> {
    let listen = s.need("listen", "write `listen = \"127.0.0.1:7301\"`", p);
    let write_keys = s.get("write_keys").map_or_else(Vec::new, |f| {
        f.elements().iter().filter_map(|e| check_write_key(e, p)).collect::<Vec<_>>()
    });
    let cors = s.get("cors").map_or_else(Vec::new, |f| {
        f.elements().iter().filter_map(|e| check_origin(e, p)).collect::<Vec<_>>()
    });
    let backlog_bytes = s.get("backlog_bytes").and_then(|f| at_least_mib(&f, p)).unwrap_or(BACKLOG_BYTES);
    let listen = listen?;
    let loopback = address(&listen, p)?;
    if !loopback && write_keys.is_empty() {
        let help = "write `write_keys = [\"${env:WEB_WRITE_KEY}\"]`, or listen on 127.0.0.1".to_owned();
        listen.wrong("beyond loopback anybody could write".to_owned(), help, p);
    } else {
        check_plain(&listen, loopback, server, p);
    }
    Some(Http { listen: listen.text(p)?.to_owned(), at: listen.node.at, write_keys, cors, backlog_bytes })
}

fn check_write_key(f: &Field<'_>, p: &mut Problems) -> Option<Secret> {
    let key = f.text(p)?;
    if key.len() < WRITE_KEY_BYTES_MIN {
        let help = "`openssl rand -hex 16` makes one".to_owned();
        f.wrong(format!("a write key has at least {WRITE_KEY_BYTES_MIN} characters"), help, p);
    }
    if !f.shown().contains("${") {
        let help = "write \"${env:WEB_WRITE_KEY}\"".to_owned();
        p.warn(f.node.at, &f.path, "a secret stands in the config file itself".to_owned(), help);
    }
    Some(Secret::new(key.to_owned()))
}

fn check_origin(f: &Field<'_>, p: &mut Problems) -> Option<String> {
    let origin = f.text(p)?;
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    if origin != "*" && !host.is_some_and(|h| !h.is_empty() && !h.contains(['/', '?', '#'])) {
        let help = "write \"https://shop.example\", without a path".to_owned();
        f.wrong(format!("`{}` is not the origin of a page", f.shown()), help, p);
    }
    Some(origin.to_owned())
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
pub(super) fn instant_ms(f: &Field<'_>, p: &mut Problems) -> Option<i64> {
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

fn check_format(s: &mut Section<'_>, generated: bool, posted: bool, p: &mut Problems) -> Option<Format> {
    let field = match s.get("format") {
        None if generated || posted => return Some(Format::Json),
        Some(f) => f,
        None => {
            return s
                .need(
                    "format",
                    "write `format = \"json\"`, \"csv\", \"tsv\", \"combined\", \"avro\" or \"protobuf\"",
                    p,
                )
                .and(None);
        }
    };
    match field.word(&["json", "csv", "tsv", "combined", "avro", "protobuf"], &[], p)? {
        "json" => Some(Format::Json),
        "csv" => Some(Format::Csv),
        "tsv" => Some(Format::Tsv),
        "avro" => Some(Format::Avro),
        "protobuf" => Some(Format::Protobuf),
        _ => Some(Format::Combined),
    }
    .filter(|format| {
        let fits = !(generated || posted) || *format == Format::Json;
        if !fits {
            let what =
                if posted { "what is posted or pulled is JSON" } else { "the generator writes JSON only" };
            field.wrong(what.to_owned(), "leave `format` out".to_owned(), p);
        }
        fits
    })
}

/// Where records are no lines, their bytes must say where they end.
fn check_kind_of_schema(
    s: &Section<'_>,
    kind: Option<&SourceKind>,
    schema: Option<&Schema>,
    p: &mut Problems,
) {
    let key = raw::join(&s.path, "format");
    match (kind, schema) {
        (_, None | Some(Schema::None)) | (None, _) => {}
        (Some(SourceKind::File { follow: true, .. }), Some(schema)) if schema.in_files() => {
            let help = "leave `follow` out".to_owned();
            p.error(s.at, &key, "container files of Avro cannot be followed".to_owned(), help);
        }
        (Some(SourceKind::Kafka(_)), Some(schema)) if schema.in_files() => {
            let help =
                "write `registry = \"http://registry:8081\"`, or `schemas` for a folder of them".to_owned();
            p.error(
                s.at,
                &key,
                "records of a topic name their schemas, and nothing says where those are".to_owned(),
                help,
            );
        }
        (Some(SourceKind::File { .. } | SourceKind::Kafka(_)), _) => {}
        (Some(other), _) => {
            let message =
                format!("records with a schema come in files and topics, not by kind = \"{}\"", other.name());
            p.error(s.at, &key, message, None);
        }
    }
}

/// Formats with a header have none where each record comes by itself.
fn check_columns(s: &Section<'_>, kind: Option<&SourceKind>, format: Option<Format>, p: &mut Problems) {
    let (Some(SourceKind::Kafka(topics)), Some(format)) = (kind, format) else { return };
    let key = raw::join(&s.path, "columns");
    match (format, &topics.columns) {
        (Format::Csv | Format::Tsv, None) => {
            let help = "write `columns = [\"user\", \"ts\"]`: what a header would say".to_owned();
            p.error(s.at, &key, "records of a topic have no header".to_owned(), help);
        }
        (Format::Csv | Format::Tsv, Some(_)) | (_, None) => {}
        (other, Some(_)) => {
            let message = format!("`columns` means nothing with format = \"{}\"", other.name());
            p.error(s.at, &key, message, "leave it out".to_owned());
        }
    }
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
        let help =
            "write one field \"a\", [\"a\", \"b\"] for several together, or { first_of = [\"a\", \"b\"] }";
        let mut table = field.section(help, p)?;
        let first_of = table.need("first_of", help, p).and_then(|f| check_paths(&f, combined, p));
        table.finish(&[], p);
        return first_of.map(KeySpec::FirstOf);
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

fn check_id(
    s: &mut Section<'_>,
    (posted, pulled): (bool, bool),
    combined: bool,
    p: &mut Problems,
) -> Option<IdSpec> {
    let Some(field) = s.get("id") else {
        let given = || {
            // What the publisher says of an event counts more than what the service says of a message.
            let names = POSTED_IDS.into_iter().chain(pulled.then_some(pubsub::ID_FIELD));
            names.map(str::to_owned).collect()
        };
        return Some(if posted { IdSpec::FirstOf(given()) } else { IdSpec::Position });
    };
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
