//! Real services for tests: fetched once, started on free ports of this machine, stopped with the test.
//!
//! `kafka` and `postgres` start servers, `bigtable` and `pubsub` stand-ins of Google's own, `bigquery` and `objects` are services within the process, `proxy`
//! stands between a client and a service and is as bad as a test wants it. Shares no code with the host and knows no client: it is the other side of what is tested.
//!
//! Where a service cannot be had (no Java, no Go, no artifacts), tests that ask for it say why in one line and pass, unless
//! `TIDEMILL_REQUIRE_SERVICES` wants it. A service that is there and does not start is a failure always.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "tests")]

mod artifacts;
#[cfg(feature = "bigquery")]
pub mod bigquery;
#[cfg(feature = "bigquery")]
pub mod bigtable;
#[cfg(feature = "bigquery")]
mod go;
pub mod kafka;
#[cfg(feature = "objects")]
pub mod objects;
pub mod postgres;
pub mod proxy;
#[cfg(feature = "bigquery")]
pub mod pubsub;

/// Why a service is not there.
#[derive(Debug)]
pub enum Absent {
    /// This machine lacks what it needs.
    Missing(String),
    /// It has what it needs, and the service did not start.
    Broken(String),
}

/// Whether `TIDEMILL_REQUIRE_SERVICES` wants this service: it is 1 for all, or names those that have to be there, with commas
/// between.
#[must_use]
pub fn is_required(name: &str) -> bool {
    std::env::var("TIDEMILL_REQUIRE_SERVICES")
        .is_ok_and(|v| v == "1" || v.split(',').any(|n| n.trim().eq_ignore_ascii_case(name)))
}

/// The service, or `None` where the machine lacks what it needs and nobody insists.
///
/// # Panics
/// If the service is broken, or missing although it [is required](is_required).
pub fn or_skip<T>(name: &str, started: Result<T, Absent>) -> Option<T> {
    let required = is_required(name);
    match started {
        Ok(service) => Some(service),
        Err(Absent::Missing(why)) if !required => {
            eprintln!("skipped: no {name} here: {why}");
            None
        }
        Err(Absent::Missing(why) | Absent::Broken(why)) => panic!("{name}: {why}"),
    }
}
