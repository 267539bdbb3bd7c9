//! The order of events, and a key that has a third of all: the same events, valid ones only.

use crate::error::Outcome;
use crate::findings::{Findings, Plot, Shape, Table, count, shown};
use crate::lab::Lab;
use crate::traffic::{Order, ordered};

pub(super) fn run(lab: &Lab) -> Outcome<Findings> {
    let events = lab.sizes.some_events();
    let mut found = Findings::default();
    let mut table = Table::new(
        format!("CPU s per million events (and as a multiple of the yardstick's), {} events", count(events)),
        &["traffic", "yardstick", "builtin:gap", "gap-sessions"],
    );
    let mut bars = vec![Vec::new(); 3];
    for order in Order::ALL {
        lab.say(&format!("  {}", order.name()));
        let input = ordered(lab, events, order)?;
        let n = crate::compare::lines(&input)?;
        let costs = lab.rounds(lab.sizes.rounds, &lab.three(&input, true)?)?;
        let figures: Vec<f64> = costs.iter().map(|c| c.per_million(n)).collect();
        let cell = |i: usize| format!("{} ({})", shown(figures[i]), shown(costs[i].ratio(&costs[0])));
        table.row([order.name().to_owned(), shown(figures[0]), cell(1), cell(2)]);
        bars.iter_mut().zip(&figures).for_each(|(bars, figure)| bars.push(*figure));
        for (i, rule) in ["builtin", "wasm"].iter().enumerate() {
            found.value(format!("order.{}.{rule}.ratio", order.name()), costs[i + 1].ratio(&costs[0]));
        }
    }
    found.tables.push(table);
    found.plots.push(Plot {
        name: "order".to_owned(),
        title: "Order of events".to_owned(),
        y: "CPU seconds per million events".to_owned(),
        shape: Shape::Bars {
            groups: Order::ALL.iter().map(|o| o.name().to_owned()).collect(),
            series: ["yardstick", "builtin:gap", "gap-sessions"]
                .map(str::to_owned)
                .into_iter()
                .zip(bars)
                .collect(),
        },
    });
    found.note("One key stays on one lane, in this traffic as in any other: a third of the events is then work of one thread.");
    Ok(found)
}
