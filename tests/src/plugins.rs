//! Plugins as components: those that ship (`plugins/`) and those that only tests use (`tests/guests/`), built from source.
//!
//! One call of cargo builds all of them, once a process; cargo's own lock keeps test binaries that run at once apart, and
//! where nothing has changed it takes a tenth of a second. A component is put in its place under its name in one step and only if its bytes
//! are new, so a run that has the old one open never sees half of the new one.

use crate::{cargo, target_dir, workspace};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use wit_component::ComponentEncoder;

/// Where the crates of plugins are.
const FOLDERS: [&str; 2] = ["plugins", "tests/guests"];

/// The component of a plugin, by the name of its crate.
#[must_use]
pub fn plugin(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let path = BUILT.get_or_init(build).join(format!("{name}.wasm"));
    assert!(path.is_file(), "no plugin {name} in {FOLDERS:?}");
    path
}

/// Crates of plugins; a crate has the name of its folder.
fn crates() -> Vec<String> {
    let mut names = Vec::new();
    for folder in FOLDERS {
        for entry in std::fs::read_dir(workspace().join(folder)).into_iter().flatten().flatten() {
            if entry.path().join("Cargo.toml").is_file() {
                names.push(entry.file_name().into_string().unwrap());
            }
        }
    }
    names.sort();
    names
}

/// Builds all and gives the folder of components.
fn build() -> PathBuf {
    const TARGET: &str = "wasm32-unknown-unknown";
    let names = crates();
    let mut build = cargo(&["build", "--quiet", "--profile", "plugin", "--target", TARGET]);
    build.args(names.iter().flat_map(|name| ["-p", name]));
    assert!(build.status().expect("cargo cannot be started").success(), "the plugins do not build");
    let modules = target_dir().join(TARGET).join("plugin");
    let components = target_dir().join("components");
    std::fs::create_dir_all(&components).unwrap();
    for name in &names {
        let module = std::fs::read(modules.join(format!("{}.wasm", name.replace('-', "_")))).unwrap();
        put(&components.join(format!("{name}.wasm")), &component(&module));
    }
    components
}

/// The component of a core module that has the contract's WIT in a section of its own, as the SDK leaves it there.
#[must_use]
pub fn component(module: &[u8]) -> Vec<u8> {
    let encoder = ComponentEncoder::default().validate(true).module(module);
    encoder.and_then(|mut e| e.encode()).unwrap_or_else(|e| panic!("no component can be made of it: {e:#}"))
}

/// Gives a data directory the compiled code that other runs left, so that a component is compiled once and not in each case.
pub fn lend(state: &Path) {
    copy_compiled(&kept(), &state.join("compiled"));
}

/// Keeps the compiled code of a data directory for [`lend`].
pub(crate) fn keep(state: &Path) {
    copy_compiled(&state.join("compiled"), &kept());
}

fn kept() -> PathBuf {
    target_dir().join("components/compiled")
}

fn copy_compiled(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).into_iter().flatten().flatten() {
        // Others are half-written.
        if entry.path().extension().is_some_and(|e| e == "cwasm") {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(to).unwrap();
            put(&to.join(entry.file_name()), &std::fs::read(entry.path()).unwrap());
        }
    }
}

fn put(path: &Path, bytes: &[u8]) {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return;
    }
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
    file.write_all(bytes).unwrap();
    file.persist(path).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn every_plugin_that_ships_becomes_a_component() {
        let names = [
            "checkout-sessions",
            "checkout-sessions-next",
            "clickstream-validator",
            "gap-sessions",
            "profile-enricher",
        ];
        for name in names {
            let bytes = std::fs::read(plugin(name)).unwrap();
            // The layer in the second half of the version: 0 a module, 1 a component.
            assert_eq!(bytes[..8], [0, b'a', b's', b'm', 13, 0, 1, 0], "{name}");
        }
    }

    #[test]
    fn components_are_replaced_only_when_they_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.wasm");
        put(&path, b"one");
        let first = path.metadata().unwrap().ino();
        put(&path, b"one");
        assert_eq!(path.metadata().unwrap().ino(), first, "the same file still");
        put(&path, b"two");
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left there");
    }
}
