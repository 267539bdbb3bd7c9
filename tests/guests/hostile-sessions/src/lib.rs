//! Version 1 of a rule that does what a plugin must not, when it is told to.

mod rule;

/// Whether it does as it is told.
const OBEYS: bool = true;

tidemill_plugin_sdk::export!(sessionizer rule::Hostile, "hostile-sessions", "1.0.0");

pub use rule::*;
