//! `snapshot`: state that outlives the machine.

use super::out::{self, BOLD, Failure};
use super::recover::words;
use super::{ConfigFile, text};
use crate::snapshot::{Back, Drilled, Manifest, Restored, Snapshots};
use serde_json::{Value, json};
use std::io::Write;

const EXAMPLES: &str = "\
Examples:
  tidemill snapshot create visits.toml          take one now, beside the host that runs or without it
  tidemill snapshot list visits.toml            what there is
  tidemill snapshot drill visits.toml           fetch the newest and read all of it: what a failure now would cost
  tidemill snapshot restore visits.toml         on another machine: the newest one into the empty `data_dir`

The config names the store:
  [state]
  store = \"s3://bucket/tidemill\"
  snapshot = { every = \"15m\", keep = 96 }";
const CREATE_EXAMPLES: &str = "\
Examples:
  tidemill snapshot create visits.toml
  tidemill snapshot create --json visits.toml   its id, epochs and size as JSON";
const LIST_EXAMPLES: &str = "\
Examples:
  tidemill snapshot list visits.toml
  tidemill snapshot list --json visits.toml     one JSON object for all";
const RESTORE_EXAMPLES: &str = "\
Examples:
  tidemill snapshot restore visits.toml
  tidemill snapshot restore --id 20261201T080000.007Z-3 visits.toml   an older one; `list` shows the ids";
const DRILL_EXAMPLES: &str = "\
Examples:
  tidemill snapshot drill visits.toml
  tidemill snapshot drill --json visits.toml    for the script that asks every night";

/// Keep state in an object store, and bring it back
///
/// A snapshot is each pipeline's log up to an epoch, what clients have posted since, and the plugins: all that another machine
/// needs to go on. What snapshots have in common is stored once.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SnapshotArgs {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Take a snapshot
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Of),
    /// List the snapshots in the store
    #[command(after_help = LIST_EXAMPLES)]
    List(Of),
    /// Restore a snapshot into an empty data directory
    ///
    /// The next `run` goes on from there: sources are read from where the snapshot stands. What sinks have seen since is taken
    /// back first, until it is sent again: rows of tables are retracted, JSON-lines files are cut back. The host that took
    /// the snapshot is superseded for good: its sinks refuse it, and so does the store.
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(Chosen),
    /// Fetch a snapshot, read all of it, and throw it away
    ///
    /// Says how old it is (the recovery point) and how long it takes to get it back (the recovery time, without the start
    /// itself). Sources and sinks are not touched.
    #[command(after_help = DRILL_EXAMPLES)]
    Drill(Chosen),
}

#[derive(Debug, clap::Args)]
struct Of {
    #[command(flatten)]
    config: ConfigFile,
    /// Print the answer as JSON on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Chosen {
    #[command(flatten)]
    of: Of,
    /// Which one
    #[arg(long, value_name = "ID", default_value = "latest")]
    id: String,
}

impl SnapshotArgs {
    pub(super) fn tells_errors_as_json(&self) -> bool {
        match &self.command {
            Action::Create(of) | Action::List(of) => of.json,
            Action::Restore(chosen) | Action::Drill(chosen) => chosen.of.json,
        }
    }
}

/// Runs the command.
pub(super) fn execute(args: &SnapshotArgs) -> Result<u8, Failure> {
    let of = match &args.command {
        Action::Create(of) | Action::List(of) => of,
        Action::Restore(chosen) | Action::Drill(chosen) => &chosen.of,
    };
    let plan = of.config.load()?;
    let snapshots = Snapshots::of(&plan)?;
    let (value, lines) = match &args.command {
        Action::Create(_) => taken(&snapshots.create()?, snapshots.address()),
        Action::List(_) => list(&snapshots.all()?, snapshots.address()),
        Action::Restore(c) => {
            let run = format!("tidemill run {}", of.config.path().display());
            restored(&snapshots.restore(Some(&c.id))?, &run)
        }
        Action::Drill(c) => drilled(&snapshots.drill(Some(&c.id))?),
    };
    if of.json {
        out::print_json(&value)?;
        return Ok(0);
    }
    let mut stdout = out::stdout();
    for line in lines {
        writeln!(stdout, "{line}")?;
    }
    stdout.flush()?;
    Ok(0)
}

fn cuts(manifest: &Manifest) -> String {
    let each = manifest.pipelines.iter().map(|c| format!("{} epoch {}", c.pipeline, text::count(c.epoch)));
    let each: Vec<String> = each.collect();
    if each.is_empty() { "no pipeline".to_owned() } else { each.join(", ") }
}

fn size(manifest: &Manifest) -> String {
    format!(
        "{} bytes in {}",
        text::count(manifest.bytes()),
        text::counted(manifest.parts.len() as u64, "part")
    )
}

fn as_json(manifest: &Manifest) -> Value {
    json!({
        "id": manifest.id, "taken_at_ms": manifest.taken_at_ms, "incarnation": manifest.incarnation,
        "bytes": manifest.bytes(), "parts": manifest.parts.len(), "pipelines": manifest.pipelines,
    })
}

fn taken(manifest: &Manifest, store: &str) -> (Value, Vec<String>) {
    let lines = vec![
        format!("{BOLD}{}{BOLD:#}: {}", manifest.id, cuts(manifest)),
        format!("  {} in {store}", size(manifest)),
    ];
    (as_json(manifest), lines)
}

fn list(all: &[Manifest], store: &str) -> (Value, Vec<String>) {
    let value = json!({"store": store, "snapshots": all.iter().map(as_json).collect::<Vec<_>>()});
    if all.is_empty() {
        return (value, vec![format!("{store}: no snapshot yet")]);
    }
    let now = text::now_ms();
    let line = |m: &Manifest| {
        let age = text::duration(text::between(m.taken_at_ms, now));
        format!("{}  {age} ago  {}  {}", m.id, size(m), cuts(m))
    };
    (value, all.iter().map(line).collect())
}

fn restored(r: &Restored, run: &str) -> (Value, Vec<String>) {
    let now = text::now_ms();
    let mut lines = vec![format!(
        "{BOLD}{}{BOLD:#}: {} restored in {}",
        r.manifest.id,
        size(&r.manifest),
        text::duration(millis(r.took))
    )];
    let mut pipelines = Vec::new();
    for Back { name, seen, sinks: taken } in &r.pipelines {
        let Some(cut) = r.manifest.pipelines.iter().find(|c| c.pipeline == *name) else { continue };
        let age = text::between(cut.sealed_at_ms, now);
        lines.push(format!(
            "  {name}: at the end of epoch {}, sealed {} ago{}",
            text::count(cut.epoch),
            text::duration(age),
            match seen {
                Some(seen) if *seen > cut.epoch => format!("; a sink had epoch {}", text::count(*seen)),
                _ => String::new(),
            }
        ));
        lines.extend(taken.iter().map(|(sink, t)| format!("    sink {sink}: {}", words(t))));
        let sinks: Vec<Value> =
            taken.iter().map(|(sink, t)| json!({"sink": sink, "taken_back": words(t)})).collect();
        pipelines.push(json!({
            "pipeline": name, "epoch": cut.epoch, "newest_seen": seen, "recovery_point_ms": age, "sinks": sinks,
        }));
    }
    lines.push(format!("  `{run}` goes on from there"));
    let value = json!({
        "id": r.manifest.id, "bytes": r.manifest.bytes(), "recovery_time_ms": millis(r.took), "pipelines": pipelines,
    });
    (value, lines)
}

fn drilled(d: &Drilled) -> (Value, Vec<String>) {
    let point = d.recovery_point_ms.max(0).unsigned_abs();
    let lines = vec![
        format!("{BOLD}{}{BOLD:#}: {}", d.manifest.id, cuts(&d.manifest)),
        format!("  recovery point: {} ago", text::duration(point)),
        format!(
            "  recovery time:  {} for {}, {} read and found sound",
            text::duration(millis(d.took)),
            size(&d.manifest),
            text::counted(d.records as u64, "epoch")
        ),
    ];
    let value = json!({
        "id": d.manifest.id, "recovery_point_ms": point, "recovery_time_ms": millis(d.took),
        "bytes": d.manifest.bytes(), "epochs": d.records,
    });
    (value, lines)
}

fn millis(took: std::time::Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
