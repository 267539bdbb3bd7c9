//! Components that pipelines run, kept by digest in the data directory: a version that is deployed can be loaded again
//! whatever becomes of the file it came from.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tidemill_sandbox::Digest;
use tidemill_store::disk::OsDisk;
use tidemill_store::{StoreError, create_dir_durably, read_if_there, replace};

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(crate) struct Components {
    dir: PathBuf,
    /// Two pipelines, or an upload, may keep the same component at once.
    keeping: Arc<Mutex<()>>,
}

impl Components {
    /// Those in this data directory, which is claimed.
    pub(crate) fn of(data_dir: &Path) -> Components {
        Components { dir: data_dir.join("plugins"), keeping: Arc::default() }
    }

    /// Keeps a component; returns its digest in hex. Durable when it returns.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn keep(&self, bytes: &[u8]) -> Result<String, StoreError> {
        let digest = Digest::of(bytes).to_string();
        let _one_at_a_time = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        // A damaged one is written anew.
        if self.read(&digest).is_err() {
            create_dir_durably(&OsDisk, &self.dir)?;
            replace(&OsDisk, &self.path(&digest), bytes)?;
        }
        Ok(digest)
    }

    /// The component with this digest.
    ///
    /// # Errors
    /// If it is not there, or not what was kept.
    pub(crate) fn read(&self, digest: &str) -> Result<Vec<u8>, StoreError> {
        let file = self.path(digest);
        let damaged = |what: &str| StoreError::Damaged {
            file: file.clone(),
            offset: 0,
            epoch: None,
            what: what.to_owned(),
            hint: "upload the component again, or put its file back".to_owned(),
        };
        match read_if_there(&OsDisk, &file)? {
            Some(bytes) if Digest::of(&bytes).to_string() == digest => Ok(bytes),
            Some(_) => Err(damaged("it holds other bytes than its name says")),
            None => Err(damaged("it is gone")),
        }
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.wasm"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn one_component_may_be_kept_by_several_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let components = Components::of(dir.path());
        let bytes = vec![7; 1 << 20];
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| components.keep(&bytes))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect::<Result<Vec<String>, StoreError>>()
        });
        assert_eq!(components.read(&all.unwrap()[0]).unwrap(), bytes);
    }

    #[test]
    fn a_component_is_kept_by_what_it_is_and_a_damaged_one_is_not_given() {
        let dir = tempfile::tempdir().unwrap();
        let components = Components::of(dir.path());
        let digest = components.keep(b"some bytes").unwrap();
        assert_eq!(components.read(&digest).unwrap(), b"some bytes");
        fs::write(components.path(&digest), b"other bytes").unwrap();
        assert!(components.read(&digest).unwrap_err().to_string().contains("other bytes"));
        assert_eq!(components.keep(b"some bytes").unwrap(), digest);
        assert_eq!(components.read(&digest).unwrap(), b"some bytes");
        assert!(components.read("none").is_err());
    }
}
