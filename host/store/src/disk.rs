//! What the store asks of a file system, and the real one.
//!
//! The store touches files through [`Disk`] alone, so that the same code can be run over a disk that loses, tears and refuses.
//! Once an epoch a call goes through a pointer more; beside a sync that is nothing.

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    /// One that is there, for reading only.
    Read,
    /// One that is there.
    Write,
    /// One that is not there yet.
    New,
    /// One that may be there; what is in it stays.
    MaybeNew,
}

/// How a file is locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lock {
    /// By one.
    Exclusive,
    /// By any number, but not beside one that has it alone.
    Shared,
}

/// A file system. Files and directories that it makes are their owner's alone.
///
/// # Errors
/// Every call may give what the operating system says.
#[allow(clippy::missing_errors_doc, reason = "said once for all of them")]
pub trait Disk: Debug + Send + Sync {
    /// Opens a file.
    fn open(&self, file: &Path, how: Open) -> io::Result<Box<dyn DiskFile>>;
    /// The whole file.
    fn read(&self, file: &Path) -> io::Result<Vec<u8>>;
    /// The entries of a directory, in any order.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Whether there is a directory of this name.
    fn is_dir(&self, dir: &Path) -> bool;
    /// Creates a directory; its parent is there.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Puts a file or directory in the place of what has the other name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, file: &Path) -> io::Result<()>;
    /// Removes a directory with all that is in it.
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// The process that uses it: who is named as the holder of a lock.
    fn process(&self) -> u32;
}

/// An open file. What was written is durable only when a sync has said so.
///
/// # Errors
/// Every call may give what the operating system says.
#[allow(clippy::missing_errors_doc, reason = "said once for all of them")]
#[allow(clippy::len_without_is_empty, reason = "it is asked for the length only")]
pub trait DiskFile: Debug + Send + Sync {
    /// Fills `bytes` with what stands at `offset`; an error if the file ends before.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Cuts the file, or fills it up with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes the content durable, and the length as far as reading it needs that.
    fn sync_data(&self) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync_all(&self) -> io::Result<()>;
    /// Locks the file for as long as it is open, without waiting; false: somebody else has it.
    fn try_lock(&self, how: Lock) -> io::Result<bool>;
}

/// The file system of the operating system.
#[derive(Clone, Copy, Default, Debug)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn open(&self, file: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600);
        match how {
            Open::Read => &mut options,
            Open::Write => options.write(true),
            Open::New => options.write(true).create_new(true),
            Open::MaybeNew => options.write(true).create(true).truncate(false),
        };
        Ok(Box::new(options.open(file)?))
    }

    fn read(&self, file: &Path) -> io::Result<Vec<u8>> {
        fs::read(file)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn is_dir(&self, dir: &Path) -> bool {
        dir.is_dir()
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, file: &Path) -> io::Result<()> {
        fs::remove_file(file)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }

    fn process(&self) -> u32 {
        std::process::id()
    }
}

impl DiskFile for File {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self)
    }

    fn try_lock(&self, how: Lock) -> io::Result<bool> {
        let operation = match how {
            Lock::Exclusive => FlockOperation::NonBlockingLockExclusive,
            Lock::Shared => FlockOperation::NonBlockingLockShared,
        };
        match flock(self, operation) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}
