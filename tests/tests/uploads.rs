//! Components that nobody has written, brought and deployed over the admin API: made up by wasm-smith, and real ones with other
//! instructions, constants and sections. Each is refused in words or runs, is stopped where it must be, and can be taken back;
//! the host lives, answers everybody in time, and the neighbour's table is what it is without all this.
//!
//! The bug family: a component that costs the host its life, its memory or its time, at any step from the upload to the fold; a
//! pipeline that cannot be got back from one; an answer, a fault or a wait that crosses to another pipeline.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};
use tidemill_fuzz::wasm::{self, Mutant, Original, mutants};
use tidemill_fuzz::{Targets, Verdict};
use tidemill_tests::api::{Answer, Api};
use tidemill_tests::model::{self, Format, Gap, Source, Unit};
use tidemill_tests::plugins::plugin;
use tidemill_tests::{Case, Process, current, latest, same_table, wait_for};

/// Far more than anything takes on a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(30);
const WAIT_MAX: Duration = Duration::from_secs(60);
const MEMORY_MAX: u64 = 1_500 << 20;
const BEGIN_MS: i64 = 1_735_689_600_000;
const TEAMS: [(&str, &str); 2] = [("tried", "0123456789abcdef"), ("steady", "fedcba9876543210")];
const TRIED: usize = 0;
const STEADY: usize = 1;
const CLOSER: &str = "closer";
/// Those that are changed, which version they say they are, and what they are configured with.
const REAL: [(&str, &str, &str); 5] = [
    ("gap-sessions", "0.1.0", r#"{"gap":"30s"}"#),
    ("checkout-sessions", "0.1.0", r#"{"idle":"30m"}"#),
    ("swap-sessions", "1.0.0", "{}"),
    ("clickstream-validator", "0.1.0", "{}"),
    ("profile-enricher", "0.1.0", "{}"),
];

/// Two teams, each with a source and a pipeline of its own.
fn configure(case: &Case) {
    let mut t = String::from("[server]\ndata_dir = \"state\"\nlisten = \"127.0.0.1:0\"\nepoch = \"50ms\"\n");
    for (name, key) in TEAMS {
        let _ = writeln!(
            t,
            "[source.{name}]\nkind = \"http\"\nlisten = \"127.0.0.1:0\"\nfar_future = \"off\"\nidle = \"60s\"\n\
             write_keys = [\"{key}\"]\nkey = \"u\"\ntime = {{ field = \"t\", unit = \"ms\" }}\nid = \"id\"\ndisorder = \"1s\"\n\
             [pipeline.{name}]\nfrom = [\"{name}\"]\nsession = {{ plugin = \"builtin:gap\", config = {{ gap = \"30s\" }} }}\n\
             early = \"epoch\"\nto = [\"{name}_rows\"]\ndead = \"{name}_dead\"\n\
             [sink.{name}_rows]\nkind = \"file\"\npath = \"{name}_rows.jsonl\"\n\
             [sink.{name}_dead]\nkind = \"file\"\npath = \"{name}_dead.jsonl\"\n",
        );
    }
    case.put("pipeline.toml", t.as_bytes());
}

fn event(id: u64, user: &str, at_ms: i64) -> String {
    format!(
        "{{\"id\":\"{id}\",\"u\":\"{user}\",\"t\":{at_ms},\"type\":\"page_view\",\"url\":\"/cart?n={id}\"}}\n"
    )
}

/// What is brought.
#[derive(Clone)]
enum Brought {
    Mutant(Mutant),
    Component(Vec<u8>),
    Module(Vec<u8>),
}

impl std::fmt::Debug for Brought {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Brought::Mutant(m) => write!(f, "{m:?}"),
            Brought::Component(dna) => write!(f, "a component of {dna:?}"),
            Brought::Module(dna) => write!(f, "a module of {dna:?}"),
        }
    }
}

/// A host with all that was posted, and how often each step came to which end.
struct Host {
    case: Case,
    process: Process,
    api: Api,
    teams: Vec<Api>,
    posted: [String; 2],
    events: u64,
    brought: u64,
    ends: BTreeMap<String, u64>,
}

impl Host {
    fn start() -> Host {
        let case = Case::new();
        configure(&case);
        let process = case.start(&[], &[]);
        let api = Api::of(&case, &process);
        let said = process.said_so_far();
        let team = |(name, key): (&str, &str)| {
            let (_, rest) = said.split_once(&format!("source `{name}` takes events at http://")).unwrap();
            let (address, _) = rest.split_once("/v1/events").unwrap();
            Api { address: address.to_owned(), token: key.to_owned() }
        };
        let teams = TEAMS.map(team).to_vec();
        Host {
            case,
            process,
            api,
            teams,
            posted: Default::default(),
            events: 0,
            brought: 0,
            ends: BTreeMap::new(),
        }
    }

    fn ask(&mut self, what: &str, method: &str, path: &str, kind: &str, body: &[u8]) -> Answer {
        assert!(!self.process.ended(), "it is gone:\n{}", self.process.said_so_far());
        let begun = Instant::now();
        let headers = [("content-type", kind), ("if-match", "*")];
        let answer = self.api.ask(method, path, &headers, body);
        assert!(begun.elapsed() < ANSWER_MAX, "{what} took {:?}", begun.elapsed());
        *self.ends.entry(format!("{what} {}", answer.status)).or_default() += 1;
        let body = String::from_utf8_lossy(&answer.body);
        assert!(answer.status < 500, "{what}: {}: {body}", answer.status);
        if answer.status >= 400 {
            assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}: {body}");
        }
        answer
    }

    fn shown(&self, team: usize) -> Value {
        self.api.get(&format!("/api/v1/pipelines/{}", TEAMS[team].0))
    }

    /// Both teams' visitors go on: a minute of them.
    fn go_on(&mut self) {
        for _ in 0..6 {
            self.events += 1;
            let line = event(
                self.events,
                &format!("user-{}", self.events % 4),
                BEGIN_MS + 10_000 * self.events as i64,
            );
            for team in [TRIED, STEADY] {
                self.post(team, &line);
            }
        }
    }

    fn post(&mut self, team: usize, line: &str) {
        let begun = Instant::now();
        let kind = [("content-type", "application/x-ndjson")];
        self.teams[team].ask("POST", "/v1/events", &kind, line.as_bytes()).is(202);
        assert!(begun.elapsed() < ANSWER_MAX, "events wait for {:?}", begun.elapsed());
        self.posted[team] += line;
    }

    /// Waits until a pipeline has committed what was posted, or reads no more.
    fn taken(&self, team: usize) -> String {
        let events = self.posted[team].lines().count();
        wait_for("what was posted to be committed", WAIT_MAX, || {
            let shown = self.shown(team);
            let stands = shown["state"] != "running" && shown["state"] != "starting";
            (stands || shown["counters"]["events"] == events)
                .then(|| shown["state"].as_str().unwrap().to_owned())
        })
    }

    /// Waits until an operation has come to its end; in which state.
    fn ended(&self, accepted: &Answer) -> String {
        let path = accepted.header("location").expect("an operation has a place");
        wait_for("the operation", WAIT_MAX, || {
            let status = self.api.get(path)["status"].as_str()?.to_owned();
            (status != "waiting").then_some(status)
        })
    }

    fn try_out(&mut self, what: &Brought) -> Verdict {
        self.brought += 1;
        let bytes = match what {
            // Versions are never changed: each mutant has its own.
            Brought::Mutant(m) => with_version(m, self.brought),
            Brought::Component(dna) => wasm::component(dna).unwrap_or_default(),
            Brought::Module(dna) => wasm::module(dna, None).unwrap_or_default(),
        };
        let answer = self.ask("upload", "POST", "/api/v1/plugins", "application/wasm", &bytes);
        let is_kept = matches!(answer.status, 200 | 201);
        if let Brought::Mutant(m) = what {
            assert!(
                !m.is_original() || is_kept,
                "as it was, it is refused: {}",
                String::from_utf8_lossy(&answer.body)
            );
        }
        if is_kept {
            self.run(&answer.json(), what);
        }
        self.go_on();
        assert_eq!(self.taken(STEADY), "running");
        Verdict::accepted(is_kept)
    }

    /// Lets time pass until only one version is live on the one pipeline.
    fn settle(&mut self) {
        for _ in 0..40 {
            let live = self.shown(TRIED)["deployments"].as_array().map_or(0, Vec::len);
            if live == 1 || self.taken(TRIED) != "running" {
                return;
            }
            self.go_on();
        }
        panic!("two versions are live for ever: {}", self.shown(TRIED));
    }

    /// Deploys a version on the one pipeline, lets events flow, and takes it back.
    fn run(&mut self, version: &Value, what: &Brought) {
        let config = match what {
            Brought::Mutant(m) => real(m).2,
            _ => "{}",
        };
        if version["kind"] == "sessionizer" {
            self.settle();
        }
        let config: Value = serde_json::from_str(config).unwrap();
        let body = json!({
            "plugin": version["name"], "version": version["version"], "config": config, "policy": "drain", "drain_max": "1m", "message": "a try",
        });
        let at = "/api/v1/pipelines/tried";
        let deployed = self.ask(
            "deploy",
            "PUT",
            &format!("{at}/deployment"),
            "application/json",
            body.to_string().as_bytes(),
        );
        if deployed.status != 202 {
            return;
        }
        let came = self.ended(&deployed);
        *self.ends.entry(format!("deployed: {came}")).or_default() += 1;
        self.go_on();
        let state = self.taken(TRIED);
        *self.ends.entry(format!("then {state}")).or_default() += 1;
        assert_ne!(state, "failed", "{}", self.shown(TRIED));
        let body = json!({ "policy": "drain", "drain_max": "1m" }).to_string();
        let back =
            self.ask("rollback", "POST", &format!("{at}/rollback"), "application/json", body.as_bytes());
        if back.status == 202 {
            let came = self.ended(&back);
            *self.ends.entry(format!("taken back: {came}")).or_default() += 1;
        }
    }

    /// The neighbour has what it has without all this, and the host is well.
    fn ends_well(mut self) {
        let last = event(u64::MAX, CLOSER, BEGIN_MS + 10_000 * self.events as i64 + 3_600_000);
        self.post(STEADY, &last);
        let file = Source::file("steady", "-", Format::Json, "u", "t", Unit::Millis);
        let source = Source { id: Some("id".into()), disorder_ms: 1_000, ..file };
        let rule = Gap::of_seconds(30, false);
        let log = model::read(&[(&source, "-", self.posted[STEADY].as_bytes())], &rule);
        let mut want = model::sessions(&log, &BTreeSet::new(), &rule);
        want.retain(|r| r.key != CLOSER);
        let rows = || {
            let mut rows = latest(self.case.lines("steady_rows.jsonl"));
            rows.retain(|r| r.row.key != CLOSER);
            rows
        };
        wait_for("the neighbour's sessions to be final", WAIT_MAX, || {
            let rows = rows();
            (rows.len() >= want.len() && rows.iter().all(|r| r.stage == "final")).then_some(())
        });
        same_table("the neighbour", &want, &current(&rows()));
        assert_eq!(self.case.lines("steady_dead.jsonl"), []);
        tidemill_tests::report!("uploads: {:?}", self.ends);
        self.process.terminate();
        let (outcome, peak_bytes) = self.process.outcome_and_peak(WAIT_MAX);
        outcome.exits(0);
        assert!(!outcome.said.contains("panicked"), "{}", outcome.said);
        assert!(peak_bytes < MEMORY_MAX, "{peak_bytes} bytes");
    }
}

fn real(mutant: &Mutant) -> (&'static str, &'static str, &'static str) {
    *REAL.iter().find(|(name, ..)| *name == mutant.original.name).unwrap()
}

/// The component under another version, as long as the one that it has.
fn with_version(mutant: &Mutant, n: u64) -> Vec<u8> {
    let version = format!("{}.{}.{}", 2 + n / 100 % 8, n / 10 % 10, n % 10);
    let own = real(mutant).1.as_bytes();
    let mut bytes = mutant.bytes.clone();
    let found = mutant.bytes.windows(own.len()).enumerate().filter(|(_, w)| *w == own);
    for (at, _) in found {
        bytes[at..at + own.len()].copy_from_slice(version.as_bytes());
    }
    bytes
}

#[test]
fn components_that_nobody_has_written_harm_nobody() {
    let originals = REAL.map(|(name, ..)| Original::new(name, std::fs::read(plugin(name)).unwrap())).to_vec();
    let dna = || vec(any::<u8>(), 0..2_000);
    let brought = prop_oneof![
        8 => mutants(originals).prop_map(Brought::Mutant),
        1 => dna().prop_map(Brought::Component),
        1 => dna().prop_map(Brought::Module),
    ];
    let host = RefCell::new(Host::start());
    Targets(1).fuzz("uploads", 64, brought, |what| host.borrow_mut().try_out(&what));
    let host = host.into_inner();
    let ran = host.ends.iter().filter(|(end, _)| end.starts_with("deployed")).map(|(_, n)| n).sum::<u64>();
    assert!(ran > 0, "none ran: {:?}", host.ends);
    host.ends_well();
}
