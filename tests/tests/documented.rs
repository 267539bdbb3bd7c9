//! The admin API held against its own description by programs that others wrote: schemathesis asks everything that the
//! OpenAPI document allows and much that it does not, promtool reads the metrics.
//!
//! The bug family: an answer that the document does not name, a request that crashes a handler, a metric that a collector
//! stumbles over. Both programs are optional: without them this says so and tests nothing. `TIDEMILL_SCHEMATHESIS` and
//! `TIDEMILL_PROMTOOL` name them if they are not in the path (`pip install schemathesis`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::Value;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tidemill_tests::api::Api;
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
            "2",
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
