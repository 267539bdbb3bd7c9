//! The whole job: a file to JSON lines of final sessions, epochs of a second, each made durable; the same by the yardstick,
//! whose sessions must be the same.

use crate::compare::{Table as Sessions, lines};
use crate::config::{Input, Job, Rule, Sink};
use crate::error::{Failure, Outcome};
use crate::figures::of_count;
use crate::findings::{Findings, Plot, Shape, Table, count, shown};
use crate::lab::{Costs, Lab, Program, room_of};
use crate::traffic;

pub(super) fn run(lab: &Lab) -> Outcome<Findings> {
    let events = lab.sizes.events;
    let input = traffic::clean(lab, events)?;
    let mut programs = lab.three(&input, false)?;
    let component = lab.gap_sessions()?;
    let job = |rule| Job::new(rule, Input::File(input.clone()), &component);
    let early = Job { early: true, ..job(Rule::Plugin) };
    programs.push((EARLY.to_owned(), Program::Tidemill { room: "run-early", job: early, valid: false }));
    let reads = Job { reads: true, ..job(Rule::Plugin) };
    programs.push((READS.to_owned(), Program::Tidemill { room: "run-reads", job: reads, valid: false }));
    let costs = lab.rounds(lab.sizes.rounds, &programs)?;
    let same = compare(lab, events)?;
    let mut rows: Vec<(&str, &Costs)> = programs.iter().map(|(name, _)| name.as_str()).zip(&costs).collect();
    let sqlite = Job { sink: Sink::Sqlite, ..job(Rule::BuiltIn) };
    let cost = Costs(vec![lab.run(&Program::Tidemill { room: "run-sqlite", job: sqlite, valid: false })?]);
    rows.push((SQLITE, &cost));
    let mut found = Findings::default();
    found.tables.push(table(events, &rows));
    found.note(same);
    for (rule, cost) in Rule::ALL.iter().zip(&costs[1..]) {
        found.value(format!("whole.{}.ratio", rule.name()), cost.ratio(&costs[0]));
    }
    found.value("whole.early.ratio", costs[3].ratio(&costs[0]));
    found.value("whole.early.growth", costs[3].ratio(&costs[2]));
    found.value("whole.reads.ratio", costs[4].ratio(&costs[0]));
    found.value("whole.wasm.of_built_in", costs[2].ratio(&costs[1]));
    found.plots.push(Plot {
        name: "whole".to_owned(),
        title: "The whole job".to_owned(),
        y: "CPU seconds per million events".to_owned(),
        shape: Shape::Bars {
            groups: rows.iter().map(|(name, _)| (*name).to_owned()).collect(),
            series: vec![(String::new(), rows.iter().map(|(_, c)| c.per_million(events)).collect())],
        },
    });
    Ok(found)
}

const EARLY: &str = "gap-sessions, early rows";
const READS: &str = "gap-sessions, with a field that ends sessions";
const SQLITE: &str = "builtin:gap into SQLite";

/// The first row is what the others are a multiple of.
pub(super) fn table(events: u64, rows: &[(&str, &Costs)]) -> Table {
    let mut table = Table::new(
        format!("{} events", count(events)),
        &["", "CPU s per million events", "ratio", "from, to", "wall s", "peak MiB"],
    );
    let yardstick = rows[0].1;
    for (name, cost) in rows {
        let (least, most) = cost.ratio_range(yardstick);
        let whole = cost.0.len() == yardstick.0.len();
        table.row([
            (*name).to_owned(),
            shown(cost.per_million(events)),
            if whole { shown(cost.ratio(yardstick)) } else { String::new() },
            if whole && cost.0.len() > 1 {
                format!("{}, {}", shown(least), shown(most))
            } else {
                String::new()
            },
            shown(cost.wall_s()),
            format!("{:.0}", cost.peak_mib()),
        ]);
    }
    table
}

/// Both rules beside the yardstick, in their last runs.
fn compare(lab: &Lab, events: u64) -> Outcome<String> {
    lab.say("  comparing the results");
    let native = Sessions::read(&lab.path("native.jsonl"))?;
    let left_out = lines(&lab.path("native-dead.jsonl"))?;
    for rule in Rule::ALL {
        let folder = lab.path(room_of(rule));
        let ours = Sessions::read(&folder.join("rows.jsonl"))?;
        let sessions = ours.sessions();
        let (differences, some) = native.differences(ours);
        let dead = lines(&folder.join("dead.jsonl"))?;
        if differences > 0 || dead != left_out {
            return Err(Failure::differs(format!(
                "{}: {sessions} sessions, the yardstick {}; {differences} differ; {dead} lines left out, the yardstick {left_out}\n{}",
                rule.name(),
                native.sessions(),
                some.join("\n")
            )));
        }
    }
    // The yardstick also wants a known type and a url, and takes no time before 1970; such lines are late here, not invalid.
    Ok(format!(
        "All made the same {} sessions of (user, first, last, count) and left out as many lines: {} ({} %).",
        count(native.sessions()),
        count(left_out),
        shown(100.0 * of_count(left_out) / of_count(events))
    ))
}
