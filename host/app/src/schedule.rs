//! Which versions of the session rule run a pipeline, since when and why: part of every epoch's meta data, so that a crash
//! in the middle of a swap recovers to one side of it.
//!
//! Invariants: one version is live, or the older and the newer one of a swap, and behind them those that rollbacks went back to
//! before that was settled, the newest last; numbers only rise; names and kinds in the layout never
//! change their place, because stored events hold values by place.

use crate::config::plan::GapRule;
use serde::{Deserialize, Serialize};
use tidemill_engine::rule::Description;
use tidemill_engine::time::EventTime;
use tidemill_engine::versions::{LIVE_MAX, Policy, Scheduled, Version, Versions};
use tidemill_sandbox::FieldType;

/// Deployments that are kept. Rows of sessions that may still change name one of the last few.
const DEPLOYMENTS_MAX: usize = 64;

/// A field of the record that a stage wants to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Declared {
    /// The stage's name for it.
    pub(crate) name: String,
    /// What it may hold.
    #[serde(with = "Kind")]
    pub(crate) kind: FieldType,
    /// Whether a record without it is a dead letter.
    pub(crate) required: bool,
    /// Texts that reach a plugin as a number.
    pub(crate) symbols: Vec<String>,
}

impl Declared {
    /// Whether both have one place in extensions: name and kind say where a value is, and what it is.
    pub(crate) fn same_place(&self, other: &Declared) -> bool {
        (&self.name, self.kind) == (&other.name, other.kind)
    }
}

/// How the store writes a field's type.
#[derive(Serialize, Deserialize)]
#[serde(remote = "FieldType", rename_all = "snake_case")]
enum Kind {
    Text,
    String,
    Integer,
    Number,
    Boolean,
}

/// What a version of a rule is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum RuleSpec {
    /// `builtin:gap`.
    Gap(GapRule),
    /// A component of the plugin store.
    Plugin {
        /// What the host calls it: its name in the config file, or its own.
        name: String,
        /// SHA-256 of the component, in hex.
        digest: String,
        /// What it is configured with.
        config: serde_json::Value,
    },
}

/// Where a deployment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// Events or states may still need it.
    Live,
    /// A newer one has taken over for good.
    Past,
    /// It was taken back before anything could depend on it.
    Struck,
}

impl Standing {
    /// The word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Standing::Live => "live",
            Standing::Past => "past",
            Standing::Struck => "struck",
        }
    }
}

/// A version in its place in event time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deployment {
    /// Number, place in event time, policy, and what rows name.
    #[serde(flatten)]
    pub(crate) scheduled: Scheduled,
    /// What it is made of.
    pub(crate) rule: RuleSpec,
    /// Host clock, ms.
    pub(crate) at_ms: i64,
    /// Who: `config` for the config file, else the name of the token.
    pub(crate) by: String,
    /// Why, in their words.
    pub(crate) message: String,
    /// Where it stands.
    pub(crate) standing: Standing,
    /// Of a rollback: the deployment that it went back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) back_to: Option<Version>,
}

impl Deployment {
    /// The deployment that it is, or is again.
    fn is_again(&self) -> Version {
        self.back_to.unwrap_or(self.scheduled.version)
    }
}

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Schedule {
    /// Fields of the extension of an event, in order.
    pub(crate) layout: Vec<Declared>,
    /// The common list of reasons of all versions.
    pub(crate) reasons: Vec<String>,
    /// Oldest first.
    pub(crate) deployments: Vec<Deployment>,
    /// The next number.
    next: u32,
    /// The rule as the config file had it when it last decided: a version from elsewhere stays until that changes.
    pub(crate) file: serde_json::Value,
}

impl Schedule {
    /// The versions that are live: one, or the older and the newer, and more while rollbacks are settled; none before the
    /// first start.
    pub(crate) fn live(&self) -> impl DoubleEndedIterator<Item = &Deployment> {
        self.deployments.iter().filter(|d| d.standing == Standing::Live)
    }

    /// The version that is in force for new events.
    pub(crate) fn newest(&self) -> Option<&Deployment> {
        self.live().next_back()
    }

    /// The swap at hand: the newest of several live versions.
    pub(crate) fn pending(&self) -> Option<&Deployment> {
        self.live().skip(1).last()
    }

    /// Whether one more may be live: a rollback of a swap that is not settled.
    pub(crate) fn has_room(&self) -> bool {
        self.live().count() < LIVE_MAX
    }

    /// The version before the one in force: what a rollback goes back to. Where the one in force is itself one that was gone
    /// back to, it is the one before that: what was rolled back from stays so.
    pub(crate) fn previous(&self) -> Option<&Deployment> {
        let newest = self.newest()?.is_again();
        let stood = |d: &&Deployment| d.standing != Standing::Struck && d.scheduled.version < newest;
        self.deployments.iter().rev().find(stood)
    }

    /// The deployment that going back to this one brings again.
    pub(crate) fn back_to(deployment: &Deployment) -> Version {
        deployment.is_again()
    }

    /// What rows may still name besides the live versions, by place in event time.
    pub(crate) fn history(&self) -> Vec<Scheduled> {
        let past = self.deployments.iter().filter(|d| d.standing == Standing::Past);
        past.map(|d| d.scheduled.clone()).collect()
    }

    /// The place of a field in extensions, which it has from now on.
    pub(crate) fn slot(&mut self, field: &Declared) -> usize {
        match self.layout.iter_mut().enumerate().find(|(_, d)| d.same_place(field)) {
            Some((at, there)) => {
                there.required |= field.required;
                there.symbols.clone_from(&field.symbols);
                at
            }
            None => {
                self.layout.push(field.clone());
                self.layout.len() - 1
            }
        }
    }

    /// Adds a version that is in force from `from` on. Whoever calls has made sure that there is room for it.
    pub(crate) fn add(
        &mut self,
        rule: RuleSpec,
        description: &Description,
        from: EventTime,
        wish: &Wish,
        at_ms: i64,
    ) -> Scheduled {
        Versions::extend_reasons(&mut self.reasons, description);
        let scheduled = Scheduled {
            version: Version(self.next),
            from,
            policy: wish.policy,
            drained_by: match wish.policy {
                Policy::Migrate => EventTime::INFINITY,
                Policy::Drain => from.plus(wish.drain_max_ms),
            },
            plugin: description.plugin.clone(),
            digest: description.digest.clone(),
        };
        self.next += 1;
        self.deployments.push(Deployment {
            scheduled: scheduled.clone(),
            rule,
            at_ms,
            by: wish.by.clone(),
            message: wish.message.clone(),
            standing: Standing::Live,
            back_to: wish.back_to,
        });
        while self.deployments.len() > DEPLOYMENTS_MAX {
            // Live ones are the last.
            self.deployments.remove(0);
        }
        scheduled
    }

    /// The newest of several live versions is taken back.
    pub(crate) fn strike(&mut self) {
        if self.pending().is_some()
            && let Some(newest) = self.deployments.iter_mut().rfind(|d| d.standing == Standing::Live)
        {
            newest.standing = Standing::Struck;
        }
    }

    /// Of several live versions only the newest is needed any more.
    pub(crate) fn retire(&mut self) {
        let Some(newest) = self.newest().map(|d| d.scheduled.version) else { return };
        for d in &mut self.deployments {
            if d.standing == Standing::Live && d.scheduled.version < newest {
                d.standing = Standing::Past;
            }
        }
    }
}

/// How long sessions may be drained if nobody says: a day has passed for everybody by then.
pub(crate) const DRAIN_MAX_MS: i64 = 86_400_000;

/// How somebody wants a version to come into force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    /// What becomes of open sessions.
    pub(crate) policy: Policy,
    /// How long after its place sessions may be drained, ms of event time.
    pub(crate) drain_max_ms: i64,
    /// Who wants it.
    pub(crate) by: String,
    /// Why.
    pub(crate) message: String,
    /// Of a rollback: the deployment that it goes back to.
    pub(crate) back_to: Option<Version>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_engine::rule::StateForm;

    fn deployed(schedule: &mut Schedule, back_to: Option<Version>) {
        let rule =
            RuleSpec::Plugin { name: "p".into(), digest: String::new(), config: serde_json::Value::Null };
        let description = Description {
            plugin: "p@1".into(),
            digest: None,
            fields: Vec::new(),
            reasons: Vec::new(),
            timers: Vec::new(),
            state: StateForm { rule: "p".into(), version: 1, shape: String::new(), from: Vec::new() },
            metrics: Vec::new(),
            wants_key: false,
        };
        let wish = Wish {
            policy: Policy::Migrate,
            drain_max_ms: 0,
            by: "admin".into(),
            message: String::new(),
            back_to,
        };
        schedule.add(rule, &description, EventTime::BEGINNING, &wish, 0);
    }

    /// Bug family: a second rollback that puts in force again what the first one took away.
    #[test]
    fn a_rollback_never_goes_back_to_what_was_rolled_back_from() {
        let mut s = Schedule::default();
        let previous = |s: &Schedule| s.previous().map(|d| d.scheduled.version.0);
        let back = |s: &mut Schedule| {
            let to = s.previous().map(Schedule::back_to);
            deployed(s, to);
            s.retire();
        };
        for _ in 0..3 {
            deployed(&mut s, None);
            s.retire();
        }
        assert_eq!(previous(&s), Some(1));
        back(&mut s);
        assert_eq!(previous(&s), Some(0), "2 was rolled back from, 3 is 1 again");
        back(&mut s);
        assert_eq!(previous(&s), None, "4 is 0 again");
        deployed(&mut s, None);
        assert_eq!(s.live().count(), 2);
        assert_eq!(previous(&s), Some(4), "5 follows 4");
        back(&mut s);
        assert_eq!(previous(&s), None, "6 is 4 again, which is 0");
        // What is struck out never was.
        deployed(&mut s, None);
        s.strike();
        assert_eq!(previous(&s), None);
    }
}
