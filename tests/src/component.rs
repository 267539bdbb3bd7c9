//! The naive model of a pipeline whose rule is a plugin: it runs the same component, but gives it each key's events once,
//! sorted, as one turn that ends with the input.
//!
//! No code of the host is used: wasmtime runs the component here, and frames are written and read by the contract's layout
//! alone. So it finds what the host does wrong around a rule (order, snapshots, state carried from call to call, timers, what
//! it makes of results), and nothing of what the rule itself does wrong: that is for the plugins' own scenarios.

use crate::model::{Log, Place, Row};
use crate::plugins::plugin;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tidemill_contract::cell::{MISSING_BOOLEAN, MISSING_INTEGER, Text};
use tidemill_contract::frame::{Frame, FrameWriter, Kind};
use tidemill_contract::rows::{
    self, Closing, REASON_END_OF_INPUT, REASON_LIMIT, Range, Rejection, Timer, Turn, TurnResult, turn_flags,
};
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Engine, Store};

mod bindings {
    #![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
    wasmtime::component::bindgen!({ path: "../wit/tidemill.wit", world: "sessionizer" });
}
use bindings::tidemill::plugin::types::{Description, FieldType};
use bindings::tidemill::plugin::{host, types};

/// What the component may call; its log goes to the test's output.
struct Host;

impl host::Host for Host {
    fn log(&mut self, level: host::Level, message: String) {
        eprintln!("plugin, {level:?}: {message}");
    }
}
impl types::Host for Host {}

/// A session as a rule made it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Made {
    /// Key, bounds, count and reason.
    pub row: Row,
    /// Its fields, a JSON object.
    pub fields: String,
}

/// A sessionizer, configured.
pub struct Sessionizer {
    store: Store<Host>,
    guest: bindings::Sessionizer,
    description: Description,
}

/// One line of JSON for a JSON text, so that texts can be compared.
#[must_use]
pub fn one_form(json: &str) -> String {
    serde_json::from_str::<Value>(json).unwrap_or_else(|e| panic!("no JSON: {e}: {json}")).to_string()
}

impl Sessionizer {
    /// The component of this crate with a config, a JSON object.
    #[must_use]
    pub fn new(name: &str, config: &str) -> Sessionizer {
        let engine = Engine::default();
        let component = wasmtime::component::Component::from_file(&engine, plugin(name)).unwrap();
        let mut linker = Linker::new(&engine);
        bindings::Sessionizer::add_to_linker::<_, HasSelf<_>>(&mut linker, |host| host).unwrap();
        let mut store = Store::new(&engine, Host);
        let guest = bindings::Sessionizer::instantiate(&mut store, &component, &linker).unwrap();
        let description = guest.call_describe(&mut store).unwrap();
        guest.call_configure(&mut store, config).unwrap().unwrap_or_else(|e| panic!("{name}: {e:?}"));
        Sessionizer { store, guest, description }
    }

    /// All sessions of a log of JSON lines but for the events at `dead`: those that are kept and those that are discarded,
    /// each in the order of rows. `fields` says where a declared field is in a record, if not under its name.
    #[must_use]
    pub fn sessions(
        &mut self,
        log: &Log,
        bytes: &[u8],
        dead: &BTreeSet<Place>,
        fields: &[(String, String)],
    ) -> (Vec<Made>, Vec<Made>) {
        /// By (time, id): where the record begins.
        type Sorted<'a> = BTreeMap<(i64, &'a [u8]), u64>;
        let mut keys: BTreeMap<&str, Sorted<'_>> = BTreeMap::new();
        for e in log.events.iter().filter(|e| !dead.contains(&e.place)) {
            // The first of several copies counts.
            keys.entry(&e.key).or_default().entry((e.time, &e.id)).or_insert(e.place.offset);
        }
        let (mut kept, mut discarded) = (Vec::new(), Vec::new());
        for (key, events) in keys {
            let inputs: Vec<(i64, Value)> = events
                .into_iter()
                .map(|((time, _), offset)| {
                    let mut record =
                        serde_json::Deserializer::from_slice(&bytes[offset as usize..]).into_iter();
                    (time, record.next().unwrap().unwrap())
                })
                .collect();
            self.turn(key, &inputs, fields, &mut kept, &mut discarded);
        }
        kept.sort();
        discarded.sort();
        (kept, discarded)
    }

    /// One key's whole life as one turn.
    fn turn(
        &mut self,
        key: &str,
        inputs: &[(i64, Value)],
        fields: &[(String, String)],
        kept: &mut Vec<Made>,
        discarded: &mut Vec<Made>,
    ) {
        let mut bytes = key.as_bytes().to_vec();
        let mut words = Vec::new();
        for (time, record) in inputs {
            words.push(*time as u64);
            for field in &self.description.fields {
                let place = fields.iter().find(|(f, _)| *f == field.name).map_or(&field.name, |(_, at)| at);
                words.push(cell(field, &record[place.as_str()], &mut bytes));
            }
        }
        let turn = Turn {
            key: Range::between(0, key.len()),
            until: i64::MAX,
            inputs: Range::between(0, inputs.len()),
            flags: turn_flags::AT_END,
            ..Turn::default()
        };
        let mut frame = FrameWriter::default();
        frame.begin(Kind::Turns);
        frame.section(&[turn]);
        frame.wide_section(&words, inputs.len());
        frame.section::<Timer>(&[]);
        frame.section::<u64>(&[]);
        frame.section(&bytes);
        let answer = self.guest.call_fold(&mut self.store, frame.end()).unwrap();
        let answer = answer.unwrap_or_else(|e| panic!("{key}: the rule failed: {e}"));

        let frame = Frame::read(&answer, Kind::Results).unwrap();
        let results: &[TurnResult] = frame.rows(0).unwrap();
        let bytes: &[u8] = frame.rows(7).unwrap();
        assert_eq!(results.len(), 1, "one turn, one result");
        assert_eq!(results[0].end.kind, rows::state_kind::NONE, "{key}: a session is open after the end");
        let rejected: Vec<u32> = results[0]
            .rejections
            .of::<Rejection>(frame.rows(3).unwrap())
            .unwrap()
            .iter()
            .map(|r| r.input)
            .collect();
        for c in results[0].closings.of::<Closing>(frame.rows(1).unwrap()).unwrap() {
            let (first, last) = (usize::try_from(c.first).unwrap(), usize::try_from(c.last).unwrap());
            let lost = rejected.iter().filter(|i| (first..=last).contains(&(**i as usize))).count();
            let row = Row {
                key: key.into(),
                start_ms: inputs[first].0,
                end_ms: inputs[last].0,
                events: (last - first + 1 - lost) as u64,
                reason: Some(self.reason(c.reason).to_owned()),
            };
            let fields = std::str::from_utf8(c.fields.of(bytes).unwrap()).unwrap();
            let made = Made { row, fields: one_form(if fields.is_empty() { "{}" } else { fields }) };
            if c.discarded == 1 { discarded.push(made) } else { kept.push(made) }
        }
    }

    fn reason(&self, number: u32) -> &str {
        match number {
            REASON_END_OF_INPUT => "end_of_input",
            REASON_LIMIT => "limit",
            n => &self.description.reasons[n as usize],
        }
    }
}

/// The cell of a field, as the contract's table says; texts are appended to `bytes`.
fn cell(field: &types::Field, value: &Value, bytes: &mut Vec<u8>) -> u64 {
    match field.type_ {
        FieldType::Text | FieldType::String => {
            let text = match value {
                Value::Null => String::new(),
                Value::String(s) => s.clone(),
                other => other.to_string(),
            };
            if text.is_empty() {
                return Text::Missing.word();
            }
            if let Some(n) = field.symbols.iter().position(|s| *s == text) {
                return Text::Symbol(n as u32).word();
            }
            let at = bytes.len() as u32;
            bytes.extend_from_slice(text.as_bytes());
            Text::Range { at, len: text.len() as u32 }.word()
        }
        FieldType::Integer => value.as_i64().unwrap_or(MISSING_INTEGER) as u64,
        FieldType::Number => value.as_f64().unwrap_or(f64::NAN).to_bits(),
        FieldType::Boolean => value.as_bool().map_or(MISSING_BOOLEAN, u64::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Format, Gap, Source, Unit, read, sessions};
    use crate::traffic::{Shop, file_of};

    /// Two models that share no rule: the hand-written one of the gap, and the component of the same rule run here.
    #[test]
    fn the_component_of_the_gap_gives_what_the_model_of_the_gap_gives() {
        let bytes =
            file_of(&Shop { seed: 1, events: 3000, users: 60, step_ms: 500, invalid_every: 50 }.lines());
        let source = Source::file("web", "in", Format::Json, "user", "ts", Unit::Millis);
        let gap = Gap { max_ms: Some(40_000), ..Gap::of_seconds(10, true) };
        let log = read(&[(&source, "in", &bytes)], &gap);
        let config = r#"{"gap":"10s","boundary":"inclusive","max":"40s"}"#;
        let (kept, discarded) =
            Sessionizer::new("gap-sessions", config).sessions(&log, &bytes, &BTreeSet::new(), &[]);
        let expected = sessions(&log, &BTreeSet::new(), &gap);
        assert!(expected.iter().any(|r| r.reason.as_deref() == Some("max")), "the log has no long session");
        assert_eq!(kept.into_iter().map(|m| m.row).collect::<Vec<_>>(), expected);
        assert!(discarded.is_empty());
    }
}
