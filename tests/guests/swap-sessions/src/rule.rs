//! Silence ends a session; its fields say how many events the rule has seen in it, so that a state that was lost shows.
//!
//! Every version has this rule; what a version remembers of a session, its own crate says as `Seen`.

use crate::Seen;
use tidemill_plugin_sdk::prelude::*;

/// What the rule sees of an event.
#[event]
pub struct Event {
    kind: Text,
}

/// The config.
#[derive(Config)]
pub struct Rules {
    /// Silence that ends a session.
    gap: Duration,
    /// How much it computes at each event, to no end: about a nanosecond each.
    #[config(default = 0)]
    rounds: i64,
}

/// Why a session ends.
#[derive(Reason, Clone, Copy)]
pub enum Why {
    /// Silence.
    Gap,
}

/// The timer.
#[derive(Timer, Clone, Copy)]
pub enum Due {
    /// Silence.
    Gap,
}

/// The rule.
#[derive(Debug)]
pub struct Silence {
    gap: Duration,
    rounds: i64,
}

impl Sessionizer for Silence {
    type Config = Rules;
    type Event = Event;
    type State = Seen;
    type Reason = Why;
    type Timer = Due;
    const REJECTS: bool = false;

    fn configure(rules: Rules) -> Result<Self, Vec<ConfigError>> {
        Ok(Silence { gap: rules.gap, rounds: rules.rounds })
    }

    fn open(&self, _: &mut Context<Self>, _: &Event) -> Seen {
        Seen::default()
    }

    fn on_event(&self, cx: &mut Context<Self>, seen: &mut Seen, event: &Event) -> Decision<Why> {
        (0..self.rounds).for_each(|n| {
            std::hint::black_box(n);
        });
        seen.see(event.kind() == "odd");
        cx.set_timer(Due::Gap, self.gap);
        keep()
    }

    fn on_timer(&self, _: &mut Context<Self>, _: &mut Seen, _: Due) -> Decision<Why> {
        close(Why::Gap)
    }

    fn output(&self, seen: &Seen) -> Fields {
        seen.fields()
    }
}
