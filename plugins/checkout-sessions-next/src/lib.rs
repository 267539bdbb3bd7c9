//! The next version of `checkout-sessions`: it also counts what was put into the cart. What a version remembers of open
//! visits is handed over to it, so that it can be put in force while events flow.

use tidemill_plugin_sdk::prelude::*;

/// What the rule sees of an event.
#[event]
pub struct Event {
    kind: Option<Kind>,
    campaign: Text,
    amount: Option<f64>,
}

/// What happened; anything else is only a sign of life.
#[derive(Symbol, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A page was seen.
    PageView,
    /// Something was put into the cart.
    AddToCart,
    /// A checkout was begun.
    Checkout,
    /// It was paid.
    Purchase,
}

/// The config.
#[derive(Config)]
pub struct Rules {
    /// Silence that ends a visit.
    #[config(default = Duration::minutes(30))]
    idle: Duration,
}

/// What version 0.1.0 remembers of a visit.
#[derive(State, Default)]
pub struct VisitBefore {
    pages: u32,
    checkouts: u32,
    paid: Option<f64>,
    campaign: String,
}

/// What is remembered of a visit.
#[derive(State, Default)]
#[state(version = 2, from = VisitBefore)]
pub struct Visit {
    pages: u32,
    carts: u32,
    checkouts: u32,
    paid: Option<f64>,
    campaign: String,
}

impl From<VisitBefore> for Visit {
    fn from(old: VisitBefore) -> Visit {
        // Nobody has counted so far.
        let VisitBefore { pages, checkouts, paid, campaign } = old;
        Visit { pages, carts: 0, checkouts, paid, campaign }
    }
}

/// Why a visit ends.
#[derive(Reason, Clone, Copy)]
pub enum Why {
    /// Paid.
    Purchase,
    /// Another campaign.
    Campaign,
    /// Silence.
    Idle,
    /// A checkout without a page.
    Incomplete,
}

/// The timer.
#[derive(Timer, Clone, Copy)]
pub enum Due {
    /// Silence.
    Idle,
}

/// The rule.
#[derive(Debug)]
pub struct Checkout {
    idle: Duration,
}

const CHECKOUTS: Metric = Metric::counter("checkouts", "Checkouts begun");

impl Sessionizer for Checkout {
    type Config = Rules;
    type Event = Event;
    type State = Visit;
    type Reason = Why;
    type Timer = Due;
    const METRICS: &'static [Metric] = &[CHECKOUTS];
    const REJECTS: bool = false;

    fn configure(rules: Rules) -> Result<Self, Vec<ConfigError>> {
        if rules.idle.millis() < 1 {
            return Err(ConfigError::at("/idle", "at least 1ms is wanted").into());
        }
        Ok(Checkout { idle: rules.idle })
    }

    fn open(&self, _: &mut Context<Self>, first: &Event) -> Visit {
        Visit { campaign: first.campaign().into(), ..Visit::default() }
    }

    fn on_event(&self, cx: &mut Context<Self>, visit: &mut Visit, event: &Event) -> Decision<Why> {
        if !event.campaign().is_empty() && event.campaign() != visit.campaign {
            return split(Why::Campaign);
        }
        cx.set_timer(Due::Idle, self.idle);
        match event.kind() {
            Some(Kind::PageView) => visit.pages += 1,
            Some(Kind::AddToCart) => visit.carts += 1,
            Some(Kind::Checkout) if visit.pages == 0 => return discard(Why::Incomplete),
            Some(Kind::Checkout) => {
                visit.checkouts += 1;
                cx.count(CHECKOUTS, 1);
            }
            Some(Kind::Purchase) => {
                visit.paid = Some(event.amount().unwrap_or(0.0));
                return close(Why::Purchase);
            }
            None => {}
        }
        keep()
    }

    fn on_timer(&self, _: &mut Context<Self>, _: &mut Visit, _: Due) -> Decision<Why> {
        close(Why::Idle)
    }

    fn output(&self, visit: &Visit) -> Fields {
        let Visit { pages, carts, checkouts, paid, campaign } = visit;
        fields! { campaign: campaign, pages: *pages, carts: *carts, checkouts: *checkouts, paid: *paid }
    }
}

// The plugin's name and version; without them they are the crate's.
tidemill_plugin_sdk::export!(sessionizer Checkout, "checkout-sessions", "0.2.0");
