//! What a rule answers.

use std::borrow::Cow;

/// What becomes of the session, and of the event at hand.
///
/// ```
/// use tidemill_plugin_sdk::{Decision, Reason, close, discard, keep, reject, split};
/// #[derive(Reason, Clone, Copy, Debug, PartialEq)]
/// enum Why { Purchase, Campaign, Robot, BadUrl }
/// fn decide(kind: &str, url: &str) -> Decision<Why> {
///     match kind {
///         "purchase" => close(Why::Purchase),
///         "landing" => split(Why::Campaign),
///         "crawl" => discard(Why::Robot),
///         _ if url.is_empty() => reject(Why::BadUrl),
///         _ => keep(),
///     }
/// }
/// assert_eq!(decide("purchase", "/thanks"), Decision::Close(Why::Purchase));
/// assert_eq!(decide("page_view", ""), Decision::Reject(Why::BadUrl));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Decision<R> {
    /// The event belongs to the session, which stays open.
    Keep,
    /// The event is the session's last.
    Close(R),
    /// The session ended before this event, which opens the next; see [`split`]. On a session's first event it means `Keep`.
    Split(R),
    /// The session is no session, this event included: a dead letter.
    Discard(R),
    /// The event is no event: a dead letter. The state is as it was before it.
    Reject(R),
}

/// The event belongs to the session, which stays open.
///
/// ```
/// use tidemill_plugin_sdk::{Decision, keep};
/// assert_eq!(keep::<()>(), Decision::Keep);
/// ```
pub fn keep<R>() -> Decision<R> {
    Decision::Keep
}
/// The event is the session's last; in a timer or at the end: the session is over.
///
/// ```
/// use tidemill_plugin_sdk::{Decision, close};
/// assert_eq!(close("paid"), Decision::Close("paid"));
/// ```
pub fn close<R>(reason: R) -> Decision<R> {
    Decision::Close(reason)
}
/// The session ended before this event, which opens the next: [`open`](crate::Sessionizer::open), then
/// [`on_event`](crate::Sessionizer::on_event) see it again. On a session's first event it means [`keep`].
///
/// So decide first, and change the state afterwards: what `on_event` has changed before it says `split` stays with the session
/// that ends, as if the event had belonged to it, and what it has counted is counted again when the next session sees the
/// event.
///
/// ```
/// use tidemill_plugin_sdk::{Decision, split};
/// assert_eq!(split("campaign"), Decision::Split("campaign"));
/// ```
pub fn split<R>(reason: R) -> Decision<R> {
    Decision::Split(reason)
}
/// What was gathered is no session: it becomes a dead letter, this event included.
///
/// ```
/// use tidemill_plugin_sdk::{Decision, discard};
/// assert_eq!(discard("robot"), Decision::Discard("robot"));
/// ```
pub fn discard<R>(reason: R) -> Decision<R> {
    Decision::Discard(reason)
}
/// The event becomes a dead letter, and the state is as it was before it.
///
/// ```
/// use tidemill_plugin_sdk::{Decision, reject};
/// assert_eq!(reject("bad_url"), Decision::Reject("bad_url"));
/// ```
pub fn reject<R>(reason: R) -> Decision<R> {
    Decision::Reject(reason)
}

/// Why a validator or an enricher does not want what it was given.
///
/// ```
/// use tidemill_plugin_sdk::{Reason, Rejected, ensure};
/// #[derive(Reason, Clone, Copy, Debug, PartialEq)]
/// enum Why { BadUrl }
/// fn check(url: &str) -> Result<(), Rejected<Why>> {
///     ensure(url.starts_with('/'), Why::BadUrl, || format!("{url:?} is no path"))
/// }
/// assert!(check("/cart").is_ok());
/// assert_eq!(check("cart").unwrap_err().message, "\"cart\" is no path");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected<R> {
    /// The reason.
    pub reason: R,
    /// For a reader; may be empty.
    pub message: Cow<'static, str>,
}

impl<R> Rejected<R> {
    /// For this reason, with a message for a reader.
    pub fn new(reason: R, message: impl Into<Cow<'static, str>>) -> Self {
        Rejected { reason, message: message.into() }
    }
}
impl<R: crate::Reason> From<R> for Rejected<R> {
    fn from(reason: R) -> Self {
        Rejected { reason, message: Cow::Borrowed("") }
    }
}

/// Goes on if `good`; else rejects with a message, which is made only then.
///
/// ```
/// use tidemill_plugin_sdk::ensure;
/// assert!(ensure(2 > 1, "small", || "never made").is_ok());
/// assert_eq!(ensure(1 > 2, "small", || format!("{} is not", 1)).unwrap_err().message, "1 is not");
/// ```
///
/// # Errors
/// If not `good`.
pub fn ensure<R, M: Into<Cow<'static, str>>>(
    good: bool,
    reason: R,
    message: impl FnOnce() -> M,
) -> Result<(), Rejected<R>> {
    if good { Ok(()) } else { Err(Rejected::new(reason, message())) }
}
