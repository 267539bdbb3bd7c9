//! Version 2 of a rule for tests of swaps: the same source, so that a swap to it changes nothing but the version.

#[path = "../../swap-sessions/src/rule.rs"]
mod rule;
#[path = "../../swap-sessions/src/seen.rs"]
mod seen;

tidemill_plugin_sdk::export!(sessionizer rule::Silence, "swap-sessions", "2.0.0");

pub use rule::*;
pub use seen::Seen;
