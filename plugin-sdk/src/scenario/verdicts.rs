//! Validators under test.

use super::cells::{cells, put_cells};
use super::{configured, good, noon};
use crate::describe::places;
use crate::record::Tested;
use crate::{EventView, Fields, Judge, Names, Time, Validator};
use tidemill_contract::frame::{Frame, FrameWriter, Kind};
use tidemill_contract::rows;

/// A validator under test; see [`Validator`].
///
/// ```
/// use tidemill_plugin_sdk::prelude::*;
/// use tidemill_plugin_sdk::scenario::Verdicts;
/// # struct Positive;
/// # #[derive(Reason, Clone, Copy)] enum Why { Negative }
/// # #[event] struct Sale { amount: f64 }
/// # impl Validator for Positive {
/// #     type Config = (); type Event = Sale; type Reason = Why;
/// #     fn configure((): ()) -> Result<Self, Vec<ConfigError>> { Ok(Positive) }
/// #     fn check(&self, _: &mut Judging<Self>, sale: &Sale) -> Result<(), Rejected<Why>> {
/// #         ensure(sale.amount() >= 0.0, Why::Negative, || format!("{} is less than nothing", sale.amount()))
/// #     }
/// # }
/// let v = Verdicts::<Positive>::new("{}");
/// v.accepts(fields! { amount: 3.5 });
/// v.rejects(fields! { amount: -1.0 }, "negative");
/// let verdict = v.verdict(Time::from_millis(0), &fields! { amount: -1.0 });
/// assert_eq!(verdict, Some(("negative", "-1 is less than nothing".to_owned())));
/// ```
#[derive(Debug)]
pub struct Verdicts<V: Validator> {
    config: String,
    validator: std::marker::PhantomData<fn() -> V>,
}

impl<V: Validator> Verdicts<V> {
    /// Under this config (JSON).
    #[track_caller]
    #[must_use]
    pub fn new(config: &str) -> Self {
        let _ = configured::<V::Config, V>(Tested::validator::<V>(), config, V::configure);
        Verdicts { config: config.into(), validator: std::marker::PhantomData }
    }
    /// The name of the reason for which an event at this instant is rejected, and the message.
    #[track_caller]
    #[must_use]
    pub fn verdict(&self, time: Time, fields: &Fields) -> Option<(&'static str, String)> {
        let validator = configured::<V::Config, V>(Tested::validator::<V>(), &self.config, V::configure);
        let mut bytes = b"key".to_vec();
        let mut words = vec![time.millis() as u64, 3 << 32];
        let unread = places(&validator.unread(), V::Event::FIELDS);
        put_cells(&cells(V::Event::FIELDS, &unread, fields), &mut words, &mut bytes);
        let mut w = FrameWriter::default();
        w.begin(Kind::Events);
        w.wide_section(&words, 1);
        w.section(&bytes);
        let question = w.into_words();
        let answer = good(Judge::new(validator).validate(question.clone()));
        Tested::validator::<V>().call("validate", &self.config, &question, &answer);
        let frame = good(Frame::read(&answer, Kind::Verdicts));
        let verdicts: &[rows::Verdict] = good(frame.rows(0));
        let message = good(verdicts[0].message.of(good(frame.rows::<u8>(2))));
        let place = (verdicts[0].code as usize).checked_sub(1)?;
        Some((V::Reason::NAMES[place], String::from_utf8_lossy(message).into_owned()))
    }
    /// An event (at noon of 1 January 2026) is accepted.
    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "reads better at every call")]
    pub fn accepts(&self, fields: Fields) {
        let found = self.verdict(noon(), &fields);
        assert!(found.is_none(), "{} is rejected: {found:?}", fields.to_json());
    }
    /// An event is rejected for this reason.
    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "reads better at every call")]
    pub fn rejects(&self, fields: Fields, reason: &str) {
        let found = self.verdict(noon(), &fields);
        let name = found.as_ref().map(|f| f.0);
        assert!(name == Some(reason), "{}: expected {reason}, found {found:?}", fields.to_json());
    }
}
