//! The config of a plugin: a JSON object into a struct, with every problem at once.

use crate::Duration;
use serde_json::{Map, Value, json};

/// What is wrong with a config.
///
/// ```
/// use tidemill_plugin_sdk::{ConfigError, Duration};
/// fn configure(gap: Duration) -> Result<(), Vec<ConfigError>> {
///     if gap < Duration::seconds(1) { return Err(ConfigError::at("/gap", "at least 1s is wanted").into()) }
///     Ok(())
/// }
/// assert_eq!(configure(Duration::from_millis(5)).unwrap_err()[0].to_string(), "/gap: at least 1s is wanted");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// A JSON pointer to the field, `""` for the whole.
    pub path: String,
    /// What is wrong, for a reader.
    pub message: String,
}

impl ConfigError {
    /// At this JSON pointer (`"/gap"`), this is wrong.
    pub fn at(path: impl Into<String>, message: impl Into<String>) -> ConfigError {
        ConfigError { path: path.into(), message: message.into() }
    }
}
impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = if self.path.is_empty() { "config" } else { &self.path };
        write!(f, "{path}: {}", self.message)
    }
}
impl From<ConfigError> for Vec<ConfigError> {
    fn from(e: ConfigError) -> Self {
        vec![e]
    }
}

/// What may be, or stand in, a config. Derive it for structs with named fields and enums without:
///
/// ```
/// use tidemill_plugin_sdk::{Config, Duration, config};
/// #[derive(Config, Debug, PartialEq)]
/// struct Rules {
///     /// The page that ends a purchase.
///     done: String,
///     #[config(default = Duration::minutes(30))]
///     idle: Duration,
///     currency: Option<String>,
/// }
/// let rules: Rules = config::read(r#"{"done": "/thanks", "idle": "5m"}"#).unwrap();
/// assert_eq!(rules, Rules { done: "/thanks".into(), idle: Duration::minutes(5), currency: None });
///
/// let errors = config::read::<Rules>(r#"{"idle": 5, "curency": "EUR"}"#).unwrap_err();
/// let errors: Vec<String> = errors.iter().map(|e| e.to_string()).collect();
/// assert_eq!(errors, [
///     "/curency: there is no such key; the keys are done, idle, currency",
///     "/done: this key is missing",
///     "/idle: a length of time such as \"30m\" is wanted, not 5",
/// ]);
/// let schema = Rules::schema();
/// assert_eq!(schema["properties"]["idle"]["default"], "30m");
/// assert_eq!(schema["required"], serde_json::json!(["done"]));
/// ```
pub trait Config: Sized {
    /// A JSON Schema of it.
    fn schema() -> Value;
    /// Reads it; says in `errors` what is wrong at `path`, all of it.
    fn read(json: &Value, path: &str, errors: &mut Vec<ConfigError>) -> Option<Self>;
    /// Itself as it is written in a config; `null` if it is not written.
    fn to_json(&self) -> Value;
    /// What a missing key means, if it may be missing.
    fn missing() -> Option<Self> {
        None
    }
}

/// Reads a config from its JSON text.
///
/// ```
/// use tidemill_plugin_sdk::config;
/// let gaps: Vec<u32> = config::read("[5, 10]").unwrap();
/// assert_eq!(gaps, [5, 10]);
/// assert_eq!(config::read::<Vec<u32>>("[5, -1]").unwrap_err()[0].path, "/1");
/// ```
///
/// # Errors
/// Everything that is wrong with it.
pub fn read<C: Config>(text: &str) -> Result<C, Vec<ConfigError>> {
    let text = if text.trim().is_empty() { "{}" } else { text };
    let json: Value = serde_json::from_str(text).map_err(|e| ConfigError::at("", format!("no JSON: {e}")))?;
    let mut errors = Vec::new();
    let config = C::read(&json, "", &mut errors);
    match config {
        Some(c) if errors.is_empty() => Ok(c),
        _ => Err(errors),
    }
}

fn wanted<T>(what: &str, json: &Value, path: &str, errors: &mut Vec<ConfigError>) -> Option<T> {
    errors.push(ConfigError::at(path, format!("{what} is wanted, not {json}")));
    None
}

/// No config: no key is taken.
impl Config for () {
    fn to_json(&self) -> Value {
        json!({})
    }
    fn schema() -> Value {
        json!({ "type": "object", "additionalProperties": false })
    }
    fn read(json: &Value, path: &str, errors: &mut Vec<ConfigError>) -> Option<()> {
        Keys::of(json, path, &[], errors).map(|_| ())
    }
}
impl Config for bool {
    fn to_json(&self) -> Value {
        json!(self)
    }
    fn schema() -> Value {
        json!({ "type": "boolean" })
    }
    fn read(json: &Value, path: &str, errors: &mut Vec<ConfigError>) -> Option<bool> {
        json.as_bool().or_else(|| wanted("true or false", json, path, errors))
    }
}
impl Config for String {
    fn to_json(&self) -> Value {
        json!(self)
    }
    fn schema() -> Value {
        json!({ "type": "string" })
    }
    fn read(json: &Value, path: &str, errors: &mut Vec<ConfigError>) -> Option<String> {
        json.as_str().map(String::from).or_else(|| wanted("a text", json, path, errors))
    }
}
impl Config for f64 {
    fn to_json(&self) -> Value {
        json!(self)
    }
    fn schema() -> Value {
        json!({ "type": "number" })
    }
    fn read(json: &Value, path: &str, errors: &mut Vec<ConfigError>) -> Option<f64> {
        json.as_f64().or_else(|| wanted("a number", json, path, errors))
    }
}
macro_rules! whole {
    ($($t:ty)*) => {$(
        impl Config for $t {
            fn to_json(&self) -> Value {
                json!(self)
            }
            fn schema() -> Value {
                json!({ "type": "integer", "minimum": <$t>::MIN, "maximum": <$t>::MAX })
            }
            fn read(json: &Value, path: &str, errors: &mut Vec<ConfigError>) -> Option<$t> {
                let n = json.as_i64().map(i128::from).or_else(|| json.as_u64().map(i128::from));
                n.and_then(|n| <$t>::try_from(n).ok()).or_else(|| {
                    wanted(&format!("a whole number from {} to {}", <$t>::MIN, <$t>::MAX), json, path, errors)
                })
            }
        }
    )*};
}
whole!(u8 u16 u32 u64 i8 i16 i32 i64);

impl Config for Duration {
    fn to_json(&self) -> Value {
        json!(self.to_string())
    }
    fn schema() -> Value {
        json!({ "type": "string", "pattern": "^([0-9]+(d|h|ms|m|s))+$" })
    }
    fn read(json: &Value, path: &str, errors: &mut Vec<ConfigError>) -> Option<Duration> {
        let Some(text) = json.as_str() else {
            return wanted("a length of time such as \"30m\"", json, path, errors);
        };
        Duration::parse(text).map_err(|m| errors.push(ConfigError::at(path, m))).ok()
    }
}
impl<T: Config> Config for Option<T> {
    fn to_json(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::to_json)
    }
    fn schema() -> Value {
        T::schema()
    }
    fn read(json: &Value, path: &str, errors: &mut Vec<ConfigError>) -> Option<Option<T>> {
        if json.is_null() { Some(None) } else { T::read(json, path, errors).map(Some) }
    }
    fn missing() -> Option<Option<T>> {
        Some(None)
    }
}
impl<T: Config> Config for Vec<T> {
    fn to_json(&self) -> Value {
        self.iter().map(T::to_json).collect()
    }
    fn schema() -> Value {
        json!({ "type": "array", "items": T::schema() })
    }
    fn read(json: &Value, path: &str, errors: &mut Vec<ConfigError>) -> Option<Vec<T>> {
        let Some(list) = json.as_array() else { return wanted("a list", json, path, errors) };
        let read: Vec<Option<T>> =
            list.iter().enumerate().map(|(i, v)| T::read(v, &format!("{path}/{i}"), errors)).collect();
        read.into_iter().collect()
    }
}

/// The keys of an object; what derived configs are read with.
#[doc(hidden)]
#[derive(Debug)]
pub struct Keys<'a> {
    map: &'a Map<String, Value>,
    path: &'a str,
}

impl<'a> Keys<'a> {
    pub fn of(json: &'a Value, path: &'a str, known: &[&str], errors: &mut Vec<ConfigError>) -> Option<Self> {
        let Some(map) = json.as_object() else { return wanted("an object", json, path, errors) };
        for key in map.keys().filter(|k| !known.contains(&k.as_str())) {
            let m = match known {
                [] => "there is no such key; this plugin takes none".into(),
                _ => format!("there is no such key; the keys are {}", known.join(", ")),
            };
            errors.push(ConfigError::at(pointer(path, key), m));
        }
        Some(Keys { map, path })
    }
    pub fn field<T: Config>(
        &self,
        key: &str,
        default: Option<T>,
        errors: &mut Vec<ConfigError>,
    ) -> Option<T> {
        let path = pointer(self.path, key);
        match self.map.get(key) {
            Some(v) => T::read(v, &path, errors),
            None => default.or_else(T::missing).or_else(|| {
                errors.push(ConfigError::at(path, "this key is missing"));
                None
            }),
        }
    }
}

/// The schema of an object; what derived configs are described with.
#[doc(hidden)]
#[derive(Debug)]
pub struct Object {
    about: &'static str,
    properties: Map<String, Value>,
    required: Vec<Value>,
}

impl Object {
    pub fn new(about: &'static str) -> Object {
        Object { about, properties: Map::new(), required: Vec::new() }
    }
    pub fn key<T: Config>(&mut self, key: &str, about: &str, default: Option<T>) {
        let mut schema = T::schema();
        if let (Some(map), false) = (schema.as_object_mut(), about.is_empty()) {
            map.insert("description".into(), about.into());
        }
        match default.or_else(T::missing).map(|d| d.to_json()) {
            None => self.required.push(key.into()),
            // What may be left out, and is then not there.
            Some(Value::Null) => {}
            Some(value) => {
                if let Some(map) = schema.as_object_mut() {
                    map.insert("default".into(), value);
                }
            }
        }
        self.properties.insert(key.into(), schema);
    }
    pub fn end(self) -> Value {
        let mut all = json!({ "type": "object", "additionalProperties": false });
        if let Some(map) = all.as_object_mut() {
            if !self.about.is_empty() {
                map.insert("description".into(), self.about.into());
            }
            map.insert("properties".into(), self.properties.into());
            if !self.required.is_empty() {
                map.insert("required".into(), self.required.into());
            }
        }
        all
    }
}

/// An object of these keys, without those that are not written.
#[doc(hidden)]
pub fn object<const N: usize>(keys: [(&str, Value); N]) -> Value {
    keys.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.to_owned(), v)).collect()
}

#[doc(hidden)]
pub fn choices(about: &str, names: &[&str]) -> Value {
    let mut schema = json!({ "type": "string", "enum": names });
    if let (Some(map), false) = (schema.as_object_mut(), about.is_empty()) {
        map.insert("description".into(), about.into());
    }
    schema
}

#[doc(hidden)]
pub fn choice(names: &[&str], json: &Value, path: &str, errors: &mut Vec<ConfigError>) -> Option<usize> {
    let found = json.as_str().and_then(|s| names.iter().position(|name| *name == s));
    found.or_else(|| {
        let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
        wanted(&format!("one of {}", names.join(", ")), json, path, errors)
    })
}

fn pointer(path: &str, key: &str) -> String {
    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"))
}
