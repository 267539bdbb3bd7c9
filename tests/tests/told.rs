//! A change is told to whoever asked for it once its epoch is durable, and no sooner.
//!
//! The bug family: an operator hears that a deployment is in force, or that a pipeline is paused, the power fails, and after
//! the restart it never was. The sync of that epoch is held up, the process is killed meanwhile, and what it had not synced
//! is cut off, as a power failure does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tidemill_tests::api::{Answer, Api};
use tidemill_tests::faults::{self, Unsynced};
use tidemill_tests::model::{Format, Gap, Source, Unit};
use tidemill_tests::plugins::plugin;
use tidemill_tests::traffic::START_MS;
use tidemill_tests::{Case, Config, Plugin, Process, Session, wait_for};

const WAIT_MAX: Duration = Duration::from_secs(60);
const PIPELINE: &str = "/api/v1/pipelines/visits";
const JSON: [(&str, &str); 2] = [("content-type", "application/json"), ("if-match", "*")];
/// Requests in between, in which an answer that is given too soon has long arrived.
const LOOKS: usize = 50;

/// A host whose syncs can be held up, with one open session and nothing more to read.
struct Host {
    case: Case,
    process: Process,
    api: Api,
    starts: u64,
}

impl Host {
    fn new() -> Host {
        let file = Source::file("web", "in.jsonl", Format::Json, "user", "ts", Unit::Millis);
        let fields = vec![("kind".into(), "type".into())];
        let more = "follow = true\nidle = \"60s\"".into();
        let source = Source { id: Some("id".into()), fields, disorder_ms: 10_000, more, ..file };
        let mut config = Config::new(source, Gap::of_seconds(1, true));
        config.session = Session::Plugin(Plugin::new("swap-sessions", "gap = \"20s\""));
        config.epoch = "20ms".into();
        config.listen = Some("127.0.0.1:0".into());
        let case = Case::new();
        case.put(
            "in.jsonl",
            format!("{{\"id\":\"1\",\"user\":\"ann\",\"ts\":{START_MS},\"type\":\"x\"}}\n").as_bytes(),
        );
        case.configure(&config);
        let (process, api) = Host::start(&case, 1);
        Host { case, process, api, starts: 1 }
    }

    fn restart(&mut self) {
        self.starts += 1;
        (self.process, self.api) = Host::start(&self.case, self.starts);
    }

    fn start(case: &Case, incarnation: u64) -> (Process, Api) {
        let path = |name: &str| case.path(name).to_str().unwrap().to_owned();
        let environment = [faults::preload(), ("FAULT_HOLD", path("hold")), ("FAULT_NOTE", path("note.txt"))];
        let process = case.start(&[], &environment);
        let api = Api::of(case, &process);
        // A start has an epoch of its own. Once that is durable and the row is there, no other follows.
        wait_for("the start's epoch", WAIT_MAX, || {
            (api.get(PIPELINE)["incarnation"].as_u64() == Some(incarnation)).then_some(())
        });
        wait_for("ann's session", WAIT_MAX, || (case.has_table() && !case.table().is_empty()).then_some(()));
        (process, api)
    }

    /// From now on no epoch becomes durable.
    fn hold(&self) {
        self.case.put("hold", b"");
    }

    /// Waits until an epoch that says this is written and not synced.
    fn held(&self, saying: &str) -> Unsynced {
        wait_for("the epoch of the change to be written", WAIT_MAX, || {
            let unsynced = Unsynced::of_note(&self.case.path("note.txt"))?;
            let bytes = std::fs::read(&unsynced.path).unwrap();
            let tail = String::from_utf8_lossy(&bytes[unsynced.synced.unwrap_or(0) as usize..]).into_owned();
            assert!(tail.contains(saying), "the epoch that waits is another: {tail}");
            Some(unsynced)
        })
    }

    /// The power fails; what was not synced is gone.
    fn fails(&mut self, Unsynced { path, synced }: &Unsynced) {
        self.process.kill();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(synced.unwrap_or(0)).unwrap();
        let gone: [PathBuf; 2] = ["hold", "note.txt"].map(|name| self.case.path(name));
        gone.iter().for_each(|path| std::fs::remove_file(path).unwrap());
        self.restart();
    }

    fn history(&self) -> Vec<String> {
        let shown = self.api.get(&format!("{PIPELINE}/deployments"));
        let all = shown["deployments"].as_array().unwrap().iter();
        all.map(|d| format!("{} {}", d["plugin"].as_str().unwrap(), d["standing"].as_str().unwrap()))
            .collect()
    }

    fn audit(&self) -> Vec<String> {
        let shown = self.api.get(&format!("{PIPELINE}/audit"));
        let all = shown["entries"].as_array().unwrap().iter();
        all.map(|e| e["action"].as_str().unwrap().to_owned()).collect()
    }

    /// A change becomes durable when it is let go, and is told then.
    fn is_told(&self, accepted: Answer) {
        let path = accepted.header("location").unwrap().to_owned();
        std::fs::remove_file(self.case.path("hold")).unwrap();
        assert_eq!(self.api.ended(accepted)["status"], "in_force", "{path}");
    }

    #[track_caller]
    fn nobody_was_told(&self, accepted: &Answer) {
        let path = accepted.header("location").unwrap();
        for _ in 0..LOOKS {
            let operation = self.api.get(path);
            assert_eq!(operation["status"], "waiting", "told before its epoch is durable: {operation}");
        }
    }
}

#[test]
fn a_deployment_is_in_force_once_it_is_durable() {
    let mut host = Host::new();
    let (name, version) = host.api.upload(&plugin("swap-sessions-3"));
    let deploy =
        |api: &Api| api.deploy("visits", &name, &version, &json!({ "gap": "45s" }), "migrate").is(202);
    let (first, both) = ("swap-sessions@1.0.0 live", format!("{name}@{version} live"));
    host.hold();
    let accepted = deploy(&host.api);
    let epoch = host.held(&format!("{name}@{version}"));
    host.nobody_was_told(&accepted);
    assert_eq!(host.history(), [first], "what is shown is what is durable");
    host.fails(&epoch);
    assert_eq!((host.history(), host.audit()), (vec![first.to_owned()], vec!["deploy".to_owned()]));
    // Nobody was told, and nothing has happened; the same again, with a disk that is only slow.
    host.hold();
    let accepted = deploy(&host.api);
    host.held(&format!("{name}@{version}"));
    host.nobody_was_told(&accepted);
    host.is_told(accepted);
    assert_eq!(host.history(), [first, &both]);
    host.process.kill();
    host.restart();
    assert_eq!(host.history(), [first, &both], "it was told");
}

/// Bug family: two operators who have seen the same deployment, and of whom one overwrites what the other has just made.
#[test]
fn of_two_who_have_seen_the_same_only_one_deploys() {
    let host = Host::new();
    let tag =
        host.api.ask("GET", &format!("{PIPELINE}/deployment"), &[], b"").header("etag").unwrap().to_owned();
    let builds = ["swap-sessions-2", "swap-sessions-3"].map(|b| host.api.upload(&plugin(b)));
    let put = |n: usize| {
        let (name, version) = &builds[n];
        let wish = json!({ "plugin": name, "version": version, "config": { "gap": "20s" } }).to_string();
        let headers = [("content-type", "application/json"), ("if-match", tag.as_str())];
        host.api.ask("PUT", &format!("{PIPELINE}/deployment"), &headers, wish.as_bytes())
    };
    host.hold();
    let first = put(0).is(202);
    // Accepted, and not committed: what is committed says nothing of it.
    for n in [1, 0, 1] {
        let second = put(n).is(409).json();
        assert_eq!(second["type"], "/problems/swap_pending", "{second}");
    }
    host.held("@2.0.0");
    assert_eq!(put(1).is(409).json()["type"], "/problems/swap_pending");
    host.is_told(first);
    put(1).is(412);
    assert_eq!(host.history(), ["swap-sessions@1.0.0 live", "swap-sessions@2.0.0 live"]);
    assert_eq!(host.api.get("/api/v1/operations")["operations"].as_array().unwrap().len(), 1);
}

#[test]
fn a_rollback_is_in_force_once_it_is_durable() {
    let mut host = Host::new();
    let (name, version) = host.api.upload(&plugin("swap-sessions-3"));
    host.api.ended(host.api.deploy("visits", &name, &version, &json!({ "gap": "45s" }), "migrate"));
    // While both versions are live it is answered when it is done.
    let back = |api: Api| {
        std::thread::spawn(move || api.try_ask("POST", &format!("{PIPELINE}/rollback"), &JSON, b"{}"))
    };
    let struck = format!("{name}@{version} struck");
    host.hold();
    let asked = back(host.api.clone());
    let epoch = host.held("rollback");
    for _ in 0..LOOKS {
        let all = host.api.get("/api/v1/operations");
        let last = all["operations"].as_array().unwrap().last().unwrap();
        assert_eq!((&last["kind"], &last["status"]), (&json!("rollback"), &json!("waiting")));
        assert!(!asked.is_finished(), "told before its epoch is durable");
    }
    host.fails(&epoch);
    assert!(asked.join().unwrap().is_none_or(|answer| answer.status != 202));
    assert!(!host.history().contains(&struck), "nobody was told, and it has happened");
    host.hold();
    let asked = back(host.api.clone());
    host.held("rollback");
    std::fs::remove_file(host.case.path("hold")).unwrap();
    assert_eq!(host.api.ended(asked.join().unwrap().unwrap())["status"], "in_force");
    host.process.kill();
    host.restart();
    assert!(host.history().contains(&struck), "it was told, and has not happened");
}

#[test]
fn a_pause_is_told_once_it_is_durable() {
    let mut host = Host::new();
    host.hold();
    let api = host.api.clone();
    let asked = std::thread::spawn(move || api.try_ask("POST", &format!("{PIPELINE}/pause"), &[], b""));
    let epoch = host.held("\"pause\"");
    for _ in 0..LOOKS {
        assert_eq!(host.audit(), ["deploy"]);
        assert!(!asked.is_finished(), "told before its epoch is durable");
    }
    host.fails(&epoch);
    assert!(asked.join().unwrap().is_none_or(|answer| answer.status != 200));
    let state = |api: &Api| -> Value { api.get(PIPELINE)["state"].clone() };
    assert_eq!(state(&host.api), "running");
    let paused = host.api.ask("POST", &format!("{PIPELINE}/pause"), &[], b"").is(200);
    host.process.kill();
    host.restart();
    assert_eq!((state(&host.api), host.audit().pop()), (json!("paused"), Some("pause".into())), "{paused:?}");
}
