//! Enrichers under test.

use super::{configured, fail, good, noon};
use crate::record::Tested;
use crate::{Desk, Enricher, Fields, Names};
use std::collections::BTreeMap;
use tidemill_contract::frame::{Frame, FrameWriter, Kind};
use tidemill_contract::rows::{self, Range};

/// An enricher under test, with the rows that its lookups find; see [`Enricher`].
///
/// ```
/// use tidemill_plugin_sdk::prelude::*;
/// use tidemill_plugin_sdk::scenario::Lookups;
/// # struct Country;
/// # #[derive(Lookup, Clone, Copy)] enum Table { Visitor }
/// # #[derive(Reason, Clone, Copy)] enum Why { Blocked }
/// # impl Enricher for Country {
/// #     type Config = (); type Lookup = Table; type Reason = Why;
/// #     fn configure((): ()) -> Result<Self, Vec<ConfigError>> { Ok(Country) }
/// #     fn requests(&self, session: &Session, ask: &mut Requests<Table>) { ask.lookup(Table::Visitor, session.key()); }
/// #     fn apply(&self, _: &mut Enriching<Self>, _: &Session, answers: &Answers<Table>) -> Result<Fields, Rejected<Why>> {
/// #         ensure(answers.text(Table::Visitor, "blocked").is_none(), Why::Blocked, || "")?;
/// #         Ok(fields! { country: answers.text(Table::Visitor, "country") })
/// #     }
/// # }
/// let e = Lookups::<Country>::new("{}")
///     .row("visitor", "alice", fields! { country: "NL" })
///     .row("visitor", "mallory", fields! { blocked: "yes" });
/// assert_eq!(e.enrich("alice", fields! {}).to_json(), r#"{"country":"NL"}"#);
/// assert_eq!(e.result("bob", &fields! { pages: 3 }), Ok(r#"{"country":null}"#.to_owned()));
/// assert_eq!(e.result("mallory", &fields! {}), Err("blocked"));
/// ```
#[derive(Debug)]
pub struct Lookups<E: Enricher> {
    config: String,
    rows: BTreeMap<(u32, String), String>,
    enricher: std::marker::PhantomData<fn() -> E>,
}

impl<E: Enricher> Lookups<E> {
    /// Under this config (JSON), with no rows.
    #[track_caller]
    #[must_use]
    pub fn new(config: &str) -> Self {
        let _ = configured::<E::Config, E>(Tested::enricher::<E>(), config, E::configure);
        Lookups { config: config.into(), rows: BTreeMap::new(), enricher: std::marker::PhantomData }
    }
    /// A lookup finds this row for this key.
    ///
    /// # Panics
    /// If there is no such lookup.
    #[track_caller]
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "reads better at every call")]
    pub fn row(mut self, lookup: &str, key: &str, row: Fields) -> Self {
        let place = E::Lookup::NAMES.iter().position(|n| *n == lookup);
        let Some(place) = place else { fail(&format!("there is no lookup `{lookup}`")) };
        self.rows.insert((place as u32, key.into()), row.to_json());
        self
    }
    /// The fields that a session of this key, with these fields, is given.
    ///
    /// # Panics
    /// If it is refused instead.
    #[track_caller]
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "reads better at every call")]
    pub fn enrich(&self, key: &str, fields: Fields) -> Fields {
        match self.result(key, &fields) {
            Ok(json) => Fields::from_object(json),
            Err(reason) => fail(&format!("the session is refused: {reason}")),
        }
    }
    /// The fields that a session is given, as JSON, or the name of the reason for which it is refused.
    ///
    /// # Errors
    /// The name of that reason.
    #[track_caller]
    pub fn result(&self, key: &str, fields: &Fields) -> Result<String, &'static str> {
        let enricher = configured::<E::Config, E>(Tested::enricher::<E>(), &self.config, E::configure);
        let mut desk = Desk::new(enricher);
        let tested = Tested::enricher::<E>();
        let question = self.frame(key, fields, &[]);
        let asked = good(desk.requests(question.clone()));
        tested.call("requests", &self.config, &question, &asked);
        let frame = good(Frame::read(&asked, Kind::Requests));
        let bytes: &[u8] = good(frame.rows(1));
        let requests: Vec<(u32, String)> = good(frame.rows::<rows::Request>(0))
            .iter()
            .map(|r| (r.lookup, String::from_utf8_lossy(good(r.key.of(bytes))).into_owned()))
            .collect();
        let question = self.frame(key, fields, &requests);
        let answer = good(desk.apply(question.clone()));
        tested.call("apply", &self.config, &question, &answer);
        let frame = good(Frame::read(&answer, Kind::Enriched));
        let enriched = good(frame.rows::<rows::Enriched>(0))[0];
        match (enriched.code as usize).checked_sub(1) {
            Some(place) => Err(E::Reason::NAMES[place]),
            None => {
                let json = good(enriched.fields.of(good(frame.rows::<u8>(2))));
                Ok(String::from_utf8_lossy(json).into_owned())
            }
        }
    }
    fn frame(&self, key: &str, fields: &Fields, requests: &[(u32, String)]) -> Vec<u64> {
        let mut bytes = Vec::new();
        let mut put = |text: &str| {
            let at = bytes.len();
            bytes.extend_from_slice(text.as_bytes());
            Range::between(at, bytes.len())
        };
        let session = rows::Session {
            key: put(key),
            start: noon().millis(),
            end: noon().millis(),
            count: 1,
            reason: put("end_of_input"),
            fields: put(&fields.to_json()),
            answers: Range::between(0, requests.len()),
        };
        let answers: Vec<rows::Answer> = requests
            .iter()
            .map(|(lookup, key)| match self.rows.get(&(*lookup, key.clone())) {
                Some(row) => {
                    let (key, row) = (put(key), put(row));
                    rows::Answer { lookup: *lookup, status: rows::answer::FOUND, key, row }
                }
                None => {
                    let (key, row) = (put(key), Range::default());
                    rows::Answer { lookup: *lookup, status: rows::answer::NOT_FOUND, key, row }
                }
            })
            .collect();
        let mut w = FrameWriter::default();
        w.begin(Kind::Sessions);
        w.section(&[session]);
        w.section(&answers);
        w.section(&bytes);
        w.into_words()
    }
}
