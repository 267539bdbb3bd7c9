//! Bodies of requests, edited: of events and of operators, packed, cut off, longer or shorter than they say, and bombs. Each
//! is answered by a success or by a problem document of the client's making, in time; others are answered meanwhile; and each
//! record that was taken is an event of a session or a dead letter in the end.
//!
//! The bug family: a body that costs the host its life, its memory or its time, an answer that blames the host, half of a body
//! that counts, a record that was acknowledged and is nowhere.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tidemill_fuzz::edit::{Bytes, Edit, edit, edited, words};
use tidemill_fuzz::{Targets, Verdict};
use tidemill_tests::api::{Answer, Api};
use tidemill_tests::{Case, Process, current, latest, plugins, wait_for};

const TARGETS: Targets = Targets(2);
/// Far more than any answer takes on a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(30);
const WAIT_MAX: Duration = Duration::from_secs(60);
const WRITE_KEY: &str = "0123456789abcdef";
/// Twice what bodies may hold at a time, and the process itself.
const MEMORY_MAX: u64 = 700 << 20;
const BEGIN_MS: i64 = 1_714_521_600_000;

/// Two pipelines over what is posted: one that nobody touches, and one for operators.
fn configure(case: &Case) {
    let path = |name: &str| Value::from(case.path(name).to_str().unwrap()).to_string();
    let pipeline = |name: &str, session: &str| {
        format!(
            "[pipeline.{name}]\nfrom = [\"web\"]\nsession = {session}\nearly = \"epoch\"\nto = [\"{name}\"]\n\
             dead = \"{name}_dead\"\n[sink.{name}]\nkind = \"file\"\npath = {}\n[sink.{name}_dead]\nkind = \"file\"\npath = {}\n",
            path(&format!("{name}.jsonl")),
            path(&format!("{name}_dead.jsonl"))
        )
    };
    let text = format!(
        "[server]\ndata_dir = {}\nlisten = \"127.0.0.1:0\"\nepoch = \"50ms\"\n\
         [source.web]\nkind = \"http\"\nlisten = \"127.0.0.1:0\"\nwrite_keys = [\"{WRITE_KEY}\"]\nid = \"position\"\n\
         key = \"user\"\ntime = {{ field = \"ts\", unit = \"ms\" }}\ndisorder = \"1s\"\nfar_future = \"off\"\n\
         {}{}[plugin.gap-sessions]\npath = {}\nconfig = {{ gap = \"30s\" }}\n",
        path("state"),
        pipeline("visits", "{ plugin = \"builtin:gap\", config = { gap = \"30s\" } }"),
        pipeline("orders", "{ plugin = \"gap-sessions\" }"),
        Value::from(plugins::plugin("gap-sessions").to_str().unwrap()),
    );
    case.put("pipeline.toml", text.as_bytes());
    plugins::lend(&case.path("state"));
}

/// A host, and a client who goes on posting while others try everything.
struct Host {
    case: Case,
    process: Process,
    admin: Api,
    events: Api,
    steady: Option<JoinHandle<()>>,
    ends: Arc<AtomicBool>,
    /// Records that were taken.
    taken: Arc<AtomicU64>,
}

impl Host {
    fn start() -> Host {
        let case = Case::new();
        configure(&case);
        let process = case.start(&[], &[]);
        let admin = Api::of(&case, &process);
        let said = process.said_so_far();
        let (_, rest) = said.split_once("takes events at http://").expect("a listener");
        let (address, _) = rest.split_once("/v1/events").expect("a listener");
        let events = Api { address: address.to_owned(), token: WRITE_KEY.to_owned() };
        let (ends, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let steady = std::thread::spawn({
            let (admin, events, ends, taken) = (admin.clone(), events.clone(), ends.clone(), taken.clone());
            move || go_on(&admin, &events, &ends, &taken)
        });
        Host { case, process, admin, events, steady: Some(steady), ends, taken }
    }

    /// Every record that was taken is somewhere, the host is well, and nothing has cost it more than it should.
    fn ends_well(mut self) {
        self.ends.store(true, Ordering::Release);
        self.steady.take().unwrap().join().expect("the steady client was answered");
        let taken = self.taken.load(Ordering::Acquire);
        assert!(taken > 0);
        wait_for("every record to be an event or a letter", WAIT_MAX, || {
            let events: u64 =
                current(&latest(self.case.lines("visits.jsonl"))).iter().map(|r| r.events).sum();
            let letters = std::fs::read_to_string(self.case.path("visits_dead.jsonl")).unwrap_or_default();
            let found = events + letters.lines().count() as u64;
            assert!(found <= taken, "{found} of {taken}");
            (found == taken).then_some(())
        });
        self.process.terminate();
        let (outcome, peak_bytes) = self.process.outcome_and_peak(WAIT_MAX);
        outcome.exits(0);
        assert!(!outcome.said.contains("panicked"), "{}", outcome.said);
        assert!(peak_bytes < MEMORY_MAX, "{peak_bytes} bytes");
    }
}

/// A good client and an operator who looks on.
fn go_on(admin: &Api, events: &Api, ends: &AtomicBool, taken: &AtomicU64) {
    let mut n = 0;
    while !ends.load(Ordering::Acquire) {
        let begun = Instant::now();
        let event = json!({ "user": format!("steady-{}", n % 7), "ts": BEGIN_MS + n * 100 }).to_string();
        let answer =
            events.ask("POST", "/v1/events", &[("content-type", "application/json")], event.as_bytes());
        assert_eq!(answer.is(202).json()["accepted"], 1);
        taken.fetch_add(1, Ordering::AcqRel);
        assert_eq!(admin.get("/health")["status"], "alive");
        assert!(begun.elapsed() < ANSWER_MAX, "others wait for {:?}", begun.elapsed());
        n += 1;
    }
}

/// How the length of a body is told.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Length,
    /// So many bytes more are announced than come.
    More(u32),
    /// So many fewer.
    Fewer(u32),
    /// In pieces of so many bytes.
    Chunks(usize),
    /// The same, and the last is missing.
    Endless(usize),
    /// The same, and a size is no number.
    WrongChunk(usize),
    /// Twice, once each way.
    Both,
    None,
}

impl Framing {
    /// Whether the host would wait for more.
    fn is_cut_off(self) -> bool {
        matches!(self, Framing::More(_) | Framing::Endless(_))
    }

    /// Whether a client may expect an answer.
    fn is_whole(self) -> bool {
        matches!(self, Framing::Length | Framing::Chunks(_))
    }
}

fn framing() -> impl Strategy<Value = Framing> {
    prop_oneof![
        8 => Just(Framing::Length),
        3 => (1..5_000_usize).prop_map(Framing::Chunks),
        1 => prop_oneof![1..100_u32, Just(u32::MAX), Just(9 << 20)].prop_map(Framing::More),
        1 => (1..100_u32).prop_map(Framing::Fewer),
        1 => (1..5_000_usize).prop_map(Framing::Endless),
        1 => (1..5_000_usize).prop_map(Framing::WrongChunk),
        1 => Just(Framing::Both),
        1 => Just(Framing::None),
    ]
}

/// How a body is packed.
#[derive(Clone, Debug)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
    /// It says so, and is not.
    Called(&'static str),
    /// Packed, and then edited.
    Broken(bool, Vec<Edit>),
    /// A little that becomes very much: by gzip, or by zstd.
    Bomb(bool),
}

fn packing() -> impl Strategy<Value = Packing> {
    let edits = vec(edit(vec![Vec::new()], words(&["\u{1f}\u{8b}"])), 1..4);
    prop_oneof![
        6 => Just(Packing::Plain),
        3 => Just(Packing::Gzip),
        3 => Just(Packing::Zstd),
        1 => select(vec!["gzip", "zstd", "deflate", "br", "gzip, zstd", "identity", "\u{e9}", ""]).prop_map(Packing::Called),
        3 => (any::<bool>(), edits).prop_map(|(gzip, edits)| Packing::Broken(gzip, edits)),
        1 => any::<bool>().prop_map(Packing::Bomb),
    ]
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// More than is taken, of lines that would all be good.
fn bomb(by_gzip: bool) -> &'static [u8] {
    static BOMBS: [OnceLock<Vec<u8>>; 2] = [OnceLock::new(), OnceLock::new()];
    BOMBS[usize::from(by_gzip)].get_or_init(|| {
        let line = format!("{{\"user\":\"bomb\",\"ts\":{BEGIN_MS}}}\n");
        let lines = line.repeat((200 << 20) / line.len());
        if by_gzip { gzip(lines.as_bytes()) } else { zstd(lines.as_bytes()) }
    })
}

impl Packing {
    /// What goes over the line, and how it is called.
    fn pack(&self, body: &[u8]) -> (Vec<u8>, Option<&'static str>) {
        let by = |by_gzip: bool, body: &[u8]| if by_gzip { gzip(body) } else { zstd(body) };
        let name = |by_gzip: bool| Some(if by_gzip { "gzip" } else { "zstd" });
        match self {
            Packing::Plain => (body.to_vec(), None),
            Packing::Gzip => (gzip(body), Some("gzip")),
            Packing::Zstd => (zstd(body), Some("zstd")),
            Packing::Called(what) => (body.to_vec(), Some(what)),
            Packing::Broken(by_gzip, edits) => {
                let mut packed = by(*by_gzip, body);
                edits.iter().for_each(|e| e.apply(&mut packed));
                (packed, name(*by_gzip))
            }
            Packing::Bomb(by_gzip) => (bomb(*by_gzip).to_vec(), name(*by_gzip)),
        }
    }
}

/// Sends a request and gives the first answer; none if there is no whole one.
fn send(to: &Api, line: &str, headers: &[(&str, &str)], framing: Framing, body: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(&to.address).expect("the host listens");
    stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
    stream.set_write_timeout(Some(ANSWER_MAX)).unwrap();
    let mut bytes = format!("{line} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", to.address).into_bytes();
    let announced = body.len() as u64;
    let announced = match framing {
        Framing::More(n) => Some(announced + u64::from(n)),
        Framing::Fewer(n) => Some(announced.saturating_sub(u64::from(n))),
        Framing::Length | Framing::Both => Some(announced),
        _ => None,
    };
    let pieces = match framing {
        Framing::Chunks(n) | Framing::Endless(n) | Framing::WrongChunk(n) => Some(n),
        Framing::Both => Some(100),
        _ => None,
    };
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if let Some(n) = announced {
        bytes.extend_from_slice(format!("content-length: {n}\r\n").as_bytes());
    }
    if pieces.is_some() {
        bytes.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    match pieces {
        None => bytes.extend_from_slice(body),
        Some(n) => {
            for piece in body.chunks(n) {
                bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                bytes.extend_from_slice(piece);
                bytes.extend_from_slice(b"\r\n");
            }
            match framing {
                Framing::Endless(_) => {}
                Framing::WrongChunk(_) => bytes.extend_from_slice(b"-1\r\n\r\n"),
                _ => bytes.extend_from_slice(b"0\r\n\r\n"),
            }
        }
    }
    // Whoever is refused before the end may be cut off.
    let _ = stream.write_all(&bytes);
    // Whoever has said all that he has announced waits with an open line: one that is closed half is taken for closed.
    if framing.is_cut_off() {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let begun = Instant::now();
    let mut all = Vec::new();
    let read = stream.read_to_end(&mut all);
    assert!(begun.elapsed() < ANSWER_MAX, "no end after {ANSWER_MAX:?}: {read:?}");
    answer(&all)
}

fn answer(all: &[u8]) -> Option<Answer> {
    let at = all.windows(4).position(|w| w == b"\r\n\r\n")?;
    let text = String::from_utf8_lossy(&all[..at]).into_owned();
    let mut lines = text.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let pairs = lines.filter_map(|l| l.split_once(':'));
    let head: Vec<(String, String)> = pairs.map(|(n, v)| (n.to_lowercase(), v.trim().to_owned())).collect();
    let length = head.iter().find(|(n, _)| n == "content-length").and_then(|(_, v)| v.parse().ok());
    let body = all[at + 4..].get(..length.unwrap_or(all.len() - at - 4))?.to_vec();
    Some(Answer { status, head, body })
}

/// An answer says what became of it, or whose move it is.
fn is_an_answer(answer: Option<&Answer>, framing: Framing) -> Verdict {
    let Some(a) = answer else {
        assert!(!framing.is_whole(), "no answer");
        return Verdict::Refused;
    };
    if (200..300).contains(&a.status) {
        return Verdict::Accepted;
    }
    let body = String::from_utf8_lossy(&a.body);
    assert!((400..500).contains(&a.status), "{}: {body}", a.status);
    // What is no HTTP at all is answered by the server below, in one line.
    if framing.is_whole() || !a.body.is_empty() {
        assert_eq!(a.header("content-type"), Some("application/problem+json"), "{}: {body}", a.status);
        let problem = a.json();
        assert_eq!(problem["status"], a.status, "{body}");
        assert!(problem["detail"].as_str().is_some_and(|d| !d.is_empty()), "{body}");
    }
    Verdict::Refused
}

#[test]
fn edited_bodies_of_events() {
    let host = Host::start();
    let line = |user: &str, n: i64| {
        format!("{{\"user\":\"{user}\",\"ts\":{},\"n\":{n},\"s\":\"a\\u00e9\"}}", BEGIN_MS + n)
    };
    let lines: String = (0..5).map(|n| line("line", n * 20_000) + "\n").collect();
    let array = format!("[{},\n {}, {{}}]", line("array", 1), line("array", 50_000));
    let seeds =
        [lines, array, line("one", 7), "[]".into(), "{\"user\":null}\n\n{\"ts\":\"x\"}\r\n[1]\n".into()];
    let seeds: Vec<Vec<u8>> = seeds.into_iter().map(String::into_bytes).collect();
    let words = words(&[
        "\n",
        "{",
        "}",
        "[",
        "]",
        ",",
        "\"",
        "\\",
        "\\ud800",
        "\u{feff}",
        "\0",
        "-1e999",
        "\"ts\":0,",
        "{}\n",
    ]);
    let kinds = [
        "application/x-ndjson",
        "application/json",
        "text/plain; charset=UTF-8",
        "application/json; charset=latin1",
        "multipart/form-data; boundary=x",
        "",
    ];
    let kind = prop_oneof![4 => 0..3_usize, 1 => 3..kinds.len()].prop_map(move |n| kinds[n]);
    let key = prop::bool::weighted(0.95);
    let request = (edited(seeds, words), packing(), kind, framing(), key);
    TARGETS.fuzz("bodies of events", 500, request, |(body, packing, kind, framing, key)| {
        let Bytes(body) = body;
        let (wire, encoding) = packing.pack(&body);
        let bearer = format!("Bearer {}", if key { WRITE_KEY } else { "0123456789abcdeg" });
        let mut headers = vec![("authorization", bearer.as_str()), ("content-type", kind)];
        headers.extend(encoding.map(|name| ("content-encoding", name)));
        let answer = send(&host.events, "POST /v1/events", &headers, framing, &wire);
        let verdict = is_an_answer(answer.as_ref(), framing);
        if let (Verdict::Accepted, Some(a)) = (verdict, answer) {
            let said = a.json();
            let accepted = said["accepted"].as_u64().unwrap();
            assert!(key && said["rejected"].is_array(), "{said}");
            assert!(!matches!(packing, Packing::Bomb(_)), "{said}");
            host.taken.fetch_add(accepted, Ordering::AcqRel);
        }
        verdict
    });
    host.ends_well();
}

/// What operators ask for with a body, and without one.
const ASKED: [&str; 7] = [
    "PUT /api/v1/pipelines/orders/deployment",
    "POST /api/v1/pipelines/orders/rollback",
    "POST /api/v1/pipelines/orders/pause",
    "POST /api/v1/pipelines/orders/resume",
    "POST /api/v1/plugins",
    "PUT /api/v1/pipelines/nobody/deployment",
    "GET /api/v1/pipelines/orders/sessions",
];

#[test]
fn edited_bodies_of_operators() {
    let host = Host::start();
    let (plugin, version) = host.admin.upload(&plugins::plugin("gap-sessions"));
    let wish = |policy: &str, gap: &str| {
        json!({
            "plugin": plugin, "version": version, "config": { "gap": gap }, "policy": policy, "drain_max": "1h", "message": "é",
        })
    };
    let back = json!({ "policy": "drain", "drain_max": "1s", "message": "back" });
    let seeds =
        [wish("migrate", "20s"), wish("drain", "40s"), wish("drain", "1ms"), back, json!({}), Value::Null];
    let seeds = seeds.iter().map(|v| v.to_string().into_bytes()).collect();
    let words = words(&[
        "{",
        "}",
        "[",
        "]",
        "\"config\":{\"gap\":1},",
        "\"policy\":\"refold\",",
        "\"99999999999d\"",
        "\"-1s\"",
        "null",
        "1e999",
        "\\u0000",
        "\"message\":",
        "\"x\":{\"y\":[",
        "\u{feff}",
    ]);
    let kind = select(vec![
        "application/json",
        "application/json",
        "application/json; charset=x",
        "application/wasm",
        "",
    ]);
    let seen = prop_oneof![4 => Just("*"), 1 => select(vec!["\"0-0\"", "W/\"x\"", "\"", ",,", "*, *"])];
    let digest = select(vec!["", "", "", "sha-256=:AAAA:", "sha-256=::", "md5=:x", "sha-512", "=::="]);
    let request = (any::<Index>(), edited(seeds, words), kind, seen, digest, framing());
    TARGETS.fuzz("bodies of operators", 400, request, |(n, Bytes(body), kind, seen, digest, framing)| {
        let bearer = format!("Bearer {}", host.admin.token);
        let mut headers =
            vec![("authorization", bearer.as_str()), ("content-type", kind), ("if-match", seen)];
        if !digest.is_empty() {
            headers.push(("content-digest", digest));
        }
        let line = n.get(&ASKED);
        let answer = send(&host.admin, line, &headers, framing, &body);
        is_an_answer(answer.as_ref(), framing)
    });
    host.ends_well();
}
