//! What the author of a plugin does: `tidemill plugin build` and what it refuses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use tidemill_tests::{binary, plugins::plugin};

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// `tidemill plugin …` in a folder.
fn tidemill(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(binary()).arg("plugin").args(arguments).current_dir(dir).output().unwrap()
}

/// The one JSON object that it printed.
#[track_caller]
fn json(output: &Output, code: i32) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"))
}

#[test]
fn a_crate_of_a_workspace_becomes_the_component_that_other_tools_make() {
    let there = tempfile::tempdir().unwrap();
    let out = there.path().join("new/gap.wasm");
    let built =
        tidemill(workspace(), &["build", "plugins/gap-sessions", "--json", "--out", out.to_str().unwrap()]);
    let built = json(&built, 0);
    assert_eq!((&built["world"], &built["name"]), (&"sessionizer".into(), &"gap-sessions".into()));
    assert_eq!(built["imports"][0], "tidemill:plugin/host@0.1.0");
    let bytes = std::fs::read(&out).unwrap();
    assert_eq!(built["bytes"], bytes.len());
    assert!(bytes == std::fs::read(plugin("gap-sessions")).unwrap(), "two ways, two components");
}

#[test]
fn what_is_no_plugin_is_refused_with_what_to_do() {
    for (dir, what) in [
        (".", "is a workspace and no crate"),
        ("host/engine", "crate-type = [\"cdylib\", \"rlib\"]"),
        ("nowhere", "name the folder of a plugin's crate"),
    ] {
        let refused = json(&tidemill(workspace(), &["build", dir, "--json"]), 4);
        assert!(refused.to_string().replace('\\', "").contains(what), "{refused}");
    }
}
