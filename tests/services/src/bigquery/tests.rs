//! Each documented rule, by a request that keeps all others.

use super::api::append_rows_request::{ArrowData, ProtoData, Rows};
use super::api::append_rows_response::Response;
use super::api::{AppendRowsRequest, AppendRowsResponse, ProtoRows, ProtoSchema};
use super::append::{Connection, REQUEST_BYTES_MAX, sections};
use super::rest::{Asked, answer};
use super::table::{Row, Tables};
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto};
use serde_json::{Value, json};
use tonic::{Code, Status};

const DATASET: &str = "projects/p/datasets/d";
const TABLE: &str = "projects/p/datasets/d/tables/t";
const STREAM: &str = "projects/p/datasets/d/tables/t/streams/_default";

fn resource() -> Value {
    json!({
        "tableReference": {"projectId": "p", "datasetId": "d", "tableId": "t"},
        "schema": {"fields": [
            {"name": "id", "type": "STRING", "mode": "REQUIRED"},
            {"name": "n", "type": "INT64"},
            {"name": "at", "type": "TIMESTAMP"},
            {"name": "more", "type": "JSON"},
        ]},
        "tableConstraints": {"primaryKey": {"columns": ["id"]}},
        "clustering": {"fields": ["id"]},
        "maxStaleness": "0-0 0 0:10:0",
    })
}

fn rest(tables: &mut Tables, method: &str, path: &str, body: Value) -> (u16, Value) {
    answer(tables, Asked { method, path: &format!("/bigquery/v2/{path}"), body, if_match: None })
}

fn tables() -> Tables {
    let mut tables = Tables::default();
    tables.datasets.insert(DATASET.to_owned(), "EU".to_owned());
    let (status, made) = rest(&mut tables, "POST", &format!("{DATASET}/tables"), resource());
    assert_eq!(status, 200, "{made}");
    tables
}

/// Rows with the columns `id`, `n`, `_CHANGE_TYPE`, `_CHANGE_SEQUENCE_NUMBER`, or others.
#[derive(Clone)]
struct Ask {
    stream: &'static str,
    columns: Vec<(&'static str, Type)>,
    rows: Vec<Vec<u8>>,
    is_first: bool,
}

const COLUMNS: [(&str, Type); 4] = [
    ("id", Type::String),
    ("n", Type::Int64),
    ("_CHANGE_TYPE", Type::String),
    ("_CHANGE_SEQUENCE_NUMBER", Type::String),
];

impl Ask {
    fn new(rows: &[(&str, i64, &str, &str)]) -> Ask {
        let rows = rows.iter().map(|(id, n, kind, sequence)| row(&[id, n, kind, sequence])).collect();
        Ask { stream: STREAM, columns: COLUMNS.to_vec(), rows, is_first: true }
    }
    fn request(&self) -> AppendRowsRequest {
        let field = |(i, (name, kind)): (usize, &(&str, Type))| FieldDescriptorProto {
            name: Some((*name).to_owned()),
            number: Some(i as i32 + 1),
            label: Some(Label::Optional as i32),
            r#type: Some(*kind as i32),
            type_name: (*kind == Type::Message).then(|| ".another.Message".to_owned()),
            ..FieldDescriptorProto::default()
        };
        let descriptor = DescriptorProto {
            name: Some("Row".to_owned()),
            field: self.columns.iter().enumerate().map(field).collect(),
            ..DescriptorProto::default()
        };
        let schema = ProtoSchema { proto_descriptor: Some(descriptor) };
        let rows = ProtoRows { serialized_rows: self.rows.clone() };
        AppendRowsRequest {
            write_stream: self.stream.to_owned(),
            rows: Some(Rows::ProtoRows(ProtoData {
                writer_schema: self.is_first.then_some(schema),
                rows: Some(rows),
            })),
            ..AppendRowsRequest::default()
        }
    }
    fn to(&self, tables: &mut Tables) -> Result<AppendRowsResponse, Status> {
        Connection::default().take(tables, &self.request().encode_to_vec())
    }
}

/// A value of a field: text or a whole number.
trait Field {
    fn put(&self, number: u32, out: &mut Vec<u8>);
}

impl Field for &str {
    fn put(&self, number: u32, out: &mut Vec<u8>) {
        if !self.is_empty() {
            prost::encoding::string::encode(number, &(*self).to_owned(), out);
        }
    }
}

impl Field for i64 {
    fn put(&self, number: u32, out: &mut Vec<u8>) {
        prost::encoding::int64::encode(number, self, out);
    }
}

fn row(fields: &[&dyn Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        field.put(i as u32 + 1, &mut out);
    }
    out
}

#[track_caller]
fn taken(answer: Result<AppendRowsResponse, Status>) -> AppendRowsResponse {
    let answer = answer.unwrap();
    let Some(Response::AppendResult(result)) = &answer.response else { panic!("refused: {answer:?}") };
    assert_eq!(
        (result.offset, answer.write_stream.as_str()),
        (None, STREAM),
        "offsets are not of this stream"
    );
    answer
}

#[track_caller]
fn refused(answer: Result<AppendRowsResponse, Status>, code: Code, words: &str) {
    let status = answer.expect_err("it was taken");
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(words), "{status}");
}

/// The bad rows by number, and what is said of them; nothing was taken.
#[track_caller]
fn bad(tables: &mut Tables, ask: &Ask) -> Vec<(i64, String)> {
    let before = tables.rows(TABLE);
    let answer = ask.to(tables).unwrap();
    let Some(Response::Error(status)) = &answer.response else { panic!("taken: {answer:?}") };
    assert_eq!(status.code, Code::InvalidArgument as i32);
    assert_eq!(tables.rows(TABLE), before, "a request with bad rows is no half request");
    answer.row_errors.into_iter().map(|e| (e.index, e.message)).collect()
}

fn seen(tables: &Tables) -> Vec<(String, i64)> {
    let one = |r: &Row| (r["id"].as_str().unwrap().to_owned(), r["n"].as_i64().unwrap());
    tables.rows(TABLE).iter().map(one).collect()
}

fn owned(rows: &[(&str, i64)]) -> Vec<(String, i64)> {
    rows.iter().map(|(id, n)| ((*id).to_owned(), *n)).collect()
}

#[test]
fn the_greatest_sequence_number_holds_whatever_comes_first() {
    let mut tables = tables();
    for (n, sequence) in [(1, "1/9"), (2, "2/1"), (3, "1/A"), (4, "1/10"), (5, "2/0"), (6, "2/1")] {
        taken(Ask::new(&[("a", n, "UPSERT", sequence)]).to(&mut tables));
    }
    assert_eq!(seen(&tables), owned(&[("a", 2)]));
    // As numbers, not as text, and whatever the case.
    taken(Ask::new(&[("a", 7, "UPSERT", "00f/0"), ("b", 1, "UPSERT", "0F/0")]).to(&mut tables));
    taken(Ask::new(&[("a", 8, "UPSERT", "e/ffffffffffffffff")]).to(&mut tables));
    assert_eq!(seen(&tables), owned(&[("a", 7), ("b", 1)]));
}

#[test]
fn a_deleted_key_is_remembered_for_a_time() {
    let mut tables = tables();
    taken(Ask::new(&[("a", 1, "UPSERT", "1"), ("b", 1, "UPSERT", "1")]).to(&mut tables));
    // One that never was, too.
    taken(Ask::new(&[("a", 0, "DELETE", "3"), ("c", 0, "DELETE", "3")]).to(&mut tables));
    taken(Ask::new(&[("a", 2, "UPSERT", "2"), ("c", 2, "UPSERT", "2")]).to(&mut tables));
    assert_eq!(seen(&tables), owned(&[("b", 1)]));
    tables.forget_deleted();
    taken(Ask::new(&[("a", 2, "UPSERT", "2")]).to(&mut tables));
    assert_eq!(seen(&tables), owned(&[("a", 2), ("b", 1)]));
}

#[test]
fn only_the_default_stream_of_a_table_is_there() {
    let mut tables = tables();
    let ask = Ask::new(&[("a", 1, "UPSERT", "1")]);
    for (stream, code, words) in [
        ("", Code::InvalidArgument, "write_stream"),
        ("projects/p/datasets/d/tables/t", Code::InvalidArgument, "Invalid stream name"),
        ("projects/p/datasets/d/tables/t/streams/s1", Code::NotFound, "not found"),
        ("projects/p/datasets/d/tables/none/streams/_default", Code::NotFound, "not found"),
    ] {
        refused(Ask { stream, ..ask.clone() }.to(&mut tables), code, words);
    }
    let mut request = ask.request();
    request.offset = Some(0);
    refused(
        Connection::default().take(&mut tables, &request.encode_to_vec()),
        Code::InvalidArgument,
        "offset",
    );
}

#[test]
fn the_first_request_brings_stream_and_schema_and_later_ones_need_not() {
    let mut tables = tables();
    let ask = Ask::new(&[("a", 1, "UPSERT", "1")]);
    let later = Ask { is_first: false, stream: "", ..ask.clone() };
    refused(Ask { is_first: false, ..ask.clone() }.to(&mut tables), Code::InvalidArgument, "writer_schema");
    let mut connection = Connection::default();
    taken(connection.take(&mut tables, &ask.request().encode_to_vec()));
    taken(connection.take(&mut tables, &later.request().encode_to_vec()));
    refused(Ask { rows: Vec::new(), ..ask.clone() }.to(&mut tables), Code::InvalidArgument, "no rows");
    let mut request = ask.request();
    request.rows = None;
    refused(
        Connection::default().take(&mut tables, &request.encode_to_vec()),
        Code::InvalidArgument,
        "no rows",
    );
    request.rows = Some(Rows::ArrowRows(ArrowData::default()));
    refused(
        Connection::default().take(&mut tables, &request.encode_to_vec()),
        Code::InvalidArgument,
        "protobuf",
    );
}

#[test]
fn a_request_stays_under_ten_megabytes() {
    let mut tables = tables();
    let mut request = Ask::new(&[("a", 1, "UPSERT", "1")]).request();
    let room = REQUEST_BYTES_MAX - request.encoded_len();
    // Its own frame takes some bytes.
    request.trace_id = "x".repeat(room - 6);
    let bytes = request.encode_to_vec();
    assert!(bytes.len() <= REQUEST_BYTES_MAX && bytes.len() > REQUEST_BYTES_MAX - 8);
    taken(Connection::default().take(&mut tables, &bytes));
    request.trace_id.push_str("xxxxxxxx");
    let refusal = Connection::default().take(&mut tables, &request.encode_to_vec());
    refused(refusal, Code::InvalidArgument, "too large");
}

#[test]
fn a_descriptor_needs_no_other_and_fits_the_table() {
    let mut tables = tables();
    let ask = Ask::new(&[("a", 1, "UPSERT", "1")]);
    let with = |name: &'static str, kind: Type| {
        let mut ask = ask.clone();
        ask.columns.push((name, kind));
        ask
    };
    refused(with("more", Type::Message).to(&mut tables), Code::InvalidArgument, "self-contained");
    let extra = with("colour", Type::String).to(&mut tables);
    let details = extra.as_ref().unwrap_err().details().to_vec();
    refused(extra, Code::InvalidArgument, "extra fields: 'colour'");
    let status = super::rpc::Status::decode(details.as_slice()).unwrap();
    let detail = super::api::StorageError::decode(status.details[0].value.as_slice()).unwrap();
    assert_eq!(detail.code, super::api::storage_error::StorageErrorCode::SchemaMismatchExtraFields as i32);
    refused(with("at", Type::String).to(&mut tables), Code::InvalidArgument, "mismatched");
    refused(with("more", Type::Bytes).to(&mut tables), Code::InvalidArgument, "mismatched");
    let mut unsigned = ask.clone();
    unsigned.columns[1].1 = Type::Uint64;
    refused(unsigned.to(&mut tables), Code::InvalidArgument, "mismatched");
    let mut headless = ask.clone();
    headless.columns[0] = ("at", Type::Int64);
    headless.rows = vec![row(&[&1_i64, &1_i64, &"UPSERT", &"1"])];
    refused(headless.to(&mut tables), Code::InvalidArgument, "required field id");
    taken(with("at", Type::Int64).to(&mut tables));
}

#[test]
fn changes_need_a_primary_key_and_a_connection_of_their_own() {
    let mut tables = tables();
    let mut plain = Ask::new(&[("a", 1, "", "")]);
    plain.columns.truncate(2);
    let change = Ask::new(&[("a", 1, "UPSERT", "1")]);
    let mut connection = Connection::default();
    taken(connection.take(&mut tables, &change.request().encode_to_vec()));
    let mixed = connection.take(&mut tables, &plain.request().encode_to_vec());
    refused(mixed, Code::InvalidArgument, "share a connection");
    let mut lonely = change.clone();
    lonely.columns = vec![COLUMNS[0], COLUMNS[1], COLUMNS[3]];
    lonely.rows = vec![row(&[&"a", &1_i64, &"1"])];
    refused(lonely.to(&mut tables), Code::InvalidArgument, "needs _CHANGE_TYPE");
    let (status, _) = rest(&mut tables, "PATCH", TABLE, json!({"tableConstraints": null}));
    assert_eq!(status, 200);
    refused(change.to(&mut tables), Code::InvalidArgument, "no primary key");
    taken(plain.to(&mut tables));
}

#[test]
fn rows_with_and_without_numbers_do_not_mix() {
    let mut tables = tables();
    for (one, other) in [("1", ""), ("1/2", "1"), ("", "1")] {
        let ask = Ask::new(&[("a", 1, "UPSERT", one), ("b", 1, "UPSERT", other)]);
        refused(ask.to(&mut tables), Code::InvalidArgument, "do not mix");
    }
    assert_eq!(seen(&tables), []);
    taken(Ask::new(&[("a", 1, "UPSERT", ""), ("b", 1, "UPSERT", "")]).to(&mut tables));
}

#[test]
fn a_sequence_number_is_up_to_four_sections_of_up_to_sixteen_hex_digits() {
    for (text, numbers) in
        [("0", vec![0]), ("FFFFFFFFFFFFFFFF", vec![u64::MAX]), ("1/b/c/D", vec![1, 11, 12, 13])]
    {
        assert_eq!(sections(text).unwrap(), numbers);
    }
    let mut tables = tables();
    for wrong in [
        "/",
        "1/",
        "1//2",
        "1/2/3/4/5",
        "10000000000000000",
        "00000000000000001",
        "g",
        "-1",
        "+1",
        " 1",
        "1.2",
        "0x1",
    ] {
        let ask = Ask::new(&[("a", 1, "UPSERT", "1"), ("b", 1, "UPSERT", wrong)]);
        let errors = bad(&mut tables, &ask);
        assert!(errors.len() == 1 && errors[0].0 == 1, "{wrong}: {errors:?}");
        assert!(errors[0].1.contains("hexadecimal"), "{errors:?}");
    }
}

#[test]
fn bad_rows_are_named_and_none_of_their_request_is_taken() {
    let mut tables = tables();
    let ask = Ask::new(&[
        ("a", 1, "UPSERT", "1"),
        ("b", 1, "INSERT", "1"),
        ("", 1, "UPSERT", "1"),
        ("c", 1, "upsert", "1"),
        ("d", 1, "", "1"),
        ("", 1, "DELETE", "1"),
    ]);
    let errors = bad(&mut tables, &ask);
    let numbers: Vec<i64> = errors.iter().map(|e| e.0).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
    for (n, words) in [(0, "UPSERT or DELETE"), (1, "required field: id"), (3, "nothing"), (4, "no key")] {
        assert!(errors[n].1.contains(words), "{:?}", errors[n]);
    }
    let mut cut = Ask::new(&[("a", 1, "UPSERT", "1")]);
    cut.rows.push(cut.rows[0][..4].to_vec());
    cut.rows.push([cut.rows[0].clone(), row(&[&"", &"", &"", &"", &"", &"unknown"])].concat());
    let errors = bad(&mut tables, &cut);
    assert!(errors[0].0 == 1 && errors[0].1.contains("corrupted"), "{errors:?}");
    assert!(errors[1].0 == 2 && errors[1].1.contains("does not know"), "{errors:?}");
}

#[test]
fn values_that_a_column_cannot_hold_are_bad() {
    let mut tables = tables();
    let mut ask = Ask::new(&[]);
    ask.columns = vec![
        ("id", Type::String),
        ("at", Type::Int64),
        ("more", Type::String),
        ("_CHANGE_TYPE", Type::String),
    ];
    let last = 253_402_300_799_999_999_i64;
    let row = |at: i64, more: &str| row(&[&"a", &at, &more, &"UPSERT"]);
    ask.rows = vec![row(last, "{}"), row(last + 1, "{}"), row(i64::MIN, "{}"), row(0, "{"), row(0, "[1.50]")];
    let errors = bad(&mut tables, &ask);
    let numbers: Vec<i64> = errors.iter().map(|e| e.0).collect();
    assert_eq!(numbers, [1, 2, 3], "{errors:?}");
    ask.rows = vec![row(last, "[1.50]")];
    taken(ask.to(&mut tables));
    assert_eq!(
        tables.rows(TABLE),
        [json!({"id": "a", "at": last, "more": "[1.50]"}).as_object().unwrap().clone()]
    );
}

#[test]
fn a_schema_that_changes_is_told_once_on_each_connection() {
    let mut tables = tables();
    let ask = Ask::new(&[("a", 1, "UPSERT", "1")]);
    let later = Ask { is_first: false, ..ask.clone() }.request().encode_to_vec();
    let mut connection = Connection::default();
    assert_eq!(taken(connection.take(&mut tables, &ask.request().encode_to_vec())).updated_schema, None);
    let mut fields = resource()["schema"]["fields"].clone();
    fields.as_array_mut().unwrap().push(json!({"name": "late", "type": "BOOL"}));
    let (status, _) = rest(&mut tables, "PATCH", TABLE, json!({"schema": {"fields": fields}}));
    assert_eq!(status, 200);
    let told = taken(connection.take(&mut tables, &later)).updated_schema.expect("it is told");
    assert_eq!(told.fields.last().unwrap().name, "late");
    assert_eq!(taken(connection.take(&mut tables, &later)).updated_schema, None);
}

/// What is done to a resource that is right.
type Change<'a> = &'a dyn Fn(&mut Value);

#[test]
fn tables_are_made_as_documented_or_not_at_all() {
    let mut tables = tables();
    let path = format!("{DATASET}/tables");
    let mut made = |change: &dyn Fn(&mut Value)| {
        let mut body = resource();
        body["tableReference"]["tableId"] = "other".into();
        change(&mut body);
        rest(&mut tables, "POST", &path, body)
    };
    let refusals: [(Change<'_>, u16, &str); 13] = [
        (&|b| b["tableReference"]["tableId"] = "t".into(), 409, "Already Exists: Table p:d.t"),
        (&|b| b["tableReference"]["tableId"] = "a.b".into(), 400, "Invalid table ID"),
        (&|b| b["schema"]["fields"][1]["name"] = "1n".into(), 400, "Invalid field name"),
        (&|b| b["schema"]["fields"][1]["name"] = "_CHANGE_TYPE".into(), 400, "Invalid field name"),
        (&|b| b["schema"]["fields"][1]["name"] = "ID".into(), 400, "already exists"),
        (&|b| b["schema"]["fields"][1]["type"] = "TEXT".into(), 400, "type"),
        (&|b| b["schema"]["fields"][1]["mode"] = "MAYBE".into(), 400, "mode"),
        (&|b| b["tableConstraints"]["primaryKey"]["columns"] = json!(["none"]), 400, "not in the schema"),
        (&|b| b["clustering"]["fields"] = json!(["none"]), 400, "not in the schema"),
        (&|b| b["clustering"]["fields"] = json!(["id", "n", "at", "id", "n"]), 400, "too many"),
        (&|b| b["maxStaleness"] = "10 minutes".into(), 400, "no interval"),
        (&|b| b["labels"] = json!({"Upper": "x"}), 400, "Invalid label"),
        (&|b| b["labels"] = json!({"a": "x/y"}), 400, "Invalid label"),
    ];
    for (change, code, words) in refusals {
        let (status, body) = made(change);
        let message = body["error"]["message"].as_str().unwrap_or_default();
        assert!(status == code && message.contains(words), "{words}: {status} {body}");
    }
    let (status, made) = made(&|_| {});
    assert_eq!(
        (status, &made["location"], &made["schema"]["fields"][1]["type"]),
        (200, &json!("EU"), &json!("INTEGER"))
    );
    let (status, body) = rest(&mut tables, "GET", "projects/p/datasets/none/tables/t", Value::Null);
    assert!(status == 404 && body["error"]["message"] == "Not found: Dataset p:none", "{body}");
    assert_eq!(rest(&mut tables, "GET", &format!("{DATASET}/tables/none"), Value::Null).0, 404);
}

#[test]
fn a_schema_grows_by_nullable_columns_and_in_no_other_way() {
    let mut tables = tables();
    let patched = |tables: &mut Tables, change: &dyn Fn(&mut Vec<Value>)| {
        let mut fields = resource()["schema"]["fields"].as_array().unwrap().clone();
        change(&mut fields);
        rest(tables, "PATCH", TABLE, json!({"schema": {"fields": fields}})).0
    };
    assert_eq!(patched(&mut tables, &|f| drop(f.remove(1))), 400);
    assert_eq!(patched(&mut tables, &|f| f[1]["type"] = "STRING".into()), 400);
    assert_eq!(patched(&mut tables, &|f| f[1]["mode"] = "REQUIRED".into()), 400);
    let required = json!({"name": "new", "type": "STRING", "mode": "REQUIRED"});
    assert_eq!(patched(&mut tables, &|f| f.push(required.clone())), 400);
    assert_eq!(patched(&mut tables, &|f| f[0]["mode"] = "NULLABLE".into()), 200);
    assert_eq!(
        patched(&mut tables, &|f| f.push(json!({"name": "new", "type": "STRING"}))),
        400,
        "id is nullable now"
    );
    let nullable = |f: &mut Vec<Value>| {
        f[0]["mode"] = "NULLABLE".into();
        f.push(json!({"name": "new", "type": "STRING"}));
    };
    assert_eq!(patched(&mut tables, &nullable), 200);
}

#[test]
fn a_patch_of_what_has_changed_meanwhile_is_refused() {
    let mut tables = tables();
    let mut patch = |tag: &str, body: Value| {
        let path = format!("/bigquery/v2/{TABLE}");
        answer(&mut tables, Asked { method: "PATCH", path: &path, body, if_match: Some(tag.to_owned()) })
    };
    let (_, made) = patch("\"0\"", json!({}));
    assert_eq!(made["error"]["code"], 412);
    let (_, table) = rest(&mut tables, "GET", TABLE, Value::Null);
    let tag = table["etag"].as_str().unwrap().to_owned();
    let mut patch = |body: Value| {
        let path = format!("/bigquery/v2/{TABLE}");
        answer(&mut tables, Asked { method: "PATCH", path: &path, body, if_match: Some(tag.clone()) })
    };
    let (status, after) = patch(json!({"labels": {"a": "1", "b": "2"}}));
    assert_eq!((status, &after["labels"]), (200, &json!({"a": "1", "b": "2"})));
    assert_eq!(patch(json!({"labels": {"a": null}})).0, 412, "the tag has changed");
    let (_, after) = rest(&mut tables, "PATCH", TABLE, json!({"labels": {"a": null, "c": "3"}}));
    assert_eq!(after["labels"], json!({"b": "2", "c": "3"}));
}
