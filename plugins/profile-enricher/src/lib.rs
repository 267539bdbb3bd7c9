//! Adds what is known of the visitor and of the campaign to a session: `visitor_…` and `campaign_…` fields.

use tidemill_plugin_sdk::prelude::*;

/// The config.
#[derive(Config)]
pub struct Rules {
    /// Columns of the lookup `visitor` to add.
    #[config(default = vec!["segment".into(), "country".into()])]
    visitor: Vec<String>,
    /// Columns of the lookup `campaign` to add.
    #[config(default = vec!["channel".into(), "budget".into()])]
    campaign: Vec<String>,
    /// The session's field that names the campaign.
    #[config(default = "campaign".into())]
    campaign_field: String,
}

/// The lookups.
#[derive(Lookup, Clone, Copy)]
pub enum Table {
    /// By the session's key.
    Visitor,
    /// By the campaign that the session rule found.
    Campaign,
}

/// The enricher.
#[derive(Debug)]
pub struct Profile {
    visitor: Vec<String>,
    campaign: Vec<String>,
    campaign_field: String,
}

const UNKNOWN: Metric = Metric::counter("unknown_visitors", "Sessions of visitors that have no row");

impl Enricher for Profile {
    type Config = Rules;
    type Lookup = Table;
    type Reason = ();
    const METRICS: &'static [Metric] = &[UNKNOWN];

    fn configure(rules: Rules) -> Result<Self, Vec<ConfigError>> {
        let Rules { visitor, campaign, campaign_field } = rules;
        Ok(Profile { visitor, campaign, campaign_field })
    }

    fn requests(&self, session: &Session, ask: &mut Requests<Table>) {
        ask.lookup(Table::Visitor, session.key());
        ask.lookup(Table::Campaign, session.text(&self.campaign_field));
    }

    fn apply(
        &self,
        cx: &mut Enriching<Self>,
        _: &Session,
        answers: &Answers<Table>,
    ) -> Result<Fields, Rejected<()>> {
        if answers.row(Table::Visitor).is_none() && !answers.failed(Table::Visitor) {
            cx.count(UNKNOWN, 1);
        }
        let mut fields = Fields::default();
        for (table, prefix, columns) in
            [(Table::Visitor, "visitor", &self.visitor), (Table::Campaign, "campaign", &self.campaign)]
        {
            for column in columns {
                if let Some(value) = answers.field(table, column) {
                    fields.put(&format!("{prefix}_{column}"), value);
                }
            }
        }
        Ok(fields)
    }
}

tidemill_plugin_sdk::export!(enricher Profile);
