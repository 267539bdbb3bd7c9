//! `plugin build`: a crate into a component, by cargo and nothing else that the author must install.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use tidemill_sandbox::{Component, Engine};

use super::super::out::{self, BOLD, Failure};
use super::component;
use super::project::Project;

const EXAMPLES: &str = "\
Examples:
  tidemill plugin build                                       the crate in this folder
  tidemill plugin build plugins/checkout --out checkout.wasm  another one, to a place of your choice
  tidemill plugin build --json | jq -r .path                  for scripts

It goes to plugins/NAME.wasm in cargo's target folder if you do not say where. A workspace with a profile `plugin` of its
own is built with that.";

/// Make a component of a plugin's crate
///
/// Compiles the crate with cargo, makes a component of it, and loads that as `run` would, so that what is built is also
/// taken.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BuildArgs {
    /// The folder of the plugin's crate
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Where the component goes
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// A component that was built and that the host takes.
pub(super) struct Built {
    pub(super) component: Component,
    bytes: usize,
}

/// Builds a crate's component and puts it there.
///
/// # Errors
/// If it does not compile, or is no plugin.
pub(super) fn build(project: &Project, engine: &Engine, to: &Path) -> Result<Built, Failure> {
    let module = project.module()?;
    let core = std::fs::read(&module)
        .map_err(|e| Failure::new(1, format!("{} cannot be read: {e}", module.display()), None))?;
    let bytes = component::make(&core)?;
    let component = component::load(engine, &bytes, &module)?;
    component::write(to, &bytes)?;
    Ok(Built { component, bytes: bytes.len() })
}

/// Runs the command.
pub(super) fn execute(args: &BuildArgs) -> Result<u8, Failure> {
    let project = Project::find(&args.dir)?;
    let to = args.out.clone().unwrap_or_else(|| project.default_component());
    let built = build(&project, &component::engine()?, &to)?;
    let (d, world) = (built.component.description(), built.component.world());
    let (digest, imports) = (built.component.digest().to_string(), built.component.imports());
    if args.json {
        out::print_json(&json!({
            "path": to, "bytes": built.bytes, "digest": digest, "world": world.name(), "name": d.name,
            "version": d.version, "imports": imports, "exit_code": 0,
        }))?;
        return Ok(0);
    }
    let mut stdout = out::stdout();
    writeln!(stdout, "{BOLD}{}{BOLD:#}", to.display())?;
    writeln!(stdout, "  plugin   {}@{}, a {world}", d.name, d.version)?;
    writeln!(stdout, "  size     {} bytes", super::super::text::count(built.bytes as u64))?;
    writeln!(stdout, "  digest   {digest}")?;
    writeln!(stdout, "  imports  {}", imports.join(", "))?;
    stdout.flush()?;
    Ok(0)
}
