//! Events posted over HTTP: what was acknowledged is in the table, whatever is killed in between.
//!
//! The bug family: an answer before the record is durable, a position that runs ahead of the log, a repeated request
//! that counts twice, a client that costs others their answers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;
use tidemill_tests::api::Api;
use tidemill_tests::disk::Tmpfs;
use tidemill_tests::model::{self, Format, Gap, Source, Unit};
use tidemill_tests::traffic::{Rng, Shop, Timed, delayed, file_of};
use tidemill_tests::{Case, Process, Stored, current, env_number, latest, same_table, wait_for};

const KEY: &str = "0123456789abcdef";
const START_MAX: Duration = Duration::from_secs(60);
const ANSWER_MAX: Duration = Duration::from_secs(60);

fn configure(case: &Case, state: &str) {
    configure_with(case, state, "", "");
}

/// The same with an admin API, and these further lines of the source.
fn configure_with(case: &Case, state: &str, server: &str, source: &str) {
    let path = |name: &str| serde_json::Value::from(case.path(name).to_str().unwrap()).to_string();
    let text = format!(
        r#"
        [server]
        data_dir = {}
        epoch = "100ms"
        {server}
        [source.web]
        kind = "http"
        listen = "127.0.0.1:0"
        write_keys = ["${{env:WRITE_KEY}}"]
        key = {{ first_of = ["user", "device"] }}
        time = {{ field = "ts", unit = "ms" }}
        id = "id"
        disorder = "1s"
        idle = "4s"
        {source}
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
    listening(case.start(&[], &[("WRITE_KEY", KEY.into())]))
}

fn listening(process: Process) -> Host {
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

/// Sends a head and what follows, all before anything is read: the status, and none if there was no answer.
fn written_first(address: &str, head: &str, body: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
    stream.write_all(format!("POST /v1/events HTTP/1.1\r\n{head}\r\n").as_bytes()).ok()?;
    stream.write_all(body).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    line.split(' ').nth(1)?.parse().ok()
}

/// Bug family: an answer that its client cannot read, because the connection is closed while it is still sending.
#[test]
fn who_sends_too_much_gets_to_read_so() {
    let case = Case::new();
    configure_with(&case, "state", "listen = \"127.0.0.1:0\"", "");
    let host = start(&case);
    let api = Api::of(&case, &host.process);
    let ask = |head: &str, body: &[u8]| written_first(&host.address, head, body);
    let key = format!("host: h\r\nauthorization: Bearer {KEY}\r\n");
    let large = vec![b' '; 40 << 20];
    let length = format!("content-length: {}\r\n", large.len());
    assert_eq!(ask(&format!("{key}{length}"), &large), Some(413));
    assert_eq!(ask(&format!("host: h\r\nauthorization: Bearer none\r\n{length}"), &large), Some(401));
    let mut chunked = format!("{:x}\r\n", large.len()).into_bytes();
    chunked.extend_from_slice(&large);
    chunked.extend_from_slice(b"\r\n0\r\n\r\n");
    assert_eq!(ask(&format!("{key}transfer-encoding: chunked\r\n"), &chunked), Some(413));
    assert_eq!(ask(&format!("{key}content-length: 99999999999\r\n"), b""), Some(413), "nothing has to come");
    let component = vec![0; 70 << 20];
    let kind = [("content-type", "application/wasm")];
    let answer = api.try_ask("POST", "/api/v1/plugins", &kind, &component);
    assert_eq!(answer.map(|a| a.status), Some(413), "a component");
    let padding = |bytes: usize| format!("x-padding: {}\r\n", "x".repeat(bytes));
    assert_eq!(ask(&format!("{key}{}content-length: 2\r\n", padding(32 << 10)), b"{}"), Some(202));
    assert_eq!(ask(&format!("{key}{}content-length: 2\r\n", padding(500_000)), b"{}"), Some(431));
    assert_eq!(
        written_first(&api.address, &format!("host: {}\r\n{}", api.address, padding(500_000)), b""),
        Some(431)
    );
    assert_eq!(ask(&format!("host: other\r\n{key}content-length: 2\r\n"), b"{}"), Some(400), "two hosts");
    host.process.terminate();
    host.process.outcome(Duration::from_secs(60)).exits(0);
}

/// What so many clients get.
fn at_once<T: Send>(clients: usize, client: impl Fn() -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(&client)).collect();
        clients.into_iter().map(|c| c.join().unwrap()).collect()
    })
}

/// Bug family: memory that grows with the number of clients.
#[test]
fn large_bodies_and_bombs_at_once_have_bounded_room() {
    let case = Case::new();
    configure(&case, "state");
    let host = start(&case);
    wait_for("the store to be recovered", START_MAX, || {
        (post(&host.address, b"[]").map(|(status, _)| status) == Some(202)).then_some(())
    });
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..1 << 10 {
        bomb.write_all(&b"{\"a\":1}\n".repeat(4 << 10)[..32 << 10]).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 256 << 10, "{} bytes", bomb.len());
    let clients = at_once(60, || {
        let api = Api { address: host.address.clone(), token: KEY.to_owned() };
        let headers = [("content-type", "application/x-ndjson"), ("content-encoding", "gzip")];
        api.try_ask("POST", "/v1/events", &headers, &bomb).map(|a| a.status)
    });
    assert!(clients.iter().all(|c| matches!(c, Some(413 | 429))), "{clients:?}");
    assert!(clients.contains(&Some(413)), "none was unpacked: {clients:?}");
    let half = vec![b' '; (8 << 20) - 1];
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {KEY}\r\ncontent-length: {}\r\n\r\n",
        half.len() + 1
    );
    let held = at_once(120, || {
        let mut stream = TcpStream::connect(&host.address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        // Who was refused may be cut off.
        let _ = stream.write_all(&half);
        stream
    });
    drop(held);
    let good = br#"{"id":"1","user":"a","ts":1714521600000}"#;
    wait_for("room", START_MAX, || (post(&host.address, good)?.0 == 202).then_some(()));
    host.process.terminate();
    let (outcome, peak_bytes) = host.process.outcome_and_peak(Duration::from_secs(60));
    outcome.exits(0);
    tidemill_tests::report!("{} MiB at most", peak_bytes >> 20);
    assert!(peak_bytes < 800 << 20, "{peak_bytes} bytes");
}

fn event(n: u64) -> String {
    format!(r#"{{"id":"{n}","user":"a","ts":{}}}"#, 1_714_521_600_000 + n)
}

/// Posts on a connection that stays open: the status.
fn on_open_connection(stream: &mut BufReader<TcpStream>, body: &str) -> Option<u16> {
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {KEY}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.get_mut().write_all(format!("{head}{body}").as_bytes()).ok()?;
    let (mut status, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let line = line.trim().to_lowercase();
        if line.is_empty() {
            break;
        }
        status = status.or_else(|| line.split(' ').nth(1)?.parse().ok());
        length = line.strip_prefix("content-length: ").map_or(length, |n| n.parse().unwrap());
    }
    stream.read_exact(&mut vec![0; length]).ok()?;
    status
}

/// Bug family: connections that take the open files that the store needs.
#[test]
fn who_only_connects_stops_neither_the_host_nor_its_operators() {
    let case = Case::new();
    configure_with(&case, "state", "listen = \"127.0.0.1:0\"", "");
    let host = listening(case.start_with_files(256, &[("WRITE_KEY", KEY.into())]));
    let api = Api::of(&case, &host.process);
    wait_for("the store to be recovered", START_MAX, || {
        (post(&host.address, b"[]").map(|(status, _)| status) == Some(202)).then_some(())
    });
    let mut let_in = BufReader::new(TcpStream::connect(&host.address).unwrap());
    let address = host.address.parse().unwrap();
    // Those that have no place wait in the system's queue; who finds no room there either goes away.
    let held = at_once(400, || TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok());
    let events = |rows: Vec<Stored>| current(&rows).iter().map(|r| r.events).sum::<u64>();
    // Every epoch meanwhile opens files.
    for n in 1..=10 {
        assert_eq!(on_open_connection(&mut let_in, &event(n)), Some(202), "event {n}");
        assert_eq!(api.get("/api/v1/pipelines")["pipelines"][0]["state"], "running");
        wait_for("the event", Duration::from_secs(60), || {
            (case.has_table() && events(latest(case.table())) == n).then_some(())
        });
    }
    drop(held);
    let eleventh = event(11);
    wait_for("a place", START_MAX, || (post(&host.address, eleventh.as_bytes())?.0 == 202).then_some(()));
    host.process.terminate();
    host.process.outcome(Duration::from_secs(60)).exits(0);
}

/// Bug family: a bound that is reached and never left again.
#[test]
fn a_backlog_that_is_full_is_said_so_and_taken_again_once_it_is_read() {
    let case = Case::new();
    configure_with(&case, "state", "listen = \"127.0.0.1:0\"", "backlog_bytes = \"1MiB\"");
    let host = start(&case);
    let api = Api::of(&case, &host.process);
    let events = Api { address: host.address.clone(), token: KEY.to_owned() };
    let send = |n: u64| {
        let padding = "x".repeat(50 << 10);
        let record =
            format!(r#"{{"id":"{n}","user":"a","ts":{},"padding":"{padding}"}}"#, 1_714_521_600_000 + n);
        events.ask("POST", "/v1/events", &[], record.as_bytes())
    };
    let mut sent = 0;
    for _ in 0..2 {
        let _ = api.ask("POST", "/api/v1/pipelines/visits/pause", &[], b"").is(200);
        let refused = loop {
            let answer = send(sent);
            if answer.status != 202 {
                break answer;
            }
            sent += 1;
            assert!(sent < 100, "nothing is refused");
        };
        let refused = refused.is(429);
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert_eq!(refused.json()["type"], "/problems/full");
        let _ = api.ask("POST", "/api/v1/pipelines/visits/resume", &[], b"").is(200);
        wait_for("room", Duration::from_secs(60), || (send(sent).status == 202).then_some(()));
        sent += 1;
    }
    assert!(sent > 30, "{sent} events");
    wait_for("all that was taken", Duration::from_secs(60), || {
        let rows = if case.has_table() { current(&latest(case.table())) } else { Vec::new() };
        (rows.iter().map(|r| r.events).sum::<u64>() == sent).then_some(())
    });
    host.process.terminate();
    host.process.outcome(Duration::from_secs(60)).exits(0);
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
    // What is answered before that says nothing about the disk.
    wait_for("the store to be recovered", START_MAX, || {
        (post(&host.address, b"[]").map(|(status, _)| status) == Some(202)).then_some(())
    });
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
