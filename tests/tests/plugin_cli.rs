//! What the author of a plugin does: `plugin new`, `test`, `build`, `inspect`, and a pipeline that runs it; and what is
//! refused on the way.
//!
//! The bug families: a plugin that compiles in this repository only; a mistake that no native test can see (memory between
//! calls, another answer on wasm32). Authored plugins stand in folders outside of the repository, and are built without a network into
//! the repository's own target folder, so that what they depend on is compiled once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;
use tidemill_tests::model::{self, Format, Gap, Source, Unit};
use tidemill_tests::{
    Case, Config, binary, current, plugins::plugin, report, same_table, target_dir, trials,
};

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// `tidemill plugin …` in a folder.
fn tidemill(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(binary()).arg("plugin").args(arguments).current_dir(dir).output().unwrap()
}

/// A plugin in the hands of its author, in a folder outside of the repository.
struct Author {
    case: Case,
    name: &'static str,
    begun: Instant,
    steps: u32,
}

impl Author {
    /// Makes a plugin.
    fn new(name: &'static str, kind: &str) -> Author {
        let mut author = Author { case: Case::new(), name, begun: Instant::now(), steps: 0 };
        assert!(!author.case.path("").starts_with(workspace()), "the folder is outside of the repository");
        let (code, said) = author.said_in("", &["plugin", "new", name, "--kind", kind]);
        assert_eq!(code, Some(0), "{said}");
        for step in ["plugin test", "plugin build --out", "run pipeline.toml"] {
            assert!(said.contains(step), "what to do next: {said}");
        }
        author
    }

    /// A command in a folder: its exit code and all that it said.
    fn said_in(&mut self, folder: &str, arguments: &[&str]) -> (Option<i32>, String) {
        self.steps += 1;
        let mut command = Command::new(binary());
        command.args(arguments).current_dir(self.case.path(folder));
        // Without a network, and with all that other tests have built of the same crates.
        command.env("CARGO_NET_OFFLINE", "true").env("CARGO_TARGET_DIR", target_dir());
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
        (output.status.code(), said.concat())
    }

    /// A command in the plugin's folder that ends with this code.
    #[track_caller]
    fn does(&mut self, code: i32, arguments: &[&str]) -> String {
        let (found, said) = self.said_in(self.name, arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {said}");
        said
    }

    /// Puts a text of a file in place of another.
    #[track_caller]
    fn edits(&self, file: &str, old: &str, new: &str) {
        let path = format!("{}/{file}", self.name);
        let text = std::fs::read_to_string(self.case.path(&path)).unwrap();
        assert!(text.contains(old), "no {old:?} in {file}");
        self.case.put(&path, text.replace(old, new).as_bytes());
    }

    /// The component, built.
    fn builds(&mut self) -> String {
        let out = format!("{}.wasm", self.name);
        self.does(0, &["plugin", "build", "--out", &out]);
        out
    }

    fn took(&self, what: &str) {
        report!("{what}: {} steps, {:.1} s", self.steps, self.begun.elapsed().as_secs_f64());
    }
}

/// The one JSON object that it printed.
#[track_caller]
fn json(output: &Output, code: i32) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"))
}

#[test]
fn a_crate_of_a_workspace_becomes_the_component_that_other_tools_make() {
    let there = tempfile::tempdir().unwrap();
    let out = there.path().join("new/gap.wasm");
    let built =
        tidemill(workspace(), &["build", "plugins/gap-sessions", "--json", "--out", out.to_str().unwrap()]);
    let built = json(&built, 0);
    assert_eq!((&built["world"], &built["name"]), (&"sessionizer".into(), &"gap-sessions".into()));
    assert_eq!(built["imports"][0], "tidemill:plugin/host@0.3.0");
    let bytes = std::fs::read(&out).unwrap();
    assert_eq!(built["bytes"], bytes.len());
    assert!(bytes == std::fs::read(plugin("gap-sessions")).unwrap(), "two ways, two components");
}

#[test]
fn what_is_no_plugin_is_refused_with_what_to_do() {
    for (dir, what) in [
        (".", "is a workspace and no crate"),
        ("host/engine", "crate-type = [\"cdylib\", \"rlib\"]"),
        ("nowhere", "name the folder of a plugin's crate"),
    ] {
        let refused = json(&tidemill(workspace(), &["build", dir, "--json"]), 4);
        assert!(refused.to_string().replace('\\', "").contains(what), "{refused}");
    }
}

/// Code lines of the plugin: between `impl` and the end of it, without comments.
fn lines_of_rule(source: &str) -> usize {
    let lines = source.lines().skip_while(|l| !l.starts_with("impl ")).take_while(|l| *l != "}");
    lines.map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("//")).count()
}

#[test]
fn a_session_rule_of_ones_own_from_an_empty_folder_to_the_table_of_a_log() {
    let mut author = Author::new("visits", "sessionizer");
    let source = std::fs::read_to_string(author.case.path("visits/src/lib.rs")).unwrap();
    assert!(lines_of_rule(&source) < 40, "{} lines", lines_of_rule(&source));
    // Ten minutes in place of thirty, and the name that the built-in rule has for silence.
    author.edits("src/lib.rs", "Duration::minutes(30)", "Duration::minutes(10)");
    author.edits(
        "src/lib.rs",
        "    Silence,\n    Purchase,",
        "    #[name = \"gap\"]\n    Silence,\n    Purchase,",
    );
    let differs = author.does(3, &["plugin", "test"]);
    assert!(differs.contains("silence_ends_a_visit") && differs.contains("fail natively"), "{differs}");
    author.edits("tests/scenarios.rs", "silence {", "gap {");
    author.edits("tests/scenarios.rs", "10:31", "10:11");
    let tested = author.does(0, &["plugin", "test"]);
    assert!(tested.contains("2 tests") && tested.contains("as its scenarios say"), "{tested}");
    let wasm = author.builds();
    author.does(0, &["check", "pipeline.toml"]);

    let trial = trials::apache();
    let source = Source {
        fields: vec![("kind".into(), "method".into())],
        ..Source::file("web", trial.file, Format::Combined, "host", "time", Unit::Clf)
    };
    let gap = Gap::of_seconds(600, false);
    let builtin = Case::new();
    for case in [&author.case, &builtin] {
        case.put(trial.file, &trial.packed);
        case.configure(&Config::new(source.clone(), gap.clone()));
    }
    let config = std::fs::read_to_string(author.case.path("pipeline.toml")).unwrap();
    let session = config.lines().find(|l| l.starts_with("session = ")).expect("the built-in rule");
    let config = config.replace(session, "session = { plugin = \"visits\" }");
    author
        .case
        .put("pipeline.toml", format!("{config}\n[plugin.visits]\npath = \"visits/{wasm}\"\n").as_bytes());
    let (code, said) = author.said_in("", &["run", "pipeline.toml"]);
    assert_eq!(code, Some(0), "{said}");
    author.took("from an empty folder to the table of a log");

    builtin.run().exits(0);
    let log = model::read(&[(&source, trial.file, &trial.plain)], &gap);
    let table = author.case.table();
    same_table("builtin:gap", &current(&builtin.table()), &current(&table));
    same_table("the model", &model::sessions(&log, &Default::default(), &gap), &current(&table));
    for row in table {
        let fields: Value = serde_json::from_str(&row.fields).unwrap();
        assert_eq!(
            (&row.row.events.into(), true),
            (&fields["pages"], fields["entry"].is_string()),
            "{row:?}"
        );
    }
    mistakes(&mut author);
}

/// What `plugin test` finds although the crate compiles.
fn mistakes(author: &mut Author) {
    let pages = "visit.pages += 1;";
    // In the rule: natively the scenario cuts its turns in two ways.
    let counter = "static SEEN: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);\n        \
                   visit.pages = 1 + SEEN.fetch_add(1, std::sync::atomic::Ordering::Relaxed);";
    author.edits("src/lib.rs", pages, counter);
    let said = author.does(3, &["plugin", "test"]);
    assert!(said.contains("must be in its State"), "a static counter: {said}");
    // On wasm32 alone, where no native test sees it.
    author.edits("src/lib.rs", counter, "visit.pages += if cfg!(target_arch = \"wasm32\") { 2 } else { 1 };");
    let said = author.does(3, &["plugin", "test"]);
    assert!(said.contains("otherwise than the same code natively"), "{said}");
    assert!(
        said.contains("- session of events 0 to 1, gap by timer silence") && said.contains("\"pages\":4"),
        "{said}"
    );
    let panics = "visit.pages += 1;\n        \
                  assert!(cfg!(not(target_arch = \"wasm32\")) || visit.pages < 2, \"cannot count\");";
    author.edits("src/lib.rs", "visit.pages += if cfg!(target_arch = \"wasm32\") { 2 } else { 1 };", panics);
    let said = author.does(3, &["plugin", "test"]);
    let source = std::fs::read_to_string(author.case.path("visits/src/lib.rs")).unwrap();
    let line = 1 + source.lines().position(|l| l.contains("cannot count")).unwrap();
    assert!(said.contains(&format!("panicked: cannot count at src/lib.rs:{line}")), "file and line: {said}");
    author.edits("src/lib.rs", "visit.pages += 1;", "visit.pages += \"one\";");
    assert!(author.does(1, &["plugin", "test"]).contains("cannot add-assign"), "what the compiler says");
    author.edits("src/lib.rs", "visit.pages += \"one\";", "visit.pages += 1;");
    author.case.put("visits/tests/scenarios.rs", b"#[test] fn nothing() {}");
    assert!(
        author.does(3, &["plugin", "test"]).contains("no scenario has asked"),
        "an empty test tests nothing"
    );
}

#[test]
fn a_validator_of_ones_own_and_memory_between_its_calls() {
    let mut author = Author::new("people-only", "validator");
    author.does(0, &["plugin", "test"]);
    let wasm = author.builds();
    let told = author.does(0, &["plugin", "inspect", &wasm, "--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["world"], &told["name"]), (&"validator".into(), &"people-only".into()));
    assert_eq!(told["fields"][1]["name"], "agent");
    assert_eq!(told["reasons"], serde_json::json!(["foreign_url", "robot"]));
    let robots = &told["config_schema"]["properties"]["robots"];
    assert_eq!(
        (&robots["type"], &robots["default"]),
        (&"array".into(), &serde_json::json!(["bot", "crawler"]))
    );
    assert_eq!(told["config_schema"]["properties"]["site"]["default"], "/");
    assert_eq!(told["bytes"], std::fs::metadata(author.case.path("people-only").join(&wasm)).unwrap().len());
    assert_eq!((told["limits"]["call_ms"].as_u64(), told["state"].is_null()), (Some(25), true));
    let shown = author.does(0, &["plugin", "inspect", &wasm]);
    for word in
        ["foreign_url, robot", told["digest"].as_str().unwrap(), "128 MiB", "Words in the agent's name"]
    {
        assert!(shown.contains(word), "no {word:?} in {shown}");
    }
    author.does(0, &["check", "pipeline.toml"]);
    misconfigured(&mut author);
    author.does(0, &["run", "pipeline.toml"]);
    let letters = std::fs::read_to_string(author.case.path("people-only/dead.jsonl")).unwrap();
    assert!(letters.lines().all(|l| l.contains("\"robot\"")) && letters.lines().count() > 1_000);
    author.took("a validator");

    // Each event is new to the native tests, which judge it once; the component is asked again.
    let remembers = "static SEEN: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
        let mut seen = SEEN.lock().unwrap();
        let who = format!(\"{} {}\", event.url(), event.agent());
        ensure(!seen.contains(&who), Why::Robot, || \"seen before\")?;
        seen.push(who);
        let agent";
    author.edits("src/lib.rs", "let agent", remembers);
    let said = author.does(3, &["plugin", "test"]);
    assert!(said.contains("something is kept between calls") && said.contains("seen before"), "{said}");
}

/// What `check` says of a plugin that does not fit its config file, each at its place.
fn misconfigured(author: &mut Author) {
    let large = std::fs::File::create(author.case.path("people-only/large.wasm")).unwrap();
    large.set_len(LARGE_BYTES).unwrap();
    let robots = "robots = [\"tablet\"]";
    let session = "session  = { plugin = \"builtin:gap\", config = { gap = \"30m\" } }";
    for (old, new, expected) in [
        (robots, "robots = [\"tablet\", 7], sits = \"/\"", &["config.robots", "config.sits"][..]),
        ("site = \"https://shop.example/\"", "site = \"\"", &["plugin.people-only.config.site"]),
        ("people-only.wasm", "pipeline.toml", &["plugin.people-only.path"]),
        (session, "session  = { plugin = \"people-only\" }", &["pipeline.visits.session.plugin"]),
        // Each is the one thing that is wrong: the plugin is there, and nobody says that it is not.
        (robots, "robots = [2026-11-25]", &["plugin.people-only.config.robots"]),
        ("people-only.wasm", "large.wasm", &["plugin.people-only.path"]),
    ] {
        author.edits("pipeline.toml", old, new);
        let text = std::fs::read_to_string(author.case.path("people-only/pipeline.toml")).unwrap();
        let line = 1 + text.lines().position(|l| l.contains(new)).unwrap();
        let said = author.does(4, &["check", "pipeline.toml", "--json"]);
        let said: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        let problems = said["problems"].as_array().unwrap();
        let found: Vec<&str> = problems.iter().map(|p| p["key"].as_str().unwrap()).collect();
        assert!(found.iter().zip(expected).all(|(f, e)| f.ends_with(e)), "{new}: {said:#}");
        assert_eq!(found.len(), expected.len(), "{new}: {said:#}");
        assert!(problems.iter().all(|p| p["line"] == line), "line {line}: {said:#}");
        author.edits("pipeline.toml", new, old);
    }
}

#[test]
fn an_enricher_of_ones_own() {
    let mut author = Author::new("known-visitors", "enricher");
    // As in a folder of plugins; the scenarios run on this machine all the same.
    author.case.put(".cargo/config.toml", b"[build]\ntarget = \"wasm32-unknown-unknown\"\n");
    let tested = author.does(0, &["plugin", "test"]);
    assert!(tested.contains("6 calls"), "three sessions, asked for their lookups and enriched: {tested}");
    author.builds();
    author.does(0, &["run", "pipeline.toml"]);
    let db = rusqlite::Connection::open(author.case.path("known-visitors/sessions.db")).unwrap();
    let known =
        "SELECT count(*) FROM sessions_current WHERE fields = '{\"segment\":\"gold\",\"country\":\"NL\"}'";
    assert!(db.query_row(known, [], |r| r.get::<_, i64>(0)).unwrap() > 0, "a row of visitors.csv");
    author.took("an enricher");
}

#[test]
fn a_new_plugin_takes_no_place_that_is_taken_and_no_name_that_is_none() {
    let there = tempfile::tempdir().unwrap();
    let new = |name: &str, code: i32| {
        let refused = json(&tidemill(there.path(), &["new", name, "--kind", "sessionizer", "--json"]), code);
        refused.to_string()
    };
    std::fs::create_dir(there.path().join("empty")).unwrap();
    new("empty", 0);
    assert!(there.path().join("empty/Cargo.toml").is_file(), "an empty folder is room enough");
    assert!(new("empty", 4).contains("is there already, and is not empty"));
    std::fs::write(there.path().join("file"), "").unwrap();
    assert!(new("file", 4).contains("is no folder"));
    assert!(new("My_Visits", 2).contains("my-visits"), "what would do");
    assert_eq!(std::fs::read_dir(there.path()).unwrap().count(), 2, "nothing half-made is left");
}

/// More than any machine has memory, and nothing on the disk.
const LARGE_BYTES: u64 = 1 << 40;

#[test]
fn what_is_no_component_cannot_be_inspected() {
    let there = tempfile::tempdir().unwrap();
    std::fs::File::create(there.path().join("large.wasm")).unwrap().set_len(LARGE_BYTES).unwrap();
    std::fs::write(there.path().join("x.wasm"), b"\0asm\x01\0\0\0").unwrap();
    for (file, what) in [
        ("x.wasm", "component"),
        ("none.wasm", "cannot be read"),
        ("large.wasm", "1099511627776 bytes, where 67108864 are allowed"),
    ] {
        let refused = json(&tidemill(there.path(), &["inspect", file, "--json"]), 4);
        assert!(refused.to_string().contains(what), "{refused}");
    }
}
