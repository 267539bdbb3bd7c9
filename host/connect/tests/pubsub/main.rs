//! Pub/Sub as source and as sink, against the stand-in of Google's own library and through a proxy that is as bad as a test wants it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod sink;
mod source;

use std::time::{Duration, Instant};
use tidemill_connect::pubsub::{CredentialsFrom, Project};
use tidemill_services::pubsub::PROJECT;

const TIMEOUT: Duration = Duration::from_secs(2);
/// A message whose stream broke comes again when its lease of a minute has run out.
const PATIENCE: Duration = Duration::from_secs(150);

fn project(address: &str) -> Project {
    Project {
        project: PROJECT.to_owned(),
        endpoint: format!("http://{address}"),
        credentials: CredentialsFrom::None,
        timeout: TIMEOUT,
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}
