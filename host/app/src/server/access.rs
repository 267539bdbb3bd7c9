//! Who may use the admin API: a token, from a page of this host or from no page at all, under a name of this host.
//!
//! Invariants: every request passes here, for paths that do not exist too; a token is compared in the same time wherever it
//! differs; nothing of it is ever shown but by `tidemill token` and once when it is made.

use super::logins::Logins;
use super::problem::Problem;
use crate::store::token::Token;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use subtle::ConstantTimeEq;

/// What needs no token: an orchestrator asks it, or it is the page, and says nothing of what is worked on until somebody has
/// logged in.
const OPEN: [&str; 7] = ["/health", "/ready", "/openapi.json", "/", "/login", "/page.css", "/page.js"];

/// Whether a path needs no token.
pub(crate) fn is_open(path: &str) -> bool {
    OPEN.contains(&path)
}

/// What requests are held against.
#[derive(Debug)]
pub(crate) struct Access {
    token: RwLock<Token>,
    /// Names under which the host is asked, beside addresses and `localhost`.
    hosts: Vec<String>,
    /// Browsers that may look.
    pub(crate) logins: Logins,
    /// With TLS a page that has another name pointed at us fails at the certificate.
    tls: bool,
    /// How many tokens there were before this one.
    rotations: AtomicU64,
}

impl Access {
    pub(crate) fn new(token: Token, hosts: Vec<String>, tls: bool) -> Access {
        let (token, logins, rotations) = (RwLock::new(token), Logins::default(), AtomicU64::new(0));
        Access { token, hosts, logins, tls, rotations }
    }

    /// From now on another token is wanted.
    pub(crate) fn rotate(&self, token: Token) {
        let mut now = self.token.write().unwrap_or_else(PoisonError::into_inner);
        if *now != token {
            *now = token;
            self.rotations.fetch_add(1, Ordering::Relaxed);
            self.logins.forget();
        }
    }

    /// How many tokens there were before this one: what was begun with another is to end.
    pub(crate) fn rotations(&self) -> u64 {
        self.rotations.load(Ordering::Relaxed)
    }

    /// Whether connections are by TLS.
    pub(crate) fn tls(&self) -> bool {
        self.tls
    }

    /// Whether this is the token.
    pub(crate) fn is_token(&self, given: &str) -> bool {
        let token = self.token.read().unwrap_or_else(PoisonError::into_inner);
        token.reveal().as_bytes().ct_eq(given.as_bytes()).into()
    }

    /// Whether a request may read: it brings the token, or the cookie of a browser that has logged in.
    pub(crate) fn may_look(&self, headers: &HeaderMap) -> bool {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|c| c.to_str().ok());
        bearer(headers).is_some_and(|given| self.is_token(given))
            || cookies.into_iter().any(|c| self.logins.knows(c))
    }

    fn check(&self, method: &Method, headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
        let asked = self.host(headers, uri)?;
        same_origin(headers, &asked)?;
        // Reading changes nothing, so a cookie is enough for it.
        let reads = method.is_safe() && self.may_look(headers);
        if reads || is_open(uri.path()) { Ok(()) } else { self.authorized(headers) }
    }

    /// The name under which the host was asked. A page whose name was pointed at this address after it was loaded (DNS
    /// rebinding) asks under its own name; an address cannot be pointed anywhere.
    fn host(&self, headers: &HeaderMap, uri: &Uri) -> Result<Authority, Problem> {
        let given = headers.get(header::HOST).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        let Some(asked) = uri.authority().cloned().or(given) else {
            return Err(forbidden("host", "the request names no host: send `Host`"));
        };
        let name = asked.host().trim_matches(['[', ']']);
        let known = name.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|h| h.eq_ignore_ascii_case(name));
        if known || self.tls {
            return Ok(asked);
        }
        Err(forbidden(
            "host",
            "this host is not known by that name: ask by its address, or write the name into `server.hosts`",
        ))
    }

    fn authorized(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let given = bearer(headers);
        if given.is_some_and(|g| self.is_token(g)) {
            return Ok(());
        }
        let detail = if given.is_some() {
            "this token is not the one of this data directory; `tidemill token` prints that"
        } else {
            "send the token: `Authorization: Bearer TOKEN`; `tidemill token` prints it"
        };
        Err(Problem::new(StatusCode::UNAUTHORIZED, "token", detail).challenge())
    }
}

fn forbidden(kind: &'static str, detail: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, kind, detail)
}

/// The key or token of `Authorization: Bearer`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// A browser says which page asks; only this host's own may.
fn same_origin(headers: &HeaderMap, asked: &Authority) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().ok().and_then(|o| o.parse::<Uri>().ok());
    let of_the_web = |o: &Uri| matches!(o.scheme_str(), Some("http" | "https"));
    if origin.is_some_and(|o| of_the_web(&o) && o.authority() == Some(asked)) {
        return Ok(());
    }
    Err(forbidden("origin", "pages of other origins may not use this API"))
}

/// Lets nothing pass that may not.
pub(crate) async fn guard(State(access): State<Arc<Access>>, mut request: Request, next: Next) -> Response {
    match access.check(request.method(), request.headers(), request.uri()) {
        Ok(()) => {
            // For what shows more to somebody who is known, or goes on for as long as they are.
            request.extensions_mut().insert(access);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}
