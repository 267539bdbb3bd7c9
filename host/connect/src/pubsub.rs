//! A Pub/Sub as source and sink reach it: where it is, and as whom.
//!
//! Its own calls over gRPC, not Google's client: that one renews and acknowledges by itself, and here an acknowledgement means that
//! the record is durable.
//!
//! Invariants: every wait has an end; no secret is in a message; every call shows a token of now.

pub use crate::google::CredentialsFrom;

use crate::ConnectError;
use crate::google::{self, Credentials};
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1 as api;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Where Google answers.
pub const ENDPOINT: &str = "https://pubsub.googleapis.com";
/// What a token is asked for.
const SCOPE: &str = "https://www.googleapis.com/auth/pubsub";
/// A message has 10 MB at most, and one answer may hold more of them than that.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// A project's Pub/Sub, and as whom and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Its name.
    pub project: String,
    /// Scheme and host of what answers.
    pub endpoint: String,
    /// As whom.
    pub credentials: CredentialsFrom,
    /// How long each answer may take.
    pub timeout: Duration,
}

impl Project {
    /// What messages call one thing in it. No secret.
    #[must_use]
    pub fn place(&self, what: &str, name: &str) -> String {
        let host = self.endpoint.split("//").last().unwrap_or_default();
        format!("Pub/Sub at {host}, {what} {}/{name}", self.project)
    }

    /// Connects. Called within a runtime: the connection and the tokens live on it.
    pub(crate) async fn connect(&self, place: String) -> Result<Way, ConnectError> {
        // Whoever was first has chosen the same.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let credentials = Credentials::new(&place, &self.credentials, SCOPE)?;
        let channel = google::connect(&self.endpoint, &place, self.timeout).await?;
        Ok(Way { place, timeout: self.timeout, credentials, channel })
    }
}

/// A connection, and what its messages call the other end.
pub(crate) struct Way {
    pub(crate) place: String,
    pub(crate) timeout: Duration,
    credentials: Credentials,
    channel: Channel,
}

impl Way {
    /// What subscriptions are asked by.
    pub(crate) fn subscriber(&self) -> api::subscriber_client::SubscriberClient<Channel> {
        api::subscriber_client::SubscriberClient::new(self.channel.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// What topics are asked by.
    pub(crate) fn publisher(&self) -> api::publisher_client::PublisherClient<Channel> {
        api::publisher_client::PublisherClient::new(self.channel.clone())
    }

    /// A request that shows who asks, and for what: `name` in full.
    pub(crate) async fn request<T>(
        &self,
        what: &str,
        name: &str,
        body: T,
    ) -> Result<Request<T>, ConnectError> {
        let headers = self.credentials.headers(&self.place, self.timeout).await?;
        google::request(&self.place, headers, format!("{what}={}", name.replace('/', "%2F")), body)
    }

    /// Waits for an answer, and no longer than it may take.
    pub(crate) async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<Result<T, Status>, ConnectError> {
        tokio::time::timeout(self.timeout, answer).await.map_err(|_| {
            ConnectError::Unavailable(format!("{}: no answer within {:?}", self.place, self.timeout))
        })
    }
}
