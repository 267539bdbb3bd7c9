//! Libraries that stand between a process and its disk: syncs of segments at which it dies or waits, and a record of all that it
//! does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What loads `tests/shim/faults.c` into a process, compiled once; it says there what it heeds.
#[must_use]
pub fn preload() -> (&'static str, String) {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    load(&LIBRARY, "faults")
}

/// What loads `tests/shim/record.c`.
#[must_use]
pub fn recorder() -> (&'static str, String) {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    load(&LIBRARY, "record")
}

type Library = (tempfile::TempDir, PathBuf);

fn load(library: &OnceLock<Library>, name: &str) -> (&'static str, String) {
    let (_, library) = library.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join(format!("{name}.so"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/shim/{name}.c"));
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&library, &source])
            .args(["-ldl", "-pthread"])
            .status()
            .expect("a C compiler is needed");
        assert!(status.success(), "{} does not compile", source.display());
        (dir, library)
    });
    ("LD_PRELOAD", library.to_str().unwrap().to_owned())
}

/// A segment that is written and not synced.
#[derive(Debug)]
pub struct Unsynced {
    /// It.
    pub path: PathBuf,
    /// Its length when this process last synced it; none: never.
    pub synced: Option<u64>,
}

impl Unsynced {
    /// What the library's note says.
    #[must_use]
    pub fn of_note(note: &Path) -> Option<Unsynced> {
        let text = std::fs::read_to_string(note).ok()?;
        let (path, length) = text.trim_end().split_once('\n')?;
        Some(Unsynced { path: path.into(), synced: length.parse().ok() })
    }
}
