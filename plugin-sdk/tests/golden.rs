//! Tables of scenarios in files: written on demand, compared otherwise, and a difference shown line by line.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tidemill_plugin_sdk::prelude::*;
use tidemill_plugin_sdk::scenario::Scenario;

struct Hourly;
#[event]
struct Event {}
#[derive(Reason, Clone, Copy)]
enum Why {
    Over,
}
#[derive(Timer, Clone, Copy)]
enum Due {
    Hour,
}

impl Sessionizer for Hourly {
    type Config = ();
    type Event = Event;
    type State = ();
    type Reason = Why;
    type Timer = Due;
    fn configure((): ()) -> Result<Self, Vec<ConfigError>> {
        Ok(Hourly)
    }
    fn open(&self, cx: &mut Context<Self>, _: &Event) {
        cx.set_timer(Due::Hour, Duration::hours(1));
    }
    fn on_event(&self, _: &mut Context<Self>, (): &mut (), _: &Event) -> Decision<Why> {
        keep()
    }
    fn on_timer(&self, _: &mut Context<Self>, (): &mut (), _: Due) -> Decision<Why> {
        close(Why::Over)
    }
}

/// The file that [`a_table_in_a_file`] is to look at.
const FILE: &str = "TIDEMILL_TEST_TABLE";

#[test]
fn a_table_in_a_file() {
    // Without the file this is no test of its own; `run` calls it with one.
    let Some(path) = std::env::var_os(FILE).map(PathBuf::from) else { return };
    let mut s = Scenario::<Hourly>::new("{}");
    s.at("10:00", fields! {}).at("10:59", fields! {}).at("11:00", fields! {});
    s.expect_file(path);
}

/// Runs that test in a process of its own.
fn run(path: &Path, accept: bool) -> (bool, String) {
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args(["a_table_in_a_file", "--exact", "--nocapture"]).env(FILE, path).env_remove("TIDEMILL_ACCEPT");
    if accept {
        test.env("TIDEMILL_ACCEPT", "1");
    }
    let Output { status, stdout, stderr } = test.output().unwrap();
    (status.success(), [stdout, stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat())
}

#[test]
fn a_table_is_written_on_demand_and_compared_otherwise() {
    let folder = std::env::temp_dir().join(format!("tidemill-golden-{}", std::process::id()));
    let path = folder.join("beside/table.txt");
    let (passed, said) = run(&path, false);
    assert!(!passed && said.contains("TIDEMILL_ACCEPT=1 writes it"), "{said}");
    let (passed, said) = run(&path, true);
    assert!(passed, "{said}");
    let table = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        table.split_whitespace().collect::<Vec<_>>().join(" "),
        "10:00:00 .. 10:59:00 2 events over {} 11:00:00 .. 11:00:00 1 event open {}"
    );
    assert!(run(&path, false).0, "it is as it was written");
    std::fs::write(&path, table.replace("2 events", "3 events")).unwrap();
    let (passed, said) = run(&path, false);
    assert!(!passed, "another table");
    for line in [
        "- 10:00:00 .. 10:59:00 3 events over {}",
        "+ 10:00:00 .. 10:59:00 2 events over {}",
        "  11:00:00 .. 11:00:00 1 event open {}",
    ] {
        assert!(said.contains(line), "no {line:?} in {said}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}
