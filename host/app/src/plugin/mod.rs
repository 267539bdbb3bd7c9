//! Plugins in the pipeline: components behind the traits of the stages.
//!
//! The sandbox speaks frames and knows nothing of sessions, the engine speaks turns and knows nothing of WebAssembly; this
//! is where the one is put into the words of the other.

pub(crate) mod enrich;
mod frames;
mod rule;
pub(crate) mod validate;

use self::enrich::Enricher;
use self::rule::PluginRule;
use self::validate::Validators;
use crate::config::plan::{GapRule, Match, Pipeline, PluginUse, Rule};
use std::path::Path;
use std::time::Duration;
use tidemill_engine::contain::Contained;
use tidemill_engine::gap::{self, Boundary, Gap, GapConfig};
use tidemill_engine::rule::SessionRule;
use tidemill_sandbox::{Cache, Component, ConfigureError, Engine, FieldType, Plugin, World};

/// The longest that one call of some hundred rows may take. Half of what stopping a runaway plugin may cost in all,
/// and about a thousand times what such a call takes.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_millis(25);
/// Faults of a session rule before its pipeline is stopped: more is no poison event but a broken rule.
const FAULTS_MAX: u32 = 20;

/// A field of the record that a stage wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declared {
    /// The stage's name for it.
    pub(crate) name: String,
    /// What it may hold.
    pub(crate) kind: FieldType,
    /// Whether a record without it is a dead letter.
    pub(crate) required: bool,
}

/// What a pipeline does to its events: the plugins and built-in rules, loaded and configured.
pub(crate) struct Stages {
    /// Fields of the extension of an event, in order: the session rule's first.
    pub(crate) declared: Vec<Declared>,
    session: Session,
    validators: Vec<(Plugin, usize)>,
    /// With the lookup of the plan that answers each of the plugin's.
    enrichers: Vec<(Plugin, Vec<usize>)>,
    /// The session rule's component, for the fingerprint.
    pub(crate) digest: Option<String>,
}

enum Session {
    Gap(GapConfig),
    Plugin(Plugin),
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
    /// Loads what the pipeline names. Compiled code is kept below `data_dir`.
    ///
    /// # Errors
    /// If a component cannot be read, is none, is of another kind, or does not take its config.
    pub(crate) fn load(pipeline: &Pipeline, data_dir: &Path) -> Result<Stages, PluginError> {
        let mut sandbox = None;
        let mut declared = Vec::new();
        let mut digest = None;
        let session = match &pipeline.rule {
            Rule::Gap(rule) => {
                let config = gap_config(rule);
                for name in &Gap::new(&config).describe().fields {
                    declared.push(Declared { name: name.clone(), kind: FieldType::Text, required: false });
                }
                Session::Gap(config)
            }
            Rule::Plugin(named) => {
                let plugin = load(named, World::Sessionizer, &mut sandbox, data_dir)?;
                declare(&plugin, &mut declared);
                digest = Some(plugin.component().digest().to_string());
                Session::Plugin(plugin)
            }
        };
        let mut validators = Vec::new();
        for named in &pipeline.validate {
            let plugin = load(named, World::Validator, &mut sandbox, data_dir)?;
            validators.push((plugin.clone(), declared.len()));
            declare(&plugin, &mut declared);
        }
        let mut enrichers = Vec::new();
        for named in &pipeline.enrich {
            let plugin = load(named, World::Enricher, &mut sandbox, data_dir)?;
            let lookups = lookups(named, &plugin.component().description().lookups)?;
            enrichers.push((plugin, lookups));
        }
        Ok(Stages { declared, session, validators, enrichers, digest })
    }

    /// The session rule, for one lane.
    ///
    /// # Errors
    /// If no instance can be made.
    pub(crate) fn rule(&self) -> Result<Box<dyn SessionRule>, String> {
        match &self.session {
            Session::Gap(config) => Ok(Box::new(Gap::new(config))),
            Session::Plugin(plugin) => {
                let instance = plugin.instance().map_err(|f| f.to_string())?;
                Ok(Box::new(Contained::new(PluginRule::new(instance), FAULTS_MAX)))
            }
        }
    }

    /// The enrichers, for one worker.
    ///
    /// # Errors
    /// If no instance can be made.
    pub(crate) fn enrichers(&self) -> Result<Vec<Enricher>, String> {
        let one = |(plugin, lookups): &(Plugin, Vec<usize>)| {
            let instance = plugin.instance().map_err(|f| f.to_string())?;
            Ok(Enricher::new(instance, lookups.clone()))
        };
        self.enrichers.iter().map(one).collect()
    }

    /// The validators, for one reader.
    ///
    /// # Errors
    /// If no instance can be made.
    pub(crate) fn validators(&self) -> Result<Validators, String> {
        let mut all = Validators::default();
        for (plugin, slot) in &self.validators {
            all.push(plugin.instance().map_err(|f| f.to_string())?, *slot);
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
    }));
}

fn load(
    named: &PluginUse,
    world: World,
    sandbox: &mut Option<(Engine, Option<Cache>)>,
    data_dir: &Path,
) -> Result<Plugin, PluginError> {
    let error = |message: String, host| PluginError {
        name: named.name.clone(),
        path: named.path.display().to_string(),
        message,
        host,
    };
    let (engine, cache) = match sandbox {
        Some(s) => s,
        None => {
            let engine = Engine::new().map_err(|e| error(e.to_string(), true))?;
            // Without a place for compiled code a start takes longer, and nothing else.
            let cache = Cache::open(&data_dir.join("compiled")).ok();
            sandbox.insert((engine, cache))
        }
    };
    let bytes = std::fs::read(&named.path).map_err(|e| error(format!("cannot be read: {e}"), false))?;
    let component =
        Component::load(engine, &bytes, cache.as_ref()).map_err(|e| error(e.to_string(), e.is_host()))?;
    if component.world() != world {
        let message = format!("is a {}, and `{}` wants a {world}", component.world(), named.key);
        return Err(error(message, false));
    }
    component.configure(&named.config.to_string()).map_err(|e| match e {
        ConfigureError::Refused(fields) => {
            let at = |path: &str| if path.is_empty() { "/".to_owned() } else { path.to_owned() };
            let list: Vec<String> =
                fields.iter().map(|f| format!("  {}: {}", at(&f.path), f.message)).collect();
            error(format!("does not take its config:\n{}", list.join("\n")), false)
        }
        other => error(other.to_string(), false),
    })
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
