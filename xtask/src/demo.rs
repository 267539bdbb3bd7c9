//! `cargo xtask demo`: from a fresh clone to sessions on the screen.
//!
//! The binary is used as a user would: a config file, `tidemill run`, `tidemill sessions`. All that it
//! writes is below `demo/`, which is made anew at each start.

use crate::rows::{objects_with, value};
use crate::steps::{self, Failure, cargo, doing, say, seconds, target_dir, workspace};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two looks at the table.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Sessions shown at a look, of each kind.
const SHOWN: usize = 4;
/// How long the run may take to stop; it promises to deliver for at most 30 s.
const STOP_MAX: Duration = Duration::from_secs(40);
/// Rows asked for: all.
const LIMIT: &str = "0";
/// Its place below `demo/`.
const CONFIG: &str = "pipeline.toml";
/// Beginnings of the users to look out for, and what they are.
const STORIES: [(&str, &str); 6] = [
    ("buyer-", "ends with a purchase"),
    ("bouncer-", "one page and gone"),
    ("bot-", "many hits a second"),
    ("phone-", "offline for a while, its events come late"),
    ("family-", "one device, two campaigns by turns"),
    ("clock-", "its clock is minutes ahead"),
];

/// Runs until `length` has passed or a signal comes.
pub(crate) fn run(length: Option<Duration>) -> Result<(), Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        doing("a handler for Ctrl-C", signal_hook::flag::register(signal, stop.clone()))?;
    }
    say("1. building tidemill (profile demo: quick to build, not quick to run; some minutes the first time)");
    let mut build = cargo(&["build", "--locked", "-p", "tidemill", "--profile", "demo"]);
    let built = steps::run("cargo build", &mut build)?;
    say(&format!("   built in {}", seconds(built)));
    let demo = Demo::prepare()?;
    say(
        "2. demo/pipeline.toml: 2,000 made-up clicks a second; a purchase or 20 s of silence ends a session;",
    );
    say("   rows go to demo/sessions.db, what cannot be used to demo/dead.jsonl. Look out for");
    for (user, what) in STORIES {
        say(&format!("     {user:<9} {what}"));
    }
    say("3. running; `early` is what is known now, `final` is certain, `corrected` was final once");
    let mut child = demo.start()?;
    let watched = demo.watch(&mut child, length, &stop);
    let stopped = stop_child(&mut child);
    let seen = watched?;
    let time = stopped?;
    say(&format!("4. stopped in {}; open sessions stay open, and the next run would go on", seconds(time)));
    demo.sum_up(seen)
}

/// What the demo works with.
struct Demo {
    folder: PathBuf,
    binary: PathBuf,
}

/// Sessions by id, as last seen.
#[derive(Default)]
struct Seen {
    stages: HashMap<String, String>,
    begun: Option<Instant>,
}

impl Demo {
    fn prepare() -> Result<Demo, Failure> {
        let folder = workspace().join("demo");
        match fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => doing("demo/ cannot be removed", Err(e))?,
            _ => {}
        }
        doing("demo/ cannot be made", fs::create_dir_all(&folder))?;
        // What is made here is nobody's source.
        doing("demo/.gitignore", fs::write(folder.join(".gitignore"), "*\n"))?;
        doing("demo/pipeline.toml", fs::write(folder.join(CONFIG), config()))?;
        let binary = target_dir().join("demo").join("tidemill");
        Ok(Demo { folder, binary })
    }

    fn tidemill(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    /// Its own process group, so that Ctrl-C reaches this program only, which then stops the run.
    fn start(&self) -> Result<Child, Failure> {
        let log = doing("demo/run.log", File::create(self.folder.join("run.log")))?;
        let out = doing("demo/run.log", log.try_clone())?;
        let child = self.tidemill(&["run", CONFIG]).process_group(0).stdout(out).stderr(log).spawn();
        doing("tidemill cannot be started", child)
    }

    fn watch(&self, child: &mut Child, length: Option<Duration>, stop: &AtomicBool) -> Result<Seen, Failure> {
        let mut seen = Seen { begun: Some(Instant::now()), ..Seen::default() };
        let begun = Instant::now();
        let mut next = begun + LOOK_EVERY;
        loop {
            if let Some(status) = doing("tidemill", child.try_wait())? {
                let log = fs::read_to_string(self.folder.join("run.log")).unwrap_or_default();
                let mut failure = Failure::of("tidemill run ended by itself", status);
                failure.message.push_str(&format!("\n{}", log.trim_end()));
                return Err(failure);
            }
            if stop.load(Ordering::Relaxed) || length.is_some_and(|max| begun.elapsed() >= max) {
                return Ok(seen);
            }
            if Instant::now() >= next {
                self.look(&mut seen);
                next = Instant::now() + LOOK_EVERY;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The table as `tidemill sessions` shows it; empty while there is none.
    fn sessions(&self) -> String {
        let output = self.tidemill(&["sessions", CONFIG, "--json", "--limit", LIMIT]).output();
        output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
    }

    fn look(&self, seen: &mut Seen) {
        let text = self.sessions();
        let rows = objects_with(&text, "session_id");
        let mut fresh: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for row in &rows {
            let id = value(row, "session_id").unwrap_or_default();
            let stage = value(row, "stage").unwrap_or_default();
            if seen.stages.get(id).is_none_or(|s| s != stage) {
                seen.stages.insert(id.to_owned(), stage.to_owned());
                fresh.entry(stage).or_default().push(row);
            }
        }
        let time = seen.begun.map(|b| b.elapsed()).unwrap_or_default();
        let counts: Vec<String> =
            fresh.iter().map(|(stage, rows)| format!("{} {stage}", rows.len())).collect();
        let new = if counts.is_empty() { "nothing new".to_owned() } else { counts.join(", ") };
        say(&format!(
            "\n  after {:>3.0} s: {} sessions; since the last look {new}",
            time.as_secs_f64(),
            rows.len()
        ));
        for rows in fresh.values_mut() {
            // Users of a story first; of those one of each before a second one.
            let mut met: HashMap<&str, usize> = HashMap::new();
            let mut ranked: Vec<(usize, &str)> = Vec::new();
            for row in rows.iter() {
                let key = value(row, "key").unwrap_or_default();
                let story = STORIES.iter().find(|(user, _)| key.starts_with(user)).map(|(user, _)| *user);
                let rank = story.map_or(usize::MAX, |s| {
                    let n = met.entry(s).or_default();
                    *n += 1;
                    *n
                });
                ranked.push((rank, row));
            }
            ranked.sort_by_key(|(rank, _)| *rank);
            for (_, row) in ranked.iter().take(SHOWN) {
                say(&line(row));
            }
        }
    }

    fn sum_up(&self, mut seen: Seen) -> Result<(), Failure> {
        let text = self.sessions();
        for row in objects_with(&text, "session_id") {
            let (id, stage) = (value(row, "session_id"), value(row, "stage"));
            seen.stages.insert(id.unwrap_or_default().to_owned(), stage.unwrap_or_default().to_owned());
        }
        let mut stages: BTreeMap<&str, u64> = BTreeMap::new();
        for stage in seen.stages.values() {
            *stages.entry(stage).or_default() += 1;
        }
        say("\n  sessions by stage (demo/sessions.db)");
        for (stage, n) in &stages {
            say(&format!("    {stage:<24} {n:>8}"));
        }
        let letters = fs::read_to_string(self.folder.join("dead.jsonl")).unwrap_or_default();
        let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
        for letter in letters.lines() {
            *reasons.entry(value(letter, "reason").unwrap_or("?")).or_default() += 1;
        }
        say("  dead letters by reason (demo/dead.jsonl)");
        for (reason, n) in &reasons {
            say(&format!("    {reason:<24} {n:>8}"));
        }
        say("\n  go on with: cd demo; then `tidemill sessions pipeline.toml`, `tidemill dead pipeline.toml`");
        say(&format!("  the binary is {}", self.binary.display()));
        if stages.is_empty() {
            return Err(Failure::new("no session was written; demo/run.log may say why"));
        }
        Ok(())
    }
}

/// One session on one line.
fn line(row: &str) -> String {
    let get = |name| value(row, name).unwrap_or_default();
    let time = |name| get(name).parse::<i64>().unwrap_or(0);
    let length_s = (time("end_ms") - time("start_ms")) as f64 / 1000.0;
    let reason = Some(get("reason")).filter(|r| *r != "null").unwrap_or_default();
    format!(
        "    {:<10} {:<16} {:>5} events  {length_s:>7.1} s  {reason}",
        get("stage"),
        get("key"),
        get("events")
    )
}

/// Sends SIGTERM and waits.
fn stop_child(child: &mut Child) -> Result<Duration, Failure> {
    let begun = Instant::now();
    if doing("tidemill", child.try_wait())?.is_none() {
        let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        doing("kill cannot be started", kill)?;
    }
    loop {
        if let Some(status) = doing("tidemill", child.try_wait())? {
            if status.success() {
                return Ok(begun.elapsed());
            }
            return Err(Failure::of("tidemill run, being stopped", status));
        }
        if begun.elapsed() > STOP_MAX {
            doing("tidemill cannot be killed", child.kill())?;
            doing("tidemill", child.wait())?;
            return Err(Failure::new(format!("tidemill run did not stop within {}", seconds(STOP_MAX))));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The config: `examples/demo.toml` with paths from inside `demo/`.
fn config() -> String {
    include_str!("../../examples/demo.toml").replace("\"demo/", "\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_is_the_example_with_its_own_paths() {
        let text = config();
        assert_eq!(text.matches("\"demo/").count(), 0);
        assert!(text.contains("path  = \"sessions.db\"") && text.contains("data_dir = \"state\""));
    }

    #[test]
    fn a_row_becomes_a_line() {
        let row = r#"{"session_id":"x","key":"buyer-00001","start_ms":1000,"end_ms":2500,"events":4,"stage":"early","reason":null}"#;
        assert_eq!(
            line(row).split_whitespace().collect::<Vec<_>>(),
            ["early", "buyer-00001", "4", "events", "1.5", "s"]
        );
    }
}
