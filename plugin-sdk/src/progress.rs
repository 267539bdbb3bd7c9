//! The progress word: what the plugin is at, for the host to read out of its memory after a trap.

use std::sync::atomic::{AtomicU64, Ordering};
pub(crate) use tidemill_contract::rows::progress::{FRAME, OUTPUT, TIMER};

static WORD: AtomicU64 = AtomicU64::new(0);

/// At this turn (event, session), at this input.
#[inline]
pub(crate) fn at(row: u32, input: u32) {
    // Atomic so that it is really written, and in order; one plain store on wasm32.
    WORD.store(u64::from(row) | u64::from(input) << 32, Ordering::Relaxed);
}

/// Where it is.
#[must_use]
#[doc(hidden)]
pub fn address() -> u32 {
    WORD.as_ptr() as usize as u32
}
