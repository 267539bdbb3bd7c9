//! Plugins in the pipeline: components behind the traits of the stages.
//!
//! The sandbox speaks frames and knows nothing of sessions, the engine speaks turns and knows nothing of WebAssembly; this
//! is where the one is put into the words of the other.

pub(crate) mod budget;
pub(crate) mod enrich;
mod frames;
#[cfg(test)]
mod fuzz;
mod pace;
pub(crate) mod purity;
mod rule;
pub(crate) mod validate;
mod version;

pub(crate) use self::version::LoadedRule;

use self::budget::{Budget, Identity, Warden};
use self::enrich::Enricher;
use self::validate::Validators;
use crate::config::plan::{GapRule, Match, Pipeline, PluginUse, Rule};
use crate::progress::Progress;
use crate::schedule::{Declared, Schedule};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tidemill_engine::gap::{self, Boundary, GapConfig};
use tidemill_engine::rule::SessionRule;
use tidemill_sandbox::{
    Cache, Component, ConfigureError, Engine, EngineError, FieldError, LoadError, Plugin, World,
};

/// The longest that one call of some hundred rows may take. Half of what stopping a runaway plugin may cost in all,
/// and about a thousand times what such a call takes.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_millis(25);

/// What a pipeline does to its events beside folding them: plugins loaded and configured, and the layout that all of them
/// read.
pub(crate) struct Stages {
    /// Fields of the extension of an event, in order.
    pub(crate) layout: Vec<Declared>,
    /// The live versions of the session rule: one, or the older and the newer.
    rules: Vec<Arc<LoadedRule>>,
    /// With the places of its fields in extensions.
    validators: Vec<(Plugin, Arc<Identity>, Vec<usize>)>,
    /// With the lookup of the plan that answers each of the plugin's.
    enrichers: Vec<(Plugin, Arc<Identity>, Vec<usize>)>,
    /// What its plugins may fail at, all together.
    pub(crate) budget: Arc<Budget>,
}

enum Session {
    Gap(GapConfig),
    Plugin(Plugin, Arc<Identity>),
}

/// The engine that all plugins of the process run in, started when the first one needs it.
pub(crate) struct Sandbox {
    /// Where compiled code is kept, if it is.
    compiled: Option<PathBuf>,
    started: Mutex<Option<(Engine, Option<Cache>)>>,
}

impl Sandbox {
    /// Keeps compiled code in this directory.
    pub(crate) fn new(compiled: PathBuf) -> Sandbox {
        Sandbox { compiled: Some(compiled), started: Mutex::new(None) }
    }

    /// Keeps nothing.
    pub(crate) fn without_cache() -> Sandbox {
        Sandbox { compiled: None, started: Mutex::new(None) }
    }

    fn engine(&self) -> Result<(Engine, Option<Cache>), EngineError> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(s) = &*started {
            return Ok(s.clone());
        }
        // Without a place for compiled code a start takes longer, and nothing else.
        let cache = self.compiled.as_ref().and_then(|path| Cache::open(path).ok());
        Ok(started.insert((Engine::new()?, cache)).clone())
    }
}

/// Why bytes cannot be used as a plugin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TryError {
    /// The machine is at fault.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The component is, mostly.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl Sandbox {
    /// A component out of these bytes, checked and compiled: not for a thread that has events or requests to work on.
    ///
    /// # Errors
    /// If it cannot be used.
    pub(crate) fn try_component(&self, bytes: &[u8]) -> Result<Component, TryError> {
        let (engine, cache) = self.engine()?;
        Ok(Component::load(&engine, bytes, cache.as_ref())?)
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("compiled", &self.compiled).finish_non_exhaustive()
    }
}

/// A plugin that cannot be used where the config names it.
#[derive(Debug, thiserror::Error)]
#[error("plugin `{name}` ({path}): {message}")]
pub(crate) struct PluginError {
    name: String,
    path: String,
    /// What is wrong.
    pub(crate) message: String,
    /// What of it.
    pub(crate) part: Part,
    /// Whether the machine is at fault, and not the plugin or its config.
    pub(crate) host: bool,
}

/// What of a plugin in its place is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The component.
    File,
    /// The place, which wants another kind of plugin, or lookups that the plugin does not ask for or misses.
    Use,
    /// Its config: these fields, as the plugin says.
    Config(Vec<FieldError>),
}

/// What of the plugins that a pipeline names cannot be used, all of it.
pub(crate) fn unfit<'a>(pipeline: &'a Pipeline, sandbox: &Sandbox) -> Vec<(&'a PluginUse, PluginError)> {
    let rule = match &pipeline.rule {
        Rule::Gap(_) => None,
        Rule::Plugin(named) => Some((named, World::Sessionizer)),
    };
    let validators = pipeline.validate.iter().map(|named| (named, World::Validator));
    let enrichers = pipeline.enrich.iter().map(|named| (named, World::Enricher));
    let judge = |(named, world): (&'a PluginUse, World)| {
        let loaded = load(named, world, sandbox);
        let judged = loaded.and_then(|p| lookups(named, &p.component().description().lookups));
        judged.err().map(|e| (named, e))
    };
    rule.into_iter().chain(validators).chain(enrichers).filter_map(judge).collect()
}

impl Stages {
    /// Loads what the pipeline names besides its rule, and gives every stage the places of its fields in the schedule's layout.
    ///
    /// # Errors
    /// If a component cannot be read, is none, is of another kind, or does not take its config.
    pub(crate) fn load(
        pipeline: &Pipeline,
        sandbox: &Sandbox,
        rules: Vec<Arc<LoadedRule>>,
        schedule: &mut Schedule,
    ) -> Result<Stages, PluginError> {
        for rule in &rules {
            rule.slots(schedule);
        }
        let mut validators = Vec::new();
        for named in &pipeline.validate {
            let plugin = load(named, World::Validator, sandbox)?;
            let who = identity(&named.name, &plugin);
            let place = |d: &Option<Declared>| d.as_ref().map_or(NOWHERE, |d| schedule.slot(d));
            let slots = declared(&plugin).iter().map(place).collect();
            validators.push((plugin, who, slots));
        }
        let mut enrichers = Vec::new();
        for named in &pipeline.enrich {
            let plugin = load(named, World::Enricher, sandbox)?;
            let lookups = lookups(named, &plugin.component().description().lookups)?;
            let who = identity(&named.name, &plugin);
            enrichers.push((plugin, who, lookups));
        }
        let budget = Arc::new(Budget::new(pipeline.limits.faults));
        Ok(Stages { layout: schedule.layout.clone(), rules, validators, enrichers, budget })
    }

    /// What the pipeline's config names, without a store: to measure or to check it.
    ///
    /// # Errors
    /// As [`load`](Stages::load).
    pub(crate) fn of_config(pipeline: &Pipeline, sandbox: &Sandbox) -> Result<Stages, PluginError> {
        let (rule, _) = LoadedRule::of_config(pipeline, sandbox)?;
        Stages::load(pipeline, sandbox, vec![Arc::new(rule)], &mut Schedule::default())
    }

    /// An instance of each live version, for one lane.
    ///
    /// # Errors
    /// If no instance can be made.
    pub(crate) fn rules(&self, progress: &Arc<Progress>) -> Result<Vec<Box<dyn SessionRule>>, String> {
        self.rules.iter().map(|r| r.instance(&self.layout, &self.budget, progress)).collect()
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

    /// Who answers for what the newest session rule does; none for a built-in one.
    pub(crate) fn rule_warden(&self, progress: &Arc<Progress>) -> Option<Warden> {
        match self.rules.last().map(|r| &r.session) {
            Some(Session::Plugin(_, who)) => Some(self.warden(who, progress)),
            _ => None,
        }
    }

    fn warden(&self, who: &Arc<Identity>, progress: &Arc<Progress>) -> Warden {
        Warden::new(who, &self.budget, progress)
    }

    /// The validators, for one reader.
    ///
    /// # Errors
    /// If no instance can be made.
    pub(crate) fn validators(&self, progress: &Arc<Progress>) -> Result<Validators, String> {
        let mut all = Validators::default();
        for (plugin, who, slots) in &self.validators {
            let instance = plugin.instance().map_err(|f| f.to_string())?;
            all.push(instance, self.warden(who, progress), slots);
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
        part: Part::Use,
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

/// Where a field stands that no event has: it reads as missing.
const NOWHERE: usize = usize::MAX;

/// The fields of a plugin in order; none for one that it does not read under its config.
fn declared(plugin: &Plugin) -> Vec<Option<Declared>> {
    let one = |(n, f): (usize, &tidemill_sandbox::Field)| {
        plugin.reads(n).then(|| Declared {
            name: f.name.clone(),
            kind: f.field_type,
            required: f.required,
            symbols: f.symbols.clone(),
        })
    };
    plugin.component().description().fields.iter().enumerate().map(one).collect()
}

fn identity(name: &str, plugin: &Plugin) -> Arc<Identity> {
    let (component, d) = (plugin.component(), plugin.component().description());
    Arc::new(Identity {
        name: name.to_owned(),
        version: format!("{}@{}", d.name, d.version),
        digest: component.digest().to_string(),
    })
}

fn load(named: &PluginUse, world: World, sandbox: &Sandbox) -> Result<Plugin, PluginError> {
    let (plugin, _) = read(named, world, sandbox)?;
    Ok(plugin)
}

/// A plugin from its file, and the file's bytes.
fn read(named: &PluginUse, world: World, sandbox: &Sandbox) -> Result<(Plugin, Vec<u8>), PluginError> {
    let error = |Unfit { message, part, host }: Unfit| PluginError {
        name: named.name.clone(),
        path: named.path.display().to_string(),
        message,
        part,
        host,
    };
    let unread =
        |e: std::io::Error| Unfit { message: format!("cannot be read: {e}"), part: Part::File, host: false };
    let bytes = tidemill_sandbox::read(&named.path).map_err(|e| error(unread(e)))?;
    let plugin = make(&bytes, &named.config, world, &named.key, sandbox).map_err(error)?;
    Ok((plugin, bytes))
}

/// Why bytes are no plugin for a place.
pub(crate) struct Unfit {
    /// What is wrong.
    pub(crate) message: String,
    /// What of it.
    pub(crate) part: Part,
    /// Whether the machine is at fault.
    pub(crate) host: bool,
}

/// A plugin from its bytes, for a place that wants one of this kind.
fn make(
    bytes: &[u8],
    config: &serde_json::Value,
    world: World,
    wanted_by: &str,
    sandbox: &Sandbox,
) -> Result<Plugin, Unfit> {
    let unfit = |message: String, part| Unfit { message, part, host: false };
    let of_file = |message: String, host| Unfit { message, part: Part::File, host };
    let (engine, cache) = sandbox.engine().map_err(|e| of_file(e.to_string(), true))?;
    let component =
        Component::load(&engine, bytes, cache.as_ref()).map_err(|e| of_file(e.to_string(), e.is_host()))?;
    if component.world() != world {
        let of =
            |world: World| if world == World::Enricher { "an enricher".into() } else { format!("a {world}") };
        let message = format!("is {}, and `{wanted_by}` wants {}", of(component.world()), of(world));
        return Err(unfit(message, Part::Use));
    }
    let plugin = component.configure(&config.to_string()).map_err(|e| match e {
        ConfigureError::Refused(fields) => {
            let at = |path: &str| if path.is_empty() { "/".to_owned() } else { path.to_owned() };
            let list: Vec<String> =
                fields.iter().map(|f| format!("  {}: {}", at(&f.path), f.message)).collect();
            unfit(format!("does not take its config:\n{}", list.join("\n")), Part::Config(fields))
        }
        other => unfit(other.to_string(), Part::Config(Vec::new())),
    })?;
    purity::check(&plugin, &purity::made_up(plugin.component().description()))
        .map_err(|e| of_file(e.to_string(), false))?;
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
