//! From HTTP to the row: how long it takes at half of full load, from when a request was due (open loop), until the row of
//! one of its events stands in the sink. Full load is what the host takes, commits and delivers when it is flooded by the
//! same client on the same machine.

use crate::config::{Input, Job, Rule};
use crate::error::{Failure, Outcome};
use crate::figures::{Latencies, OpenLoop, of_count};
use crate::findings::{Findings, Plot, Shape, Table, count, shown};
use crate::host::Host;
use crate::lab::Lab;
use crate::posting::{BATCH, Posted, Posting, Source, syncs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What is not measured: until the first epochs are over.
const WARM_UP: Duration = Duration::from_secs(2);
/// As configured, ms.
const EPOCH_MS: f64 = 1000.0;

pub(super) fn run(lab: &Lab) -> Outcome<Findings> {
    let quiet = quiet_disk(lab)?;
    let full = full_load(lab)?;
    let length = Duration::from_secs(lab.sizes.pick(10, 50));
    let pace = OpenLoop::of_rate(full / 2.0, BATCH, length);
    let run = |name: &str, epoch, hot_key| -> Outcome<Posted> {
        let mut host = start(lab, epoch)?;
        let (rows, scratch) = (lab.path("run-latency/rows.jsonl"), lab.path("run-latency/scratch"));
        let posted = Source::of(&host)?.at_pace(&Posting { pace, hot_key }, &rows, &scratch);
        host.lives()?;
        let posted = posted?;
        lab.say(&format!(
            "  {name}: p50 {} ms, p99 {} ms",
            shown(posted.row.at_ms(0.5)),
            shown(posted.row.at_ms(0.99))
        ));
        host.stop()?;
        Ok(posted)
    };
    let even = run("epochs of 1 s", "1s", false)?;
    let short = run("epochs of 100 ms", "100ms", false)?;
    let hot = run("epochs of 100 ms, beside a hot key", "100ms", true)?;

    let mut found = Findings::default();
    let mut table = Table::new(
        format!(
            "ms, at {} events a second, half of full load ({}), requests of {BATCH}, {} of each run",
            count((full / 2.0) as u64),
            count(full as u64),
            count(even.row.len())
        ),
        &["", "p50", "p90", "p99", "p99.9", "max"],
    );
    let mut line = |name: &str, l: &Latencies| {
        let figures = [0.5, 0.9, 0.99, 0.999].map(|part| shown(l.at_ms(part)));
        table.row([name.to_owned()].into_iter().chain(figures).chain([shown(l.max_ms())]));
    };
    line("to the row, epochs of 1 s", &even.row);
    line("to the row, epochs of 100 ms", &short.row);
    line("to the row of another key, beside one with a third of all, epochs of 100 ms", &hot.row);
    line("to the acknowledgement, epochs of 1 s", &even.accepted);
    line("the disk's sync of 16 KiB, meanwhile", &even.sync);
    line("the disk's sync of 16 KiB, before, by itself", &quiet);
    found.tables.push(table);
    found.plots.push(Plot {
        name: "latency".to_owned(),
        title: "From HTTP to the row at half of full load".to_owned(),
        y: "ms".to_owned(),
        shape: Shape::Bars {
            groups: ["p50", "p90", "p99", "p99.9"].map(str::to_owned).to_vec(),
            series: [
                ("epochs of 1 s", &even.row),
                ("epochs of 100 ms", &short.row),
                ("beside a hot key", &hot.row),
            ]
            .map(|(name, l)| (name.to_owned(), [0.5, 0.9, 0.99, 0.999].map(|part| l.at_ms(part)).to_vec()))
            .to_vec(),
        },
    });
    found.value("latency.full_load", full);
    found.value("latency.p99_ms", even.row.at_ms(0.99));
    found.value("latency.sync_p99_ms", quiet.at_ms(0.99));
    found.value("latency.over_ms", even.row.at_ms(0.99) - EPOCH_MS - quiet.at_ms(0.99));
    found.value("latency.hot.ratio", hot.row.at_ms(0.99) / short.row.at_ms(0.99));
    let kept = of_count(even.events) / even.seconds / (full / 2.0);
    found.value("latency.kept_pace", kept);
    found.note(format!(
        "Latency counts from when a request was due, whenever it was sent: what waits behind a slow one is counted with its \
         wait. The client kept {} % of its pace; it takes part of the two cores.",
        shown(100.0 * kept)
    ));
    Ok(found)
}

fn start(lab: &Lab, epoch: &'static str) -> Outcome<Host> {
    let job = Job::new(Rule::Plugin, Input::Posted, &lab.gap_sessions()?);
    lab.start("run-latency", &Job { early: true, epoch, disorder: "1s", ..job })
}

/// What the disk's sync takes when nothing else uses it.
fn quiet_disk(lab: &Lab) -> Outcome<Latencies> {
    let scratch = lab.path("scratch");
    let done = AtomicBool::new(false);
    let latencies = std::thread::scope(|scope| {
        let syncs = scope.spawn(|| syncs(&scratch, &done));
        std::thread::sleep(Duration::from_secs(lab.sizes.pick(3, 10)));
        done.store(true, Ordering::Relaxed);
        syncs.join()
    });
    latencies.map_err(|_| Failure::new("a thread of the benchmark ended without an answer"))?
}

/// Events a second that are taken, committed and delivered when as many come as can.
fn full_load(lab: &Lab) -> Outcome<f64> {
    let mut host = start(lab, "1s")?;
    let source = Source::of(&host)?;
    let length = Duration::from_secs(lab.sizes.pick(8, 20));
    let read = |host: &Host| -> Outcome<(f64, Instant)> {
        Ok((host.metrics()?.sum("tidemill_events_total", ""), Instant::now()))
    };
    let (first, last) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| source.flood(length));
        std::thread::sleep(WARM_UP);
        let first = read(&host);
        std::thread::sleep(length.saturating_sub(2 * WARM_UP));
        let last = read(&host);
        let flooded =
            flood.join().map_err(|_| Failure::new("a thread of the benchmark ended without an answer"));
        flooded??;
        Ok::<_, Failure>((first?, last?))
    })?;
    host.lives()?;
    host.stop()?;
    let rate = (last.0 - first.0) / (last.1 - first.1).as_secs_f64();
    lab.say(&format!("  full load: {} events a second", count(rate as u64)));
    if rate > 0.0 { Ok(rate) } else { Err(Failure::new("nothing was committed while the host was flooded")) }
}
