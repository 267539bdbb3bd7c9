//! The status page: one page, made of files that are part of the binary, and the way in for a browser.
//!
//! Nothing on it comes from anywhere else, and a browser is told to take nothing from anywhere else.

use super::access::Access;
use super::problem::{Problem, ProblemBody};
use crate::store::token;
use axum::body::Body;
use axum::extract::{Form, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

const PAGE: &str = include_str!("page/index.html");
const LOGIN: &str = include_str!("page/login.html");
const STYLE: &str = include_str!("page/page.css");
/// What this version does, where there is no network to read it from.
const DOCS: &str = include_str!("../../../../README.md");
const SEMANTICS: &str = include_str!("../../../../docs/semantics.md");
const SCRIPT: &str = include_str!("page/page.js");

const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; \
         frame-ancestors 'none'; base-uri 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    // A link that logs in is nobody else's business.
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
];

/// The page and the way to it.
pub(super) fn router(access: Arc<Access>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/docs", get(|| async { file(StatusCode::OK, "text/plain; charset=utf-8", DOCS) }))
        .route(
            "/docs/semantics",
            get(|| async { file(StatusCode::OK, "text/plain; charset=utf-8", SEMANTICS) }),
        )
        // Whoever only looks whether there is something at a link does not use it up.
        .route("/login", get(by_link).head(|| async { html(StatusCode::OK, LOGIN) }).post(by_token))
        .route("/page.css", get(|| async { file(StatusCode::OK, "text/css; charset=utf-8", STYLE) }))
        .route("/page.js", get(|| async { file(StatusCode::OK, "text/javascript; charset=utf-8", SCRIPT) }))
        .with_state(access)
}

fn file(status: StatusCode, kind: &'static str, text: &'static str) -> Response {
    let mut response = (status, Body::from(text)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.extend(HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}

fn html(status: StatusCode, text: &'static str) -> Response {
    file(status, "text/html; charset=utf-8", text)
}

async fn page(State(access): State<Arc<Access>>, headers: HeaderMap) -> Response {
    if access.may_look(&headers) { html(StatusCode::OK, PAGE) } else { html(StatusCode::UNAUTHORIZED, LOGIN) }
}

#[derive(Deserialize)]
struct Link {
    code: Option<String>,
}

async fn by_link(State(access): State<Arc<Access>>, Query(link): Query<Link>) -> Result<Response, Problem> {
    match link.code {
        Some(code) if access.logins.use_link(&code) => come_in(&access),
        Some(_) => {
            let detail = "this link was used before, or is too old: `tidemill token --login` prints another";
            Err(Problem::new(StatusCode::UNAUTHORIZED, "link", detail))
        }
        None => Ok(html(StatusCode::OK, LOGIN)),
    }
}

#[derive(Deserialize)]
struct Typed {
    token: String,
}

async fn by_token(State(access): State<Arc<Access>>, Form(typed): Form<Typed>) -> Result<Response, Problem> {
    if access.is_token(typed.token.trim()) {
        come_in(&access)
    } else {
        Ok(html(StatusCode::UNAUTHORIZED, LOGIN))
    }
}

/// Gives the browser a cookie and sends it to the page.
fn come_in(access: &Access) -> Result<Response, Problem> {
    let secret = token::random().map_err(|e| Problem::internal(e.to_string()))?;
    let cookie = access.logins.add_cookie(&secret, access.tls());
    let mut response = StatusCode::SEE_OTHER.into_response();
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, HeaderValue::from_static("/"));
    let cookie = HeaderValue::from_str(&cookie).map_err(|e| Problem::internal(e.to_string()))?;
    headers.insert(header::SET_COOKIE, cookie);
    Ok(response)
}

/// A link to the status page
#[derive(Serialize, ToSchema)]
pub(super) struct LoginLink {
    /// Path and query; works once, for ten minutes.
    path: String,
}

/// A link that opens the status page once
#[utoipa::path(
    post, path = "/api/v1/login-links", tag = "health", responses(
        (status = 201, description = "It works once, for ten minutes", body = LoginLink),
        (status = 500, description = "The host failed", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn make_link(State(access): State<Arc<Access>>) -> Result<Response, Problem> {
    let secret = token::random().map_err(|e| Problem::internal(e.to_string()))?;
    access.logins.add_link(&secret);
    Ok((StatusCode::CREATED, Json(LoginLink { path: format!("/login?code={secret}") })).into_response())
}
