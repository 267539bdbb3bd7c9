//! A disk in memory that keeps apart what a process sees and what would survive a power cut.
//!
//! Every write, cut and change of a name waits until a sync covers it; a power cut keeps none, all or a random part of
//! what waits: writes whole, torn or as zeros, and in any order, names each by itself. A sync that fails leaves
//! what it should have written where a process sees it and no later sync writes it, as Linux does. Every
//! call of a live process counts as one operation, so that a cut can be placed before and after each.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tidemill_store::disk::{Disk, DiskFile, Lock, Open};
use xxhash_rust::xxh3::Xxh3;

/// Bytes that a disk writes at once: all of them or none.
const SECTOR: usize = 512;

/// What a power cut leaves of what was not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// Nothing.
    None,
    /// All of it.
    All,
    /// A random part, in a random order.
    Some,
}

/// What the disk does to the next operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// The next write finds no space, and so does every one after it.
    Full,
    /// The next sync fails.
    SyncFails,
    /// The next read fails.
    ReadFails,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Clone, Default, Debug)]
struct Node {
    /// What a process sees.
    live: Vec<u8>,
    /// What survives a power cut.
    durable: Vec<u8>,
    waiting: Vec<Change>,
    locks: Vec<Held>,
}

/// A lock of a file.
#[derive(Clone, Copy, Debug)]
struct Held {
    process: u64,
    handle: u64,
    alone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    Dir,
    File(usize),
}

#[derive(Clone, Debug)]
enum Rename {
    Put(PathBuf, Entry),
    Gone(PathBuf),
    /// With all below it: what had the first name has the second.
    Moved(PathBuf, PathBuf),
}

impl Rename {
    fn dir(&self) -> &Path {
        let (Rename::Put(path, _) | Rename::Gone(path) | Rename::Moved(path, _)) = self;
        path.parent().unwrap_or(Path::new("/"))
    }
}

struct State {
    nodes: Vec<Node>,
    names: BTreeMap<PathBuf, Entry>,
    durable_names: BTreeMap<PathBuf, Entry>,
    waiting: Vec<Rename>,
    rng: fastrand::Rng,
    /// The newest process.
    processes: u64,
    /// Those that live.
    living: BTreeSet<u64>,
    handles: u64,
    operations: u64,
    /// The power is cut at this operation: before it, or after it.
    cut_at: Option<(u64, bool)>,
    off: bool,
    trouble: Trouble,
    /// What was asked for last, and how often that has shown itself.
    asked: Trouble,
    troubled: u64,
    trace: Xxh3,
}

/// One process's view of the disk: handles and locks end with its life.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    process: u64,
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimDisk").field("process", &self.process).finish_non_exhaustive()
    }
}

fn error(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, new) => {
            if bytes.len() < at + new.len() {
                bytes.resize(at + new.len(), 0);
            }
            bytes[*at..at + new.len()].copy_from_slice(new);
        }
        Change::Length(len) => bytes.resize(*len, 0),
    }
}

/// What a cut may leave of one write: all, nothing, a beginning, zeros, or some of its sectors.
fn torn(rng: &mut fastrand::Rng, bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    match rng.u8(0..6) {
        0 | 1 => {}
        2 => apply(bytes, &Change::Write(at, new.to_vec())),
        3 => {
            let end = (at + rng.usize(0..=new.len())) / SECTOR * SECTOR;
            apply(bytes, &Change::Write(at, new[..end.saturating_sub(at)].to_vec()));
        }
        4 => {
            let grown = bytes.len().max(at + new.len());
            bytes.resize(grown, 0);
        }
        _ => {
            let mut from = 0;
            while from < new.len() {
                let to = (from + SECTOR - (at + from) % SECTOR).min(new.len());
                if rng.bool() {
                    apply(bytes, &Change::Write(at + from, new[from..to].to_vec()));
                }
                from = to;
            }
        }
    }
}

fn rename(names: &mut BTreeMap<PathBuf, Entry>, change: &Rename) {
    match change {
        Rename::Put(path, entry) => drop(names.insert(path.clone(), *entry)),
        Rename::Gone(path) => names.retain(|p, _| !p.starts_with(path)),
        Rename::Moved(from, to) => {
            let moved: Vec<PathBuf> = names.keys().filter(|p| p.starts_with(from)).cloned().collect();
            if !moved.is_empty() {
                names.retain(|p, _| !p.starts_with(to));
            }
            for path in moved {
                let below = path.strip_prefix(from).unwrap_or(Path::new("")).to_owned();
                let new = if below.as_os_str().is_empty() { to.clone() } else { to.join(below) };
                if let Some(entry) = names.remove(&path) {
                    names.insert(new, entry);
                }
            }
        }
    }
}

impl State {
    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.names.get(path) {
            Some(Entry::File(node)) => Ok(*node),
            Some(Entry::Dir) => Err(error("it is a directory")),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    /// Counts an operation; false: the power goes before it takes place.
    fn begin(&mut self, name: &str, path: &Path) -> bool {
        self.operations += 1;
        self.trace.update(name.as_bytes());
        self.trace.update(path.as_os_str().as_encoded_bytes());
        self.cut_at != Some((self.operations, false))
    }

    fn change(&mut self, node: usize, change: Change) {
        if let Change::Write(at, new) = &change {
            self.trace.update(&at.to_le_bytes());
            self.trace.update(new);
        }
        apply(&mut self.nodes[node].live, &change);
        self.nodes[node].waiting.push(change);
    }

    fn name(&mut self, change: Rename) {
        rename(&mut self.names, &change);
        self.waiting.push(change);
    }

    fn sync(&mut self, node: usize) -> io::Result<()> {
        let node = &mut self.nodes[node];
        if self.trouble == Trouble::SyncFails {
            self.troubled += 1;
            self.trouble = Trouble::None;
            // Some of it has reached the disk, and the rest never will.
            for change in std::mem::take(&mut node.waiting) {
                if self.rng.bool() {
                    apply(&mut node.durable, &change);
                }
            }
            return Err(error("Input/output error"));
        }
        let durable = std::mem::take(&mut node.durable);
        node.durable = node.waiting.drain(..).fold(durable, |mut bytes, change| {
            apply(&mut bytes, &change);
            bytes
        });
        Ok(())
    }

    fn cut(&mut self, keep: Keep) {
        for node in &mut self.nodes {
            let waiting = std::mem::take(&mut node.waiting);
            match keep {
                Keep::None => {}
                Keep::All => waiting.iter().for_each(|c| apply(&mut node.durable, c)),
                Keep::Some => {
                    let mut waiting = waiting;
                    if self.rng.bool() {
                        self.rng.shuffle(&mut waiting);
                    }
                    for change in &waiting {
                        match change {
                            Change::Write(at, new) => torn(&mut self.rng, &mut node.durable, *at, new),
                            Change::Length(_) if self.rng.bool() => apply(&mut node.durable, change),
                            Change::Length(_) => {}
                        }
                    }
                }
            }
            node.live.clone_from(&node.durable);
        }
        for change in std::mem::take(&mut self.waiting) {
            let kept = match keep {
                Keep::None => false,
                Keep::All => true,
                Keep::Some => self.rng.bool(),
            };
            if kept {
                rename(&mut self.durable_names, &change);
            }
        }
        // A name without the directory that it stands in is lost with it.
        let dirs: BTreeSet<PathBuf> = self.durable_names.keys().cloned().collect();
        self.durable_names.retain(|p, _| p.ancestors().skip(1).all(|a| dirs.contains(a)));
        self.names.clone_from(&self.durable_names);
        self.living.clear();
        self.nodes.iter_mut().for_each(|n| n.locks.clear());
        self.off = false;
        self.cut_at = None;
    }
}

impl SimDisk {
    /// An empty disk: only the root is there.
    #[must_use]
    pub fn new(seed: u64) -> SimDisk {
        let root: BTreeMap<PathBuf, Entry> = [(PathBuf::from("/"), Entry::Dir)].into();
        let state = State {
            nodes: Vec::new(),
            names: root.clone(),
            durable_names: root,
            waiting: Vec::new(),
            rng: fastrand::Rng::with_seed(seed),
            processes: 0,
            living: [0].into(),
            handles: 0,
            operations: 0,
            cut_at: None,
            off: false,
            trouble: Trouble::None,
            asked: Trouble::None,
            troubled: 0,
            trace: Xxh3::new(),
        };
        SimDisk { state: Arc::new(Mutex::new(state)), process: 0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, if this process lives.
    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.off || !state.living.contains(&self.process) {
            Err(error("the process is no more"))
        } else {
            Ok(state)
        }
    }

    /// One operation: it takes place unless the power goes before.
    fn operate<T>(
        &self,
        name: &str,
        path: &Path,
        with: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.alive()?;
        if !state.begin(name, path) {
            state.off = true;
            return Err(error("the power is gone"));
        }
        let answer = with(&mut state);
        state.trace.update(&[u8::from(answer.is_ok())]);
        if state.cut_at == Some((state.operations, true)) {
            state.off = true;
            return Err(error("the power is gone"));
        }
        answer
    }

    /// A view for the next process on the same disk.
    #[must_use]
    pub fn next_process(&self) -> SimDisk {
        let mut state = self.state();
        state.processes += 1;
        let process = state.processes;
        state.living.insert(process);
        drop(state);
        SimDisk { state: self.state.clone(), process }
    }

    /// The process ends, however it ends: locks go, files stay as they are seen.
    pub fn kill(&self) {
        let mut state = self.state();
        state.living.remove(&self.process);
        state.nodes.iter_mut().for_each(|n| n.locks.retain(|l| l.process != self.process));
    }

    /// The power is cut, or was at the operation that was asked for; what is left is what the next process finds.
    pub fn cut(&self, keep: Keep) {
        self.state().cut(keep);
    }

    /// Cuts the power at an operation, counted from the beginning of the disk: before it, or right after it.
    pub fn cut_at(&self, operation: u64, after: bool) {
        self.state().cut_at = Some((operation, after));
    }

    /// Whether the power is gone.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.state().off
    }

    /// Operations so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// From now on.
    pub fn trouble(&self, trouble: Trouble) {
        let mut state = self.state();
        state.trouble = trouble;
        state.asked = trouble;
        state.troubled = 0;
    }

    /// How often trouble has shown itself since it was asked for.
    #[must_use]
    pub fn troubled(&self) -> u64 {
        self.state().troubled
    }

    /// The trouble that was asked for last, if it has shown itself; it is told once.
    pub fn take_troubled(&self) -> Option<Trouble> {
        let mut state = self.state();
        let told = (state.troubled > 0).then_some(state.asked);
        state.troubled = 0;
        told
    }

    /// No cut at any operation.
    pub fn cut_never(&self) {
        self.state().cut_at = None;
    }

    /// The power goes between two operations.
    pub fn power_off(&self) {
        let mut state = self.state();
        state.off = true;
        state.cut_at = None;
    }

    /// Whether the power went at an operation.
    #[must_use]
    pub fn was_cut_in_operation(&self) -> bool {
        let state = self.state();
        state.off && state.cut_at.is_some()
    }

    /// A hash over all that was done and written.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.state().trace.digest()
    }

    /// Whether these bytes of a file, and its name, survive a power cut that keeps nothing else.
    #[must_use]
    pub fn is_durable(&self, file: &Path, bytes: std::ops::Range<usize>) -> bool {
        let state = self.state();
        let Some(Entry::File(node)) = state.durable_names.get(file) else { return false };
        let parents = file.ancestors().skip(1).all(|a| state.durable_names.contains_key(a));
        let node = &state.nodes[*node];
        parents && node.durable.get(bytes.clone()).is_some_and(|d| node.live.get(bytes) == Some(d))
    }

    /// The files below a directory that have bytes, with their lengths.
    #[must_use]
    pub fn files(&self, dir: &Path) -> Vec<(PathBuf, usize)> {
        let state = self.state();
        let below = state.names.iter().filter(|(p, _)| p.starts_with(dir));
        below
            .filter_map(|(p, e)| match e {
                Entry::File(n) if !state.nodes[*n].live.is_empty() => {
                    Some((p.clone(), state.nodes[*n].live.len()))
                }
                _ => None,
            })
            .collect()
    }

    /// Flips a bit of a file, on the disk and in every cache.
    pub fn flip(&self, file: &Path, byte: usize, bit: u8) {
        let mut state = self.state();
        let Ok(node) = state.file(file) else { return };
        let node = &mut state.nodes[node];
        for bytes in [&mut node.live, &mut node.durable] {
            if let Some(b) = bytes.get_mut(byte) {
                *b ^= 1 << bit;
            }
        }
    }

    /// The same disk apart from this one, as it is seen now and wholly durable.
    #[must_use]
    pub fn copy(&self) -> SimDisk {
        let state = self.state();
        let copy = SimDisk::new(0);
        {
            let mut to = copy.state();
            to.nodes = state.nodes.clone();
            for node in &mut to.nodes {
                node.durable.clone_from(&node.live);
                node.waiting.clear();
                node.locks.clear();
            }
            to.names.clone_from(&state.names);
            to.durable_names.clone_from(&state.names);
        }
        copy
    }

    /// The same disk apart from this one, with all that waits, so that other things can befall it.
    #[must_use]
    pub fn fork(&self, seed: u64) -> SimDisk {
        let state = self.state();
        let copy = SimDisk::new(seed);
        {
            let mut to = copy.state();
            to.nodes = state.nodes.clone();
            to.names.clone_from(&state.names);
            to.durable_names.clone_from(&state.durable_names);
            to.waiting.clone_from(&state.waiting);
            to.operations = state.operations;
            to.processes = state.processes;
            to.living.clone_from(&state.living);
        }
        SimDisk { process: self.process, ..copy }
    }

    fn check_parent(state: &State, path: &Path) -> io::Result<()> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        if state.names.get(parent) == Some(&Entry::Dir) { Ok(()) } else { Err(ErrorKind::NotFound.into()) }
    }

    fn check_space(state: &mut State) -> io::Result<()> {
        if state.trouble == Trouble::Full {
            state.troubled += 1;
            return Err(ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn check_reading(state: &mut State) -> io::Result<()> {
        if state.trouble == Trouble::ReadFails {
            state.troubled += 1;
            state.trouble = Trouble::None;
            return Err(error("Input/output error"));
        }
        Ok(())
    }
}

impl Disk for SimDisk {
    fn open(&self, file: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let (node, handle) = self.operate("open", file, |state| {
            let there = state.file(file);
            let node = match (there, how) {
                (Ok(_), Open::New) => return Err(ErrorKind::AlreadyExists.into()),
                (Ok(node), _) => node,
                (Err(e), Open::Read | Open::Write) => return Err(e),
                (Err(e), _) if e.kind() != ErrorKind::NotFound => return Err(e),
                (Err(_), _) => {
                    Self::check_parent(state, file)?;
                    Self::check_space(state)?;
                    state.nodes.push(Node::default());
                    let node = state.nodes.len() - 1;
                    state.name(Rename::Put(file.to_owned(), Entry::File(node)));
                    node
                }
            };
            state.handles += 1;
            Ok((node, state.handles))
        })?;
        let writes = how != Open::Read;
        Ok(Box::new(SimFile { disk: self.clone(), path: file.to_owned(), node, handle, writes }))
    }

    fn read(&self, file: &Path) -> io::Result<Vec<u8>> {
        self.operate("read", file, |state| {
            Self::check_reading(state)?;
            let node = state.file(file)?;
            Ok(state.nodes[node].live.clone())
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.operate("list", dir, |state| {
            if state.names.get(dir) != Some(&Entry::Dir) {
                return Err(ErrorKind::NotFound.into());
            }
            Ok(state.names.keys().filter(|p| p.parent() == Some(dir)).cloned().collect())
        })
    }

    fn is_dir(&self, dir: &Path) -> bool {
        self.alive().is_ok_and(|state| state.names.get(dir) == Some(&Entry::Dir))
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.operate("mkdir", dir, |state| {
            if state.names.contains_key(dir) {
                return Err(ErrorKind::AlreadyExists.into());
            }
            Self::check_parent(state, dir)?;
            Self::check_space(state)?;
            state.name(Rename::Put(dir.to_owned(), Entry::Dir));
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.operate("sync dir", dir, |state| {
            if state.trouble == Trouble::SyncFails {
                state.troubled += 1;
                state.trouble = Trouble::None;
                return Err(error("Input/output error"));
            }
            let all = std::mem::take(&mut state.waiting);
            for change in all {
                if change.dir() == dir {
                    rename(&mut state.durable_names, &change);
                } else {
                    state.waiting.push(change);
                }
            }
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate("rename", from, |state| {
            if !state.names.contains_key(from) {
                return Err(ErrorKind::NotFound.into());
            }
            Self::check_parent(state, to)?;
            state.name(Rename::Moved(from.to_owned(), to.to_owned()));
            Ok(())
        })
    }

    fn remove_file(&self, file: &Path) -> io::Result<()> {
        self.operate("remove", file, |state| {
            state.file(file)?;
            state.name(Rename::Gone(file.to_owned()));
            Ok(())
        })
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.operate("remove all", dir, |state| {
            if state.names.get(dir) != Some(&Entry::Dir) {
                return Err(ErrorKind::NotFound.into());
            }
            // From the leaves up; each by itself may be lost.
            let below: Vec<PathBuf> =
                state.names.keys().filter(|p| p.starts_with(dir)).rev().cloned().collect();
            below.into_iter().for_each(|p| state.name(Rename::Gone(p)));
            Ok(())
        })
    }

    fn process(&self) -> u32 {
        // Not the real one: the same seed writes the same bytes.
        self.process as u32
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    node: usize,
    handle: u64,
    writes: bool,
}

impl SimFile {
    fn check_writes(&self) -> io::Result<()> {
        if self.writes { Ok(()) } else { Err(ErrorKind::PermissionDenied.into()) }
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        state.nodes[self.node].locks.retain(|l| l.handle != self.handle);
    }
}

impl DiskFile for SimFile {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.operate("read at", &self.path, |state| {
            SimDisk::check_reading(state)?;
            let (from, to) = (offset as usize, offset as usize + bytes.len());
            let there = state.nodes[self.node].live.get(from..to).ok_or(ErrorKind::UnexpectedEof)?;
            bytes.copy_from_slice(there);
            Ok(())
        })
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.check_writes()?;
        self.disk.operate("write", &self.path, |state| {
            if let Err(full) = SimDisk::check_space(state) {
                // What there was space for is written.
                let some = state.rng.usize(0..=bytes.len() / 2);
                state.change(self.node, Change::Write(offset as usize, bytes[..some].to_vec()));
                return Err(full);
            }
            state.change(self.node, Change::Write(offset as usize, bytes.to_vec()));
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.alive()?.nodes[self.node].live.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writes()?;
        self.disk.operate("cut", &self.path, |state| {
            state.change(self.node, Change::Length(len as usize));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.operate("sync", &self.path, |state| state.sync(self.node))
    }

    fn sync_all(&self) -> io::Result<()> {
        self.disk.operate("sync", &self.path, |state| state.sync(self.node))
    }

    fn try_lock(&self, how: Lock) -> io::Result<bool> {
        self.disk.operate("lock", &self.path, |state| {
            let locks = &mut state.nodes[self.node].locks;
            let alone = how == Lock::Exclusive;
            if locks.iter().any(|l| l.handle != self.handle && (alone || l.alone)) {
                return Ok(false);
            }
            locks.retain(|l| l.handle != self.handle);
            locks.push(Held { process: self.disk.process, handle: self.handle, alone });
            Ok(true)
        })
    }
}
