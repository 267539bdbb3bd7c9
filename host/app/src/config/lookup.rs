//! `[lookup.NAME]`: where enrichers' questions are answered.

use super::bigquery::Tables;
use super::bigtable::Table;
use super::diagnose::{Problems, Spot, nearest};
use super::last;
use super::plan::{Pipeline, Secret};
use super::postgres::Server as PostgresServer;
use super::raw::{Field, Section, Value};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tidemill_connect::ConnectError;
use tidemill_connect::lookup::file::{self, FileProvider};
use tidemill_connect::lookup::http::{self, HttpProvider, Method};
#[cfg(feature = "services")]
use tidemill_connect::lookup::postgres::{self as postgres_lookup, PostgresProvider};
use tidemill_connect::lookup::sqlite::{SqliteProvider, What};
use tidemill_connect::lookup::{Provider, Settings, bounds};

/// `[lookup.NAME]`.
#[derive(Debug, Clone)]
pub(crate) struct Lookup {
    /// Its name.
    pub(crate) name: String,
    /// Place of the name.
    pub(crate) at: Spot,
    /// Place of `path`, or of the name if there is none.
    pub(crate) path_at: Spot,
    /// Where rows come from.
    pub(crate) kind: LookupKind,
    /// How it is asked.
    pub(crate) settings: Settings,
    /// What becomes of a session whose lookup has no answer.
    pub(crate) on_failure: OnFailure,
}

/// Where rows come from.
#[derive(Debug, Clone)]
pub(crate) enum LookupKind {
    /// A CSV or JSON-lines file.
    File {
        /// The file, relative to the current directory.
        path: PathBuf,
        /// How it is written.
        format: file::Format,
        /// The column or member that holds the key.
        key: String,
    },
    /// A SQLite database.
    Sqlite {
        /// The database file.
        path: PathBuf,
        /// The table or query.
        what: What,
        /// The column that holds the key.
        key: String,
    },
    /// A table of a server, or what a query makes of several.
    Postgres {
        /// Where it is.
        server: PostgresServer,
        /// The table or query.
        what: What,
        /// The column that holds the key.
        key: String,
    },
    /// A table of Bigtable.
    Bigtable(Table),
    /// A table or query of BigQuery, kept in memory whole.
    BigQuery {
        /// Where it is.
        tables: Tables,
        /// The table or query.
        what: What,
        /// The column that holds the key.
        key: String,
        /// How often it is read again.
        refresh: Duration,
    },
    /// A service.
    Http {
        /// Its URL.
        url: String,
        /// How it is asked.
        method: Method,
        /// Headers to send.
        headers: Vec<(String, Secret)>,
        /// Where in the answer the rows are, a JSON pointer.
        rows: String,
    },
}

/// What becomes of a session whose lookup has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnFailure {
    /// It goes on without, and a field says so.
    Empty,
    /// It waits until there is an answer.
    Hold,
    /// It becomes a dead letter.
    DeadLetter,
}

impl Lookup {
    /// Opens what it names. Of a service nothing is asked yet.
    pub(crate) fn provider(&self) -> Result<Box<dyn Provider>, ConnectError> {
        Ok(match &self.kind {
            LookupKind::File { path, format, key } => Box::new(FileProvider::open(path, *format, key)?),
            LookupKind::Sqlite { path, what, key } => Box::new(SqliteProvider::open(path, what, key)?),
            LookupKind::Postgres { server, what, key } => postgres_provider(server, what, key),
            LookupKind::Bigtable(table) => table.provider()?,
            LookupKind::BigQuery { tables, what, key, refresh } => tables.provider(what, key, *refresh)?,
            LookupKind::Http { url, method, headers, rows } => {
                let headers: Vec<(String, String)> =
                    headers.iter().map(|(name, value)| (name.clone(), value.reveal().to_owned())).collect();
                Box::new(HttpProvider::new(url, *method, &headers, rows, self.settings.concurrency)?)
            }
        })
    }

    /// Its file, if it has one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.kind {
            LookupKind::File { path, .. } | LookupKind::Sqlite { path, .. } => Some(path),
            LookupKind::Postgres { .. }
            | LookupKind::Bigtable(_)
            | LookupKind::BigQuery { .. }
            | LookupKind::Http { .. } => None,
        }
    }
}

#[cfg(feature = "services")]
fn postgres(server: &PostgresServer, what: &What, key: &str) -> PostgresProvider {
    let what = match what {
        What::Table(table) => postgres_lookup::What::Table(table.clone()),
        What::Query(query) => postgres_lookup::What::Query(query.clone()),
    };
    PostgresProvider::new(server.clone(), what, key.to_owned())
}

#[cfg(feature = "services")]
fn postgres_provider(server: &PostgresServer, what: &What, key: &str) -> Box<dyn Provider> {
    Box::new(postgres(server, what, key))
}

#[cfg(not(feature = "services"))]
fn postgres_provider(server: &PostgresServer, _: &What, _: &str) -> Box<dyn Provider> {
    match *server {}
}

/// Whether the service that a lookup asks is there and has what it is asked for, as far as that can be told. A run asks nothing
/// before it needs to.
pub(crate) fn probe_service(lookup: &Lookup) -> Result<(), ConnectError> {
    match &lookup.kind {
        #[cfg(feature = "services")]
        LookupKind::Postgres { server, what, key } => postgres(server, what, key).probe(),
        #[cfg(feature = "services")]
        LookupKind::Bigtable(table) => table.probe(Duration::from_millis(lookup.settings.timeout_ms)),
        #[cfg(feature = "services")]
        LookupKind::BigQuery { tables, what, key, refresh } => tables.probe(what, key, *refresh),
        _ => Ok(()),
    }
}

/// Keys that only some kinds of lookup have.
const ELSEWHERE: [(&str, &str); 22] = [
    ("path", "kind = \"http\" and \"postgres\" have a `url`"),
    ("format", "only kind = \"file\" has it"),
    ("key", "`{key}` in the `url`, or in the `row_key` of Bigtable, stands for the key"),
    ("table", "only kind = \"sqlite\", \"postgres\", \"bigtable\" and \"bigquery\" have it"),
    ("query", "only kind = \"sqlite\", \"postgres\" and \"bigquery\" have it"),
    ("url", "only kind = \"http\" and \"postgres\" have it"),
    ("password", "only kind = \"postgres\" has it"),
    ("sslmode", "only kind = \"postgres\" has it"),
    ("sslrootcert", "only kind = \"postgres\" has it"),
    ("method", "only kind = \"http\" has it"),
    ("headers", "only kind = \"http\" has it"),
    ("project", "only kind = \"bigtable\" and \"bigquery\" have it"),
    ("instance", "only kind = \"bigtable\" has it"),
    ("app_profile", "only kind = \"bigtable\" has it"),
    ("row_key", "only kind = \"bigtable\" has it"),
    ("columns", "only kind = \"bigtable\" has it"),
    ("dataset", "only kind = \"bigquery\" has it"),
    ("location", "only kind = \"bigquery\" has it"),
    ("refresh", "only kind = \"bigquery\" has it; a file is read again when it changes"),
    ("credentials", "only kind = \"bigtable\" and \"bigquery\" have it"),
    ("endpoint", "only kind = \"bigtable\" and \"bigquery\" have it"),
    ("batch", "a GET asks for one key; `concurrency` says how many are under way at a time"),
];

/// Kinds that a build without clients of services does not have are among them: it says so itself.
const KINDS: [&str; 6] = ["file", "sqlite", "postgres", "bigtable", "bigquery", "http"];

pub(super) fn check_lookup(mut s: Section<'_>, p: &mut Problems) -> Option<Lookup> {
    let name = last(&s.path).to_owned();
    let at = s.at;
    let mut path_at = at;
    let later = ["feature_store", "model"];
    let kind = s.need(
        "kind",
        "write `kind = \"file\"`, \"sqlite\", \"postgres\", \"bigtable\", \"bigquery\" or \"http\"",
        p,
    );
    let word = kind.as_ref().and_then(|f| f.word(&KINDS, &later, p));
    let word = word.filter(|w| !kind.is_some_and(|f| super::is_missing(w, &f, p)));
    let kind = match word {
        Some("http") => check_http(&mut s, p),
        Some(kind @ ("file" | "sqlite")) => check_stored(&mut s, kind == "file", &mut path_at, p),
        // Whose time for an answer is among the settings.
        Some(_) => None,
        None => {
            s.forgive(&ELSEWHERE.map(|(key, _)| key));
            s.forgive(&["rows"]);
            None
        }
    };
    let on_failure = check_on_failure(&mut s, p);
    let settings = check_settings(&mut s, word, is_get(kind.as_ref()), on_failure, p);
    let timeout = settings.as_ref().map(|s| Duration::from_millis(s.timeout_ms));
    let kind = match word {
        Some("postgres") => check_postgres(&mut s, timeout, p),
        Some("bigtable") => super::bigtable::check(&mut s, p).map(LookupKind::Bigtable),
        Some("bigquery") => check_bigquery(&mut s, timeout, p),
        _ => kind,
    };
    s.finish(&ELSEWHERE, p);
    Some(Lookup { name, at, path_at, kind: kind?, settings: settings?, on_failure: on_failure? })
}

const KEY_HELP: &str = "write `key = \"visitor\"`: the column that holds the key";

fn check_stored(
    s: &mut Section<'_>,
    is_file: bool,
    path_at: &mut Spot,
    p: &mut Problems,
) -> Option<LookupKind> {
    let example = if is_file { "write `path = \"visitors.csv\"`" } else { "write `path = \"profiles.db\"`" };
    let path = s.need("path", example, p);
    if let Some(f) = &path {
        *path_at = f.node.at;
    }
    let path = path.and_then(|f| f.text(p)).map(PathBuf::from);
    let key = s.need("key", KEY_HELP, p);
    let key = key.and_then(|f| f.text(p)).map(str::to_owned);
    if is_file {
        let format = check_format(s, path.as_deref(), p);
        return Some(LookupKind::File { path: path?, format: format?, key: key? });
    }
    let what = check_what(s, "?1", p);
    Some(LookupKind::Sqlite { path: path?, what: what?, key: key? })
}

fn check_postgres(s: &mut Section<'_>, timeout: Option<Duration>, p: &mut Problems) -> Option<LookupKind> {
    let server = super::postgres::check(s, timeout, p);
    let key = s.need("key", KEY_HELP, p);
    let key = key.and_then(|f| f.text(p)).map(str::to_owned);
    let what = check_what(s, "$1", p);
    Some(LookupKind::Postgres { server: server?, what: what?, key: key? })
}

fn check_bigquery(s: &mut Section<'_>, timeout: Option<Duration>, p: &mut Problems) -> Option<LookupKind> {
    let tables = super::bigquery::check_tables(s, timeout, p);
    let key = s.need("key", KEY_HELP, p);
    let key = key.and_then(|f| f.text(p)).map(str::to_owned);
    let what = check_what(s, "", p);
    let refresh = s.get("refresh").map_or(Some(bounds::REFRESH_MS), |f| {
        let ms = f.duration_ms(p)?;
        if (bounds::REFRESH_MS_MIN..=bounds::REFRESH_MS_MAX).contains(&ms) {
            return Some(ms);
        }
        let help = "\"1h\" is usual".to_owned();
        f.wrong(format!("`{}` must lie between 1s and 7d", f.path), help, p);
        None
    });
    let refresh = Duration::from_millis(refresh?.unsigned_abs());
    Some(LookupKind::BigQuery { tables: tables?, what: what?, key: key?, refresh })
}

/// A table, or a query with this for the keys; without, it is of all rows.
fn check_what(s: &mut Section<'_>, keys: &str, p: &mut Problems) -> Option<What> {
    let (table, query) = (s.get("table"), s.get("query"));
    match (table, query) {
        (Some(t), None) => t.text(p).map(|t| What::Table(t.to_owned())),
        (None, Some(q)) => q.text(p).map(|q| What::Query(q.to_owned())),
        (Some(_), Some(q)) => {
            q.wrong("`table` and `query` cannot stand together".to_owned(), "leave one out".to_owned(), p);
            None
        }
        (None, None) => {
            let with = if keys.is_empty() { String::new() } else { format!(" with `{keys}`") };
            s.need("table", &format!("write `table = \"visitors\"`, or a `query`{with}"), p);
            None
        }
    }
}

/// As written, or as the file's name ends.
fn check_format(s: &mut Section<'_>, path: Option<&Path>, p: &mut Problems) -> Option<file::Format> {
    if let Some(f) = s.get("format") {
        let word = f.word(&["csv", "json"], &[], p)?;
        return Some(if word == "csv" { file::Format::Csv } else { file::Format::Json });
    }
    let name = path?.file_name()?.to_string_lossy().to_lowercase();
    let name = name.trim_end_matches(".gz").trim_end_matches(".zst");
    match name.rsplit('.').next() {
        Some("csv") => Some(file::Format::Csv),
        Some("json" | "jsonl" | "ndjson") => Some(file::Format::Json),
        _ => {
            s.need("format", "write `format = \"csv\"` or \"json\"; the file's name does not tell", p);
            None
        }
    }
}

fn check_http(s: &mut Section<'_>, p: &mut Problems) -> Option<LookupKind> {
    let method = s.get("method").map_or(Some("get"), |f| f.word(&["get", "post"], &[], p));
    let method = method.map(|m| if m == "get" { Method::Get } else { Method::Post });
    let url = s.need("url", "write `url = \"http://127.0.0.1:8080/visitors/{key}\"`", p);
    let url = url.and_then(|f| {
        let url = f.text(p)?;
        if let Some(why) = method.and_then(|m| http::url_problem(url, m)) {
            let help = "\"http://127.0.0.1:8080/visitors/{key}\" is one".to_owned();
            f.wrong(format!("`{}` cannot be used: {why}", f.shown()), help, p);
            return None;
        }
        Some(url.to_owned())
    });
    let rows = match s.get("rows") {
        None => Some(String::new()),
        Some(f) => f.text(p).and_then(|rows| {
            if !rows.starts_with('/') {
                let help = format!("write \"/{}\"", f.shown());
                f.wrong(format!("`{}` is no JSON pointer", f.shown()), help, p);
                return None;
            }
            Some(rows.to_owned())
        }),
    };
    let headers = s.get("headers").map_or(Some(Vec::new()), |f| check_headers(&f, p));
    Some(LookupKind::Http { url: url?, method: method?, headers: headers?, rows: rows? })
}

fn is_get(kind: Option<&LookupKind>) -> bool {
    matches!(kind, Some(LookupKind::Http { method: Method::Get, .. }))
}

fn check_headers(f: &Field<'_>, p: &mut Problems) -> Option<Vec<(String, Secret)>> {
    let example = "write `headers = { authorization = \"Bearer ${env:TOKEN}\" }`";
    let section = f.section(example, p)?;
    let mut list = Vec::new();
    for e in section.entries() {
        let field = Field { node: &e.node, key_at: e.key_at, path: super::raw::join(&f.path, &e.key) };
        let value = field.text(p)?;
        if let Some(why) = http::header_problem(&e.key, value) {
            field.wrong(format!("`{}` cannot be sent: {why}", e.key), None, p);
            return None;
        }
        list.push((e.key.clone(), Secret::new(value.to_owned())));
    }
    Some(list)
}

fn check_on_failure(s: &mut Section<'_>, p: &mut Problems) -> Option<OnFailure> {
    let Some(f) = s.get("on_failure") else { return Some(OnFailure::Empty) };
    Some(match f.word(&["empty", "hold", "dead-letter"], &[], p)? {
        "hold" => OnFailure::Hold,
        "dead-letter" => OnFailure::DeadLetter,
        _ => OnFailure::Empty,
    })
}

fn check_settings(
    s: &mut Section<'_>,
    word: Option<&str>,
    is_get: bool,
    on_failure: Option<OnFailure>,
    p: &mut Problems,
) -> Option<Settings> {
    // What is in memory already is not kept a second time.
    let ttl = if matches!(word, Some("file" | "bigquery")) {
        (0, 0)
    } else {
        (bounds::TTL_MS, bounds::NEGATIVE_TTL_MS)
    };
    let cache_bytes = s.get("cache").map_or(Some(bounds::CACHE_BYTES), |f| f.size_bytes(p));
    let ttl_ms = s.get("ttl").map_or(Some(ttl.0), |f| f.duration_ms(p));
    let negative_ttl_ms = s.get("negative_ttl").map_or(Some(ttl.1), |f| f.duration_ms(p));
    // A GET has one key in its URL.
    let (batch, at_once) = if is_get {
        (Some(1), bounds::CONCURRENCY_OF_ONE)
    } else {
        (within(s, "batch", bounds::BATCH_KEYS, 1..=bounds::BATCH_KEYS_MAX, p), bounds::CONCURRENCY)
    };
    let concurrency = within(s, "concurrency", at_once, 1..=bounds::CONCURRENCY_MAX, p);
    // Where a whole table is read an answer is much of it.
    let usual = if word == Some("bigquery") { bounds::PAGE_TIMEOUT_MS } else { bounds::TIMEOUT_MS };
    let timeout_ms = s.get("timeout").map_or(Some(usual), |f| {
        let ms = f.duration_ms(p)?;
        if ms == 0 {
            let help = "\"2s\" is usual".to_owned();
            f.wrong(format!("`{}` must be longer than nothing", f.path), help, p);
            return None;
        }
        Some(ms)
    });
    let retries = within(s, "retries", bounds::RETRIES, 0..=bounds::RETRIES_MAX, p);
    Some(Settings {
        cache_bytes: cache_bytes?,
        ttl_ms: ttl_ms?.unsigned_abs(),
        negative_ttl_ms: negative_ttl_ms?.unsigned_abs(),
        batch_keys: usize::try_from(batch?).ok()?,
        concurrency: usize::try_from(concurrency?).ok()?,
        timeout_ms: timeout_ms?.unsigned_abs(),
        retries: u32::try_from(retries?).ok()?,
        gives_up: on_failure != Some(OnFailure::Hold),
    })
}

fn within(
    s: &mut Section<'_>,
    key: &'static str,
    default: u64,
    allowed: std::ops::RangeInclusive<u64>,
    p: &mut Problems,
) -> Option<u64> {
    let Some(f) = s.get(key) else { return Some(default) };
    let n = f.count(*allowed.start(), p)?;
    if n > *allowed.end() {
        f.wrong(format!("`{}` may be at most {}", f.path, allowed.end()), None, p);
        return None;
    }
    Some(n)
}

/// `lookups = { visitor = "visitors" }` of a plugin: its name for a lookup, and the index of the one that answers. A wrong one
/// is left out, so that the plugin itself still counts as declared.
pub(super) fn check_uses(
    f: &Field<'_>,
    known: &[String],
    resolve: impl Fn(&Field<'_>, &mut Problems) -> Option<usize>,
    p: &mut Problems,
) -> Vec<(String, usize)> {
    let example = "write `lookups = { visitor = \"visitors\" }`";
    if let Value::Array(_) = f.node.value {
        let near = known.first().map_or("visitors", String::as_str);
        f.mistyped("a table", format!("write `lookups = {{ visitor = \"{near}\" }}`"), p);
        return Vec::new();
    }
    let Some(section) = f.section(example, p) else { return Vec::new() };
    let uses = section.entries().iter().filter_map(|e| {
        let field = Field { node: &e.node, key_at: e.key_at, path: super::raw::join(&f.path, &e.key) };
        Some((e.key.clone(), resolve(&field, p)?))
    });
    uses.collect()
}

/// Warns of lookups that no pipeline uses.
pub(super) fn unused(lookups: &[Option<Lookup>], pipelines: &[Option<Pipeline>], p: &mut Problems) {
    for (i, lookup) in lookups.iter().enumerate() {
        let Some(lookup) = lookup else { continue };
        let used = |k: &Pipeline| k.enrich.iter().flat_map(|u| &u.lookups).any(|(_, at)| *at == i);
        if !pipelines.iter().flatten().any(used) {
            let message = format!("no pipeline uses the lookup `{}`", lookup.name);
            p.warn(lookup.at, &format!("lookup.{}", lookup.name), message, None);
        }
    }
}

/// What is wrong with what a lookup names, if anything.
pub(super) fn probe(lookup: &Lookup, similar: impl Fn(&str) -> Option<String>, p: &mut Problems) {
    let key = format!("lookup.{}.path", lookup.name);
    if let Some(path) = lookup.path().filter(|path| !path.exists()) {
        let shown = path.display().to_string();
        p.error(lookup.path_at, &key, format!("`{shown}` does not exist"), similar(&shown));
        return;
    }
    if let Err(e) = lookup.provider() {
        let column = match &lookup.kind {
            LookupKind::File { key, .. } | LookupKind::Sqlite { key, .. } => key.as_str(),
            _ => "",
        };
        let text = e.to_string();
        // The message lists the columns that there are; the nearest one is probably meant.
        let listed = text.rsplit_once(" are ").or_else(|| text.rsplit_once(" gives ")).map_or("", |l| l.1);
        let near = nearest(column, listed.split(", ")).map(|c| format!("did you mean `key = \"{c}\"`?"));
        p.error(lookup.path_at, &key, text, near);
    }
}
