//! Rows of a BigQuery table or query, kept in memory whole; read again whole after an interval.
//!
//! A table is listed page by page over REST, or the pages of a query's result are. Nothing is read before the first key is asked
//! for or the first look is taken; keys wait for the first table as long as one call may take.
//!
//! Invariants: a new table serves only when all of it was read and is valid, until then the old one does, however long the service
//! is away; one that changed while it was listed is listed anew; no more is kept than `FILE_BYTES_MAX` for a table, which
//! may be there twice while it is exchanged. Reading goes on beside whoever asks: the runtime's thread reads, nobody waits.

mod read;

use self::read::Source;
use super::bounds::{RELOAD_MAX_MS, RELOAD_MS};
use super::{Fetched, LookupError, Provider, Row};
use crate::ConnectError;
use crate::backoff::Backoff;
use crate::bigquery::{Client, Dataset};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

pub use self::read::What;

type Table = HashMap<Box<str>, Row>;

/// See the module's documentation.
pub struct BigQueryProvider {
    client: Arc<Client>,
    source: Arc<Source>,
    refresh: Duration,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A reading has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    table: Option<Arc<Table>>,
    /// When the reading of `table` was begun.
    read_at: Option<SystemTime>,
    is_reading: bool,
    /// When it is read again; none: at once.
    due: Option<Instant>,
    /// Why the last reading failed.
    failed: Option<ConnectError>,
    backoff: Option<Backoff>,
    /// Nobody was told yet that the table is another.
    is_new: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, read: Result<Table, ConnectError>, begun: SystemTime, refresh: Duration) {
        let mut state = self.state();
        state.is_reading = false;
        let now = Instant::now();
        match read {
            Ok(table) => {
                state.is_new = state.table.is_some();
                state.table = Some(Arc::new(table));
                state.read_at = Some(begun);
                (state.failed, state.backoff) = (None, None);
                state.due = Some(now + refresh);
            }
            Err(e) => {
                let backoff = state.backoff.get_or_insert_with(|| Backoff::new(RELOAD_MS, RELOAD_MAX_MS));
                let wait = backoff.next_wait();
                state.due = Some(now + wait);
                state.failed = Some(e);
            }
        }
        drop(state);
        self.ended.notify_all();
    }
}

impl BigQueryProvider {
    /// Of a table or query. `key` is the column that holds the key. Nothing is asked yet, but for what credentials need.
    ///
    /// # Errors
    /// `Config`: the credentials cannot be used. `Failed`: the system gives no thread.
    pub fn new(
        dataset: &Dataset,
        what: What,
        key: String,
        refresh: Duration,
    ) -> Result<BigQueryProvider, ConnectError> {
        let client = Arc::new(dataset.connect_to_read()?);
        let source = Arc::new(Source::new(dataset, what, key));
        Ok(BigQueryProvider { client, source, refresh, shared: Arc::default() })
    }

    /// Whether the service is there, lets us in, and has the table with its key; of a query, whether it can be asked.
    ///
    /// # Errors
    /// `Unavailable` if it may work later, else `Config`.
    pub fn probe(&self) -> Result<(), ConnectError> {
        self.client.run(self.source.probe(&self.client))
    }

    /// Begins to read if it is time to.
    fn begin_if_due(&self) {
        let mut state = self.shared.state();
        if state.is_reading || state.due.is_some_and(|due| Instant::now() < due) {
            return;
        }
        state.is_reading = true;
        drop(state);
        let (client, source, shared) = (self.client.clone(), self.source.clone(), self.shared.clone());
        let (begun, refresh) = (SystemTime::now(), self.refresh);
        self.client.spawn(async move {
            let read = source.read(&client).await;
            shared.end(read, begun, refresh);
        });
    }

    /// The table; the first is waited for.
    fn table(&self, timeout: Duration) -> Result<Arc<Table>, LookupError> {
        self.begin_if_due();
        let state = self.shared.state();
        let is_first = |s: &mut State| s.table.is_none() && s.is_reading;
        let waited = self.shared.ended.wait_timeout_while(state, timeout, is_first);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        match (&state.table, &state.failed) {
            (Some(table), _) => Ok(table.clone()),
            (None, Some(ConnectError::Unavailable(why))) => Err(LookupError::Unavailable(why.clone())),
            (None, Some(e)) => Err(LookupError::Refused(e.to_string())),
            (None, None) => {
                let why = format!("{}: it is still being read after {timeout:?}", self.source.shown());
                Err(LookupError::Unavailable(why))
            }
        }
    }
}

impl Provider for BigQueryProvider {
    fn fetch(&self, keys: &[Arc<str>], timeout: Duration) -> Result<Vec<Fetched>, LookupError> {
        let table = self.table(timeout)?;
        Ok(keys.iter().map(|k| Ok(table.get(&**k).cloned())).collect())
    }

    /// Begins to read again if it is time. True once the new table is whole.
    fn look(&self) -> bool {
        self.begin_if_due();
        std::mem::take(&mut self.shared.state().is_new)
    }

    fn trouble(&self) -> Option<String> {
        let state = self.shared.state();
        let why = state.failed.as_ref()?;
        let used = if state.table.is_some() { "; its content before is used" } else { "" };
        Some(format!("{why}{used}"))
    }

    fn read_at(&self) -> Option<SystemTime> {
        self.shared.state().read_at
    }
}
