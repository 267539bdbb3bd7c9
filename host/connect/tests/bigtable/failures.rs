//! What may become of a call. `docs/bigtable.md` has a table of it.

use super::{PATIENT, TABLE, cell, columns, fill, keys, provider, right};
use std::time::{Duration, Instant};
use tidemill_connect::ConnectError;
use tidemill_connect::lookup::{Fetched, LookupError, Provider as _};
use tidemill_services::bigtable::{DENIED, Fault, THROTTLED, UNAVAILABLE, bigtable};
use tidemill_services::proxy::Proxy;

/// Where something is to come too late.
const IMPATIENT: Duration = Duration::from_millis(300);

/// It may work later; and the service is named.
#[track_caller]
fn later(said: &Result<Vec<Fetched>, LookupError>, words: &str) {
    let named = |m: &str| {
        m.contains("Bigtable at 127.0.0.1:") && m.contains("projects/p/instances/i/tables/visitors")
    };
    assert!(
        matches!(said, Err(LookupError::Unavailable(m)) if named(m) && m.contains(words)),
        "{words}: {said:?}"
    );
}

#[track_caller]
fn refused(said: &Result<Vec<Fetched>, LookupError>, words: &str) {
    let named = |m: &str| m.contains("Bigtable at 127.0.0.1:") && m.contains(words);
    assert!(matches!(said, Err(LookupError::Refused(m)) if named(m)), "{words}: {said:?}");
}

#[test]
fn a_service_that_is_down_at_the_start_is_asked_again() {
    let Some(server) = bigtable() else { return };
    fill(&server);
    server.stop();
    let provider = provider(server.address(), columns());
    for _ in 0..3 {
        later(&provider.fetch(&keys(0..10), PATIENT), "no connection");
    }
    assert!(
        matches!(provider.probe(PATIENT), Err(ConnectError::Unavailable(m)) if m.contains("no connection"))
    );
    server.start_again().unwrap();
    right(&provider.fetch(&keys(0..10), PATIENT).unwrap(), 0..10);
}

#[test]
fn a_service_that_dies_in_the_middle_is_asked_again() {
    let Some(server) = bigtable() else { return };
    fill(&server);
    let provider = provider(server.address(), columns());
    for _ in 0..3 {
        right(&provider.fetch(&keys(0..10), PATIENT).unwrap(), 0..10);
        // While a call is under way.
        server.meet(&Fault { delay_ms: 60_000, ..Fault::default() });
        let said = std::thread::scope(|scope| {
            let call = scope.spawn(|| provider.fetch(&keys(0..10), PATIENT));
            // It may die before it was asked: then that is what is said.
            server.stop();
            call.join().unwrap()
        });
        later(&said, "");
        later(&provider.fetch(&keys(0..10), PATIENT), "no connection");
        server.start_again().unwrap();
    }
    right(&provider.fetch(&keys(0..10), PATIENT).unwrap(), 0..10);
}

/// Broken off with a code, or as if that were all: rows that had come before are not taken for the whole answer.
#[test]
fn half_an_answer_is_none() {
    let Some(server) = bigtable() else { return };
    fill(&server);
    let provider = provider(server.address(), columns());
    for rows in [0, 1, 20] {
        server.meet(&Fault { code: UNAVAILABLE, after_rows: Some(rows), times: 1, ..Fault::default() });
        later(&provider.fetch(&keys(1..100), PATIENT), "as the test wants it (Unavailable)");
        right(&provider.fetch(&keys(1..100), PATIENT).unwrap(), 1..100);
        server.meet(&Fault { after_rows: Some(rows), times: 1, ..Fault::default() });
        refused(&provider.fetch(&keys(1..100), PATIENT), "in the middle of a row");
        right(&provider.fetch(&keys(1..100), PATIENT).unwrap(), 1..100);
    }
    assert_eq!(server.counts().met, 6);
}

/// Cut after any number of bytes of what the client says, and so anywhere in what it is told.
#[test]
fn a_connection_that_is_cut_anywhere_is_left() {
    let Some(server) = bigtable() else { return };
    fill(&server);
    let proxy = Proxy::to(server.address());
    let provider = provider(&proxy.address(), columns());
    for n in 1..=20 {
        proxy.cut_after(Some(n * n * 3));
        // The bytes add up over calls, so that some succeed.
        for _ in 0..20 {
            match provider.fetch(&keys(0..20), PATIENT) {
                Ok(rows) => right(&rows, 0..20),
                said => later(&said, ""),
            }
        }
        proxy.cut_after(None);
        let begun = Instant::now();
        let rows = loop {
            match provider.fetch(&keys(0..20), PATIENT) {
                Ok(rows) => break rows,
                said => later(&said, ""),
            }
            assert!(begun.elapsed() < PATIENT, "it does not come back");
        };
        right(&rows, 0..20);
    }
    assert!(proxy.cut() >= 20, "only {} connections were cut", proxy.cut());
}

#[test]
fn an_answer_that_comes_too_late_or_never_is_not_waited_for() {
    let Some(server) = bigtable() else { return };
    fill(&server);
    let proxy = Proxy::to(server.address());
    let provider = provider(&proxy.address(), columns());
    right(&provider.fetch(&keys(0..10), PATIENT).unwrap(), 0..10);
    server.meet(&Fault { delay_ms: 1_000, ..Fault::default() });
    let begun = Instant::now();
    later(&provider.fetch(&keys(0..10), IMPATIENT), "no answer within 300ms");
    assert!(begun.elapsed() < Duration::from_secs(10));
    // Slow and within its time is no failure.
    right(&provider.fetch(&keys(0..10), PATIENT).unwrap(), 0..10);
    server.meet(&Fault::default());
    // Nothing passes and nothing is closed: what was said is never heard, and a new connection is made afterwards.
    proxy.hold(true);
    later(&provider.fetch(&keys(0..10), IMPATIENT), "no answer within 300ms");
    later(&provider.fetch(&keys(0..10), IMPATIENT), "");
    proxy.hold(false);
    right(&provider.fetch(&keys(0..10), PATIENT).unwrap(), 0..10);
    assert!(proxy.connections() >= 2, "{} connections", proxy.connections());
}

#[test]
fn a_service_that_throttles_keeps_its_connection() {
    let Some(server) = bigtable() else { return };
    fill(&server);
    let proxy = Proxy::to(server.address());
    let provider = provider(&proxy.address(), columns());
    server.meet(&Fault { code: THROTTLED, times: 3, ..Fault::default() });
    for _ in 0..3 {
        later(&provider.fetch(&keys(0..10), PATIENT), "(ResourceExhausted)");
    }
    right(&provider.fetch(&keys(0..10), PATIENT).unwrap(), 0..10);
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn refused_credentials_say_what_to_do() {
    let Some(server) = bigtable() else { return };
    fill(&server);
    let provider = provider(server.address(), columns());
    server.meet(&Fault { token: Some("hush".into()), ..Fault::default() });
    let said = provider.fetch(&keys(0..10), PATIENT);
    refused(&said, "are the `credentials` right?");
    assert!(!format!("{said:?}").contains("hush"));
    assert!(matches!(provider.probe(PATIENT), Err(ConnectError::Config(m)) if m.contains("`credentials`")));
    server.meet(&Fault { code: DENIED, ..Fault::default() });
    refused(&provider.fetch(&keys(0..10), PATIENT), "grant `roles/bigtable.reader`");
    // Who was refused may be let in again.
    server.meet(&Fault::default());
    right(&provider.fetch(&keys(0..10), PATIENT).unwrap(), 0..10);
}

#[test]
fn a_schema_that_changes_is_named_or_shows_as_null() {
    let Some(server) = bigtable() else { return };
    fill(&server);
    let provider = provider(server.address(), columns());
    provider.probe(PATIENT).unwrap();
    // One row has what is no number: it costs that row.
    let mut text = cell(3, "stats", "visits", "many");
    text.micros = 3_000_000;
    server.put(TABLE, &[text]);
    let rows = provider.fetch(&keys(1..6), PATIENT).unwrap();
    let words = "the row `v#3` has no 8 bytes in stats:visits";
    assert!(matches!(&rows[2], Err(LookupError::Unusable(m)) if m.contains(words)), "{:?}", rows[2]);
    right(&rows[..2], 1..3);
    right(&rows[3..], 4..6);
    // A family that is gone has no cells.
    server.drop_family(TABLE, "stats");
    let rows = provider.fetch(&keys(1..6), PATIENT).unwrap();
    for (row, n) in rows.iter().zip(1..) {
        let mut wanted = super::expected(n).unwrap();
        wanted["visits"] = serde_json::Value::Null;
        assert_eq!(super::shown(row), Some(wanted));
    }
    server.drop_table(TABLE);
    refused(&provider.fetch(&keys(1..6), PATIENT), "(NotFound); create it, or name another");
    assert!(matches!(provider.probe(PATIENT), Err(ConnectError::Config(m)) if m.contains("NotFound")));
}

/// Several calls at a time share one connection, and each has its own rows.
#[test]
fn calls_at_a_time_do_not_mix() {
    let Some(server) = bigtable() else { return };
    fill(&server);
    let proxy = Proxy::to(server.address());
    let provider = provider(&proxy.address(), columns());
    right(&provider.fetch(&keys(0..1), PATIENT).unwrap(), 0..1);
    std::thread::scope(|scope| {
        for t in 0..8 {
            let provider = &provider;
            scope.spawn(move || {
                for n in 0..20 {
                    let from = (t * 61 + n * 17) % 400;
                    right(&provider.fetch(&keys(from..from + 40), PATIENT).unwrap(), from..from + 40);
                }
            });
        }
    });
    assert_eq!(proxy.connections(), 1);
}
