//! The session stage by itself, as `tidemill measure` has it: made-up rows through one lane.

use crate::config::{Input, Job, Rule};
use crate::error::{Doing, Failure, Outcome};
use crate::figures::median;
use crate::findings::{Findings, Table, count, shown};
use crate::lab::Lab;
use serde::Deserialize;
use std::process::Command;

/// A line of `tidemill measure --json`.
#[derive(Deserialize, Clone, Debug)]
pub(super) struct Line {
    pub(super) keys: u64,
    pub(super) texts: String,
    pub(super) live_keys: u64,
    pub(super) stage_ns: f64,
    pub(super) rule_ns: f64,
}

/// What the promise is about.
const KEYS: u64 = 200_000;

pub(super) fn run(lab: &Lab) -> Outcome<Findings> {
    let keys = lab.sizes.pick("10000,200000", "10000,200000,1000000");
    let events = lab.sizes.pick("1000000", "4000000");
    let arguments = ["--keys", keys, "--events", events];
    let mut rounds: Vec<Round> = Vec::new();
    for round in 1..=lab.sizes.rounds {
        let of = |rule, reads| measure(lab, rule, "30s", reads, &arguments);
        let [built_in, wasm] = Rule::ALL;
        rounds.push([of(built_in, false)?, of(wasm, false)?, of(built_in, true)?, of(wasm, true)?]);
        lab.say(&format!("  round {round} of {}", lab.sizes.rounds));
    }
    let mut found = Findings::default();
    let mut table = Table::new(
        "CPU ns an event of the lane's thread (in brackets: in the rule, with its frames); keys by Zipf's law",
        &[
            "keys",
            "live",
            "builtin:gap",
            "gap-sessions",
            "built in / Wasm",
            "builtin:gap that reads a text",
            "gap-sessions that reads it",
            "the same, as a symbol",
        ],
    );
    let free = |rule: usize, keys: u64| of(&rounds, rule, keys, "free");
    for line in rounds[0][0].iter().filter(|l| l.texts == "free") {
        let keys = line.keys;
        let cells =
            [free(0, keys), free(1, keys), free(2, keys), free(3, keys), of(&rounds, 3, keys, "symbols")];
        let cell = |c: (f64, f64)| format!("{} ({})", shown(c.0), shown(c.1));
        let speed = cells[0].0 / cells[1].0;
        table.row([
            count(line.keys),
            count(line.live_keys),
            cell(cells[0]),
            cell(cells[1]),
            shown(speed),
            cell(cells[2]),
            cell(cells[3]),
            cell(cells[4]),
        ]);
        if line.keys == KEYS {
            found.value("stage.wasm.ns", cells[1].0);
            found.value("stage.builtin.ns", cells[0].0);
            found.value("stage.wasm.speed", speed);
        }
    }
    found.tables.push(table);
    found.note(
        "With a gap alone neither rule reads a field; where an event's `type` may end a session both do.",
    );
    Ok(found)
}

/// Built in and as a component; without a field that the rule reads, and with one.
type Round = [Vec<Line>; 4];

/// Medians of stage and rule.
fn of(rounds: &[Round], rule: usize, keys: u64, texts: &str) -> (f64, f64) {
    let lines = || rounds.iter().flat_map(|r| &r[rule]).filter(|l| l.keys == keys && l.texts == texts);
    (median(lines().map(|l| l.stage_ns).collect()), median(lines().map(|l| l.rule_ns).collect()))
}

/// `tidemill measure` of a rule with this gap.
pub(super) fn measure(
    lab: &Lab,
    rule: Rule,
    gap: &'static str,
    reads: bool,
    arguments: &[&str],
) -> Outcome<Vec<Line>> {
    let job = Job { gap, reads, ..Job::new(rule, Input::File("none.jsonl".into()), &lab.gap_sessions()?) };
    let config = lab.configured("measure", &job.text())?;
    let mut command = Command::new(&lab.bin);
    command.args(["measure", "--json"]).args(arguments).arg(&config).current_dir(lab.path("measure"));
    let out = command.output().doing("tidemill measure")?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        return Err(Failure::new(format!("tidemill measure: {}\n{}", out.status, said.trim_end())));
    }
    parse(&String::from_utf8_lossy(&out.stdout))
}

fn parse(text: &str) -> Outcome<Vec<Line>> {
    text.lines().map(|l| serde_json::from_str(l).doing("what tidemill measure says")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_tidemill_measure_are_read() {
        let text = "{\"keys\":10,\"live_keys\":9,\"pipeline\":\"clicks\",\"rule\":\"builtin:gap\",\"rule_ns\":6.5,\"sessions\":3,\
                    \"stage_ns\":90.25,\"texts\":\"free\"}\n";
        let lines = parse(&format!("{text}{text}")).unwrap();
        assert_eq!((lines.len(), lines[1].keys, lines[1].live_keys), (2, 10, 9));
        let slower = Line { stage_ns: 100.25, ..lines[0].clone() };
        let rounds = [lines, vec![slower.clone()], vec![slower]].map(|l| [l, vec![], vec![], vec![]]);
        assert_eq!(of(&rounds, 0, 10, "free"), (95.25, 6.5));
        assert!(of(&rounds, 0, 11, "free").0.is_nan());
        assert!(parse("no json").is_err());
    }
}
