//! The README's walk for operators, command by command, as it is printed there.
//!
//! The bug family: a command that was right once. Only the ports are others, so that nobody's host is in the way, and
//! what runs in the background is waited for. It needs `bash` and `curl`, as its reader does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use tidemill_tests::{binary, workspace};

/// The commands below a heading, those that go on with a backslash in one piece.
fn commands(readme: &str, heading: &str) -> Vec<String> {
    let (_, section) = readme.split_once(&format!("\n## {heading}\n")).expect("the heading");
    let section = section.split("\n## ").next().unwrap();
    let mut all: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in section.lines().filter_map(|l| l.strip_prefix("    ")) {
        match all.last_mut().filter(|_| goes_on) {
            Some(last) => *last = format!("{last}\n{line}"),
            None => all.push(line.to_owned()),
        }
        goes_on = line.ends_with('\\');
    }
    all
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A folder that looks like a clone, with the ports in its files replaced.
fn clone_of(dir: &Path, ports: impl Fn(&str) -> String) {
    for name in ["plugins", "Cargo.toml"] {
        symlink(workspace().join(name), dir.join(name)).unwrap();
    }
    fs::create_dir(dir.join("examples")).unwrap();
    let example = fs::read_to_string(workspace().join("examples/shop.toml")).unwrap();
    fs::write(dir.join("examples/shop.toml"), ports(&example)).unwrap();
    fs::create_dir(dir.join("bin")).unwrap();
    symlink(binary(), dir.join("bin/tidemill")).unwrap();
}

#[test]
fn an_operator_s_walk_goes_as_the_readme_prints_it() {
    let readme = fs::read_to_string(workspace().join("README.md")).unwrap();
    let (admin, ingest) = (free_port().to_string(), free_port().to_string());
    let ports = |text: &str| text.replace("7300", &admin).replace("7301", &ingest);
    let dir = tempfile::tempdir().unwrap();
    clone_of(dir.path(), ports);
    let commands = commands(&readme, "Operating it");
    for needed in
        ["tidemill run", "tidemill deploy", "tidemill status", "tidemill rollback", "$API/plugins", "-X PUT"]
    {
        assert!(commands.iter().any(|c| c.contains(needed)), "the walk has no `{needed}`");
    }
    let mut script = String::from("set -euo pipefail\ntrap 'kill %1; wait %1' EXIT\n");
    for command in &commands {
        script += &format!(
            "echo; echo \"=== {}\"\n{}\n",
            command.lines().next().unwrap().replace(['"', '$', '`', '\\'], "'"),
            ports(command)
        );
        let code = command.split(" #").next().unwrap().trim_end();
        if code.ends_with('&') {
            // A condition: the port is open.
            script += &format!(
                "for n in $(seq 600); do curl -s -o /dev/null http://127.0.0.1:{admin}/health && break; sleep 0.1; done\n"
            );
        }
    }
    let path = format!("{}:{}", dir.path().join("bin").display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(dir.path())
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .expect("bash can be started");
    let (said, noted) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let all = format!("{said}\n--- stderr\n{noted}");
    // The trap's own answer is that of a run that was stopped: 0.
    assert!(output.status.success(), "{}\n{all}", output.status);
    let shown = |what: &str| assert!(said.contains(what), "`{what}` was not shown\n{all}");
    // What each step is for.
    shown("\"accepted\":1");
    shown("visits: deployment 1 is in force for events from");
    shown("checkout-sessions@0.2.0");
    shown("visits: in memory 1 event");
    shown("deploy by");
    shown("visits: deployment 0 is in force");
    shown("\"version\":\"0.2.0\"");
    shown("\"kind\":\"deploy\"");
    shown("rollback");
    // And every command has shown the way without it.
    assert!(noted.matches("curl -H").count() >= 5, "{all}");
}
