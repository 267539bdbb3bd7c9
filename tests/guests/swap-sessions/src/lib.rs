//! Version 1 of a rule for tests of swaps.

mod rule;
mod seen;

tidemill_plugin_sdk::export!(sessionizer rule::Silence, "swap-sessions", "1.0.0");

pub use rule::*;
pub use seen::Seen;
