//! kill -9 with a million open sessions: how long until events are processed again. The log holds what it would in the
//! middle of the day: each session was changed three times, so there are full images and what followed them.

use super::keys::grown;
use crate::config::{Input, Job, Rule};
use crate::error::{Doing, Outcome};
use crate::figures::{median, of_count};
use crate::findings::{Findings, Table, count, shown};
use crate::host::Host;
use crate::lab::Lab;
use crate::traffic::{Spread, live, live_line};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

pub(super) fn run(lab: &Lab) -> Outcome<Findings> {
    let keys = lab.sizes.pick(250_000, 1_000_000);
    let [first, more] = live(lab, keys, 2 * keys, Spread::Even)?;
    let input = grown(lab, &first)?;
    let job =
        Job { gap: "24h", ..Job::new(Rule::Plugin, Input::Followed(input.clone()), &lab.gap_sessions()?) };
    let config = lab.configured("run-recovery", &job.text())?;
    let mut host = Host::start(&lab.bin, &config)?;
    host.has_read(keys)?;
    super::keys::append(&input, &more)?;
    let mut read = 3 * keys;
    host.has_read(read)?;
    let open = host.metrics()?.sum("tidemill_open_sessions", "");
    let mut rounds = Vec::new();
    for round in 1..=lab.sizes.rounds.max(2) {
        host.kill();
        // What came while it was down.
        append_line(&input, &live_line(read, read % keys))?;
        read += 1;
        let begun = Instant::now();
        host = Host::spawn(&lab.bin, &config)?;
        host.runs()?;
        let reads = begun.elapsed().as_secs_f64();
        host.has_read(read)?;
        let committed = begun.elapsed().as_secs_f64();
        rounds.push((reads, committed, host.cpu_s()?));
        lab.say(&format!(
            "  round {round}: reads after {reads:.2} s, the next event is committed after {committed:.2} s"
        ));
    }
    let log = size_of(&lab.path("run-recovery/state/pipelines"));
    host.stop()?;
    let of = |f: &dyn Fn(&(f64, f64, f64)) -> f64| median(rounds.iter().map(f).collect());
    let (reads, committed, cpu_s) = (of(&|r| r.0), of(&|r| r.1), of(&|r| r.2));
    let mut found = Findings::default();
    let mut table = Table::new(
        format!("after kill -9, {} open sessions", count(open as u64)),
        &["it reads again after", "the next event is committed after", "CPU s until then", "log MiB"],
    );
    table.row([
        format!("{} s", shown(reads)),
        format!("{} s", shown(committed)),
        shown(cpu_s),
        format!("{:.0}", of_count(log) / f64::from(1 << 20)),
    ]);
    found.tables.push(table);
    found.value("recovery.reads_s", reads);
    found.value("recovery.committed_s", committed);
    found.value("recovery.sessions", open);
    found.note(
        "From the start of the process. The commit waits for the end of an epoch of 1 s. The log was in the page cache, as it is \
         after a crash of the process alone.",
    );
    Ok(found)
}

fn append_line(path: &Path, line: &str) -> Outcome<()> {
    let mut file = File::options().append(true).open(path).doing(path.display())?;
    file.write_all(line.as_bytes()).doing(path.display())
}

/// Bytes of all files below a folder.
fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|e| if e.path().is_dir() { size_of(&e.path()) } else { e.metadata().map_or(0, |m| m.len()) })
        .sum()
}
