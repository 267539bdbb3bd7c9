//! `tidemill`: click streams in, sessions out. Here the rooms are named; what a command does stands in `cli`.

mod cli;
mod clock;
mod config;
#[allow(dead_code, reason = "the admin API, which comes next, asks for it")]
mod control;
mod meta;
mod meters;
#[allow(dead_code, reason = "see `control`")]
mod plugin;
#[allow(dead_code, reason = "see `control`")]
mod plugins;
mod progress;
mod rows;
mod run;
#[allow(dead_code, reason = "see `control`")]
mod schedule;
mod server;
mod store;
mod tls;
mod view;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
