//! Records of a block on their whole way into sessions: each is an event of one or a dead letter, whatever its neighbours are.

use super::*;
use crate::plugin::validate::Validators;
use tidemill_connect::source::Span;
use tidemill_engine::gap::{Boundary, Gap, GapConfig};
use tidemill_engine::key::KeyForm;
use tidemill_engine::lane::{Barrier, Lane, LaneConfig, Origin};
use tidemill_engine::outbox::{Outbox, Stages};
use tidemill_engine::versions::Versions;

const GOOD: usize = 200;

/// A block of these records, each as it stands: some hold line ends.
fn block(records: &[Vec<u8>]) -> Block {
    let mut block = Block::default();
    for record in records {
        let at = block.bytes.len() as u32;
        block.bytes.extend_from_slice(record);
        block.bytes.push(b'\n');
        let (len, offset) = (record.len() as u32, u64::from(at));
        block.spans.push(Span { at, len, offset, size: u64::from(len) });
    }
    block
}

/// Events in sessions, and dead letters by reason, where every time is accepted.
fn sessions_of(records: &[Vec<u8>]) -> (u64, BTreeMap<String, u64>) {
    sessions_by(Judge { frontier: EventTime::BEGINNING, far_future: EventTime::INFINITY }, records)
}

fn sessions_by(judge: Judge, records: &[Vec<u8>]) -> (u64, BTreeMap<String, u64>) {
    let text = "[server]\n[source.s]\nkind = \"stdin\"\nformat = \"json\"\nkey = \"k\"\n\
                time = { field = \"t\", unit = \"s\" }\n[pipeline.p]\nfrom = [\"s\"]\n\
                session = { plugin = \"builtin:gap\", config = { gap = \"30s\" } }\nto = [\"out\"]\n\
                [sink.out]\nkind = \"stdout\"\n";
    let plan = crate::config::parse(text, std::path::Path::new("p.toml"), 0).unwrap();
    let mut ingest = Ingest::new(&plan.sources[0], "p", (0, 0), &[], 1).unwrap();
    let (block, mut intake, mut letters) = (block(records), Intake::new(1), Letters::default());
    ingest.take(&block, judge, &mut Validators::default(), &mut intake, &mut letters).unwrap();
    let config = LaneConfig {
        pipeline: "p".into(),
        key_form: KeyForm::One,
        lateness_ms: 0,
        early: false,
        events_per_key: 10_000,
        suffix_bytes: 1 << 24,
        open_sessions: 100,
        groups: 0..1024,
        sources: vec!["s".into()],
        layout: Vec::new(),
    };
    let gap =
        GapConfig { gap_ms: 30_000, boundary: Boundary::Exclusive, max_ms: None, start: None, end: None };
    let mut lane = Lane::new(config, Versions::single(Box::new(Gap::new(&gap))));
    let origin = Origin { source: "s", partition: "p", raw: &block.bytes };
    lane.insert(&intake.lanes[0], EventTime::BEGINNING, origin).unwrap();
    let end = Barrier { watermark: EventTime::INFINITY, early_tick: false, at_end: true };
    let epoch = lane.barrier(end).unwrap();
    let outbox = Outbox::new(1, 1, &epoch.rows, b"");
    (outbox.sessions(Stages::ALL).map(|(_, row)| row.events).sum(), letters.by_reason)
}

/// Both bounds are times that are still accepted.
#[test]
fn an_event_at_the_frontier_is_in_time_and_so_is_one_at_the_far_future() {
    let at = |s: i64| EventTime::from_ms(s * 1_000);
    let judge = Judge { frontier: at(100), far_future: at(200) };
    let records: Vec<Vec<u8>> =
        [99, 100, 150, 200, 201].iter().map(|t| format!("{{\"k\":\"a\",\"t\":{t}}}").into_bytes()).collect();
    let (events, dead) = sessions_by(judge, &records);
    assert_eq!(events, 3);
    assert_eq!(dead, BTreeMap::from([("late".to_owned(), 1), ("far_future".to_owned(), 1)]));
}

/// The published suite (TIDEMILL_TRIALS holds json-test-suite/JSONTestSuite.tar.xz), each file as a value of one record among
/// good ones before and after it.
#[test]
fn every_file_of_the_json_suite_among_good_events() {
    let Some(trials) = std::env::var_os("TIDEMILL_TRIALS") else { return };
    let dir = tempfile::tempdir().unwrap();
    let archive = std::path::Path::new(&trials).join("json-test-suite/JSONTestSuite.tar.xz");
    let tar = std::process::Command::new("tar").arg("xJf").arg(&archive).arg("-C").arg(dir.path()).status();
    assert!(tar.unwrap().success(), "{}", archive.display());
    let mut records: Vec<Vec<u8>> =
        (0..GOOD).map(|n| format!("{{\"k\":\"a\",\"t\":1,\"v\":{n}}}").into_bytes()).collect();
    let good = records.clone();
    let (mut valid, mut wrong, mut either) = (0, 0, 0);
    for entry in std::fs::read_dir(dir.path().join("test_parsing")).unwrap() {
        let entry = entry.unwrap();
        match entry.file_name().as_encoded_bytes()[0] {
            b'y' => valid += 1,
            b'n' => wrong += 1,
            _ => either += 1,
        }
        let file = std::fs::read(entry.path()).unwrap();
        records.push([br#"{"k":"a","t":1,"v":"#, file.as_slice(), b"}"].concat());
    }
    records.extend(good);
    assert_eq!((valid, wrong, either), (95, 188, 35));
    let (events, dead) = sessions_of(&records);
    let malformed = dead["malformed_json"];
    assert_eq!((dead.len(), events + malformed), (1, records.len() as u64), "{dead:?}");
    assert!((188..=188 + 35).contains(&malformed), "{malformed} dead letters");
    assert_eq!(events, (2 * GOOD) as u64 + 95 + (188 + 35 - malformed));
}
