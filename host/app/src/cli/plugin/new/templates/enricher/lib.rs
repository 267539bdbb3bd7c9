//! An enricher: adds what is known of a visitor to the visitor's sessions.
//!
//! It is a pure function in two steps. `requests` says what it wants to know; the host looks that up, for many sessions at
//! once, each key once, with a cache; `apply` makes fields of what was found. It remembers nothing between sessions.

use tidemill_plugin_sdk::prelude::*;

/// What stands under `config` in a pipeline. `tidemill check` judges it field by field.
#[derive(Config)]
pub struct Rules {
    /// Columns of the visitor's row that become fields.
    #[config(default = vec!["segment".into(), "country".into()])]
    columns: Vec<String>,
}

/// What may be asked. Which file, database or service answers says `lookups` of a pipeline.
#[derive(Lookup, Clone, Copy)]
pub enum Table {
    Visitor,
}

/// The enricher with its config.
#[derive(Debug)]
pub struct Visitors {
    columns: Vec<String>,
}

/// A counter of its own; `tidemill status` shows it.
const UNKNOWN: Metric = Metric::counter("unknown_visitors", "Sessions of visitors without a row");

impl Enricher for Visitors {
    type Config = Rules;
    type Lookup = Table;
    // It refuses no session. An enum that derives `Reason` would say why it does.
    type Reason = ();
    const METRICS: &'static [Metric] = &[UNKNOWN];

    fn configure(rules: Rules) -> Result<Self, Vec<ConfigError>> {
        Ok(Visitors { columns: rules.columns })
    }

    fn requests(&self, session: &Session, ask: &mut Requests<Table>) {
        ask.lookup(Table::Visitor, session.key());
    }

    fn apply(
        &self,
        cx: &mut Enriching<Self>,
        _: &Session,
        answers: &Answers<Table>,
    ) -> Result<Fields, Rejected<()>> {
        // "There is no such row" is an answer too; a lookup that failed is none.
        if answers.row(Table::Visitor).is_none() && !answers.failed(Table::Visitor) {
            cx.count(UNKNOWN, 1);
        }
        let mut fields = Fields::default();
        for column in &self.columns {
            if let Some(value) = answers.field(Table::Visitor, column) {
                fields.put(column, value);
            }
        }
        Ok(fields)
    }
}

tidemill_plugin_sdk::export!(enricher Visitors);
