//! Memory of a live session: what resident memory grows by from a quarter of the sessions to all of them, with empty
//! suffixes, keys of 16 bytes and no early rows. The rule has no state of its own.

use crate::config::{Input, Job, Rule};
use crate::error::Outcome;
use crate::figures::of_count;
use crate::findings::{Findings, Table, count, shown};
use crate::host::Host;
use crate::lab::Lab;
use crate::traffic::{Spread, live};
use std::time::{Duration, Instant};

/// Nothing is done any more: this long without CPU time of more than a tenth.
const QUIET: Duration = Duration::from_secs(3);

pub(super) fn run(lab: &Lab) -> Outcome<Findings> {
    // Four times as many, so that tables that double are as full.
    let all: u64 = lab.sizes.pick(1_000_000, 4_000_000);
    let mut found = Findings::default();
    let mut table = Table::new(
        format!("bytes a session, from {} to {} of them", count(all / 4), count(all)),
        &["rule", "MiB with a quarter", "MiB with all", "bytes a session"],
    );
    for rule in Rule::ALL {
        let few = resident(lab, rule, all / 4)?;
        let many = resident(lab, rule, all)?;
        let each = (many - few) / of_count(all - all / 4);
        let mib = |bytes: f64| format!("{:.0}", bytes / f64::from(1 << 20));
        table.row([rule.name().to_owned(), mib(few), mib(many), shown(each)]);
        found.value(format!("memory.{}.bytes", rule.name()), each);
        lab.say(&format!("  {}: {} bytes a session", rule.name(), shown(each)));
    }
    found.tables.push(table);
    Ok(found)
}

fn resident(lab: &Lab, rule: Rule, keys: u64) -> Outcome<f64> {
    let [input, _] = live(lab, keys, 1, Spread::Even)?;
    let job = Job::new(rule, Input::Followed(input), &lab.gap_sessions()?);
    let job = Job { gap: "24h", disorder: "0s", ..job };
    let mut host = lab.start("run-memory", &job)?;
    host.has_read(keys)?;
    quiet(&mut host)?;
    let open = host.metrics()?.sum("tidemill_open_sessions", "");
    if open < of_count(keys) {
        return Err(crate::error::Failure::new(format!("{open} sessions are open, not {keys}")));
    }
    let bytes = host.resident_bytes()?;
    host.stop()?;
    Ok(bytes)
}

/// Waits until it does nothing.
fn quiet(host: &mut Host) -> Outcome<()> {
    let (mut since, mut cpu_s) = (Instant::now(), host.cpu_s()?);
    crate::host::wait_for("tidemill to be quiet", || {
        let now = host.cpu_s()?;
        if now - cpu_s > QUIET.as_secs_f64() / 10.0 {
            (since, cpu_s) = (Instant::now(), now);
        }
        host.lives()?;
        Ok((since.elapsed() > QUIET).then_some(()))
    })
}
