//! A BigQuery table of sessions, or of dead letters, kept by change capture.
//!
//! Invariants: every row is an upsert with its revision as sequence number, so BigQuery keeps the greatest of each key, whatever
//! comes again or comes late: any epoch may be offered again in any order, and so may one whose answer was lost. An epoch is
//! delivered when each of its requests was answered with yes; BigQuery knows no transaction, so a reader may see a part of an
//! epoch, and how far the table is the store alone knows. Rows that BigQuery refuses one by one are left out and told; all else
//! of their request is sent again. Of an epoch at most [`bounds::BIGQUERY_IN_FLIGHT`] requests are in memory.
//!
//! The table's mark names the incarnation that may write. It is looked at before each connection and now and then: a process
//! that was replaced ends then. What it wrote until that moment has lower sequence numbers than anything its successor writes.

mod rows;
mod table;

pub use self::table::{ColumnKind, OwnColumn, SESSION_COLUMNS, TableOptions};

use self::rows::{Batches, Refused, Writer, part};
use self::table::{Mark, Missing, Shape, label};
use super::content::{Content, Item};
use super::owned::{Owner, Standing, int};
use super::{Sink, TakenBack, bounds};
use crate::bigquery::{Answer, Client, Dataset, Stream};
use crate::google::later;
use crate::{ConnectError, Cursor};
use serde_json::Value;
use std::cell::Cell;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tidemill_engine::outbox::{Outbox, Stages};

/// How often an epoch is tried again at once because the schema has changed under it: somebody may be at it, step by step.
const SCHEMA_TRIES: u32 = 2;
/// How often the table is looked at again because somebody else has changed it between our look and our change.
const CLAIM_TRIES: u32 = 5;

/// Writes into one table of BigQuery.
pub struct BigQuerySink {
    dataset: Dataset,
    owner: Owner,
    label: String,
    shape: Shape,
    content: Content,
    /// `None` before `open`.
    open: Option<Open>,
    /// Dead letters of the last epoch.
    refused: Vec<u8>,
    /// A mark with our incarnation may be our own, of a call whose answer was lost.
    has_claimed: Cell<bool>,
}

struct Open {
    standing: Standing,
    client: Client,
    /// The table's mark says so, and it is to say no more once somebody goes on.
    is_lost: bool,
    /// It was written to before.
    had_mark: bool,
    /// `None` after a failure.
    link: Option<Link>,
    /// Rows of this epoch that are known to be there, from its first on.
    there: Option<(u64, u64, usize)>,
}

/// What was there when we came.
struct Claimed {
    /// The table lacks what was delivered.
    is_lost: bool,
    had_mark: bool,
}

/// A stream, ready for rows.
struct Link {
    stream: Stream,
    looked: Instant,
    /// The schema has changed since.
    is_stale: bool,
}

impl BigQuerySink {
    /// A sink for a pipeline's revisions with these stages; `pipeline` and `sink` name whose rows these are.
    #[must_use]
    pub fn sessions(
        dataset: Dataset,
        table: String,
        options: TableOptions,
        pipeline: String,
        sink: String,
        stages: Stages,
    ) -> BigQuerySink {
        let shape = Shape::sessions(options);
        BigQuerySink::new(dataset, table, shape, pipeline, sink, Content::Sessions(stages))
    }

    /// A sink for dead letters.
    #[must_use]
    pub fn letters(
        dataset: Dataset,
        table: String,
        options: TableOptions,
        pipeline: String,
        sink: String,
    ) -> BigQuerySink {
        BigQuerySink::new(dataset, table, Shape::letters(options), pipeline, sink, Content::Letters)
    }

    fn new(
        dataset: Dataset,
        table: String,
        shape: Shape,
        pipeline: String,
        sink: String,
        content: Content,
    ) -> BigQuerySink {
        let label = label(&pipeline, &sink);
        let owner = Owner { place: dataset.place(), table, pipeline, sink };
        BigQuerySink {
            dataset,
            owner,
            label,
            shape,
            content,
            open: None,
            refused: Vec::new(),
            has_claimed: Cell::new(false),
        }
    }

    /// Does something over a connection of its own.
    fn ask<T>(&self, work: impl AsyncFnOnce(&Client) -> Result<T, ConnectError>) -> Result<T, ConnectError> {
        let client = self.dataset.connect()?;
        client.run(work(&client))
    }

    /// Which of our columns the table lacks; refuses a table that rows do not fit into.
    fn check(&self, found: &Value) -> Result<Missing, ConnectError> {
        let wrong = |what: String| {
            ConnectError::Config(format!(
                "{}: table {} is not one that tidemill can fill: {what}; choose another `table`, or rename or mend this one",
                self.owner.place, self.owner.table
            ))
        };
        if let (Some(wanted), Some(there)) = (&self.dataset.location, found["location"].as_str())
            && !wanted.eq_ignore_ascii_case(there)
        {
            return Err(wrong(format!("it lies in {there}, and `location` is {wanted}")));
        }
        self.shape.check(found).map_err(wrong)
    }

    /// What is said of a table that lacks what was delivered.
    fn gone(&self) -> ConnectError {
        ConnectError::Conflict(format!(
            "{}: table {} is gone or another one, and with it the word that it has what was delivered; \
             `--resend {}` sends again what is still kept",
            self.owner.place, self.owner.table, self.owner.sink
        ))
    }

    fn mark_there(&self) -> Result<Option<Mark>, ConnectError> {
        let found = self.ask(async |client| client.table(&self.owner.table).await)?;
        Ok(found.and_then(|f| Mark::of(&f, &self.label)))
    }

    /// Takes our mark away.
    async fn unmark(&self, client: &Client) -> Result<(), ConnectError> {
        let nobody = serde_json::json!({"labels": {&self.label: null}});
        let changed = client.patch(&self.owner.table, &nobody, "*").await?;
        if changed { Ok(()) } else { Err(self.contended()) }
    }

    fn not_emptied(&self) -> ConnectError {
        ConnectError::Config(format!(
            "{}: table {} was written by this pipeline, and rows that came by change capture cannot be deleted one by one; \
             delete the table, or name another",
            self.owner.place, self.owner.table
        ))
    }

    /// Makes the table if need be, and writes into its mark that we may write.
    async fn claim(
        &self,
        client: &Client,
        incarnation: u64,
        stored: Option<Cursor>,
    ) -> Result<Claimed, ConnectError> {
        let expected = stored.is_some_and(|c| c.epoch > 0);
        for _ in 0..CLAIM_TRIES {
            let Some(found) = client.table(&self.owner.table).await? else {
                self.has_claimed.set(true);
                let mark = Mark { incarnation, is_lost: expected };
                let (project, dataset) = (&self.dataset.project, &self.dataset.dataset);
                let resource = self.shape.resource(project, dataset, &self.owner.table, &self.label, mark);
                if client.create(&resource).await? {
                    return Ok(Claimed { is_lost: expected, had_mark: false });
                }
                continue;
            };
            let missing = self.check(&found)?;
            let before = Mark::of(&found, &self.label);
            if let Some(before) = before {
                self.owner.may_claim(int(before.incarnation), incarnation)?;
                // Of a store that knows nothing of it, with rows that its first epochs would lie below.
                if before.incarnation == incarnation && stored.is_none() && !self.has_claimed.get() {
                    return Err(self.owner.another(int(before.incarnation), incarnation));
                }
            }
            self.has_claimed.set(true);
            let is_lost = before.map_or(expected, |m| m.is_lost && expected);
            if self.change(client, &found, &missing, Mark { incarnation, is_lost }).await? {
                return Ok(Claimed { is_lost, had_mark: before.is_some() });
            }
        }
        Err(self.contended())
    }

    /// Adds what is missing and writes the mark; `false` if somebody else has changed the table meanwhile.
    async fn change(
        &self,
        client: &Client,
        found: &Value,
        missing: &Missing,
        mark: Mark,
    ) -> Result<bool, ConnectError> {
        let Some(patch) = self.shape.patch(found, missing, &self.label, mark) else { return Ok(true) };
        let tag = found["etag"].as_str().unwrap_or("*");
        client.patch(&self.owner.table, &patch, tag).await
    }

    fn contended(&self) -> ConnectError {
        ConnectError::Unavailable(format!(
            "{}: table {} is changed by others all the time",
            self.owner.place, self.owner.table
        ))
    }

    /// Connects anew, to a table that is as it was left.
    async fn relink(
        &self,
        client: &Client,
        incarnation: u64,
        is_lost: &mut bool,
    ) -> Result<Link, ConnectError> {
        // It has worked with these very credentials.
        let Some(found) = client.table(&self.owner.table).await.map_err(later)? else {
            return Err(self.gone());
        };
        match Mark::of(&found, &self.label) {
            None => return Err(self.gone()),
            Some(mark) if mark.incarnation != incarnation => return Err(self.owner.fenced()),
            Some(_) => {}
        }
        let missing = self.check(&found)?;
        let mark = Mark { incarnation, is_lost: false };
        if !self.change(client, &found, &missing, mark).await.map_err(later)? {
            return Err(self.contended());
        }
        *is_lost = false;
        let stream = client.stream(&self.owner.table, &self.shape.schema()).await.map_err(later)?;
        Ok(Link { stream, looked: Instant::now(), is_stale: false })
    }

    /// One epoch, whatever the cursor says.
    fn apply(&mut self, outbox: &Outbox<'_>) -> Result<(), ConnectError> {
        for _ in 0..SCHEMA_TRIES {
            match self.try_apply(outbox) {
                // The schema is not what it was: looking again mends what may be mended, or says what is wrong.
                Err(ConnectError::Config(_)) => {}
                done => return done,
            }
        }
        self.try_apply(outbox)
    }

    fn try_apply(&mut self, outbox: &Outbox<'_>) -> Result<(), ConnectError> {
        let Some(mut open) = self.open.take() else { return Err(self.owner.not_open()) };
        let mut refused = Vec::new();
        let done = self.try_with(&mut open, outbox, &mut refused);
        self.open = Some(open);
        self.refused = refused;
        done
    }

    fn try_with(
        &self,
        open: &mut Open,
        outbox: &Outbox<'_>,
        refused: &mut Vec<u8>,
    ) -> Result<(), ConnectError> {
        let must_look = Duration::from_millis(bounds::BIGQUERY_LOOK_MS);
        let kept = open.link.take().filter(|l| !l.is_stale && l.looked.elapsed() < must_look);
        let is_kept = kept.is_some();
        let mut answers = 0;
        match self.try_once(open, kept, outbox, refused, &mut answers) {
            // One that was closed while there was nothing to do is no failure.
            Err(ConnectError::Unavailable(_)) if is_kept && answers == 0 => {
                self.try_once(open, None, outbox, refused, &mut answers)
            }
            done => done,
        }
    }

    fn try_once(
        &self,
        open: &mut Open,
        kept: Option<Link>,
        outbox: &Outbox<'_>,
        refused: &mut Vec<u8>,
        answers: &mut u64,
    ) -> Result<(), ConnectError> {
        refused.clear();
        let Open { standing, client, is_lost, there, .. } = open;
        let (link, epoch) = (kept, (outbox.incarnation, outbox.epoch));
        let skip = there.filter(|t| (t.0, t.1) == epoch).map_or(0, |t| t.2);
        let mut known = skip;
        let done = client.run(async {
            let mut link = match link {
                Some(link) => link,
                None => self.relink(client, standing.incarnation, is_lost).await?,
            };
            self.send(&mut link, outbox, skip, &mut known, refused, answers).await?;
            Ok(link)
        });
        *there = Some((epoch.0, epoch.1, known));
        match done {
            Ok(link) => {
                *there = None;
                open.link = Some(link);
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// Sends all rows of an epoch but the first `skip`, and waits for all answers. `known`: rows from the first on that are there.
    async fn send(
        &self,
        link: &mut Link,
        outbox: &Outbox<'_>,
        skip: usize,
        known: &mut usize,
        refused: &mut Vec<u8>,
        answers: &mut u64,
    ) -> Result<(), ConnectError> {
        let writer = Writer { pipeline: &self.owner.pipeline, own: self.shape.own() };
        let mut batches = Batches::new(self.content.items(outbox).skip(skip), writer);
        let mut again: VecDeque<Vec<Item<'_>>> = VecDeque::new();
        let mut flying = VecDeque::new();
        let mut bad = Vec::new();
        loop {
            while flying.len() < bounds::BIGQUERY_IN_FLIGHT {
                let next = match again.pop_front() {
                    Some(items) => Some(batches.anew(items)),
                    None => batches.next(),
                };
                let Some(batch) = next else { break };
                // Rows are written anew if some of them are refused.
                link.stream.send(batch.rows).await?;
                flying.push_back(batch.items);
            }
            let Some(items) = flying.pop_front() else { break };
            let answer = link.stream.answer().await?;
            *answers += 1;
            match answer {
                Answer::Taken { changed } => {
                    link.is_stale |= changed;
                    if bad.is_empty() && batches.too_large.is_empty() {
                        *known += items.len();
                    }
                }
                Answer::BadRows(list) => {
                    let (rest, found) = part(items, &list);
                    if found.is_empty() {
                        return Err(ConnectError::Failed(format!(
                            "{}: table {}: rows are refused that were not sent",
                            self.owner.place, self.owner.table
                        )));
                    }
                    bad.extend(found);
                    if !rest.is_empty() {
                        again.push_back(rest);
                    }
                }
            }
        }
        bad.append(&mut batches.too_large);
        self.write_letters(&bad, refused)
    }

    fn write_letters(&self, bad: &[Refused<'_>], out: &mut Vec<u8>) -> Result<(), ConnectError> {
        match bad.iter().find(|row| !row.letter(out)) {
            Some(row) => Err(ConnectError::Failed(format!(
                "{}: table {}: a dead letter is refused: {}",
                self.owner.place, self.owner.table, row.why
            ))),
            None => Ok(()),
        }
    }
}

impl Sink for BigQuerySink {
    fn open(&mut self, incarnation: u64, stored: Option<Cursor>) -> Result<Option<Cursor>, ConnectError> {
        self.open = None;
        self.refused.clear();
        let client = self.dataset.connect()?;
        let Claimed { is_lost, had_mark } = client.run(self.claim(&client, incarnation, stored))?;
        let found = (!is_lost).then(|| stored.unwrap_or_default());
        let standing = Standing::new(incarnation, found.unwrap_or_default());
        self.open = Some(Open { standing, client, is_lost, had_mark, link: None, there: None });
        Ok(found)
    }

    /// Nothing shows without a query that costs, and that sees what is as old as the table lets it be.
    fn witness(&self) -> Result<Option<u64>, ConnectError> {
        Ok(None)
    }

    /// A table knows whose each row is. What is asked is whether the service is there at all, before anything is destroyed elsewhere.
    fn is_ours(&self, _: Option<Cursor>) -> Result<(), ConnectError> {
        self.mark_there().map(drop)
    }

    fn probe(&self, stored: Option<Cursor>) -> Result<(), ConnectError> {
        let expected = stored.is_some_and(|c| c.epoch > 0);
        self.ask(async |client| {
            let found = client.table(&self.owner.table).await?;
            let mark = match &found {
                None => None,
                Some(found) => self.check(found).map(|_| Mark::of(found, &self.label))?,
            };
            match mark {
                None if expected => Err(self.gone()),
                Some(mark) if mark.is_lost && expected => Err(self.gone()),
                _ => Ok(()),
            }
        })
    }

    fn take_back(
        &mut self,
        incarnation: u64,
        _: u64,
        stored: Option<Cursor>,
    ) -> Result<TakenBack, ConnectError> {
        self.open(incarnation, stored)?;
        // Opened anew by the next run.
        self.open = None;
        Ok(TakenBack::Stays)
    }

    fn deliver(&mut self, outbox: &Outbox<'_>) -> Result<Cursor, ConnectError> {
        let Some(open) = &self.open else { return Err(self.owner.not_open()) };
        self.refused.clear();
        if open.standing.has(outbox) {
            return Ok(open.standing.cursor);
        }
        let with_rows = self.content.is_in(outbox);
        if with_rows {
            self.apply(outbox)?;
        }
        let Some(open) = &mut self.open else { return Err(self.owner.not_open()) };
        Ok(open.standing.confirm(outbox, with_rows))
    }

    fn take_refused(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.refused)
    }

    fn refuses_rows(&self) -> bool {
        matches!(self.content, Content::Sessions(_))
    }

    fn delete_all(&mut self) -> Result<(), ConnectError> {
        let had_mark = match &self.open {
            Some(open) => open.had_mark,
            None => self.mark_there()?.is_some(),
        };
        if had_mark {
            return Err(self.not_emptied());
        }
        // Nothing was written; whoever opens it next finds it so.
        match self.open.take() {
            Some(open) => open.client.run(self.unmark(&open.client)),
            None => Ok(()),
        }
    }
}
