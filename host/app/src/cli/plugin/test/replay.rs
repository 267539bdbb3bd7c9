//! The component is asked what the native plugin was asked, and must answer the same.
//!
//! Each question is asked in a new instance, in one that has answered all before it, and in the same once more in the
//! opposite order: what differs only there is memory between calls.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use similar::TextDiff;
use tidemill_sandbox::{Call as Export, Component, ConfigureError, Fault, Instance, Plugin, bounds};

use super::recording::{Asked, Call};
use super::{samples, show};
use crate::plugin::purity;

/// For one call. Whether it is right is the question here, not how long it takes on a busy machine.
const DEADLINE: Duration = bounds::SETUP_DEADLINE;
/// Samples of one check of purity: some calls of a few hundred rows.
const SAMPLES_MAX: usize = 64;

/// What was replayed.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    /// Configs that were taken or refused as natively.
    pub(super) configs: usize,
    /// Calls that were made.
    pub(super) calls: usize,
    /// What was found, for the author.
    pub(super) differences: Vec<String>,
}

/// Replays the calls of one plugin.
///
/// # Errors
/// If the host cannot: no instance, not the component's doing.
pub(super) fn all(component: &Component, calls: &[&Call]) -> Result<Replayed, Fault> {
    let mut done = Replayed::default();
    let mut configs: Vec<&str> = Vec::new();
    for call in calls {
        if !configs.contains(&call.config.as_str()) {
            configs.push(&call.config);
        }
    }
    for config in configs {
        let of_config: Vec<&Call> = calls.iter().copied().filter(|c| c.config == config).collect();
        let Some(plugin) = configured(component, config, &of_config, &mut done) else { continue };
        frames(&plugin, &of_config, &mut done)?;
        pure(&plugin, &of_config, &mut done);
    }
    Ok(done)
}

/// The plugin under a config, if both take it.
fn configured(component: &Component, config: &str, calls: &[&Call], done: &mut Replayed) -> Option<Plugin> {
    // An author may leave the config of a scenario empty, a pipeline cannot.
    let config = if config.trim().is_empty() { "{}" } else { config };
    let natively = calls.iter().find_map(|c| match &c.asked {
        Asked::Configure(refused) => Some((c, refused)),
        Asked::Frame { .. } => None,
    });
    done.configs += 1;
    let verdict = component.configure(config);
    let refused = match &verdict {
        Ok(_) => Vec::new(),
        Err(ConfigureError::Refused(errors)) => errors.clone(),
        // The host says it before the plugin is asked.
        Err(ConfigureError::NotAnObject(_)) => return None,
        Err(other) => {
            let test = natively.map_or("", |(c, _)| c.test.as_str());
            done.differences
                .push(format!("{test}: the component does not take the config {config}: {other}"));
            return None;
        }
    };
    match natively {
        Some((call, expected)) if *expected != refused => {
            let lines = |errors: &[tidemill_sandbox::FieldError]| match errors {
                [] => "taken\n".to_owned(),
                _ => errors.iter().map(|e| format!("refused: {e}\n")).collect(),
            };
            let difference = difference(&lines(expected), &lines(&refused));
            done.differences
                .push(format!("{}: the config {config} is judged otherwise\n{difference}", call.test));
            None
        }
        _ => verdict.ok(),
    }
}

fn frames(plugin: &Plugin, calls: &[&Call], done: &mut Replayed) -> Result<(), Fault> {
    let mut used = plugin.instance()?;
    let mut asked: HashMap<(&str, &[u64]), &[u64]> = HashMap::new();
    let mut right: Vec<(&Call, &str, &[u64], &[u64])> = Vec::new();
    for call in calls {
        let Asked::Frame { export, question, answer } = &call.asked else { continue };
        done.calls += 1;
        if asked.insert((export, question), answer).is_some_and(|before| before != answer) {
            done.report(
                call,
                "natively it answers one question in two ways: something is kept between calls",
                "",
            );
            continue;
        }
        let alone = ask(&mut plugin.instance()?, export, question);
        if let Some(found) = found(plugin, export, answer, &alone) {
            done.report(call, "the component answers otherwise than the same code natively", &found);
            continue;
        }
        right.push((call, export, question, answer));
    }
    // What is right alone must be right wherever else it is asked.
    let forth_and_back = right.iter().chain(right.iter().rev());
    let mut told = HashSet::new();
    for (n, (call, export, question, answer)) in forth_and_back.enumerate() {
        let again = ask(&mut used, export, question);
        if let Some(found) = found(plugin, export, answer, &again)
            && told.insert(if n < right.len() { n } else { 2 * right.len() - 1 - n })
        {
            let what = "in an instance that was used before, the component answers otherwise than in a new one: \
                        something is kept between calls";
            done.report(call, what, &found);
        }
    }
    Ok(())
}

fn ask(instance: &mut Instance, export: &str, question: &[u64]) -> Result<Vec<u64>, Fault> {
    let export = match export {
        "fold" => Export::Fold,
        "validate" => Export::Validate,
        "requests" => Export::Requests,
        _ => Export::Apply,
    };
    instance.call(export, question, DEADLINE).map(<[u64]>::to_vec)
}

/// What is to be said of an answer, if it is not the one that was expected.
fn found(plugin: &Plugin, export: &str, expected: &[u64], found: &Result<Vec<u64>, Fault>) -> Option<String> {
    match found {
        Ok(words) if words == expected => None,
        Ok(words) => {
            let d = plugin.component().description();
            Some(difference(&show::answer(export, expected, d), &show::answer(export, words, d)))
        }
        Err(fault) => Some(format!("{fault}\n")),
    }
}

/// `-` natively, `+` in the component.
fn difference(natively: &str, component: &str) -> String {
    if natively == component {
        return "the bytes of the two frames differ, and what they say does not\n".to_owned();
    }
    let diff = TextDiff::from_lines(natively, component);
    diff.iter_all_changes().map(|line| format!("    {} {line}", line.tag())).collect()
}

/// The events of all scenarios together, as a busy pipeline would give them.
fn pure(plugin: &Plugin, calls: &[&Call], done: &mut Replayed) {
    let mut seen = HashSet::new();
    let mut all = Vec::new();
    for call in calls {
        let Asked::Frame { export, question, .. } = &call.asked else { continue };
        match samples::of_frame(export, question, plugin.component().description(), &mut seen) {
            Ok(samples) => all.extend(samples),
            Err(e) => done.report(call, "what was recorded cannot be read", &e.to_string()),
        }
    }
    for some in all.chunks(SAMPLES_MAX) {
        if let Err(e) = purity::check(plugin, some) {
            done.differences.push(e.to_string());
            return;
        }
    }
}

impl Replayed {
    fn report(&mut self, call: &Call, what: &str, found: &str) {
        let question = match &call.asked {
            Asked::Frame { export, question, .. } => show::question(export, question),
            Asked::Configure(_) => "configure".to_owned(),
        };
        let Call { test, config, .. } = call;
        self.differences.push(format!("{test}: {what}\n  config {config}\n  {question}\n{found}"));
    }
}
