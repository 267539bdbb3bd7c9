//! The house's own rules: what ARCHITECTURE.md says of the crates is so.
//!
//! Finds an arrow between crates that crept in, a table that grew stale, and a clock, file or thread in the
//! engine (which the build for wasm32 lets through: there they compile, and fail when called).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crate -> (its folder, the workspace crates that it names).
type Arrows = BTreeMap<String, (String, BTreeSet<String>)>;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn read(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Everything between backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn allowed() -> Arrows {
    let page = read("ARCHITECTURE.md");
    let table = page.split("<!-- arrows: begin -->").nth(1).expect("ARCHITECTURE.md has no table of arrows");
    let table = table.split("<!-- arrows: end -->").next().unwrap();
    table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
            let [name, folder, on] = cells[..] else { panic!("three columns, not {line}") };
            let one = |cell| quoted(cell).into_iter().next().unwrap();
            (one(name), (one(folder), quoted(on).into_iter().collect()))
        })
        .collect()
}

/// The strings of an array that a key of a manifest has.
fn array(manifest: &str, key: &str) -> Vec<String> {
    let at = manifest.find(&format!("\n{key} = [")).unwrap_or_else(|| panic!("no {key}"));
    let text = &manifest[at..][..manifest[at..].find(']').unwrap()];
    text.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The value of a line `name = "value"`; the first is the package's.
fn name_of(manifest: &str) -> String {
    let line = manifest.lines().find(|l| l.starts_with("name = ")).expect("a package has a name");
    line.split('"').nth(1).unwrap().to_owned()
}

/// Names of all dependencies: of every kind (normal, dev, build) and for every target.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|l| l.split(']').next()) {
            inside = section.ends_with("dependencies");
            // `[dependencies.x]`: one to itself.
            if let Some((_, name)) = section.rsplit_once("dependencies.") {
                names.insert(name.to_owned());
            }
        } else if inside && let Some((name, value)) = line.split_once('=') {
            names.insert(name.split('.').next().unwrap().trim().trim_matches('"').to_owned());
            // `x = { package = "y" }`: a crate under another name.
            if let Some((_, renamed)) = value.split_once("package = \"") {
                names.insert(renamed.split('"').next().unwrap().to_owned());
            }
        }
    }
    names
}

#[test]
fn crates_depend_on_each_other_as_the_table_says() {
    let folders = array(&read("Cargo.toml"), "members");
    let manifests: Vec<(String, String)> =
        folders.into_iter().map(|f| (f.clone(), read(&format!("{f}/Cargo.toml")))).collect();
    let members: BTreeSet<String> = manifests.iter().map(|(_, m)| name_of(m)).collect();
    let actual: Arrows = manifests
        .iter()
        .map(|(folder, m)| {
            (name_of(m), (folder.clone(), dependencies(m).intersection(&members).cloned().collect()))
        })
        .collect();
    assert_eq!(actual, allowed(), "left: the manifests; right: ARCHITECTURE.md");
}

#[test]
fn a_dependency_is_found_however_it_is_written() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\na = \"1\"\nb.workspace = true\nc = { package = \"d\" }\n\
                    [dev-dependencies]\ne = { workspace = true }\n[target.'cfg(unix)'.build-dependencies]\nf = \"1\"\n\
                    [dependencies.g]\nversion = \"1\"\n[lints]\nworkspace = true\n";
    let found: Vec<String> = dependencies(manifest).into_iter().collect();
    assert_eq!(found, ["a", "b", "c", "d", "e", "f", "g"]);
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "target" {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// What a file names outside its comments.
fn impure(text: &str) -> Vec<&'static str> {
    let code: Vec<&str> = text.lines().map(|l| l.split("//").next().unwrap()).collect();
    let code = code.join("\n");
    let words: BTreeSet<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let squeezed: String = code.chars().filter(|c| !c.is_whitespace()).collect();
    let mut found: Vec<&str> = ["SystemTime", "Instant"].into_iter().filter(|w| words.contains(w)).collect();
    for (room, path) in [("fs", "std::fs"), ("net", "std::net"), ("thread", "std::thread")] {
        // Also out of a group: `use std::{fs, io}`.
        let grouped = squeezed.split("std::{").skip(1).any(|rest| {
            let group = rest.split(';').next().unwrap();
            group.split(['{', '}', ',']).any(|item| item == room || item.starts_with(&format!("{room}::")))
        });
        if grouped || squeezed.contains(path) {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_engine_names_no_file_socket_thread_or_clock() {
    let mut files = Vec::new();
    sources(&workspace().join("host/engine/src"), &mut files);
    assert!(files.len() > 5, "the engine has moved");
    for file in files {
        assert_eq!(impure(&fs::read_to_string(&file).unwrap()), [""; 0], "{}", file.display());
    }
}

#[test]
fn impurity_is_found_however_it_is_written() {
    assert_eq!(impure("use std::fs::File;"), ["std::fs"]);
    assert_eq!(impure("use std::{io, net::TcpStream};"), ["std::net"]);
    assert_eq!(impure("use std::{collections::{BTreeMap}, thread};"), ["std::thread"]);
    assert_eq!(impure("let t = std::time :: Instant::now();"), ["Instant"]);
    assert_eq!(impure("// std::fs\nuse std::fmt; fn instant() {} let fs = 1;"), [""; 0]);
}

#[test]
fn every_file_opens_with_its_job() {
    let mut files = Vec::new();
    for member in array(&read("Cargo.toml"), "members") {
        sources(&workspace().join(member), &mut files);
    }
    let silent: Vec<&PathBuf> =
        files.iter().filter(|f| !fs::read_to_string(f).unwrap().starts_with("//! ")).collect();
    assert!(silent.is_empty(), "no `//!` at the top of {silent:?}");
}

/// Names of tests in the tables of a page: what stands in backquotes and has so many words.
fn named_tests(page: &str) -> BTreeSet<String> {
    let is_test = |name: &String| {
        name.matches('_').count() > 2
            && name.chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    let rows = page.lines().filter(|line| line.starts_with('|'));
    rows.flat_map(quoted).filter(is_test).collect()
}

/// Bug family: a page that promises what a test showed once.
#[test]
fn every_test_that_a_page_names_is_there() {
    let mut files = Vec::new();
    for folder in ["host", "tests", "xtask"] {
        sources(&workspace().join(folder), &mut files);
    }
    let code: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let mut seen = 0;
    for page in ["connectors", "kafka", "pubsub", "postgres", "bigquery", "bigtable", "snapshots"] {
        let names = named_tests(&read(&format!("docs/{page}.md")));
        let gone: Vec<_> = names.iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
        assert!(gone.is_empty(), "docs/{page}.md names tests that are not there: {gone:?}");
        seen += names.len();
    }
    assert!(seen > 150, "{seen}");
}

#[test]
fn a_name_in_a_table_is_found() {
    let found =
        named_tests("| down | `it_is_waited_for_then`, `x` |\n`not_in_a_table_at_all`\n| `of_three_words` |");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["it_is_waited_for_then"]);
}
