//! `plugin test`: the scenarios of a crate, first natively, then what they asked on the component.
//!
//! Natively a scenario is quick and can be debugged; what runs in a pipeline is the component. So every question that a
//! scenario asks is written down (`TIDEMILL_RECORD`, see the SDK) and asked again there, and the answers must be the same to
//! the byte.

mod recording;
mod replay;
mod samples;
mod show;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use tidemill_sandbox::Component;

use self::recording::{Call, Native, Recording};
use super::super::out::{self, BOLD, Failure};
use super::super::text;
use super::project::Project;
use super::{component, describe};

const EXAMPLES: &str = "\
Examples:
  tidemill plugin test                     the scenarios of the crate in this folder
  tidemill plugin test plugins/checkout    of another one

Exit code 3 if a scenario fails, or the component answers otherwise than the crate did.";

/// Differences that are shown; the rest is counted.
const SHOWN_MAX: usize = 5;

/// Run a plugin's scenarios, natively and on its component
///
/// Runs `cargo test`, builds the component, and asks it all that the scenarios have asked: it must answer the same, in
/// whatever order it is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct TestArgs {
    /// The folder of the plugin's crate
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs the command.
pub(super) fn execute(args: &TestArgs) -> Result<u8, Failure> {
    let project = Project::find(&args.dir)?;
    let begun = Instant::now();
    let recorded = tempfile::tempdir()?;
    if !project.test(recorded.path())? {
        return Err(Failure::new(3, format!("the scenarios of {} fail natively", project.name), None));
    }
    let recording = Recording::read(recorded.path()).map_err(|e| Failure::new(1, e, None))?;
    let natively = begun.elapsed();
    let module = project.module()?;
    let core = std::fs::read(&module)
        .map_err(|e| Failure::new(1, format!("{} cannot be read: {e}", module.display()), None))?;
    let bytes = component::make(&core)?;
    let component = component::load(&component::engine()?, &bytes, &module)?;
    let built = begun.elapsed();
    let plugin = tested(&recording, &component)?;
    let calls: Vec<&Call> = recording.calls.iter().filter(|c| c.plugin == plugin.name).collect();
    let replayed = replay::all(&component, &calls).map_err(|f| Failure::new(1, f.to_string(), None))?;
    if !replayed.differences.is_empty() {
        return Err(different(&project, &replayed.differences));
    }
    let scenarios = calls.iter().map(|c| c.test.as_str()).collect::<BTreeSet<_>>().len();
    let times = [natively, built.saturating_sub(natively), begun.elapsed().saturating_sub(built)];
    let [test_ms, build_ms, replay_ms] =
        times.map(|t: Duration| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
    let (d, digest) = (component.description(), component.digest().to_string());
    if args.json {
        out::print_json(&json!({
            "name": d.name, "version": d.version, "world": component.world().name(), "bytes": bytes.len(),
            "digest": digest, "scenarios": scenarios, "configs": replayed.configs, "calls": replayed.calls,
            "test_ms": test_ms, "build_ms": build_ms, "replay_ms": replay_ms, "exit_code": 0,
        }))?;
        return Ok(0);
    }
    let mut stdout = out::stdout();
    let count = |n: usize, one| text::counted(n as u64, one);
    writeln!(stdout, "{BOLD}{}@{}{BOLD:#}: the component does as its scenarios say", d.name, d.version)?;
    writeln!(stdout, "  scenarios  {}", count(scenarios, "test"))?;
    writeln!(
        stdout,
        "  replayed   {}, {}",
        count(replayed.calls, "call"),
        count(replayed.configs, "config")
    )?;
    writeln!(stdout, "  size       {} bytes", text::count(bytes.len() as u64))?;
    writeln!(stdout, "  digest     {digest}")?;
    let [test, build, replay] = [test_ms, build_ms, replay_ms].map(text::duration);
    writeln!(stdout, "  time       {test} natively, {build} to build, {replay} on the component")?;
    stdout.flush()?;
    Ok(0)
}

/// The native plugin that the component is made of.
fn tested<'a>(recording: &'a Recording, component: &Component) -> Result<&'a Native, Failure> {
    let (world, d) = (component.world().name(), component.description());
    let describes = describe::to_json(d);
    let is_it = |p: &&Native| p.world == world && p.describes == describes;
    match recording.plugins.as_slice() {
        [] => Err(Failure::new(
            3,
            "no scenario has asked the plugin anything",
            "write tests with `tidemill_plugin_sdk::scenario`; `tidemill plugin new` makes examples"
                .to_owned(),
        )),
        [only] if !is_it(&only) => {
            let pretty = |v: &serde_json::Value| serde_json::to_string_pretty(v).unwrap_or_default();
            let (natively, component) = (
                format!("{}\n{}\n", only.world, pretty(&only.describes)),
                format!("{world}\n{}\n", pretty(&describes)),
            );
            let diff = similar::TextDiff::from_lines(&natively, &component).unified_diff().to_string();
            Err(Failure::new(
                3,
                format!("the component describes itself otherwise than {} natively\n{diff}", only.name),
                None,
            ))
        }
        several => several.iter().find(is_it).ok_or_else(|| {
            let names: Vec<&str> = several.iter().map(|p| p.name.as_str()).collect();
            let message =
                format!("none of the tested {} is what the component says of itself", names.join(", "));
            Failure::new(3, message, "one of them must be the one that `export!` names".to_owned())
        }),
    }
}

fn different(project: &Project, differences: &[String]) -> Failure {
    let shown: Vec<&str> = differences.iter().take(SHOWN_MAX).map(|d| d.trim_end()).collect();
    let more = differences.len().saturating_sub(SHOWN_MAX);
    let more = if more == 0 { String::new() } else { format!("\n\nand {more} more") };
    let n = text::counted(differences.len() as u64, "difference");
    Failure::new(
        3,
        format!("{}: {n} between the crate and its component\n\n{}{more}", project.name, shown.join("\n\n")),
        "- is what the crate answered natively, + what the component does".to_owned(),
    )
}
