//! A process as short as it can be: what `host/app` does with the store and its sinks, without sources and lanes between.
//!
//! Its state is how often each key occurs in what it has read. Claim, incarnations, the log, what an epoch consists of, what is
//! trimmed, which cursor holds and both sinks are the product's own; what is here only carries values between them, in the
//! order of `host/app`. Whatever it has been told is told to `Truth` at once, since it may die at the next line.

use crate::truth::{Epoch, Truth};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidemill_connect::sink::Sink;
use tidemill_connect::sink::jsonl::JsonlSink;
use tidemill_connect::sink::sqlite::SqliteSink;
use tidemill_connect::{ConnectError, Cursor};
use tidemill_engine::outbox::{Outbox, Revision, SessionRow, Stage, Stages};
use tidemill_engine::record::{Kind, Record};
use tidemill_engine::time::EventTime;
use tidemill_sim::SimDisk;
use tidemill_store::StoreError;
use tidemill_store::claim::Claim;
use tidemill_store::disk::Disk;
use tidemill_store::epoch::{Content, IMAGE_BLOCKS, IMAGE_GROUPS, Needs, Rotation, can_send_again};
use tidemill_store::log::{Decision, EpochLog, Evidence, RecordRef, destroy};
use tidemill_store::opening::{Contradiction, Since, since};

/// One for each block of key groups, so that images are of keys.
pub(crate) const KEYS: usize = IMAGE_BLOCKS;
pub(crate) const DATA: &str = "/data";
pub(crate) const PIPELINE: &str = "clicks";
pub(crate) const TABLE: &str = "table";
pub(crate) const FILE: &str = "file";
/// Some ten epochs: images are taken and segments leave.
const SEGMENT_BYTES: u64 = 5_000;

/// How often each key occurs.
pub(crate) type Counts = [u64; KEYS];

/// What an epoch says beside state and rows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) position: u64,
    pub(crate) cursors: BTreeMap<String, Cursor>,
    images: Vec<u64>,
    outbox_epoch: u64,
    back_to: Option<u64>,
}

impl Meta {
    fn needs(&self) -> Needs {
        Needs { images: self.images.clone(), outbox_epoch: self.outbox_epoch }
    }

    fn text(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap()
    }
}

/// Why something was not done.
#[derive(Debug)]
pub(crate) enum Refusal {
    Store(StoreError),
    Sink(&'static str, ConnectError),
    Contradiction(Contradiction),
    /// There is no epoch to go back to.
    NoEpoch,
}

impl From<StoreError> for Refusal {
    fn from(e: StoreError) -> Refusal {
        Refusal::Store(e)
    }
}

impl Refusal {
    /// A human has to look at what there is, since it is not what was committed.
    pub(crate) fn is_damage(&self) -> bool {
        use Contradiction::{AheadOfTheLog, OfAnotherState};
        matches!(
            self,
            Refusal::Store(StoreError::Damaged { .. })
                | Refusal::Contradiction(AheadOfTheLog { .. } | OfAnotherState { .. })
        )
    }

    pub(crate) fn is_conflict_of(&self, sink: &str) -> bool {
        matches!(self, Refusal::Sink(name, ConnectError::Conflict(_)) if *name == sink)
    }
}

/// Where the sinks are. They are outside: no power cut of the process's machine reaches them.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) database: PathBuf,
    pub(crate) lines: PathBuf,
    /// In which order they are opened, and take back.
    pub(crate) file_first: bool,
}

impl Places {
    fn sinks(&self) -> [(&'static str, Box<dyn Sink>); 2] {
        let (pipeline, all) = (PIPELINE.to_owned(), Stages::ALL);
        let table =
            SqliteSink::new(self.database.clone(), "sessions".into(), pipeline.clone(), TABLE.into(), all);
        let lines = JsonlSink::sessions(self.lines.clone(), pipeline, all);
        let mut sinks: [(&'static str, Box<dyn Sink>); 2] =
            [(TABLE, Box::new(table)), (FILE, Box::new(lines))];
        if self.file_first {
            sinks.reverse();
        }
        sinks
    }
}

/// A committed epoch on its way to a sink.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub(crate) revision: Revision,
    rows: Vec<u8>,
}

pub(crate) struct Outlet {
    pub(crate) name: &'static str,
    sink: Box<dyn Sink>,
    pub(crate) cursor: Cursor,
    pub(crate) queue: VecDeque<Committed>,
}

/// See the module's documentation.
pub(crate) struct Process {
    pub(crate) disk: SimDisk,
    /// Open for as long as the process lives.
    _claim: Claim,
    pub(crate) incarnation: u64,
    pub(crate) log: EpochLog,
    position: u64,
    counts: Counts,
    changed: [bool; KEYS],
    needs: Needs,
    rotation: Rotation,
    pub(crate) outlets: Vec<Outlet>,
}

/// What a start has read in the log.
#[derive(Default)]
struct Found {
    meta: Option<Meta>,
    counts: Counts,
    kept: Vec<(Revision, RecordRef)>,
}

impl Found {
    fn take(&mut self, record: &Record<'_>, at: RecordRef, truth: &Truth) {
        let meta = record.section(Kind::Meta).unwrap_or_default();
        self.meta = Some(serde_json::from_slice(meta).unwrap());
        for state in record.sections_of(Kind::State) {
            for one in state.chunks(9) {
                self.counts[one[0] as usize] = u64::from_le_bytes(one[1..].try_into().unwrap());
            }
        }
        let revision = Revision { incarnation: record.header.incarnation, epoch: at.epoch };
        truth.is_as_it_was_made(revision, record);
        self.kept.push((revision, at));
    }
}

impl Process {
    /// Claims, takes its incarnation, recovers, opens and fences the sinks. `resend`: sinks that are to be sent all that is kept.
    pub(crate) fn start(
        disk: &SimDisk,
        places: &Places,
        resend: &[&str],
        truth: &mut Truth,
    ) -> Result<Process, Refusal> {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut claim = Claim::take(shared.clone(), Path::new(DATA))?;
        let incarnation = claim.next_incarnation()?;
        truth.began(incarnation);
        let dir = claim.pipeline_dir(PIPELINE);
        let mut evidence = Vec::new();
        if EpochLog::is_there(disk, &dir)? {
            for (name, sink) in places.sinks().iter().filter(|(name, _)| !resend.contains(name)) {
                let seen = sink.witness().map_err(|e| Refusal::Sink(name, e))?;
                evidence.extend(seen.map(|epoch| Evidence { who: (*name).to_owned(), epoch }));
            }
        }
        let mut found = Found::default();
        let visit = |record: Record<'_>, at: RecordRef| {
            found.take(&record, at, truth);
            Ok(())
        };
        let (log, recovery) = EpochLog::open(shared, &dir, SEGMENT_BYTES, &evidence, visit)?;
        let kept: Vec<Revision> = found.kept.iter().map(|(revision, _)| *revision).collect();
        truth.recovered(&kept, found.meta.as_ref(), &found.counts);
        let needs = found.meta.as_ref().map_or_else(Needs::default, Meta::needs);
        assert!(needs.is_whole(recovery.first_epoch), "the log begins with epoch {}", recovery.first_epoch);
        let outlets = open_sinks(places, incarnation, &log, &found, resend, truth)?;
        // Whoever went back has had rows taken back: they are told again.
        let again = found.meta.as_ref().is_some_and(|m| m.back_to.is_some());
        Ok(Process {
            disk: disk.clone(),
            _claim: claim,
            incarnation,
            log,
            position: found.meta.map_or(0, |m| m.position),
            changed: found.counts.map(|n| again && n > 0),
            counts: found.counts,
            needs,
            rotation: Rotation::default(),
            outlets,
        })
    }

    pub(crate) fn read(&mut self, records: u64, truth: &mut Truth) {
        for _ in 0..records {
            let key = truth.outside.record(self.position);
            self.position += 1;
            self.counts[key] += 1;
            self.changed[key] = true;
        }
    }

    /// Makes an epoch of everything since the last one, and durable.
    pub(crate) fn commit(&mut self, truth: &mut Truth) -> Result<(), StoreError> {
        let image = self.rotation.next(self.log.bytes_retained(), SEGMENT_BYTES);
        let imaged = image.as_ref().map(|groups| (groups.start / IMAGE_GROUPS) as usize);
        let changed = std::mem::take(&mut self.changed);
        let mut content = Content { states: vec![Vec::new()], ..Content::default() };
        for (key, changed) in changed.into_iter().enumerate() {
            if changed {
                encode_row(key, self.counts[key], &mut content.rows);
            }
            if changed || imaged == Some(key) {
                content.states[0].push(key as u8);
                content.states[0].extend_from_slice(&self.counts[key].to_le_bytes());
            }
        }
        let epoch = self.log.last_epoch() + 1;
        self.needs.take(epoch, image.as_ref(), content.leaves());
        let meta = Meta {
            position: self.position,
            cursors: self.outlets.iter().map(|o| (o.name.to_owned(), o.cursor)).collect(),
            images: self.needs.images.clone(),
            outbox_epoch: self.needs.outbox_epoch,
            back_to: None,
        };
        let revision = Revision { incarnation: self.incarnation, epoch };
        let text = meta.text();
        let sections = content.sections(&text);
        truth.makes(Epoch::new(revision, meta.clone(), &sections));
        self.log.append(self.incarnation, epoch, &sections)?;
        truth.acknowledged(revision);
        for o in &mut self.outlets {
            o.queue.push_back(Committed { revision, rows: content.rows.clone() });
        }
        let confirmed = meta.cursors.values().map(|c| c.epoch);
        self.log.trim(self.needs.kept_from(confirmed, None))
    }

    /// Gives a sink the next epoch, if there is one.
    pub(crate) fn deliver(&mut self, sink: &str, truth: &mut Truth) -> Option<Result<(), ConnectError>> {
        let outlet = self.outlets.iter_mut().find(|o| o.name == sink)?;
        let next = outlet.queue.front()?;
        let outbox = Outbox::new(next.revision.incarnation, next.revision.epoch, &next.rows, &[]);
        match outlet.sink.deliver(&outbox) {
            Ok(cursor) => {
                assert!(next.revision.epoch > outlet.cursor.epoch, "it is offered what it has");
                truth.delivered(sink, self.incarnation, &outbox);
                outlet.queue.pop_front();
                outlet.cursor = cursor;
                Some(Ok(()))
            }
            Err(e) => Some(Err(e)),
        }
    }

    /// How far it has read.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn outlet(&self, sink: &str) -> Option<&Outlet> {
        self.outlets.iter().find(|o| o.name == sink)
    }

    /// Whether the next epoch for a sink has rows.
    pub(crate) fn has_rows_for(&self, sink: &str) -> bool {
        self.outlet(sink).and_then(|o| o.queue.front()).is_some_and(|c| !c.rows.is_empty())
    }

    /// Lets go of a sink, as a process does that is half dead.
    pub(crate) fn let_go(&mut self, sink: &str) {
        self.outlets.retain(|o| o.name != sink);
    }
}

fn encode_row(key: usize, count: u64, out: &mut Vec<u8>) {
    let time = EventTime::from_ms(0);
    let row = SessionRow {
        id: [key as u8; 16],
        key: "k",
        start: time,
        end: time,
        events: count,
        stage: Stage::Early,
        reason: None,
        plugin: "counts@1",
        fields: "{}",
    };
    row.encode(out);
}

fn open_sinks(
    places: &Places,
    incarnation: u64,
    log: &EpochLog,
    found: &Found,
    resend: &[&str],
    truth: &mut Truth,
) -> Result<Vec<Outlet>, Refusal> {
    let mut outlets = Vec::new();
    for (name, mut sink) in places.sinks() {
        let failed = |e| Refusal::Sink(name, e);
        let stored = found.meta.as_ref().and_then(|m| m.cursors.get(name)).copied();
        let (again, start) = (resend.contains(&name), Cursor::default());
        if again {
            sink.is_ours(stored).map_err(failed)?;
        }
        let from = if again { Some(start) } else { stored };
        if let Some(back_to) = found.meta.as_ref().and_then(|m| m.back_to) {
            sink.is_ours(from).map_err(failed)?;
            let taken = sink.take_back(incarnation, back_to, from);
            truth.took_back(name, incarnation, back_to, from, taken.is_ok());
            taken.map_err(failed)?;
        }
        let opened = sink.open(incarnation, from);
        truth.opened(name, incarnation, from, opened.is_ok());
        let own = opened.map_err(failed)?;
        let cursor = if again {
            own.unwrap_or(start)
        } else {
            match since(own, stored, log.last_epoch(), |c| c.epoch).map_err(Refusal::Contradiction)? {
                Since::Cursor(cursor) => cursor,
                Since::New { epoch } => Cursor { epoch, length: 0 },
            }
        };
        let mut queue = VecDeque::new();
        for (revision, at) in found.kept.iter().filter(|(_, at)| at.epoch > cursor.epoch) {
            let sections = log.read_sections(at)?;
            let rows = sections.into_iter().find(|s| s.0 == Kind::Rows).map(|s| s.1).unwrap_or_default();
            queue.push_back(Committed { revision: *revision, rows });
        }
        outlets.push(Outlet { name, sink, cursor, queue });
    }
    Ok(outlets)
}

/// Goes back to one of the epochs to which the log can go, as `recover --to` does; to which.
pub(crate) fn go_back(
    disk: &SimDisk,
    places: &Places,
    pick: impl Fn(&[u64]) -> Option<u64>,
    truth: &mut Truth,
) -> Result<u64, Refusal> {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut claim = Claim::take(shared.clone(), Path::new(DATA))?;
    let dir = claim.pipeline_dir(PIPELINE);
    let (mut first, mut can, mut newest, mut there) = (0, BTreeMap::new(), None, Vec::new());
    EpochLog::survey(disk, &dir, |record, at| {
        first = if first == 0 { at.epoch } else { first };
        there.push(Revision { incarnation: record.header.incarnation, epoch: at.epoch });
        let meta: Meta = serde_json::from_slice(record.section(Kind::Meta).unwrap_or_default()).unwrap();
        newest = Some(meta.clone());
        let stood = meta.cursors.get(FILE).map(|c| c.epoch);
        if meta.needs().is_whole(first) && can_send_again(first, stood.into_iter()) {
            can.insert(at.epoch, (meta, at));
        }
        Ok(())
    })?;
    let epochs: Vec<u64> = can.keys().copied().collect();
    let to = pick(&epochs).ok_or(Refusal::NoEpoch)?;
    let (mut meta, at) = can.remove(&to).ok_or(Refusal::NoEpoch)?;
    for (name, sink) in places.sinks() {
        if !meta.cursors.contains_key(name) {
            let known = newest.as_ref().and_then(|m| m.cursors.get(name)).copied();
            sink.is_ours(known).map_err(|e| Refusal::Sink(name, e))?;
        }
    }
    let incarnation = claim.next_incarnation()?;
    truth.began(incarnation);
    there.retain(|r| r.epoch <= to);
    truth.cuts(there);
    let back_to = meta.back_to.map_or(to, |earlier| earlier.min(to));
    meta.back_to = Some(back_to);
    let text = meta.text();
    let sections = [(Kind::Meta, text.as_slice())];
    let revision = Revision { incarnation, epoch: to + 1 };
    truth.makes(Epoch::new(revision, meta.clone(), &sections));
    EpochLog::cut_after(&shared, &dir, &at, SEGMENT_BYTES, &Decision { incarnation, sections: &sections })?;
    truth.acknowledged(revision);
    for (name, mut sink) in places.sinks() {
        let stored = meta.cursors.get(name).copied();
        let taken = sink.take_back(incarnation, back_to, stored);
        truth.took_back(name, incarnation, back_to, stored, taken.is_ok());
        taken.map_err(|e| Refusal::Sink(name, e))?;
    }
    truth.went_back();
    Ok(to)
}

/// Deletes what there is and lets the next start begin anew, as `run --fresh` does before it starts.
pub(crate) fn start_over(disk: &SimDisk, places: &Places, truth: &mut Truth) -> Result<(), Refusal> {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut claim = Claim::take(shared, Path::new(DATA))?;
    let incarnation = claim.next_incarnation()?;
    truth.began(incarnation);
    let dir = claim.pipeline_dir(PIPELINE);
    let newest = EpochLog::newest(disk, &dir)?;
    let meta: Option<Meta> = newest.map(|n| serde_json::from_slice(&n.meta).unwrap());
    for (name, sink) in places.sinks() {
        let stored = meta.as_ref().and_then(|m| m.cursors.get(name)).copied();
        sink.is_ours(stored).map_err(|e| Refusal::Sink(name, e))?;
    }
    for (name, mut sink) in places.sinks() {
        let failed = |e| Refusal::Sink(name, e);
        let opened = sink.open(incarnation, Some(Cursor::default()));
        truth.opened(name, incarnation, Some(Cursor::default()), opened.is_ok());
        opened.map_err(failed)?;
        sink.delete_all().map_err(failed)?;
        truth.emptied(name);
    }
    destroy(disk, &dir)?;
    truth.started_over();
    Ok(())
}
