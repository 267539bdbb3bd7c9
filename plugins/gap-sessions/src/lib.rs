//! A session ends when its key is silent for a while: `builtin:gap` as a plugin, with the same config and reasons.
//!
//! What a plugin declares cannot depend on its config, so there is one field, `type`, for both `start` and `end`;
//! `[source.x.fields]` says where it is in a record. The types that most sites send are its symbols: the host passes them
//! as a number, any other as text, and the rule reads both alike. Its state is empty: bounds and timers say all.

use tidemill_plugin_sdk::prelude::*;

/// What the rule sees of an event.
#[event]
pub struct Event {
    #[symbols("page_view", "click", "scroll", "search", "login", "add_to_cart", "checkout", "purchase")]
    r#type: Text,
}

/// Silence, and what else ends a session.
#[derive(Config)]
pub struct Rules {
    /// Silence that ends a session.
    gap: Duration,
    /// Whether an event exactly one gap after the last begins a new session.
    #[config(default = Boundary::Exclusive)]
    boundary: Boundary,
    /// Longest a session may last.
    max: Option<Duration>,
    /// Events that always begin a session.
    start: Option<Match>,
    /// Events that are always the last of theirs.
    end: Option<Match>,
}

/// Whether an event exactly one gap after the last belongs to the session.
#[derive(Config, PartialEq, Eq)]
pub enum Boundary {
    /// It begins a new one.
    Exclusive,
    /// It stays.
    Inclusive,
}

/// An event whose field has one of these values.
#[derive(Config)]
pub struct Match {
    /// The field; only `type` is declared.
    field: String,
    /// The values.
    r#in: Vec<String>,
}

/// Why a session ends.
#[derive(Reason, Clone, Copy)]
pub enum Why {
    /// Silence.
    Gap,
    /// It lasted long enough.
    Max,
    /// Another begins.
    Start,
    /// Its last event.
    End,
}

/// The timers.
#[derive(Timer, Clone, Copy)]
pub enum Due {
    /// Silence.
    Gap,
    /// The longest that it may last.
    Max,
}

/// The rule.
#[derive(Debug)]
pub struct Gap {
    silence: Duration,
    max: Option<Duration>,
    start: Vec<String>,
    end: Vec<String>,
}

impl Sessionizer for Gap {
    type Config = Rules;
    type Event = Event;
    type State = ();
    type Reason = Why;
    type Timer = Due;
    const REJECTS: bool = false;

    fn configure(rules: Rules) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let ms = Duration::from_millis(1);
        for (path, length) in [("/gap", Some(rules.gap)), ("/max", rules.max)] {
            if length.is_some_and(|l| l < ms) {
                errors.push(ConfigError::at(path, "at least 1ms is wanted"));
            }
        }
        let mut values = |of: Option<Match>, path: &str| match of {
            Some(m) if m.field != "type" => {
                let message = format!(
                    "this plugin declares the field `type` alone; map it in the source: type = {:?}",
                    m.field
                );
                errors.push(ConfigError::at(path, message));
                Vec::new()
            }
            m => m.map_or(Vec::new(), |m| m.r#in),
        };
        let start = values(rules.start, "/start/field");
        let end = values(rules.end, "/end/field");
        // A timer fires before any event at or after its time, so one more millisecond keeps an event on the boundary in.
        let more = i64::from(rules.boundary == Boundary::Inclusive);
        let silence = Duration::from_millis(rules.gap.millis().saturating_add(more));
        if errors.is_empty() { Ok(Gap { silence, max: rules.max, start, end }) } else { Err(errors) }
    }

    fn unread(&self) -> Vec<&'static str> {
        if self.start.is_empty() && self.end.is_empty() { vec!["type"] } else { Vec::new() }
    }

    fn open(&self, cx: &mut Context<Self>, _: &Event) {
        if let Some(max) = self.max {
            cx.set_timer(Due::Max, max);
        }
    }

    fn on_event(&self, cx: &mut Context<Self>, (): &mut (), event: &Event) -> Decision<Why> {
        if !cx.is_first() && is_one_of(event, &self.start) {
            return split(Why::Start);
        }
        if is_one_of(event, &self.end) {
            return close(Why::End);
        }
        cx.set_timer(Due::Gap, self.silence);
        keep()
    }

    fn on_timer(&self, _: &mut Context<Self>, (): &mut (), due: Due) -> Decision<Why> {
        close(match due {
            Due::Gap => Why::Gap,
            Due::Max => Why::Max,
        })
    }
}

/// A missing field is none of them.
fn is_one_of(event: &Event, values: &[String]) -> bool {
    !values.is_empty() && values.iter().any(|v| v == event.r#type() && !v.is_empty())
}

tidemill_plugin_sdk::export!(sessionizer Gap);
