//! An enricher that does at some sessions what no enricher should; the session's key says what.

#![allow(clippy::panic, reason = "that is what it is for")]

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

/// The enricher.
#[derive(Debug)]
pub struct Rude;

impl Enricher for Rude {
    type Config = ();
    type Lookup = Table;
    type Reason = Why;

    fn configure((): ()) -> Result<Self, Vec<ConfigError>> {
        Ok(Rude)
    }

    fn requests(&self, session: &Session, ask: &mut Requests<Table>) {
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
