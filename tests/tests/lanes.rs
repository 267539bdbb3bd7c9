//! The number of lanes is a matter of speed alone: each gives the same table, and a pipeline that is killed goes on with another.
//!
//! The bug family: a key group that no lane owns or two do, state that is loaded into the wrong lane, an epoch without one lane's
//! part. On a machine of two cores a pipeline has one lane by itself, so that no other test would see it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use tidemill_tests::model::{self, Format, Gap, Source, Unit};
use tidemill_tests::traffic::{Shop, delayed, file_of};
use tidemill_tests::{Case, Config, Follower, same_sinks};

const FILE: &str = "in.jsonl";
const DISORDER_MS: i64 = 10_000;
/// Enough that a machine with nothing else to do is not through before it is killed.
const EVENTS: u64 = 1_600_000;

#[test]
fn every_number_of_lanes_gives_the_same_table_and_takes_over_from_any_other() {
    let lines = Shop { seed: 11, events: EVENTS, users: 900, step_ms: 50, invalid_every: 0 }.lines();
    let bytes = file_of(&delayed(&lines, 11, DISORDER_MS - 1, true));
    let file = Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis);
    let source = Source { id: Some("id".into()), disorder_ms: DISORDER_MS, ..file };
    let mut config = Config::new(source, Gap::of_seconds(60, false));
    config.epoch = "10ms".into();
    let log = model::read(&[(&config.sources[0], FILE, &bytes)], &config.gap);
    let want = model::sessions(&log, &BTreeSet::new(), &config.gap);
    for lanes in [2, 8] {
        config.lanes = Some(lanes);
        let case = Case::new();
        case.put(FILE, &bytes);
        case.configure(&config);
        case.run().exits(0);
        same_sinks(&format!("{lanes} lanes"), &want, &case);
    }
    let case = Case::new();
    case.put(FILE, &bytes);
    let mut follower = Follower::default();
    let mut kills = 0;
    for lanes in [1, 3, 2, 8, 5] {
        config.lanes = Some(lanes);
        case.configure(&config);
        kills += u32::from(case.killed_after(&mut follower, EVENTS / 50));
    }
    assert!(kills >= 3, "only {kills} kills before the end of the input");
    config.lanes = Some(4);
    case.configure(&config);
    case.run().exits(0);
    same_sinks("killed, each time with other lanes", &want, &case);
}
