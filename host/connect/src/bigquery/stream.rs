//! One long-lived stream of the Storage Write API: requests go out, and their answers come back in the same order.

use super::{Dataset, failure};
use crate::ConnectError;
use crate::google::{self, AGENT};
use googleapis_tonic_google_cloud_bigquery_storage_v1::google::cloud::bigquery::storage::v1 as api;
use googleapis_tonic_google_cloud_bigquery_storage_v1::google::rpc;
use prost::Message as _;
use prost_types::DescriptorProto;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::HeaderMap;
use tonic::{Code, Streaming};

pub(super) use api::storage_error::StorageErrorCode as StorageCode;

/// Requests that wait to be sent: one is filled while another goes out.
const WAITING: usize = 1;

/// What rows are made of, as the service decodes them.
pub(crate) type Schema = DescriptorProto;

/// What became of a request.
pub(crate) enum Answer {
    /// All of its rows are there. `changed`: the table's schema is another since the stream began.
    Taken {
        /// See above.
        changed: bool,
    },
    /// None is; these rows, by their number in the request, are why.
    BadRows(Vec<(usize, String)>),
}

/// See the module's documentation.
pub(crate) struct Stream {
    place: String,
    timeout: Duration,
    to: mpsc::Sender<api::AppendRowsRequest>,
    answers: Answers,
    /// What only the first request says.
    first: Option<(String, Schema)>,
}

/// The service may begin its answer only when the first request is there.
enum Answers {
    Coming(tokio::task::JoinHandle<Result<Streaming<api::AppendRowsResponse>, tonic::Status>>),
    There(Box<Streaming<api::AppendRowsResponse>>),
}

impl Stream {
    pub(super) async fn open(
        dataset: &Dataset,
        table: &str,
        schema: &Schema,
        headers: HeaderMap,
    ) -> Result<Stream, ConnectError> {
        let host = dataset.rows_endpoint.split("//").last().unwrap_or_default();
        let place = format!("BigQuery at {host}, table {}.{}.{table}", dataset.project, dataset.dataset);
        let name = format!(
            "projects/{}/datasets/{}/tables/{table}/streams/_default",
            dataset.project, dataset.dataset
        );
        let channel = google::connect(&dataset.rows_endpoint, &place, dataset.timeout).await?;
        let (to, requests) = mpsc::channel(WAITING);
        let routing = format!("write_stream={}", name.replace('/', "%2F"));
        let request = google::request(&place, headers, routing, ReceiverStream::new(requests))?;
        let mut client = api::big_query_write_client::BigQueryWriteClient::new(channel);
        let coming =
            tokio::spawn(async move { client.append_rows(request).await.map(tonic::Response::into_inner) });
        Ok(Stream {
            place,
            timeout: dataset.timeout,
            to,
            answers: Answers::Coming(coming),
            first: Some((name, schema.clone())),
        })
    }

    /// Sends rows.
    pub(crate) async fn send(&mut self, rows: Vec<Vec<u8>>) -> Result<(), ConnectError> {
        let (write_stream, schema) = self.first.take().unzip();
        let data = api::append_rows_request::ProtoData {
            writer_schema: schema.map(|s| api::ProtoSchema { proto_descriptor: Some(s) }),
            rows: Some(api::ProtoRows { serialized_rows: rows }),
        };
        let request = api::AppendRowsRequest {
            write_stream: write_stream.unwrap_or_default(),
            trace_id: AGENT.to_owned(),
            rows: Some(api::append_rows_request::Rows::ProtoRows(data)),
            ..api::AppendRowsRequest::default()
        };
        match tokio::time::timeout(self.timeout, self.to.send(request)).await {
            // What ended the stream says why.
            Ok(Err(_)) => Err(self.answer().await.err().unwrap_or_else(|| self.ended())),
            Ok(Ok(())) => Ok(()),
            Err(_) => Err(self.late()),
        }
    }

    /// Waits for the next answer, and no longer than it may.
    pub(crate) async fn answer(&mut self) -> Result<Answer, ConnectError> {
        let timeout = self.timeout;
        match tokio::time::timeout(timeout, self.next()).await {
            Ok(answer) => answer,
            Err(_) => Err(self.late()),
        }
    }

    async fn next(&mut self) -> Result<Answer, ConnectError> {
        if let Answers::Coming(coming) = &mut self.answers {
            let opened =
                coming.await.map_err(|e| ConnectError::Unavailable(format!("{}: {e}", self.place)))?;
            let answers = opened.map_err(|e| failure::of_stream(&self.place, &e))?;
            self.answers = Answers::There(Box::new(answers));
        }
        let Answers::There(answers) = &mut self.answers else { return Err(self.ended()) };
        match answers.message().await {
            Ok(Some(answer)) => self.read(answer),
            Ok(None) => Err(self.ended()),
            Err(status) => Err(failure::of_stream(&self.place, &status)),
        }
    }

    fn read(&self, answer: api::AppendRowsResponse) -> Result<Answer, ConnectError> {
        let bad: Vec<(usize, String)> = answer
            .row_errors
            .into_iter()
            .map(|e| (usize::try_from(e.index).unwrap_or(usize::MAX), e.message))
            .collect();
        if !bad.is_empty() {
            return Ok(Answer::BadRows(bad));
        }
        match answer.response {
            Some(api::append_rows_response::Response::Error(e)) => {
                let storage = code_of(&e);
                Err(failure::of_code(&self.place, Code::from(e.code), storage, &e.message))
            }
            _ => Ok(Answer::Taken { changed: answer.updated_schema.is_some() }),
        }
    }

    fn late(&self) -> ConnectError {
        ConnectError::Unavailable(format!("{}: no answer within {:?}", self.place, self.timeout))
    }

    fn ended(&self) -> ConnectError {
        ConnectError::Unavailable(format!("{}: the connection was closed", self.place))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Answers::Coming(coming) = &self.answers {
            coming.abort();
        }
    }
}

/// The service's own code among the details of a status, as they came.
pub(super) fn code_in(details: &[u8]) -> Option<StorageCode> {
    code_of(&rpc::Status::decode(details).ok()?)
}

fn code_of(status: &rpc::Status) -> Option<StorageCode> {
    let any = status.details.iter().find(|d| d.type_url.ends_with(".StorageError"))?;
    let error = api::StorageError::decode(any.value.as_slice()).ok()?;
    StorageCode::try_from(error.code).ok()
}
