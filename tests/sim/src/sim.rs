//! One seed: a pipeline is set up, a world brings events and troubles, and after every step what must hold is checked.

use crate::counts::{Counts, Of};
use crate::disk::{Keep, SimDisk, Trouble};
use crate::model::{Deployed, outcome};
use crate::plan::Plan;
use crate::process::{
    self, Change, Changed, Committed, DATA, End, Found, LaneOp, Meta, PIPELINE, Process, carry_out, log_dir,
    text,
};
use crate::rule::Manners;
use crate::sink::{Handle, Kind, Mood, Place, Rows, SinkError};
use crate::truth::{Truth, Verdict, table_is};
use crate::world::{Supply, World};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidemill_engine::lane::{Lane, LaneEpoch};
use tidemill_engine::outbox::{Outbox, Stage, Stages};
use tidemill_engine::record::Kind as Section;
use tidemill_engine::versions::{LIVE_MAX, Policy};
use tidemill_store::StoreError;
use tidemill_store::claim::Claim;
use tidemill_store::disk::Disk;
use tidemill_store::epoch::{Needs, can_send_again};
use tidemill_store::log::{Decision, EpochLog, RecordRef};
use xxhash_rust::xxh3::Xxh3;

/// Events of a seed, at least.
const EVENTS_MIN: u64 = 500;
/// Faults of a seed, at least.
const FAULTS_MIN: u64 = 5;
/// Events of a script.
const SCRIPT_EVENTS: u64 = 150;
/// A process that does not start within so many tries never will.
const STARTS_MAX: usize = 60;

/// What a seed came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Events that were read.
    pub events: u64,
    /// Over everything that was done and written.
    pub trace: u64,
    /// What occurred.
    pub counts: Counts,
}

/// What did not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// At which step.
    pub step: u64,
    /// What, for a reader.
    pub what: String,
}

pub(crate) struct Sim<'t> {
    plan: Plan,
    rng: fastrand::Rng,
    world: World,
    places: Vec<Place>,
    disk: SimDisk,
    /// What the process that runs has of it.
    view: SimDisk,
    process: Option<Process>,
    /// What a process that is no more still holds of a table.
    zombie: Option<(usize, Handle, Vec<Committed>)>,
    truth: Truth,
    counts: Counts,
    trace: Xxh3,
    step: u64,
    /// Bits that were flipped and not found.
    flips: Vec<(PathBuf, usize, u8)>,
    went_back: bool,
    /// A script has no troubles but those that it is given, and keeps this at a cut.
    scripted: bool,
    keep: Option<Keep>,
    say: Option<&'t mut dyn FnMut(&str)>,
}

/// Runs a seed; `say` is told what happens.
///
/// # Errors
/// What did not hold, and at which step.
pub fn run(seed: u64, say: Option<&mut dyn FnMut(&str)>) -> Result<Report, Failure> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let plan = Plan::of(&mut rng);
    let mut sim = Sim::new(plan, rng, say);
    match sim.all() {
        Ok(()) => Ok(Report { events: sim.events(), trace: sim.trace.digest(), counts: sim.counts }),
        Err(what) => Err(Failure { seed, step: sim.step, what }),
    }
}

impl<'t> Sim<'t> {
    fn new(plan: Plan, mut rng: fastrand::Rng, say: Option<&'t mut dyn FnMut(&str)>) -> Sim<'t> {
        let world = World::new(&plan, &mut rng);
        let finals = Stages::of(&[Stage::Final, Stage::Corrected, Stage::Retracted]);
        let places = vec![
            Place::new("table", Kind::Table, Stages::ALL),
            Place::new("finals", Kind::Table, finals),
            Place::new("remote", Kind::Remote, Stages::ALL),
            Place::new("rows", Kind::RowFile, Stages::ALL),
            Place::new("letters", Kind::LetterFile, Stages::ALL),
        ];
        let disk = SimDisk::new(rng.u64(..));
        let truth = Truth::new(plan.lookups);
        Sim {
            plan,
            rng,
            world,
            places,
            view: disk.clone(),
            disk,
            process: None,
            zombie: None,
            truth,
            counts: Counts::default(),
            trace: Xxh3::new(),
            step: 0,
            flips: Vec::new(),
            went_back: false,
            scripted: false,
            keep: None,
            say,
        }
    }

    /// A short run of its own, with swaps, corrections and retractions, and no troubles.
    pub(crate) fn scripted(seed: u64) -> Sim<'t> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let plan = Plan::script(&mut rng);
        Sim { scripted: true, ..Sim::new(plan, rng, None) }
    }

    pub(crate) fn disk(&self) -> &SimDisk {
        &self.disk
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts.clone()
    }

    pub(crate) fn keeps(&mut self, keep: Keep) {
        self.keep = Some(keep);
    }

    /// Plays the script to its end; `recovers` is told when a process starts after a crash.
    pub(crate) fn act_out(&mut self, mut recovers: impl FnMut(&SimDisk)) -> Verdict {
        while self.events() < SCRIPT_EVENTS {
            self.step += 1;
            self.act(&mut recovers)?;
        }
        self.finish(&mut recovers)
    }
}

impl Sim<'_> {
    fn say(&mut self, what: &str) {
        self.trace.update(what.as_bytes());
        if let Some(say) = &mut self.say {
            say(&format!("{:5} {what}", self.step));
        }
    }

    fn fault(&mut self, what: &str) {
        self.say(what);
        self.counts.add(Of::Fault, what, 1);
    }

    fn events(&self) -> u64 {
        self.world.partitions.iter().map(|p| p.records.len() as u64).sum()
    }

    /// The disk is there, and a first process.
    pub(crate) fn begin(&mut self) -> Verdict {
        self.say(&format!("{:?}", self.plan));
        self.policies();
        let out = Path::new("/out");
        let made = self.disk.create_dir(out).and_then(|()| self.disk.sync_dir(Path::new("/")));
        made.map_err(|e| format!("no disk: {e}"))?;
        self.restart()
    }

    fn all(&mut self) -> Verdict {
        self.begin()?;
        let mut next_fault = self.rng.u64(10..40);
        while self.events() < EVENTS_MIN || self.counts.faults() < FAULTS_MIN {
            self.step += 1;
            if self.step > 20_000 {
                return Err("it comes to no end".into());
            }
            if self.step >= next_fault {
                next_fault = self.step + self.rng.u64(5..50);
                self.trouble()?;
            }
            self.act(&mut |_| {})?;
        }
        self.finish(&mut |_| {})
    }

    fn policies(&mut self) {
        let plan = &self.plan;
        let lateness = if plan.lateness > 0 { "lateness" } else { "no lateness" };
        let mut all = vec![plan.early.word(), lateness];
        all.extend(plan.lookups.then_some("lookups"));
        all.extend(plan.orderly.then_some("orderly input"));
        all.into_iter().for_each(|what| self.counts.add(Of::Policy, what, 1));
    }

    /// One step of what goes on anyway.
    fn act(&mut self, recovers: &mut dyn FnMut(&SimDisk)) -> Verdict {
        self.world.time += self.rng.i64(0..5);
        let done = match self.rng.u8(0..100) {
            0..14 => {
                self.world.produce(&self.plan, &mut self.rng);
                Ok(())
            }
            14..22 => self.ingest(),
            22..52 => self.read(),
            52..56 => self.with(|p| p.sweep().map(drop)),
            56..68 => self.barrier(false),
            68..82 => self.commit(),
            82..95 => self.deliver(),
            95..98 => self.change(),
            _ => self.look_up(false),
        };
        self.after_with(done, recovers)
    }

    /// Whatever ends the process ends it, and another one starts.
    fn after(&mut self, done: Result<(), End>) -> Verdict {
        self.after_with(done, &mut |_| {})
    }

    fn after_with(&mut self, done: Result<(), End>, recovers: &mut dyn FnMut(&SimDisk)) -> Verdict {
        match done {
            Ok(()) => Ok(()),
            Err(End::Broken(what)) => Err(what),
            Err(End::Contradiction(what)) => Err(what),
            Err(end) => {
                self.say(&format!("the process ends: {end}"));
                self.die();
                recovers(&self.disk);
                self.restart()
            }
        }
    }

    fn with(&mut self, f: impl FnOnce(&mut Process) -> Result<(), End>) -> Result<(), End> {
        self.process.as_mut().map_or(Ok(()), f)
    }

    fn ingest(&mut self) -> Result<(), End> {
        let Some(p) = &self.process else { return Ok(()) };
        let redelivered = self.world.ingest(&*p.disk, &mut self.rng, self.plan.orderly)?;
        if redelivered {
            self.fault("records redelivered");
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), End> {
        let most = self.rng.usize(1..25);
        let Some(p) = &mut self.process else { return Ok(()) };
        if p.was_ended || p.ended {
            return Ok(());
        }
        let before = self.truth.pending.len();
        p.read(&self.plan, &self.world, most, &mut self.truth.pending)?;
        let read = self.truth.pending.len() - before;
        self.say(&format!("read {read}"));
        Ok(())
    }

    fn barrier(&mut self, at_end: bool) -> Result<(), End> {
        let may = |p: &&mut Process| p.may_seal() && !p.ended && (at_end || !p.was_ended);
        let Some(p) = self.process.as_mut().filter(may) else {
            return Ok(());
        };
        self.truth.sealings += 1;
        let number = self.truth.sealings;
        let settle = |letters: &[u8], number| self.truth.settle(letters, number);
        let changed = p.barrier(&self.plan, &self.world, at_end, number, settle)?;
        let (w, live) = (p.watermark().ms(), p.schedule.live());
        let line = format!("barrier {number}, W {w}, {} versions{}", live.len(), swaps(live));
        self.say(&line);
        let name = match changed {
            Changed::Deployed(Policy::Migrate) => "swap, migrate",
            Changed::Deployed(Policy::Drain) => "swap, drain",
            Changed::Back(Policy::Migrate) => "rollback, migrate",
            Changed::Back(Policy::Drain) => "rollback, drain",
            Changed::Struck => "rollback, struck out",
            Changed::No => return Ok(()),
        };
        self.say(name);
        self.counts.add(Of::Policy, name, 1);
        Ok(())
    }

    fn commit(&mut self) -> Result<(), End> {
        let Some(p) = &mut self.process else { return Ok(()) };
        let cursors =
            self.places.iter().zip(&p.outlets).map(|(s, o)| (s.name.to_owned(), o.cursor)).collect();
        let segments = self.disk.files(&log_dir()).len();
        self.truth.in_doubt = p.next_sealing().cloned();
        let Some(c) = p.commit(&self.plan, cursors)? else { return Ok(()) };
        if self.disk.files(&log_dir()).len() < segments {
            self.counts.add(Of::Policy, "log trimmed", 1);
        }
        if c.meta.images.contains(&c.at.epoch) {
            self.counts.add(Of::Policy, "image taken", 1);
        }
        is_durable(&self.disk, &c.at).map_err(End::Broken)?;
        self.say(&format!("commit {} of sealing {}", c.at.epoch, c.sealing.number));
        self.truth.commit(&c).map_err(End::Broken)?;
        if self.rng.u8(0..12) == 0 { self.restore().map_err(End::Broken) } else { Ok(()) }
    }

    fn deliver(&mut self) -> Result<(), End> {
        let n = self.rng.usize(0..self.places.len());
        self.deliver_to(n)?;
        self.remote();
        self.compare_quiet().map_err(End::Broken)
    }

    fn deliver_to(&mut self, n: usize) -> Result<bool, End> {
        let Sim { process: Some(p), places, truth, disk, .. } = self else { return Ok(false) };
        let place = &mut places[n];
        if place.slow > 0 {
            place.slow -= 1;
            return Ok(false);
        }
        let epoch = p.outlets[n].queue.front().map(|c| c.at.epoch);
        let judge = |c: &Committed| match truth.committed.contains_key(&c.at.epoch) {
            true => is_durable(disk, &c.at),
            false => Err(format!("epoch {} leaves, and is not committed", c.at.epoch)),
        };
        let delivered = p.deliver(n, place, judge);
        let name = place.name;
        self.say(&format!("deliver {epoch:?} to {name}: {}", delivered.is_ok()));
        delivered
    }

    /// The remote table does something on its own.
    fn remote(&mut self) {
        for (n, place) in self.places.iter_mut().enumerate().filter(|(_, s)| s.kind == Kind::Remote) {
            let outlet = self.process.as_mut().map(|p| &mut p.outlets[n]);
            let handle = outlet.map(|o| &mut o.handle);
            let (cursor, reordered) = place.work(&mut self.rng, handle);
            if let (Some(cursor), Some(p)) = (cursor, &mut self.process) {
                p.outlets[n].cursor = cursor;
            }
            self.counts.add(Of::Fault, "sink reordered epochs", u64::from(reordered));
        }
    }

    /// Where a table has everything that was committed, it is what was sent.
    fn compare_quiet(&mut self) -> Verdict {
        let Some(p) = &self.process else { return Ok(()) };
        if self.went_back {
            return Ok(());
        }
        for (place, outlet) in self.places.iter().zip(&p.outlets) {
            let whole = matches!(place.kind, Kind::Table | Kind::Remote) && place.stages == Stages::ALL;
            if whole && outlet.queue.is_empty() && place.is_quiet() && place.rows != self.truth.shadow {
                return Err(format!("sink `{}` does not hold what was sent", place.name));
            }
        }
        Ok(())
    }

    fn change(&mut self) -> Result<(), End> {
        let policy = if self.rng.bool() { Policy::Migrate } else { Policy::Drain };
        let drain_max = self.rng.i64(1..150);
        let (config, strikes) = (self.rng.usize(0..3), self.rng.bool());
        let Some(p) = &mut self.process else { return Ok(()) };
        p.change = Some(match p.schedule.pending() {
            None => Change::Deploy { config, policy, drain_max, back: false },
            Some(_) if strikes => Change::Strike,
            Some(_) => Change::Deploy { config, policy, drain_max, back: true },
        });
        Ok(())
    }

    fn look_up(&mut self, all: bool) -> Result<(), End> {
        let Sim { process: Some(p), rng, plan, .. } = self else { return Ok(()) };
        if plan.lookups {
            p.look_up(rng, all);
        }
        Ok(())
    }

    /// Something goes wrong.
    fn trouble(&mut self) -> Verdict {
        match self.rng.u8(0..26) {
            0..3 => {
                self.disk.power_off();
                self.die();
                self.restart()
            }
            3..6 => {
                let at = self.disk.operations() + self.rng.u64(1..12);
                self.disk.cut_at(at, self.rng.bool());
                Ok(())
            }
            6..8 => {
                self.fault("process killed");
                self.die();
                self.restart()
            }
            8 => self.disk_trouble(Trouble::SyncFails),
            9 => self.disk_trouble(Trouble::Full),
            10 => self.disk_trouble(Trouble::ReadFails),
            11 | 12 => self.flip(),
            13 => self.mood(Mood::Refuses, "sink refused"),
            14 => self.mood(Mood::TimesOut, "sink timed out after it took"),
            15 => {
                let n = self.rng.usize(0..self.places.len());
                self.places[n].slow = self.rng.u32(5..40);
                self.fault("sink slow");
                Ok(())
            }
            16 | 17 => self.fence(),
            18 => self.break_rule(),
            19 => self.second_process(),
            20 | 21 => {
                let ahead = self.rng.bool();
                let by = self.rng.i64(1..self.plan.far_future.min(500) * 2);
                self.world.skew = if ahead { by } else { -by };
                self.fault(if ahead { "clock jumped ahead" } else { "clock jumped back" });
                Ok(())
            }
            22..25 => self.source_trouble(),
            _ => {
                self.die();
                self.go_back()?;
                self.restart()
            }
        }
    }

    fn disk_trouble(&mut self, trouble: Trouble) -> Verdict {
        self.disk.trouble(trouble);
        Ok(())
    }

    fn mood(&mut self, mood: Mood, name: &str) -> Verdict {
        let n = self.rng.usize(0..self.places.len());
        let queued = self.process.as_ref().is_some_and(|p| !p.outlets[n].queue.is_empty());
        if !queued {
            return Ok(());
        }
        self.places[n].mood = mood;
        self.places[n].slow = 0;
        self.fault(name);
        let done = self.deliver_to(n).map(drop);
        self.after(done)
    }

    /// A process that is no more goes on writing.
    fn fence(&mut self) -> Verdict {
        let Some((n, mut handle, queue)) = self.zombie.take() else { return Ok(()) };
        let (before, fence) = (self.places[n].rows.clone(), self.places[n].fence());
        if fence <= handle.incarnation {
            return Ok(());
        }
        let Some(p) = &self.process else { return Ok(()) };
        let mut fenced = false;
        for c in queue {
            // It has them in memory; here they are read where they still stand.
            let Ok(sections) = p.log.read_sections(&c.at) else { continue };
            let of = |kind| sections.iter().find(|s| s.0 == kind).map_or(&[][..], |s| &s.1);
            let outbox = Outbox::new(c.incarnation, c.at.epoch, of(Section::Rows), of(Section::Letters));
            let taken = self.places[n].deliver(&SimDisk::new(0), &mut handle, &outbox);
            fenced |= matches!(taken, Err(SinkError::Conflict(_)));
        }
        if self.places[n].rows != before {
            return Err("an older process wrote into a table that a newer one has opened".into());
        }
        if fenced {
            self.fault("sink fenced");
        }
        Ok(())
    }

    fn break_rule(&mut self) -> Verdict {
        let Some(p) = &self.process else { return Ok(()) };
        p.break_rule();
        self.fault("rule broke");
        let done = self.barrier(false);
        self.after(done)
    }

    fn second_process(&mut self) -> Verdict {
        let other = self.disk.next_process();
        let taken = Claim::take(Arc::new(other.clone()), Path::new(DATA));
        other.kill();
        match taken {
            Err(StoreError::Locked { .. }) => {
                self.fault("second process");
                Ok(())
            }
            Err(StoreError::Storage { .. }) => {
                // The power was cut in the middle of it, or the disk is in trouble.
                let done = Err(End::Broken("a second process took the data directory".into()));
                if self.disk.is_off() || self.disk.troubled() > 0 {
                    self.die();
                    return self.restart();
                }
                self.after(done)
            }
            other => Err(format!("a second process is let in: {other:?}")),
        }
    }

    fn source_trouble(&mut self) -> Verdict {
        if self.plan.orderly {
            return Ok(());
        }
        match self.rng.u8(0..3) {
            0 => {
                let ms = self.plan.idle * self.rng.i64(1..3);
                if self.world.silence(&mut self.rng, ms) {
                    self.fault("partition silent");
                }
            }
            1 => {
                let ms = self.rng.i64(-2 * self.plan.drift..2 * self.plan.drift);
                if self.world.drift(&mut self.rng, ms) {
                    self.fault("partition drifted");
                }
            }
            _ if self.world.partitions.len() < 9 => {
                let supply = if self.rng.bool() { Supply::Live } else { Supply::Bounded };
                self.world.add(&self.plan, &mut self.rng, supply);
                if let Some(p) = &mut self.process {
                    p.list(&self.plan, &self.world, &[]);
                }
                self.fault("partition added");
            }
            _ => {}
        }
        Ok(())
    }

    /// A bit of the data directory changes while nobody runs.
    fn flip(&mut self) -> Verdict {
        self.die();
        // A cut that was still to come would fall into the recovery: see there why that may not be.
        self.disk.cut_never();
        let files = self.disk.files(Path::new(DATA));
        let files: Vec<_> = files.into_iter().filter(|(f, _)| !f.ends_with("LOCK")).collect();
        if let Some((file, len)) = self.rng.choice(&files) {
            let (byte, bit) = (self.rng.usize(0..*len), self.rng.u8(0..8));
            self.disk.flip(file, byte, bit);
            self.flips.push((file.clone(), byte, bit));
            let what = format!("{} {byte} {bit}", file.display());
            self.say(&what);
            self.fault("bit flipped");
        }
        self.restart()
    }

    /// The process is gone, and with it the power if it was cut.
    fn die(&mut self) {
        if let Some(p) = self.process.take()
            && self.zombie.is_none()
        {
            let n = self.rng.usize(0..2);
            let outlet = &p.outlets[n];
            self.zombie = Some((n, outlet.handle.clone(), outlet.queue.iter().cloned().collect()));
        }
        self.note_trouble();
        if self.disk.is_off() {
            self.cut();
        } else {
            self.view.kill();
        }
        self.disk.trouble(Trouble::None);
    }

    fn cut(&mut self) {
        let keep = self.keep.unwrap_or_else(|| match self.rng.u8(0..4) {
            0 => Keep::None,
            1 => Keep::All,
            _ => Keep::Some,
        });
        let name = match keep {
            Keep::None => "power cut, nothing kept",
            Keep::All => "power cut, all kept",
            Keep::Some => "power cut, torn and reordered",
        };
        if self.disk.was_cut_in_operation() {
            self.fault("power cut in an operation");
        }
        self.disk.cut(keep);
        self.fault(name);
    }

    fn note_trouble(&mut self) {
        let name = match self.disk.take_troubled() {
            Some(Trouble::SyncFails) => "sync failed",
            Some(Trouble::Full) => "disk full",
            Some(Trouble::ReadFails) => "read failed",
            Some(Trouble::None) | None => return,
        };
        self.fault(name);
    }

    /// Starts a process, however often that takes, and checks what it has recovered.
    fn restart(&mut self) -> Verdict {
        for n in 0..STARTS_MAX {
            self.view = self.disk.next_process();
            // A cut beside a flipped bit could take the marker, and with it the proof that the record was whole: what a bit
            // has damaged since and what a cut has torn then look the same.
            let cuts =
                !self.scripted && self.step > 0 && n < 10 && self.flips.is_empty() && self.rng.u8(0..5) == 0;
            if cuts {
                let at = self.disk.operations() + self.rng.u64(1..50);
                self.disk.cut_at(at, self.rng.bool());
            }
            let mut found = Found::default();
            let disk = Arc::new(self.view.clone());
            let started = Process::start(disk, &self.plan, &mut self.world, &mut self.places, &mut found);
            if self.disk.is_off() {
                drop(started);
                self.fault("power cut in recovery");
                self.cut();
                continue;
            }
            self.disk.cut_never();
            match started {
                Ok(p) => {
                    self.process = Some(p);
                    self.flips.clear();
                    self.say(&format!("started: {:?}", found.recovery));
                    return self.truth.recovered(&found);
                }
                Err(End::Store(StoreError::Damaged { .. })) if !self.flips.is_empty() => {
                    self.fault("damage refused");
                    self.view.kill();
                    self.repair()?;
                }
                Err(
                    End::Store(StoreError::Storage { .. })
                    | End::Sink(_, SinkError::Store(_) | SinkError::Failed(_)),
                ) => {
                    self.note_trouble();
                    // Somebody makes room, or exchanges the disk.
                    self.disk.trouble(Trouble::None);
                    self.view.kill();
                }
                Err(end) => return Err(format!("it does not start: {end}")),
            }
        }
        Err("it never starts".into())
    }

    /// What a human does about damage.
    fn repair(&mut self) -> Verdict {
        if self.rng.bool() && self.go_back()? {
            return Ok(());
        }
        for (file, byte, bit) in std::mem::take(&mut self.flips) {
            self.disk.flip(&file, byte, bit);
        }
        self.fault("file put back");
        Ok(())
    }

    /// `recover --to`, as often as it takes. False: there is no epoch to go back to.
    fn go_back(&mut self) -> Result<bool, String> {
        // What was sent to a table that cannot be asked arrives first.
        for _ in 0..1_000 {
            self.remote();
        }
        let Some((to, meta)) = self.epoch_to_go_back_to()? else { return Ok(false) };
        for n in 0..STARTS_MAX {
            self.view = self.disk.next_process();
            if n < 10 && self.flips.is_empty() && self.rng.u8(0..3) == 0 {
                let at = self.disk.operations() + self.rng.u64(1..40);
                self.disk.cut_at(at, self.rng.bool());
            }
            let done = self.carry_out(&to, &meta);
            if self.disk.is_off() {
                self.cut();
                continue;
            }
            self.disk.cut_never();
            self.view.kill();
            match done {
                Ok(incarnation) => {
                    self.flips.clear();
                    self.went_back = true;
                    self.truth.went_back(to.epoch, meta.sealing, incarnation);
                    self.fault("went back to an epoch");
                    return Ok(true);
                }
                // The register is damaged, and has to be put back first.
                Err(End::Store(StoreError::Damaged { .. })) if !self.flips.is_empty() => return Ok(false),
                Err(End::Store(StoreError::Storage { .. }) | End::Sink(_, SinkError::Store(_))) => {
                    self.disk.trouble(Trouble::None);
                }
                Err(end) => return Err(format!("it does not go back to epoch {}: {end}", to.epoch)),
            }
        }
        Err("it never goes back".into())
    }

    fn epoch_to_go_back_to(&mut self) -> Result<Option<(RecordRef, Meta)>, String> {
        // Whatever was to befall the disk, a look at a copy of it does not notice.
        let disk = self.disk.copy();
        let mut first = 0;
        let mut can = Vec::new();
        let is_file = |p: &&Place| matches!(p.kind, Kind::RowFile | Kind::LetterFile);
        let files: Vec<&str> = self.places.iter().filter(is_file).map(|p| p.name).collect();
        let surveyed = EpochLog::survey(&disk, &log_dir(), |record, at| {
            first = if first == 0 { at.epoch } else { first };
            let text = record.section(Section::Meta).unwrap_or_default();
            let Ok(meta) = serde_json::from_slice::<Meta>(text) else { return Ok(()) };
            let needs = Needs { images: meta.images.clone(), outbox_epoch: meta.outbox_epoch };
            let cut_back = files.iter().filter_map(|name| meta.cursors.get(*name)).map(|c| c.epoch);
            let waits = meta.unresolved_from;
            if needs.is_whole(first)
                && waits.is_none_or(|epoch| epoch >= first)
                && can_send_again(first, cut_back)
            {
                can.push((at, meta));
            }
            Ok(())
        });
        surveyed.map_err(|e| format!("a survey fails: {e}"))?;
        let newest = can.len().saturating_sub(if self.rng.bool() { 1 } else { self.rng.usize(1..6) });
        Ok(can.into_iter().nth(newest))
    }

    fn carry_out(&mut self, to: &RecordRef, meta: &Meta) -> Result<u64, End> {
        let disk: Arc<dyn Disk> = Arc::new(self.view.clone());
        let mut claim = Claim::take(disk.clone(), Path::new(DATA))?;
        let incarnation = claim.next_incarnation()?;
        let dir = claim.pipeline_dir(PIPELINE);
        let meta = Meta { tell_again: true, ..meta.clone() };
        let text = text(&meta);
        let decision = Decision { incarnation, sections: &[(Section::Meta, &text)] };
        EpochLog::cut_after(&disk, &dir, to, self.plan.segment_bytes, &decision)?;
        for place in &mut self.places {
            let stored = meta.cursors.get(place.name).copied();
            place.take_back(&*disk, incarnation, to.epoch, stored).map_err(|e| End::Sink(place.name, e))?;
        }
        Ok(incarnation)
    }

    /// Restores an epoch beside the process and tells it what came after: it must send the same, and end up with the same.
    fn restore(&mut self) -> Verdict {
        // What goes over a bound depends on how the lanes hold what they hold.
        if self.plan.tight || !self.process.as_ref().is_some_and(Process::is_at_rest) {
            return Ok(());
        }
        let newest = self.truth.committed.last_key_value().map_or(0, |(_, sealing)| *sealing);
        let all: Vec<u64> = self.truth.committed.keys().copied().collect();
        let from = if self.went_back { all.len().saturating_sub(1) } else { 0 };
        let Some(to) = self.rng.choice(&all[from..]).copied() else { return Ok(()) };
        let mut lanes = process::make_lanes(&self.plan);
        let (mut found, mut first) = (None, 0);
        let copy = self.disk.copy();
        let surveyed = EpochLog::survey(&copy, &log_dir(), |record, at| {
            first = if first == 0 { at.epoch } else { first };
            if at.epoch <= to { process::load(&record, at, &mut lanes, &mut found) } else { Ok(()) }
        });
        surveyed.map_err(|e| format!("a survey fails: {e}"))?;
        let Some((_, meta)) = found else { return Ok(()) };
        if !(Needs { images: meta.images.clone(), outbox_epoch: 0 }.is_whole(first)) {
            return Ok(());
        }
        let manners = Manners::default();
        process::put_versions(&mut lanes, &meta.schedule, &manners);
        lanes.iter_mut().for_each(|l| l.loaded(meta.watermark));
        if meta.tell_again {
            lanes.iter_mut().for_each(Lane::tell_again);
        }
        let live = meta.schedule.live().len();
        let mut restored = Restored { lanes, manners, live, settled: false, retires: false };
        for (sealing, ops) in self.truth.ops(meta.sealing, newest) {
            for op in ops {
                let Some(parts) = restored.tell(op)? else { return Ok(()) };
                if matches!(op, LaneOp::Barrier(_)) && process::sent(&parts) != sealing.sent {
                    return Err(format!(
                        "epoch {to} restored sends something else in sealing {}",
                        sealing.number
                    ));
                }
            }
        }
        self.counts.add(Of::Policy, "restored and replayed", 1);
        self.say(&format!("restored epoch {to}"));
        Ok(())
    }

    /// No more troubles: all is read, closed and delivered, and compared with the model.
    fn finish(&mut self, recovers: &mut dyn FnMut(&SimDisk)) -> Verdict {
        self.say("the world ends");
        self.world.skew = 0;
        self.world.end();
        self.places.iter_mut().for_each(|p| (p.slow, p.mood) = (0, Mood::Fine));
        self.disk.trouble(Trouble::None);
        if !self.scripted && self.rng.bool() {
            // One blow more, wherever it falls.
            let at = self.disk.operations() + self.rng.u64(1..150);
            self.disk.cut_at(at, self.rng.bool());
        }
        for _ in 0..2_000 {
            self.step += 1;
            let done = self.wind_up();
            let finished = matches!(done, Ok(true));
            self.after_with(done.map(drop), recovers)?;
            if finished {
                self.disk.cut_never();
                return self.compare();
            }
        }
        Err("it never ends".into())
    }

    /// A round of the end; true: nothing is left to do.
    fn wind_up(&mut self) -> Result<bool, End> {
        self.ingest()?;
        self.world.end_pushed();
        for _ in 0..10 {
            self.read()?;
        }
        let ends = self
            .process
            .as_ref()
            .is_some_and(|p| (p.is_read() || p.was_ended) && !p.was_finished && !p.ended);
        self.barrier(ends)?;
        self.look_up(true)?;
        while self.process.as_ref().is_some_and(Process::has_sealed) {
            self.commit()?;
        }
        if self.process.as_ref().is_some_and(|p| p.ended && p.waits_for_lookups()) {
            self.look_up(true)?;
            self.truth.sealings += 1;
            let number = self.truth.sealings;
            self.with(|p| {
                p.seal_the_rest(number);
                Ok(())
            })?;
            self.commit()?;
        }
        for n in 0..self.places.len() {
            while self.deliver_to(n)? {}
        }
        for _ in 0..3 {
            self.remote();
        }
        let quiet = self.places.iter().all(Place::is_quiet);
        let done = |p: &Process| (p.was_finished || p.ended && !p.waits_for_lookups()) && p.is_quiet();
        Ok(quiet && self.process.as_ref().is_some_and(done))
    }

    fn compare(&mut self) -> Verdict {
        let Some(p) = &self.process else { return Err("nothing runs".into()) };
        let accepted = self.truth.accepted();
        let model = outcome(&accepted, &p.schedule, None);
        let comes = |key: u8| !self.plan.lookups || !process::lookup_fails(key);
        let mut want = model.clone();
        want.sessions.retain(|(s, _)| comes(s.key));
        let view = &*p.disk;
        let mut letters = Vec::new();
        for place in &self.places {
            if place.kind == Kind::LetterFile {
                letters = place.lines(view).map_err(|e| e.to_string())?;
                continue;
            }
            let mut rows: Rows = place.read(view).map_err(|e| e.to_string())?;
            rows.retain(|_, r| comes(r.session.key));
            table_is(&rows, &want, true).map_err(|e| format!("sink `{}`: {e}", place.name))?;
        }
        let mut found = BTreeMap::<(String, String, i64), i64>::new();
        for l in &letters {
            let text = |name: &str| l[name].as_str().unwrap_or_default().to_owned();
            let at = l["time_ms"].as_i64().or(l["start_ms"].as_i64()).unwrap_or(i64::MIN);
            *found.entry((text("reason"), text("key"), at)).or_default() += 1;
        }
        let meta = p.last().ok_or("nothing was committed")?.clone();
        let by_host =
            ["late", "far_future", "key_over_cap", "suffix_over_cap", "sessions_over_cap", "lookup_failed"];
        let caps = meta.fold.key_over_cap + meta.fold.suffix_over_cap + meta.fold.sessions_over_cap;
        let count = |names: &[&str]| -> i64 {
            found.iter().filter(|((reason, ..), _)| names.contains(&reason.as_str())).map(|(_, n)| n).sum()
        };
        let told =
            meta.dead.values().sum::<u64>() + caps + meta.dead_by_rule.get("lookup_failed").unwrap_or(&0);
        if count(&by_host) != told as i64 {
            return Err(format!("{} letters of the host, and {told} counted", count(&by_host)));
        }
        let mut rest = found.clone();
        rest.retain(|(reason, ..), _| !by_host.contains(&reason.as_str()));
        for (key, time, reason) in &model.outside {
            *rest.entry((reason.to_string(), format!("k{key}"), *time)).or_default() -= 1;
        }
        for (s, _) in &model.discarded {
            *rest.entry(("discarded".into(), format!("k{}", s.key), s.start)).or_default() -= 1;
        }
        rest.retain(|_, n| *n != 0);
        if !rest.is_empty() {
            return Err(format!("letters that the model has not (or, below 0, that it lacks): {rest:?}"));
        }
        let in_sessions: u64 = model.sessions.iter().chain(&model.discarded).map(|(s, _)| s.events).sum();
        if in_sessions + model.outside.len() as u64 != accepted.len() as u64
            || meta.events != accepted.len() as u64 + meta.fold.duplicates + caps
        {
            return Err(format!(
                "{} events are accepted, {in_sessions} in sessions: {meta:?}",
                accepted.len()
            ));
        }
        self.orderly(&letters)?;
        self.count(&meta, &model);
        self.trace.update(&self.disk.trace().to_le_bytes());
        self.trace.update(format!("{:?}", self.truth.shadow).as_bytes());
        Ok(())
    }

    /// Where nothing is out of order, only copies are late.
    fn orderly(&self, letters: &[serde_json::Value]) -> Verdict {
        for l in letters.iter().filter(|_| self.plan.orderly) {
            if l["reason"] == "far_future" {
                return Err(format!("an event is refused that is in order: {l}"));
            }
            if l["reason"] == "late" {
                let offset = l["position"]["offset"].as_u64().unwrap_or(0) as usize;
                let n = l["position"]["partition"].as_u64().unwrap_or(0) as usize;
                let record = self.world.partitions[n].records[offset];
                if !self.truth.knows(&record.ident) {
                    let times: Vec<i64> =
                        self.world.partitions[n].records.iter().map(|r| r.ident.time).collect();
                    return Err(format!("an event is late that is in order: {l}, of {times:?}"));
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, meta: &Meta, model: &crate::model::Outcome) {
        let c = &mut self.counts;
        for (stage, n) in Stage::ALL.iter().zip(meta.fold.revisions) {
            c.add(Of::Stage, stage.name(), n);
        }
        for (s, _) in &model.sessions {
            c.add(Of::Reason, s.reason.as_deref().unwrap_or(""), 1);
        }
        meta.dead.iter().chain(&meta.dead_by_rule).for_each(|(reason, n)| c.add(Of::Reason, reason, *n));
        meta.fold.letters().for_each(|(reason, n)| c.add(Of::Reason, reason, n));
        let faults = [
            ("copies", meta.fold.duplicates),
            ("conflicting copies", meta.fold.conflicts),
            ("copies before the frontier", meta.copies),
            ("rule failed at an event", meta.dead_by_rule.get("plugin_fault").copied().unwrap_or(0)),
            ("rule was slow", u64::from(self.plan.most > 0 || self.plan.hiccups > 0)),
        ];
        faults.iter().for_each(|(name, n)| c.add(Of::Fault, name, *n));
    }
}

/// Lanes that are told once more what the process told its own. When nothing stands before a swap any more hangs on where
/// bases stand, and a start moves them: these let older versions go when they say so themselves.
struct Restored {
    lanes: Vec<Lane>,
    manners: Manners,
    live: usize,
    /// They have said that nothing stands before the swap at hand.
    settled: bool,
    /// The process has let the older versions go.
    retires: bool,
}

impl Restored {
    /// What an operation brings; none if it is a swap for which these have no room yet.
    fn tell(&mut self, op: &LaneOp) -> Result<Option<Vec<LaneEpoch>>, String> {
        match op {
            LaneOp::Deploy(..) if self.live == LIVE_MAX => return Ok(None),
            LaneOp::Deploy(..) => (self.live, self.settled) = (self.live + 1, false),
            LaneOp::Strike => (self.live, self.settled) = (self.live.saturating_sub(1), false),
            LaneOp::Retire => self.retires = true,
            LaneOp::Insert(..) | LaneOp::Sweep | LaneOp::Barrier(_) => {}
        }
        let parts = match op {
            LaneOp::Retire => Vec::new(),
            _ => carry_out(&mut self.lanes, op, &self.manners).map_err(|e| e.to_string())?,
        };
        self.settled |= !parts.is_empty() && parts.iter().all(|p| p.settled.is_some());
        if self.retires && self.settled {
            carry_out(&mut self.lanes, &LaneOp::Retire, &self.manners).map_err(|e| e.to_string())?;
            (self.live, self.settled, self.retires) = (1, false, false);
        }
        Ok(Some(parts))
    }
}

/// Where the newer ones of some versions are in force from, and until when they let the older one drain.
fn swaps(live: &[Deployed]) -> String {
    let one = |d: &Deployed| {
        let s = &d.scheduled;
        match s.policy {
            Policy::Migrate => format!(", {} from {}", s.plugin, s.from.ms()),
            Policy::Drain => {
                format!(", {} from {}, draining until {}", s.plugin, s.from.ms(), s.drained_by.ms())
            }
        }
    };
    live.iter().skip(1).map(one).collect()
}

/// That an epoch survives whatever befalls the disk now.
fn is_durable(disk: &SimDisk, at: &RecordRef) -> Verdict {
    let file = log_dir().join(format!("{:020}.seg", at.segment_first_epoch));
    let bytes = at.offset as usize..(at.offset + at.len) as usize;
    if disk.is_durable(&file, bytes) { Ok(()) } else { Err(format!("epoch {} is not durable", at.epoch)) }
}
