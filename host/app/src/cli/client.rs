//! The admin API of a host that runs, for commands: each request can also be shown as the `curl` that does the same.
//!
//! Invariants: the token goes to whoever holds the lock of its data directory and to nobody else; it is never shown, only
//! the command that prints it.

use super::out::Failure;
use crate::config::Plan;
use crate::store::address::AddressFile;
use crate::store::token::TokenFile;
use crate::tls;
use axum::body::{Body, Bytes};
use axum::http::{Method, Request, header};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidemill_store::claim::Claim;
use tidemill_store::disk::OsDisk;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A deployment waits for its states to be tried, and a component for being compiled.
const ANSWER_MAX: Duration = Duration::from_secs(180);
/// How long a host may take until it answers what it is asked, once it listens.
const START_MAX: Duration = Duration::from_secs(15);
/// How often it is asked meanwhile.
const PACE: Duration = Duration::from_millis(100);
/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A host that runs.
pub(super) struct Host {
    address: String,
    token: String,
    tls: Option<Arc<ClientConfig>>,
    config: String,
    cert: Option<String>,
}

/// A request.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) headers: &'a [(&'a str, &'a str)],
    pub(super) body: Bytes,
    /// How `curl` is given the body.
    pub(super) shown: Option<String>,
}

impl<'a> Ask<'a> {
    pub(super) fn get(path: &'a str) -> Ask<'a> {
        Ask { method: Method::GET, path, headers: &[], body: Bytes::new(), shown: None }
    }
}

/// What came back.
pub(super) struct Answer {
    pub(super) body: Value,
    pub(super) etag: Option<String>,
    pub(super) location: Option<String>,
}

impl Host {
    /// The host that runs this config now; none if none does, or if it has no admin API.
    pub(super) fn of(plan: &Plan, config: &Path) -> Result<Option<Host>, Failure> {
        let server = &plan.server;
        if !Claim::is_taken(&OsDisk, &server.data_dir) {
            return Ok(None);
        }
        let Ok(Some(address)) = AddressFile::of(&server.data_dir).read() else { return Ok(None) };
        let Ok(Some(token)) = TokenFile::of(&server.data_dir).read() else { return Ok(None) };
        let tls = server.tls.as_ref().map(tls::client_config).transpose();
        let tls = tls.map_err(|e| Failure::new(4, e.to_string(), None))?;
        let host = Host {
            address: reachable(&address),
            token: token.reveal().to_owned(),
            tls,
            config: config.display().to_string(),
            cert: server.tls.as_ref().map(|t| t.cert.display().to_string()),
        };
        Ok(std::net::TcpStream::connect(&host.address).is_ok().then_some(host))
    }

    /// The same; a command that needs one fails without.
    pub(super) fn needed(plan: &Plan, config: &Path) -> Result<Host, Failure> {
        Host::of(plan, config)?.ok_or_else(|| {
            let (dir, file) = (plan.server.data_dir.display(), config.display());
            let help = format!("start one: `tidemill run {file}`; one that reads only files has an admin API if `listen` is in [server]");
            Failure::new(6, format!("no host with an admin API uses {dir}"), help)
        })
    }

    /// The `curl` that does the same.
    pub(super) fn curl(&self, ask: &Ask<'_>) -> String {
        let mut line = "curl".to_owned();
        // A string takes everything.
        let _ = write!(line, " -H \"authorization: Bearer $(tidemill token {})\"", self.config);
        if let Some(cert) = &self.cert {
            let _ = write!(line, " --cacert {cert}");
        }
        if ask.method != Method::GET {
            let _ = write!(line, " -X {}", ask.method);
        }
        for (name, value) in ask.headers {
            let _ = write!(line, " -H '{name}: {value}'");
        }
        if let Some(body) = &ask.shown {
            let _ = write!(line, " {body}");
        }
        let _ = write!(line, " '{}{}'", self.url(), ask.path);
        line
    }

    /// Where it is asked, without a path.
    pub(super) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Asks, and gives the answer if it is what was asked for. A question to a host that has only just been started is asked
    /// again for a while; a change is not, since it may be under way.
    pub(super) fn ask(&self, ask: &Ask<'_>) -> Result<Answer, Failure> {
        let broken =
            |e: String| Failure::new(1, format!("the host at {} does not answer: {e}", self.address), None);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| broken(e.to_string()))?;
        let answer = runtime.block_on(async {
            let begun = Instant::now();
            loop {
                let answer = tokio::time::timeout(ANSWER_MAX, self.exchange(ask))
                    .await
                    .unwrap_or_else(|_| Err(format!("nothing within {} s", ANSWER_MAX.as_secs())))?;
                if answer.0 != 503 || ask.method != Method::GET || begun.elapsed() > START_MAX {
                    return Ok(answer);
                }
                tokio::time::sleep(PACE).await;
            }
        });
        let (status, answer) = answer.map_err(broken)?;
        if (200..300).contains(&status) { Ok(answer) } else { Err(refused(status, &answer.body)) }
    }

    async fn exchange(&self, ask: &Ask<'_>) -> Result<(u16, Answer), String> {
        let stream = TcpStream::connect(&self.address).await.map_err(|e| e.to_string())?;
        match &self.tls {
            None => self.over(stream, ask).await,
            Some(config) => {
                // The certificate itself is known; the name says nothing.
                let name = ServerName::try_from("localhost").map_err(|e| e.to_string())?;
                let connected = TlsConnector::from(config.clone()).connect(name, stream).await;
                self.over(connected.map_err(|e| e.to_string())?, ask).await
            }
        }
    }

    async fn over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        ask: &Ask<'_>,
    ) -> Result<(u16, Answer), String> {
        let (mut client, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(ask.path)
            .header(header::HOST, &self.address)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        for (name, value) in ask.headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(ask.body.clone())).map_err(|e| e.to_string())?;
        let (head, body) = client.send_request(request).await.map_err(|e| e.to_string())?.into_parts();
        let text = |name| head.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (etag, location) = (text(header::ETAG), text(header::LOCATION));
        let bytes =
            Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|e| e.to_string())?.to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or_default();
        Ok((head.status.as_u16(), Answer { body, etag, location }))
    }
}

/// An address that listens everywhere is reached here.
fn reachable(listen: &str) -> String {
    match listen.rsplit_once(':') {
        Some(("0.0.0.0", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        _ => listen.to_owned(),
    }
}

/// A problem document as a command's failure.
fn refused(status: u16, problem: &Value) -> Failure {
    let detail =
        problem["detail"].as_str().map_or_else(|| format!("the host answers {status}"), str::to_owned);
    let code = match status {
        404 => 3,
        409 | 412 => 6,
        400..500 => 4,
        _ => 1,
    };
    let list = |name: &str| problem[name].as_array().cloned().unwrap_or_default();
    let keys: Vec<String> =
        list("keys").iter().filter_map(|k| Some(super::text::foreign(k.as_str()?, 60))).collect();
    let help = (!keys.is_empty()).then(|| format!("the first keys are {}", keys.join(", ")));
    Failure::new(code, detail, help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_curl_does_the_same_and_shows_no_token() {
        let host = Host {
            address: "127.0.0.1:7300".into(),
            token: "tidemill_secret".into(),
            tls: None,
            config: "visits.toml".into(),
            cert: None,
        };
        let ask = Ask {
            method: Method::PUT,
            path: "/api/v1/pipelines/visits/deployment",
            headers: &[("if-match", "\"1-0\"")],
            body: Bytes::from_static(b"{}"),
            shown: Some("-d '{}'".into()),
        };
        assert_eq!(
            host.curl(&ask),
            "curl -H \"authorization: Bearer $(tidemill token visits.toml)\" -X PUT -H 'if-match: \"1-0\"' -d '{}' \
             'http://127.0.0.1:7300/api/v1/pipelines/visits/deployment'"
        );
    }

    #[test]
    fn a_problem_says_whose_move_it_is() {
        let told = |status, problem: Value| match refused(status, &problem) {
            Failure::Told { code, message, help } => (code, message, help),
            other => panic!("{other:?}"),
        };
        let conflict = json!({ "detail": "3 states do not fit", "keys": ["ann", "b\u{1b}"] });
        let (code, message, help) = told(409, conflict);
        assert_eq!((code, message.as_str()), (6, "3 states do not fit"));
        assert_eq!(help.unwrap(), "the first keys are ann, b\\u{1b}");
        assert_eq!((told(404, json!({})).0, told(422, json!({})).0, told(503, json!({})).0), (3, 4, 1));
    }

    #[test]
    fn an_address_that_listens_everywhere_is_reached_here() {
        let all = ["0.0.0.0:7300", "[::]:7300", "127.0.0.1:1", "host.example:7300"].map(reachable);
        assert_eq!(all, ["127.0.0.1:7300", "[::1]:7300", "127.0.0.1:1", "host.example:7300"]);
    }
}
