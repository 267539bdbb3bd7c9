//! Rejects page events that cannot be right: no user, an unknown type, an address that is none, a time out of range.

use tidemill_plugin_sdk::prelude::*;

/// What is looked at. What is required or has a type is checked by the host before.
#[event]
pub struct Event {
    r#type: Text,
    url: Text,
    user: Text,
}

/// The config.
#[derive(Config)]
pub struct Rules {
    /// Fields that must be there: `type`, `url`, `user`.
    #[config(default = vec![Name::Type, Name::Url])]
    required: Vec<Name>,
    /// The types that are taken; none: all.
    #[config(default = Vec::new())]
    types: Vec<String>,
    /// The earliest time that is taken, in ms since 1970.
    min_time: Option<i64>,
    /// The latest time that is taken, in ms since 1970.
    max_time: Option<i64>,
}

/// A field.
#[derive(Config, Debug, Clone, Copy)]
pub enum Name {
    /// `type`.
    Type,
    /// `url`.
    Url,
    /// `user`.
    User,
}

/// Why an event is rejected.
#[derive(Reason, Clone, Copy)]
pub enum Why {
    /// A field is missing.
    MissingField,
    /// A type that is not taken.
    UnknownType,
    /// An address that is none.
    BadUrl,
    /// Before or after what is taken.
    TimeRange,
}

/// The validator.
#[derive(Debug)]
pub struct Checks {
    required: Vec<Name>,
    types: Vec<String>,
    from: Time,
    to: Time,
}

impl Validator for Checks {
    type Config = Rules;
    type Event = Event;
    type Reason = Why;

    fn configure(rules: Rules) -> Result<Self, Vec<ConfigError>> {
        let from = Time::from_millis(rules.min_time.unwrap_or(i64::MIN));
        let to = Time::from_millis(rules.max_time.unwrap_or(i64::MAX));
        if from > to {
            return Err(ConfigError::at("/max_time", "it is before min_time").into());
        }
        Ok(Checks { required: rules.required, types: rules.types, from, to })
    }

    fn check(&self, _: &mut Judging<Self>, event: &Event) -> Result<(), Rejected<Why>> {
        for name in &self.required {
            let (text, name) = match name {
                Name::Type => (event.r#type(), "type"),
                Name::Url => (event.url(), "url"),
                Name::User => (event.user(), "user"),
            };
            ensure(!text.is_empty(), Why::MissingField, || format!("`{name}` is missing"))?;
        }
        let known = self.types.is_empty()
            || event.r#type().is_empty()
            || self.types.iter().any(|t| t == event.r#type());
        ensure(known, Why::UnknownType, || format!("the type is {:?}", event.r#type()))?;
        ensure(event.url().is_empty() || is_address(event.url()), Why::BadUrl, || {
            format!("{:?} is no address", event.url())
        })?;
        ensure((self.from..=self.to).contains(&event.time()), Why::TimeRange, || {
            format!("{} ms is not from {} to {}", event.time().millis(), self.from.millis(), self.to.millis())
        })
    }
}

/// A path, or http(s) with a host; nothing that is invisible.
fn is_address(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let shape = match rest {
        Some(rest) => !rest.is_empty() && !rest.starts_with(['/', '?', '#']),
        None => url.starts_with('/'),
    };
    shape && !url.chars().any(|c| c.is_whitespace() || c.is_control())
}

tidemill_plugin_sdk::export!(validator Checks);
