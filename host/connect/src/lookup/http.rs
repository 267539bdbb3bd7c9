//! Rows of a service that speaks HTTP and JSON: a GET for each key, or a POST of many.
//!
//! - GET: `{key}` in the URL stands for the key, percent-encoded. 200 with a JSON object is the row, 404 or `null` none.
//! - POST: the body is `{"keys": [..]}`. 200 with a JSON object from key to row; a key that is absent or `null` has none.
//!
//! A row that is too long or no object fails its key alone. `rows`, a JSON pointer, says where in the answer that object is. 408, 425, 429, 5xx, a broken connection and an answer that
//! takes too long may work later; every other status is a refusal. Redirects are not followed.

use super::bounds::{RESPONSE_BYTES_MAX, ROW_BYTES_MAX};
use super::{Fetched, LookupError, Provider};
use crate::ConnectError;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use ureq::config::ConfigBuilder;
use ureq::http::{HeaderName, HeaderValue};
use ureq::typestate::AgentScope;

/// What may stand in a path or query as it is (RFC 3986, unreserved).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How a service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// One key a request, in the URL.
    Get,
    /// All keys of a call in one request.
    Post,
}

/// See the module's documentation.
pub struct HttpProvider {
    url: String,
    method: Method,
    headers: Vec<(HeaderName, HeaderValue)>,
    rows: String,
    agent: ureq::Agent,
}

/// What is wrong with a URL, if anything: for a config's check and for [`HttpProvider::new`] alike.
#[must_use]
pub fn url_problem(url: &str, method: Method) -> Option<&'static str> {
    let has_key = url.contains("{key}");
    if url.starts_with("https://") {
        Some(
            "this build has no TLS, so `https` cannot be used; put a proxy on this host in front, and write `http`",
        )
    } else if !url.starts_with("http://") {
        Some("it must begin with `http://`")
    } else if url
        .replace("{key}", "k")
        .parse::<ureq::http::Uri>()
        .map_or(true, |u| u.host().is_none_or(str::is_empty))
    {
        Some("it is no URL")
    } else if method == Method::Get && !has_key {
        Some("it has no `{key}`, which stands for the key; `method = \"post\"` sends many keys at once")
    } else if method == Method::Post && has_key {
        Some("it has a `{key}`, but `method = \"post\"` sends the keys in the body")
    } else {
        None
    }
}

/// What is wrong with a header, if anything.
#[must_use]
pub fn header_problem(name: &str, value: &str) -> Option<&'static str> {
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        Some("it is no name of a header")
    } else if HeaderValue::from_str(value).is_err() {
        Some("it has characters that a header cannot have")
    } else {
        None
    }
}

/// A client that asks the very service that is named, and leaves it to the caller what a status means.
pub(crate) fn client() -> ConfigBuilder<AgentScope> {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .user_agent(concat!("tidemill/", env!("CARGO_PKG_VERSION")))
}

impl HttpProvider {
    /// A provider for a URL. `rows` is a JSON pointer, empty for the whole answer.
    ///
    /// # Errors
    /// `Config`: the URL or a header cannot be used. Nothing is asked yet.
    pub fn new(
        url: &str,
        method: Method,
        headers: &[(String, String)],
        rows: &str,
        connections_max: usize,
    ) -> Result<HttpProvider, ConnectError> {
        if let Some(why) = url_problem(url, method) {
            return Err(ConnectError::Config(format!("{url}: {why}")));
        }
        let header = |(name, value): &(String, String)| {
            let wrong = || ConnectError::Config(format!("the header `{name}` cannot be sent"));
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            Ok((name, HeaderValue::from_str(value).map_err(|_| wrong())?))
        };
        let headers = headers.iter().map(header).collect::<Result<_, ConnectError>>()?;
        let agent = client()
            .max_idle_connections(connections_max)
            .max_idle_connections_per_host(connections_max)
            .build()
            .new_agent();
        Ok(HttpProvider { url: url.to_owned(), method, headers, rows: rows.to_owned(), agent })
    }

    fn get(&self, key: &str, timeout: Duration) -> Fetched {
        let url = self.url.replace("{key}", &utf8_percent_encode(key, ESCAPED).to_string());
        let mut request = self.agent.get(&url);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let response = request.config().timeout_global(Some(timeout)).build().call();
        match self.body(response, true)? {
            Some(body) => self.row(key, self.place(&body)),
            None => Ok(None),
        }
    }

    fn post(&self, keys: &[Arc<str>], timeout: Duration) -> Result<Vec<Fetched>, LookupError> {
        let keys_text: Vec<&str> = keys.iter().map(|k| &**k).collect();
        let mut request = self.agent.post(&self.url).content_type("application/json");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let body = serde_json::json!({ "keys": keys_text }).to_string();
        let response = request.config().timeout_global(Some(timeout)).build().send(body);
        let answer = self.body(response, false)?.unwrap_or(Value::Null);
        let Some(Value::Object(rows)) = self.place(&answer) else {
            let at = if self.rows.is_empty() { "" } else { " where `rows` points" };
            return Err(LookupError::Refused(format!("{}: the answer has no JSON object{at}", self.url)));
        };
        Ok(keys.iter().map(|k| self.row(k, rows.get(&**k))).collect())
    }

    fn place<'v>(&self, answer: &'v Value) -> Option<&'v Value> {
        answer.pointer(&self.rows)
    }

    fn row(&self, key: &str, value: Option<&Value>) -> Fetched {
        match value {
            None | Some(Value::Null) => Ok(None),
            Some(row @ Value::Object(_)) => {
                let text = row.to_string();
                if text.len() > ROW_BYTES_MAX {
                    let n = text.len();
                    let message = format!(
                        "{}: the row of `{key}` has {n} bytes, at most {ROW_BYTES_MAX} are taken",
                        self.url
                    );
                    return Err(LookupError::Unusable(message));
                }
                Ok(Some(text.into()))
            }
            Some(_) => {
                Err(LookupError::Unusable(format!("{}: the row of `{key}` is no JSON object", self.url)))
            }
        }
    }

    /// The JSON of an answer; `None` where 404 says that there is no such thing.
    fn body(
        &self,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
        may_be_missing: bool,
    ) -> Result<Option<Value>, LookupError> {
        let mut response = response.map_err(|e| self.kind(&e))?;
        let status = response.status().as_u16();
        // Read to its end whatever it says, so that the connection can be used again.
        let body = response
            .body_mut()
            .with_config()
            .limit(RESPONSE_BYTES_MAX)
            .read_to_vec()
            .map_err(|e| self.kind(&e))?;
        let shown = || format!("{}: status {status}", self.url);
        match status {
            200 => serde_json::from_slice(&body)
                .map(Some)
                .map_err(|e| LookupError::Refused(format!("{}: the answer is no JSON: {e}", self.url))),
            204 | 404 if may_be_missing => Ok(None),
            408 | 425 | 429 | 500..=599 => Err(LookupError::Unavailable(shown())),
            300..=399 => Err(LookupError::Refused(format!("{}, and redirects are not followed", shown()))),
            _ => Err(LookupError::Refused(shown())),
        }
    }

    fn kind(&self, e: &ureq::Error) -> LookupError {
        use ureq::Error;
        let text = format!("{}: {e}", self.url);
        match e {
            Error::Io(_)
            | Error::Timeout(_)
            | Error::HostNotFound
            | Error::ConnectionFailed
            | Error::Protocol(_) => LookupError::Unavailable(text),
            _ => LookupError::Refused(text),
        }
    }
}

impl Provider for HttpProvider {
    fn fetch(&self, keys: &[Arc<str>], timeout: Duration) -> Result<Vec<Fetched>, LookupError> {
        if self.method == Method::Post {
            return self.post(keys, timeout);
        }
        Ok(keys.iter().map(|k| self.get(k, timeout)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::time::Instant;

    /// Answers requests one after the other with what `answer` says of (first line, headers, body).
    fn server(answer: impl Fn(&str, &str, &str) -> (u16, String) + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                loop {
                    let (mut first, mut headers) = (String::new(), String::new());
                    if stream.read_line(&mut first).unwrap_or(0) == 0 {
                        break;
                    }
                    while !headers.ends_with("\r\n\r\n") && headers != "\r\n" {
                        stream.read_line(&mut headers).unwrap();
                    }
                    let lower = headers.to_lowercase();
                    let length = lower.lines().find_map(|l| l.strip_prefix("content-length: "));
                    let mut body = vec![0; length.map_or(0, |n| n.trim().parse().unwrap())];
                    stream.read_exact(&mut body).unwrap();
                    let (status, text) = answer(first.trim(), &lower, std::str::from_utf8(&body).unwrap());
                    let head = format!(
                        "HTTP/1.1 {status} X\r\nlocation: /x\r\ncontent-length: {}\r\n\r\n",
                        text.len()
                    );
                    stream.get_mut().write_all(format!("{head}{text}").as_bytes()).unwrap();
                }
            }
        });
        format!("http://{address}")
    }

    fn keys(list: &[&str]) -> Vec<Arc<str>> {
        list.iter().map(|k| Arc::from(*k)).collect()
    }
    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn one_key_a_request() {
        let base = server(|first, headers, _| {
            assert!(headers.contains("authorization: bearer x\r\n"), "{headers}");
            match first.split(' ').nth(1).unwrap() {
                "/v/a%2Fb%20%C3%BC?x=1" => (200, r#"{"data":{"n":1.50}}"#.into()),
                "/v/null?x=1" => (200, r#"{"data":null}"#.into()),
                _ => (404, "nothing".into()),
            }
        });
        let headers = [("Authorization".to_owned(), "Bearer x".to_owned())];
        let p =
            HttpProvider::new(&format!("{base}/v/{{key}}?x=1"), Method::Get, &headers, "/data", 1).unwrap();
        let rows = p.fetch(&keys(&["a/b ü", "null", "other"]), LONG).unwrap();
        assert_eq!(rows, [Ok(Some(r#"{"n":1.5}"#.into())), Ok(None), Ok(None)]);
    }

    /// The time is a request's, and what was answered stays so whatever becomes of the next.
    #[test]
    fn each_key_has_its_own_answer_and_time() {
        let base = server(|first, _, _| {
            // As a service that is well, and takes its time.
            std::thread::sleep(Duration::from_millis(60));
            if first.contains("bad") { (503, String::new()) } else { (200, "{}".into()) }
        });
        let p = HttpProvider::new(&format!("{base}/{{key}}"), Method::Get, &[], "", 1).unwrap();
        let rows = p.fetch(&keys(&["a", "b", "bad", "c"]), Duration::from_millis(150)).unwrap();
        let [Ok(Some(_)), Ok(Some(_)), Err(LookupError::Unavailable(_)), Ok(Some(_))] = &*rows else {
            panic!("{rows:?}")
        };
    }

    #[test]
    fn many_keys_a_request() {
        let base = server(|first, headers, body| {
            assert_eq!((first, body), ("POST /v HTTP/1.1", r#"{"keys":["a","b","c","d","e"]}"#));
            assert!(headers.contains("content-type: application/json\r\n"), "{headers}");
            let long = "x".repeat(ROW_BYTES_MAX);
            (200, format!(r#"{{"a":{{"n":1}},"b":null,"z":{{}},"d":[1],"e":{{"n":"{long}"}}}}"#))
        });
        let p = HttpProvider::new(&format!("{base}/v"), Method::Post, &[], "", 1).unwrap();
        let rows = p.fetch(&keys(&["a", "b", "c", "d", "e"]), LONG).unwrap();
        assert_eq!(rows[..3], [Ok(Some(r#"{"n":1}"#.into())), Ok(None), Ok(None)]);
        // What is wrong with a row is its own answer.
        for (row, words) in [(&rows[3], "`d` is no JSON object"), (&rows[4], "`e` has")] {
            assert!(matches!(row, Err(LookupError::Unusable(m)) if m.contains(words)), "{row:?}");
        }
    }

    #[test]
    fn failures_by_whose_move_it_is() {
        let base = server(|first, _, _| match first.split(' ').nth(1).unwrap().trim_start_matches('/') {
            "json" => (200, "{".into()),
            "list" => (200, "[1]".into()),
            status => (status.parse().unwrap(), String::new()),
        });
        let p = HttpProvider::new(&format!("{base}/{{key}}"), Method::Get, &[], "", 1).unwrap();
        let fetch = |k: &str| p.fetch(&keys(&[k]), LONG).unwrap().remove(0);
        for status in ["500", "503", "429", "408"] {
            assert!(
                matches!(fetch(status), Err(LookupError::Unavailable(m)) if m.contains(status)),
                "{status}"
            );
        }
        for (key, words) in
            [("400", "400"), ("401", "401"), ("302", "redirects are not followed"), ("json", "no JSON")]
        {
            assert!(matches!(fetch(key), Err(LookupError::Refused(m)) if m.contains(words)), "{key}");
        }
        assert!(matches!(fetch("list"), Err(LookupError::Unusable(m)) if m.contains("no JSON object")));
    }

    #[test]
    fn a_service_that_is_gone_or_silent_may_be_back_later() {
        // Bound, never accepting: a silent one. Dropped: a gone one.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/{{key}}", listener.local_addr().unwrap());
        let p = HttpProvider::new(&url, Method::Get, &[], "", 1).unwrap();
        let begun = Instant::now();
        let fetch = |timeout| p.fetch(&keys(&["a"]), timeout).unwrap().remove(0);
        assert!(matches!(fetch(Duration::from_millis(50)), Err(LookupError::Unavailable(_))));
        assert!(begun.elapsed() < Duration::from_secs(5));
        drop(listener);
        assert!(matches!(fetch(LONG), Err(LookupError::Unavailable(_))));
    }

    #[test]
    fn urls_that_cannot_be_used() {
        let table = [
            ("http://h/{key}", Method::Get, ""),
            ("http://h/v", Method::Post, ""),
            ("https://h/{key}", Method::Get, "no TLS"),
            ("h/{key}", Method::Get, "must begin"),
            ("http:///{key}", Method::Get, "no URL"),
            ("http://h/v", Method::Get, "no `{key}`"),
            ("http://h/{key}", Method::Post, "has a `{key}`"),
        ];
        for (url, method, words) in table {
            let problem = url_problem(url, method);
            assert_eq!(problem.is_none(), words.is_empty(), "{url}: {problem:?}");
            assert!(problem.unwrap_or_default().contains(words), "{url}: {problem:?}");
        }
        assert!(header_problem("a b", "x").is_some() && header_problem("a", "x\n").is_some());
        assert_eq!(header_problem("Authorization", "Bearer x"), None);
    }
}
