//! What people ask of pipelines while they run, and what they are shown: the one way between the admin API and the threads
//! that events pass through.
//!
//! A pipeline publishes what it has committed; whoever asks for a change prepares all of it here, on their own thread, and
//! hands it over. The pipeline takes it up at a barrier. No lock is held on the way of an event.

pub(crate) mod change;
mod feed;
mod operation;

pub(crate) use self::feed::{Feed, FeedRow};
pub(crate) use self::operation::{InForce, Operation, Standing};

use crate::config::plan::{Pipeline, Plan};
use crate::journal::Journal;
use crate::meta::Meta;
use crate::meters::Snapshots;
use crate::plugin::budget::{Budget, Suspended};
use crate::plugin::{LoadedRule, Sandbox};
use crate::progress::Progress;
use crate::schedule::{Declared, RuleSpec, Wish};
use crate::store::components::Components;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tidemill_engine::key::KeyForm;
use tidemill_engine::lane::{KeyLook, LiveState};
use tidemill_engine::rule::SessionRule;
use tidemill_engine::versions::Version;

/// Requests that wait for one pipeline: people ask, not programs in loops.
const COMMANDS_MAX: usize = 16;
/// Operations that are remembered, the latest ones.
const OPERATIONS_MAX: usize = 256;
/// How long a pipeline may take to answer what needs no barrier.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// See the module's documentation.
pub(crate) struct Control {
    handles: Vec<Arc<Handle>>,
    /// Components by digest.
    pub(crate) components: Components,
    /// Where components are compiled.
    pub(crate) sandbox: Arc<Sandbox>,
    /// What was said lately.
    pub(crate) journal: Arc<Journal>,
    /// What became of snapshots.
    pub(crate) snapshots: Snapshots,
    operations: Mutex<VecDeque<Arc<Operation>>>,
    next_operation: AtomicU64,
}

/// What a pipeline is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Its state is being recovered.
    Starting,
    /// It reads.
    Running,
    /// An operator has paused it.
    Paused,
    /// Its plugins failed too often: it waits for a deployment, a rollback or a resume.
    Suspended(Suspended),
    /// Its input is used up, or the process is about to end.
    Ended,
    /// It failed, and stays so until the process starts again.
    Failed(String),
}

/// What a pipeline has committed.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    /// The newest durable epoch.
    pub(crate) epoch: u64,
    /// Who wrote it.
    pub(crate) incarnation: u64,
    /// Everything in it but the keys' state.
    pub(crate) meta: Meta,
}

/// One pipeline, for whoever asks.
pub(crate) struct Handle {
    /// Its name.
    pub(crate) name: String,
    /// Its live numbers.
    pub(crate) progress: Arc<Progress>,
    /// Its last rows.
    pub(crate) feed: Feed,
    to: Sender<Command>,
    queue: Receiver<Command>,
    shown: Mutex<Shown>,
    /// One change at a time.
    changing: Mutex<()>,
    /// The change that was handed over last.
    under_way: Mutex<Option<Arc<Operation>>>,
}

struct Shown {
    state: State,
    committed: Option<Arc<Committed>>,
    running: Option<Running>,
}

/// What a change has to know of a pipeline that runs.
#[derive(Clone)]
pub(crate) struct Running {
    /// The live versions of its rule, the newer one last.
    pub(crate) rules: Vec<Arc<LoadedRule>>,
    /// What its plugins may fail at.
    pub(crate) budget: Arc<Budget>,
    /// How its keys are shown.
    pub(crate) key_form: KeyForm,
    /// Its lanes.
    pub(crate) lanes: usize,
}

/// What a pipeline is asked.
pub(crate) enum Command {
    /// To take a version of the rule in at the next barrier.
    Deploy(Box<Deploy>),
    /// To take the newest of several live versions back, which is this one.
    Strike(Arc<Operation>, Wish, Version),
    /// Of a suspended pipeline: to start again.
    Again(Again),
    /// To read no more, or to go on.
    Pause(bool, String, Sender<()>),
    /// For states of open sessions: of a lane, from a key on.
    States { lane: usize, from: usize, reply: Sender<Result<States, String>> },
    /// What there is of a key, by its bytes.
    Look(Vec<u8>, Sender<Option<KeyLook>>),
}

/// How a suspended pipeline is to start again.
pub(crate) struct Again {
    /// With what change.
    pub(crate) change: Change,
    /// Whom to tell.
    pub(crate) operation: Arc<Operation>,
}

/// A change that is made at a start, before anything is read.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// None: it goes on as it was; with who wants that.
    Resume(String),
    /// Another version; with the operation's kind.
    Deploy(RuleSpec, Wish, &'static str),
    /// The newest of several live versions is taken back; where that is too late, this rule follows it.
    Back(RuleSpec, Wish),
}

/// Somebody who waits until an epoch is durable, and what they are told then. Where it never becomes so, because the
/// pipeline is suspended or fails before, they are told that.
#[derive(Debug)]
pub(crate) enum Told {
    /// A change is made.
    Change(Arc<Operation>, InForce),
    /// It is paused, or goes on.
    Paused(Sender<()>),
}

impl Told {
    /// Tells it.
    pub(crate) fn tell(self) {
        match &self {
            Told::Change(operation, in_force) => operation.end(Standing::InForce(in_force.clone())),
            // Whoever asked may have gone away.
            Told::Paused(reply) => drop(reply.send(())),
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // A pause that nobody answers says so itself.
        if let Told::Change(operation, _) = self {
            operation.end(Standing::Refused(Refusal::new(
                RefusalKind::State,
                "the pipeline stopped before this was durable: look at its state, then try again",
            )));
        }
    }
}

/// A version that is ready to be taken in.
pub(crate) struct Deploy {
    /// What it is.
    pub(crate) rule: Arc<LoadedRule>,
    /// The schedule's layout with its fields in it.
    pub(crate) layout: Vec<Declared>,
    /// An instance for each lane, warm.
    pub(crate) instances: Vec<Box<dyn SessionRule>>,
    /// How it is wanted.
    pub(crate) wish: Wish,
    /// The version in force that it was tried against, and is to follow.
    pub(crate) follows: Version,
    /// Whom to tell.
    pub(crate) operation: Arc<Operation>,
}

/// Some of a lane's states.
pub(crate) struct States {
    /// Them.
    pub(crate) states: Vec<LiveState>,
    /// Where the next ones begin; none: these were the last.
    pub(crate) next: Option<usize>,
}

/// Why a change was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    /// What kind.
    pub(crate) kind: RefusalKind,
    /// A sentence with the way out.
    pub(crate) message: String,
    /// How many sessions do not fit.
    pub(crate) count: u64,
    /// The keys of the first of them.
    pub(crate) keys: Vec<String>,
    /// How far event time has to come until it can be asked again, ms.
    pub(crate) missing_ms: Option<i64>,
}

/// Kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusalKind {
    /// There is no such plugin, version or operation.
    NotFound,
    /// The plugin cannot be used, or not with this config.
    Unfit,
    /// Two versions are live, or another change is under way.
    Pending,
    /// Nothing can be taken back any more as if it had never been: that is a swap now.
    Passed,
    /// The states of open sessions do not fit.
    Incompatible,
    /// The deployment is no more the one that was looked at.
    Stale,
    /// The pipeline is not in a state for it.
    State,
    /// It did not answer in time, or the host is at fault.
    Host,
}

impl Refusal {
    pub(crate) fn new(kind: RefusalKind, message: impl Into<String>) -> Refusal {
        Refusal { kind, message: message.into(), count: 0, keys: Vec::new(), missing_ms: None }
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// Of the pipelines of a plan, in its order, with their live numbers.
    pub(crate) fn new(plan: &Plan, progress: &[Arc<Progress>], journal: Arc<Journal>) -> Control {
        let handle = |(p, progress): (&Pipeline, &Arc<Progress>)| Arc::new(Handle::new(p, progress.clone()));
        Control {
            handles: plan.pipelines.iter().zip(progress).map(handle).collect(),
            components: Components::of(&plan.server.data_dir),
            sandbox: Arc::new(Sandbox::new(plan.server.data_dir.join("compiled"))),
            journal,
            snapshots: Snapshots::default(),
            operations: Mutex::default(),
            next_operation: AtomicU64::new(1),
        }
    }

    /// The pipelines, in the order of the config.
    pub(crate) fn pipelines(&self) -> &[Arc<Handle>] {
        &self.handles
    }

    /// A pipeline.
    pub(crate) fn pipeline(&self, name: &str) -> Option<&Arc<Handle>> {
        self.handles.iter().find(|h| h.name == name)
    }

    /// An operation, while it is remembered.
    pub(crate) fn operation(&self, id: u64) -> Option<Arc<Operation>> {
        lock(&self.operations).iter().find(|o| o.id == id).cloned()
    }

    /// All operations that are remembered, oldest first.
    pub(crate) fn operations(&self) -> Vec<Arc<Operation>> {
        lock(&self.operations).iter().cloned().collect()
    }

    /// How a suspended pipeline starts again when it is resumed.
    pub(crate) fn resume_after_suspension(&self, pipeline: &str, by: String) -> Again {
        Again { change: Change::Resume(by), operation: self.begin(pipeline, "resume") }
    }

    /// A change is asked for.
    pub(crate) fn begin(&self, pipeline: &str, kind: &'static str) -> Arc<Operation> {
        let id = self.next_operation.fetch_add(1, Ordering::Relaxed);
        let operation = Arc::new(Operation::new(id, pipeline, kind));
        let mut all = lock(&self.operations);
        if all.len() >= OPERATIONS_MAX {
            all.pop_front();
        }
        all.push_back(operation.clone());
        operation
    }
}

impl Handle {
    fn new(pipeline: &Pipeline, progress: Arc<Progress>) -> Handle {
        let (to, queue) = bounded(COMMANDS_MAX);
        let shown = Mutex::new(Shown { state: State::Starting, committed: None, running: None });
        Handle {
            name: pipeline.name.clone(),
            progress,
            feed: Feed::default(),
            to,
            queue,
            shown,
            changing: Mutex::default(),
            under_way: Mutex::default(),
        }
    }

    /// What it is doing.
    pub(crate) fn state(&self) -> State {
        lock(&self.shown).state.clone()
    }

    /// What it has committed; none before its first epoch.
    pub(crate) fn committed(&self) -> Option<Arc<Committed>> {
        lock(&self.shown).committed.clone()
    }

    /// The pipeline tells its state.
    pub(crate) fn set_state(&self, state: State) {
        let mut shown = lock(&self.shown);
        if !matches!(state, State::Running | State::Paused) {
            shown.running = None;
        }
        shown.state = state;
    }

    /// The pipeline tells what it runs.
    pub(crate) fn set_running(&self, running: Running) {
        lock(&self.shown).running = Some(running);
    }

    /// The pipeline tells what it has committed.
    pub(crate) fn set_committed(&self, committed: Arc<Committed>) {
        lock(&self.shown).committed = Some(committed);
    }

    /// The next thing that somebody asks, for the pipeline.
    pub(crate) fn asked(&self) -> Option<Command> {
        self.queue.try_recv().ok()
    }

    /// Waits for the next thing that somebody asks.
    pub(crate) fn wait_asked(&self, most: Duration) -> Option<Command> {
        self.queue.recv_timeout(most).ok()
    }

    /// Reads no more until it is resumed, also after a restart. What was read is committed and delivered.
    ///
    /// # Errors
    /// If the pipeline does not run.
    pub(crate) fn pause(&self, by: &str) -> Result<(), Refusal> {
        self.set_paused(true, by)
    }

    /// Goes on after a pause or a suspension.
    ///
    /// # Errors
    /// If the pipeline neither runs nor is suspended.
    pub(crate) fn resume(&self, by: &str) -> Result<(), Refusal> {
        self.set_paused(false, by)
    }

    fn set_paused(&self, paused: bool, by: &str) -> Result<(), Refusal> {
        match (self.state(), paused) {
            (State::Running | State::Paused, _) | (State::Suspended(_), false) => {}
            (other, _) => return Err(other.refuses()),
        }
        self.ask(|reply| Command::Pause(paused, by.to_owned(), reply))
    }

    /// What there is of a key, given as rows show it; none: nothing that is open or may still change.
    ///
    /// # Errors
    /// If the pipeline does not run.
    pub(crate) fn look(&self, key: &str) -> Result<Option<KeyLook>, Refusal> {
        let form = self.running()?.key_form;
        match form.parse(key) {
            Some(key) => self.ask(|reply| Command::Look(key, reply)),
            None => Ok(None),
        }
    }

    fn running(&self) -> Result<Running, Refusal> {
        let shown = lock(&self.shown);
        shown.running.clone().ok_or_else(|| shown.state.refuses())
    }

    /// Asks the pipeline for something that it answers between two blocks of records.
    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, Refusal> {
        let (reply, answer) = bounded(1);
        self.send(command(reply))?;
        answer.recv_timeout(ANSWER_MAX).map_err(|_| {
            Refusal::new(RefusalKind::Host, format!("pipeline `{}` does not answer: try again", self.name))
        })
    }

    fn send(&self, command: Command) -> Result<(), Refusal> {
        self.to.try_send(command).map_err(|e| match e {
            TrySendError::Full(_) => {
                Refusal::new(RefusalKind::Pending, format!("too much is asked of pipeline `{}`", self.name))
            }
            TrySendError::Disconnected(_) => {
                Refusal::new(RefusalKind::State, format!("pipeline `{}` has ended", self.name))
            }
        })
    }
}

impl State {
    /// The word for it.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Running => "running",
            State::Paused => "paused",
            State::Suspended(_) => "suspended",
            State::Ended => "ended",
            State::Failed(_) => "failed",
        }
    }

    fn refuses(&self) -> Refusal {
        let kind = if *self == State::Starting { RefusalKind::Host } else { RefusalKind::State };
        Refusal::new(kind, format!("the pipeline is {}", self.word()))
    }
}
