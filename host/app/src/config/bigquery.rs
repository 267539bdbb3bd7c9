//! Where a table of BigQuery is and what it looks like: the keys of a sink, and of a lookup, of `kind = "bigquery"`.
//!
//! A build without the feature `services` has no client for it: there a [`Target`], or [`Tables`], is a type without values, and the
//! compiler sees that nothing is done with one.

use super::diagnose::Problems;
use super::raw::Section;

/// The keys, which a build without a client knows without reading them.
#[cfg(not(feature = "services"))]
const KEYS: [&str; 9] = [
    "project",
    "dataset",
    "location",
    "max_staleness",
    "clustering",
    "columns",
    "credentials",
    "endpoint",
    "storage_endpoint",
];

/// See the module's documentation.
#[cfg(not(feature = "services"))]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {}

#[cfg(not(feature = "services"))]
impl Target {
    /// Where it is, for messages.
    pub(crate) fn place(&self) -> String {
        match *self {}
    }
    /// The table's name.
    pub(crate) fn table(&self) -> &str {
        match *self {}
    }
    /// Project, dataset and table, with dots between.
    pub(crate) fn full_name(&self) -> String {
        match *self {}
    }
}

/// See the module's documentation.
#[cfg(not(feature = "services"))]
#[derive(Debug, Clone)]
pub(crate) enum Tables {}

#[cfg(not(feature = "services"))]
impl Tables {
    /// Gets ready to read one.
    pub(crate) fn provider(
        &self,
        _: &tidemill_connect::lookup::sqlite::What,
        _: &str,
        _: std::time::Duration,
    ) -> Result<Box<dyn tidemill_connect::lookup::Provider>, tidemill_connect::ConnectError> {
        match *self {}
    }
}

#[cfg(not(feature = "services"))]
pub(super) fn check(s: &mut Section<'_>, _: Option<std::time::Duration>, _: &mut Problems) -> Option<Target> {
    s.forgive(&KEYS);
    s.forgive(&["table"]);
    None
}

#[cfg(not(feature = "services"))]
pub(super) fn check_tables(
    s: &mut Section<'_>,
    _: Option<std::time::Duration>,
    _: &mut Problems,
) -> Option<Tables> {
    s.forgive(&KEYS);
    None
}

#[cfg(feature = "services")]
pub(crate) use self::with_client::{Tables, Target};
#[cfg(feature = "services")]
pub(super) use self::with_client::{check, check_credentials, check_tables, endpoint, name};

#[cfg(feature = "services")]
mod with_client {
    use super::super::raw::Field;
    use super::{Problems, Section};
    use std::path::PathBuf;
    use std::time::Duration;
    use tidemill_connect::ConnectError;
    use tidemill_connect::bigquery::{CredentialsFrom, Dataset, ROWS_ENDPOINT, TABLES_ENDPOINT};
    use tidemill_connect::lookup::bigquery::{BigQueryProvider, What};
    use tidemill_connect::lookup::{Provider, sqlite};
    use tidemill_connect::sink::bigquery::{ColumnKind, OwnColumn, SESSION_COLUMNS, TableOptions};

    /// Columns that a table may be clustered by.
    const CLUSTERING_MAX: usize = 4;
    /// Columns of the user's wish: more than anybody reads, far from what a table may have.
    const COLUMNS_MAX: usize = 100;
    /// Older than a day nobody wants what a query sees to be, s.
    const STALENESS_S_MAX: u64 = 86_400;

    /// A table, and how it is made.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(crate) struct Target {
        /// Where it is.
        pub(crate) dataset: Dataset,
        /// How it is made.
        pub(crate) options: TableOptions,
        table: String,
    }

    impl Target {
        /// Where it is, for messages.
        pub(crate) fn place(&self) -> String {
            self.dataset.place()
        }
        /// The table's name.
        pub(crate) fn table(&self) -> &str {
            &self.table
        }
        /// Project, dataset and table, with dots between.
        pub(crate) fn full_name(&self) -> String {
            format!("{}.{}.{}", self.dataset.project, self.dataset.dataset, self.table)
        }
    }

    /// Reads the keys. `timeout`: of each answer; none if it is wrong itself.
    pub(in super::super) fn check(
        s: &mut Section<'_>,
        timeout: Option<Duration>,
        p: &mut Problems,
    ) -> Option<Target> {
        let project = s.need("project", "write `project = \"my-project\"`", p);
        let project = project.and_then(|f| name(&f, "-.:", p));
        let dataset = s.need("dataset", "write `dataset = \"clicks\"`; it has to be there", p);
        let dataset = dataset.and_then(|f| name(&f, "_", p));
        let table = s.get("table").map_or_else(|| Some("sessions".to_owned()), |f| name(&f, "_-", p));
        let location = s.get("location").and_then(|f| name(&f, "-", p));
        let credentials = check_credentials(s.get("credentials"), p);
        let is_open = credentials == Some(CredentialsFrom::None);
        let tables_endpoint = endpoint(s.get("endpoint"), TABLES_ENDPOINT, is_open, p);
        let rows_endpoint = endpoint(s.get("storage_endpoint"), ROWS_ENDPOINT, is_open, p);
        let max_staleness = s.get("max_staleness").map(|f| staleness(&f, p));
        let columns = s.get("columns").map_or_else(Vec::new, |f| own_columns(&f, p));
        let clustering = s.get("clustering").map_or_else(Vec::new, |f| clustering(&f, &columns, p));
        let dataset = Dataset {
            project: project?,
            dataset: dataset?,
            location,
            tables_endpoint: tables_endpoint?,
            rows_endpoint: rows_endpoint?,
            credentials: credentials?,
            timeout: timeout?,
        };
        let options = TableOptions { max_staleness: max_staleness.flatten(), clustering, columns };
        Some(Target { dataset, options, table: table? })
    }

    /// Tables that are read, for a lookup.
    #[derive(Debug, Clone)]
    pub(crate) struct Tables {
        dataset: Dataset,
    }

    impl Tables {
        /// Gets ready to read one.
        pub(crate) fn provider(
            &self,
            what: &sqlite::What,
            key: &str,
            refresh: Duration,
        ) -> Result<Box<dyn Provider>, ConnectError> {
            Ok(Box::new(self.client(what, key, refresh)?))
        }
        /// Whether it is there.
        pub(crate) fn probe(
            &self,
            what: &sqlite::What,
            key: &str,
            refresh: Duration,
        ) -> Result<(), ConnectError> {
            self.client(what, key, refresh)?.probe()
        }
        fn client(
            &self,
            what: &sqlite::What,
            key: &str,
            refresh: Duration,
        ) -> Result<BigQueryProvider, ConnectError> {
            let what = match what {
                sqlite::What::Table(table) => What::Table(table.clone()),
                sqlite::What::Query(query) => What::Query(query.clone()),
            };
            BigQueryProvider::new(&self.dataset, what, key.to_owned(), refresh)
        }
    }

    /// Reads the keys that say where tables are. `timeout`: of each answer; none if it is wrong itself.
    pub(in super::super) fn check_tables(
        s: &mut Section<'_>,
        timeout: Option<Duration>,
        p: &mut Problems,
    ) -> Option<Tables> {
        let project = s.need("project", "write `project = \"my-project\"`", p);
        let project = project.and_then(|f| name(&f, "-.:", p));
        let dataset =
            s.need("dataset", "write `dataset = \"clicks\"`; of a query, the one of tables without", p);
        let dataset = dataset.and_then(|f| name(&f, "_", p));
        let location = s.get("location").and_then(|f| name(&f, "-", p));
        let credentials = check_credentials(s.get("credentials"), p);
        let is_open = credentials == Some(CredentialsFrom::None);
        let tables_endpoint = endpoint(s.get("endpoint"), TABLES_ENDPOINT, is_open, p);
        let dataset = Dataset {
            project: project?,
            dataset: dataset?,
            location,
            tables_endpoint: tables_endpoint?,
            rows_endpoint: ROWS_ENDPOINT.to_owned(),
            credentials: credentials?,
            timeout: timeout?,
        };
        Some(Tables { dataset })
    }

    /// A name that stands in a URL: letters, digits, and what else this one may have.
    pub(in super::super) fn name(f: &Field<'_>, more: &str, p: &mut Problems) -> Option<String> {
        let text = f.text(p)?;
        if !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c)) {
            return Some(text.to_owned());
        }
        let shown: Vec<String> = more.chars().map(|c| format!("`{c}`")).collect();
        let help = format!("use letters, digits and {}", shown.join(", "));
        f.wrong(format!("`{}` cannot be a name here", f.shown()), help, p);
        None
    }

    pub(in super::super) fn check_credentials(
        f: Option<Field<'_>>,
        p: &mut Problems,
    ) -> Option<CredentialsFrom> {
        let Some(f) = f else { return Some(CredentialsFrom::Default) };
        match f.text(p)? {
            "default" => Some(CredentialsFrom::Default),
            "none" => Some(CredentialsFrom::None),
            text if text.trim_start().starts_with('{') => {
                let help = "write the path of the file that holds them: `credentials = \"/run/secrets/bigquery.json\"`";
                f.wrong("credentials do not belong into this file".to_owned(), help.to_owned(), p);
                None
            }
            path => Some(CredentialsFrom::File(PathBuf::from(path))),
        }
    }

    /// Scheme and host. A token is never sent where anybody on the way can read it.
    pub(in super::super) fn endpoint(
        f: Option<Field<'_>>,
        usual: &str,
        is_open: bool,
        p: &mut Problems,
    ) -> Option<String> {
        let Some(f) = f else { return Some(usual.to_owned()) };
        let text = f.text(p)?;
        let (scheme, host) = text.split_once("://").unwrap_or_default();
        let good = matches!(scheme, "http" | "https")
            && !host.is_empty()
            && !host.contains(['/', '?', '#', '@', ' ']);
        if !good {
            let help = format!("write a scheme and a host, as in \"{usual}\"");
            f.wrong(format!("`{}` is no endpoint", f.shown()), help, p);
            return None;
        }
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
        let is_local = name == "localhost" || name.parse().is_ok_and(|a: std::net::IpAddr| a.is_loopback());
        if scheme == "http" && !is_open && !is_local {
            let message = "a token would be sent where anybody on the way can read it";
            f.wrong(message.to_owned(), "write `https://`, or `credentials = \"none\"`".to_owned(), p);
            return None;
        }
        Some(text.to_owned())
    }

    fn staleness(f: &Field<'_>, p: &mut Problems) -> Option<Duration> {
        let ms = u64::try_from(f.duration_ms(p)?).unwrap_or(0);
        if ms % 1_000 == 0 && ms / 1_000 <= STALENESS_S_MAX {
            return Some(Duration::from_millis(ms));
        }
        let help = "\"10m\" is usual".to_owned();
        f.wrong(format!("`{}` must be whole seconds, and at most 1d", f.path), help, p);
        None
    }

    fn clustering(f: &Field<'_>, own: &[OwnColumn], p: &mut Problems) -> Vec<String> {
        let elements = f.elements();
        if elements.len() > CLUSTERING_MAX {
            f.wrong(format!("a table is clustered by {CLUSTERING_MAX} columns at most"), None, p);
        }
        let known = |name: &str| {
            let usual = SESSION_COLUMNS.contains(&name) && name != "fields";
            usual || own.iter().any(|c| c.name == name && c.kind != ColumnKind::Float)
        };
        let mut list = Vec::new();
        for element in elements {
            let Some(name) = element.text(p) else { continue };
            if !known(name) {
                let help = "`key`, `pipeline` and `start_time` are usual".to_owned();
                element.wrong(format!("a table cannot be clustered by `{}`", element.shown()), help, p);
            }
            list.push(name.to_owned());
        }
        list
    }

    fn own_columns(f: &Field<'_>, p: &mut Problems) -> Vec<OwnColumn> {
        let help = "write `columns = { total = \"FLOAT64\" }`";
        let Some(section) = f.section(help, p) else { return Vec::new() };
        if section.entries().len() > COLUMNS_MAX {
            f.wrong(format!("more than {COLUMNS_MAX} columns"), None, p);
        }
        let words = ColumnKind::NAMED.map(|(word, _)| word);
        let mut list = Vec::new();
        for entry in section.entries() {
            let path = format!("{}.{}", section.path, entry.key);
            let field = Field { node: &entry.node, key_at: entry.key_at, path };
            let word = field.word(&words, &["NUMERIC", "BYTES", "DATE", "DATETIME", "TIMESTAMP", "JSON"], p);
            let kind =
                ColumnKind::NAMED.into_iter().find(|(name, _)| Some(*name) == word).map(|(_, kind)| kind);
            let plain = entry.key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let begins = entry.key.starts_with(|c: char| c.is_ascii_alphabetic());
            let taken = SESSION_COLUMNS.iter().any(|c| c.eq_ignore_ascii_case(&entry.key));
            if !plain || !begins || taken {
                let help = "use letters, digits and `_`, beginning with a letter, and no column that every table has";
                field.wrong(format!("`{}` cannot be a column", entry.key), help.to_owned(), p);
            } else if let Some(kind) = kind {
                list.push(OwnColumn { name: entry.key.clone(), kind });
            }
        }
        list
    }
}
