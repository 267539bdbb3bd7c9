//! What Google's services have in common: as whom they are asked, and the way to those that speak gRPC. Google's own library finds
//! and renews tokens: of a service account's key, of a user's login, of the metadata server where the host runs at Google, and by
//! federation where it runs elsewhere.
//!
//! Invariants: every wait has an end; no secret is in a message.

use crate::ConnectError;
use google_cloud_auth::credentials::service_account::AccessSpecifier;
use google_cloud_auth::credentials::{self as google, CacheableResource};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use tonic::codegen::http::{Extensions, HeaderMap};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

/// As whom we come, for a service's own logs.
pub(crate) const AGENT: &str = concat!("tidemill/", env!("CARGO_PKG_VERSION"));
/// How long to wait for a connection, of the whole time at most, ms: one that is there answers within some ms.
pub(crate) const CONNECT_MS_MAX: u64 = 10_000;
/// Silence after which the other end is asked whether it is still there, and how long its answer may take.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// Where credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialsFrom {
    /// Where Google's tools look: `GOOGLE_APPLICATION_CREDENTIALS`, `gcloud`'s login, the metadata server.
    Default,
    /// A file of one of Google's kinds.
    File(PathBuf),
    /// None are shown.
    None,
}

/// See the module's documentation. Has no debug form: it may hold a key.
pub(crate) struct Credentials(Option<google::Credentials>);

impl Credentials {
    /// Called within a runtime: tokens are renewed on it. `place`: whom they are for, in messages; `scope`: what for.
    pub(crate) fn new(
        place: &str,
        from: &CredentialsFrom,
        scope: &'static str,
    ) -> Result<Credentials, ConnectError> {
        let refused = |why: String| ConnectError::Config(format!("{place}: {why}"));
        match from {
            CredentialsFrom::None => Ok(Credentials(None)),
            CredentialsFrom::Default => {
                let built = google::Builder::default().with_scopes([scope]).build();
                built.map(|c| Credentials(Some(c))).map_err(|e| refused(format!("no credentials: {e}")))
            }
            CredentialsFrom::File(path) => {
                let shown = path.display();
                let text = std::fs::read_to_string(path)
                    .map_err(|e| refused(format!("cannot read the credentials {shown}: {e}")))?;
                // What is wrong with it is said by its place alone: the text may be a key.
                let value: Value = serde_json::from_str(&text).map_err(|e| {
                    refused(format!("the credentials {shown} are no JSON: line {}", e.line()))
                })?;
                of_file(value, scope)
                    .map(|c| Credentials(Some(c)))
                    .map_err(|why| refused(format!("{shown}: {why}")))
            }
        }
    }

    /// What a request has to show.
    pub(crate) async fn headers(&self, place: &str, timeout: Duration) -> Result<HeaderMap, ConnectError> {
        let Some(credentials) = &self.0 else { return Ok(HeaderMap::new()) };
        let asked = tokio::time::timeout(timeout, credentials.headers(Extensions::new())).await;
        match asked {
            Err(_) => Err(ConnectError::Unavailable(format!(
                "{place}: no token within {timeout:?}, of whom credentials come from"
            ))),
            Ok(Err(e)) if e.is_transient() => {
                Err(ConnectError::Unavailable(format!("{place}: no token: {}", chain(&e))))
            }
            Ok(Err(e)) => {
                Err(ConnectError::Config(format!("{place}: no token: {}; see `credentials`", chain(&e))))
            }
            Ok(Ok(CacheableResource::New { data, .. })) => Ok(data),
            Ok(Ok(CacheableResource::NotModified)) => Ok(HeaderMap::new()),
        }
    }
}

fn of_file(value: Value, scope: &str) -> Result<google::Credentials, String> {
    let kind = value["type"].as_str().unwrap_or_default().to_owned();
    let built = match kind.as_str() {
        "service_account" => google::service_account::Builder::new(value)
            .with_access_specifier(AccessSpecifier::from_scopes([scope]))
            .build(),
        "authorized_user" => google::user_account::Builder::new(value).with_scopes([scope]).build(),
        "external_account" => google::external_account::Builder::new(value).with_scopes([scope]).build(),
        "impersonated_service_account" => {
            google::impersonated::Builder::new(value).with_scopes([scope]).build()
        }
        _ => {
            return Err("its `type` is none of service_account, authorized_user, external_account, \
                        impersonated_service_account"
                .to_owned());
        }
    };
    built.map_err(|e| format!("no credentials: {e}"))
}

/// An error with its causes.
pub(crate) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        text.push_str(&format!(": {c}"));
        cause = c.source();
    }
    text
}

/// A connection for gRPC to a scheme and host.
pub(crate) async fn connect(endpoint: &str, place: &str, timeout: Duration) -> Result<Channel, ConnectError> {
    let wrong = |e: &dyn std::fmt::Display| ConnectError::Config(format!("{place}: {e}"));
    let most = timeout.min(Duration::from_millis(CONNECT_MS_MAX));
    let mut way = Endpoint::from_shared(endpoint.to_owned())
        .and_then(|e| e.user_agent(AGENT))
        .map_err(|e| wrong(&e))?
        .connect_timeout(most)
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true);
    if endpoint.starts_with("https:") {
        way = way.tls_config(ClientTlsConfig::new().with_native_roots()).map_err(|e| wrong(&e))?;
    }
    match tokio::time::timeout(most, way.connect()).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(e)) => Err(ConnectError::Unavailable(format!("{place}: no connection: {}", chain(&e)))),
        Err(_) => Err(ConnectError::Unavailable(format!("{place}: no connection within {most:?}"))),
    }
}

/// A request that shows these headers, and leads to where what it is about lies: `routing` has the names, encoded.
pub(crate) fn request<T>(
    place: &str,
    headers: HeaderMap,
    routing: String,
    body: T,
) -> Result<Request<T>, ConnectError> {
    let mut request = Request::new(body);
    *request.metadata_mut() = MetadataMap::from_headers(headers);
    let routing = MetadataValue::try_from(routing)
        .map_err(|e| ConnectError::Config(format!("{place}: no name that a request may have: {e}")))?;
    request.metadata_mut().insert("x-goog-request-params", routing);
    Ok(request)
}

/// The message of a status, and what lay below it.
pub(crate) fn said(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(c) = cause {
        let more = c.to_string();
        if !text.contains(&more) {
            text.push_str(&format!(": {more}"));
        }
        cause = c.source();
    }
    text
}

/// Whether what failed with this code may work later.
pub(crate) fn passes(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
            | Code::Cancelled
            | Code::Unknown
    )
}

/// Whose move it is when a call of gRPC fails. `rights`: what is to be granted, behind a backtick.
pub(crate) fn failure(place: &str, rights: &str, status: &Status) -> ConnectError {
    let code = status.code();
    let text = format!("{place}: {} ({code:?})", said(status));
    match code {
        code if passes(code) => ConnectError::Unavailable(text),
        Code::Unauthenticated => ConnectError::Config(format!("{text}; are the `credentials` right?")),
        Code::PermissionDenied => {
            ConnectError::Config(format!("{text}; grant `{rights}, or show other `credentials`"))
        }
        Code::NotFound => ConnectError::Config(format!("{text}; create it, or name another")),
        Code::InvalidArgument | Code::Unimplemented | Code::FailedPrecondition => ConnectError::Config(text),
        _ => ConnectError::Failed(text),
    }
}

/// What a failure means for somebody who was let in by this very config: what refuses now may let in again.
pub(crate) fn later(e: ConnectError) -> ConnectError {
    match e {
        ConnectError::Config(why) => ConnectError::Unavailable(why),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_by_whose_move_it_is() {
        let of = |code| failure("Pub/Sub at x", "roles/pubsub.subscriber`", &Status::new(code, "words"));
        for code in [Code::Unavailable, Code::ResourceExhausted, Code::Internal, Code::Unknown] {
            assert!(matches!(of(code), ConnectError::Unavailable(_)), "{code:?}");
        }
        for code in [Code::Unauthenticated, Code::PermissionDenied, Code::NotFound, Code::InvalidArgument] {
            assert!(matches!(of(code), ConnectError::Config(_)), "{code:?}");
            assert!(matches!(later(of(code)), ConnectError::Unavailable(_)), "{code:?}");
        }
        assert!(matches!(of(Code::DataLoss), ConnectError::Failed(_)));
        let said = of(Code::PermissionDenied).to_string();
        assert!(
            said.starts_with("Pub/Sub at x: words") && said.contains("roles/pubsub.subscriber"),
            "{said}"
        );
    }
}
