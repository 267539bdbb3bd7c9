//! Kafka as a source and as a sink, against a real broker that the tests start (`tidemill-services`).
//!
//! `world` is the other side: topics, producers and readers that share no code with what is tested. Without Java or the
//! broker's libraries each test says why it is skipped and passes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod login;
mod sink;
mod source;
mod world;
