//! Versions of plugins: immutable once they are there, each with who brought it, when and why.
//!
//! ```text
//! DATA_DIR/plugins/DIGEST.wasm                     the components themselves (`components`)
//! DATA_DIR/plugins/versions/NAME@VERSION.json      what stands for one
//! ```
//!
//! Invariants: a version is there once its JSON is, and its component is durable before that; neither is ever changed. What
//! a crash leaves in between is a component without a version, which the next upload of it finds.

use super::components::Components;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tidemill_store::disk::OsDisk;
use tidemill_store::{StoreError, create_dir_durably, read_if_there, replace};

/// Versions of all plugins together: some are brought by every build of a team, and a listing stays one answer.
pub(crate) const VERSIONS_MAX: usize = 10_000;
/// Bytes of a message.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4096;

/// One version of a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    /// The plugin's name: lower-case letters, digits and hyphens.
    pub(crate) name: String,
    /// A semantic version.
    pub(crate) version: String,
    /// The world it is written for.
    pub(crate) kind: String,
    /// SHA-256 of the component, hex.
    pub(crate) digest: String,
    /// Length of the component.
    pub(crate) bytes: u64,
    /// Who brought it.
    pub(crate) by: String,
    /// When, ms since 1970 UTC.
    pub(crate) at_ms: i64,
    /// What for, if that was said.
    pub(crate) message: Option<String>,
}

/// What became of a version that was brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It is there from now on.
    New(Version),
    /// It was there, with these very bytes.
    Same(Version),
    /// A version of this name and number was there with other bytes: it stays.
    Other(Version),
    /// There are as many as there may be.
    Full,
}

/// The versions in a data directory.
#[derive(Debug)]
pub(crate) struct VersionStore {
    components: Components,
    versions: PathBuf,
    // Two uploads of one version: the second must find the first.
    adding: Mutex<()>,
}

impl VersionStore {
    /// Of this data directory. Nothing is made before the first version is.
    pub(crate) fn of(data_dir: &Path, components: Components) -> VersionStore {
        let versions = data_dir.join("plugins").join("versions");
        VersionStore { components, versions, adding: Mutex::new(()) }
    }

    /// Keeps a version, durably. Name and version are those of the component's description, which is checked.
    ///
    /// # Errors
    /// If it cannot be written; then it is not there.
    pub(crate) fn add(&self, version: Version, component: &[u8]) -> Result<Kept, StoreError> {
        let _one_at_a_time = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = self.get(&version.name, &version.version)? {
            let same = there.digest == version.digest;
            return Ok(if same { Kept::Same(there) } else { Kept::Other(there) });
        }
        if self.files()?.len() >= VERSIONS_MAX {
            return Ok(Kept::Full);
        }
        create_dir_durably(&OsDisk, &self.versions)?;
        self.components.keep(component)?;
        let file = self.version_file(&version.name, &version.version);
        let text = serde_json::to_vec(&version).map_err(|e| StoreError::storage("write", &file)(e.into()))?;
        replace(&OsDisk, &file, &text)?;
        Ok(Kept::New(version))
    }

    /// A version; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn get(&self, name: &str, version: &str) -> Result<Option<Version>, StoreError> {
        if !plain(name) || !plain(version) {
            return Ok(None);
        }
        self.read(&self.version_file(name, version))
    }

    /// All versions, by name and then by time.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) fn all(&self) -> Result<Vec<Version>, StoreError> {
        let mut all = Vec::new();
        for file in self.files()? {
            all.extend(self.read(&file)?);
        }
        all.sort_by(|a, b| (&a.name, a.at_ms, &a.version).cmp(&(&b.name, b.at_ms, &b.version)));
        Ok(all)
    }

    /// The bytes of a version.
    ///
    /// # Errors
    /// If they cannot be read, or are not those that were brought.
    pub(crate) fn component(&self, version: &Version) -> Result<Vec<u8>, StoreError> {
        self.components.read(&version.digest)
    }

    fn files(&self) -> Result<Vec<PathBuf>, StoreError> {
        let entries = match fs::read_dir(&self.versions) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(StoreError::storage("list", &self.versions)(e)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.map_err(StoreError::storage("list", &self.versions))?.path();
            if path.extension().is_some_and(|e| e == "json") {
                files.push(path);
            }
        }
        Ok(files)
    }

    fn read(&self, file: &Path) -> Result<Option<Version>, StoreError> {
        let Some(text) = read_if_there(&OsDisk, file)? else { return Ok(None) };
        serde_json::from_slice(&text).map(Some).map_err(|e| StoreError::Damaged {
            file: file.to_owned(),
            offset: 0,
            epoch: None,
            what: format!("it says nothing of a version: {e}"),
            hint: "move it away, and upload the version again".to_owned(),
        })
    }

    fn version_file(&self, name: &str, version: &str) -> PathBuf {
        self.versions.join(format!("{name}@{version}.json"))
    }
}

/// Whether a part of a URL can be a name or a version: nothing that leads out of a directory.
fn plain(word: &str) -> bool {
    !word.is_empty()
        && word.len() <= 128
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'+'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sandbox::Digest;

    fn version(number: &str, component: &[u8]) -> Version {
        Version {
            name: "checkout".into(),
            version: number.into(),
            kind: "sessionizer".into(),
            digest: Digest::of(component).to_string(),
            bytes: component.len() as u64,
            by: "admin".into(),
            at_ms: 1_750_000_000_000,
            message: Some("first".into()),
        }
    }

    fn store_in(dir: &Path) -> VersionStore {
        VersionStore::of(dir, Components::of(dir))
    }

    #[test]
    fn a_version_is_kept_once_and_never_changed() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_in(dir.path());
        assert_eq!((store.all().unwrap(), store.get("checkout", "1.0.0").unwrap()), (vec![], None));
        let first = version("1.0.0", b"one");
        assert_eq!(store.add(first.clone(), b"one").unwrap(), Kept::New(first.clone()));
        let again = Version { at_ms: 1, message: None, ..first.clone() };
        assert_eq!(store.add(again, b"one").unwrap(), Kept::Same(first.clone()));
        assert_eq!(store.add(version("1.0.0", b"two"), b"two").unwrap(), Kept::Other(first.clone()));
        let second = version("1.1.0-rc.1+b", b"one");
        assert_eq!(store.add(second.clone(), b"one").unwrap(), Kept::New(second.clone()));
        let store = store_in(dir.path());
        assert_eq!(store.all().unwrap(), [first.clone(), second]);
        assert_eq!(store.component(&first).unwrap(), b"one");
    }

    #[test]
    fn what_a_crash_leaves_behind_is_no_version_and_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_in(dir.path());
        let v = version("1.0.0", b"one");
        fs::create_dir_all(&store.versions).unwrap();
        // The component, and half of what was to stand for it.
        fs::write(dir.path().join(format!("plugins/{}.wasm", v.digest)), b"o").unwrap();
        fs::write(store.versions.join("checkout@1.0.0.json.tmp"), b"{").unwrap();
        assert_eq!(store.all().unwrap(), []);
        assert_eq!(store.add(v.clone(), b"one").unwrap(), Kept::New(v.clone()));
        assert_eq!(store.component(&v).unwrap(), b"one");
        assert_eq!(store.all().unwrap(), [v]);
    }

    #[test]
    fn names_lead_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_in(dir.path());
        fs::create_dir_all(&store.versions).unwrap();
        fs::write(dir.path().join("x@1.json"), serde_json::to_vec(&version("1", b"")).unwrap()).unwrap();
        for (name, number) in [("../../x", "1"), ("", "1"), ("a", "../../x@1"), ("a\0", "1")] {
            assert_eq!(store.get(name, number).unwrap(), None, "{name:?} {number:?}");
        }
    }

    /// Format 1 of a version.
    #[test]
    fn frozen_text() {
        let text = r#"{"name":"checkout","version":"1.0.0","kind":"sessionizer","digest":"7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed","bytes":3,"by":"admin","at_ms":1750000000000,"message":"first"}"#;
        let v = version("1.0.0", b"one");
        assert_eq!(serde_json::to_string(&v).unwrap(), text);
        assert_eq!(serde_json::from_str::<Version>(text).unwrap(), v);
    }
}
