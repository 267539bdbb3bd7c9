//! What the status page is told: once a second how every pipeline stands, and rows as they are committed. Server-sent
//! events, each with a JSON object.

use super::super::access::Access;
use super::super::problem::{Problem, ProblemBody};
use super::Admin;
use crate::clock::now_ms;
use crate::control::FeedRow;
use crate::view::PipelineView;
use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Interval;

/// How often pipelines are told of.
const TICK: Duration = Duration::from_secs(1);

/// How a pipeline stands, and what it has read beyond its newest epoch.
#[derive(Serialize)]
struct Now {
    #[serde(flatten)]
    view: PipelineView,
    events: u64,
    /// What is known to be there and is not read.
    backlog_bytes: u64,
}

#[derive(Serialize)]
struct Status {
    version: &'static str,
    now_ms: i64,
    pipelines: Vec<Now>,
}

#[derive(Serialize)]
struct Row<'a> {
    pipeline: &'a str,
    #[serde(flatten)]
    row: FeedRow,
}

/// Somebody who looks on.
struct Watch {
    admin: Arc<Admin>,
    /// The last row that was told of each pipeline.
    told: Vec<u64>,
    waiting: VecDeque<Event>,
    ticks: Interval,
    stopping: watch::Receiver<bool>,
    access: Arc<Access>,
    /// Of the token that it was begun with.
    rotations: u64,
    _place: OwnedSemaphorePermit,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.admin.control.pipelines().iter().for_each(|h| h.feed.unwatch());
    }
}

impl Watch {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Watch)> {
        while self.waiting.is_empty() {
            let goes_on = tokio::select! {
                _ = self.ticks.tick() => true,
                _ = self.stopping.wait_for(|s| *s) => false,
            };
            if !goes_on || self.access.rotations() != self.rotations {
                return None;
            }
            self.fill();
        }
        let event = self.waiting.pop_front()?;
        Some((Ok(event), self))
    }

    fn fill(&mut self) {
        let admin = self.admin.clone();
        let now = |h: &Arc<crate::control::Handle>| Now {
            view: admin.view(h),
            events: h.progress.events.load(Ordering::Relaxed),
            backlog_bytes: h
                .progress
                .bytes_total
                .load(Ordering::Relaxed)
                .saturating_sub(h.progress.bytes_read.load(Ordering::Relaxed)),
        };
        let pipelines = admin.control.pipelines();
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            now_ms: now_ms(),
            pipelines: pipelines.iter().map(now).collect(),
        };
        self.push("status", &status);
        for (n, handle) in pipelines.iter().enumerate() {
            for row in handle.feed.after(self.told[n]) {
                self.told[n] = row.number;
                self.push("row", &Row { pipeline: &handle.name, row });
            }
        }
    }

    fn push(&mut self, name: &str, data: &impl Serialize) {
        // What cannot be written is left out; the next tick says it again.
        if let Ok(event) = Event::default().event(name).json_data(data) {
            self.waiting.push_back(event);
        }
    }
}

/// One event of the stream
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "it is described, and made by axum")]
struct LiveEvent {
    /// `status` or `row`.
    event: String,
    /// JSON: what has changed.
    data: String,
}

/// Pipelines and rows as they change
///
/// Ends with the host, and when another token is made. Server-sent events: `status` once a second, with every pipeline as it stands; `row` for each of the last rows that were
/// committed while somebody looks on (of a busy pipeline a sample).
#[utoipa::path(
    get, path = "/api/v1/live", tag = "pipelines", responses(
        (status = 200, description = "It goes on until either side ends it", content_type = "text/event-stream", body = LiveEvent),
        (status = 429, description = "Too many look on", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn live(
    State(admin): State<Arc<Admin>>,
    Extension(access): Extension<Arc<Access>>,
) -> Result<Response, Problem> {
    let rotations = access.rotations();
    let place = admin.watchers.clone().try_acquire_owned().map_err(|_| {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "full", "too many look on: close a page").retry_after_s(5)
    })?;
    admin.control.pipelines().iter().for_each(|h| h.feed.watch());
    let watch = Watch {
        told: vec![0; admin.control.pipelines().len()],
        waiting: VecDeque::new(),
        ticks: tokio::time::interval(TICK),
        stopping: admin.stopping.clone(),
        access,
        rotations,
        admin,
        _place: place,
    };
    // What comes every second keeps the connection open, too.
    Ok(Sse::new(unfold(watch, Watch::next)).into_response())
}
