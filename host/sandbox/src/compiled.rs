//! Compiled components on disk: machine code, which is run as it stands. So a file is taken only if this process's
//! user alone can have written it, it lies under the name of exactly this component, engine and settings, and its own
//! checksum holds. Anything else is compiled again; the cache can be lost at any time, and never be a reason to fail.

use crate::{Digest, Engine};
use sha2::{Digest as _, Sha256};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use wasmtime::component::Component;

/// Before the code: what the file is, then SHA-256 of its name and the code.
const MAGIC: &[u8; 8] = b"tmcwasm1";
const HEAD_BYTES: usize = MAGIC.len() + 32;
/// Bytes of a file that is read. Code is three to ten times as long as what it is compiled from.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// A directory of compiled components, of the host's own.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// Uses a directory, and makes it if it is not there, for this user alone.
    ///
    /// # Errors
    /// If it cannot be made, belongs to another user, or others may write in it.
    pub fn open(directory: &Path) -> io::Result<Cache> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let cache = Cache { directory: directory.to_owned() };
        if own(&std::fs::symlink_metadata(directory)?) {
            return Ok(cache);
        }
        let why = format!(
            "{} is not only ours: it must belong to the user that runs this, and nobody else may write in it",
            directory.display()
        );
        Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
    }

    pub(crate) fn get(&self, engine: &Engine, digest: Digest) -> Option<Component> {
        let name = name(engine, digest);
        let code = self.read(&name).ok()??;
        code::load(engine.wasmtime(), &code)
    }

    /// Keeps a component. If it cannot be written, it will be compiled again.
    pub(crate) fn put(&self, engine: &Engine, digest: Digest, component: &Component) {
        let name = name(engine, digest);
        if let Ok(code) = component.serialize() {
            let _ = self.write(&name, &code);
        }
    }

    fn read(&self, name: &str) -> io::Result<Option<code::Checked>> {
        use rustix::fs::{Mode, OFlags};
        // Not through a symbolic link; and what is checked is what is read, by its handle.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file =
            std::fs::File::from(rustix::fs::open(self.directory.join(name), flags, Mode::empty())?);
        let data = file.metadata()?;
        if !own(&std::fs::symlink_metadata(&self.directory)?)
            || !data.is_file()
            || !own(&data)
            || data.len() > FILE_BYTES_MAX
        {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(code::Checked::of(name, bytes))
    }

    fn write(&self, name: &str, code: &[u8]) -> io::Result<()> {
        // Whole or not at all: under another name first. Not synced, since the checksum tells a torn file.
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        file.write_all(MAGIC)?;
        file.write_all(&checksum(name, code))?;
        file.write_all(code)?;
        file.persist(self.directory.join(name)).map_err(|e| e.error)?;
        Ok(())
    }
}

/// Belongs to this user, and nobody else may write it.
fn own(data: &std::fs::Metadata) -> bool {
    data.uid() == rustix::process::geteuid().as_raw() && data.mode() & 0o022 == 0
}

fn checksum(name: &str, code: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(name).chain_update(code).finalize().into()
}

/// Component, wasmtime's version and every setting that goes into the code.
fn name(engine: &Engine, digest: Digest) -> String {
    let mut settings = Digesting(Sha256::new());
    engine.wasmtime().precompile_compatibility_hash().hash(&mut settings);
    let settings: [u8; 32] = settings.0.finalize().into();
    format!("{digest}-{}.cwasm", Digest(settings))
}

/// A hasher that never changes, as the standard library's may.
struct Digesting(Sha256);

impl Hasher for Digesting {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    fn finish(&self) -> u64 {
        0
    }
}

/// The one place where bytes become code.
mod code {
    use super::{HEAD_BYTES, MAGIC, checksum};
    use wasmtime::component::Component;

    /// Code that was ours, whole, and written under this name.
    pub(super) struct Checked(Vec<u8>);

    impl Checked {
        pub(super) fn of(name: &str, bytes: Vec<u8>) -> Option<Checked> {
            let (head, code) = bytes.split_at_checked(HEAD_BYTES)?;
            let (magic, sum) = head.split_at(MAGIC.len());
            (magic == MAGIC && sum == checksum(name, code)).then_some(Checked(bytes))
        }
    }

    #[allow(unsafe_code, reason = "wasmtime runs what it is given; the checks above are what makes it ours")]
    pub(super) fn load(engine: &wasmtime::Engine, code: &Checked) -> Option<Component> {
        // SAFETY: the bytes are `Component::serialize`'s own: they lay in a directory and a file that only this user
        // may write, opened without following links, under the name of this component, engine and settings, and the
        // checksum over name and code holds. wasmtime checks its version and settings again.
        unsafe { Component::deserialize(engine, &code.0[HEAD_BYTES..]) }.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn component(engine: &Engine) -> Component {
        let empty = [0, b'a', b's', b'm', 13, 0, 1, 0];
        Component::from_binary(engine.wasmtime(), &empty).unwrap()
    }

    #[test]
    fn only_whole_files_of_ours_are_taken() {
        let there = tempfile::tempdir().unwrap();
        let directory = there.path().join("compiled");
        let (engine, digest) = (Engine::new().unwrap(), Digest::of(b"a"));
        let cache = Cache::open(&directory).unwrap();
        assert!(cache.get(&engine, digest).is_none());
        cache.put(&engine, digest, &component(&engine));
        assert!(cache.get(&engine, digest).is_some());
        let path = directory.join(name(&engine, digest));
        let good = std::fs::read(&path).unwrap();

        // Another component's name.
        std::fs::copy(&path, directory.join(name(&engine, Digest::of(b"b")))).unwrap();
        assert!(cache.get(&engine, Digest::of(b"b")).is_none());
        // A bit, or the end.
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        for bytes in [&bad[..], &good[..good.len() - 1], &good[..10], b""] {
            std::fs::write(&path, bytes).unwrap();
            assert!(cache.get(&engine, digest).is_none());
        }
        std::fs::write(&path, &good).unwrap();
        assert!(cache.get(&engine, digest).is_some());
        // Others may write it.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        assert!(cache.get(&engine, digest).is_none());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(cache.get(&engine, digest).is_none());
        assert!(Cache::open(&directory).is_err());
    }
}
