//! As whom BigQuery is asked. Google's own library finds and renews tokens: of a service account's key, of a user's login, of the
//! metadata server where the host runs at Google, and by federation where it runs elsewhere.

use super::Dataset;
use crate::ConnectError;
use google_cloud_auth::credentials::service_account::AccessSpecifier;
use google_cloud_auth::credentials::{self as google, CacheableResource};
use serde_json::Value;
use std::path::PathBuf;
use tonic::codegen::http::{Extensions, HeaderMap};

/// What a token is asked for: rows and tables.
const SCOPE: &str = "https://www.googleapis.com/auth/bigquery";

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
pub(super) struct Credentials(Option<google::Credentials>);

impl Credentials {
    /// Called within a runtime: tokens are renewed on it.
    pub(super) fn new(dataset: &Dataset) -> Result<Credentials, ConnectError> {
        let refused = |why: String| ConnectError::Config(format!("{}: {why}", dataset.place()));
        match &dataset.credentials {
            CredentialsFrom::None => Ok(Credentials(None)),
            CredentialsFrom::Default => {
                let built = google::Builder::default().with_scopes([SCOPE]).build();
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
                of_file(value).map(|c| Credentials(Some(c))).map_err(|why| refused(format!("{shown}: {why}")))
            }
        }
    }

    /// What a request has to show.
    pub(super) async fn headers(&self, dataset: &Dataset) -> Result<HeaderMap, ConnectError> {
        let Some(credentials) = &self.0 else { return Ok(HeaderMap::new()) };
        let place = dataset.place();
        let asked = tokio::time::timeout(dataset.timeout, credentials.headers(Extensions::new())).await;
        match asked {
            Err(_) => Err(ConnectError::Unavailable(format!(
                "{place}: no token within {:?}, of whom credentials come from",
                dataset.timeout
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

fn of_file(value: Value) -> Result<google::Credentials, String> {
    let kind = value["type"].as_str().unwrap_or_default().to_owned();
    let built = match kind.as_str() {
        "service_account" => google::service_account::Builder::new(value)
            .with_access_specifier(AccessSpecifier::from_scopes([SCOPE]))
            .build(),
        "authorized_user" => google::user_account::Builder::new(value).with_scopes([SCOPE]).build(),
        "external_account" => google::external_account::Builder::new(value).with_scopes([SCOPE]).build(),
        "impersonated_service_account" => {
            google::impersonated::Builder::new(value).with_scopes([SCOPE]).build()
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
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        text.push_str(&format!(": {c}"));
        cause = c.source();
    }
    text
}
