//! What versions 1 and 2 remember of a session.

use tidemill_plugin_sdk::prelude::*;

/// See the module's documentation.
#[derive(State, Default)]
pub struct Seen {
    events: u64,
    /// One of them was of kind `odd`.
    odd: bool,
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
        fields! { seen: self.events }
    }
}
