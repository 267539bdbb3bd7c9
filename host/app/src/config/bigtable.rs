//! Where a table of Bigtable is, and what is read of it: the keys of a lookup of `kind = "bigtable"`.
//!
//! A build without the feature `services` has no client for it: there a [`Table`] is a type without values, and the compiler sees
//! that nothing is done with one.

use super::diagnose::Problems;
use super::raw::Section;

/// The keys, which a build without a client knows without reading them.
#[cfg(not(feature = "services"))]
const KEYS: [&str; 8] =
    ["project", "instance", "table", "app_profile", "row_key", "columns", "credentials", "endpoint"];

/// See the module's documentation.
#[cfg(not(feature = "services"))]
#[derive(Debug, Clone)]
pub(crate) enum Table {}

#[cfg(not(feature = "services"))]
impl Table {
    /// Gets ready to ask it.
    pub(crate) fn provider(
        &self,
    ) -> Result<Box<dyn tidemill_connect::lookup::Provider>, tidemill_connect::ConnectError> {
        match *self {}
    }
}

#[cfg(not(feature = "services"))]
pub(super) fn check(s: &mut Section<'_>, _: &mut Problems) -> Option<Table> {
    s.forgive(&KEYS);
    None
}

#[cfg(feature = "services")]
pub(crate) use self::with_client::Table;
#[cfg(feature = "services")]
pub(super) use self::with_client::check;

#[cfg(feature = "services")]
mod with_client {
    use super::super::bigquery::{check_credentials, endpoint, name};
    use super::super::raw::{Field, Value, join};
    use super::{Problems, Section};
    use std::time::Duration;
    use tidemill_connect::ConnectError;
    use tidemill_connect::lookup::Provider;
    use tidemill_connect::lookup::bigtable::{
        BigtableProvider, CellKind, Column, CredentialsFrom, ENDPOINT, KEY, Place,
    };

    /// Columns of a row: the filter that asks for them may have 20 KiB.
    const COLUMNS_MAX: usize = 100;
    /// Bytes of a qualifier, of 16 KiB that it may have, for the same reason.
    const QUALIFIER_BYTES_MAX: usize = 128;
    /// Bytes of a family's name, as Bigtable has it.
    const FAMILY_BYTES_MAX: usize = 64;

    /// A table, and what is read of it.
    #[derive(Debug, Clone)]
    pub(crate) struct Table {
        place: Place,
        row_key: String,
        columns: Vec<Column>,
    }

    impl Table {
        /// Gets ready to ask it.
        pub(crate) fn provider(&self) -> Result<Box<dyn Provider>, ConnectError> {
            Ok(Box::new(self.client()?))
        }
        /// Whether it is there.
        pub(crate) fn probe(&self, timeout: Duration) -> Result<(), ConnectError> {
            self.client()?.probe(timeout)
        }
        fn client(&self) -> Result<BigtableProvider, ConnectError> {
            BigtableProvider::new(self.place.clone(), self.row_key.clone(), self.columns.clone())
        }
    }

    /// Reads the keys.
    pub(in super::super) fn check(s: &mut Section<'_>, p: &mut Problems) -> Option<Table> {
        let project = s.need("project", "write `project = \"my-project\"`", p);
        let project = project.and_then(|f| name(&f, "-.:", p));
        let instance = s.need("instance", "write `instance = \"clicks\"`", p);
        let instance = instance.and_then(|f| name(&f, "-", p));
        let table = s.need("table", "write `table = \"visitors\"`", p);
        let table = table.and_then(|f| name(&f, "_-.", p));
        let app_profile = s.get("app_profile").map_or_else(|| Some(String::new()), |f| name(&f, "_-", p));
        let row_key = s.get("row_key").map_or_else(|| Some(KEY.to_owned()), |f| row_key(&f, p));
        let example =
            "write `columns = { segment = \"profile:segment\" }`: a family and a qualifier for each field";
        let columns = s.need("columns", example, p).and_then(|f| columns(&f, example, p));
        let credentials = check_credentials(s.get("credentials"), p);
        let is_open = credentials == Some(CredentialsFrom::None);
        let endpoint = endpoint(s.get("endpoint"), ENDPOINT, is_open, p);
        let place = Place {
            project: project?,
            instance: instance?,
            table: table?,
            app_profile: app_profile?,
            endpoint: endpoint?,
            credentials: credentials?,
        };
        Some(Table { place, row_key: row_key?, columns: columns? })
    }

    fn row_key(f: &Field<'_>, p: &mut Problems) -> Option<String> {
        let text = f.text(p)?;
        if text.contains(KEY) {
            return Some(text.to_owned());
        }
        let help = format!("\"visitor#{KEY}\" is one");
        f.wrong(format!("`{}` has no `{KEY}`, so that all keys would have the same row", f.shown()), help, p);
        None
    }

    fn columns(f: &Field<'_>, example: &str, p: &mut Problems) -> Option<Vec<Column>> {
        let section = f.section(example, p)?;
        let entries = section.entries();
        if entries.is_empty() || entries.len() > COLUMNS_MAX {
            f.wrong(format!("a row has between 1 and {COLUMNS_MAX} columns"), example.to_owned(), p);
            return None;
        }
        let each = entries.iter().map(|e| {
            let field = Field { node: &e.node, key_at: e.key_at, path: join(&section.path, &e.key) };
            column(&e.key, &field, p)
        });
        // Each is looked at, so that all problems are said.
        each.collect::<Vec<_>>().into_iter().collect()
    }

    /// `"family:qualifier"`, or that with how its cells are read.
    fn column(of: &str, f: &Field<'_>, p: &mut Problems) -> Option<Column> {
        let Value::Table(_) = f.node.value else {
            let (family, qualifier) = column_name(f, p)?;
            return Some(Column { field: of.to_owned(), family, qualifier, kind: CellKind::Text });
        };
        let example = "write `{ column = \"stats:visits\", as = \"int64\" }`";
        let mut s = f.section(example, p)?;
        let named = s.need("column", example, p).and_then(|f| column_name(&f, p));
        let words = CellKind::NAMED.map(|(word, _)| word);
        let kind = s.need("as", example, p).and_then(|f| f.word(&words, &[], p));
        s.finish(&[], p);
        let kind = CellKind::NAMED.into_iter().find(|(word, _)| Some(*word) == kind).map(|(_, kind)| kind);
        let (family, qualifier) = named?;
        Some(Column { field: of.to_owned(), family, qualifier, kind: kind? })
    }

    /// A family has no colon, a qualifier may have some and may be empty.
    fn column_name(f: &Field<'_>, p: &mut Problems) -> Option<(String, String)> {
        let text = f.text(p)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        match text.split_once(':') {
            Some((family, qualifier))
                if (1..=FAMILY_BYTES_MAX).contains(&family.len())
                    && family.chars().all(plain)
                    && qualifier.len() <= QUALIFIER_BYTES_MAX =>
            {
                Some((family.to_owned(), qualifier.to_owned()))
            }
            _ => {
                let help = format!(
                    "write a family (letters, digits, `_`, `-`, `.`), a colon, and a qualifier of up to {QUALIFIER_BYTES_MAX} bytes, as in \"profile:segment\""
                );
                f.wrong(format!("`{}` is no column", f.shown()), help, p);
                None
            }
        }
    }
}
