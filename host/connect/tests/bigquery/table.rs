//! The table: made, checked, extended, claimed; and what rows look like in it.

use crate::world::*;
use serde_json::{Value, json};
use std::time::Duration;
use tidemill_connect::sink::bigquery::{BigQuerySink, ColumnKind, OwnColumn, TableOptions};
use tidemill_connect::sink::{Sink as _, TakenBack};
use tidemill_connect::{ConnectError, Cursor};
use tidemill_engine::outbox::Stage;

fn options() -> TableOptions {
    TableOptions {
        max_staleness: Some(Duration::from_secs(900)),
        clustering: vec!["pipeline".into(), "start_time".into()],
        columns: [
            ("total", ColumnKind::Float),
            ("country", ColumnKind::Text),
            ("bot", ColumnKind::Truth),
            ("n", ColumnKind::Whole),
        ]
        .map(|(name, kind)| OwnColumn { name: name.into(), kind })
        .into(),
    }
}

const CURSOR: Option<Cursor> = Some(Cursor { epoch: 3, length: 3 });

#[test]
fn a_table_is_made_with_key_clustering_staleness_and_columns() {
    let server = bigquery();
    let mut sink = sink_of(dataset(&server, PATIENT), options());
    sink.probe(None).unwrap();
    assert_eq!(server.resource(TABLE), Value::Null, "looking makes nothing");
    assert_eq!(sink.open(1, None).unwrap(), Some(Cursor::default()));
    let table = server.resource(TABLE);
    assert_eq!(table["tableConstraints"]["primaryKey"]["columns"], json!(["session_id"]));
    assert_eq!(table["clustering"]["fields"], json!(["pipeline", "start_time"]));
    assert_eq!(table["maxStaleness"], "0-0 0 0:15:0");
    let epoch = Epoch::new(1, 2)
        .row_with(1, 3, Stage::Early, r#"{"total": 1.5, "country": "NL", "bot": false, "n": 7}"#)
        .row_with(2, 4, Stage::Final, r#"{"total": "much", "country": 3, "bot": 1, "n": 1.5}"#)
        .row(3, 5, Stage::Final);
    assert_eq!(epoch.to(&mut sink).unwrap(), Cursor { epoch: 2, length: 2 });
    let rows: Vec<Value> = server.rows(TABLE).into_iter().map(Value::Object).collect();
    let first = json!({
        "session_id": "00000000000000000000000000000001", "pipeline": "visits", "key": "user1",
        "start_time": 1_000_000, "end_time": 2_000_000, "events": 3, "stage": "early", "incarnation": 1, "epoch": 2,
        "plugin": "builtin:gap@1", "fields": r#"{"total": 1.5, "country": "NL", "bot": false, "n": 7}"#,
        "total": 1.5, "country": "NL", "bot": false, "n": 7,
    });
    assert_eq!(rows[0], first);
    // What a field does not fit into is null, and so is what is not there; the rest of the row is there all the same.
    for row in &rows[1..] {
        assert!(
            row["reason"] == "gap" && ["total", "country", "bot", "n"].iter().all(|c| row[c].is_null()),
            "{row}"
        );
    }
    assert_eq!(refused(&mut sink), [Value::Null; 0]);
}

#[test]
fn only_a_higher_revision_changes_a_row_and_a_retraction_is_a_row() {
    let server = bigquery();
    let mut sink = opened(&server, PATIENT);
    let (first, second) = (Epoch::rows(0..10, 1, 1), Epoch::rows(5..10, 2, 2));
    first.to(&mut sink).unwrap();
    second.to(&mut sink).unwrap();
    Epoch::new(1, 3).row(9, 2, Stage::Retracted).to(&mut sink).unwrap();
    let expected: std::collections::BTreeMap<u32, u64> =
        all(0..5, 1).into_iter().chain(all(5..10, 2)).collect();
    assert_eq!(seen(&server), expected);
    // Another process that knows less offers all of it again: BigQuery has it already.
    let mut again = sink_of(dataset(&server, PATIENT), TableOptions::default());
    again.open(2, None).unwrap();
    for epoch in [&second, &first] {
        epoch.to(&mut again).unwrap();
    }
    assert_eq!(seen(&server), expected);
    let retracted = server.rows(TABLE).into_iter().filter(|r| r["stage"] == "retracted").count();
    assert_eq!(retracted, 1, "a retraction stays, so that nothing lower revives it");
    server.forget_deleted();
    first.to(&mut again).unwrap();
    assert_eq!(seen(&server), expected);
    // A later incarnation holds, whatever its epoch is.
    Epoch::new(2, 1).row(9, 7, Stage::Final).to(&mut again).unwrap();
    assert_eq!(seen(&server)[&9], 7);
    assert_eq!(server.twice_in_a_request(), 0);
}

#[test]
fn an_epoch_is_sent_once_and_one_without_rows_not_at_all() {
    let server = bigquery();
    let mut sink = opened(&server, PATIENT);
    assert_eq!(Epoch::new(1, 1).letter("{}").to(&mut sink).unwrap(), Cursor { epoch: 1, length: 0 });
    assert_eq!((server.streams(), server.requests().len()), (0, 0));
    let epoch = Epoch::rows(0..10, 2, 1);
    for _ in 0..3 {
        assert_eq!(epoch.to(&mut sink).unwrap(), Cursor { epoch: 2, length: 2 });
    }
    for n in 3..20 {
        Epoch::rows(0..10, n, n).to(&mut sink).unwrap();
    }
    assert_eq!((server.streams(), server.arrived(TABLE)), (1, 180), "one stream, each row once");
    assert_eq!(seen(&server), all(0..10, 19));
}

#[test]
fn letters_have_a_table_of_their_own_and_each_stands_once() {
    let server = bigquery();
    let make = || {
        BigQuerySink::letters(
            dataset(&server, PATIENT),
            "letters".into(),
            TableOptions::default(),
            "visits".into(),
            "dead".into(),
        )
    };
    let mut sink = make();
    sink.open(1, None).unwrap();
    let epoch =
        Epoch::rows(0..3, 4, 1).letter(r#"{"reason":"late","n":1.50}"#).letter(r#"{"reason":"late"}"#);
    epoch.to(&mut sink).unwrap();
    let mut again = make();
    again.open(2, None).unwrap();
    epoch.to(&mut again).unwrap();
    let rows = server.rows("projects/p/datasets/clicks/tables/letters");
    let letters: Vec<Value> = rows.into_iter().map(Value::Object).collect();
    assert_eq!(
        letters,
        [
            json!({"pipeline": "visits", "incarnation": 1, "epoch": 4, "number": 0, "letter": r#"{"reason":"late","n":1.50}"#}),
            json!({"pipeline": "visits", "incarnation": 1, "epoch": 4, "number": 1, "letter": r#"{"reason":"late"}"#}),
        ]
    );
}

/// A table that lacks columns gets those that may be null; anything else is refused by name, at the start and later.
#[test]
fn a_table_that_is_there_is_checked_and_extended_by_nullable_columns() {
    let server = bigquery();
    opened(&server, PATIENT);
    let drop_columns = |names: &[&str]| {
        server.replace(TABLE, |t| {
            let fields = t["schema"]["fields"].as_array_mut().unwrap();
            fields.retain(|f| !names.contains(&f["name"].as_str().unwrap()));
        });
    };
    drop_columns(&["reason"]);
    server.replace(TABLE, |t| {
        t["schema"]["fields"]
            .as_array_mut()
            .unwrap()
            .insert(0, json!({"name": "note", "type": "STRING", "mode": "NULLABLE"}));
    });
    let mut sink = sink_of(dataset(&server, PATIENT), options());
    sink.open(2, None).unwrap();
    let names = |t: &Value| -> Vec<String> {
        let fields = t["schema"]["fields"].as_array().unwrap();
        fields
            .iter()
            .map(|f| format!("{} {}", f["name"].as_str().unwrap(), f["mode"].as_str().unwrap()))
            .collect()
    };
    let table = server.resource(TABLE);
    assert_eq!(names(&table)[0], "note NULLABLE");
    let added = ["reason NULLABLE", "total NULLABLE", "country NULLABLE", "bot NULLABLE", "n NULLABLE"];
    assert_eq!(names(&table)[12..], added);
    Epoch::rows(0..2, 1, 1).to(&mut sink).unwrap();
    drop_columns(&["events"]);
    for refused in [sink.probe(None).err(), sink_of(dataset(&server, PATIENT), options()).open(3, None).err()]
    {
        let Some(ConnectError::Config(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains("column `events` is missing") && why.contains("BigQuery at 127.0.0.1"), "{why}");
    }
}

#[test]
fn a_table_elsewhere_or_a_dataset_that_is_not_there_is_the_configs_fault() {
    let server = bigquery();
    opened(&server, PATIENT);
    let mut of = dataset(&server, PATIENT);
    of.location = Some("US".into());
    let refused = sink_of(of.clone(), TableOptions::default()).open(1, None);
    assert!(matches!(&refused, Err(ConnectError::Config(m)) if m.contains("it lies in EU")), "{refused:?}");
    of.location = Some("eu".into());
    sink_of(of.clone(), TableOptions::default()).open(2, None).unwrap();
    of.dataset = "none".into();
    let refused = sink_of(of, TableOptions::default()).open(1, None);
    assert!(
        matches!(&refused, Err(ConnectError::Config(m)) if m.contains("Not found: Dataset p:none")),
        "{refused:?}"
    );
}

#[test]
fn a_run_that_was_replaced_writes_no_more_once_it_looks() {
    let server = bigquery();
    let mut first = opened(&server, PATIENT);
    Epoch::rows(0..3, 1, 1).to(&mut first).unwrap();
    let mut second = sink(&server, PATIENT);
    second.open(2, Some(Cursor { epoch: 1, length: 1 })).unwrap();
    server.close_all();
    let refused = Epoch::rows(3..6, 2, 1).to(&mut first);
    assert!(matches!(&refused, Err(ConnectError::Conflict(m)) if m.contains("a newer run")), "{refused:?}");
    assert_eq!(seen(&server), all(0..3, 1));
    let refused = sink(&server, PATIENT).open(1, None);
    assert!(matches!(&refused, Err(ConnectError::Conflict(m)) if m.contains("incarnation 2")), "{refused:?}");
    Epoch::new(2, 2).row(7, 1, Stage::Final).to(&mut second).unwrap();
    assert_eq!(seen(&server).len(), 4);
}

#[test]
fn a_table_that_lacks_what_was_delivered_is_refused_until_somebody_goes_on() {
    let server = bigquery();
    let mut sink = opened(&server, PATIENT);
    Epoch::rows(0..3, 1, 1).to(&mut sink).unwrap();
    server.drop_table(TABLE);
    server.close_all();
    // While it runs.
    let refused = Epoch::rows(3..6, 2, 1).to(&mut sink);
    assert!(
        matches!(&refused, Err(ConnectError::Conflict(m)) if m.contains("--resend table")),
        "{refused:?}"
    );
    // At the next start, and the one after it, though there is a table by then.
    for incarnation in [2, 3] {
        let refused = sink.probe(CURSOR);
        assert!(
            matches!(&refused, Err(ConnectError::Conflict(m)) if m.contains("--resend table")),
            "{refused:?}"
        );
        assert_eq!(sink.open(incarnation, CURSOR).unwrap(), None);
    }
    // Whoever goes on opens with nothing stored, sends again, and it is forgotten.
    assert_eq!(sink.open(4, None).unwrap(), Some(Cursor::default()));
    Epoch::rows(0..3, 1, 1).to(&mut sink).unwrap();
    sink.probe(CURSOR).unwrap();
    assert_eq!(sink.open(5, CURSOR).unwrap(), CURSOR);
    assert_eq!(seen(&server), all(0..3, 1));
}

/// The data directory was removed, and with it the word of what is in the table: rows of the first epochs would lie below it.
#[test]
fn a_table_that_another_store_has_written_to_is_refused() {
    let server = bigquery();
    Epoch::rows(0..3, 9, 1).to(&mut opened(&server, PATIENT)).unwrap();
    let refused = sink(&server, PATIENT).open(1, None);
    assert!(
        matches!(&refused, Err(ConnectError::Conflict(m)) if m.contains("another data_dir")),
        "{refused:?}"
    );
    // The same store, asked again.
    sink(&server, PATIENT).open(1, Some(Cursor { epoch: 9, length: 9 })).unwrap();
    // Or one that has not come as far as an epoch.
    sink(&server, PATIENT).open(2, None).unwrap();
}

#[test]
fn rows_cannot_be_listed_so_they_stay_and_are_not_deleted() {
    let server = bigquery();
    let mut fresh = sink(&server, PATIENT);
    fresh.delete_all().unwrap();
    fresh.open(1, None).unwrap();
    fresh.delete_all().unwrap();
    // As a run does that starts over.
    let mut fresh = sink(&server, PATIENT);
    fresh.open(1, None).unwrap();
    Epoch::rows(0..3, 5, 1).to(&mut fresh).unwrap();
    let mut sink = sink(&server, PATIENT);
    assert_eq!(sink.witness().unwrap(), None);
    for is_open in [false, true] {
        if is_open {
            sink.open(2, CURSOR).unwrap();
        }
        let refused = sink.delete_all();
        assert!(
            matches!(&refused, Err(ConnectError::Config(m)) if m.contains("delete the table")),
            "{refused:?}"
        );
    }
    assert_eq!(sink.take_back(3, 1, CURSOR).unwrap(), TakenBack::Stays);
    // What comes again after going back holds, though its epochs are lower.
    sink.open(4, Some(Cursor { epoch: 1, length: 1 })).unwrap();
    Epoch::new(4, 2).row(0, 9, Stage::Final).to(&mut sink).unwrap();
    assert_eq!(seen(&server)[&0], 9);
}
