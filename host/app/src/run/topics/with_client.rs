//! The topics themselves, by the client.

use super::Stored;
use crate::config::kafka::{Begin, Topics};
use crate::config::plan::Source;
use crate::journal::Level;
use crate::meta::SourceMeta;
use crate::progress::Progress;
use crate::run::patience::Patience;
use crate::run::{Job, RunError};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tidemill_connect::ConnectError;
use tidemill_connect::source::KafkaIdentity;
use tidemill_connect::source::kafka::{KafkaSource, KafkaSpec, Start};

pub(crate) use tidemill_connect::source::kafka::KafkaPartition as TopicPartition;

/// Between two questions whether there are new partitions: whoever adds some does not wait for them to be read.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How soon it is noticed that the cluster is in trouble, or that nobody reads any more.
const PACE: Duration = Duration::from_millis(200);
/// Positions are shown for people and their monitors.
const SHOWN_EVERY: Duration = Duration::from_secs(1);

/// A partition that is open.
pub(crate) struct Found {
    pub(crate) identity: KafkaIdentity,
    pub(crate) offset: u64,
    pub(crate) partition: TopicPartition,
}

/// The topics of one source, while they are read.
pub(crate) struct Reached {
    source: KafkaSource,
    found: Receiver<Result<Found, RunError>>,
    /// Ends the thread that watches.
    _watched: Sender<()>,
}

impl Reached {
    /// Waits until the cluster is there, and opens all partitions.
    pub(crate) fn reach(
        job: Job<'_>,
        of: &Source,
        topics: &Topics,
        stored: &Stored,
    ) -> Result<(Reached, Vec<Found>), RunError> {
        let patience = Patience::with_source(&of.name, job.progress);
        let stop = || job.stop.load(Ordering::Relaxed);
        let spec = spec(topics, &job.pipeline.name, &of.name);
        let source = patience.at_start(stop, || KafkaSource::connect(spec.clone()))?;
        let places = patience.at_start(stop, || places(&source, topics, stored))?;
        let opened = patience.at_start(stop, || open(&source, &places))?;
        let (to, found) = unbounded();
        let (watched, end) = bounded(0);
        let watch = Watch {
            name: of.name.clone(),
            progress: job.progress.clone(),
            known: places.into_iter().map(|(identity, _)| identity).collect(),
            source: source.clone(),
            to,
            end,
        };
        let thread = std::thread::Builder::new().name("topics".into());
        thread
            .spawn(move || watch.run())
            .map_err(|e| RunError::Failed(format!("source `{}`: no thread to watch it: {e}", of.name)))?;
        Ok((Reached { source, found, _watched: watched }, opened))
    }

    /// A partition that was added since, or why the topics cannot be read any more.
    pub(crate) fn found(&self) -> Option<Result<Found, RunError>> {
        self.found.try_recv().ok()
    }

    /// Whether the cluster cannot be reached, as far as is known.
    pub(crate) fn is_in_trouble(&self) -> bool {
        self.source.trouble().is_some()
    }

    /// Waits until there is something new to read, at most so long.
    pub(crate) fn wait(&self, at_most: Duration) {
        self.source.wait(at_most);
    }

    /// For whoever shows positions once they are durable.
    pub(crate) fn shown(&self, of: &Source, topics: &Topics) -> Shown {
        Shown {
            source: self.source.clone(),
            name: of.name.clone(),
            topics: topics.topics.clone(),
            due: Vec::new(),
            at: None,
            trouble: None,
        }
    }
}

fn spec(topics: &Topics, pipeline: &str, source: &str) -> KafkaSpec {
    let named = topics.group.as_ref().map(|(group, _)| group.clone());
    KafkaSpec {
        cluster: topics.cluster.clone(),
        topics: topics.topics.clone(),
        // In one group only one pipeline can show how far it is.
        group: named.unwrap_or_else(|| format!("tidemill-{pipeline}.{source}")),
    }
}

/// Where to go on in what is known, and where to begin in the rest.
fn places(source: &KafkaSource, topics: &Topics, stored: &Stored) -> Result<Stored, ConnectError> {
    let is_read = |topic: &String| topics.topics.contains(topic);
    let mut places: Stored = Vec::new();
    for (identity, offset) in stored.iter().filter(|(i, _)| is_read(&i.topic)) {
        // Of two of one name the later one is meant.
        places.retain(|(other, _)| !other.has_name_of(identity));
        places.push((identity.clone(), *offset));
    }
    let is_stored = |p: &KafkaIdentity| places.iter().any(|(known, _)| known.has_name_of(p));
    let (added, begun): (Vec<_>, Vec<_>) = source
        .partitions()?
        .into_iter()
        .filter(|p| !is_stored(p))
        .partition(|p| places.iter().any(|(known, _)| known.topic == p.topic));
    let start = match topics.start {
        Begin::Earliest => Start::Earliest,
        Begin::Latest => Start::Latest,
        Begin::Committed => Start::Committed,
        Begin::At(ms) => Start::Timestamp(ms),
    };
    for (partitions, start) in [(added, Start::Earliest), (begun, start)] {
        if partitions.is_empty() {
            continue;
        }
        let starts = source.starts(&partitions, start)?;
        places.extend(partitions.into_iter().zip(starts));
    }
    Ok(places)
}

fn open(source: &KafkaSource, places: &Stored) -> Result<Vec<Found>, ConnectError> {
    let one = |(identity, offset): &(KafkaIdentity, u64)| {
        let partition = source.open(identity, *offset)?;
        Ok(Found { identity: identity.clone(), offset: *offset, partition })
    };
    places.iter().map(one).collect()
}

/// Looks for partitions that are added, and says when the cluster is away and back.
struct Watch {
    name: String,
    progress: Arc<Progress>,
    known: Vec<KafkaIdentity>,
    source: KafkaSource,
    to: Sender<Result<Found, RunError>>,
    end: Receiver<()>,
}

impl Watch {
    fn run(mut self) {
        let (name, progress, end) = (self.name.clone(), self.progress.clone(), self.end.clone());
        let patience = Patience::with_source(&name, &progress);
        let has_ended = || !matches!(end.try_recv(), Err(TryRecvError::Empty));
        let mut looked = Instant::now();
        while end.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
            if self.source.trouble().is_none() && looked.elapsed() < LOOK_EVERY {
                continue;
            }
            match patience.until_done(has_ended, || self.look()) {
                Ok(Some(found)) => found.into_iter().for_each(|f| drop(self.to.send(Ok(f)))),
                Ok(None) => return,
                Err(e) => return drop(self.to.send(Err(e))),
            }
            looked = Instant::now();
        }
    }

    fn look(&mut self) -> Result<Vec<Found>, ConnectError> {
        let listed = self.source.look()?;
        let new: Vec<KafkaIdentity> = listed.into_iter().filter(|p| !self.known.contains(p)).collect();
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let starts = self.source.starts(&new, Start::Earliest)?;
        let places = new.into_iter().zip(starts).collect();
        let found = open(&self.source, &places)?;
        self.known.extend(places.into_iter().map(|(identity, _)| identity));
        Ok(found)
    }
}

/// Shows others how far a source is read durably.
pub(crate) struct Shown {
    source: KafkaSource,
    name: String,
    topics: Vec<String>,
    /// What is durable and was not shown yet.
    due: Vec<(KafkaIdentity, u64)>,
    at: Option<Instant>,
    /// Why it could not be shown last.
    trouble: Option<String>,
}

impl Shown {
    /// An epoch is durable.
    pub(crate) fn is_durable(&mut self, sources: &[SourceMeta]) {
        let Some(of_source) = sources.iter().find(|s| s.name == self.name) else { return };
        let read = of_source.partitions.iter().filter_map(|p| Some((p.identity.topic()?, p.offset)));
        let read = read.filter(|(i, _)| self.topics.contains(&i.topic));
        self.due = read.map(|(i, offset)| (i.clone(), offset)).collect();
    }

    /// Shows what is due, now and then. Nothing depends on what becomes of it.
    pub(crate) fn show(&mut self, progress: &Progress) {
        if self.due.is_empty() || self.at.is_some_and(|at| at.elapsed() < SHOWN_EVERY) {
            return;
        }
        self.at = Some(Instant::now());
        let due = std::mem::take(&mut self.due);
        self.source.commit(&due.iter().map(|(i, offset)| (i, *offset)).collect::<Vec<_>>());
        let trouble = self.source.uncommitted();
        if let Some(why) = trouble.as_ref().filter(|_| trouble != self.trouble) {
            let text = format!("source `{}`: its group does not show how far it is: {why}", self.name);
            progress.keep(Level::Warn, &text);
        }
        self.trouble = trouble.or(self.trouble.take());
    }
}

/// What a start would refuse, for `check`: key, and why.
pub(crate) fn foresee(
    pipeline: &str,
    of: &Source,
    topics: &Topics,
    stored: &Stored,
) -> Option<(&'static str, RunError)> {
    let refused = || {
        let source = KafkaSource::connect(spec(topics, pipeline, &of.name))?;
        places(&source, topics, stored)?.iter().try_for_each(|(i, offset)| source.probe(i, *offset))
    };
    let named = |e| RunError::of(&format!("source `{}`", of.name), e);
    refused().err().map(|e| match e {
        ConnectError::Unavailable(_) => ("brokers", named(e)),
        e => ("topics", named(e)),
    })
}
