//! Stages apart, by the host's own meters of its threads' CPU time.

use crate::config::{Input, Job, Rule};
use crate::error::Outcome;
use crate::figures::{median, of_count};
use crate::findings::{Findings, Plot, Shape, Table, count, shown};
use crate::lab::{Lab, room_of};
use crate::traffic;

/// As metrics call them.
const STAGES: [(&str, &str); 7] = [
    ("read", "bytes of the file, and where lines end"),
    ("decode", "JSON to key, time and fields, and which lane"),
    ("route", "watermark, batches to lanes"),
    ("fold", "events to keys, sessions that are over, calls of the rule"),
    ("seal", "what is left at a barrier, and the epoch's bytes; calls too"),
    ("sync", "the epoch's record appended and synced"),
    ("sink", "rows to JSON lines and into the file, synced"),
];

pub(super) fn run(lab: &Lab) -> Outcome<Findings> {
    let events = lab.sizes.some_events();
    let input = traffic::clean(lab, events)?;
    let component = lab.gap_sessions()?;
    let mut found = Findings::default();
    let mut all: Vec<(Rule, Parts)> = Vec::new();
    for rule in Rule::ALL {
        // Followed, so that it can be asked after all is read.
        let job = Job::new(rule, Input::Followed(input.clone()), &component);
        let mut rounds = Vec::new();
        for _ in 0..lab.sizes.rounds.min(3) {
            rounds.push(one(lab, &job, events)?);
            lab.say(&format!(
                "  {}: {} CPU ns an event",
                rule.name(),
                shown(rounds[rounds.len() - 1].process)
            ));
        }
        all.push((rule, Parts::median(&rounds)));
    }
    let mut table = Table::new(
        format!("CPU ns an event, {} events", count(events)),
        &["stage", "what", "builtin:gap", "gap-sessions"],
    );
    for (i, (stage, what)) in STAGES.iter().enumerate() {
        table.row([stage, what, shown(all[0].1.stages[i]).as_str(), shown(all[1].1.stages[i]).as_str()]);
    }
    let sum = |p: &Parts| p.stages.iter().sum::<f64>();
    for (name, what, of) in [
        (
            "call",
            "of fold and seal: in the component, by the clock",
            &(|p: &Parts| p.call) as &dyn Fn(&Parts) -> f64,
        ),
        ("rest", "of the process: start, compiling, admin API", &|p: &Parts| p.process - sum(p)),
        ("all", "the process", &|p: &Parts| p.process),
    ] {
        table.row([name, what, shown(of(&all[0].1)).as_str(), shown(of(&all[1].1)).as_str()]);
    }
    found.tables.push(table);
    for (rule, parts) in &all {
        for ((stage, _), ns) in STAGES.iter().zip(parts.stages) {
            found.value(format!("parts.{}.{stage}.ns", rule.name()), ns);
        }
        found.value(format!("parts.{}.call.ns", rule.name()), parts.call);
        found.value(format!("parts.{}.commit.ms", rule.name()), parts.commit_ms);
    }
    found.note(format!(
        "Writing an epoch and making it durable took {} ms by the clock, on average.",
        shown(all[1].1.commit_ms)
    ));
    found.plots.push(Plot {
        name: "stages".to_owned(),
        title: "Stages apart".to_owned(),
        y: "CPU ns an event".to_owned(),
        shape: Shape::Bars {
            groups: STAGES.iter().map(|(stage, _)| (*stage).to_owned()).collect(),
            series: all.iter().map(|(rule, p)| (rule.name().to_owned(), p.stages.to_vec())).collect(),
        },
    });
    Ok(found)
}

/// ns an event.
#[derive(Debug)]
struct Parts {
    stages: [f64; STAGES.len()],
    call: f64,
    process: f64,
    commit_ms: f64,
}

impl Parts {
    fn median(all: &[Parts]) -> Parts {
        let of = |f: &dyn Fn(&Parts) -> f64| median(all.iter().map(f).collect());
        Parts {
            stages: std::array::from_fn(|i| of(&|p: &Parts| p.stages[i])),
            call: of(&|p| p.call),
            process: of(&|p| p.process),
            commit_ms: of(&|p| p.commit_ms),
        }
    }
}

fn one(lab: &Lab, job: &Job, events: u64) -> Outcome<Parts> {
    let mut host = lab.start(room_of(job.rule), job)?;
    host.has_read(events)?;
    host.has_delivered()?;
    let (metrics, cpu_s) = (host.metrics()?, host.cpu_s()?);
    host.stop()?;
    let ns = |s: f64| s * 1e9 / of_count(events);
    let commits = metrics.sum("tidemill_epoch_commit_duration_seconds_count", "");
    Ok(Parts {
        stages: STAGES.map(|(stage, _)| {
            ns(metrics.sum("tidemill_stage_cpu_seconds_total", &format!("stage=\"{stage}\"")))
        }),
        call: ns(metrics.sum("tidemill_plugin_call_seconds_total", "")),
        process: ns(cpu_s),
        commit_ms: 1e3 * metrics.sum("tidemill_epoch_commit_duration_seconds_sum", "") / commits.max(1.0),
    })
}
