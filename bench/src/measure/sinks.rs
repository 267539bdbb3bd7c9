//! Rows a second into each sink: a rule that makes a row of nearly each event, so that the sink has the work.

use crate::cluster::Cluster;
use crate::compare::lines;
use crate::config::{Input, Job, Rule, Sink, topic_of_rows};
use crate::error::{Outcome, there};
use crate::figures::of_count;
use crate::findings::{Findings, Table, count, shown};
use crate::lab::{Costs, Lab, Program};
use crate::traffic::{Order, ordered};
use std::sync::Arc;
use tidemill_services::bigquery::BigQuery;
use tidemill_services::postgres::Postgres;
use tidemill_services::pubsub::PubSub;

const NAMES: [&str; 7] = ["none", "JSON lines", "SQLite", "Kafka", "BigQuery", "Postgres", "Pub/Sub"];
/// Whoever is on this machine may do all.
const OPEN: (&str, &str) = ("pg_hba.conf", "host all all 127.0.0.1/32 trust\n");

pub(super) fn run(lab: &Lab) -> Outcome<Findings> {
    let input = ordered(lab, lab.sizes.some_events() / 2, Order::Disordered)?;
    let component = lab.gap_sessions()?;
    let cluster = Cluster::start()?;
    let bigquery = BigQuery::start("p", "d", "EU");
    // As it is by itself, so that what it says yes to is on its disk.
    let postgres =
        there("Postgres", Postgres::start(&["fsync=on", "shared_buffers=128MB", "autovacuum=on"], &[OPEN]))?;
    let database = Arc::new(postgres).database();
    let base = Job { gap: "1ms", ..Job::new(Rule::BuiltIn, Input::File(input), &component) };
    let mut costs = vec![Costs::default(); NAMES.len()];
    let rounds = lab.sizes.rounds.min(3);
    let mut rows = 0;
    for round in 0..rounds {
        for i in 0..NAMES.len() {
            let which = (i + round as usize) % NAMES.len();
            // Each time a new one: a topic and a table know how far they are.
            let mut pubsub = None;
            let (sink, service) = match which {
                0 => (Sink::Nothing, String::new()),
                1 => (Sink::File, String::new()),
                2 => (Sink::Sqlite, String::new()),
                3 => {
                    cluster.make(&topic_of_rows(round), 1)?;
                    (Sink::Topic(round), cluster.brokers())
                }
                4 => (Sink::BigQuery(round), bigquery.endpoint()),
                5 => (Sink::Postgres(round), database.url()),
                _ => {
                    // It keeps all messages.
                    let service = pubsub.insert(there("Pub/Sub", PubSub::start())?);
                    service.topic("rows");
                    (Sink::PubSub, format!("http://{}", service.address()))
                }
            };
            let job = Job { sink, service, ..base.clone() };
            let cost = lab.run(&Program::Tidemill { room: "run-sinks", job, valid: false })?;
            if which == 1 {
                rows = lines(&lab.path("run-sinks/rows.jsonl"))?;
            }
            bigquery.forget_requests();
            lab.say(&format!("  round {} of {rounds}: {}: {:.1} s", round + 1, NAMES[which], cost.wall_s));
            costs[which].0.push(cost);
        }
    }
    let mut found = Findings::default();
    let mut table = Table::new(
        format!("{} rows", count(rows)),
        &["sink", "rows a second", "CPU s per million rows beyond no sink", "peak MiB"],
    );
    for (name, cost) in NAMES.iter().zip(&costs).skip(1) {
        let a_second = of_count(rows) / cost.wall_s();
        table.row([
            (*name).to_owned(),
            count(a_second.round() as u64),
            shown(cost.per_million(rows) - costs[0].per_million(rows)),
            format!("{:.0}", cost.peak_mib()),
        ]);
        found.value(format!("sinks.{}.rows_a_second", name.to_lowercase()), a_second);
    }
    found.tables.push(table);
    found.note(
        "Reading and folding included; the next epoch is read while the last one is sent. Kafka is a broker on the same machine, Postgres a \
         server with its disk, BigQuery one in the benchmark's process that answers at once, Pub/Sub the stand-in of Google's Go library, \
         without ordering keys.",
    );
    Ok(found)
}
