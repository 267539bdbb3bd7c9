//! The status page: who may see it, what it is told, and what a browser makes of it.
//!
//! The bug family: a page that shows to anybody, a link that works twice, a cookie that changes something, a stream that says
//! nothing or holds the host up at its end. A Chromium on the path (or named by `TIDEMILL_CHROMIUM`) opens the page, too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;
use tidemill_tests::api::{Answer, Api};
use tidemill_tests::{Case, Process, binary, wait_for};

const RUN_MAX: Duration = Duration::from_secs(60);

fn host() -> (Case, Process, Api) {
    let case = Case::new();
    let path = |name: &str| serde_json::Value::from(case.path(name).to_str().unwrap()).to_string();
    let text = format!(
        "[server]\ndata_dir = {}\nepoch = \"100ms\"\nlisten = \"127.0.0.1:0\"\n\
         [source.web]\nkind = \"generator\"\nrate = 500\nusers = 40\nstart = 2024-05-01T00:00:00Z\n\
         [pipeline.visits]\nfrom = [\"web\"]\n\
         session = {{ plugin = \"builtin:gap\", config = {{ gap = \"5s\" }} }}\nto = [\"sessions\"]\n\
         [sink.sessions]\nkind = \"sqlite\"\npath = {}\ntable = \"sessions\"\n",
        path("state"),
        path("sessions.db")
    );
    case.put("pipeline.toml", text.as_bytes());
    let process = case.start(&[], &[]);
    let api = Api::of(&case, &process);
    (case, process, api)
}

/// Asks as somebody who has no token.
fn stranger(api: &Api, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let nobody = Api { address: api.address.clone(), token: "none".into() };
    nobody.ask(method, path, headers, b"")
}

fn link(api: &Api) -> String {
    let made = api.ask("POST", "/api/v1/login-links", &[], b"").is(201).json();
    made["path"].as_str().unwrap().to_owned()
}

#[test]
fn a_link_lets_a_browser_look_once_and_change_nothing() {
    let (_case, process, api) = host();
    let before = stranger(&api, "GET", "/", &[]).is(401);
    let text = String::from_utf8_lossy(&before.body).into_owned();
    assert!(text.contains("<form") && !text.contains("visits"), "{text}");
    assert!(before.header("content-security-policy").unwrap().contains("default-src 'none'"));
    let link = link(&api);
    // Whoever only looks whether there is something uses nothing up.
    assert_eq!(stranger(&api, "HEAD", &link, &[]).is(200).header("set-cookie"), None);
    let came_in = stranger(&api, "GET", &link, &[]).is(303);
    assert_eq!(came_in.header("location"), Some("/"));
    let cookie = came_in.header("set-cookie").unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
    stranger(&api, "GET", &link, &[]).is(401);
    let cookie = cookie.split(';').next().unwrap();
    let page = stranger(&api, "GET", "/", &[("cookie", cookie)]).is(200);
    assert!(String::from_utf8_lossy(&page.body).contains("page.js"));
    stranger(&api, "GET", "/api/v1/pipelines", &[("cookie", cookie)]).is(200);
    stranger(&api, "POST", "/api/v1/pipelines/visits/pause", &[("cookie", cookie)]).is(401);
    let docs = stranger(&api, "GET", "/docs", &[("cookie", cookie)]).is(200);
    assert!(String::from_utf8_lossy(&docs.body).contains("## Operating it"));
    stranger(&api, "GET", "/docs", &[]).is(401);
    stranger(&api, "GET", "/api/v1/pipelines", &[("cookie", "tidemill=wrong")]).is(401);
    stranger(&api, "GET", "/api/v1/live", &[]).is(401);
    process.terminate();
    process.outcome(RUN_MAX).exits(0);
}

/// Looks on with the token; nothing of the stream is read yet.
fn watch(api: &Api) -> TcpStream {
    let mut stream = TcpStream::connect(&api.address).unwrap();
    stream.set_read_timeout(Some(RUN_MAX)).unwrap();
    let (address, token) = (&api.address, &api.token);
    let request = format!(
        "GET /api/v1/live HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

#[test]
fn the_stream_tells_of_pipelines_and_of_rows_and_ends_with_the_host() {
    let (_case, process, api) = host();
    let mut stream = watch(&api);
    let (mut said, mut part) = (String::new(), [0; 4096]);
    while !(said.contains("event: status") && said.contains("event: row")) {
        let n = stream.read(&mut part).unwrap();
        assert!(n > 0, "it ended after\n{said}");
        said.push_str(&String::from_utf8_lossy(&part[..n]));
    }
    assert!(said.contains("text/event-stream") && said.contains("\"pipeline\":\"visits\""), "{said}");
    process.terminate();
    // Somebody who looks on does not hold the host up.
    process.outcome(Duration::from_secs(8)).exits(0);
}

#[test]
fn another_token_ends_the_streams_of_the_one_before() {
    let (case, process, api) = host();
    let mut stream = watch(&api);
    let mut part = [0; 4096];
    assert!(stream.read(&mut part).unwrap() > 0);
    let rotated =
        Command::new(binary()).arg("token").arg(case.path("pipeline.toml")).arg("--rotate").output().unwrap();
    assert!(rotated.status.success());
    wait_for("the stream to end", RUN_MAX, || (stream.read(&mut part).unwrap() == 0).then_some(()));
    process.terminate();
    process.outcome(RUN_MAX).exits(0);
}

#[test]
fn a_browser_shows_what_it_is_told() {
    let named = std::env::var_os("TIDEMILL_CHROMIUM");
    let browser = named.clone().unwrap_or_else(|| "chromium".into());
    if Command::new(&browser).arg("--version").output().is_err() {
        assert!(named.is_none(), "{} cannot be started", browser.display());
        eprintln!("tidemill-tests: there is no chromium, so nobody looks at the page here");
        return;
    }
    let (case, process, api) = host();
    let shot = case.path("page.png");
    let profile = format!("--user-data-dir={}", case.path("profile").display());
    let quiet =
        ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--timeout=5000"];
    let page = wait_for("the page in a browser", RUN_MAX, || {
        let url = format!("http://{}{}", api.address, link(&api));
        let shown =
            Command::new(&browser).args(quiet).arg(&profile).args(["--dump-dom", &url]).output().unwrap();
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        text.contains("data-told").then_some(text)
    });
    for what in [
        "class=\"name\">visits<",
        "badge good\">running<",
        "builtin:gap@1",
        "badge good\" role=\"status\">live<",
    ] {
        assert!(page.contains(what), "{what} is not in\n{page}");
    }
    let url = format!("http://{}{}", api.address, link(&api));
    let screenshot = format!("--screenshot={}", shot.display());
    let taken = Command::new(&browser).args(quiet).arg(&profile).args([&screenshot, &url]).output().unwrap();
    assert!(taken.status.success());
    assert!(std::fs::metadata(&shot).unwrap().len() > 10_000, "an empty page");
    process.terminate();
    process.outcome(RUN_MAX).exits(0);
}
