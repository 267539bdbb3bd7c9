//! A Bigtable of one's own: the stand-in of Google's Go library as a process (`go/bigtable`), filled by Google's own client, and
//! with what a test may have happen in front of it. What is asked of it is held against the documented form: a routing header,
//! and a list of keys that the limit of rows fits.
//!
//! [`emulator`] is the one that Google's Cloud SDK brings, where that is installed.

use crate::go::{self, Emulator, Running};
use crate::{Absent, kafka, or_skip};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// The project and the instance that it has.
pub const PROJECT: &str = "p";
/// See [`PROJECT`].
pub const INSTANCE: &str = "i";
/// `UNAVAILABLE`.
pub const UNAVAILABLE: i32 = 14;
/// `RESOURCE_EXHAUSTED`: too many requests.
pub const THROTTLED: i32 = 8;
/// `PERMISSION_DENIED`.
pub const DENIED: i32 = 7;
/// Cells that are put at once.
const CELLS_PER_ORDER: usize = 5_000;

/// What calls meet. By default nothing.
#[derive(Clone, Debug, Default)]
pub struct Fault {
    /// They are refused with this code, if it is not 0.
    pub code: i32,
    /// So many rows are sent first, and in the middle of the next it breaks off: with the code, or as if that were all.
    pub after_rows: Option<u64>,
    /// How many calls are refused or broken off; 0: all.
    pub times: u64,
    /// Each takes so long, ms.
    pub delay_ms: u64,
    /// Only who shows this token comes in.
    pub token: Option<String>,
}

/// What has been asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Calls that reached the rows.
    pub calls: u64,
    /// Keys that they asked for, and the most in one.
    pub keys: u64,
    /// See above.
    pub keys_in_call_max: u64,
    /// Calls that met a fault.
    pub met: u64,
}

/// A cell to put.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Of the row.
    pub key: String,
    /// Of the column.
    pub family: String,
    /// Of the column.
    pub qualifier: String,
    /// Its bytes.
    pub value: Vec<u8>,
    /// When it was written, in whole milliseconds; the greatest is the newest.
    pub micros: i64,
}

/// See the module's documentation. Ends with the value.
pub struct Bigtable {
    program: PathBuf,
    address: String,
    running: Mutex<Option<Running>>,
    /// What it was told to hold, to be told again when it is started again: it has no disk.
    told: Mutex<Vec<Value>>,
}

/// A stand-in, or `None` where it cannot be had: see [`or_skip`].
#[must_use]
pub fn bigtable() -> Option<Bigtable> {
    or_skip("Bigtable", Bigtable::start())
}

/// The emulator of Google's Cloud SDK, or `None` where that is not installed, which no wish for services changes: it cannot be
/// fetched by itself. `TIDEMILL_BIGTABLE_EMULATOR` names its program where it stands elsewhere.
///
/// # Panics
/// If it is there and does not start.
#[must_use]
pub fn emulator() -> Option<(Bigtable, Emulator)> {
    let named = std::env::var_os("TIDEMILL_BIGTABLE_EMULATOR").map(PathBuf::from);
    let in_sdk = || go::in_sdk("platform/bigtable-emulator/cbtemulator");
    let Some(program) = named.or_else(in_sdk) else {
        eprintln!("skipped: no emulator of Google's Cloud SDK here (gcloud components install bigtable)");
        return None;
    };
    let filler = or_skip("Bigtable", go::program("bigtable"))?;
    let port = free_port().unwrap();
    let arguments = ["-host", "127.0.0.1", "-port", &port.to_string()].map(str::to_owned);
    let emulator = Emulator::start(&program, &arguments, "running on");
    let table = Bigtable::of(filler, format!("127.0.0.1:{port}"));
    table.run("-fill").unwrap();
    Some((table, emulator))
}

/// One that nobody else gets while it is not listened at: below those that clients are given.
fn free_port() -> std::io::Result<u16> {
    Ok(kafka::listen()?.local_addr()?.port())
}

impl Bigtable {
    /// Builds it if need be, starts it, and waits until it listens.
    ///
    /// # Errors
    /// If it cannot be had, or does not start.
    pub fn start() -> Result<Bigtable, Absent> {
        let program = go::program("bigtable")?;
        let port = free_port().map_err(|e| Absent::Broken(e.to_string()))?;
        let bigtable = Bigtable::of(program, format!("127.0.0.1:{port}"));
        bigtable.start_again()?;
        Ok(bigtable)
    }

    fn of(program: PathBuf, address: String) -> Bigtable {
        Bigtable { program, address, running: Mutex::default(), told: Mutex::default() }
    }

    /// Starts it again after [`Bigtable::stop`], at the same address and with the same tables.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_again(&self) -> Result<(), Absent> {
        self.run("-listen")?;
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        told.iter().for_each(|order| drop(self.order(order)));
        Ok(())
    }

    fn run(&self, how: &str) -> Result<(), Absent> {
        let (running, address) = Running::start(&self.program, &[how, &self.address])?;
        if address != self.address {
            return Err(Absent::Broken(format!("it listens at {address:?}")));
        }
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
        Ok(())
    }

    /// Kills it, as a power cut would.
    pub fn stop(&self) {
        drop(self.running.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Makes a table with these families, and none that a test asks about again.
    pub fn create(&self, table: &str, families: &[&str]) {
        self.tell(json!({"Do": "create", "Table": table, "Families": families}));
    }

    /// Puts cells into it.
    pub fn put(&self, table: &str, cells: &[Cell]) {
        for cells in cells.chunks(CELLS_PER_ORDER) {
            let row = |c: &Cell| json!({"Key": c.key, "Family": c.family, "Qualifier": c.qualifier, "Value": c.value, "Micros": c.micros});
            self.tell(
                json!({"Do": "put", "Table": table, "Rows": cells.iter().map(row).collect::<Vec<_>>()}),
            );
        }
    }

    /// Somebody drops the table.
    pub fn drop_table(&self, table: &str) {
        self.tell(json!({"Do": "drop", "Table": table}));
    }

    /// Somebody drops a family with all that it has.
    pub fn drop_family(&self, table: &str, family: &str) {
        self.tell(json!({"Do": "drop-family", "Table": table, "Family": family}));
    }

    /// From now on calls meet this, and nothing of what was said before.
    pub fn meet(&self, fault: &Fault) {
        let Fault { code, after_rows, times, delay_ms, token } = fault;
        let fault = json!({
            "Code": code, "AfterRows": after_rows, "Times": times, "DelayMs": delay_ms, "Token": token.as_deref().unwrap_or_default(),
        });
        self.order(&json!({"Do": "fault", "Fault": fault}));
    }

    /// What has been asked for since it was started.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let counts = self.order(&json!({"Do": "counts"}));
        let n = |name: &str| counts[name].as_u64().unwrap();
        Counts { calls: n("Calls"), keys: n("Keys"), keys_in_call_max: n("KeysInCallMax"), met: n("Met") }
    }

    /// An order that holds after it was started again, too.
    fn tell(&self, order: Value) {
        self.order(&order);
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(order);
    }

    fn order(&self, order: &Value) -> Value {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = running.as_mut().expect("it runs").order(order);
        assert_eq!(answer["Error"], Value::Null, "{}", order["Do"]);
        answer
    }
}
