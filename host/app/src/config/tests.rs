//! What a config file says, and what is said of a wrong one.

use super::plan::Generator;
use super::*;
use tidemill_engine::outbox::{Stage, Stages};

pub(super) const NOW_MS: i64 = 1_750_000_000_000;

/// The file of DESIGN 8, as it stands there.
pub(super) const DESIGN: &str = r#"
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
pub(super) const SMALL: &str = r#"[source.web]
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
            limits = { events_per_key = 5, suffix_bytes = "1MiB", open_sessions = 9, outbox_bytes = "2MB", faults = 3, overdue = "1s", overdue_window = "5s" }
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
    assert_eq!(plan.pipelines[0].limits.open_sessions, 9);
    let faults = plan.pipelines[0].limits.faults;
    assert_eq!((faults.faults, faults.overdue.as_secs(), faults.overdue_window.as_secs()), (3, 1, 5));
    assert_eq!(plan.sources[0].key_hmac.as_ref().unwrap().reveal(), "hunter2");
    assert!(!format!("{plan:?}").contains("hunter2"));
}

#[test]
fn several_problems_are_reported_at_once_with_their_lines() {
    let text = SMALL.replace("format", "fromat").replace("[\"out\"]", "[\"uot\"]").replace("30m", "30 min");
    let want = r#"error: `source.web.format` is missing
 --> t.toml:1:9
  |
1 | [source.web]
  |         ^^^
  |
  = help: write `format = "json"`, "csv", "tsv", "combined", "avro" or "protobuf"

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
        r#"format = "avor""#,
        "3:10 source.web.format: `source.web.format` cannot be `avor` (did you mean \"avro\"?)",
    );
    check(
        r#"format = "json""#,
        "format = \"json\"\nschema = \"a.avsc\"",
        "4:1 source.web.schema: `schema` means nothing here: only format = \"avro\" has it",
    );
    check(
        r#"format = "json""#,
        r#"format = "avro""#,
        "1:9 source.web.format: records with a schema come in files and topics, not by kind = \"stdin\"",
    );
    check(
        r#"format = "json""#,
        "format = \"avro\"\nregistry = { url = \"http://r\", password = \"x\" }",
        "1:9 source.web.format: records with a schema come in files and topics, not by kind = \"stdin\"\n4:32 source.web.registry.password: `password` means nothing here: it goes with a `user`",
    );
    check(
        r#"format = "json""#,
        "format = \"protobuf\"\ndescriptors = \"a.binpb\"",
        "1:9 source.web.message: `source.web.message` is missing (write `message = \"shop.Click\"`: its name with the package)",
    );
    check(
        r#"key = "user""#,
        r#"key = { first = ["a"] }"#,
        "4:1 source.web.key.first_of: `source.web.key.first_of` is missing (write one field \"a\", [\"a\", \"b\"] for several together, or { first_of = [\"a\", \"b\"] })\n4:9 source.web.key.first: unknown key `source.web.key.first` (known here: first_of)",
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
fn wrong_sources_that_are_posted_to() {
    check(
        r#"kind = "stdin""#,
        r#"kind = "http""#,
        "1:9 source.web.listen: `source.web.listen` is missing (write `listen = \"127.0.0.1:7301\"`)",
    );
    check(
        r#"kind = "stdin""#,
        "kind = \"http\"\nlisten = \"7301\"",
        "3:10 source.web.listen: `7301` is not host:port (write \"127.0.0.1:7300\")",
    );
    check(
        r#"kind = "stdin""#,
        "kind = \"http\"\nlisten = \"0.0.0.0:7301\"",
        "3:10 source.web.listen: beyond loopback anybody could write (write `write_keys = [\"${env:WEB_WRITE_KEY}\"]`, or listen on 127.0.0.1)",
    );
    check(
        r#"kind = "stdin""#,
        "kind = \"http\"\nlisten = \"127.0.0.1:7301\"\nwrite_keys = [\"short\"]",
        "4:15 source.web.write_keys: a write key has at least 16 characters (`openssl rand -hex 16` makes one)\nwarning: 4:15 source.web.write_keys: a secret stands in the config file itself (write \"${env:WEB_WRITE_KEY}\")",
    );
    check(
        r#"kind = "stdin""#,
        "kind = \"http\"\nlisten = \"127.0.0.1:7301\"\ncors = [\"https://shop.example/path\"]",
        "4:9 source.web.cors: `https://shop.example/path` is not the origin of a page (write \"https://shop.example\", without a path)",
    );
    check(
        r#"kind = "stdin""#,
        "kind = \"http\"\nlisten = \"127.0.0.1:7301\"\nbacklog_bytes = \"1KiB\"",
        "4:17 source.web.backlog_bytes: `source.web.backlog_bytes` must be at least 1MiB",
    );
}

#[test]
fn sources_of_one_listener_that_cannot_be_told_apart() {
    let found = |web: &str, app: &str| {
        let source = |more: &str| {
            format!(
                "kind = \"http\"\nlisten = \"127.0.0.1:7301\"\n{more}\nformat = \"json\"\nkey = \"user\"\n"
            )
        };
        let time = "time = { field = \"ts\", unit = \"ms\" }\n";
        let text = format!(
            "[source.web]\n{}{time}[source.app]\n{}{time}[pipeline.v]\nfrom = [\"web\", \"app\"]\n\
             session = {{ plugin = \"builtin:gap\", config = {{ gap = \"30m\" }} }}\nto = [\"out\"]\n\
             [sink.out]\nkind = \"stdout\"\n",
            source(web),
            source(app)
        );
        let env = |name: &str| Some(format!("{name}{}", "0".repeat(16)));
        match parse_with(&text, Path::new("p.toml"), NOW_MS, &env) {
            Ok(plan) => listed(&plan.warnings),
            Err(problems) => listed(&problems),
        }
    };
    let (a, b) = ("write_keys = [\"${env:A}\"]", "write_keys = [\"${env:B}\", \"${env:A}\"]");
    let said = |both: &str| {
        format!(
            "10:10 source.app.listen: `web` listens there too, and both {both}: nobody can tell whose a request is \
             (give each its own `write_keys`, or an address of its own)\n"
        )
    };
    assert_eq!(found(a, b), said("have the same write key"));
    assert_eq!(found("", ""), said("have no write key"));
    assert_eq!(found(a, ""), "");
    assert_eq!(found(a, "write_keys = [\"${env:B}\"]"), "");
}

#[test]
fn wrong_pipelines() {
    let session = r#"session = { plugin = "builtin:gap", config = { gap = "30m" } }"#;
    check(
        r#"from = ["web"]"#,
        r#"from = ["web"]
            validate = ["v"]"#,
        "8:25 pipeline.visits.validate: there is no plugin `v` (write a [plugin.v])",
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
    check(
        r#"to = ["out"]"#,
        "to = [\"out\"]\nlimits = { overdue = \"2m\" }",
        "10:22 pipeline.visits.limits.overdue: longer than `overdue_window`, so nothing would ever be too much (make `overdue_window` longer, or this shorter)",
    );
    check(r#"path = "out.jsonl""#, "path = \"out.jsonl\"\n[pipeline.b]\nfrom = \"web\"\nto = \"out\"\nsession.plugin = \"builtin:gap\"\nsession.config.gap = \"1m\"",
        "14:8 pipeline.b.from: standard input can be read only once (`pipeline.visits.from` reads it already)
         15:6 pipeline.b.to: the file sink `out` is used twice (`pipeline.visits.to` writes to it already; give each its own)");
}

/// `SMALL` with a Postgres sink of these keys.
#[cfg(feature = "services")]
#[track_caller]
fn check_postgres(keys: &str, want: &str) {
    check("kind = \"file\"\npath = \"out.jsonl\"", &format!("kind = \"postgres\"\n{keys}"), want);
}

#[cfg(feature = "services")]
#[test]
fn postgres_sinks() {
    let url = "url = \"postgres://me@localhost/d\"";
    check_postgres(
        &format!("{url}\npassword = \"${{env:SECRET}}\"\ntable = \"a.b_1\"\ntimeout = \"5s\""),
        "",
    );
    check_postgres(
        &format!("{url}\npassword = \"hunter2\""),
        "13:12 sink.out.password: a password does not belong into this file (write `password = \"${env:PGPASSWORD}\"` or \"${file:PATH}\")",
    );
    check_postgres(
        "url = \"postgres://me:${env:SECRET}@h/d\"\nsslmode = \"disable\"",
        "12:7 sink.out.url: a password does not belong into the `url` (write `password = \"${env:PGPASSWORD}\"` or \"${file:PATH}\" beside it)",
    );
    check_postgres(
        "url = \"postgres://me@db.example/d\"",
        "12:7 sink.out.url: the `url` leads beyond this machine, where anybody on the way can read along (write `sslmode = \"verify-full\"` and `sslrootcert = \"/etc/ssl/certs/ca-certificates.crt\"`, or `sslmode = \"disable\"` if the network is yours alone)",
    );
    check_postgres(
        "url = \"postgres://me@db.example/d?sslmode=require\"",
        "12:7 sink.out.url: `sslmode` does not belong into the `url` (write `sslmode = ..` beside it)",
    );
    check_postgres(
        &format!("{url}\nsslmode = \"verify-full\""),
        "10:7 sink.out.sslrootcert: `sink.out.sslrootcert` is missing (write `sslrootcert = \"/etc/ssl/certs/ca-certificates.crt\"`: the authorities to believe)",
    );
    check_postgres(
        &format!("{url}\nsslmode = \"require\"\nsslrootcert = \"ca.pem\""),
        "14:15 sink.out.sslrootcert: `sslrootcert` means nothing with `sslmode = \"require\"` (write `sslmode = \"verify-full\"`)",
    );
    check_postgres(
        &format!("{url}\ntable = \"tidemill_cursor\"\ntimeout = \"1ms\"\npath = \"x\""),
        "13:9 sink.out.table: `tidemill_cursor` cannot be a table (use up to 55 letters, digits and `_`, not beginning with a digit; a schema may stand before it, with a dot between; `tidemill_cursor` is taken)
         14:11 sink.out.timeout: `sink.out.timeout` must lie between 100ms and 1h (\"30s\" is usual)
         15:1 sink.out.path: `path` means nothing here: only kind = \"sqlite\" and \"file\" have it",
    );
    check_postgres(
        &format!("{url}\n[sink.b]\nkind = \"postgres\"\n{url}\ntable = \"sessions\""),
        "13:7 sink.b.path: the sinks `out` and `b` write to the same place (give each its own)
         warning: 13:7 sink.b: no pipeline writes to the sink `b`",
    );
    let both = SMALL
        .replace("kind = \"file\"\npath = \"out.jsonl\"", &format!("kind = \"postgres\"\n{url}"))
        .replace("to = [\"out\"]", "to = [\"out\"]\ndead = \"out\"");
    let problems = listed(&parsed(&both).unwrap_err());
    assert!(problems.contains("cannot hold both sessions and dead letters"), "{problems}");
    let shown = format!(
        "{:?}",
        parsed(
            &both
                .replace("dead = \"out\"", "")
                .replace(url, &format!("{url}\npassword = \"${{env:SECRET}}\""))
        )
    );
    assert!(shown.contains("postgres://localhost:5432/d") && !shown.contains("hunter2"), "{shown}");
}

/// `SMALL` with a BigQuery sink of these keys.
#[cfg(feature = "services")]
#[track_caller]
fn check_bigquery(keys: &str, want: &str) {
    check("kind = \"file\"\npath = \"out.jsonl\"", &format!("kind = \"bigquery\"\n{keys}"), want);
}

#[cfg(feature = "services")]
#[test]
fn bigquery_sinks() {
    let place = "project = \"my-project\"\ndataset = \"clicks\"";
    check_bigquery(place, "");
    check_bigquery(
        &format!(
            "{place}\ntable = \"a-b_1\"\nlocation = \"EU\"\nmax_staleness = \"10m\"\ncredentials = \"key.json\"\ntimeout = \"5s\"\n\
             clustering = [\"pipeline\", \"country\"]\ncolumns = {{ country = \"STRING\", total = \"FLOAT64\" }}\n\
             endpoint = \"http://127.0.0.1:9050\"\nstorage_endpoint = \"http://[::1]:9060\""
        ),
        "",
    );
    check_bigquery(
        "project = \"a/b\"",
        "10:7 sink.out.dataset: `sink.out.dataset` is missing (write `dataset = \"clicks\"`; it has to be there)
         12:11 sink.out.project: `a/b` cannot be a name here (use letters, digits and `-`, `.`, `:`)",
    );
    check_bigquery(
        &format!("{place}\ncredentials = '{{\"private_key\": \"x\"}}'"),
        "14:15 sink.out.credentials: credentials do not belong into this file (write the path of the file that holds them: `credentials = \"/run/secrets/bigquery.json\"`)",
    );
    check_bigquery(
        &format!("{place}\nendpoint = \"http://bq.example\"\nstorage_endpoint = \"bq.example\""),
        "14:12 sink.out.endpoint: a token would be sent where anybody on the way can read it (write `https://`, or `credentials = \"none\"`)
         15:20 sink.out.storage_endpoint: `bq.example` is no endpoint (write a scheme and a host, as in \"https://bigquerystorage.googleapis.com\")",
    );
    check_bigquery(&format!("{place}\nendpoint = \"http://bq.example\"\ncredentials = \"none\""), "");
    check_bigquery(
        &format!("{place}\nmax_staleness = \"2d\"\nclustering = [\"fields\"]\ncolumns = {{ Key = \"STRING\", total = \"NUMERIC\" }}"),
        "14:17 sink.out.max_staleness: `sink.out.max_staleness` must be whole seconds, and at most 1d (\"10m\" is usual)
         15:15 sink.out.clustering: a table cannot be clustered by `fields` (`key`, `pipeline` and `start_time` are usual)
         16:19 sink.out.columns.Key: `Key` cannot be a column (use letters, digits and `_`, beginning with a letter, and no column that every table has)
         16:37 sink.out.columns.total: `NUMERIC` is not in this build yet (this build has `STRING`, `INT64`, `FLOAT64` or `BOOL`)",
    );
    check_bigquery(
        &format!("{place}\n[sink.b]\nkind = \"bigquery\"\n{place}\ntable = \"sessions\""),
        "14:7 sink.b.path: the sinks `out` and `b` write to the same place (give each its own)
         warning: 14:7 sink.b: no pipeline writes to the sink `b`",
    );
}

#[cfg(not(feature = "services"))]
#[test]
fn a_build_without_bigquery_says_so() {
    check(
        "kind = \"file\"\npath = \"out.jsonl\"",
        "kind = \"bigquery\"\nproject = \"p\"\ndataset = \"d\"",
        "11:8 sink.out.kind: this build has no BigQuery (build it with `--features services`, or use a kind without a service)",
    );
}

#[cfg(not(feature = "services"))]
#[test]
fn a_build_without_postgres_says_so() {
    check(
        "kind = \"file\"\npath = \"out.jsonl\"",
        "kind = \"postgres\"\nurl = \"postgres://me@localhost/d\"",
        "11:8 sink.out.kind: this build has no Postgres (build it with `--features services`, or use a kind without a service)",
    );
}

/// `SMALL` with a Kafka source of these keys.
#[cfg(feature = "services")]
#[track_caller]
fn check_topics(keys: &str, want: &str) {
    check("kind = \"stdin\"", &format!("kind = \"kafka\"\n{keys}"), want);
}

#[cfg(feature = "services")]
#[test]
fn topics_of_kafka() {
    use super::kafka::Begin;
    let small = "brokers = \"localhost:9092\"\ntopics = \"clicks\"";
    check_topics(small, "");
    for (start, begin) in [
        ("\"earliest\"", Begin::Earliest),
        ("\"latest\"", Begin::Latest),
        ("\"committed\"", Begin::Committed),
        ("\"2026-01-31T00:00:00Z\"", Begin::At(1_769_817_600_000)),
        ("2026-01-31T00:00:00Z", Begin::At(1_769_817_600_000)),
        ("1769817600000", Begin::At(1_769_817_600_000)),
    ] {
        let keys = format!("kind = \"kafka\"\n{small}\ngroup = \"g\"\nstart = {start}");
        let plan = parsed(&SMALL.replace("kind = \"stdin\"", &keys)).unwrap();
        assert!(matches!(&plan.sources[0].kind, SourceKind::Kafka(t) if t.start == begin), "{start}");
    }
    check_topics(
        &format!("{small}\nstart = \"committed\""),
        "5:9 source.web.start: nobody but this pipeline commits in its own group (write `group = \"..\"`: the group that somebody has read with)",
    );
    check_topics(
        &format!("{small}\nstart = \"soon\"\ntimeout = \"1m\"\nlisten = \"127.0.0.1:1\""),
        "5:9 source.web.start: `source.web.start` cannot be `soon` (write `earliest`, `latest` or `committed`)
         6:11 source.web.timeout: `source.web.timeout` must lie between 100ms and 50s (\"10s\" is usual)
         7:1 source.web.listen: `listen` means nothing here: only kind = \"http\" has it",
    );
    check_topics(
        "brokers = \"kafka\"\ntopics = [\"a b\"]",
        "3:11 source.web.brokers: `kafka` is no broker (write a host and a port: \"kafka-1:9092\")
         4:11 source.web.topics: `a b` is no name of a Kafka topic: 1 to 249 letters, digits, dots, dashes and underscores",
    );
    check_topics(
        "brokers = [\"kafka-1:9092\", \"[::1]:9092\"]\ntopics = [\"a\", \"a\"]",
        "3:11 source.web.brokers: the `brokers` are beyond this machine, where anybody on the way can read along (write `tls = true`, or `tls = { authorities = \"ca.pem\" }` if the authority is your own, or `tls = false` if the network is yours alone)
         4:16 source.web.topics: `a` stands here twice",
    );
    check_topics("brokers = \"kafka-1:9092,kafka-2:9092\"\ntopics = \"a\"\ntls = false", "");
    check_topics(
        &format!("{small}\ntls = {{ certificate = \"c.pem\" }}"),
        "5:1 source.web.tls.key: `source.web.tls.key` is missing (a certificate and its key go together)",
    );
    check_topics(
        &format!("{small}\nlogin = {{ mechanism = \"PLAIN\", user = \"u\", password = \"hunter2\" }}"),
        "5:55 source.web.login.password: a password does not belong into this file (write `password = \"${env:KAFKA_PASSWORD}\"` or \"${file:PATH}\")",
    );
    check_topics(
        &format!(
            "{small}\nlogin = {{ mechanism = \"GSSAPI\", user = \"u\", password = \"${{env:SECRET}}\" }}"
        ),
        "5:23 source.web.login.mechanism: `GSSAPI` is not in this build yet (this build has `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`)",
    );
    check_topics(
        &format!("{small}\ncolumns = [\"user\", \"ts\"]"),
        "1:9 source.web.columns: `columns` means nothing with format = \"json\" (leave it out)",
    );
    let csv = SMALL.replace("kind = \"stdin\"", &format!("kind = \"kafka\"\n{small}"));
    let csv = csv.replace("format = \"json\"", "format = \"csv\"");
    let problems = listed(&parsed(&csv).unwrap_err());
    assert!(problems.contains("records of a topic have no header (write `columns"), "{problems}");
    parsed(&csv.replace("topics =", "columns = [\"user\", \"ts\"]\ntopics =")).unwrap();
    let avro = csv.replace("format = \"csv\"", "format = \"avro\"");
    let problems = listed(&parsed(&avro).unwrap_err());
    assert!(problems.contains("records of a topic name their schemas"), "{problems}");
    parsed(&avro.replace("topics =", "registry = \"http://localhost:8081\"\ntopics =")).unwrap();
    let more = format!(
        "kind = \"kafka\"\n{small}\ngroup = \"g\"\nlogin = {{ mechanism = \"PLAIN\", user = \"u\", password = \"${{env:SECRET}}\" }}"
    );
    let shared = SMALL.replace("kind = \"stdin\"", &more)
        + "[pipeline.b]\nfrom = \"web\"\nto = \"more\"\nsession.plugin = \"builtin:gap\"\nsession.config.gap = \"1m\"\n\
           [sink.more]\nkind = \"stdout\"\n";
    let problems = listed(&parsed(&shared).unwrap_err());
    assert!(problems.contains("can show the positions of one pipeline only"), "{problems}");
    let shown = format!("{:?}", parsed(&shared.replace("group = \"g\"\n", "")).unwrap());
    assert!(shown.contains("localhost:9092") && !shown.contains("hunter2"), "{shown}");
}

#[cfg(feature = "services")]
#[test]
fn sinks_of_kafka() {
    let keys = "brokers = \"localhost:9092\"\ntopic = \"sessions\"";
    let of = |keys: &str, want: &str| {
        check("kind = \"file\"\npath = \"out.jsonl\"", &format!("kind = \"kafka\"\n{keys}"), want);
    };
    of(&format!("{keys}\nmessage_bytes_max = \"8MB\"\ntimeout = \"5s\""), "");
    of(
        &format!("{keys}\nmessage_bytes_max = \"1B\"\npath = \"x\"\ntopics = \"y\""),
        "14:21 sink.out.message_bytes_max: `sink.out.message_bytes_max` must lie between 1kB and 1GB (brokers take 1MB if they are told nothing)
         15:1 sink.out.path: `path` means nothing here: only kind = \"sqlite\" and \"file\" have it
         16:1 sink.out.topics: unknown key `sink.out.topics` (did you mean `topic`?)",
    );
    of(
        &format!("{keys}\n[sink.b]\nkind = \"kafka\"\n{keys}"),
        "14:7 sink.b.path: the sinks `out` and `b` write to the same place (give each its own)
         warning: 14:7 sink.b: no pipeline writes to the sink `b`",
    );
    let both = SMALL
        .replace("kind = \"file\"\npath = \"out.jsonl\"", &format!("kind = \"kafka\"\n{keys}"))
        .replace("to = [\"out\"]", "to = [\"out\"]\ndead = \"out\"");
    let problems = listed(&parsed(&both).unwrap_err());
    assert!(problems.contains("cannot hold both sessions and dead letters"), "{problems}");
    let circle = both.replace("\ndead = \"out\"", "").replace(
        "kind = \"stdin\"",
        "kind = \"kafka\"\nbrokers = \"localhost:9092\"\ntopics = [\"sessions\"]",
    );
    let problems = listed(&parsed(&circle).unwrap().probe());
    assert!(problems.contains("the topic `sessions` is what the sink `out` writes"), "{problems}");
}

#[cfg(not(feature = "services"))]
#[test]
fn a_build_without_kafka_says_so() {
    check(
        "kind = \"file\"\npath = \"out.jsonl\"",
        "kind = \"kafka\"\nbrokers = \"localhost:9092\"\ntopic = \"t\"",
        "11:8 sink.out.kind: this build has no Kafka (build it with `--features services`, or use a kind without a service)",
    );
    check(
        "kind = \"stdin\"",
        "kind = \"kafka\"\nbrokers = \"localhost:9092\"\ntopics = \"t\"\nstart = \"latest\"",
        "2:8 source.web.kind: this build has no Kafka (build it with `--features services`, or use a kind without a service)",
    );
}

#[cfg(feature = "services")]
#[test]
fn subscriptions_of_pubsub() {
    let check_pulled = |keys: &str, want: &str| {
        check("kind = \"stdin\"", &format!("kind = \"pubsub\"\n{keys}"), want);
    };
    check_pulled("project = \"p\"\nsubscription = \"clicks\"", "");
    check_pulled(
        "project = \"p\"\nsubscription = \"clicks\"\ntimeout = \"1m\"\noutstanding_messages = 1000000",
        "5:11 source.web.timeout: `source.web.timeout` must lie between 100ms and a quarter of `lease`, 15000ms (\"10s\" is usual)
         6:24 source.web.outstanding_messages: `source.web.outstanding_messages` is 100000 at most (1000 is usual)",
    );
    check_pulled("project = \"p\"\nsubscription = \"clicks\"\nlease = \"10s\"\ntimeout = \"2s\"", "");
    check_pulled(
        "project = \"p\"\nsubscription = \"clicks\"\nlease = \"20500ms\"\ntimeout = \"2s\"",
        "5:9 source.web.lease: `source.web.lease` must be whole seconds between 10s and 10m (\"60s\" is usual)",
    );
}

#[cfg(not(feature = "services"))]
#[test]
fn a_build_without_pubsub_says_so() {
    check(
        "kind = \"stdin\"",
        "kind = \"pubsub\"\nproject = \"p\"\nsubscription = \"clicks\"",
        "2:8 source.web.kind: this build has no Pub/Sub (build it with `--features services`, or use a kind without a service)",
    );
    check(
        "kind = \"file\"\npath = \"out.jsonl\"",
        "kind = \"pubsub\"\nproject = \"p\"\ntopic = \"sessions\"",
        "11:8 sink.out.kind: this build has no Pub/Sub (build it with `--features services`, or use a kind without a service)",
    );
}

/// `SMALL` with a Pub/Sub sink of these keys.
#[cfg(feature = "services")]
#[track_caller]
fn check_pubsub_sink(keys: &str, want: &str) {
    check("kind = \"file\"\npath = \"out.jsonl\"", &format!("kind = \"pubsub\"\n{keys}"), want);
}

#[cfg(feature = "services")]
#[test]
fn pubsub_sinks() {
    let place = "project = \"my-project\"\ntopic = \"sessions\"";
    check_pubsub_sink(place, "");
    check_pubsub_sink(
        &format!(
            "{place}\nordered = false\ncredentials = \"key.json\"\ntimeout = \"5s\"\nendpoint = \"https://europe-west1-pubsub.googleapis.com\""
        ),
        "",
    );
    check_pubsub_sink(
        "project = \"a/b\"\nordered = \"yes\"\ntable = \"t\"",
        "10:7 sink.out.topic: `sink.out.topic` is missing (write `topic = \"sessions\"`; it has to be there)
         12:11 sink.out.project: `a/b` cannot be a name here (use letters, digits and `-`, `.`, `:`)
         13:11 sink.out.ordered: `sink.out.ordered` must be true or false, not a string
         14:1 sink.out.table: `table` means nothing here: only kind = \"sqlite\", \"postgres\" and \"bigquery\" have it",
    );
    check_pubsub_sink(
        &format!("{place}\nendpoint = \"http://pubsub.example\""),
        "14:12 sink.out.endpoint: a token would be sent where anybody on the way can read it (write `https://`, or `credentials = \"none\"`)",
    );
    check_pubsub_sink(
        &format!("{place}\n[sink.b]\nkind = \"pubsub\"\n{place}\nordered = false"),
        "14:7 sink.b.path: the sinks `out` and `b` write to the same place (give each its own)
         warning: 14:7 sink.b: no pipeline writes to the sink `b`",
    );
}

/// Every example is a config that can be run.
#[test]
fn the_examples_are_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let env = |_: &str| Some("hunter2".to_owned());
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let is_config = path.extension().is_some_and(|e| e == "toml");
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let of_services = ["postgres", "kafka", "kafka-to-bigquery", "http-to-kafka", "pubsub-to-postgres"];
        let needs_services = of_services.contains(&stem);
        if !is_config || (needs_services && !cfg!(feature = "services")) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let problems = match parse_with(&text, &path, NOW_MS, &env) {
            Ok(plan) => listed(&plan.warnings),
            Err(problems) => listed(&problems),
        };
        assert_eq!(problems, "", "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 3, "the examples have moved");
}

#[test]
fn wrong_sinks_and_server() {
    check(
        r#"path = "out.jsonl""#,
        "path = \"out.jsonl\"\ntable = \"t\"",
        "13:1 sink.out.table: `table` means nothing here: only kind = \"sqlite\", \"postgres\" and \"bigquery\" have it",
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
         3:10 server.listen: `0.0.0.0:1` is beyond loopback, where anybody on the way can read along (write [server.tls] with `cert` and `key`, or \"127.0.0.1:1\"; or `insecure = true` in [server] if the network is yours alone)");
    check(
        "[source.web]",
        "[server]\nlanes = 9\n[source.web]",
        "2:9 server.lanes: `server.lanes` must lie between 1 and 8 (leave it out for one a core, but for that of the reader)",
    );
    check(
        "[source.web]",
        "[server]\nlanes = 0\n[source.web]",
        "2:9 server.lanes: `server.lanes` must be at least 1, not 0",
    );
    assert_eq!(parsed(&format!("[server]\nlanes = 2\n{SMALL}")).unwrap().server.lanes, Some(2));
    check(
        "[source.web]",
        "[server]\nhosts = [\"a.example\", \"https://b\"]\n[server.tls]\ncert = \"a.pem\"\n[source.web]",
        "2:23 server.hosts: `https://b` is not the name of a host (write \"tidemill.example\", without scheme and port)
         3:9 server.tls.key: `server.tls.key` is missing (write `key = \"host.key\"`: its private key)",
    );
    check(
        "[source.web]",
        "[plugin.mine]\npath = \"x.wasm\"\n[source.web]",
        "warning: 1:9 plugin.mine: no pipeline uses the plugin `mine`",
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
    assert!(missing.render(false).contains("`/nowhere.toml` cannot be read"), "{}", missing.render(false));
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
        let text =
            SMALL.replace("kind = \"stdin\"", &source).replace("out.jsonl", &format!("{root}/no/out.jsonl"));
        listed(&parsed(&text).unwrap().probe()).replace(&root.to_string(), "ROOT")
    };
    let sink = "13:8 sink.out.path: the directory `ROOT/no` does not exist (`mkdir -p ROOT/no`)\n";
    let copies = "warning: 3:8 source.web.path: `ROOT/a.log` and `ROOT/a.log.gz` both match: are they copies? (copies would be counted twice; narrow the pattern)\n";
    assert_eq!(with("*"), format!("{copies}{sink}"));
    assert_eq!(with("a.log"), sink);
    assert_eq!(
        with("b.log"),
        format!("3:8 source.web.path: `ROOT/b.log` does not exist (did you mean \"ROOT/a.log\"?)\n{sink}")
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
    use ChangeKind::{Free, Refused, Resend, Swap};
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
        ("\"out.jsonl\"", "\"new.jsonl\"", &[("sink.out", Resend)]),
        ("to =", "limits.events_per_key = 5\nto =", &[("pipeline.visits.limits.events_per_key", Free)]),
    ];
    for (line, by, want) in table {
        let want: Vec<(String, ChangeKind)> = want.iter().map(|(w, k)| ((*w).to_owned(), *k)).collect();
        assert_eq!(changes(line, by), want, "{by}");
    }
}

/// A lookup of each kind, and an enricher that uses them.
const LOOKUPS: &str = r#"
[plugin.profile]
path = "profile.wasm"
lookups = { visitor = "visitors", campaign = "campaigns", region = "regions" }
[lookup.visitors]
kind = "http"
url = "http://127.0.0.1:8080/v"
method = "post"
rows = "/data"
headers = { authorization = "Bearer ${env:SECRET}" }
on_failure = "hold"
batch = 50
concurrency = 2
timeout = "500ms"
retries = 7
[lookup.campaigns]
kind = "sqlite"
path = "campaigns.db"
table = "campaigns"
key = "id"
cache = "1MiB"
ttl = "1h"
negative_ttl = "0s"
[lookup.regions]
kind = "file"
path = "regions.csv.gz"
key = "region"
on_failure = "dead-letter"
"#;

fn with_lookups(line: &str, by: &str) -> String {
    let base = SMALL.replacen("to = [", "enrich = [\"profile\"]\nto = [", 1) + LOOKUPS;
    assert!(base.contains(line), "no such line: {line}");
    base.replacen(line, by, 1)
}

#[test]
fn lookups_and_what_uses_them() {
    use super::lookup::{LookupKind, OnFailure};
    let plan = parsed(&with_lookups("", "")).unwrap();
    assert_eq!(listed(&plan.warnings), "");
    let [visitors, campaigns, regions] = plan.lookups.as_slice() else { panic!("three lookups") };
    let uses: Vec<(&str, usize)> =
        plan.pipelines[0].enrich[0].lookups.iter().map(|(n, at)| (n.as_str(), *at)).collect();
    assert_eq!(uses, [("visitor", 0), ("campaign", 1), ("region", 2)]);
    let s = visitors.settings;
    assert_eq!((s.batch_keys, s.concurrency, s.timeout_ms, s.retries), (50, 2, 500, 7));
    assert_eq!((s.ttl_ms, s.negative_ttl_ms, s.gives_up), (300_000, 60_000, false));
    let LookupKind::Http { headers, rows, .. } = &visitors.kind else { panic!("a service") };
    assert_eq!((headers[0].1.reveal(), rows.as_str()), ("Bearer hunter2", "/data"));
    assert!(!format!("{plan:?}").contains("hunter2"), "secrets are not shown");
    let s = campaigns.settings;
    assert_eq!((s.cache_bytes, s.ttl_ms, s.negative_ttl_ms, s.gives_up), (1 << 20, 3_600_000, 0, true));
    assert_eq!((campaigns.on_failure, regions.on_failure), (OnFailure::Empty, OnFailure::DeadLetter));
    assert_eq!(regions.settings.ttl_ms, 0, "a file is in memory already");
    // One key a request, so many requests at a time.
    let get =
        with_lookups(OF_POST, "url = \"http://127.0.0.1:8080/v/{key}\"\n").replace("concurrency = 2\n", "");
    let s = parsed(&get.replace("batch = 50\n", "")).unwrap().lookups[0].settings;
    assert_eq!((s.batch_keys, s.concurrency), (1, 16));
}

const OF_POST: &str = "url = \"http://127.0.0.1:8080/v\"\nmethod = \"post\"\n";

#[test]
fn mistakes_in_lookups() {
    let table = [
        (
            "enrich = [\"profile\"]",
            "enrich = [\"profil\"]",
            "9:11 pipeline.visits.enrich: there is no plugin `profil` (did you mean \"profile\"?)\n\
             warning: 15:9 plugin.profile: no pipeline uses the plugin `profile`\n\
             warning: 18:9 lookup.visitors: no pipeline uses the lookup `visitors`\n\
             warning: 29:9 lookup.campaigns: no pipeline uses the lookup `campaigns`\n\
             warning: 37:9 lookup.regions: no pipeline uses the lookup `regions`\n",
        ),
        (
            "campaign = \"campaigns\"",
            "campaign = \"campaign\"",
            "17:46 plugin.profile.lookups.campaign: there is no lookup `campaign` (did you mean \"campaigns\"?)\n\
             warning: 29:9 lookup.campaigns: no pipeline uses the lookup `campaigns`\n",
        ),
        (
            "kind = \"http\"",
            "kind = \"htpp\"",
            "19:8 lookup.visitors.kind: `lookup.visitors.kind` cannot be `htpp` (did you mean \"http\"?)\n",
        ),
        (
            "\"http://127.0.0.1:8080/v\"",
            "\"https://h/v\"",
            "20:7 lookup.visitors.url: `https://h/v` cannot be used: this build has no TLS, so `https` cannot be used; \
             put a proxy on this host in front, and write `http` (\"http://127.0.0.1:8080/visitors/{key}\" is one)\n",
        ),
        ("\"/data\"", "\"data\"", "22:8 lookup.visitors.rows: `data` is no JSON pointer (write \"/data\")\n"),
        (
            "\"hold\"",
            "\"wait\"",
            "24:14 lookup.visitors.on_failure: `lookup.visitors.on_failure` cannot be `wait` \
             (write `empty`, `hold` or `dead-letter`)\n",
        ),
        (
            "batch = 50",
            "batch = 50000",
            "25:9 lookup.visitors.batch: `lookup.visitors.batch` may be at most 10000\n",
        ),
        (
            OF_POST,
            "url = \"http://127.0.0.1:8080/v/{key}\"\n",
            "24:1 lookup.visitors.batch: `batch` means nothing here: a GET asks for one key; \
             `concurrency` says how many are under way at a time\n",
        ),
        (
            "retries = 7",
            "retrys = 7",
            "28:1 lookup.visitors.retrys: unknown key `lookup.visitors.retrys` (did you mean `retries`?)\n",
        ),
        (
            "table = \"campaigns\"",
            "table = \"campaigns\"\nquery = \"x\"",
            "33:9 lookup.campaigns.query: `table` and `query` cannot stand together (leave one out)\n",
        ),
        (
            "key = \"id\"\n",
            "",
            "29:9 lookup.campaigns.key: `lookup.campaigns.key` is missing \
             (write `key = \"visitor\"`: the column that holds the key)\n",
        ),
        (
            "regions.csv.gz",
            "regions.txt",
            "37:9 lookup.regions.format: `lookup.regions.format` is missing \
             (write `format = \"csv\"` or \"json\"; the file's name does not tell)\n",
        ),
        (
            "key = \"region\"",
            "key = \"region\"\ntable = \"x\"",
            "41:1 lookup.regions.table: `table` means nothing here: only kind = \"sqlite\", \"postgres\", \"bigtable\" and \
             \"bigquery\" have it\n",
        ),
    ];
    for (line, by, want) in table {
        let problems = parsed(&with_lookups(line, by)).err().unwrap_or_else(|| panic!("{by} is taken"));
        assert_eq!(listed(&problems), want, "{by}");
    }
}

/// A config whose lookup `regions` has these keys.
#[track_caller]
fn check_lookup(keys: &str, want: &str) {
    let file = "kind = \"file\"\npath = \"regions.csv.gz\"\nkey = \"region\"";
    match parsed(&with_lookups(file, keys)) {
        Ok(plan) => assert_eq!((listed(&plan.warnings), want), (String::new(), "")),
        Err(problems) => {
            let want: String = want.lines().map(|line| format!("{}\n", line.trim_start())).collect();
            assert_eq!(listed(&problems), want);
        }
    }
}

#[cfg(feature = "services")]
#[test]
fn bigtable_lookups() {
    let place = "kind = \"bigtable\"\nproject = \"my-project\"\ninstance = \"clicks\"\ntable = \"visitors\"";
    let columns = "columns = { segment = \"profile:segment\" }";
    check_lookup(&format!("{place}\n{columns}"), "");
    check_lookup(
        &format!(
            "{place}\napp_profile = \"batch\"\nrow_key = \"visitor#{{key}}\"\ncredentials = \"key.json\"\nbatch = 500\ntimeout = \"1s\"\n\
             endpoint = \"http://127.0.0.1:8086\"\n\
             columns = {{ segment = \"profile:a:b\", empty = \"f:\", visits = {{ column = \"stats:visits\", as = \"int64\" }} }}"
        ),
        "",
    );
    check_lookup(
        "kind = \"bigtable\"\nproject = \"a/b\"\nkey = \"id\"\nrow_key = \"visitor\"\ncredentials = '{\"private_key\": \"x\"}'",
        "37:9 lookup.regions.instance: `lookup.regions.instance` is missing (write `instance = \"clicks\"`)
         37:9 lookup.regions.table: `lookup.regions.table` is missing (write `table = \"visitors\"`)
         37:9 lookup.regions.columns: `lookup.regions.columns` is missing (write `columns = { segment = \"profile:segment\" }`: a family and a qualifier for each field)
         39:11 lookup.regions.project: `a/b` cannot be a name here (use letters, digits and `-`, `.`, `:`)
         40:1 lookup.regions.key: `key` means nothing here: `{key}` in the `url`, or in the `row_key` of Bigtable, stands for the key
         41:11 lookup.regions.row_key: `visitor` has no `{key}`, so that all keys would have the same row (\"visitor#{key}\" is one)
         42:15 lookup.regions.credentials: credentials do not belong into this file (write the path of the file that holds them: `credentials = \"/run/secrets/bigquery.json\"`)",
    );
    let example = "write a family (letters, digits, `_`, `-`, `.`), a colon, and a qualifier of up to 128 bytes, as in \"profile:segment\"";
    check_lookup(
        &format!(
            "{place}\nendpoint = \"http://bt.example\"\n\
             columns = {{ a = \"profile\", b = {{ column = \":x\", as = \"int\" }}, c = {{ column = \"f:q\" }} }}"
        ),
        &format!(
            "42:12 lookup.regions.endpoint: a token would be sent where anybody on the way can read it (write `https://`, or `credentials = \"none\"`)
             43:17 lookup.regions.columns.a: `profile` is no column ({example})
             43:43 lookup.regions.columns.b.column: `:x` is no column ({example})
             43:54 lookup.regions.columns.b.as: `lookup.regions.columns.b.as` cannot be `int` (write `text`, `int64`, `float64`, `json` or `base64`)
             43:63 lookup.regions.columns.c.as: `lookup.regions.columns.c.as` is missing (write `{{ column = \"stats:visits\", as = \"int64\" }}`)"
        ),
    );
    check_lookup(
        &format!("{place}\ncolumns = {{}}"),
        "42:11 lookup.regions.columns: a row has between 1 and 100 columns (write `columns = { segment = \"profile:segment\" }`: a family and a qualifier for each field)",
    );
}

#[cfg(feature = "services")]
#[test]
fn bigquery_lookups() {
    let place = "kind = \"bigquery\"\nproject = \"my-project\"\ndataset = \"shop\"\nkey = \"id\"";
    check_lookup(&format!("{place}\ntable = \"products\""), "");
    let more = "location = \"EU\"\nrefresh = \"10m\"\ntimeout = \"1m\"\ncredentials = \"none\"\nendpoint = \"http://bq.example\"";
    let query = with_lookups(
        "kind = \"file\"\npath = \"regions.csv.gz\"\nkey = \"region\"",
        &format!("{place}\nquery = \"SELECT * FROM products\"\n{more}"),
    );
    let s = parsed(&query).unwrap().lookups[2].settings;
    assert_eq!((s.ttl_ms, s.negative_ttl_ms, s.timeout_ms), (0, 0, 60_000), "it is in memory already");
    check_lookup(
        "kind = \"bigquery\"\nproject = \"p\"\ndataset = \"a-b\"\nrefresh = \"10ms\"\ninstance = \"i\"",
        "37:9 lookup.regions.key: `lookup.regions.key` is missing (write `key = \"visitor\"`: the column that holds the key)
         37:9 lookup.regions.table: `lookup.regions.table` is missing (write `table = \"visitors\"`, or a `query`)
         40:11 lookup.regions.dataset: `a-b` cannot be a name here (use letters, digits and `_`)
         41:11 lookup.regions.refresh: `lookup.regions.refresh` must lie between 1s and 7d (\"1h\" is usual)
         42:1 lookup.regions.instance: `instance` means nothing here: only kind = \"bigtable\" has it",
    );
    check_lookup(
        "kind = \"file\"\npath = \"regions.csv.gz\"\nkey = \"region\"\nrefresh = \"1h\"",
        "41:1 lookup.regions.refresh: `refresh` means nothing here: only kind = \"bigquery\" has it; a file is read again when it changes",
    );
}

#[cfg(not(feature = "services"))]
#[test]
fn a_build_without_services_says_so_of_lookups() {
    check_lookup(
        "kind = \"bigtable\"\nproject = \"p\"\ncolumns = { a = \"f:q\" }",
        "38:8 lookup.regions.kind: this build has no Bigtable (build it with `--features services`, or use a kind without a service)",
    );
    check_lookup(
        "kind = \"bigquery\"\nproject = \"p\"\ndataset = \"d\"",
        "38:8 lookup.regions.kind: this build has no BigQuery (build it with `--features services`, or use a kind without a service)",
    );
}

#[test]
fn what_lookups_name_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("regions.csv"), "regoin,name\n1,x\n").unwrap();
    let here = |name: &str| dir.path().join(name).display().to_string();
    let text = with_lookups("regions.csv.gz", &here("regions.csv"))
        .replace("campaigns.db", &here("campaigns.db"))
        .replace("path = \"out.jsonl\"", &format!("path = \"{}\"", here("out.jsonl")));
    let problems = listed(&parsed(&text).unwrap().probe());
    let want = format!(
        "31:8 lookup.campaigns.path: `{}` does not exist\n39:8 lookup.regions.path: {}: there is no column `region`; its \
         columns are regoin, name (did you mean `key = \"regoin\"`?)\n",
        here("campaigns.db"),
        here("regions.csv")
    );
    assert!(problems.ends_with(&want), "{problems}");
}
