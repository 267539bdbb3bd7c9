//! The claim on a data directory, and the register of incarnations that goes with it (SEMANTICS 23).
//!
//! Invariants: at most one living `Claim` for a directory, held by an exclusive `flock` on `LOCK`,
//! which the kernel gives back when the process ends in any way; `LOCK` is never deleted, since a
//! second process could then lock a new file of that name. The register stands outside the epoch
//! chain and only rises: going back to an older epoch never gives an old incarnation out again.

use super::disk::{Disk, DiskFile, Lock, Open};
use super::{StoreError, create_dir_durably, read_if_there, replace};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// The exclusive right to a data directory; ends when dropped.
#[derive(Debug)]
pub struct Claim {
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
    /// Open for as long as the claim lives: closing it is what unlocks.
    _lock: Box<dyn DiskFile>,
}

impl Claim {
    /// Takes the directory, creating it (for its owner only) if it is missing.
    ///
    /// # Errors
    /// `Locked` if another process has it, `Storage` if the file system refuses.
    pub fn take(disk: Arc<dyn Disk>, data_dir: &Path) -> Result<Claim, StoreError> {
        create_dir_durably(&*disk, data_dir)?;
        let path = data_dir.join("LOCK");
        // Not truncated on opening: until we hold the lock, the text in it is the holder's.
        let lock = disk.open(&path, Open::MaybeNew).map_err(StoreError::storage("open", &path))?;
        if !lock.try_lock(Lock::Exclusive).map_err(StoreError::storage("lock", &path))? {
            // Who holds it is a courtesy; that somebody does is already known.
            let text = disk.read(&path).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            return Err(StoreError::Locked { file: path, pid: text.and_then(|t| t.trim().parse().ok()) });
        }
        let pid = format!("{}\n", disk.process());
        lock.set_len(0)
            .and_then(|()| lock.write_all_at(pid.as_bytes(), 0))
            .map_err(StoreError::storage("write", &path))?;
        Ok(Claim { disk, data_dir: data_dir.to_owned(), _lock: lock })
    }

    /// Whether a living process has the directory.
    pub fn is_taken(disk: &dyn Disk, data_dir: &Path) -> bool {
        let lock = disk.open(&data_dir.join("LOCK"), Open::Read);
        // Whoever can lock it, if only for this moment, knows that nobody else has.
        lock.is_ok_and(|lock| lock.try_lock(Lock::Shared).is_ok_and(|locked| !locked))
    }

    /// Where the log of a pipeline stands. The name is one that the config check has accepted.
    pub fn pipeline_dir(&self, name: &str) -> PathBuf {
        self.data_dir.join("pipelines").join(name)
    }

    /// Takes the next incarnation: greater than every one taken before, and durable before it is returned.
    ///
    /// # Errors
    /// `Damaged` if the register cannot be read, or is missing beside logs that were written under it.
    pub fn next_incarnation(&mut self) -> Result<u64, StoreError> {
        self.raise_incarnation(self.last_incarnation()?)
    }

    /// From here on incarnations are greater than this one, too: for a directory whose pipelines have run elsewhere.
    ///
    /// # Errors
    /// `Damaged` if the register cannot be read, `Storage` if it cannot be written.
    pub fn count_on_from(&mut self, incarnation: u64) -> Result<(), StoreError> {
        if self.last_incarnation()? >= incarnation {
            return Ok(());
        }
        replace(&*self.disk, &self.register(), format(incarnation).as_bytes())
    }

    /// The newest incarnation, read beside a process that may hold the directory; `None` if it never ran.
    ///
    /// # Errors
    /// `Damaged` if the register cannot be read, `Storage` if the file system refuses.
    pub fn newest_incarnation(disk: &dyn Disk, data_dir: &Path) -> Result<Option<u64>, StoreError> {
        let register = data_dir.join("incarnation");
        let Some(bytes) = read_if_there(disk, &register)? else { return Ok(None) };
        parse(&bytes).map(Some).ok_or_else(|| damaged(register, NO_NUMBER))
    }

    fn register(&self) -> PathBuf {
        self.data_dir.join("incarnation")
    }

    fn damaged(&self, what: &str) -> StoreError {
        damaged(self.register(), what)
    }

    fn last_incarnation(&self) -> Result<u64, StoreError> {
        if let Some(bytes) = read_if_there(&*self.disk, &self.register())? {
            return parse(&bytes).ok_or_else(|| self.damaged(NO_NUMBER));
        }
        // Only a directory without any log may begin to count: otherwise rows of this start would
        // lose against rows of an earlier one.
        let logs = self.data_dir.join("pipelines");
        let any_log = match self.disk.list(&logs) {
            Ok(entries) => !entries.is_empty(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(StoreError::storage("list", &logs)(e)),
        };
        if any_log {
            return Err(self.damaged("the register of incarnations is missing, but there are epoch logs"));
        }
        Ok(0)
    }

    fn raise_incarnation(&mut self, last: u64) -> Result<u64, StoreError> {
        let next =
            last.checked_add(1).ok_or_else(|| self.damaged("the register stands at its greatest number"))?;
        replace(&*self.disk, &self.register(), format(next).as_bytes())?;
        Ok(next)
    }
}

const NO_NUMBER: &str = "the register of incarnations is not a number with its checksum";

fn damaged(register: PathBuf, what: &str) -> StoreError {
    StoreError::Damaged {
        file: register,
        offset: 0,
        epoch: None,
        what: what.to_owned(),
        hint:
            "Put back the newest copy of this file, or start over in another data_dir: with a lower number \
               sinks would refuse what they are sent"
                .to_owned(),
    }
}

fn format(incarnation: u64) -> String {
    let number = incarnation.to_string();
    let checksum = xxh3_64(number.as_bytes());
    format!("{number}\nxxh3 {checksum:016x}\n")
}

/// Strict: only the exact text that `format` writes is a register.
fn parse(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let incarnation = text.lines().next()?.parse().ok()?;
    (format(incarnation) == text).then_some(incarnation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::OsDisk;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn take(dir: &Path) -> Result<Claim, StoreError> {
        Claim::take(Arc::new(OsDisk), dir)
    }

    #[test]
    fn a_second_claim_names_the_holder() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("a/b");
        let first = take(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        let error = take(&dir).unwrap_err();
        assert!(
            matches!(error, StoreError::Locked { pid: Some(pid), .. } if pid == std::process::id()),
            "{error}"
        );
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains(&std::process::id().to_string()));
        assert!(Claim::is_taken(&OsDisk, &dir));
        drop(first);
        assert!(!Claim::is_taken(&OsDisk, &dir) && !Claim::is_taken(&OsDisk, tmp.path()));
        take(&dir).unwrap();
    }

    #[test]
    fn the_incarnation_rises_and_survives() {
        let tmp = tempfile::tempdir().unwrap();
        for start in 0..3 {
            let mut claim = take(tmp.path()).unwrap();
            assert_eq!(claim.next_incarnation().unwrap(), 2 * start + 1);
            assert_eq!(claim.next_incarnation().unwrap(), 2 * start + 2);
        }
        let mut claim = take(tmp.path()).unwrap();
        assert_eq!(claim.next_incarnation().unwrap(), 7);
    }

    #[test]
    fn every_flipped_bit_and_cut_of_the_register_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let mut claim = take(tmp.path()).unwrap();
        claim.next_incarnation().unwrap();
        let register = tmp.path().join("incarnation");
        let good = fs::read(&register).unwrap();
        assert_eq!(parse(&good), Some(1));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&bad), None, "bit {bit}");
        }
        for cut in 0..good.len() {
            fs::write(&register, &good[..cut]).unwrap();
            let error = claim.next_incarnation().unwrap_err();
            assert!(matches!(&error, StoreError::Damaged { file, .. } if *file == register), "{error}");
            assert!(error.to_string().contains("newest copy"), "{error}");
            assert_eq!(fs::read(&register).unwrap(), &good[..cut], "nothing changed");
        }
    }

    #[test]
    fn a_register_missing_beside_logs_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let mut claim = take(tmp.path()).unwrap();
        fs::create_dir_all(claim.pipeline_dir("clicks")).unwrap();
        assert!(matches!(claim.next_incarnation(), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_directory_counts_on_from_what_was_elsewhere() {
        let tmp = tempfile::tempdir().unwrap();
        assert_eq!(Claim::newest_incarnation(&OsDisk, tmp.path()).unwrap(), None);
        let mut claim = take(tmp.path()).unwrap();
        claim.count_on_from(41).unwrap();
        assert_eq!(claim.next_incarnation().unwrap(), 42);
        claim.count_on_from(7).unwrap();
        assert_eq!(Claim::newest_incarnation(&OsDisk, tmp.path()).unwrap(), Some(42), "it only rises");
        fs::write(tmp.path().join("incarnation"), "42\n").unwrap();
        assert!(matches!(Claim::newest_incarnation(&OsDisk, tmp.path()), Err(StoreError::Damaged { .. })));
        assert!(matches!(claim.count_on_from(50), Err(StoreError::Damaged { .. })));
    }

    /// Format 1 of the register.
    #[test]
    fn frozen_text() {
        assert_eq!(format(12), "12\nxxh3 7ecd2e572c949f74\n");
    }
}
