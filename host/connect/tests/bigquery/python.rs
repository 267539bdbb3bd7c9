//! Google's own clients for Python are accepted and refused by the BigQuery of the tests in the same cases as Tidemill, and what
//! Tidemill sends they can read: so the one is no worse than what Google's clients expect, and the other no private dialect.
//!
//! They are installed once into the target folder, by pip. Where there is no Python or no registry the test says so and passes,
//! unless `TIDEMILL_REQUIRE_SERVICES` is 1 and Python is there.

use crate::world::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use tidemill_engine::outbox::Stage;
use tidemill_services::{Absent, or_skip};

const PACKAGES: [&str; 2] = ["google-cloud-bigquery==3.47.0", "google-cloud-bigquery-storage==2.43.0"];
/// What the script calls what it was told.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bigquery/client.py");

/// A Python with Google's clients.
fn python() -> Result<PathBuf, Absent> {
    let broken = |what: &str, e: &dyn std::fmt::Display| Absent::Broken(format!("{what}: {e}"));
    let test = std::env::current_exe().map_err(|e| broken("the test's own path", &e))?;
    // Tests run from `target/PROFILE/deps`.
    let target = test.ancestors().nth(3).unwrap_or(Path::new("."));
    let folder = target.join("services").join("google-clients");
    fs::create_dir_all(&folder).map_err(|e| broken("cannot make a folder", &e))?;
    let lock = File::create(folder.join("lock")).map_err(|e| broken("cannot lock", &e))?;
    lock.lock().map_err(|e| broken("cannot lock", &e))?;
    let (python, done) = (folder.join("bin/python"), folder.join(PACKAGES.join("-").replace("==", "-")));
    if !done.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        run(Command::new(&python).args(pip).args(PACKAGES))?;
        File::create(done).map_err(|e| broken("cannot finish", &e))?;
    }
    Ok(python)
}

fn run(command: &mut Command) -> Result<(), Absent> {
    let missing = |why: String| Absent::Missing(format!("{:?}: {why}", command.get_program()));
    let output = Command::new(command.get_program()).args(command.get_args()).output();
    let output = output.map_err(|e| missing(e.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("no word of why").to_owned();
    if output.status.success() { Ok(()) } else { Err(missing(last)) }
}

/// Whether there is a Python that could have them.
fn has_pip() -> bool {
    Command::new("python3").args(["-m", "pip", "--version"]).output().is_ok_and(|o| o.status.success())
}

#[test]
fn googles_clients_fare_as_tidemill_does_and_read_what_it_sends() {
    let found = python();
    let python = match found {
        Err(Absent::Missing(why)) if !has_pip() => {
            eprintln!("skipped: no clients of Google's here: {why}");
            return;
        }
        found => match or_skip("clients of Google's", found) {
            Some(python) => python,
            None => return,
        },
    };
    let server = bigquery();
    let mut sink = opened(&server, PATIENT);
    let fields = r#"{"total": 1.50, "text": "größer"}"#;
    let epoch = Epoch::new(1, 1).row(1, 3, Stage::Early).row_with(2, 0, Stage::Final, fields);
    epoch.to(&mut sink).unwrap();
    Epoch::new(1, 2).row(1, 0, Stage::Retracted).to(&mut sink).unwrap();
    let recorded = tempfile::tempdir().unwrap();
    for (n, request) in server.requests().iter().enumerate() {
        fs::write(recorded.path().join(format!("{n:03}")), request).unwrap();
    }
    assert_eq!(server.requests().len(), 2);
    let output =
        Command::new(python).arg(SCRIPT).arg(server.endpoint()).arg(recorded.path()).output().unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{wrong}\n{said}");
    let lines: Vec<Value> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let cases = lines.iter().filter(|l| l.get("case").is_some()).count();
    assert!(cases >= 26, "{cases} cases\n{said}");
    // The newest row of each session as Google reads them is what readers see.
    let mut rows: BTreeMap<String, Value> = BTreeMap::new();
    let mut sequences = Vec::new();
    for line in &lines {
        let Some(mut row) = line.get("row").cloned() else { continue };
        let map = row.as_object_mut().unwrap();
        assert_eq!(map.remove("_CHANGE_TYPE"), Some("UPSERT".into()));
        sequences.push(map.remove("_CHANGE_SEQUENCE_NUMBER").unwrap());
        rows.insert(row["session_id"].as_str().unwrap().to_owned(), row);
    }
    assert_eq!(sequences, ["1/1", "1/1", "1/2"]);
    let seen: Vec<Value> = server.rows(TABLE).into_iter().map(Value::Object).collect();
    assert_eq!(rows.into_values().collect::<Vec<_>>(), seen);
    // What Google's client has changed is as the rules say.
    let rows = server.rows("projects/p/datasets/clicks/tables/google");
    let shown: Vec<String> = rows.iter().map(|r| format!("{} {}", r["id"], r["n"])).collect();
    assert_eq!(shown, ["\"b\" 3"]);
}
