//! Disks as a power cut may leave them: rebuilt from what a process did to its files, op by op.
//!
//! What was synced is there. Of what was not, anything may be: none of it, all of it, some writes without those before them, one
//! of them torn. Names (files made, renamed, removed) count from when their directory is synced; before that a
//! beginning of what was done in a directory is there, in order. `tests/shim/record.c` writes the trace.

use crate::traffic::Rng;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that a disk writes at once.
const SECTOR: u64 = 512;

/// One thing that a process did. Paths are relative to the recorded folder.
#[derive(Clone, Debug)]
pub enum Op {
    /// A file made.
    Create(PathBuf, u64),
    /// A directory made.
    Mkdir(PathBuf),
    /// Bytes written to an inode at an offset.
    Write(u64, u64, Vec<u8>),
    /// An inode's length set.
    Truncate(u64, u64),
    /// An inode synced.
    Sync(u64),
    /// A directory synced.
    SyncDir(PathBuf),
    /// A name given to what had another.
    Rename(PathBuf, PathBuf),
    /// A name removed.
    Unlink(PathBuf),
}

/// Reads a trace.
#[must_use]
pub fn read(trace: &Path) -> Vec<Op> {
    let bytes = fs::read(trace).unwrap();
    let (mut at, mut ops) = (0, Vec::new());
    while at < bytes.len() {
        let kind = bytes[at];
        let number = |n: usize| {
            let from = at + 1 + 8 * n;
            u64::from_le_bytes(bytes[from..from + 8].try_into().unwrap())
        };
        let (inode, offset) = (number(0), number(1));
        let lengths = [number(2), number(3), number(4)].map(|n| n as usize);
        let mut from = at + 41;
        let [path, other, data] = lengths.map(|n| {
            from += n;
            &bytes[from - n..from]
        });
        at = from;
        let path_of = |p: &[u8]| PathBuf::from(String::from_utf8(p.to_vec()).unwrap());
        ops.push(match kind {
            b'C' => Op::Create(path_of(path), inode),
            b'D' => Op::Mkdir(path_of(path)),
            b'W' => Op::Write(inode, offset, data.to_vec()),
            b'T' => Op::Truncate(inode, offset),
            b'S' => Op::Sync(inode),
            b's' => Op::SyncDir(path_of(path)),
            b'R' => Op::Rename(path_of(path), path_of(other)),
            b'U' => Op::Unlink(path_of(path)),
            other => panic!("no op {other} at byte {at} of the trace"),
        });
    }
    ops
}

/// What becomes of what was not synced.
#[derive(Clone, Copy, Debug)]
pub enum Keep {
    /// Nothing of it is there.
    Nothing,
    /// All of it is there.
    Everything,
    /// Anything, by this seed.
    Some(u64),
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Truncate(u64),
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Change::Write(_, bytes) if bytes.is_empty() => {}
            Change::Write(offset, bytes) => {
                let (at, end) = (*offset as usize, *offset as usize + bytes.len());
                to.resize(to.len().max(end), 0);
                to[at..end].copy_from_slice(bytes);
            }
            Change::Truncate(length) => to.resize(*length as usize, 0),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    synced: Vec<u8>,
    since: Vec<Change>,
}

impl Inode {
    fn content(&self, keep: Keep, salt: u64) -> Vec<u8> {
        let mut content = self.synced.clone();
        match keep {
            Keep::Nothing => {}
            Keep::Everything => self.since.iter().for_each(|c| c.apply(&mut content)),
            Keep::Some(seed) => {
                let mut rng = Rng::new(seed ^ salt.wrapping_mul(0x9E37_79B9));
                // In order up to somewhere, or whichever the disk came to.
                let (ordered, upto) = (rng.one_in(2), rng.below(self.since.len() as u64 + 1) as usize);
                for (n, change) in self.since.iter().enumerate() {
                    let kept = if ordered { n < upto } else { rng.one_in(2) };
                    let torn = ordered && n == upto;
                    match change {
                        Change::Write(offset, bytes) if torn => {
                            // A sector is written wholly or not at all.
                            let end = *offset + rng.below(bytes.len() as u64 + 1);
                            let cut = (end - end % SECTOR).saturating_sub(*offset) as usize;
                            Change::Write(*offset, bytes[..cut].to_vec()).apply(&mut content);
                        }
                        change if kept => change.apply(&mut content),
                        _ => {}
                    }
                }
            }
        }
        content
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    File(u64),
    Dir,
}

/// A name that is given or taken away.
type NameOp = (PathBuf, Option<Entry>);

#[derive(Clone, Debug, Default)]
struct Names {
    synced: BTreeMap<PathBuf, Entry>,
    /// Each inner list is one step, done wholly or not at all.
    since: Vec<Vec<NameOp>>,
}

impl Names {
    fn after(&self, steps: usize) -> BTreeMap<PathBuf, Entry> {
        let mut names = self.synced.clone();
        for (path, entry) in self.since.iter().take(steps).flatten() {
            match entry {
                Some(entry) => drop(names.insert(path.clone(), *entry)),
                None => drop(names.remove(path)),
            }
        }
        names
    }
}

/// A disk to which a process has done so much.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    inodes: HashMap<u64, Inode>,
    dirs: BTreeMap<PathBuf, Names>,
}

fn parent(path: &Path) -> PathBuf {
    path.parent().map(Path::to_path_buf).unwrap_or_default()
}

impl Disk {
    /// One that has these files, synced.
    #[must_use]
    pub fn of(files: &[(PathBuf, u64, Vec<u8>)], dirs: &[PathBuf]) -> Disk {
        let mut disk = Disk::default();
        for dir in dirs {
            disk.dirs.entry(parent(dir)).or_default().synced.insert(dir.clone(), Entry::Dir);
        }
        for (path, inode, bytes) in files {
            disk.dirs.entry(parent(path)).or_default().synced.insert(path.clone(), Entry::File(*inode));
            disk.inodes.insert(*inode, Inode { synced: bytes.clone(), since: Vec::new() });
        }
        disk
    }

    /// One more thing is done to it.
    pub fn apply(&mut self, op: &Op) {
        let mut name = |path: &PathBuf, entry| {
            self.dirs.entry(parent(path)).or_default().since.push(vec![(path.clone(), entry)]);
        };
        match op {
            Op::Create(path, inode) => {
                name(path, Some(Entry::File(*inode)));
                // An inode's number is used again once its file is gone.
                self.inodes.insert(*inode, Inode::default());
            }
            Op::Mkdir(path) => name(path, Some(Entry::Dir)),
            Op::Unlink(path) => name(path, None),
            Op::Write(inode, offset, bytes) => {
                self.inodes.entry(*inode).or_default().since.push(Change::Write(*offset, bytes.clone()));
            }
            Op::Truncate(inode, length) => {
                self.inodes.entry(*inode).or_default().since.push(Change::Truncate(*length));
            }
            Op::Sync(inode) => {
                let inode = self.inodes.entry(*inode).or_default();
                for change in std::mem::take(&mut inode.since) {
                    change.apply(&mut inode.synced);
                }
            }
            Op::SyncDir(path) => {
                let names = self.dirs.entry(path.clone()).or_default();
                names.synced = names.after(usize::MAX);
                names.since.clear();
            }
            Op::Rename(from, to) => {
                let names = self.dirs.entry(parent(from)).or_default();
                assert_eq!(parent(from), parent(to), "a file is renamed in its directory");
                let entry = names.after(usize::MAX).get(from).copied();
                names.since.push(vec![(from.clone(), None), (to.clone(), entry)]);
            }
        }
    }

    /// Writes what is there after a power cut below a folder, which has none of these files now.
    pub fn write(&self, root: &Path, keep: Keep) {
        self.write_dir(root, Path::new(""), keep);
    }

    fn write_dir(&self, root: &Path, dir: &Path, keep: Keep) {
        let Some(names) = self.dirs.get(dir) else { return };
        let steps = match keep {
            Keep::Nothing => 0,
            Keep::Everything => usize::MAX,
            Keep::Some(seed) => {
                let salt = dir.as_os_str().len() as u64;
                Rng::new(seed.wrapping_add(salt << 32)).below(names.since.len() as u64 + 1) as usize
            }
        };
        for (path, entry) in names.after(steps) {
            match entry {
                Entry::Dir => {
                    use std::os::unix::fs::DirBuilderExt as _;
                    fs::DirBuilder::new().mode(0o700).recursive(true).create(root.join(&path)).unwrap();
                    self.write_dir(root, &path, keep);
                }
                Entry::File(inode) => {
                    let content = self.inodes.get(&inode).map(|i| i.content(keep, inode)).unwrap_or_default();
                    use std::io::Write as _;
                    use std::os::unix::fs::OpenOptionsExt as _;
                    let mut file = fs::File::options()
                        .write(true)
                        .create_new(true)
                        .mode(0o600)
                        .open(root.join(&path))
                        .unwrap();
                    file.write_all(&content).unwrap();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(disk: &Disk, keep: Keep) -> BTreeMap<String, Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        disk.write(dir.path(), keep);
        let mut found = BTreeMap::new();
        let mut open = vec![dir.path().to_path_buf()];
        while let Some(d) = open.pop() {
            for entry in fs::read_dir(d).unwrap().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    let name = path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned();
                    found.insert(name, fs::read(path).unwrap());
                }
            }
        }
        found
    }

    #[test]
    fn what_is_synced_stays_and_the_rest_may_be_anything() {
        let mut disk = Disk::default();
        let write = |at, text: &str| Op::Write(7, at, text.as_bytes().to_vec());
        let ops = [
            Op::Mkdir("d".into()),
            Op::SyncDir(PathBuf::new()),
            Op::Create("d/a.tmp".into(), 7),
            write(0, "one"),
            Op::Sync(7),
            Op::Rename("d/a.tmp".into(), "d/a".into()),
        ];
        ops.iter().for_each(|op| disk.apply(op));
        assert!(files(&disk, Keep::Nothing).is_empty(), "its name is not synced");
        assert_eq!(files(&disk, Keep::Everything), BTreeMap::from([("d/a".into(), b"one".to_vec())]));
        disk.apply(&Op::SyncDir("d".into()));
        disk.apply(&write(3, "two"));
        disk.apply(&write(6, "three"));
        assert_eq!(files(&disk, Keep::Nothing)["d/a"], b"one");
        assert_eq!(files(&disk, Keep::Everything)["d/a"], b"onetwothree");
        let seen: std::collections::BTreeSet<Vec<u8>> =
            (0..200).map(|seed| files(&disk, Keep::Some(seed))["d/a"].clone()).collect();
        let wanted = [&b"one"[..], b"onetwo", b"one\0\0\0three", b"onetwothree"].map(<[u8]>::to_vec);
        assert_eq!(seen, wanted.into_iter().collect());
        // Torn, between sectors.
        disk.apply(&Op::Sync(7));
        disk.apply(&Op::Write(7, 500, vec![b'x'; 600]));
        let lengths: std::collections::BTreeSet<usize> =
            (0..200).map(|seed| files(&disk, Keep::Some(seed))["d/a"].len()).collect();
        assert_eq!(lengths, [11, 512, 1024, 1100].into());
    }
}
