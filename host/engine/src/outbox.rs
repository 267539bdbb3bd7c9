//! What an epoch sends: session revisions in a flat encoding and dead letters as JSON lines.
//!
//! The bytes in the epoch record are the bytes that sinks read: encoded once, at the fold.

use crate::time::EventTime;

/// What a revision says about its session (SEMANTICS 14).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum Stage {
    /// Known so far; may change.
    Early = 0,
    /// Closed, and no input without lateness can change it.
    Final = 1,
    /// Was final and changed within the lateness.
    Corrected = 2,
    /// Is no more; stays as a marked row so that nothing lower revives it.
    Retracted = 3,
}

impl Stage {
    /// All stages in order.
    pub const ALL: [Stage; 4] = [Stage::Early, Stage::Final, Stage::Corrected, Stage::Retracted];
    /// The word that config and rows use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Early => "early",
            Stage::Final => "final",
            Stage::Corrected => "corrected",
            Stage::Retracted => "retracted",
        }
    }
    /// The stage with this word.
    #[must_use]
    pub fn from_name(s: &str) -> Option<Stage> {
        Stage::ALL.into_iter().find(|x| x.name() == s)
    }
    pub(crate) fn from_u8(b: u8) -> Option<Stage> {
        Stage::ALL.get(b as usize).copied()
    }
}

/// A set of stages: which revisions a sink takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stages(u8);

impl Stages {
    /// Every stage.
    pub const ALL: Stages = Stages(0b1111);
    /// The set of these stages.
    #[must_use]
    pub fn of(list: &[Stage]) -> Stages {
        Stages(list.iter().fold(0, |m, s| m | 1 << *s as u8))
    }
    /// Whether the set has the stage.
    #[must_use]
    pub const fn has(self, s: Stage) -> bool {
        self.0 & (1 << s as u8) != 0
    }
}

/// Which version of a session a row is; of two the higher holds (SEMANTICS 15).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Revision {
    /// The start of the process that produced it.
    pub incarnation: u64,
    /// The epoch that produced it.
    pub epoch: u64,
}

impl Revision {
    /// Appends it, as it stands before a row of another epoch.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.incarnation.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
    }
}

/// One revision of one session, without its [`Revision`]: whoever folds does not know it yet.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SessionRow<'a> {
    /// First 128 bits of SHA-256 over pipeline, key, anchor time and anchor id.
    pub id: [u8; 16],
    /// The key as a reader sees it: text as in the record, several fields as a JSON array, hex if hashed.
    pub key: &'a str,
    /// Time of the first event.
    pub start: EventTime,
    /// Time of the last event.
    pub end: EventTime,
    /// Number of events.
    pub events: u64,
    /// What the revision says.
    pub stage: Stage,
    /// Why the session closed; `None` while it is open.
    pub reason: Option<&'a str>,
    /// `name@version` of the rule in force.
    pub plugin: &'a str,
    /// JSON object of the rule's own fields.
    pub fields: &'a str,
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend_from_slice(&(s.len() as u32).to_le_bytes());
    out.extend_from_slice(s.as_bytes());
}

impl SessionRow<'_> {
    /// Appends the row to an outbox.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id);
        out.push(self.stage as u8);
        out.push(u8::from(self.reason.is_some()));
        out.extend_from_slice(&self.start.ms().to_le_bytes());
        out.extend_from_slice(&self.end.ms().to_le_bytes());
        out.extend_from_slice(&self.events.to_le_bytes());
        put_str(out, self.key);
        put_str(out, self.reason.unwrap_or_default());
        put_str(out, self.plugin);
        put_str(out, self.fields);
    }
}

/// Reads the rows of an outbox; ends at the first byte that is no row (the record's checksum vouches for the rest).
#[derive(Clone, Debug)]
pub struct RowIter<'a>(&'a [u8]);

impl<'a> RowIter<'a> {
    /// Over rows as [`SessionRow::encode`] writes them.
    #[must_use]
    pub const fn new(rows: &'a [u8]) -> Self {
        RowIter(rows)
    }
    /// The rows, each with the bytes that it was read from.
    pub fn with_bytes(mut self) -> impl Iterator<Item = (&'a [u8], SessionRow<'a>)> {
        std::iter::from_fn(move || {
            let before = self.0;
            let row = self.next()?;
            Some((&before[..before.len() - self.0.len()], row))
        })
    }
    fn revision(&mut self) -> Option<Revision> {
        Some(Revision { incarnation: self.i64()? as u64, epoch: self.i64()? as u64 })
    }
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (a, b) = self.0.split_at_checked(n)?;
        self.0 = b;
        Some(a)
    }
    fn i64(&mut self) -> Option<i64> {
        self.take(8).and_then(|b| b.try_into().ok()).map(i64::from_le_bytes)
    }
    fn str(&mut self) -> Option<&'a str> {
        let n = self.take(4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)?;
        std::str::from_utf8(self.take(n as usize)?).ok()
    }
}

impl<'a> Iterator for RowIter<'a> {
    type Item = SessionRow<'a>;
    fn next(&mut self) -> Option<SessionRow<'a>> {
        let id = self.take(16)?.try_into().ok()?;
        let stage = Stage::from_u8(self.take(1)?[0])?;
        let closed = self.take(1)?[0] != 0;
        let start = EventTime::from_ms(self.i64()?);
        let end = EventTime::from_ms(self.i64()?);
        let events = self.i64()? as u64;
        let key = self.str()?;
        let reason = self.str()?;
        let plugin = self.str()?;
        let fields = self.str()?;
        Some(SessionRow {
            id,
            key,
            start,
            end,
            events,
            stage,
            reason: closed.then_some(reason),
            plugin,
            fields,
        })
    }
}

/// What one committed epoch sends.
#[derive(Clone, Copy, Debug)]
pub struct Outbox<'a> {
    /// The incarnation that sends it.
    pub incarnation: u64,
    /// The epoch.
    pub epoch: u64,
    rows: &'a [u8],
    letters: &'a [u8],
    enriched: &'a [u8],
}

impl<'a> Outbox<'a> {
    /// Over the sections of an epoch record.
    #[must_use]
    pub const fn new(incarnation: u64, epoch: u64, rows: &'a [u8], letters: &'a [u8]) -> Self {
        Outbox { incarnation, epoch, rows, letters, enriched: &[] }
    }
    /// The same with rows that earlier epochs produced, each with its revision before it.
    #[must_use]
    pub const fn with_enriched(self, enriched: &'a [u8]) -> Self {
        Outbox { enriched, ..self }
    }
    /// The session revisions with these stages; at most one per session id.
    pub fn sessions(&self, stages: Stages) -> impl Iterator<Item = (Revision, SessionRow<'a>)> + use<'a> {
        let own = Revision { incarnation: self.incarnation, epoch: self.epoch };
        let mut earlier = RowIter(self.enriched);
        let enriched = std::iter::from_fn(move || Some((earlier.revision()?, earlier.next()?)));
        RowIter(self.rows).map(move |r| (own, r)).chain(enriched).filter(move |(_, r)| stages.has(r.stage))
    }
    /// The dead letters: JSON, one object a line, each line ended by `\n`.
    #[must_use]
    pub const fn letters(&self) -> &'a [u8] {
        self.letters
    }
    /// Whether there is nothing to send.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.letters.is_empty() && self.enriched.is_empty()
    }
}

/// A session id as rows show it: 32 hex digits.
#[must_use]
pub fn hex(id: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    id.iter().flat_map(|b| [DIGITS[(b >> 4) as usize] as char, DIGITS[(b & 15) as usize] as char]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_known_by_its_word() {
        assert_eq!(Stage::ALL.map(|s| Stage::from_name(s.name())), Stage::ALL.map(Some));
        assert_eq!(["", "Early", "last"].map(Stage::from_name), [None; 3]);
    }

    #[test]
    fn rows_come_back_as_they_were_written() {
        let row = SessionRow {
            id: [7; 16],
            key: "käthe",
            start: EventTime::from_ms(-5),
            end: EventTime::from_ms(9),
            events: 3,
            stage: Stage::Corrected,
            reason: Some("gap"),
            plugin: "builtin:gap@1",
            fields: "{}",
        };
        let open = SessionRow { stage: Stage::Early, reason: None, ..row };
        let mut b = Vec::new();
        row.encode(&mut b);
        open.encode(&mut b);
        let o = Outbox::new(1, 2, &b, b"");
        let own = Revision { incarnation: 1, epoch: 2 };
        assert_eq!(o.sessions(Stages::ALL).collect::<Vec<_>>(), [(own, row), (own, open)]);
        assert_eq!(o.sessions(Stages::of(&[Stage::Early])).collect::<Vec<_>>(), [(own, open)]);
        assert!(!o.is_empty());
        // A row of an earlier epoch keeps its revision.
        let earlier = Revision { incarnation: 0, epoch: 1 };
        let mut e = Vec::new();
        earlier.encode(&mut e);
        row.encode(&mut e);
        let o = Outbox::new(1, 2, b"", b"").with_enriched(&e);
        assert_eq!(o.sessions(Stages::ALL).collect::<Vec<_>>(), [(earlier, row)]);
        assert!(!o.is_empty());
    }
}
