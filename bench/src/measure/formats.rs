//! Formats of records: the same valid events as JSON, as CSV and as a web server logs them; the yardstick reads JSON alone.

use crate::config::{Format, Input, Job, Rule};
use crate::error::Outcome;
use crate::findings::{Findings, Table, count, shown};
use crate::lab::{Lab, Program};
use crate::traffic::{Order, combined, csv, ordered};

pub(super) fn run(lab: &Lab) -> Outcome<Findings> {
    let events = lab.sizes.some_events();
    let json = ordered(lab, events, Order::Disordered)?;
    let n = crate::compare::lines(&json)?;
    let component = lab.gap_sessions()?;
    let inputs = [
        ("json", Format::Json, json.clone()),
        ("csv", Format::Csv, csv(lab, events)?),
        ("combined", Format::Combined, combined(lab, events)?),
    ];
    let mut programs = vec![("yardstick, JSON".to_owned(), Program::Yardstick(&json))];
    for (name, format, path) in &inputs {
        for (rule, room) in [(Rule::BuiltIn, "run-built-in"), (Rule::Plugin, "run-plugin")] {
            let job = Job::new(rule, Input::File(path.clone()), &component);
            // Times of a second each: what came 9.9 s late may be 10.9 s late now.
            let disorder = if *format == Format::Combined { "11s" } else { job.disorder };
            let job = Job { format: *format, disorder, ..job };
            programs.push((format!("{}, {name}", rule.name()), Program::Tidemill { room, job, valid: true }));
        }
    }
    let costs = lab.rounds(lab.sizes.rounds.min(3), &programs)?;
    let mut found = Findings::default();
    let mut table = Table::new(
        format!(
            "CPU s per million events (and as a multiple of the yardstick's on JSON), {} events",
            count(n)
        ),
        &["format", "bytes an event", "builtin:gap", "gap-sessions"],
    );
    for (i, (name, _, path)) in inputs.iter().enumerate() {
        let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
        let cell =
            |c: usize| format!("{} ({})", shown(costs[c].per_million(n)), shown(costs[c].ratio(&costs[0])));
        table.row([(*name).to_owned(), shown(bytes as f64 / n as f64), cell(1 + 2 * i), cell(2 + 2 * i)]);
        found.value(format!("formats.{name}.ratio"), costs[1 + 2 * i].ratio(&costs[0]));
    }
    found.tables.push(table);
    found.note(format!("The yardstick: {} CPU s per million events.", shown(costs[0].per_million(n))));
    Ok(found)
}
