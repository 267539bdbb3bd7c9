//! Runs the real engine and the real store from a seed, in one thread, on a disk and in a world that fail.
//!
//! Everything that happens is decided by the seed: the same seed does the same and writes the same bytes. A failing seed is one
//! number to try again. What is compared with is a model that sorts and walks (`model`), and what is checked after every
//! step stands in `truth`.

mod counts;
mod disk;
mod model;
mod plan;
pub mod points;
mod process;
mod rule;
mod sim;
mod sink;
mod truth;
mod world;

pub use counts::{Counts, Of};
pub use disk::{Keep, SimDisk, Trouble};
pub use sim::{Failure, Report, run};
