//! Which versions of the session rule run a pipeline, since when and why: part of every epoch's meta data, so that a crash
//! in the middle of a swap recovers to one side of it.
//!
//! Invariants: at most two versions are live, the newer one last; numbers only rise; names and kinds in the layout never
//! change their place, because stored events hold values by place.

use crate::config::plan::GapRule;
use serde::{Deserialize, Serialize};
use tidemill_engine::rule::Description;
use tidemill_engine::time::EventTime;
use tidemill_engine::versions::{Policy, Scheduled, Version, Versions};
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
    /// The versions that are live: one, or the older and the newer; none before the first start.
    pub(crate) fn live(&self) -> impl DoubleEndedIterator<Item = &Deployment> {
        self.deployments.iter().filter(|d| d.standing == Standing::Live)
    }

    /// The version that is in force for new events.
    pub(crate) fn newest(&self) -> Option<&Deployment> {
        self.live().next_back()
    }

    /// The swap at hand: the newer of two live versions.
    pub(crate) fn pending(&self) -> Option<&Deployment> {
        self.live().nth(1)
    }

    /// The version before the one in force: what a rollback goes back to.
    pub(crate) fn previous(&self) -> Option<&Deployment> {
        let newest = self.newest()?.scheduled.version;
        let mut before = self
            .deployments
            .iter()
            .rev()
            .filter(|d| d.standing != Standing::Struck && d.scheduled.version < newest);
        before.next()
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

    /// Adds a version that is in force from `from` on. Whoever calls has made sure that at most one is live.
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
        });
        while self.deployments.len() > DEPLOYMENTS_MAX {
            // Live ones are the last.
            self.deployments.remove(0);
        }
        scheduled
    }

    /// The newer of two live versions is taken back.
    pub(crate) fn strike(&mut self) {
        if self.pending().is_some()
            && let Some(newest) = self.deployments.iter_mut().rfind(|d| d.standing == Standing::Live)
        {
            newest.standing = Standing::Struck;
        }
    }

    /// The older of two live versions is needed no more.
    pub(crate) fn retire(&mut self) {
        if self.pending().is_some()
            && let Some(oldest) = self.deployments.iter_mut().find(|d| d.standing == Standing::Live)
        {
            oldest.standing = Standing::Past;
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
}
