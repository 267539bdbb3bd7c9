//! What the author of a Tidemill plugin sees.
//!
//! A plugin is one trait: [`Sessionizer`] says where sessions begin and end, [`Validator`] judges events, [`Enricher`]
//! adds fields to sessions. [`export!`] makes a WebAssembly component of it. This is a whole session rule:
//!
//! ```
//! use tidemill_plugin_sdk::prelude::*;
//!
//! /// What the rule wants to see of an event.
//! #[event]
//! struct Event { campaign: Text, url: Text }
//!
//! #[derive(Config)]
//! struct Rules {
//!     #[config(default = "/thanks".into())]
//!     done: String,
//!     #[config(default = Duration::minutes(30))]
//!     idle: Duration,
//! }
//! #[derive(State, Default)]
//! struct Cart { pages: u32, paid: bool, campaign: String }
//! #[derive(Reason, Clone, Copy)]
//! enum Why { Campaign, Purchase, Idle }
//! #[derive(Timer, Clone, Copy)]
//! enum Due { Idle }
//!
//! struct Checkout { done: String, idle: Duration }
//!
//! impl Sessionizer for Checkout {
//!     type Config = Rules; type Event = Event; type State = Cart; type Reason = Why; type Timer = Due;
//!
//!     fn configure(rules: Rules) -> Result<Self, Vec<ConfigError>> {
//!         Ok(Checkout { done: rules.done, idle: rules.idle })
//!     }
//!     fn open(&self, _: &mut Context<Self>, first: &Event) -> Cart {
//!         Cart { campaign: first.campaign().into(), ..Cart::default() }
//!     }
//!     fn on_event(&self, cx: &mut Context<Self>, cart: &mut Cart, event: &Event) -> Decision<Why> {
//!         if event.campaign() != cart.campaign { return split(Why::Campaign) }            // this event opens the next
//!         cart.pages += 1;
//!         if event.url() == self.done { cart.paid = true; return close(Why::Purchase) }   // this event is the last
//!         cx.set_timer(Due::Idle, self.idle);                                             // replaces the earlier one
//!         keep()
//!     }
//!     fn on_timer(&self, _: &mut Context<Self>, _: &mut Cart, _: Due) -> Decision<Why> { close(Why::Idle) }
//!     fn output(&self, cart: &Cart) -> Fields { fields! { pages: cart.pages, paid: cart.paid } }
//! }
//!
//! // In a plugin's crate, besides: `tidemill_plugin_sdk::export!(sessionizer Checkout);`
//!
//! let mut s = tidemill_plugin_sdk::scenario::Scenario::<Checkout>::new(r#"{ "idle": "10m" }"#);
//! s.at("10:00", fields! { url: "/", campaign: "spring" });
//! s.at("10:05", fields! { url: "/cart", campaign: "spring" });
//! s.at("10:06", fields! { url: "/thanks", campaign: "spring" });
//! s.at("11:00", fields! { url: "/", campaign: "spring" });
//! s.end_of_input();
//! s.expect("
//!     10:00:00 .. 10:06:00  3 events  purchase  {\"pages\":3,\"paid\":true}
//!     11:00:00 .. 11:00:00  1 event   idle      {\"pages\":1,\"paid\":false}
//! ");
//! ```
//!
//! Build it with `cargo build --profile plugin --target wasm32-unknown-unknown`; natively the same crate is a library
//! that its scenarios test.

pub mod config;
mod context;
mod decision;
mod describe;
mod enricher;
mod event;
mod fields;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod guest;
mod metric;
mod names;
mod progress;
#[cfg(not(target_arch = "wasm32"))]
mod record;
#[cfg(not(target_arch = "wasm32"))]
pub mod scenario;
mod sessionizer;
mod state;
mod time;
mod validator;

pub use config::{Config, ConfigError};
pub use context::Context;
pub use decision::{Decision, Rejected, close, discard, ensure, keep, reject, split};
#[doc(hidden)]
pub use describe::{Description, StateSchema};
#[doc(hidden)]
pub use enricher::Desk;
pub use enricher::{Answers, Enricher, Enriching, Requests, Session};
#[doc(hidden)]
pub use event::Row;
#[doc(hidden)]
pub use event::required as event_required;
pub use event::{EventView, Field, FieldType};
pub use fields::{Fields, ToJson};
#[doc(hidden)]
pub use fields::{plain, unique};
pub use metric::Metric;
pub use names::{Lookup, Names, Reason, Symbol, Timer};
#[doc(hidden)]
pub use progress::address as progress_address;
pub use sessionizer::Sessionizer;
#[doc(hidden)]
pub use sessionizer::{Folder, migrate};
pub use state::{Form, Shape, State, StateForm};
/// See [`Config`](trait@Config).
///
/// ```
/// use tidemill_plugin_sdk::{Config, config};
/// #[derive(Config, Debug, PartialEq)]
/// struct Rules {
///     /// Pages that end a visit.
///     #[name = "last-pages"]
///     last: Vec<String>,
///     #[config(default = Mode::Strict)]
///     mode: Mode,
/// }
/// #[derive(Config, Debug, PartialEq)]
/// enum Mode { Strict, Lenient }
/// let rules: Rules = config::read(r#"{ "last-pages": ["/thanks"] }"#).unwrap();
/// assert_eq!(rules, Rules { last: vec!["/thanks".into()], mode: Mode::Strict });
/// assert_eq!(Rules::schema()["properties"]["mode"]["enum"][1], "lenient");
/// ```
pub use tidemill_plugin_sdk_derive::Config;
/// See [`Form`](trait@Form).
///
/// ```
/// use tidemill_plugin_sdk::Form;
/// #[derive(Form, Debug, PartialEq)]
/// enum Seen { Nothing, Page(String), Pages { from: u32, to: u32 } }
/// let mut bytes = Vec::new();
/// Seen::Pages { from: 1, to: 2 }.put(&mut bytes);
/// assert_eq!(Seen::take(&mut bytes.as_slice()), Some(Seen::Pages { from: 1, to: 2 }));
/// ```
pub use tidemill_plugin_sdk_derive::Form;
/// See [`Lookup`](trait@Lookup).
///
/// ```
/// use tidemill_plugin_sdk::{Lookup, Names};
/// #[derive(Lookup, Clone, Copy)]
/// enum Table { Visitor, #[name = "campaigns"] Campaign }
/// assert_eq!(Table::NAMES, ["visitor", "campaigns"]);
/// ```
pub use tidemill_plugin_sdk_derive::Lookup;
/// See [`Reason`](trait@Reason).
///
/// ```
/// use tidemill_plugin_sdk::{Names, Reason};
/// #[derive(Reason, Clone, Copy)]
/// enum Why { Idle, NewCampaign }
/// assert_eq!(Why::NewCampaign.name(), "new_campaign");
/// ```
pub use tidemill_plugin_sdk_derive::Reason;
/// See [`State`](trait@State).
///
/// ```
/// use tidemill_plugin_sdk::State;
/// #[derive(State)]
/// #[state(version = 3)]
/// struct Cart { pages: u32 }
/// assert_eq!((Cart::VERSION, Cart::migrates_from()), (3, vec![]));
/// ```
pub use tidemill_plugin_sdk_derive::State;
/// See [`Symbol`](trait@Symbol).
///
/// ```
/// use tidemill_plugin_sdk::{EventView, Symbol, event};
/// #[derive(Symbol, Clone, Copy)]
/// enum Kind { PageView, Purchase }
/// #[event]
/// struct Event { kind: Option<Kind> }
/// assert_eq!(Event::FIELDS[0].symbols, ["page_view", "purchase"]);
/// ```
pub use tidemill_plugin_sdk_derive::Symbol;
/// See [`Timer`](trait@Timer).
///
/// ```
/// use tidemill_plugin_sdk::{Names, Timer};
/// #[derive(Timer, Clone, Copy)]
/// enum Due { Idle, Longest }
/// assert_eq!(Due::Longest.number(), 1);
/// ```
pub use tidemill_plugin_sdk_derive::Timer;
/// See [`EventView`].
///
/// ```
/// use tidemill_plugin_sdk::{EventView, FieldType, event};
/// #[event]
/// struct Event {
///     url: Text,                       // "" if it is missing
///     #[symbols("page_view", "click")] // usual texts, which are passed as numbers
///     r#type: Text,
///     amount: Option<f64>,
///     items: i64,                      // a record without it does not get here
/// }
/// fn is_sale(event: &Event) -> bool {
///     event.r#type() == "purchase" && event.amount().is_some_and(|a| a > 0.0) && event.items() > 0
/// }
/// let types: Vec<(&str, bool)> = Event::FIELDS.iter().map(|f| (f.name, f.required)).collect();
/// assert_eq!(types, [("url", false), ("type", false), ("amount", false), ("items", true)]);
/// assert_eq!(Event::FIELDS[2].field_type, FieldType::Number);
/// ```
pub use tidemill_plugin_sdk_derive::event;
pub use time::{Duration, Time};
#[doc(hidden)]
pub use validator::Judge;
pub use validator::{Judging, Validator};

/// JSON, as rows of lookups and fields of sessions are read.
///
/// ```
/// use tidemill_plugin_sdk::Json;
/// let row: Json = r#"{"country":"NL","visits":3}"#.parse().unwrap();
/// assert_eq!((row["country"].as_str(), row["visits"].as_u64()), (Some("NL"), Some(3)));
/// ```
pub use serde_json::Value as Json;

/// Everything that a plugin needs, to be imported whole.
pub mod prelude {
    pub use crate::{
        Answers, Config, ConfigError, Context, Decision, Duration, Enricher, Enriching, EventView, Fields,
        Form, Json, Judging, Lookup, Metric, Names, Reason, Rejected, Requests, Session, Sessionizer, State,
        Symbol, Time, Timer, Validator, close, discard, ensure, event, fields, keep, reject, split,
    };
}

/// How loud a line in the host's log is.
///
/// ```
/// use tidemill_plugin_sdk::{Level, log};
/// log(Level::Warn, "the config names no campaign");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For whoever looks for a mistake.
    Debug,
    /// Worth knowing.
    Info,
    /// Worth looking into.
    Warn,
    /// Wrong.
    Error,
}

/// Leaves a line in the host's log, which is rate-limited and cut to 1 KiB. Natively, on standard error.
///
/// ```
/// tidemill_plugin_sdk::log(tidemill_plugin_sdk::Level::Info, "the table of prices has 3 rows");
/// ```
pub fn log(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    guest::log(level, message);
    #[cfg(not(target_arch = "wasm32"))]
    {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "{level:?}: {message}");
    }
}

/// The plugin or the host broke the contract: a trap, which the host makes a fault of the event at hand.
#[cold]
#[track_caller]
#[expect(clippy::panic, reason = "in a plugin a panic is how a fault is told: the host contains it")]
fn broken(message: std::fmt::Arguments<'_>) -> ! {
    panic!("{message}")
}

/// Makes a WebAssembly component of a plugin: `export!(sessionizer Checkout);`, `export!(validator Checks);` or
/// `export!(enricher Profile);`, once, in the plugin's crate. Its name and version are the crate's; where several crates are
/// versions of one plugin, `export!(sessionizer Checkout, "checkout", "2.0.0");` says them. Natively it is nothing, so that
/// the crate can be tested.
///
/// ```
/// use tidemill_plugin_sdk::prelude::*;
/// pub struct Everything;
/// #[event]
/// pub struct Event {}
/// impl Validator for Everything {
///     type Config = (); type Event = Event; type Reason = ();
///     fn configure((): ()) -> Result<Self, Vec<ConfigError>> { Ok(Everything) }
///     fn check(&self, _: &mut Judging<Self>, _: &Event) -> Result<(), Rejected<()>> { Ok(()) }
/// }
/// tidemill_plugin_sdk::export!(validator Everything);
/// ```
#[macro_export]
macro_rules! export {
    (sessionizer $plugin:ty) => {
        $crate::export!(sessionizer $plugin, env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    };
    (sessionizer $plugin:ty, $name:expr, $version:expr) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code, reason = "exports of a component")]
        const _: () = {
            ::std::thread_local! {
                static PLUGIN: $crate::guest::Slot<$crate::Folder<$plugin>> =
                    const { $crate::guest::Slot::new() };
            }
            use $crate::guest::sessionizer as world;
            struct Exports;
            impl world::Guest for Exports {
                fn describe() -> world::Description {
                    let d = $crate::Description::of_sessionizer::<$plugin>();
                    $crate::guest::description(d, $name, $version)
                }
                fn configure(config: String) -> Result<Vec<u32>, Vec<world::ConfigError>> {
                    PLUGIN.with(|p| p.configure(&config))
                }
                fn progress() -> u32 {
                    $crate::progress_address()
                }
                fn fold(turns: Vec<u64>) -> Result<Vec<u64>, String> {
                    PLUGIN.with(|p| p.fold(turns))
                }
                fn migrate(from: u32, states: Vec<u64>) -> Result<Vec<u64>, String> {
                    $crate::migrate::<<$plugin as $crate::Sessionizer>::State>(from, &states)
                }
            }
    world::export_sessionizer!(Exports with_types_in world);
        };
    };
    (validator $plugin:ty) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code, reason = "exports of a component")]
        const _: () = {
            ::std::thread_local! {
                static PLUGIN: $crate::guest::Slot<$crate::Judge<$plugin>> =
                    const { $crate::guest::Slot::new() };
            }
            use $crate::guest::validator as world;
            struct Exports;
            impl world::Guest for Exports {
                fn describe() -> world::Description {
                    let d = $crate::Description::of_validator::<$plugin>();
                    $crate::guest::description(d, env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
                }
                fn configure(config: String) -> Result<Vec<u32>, Vec<world::ConfigError>> {
                    PLUGIN.with(|p| p.configure(&config))
                }
                fn progress() -> u32 {
                    $crate::progress_address()
                }
                fn validate(events: Vec<u64>) -> Result<Vec<u64>, String> {
                    PLUGIN.with(|p| p.validate(events))
                }
            }
    world::export_validator!(Exports with_types_in world);
        };
    };
    (enricher $plugin:ty) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code, reason = "exports of a component")]
        const _: () = {
            ::std::thread_local! {
                static PLUGIN: $crate::guest::Slot<$crate::Desk<$plugin>> =
                    const { $crate::guest::Slot::new() };
            }
            use $crate::guest::enricher as world;
            struct Exports;
            impl world::Guest for Exports {
                fn describe() -> world::Description {
                    let d = $crate::Description::of_enricher::<$plugin>();
                    $crate::guest::description(d, env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
                }
                fn configure(config: String) -> Result<(), Vec<world::ConfigError>> {
                    PLUGIN.with(|p| p.configure(&config))
                }
                fn progress() -> u32 {
                    $crate::progress_address()
                }
                fn requests(sessions: Vec<u64>) -> Result<Vec<u64>, String> {
                    PLUGIN.with(|p| p.requests(sessions))
                }
                fn apply(sessions: Vec<u64>) -> Result<Vec<u64>, String> {
                    PLUGIN.with(|p| p.apply(sessions))
                }
            }
    world::export_enricher!(Exports with_types_in world);
        };
    };
}
