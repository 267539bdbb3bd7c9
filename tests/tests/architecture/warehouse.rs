//! Where sessions go in the end: one at a time of what an architecture may have there.

use tidemill_services::bigquery::{BigQuery as Service, Fault, Row as Cells};
use tidemill_services::postgres::{self, Database, PASSWORD, USER};
use tidemill_services::proxy::Proxy;
use tidemill_tests::postgres::table;
use tidemill_tests::{Case, Stored, bigquery};

/// A table of sessions and the service that has it.
pub(crate) trait Warehouse {
    /// What reports call it.
    fn name(&self) -> &'static str;
    /// The config's sink `table`.
    fn sink(&self, case: &Case) -> String;
    /// Events in the sessions that readers see.
    fn events(&self) -> u64;
    /// Sessions that readers see and that are certain, without those of a key.
    fn certain(&self, but: &str) -> u64;
    /// What readers see, retracted sessions too.
    fn rows(&self) -> Vec<Stored>;
    /// From now on the stream breaks under the rows.
    fn break_off(&self);
    /// It need not break any more.
    fn mend(&self);
}

const TABLE: &str = "projects/p/datasets/clicks/tables/sessions";

/// BigQuery, within this process.
pub(crate) struct BigQuery(Service);

impl BigQuery {
    pub(crate) fn start() -> BigQuery {
        BigQuery(Service::start("p", "clicks", "EU"))
    }
}

fn is_certain(stage: &str) -> bool {
    matches!(stage, "final" | "corrected")
}

impl Warehouse for BigQuery {
    fn name(&self) -> &'static str {
        "BigQuery"
    }
    fn sink(&self, _: &Case) -> String {
        bigquery::sink(&self.0, "table", "sessions", "credentials = \"none\"\ntimeout = \"5s\"")
    }
    fn events(&self) -> u64 {
        let of =
            |row: &Cells| if row["stage"] == "retracted" { 0 } else { row["events"].as_u64().unwrap_or(0) };
        self.0.sum(TABLE, of)
    }
    fn certain(&self, but: &str) -> u64 {
        let of = |row: &Cells| row["stage"].as_str().is_some_and(is_certain) && row["key"] != but;
        self.0.sum(TABLE, |row| u64::from(of(row)))
    }
    fn rows(&self) -> Vec<Stored> {
        assert_eq!(self.0.twice_in_a_request(), 0, "a key stands twice in a request");
        bigquery::table(&self.0, TABLE)
    }
    fn break_off(&self) {
        self.0.forget_requests();
        // Twice: a connection that has broken once may have been idle.
        self.0.order(Fault::BreakAfter, 2);
    }
    fn mend(&self) {}
}

/// Postgres, with somebody between who breaks connections.
pub(crate) struct Postgres {
    database: Database,
    proxy: Proxy,
}

impl Postgres {
    pub(crate) fn start() -> Option<Postgres> {
        let database = postgres::database()?;
        let proxy = Proxy::to(&database.server().address());
        Some(Postgres { database, proxy })
    }
    fn number(&self, sql: &str) -> u64 {
        if self.database.has("sessions") { self.database.number(sql) as u64 } else { 0 }
    }
}

impl Warehouse for Postgres {
    fn name(&self) -> &'static str {
        "Postgres"
    }
    fn sink(&self, case: &Case) -> String {
        case.put("password", PASSWORD.as_bytes());
        format!(
            "\n[sink.table]\nkind = \"postgres\"\nurl = \"{}\"\npassword = \"${{file:{}}}\"\ntable = \"sessions\"\ntimeout = \"5s\"\n",
            self.database.url_of(USER, &self.proxy.address()),
            case.path("password").display()
        )
    }
    fn events(&self) -> u64 {
        self.number("SELECT coalesce(sum(events), 0) FROM sessions WHERE stage <> 'retracted'")
    }
    fn certain(&self, but: &str) -> u64 {
        let of = "stage IN ('final', 'corrected')";
        self.number(&format!("SELECT count(*) FROM sessions WHERE {of} AND key <> '{but}'"))
    }
    fn rows(&self) -> Vec<Stored> {
        table(&self.database, "sessions")
    }
    fn break_off(&self) {
        self.proxy.refuse(true);
        self.proxy.close_all();
    }
    fn mend(&self) {
        self.proxy.refuse(false);
    }
}
