//! Config texts, edited: each is a plan, or problems that point into the text. Neither says one thing today and another
//! tomorrow, and what the store keeps of a plan is found unchanged when it is read again.

use super::tests::{DESIGN, NOW_MS, SMALL};
use super::*;
use tidemill_fuzz::edit::{edited, words};
use tidemill_fuzz::{Targets, Verdict};

/// As many as `plugin::fuzz` says: all run in one program.
const TARGETS: Targets = Targets(7);

/// What the other texts do not have.
const WIDE: &str = r#"
[server]
listen = "127.0.0.1:7300"
hosts = ["tidemill.example"]
epoch = "500ms"
segment = "1MiB"
lanes = 2
[server.tls]
cert = "host.pem"
key = "host.key"
[source.app]
kind = "http"
listen = "127.0.0.1:7301"
write_keys = ["${env:SECRET}"]
cors = ["https://shop.example"]
backlog_bytes = "4GiB"
key = { first_of = ["user", "device"] }
time = { field = "/t/s", unit = "us" }
id = "messageId"
dedup = "10m"
[source.made]
kind = "generator"
rate = 31.245270191439438
start = 2025-01-01T00:00:00.5Z
key = ["a", "b"]
key_hmac = "${env:SECRET}"
far_future = "off"
drift = "2m"
idle = "30s"
[source.made.fields]
"page" = 'url'
[source.text]
kind = "file"
path = "*.csv"
follow = true
format = "csv"
key = "k"
time = { field = "t", format = "%Y-%m-%d %H:%M:%S", zone = "Europe/Berlin" }
id = "eid"
[plugin.checkout]
path = "checkout.wasm"
config = { idle = "30m", share = 121.48791951161945, list = [1, -2.5, "x", true], deep = { at = "2025-01-01", "ü" = 0x1f } }
[plugin.profiles]
path = "profiles.wasm"
lookups = { visitors = "visitors", campaign = "campaigns" }
[lookup.visitors]
kind = "http"
url = "http://127.0.0.1:8080/visitors"
method = "post"
rows = "/data"
headers = { authorization = "Bearer ${env:SECRET}" }
on_failure = "hold"
batch = 100
concurrency = 4
timeout = "2s"
retries = 4
cache = "64MiB"
ttl = "5m"
negative_ttl = "1m"
[lookup.campaigns]
kind = "file"
path = "campaigns.csv"
key = "id"
[lookup.regions]
kind = "sqlite"
path = "regions.db"
query = "SELECT id, name FROM regions WHERE id IN (SELECT value FROM json_each(?1))"
key = "id"
[pipeline.a]
from = ["app", "made", "text"]
session = { plugin = "checkout" }
enrich = ["profiles"]
early = { every = "5s" }
lateness = "1h"
end_of_input = "hold"
to = [{ sink = "db", stages = ["final", "corrected"] }, "screen"]
dead = "screen"
limits = { events_per_key = 5, suffix_bytes = "1MiB", open_sessions = 9, outbox_bytes = "2MB", faults = 3, overdue = "1s" }
[pipeline.b]
from = ["text"]
to = ["db"]
[pipeline.b.session]
plugin = "builtin:gap"
config = { gap = "5m", boundary = "inclusive", max = "4h", start = { field = "type", in = ["login"] }, end = { field = "type", in = ["logout"] } }
[sink.db]
kind = "sqlite"
path = "x.db"
table = "visits"
[sink.screen]
kind = "stdout"
"#;

fn parsed(text: &str) -> Result<Plan, Problems> {
    let env = |name: &str| (name == "SECRET").then(|| "a secret of some length".to_owned());
    parse_with(text, Path::new("t.toml"), NOW_MS, &env)
}

/// Problems can be shown, and point into the text.
fn can_be_told(text: &str, problems: &Problems) {
    for at in problems.spots() {
        assert!(at.start <= at.end && at.end <= text.len(), "{at:?} of {} bytes", text.len());
        assert!(
            text.is_char_boundary(at.start) && text.is_char_boundary(at.end),
            "{at:?} within a character"
        );
    }
    let (plain, styled) = (problems.render(false), problems.render(true));
    assert_eq!(plain.is_empty(), problems.is_empty());
    assert!(styled.len() >= plain.len());
    let list = problems.to_json();
    assert_eq!(list.as_array().map(Vec::is_empty), Some(problems.is_empty()));
    let lines = text.matches('\n').count() as u64 + 1;
    for problem in list.as_array().into_iter().flatten() {
        assert!(!problem["message"].as_str().unwrap_or_default().is_empty(), "{problem}");
        assert!(problem["line"].as_u64().is_none_or(|line| (1..=lines).contains(&line)), "{problem}");
    }
}

/// Everything that is said of a text, in a form to compare.
fn said(text: &str) -> (bool, String) {
    match parsed(text) {
        Ok(plan) => (true, format!("{plan:?}")),
        Err(problems) => (false, problems.to_json().to_string()),
    }
}

fn judge(text: &str) -> Verdict {
    let plan = match parsed(text) {
        Ok(plan) => plan,
        Err(problems) => {
            assert!(problems.has_errors(), "refused without an error");
            can_be_told(text, &problems);
            assert_eq!(said(text), (false, problems.to_json().to_string()), "other words for the same text");
            return Verdict::Refused;
        }
    };
    assert!(!plan.warnings.has_errors());
    can_be_told(text, &plan.warnings);
    assert_eq!(said(text), (true, format!("{plan:?}")), "another plan out of the same text");
    assert!(!plan.pipelines.is_empty());
    for pipeline in &plan.pipelines {
        let now = fingerprint(pipeline, &plan);
        let kept = serde_json::from_str(&now.to_string()).unwrap();
        let changes = compare(&kept, &now);
        assert!(changes.is_empty(), "nothing has changed, and yet: {changes:?}");
    }
    Verdict::Accepted
}

#[test]
fn the_texts_that_are_edited_are_right() {
    for text in [WIDE, DESIGN, SMALL] {
        let plan = parsed(text).unwrap_or_else(|p| panic!("{}", p.render(false)));
        assert!(!format!("{plan:?}").contains("a secret"), "{plan:?}");
        assert_eq!(judge(text), Verdict::Accepted);
    }
}

#[test]
fn edited_configs() {
    let shop = include_str!("../../../../examples/shop.toml");
    let seeds = [WIDE, DESIGN, SMALL, SMALL, shop].map(|text| text.as_bytes().to_vec()).to_vec();
    let words = words(&[
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        "\n",
        "\"",
        "'",
        "\"\"\"",
        "'''",
        "#",
        ".",
        ",",
        "\\u00e9",
        "é",
        "\u{feff}",
        "\r\n",
        "\0",
        "-1",
        "0",
        "1e400",
        "nan",
        "inf",
        "99999999999999999999",
        "0.1",
        "true",
        "2025-01-01T00:00:00Z",
        "\"0s\"",
        "\"30m\"",
        "\"99999999999d\"",
        "\"1ms\"",
        "\"16EiB\"",
        "\"\"",
        "[]",
        "${env:SECRET}",
        "${env:NO}",
        "${file:}",
        "${",
        "key_hmac = ",
        "\nkey_hmac = \"\"\"x",
        "kind = ",
        "\"http\"",
        "\"file\"",
        "\"stdin\"",
        "\"sqlite\"",
        "\"position\"",
        "\"content\"",
        "\"off\"",
        "\n[source.x]\n",
        "\n[pipeline.x]\n",
        "\n[sink.x]\n",
        "[lookup.x]\n",
        "**/[",
        "%",
        "zone = ",
        "\"UTC\"",
        "*",
    ]);
    TARGETS.fuzz("config", 2_500, edited(seeds, words), |bytes| {
        // A file that is no UTF-8 is not read at all.
        judge(&String::from_utf8_lossy(&bytes.0))
    });
}

#[test]
fn texts_that_nobody_would_write() {
    let deep = |open: &str, close: &str| format!("a = {}1{}", open.repeat(20_000), close.repeat(20_000));
    let long = "x".repeat(100_000);
    let texts = [
        String::new(),
        "\u{feff}".to_owned(),
        "\0".to_owned(),
        deep("[", "]"),
        deep("{a=", "}"),
        format!("{}b = 1", "a.".repeat(20_000)),
        format!("[{}b]", "a.".repeat(20_000)),
        format!("{long} = 1"),
        format!("[source.{long}]\nkind = \"{long}\"\n{long} = \"{long}\""),
        "[source.a]\n".repeat(2_000),
        (0..2_000).map(|n| format!("[source.s{n}]\nknid = 1\n")).collect(),
        format!("a = \"{}", "\\".repeat(100_001)),
        "key_hmac = \"\"\"\n".repeat(1_000),
        format!("{}{SMALL}", "# é\r\n".repeat(50_000)),
    ];
    for text in texts {
        let accepted = judge(&text) == Verdict::Accepted;
        assert_eq!(accepted, text.ends_with(SMALL), "{} bytes", text.len());
    }
}
