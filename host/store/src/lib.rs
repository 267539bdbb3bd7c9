//! The store: what survives the process. One claim for the data directory, one epoch log for each pipeline.
//!
//! ```text
//! DATA_DIR/LOCK                          held by the one process that uses the directory (claim.rs)
//! DATA_DIR/incarnation                   the register of starts; only rises (claim.rs)
//! DATA_DIR/pipelines/NAME/*.seg          segments of epoch records (log.rs)
//! DATA_DIR/pipelines/NAME/COMMITTED      how far the log is known to be durable (log.rs)
//! ```
//!
//! Here stand the errors, by what the caller must do, and the few file operations that all share.
//! Invariant: a name in a directory counts as written only after that directory was synced.

pub mod claim;
pub mod disk;
pub mod epoch;
pub mod log;
pub mod opening;

use disk::{Disk, Open};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why the store cannot go on. None of these is worth a retry by the process itself.
#[derive(Debug)]
pub enum StoreError {
    /// Another process has the data directory: stop it, or name another directory.
    Locked {
        /// The lock file.
        file: PathBuf,
        /// Who holds it, if it has said so.
        pid: Option<u32>,
    },
    /// What is on disk is not what was committed: a human decides. Nothing on disk was changed.
    Damaged {
        /// The damaged file, or the one that should have gone on.
        file: PathBuf,
        /// Where the damage begins, bytes from the start of the file.
        offset: u64,
        /// The first epoch that cannot be read, or that is contradicted.
        epoch: Option<u64>,
        /// What is wrong, and what shows that it matters.
        what: String,
        /// What a human can do.
        hint: String,
    },
    /// The file system refused: fix the disk, then start again; the start recovers.
    Storage {
        /// What was being done, as in "cannot {doing} {file}".
        doing: &'static str,
        /// To which file.
        file: PathBuf,
        /// For which epoch, where there is one.
        epoch: Option<u64>,
        /// Where in the file, where that is known.
        offset: Option<u64>,
        /// What the operating system said.
        source: io::Error,
    },
}

impl StoreError {
    /// The exit code of a process that stops for this.
    pub fn exit_code(&self) -> u8 {
        match self {
            StoreError::Locked { .. } => 6,
            StoreError::Damaged { .. } | StoreError::Storage { .. } => 5,
        }
    }

    /// For `map_err`: an I/O error without an epoch.
    pub fn storage(doing: &'static str, file: &Path) -> impl FnOnce(io::Error) -> StoreError {
        Self::storage_at(doing, file, None)
    }

    /// For `map_err`: an I/O error while an epoch was in hand.
    pub fn storage_at(
        doing: &'static str,
        file: &Path,
        epoch: Option<u64>,
    ) -> impl FnOnce(io::Error) -> StoreError {
        move |source| StoreError::Storage { doing, file: file.to_owned(), epoch, offset: None, source }
    }
}

impl StoreError {
    /// Says where in the file a storage error happened.
    fn at_offset(mut self, at: u64) -> StoreError {
        if let StoreError::Storage { offset, .. } = &mut self {
            *offset = Some(at);
        }
        self
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Locked { file, pid: Some(pid) } => {
                write!(f, "process {pid} already uses this data directory ({} is locked)", file.display())
            }
            StoreError::Locked { file, pid: None } => {
                write!(f, "another process already uses this data directory ({} is locked)", file.display())
            }
            StoreError::Damaged { file, offset, epoch, what, hint } => {
                write!(f, "{} is damaged at offset {offset}", file.display())?;
                if let Some(epoch) = epoch {
                    write!(f, " (epoch {epoch})")?;
                }
                write!(f, ": {what}; nothing was changed. {hint}")
            }
            StoreError::Storage { doing, file, epoch, offset, source } => {
                write!(f, "cannot {doing} {}", file.display())?;
                if let Some(offset) = offset {
                    write!(f, " at offset {offset}")?;
                }
                if let Some(epoch) = epoch {
                    write!(f, " for epoch {epoch}")?;
                }
                write!(f, ": {source}")
            }
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StoreError::Storage { source, .. } => Some(source),
            StoreError::Locked { .. } | StoreError::Damaged { .. } => None,
        }
    }
}

/// Makes the names in a directory durable.
fn sync_dir(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    disk.sync_dir(dir).map_err(StoreError::storage("sync the directory", dir))
}

/// The directory that holds `path`; the current one for a bare name.
pub fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates a directory and its missing parents, for the owner only, each durable before the next.
///
/// # Errors
/// `Storage` if the file system refuses.
pub fn create_dir_durably(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    if disk.is_dir(dir) {
        return Ok(());
    }
    let parent = parent_of(dir);
    create_dir_durably(disk, parent)?;
    match disk.create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && disk.is_dir(dir) => {}
        made => made.map_err(StoreError::storage("create the directory", dir))?,
    }
    sync_dir(disk, parent)
}

/// The whole file, or `None` if there is none.
///
/// # Errors
/// `Storage` if it cannot be read.
pub fn read_if_there(disk: &dyn Disk, file: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match disk.read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StoreError::storage("read", file)(e)),
    }
}

/// Puts a whole file in place of what was there, for the owner only: after a crash it is the one or the other.
///
/// # Errors
/// `Storage` if the file system refuses; then it is the one or the other, too.
pub fn replace(disk: &dyn Disk, file: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut name = file.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = Path::new(&name);
    // One that a crash has left may have another mode.
    match disk.remove_file(temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(StoreError::storage("remove", temporary)(e));
        }
        _ => {}
    }
    let new = disk.open(temporary, Open::New).map_err(StoreError::storage("create", temporary))?;
    new.write_all_at(bytes, 0)
        .and_then(|()| new.sync_all())
        .map_err(StoreError::storage("write", temporary))?;
    disk.rename(temporary, file).map_err(StoreError::storage("rename", temporary))?;
    sync_dir(disk, parent_of(file))
}
