//! A dataset of BigQuery as the sink reaches it: where it is, as whom, and how long each answer may take. Tables go over REST, rows
//! over one long-lived stream of the Storage Write API.
//!
//! Invariants: every wait has an end, since what lies between may swallow everything; no secret is in a message; a connection that
//! failed is dropped, and the next one begins with a new token.

mod credentials;
mod failure;
mod stream;

pub use self::credentials::CredentialsFrom;
pub(crate) use self::failure::later;
pub(crate) use self::stream::{Answer, Schema, Stream};

use self::credentials::Credentials;
use crate::ConnectError;
use reqwest::{Method, Response};
use serde_json::Value;
use std::future::Future;
use std::time::Duration;
use tokio::runtime::Runtime;
use tonic::codegen::http::HeaderMap;

/// Where Google answers for tables.
pub const TABLES_ENDPOINT: &str = "https://bigquery.googleapis.com";
/// Where it takes rows.
pub const ROWS_ENDPOINT: &str = "https://bigquerystorage.googleapis.com";
/// How long to wait for a connection, of the whole time at most, ms: one that is there answers within some ms.
const CONNECT_MS_MAX: u64 = 10_000;
/// As whom we come, for the service's own logs.
const AGENT: &str = concat!("tidemill/", env!("CARGO_PKG_VERSION"));

/// Where a dataset is, and as whom and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The project that holds it.
    pub project: String,
    /// Its name.
    pub dataset: String,
    /// Where its data has to be (`EU`, `us-east1`); a table elsewhere is refused.
    pub location: Option<String>,
    /// Scheme and host of what answers for tables.
    pub tables_endpoint: String,
    /// Scheme and host of what takes rows.
    pub rows_endpoint: String,
    /// As whom.
    pub credentials: CredentialsFrom,
    /// How long each answer may take.
    pub timeout: Duration,
}

impl Dataset {
    /// What messages call it. No secret.
    #[must_use]
    pub fn place(&self) -> String {
        let host = self.tables_endpoint.split("//").last().unwrap_or_default();
        format!("BigQuery at {host}, dataset {}.{}", self.project, self.dataset)
    }

    /// Gets ready to ask; nothing is asked yet, but for what credentials need.
    pub(crate) fn connect(&self) -> Result<Client, ConnectError> {
        // Whoever was first has chosen the same.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // A thread of its own, so that the connection answers while no epoch is sent.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("bigquery")
            .enable_all()
            .build()
            .map_err(|e| ConnectError::Failed(format!("{}: no runtime: {e}", self.place())))?;
        let credentials = runtime.block_on(async { Credentials::new(self) })?;
        let mut http = reqwest::Client::builder()
            .user_agent(AGENT)
            // Asked so rarely that whoever is on the way has closed the last connection by then.
            .pool_max_idle_per_host(0)
            .timeout(self.timeout)
            .connect_timeout(self.timeout.min(Duration::from_millis(CONNECT_MS_MAX)));
        if self.tables_endpoint.starts_with("http:") {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|e| ConnectError::Failed(format!("{}: {e}", self.place())))?;
        Ok(Client { dataset: self.clone(), http, credentials, runtime: Some(runtime) })
    }
}

/// A way to the dataset.
pub(crate) struct Client {
    dataset: Dataset,
    http: reqwest::Client,
    credentials: Credentials,
    /// There until it is dropped.
    runtime: Option<Runtime>,
}

impl Client {
    /// Does something with it, on the thread that calls.
    pub(crate) fn run<T>(
        &self,
        work: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, ConnectError> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(work),
            None => Err(ConnectError::Failed(format!("{} was left", self.dataset.place()))),
        }
    }

    /// The table as the service shows it; none if it is not there.
    pub(crate) async fn table(&self, table: &str) -> Result<Option<Value>, ConnectError> {
        let answer = self.ask(Method::GET, &format!("tables/{table}"), None, None).await?;
        match answer.status().as_u16() {
            200 => self.body(answer).await.map(Some),
            404 => {
                let why = failure::of_answer(&self.dataset.place(), answer).await;
                // The dataset itself has to be there: nobody else knows where its data may lie.
                if why.to_string().contains("Not found: Table") { Ok(None) } else { Err(why) }
            }
            _ => Err(failure::of_answer(&self.dataset.place(), answer).await),
        }
    }

    /// Makes a table; `false` if there is one by now.
    pub(crate) async fn create(&self, resource: &Value) -> Result<bool, ConnectError> {
        let answer = self.ask(Method::POST, "tables", Some(resource), None).await?;
        match answer.status().as_u16() {
            200 => Ok(true),
            409 => Ok(false),
            _ => Err(failure::of_answer(&self.dataset.place(), answer).await),
        }
    }

    /// Changes what the resource names; `false` if the table has changed since it had this tag.
    pub(crate) async fn patch(&self, table: &str, resource: &Value, tag: &str) -> Result<bool, ConnectError> {
        let answer = self.ask(Method::PATCH, &format!("tables/{table}"), Some(resource), Some(tag)).await?;
        match answer.status().as_u16() {
            200 => Ok(true),
            412 => Ok(false),
            _ => Err(failure::of_answer(&self.dataset.place(), answer).await),
        }
    }

    async fn ask(
        &self,
        method: Method,
        what: &str,
        body: Option<&Value>,
        tag: Option<&str>,
    ) -> Result<Response, ConnectError> {
        let d = &self.dataset;
        let url = format!(
            "{}/bigquery/v2/projects/{}/datasets/{}/{what}",
            d.tables_endpoint.trim_end_matches('/'),
            d.project,
            d.dataset
        );
        let mut request = self.http.request(method, url).headers(self.headers().await?);
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(tag) = tag {
            request = request.header("if-match", tag);
        }
        request.send().await.map_err(|e| failure::of_request(&d.place(), &e))
    }

    async fn body(&self, answer: Response) -> Result<Value, ConnectError> {
        answer.json().await.map_err(|e| failure::of_request(&self.dataset.place(), &e))
    }

    async fn headers(&self) -> Result<HeaderMap, ConnectError> {
        self.credentials.headers(&self.dataset).await
    }

    /// Opens the stream for rows of a table; all of its rows have this schema.
    pub(crate) async fn stream(&self, table: &str, schema: &Schema) -> Result<Stream, ConnectError> {
        Stream::open(&self.dataset, table, schema, self.headers().await?).await
    }
}

impl Drop for Client {
    /// Waits for nothing: a connection whose other end is silent would not end by itself.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
