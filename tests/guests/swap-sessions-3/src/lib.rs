//! Version 3 of a rule for tests of swaps: its state has another form, and one that has seen something odd has no place in it.

#[path = "../../swap-sessions/src/rule.rs"]
mod rule;

use tidemill_plugin_sdk::prelude::*;

tidemill_plugin_sdk::export!(sessionizer rule::Silence, "swap-sessions", "3.0.0");

pub use rule::*;

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

impl Seen {
    /// One more event.
    pub fn see(&mut self, odd: bool) {
        self.events += 1;
        self.odd |= odd;
    }

    /// What its row says.
    #[must_use]
    pub fn fields(&self) -> Fields {
        fields! { seen: self.before + self.events, before: self.before }
    }
}
