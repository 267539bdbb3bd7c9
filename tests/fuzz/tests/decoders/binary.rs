//! Avro values and Protobuf messages, edited. The naive decoders are those of `apache-avro` and `prost-reflect`.

use apache_avro::types::Value as Avro;
use prost_reflect::prost::Message as _;
use prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use prost_reflect::prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet, MessageOptions,
    OneofDescriptorProto,
};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, MapKey, ReflectMessage as _, Value as Pb,
};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::sync::Arc;
use tidemill_connect::format::avro::AvroDecoder;
use tidemill_connect::format::avro::schema::Schema;
use tidemill_connect::format::protobuf::ProtobufDecoder;
use tidemill_connect::format::protobuf::descriptor::Descriptors;
use tidemill_connect::format::{Decoder, Kind, Slots};
use tidemill_fuzz::Verdict;
use tidemill_fuzz::edit::{edited, words};

use super::{TARGETS, names};

/// Slots are what the naive decoder found: none is null, or text of no characters.
fn assert_same(out: &Slots, record: &[u8], paths: &[&str], naive: impl Fn(&str) -> Value) {
    for (i, path) in paths.iter().enumerate() {
        let text = std::str::from_utf8(out.get(i, record)).unwrap();
        let found = match out.kind(i) {
            Kind::Missing => Value::Null,
            Kind::Text => json!(text),
            _ => serde_json::from_str(text).unwrap(),
        };
        let naive = naive(path);
        assert_eq!(found, if naive == "" { Value::Null } else { naive }, "{path}");
    }
}

const AVRO: &str = r#"{"type":"record","name":"R","fields":[
    {"name":"user","type":"string"}, {"name":"ts","type":{"type":"long","logicalType":"timestamp-millis"}},
    {"name":"n","type":"int"}, {"name":"f","type":"double"}, {"name":"ok","type":"boolean"},
    {"name":"raw","type":"bytes"}, {"name":"kind","type":{"type":"enum","name":"E","symbols":["A","B"]}},
    {"name":"next","type":["null","R"]}, {"name":"list","type":{"type":"array","items":["null","int","string"]}},
    {"name":"map","type":{"type":"map","values":{"type":"record","name":"P","fields":[{"name":"x","type":"int"}]}}},
    {"name":"four","type":{"type":"fixed","name":"F","size":4}}]}"#;

/// What `apache-avro` read, as JSON.
fn avro_json(value: &Avro) -> Value {
    let characters = |bytes: &[u8]| bytes.iter().map(|b| char::from(*b)).collect::<String>();
    match value {
        Avro::Null => Value::Null,
        Avro::Boolean(b) => json!(b),
        Avro::Int(n) => json!(n),
        Avro::Long(n) | Avro::TimestampMillis(n) => json!(n),
        Avro::Double(f) if f.is_finite() => serde_json::from_str(&format!("{f:?}")).unwrap(),
        Avro::Double(f) => json!(format!("{f:?}").replace("inf", "Infinity")),
        Avro::Bytes(bytes) | Avro::Fixed(_, bytes) => json!(characters(bytes)),
        Avro::String(s) | Avro::Enum(_, s) => json!(s),
        Avro::Union(_, inner) => avro_json(inner),
        Avro::Array(items) => items.iter().map(avro_json).collect(),
        Avro::Map(items) => items.iter().map(|(k, v)| (k.clone(), avro_json(v))).collect(),
        Avro::Record(items) => items.iter().map(|(k, v)| (k.clone(), avro_json(v))).collect(),
        other => panic!("{other:?}"),
    }
}

fn avro_seeds() -> Vec<Vec<u8>> {
    let flat = |user: &[u8], list: &[u8], map: &[u8]| {
        let mut bytes = vec![user.len() as u8 * 2];
        bytes.extend(user);
        bytes.extend([0x80, 0xd0, 0xac, 0xf3, 0xf9, 0x63, 0x05]);
        bytes.extend(1.5_f64.to_le_bytes());
        bytes.extend([1, 4, 0xff, b'r', 2]);
        (bytes, [list, map, b"four"].concat())
    };
    let (head, tail) = flat("k\u{e4}the".as_bytes(), &[6, 0, 2, 7, 4, 4, b'h', b'i', 0], &[2, 2, b'k', 8, 0]);
    let (inner_head, inner_tail) = flat(b"", &[1, 4, 2, 9, 0], &[3, 10, 2, b'a', 2, 2, b'a', 2, 0]);
    let inner = [inner_head, vec![0], inner_tail].concat();
    vec![[head.clone(), vec![0], tail.clone()].concat(), [head, vec![2], inner, tail].concat()]
}

#[test]
fn avro_values() {
    const PATHS: [&str; 15] = [
        "user",
        "ts",
        "n",
        "f",
        "ok",
        "raw",
        "kind",
        "list",
        "/list/1",
        "/map/k/x",
        "map",
        "/next/user",
        "next",
        "/next/map/a/x",
        "four",
    ];
    // What is not there must not take memory there either.
    apache_avro::util::max_allocation_bytes(1 << 20);
    let naive = apache_avro::Schema::parse_str(AVRO).unwrap();
    let naive = apache_avro::reader::datum::GenericDatumReader::builder(&naive).build().unwrap();
    let decoder = AvroDecoder::bare(&names(&PATHS), &Schema::parse(AVRO).unwrap(), None).unwrap();
    let decoder = RefCell::new(decoder);
    let dictionary = words(&["\0", "\u{1}", "\u{2}", "\u{3}", "\u{4}", "k", "\u{2}k", "\u{7f}"]);
    TARGETS.fuzz("avro values", 12_000, edited(avro_seeds(), dictionary), |bytes| {
        let record = bytes.0;
        let (mut out, mut rest) = (Slots::default(), &record[..]);
        let found = decoder.borrow_mut().decode(&record, &mut out);
        let expected = naive.read_value(&mut rest).ok().filter(|_| rest.is_empty());
        match (&found, expected) {
            (Ok(()), Some(value)) => {
                let value = avro_json(&value);
                let at = |path: &str| {
                    let pointer = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
                    value.pointer(&pointer).cloned().unwrap_or(Value::Null)
                };
                assert_same(&out, &record, &PATHS, at);
            }
            (Err(_), None) => {}
            (Ok(()), None) => panic!("taken: {}", record.escape_ascii()),
            (Err(e), Some(_)) => {
                // Which others let pass.
                let strict = ["the items of a block", "more than 64 bits"];
                assert!(
                    strict.iter().any(|s| e.message.contains(s)),
                    "{}: {}",
                    e.message,
                    record.escape_ascii()
                );
            }
        }
        Verdict::accepted(found.is_ok())
    });
}

fn protobuf_files() -> FileDescriptorSet {
    let field = |name: &str, number, kind: Type, label: Label, of: Option<&str>| FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        r#type: Some(kind.into()),
        label: Some(label.into()),
        type_name: of.map(str::to_owned),
        ..Default::default()
    };
    let one = |name: &str, number, kind| field(name, number, kind, Label::Optional, None);
    let in_oneof = |field| FieldDescriptorProto { oneof_index: Some(0), ..field };
    let entry = DescriptorProto {
        name: Some("TagsEntry".to_owned()),
        field: vec![one("key", 1, Type::String), one("value", 2, Type::Sint32)],
        options: Some(MessageOptions { map_entry: Some(true), ..Default::default() }),
        ..Default::default()
    };
    let message = DescriptorProto {
        name: Some("M".to_owned()),
        field: vec![
            one("id", 1, Type::Int64),
            one("user", 2, Type::String),
            one("amount", 3, Type::Double),
            field("list", 4, Type::Sint32, Label::Repeated, None),
            field("inner", 5, Type::Message, Label::Optional, Some(".M")),
            field("tags", 6, Type::Message, Label::Repeated, Some(".M.TagsEntry")),
            in_oneof(one("a", 7, Type::String)),
            in_oneof(field("b", 8, Type::Message, Label::Optional, Some(".M"))),
            one("ok", 9, Type::Bool),
            field("many", 10, Type::Message, Label::Repeated, Some(".M")),
        ],
        nested_type: vec![entry],
        oneof_decl: vec![OneofDescriptorProto { name: Some("either".to_owned()), ..Default::default() }],
        ..Default::default()
    };
    let file = FileDescriptorProto {
        name: Some("m.proto".to_owned()),
        message_type: vec![message],
        syntax: Some("proto3".to_owned()),
        ..Default::default()
    };
    FileDescriptorSet { file: vec![file] }
}

/// What `prost-reflect` read, as JSON: the fields that are there.
fn protobuf_json(value: &Pb) -> Value {
    match value {
        Pb::Bool(b) => json!(b),
        Pb::I32(n) => json!(n),
        Pb::I64(n) => json!(n),
        Pb::F64(f) if f.is_finite() => serde_json::from_str(&format!("{f:?}")).unwrap(),
        Pb::F64(f) => json!(format!("{f:?}").replace("inf", "Infinity")),
        Pb::String(s) => json!(s),
        Pb::List(all) => all.iter().map(protobuf_json).collect(),
        Pb::Map(all) => {
            let entry = |(k, v): (&MapKey, &Pb)| (k.as_str().unwrap().to_owned(), protobuf_json(v));
            Value::Object(all.iter().map(entry).collect())
        }
        Pb::Message(m) => Value::Object(
            m.fields()
                .map(|(f, v): (FieldDescriptor, &Pb)| (f.name().to_owned(), protobuf_json(v)))
                .collect(),
        ),
        other => panic!("{other:?}"),
    }
}

/// What stands at a path; a scalar that is absent in a message that is there has its default.
fn protobuf_at(message: &DynamicMessage, path: &str) -> Value {
    let mut at = Pb::Message(message.clone());
    for step in path.trim_start_matches('/').split('/') {
        let next = match &at {
            Pb::Message(m) => {
                let field = m.descriptor().get_field_by_name(step).unwrap();
                let is_scalar = !field.supports_presence() && !field.is_list() && !field.is_map();
                (m.has_field(&field) || is_scalar).then(|| m.get_field(&field).into_owned())
            }
            Pb::List(all) => all.get(step.parse::<usize>().unwrap()).cloned(),
            Pb::Map(all) => all.get(&MapKey::String(step.to_owned())).cloned(),
            _ => None,
        };
        match next {
            Some(next) => at = next,
            None => return Value::Null,
        }
    }
    protobuf_json(&at)
}

#[test]
fn protobuf_messages() {
    const PATHS: [&str; 15] = [
        "id",
        "user",
        "amount",
        "ok",
        "list",
        "/list/1",
        "/inner/id",
        "/inner/inner/user",
        "inner",
        "/tags/k",
        "tags",
        "a",
        "/b/id",
        "b",
        "/many/1/list/0",
    ];
    let files = protobuf_files();
    let pool = DescriptorPool::from_file_descriptor_set(files.clone()).unwrap();
    let descriptor = pool.get_message_by_name("M").unwrap();
    let set = Arc::new(Descriptors::parse(&files.encode_to_vec()).unwrap());
    let decoder = RefCell::new(ProtobufDecoder::new(&names(&PATHS), set, "M", false).unwrap());
    let inner = [8, 7, 0x22, 2, 2, 4, 0x12, 1, b'u'];
    let of = |tag: u8, bytes: &[u8]| [&[tag, bytes.len() as u8][..], bytes].concat();
    let flat =
        [&[8, 0xd2, 9, 0x12, 3, b'a', b'n', b'n', 0x19][..], &1.5_f64.to_le_bytes(), &[0x20, 3, 0x48, 1]]
            .concat();
    let tags =
        [of(0x32, &[0x0a, 1, b'k', 0x10, 5]), of(0x32, &[0x10, 2, 0x0a, 1, b'k']), of(0x32, &[])].concat();
    let seeds = vec![
        [flat.clone(), of(0x2a, &inner), tags.clone(), of(0x3a, b"text")].concat(),
        [of(0x42, &inner), flat, of(0x52, &inner), of(0x52, &of(0x2a, &inner)), of(0x42, &[8, 9])].concat(),
        [of(0x2a, &of(0x2a, &inner)), of(0x2a, &of(0x2a, &[0x12, 0])), tags, vec![0xa3, 6, 8, 1, 0xa4, 6]]
            .concat(),
    ];
    let dictionary =
        words(&["\u{8}", "\u{12}", "\"", "*", "2", ":", "B", "R", "H", "\u{1}k", "\u{10}", "\u{3}", "\u{4}"]);
    TARGETS.fuzz("protobuf messages", 12_000, edited(seeds, dictionary), |bytes| {
        let record = bytes.0;
        let mut out = Slots::default();
        let found = decoder.borrow_mut().decode(&record, &mut out);
        // It is stricter: it looks into all fields, and takes none of another wire type.
        // But where a map's entry is of another wire type it reads a length all the same, as nobody else does.
        let is_clear = !record.iter().any(|b| b >> 3 == 6 && b & 7 != 2);
        if let Ok(naive) = DynamicMessage::decode(descriptor.clone(), &record[..])
            && is_clear
        {
            if let Err(e) = &found {
                panic!("refused with `{}`: {}", e.message, record.escape_ascii());
            }
            assert_same(&out, &record, &PATHS, |path| protobuf_at(&naive, path));
        }
        Verdict::accepted(found.is_ok())
    });
}
