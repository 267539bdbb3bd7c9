//! The contract between the Tidemill host and its plugins.
//!
//! [`WIT`] is the package with one world per kind of plugin. The calls that carry many rows pass *frames*, flat
//! little-endian blocks of 64-bit words that are read in place; [`frame`] reads and writes them, [`rows`] fixes the layout
//! of every row. `README.md` has the same in prose, with test vectors and the rules of what may change.

#[cfg(target_endian = "big")]
compile_error!("frames are read in place and are little-endian");

pub mod cell;
pub mod frame;
pub mod rows;

/// The WIT package `tidemill:plugin`.
pub const WIT: &str = include_str!("../tidemill.wit");

/// The version of the layout of all frames. Any change of [`rows`], [`cell`] or the header changes it.
pub const FRAME_VERSION: u16 = 2;
