//! From a topic: the same valid events out of Kafka and out of a file, and the topic read plainly by the client that tidemill has.
//! What the client costs is the client's; what is beyond it should be what the same events cost out of a file.

use crate::child::{self, Cost};
use crate::cluster::{Cluster, PARTITIONS};
use crate::compare::lines;
use crate::config::{Input, Job, Rule};
use crate::error::{Doing, Outcome};
use crate::findings::{Findings, Table, count, shown};
use crate::lab::{Costs, Lab, Program};
use crate::traffic::{Order, ordered};
use std::process::Command;
use std::time::Instant;

const TOPIC: &str = "clicks";
const NAMES: [&str; 3] = ["the client alone", "builtin:gap from a file", "builtin:gap from Kafka"];

pub(super) fn run(lab: &Lab) -> Outcome<Findings> {
    let input = ordered(lab, lab.sizes.some_events(), Order::Disordered)?;
    let n = lines(&input)?;
    let cluster = Cluster::start()?;
    lab.say("  filling a topic");
    cluster.fill(TOPIC, &input)?;
    let component = lab.gap_sessions()?;
    let file = Job::new(Rule::BuiltIn, Input::File(input), &component);
    let topic = Job { input: Input::Topic(TOPIC.to_owned()), service: cluster.brokers(), ..file.clone() };
    let mut costs = vec![Costs::default(); NAMES.len()];
    let rounds = lab.sizes.rounds.min(5);
    for round in 0..rounds as usize {
        for i in 0..NAMES.len() {
            let which = (i + round) % NAMES.len();
            let cost = match which {
                0 => plain(lab, &cluster)?,
                1 => lab.run(&Program::Tidemill { room: "run-file", job: file.clone(), valid: true })?,
                _ => from_topic(lab, &topic, n)?,
            };
            lab.say(&format!("  round {} of {rounds}: {}: {:.2} CPU s", round + 1, NAMES[which], cost.cpu_s));
            costs[which].0.push(cost);
        }
    }
    let mut found = Findings::default();
    let mut table = Table::new(
        format!("{} valid events, {PARTITIONS} partitions", count(n)),
        &["", "CPU s per million events", "wall s", "peak MiB"],
    );
    for (name, cost) in NAMES.iter().zip(&costs) {
        table.row([
            (*name).to_owned(),
            shown(cost.per_million(n)),
            shown(cost.wall_s()),
            format!("{:.0}", cost.peak_mib()),
        ]);
    }
    found.tables.push(table);
    let both = Costs(costs[0].0.iter().zip(&costs[1].0).map(|(a, b)| sum(a, b)).collect());
    let ratio = costs[2].ratio(&both);
    found.value("kafka.ratio", ratio);
    let (least, most) = costs[2].ratio_range(&both);
    found.note(format!(
        "From Kafka it takes {} times what the client alone and the file together take, round by round (from {} to {}). What is read from \
         Kafka never ends: its costs are those until all is in the sink, with the sessions of the last seconds still open.",
        shown(ratio),
        shown(least),
        shown(most)
    ));
    Ok(found)
}

fn sum(a: &Cost, b: &Cost) -> Cost {
    Cost { cpu_s: a.cpu_s + b.cpu_s, wall_s: a.wall_s + b.wall_s, peak_mib: a.peak_mib.max(b.peak_mib) }
}

fn plain(lab: &Lab, cluster: &Cluster) -> Outcome<Cost> {
    let mut own = Command::new(std::env::current_exe().doing("the benchmark's own path")?);
    own.args(["--consume", &cluster.brokers(), TOPIC]);
    child::run("reading the topic", &lab.path("consume.log"), own)
}

/// Until all is read, committed and delivered.
fn from_topic(lab: &Lab, job: &Job, records: u64) -> Outcome<Cost> {
    let begun = Instant::now();
    let mut host = lab.start("run-kafka", job)?;
    host.has_read(records)?;
    host.has_delivered()?;
    let cost = Cost {
        cpu_s: host.cpu_s()?,
        wall_s: begun.elapsed().as_secs_f64(),
        peak_mib: host.resident_bytes()? / f64::from(1 << 20),
    };
    host.stop()?;
    Ok(cost)
}
