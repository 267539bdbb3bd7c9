//! What scenarios ask of a plugin and what it answers, written down for `tidemill plugin test`, which asks the component
//! the same. Only where `TIDEMILL_RECORD` names a folder.
//!
//! A process writes one file of JSON lines there, in the order of the calls. Frames stand in it as hexadecimal words. A
//! question that is asked again is written again only if the answer is another one.

use crate::{Config, ConfigError, Description, Enricher, FieldType, Sessionizer, StateForm, Validator};
use serde_json::{Value, json};
use std::any::type_name;
use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};

/// The variable that names the folder.
const VARIABLE: &str = "TIDEMILL_RECORD";

struct Recorder {
    file: File,
    seen: HashSet<String>,
}

static RECORDER: LazyLock<Option<Mutex<Recorder>>> = LazyLock::new(|| {
    let folder = PathBuf::from(std::env::var_os(VARIABLE)?);
    let path = folder.join(format!("{}.jsonl", std::process::id()));
    match File::options().create(true).append(true).open(&path) {
        Ok(file) => Some(Mutex::new(Recorder { file, seen: HashSet::new() })),
        Err(e) => crate::broken(format_args!("{VARIABLE}: {}: {e}", path.display())),
    }
});

/// A plugin under test, as it is told apart from others that are tested in the same crate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tested {
    plugin: &'static str,
    world: &'static str,
    describe: fn() -> Description,
}

impl Tested {
    pub(crate) fn sessionizer<R: Sessionizer>() -> Tested {
        Tested { plugin: type_name::<R>(), world: "sessionizer", describe: Description::of_sessionizer::<R> }
    }
    pub(crate) fn validator<V: Validator>() -> Tested {
        Tested { plugin: type_name::<V>(), world: "validator", describe: Description::of_validator::<V> }
    }
    pub(crate) fn enricher<E: Enricher>() -> Tested {
        Tested { plugin: type_name::<E>(), world: "enricher", describe: Description::of_enricher::<E> }
    }

    /// A call with a frame, and the frame that it answered with.
    pub(crate) fn call(self, call: &str, config: &str, question: &[u64], answer: &[u64]) {
        if let Some(recorder) = RECORDER.as_ref() {
            let (question, answer) = (hex(question), hex(answer));
            let line = json!({ "call": call, "config": config, "question": question, "answer": answer });
            self.write(recorder, line);
        }
    }

    /// A config that was taken or refused.
    pub(crate) fn configured(self, config: &str, refused: &[ConfigError]) {
        if let Some(recorder) = RECORDER.as_ref() {
            let refused = refused.iter().map(|e| json!({ "path": e.path, "message": e.message }));
            let refused: Vec<Value> = refused.collect();
            self.write(recorder, json!({ "call": "configure", "config": config, "refused": refused }));
        }
    }

    fn write(self, recorder: &Mutex<Recorder>, call: Value) {
        let mut recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
        if recorder.seen.insert(self.plugin.into()) {
            let line = json!({ "plugin": self.plugin, "world": self.world, "describes": description(&(self.describe)()) });
            recorder.append(&line);
        }
        let mut line = call;
        if let Some(line) = line.as_object_mut() {
            line.insert("plugin".into(), self.plugin.into());
        }
        if !recorder.seen.insert(line.to_string()) {
            return;
        }
        if let Some(line) = line.as_object_mut() {
            line.insert("test".into(), std::thread::current().name().unwrap_or("main").into());
        }
        recorder.append(&line);
    }
}

impl Recorder {
    fn append(&mut self, line: &Value) {
        if let Err(e) = writeln!(self.file, "{line}") {
            crate::broken(format_args!("{VARIABLE}: {e}"));
        }
    }
}

/// As `tidemill plugin inspect --json` shows the component's.
fn description(d: &Description) -> Value {
    let kind = |t: FieldType| match t {
        FieldType::Text => "text",
        FieldType::String => "string",
        FieldType::Integer => "integer",
        FieldType::Number => "number",
        FieldType::Boolean => "boolean",
    };
    let form = |f: &StateForm| json!({ "version": f.version, "shape": f.shape });
    let schema: Value = serde_json::from_str(&d.config_schema).unwrap_or_default();
    json!({
        "fields": d.fields.iter().map(|f| json!({
            "name": f.name, "type": kind(f.field_type), "required": f.required, "symbols": f.symbols,
        })).collect::<Vec<_>>(),
        "reasons": d.reasons,
        "timers": d.timers,
        "metrics": d.metrics.iter().map(|m| json!({
            "name": m.name, "help": m.help, "buckets": m.buckets.unwrap_or(&[]),
        })).collect::<Vec<_>>(),
        "lookups": d.lookups,
        "config_schema": schema,
        "state": d.state.as_ref().map(|s| json!({
            "version": s.present.version, "shape": s.present.shape,
            "migrates_from": s.migrates_from.iter().map(form).collect::<Vec<_>>(),
        })),
    })
}

fn hex(words: &[u64]) -> String {
    words.iter().map(|w| format!("{w:016x}")).collect()
}

/// Reads a config and makes a plugin of it.
///
/// # Errors
/// What is wrong with the config.
pub(crate) fn configure<C: Config, P>(
    tested: Tested,
    config: &str,
    make: impl FnOnce(C) -> Result<P, Vec<ConfigError>>,
) -> Result<P, Vec<ConfigError>> {
    let made = crate::config::read(config).and_then(make);
    tested.configured(config, made.as_ref().err().map_or(&[], Vec::as_slice));
    made
}
