//! Swaps while a file is read as fast as it goes: one after the other as soon as the one before is settled. Each gives the
//! same component another spelling of the same config, so that the sessions must be those of the yardstick.

use crate::compare::{Table as Sessions, lines};
use crate::config::{Input, Job, Rule};
use crate::error::{Doing, Failure, Outcome};
use crate::figures::{of_count, percentile};
use crate::findings::{Findings, Table, count, shown};
use crate::host::Host;
use crate::lab::{Lab, Program};
use crate::traffic;
use serde_json::{Value, json};

pub(super) fn run(lab: &Lab) -> Outcome<Findings> {
    let input = traffic::clean(lab, lab.sizes.events)?;
    let component = lab.gap_sessions()?;
    let job = Job { epoch: "50ms", ..Job::new(Rule::Plugin, Input::File(input.clone()), &component) };
    let yardstick = lab.run(&Program::Yardstick(&input))?;
    let native = Sessions::read(&lab.path("native.jsonl"))?;
    let left_out = lines(&lab.path("native-dead.jsonl"))?;
    let (mut pauses, mut differing, mut wall_s) = (Vec::new(), 0, 0.0);
    let (wanted, rounds_max) = lab.sizes.pick((20, 4), (150, 8));
    let mut rounds = 0;
    while pauses.len() < wanted && rounds < rounds_max {
        rounds += 1;
        let begun = std::time::Instant::now();
        let mut host = lab.start("run-swap", &job)?;
        let bytes = std::fs::read(&component).doing("the component")?;
        let (_, answer) =
            host.ask("POST", "/api/v1/plugins", &[("content-type", "application/wasm")], &bytes)?;
        let uploaded: Value = serde_json::from_slice(&answer).doing("the upload's answer")?;
        for n in 0.. {
            let gap = if n % 2 == 0 { "30000ms" } else { "30s" };
            let Some(pause) = swap(&mut host, &uploaded["version"], gap)? else { break };
            pauses.push(pause);
        }
        host.ends()?;
        wall_s += begun.elapsed().as_secs_f64();
        let folder = lab.path("run-swap");
        let (sessions, some) = native.differences(Sessions::read(&folder.join("rows.jsonl"))?);
        let dead = lines(&folder.join("dead.jsonl"))?;
        differing += sessions + dead.abs_diff(left_out);
        if differing > 0 {
            lab.say(&format!("  sessions differ: {}", some.join("; ")));
        }
        lab.say(&format!("  {} swaps until now", pauses.len()));
    }
    if pauses.is_empty() {
        return Err(Failure::new("the input was used up before the first swap: take more --events"));
    }
    let mut found = Findings::default();
    let at = |part| percentile(pauses.clone(), part);
    let mut table = Table::new(
        format!(
            "pauses of swaps while {} events are read as fast as they can be, {rounds} times",
            count(lab.sizes.events)
        ),
        &["swaps", "p50 ms", "p99 ms", "max ms", "sessions that differ from the yardstick's"],
    );
    table.row([
        count(pauses.len() as u64),
        shown(at(0.5)),
        shown(at(0.99)),
        shown(at(1.0)),
        count(differing),
    ]);
    found.tables.push(table);
    found.value("swap.p99_ms", at(0.99));
    found.value("swap.max_ms", at(1.0));
    found.value("swap.swaps", of_count(pauses.len() as u64));
    found.value("swap.differences", of_count(differing));
    found.note(format!(
        "A pause is how long a lane does not take events in, the longest of all lanes, as the host tells it. One run took {} s, with \
         epochs of 50 ms, of which a swap takes a few; the yardstick, which swaps nothing, {} s.",
        shown(wall_s / f64::from(rounds)),
        shown(yardstick.wall_s)
    ));
    Ok(found)
}

/// Swaps as soon as no other swap is under way; how long it held events up, ms. None: the input is used up.
fn swap(host: &mut Host, version: &Value, gap: &str) -> Outcome<Option<f64>> {
    let wish = json!({
        "plugin": "gap-sessions", "version": version, "policy": "migrate", "message": "bench",
        "config": { "gap": gap, "boundary": "inclusive" },
    });
    let headers = [("content-type", "application/json"), ("if-match", "*")];
    let place = loop {
        let path = "/api/v1/pipelines/clicks/deployment";
        // Whoever does not answer any more has ended.
        let Ok((status, body)) = host.ask("PUT", path, &headers, wish.to_string().as_bytes()) else {
            return Ok(None);
        };
        let answer: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        match (status, answer["type"].as_str()) {
            (202, _) => break format!("/api/v1/operations/{}", answer["id"]),
            // Another swap is under way, or nothing is committed yet.
            (409, Some("/problems/swap_pending")) | (503, _) => {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            (409, Some("/problems/state")) => return Ok(None),
            _ => return Err(Failure::new(format!("a deployment: {status}: {answer}"))),
        }
    };
    loop {
        let Ok(operation) = host.get(&place) else { return Ok(None) };
        match (operation["status"].as_str(), operation["pause_ms"].as_f64()) {
            (Some("in_force"), Some(pause)) => return Ok(Some(pause)),
            (Some("waiting"), _) => std::thread::sleep(std::time::Duration::from_millis(2)),
            _ if operation["refused"] == "the pipeline reads no more" => return Ok(None),
            _ => return Err(Failure::new(format!("a swap: {operation}"))),
        }
    }
}
