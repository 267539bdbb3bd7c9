//! How the cost of an event grows with the number of live keys: each key comes once, and then any of them at random, after Zipf's
//! law or all alike, with a gap so long that none of them ends. What is measured begins when all are there.

use super::stage::measure;
use crate::config::{Input, Job, Rule};
use crate::error::{Doing, Outcome};
use crate::figures::of_count;
use crate::findings::{Findings, Plot, Shape, Table, count, shown};
use crate::lab::Lab;
use crate::traffic::{Spread, live};
use std::fs::File;

pub(super) fn run(lab: &Lab) -> Outcome<Findings> {
    let numbers: &[u64] =
        lab.sizes.pick(&[10_000, 100_000, 1_000_000], &[10_000, 100_000, 1_000_000, 10_000_000]);
    let events = lab.sizes.pick(1_000_000, 4_000_000);
    let mut found = Findings::default();
    let mut table = Table::new(
        format!("{} events of keys that are all live", count(events)),
        &[
            "live keys",
            "whole job, Wasm",
            "session stage, Wasm",
            "session stage, built in",
            "peak MiB of the whole job",
        ],
    );
    let mut lines: [Vec<(f64, f64)>; 4] = Default::default();
    for keys in numbers {
        let (zipf, _) = whole_job(lab, *keys, events, Spread::Zipf)?;
        let (even, mib) = whole_job(lab, *keys, events, Spread::Even)?;
        let [stage, built_in] = [Rule::Plugin, Rule::BuiltIn].map(|rule| {
            let (keys, events) = (keys.to_string(), events.to_string());
            measure(lab, rule, "24h", false, &["--spread", "even", "--keys", &keys, "--events", &events])
        });
        let ns = [zipf, even, stage?[0].stage_ns, built_in?[0].stage_ns];
        lab.say(&format!("  {} keys: {} ns, all keys alike {}", count(*keys), shown(ns[0]), shown(ns[1])));
        lines.iter_mut().zip(ns).for_each(|(line, ns)| line.push((of_count(*keys), ns)));
        let cells = ns.map(|ns| format!("{} ns", shown(ns)));
        table.row([count(*keys)].into_iter().chain(cells).chain([format!("{mib:.0}")]));
    }
    let growth = |line: &[(f64, f64)]| line[line.len() - 1].1 / line[0].1;
    found.value("keys.whole.growth", growth(&lines[0]));
    found.value("keys.even.growth", growth(&lines[1]));
    found.value("keys.stage.growth", growth(&lines[2]));
    found.value("keys.most", of_count(numbers[numbers.len() - 1]));
    found.tables.push(table);
    found.note(
        "Where all keys come alike, an event of ten million keys finds nothing of its key in the processor's caches, and an epoch holds \
         hardly two events of one key, so that each brings a state into the log. The session stage is measured with such keys.",
    );
    found.plots.push(Plot {
        name: "keys".to_owned(),
        title: "Live keys".to_owned(),
        y: "CPU ns an event".to_owned(),
        shape: Shape::Lines {
            x: "live keys".to_owned(),
            series: NAMES.map(str::to_owned).into_iter().zip(lines).collect(),
        },
    });
    Ok(found)
}

/// What is measured of each number of keys.
const NAMES: [&str; 4] =
    ["whole job, Zipf's law", "whole job, all alike", "session stage, Wasm", "session stage, built in"];

/// CPU ns an event once all keys are live, and the memory that it then has, MiB.
fn whole_job(lab: &Lab, keys: u64, events: u64, spread: Spread) -> Outcome<(f64, f64)> {
    let [first, more] = live(lab, keys, events, spread)?;
    let input = grown(lab, &first)?;
    let job =
        Job { gap: "24h", ..Job::new(Rule::Plugin, Input::Followed(input.clone()), &lab.gap_sessions()?) };
    let mut host = lab.start("run-live", &job)?;
    host.has_read(keys)?;
    let before = host.cpu_s()?;
    append(&input, &more)?;
    host.has_read(keys + events)?;
    let ns = (host.cpu_s()? - before) * 1e9 / of_count(events);
    let mib = host.resident_bytes()? / f64::from(1 << 20);
    host.stop()?;
    Ok((ns, mib))
}

/// A copy of a file, to be appended to.
pub(super) fn grown(lab: &Lab, first: &std::path::Path) -> Outcome<std::path::PathBuf> {
    let input = lab.path("live.jsonl");
    std::fs::copy(first, &input).doing(input.display())?;
    Ok(input)
}

/// Puts the whole of a file at the end of another, by the kernel.
pub(super) fn append(to: &std::path::Path, from: &std::path::Path) -> Outcome<()> {
    use std::io::{Seek as _, SeekFrom};
    // Not opened for appending: the kernel copies between files only where the place is ours.
    let mut to = File::options().write(true).open(to).doing(to.display())?;
    to.seek(SeekFrom::End(0)).doing("the end of the input")?;
    std::io::copy(&mut File::open(from).doing(from.display())?, &mut to).doing("appending")?;
    Ok(())
}
