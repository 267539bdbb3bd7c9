//! Lookups in Bigtable, against Google's own stand-in (`tidemill-services`): each way to fail, and what becomes of the keys.
//!
//! The bug family: a row that is missed because half an answer was taken for a whole one; a value of another row, column or version;
//! a provider that does not come back when the service does; memory that a table can fill.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod failures;

use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tidemill_connect::lookup::bigtable::{BigtableProvider, CellKind, Column, CredentialsFrom, Place};
use tidemill_connect::lookup::bounds::{RESPONSE_BYTES_MAX, ROW_BYTES_MAX};
use tidemill_connect::lookup::{Fetched, LookupError, Provider as _};
use tidemill_services::bigtable::{Bigtable, Cell, INSTANCE, PROJECT, bigtable, emulator};

const TABLE: &str = "visitors";
/// Where nothing is to come too late.
const PATIENT: Duration = Duration::from_secs(20);
const ROWS: u64 = 500;

fn column(field: &str, family: &str, qualifier: &str, kind: CellKind) -> Column {
    Column { field: field.into(), family: family.into(), qualifier: qualifier.into(), kind }
}

fn columns() -> Vec<Column> {
    vec![
        column("segment", "profile", "segment", CellKind::Text),
        column("visits", "stats", "visits", CellKind::Int64),
        column("tags", "profile", "a:b.*", CellKind::Json),
        column("raw", "profile", "", CellKind::Base64),
        column("once more", "profile", "segment", CellKind::Text),
    ]
}

fn provider(address: &str, columns: Vec<Column>) -> BigtableProvider {
    let place = Place {
        project: PROJECT.into(),
        instance: INSTANCE.into(),
        table: TABLE.into(),
        app_profile: String::new(),
        endpoint: format!("http://{address}"),
        credentials: CredentialsFrom::None,
    };
    BigtableProvider::new(place, "v#{key}".into(), columns).unwrap()
}

/// What the row of a number is to be, if there is one.
fn expected(n: u64) -> Option<Value> {
    let tags = if n.is_multiple_of(5) { json!(["x", n]) } else { Value::Null };
    let segment = format!("segment-{n}");
    (!n.is_multiple_of(7)).then(|| {
        json!({"segment": segment, "visits": n as i64 - 3, "tags": tags, "raw": "/w==", "once more": segment})
    })
}

fn cell(n: u64, family: &str, qualifier: &str, value: impl Into<Vec<u8>>) -> Cell {
    let (family, qualifier) = (family.to_owned(), qualifier.to_owned());
    Cell { key: format!("v#{n}"), family, qualifier, value: value.into(), micros: 2_000_000 }
}

/// Makes the table: with older cells of the same columns, others beside them, and rows that have only such.
fn fill(server: &Bigtable) {
    server.create(TABLE, &["profile", "stats", "other"]);
    let mut cells = Vec::new();
    for n in 0..ROWS {
        cells.push(cell(n, "other", "segment", "wrong"));
        cells.push(cell(n, "profile", "segment2", "wrong"));
        cells.push(cell(n, "profile", "a:bxx", "wrong"));
        if n.is_multiple_of(7) {
            continue;
        }
        cells.push(Cell { micros: 1_000, ..cell(n, "profile", "segment", "older") });
        cells.push(cell(n, "profile", "segment", format!("segment-{n}")));
        cells.push(cell(n, "stats", "visits", (n as i64 - 3).to_be_bytes()));
        cells.push(cell(n, "profile", "", [0xff]));
        if n.is_multiple_of(5) {
            cells.push(cell(n, "profile", "a:b.*", format!("[\"x\",{n}]")));
        }
    }
    server.put(TABLE, &cells);
}

fn keys(range: impl IntoIterator<Item = u64>) -> Vec<Arc<str>> {
    range.into_iter().map(|n| Arc::from(n.to_string())).collect()
}

fn shown(fetched: &Fetched) -> Option<Value> {
    fetched.as_ref().unwrap().as_ref().map(|row| serde_json::from_str(row).unwrap())
}

#[track_caller]
fn right(found: &[Fetched], range: impl IntoIterator<Item = u64>) {
    let wanted: Vec<_> = range.into_iter().map(expected).collect();
    assert_eq!(found.iter().map(shown).collect::<Vec<_>>(), wanted);
}

#[test]
fn rows_are_what_the_table_has() {
    let Some(server) = bigtable() else { return };
    fill(&server);
    rows_are_right(&server);
    let counts = server.counts();
    assert_eq!((counts.calls, counts.keys_in_call_max), (2 + 1 + ROWS.div_ceil(7), ROWS + 50));
}

/// The same of the emulator that Google gives to its users.
#[test]
fn rows_are_what_googles_emulator_has() {
    let Some((server, _emulator)) = emulator() else { return };
    fill(&server);
    rows_are_right(&server);
}

fn rows_are_right(server: &Bigtable) {
    let provider = provider(server.address(), columns());
    right(&provider.fetch(&keys(0..ROWS + 50), PATIENT).unwrap()[..ROWS as usize], 0..ROWS);
    // In any order, those that there are not among the others.
    let mixed = || (0..100).map(|n| (n * 37 + 5) % ROWS);
    right(&provider.fetch(&keys(mixed()), PATIENT).unwrap(), mixed());
    let absent = provider.fetch(&keys(ROWS..ROWS + 50), PATIENT).unwrap();
    assert!(absent.iter().all(|row| *row == Ok(None)));
    for n in (0..ROWS).step_by(7) {
        right(&provider.fetch(&keys([n]), PATIENT).unwrap(), [n]);
    }
}

#[test]
fn of_one_column_the_newest_cell_is_the_row() {
    let Some(server) = bigtable() else { return };
    fill(&server);
    let one = provider(server.address(), vec![column("s", "profile", "segment", CellKind::Text)]);
    let rows = one.fetch(&keys([1, 7]), PATIENT).unwrap();
    assert_eq!(rows.iter().map(shown).collect::<Vec<_>>(), [Some(json!({"s": "segment-1"})), None]);
    server.put(TABLE, &[Cell { micros: 3_000_000, ..cell(1, "profile", "segment", "newer") }]);
    assert_eq!(shown(&one.fetch(&keys([1]), PATIENT).unwrap()[0]), Some(json!({"s": "newer"})));
}

/// A cell may have many MiB: it costs its own session, and no more memory than the bounds say.
#[test]
fn rows_and_answers_that_are_too_long_are_refused() {
    let Some(server) = bigtable() else { return };
    server.create(TABLE, &["profile", "stats"]);
    let segment = |n: u64, bytes: usize| cell(n, "profile", "segment", "x".repeat(bytes));
    server.put(TABLE, &[segment(1, ROW_BYTES_MAX + 1), segment(2, 5), segment(3, 3 << 20)]);
    let one = provider(server.address(), vec![column("s", "profile", "segment", CellKind::Text)]);
    let rows = one.fetch(&keys(1..4), PATIENT).unwrap();
    assert_eq!(shown(&rows[1]), Some(json!({"s": "xxxxx"})));
    for (row, bytes) in [(&rows[0], ROW_BYTES_MAX + 1), (&rows[2], 3 << 20)] {
        let words = format!("has {bytes} bytes, at most {ROW_BYTES_MAX}");
        assert!(matches!(row, Err(LookupError::Unusable(m)) if m.contains(&words)), "{row:?}");
    }
    // Each fits, and all of them do not.
    let n = RESPONSE_BYTES_MAX / 60_000 + 1;
    let cells: Vec<Cell> = (10..10 + n).map(|n| segment(n, 60_000)).collect();
    cells.chunks(20).for_each(|part| server.put(TABLE, part));
    let all = one.fetch(&keys(10..10 + n), PATIENT);
    assert!(matches!(&all, Err(LookupError::Refused(m)) if m.contains("16 MiB of rows")), "{all:?}");
    let half = one.fetch(&keys(10..10 + n / 2), PATIENT).unwrap();
    assert!(half.iter().all(|row| matches!(row, Ok(Some(_)))));
}
