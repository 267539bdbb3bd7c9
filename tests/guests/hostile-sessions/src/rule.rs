//! Thirty silent seconds end a session, and an event may tell the rule to do what a plugin must not: `act` says what.
//! Whatever else it is given it does right, so that its other sessions can be compared with the model.

#![allow(clippy::panic, reason = "it is what this plugin is for")]

use crate::OBEYS;
use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use tidemill_plugin_sdk::prelude::*;

/// What the rule sees of an event.
#[event]
pub struct Event {
    act: Option<Act>,
}

/// What to do at an event.
#[derive(Symbol, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Panics.
    Trap,
    /// Never comes back.
    Loop,
    /// Never comes back, in steps of some milliseconds that look like work.
    Slow,
    /// Takes all the memory that it gets.
    Memory,
    /// Calls itself without end.
    Deep,
    /// Makes `fire` panic, later in the session.
    Arm,
    /// Panics if armed.
    Fire,
    /// Sets a timer that panics.
    Timer,
    /// Makes the session's fields panic.
    Output,
    /// Makes the session's fields larger than a row may be.
    Huge,
    /// Logs without end in sight.
    Flood,
}

/// What the plugin keeps between calls, or looks at besides its input.
#[derive(Config, PartialEq, Eq, Clone, Copy)]
pub enum Memory {
    /// Nothing.
    None,
    /// A counter of events in a static variable.
    Static,
    /// Where in the call's frame the key stands.
    Place,
    /// The first key that the instance saw: it panics at any other.
    Company,
}

/// The config.
#[derive(Config)]
pub struct Rules {
    /// What is in its fields that must not be.
    #[config(default = Memory::None)]
    memory: Memory,
}

/// What is remembered of a session.
#[derive(State, Default)]
pub struct Deeds {
    armed: bool,
    output: bool,
    huge: bool,
    seen: u64,
}

/// Why a session ends.
#[derive(Reason, Clone, Copy)]
pub enum Why {
    /// Silence.
    Gap,
}

/// The timers.
#[derive(Timer, Clone, Copy)]
pub enum Due {
    /// Silence.
    Gap,
    /// A trap.
    Trap,
}

/// The rule.
#[derive(Debug)]
pub struct Hostile {
    memory: u8,
}

static EVENTS: AtomicU64 = AtomicU64::new(0);
static FIRST: OnceLock<String> = OnceLock::new();
const FLOODS: Metric = Metric::counter("floods", "Times that it logged without end");

impl Sessionizer for Hostile {
    type Config = Rules;
    type Event = Event;
    type State = Deeds;
    type Reason = Why;
    type Timer = Due;
    const METRICS: &'static [Metric] = &[FLOODS];

    fn configure(rules: Rules) -> Result<Self, Vec<ConfigError>> {
        Ok(Hostile { memory: rules.memory as u8 })
    }

    fn open(&self, _: &mut Context<Self>, _: &Event) -> Deeds {
        Deeds::default()
    }

    fn on_event(&self, cx: &mut Context<Self>, deeds: &mut Deeds, event: &Event) -> Decision<Why> {
        if self.memory == Memory::Static as u8 {
            deeds.seen = EVENTS.fetch_add(1, Ordering::Relaxed);
        } else if self.memory == Memory::Place as u8 {
            deeds.seen = cx.key().as_ptr() as u64 % 4096;
        } else if self.memory == Memory::Company as u8 {
            let first = FIRST.get_or_init(|| cx.key().to_owned());
            assert!(first == cx.key(), "it is used to {first}");
        }
        cx.set_timer(Due::Gap, Duration::seconds(30));
        match event.act().filter(|_| OBEYS) {
            None => {}
            Some(Act::Trap) => panic!("told to"),
            Some(Act::Loop) => endless(),
            Some(Act::Slow) => slow(),
            Some(Act::Memory) => memory(),
            Some(Act::Deep) => {
                black_box(deep(black_box(1)));
            }
            Some(Act::Arm) => deeds.armed = true,
            Some(Act::Fire) if deeds.armed => panic!("armed before"),
            Some(Act::Fire) => {}
            Some(Act::Timer) => cx.set_timer(Due::Trap, Duration::seconds(1)),
            Some(Act::Output) => deeds.output = true,
            Some(Act::Huge) => deeds.huge = true,
            Some(Act::Flood) => {
                cx.count(FLOODS, 1);
                for n in 0..10_000 {
                    tidemill_plugin_sdk::log(tidemill_plugin_sdk::Level::Warn, &format!("flood {n}"));
                }
            }
        }
        keep()
    }

    fn on_timer(&self, _: &mut Context<Self>, _: &mut Deeds, due: Due) -> Decision<Why> {
        match due {
            Due::Gap => close(Why::Gap),
            Due::Trap => panic!("in a timer"),
        }
    }

    fn output(&self, deeds: &Deeds) -> Fields {
        if deeds.output {
            panic!("in the fields");
        }
        let blank = if deeds.huge { "x".repeat(100_000) } else { String::new() };
        fields! { seen: deeds.seen, blank: blank }
    }
}

fn endless() {
    loop {
        black_box(0);
    }
}

fn slow() {
    let mut list = vec![0_u64; 1 << 16];
    for n in 0.. {
        list.iter_mut().for_each(|x| *x = x.wrapping_mul(31) ^ n);
        list.sort_unstable();
    }
    black_box(list);
}

fn memory() {
    let mut all = Vec::new();
    loop {
        all.push(vec![1_u8; 1 << 20]);
        black_box(&all);
    }
}

#[allow(unconditional_recursion, reason = "it is what this is for")]
fn deep(n: u64) -> u64 {
    let here = black_box([n; 64]);
    here.iter().sum::<u64>() + deep(n + 1) + here[7]
}
