//! The yardstick's session row as a rule: page views, the addresses where a session begins and ends, whether something was
//! bought. Of events at the same time the least address is the entry and the greatest is the exit, whatever their ids.

use tidemill_plugin_sdk::prelude::*;

/// What the rule sees of an event.
#[event]
pub struct Event {
    r#type: Option<Kind>,
    #[required]
    url: Text,
}

/// What is counted.
#[derive(Symbol, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A page was seen.
    PageView,
    /// Something was bought.
    Purchase,
}

/// The config.
#[derive(Config)]
pub struct Rules {
    /// Silence that ends a session; an event exactly so long after the last stays.
    gap: Duration,
}

/// What is remembered of a session.
#[derive(State, Default)]
pub struct Visit {
    views: u64,
    entry: String,
    exit: String,
    bought: bool,
}

/// Why a session ends.
#[derive(Reason, Clone, Copy)]
pub enum Why {
    /// Silence.
    Gap,
}

/// The timer.
#[derive(Timer, Clone, Copy)]
pub enum Due {
    /// Silence.
    Gap,
}

/// The rule.
#[derive(Debug)]
pub struct Visits {
    silence: Duration,
}

impl Sessionizer for Visits {
    type Config = Rules;
    type Event = Event;
    type State = Visit;
    type Reason = Why;
    type Timer = Due;
    const REJECTS: bool = false;

    fn configure(rules: Rules) -> Result<Self, Vec<ConfigError>> {
        // A timer fires before any event at or after its time, so one more millisecond keeps an event on the boundary in.
        Ok(Visits { silence: Duration::from_millis(rules.gap.millis() + 1) })
    }

    fn open(&self, _: &mut Context<Self>, _: &Event) -> Visit {
        Visit::default()
    }

    fn on_event(&self, cx: &mut Context<Self>, visit: &mut Visit, event: &Event) -> Decision<Why> {
        let url = event.url();
        if cx.is_first() || (cx.now() == cx.start() && url < visit.entry.as_str()) {
            visit.entry = url.into();
        }
        if cx.is_first() || cx.now() > cx.last() || url > visit.exit.as_str() {
            visit.exit = url.into();
        }
        match event.r#type() {
            Some(Kind::PageView) => visit.views += 1,
            Some(Kind::Purchase) => visit.bought = true,
            None => {}
        }
        cx.set_timer(Due::Gap, self.silence);
        keep()
    }

    fn on_timer(&self, _: &mut Context<Self>, _: &mut Visit, _: Due) -> Decision<Why> {
        close(Why::Gap)
    }

    fn output(&self, visit: &Visit) -> Fields {
        fields! { views: visit.views, entry: visit.entry, exit: visit.exit, bought: visit.bought }
    }
}

tidemill_plugin_sdk::export!(sessionizer Visits);
