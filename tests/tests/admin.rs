//! The admin API of a host that runs: who is let in, what is told, and versions of a rule brought, deployed and taken back.
//!
//! The bug family: an answer to somebody who may not have it, a status that the document does not name, a version that is
//! half there, a change that counts for another pipeline or for none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;
use tidemill_tests::{Case, Process, binary, plugins, wait_for};

const WRITE_KEY: &str = "0123456789abcdef";
const START_MAX: Duration = Duration::from_secs(60);
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Two pipelines over what is posted.
fn configure(case: &Case, session: &str) {
    configure_at(case, session, "127.0.0.1:0");
}

fn configure_at(case: &Case, session: &str, listen: &str) {
    let path = |name: &str| Value::from(case.path(name).to_str().unwrap()).to_string();
    let pipeline = |name: &str| {
        format!(
            "[pipeline.{name}]\nfrom = [\"web\"]\nsession = {session}\nto = [\"{name}\"]\ndead = \"{name}_dead\"\n\
             [sink.{name}]\nkind = \"sqlite\"\npath = {}\ntable = \"{name}\"\n\
             [sink.{name}_dead]\nkind = \"file\"\npath = {}\n",
            path("sessions.db"),
            path(&format!("{name}.jsonl"))
        )
    };
    let text = format!(
        "[server]\ndata_dir = {}\nlisten = \"{listen}\"\nepoch = \"50ms\"\n\
         [source.web]\nkind = \"http\"\nlisten = \"127.0.0.1:0\"\nwrite_keys = [\"{WRITE_KEY}\"]\n\
         key = \"user\"\ntime = {{ field = \"ts\", unit = \"ms\" }}\nid = \"id\"\ndisorder = \"1s\"\nfar_future = \"off\"\n\
         {}{}[plugin.gap-sessions]\npath = {}\nconfig = {{ gap = \"30s\" }}\n",
        path("state"),
        pipeline("visits"),
        pipeline("orders"),
        Value::from(plugins::plugin("gap-sessions").to_str().unwrap()),
    );
    case.put("pipeline.toml", text.as_bytes());
    plugins::lend(&case.path("state"));
}

/// A host, its addresses and its token.
struct Host {
    process: Process,
    events: String,
    admin: String,
    token: String,
}

/// An answer: status, head, body.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {} {}", self.head, String::from_utf8_lossy(&self.body)))
    }
    fn header(&self, name: &str) -> Option<String> {
        let lines = self.head.lines().filter_map(|l| l.split_once(": "));
        lines.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.to_owned())
    }
    #[track_caller]
    fn is(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{} {}", self.head, String::from_utf8_lossy(&self.body));
        self
    }
}

/// One request, whole.
fn ask(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    if !headers.iter().any(|(n, _)| *n == "host") {
        head += &format!("host: {address}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    // A body that is too long may be answered before its end.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let at = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(answer[..at].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head, body: answer[at + 4..].to_vec() }
}

fn start(case: &Case) -> Host {
    let process = case.start(&[], &[]);
    let after = |text: &str| {
        wait_for(text, START_MAX, || {
            let said = process.said_so_far();
            let (_, rest) = said.split_once(text)?;
            let (line, _) = rest.split_once('\n')?;
            Some(line.trim().trim_end_matches("/v1/events").to_owned())
        })
    };
    let events = after("takes events at http://");
    let admin = after("the admin API is at http://");
    let token = token(case, &[]);
    wait_for("the host to be ready", START_MAX, || {
        (ask(&admin, "GET", "/ready", &[], b"").status == 200).then_some(())
    });
    Host { process, events, admin, token }
}

fn token(case: &Case, arguments: &[&str]) -> String {
    let mut command = Command::new(binary());
    let output = command.arg("token").arg(case.path("pipeline.toml")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Host {
    fn with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        assert!(TcpStream::connect(&self.admin).is_ok(), "it is gone:\n{}", self.process.said_so_far());
        let bearer = format!("Bearer {}", self.token);
        let headers: Vec<_> =
            [("authorization", bearer.as_str())].into_iter().chain(headers.iter().copied()).collect();
        ask(&self.admin, method, path, &headers, body)
    }
    fn get(&self, path: &str) -> Value {
        self.with("GET", path, &[], b"").is(200).json()
    }
    fn post(&self, lines: &str) {
        let headers =
            [("authorization", "Bearer 0123456789abcdef"), ("content-type", "application/x-ndjson")];
        let answer = ask(&self.events, "POST", "/v1/events", &headers, lines.as_bytes()).is(202).json();
        assert_eq!(answer["rejected"], json!([]));
    }
    fn upload(&self, component: &[u8], query: &str) -> Answer {
        self.with(
            "POST",
            &format!("/api/v1/plugins{query}"),
            &[("content-type", "application/wasm")],
            component,
        )
    }
    /// Waits until something at a path is as wanted.
    fn wait(&self, path: &str, pointer: &str, wanted: &Value) {
        wait_for(&format!("{pointer} of {path} to be {wanted}"), Duration::from_secs(60), || {
            (self.get(path).pointer(pointer) == Some(wanted)).then_some(())
        });
    }
    fn ends(self) {
        self.process.terminate();
        self.process.outcome(Duration::from_secs(60)).exits(0);
    }
}

fn event(id: u32, user: &str, ts_ms: i64) -> String {
    format!("{{\"id\":\"{id}\",\"user\":\"{user}\",\"ts\":{ts_ms},\"type\":\"view\"}}\n")
}

const GAP: &str = "{ plugin = \"gap-sessions\" }";
const START_MS: i64 = 1_714_521_600_000;

fn wasm(name: &str) -> Vec<u8> {
    std::fs::read(plugins::plugin(name)).unwrap()
}

#[test]
fn nobody_without_the_token_is_let_in_and_pages_of_others_not_even_with_it() {
    let case = Case::new();
    configure(&case, GAP);
    let host = start(&case);
    let document = ask(&host.admin, "GET", "/openapi.json", &[], b"").is(200).json();
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let at = path.replace("{name}", "visits").replace("{version}", "1.0.0").replace("{id}", "1");
        for method in item.as_object().unwrap().keys().map(|m| m.to_uppercase()) {
            let open = ["/health", "/ready"].contains(&path.as_str());
            let secret = format!("Bearer {}", host.token);
            for wrong in ["", "Bearer wrong", "Bearer 0123456789abcdef", &secret[..secret.len() - 1]] {
                let answer = ask(&host.admin, &method, &at, &[("authorization", wrong)], b"");
                assert_eq!(answer.status, if open { 200 } else { 401 }, "{method} {at} with {wrong}");
                assert!(open || answer.json()["type"] == "/problems/token");
            }
            for origin in ["https://evil.example", "null", "http://127.0.0.1:1"] {
                host.with(&method, &at, &[("origin", origin)], b"").is(403);
            }
            host.with(&method, &at, &[("host", "evil.example")], b"").is(403);
            tried += 1;
        }
    }
    assert!(tried >= 20, "{tried}");
    // The token opens nothing but the admin API, and is said once.
    let bearer = format!("Bearer {}", host.token);
    ask(&host.events, "POST", "/v1/events", &[("authorization", &bearer)], b"{}").is(401);
    assert_eq!(host.process.said_so_far().matches(&host.token).count(), 1);
    let next = token(&case, &["--rotate"]);
    assert_ne!(next, host.token);
    wait_for("the old token to be refused", START_MAX, || {
        (host.with("GET", "/api/v1/version", &[], b"").status == 401).then_some(())
    });
    let host = Host { token: next, ..host };
    assert_eq!(host.get("/api/v1/version")["api"], "v1");
    host.ends();
    // It is kept, and not said again.
    let host = start(&case);
    assert!(!host.process.said_so_far().contains(&host.token));
    host.ends();
}

#[test]
fn a_version_is_brought_once_and_stays_what_it_is_after_a_kill() {
    let case = Case::new();
    configure(&case, GAP);
    let mut host = start(&case);
    let gap = wasm("gap-sessions");
    let first = host.upload(&gap, "?message=first%20try").is(201);
    let version = first.json();
    let at = first.header("location").unwrap();
    assert_eq!(at, format!("/api/v1/plugins/gap-sessions/versions/{}", version["version"].as_str().unwrap()));
    let digest = version["digest"].as_str().unwrap();
    assert_eq!(first.header("etag").unwrap(), format!("\"{digest}\""));
    assert_eq!(
        (&version["kind"], &version["by"], &version["message"], &version["bytes"]),
        (&json!("sessionizer"), &json!("admin"), &json!("first try"), &json!(gap.len()))
    );
    host.upload(&gap, "").is(200);
    // The same name and version, and one byte more in a section that nobody looks at.
    let other = [gap.as_slice(), &[0, 2, 1, b'x']].concat();
    assert_eq!(host.upload(&other, "").is(409).json()["digest"], digest);
    host.process.kill();
    let host = start(&case);
    assert_eq!(host.get("/api/v1/plugins")["versions"], json!([version]));
    assert_eq!(host.get("/api/v1/plugins/gap-sessions")["versions"], json!([version]));
    let component = host.with("GET", &format!("{at}/component"), &[], b"").is(200);
    assert!(component.body == gap, "other bytes");
    assert_eq!(component.header("content-type").unwrap(), "application/wasm");
    let tag = format!("\"{digest}\"");
    host.with("GET", &at, &[("if-none-match", &tag)], b"").is(304);
    let checkout = host.upload(&wasm("checkout-sessions"), "").is(201).json();
    assert_eq!(checkout["name"], "checkout-sessions");
    let validator = host.upload(&wasm("clickstream-validator"), "").is(201).json();
    assert_eq!(validator["kind"], "validator");
    host.ends();
}

#[test]
fn a_version_is_deployed_and_taken_back_by_whoever_has_seen_what_it_follows() {
    let case = Case::new();
    configure(&case, "{ plugin = \"builtin:gap\", config = { gap = \"30s\" } }");
    let host = start(&case);
    let at = "/api/v1/pipelines/visits/deployment";
    host.post(&event(1, "ann", START_MS));
    host.wait("/api/v1/pipelines/visits", "/counters/events", &json!(1));
    let version = host.upload(&wasm("gap-sessions"), "").is(201).json()["version"].clone();
    let before = host.with("GET", at, &[], b"").is(200);
    let tag = before.header("etag").unwrap();
    assert_eq!(before.json()["number"], 0);
    let wish = |policy: &str| {
        json!({
        "plugin": "gap-sessions", "version": version, "config": { "gap": "30s" }, "policy": policy, "message": "try it",
    }).to_string()
    };
    let put = |tag: &str, body: &str| {
        let json = ("content-type", "application/json");
        host.with("PUT", at, &[json, ("if-match", tag)], body.as_bytes())
    };
    host.with("PUT", at, &[("content-type", "application/json")], wish("drain").as_bytes()).is(428);
    put("\"other\"", &wish("drain")).is(412);
    put(&tag, &wish("drain").replace("\"30s\"", "\"soon\"")).is(422);
    put(&tag, &wish("drain").replace("gap-sessions", "none")).is(404);
    put(&tag, "{").is(400);
    for no_object in [
        json!(["gap-sessions", version, { "gap": "30s" }, "drain", "24h", "try it"]).to_string(),
        "null".into(),
    ] {
        let refused = put(&tag, &no_object).is(400).json();
        assert_eq!(refused["detail"], "the body is no JSON object", "{refused}");
    }
    put(&tag, &wish("refold")).is(400);
    // The states of another rule do not fit, and there is no migration.
    let refused = put(&tag, &wish("migrate")).is(409).json();
    assert_eq!(refused["type"], "/problems/incompatible");
    let accepted = put(&tag, &wish("drain")).is(202);
    let operation = accepted.header("location").unwrap();
    host.wait(&operation, "/status", &json!("in_force"));
    let done = host.get(&operation);
    assert!(done["pause_ms"].as_f64().unwrap() < 1_000.0 && done["deployment"] == 1, "{done}");
    host.wait(at, "/number", &json!(1));
    let now = host.get(at);
    assert_eq!(
        (&now["policy"], &now["by"], &now["message"]),
        (&json!("drain"), &json!("admin"), &json!("try it"))
    );
    assert_eq!(now["config"], json!({ "gap": "30s" }));
    put(&tag, &wish("drain")).is(412);
    let pending = put("*", &wish("drain")).is(409).json();
    assert_eq!(pending["type"], "/problems/swap_pending");
    assert!(pending["missing_ms"].as_i64().unwrap() > 0, "{pending}");
    let metrics = host.with("GET", "/metrics", &[], b"").is(200).body;
    let metrics = String::from_utf8(metrics).unwrap();
    for line in [
        "tidemill_swaps_total{pipeline=\"visits\"} 1",
        "tidemill_live_versions{pipeline=\"visits\"} 2",
        "tidemill_swaps_total{pipeline=\"orders\"} 0",
        "tidemill_events_total{pipeline=\"visits\"} 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "no {line} in\n{metrics}");
    }
    assert!(!metrics.contains("ann"), "a key\n{metrics}");
    // The other pipeline has not noticed.
    assert_eq!(host.get("/api/v1/pipelines/orders/deployment")["number"], 0);
    let back = host.with("POST", "/api/v1/pipelines/visits/rollback", &[], b"").is(202);
    host.wait(&back.header("location").unwrap(), "/status", &json!("in_force"));
    host.wait(at, "/number", &json!(0));
    let history = host.get("/api/v1/pipelines/visits/deployments");
    let standing: Vec<_> =
        history["deployments"].as_array().unwrap().iter().map(|d| d["standing"].clone()).collect();
    assert_eq!(standing, ["live", "struck"]);
    let audit = host.get("/api/v1/pipelines/visits/audit");
    let actions: Vec<_> = audit["entries"].as_array().unwrap().iter().map(|e| e["action"].clone()).collect();
    assert!(actions.ends_with(&[json!("deploy"), json!("rollback")]), "{audit}");
    assert_eq!(host.get("/api/v1/operations")["operations"].as_array().unwrap().len(), 2);
    host.with("POST", "/api/v1/pipelines/orders/rollback", &[], b"").is(404);
    host.ends();
}

#[test]
fn the_version_of_the_config_is_deployed_like_any_other() {
    let case = Case::new();
    configure(&case, "{ plugin = \"gap-sessions\" }");
    let host = start(&case);
    let at = "/api/v1/pipelines/visits/deployment";
    // Before any event.
    wait_for("its first epoch", ANSWER_MAX, || (host.with("GET", at, &[], b"").status == 200).then_some(()));
    let first = host.get(at);
    let (name, version) = first["plugin"].as_str().unwrap().split_once('@').unwrap();
    // Nobody has brought it; with another config it is another deployment, and that shows.
    let wish = |config: &Value| json!({ "plugin": name, "version": version, "config": config }).to_string();
    let put = |config: &Value| {
        let headers = [("content-type", "application/json"), ("if-match", "*")];
        host.with("PUT", at, &headers, wish(config).as_bytes())
    };
    let wrong = put(&json!({ "gap": "soon" })).is(422).json();
    let detail = wrong["detail"].as_str().unwrap();
    assert!(detail.starts_with("plugin `gap-sessions` does not take its config"), "{wrong}");
    let accepted = put(&json!({ "gap": "45s" })).is(202);
    host.wait(&accepted.header("location").unwrap(), "/status", &json!("in_force"));
    host.wait(at, "/number", &json!(1));
    let now = host.get(at);
    assert_eq!((&now["digest"], &now["config"]), (&first["digest"], &json!({ "gap": "45s" })), "{now}");
    host.post(&event(1, "ann", START_MS));
    host.wait("/api/v1/pipelines/visits", "/counters/events", &json!(1));
    host.ends();
}

#[test]
fn pipelines_pause_and_resume_and_tell_of_sessions_and_dead_letters() {
    let case = Case::new();
    configure(&case, GAP);
    let host = start(&case);
    let at = "/api/v1/pipelines/visits";
    host.post(
        &(event(1, "ann", START_MS)
            + &event(2, "ann", START_MS + 5_000)
            + &event(3, "bob", START_MS + 100_000)),
    );
    host.wait(at, "/counters/events", &json!(3));
    let by_key = |key: &str| format!("{at}/sessions?key={key}");
    host.wait(&by_key("ann"), "/sessions/0/stage", &json!("final"));
    assert_eq!(host.get(&by_key("ann"))["sessions"][0]["events"], 2);
    let bob = host.get(&by_key("bob"));
    assert_eq!(bob["live"]["waiting"], 1, "{bob}");
    let none = host.get(&by_key("zoe"));
    assert_eq!((&none["live"], &none["sessions"]), (&Value::Null, &json!([])));
    host.with("GET", &format!("{at}/sessions?limit=0"), &[], b"").is(400);
    host.with("GET", &format!("{at}/sessions?stage=x"), &[], b"").is(400);
    host.post("{\"id\":\"4\",\"ts\":1}\n");
    host.wait(&format!("{at}/dead"), "/counts/missing_field", &json!(1));
    host.wait(&format!("{at}/dead?reason=missing_field"), "/letters/0/reason", &json!("missing_field"));
    assert_eq!(host.get(&format!("{at}/dead?reason=late"))["letters"], json!([]));

    assert_eq!(host.with("POST", &format!("{at}/pause"), &[], b"").is(200).json()["pipeline"], "visits");
    host.wait(at, "/state", &json!("paused"));
    host.post(&event(5, "cid", START_MS + 200_000));
    host.wait("/api/v1/pipelines/orders", "/counters/events", &json!(4));
    assert_eq!(host.get(at)["counters"]["events"], 3, "it reads nothing");
    ask(&host.admin, "GET", "/ready", &[], b"").is(200);
    host.with("POST", &format!("{at}/resume"), &[], b"").is(200);
    host.wait(at, "/counters/events", &json!(4));
    assert_eq!(host.get("/api/v1/pipelines")["pipelines"].as_array().unwrap().len(), 2);
    host.with("POST", "/api/v1/pipelines/none/pause", &[], b"").is(404);
    let seen = host.with("GET", "/api/v1/operations", &[], b"").is(200);
    host.with("GET", "/api/v1/operations", &[("if-none-match", &seen.header("etag").unwrap())], b"").is(304);
    host.ends();
}

/// `tidemill` with this config: exit code, standard output, standard error.
fn command(case: &Case, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(binary());
    let output = command.args(arguments).arg(case.path("pipeline.toml")).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn commands_do_what_the_curl_that_they_print_does() {
    let case = Case::new();
    // A port that was free just now: commands find the host by its config.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    configure_at(
        &case,
        "{ plugin = \"builtin:gap\", config = { gap = \"30s\" } }",
        &format!("127.0.0.1:{port}"),
    );
    let component = plugins::plugin("gap-sessions");
    let component = component.to_str().unwrap();
    let deploy = [
        "deploy",
        "visits",
        component,
        "--policy",
        "drain",
        "--with",
        "{\"gap\": \"30s\"}",
        "-m",
        "it's due",
    ];
    let (code, _, said) = command(&case, &deploy);
    assert!(code == 6 && said.contains("no host with an admin API"), "{code} {said}");
    let host = start(&case);
    host.post(&event(1, "ann", START_MS));
    host.wait("/api/v1/pipelines/visits", "/counters/events", &json!(1));
    let (code, told, said) = command(&case, &deploy);
    assert!(code == 0 && told.contains("visits: deployment 1 is in force"), "{code} {told} {said}");
    assert!(!said.contains(&host.token) && said.contains("$(tidemill token"), "{said}");
    assert_eq!(host.get("/api/v1/pipelines/visits/deployment")["message"], "it's due");
    let (code, told, _) = command(&case, &["status"]);
    assert!(code == 0 && told.contains("running") && told.contains("gap-sessions@"), "{told}");
    // What was printed is run as it stands, by a shell: by now it follows a deployment that is in force no more.
    let line = said.lines().filter_map(|l| l.split_once(": curl")).next_back().unwrap().1;
    let folder = binary().parent().unwrap().display();
    let script = format!("PATH={folder}:$PATH; curl -s{line}");
    let curl = Command::new("sh").args(["-c", &script]).output();
    let answer: Value = serde_json::from_slice(&curl.unwrap().stdout).unwrap();
    assert_eq!(answer["type"], "/problems/stale", "{answer}");
    let (code, _, said) = command(&case, &deploy);
    assert!(code == 6 && said.contains("two versions are live"), "{code} {said}");
    let (code, told, said) = command(&case, &["rollback", "visits"]);
    assert!(code == 0 && told.contains("deployment 0 is in force"), "{code} {told} {said}");
    host.ends();
    let (_, told, _) = command(&case, &["status", "--json"]);
    let stored: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&stored["pipelines"][0]["state"], &stored["pipelines"][0]["counters"]["events"]),
        (&json!("stored"), &json!(1))
    );
}
