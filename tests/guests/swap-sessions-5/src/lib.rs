//! Version 5 of a rule for tests of swaps: its state has lost a field, and its author has forgotten to raise the state's version.

#[path = "../../swap-sessions/src/rule.rs"]
mod rule;

use tidemill_plugin_sdk::prelude::*;

tidemill_plugin_sdk::export!(sessionizer rule::Silence, "swap-sessions", "5.0.0");

pub use rule::*;

/// What is remembered of a session.
#[derive(State, Default)]
pub struct Seen {
    events: u64,
}

impl Seen {
    /// One more event.
    pub fn see(&mut self, _: bool) {
        self.events += 1;
    }

    /// What its row says.
    #[must_use]
    pub fn fields(&self) -> Fields {
        fields! { seen: self.events }
    }
}
