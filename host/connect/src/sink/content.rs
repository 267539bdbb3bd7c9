//! What a sink of a service takes of an epoch: revisions with some stages, or dead letters; and what becomes of one that the service
//! refuses.

#[cfg(feature = "bigquery")]
use tidemill_engine::letter::RevisionLetter;
use tidemill_engine::outbox::{Outbox, Stages};
#[cfg(feature = "bigquery")]
use tidemill_engine::outbox::{Revision, SessionRow};

/// See the module's documentation.
#[derive(Clone, Copy)]
pub(super) enum Content {
    Sessions(Stages),
    Letters,
}

impl Content {
    /// Whether an epoch has any of it.
    pub(super) fn is_in(self, outbox: &Outbox<'_>) -> bool {
        match self {
            Content::Sessions(stages) => outbox.sessions(stages).next().is_some(),
            Content::Letters => !outbox.letters().is_empty(),
        }
    }

    /// All that an epoch has of it, in its order, which is the same whenever it is asked for.
    #[cfg(feature = "bigquery")]
    pub(super) fn items<'a>(self, outbox: &Outbox<'a>) -> Box<dyn Iterator<Item = Item<'a>> + 'a> {
        match self {
            Content::Sessions(stages) => {
                Box::new(outbox.sessions(stages).map(|(revision, row)| Item::Session(revision, row)))
            }
            Content::Letters => {
                let revision = Revision { incarnation: outbox.incarnation, epoch: outbox.epoch };
                let numbered = (0..).zip(letter_lines(outbox));
                Box::new(numbered.map(move |(number, line)| Item::Letter(revision, number, line)))
            }
        }
    }
}

/// The dead letters of an epoch, each without its line end.
pub(super) fn letter_lines<'a>(outbox: &Outbox<'a>) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    outbox.letters().split(|b| *b == b'\n').filter(|line| !line.is_empty())
}

/// What is sent by itself.
#[cfg(feature = "bigquery")]
#[derive(Clone, Copy)]
pub(super) enum Item<'a> {
    Session(Revision, SessionRow<'a>),
    /// A dead letter and its number in its epoch.
    Letter(Revision, i64, &'a [u8]),
}

#[cfg(feature = "bigquery")]
impl Item<'_> {
    /// The dead letter of one that is refused; none, and false, if it is one itself.
    pub(super) fn refused(&self, message: &str, out: &mut Vec<u8>) -> bool {
        let Item::Session(revision, row) = *self else { return false };
        let letter =
            RevisionLetter { reason: "row_refused", stage: "sink", message, enricher: None, revision, row };
        letter.write(out);
        true
    }
}

/// A row of a test.
#[cfg(all(test, feature = "bigquery"))]
pub(super) fn row(id: u8, fields: &str) -> SessionRow<'_> {
    use tidemill_engine::{outbox::Stage, time::EventTime};
    SessionRow {
        id: [id; 16],
        key: "k",
        start: EventTime::from_ms(0),
        end: EventTime::from_ms(1),
        events: 1,
        stage: Stage::Final,
        reason: None,
        plugin: "p@1",
        fields,
    }
}
