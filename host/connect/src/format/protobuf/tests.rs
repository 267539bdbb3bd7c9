//! Golden bytes by the rules of the format, and what `prost-reflect` writes, read again.

use super::*;
use crate::format::leads_to::{check_all, pointers};
use proptest::prelude::*;
use prost_reflect::prost::Message as _;
use prost_reflect::prost_types::field_descriptor_proto::{Label, Type as T};
use prost_reflect::prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
    FileDescriptorProto, FileDescriptorSet, MessageOptions, OneofDescriptorProto,
};
use prost_reflect::{DescriptorPool, DynamicMessage, MapKey, Value as Pb};
use serde_json::{Value, json};

fn field(name: &str, number: i32, kind: T) -> FieldDescriptorProto {
    FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        label: Some(Label::Optional.into()),
        r#type: Some(kind.into()),
        ..Default::default()
    }
}

fn typed(name: &str, number: i32, kind: T, of: &str) -> FieldDescriptorProto {
    FieldDescriptorProto { type_name: Some(of.to_owned()), ..field(name, number, kind) }
}

fn repeated(field: FieldDescriptorProto) -> FieldDescriptorProto {
    FieldDescriptorProto { label: Some(Label::Repeated.into()), ..field }
}

fn in_oneof(field: FieldDescriptorProto, oneof: i32) -> FieldDescriptorProto {
    FieldDescriptorProto { oneof_index: Some(oneof), ..field }
}

fn defaulted(field: FieldDescriptorProto, default: &str) -> FieldDescriptorProto {
    FieldDescriptorProto { default_value: Some(default.to_owned()), ..field }
}

fn message(name: &str, fields: Vec<FieldDescriptorProto>) -> DescriptorProto {
    DescriptorProto { name: Some(name.to_owned()), field: fields, ..Default::default() }
}

fn entry(name: &str, key: T, value: FieldDescriptorProto) -> DescriptorProto {
    let options = MessageOptions { map_entry: Some(true), ..Default::default() };
    DescriptorProto { options: Some(options), ..message(name, vec![field("key", 1, key), value]) }
}

/// A file with all that there is, in this syntax.
fn files(syntax: &str) -> FileDescriptorSet {
    let numbers = [
        ("double", T::Double),
        ("float", T::Float),
        ("int64", T::Int64),
        ("uint64", T::Uint64),
        ("int32", T::Int32),
        ("fixed64", T::Fixed64),
        ("fixed32", T::Fixed32),
        ("bool", T::Bool),
        ("string", T::String),
        ("bytes", T::Bytes),
        ("uint32", T::Uint32),
        ("sfixed32", T::Sfixed32),
        ("sfixed64", T::Sfixed64),
        ("sint32", T::Sint32),
        ("sint64", T::Sint64),
    ];
    let mut fields: Vec<FieldDescriptorProto> =
        numbers.iter().enumerate().map(|(i, (name, kind))| field(name, i as i32 + 1, *kind)).collect();
    for (i, (name, kind)) in numbers.iter().enumerate() {
        fields.push(repeated(field(&format!("{name}s"), i as i32 + 21, *kind)));
    }
    fields.extend([
        typed("enum", 16, T::Enum, ".t.Color"),
        typed("inner", 17, T::Message, ".t.All.Inner"),
        typed("all", 18, T::Message, ".t.All"),
        repeated(typed("enums", 36, T::Enum, ".t.Color")),
        repeated(typed("inners", 37, T::Message, ".t.All.Inner")),
        repeated(typed("map", 38, T::Message, ".t.All.MapEntry")),
        repeated(typed("byid", 39, T::Message, ".t.All.ByidEntry")),
        in_oneof(field("one_text", 40, T::String), 0),
        in_oneof(typed("one_inner", 41, T::Message, ".t.All.Inner"), 0),
        in_oneof(field("one_number", 42, T::Int32), 0),
    ]);
    let mut all = message("All", fields);
    all.nested_type = vec![
        message(
            "Inner",
            vec![field("x", 1, T::Int32), repeated(field("r", 2, T::Sint32)), field("s", 3, T::String)],
        ),
        entry("MapEntry", T::String, typed("value", 2, T::Message, ".t.All.Inner")),
        entry("ByidEntry", T::Int32, field("value", 2, T::String)),
    ];
    all.oneof_decl = vec![OneofDescriptorProto { name: Some("one".to_owned()), ..Default::default() }];
    let value = |name: &str, number| EnumValueDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        options: None,
    };
    let color = EnumDescriptorProto {
        name: Some("Color".to_owned()),
        value: vec![value("RED", 0), value("BLUE", 5), value("NONE", -1)],
        ..Default::default()
    };
    let file = FileDescriptorProto {
        name: Some("t.proto".to_owned()),
        package: Some("t".to_owned()),
        message_type: vec![message("First", vec![]), all],
        enum_type: vec![color],
        syntax: Some(syntax.to_owned()),
        ..Default::default()
    };
    FileDescriptorSet { file: vec![file] }
}

fn of_files(files: &FileDescriptorSet) -> Arc<Descriptors> {
    Arc::new(Descriptors::parse(&files.encode_to_vec()).unwrap())
}

fn set(syntax: &str) -> Arc<Descriptors> {
    of_files(&files(syntax))
}

fn names(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|p| (*p).to_owned()).collect()
}

fn shown(out: &Slots, n: usize, record: &[u8]) -> String {
    let one = |i| {
        let text = String::from_utf8(out.get(i, record).to_vec()).unwrap();
        match out.kind(i) {
            Kind::Missing => "-".to_owned(),
            Kind::Text => format!("'{text}'"),
            Kind::Number | Kind::Bool | Kind::Structure => text,
        }
    };
    (0..n).map(one).collect::<Vec<_>>().join(" ")
}

fn read_of(set: Arc<Descriptors>, name: &str, paths: &[&str], record: &[u8]) -> Result<String, Malformed> {
    let mut decoder = ProtobufDecoder::new(&names(paths), set, name, false).unwrap();
    let mut out = Slots::default();
    // Twice: nothing of one record may be left in the next.
    decoder.decode(record, &mut out)?;
    decoder.decode(record, &mut out)?;
    Ok(shown(&out, paths.len(), record))
}

#[track_caller]
fn reads(syntax: &str, paths: &[&str], record: &[u8], expected: &str) {
    assert_eq!(read_of(set(syntax), "t.All", paths, record).unwrap(), expected);
}

#[track_caller]
fn refused(record: &[u8], part: &str) {
    let e = read_of(set("proto3"), "t.All", &["string", "inner"], record).expect_err("it was read");
    assert_eq!(e.reason, "malformed_protobuf");
    assert!(e.message.contains(part), "{}", e.message);
}

#[test]
fn absent_fields_have_their_default_or_are_missing() {
    let paths = [
        "int64",
        "string",
        "bool",
        "enum",
        "double",
        "int64s",
        "inner",
        "/inner/x",
        "one_number",
        "/map/k",
        "none",
    ];
    reads("proto3", &paths, b"", "0 - false 'RED' 0.0 - - - - - -");
    reads("proto2", &paths, b"", "- - - - - - - - - - -");
    // An inner message that is there, and empty.
    reads("proto3", &paths[6..8], &[0x8a, 1, 0], "{} 0");
    let declared = message(
        "D",
        vec![
            defaulted(field("i", 1, T::Int32), "-7"),
            defaulted(field("f", 2, T::Double), "inf"),
            defaulted(field("s", 3, T::String), "text"),
            defaulted(field("b", 4, T::Bool), "true"),
            defaulted(field("y", 5, T::Bytes), "\\001\\n\\\\a"),
            field("n", 6, T::Int32),
        ],
    );
    let file = FileDescriptorProto { message_type: vec![declared], ..Default::default() };
    let set = of_files(&FileDescriptorSet { file: vec![file] });
    let paths = ["i", "f", "s", "b", "y", "n"];
    assert_eq!(read_of(set.clone(), "D", &paths, b"").unwrap(), "-7 'Infinity' 'text' true 'AQpcYQ==' -");
    assert_eq!(read_of(set, "D", &paths, &[8, 0, 0x1a, 0]).unwrap(), "0 'Infinity' - true 'AQpcYQ==' -");
}

#[test]
fn editions_say_presence_by_their_features() {
    let of = |number: u8, options: &[u8]| [&[number << 3 | 2, options.len() as u8][..], options].concat();
    // field_presence = IMPLICIT for the file (options 8, features 50), EXPLICIT again for the second field (8, 21).
    let file_options = [0x42, 5, 0x92, 3, 2, 8, 2];
    let plain = [of(1, b"a"), vec![0x18, 1, 0x20, 1, 0x28, 5]].concat();
    let explicit = [of(1, b"b"), vec![0x18, 2, 0x20, 1, 0x28, 5, 0x42, 5, 0xaa, 1, 2, 8, 1]].concat();
    let message = [of(1, b"M"), of(2, &plain), of(2, &explicit)].concat();
    let file = [of(4, &message), of(12, b"editions"), file_options.to_vec()].concat();
    let set = Arc::new(Descriptors::parse(&of(1, &file)).unwrap());
    assert_eq!(read_of(set, "M", &["a", "b"], b"").unwrap(), "0 -");
}

#[test]
fn of_several_occurrences_the_last_counts_and_messages_are_merged() {
    reads("proto3", &["int32"], &[0x28, 1, 0x28, 2], "2");
    // What has no presence and is zero is absent, though it was written.
    reads("proto3", &["inner"], &[0x8a, 1, 6, 8, 1, 0x1a, 0, 8, 0], "{}");
    reads("proto2", &["inner"], &[0x8a, 1, 4, 8, 0, 0x1a, 0], "{\"x\":0,\"s\":\"\"}");
    // inner {x: 1, r: [1]} and inner {r: [-1], s: "s"}
    let twice = [0x8a, 1, 4, 8, 1, 0x10, 2, 0x8a, 1, 5, 0x10, 1, 0x1a, 1, b's'];
    let paths = ["/inner/x", "/inner/r/0", "/inner/r/1", "/inner/s", "inner", "/inner/r"];
    reads("proto3", &paths, &twice, "1 1 -1 's' {\"x\":1,\"r\":[1,-1],\"s\":\"s\"} [1,-1]");
}

#[test]
fn lists_are_packed_or_not() {
    // int32s is field 25: 1, then packed 2 and 3, then 4; packed none.
    let mixed = [0xc8, 1, 1, 0xca, 1, 2, 2, 3, 0xc8, 1, 4];
    reads("proto3", &["int32s", "/int32s/2", "/int32s/4"], &mixed, "[1,2,3,4] 3 -");
    reads("proto3", &["int32s", "/int32s/0"], &[0xca, 1, 0], "- -");
    // The same within a message, alone and between others.
    reads("proto3", &["all"], &[0x92, 1, 3, 0xca, 1, 0], "{}");
    reads(
        "proto3",
        &["all"],
        &[0x92, 1, 8, 0xca, 1, 0, 0x28, 5, 0xea, 1, 0],
        r#"{"int32":5,"strings":[""]}"#,
    );
    // Strings are not, and of another wire type a field is unknown.
    reads(
        "proto3",
        &["strings", "/strings/1"],
        &[0xea, 1, 1, b'a', 0xe8, 1, 9, 0xea, 1, 0],
        "[\"a\",\"\"] -",
    );
    reads("proto3", &["int32"], &[0x2a, 1, 7, 0x2d, 1, 2, 3, 4], "0");
    refused(&[0x8a, 1, 3, 0x12, 1, 0x80], "ends inside a number");
}

#[test]
fn maps_have_the_last_of_each_key() {
    let entry = |key: &[u8], value: &[u8]| {
        let length = (key.len() + value.len()) as u8;
        [&[0xb2, 2, length][..], key, value].concat()
    };
    let k = &[0x0a, 1, b'k'][..];
    let record = [
        entry(k, &[0x12, 4, 8, 1, 0x10, 2]),
        entry(&[0x0a, 1, b'o'], &[]),
        entry(k, &[0x12, 2, 0x10, 4]),
        entry(&[], &[0x12, 2, 8, 9]),
    ]
    .concat();
    let paths = ["/map/k/x", "/map/k/r/0", "/map/k/r/1", "/map/o", "/map/o/x", "/map//x", "map"];
    reads("proto3", &paths, &record, "0 2 - {} 0 9 {\"k\":{\"r\":[2]},\"o\":{},\"\":{\"x\":9}}");
    // Key -1 and key 0, which is not written; values absent.
    let minus_one = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    let record = [&[0xba, 2, 14][..], &minus_one, &[0x12, 1, b'm'], &[0xba, 2, 0]].concat();
    reads("proto3", &["/byid/-1", "/byid/0", "byid"], &record, "'m' - {\"-1\":\"m\",\"0\":\"\"}");
}

#[test]
fn of_a_oneof_the_last_member_is_there() {
    let text = [0xc2, 2, 1, b't'];
    let inner = |x: u8| [0xca, 2, 4, 8, x, 0x10, 2];
    let number = [0xd0, 2, 0];
    let paths = ["one_text", "/one_inner/x", "/one_inner/r/0", "/one_inner/r/1", "one_number", "one_inner"];
    let all = |parts: &[&[u8]]| parts.concat();
    reads("proto3", &paths, &all(&[&text, &inner(1)]), "- 1 1 - - {\"x\":1,\"r\":[1]}");
    reads("proto3", &paths, &all(&[&inner(1), &number]), "- - - - 0 -");
    reads("proto3", &paths, &all(&[&inner(1), &text, &inner(3)]), "- 3 1 - - {\"x\":3,\"r\":[1]}");
    reads("proto3", &paths, &all(&[&inner(1), &inner(3)]), "- 3 1 1 - {\"x\":3,\"r\":[1,1]}");
    // A member that nobody wants takes the others' place too; and so it is in JSON.
    reads("proto3", &["/one_inner/x"], &all(&[&inner(1), &text]), "-");
    let whole = all(&[&[0x92, 1, 18], &inner(1), &text, &inner(3)]);
    reads("proto3", &["all"], &whole, "{\"one_inner\":{\"x\":3,\"r\":[1]}}");
}

#[test]
fn groups_are_passed_over_and_read() {
    let group = FieldDescriptorProto { ..typed("g", 1, T::Group, ".G") };
    let file = FileDescriptorProto {
        message_type: vec![
            message("M", vec![group, field("z", 2, T::Int32)]),
            message("G", vec![field("x", 1, T::Int32)]),
        ],
        ..Default::default()
    };
    let set = of_files(&FileDescriptorSet { file: vec![file] });
    let record = [0x0b, 0x08, 5, 0x1b, 0x23, 0x24, 0x1c, 0x0c, 0x10, 7];
    assert_eq!(read_of(set.clone(), "M", &["/g/x", "g", "z"], &record).unwrap(), "5 {\"x\":5} 7");
    assert_eq!(read_of(set, "M", &["z"], &record).unwrap(), "7");
    refused(&[0x0b], "at byte 0: group 1 does not end");
    refused(&[0x0b, 0x14], "the end of group 2 comes inside group 1");
    refused(&[0x0c], "comes without its beginning");
    refused(&[0x0b].repeat(200), "nested more than 100 deep");
}

#[test]
fn well_known_types_say_what_they_stand_for() {
    let well_known = |name: &str, fields| FileDescriptorProto {
        package: Some("google.protobuf".to_owned()),
        message_type: vec![message(name, fields)],
        ..Default::default()
    };
    let two = || vec![field("seconds", 1, T::Int64), field("nanos", 2, T::Int32)];
    let fields = vec![
        typed("at", 1, T::Message, ".google.protobuf.Timestamp"),
        typed("for", 2, T::Message, ".google.protobuf.Duration"),
        typed("name", 3, T::Message, ".google.protobuf.StringValue"),
        typed("count", 4, T::Message, ".google.protobuf.Int64Value"),
        typed("m", 5, T::Message, ".M"),
    ];
    let file = FileDescriptorProto { message_type: vec![message("M", fields)], ..Default::default() };
    let set = of_files(&FileDescriptorSet {
        file: vec![
            well_known("Timestamp", two()),
            well_known("Duration", two()),
            well_known("StringValue", vec![field("value", 1, T::String)]),
            well_known("Int64Value", vec![field("value", 1, T::Int64)]),
            file,
        ],
    });
    let inner = [0x0a, 6, 8, 1, 0x10, 0x80, 0x89, 0x7a, 0x12, 2, 8, 2, 0x1a, 3, 0x0a, 1, b'n', 0x22, 0];
    let paths = ["at", "/at/seconds", "for", "name", "count"];
    assert_eq!(read_of(set.clone(), "M", &paths, &inner).unwrap(), "1002 1 2000 'n' 0");
    assert_eq!(read_of(set.clone(), "M", &paths, b"").unwrap(), "- - - - -");
    let outer = [&[0x2a, inner.len() as u8][..], &inner].concat();
    let json = "{\"at\":1002,\"for\":2000,\"name\":\"n\",\"count\":0}";
    assert_eq!(read_of(set, "M", &["m"], &outer).unwrap(), json);
}

#[test]
fn malformed_records() {
    for (record, part) in [
        (&[0x4a][..], "at byte 1: the message ends inside a number"),
        (&[0x4a, 5, b'a'], "at byte 1: field 9 has 5 bytes, and 1 follow"),
        (&[0x4a, 1, 0xff], "at byte 2: a string is no UTF-8"),
        (&[0x07], "7 is not the tag"),
        (&[0x0e], "unknown wire type 6"),
        (&[0x0f], "unknown wire type 7"),
        (&[0x09, 1, 2], "a number has 8 bytes, and 2 follow"),
        (&[0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], "more than 64 bits"),
        (&[0x80, 0x80, 0x80, 0x80, 0x80, 1], "is not the tag"),
        (&[0x8a, 1, 1, 0x0a], "at byte 4"),
        (&[0x4a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], "and 0 follow"),
    ] {
        refused(record, part);
    }
    // What is not wanted is not looked into.
    assert_eq!(read_of(set("proto3"), "t.All", &["int32"], &[0x4a, 1, 0xff]).unwrap(), "0");
    let deep = (0..150).fold(Vec::new(), |inner: Vec<u8>, _| {
        let mut outer = vec![0x92, 1];
        let mut length = inner.len();
        while length >= 0x80 {
            outer.push(length as u8 | 0x80);
            length >>= 7;
        }
        outer.push(length as u8);
        [outer, inner].concat()
    });
    let e = read_of(set("proto3"), "t.All", &["all"], &deep).expect_err("too deep");
    assert!(e.message.contains("nested more than 100 deep"), "{}", e.message);
}

#[test]
fn frames_say_which_message_it_is() {
    let set = set("proto3");
    let wanted = names(&["int32"]);
    let mut out = Slots::default();
    let mut read = |name: &str, record: &[u8]| {
        let mut decoder = ProtobufDecoder::new(&wanted, set.clone(), name, true).unwrap();
        decoder.decode(record, &mut out).map(|()| shown(&out, 1, record))
    };
    // All is message 1 of its file, Inner the first in it.
    assert_eq!(read("t.All", &[0, 0, 0, 0, 7, 2, 2, 0x28, 5]).unwrap(), "5");
    assert_eq!(read("t.First", &[0, 0, 0, 0, 7, 0]).unwrap(), "-");
    assert_eq!(read("t.All.Inner", &[0, 0, 0, 0, 7, 4, 2, 0]).unwrap(), "-");
    let other = read("t.All", &[0, 0, 0, 0, 7, 0, 0x28, 5]).expect_err("another message");
    assert_eq!(other.reason, "unknown_schema");
    assert!(other.message.contains("is message [0] of its schema, and `t.All` is [1]"), "{}", other.message);
    for record in
        [&[][..], &[0, 0, 0, 0, 7], &[1, 0, 0, 0, 7, 0], &[0, 0, 0, 0, 7, 0xfe, 1], &[0, 0, 0, 0, 7, 1]]
    {
        assert_eq!(read("t.All", record).expect_err("no frame").reason, "malformed_protobuf", "{record:?}");
    }
}

#[test]
fn descriptor_sets_that_are_none() {
    assert!(Descriptors::parse(b"\xff").expect_err("garbage").contains("no descriptor set: at byte 0"));
    let lacking = FileDescriptorProto {
        message_type: vec![message("M", vec![typed("a", 1, T::Message, ".gone.N")])],
        ..Default::default()
    };
    let e = Descriptors::parse(&FileDescriptorSet { file: vec![lacking] }.encode_to_vec())
        .expect_err("a type lacks");
    assert!(e.contains("`a` of `M` is of type `.gone.N`") && e.contains("--include_imports"), "{e}");
    let set = set("proto3");
    assert_eq!(set.names().collect::<Vec<_>>(), ["t.First", "t.All", "t.All.Inner"]);
    let decoder = ProtobufDecoder::new(
        &names(&["int32", "x", "/inner/x", "/inner/y", "/map/any/x"]),
        set,
        "t.All",
        false,
    );
    assert_eq!(decoder.unwrap().absent(), [1, 3]);
}

/// Some message, and what it should read as: all fields that are there.
fn any_message(
    pool: &DescriptorPool,
    name: &str,
    depth: u32,
    rng: &mut fastrand::Rng,
) -> (DynamicMessage, Value) {
    let descriptor = pool.get_message_by_name(name).unwrap();
    let mut message = DynamicMessage::new(descriptor.clone());
    let mut values = serde_json::Map::new();
    for field in descriptor.fields() {
        if rng.u8(..3) > 0 {
            continue;
        }
        if field.is_map() {
            let (mut entries, mut shown) = (std::collections::HashMap::new(), serde_json::Map::new());
            for _ in 0..rng.usize(0..3) {
                let is_text = field.name() == "map";
                let key = if is_text {
                    MapKey::String(rng.choice(["a", "b/", ""]).unwrap().to_owned())
                } else {
                    MapKey::I32(rng.i32(-2..3))
                };
                let text = match &key {
                    MapKey::String(s) => s.clone(),
                    MapKey::I32(n) => n.to_string(),
                    other => panic!("{other:?}"),
                };
                let kind = field.kind().as_message().unwrap().map_entry_value_field().kind();
                let (one, value) = any_pb(pool, &kind, depth, rng);
                entries.insert(key, one);
                shown.insert(text, value);
            }
            if !entries.is_empty() {
                message.set_field(&field, Pb::Map(entries));
                values.insert(field.name().to_owned(), Value::Object(shown));
            }
        } else if field.is_list() {
            let (all, shown): (Vec<Pb>, Vec<Value>) =
                (0..rng.usize(0..4)).map(|_| any_pb(pool, &field.kind(), depth, rng)).unzip();
            if !all.is_empty() {
                message.set_field(&field, Pb::List(all));
                values.insert(field.name().to_owned(), json!(shown));
            }
        } else if field.name() != "all" || depth > 0 {
            let (one, value) = any_pb(pool, &field.kind(), depth.saturating_sub(1), rng);
            if let Some(oneof) = field.containing_oneof() {
                oneof.fields().for_each(|f| drop(values.remove(f.name())));
            }
            let is_there = field.supports_presence() || !one.is_default_for_field(&field);
            message.set_field(&field, one);
            if is_there {
                values.insert(field.name().to_owned(), value);
            }
        }
    }
    (message, Value::Object(values))
}

fn any_pb(
    pool: &DescriptorPool,
    kind: &prost_reflect::Kind,
    depth: u32,
    rng: &mut fastrand::Rng,
) -> (Pb, Value) {
    use prost_reflect::Kind as K;
    let float = |is_finite: bool, text: String| {
        if is_finite { serde_json::from_str(&text).unwrap() } else { json!(text.replace("inf", "Infinity")) }
    };
    match kind {
        K::Double => {
            let f = if rng.bool() { 0.0 } else { f64::from_bits(rng.u64(..)) };
            (Pb::F64(f), float(f.is_finite(), format!("{f:?}")))
        }
        K::Float => {
            let f = if rng.bool() { 0.5 } else { f32::from_bits(rng.u32(..)) };
            (Pb::F32(f), float(f.is_finite(), format!("{f:?}")))
        }
        K::Int32 | K::Sint32 | K::Sfixed32 => {
            let n = rng.i32(..) >> rng.u32(0..32);
            (Pb::I32(n), json!(n))
        }
        K::Int64 | K::Sint64 | K::Sfixed64 => {
            let n = rng.i64(..) >> rng.u32(0..64);
            (Pb::I64(n), json!(n))
        }
        K::Uint32 | K::Fixed32 => {
            let n = rng.u32(..) >> rng.u32(0..32);
            (Pb::U32(n), json!(n))
        }
        K::Uint64 | K::Fixed64 => {
            let n = rng.u64(..) >> rng.u32(0..64);
            (Pb::U64(n), json!(n))
        }
        K::Bool => {
            let b = rng.bool();
            (Pb::Bool(b), json!(b))
        }
        K::String => {
            let text: String = (0..rng.usize(0..4)).map(|_| rng.char('\0'..'\u{1ff}')).collect();
            (Pb::String(text.clone()), json!(text))
        }
        K::Bytes => {
            let bytes: Vec<u8> = (0..rng.usize(0..4)).map(|_| rng.u8(..)).collect();
            let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &bytes);
            (Pb::Bytes(bytes.into()), json!(text))
        }
        K::Enum(_) => match rng.u8(..4) {
            0 => (Pb::EnumNumber(0), json!("RED")),
            1 => (Pb::EnumNumber(5), json!("BLUE")),
            2 => (Pb::EnumNumber(-1), json!("NONE")),
            _ => (Pb::EnumNumber(77), json!(77)),
        },
        K::Message(m) => {
            let (message, value) = any_message(pool, m.full_name(), depth, rng);
            (Pb::Message(message), value)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Bug family: a value of the wrong place, a kind confused, a message not merged. The model is what was written by
    /// `prost-reflect`.
    #[test]
    fn reads_what_prost_writes(is_three in any::<bool>(), seed in any::<u64>()) {
        let files = files(if is_three { "proto3" } else { "proto2" });
        let pool = DescriptorPool::from_file_descriptor_set(files.clone()).unwrap();
        let mut rng = fastrand::Rng::with_seed(seed);
        let (message, expected) = any_message(&pool, "t.All", 3, &mut rng);
        let record = message.encode_to_vec();
        let all = pointers(&expected);
        let set = of_files(&files);
        let decoder = |paths: &[String]| ProtobufDecoder::new(paths, set.clone(), "t.All", false).unwrap();
        check_all(&mut decoder(&all), &all, &record, &expected);
        if !all.is_empty() {
            let one = [all[rng.usize(..all.len())].clone()];
            check_all(&mut decoder(&one), &one, &record, &expected);
        }
    }

    /// Bug family: a record that is read otherwise than its own merging says: two messages one after the other are one.
    #[test]
    fn two_messages_one_after_the_other_are_one(seed in any::<u64>(), path in prop::sample::select(vec![
        "/inner/x", "/inner/r/1", "inner", "inners", "/inners/1/x", "/one_inner/r/1", "one_number", "/all/inner/s", "all", "int32s",
    ])) {
        let files = files("proto3");
        let pool = DescriptorPool::from_file_descriptor_set(files.clone()).unwrap();
        let mut rng = fastrand::Rng::with_seed(seed);
        let parts = [(); 3].map(|()| any_message(&pool, "t.All", 2, &mut rng).0.encode_to_vec());
        let record = parts.concat();
        let merged = DynamicMessage::decode(pool.get_message_by_name("t.All").unwrap(), &record[..]).unwrap();
        let again = merged.encode_to_vec();
        // Entries of maps have no order.
        let read = |record: &[u8]| {
            let text = read_of(of_files(&files), "t.All", &[path], record).unwrap();
            serde_json::from_str::<Value>(&text).unwrap_or(Value::String(text))
        };
        prop_assert_eq!(read(&record), read(&again));
    }

    #[test]
    fn never_panics(record in prop::collection::vec(any::<u8>(), 0..60), descriptors in prop::collection::vec(any::<u8>(), 0..60)) {
        let paths = ["/map/k/x", "inner", "/all/inner/r/0", "map", "enums"];
        let result = read_of(set("proto3"), "t.All", &paths, &record);
        prop_assert!(result.is_ok() || result.is_err_and(|e| e.reason == REASON));
        let parsed = Descriptors::parse(&descriptors);
        prop_assert!(parsed.is_ok() || parsed.is_err_and(|e| !e.is_empty()));
    }
}
