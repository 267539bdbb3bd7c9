//! Where the process that holds the data directory can be asked: only there do commands take the token.
//!
//! Invariant: while the directory is claimed, the file names a listener of the process that claims it, or is not there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use tidemill_store::disk::OsDisk;
use tidemill_store::{StoreError, read_if_there, replace};

/// Where the address of a data directory's host stands.
#[derive(Clone, Debug)]
pub(crate) struct AddressFile(PathBuf);

impl AddressFile {
    pub(crate) fn of(data_dir: &Path) -> AddressFile {
        AddressFile(data_dir.join("address"))
    }

    /// The address that the last process listened on; it holds only while the directory is claimed.
    pub(crate) fn read(&self) -> Result<Option<String>, StoreError> {
        let bytes = read_if_there(&OsDisk, &self.0)?;
        Ok(bytes.and_then(|b| String::from_utf8(b).ok()).map(|t| t.trim_end().to_owned()))
    }

    /// This process listens there.
    pub(crate) fn write(&self, address: &str) -> Result<(), StoreError> {
        replace(&OsDisk, &self.0, format!("{address}\n").as_bytes())
    }

    /// This process does not listen, or not yet.
    pub(crate) fn clear(&self) -> Result<(), StoreError> {
        match fs::remove_file(&self.0) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::storage("remove", &self.0)(e)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_there_from_when_it_is_written_until_it_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let file = AddressFile::of(dir.path());
        file.clear().unwrap();
        assert_eq!(file.read().unwrap(), None);
        file.write("127.0.0.1:7300").unwrap();
        file.write("[::1]:7301").unwrap();
        assert_eq!(file.read().unwrap().as_deref(), Some("[::1]:7301"));
        file.clear().unwrap();
        assert_eq!(file.read().unwrap(), None);
    }
}
