//! What is known of visitors: in a Bigtable where one can be had, else behind a service of JSON. Both refuse a call now and then.

use serde_json::{Value, json};
use tidemill_services::bigtable::{Bigtable, Cell, Fault, UNAVAILABLE, bigtable};
use tidemill_tests::service::Service;

const TABLE: &str = "visitors";
/// Calls that are refused at first.
const REFUSED: u64 = 5;
/// One call of so many of the service's.
const FAILS_EVERY: u64 = 40;

/// See the module's documentation.
pub(crate) enum Visitors {
    Bigtable(Bigtable),
    Service(Service),
}

/// What is known of a visitor, if anything is.
pub(crate) fn visitor(key: &str) -> Option<Value> {
    let n: u64 = key.bytes().map(u64::from).sum();
    (!n.is_multiple_of(7)).then(|| json!({"segment": format!("s{}", n % 5), "country": "NL"}))
}

impl Visitors {
    /// One that knows these.
    pub(crate) fn start(names: impl Iterator<Item = String>) -> Visitors {
        let Some(table) = bigtable() else {
            let service = Service::new(visitor);
            service.fail_every(FAILS_EVERY);
            return Visitors::Service(service);
        };
        table.create(TABLE, &["profile"]);
        let cells: Vec<Cell> = names
            .filter_map(|name| Some((visitor(&name)?, name)))
            .flat_map(|(known, name)| {
                ["segment", "country"].map(|qualifier| Cell {
                    key: format!("visitor#{name}"),
                    family: "profile".to_owned(),
                    qualifier: qualifier.to_owned(),
                    value: known[qualifier].as_str().unwrap().into(),
                    micros: 1_000,
                })
            })
            .collect();
        table.put(TABLE, &cells);
        table.meet(&Fault { code: UNAVAILABLE, times: REFUSED, ..Fault::default() });
        Visitors::Bigtable(table)
    }

    /// What follows `[lookup.visitors]`.
    pub(crate) fn lookup(&self) -> String {
        let way = match self {
            Visitors::Bigtable(table) => format!(
                "kind = \"bigtable\"\nproject = \"p\"\ninstance = \"i\"\ntable = \"{TABLE}\"\nrow_key = \"visitor#{{key}}\"\n\
                 columns = {{ segment = \"profile:segment\", country = \"profile:country\" }}\n\
                 credentials = \"none\"\nendpoint = \"http://{}\"\n",
                table.address()
            ),
            Visitors::Service(service) => {
                format!("kind = \"http\"\nurl = \"{}\"\nmethod = \"post\"\n", service.url())
            }
        };
        format!("{way}on_failure = \"hold\"\nretries = 20\n")
    }

    /// What was asked of it, in words.
    pub(crate) fn asked(&self) -> String {
        match self {
            Visitors::Bigtable(table) => {
                let counts = table.counts();
                assert_eq!(counts.met, REFUSED, "calls were refused");
                format!("Bigtable asked for {} visitors in {} calls", counts.keys, counts.calls)
            }
            Visitors::Service(service) => {
                format!("a service answered for {} visitors", service.asked().answered)
            }
        }
    }
}
