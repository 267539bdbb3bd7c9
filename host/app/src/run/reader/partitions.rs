//! The partitions of a pipeline: listed, found again in the store, opened and closed.

use super::Reader;
use crate::clock::now_ms;
use crate::config::kafka::Topics;
use crate::config::plan::{Format, Source, SourceKind};
use crate::journal::Level;
use crate::meta::PartitionMeta;
use crate::run::RunError;
use crate::run::ingest::{Ingest, framing};
use crate::run::topics::{Found, Reached, TopicPartition};
use std::path::Path;
use std::sync::Arc;
use tidemill_connect::ConnectError;
use tidemill_connect::source::container::ContainerPartition;
use tidemill_connect::source::file::{self, FilePartition};
use tidemill_connect::source::generator::{GeneratorPartition, GeneratorSpec};
use tidemill_connect::source::ingest_log::IngestPartition;
use tidemill_connect::source::stdin::StdinPartition;
use tidemill_connect::source::{Block, FileIdentity, Partition, PartitionIdentity, Read};
use tidemill_engine::time::EventTime;
use tidemill_engine::watermark::{PartitionKey, PartitionTime};

/// Files of one pipeline open at once (SEMANTICS 7): well below the usual limit of 1,024 descriptors.
const OPEN_FILES_MAX: usize = 64;

/// The partition of a source that is posted to.
const POSTED: &str = "ingest log";

/// An open partition.
pub(super) enum Reading {
    File(FilePartition),
    Container(Box<ContainerPartition>),
    Stdin(StdinPartition),
    Generator(Box<GeneratorPartition>),
    Posted(IngestPartition),
    Topic(TopicPartition),
}

impl Reading {
    pub(super) fn partition(&mut self) -> &mut dyn Partition {
        match self {
            Reading::File(p) => p,
            Reading::Container(p) => p.as_mut(),
            Reading::Stdin(p) => p,
            Reading::Generator(p) => p.as_mut(),
            Reading::Posted(p) => p,
            Reading::Topic(p) => p,
        }
    }

    /// Bytes of a file that are read, as they stand there.
    pub(super) fn bytes_taken(&self) -> Option<u64> {
        match self {
            Reading::File(p) => Some(p.bytes_taken()),
            Reading::Container(p) => Some(p.bytes_taken()),
            Reading::Stdin(_) | Reading::Generator(_) | Reading::Posted(_) | Reading::Topic(_) => None,
        }
    }
}

/// A partition and how far it was read.
pub(super) struct Part {
    pub(super) key: PartitionKey,
    pub(super) source: usize,
    pub(super) name: Arc<str>,
    pub(super) source_name: Arc<str>,
    pub(super) identity: PartitionIdentity,
    pub(super) offset: u64,
    /// Host clock that bounded input is held against.
    pub(super) listed_at_ms: i64,
    pub(super) reading: Option<Reading>,
    pub(super) ingest: Option<Ingest>,
    pub(super) looked_at_ms: i64,
    /// When records last came, by the host's clock; before the first, when the partition was listed.
    pub(super) grew_at_ms: i64,
    /// A block that was read and cannot be decoded yet.
    pub(super) held: Option<Arc<Block>>,
    /// It has been said that one waits.
    pub(super) waits: bool,
    /// When a followed file was first seen to have been renamed.
    pub(super) renamed_at_ms: Option<i64>,
    /// Bytes of the file that are read, as they stand there.
    pub(super) bytes_taken: u64,
}

/// When a file was last written to, by the host's clock.
fn written_ms(identity: &PartitionIdentity) -> Option<i64> {
    let written = std::fs::metadata(&identity.file()?.path).ok()?.modified().ok()?;
    i64::try_from(written.duration_since(std::time::UNIX_EPOCH).ok()?.as_millis()).ok()
}

/// What a header would say where records come without one.
fn columns(source: &Source) -> Option<Vec<u8>> {
    let SourceKind::Kafka(topics) = &source.kind else { return None };
    let between = if source.format == Format::Tsv { "\t" } else { "," };
    topics.columns.as_ref().map(|names| names.join(between).into_bytes())
}

impl Reader<'_> {
    pub(super) fn list(&mut self, i: usize, now: i64) -> Result<(), RunError> {
        let (source, _) = self.source(i);
        match &source.kind {
            SourceKind::File { pattern, .. } => {
                for path in file::list(pattern).map_err(|e| self.failed(i, e))? {
                    self.add_file(i, &path, now)?;
                }
            }
            // Each run's standard input is another stream.
            SourceKind::Stdin => {
                self.add(i, PartitionIdentity::File(FileIdentity::only("-")), None, now);
            }
            SourceKind::Generator(_) => self.add_named(i, "generator", now),
            SourceKind::Http(_) | SourceKind::PubSub(_) => {
                self.add_named(i, POSTED, now);
                // A pipeline that is new to the source begins with what is still kept.
                if let Some(part) = self.parts.last_mut().filter(|p| p.offset == 0) {
                    part.offset = self.job.inlets.first(&self.job.plan.sources[i].name);
                }
            }
            SourceKind::Kafka(topics) => self.list_topics(i, topics, now)?,
        }
        Ok(())
    }

    fn list_topics(&mut self, i: usize, topics: &Topics, now: i64) -> Result<(), RunError> {
        let (source, number) = self.source(i);
        let old = self.old_partitions.get(&number).into_iter().flatten();
        let stored = old.filter_map(|m| Some((m.identity.topic()?.clone(), m.offset))).collect();
        let (reached, found) = Reached::reach(self.job, source, topics, &stored)?;
        self.topics.insert(i, reached);
        found.into_iter().try_for_each(|f| self.add_topic(i, f, now))
    }

    /// Takes up partitions of topics that were added.
    pub(super) fn take_new_partitions(&mut self) -> Result<(), RunError> {
        let news = |(i, t): (&usize, &Reached)| Some((*i, t.found()?));
        while let Some((i, found)) = self.topics.iter().find_map(news) {
            let found = found?;
            let text = format!("source `{}` has a new partition, {}", self.source(i).0.name, found.identity);
            self.job.progress.tell(Level::Info, &text);
            self.add_topic(i, found, now_ms())?;
            self.changed = true;
        }
        Ok(())
    }

    fn add_topic(&mut self, i: usize, found: Found, now: i64) -> Result<(), RunError> {
        let Found { identity, offset, partition } = found;
        let known = self.known(i, |p| p.identity.topic() == Some(&identity));
        self.add(i, PartitionIdentity::Topic(identity), known, now);
        let p = self.parts.len() - 1;
        self.parts[p].offset = offset;
        self.begin(p, Reading::Topic(partition))
    }

    /// Takes positions that went on without a record, over tombstones and marks of transactions: of a partition all of whose
    /// records are on their way to the lanes.
    pub(super) fn note_positions(&mut self) {
        for part in self.parts.iter_mut().filter(|p| p.held.is_none()) {
            let Some(Reading::Topic(partition)) = &part.reading else { continue };
            let position = partition.position();
            if position > part.offset {
                part.offset = position;
                self.changed = true;
            }
        }
    }

    /// Bytes of all files, as they stand there; none if some input is not a file that has an end.
    pub(super) fn bytes_total(&self) -> Option<u64> {
        let bounded = |p: &Part| {
            let source = &self.job.plan.sources[p.source].kind;
            if !matches!(source, SourceKind::File { follow: false, .. }) {
                return None;
            }
            // A file that is gone by now is missed when it is opened.
            std::fs::metadata(&p.identity.file()?.path).ok().map(|m| m.len())
        };
        self.parts.iter().map(bounded).sum()
    }

    fn known(&self, i: usize, same: impl Fn(&PartitionMeta) -> bool) -> Option<u32> {
        let (_, number) = self.source(i);
        let taken = |n: usize| self.part_of.contains_key(&(number, n as u32));
        let old = self.old_partitions.get(&number)?;
        old.iter().enumerate().rposition(|(n, p)| !taken(n) && same(p)).map(|n| n as u32)
    }

    /// Adds the only partition of a source.
    fn add_named(&mut self, i: usize, name: &str, now: i64) {
        let known = self.known(i, |p| p.identity.file().is_some_and(|f| f.path == name));
        self.add(i, PartitionIdentity::File(FileIdentity::only(name)), known, now);
    }

    pub(super) fn add_file(&mut self, i: usize, path: &Path, now: i64) -> Result<(), RunError> {
        let identity = file::identity(path).map_err(|e| self.failed(i, e))?;
        // Cheap questions first: a source may have thousands of files.
        let may_be = |p: &&FileIdentity| {
            (p.device, p.inode) == (identity.device, identity.inode) || p.path == identity.path
        };
        let same = |p: &PartitionMeta| {
            p.identity.file().filter(may_be).is_some_and(|p| file::same_file(p, path).unwrap_or(false))
        };
        let known = self.known(i, same);
        self.add(i, PartitionIdentity::File(identity), known, now);
        Ok(())
    }

    /// Adds a partition under its old number, or the next free one.
    fn add(&mut self, i: usize, identity: PartitionIdentity, known: Option<u32>, now: i64) {
        let (source, number) = self.source(i);
        let old = self.old_partitions.entry(number).or_default();
        let fresh = PartitionTime::fresh(source.is_live(), now);
        let n = known.unwrap_or(old.len() as u32);
        if known.is_none() {
            old.push(PartitionMeta { identity: identity.clone(), offset: 0, time: fresh, listed_at_ms: now });
        }
        let meta = &mut old[n as usize];
        // All that was there is read, or somebody has written to it since: what is read now came later.
        if meta.time.finished || written_ms(&identity).is_some_and(|at| at > meta.listed_at_ms) {
            meta.listed_at_ms = now;
        }
        meta.identity = identity.clone();
        // Whether there is more in it shows when it is read.
        let time = PartitionTime { finished: false, live: source.is_live(), ..meta.time };
        let name: Arc<str> = identity.to_string().into();
        self.watermarks.add((number, n), time, now);
        self.part_of.insert((number, n), self.parts.len());
        self.parts.push(Part {
            key: (number, n),
            source: i,
            name,
            source_name: source.name.as_str().into(),
            identity,
            offset: meta.offset,
            listed_at_ms: meta.listed_at_ms,
            reading: None,
            ingest: None,
            looked_at_ms: now,
            grew_at_ms: now,
            held: None,
            waits: false,
            renamed_at_ms: None,
            bytes_taken: 0,
        });
    }

    /// Of each listed file the first event is read ahead; its time is the file's first maximum (SEMANTICS 7).
    pub(super) fn look_ahead(&mut self) -> Result<(), RunError> {
        for p in 0..self.parts.len() {
            let part = &self.parts[p];
            let known = self.watermarks.get(part.key).is_some_and(|t| t.max != EventTime::BEGINNING);
            let is_file = matches!(self.job.plan.sources[part.source].kind, SourceKind::File { .. });
            if known || !is_file {
                continue;
            }
            self.open(p)?;
            let mut block = Block::default();
            let key = self.parts[p].key;
            let part = &mut self.parts[p];
            if let (Some(r), Some(ingest)) = (&mut part.reading, &mut part.ingest) {
                let mut found = None;
                while found.is_none() {
                    block.clear();
                    match r.partition().read(&mut block) {
                        Ok(Read::Data) => {
                            let source = part.source;
                            if let Err(e) = ingest.prepare(&block) {
                                return Err(self.failed(source, e));
                            }
                            found = ingest.first_time(&block);
                        }
                        Ok(_) => break,
                        // The same error comes again when the file is read, after what precedes it.
                        Err(_) => break,
                    }
                }
                if let Some(t) = found {
                    self.watermarks.observe(key, t, now_ms());
                }
            }
            self.parts[p].reading = None;
            self.parts[p].ingest = None;
        }
        Ok(())
    }

    pub(super) fn open(&mut self, p: usize) -> Result<(), RunError> {
        let part = &self.parts[p];
        let source = &self.job.plan.sources[part.source];
        let (how, has_header) = framing(source.format);
        let path = &*part.name;
        let reading = match &source.kind {
            SourceKind::File { .. } if source.schema.in_files() => {
                ContainerPartition::open(path, part.offset).map(|p| Reading::Container(Box::new(p)))
            }
            SourceKind::File { follow, .. } => {
                FilePartition::open(path, how, has_header, part.offset, *follow).map(Reading::File)
            }
            SourceKind::Stdin => StdinPartition::new(how, has_header, 0).map(Reading::Stdin),
            SourceKind::Generator(g) => Ok(Reading::Generator(Box::new(GeneratorPartition::new(
                GeneratorSpec {
                    events: g.events,
                    rate: g.rate,
                    users: g.users,
                    seed: g.seed,
                    stories: g.stories,
                    start_ms: g.start_ms.unwrap_or(self.first_start_ms),
                    skip_to_offset: part.offset,
                },
                now_ms,
            )))),
            SourceKind::Http(_) | SourceKind::PubSub(_) => {
                let reader = self.job.inlets.reader(&source.name, part.offset);
                reader.map(Reading::Posted).ok_or_else(|| ConnectError::Failed("it has no ingest log".into()))
            }
            // Opened where it was found, and never closed.
            SourceKind::Kafka(_) => Err(ConnectError::Failed(format!("{path} is not open"))),
        };
        let reading = reading.map_err(|e| self.failed(part.source, e))?;
        self.begin(p, reading)
    }

    /// Makes what decodes an open partition.
    fn begin(&mut self, p: usize, mut reading: Reading) -> Result<(), RunError> {
        let part = &self.parts[p];
        let source = &self.job.plan.sources[part.source];
        let lanes = self.out.lanes.len();
        let mut ingest = Ingest::new(source, &part.name, part.key, &self.schedule.layout, lanes)
            .map_err(|m| RunError::Refused(format!("source `{}`: {m}", source.name)))?;
        let given = columns(source);
        if let Some(header) = reading.partition().header().or(given.as_deref()) {
            ingest
                .header(header)
                .map_err(|m| RunError::Failed(format!("{}: header: {}", part.name, m.message)))?;
        }
        let part = &mut self.parts[p];
        part.reading = Some(reading);
        part.ingest = Some(ingest);
        if !self.opened.contains(&p) {
            self.opened.push(p);
        }
        Ok(())
    }

    /// Whether anything is there to be read that no epoch holds: asked of a finished pipeline.
    pub(crate) fn unread(&mut self) -> Result<bool, RunError> {
        for p in 0..self.parts.len() {
            // A topic has no end, and what is in it takes its time to come.
            if matches!(self.parts[p].reading, Some(Reading::Topic(_))) {
                return Ok(true);
            }
            self.open(p)?;
            let mut block = Block::default();
            let found = match &mut self.parts[p].reading {
                Some(Reading::Stdin(_)) | None => false,
                Some(r) => matches!(r.partition().read(&mut block), Ok(Read::Data)),
            };
            self.parts[p].reading = None;
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn close_one_too_many(&mut self) {
        let (parts, opened) = (&self.parts, &mut self.opened);
        opened.retain(|p| parts[*p].reading.is_some());
        let open = opened
            .iter()
            .filter(|p| matches!(&parts[**p].reading, Some(Reading::File(_) | Reading::Container(_))));
        if open.clone().count() < OPEN_FILES_MAX {
            return;
        }
        let max = |p: &&usize| self.watermarks.get(parts[**p].key).map(|t| t.max);
        if let Some(furthest) = open.max_by_key(max).copied() {
            self.parts[furthest].reading = None;
            self.parts[furthest].held = None;
            self.parts[furthest].ingest = None;
        }
    }
}
