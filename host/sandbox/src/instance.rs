//! Instances: a store with a plugin in it, that is called, stopped, and thrown away when it trapped.

use crate::bindings::{self, Enricher, EnricherPre, Sessionizer, SessionizerPre, Validator, ValidatorPre};
use crate::component::{self, Component, FieldError};
use crate::engine::{self, Engine};
use crate::fault::{self, Fault, FaultKind, Malformed, Progress, TrapKind};
use crate::log::{Log, Throttle};
use crate::{World, bounds};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidemill_contract::FRAME_VERSION;
use tidemill_contract::frame::{FrameWriter, Kind};
use wasmtime::{PoolConcurrencyLimitError, ResourceLimiter, Store, Trap, WasmCoreDump};

/// A component with a config that it takes. A clone is the same one.
#[derive(Clone, Debug)]
pub struct Plugin {
    component: Component,
    config: Arc<str>,
    /// Places of declared fields that it does not read under this config.
    unread: Arc<[u32]>,
}

impl Plugin {
    pub(crate) fn new(component: Component, config: &str, unread: &[u32]) -> Plugin {
        Plugin { component, config: config.into(), unread: unread.into() }
    }

    /// What it is made of.
    #[must_use]
    pub fn component(&self) -> &Component {
        &self.component
    }

    /// Its config.
    #[must_use]
    pub fn config(&self) -> &str {
        &self.config
    }

    /// Whether it reads the declared field at this place under its config. The cells of one that it does not read are missing.
    #[must_use]
    pub fn reads(&self, field: usize) -> bool {
        !self.unread.iter().any(|place| *place as usize == field)
    }

    /// An instance of its own for a lane, warm: started, configured, called once.
    ///
    /// # Errors
    /// If it fails at that, or the engine has no room for another.
    pub fn instance(&self) -> Result<Instance, Fault> {
        let mut live = self.live()?;
        live.warm()?;
        Ok(Instance {
            plugin: self.clone(),
            live: Some(live),
            answer: Vec::new(),
            log: Log::default(),
            stats: Stats::default(),
        })
    }

    fn live(&self) -> Result<Live, Fault> {
        let mut live = self.component.start()?;
        live.configure(&self.config)?.map_err(|errors| Fault {
            // It took this config before: it is no pure function.
            kind: FaultKind::Guest(match errors.first() {
                Some(e) => format!("it now refuses a config that it took before: {e}"),
                None => "it now refuses a config that it took before".into(),
            }),
            progress: None,
            ran: Duration::ZERO,
        })?;
        Ok(live)
    }
}

/// A call that carries frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Validator: `events` in, `verdicts` out.
    Validate,
    /// Sessionizer: `turns` in, `results` out.
    Fold,
    /// Sessionizer: `states` in, `states` out.
    Migrate {
        /// The version of the states.
        from: u32,
    },
    /// Enricher: `sessions` in, `requests` out.
    Requests,
    /// Enricher: `sessions` with answers in, `enriched` out.
    Apply,
}

/// What an instance has been through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls that carried frames.
    pub calls: u64,
    /// Calls that gave a fault.
    pub faults: u64,
    /// Times that the store was made anew after a trap.
    pub rebuilds: u64,
    /// How long the last of these took, configuring included.
    pub rebuild_last: Duration,
}

/// One lane's own instance of a plugin. Calls run on the caller's thread. What traps in it is thrown away, and made
/// anew with the next call.
pub struct Instance {
    plugin: Plugin,
    live: Option<Live>,
    answer: Vec<u64>,
    // Lines of stores that are gone.
    log: Log,
    stats: Stats,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance")
            .field("plugin", &self.plugin)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Instance {
    /// The plugin that it is an instance of.
    #[must_use]
    pub fn plugin(&self) -> &Plugin {
        &self.plugin
    }

    /// Sessionizer: a frame `turns` in, a frame `results` out.
    ///
    /// # Errors
    /// See [`Instance::call`].
    pub fn fold(&mut self, turns: &[u64], deadline: Duration) -> Result<&[u64], Fault> {
        self.call(Call::Fold, turns, deadline)
    }

    /// Sessionizer: a frame `states` of that version in, a frame `states` of the present one out.
    ///
    /// # Errors
    /// See [`Instance::call`].
    pub fn migrate(&mut self, from: u32, states: &[u64], deadline: Duration) -> Result<&[u64], Fault> {
        self.call(Call::Migrate { from }, states, deadline)
    }

    /// Validator: a frame `events` in, a frame `verdicts` out.
    ///
    /// # Errors
    /// See [`Instance::call`].
    pub fn validate(&mut self, events: &[u64], deadline: Duration) -> Result<&[u64], Fault> {
        self.call(Call::Validate, events, deadline)
    }

    /// Enricher: a frame `sessions` in, a frame `requests` out.
    ///
    /// # Errors
    /// See [`Instance::call`].
    pub fn requests(&mut self, sessions: &[u64], deadline: Duration) -> Result<&[u64], Fault> {
        self.call(Call::Requests, sessions, deadline)
    }

    /// Enricher: a frame `sessions` with the answers in, a frame `enriched` out.
    ///
    /// # Errors
    /// See [`Instance::call`].
    pub fn apply(&mut self, sessions: &[u64], deadline: Duration) -> Result<&[u64], Fault> {
        self.call(Call::Apply, sessions, deadline)
    }

    /// Makes a call. The answer has the length that it says and the version of the layout; its kind and sections are
    /// for the caller to check, and it stays until the next call.
    ///
    /// # Errors
    /// If the guest trapped, was stopped, gave an error, or answered with what is no frame. The instance can be called
    /// again at once.
    pub fn call(&mut self, call: Call, frame: &[u64], deadline: Duration) -> Result<&[u64], Fault> {
        self.stats.calls += 1;
        match self.try_call(call, frame, deadline) {
            Ok(answer) => {
                self.answer = answer;
                Ok(&self.answer)
            }
            Err(fault) => {
                self.stats.faults += 1;
                Err(fault)
            }
        }
    }

    fn try_call(&mut self, call: Call, frame: &[u64], deadline: Duration) -> Result<Vec<u64>, Fault> {
        let live = match &mut self.live {
            Some(live) => live,
            gone => {
                let begin = Instant::now();
                let live = self.plugin.live()?;
                self.stats.rebuilds += 1;
                self.stats.rebuild_last = begin.elapsed();
                gone.insert(live)
            }
        };
        let result = live.frames(call, frame, deadline);
        // An instance that trapped is in the middle of something: it cannot be entered again.
        if live.poisoned {
            let log = live.store.data_mut().log.take();
            self.log.dropped += log.dropped;
            self.log.lines.extend(log.lines);
            let room = bounds::LOG_LINES_HELD_MAX;
            if self.log.lines.len() > room {
                self.log.dropped += (self.log.lines.len() - room) as u64;
                self.log.lines.truncate(room);
            }
            self.live = None;
        }
        result
    }

    /// The lines that it logged since this was last asked.
    pub fn take_log(&mut self) -> Log {
        let mut log = std::mem::take(&mut self.log);
        if let Some(live) = &mut self.live {
            let more = live.store.data_mut().log.take();
            log.lines.extend(more.lines);
            log.dropped += more.dropped;
        }
        log
    }

    /// What it has been through.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }
}

/// What a store knows beside its guest.
pub(crate) struct HostState {
    pub(crate) log: Throttle,
    /// The message of a panic, in this call.
    pub(crate) panic: Option<String>,
    /// Bytes that were refused, in this call.
    refused: Option<usize>,
}

impl ResourceLimiter for HostState {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let allowed = desired <= bounds::MEMORY_BYTES_MAX;
        if !allowed {
            self.refused = Some(desired);
        }
        Ok(allowed)
    }
    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= bounds::TABLE_ELEMENTS_MAX)
    }
    fn instances(&self) -> usize {
        bounds::CORE_INSTANCES_MAX as usize
    }
    fn tables(&self) -> usize {
        bounds::TABLES_MAX as usize
    }
    fn memories(&self) -> usize {
        bounds::MEMORIES_MAX as usize
    }
}

/// A component with its import tied and its exports found, ready to be instantiated.
pub(crate) enum Pre {
    Validator(ValidatorPre<HostState>),
    Sessionizer(SessionizerPre<HostState>),
    Enricher(EnricherPre<HostState>),
}

enum Guest {
    Validator(Validator),
    Sessionizer(Sessionizer),
    Enricher(Enricher),
}

/// A store with its guest.
pub(crate) struct Live {
    store: Store<HostState>,
    guest: Guest,
    progress_at: Option<u32>,
    poisoned: bool,
}

impl Live {
    pub(crate) fn start(engine: &Engine, pre: &Pre) -> Result<Live, Fault> {
        let state = HostState { log: Throttle::new(), panic: None, refused: None };
        let mut store = Store::try_new(engine.wasmtime(), state).map_err(|e| host_fault(&e))?;
        store.limiter(|state| state);
        store.set_hostcall_fuel(bounds::OUTPUT_BYTES_MAX);
        let guest = guarded(&mut store, None, bounds::SETUP_DEADLINE, |store| {
            Ok(match pre {
                Pre::Validator(pre) => Guest::Validator(pre.instantiate(store)?),
                Pre::Sessionizer(pre) => Guest::Sessionizer(pre.instantiate(store)?),
                Pre::Enricher(pre) => Guest::Enricher(pre.instantiate(store)?),
            })
        })?;
        Ok(Live { store, guest, progress_at: None, poisoned: false })
    }

    pub(crate) fn describe(&mut self) -> Result<bindings::Description, Fault> {
        self.guarded(bounds::SETUP_DEADLINE, |guest, store| match guest {
            Guest::Validator(guest) => guest.call_describe(store),
            Guest::Sessionizer(guest) => guest.call_describe(store),
            Guest::Enricher(guest) => guest.call_describe(store),
        })
    }

    /// Gives it its config, which is answered with the places of fields that it does not read, and asks where its progress word
    /// is.
    pub(crate) fn configure(&mut self, json: &str) -> Result<Result<Vec<u32>, Vec<FieldError>>, Fault> {
        let answer = self.guarded(bounds::SETUP_DEADLINE, |guest, store| match guest {
            Guest::Validator(guest) => guest.call_configure(store, json),
            Guest::Sessionizer(guest) => guest.call_configure(store, json),
            Guest::Enricher(guest) => Ok(guest.call_configure(store, json)?.map(|()| Vec::new())),
        })?;
        let unread = match answer {
            Ok(unread) => unread,
            Err(errors) => return Ok(Err(component::field_errors(errors))),
        };
        let at = self.guarded(bounds::SETUP_DEADLINE, |guest, store| match guest {
            Guest::Validator(guest) => guest.call_progress(store),
            Guest::Sessionizer(guest) => guest.call_progress(store),
            Guest::Enricher(guest) => guest.call_progress(store),
        })?;
        // No compiler puts a variable at 0: a guest without a progress word says so.
        self.progress_at = (at != 0).then_some(at);
        Ok(Ok(unread))
    }

    /// Has it answer an empty frame, so that the first real one finds its pages in memory.
    pub(crate) fn warm(&mut self) -> Result<(), Fault> {
        let (call, kind) = match self.world() {
            World::Validator => (Call::Validate, Kind::Events),
            World::Sessionizer => (Call::Fold, Kind::Turns),
            World::Enricher => (Call::Requests, Kind::Sessions),
        };
        let mut frame = FrameWriter::default();
        frame.begin(kind);
        (0..kind.sections()).for_each(|_| frame.section::<u64>(&[]));
        self.frames(call, frame.end(), bounds::SETUP_DEADLINE).map(|_| ())
    }

    fn world(&self) -> World {
        match self.guest {
            Guest::Validator(_) => World::Validator,
            Guest::Sessionizer(_) => World::Sessionizer,
            Guest::Enricher(_) => World::Enricher,
        }
    }

    fn frames(&mut self, call: Call, frame: &[u64], deadline: Duration) -> Result<Vec<u64>, Fault> {
        let begin = Instant::now();
        let answer = self.guarded(deadline, |guest, store| match (guest, call) {
            (Guest::Sessionizer(guest), Call::Fold) => guest.call_fold(store, frame).map(Some),
            (Guest::Sessionizer(guest), Call::Migrate { from }) => {
                guest.call_migrate(store, from, frame).map(Some)
            }
            (Guest::Validator(guest), Call::Validate) => guest.call_validate(store, frame).map(Some),
            (Guest::Enricher(guest), Call::Requests) => guest.call_requests(store, frame).map(Some),
            (Guest::Enricher(guest), Call::Apply) => guest.call_apply(store, frame).map(Some),
            _ => Ok(None),
        })?;
        let kind = match answer {
            Some(Ok(words)) => match malformed(&words) {
                None => return Ok(words),
                Some(why) => FaultKind::Malformed(why),
            },
            Some(Err(message)) => FaultKind::Guest(fault::guest_message(&message)),
            None => FaultKind::Host(format!("a {} has no {call:?}", self.world())),
        };
        Err(Fault { kind, progress: None, ran: begin.elapsed() })
    }

    fn guarded<T>(
        &mut self,
        limit: Duration,
        call: impl FnOnce(&Guest, &mut Store<HostState>) -> wasmtime::Result<T>,
    ) -> Result<T, Fault> {
        let guest = &self.guest;
        let result = guarded(&mut self.store, self.progress_at, limit, |store| call(guest, store));
        self.poisoned |= result.is_err();
        result
    }
}

/// The words are a frame as long as they say, of the version that is spoken.
fn malformed(words: &[u64]) -> Option<Malformed> {
    let &[said, head, ..] = words else { return Some(Malformed::Short { words: words.len() }) };
    let is = words.len() * 8;
    if said != is as u64 {
        return Some(Malformed::Length { said, is });
    }
    (head as u16 != FRAME_VERSION).then_some(Malformed::Version(head as u16))
}

/// Makes a call under its deadline, and says what went wrong.
fn guarded<T>(
    store: &mut Store<HostState>,
    progress_at: Option<u32>,
    limit: Duration,
    call: impl FnOnce(&mut Store<HostState>) -> wasmtime::Result<T>,
) -> Result<T, Fault> {
    let state = store.data_mut();
    (state.panic, state.refused) = (None, None);
    store.set_epoch_deadline(engine::ticks(limit));
    let begin = Instant::now();
    call(store).map_err(|error| {
        let ran = begin.elapsed();
        let progress = progress_at.and_then(|at| progress(store, &error, at));
        Fault { kind: kind(store.data_mut(), &error, limit), progress, ran }
    })
}

fn kind(state: &mut HostState, error: &wasmtime::Error, limit: Duration) -> FaultKind {
    let trap = error.downcast_ref::<Trap>().copied();
    if trap == Some(Trap::Interrupt) {
        return FaultKind::Deadline(limit);
    }
    if error.downcast_ref::<PoolConcurrencyLimitError>().is_some() {
        return FaultKind::Host(format!("{error:#}"));
    }
    let panic = state.panic.take();
    match (trap, state.refused.take()) {
        (Some(Trap::UnreachableCodeReached), Some(wanted)) if panic.is_none() => FaultKind::Memory { wanted },
        (Some(Trap::UnreachableCodeReached), _) => FaultKind::Panic(panic),
        (Some(trap), _) => FaultKind::Trap(TrapKind::of(trap)),
        (None, Some(wanted)) => FaultKind::Memory { wanted },
        (None, None) => bad_value(error),
    }
}

/// wasmtime has no types for what it finds when it reads an answer; `tests/hostile.rs` holds it to its words.
fn bad_value(error: &wasmtime::Error) -> FaultKind {
    let text = format!("{error:#}");
    FaultKind::Malformed(if text.contains("fuel") {
        Malformed::TooLarge
    } else if text.contains("pointer") || text.contains("out of bounds") {
        Malformed::Place
    } else if text.contains("utf-8") || text.contains("discriminant") || text.contains("char") {
        Malformed::Value
    } else {
        return FaultKind::Host(text);
    })
}

/// The progress word, through the memory's handle in the trap's core dump.
fn progress(store: &Store<HostState>, error: &wasmtime::Error, at: u32) -> Option<Progress> {
    let memory = match error.downcast_ref::<WasmCoreDump>()?.memories() {
        [memory] => memory,
        _ => return None,
    };
    let word = memory.data(store).get(at as usize..)?.first_chunk::<8>()?;
    Some(Progress::of(u64::from_le_bytes(*word)))
}

pub(crate) fn host_fault(error: &wasmtime::Error) -> Fault {
    Fault { kind: FaultKind::Host(format!("{error:#}")), progress: None, ran: Duration::ZERO }
}
