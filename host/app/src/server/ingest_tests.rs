//! Requests and what is answered to each, through the router, with a real ingest log behind it.

use super::super::bounds::SPLITTERS_MAX;
use super::*;
use axum::http::Request;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use tidemill_connect::source::ingest_log::RECORD_BYTES_MAX;
use tidemill_connect::source::{Block, Partition, Read as Found};
use tower::ServiceExt;

const KEY: &str = "0123456789abcdef";

struct Site {
    inlet: Arc<Inlet>,
    router: Router,
    _dir: tempfile::TempDir,
}

/// A source of this name, whose pages are at NAME.example, with its log in a folder.
fn inlet_of(name: &str, write_keys: &[&str], dir: &Path, kept_bytes_max: u64) -> Arc<Inlet> {
    let log = IngestLog::open(&dir.join(name), Some(0), kept_bytes_max).unwrap();
    Arc::new(Inlet {
        source: name.into(),
        write_keys: write_keys.iter().map(|k| Secret::new((*k).to_owned())).collect(),
        cors: vec![format!("https://{name}.example")],
        log: OnceLock::from(Arc::new(log)),
    })
}

fn site(write_keys: &[&str], kept_bytes_max: u64) -> Site {
    let dir = tempfile::tempdir().unwrap();
    let inlet = inlet_of("shop", write_keys, dir.path(), kept_bytes_max);
    Site { router: router(vec![inlet.clone()], Room::new()), inlet, _dir: dir }
}

impl Site {
    fn ask(&self, request: Request<Body>) -> (StatusCode, HeaderMap, Value) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.unwrap();
            let (head, body) = response.into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
            (head.status, head.headers, body)
        })
    }
    fn post(&self, headers: &[(&str, &str)], body: impl Into<Body>) -> (StatusCode, HeaderMap, Value) {
        let request = Request::post("/v1/events");
        let request = headers.iter().fold(request, |r, (name, value)| r.header(*name, *value));
        self.ask(request.body(body.into()).unwrap())
    }
    /// What is in the log.
    fn kept(&self) -> Vec<String> {
        let mut reader = self.inlet.log.get().unwrap().reader(0);
        let mut all = Vec::new();
        let mut block = Block::default();
        while reader.read(&mut block).unwrap() == Found::Data {
            all.extend(block.spans.iter().map(|s| String::from_utf8(block.record(*s).to_vec()).unwrap()));
            block.clear();
        }
        all
    }
}

#[test]
fn what_is_answered_with_202_is_in_the_log() {
    let s = site(&[], 1 << 30);
    let (status, _, answer) = s.post(&[], r#"{"a":1}"#);
    assert_eq!((status.as_u16(), answer), (202, json!({ "accepted": 1, "rejected": [] })));
    let (status, _, answer) = s.post(&[], r#"[{"a":2}, 3, {"a":4}]"#);
    let want = json!({ "accepted": 2, "rejected": [{ "index": 1, "reason": "not_an_object" }] });
    assert_eq!((status.as_u16(), answer), (202, want));
    let lines = [("content-type", "application/x-ndjson; charset=utf-8")];
    assert_eq!(s.post(&lines, "{\"a\":5}\n{\"a\":6}\n").2["accepted"], 2);
    assert_eq!(s.kept(), ["1", "2", "4", "5", "6"].map(|n| format!("{{\"a\":{n}}}")));
    assert_eq!(
        s.post(&[], "[7]").2,
        json!({ "accepted": 0, "rejected": [{ "index": 0, "reason": "not_an_object" }] })
    );
}

#[test]
fn bodies_may_be_compressed() {
    let s = site(&[], 1 << 30);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(br#"{"a":1}"#).unwrap();
    let gzip = gzip.finish().unwrap();
    assert_eq!(s.post(&[("content-encoding", "gzip")], gzip.clone()).0.as_u16(), 202);
    let zstd = zstd::encode_all(&br#"{"a":2}"#[..], 1).unwrap();
    assert_eq!(s.post(&[("content-encoding", "zstd")], zstd).0.as_u16(), 202);
    assert_eq!(s.kept(), [r#"{"a":1}"#, r#"{"a":2}"#]);
    let (status, _, problem) = s.post(&[("content-encoding", "gzip")], gzip[..gzip.len() - 3].to_vec());
    assert_eq!((status.as_u16(), &problem["type"]), (400, &json!("/problems/body")));
    let (status, headers, _) = s.post(&[("content-encoding", "br")], "x");
    assert_eq!((status.as_u16(), headers["accept-encoding"].to_str().unwrap()), (415, "gzip, zstd"));
    let bomb = zstd::encode_all(&vec![b' '; PLAIN_BYTES_MAX + 1][..], 1).unwrap();
    assert_eq!(s.post(&[("content-encoding", "zstd")], bomb).0.as_u16(), 413);
}

#[test]
fn bodies_at_and_over_each_limit() {
    let s = site(&[], 1 << 30);
    let fill = |n: usize| format!("[{}{{\"a\":1}}]", " ".repeat(n - 9));
    assert_eq!(s.post(&[], fill(BODY_BYTES_MAX)).0.as_u16(), 202);
    let (status, _, problem) = s.post(&[], fill(BODY_BYTES_MAX + 1));
    assert_eq!((status.as_u16(), &problem["type"]), (413, &json!("/problems/too-large")));
    let record = |n: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(n - 8));
    assert_eq!(s.post(&[], record(RECORD_BYTES_MAX)).2["accepted"], 1);
    assert_eq!(s.post(&[], record(RECORD_BYTES_MAX + 1)).2["rejected"][0]["reason"], "too_large");
    assert_eq!(s.kept().len(), 2);
    for body in ["", "nonsense", "[{}", "{\"a\":"] {
        assert_eq!(s.post(&[], body).0.as_u16(), 400, "{body}");
    }
    let of_kind = |kind: &str| s.post(&[("content-type", kind)], "{}").0.as_u16();
    assert_eq!((of_kind("text/csv"), of_kind("application/json; charset=utf-16")), (415, 415));
    assert_eq!(of_kind("application/json; charset=\"UTF-8\""), 202);
    let (status, _, problem) = s.post(&[], format!("[{}]", vec!["{}"; RECORDS_MAX + 1].join(",")));
    assert_eq!((status.as_u16(), &problem["type"]), (413, &json!("/problems/too-many")));
}

#[test]
fn a_write_key_opens_its_source_only() {
    let s = site(&[KEY, "fedcba9876543210"], 1 << 30);
    let with = |key: &str| s.post(&[("authorization", &format!("Bearer {key}"))], "{}").0.as_u16();
    assert_eq!((with(KEY), with("fedcba9876543210")), (202, 202));
    assert_eq!((with("0123456789abcdee"), with(&KEY[..15]), with("")), (401, 401, 401));
    let (status, headers, problem) = s.post(&[], "{}");
    assert_eq!(status.as_u16(), 401);
    assert_eq!(
        (&headers["www-authenticate"], &headers["content-type"]),
        (&HeaderValue::from_static("Bearer"), &HeaderValue::from_static("application/problem+json"),)
    );
    assert!(problem["detail"].as_str().unwrap().contains("Authorization: Bearer KEY"));
    assert_eq!(s.kept().len(), 2);
}

#[test]
fn pages_of_listed_origins_only_are_let_in() {
    let s = site(&[KEY], 1 << 30);
    let preflight = |origin: &str| {
        let request = Request::options("/v1/events").header("origin", origin).body(Body::empty()).unwrap();
        s.ask(request).1.get("access-control-allow-origin").cloned()
    };
    assert_eq!(preflight("https://shop.example").unwrap(), "https://shop.example");
    assert_eq!(preflight("https://shop.example.evil"), None);
    let headers = [("origin", "https://shop.example"), ("authorization", "Bearer 0123456789abcdef")];
    assert_eq!(s.post(&headers, "{}").1["access-control-allow-origin"], "https://shop.example");
}

/// Bug family: what is meant for one source of a listener and comes to another.
#[test]
fn sources_of_one_listener_are_told_apart_by_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let inlet = |name: &str, keys: &[&str]| inlet_of(name, keys, dir.path(), 1 << 30);
    let (shop, orders) = (inlet("shop", &[KEY]), inlet("orders", &[]));
    let s = Site {
        router: router(vec![orders.clone(), shop.clone()], Room::new()),
        inlet: shop,
        _dir: tempfile::tempdir().unwrap(),
    };
    let with = |authorization: &str, origin: &str| {
        let (status, headers, _) = s.post(&[("authorization", authorization), ("origin", origin)], "{}");
        (status.as_u16(), headers.contains_key("access-control-allow-origin"), headers)
    };
    let key = format!("Bearer {KEY}");
    let (status, seen, headers) = with(&key, "https://shop.example");
    assert_eq!((status, seen), (202, true));
    assert_eq!(headers["access-control-expose-headers"], "retry-after");
    let (status, seen, _) = with(&key, "https://orders.example");
    assert_eq!((status, seen), (202, false), "a page of the other source");
    for wrong in ["Bearer 0123456789abcdee", "Bearer ", "Basic MDEyMzQ1Njc4OWFiY2RlZg=="] {
        assert_eq!(with(wrong, "https://shop.example").0, 401, "{wrong}");
    }
    assert_eq!(s.kept().len(), 2);
    assert_eq!(s.post(&[], "{}").0.as_u16(), 202);
    assert_eq!((s.kept().len(), Site { inlet: orders, ..s }.kept().len()), (2, 1));
}

/// Bug family: memory that grows with how many ask at once.
#[test]
fn who_finds_no_room_is_asked_to_come_back() {
    let s = site(&[], 1 << 30);
    let room = Room::of(8 << 10);
    let s = Site { router: router(vec![s.inlet.clone()], room.clone()), ..s };
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(6 << 10));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut other = room.hold();
    runtime.block_on(other.grow_to(4 << 10)).unwrap();
    let (status, headers, problem) = s.post(&[], long.clone());
    assert_eq!((status.as_u16(), headers["retry-after"].to_str().unwrap()), (429, "1"));
    assert_eq!(problem["type"], "/problems/busy");
    assert_eq!(s.post(&[], "{}").0.as_u16(), 202, "a small one has room");
    drop(other);
    assert_eq!(s.post(&[], long).0.as_u16(), 202);
    assert_eq!(s.kept().len(), 2);
    // What was taken is given back once it is durable.
    assert!(runtime.block_on(room.hold().grow_to(8 << 10)).is_ok());
    let places: Vec<_> = (0..SPLITTERS_MAX).map(|_| runtime.block_on(room.splitter()).unwrap()).collect();
    let zstd = zstd::encode_all(&b"{}"[..], 1).unwrap();
    assert_eq!(s.post(&[("content-encoding", "zstd")], zstd.clone()).0.as_u16(), 429, "no place to unpack");
    drop(places);
    assert_eq!(s.post(&[("content-encoding", "zstd")], zstd).0.as_u16(), 202);
}

#[test]
fn a_full_log_and_one_that_is_not_there_yet_say_when_to_try_again() {
    let s = site(&[], 1);
    assert_eq!(s.post(&[], "{}").0.as_u16(), 202);
    let (status, headers, _) = s.post(&[], "{}");
    assert_eq!((status.as_u16(), headers["retry-after"].to_str().unwrap()), (429, "1"));
    let inlet = Inlet { source: "w".into(), write_keys: vec![], cors: vec![], log: OnceLock::new() };
    let early = Site { router: router(vec![Arc::new(inlet)], Room::new()), ..s };
    let (status, headers, problem) = early.post(&[], "{}");
    assert_eq!((status.as_u16(), headers["retry-after"].to_str().unwrap()), (503, "1"));
    assert_eq!(problem["type"], "/problems/recovering");
}

#[test]
fn other_paths_and_methods_are_problems_too() {
    let s = site(&[], 1 << 30);
    let get = |path: &str| s.ask(Request::get(path).body(Body::empty()).unwrap());
    assert_eq!((get("/").0.as_u16(), get("/v1/events").0.as_u16()), (404, 405));
    assert_eq!(get("/").1["content-type"], "application/problem+json");
}
