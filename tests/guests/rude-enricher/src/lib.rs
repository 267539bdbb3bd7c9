//! An enricher that does at some sessions what no enricher should; the session's key says what.

#![allow(clippy::panic, reason = "that is what it is for")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use tidemill_plugin_sdk::prelude::*;

/// The one lookup.
#[derive(Lookup, Clone, Copy)]
pub enum Table {
    /// By the session's key.
    Visitor,
}

/// Why a session is rejected.
#[derive(Reason, Clone, Copy)]
pub enum Why {
    /// Its key says so.
    Unwanted,
}

/// What the plugin keeps between calls, or looks at besides its input.
#[derive(Config, PartialEq, Eq, Clone, Copy, Debug)]
pub enum Memory {
    /// Nothing.
    None,
    /// How many sessions the instance was asked about.
    Asked,
    /// How many sessions the instance has answered.
    Answered,
    /// The first key that the instance saw: it panics at any other.
    Company,
}

/// The config.
#[derive(Config, Debug)]
pub struct Rules {
    /// What is in its answers that must not be.
    #[config(default = Memory::None)]
    memory: Memory,
}

/// The enricher.
#[derive(Debug)]
pub struct Rude {
    memory: Memory,
}

static SESSIONS: AtomicU64 = AtomicU64::new(0);
static FIRST: OnceLock<String> = OnceLock::new();

impl Enricher for Rude {
    type Config = Rules;
    type Lookup = Table;
    type Reason = Why;

    fn configure(rules: Rules) -> Result<Self, Vec<ConfigError>> {
        Ok(Rude { memory: rules.memory })
    }

    fn requests(&self, session: &Session, ask: &mut Requests<Table>) {
        if self.memory == Memory::Asked {
            ask.lookup(Table::Visitor, &SESSIONS.fetch_add(1, Ordering::Relaxed).to_string());
        }
        match session.key() {
            "trap-in-requests" => panic!("I will not ask"),
            "too-many" => (0..17).for_each(|n| ask.lookup(Table::Visitor, &format!("k{n}"))),
            key => ask.lookup(Table::Visitor, key),
        }
    }

    fn apply(
        &self,
        _: &mut Enriching<Self>,
        session: &Session,
        _: &Answers<Table>,
    ) -> Result<Fields, Rejected<Why>> {
        if self.memory == Memory::Answered {
            return Ok(fields! { seen: SESSIONS.fetch_add(1, Ordering::Relaxed) });
        }
        if self.memory == Memory::Company {
            let first = FIRST.get_or_init(|| session.key().to_owned());
            assert!(first == session.key(), "it is used to {first}");
        }
        match session.key() {
            "trap-in-apply" => panic!("I will not answer"),
            "endless" => loop {
                std::hint::black_box(());
            },
            "unwanted" => Err(Rejected { reason: Why::Unwanted, message: "".into() }),
            "huge" => Ok(fields! { huge: "x".repeat(70_000) }),
            // What an earlier enricher found is there to be read.
            _ => Ok(fields! { rude: session.text("visitor_segment") }),
        }
    }
}

tidemill_plugin_sdk::export!(enricher Rude);
