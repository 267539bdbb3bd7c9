//! A small disk that fills up.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted tmpfs, unmounted when dropped.
#[derive(Debug)]
pub struct Tmpfs(pub PathBuf);

impl Tmpfs {
    /// Mounts one of this size at `dir`; none where that is not allowed, which is said.
    #[must_use]
    pub fn mount(dir: PathBuf, size: &str) -> Option<Tmpfs> {
        std::fs::create_dir_all(&dir).unwrap();
        if Tmpfs::call(&dir, &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]) {
            return Some(Tmpfs(dir));
        }
        crate::report!("mount refused, so the full disk is not tested here");
        None
    }

    /// Makes room.
    pub fn grow(&self, size: &str) {
        assert!(Tmpfs::call(&self.0, &["-o", &format!("remount,size={size}")]), "it does not grow");
    }

    fn call(dir: &Path, arguments: &[&str]) -> bool {
        Command::new("mount").args(arguments).arg(dir).output().is_ok_and(|o| o.status.success())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
