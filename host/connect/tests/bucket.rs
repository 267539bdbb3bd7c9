//! Object stores as they answer and as they fail: S3 and Cloud Storage by the XML API that both have, over real sockets.
//!
//! The bug family: an object that was replaced; a listing of which only the first page was read; a write that was made and not
//! answered, which is then taken for somebody else's; credentials that are refused and tried for ever.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::{Duration, Instant};
use tidemill_connect::ConnectError;
use tidemill_connect::bucket::{Bucket, Location};
use tidemill_services::objects::{ObjectFault, Objects};

const KEY: &str = "AKIDEXAMPLE";

fn s3(server: &Objects) -> Bucket {
    let options = [
        ("endpoint", server.endpoint()),
        ("region", "eu-west-1".to_owned()),
        ("allow_http", "true".to_owned()),
        ("access_key_id", KEY.to_owned()),
        ("secret_access_key", "hush".to_owned()),
    ];
    open("s3://clicks/tidemill/a", &options)
}

fn cloud_storage(server: &Objects) -> Bucket {
    let key = serde_json::json!({
        "gcs_base_url": server.endpoint(), "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""
    });
    open("gs://clicks/tidemill/a", &[("service_account_key", key.to_string())])
}

fn open(url: &str, options: &[(&str, String)]) -> Bucket {
    let options = options.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Location::new(url, options).unwrap().open().unwrap()
}

fn both(check: impl Fn(&Objects, &Bucket)) {
    for client in [s3, cloud_storage] {
        let server = Objects::start();
        check(&server, &client(&server));
    }
}

#[test]
fn objects_are_written_once_listed_over_pages_and_deleted() {
    both(|server, bucket| {
        assert_eq!(bucket.get("parts/none").unwrap(), None);
        assert_eq!(bucket.list("parts").unwrap(), [""; 0]);
        let names: Vec<String> = (0..23).map(|n| format!("{n:02}")).collect();
        for name in names.iter().rev() {
            assert!(bucket.put_new(&format!("parts/{name}"), name.clone().into_bytes()).unwrap());
        }
        assert!(bucket.put_new("partsandmore/1", b"other".to_vec()).unwrap());
        assert!(!bucket.put_new("parts/07", b"another".to_vec()).unwrap(), "it is there");
        assert_eq!(bucket.get("parts/07").unwrap().unwrap(), b"07");
        assert_eq!(bucket.list("parts").unwrap(), names);
        assert_eq!(server.object("clicks/tidemill/a/parts/07").unwrap(), b"07", "{:?}", server.names());
        for name in ["parts/07", "parts/07", "parts/none"] {
            bucket.delete(name).unwrap();
        }
        assert_eq!(bucket.list("parts").unwrap().len(), 22);
        assert_eq!(bucket.list("").unwrap().len(), 23);
    });
}

#[test]
fn what_throttles_or_breaks_in_passing_is_tried_again() {
    both(|server, bucket| {
        for fault in [ObjectFault::Throttled, ObjectFault::Broken, ObjectFault::Late(50)] {
            server.order(fault);
            assert!(bucket.put_new(&format!("{fault:?}"), b"x".to_vec()).unwrap());
            server.order(fault);
            assert_eq!(bucket.get(&format!("{fault:?}")).unwrap().unwrap(), b"x");
            server.order(fault);
            assert!(!bucket.list("").unwrap().is_empty());
            server.order(fault);
            bucket.delete("none").unwrap();
        }
        assert_eq!(server.met(), 12);
    });
}

/// The client says that it was there already or that nobody knows: both are true, and neither is a loss.
#[test]
fn a_write_that_was_made_and_not_answered_is_found() {
    both(|server, bucket| {
        server.order(ObjectFault::Unanswered);
        match bucket.put_new("a", b"mine".to_vec()) {
            Ok(_) | Err(ConnectError::Unavailable(_)) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(bucket.get("a").unwrap().unwrap(), b"mine");
        assert!(!bucket.put_new("a", b"another's".to_vec()).unwrap());
    });
}

#[test]
fn who_is_refused_is_told_so_and_not_tried_again() {
    let server = Objects::start();
    server.demand(Some("SOMEBODYELSE"));
    let bucket = s3(&server);
    let begun = Instant::now();
    let errors = [
        bucket.put_new("a", b"x".to_vec()).unwrap_err(),
        bucket.get("a").unwrap_err(),
        bucket.list("a").unwrap_err(),
        bucket.delete("a").unwrap_err(),
    ];
    for e in errors {
        assert!(
            matches!(&e, ConnectError::Config(why) if why.starts_with("s3://clicks/tidemill/a: cannot")),
            "{e:?}"
        );
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    server.demand(Some(KEY));
    assert!(bucket.put_new("a", b"x".to_vec()).unwrap());
    assert_eq!(server.names(), ["clicks/tidemill/a/a"]);
}

#[test]
fn one_that_is_down_is_unavailable_and_used_again_when_it_is_back() {
    both(|server, bucket| {
        assert!(bucket.put_new("a", b"x".to_vec()).unwrap());
        server.down(true);
        let e = bucket.get("a").unwrap_err();
        assert!(matches!(&e, ConnectError::Unavailable(why) if why.contains("cannot read a")), "{e:?}");
        server.down(false);
        assert_eq!(bucket.get("a").unwrap().unwrap(), b"x");
    });
}
