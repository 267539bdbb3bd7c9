//! The admin API held against its own description by programs that others wrote: schemathesis asks everything that the
//! OpenAPI document allows and much that it does not, promtool reads the metrics.
//!
//! The bug family: an answer that the document does not name, a request that crashes a handler, a metric that a collector
//! stumbles over. Both programs are optional: without them this says so and tests nothing. `TIDEMILL_SCHEMATHESIS` and
//! `TIDEMILL_PROMTOOL` name them if they are not in the path (`pip install schemathesis`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tidemill_tests::api::Api;
use tidemill_tests::traffic::Rng;
use tidemill_tests::{Case, Process, env_number, plugins};

/// The program, or none if it is not there.
fn program(variable: &str, name: &str) -> Option<Command> {
    let path = std::env::var_os(variable).unwrap_or_else(|| name.into());
    let there = Command::new(&path).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_ok_and(|s| s.success()) {
        return Some(Command::new(path));
    }
    eprintln!("skipped: there is no {name} here, and {variable} names none");
    None
}

/// A host with a pipeline that has seen some events, and a version of a plugin.
fn host(case: &Case) -> (Process, Api) {
    let path = |name: &str| Value::from(case.path(name).to_str().unwrap()).to_string();
    let text = format!(
        "[server]\ndata_dir = {}\nlisten = \"127.0.0.1:0\"\nepoch = \"50ms\"\n\
         [source.made]\nkind = \"generator\"\nrate = 200\nusers = 20\n\
         [pipeline.visits]\nfrom = [\"made\"]\nsession = {{ plugin = \"gap-sessions\" }}\nto = [\"sessions\"]\ndead = \"dead\"\n\
         [plugin.gap-sessions]\npath = {}\nconfig = {{ gap = \"2s\" }}\n\
         [sink.sessions]\nkind = \"sqlite\"\npath = {}\ntable = \"sessions\"\n\
         [sink.dead]\nkind = \"file\"\npath = {}\n",
        path("state"),
        Value::from(plugins::plugin("gap-sessions").to_str().unwrap()),
        path("sessions.db"),
        path("dead.jsonl"),
    );
    case.put("pipeline.toml", text.as_bytes());
    plugins::lend(&case.path("state"));
    let process = case.start(&[], &[]);
    let api = Api::of(case, &process);
    api.upload(&plugins::plugin("gap-sessions"));
    (process, api)
}

#[test]
fn every_answer_is_one_that_the_document_names() {
    let Some(mut fuzz) = program("TIDEMILL_SCHEMATHESIS", "schemathesis") else { return };
    let case = Case::new();
    let (process, api) = host(&case);
    // It keeps notes where it runs.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemathesis");
    for name in ["hooks.py", "schemathesis.toml"] {
        case.put(name, &std::fs::read(folder.join(name)).unwrap());
    }
    let output = fuzz
        .current_dir(case.path(""))
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", ".")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args([
            "--config-file",
            "schemathesis.toml",
            "run",
            "--checks",
            "all",
            "--workers",
            "1",
            "--seed",
            "1",
        ])
        // What the document allows may still be no component, or not the digest of what is sent.
        .args(["--exclude-checks", "positive_data_acceptance"])
        .args(["--max-examples", &env_number("TIDEMILL_FUZZ_EXAMPLES", 15).to_string()])
        .args(["--generation-database", "none", "--no-color"])
        .args(["-H", &format!("Authorization: Bearer {}", api.token)])
        .arg(format!("http://{}/openapi.json", api.address))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // It is still there, and still works.
    assert_eq!(api.get("/health")["status"], "alive");
    process.terminate();
    process.outcome(Duration::from_secs(60)).exits(0);
}

#[test]
fn a_collector_takes_the_metrics_as_they_are() {
    let Some(mut promtool) = program("TIDEMILL_PROMTOOL", "promtool") else { return };
    let case = Case::new();
    let (process, api) = host(&case);
    let metrics = api.ask("GET", "/metrics", &[], b"").is(200).body;
    let child = promtool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap();
    child.stdin.take().unwrap().write_all(&metrics).unwrap();
    let output = child.wait_with_output().unwrap();
    let complaints = [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap()).concat();
    assert!(output.status.success() && complaints.is_empty(), "{complaints}");
    process.terminate();
    process.outcome(Duration::from_secs(60)).exits(0);
}

/// Bodies of JSON: wishes that could be, with a part of each exchanged for something else, left out, or added.
struct Wishes(Rng);

impl Wishes {
    fn value(&mut self, deep: u32) -> Value {
        match self.0.below(if deep == 0 { 7 } else { 9 }) {
            0 => Value::Null,
            1 => json!(self.0.one_in(2)),
            2 => json!(i64::MIN),
            3 => json!(1e308),
            4 => json!("\u{0}\u{fffd}é\n\"'"),
            5 => json!("x".repeat(self.0.below(5_000) as usize)),
            6 => json!(
                ["migrate", "drain", "refold", "", "24h", "-1s", "999999999999d"][self.0.below(7) as usize]
            ),
            7 => (0..self.0.below(4)).map(|_| self.value(deep - 1)).collect(),
            _ => (0..self.0.below(4))
                .map(|n| (format!("k{n}"), self.value(deep - 1)))
                .collect::<Map<_, _>>()
                .into(),
        }
    }

    fn next(&mut self, like: &Value) -> Vec<u8> {
        let mut wish = like.as_object().unwrap().clone();
        for _ in 0..self.0.below(3) {
            let names: Vec<String> = wish.keys().cloned().chain(["surplus".to_owned()]).collect();
            let name = &names[self.0.below(names.len() as u64) as usize];
            match self.0.below(3) {
                0 => drop(wish.remove(name)),
                _ => drop(wish.insert(name.clone(), self.value(3))),
            }
        }
        let mut bytes = Value::from(wish).to_string().into_bytes();
        match self.0.below(12) {
            0 => bytes.truncate(self.0.below(bytes.len() as u64) as usize),
            1 => bytes = self.value(3).to_string().into_bytes(),
            2 => bytes[0] = 0xff,
            3 => bytes = "[".repeat(20_000).into_bytes(),
            _ => {}
        }
        bytes
    }
}

/// Bug family: a body that comes as far as the plugin or the pipeline, and breaks something there.
#[test]
fn a_change_is_made_or_refused_in_the_documents_words_whatever_is_asked() {
    let case = Case::new();
    let (process, api) = host(&case);
    let (name, version) = api.upload(&plugins::plugin("gap-sessions"));
    let document = api.get("/openapi.json");
    let full = json!({
        "plugin": name, "version": version, "config": { "gap": "2s" }, "policy": "migrate", "drain_max": "1h", "message": "m",
    });
    let back = json!({ "policy": "drain", "drain_max": "1h", "message": "m" });
    let deployment = "/api/v1/pipelines/{name}/deployment";
    let changes = [("PUT", deployment, &full), ("POST", "/api/v1/pipelines/{name}/rollback", &back)];
    let tags = ["*", "", "\"other\"", "W/\"1\"", "\"", "*, \"a\""];
    let kinds = ["application/json", "application/json; charset=utf-8", "text/plain", "", "application/wasm"];
    let mut wishes = Wishes(Rng::new(5));
    let mut seen: BTreeMap<(&str, u16), u64> = BTreeMap::new();
    for _ in 0..env_number("TIDEMILL_FUZZ_CHANGES", 400) {
        for (method, route, like) in changes {
            let body = wishes.next(like);
            let pick = |r: &mut Rng, list: &[&'static str]| {
                // Mostly what lets the body be looked at.
                if r.one_in(4) { list[r.below(list.len() as u64) as usize] } else { list[0] }
            };
            let kind = pick(&mut wishes.0, &kinds);
            let tag = pick(&mut wishes.0, &tags);
            let headers: Vec<(&str, &str)> = [("content-type", kind), ("if-match", tag)]
                .into_iter()
                .filter(|(_, v)| !v.is_empty())
                .collect();
            let answer = api.ask(method, &route.replace("{name}", "visits"), &headers, &body);
            let shown =
                || format!("{method} {headers:?} {}", String::from_utf8_lossy(&body[..body.len().min(500)]));
            let what =
                &document["paths"][route][method.to_lowercase()]["responses"][answer.status.to_string()];
            assert!(
                answer.status < 500 && what.is_object(),
                "{} to {}: {}",
                answer.status,
                shown(),
                answer.json()
            );
            if answer.status >= 400 {
                let problem = answer.json();
                assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{}", shown());
                assert_eq!(problem["status"], answer.status, "{problem}");
                assert!(problem["detail"].as_str().is_some_and(|d| !d.is_empty()), "{problem}");
            } else {
                // What is accepted ends.
                let ended = api.ended(answer.clone());
                assert!(matches!(ended["status"].as_str(), Some("in_force" | "refused")), "{ended}");
            }
            *seen.entry((method, answer.status)).or_default() += 1;
        }
    }
    tidemill_tests::report!("changes that were asked for, by their answers: {seen:?}");
    for wanted in
        [("PUT", 202), ("PUT", 400), ("PUT", 412), ("PUT", 415), ("PUT", 428), ("POST", 202), ("POST", 400)]
    {
        assert!(seen.contains_key(&wanted), "{wanted:?} never came: {seen:?}");
    }
    assert_eq!(api.get("/api/v1/pipelines/visits")["state"], "running");
    process.terminate();
    process.outcome(Duration::from_secs(60)).exits(0);
}
