//! The worker: takes unresolved rows through the enrichers, one after the other, with what is looked up for each.
//!
//! Invariants: at most [`IN_WORK_MAX`] rows are in work, so a lookup that does not answer stops the worker and not the host;
//! a row that waits for a lookup holds up no other as long as there is room. A ticket names a row in work and one of its
//! lookups; a row stays in its place until all of them are answered.

use super::{Tray, Work};
use crate::config::lookup::{self, OnFailure};
use crate::plugin::budget::Identity;
use crate::plugin::enrich::{Enricher, Subject, Verdict, merge};
use crate::run::RunError;
use crossbeam_channel::{Receiver, Sender};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tidemill_connect::lookup::{Answer, Lookup, Ticket};
use tidemill_engine::letter::RevisionLetter;
use tidemill_engine::outbox::{Revision, RowIter, SessionRow};
use tidemill_engine::unresolved::{Outcome, Place, Resolution};

/// Rows in work at a time: enough to fill many calls to each lookup, and a few tens of MiB.
const IN_WORK_MAX: usize = 32_768;
/// Rows that go through an enricher together.
const STEP_ROWS: usize = 1_024;
/// A ticket is the row's place in work times this, plus the number of the lookup among the row's.
const LOOKUPS_PER_ROW: u64 = 1 << 8;
const _: () = assert!((crate::plugin::enrich::REQUESTS_MAX as u64) < LOOKUPS_PER_ROW);

/// The name of the field that says which lookups could not answer.
pub(super) const MARK: &str = "lookup_failed";

pub(crate) type Answers = Vec<(Ticket, Answer)>;

/// A lookup of the config, running.
pub(crate) struct Source {
    pub(super) name: String,
    pub(super) on_failure: OnFailure,
    pub(super) timeout_ms: u64,
    pub(super) lookup: Lookup,
}

impl Source {
    pub(super) fn start(plan: &lookup::Lookup, reply: Sender<Answers>) -> Result<Source, RunError> {
        let of = |e: &dyn std::fmt::Display| format!("lookup `{}`: {e}", plan.name);
        let provider = plan.provider().map_err(|e| RunError::Refused(of(&e)))?;
        let reply = move |answers| {
            // The worker has ended: nobody wants them.
            let _ = reply.send(answers);
        };
        let lookup = Lookup::start(&plan.name, provider, plan.settings, reply);
        Ok(Source {
            name: plan.name.clone(),
            on_failure: plan.on_failure,
            timeout_ms: plan.settings.timeout_ms,
            lookup: lookup.map_err(|e| RunError::Failed(of(&e)))?,
        })
    }
}

/// Rows that are not in work yet.
struct Queued {
    work: Work,
    /// Bytes of `work.rows` that are done, and how many rows they were.
    at: usize,
    index: u32,
    /// How many of `work.open` are done.
    taken: usize,
}

impl Queued {
    fn next(&mut self) -> Option<(u32, Box<[u8]>)> {
        loop {
            let (bytes, _) = RowIter::new(self.work.rows.get(self.at..)?).with_bytes().next()?;
            let index = self.index;
            self.at += bytes.len();
            self.index += 1;
            match &self.work.open {
                None => return Some((index, bytes.into())),
                Some(open) if open.get(self.taken) == Some(&index) => {
                    self.taken += 1;
                    return Some((index, bytes.into()));
                }
                Some(_) => {}
            }
        }
    }
}

struct InWork {
    revision: Revision,
    index: u32,
    row: Box<[u8]>,
    /// The fields, once an enricher has added some.
    fields: Option<String>,
    /// Which enricher it is at.
    at: usize,
    asks: Vec<Ask>,
    unanswered: usize,
    /// Names of the lookups that it goes on without.
    failed: Vec<String>,
}

struct Ask {
    lookup: u32,
    key: String,
    answer: Option<Answer>,
}

impl InWork {
    fn subject(&self) -> Option<Subject<'_>> {
        let row = RowIter::new(&self.row).next()?;
        let fields = self.fields.as_deref().unwrap_or(row.fields);
        let answers = self.asks.iter().filter_map(|a| Some((a.lookup, a.key.as_str(), a.answer.as_ref()?)));
        Some(Subject { row, fields, answers: answers.collect() })
    }
}

/// See the module's documentation.
pub(crate) struct Worker {
    enrichers: Vec<Enricher>,
    /// By the number that the config's plan has.
    sources: BTreeMap<usize, Arc<Source>>,
    work: Receiver<Work>,
    answers: Receiver<Answers>,
    tray: Arc<Tray>,
    queue: VecDeque<Queued>,
    rows: Vec<Option<InWork>>,
    free: Vec<usize>,
    /// Rows that the enricher they are at has not been asked about.
    fresh: Vec<usize>,
    /// Rows whose lookups are all answered.
    ready: Vec<usize>,
    done: Vec<Resolution>,
}

impl Worker {
    pub(crate) fn new(
        enrichers: Vec<Enricher>,
        sources: BTreeMap<usize, Arc<Source>>,
        work: Receiver<Work>,
        answers: Receiver<Answers>,
        tray: Arc<Tray>,
    ) -> Worker {
        Worker {
            enrichers,
            sources,
            work,
            answers,
            tray,
            queue: VecDeque::new(),
            rows: Vec::new(),
            free: Vec::new(),
            fresh: Vec::new(),
            ready: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Runs until the committer hangs up.
    pub(crate) fn run(mut self) -> Result<(), RunError> {
        loop {
            self.admit();
            while !self.fresh.is_empty() || !self.ready.is_empty() {
                self.step(Worker::ask, |w| &mut w.fresh)?;
                self.step(Worker::apply, |w| &mut w.ready)?;
                if !self.done.is_empty() && !self.tray.put(std::mem::take(&mut self.done)) {
                    return Ok(());
                }
                self.admit();
            }
            crossbeam_channel::select! {
                recv(self.work) -> work => match work {
                    Ok(work) => self.queue.push_back(Queued { work, at: 0, index: 0, taken: 0 }),
                    Err(_) => return Ok(()),
                },
                recv(self.answers) -> answers => self.take(answers.unwrap_or_default()),
            }
            while let Ok(answers) = self.answers.try_recv() {
                self.take(answers);
            }
        }
    }

    /// Puts rows of the queue into work while there is room.
    fn admit(&mut self) {
        while self.rows.len() - self.free.len() < IN_WORK_MAX
            && let Some(front) = self.queue.front_mut()
        {
            let Some((index, row)) = front.next() else {
                self.queue.pop_front();
                continue;
            };
            let new = InWork {
                revision: front.work.revision,
                index,
                row,
                fields: None,
                at: 0,
                asks: Vec::new(),
                unanswered: 0,
                failed: Vec::new(),
            };
            let at = self.free.pop().unwrap_or_else(|| {
                self.rows.push(None);
                self.rows.len() - 1
            });
            self.rows[at] = Some(new);
            self.fresh.push(at);
        }
    }

    /// Takes all rows of a list, in runs that are at the same enricher.
    fn step(
        &mut self,
        mut each: impl FnMut(&mut Worker, usize, &[usize]) -> Result<(), RunError>,
        list: impl Fn(&mut Worker) -> &mut Vec<usize>,
    ) -> Result<(), RunError> {
        let rows = std::mem::take(list(self));
        let mut by_enricher: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for row in rows {
            if let Some(w) = &self.rows[row] {
                by_enricher.entry(w.at).or_default().push(row);
            }
        }
        for (at, rows) in by_enricher {
            rows.chunks(STEP_ROWS).try_for_each(|part| each(self, at, part))?;
        }
        Ok(())
    }

    /// Asks an enricher what it wants to know of some rows, and the lookups for that.
    fn ask(&mut self, at: usize, rows: &[usize]) -> Result<(), RunError> {
        let Some(enricher) = self.enrichers.get_mut(at) else {
            rows.iter().for_each(|row| self.finish(*row));
            return Ok(());
        };
        let subjects = subjects(&self.rows, rows);
        let answers = enricher.requests(&subjects).map_err(RunError::Failed)?;
        let mut keys: BTreeMap<usize, Vec<(Ticket, String)>> = BTreeMap::new();
        let mut faults = Vec::new();
        for (row, requests) in rows.iter().zip(answers) {
            let Some(w) = &mut self.rows[*row] else { continue };
            let requests = match requests {
                Ok(requests) => requests,
                Err(why) => {
                    faults.push((*row, why));
                    continue;
                }
            };
            w.unanswered = requests.len();
            w.asks.clear();
            if requests.is_empty() {
                self.ready.push(*row);
            }
            for (n, r) in (0..).zip(requests) {
                let ticket = *row as u64 * LOOKUPS_PER_ROW + n;
                // `requests` gives none that the plugin did not declare.
                let source = enricher.lookup(r.lookup).unwrap_or_default();
                keys.entry(source).or_default().push((ticket, r.key.clone()));
                w.asks.push(Ask { lookup: r.lookup, key: r.key, answer: None });
            }
        }
        let mut known = Answers::new();
        for (source, keys) in &keys {
            match self.sources.get(source) {
                Some(s) => s.lookup.ask(keys.iter().map(|(t, k)| (*t, k.as_str())), &mut known),
                None => known.extend(keys.iter().map(|(t, _)| (*t, Answer::NotFound))),
            }
        }
        self.take(known);
        faults.into_iter().for_each(|(row, why)| self.letter(row, "plugin_fault", &why));
        Ok(())
    }

    fn take(&mut self, answers: Answers) {
        for (ticket, answer) in answers {
            let row = (ticket / LOOKUPS_PER_ROW) as usize;
            let Some(Some(w)) = self.rows.get_mut(row) else { continue };
            let Some(ask) = w.asks.get_mut((ticket % LOOKUPS_PER_ROW) as usize) else { continue };
            ask.answer = Some(answer);
            w.unanswered -= 1;
            if w.unanswered == 0 {
                self.ready.push(row);
            }
        }
    }

    /// Gives an enricher what was found for some rows.
    fn apply(&mut self, at: usize, rows: &[usize]) -> Result<(), RunError> {
        let rows: Vec<usize> = rows.iter().copied().filter(|row| self.goes_on(at, *row)).collect();
        let Some(enricher) = self.enrichers.get_mut(at) else { return Ok(()) };
        let verdicts = enricher.apply(&subjects(&self.rows, &rows)).map_err(RunError::Failed)?;
        for (row, verdict) in rows.into_iter().zip(verdicts) {
            match verdict {
                Verdict::Fields(fields) => {
                    if let Some(w) = &mut self.rows[row] {
                        w.fields = Some(fields);
                        w.at += 1;
                        w.asks.clear();
                        self.fresh.push(row);
                    }
                }
                Verdict::Rejected(reason) => self.letter(row, &reason, "the enricher rejected the session"),
                Verdict::Fault(why) => self.letter(row, "plugin_fault", &why),
            }
        }
        Ok(())
    }

    /// Notes which lookups of a row had no answer; false if that makes a dead letter of it.
    fn goes_on(&mut self, at: usize, row: usize) -> bool {
        let (Some(Some(w)), Some(enricher)) = (self.rows.get_mut(row), self.enrichers.get(at)) else {
            return false;
        };
        let mut dead = None;
        for ask in &w.asks {
            let Some(Answer::Failed(why)) = &ask.answer else { continue };
            let Some(source) = enricher.lookup(ask.lookup).and_then(|n| self.sources.get(&n)) else {
                continue;
            };
            if source.on_failure == OnFailure::DeadLetter {
                dead = Some(format!("lookup `{}`: {why}", source.name));
            } else if !w.failed.contains(&source.name) {
                w.failed.push(source.name.clone());
            }
        }
        match dead {
            Some(why) => {
                self.letter(row, "lookup_failed", &why);
                false
            }
            None => true,
        }
    }

    fn finish(&mut self, row: usize) {
        let Some(w) = self.rows[row].take() else { return };
        self.free.push(row);
        let Some(subject) = w.subject() else { return };
        let marked = if w.failed.is_empty() {
            Ok(subject.fields.to_owned())
        } else {
            let mark = serde_json::json!({ MARK: w.failed }).to_string();
            merge(subject.fields, &mark)
        };
        let outcome = match marked {
            Ok(fields) => {
                let mut out = Vec::with_capacity(w.row.len() + fields.len());
                SessionRow { fields: &fields, ..subject.row }.encode(&mut out);
                Outcome::Row(out)
            }
            Err(why) => dead(&w, subject.row, "plugin_fault", &why, None),
        };
        self.done.push(Resolution { place: place(&w), outcome });
    }

    fn letter(&mut self, row: usize, reason: &str, message: &str) {
        let Some(w) = self.rows[row].take() else { return };
        self.free.push(row);
        let Some(subject) = w.subject() else { return };
        let by = self.enrichers.get(w.at).map(Enricher::who);
        let row = SessionRow { fields: subject.fields, ..subject.row };
        let outcome = dead(&w, row, reason, message, by);
        self.done.push(Resolution { place: place(&w), outcome });
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.tray.abandon();
    }
}

fn subjects<'a>(all: &'a [Option<InWork>], rows: &[usize]) -> Vec<Subject<'a>> {
    rows.iter().filter_map(|row| all.get(*row)?.as_ref()?.subject()).collect()
}

fn place(w: &InWork) -> Place {
    Place { epoch: w.revision.epoch, index: w.index }
}

fn dead(w: &InWork, row: SessionRow<'_>, reason: &str, message: &str, by: Option<&Identity>) -> Outcome {
    let mut line = Vec::new();
    let enricher = by.map(|i| (i.version.as_str(), i.digest.as_str()));
    RevisionLetter { reason, stage: "enrich", message, enricher, revision: w.revision, row }.write(&mut line);
    Outcome::Letter(reason.to_owned(), line)
}
