//! Requests and what is answered to each, through the router, with a real data directory behind it.

use super::*;
use crate::config;
use crate::control::State;
use crate::journal::Journal;
use crate::progress::Progress;
use crate::store::token::TokenFile;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::path::Path;
use tidemill_sandbox::bounds::COMPONENT_BYTES_MAX;
use tower::ServiceExt;

pub(super) struct Site {
    pub(super) router: Router,
    pub(super) token: String,
    pub(super) admin: Arc<Admin>,
    access: Arc<Access>,
    dir: tempfile::TempDir,
}

/// A plan of two pipelines, whose files are all in `dir`.
fn plan(dir: &Path) -> Plan {
    let at = |name: &str| Value::from(dir.join(name).to_str().unwrap()).to_string();
    let pipeline = |name: &str| {
        format!(
            "[pipeline.{name}]\nfrom = [\"web\"]\nsession = {{ plugin = \"builtin:gap\", config = {{ gap = \"30m\" }} }}\n\
             to = [\"sessions\"]\ndead = \"{name}_dead\"\n[sink.{name}_dead]\nkind = \"file\"\npath = {}\n",
            at(&format!("{name}.jsonl"))
        )
    };
    let text = format!(
        "[server]\ndata_dir = {}\n[source.web]\nkind = \"http\"\nlisten = \"127.0.0.1:0\"\nkey = \"user\"\n\
         time = {{ field = \"ts\" }}\n{}{}[sink.sessions]\nkind = \"sqlite\"\npath = {}\ntable = \"sessions\"\n",
        at("state"),
        pipeline("visits"),
        pipeline("orders"),
        at("sessions.db")
    );
    config::parse(&text, Path::new("test.toml"), 0).unwrap_or_else(|e| panic!("{}", e.render(false)))
}

pub(super) fn site() -> Site {
    let dir = tempfile::tempdir().unwrap();
    let plan = Arc::new(plan(dir.path()));
    let token = TokenFile::of(&plan.server.data_dir).make().unwrap();
    let (journal, _) = Journal::new();
    let progress = ["visits", "orders"].map(|name| Arc::new(Progress::new(name, journal.clone())));
    let control = Arc::new(Control::new(&plan, &progress, journal));
    let http = Arc::new(HttpMetrics::new().unwrap());
    let admin = Arc::new(Admin::new(plan, control, http, tokio::sync::watch::channel(false).1));
    let access = Arc::new(Access::new(token.clone(), vec!["tidemill.example".into()], false));
    let router = router(admin.clone(), access.clone());
    Site { router, token: token.reveal().to_owned(), admin, access, dir }
}

/// Status, headers, and the body as JSON, or null.
type Answer = (u16, HeaderMap, Value);

impl Site {
    pub(super) fn send(&self, request: Request<Body>) -> Answer {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.unwrap();
            let (head, body) = response.into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            (head.status.as_u16(), head.headers, serde_json::from_slice(&bytes).unwrap_or_default())
        })
    }
    /// With the token, and these headers instead of or beside the usual ones.
    pub(super) fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in [("host", "127.0.0.1:7300"), ("authorization", &bearer)] {
            if !headers.iter().any(|(n, _)| *n == name) {
                request = request.header(name, value);
            }
        }
        // An empty value stands for a header that is not there.
        for (name, value) in headers.iter().filter(|(_, v)| !v.is_empty()) {
            request = request.header(*name, *value);
        }
        self.send(request.body(body.into()).unwrap())
    }
    pub(super) fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[], Body::empty())
    }
    fn with(&self, name: &str, value: &str, path: &str) -> u16 {
        self.ask(Method::GET, path, &[(name, value)], Body::empty()).0
    }
}

#[test]
fn without_the_token_nothing_is_told_but_health() {
    let s = site();
    for path in ["/api/v1/version", "/api/v1/plugins", "/nothing", "/"] {
        for wrong in [
            "",
            "Bearer x",
            "Basic x",
            &format!("Bearer {}x", s.token),
            &format!("Bearer {}", &s.token[..72]),
        ] {
            assert_eq!(s.with("authorization", wrong, path), 401, "{path} {wrong}");
        }
    }
    let (_, headers, problem) =
        s.ask(Method::GET, "/api/v1/version", &[("authorization", "")], Body::empty());
    assert_eq!(headers["www-authenticate"], "Bearer");
    assert_eq!(headers["content-type"], "application/problem+json");
    assert_eq!((&problem["type"], &problem["status"]), (&json!("/problems/token"), &json!(401)));
    assert_eq!(s.with("authorization", "", "/health"), 200);
    assert_eq!(s.get("/api/v1/version").0, 200);
    let mut lower = format!("bearer {}", s.token);
    assert_eq!(s.with("authorization", &lower, "/api/v1/version"), 200);
    lower.push(' ');
    assert_eq!(
        s.with("authorization", &lower, "/api/v1/version"),
        200,
        "blanks at the end are no part of it"
    );
}

#[test]
fn a_token_that_was_rotated_is_worth_nothing() {
    let s = site();
    let next = TokenFile::of(&s.dir.path().join("state")).make().unwrap();
    s.access.rotate(next.clone());
    assert_eq!(s.get("/api/v1/version").0, 401);
    assert_eq!(s.with("authorization", &format!("Bearer {}", next.reveal()), "/api/v1/version"), 200);
}

#[test]
fn names_that_are_not_this_hosts_are_refused() {
    let s = site();
    for known in ["localhost", "LOCALHOST:7300", "127.0.0.1", "[::1]:7300", "10.1.2.3:80", "tidemill.example"]
    {
        assert_eq!(s.with("host", known, "/api/v1/version"), 200, "{known}");
    }
    for foreign in ["evil.example", "evil.example:7300", "127.0.0.1.evil.example", "localhost.evil", ""] {
        for path in ["/api/v1/version", "/health"] {
            assert_eq!(s.with("host", foreign, path), 403, "{foreign}");
        }
    }
}

#[test]
fn pages_of_other_origins_are_refused_even_with_the_token() {
    let s = site();
    for own in ["http://127.0.0.1:7300", "https://127.0.0.1:7300"] {
        assert_eq!(s.with("origin", own, "/api/v1/version"), 200, "{own}");
    }
    for foreign in ["http://127.0.0.1:8080", "http://localhost:7300", "https://evil.example", "null"] {
        for path in ["/api/v1/version", "/ready"] {
            assert_eq!(s.with("origin", foreign, path), 403, "{foreign}");
        }
    }
}

#[test]
fn a_host_is_ready_while_one_of_its_pipelines_is() {
    let s = site();
    let (status, headers, problem) = s.get("/ready");
    assert_eq!((status, &problem["type"]), (503, &json!("/problems/recovering")));
    assert_eq!(headers["retry-after"], "1");
    s.admin.opened();
    assert_eq!(s.get("/ready").0, 503, "the pipelines are not there yet");
    let [visits, orders] = s.admin.control.pipelines() else { panic!() };
    visits.set_state(State::Running);
    orders.set_state(State::Paused);
    assert_eq!(s.get("/ready").2, json!({ "status": "ready", "halted": 0 }));
    visits.set_state(State::Failed("a sink".into()));
    assert_eq!(
        s.get("/ready").2,
        json!({ "status": "ready", "halted": 1, "pipelines": { "visits": "failed" } })
    );
    assert_eq!((s.get("/ready?pipeline=visits").0, s.get("/ready?pipeline=orders").0), (503, 200));
    assert_eq!((s.get("/ready?pipeline=none").0, s.get("/ready?x=1").0), (404, 400));
    orders.set_state(State::Failed("a sink".into()));
    assert_eq!(s.get("/ready").2["pipelines"], json!({ "visits": "failed", "orders": "failed" }));
}

#[test]
fn other_paths_and_methods_are_problems_too() {
    let s = site();
    let (status, headers, _) = s.get("/api/v1/nothing");
    assert_eq!((status, &headers["content-type"]), (404, &"application/problem+json".parse().unwrap()));
    let (status, headers, _) = s.ask(Method::DELETE, "/api/v1/plugins", &[], Body::empty());
    assert_eq!(status, 405);
    let allowed = headers["allow"].to_str().unwrap();
    assert!(allowed.contains("POST") && allowed.contains("GET"), "{allowed}");
}

#[test]
fn every_operation_is_described_with_what_it_may_answer() {
    let s = site();
    let (status, _, document) = s.ask(Method::GET, "/openapi.json", &[("authorization", "")], Body::empty());
    assert_eq!((status, document["openapi"].as_str().unwrap()), (200, "3.1.0"));
    assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let told = |what: &str| assert!(!operation[what].is_null(), "{method} {path} says no {what}");
            ["summary", "operationId", "tags", "responses"].into_iter().for_each(told);
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.contains_key("403"), "{method} {path}");
            assert_eq!(
                responses.contains_key("401"),
                path.starts_with("/api/") || path == "/metrics",
                "{method} {path}"
            );
            for (status, response) in responses.iter().filter(|(s, _)| s.starts_with(['4', '5'])) {
                let described = response["content"]["application/problem+json"]["schema"].is_object();
                assert!(described, "{method} {path} {status} is no problem document");
            }
        }
    }
}

const WASM: (&str, &str) = ("content-type", "application/wasm");

#[test]
fn what_is_no_component_is_refused_with_the_reason() {
    let s = site();
    let up = |headers: &[(&str, &str)], body: &[u8]| {
        s.ask(Method::POST, "/api/v1/plugins", headers, body.to_vec())
    };
    assert_eq!(up(&[], b"x").0, 415);
    assert_eq!(up(&[("content-type", "application/octet-stream")], b"x").0, 415);
    assert_eq!(up(&[WASM, ("content-encoding", "gzip")], b"x").0, 415);
    let (status, _, problem) = up(&[WASM], b"\0asm\x01\0\0\0");
    assert_eq!((status, &problem["errors"][0]["kind"]), (422, &json!("component")));
    assert!(
        problem["errors"][0]["detail"].as_str().unwrap().contains("core WebAssembly module"),
        "{problem}"
    );
    let too_long = COMPONENT_BYTES_MAX.to_string().replace('4', "5");
    let (status, _, problem) = up(&[WASM, ("content-length", &too_long)], b"x");
    assert_eq!((status, &problem["bytes_max"]), (413, &json!(COMPONENT_BYTES_MAX)));
    assert_eq!(up(&[WASM], &vec![0; COMPONENT_BYTES_MAX + 1]).0, 413);
    let path = format!("/api/v1/plugins?message={}", "x".repeat(4097));
    assert_eq!(s.ask(Method::POST, &path, &[WASM], "x").0, 400);
    assert_eq!(s.get("/api/v1/plugins").2, json!({ "versions": [] }));
    for path in [
        "/api/v1/plugins/none",
        "/api/v1/plugins/a/versions/1",
        "/api/v1/plugins/..%2f/versions/%00/component",
    ] {
        assert_eq!(s.get(path).0, 404, "{path}");
    }
}

#[test]
fn a_body_must_have_the_digest_that_came_with_it() {
    let s = site();
    let up = |digest: &str| {
        let headers = [WASM, ("content-digest", digest)];
        let (status, _, problem) = s.ask(Method::POST, "/api/v1/plugins", &headers, "hello");
        (status, problem["type"].as_str().unwrap().to_owned())
    };
    let component = (422, "/problems/component".to_owned());
    let digest = (400, "/problems/digest".to_owned());
    assert_eq!(
        up("sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"),
        component,
        "it goes on to the next check"
    );
    assert_eq!(up("sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCA=:"), digest);
    assert_eq!(up("md5=:AAAA:, sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"), component);
    assert_eq!(up("sha-512=:AAAA:"), digest);
    for malformed in ["x", "sha-256", "sha-256=abc", "sha-256=:!:"] {
        assert_eq!(up(malformed), digest, "{malformed}");
    }
}

#[test]
fn a_few_uploads_at_a_time() {
    let s = site();
    let held = s.admin.uploads.try_acquire_many(UPLOADS_MAX as u32).unwrap();
    let (status, headers, _) = s.ask(Method::POST, "/api/v1/plugins", &[WASM], "x");
    assert_eq!((status, headers["retry-after"].to_str().unwrap()), (429, "1"));
    drop(held);
    assert_eq!(s.ask(Method::POST, "/api/v1/plugins", &[WASM], "x").0, 422);
}
