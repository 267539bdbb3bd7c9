//! Loads, checks, limits and calls plugins: WebAssembly components in wasmtime. Knows the WIT types and the words of
//! frames, and nothing of sessions.
//!
//! [`Engine`] holds the settings and the ticker for deadlines. [`Component::load`] checks and compiles what a user
//! gave and asks what it is ([`Description`]). [`Component::configure`] checks a config and gives a [`Plugin`]; each
//! lane makes an [`Instance`] of it, and calls that. A call that goes wrong gives a [`Fault`]: the guest's doing,
//! never the end of the process.
//!
//! Whose fault: a component that cannot be used is a [`LoadError`], a config that it refuses a [`ConfigureError`],
//! a call that failed a [`Fault`]; what the machine or this host lacks is [`EngineError`] or [`FaultKind::Host`].

mod bindings;
pub mod bounds;
mod compiled;
mod component;
mod describe;
mod engine;
mod fault;
mod file;
mod instance;
mod log;
mod shape;

pub use compiled::Cache;
pub use component::{Component, ConfigureError, Digest, FieldError, LoadError};
pub use describe::{
    Description, DescriptionError, Field, FieldType, Metric, MetricKind, StateForm, StateSchema,
};
pub use engine::{Engine, EngineError};
pub use fault::{Fault, FaultKind, Malformed, Progress, TrapKind};
pub use file::read;
pub use instance::{Call, Instance, Plugin, Stats};
pub use log::{Level, Log, LogLine, remark};
pub use shape::{World, WrongShape};
