//! Plugins in the pipeline: components behind the traits of the stages.
//!
//! The sandbox speaks frames and knows nothing of sessions, the engine speaks turns and knows nothing of WebAssembly; this
//! is where the one is put into the words of the other.

pub(crate) mod budget;
pub(crate) mod enrich;
mod frames;
pub(crate) mod purity;
mod rule;
pub(crate) mod validate;

use self::budget::{Budget, Identity, Warden};
use self::enrich::Enricher;
use self::rule::PluginRule;
use self::validate::Validators;
use crate::config::plan::{GapRule, Match, Pipeline, PluginUse, Rule};
use crate::progress::Progress;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tidemill_engine::contain::Contained;
use tidemill_engine::gap::{self, Boundary, Gap, GapConfig};
use tidemill_engine::rule::SessionRule;
use tidemill_sandbox::{Cache, Component, ConfigureError, Engine, EngineError, FieldType, Plugin, World};

/// The longest that one call of some hundred rows may take. Half of what stopping a runaway plugin may cost in all,
/// and about a thousand times what such a call takes.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_millis(25);

/// A field of the record that a stage wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declared {
    /// The stage's name for it.
    pub(crate) name: String,
    /// What it may hold.
    pub(crate) kind: FieldType,
    /// Whether a record without it is a dead letter.
    pub(crate) required: bool,
    /// Texts that reach a plugin as a number.
    pub(crate) symbols: Vec<String>,
}

/// What a pipeline does to its events: the plugins and built-in rules, loaded and configured.
pub(crate) struct Stages {
    /// Fields of the extension of an event, in order: the session rule's first.
    pub(crate) declared: Vec<Declared>,
    session: Session,
    validators: Vec<(Plugin, Arc<Identity>, usize)>,
    /// With the lookup of the plan that answers each of the plugin's.
    enrichers: Vec<(Plugin, Arc<Identity>, Vec<usize>)>,
    /// What its plugins may fail at, all together.
    pub(crate) budget: Arc<Budget>,
    /// The session rule's component, for the fingerprint.
    pub(crate) digest: Option<String>,
}

enum Session {
    Gap(GapConfig),
    Plugin(Plugin, Arc<Identity>),
}

/// The engine that all plugins of the process run in, started when the first one needs it.
pub(crate) struct Sandbox {
    /// Where compiled code is kept.
    compiled: PathBuf,
    started: Mutex<Option<(Engine, Option<Cache>)>>,
}

impl Sandbox {
    /// Keeps compiled code in this directory.
    pub(crate) fn new(compiled: PathBuf) -> Sandbox {
        Sandbox { compiled, started: Mutex::new(None) }
    }

    fn engine(&self) -> Result<(Engine, Option<Cache>), EngineError> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(s) = &*started {
            return Ok(s.clone());
        }
        // Without a place for compiled code a start takes longer, and nothing else.
        Ok(started.insert((Engine::new()?, Cache::open(&self.compiled).ok())).clone())
    }
}

/// A plugin that cannot be used where the config names it.
#[derive(Debug, thiserror::Error)]
#[error("plugin `{name}` ({path}): {message}")]
pub(crate) struct PluginError {
    name: String,
    path: String,
    message: String,
    /// Whether the machine is at fault, and not the plugin or its config.
    pub(crate) host: bool,
}

impl Stages {
    /// Loads what the pipeline names.
    ///
    /// # Errors
    /// If a component cannot be read, is none, is of another kind, or does not take its config.
    pub(crate) fn load(pipeline: &Pipeline, sandbox: &Sandbox) -> Result<Stages, PluginError> {
        let mut declared = Vec::new();
        let mut digest = None;
        let session = match &pipeline.rule {
            Rule::Gap(rule) => {
                let config = gap_config(rule);
                for name in &Gap::new(&config).describe().fields {
                    declared.push(Declared {
                        name: name.clone(),
                        kind: FieldType::Text,
                        required: false,
                        symbols: Vec::new(),
                    });
                }
                Session::Gap(config)
            }
            Rule::Plugin(named) => {
                let plugin = load(named, World::Sessionizer, sandbox)?;
                declare(&plugin, &mut declared);
                digest = Some(plugin.component().digest().to_string());
                let who = identity(named, &plugin);
                Session::Plugin(plugin, who)
            }
        };
        let mut validators = Vec::new();
        for named in &pipeline.validate {
            let plugin = load(named, World::Validator, sandbox)?;
            validators.push((plugin.clone(), identity(named, &plugin), declared.len()));
            declare(&plugin, &mut declared);
        }
        let mut enrichers = Vec::new();
        for named in &pipeline.enrich {
            let plugin = load(named, World::Enricher, sandbox)?;
            let lookups = lookups(named, &plugin.component().description().lookups)?;
            let who = identity(named, &plugin);
            enrichers.push((plugin, who, lookups));
        }
        let budget = Arc::new(Budget::new(pipeline.limits.faults));
        Ok(Stages { declared, session, validators, enrichers, budget, digest })
    }

    /// The session rule, for one lane.
    ///
    /// # Errors
    /// If no instance can be made.
    pub(crate) fn rule(&self, progress: &Arc<Progress>) -> Result<Box<dyn SessionRule>, String> {
        match &self.session {
            Session::Gap(config) => Ok(Box::new(Gap::new(config))),
            Session::Plugin(plugin, who) => {
                let instance = plugin.instance().map_err(|f| f.to_string())?;
                let warden = self.warden(who, progress);
                Ok(Box::new(Contained::new(PluginRule::new(instance, warden.clone()), warden)))
            }
        }
    }

    /// The enrichers, for one worker.
    ///
    /// # Errors
    /// If no instance can be made.
    pub(crate) fn enrichers(&self, progress: &Arc<Progress>) -> Result<Vec<Enricher>, String> {
        let one = |(plugin, who, lookups): &(Plugin, Arc<Identity>, Vec<usize>)| {
            let instance = plugin.instance().map_err(|f| f.to_string())?;
            Ok(Enricher::new(instance, self.warden(who, progress), lookups.clone()))
        };
        self.enrichers.iter().map(one).collect()
    }

    /// Who answers for what the session rule does; none for a built-in one.
    pub(crate) fn rule_warden(&self, progress: &Arc<Progress>) -> Option<Warden> {
        match &self.session {
            Session::Gap(_) => None,
            Session::Plugin(_, who) => Some(self.warden(who, progress)),
        }
    }

    fn warden(&self, who: &Arc<Identity>, progress: &Arc<Progress>) -> Warden {
        Warden { who: who.clone(), budget: self.budget.clone(), progress: progress.clone() }
    }

    /// The validators, for one reader.
    ///
    /// # Errors
    /// If no instance can be made.
    pub(crate) fn validators(&self, progress: &Arc<Progress>) -> Result<Validators, String> {
        let mut all = Validators::default();
        for (plugin, who, slot) in &self.validators {
            let instance = plugin.instance().map_err(|f| f.to_string())?;
            all.push(instance, self.warden(who, progress), *slot);
        }
        Ok(all)
    }
}

/// Which lookup of the plan answers each that a plugin declares.
fn lookups(named: &PluginUse, declared: &[String]) -> Result<Vec<usize>, PluginError> {
    let error = |message: String| PluginError {
        name: named.name.clone(),
        path: named.path.display().to_string(),
        message,
        host: false,
    };
    if let Some((unknown, _)) = named.lookups.iter().find(|(name, _)| !declared.contains(name)) {
        let asked = declared.join("`, `");
        return Err(error(format!("asks for no lookup `{unknown}`; its lookups are `{asked}`")));
    }
    let find = |name: &String| {
        let found = named.lookups.iter().find(|(n, _)| n == name).map(|(_, at)| *at);
        found.ok_or_else(|| {
            let table = &named.name;
            error(format!(
                "asks for the lookup `{name}`: write `lookups = {{ {name} = \"..\" }}` in [plugin.{table}]"
            ))
        })
    };
    declared.iter().map(find).collect()
}

fn declare(plugin: &Plugin, declared: &mut Vec<Declared>) {
    declared.extend(plugin.component().description().fields.iter().map(|f| Declared {
        name: f.name.clone(),
        kind: f.field_type,
        required: f.required,
        symbols: f.symbols.clone(),
    }));
}

fn identity(named: &PluginUse, plugin: &Plugin) -> Arc<Identity> {
    let (component, d) = (plugin.component(), plugin.component().description());
    Arc::new(Identity {
        name: named.name.clone(),
        version: format!("{}@{}", d.name, d.version),
        digest: component.digest().to_string(),
    })
}

fn load(named: &PluginUse, world: World, sandbox: &Sandbox) -> Result<Plugin, PluginError> {
    let error = |message: String, host| PluginError {
        name: named.name.clone(),
        path: named.path.display().to_string(),
        message,
        host,
    };
    let (engine, cache) = sandbox.engine().map_err(|e| error(e.to_string(), true))?;
    let bytes = std::fs::read(&named.path).map_err(|e| error(format!("cannot be read: {e}"), false))?;
    let component =
        Component::load(&engine, &bytes, cache.as_ref()).map_err(|e| error(e.to_string(), e.is_host()))?;
    if component.world() != world {
        let message = format!("is a {}, and `{}` wants a {world}", component.world(), named.key);
        return Err(error(message, false));
    }
    let plugin = component.configure(&named.config.to_string()).map_err(|e| match e {
        ConfigureError::Refused(fields) => {
            let at = |path: &str| if path.is_empty() { "/".to_owned() } else { path.to_owned() };
            let list: Vec<String> =
                fields.iter().map(|f| format!("  {}: {}", at(&f.path), f.message)).collect();
            error(format!("does not take its config:\n{}", list.join("\n")), false)
        }
        other => error(other.to_string(), false),
    })?;
    purity::check(&plugin, &purity::made_up(plugin.component().description()))
        .map_err(|e| error(e.to_string(), false))?;
    Ok(plugin)
}

fn gap_config(rule: &GapRule) -> GapConfig {
    let matches = |m: &Option<Match>| {
        m.as_ref().map(|m| gap::Match { field: m.field.clone(), values: m.values.clone() })
    };
    GapConfig {
        gap_ms: rule.gap_ms,
        boundary: if rule.inclusive { Boundary::Inclusive } else { Boundary::Exclusive },
        max_ms: rule.max_ms,
        start: matches(&rule.start),
        end: matches(&rule.end),
    }
}
