//! What the log has lost, and what a human decides about it.
//!
//! The bug family: a damaged tail that is cut although a sink has seen it committed; a table that keeps rows of a
//! branch that was given up, or lacks rows that the cut still knows; a log that only grows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use tidemill_tests::model::{self, Format, Gap, Row, Source, Unit};
use tidemill_tests::traffic::{Shop, file_of};
use tidemill_tests::{Case, Config, current, same_table};

const FILE: &str = "in.jsonl";

fn config() -> Config {
    let file = Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis);
    let source = Source { id: Some("id".into()), disorder_ms: 10_000, ..file };
    let mut config = Config::new(source, Gap::of_seconds(60, false));
    config.epoch = "10ms".into();
    config.end_of_input = "hold".into();
    config
}

/// A run that is held at its end, with open sessions left: into these sinks.
fn held(to: &str, events: u64) -> (Case, Vec<Row>) {
    let bytes = file_of(&Shop { seed: 8, events, users: 500, step_ms: 50, invalid_every: 0 }.lines());
    let mut config = config();
    config.to = to.into();
    let case = Case::new();
    case.put(FILE, &bytes);
    case.configure(&config);
    case.run().exits(0);
    let log = model::read(&[(&config.sources[0], FILE, &bytes)], &config.gap);
    (case, model::sessions(&log, &BTreeSet::new(), &config.gap))
}

fn marker(case: &Case) -> PathBuf {
    case.path("state/pipelines/visits/COMMITTED")
}

#[test]
fn a_sink_is_asked_before_a_lost_tail_is_cut() {
    for to in [r#"["sessions"]"#, r#"["rows"]"#] {
        let (case, _) = held(to, 20_000);
        let last = case.segments().pop().unwrap();
        let (whole, committed) = (std::fs::read(&last).unwrap(), std::fs::read(marker(&case)).unwrap());
        let torn = &whole[..whole.len() / 2];
        std::fs::write(&last, torn).unwrap();
        std::fs::remove_file(marker(&case)).unwrap();
        // Twice: the first refusal must not have swept anything away.
        for _ in 0..2 {
            case.run().exits(5).says("has confirmed epoch").says("offset");
            assert_eq!(std::fs::read(&last).unwrap(), torn, "{to}: the damaged segment was touched");
            assert!(!marker(&case).exists());
        }
        std::fs::write(&last, whole).unwrap();
        std::fs::write(marker(&case), committed).unwrap();
        case.run().exits(0);
    }
}
