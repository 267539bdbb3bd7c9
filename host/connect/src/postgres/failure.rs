//! Whose move it is when Postgres, or the way to it, fails: by the class and code of its SQLSTATE, else by what kind of failure
//! the client saw.
//!
//! Of a server's message only its first line is taken, never its detail, which may show rows.

use crate::ConnectError;
use std::error::Error as _;
use std::io;

/// What a failure means for whoever called.
pub(super) fn kind(address: &str, e: &tokio_postgres::Error) -> ConnectError {
    match e.as_db_error() {
        Some(db) => of_code(db.code().code(), &format!("{address}: {} ({})", db.message(), db.code().code())),
        None => of_client(address, e),
    }
}

/// Codes that do not go with the others of their class, and classes.
fn of_code(code: &str, text: &str) -> ConnectError {
    let text = text.to_owned();
    match code {
        // A standby, as after a failover: another server takes over, or this one is promoted.
        "25006" => ConnectError::Unavailable(format!("{text}; is this a standby?")),
        // A statement or transaction that took too long, a lock that was not let go, an object in use.
        "57014" | "25P03" | "25P04" | "55P03" | "55006" => ConnectError::Unavailable(text),
        "XX001" | "XX002" => ConnectError::Failed(text),
        "42501" => ConnectError::Config(format!("{text}; grant it, or name another user or table")),
        "28000" | "28P01" => ConnectError::Config(format!("{text}; are user and password right?")),
        "3D000" => ConnectError::Config(format!("{text}; create it, or name another in the `url`")),
        _ => match code.get(..2).unwrap_or_default() {
            // Connections, resources (full disks and too many connections too), operators who shut it down, transactions
            // that met others, the system below, and faults of its own.
            "08" | "53" | "57" | "40" | "58" | "XX" => ConnectError::Unavailable(text),
            "23" => {
                ConnectError::Failed(format!("{text}: a constraint or trigger of the table refused a row"))
            }
            // What stands in the schema is not what it was, or not what was named.
            "42" | "3F" => ConnectError::Config(text),
            _ => ConnectError::Failed(text),
        },
    }
}

/// Whether it only carries what the handshake itself has found.
fn is_of_tls(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::Other || e.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

fn of_client(address: &str, e: &tokio_postgres::Error) -> ConnectError {
    let mut text = format!("{address}: {e}");
    let mut cause = e.source();
    let mut has_io = false;
    while let Some(c) = cause {
        text.push_str(&format!(": {c}"));
        has_io |= c.downcast_ref::<io::Error>().is_some_and(|e| !is_of_tls(e));
        cause = c.source();
    }
    // The client keeps its kinds to itself, but for their words.
    let said = e.to_string();
    if said.contains("TLS handshake") && !has_io {
        return ConnectError::Config(format!("{text}; see `sslmode` and `sslrootcert`"));
    }
    if said.contains("authentication") || said.contains("configuration") {
        return ConnectError::Config(format!("{text}; are user and password right?"));
    }
    if said.contains("serializing") {
        return ConnectError::Failed(text);
    }
    ConnectError::Unavailable(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_by_whose_move_it_is() {
        let kinds = |codes: &[&str]| -> Vec<&'static str> {
            codes
                .iter()
                .map(|code| match of_code(code, "postgres://h:1/d: x") {
                    ConnectError::Unavailable(m) => (m.starts_with("postgres://h:1/d: x"), "later").1,
                    ConnectError::Config(_) => "config",
                    ConnectError::Failed(_) => "failed",
                    ConnectError::Conflict(_) | ConnectError::Storage(_) => "other",
                })
                .collect()
        };
        let later = [
            "08006", "40001", "40P01", "53100", "53300", "57P01", "57P03", "57014", "55P03", "25P03",
            "25006", "58030", "XX000",
        ];
        assert!(kinds(&later).iter().all(|k| *k == "later"), "{:?}", kinds(&later));
        let config = ["28P01", "28000", "3D000", "42501", "42703", "42P01", "3F000"];
        assert!(kinds(&config).iter().all(|k| *k == "config"), "{:?}", kinds(&config));
        let failed = ["23514", "22P05", "XX001", "P0001", ""];
        assert!(kinds(&failed).iter().all(|k| *k == "failed"), "{:?}", kinds(&failed));
    }
}
