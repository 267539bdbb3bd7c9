//! Formats over Kafka, in one run: CSV, Avro whose schemas are files, and Protobuf, plain and in Confluent's frames, a topic each.
//! The sessions are those of the same clicks, and a record of a schema that nobody has is a dead letter that names it.
//!
//! The bug family: a format that reads files and no messages; a frame that is taken for a part of its value; one schema for another.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tidemill_services::kafka::Broker;
use tidemill_tests::avro::{framed, long, text, varint};
use tidemill_tests::model::{self, Format, Gap, Row, Source, Unit};
use tidemill_tests::traffic::START_MS;
use tidemill_tests::{Case, current, kafka, same_table, wait_for};

/// Whose clicks end the others' sessions.
const LAST: &str = "last";
const SOON: Duration = Duration::from_secs(120);
const SCHEMA: &str = r#"{"type":"record","name":"Click","fields":[{"name":"who","type":"string"},
    {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}}]}"#;

/// What a topic is, beside its clicks.
struct Topic {
    name: &'static str,
    /// Lines of its source.
    lines: &'static str,
    click: fn(&str, i64) -> Vec<u8>,
    /// What stands between them, and the letter of each: its reason and a part of its message.
    others: Vec<(Vec<u8>, &'static str, &'static str)>,
}

fn topics() -> Vec<Topic> {
    const PROTOBUF: &str = "format = \"protobuf\"\ndescriptors = \"clicks.binpb\"\nmessage = \"shop.Click\"\ntime = { field = \"at\" }";
    // Of a file's messages the second, and a message that the file's first one holds.
    let another = [&[0, 0, 0, 0, 5][..], &long(1), &long(1), &message("u1", START_MS)].concat();
    vec![
        Topic {
            name: "csv",
            lines: "format = \"csv\"\ncolumns = [\"at\", \"who\", \"note\"]\ntime = { field = \"at\", unit = \"ms\" }",
            click: |who, at| format!("{at},{who},\"a, \"\"b\"\"\n c\"").into_bytes(),
            others: vec![(b"1,\"u1".to_vec(), "malformed_csv", "")],
        },
        Topic {
            name: "avro",
            lines: "format = \"avro\"\nschemas = \"schemas\"\ntime = { field = \"at\" }",
            click: |who, at| framed(7, &[text(who), long(at)].concat()),
            others: vec![
                (framed(8, &[text("u1"), long(START_MS)].concat()), "unknown_schema", "schema 8"),
                (framed(7, b"\xff"), "malformed_avro", ""),
                (b"{}".to_vec(), "malformed_avro", ""),
            ],
        },
        Topic {
            name: "plain",
            lines: PROTOBUF,
            click: message,
            others: vec![(vec![0x0a, 9], "malformed_protobuf", "field 1 has 9 bytes")],
        },
        Topic {
            name: "framed",
            lines: "framed = true\nformat = \"protobuf\"\ndescriptors = \"clicks.binpb\"\nmessage = \"shop.Click\"\ntime = { field = \"at\" }",
            click: |who, at| [&[0, 0, 0, 0, 5, 0][..], &message(who, at)].concat(),
            others: vec![
                (another, "unknown_schema", "shop.Click"),
                (b"{}".to_vec(), "malformed_protobuf", ""),
            ],
        },
    ]
}

/// A field of Protobuf with a length.
fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// `message Click { string who = 1; Timestamp at = 2; }`
fn message(who: &str, at: i64) -> Vec<u8> {
    let nanos = (at % 1000) as u64 * 1_000_000;
    let at = [vec![8], varint((at / 1000) as u64), vec![0x10], varint(nanos)].concat();
    [field(1, who.as_bytes()), field(2, &at)].concat()
}

/// The descriptors of it.
fn descriptors() -> Vec<u8> {
    let of = |name: &str, number: u64, kind: u64, more: &[u8]| {
        let numbers = [vec![0x18], varint(number), vec![0x20, 1, 0x28], varint(kind)].concat();
        field(2, &[field(1, name.as_bytes()), numbers, more.to_vec()].concat())
    };
    let timestamp = [field(1, b"Timestamp"), of("seconds", 1, 3, &[]), of("nanos", 2, 5, &[])].concat();
    let known = [field(2, b"google.protobuf"), field(4, &timestamp)].concat();
    let at = of("at", 2, 11, &field(6, b".google.protobuf.Timestamp"));
    let click = [field(1, b"Click"), of("who", 1, 9, &[]), at].concat();
    let file = [field(2, b"shop"), field(4, &click), field(12, b"proto3")].concat();
    [field(1, &known), field(1, &file)].concat()
}

/// Who clicked, and when: each visitor by all topics, one after the other.
fn clicks() -> Vec<(String, i64)> {
    let silence = |n: i64| n / 200 * 3_600_000;
    (0..1_200).map(|n| (format!("u{}", n % 7), START_MS + n * 9_001 + silence(n))).collect()
}

fn expected() -> Vec<Row> {
    let lines: Vec<String> =
        clicks().iter().map(|(who, at)| format!("{{\"who\":\"{who}\",\"at\":{at}}}\n")).collect();
    let source = Source::file("all", "all", Format::Json, "who", "at", Unit::Millis);
    let gap = Gap::of_seconds(1_800, false);
    let log = model::read(&[(&source, "all", lines.concat().as_bytes())], &gap);
    model::sessions(&log, &Default::default(), &gap)
}

fn configure(case: &Case, broker: &Broker, topics: &[(Topic, String)]) {
    let mut text =
        format!("[server]\ndata_dir = {:?}\nepoch = \"20ms\"\n", case.path("state").display().to_string());
    for (topic, name) in topics {
        text.push_str(&format!(
            "[source.{}]\nkind = \"kafka\"\nbrokers = \"{}\"\ntopics = \"{name}\"\nkey = \"who\"\nidle = \"1h\"\n{}\n",
            topic.name,
            broker.plain(),
            topic.lines
        ));
    }
    let names: Vec<&str> = topics.iter().map(|(t, _)| t.name).collect();
    text.push_str(&format!(
        "[pipeline.visits]\nfrom = {names:?}\nto = [\"rows\"]\ndead = \"dead\"\n\
         session = {{ plugin = \"builtin:gap\", config = {{ gap = \"30m\" }} }}\n\
         [sink.rows]\nkind = \"sqlite\"\npath = \"sessions.db\"\n[sink.dead]\nkind = \"file\"\npath = \"dead.jsonl\"\n"
    ));
    case.put("pipeline.toml", text.as_bytes());
    case.put("schemas/7.avsc", SCHEMA.as_bytes());
    case.put("clicks.binpb", &descriptors());
}

#[test]
fn each_format_is_read_from_a_topic_and_an_unknown_schema_is_named() {
    let Some(broker) = kafka::broker() else { return };
    let topics: Vec<(Topic, String)> = topics()
        .into_iter()
        .map(|t| {
            let name = kafka::topic(broker, t.name, 1);
            (t, name)
        })
        .collect();
    let case = Case::new();
    configure(&case, broker, &topics);
    let mut told = BTreeMap::new();
    for (n, (topic, name)) in topics.iter().enumerate() {
        let own = clicks().into_iter().skip(n).step_by(topics.len());
        let mut records: Vec<Vec<u8>> = own.map(|(who, at)| (topic.click)(&who, at)).collect();
        for (at, (other, reason, message)) in topic.others.iter().enumerate() {
            records.insert(5 + at, other.clone());
            told.insert((format!("{name}/0"), 5 + at as u64), (*reason, *message));
        }
        records.push((topic.click)(LAST, START_MS + 30 * 24 * 3_600_000));
        kafka::produce(broker, name, 0, records.iter().map(Vec::as_slice));
    }
    let expected = expected();
    let mut process = case.start(&[], &[]);
    wait_for("all sessions to be certain", SOON, || {
        assert!(!process.ended(), "it has ended:\n{}", process.said_so_far());
        let certain = "SELECT count(*) FROM sessions WHERE stage = 'final'";
        let certain = || case.database().query_row(certain, [], |r| r.get::<_, i64>(0)).unwrap();
        (case.has_table() && certain() >= expected.len() as i64).then_some(())
    });
    process.terminate();
    process.outcome(SOON).exits(0);
    let rows: Vec<Row> = current(&case.table()).into_iter().filter(|r| r.key != LAST).collect();
    same_table("all formats", &expected, &rows);
    let letters = case.letters();
    assert_eq!(letters.len(), told.len(), "{letters:?}");
    for letter in letters {
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let place = (text(&letter["partition"]), letter["position"]["offset"].as_u64().unwrap());
        let (reason, message) = told[&place];
        assert_eq!(letter["reason"], reason, "{letter}");
        assert!(text(&letter["message"]).contains(message), "no {message:?} in {letter}");
    }
}
