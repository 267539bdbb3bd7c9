//! `tidemill`: click streams in, sessions out. Here the rooms are named; what a command does stands in `cli`.

mod cli;
mod clock;
mod config;
mod control;
mod journal;
mod meta;
mod meters;
mod plugin;
mod progress;
mod rows;
mod run;
mod schedule;
mod server;
#[cfg(feature = "services")]
mod snapshot;
mod store;
mod tls;
mod view;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
