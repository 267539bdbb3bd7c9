//! `measure`: what the session stage of a pipeline costs on this machine, by number of keys.

use std::io::Write as _;

use serde_json::json;

use super::out::{self, Failure};
use super::sessions::{align_right, plain_table};
use super::{ConfigFile, text};
use crate::plugin::{Sandbox, Stages};
use crate::run::measure::{Keys, Spread, Texts, session_stage};

const EXAMPLES: &str = "\
Examples:
  tidemill measure visits.toml                       the rule of `visits.toml`, for 10 thousand to a million keys
  tidemill measure visits.toml --keys 5000 --json    one JSON object a line, for scripts
  tidemill measure visits.toml --spread even         every key is as frequent as any other";

/// Measure what a pipeline's session rule costs
///
/// Sends made-up events through the session stage alone: nothing is read, decoded, stored or written, and the
/// pipeline's state and sinks are not touched. Times are CPU time, by event. For a plugin that declares symbols there is a
/// row for text that is none and one for symbols.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct MeasureArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// How many keys the events have (may be given several times, or separated by commas)
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [10_000, 200_000, 1_000_000], value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    keys: Vec<u64>,
    /// How often each key comes: few of them with most events, or all alike
    #[arg(long, value_name = "SPREAD", value_enum, default_value_t = Spread::Zipf)]
    spread: Spread,
    /// How many events are measured, beyond those that warm up
    #[arg(long, value_name = "N", default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000_000))]
    events: u64,
    /// Only this pipeline
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs the command.
pub(super) fn execute(args: &MeasureArgs) -> Result<u8, Failure> {
    let plan = args.config.load()?;
    let chosen = |name: &str| args.pipeline.as_deref().is_none_or(|wanted| wanted == name);
    let pipelines: Vec<_> = plan.pipelines.iter().filter(|p| chosen(&p.name)).collect();
    if pipelines.is_empty() {
        let names: Vec<&str> = plan.pipelines.iter().map(|p| p.name.as_str()).collect();
        return Err(Failure::new(2, "no such pipeline", format!("there are: {}", names.join(", "))));
    }
    let mut table =
        plain_table(&["pipeline", "rule", "keys", "texts", "live keys", "sessions", "stage ns", "rule ns"]);
    let sandbox = Sandbox::new(plan.server.data_dir.join("compiled"));
    for pipeline in pipelines {
        let stages = Stages::of_config(pipeline, &sandbox)
            .map_err(|e| Failure::new(if e.host { 1 } else { 4 }, e.to_string(), None))?;
        let has_symbols = stages.layout.iter().any(|d| !d.symbols.is_empty());
        let kinds: &[(Texts, &str)] = if has_symbols {
            &[(Texts::Free, "free"), (Texts::Symbols, "symbols")]
        } else {
            &[(Texts::Free, "free")]
        };
        for keys in &args.keys {
            for (texts, name) in kinds {
                let wanted = Keys { number: *keys, spread: args.spread };
                let m = session_stage(pipeline, &stages, wanted, args.events, *texts)?;
                if args.json {
                    out::print_json(&json!({
                        "pipeline": pipeline.name, "rule": m.rule, "keys": keys, "texts": name,
                        "live_keys": m.live_keys, "sessions": m.sessions,
                        "stage_ns": m.stage_ns_per_event, "rule_ns": m.rule_ns_per_event,
                    }))?;
                }
                table.add_row([
                    pipeline.name.clone(),
                    m.rule,
                    text::count(*keys),
                    (*name).to_owned(),
                    text::count(m.live_keys),
                    text::count(m.sessions),
                    format!("{:.0}", m.stage_ns_per_event),
                    format!("{:.0}", m.rule_ns_per_event),
                ]);
            }
        }
    }
    if !args.json {
        align_right(&mut table, &[2, 4, 5, 6, 7]);
        let mut stdout = out::stdout();
        writeln!(stdout, "{table}")?;
        stdout.flush()?;
    }
    Ok(0)
}
