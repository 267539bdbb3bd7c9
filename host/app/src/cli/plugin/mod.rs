//! `plugin`: what the author of a plugin needs from here. One file a command; `project` knows cargo, `component` makes of
//! what cargo built something that the host takes.

mod build;
mod component;
mod describe;
mod inspect;
mod new;
mod project;
mod test;

use super::out::Failure;
use clap::Subcommand;

const EXAMPLES: &str = "\
Examples:
  tidemill plugin new visits --kind sessionizer  begin a plugin of your own
  tidemill plugin test                         run its scenarios, natively and on the component
  tidemill plugin build                        make a component of the crate in this folder
  tidemill plugin inspect checkout.wasm        what a component is and wants
  tidemill plugin build plugins/checkout --out checkout.wasm";

/// Make, test, build and look at the plugins that a pipeline runs
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub(super) struct PluginArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    New(new::NewArgs),
    Test(test::TestArgs),
    Build(build::BuildArgs),
    Inspect(inspect::InspectArgs),
}

impl PluginArgs {
    pub(super) fn tells_errors_as_json(&self) -> bool {
        match &self.command {
            Command::New(a) => a.json,
            Command::Test(a) => a.json,
            Command::Build(a) => a.json,
            Command::Inspect(a) => a.json,
        }
    }
}

/// Runs the command.
pub(super) fn execute(args: &PluginArgs) -> Result<u8, Failure> {
    match &args.command {
        Command::New(a) => new::execute(a),
        Command::Test(a) => test::execute(a),
        Command::Build(a) => build::execute(a),
        Command::Inspect(a) => inspect::execute(a),
    }
}
