//! BigQuery as a sink and as a side input, against one within the test's process (`tidemill-services`): each way to fail, and what becomes of the table.
//!
//! The bug family: rows that are lost or overwritten by older ones because an answer was lost, came late or was half a yes; one bad
//! row that keeps all others; a sink that ends where it need only wait, or waits for what will never be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod failures;
mod lookup;
mod python;
mod table;
mod world;
