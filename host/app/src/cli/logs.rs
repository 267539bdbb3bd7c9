//! `logs`: what the host that runs and its plugins have said lately.

use super::client::{Ask, Host};
use super::out::{self, DIM, Failure};
use super::{ConfigFile, text};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  tidemill logs visits.toml                         the last lines of the host that runs the config
  tidemill logs visits.toml --pipeline visits       of one pipeline and its plugins
  tidemill logs visits.toml --follow                go on with what comes; Ctrl-C ends it
  tidemill logs visits.toml --json | jq -r .text    JSON lines";

/// How often it is asked what has come, with `--follow`.
const PACE: Duration = Duration::from_millis(500);
/// Characters of a line that are shown: the host cuts them before.
const TEXT_CHARS_MAX: usize = 2_048;

/// Show what the host that runs and its plugins have said
///
/// The host keeps its last 2,048 lines since it was started: starts, deployments and who asked for them, suspensions, lookups
/// that break down and come back, and whatever plugins log. Dead letters have a command of their own.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct LogsArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Only of this pipeline, and of the host as a whole
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
    /// The last so many lines
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=2048))]
    limit: u32,
    /// Go on with what comes
    #[arg(long, short)]
    follow: bool,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn execute(args: &LogsArgs) -> Result<u8, Failure> {
    let plan = args.config.load()?;
    let host = Host::needed(&plan, args.config.path())?;
    if let Some(name) = args.pipeline.as_deref()
        && plan.pipelines.iter().all(|p| p.name != name)
    {
        return Err(Failure::new(3, format!("the config has no pipeline `{name}`"), None));
    }
    let (mut path, mut last) = (query(args, args.limit, 0), 0);
    out::note(host.curl(&Ask::get(&path)));
    loop {
        let body = host.ask(&Ask::get(&path))?.body;
        let lines = body["lines"].as_array().map_or(&[][..], Vec::as_slice);
        let mut stdout = out::stdout();
        for line in lines {
            let number = line["number"].as_u64().unwrap_or(last);
            last = last.max(number);
            if args.json {
                serde_json::to_writer(&mut stdout, line).map_err(std::io::Error::from)?;
                stdout.write_all(b"\n")?;
            } else {
                writeln!(stdout, "{}", shown(line))?;
            }
        }
        stdout.flush()?;
        drop(stdout);
        if !args.follow {
            return Ok(0);
        }
        // Only the pace of asking.
        std::thread::sleep(PACE);
        path = query(args, 2_048, last);
    }
}

fn query(args: &LogsArgs, limit: u32, after: u64) -> String {
    let mut path = format!("/api/v1/logs?limit={limit}");
    // A string takes everything.
    if after > 0 {
        let _ = write!(path, "&after={after}");
    }
    if let Some(name) = &args.pipeline {
        let _ = write!(path, "&pipeline={name}");
    }
    path
}

/// A line as people read it.
fn shown(line: &Value) -> String {
    let get = |name: &str| line[name].as_str().unwrap_or_default();
    let of = match (line["pipeline"].as_str(), line["plugin"].as_str()) {
        (Some(pipeline), Some(plugin)) => format!("{pipeline}: plugin {plugin}: "),
        (Some(pipeline), None) => format!("{pipeline}: "),
        _ => String::new(),
    };
    let (at, level) = (get("at"), get("level"));
    format!("{DIM}{at}{DIM:#} {level:<5} {}", text::foreign(&format!("{of}{}", get("text")), TEXT_CHARS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_says_when_who_and_what_and_moves_no_cursor() {
        let line = json!({"at": "2026-01-02T03:04:05Z", "level": "warn", "pipeline": "p", "plugin": "q", "text": "a\u{1b}[2Jb"});
        let plain = anstream::adapter::strip_str(&shown(&line)).to_string();
        assert_eq!(plain, "2026-01-02T03:04:05Z warn  p: plugin q: a\\u{1b}[2Jb");
        let host = json!({"at": "t", "level": "info", "pipeline": null, "plugin": null, "text": "up"});
        assert_eq!(anstream::adapter::strip_str(&shown(&host)).to_string(), "t info  up");
    }
}
