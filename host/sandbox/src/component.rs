//! From the bytes that a user gave to a component that can be run: checked, compiled, asked what it is.

use crate::bindings::{ConfigError, EnricherPre, Level, SessionizerPre, ValidatorPre};
use crate::compiled::Cache;
use crate::describe::{Description, DescriptionError};
use crate::engine::Engine;
use crate::fault::{Fault, FaultKind};
use crate::instance::{HostState, Live, Plugin, Pre};
use crate::log;
use crate::shape::{self, Shape, World, WrongShape};
use crate::{bounds, instance};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::sync::Arc;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, WasmStr};

/// SHA-256 of a component's bytes: its identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a component cannot be used. For whoever uploaded it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Larger than is taken.
    #[error("the component has {bytes} bytes, where {} are allowed", bounds::COMPONENT_BYTES_MAX)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not a plugin at all.
    #[error(transparent)]
    Shape(#[from] WrongShape),
    /// Not valid, or beyond a bound that is known before it runs (memory, tables, features).
    #[error("the component is refused: {0}")]
    Invalid(String),
    /// An export or import has another type than the contract's.
    #[error("the component does not fit the world `{world}`: {why}")]
    Types {
        /// The world that it has the names of.
        world: World,
        /// What does not fit.
        why: String,
    },
    /// It failed when it was started, or asked what it is.
    #[error("the component cannot be started: {0}")]
    Start(Fault),
    /// It does not stand by its description.
    #[error(
        "it describes itself otherwise when it is asked again: a plugin is a pure function, its description too"
    )]
    Unsteady,
    /// What it says of itself is not allowed.
    #[error(transparent)]
    Description(#[from] DescriptionError),
}

/// Why a config cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// Longer than is taken.
    #[error("the config has {bytes} bytes, where {} are allowed", bounds::CONFIG_BYTES_MAX)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not a JSON object.
    #[error("the config is not a JSON object{}", .0.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
    NotAnObject(Option<String>),
    /// The plugin refuses it.
    #[error("the plugin refuses its config: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<FieldError>),
    /// The plugin says that it does not read a field that it must read, or that it has not declared.
    #[error("the plugin says that it does not read {}", .0)]
    Unread(String),
    /// The plugin failed over it.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// What is wrong with a field of a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// A JSON pointer, empty for the whole.
    pub path: String,
    /// For a reader.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// A component that was checked and compiled. A clone is the same one.
#[derive(Clone)]
pub struct Component {
    inner: Arc<Inner>,
}

struct Inner {
    // Keeps the ticker going.
    engine: Engine,
    digest: Digest,
    world: World,
    imports: Vec<String>,
    description: Description,
    pre: Pre,
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Component")
            .field("name", &self.inner.description.name)
            .field("world", &self.inner.world)
            .field("digest", &self.inner.digest)
            .finish_non_exhaustive()
    }
}

impl Component {
    /// Checks a component, compiles it or takes it compiled from the cache, starts it once and asks what it is. Takes
    /// milliseconds for a rule and seconds for an interpreter: not for a thread that has events to work on.
    ///
    /// # Errors
    /// If the component cannot be used, with what to do about it.
    pub fn load(engine: &Engine, bytes: &[u8], cache: Option<&Cache>) -> Result<Component, LoadError> {
        if bytes.len() > bounds::COMPONENT_BYTES_MAX {
            return Err(LoadError::TooLarge { bytes: bytes.len() });
        }
        let Shape { world, imports } = shape::check(bytes)?;
        let digest = Digest::of(bytes);
        let compile = || {
            wasmtime::component::Component::from_binary(engine.wasmtime(), bytes)
                .map_err(|e| LoadError::Invalid(format!("{e:#}")))
        };
        let compiled = match cache {
            None => compile()?,
            Some(cache) => match cache.get(engine, digest) {
                Some(compiled) => compiled,
                None => {
                    let compiled = compile()?;
                    cache.put(engine, digest, &compiled);
                    compiled
                }
            },
        };
        let pre = prepare(engine, &compiled, world)?;
        let mut live = Live::start(engine, &pre).map_err(LoadError::Start)?;
        let mut describe = || {
            let raw = live.describe().map_err(LoadError::Start)?;
            Ok::<_, LoadError>(Description::check(raw, world)?)
        };
        let description = describe()?;
        // Everything that is made of it, frames above all, takes it to be the same in every instance and for ever.
        if describe()? != description {
            return Err(LoadError::Unsteady);
        }
        Ok(Component {
            inner: Arc::new(Inner { engine: engine.clone(), digest, world, imports, description, pre }),
        })
    }

    /// Of the bytes that it was loaded from.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.inner.digest
    }

    /// Which kind of plugin it is.
    #[must_use]
    pub fn world(&self) -> World {
        self.inner.world
    }

    /// What it imports, all of it from the contract.
    #[must_use]
    pub fn imports(&self) -> &[String] {
        &self.inner.imports
    }

    /// What it says of itself.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.inner.description
    }

    /// Checks a config by giving it to an instance, which then answers an empty frame.
    ///
    /// # Errors
    /// If the plugin refuses it, field by field, or fails.
    pub fn configure(&self, json: &str) -> Result<Plugin, ConfigureError> {
        if json.len() > bounds::CONFIG_BYTES_MAX {
            return Err(ConfigureError::TooLarge { bytes: json.len() });
        }
        match serde_json::from_str(json) {
            Ok(serde_json::Value::Object(_)) => {}
            Ok(_) => return Err(ConfigureError::NotAnObject(None)),
            Err(e) => return Err(ConfigureError::NotAnObject(Some(e.to_string()))),
        }
        let mut live = self.start()?;
        let unread = live.configure(json)?.map_err(ConfigureError::Refused)?;
        self.may_leave(&unread)?;
        live.warm()?;
        Ok(Plugin::new(self.clone(), json, &unread))
    }

    fn may_leave(&self, unread: &[u32]) -> Result<(), ConfigureError> {
        let fields = &self.inner.description.fields;
        let wrong = |place: &u32| match fields.get(*place as usize) {
            None => Some(format!("its field {place}, and declares {}", fields.len())),
            Some(f) if f.required => Some(format!("its field `{}`, which is required", f.name)),
            Some(_) => None,
        };
        unread.iter().find_map(wrong).map_or(Ok(()), |why| Err(ConfigureError::Unread(why)))
    }

    pub(crate) fn start(&self) -> Result<Live, Fault> {
        Live::start(&self.inner.engine, &self.inner.pre)
    }
}

/// Ties the import and checks the types of the exports.
fn prepare(
    engine: &Engine,
    compiled: &wasmtime::component::Component,
    world: World,
) -> Result<Pre, LoadError> {
    let wrong = |e: wasmtime::Error| LoadError::Types { world, why: format!("{e:#}") };
    let mut linker = Linker::<HostState>::new(engine.wasmtime());
    linker
        .instance("tidemill:plugin/host@0.3.0")
        // By hand, not through the bindings: a line that is dropped is not even read from the guest's memory.
        .and_then(|mut host| host.func_wrap("log", take_line))
        .map_err(|e| LoadError::Start(instance::host_fault(&e)))?;
    let pre = linker.instantiate_pre(compiled).map_err(wrong)?;
    Ok(match world {
        World::Validator => Pre::Validator(ValidatorPre::new(pre).map_err(wrong)?),
        World::Sessionizer => Pre::Sessionizer(SessionizerPre::new(pre).map_err(wrong)?),
        World::Enricher => Pre::Enricher(EnricherPre::new(pre).map_err(wrong)?),
    })
}

fn take_line(
    mut store: StoreContextMut<'_, HostState>,
    (level, message): (Level, WasmStr),
) -> wasmtime::Result<()> {
    let level = match level {
        Level::Debug => log::Level::Debug,
        Level::Info => log::Level::Info,
        Level::Warn => log::Level::Warn,
        Level::Error => log::Level::Error,
        Level::Panic => {
            // Not a line: it becomes the fault's message. The first one counts.
            if store.data().panic.is_none() {
                let text = log::cut(&message.to_str(&store)?, bounds::MESSAGE_BYTES_MAX);
                store.data_mut().panic = Some(text);
            }
            return Ok(());
        }
    };
    if store.data_mut().log.admit() {
        let text = log::cut(&message.to_str(&store)?, bounds::LOG_LINE_BYTES_MAX);
        store.data_mut().log.push(level, text);
    }
    Ok(())
}

pub(crate) fn field_errors(errors: Vec<ConfigError>) -> Vec<FieldError> {
    errors
        .into_iter()
        .take(bounds::CONFIG_ERRORS_MAX)
        .map(|e| FieldError {
            path: log::cut(&e.path, bounds::MESSAGE_BYTES_MAX),
            message: log::cut(&e.message, bounds::MESSAGE_BYTES_MAX),
        })
        .collect()
}

impl LoadError {
    /// Whether the machine or this host is to blame, not the component: worth another try.
    #[must_use]
    pub fn is_host(&self) -> bool {
        matches!(self, LoadError::Start(Fault { kind: FaultKind::Host(_), .. }))
    }
}
