//! What is outside of the process and not a sink: the clock, and partitions that bring events in disorder, late, twice and
//! too early, fall silent, drift, and are added while the process runs. What is pushed is kept in an ingest log on the
//! disk, acknowledged when it is durable there, and pushed again, in another order, until it is.

use crate::model::Ident;
use crate::plan::Plan;
use crate::rule::KINDS;
use std::path::{Path, PathBuf};
use tidemill_store::StoreError;
use tidemill_store::disk::{Disk, Open};

/// One record of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub(crate) ident: Ident,
    pub(crate) kind: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Supply {
    /// Its own log, that ends.
    Bounded,
    /// Its own log, that goes on.
    Live,
    /// Kept in an ingest log.
    Pushed,
}

impl Supply {
    /// The number of its source.
    pub(crate) fn source(self) -> u32 {
        match self {
            Supply::Bounded => 0,
            Supply::Live => 1,
            Supply::Pushed => 2,
        }
    }
    pub(crate) const SOURCES: [&'static str; 3] = ["files", "live", "pushed"];
}

#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) supply: Supply,
    /// What a reader can have, by offset.
    pub(crate) records: Vec<Record>,
    /// No more will come.
    pub(crate) ended: bool,
    /// How far its events are off the others', ms.
    drift_ms: i64,
    /// It brings nothing until then.
    silent_until: i64,
    /// What the producer does not know to be safe.
    unsafe_yet: Vec<Record>,
    path: PathBuf,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct World {
    /// How late it is.
    pub(crate) time: i64,
    /// How wrong the host's clock is.
    pub(crate) skew: i64,
    pub(crate) partitions: Vec<Partition>,
    /// Events that were produced, the last few: some come again.
    recent: Vec<Record>,
    pub(crate) produced: u64,
    next_id: u8,
}

const RECORD_BYTES: usize = 1 + 8 + 1 + 1 + 4;

fn encode(r: &Record, out: &mut Vec<u8>) {
    let at = out.len();
    out.push(r.ident.key);
    out.extend_from_slice(&r.ident.time.to_le_bytes());
    out.extend_from_slice(&[r.ident.id, r.kind]);
    let check = check_of(&out[at..]);
    out.extend_from_slice(&check.to_le_bytes());
}

fn check_of(bytes: &[u8]) -> u32 {
    xxhash_rust::xxh3::xxh3_64(bytes) as u32
}

fn decode(bytes: &[u8]) -> Option<Record> {
    let (body, check) = bytes.split_at_checked(RECORD_BYTES - 4)?;
    if check_of(body).to_le_bytes() != check {
        return None;
    }
    let time = i64::from_le_bytes(body[1..9].try_into().ok()?);
    Some(Record { ident: Ident { key: body[0], time, id: body[9] }, kind: body[10] })
}

impl World {
    pub(crate) fn new(plan: &Plan, rng: &mut fastrand::Rng) -> World {
        let mut world = World {
            time: 1_000_000,
            skew: 0,
            partitions: Vec::new(),
            recent: Vec::new(),
            produced: 0,
            next_id: 0,
        };
        for supply in &plan.supplies {
            world.add(plan, rng, *supply);
        }
        world
    }

    /// The host's clock.
    pub(crate) fn clock(&self) -> i64 {
        self.time + self.skew
    }

    pub(crate) fn add(&mut self, plan: &Plan, rng: &mut fastrand::Rng, supply: Supply) {
        let n = self.partitions.len();
        self.partitions.push(Partition {
            supply,
            records: Vec::new(),
            ended: false,
            drift_ms: 0,
            silent_until: 0,
            unsafe_yet: Vec::new(),
            path: Path::new("/ingest").join(n.to_string()),
        });
        if supply == Supply::Bounded {
            // All of it is there from the start; its times are of some while ago.
            let mut at = self.time - rng.i64(50..400);
            for _ in 0..rng.usize(20..90) {
                at += rng.i64(0..6);
                let record = self.event(plan, rng, at);
                self.partitions[n].records.push(record);
            }
            self.partitions[n].ended = true;
        }
    }

    fn event(&mut self, plan: &Plan, rng: &mut fastrand::Rng, at: i64) -> Record {
        self.produced += 1;
        if !self.recent.is_empty() && rng.u32(0..100) < plan.copies {
            let mut copy = self.recent[rng.usize(0..self.recent.len())];
            if rng.u8(0..5) == 0 {
                copy.kind = rng.u8(0..KINDS);
            }
            // A copy may come as late as it likes only where being late is allowed.
            if !plan.orderly || (at - plan.disorder + 1..=at).contains(&copy.ident.time) {
                return copy;
            }
        }
        let early = if rng.u8(0..10) < 7 { rng.i64(0..plan.disorder.max(1)) } else { 0 };
        let mut time = at - early;
        if !plan.orderly {
            match rng.u32(0..200) {
                0..3 => time -= plan.disorder + plan.lateness + rng.i64(0..60),
                3..5 => time -= plan.disorder + rng.i64(0..plan.lateness.max(1)),
                5 => time += plan.far_future + rng.i64(1..100),
                _ => {}
            }
        }
        self.next_id = self.next_id.wrapping_add(1);
        let key = if rng.u8(0..3) == 0 { 0 } else { rng.u8(0..plan.keys) };
        let id = if rng.bool() { self.next_id } else { rng.u8(0..4) };
        let kind = if rng.u32(0..100) < plan.rude { rng.u8(0..KINDS) } else { rng.u8(5..KINDS) };
        let record = Record { ident: Ident { key, time, id }, kind };
        self.recent.push(record);
        if self.recent.len() > 60 {
            self.recent.swap_remove(rng.usize(0..60));
        }
        record
    }

    /// Some partitions bring some events.
    pub(crate) fn produce(&mut self, plan: &Plan, rng: &mut fastrand::Rng) {
        for n in 0..self.partitions.len() {
            let p = &self.partitions[n];
            if p.ended || p.silent_until > self.time || rng.u8(0..3) == 0 {
                continue;
            }
            let at = self.time + p.drift_ms;
            for _ in 0..rng.usize(1..12) {
                let record = self.event(plan, rng, at);
                let p = &mut self.partitions[n];
                match p.supply {
                    Supply::Pushed => p.unsafe_yet.push(record),
                    _ => p.records.push(record),
                }
            }
        }
    }

    /// A live partition falls silent for a while.
    pub(crate) fn silence(&mut self, rng: &mut fastrand::Rng, ms: i64) -> bool {
        let live: Vec<usize> = (0..self.partitions.len()).filter(|n| !self.partitions[*n].ended).collect();
        let Some(n) = rng.choice(&live) else { return false };
        self.partitions[*n].silent_until = self.time + ms;
        true
    }

    /// A live partition's times run ahead of the others', or behind.
    pub(crate) fn drift(&mut self, rng: &mut fastrand::Rng, ms: i64) -> bool {
        let live: Vec<usize> = (0..self.partitions.len()).filter(|n| !self.partitions[*n].ended).collect();
        let Some(n) = rng.choice(&live) else { return false };
        self.partitions[*n].drift_ms = ms;
        true
    }

    /// The ingest logs as the disk has them: what is whole is kept, and written once more, since nobody knows what a sync that
    /// failed has left.
    pub(crate) fn open_ingest(&mut self, disk: &dyn Disk) -> Result<(), StoreError> {
        tidemill_store::create_dir_durably(disk, Path::new("/ingest"))?;
        for p in self.partitions.iter_mut().filter(|p| p.supply == Supply::Pushed) {
            let bytes = tidemill_store::read_if_there(disk, &p.path)?.unwrap_or_default();
            p.records = bytes.chunks(RECORD_BYTES).map_while(decode).collect();
            let whole = p.records.len() * RECORD_BYTES;
            let storage = |e| StoreError::storage("open", &p.path)(e);
            let file = disk.open(&p.path, Open::MaybeNew).map_err(storage)?;
            disk.sync_dir(Path::new("/ingest")).map_err(storage)?;
            file.write_all_at(&bytes[..whole], 0)
                .and_then(|()| file.set_len(whole as u64))
                .and_then(|()| file.sync_all())
                .map_err(storage)?;
        }
        Ok(())
    }

    /// What was pushed is written down and acknowledged; true: some of the acknowledgements are lost.
    pub(crate) fn ingest(
        &mut self,
        disk: &dyn Disk,
        rng: &mut fastrand::Rng,
        orderly: bool,
    ) -> Result<bool, StoreError> {
        let mut redelivered = false;
        for p in self.partitions.iter_mut().filter(|p| p.supply == Supply::Pushed && !p.unsafe_yet.is_empty())
        {
            let mut bytes = Vec::new();
            p.unsafe_yet.iter().for_each(|r| encode(r, &mut bytes));
            let storage = |e| StoreError::storage("append to", &p.path)(e);
            let file = disk.open(&p.path, Open::Write).map_err(storage)?;
            file.write_all_at(&bytes, (p.records.len() * RECORD_BYTES) as u64)
                .and_then(|()| file.sync_data())
                .map_err(storage)?;
            p.records.extend_from_slice(&p.unsafe_yet);
            if !orderly && rng.u8(0..12) == 0 {
                rng.shuffle(&mut p.unsafe_yet);
                redelivered = true;
            } else {
                p.unsafe_yet.clear();
            }
        }
        Ok(redelivered)
    }

    /// Nothing more comes but what is already under way.
    pub(crate) fn end(&mut self) {
        for p in &mut self.partitions {
            p.ended |= p.supply == Supply::Live;
            p.silent_until = 0;
        }
    }

    /// What was pushed is safe, too, and no more comes.
    pub(crate) fn end_pushed(&mut self) -> bool {
        let all_safe = self.partitions.iter().all(|p| p.unsafe_yet.is_empty());
        for p in self.partitions.iter_mut().filter(|_| all_safe) {
            p.ended = true;
        }
        all_safe
    }
}
