//! A version of a session rule, loaded: what it is made of, what it says of itself, and instances of it for lanes.

use super::budget::{Budget, Identity, Warden};
use super::rule::{PluginRule, description};
use super::{
    NOWHERE, Part, PluginError, Sandbox, Session, Unfit, declared, gap_config, identity, make, read,
};
use crate::config::plan::{Pipeline, Rule};
use crate::progress::Progress;
use crate::schedule::{Declared, RuleSpec, Schedule};
use crate::store::components::Components;
use std::sync::Arc;
use tidemill_engine::contain::Contained;
use tidemill_engine::gap::Gap;
use tidemill_engine::rule::{Description, SessionRule};
use tidemill_sandbox::{FieldType, World};

/// See the module's documentation.
pub(crate) struct LoadedRule {
    /// What it is made of.
    pub(crate) spec: RuleSpec,
    /// What it says of itself.
    pub(crate) description: Description,
    pub(super) session: Session,
    /// In the order of the rule's own; none for one that it does not read.
    fields: Vec<Option<Declared>>,
}

impl LoadedRule {
    /// The rule that a pipeline's config names; with the component's bytes, to be kept before they are deployed.
    ///
    /// # Errors
    /// If the component cannot be used.
    pub(crate) fn of_config(
        pipeline: &Pipeline,
        sandbox: &Sandbox,
    ) -> Result<(LoadedRule, Option<Vec<u8>>), PluginError> {
        match &pipeline.rule {
            Rule::Gap(rule) => Ok((LoadedRule::gap(RuleSpec::Gap(rule.clone()), gap_config(rule)), None)),
            Rule::Plugin(named) => {
                let (plugin, bytes) = read(named, World::Sessionizer, sandbox)?;
                let spec = RuleSpec::Plugin {
                    name: named.name.clone(),
                    digest: plugin.component().digest().to_string(),
                    config: named.config.clone(),
                };
                Ok((LoadedRule::component(spec, &named.name, plugin), Some(bytes)))
            }
        }
    }

    /// A rule from the plugin store.
    ///
    /// # Errors
    /// If the component is not there or cannot be used.
    pub(crate) fn stored(
        spec: &RuleSpec,
        components: &Components,
        sandbox: &Sandbox,
    ) -> Result<LoadedRule, Unfit> {
        match spec {
            RuleSpec::Gap(rule) => Ok(LoadedRule::gap(spec.clone(), gap_config(rule))),
            RuleSpec::Plugin { name, digest, config } => {
                let bytes = components.read(digest).map_err(|e| Unfit {
                    message: format!("the component of plugin `{name}` cannot be read: {e}"),
                    part: Part::File,
                    host: true,
                })?;
                let made = make(&bytes, config, World::Sessionizer, "session", sandbox);
                // Nobody has named a place in a file: the message says itself what it is about.
                let plugin = made.map_err(|e| match e.part {
                    Part::Use | Part::Config(_) => {
                        Unfit { message: format!("plugin `{name}` {}", e.message), ..e }
                    }
                    Part::File => Unfit { message: format!("plugin `{name}`: {}", e.message), ..e },
                })?;
                Ok(LoadedRule::component(spec.clone(), name, plugin))
            }
        }
    }

    fn gap(spec: RuleSpec, config: tidemill_engine::gap::GapConfig) -> LoadedRule {
        let description = Gap::new(&config).describe().clone();
        let declared = |name: &String| {
            let symbols = Vec::new();
            Some(Declared { name: name.clone(), kind: FieldType::Text, required: false, symbols })
        };
        let fields = description.fields.iter().map(declared).collect();
        LoadedRule { spec, description, session: Session::Gap(config), fields }
    }

    fn component(spec: RuleSpec, name: &str, plugin: tidemill_sandbox::Plugin) -> LoadedRule {
        let who = identity(name, &plugin);
        let description = description(plugin.component().description(), &who.digest);
        let fields = declared(&plugin);
        LoadedRule { spec, description, session: Session::Plugin(plugin, who), fields }
    }

    /// Which plugin it is; none for a built-in rule.
    pub(crate) fn who(&self) -> Option<&Arc<Identity>> {
        match &self.session {
            Session::Gap(_) => None,
            Session::Plugin(_, who) => Some(who),
        }
    }

    /// Who answers for what it does; none for a built-in rule.
    pub(crate) fn warden(&self, budget: &Arc<Budget>, progress: &Arc<Progress>) -> Option<Warden> {
        self.who().map(|who| Warden::new(who, budget, progress))
    }

    /// Gives its fields their places in the layout.
    pub(crate) fn slots(&self, schedule: &mut Schedule) {
        self.fields.iter().flatten().for_each(|f| {
            schedule.slot(f);
        });
    }

    /// An instance for one lane, whose events have this layout.
    ///
    /// # Errors
    /// If no instance can be made.
    pub(crate) fn instance(
        &self,
        layout: &[Declared],
        budget: &Arc<Budget>,
        progress: &Arc<Progress>,
    ) -> Result<Box<dyn SessionRule>, String> {
        let place = |f: &Declared| layout.iter().position(|d| d.same_place(f));
        let slots: Vec<usize> =
            self.fields.iter().map(|f| f.as_ref().and_then(place).unwrap_or(NOWHERE)).collect();
        match &self.session {
            Session::Gap(config) => {
                Ok(Box::new(Gap::at(config, |n| slots.get(n).copied().unwrap_or(NOWHERE))))
            }
            Session::Plugin(plugin, who) => {
                let instance = plugin.instance().map_err(|f| f.to_string())?;
                let warden = Warden::new(who, budget, progress);
                Ok(Box::new(Contained::new(PluginRule::new(instance, warden.clone(), &slots), warden)))
            }
        }
    }
}
