//! What may fail, one by one: nothing is lost, nothing doubled, and the cause names the service.

use crate::world::*;
use std::time::{Duration, Instant};
use tidemill_connect::bigquery::CredentialsFrom;
use tidemill_connect::sink::Sink as _;
use tidemill_connect::sink::bigquery::TableOptions;
use tidemill_connect::{ConnectError, Cursor};
use tidemill_engine::outbox::Stage;
use tidemill_services::bigquery::{Fault, REQUEST_BYTES_MAX, THROTTLED, UNAVAILABLE};

/// Codes of gRPC.
const INTERNAL: i32 = 13;
const ABORTED: i32 = 10;
const UNAUTHENTICATED: i32 = 16;
const FAILED_PRECONDITION: i32 = 9;

#[track_caller]
fn names_the_service(said: &[String], words: &str) {
    let all = said.iter().all(|s| s.contains("BigQuery at 127.0.0.1:"));
    assert!(!said.is_empty() && all && said.iter().any(|s| s.contains(words)), "{said:?}, expected {words}");
}

#[test]
fn a_service_that_is_down_at_the_start_is_waited_for() {
    let server = bigquery();
    server.down(true);
    let mut sink = sink(&server, PATIENT);
    let said = sink.open(1, None);
    let Err(ConnectError::Unavailable(why)) = said else { panic!("{said:?}") };
    names_the_service(&[why], "no answer");
    assert!(matches!(sink.probe(None), Err(ConnectError::Unavailable(_))));
    server.down(false);
    sink.open(1, None).unwrap();
    patiently(&mut sink, &Epoch::rows(0..5, 1, 1));
    assert_eq!(seen(&server), all(0..5, 1));
}

#[test]
fn a_service_that_dies_in_the_middle_gets_each_row_once() {
    let server = bigquery();
    let mut sink = opened(&server, PATIENT);
    for n in 1..6 {
        Epoch::rows(0..50, n * 2, n).to(&mut sink).unwrap();
        server.down(true);
        let epoch = Epoch::rows(50..100, n * 2 + 1, n);
        let said = epoch.to(&mut sink);
        let Err(ConnectError::Unavailable(why)) = said else { panic!("{said:?}") };
        names_the_service(&[why], "");
        server.down(false);
        patiently(&mut sink, &epoch);
    }
    assert_eq!(seen(&server), all(0..100, 5));
}

/// The service closes connections that are idle: that is no failure.
#[test]
fn a_connection_that_was_closed_meanwhile_is_opened_again_without_a_word() {
    let server = bigquery();
    let mut sink = opened(&server, PATIENT);
    for n in 1..5 {
        Epoch::rows(0..50, n, n).to(&mut sink).unwrap();
        server.close_all();
    }
    assert_eq!((seen(&server), server.streams()), (all(0..50, 4), 4));
}

#[test]
fn a_connection_that_breaks_before_or_after_rows_were_taken_doubles_nothing() {
    let server = bigquery();
    let mut sink = opened(&server, PATIENT);
    for (n, fault) in [Fault::BreakAfter, Fault::End(UNAVAILABLE), Fault::End(INTERNAL), Fault::End(ABORTED)]
        .into_iter()
        .enumerate()
    {
        let epoch = Epoch::rows(0..50, n as u64 + 1, n as u64 + 1);
        // Once without a word, since it may have been idle; then it is said.
        server.order(fault, 2);
        let said = patiently(&mut sink, &epoch);
        assert!(
            !said.is_empty() && said.iter().all(|s| s.contains("BigQuery at 127.0.0.1:")),
            "{fault:?}: {said:?}"
        );
        assert_eq!(seen(&server), all(0..50, n as u64 + 1));
    }
    assert_eq!(server.met(), 8);
}

#[test]
fn an_answer_that_never_comes_or_comes_too_late_doubles_nothing() {
    let server = bigquery();
    let mut sink = opened(&server, IMPATIENT);
    for (n, fault) in [(1, Fault::Silence), (2, Fault::Late(3 * IMPATIENT.as_millis() as u64))] {
        server.order(fault, 2);
        let begun = Instant::now();
        names_the_service(&patiently(&mut sink, &Epoch::rows(0..50, n, n)), "no answer within 300ms");
        assert!(begun.elapsed() >= IMPATIENT, "it did not wait");
        assert_eq!(seen(&server), all(0..50, n));
    }
    // An older epoch that arrives after a newer one changes nothing.
    let late = Epoch::rows(0..50, 1, 77);
    let mut other = sink_of(dataset(&server, PATIENT), TableOptions::default());
    other.open(2, None).unwrap();
    late.to(&mut other).unwrap();
    assert_eq!(seen(&server), all(0..50, 2));
}

#[test]
fn a_service_that_throttles_is_tried_again() {
    let server = bigquery();
    let mut sink = opened(&server, PATIENT);
    for (n, fault) in [(1, Fault::Answer(THROTTLED)), (2, Fault::End(THROTTLED))] {
        server.order(fault, 3);
        names_the_service(&patiently(&mut sink, &Epoch::rows(0..50, n, n)), "ResourceExhausted");
    }
    assert_eq!((seen(&server), server.met()), (all(0..50, 2), 6));
    // Tables, too.
    server.refuse_tables(Some((403, "rateLimitExceeded")));
    server.close_all();
    let said = Epoch::rows(0..50, 3, 3).to(&mut sink);
    assert!(
        matches!(&said, Err(ConnectError::Unavailable(m)) if m.contains("rateLimitExceeded")),
        "{said:?}"
    );
    server.refuse_tables(None);
    patiently(&mut sink, &Epoch::rows(0..50, 3, 3));
}

/// Some requests of an epoch were answered with yes, the next with no: only the rest is sent again.
#[test]
fn half_an_epoch_goes_on_where_it_stood() {
    let server = bigquery();
    let mut sink = opened(&server, PATIENT);
    let epoch = Epoch::large(0..300, 1);
    // Eight requests; the last of them meets it.
    server.delay(5);
    let whole = {
        let server = bigquery();
        epoch.to(&mut opened(&server, PATIENT)).unwrap();
        server.requests().len()
    };
    assert!(whole >= 7, "{whole} requests");
    for _ in 1..whole {
        server.order(Fault::Late(0), 1);
    }
    server.order(Fault::Answer(THROTTLED), 1);
    let epoch = Epoch::large(0..300, 2);
    names_the_service(&patiently(&mut sink, &epoch), "ResourceExhausted");
    assert_eq!(seen(&server), all(0..300, 2));
    assert_eq!(server.requests().len(), whole, "what was there already was sent again");
    assert!(server.requests().iter().all(|r| r.len() < REQUEST_BYTES_MAX));
}

/// Bounded memory and full use: some requests are on their way at once, and never more.
#[test]
fn a_slow_service_is_waited_for_with_requests_on_their_way() {
    let server = bigquery();
    let mut sink = opened(&server, PATIENT);
    server.delay(100);
    let begun = Instant::now();
    Epoch::large(0..300, 1).to(&mut sink).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(700), "it did not wait for all of them");
    assert_eq!(seen(&server), all(0..300, 1));
}

#[test]
fn bad_rows_become_letters_and_all_others_arrive() {
    let server = bigquery();
    let mut sink = opened(&server, PATIENT);
    server.refuse_rows_with(Some("poison"));
    let mut epoch = Epoch::new(1, 1);
    for id in 0..100 {
        let fields = if id % 10 == 3 { r#"{"a":"poison"}"# } else { "{}" };
        epoch = epoch.row_with(id, 1, Stage::Final, fields);
    }
    epoch.to(&mut sink).unwrap();
    let good: Vec<u32> = (0..100).filter(|id| id % 10 != 3).collect();
    assert_eq!(seen(&server).into_keys().collect::<Vec<_>>(), good);
    let letters = refused(&mut sink);
    assert_eq!(letters.len(), 10);
    for (n, letter) in letters.iter().enumerate() {
        assert_eq!(letter["key"], format!("user{}", n * 10 + 3));
        assert_eq!((&letter["reason"], &letter["stage"]), (&"row_refused".into(), &"sink".into()));
        assert!(letter["message"].as_str().unwrap().contains("BigQuery has refused the row: the row is bad"));
        assert_eq!(letter["fields"]["a"], "poison");
    }
    assert!(refused(&mut sink).is_empty(), "told once");
    // A failure after they were told does not tell them twice, and an epoch of bad rows alone is delivered.
    server.order(Fault::Late(0), 1);
    server.order(Fault::End(UNAVAILABLE), 2);
    let epoch = Epoch::new(1, 2).row_with(3, 2, Stage::Final, r#"{"a":"poison"}"#).row(4, 2, Stage::Final);
    patiently(&mut sink, &epoch);
    assert_eq!(refused(&mut sink).len(), 1);
    Epoch::new(1, 3).row_with(5, 3, Stage::Final, r#"{"a":"poison"}"#).to(&mut sink).unwrap();
    assert_eq!((refused(&mut sink).len(), seen(&server)[&4], seen(&server)[&5]), (1, 2, 1));
}

#[test]
fn a_row_that_no_request_holds_becomes_a_letter() {
    let server = bigquery();
    let mut sink = opened(&server, PATIENT);
    let huge = format!("{{\"a\":\"{}\"}}", "x".repeat(REQUEST_BYTES_MAX));
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(9_400_000));
    let epoch = Epoch::new(1, 1)
        .row_with(1, 1, Stage::Final, &huge)
        .row_with(2, 1, Stage::Final, &large)
        .row(3, 1, Stage::Final);
    epoch.to(&mut sink).unwrap();
    assert_eq!(seen(&server).into_keys().collect::<Vec<_>>(), [2, 3]);
    let letters = refused(&mut sink);
    assert!(letters.len() == 1 && letters[0]["message"].as_str().unwrap().contains("a request takes"));
}

#[test]
fn wrong_credentials_are_refused_at_the_start_and_waited_for_later() {
    let server = bigquery();
    let mut sink = opened(&server, PATIENT);
    Epoch::rows(0..5, 1, 1).to(&mut sink).unwrap();
    server.demand(Some("secret"));
    server.close_all();
    let said = Epoch::rows(0..5, 2, 2).to(&mut sink);
    let Err(ConnectError::Unavailable(why)) = said else { panic!("{said:?}") };
    names_the_service(&[why], "credentials");
    let said = sink_of(dataset(&server, PATIENT), TableOptions::default()).open(2, None);
    let Err(ConnectError::Config(why)) = said else { panic!("{said:?}") };
    names_the_service(&[why], "are the `credentials` right?");
    server.demand(None);
    patiently(&mut sink, &Epoch::rows(0..5, 2, 2));
    // Only rows are refused: a right that was taken away.
    server.order(Fault::End(UNAUTHENTICATED), 4);
    names_the_service(&patiently(&mut sink, &Epoch::rows(0..5, 3, 3)), "are the `credentials` right?");
    server.refuse_tables(Some((403, "accessDenied")));
    let said = sink_of(dataset(&server, PATIENT), TableOptions::default()).open(2, None);
    assert!(
        matches!(&said, Err(ConnectError::Config(m)) if m.contains("roles/bigquery.dataEditor")),
        "{said:?}"
    );
}

#[test]
fn a_file_of_credentials_that_cannot_be_used_is_named_and_not_shown() {
    let server = bigquery();
    let folder = tempfile::tempdir().unwrap();
    for (name, text, words) in [
        ("none.json", None, "cannot read the credentials"),
        ("text.json", Some("-----BEGIN hush"), "are no JSON"),
        ("kind.json", Some(r#"{"type": "hush"}"#), "its `type` is none of"),
        ("key.json", Some(r#"{"type": "service_account", "private_key": "hush"}"#), "no credentials"),
    ] {
        let path = folder.path().join(name);
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let mut of = dataset(&server, PATIENT);
        of.credentials = CredentialsFrom::File(path);
        let said = sink_of(of, TableOptions::default()).open(1, None);
        let Err(ConnectError::Config(why)) = said else { panic!("{name}: {said:?}") };
        assert!(why.contains(name) && why.contains(words) && !why.contains("hush"), "{why}");
    }
}

#[test]
fn a_schema_that_changes_while_it_runs_is_mended_or_named() {
    let server = bigquery();
    let mut sink = opened(&server, PATIENT);
    Epoch::rows(0..5, 1, 1).to(&mut sink).unwrap();
    let change = |change: &dyn Fn(&mut Vec<serde_json::Value>)| {
        server.replace(TABLE, |t| change(t["schema"]["fields"].as_array_mut().unwrap()));
    };
    // A column that may be null vanishes: it is added again.
    change(&|fields| fields.retain(|f| f["name"] != "reason"));
    patiently(&mut sink, &Epoch::rows(0..5, 2, 2));
    assert!(server.rows(TABLE).iter().all(|r| r["reason"] == "gap"));
    // One is added: nothing to do, and it is noticed.
    change(&|fields| fields.push(serde_json::json!({"name": "note", "type": "STRING", "mode": "NULLABLE"})));
    patiently(&mut sink, &Epoch::rows(0..5, 3, 3));
    patiently(&mut sink, &Epoch::rows(0..5, 4, 4));
    assert_eq!(seen(&server), all(0..5, 4));
    // One gets another type: nobody can mend that.
    change(&|fields| fields[5]["type"] = "STRING".into());
    let said = Epoch::rows(0..5, 5, 5).to(&mut sink);
    let Err(ConnectError::Config(why)) = said else { panic!("{said:?}") };
    names_the_service(&[why], "column `events` is STRING, expected INT64");
    change(&|fields| fields[5]["type"] = "INTEGER".into());
    server.replace(TABLE, |t| t["tableConstraints"] = serde_json::Value::Null);
    let said = Epoch::rows(0..5, 5, 5).to(&mut sink);
    assert!(matches!(&said, Err(ConnectError::Config(m)) if m.contains("ADD PRIMARY KEY")), "{said:?}");
}

#[test]
fn what_will_never_work_ends_it() {
    let server = bigquery();
    let mut sink = opened(&server, PATIENT);
    server.order(Fault::Answer(FAILED_PRECONDITION), 1);
    let said = Epoch::rows(0..5, 1, 1).to(&mut sink);
    assert!(matches!(&said, Err(ConnectError::Failed(m)) if m.contains("FailedPrecondition")), "{said:?}");
    let mut closed = sink_of(dataset(&server, PATIENT), TableOptions::default());
    assert!(
        matches!(Epoch::rows(0..5, 1, 1).to(&mut closed), Err(ConnectError::Failed(m)) if m.contains("not open"))
    );
    assert_eq!(sink.open(2, Some(Cursor::default())).unwrap(), Some(Cursor::default()));
}
