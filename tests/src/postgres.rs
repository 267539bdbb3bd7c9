//! What stands in tables of Postgres.

use crate::{Stored, stored};
use tidemill_services::postgres::Database;

/// A table of sessions as it stands, retracted rows too.
#[track_caller]
#[must_use]
pub fn table(database: &Database, table: &str) -> Vec<Stored> {
    let ms = |c: &str| format!("(extract(epoch FROM {c}) * 1000)::bigint");
    let lines = database.ask(&format!(
        "SELECT json_build_object('session_id', session_id, 'incarnation', incarnation, 'epoch', epoch, 'stage', stage, \
         'key', key, 'start_ms', {}, 'end_ms', {}, 'events', events, 'reason', reason, 'plugin', plugin, \
         'fields', fields) FROM {table}",
        ms("start_time"),
        ms("end_time")
    ));
    lines.lines().map(stored).collect()
}
