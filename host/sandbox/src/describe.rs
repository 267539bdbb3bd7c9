//! What a plugin says of itself, as plain values, checked.

use crate::{bindings, bounds, shape::World};
use std::collections::BTreeSet;
use tidemill_contract::FRAME_VERSION;

/// What a plugin says of itself. Within the bounds of the contract, and without duplicates.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// Lower-case letters, digits and hyphens.
    pub name: String,
    /// A semantic version.
    pub version: String,
    /// Declared fields, in the order of the cells of a row.
    pub fields: Vec<Field>,
    /// Names of close reasons, discards and rejections.
    pub reasons: Vec<String>,
    /// Names of the timers.
    pub timers: Vec<String>,
    /// Metrics of the plugin's own.
    pub metrics: Vec<Metric>,
    /// Names of the lookups that an enricher asks for.
    pub lookups: Vec<String>,
    /// A JSON Schema of the config.
    pub config_schema: String,
    /// The form of its state; sessionizers only, and always.
    pub state: Option<StateSchema>,
}

/// A declared field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The plugin's name for it.
    pub name: String,
    /// What it may hold.
    pub field_type: FieldType,
    /// Whether a record without it is a dead letter.
    pub required: bool,
    /// Values passed as their place in this list.
    pub symbols: Vec<String>,
}

/// What a field may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// A string; numbers and booleans as their JSON text stands.
    Text,
    /// A string and nothing else.
    String,
    /// A whole number.
    Integer,
    /// A finite number.
    Number,
    /// True or false.
    Boolean,
}

/// A metric of a plugin's own.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: MetricKind,
    /// For a reader.
    pub help: String,
}

/// What a metric is.
#[derive(Clone, Debug, PartialEq)]
pub enum MetricKind {
    /// A sum.
    Counter,
    /// With these upper bounds, rising.
    Histogram(Vec<f64>),
}

/// A form that a session's state has, or had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateForm {
    /// Its version.
    pub version: u32,
    /// What a state of this version is made of, in the words of the plugin's SDK.
    pub shape: String,
}

/// The form of a session's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateSchema {
    /// As it is now.
    pub present: StateForm,
    /// Older forms that `migrate` takes.
    pub migrates_from: Vec<StateForm>,
}

/// What is wrong with a description: everything at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its description is wrong: {}", .0.join("; "))]
pub struct DescriptionError(pub Vec<String>);

impl Description {
    pub(crate) fn check(raw: bindings::Description, world: World) -> Result<Description, DescriptionError> {
        // Nothing else in it may mean what it does here.
        if raw.frame_version != u32::from(FRAME_VERSION) {
            return Err(DescriptionError(vec![format!(
                "it speaks version {} of the frame layout, and this host version {FRAME_VERSION}: build it with the SDK of \
                 this release",
                raw.frame_version
            )]));
        }
        let mut wrong = Wrong(Vec::new());
        wrong.name(&raw.name);
        wrong.version(&raw.version);
        wrong.labels("field", raw.fields.iter().map(|f| f.name.as_str()), bounds::FIELDS_MAX);
        wrong.labels("reason", raw.reasons.iter().map(String::as_str), bounds::REASONS_MAX);
        for reason in raw.reasons.iter().filter(|r| bounds::REASONS_RESERVED.contains(&r.as_str())) {
            wrong.add(format!("reason {reason:?} is one of the host's own: it needs another name"));
        }
        wrong.labels("timer", raw.timers.iter().map(String::as_str), bounds::TIMERS_MAX);
        wrong.labels("metric", raw.metrics.iter().map(|m| m.name.as_str()), bounds::METRICS_MAX);
        wrong.labels("lookup", raw.lookups.iter().map(String::as_str), bounds::LOOKUPS_MAX);
        for field in &raw.fields {
            let has_text = matches!(field.type_, bindings::FieldType::Text | bindings::FieldType::String);
            if !has_text && !field.symbols.is_empty() {
                wrong.add(format!("field `{}` has symbols, which only text and string have", field.name));
            }
            let what = format!("symbol of field `{}`", field.name);
            wrong.labels(&what, field.symbols.iter().map(String::as_str), bounds::SYMBOLS_MAX);
        }
        for metric in &raw.metrics {
            wrong.metric(metric);
        }
        wrong.only(world, World::Sessionizer, "timers", !raw.timers.is_empty());
        wrong.only(world, World::Sessionizer, "a state", raw.state.is_some());
        wrong.only(world, World::Enricher, "lookups", !raw.lookups.is_empty());
        match &raw.state {
            None if world == World::Sessionizer => wrong.add("a sessionizer needs a state schema".into()),
            None => {}
            Some(state) => wrong.state(&state.present, &state.migrates_from),
        }
        wrong.schema(&raw.config_schema);
        if wrong.0.is_empty() { Ok(plain(raw)) } else { Err(DescriptionError(wrong.0)) }
    }
}

/// Gathers problems.
struct Wrong(Vec<String>);

impl Wrong {
    fn add(&mut self, what: String) {
        self.0.push(what);
    }

    fn name(&mut self, name: &str) {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || name.len() > bounds::NAME_BYTES_MAX || !name.bytes().all(fits) {
            let max = bounds::NAME_BYTES_MAX;
            self.add(format!("name {name:?} is not 1 to {max} lower-case letters, digits and hyphens"));
        }
    }

    fn version(&mut self, version: &str) {
        let core = version.split(['-', '+']).next().unwrap_or_default();
        let number = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_digit())
                && (part == "0" || !part.starts_with('0'))
        };
        let rest = |b: u8| b.is_ascii_alphanumeric() || b"-+.".contains(&b);
        let fits = core.split('.').count() == 3 && core.split('.').all(number) && version.bytes().all(rest);
        if !fits || version.len() > bounds::NAME_BYTES_MAX {
            self.add(format!("version {version:?} is not a semantic version such as 1.2.3"));
        }
    }

    /// Names of one kind: not too many, none empty, too long or twice, and nothing in them that breaks a line.
    fn labels<'a>(&mut self, what: &str, names: impl ExactSizeIterator<Item = &'a str>, max: usize) {
        if names.len() > max {
            self.add(format!("{} {what}s, where {max} are allowed", names.len()));
            return;
        }
        let mut seen = BTreeSet::new();
        for name in names {
            if name.is_empty() || name.len() > bounds::LABEL_BYTES_MAX || name.chars().any(char::is_control) {
                let max = bounds::LABEL_BYTES_MAX;
                self.add(format!("{what} {name:?} is not 1 to {max} bytes of printable text"));
            }
            if !seen.insert(name) {
                self.add(format!("{what} {name:?} is there twice"));
            }
        }
    }

    fn metric(&mut self, metric: &bindings::Metric) {
        let name = &metric.name;
        let head = |b: u8| b.is_ascii_alphabetic() || b == b'_';
        if !name.bytes().next().is_some_and(head) || !name.bytes().all(|b| head(b) || b.is_ascii_digit()) {
            self.add(format!("metric {name:?} is not letters, digits and underscores"));
        }
        if metric.help.len() > bounds::HELP_BYTES_MAX {
            self.add(format!("the help of metric {name:?} is longer than {} bytes", bounds::HELP_BYTES_MAX));
        }
        let buckets = &metric.buckets;
        match metric.kind {
            bindings::MetricKind::Counter if !buckets.is_empty() => {
                self.add(format!("counter {name:?} has buckets"));
            }
            bindings::MetricKind::Counter => {}
            bindings::MetricKind::Histogram => {
                let rising = buckets.windows(2).all(|w| matches!(w, [a, b] if a < b));
                let some = (1..=bounds::BUCKETS_MAX).contains(&buckets.len());
                if !some || !rising || !buckets.iter().all(|b| b.is_finite()) {
                    let max = bounds::BUCKETS_MAX;
                    self.add(format!("histogram {name:?} needs 1 to {max} finite buckets, rising"));
                }
            }
        }
    }

    fn only(&mut self, world: World, whose: World, what: &str, there: bool) {
        if there && world != whose {
            self.add(format!("a {world} has no use for {what}"));
        }
    }

    fn state(&mut self, present: &bindings::StateForm, from: &[bindings::StateForm]) {
        if from.len() > bounds::MIGRATES_FROM_MAX {
            self.add(format!(
                "it migrates from {} versions, where {} are allowed",
                from.len(),
                bounds::MIGRATES_FROM_MAX
            ));
        }
        let version = present.version;
        if from.iter().any(|f| f.version == version) {
            self.add(format!("it migrates from {version}, which is its own version"));
        }
        if from.iter().map(|f| f.version).collect::<BTreeSet<_>>().len() < from.len() {
            self.add("a version that it migrates from is there twice".into());
        }
        let wrong = |s: &str| s.len() > bounds::STATE_SHAPE_BYTES_MAX || s.chars().any(char::is_control);
        if from.iter().chain([present]).any(|f| wrong(&f.shape)) {
            let max = bounds::STATE_SHAPE_BYTES_MAX;
            self.add(format!("the shape of a state is not up to {max} bytes of printable text"));
        }
    }

    fn schema(&mut self, schema: &str) {
        if schema.len() > bounds::CONFIG_SCHEMA_BYTES_MAX {
            self.add(format!("the config's schema is longer than {} bytes", bounds::CONFIG_SCHEMA_BYTES_MAX));
        } else if !matches!(
            serde_json::from_str(schema),
            Ok(serde_json::Value::Object(_) | serde_json::Value::Bool(_))
        ) {
            self.add("the config's schema is not a JSON Schema: an object, or true".into());
        }
    }
}

fn plain(raw: bindings::Description) -> Description {
    Description {
        name: raw.name,
        version: raw.version,
        fields: raw
            .fields
            .into_iter()
            .map(|f| Field {
                name: f.name,
                field_type: match f.type_ {
                    bindings::FieldType::Text => FieldType::Text,
                    bindings::FieldType::String => FieldType::String,
                    bindings::FieldType::Integer => FieldType::Integer,
                    bindings::FieldType::Number => FieldType::Number,
                    bindings::FieldType::Boolean => FieldType::Boolean,
                },
                required: f.required,
                symbols: f.symbols,
            })
            .collect(),
        reasons: raw.reasons,
        timers: raw.timers,
        metrics: raw
            .metrics
            .into_iter()
            .map(|m| Metric {
                name: m.name,
                kind: match m.kind {
                    bindings::MetricKind::Counter => MetricKind::Counter,
                    bindings::MetricKind::Histogram => MetricKind::Histogram(m.buckets),
                },
                help: m.help,
            })
            .collect(),
        lookups: raw.lookups,
        config_schema: raw.config_schema,
        state: raw.state.map(|s| StateSchema {
            present: form(s.present),
            migrates_from: s.migrates_from.into_iter().map(form).collect(),
        }),
    }
}

fn form(raw: bindings::StateForm) -> StateForm {
    StateForm { version: raw.version, shape: raw.shape }
}
