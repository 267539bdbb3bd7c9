//! Golden bytes by the rules of the specification, and what `apache-avro` writes, read again.

use super::registry::Schemas;
use super::*;
use crate::format::Kind;
use crate::format::leads_to::{check_all, pointers};
use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::HashMap;

fn names(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|p| (*p).to_owned()).collect()
}

fn schema(json: &Value) -> Schema {
    Schema::parse(&json.to_string()).unwrap()
}

/// Slots as text: kind and value.
fn shown(out: &Slots, n: usize, record: &[u8]) -> Vec<String> {
    (0..n)
        .map(|i| {
            let text = String::from_utf8(out.get(i, record).to_vec()).unwrap();
            match out.kind(i) {
                Kind::Missing => "-".to_owned(),
                Kind::Text => format!("'{text}'"),
                Kind::Number | Kind::Bool | Kind::Structure => text,
            }
        })
        .collect()
}

fn read(paths: &[&str], writer: &Value, reader: Option<&Value>, record: &[u8]) -> Result<String, Malformed> {
    let mut decoder = AvroDecoder::bare(&names(paths), &schema(writer), reader.map(schema)).unwrap();
    let mut out = Slots::default();
    decoder.decode(record, &mut out)?;
    Ok(shown(&out, paths.len(), record).join(" "))
}

#[track_caller]
fn reads(paths: &[&str], writer: &Value, record: &[u8], expected: &str) {
    assert_eq!(read(paths, writer, None, record).unwrap(), expected);
}

#[track_caller]
fn refused(writer: &Value, record: &[u8], part: &str) {
    let e = read(&["a"], writer, None, record).expect_err("it was read");
    assert_eq!(e.reason, "malformed_avro");
    assert!(e.message.contains(part), "{}", e.message);
}

/// A record of these fields, all in their order.
fn record(fields: &Value) -> Value {
    let fields: Vec<Value> = fields
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, kind)| json!({ "name": name, "type": kind }))
        .collect();
    json!({ "type": "record", "name": "R", "fields": fields })
}

#[test]
fn scalars() {
    let all = record(&json!({
        "a": "int", "b": "long", "c": "boolean", "d": "string", "e": "bytes", "f": "float", "g": "double",
        "h": "null", "i": { "type": "enum", "name": "E", "symbols": ["X", "Y"] },
        "j": { "type": "fixed", "name": "F", "size": 2 },
    }));
    let mut bytes = vec![0x01, 0x80, 0x01, 1, 6, b'f', b'o', b'o', 4, b'o', 0xff];
    bytes.extend(1.5_f32.to_le_bytes());
    bytes.extend((-0.1_f64).to_le_bytes());
    bytes.extend([2, b'h', b'i']);
    let paths = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "/d", "none"];
    reads(&paths, &all, &bytes, "-1 64 true 'foo' 'oÿ' 1.5 -0.1 - 'Y' 'hi' 'foo' -");
    for cut in 0..bytes.len() {
        refused(&all, &bytes[..cut], "at byte");
    }
    refused(&all, &[bytes.as_slice(), b"x"].concat(), "1 bytes follow the record");
    let empty = record(&json!({ "a": "string" }));
    reads(&["a"], &empty, &[0], "-");
}

#[test]
fn logical_types() {
    let of = |kind: &str, name: &str| json!({ "type": kind, "logicalType": name });
    let all = record(&json!({
        "a": of("long", "timestamp-millis"), "b": of("long", "timestamp-micros"), "c": of("long", "timestamp-nanos"),
        "d": of("int", "date"), "e": of("long", "local-timestamp-millis"), "f": of("long", "local-timestamp-micros"),
        "g": { "type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 2 },
        "h": { "type": "fixed", "name": "U", "size": 16, "logicalType": "uuid" },
        "i": { "type": "fixed", "name": "D", "size": 12, "logicalType": "duration" },
        "j": of("int", "time-millis"), "k": of("string", "uuid"), "l": of("int", "timestamp-millis"),
    }));
    let mut bytes = vec![0xd0, 0x0f, 0xd0, 0x0f, 0xd1, 0x0f, 0xd0, 0x0f, 0xd0, 0x0f, 0xcf, 0x0f];
    bytes.extend([4, 0xfb, 0x2e]);
    bytes.extend(0..16);
    bytes.extend([1, 0, 0, 0, 2, 0, 0, 0, 0xdc, 5, 0, 0]);
    bytes.extend([2, 2, b'u', 2]);
    let paths = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    reads(
        &paths,
        &all,
        &bytes,
        "1000 1 -0.001001 '1972-09-27' '1970-01-01T00:00:01' '1969-12-31T23:59:59.999000' -12.34 \
         '00010203-0405-0607-0809-0a0b0c0d0e0f' 'P1M2DT1.500S' 1 'u' 1",
    );
    let long =
        record(&json!({ "a": { "type": "bytes", "logicalType": "decimal", "precision": 99, "scale": 1 } }));
    // More bytes than 16 are no harm while they say nothing.
    reads(&["a"], &long, &[&[36, 0xff, 0xff][..], &[0xff; 16]].concat(), "-0.1");
    reads(&["a"], &long, &[0], "0");
    refused(&long, &[&[34, 1][..], &[0; 16]].concat(), "more than 128 bits");
}

#[test]
fn structures_and_paths_into_them() {
    let all = record(&json!({
        "a": { "type": "array", "items": ["null", "int"] },
        "m": { "type": "map", "values": { "type": "record", "name": "P", "fields": [
            { "name": "x", "type": "int" }, { "name": "y", "type": ["null", "string"] }] } },
    }));
    // Two blocks, the second with its length; and the key "k" twice, the second time without a `y`.
    let bytes =
        [&[4, 2, 2, 0, 1, 4, 2, 5, 0][..], &[6, 2, b'k', 2, 2, 2, b'q', 2, b'o', 4, 0, 2, b'k', 8, 0, 0]]
            .concat();
    let paths =
        ["a", "/a/0", "/a/1", "/a/2", "/a/3", "/a/x", "/m/k/x", "/m/k/y", "/m/o/x", "/m/k", "m", "/m"];
    reads(
        &paths,
        &all,
        &bytes,
        "[1,null,-3] 1 - -3 - - 4 - 2 {\"x\":4,\"y\":null} \
         {\"k\":{\"x\":1,\"y\":\"q\"},\"o\":{\"x\":2,\"y\":null},\"k\":{\"x\":4,\"y\":null}} \
         {\"k\":{\"x\":1,\"y\":\"q\"},\"o\":{\"x\":2,\"y\":null},\"k\":{\"x\":4,\"y\":null}}",
    );
    let wrong_length = [&[4, 2, 2, 0, 1, 6, 2, 5, 0, 0, 0, 0][..]].concat();
    refused(&all, &wrong_length, "do not end where its length says");
}

#[test]
fn unions_lead_to_the_branch_that_is_there() {
    let click = json!({ "type": "record", "name": "C", "fields": [{ "name": "url", "type": "string" }] });
    let buy = json!({ "type": "record", "name": "B", "fields": [{ "name": "sum", "type": "long" }] });
    let all = record(&json!({ "e": ["null", click, buy] }));
    let paths = ["/e/url", "/e/sum", "e"];
    reads(&paths, &all, &[0], "- - -");
    reads(&paths, &all, &[2, 2, b'u'], "'u' - {\"url\":\"u\"}");
    reads(&paths, &all, &[4, 10], "- 5 {\"sum\":5}");
    refused(&all, &[6, 10], "the branch of a union is number 3 of 3");
    refused(&all, &[1, 10], "is number -1");
}

#[test]
fn what_is_not_wanted_is_found_malformed_too() {
    for (kind, bytes, part) in [
        (json!("boolean"), &[2][..], "a boolean is 2"),
        (json!("int"), &[0x80, 0x80, 0x80, 0x80, 0x20], "more than 32 bits"),
        (json!("long"), &[0xff; 11], "more than 64 bits"),
        (json!("long"), &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], "more than 64 bits"),
        (json!("string"), &[2, 0xff], "a string is no UTF-8"),
        (json!("string"), &[1], "a length is -1"),
        (json!("bytes"), &[0xfe, 0xff, 0xff, 0xff, 0x0f], "a length is"),
        (json!({ "type": "enum", "name": "E", "symbols": ["X"] }), &[2], "a symbol is number 1 of 1"),
        (json!({ "type": "map", "values": "null" }), &[2, 2, 0xff, 0], "a string is no UTF-8"),
    ] {
        refused(&record(&json!({ "z": kind })), bytes, part);
        refused(&record(&json!({ "a": kind })), bytes, part);
    }
}

/// Bug family: a schema or a record that keeps the walk busy for ever, deep or in memory.
#[test]
fn every_walk_ends() {
    let nulls = record(&json!({ "a": { "type": "array", "items": "null" } }));
    let most = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    refused(&nulls, &most, "bytes as JSON");
    let e = read(&["b"], &nulls, None, &most).expect_err("too many");
    assert!(e.message.contains("the record has more than"), "{}", e.message);
    // Each level has two of the one before: no bytes, and more values than anybody has time for.
    let mut fields = vec![json!({ "name": "x", "type": { "type": "record", "name": "L0", "fields": [] } })];
    for level in 1..50 {
        let below = format!("L{}", level - 1);
        let both = json!([{ "name": "l", "type": below }, { "name": "r", "type": below }]);
        let kind = json!({ "type": "record", "name": format!("L{level}"), "fields": both });
        fields.push(json!({ "name": format!("f{level}"), "type": kind }));
    }
    let doubling = json!({ "type": "record", "name": "R", "fields": fields });
    refused(&doubling, &[], "the record has more than");
    assert!(read(&["f49"], &doubling, None, &[]).is_err());
    let list =
        json!({ "type": "record", "name": "N", "fields": [{ "name": "next", "type": ["null", "N"] }] });
    let long = [vec![2; 10_000], vec![0]].concat();
    refused(&list, &long, "nested more than");
    let e = read(&["next"], &list, None, &long).expect_err("too deep");
    assert!(e.message.contains("nested more than"), "{}", e.message);
    reads(&["/next/next/next"], &list, &[2, 2, 2, 0], "{\"next\":null}");
    // A reader's default for each of many items without bytes.
    let items = |fields: Value| {
        record(&json!({ "a": { "type": "array", "items":
        { "type": "record", "name": "I", "fields": fields } } }))
    };
    let added = json!([{ "name": "d", "type": "string", "default": "x".repeat(100) }]);
    let many = [0x80, 0x80, 0x80, 0x02, 0];
    let e = read(&["a"], &items(json!([])), Some(&items(added)), &many).expect_err("too much");
    assert!(e.message.contains("bytes as JSON"), "{}", e.message);
}

#[test]
fn evolution() {
    let writer = json!({ "type": "record", "name": "old.R", "fields": [
        { "name": "i", "type": "int" }, { "name": "gone", "type": "string" },
        { "name": "was", "type": "string" },
        { "name": "e", "type": { "type": "enum", "name": "E", "symbols": ["A", "B"] } },
        { "name": "u", "type": ["null", "int"] }, { "name": "f", "type": "float" },
        { "name": "n", "type": { "type": "record", "name": "N", "fields": [{ "name": "x", "type": "int" }] } },
    ] });
    let bytes = [&[2, 2, b'g', 4, b'w', b's', 2, 2, 6][..], &0.1_f32.to_le_bytes(), &[8]].concat();
    let reader = json!({ "type": "record", "name": "new.R", "fields": [
        { "name": "f", "type": "double" }, { "name": "now", "type": "bytes", "aliases": ["was"] },
        { "name": "i", "type": ["null", "double", "long"] },
        { "name": "e", "type": { "type": "enum", "name": "E", "symbols": ["A", "OTHER"], "default": "OTHER" } },
        { "name": "u", "type": ["null", "long", "string"] },
        { "name": "n", "type": { "type": "record", "name": "N", "fields": [
            { "name": "y", "type": ["null", "int"], "default": null }, { "name": "x", "type": "long" },
            { "name": "z", "type": { "type": "array", "items": "string" }, "default": ["p", "q"] } ] } },
        { "name": "added", "type": { "type": "map", "values": "int" }, "default": { "k": 7 } },
        { "name": "text", "type": "string", "default": "dflt" },
        { "name": "at", "type": { "type": "long", "logicalType": "timestamp-micros" }, "default": 1500 },
        { "name": "raw", "type": "bytes", "default": "\u{ff}" },
        { "name": "un", "type": ["int", "null"], "default": 3 },
        { "name": "absent", "type": "int" },
    ] });
    let paths = [
        "i", "gone", "was", "now", "e", "u", "f", "/n/x", "/n/y", "/n/z/1", "n", "/added/k", "text", "at",
        "raw", "un", "absent",
    ];
    // `int` goes to the first branch that it can be widened to, for there is no `int`.
    let expected = "1.0 - - 'ws' 'OTHER' 3 0.10000000149011612 4 - 'q' \
                    {\"x\":4,\"y\":null,\"z\":[\"p\",\"q\"]} 7 'dflt' 1.500 'ÿ' 3 -";
    assert_eq!(read(&paths, &writer, Some(&reader), &bytes).unwrap(), expected);
    assert_eq!(
        absent(&names(&paths), &schema(&writer), Some(&schema(&reader))).unwrap(),
        [1, 2, 16],
        "what nobody can find"
    );
    assert_eq!(absent(&names(&["i", "/n/q", "/n/x", "now"]), &schema(&writer), None).unwrap(), [1, 3]);
}

#[test]
fn what_the_reader_cannot_take_is_wrong_where_it_is_wanted() {
    let writer = record(&json!({ "a": "string", "b": "int" }));
    let reader = record(&json!({ "a": "int", "b": "int" }));
    let bytes = [2, b's', 4];
    assert_eq!(read(&["b"], &writer, Some(&reader), &bytes).unwrap(), "2");
    let e = read(&["a", "b"], &writer, Some(&reader), &bytes).expect_err("a string is no int");
    assert!(e.message.contains("at byte 0") && e.message.contains("reader's schema"), "{}", e.message);
    let other = json!({ "type": "record", "name": "Other", "fields": [] });
    assert!(AvroDecoder::bare(&[], &schema(&writer), Some(schema(&other))).is_err());
    let bad = record(&json!({ "b": "int" }));
    let bad = bad.to_string().replace("\"type\":\"int\"", "\"type\":\"int\",\"default\":\"x\"");
    let bad = Schema::parse(&bad.replace("\"b\"", "\"new\"")).unwrap();
    let e = AvroDecoder::bare(&names(&["new"]), &schema(&writer), Some(bad)).err().unwrap();
    assert!(e.contains("the default of `new`"), "{e}");
}

/// A reader's schema that contains itself through a union that the writer does not have.
#[test]
fn recursive_types_resolve() {
    let tree = |kid: Value| {
        json!({ "type": "record", "name": "T", "fields": [
            { "name": "v", "type": "int" }, { "name": "kids", "type": { "type": "array", "items": kid } }] })
    };
    let (writer, reader) = (tree(json!("T")), tree(json!(["null", "T"])));
    let bytes = [2, 4, 4, 0, 6, 2, 8, 0, 0, 0];
    for paths in [&["/kids/1/kids/0/v", "/kids/0"][..]] {
        for reader in [None, Some(&reader)] {
            assert_eq!(read(paths, &writer, reader, &bytes).unwrap(), "4 {\"v\":2,\"kids\":[]}");
        }
    }
}

#[test]
fn schemas_that_are_none() {
    for (text, part) in [
        ("{", "is no JSON"),
        ("7", "`7` is no schema"),
        ("\"text\"", "the type `text` is not defined"),
        ("{}", "has no `type`"),
        (r#"{"type":"array"}"#, "no `items`"),
        (r#"{"type":"fixed","name":"F"}"#, "no `size`"),
        (r#"{"type":"enum","name":"F"}"#, "no `symbols`"),
        (r#"{"type":"record","fields":[]}"#, "no `name`"),
        (
            r#"{"type":"record","name":"R","fields":[{"name":"a","type":"int"},{"name":"a","type":"int"}]}"#,
            "twice",
        ),
        (r#"[{"type":"fixed","name":"F","size":1},{"type":"fixed","name":"F","size":1}]"#, "defined twice"),
        (r#"["null",["int"]]"#, "a union holds another"),
        (&format!("{}\"int\"{}", "{\"type\":".repeat(500), "}".repeat(500)), "is no JSON"),
    ] {
        let e = Schema::parse(text).expect_err(text);
        assert!(e.contains(part), "{text}: {e}");
    }
}

#[test]
fn names_are_found_in_their_namespace() {
    let all = json!({ "type": "record", "name": "a.b.R", "fields": [
        { "name": "x", "type": { "type": "fixed", "name": "F", "size": 1 } },
        { "name": "y", "type": { "type": "record", "name": "c.S", "fields": [
            { "name": "z", "type": { "type": "fixed", "name": "F", "size": 2 } }, { "name": "w", "type": "F" }] } },
        { "name": "v", "type": "a.b.F" }, { "name": "u", "type": "F" }, { "name": "t", "type": "c.F" },
    ] });
    reads(&["x", "/y/z", "/y/w", "v", "u", "t"], &all, b"122334566", "'1' '22' '33' '4' '5' '66'");
}

#[test]
fn files_begin_with_their_schema() {
    let mut decoder = AvroDecoder::of_files(&names(&["a"]), None);
    let mut out = Slots::default();
    assert!(decoder.decode(&[2], &mut out).expect_err("no schema").message.contains("no schema came before"));
    assert_eq!(decoder.header(b"{").expect_err("none").reason, "malformed_avro");
    decoder.header(record(&json!({ "a": "int" })).to_string().as_bytes()).unwrap();
    decoder.decode(&[2], &mut out).unwrap();
    assert_eq!(out.get(0, &[2]), b"1");
}

/// Knows some schemas; says so each time it is asked.
struct Known {
    schemas: HashMap<u32, Result<Schema, String>>,
    asked: std::sync::mpsc::Sender<u32>,
}

impl Schemas for Known {
    fn find(&mut self, id: u32) -> Result<Result<Schema, String>, ConnectError> {
        self.asked.send(id).unwrap();
        self.schemas.get(&id).cloned().ok_or_else(|| ConnectError::Failed("away".to_owned()))
    }
}

#[test]
fn framed_records_name_their_schema() {
    let (asked, asks) = std::sync::mpsc::channel();
    let of = |kind: &str| Ok(schema(&record(&json!({ "a": kind }))));
    let schemas =
        HashMap::from([(1, of("int")), (0x0102_0304, of("string")), (9, Err("never heard of".to_owned()))]);
    let mut decoder = AvroDecoder::framed(&names(&["a"]), None, Box::new(Known { schemas, asked }));
    let records: [&[u8]; 5] =
        [&[0, 0, 0, 0, 1, 4], &[0, 1, 2, 3, 4, 2, b's'], &[0, 0, 0, 0, 9, 1], &[1, 2], &[0, 0, 0, 0, 1, 6]];
    decoder.prepare(&mut records.into_iter()).unwrap();
    let mut out = Slots::default();
    let mut text =
        |record: &[u8]| decoder.decode(record, &mut out).map(|()| shown(&out, 1, record).join(" "));
    assert_eq!(text(records[0]).unwrap(), "2");
    assert_eq!(text(records[1]).unwrap(), "'s'");
    let unknown = text(records[2]).expect_err("no schema");
    assert_eq!((unknown.reason, unknown.message.as_str()), ("unknown_schema", "schema 9: never heard of"));
    assert!(
        text(records[3]).expect_err("no frame").message.contains("begins with a zero, and the record with 1")
    );
    assert!(text(&[0, 1]).expect_err("no frame").message.contains("a frame has 5 bytes"));
    let at = text(&[0, 0, 0, 0, 1]).expect_err("nothing behind the frame");
    assert_eq!((at.reason, at.message.starts_with("at byte 5")), ("malformed_avro", true), "{at:?}");
    // Who cannot be reached is no dead letter, and is asked again; who has answered is not.
    let away: [&[u8]; 2] = [&[0, 0, 0, 0, 1, 4], &[0, 0, 0, 0, 5, 4]];
    for _ in 0..2 {
        let failed = decoder.prepare(&mut away.into_iter());
        assert!(matches!(failed, Err(ConnectError::Failed(why)) if why == "away"));
    }
    decoder.prepare(&mut records.into_iter()).unwrap();
    assert_eq!(asks.try_iter().collect::<Vec<_>>(), [1, 0x0102_0304, 9, 5, 5]);
}

/// A schema of any shape; names are given later.
fn any_schema() -> impl Strategy<Value = Value> {
    let simple = |names: &'static [&'static str]| prop::sample::select(names).prop_map(|n| json!(n));
    let logical = prop::sample::select(vec![
        json!({ "type": "long", "logicalType": "timestamp-millis" }),
        json!({ "type": "long", "logicalType": "timestamp-micros" }),
        json!({ "type": "int", "logicalType": "date" }),
        json!({ "type": "enum", "name": "", "symbols": ["A", "B", "C"] }),
        json!({ "type": "fixed", "name": "", "size": 3 }),
    ]);
    let leaf = prop_oneof![
        4 => simple(&["null", "boolean", "int", "long", "float", "double", "bytes", "string"]),
        2 => logical,
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let is_union = |s: &Value| s.is_array();
        prop_oneof![
            inner.clone().prop_map(|s| json!({ "type": "array", "items": s })),
            inner.clone().prop_map(|s| json!({ "type": "map", "values": s })),
            inner.clone().prop_map(move |s| if is_union(&s) || s == "null" { s } else { json!(["null", s]) }),
            prop::collection::vec(inner, 0..4).prop_map(|kinds| {
                let field = |(i, kind)| json!({ "name": format!("f{i}"), "type": kind });
                let fields: Vec<Value> = kinds.into_iter().enumerate().map(field).collect();
                json!({ "type": "record", "name": "", "fields": fields })
            }),
        ]
    })
}

/// Gives each definition a name of its own.
fn name_all(schema: &mut Value, next: &mut u32) {
    match schema {
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                if key == "name" && value == "" {
                    *value = json!(format!("N{next}"));
                    *next += 1;
                }
                name_all(value, next);
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|s| name_all(s, next)),
        _ => {}
    }
}

/// Some value of a schema, and what it should read as.
fn any_value(schema: &Value, rng: &mut fastrand::Rng) -> (Avro, Value) {
    let logical = schema.get("logicalType").and_then(Value::as_str);
    let kind = schema.as_str().or_else(|| schema["type"].as_str());
    match (kind, logical) {
        (None, _) => {
            let branches = schema.as_array().unwrap();
            let branch = rng.usize(..branches.len());
            let (avro, value) = any_value(&branches[branch], rng);
            (Avro::Union(branch as u32, Box::new(avro)), value)
        }
        (_, Some("timestamp-millis")) => {
            let n = rng.i64(-10_000..1 << 50);
            (Avro::TimestampMillis(n), json!(n))
        }
        (_, Some("timestamp-micros")) => {
            let n = rng.i64(0..1 << 50) * 1000;
            (Avro::TimestampMicros(n), json!(n / 1000))
        }
        (_, Some("date")) => {
            let days = rng.i32(-100_000..100_000);
            let date = jiff::civil::date(1970, 1, 1).checked_add(jiff::Span::new().days(days)).unwrap();
            (Avro::Date(days), json!(date.to_string()))
        }
        (Some("null"), _) => (Avro::Null, Value::Null),
        (Some("boolean"), _) => {
            let b = rng.bool();
            (Avro::Boolean(b), json!(b))
        }
        (Some("int"), _) => {
            let n = rng.i32(..) >> rng.u32(0..32);
            (Avro::Int(n), json!(n))
        }
        (Some("long"), _) => {
            let n = rng.i64(..) >> rng.u32(0..64);
            (Avro::Long(n), json!(n))
        }
        (Some("float"), _) => {
            let f = f32::from_bits(rng.u32(..));
            (Avro::Float(f), float(f.is_finite(), &format!("{f:?}")))
        }
        (Some("double"), _) => {
            let f = f64::from_bits(rng.u64(..));
            (Avro::Double(f), float(f.is_finite(), &format!("{f:?}")))
        }
        (Some("bytes"), _) => {
            let bytes: Vec<u8> = (0..rng.usize(0..4)).map(|_| rng.u8(..)).collect();
            let text: String = bytes.iter().map(|b| char::from(*b)).collect();
            (Avro::Bytes(bytes), json!(text))
        }
        (Some("string"), _) => {
            let text: String = (0..rng.usize(0..5)).map(|_| rng.char('\0'..'\u{1ff}')).collect();
            (Avro::String(text.clone()), json!(text))
        }
        (Some("enum"), _) => {
            let at = rng.usize(..3);
            let symbol = ["A", "B", "C"][at];
            (Avro::Enum(at as u32, symbol.to_owned()), json!(symbol))
        }
        (Some("fixed"), _) => {
            let bytes: Vec<u8> = (0..3).map(|_| rng.u8(..)).collect();
            let text: String = bytes.iter().map(|b| char::from(*b)).collect();
            (Avro::Fixed(3, bytes), json!(text))
        }
        (Some("array"), _) => {
            let items = (0..rng.usize(0..4)).map(|_| any_value(&schema["items"], rng));
            let (avro, values): (Vec<Avro>, Vec<Value>) = items.unzip();
            (Avro::Array(avro), json!(values))
        }
        (Some("map"), _) => {
            let keys = ["", "k", "0", "a/b~c", "\"ä\""];
            let (mut avro, mut values) = (HashMap::new(), serde_json::Map::new());
            for _ in 0..rng.usize(0..4) {
                let key = keys[rng.usize(..keys.len())];
                let (one, value) = any_value(&schema["values"], rng);
                avro.insert(key.to_owned(), one);
                values.insert(key.to_owned(), value);
            }
            (Avro::Map(avro), Value::Object(values))
        }
        (Some("record"), _) => {
            let (mut avro, mut values) = (Vec::new(), serde_json::Map::new());
            for field in schema["fields"].as_array().unwrap() {
                let name = field["name"].as_str().unwrap();
                let (one, value) = any_value(&field["type"], rng);
                avro.push((name.to_owned(), one));
                values.insert(name.to_owned(), value);
            }
            (Avro::Record(avro), Value::Object(values))
        }
        other => panic!("{other:?}"),
    }
}

fn float(is_finite: bool, text: &str) -> Value {
    if is_finite { serde_json::from_str(text).unwrap() } else { json!(text.replace("inf", "Infinity")) }
}

fn written(schema: &Value, value: Avro) -> Vec<u8> {
    let schema = apache_avro::Schema::parse_str(&schema.to_string()).unwrap();
    GenericDatumWriter::builder(&schema).build().unwrap().write_value_to_vec(value).unwrap()
}

/// A schema as a reader may have it by now, and what it makes of the value.
fn evolve(schema: &Value, value: &Value, rng: &mut fastrand::Rng) -> (Value, Value) {
    let (mut fields, mut values) = (Vec::new(), serde_json::Map::new());
    for field in schema["fields"].as_array().unwrap() {
        let (name, kind) = (field["name"].as_str().unwrap(), &field["type"]);
        let was = &value[name];
        let is_widenable = kind == "int" || kind == "long";
        match rng.u8(..7) {
            0 => {}
            1 => {
                let new = format!("new_{name}");
                fields.push(json!({ "name": new, "aliases": ["x", name], "type": kind }));
                values.insert(new, was.clone());
            }
            2 if !kind.is_array() && kind != "null" => {
                fields.push(json!({ "name": name, "type": ["null", kind] }));
                values.insert(name.to_owned(), was.clone());
            }
            3 if is_widenable => {
                fields.push(json!({ "name": name, "type": "double" }));
                values.insert(name.to_owned(), json!(was.as_i64().unwrap() as f64));
            }
            4 if kind == "int" => {
                fields.push(json!({ "name": name, "type": ["string", "long"] }));
                values.insert(name.to_owned(), was.clone());
            }
            _ => {
                fields.push(json!({ "name": name, "type": kind }));
                values.insert(name.to_owned(), was.clone());
            }
        }
    }
    let added = json!([{ "a": 1 }, { "a": -5 }]);
    let kind = json!({ "type": "array", "items": { "type": "map", "values": ["int", "null"] } });
    fields.push(json!({ "name": "added", "type": kind, "default": added }));
    values.insert("added".to_owned(), added);
    rng.shuffle(&mut fields);
    let reader = json!({ "type": "record", "name": schema["name"], "fields": fields });
    (reader, Value::Object(values))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Bug family: a value of the wrong place, a kind confused, a block or branch misread. The model is what was written
    /// by `apache-avro`.
    #[test]
    fn reads_what_apache_avro_writes(kinds in prop::collection::vec(any_schema(), 1..4), seed in any::<u64>()) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let fields: Vec<Value> =
            kinds.into_iter().enumerate().map(|(i, k)| json!({ "name": format!("g{i}"), "type": k })).collect();
        let mut writer = json!({ "type": "record", "name": "", "fields": fields });
        name_all(&mut writer, &mut 0);
        let (avro, expected) = any_value(&writer, &mut rng);
        let record = written(&writer, avro);
        let all = pointers(&expected);
        let mut decoder = AvroDecoder::bare(&all, &schema(&writer), None).unwrap();
        check_all(&mut decoder, &all, &record, &expected);
        let (reader, evolved) = evolve(&writer, &expected, &mut rng);
        let all = pointers(&evolved);
        let mut decoder = AvroDecoder::bare(&all, &schema(&writer), Some(schema(&reader))).unwrap();
        check_all(&mut decoder, &all, &record, &evolved);
        // One of them alone is the same as all together.
        if !all.is_empty() {
            let one = all[rng.usize(..all.len())].clone();
            let mut decoder = AvroDecoder::bare(std::slice::from_ref(&one), &schema(&writer), Some(schema(&reader))).unwrap();
            check_all(&mut decoder, &[one], &record, &evolved);
        }
    }

    #[test]
    fn never_panics(kind in any_schema(), bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let mut writer = record(&json!({ "a": kind }));
        name_all(&mut writer, &mut 0);
        let mut out = Slots::default();
        let paths = names(&["a", "/a/f0", "/a/0", "/a/0/f0/k"]);
        let result = AvroDecoder::bare(&paths, &schema(&writer), None).unwrap().decode(&bytes, &mut out);
        prop_assert!(result.is_ok() || result.is_err_and(|e| e.reason == REASON));
    }
}
