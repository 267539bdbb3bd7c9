//! `plugin inspect`: what a component is and wants, before it is used.

use std::io::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};
use tidemill_contract::FRAME_VERSION;
use tidemill_sandbox::{Component, Description, MetricKind, StateForm, bounds};

use super::super::out::{self, BOLD, Failure};
use super::super::sessions::plain_table;
use super::super::text;
use super::{component, describe};
use crate::plugin::CALL_DEADLINE;

const EXAMPLES: &str = "\
Examples:
  tidemill plugin inspect checkout.wasm                            what it is, sees, says and may cost
  tidemill plugin inspect checkout.wasm --json | jq .config_schema";

/// Of what a state is made of; all of it is in the JSON.
const SHAPE_SHOWN_BYTES: usize = 400;

/// Show what a component says of itself
///
/// Loads it as `run` would, and asks it. Nothing of it is called with events.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct InspectArgs {
    /// The component
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs the command.
pub(super) fn execute(args: &InspectArgs) -> Result<u8, Failure> {
    let bytes = tidemill_sandbox::read(&args.file)
        .map_err(|e| Failure::new(4, format!("{} cannot be read: {e}", args.file.display()), None))?;
    let component = component::load(&component::engine()?, &bytes, &args.file)?;
    if args.json {
        out::print_json(&for_programs(args, &component, bytes.len()))?;
        return Ok(0);
    }
    let d = component.description();
    let mut stdout = out::stdout();
    writeln!(stdout, "{BOLD}{}{BOLD:#}", args.file.display())?;
    writeln!(stdout, "  plugin   {}@{}, world {}", d.name, d.version, component.world())?;
    writeln!(stdout, "  size     {} bytes", text::count(bytes.len() as u64))?;
    writeln!(stdout, "  digest   {}", component.digest())?;
    writeln!(stdout, "  imports  {}", component.imports().join(", "))?;
    writeln!(stdout, "  frames   version {FRAME_VERSION}")?;
    for (name, words) in lines(d) {
        writeln!(stdout, "  {name:8} {words}")?;
    }
    if !d.fields.is_empty() {
        writeln!(stdout, "\n{BOLD}fields{BOLD:#}")?;
        writeln!(stdout, "{}", fields(d))?;
    }
    if !d.metrics.is_empty() {
        writeln!(stdout, "\n{BOLD}metrics{BOLD:#}")?;
        writeln!(stdout, "{}", metrics(d))?;
    }
    let schema: Value = serde_json::from_str(&d.config_schema).unwrap_or_default();
    let schema = serde_json::to_string_pretty(&schema).map_err(std::io::Error::from)?;
    writeln!(stdout, "\n{BOLD}config{BOLD:#} (JSON Schema)\n{schema}\n\n{BOLD}limits{BOLD:#}")?;
    for (what, limit) in limits() {
        writeln!(stdout, "  {what:22} {limit}")?;
    }
    stdout.flush()?;
    Ok(0)
}

/// What is said in one line each, and only if there is something to say.
fn lines(d: &Description) -> Vec<(&'static str, String)> {
    let mut lines: Vec<(&str, String)> =
        [("reasons", &d.reasons), ("timers", &d.timers), ("lookups", &d.lookups)]
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| (what, names.join(", ")))
            .collect();
    if let Some(state) = &d.state {
        let shape = |f: &StateForm| match f.shape.as_str() {
            "" => String::new(),
            shape => format!(": {}", text::foreign(shape, SHAPE_SHOWN_BYTES)),
        };
        lines.push(("state", format!("version {}{}", state.present.version, shape(&state.present))));
        for from in &state.migrates_from {
            lines.push(("", format!("migrates from version {}{}", from.version, shape(from))));
        }
    }
    lines
}

fn fields(d: &Description) -> comfy_table::Table {
    let mut table = plain_table(&["name", "type", "", "symbols"]);
    for f in &d.fields {
        let required = if f.required { "required" } else { "" };
        table.add_row([&f.name, describe::field_type(f.field_type), required, &f.symbols.join(", ")]);
    }
    table
}

fn metrics(d: &Description) -> comfy_table::Table {
    let mut table = plain_table(&["name", "kind", "help"]);
    for m in &d.metrics {
        let kind = match &m.kind {
            MetricKind::Counter => "counter".to_owned(),
            MetricKind::Histogram(buckets) => format!("histogram {buckets:?}"),
        };
        table.add_row([m.name.clone(), kind, text::foreign(&m.help, bounds::HELP_BYTES_MAX)]);
    }
    table
}

/// Those that a plugin may feel.
fn limits() -> [(&'static str, String); 6] {
    let mib = |bytes: usize| format!("{} MiB", bytes >> 20);
    let ms = |d: std::time::Duration| text::duration(d.as_millis().try_into().unwrap_or(u64::MAX));
    [
        ("one call", ms(CALL_DEADLINE)),
        ("start and configure", format!("{} each", ms(bounds::SETUP_DEADLINE))),
        ("memory", mib(bounds::MEMORY_BYTES_MAX)),
        ("answer of one call", mib(bounds::OUTPUT_BYTES_MAX)),
        ("component", mib(bounds::COMPONENT_BYTES_MAX)),
        (
            "log",
            format!(
                "{} lines in {} of {} bytes",
                bounds::LOG_LINES_MAX,
                ms(bounds::LOG_WINDOW),
                bounds::LOG_LINE_BYTES_MAX
            ),
        ),
    ]
}

fn for_programs(args: &InspectArgs, component: &Component, bytes: usize) -> Value {
    let d = component.description();
    let mut all = json!({
        "path": args.file, "name": d.name, "version": d.version, "world": component.world().name(), "bytes": bytes,
        "digest": component.digest().to_string(), "imports": component.imports(), "frame_version": FRAME_VERSION,
        "limits": {
            "call_ms": CALL_DEADLINE.as_millis(), "setup_ms": bounds::SETUP_DEADLINE.as_millis(),
            "memory_bytes": bounds::MEMORY_BYTES_MAX, "answer_bytes": bounds::OUTPUT_BYTES_MAX,
            "component_bytes": bounds::COMPONENT_BYTES_MAX, "log_lines": bounds::LOG_LINES_MAX,
            "log_window_ms": bounds::LOG_WINDOW.as_millis(), "log_line_bytes": bounds::LOG_LINE_BYTES_MAX,
        },
        "exit_code": 0,
    });
    if let (Some(all), Value::Object(described)) = (all.as_object_mut(), describe::to_json(d)) {
        all.extend(described);
    }
    all
}
