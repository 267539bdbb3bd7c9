//! The SDK as a new plugin has it beside itself: sources as they stand in this binary, manifests that stand for themselves,
//! and a lock file with the versions that the SDK was tested with.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use toml::{Table, Value};

use super::File;

/// Paths from the root of the workspace, and what stands there.
const SOURCES: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/author_sources.rs"));
/// Where they go.
const FOLDER: &str = "vendor/tidemill";
/// What a plugin depends on.
const SDK: &str = "tidemill-plugin-sdk";

/// The files under `vendor`, and the lock file of a plugin with this name.
///
/// # Errors
/// If a manifest is not as it is taken to be here, for whoever changed it.
pub(super) fn files(name: &str) -> Result<Vec<File>, String> {
    let workspace: Table = parse(source("Cargo.toml")?)?;
    let mut files = vec![(PathBuf::from("Cargo.lock"), lock(source("Cargo.lock")?, name)?)];
    for (path, text) in SOURCES.iter().filter(|(path, _)| !matches!(*path, "Cargo.toml" | "Cargo.lock")) {
        let text = match path.strip_suffix("/Cargo.toml") {
            Some(folder) => manifest(text, &workspace, folder)?,
            None => (*text).to_owned(),
        };
        files.push((PathBuf::from(FOLDER).join(path), text));
    }
    Ok(files)
}

fn source(path: &str) -> Result<&'static str, String> {
    SOURCES
        .iter()
        .find(|(p, _)| *p == path)
        .map(|(_, text)| *text)
        .ok_or_else(|| format!("there is no {path}"))
}

fn parse(text: &str) -> Result<Table, String> {
    text.parse().map_err(|e: toml::de::Error| e.to_string())
}

/// A member's manifest without a workspace: whatever it takes from there is written out.
fn manifest(text: &str, workspace: &Table, folder: &str) -> Result<String, String> {
    let mut member = parse(text)?;
    let shared = workspace.get("workspace").and_then(Value::as_table).ok_or("there is no [workspace]")?;
    let of = |name: &str| shared.get(name).and_then(Value::as_table).cloned().unwrap_or_default();
    let (package, dependencies) = (of("package"), of("dependencies"));
    if let Some(own) = member.get_mut("package").and_then(Value::as_table_mut) {
        for (key, value) in own.iter_mut().filter(|(_, v)| is_inherited(v)) {
            *value =
                package.get(key).cloned().ok_or_else(|| format!("the workspace has no package.{key}"))?;
        }
    }
    if member.get("lints").is_some_and(is_inherited) {
        member.insert("lints".into(), of("lints").into());
    }
    let up = "../".repeat(folder.split('/').count());
    resolve(&mut member, &dependencies, &up)?;
    if let Some(targets) = member.get_mut("target").and_then(Value::as_table_mut) {
        for (_, target) in targets.iter_mut() {
            resolve(target.as_table_mut().ok_or("a target is no table")?, &dependencies, &up)?;
        }
    }
    let text = toml::to_string(&member).map_err(|e| e.to_string())?;
    Ok(format!(
        "# Written by `tidemill plugin new`: this crate as it is in that release of Tidemill.\n\n{text}"
    ))
}

fn is_inherited(value: &Value) -> bool {
    value.get("workspace").and_then(Value::as_bool) == Some(true)
}

/// Writes out the dependencies of a table that has some.
fn resolve(table: &mut Table, shared: &Table, up: &str) -> Result<(), String> {
    for kind in ["dependencies", "build-dependencies", "dev-dependencies"] {
        let Some(list) = table.get_mut(kind).and_then(Value::as_table_mut) else { continue };
        for (name, own) in list.iter_mut().filter(|(_, v)| is_inherited(v)) {
            let mut full = match shared.get(name) {
                Some(Value::String(version)) => {
                    Table::from_iter([("version".to_owned(), version.as_str().into())])
                }
                Some(Value::Table(full)) => full.clone(),
                _ => return Err(format!("the workspace has no dependency {name}")),
            };
            if let Some(path) = full.get("path").and_then(Value::as_str) {
                let path = format!("{up}{path}");
                full.insert("path".into(), path.into());
            }
            // A member may add to what is shared, and nothing that is embedded does.
            let more = own.as_table().and_then(|own| own.keys().find(|key| *key != "workspace"));
            if let Some(key) = more {
                return Err(format!("{name} has a `{key}` of its own beside `workspace = true`"));
            }
            *own = full.into();
        }
    }
    Ok(())
}

/// A package of a lock file.
struct Package<'a> {
    version: &'a str,
    /// Source, checksum.
    from: Option<(&'a str, &'a str)>,
    dependencies: Vec<&'a str>,
}

/// Our lock file without what the SDK does not need, and with a plugin of this name.
fn lock(text: &str, name: &str) -> Result<String, String> {
    let ours = parse(text)?;
    let packages = ours.get("package").and_then(Value::as_array).ok_or("the lock file has no packages")?;
    let mut all: BTreeMap<&str, Vec<Package<'_>>> = BTreeMap::new();
    for package in packages {
        let text = |key: &str| package.get(key).and_then(Value::as_str);
        let (Some(name), Some(version)) = (text("name"), text("version")) else {
            return Err("a package has no name or no version".into());
        };
        let dependencies = package.get("dependencies").and_then(Value::as_array);
        let dependencies = dependencies.into_iter().flatten().filter_map(Value::as_str).collect();
        let from = text("source").zip(text("checksum"));
        all.entry(name).or_default().push(Package { version, from, dependencies });
    }
    // The packages that are needed, by name and version.
    let mut needed: BTreeMap<(&str, &str), &Package<'_>> = BTreeMap::new();
    let mut todo = vec![SDK];
    while let Some(wanted) = todo.pop() {
        let (name, package) = find(&all, wanted)?;
        if needed.insert((name, package.version), package).is_none() {
            todo.extend(&package.dependencies);
        }
    }
    let own = Package { version: "0.1.0", from: None, dependencies: vec![SDK] };
    let mut listed: Vec<((&str, &str), &Package<'_>)> = needed.iter().map(|(k, p)| (*k, *p)).collect();
    listed.push(((name, own.version), &own));
    listed.sort_by_key(|(key, _)| *key);
    let mut out = String::from(
        "# This file is automatically @generated by Cargo.\n# It is not intended for manual editing.\nversion = 4\n",
    );
    for ((name, version), package) in listed {
        let _ = writeln!(out, "\n[[package]]\nname = \"{name}\"\nversion = \"{version}\"");
        if let Some((source, checksum)) = package.from {
            let _ = writeln!(out, "source = \"{source}\"\nchecksum = \"{checksum}\"");
        }
        if package.dependencies.is_empty() {
            continue;
        }
        out.push_str("dependencies = [\n");
        for wanted in &package.dependencies {
            let (name, package) = find(&all, wanted)?;
            // With its version only where there is another one.
            let only = needed.keys().filter(|(n, _)| *n == name).count() == 1;
            let version = if only { String::new() } else { format!(" {}", package.version) };
            let _ = writeln!(out, " \"{name}{version}\",");
        }
        out.push_str("]\n");
    }
    Ok(out)
}

/// The package that a lock file means by `name`, `name version` or `name version (source)`.
fn find<'a, 'b>(
    all: &'b BTreeMap<&'a str, Vec<Package<'a>>>,
    wanted: &str,
) -> Result<(&'a str, &'b Package<'a>), String> {
    let mut words = wanted.split(' ');
    let (name, version) = (words.next().unwrap_or_default(), words.next());
    let found = all.get_key_value(name).and_then(|(name, list)| {
        list.iter().find(|p| version.is_none_or(|v| v == p.version)).map(|p| (*name, p))
    });
    found.ok_or_else(|| format!("the lock file has no {wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_to_a_workspace() {
        let files = files("visits").expect("the embedded manifests are as they are taken to be");
        let manifests: Vec<&File> = files.iter().filter(|(p, _)| p.ends_with("Cargo.toml")).collect();
        assert_eq!(manifests.len(), 3, "the SDK, its derives, the contract");
        for (path, text) in manifests {
            let table = parse(text).expect("a manifest");
            assert!(!text.contains("workspace"), "{}:\n{text}", path.display());
            assert!(table["package"]["version"].is_str() && table["lints"]["clippy"].is_table(), "{text}");
        }
        let sdk = files.iter().find(|(p, _)| p.ends_with("plugin-sdk/Cargo.toml")).expect("the SDK");
        let table = parse(&sdk.1).expect("a manifest");
        assert_eq!(table["dependencies"]["tidemill-contract"]["path"].as_str(), Some("../wit"));
        assert_eq!(
            table["dependencies"][format!("{SDK}-derive")]["path"].as_str(),
            Some("../plugin-sdk/derive")
        );
    }

    #[test]
    fn a_lock_file_names_versions_only_where_there_are_several() {
        let ours = r#"
            [[package]]
            name = "tidemill-plugin-sdk"
            version = "0.1.0"
            dependencies = ["a 1.0.0", "b"]
            [[package]]
            name = "a"
            version = "1.0.0"
            source = "registry"
            checksum = "1"
            [[package]]
            name = "a"
            version = "2.0.0"
            source = "registry"
            checksum = "2"
            [[package]]
            name = "b"
            version = "1.0.0"
            source = "registry"
            checksum = "3"
        "#;
        let one = lock(ours, "visits").expect("a lock file");
        assert!(one.contains("dependencies = [\n \"a\",\n \"b\",\n]"), "{one}");
        assert!(!one.contains("2.0.0"), "nobody needs it:\n{one}");
        assert!(one.ends_with(
            "name = \"visits\"\nversion = \"0.1.0\"\ndependencies = [\n \"tidemill-plugin-sdk\",\n]\n"
        ));
        let both = ours.replace("checksum = \"3\"", "checksum = \"3\"\ndependencies = [\"a 2.0.0\"]");
        let both = lock(&both, "visits").expect("a lock file");
        assert!(both.contains("dependencies = [\n \"a 1.0.0\",\n \"b\",\n]"), "{both}");
        assert!(lock(ours, "visits").is_ok() && lock(&ours.replace("\"b\"]", "\"c\"]"), "visits").is_err());
    }
}
