//! A session rule: a visit ends after a silence, or with a purchase. Its row says on which page it began, and how many
//! pages were seen.
//!
//! It is a pure function. It sees each user's events once and in order of time, however they came in, and it
//! remembers nothing but its state and its timers: there is no clock, no file, no network.

use tidemill_plugin_sdk::prelude::*;

/// What the rule sees of an event: these fields and its time. Where they are in a record says `[source.x.fields]` of a
/// pipeline. A missing text is "".
#[event]
pub struct Event {
    url: Text,
    kind: Text,
}

/// What stands under `config` in a pipeline. `tidemill check` judges it field by field.
#[derive(Config)]
pub struct Rules {
    /// Silence that ends a visit.
    #[config(default = Duration::minutes(30))]
    gap: Duration,
}

/// What is remembered of an open visit, from event to event.
#[derive(State, Default)]
pub struct Visit {
    entry: String,
    pages: u32,
}

/// Why a visit ends: the column `reason`.
#[derive(Reason, Clone, Copy)]
pub enum Why {
    Silence,
    Purchase,
}

/// What may be waited for.
#[derive(Timer, Clone, Copy)]
pub enum Due {
    Silence,
}

/// The rule with its config.
#[derive(Debug)]
pub struct Visits {
    gap: Duration,
}

impl Sessionizer for Visits {
    type Config = Rules;
    type Event = Event;
    type State = Visit;
    type Reason = Why;
    type Timer = Due;

    fn configure(rules: Rules) -> Result<Self, Vec<ConfigError>> {
        if rules.gap < Duration::seconds(1) {
            return Err(ConfigError::at("/gap", "at least 1s is wanted").into());
        }
        Ok(Visits { gap: rules.gap })
    }

    /// A visit begins. `on_event` sees its first event too, right after.
    fn open(&self, _: &mut Context<Self>, first: &Event) -> Visit {
        Visit { entry: first.url().into(), pages: 0 }
    }

    /// An event of the visit: `keep()` it, or `close(why)` the visit with it, or `split(why)` before it.
    fn on_event(&self, cx: &mut Context<Self>, visit: &mut Visit, event: &Event) -> Decision<Why> {
        visit.pages += 1;
        if event.kind() == "purchase" {
            return close(Why::Purchase);
        }
        // In event time, from this event on; it replaces the timer that the event before has set.
        cx.set_timer(Due::Silence, self.gap);
        keep()
    }

    /// A timer came due before the next event.
    fn on_timer(&self, _: &mut Context<Self>, _: &mut Visit, _: Due) -> Decision<Why> {
        close(Why::Silence)
    }

    /// The column `fields` of the visit's row.
    fn output(&self, visit: &Visit) -> Fields {
        fields! { entry: visit.entry, pages: visit.pages }
    }
}

tidemill_plugin_sdk::export!(sessionizer Visits);
