//! Events posted over HTTP: what was acknowledged is in the table, whatever is killed in between.
//!
//! The bug family: an answer before the record is durable, a position that runs ahead of the log, a repeated request
//! that counts twice, a client that costs others their answers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;
use tidemill_tests::api::Api;
use tidemill_tests::disk::Tmpfs;
use tidemill_tests::model::{self, Format, Gap, Source, Unit};
use tidemill_tests::traffic::{Rng, Shop, Timed, delayed, file_of};
use tidemill_tests::{Case, Process, current, env_number, latest, same_table, wait_for};

const KEY: &str = "0123456789abcdef";
const START_MAX: Duration = Duration::from_secs(60);

fn configure(case: &Case, state: &str) {
    let path = |name: &str| serde_json::Value::from(case.path(name).to_str().unwrap()).to_string();
    let text = format!(
        r#"
        [server]
        data_dir = {}
        epoch = "100ms"
        [source.web]
        kind = "http"
        listen = "127.0.0.1:0"
        write_keys = ["${{env:WRITE_KEY}}"]
        key = {{ first_of = ["user", "device"] }}
        time = {{ field = "ts", unit = "ms" }}
        id = "id"
        disorder = "1s"
        idle = "4s"
        [pipeline.visits]
        from = ["web"]
        session = {{ plugin = "builtin:gap", config = {{ gap = "2s" }} }}
        to = ["sessions"]
        dead = "dead"
        [sink.sessions]
        kind = "sqlite"
        path = {}
        table = "sessions"
        [sink.dead]
        kind = "file"
        path = {}
        "#,
        path(state),
        path("sessions.db"),
        path("dead.jsonl")
    );
    case.put("pipeline.toml", text.as_bytes());
}

/// A host, and where it takes events.
struct Host {
    process: Process,
    address: String,
}

fn start(case: &Case) -> Host {
    let process = case.start(&[], &[("WRITE_KEY", KEY.into())]);
    let address = wait_for("the address", START_MAX, || {
        let said = process.said_so_far();
        let (_, rest) = said.split_once("http://")?;
        rest.split_once("/v1/events").map(|(address, _)| address.to_owned())
    });
    Host { process, address }
}

/// Posts lines: the status and the answer's body; none if there was no whole answer.
fn post(address: &str, body: &[u8]) -> Option<(u16, String)> {
    let host = Api { address: address.to_owned(), token: KEY.to_owned() };
    let answer = host.try_ask("POST", "/v1/events", &[("content-type", "application/x-ndjson")], body)?;
    Some((answer.status, String::from_utf8_lossy(&answer.body).into_owned()))
}

/// What the model reads the same lines as.
fn as_file() -> Source {
    let file = Source::file("web", "-", Format::Json, "user", "ts", Unit::Millis);
    Source { id: Some("id".into()), disorder_ms: 1000, ..file }
}

#[test]
fn what_was_acknowledged_survives_kills_and_counts_once() {
    let kills = env_number("TIDEMILL_HTTP_KILLS", 5);
    let events = 1_500 * kills;
    let shop = Shop { seed: 11, events, users: 60, step_ms: 40, invalid_every: 0 };
    let lines = delayed(&shop.lines(), 3, 900, false);
    let requests: Vec<Vec<u8>> = lines.chunks(25).map(file_of).collect();
    let gap = Gap::of_seconds(2, false);
    let case = Case::new();
    configure(&case, "state");
    let mut host = start(&case);
    let mut random = Rng::new(17);
    let per_kill = requests.len() / kills as usize;
    let mut until_kill = random.below(per_kill as u64) + 1;
    let (mut killed, mut repeated) = (0, 0);
    for request in &requests {
        until_kill = until_kill.saturating_sub(1);
        let mut kill_now = until_kill == 0 && killed < kills;
        loop {
            let answer = if kill_now {
                // The request is on its way when the host dies: nobody knows whether it was taken.
                let address = host.address.clone();
                let body = request.clone();
                let asked = std::thread::spawn(move || post(&address, &body));
                host.process.kill();
                let answer = asked.join().unwrap();
                host = start(&case);
                (killed, kill_now) = (killed + 1, false);
                until_kill = random.below(per_kill as u64) + 1;
                answer
            } else {
                post(&host.address, request)
            };
            match answer {
                Some((202, _)) => break,
                Some((429 | 503, _)) | None => repeated += 1,
                Some(other) => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(killed, kills);
    tidemill_tests::report!("{} requests, {killed} kills, {repeated} repeated", requests.len());
    let file = file_of(&lines);
    let source = as_file();
    let want = model::sessions(&model::read(&[(&source, "-", &file)], &gap), &BTreeSet::new(), &gap);
    // The last visitors' sessions end by the clock: idle, disorder and gap.
    wait_for("the last session to be final", Duration::from_secs(60), || {
        let rows = latest(case.table());
        let all = rows.iter().filter(|r| r.stage != "retracted").map(|r| r.row.events).sum::<u64>();
        (all == events && rows.iter().all(|r| r.stage != "early")).then_some(())
    });
    same_table("posted", &want, &current(&latest(case.table())));
    assert_eq!(case.letters(), [0; 0], "nothing was late and nothing invalid");
    host.process.terminate();
    host.process.outcome(Duration::from_secs(60)).exits(0);
}

#[test]
fn slow_and_broken_clients_cost_nobody_else_anything() {
    let idlers = env_number("TIDEMILL_HTTP_IDLERS", 500);
    let case = Case::new();
    configure(&case, "state");
    let host = start(&case);
    let mut held = Vec::new();
    for n in 0..idlers {
        let mut stream = TcpStream::connect(&host.address).unwrap();
        // Some say nothing, some stop in the head, some in the body.
        let said: &[u8] = match n % 3 {
            0 => b"",
            1 => b"POST /v1/events HTTP/1.1\r\nhost: h",
            _ => b"POST /v1/events HTTP/1.1\r\nhost: h\r\nauthorization: Bearer 0123456789abcdef\r\ncontent-length: 99\r\n\r\n{\"user\"",
        };
        stream.write_all(said).unwrap();
        held.push(stream);
    }
    let good = br#"{"id":"1","user":"a","ts":1714521600000}"#;
    assert_eq!(post(&host.address, good).unwrap().0, 202);
    // Half a body, and gone.
    let mut half = TcpStream::connect(&host.address).unwrap();
    half.write_all(b"POST /v1/events HTTP/1.1\r\nhost: h\r\nauthorization: Bearer 0123456789abcdef\r\ncontent-length: 64\r\n\r\n").unwrap();
    half.write_all(good).unwrap();
    drop(half);
    drop(held);
    assert_eq!(post(&host.address, br#"{"id":"2","device":"b","ts":1714521600000}"#).unwrap().0, 202);
    wait_for("both events", Duration::from_secs(60), || {
        let rows = if case.has_table() { current(&latest(case.table())) } else { Vec::new() };
        let keys: Vec<(String, u64)> = rows.iter().map(|r| (r.key.clone(), r.events)).collect();
        (keys == [("a".into(), 1), ("b".into(), 1)]).then_some(())
    });
    host.process.terminate();
    let (outcome, peak_bytes) = host.process.outcome_and_peak(Duration::from_secs(60));
    outcome.exits(0);
    assert!(peak_bytes < 400 << 20, "{peak_bytes} bytes");
}

/// Bug family: an answer that promises what the disk did not take.
#[test]
fn a_disk_that_fills_acknowledges_no_more_than_it_keeps() {
    let case = Case::new();
    let Some(disk) = Tmpfs::mount(case.path("disk"), "3m") else { return };
    configure(&case, "disk/state");
    let shop = Shop { seed: 12, events: 60_000, users: 60, step_ms: 40, invalid_every: 0 };
    let lines = shop.lines();
    let mut host = start(&case);
    let mut acknowledged = 0;
    let mut refused = None;
    let requests: Vec<&[Timed]> = lines.chunks(500).collect();
    for request in &requests {
        match post(&host.address, &file_of(*request)) {
            Some((202, _)) => acknowledged += 1,
            other => {
                refused = other;
                break;
            }
        }
    }
    assert!(acknowledged > 2 && acknowledged < requests.len(), "{acknowledged} requests were taken");
    if let Some((status, body)) = refused {
        assert!(status == 503, "{status}: {body}");
    }
    // Nobody can go on with such a disk: the process ends, and says what it is about.
    wait_for("its end", Duration::from_secs(60), || host.process.ended().then_some(()));
    host.process.outcome(Duration::from_secs(60)).exits(5).says("No space left");
    disk.grow("256m");
    let host = start(&case);
    // The client sends everything again that was not answered, and a little more.
    for request in &requests[acknowledged.saturating_sub(2)..] {
        // Right after its start it may still be recovering.
        wait_for("an answer", START_MAX, || match post(&host.address, &file_of(*request)) {
            Some((202, _)) => Some(()),
            Some((503, _)) => None,
            other => panic!("{other:?}"),
        });
    }
    let gap = Gap::of_seconds(2, false);
    let want =
        model::sessions(&model::read(&[(&as_file(), "-", &file_of(&lines))], &gap), &BTreeSet::new(), &gap);
    wait_for("the last session to be final", Duration::from_secs(60), || {
        let rows = latest(case.table());
        let all = rows.iter().filter(|r| r.stage != "retracted").map(|r| r.row.events).sum::<u64>();
        (all == lines.len() as u64 && rows.iter().all(|r| r.stage != "early")).then_some(())
    });
    same_table("after a full disk", &want, &current(&latest(case.table())));
    host.process.terminate();
    host.process.outcome(Duration::from_secs(60)).exits(0);
}
