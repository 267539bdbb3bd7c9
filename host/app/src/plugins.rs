//! Components that pipelines run, kept by digest in the data directory: a version that is deployed can be loaded again
//! whatever becomes of the file it came from.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tidemill_sandbox::Digest;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(crate) struct Plugins {
    dir: PathBuf,
    /// Two pipelines, or an upload, may keep the same component at once.
    keeping: Arc<Mutex<()>>,
}

impl Plugins {
    /// Those in this data directory, which is claimed.
    pub(crate) fn new(data_dir: &Path) -> Plugins {
        Plugins { dir: data_dir.join("plugins"), keeping: Arc::default() }
    }

    /// Keeps a component; returns its digest in hex. Durable when it returns.
    pub(crate) fn keep(&self, bytes: &[u8]) -> io::Result<String> {
        let digest = Digest::of(bytes).to_string();
        let _one_at_a_time = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        if self.read(&digest).is_ok() {
            return Ok(digest);
        }
        fs::create_dir_all(&self.dir)?;
        let path = self.path(&digest);
        let unfinished = path.with_extension("new");
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        File::open(&self.dir)?.sync_all()?;
        Ok(digest)
    }

    /// The component with this digest.
    ///
    /// # Errors
    /// If it is not there, or not what was kept.
    pub(crate) fn read(&self, digest: &str) -> io::Result<Vec<u8>> {
        let bytes = fs::read(self.path(digest))?;
        if Digest::of(&bytes).to_string() == digest {
            Ok(bytes)
        } else {
            Err(io::Error::other(format!("{}: the file is damaged", self.path(digest).display())))
        }
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.wasm"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_component_may_be_kept_by_several_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let plugins = Plugins::new(dir.path());
        let bytes = vec![7; 1 << 20];
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| plugins.keep(&bytes))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect::<io::Result<Vec<String>>>()
        });
        assert_eq!(plugins.read(&all.unwrap()[0]).unwrap(), bytes);
    }

    #[test]
    fn a_component_is_kept_by_what_it_is_and_a_damaged_one_is_not_given() {
        let dir = tempfile::tempdir().unwrap();
        let plugins = Plugins::new(dir.path());
        let digest = plugins.keep(b"some bytes").unwrap();
        assert_eq!(plugins.read(&digest).unwrap(), b"some bytes");
        fs::write(plugins.path(&digest), b"other bytes").unwrap();
        assert!(plugins.read(&digest).unwrap_err().to_string().contains("damaged"));
        assert_eq!(plugins.keep(b"some bytes").unwrap(), digest);
        assert_eq!(plugins.read(&digest).unwrap(), b"some bytes");
        assert!(plugins.read("none").is_err());
    }
}
