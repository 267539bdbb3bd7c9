//! `sessionize`: the shortest way from a log to its sessions; no config file, nothing left behind.
//!
//! It is no way of its own: a config is made from the flags and run as any other, in a directory that is removed.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use super::histogram::Histogram;
use super::out::{self, BOLD, Failure};
use super::run::{listed, run_watched};
use super::sessions::{align_right, plain_table};
use super::{guess, text};
use crate::config::{self, Format};
use crate::meta::Counters;
use crate::run::{self, Outcome, RunOptions};

const EXAMPLES: &str = "\
Examples:
  tidemill sessionize access.log.gz                      a web server's log, sessions by host
  tidemill sessionize access.log --gap 10m --top 20
  tidemill sessionize clicks.jsonl --key user_id --time ts --unit ms
  tidemill sessionize 'logs/*.csv' --format csv --json | jq .sessions
  zcat access.log.gz | tidemill sessionize - --format combined";

/// Turn a log into sessions, without a config file
///
/// Format, key and time are guessed from the first line where they are not given. Nothing is kept: for sessions
/// in a database, and runs that go on where the last one stopped, write a config (`tidemill run --help`).
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SessionizeArgs {
    /// The log: a file (plain, .gz, .zst), a pattern in quotes, or - for standard input
    #[arg(value_name = "LOG")]
    log: String,
    /// Silence that ends a session
    #[arg(long, value_name = "TIME", default_value = "30m")]
    gap: String,
    /// Field whose sessions these are; several with commas between
    #[arg(long, value_name = "FIELD", value_delimiter = ',')]
    key: Vec<String>,
    /// Whether an event exactly one gap later starts a new session (exclusive) or stays (inclusive)
    #[arg(long, value_name = "WORD", default_value = "exclusive", value_parser = ["exclusive", "inclusive"])]
    boundary: String,
    /// How records are written
    #[arg(long, value_name = "FORMAT", value_parser = ["combined", "json", "csv", "tsv"])]
    format: Option<String>,
    /// Field with the event time
    #[arg(long, value_name = "FIELD")]
    time: Option<String>,
    /// Unit of a time that is a number
    #[arg(long, value_name = "UNIT", value_parser = ["s", "ms", "us"])]
    unit: Option<String>,
    /// How far lines may stand out of order
    #[arg(long, value_name = "TIME", default_value = "60s")]
    disorder: String,
    /// How many of the longest sessions to show
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: u32,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// A directory of our own that goes away with this value.
struct Scratch {
    path: PathBuf,
    /// Locked as long as somebody uses the directory: a process that was killed has left one that is not.
    _lock: File,
}

/// The file that is locked.
const LOCK: &str = "lock";
/// A directory younger than this may be about to be locked.
const SCRATCH_LEFT_MIN: Duration = Duration::from_secs(60);

impl Scratch {
    fn new() -> Result<Scratch, Failure> {
        sweep(&std::env::temp_dir());
        let nanos = jiff::Timestamp::now().as_nanosecond();
        let dir = std::env::temp_dir().join(format!("tidemill-{}-{nanos}", std::process::id()));
        // Keys are people: nobody else may read them. An existing directory is somebody else's and refused.
        DirBuilder::new().mode(0o700).create(&dir).map_err(|e| {
            let help = "TMPDIR names the place for temporary files".to_owned();
            Failure::new(5, format!("{} cannot be created: {e}", dir.display()), help)
        })?;
        let failed = |e| Failure::new(5, format!("{} cannot be used: {e}", dir.display()), None);
        let lock = File::create_new(dir.join(LOCK)).map_err(failed)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
        Ok(Scratch { path: dir, _lock: lock })
    }
}

/// Removes what processes that were killed have left.
fn sweep(temporary: &Path) {
    let own = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(temporary).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let digits = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
        let numbers = name.to_str().and_then(|n| n.strip_prefix("tidemill-")?.split_once('-'));
        let ours = numbers.is_some_and(|(pid, nanos)| digits(pid) && digits(nanos));
        // A link is never followed.
        let Ok(meta) = entry.path().symlink_metadata() else { continue };
        let old =
            meta.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|age| age >= SCRATCH_LEFT_MIN);
        if !ours || !old || !meta.is_dir() || meta.uid() != own {
            continue;
        }
        let lock = File::open(entry.path().join(LOCK));
        if lock.is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()) {
            // What cannot be removed now is tried again the next time.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is left to whoever cleans the temporary directory.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// What the log is, guessed or told.
struct Shape {
    format: Format,
    key: Vec<String>,
    time: String,
    unit: Option<String>,
}

/// What came out.
struct Report {
    counters: Counters,
    sessions: u64,
    keys: u64,
    wall_ms: u64,
    by_events: Histogram,
    by_duration: Histogram,
    longest: Vec<Longest>,
    stopped: bool,
}

/// One of the longest sessions.
struct Longest {
    key: String,
    start_ms: i64,
    end_ms: i64,
    events: u64,
}

/// Runs the command.
pub(super) fn execute(args: &SessionizeArgs) -> Result<u8, Failure> {
    let begun = Instant::now();
    let log = pattern(&args.log);
    let shape = shape(args, &log)?;
    let scratch = Scratch::new()?;
    let plan = config::parse(
        &config_text(args, &log, &shape, &scratch.path),
        Path::new("(the flags)"),
        text::now_ms(),
    )?;
    let probed = plan.probe();
    if probed.has_errors() {
        return Err(Failure::Config(probed));
    }
    let run = run_watched(&plan, &RunOptions::default(), false, false);
    // Of a log that breaks off, all that could be read is worth a look.
    let (counters, stopped, failed) = match run {
        Ok(mut summaries) => {
            let Some(summary) = summaries.pop() else {
                return Err(Failure::new(1, "the run came back without a result", None));
            };
            (summary.counters, matches!(summary.outcome, Outcome::Stopped), None)
        }
        Err(Failure::Told { code: 1, message, .. }) => {
            let Some((_, _, meta)) = run::peek(&plan, "sessions")? else {
                return Err(Failure::new(1, message, None));
            };
            let help = "this is of what could be read; nothing is kept of it".to_owned();
            (meta.counters, true, Some(Failure::new(1, message, help)))
        }
        Err(other) => return Err(other),
    };
    let mut report = read(&scratch.path.join("sessions.db"), args.top)
        .map_err(|e| Failure::new(5, format!("the sessions cannot be read back: {e}"), None))?;
    report.counters = counters;
    report.stopped = stopped;
    report.wall_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    if args.json {
        out::print_json(&to_json(args, &shape, &report))?;
    } else {
        show(args, &shape, &report, &scratch.path.join("dead.jsonl"))?;
    }
    // On the JSON that was printed nothing may follow.
    failed.map_or(Ok(0), |f| Ok(f.tell(false)))
}

/// A file's own name is no pattern, even if it looks like one.
fn pattern(log: &str) -> String {
    if log != "-" && Path::new(log).exists() { glob::Pattern::escape(log) } else { log.to_owned() }
}

/// Takes what is told and guesses the rest from the first records.
fn shape(args: &SessionizeArgs, log: &str) -> Result<Shape, Failure> {
    let head = if log == "-" { Vec::new() } else { first_records(log)? };
    let told = args.format.as_deref().map(|word| match word {
        "json" => Format::Json,
        "csv" => Format::Csv,
        "tsv" => Format::Tsv,
        _ => Format::Combined,
    });
    let Some(format) = told.or_else(|| head.first().and_then(|first| guess::format(first))) else {
        if log != "-" && head.is_empty() {
            let message = format!("{log} is empty: there is nothing to make sessions of");
            return Err(Failure::new(4, message, None));
        }
        let what = if log == "-" {
            "standard input cannot be looked at beforehand"
        } else {
            "its first line fits none"
        };
        let help = "say --format combined, json, csv or tsv".to_owned();
        return Err(Failure::new(2, format!("the format of {log} is not clear: {what}"), help));
    };
    let fields = guess::fields(format, &head);
    if format == Format::Combined {
        let key = if args.key.is_empty() { vec!["host".to_owned()] } else { args.key.clone() };
        let time = args.time.clone().unwrap_or_else(|| "time".to_owned());
        return Ok(Shape { format, key, time, unit: args.unit.clone() });
    }
    let key = match guess::key(&fields) {
        _ if !args.key.is_empty() => args.key.clone(),
        Some(name) => vec![name.to_owned()],
        None => return Err(unclear("key", &fields)),
    };
    let guessed = guess::time(&fields);
    let time = match (&args.time, guessed) {
        (Some(name), _) => name.clone(),
        (None, Some((name, _))) => name.to_owned(),
        (None, None) => return Err(unclear("time", &fields)),
    };
    let value = fields.iter().find(|(name, _)| *name == time).map(|(_, value)| value.as_str());
    let unit = args.unit.clone().or_else(|| value.and_then(guess::unit).map(str::to_owned));
    Ok(Shape { format, key, time, unit })
}

fn unclear(what: &str, fields: &[(String, String)]) -> Failure {
    let names: Vec<String> = fields.iter().map(|(name, _)| text::foreign(name, 40)).collect();
    let help = match names.as_slice() {
        [] => format!("say --{what} FIELD"),
        names => format!("say --{what} FIELD; the first record has {}", names.join(", ")),
    };
    Failure::new(2, format!("it is not clear which field is the {what}"), help)
}

/// The first records of the first file of a pattern that has any.
fn first_records(pattern: &str) -> Result<Vec<Vec<u8>>, Failure> {
    let files = tidemill_connect::source::file::list(pattern)?;
    if files.is_empty() {
        let name = text::foreign(pattern, 200);
        return Err(Failure::new(4, format!("there is no file `{name}`"), None));
    }
    for file in &files {
        let head = guess::head(file)?;
        if !head.is_empty() {
            return Ok(head);
        }
    }
    Ok(Vec::new())
}

/// The config that the flags stand for.
fn config_text(args: &SessionizeArgs, log: &str, shape: &Shape, dir: &Path) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let file = |name: &str| quoted(&dir.join(name).to_string_lossy());
    let keys: Vec<String> = shape.key.iter().map(|k| quoted(k)).collect();
    let key = if let [one] = keys.as_slice() { one.clone() } else { format!("[{}]", keys.join(", ")) };
    let unit = shape.unit.as_ref().map_or(String::new(), |u| format!(", unit = {}", quoted(u)));
    let kind = if log == "-" {
        "kind = \"stdin\"".to_owned()
    } else {
        format!("kind = \"file\"\npath = {}", quoted(log))
    };
    format!(
        "[server]\ndata_dir = {}\n\n\
         [source.log]\n{kind}\nformat = \"{}\"\nkey = {key}\ntime = {{ field = {}{unit} }}\ndisorder = {}\n\n\
         [pipeline.sessions]\nfrom = [\"log\"]\n\
         session = {{ plugin = \"builtin:gap\", config = {{ gap = {}, boundary = {} }} }}\n\
         early = \"off\"\nto = [\"sessions\"]\ndead = \"dead\"\n\n\
         [sink.sessions]\nkind = \"sqlite\"\npath = {}\ntable = \"sessions\"\n\n\
         [sink.dead]\nkind = \"file\"\npath = {}\n",
        file("data"),
        shape.format.name(),
        quoted(&shape.time),
        quoted(&args.disorder),
        quoted(&args.gap),
        quoted(&args.boundary),
        file("sessions.db"),
        file("dead.jsonl"),
    )
}

/// Everything that the table has to say, in two passes without keeping it.
fn read(db: &Path, top: u32) -> rusqlite::Result<Report> {
    let mut report = Report {
        counters: Counters::default(),
        sessions: 0,
        keys: 0,
        wall_ms: 0,
        by_events: Histogram::of_events(),
        by_duration: Histogram::of_durations(),
        longest: Vec::new(),
        stopped: false,
    };
    if !db.exists() {
        return Ok(report);
    }
    let db = Connection::open_with_flags(db, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    report.keys = db.query_row("SELECT count(DISTINCT key) FROM sessions_current", [], |r| {
        Ok(r.get::<_, i64>(0)?.unsigned_abs())
    })?;
    let mut all = db.prepare("SELECT start_ms, end_ms, events FROM sessions_current")?;
    let mut rows = all.query([])?;
    while let Some(row) = rows.next()? {
        report.sessions += 1;
        report.by_duration.add(text::between(row.get(0)?, row.get(1)?));
        report.by_events.add(row.get::<_, i64>(2)?.unsigned_abs());
    }
    let mut longest = db.prepare(
        "SELECT key, start_ms, end_ms, events FROM sessions_current \
         ORDER BY end_ms - start_ms DESC, events DESC, session_id LIMIT ?1",
    )?;
    report.longest = longest
        .query_map([top], |r| {
            Ok(Longest {
                key: r.get(0)?,
                start_ms: r.get(1)?,
                end_ms: r.get(2)?,
                events: r.get::<_, i64>(3)?.unsigned_abs(),
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(report)
}

fn to_json(args: &SessionizeArgs, shape: &Shape, r: &Report) -> Value {
    let ranges = |h: &Histogram| -> Vec<Value> {
        h.ranges().map(|(range, sessions)| json!({"range": range, "sessions": sessions})).collect()
    };
    let longest: Vec<Value> = r
        .longest
        .iter()
        .map(|s| {
            json!({"key": s.key, "start_ms": s.start_ms, "end_ms": s.end_ms, "events": s.events,
                   "duration_ms": text::between(s.start_ms, s.end_ms)})
        })
        .collect();
    json!({
        "log": args.log, "format": shape.format.name(), "key": shape.key, "time": shape.time, "unit": shape.unit,
        "gap": args.gap, "boundary": args.boundary, "stopped": r.stopped,
        "records": r.counters.records, "events": r.counters.events, "sessions": r.sessions, "keys": r.keys,
        "dead": r.counters.letters(), "wall_ms": r.wall_ms, "longest": longest,
        "events_per_session": ranges(&r.by_events), "duration": ranges(&r.by_duration),
    })
}

fn show(args: &SessionizeArgs, shape: &Shape, r: &Report, dead: &Path) -> Result<(), Failure> {
    let mut to = out::stdout();
    if !r.longest.is_empty() {
        writeln!(to, "{BOLD}the longest sessions{BOLD:#}")?;
        let mut table = plain_table(&["key", "start", "duration", "events"]);
        for s in &r.longest {
            table.add_row([
                text::foreign(&s.key, 60),
                text::instant(s.start_ms),
                text::duration(text::between(s.start_ms, s.end_ms)),
                text::count(s.events),
            ]);
        }
        align_right(&mut table, &[2, 3]);
        writeln!(to, "{table}\n")?;
    }
    for (title, histogram) in [("events per session", &r.by_events), ("duration", &r.by_duration)] {
        let lines = histogram.lines();
        if !lines.is_empty() {
            writeln!(to, "{BOLD}{title}{BOLD:#}\n{}\n", lines.join("\n"))?;
        }
    }
    let key = shape.key.join(" + ");
    let letters = r.counters.letters();
    let dead_total: u64 = letters.values().sum();
    writeln!(
        to,
        "{} in {} of {} by {key}; {} log, gap {} {}, {}",
        text::counted(r.counters.events, "event"),
        text::counted(r.sessions, "session"),
        text::counted(r.keys, "key"),
        shape.format.name(),
        args.gap,
        args.boundary,
        text::duration(r.wall_ms),
    )?;
    if dead_total > 0 {
        let reasons = listed(letters.into_iter());
        writeln!(to, "{} not used: {reasons}", text::counted(dead_total, "record"))?;
        for (reason, message) in first_messages(dead) {
            writeln!(to, "  {reason}, for example: {message}")?;
        }
    }
    if r.stopped {
        writeln!(to, "stopped before the end of the log: sessions that were open then are not counted")?;
    }
    to.flush()?;
    Ok(())
}

/// The first letter of each reason, for a reader.
fn first_messages(dead: &Path) -> BTreeMap<String, String> {
    let mut first = BTreeMap::new();
    // Examples are an extra: without them the counts still stand.
    let _ = crate::rows::each_letter(dead, |letter| {
        let member = |name| text::foreign(crate::rows::member(&letter, name), 100);
        first.entry(member("reason")).or_insert_with(|| member("message"));
    });
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Only {
        #[command(flatten)]
        args: SessionizeArgs,
    }

    #[test]
    fn what_a_killed_process_has_left_is_swept_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, old: bool| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            let lock = File::create(path.join(LOCK)).unwrap();
            let at = std::time::SystemTime::now() - SCRATCH_LEFT_MIN * if old { 2 } else { 0 };
            File::open(&path).unwrap().set_modified(at).unwrap();
            lock
        };
        make("tidemill-1-2", true);
        let held = make("tidemill-3-4", true);
        flock(&held, FlockOperation::LockExclusive).unwrap();
        make("tidemill-5-6", false);
        make("tidemill-mine", true);
        sweep(dir.path());
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["tidemill-3-4", "tidemill-5-6", "tidemill-mine"]);
    }

    #[test]
    fn the_flags_make_a_config_that_parses() {
        let args = Only::parse_from(["x", "it's \"a\" log.gz", "--key", "user,device", "--gap", "10m"]).args;
        let shape = Shape {
            format: Format::Json,
            key: args.key.clone(),
            time: "/at/ms".to_owned(),
            unit: Some("ms".to_owned()),
        };
        let text = config_text(&args, &args.log, &shape, Path::new("/tmp/x"));
        let plan =
            config::parse(&text, Path::new("flags"), 0).unwrap_or_else(|p| panic!("{}", p.render(false)));
        assert!(matches!(&plan.pipelines[0].rule, config::Rule::Gap(rule) if rule.gap_ms == 600_000));
        assert!(matches!(&plan.sources[0].kind,
            config::SourceKind::File { pattern, .. } if pattern == "it's \"a\" log.gz"));
        assert_eq!(
            plan.sources[0].key,
            config::KeySpec::Together(vec!["user".to_owned(), "device".to_owned()])
        );
    }
}
