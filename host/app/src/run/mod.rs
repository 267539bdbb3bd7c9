//! Running pipelines: the threads, the order in which an epoch becomes durable and leaves, and recovery.
//!
//! ```text
//! reader ──batches, barriers──▶ lanes ──parts──▶ committer ──committed epochs──▶ one thread a sink
//!    └───────────positions, letters────────────────▲   ◀──────────cursors──────────────┘
//! ```
//!
//! Invariants: nothing reaches a sink before its epoch is durable; every queue is bounded; any storage
//! error stops the process, which recovers at its next start.

mod commit;
mod deliver;
mod enrich;
pub(crate) mod foresee;
pub(crate) mod go_back;
mod hot;
pub(crate) mod ingest;
pub(crate) mod inlets;
mod lane;
pub(crate) mod layout;
pub(crate) mod measure;
mod patience;
mod pipeline;
#[cfg(feature = "services")]
mod pull;
mod reader;
pub(crate) mod remote;
mod start;
mod stop;
mod supervise;
mod topics;

use self::inlets::Inlets;
use self::remote::Elsewhere;
use crate::config::plan::{Pipeline, Plan};
use crate::control::{Control, Handle};
use crate::journal::{Journal, Level};
use crate::meta::{Counters, Meta};
use crate::plugin::budget::Suspended;
use crate::progress::Progress;
use crate::server::{Say, Server, ServerError};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tidemill_connect::ConnectError;
use tidemill_engine::versions::Policy;
use tidemill_store::StoreError;
use tidemill_store::claim::Claim;
use tidemill_store::disk::OsDisk;
use tidemill_store::log::EpochLog;

/// How a run is to begin.
#[derive(Clone, Debug)]
pub(crate) struct RunOptions {
    /// Forget the pipelines' state and delete their rows.
    pub(crate) fresh: bool,
    /// Go on with a finished pipeline.
    pub(crate) reopen: bool,
    /// Sinks to which everything still kept is sent again.
    pub(crate) resend: Vec<String>,
    /// What becomes of open sessions if the config file asks for another version of the rule.
    pub(crate) policy: Policy,
}

impl Default for RunOptions {
    fn default() -> Self {
        RunOptions { fresh: false, reopen: false, resend: Vec::new(), policy: Policy::Migrate }
    }
}

/// A pipeline's run: what it is to do, and what it shares with the process.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    plan: &'a Plan,
    pipeline: &'a Pipeline,
    options: &'a RunOptions,
    incarnation: u64,
    /// The pipeline's own part of the data directory.
    dir: &'a Path,
    control: &'a Control,
    handle: &'a Arc<Handle>,
    inlets: &'a Inlets,
    /// Where epochs are to be before they leave; none: in the log here.
    elsewhere: Option<&'a dyn Elsewhere>,
    progress: &'a Arc<Progress>,
    /// Set when the process is to end.
    stop: &'a AtomicBool,
}

/// How a pipeline's run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// All input used up, all sessions closed and delivered.
    Finished,
    /// All input used up; open sessions wait for the next run.
    Held,
    /// Asked to stop; open sessions stay open.
    Stopped,
    /// It had finished before, and there is nothing new.
    AlreadyFinished,
    /// Its plugins failed too often; what was committed is delivered, and the next run tries again from there.
    Suspended,
}

impl Outcome {
    /// What it says to a user.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Outcome::Finished => "finished: all input used, every session final",
            Outcome::Held => "all input used; open sessions wait for the next run",
            Outcome::Stopped => "stopped; the next run goes on from here",
            Outcome::Suspended => "suspended: its plugins failed too often",
            Outcome::AlreadyFinished => {
                "had finished before, nothing to do (--reopen goes on, --fresh starts over)"
            }
        }
    }
}

/// What a pipeline's run did.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    /// The pipeline.
    pub(crate) pipeline: String,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// Since the pipeline's first start.
    pub(crate) counters: Counters,
    /// Lines for the user.
    pub(crate) notes: Vec<String>,
    /// Why it is suspended.
    pub(crate) suspended: Option<Suspended>,
}

/// Why a run failed, by what the caller must do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The store: locked, damaged, or the disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A source, sink or the rule failed while running.
    #[error("{0}")]
    Failed(String),
    /// The config asks for what the store or the world does not allow.
    #[error("{0}")]
    Refused(String),
    /// Another program holds something, or a cursor contradicts the store.
    #[error("{0}")]
    Conflict(String),
    /// A sink's storage failed.
    #[error("{0}")]
    Storage(String),
    /// The process was asked to end while a sink was waited for.
    #[error("{0}")]
    Stopped(String),
}

impl RunError {
    /// The exit code of the process.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            RunError::Store(e) => e.exit_code(),
            RunError::Failed(_) => 1,
            RunError::Refused(_) => 4,
            RunError::Storage(_) => 5,
            RunError::Conflict(_) => 6,
            RunError::Stopped(_) => 0,
        }
    }
    /// Whether the whole process must stop, not only this pipeline.
    fn stops_all(&self) -> bool {
        matches!(self, RunError::Store(_) | RunError::Storage(_))
    }
    fn of(what: &str, e: ConnectError) -> RunError {
        match e {
            ConnectError::Config(m) => RunError::Refused(format!("{what}: {m}")),
            ConnectError::Conflict(m) => RunError::Conflict(format!("{what}: {m}")),
            // Whoever waits for it does so before it gets here.
            ConnectError::Unavailable(m) | ConnectError::Failed(m) => {
                RunError::Failed(format!("{what}: {m}"))
            }
            ConnectError::Storage(m) => RunError::Storage(format!("{what}: {m}")),
        }
    }
}

/// What goes on beside the pipelines.
#[derive(Clone, Copy)]
pub(crate) struct Beside<'a> {
    /// On a thread of its own, until it is told that they have ended.
    pub(crate) thread: &'a (dyn Fn(&Control, &AtomicBool) + Sync),
    /// Where epochs are to be before they leave; none: in the log here.
    pub(crate) elsewhere: Option<&'a dyn Elsewhere>,
}

/// Runs every pipeline of the plan until its input is used up or `stop` is set. `say` is told what a user should know
/// while it runs.
pub(crate) fn run(
    plan: &Plan,
    options: &RunOptions,
    progress: &[Arc<Progress>],
    journal: &Arc<Journal>,
    stop: &Arc<AtomicBool>,
    say: Say,
    beside: Beside<'_>,
) -> Result<Vec<Summary>, RunError> {
    for name in &options.resend {
        if !plan.sinks.iter().any(|s| s.name == *name) {
            return Err(RunError::Refused(format!("--resend {name}: the config has no sink of this name")));
        }
    }
    let mut claim = Claim::take(Arc::new(OsDisk), &plan.server.data_dir)?;
    let incarnation = claim.next_incarnation()?;
    let claim = &claim;
    let control = &Arc::new(Control::new(plan, progress, journal.clone()));
    let server = Server::start(plan, control, say).map_err(|e| match e {
        ServerError::Address { .. } => RunError::Conflict(e.to_string()),
        ServerError::Refused(_) => RunError::Refused(e.to_string()),
        ServerError::Threads(_) => RunError::Failed(e.to_string()),
    })?;
    let inlets = &Inlets::open(plan, options)?;
    if let Some(server) = &server {
        server.open(|source| inlets.log(source));
    }
    let ended = &AtomicBool::new(false);
    let all = std::thread::scope(|scope| {
        scope.spawn(move || (beside.thread)(control, ended));
        #[cfg(feature = "services")]
        let pulling = pull::begin(scope, (plan, progress), inlets, stop, ended);
        let threads: Vec<_> = plan
            .pipelines
            .iter()
            .zip(progress.iter().zip(control.pipelines()))
            .map(|(p, (progress, handle))| {
                scope.spawn(move || {
                    let dir = &claim.pipeline_dir(&p.name);
                    let pipeline = p;
                    let job = Job {
                        plan,
                        pipeline,
                        options,
                        incarnation,
                        dir,
                        control,
                        handle,
                        inlets,
                        elsewhere: beside.elsewhere,
                        progress,
                        stop,
                    };
                    let r = supervise::run(job);
                    if let Ok(s) = &r {
                        progress.keep(Level::Info, s.outcome.words());
                    }
                    if let Err(e) = &r {
                        // The whole of it is said when the process ends, which for one pipeline is now.
                        let text = e.to_string();
                        let line = format!("failed: {}", text.lines().next().unwrap_or_default());
                        let others = plan.pipelines.len() > 1 && !e.stops_all();
                        progress.halt("FAILED", &line, !others);
                        if e.stops_all() {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                    r
                })
            })
            .collect();
        let crashed = || Err(RunError::Failed("a pipeline's thread ended without an answer".into()));
        let all: Vec<_> = threads.into_iter().map(|t| t.join().unwrap_or_else(|_| crashed())).collect();
        ended.store(true, Ordering::Relaxed);
        // What it was is why the pipelines have stopped.
        #[cfg(feature = "services")]
        pull::end(pulling)?;
        all.into_iter().collect::<Result<Vec<Summary>, RunError>>()
    });
    // What was taken until now is in the ingest log, and is read at the next start.
    drop(server);
    all
}

/// The newest epoch of a pipeline, read without a claim: (epoch, incarnation, meta); `None` if it never ran.
pub(crate) fn peek(plan: &Plan, pipeline: &str) -> Result<Option<(u64, u64, Meta)>, RunError> {
    let dir = plan.server.data_dir.join("pipelines").join(pipeline);
    let Some(newest) = EpochLog::newest(&OsDisk, &dir)? else { return Ok(None) };
    let meta = serde_json::from_slice(&newest.meta).map_err(|e| {
        RunError::Refused(format!("{}: the newest epoch was written by another version: {e}", dir.display()))
    })?;
    Ok(Some((newest.epoch, newest.incarnation, meta)))
}
