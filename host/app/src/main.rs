//! `tidemill`: click streams in, sessions out. Here the rooms are named; what a command does stands in `cli`.

mod cli;
mod clock;
mod config;
mod plugin;
mod progress;
mod run;
mod server;
mod store;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
