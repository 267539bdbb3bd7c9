//! What a plugin says of itself.

use crate::{Config, Enricher, EventView, Field, Metric, Names, Sessionizer, State, StateForm, Validator};

/// What a plugin says of itself; its name and version are its crate's.
#[derive(Clone, Debug)]
pub struct Description {
    /// Declared fields.
    pub fields: Vec<Field>,
    /// Names of reasons.
    pub reasons: &'static [&'static str],
    /// Names of timers.
    pub timers: &'static [&'static str],
    /// Metrics of its own.
    pub metrics: &'static [Metric],
    /// Names of lookups.
    pub lookups: &'static [&'static str],
    /// A JSON Schema of its config.
    pub config_schema: String,
    /// The form of its state; session rules only.
    pub state: Option<StateSchema>,
}

/// The form of a rule's state, and those that it can migrate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateSchema {
    /// As it is now.
    pub present: StateForm,
    /// Older forms.
    pub migrates_from: Vec<StateForm>,
}

/// Where the fields stand that a plugin does not read.
///
/// # Panics
/// If one is not declared, or required.
#[track_caller]
pub(crate) fn places(unread: &[&str], fields: &[Field]) -> Vec<u32> {
    let place = |name: &&str| match fields.iter().position(|f| f.name == *name) {
        Some(n) if !fields[n].required => n as u32,
        Some(_) => crate::broken(format_args!("`unread` names `{name}`, which is required")),
        None => crate::broken(format_args!("`unread` names `{name}`, which is not declared")),
    };
    unread.iter().map(place).collect()
}

impl Description {
    /// Of a session rule.
    #[must_use]
    pub fn of_sessionizer<R: Sessionizer>() -> Description {
        Description {
            fields: R::Event::FIELDS.to_vec(),
            reasons: R::Reason::NAMES,
            timers: R::Timer::NAMES,
            metrics: R::METRICS,
            lookups: &[],
            config_schema: R::Config::schema().to_string(),
            state: Some(StateSchema { present: R::State::form(), migrates_from: R::State::migrates_from() }),
        }
    }
    /// Of a validator.
    #[must_use]
    pub fn of_validator<V: Validator>() -> Description {
        Description {
            fields: V::Event::FIELDS.to_vec(),
            reasons: V::Reason::NAMES,
            timers: &[],
            metrics: V::METRICS,
            lookups: &[],
            config_schema: V::Config::schema().to_string(),
            state: None,
        }
    }
    /// Of an enricher.
    #[must_use]
    pub fn of_enricher<E: Enricher>() -> Description {
        Description {
            fields: Vec::new(),
            reasons: E::Reason::NAMES,
            timers: &[],
            metrics: E::METRICS,
            lookups: E::Lookup::NAMES,
            config_schema: E::Config::schema().to_string(),
            state: None,
        }
    }
}
