//! A plugin that does not return, in one pipeline, and the rows of another pipeline in the same host: in calm, and meanwhile.

use crate::config::quoted;
use crate::error::{Doing, Failure, Outcome};
use crate::figures::{Latencies, OpenLoop};
use crate::findings::{Findings, Table, shown};
use crate::host::{Host, wait_for};
use crate::lab::Lab;
use crate::posting::Tail;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Between two events of the neighbour.
const EVERY: Duration = Duration::from_millis(5);
/// Events at which the plugin does not return.
const LOOPS: u64 = 400;
/// How long the neighbour is looked at after the runaway is suspended, so that the last rows of that time are there.
const AFTER: Duration = Duration::from_millis(300);

pub(super) fn run(lab: &Lab) -> Outcome<Findings> {
    let guest = lab.component("tests/guests/hostile-sessions")?;
    let rounds = lab.sizes.pick(1, 3);
    let calm_for = Duration::from_secs(lab.sizes.pick(5, 12));
    let (mut calm, mut storm) = (Latencies::new()?, Latencies::new()?);
    let (mut stopped_ms, mut suspended_s) = (0.0_f64, 0.0_f64);
    for round in 1..=rounds {
        let one = one(lab, &guest, calm_for)?;
        calm.add_all(&one.calm);
        storm.add_all(&one.storm);
        stopped_ms = stopped_ms.max(one.stopped_ms);
        suspended_s = suspended_s.max(one.suspended_s);
        lab.say(&format!("  round {round} of {rounds}: suspended after {:.2} s", one.suspended_s));
    }
    let mut found = Findings::default();
    let mut table = Table::new(
        "ms from an event of the neighbour to its row, epochs of 100 ms",
        &["", "rows", "p50", "p99", "max"],
    );
    for (name, l) in [("in calm", &calm), ("beside a runaway, until it is suspended", &storm)] {
        table.row([
            name.to_owned(),
            l.len().to_string(),
            shown(l.at_ms(0.5)),
            shown(l.at_ms(0.99)),
            shown(l.max_ms()),
        ]);
    }
    found.tables.push(table);
    found.note(format!(
        "A call was stopped after {} ms, the pipeline suspended after {} s: the longest of {rounds}.",
        shown(stopped_ms),
        shown(suspended_s)
    ));
    found.value("runaway.stopped_ms", stopped_ms);
    found.value("runaway.suspended_s", suspended_s);
    found.value("runaway.neighbour.ratio", storm.at_ms(0.99) / calm.at_ms(0.99));
    found.value("runaway.neighbour.added_ms", storm.at_ms(0.99) - calm.at_ms(0.99));
    Ok(found)
}

struct One {
    calm: Latencies,
    storm: Latencies,
    stopped_ms: f64,
    suspended_s: f64,
}

fn one(lab: &Lab, guest: &Path, calm_for: Duration) -> Outcome<One> {
    let config = lab.configured("run-runaway", &config(guest, &lab.gap_sessions()?))?;
    let (bad, good) = (lab.path("run-runaway/bad.jsonl"), lab.path("run-runaway/good.jsonl"));
    for path in [&bad, &good] {
        std::fs::write(path, "").doing(path.display())?;
    }
    let mut host = Host::start(&lab.bin, &config)?;
    let mut neighbour = Neighbour::of(&good, &lab.path("run-runaway/good_rows.jsonl"))?;
    // The first epochs are not measured.
    neighbour.until(&mut host, |_, passed| Ok((passed > Duration::from_secs(1)).then_some(())))?;
    let (calm, ()) = neighbour.until(&mut host, |_, passed| Ok((passed > calm_for).then_some(())))?;
    let mut lines = String::new();
    for n in 0..LOOPS {
        let _ = writeln!(lines, "{{\"u\":\"k{n}\",\"t\":{},\"act\":\"loop\"}}", now_ms());
    }
    let mut file = File::options().append(true).open(&bad).doing(bad.display())?;
    file.write_all(lines.as_bytes()).doing(bad.display())?;
    let mut suspended = None;
    let (storm, suspended_s) = neighbour.until(&mut host, |host, passed| {
        // What it says costs it nothing to be read, other than its answers.
        if suspended.is_none() && host.said().contains("suspended") {
            suspended = Some(passed);
        }
        Ok(suspended.filter(|at| passed > *at + AFTER).map(|at| at.as_secs_f64()))
    })?;
    let shown = host.pipeline("bad")?;
    host.kill();
    let fault = shown["suspended"]["first_fault"].as_str().unwrap_or_default();
    let stopped_ms = stopped_after_ms(fault)
        .ok_or_else(|| Failure::new(format!("no time in what was said of the call: {shown}")))?;
    Ok(One { calm, storm, stopped_ms, suspended_s })
}

/// Two pipelines of two teams, each with a file that grows.
fn config(guest: &Path, gap: &Path) -> String {
    let mut t = String::from("[server]\ndata_dir = \"state\"\nlisten = \"127.0.0.1:0\"\nepoch = \"100ms\"\n");
    for (name, component, config) in [("bad", guest, ""), ("good", gap, "config = { gap = \"30s\" }")] {
        let _ = write!(
            t,
            "[plugin.{name}]\npath = {}\n{config}\n\
             [source.{name}]\nkind = \"file\"\npath = \"{name}.jsonl\"\nformat = \"json\"\nkey = \"u\"\n\
             time = {{ field = \"t\", unit = \"ms\" }}\nid = \"position\"\ndisorder = \"1s\"\nfollow = true\nidle = \"500ms\"\n\
             [pipeline.{name}]\nfrom = [\"{name}\"]\nsession = {{ plugin = \"{name}\" }}\nearly = \"epoch\"\n\
             to = [\"{name}_rows\"]\ndead = \"{name}_dead\"\n\
             [sink.{name}_rows]\nkind = \"file\"\npath = \"{name}_rows.jsonl\"\n\
             [sink.{name}_dead]\nkind = \"file\"\npath = \"{name}_dead.jsonl\"\n",
            quoted(component)
        );
    }
    t
}

/// The pipeline beside it: one event every few milliseconds, each of a key of its own.
struct Neighbour {
    events: File,
    rows: Tail,
    pace: OpenLoop,
    /// Of the phase at hand.
    begun: Instant,
    /// The first event of the phase at hand.
    first: u32,
    written: u32,
    seen: Vec<Option<Duration>>,
}

impl Neighbour {
    fn of(events: &Path, rows: &Path) -> Outcome<Neighbour> {
        Ok(Neighbour {
            events: File::options().append(true).open(events).doing(events.display())?,
            rows: Tail::of(rows),
            pace: OpenLoop { every: EVERY, number: u32::MAX },
            begun: Instant::now(),
            first: 0,
            written: 0,
            seen: Vec::new(),
        })
    }

    /// Writes events at its pace until `done` says so, and gives the latencies of those that were due in that time, once all are there.
    fn until<T>(
        &mut self,
        host: &mut Host,
        mut done: impl FnMut(&Host, Duration) -> Outcome<Option<T>>,
    ) -> Outcome<(Latencies, T)> {
        (self.first, self.begun) = (self.written, Instant::now());
        let mut asked = Instant::now();
        let last = wait_for("the end of a phase", || {
            while self.pace.due(self.written - self.first) <= self.begun.elapsed() {
                let line = format!("{{\"u\":\"v{}\",\"t\":{}}}\n", self.written, now_ms());
                self.events.write_all(line.as_bytes()).doing("the neighbour's file")?;
                self.written += 1;
                self.seen.push(None);
            }
            self.look()?;
            // Asking costs the host something: not all the time.
            if asked.elapsed() < 4 * EVERY {
                return Ok(None);
            }
            asked = Instant::now();
            done(host, self.begun.elapsed())
        })?;
        wait_for("the neighbour's rows", || {
            self.look()?;
            host.lives()?;
            Ok(self.seen.iter().all(Option::is_some).then_some(()))
        })?;
        let mut latencies = Latencies::new()?;
        self.seen[self.first as usize..].iter().flatten().for_each(|l| latencies.add(*l));
        Ok((latencies, last))
    }

    fn look(&mut self) -> Outcome<()> {
        let now = self.begun.elapsed();
        let (seen, pace, first) = (&mut self.seen, self.pace, self.first);
        self.rows.lines(|row| {
            let key = row.split_once("\"key\":\"v").and_then(|(_, rest)| rest.split('"').next());
            if let Some(n) = key.and_then(|k| k.parse::<u32>().ok())
                && let Some(slot) = seen.get_mut(n as usize)
            {
                // Rows of earlier phases were all seen before this one began.
                slot.get_or_insert_with(|| pace.took(n.saturating_sub(first), now));
            }
        })
    }
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis())
}

/// Of "… was stopped after 25.3 ms, where …".
fn stopped_after_ms(fault: &str) -> Option<f64> {
    fault.split_once("was stopped after ")?.1.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_stopped_call_is_read() {
        assert_eq!(stopped_after_ms("the call was stopped after 25.3 ms, where 25 ms were left"), Some(25.3));
        assert_eq!(stopped_after_ms("it panicked"), None);
    }
}
