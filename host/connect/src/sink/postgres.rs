//! A Postgres table of sessions, or of dead letters.
//!
//! Invariants: one epoch is one transaction, and the cursor moves in it, so a row and the word that it was delivered are durable
//! together. A row changes only for a higher (incarnation, epoch), so any epoch may be offered again in any order, and so
//! may one whose answer was lost. The cursor row names the incarnation that may write; every transaction changes it
//! first, so an older process that still lives writes nothing more, and two transactions of one sink, of which one was given up by
//! its client but not yet by the server, wait for each other. A retraction changes only stage and revision.
//!
//! A connection that failed is hung up; the next try opens another and, before it writes, looks whether the table is still as it
//! was left: a server that came back from an older copy, or another that took over without the last epochs, is refused.

mod table;
mod values;

use self::table::{LETTERS, Names, SESSIONS, Shape, kind_of};
use super::bounds::{BYTES_AT_ONCE, ROWS_AT_ONCE, SWEEP_MS};
use super::content::Content;
use super::owned::{Owner, Standing, begins_at, int};
use super::{Sink, TakenBack, line};
use crate::postgres::{Asking, Connection, Server};
use crate::{ConnectError, Cursor};
use std::time::Duration;
use tidemill_engine::outbox::{Outbox, Revision, SessionRow, Stage, Stages};
use tokio_postgres::Statement;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::ToSql;

/// Writes into one table of a Postgres database.
pub struct PostgresSink {
    server: Server,
    names: Names,
    owner: Owner,
    content: Content,
    /// `None` before `open`.
    open: Option<Open>,
}

struct Open {
    standing: Standing,
    /// `None` after a failure.
    link: Option<Link>,
}

/// A connection, ready for epochs.
struct Link {
    connection: Connection,
    statements: Statements,
}

struct Statements {
    advance: Statement,
    copy: Statement,
    /// Takes what is staged: revisions that do not retract, or letters.
    take: Statement,
    /// Takes those that retract.
    retract: Option<Statement>,
}

/// How often an epoch is tried again at once because the schema has changed under it: somebody may be at it, step by step.
const SCHEMA_TRIES: u32 = 2;

/// The row of the cursor: pipeline, sink and table name it.
const WHOSE: &str = "pipeline = $1 AND sink = $2 AND table_name = $3";

impl PostgresSink {
    /// A sink for a pipeline's revisions with these stages; `pipeline` and `sink` name whose rows and cursor these are. `table` may
    /// have a schema before a dot.
    #[must_use]
    pub fn sessions(
        server: Server,
        table: String,
        pipeline: String,
        sink: String,
        stages: Stages,
    ) -> PostgresSink {
        PostgresSink::new(server, table, pipeline, sink, Content::Sessions(stages))
    }

    /// A sink for dead letters.
    #[must_use]
    pub fn letters(server: Server, table: String, pipeline: String, sink: String) -> PostgresSink {
        PostgresSink::new(server, table, pipeline, sink, Content::Letters)
    }

    fn new(server: Server, table: String, pipeline: String, sink: String, content: Content) -> PostgresSink {
        let names = Names::of(&table);
        let owner = Owner { place: server.address().to_owned(), table, pipeline, sink };
        PostgresSink { server, names, owner, content, open: None }
    }

    fn shape(&self) -> &'static Shape {
        match self.content {
            Content::Sessions(_) => &SESSIONS,
            Content::Letters => &LETTERS,
        }
    }

    /// Does something over a connection of its own.
    fn ask<T>(
        &self,
        work: impl AsyncFnOnce(&Asking<'_>) -> Result<T, ConnectError>,
    ) -> Result<T, ConnectError> {
        let connection = self.server.connect()?;
        connection.run(work).map_err(|e| connection.hang_up(e))
    }

    /// The incarnation and epoch of the cursor row; an epoch of none is lost.
    async fn cursor_row(
        &self,
        asking: &Asking<'_>,
        lock: &str,
    ) -> Result<Option<(i64, Option<i64>)>, ConnectError> {
        let sql = format!("SELECT incarnation, epoch FROM {} WHERE {WHOSE}{lock}", self.names.cursor);
        let (pipeline, sink, table) = self.owner.who();
        let row = asking.within(asking.client.query_opt(&sql, &[&pipeline, &sink, &table])).await?;
        let values = |r: tokio_postgres::Row| Ok((r.try_get(0)?, r.try_get(1)?));
        row.map(values).transpose().map_err(|e| asking.kind(&e))
    }

    /// The epoch of the cursor row; none if there is no such row, or it is marked as lost.
    async fn own_epoch(&self, asking: &Asking<'_>) -> Result<Option<u64>, ConnectError> {
        if kind_of(asking, &self.names.cursor).await?.is_none() {
            return Ok(None);
        }
        let row = self.cursor_row(asking, "").await?;
        Ok(row.and_then(|r| r.1).map(|e| e.max(0) as u64))
    }

    /// Creates what is missing, takes the fence and returns the epoch that the cursor row holds.
    async fn claim(
        &self,
        asking: &Asking<'_>,
        incarnation: u64,
        stored: Option<Cursor>,
    ) -> Result<Option<u64>, ConnectError> {
        asking.within(asking.client.batch_execute("BEGIN")).await?;
        let is_new = self.shape().create(asking, &self.names, &self.owner.place).await?;
        let row = self.cursor_row(asking, " FOR UPDATE").await?;
        if let Some((theirs, _)) = row {
            self.owner.may_claim(theirs, incarnation)?;
        }
        // A table that was just made has nothing of what its cursor says.
        let epoch = begins_at(row.and_then(|r| r.1).filter(|_| !is_new), stored);
        self.put_cursor(asking, incarnation, epoch).await?;
        asking.within(asking.client.batch_execute("COMMIT")).await?;
        Ok(epoch.map(|e| e.max(0) as u64))
    }

    async fn put_cursor(
        &self,
        asking: &Asking<'_>,
        incarnation: u64,
        epoch: Option<i64>,
    ) -> Result<(), ConnectError> {
        let sql = format!(
            "INSERT INTO {} VALUES ($1, $2, $3, $4, $5) ON CONFLICT (pipeline, sink, table_name) DO UPDATE SET \
             incarnation = excluded.incarnation, epoch = excluded.epoch",
            self.names.cursor
        );
        let (pipeline, sink, table) = self.owner.who();
        let values: [&(dyn ToSql + Sync); 5] = [&pipeline, &sink, &table, &int(incarnation), &epoch];
        asking.within(asking.client.execute(&sql, &values)).await.map(drop)
    }

    async fn prepare(&self, asking: &Asking<'_>) -> Result<Statements, ConnectError> {
        let (shape, client) = (self.shape(), asking.client);
        // An epoch that is confirmed has to survive a crash of the server, whatever its default is.
        let durable = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";
        asking.within(client.batch_execute(&format!("{durable}; {}", shape.stage()))).await?;
        let advance =
            format!("UPDATE {} SET epoch = $5 WHERE {WHOSE} AND incarnation = $4", self.names.cursor);
        let (take, retract) = match self.content {
            Content::Sessions(_) => (shape.upsert(&self.names, false), Some(shape.upsert(&self.names, true))),
            Content::Letters => (shape.add(&self.names), None),
        };
        let retract = match retract {
            Some(sql) => Some(asking.within(client.prepare(&sql)).await?),
            None => None,
        };
        Ok(Statements {
            advance: asking.within(client.prepare(&advance)).await?,
            copy: asking.within(client.prepare(shape.copy())).await?,
            take: asking.within(client.prepare(&take)).await?,
            retract,
        })
    }

    /// Connects anew, to a table that is as it was left.
    fn reconnect(&self, standing: &Standing) -> Result<Link, ConnectError> {
        let connection = self.server.connect().map_err(|e| match e {
            // It has worked with this very config: what refuses it now may let it in again.
            ConnectError::Config(why) => ConnectError::Unavailable(why),
            other => other,
        })?;
        let looked = connection.run(async |asking| {
            asking.within(asking.client.batch_execute("BEGIN")).await?;
            let row = self.cursor_row(asking, "").await?.filter(|r| r.0 == int(standing.incarnation));
            let Some((_, epoch)) = row else { return Err(self.owner.fenced()) };
            self.owner.against(epoch.map_or(0, |e| e.max(0) as u64), Some(standing.cursor))?;
            self.shape().mend(asking, &self.names, &self.owner.place).await?;
            asking.within(asking.client.batch_execute("COMMIT")).await?;
            self.prepare(asking).await
        });
        match looked {
            Ok(statements) => Ok(Link { connection, statements }),
            Err(e) => Err(connection.hang_up(e)),
        }
    }

    /// One epoch in one transaction, whatever the cursor says.
    fn apply(&mut self, outbox: &Outbox<'_>) -> Result<(), ConnectError> {
        for _ in 0..SCHEMA_TRIES {
            match self.try_apply(outbox) {
                // The schema is not what it was: a new connection mends what may be mended, or says what is wrong.
                Err(ConnectError::Config(_)) => {}
                done => return done,
            }
        }
        self.try_apply(outbox)
    }

    fn try_apply(&mut self, outbox: &Outbox<'_>) -> Result<(), ConnectError> {
        let Some(mut open) = self.open.take() else { return Err(self.owner.not_open()) };
        let done = self.try_with(&mut open, outbox);
        self.open = Some(open);
        done
    }

    fn try_with(&self, open: &mut Open, outbox: &Outbox<'_>) -> Result<(), ConnectError> {
        // One that was closed while there was nothing to do is no failure.
        let link = match open.link.take().filter(|link| !link.connection.is_closed()) {
            Some(link) => link,
            None => self.reconnect(&open.standing)?,
        };
        let incarnation = open.standing.incarnation;
        let done = link
            .connection
            .run(async |asking| self.write(asking, &link.statements, incarnation, outbox).await);
        match done {
            Ok(()) => {
                open.link = Some(link);
                Ok(())
            }
            Err(e) => Err(link.connection.hang_up(e)),
        }
    }

    async fn write(
        &self,
        asking: &Asking<'_>,
        statements: &Statements,
        incarnation: u64,
        outbox: &Outbox<'_>,
    ) -> Result<(), ConnectError> {
        let client = asking.client;
        asking.within(client.batch_execute("BEGIN")).await?;
        let (pipeline, sink, table) = self.owner.who();
        let values: [&(dyn ToSql + Sync); 5] =
            [&pipeline, &sink, &table, &int(incarnation), &int(outbox.epoch)];
        if asking.within(client.execute(&statements.advance, &values)).await? != 1 {
            return Err(self.owner.fenced());
        }
        match self.content {
            Content::Sessions(stages) => self.write_sessions(asking, statements, outbox, stages).await?,
            Content::Letters => self.write_letters(asking, statements, outbox).await?,
        }
        asking.within(client.batch_execute("COMMIT")).await
    }

    async fn write_sessions(
        &self,
        asking: &Asking<'_>,
        statements: &Statements,
        outbox: &Outbox<'_>,
        stages: Stages,
    ) -> Result<(), ConnectError> {
        let mut rows = outbox.sessions(stages).peekable();
        let mut number = 0;
        while rows.peek().is_some() {
            let mut copy = Staging::begin(self.shape(), asking, statements, number == 0).await?;
            let (mut retracts, mut others) = (false, false);
            while let Some((revision, row)) = rows.next_if(|_| copy.has_room()) {
                let retraction = row.stage == Stage::Retracted;
                (retracts, others) = (retracts | retraction, others | !retraction);
                copy.session(number, &self.owner.pipeline, revision, &row).await?;
                number += 1;
            }
            copy.end().await?;
            if others {
                asking.within(asking.client.execute(&statements.take, &[])).await?;
            }
            if let Some(retract) = statements.retract.as_ref().filter(|_| retracts) {
                asking.within(asking.client.execute(retract, &[])).await?;
            }
        }
        Ok(())
    }

    async fn write_letters(
        &self,
        asking: &Asking<'_>,
        statements: &Statements,
        outbox: &Outbox<'_>,
    ) -> Result<(), ConnectError> {
        let text = String::from_utf8_lossy(outbox.letters());
        let mut lines = text.lines().peekable();
        let mut number = 0;
        while lines.peek().is_some() {
            let mut copy = Staging::begin(self.shape(), asking, statements, number == 0).await?;
            while let Some(letter) = lines.next_if(|_| copy.has_room()) {
                copy.letter(number, &self.owner.pipeline, outbox, letter).await?;
                number += 1;
            }
            copy.end().await?;
            asking.within(asking.client.execute(&statements.take, &[])).await?;
        }
        Ok(())
    }

    /// Marks or deletes rows of the pipeline in the transaction that is open; how many.
    async fn sweep(
        &self,
        asking: &Asking<'_>,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, ConnectError> {
        asking
            .within(asking.client.batch_execute(&format!("SET LOCAL statement_timeout = {SWEEP_MS}")))
            .await?;
        asking.within_limit(Duration::from_millis(SWEEP_MS), asking.client.execute(sql, values)).await
    }

    async fn take_back_rows(
        &self,
        asking: &Asking<'_>,
        incarnation: u64,
        cut: u64,
    ) -> Result<u64, ConnectError> {
        let (incarnation, cut) = (int(incarnation), int(cut));
        let (pipeline, sink, table) = self.owner.who();
        asking.within(asking.client.batch_execute("BEGIN")).await?;
        let rows = match self.content {
            Content::Sessions(_) => {
                let sql = format!(
                    "UPDATE {} SET stage = $1, incarnation = $2, epoch = $3 \
                     WHERE pipeline = $4 AND epoch > $3 AND stage <> $1",
                    self.names.table
                );
                self.sweep(asking, &sql, &[&Stage::Retracted.name(), &incarnation, &cut, &pipeline]).await?
            }
            Content::Letters => {
                let sql = format!("DELETE FROM {} WHERE pipeline = $1 AND epoch > $2", self.names.table);
                self.sweep(asking, &sql, &[&pipeline, &cut]).await?
            }
        };
        let sql = format!(
            "UPDATE {} SET epoch = least(epoch, $5) WHERE {WHOSE} AND incarnation = $4",
            self.names.cursor
        );
        let values: [&(dyn ToSql + Sync); 5] = [&pipeline, &sink, &table, &incarnation, &cut];
        asking.within(asking.client.execute(&sql, &values)).await?;
        asking.within(asking.client.batch_execute("COMMIT")).await?;
        Ok(rows)
    }

    /// Deletes the pipeline's rows and its cursor; an open sink keeps its fence.
    async fn delete_rows(&self, asking: &Asking<'_>, incarnation: Option<u64>) -> Result<(), ConnectError> {
        let (pipeline, sink, table) = self.owner.who();
        asking.within(asking.client.batch_execute("BEGIN")).await?;
        if kind_of(asking, &self.names.cursor).await?.is_some() {
            let held = self.cursor_row(asking, " FOR UPDATE").await?.map(|r| r.0);
            if incarnation.is_some_and(|i| held != Some(int(i))) {
                return Err(self.owner.fenced());
            }
            let sql = format!("DELETE FROM {} WHERE {WHOSE}", self.names.cursor);
            asking.within(asking.client.execute(&sql, &[&pipeline, &sink, &table])).await?;
        }
        if kind_of(asking, &self.names.table).await?.is_some() {
            self.shape().check(asking, &self.names, &self.owner.place).await?;
            let sql = format!("DELETE FROM {} WHERE pipeline = $1", self.names.table);
            self.sweep(asking, &sql, &[&pipeline]).await?;
        }
        if let Some(incarnation) = incarnation {
            self.put_cursor(asking, incarnation, Some(0)).await?;
        }
        asking.within(asking.client.batch_execute("COMMIT")).await
    }
}

impl Sink for PostgresSink {
    fn open(&mut self, incarnation: u64, stored: Option<Cursor>) -> Result<Option<Cursor>, ConnectError> {
        self.open = None;
        let connection = self.server.connect()?;
        let opened = connection.run(async |asking| {
            let epoch = self.claim(asking, incarnation, stored).await?;
            let found = epoch.map(|own| self.owner.against(own, stored)).transpose()?;
            Ok((found, self.prepare(asking).await?))
        });
        let (found, statements) = match opened {
            Ok(opened) => opened,
            Err(e) => return Err(connection.hang_up(e)),
        };
        let standing = Standing::new(incarnation, found.unwrap_or_default());
        self.open = Some(Open { standing, link: Some(Link { connection, statements }) });
        Ok(found)
    }

    fn witness(&self) -> Result<Option<u64>, ConnectError> {
        self.ask(async |asking| self.own_epoch(asking).await)
    }

    /// A table knows whose each row is. What is asked is whether the server is there at all, before anything is destroyed elsewhere.
    fn is_ours(&self, _: Option<Cursor>) -> Result<(), ConnectError> {
        self.server.connect().map(drop)
    }

    fn probe(&self, stored: Option<Cursor>) -> Result<(), ConnectError> {
        self.ask(async |asking| {
            // A table that is gone has nothing of what its cursor says.
            let mut own = None;
            if kind_of(asking, &self.names.table).await?.is_some() {
                self.shape().check(asking, &self.names, &self.owner.place).await?;
                own = self.own_epoch(asking).await?;
            }
            self.owner.look(own, stored)
        })
    }

    fn take_back(
        &mut self,
        incarnation: u64,
        cut: u64,
        stored: Option<Cursor>,
    ) -> Result<TakenBack, ConnectError> {
        self.open(incarnation, stored)?;
        // Opened anew by the next run, which reads the cursor again.
        let Some(Open { link: Some(link), .. }) = self.open.take() else { return Err(self.owner.not_open()) };
        match link.connection.run(async |asking| self.take_back_rows(asking, incarnation, cut).await) {
            Ok(rows) => Ok(TakenBack::Retracted(rows)),
            Err(e) => Err(link.connection.hang_up(e)),
        }
    }

    fn deliver(&mut self, outbox: &Outbox<'_>) -> Result<Cursor, ConnectError> {
        let Some(open) = &self.open else { return Err(self.owner.not_open()) };
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

    fn delete_all(&mut self) -> Result<(), ConnectError> {
        let incarnation = self.open.as_ref().map(|open| open.standing.incarnation);
        self.ask(async |asking| self.delete_rows(asking, incarnation).await)?;
        if let Some(open) = &mut self.open {
            open.standing.start_over();
        }
        Ok(())
    }
}

/// Rows on their way into the staging table.
struct Staging<'a> {
    asking: &'a Asking<'a>,
    writer: std::pin::Pin<Box<BinaryCopyInWriter>>,
    rows: usize,
    bytes: usize,
}

impl<'a> Staging<'a> {
    /// The first of a transaction finds the staging table empty.
    async fn begin(
        shape: &Shape,
        asking: &'a Asking<'_>,
        statements: &Statements,
        is_first: bool,
    ) -> Result<Staging<'a>, ConnectError> {
        if !is_first {
            asking.within(asking.client.batch_execute("TRUNCATE pg_temp.tidemill_staging")).await?;
        }
        let sink = asking.within(asking.client.copy_in(&statements.copy)).await?;
        let writer = Box::pin(BinaryCopyInWriter::new(sink, &shape.types()));
        Ok(Staging { asking, writer, rows: 0, bytes: 0 })
    }

    fn has_room(&self) -> bool {
        self.rows < ROWS_AT_ONCE && self.bytes < BYTES_AT_ONCE
    }

    async fn session(
        &mut self,
        number: i64,
        pipeline: &str,
        revision: Revision,
        row: &SessionRow<'_>,
    ) -> Result<(), ConnectError> {
        let id = line::hex_id(row.id);
        // Hex digits are always text.
        let id = std::str::from_utf8(&id).unwrap_or_default();
        let (key, reason) = (values::text(row.key), row.reason.map(values::text));
        let (plugin, fields) = (values::text(row.plugin), values::json(row.fields));
        let values: [&(dyn ToSql + Sync); 13] = [
            &number,
            &id,
            &pipeline,
            &key,
            &values::instant(row.start),
            &values::instant(row.end),
            &int(row.events),
            &row.stage.name(),
            &int(revision.incarnation),
            &int(revision.epoch),
            &reason,
            &plugin,
            &fields,
        ];
        self.put(&values, row.key.len() + row.fields.len()).await
    }

    async fn letter(
        &mut self,
        number: i64,
        pipeline: &str,
        outbox: &Outbox<'_>,
        letter: &str,
    ) -> Result<(), ConnectError> {
        let text = values::json(letter);
        let values: [&(dyn ToSql + Sync); 5] =
            [&number, &pipeline, &int(outbox.incarnation), &int(outbox.epoch), &text];
        self.put(&values, letter.len()).await
    }

    async fn put(&mut self, values: &[&(dyn ToSql + Sync)], bytes: usize) -> Result<(), ConnectError> {
        self.rows += 1;
        self.bytes += bytes;
        self.asking.within(self.writer.as_mut().write(values)).await
    }

    async fn end(mut self) -> Result<(), ConnectError> {
        self.asking.within(self.writer.as_mut().finish()).await.map(drop)
    }
}
