//! Two lanes beside one: the input in the page cache (each run has read it just before), and a sink that takes no row.

use crate::config::{Input, Job, Rule, Sink};
use crate::error::Outcome;
use crate::findings::{Findings, Table, count, shown};
use crate::lab::{Costs, Lab, Program};
use crate::traffic;

pub(super) fn run(lab: &Lab) -> Outcome<Findings> {
    let events = lab.sizes.events;
    let input = traffic::clean(lab, events)?;
    let component = lab.gap_sessions()?;
    // Into the page cache, whoever read what before.
    crate::compare::lines(&input)?;
    let mut programs = Vec::new();
    for rule in Rule::ALL {
        for lanes in [1, 2] {
            let job = Job::new(rule, Input::File(input.clone()), &component);
            let job = Job { sink: Sink::Nothing, lanes: Some(lanes), ..job };
            programs.push((
                format!("{}, lanes: {lanes}", rule.name()),
                Program::Tidemill { room: "run-lanes", job, valid: false },
            ));
        }
    }
    let costs = lab.rounds(lab.sizes.rounds, &programs)?;
    let mut found = Findings::default();
    let mut table = Table::new(
        format!("{} events", count(events)),
        &["", "CPU s per million events", "of one lane's", "wall s", "of one lane's", "peak MiB"],
    );
    for (i, (name, _)) in programs.iter().enumerate() {
        let (own, one) = (&costs[i], &costs[i - i % 2]);
        table.row([
            name.clone(),
            shown(own.per_million(events)),
            shown(own.ratio(one)),
            shown(own.wall_s()),
            shown(own.wall_s() / one.wall_s()),
            format!("{:.0}", own.peak_mib()),
        ]);
    }
    found.tables.push(table);
    let ratio = |two: &Costs, one: &Costs| two.ratio(one);
    found.value("lanes.builtin.ratio", ratio(&costs[1], &costs[0]));
    found.value("lanes.wasm.ratio", ratio(&costs[3], &costs[2]));
    found.value("lanes.cores", crate::machine::cores() as f64);
    found.note(format!(
        "With the reader, two lanes are three busy threads; this machine has {} cores.",
        crate::machine::cores()
    ));
    Ok(found)
}
