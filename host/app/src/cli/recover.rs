//! `recover`: a human decides to give up the newest epochs of a pipeline.

use std::io::{self, BufRead as _, IsTerminal as _, Write};

use serde_json::json;
use tidemill_connect::sink::TakenBack;

use super::out::{self, BOLD, Failure};
use super::{ConfigFile, text};
use crate::run::go_back::GoBack;

const EXAMPLES: &str = "\
Examples:
  tidemill recover --to 4711 visits visits.toml              show what would be given up, and ask
  tidemill recover --to 4711 --take-back visits visits.toml  also where sinks have rows of later epochs: rows of a
                                                             SQLite table are retracted, files are cut back
  tidemill recover --to 4711 --take-back --yes visits visits.toml";

/// Go back to an earlier epoch of a pipeline
///
/// For a log that is damaged, or a run that must be undone. State and positions return to the end of that epoch, and the
/// next run reads on from there. Nothing is given up that was committed or has reached a sink, unless --take-back says
/// so: then rows of later epochs are retracted in tables until the next run sends them again, JSON-lines files are cut
/// back, and what went to stdout may stay with its reader. The decision is written into the log.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RecoverArgs {
    /// The last epoch that is kept; `status` and the message about a damaged log name epochs
    #[arg(long, value_name = "EPOCH")]
    to: u64,
    /// The pipeline
    #[arg(value_name = "PIPELINE")]
    pipeline: String,
    #[command(flatten)]
    config: ConfigFile,
    /// Take back what later epochs have brought to the sinks
    #[arg(long)]
    take_back: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Print what was done as JSON on stdout
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs the command.
pub(super) fn execute(args: &RecoverArgs) -> Result<u8, Failure> {
    let plan = args.config.load()?;
    let Some(pipeline) = plan.pipelines.iter().find(|p| p.name == args.pipeline) else {
        let names: Vec<&str> = plan.pipelines.iter().map(|p| p.name.as_str()).collect();
        let help = format!("the pipelines are {}", names.join(", "));
        return Err(Failure::new(2, format!("there is no pipeline `{}`", args.pipeline), help));
    };
    let go_back = GoBack::look(&plan, pipeline, args.to)?;
    // What a human decides on goes to the human, not into the answer.
    tell(&mut anstream::stderr().lock(), args, &go_back)?;
    let contradicted = go_back.contradicted_by();
    if !contradicted.is_empty() && !args.take_back {
        let message = format!("epochs after {} were committed: {}", args.to, contradicted.join("; "));
        let help = "nothing was changed. Put the log back from a copy if there is one; else --take-back retracts their \
                    rows in tables, cuts files back, and leaves with its reader what went to stdout";
        return Err(Failure::new(6, message, help.to_owned()));
    }
    if !args.yes && !confirmed(args.to)? {
        return Err(Failure::new(2, "nothing was changed", "--yes goes ahead without a question".to_owned()));
    }
    let (from, newest) = (args.to + 1, go_back.newest());
    let done = go_back.carry_out()?;
    if args.json {
        let sinks: Vec<_> =
            done.iter().map(|(name, t)| json!({"sink": name, "taken_back": words(t)})).collect();
        out::print_json(&json!({
            "pipeline": args.pipeline, "epoch": args.to, "given_up": [from, newest], "sinks": sinks,
        }))?;
        return Ok(0);
    }
    let mut stdout = out::stdout();
    writeln!(stdout, "{BOLD}{}{BOLD:#}: back at epoch {}", args.pipeline, text::count(args.to))?;
    for (name, taken) in &done {
        writeln!(stdout, "  sink {name}: {}", words(taken))?;
    }
    writeln!(stdout, "  `tidemill run {}` goes on from there", args.config.path().display())?;
    stdout.flush()?;
    Ok(0)
}

pub(super) fn words(taken: &TakenBack) -> String {
    match taken {
        TakenBack::Retracted(n) => format!("{} rows retracted", text::count(*n)),
        TakenBack::Cut(n) => format!("{} bytes cut off", text::count(*n)),
        TakenBack::Stays => "rows of the epochs given up may stay with its reader".to_owned(),
    }
}

fn tell(to: &mut impl Write, args: &RecoverArgs, g: &GoBack<'_>) -> Result<(), Failure> {
    writeln!(to, "{BOLD}{}{BOLD:#}: back to the end of epoch {}", args.pipeline, text::count(g.to()))?;
    if let Some((file, offset, what)) = &g.survey.fault {
        writeln!(to, "  the log can be read up to {} at offset {offset}: {what}", file.display())?;
    }
    let later = g.newest().saturating_sub(g.to());
    writeln!(
        to,
        "  given up: {} epochs that can be read{}, {} bytes of the log",
        text::count(later),
        if later > 0 { format!(" ({} to {})", g.to() + 1, g.newest()) } else { String::new() },
        text::count(g.bytes_given_up())
    )?;
    for (name, seen) in &g.seen {
        match seen {
            Some(epoch) => writeln!(to, "  sink {name}: has epoch {}", text::count(*epoch))?,
            None => writeln!(to, "  sink {name}: does not show which epoch it has")?,
        }
    }
    Ok(())
}

/// Asks on a terminal; elsewhere nobody can answer.
fn confirmed(to: u64) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    let mut err = anstream::stderr().lock();
    write!(err, "Go back to epoch {to}? Type yes: ")?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim().eq_ignore_ascii_case("yes"))
}
