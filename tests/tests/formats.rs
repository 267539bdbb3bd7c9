//! Avro and Protobuf from end to end: the same clicks as JSON, in container files, in frames and as messages make the same
//! sessions.
//!
//! The bug family: a format that is decoded but not wired, a schema that is not found, a registry that is away and costs
//! events. Bytes are written here by the rules of the formats, with no code of theirs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use tidemill_tests::avro::{Registry, framed, long, text, varint};
use tidemill_tests::binary;

const START_MS: i64 = 1_714_521_600_000;

/// Who clicked, and when: visits of several users, with gaps between them.
fn clicks() -> Vec<(String, i64)> {
    (0..600).map(|n| (format!("u{}", n % 7), START_MS + n * 9_000 + (n / 150) * 3_600_000)).collect()
}

/// A Protobuf field with a length.
fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn delimited(records: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    records.into_iter().flat_map(|r| [varint(r.len() as u64), r].concat()).collect()
}

const SCHEMA: &str = r#"{"type":"record","name":"Click","fields":[{"name":"n","type":"long"},
    {"name":"who","type":["null",{"type":"record","name":"Who","fields":[{"name":"id","type":"string"}]}]},
    {"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}}]}"#;

/// A value of the schema.
fn click(n: usize, who: &str, at_ms: i64) -> Vec<u8> {
    [long(n as i64), long(1), text(who), long(at_ms * 1000)].concat()
}

fn container(values: &[Vec<u8>]) -> Vec<u8> {
    let header = [long(1), text("avro.schema"), text(SCHEMA), long(0), vec![9; 16]].concat();
    let mut file = [b"Obj\x01".to_vec(), header].concat();
    for block in values.chunks(100) {
        let bytes = block.concat();
        file.extend([long(block.len() as i64), long(bytes.len() as i64), bytes, vec![9; 16]].concat());
    }
    file
}

/// Runs a pipeline over a file `input`; the source's lines but its kind and path.
fn run(dir: &Path, source: &str, input: &[u8]) -> Output {
    fs::write(dir.join("input"), input).unwrap();
    let config = format!(
        "[server]\ndata_dir = \"data\"\n[source.s]\nkind = \"file\"\npath = \"input\"\n{source}\n\
         [pipeline.p]\nfrom = [\"s\"]\nearly = \"off\"\n\
         session = {{ plugin = \"builtin:gap\", config = {{ gap = \"30m\" }} }}\nto = [\"out\"]\ndead = \"dead\"\n\
         [sink.out]\nkind = \"file\"\npath = \"out.jsonl\"\n[sink.dead]\nkind = \"file\"\npath = \"dead.jsonl\"\n"
    );
    fs::write(dir.join("p.toml"), config).unwrap();
    tidemill(dir, "run")
}

fn tidemill(dir: &Path, what: &str) -> Output {
    Command::new(binary()).args([what, "p.toml"]).current_dir(dir).output().unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Sessions without what says where their events stood.
fn sessions(dir: &Path) -> BTreeSet<(String, i64, i64, i64)> {
    let number = |v: &Value| v.as_i64().unwrap();
    let rows = lines(&dir.join("out.jsonl"));
    let all = rows.iter().map(|r| {
        (
            r["key"].as_str().unwrap().to_owned(),
            number(&r["start_ms"]),
            number(&r["end_ms"]),
            number(&r["events"]),
        )
    });
    all.collect()
}

fn dead(dir: &Path) -> BTreeMap<String, Vec<String>> {
    let mut dead: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for letter in lines(&dir.join("dead.jsonl")) {
        let part = |key: &str| letter[key].as_str().unwrap().to_owned();
        dead.entry(part("reason")).or_default().push(part("message"));
    }
    dead
}

#[track_caller]
fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The sessions of the same clicks as JSON.
fn expected() -> BTreeSet<(String, i64, i64, i64)> {
    let dir = tempfile::tempdir().unwrap();
    let lines: Vec<String> =
        clicks().iter().map(|(who, at)| format!("{{\"who\":\"{who}\",\"at\":{at}}}\n")).collect();
    succeeded(&run(
        dir.path(),
        "format = \"json\"\nkey = \"who\"\ntime = { field = \"at\" }",
        lines.concat().as_bytes(),
    ));
    let sessions = sessions(dir.path());
    assert_eq!(sessions.len(), 7 * 4, "{sessions:?}");
    sessions
}

const AVRO: &str = "format = \"avro\"\nkey = \"/who/id\"\ntime = { field = \"at\" }";

#[test]
fn container_files_make_the_sessions_of_the_same_clicks_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let values: Vec<Vec<u8>> = clicks().iter().enumerate().map(|(n, (who, at))| click(n, who, *at)).collect();
    let file = container(&values);
    // First a copy that is cut off, then the rest.
    let cut = run(dir.path(), AVRO, &file[..file.len() / 2]);
    let said = String::from_utf8_lossy(&cut.stderr).into_owned();
    assert_eq!(cut.status.code(), Some(1), "{said}");
    assert!(said.contains("cut off inside a block"), "{said}");
    succeeded(&run(dir.path(), AVRO, &file));
    assert_eq!(sessions(dir.path()), expected());
    assert_eq!(dead(dir.path()), BTreeMap::new());
}

#[test]
fn check_says_which_fields_the_schema_does_not_have() {
    let dir = tempfile::tempdir().unwrap();
    let source = "format = \"avro\"\nkey = \"/who/name\"\ntime = { field = \"at\" }\n[source.s.fields]\npage = \"url\"";
    run(dir.path(), source, &container(&[click(1, "u", START_MS)]));
    let checked = tidemill(dir.path(), "check");
    let said =
        String::from_utf8_lossy(&checked.stderr).into_owned() + &String::from_utf8_lossy(&checked.stdout);
    assert_eq!(checked.status.code(), Some(4), "{said}");
    assert!(said.contains("the schema (input) has no field `/who/name`"), "{said}");
    assert!(said.contains("the schema (input) has no field `url`"), "{said}");
}

#[test]
fn framed_records_are_read_by_the_schemas_of_a_registry() {
    let mut records: Vec<Vec<u8>> =
        clicks().iter().enumerate().map(|(n, (who, at))| framed(7, &click(n, who, *at))).collect();
    records.insert(5, framed(8, &click(0, "u", START_MS)));
    records.insert(6, framed(7, &[0xff]));
    records.insert(7, b"{}".to_vec());
    let file = delimited(records);
    let registry = Registry::new(&[(7, SCHEMA)]);
    registry.is_there(false);
    let source = format!("{AVRO}\nregistry = \"{}\"", registry.url());
    let dir = tempfile::tempdir().unwrap();
    let away = run(dir.path(), &source, &file);
    let said = String::from_utf8_lossy(&away.stderr).into_owned();
    assert_eq!(away.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot say what schema 7 is") && said.contains("503"), "{said}");
    registry.is_there(true);
    succeeded(&run(dir.path(), &source, &file));
    assert_eq!(sessions(dir.path()), expected());
    let dead = dead(dir.path());
    let counts: BTreeMap<&str, usize> =
        dead.iter().map(|(reason, all)| (reason.as_str(), all.len())).collect();
    assert_eq!(counts, BTreeMap::from([("malformed_avro", 2), ("unknown_schema", 1)]));
    assert!(dead["unknown_schema"][0].starts_with("schema 8: the registry at"), "{dead:?}");
}

#[test]
fn protobuf_messages_make_the_sessions_of_the_same_clicks_as_json() {
    let dir = tempfile::tempdir().unwrap();
    // message Click { string who = 1; Timestamp at = 2; } as its descriptor, and Timestamp's own.
    let of = |name: &str, number: u64, kind: u64, more: &[u8]| {
        let numbers = [vec![0x18], varint(number), vec![0x20, 1, 0x28], varint(kind)].concat();
        field(2, &[field(1, name.as_bytes()), numbers, more.to_vec()].concat())
    };
    let timestamp = [field(1, b"Timestamp"), of("seconds", 1, 3, &[]), of("nanos", 2, 5, &[])].concat();
    let known = [field(2, b"google.protobuf"), field(4, &timestamp)].concat();
    let at = of("at", 2, 11, &field(6, b".google.protobuf.Timestamp"));
    let message = [field(1, b"Click"), of("who", 1, 9, &[]), at].concat();
    let file = [field(2, b"shop"), field(4, &message), field(12, b"proto3")].concat();
    fs::write(dir.path().join("clicks.binpb"), [field(1, &known), field(1, &file)].concat()).unwrap();
    let records = clicks().into_iter().map(|(who, at)| {
        let nanos = (at % 1000) as u64 * 1_000_000;
        let at = [vec![8], varint((at / 1000) as u64), vec![0x10], varint(nanos)].concat();
        // A field that nobody declared stands between.
        [field(1, who.as_bytes()), field(9, b"?"), field(2, &at)].concat()
    });
    let records: Vec<Vec<u8>> = records.chain([vec![0x0a, 9]]).collect();
    let source = "format = \"protobuf\"\ndescriptors = \"clicks.binpb\"\nmessage = \"shop.Click\"\n\
                  key = \"who\"\ntime = { field = \"at\" }";
    succeeded(&run(dir.path(), source, &delimited(records)));
    assert_eq!(sessions(dir.path()), expected());
    let dead = dead(dir.path());
    assert_eq!(dead.keys().collect::<Vec<_>>(), ["malformed_protobuf"]);
    assert_eq!(dead["malformed_protobuf"], ["at byte 1: field 1 has 9 bytes, and 0 follow"]);
    // `check` knows the name that was meant.
    let config = fs::read_to_string(dir.path().join("p.toml")).unwrap();
    fs::write(dir.path().join("p.toml"), config.replace("shop.Click", "shop.Clik")).unwrap();
    let checked = tidemill(dir.path(), "check");
    let said =
        String::from_utf8_lossy(&checked.stderr).into_owned() + &String::from_utf8_lossy(&checked.stdout);
    assert!(
        said.contains("no message `shop.Clik`") && said.contains("did you mean \"shop.Click\"?"),
        "{said}"
    );
}
