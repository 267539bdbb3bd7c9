//! Version 2 of the rule that does what a plugin must not: mended, whatever it is told.

#[path = "../../hostile-sessions/src/rule.rs"]
mod rule;

/// Whether it does as it is told.
const OBEYS: bool = false;

tidemill_plugin_sdk::export!(sessionizer rule::Hostile, "hostile-sessions", "2.0.0");

pub use rule::*;
