//! What a connection for rows takes and refuses: the documented rules of the Storage Write API's default stream and of change
//! capture, one after the other. Where the documents leave something open it is refused, so that no client relies on it.

use super::api::append_rows_request::Rows;
use super::api::append_rows_response::{AppendResult, Response};
use super::api::row_error::RowErrorCode;
use super::api::storage_error::StorageErrorCode;
use super::api::{
    AppendRowsRequest, AppendRowsResponse, RowError, StorageError, TableFieldSchema, TableSchema,
};
use super::api::{table_field_schema::Mode, table_field_schema::Type};
use super::rpc;
use super::table::{Change, Column, Order, Row, Table, Tables};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, Value as Proto};
use prost_types::{DescriptorProto, FileDescriptorProto};
use serde_json::Value;
use std::collections::BTreeSet;
use tonic::{Code, Status};

/// Bytes of one request.
pub const REQUEST_BYTES_MAX: usize = 10_000_000;
/// Sections of a sequence number, and digits of each.
const SECTIONS_MAX: usize = 4;
const DIGITS_MAX: usize = 16;
/// The pseudo columns of change capture.
const CHANGE_TYPE: &str = "_CHANGE_TYPE";
const SEQUENCE: &str = "_CHANGE_SEQUENCE_NUMBER";
/// Years 1 to 9999, in microseconds.
const CALENDAR_US: std::ops::RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_300_799_999_999;

/// One connection, as far as the rules go.
#[derive(Default)]
pub(super) struct Connection {
    /// `projects/../tables/T` of the last stream that was named.
    table: Option<String>,
    schema: Option<MessageDescriptor>,
    /// Whether the rows are changes; all on a connection are, or none.
    is_change: Option<bool>,
    schema_seen: u64,
}

fn invalid(message: impl Into<String>) -> Status {
    Status::invalid_argument(message)
}

impl Connection {
    /// Notes stream and schema of a request whose rows are refused for another reason.
    pub(super) fn note(&mut self, request: &AppendRowsRequest) -> Result<(), Status> {
        self.turn_to(&request.write_stream)?;
        if let Some(Rows::ProtoRows(data)) = &request.rows
            && let Some(descriptor) = data.writer_schema.as_ref().and_then(|s| s.proto_descriptor.clone())
        {
            self.schema = Some(self_contained(descriptor)?);
        }
        Ok(())
    }

    /// Takes a request as it came over the wire. A status ends the connection.
    pub(super) fn take(&mut self, tables: &mut Tables, bytes: &[u8]) -> Result<AppendRowsResponse, Status> {
        if bytes.len() > REQUEST_BYTES_MAX {
            return Err(invalid(format!(
                "AppendRows request too large: {} limit {REQUEST_BYTES_MAX}",
                bytes.len()
            )));
        }
        let request = AppendRowsRequest::decode(bytes).map_err(|e| invalid(format!("no request: {e}")))?;
        self.turn_to(&request.write_stream)?;
        let name =
            self.table.clone().ok_or_else(|| invalid("the first request has to name a `write_stream`"))?;
        let arrival = tables.next();
        let Some(table) = tables.tables.get_mut(&name) else { return Err(no_table(&name)) };
        if request.offset.is_some() {
            return Err(invalid("an offset is not allowed with the default stream"));
        }
        let data = match request.rows {
            Some(Rows::ProtoRows(data)) => data,
            Some(Rows::ArrowRows(_)) => return Err(invalid("change capture takes protobuf rows only")),
            None => return Err(invalid("the request has no rows")),
        };
        if let Some(schema) = data.writer_schema {
            let descriptor =
                schema.proto_descriptor.ok_or_else(|| invalid("the writer schema has no descriptor"))?;
            self.schema = Some(self_contained(descriptor)?);
            self.schema_seen = table.schema_version;
        }
        let schema =
            self.schema.clone().ok_or_else(|| invalid("the first request has to bring a `writer_schema`"))?;
        check_schema(table, &schema)?;
        self.check_kind(table, &schema)?;
        let rows = data.rows.map(|r| r.serialized_rows).unwrap_or_default();
        if rows.is_empty() {
            return Err(invalid("the request has no rows"));
        }
        table.arrived += rows.len() as u64;
        let decoded = rows.iter().map(|r| decode(table, &schema, r));
        let (good, bad) = part(decoded);
        let stream = format!("{name}/streams/_default");
        if !bad.is_empty() {
            return Ok(refused_rows(stream, bad));
        }
        check_sequences(&good)?;
        let twice = apply(table, good, arrival);
        let updated = (self.schema_seen < table.schema_version).then(|| shown(&table.columns));
        self.schema_seen = table.schema_version;
        tables.twice_in_a_request += twice;
        Ok(AppendRowsResponse {
            updated_schema: updated,
            row_errors: Vec::new(),
            write_stream: stream,
            response: Some(Response::AppendResult(AppendResult { offset: None })),
        })
    }

    fn turn_to(&mut self, stream: &str) -> Result<(), Status> {
        if stream.is_empty() {
            return Ok(());
        }
        let parts: Vec<&str> = stream.split('/').collect();
        let ["projects", p, "datasets", d, "tables", t, "streams", name] = parts[..] else {
            return Err(invalid(format!("Invalid stream name: {stream}")));
        };
        if name != "_default" {
            return Err(Status::not_found(format!("Requested entity was not found. Entity: {stream}")));
        }
        let table = format!("projects/{p}/datasets/{d}/tables/{t}");
        if self.table.as_ref() != Some(&table) {
            self.schema = None;
        }
        self.table = Some(table);
        Ok(())
    }

    /// Changes and plain rows do not share a connection, and changes need a key.
    fn check_kind(&mut self, table: &Table, schema: &MessageDescriptor) -> Result<(), Status> {
        let is_change = schema.get_field_by_name(CHANGE_TYPE).is_some();
        if !is_change && schema.get_field_by_name(SEQUENCE).is_some() {
            return Err(invalid(format!("{SEQUENCE} needs {CHANGE_TYPE} beside it")));
        }
        if is_change && table.key.is_empty() {
            return Err(invalid(
                "The given value is not a valid CHANGE_TYPE in insert mode: the table has no primary key",
            ));
        }
        if self.is_change.is_some_and(|was| was != is_change) {
            return Err(invalid("changes and plain rows do not share a connection"));
        }
        self.is_change = Some(is_change);
        Ok(())
    }
}

fn no_table(name: &str) -> Status {
    storage_error(Code::NotFound, StorageErrorCode::TableNotFound, name, "Requested entity was not found")
}

/// A status with the detail that clients look at.
fn storage_error(code: Code, kind: StorageErrorCode, entity: &str, message: &str) -> Status {
    let detail =
        StorageError { code: kind as i32, entity: entity.to_owned(), error_message: message.to_owned() };
    let any = prost_types::Any {
        type_url: "type.googleapis.com/google.cloud.bigquery.storage.v1.StorageError".to_owned(),
        value: detail.encode_to_vec(),
    };
    let message = format!("{message}. Entity: {entity}");
    let status = rpc::Status { code: code as i32, message: message.clone(), details: vec![any] };
    Status::with_details(code, message, status.encode_to_vec().into())
}

/// A descriptor that needs no other file.
fn self_contained(descriptor: DescriptorProto) -> Result<MessageDescriptor, Status> {
    let name = descriptor.name().to_owned();
    let file = FileDescriptorProto {
        name: Some("rows.proto".to_owned()),
        syntax: Some("proto2".to_owned()),
        message_type: vec![descriptor],
        ..FileDescriptorProto::default()
    };
    let mut pool = DescriptorPool::new();
    let added = pool.add_file_descriptor_proto(file);
    added.map_err(|e| invalid(format!("Invalid proto schema: the descriptor is not self-contained: {e}")))?;
    pool.get_message_by_name(&name).ok_or_else(|| invalid("Invalid proto schema: it has no name"))
}

fn check_schema(table: &Table, schema: &MessageDescriptor) -> Result<(), Status> {
    let entity = table.resource["id"].as_str().unwrap_or_default();
    for field in schema.fields() {
        let kind = match field.name() {
            CHANGE_TYPE | SEQUENCE => "STRING",
            name => match table.column(name) {
                Some(column) => column.kind,
                None => {
                    return Err(storage_error(
                        Code::InvalidArgument,
                        StorageErrorCode::SchemaMismatchExtraFields,
                        entity,
                        &format!("Input schema has more fields than BigQuery schema, extra fields: '{name}'"),
                    ));
                }
            },
        };
        if !fits(kind, &field.kind()) || field.is_list() {
            return Err(invalid(format!(
                "The proto field mismatched with BigQuery field at {}: {:?} is not for {kind}",
                field.name(),
                field.kind()
            )));
        }
    }
    let has = |c: &Column| schema.fields().any(|f| f.name().eq_ignore_ascii_case(&c.name));
    match table.columns.iter().find(|c| c.is_required && !has(c)) {
        Some(c) => Err(invalid(format!("The required field {} is missing in the proto message", c.name))),
        None => Ok(()),
    }
}

/// Which types of Protobuf a column takes.
fn fits(column: &str, kind: &Kind) -> bool {
    match column {
        "STRING" => matches!(kind, Kind::String | Kind::Enum(_)),
        "JSON" => matches!(kind, Kind::String),
        "BYTES" => matches!(kind, Kind::Bytes | Kind::String),
        "INTEGER" => matches!(kind, Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Enum(_)),
        "TIMESTAMP" => matches!(kind, Kind::Int32 | Kind::Int64 | Kind::Uint32),
        "BOOLEAN" => {
            matches!(kind, Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64)
        }
        "FLOAT" => matches!(kind, Kind::Double | Kind::Float),
        "NUMERIC" => matches!(kind, Kind::String | Kind::Int64 | Kind::Double | Kind::Bytes),
        _ => false,
    }
}

/// A row that can be applied.
struct Good {
    row: Row,
    is_delete: bool,
    is_change: bool,
    /// As it was written.
    sequence: Option<Vec<u64>>,
}

fn decode(table: &Table, schema: &MessageDescriptor, bytes: &[u8]) -> Result<Good, String> {
    let message = DynamicMessage::decode(schema.clone(), bytes).map_err(|e| format!("corrupted row: {e}"))?;
    if message.unknown_fields().next().is_some() {
        return Err("the row has fields that its schema does not know".to_owned());
    }
    let text = |name: &str| -> Option<String> {
        let field = schema.get_field_by_name(name)?;
        message.has_field(&field).then(|| message.get_field(&field).as_str().map(str::to_owned))?
    };
    let is_change = schema.get_field_by_name(CHANGE_TYPE).is_some();
    let is_delete = match text(CHANGE_TYPE).as_deref() {
        Some("DELETE") => true,
        Some("UPSERT") => false,
        None if !is_change => false,
        other => {
            let given = other.unwrap_or("nothing");
            return Err(format!("{CHANGE_TYPE} has to be UPSERT or DELETE, not {given}"));
        }
    };
    let sequence = text(SEQUENCE).map(|s| sections(&s)).transpose()?;
    let mut row = Row::new();
    for column in &table.columns {
        let field = schema.fields().find(|f| f.name().eq_ignore_ascii_case(&column.name));
        let value = field.filter(|f| message.has_field(f)).map(|f| message.get_field(&f).into_owned());
        if let Some(value) = value {
            row.insert(column.name.clone(), stored(column, &value)?);
        } else if column.is_required && !is_delete {
            return Err(format!("Missing required field: {}", column.name));
        }
    }
    if is_change && table.key_of(&row).is_none() {
        return Err(format!("the row has no key: {}", table.key.join(", ")));
    }
    Ok(Good { row, is_delete, is_change, sequence })
}

/// A sequence number by its sections.
pub(super) fn sections(text: &str) -> Result<Vec<u64>, String> {
    let section = |s: &str| {
        let digits = !s.is_empty() && s.len() <= DIGITS_MAX && s.bytes().all(|b| b.is_ascii_hexdigit());
        digits.then(|| u64::from_str_radix(s, 16).ok()).flatten()
    };
    let found: Option<Vec<u64>> = text.split('/').map(section).collect();
    found.filter(|s| s.len() <= SECTIONS_MAX).ok_or_else(|| {
        format!("{SEQUENCE} has to be 1 to {SECTIONS_MAX} sections of 1 to {DIGITS_MAX} hexadecimal digits, not {text}")
    })
}

fn stored(column: &Column, value: &Proto) -> Result<Value, String> {
    let wrong = |why: &str| Err(format!("Field {}: {why}", column.name));
    match (column.kind, value) {
        ("TIMESTAMP", _) => match whole(value) {
            Some(us) if CALENDAR_US.contains(&us) => Ok(us.into()),
            _ => wrong("the timestamp is outside of years 1 to 9999"),
        },
        ("JSON", Proto::String(text)) => match serde_json::from_str::<Value>(text) {
            // As it was written, so that tests see each digit.
            Ok(_) => Ok(text.clone().into()),
            Err(e) => wrong(&format!("it is no JSON: {e}")),
        },
        ("BOOLEAN", Proto::Bool(b)) => Ok((*b).into()),
        ("BOOLEAN", _) => Ok((whole(value) != Some(0)).into()),
        (_, Proto::String(text)) => Ok(text.clone().into()),
        (_, Proto::F64(n)) => Ok((*n).into()),
        (_, Proto::F32(n)) => Ok((*n).into()),
        (_, Proto::Bytes(bytes)) => Ok(Value::from(bytes.to_vec())),
        _ => whole(value).map_or_else(|| wrong("a value of another type"), |n| Ok(n.into())),
    }
}

fn whole(value: &Proto) -> Option<i64> {
    value
        .as_i64()
        .or_else(|| value.as_i32().map(i64::from))
        .or_else(|| value.as_u32().map(i64::from))
        .or_else(|| value.as_u64().and_then(|n| i64::try_from(n).ok()))
}

fn part(rows: impl Iterator<Item = Result<Good, String>>) -> (Vec<Good>, Vec<RowError>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (index, row) in rows.enumerate() {
        match row {
            Ok(row) => good.push(row),
            Err(message) => {
                bad.push(RowError { index: index as i64, code: RowErrorCode::FieldsError as i32, message });
            }
        }
    }
    (good, bad)
}

/// No row of the request is taken; the bad ones are named.
pub(super) fn refused_rows(stream: String, bad: Vec<RowError>) -> AppendRowsResponse {
    let message =
        format!("Errors found while processing rows. Please refer to the row_errors field: {}", bad.len());
    let status = rpc::Status { code: Code::InvalidArgument as i32, message, details: Vec::new() };
    AppendRowsResponse {
        updated_schema: None,
        row_errors: bad,
        write_stream: stream,
        response: Some(Response::Error(status)),
    }
}

/// Rows with and without sequence numbers do not mix, nor do numbers of different lengths.
fn check_sequences(rows: &[Good]) -> Result<(), Status> {
    let lengths: BTreeSet<Option<usize>> = rows.iter().map(|r| r.sequence.as_ref().map(Vec::len)).collect();
    if lengths.len() > 1 {
        return Err(invalid(format!(
            "rows with and without {SEQUENCE}, or with other forms of it, do not mix"
        )));
    }
    Ok(())
}

/// How many keys stood more than once.
fn apply(table: &mut Table, rows: Vec<Good>, arrival: u64) -> u64 {
    let mut keys = BTreeSet::new();
    let mut twice = 0;
    for good in rows {
        let Some(key) = table.key_of(&good.row).filter(|_| good.is_change) else {
            table.insert(good.row);
            continue;
        };
        twice += u64::from(!keys.insert(key.clone()));
        let order = good.sequence.map_or(Order::Arrival(arrival), Order::Sections);
        let change = if good.is_delete { Change::Delete } else { Change::Upsert(good.row) };
        table.change(key, order, change);
    }
    twice
}

/// The schema as it is told when it has changed.
pub(super) fn shown(columns: &[Column]) -> TableSchema {
    let field = |c: &Column| {
        let kind = match c.kind {
            "BYTES" => Type::Bytes,
            "INTEGER" => Type::Int64,
            "FLOAT" => Type::Double,
            "BOOLEAN" => Type::Bool,
            "TIMESTAMP" => Type::Timestamp,
            "JSON" => Type::Json,
            "NUMERIC" => Type::Numeric,
            _ => Type::String,
        };
        let mode = if c.is_required { Mode::Required } else { Mode::Nullable };
        TableFieldSchema {
            name: c.name.clone(),
            r#type: kind as i32,
            mode: mode as i32,
            ..TableFieldSchema::default()
        }
    };
    TableSchema { fields: columns.iter().map(field).collect() }
}
