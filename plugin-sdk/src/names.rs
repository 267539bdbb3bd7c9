//! Things that have a name outside and a number inside: reasons, timers, lookups, symbols.

/// A list of names, each a variant of an enum. Made by the derives [`Reason`](macro@crate::Reason),
/// [`Timer`](macro@crate::Timer), [`Lookup`](macro@crate::Lookup) and [`Symbol`](macro@crate::Symbol).
///
/// The name is the variant's in `snake_case`, unless `#[name = "…"]` says otherwise.
///
/// ```
/// use tidemill_plugin_sdk::{Names, Reason};
/// #[derive(Reason, Clone, Copy)]
/// enum Why { Idle, #[name = "paid"] Purchase, NewCampaign }
/// assert_eq!(Why::NAMES, ["idle", "paid", "new_campaign"]);
/// assert_eq!(Why::NewCampaign.number(), 2);
/// ```
pub trait Names: Sized + 'static {
    /// The names, in the order of the variants.
    const NAMES: &'static [&'static str];
    /// The place of this one.
    fn number(&self) -> u32;
    /// The one at a place.
    fn of(number: u32) -> Option<Self>;
    /// The name of this one.
    fn name(&self) -> &'static str {
        Self::NAMES.get(self.number() as usize).copied().unwrap_or("")
    }
}

/// Why a session was closed or discarded, or an event rejected. `()` for none.
///
/// ```
/// use tidemill_plugin_sdk::{Names, Reason};
/// #[derive(Reason, Clone, Copy)]
/// enum Why { Idle, Purchase }
/// fn names<R: Reason>() -> &'static [&'static str] { R::NAMES }
/// assert_eq!(names::<Why>(), ["idle", "purchase"]);
/// ```
pub trait Reason: Names {}
/// The timers of a rule; at most 16. `()` for none.
///
/// ```
/// use tidemill_plugin_sdk::{Names, Timer};
/// #[derive(Timer, Clone, Copy)]
/// enum Due { Idle }
/// assert_eq!(Due::Idle.name(), "idle");
/// ```
pub trait Timer: Names {}
/// The lookups of an enricher. `()` for none.
///
/// ```
/// use tidemill_plugin_sdk::{Lookup, Names};
/// #[derive(Lookup, Clone, Copy)]
/// enum Table { Visitor }
/// assert_eq!(Table::Visitor.name(), "visitor");
/// ```
pub trait Lookup: Names {}
/// Values of a text field that the host passes as a number; at most 255.
///
/// ```
/// use tidemill_plugin_sdk::{Names, Symbol};
/// #[derive(Symbol, Clone, Copy, Debug, PartialEq)]
/// enum Kind { PageView, Purchase }
/// assert_eq!(Kind::of(1), Some(Kind::Purchase));
/// ```
pub trait Symbol: Names {}

impl Names for () {
    const NAMES: &'static [&'static str] = &[];
    fn number(&self) -> u32 {
        0
    }
    fn of(_: u32) -> Option<()> {
        None
    }
}
impl Reason for () {}
impl Timer for () {}
impl Lookup for () {}
