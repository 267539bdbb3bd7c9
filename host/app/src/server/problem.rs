//! Errors as RFC 9457 problem documents: what every API of the host answers when it cannot do what was asked.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use problem_details::ProblemDetails;

/// A problem: its kind, and what to do about it.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    /// The last part of the problem's type.
    kind: &'static str,
    detail: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// `kind` is a stable word for programs, `detail` a sentence for people.
    pub(crate) fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, kind, detail: detail.into(), headers: Vec::new() }
    }

    /// Says when to try again.
    pub(crate) fn retry_after_s(mut self, seconds: u32) -> Problem {
        self.headers.push((header::RETRY_AFTER, HeaderValue::from(seconds)));
        self
    }

    /// Says how to authenticate.
    pub(crate) fn challenge(mut self) -> Problem {
        self.headers.push((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
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
        let mut response = details.into_response();
        response.headers_mut().extend(self.headers);
        response
    }
}
