//! Version 3 of a rule for tests of swaps: its state has another form, and one that has seen something odd has no place in it.

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
}

/// What versions 1 and 2 remember.
#[derive(State, Default)]
pub struct SeenBefore {
    events: u64,
    odd: bool,
}

/// What is remembered of a session.
#[derive(State, Default)]
#[state(version = 2, from = SeenBefore)]
pub struct Seen {
    /// Those that an earlier version saw.
    before: u64,
    /// The others.
    events: u64,
    odd: bool,
}

impl From<SeenBefore> for Seen {
    #[allow(clippy::panic, reason = "how a migration fails")]
    fn from(old: SeenBefore) -> Seen {
        if old.odd {
            panic!("a session with something odd in it has no place in version 3");
        }
        Seen { before: old.events, events: 0, odd: false }
    }
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
}

impl Sessionizer for Silence {
    type Config = Rules;
    type Event = Event;
    type State = Seen;
    type Reason = Why;
    type Timer = Due;
    const REJECTS: bool = false;

    fn configure(rules: Rules) -> Result<Self, Vec<ConfigError>> {
        Ok(Silence { gap: rules.gap })
    }

    fn open(&self, _: &mut Context<Self>, _: &Event) -> Seen {
        Seen::default()
    }

    fn on_event(&self, cx: &mut Context<Self>, seen: &mut Seen, event: &Event) -> Decision<Why> {
        seen.events += 1;
        seen.odd |= event.kind() == "odd";
        cx.set_timer(Due::Gap, self.gap);
        keep()
    }

    fn on_timer(&self, _: &mut Context<Self>, _: &mut Seen, _: Due) -> Decision<Why> {
        close(Why::Gap)
    }

    fn output(&self, seen: &Seen) -> Fields {
        fields! { seen: seen.before + seen.events, before: seen.before }
    }
}

tidemill_plugin_sdk::export!(sessionizer Silence, "swap-sessions", "3.0.0");
