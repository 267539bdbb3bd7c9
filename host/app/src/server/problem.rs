//! Errors as RFC 9457 problem documents: what every API of the host answers when it cannot do what was asked.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use problem_details::ProblemDetails;
use serde_json::{Map, Value};
use std::io::ErrorKind;
use tidemill_store::StoreError;

/// A problem: its kind, and what to do about it.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    /// The last part of the problem's type.
    kind: &'static str,
    detail: String,
    /// Further members, for programs.
    more: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// `kind` is a stable word for programs, `detail` a sentence for people.
    pub(crate) fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, kind, detail: detail.into(), more: Map::new(), headers: Vec::new() }
    }

    /// There is no such thing.
    pub(crate) fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    /// The request itself is wrong.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "request", detail)
    }

    /// The host failed; nothing that the client did.
    pub(crate) fn internal(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// Adds a member for programs.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Problem {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    /// Says when to try again.
    pub(crate) fn retry_after_s(mut self, seconds: u32) -> Problem {
        self.headers.push((header::RETRY_AFTER, HeaderValue::from(seconds)));
        self
    }

    /// Says how to authenticate.
    pub(crate) fn challenge(self) -> Problem {
        self.header(header::WWW_AUTHENTICATE, "Bearer")
    }

    /// Says something else in the head.
    pub(crate) fn header(mut self, name: HeaderName, value: &'static str) -> Problem {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let kind: Option<axum::http::Uri> = format!("/problems/{}", self.kind).parse().ok();
        let mut details = ProblemDetails::from_status_code(self.status).with_detail(self.detail);
        if let Some(kind) = kind {
            details = details.with_type(kind);
        }
        let mut response = details.with_extensions(self.more).into_response();
        response.headers_mut().extend(self.headers);
        response
    }
}

impl From<StoreError> for Problem {
    fn from(e: StoreError) -> Problem {
        match &e {
            StoreError::Storage { source, .. } if source.kind() == ErrorKind::StorageFull => {
                Problem::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", e.to_string())
            }
            _ => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "storage", e.to_string()),
        }
    }
}

/// A problem document as it is sent, for the description of the API. Some problems have further members.
#[derive(utoipa::ToSchema)]
#[schema(as = Problem)]
#[expect(dead_code, reason = "it is described, and made by `Problem`")]
pub(crate) struct ProblemBody {
    /// What kind of problem: a stable word under `/problems/`.
    #[schema(example = "/problems/not-found")]
    r#type: String,
    /// The status in words.
    title: String,
    /// The status.
    status: u16,
    /// What is wrong and what to do about it, for people.
    detail: String,
}
