//! A dataset of BigQuery as sink and lookup reach it: where it is, as whom, and how long each answer may take. Tables go over REST,
//! and so do rows that are read; those that are written go over one long-lived stream of the Storage Write API.
//!
//! Invariants: every wait has an end, since what lies between may swallow everything; no secret is in a message; a connection that
//! failed is dropped, and the next one begins with a new token.

mod failure;
mod stream;

pub(crate) use self::stream::{Answer, Schema, Stream};
pub use crate::google::CredentialsFrom;

use crate::ConnectError;
use crate::google::{AGENT, CONNECT_MS_MAX, Credentials};
use crate::lookup::bounds::PAGE_BYTES_MAX;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
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
/// What a token is asked for: rows and tables.
const SCOPE: &str = "https://www.googleapis.com/auth/bigquery";

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

    /// Gets ready to write; nothing is asked yet, but for what credentials need.
    pub(crate) fn connect(&self) -> Result<Client, ConnectError> {
        self.connect_with("roles/bigquery.dataEditor` on the dataset")
    }

    /// The same to read.
    pub(crate) fn connect_to_read(&self) -> Result<Client, ConnectError> {
        self.connect_with("roles/bigquery.dataViewer` on the dataset (and for a query `roles/bigquery.jobUser` on the project)")
    }

    /// `rights`: what is to be granted if something is refused, behind a backtick.
    fn connect_with(&self, rights: &'static str) -> Result<Client, ConnectError> {
        // Whoever was first has chosen the same.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // A thread of its own, so that the connection answers while no epoch is sent.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("bigquery")
            .enable_all()
            .build()
            .map_err(|e| ConnectError::Failed(format!("{}: no runtime: {e}", self.place())))?;
        let credentials =
            runtime.block_on(async { Credentials::new(&self.place(), &self.credentials, SCOPE) })?;
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
        Ok(Client { dataset: self.clone(), rights, http, credentials, runtime: Some(runtime) })
    }
}

/// A way to the dataset.
pub(crate) struct Client {
    dataset: Dataset,
    rights: &'static str,
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

    /// Does something with it on its own thread, until it is dropped.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            drop(runtime.spawn(work));
        }
    }

    /// The table as the service shows it; none if it is not there.
    pub(crate) async fn table(&self, table: &str) -> Result<Option<Value>, ConnectError> {
        let answer = self.ask(Method::GET, &format!("tables/{table}"), None, None).await?;
        match answer.status().as_u16() {
            200 => self.body(answer).await.map(Some),
            404 => {
                let why = self.refusal(answer).await;
                // The dataset itself has to be there: nobody else knows where its data may lie.
                if why.to_string().contains("Not found: Table") { Ok(None) } else { Err(why) }
            }
            _ => Err(self.refusal(answer).await),
        }
    }

    /// Makes a table; `false` if there is one by now.
    pub(crate) async fn create(&self, resource: &Value) -> Result<bool, ConnectError> {
        let answer = self.ask(Method::POST, "tables", Some(resource), None).await?;
        match answer.status().as_u16() {
            200 => Ok(true),
            409 => Ok(false),
            _ => Err(self.refusal(answer).await),
        }
    }

    /// Changes what the resource names; `false` if the table has changed since it had this tag.
    pub(crate) async fn patch(&self, table: &str, resource: &Value, tag: &str) -> Result<bool, ConnectError> {
        let answer = self.ask(Method::PATCH, &format!("tables/{table}"), Some(resource), Some(tag)).await?;
        match answer.status().as_u16() {
            200 => Ok(true),
            412 => Ok(false),
            _ => Err(self.refusal(answer).await),
        }
    }

    /// Rows of a table from a page on; the first has an empty token.
    pub(crate) async fn list(&self, table: &str, rows_max: u64, token: &str) -> Result<Value, ConnectError> {
        let from = with_token(token);
        let what =
            format!("tables/{table}/data?maxResults={rows_max}&formatOptions.useInt64Timestamp=true{from}");
        let answer = self.ask(Method::GET, &what, None, None).await?;
        self.page(answer).await
    }

    /// Begins a query: its first rows, if it has some within the time for an answer.
    pub(crate) async fn query(&self, job: &Value) -> Result<Value, ConnectError> {
        let mut job = job.clone();
        job["timeoutMs"] = self.wait_ms().into();
        let answer = self.ask_for(Method::POST, "queries", Some(&job), None).await?;
        self.page(answer).await
    }

    /// Further rows of a query that was begun.
    pub(crate) async fn results(
        &self,
        job: &Value,
        rows_max: u64,
        token: &str,
    ) -> Result<Value, ConnectError> {
        let (from, wait_ms) = (with_token(token), self.wait_ms());
        let name = |key: &str| encoded(job[key].as_str().unwrap_or_default());
        let what = format!(
            "queries/{}?location={}&maxResults={rows_max}&timeoutMs={wait_ms}&formatOptions.useInt64Timestamp=true{from}",
            name("jobId"),
            name("location")
        );
        let answer = self.ask_for(Method::GET, &what, None, None).await?;
        self.page(answer).await
    }

    /// How long the service may wait before it says that a query still runs: so that it says so in our time.
    fn wait_ms(&self) -> u64 {
        self.dataset.timeout.as_millis() as u64 / 2
    }

    /// A page of rows.
    async fn page(&self, mut answer: Response) -> Result<Value, ConnectError> {
        if answer.status().as_u16() != 200 {
            return Err(self.refusal(answer).await);
        }
        let place = self.dataset.place();
        let mut bytes = Vec::new();
        while let Some(more) = answer.chunk().await.map_err(|e| failure::of_request(&place, &e))? {
            bytes.extend(more);
            if bytes.len() > PAGE_BYTES_MAX {
                let most = PAGE_BYTES_MAX >> 20;
                return Err(ConnectError::Failed(format!(
                    "{place}: a page of rows has more than {most} MiB"
                )));
            }
        }
        serde_json::from_slice(&bytes)
            .map_err(|e| ConnectError::Unavailable(format!("{place}: a page of rows is no JSON: {e}")))
    }

    async fn refusal(&self, answer: Response) -> ConnectError {
        failure::of_answer(&self.dataset.place(), self.rights, answer).await
    }

    async fn ask(
        &self,
        method: Method,
        what: &str,
        body: Option<&Value>,
        tag: Option<&str>,
    ) -> Result<Response, ConnectError> {
        self.ask_for(method, &format!("datasets/{}/{what}", self.dataset.dataset), body, tag).await
    }

    /// Asks for something of the project.
    async fn ask_for(
        &self,
        method: Method,
        what: &str,
        body: Option<&Value>,
        tag: Option<&str>,
    ) -> Result<Response, ConnectError> {
        let d = &self.dataset;
        let url =
            format!("{}/bigquery/v2/projects/{}/{what}", d.tables_endpoint.trim_end_matches('/'), d.project);
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
        self.credentials.headers(&self.dataset.place(), self.dataset.timeout).await
    }

    /// Opens the stream for rows of a table; all of its rows have this schema.
    pub(crate) async fn stream(&self, table: &str, schema: &Schema) -> Result<Stream, ConnectError> {
        Stream::open(&self.dataset, table, schema, self.headers().await?).await
    }
}

/// What a page is asked for by, behind other parameters.
fn with_token(token: &str) -> String {
    if token.is_empty() { String::new() } else { format!("&pageToken={}", encoded(token)) }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

impl Drop for Client {
    /// Waits for nothing: a connection whose other end is silent would not end by itself.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
