//! The config file as a tree of values with their places, before anything is known about their meaning:
//! TOML, `${..}` substitution, and readers for the few types a key can have.
//!
//! Invariants: every reader that returns `None` has noted why, or stands on a value that was noted before
//! (`Value::Bad`), so nothing is reported twice; messages quote a string as it stands in the file, never
//! with what was put in for `${..}`.

use toml::de::{DeTable, DeValue};

use super::diagnose::{Problems, Spot, nearest, one_of};

/// Looks up environment variables; an argument, so that tests need not change the process.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The longest duration a config may name: ten years, far from any overflow of milliseconds.
const DURATION_MS_MAX: f64 = 3650.0 * 86_400_000.0;

/// A value and its place.
#[derive(Debug)]
pub(crate) struct Node {
    /// Its place.
    pub(crate) at: Spot,
    /// What it is.
    pub(crate) value: Value,
}

/// One key of a table.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: String,
    /// Its place.
    pub(crate) key_at: Spot,
    /// What it is set to.
    pub(crate) node: Node,
}

/// A TOML value; strings have their `${..}` filled in.
pub(crate) enum Value {
    /// As written, and with `${..}` filled in.
    Text { raw: String, value: String },
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// true or false.
    Bool(bool),
    /// A TOML date or time.
    Date(String),
    /// Values in order.
    Array(Vec<Node>),
    /// Keys in the order of the file.
    Table(Vec<Entry>),
    /// Already reported.
    Bad,
}

impl std::fmt::Debug for Value {
    /// Shows strings as written: what `${..}` stands for may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Text { raw, .. } => write!(f, "{raw:?}"),
            other => f.write_str(other.what()),
        }
    }
}

impl Value {
    fn what(&self) -> &'static str {
        match self {
            Value::Text { .. } => "a string",
            Value::Int(_) => "a whole number",
            Value::Float(_) => "a number with a fraction",
            Value::Bool(_) => "a boolean",
            Value::Date(_) => "a date",
            Value::Array(_) => "an array",
            Value::Table(_) => "a table",
            Value::Bad => "an unusable value",
        }
    }
}

/// Parses TOML. All syntax errors go to `problems`, and then nothing is returned: a tree with holes would
/// be called incomplete where it is only unreadable.
pub(crate) fn read(text: &str, env: Env<'_>, problems: &mut Problems) -> Vec<Entry> {
    let (table, errors) = DeTable::parse_recoverable(text);
    for e in &errors {
        let at = e.span().map_or(Spot::default(), Spot::from);
        problems.error(at, "", format!("not valid TOML: {}", e.message()), None);
    }
    if errors.is_empty() { entries(table.get_ref(), "", env, problems) } else { Vec::new() }
}

fn entries(table: &DeTable<'_>, path: &str, env: Env<'_>, problems: &mut Problems) -> Vec<Entry> {
    let mut list: Vec<Entry> = table
        .iter()
        .map(|(k, v)| {
            let path = join(path, k.get_ref());
            Entry {
                key: k.get_ref().to_string(),
                key_at: k.span().into(),
                node: node(v.get_ref(), v.span().into(), &path, env, problems),
            }
        })
        .collect();
    // The parser sorts by name; names that are listed to the user should come as the user wrote them.
    list.sort_by_key(|e| e.key_at.start);
    list
}

fn node(value: &DeValue<'_>, at: Spot, path: &str, env: Env<'_>, problems: &mut Problems) -> Node {
    let value = match value {
        DeValue::String(s) => match substitute(s, env) {
            Ok(value) => Value::Text { raw: s.to_string(), value },
            Err((message, help)) => {
                problems.error(at, path, message, help);
                Value::Bad
            }
        },
        DeValue::Integer(i) => match i64::from_str_radix(i.as_str(), i.radix()) {
            Ok(i) => Value::Int(i),
            Err(_) => {
                problems.error(at, path, format!("`{i}` does not fit into 64 bits"), None);
                Value::Bad
            }
        },
        DeValue::Float(f) => f.as_str().parse().map_or(Value::Bad, Value::Float),
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Datetime(d) => Value::Date(d.to_string()),
        DeValue::Array(a) => {
            Value::Array(a.iter().map(|v| node(v.get_ref(), v.span().into(), path, env, problems)).collect())
        }
        DeValue::Table(t) => Value::Table(entries(t, path, env, problems)),
    };
    Node { at, value }
}

/// Fills in `${env:NAME}` and `${file:PATH}`; `$${` stands for a literal `${`.
fn substitute(raw: &str, env: Env<'_>) -> Result<String, (String, Option<String>)> {
    let mut out = String::new();
    let mut rest = raw;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at]);
            out.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let Some(len) = rest[at..].find('}') else {
            return Err((
                "`${` without a closing `}`".to_owned(),
                Some("write `$${` for the two characters themselves".to_owned()),
            ));
        };
        out.push_str(&filled(&rest[at + 2..at + len], env)?);
        rest = &rest[at + len + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn filled(name: &str, env: Env<'_>) -> Result<String, (String, Option<String>)> {
    if let Some(var) = name.strip_prefix("env:") {
        return env(var).ok_or_else(|| {
            (
                format!("the environment variable `{var}` is not set"),
                Some(format!("set it before the start: `export {var}=...`")),
            )
        });
    }
    if let Some(path) = name.strip_prefix("file:") {
        return match std::fs::read_to_string(path) {
            // Editors end files with a line break that is no part of the secret.
            Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(e) => Err((format!("`{path}` cannot be read: {e}"), None)),
        };
    }
    Err((
        format!("`${{{name}}}` is neither `${{env:NAME}}` nor `${{file:PATH}}`"),
        Some(format!("write `${{env:{name}}}` for an environment variable")),
    ))
}

/// `a.b` of `a` and `b`.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A table being read: remembers which keys were asked for, so that the rest can be called unknown.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    /// Key path of the table.
    pub(crate) path: String,
    /// Where to point when something is missing: the table's name.
    pub(crate) at: Spot,
    entries: &'a [Entry],
    asked: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// Begins to read a table.
    pub(crate) fn new(path: String, at: Spot, entries: &'a [Entry]) -> Section<'a> {
        Section { path, at, entries, asked: Vec::new() }
    }

    /// All keys, for tables whose keys are names.
    pub(crate) fn entries(&self) -> &'a [Entry] {
        self.entries
    }

    /// The value of a key that may be absent.
    pub(crate) fn get(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.asked.push(key);
        let e = self.entries.iter().find(|e| e.key == key)?;
        Some(Field { node: &e.node, key_at: e.key_at, path: join(&self.path, key) })
    }

    /// The value of a key that must be there; `help` shows one.
    pub(crate) fn need(
        &mut self,
        key: &'static str,
        help: &str,
        problems: &mut Problems,
    ) -> Option<Field<'a>> {
        let found = self.get(key);
        if found.is_none() {
            let path = join(&self.path, key);
            problems.error(self.at, &path, format!("`{path}` is missing"), help.to_owned());
        }
        found
    }

    /// Counts keys as known without reading them (the value that decides over them is wrong itself).
    pub(crate) fn forgive(&mut self, keys: &[&'static str]) {
        self.asked.extend(keys);
    }

    /// Reports the keys that nobody asked for. `elsewhere`: keys that exist under another condition.
    pub(crate) fn finish(self, elsewhere: &[(&'static str, &str)], problems: &mut Problems) {
        for e in self.entries.iter().filter(|e| !self.asked.contains(&e.key.as_str())) {
            let path = join(&self.path, &e.key);
            if let Some((_, when)) = elsewhere.iter().find(|(k, _)| *k == e.key) {
                problems.error(e.key_at, &path, format!("`{}` means nothing here: {when}", e.key), None);
                continue;
            }
            let help = match nearest(&e.key, self.asked.iter().copied()) {
                Some(k) => format!("did you mean `{k}`?"),
                None => {
                    let mut known = self.asked.clone();
                    known.sort_unstable();
                    format!("known here: {}", known.join(", "))
                }
            };
            problems.error(e.key_at, &path, format!("unknown key `{path}`"), help);
        }
    }
}

/// A value being read, with its path.
#[derive(Clone, Debug)]
pub(crate) struct Field<'a> {
    /// The value.
    pub(crate) node: &'a Node,
    /// Where its key stands.
    pub(crate) key_at: Spot,
    /// Its key path.
    pub(crate) path: String,
}

impl<'a> Field<'a> {
    /// Notes an error at the value.
    pub(crate) fn wrong(&self, message: String, help: impl Into<Option<String>>, problems: &mut Problems) {
        problems.error(self.node.at, &self.path, message, help);
    }

    /// Notes that another type was expected.
    pub(crate) fn mistyped(&self, wanted: &str, help: impl Into<Option<String>>, problems: &mut Problems) {
        if !matches!(self.node.value, Value::Bad) {
            self.wrong(
                format!("`{}` must be {wanted}, not {}", self.path, self.node.value.what()),
                help,
                problems,
            );
        }
    }

    /// A string that is not empty, `${..}` filled in.
    pub(crate) fn text(&self, problems: &mut Problems) -> Option<&'a str> {
        match &self.node.value {
            Value::Text { value, .. } if value.is_empty() => {
                self.wrong(format!("`{}` is empty", self.path), None, problems);
                None
            }
            Value::Text { value, .. } => Some(value),
            Value::Int(i) => {
                self.mistyped("a string", format!("write \"{i}\""), problems);
                None
            }
            _ => {
                self.mistyped("a string", None, problems);
                None
            }
        }
    }

    /// The string as it stands in the file, for messages.
    pub(crate) fn shown(&self) -> &'a str {
        match &self.node.value {
            Value::Text { raw, .. } => raw,
            _ => "",
        }
    }

    /// One of a few words; `later` are words that will come.
    pub(crate) fn word(
        &self,
        known: &[&'static str],
        later: &[&'static str],
        problems: &mut Problems,
    ) -> Option<&'static str> {
        let text = self.text(problems)?;
        if let Some(word) = known.iter().find(|k| **k == text) {
            return Some(word);
        }
        let shown = self.shown();
        if later.contains(&text) {
            let help = format!("this build has {}", one_of(known));
            self.wrong(format!("`{shown}` is not in this build yet"), help, problems);
            return None;
        }
        let help = match nearest(text, known.iter().chain(later).copied()) {
            Some(k) => format!("did you mean \"{k}\"?"),
            None => format!("write {}", one_of(known)),
        };
        self.wrong(format!("`{}` cannot be `{shown}`", self.path), help, problems);
        None
    }

    /// A duration in milliseconds.
    pub(crate) fn duration_ms(&self, problems: &mut Problems) -> Option<i64> {
        if let Value::Int(i) = self.node.value {
            self.mistyped(
                "a duration",
                format!("write \"{i}s\" for seconds, \"{i}ms\" for milliseconds"),
                problems,
            );
            return None;
        }
        let Value::Text { value, .. } = &self.node.value else {
            self.mistyped("a duration", "write it as \"30s\"".to_owned(), problems);
            return None;
        };
        match duration_ms(value) {
            Ok(ms) => Some(ms),
            Err(help) => {
                self.wrong(format!("`{}` is not a duration", self.shown()), help, problems);
                None
            }
        }
    }

    /// A size in bytes.
    pub(crate) fn size_bytes(&self, problems: &mut Problems) -> Option<u64> {
        if let Value::Int(i) = self.node.value {
            self.mistyped("a size", format!("write \"{i}B\" for bytes, \"{i}MiB\" for mebibytes"), problems);
            return None;
        }
        let Value::Text { value, .. } = &self.node.value else {
            self.mistyped("a size", "write it as \"64MiB\"".to_owned(), problems);
            return None;
        };
        match size_bytes(value) {
            Ok(bytes) => Some(bytes),
            Err(help) => {
                self.wrong(format!("`{}` is not a size", self.shown()), help, problems);
                None
            }
        }
    }

    /// true or false.
    pub(crate) fn boolean(&self, problems: &mut Problems) -> Option<bool> {
        match &self.node.value {
            Value::Bool(b) => Some(*b),
            Value::Text { value, .. } if value == "true" || value == "false" => {
                self.mistyped("true or false", format!("write {value} without quotes"), problems);
                None
            }
            _ => {
                self.mistyped("true or false", None, problems);
                None
            }
        }
    }

    /// A whole number of at least `least`.
    pub(crate) fn count(&self, least: u64, problems: &mut Problems) -> Option<u64> {
        let Value::Int(i) = self.node.value else {
            self.mistyped("a whole number", None, problems);
            return None;
        };
        match u64::try_from(i) {
            Ok(n) if n >= least => Some(n),
            _ => {
                self.wrong(format!("`{}` must be at least {least}, not {i}", self.path), None, problems);
                None
            }
        }
    }

    /// A positive number.
    pub(crate) fn positive(&self, problems: &mut Problems) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a rate of more than 2^53 a second means nothing")]
        let number = match self.node.value {
            Value::Int(i) => i as f64,
            Value::Float(f) => f,
            _ => {
                self.mistyped("a number", None, problems);
                return None;
            }
        };
        if number.is_finite() && number > 0.0 {
            return Some(number);
        }
        self.wrong(format!("`{}` must be greater than 0", self.path), None, problems);
        None
    }

    /// The elements, each under the same path; a single value counts as an array of one.
    pub(crate) fn elements(&self) -> Vec<Field<'a>> {
        match &self.node.value {
            Value::Array(list) => {
                list.iter().map(|node| Field { node, key_at: node.at, path: self.path.clone() }).collect()
            }
            _ => vec![self.clone()],
        }
    }

    /// A table.
    pub(crate) fn section(&self, help: &str, problems: &mut Problems) -> Option<Section<'a>> {
        match &self.node.value {
            Value::Table(entries) => Some(Section::new(self.path.clone(), self.key_at, entries)),
            _ => {
                self.mistyped("a table", help.to_owned(), problems);
                None
            }
        }
    }
}

/// Splits `1h30m` into numbers and units.
fn parts(text: &str) -> Result<Vec<(f64, &str)>, String> {
    let mut list = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number = rest[..digits].parse().map_err(|_| "it must begin with a number".to_owned())?;
        let tail = rest[digits..].trim_start();
        let unit = tail.find(|c: char| !c.is_alphabetic()).unwrap_or(tail.len());
        list.push((number, &tail[..unit]));
        if unit == 0 && !tail.is_empty() {
            return Err("it must consist of numbers and units only".to_owned());
        }
        rest = tail[unit..].trim_start();
    }
    Ok(list)
}

/// `250ms`, `10s`, `1h30m`, `1d` in milliseconds; the error says what to write.
pub(crate) fn duration_ms(text: &str) -> Result<i64, String> {
    let list = parts(text).map_err(|e| format!("{e}: \"30s\", \"1h30m\""))?;
    if list.is_empty() {
        return Err("write it as \"30s\"".to_owned());
    }
    let mut total = 0.0;
    for (number, unit) in list {
        let factor = match unit {
            "ms" => 1.0,
            "s" => 1_000.0,
            "m" => 60_000.0,
            "h" => 3_600_000.0,
            "d" => 86_400_000.0,
            "" => {
                return Err(format!(
                    "it has no unit: write \"{text}s\" for seconds, \"{text}ms\" for milliseconds"
                ));
            }
            other => {
                let short = match other.to_lowercase().as_str() {
                    "sec" | "secs" | "second" | "seconds" => "s",
                    "min" | "mins" | "minute" | "minutes" => "m",
                    "hr" | "hrs" | "hour" | "hours" => "h",
                    "day" | "days" => "d",
                    _ => return Err(format!("`{other}` is no unit; units are ms, s, m, h, d")),
                };
                return Err(format!("write `{short}` instead of `{other}`"));
            }
        };
        total += number * factor;
    }
    if total > DURATION_MS_MAX {
        return Err("at most ten years (\"3650d\")".to_owned());
    }
    if total.fract() != 0.0 {
        return Err("the finest unit is one whole millisecond".to_owned());
    }
    #[expect(clippy::cast_possible_truncation, reason = "whole and within ten years, checked above")]
    Ok(total as i64)
}

/// `512B`, `64MiB`, `1GB` in bytes; the error says what to write.
pub(crate) fn size_bytes(text: &str) -> Result<u64, String> {
    let list = parts(text).map_err(|e| format!("{e}: \"64MiB\""))?;
    let [(number, unit)] = list.as_slice() else {
        return Err("write one number and one unit: \"64MiB\"".to_owned());
    };
    let factor = match *unit {
        "B" => 1.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        "TiB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "" => {
            return Err(format!("it has no unit: write \"{text}B\" for bytes, \"{text}MiB\" for mebibytes"));
        }
        other => {
            let units = ["B", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"];
            return Err(match units.iter().find(|u| u.eq_ignore_ascii_case(other)) {
                Some(u) => format!("write `{u}` instead of `{other}`"),
                None => format!("`{other}` is no unit; units are {}", units.join(", ")),
            });
        }
    };
    let bytes = number * factor;
    // Beyond 2^53 a double is no longer exact, and no machine has 8 PiB for this.
    if bytes > 9_007_199_254_740_992.0 {
        return Err("at most 8 PiB".to_owned());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 2^53, checked above")]
    Ok(bytes.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let table = [
            ("250ms", Ok(250)),
            ("10s", Ok(10_000)),
            ("1.5s", Ok(1_500)),
            ("1h30m", Ok(5_400_000)),
            ("1h 30m", Ok(5_400_000)),
            ("1d", Ok(86_400_000)),
            ("0s", Ok(0)),
            ("", Err("write it as \"30s\"")),
            ("30", Err("it has no unit: write \"30s\" for seconds, \"30ms\" for milliseconds")),
            ("30 min", Err("write `m` instead of `min`")),
            ("-5s", Err("it must begin with a number: \"30s\", \"1h30m\"")),
            ("s", Err("it must begin with a number: \"30s\", \"1h30m\"")),
            ("5y", Err("`y` is no unit; units are ms, s, m, h, d")),
            ("0.5ms", Err("the finest unit is one whole millisecond")),
            ("9999999d", Err("at most ten years (\"3650d\")")),
            ("1.2.3s", Err("it must begin with a number: \"30s\", \"1h30m\"")),
            ("1h-2m", Err("it must begin with a number: \"30s\", \"1h30m\"")),
        ];
        for (text, want) in table {
            assert_eq!(duration_ms(text), want.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn sizes() {
        let table = [
            ("512B", Ok(512)),
            ("64MiB", Ok(64 << 20)),
            ("1GB", Ok(1_000_000_000)),
            ("1.5 KiB", Ok(1536)),
            ("10", Err("it has no unit: write \"10B\" for bytes, \"10MiB\" for mebibytes")),
            ("1gb", Err("write `GB` instead of `gb`")),
            ("", Err("write one number and one unit: \"64MiB\"")),
            ("1GB 2MB", Err("write one number and one unit: \"64MiB\"")),
            ("9999999TB", Err("at most 8 PiB")),
        ];
        for (text, want) in table {
            assert_eq!(size_bytes(text), want.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn substitution() {
        let env = |name: &str| (name == "X").then(|| "secret".to_owned());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from file\n").unwrap();
        let by_file = format!("${{file:{}}}", file.path().display());
        assert_eq!(substitute("a${env:X}b${env:X}", &env).unwrap(), "asecretbsecret");
        assert_eq!(substitute(&by_file, &env).unwrap(), "from file");
        assert_eq!(substitute("$${env:X}", &env).unwrap(), "${env:X}");
        assert_eq!(substitute("${env:Y}", &env).unwrap_err().0, "the environment variable `Y` is not set");
        assert!(substitute("${file:/nowhere}", &env).unwrap_err().0.starts_with("`/nowhere` cannot be read"));
        assert_eq!(
            substitute("${X}", &env).unwrap_err().0,
            "`${X}` is neither `${env:NAME}` nor `${file:PATH}`"
        );
        assert_eq!(substitute("${env:X", &env).unwrap_err().0, "`${` without a closing `}`");
    }
}
