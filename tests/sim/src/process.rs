//! One process that runs the pipeline: what `host/app` does on its threads, step by step under the simulation's hand.
//!
//! Lanes, watermarks, the store, what an epoch consists of, what is trimmed and which cursor holds are the product's own
//! code; what is here only carries values between them.

use crate::model::{Accepted, Deployed, Ident, Outcome, Schedule, outcome};
use crate::plan::{Early, Plan};
use crate::rule::{Manners, Visits};
use crate::sink::{Cursor, Handle, SinkError};
use crate::world::{Supply, World};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tidemill_engine::contain::Contained;
use tidemill_engine::dedup::Dedup;
use tidemill_engine::event::{Position, RowHead, Rows, ext};
use tidemill_engine::key::{KeyForm, key_group, key_hash};
use tidemill_engine::lane::{Barrier, Lane, LaneConfig, LaneCounts, LaneEpoch, LaneFault, Origin};
use tidemill_engine::letter::RecordLetter;
use tidemill_engine::outbox::{Outbox, Revision, RowIter};
use tidemill_engine::record::{Kind, Record};
use tidemill_engine::rule::SessionRule;
use tidemill_engine::time::EventTime;
use tidemill_engine::unresolved::{self, Left, Resolution, Unresolved};
use tidemill_engine::versions::{LIVE_MAX, Policy, Scheduled, Version, Versions};
use tidemill_engine::watermark::{PartitionKey, PartitionTime, SourceTime, Watermarks};
use tidemill_store::StoreError;
use tidemill_store::claim::Claim;
use tidemill_store::disk::Disk;
use tidemill_store::epoch::{Content, Needs, Rotation};
use tidemill_store::log::{EpochLog, Evidence, RecordRef, Recovery};
use tidemill_store::opening::{Since, since};

pub(crate) const DATA: &str = "/data";
pub(crate) const PIPELINE: &str = "clicks";
/// Epochs sealed and not yet durable.
pub(crate) const SEALED_MAX: usize = 3;

/// A partition and how far it was read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PartMeta {
    pub(crate) key: PartitionKey,
    pub(crate) offset: u64,
    pub(crate) time: PartitionTime,
    pub(crate) listed_at_ms: i64,
}

/// Everything durable but the keys' state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) watermark: EventTime,
    pub(crate) greatest: EventTime,
    pub(crate) ended: bool,
    pub(crate) finished: bool,
    pub(crate) parts: Vec<PartMeta>,
    pub(crate) cursors: BTreeMap<String, Cursor>,
    pub(crate) outbox_epoch: u64,
    pub(crate) images: Vec<u64>,
    pub(crate) tell_again: bool,
    pub(crate) schedule: Schedule,
    pub(crate) records: u64,
    pub(crate) events: u64,
    pub(crate) copies: u64,
    pub(crate) dead: BTreeMap<String, u64>,
    pub(crate) fold: LaneCounts,
    pub(crate) dead_by_rule: BTreeMap<String, u64>,
    pub(crate) unresolved_from: Option<u64>,
    /// Of which sealing this is the record: what only the simulation knows is found by it.
    pub(crate) sealing: u64,
}

/// Why the process ends.
#[derive(Debug)]
pub(crate) enum End {
    /// The store.
    Store(StoreError),
    /// A sink.
    Sink(&'static str, SinkError),
    /// The rule.
    Rule(LaneFault),
    /// A sink and the store contradict each other.
    Contradiction(String),
    /// Something that may never be.
    Broken(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Store(e) => e.fmt(f),
            End::Sink(name, e) => write!(f, "sink `{name}`: {e}"),
            End::Rule(e) => e.fmt(f),
            End::Contradiction(what) | End::Broken(what) => f.write_str(what),
        }
    }
}

impl From<StoreError> for End {
    fn from(e: StoreError) -> Self {
        End::Store(e)
    }
}

impl From<LaneFault> for End {
    fn from(e: LaneFault) -> Self {
        End::Rule(e)
    }
}

/// What lanes are told, to be told again to others.
#[derive(Clone, Debug)]
pub(crate) enum LaneOp {
    Insert(usize, Arc<Rows>, EventTime),
    Sweep,
    Deploy(Scheduled, crate::rule::Config),
    Strike,
    Retire,
    Barrier(Barrier),
}

/// What the simulation knows of a sealing.
#[derive(Debug, Clone)]
pub(crate) struct Sealing {
    pub(crate) number: u64,
    /// What the table must then hold: everything, or what is final only.
    pub(crate) expected: Outcome,
    pub(crate) all: bool,
    pub(crate) ops: Vec<LaneOp>,
    /// Over what the lanes sent, whatever the order.
    pub(crate) sent: u64,
}

#[derive(Debug)]
struct Sealed {
    meta: Meta,
    parts: Vec<LaneEpoch>,
    letters: Vec<u8>,
    changed: bool,
    image: Option<std::ops::Range<u32>>,
    sealing: Sealing,
}

/// A committed epoch on its way to a sink.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub(crate) incarnation: u64,
    pub(crate) at: RecordRef,
    content: Option<Arc<Content>>,
}

#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) handle: Handle,
    pub(crate) cursor: Cursor,
    pub(crate) queue: VecDeque<Committed>,
}

struct Part {
    key: PartitionKey,
    offset: u64,
    listed_at_ms: i64,
    dedup: Option<Dedup>,
}

/// What is to change at the next barrier.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Deploy { config: usize, policy: Policy, drain_max: i64, back: bool },
    Strike,
}

/// What became of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Changed {
    Deployed(Policy),
    Back(Policy),
    Struck,
    No,
}

/// A commit, for the simulation to judge.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) at: RecordRef,
    pub(crate) revision: Revision,
    pub(crate) content: Arc<Content>,
    pub(crate) meta: Meta,
    pub(crate) sealing: Sealing,
}

/// What recovery has found, for the simulation to judge.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) recovery: Recovery,
    pub(crate) newest: Option<(u64, Meta)>,
    /// What the newest record sends.
    pub(crate) rows: Vec<u8>,
    pub(crate) enriched: Vec<u8>,
}

/// An event in a lane whose fate is not known before the barrier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inserted {
    pub(crate) position: Position,
    pub(crate) ident: Ident,
    pub(crate) kind: u8,
}

/// See the module's documentation.
pub(crate) struct Process {
    pub(crate) disk: Arc<dyn Disk>,
    _claim: Claim,
    pub(crate) incarnation: u64,
    pub(crate) log: EpochLog,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) manners: Manners,
    watermarks: Watermarks,
    parts: Vec<Part>,
    pub(crate) schedule: Schedule,
    greatest: EventTime,
    pub(crate) change: Option<Change>,
    sealed: VecDeque<Sealed>,
    pub(crate) outlets: Vec<Outlet>,
    needs: Needs,
    rotation: Rotation,
    records: u64,
    events: u64,
    copies: u64,
    letters: Vec<u8>,
    dead: BTreeMap<String, u64>,
    fold: LaneCounts,
    dead_by_rule: BTreeMap<String, u64>,
    changed: bool,
    epochs: u64,
    settled: Option<Version>,
    ops: Vec<LaneOp>,
    /// Unresolved revisions, and what of them is resolved.
    account: Unresolved,
    work: Vec<(Revision, Vec<u8>, Option<Vec<u32>>)>,
    tray: Vec<Resolution>,
    pub(crate) was_ended: bool,
    pub(crate) was_finished: bool,
    pub(crate) ended: bool,
    /// The newest record's.
    last: Option<Meta>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").field("incarnation", &self.incarnation).finish_non_exhaustive()
    }
}

pub(crate) fn make_rule(
    config: crate::rule::Config,
    version: Version,
    manners: &Manners,
) -> Box<dyn SessionRule> {
    let rule = Visits::new(config, &Schedule::name(version), manners.clone());
    Box::new(Contained::new(rule, u32::MAX))
}

pub(crate) fn make_lanes(plan: &Plan) -> Vec<Lane> {
    let n = plan.lanes as u32;
    let groups = tidemill_engine::bounds::KEY_GROUPS;
    (0..n)
        .map(|i| {
            let config = LaneConfig {
                pipeline: PIPELINE.into(),
                key_form: KeyForm::One,
                lateness_ms: plan.lateness,
                early: plan.early != Early::Off,
                events_per_key: plan.events_per_key,
                suffix_bytes: plan.suffix_bytes,
                open_sessions: plan.open_sessions,
                groups: groups * i / n..groups * (i + 1) / n,
                sources: Supply::SOURCES.map(String::from).to_vec(),
                layout: Vec::new(),
            };
            Lane::new(config, Versions::unknown())
        })
        .collect()
}

pub(crate) fn put_versions(lanes: &mut [Lane], schedule: &Schedule, manners: &Manners) {
    let rule = |d: &Deployed| make_rule(d.config, d.scheduled.version, manners);
    for lane in lanes {
        let live = schedule.live();
        let history = schedule.all[..schedule.retired].iter().map(|d| d.scheduled.clone()).collect();
        let first =
            Versions::new(live[0].scheduled.clone(), rule(&live[0]), schedule.reasons.clone(), history);
        let all = live[1..].iter().fold(first, |all, d| all.with_newer(d.scheduled.clone(), rule(d)));
        lane.put_versions(all, vec!["kind".into()]);
    }
}

pub(crate) fn lane_of(lanes: usize, key: &[u8]) -> usize {
    let group = key_group(key_hash(key)) as usize;
    let groups = tidemill_engine::bounds::KEY_GROUPS as usize;
    (0..lanes).find(|i| (groups * i / lanes..groups * (i + 1) / lanes).contains(&group)).unwrap_or(0)
}

pub(crate) fn log_dir() -> PathBuf {
    Path::new(DATA).join("pipelines").join(PIPELINE)
}

/// Whether the lookups for a key's sessions find nothing.
pub(crate) fn lookup_fails(key: u8) -> bool {
    key % 5 == 1
}

impl Process {
    /// Claims, recovers, opens the sinks.
    pub(crate) fn start(
        disk: Arc<dyn Disk>,
        plan: &Plan,
        world: &mut World,
        places: &mut [crate::sink::Place],
        found: &mut Found,
    ) -> Result<Process, End> {
        let mut claim = Claim::take(disk.clone(), Path::new(DATA))?;
        let incarnation = claim.next_incarnation()?;
        world.open_ingest(&*disk)?;
        let dir = claim.pipeline_dir(PIPELINE);
        let mut evidence = Vec::new();
        if EpochLog::is_there(&*disk, &dir)? {
            for place in places.iter() {
                if let Some(epoch) = place.witness(&*disk)? {
                    evidence.push(Evidence { who: format!("sink `{}`", place.name), epoch });
                }
            }
        }
        let mut lanes = make_lanes(plan);
        let mut left = Left::default();
        let mut kept = Vec::new();
        let mut newest: Option<(u64, Meta)> = None;
        let mut sent = (Vec::new(), Vec::new());
        let visit = |record: Record<'_>, at: RecordRef| {
            load(&record, at, &mut lanes, &mut newest)?;
            if !left.take(&record, at.len) {
                return Err(unreadable(at, "it resolves what is not unresolved"));
            }
            let of = |kind| record.section(kind).unwrap_or_default().to_vec();
            sent = (of(Kind::Rows), of(Kind::Enriched));
            kept.push((record.header.incarnation, at));
            Ok(())
        };
        let (log, recovery) = EpochLog::open(disk.clone(), &dir, plan.segment_bytes, &evidence, visit)?;
        let first_epoch = recovery.first_epoch;
        *found = Found { recovery, newest: newest.clone(), rows: sent.0, enriched: sent.1 };
        let meta = newest.map(|(_, meta)| meta);
        let needs = meta.as_ref().map_or_else(Needs::default, |m| Needs {
            images: m.images.clone(),
            outbox_epoch: m.outbox_epoch,
        });
        if !needs.is_whole(first_epoch) {
            return Err(End::Broken(format!(
                "the log begins with epoch {first_epoch}, images: {:?}",
                needs.images
            )));
        }
        let manners = Manners {
            most: plan.most,
            hiccups: plan.hiccups,
            hints: plan.hints,
            breaks: Arc::new(AtomicBool::new(false)),
        };
        let schedule = match &meta {
            Some(m) => m.schedule.clone(),
            None => first_schedule(plan),
        };
        put_versions(&mut lanes, &schedule, &manners);
        if let Some(m) = &meta {
            lanes.iter_mut().for_each(|l| l.loaded(m.watermark));
            if m.tell_again {
                lanes.iter_mut().for_each(Lane::tell_again);
            }
        }
        let outlets = open_sinks(&*disk, places, incarnation, &log, meta.as_ref(), &kept)?;
        let mut p = Process {
            disk,
            _claim: claim,
            incarnation,
            log,
            lanes,
            manners,
            watermarks: watermarks(
                plan,
                meta.as_ref().map_or(EventTime::BEGINNING, |m| m.watermark),
                world.clock(),
            ),
            parts: Vec::new(),
            schedule,
            greatest: meta.as_ref().map_or(EventTime::BEGINNING, |m| m.greatest),
            change: None,
            sealed: VecDeque::new(),
            outlets,
            needs,
            rotation: Rotation::default(),
            records: meta.as_ref().map_or(0, |m| m.records),
            events: meta.as_ref().map_or(0, |m| m.events),
            copies: meta.as_ref().map_or(0, |m| m.copies),
            letters: Vec::new(),
            dead: meta.as_ref().map(|m| m.dead.clone()).unwrap_or_default(),
            fold: meta.as_ref().map(|m| m.fold).unwrap_or_default(),
            dead_by_rule: meta.as_ref().map(|m| m.dead_by_rule.clone()).unwrap_or_default(),
            changed: meta.is_none(),
            epochs: 0,
            settled: None,
            ops: Vec::new(),
            account: Unresolved::default(),
            work: Vec::new(),
            tray: Vec::new(),
            was_ended: meta.as_ref().is_some_and(|m| m.ended),
            was_finished: meta.as_ref().is_some_and(|m| m.finished),
            ended: false,
            last: meta.clone(),
        };
        p.take_left(left);
        p.list(plan, world, meta.as_ref().map_or(&[][..], |m| &m.parts));
        Ok(p)
    }

    fn take_left(&mut self, left: Left) {
        let Left { account, rows, .. } = left;
        let mut open: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (place, _) in account.open() {
            open.entry(place.epoch).or_default().push(place.index);
        }
        for (epoch, (revision, rows)) in rows {
            self.work.push((revision, rows, open.remove(&epoch)));
        }
        self.account = account;
    }

    /// Lists the partitions; those that the store knows go on where they were.
    pub(crate) fn list(&mut self, plan: &Plan, world: &World, known: &[PartMeta]) {
        let now = world.clock();
        for (n, p) in world.partitions.iter().enumerate().skip(self.parts.len()) {
            let key = (p.supply.source(), n as u32);
            let live = p.supply != Supply::Bounded;
            let fresh = PartitionTime::fresh(live, now);
            let m = known.iter().find(|m| m.key == key).cloned();
            let m = m.unwrap_or(PartMeta { key, offset: 0, time: fresh, listed_at_ms: now });
            let time = PartitionTime { finished: false, live, ..m.time };
            self.watermarks.add(key, time, now);
            let dedup = (plan.dedup > 0 && p.supply == Supply::Pushed).then(Dedup::default);
            self.parts.push(Part { key, offset: m.offset, listed_at_ms: m.listed_at_ms, dedup });
            // Of a file the first event is read ahead.
            if let (Supply::Bounded, EventTime::BEGINNING, Some(first)) =
                (p.supply, time.max, p.records.first())
            {
                self.watermarks.observe(key, EventTime::from_ms(first.ident.time), now);
            }
        }
    }

    /// Reads some records of the partition that is furthest behind; true if there were any, or one has ended.
    pub(crate) fn read(
        &mut self,
        plan: &Plan,
        world: &World,
        most: usize,
        inserted: &mut Vec<Inserted>,
    ) -> Result<bool, End> {
        let mut at = self.watermarks.next_unfinished(None);
        while let Some((_, key)) = at {
            if let Some(n) =
                self.parts.iter().position(|p| p.key == key).filter(|_| self.watermarks.may_read(key))
            {
                let partition = &world.partitions[n];
                let from = self.parts[n].offset as usize;
                if from < partition.records.len() {
                    let to = partition.records.len().min(from + most);
                    self.take(plan, world, n, to, inserted)?;
                    return Ok(true);
                }
                if partition.ended {
                    self.watermarks.finish(key);
                    self.changed = true;
                    return Ok(true);
                }
            }
            at = self.watermarks.next_unfinished(at);
        }
        Ok(false)
    }

    /// Whether every partition has ended.
    pub(crate) fn is_read(&self) -> bool {
        self.watermarks.next_unfinished(None).is_none()
    }

    fn take(
        &mut self,
        plan: &Plan,
        world: &World,
        n: usize,
        to: usize,
        inserted: &mut Vec<Inserted>,
    ) -> Result<(), End> {
        let now = world.clock();
        let watermark = self.watermarks.advance(now);
        let partition = &world.partitions[n];
        let part = &mut self.parts[n];
        let clock = if partition.supply == Supply::Bounded { part.listed_at_ms } else { now };
        let far = EventTime::from_ms(clock).plus(plan.far_future);
        let frontier = watermark.minus(plan.lateness);
        let mut rows: Vec<Rows> = self.lanes.iter().map(|_| Rows::default()).collect();
        let mut max = EventTime::BEGINNING;
        let mut accepted = Vec::new();
        for offset in part.offset as usize..to {
            let record = partition.records[offset];
            self.records += 1;
            let (time, id) = (EventTime::from_ms(record.ident.time), [record.ident.id]);
            let key = format!("k{}", record.ident.key);
            let position = Position { source: part.key.0, partition: part.key.1, offset: offset as u64 };
            let why = if time < frontier { Some("late") } else { (time > far).then_some("far_future") };
            if let Some(reason) = why {
                // Only what the store has no more of is called late.
                if part.dedup.as_ref().is_some_and(|d| d.knows(key.as_bytes(), time, &id)) {
                    self.copies += 1;
                    continue;
                }
                RecordLetter {
                    reason,
                    stage: "time",
                    source: Supply::SOURCES[part.key.0 as usize],
                    partition: "p",
                    position: Some(position),
                    message: "",
                    time_ms: Some(time.ms()),
                    ..RecordLetter::default()
                }
                .write(&mut self.letters);
                *self.dead.entry(reason.into()).or_default() += 1;
                continue;
            }
            self.events += 1;
            max = max.max(time);
            accepted.push((key.clone(), time, id));
            inserted.push(Inserted { position, ident: record.ident, kind: record.kind });
            push(
                &mut rows[lane_of(plan.lanes, key.as_bytes())],
                key.as_bytes(),
                time,
                position,
                &id,
                record.kind,
            );
        }
        if let Some(dedup) = &mut part.dedup {
            dedup.forget(frontier.minus(plan.dedup));
            accepted.iter().for_each(|(key, time, id)| dedup.accepted(key.as_bytes(), *time, id));
        }
        part.offset = to as u64;
        let key = part.key;
        self.changed = true;
        self.greatest = self.greatest.max(max);
        if max != EventTime::BEGINNING {
            self.watermarks.observe(key, max, now);
        }
        for (n, rows) in rows.into_iter().enumerate().filter(|(_, rows)| !rows.heads.is_empty()) {
            self.ops.push(LaneOp::Insert(n, Arc::new(rows), watermark));
            self.do_last()?;
        }
        Ok(())
    }

    fn do_last(&mut self) -> Result<Vec<LaneEpoch>, End> {
        let Some(op) = self.ops.last() else { return Ok(Vec::new()) };
        Ok(carry_out(&mut self.lanes, op, &self.manners)?)
    }

    /// Folds between barriers what may be folded.
    pub(crate) fn sweep(&mut self) -> Result<bool, End> {
        if !self.lanes.iter().all(Lane::sweeps) {
            return Ok(false);
        }
        self.ops.push(LaneOp::Sweep);
        self.do_last()?;
        Ok(true)
    }

    /// How far event time has come.
    pub(crate) fn watermark(&self) -> EventTime {
        self.watermarks.watermark()
    }

    /// Whether another epoch may be sealed.
    pub(crate) fn may_seal(&self) -> bool {
        self.sealed.len() < SEALED_MAX
    }

    /// Ends the epoch. `settle` is told what the lanes have found out about events, and returns what is then accepted.
    pub(crate) fn barrier(
        &mut self,
        plan: &Plan,
        world: &World,
        at_end: bool,
        number: u64,
        settle: impl FnOnce(&[u8], u64) -> Accepted,
    ) -> Result<Changed, End> {
        let now = world.clock();
        self.epochs += 1;
        let watermark = self.watermarks.advance(now);
        let early_tick = !at_end
            && match plan.early {
                Early::Off => false,
                Early::Epoch => true,
                Early::Every(n) => self.epochs.is_multiple_of(n),
            };
        let image = self.rotation.next(self.log.bytes_retained(), plan.segment_bytes);
        let to_lane = if at_end { EventTime::INFINITY } else { watermark };
        self.ops.push(LaneOp::Barrier(Barrier { watermark: to_lane, early_tick, at_end }));
        let mut parts = self.do_last()?;
        if let Some(groups) = &image {
            for (lane, part) in self.lanes.iter().zip(&mut parts) {
                lane.image(groups.clone(), &mut part.state);
            }
        }
        let mut lines = Vec::new();
        parts.iter().for_each(|p| lines.extend_from_slice(&p.letters));
        let accepted = settle(&lines, number);
        let sent = sent(&parts);
        let w = (!at_end).then(|| watermark.ms());
        let expected = outcome(&accepted, &self.schedule, w);
        let settled: Vec<Option<Version>> = parts.iter().map(|p| p.settled).collect();
        let changed = if at_end { Changed::No } else { self.change_versions(plan, watermark)? };
        if let Some(Some(v)) = settled.first()
            && settled.iter().all(|s| *s == Some(*v))
        {
            self.settled = Some(*v);
        }
        // The changes right after the barrier are part of its epoch: who restores it has them in the schedule.
        let ops = std::mem::take(&mut self.ops);
        let meta = Meta {
            watermark,
            greatest: self.greatest,
            ended: at_end,
            finished: false,
            parts: self.part_metas(),
            cursors: BTreeMap::new(),
            outbox_epoch: 0,
            images: Vec::new(),
            tell_again: false,
            schedule: self.schedule.clone(),
            records: self.records,
            events: self.events,
            copies: self.copies,
            dead: self.dead.clone(),
            fold: LaneCounts::default(),
            dead_by_rule: BTreeMap::new(),
            unresolved_from: None,
            sealing: number,
        };
        self.ended |= at_end;
        let all = early_tick || at_end;
        let sealing = Sealing { number, expected, all, ops, sent };
        self.sealed.push_back(Sealed {
            meta,
            parts,
            letters: std::mem::take(&mut self.letters),
            changed: std::mem::take(&mut self.changed) || at_end,
            image,
            sealing,
        });
        Ok(changed)
    }

    fn part_metas(&self) -> Vec<PartMeta> {
        let meta = |p: &Part| PartMeta {
            key: p.key,
            offset: p.offset,
            time: self.watermarks.get(p.key).copied().unwrap_or(PartitionTime::fresh(true, 0)),
            listed_at_ms: p.listed_at_ms,
        };
        self.parts.iter().map(meta).collect()
    }

    /// What comes right after a barrier.
    fn change_versions(&mut self, plan: &Plan, watermark: EventTime) -> Result<Changed, End> {
        if let Some(v) = self.settled.take()
            && self.schedule.newest().is_some_and(|d| d.scheduled.version == v)
            && self.schedule.live().len() > 1
        {
            self.schedule.retired = self.schedule.all.len() - 1;
            self.changed = true;
            self.ops.push(LaneOp::Retire);
            self.do_last()?;
        }
        match self.change.take() {
            None => Ok(Changed::No),
            Some(Change::Strike) => {
                let frontier = watermark.minus(plan.lateness).ms();
                if self.schedule.pending().is_none_or(|from| frontier >= from) {
                    return Ok(Changed::No);
                }
                self.schedule.all.pop();
                self.changed = true;
                self.ops.push(LaneOp::Strike);
                self.do_last()?;
                Ok(Changed::Struck)
            }
            Some(Change::Deploy { config, policy, drain_max, back }) => {
                let room = back && self.schedule.live().len() < LIVE_MAX;
                if self.schedule.pending().is_some() && !room {
                    return Ok(Changed::No);
                }
                let from = self.greatest.max(watermark).plus(1);
                let version = Version(self.schedule.next);
                let drained_by = match policy {
                    Policy::Migrate => EventTime::INFINITY,
                    Policy::Drain => from.plus(drain_max),
                };
                let plugin = Schedule::name(version);
                let scheduled = Scheduled { version, from, policy, drained_by, plugin, digest: None };
                let config = plan.configs[config];
                self.schedule.next += 1;
                self.schedule.all.push(Deployed { scheduled: scheduled.clone(), config });
                self.changed = true;
                self.ops.push(LaneOp::Deploy(scheduled, config));
                self.do_last()?;
                Ok(if back { Changed::Back(policy) } else { Changed::Deployed(policy) })
            }
        }
    }

    /// Makes the oldest sealed epoch durable and releases it; none if nothing was sealed, or it was not worth a record.
    pub(crate) fn commit(
        &mut self,
        plan: &Plan,
        cursors: BTreeMap<String, Cursor>,
    ) -> Result<Option<Commit>, End> {
        let Some(Sealed { mut meta, mut parts, letters, mut changed, image, sealing }) =
            self.sealed.pop_front()
        else {
            return Ok(None);
        };
        for p in &parts {
            self.fold.add(&p.counts);
            for (reason, n) in &p.dead {
                *self.dead_by_rule.entry(reason.clone()).or_default() += n;
            }
        }
        let mut content = Content::of(&mut parts, letters);
        let epoch = self.log.last_epoch() + 1;
        if plan.lookups {
            let tray = std::mem::take(&mut self.tray);
            changed |= !tray.is_empty();
            let dead = content.hold_back(|retracted| self.account.end(tray, retracted));
            for (reason, n) in dead {
                *self.dead_by_rule.entry(reason).or_default() += n;
            }
            let coming = !content.unresolved.is_empty();
            meta.unresolved_from = self.account.oldest().or(coming.then_some(epoch));
        }
        meta.finished = meta.ended && meta.unresolved_from.is_none();
        meta.fold = self.fold;
        meta.dead_by_rule.clone_from(&self.dead_by_rule);
        if content.is_empty() && !changed {
            return Ok(None);
        }
        self.needs.take(epoch, image.as_ref(), content.leaves());
        meta.cursors = cursors;
        meta.images.clone_from(&self.needs.images);
        meta.outbox_epoch = self.needs.outbox_epoch;
        let revision = Revision { incarnation: self.incarnation, epoch };
        let at = self.log.append(self.incarnation, epoch, &content.sections(&text(&meta)))?;
        let content = Arc::new(content);
        for o in &mut self.outlets {
            // Every other one is read from the log, as where much waits.
            let content = (epoch.is_multiple_of(2)).then(|| content.clone());
            o.queue.push_back(Committed { incarnation: self.incarnation, at, content });
        }
        self.account.begin(revision, &content.unresolved);
        if !content.unresolved.is_empty() {
            self.work.push((revision, content.unresolved.clone(), None));
        }
        let confirmed = meta.cursors.values().map(|c| c.epoch);
        self.last = Some(meta.clone());
        self.log.trim(self.needs.kept_from(confirmed, self.account.oldest()))?;
        Ok(Some(Commit { at, revision, content, meta, sealing }))
    }

    /// After the end of the input: what was resolved since leaves with an epoch of its own.
    pub(crate) fn seal_the_rest(&mut self, number: u64) {
        let Some(meta) = self.last.clone() else { return };
        let sealing = Sealing { number, expected: Outcome::default(), all: false, ops: Vec::new(), sent: 0 };
        let meta = Meta { sealing: number, ..meta };
        self.sealed.push_back(Sealed {
            meta,
            parts: Vec::new(),
            letters: Vec::new(),
            changed: true,
            image: None,
            sealing,
        });
    }

    /// The newest record's meta data.
    pub(crate) fn last(&self) -> Option<&Meta> {
        self.last.as_ref()
    }

    /// Whether the lanes have been told nothing since the newest committed epoch.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.sealed.is_empty() && self.ops.is_empty()
    }

    /// Offers a sink the next epoch; the cursor that it has then.
    pub(crate) fn deliver(
        &mut self,
        n: usize,
        place: &mut crate::sink::Place,
        mut judge: impl FnMut(&Committed) -> Result<(), String>,
    ) -> Result<bool, End> {
        let Some(c) = self.outlets[n].queue.front().cloned() else { return Ok(false) };
        judge(&c).map_err(End::Broken)?;
        let outlet = &mut self.outlets[n];
        let sections;
        let outbox = match &c.content {
            Some(content) => content.outbox(Revision { incarnation: c.incarnation, epoch: c.at.epoch }),
            None => {
                sections = self.log.read_sections(&c.at)?;
                let of = |kind| sections.iter().find(|s| s.0 == kind).map_or(&[][..], |s| &s.1);
                Outbox::new(c.incarnation, c.at.epoch, of(Kind::Rows), of(Kind::Letters))
                    .with_enriched(of(Kind::Enriched))
            }
        };
        let cursor =
            place.deliver(&*self.disk, &mut outlet.handle, &outbox).map_err(|e| End::Sink(place.name, e))?;
        outlet.queue.pop_front();
        if let Some(cursor) = cursor {
            outlet.cursor = cursor;
        }
        Ok(true)
    }

    /// Whether everything sealed is committed and offered.
    pub(crate) fn is_quiet(&self) -> bool {
        self.sealed.is_empty() && self.outlets.iter().all(|o| o.queue.is_empty())
    }

    /// The sealing that is committed next.
    pub(crate) fn next_sealing(&self) -> Option<&Sealing> {
        self.sealed.front().map(|s| &s.sealing)
    }

    pub(crate) fn has_sealed(&self) -> bool {
        !self.sealed.is_empty()
    }

    pub(crate) fn waits_for_lookups(&self) -> bool {
        self.account.count() > 0 || !self.tray.is_empty()
    }

    /// Some of the unresolved revisions are looked up.
    pub(crate) fn look_up(&mut self, rng: &mut fastrand::Rng, all: bool) {
        let works = std::mem::take(&mut self.work);
        for (revision, rows, open) in works {
            let mut later = Vec::new();
            for (index, (bytes, row)) in RowIter::new(&rows).with_bytes().enumerate() {
                let index = index as u32;
                if open.as_ref().is_some_and(|open| !open.contains(&index)) {
                    continue;
                }
                if !all && rng.bool() {
                    later.push(index);
                    continue;
                }
                let place = unresolved::Place { epoch: revision.epoch, index };
                let key = row.key.trim_start_matches('k').parse().unwrap_or(u8::MAX);
                let outcome = if lookup_fails(key) {
                    let line = format!(
                        "{{\"kind\":\"revision\",\"reason\":\"lookup_failed\",\"key\":\"{}\",\"start_ms\":{}}}\n",
                        row.key,
                        row.start.ms()
                    );
                    unresolved::Outcome::Letter("lookup_failed".into(), line.into_bytes())
                } else {
                    unresolved::Outcome::Row(bytes.to_vec())
                };
                self.tray.push(Resolution { place, outcome });
            }
            if !later.is_empty() {
                self.work.push((revision, rows, Some(later)));
            }
        }
        self.changed |= !self.tray.is_empty();
    }

    /// The rule fails for good at the next call.
    pub(crate) fn break_rule(&self) {
        self.manners.breaks.store(true, Ordering::Relaxed);
    }
}

/// A hash over the rows of an epoch, whatever their order. (Letters leave when base passes them, which may be an epoch sooner
/// or later where snapshots lie elsewhere.)
pub(crate) fn sent(parts: &[LaneEpoch]) -> u64 {
    let rows = parts.iter().flat_map(|p| RowIter::new(&p.rows).with_bytes().map(|(bytes, _)| bytes));
    rows.fold(0, |sum, bytes| sum.wrapping_add(xxhash_rust::xxh3::xxh3_64(bytes)))
}

/// What one lane operation brings; parts only at a barrier.
pub(crate) fn carry_out(
    lanes: &mut [Lane],
    op: &LaneOp,
    manners: &Manners,
) -> Result<Vec<LaneEpoch>, LaneFault> {
    match op {
        LaneOp::Insert(n, rows, watermark) => {
            lanes[*n].insert(rows, *watermark, Origin { source: "s", partition: "p", raw: b"" })?;
        }
        LaneOp::Sweep => lanes.iter_mut().try_for_each(Lane::sweep)?,
        LaneOp::Deploy(scheduled, config) => {
            for lane in lanes {
                let rule = make_rule(*config, scheduled.version, manners);
                lane.deploy(scheduled.clone(), rule, vec!["kind".into()]);
            }
        }
        LaneOp::Strike => lanes.iter_mut().for_each(Lane::strike),
        LaneOp::Retire => lanes.iter_mut().for_each(Lane::retire),
        LaneOp::Barrier(barrier) => return lanes.iter_mut().map(|l| l.barrier(*barrier)).collect(),
    }
    Ok(Vec::new())
}

fn push(rows: &mut Rows, key: &[u8], time: EventTime, position: Position, id: &[u8], kind: u8) {
    let key_at = rows.bytes.len();
    rows.bytes.extend_from_slice(key);
    let ext_at = rows.bytes.len();
    ext::push_id(&mut rows.bytes, Some(id));
    ext::push_field(&mut rows.bytes, ext::Value::Text(&[b'0' + kind]));
    rows.heads.push(RowHead {
        key_hash: key_hash(key),
        time,
        position,
        key_at: key_at as u32,
        key_len: key.len() as u32,
        ext_len: (rows.bytes.len() - ext_at) as u32,
        raw_at: 0,
        raw_len: 0,
    });
}

fn watermarks(plan: &Plan, saved: EventTime, now: i64) -> Watermarks {
    let time = SourceTime {
        disorder_ms: plan.disorder,
        idle_ms: plan.idle,
        drift_ms: plan.drift,
        far_future_ms: Some(plan.far_future),
    };
    Watermarks::new((0..3).map(|n| (n, time)).collect(), saved, now)
}

fn first_schedule(plan: &Plan) -> Schedule {
    let version = Version(0);
    let scheduled = Scheduled {
        version,
        from: EventTime::BEGINNING,
        policy: Policy::Migrate,
        drained_by: EventTime::INFINITY,
        plugin: Schedule::name(version),
        digest: None,
    };
    Schedule {
        all: vec![Deployed { scheduled, config: plan.configs[0] }],
        next: 1,
        retired: 0,
        reasons: Vec::new(),
    }
}

fn open_sinks(
    disk: &dyn Disk,
    places: &mut [crate::sink::Place],
    incarnation: u64,
    log: &EpochLog,
    meta: Option<&Meta>,
    kept: &[(u64, RecordRef)],
) -> Result<Vec<Outlet>, End> {
    let mut outlets = Vec::new();
    for place in places {
        let stored = meta.and_then(|m| m.cursors.get(place.name)).copied();
        let (handle, own) = place.open(disk, incarnation, stored).map_err(|e| End::Sink(place.name, e))?;
        let cursor = match since(own, stored, log.last_epoch(), |c: &Cursor| c.epoch) {
            Ok(Since::Cursor(cursor)) => cursor,
            Ok(Since::New { epoch }) => Cursor { epoch, length: 0 },
            Err(why) => return Err(End::Contradiction(format!("sink `{}`: {why:?}", place.name))),
        };
        let after = kept.iter().filter(|(_, at)| at.epoch > cursor.epoch);
        let queue = after.map(|(by, at)| Committed { incarnation: *by, at: *at, content: None }).collect();
        outlets.push(Outlet { handle, cursor, queue });
    }
    Ok(outlets)
}

pub(crate) fn unreadable(at: RecordRef, what: &str) -> StoreError {
    StoreError::Damaged {
        file: log_dir(),
        offset: at.offset,
        epoch: Some(at.epoch),
        what: what.to_owned(),
        hint: String::new(),
    }
}

/// Takes a record in: its meta data, and the lanes' state.
pub(crate) fn load(
    record: &Record<'_>,
    at: RecordRef,
    lanes: &mut [Lane],
    newest: &mut Option<(u64, Meta)>,
) -> Result<(), StoreError> {
    let text = record.section(Kind::Meta).unwrap_or_default();
    let meta = serde_json::from_slice(text).map_err(|e| unreadable(at, &e.to_string()))?;
    *newest = Some((at.epoch, meta));
    for section in record.sections_of(Kind::State) {
        for lane in lanes.iter_mut() {
            lane.load(section).map_err(|e| unreadable(at, &e.to_string()))?;
        }
    }
    Ok(())
}

pub(crate) fn text(meta: &Meta) -> Vec<u8> {
    serde_json::to_vec(meta).unwrap_or_default()
}
