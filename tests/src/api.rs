//! The admin API of a running tidemill, as a client of its own sees it: a socket, a request, an answer.

use crate::{Case, Process, wait_for};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

const START_MAX: Duration = Duration::from_secs(60);
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head, in lower case but for values.
    pub head: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
    /// A header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
    /// Asserts its status.
    #[track_caller]
    pub fn is(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }
}

/// An instant as the API writes it, ms since the Unix epoch.
#[track_caller]
#[must_use]
pub fn instant_ms(value: &Value) -> i64 {
    let text = value.as_str().unwrap_or_else(|| panic!("no instant: {value}"));
    text.parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

/// An address and the token for it.
#[derive(Clone, Debug)]
pub struct Api {
    /// host:port.
    pub address: String,
    /// The admin token.
    pub token: String,
}

impl Api {
    /// Of a process that has just been started for a case; waits until it listens.
    #[must_use]
    pub fn of(case: &Case, process: &Process) -> Api {
        let address = wait_for("the admin API", START_MAX, || {
            let said = process.said_so_far();
            let (_, rest) = said.split_once("the admin API is at http://")?;
            let end = rest.find(|c: char| c.is_whitespace() || c == '/')?;
            Some(rest[..end].to_owned())
        });
        let token = std::fs::read_to_string(case.path("state/token")).unwrap().trim().to_owned();
        let api = Api { address, token };
        // Recovered, and the first epoch committed: before that there is no version in force.
        wait_for("every pipeline to run", START_MAX, || {
            let all = api.try_ask("GET", "/api/v1/pipelines", &[], b"")?.json();
            let runs = |p: &Value| p["state"] != "starting" && p["ran"] == true;
            all["pipelines"].as_array()?.iter().all(runs).then_some(())
        });
        api
    }

    /// Asks; none if there was no whole answer.
    #[must_use]
    pub fn try_ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Answer> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\nconnection: close\r\n",
            self.address,
            self.token,
            body.len()
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        stream.write_all(body).ok()?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).ok()?;
        let at = all.windows(4).position(|w| w == b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&all[..at]).into_owned();
        let mut lines = text.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let head: Vec<(String, String)> = lines
            .filter_map(|l| l.split_once(':'))
            .map(|(n, v)| (n.to_lowercase(), v.trim().to_owned()))
            .collect();
        Some(Answer { status, head, body: all[at + 4..].to_vec() })
    }

    /// Asks for something that must be answered.
    #[track_caller]
    #[must_use]
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_ask(method, path, headers, body).unwrap_or_else(|| panic!("{method} {path} has no answer"))
    }

    /// Reads something.
    #[track_caller]
    #[must_use]
    pub fn get(&self, path: &str) -> Value {
        self.ask("GET", path, &[], b"").is(200).json()
    }

    /// Brings a component; its name and version.
    #[track_caller]
    pub fn upload(&self, component: &Path) -> (String, String) {
        let bytes = std::fs::read(component).unwrap();
        let answer = self.ask("POST", "/api/v1/plugins", &[("content-type", "application/wasm")], &bytes);
        assert!(matches!(answer.status, 200 | 201), "{}", String::from_utf8_lossy(&answer.body));
        let v = answer.json();
        (v["name"].as_str().unwrap().to_owned(), v["version"].as_str().unwrap().to_owned())
    }

    /// Asks for a deployment, whichever is in force.
    #[must_use]
    pub fn deploy(
        &self,
        pipeline: &str,
        plugin: &str,
        version: &str,
        config: &Value,
        policy: &str,
    ) -> Answer {
        let body = json!({
            "plugin": plugin, "version": version, "config": config, "policy": policy, "message": "a test"
        });
        let path = format!("/api/v1/pipelines/{pipeline}/deployment");
        let headers = [("content-type", "application/json"), ("if-match", "*")];
        self.ask("PUT", &path, &headers, body.to_string().as_bytes())
    }

    /// Waits until an operation that was accepted has come to its end.
    #[track_caller]
    pub fn ended(&self, accepted: Answer) -> Value {
        let path = accepted.is(202).header("location").expect("an operation has a place").to_owned();
        wait_for("the operation", ANSWER_MAX, || {
            let operation = self.get(&path);
            (operation["status"] != "waiting").then_some(operation)
        })
    }

    /// Waits until only one version is live.
    pub fn settled(&self, pipeline: &str) {
        wait_for("the swap to settle", ANSWER_MAX, || {
            let shown = self.get(&format!("/api/v1/pipelines/{pipeline}"));
            (shown["deployments"].as_array().is_some_and(|d| d.len() == 1)).then_some(())
        });
    }
}
