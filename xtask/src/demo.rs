//! `cargo xtask demo`: from a fresh clone to sessions on the screen, a swap of the rule on the way.
//!
//! The binary is used as a user would: a config file, `tidemill plugin build`, `run`, `deploy`, `sessions`. All that it
//! writes is below `demo/`, which is made anew at each start.

mod app;

use self::app::App;
use crate::rows::{objects_with, value};
use crate::steps::{self, Failure, cargo, doing, say, seconds, target_dir, workspace};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two looks at the table.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Visits shown at a look, of each kind.
const SHOWN: usize = 3;
/// How long the run may take to stop; it promises to deliver for at most 30 s.
const STOP_MAX: Duration = Duration::from_secs(40);
/// How long it may take to start.
const START_MAX: Duration = Duration::from_secs(60);
/// When the rule is swapped, if nobody says how long the demo runs; else half-way.
const SWAP_AFTER: Duration = Duration::from_secs(30);
/// Rows asked for: all.
const LIMIT: &str = "0";
/// Its place below `demo/`.
const CONFIG: &str = "pipeline.toml";
/// The rule's two versions, as rows name them.
const VERSIONS: [&str; 2] = ["checkout-sessions@0.1.0", "checkout-sessions@0.2.0"];
/// Components, by their crates.
const PLUGINS: [&str; 4] =
    ["clickstream-validator", "checkout-sessions", "checkout-sessions-next", "profile-enricher"];
/// Beginnings of the users to look out for, and what they are.
const STORIES: [(&str, &str); 7] = [
    ("buyer-", "ends with a purchase"),
    ("bouncer-", "one page and gone"),
    ("bot-", "many hits a second"),
    ("phone-", "offline for a while, its events come late"),
    ("family-", "one device, two campaigns by turns: each begins another visit"),
    ("clock-", "its clock is minutes ahead: dead letters"),
    ("app-", "comes over HTTP, some requests twice"),
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
    say("2. building the plugins: a validator, a session rule and its next version, an enricher");
    let begun = Instant::now();
    demo.build_plugins()?;
    say(&format!("   built in {}", seconds(begun.elapsed())));
    say(
        "3. demo/pipeline.toml: 2,000 made-up clicks a second, and some over HTTP; a purchase, another campaign or",
    );
    say(
        "   20 s of silence end a visit; rows go to demo/sessions.db, what cannot be used to demo/dead.jsonl.",
    );
    say("   Look out for");
    for (user, what) in STORIES {
        say(&format!("     {user:<9} {what}"));
    }
    say("4. running; `early` is what is known now, `final` is certain, `corrected` was final once");
    let mut child = demo.start()?;
    let watched = demo.watch(&mut child, length, &stop);
    let stopped = stop_child(&mut child);
    let seen = watched?;
    let time = stopped?;
    say(&format!("\n6. stopped in {}; open visits stay open, and the next run would go on", seconds(time)));
    demo.sum_up(seen)
}

/// What the demo works with.
struct Demo {
    folder: PathBuf,
    binary: PathBuf,
}

/// A row as it was seen last.
#[derive(Clone, PartialEq, Eq)]
struct Last {
    stage: String,
    plugin: String,
}

/// Rows by session.
#[derive(Default)]
struct Seen {
    rows: HashMap<String, Last>,
    /// As they were when the rule was swapped.
    at_swap: Option<HashMap<String, Last>>,
    posted: Option<Arc<app::Posted>>,
}

impl Seen {
    /// Takes the rows of a table in; those that are new or have another stage, by stage.
    fn take<'a>(&mut self, rows: &[&'a str]) -> BTreeMap<&'a str, Vec<&'a str>> {
        let mut fresh: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for row in rows {
            let get = |name| value(row, name).unwrap_or_default();
            let last = Last { stage: get("stage").to_owned(), plugin: get("plugin").to_owned() };
            let before = self.rows.insert(get("session_id").to_owned(), last);
            if before.is_none_or(|b| b.stage != get("stage")) {
                fresh.entry(get("stage")).or_default().push(row);
            }
        }
        fresh
    }

    /// What the swap did to the rows that were there.
    fn swap(&self) -> Option<Swapped> {
        let before = self.at_swap.as_ref()?;
        let mut swapped = Swapped::default();
        for (id, was) in before {
            let Some(now) = self.rows.get(id) else { continue };
            if was.stage == "early" {
                swapped.open += 1;
                swapped.gone_over += u64::from(was.plugin == VERSIONS[0] && now.plugin == VERSIONS[1]);
                swapped.lost += u64::from(now.stage == "retracted");
            } else {
                swapped.finished += 1;
                swapped.rewritten += u64::from(now.plugin != was.plugin);
            }
        }
        swapped.new =
            self.rows.iter().filter(|(id, r)| !before.contains_key(*id) && r.plugin == VERSIONS[1]).count();
        Some(swapped)
    }
}

/// What a swap did to the visits of the table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Swapped {
    open: u64,
    gone_over: u64,
    lost: u64,
    finished: u64,
    rewritten: u64,
    new: usize,
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
        for file in [CONFIG, "visitors.csv", "campaigns.csv"] {
            let from = workspace().join("examples/demo").join(file);
            doing(file, fs::copy(from, folder.join(file)))?;
        }
        let binary = target_dir().join("demo").join("tidemill");
        Ok(Demo { folder, binary })
    }

    fn tidemill(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    /// What a command says, if it does what it is asked.
    fn ask(&self, arguments: &[&str]) -> Result<Output, Failure> {
        let output = doing("tidemill cannot be started", self.tidemill(arguments).output())?;
        if output.status.success() {
            return Ok(output);
        }
        let mut failure = Failure::of(&format!("tidemill {}", arguments.join(" ")), output.status);
        failure.message.push_str(&format!("\n{}", String::from_utf8_lossy(&output.stderr).trim_end()));
        Err(failure)
    }

    fn build_plugins(&self) -> Result<(), Failure> {
        if let Some(mut add) = steps::add_target() {
            steps::run("rustup target add", &mut add)?;
        }
        for name in PLUGINS {
            let crate_dir = workspace().join("plugins").join(name);
            self.ask(&["plugin", "build", &crate_dir.to_string_lossy(), "--out", &format!("{name}.wasm")])?;
        }
        Ok(())
    }

    /// Its own process group, so that Ctrl-C reaches this program only, which then stops the run.
    fn start(&self) -> Result<Child, Failure> {
        let log = doing("demo/run.log", File::create(self.folder.join("run.log")))?;
        let out = doing("demo/run.log", log.try_clone())?;
        let child = self.tidemill(&["run", CONFIG]).process_group(0).stdout(out).stderr(log).spawn();
        doing("tidemill cannot be started", child)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("run.log")).unwrap_or_default()
    }

    /// Fails if the run has ended.
    fn runs(&self, child: &mut Child) -> Result<(), Failure> {
        let Some(status) = doing("tidemill", child.try_wait())? else { return Ok(()) };
        let mut failure = Failure::of("tidemill run ended by itself", status);
        failure.message.push_str(&format!("\n{}", self.log().trim_end()));
        Err(failure)
    }

    /// Waits until the run takes events over HTTP; where.
    fn address(&self, child: &mut Child, stop: &AtomicBool) -> Result<Option<String>, Failure> {
        let begun = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            self.runs(child)?;
            if let Some(address) = address(&self.log()) {
                return Ok(Some(address));
            }
            if begun.elapsed() > START_MAX {
                return Err(Failure::new("tidemill run takes no events over HTTP; demo/run.log may say why"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(None)
    }

    fn watch(&self, child: &mut Child, length: Option<Duration>, stop: &AtomicBool) -> Result<Seen, Failure> {
        let mut seen = Seen::default();
        let Some(address) = self.address(child, stop)? else { return Ok(seen) };
        let app = App::start(address);
        seen.posted = Some(app.posted.clone());
        let begun = Instant::now();
        let swap_after = length.map_or(SWAP_AFTER, |l| l / 2);
        let mut next = begun + LOOK_EVERY;
        loop {
            self.runs(child)?;
            if stop.load(Ordering::Relaxed) || length.is_some_and(|max| begun.elapsed() >= max) {
                return Ok(seen);
            }
            if seen.at_swap.is_none() && begun.elapsed() >= swap_after {
                self.swap(&mut seen)?;
            }
            if Instant::now() >= next {
                self.look(&mut seen, begun.elapsed());
                next = Instant::now() + LOOK_EVERY;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Puts the rule's next version in force, and says what is said.
    fn swap(&self, seen: &mut Seen) -> Result<(), Failure> {
        say("\n5. swapping the rule for its next version while events flow: tidemill deploy visits \\");
        say("     checkout-sessions-next.wasm pipeline.toml -m 'count carts'");
        let text = self.sessions();
        seen.take(&objects_with(&text, "session_id"));
        seen.at_swap = Some(seen.rows.clone());
        let begun = Instant::now();
        let arguments = ["deploy", "visits", "checkout-sessions-next.wasm", CONFIG, "-m", "count carts"];
        let output = self.ask(&arguments)?;
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            say(&format!("     {line}"));
        }
        say(&format!("   {}", String::from_utf8_lossy(&output.stdout).trim_end()));
        say(&format!(
            "   uploaded, compiled, tried on the open visits, and in force after {}",
            seconds(begun.elapsed())
        ));
        let link = self.ask(&["token", CONFIG, "--login"])?;
        say(&format!(
            "   the status page, by a link that works once: {}",
            String::from_utf8_lossy(&link.stdout).trim_end()
        ));
        Ok(())
    }

    /// The table as `tidemill sessions` shows it; empty while there is none.
    fn sessions(&self) -> String {
        let output = self.tidemill(&["sessions", CONFIG, "--json", "--limit", LIMIT]).output();
        output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
    }

    fn look(&self, seen: &mut Seen, time: Duration) {
        let text = self.sessions();
        let rows = objects_with(&text, "session_id");
        let mut fresh = seen.take(&rows);
        let counts: Vec<String> =
            fresh.iter().map(|(stage, rows)| format!("{} {stage}", rows.len())).collect();
        let new = if counts.is_empty() { "nothing new".to_owned() } else { counts.join(", ") };
        say(&format!(
            "\n  after {:>3.0} s: {} visits; since the last look {new}",
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
        seen.take(&objects_with(&text, "session_id"));
        let mut stages: BTreeMap<&str, u64> = BTreeMap::new();
        for row in seen.rows.values() {
            *stages.entry(&row.stage).or_default() += 1;
        }
        say("\n  visits by stage (demo/sessions.db)");
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
        if let Some(p) = &seen.posted {
            let n = |a: &std::sync::atomic::AtomicU64| a.load(Ordering::Relaxed);
            say(&format!(
                "  over HTTP: {} events acknowledged, {} of them sent a second time, {} requests that failed",
                n(&p.accepted),
                n(&p.repeated),
                n(&p.failed)
            ));
        }
        if let Some(s) = seen.swap() {
            say("  the swap:");
            say(&format!(
                "    {} visits were open; {} went over, their state migrated; the others ended before, and {} were lost",
                s.open, s.gone_over, s.lost
            ));
            say(&format!(
                "    {} were finished; {} of them have changed their version",
                s.finished, s.rewritten
            ));
            say(&format!("    {} visits began since and are cut by the new version", s.new));
        }
        say("\n  go on with: cd demo; then `tidemill sessions pipeline.toml`, `tidemill dead pipeline.toml`");
        say(&format!("  the binary is {}", self.binary.display()));
        if stages.is_empty() {
            return Err(Failure::new("no session was written; demo/run.log may say why"));
        }
        Ok(())
    }
}

/// One visit on one line.
fn line(row: &str) -> String {
    let get = |name| value(row, name).unwrap_or_default();
    let time = |name| get(name).parse::<i64>().unwrap_or(0);
    let length_s = (time("end_ms") - time("start_ms")) as f64 / 1000.0;
    let reason = Some(get("reason")).filter(|r| *r != "null").unwrap_or_default();
    let version = get("plugin").rsplit('@').next().unwrap_or_default();
    let fields: Vec<String> = ["pages", "carts", "paid", "visitor_segment", "campaign_channel"]
        .iter()
        .filter_map(|name| Some((name, value(row, name)?)))
        .filter(|(_, v)| !["", "null"].contains(v))
        .map(|(name, v)| format!("{name} {v}"))
        .collect();
    format!(
        "    {:<10} {:<14} {:>4} events {length_s:>6.1} s  {reason:<9} {version:<6} {}",
        get("stage"),
        get("key"),
        get("events"),
        fields.join(", ")
    )
}

/// Where the log says that events are taken.
fn address(log: &str) -> Option<String> {
    let (_, rest) = log.split_once("takes events at http://")?;
    let (address, _) = rest.split_once("/v1/events")?;
    Some(address.to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_events_are_taken_stands_in_the_log() {
        let log = "note: source `app` takes events at http://127.0.0.1:4711/v1/events\nnote: x";
        assert_eq!(address(log).as_deref(), Some("127.0.0.1:4711"));
        assert_eq!(address("note: source `app` takes events at http://127.0"), None);
    }

    #[test]
    fn what_a_swap_did_is_told_from_the_rows_before_and_after() {
        let row = |id, stage, plugin: &str| {
            format!("{{\"session_id\":\"{id}\",\"stage\":\"{stage}\",\"plugin\":\"{plugin}\"}}")
        };
        let [old, new] = VERSIONS;
        let mut seen = Seen::default();
        let before =
            [row("a", "early", old), row("b", "early", old), row("c", "final", old), row("d", "early", old)];
        assert_eq!(seen.take(&before.each_ref().map(String::as_str))["early"].len(), 3);
        assert_eq!(seen.swap(), None);
        seen.at_swap = Some(seen.rows.clone());
        let after = [
            row("a", "final", new),
            row("b", "final", old),
            row("d", "retracted", old),
            row("e", "early", new),
        ];
        let fresh = seen.take(&after.each_ref().map(String::as_str));
        assert_eq!(fresh["final"].len(), 2);
        let told = Swapped { open: 3, gone_over: 1, lost: 1, finished: 1, rewritten: 0, new: 1 };
        assert_eq!(seen.swap(), Some(told));
    }

    #[test]
    fn a_row_becomes_a_line() {
        let row = r#"{"session_id":"x","key":"buyer-00001","start_ms":1000,"end_ms":2500,"events":4,"stage":"early","reason":null,"plugin":"p@0.2.0","fields":{"pages":2,"paid":null}}"#;
        assert_eq!(
            line(row).split_whitespace().collect::<Vec<_>>(),
            ["early", "buyer-00001", "4", "events", "1.5", "s", "0.2.0", "pages", "2"]
        );
    }
}
