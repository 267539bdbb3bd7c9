//! The fault budget of a deployment: how often the plugins of a pipeline may fail before the pipeline is suspended.
//!
//! One for a pipeline, shared by its lanes and validators. It is touched only where something fails, and once spent it stays
//! so: a deployment that is to have another chance gets a budget of its own.

use crate::config::plan::FaultLimits;
use crate::meters::PluginMeter;
use crate::progress::Progress;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tidemill_engine::contain::Faults;
use tidemill_engine::rule;
use tidemill_sandbox::{self as sandbox, FaultKind, Instance, Level};

/// Bytes of a message of a plugin that are kept in an epoch and shown.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Which plugin of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Its name in the config.
    pub(crate) name: String,
    /// `name@version`, as it says itself.
    pub(crate) version: String,
    /// SHA-256 of its bytes.
    pub(crate) digest: String,
}

/// Why and when a pipeline was suspended: part of its newest epoch, until it runs again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Suspended {
    /// Host clock.
    pub(crate) at_ms: i64,
    /// Which limit it was, for a reader.
    pub(crate) why: String,
    /// The plugin that spent the last of the budget.
    pub(crate) plugin: Identity,
    /// Faults that were found.
    pub(crate) faults: u64,
    /// What went wrong first.
    pub(crate) first_fault: String,
    /// How long overdue calls ran, within the window.
    pub(crate) overdue_ms: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: FaultLimits,
    spent: AtomicBool,
    account: Mutex<Account>,
}

#[derive(Debug, Default)]
struct Account {
    faults: u64,
    first: Option<String>,
    /// When overdue calls ended and how long they had run, within the window.
    overdue: VecDeque<(Instant, Duration)>,
    suspended: Option<Suspended>,
    /// The host could not make a call: not the plugin's doing.
    host: Option<String>,
}

impl Budget {
    pub(crate) fn new(limits: FaultLimits) -> Budget {
        Budget { limits, spent: AtomicBool::new(false), account: Mutex::default() }
    }

    /// One of the same size of which nothing is spent.
    pub(crate) fn anew(&self) -> Budget {
        Budget::new(self.limits)
    }

    /// A deployment gets all of it again, unless it is spent: then only a new start helps.
    pub(crate) fn renew(&self) {
        self.with(|a| {
            if a.suspended.is_none() {
                *a = Account { host: a.host.take(), ..Account::default() };
            }
        });
    }

    /// Whether it is spent: the pipeline reads no more, and asks its plugins nothing more.
    pub(crate) fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Relaxed)
    }

    /// Why it is spent.
    pub(crate) fn suspended(&self) -> Option<Suspended> {
        self.with(|a| a.suspended.clone())
    }

    fn with<T>(&self, f: impl FnOnce(&mut Account) -> T) -> T {
        f(&mut self.account.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Something new failed. Whether the plugin may go on.
    fn found(&self, who: &Identity, message: &str) -> bool {
        self.with(|a| {
            a.remember(message);
            a.faults += 1;
            if a.faults > self.limits.faults {
                let why = format!("{} faults, where {} are allowed", a.faults, self.limits.faults);
                self.suspend(a, who, why);
            }
        });
        !self.is_spent()
    }

    /// A call failed, be it one that had failed before: searching for what it failed at costs time too.
    fn failed(&self, who: &Identity, fault: &sandbox::Fault, now: Instant) {
        self.with(|a| {
            let message = fault.to_string();
            match fault.kind {
                FaultKind::Host(_) => {
                    a.host.get_or_insert(message);
                }
                FaultKind::Deadline(_) => {
                    a.remember(&message);
                    a.overdue.push_back((now, fault.ran));
                    let ran = a.overdue_within(self.limits.overdue_window, now);
                    if ran > self.limits.overdue {
                        let why = format!(
                            "calls that had to be stopped ran for {:.1} s within {:.0} s, where {:.1} s are allowed",
                            ran.as_secs_f64(),
                            self.limits.overdue_window.as_secs_f64(),
                            self.limits.overdue.as_secs_f64()
                        );
                        self.suspend(a, who, why);
                    }
                }
                _ => a.remember(&message),
            }
        });
    }

    /// A fault that cannot be contained.
    fn broken(&self, who: &Identity, message: &str) {
        self.with(|a| {
            if a.host.is_none() {
                a.remember(message);
                self.suspend(a, who, format!("a fault that cannot be contained: {message}"));
            }
        });
    }

    fn suspend(&self, a: &mut Account, plugin: &Identity, why: String) {
        a.suspended.get_or_insert_with(|| Suspended {
            at_ms: crate::clock::now_ms(),
            why,
            plugin: plugin.clone(),
            faults: a.faults,
            first_fault: a.first.clone().unwrap_or_default(),
            overdue_ms: a.overdue.iter().map(|(_, ran)| ran.as_millis() as u64).sum(),
        });
        self.spent.store(true, Ordering::Relaxed);
    }
}

impl Account {
    fn remember(&mut self, message: &str) {
        self.first
            .get_or_insert_with(|| message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)].to_owned());
    }

    fn overdue_within(&mut self, window: Duration, now: Instant) -> Duration {
        self.overdue.retain(|(at, _)| now.saturating_duration_since(*at) < window);
        self.overdue.iter().map(|(_, ran)| *ran).sum()
    }
}

/// Where one instance of a plugin answers for what it does: its faults go to the budget, its lines to the user.
#[derive(Clone, Debug)]
pub(crate) struct Warden {
    pub(crate) who: Arc<Identity>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) progress: Arc<Progress>,
    /// Its calls are counted here.
    pub(crate) meter: Arc<PluginMeter>,
}

impl Warden {
    pub(crate) fn new(who: &Arc<Identity>, budget: &Arc<Budget>, progress: &Arc<Progress>) -> Warden {
        let meter = progress.meters.plugin(&who.name);
        Warden { who: who.clone(), budget: budget.clone(), progress: progress.clone(), meter }
    }

    /// A call failed. Whether nothing more is to be asked.
    pub(crate) fn failed(&self, fault: &sandbox::Fault) -> bool {
        self.meter.faults.fetch_add(1, Ordering::Relaxed);
        self.failed_in_search(fault)
    }

    /// The same of a call that is made again with less, so that a fault is what is found in the end.
    pub(crate) fn failed_in_search(&self, fault: &sandbox::Fault) -> bool {
        match fault.kind {
            FaultKind::Panic(_) | FaultKind::Trap(_) | FaultKind::Memory { .. } => {
                self.meter.traps.fetch_add(1, Ordering::Relaxed);
            }
            FaultKind::Deadline(_) => {
                self.meter.deadline_stops.fetch_add(1, Ordering::Relaxed);
            }
            FaultKind::Guest(_) | FaultKind::Malformed(_) | FaultKind::Host(_) => {}
        }
        self.budget.failed(&self.who, fault, Instant::now());
        matches!(fault.kind, FaultKind::Host(_)) || self.budget.is_spent()
    }

    /// What was failed at is known. Whether the plugin may go on.
    pub(crate) fn found(&self, message: &str) -> bool {
        self.budget.found(&self.who, message)
    }

    /// A fault that cannot be contained.
    pub(crate) fn broken(&self, message: &str) {
        self.budget.broken(&self.who, message);
    }

    /// Passes on what the plugin has logged.
    pub(crate) fn pass_on_log(&self, instance: &mut Instance) {
        let log = instance.take_log();
        for line in &log.lines {
            let level = match line.level {
                Level::Debug => "debug",
                Level::Info => "info",
                Level::Warn => "warn",
                Level::Error => "error",
            };
            self.progress.plugin_line(&self.who.name, level, &line.message);
        }
        if log.dropped > 0 {
            self.progress.plugin_lines_dropped(log.dropped);
        }
    }
}

impl Faults for Warden {
    fn found(&mut self, fault: &rule::Fault) -> bool {
        Warden::found(self, &fault.message)
    }

    /// The trial at the deployment had no such state: somebody has to hear of it.
    fn was_unfit(&mut self, why: &str) {
        self.meter.faults.fetch_add(1, Ordering::Relaxed);
        Warden::found(self, why);
        let Identity { name, version, .. } = &*self.who;
        let line = format!(
            "a session has ended as `plugin_fault`: {name} ({version}) could not migrate its state, which was not yet so when \
             the version was tried: {why}"
        );
        self.progress.keep(crate::journal::Level::Error, &line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> (Budget, Identity) {
        let limits = FaultLimits {
            faults: 2,
            overdue: Duration::from_millis(100),
            overdue_window: Duration::from_secs(1),
        };
        let who = Identity { name: "p".into(), version: "p@1.0.0".into(), digest: "00".into() };
        (Budget::new(limits), who)
    }

    fn fault(kind: FaultKind, ms: u64) -> sandbox::Fault {
        sandbox::Fault { kind, progress: None, ran: Duration::from_millis(ms) }
    }

    #[test]
    fn so_many_faults_and_no_more() {
        let (b, who) = budget();
        assert!(b.found(&who, "one"));
        assert!(b.found(&who, "two"));
        assert!(!b.found(&who, "three"));
        let s = b.suspended().unwrap();
        assert_eq!((s.faults, s.first_fault.as_str(), &s.plugin), (3, "one", &who));
        assert!(s.why.contains("3 faults, where 2 are allowed"), "{}", s.why);
    }

    #[test]
    fn overdue_time_counts_within_its_window() {
        let (b, who) = budget();
        let late = || fault(FaultKind::Deadline(Duration::from_millis(25)), 50);
        let t = Instant::now();
        b.failed(&who, &late(), t);
        b.failed(&who, &late(), t + Duration::from_millis(900));
        // The first has left the window.
        b.failed(&who, &late(), t + Duration::from_millis(1_500));
        assert!(!b.is_spent());
        b.failed(&who, &fault(FaultKind::Panic(None), 500), t + Duration::from_millis(1_501));
        assert!(!b.is_spent(), "only calls that had to be stopped");
        b.failed(&who, &late(), t + Duration::from_millis(1_600));
        let s = b.suspended().unwrap();
        assert_eq!((s.faults, s.overdue_ms), (0, 150));
    }

    #[test]
    fn the_hosts_own_fault_suspends_nobody() {
        let (b, who) = budget();
        b.failed(&who, &fault(FaultKind::Host("no room".into()), 1), Instant::now());
        b.broken(&who, "cannot go on");
        assert!(!b.is_spent());
        let (b, who) = budget();
        b.broken(&who, "cannot go on");
        assert!(b.suspended().unwrap().why.contains("cannot go on"));
    }
}
