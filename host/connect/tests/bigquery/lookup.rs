//! Tables and queries kept whole: what they have, what serves while they are read again, and what becomes of it when that fails.

use super::world::{IMPATIENT, PATIENT, bigquery, dataset};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidemill_connect::ConnectError;
use tidemill_connect::bigquery::Dataset;
use tidemill_connect::lookup::bigquery::{BigQueryProvider, What};
use tidemill_connect::lookup::{Fetched, LookupError, Provider as _};
use tidemill_services::bigquery::{BigQuery, PAGE_ROWS};

const TABLE: &str = "projects/p/datasets/clicks/tables/products";
/// With two without a key: four pages.
const ROWS: u64 = PAGE_ROWS as u64 * 3 + 7;
/// Longer than any test, and no time at all.
const NEVER: Duration = Duration::from_secs(3_600);
const AT_ONCE: Duration = Duration::ZERO;

fn server() -> BigQuery {
    let server = bigquery();
    let resource = json!({
        "tableReference": {"projectId": "p", "datasetId": "clicks", "tableId": "products"},
        "schema": {"fields": [
            {"name": "id", "type": "INT64"},
            {"name": "name", "type": "STRING"},
            {"name": "price", "type": "FLOAT64"},
            {"name": "seen", "type": "TIMESTAMP"},
        ]},
    });
    let (status, said) = server.ask("POST", "/bigquery/v2/projects/p/datasets/clicks/tables", resource);
    assert_eq!(status, 200, "{said}");
    fill(&server, 1);
    server
}

/// The rows of a version: each says which.
fn fill(server: &BigQuery, version: u64) {
    let row = |n: u64| -> Map<String, Value> {
        let row = json!({"id": n, "name": format!("v{version}"), "price": n as f64 / 4.0, "seen": 1_700_000_000_000_000_i64});
        row.as_object().unwrap().clone()
    };
    // Rows without a key are nobody's, however many there are.
    let nobody = || json!({"name": "nobody"}).as_object().unwrap().clone();
    server.load(TABLE, [nobody(), nobody()].into_iter().chain((0..ROWS).map(row)).collect());
}

fn expected(n: u64, version: u64) -> Value {
    json!({"id": n, "name": format!("v{version}"), "price": n as f64 / 4.0, "seen": "2023-11-14T22:13:20Z"})
}

fn provider_of(dataset: &Dataset, what: What, refresh: Duration) -> BigQueryProvider {
    BigQueryProvider::new(dataset, what, "id".into(), refresh).unwrap()
}

fn table() -> What {
    What::Table("products".into())
}

fn provider(server: &BigQuery, refresh: Duration) -> BigQueryProvider {
    provider_of(&dataset(server, PATIENT), table(), refresh)
}

fn keys(range: impl IntoIterator<Item = u64>) -> Vec<Arc<str>> {
    range.into_iter().map(|n| Arc::from(n.to_string())).collect()
}

fn shown(fetched: &Fetched) -> Option<Value> {
    fetched.as_ref().unwrap().as_ref().map(|row| serde_json::from_str(row).unwrap())
}

/// All rows are there, and all of one version.
#[track_caller]
fn all_of(provider: &BigQueryProvider, version: u64) {
    let rows = provider.fetch(&keys(0..ROWS + 3), PATIENT).unwrap();
    let wanted = (0..ROWS + 3).map(|n| (n < ROWS).then(|| expected(n, version)));
    assert_eq!(rows.iter().map(shown).collect::<Vec<_>>(), wanted.collect::<Vec<_>>());
}

/// Looks, as a pipeline does every second, until this holds.
#[track_caller]
fn look_until(provider: &BigQueryProvider, what: &str, mut holds: impl FnMut(bool) -> bool) {
    let begun = Instant::now();
    while !holds(provider.look()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}: {:?}", provider.trouble());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn rows_are_what_a_table_and_a_query_have() {
    let server = server();
    server.queries_run_for(3);
    for what in [table(), What::Query("SELECT * FROM products;".into())] {
        let provider = provider_of(&dataset(&server, PATIENT), what, NEVER);
        provider.probe().unwrap();
        assert_eq!(provider.read_at(), None, "nothing is read before it is asked for");
        all_of(&provider, 1);
        assert!(provider.read_at().is_some() && provider.trouble().is_none());
        // Kept: nothing more is asked.
        let pages = server.pages();
        fill(&server, 2);
        assert!(!provider.look());
        all_of(&provider, 1);
        assert_eq!(server.pages(), pages);
        fill(&server, 1);
    }
}

#[test]
fn the_old_table_serves_until_the_new_one_is_whole() {
    let server = server();
    let provider = provider(&server, AT_ONCE);
    all_of(&provider, 1);
    let (mut version, mut read_at) = (1, provider.read_at());
    for _ in 0..3 {
        fill(&server, version + 1);
        // Slow enough to be seen in the middle.
        server.delay_tables(20);
        let pages = server.pages();
        look_until(&provider, "the new table", |is_new| {
            let of_row = shown(&provider.fetch(&keys([7]), PATIENT).unwrap()[0]).unwrap();
            let rows = [version, version + 1].map(|v| expected(7, v));
            assert!(rows.contains(&of_row), "{of_row}");
            is_new && of_row == rows[1]
        });
        assert!(server.pages() > pages + 3);
        version += 1;
        server.delay_tables(0);
        assert!(provider.read_at() > read_at, "its age is that of the new one");
        read_at = provider.read_at();
        all_of(&provider, version);
    }
}

/// Rows of two versions never stand side by side, though the table changes between its pages.
#[test]
fn a_table_that_changes_while_it_is_read_is_read_anew() {
    let server = server();
    server.delay_tables(10);
    let provider = provider(&server, NEVER);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| all_of(&provider, 2));
        let begun = Instant::now();
        while server.pages() < 2 {
            assert!(begun.elapsed() < PATIENT);
            std::thread::yield_now();
        }
        fill(&server, 2);
        first.join().unwrap();
    });
    assert!(server.pages() > ROWS.div_ceil(PAGE_ROWS as u64), "{} pages", server.pages());
}

#[test]
fn a_service_that_is_down_at_the_start_is_tried_again() {
    let server = server();
    server.down(true);
    let provider = provider(&server, NEVER);
    for _ in 0..2 {
        let said = provider.fetch(&keys([1]), PATIENT);
        assert!(
            matches!(&said, Err(LookupError::Unavailable(m)) if m.contains(&server.address())),
            "{said:?}"
        );
    }
    assert!(provider.trouble().unwrap().contains("BigQuery at"));
    assert!(matches!(provider.probe(), Err(ConnectError::Unavailable(_))));
    server.down(false);
    look_until(&provider, "its return", |_| provider.trouble().is_none() && provider.read_at().is_some());
    all_of(&provider, 1);
}

/// Whatever ends the reading, and wherever: the table before serves on, whole, and it is said why.
#[test]
fn a_refresh_that_fails_leaves_what_was_there_and_is_tried_again() {
    let server = server();
    let provider = provider(&server, AT_ONCE);
    all_of(&provider, 1);
    let faults = [
        (0, 503, "backendError", "(503 backendError)"),
        (2, 500, "internalError", "(500 internalError)"),
        (1, 403, "rateLimitExceeded", "(403 rateLimitExceeded)"),
        (1, 403, "accessDenied", "grant `roles/bigquery.dataViewer`"),
        (3, 404, "notFound", "create it, or name another"),
        (2, 401, "authError", "are the `credentials` right?"),
    ];
    for (version, (after, status, reason, words)) in (1..).zip(faults) {
        server.refuse_pages(Some((after, status, reason)));
        fill(&server, version + 1);
        look_until(&provider, words, |_| {
            all_of(&provider, version);
            provider.trouble().is_some_and(|why| why.contains(words))
        });
        let why = provider.trouble().unwrap();
        assert!(
            why.contains("BigQuery at 127.0.0.1:") && why.contains("its content before is used"),
            "{why}"
        );
        server.refuse_pages(None);
        look_until(&provider, "its return", |_| {
            let of_row = shown(&provider.fetch(&keys([7]), PATIENT).unwrap()[0]).unwrap();
            provider.trouble().is_none() && of_row == expected(7, version + 1)
        });
    }
}

#[test]
fn a_service_that_dies_or_falls_silent_in_the_middle_leaves_what_was_there() {
    let server = server();
    let provider = provider_of(&dataset(&server, IMPATIENT), table(), AT_ONCE);
    all_of(&provider, 1);
    fill(&server, 2);
    server.delay_tables(100);
    server.down(true);
    look_until(&provider, "its absence", |_| provider.trouble().is_some());
    all_of(&provider, 1);
    server.down(false);
    server.delay_tables(1_000);
    look_until(&provider, "its silence", |_| {
        provider.trouble().is_some_and(|why| why.contains("no answer in time"))
    });
    all_of(&provider, 1);
    server.delay_tables(0);
    look_until(&provider, "its return", |_| provider.trouble().is_none());
    look_until(&provider, "the new table", |_| {
        shown(&provider.fetch(&keys([7]), PATIENT).unwrap()[0]) == Some(expected(7, 2))
    });
}

/// Slow is no failure; but who asks waits no longer than a call may take.
#[test]
fn the_first_table_is_waited_for_as_long_as_a_call_may_take() {
    let server = server();
    server.delay_tables(100);
    let provider = provider(&server, NEVER);
    let said = provider.fetch(&keys([1]), Duration::from_millis(20));
    assert!(matches!(&said, Err(LookupError::Unavailable(m)) if m.contains("still being read")), "{said:?}");
    all_of(&provider, 1);
    assert_eq!(server.pages(), ROWS.div_ceil(PAGE_ROWS as u64), "it was read once");
}

#[test]
fn a_schema_that_changes_is_used_or_named() {
    let server = server();
    let provider = provider(&server, AT_ONCE);
    all_of(&provider, 1);
    let change = |change: &dyn Fn(&mut Vec<Value>)| {
        server.replace(TABLE, |t| change(t["schema"]["fields"].as_array_mut().unwrap()));
    };
    // A column more.
    change(&|fields| fields.push(json!({"name": "note", "type": "STRING", "mode": "NULLABLE"})));
    look_until(&provider, "the new column", |_| {
        shown(&provider.fetch(&keys([7]), PATIENT).unwrap()[0]).unwrap().get("note") == Some(&Value::Null)
    });
    change(&|fields| fields[0]["name"] = "number".into());
    let words = "there is no column `id`; its columns are number, name, price, seen, note";
    look_until(&provider, words, |_| provider.trouble().is_some_and(|why| why.contains(words)));
    assert!(matches!(provider.probe(), Err(ConnectError::Config(why)) if why.contains(words)));
    assert!(shown(&provider.fetch(&keys([7]), PATIENT).unwrap()[0]).is_some());
    change(&|fields| fields[0] = json!({"name": "id", "type": "FLOAT", "mode": "NULLABLE"}));
    let words = "the column `id` cannot be a key";
    look_until(&provider, words, |_| provider.trouble().is_some_and(|why| why.contains(words)));
    change(&|fields| fields[0]["type"] = "INTEGER".into());
    let row = |n: u64| json!({"id": n}).as_object().unwrap().clone();
    server.load(TABLE, vec![row(1), row(2), row(1)]);
    let words = "the key `1` stands in more than one row";
    look_until(&provider, words, |_| provider.trouble().is_some_and(|why| why.contains(words)));
    // A view has no rows of its own.
    server.replace(TABLE, |t| t["type"] = "VIEW".into());
    let words = "write a `query` of it";
    look_until(&provider, words, |_| provider.trouble().is_some_and(|why| why.contains(words)));
    server.drop_table(TABLE);
    let words = "there is no such table";
    look_until(&provider, words, |_| provider.trouble().is_some_and(|why| why.contains(words)));
    assert!(shown(&provider.fetch(&keys([7]), PATIENT).unwrap()[0]).is_some(), "the last good one serves");
}

#[test]
fn a_query_that_is_wrong_says_so() {
    let server = server();
    let provider = provider_of(&dataset(&server, PATIENT), What::Query("SELEKT".into()), NEVER);
    assert!(matches!(provider.probe(), Err(ConnectError::Config(why)) if why.contains("Syntax error")));
    let said = provider.fetch(&keys([1]), PATIENT);
    assert!(matches!(&said, Err(LookupError::Refused(m)) if m.contains("Syntax error")), "{said:?}");
}
