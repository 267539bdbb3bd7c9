//! The plugin as a component: the worlds' bindings, and what the exports do. Only on wasm32.
//!
//! The bindings are made here, once; `export!` makes the exports in the plugin's crate, so that a plugin carries the
//! description of its own world alone.
#![allow(missing_docs, unsafe_code, reason = "generated bindings")]
#![allow(clippy::all, clippy::allow_attributes_without_reason, reason = "generated bindings")]

use crate::describe::{Description, places};
use crate::{
    Config, ConfigError, Desk, Enricher, EventView, FieldType, Folder, Judge, Sessionizer, Validator,
};
use std::cell::RefCell;

pub mod sessionizer {
    wit_bindgen::generate!({
        path: "../wit",
        world: "sessionizer",
        pub_export_macro: true,
        export_macro_name: "export_sessionizer",
    });
}
pub mod validator {
    wit_bindgen::generate!({
        path: "../wit",
        world: "validator",
        pub_export_macro: true,
        export_macro_name: "export_validator",
        with: {
            "tidemill:plugin/host@0.3.0": super::sessionizer::tidemill::plugin::host,
            "tidemill:plugin/types@0.3.0": super::sessionizer::tidemill::plugin::types,
        },
    });
}
pub mod enricher {
    wit_bindgen::generate!({
        path: "../wit",
        world: "enricher",
        pub_export_macro: true,
        export_macro_name: "export_enricher",
        with: {
            "tidemill:plugin/host@0.3.0": super::sessionizer::tidemill::plugin::host,
            "tidemill:plugin/types@0.3.0": super::sessionizer::tidemill::plugin::types,
        },
    });
}

use sessionizer::tidemill::plugin::{host, types};

pub fn log(level: crate::Level, message: &str) {
    let level = match level {
        crate::Level::Debug => host::Level::Debug,
        crate::Level::Info => host::Level::Info,
        crate::Level::Warn => host::Level::Warn,
        crate::Level::Error => host::Level::Error,
    };
    host::log(level, message);
}

/// The plugin of this instance, once it is configured.
pub struct Slot<P>(RefCell<Option<P>>);

impl<P> Slot<P> {
    pub const fn new() -> Self {
        Slot(RefCell::new(None))
    }
    fn with<T>(&self, call: impl FnOnce(&mut P) -> Result<T, String>) -> Result<T, String> {
        match self.0.borrow_mut().as_mut() {
            Some(p) => call(p),
            None => Err("the plugin is called before `configure`".into()),
        }
    }
    fn put(&self, made: Result<P, Vec<ConfigError>>) -> Result<(), Vec<types::ConfigError>> {
        match made {
            Ok(p) => {
                *self.0.borrow_mut() = Some(p);
                Ok(())
            }
            Err(errors) => Err(errors
                .into_iter()
                .map(|e| types::ConfigError { path: e.path, message: e.message })
                .collect()),
        }
    }
}

fn hook() {
    std::panic::set_hook(Box::new(|info| {
        let message = match (info.payload().downcast_ref::<&str>(), info.payload().downcast_ref::<String>()) {
            (Some(s), _) => s,
            (_, Some(s)) => s.as_str(),
            _ => "a panic",
        };
        let at = info.location().map_or((" somewhere", 0), |l| (l.file(), l.line()));
        host::log(host::Level::Panic, &format!("{message} at {}:{}", at.0, at.1));
    }));
}

pub fn description(d: Description, name: &str, version: &str) -> types::Description {
    hook();
    let form = |f: crate::StateForm| types::StateForm { version: f.version, shape: f.shape };
    let names = |list: &[&str]| list.iter().map(|s| String::from(*s)).collect();
    types::Description {
        name: name.into(),
        version: version.into(),
        frame_version: u32::from(tidemill_contract::FRAME_VERSION),
        fields: d
            .fields
            .iter()
            .map(|f| types::Field {
                name: f.name.into(),
                type_: match f.field_type {
                    FieldType::Text => types::FieldType::Text,
                    FieldType::String => types::FieldType::String,
                    FieldType::Integer => types::FieldType::Integer,
                    FieldType::Number => types::FieldType::Number,
                    FieldType::Boolean => types::FieldType::Boolean,
                },
                required: f.required,
                symbols: names(f.symbols),
            })
            .collect(),
        reasons: names(d.reasons),
        timers: names(d.timers),
        metrics: d
            .metrics
            .iter()
            .map(|m| types::Metric {
                name: m.name.into(),
                kind: if m.buckets.is_some() {
                    types::MetricKind::Histogram
                } else {
                    types::MetricKind::Counter
                },
                help: m.help.into(),
                buckets: m.buckets.unwrap_or(&[]).to_vec(),
            })
            .collect(),
        lookups: names(d.lookups),
        config_schema: d.config_schema,
        state: d.state.map(|s| types::StateSchema {
            present: form(s.present),
            migrates_from: s.migrates_from.into_iter().map(form).collect(),
        }),
    }
}

fn read<C: Config>(config: &str) -> Result<C, Vec<ConfigError>> {
    hook();
    crate::config::read(config)
}

impl<R: Sessionizer> Slot<Folder<R>> {
    pub fn configure(&self, config: &str) -> Result<Vec<u32>, Vec<types::ConfigError>> {
        let rule = read(config).and_then(R::configure);
        let unread = rule.as_ref().map_or(Vec::new(), |r| places(&r.unread(), R::Event::FIELDS));
        self.put(rule.map(Folder::new)).map(|()| unread)
    }
    pub fn fold(&self, turns: Vec<u64>) -> Result<Vec<u64>, String> {
        self.with(|f| f.fold(turns))
    }
}
impl<V: Validator> Slot<Judge<V>> {
    pub fn configure(&self, config: &str) -> Result<Vec<u32>, Vec<types::ConfigError>> {
        let validator = read(config).and_then(V::configure);
        let unread = validator.as_ref().map_or(Vec::new(), |v| places(&v.unread(), V::Event::FIELDS));
        self.put(validator.map(Judge::new)).map(|()| unread)
    }
    pub fn validate(&self, events: Vec<u64>) -> Result<Vec<u64>, String> {
        self.with(|j| j.validate(events))
    }
}
impl<E: Enricher> Slot<Desk<E>> {
    pub fn configure(&self, config: &str) -> Result<(), Vec<types::ConfigError>> {
        self.put(read(config).and_then(E::configure).map(Desk::new))
    }
    pub fn requests(&self, sessions: Vec<u64>) -> Result<Vec<u64>, String> {
        self.with(|d| d.requests(sessions))
    }
    pub fn apply(&self, sessions: Vec<u64>) -> Result<Vec<u64>, String> {
        self.with(|d| d.apply(sessions))
    }
}
