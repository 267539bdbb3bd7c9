//! The admin API: what an operator asks of a host that runs, and steers it by.
//!
//! Each file answers one part of it; the description of a part stands at its handler, and the document at `/openapi.json` is
//! made of them. Nothing here blocks a thread of requests: files and components are for threads of their own.

mod answer;
mod dead;
mod deployments;
mod describe;
mod health;
mod live;
mod logs;
mod metrics;
mod operations;
mod pipelines;
mod plugins;
mod sessions;

use super::access::{self, Access};
use super::metrics::{self as requests, HttpMetrics};
use super::page;
use super::problem::Problem;
use crate::config::plan::Plan;
use crate::control::{Control, Refusal, RefusalKind};
use crate::store::versions::VersionStore;
use axum::http::StatusCode;
use axum::{Router, middleware};
use std::fmt;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Semaphore, watch};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Components that are taken in at a time: each is held in memory, and compiled on every core there is.
const UPLOADS_MAX: usize = 2;

/// Reads of tables and files at a time: a table without an index is read from end to end.
const READERS_MAX: usize = 4;

/// Pages that are told what happens as it happens.
const WATCHERS_MAX: usize = 64;

/// What the handlers share.
pub(crate) struct Admin {
    plan: Arc<Plan>,
    /// The pipelines.
    control: Arc<Control>,
    /// Versions of plugins.
    versions: VersionStore,
    uploads: Semaphore,
    http: Arc<HttpMetrics>,
    /// Whoever reads tables and files.
    readers: Semaphore,
    /// Whoever looks on.
    watchers: Arc<Semaphore>,
    /// Says when the host ends.
    stopping: watch::Receiver<bool>,
    /// Set once the store is recovered.
    opened: OnceLock<()>,
}

impl Admin {
    pub(crate) fn new(
        plan: Arc<Plan>,
        control: Arc<Control>,
        http: Arc<HttpMetrics>,
        stopping: watch::Receiver<bool>,
    ) -> Admin {
        let versions = VersionStore::of(&plan.server.data_dir, control.components.clone());
        let (uploads, readers) = (Semaphore::new(UPLOADS_MAX), Semaphore::new(READERS_MAX));
        let watchers = Arc::new(Semaphore::new(WATCHERS_MAX));
        Admin { plan, control, versions, uploads, http, readers, watchers, stopping, opened: OnceLock::new() }
    }

    /// The store is recovered.
    pub(crate) fn opened(&self) {
        // It is opened once.
        let _ = self.opened.set(());
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("versions", &self.versions).finish_non_exhaustive()
    }
}

/// What the admin listener answers.
pub(crate) fn router(admin: Arc<Admin>, access: Arc<Access>) -> Router {
    let http = admin.http.clone();
    let (router, mut document) = OpenApiRouter::with_openapi(describe::document())
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::version))
        .routes(routes!(metrics::metrics))
        .routes(routes!(plugins::list))
        .routes(routes!(plugins::of_name))
        .routes(routes!(plugins::show))
        .routes(routes!(plugins::component))
        .merge(plugins::upload_route())
        .routes(routes!(pipelines::list))
        .routes(routes!(pipelines::show))
        .routes(routes!(pipelines::pause))
        .routes(routes!(pipelines::resume))
        .routes(routes!(deployments::show, deployments::deploy))
        .routes(routes!(deployments::rollback))
        .routes(routes!(deployments::history))
        .routes(routes!(deployments::audit))
        .routes(routes!(operations::list))
        .routes(routes!(operations::show))
        .routes(routes!(sessions::list))
        .routes(routes!(dead::list))
        .routes(routes!(live::live))
        .routes(routes!(logs::list))
        .with_state(admin)
        .merge(OpenApiRouter::new().routes(routes!(page::make_link)).with_state(access.clone()))
        .split_for_parts();
    describe::finish(&mut document);
    router
        .merge(describe::route(&document))
        .merge(page::router(access.clone()))
        .fallback(|| async {
            Problem::not_found("there is nothing here; `/openapi.json` says what there is")
        })
        .method_not_allowed_fallback(|| async {
            let detail = "this method is not for here; `/openapi.json` says which is";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail)
        })
        .layer(middleware::from_fn_with_state(access, access::guard))
        .layer(middleware::from_fn_with_state((http, "admin"), requests::count))
}

/// Does work that blocks on a thread for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    // It only ends early by a panic, which is our fault.
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Problem::internal(e.to_string())))
}

impl Admin {
    /// Reads a table or a file on a thread for that, while few others do.
    async fn reading<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let _place = self.readers.try_acquire().map_err(|_| busy())?;
        blocking(work).await
    }
}

fn busy() -> Problem {
    let detail = "others are asking for the same: try again after a while";
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail).retry_after_s(1)
}

/// A change that was refused, as a problem.
fn refused(r: Refusal) -> Problem {
    let (status, kind) = match r.kind {
        RefusalKind::NotFound => (StatusCode::NOT_FOUND, "not-found"),
        RefusalKind::Unfit => (StatusCode::UNPROCESSABLE_ENTITY, "plugin"),
        RefusalKind::Pending | RefusalKind::Passed => (StatusCode::CONFLICT, "swap_pending"),
        RefusalKind::Incompatible => (StatusCode::CONFLICT, "incompatible"),
        RefusalKind::State => (StatusCode::CONFLICT, "state"),
        RefusalKind::Stale => (StatusCode::PRECONDITION_FAILED, "stale"),
        RefusalKind::Host => (StatusCode::SERVICE_UNAVAILABLE, "no-answer"),
    };
    let mut problem = Problem::new(status, kind, r.message);
    if r.count > 0 {
        problem = problem.with("count", r.count).with("keys", r.keys);
    }
    if let Some(missing) = r.missing_ms {
        problem = problem.with("missing_ms", missing);
    }
    if r.kind == RefusalKind::Host { problem.retry_after_s(1) } else { problem }
}

#[cfg(test)]
mod tests;
