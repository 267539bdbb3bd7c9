//! Whose move it is when BigQuery, or the way to it, fails: by the code of gRPC, by the status and reason of REST, else by what kind of
//! failure the client saw.

use super::stream::{StorageCode, code_in};
use crate::ConnectError;
use crate::google::{passes, said};
use reqwest::Response;
use serde_json::Value;
use std::error::Error;
use tonic::{Code, Status};

/// A request that got no answer.
pub(super) fn of_request(place: &str, e: &reqwest::Error) -> ConnectError {
    let mut text = format!("{place}: {}", if e.is_timeout() { "no answer in time" } else { "no answer" });
    let mut cause = e.source();
    while let Some(c) = cause {
        text.push_str(&format!(": {c}"));
        cause = c.source();
    }
    ConnectError::Unavailable(text)
}

/// An answer that is no yes. `rights`: what is to be granted, behind a backtick.
pub(super) async fn of_answer(place: &str, rights: &str, answer: Response) -> ConnectError {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap_or_default();
    let error = &body["error"];
    let reason = error["errors"][0]["reason"].as_str().unwrap_or_default();
    let message = error["message"].as_str().unwrap_or("no word of why");
    of_status(place, rights, status, reason, message)
}

fn of_status(place: &str, rights: &str, status: u16, reason: &str, message: &str) -> ConnectError {
    let shown = if reason.is_empty() { status.to_string() } else { format!("{status} {reason}") };
    let text = format!("{place}: {message} ({shown})");
    match (status, reason) {
        (
            _,
            "rateLimitExceeded" | "quotaExceeded" | "backendError" | "internalError" | "tableUnavailable",
        )
        | (408 | 429 | 500..=599, _) => ConnectError::Unavailable(text),
        (401, _) => ConnectError::Config(format!("{text}; are the `credentials` right?")),
        (403, _) => ConnectError::Config(format!("{text}; grant `{rights}, or show other `credentials`")),
        (404, _) => ConnectError::Config(format!("{text}; create it, or name another")),
        (400, _) => ConnectError::Config(text),
        _ => ConnectError::Failed(text),
    }
}

/// What ended a stream, or refused a request on it.
pub(super) fn of_code(place: &str, code: Code, storage: Option<StorageCode>, message: &str) -> ConnectError {
    let text = format!("{place}: {message} ({code:?})");
    match code {
        // Rows of a table that was made or extended a moment ago are refused for a time; if it is gone, looking again says so.
        Code::NotFound => ConnectError::Unavailable(text),
        Code::InvalidArgument if storage == Some(StorageCode::SchemaMismatchExtraFields) => {
            ConnectError::Unavailable(text)
        }
        code if passes(code) => ConnectError::Unavailable(text),
        // Who gets here was let in to the table a moment ago. A right that is granted takes minutes to be known everywhere.
        Code::Unauthenticated => ConnectError::Unavailable(format!("{text}; are the `credentials` right?")),
        Code::PermissionDenied => ConnectError::Unavailable(format!(
            "{text}; grant `roles/bigquery.dataEditor` on the dataset, or show other `credentials`"
        )),
        Code::InvalidArgument | Code::Unimplemented => ConnectError::Config(text),
        _ => ConnectError::Failed(text),
    }
}

/// The same of a status.
pub(super) fn of_stream(place: &str, status: &Status) -> ConnectError {
    of_code(place, status.code(), code_in(status.details()), &said(status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::google::later;

    fn kind(e: &ConnectError) -> &'static str {
        match e {
            ConnectError::Unavailable(_) => "later",
            ConnectError::Config(_) => "config",
            ConnectError::Failed(_) => "failed",
            ConnectError::Conflict(_) | ConnectError::Storage(_) => "other",
        }
    }

    #[test]
    fn answers_of_rest_by_whose_move_it_is() {
        for (status, reason, expected) in [
            (400, "invalid", "config"),
            (401, "authError", "config"),
            (403, "accessDenied", "config"),
            (403, "rateLimitExceeded", "later"),
            (403, "quotaExceeded", "later"),
            (404, "notFound", "config"),
            (408, "", "later"),
            (418, "", "failed"),
            (429, "", "later"),
            (500, "backendError", "later"),
            (503, "", "later"),
        ] {
            let e = of_status("BigQuery at x", "r`", status, reason, "words");
            assert!(e.to_string().starts_with("BigQuery at x: words"), "{e}");
            assert_eq!(kind(&e), expected, "{status} {reason}");
        }
    }

    #[test]
    fn codes_of_grpc_by_whose_move_it_is() {
        let of = |code| kind(&of_code("BigQuery at x", code, None, "words"));
        for code in [
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::ResourceExhausted,
            Code::Aborted,
            Code::Internal,
            Code::Cancelled,
            Code::Unknown,
            Code::NotFound,
            Code::Unauthenticated,
            Code::PermissionDenied,
        ] {
            assert_eq!(of(code), "later", "{code:?}");
        }
        for code in [Code::InvalidArgument, Code::Unimplemented] {
            assert_eq!(of(code), "config", "{code:?}");
        }
        for code in [Code::OutOfRange, Code::FailedPrecondition, Code::DataLoss, Code::AlreadyExists] {
            assert_eq!(of(code), "failed", "{code:?}");
        }
        let extra = Some(StorageCode::SchemaMismatchExtraFields);
        assert_eq!(kind(&of_code("x", Code::InvalidArgument, extra, "")), "later");
        assert_eq!(kind(&later(ConnectError::Config(String::new()))), "later");
        assert_eq!(kind(&later(ConnectError::Failed(String::new()))), "failed");
    }
}
